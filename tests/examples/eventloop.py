#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""examples/eventloop.c: a loop answers faults, and fills, until RAM is whole."""

import os

import harness

PAGES = 1000
TOUCHED = range(0, PAGES, 5)
TRIES = 10


def demand(program, image):
    """Returns how many pages came because the vCPU was waiting."""
    out = harness.run(program, 'image').stdout
    guest = harness.total(image[page] for page in TOUCHED)
    assert harness.says(out, 'guest:') == [guest], out
    assert harness.says(out, 'RAM:') == [harness.total(image)], out
    size = PAGES * harness.PAGE
    assert f'\n{size} of {size} bytes\n' in out, out
    count = harness.says(out, 'demand:')[0]
    assert count <= len(TOUCHED), out
    return count


def test_faults_and_fill(program):
    image = harness.image('image', PAGES)
    # The fill may have all before the vCPU begins, but hardly each time.
    assert any(demand(program, image) for _ in range(TRIES))


def test_holes(program):
    demand(program, harness.image('image', PAGES, holes=60))


def test_wrong_use(program):
    harness.run(program, 'none', code=1)
    harness.run(program, code=2)


def test_rights(program):
    harness.image('image', PAGES)
    os.chmod('.', 0o755)
    harness.lacks_rights(program, os.path.realpath('image'))


harness.need('kvm', 'uffd')
harness.main(globals())
