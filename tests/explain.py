#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""kvmfault explain: each cause, made for real in a process that does not know
the library; and no cause where nothing is wrong.

usage: explain.py KVMFAULT EXPLAIN-CASES FIRECRACKER-CLIENT

A case that the machine cannot make is told, and left out; if what it takes is in
KVMFAULT_REQUIRE, that is a failure.
"""

import contextlib
import ctypes
import errno
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import tempfile

KVMFAULT, CASES, FIRECRACKER = sys.argv[1:4]
NOBODY = 65534
PATIENCE = 120		# seconds for what takes less than one
LOOKS = 20
MIB = 1 << 20
GIB = 1 << 30

# Of the cases whose name is not their cause, and those that are asked
# otherwise.
CAUSES = {'uffd-held': 'uffd-unread', 'uffd-elsewhere': 'uffd-unread',
          'uffd-protected': 'uffd-asks'}
WRITES = {'read-only', 'uffd-protected'}
# What stands in the way of the whole process, so that --all finds it too; of
# the others with a slot that has only their page.
WHOLE = {'uffd-unread', 'uffd-held', 'uffd-elsewhere', 'uffd-handler-gone',
         'uffd-unanswered', 'uffd-lost-wake', 'memory-cgroup'}
# Of the address alone these are not seen: its page is there.
ONLY_WHOLE = {'uffd-lost-wake'}
HEALTHY = {'mapped', 'on-demand', 'pfn-mapping', 'uffd-asks', 'uffd-protected'}
CASE_NAMES = [
    'mapped', 'on-demand', 'not-mapped', 'no-access', 'read-only', 'sealed',
    'guard', 'pfn-mapping', 'file-short', 'tmpfs-full', 'hugetlb-empty',
    'memory-cgroup', 'poison-marker', 'uffd-asks', 'uffd-protected',
    'uffd-sigbus', 'uffd-unread', 'uffd-held', 'uffd-elsewhere',
    'uffd-handler-gone', 'uffd-unanswered', 'uffd-lost-wake']


class Lacks(Exception):
    """What the machine has not."""


def lack(line):
    what = line.split()[1].rstrip(':')
    if what in os.environ.get('KVMFAULT_REQUIRE', '').split(','):
        sys.exit(f'REQUIRED, but missing: {line}')
    raise Lacks(line)


def run(*command, code=0, **how):
    done = subprocess.run([str(word) for word in command], text=True,
                          stdin=subprocess.DEVNULL, capture_output=True,
                          timeout=PATIENCE, **how)
    assert done.returncode == code, (command, done)
    return done


def explain(pid, *options, code=0, **how):
    done = run(KVMFAULT, 'explain', '--pid', pid, '--json', *options,
               code=code, **how)
    report = json.loads(done.stdout)
    assert report['pid'] == pid, report
    assert report['sentence'] and report['advice'], report
    assert (report['cause'] == 'unknown') is (code == 1), report
    return report


@contextlib.contextmanager
def made(name):
    """The process, the address, and one of it with which nothing is wrong."""
    with tempfile.TemporaryDirectory() as place:
        case = subprocess.Popen([CASES, name, place], text=True,
                                stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            line = case.stdout.readline()
            if line.startswith('SKIP'):
                lack(line.strip())
            yield tuple(int(word) for word in line.split())
        finally:
            case.stdin.close()
            case.wait(PATIENCE)
            case.stdout.close()
        assert case.returncode == 0, case


def check_case(name):
    if name == 'poison-marker' and os.geteuid():
        lack('SKIP root: pagemap shows markers to CAP_SYS_ADMIN alone')
    cause = CAUSES.get(name, name)
    write = ['--write'] if name in WRITES else []
    with made(name) as (pid, hva, good):
        report = explain(pid, '--hva', hva, *write)
        assert report['cause'] == (
            'mapped' if name in ONLY_WHOLE else cause), report
        assert report['denied'] == [] or os.geteuid(), report
        twin = explain(pid, '--hva', good, '--write')
        assert twin['cause'] == 'mapped', twin
        slot = f'0x100000:{hva:#x}:4096'
        found = explain(pid, '--gpa', '0x100000', '--slot', slot, *write)
        assert found['cause'] == report['cause'], found
        assert found['gpa'] == 0x100000, found
        beside = explain(pid, '--gpa', '0x101000', '--slot', slot)
        assert beside['cause'] == 'no-slot', beside
        every = explain(pid, '--all', '--slot', slot, *write)
        assert every['cause'] == ('nothing' if name in HEALTHY else cause), \
            every
        if name not in WHOLE:
            twin = explain(pid, '--slot', f'0:{good:#x}:4096', '--write')
            assert twin['cause'] == 'nothing', twin
        check_text(pid, hva, write, report['cause'])
        check_beside(name)


def check_text(pid, hva, write, cause):
    told = run(KVMFAULT, 'explain', '--pid', pid, '--hva', hex(hva),
               *write).stdout
    assert f'\ncause     {cause}: ' in told and '\ndo ' in told, told


def check_beside(name):
    """Another process is not blamed for it."""
    if name != 'memory-cgroup':
        report = explain(os.getpid())
        assert report['cause'] == 'nothing', report


def test_each_cause():
    for name in CASE_NAMES:
        try:
            check_case(name)
            print('explained:', name)
        except Lacks as why:
            print(why)


def test_sleeper_is_shown():
    with made('uffd-held') as (pid, _, _):
        report = explain(pid)
        asleep = [thread for thread in report['threads']
                  if thread['wchan'] == 'handle_userfault']
        assert len(asleep) == 1 and asleep[0]['still'], report
        (uffd,) = report['userfaultfds']
        assert uffd['pending'] == uffd['total'] == 1 and uffd['own'], report
        holders = {holder['pid'] for holder in uffd['holders']}
        assert len(holders) == 2 and pid in holders, report
        (other,) = holders - {pid}
        assert f'process {other} ' in report['sentence'], report


def test_unknown_stays_unknown():
    with made('unknown') as (pid, hva, _):
        report = explain(pid, code=1)
        assert 'no cause was found' in report['sentence'], report
        assert explain(pid, '--hva', hva)['cause'] == 'mapped'


def test_slots_of_an_unknown_vmm():
    with made('mapped') as (pid, _, _):
        report = explain(pid, '--gpa', '0x1000', code=1)
        assert '--slot' in report['sentence'], report


def test_nothing_is_wrong():
    """As often as one looks."""
    with made('uffd-asks') as (pid, _, good):
        for _ in range(LOOKS):
            assert explain(pid)['cause'] == 'nothing'
            assert explain(pid, '--hva', good)['cause'] == 'mapped'


def test_without_rights():
    """The right that it takes is told, and nothing is guessed."""
    if os.geteuid():
        lack('SKIP root: only root can become another user')
    with made('no-access') as (pid, hva, _), \
            tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        program = shutil.copy(KVMFAULT, place)
        how = {'user': NOBODY, 'group': NOBODY, 'extra_groups': []}
        done = run(program, 'explain', '--pid', pid, '--hva', hva, '--json',
                   code=1, cwd='/', **how)
        report = json.loads(done.stdout)
        assert report['cause'] == 'unknown', report
        denied = {one['what']: one for one in report['denied']}
        for name in ('maps', 'fd', 'exe'):
            one = denied[f'/proc/{pid}/{name}']
            assert one['error'] == 'EACCES', report
            assert 'CAP_SYS_PTRACE' in one['right'], report
        told = run(program, 'explain', '--pid', pid, code=1, cwd='/', **how)
        assert 'it takes: ' in told.stdout, told


def forbid_queries():
    """In the child: the kernel has neither PROCMAP_QUERY nor PAGEMAP_SCAN."""
    number = {'x86_64': 16, 'aarch64': 29}[os.uname().machine]
    load, equal, give = 0x20, 0x15, 0x06
    program = b''.join(struct.pack('<HBBI', *line) for line in [
        (load, 0, 0, 0),			# the call's number
        (equal, 0, 4, number),
        (load, 0, 0, 24),			# the second argument
        (equal, 1, 0, 0xc0686611),
        (equal, 0, 1, 0xc0606610),
        (give, 0, 0, 0x50000 | errno.ENOTTY),
        (give, 0, 0, 0x7fff0000)])
    room = ctypes.create_string_buffer(program, len(program))
    filters = struct.pack('@HP', len(program) // 8, ctypes.addressof(room))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)			# no new privileges
    assert libc.prctl(22, 2, filters, 0, 0) == 0, ctypes.get_errno()


def test_older_kernel():
    for name in ('mapped', 'not-mapped', 'no-access', 'file-short'):
        with made(name) as (pid, hva, good):
            how = {'preexec_fn': forbid_queries}
            report = explain(pid, '--hva', hva, **how)
            assert report['cause'] == name, report
            newer = explain(pid, '--hva', good)
            older = explain(pid, '--hva', good, **how)
            assert older['mapping'] == newer['mapping'], (older, newer)


def test_ended_process():
    child = subprocess.Popen(['true'])
    child.wait()
    told = run(KVMFAULT, 'explain', '--pid', child.pid, code=1)
    assert 'there is none' in told.stderr, told


def test_usage():
    pid = os.getpid()
    for wrong in ([], ['--pid'], ['--pid', '0'], ['--pid', 'x'],
                  ['--pid', pid, '--hva', '-1'], ['--pid', pid, '--hva', ''],
                  ['--pid', pid, '--gpa', '1', '--hva', '1'],
                  ['--pid', pid, '--all', '--hva', '1'],
                  ['--pid', pid, '--slot', '1:2'],
                  ['--pid', pid, '--slot', '1:2:0'],
                  ['--pid', pid, '--slot', '1:2:3:4'],
                  ['--pid', pid, '--slot', f'1:{(1 << 64) - 1}:2'],
                  ['--pid', pid, 'more']):
        told = run(KVMFAULT, 'explain', *wrong, code=2)
        assert told.stderr and not told.stdout, told
    told = run(KVMFAULT, 'explain', '--help').stdout
    assert told.startswith('Usage: kvmfault explain'), told


def look_at_demo(image):
    """Looks at one until it ends. Returns how many of them saw its
    userfaultfd."""
    demo = subprocess.Popen([KVMFAULT, 'demo', '--image', image, '--vcpus', '2',
                             '--delivery', 'uffd'], stdin=subprocess.DEVNULL,
                            stdout=subprocess.DEVNULL)
    seen = 0
    while demo.poll() is None:
        done = subprocess.run([KVMFAULT, 'explain', '--json', '--pid',
                               str(demo.pid)], text=True, capture_output=True,
                              stdin=subprocess.DEVNULL, timeout=PATIENCE)
        report = json.loads(done.stdout) if done.stdout else {}
        if report.get('cause') == 'nothing':
            seen += bool(report['userfaultfds'])
            assert report['vms'] or not report['userfaultfds'], report
            continue
        assert done.returncode == 1, report
        # While it ends there is nothing to see.
        assert not report or 'no memory' in report['sentence'], report
        demo.wait(PATIENCE)
    assert demo.returncode == 0, demo
    return seen


def test_running_vm():
    if not os.access('/dev/kvm', os.R_OK | os.W_OK):
        lack('SKIP kvm: /dev/kvm cannot be opened')
    seen = 0
    with tempfile.TemporaryDirectory() as place:
        image = os.path.join(place, 'image')
        with open(image, 'wb') as file:
            for _ in range(64):
                file.write(os.urandom(MIB))
        for _ in range(10 * LOOKS):
            seen += look_at_demo(image)
            if seen >= LOOKS:
                break
    assert seen >= LOOKS, seen


@contextlib.contextmanager
def restored():
    """A VM with real vCPUs that was restored as Firecracker does it. Gives its
    process, the handler's socket and its userfaultfd: the handler is this."""
    with tempfile.TemporaryDirectory() as place, \
            socket.socket(socket.AF_UNIX) as door:
        image, path = (os.path.join(place, name) for name in ('image', 'door'))
        with open(image, 'wb') as file:
            file.write(os.urandom(16 * MIB))
        door.bind(path)
        door.listen()
        door.settimeout(PATIENCE)
        vm = subprocess.Popen([FIRECRACKER, path, image], text=True,
                              stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL)
        try:
            channel, _ = door.accept()
            _, fds, _, _ = socket.recv_fds(channel, 1 << 16, 1)
            yield vm, channel, fds[0]
        finally:
            vm.kill()
            vm.wait()


def wait_for_fault(uffd):
    while True:
        with open(f'/proc/self/fdinfo/{uffd}', encoding='ascii') as info:
            if int(re.search(r'pending:\t(\d+)', info.read())[1]):
                return
        os.sched_yield()


def test_vm_without_handler():
    """As one is left whose page server hangs, and then has ended."""
    for what, device in ('kvm', '/dev/kvm'), ('uffd', '/dev/userfaultfd'):
        if not os.access(device, os.R_OK | os.W_OK):
            lack(f'SKIP {what}: {device} cannot be opened')
    with restored() as (vm, channel, uffd):
        wait_for_fault(uffd)
        report = explain(vm.pid)
        assert report['cause'] == 'uffd-unread', report
        assert f'process {os.getpid()} ' in report['sentence'], report
        assert report['vms'] == 1 and report['vcpus'] == 2, report
        os.close(uffd)
        channel.close()
        report = explain(vm.pid)
        assert report['cause'] == 'uffd-handler-gone', report


# ---- QEMU's layout ----

def read_answer(qemu):
    """What the monitor says, up to its next prompt."""
    answer = ''
    while not answer.endswith('(qemu) '):
        more = qemu.stdout.read(1)
        assert more, answer
        answer += more
    return answer


def ask(qemu, command):
    qemu.stdin.write(command + '\n')
    qemu.stdin.flush()
    return read_answer(qemu)


def ram_of(tree):
    """(gpa, offset in RAM, length) of each piece of pc.ram in the view of
    memory."""
    view = tree[tree.index('AS "memory"'):]
    view = view[:view.index('\n\n')]
    return [(int(start, 16), int(offset or '0', 16),
             int(end, 16) + 1 - int(start, 16))
            for start, end, offset in re.findall(
                r'([0-9a-f]{16})-([0-9a-f]{16}) \([^)]*\): pc\.ram'
                r'(?: @([0-9a-f]+))?', view)]


def check_layout(machine, memory, pieces, slots):
    """The slots lie where QEMU says, and end where it says."""
    base = slots[0]['hva']
    for gpa, offset, length in pieces:
        (slot,) = [slot for slot in slots
                   if slot['gpa'] <= gpa < slot['gpa'] + slot['length']]
        assert slot['hva'] - base + gpa - slot['gpa'] == offset, (slots, pieces)
        assert gpa + length <= slot['gpa'] + slot['length'], (slots, pieces)
    ends = {gpa + length for gpa, _, length in pieces}
    for slot in slots:
        assert slot['gpa'] + slot['length'] in ends, (slots, pieces)
        assert 'QEMU' in slot['from'], slots
    assert sum(slot['length'] for slot in slots) == memory, (machine, slots)


def look_at_qemu(program, machine, memory):
    qemu = subprocess.Popen(
        [program, '-machine', machine, '-accel', 'tcg', '-m',
         f'{memory // MIB}M', '-display', 'none', '-nodefaults', '-S',
         '-monitor', 'stdio'], text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        read_answer(qemu)	# it greets
        pieces = ram_of(ask(qemu, 'info mtree -f'))
        for _ in range(LOOKS if machine == 'q35' and memory < GIB else 1):
            report = explain(qemu.pid)
            assert report['cause'] == 'nothing', report
            assert report['vmm'] == 'QEMU', report
        check_layout(machine, memory, pieces, report['slots'])
        report = explain(qemu.pid, '--gpa', memory // 4, '--write')
        assert report['cause'] in ('on-demand', 'mapped'), report
        report = explain(qemu.pid, '--gpa', 1 << 40)
        assert report['cause'] == 'no-slot', report
    finally:
        qemu.kill()
        qemu.wait()


def test_qemu():
    program = shutil.which('qemu-system-x86_64')
    if not program:
        lack('SKIP qemu: qemu-system-x86_64 is not installed')
    for machine in ('q35', 'pc'):
        for memory in (128 * MIB, 6 * GIB):
            look_at_qemu(program, machine, memory)


def main():
    failed = 0
    for name, test in list(globals().items()):
        if not name.startswith('test_'):
            continue
        try:
            test()
            print('ok', name)
        except Lacks as why:
            print(why)
        except AssertionError as wrong:
            failed += 1
            print('FAILED', name, wrong)
    sys.exit(failed > 0)


main()
