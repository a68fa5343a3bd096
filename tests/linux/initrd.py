#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""The guest's initrd: init.c, the kernel's log that it writes to, and words
that it knows.

usage: initrd.py INIT INITRD
"""

import array
import os
import sys

sys.path.insert(0, os.path.join(
    os.path.dirname(os.path.realpath(__file__)), '../vm'))
import run

WORDS = 4 << 20				# bytes
MASK = (1 << 64) - 1


def main():
    init, initrd = sys.argv[1:]
    words = array.array('Q', ((index + 1) * 0x9e3779b97f4a7c15 & MASK
                              for index in range(WORDS // 8)))
    archive = run.Archive()
    archive.add('dev/kmsg', run.DEVICE, device=(1, 11))
    archive.add_file('init', run.bytes_of(init))
    archive.add_file('words', words.tobytes())
    archive.write(initrd)


if __name__ == '__main__':
    main()
