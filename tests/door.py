#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""All of the library but sys.c calls nothing outside of itself that could be a
system call, an allocation or a lock: what the fake door counts is all there is.

usage: door.py NM ARCHIVE       ARCHIVE: the library without sys.c
       door.py twin             show that it can fail
"""

import re
import subprocess
import sys

PURE = {'memcpy', 'memmove', 'memset', 'memcmp', 'strlen', 'strcmp',
        'snprintf', 'vsnprintf', 'strstr', 'sscanf', '__isoc99_sscanf',
        '__isoc23_sscanf', 'pthread_self', 'pthread_equal',
        'pthread_mutex_init', 'pthread_mutex_destroy',
        '_GLOBAL_OFFSET_TABLE_'}
# The library's own, and what compilers put there.
OWN = re.compile(r'kvmfault_|__(asan|ubsan|tsan|gcov|sanitizer|stack_chk)_')


def foreign(listing):
    """nm's listing: the names that are used and should not be."""
    used = {line.split()[1] for line in listing.splitlines()
            if line.split()[:1] == ['U']}
    if not any(name.startswith('kvmfault__sys_') for name in used):
        return ['nothing found: the archive does not use the door']
    return sorted(name for name in used - PURE if not OWN.match(name))


def twin():
    good = ' U kvmfault__sys_alloc\n U memcpy\n0000 T malloc\n'
    assert not foreign(good)
    assert foreign('')
    for name in ('malloc', 'ioctl', 'pthread_mutex_lock', 'syscall'):
        assert foreign(f'{good} U {name}\n') == [name]
    print('each doctored input was noticed')


def main():
    if sys.argv[1:] == ['twin']:
        return twin()
    nm, archive = sys.argv[1:]
    listing = subprocess.run([nm, archive], check=True, text=True,
                             stdout=subprocess.PIPE).stdout
    found = foreign(listing)
    for name in found:
        print(f'{name}: called past the door')
    sys.exit(bool(found))


main()
