#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""layout.c freezes each open struct of the header and each of its members: one
that was put into a hole changes no other's place, and would not be missed.

usage: layout.py [--twin] LAYOUT.C HEADER..."""

import re
import sys
sys.dont_write_bytecode = True

import public


def check(data):
    header, table = data
    structs = public.structs(header)
    declared = {(struct, member) for struct in structs
                for member in structs[struct]}
    frozen = set(re.findall(r'^\tMEMBER\((\w+), (\w+),', table, re.M))
    sizes = set(re.findall(r'^\tSIZE\((\w+),', table, re.M))
    errors = [] if declared else ['no struct found']
    errors += [f'not in layout.c: {s}.{m}' for s, m in declared - frozen]
    errors += [f'not in the header: {s}.{m}' for s, m in frozen - declared]
    errors += [f'no size in layout.c: {s}' for s in set(structs) - sizes]
    return errors


def doctored(data):
    header, table = data
    yield 'one more member', (header.replace(
        '\tint error;', '\tint more;\n\tint error;', 1), table), '.more'
    yield 'one more callback', (header.replace(
        '\tint error;', '\tint (*more)(int a, int b);\n\tint error;', 1),
        table), '.more'
    yield 'one more array', (header.replace(
        '\tint error;', '\tuint8_t more[3];\n\tint error;', 1), table), '.more'
    yield 'one more struct', (
        header + 'struct kvmfault_x {\n\tsize_t size;\n};\n', table), \
        'no size in layout.c: kvmfault_x'
    yield 'a member less', (header.replace('\tint error;', '', 1), table), \
        'not in the header: kvmfault_fault.error'
    yield 'an empty header', ('', table), 'no struct found'
    yield 'an empty table', (header, ''), 'kvmfault_fault.gpa'


def main():
    args = [arg for arg in sys.argv[1:] if arg != '--twin']
    data = (''.join(map(public.read, args[1:])), public.read(args[0]))
    if '--twin' in sys.argv:
        public.twin(check, list(doctored(data)))
    public.verdict(check(data))


main()
