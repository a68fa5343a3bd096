#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""Whatever the caller says by flags, bits or an enumerator is in the table of
test-refuse.c, which tries all that this version does not know.

That is each such member of a struct that the caller fills, and each such
argument of a function. What the library fills is left out, by its name.

usage: flags.py check HEADER TEST
       flags.py twin HEADER TEST              show that it can fail
"""

import re
import sys

# The library fills these, or they are not the caller's to choose.
FILLED = {
    'kvmfault_finding', 'kvmfault_features', 'kvmfault_fault',
    'kvmfault_change', 'kvmfault_failure', 'kvmfault_delivery_report',
    'kvmfault_memory_maps', 'kvmfault_memslot', 'kvmfault_request',
    'kvmfault_event', 'kvmfault_result', 'kvmfault_sleeper', 'kvmfault_syscall',
    'kvmfault_stats',
}
# Any value is right: it is compared, or answered with a name.
ANY = {'kvmfault_resolver.flags'}


def without_comments(text):
    return re.sub(r'/\*.*?\*/', '', text, flags=re.S)


def members(header):
    for struct, body in re.findall(r'struct (kvmfault_\w+) \{(.*?)\n\};',
                                   without_comments(header), re.S):
        if struct in FILLED:
            continue
        # A callback's arguments are not the caller's.
        body = re.sub(r'\([^()]*\)', '', body)
        for kind, name in re.findall(r'([\w ]+?)\s+(\w+)(?:\[.*?\])?;', body):
            if 'enum' in kind or re.search('flags|allow|pages', name):
                yield f'{struct}.{name}'


def arguments(header):
    for name, args in re.findall(r'\b(kvmfault_\w+)\(([^;]*?)\);',
                                 without_comments(header)):
        if re.search(r'enum \w+ \w+|\bflags\b', args) and \
                not name.endswith('_str'):
            yield name


def missing(header, test):
    wanted = set(members(header)) | set(arguments(header))
    return sorted(name for name in wanted - ANY if f'"{name}"' not in test)


def main():
    with open(sys.argv[2]) as file:
        header = file.read()
    with open(sys.argv[3]) as file:
        test = file.read()
    if sys.argv[1] == 'check':
        for name in missing(header, test):
            print(f'{name} is not in the table of {sys.argv[3]}')
        sys.exit(bool(missing(header, test)))
    everything = set(members(header)) | set(arguments(header))
    assert {'kvmfault_vm_options.allow', 'kvmfault_region.flags',
            'kvmfault_resolver.pages', 'kvmfault_memory_options.window',
            'kvmfault_vm_set_delivery'} < everything, everything
    more = header.replace('struct kvmfault_region {',
                          'struct kvmfault_region {\n\tuint32_t more_flags;')
    assert missing(more, test) == ['kvmfault_region.more_flags']
    assert missing(header + 'int kvmfault_new(enum kvmfault_page page);',
                   test) == ['kvmfault_new']
    print('each doctored header was noticed')


main()
