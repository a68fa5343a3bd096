#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""An installed copy is found by pkg-config, and a consumer compiled, linked and
run with it: shared, with the archive, or with all of libc in the program.

usage: installed.py [--twin] [--module NAME] shared|archive|static MESON \\
           PKG-CONFIG BUILD PREFIX CONSUMER COMPILER..."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
sys.dont_write_bytecode = True

import public


class Failed(Exception):
    pass


def run(*command, **environment):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                          env={**os.environ, **environment})
    if done.returncode:
        raise Failed(f'{" ".join(command)}: exit status {done.returncode}\n'
                     f'{done.stdout}')
    return done.stdout


def find(directory, name):
    """The directory below which has a file of that name."""
    for parent, _, names in os.walk(directory):
        if name in names:
            return parent
    raise Failed(f'not installed: {name}')


MODULE = 'libkvmfault'


def consume(prefix, how, pkg_config, consumer, compiler):
    """Compile, link and run the consumer with what is installed in prefix."""
    def ask(*options):
        # No other libkvmfault of this machine must be found.
        found = find(prefix, MODULE + '.pc')
        if MODULE != 'libkvmfault':	# it needs others of this machine's
            found += ':' + run(pkg_config, '--variable=pc_path',
                               'pkg-config').strip()
        return run(pkg_config, '--define-variable=prefix=' + prefix, *options,
                   MODULE, PKG_CONFIG_PATH='', PKG_CONFIG_SYSROOT_DIR='',
                   PKG_CONFIG_LIBDIR=found).split()

    program = os.path.join(prefix, 'consumer')
    libs = ['--libs'] if how == 'shared' else ['--static', '--libs']
    run(*compiler, '-Wall', '-Wextra', '-Werror', '-pedantic',
        *ask('--cflags'), consumer, '-o', program,
        *(['-static'] if how == 'static' else []), *ask(*libs))
    linked = re.findall(r'\(NEEDED\).*\[(.*)\]', run('readelf', '-d', program))
    ours = any(name.startswith('libkvmfault') for name in linked)
    if ours != (how == 'shared') or (how == 'static' and linked):
        raise Failed(f'it is not linked as {how}, but needs {linked}')
    path = find(prefix, 'libkvmfault.so') if how == 'shared' else ''
    said = run(program, LD_LIBRARY_PATH=path).split()
    if said != ask('--modversion'):
        raise Failed(f'the consumer says {said}, pkg-config another version')


def check(data):
    meson, build, prefix, how, change, *rest = data
    with tempfile.TemporaryDirectory(dir=build) as directory:
        installed = directory + prefix
        try:
            run(meson, 'install', '-C', build, '--no-rebuild', '--quiet',
                '--destdir', directory)
            for name in {'libkvmfault.so', MODULE + '.so'}:
                # Else the linker would take the shared one.
                if how != 'shared':
                    os.remove(os.path.join(find(installed, name), name))
            change(installed)
            consume(installed, how, *rest)
        except Failed as error:
            return [str(error)]
    return []


def doctored(data):
    meson, build, prefix, how, _, *rest = data

    def edit(name, old, new):
        def change(installed):
            path = os.path.join(find(installed, name), name)
            text = public.read(path)
            if old not in text:
                raise Failed(f'cannot doctor {name}')
            with open(path, 'w', encoding='utf-8') as file:
                file.write(text.replace(old, new))
        return change

    def remove(name):
        def change(installed):
            os.remove(os.path.join(find(installed, name), name))
        return change

    def move_headers(installed):
        shutil.move(os.path.join(installed, 'include'),
                    os.path.join(installed, 'headers'))

    library = 'libkvmfault.so' if how == 'shared' else 'libkvmfault.a'
    cases = [
        ('no module', remove('libkvmfault.pc'), 'not installed'),
        ('no version header', remove('kvmfault-version.h'),
         'kvmfault-version.h'),
        ('headers elsewhere', move_headers, 'kvmfault.h'),
        ('a module without the library',
         edit('libkvmfault.pc', '-lkvmfault', ''), 'undefined reference'),
        ('no library', remove(library),
         'not linked as shared' if how == 'shared' else 'cannot find'),
        ('the header of another version',
         edit('kvmfault-version.h', '#define KVMFAULT_VERSION "',
              '#define KVMFAULT_VERSION "9'), 'consumer: '),
        ('the module of another version',
         edit('libkvmfault.pc', 'Version: ', 'Version: 9'),
         'another version'),
        ('another number for an answer',
         edit('kvmfault.h', 'KVMFAULT_KIND_UNANNOTATED = 3',
              'KVMFAULT_KIND_UNANNOTATED = 30'), 'consumer: '),
    ]
    if how == 'archive':
        cases.append(('the shared library beside it', lambda installed:
                      os.symlink('libkvmfault.so.0', os.path.join(
                          find(installed, 'libkvmfault.a'),
                          'libkvmfault.so')), 'not linked as archive'))
    for what, change, word in cases:
        yield what, (meson, build, prefix, how, change, *rest), word


def main():
    global MODULE

    args = [arg for arg in sys.argv[1:] if arg != '--twin']
    if args[0] == '--module':
        MODULE = args[1]
        args = args[2:]
    how, meson, pkg_config, build, prefix, consumer, *compiler = args
    if how == 'static':
        with tempfile.TemporaryDirectory(dir=build) as directory:
            source = os.path.join(directory, 'empty' + consumer[-4:])
            try:
                with open(source, 'w', encoding='utf-8') as file:
                    file.write('int main(void) { return 0; }\n')
                run(*compiler, '-static', source, '-o', source + '.out')
            except Failed:
                public.skip('static', 'no static libc')
    data = (meson, build, prefix, how, lambda installed: None, pkg_config,
            consumer, compiler)
    if '--twin' in sys.argv:
        public.twin(check, list(doctored(data)))
    public.verdict(check(data))


main()
