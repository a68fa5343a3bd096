#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""What programs were compiled with at the last release is still so: the symbols
in their nodes, what functions take and return, the places of members, the
values of enumerators and macros. Of abidiff, where there is one, a removal
counts; the rest of what it says is printed.

usage: compare.py [--twin] TOP MAP HEADER VERSION-HEADER SUPPRESSIONS ABIDIFF
       MESON LIBRARY COMPILER...

ABIDIFF: '' where there is none. A line of SUPPRESSIONS is "NAME: REASON" and
takes back what is said of that name; one that takes back nothing is an error.
"""

import functools
import os
import re
import subprocess
import sys
import tempfile
sys.dont_write_bytecode = True

import public


def strip(header):
    return re.sub(r'/\*.*?\*/', ' ', header, flags=re.S)


def enumerators(header):
    return [name for body in re.findall(r'\benum \w+\s*\{(.*?)\}',
                                        strip(header), flags=re.S)
            for name in re.findall(r'\b(KVMFAULT_\w+)\b\s*(?==|,|$)', body)]


def macros(header):
    """Those that have a value."""
    return re.findall(r'^#define (KVMFAULT_\w+)[ \t]+\S', strip(header),
                      flags=re.M)


def declarations(header):
    """The functions, as they stand there."""
    code, bodies = public._code(header), 1
    while bodies:
        code, bodies = re.subn(r'\{[^{}]*\}', ' ', code)
    return [' '.join(part.split()) for part in code.split(';') if '(' in part]


def nodes(linker_map):
    found = {}
    for name, node in public.versions(linker_map).items():
        found.setdefault(node, set()).add(name)
    return found


def compiled(compiler, version, header, text, *options):
    """What the compiler says of a text that includes the header, and what the
    program prints if that was nothing."""
    with tempfile.TemporaryDirectory() as directory:
        for name, content in (('kvmfault.h', header), ('main.c', text),
                              ('kvmfault-version.h', version)):
            with open(os.path.join(directory, name), 'w') as file:
                file.write(content)
        program = os.path.join(directory, 'program')
        done = subprocess.run(
            [*compiler, '-std=gnu11', '-I', directory, '-o', program,
             *options, os.path.join(directory, 'main.c')],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode or options:
            return done.stdout if done.returncode else '', ''
        return '', subprocess.run([program], stdout=subprocess.PIPE, text=True,
                                  check=True).stdout


@functools.lru_cache(maxsize=None)
def values(compiler, version, header):
    """Name: numbers. An error of the compiler's is the caller's to say."""
    lines = []
    for struct, members in public.structs(header).items():
        lines.append(f'printf("{struct} %zu\\n", sizeof(struct {struct}));')
        for member in members:
            lines.append(
                f'printf("{struct}.{member} %zu %zu\\n", '
                f'offsetof(struct {struct}, {member}), '
                f'sizeof(((struct {struct} *)0)->{member}));')
    for name in enumerators(header) + macros(header):
        lines.append(f'printf("{name} %lld\\n", (long long)({name}));')
    error, output = compiled(
        compiler, version, header, '#include <stdio.h>\n#include <kvmfault.h>\n'
        'int main(void)\n{\n' + '\n'.join(lines) + '\nreturn 0;\n}\n')
    if error:
        raise ValueError(error)
    return {line.split()[0]: tuple(int(n) for n in line.split()[1:])
            for line in output.splitlines()}


def check_map(old, new):
    for node, names in old.items():
        if node not in new:
            yield f'{node}: the released node is gone'
            continue
        for name in names - new[node]:
            yield f'{name}: removed from {node}'
        for name in new[node] - names:
            yield f'{name}: added to {node} after its release'


def check_struct(struct, old, new, before, after):
    """Members stay, only the last one may grow; what is new begins where the
    struct ended. Without a size to tell it by, a struct is frozen."""
    if 'size' not in old[struct] and before[struct] != after[struct]:
        yield f'{struct}: another size, and has no member for it'
    if after[struct] < before[struct]:
        yield f'{struct}: became smaller'
    for member in old[struct]:
        name = f'{struct}.{member}'
        if member not in new[struct]:
            yield f'{name}: is gone'
            continue
        (at, size), (at_now, size_now) = before[name], after[name]
        last = member == old[struct][-1] == new[struct][-1]
        if at != at_now or size != size_now and not (last and size < size_now):
            yield (f'{name}: {size} bytes at {at}, '
                   f'now {size_now} at {at_now}')
    for member in new[struct]:
        if member not in old[struct] and \
                after[f'{struct}.{member}'][0] < before[struct][0]:
            yield f'{struct}.{member}: in the middle of what was there'


def check_values(names, before, after):
    """A count may grow, nothing else changes."""
    for name in names:
        if name not in after:
            yield f'{name}: is gone'
        elif after[name] != before[name] and not (
                name.endswith('_COUNT') and after[name] > before[name]):
            yield f'{name}: {before[name][0]}, now {after[name][0]}'


def check_functions(data):
    """The old declarations behind the new header: a C compiler takes a second
    one only if it is the same."""
    def errors(lines):
        return compiled(data['compiler'], data['version'], data['new header'],
                        '#include <kvmfault.h>\n' +
                        ''.join(line + ';\n' for line in lines),
                        '-fsyntax-only', '-Werror')[0]

    lines = declarations(data['old header'])
    if not lines:
        yield 'no function found in the old header'
    if errors(lines):
        for line in lines:
            if errors([line]):
                name = re.search(r'(\w+)\s*\(', line)[1]
                yield f'{name}: not any more: {line}'


def check_header(data):
    old, new = (public.structs(data[key])
                for key in ('old header', 'new header'))
    try:
        before, after = (values(data['compiler'], data['version'], data[key])
                         for key in ('old header', 'new header'))
    except ValueError as error:
        yield f'the header does not compile: {error}'
        return
    if not old or not enumerators(data['old header']):
        yield 'nothing found in the old header'
    for struct in old:
        if struct not in new:
            yield f'{struct}: is gone'
        else:
            yield from check_struct(struct, old, new, before, after)
    yield from check_values(enumerators(data['old header']) +
                            macros(data['old header']), before, after)


def suppressed(errors, suppressions):
    """What is left of the errors, and what is wrong with the suppressions."""
    left, names, used = [], {}, set()
    for line in suppressions.splitlines():
        if not line.strip() or line.startswith('#'):
            continue
        name, _, reason = line.partition(':')
        if reason.strip():
            names[name] = line
        else:
            left.append(f'suppressions: no reason: {line}')
    for error in errors:
        name = error.partition(':')[0]
        if name in names:
            used.add(name)
            print(f'suppressed: {error} [{names[name]}]')
        else:
            left.append(error)
    return left + [f'suppressions: takes back nothing: {names[name]}'
                   for name in names if name not in used]


def check(data):
    old, new = nodes(data['old map']), nodes(data['new map'])
    errors = [] if old else ['nothing found in the old map']
    errors += check_map(old, new)
    errors += check_header(data)
    errors += check_functions(data)
    return suppressed(errors, data['suppressions'])


def edit(data, key, *changes):
    text = data[key]
    for old, new in changes:
        if old not in text:
            raise SystemExit(f'nothing to doctor: {old!r}')
        text = text.replace(old, new, 1)
    return {**data, key: text}


def allowed(data):
    """Changes that break nobody."""
    yield 'a new node', {**data, 'new map': data['new map'] +
                         'KVMFAULT_9 {\nglobal:\n\tkvmfault_new;\n}'
                         ' KVMFAULT_0.1;\n'}
    yield 'a new function', {**data, 'new header': data['new header'] +
                             'int kvmfault_new(int a);\n'}
    yield 'a new enumerator', edit(data, 'new header', (
        '\tKVMFAULT_ACCESS_EXEC = 3,',
        '\tKVMFAULT_ACCESS_EXEC = 3,\n\tKVMFAULT_ACCESS_NEW = 4,'))
    yield 'one more of a count', edit(data, 'new header', (
        '#define KVMFAULT_FEATURE_COUNT 2', '#define KVMFAULT_FEATURE_COUNT 3'))
    yield 'a new member at the end', edit(data, 'new header', (
        '\tuint64_t flags;\n};', '\tuint64_t flags;\n\tint more;\n};'))
    yield 'what is suppressed', {
        **edit(data, 'new header', ('KVMFAULT_ACCESS_EXEC = 3',
                                    'KVMFAULT_ACCESS_EXEC = 4')),
        'suppressions': '# a comment\nKVMFAULT_ACCESS_EXEC: nobody had it\n'}


def doctored(data):
    """Changes that break programs."""
    def suppress(line):
        return {**data, 'suppressions': line + '\n'}

    for what, key, old, new, word in (
            ('a symbol is removed', 'new map', '\tkvmfault_ensure;\n', '',
             'kvmfault_ensure: removed from'),
            ('a symbol is added', 'new map', '\tkvmfault_ensure;\n',
             '\tkvmfault_ensure;\n\tkvmfault_more;\n',
             'kvmfault_more: added to'),
            ('a symbol moves', 'new map', '\tkvmfault_working_set_save;\nlocal:',
             'local:\n\t*;\n};\nKVMFAULT_9 {\nglobal:\n'
             '\tkvmfault_working_set_save;\nlocal:',
             'kvmfault_working_set_save: removed'),
            ('a node is renamed', 'new map', 'KVMFAULT_0.1 {', 'KVMFAULT_9 {',
             'the released node is gone'),
            ('an enumerator changes', 'new header',
             'KVMFAULT_ACCESS_WRITE = 2', 'KVMFAULT_ACCESS_WRITE = 9',
             'KVMFAULT_ACCESS_WRITE: 2, now 9'),
            ('an enumerator goes', 'new header',
             '\tKVMFAULT_ACCESS_WRITE = 2,\n', '',
             'KVMFAULT_ACCESS_WRITE: is gone'),
            ('a macro changes', 'new header',
             '#define KVMFAULT_KNOWN_HVA\t(1U << 1)',
             '#define KVMFAULT_KNOWN_HVA\t(1U << 4)', 'KVMFAULT_KNOWN_HVA'),
            ('a count shrinks', 'new header',
             '#define KVMFAULT_RESOLVER_COUNT 16',
             '#define KVMFAULT_RESOLVER_COUNT 15', 'KVMFAULT_RESOLVER_COUNT'),
            ('an array in the middle grows', 'new header',
             '\tuint64_t kind[KVMFAULT_STATS_KINDS];', '\tuint64_t kind[17];',
             'kvmfault_stats.kind'),
            ('a member is put in front', 'new header', '\tuint64_t gpa;\n',
             '\tuint64_t more;\n\tuint64_t gpa;\n', 'kvmfault_fault.gpa'),
            ('two members change places', 'new header',
             '\tuint64_t gpa;\n\tuint64_t hva;\n',
             '\tuint64_t hva;\n\tuint64_t gpa;\n', 'kvmfault_fault.hva'),
            ('a member is put into a hole', 'new header', '\tint error;\n',
             '\tint error;\n\tint more;\n', 'kvmfault_fault.more: in the'),
            ('a member becomes wider', 'new header', '\tuint32_t support;',
             '\tuint64_t support;', 'kvmfault_finding.support'),
            ('a member goes', 'new header', '\tuint64_t hva;\n', '',
             'kvmfault_fault.hva: is gone'),
            ('the last member goes', 'new header', '\tbool remote;\n', '',
             'kvmfault_uffd_options.remote: is gone'),
            ('a struct goes', 'new header', 'struct kvmfault_change {',
             'struct kvmfault_other {', 'kvmfault_change: is gone'),
            ('a struct without a size grows', 'new header',
             '\tuint64_t value;\t', '\tuint64_t value;\n\tint more;\t',
             'kvmfault_finding: another size'),
            ('a parameter changes', 'new header',
             'uint64_t length, bool write)', 'uint32_t length, bool write)',
             'kvmfault_ensure: not any more'),
            ('a function returns something else', 'new header',
             'int kvmfault_vm_free(', 'long kvmfault_vm_free(',
             'kvmfault_vm_free: not any more'),
            ('the header does not compile', 'new header', '#include <stdint.h>',
             '#error', 'does not compile')):
        yield what, edit(data, key, (old, new)), word
    for key, word in (('old map', 'old map'), ('old header', 'old header')):
        yield key + ' is empty', {**data, key: ''}, 'found in the ' + word
    yield 'a suppression of nothing', suppress('kvmfault_x: why'), \
        'takes back nothing'
    yield 'a suppression without a reason', suppress('kvmfault_x:'), \
        'no reason'


def git(top, *args):
    return subprocess.run(['git', '-C', top, *args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)


def last_tag(top):
    try:
        inside = git(top, 'rev-parse', '--show-toplevel')
    except FileNotFoundError:
        public.skip('tag', 'no git')
    found = os.path.realpath(inside.stdout.decode().strip() or '/')
    if inside.returncode or found != os.path.realpath(top):
        public.skip('tag', 'this is no git checkout')
    tag = git(top, 'describe', '--tags', '--abbrev=0', '--match', 'v*', 'HEAD')
    if tag.returncode:
        public.skip('tag', 'no release is tagged yet')
    return tag.stdout.decode().strip()


def at_tag(top, tag, path):
    done = git(top, 'show', f'{tag}:{path}')
    if done.returncode:
        public.verdict([f'{tag} has no {path}'])
    return done.stdout.decode()


def binaries(top, tag, abidiff, meson, library):
    """abidiff, between the tag's library and this one; 8 is what it calls
    incompatible, 1 and 2 are errors of its own."""
    with tempfile.TemporaryDirectory() as directory:
        archive = git(top, 'archive', tag).stdout
        subprocess.run(['tar', '-x', '-C', directory], input=archive,
                       check=True)
        build = os.path.join(directory, 'build')
        for command in ([meson, 'setup', build, directory, '-Dtests=disabled',
                         '-Dtools=disabled'], ['ninja', '-C', build]):
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True,
                                  stderr=subprocess.STDOUT)
            if done.returncode:
                return [f'{tag} does not build: {done.stdout}']
        old = os.path.realpath(os.path.join(build, 'lib', 'libkvmfault.so'))
        done = subprocess.run([abidiff, old, library], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
    print(done.stdout)
    return ['abidiff: see above'] if done.returncode & ~4 else []


def twins(data):
    errors = []
    for what, case in allowed(data):
        found = check(case)
        errors += [f'not allowed: {what}: {error}' for error in found]
        print(f'allowed: {what}')
    if errors:
        public.verdict(errors)
    public.twin(check, list(doctored(data)))


def main():
    args = [arg for arg in sys.argv[1:] if arg != '--twin']
    (top, linker_map, header, version, suppressions, abidiff, meson, library,
     *compiler) = args
    new = {'new map': public.read(linker_map),
           'new header': public.read(header),
           'version': public.read(version), 'compiler': tuple(compiler)}
    if '--twin' in sys.argv:
        twins({**new, 'old map': new['new map'], 'suppressions': '',
               'old header': new['new header']})
    tag = last_tag(top)
    print(f'compared with {tag}')
    errors = check({**new, 'suppressions': public.read(suppressions),
                    'old map': at_tag(top, tag, 'lib/libkvmfault.map'),
                    'old header': at_tag(top, tag, 'include/kvmfault.h')})
    if abidiff:
        errors += binaries(top, tag, abidiff, meson, library)
    public.verdict(errors)


main()
