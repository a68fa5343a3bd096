# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""What the library makes public, read out of its header and its linker map;
and the frame that all checks here run in."""

import os
import re
import sys


def _code(header):
    """The header without comments, preprocessor lines and C++'s brackets."""
    header = re.sub(r'/\*.*?\*/', ' ', header, flags=re.S)
    header = re.sub(r'#ifdef __cplusplus\n.*?\n#endif\n', '', header,
                    flags=re.S)
    return re.sub(r'^#(.*\\\n)*.*$', '', header, flags=re.M)


def functions(header):
    """The names of the functions that the header declares."""
    code, bodies = _code(header), 1
    while bodies:
        code, bodies = re.subn(r'\{[^{}]*\}', ' ', code)
    return set(re.findall(r'\b(\w+)\s*\(', code)) - {'__attribute__'}


def structs(header):
    """The open structs and the names of their members."""
    found = {}
    for name, body in re.findall(r'\bstruct (\w+)\s*\{(.*?)\}\s*;',
                                 _code(header), flags=re.S):
        found[name] = [
            re.search(r'\(\*(\w+)\)|(\w+)\s*(\[\w+\])?$', member.strip())
            for member in body.split(';') if member.strip()]
        found[name] = [m[1] or m[2] for m in found[name]]
    return found


def versions(linker_map):
    """The map's symbols, each with the node that it is in."""
    found = {}
    for node, body in re.findall(r'([\w.]+)\s*\{(.*?)\}', linker_map,
                                 flags=re.S):
        body = re.sub(r'/\*.*?\*/', ' ', body, flags=re.S)
        for part in re.findall(r'global:(.*?)(?:local:|$)', body, flags=re.S):
            found.update(dict.fromkeys(part.replace(';', ' ').split(), node))
    return found


def read(path):
    with open(path, encoding='utf-8') as file:
        return file.read()


def both(header):
    """The core's header, and the one beside it, of which nothing is promised.
    Another library's header is alone."""
    if os.path.basename(header) != 'kvmfault.h':
        return read(header)
    return read(header) + read(os.path.join(os.path.dirname(header),
                                            'kvmfault-experimental.h'))


def skip(need, why):
    """This test can't run here: skipped, but not where need is required."""
    if need in os.environ.get('KVMFAULT_REQUIRE', '').split(','):
        print(f'REQUIRED, but missing: {need}: {why}')
        sys.exit(1)
    print(f'SKIP: {need}: {why}')
    sys.exit(77)


def verdict(errors):
    """Ends a check."""
    for error in sorted(errors):
        print(error)
    sys.exit(bool(errors))


def twin(check, doctored):
    """Ends a negative twin: the check has to fail for each doctored input.
    doctored: what was done, the input, a word that an error has to contain."""
    errors = []
    for what, data, word in doctored:
        found = check(data)
        if not any(word in error for error in found):
            errors.append(f'not noticed: {what} ({len(found)} other errors)')
        else:
            print(f'noticed: {what}')
    if not doctored:
        errors.append('nothing was doctored')
    verdict(errors)


if __name__ == '__main__':
    skip(sys.argv[1], sys.argv[2])
