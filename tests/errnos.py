#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""Every errno that a function may return is documented, and every documented
one is reached by a test.

The test programs are linked with a wrapper around each public function, which
notes what it returned. So this is no search for words in the tests: what is
reached was returned. (It notes as well that a thread is in the function: see
noting.h.)

usage: errnos.py args HEADER                 the linker's options for wrapping
       errnos.py wrap HEADER                 the wrappers, as C
       errnos.py check HEADER LIB... -- TEST...
                                             run the tests, and compare
       errnos.py twin HEADER                 show that the comparison can fail
"""

import os
import re
import subprocess
import sys
import tempfile

# What no test can reach, and why.
UNREACHED = {
    ('kvmfault_vm_new', 'ENFILE'): 'as EMFILE, which is',
    ('kvmfault_uffd_new', 'ENFILE'): 'as EMFILE, which is',
    ('kvmfault_memory_adopt', 'ENFILE'): 'as EMFILE, which is',
    ('kvmfault_service_new', 'ENFILE'): 'as EMFILE, which is',
    ('kvmfault_vcpu_new', 'ENFILE'): 'as EMFILE, which is',
    ('kvmfault_mapping_add', 'ENFILE'): 'as EMFILE, which is',
    ('kvmfault_mapping_add', 'EBADF'): 'it adopts none',
}

# Errnos in lib/ that are the inside's own, and why nobody sees them.
INSIDE = {
    'ENOTTY': 'the answer "no" of a probe, -EINVAL of an adopted descriptor',
    'EACCES': 'becomes -EPERM',
    'ENODEV': 'becomes -EOPNOTSUPP: no huge pages of that size',
    'ETIMEDOUT': 'a wait in slices is over, and its page is looked at again',
}

OTHERS = 'others'		# a source's, or the kernel's, passed on

FUNCTION = re.compile(
    r'/\*(?P<comment>(?:(?!\*/).)*?)\*/\s*'
    r'(?:const\s+)?(?:enum\s+|struct\s+)?(?P<type>\w+)\s*\**\s*\n?'
    r'(?P<name>kvmfault_\w+)\((?P<args>[^;]*?)\);', re.S)


def functions(header):
    """name -> (type, the errnos that its comment names)"""
    found = {}
    for match in FUNCTION.finditer(header):
        text = re.sub(r'\s*\n \*\s*', ' ', match['comment'])
        text = text[max(text.find('Returns'), 0):]
        codes = set(re.findall(r'-(E[A-Z0-9]+)\b', text))
        if re.search(r'what the source|what \w+\(2\)', text):
            codes.add(OTHERS)
        for other in re.findall(r'(?:: as|\bAs|what) (kvmfault_\w+)\(\)',
                                text):
            codes |= found.get(other, (None, set()))[1]
        found[match['name']] = (match['type'], codes)
    return found


def declared(header):
    """All of them, also those that share a comment."""
    code = re.sub(r'/\*.*?\*/', '', header, flags=re.S)
    return re.findall(r'\b(kvmfault_\w+)\(', code)


def setup(header):
    """Those that may take the context's lock and allocate."""
    classes = {match['name']: ' '.join(match['comment'].split())
               for match in FUNCTION.finditer(header)}
    return {name for name, text in classes.items()
            if re.search(r'Thread class: (\* )?setup', text)} | {
                'kvmfault_vm_new', 'kvmfault_vm_free'}


# How the context is found from a function's first argument, by its type.
CONTEXT = {
    'kvmfault_vm': '(struct kvmfault_vm *)a',
    'kvmfault_memory': '((struct kvmfault_memory *)a)->vm',
    'kvmfault_uffd': '((struct kvmfault_uffd *)a)->vm',
    'kvmfault_mapping': '((struct kvmfault_mapping *)a)->span.memory->vm',
    'kvmfault_vcpu': '((struct kvmfault_vcpu *)a)->vm',
    'kvmfault_request': '((struct kvmfault__request *)a)->seat->vm',
}

# Those that pass on what a callback of the test's said.
PASSED_ON = {'kvmfault_convert', 'kvmfault_ensure', 'kvmfault_ensure_msrs',
             'kvmfault_ensure_page_tables', 'kvmfault_discard',
             'kvmfault_protect', 'kvmfault_unprotect',
             'kvmfault_vm_handle_sigbus', 'kvmfault_request_read',
             'kvmfault_request_data', 'kvmfault_vm_error'}


def contexts(header):
    """name -> how its context is found, of those that refuse with a text."""
    return {match['name']: CONTEXT[kind[1]] for match in
            FUNCTION.finditer(header) if match['type'] == 'int' and
            match['name'] not in PASSED_ON and
            (kind := re.match(r'(?:const )?struct (\w+) \*',
                              match['args'])) and kind[1] in CONTEXT}


def returning(header):
    """Those that return 0 or -errno."""
    return {name: codes for name, (kind, codes) in functions(header).items()
            if kind == 'int'}


def wrappers(header):
    yield '''/* Made by errnos.py: notes each call, and what it returned. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvmfault-experimental.h"
#include "lib/setup/setup.h"
#include "tests/noting.h"

/* A caller's mistake, what is in the way, what can't be: each says which. */
static void expect_text(const char *name, long result, uint64_t before,
			struct kvmfault_vm *vm)
{
	int err = (int)result;

	if ((err != -EINVAL && err != -EBUSY && err != -EOPNOTSUPP) ||
	    atomic_load(&vm->texts.kept) != before)
		return;
	fprintf(stderr, "%s: %s, and no text says why\\n", name,
		strerrorname_np(-err));
	abort();
}

_Thread_local const struct noted *noting_inside;

static void note(const char *name, int result)
{
	const char *path = getenv("KVMFAULT_REACHED");
	char line[128];
	int fd, n;

	if (!path || result >= 0)
		return;
	fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
	n = snprintf(line, sizeof(line), "%s %s\\n", name,
		     strerrorname_np(-result));
	if (fd < 0 || write(fd, line, (size_t)n) != n)
		abort();
	close(fd);
}

struct noted noted[] = {
'''
    names = declared(header)
    errors = returning(header)
    where = contexts(header)
    for name in names:
        kind = str(name in setup(header)).lower()
        yield f'''	{{ .name = "{name}", .setup = {kind} }},
'''
    yield f'''}};
const size_t noted_count = {len(names)};
'''
    # All arguments are numbers and pointers, six at the most: passing six
    # words on passes them on, whatever they are; and so does what is returned.
    for number, name in enumerate(names):
        note = f'''
	note("{name}", (int)result);''' if name in errors else ''
        begin = end = ''
        if name in where:
            begin = f'''
	struct kvmfault_vm *vm = a ? {where[name]} : NULL;
	uint64_t before = vm ? atomic_load(&vm->texts.kept) : 0;'''
            end = f'''
	if (vm)
		expect_text("{name}", result, before, vm);'''
        yield f'''
long __real_{name}(long, long, long, long, long, long);
long __wrap_{name}(long a, long b, long c, long d, long e, long f);
long __wrap_{name}(long a, long b, long c, long d, long e, long f)
{{
	const struct noted *outer = noting_inside;{begin}
	long result;

	noting_inside = &noted[{number}];
	atomic_fetch_add(&noted[{number}].calls, 1);
	result = __real_{name}(a, b, c, d, e, f);
	noting_inside = outer;{note}{end}
	return result;
}}
'''


def compare(documented, reached, unreached):
    """What is wrong, line by line."""
    for name, codes in sorted(documented.items()):
        for code in sorted(codes - reached.get(name, set()) - {OTHERS}):
            if (name, code) not in unreached:
                yield f'{name}: -{code} is documented, but no test reaches it'
        for code in sorted(reached.get(name, set()) - codes):
            if OTHERS in codes:
                continue
            yield f'{name}: -{code} is returned, but not documented'
    for name, code in sorted(unreached):
        if code in reached.get(name, set()):
            yield f'{name}: -{code} is reached: take it from the list'


def run(tests):
    reached = {}
    with tempfile.NamedTemporaryFile('r') as file:
        environment = dict(os.environ, KVMFAULT_REACHED=file.name)
        for test in tests:
            done = subprocess.run([test], env=environment,
                                  stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True)
            if done.returncode == 77:
                print(done.stdout.rstrip())
            elif done.returncode:
                sys.exit(f'{test} fails:\n{done.stdout}')
        for line in file:
            name, code = line.split()
            reached.setdefault(name, set()).add(code)
    return reached


def scan(sources, documented):
    """Errnos in lib/ that no public function documents."""
    known = set().union(*documented.values())
    for path in sources:
        with open(path) as source:
            text = re.sub(r'/\*.*?\*/', '', source.read(), flags=re.S)
        for code in sorted(set(re.findall(r'-(E[A-Z0-9]{3,})\b', text))):
            if code not in known and code not in INSIDE:
                yield f'{path}: -{code} is in no public function\'s comment'


def check(header, arguments):
    split = arguments.index('--')
    documented = returning(header)
    wrong = list(scan(arguments[:split], documented))
    wrong += compare(documented, run(arguments[split + 1:]), UNREACHED)
    print('\n'.join(wrong))
    sys.exit(bool(wrong))


def twin(header):
    documented = returning(header)
    everything = {name: codes - {c for n, c in UNREACHED if n == name}
                  for name, codes in documented.items()}
    assert len(documented) > 20 and documented['kvmfault_vm_new']
    assert set(documented) < set(declared(header))
    assert 'kvmfault_region_add' in setup(header)
    assert 'kvmfault_ensure' not in setup(header)
    assert len(contexts(header)) > 20
    assert 'kvmfault_region_add' in contexts(header)
    assert not list(compare(documented, everything, UNREACHED))
    name = 'kvmfault_region_add'
    less = dict(everything, **{name: everything[name] - {'EEXIST'}})
    assert list(compare(documented, less, UNREACHED))
    more = dict(everything, **{name: everything[name] | {'EIO'}})
    assert list(compare(documented, more, UNREACHED))
    listed = {**UNREACHED, (name, 'EEXIST'): 'it is'}
    assert list(compare(documented, everything, listed))
    assert list(scan([__file__], {name: {'EIO'}}))
    print('each doctored input was noticed')


def main():
    header = ''
    for name in ('kvmfault.h', 'kvmfault-experimental.h'):
        with open(os.path.join(os.path.dirname(sys.argv[2]), name)) as file:
            header += file.read()
    if sys.argv[1] == 'args':
        print('\n'.join(f'-Wl,--wrap={name}' for name in declared(header)))
    elif sys.argv[1] == 'wrap':
        print(''.join(wrappers(header)), end='')
    elif sys.argv[1] == 'check':
        check(header, sys.argv[3:])
    else:
        twin(header)


main()
