#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""examples/own-resolver.c: sealed pages are opened, or the guest gets none."""

import os

import harness

KEY = 0x243f6a8885a308d3
WORDS = harness.PAGE // 8
PLAIN, SEALED = 24, 40


def mix(word):
    word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9 % (1 << 64)
    return (word ^ word >> 27) * 0x94d049bb133111eb % (1 << 64)


def seal(pages):
    """The sealed image of these pages: all of them, and then their tags."""
    words, tags = [], []
    for page in pages:
        tag = KEY
        for word in memoryview(page).cast('Q'):
            words.append(word ^ mix((KEY + len(words) * 8) % (1 << 64)))
            tag = mix(tag ^ word)
        tags.append(tag)
    return b''.join(word.to_bytes(8, 'little') for word in words + tags)


def make_images(**how):
    """Returns what the guest has to find."""
    plain = harness.image('plain', PLAIN, **how)
    secret = harness.image('secret', SEALED, seed=2, **how)
    with open('sealed', 'wb') as file:
        file.write(seal(secret))
    return harness.total(plain + secret)


def change(path, offset, content):
    with open(path, 'r+b') as file:
        file.seek(offset)
        file.write(content)


def test_each_page_is_its_own_resolver_s(program):
    expected = make_images()
    out = harness.run(program, 'plain', 'sealed').stdout
    assert harness.says(out, 'sum:') == [expected], out
    assert harness.says(out, 'opened:') == [SEALED, PLAIN + SEALED], out


def test_zeros_and_holes(program):
    expected = make_images(holes=50)
    out = harness.run(program, 'plain', 'sealed').stdout
    assert harness.says(out, 'sum:') == [expected], out
    assert harness.says(out, 'opened:')[0] == SEALED, out


def fails(program, page, why):
    done = harness.run(program, 'plain', 'sealed', code=1)
    assert done.stdout == '', done
    assert f'{page * harness.PAGE:#x}: ' in done.stderr, done
    assert why in done.stderr, done


def test_a_page_that_was_changed(program):
    make_images()
    change('sealed', 7 * harness.PAGE + 100, b'changed')
    fails(program, 7, 'Bad message')


def test_a_page_that_is_a_hole(program):
    """Zeros of the file are no zeros of the guest's."""
    make_images()
    with open('sealed', 'rb') as file:
        content = file.read()
    page = 9 * harness.PAGE
    os.remove('sealed')
    change_after = content[page + harness.PAGE:]
    with open('sealed', 'wb') as file:
        file.write(content[:page])
        file.seek(page + harness.PAGE)
        file.write(change_after)
    fails(program, 9, 'Bad message')


def test_wrong_use(program):
    make_images()
    harness.run(program, 'plain', 'none', code=1)
    harness.run(program, 'plain', code=2)


def test_rights(program):
    make_images()
    os.chmod('.', 0o755)
    harness.lacks_rights(program, os.path.realpath('plain'),
                         os.path.realpath('sealed'))


harness.need('kvm', 'uffd')
harness.main(globals())
