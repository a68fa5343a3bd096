#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""What each kernel is known to do, in behaviours.ini, against what it does.

usage: behaviour.py check KERNEL COMMAND [ARG]...
                             run the program `behaviour`, and compare
       behaviour.py record KERNEL COMMAND [ARG]...
                             run it twice, and write its answers into the file
       behaviour.py model KERNEL COMMAND [ARG]...
                             the same as check, for the model of tests/sim: the
                             rows of MODEL_TABLES, but for MODEL_LACKS
       behaviour.py doc      the tables of doc/kernels.md
       behaviour.py documented KERNELS.MD
                             are those in there, and the sections that are named
       behaviour.py twin KERNELS.MD
                             show that each comparison can fail

A section of the file is a row of the program. `variants` are what it is asked
with and without; an answer that begins with a variant is the answer for that
one, any other is the answer for all.
"""

import configparser
import fcntl
import fnmatch
import itertools
import os
import re
import subprocess
import sys
import textwrap

FILE = os.path.join(os.path.dirname(os.path.realpath(__file__)),
                    'behaviours.ini')
BEGIN, END = '<!-- behaviour.py doc -->\n', '<!-- end -->\n'
SKIP = 77
KVM_CREATE_VM = 0xae01
VARIANTS = {'level': ('user', 'supervisor'),
            'irqchip': ('no irqchip', 'irqchip')}
RELEASE = 'kernel'		# the program's first line
TEXTS = ('table', 'says', 'sections', 'matters', 'variants')

# What tests/sim/behaviour*.c asks the model: the tables of behaviour-memory.c,
# -uffd.c and -edges.c.
MODEL_TABLES = ('An ordinary slot', 'Poison markers', 'Protected pages',
                'userfaultfd at the edges', 'What userfaultfd has')
# What of these the model can't be asked, and why.
MODEL_LACKS = {
    '*, irqchip': 'it has no asynchronous page faults, which are all that an '
                  'interrupt controller changes',
    'marker in hugetlb, supervisor, no irqchip':
        'the kernel that emulates that level is not asked for it',
    'read-modify-write unmapped, *, no irqchip':
        'its guest reads or writes 8 bytes: as far as KVM comes it is '
        '[unmapped]',
    '16 bytes unmapped, *, no irqchip': 'the same',
}


def load():
    """The file; a kernel's section is named `kernel ID`, the others are rows"""
    file = configparser.ConfigParser(delimiters='=', comment_prefixes='#',
                                     interpolation=None)
    file.optionxform = str
    with open(FILE) as text:
        file.read_file(text)
    return file


def kernels(file):
    return {name.split()[1]: file[name] for name in file.sections()
            if name.startswith('kernel ')}


def rows(file):
    return {name: file[name] for name in file.sections()
            if not name.startswith('kernel ')}


def variants(row):
    """Every combination of what the row is asked with: ('user', 'irqchip')"""
    kinds = row.get('variants', '').split()
    return list(itertools.product(*(VARIANTS[kind] for kind in kinds)))


def covers(text):
    """An answer's line -> (the variants that it is for, the answer)"""
    known = [word for words in VARIANTS.values() for word in words]
    head, colon, answer = text.partition(': ')
    parts = tuple(head.split(', '))
    if colon and set(parts) <= set(known):
        return parts, answer
    return (), text


def answers(name, row, kernel):
    """What the kernel is known to answer: the program's lines, key -> answer"""
    found = {}
    for line in row.get(kernel, '').splitlines():
        parts, answer = covers(line)
        for variant in variants(row):
            if set(parts) <= set(variant):
                key = ', '.join((name, *variant))
                assert key not in found, f'{name}, {kernel}: {key} twice'
                found[key] = answer
    return found


def known(file, kernel):
    return {key: answer for name, row in rows(file).items()
            for key, answer in answers(name, row, kernel).items()}


def shortest(by_variant):
    """The lines that say {('user', 'irqchip'): answer}"""
    def same(chosen):
        return len({by_variant[variant] for variant in chosen}) == 1

    everything = list(by_variant)
    if same(everything):
        return [by_variant[everything[0]]]
    for position in range(len(everything[0])):
        groups = {}
        for variant in everything:
            groups.setdefault(variant[position], []).append(variant)
        if all(map(same, groups.values())):
            return [f'{word}: {by_variant[group[0]]}'
                    for word, group in groups.items()]
    lines = []
    for word, group in itertools.groupby(everything, lambda each: each[0]):
        group = list(group)
        if same(group):
            lines.append(f'{word}: {by_variant[group[0]]}')
        else:
            lines += [f'{", ".join(variant)}: {by_variant[variant]}'
                      for variant in group]
    return lines


def parse(text):
    """What the program printed -> (the kernel's version, key -> answer)"""
    got = {}
    for line in text.splitlines():
        key, colon, answer = line.partition(': ')
        assert colon, f'no answer: {line!r}'
        assert key not in got, f'answered twice: {key}'
        got[key] = answer
    return re.match(r'[\d.]*\d', got.pop(RELEASE))[0], got


def row_of(file, key):
    """Its row has the longest name that the key begins with."""
    found = [name for name in rows(file)
             if key == name or key.startswith(name + ', ')]
    return max(found, key=len, default=None)


def compare(expected, got):
    """(key, expected, what came), where they differ; None: nothing"""
    for key in [*expected, *(key for key in got if key not in expected)]:
        if expected.get(key) != got.get(key):
            yield key, expected.get(key), got.get(key)


def wrapped(label, text):
    return textwrap.fill(f'{label}: {text}', 76, initial_indent='    ',
                         subsequent_indent='      ')


def tell(file, key, expected, got):
    name = row_of(file, key)
    print(f'\n{key}\n    expected: {expected or "not to be asked"}\n'
          f'    came:     {got or "no answer"}')
    if not name:
        print('    the file has no such row')
        return
    row = file[name]
    for label in 'says', 'matters':
        if label in row:
            print(wrapped(label, ' '.join(row[label].split())))
    print(wrapped('doc/kernels.md', ' '.join(row['sections'].split())))


def ask(kernel, command):
    if kernel == 'pvm':
        need_pvm()
    return run(command)


def run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return parse(done.stdout)


def need_pvm():
    """The column `pvm` is a host with that back end, and no other host."""
    if not os.path.isdir('/sys/module/kvm_pvm'):
        print('SKIP: KVM\'s back end here is not PVM (no module kvm_pvm)')
        sys.exit(SKIP)
    try:
        with open('/dev/kvm', 'r+b', 0) as kvm:
            os.close(fcntl.ioctl(kvm, KVM_CREATE_VM, 0))
        os.close(os.open('/dev/userfaultfd', os.O_RDWR))
    except OSError as error:
        print(f'SKIP: {error.filename or "/dev/kvm"}: {error.strerror}')
        sys.exit(SKIP)


def check(kernel, command):
    file = load()
    recorded = kernels(file)[kernel]['release']
    release, got = ask(kernel, command)
    found = list(compare(known(file, kernel), got))
    print(f'{kernel}: {release}, recorded on {recorded}: {len(got)} answers, '
          f'{len(found)} of them not as recorded')
    for difference in found:
        tell(file, *difference)
    if found:
        sys.exit(f'\n{kernel} behaves in another way than the library and '
                 'doc/kernels.md say.\nIf that is right, so that both are '
                 f'now: behaviour.py record {kernel} ...')


def lacks(key):
    """The patterns that excuse the model from an answer"""
    return [pattern for pattern in MODEL_LACKS
            if fnmatch.fnmatchcase(key, pattern)]


def expected_of_model(file, kernel):
    """key -> answer; what that kernel is not asked, as the first that is"""
    columns = [kernel, *(k for k in kernels(file) if k != kernel)]
    found = {}
    for name, row in rows(file).items():
        if row['table'] not in MODEL_TABLES:
            continue
        for column in reversed(columns):
            found.update((key, answer) for key, answer
                         in answers(name, row, column).items()
                         if not answer.startswith('not asked: '))
    return {key: answer for key, answer in found.items() if not lacks(key)}


def needless(file):
    """Tables that are not there, excuses that excuse nothing"""
    tables = {row['table'] for row in rows(file).values()}
    yield from set(MODEL_TABLES) - tables
    keys = [', '.join((name, *variant)) for name, row in rows(file).items()
            if row['table'] in MODEL_TABLES for variant in variants(row)]
    used = {pattern for key in keys for pattern in lacks(key)}
    yield from MODEL_LACKS.keys() - used


def model(kernel, command):
    file = load()
    for what in needless(file):
        sys.exit(f'behaviour.py: nothing in the file is {what!r}')
    got = run(command)[1]
    found = list(compare(expected_of_model(file, kernel), got))
    print(f'the model as {kernel}: {len(got)} answers, {len(found)} of them '
          'not as the kernel\'s; not asked:')
    for pattern, why in MODEL_LACKS.items():
        print(wrapped(pattern, why))
    for difference in found:
        tell(file, *difference)
    if found:
        sys.exit('\nThe model is to do what the kernel does '
                 '(tests/sim/mm.c, uffd.c, kvm.c), and tests/sim/behaviour*.c '
                 'to ask it\nevery row, or MODEL_LACKS to say why not.')


def record(kernel, command):
    file = load()
    file[f'kernel {kernel}']['release'], got = ask(kernel, command)
    for difference in compare(got, ask(kernel, command)[1]):
        sys.exit('asked twice, it says first this and then that: '
                 + ' / '.join(map(str, difference)))
    for key in got:
        assert row_of(file, key), f'no row for {key}: write one'
    for name, row in rows(file).items():
        keys = [', '.join((name, *variant)) for variant in variants(row)]
        asked = [key in got for key in keys]
        assert all(asked) or not any(asked), f'{name}: not in each variant'
        if all(asked):
            row[kernel] = '\n'.join(shortest(
                dict(zip(variants(row), (got[key] for key in keys)))))
        else:
            row.pop(kernel, None)
    save(file)


def save(file):
    with open(FILE) as text:
        head = text.read().split('[')[0]
    ids = list(kernels(file))
    with open(FILE, 'w') as text:
        text.write(head + '\n'.join(
            section(name, file[name], ids) for name in file.sections()))


def section(name, row, ids):
    """Its text, with the kernels in their order"""
    order = [option for option in row if option not in ids]
    order += [kernel for kernel in ids if kernel in row]
    lines = [f'[{name}]']
    for option in order:
        if option in TEXTS:
            value = ' '.join(row[option].split())
            lines += textwrap.wrap(f'{option} = {value}', 72,
                                   subsequent_indent='\t',
                                   break_on_hyphens=False)
        else:
            lines.append(f'{option} = ' + row[option].replace('\n', '\n\t'))
    return '\n'.join(lines) + '\n'


def cell(row, kernel):
    lines = row.get(kernel, '').splitlines()
    return '<br>'.join(lines).replace('|', '\\|')


def series(release):
    return '.'.join(release.split('.')[:2])


def doc(file):
    """One table for each `table` in the file, with a column for each kernel"""
    columns = kernels(file)
    text = ''
    for title, group in itertools.groupby(
            rows(file).items(), lambda item: item[1]['table']):
        text += f'\n### {title}\n\n| what |'
        text += ''.join(f' {series(column["release"])} {column["column"]} |'
                        for column in columns.values())
        text += '\n|---' + '|---' * len(columns) + '|\n'
        for name, row in group:
            says = ' '.join(row.get('says', '').split())
            text += f'| **{name}**{": " + says if says else ""} |'
            text += ''.join(f' {cell(row, kernel)} |' for kernel in columns)
            text += '\n'
    return text + '\n'


def slips(file, text):
    """What is wrong in doc/kernels.md"""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        yield f'not exactly one {BEGIN.strip()} and one {END.strip()}'
        return
    tables = text.split(BEGIN)[1].split(END)[0].splitlines()
    wanted = doc(file).splitlines()
    for line in sorted({*tables} ^ {*wanted}):
        yield ('is missing' if line in wanted else 'is wrong') + f': {line}'
    if tables != wanted:
        yield 'the tables are not what behaviour.py doc prints'
    headings = set(re.findall(r'^#+ (.*)$', text, re.M))
    for name, row in rows(file).items():
        for heading in ' '.join(row['sections'].split()).split('; '):
            if heading not in headings:
                yield f'[{name}] names a section that is not there: {heading}'


def documented(path):
    with open(path) as text:
        found = list(slips(load(), text.read()))
    print('\n'.join(found))
    sys.exit(bool(found))


def twin(path):
    """Doctored inputs, each of which has to be noticed"""
    file = load()
    with open(path) as text:
        text = text.read()
    assert not list(slips(file, text))
    prose, tables = text.split(BEGIN)
    changed = tables.replace('| bare EFAULT |', '| loops |', 1)
    assert changed != tables and list(slips(file, prose + BEGIN + changed))
    assert list(slips(file, text.replace(BEGIN, '')))
    for kernel in kernels(file):
        expected = known(file, kernel)
        assert len(expected) > 100 and not list(compare(expected, expected))
        for key in expected:
            assert row_of(file, key), key
            for got in ({**expected, key: 'other'},
                        {k: v for k, v in expected.items() if k != key}):
                assert [key] == [each[0] for each in compare(expected, got)]
        assert list(compare(expected, {**expected, 'a new row': 'yes'}))
        file['unmapped'][kernel] = 'something else'
        assert list(slips(file, text))
        assert list(compare(expected, known(file, kernel)))
        file = load()
    file['unmapped']['sections'] = 'No such heading'
    assert list(slips(file, text))
    twin_of_model(load())
    print('each doctored input was noticed')


def twin_of_model(file):
    assert not list(needless(file))
    expected = expected_of_model(file, 'pvm')
    assert len(expected) > 80 and not [key for key in expected if lacks(key)]
    assert 'unmapped, user, irqchip' not in expected
    assert list(compare(expected, {**expected,
                                   'unmapped, user, irqchip': 'bare EFAULT'}))
    file['a new row'] = {'table': MODEL_TABLES[0], 'pvm': 'yes'}
    assert [('a new row', 'yes', None)] == list(
        compare(expected_of_model(file, 'pvm'), expected))
    MODEL_LACKS['no such row'] = 'none'
    assert ['no such row'] == list(needless(file))


def main():
    command, args = sys.argv[1], sys.argv[2:]
    if command in ('check', 'model', 'record'):
        globals()[command](args[0], args[1:])
    elif command == 'doc':
        print(doc(load()), end='')
    else:
        {'documented': documented, 'twin': twin}[command](args[0])


main()
