# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""examples/restore.c: what RAM is in the end, to the byte; and it is ended, or
its image cut off, at many moments."""

import os
import random
import signal

import harness

MOMENTS = 24


def expected(pages):
    """RAM: words that were 1 more, and what the balloon has."""
    fifth = len(pages) // 5 * harness.PAGE
    ram = bytearray(b''.join(pages))[:5 * fifth]
    words = memoryview(ram).cast('Q')
    for number in range(4 * fifth // 8):
        words[number] = (words[number] + 1) % (1 << 64)
    ram[4 * fifth:] = bytes(fifth)
    return ram


def resident(told):
    """The last line of the progress: so many bytes of so many."""
    return harness.says(told.splitlines()[-1], '')


def has_ended(program):
    """The process of the device, too: a zombie has no exe."""
    for process in os.listdir('/proc'):
        try:
            if os.readlink(f'/proc/{process}/exe') == program:
                return False
        except OSError:
            pass
    return True


def restore(program, ended=None):
    """Run it on `image`; ended(process) is called while it runs. Returns its
    exit code and messages, and RAM in `copy`."""
    with open('copy', 'wb') as copy:
        process = harness.start(program, 'image', stdout=copy)
        if ended:
            ended(process)
        _, told = process.communicate(timeout=harness.PATIENCE)
    harness.wait_for(lambda: has_ended(program))
    with open('copy', 'rb') as copy:
        return process.returncode, told, copy.read()


def test_restores(program):
    for count, holes in (5, 0), (1003, 50), (4000, 0):
        pages = harness.image('image', count, holes)
        code, told, ram = restore(program)
        assert code == 0, told
        assert ram == expected(pages), count
        fifth = count // 5 * harness.PAGE
        assert resident(told) == [4 * fifth, 5 * fifth], told


def test_ends_at_any_moment(program):
    pages = harness.image('image', 8000)
    whole = expected(pages)
    numbers = random.Random(6)
    codes = []
    for moment in range(MOMENTS):
        how = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)[moment % 3]

        def end(process):
            try:
                process.wait(numbers.uniform(0, 0.1))
            except harness.subprocess.TimeoutExpired:
                process.send_signal(how)
        code, told, ram = restore(program, end)
        codes.append(code)
        # A signal that comes before it has blocked it ends it as it is, one
        # that comes when RAM is settled ends nothing.
        assert code in (0, 3, -how), (code, told)
        assert (code == 3) == (' ended, ' in told), told
        if code == 0:
            assert ram == whole
        if code == 3:
            assert ram == b'', len(ram)
    print('ended with', codes)


def test_image_is_cut_off(program):
    """Its end is the balloon's, its middle is not: none of it reads as zero."""
    numbers = random.Random(7)
    codes = []
    for _ in range(MOMENTS // 2):
        pages = harness.image('image', 8000)

        def cut(process):
            try:
                process.wait(numbers.uniform(0, 0.05))
            except harness.subprocess.TimeoutExpired:
                os.truncate('image', 100 * harness.PAGE)
        code, told, ram = restore(program, cut)
        codes.append(code)
        assert code in (0, 1), (code, told)
        if code == 0:
            assert ram in (expected(pages), expected(pages[:100])), told
        else:
            assert ram == b'' and told, told
    print('cut off:', codes)


def test_says_what_is_wrong(program):
    assert 'usage' in harness.run(program, code=1).stderr
    assert 'no-image' in harness.run(program, 'no-image', code=1).stderr
    harness.image('image', 10)
    harness.lacks_rights(program, os.path.abspath('image'))


harness.need('kvm', 'uffd')
harness.main(globals())
