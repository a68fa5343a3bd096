#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""Each exported function has a manual page: its name is in the NAME section of
a .3 page, or a page of its name refers (.so) to one. And no page is named after
a function that there is not.

usage: docs.py [--twin] DIRECTORY MAP HEADER [MAP HEADER]..."""

import os
import re
import sys
sys.dont_write_bytecode = True

import public


def pages(directory):
    """The .3 pages, name and text."""
    return {os.path.join(parent, name): public.read(os.path.join(parent, name))
            for parent, _, names in os.walk(directory)
            for name in names if name.endswith('.3')}


def name_section(text):
    """What the NAME section names, in man(7) or mdoc(7)."""
    section = re.search(r'^\.S[Hh] "?NAME"?\n(.*?)(?=^\.S[Hh] |\Z)', text,
                        flags=re.M | re.S)
    names = re.sub(r'\\-.*|^\.Nd.*', '', section[1] if section else '',
                   flags=re.M)
    return set(re.findall(r'\bkvmfault_\w+', names))


def check(data):
    linker_map, header, texts = data
    exported = set(public.versions(linker_map))
    known = exported | set(public.structs(header)) | \
        set(re.findall(r'\bstruct (kvmfault_\w+);', header))
    stems = {os.path.basename(path)[:-2]: path for path in texts}
    covered = set()
    errors = [] if exported else ['no function found']
    for stem, path in stems.items():
        target = re.match(r'\.so (?:.*/)?(\S+)\.3\s*\Z', texts[path])
        if not target:
            names = name_section(texts[path])
            if not names and stem.startswith('kvmfault_'):
                errors.append(f'no NAME section: {path}')
            errors += [f'not a function: {name}, in {path}'
                       for name in names - known - {stem}]
            covered |= names
        elif target[1] not in stems:
            errors.append(f'refers to no page: {path}')
        elif stem not in texts[stems[target[1]]]:
            errors.append(f'says nothing of {stem}: {target[1]}.3')
        elif stem not in exported:
            errors.append(f'not a function: {stem}, in {path}')
        else:
            covered.add(stem)
    return errors + [f'in no page: {name}' for name in exported - covered]


def doctored(data):
    linker_map, header, texts = data

    def pages_with(change):
        return linker_map, header, {p: change(t) for p, t in texts.items()}

    yield 'one more function', (linker_map.replace(
        'global:', 'global:\nkvmfault_more;'), header, texts), \
        'in no page: kvmfault_more'
    yield 'a function that no page has', (linker_map, header, {
        path: text.replace('kvmfault_vcpu_handle', 'x')
        for path, text in texts.items()
        if not path.endswith('/kvmfault_vcpu_handle.3') or '.so' not in text}), \
        'in no page: kvmfault_vcpu_handle'
    yield 'pages without NAME', pages_with(
        lambda t: re.sub(r'^\.S([Hh]) "?NAME.*', r'.S\1 X', t, flags=re.M)), \
        'in no page'
    yield 'a name too many', pages_with(
        lambda t: re.sub(r'^(\.S[Hh] "?NAME.*)', '\\1\n.Nm kvmfault_x ,', t,
                         flags=re.M)), 'not a function: kvmfault_x'
    yield 'an alias of nothing', (linker_map, header, {
        **texts, 'kvmfault_x.3': '.so man3/kvmfault_y.3\n'}), \
        'refers to no page: kvmfault_x.3'
    yield 'no page', (linker_map, header, {}), 'in no page: kvmfault_version'
    yield 'an empty map', ('', header, texts), 'no function found'


def main():
    args = [arg for arg in sys.argv[1:] if arg != '--twin']
    data = (''.join(map(public.read, args[1::2])),
            ''.join(map(public.both, args[2::2])), pages(args[0]))
    if '--twin' in sys.argv:
        public.twin(check, list(doctored(data)))
    public.verdict(check(data))


main()
