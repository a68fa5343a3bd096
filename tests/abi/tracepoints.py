#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""The static tracepoints of the sources are notes in the shared library, with
as many arguments, and all of them stand in the document.

usage: tracepoints.py [--twin] READELF LIBRARY DOCUMENT SOURCE..."""

import re
import subprocess
import sys
sys.dont_write_bytecode = True

import public


def in_sources(text):
    """(name, number of arguments) of each tracepoint."""
    text = re.sub(r'/\*.*?\*/', ' ', text, flags=re.S)
    return {(name, len(arguments.split(','))) for name, arguments in
            re.findall(r'\bKVMFAULT__TRACE\((\w+),((?:[^()]|\([^()]*\))*)\);',
                       text)}


def in_notes(listing):
    """What readelf -n says, of our provider."""
    return {(name, len(arguments.split())) for name, arguments in re.findall(
        r'Provider: kvmfault\n\s*Name: (\w+)\n.*\n\s*Arguments: (.*)', listing)}


def in_document(text):
    """The rows of its table: | `name` | `argument`, `argument` |"""
    return {(name, len(re.findall(r'`\w+`', arguments))) for name, arguments in
            re.findall(r'^\| `(\w+)` \|([^|]*)\|', text.partition(
                '## Tracing')[2].partition('\n## ')[0], flags=re.M)}


def check(data):
    found = {'sources': in_sources(data['sources']),
             'library': in_notes(data['notes']),
             'document': in_document(data['document'])}
    errors = [f'no tracepoint found: {where}' for where in found
              if not found[where]]
    for where in ('library', 'document'):
        errors += [f'{name} with {count}: in the sources, not in the {where}'
                   for name, count in found['sources'] - found[where]]
        errors += [f'{name} with {count}: in the {where}, not in the sources'
                   for name, count in found[where] - found['sources']]
    return errors


def doctored(data):
    for what, change, word in (
            ('no notes', {'notes': ''}, 'found: library'),
            ('no document', {'document': ''}, 'found: document'),
            ('no sources', {'sources': ''}, 'found: sources'),
            ('a note less', {'notes': data['notes'].replace(
                'Name: resolve_end', 'Name: other')}, 'resolve_end with'),
            ('another provider', {'notes': data['notes'].replace(
                'Provider: kvmfault', 'Provider: x')}, 'found: library'),
            ('one more argument', {'sources': data['sources'].replace(
                'KVMFAULT__TRACE(exit,', 'KVMFAULT__TRACE(exit, 1,')},
             'exit with 5'),
            ('an undocumented one', {'document': data['document'].replace(
                '| `unresolved` |', '| unresolved |')}, 'unresolved with')):
        yield what, dict(data, **change), word


def main():
    args = [arg for arg in sys.argv[1:] if arg != '--twin']
    data = {
        'notes': subprocess.run([args[0], '--notes', '--wide', args[1]],
                                check=True, text=True,
                                stdout=subprocess.PIPE).stdout,
        'document': public.read(args[2]),
        'sources': ''.join(map(public.read, args[3:])),
    }
    if '--twin' in sys.argv:
        public.twin(check, list(doctored(data)))
    public.verdict(check(data))


main()
