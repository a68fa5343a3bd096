#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""What users copy compiles, in C and in C++: the examples, which the documents
show as they are, whole or in part, and the pieces of code in the header and the
manual pages. Each example is shown whole, or doc/examples.md has a section of it;
and it is short.

usage: examples.py [--twin] TOP VERSION-HEADER-DIRECTORY
                   [--c COMPILER...] [--c++ COMPILER...]"""

import glob
import os
import platform
import re
import subprocess
import sys
sys.dont_write_bytecode = True

import public

# C++ has designated initializers, in the order of the members, since C++20.
LANGUAGES = {'c': ['-x', 'c', '-std=gnu11'],
             'c++': ['-x', 'c++', '-std=c++20']}

DOCUMENTS = 'README.md', 'doc/integration.md', 'doc/examples.md'
LINES = 200		# no example has as many

# What the pieces of code take from the VMM around them.
AROUND = '''
#include <errno.h>
#include <kvmfault.h>
#include <kvmfault-nbd.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

extern struct kvmfault_vm *vm;
extern struct kvmfault_vcpu *vcpu;
extern struct kvm_run *run;
extern struct kvmfault_region region;
extern struct kvmfault_memory *memory;
extern int kvm_fd, vcpu_fd, file_fd, received_fd, err;
extern struct kvmfault_fetch *fetch;
extern struct kvmfault_working_set *set;
extern struct kvmfault_recording *recording;
extern uint64_t image_length;
extern const uint8_t identity[KVMFAULT_IDENTITY_LENGTH];
extern const void *bytes, *siginfo;
extern char text[512];
extern unsigned int i;
extern uint64_t done;
void allow(long number, int argument, uint32_t value);
int image_unpack(void *image, uint64_t offset, void *buffer, uint64_t length);
void log_line(void *data, enum kvmfault_log_level level, const char *text);
void handle_exit(struct kvm_run *run);
void see_who_kicked(void);
void wait_for_my_resolver(void);
int piece(void);
'''


def whole(top):
    """name -> a file of its own"""
    return {os.path.basename(path): public.read(path)
            for path in glob.glob(os.path.join(top, 'examples', '*.c'))}


def shown(top):
    """[(example, as a document shows it, whether whole)]"""
    found = []
    for document in DOCUMENTS:
        for part, name, text in re.findall(
                r'<!-- (part of )?examples/(\S+) -->\n```c\n(.*?)```\n'
                r'<!-- end -->', public.read(os.path.join(top, document)),
                flags=re.S):
            found.append((name, text, not part))
    return found


def told(top):
    """The examples that doc/examples.md has a section of."""
    return set(re.findall(r'^## (\S+\.c)\b',
                          public.read(os.path.join(top, 'doc/examples.md')),
                          flags=re.M))


def pieces(top):
    """where -> a piece of code"""
    header = public.read(os.path.join(top, 'include', 'kvmfault.h'))
    loop = re.search(r'\n( \*   bool enter = true;\n.*?\n \*   \}\n)', header,
                     re.S)
    found = {'kvmfault.h': re.sub(r'^ \* ', '', loop[1], flags=re.M)}
    for page in glob.glob(os.path.join(top, 'doc', 'man', '*.3')):
        for number, text in enumerate(re.findall(
                r'^\.Bd -literal[^\n]*\n(.*?)^\.Ed', public.read(page),
                flags=re.M | re.S)):
            text = text.replace('\\e', '\\').replace('\\-', '-')
            found[f'{os.path.basename(page)}, {number}'] = text
    return found


def program(piece):
    if piece.startswith('case '):
        piece = f'switch (run->exit_reason) {{\n{piece}\nbreak;\n}}'
    if piece.startswith('static '):
        return AROUND + piece
    return f'{AROUND}\nint piece(void)\n{{\n{piece}\nreturn 0;\n}}\n'


def check(data):
    top, version, compilers, examples, texts, in_documents, sections = data
    whole_ones = {name for name, _, is_whole in in_documents if is_whole}
    errors = [f'{name}: not as the document shows it'
              for name, text, is_whole in in_documents
              if text not in examples.get(name, '') or
              is_whole and text != examples[name]]
    errors += [f'{name}: no document shows or explains it, or there is none'
               for name in examples.keys() ^ (whole_ones | sections)]
    errors += [f'{name}: {LINES} lines or more'
               for name, text in examples.items()
               if text.count('\n') >= LINES]
    sources = {**examples,
               **{where: program(text) for where, text in texts.items()}}
    for language, compiler in compilers.items():
        for where, source in sources.items():
            done = subprocess.run(
                [*compiler, *LANGUAGES[language], '-pedantic',
                 '-Wall', '-Werror', '-Wno-unused-function', '-fsyntax-only',
                 '-I', os.path.join(top, 'include'), '-I', version, '-'],
                text=True, input=source,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode:
                errors.append(f'{where}, {language}: {done.stdout}')
    return errors


def doctored(data):
    top, version, compilers, examples, texts, in_documents, sections = data
    minimal = examples['minimal.c']
    cases = [
        ('not the document\'s', 'KVM_EXIT_HLT', 'KVM_EXIT_IO', 'not as the'),
        ('a name that is not there', 'kvmfault_vcpu_handle(', 'kvmfault_hand(',
         'kvmfault_hand'),
    ]
    if 'c++' in compilers:
        cases += [
            ('a pointer to void', '= (struct kvm_run *)mmap', '= mmap',
             'minimal.c, c++'),
            ('an initializer without a name', '.size = sizeof(o)',
             'sizeof(o)', 'minimal.c, c++'),
        ]
    for what, old, new, word in cases:
        assert old in minimal, old
        yield what, (top, version, compilers, {
            **examples, 'minimal.c': minimal.replace(old, new)}, texts,
            in_documents, sections), word
    yield 'a piece that is none', (
        top, version, compilers, examples,
        {**texts, 'doctored': 'the VMM\'s own handling;'},
        in_documents, sections), 'doctored'
    yield 'a part that is in no example', (
        top, version, compilers, examples, texts,
        [*in_documents, ('minimal.c', 'int no;\n', False)], sections), 'not as the'
    yield 'a section of none', (
        top, version, compilers, examples, texts, in_documents,
        sections | {'none.c'}), 'none.c: no document'
    yield 'an example without a section', (
        top, version, compilers, {**examples, 'new.c': ''}, texts, in_documents,
        sections), 'new.c: no document'
    yield 'a long one', (
        top, version, compilers, {**examples, 'minimal.c': minimal + '\n' * LINES},
        texts, in_documents, sections), 'lines or more'


def main():
    args = [arg for arg in sys.argv[1:] if arg != '--twin']
    top, version, *rest = args
    compilers = {}
    for arg in rest:
        if arg in ('--c', '--c++'):
            compilers[arg[2:]] = []
        else:
            list(compilers.values())[-1].append(arg)
    if platform.machine() != 'x86_64':
        public.skip('x86', "the example's guest, and a hypercall's flag")
    data = (top, version, compilers, whole(top), pieces(top), shown(top),
            told(top))
    if '--twin' in sys.argv:
        public.twin(check, list(doctored(data)))
    errors = check(data)
    if not errors and 'c++' not in compilers:
        public.skip('c++', 'no C++ compiler')
    public.verdict(errors)


main()
