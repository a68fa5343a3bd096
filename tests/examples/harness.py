# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""What the tests of the examples share: each runs one program of examples/ as a
user does, and compares what it says and leaves with what has to be.

A test is a file NAME.py beside this one, for examples/NAME.c. It has a function
test_WHAT(program) for each case, and ends with harness.main(globals()). Meson
runs it with the program's path, or with those of all its programs."""

import fcntl
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'abi'))

import public

PAGE = 4096
SKIP = 77
PATIENCE = 120		# seconds for what takes less than one
KVM_CREATE_VM = 0xae01
NOBODY = 65534


# A VMM whose memory is taken away ends by SIGBUS, with a sanitizer, too.
os.environ['ASAN_OPTIONS'] = ':'.join(
    [os.environ.get('ASAN_OPTIONS', ''), 'handle_sigbus=0'])
# An example leaves its threads to the end of the process.
os.environ['TSAN_OPTIONS'] = ' '.join(
    [os.environ.get('TSAN_OPTIONS', ''), 'report_thread_leaks=0'])


def lacks(what):
    """Why the machine has no 'kvm' or 'uffd'; None: it has."""
    path = {'kvm': '/dev/kvm', 'uffd': '/dev/userfaultfd'}[what]
    try:
        with open(path, 'r+b', 0) as device:
            if what == 'kvm':	# what stands there may be something else
                os.close(fcntl.ioctl(device, KVM_CREATE_VM, 0))
    except OSError as error:
        return f'{path}: {error.strerror}'
    return None


def need(*what):
    for one in what:
        why = lacks(one)
        if why:
            public.skip(one, why)


def run(*command, code=0, **how):
    """Run a program to its end, which has to be `code`."""
    done = subprocess.run([str(word) for word in command], text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=PATIENCE, **how)
    assert done.returncode == code, (command, done)
    return done


def start(*command, stdout=subprocess.PIPE):
    """Start a program that reads from us, and that we read, line by line."""
    return subprocess.Popen([str(word) for word in command], text=True,
                            stdin=subprocess.PIPE, stdout=stdout,
                            stderr=subprocess.PIPE)


def finish(process, code=0):
    """Wait for it. A negative code is the signal that has to end it."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        process.kill()
        raise
    assert process.returncode == code, (process.args, process.returncode,
                                        out, err)
    return out, err


def wait_for(what):
    """Until what() is true."""
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def says(text, word):
    """The numbers in the only line of text that begins with word, and no
    thousands' marks: `word: 12 of 0x34` is [12, 0x34]."""
    lines = [line for line in text.splitlines() if line.startswith(word)]
    assert len(lines) == 1, (word, text)
    found = []
    for part in lines[0][len(word):].replace(',', ' ').split():
        try:
            found.append(int(part, 0))
        except ValueError:
            pass
    return found


def image(path, pages, holes=0, seed=1):
    """An image of so many pages, of which each has other bytes. `holes` of a
    hundred are holes, in runs of 16. Returns the pages' bytes."""
    numbers = random.Random(seed)
    blocks = [numbers.randrange(100) < holes for _ in range(pages // 16 + 1)]
    content = []
    with open(path, 'wb') as file:
        file.truncate(pages * PAGE)
        for page in range(pages):
            hole = blocks[page // 16]
            content.append(bytes(PAGE) if hole else numbers.randbytes(PAGE))
            if not hole:
                file.seek(page * PAGE)
                file.write(content[-1])
    return content


def total(pages):
    """The sum of the words of these pages, as the guests sum up: 64 bits."""
    result = 0
    for page in pages:
        for word in memoryview(page).cast('Q'):
            result += word
    return result % (1 << 64)


def lacks_rights(program, *args):
    """A user without rights is told what is missing, with 77. Only root can
    become such a user, and the file has to be within its reach."""
    if os.geteuid() != 0:
        return
    try:
        done = subprocess.run([program, *map(str, args)], text=True,
                              stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=PATIENCE, user=NOBODY, group=NOBODY,
                              extra_groups=[], cwd='/')
    except PermissionError:
        return
    assert done.returncode in (0, SKIP), done
    assert not done.returncode or '/dev/' in done.stderr, done


def main(names):
    if len(sys.argv) < 2:
        sys.exit('usage: NAME.py PROGRAM...')
    programs = [os.path.realpath(program) for program in sys.argv[1:]]
    failed = 0
    for name, test in list(names.items()):
        if not name.startswith('test_'):
            continue
        with tempfile.TemporaryDirectory() as place:
            os.chdir(place)
            try:
                test(*programs)
                print(f'ok {name[5:]}', flush=True)
            except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
                failed += 1
                print(f'FAILED {name[5:]}: {error!r}', flush=True)
            os.chdir('/')
    sys.exit(bool(failed))
