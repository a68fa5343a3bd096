#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""What a build tree has in it, for each way to ask for one: as a part of another
project's build, with one kind of library, by scripts/setup.

usage: trees.py TOP BUILD MESON NINJA COMPILER [TEST]...
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

TOP, BUILD, MESON, NINJA, COMPILER = sys.argv[1:6]
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


def option(tree, name):
    return {entry['name']: entry['value']
            for entry in told(tree, 'buildoptions')}[name]


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


def expect_kind(tree, libraries, name):
    files = installed(tree)
    assert (f'lib{name}.a' in files) == (ARCHIVE in libraries), files
    assert (f'lib{name}.so' in files) == (SHARED in libraries), files


def test_only_the_library():
    with directory() as path:
        for kind, libraries in KINDS.items():
            tree = os.path.join(path, kind)
            run(MESON, 'setup', '-Dtests=disabled', '-Dtools=disabled',
                '-Dnbd=disabled', '-Ddefault_library=' + kind, tree, TOP)
            assert by_default(tree) == libraries, (kind, by_default(tree))
            assert not told(tree, 'tests'), told(tree, 'tests')
            expect_kind(tree, libraries, 'kvmfault')
            assert not any('nbd' in name for name in installed(tree)), \
                installed(tree)


def test_the_library_for_nbd():
    with directory() as path:
        for kind, libraries in KINDS.items():
            tree = os.path.join(path, kind)
            run(MESON, 'setup', '-Dtests=disabled', '-Dtools=disabled',
                '-Ddefault_library=' + kind, tree, TOP)
            if option(tree, 'nbd') == 'auto' and not any(
                    found['name'] == 'libnbd' for found in
                    told(tree, 'dependencies')):
                print('SKIP: libnbd is not here')
                return
            both = sorted(libraries + [library.replace(',', '-nbd,')
                                       for library in libraries])
            assert by_default(tree) == both, (kind, by_default(tree))
            for name in 'kvmfault', 'kvmfault-nbd':
                expect_kind(tree, libraries, name)
            assert {'kvmfault-nbd.h', 'libkvmfault-nbd.pc',
                    'kvmfault_source_nbd.3'} < installed(tree), installed(tree)


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


# ---- scripts/setup ----

STUBS = {
    # All packages are there, and none is installed.
    'dpkg-query': '#!/bin/sh\necho installed\n',
    'apt-get': '#!/bin/sh\nexit 1\n',
    # It is about what would be built.
    'ninja': f'#!/bin/sh\ncase $1 in --version | -t) exec {NINJA} "$@"; esac\n',
    # A compiler that finds no sys/sdt.h while there is a file "hide".
    'compiler': f'''#!/bin/sh
if [ -e "${{0%/*}}/hide" ]; then
	for word; do
		case $word in *.c) ! grep -q sys/sdt.h "$word" || exit 1; esac
	done
fi
exec {COMPILER} "$@"
''',
}


class Machine:
    """A tree, and what scripts/setup finds beside it."""

    def __init__(self, path):
        self.path = path
        self.tree = os.path.join(path, 'build')
        self.bin = os.path.join(path, 'bin')
        self.hide = os.path.join(self.bin, 'hide')
        os.mkdir(self.bin)
        for name, text in STUBS.items():
            with open(os.path.join(self.bin, name), 'w') as file:
                file.write(text)
            os.chmod(file.name, 0o755)

    def setup(self, purpose, *options, **environment):
        environment = {'CC': COMPILER, **environment}
        return run(os.path.join(TOP, 'scripts', 'setup'), purpose, self.tree,
                   *options, env={**ENVIRONMENT, **environment,
                                  'PATH': f'{self.bin}:{os.environ["PATH"]}'})

    def has_tracepoints(self):
        return (any('tracepoints.py' in ' '.join(test['cmd'])
                    for test in told(self.tree, 'tests')),
                'KVMFAULT__SDT' in ' '.join(
                    told(self.tree, 'targets')[0]['target_sources'][0][
                        'parameters']))


def test_demo_then_check():
    """README's two commands, and a package that came between them."""
    with directory() as path:
        machine = Machine(path)
        open(machine.hide, 'w').close()
        machine.setup('demo', CC='compiler')
        assert machine.has_tracepoints() == (False, False)
        os.remove(machine.hide)
        machine.setup('check', CC='compiler')
        assert machine.has_tracepoints() == (True, True)
        # A demo asks for no more than a program, and takes nothing away.
        machine.setup('demo', '-Dvm_cache=cache', CC='compiler')
        assert machine.has_tracepoints() == (True, True)
        assert option(machine.tree, 'vm_cache') == 'cache'


def test_each_time_anew():
    """What a tree was told before is not what it is asked for."""
    with directory() as path:
        machine = Machine(path)
        kept = os.path.join(machine.tree, 'corpus')
        machine.setup('check', '-Dbuildtype=debug', '-Db_sanitize=undefined',
                      '-Dtools=disabled', '-Dvm_cache=cache', CC='compiler')
        assert option(machine.tree, 'tools') == 'disabled'
        open(kept, 'w').close()
        machine.setup('check')
        assert option(machine.tree, 'buildtype') == 'debugoptimized'
        assert option(machine.tree, 'b_sanitize') == 'none'
        assert option(machine.tree, 'tools') == 'enabled'
        target = told(machine.tree, 'targets')[0]['target_sources'][0]
        assert target['compiler'] == [COMPILER], target['compiler']
        # But for what took long to get.
        assert os.path.exists(kept)
        assert option(machine.tree, 'vm_cache') == 'cache'


# ---- scripts, by whatever name and from wherever ----

def test_scripts_by_a_link():
    with directory() as path:
        copy = os.path.join(path, 'top', 'scripts')
        shutil.copytree(os.path.join(TOP, 'scripts'), copy)
        elsewhere = os.path.join(path, 'elsewhere')
        os.mkdir(elsewhere)
        for name in os.listdir(copy):
            os.symlink(os.path.join('..', 'top', 'scripts', name),
                       os.path.join(elsewhere, name))
        said = run(os.path.join(elsewhere, 'setup'), code=2, cwd=elsewhere)
        assert said.startswith('usage: scripts/setup '), said
        # What all others do first.
        with open(os.path.join(copy, 'setup'), 'w') as file:
            file.write('#!/bin/sh\necho "setup: ran as $0"\nexit 9\n')
        for name in set(os.listdir(copy)) - {'setup'}:
            done = subprocess.run([os.path.join(elsewhere, name)],
                                  stdout=subprocess.PIPE, text=True,
                                  stderr=subprocess.STDOUT, cwd=elsewhere,
                                  stdin=subprocess.DEVNULL)
            assert 'setup: ran as ' in done.stdout, (name, done)


def main():
    tests = {name[5:]: test for name, test in globals().items()
             if name.startswith('test_')}
    failed = 0

    for name in sys.argv[6:] or tests:
        try:
            tests[name]()
            print(f'ok {name}')
        except Exception as error:
            failed += 1
            print(f'FAILED {name}: {error!r}')
    sys.exit(bool(failed))


main()
