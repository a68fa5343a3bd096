# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""examples/postcopy-source.c and postcopy-destination.c: a VM moves while its
guest writes. RAM in the end, to the byte; the numbers on both consoles, none
left out and none twice; and the link between them is cut: at each message, at
random places, for once or for ever, with a word or in silence.

KVMFAULT_TEST_MOVES=20 moves the VM so many times, in the place of 3."""

import ctypes
import os
import random
import shutil
import socket
import subprocess
import threading
import time

import harness

MOVES = int(os.environ.get('KVMFAULT_TEST_MOVES', '3'))
CUTS = 50		# at random places,
CUTS_A_MOVE = 10	# so many in each move
PAGES = 260
TABLES = 4		# pages that are the guest's code, and its tables
SECONDS = 20		# how long a side tries; two where it has to give up
HELLO, TAKE, READ, END, REFUSED = range(1, 6)
ASKED, ANSWERED = range(2)
CLONE_NEWNET = 0x40000000
DELAY = 0.001		# of a link, in seconds, each way
work = {'rounds': 8}	# of the guest: more if it has ended too early


class Cut(Exception):
    pass


class Proxy:
    """The link between the two. Each message goes through policy(direction,
    what, length), which says how many of its bytes pass before the link is cut;
    None: all do. `dead`: no connection is let through any more; `silent`: those
    that are there stay, and nothing comes."""

    def __init__(self, to, policy, delay=0.0, namespace=None):
        self.to, self.policy, self.delay = to, policy, delay
        self.dead = self.silent = False
        self.cuts = 0
        self.lock = threading.Lock()
        self.open = []
        self.port = None
        threading.Thread(target=self.accept, args=(namespace,),
                         daemon=True).start()
        harness.wait_for(lambda: self.port)

    def accept(self, namespace):
        if namespace:		# for this thread, and those that it starts
            with open(f'/run/netns/{namespace}', 'rb') as place:
                assert not ctypes.CDLL(None).setns(place.fileno(), CLONE_NEWNET)
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.port = self.listener.getsockname()[1]
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.socket()
            try:
                if self.dead:
                    raise OSError
                far.connect(self.to)
            except OSError:
                if not self.silent:
                    near.close()
                continue
            for end in near, far:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.open += [near, far]
            threading.Thread(target=self.carry, args=(near, far),
                             daemon=True).start()

    def carry(self, near, far):
        try:
            while True:
                asked = receive(near, 16)
                what = asked[0]
                self.send(far, asked, ASKED, what)
                answer = receive(far, 16)
                length = int.from_bytes(answer[4:8], 'little')
                answer += receive(far, length)
                self.send(near, answer, ANSWERED, what)
        except (OSError, Cut):
            if not self.silent:
                hang_up(near)
                hang_up(far)

    def send(self, to, message, direction, what):
        time.sleep(self.delay)
        with self.lock:
            if self.silent:
                raise Cut
            part = self.policy(self, direction, what, len(message))
        to.sendall(message if part is None else message[:part])
        if part is not None:
            self.cuts += 1
            self.cut()
            raise Cut

    def cut(self):
        """All that is open, at once."""
        with self.lock:
            ends, self.open = self.open, []
        if not self.silent:
            for end in ends:
                hang_up(end)

    def close(self):
        self.dead, self.silent = True, False
        hang_up(self.listener)
        self.cut()


def receive(end, length):
    data = b''
    while len(data) < length:
        part = end.recv(length - len(data))
        if not part:
            raise Cut
        data += part
    return data


def hang_up(end):
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    end.close()


def let_through(*_):
    return None


def cut_at(direction, what, share, nth=1, dead=False, silent=False):
    """The nth such message comes through in part: share of its bytes."""
    seen = []

    def policy(proxy, its_direction, its_what, length):
        if (its_direction, its_what) != (direction, what):
            return None
        seen.append(length)
        if len(seen) != nth:
            return None
        proxy.dead = dead
        proxy.silent = silent
        return int(length * share)
    return policy


def kill_at(side, nth):
    """Kill the 'source' or the 'destination' before it gets what is next."""
    seen = []

    def policy(proxy, direction, what, _length):
        seen.extend([what] if (direction, what) == (ANSWERED, READ) else [])
        if len(seen) == nth and not proxy.cuts:
            harness.wait_for(lambda: side in vars(proxy.move))
            vars(proxy.move)[side].kill()
            proxy.cuts += 1
    return policy


def cut_anywhere(numbers, total, count):
    """At `count` places of all that passes, which is about total bytes."""
    places = sorted(numbers.randrange(total) for _ in range(count))
    passed = [0]

    def policy(_proxy, _direction, _what, length):
        before = passed[0]
        passed[0] += length
        if not places or places[0] >= passed[0]:
            return None
        part = max(places.pop(0) - before, 0)
        passed[0] = before + part
        return part
    return policy


def numbers_in(path):
    with open(path, encoding='ascii') as console:
        return [int(line) for line in console.read().split('\n')[:-1]]


class Move:
    """Both sides, from the start to the end of each. `where`: the network
    namespaces of the two, and the source's address."""

    def __init__(self, programs, policy, ticks, name='', delay=0.0,
                 seconds=SECONDS, where=None):
        self.files = [f'{file}{name}' for file in ('there', 'here', 'copy')]
        here, there = [], []
        address = '127.0.0.1'
        if where:
            there, here = (['ip', 'netns', 'exec', one] for one in where[:2])
            address = where[2]
        with open(self.files[0], 'wb') as console:
            self.source = subprocess.Popen(
                [*there, programs[0], address, '0', str(seconds), 'image',
                 str(work['rounds'])],
                stdout=console, stderr=subprocess.PIPE, text=True)
        port = int(self.source.stderr.readline().split()[1])
        self.proxy = Proxy((address, port), policy, delay,
                           where and where[1])
        self.proxy.move = self
        harness.wait_for(lambda: self.source.poll() is not None or
                         len(numbers_in(self.files[0])) >= ticks)
        with open(self.files[1], 'wb') as console:
            self.destination = subprocess.Popen(
                [*here, programs[1], '127.0.0.1', str(self.proxy.port),
                 str(seconds), self.files[2]],
                stdout=console, stderr=subprocess.PIPE, text=True)

    def end(self):
        """Sets what the two have returned, said, and written."""
        for process in self.destination, self.source:
            try:
                process.wait(timeout=harness.PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        self.proxy.close()
        self.codes = self.source.returncode, self.destination.returncode
        self.said = [process.communicate()[1]
                     for process in (self.source, self.destination)]
        self.there, self.here = (numbers_in(file) for file in self.files[:2])
        return self

    def was_too_late(self):
        return 'has ended here' in self.said[0]

    def check_numbers(self, whole=True):
        """None is missing, none was written twice."""
        both = self.there + self.here
        assert both == list(range(1, len(both) + 1)), (
            self.there[-3:], self.here[:3], self.codes, self.said)
        assert not whole or len(both) == (PAGES - TABLES) * work['rounds'], (
            len(both), self.codes, self.said)

    def check_ram(self, image):
        with open(self.files[2], 'rb') as file:
            ram = file.read()
        assert len(ram) == len(image)
        at = TABLES * harness.PAGE
        assert ram[:at - harness.PAGE] == tables()
        assert ram[at:] == expected(image)[at:]


def tables():
    pages = [[0x1027], [0x2027], [0xe7 + (page << 21) for page in range(512)]]
    return b''.join(b''.join(entry.to_bytes(8, 'little') for entry in page)
                    .ljust(harness.PAGE, b'\0') for page in pages)


def expected(image):
    ram = bytearray(image)
    words = memoryview(ram).cast('Q')
    for number, word in enumerate(words):
        words[number] = (word + work['rounds']) % (1 << 64)
    return ram


def move(programs, image, make_policy=lambda: let_through, ticks=100, **how):
    """Move the VM, and look at all of it. If its guest has ended before it was
    taken, it was too fast: again, with more to do."""
    while True:
        it = Move(programs, make_policy(), ticks, **how).end()
        if not it.was_too_late():
            break
        work['rounds'] *= 2
    assert it.codes == (0, 0), (it.codes, it.said)
    it.check_numbers()
    it.check_ram(image)
    assert len(it.there) >= ticks and it.here
    return it


def new_image():
    return b''.join(harness.image('image', PAGES))


def test_moves_while_the_guest_writes(*programs):
    numbers = random.Random(17)
    image = new_image()
    for _ in range(MOVES):
        it = move(programs, image, ticks=numbers.randrange(1, 500), delay=DELAY)
        for word in 'downtime:', 'first instruction:', 'resident:':
            assert len(harness.says(it.said[1], word)) == 1, it.said
    print(f'moved {MOVES} times; the last time:', it.said[1].split('\n')[:-1])


def test_link_is_cut_at_a_message(*programs):
    image = new_image()
    for direction, what, share in (
            (ASKED, HELLO, 1), (ASKED, TAKE, 0), (ASKED, TAKE, 0.5),
            (ASKED, TAKE, 1), (ANSWERED, TAKE, 0), (ANSWERED, TAKE, 0.5),
            (ANSWERED, TAKE, 1), (ANSWERED, READ, 0.5), (ASKED, END, 0.5)):
        it = move(programs, image, lambda: cut_at(direction, what, share))
        assert it.proxy.cuts == 1, (direction, what, share)


def test_link_is_cut_anywhere(*programs):
    numbers = random.Random(18)
    image = new_image()
    cuts = moves = 0
    while cuts < CUTS:
        it = move(programs, image, lambda: cut_anywhere(
            numbers, len(image), CUTS_A_MOVE), numbers.randrange(1, 500))
        cuts += it.proxy.cuts
        moves += 1
    print(f'{cuts} cuts in {moves} moves')


def test_link_is_cut_for_ever(*programs):
    """Or one side dies. Both end, each with a reason, and the VM ran in one
    place at a time."""
    image = new_image()
    cases = (	# the cut, and what source and destination return
        ((ASKED, TAKE, 0), (0, 1)), ((ASKED, TAKE, 1), (3, 1)),
        ((ANSWERED, TAKE, 0), (3, 1)), ((ANSWERED, TAKE, 0.5), (3, 1)),
        ((ANSWERED, READ, 0.5, 3), (3, 1)), ((ASKED, END, 0), (3, 0)),
        ((ANSWERED, END, 0), (0, 0)))
    while True:
        moves = [(cut, codes, Move(programs, cut_at(
            *cut, dead=True, silent=silent), 100,
            f'{number}{silent}', seconds=2))
            for silent in (False, True)
            for number, (cut, codes) in enumerate(cases)]
        moves += [((side, READ), codes, Move(
            programs, kill_at(side, 3), 100, side, seconds=2))
            for side, codes in (('source', (-9, 1)), ('destination', (3, -9)))]
        if all([it.end().proxy.cuts for _, _, it in moves]):
            break		# no guest has ended too early
        work['rounds'] *= 2
    for cut, codes, it in moves:
        if cut == (ANSWERED, END, 0) and it.codes == (3, 0):
            codes = it.codes	# in silence the source has to wait for it
        assert it.codes == codes, (cut, it.codes, it.said)
        assert all(told for told, code in zip(it.said, codes) if code >= 0)
        it.check_numbers(whole=0 in codes)
        assert bool(it.here) == (cut[1] != TAKE) or cut[1] == READ, cut
        if codes[1] == 0:
            it.check_ram(image)


def test_first_taker_has_the_vm(*programs):
    """We are the destination."""
    new_image()
    with open('there', 'wb') as console:
        source = subprocess.Popen(
            [programs[0], '127.0.0.1', '0', str(SECONDS), 'image', '1000000'],
            stdout=console, stderr=subprocess.PIPE, text=True)
    at = '127.0.0.1', int(source.stderr.readline().split()[1])

    def ask(end, what, length, value):
        end.sendall(what.to_bytes(4, 'little') + length.to_bytes(4, 'little') +
                    value.to_bytes(8, 'little'))
        answer = receive(end, 16)
        told = int.from_bytes(answer[:4], 'little')
        bytes_ = receive(end, int.from_bytes(answer[4:8], 'little'))
        return bytes_ if told == what else told

    whole = PAGES * harness.PAGE
    with socket.create_connection(at) as ours, \
            socket.create_connection(at) as theirs:
        assert ask(ours, HELLO, 8, 0) == whole.to_bytes(8, 'little')
        for refused in ((READ, 4096, 0), (END, 0, 0), (TAKE, 0, 0),
                        (TAKE, 1 << 20, 5), (HELLO, 9, 0), (77, 0, 0)):
            assert ask(ours, *refused) == REFUSED, refused
        runs = len(numbers_in('there'))
        harness.wait_for(lambda: len(numbers_in('there')) > runs)
        state = ask(ours, TAKE, 16, 5)
        stopped = numbers_in('there')
        assert ask(theirs, TAKE, 16, 6) == REFUSED
        assert ask(theirs, READ, 4096, 0) == REFUSED
        assert ask(theirs, TAKE, 16, 5) == state
        assert ask(theirs, READ, 3 * harness.PAGE, 0) == tables()
        assert len(ask(ours, READ, 10, whole - 10)) == 10
        for offset, length in ((whole, 1), (whole - 10, 11), (1, whole),
                               ((1 << 64) - 1, 2)):
            assert ask(ours, READ, length, offset) == REFUSED
        assert ask(ours, END, 0, 0) == b''
    _, told = harness.finish(source)
    assert 'has gone' in told, told
    assert numbers_in('there') == stopped


def command(*words):
    done = subprocess.run(words, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=harness.PATIENCE)
    return done.returncode, done.stdout.strip()


def test_moves_between_network_namespaces(*programs):
    if os.geteuid() or not shutil.which('ip'):
        print('skipped: no root, or no ip(8)')
        return
    one, two = (f'kvmfault-{os.getpid()}-{side}' for side in 'ab')
    wire = f'kf{os.getpid()}'
    try:
        for words in (
                ('netns', 'add', one), ('netns', 'add', two),
                ('link', 'add', wire, 'netns', one, 'type', 'veth', 'peer',
                 'name', wire, 'netns', two),
                ('-n', one, 'addr', 'add', '192.0.2.1/24', 'dev', wire),
                ('-n', two, 'addr', 'add', '192.0.2.2/24', 'dev', wire),
                ('-n', one, 'link', 'set', wire, 'up'),
                ('-n', two, 'link', 'set', wire, 'up'),
                ('-n', two, 'link', 'set', 'lo', 'up')):
            code, told = command('ip', *words)
            if code:
                print('skipped: ip', *words, 'says', told)
                return
        delays = [shutil.which('tc') and not command(
            'tc', '-n', side, 'qdisc', 'add', 'dev', wire, 'root', 'netem',
            'delay', '1ms')[0] for side in (one, two)]
        it = move(programs, new_image(), delay=0 if all(delays) else DELAY,
                  where=(one, two, '192.0.2.1'))
        print('delayed by', 'netem:' if all(delays) else 'the proxy:',
              it.said[1].split('\n')[:-1])
    finally:
        for side in one, two:
            command('ip', 'netns', 'delete', side)


def test_says_what_is_wrong(source, destination):
    assert 'usage' in harness.run(source, code=1).stderr
    assert 'usage' in harness.run(destination, code=1).stderr
    assert 'no-image' in harness.run(source, '127.0.0.1', 0, 1, 'no-image', 1,
                                     code=1).stderr
    with socket.socket() as listener:	# bound, and it does not listen
        listener.bind(('127.0.0.1', 0))
        assert '127.0.0.1' in harness.run(
            destination, '127.0.0.1', listener.getsockname()[1], 1, 'copy',
            code=1).stderr
    new_image()
    harness.lacks_rights(source, '127.0.0.1', 0, 1, os.path.abspath('image'), 1)


harness.need('kvm', 'uffd')
harness.main(globals())
