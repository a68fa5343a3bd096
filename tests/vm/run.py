#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""Runs a static program on a kernel of its own, which qemu emulates.

usage: run.py [OPTION]... KERNEL PROGRAM [ARG]...

  --cache DIR        where kernels.py keeps the kernels
  --timeout SECONDS  for all of it (600)
  --file PATH        the program finds this file as /files/PATH
  --gigantic N       so many huge pages of 1 GiB are reserved, of more memory
  --guest KERNEL     the program finds this kernel as /files/KERNEL
  --icount           the machine's time goes by the instructions that it has
                     run: it cannot run ahead of a program, however slow
  --boot OPTION      for the kernel's command line

Its output comes through, and so does its exit status; 128 + N if signal N
ended it; 125, and why on the standard error output, if it could not be run to
its end. Of the environment it gets what begins with CK_ or KVMFAULT_.
"""

import argparse
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time

import kernels

LOST = 125
COMMON = ['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot',
          '-cpu', 'max', '-chardev', 'stdio,id=port,signal=off']
# How to emulate it: the console is the first serial port, records come by the
# other. Two CPUs in two threads once crashed the kernel inside with qemu 7.2; a
# timer that is late, since others use this machine too, is not broken.
MACHINES = {
    'amd64': (['qemu-system-x86_64', '-machine', 'q35', '-smp', '2',
               '-accel', 'tcg,thread=single'],
              ['-serial', 'chardev:port'],
              'console=ttyS0 no_timer_check', 'ttyS1'),
    'arm64': (['qemu-system-aarch64', '-accel', 'tcg', '-smp', '1',
               '-machine', 'virt,virtualization=on,gic-version=3'],
              ['-device', 'pci-serial,chardev=port'],
              'console=ttyAMA0', 'ttyS0'),
}
MEMORY = 2				# GiB
LARGEST = 1 << 30			# initramfs, of that
EMULATED = {'CK_TIMEOUT_MULTIPLIER': '10', 'KVMFAULT_TEST_DIVISOR': '4'}
DIRECTORY, FILE, DEVICE = 0o040755, 0o100755, 0o020600


class Archive:
    """An initramfs: cpio, format newc."""

    def __init__(self):
        self.parts = []
        self.names = set()
        self.add('dev', DIRECTORY)
        # Where the first process has its output before it mounts anything.
        self.add('dev/console', DEVICE, device=(5, 1))

    def add(self, name, mode, content=b'', device=(0, 0)):
        self.names.add(name)
        path = name.encode() + b'\0'
        head = b'070701' + b''.join(b'%08X' % field for field in (
            len(self.names), mode, 0, 0, 1, 0, len(content), 0, 0, *device,
            len(path), 0))
        for part in head + path, content:
            self.parts += [part, bytes(-len(part) % 4)]

    def add_file(self, name, content):
        name = name.lstrip('/')
        parents = name.split('/')[:-1]
        for depth in range(1, len(parents) + 1):
            parent = '/'.join(parents[:depth])
            if parent not in self.names:
                self.add(parent, DIRECTORY)
        self.add(name, FILE, content)

    def write(self, path):
        self.add('TRAILER!!!', 0)
        if sum(map(len, self.parts)) > LARGEST:
            raise kernels.Failed('the files are too large for the memory of '
                                 'an emulated machine')
        with open(path, 'wb') as file:
            file.writelines(self.parts)


def bytes_of(path):
    with open(path, 'rb') as file:
        return file.read()


def strings(them):
    return b''.join(os.fsencode(each) + b'\0' for each in them)


def initramfs(path, init, kernel, guest, args):
    archive = Archive()
    archive.add_file('init', bytes_of(init))
    archive.add('modules', DIRECTORY)
    modules = os.path.join(kernel, 'modules')
    for name in os.listdir(modules):
        archive.add_file(f'modules/{name}',
                         bytes_of(os.path.join(modules, name)))
    program = '/' + os.path.basename(args.program)
    archive.add_file(program, bytes_of(args.program))
    for file in args.file:
        archive.add_file('files' + os.path.abspath(file), bytes_of(file))
    if guest:
        archive.add_file('files/' + args.guest,
                         bytes_of(os.path.join(guest, 'vmlinuz')))
    env = EMULATED | {name: value for name, value in os.environ.items()
                      if name.startswith(('CK_', 'KVMFAULT_'))}
    archive.add_file('arguments', strings([program, *args.argument]))
    archive.add_file('environment',
                     strings(f'{name}={env[name]}' for name in env))
    archive.write(path)


class Records:
    """See init.c."""

    def __init__(self):
        self.buffer = b''
        self.end = None			# (kind, text)

    def feed(self, data):
        self.buffer += data
        while len(self.buffer) >= 9:
            end = 9 + int(self.buffer[1:9], 16)
            if len(self.buffer) < end:
                return
            kind, content = chr(self.buffer[0]), self.buffer[9:end]
            self.buffer = self.buffer[end:]
            if kind in 'oe':
                stream = sys.stdout if kind == 'o' else sys.stderr
                stream.buffer.write(content)
                stream.buffer.flush()
            else:
                self.end = kind, content.decode()


def watch(qemu, records, deadline):
    """Until the last record, or until there can be none; says why then."""
    with selectors.DefaultSelector() as selector:
        selector.register(qemu.stdout, selectors.EVENT_READ)
        while not records.end:
            if not selector.select(max(deadline - time.monotonic(), 0)):
                return 'it hangs, or needs more time'
            data = os.read(qemu.stdout.fileno(), 1 << 16)
            if not data:
                return 'it ended without a word'
            records.feed(data)
    return None


def story(why, errors, console):
    """What is known of a machine that came to no good end."""
    told = bytes_of(errors)
    if os.path.exists(console):
        told += bytes_of(console)
    lines = told.decode(errors='replace').splitlines()
    why += ''.join(': ' + line.split('] ')[-1] for line in lines
                   if 'Kernel panic' in line)
    return '\n'.join(['the console:', *lines[-60:], why])


def boot(args, work):
    architecture = kernels.KERNELS[args.kernel].architecture
    cache = kernels.Cache(args.cache)
    kernel = cache.find(args.kernel)
    init = 'init-' + architecture
    cache.bring([init])			# that takes no time, and no network
    initrd, console, errors = (os.path.join(work, name)
                               for name in ('initrd', 'console', 'errors'))
    guest = cache.find(args.guest) if args.guest else None
    initramfs(initrd, os.path.join(cache.find(init), 'init'), kernel, guest,
              args)
    machine, serial, options, port = MACHINES[architecture]
    records = Records()
    # One more: the kernel has put something of its own into the last one.
    memory = MEMORY + (args.gigantic and args.gigantic + 1)
    with open(errors, 'wb') as stderr:
        qemu = subprocess.Popen(
            [*machine, *args.icount, *COMMON, '-m', f'{memory}G',
             '-serial', 'file:' + console, *serial,
             '-kernel', os.path.join(kernel, 'vmlinuz'), '-initrd', initrd,
             '-append', ' '.join([options, *args.boot, 'panic=-1',
                                  'oops=panic', 'hugepagesz=1G',
                                  f'hugepages={args.gigantic}', '--',
                                  port])],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr)
    try:
        why = watch(qemu, records, time.monotonic() + args.timeout)
    finally:
        qemu.kill()
        qemu.wait()
    if why:
        raise kernels.Failed(story(f'{args.kernel}: {why}', errors, console))
    return records.end


def status(kind, text):
    if kind == 'f':
        raise kernels.Failed(text)
    how, number = text.split()
    return int(number) + (128 if how == 'signal' else 0)


def arguments():
    parser = argparse.ArgumentParser(usage=__doc__.split('usage: ')[1])
    parser.add_argument('--cache')
    parser.add_argument('--timeout', type=float, default=600)
    parser.add_argument('--file', action='append', default=[])
    parser.add_argument('--gigantic', type=int, default=0)
    parser.add_argument('--guest', choices=kernels.KERNELS)
    parser.add_argument('--icount', action='store_const', default=[],
                        const=['-icount', 'shift=2,sleep=off'])
    parser.add_argument('--boot', action='append', default=[])
    parser.add_argument('kernel', choices=kernels.KERNELS)
    parser.add_argument('program')
    parser.add_argument('argument', nargs=argparse.REMAINDER)
    return parser.parse_args()


def main():
    args = arguments()
    # So that qemu and the directory go with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(LOST))
    try:
        with tempfile.TemporaryDirectory() as work:
            sys.exit(status(*boot(args, work)))
    except (kernels.Failed, OSError) as failed:
        kernels.note(failed)
        sys.exit(LOST)


if __name__ == '__main__':
    main()
