#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""examples/working-set.c: a second start hardly faults."""

import os

import harness

PAGES = 1000
TOUCHED = range(0, PAGES, 5)
# One page may be in flight when the guest asks for it.
LEFT = len(TOUCHED) * 3 // 100


def start(program, expected):
    """Returns how many demand faults a start has."""
    out = harness.run(program, 'image', 'set').stdout
    assert harness.says(out, 'sum:') == [expected], out
    return harness.says(out, 'demand:')[0]


def make_image(**how):
    """Returns what the guest has to find."""
    image = harness.image('image', PAGES, **how)
    return harness.total(image[page] for page in TOUCHED)


def test_second_start(program):
    expected = make_image()
    assert start(program, expected) == len(TOUCHED)
    size = os.path.getsize('set')
    for _ in range(3):
        assert start(program, expected) <= LEFT
    assert os.path.getsize('set') == size


def test_holes(program):
    expected = make_image(holes=50)
    assert start(program, expected) == len(TOUCHED)
    assert start(program, expected) <= LEFT


def test_a_set_of_another_image_is_recorded_anew(program):
    start(program, make_image())
    expected = make_image(seed=2)
    os.utime('image', (1, 1))
    assert start(program, expected) == len(TOUCHED)
    assert start(program, expected) <= LEFT


def test_a_set_that_was_cut_is_recorded_anew(program):
    expected = make_image()
    start(program, expected)
    os.truncate('set', os.path.getsize('set') - 1)
    assert start(program, expected) == len(TOUCHED)
    assert start(program, expected) <= LEFT


def test_wrong_use(program):
    harness.run(program, 'none', 'set', code=1)
    harness.run(program, code=2)


def test_rights(program):
    make_image()
    os.chmod('.', 0o755)
    harness.lacks_rights(program, os.path.realpath('image'), 'set')


harness.need('kvm', 'uffd')
harness.main(globals())
