#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""kvmfault serve, and VMs that are restored from it as Firecracker does it: all
of them see their image and nothing else. Then clients that send what they
should not: each is told of, and the next VM is served.

usage: serve.py KVMFAULT FIRECRACKER-CLIENT [TEST]...
"""

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent
                       / 'examples'))

import harness
import uffd

PAGE = harness.PAGE
HUGE = 2 << 20
KVMFAULT, CLIENT = (os.path.realpath(path) for path in sys.argv[1:3])
NOBODY = harness.NOBODY
KILLS = int(os.environ.get("KVMFAULT_TEST_KILLS", 10))
TROUBLE = 'unresolved', 'warning', 'problem'


class Server:
    """kvmfault serve on the socket `socket`, and all that it says."""

    def __init__(self, image, *options):
        self.events = []
        self.process = subprocess.Popen(
            [KVMFAULT, 'serve', '--listen', 'socket', '--image', image,
             '--json', *options], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        self.await_event('ready')
        self.descriptors = self.count_descriptors()

    def worker(self):
        return self.all('ready')[-1]['pid']

    def kill_worker(self):
        """It may be gone by now, or there is none yet."""
        try:
            os.kill(self.worker(), signal.SIGKILL)
        except ProcessLookupError:
            pass

    def read(self):
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def all(self, event):
        return [one for one in self.events if one['event'] == event]

    def await_event(self, event, count=1):
        """The event of that name that is the count-th; the server lives."""
        def is_there():
            assert self.process.poll() is None or self.all(event), (
                event, self.events, self.process.stderr.read())
            return len(self.all(event)) >= count
        try:
            harness.wait_for(is_there)
        except AssertionError as error:
            raise AssertionError((event, count, self.events)) from error
        return self.all(event)[count - 1]

    def count_descriptors(self):
        """Of the keeper and of the worker."""
        return sum(len(os.listdir(f'/proc/{pid}/fd'))
                   for pid in (self.process.pid, self.worker()))

    def await_forgotten(self):
        """Nothing is left of all clients that went."""
        harness.wait_for(lambda: self.count_descriptors() <= self.descriptors)

    def end(self, how=signal.SIGTERM):
        """It ends in order, and has said nothing on standard error."""
        self.process.send_signal(how)
        code = self.process.wait(harness.PATIENCE)
        self.reader.join()
        told = self.process.stderr.read()
        assert (code, told) == (0, ''), (code, told, self.events)
        assert self.events[-1]['event'] == 'stopped', self.events


@contextlib.contextmanager
def served(image, *options):
    server = Server(image, *options)
    try:
        yield server
        if server.process.poll() is None:
            server.end()
    finally:
        server.process.kill()
        server.process.wait()


def verify(process, image, options, patience=harness.PATIENCE):
    """The client's end, and that it did what it was asked to."""
    out, err = process.communicate(timeout=patience)
    assert process.returncode == 0, (process.args, process.returncode, out, err)
    pages, ballooned = harness.says(out, 'verified:')
    assert pages * PAGE == os.path.getsize(image), out
    assert (ballooned > pages // 10) == ('--balloon' in options), out


def start(image, *options):
    return harness.start(CLIENT, 'socket', image, *options)


@contextlib.contextmanager
def started(image, *options):
    """A client that is there until the end of this."""
    process = start(image, *options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def await_waiting(process):
    line = process.stdout.readline()
    assert line == 'waiting\n', (line, process.communicate())


def go_on(process):
    process.stdin.write('\n')
    process.stdin.flush()


def serves(server, image, *options):
    """One VM from begin to end."""
    before, gone = len(server.events), len(server.all('gone'))
    with started(image, *options) as process:
        verify(process, image, options)
    last = server.await_event('gone', gone + 1)
    pages = os.path.getsize(image) // (HUGE if '--huge' in options else PAGE)
    assert 0 < last['fetched'] + last['zero'] <= pages, last
    if '--balloon' not in options:
        assert last['fetched'] + last['zero'] == pages, last
    server.await_forgotten()
    said = server.events[before:]
    assert not [one for one in said if one['event'] in TROUBLE], said


def make_images():
    harness.image('image', 4096, 30)
    harness.image('other', 4096, 30, seed=2)
    harness.image('large', 16384, 30)


def test_one_region():
    with served('large') as server:
        serves(server, 'large')
        serves(server, 'large', '--vcpus', '5')
    with served('image', '--fill', 'off') as server:
        serves(server, 'image')
    with served('image', '--fill', '20M') as server:
        serves(server, 'image')


def test_many_regions():
    for fill in 'max', 'off':
        with served('image', '--fill', fill) as server:
            for regions in '2', '7', '1500', '4096':
                serves(server, 'image', '--regions', regions)
                assert server.all('came')[-1]['regions'] == int(regions)


def test_balloon():
    for fill in 'max', '20M', 'off':
        with served('large', '--fill', fill) as server:
            serves(server, 'large', '--balloon')
            serves(server, 'large', '--balloon', '--regions', '9',
                   '--vcpus', '3')


def test_huge_pages():
    with started('image', '--huge') as process:
        out, err = process.communicate(timeout=harness.PATIENCE)
    if process.returncode == harness.SKIP:
        print(out, end='')
        return
    # There was no server.
    assert process.returncode == 1 and 'socket' in err, (out, err)
    for fill in 'max', 'off':
        with served('image', '--fill', fill) as server:
            for more in [], ['--balloon'], ['--regions', '3', '--balloon']:
                serves(server, 'image', '--huge', *more)
                assert server.all('came')[-1]['page_size'] == HUGE


def test_other_messages():
    """The same, said in another way."""
    with served('image') as server:
        serves(server, 'image', '--old')
        serves(server, 'image', '--cut', '--regions', '100')
        serves(server, 'image', '--cut', '--old', '--balloon')


def test_three_at_once():
    several = [['--balloon'], ['--regions', '5'],
               ['--regions', '3', '--balloon']]
    for fill in 'max', 'off':
        with served('image', '--fill', fill) as server, \
                contextlib.ExitStack() as stack:
            clients = [stack.enter_context(
                started('image', '--wait', '100', *options))
                for options in several]
            for process in clients:
                await_waiting(process)
            assert len(server.all('came')) == 3, server.events
            assert not server.all('gone'), server.events
            for process in clients:
                go_on(process)
            for process, options in zip(clients, several):
                verify(process, 'image', options)
            server.await_event('gone', 3)
            server.await_forgotten()


def test_killed_in_the_middle():
    """Before the guest runs, stopped in the middle, and at any moment."""
    with served('large', '--fill', '50M') as server:
        for moment, wait in enumerate([0, 3000, 0, 100, 2000, 0]):
            with started('large', '--balloon', '--wait', str(wait)) as process:
                await_waiting(process)
                if moment >= 2:
                    go_on(process)
                process.kill()
                process.wait(harness.PATIENCE)
            # If it was killed while its memory was taken up, it is refused.
            harness.wait_for(lambda: len(server.all('gone')) +
                             len(server.all('refused')) > moment)
            server.await_forgotten()
            assert len(server.all('gone')) == len(server.all('came')), \
                server.events
        serves(server, 'large', '--balloon')


def test_server_ends():
    """It brings what the VM lacks, and ends then."""
    for how in signal.SIGTERM, signal.SIGINT:
        with served('large', '--fill', 'off') as server, \
                started('large', '--wait', '1000') as process:
            await_waiting(process)
            server.end(how)
            assert server.all('draining') and server.all('resident')
            go_on(process)
            verify(process, 'large', ['--wait'])


def test_nobody_reads_its_events():
    """The pipe is full, and VMs are served all the same; a number that a client
    has got is no other's, whichever worker there is."""
    process = subprocess.Popen(
        [KVMFAULT, 'serve', '--listen', 'socket', '--image', 'image', '--json'],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    try:
        worker = json.loads(process.stdout.readline())['pid']
        for _ in range(1500):
            with socket.socket(socket.AF_UNIX) as client, \
                    contextlib.suppress(ConnectionError):
                client.connect('socket')
                client.sendall(b'no')
                client.recv(1)
        os.kill(worker, signal.SIGKILL)
        with started('image') as vm:
            verify(vm, 'image', [])
        process.terminate()
        events = [json.loads(line) for line in process.stdout]
        assert process.wait(harness.PATIENCE) == 0
        assert len(events) < 1500, len(events)
    finally:
        process.kill()
        process.wait()


def test_signal_to_both():
    """As a terminal's, or a service manager's: it counts once."""
    with served('large', '--fill', 'off') as server, \
            started('large', '--wait', '1000') as process:
        await_waiting(process)
        for pid in server.worker(), server.process.pid:
            os.kill(pid, signal.SIGTERM)
        assert server.process.wait(harness.PATIENCE) == 0
        assert server.all('resident'), server.events
        go_on(process)
        verify(process, 'large', ['--wait'])


def test_image_is_replaced():
    """The next worker has the image that the first one had."""
    with open('image', 'rb') as image, open('moving', 'wb') as moving:
        moving.write(image.read())
    with served('moving', '--fill', 'off') as server, \
            started('image', '--wait', '100') as process:
        await_waiting(process)
        with open('other', 'wb') as other:
            other.write(bytes(os.path.getsize('image')))
        os.rename('other', 'moving')
        server.kill_worker()
        go_on(process)
        verify(process, 'image', ['--wait'])


def test_server_ends_at_once():
    """With two signals; what the guest sees until it waits is right."""
    with served('large', '--fill', 'off') as server, \
            started('large', '--wait', '1000') as process:
        await_waiting(process)
        server.process.send_signal(signal.SIGTERM)
        server.await_event('draining')
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(harness.PATIENCE) == 0


def nobody_listens():
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect('socket')
        except ConnectionRefusedError:
            return True
    return False


def kill_one(server, number):
    """Returns which process was killed."""
    if number % 5:
        server.kill_worker()
        return 'worker'
    server.process.kill()
    server.process.wait()
    return 'keeper'


def test_killed_at_any_moment():
    """No VM loses a page, whichever process is killed, and however often."""
    numbers = random.Random(3)
    table = {'worker': 0, 'keeper': 0, 'verified': 0}
    for moment in range(KILLS):
        fill = ('max', '40M', 'off')[moment % 3]
        with served('image', '--fill', fill) as server, \
                started('image', '--balloon') as process:
            time.sleep(numbers.uniform(0, 0.4))
            table[kill_one(server, moment)] += 1
            verify(process, 'image', ['--balloon'])
            table['verified'] += 1
            if server.process.poll() is not None:
                server.kill_worker()
                harness.wait_for(nobody_listens)
    print(f'    {table}')


# ---- clients that send what they should not ----

def message(address, *changes):
    """Two regions that are well, with changes to the second one. A member that
    is changed to None is not there."""
    regions = [{'base_host_virt_addr': address + i * 8 * PAGE, 'size': 8 * PAGE,
                'offset': i * 8 * PAGE, 'page_size': PAGE,
                'page_size_kib': PAGE} for i in (0, 1)]
    for name, value in changes:
        if value is None:
            del regions[1][name]
        else:
            regions[1][name] = value
    return json.dumps(regions).encode()


def bad_texts(address):
    good = message(address)
    yield 'no JSON', b'hello'
    yield 'bytes', bytes(range(128, 256))
    yield 'zeros', bytes(100)
    yield 'garbage of 1 MiB', b'[' + b'x' * (1 << 20)
    yield 'spaces of 2 MiB', b' ' * (2 << 20)
    yield 'an array of 2 MiB', b'[' + b'1,' * (1 << 20) + b'1]'
    yield 'depth', b'[' * 100000
    yield 'object', b'{}'
    yield 'region for array', json.dumps(json.loads(good)[0]).encode()
    for text in 'null', '1', '"x"', '[]', '[1]', '[null]', '[[]]', '[{}]':
        yield text, text.encode()
    for more in b'x', b'\0', b'[]', good:
        yield f'behind it {more}', good + more
    yield 'too many regions', json.dumps(
        [{'base_host_virt_addr': address + i * PAGE, 'size': PAGE,
          'offset': i * PAGE, 'page_size': PAGE} for i in range(4097)]).encode()
    for name in 'base_host_virt_addr', 'size', 'offset':
        yield f'no {name}', message(address, (name, None))
        for value in (-PAGE, 1, PAGE + 1, 1 << 63, (1 << 64) - PAGE, 1 << 64,
                      1e30, 0.5, '4096', [], {}, True):
            yield f'{name} {value}', message(address, (name, value))
    yield 'size 0', message(address, ('size', 0))
    yield 'address 0', message(address, ('base_host_virt_addr', 0))
    yield 'no page size', message(address, ('page_size', None),
                                  ('page_size_kib', None))
    for value in 0, 1, -1, 4, 8192, PAGE + 1, 1 << 62, 1 << 64, '4096':
        yield f'page_size {value}', message(address, ('page_size', value))
        yield f'page_size_kib {value}', message(
            address, ('page_size', None), ('page_size_kib', value))
    yield 'the same address', message(address, ('base_host_virt_addr', address))
    yield 'addresses overlap', message(
        address, ('base_host_virt_addr', address + 7 * PAGE))
    yield 'past the image', message(address, ('offset', 4096 * PAGE))
    yield 'end past the image', message(address, ('offset', 4089 * PAGE))
    yield 'end wraps', message(address, ('size', (1 << 64) - 8 * PAGE))


def connect():
    channel = socket.socket(socket.AF_UNIX)
    channel.settimeout(harness.PATIENCE)
    channel.connect('socket')
    return channel


def give(channel, text, fds):
    """All of it, unless the server hangs up before."""
    try:
        sent = socket.send_fds(channel, [text], fds) if fds else 0
        channel.sendall(text[sent:])
        channel.shutdown(socket.SHUT_WR)
    except (BrokenPipeError, ConnectionResetError):
        pass


def is_closed(channel):
    try:
        return channel.recv(1) == b''
    except ConnectionResetError:
        return True


class Refused:
    """Clients of one server, of which each has to be refused."""

    def __init__(self, server):
        self.server = server
        self.count = 0

    def __call__(self, name, text, fds, word=''):
        with connect() as channel:
            give(channel, text, fds)
            assert is_closed(channel), name
        self.expect(name, word)

    def expect(self, name, word=''):
        """One more, with a reason."""
        self.count += 1
        server = self.server
        try:
            why = server.await_event('refused', self.count)['why']
        except AssertionError as error:
            raise AssertionError((name, server.events[-3:])) from error
        assert len(why) > 10 and re.search(word, why, re.I), (name, why)
        assert len(server.all('refused')) == self.count, (name, server.events)
        assert not server.all('came'), (name, server.events)
        print(f'    {name[:40]}: {why}')


@contextlib.contextmanager
def memory_with_uffd():
    """As a client has it: its address, and the userfaultfd."""
    fd = uffd.open_ready()
    memory = uffd.anonymous(16 * PAGE)
    try:
        yield uffd.register(fd, memory), fd
    finally:
        os.close(fd)


def test_bad_texts():
    with served('image') as server, memory_with_uffd() as (address, fd):
        refused = Refused(server)
        for name, text in bad_texts(address):
            refused(name, text, [fd])
        server.await_forgotten()
        serves(server, 'image')


def other_descriptors(stack):
    """What is no userfaultfd, or no whole one."""
    yield 'memfd', os.memfd_create('memory'), 'memfd'
    yield 'file', os.open('image', os.O_RDONLY), ''
    yield 'null', os.open('/dev/null', os.O_RDWR), ''
    ends = socket.socketpair()
    for end in ends:
        stack.enter_context(end)
    yield 'socket', os.dup(ends[0].fileno()), ''


def test_bad_descriptors():
    with served('image') as server, memory_with_uffd() as (address, fd), \
            contextlib.ExitStack() as stack:
        refused = Refused(server)
        text = message(address)
        refused('no descriptor', text, [])
        refused('the same twice', text, [fd, fd])
        refused('many', text, [fd] * 250)
        for name, other, word in other_descriptors(stack):
            refused(name, text, [other], word)
            refused(f'{name} after it', text, [fd, other], word)
            os.close(other)
        # Forks of Firecracker.
        refused('use_memfd', message(address, ('use_memfd', True)), [fd])
        refused('one object', json.dumps({'regions': []}).encode(), [fd])
        server.await_forgotten()
        serves(server, 'image')


def test_useless_memories():
    """All is well with these messages, and nothing with the memory: nothing is
    there, or not registered, or the userfaultfd is not set up. Whatever it
    makes of these, the server goes on."""
    with served('image') as server, memory_with_uffd() as (address, fd):
        fresh = uffd.open_new()
        unregistered = uffd.open_ready()
        for text, one in ((message(address), fresh),
                          (message(address), unregistered),
                          (message(PAGE << 20), fd),
                          (message(address, ('base_host_virt_addr',
                                             address + (1 << 30))), fd),
                          (message(address, ('page_size', HUGE)), fd)):
            with connect() as channel:
                give(channel, text, [one])
                assert is_closed(channel), text
        os.close(fresh)
        os.close(unregistered)
        server.await_forgotten()
        gone = len(server.all('gone'))
        with started('image', '--balloon') as process:
            verify(process, 'image', ['--balloon'])
        server.await_event('gone', gone + 1)
        server.await_forgotten()


def test_half_messages():
    """The rest never comes: because the client went, or because it waits."""
    with served('image') as server, memory_with_uffd() as (address, fd):
        refused = Refused(server)
        text = message(address)
        with connect() as slow:
            socket.send_fds(slow, [text[:50]], [fd])
            for sent in 0, 1, len(text) // 2, len(text) - 1:
                with connect() as channel:
                    if sent:
                        socket.send_fds(channel, [text[:sent]], [fd])
                refused.expect(f'{sent} bytes')
            serves(server, 'image')
            assert is_closed(slow)
        harness.wait_for(lambda: len(server.all('refused')) == 5)
        server.await_forgotten()


def test_other_user():
    if os.geteuid() != 0:
        print('SKIP: root: only root can become another user')
        return
    with served('image') as server:
        assert os.stat('socket').st_mode & 0o777 == 0o600, os.stat('socket')
        os.chmod('.', 0o755)
        os.chmod('socket', 0o666)
        child = os.fork()
        if not child:
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            with connect() as channel:
                os._exit(0 if is_closed(channel) else 1)
        assert os.waitpid(child, 0)[1] == 0, server.events
        assert server.await_event('refused')['why'], server.events
        os.chmod('socket', 0o600)
        serves(server, 'image')


def main(chosen):
    harness.need('kvm', 'uffd')
    failed = 0
    for name, test in list(globals().items()):
        if not name.startswith('test_') or chosen and name[5:] not in chosen:
            continue
        with tempfile.TemporaryDirectory() as place:
            os.chdir(place)
            make_images()
            try:
                test()
                print(f'ok {name[5:]}', flush=True)
            except (AssertionError, OSError,
                    subprocess.TimeoutExpired) as error:
                failed += 1
                print(f'FAILED {name[5:]}: {error!r}', flush=True)
            os.chdir('/')
    sys.exit(bool(failed))


main(sys.argv[3:])
