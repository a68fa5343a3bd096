# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""examples/vhost-user.c: both sides, of which the device has no rights if it can
be helped; and each of them dies at many moments."""

import os
import random
import socket
import subprocess

import harness

MOMENTS = 16


def device(program):
    """Start it, as a user without rights if we can, and wait for its socket."""
    os.chmod('.', 0o777)
    if os.path.exists('socket'):
        os.unlink('socket')
    without = {} if os.geteuid() else {
        'user': harness.NOBODY, 'group': harness.NOBODY, 'extra_groups': []}
    try:
        process = subprocess.Popen([program, 'socket'], text=True, **without,
                                   stderr=subprocess.PIPE)
    except PermissionError:		# the program is in nobody's reach
        process = subprocess.Popen([program, 'socket'], text=True,
                                   stderr=subprocess.PIPE)
    harness.wait_for(lambda: os.path.exists('socket') or
                     process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
    while not listens():
        pass
    return process


def listens():
    """bind() makes the file, and then comes listen()."""
    with open('/proc/net/unix', encoding='utf-8') as sockets:
        return any(line.split()[3] == '00010000' for line in sockets
                   if line.endswith(' socket\n'))


def vmm(program, copy):
    return subprocess.Popen([program, 'socket', 'image'], text=True,
                            stdout=copy, stderr=subprocess.PIPE)


def kill_at(process, seconds):
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()


def come_and_go():
    """As a VMM that dies at once, if one died before it came to the device."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        try:
            channel.connect('socket')
        except OSError:
            pass


def words(data):
    return memoryview(data).cast('Q')


def test_device_has_touched_all(program):
    for count in 1, 3000:
        image = b''.join(harness.image('image', count, 20))
        back = device(program)
        with open('copy', 'w+b') as copy:
            front = vmm(program, copy)
            harness.finish(front)
            harness.finish(back)
            copy.seek(0)
            ram = copy.read()
        assert len(ram) == len(image)
        assert all(now == (was + 1) % (1 << 64)
                   for now, was in zip(words(ram), words(image)))


def test_device_dies(program):
    """What it has not reached is the image's, and never zeros."""
    numbers = random.Random(8)
    image = b''.join(harness.image('image', 3000))
    codes = []
    for _ in range(MOMENTS):
        back = device(program)
        with open('copy', 'w+b') as copy:
            front = vmm(program, copy)
            kill_at(back, numbers.uniform(0, 0.1))
            _, told = front.communicate(timeout=harness.PATIENCE)
            copy.seek(0)
            ram = copy.read()
        back.communicate()
        codes.append(front.returncode)
        assert front.returncode in (0, 1), (front.returncode, told)
        assert front.returncode == 0 or 'the device' in told or \
            'Connection refused' in told or 'its ' in told, told
        if ram or front.returncode == 0:
            assert len(ram) == len(image), told
            assert all(now - was in (0, 1, 1 - (1 << 64))
                       for now, was in zip(words(ram), words(image)))
    print('the VMM returned', codes)


def test_vmm_dies(program):
    """The device ends too, also if it sleeps on a page."""
    numbers = random.Random(9)
    harness.image('image', 3000)
    codes = []
    for _ in range(MOMENTS):
        back = device(program)
        front = vmm(program, subprocess.DEVNULL)
        kill_at(front, numbers.uniform(0, 0.1))
        front.communicate()
        come_and_go()
        _, told = back.communicate(timeout=harness.PATIENCE)
        codes.append(back.returncode)
        # 0: the VMM had sent it to its end, and was killed after that.
        assert back.returncode in (0, 1), told
    assert 1 in codes, codes
    print('the device returned', codes)


def test_says_what_is_wrong(program):
    assert 'usage' in harness.run(program, code=1).stderr
    assert 'socket' in harness.run(program, 'socket', 'image', code=1).stderr


harness.need('uffd')
harness.main(globals())
