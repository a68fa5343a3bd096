#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""firecracker-client itself, with a page server that is right (handler.py), and
with ones that are wrong in one page: a client that does not find that proves
nothing about any server."""

import contextlib
import os
import pathlib
import subprocess
import sys

sys.dont_write_bytecode = True
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / 'examples'))

import harness

PAGES = 4096


@contextlib.contextmanager
def handler(*wrong):
    """The server on the socket `socket`, for one client."""
    process = subprocess.Popen(
        [sys.executable, HERE / 'handler.py', 'serve', '--listen', 'socket',
         '--image', 'image', *map(str, wrong)], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == 'ready\n'
        yield
        assert process.wait(harness.PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()
        os.unlink('socket')


def client(program, *options, code=0):
    return harness.run(program, 'socket', 'image', *options, code=code)


def whole_page():
    """One that is no hole, and that the balloon does not take."""
    pages = harness.image('image', PAGES, 30)
    for page in range(64, PAGES, 128):	# a stretch that is never taken
        if any(pages[page]):
            return page
    raise AssertionError('an image of holes')


def test_is_served(program):
    whole_page()
    for options in ([], ['--balloon'], ['--regions', '5', '--vcpus', '3'],
                    ['--cut', '--old', '--balloon', '--regions', '300']):
        with handler():
            out = client(program, *options).stdout
        pages, ballooned = harness.says(out, 'verified:')
        assert pages == PAGES, out
        assert (ballooned > 0) == ('--balloon' in options), out


def test_finds_wrong_page(program):
    wrong = whole_page()
    for how in 'bit', 'zero', 'other':
        for options in [], ['--balloon', '--regions', '3']:
            with handler('--wrong', how, wrong):
                err = client(program, *options, code=1).stderr
            assert 'wrong: ' in err and f'page {wrong} ' in err, (how, err)


def test_finds_what_comes_back(program):
    """A page that the balloon took."""
    whole_page()
    with handler('--wrong', 'back', 0):
        err = client(program, '--balloon', code=1).stderr
    assert 'wrong: ' in err and 'expected 0, ' in err, err
    with handler('--wrong', 'back', 0):	# none
        client(program)


def test_says_what_is_wrong(program):
    assert 'usage' in harness.run(program, code=2).stderr
    whole_page()
    assert 'socket' in client(program, code=1).stderr
    client(program, '--vcpus', '0', code=2)
    client(program, '--wait', PAGES + 1, code=2)
    client(program, '--regions', PAGES + 1, code=2)


harness.need('kvm', 'uffd')
harness.main(globals())
