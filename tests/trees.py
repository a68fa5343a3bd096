#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""What a build tree has in it, for each way to ask for one: as a part of another
project's build, or with one kind of library.

usage: trees.py TOP BUILD MESON NINJA [TEST]...
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

TOP, BUILD, MESON, NINJA = sys.argv[1:5]
VERSIONED = ['libkvmfault.so', 'libkvmfault.so.0', 'libkvmfault.so.']
# What would decide for meson, beside what it is asked.
ENVIRONMENT = {name: value for name, value in os.environ.items()
               if name not in ('CC', 'CFLAGS', 'CPPFLAGS', 'LDFLAGS')}


def run(*command, code=0, **how):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                          **{'env': ENVIRONMENT, **how})
    assert done.returncode == code, (command, done.returncode, done.stdout)
    return done.stdout


def told(tree, what):
    with open(os.path.join(tree, 'meson-info', f'intro-{what}.json')) as file:
        return json.load(file)


def by_default(tree):
    return sorted(target['name'] + ', ' + target['type']
                  for target in told(tree, 'targets')
                  if target['build_by_default'])


def installed(tree):
    """Names only; of a library's version the number is left out."""
    names = {os.path.basename(path) for path in
             told(tree, 'installed').values()}
    return {'libkvmfault.so.' if name.startswith('libkvmfault.so.') and
            name.count('.') == 4 else name for name in names}


@contextlib.contextmanager
def directory():
    # Scripts and builds have to live with such a name.
    with tempfile.TemporaryDirectory(dir=BUILD, prefix='a tree ') as path:
        yield path


# ---- a part of another project's build ----

PROJECT = '''
project('vmm', 'c')
subproject('libkvmfault')
executable('vmm', 'consumer.c', dependencies: dependency('libkvmfault'),
  install: true)
'''
EMBEDDED = [
    # the options, the library, what is installed of it
    ([], 'static', []),
    (['-Ddefault_library=static'], 'static', []),
    (['-Dlibkvmfault:default_library=static'], 'static', []),
    (['-Dlibkvmfault:default_library=shared'], 'shared', VERSIONED),
]


def test_embedded():
    with directory() as path:
        os.mkdir(os.path.join(path, 'subprojects'))
        os.symlink(TOP, os.path.join(path, 'subprojects', 'libkvmfault'))
        shutil.copy(os.path.join(TOP, 'pkgconfig', 'consumer.c'), path)
        with open(os.path.join(path, 'meson.build'), 'w') as file:
            file.write(PROJECT)
        for number, (options, kind, files) in enumerate(EMBEDDED):
            tree = os.path.join(path, str(number))
            run(MESON, 'setup', '-Doptimization=0', *options, tree, path)
            found = by_default(tree)
            assert found == [f'kvmfault, {kind} library',
                             'vmm, executable'], (options, found)
            assert installed(tree) == {'vmm', *files}, installed(tree)
            assert not told(tree, 'tests'), told(tree, 'tests')
        # The first as it is used.
        tree = os.path.join(path, '0')
        run(NINJA, '-C', tree)
        version = run(os.path.join(tree, 'vmm')).strip()
        assert version == told(tree, 'projectinfo')['subprojects'][0][
            'version'], version


# ---- of one kind ----

ARCHIVE, SHARED = 'kvmfault, static library', 'kvmfault, shared library'
KINDS = {'both': [SHARED, ARCHIVE], 'shared': [SHARED], 'static': [ARCHIVE]}


def test_only_the_library():
    with directory() as path:
        for kind, libraries in KINDS.items():
            tree = os.path.join(path, kind)
            run(MESON, 'setup', '-Dtests=disabled', '-Dtools=disabled',
                '-Ddefault_library=' + kind, tree, TOP)
            assert by_default(tree) == libraries, (kind, by_default(tree))
            assert not told(tree, 'tests'), told(tree, 'tests')
            files = installed(tree)
            assert ('libkvmfault.a' in files) == (ARCHIVE in libraries), files
            assert ('libkvmfault.so' in files) == (SHARED in libraries), files


def test_tests_of_one_kind():
    """All but those of what is installed."""
    with directory() as path:
        suites = {}
        for kind, libraries in KINDS.items():
            tree = os.path.join(path, kind)
            run(MESON, 'setup', '-Dtests=enabled', '-Ddefault_library=' + kind,
                tree, TOP)
            found = [name for name in by_default(tree) if 'kvmfault, ' in name
                     and 'library' in name]
            assert found == libraries, (kind, found)
            suites[kind] = {test['name'] for test in told(tree, 'tests')
                            if 'libkvmfault:abi' not in test['suite']}
        assert suites['both'] == suites['shared'] == suites['static'], suites


def main():
    tests = {name[5:]: test for name, test in globals().items()
             if name.startswith('test_')}
    failed = 0

    for name in sys.argv[5:] or tests:
        try:
            tests[name]()
            print(f'ok {name}')
        except Exception as error:
            failed += 1
            print(f'FAILED {name}: {error!r}')
    sys.exit(bool(failed))


main()
