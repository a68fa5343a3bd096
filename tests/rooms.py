#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""The rooms of lib/: each may use those before it, and none after it.

The rooms are the folders of lib/. A room may use the rooms before it in this order:
os, core, kernel, memory, resolve, entry, setup; none that comes after it. The order
is read from lib/meson.build, which lists os apart. Found wrong are, by the symbols
of the archive: a file that calls one of a room after its own, and files that call
each other in a circle; and by the text: an #include of a header from a room after
its own, a private header that is too long to be read, and a function that does not
fit a screen. The messages call a room that comes after "above".

usage: rooms.py ARCHIVE SOURCE...
       rooms.py twins CC        # trees that are wrong in each of these ways
"""

import os
import re
import subprocess
import sys
import tempfile

HEADER_LINES = 350
FUNCTION_LINES = 60
DOOR = 'os'		# the first: it has its own list in lib/meson.build


def room(path):
    return os.path.basename(os.path.dirname(path))


def order_of(sources):
    order = [DOOR]
    for source in sources:
        if room(source) not in order:
            order.append(room(source))
    return order


def symbols(archive, sources):
    """The source that defines each symbol; and what each source uses."""
    text = subprocess.run(['nm', '-A', archive], check=True, text=True,
                          capture_output=True).stdout
    member = {f'{room(s)}_{os.path.basename(s)}.o': s for s in sources}
    defined, used = {}, {}
    for line in text.splitlines():
        where, rest = line.rsplit(':', 1)
        # meson puts the folders of a source into its object's name.
        source = member[re.sub(r'^.*lib_', '', where.rsplit(':', 1)[-1])]
        kind, symbol = rest.split()[-2:]
        if kind in 'TDRBV':
            defined[symbol] = source
        elif kind == 'U':
            used.setdefault(source, set()).add(symbol)
    assert defined and used, f'{archive} has no symbols'
    return defined, used


def calls(archive, sources):
    """Who calls whom, and by which symbol: {source: {source: symbol}}."""
    defined, used = symbols(archive, sources)
    edges = {source: {} for source in sources}
    for source, names in used.items():
        for name in sorted(names):
            to = defined.get(name)
            if to and to != source:
                edges[source].setdefault(to, name)
    return edges


def upward(edges, order):
    for source, to in edges.items():
        for other, symbol in to.items():
            if order.index(room(source)) < order.index(room(other)):
                yield (f'{source} calls {symbol}() of {other}, which is in a '
                       'room above its own')


def circle(edges):
    """One of the circles, as a list of files; or None."""
    state, path = {}, []

    def visit(source):
        state[source] = 'open'
        path.append(source)
        for other in edges[source]:
            if state.get(other) == 'open':
                return path[path.index(other):]
            if other not in state:
                found = visit(other)
                if found:
                    return found
        path.pop()
        state[source] = 'done'
        return None

    for source in edges:
        found = None if source in state else visit(source)
        if found:
            return found
    return None


def includes(path, text, order):
    for name in re.findall(r'^#include "([^"]+)"', text, re.M):
        to = room(os.path.normpath(os.path.join(os.path.dirname(path), name)))
        if to in order and order.index(to) > order.index(room(path)):
            yield (f'{path} includes {name}, which is in a room above its own')


def functions(text):
    """Name and length of each."""
    for match in re.finditer(r'^(\w[^;{}()=]*?(\w+)\([^;{}]*\)\n)(\{\n.*?^\}\n)',
                             text, re.M | re.S):
        yield match.group(2), match.group().count('\n')


def texts(folder, order):
    for name in order:
        for file in sorted(os.listdir(os.path.join(folder, name))):
            path = os.path.join(folder, name, file)
            with open(path) as opened:
                text = opened.read()
            yield from includes(path, text, order)
            lines = text.count('\n')
            if file.endswith('.h') and lines > HEADER_LINES:
                yield (f'{path} has {lines} lines, more than {HEADER_LINES}: '
                       'who reads one does not need all of it')
            for function, length in functions(text):
                if length > FUNCTION_LINES:
                    yield (f'{path}: {function}() has {length} lines, more '
                           f'than {FUNCTION_LINES}')


def wrong(archive, sources):
    order = order_of(sources)
    folder = os.path.dirname(os.path.dirname(sources[0]))
    edges = calls(archive, sources)
    found = list(upward(edges, order)) + list(texts(folder, order))
    way = circle(edges)
    if way:
        found.append('these call each other in a circle: ' + ', '.join(way))
    return found


LOW = 'int kvmfault__low(void)\n{\n	return 0;\n}\n'
HIGH = 'int kvmfault__low(void);\nint kvmfault__high(void);\n' \
       'int kvmfault__high(void)\n{\n	return kvmfault__low();\n}\n'
GOOD = {'os/door.h': '/* */\n', 'core/low.c': LOW,
        'entry/high.c': HIGH, 'core/low.h': '/* */\n', 'entry/high.h': '/* */\n'}
TWINS = {
    'a room above its own': {
        'core/low.c': 'int kvmfault__high(void);\nint kvmfault__low(void)\n'
                      '{\n	return kvmfault__high();\n}\n'},
    'in a circle': {
        'entry/high.c': HIGH + 'int kvmfault__other(void);\n'
                        'int kvmfault__back(void)\n'
                        '{\n	return kvmfault__other();\n}\n',
        'entry/other.c': 'int kvmfault__back(void);\nint kvmfault__other(void)\n'
                         '{\n	return kvmfault__back();\n}\n'},
    'includes': {'core/low.c': '#include "../entry/high.h"\n' + LOW},
    'more than 350': {'core/low.h': '/* */\n' * 351},
    'more than 60': {'core/low.c': 'int kvmfault__low(void)\n{\n' +
                                   '	;\n' * 60 + '	return 0;\n}\n'},
}


def tree(work, files, cc):
    """Compile such a tree, as meson names its objects; what is wrong with it."""
    sources, objects = [], []
    for name, text in files.items():
        path = os.path.join(work, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w') as file:
            file.write(text)
    for name in sorted(name for name in files if name.endswith('.c')):
        sources.append(os.path.join(work, name))
        objects.append(os.path.join(work, name.replace('/', '_') + '.o'))
        subprocess.run([cc, '-w', '-c', sources[-1], '-o', objects[-1]],
                       check=True)
    archive = os.path.join(work, 'lib.a')
    subprocess.run(['ar', 'rcs', archive, *objects], check=True)
    return wrong(archive, sources)


def twins(cc):
    with tempfile.TemporaryDirectory() as work:
        found = tree(work, GOOD, cc)
        assert not found, found
    for what, files in TWINS.items():
        with tempfile.TemporaryDirectory() as work:
            found = tree(work, GOOD | files, cc)
            assert any(what in text for text in found), (what, found)
    print(f'rooms: {len(TWINS)} twins are found wrong')


def main():
    if len(sys.argv) == 3 and sys.argv[1] == 'twins':
        return twins(sys.argv[2])
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    found = wrong(sys.argv[1], sys.argv[2:])
    for text in found:
        print('rooms:', text, file=sys.stderr)
    if found:
        sys.exit(1)
    print(f'rooms: {len(sys.argv) - 2} files, no call goes up')


if __name__ == '__main__':
    main()
