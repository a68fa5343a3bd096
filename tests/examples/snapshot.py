# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""examples/snapshot.c: RAM of the VM that was saved while it ran, and of the one
that goes on from there, to the byte; and what is in the new snapshot."""

import os

import harness

PAGES = 1024
ROUNDS = 200
RUNS = 30


def expected(image):
    """RAM in the end; its last page is the balloon's, and never comes back."""
    ram = bytearray(image)
    words = memoryview(ram).cast('Q')
    for number in range(len(words) // 2):
        words[number] = (words[number] + ROUNDS) % (1 << 64)
    ram[-harness.PAGE:] = bytes(harness.PAGE)
    return ram


def has_data(path, page):
    with open(path, 'rb') as file:
        at = page * harness.PAGE
        return os.lseek(file.fileno(), at, os.SEEK_DATA) == at


def vm(program, what, image, new):
    """Returns RAM in the end, and what was told."""
    with open('copy', 'w+b') as copy:
        _, told = harness.finish(
            harness.start(program, what, image, new, stdout=copy))
        copy.seek(0)
        return copy.read(), told


def snapshot(program, image, new):
    """Save to `new`; it has the lower half, whole, and the balloon's page, and
    nothing else was brought in when it was ready."""
    ram, told = vm(program, 'save', image, new)
    absent, written = harness.says(told.replace('written:', ''), 'absent:')
    assert absent == PAGES // 2 - 1, told
    for page in range(PAGES):
        mine = page < PAGES // 2 or page == PAGES - 1
        assert has_data(new, page) is mine, page
    return ram, written


def test_saves_and_goes_on(program):
    image = b''.join(harness.image('image', PAGES))
    for _ in range(3):
        ram, _ = snapshot(program, 'image', 'new')
        assert ram == expected(image)
        ram, _ = vm(program, 'load', 'image', 'new')
        assert ram == expected(image)


def test_guest_writes_before_a_page_is_saved(program):
    """The sweep may be faster than a guest that has to wait for a CPU, but not
    each time."""
    image = b''.join(harness.image('image', PAGES))
    for _ in range(RUNS):
        _, written = snapshot(program, 'image', 'new')
        if written:
            break
    print('pages that the guest wrote to before their turn:', written)
    assert written
    ram, _ = vm(program, 'load', 'image', 'new')
    assert ram == expected(image)


def test_image_is_needed(program):
    """Pages that are not in NEW come from IMAGE, and from nowhere else."""
    image = b''.join(harness.image('image', PAGES, 30))
    snapshot(program, 'image', 'new')
    other = b''.join(harness.image('other', PAGES, 0, 77))
    ram, _ = vm(program, 'load', 'other', 'new')
    half = PAGES // 2 * harness.PAGE
    assert ram[:half] == expected(image)[:half]
    assert ram[half:] == expected(other)[half:]


def test_instant_lies_before_the_end(program):
    """What NEW has is RAM at one instant: each word of the lower half is IMAGE's
    and so many more, as many for all words up to one, and one less behind it."""
    image = b''.join(harness.image('image', PAGES))
    snapshot(program, 'image', 'new')
    with open('new', 'rb') as file:
        new = file.read()
    was, now = (memoryview(data)[:PAGES // 2 * harness.PAGE].cast('Q')
                for data in (image, new))
    rounds = [(mine - its) % (1 << 64) for mine, its in zip(now, was)]
    assert rounds[0] in range(1, ROUNDS + 1), rounds[0]
    changes = [number for number in range(1, len(rounds))
               if rounds[number] != rounds[number - 1]]
    assert len(changes) <= 1, changes
    assert not changes or rounds[-1] == rounds[0] - 1, changes


def test_says_what_is_wrong(program):
    assert 'usage' in harness.run(program, code=1).stderr
    assert 'usage' in harness.run(program, 'safe', 'image', 'new',
                                  code=1).stderr
    assert 'no-image' in harness.run(program, 'load', 'no-image', 'new',
                                     code=1).stderr
    harness.image('image', PAGES)
    assert 'no-new' in harness.run(program, 'load', 'image', 'no-new',
                                   code=1).stderr
    harness.image('part', PAGES)	# without registers
    assert 'not whole' in harness.run(program, 'load', 'image', 'part',
                                      code=1).stderr
    os.chmod('.', 0o777)
    harness.lacks_rights(program, 'save', os.path.abspath('image'),
                         os.path.abspath('mine'))


harness.need('kvm', 'uffd')
harness.main(globals())
