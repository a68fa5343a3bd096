#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""The kernels that the tests of suite vm run on: brings them into a cache.

usage: kernels.py [--cache DIR] [--update] [NAME]...
                            bring in NAME (default: all) where it is missing
       kernels.py [--cache DIR] --where NAME
                            the directory that has it

What has been brought in stays as it is, and needs no network any more; --update
asks whether the packages that it was made of are still the newest, and makes
it anew if not. Everything is in DIR (default: libkvmfault in the user's cache
directory), which may be removed at any time.
"""

import argparse
import contextlib
import fcntl
import glob
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.realpath(__file__))
KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'
FORMAT = '1'			# of what lies in the cache
MAKING = 'making-'		# the beginning of its temporary directories
MODULES = ['irqbypass', 'ccp', 'kvm', 'kvm-amd']


class Failed(Exception):
    """What to tell the user."""


def note(text):
    print(f'vm: {text}', file=sys.stderr, flush=True)


def run(command, what, **options):
    """In silence, or on a terminal with the last line of its output; returns all
    of that."""
    lines = []
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True,
                          errors='replace', stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, **options) as process:
        for line in process.stdout:
            lines.append(line)
            if sys.stderr.isatty():
                print(f'\r    {line.strip()[:72]}\033[K', end='\r',
                      file=sys.stderr, flush=True)
    if lines and sys.stderr.isatty():
        print('\033[K', end='', file=sys.stderr, flush=True)
    if process.returncode:
        raise Failed(f'{what} failed:\n{"".join(lines[-30:])}')
    return ''.join(lines)


def mirror():
    """The archive that this machine's own release comes from."""
    with open('/etc/os-release') as release:
        name = re.search(r'^VERSION_CODENAME=(\S+)', release.read(), re.M)
    own = {'stable', 'oldstable', 'testing', 'unstable', 'sid'}
    own |= {name[1]} if name else set()
    targets = run(['apt-get', 'indextargets', '--no-release-info',
                   '--format', '$(REPO_URI) $(RELEASE) $(COMPONENT)',
                   'Created-By: Packages'], 'reading the apt sources')
    for line in targets.splitlines():
        uri, release, component = line.split()
        if release in own and component == 'main':
            return uri
    raise Failed('the apt sources of this machine name no Debian archive '
                 f'(main of {" or ".join(sorted(own))}): add it to '
                 '/etc/apt/sources.list.d/')


class Apt:
    """apt with sources and a state of its own. It shares the machine's proxy,
    credentials and keys, and nothing else."""

    def __init__(self, directory, architecture, suites):
        self.directory = directory
        for name in ('lists/partial', 'cache/archives/partial'):
            os.makedirs(os.path.join(directory, name))
        open(os.path.join(directory, 'status'), 'w').close()
        if not os.path.exists(KEYRING):
            raise Failed(f'{KEYRING} is missing: install '
                         'debian-archive-keyring')
        uri = mirror()
        with open(os.path.join(directory, 'sources.list'), 'w') as sources:
            for suite in suites:
                print(f'deb [arch={architecture} signed-by={KEYRING}]',
                      uri, suite, 'main', file=sources)
        self.options = [f'-o{name}={value}' for name, value in {
            'Dir::Etc::SourceList': f'{directory}/sources.list',
            'Dir::Etc::SourceParts': '/dev/null',
            'Dir::Etc::Preferences': '/dev/null',
            'Dir::Etc::PreferencesParts': '/dev/null',
            'Dir::State': directory,
            'Dir::State::Lists': f'{directory}/lists',
            'Dir::State::Status': f'{directory}/status',
            'Dir::Cache': f'{directory}/cache',
            'APT::Architecture': architecture,
            'APT::Architectures': architecture,
            'APT::Sandbox::User': 'root',	# it is nobody's directory
            'Acquire::Languages': 'none',
            'Acquire::Retries': '3',
        }.items()]
        # A list that could not be had is only a warning to apt-get.
        self.call('apt-get', 'update', '-oAPT::Update::Error-Mode=any')

    def call(self, tool, *args):
        try:
            return run([tool, *self.options, *args], f'{tool} {args[0]}',
                       cwd=self.directory)
        except Failed as failed:
            raise Failed(f'{failed}\nIs there a network, and does "apt-get '
                         'update" work? The kernels come from the same '
                         'archive.')

    def newest(self, package):
        """(version, depends)"""
        shown = self.call('apt-cache', 'show', package).split('\n\n')[0]
        fields = dict(re.findall(r'^(\S+): (.*)', shown, re.M))
        return fields['Version'], fields.get('Depends', '')

    def unpack(self, packages, directory):
        if not packages:
            return
        self.call('apt-get', 'download',
                  *(f'{name}={version}' for name, version in packages))
        for deb in glob.glob(os.path.join(self.directory, '*.deb')):
            run(['dpkg-deb', '-x', deb, directory], f'unpacking {deb}')
            os.remove(deb)


def sha(*texts):
    return hashlib.sha256('\0'.join(texts).encode()).hexdigest()


def text_of(path):
    with open(path) as file:
        return file.read()


def found(directory, pattern):
    paths = glob.glob(f'{directory}/**/{pattern}', recursive=True)
    if len(paths) != 1:
        raise Failed(f'{pattern}: {len(paths)} of these in the packages, '
                     'not one')
    return paths[0]


class Item:
    """Something in the cache: the directory NAME-HASH, of what is known of its
    making without a network. In it is, as made-of, which packages in which
    version went into it."""

    needs = ()			# names of the items that it is made from
    architecture = 'amd64'

    def recipe(self, cache):
        return ''

    def packages(self, apt):
        return []


class Stock(Item):
    """A kernel as Debian ships it."""

    def __init__(self, architecture, suites, modules):
        self.architecture = architecture
        self.suites = suites
        self.modules = modules

    def recipe(self, cache):
        return repr((self.architecture, self.suites, self.modules))

    def packages(self, apt):
        """What the metapackage leads to. Older kernels are one package,
        newer ones have the modules in another."""
        wanted, found = [f'linux-image-{self.architecture}'], []
        parts = 'image|binary|modules' if self.modules else 'image|binary'
        for name in wanted:
            version, depends = apt.newest(name)
            found.append((name, version))
            wanted += [other for other in
                       re.findall(rf'\b(linux-(?:{parts})-\d\S*)', depends)
                       if other not in wanted]
        return found

    def make(self, unpacked, directory, needs):
        shutil.copy(found(unpacked, 'vmlinuz*'),
                    os.path.join(directory, 'vmlinuz'))
        os.mkdir(os.path.join(directory, 'modules'))
        for number, name in enumerate(self.modules):
            packed = found(f'{unpacked}/**/kernel', f'{name}.ko*')
            opener = lzma.open if packed.endswith('.xz') else open
            with opener(packed) as source, \
                 open(f'{directory}/modules/{number}-{name}.ko', 'wb') as out:
                shutil.copyfileobj(source, out)


class Source(Item):
    """The source of the newest kernel."""

    def __init__(self, suites):
        self.suites = suites

    def recipe(self, cache):
        return repr(self.suites)

    def packages(self, apt):
        version, depends = apt.newest('linux-source')
        name = re.search(r'\b(linux-source-\d\S*)', depends)[1]
        return [(name, version)]

    def make(self, unpacked, directory, needs):
        os.rename(found(unpacked, 'linux-source-*.tar.*'),
                  os.path.join(directory, 'linux.tar'))


class Built(Item):
    """A kernel built from source: a patch, tinyconfig and a fragment."""

    suites = ()
    needs = ('source',)

    def __init__(self, config, patch):
        self.config = os.path.join(HERE, config)
        self.patch = os.path.join(HERE, patch)

    def recipe(self, cache):
        return text_of(self.config) + text_of(self.patch) + \
            cache.made_of('source')

    def make(self, unpacked, directory, needs):
        run(['tar', '--strip-components=1', '-C', unpacked, '-xf',
             os.path.join(needs['source'], 'linux.tar')],
            'unpacking the source of Linux')
        run(['patch', '-p1', '-d', unpacked, '-i', self.patch],
            f'applying {self.patch}, which may be for an older Linux')

        def make(*args):
            run(['make', '-C', unpacked, f'-j{os.cpu_count()}', *args],
                f'building {os.path.basename(self.config)}: make {args[0]}')

        make('tinyconfig')
        run(['scripts/kconfig/merge_config.sh', '-m', '.config', self.config],
            'merging the configuration', cwd=unpacked)
        make('olddefconfig')
        has = text_of(os.path.join(unpacked, '.config')).splitlines()
        lost = [line for line in text_of(self.config).splitlines()
                if line.startswith('CONFIG_') and line not in has]
        if lost:
            raise Failed(f'{self.config}: this Linux has it otherwise: '
                         f'{", ".join(lost)}')
        make('bzImage')
        shutil.copy(os.path.join(unpacked, 'arch/x86/boot/bzImage'),
                    os.path.join(directory, 'vmlinuz'))
        os.mkdir(os.path.join(directory, 'modules'))


class Sysroot(Item):
    """The libraries that tests for another architecture are linked with: of
    this machine's release, as its cross compiler is."""

    PACKAGES = ['check', 'libsubunit-dev', 'libjson-c-dev']

    def __init__(self, architecture):
        self.architecture = architecture

    @property
    def suites(self):
        return [re.search(r'^VERSION_CODENAME=(\S+)',
                          text_of('/etc/os-release'), re.M)[1]]

    def recipe(self, cache):
        return repr((self.architecture, self.suites, self.PACKAGES))

    def packages(self, apt):
        return [(name, apt.newest(name)[0]) for name in self.PACKAGES]

    def make(self, unpacked, directory, needs):
        os.rename(os.path.join(unpacked, 'usr'),
                  os.path.join(directory, 'usr'))


class Init(Item):
    """The program that a test kernel starts."""

    suites = ()

    def __init__(self, architecture, compiler):
        self.architecture = architecture
        self.compiler = compiler
        self.source = os.path.join(HERE, 'init.c')

    def recipe(self, cache):
        return self.compiler + text_of(self.source)

    def make(self, unpacked, directory, needs):
        run([self.compiler, '-std=gnu11', '-D_GNU_SOURCE', '-O2', '-Wall',
             '-Wextra', '-Werror', '-static', '-o',
             os.path.join(directory, 'init'), self.source],
            f'compiling {self.source}')


NEWEST = ['trixie-backports']		# Debian's newest kernels
KERNELS = {
    'stock-amd64': Stock('amd64', NEWEST, MODULES),
    'stock-amd64-6.12': Stock('amd64', ['trixie'], MODULES),
    'private-amd64': Built('private.config', 'userfault.patch'),
    'stock-arm64': Stock('arm64', NEWEST, []),
}
ITEMS = {
    'source': Source(NEWEST),
    **KERNELS,
    'init-amd64': Init('amd64', 'x86_64-linux-gnu-gcc'),
    'init-arm64': Init('arm64', 'aarch64-linux-gnu-gcc'),
    'sysroot-arm64': Sysroot('arm64'),
}


class Cache:
    def __init__(self, directory=None):
        home = os.environ.get('XDG_CACHE_HOME') or \
            os.path.expanduser('~/.cache')
        self.directory = os.path.abspath(
            directory or os.path.join(home, 'libkvmfault'))

    def path(self, name):
        recipe = ITEMS[name].recipe(self)
        return os.path.join(self.directory,
                            f'{name}-{sha(FORMAT, recipe)[:16]}')

    def made_of(self, name):
        return text_of(os.path.join(self.find(name), 'made-of'))

    def find(self, name):
        """Its directory. What is there is complete: see make()."""
        path = self.path(name)
        if not os.path.isdir(path):
            raise Failed(f'{name} is not in {self.directory}: '
                         'scripts/setup vm brings it in')
        return path

    @contextlib.contextmanager
    def locked(self):
        os.makedirs(self.directory, exist_ok=True)
        with open(os.path.join(self.directory, 'lock'), 'w') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                note(f'waiting for another that works in {self.directory}')
                fcntl.flock(file, fcntl.LOCK_EX)
            for left in glob.glob(f'{self.directory}/{MAKING}*'):
                shutil.rmtree(left)	# by one that was killed
            yield

    def bring(self, names, update=False):
        wanted = dict.fromkeys(each for name in names
                               for each in (*ITEMS[name].needs, name))
        def has(name):
            return os.path.isdir(self.path(name)) and \
                not (update and ITEMS[name].suites)

        # One that was there may be out of date when what it needs is new.
        if all(has(name) for name in wanted):
            return
        with self.locked():
            for name in wanted:
                if not has(name):
                    self.bring_one(name)

    def bring_one(self, name):
        path = self.path(name)
        with tempfile.TemporaryDirectory(prefix=MAKING,
                                         dir=self.directory) as work:
            self.make(name, path, work)

    def make(self, name, path, work):
        """In work, and moved to path when it is complete."""
        item = ITEMS[name]
        packages, made_of = [], ''
        unpacked, new = (os.path.join(work, part) for part in ('in', 'out'))
        os.mkdir(unpacked)
        os.mkdir(new)
        if item.suites:
            apt = Apt(os.path.join(work, 'apt'), item.architecture,
                      item.suites)
            packages = item.packages(apt)
            made_of = ''.join(f'{package} {version}\n'
                              for package, version in packages)
            if os.path.isdir(path) and text_of(path + '/made-of') == made_of:
                return
        note(f'making {name}' + (f' of {packages[-1][0]} {packages[-1][1]}'
                                 if packages else ''))
        if packages:
            apt.unpack(packages, unpacked)
        item.make(unpacked, new, {need: self.find(need)
                                  for need in item.needs})
        with open(os.path.join(new, 'made-of'), 'w') as file:
            file.write(made_of)
        if os.path.isdir(path):
            os.rename(path, os.path.join(work, 'old'))
        os.rename(new, path)


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split('usage: ')[1])
    parser.add_argument('--cache')
    parser.add_argument('--update', action='store_true')
    parser.add_argument('--where', action='store_true')
    parser.add_argument('name', nargs='*')
    args = parser.parse_args()
    unknown = [name for name in args.name if name not in ITEMS]
    cache = Cache(args.cache)
    try:
        if unknown:
            raise Failed(f'{unknown[0]}: there are {", ".join(ITEMS)}')
        if args.where:
            for name in args.name:
                print(cache.find(name))
            return
        cache.bring(args.name or ITEMS, args.update)
    except (Failed, OSError) as failed:
        sys.exit(f'vm: {failed}')


if __name__ == '__main__':
    main()
