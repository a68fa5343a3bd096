#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""examples/private.c: what a page has, on both sides, through two conversions.

PROGRAM may be a command that runs it on a kernel of its own: 'run.py ...'"""

import shlex
import subprocess
import sys

import harness
import public

COMMAND = shlex.split(sys.argv[1])
BOOT = 1180		# seconds for a kernel that is emulated
# The guest's word of its page comes from the source, then from the guest_memfd:
# the VMM sees none of that. What is shared anew begins with zeros.
EXPECTED = '''\
1: shared, guest 0x1000, VMM 0x1000
2: private, guest 0, VMM 0
3: private, guest 0x5ec2e7, VMM 0
4: shared, guest 0, VMM 0
5: shared, guest 0x5a2ed, VMM 0x5a2ed
'''


def test_both_sides(program):
    command = COMMAND if len(COMMAND) > 1 else [program]
    done = subprocess.run(command, text=True, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=BOOT)
    if done.returncode == harness.SKIP:
        public.skip('private', done.stderr.strip())
    assert done.returncode == 0, done
    assert done.stdout.replace('\r', '') == EXPECTED, done


if len(COMMAND) == 1:		# else it is for the other kernel to have them
    harness.need('kvm', 'uffd')
harness.main(globals())
