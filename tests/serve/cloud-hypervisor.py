#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""kvmfault serve --cloud-hypervisor, and a program that does what Cloud
Hypervisor does, with real vCPUs: each byte of the guest's memory is compared.

usage: cloud-hypervisor.py KVMFAULT CLIENT
"""

import contextlib
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zlib

CLIENT = os.path.realpath(sys.argv.pop())
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent
                       / 'examples'))

import harness

GIB = 1 << 30
HUGE = 2 << 20
SLOTS = ((1, GIB, 24 << 20, 0), (5, 4 * GIB, 8 << 20, 24 << 20))
# The same as two zones, with a file for each.
ZONES = SLOTS[:1] + ((5, 4 * GIB, 8 << 20, 1 << 20),)
PAGES = sum(size for _, _, size, _ in SLOTS) // harness.PAGE
# As tests/serve/cloud-hypervisor.h numbers them.
DIE, HALF, ABANDON = 1, 2, 3
NEVER_SENT = range(4, 11)
START, CONFIG, STATE, COMPLETE, MEMORY_FD = 1, 2, 3, 5, 7
KILLS = 20
REQUESTS = 60


def snapshot(path, slots=SLOTS, memory=None):
    """A directory as Cloud Hypervisor's offload daemon leaves it."""
    os.mkdir(path)
    mappings = [{'slot': slot, 'gpa': gpa, 'size': size, 'zone_id': 'mem0',
                 'virtio_mem': False, 'file_offset': offset}
                for slot, gpa, size, offset in slots]
    config = {'vm_config': {'memory': {'size': 1, 'shared': True,
                                       **(memory or {})}},
              'memory_manager_data': {'guest_ram_mappings': mappings}}
    with open(f'{path}/migration_config.json', 'w') as file:
        json.dump(config, file)
    with open(f'{path}/state.json', 'w') as file:
        json.dump({'id': '', 'snapshots': 'x' * 300000}, file)
    for slot, _, size, _ in slots:
        harness.image(f'{path}/memory-{slot}', size // harness.PAGE, holes=30,
                      seed=slot)


def next_line(process):
    """And not a byte more, which is left for harness.finish()."""
    line = b''
    while not line.endswith(b'\n'):
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, (line, process.stderr.read())
        line += byte
    return line


class Restore:
    """Both programs, from the moment at which the VM runs."""
    def __init__(self, program, client, serve=(), expected='snapshot',
                 runs=True):
        if os.path.exists('socket'):
            os.unlink('socket')
        self.client = harness.start(CLIENT, 'socket', expected, *client)
        assert next_line(self.client) == b'listening\n'
        self.server = harness.start(program, 'serve', '--json',
                                    '--cloud-hypervisor', 'socket',
                                    '--snapshot', 'snapshot', *serve)
        if runs:
            self.event('running')

    def event(self, what):
        event = json.loads(next_line(self.server))
        assert event['event'] == what, (event, what)
        return event

    def end(self, what, server=0, client=0):
        """The last event, what the client and what the server said."""
        told, self.said = harness.finish(self.client, client)
        out, err = harness.finish(self.server, server)
        last = json.loads(out.splitlines()[-1]) if out else None
        assert (last and last['event']) == what, (last, err)
        return last, told, err


def verified(told):
    return harness.says(told, 'verified:')[0]


def test_restores(program):
    """Two versions of Cloud Hypervisor, with a fill behind and without."""
    snapshot('snapshot')
    for version in [], ['--wakes']:
        for fill in 'max', 'off', '50M':
            restore = Restore(program, ['--vcpus', '3', '--first', '100',
                                        *version], ['--fill', fill])
            last, told, err = restore.end('resident')
            assert verified(told) == PAGES and not err, (told, err)
            demanded = harness.says(told, 'demanded:')[0]
            # A fault at just the page that would come next is taken for it.
            assert abs(last['demand'] - demanded) <= PAGES / 100, (last, told)
            assert last['demand'] + last['prefault'] == PAGES, last


def test_a_paused_vm(program):
    snapshot('snapshot')
    last, told, _ = Restore(program, ['--paused'], ['--paused']).end('resident')
    assert verified(told) == PAGES, told
    assert last['prefault'] >= PAGES - 2, last


def test_without_prefault(program):
    """As if Cloud Hypervisor's had failed: its guests' faults go on."""
    snapshot('snapshot')
    last, told, _ = Restore(program, ['--vcpus', '2', '--no-prefault'],
                            ['--fill', 'off']).end('gone')
    assert verified(told) == harness.says(told, 'demanded:')[0] > 500, told
    assert last['prefault'] <= 5, last


def test_huge_pages(program):
    free = '/sys/kernel/mm/hugepages/hugepages-2048kB/'
    slots = ((0, GIB, 3 * HUGE, 0), (1, 4 * GIB, HUGE, 0))
    snapshot('snapshot', slots, {'hugepages': True, 'hugepage_size': HUGE})
    with open(free + 'free_hugepages') as file:
        if int(file.read()) < 4:
            assert 'hugetlb' not in os.environ.get('KVMFAULT_REQUIRE', '')
            print('left out: there are no 4 free huge pages')
            return
    for version in [], ['--wakes']:
        restore = Restore(program, ['--vcpus', '2', *version])
        assert verified(restore.end('resident')[1]) == 4


def working_set(path, length, identity, page, count):
    """One run of pages, in a file as kvmfault_working_set(5) has it."""
    body = b''
    for number in 2 * page, count:
        while number > 127:
            body += bytes([number & 127 | 128])
            number >>= 7
        body += bytes([number])
    data = struct.pack('<8sIIQ32sQQ', b'KVMFWSET', 1, 12, length, identity, 1,
                       len(body)) + body
    with open(path, 'wb') as file:
        file.write(data + struct.pack('<I', zlib.crc32(data)))


def test_working_set(program):
    """It has the end of the first slot, and the second one's beginning."""
    snapshot('snapshot')
    os.utime('snapshot/memory-1', ns=(0, 5_000_000_007))
    identity = struct.pack('=qq', 5, 7)
    first = SLOTS[0][2] // harness.PAGE
    for fill in 'max', 'off':
        working_set('set', PAGES * harness.PAGE, identity, first - 100, 200)
        restore = Restore(program, ['--vcpus', '2'],
                          ['--working-set', 'set', '--fill', fill])
        assert verified(restore.end('resident')[1]) == PAGES
    for wrong in (PAGES * harness.PAGE + 1, identity), (PAGES * harness.PAGE,
                                                        b'other'):
        working_set('set', *wrong, first - 100, 200)
        done = harness.run(program, 'serve', '--cloud-hypervisor', 'socket',
                           '--snapshot', 'snapshot', '--working-set', 'set',
                           code=1)
        assert 'not the working set' in done.stderr, done


def test_another_byte_is_found(program):
    """The twin: what the client compares with is another snapshot."""
    snapshot('snapshot')
    shutil.copytree('snapshot', 'other')
    with open('other/memory-5', 'r+b') as file:
        file.seek(4711)
        byte = file.read(1)[0]
        file.seek(4711)
        file.write(bytes([byte ^ 1]))
    restore = Restore(program, [], expected='other')
    restore.end('resident', client=1)
    assert f'the page at {4 * GIB + harness.PAGE:#x} differs' in restore.said


def test_client_goes(program):
    snapshot('snapshot')
    for wrong, what, code in ((DIE, 'gone', 0), (HALF, 'failed', 1),
                              (ABANDON, 'abandoned', 0)):
        restore = Restore(program, ['--vcpus', '2', '--first', '100000',
                                    '--wrong', wrong, '--after', '100'],
                          ['--fill', 'off'])
        _, told, err = restore.end(what, server=code)
        assert 'verified' not in told, told
        assert bool(err) == bool(code), err


def test_refuses(program):
    """Its guest has pages that were not fetched, and reads none of them."""
    for slots, wrong in itertools.product((SLOTS, ZONES), NEVER_SENT):
        shutil.rmtree('snapshot', ignore_errors=True)
        snapshot('snapshot', slots)
        restore = Restore(program, ['--vcpus', '2', '--first', '100000',
                                    '--wrong', wrong, '--after', '300'],
                          ['--fill', 'off'])
        _, told, err = restore.end('failed', server=1)
        assert harness.says(told, 'ended:') == [2], told
        assert 'Cloud Hypervisor' in err, err


def test_is_rejected(program):
    snapshot('snapshot')
    for command in START, MEMORY_FD, CONFIG, STATE, COMPLETE:
        restore = Restore(program, ['--rejects', command], runs=False)
        _, told, err = restore.end(None, server=1)
        assert 'rejected' in told and 'its log says why' in err, (told, err)


def test_source_fails(program):
    """The snapshot is cut off while the guest runs."""
    snapshot('snapshot')
    shutil.copytree('snapshot', 'whole')
    restore = Restore(program, ['--vcpus', '2', '--first', '100000',
                                '--touches', '30000'], ['--fill', 'off'],
                      expected='whole')
    for slot, *_ in SLOTS:
        os.truncate(f'snapshot/memory-{slot}', 5 * harness.PAGE)
    _, told, err = restore.end('failed', server=1)
    assert harness.says(told, 'ended:') == [2], told
    assert 'cannot bring the page' in err, err


def guard_of(server):
    """The process that it has started, which makes a kill harmless."""
    with open(f'/proc/{server.pid}/task/{server.pid}/children') as file:
        return int(file.read())


def hang_up():
    """In place of a server that was killed before it had connected."""
    with socket.socket(socket.AF_UNIX) as connection:
        with contextlib.suppress(OSError):
            connection.connect('socket')


def test_is_killed(program):
    """No vCPU reads a zero: its memory is gone before Cloud Hypervisor knows
    that the server is."""
    numbers = random.Random(5)
    for slots in SLOTS, ZONES:
        snapshot('snapshot', slots)
        ends = [kill_one(program, numbers) for _ in range(KILLS)]
        shutil.rmtree('snapshot')
        print('killed:', sorted(ends))


def kill_one(program, numbers):
    restore = Restore(program, ['--vcpus', '2', '--touches', '30000',
                                '--first', '10'],
                      ['--fill', numbers.choice(['off', '10M', 'max'])],
                      runs=numbers.random() < 0.8)
    try:
        restore.server.wait(numbers.uniform(0, 0.3))
    except subprocess.TimeoutExpired:
        restore.server.kill()
    restore.server.communicate()
    hang_up()
    told, err = restore.client.communicate(timeout=harness.PATIENCE)
    code = restore.client.returncode
    # The VMM itself may look where its memory has just been taken away.
    if code == -signal.SIGBUS:
        return 'cut off'
    assert code in (0, 4), (code, told, err)
    return 'early' if code else 'verified' if 'verified' in told else \
        told.splitlines()[-1]


def test_killed_without_its_guard(program):
    """The twin: then a vCPU does read zeros, and the client finds that."""
    snapshot('snapshot')
    restore = Restore(program, ['--vcpus', '2', '--touches', '60000',
                                '--no-prefault'], ['--fill', 'off'])
    os.kill(guard_of(restore.server), signal.SIGKILL)
    restore.server.kill()
    _, err = harness.finish(restore.client, 1)
    assert 'has read what the snapshot does not have' in err, err
    harness.finish(restore.server, -signal.SIGKILL)


def test_drains(program):
    snapshot('snapshot')
    for fill in '1M', 'off':
        restore = Restore(program, ['--vcpus', '2', '--first', '100'],
                          ['--fill', fill])
        restore.server.terminate()
        restore.event('draining')
        assert verified(restore.end('resident')[1]) == PAGES
    restore = Restore(program, ['--vcpus', '2', '--touches', '60000'],
                      ['--fill', '1'])
    restore.server.terminate()
    restore.event('draining')
    restore.server.send_signal(signal.SIGINT)
    told, err = harness.finish(restore.server, restore.server.wait())
    restore.client.communicate(timeout=harness.PATIENCE)
    # Where the rest was there already, the second signal is too late.
    assert restore.client.returncode == 0, err
    assert ('a signal ends the VM' in err) == ('failed' in told), (told, err)


class Peer:
    """The other end as far as a VM that runs; then it may say anything."""
    def __init__(self, program):
        listener = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(FileNotFoundError):
            os.unlink('socket')
        listener.bind('socket')
        listener.listen()
        self.server = harness.start(program, 'serve', '--cloud-hypervisor',
                                    'socket', '--snapshot', 'snapshot')
        control = listener.accept()[0]
        for command in START, MEMORY_FD, MEMORY_FD, CONFIG, STATE, COMPLETE:
            number, length = self.take(control, '<H6xQ')
            assert number == command, (number, command)
            if command == MEMORY_FD:
                for fd in socket.recv_fds(control, length, 1)[1]:
                    os.close(fd)
            else:
                control.recv(length, socket.MSG_WAITALL)
            control.send(struct.pack('<H6xQ', 1, 0))
        self.faults = listener.accept()[0]
        assert self.take(self.faults, '<H') == (2,)
        control.close()
        listener.close()

    @staticmethod
    def take(connection, form):
        """A message; None: the end."""
        size = struct.calcsize(form)
        data = connection.recv(size, socket.MSG_WAITALL)
        return struct.unpack(form, data) if len(data) == size else None


def test_any_request(program):
    """Its numbers are right, or nearly so. Each that is right is served, and
    the first one that is wrong is the last."""
    snapshot('snapshot')
    numbers = random.Random(9)
    edges = [edge for _, gpa, size, _ in SLOTS for edge in (gpa, gpa + size)]
    served = 0
    for _ in range(REQUESTS):
        peer = Peer(program)
        right = True
        while right:
            command = numbers.choice([9] * 20 + [0, 3, 6, 10, 1 << 15])
            size = numbers.choice([16] * 20 + [0, 8, 17, 1 << 63])
            gpa = (numbers.choice(edges) + numbers.choice([-4096, 0, 4096])
                   + numbers.choice([0] * 20 + [1])) % (1 << 64)
            length = numbers.choice([4096] * 8 + [8192, HUGE, 0, 1, GIB + 4096,
                                                  (1 << 64) - 4096])
            right = command == 9 and size == 16 and 0 < length <= GIB and \
                not (gpa | length) % 4096 and \
                any(start <= gpa and gpa + length <= start + of
                    for _, start, of, _ in SLOTS)
            peer.faults.send(struct.pack('<H6xQQQ', command, size, gpa, length))
            answer = peer.take(peer.faults, '<H6xQ')
            abandons = command == 6 and size == 0
            assert answer == (1 if right or abandons else 2, 0), (
                answer, command, size, gpa, length)
            served += right
        peer.faults.close()
        harness.finish(peer.server, 0 if abandons else 1)
    assert served, served


def test_says_what_is_wrong(program):
    def complaint(*options, code=1):
        return harness.run(program, 'serve', '--cloud-hypervisor', 'socket',
                           *options, code=code).stderr

    def wrong(name, *slots):
        snapshot(name, slots)
        return complaint('--snapshot', name)

    assert '--snapshot' in complaint(code=2)
    for more in (['--image', 'x'], ['--listen', 'x'], ['--record', 'x'],
                 ['--metrics', 'x']):
        assert '--snapshot' in complaint('--snapshot', 'x', *more, code=2)
    harness.run(program, 'serve', '--paused', '--image', 'x', code=2)
    assert 'No such file' in complaint('--snapshot', 'none')
    assert 'twice' in wrong('twice', SLOTS[0], (1, 2 * GIB, 4096, 0))
    assert 'whole pages' in wrong('odd', (1, 4095, 8192, 0))
    assert 'whole pages' in wrong('empty', (1, 4096, 0, 0))
    assert 'whole pages' in wrong('far', (1, 1 << 52, 4096, 0))
    assert 'a number' in wrong('minus', (1, -4096, 4096, 0))
    assert 'a number' in wrong('text', (1, '4096', 4096, 0))
    assert '32 bits' in wrong('slot', (1 << 32, 4096, 4096, 0))
    assert 'overlap' in wrong('over', (1, GIB, 8192, 0), (2, GIB, 4096, 0))
    assert '1 to 256' in wrong('none')
    snapshot('short')
    os.truncate('short/memory-5', 4096)
    assert 'memory-5' in complaint('--snapshot', 'short')
    os.unlink('short/memory-5')
    assert 'memory-5' in complaint('--snapshot', 'short')
    with open('short/migration_config.json', 'w') as file:
        file.write('{"vm_config"')
    assert 'no JSON' in complaint('--snapshot', 'short')
    os.unlink('short/state.json')
    assert 'state.json' in complaint('--snapshot', 'short')


harness.need('kvm', 'uffd')
harness.main(globals())
