#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""No run loop that anybody copies enters KVM_RUN with an access half done.

Each switch over what kvmfault_vcpu_handle() returns, in the documents, the examples
and the tools, has all actions; a loop without a switch names UNFINISHED. And the
compiler warns of a switch that has not: both are tried. The set-up has one order
in all of them as well.

usage: loops.py TREE BUILD COMPILER...
"""

import pathlib
import re
import subprocess
import sys
import tempfile

FILES = ('include/kvmfault.h', 'README.md', 'doc/integration.md',
         'doc/man/*.[137]', 'examples/*.c', 'tools/*.c')


def actions(header):
    body = re.search(r'enum kvmfault_action \{(.*?)\n\};', header, re.S)[1]
    body = re.sub(r'/\*.*?\*/', '', body, flags=re.S)
    return re.findall(r'KVMFAULT_\w+', body)


def wrong(name, text, names):
    """Switches without an action, and loops that have neither."""
    for body in re.findall(r'switch \([^;{]*?kvmfault_vcpu_handle\(.*?\)\) ?\{'
                           r'(.*?)(?:\n[ \t*]*\}|\Z)', text, re.S):
        for action in names:
            if not re.search(rf'case {action}\b', body):
                yield f'{name}: a switch without {action}'
    calls = len(re.findall(r'\bkvmfault_vcpu_handle\(\s*\w+(?:->\w+)?, ret\b', text))
    if calls and 'KVMFAULT_ACTION_UNFINISHED' not in text:
        yield f'{name}: a loop without KVMFAULT_ACTION_UNFINISHED'


# What can answer before what can ask; the reason is in doc/integration.md.
ORDER = ('vm_new', 'memory_', 'service_new', 'region_add', 'vcpu_new')
BEGINS = {
    'include/kvmfault.h': 'The whole integration of a VMM, in order:',
    'README.md': 'check(kvmfault_vm_new(',
    'examples/minimal.c': 'check(kvmfault_vm_new(',
    'doc/integration.md': '\n1. `kvmfault_vm_new()`',
    'doc/man/kvmfault.7': 'The integration of a VMM, in order',
}


def order(text, begin):
    """The calls of the set-up, in the order in which the text has them."""
    text = text[text.index(begin):]
    return sorted(ORDER, key=lambda name: re.search(
        rf'kvmfault_{name}(?:new|adopt|alloc)?\b', text).start())


def pages(tree):
    """What the manual's own pages forget."""
    seven = (tree / 'doc/man/kvmfault.7').read_text()
    also = seven[seven.index('.Sh SEE ALSO'):]
    for path in sorted(tree.glob('doc/man/*.3')):
        if f'.Xr {path.stem} 3' not in also:
            yield f'kvmfault.7: SEE ALSO is without {path.stem}'
    one = (tree / 'doc/man/kvmfault.1').read_text()
    synopsis, rest = one.split('.Sh DESCRIPTION')
    for option in re.findall(r'\.It Fl (\\-[\w-]+)',
                             rest[:rest.index('.Ss probe')]):
        if f'.Op Fl {option}' not in synopsis:
            yield f'kvmfault.1: SYNOPSIS is without {option}'


def compiles(compiler, tree, build, names):
    cases = '\n'.join(f'\tcase {name}: return 1;' for name in names)
    code = (f'#include "kvmfault.h"\nint f(enum kvmfault_action a);\n'
            f'int f(enum kvmfault_action a)\n{{\n\tswitch (a) {{\n{cases}\n'
            f'\t}}\n\treturn 0;\n}}\n')
    with tempfile.TemporaryDirectory() as place:
        path = pathlib.Path(place) / 'switch.c'
        path.write_text(code)
        return not subprocess.run(
            compiler + ['-Wall', '-Werror', '-fsyntax-only',
                        f'-I{tree}/include', f'-I{build}/include',
                        f'-I{build}', str(path)], capture_output=True).returncode


def main():
    tree, build = pathlib.Path(sys.argv[1]), sys.argv[2]
    compiler = sys.argv[3:]
    names = actions((tree / 'include/kvmfault.h').read_text())
    assert 'KVMFAULT_ACTION_UNFINISHED' in names and 'KVMFAULT_ACTION_RETRY' in names
    assert compiles(compiler, tree, build, names)
    for name in names:
        assert not compiles(compiler, tree, build,
                            [other for other in names if other != name]), name
    found, loops = [], 0
    for pattern in FILES:
        for path in sorted(tree.glob(pattern)):
            text = path.read_text()
            found += wrong(path.relative_to(tree), text, names)
            loops += bool(re.search(r'switch \(kvmfault_vcpu_handle\(', text))
    found += pages(tree)
    for name, begin in BEGINS.items():
        text = (tree / name).read_text()
        if order(text, begin) != list(ORDER):
            found.append(f'{name}: set-up in another order: '
                         f'{order(text, begin)}')
        assert order(text.replace(begin, f'{begin} kvmfault_vcpu_new', 1),
                     begin) != list(ORDER)
    print('\n'.join(map(str, found)))
    assert loops >= 4, loops
    # It can fail.
    text = (tree / 'tools/demo.c').read_text()
    assert list(wrong('', text.replace('case KVMFAULT_ACTION_UNFINISHED:', ''), names))
    text = (tree / 'examples/minimal.c').read_text()
    assert list(wrong('', text.replace('KVMFAULT_ACTION_UNFINISHED', '0'), names))
    sys.exit(bool(found))


main()
