#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""The header compiles alone, and included twice, in strict C or C++.

The header may include others of ours, which lie beside it or beside the
version's.

usage: header.py [--twin] LANGUAGE STANDARD HEADER VERSION-HEADER COMPILER..."""

import os
import subprocess
import sys
import tempfile
sys.dont_write_bytecode = True

import public


def check(data):
    """data: language, standard, compiler, name -> text of each header; the last
    one is included."""
    language, standard, compiler, headers = data
    with tempfile.TemporaryDirectory() as directory:
        for name, text in headers.items():
            with open(os.path.join(directory, name), 'w') as file:
                file.write(text)
        done = subprocess.run(
            [*compiler, '-x', language, '-std=' + standard, '-pedantic',
             '-Wall', '-Wextra', '-Werror', '-fsyntax-only', '-I', directory,
             '-'], text=True, input=f'#include <{name}>\n' * 2,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if not done.returncode:
        return []
    return [done.stdout or f'exit status {done.returncode}']


def doctored(data):
    language, standard, compiler, headers = data
    name = list(headers)[-1]
    cases = [
        ('no <stddef.h>', '#include <stddef.h>', '', 'size_t'),
        ('no <stdint.h>', '#include <stdint.h>', '', 'int32_t'),
        ('no guard', '#define KVMFAULT_H', '', 'kvmfault'),
    ]
    for what, line, word in (
            ('a header that is not installed', '#include "abi.h"', 'abi.h'),
            ('a struct without a name',
             'struct kvmfault_x { int a; struct { int b; }; };', 'struct'),
            ('an enum not yet declared',
             'enum kvmfault_x kvmfault_y(void);', 'kvmfault_x'),
            ('a keyword of C11 or C++',
             '_Alignas(8) extern int kvmfault_x;' if language == 'c' else
             'int kvmfault_x(int class);',
             '_Alignas' if language == 'c' else 'class')):
        last = '#include "kvmfault-version.h"'
        cases.append((what, last, last + '\n' + line, word))
    for what, old, new, word in cases:
        yield what, (language, standard, compiler, {
            **headers, name: headers[name].replace(old + '\n', new + '\n')
        }), word


def main():
    args = [arg for arg in sys.argv[1:] if arg != '--twin']
    language, standard, header, version, *compiler = args
    core = os.path.join(os.path.dirname(header), 'kvmfault.h')
    data = (language, standard, compiler, {
        os.path.basename(path): public.read(path)
        for path in (version, core, header)})
    if '--twin' in sys.argv:
        public.twin(check, list(doctored(data)))
    public.verdict(check(data))


main()
