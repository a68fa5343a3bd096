#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""The header, the linker map and the shared library's symbols are the same,
each symbol in the node where the map has it; and the static archive, which
hides nothing, defines them, kvmfault__* and nothing else.

usage: symbols.py [--twin] HEADER MAP NM SHARED ARCHIVE"""

import subprocess
import sys
sys.dont_write_bytecode = True

import public


# What sys/sdt.h puts into each object with a tracepoint: weak, and hidden.
TRACEPOINTS = '_.stapsdt.base'


def symbols(listing):
    """nm's listing: the names, without the version nodes' own."""
    fields = [line.split() for line in listing.splitlines()]
    return {f[2] for f in fields if len(f) == 3 and f[1] != 'A' and
            (f[1], f[2]) != ('W', TRACEPOINTS)}


def difference(left, names, right, others):
    return ([f'{name}: in {left}, not in {right}' for name in names - others] +
            [f'{name}: in {right}, not in {left}' for name in others - names])


def check(data):
    declared = public.functions(data['header'])
    versions = public.versions(data['map'])
    nodes = {f'{name}@@{node}' for name, node in versions.items()}
    archive = symbols(data['archive'])
    errors = [f'nothing found: {what}' for what, found in (
        ('header', declared), ('map', versions),
        ('shared', symbols(data['shared'])), ('archive', archive)) if not found]
    errors += difference('header', declared, 'map', set(versions))
    errors += difference('map', nodes, 'shared', symbols(data['shared']))
    public_names = {n for n in archive if not n.startswith('kvmfault__')}
    errors += difference('map', set(versions), 'archive', public_names)
    return errors


def doctored(data):
    more = 'kvmfault_more'
    changes = [
        ('header', lambda t: t + f'\nint {more}(void);\n', more,
         'declares one more'),
        ('header', lambda t: t.replace('int kvmfault_ensure(', 'int (', 1),
         'kvmfault_ensure', 'declares one less'),
        ('header', lambda t: t.replace('int kvmfault_ensure(',
                                       '/* int kvmfault_ensure( */ int x(', 1),
         'kvmfault_ensure', 'one only in a comment'),
        ('map', lambda t: t.replace('global:', f'global:\n{more};'), more,
         'has one more'),
        ('map', lambda t: t.replace('kvmfault_vcpu_handle;', ''),
         'kvmfault_vcpu_handle', 'has one less'),
        ('map', lambda t: t.replace('global:', 'global:\nkvmfault_*;'),
         'kvmfault_*', 'has a pattern'),
        ('map', lambda t: t.replace('KVMFAULT_0.1', 'KVMFAULT_0.0'),
         'KVMFAULT_0.0', 'has another node'),
        ('shared', lambda t: t + f'0000 T {more}@@KVMFAULT_0.1\n', more,
         'exports one more'),
        ('shared', lambda t: t + '0000 T kvmfault__sys_open\n',
         'kvmfault__sys_open', 'exports a private one'),
        ('shared', lambda t: t + '0000 D kvmfault_data@@KVMFAULT_0.1\n',
         'kvmfault_data', 'exports data'),
        ('shared', lambda t: t.replace(' kvmfault_probe@', ' x@'),
         'kvmfault_probe', 'exports one less'),
        ('shared', lambda t: t.replace('kvmfault_probe@@KVMFAULT_0.1',
                                       'kvmfault_probe'),
         'kvmfault_probe', 'exports one without a version'),
        ('archive', lambda t: t + '0000 T helper\n', 'helper',
         'defines a foreign one'),
        ('archive', lambda t: t + '0000 B counter\n', 'counter',
         'defines foreign data'),
        ('archive', lambda t: t + f'0000 T {more}\n', more,
         'defines one that looks public'),
        ('archive', lambda t: t.replace(' kvmfault_decode\n', ' x\n'),
         'kvmfault_decode', 'defines one less'),
    ] + [(key, lambda t: '', 'nothing found: ' + key, 'is empty')
         for key in ('header', 'map', 'shared', 'archive')]
    for key, change, word, what in changes:
        yield f'{key} {what}', {**data, key: change(data[key])}, word


def main():
    args = [arg for arg in sys.argv[1:] if arg != '--twin']
    header, linker_map, nm, shared, archive = args

    def listing(*options):
        return subprocess.run([nm, '--defined-only', *options], check=True,
                              stdout=subprocess.PIPE, text=True).stdout

    data = {'header': public.both(header), 'map': public.read(linker_map),
            'shared': listing('-D', shared), 'archive': listing('-g', archive)}
    if '--twin' in sys.argv:
        public.twin(check, list(doctored(data)))
    public.verdict(check(data))


main()
