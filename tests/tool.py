#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""The program kvmfault and the example, as a user runs them.

usage: tool.py KVMFAULT MINIMAL README MINIMAL.C [TEST]...

KVMFAULT may be a command that runs it on a kernel of its own: 'run.py ...'
TEST 'anywhere' is all of those that need nothing of the machine.
"""

import contextlib
import fcntl
import json
import os
import pty
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib

MINIMAL, README, MINIMAL_C = sys.argv[2:5]
KVMFAULT = shlex.split(sys.argv[1])
SKIP = 77
KVM_CREATE_VM = 0xae01


def need(what, path):
    """As tests/need.c does."""
    try:
        with open(path, 'r+b', 0) as device:
            if what == 'kvm':	# what stands there may be something else
                os.close(fcntl.ioctl(device, KVM_CREATE_VM, 0))
        return
    except OSError as error:
        why = f'{what}: {path}: {error.strerror}'
    if what in os.environ.get('KVMFAULT_REQUIRE', '').split(','):
        sys.exit(f'REQUIRED, but missing: {why}')
    print(f'SKIP: {why}')
    sys.exit(SKIP)


def run(*command, code=0, **how):
    done = subprocess.run(command, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, **how)
    assert done.returncode == code, (command, done)
    return done


def demo(*options, code=0):
    return run(*KVMFAULT, 'demo', *options, code=code)


def verified(*options):
    report = json.loads(demo('--json', *options).stdout)
    assert report['verified'] is True, report
    assert report['fetched'] + report['zero'] == report['pages'], report
    assert report['filled'] + report['demand'] >= report['pages'] or \
        report['delivery'] == 'exit', report	# which brings many at once
    assert report['first_instruction_ms'] > 0, report
    assert report['resident_ms'] > 0, report
    assert report['settled'] is ('--settle' in options), report
    assert ('working_set_ms' in report) is ('--working-set' in options), report
    assert report['pages'] * 4096 == report['bytes'], report
    assert report['seconds'] > 0, report
    assert set(report['faults']) == {'exit', 'marker', 'unannotated', 'mmio',
                                     'emulation', 'uffd'}, report
    return report


def test_ram():
    report = verified('--memory', '16M', '--vcpus', '3', '--delivery', 'uffd')
    assert report['delivery'] == 'uffd' and report['vcpus'] == 3, report
    assert report['faults']['marker'] == 0, report
    assert report['faults']['uffd'] >= report['pages'] == 4096, report


def test_auto_says_what_and_why():
    report = verified('--memory', '4M')
    others = {'uffd', 'marker-exit', 'kernel-exit'} - {report['delivery']}
    assert set(report['not_in_force']) == others, report
    assert all(report['not_in_force'].values()), report
    text = demo('--memory', '4M').stdout
    for mode in others:
        assert f'not {mode}' in text, text


def test_marker_exit():
    for more in [], ['--no-irqchip']:
        report = verified('--memory', '32M', '--delivery', 'marker-exit',
                          *more)
        assert report['delivery'] == 'marker-exit', report
        assert bool(report['ticks']) != bool(more), report
        faults = report['faults']
        assert faults['marker'] >= 0.9 * report['pages'], report
        assert faults['uffd'] <= report['bytes'] / (2 << 20), report


def test_kernel_exit_or_why_not():
    done = subprocess.run([*KVMFAULT, 'demo', '--json', '--memory', '4M',
                           '--delivery', 'kernel-exit'],
                          capture_output=True, text=True)
    if done.returncode:
        assert done.returncode == 1 and not done.stdout, done
        assert 'kernel-exit' in done.stderr, done
        assert 'KVM_MEM_USERFAULT' in done.stderr, done
    else:
        report = json.loads(done.stdout)
        assert report['verified'] is True, report
        assert report['faults']['exit'] >= 0.9 * report['pages'], report


def only_kernel_exit():
    report = verified('--memory', '16M', '--delivery', 'kernel-exit')
    assert report['delivery'] == 'kernel-exit', report
    assert report['faults']['exit'] >= 0.9 * report['pages'], report
    assert verified('--memory', '4M')['delivery'] == 'kernel-exit', report


def test_more_vcpus_than_cores():
    verified('--memory', '4M', '--vcpus', '64')


def test_one_page():
    assert verified('--memory', '4096', '--vcpus', '1')['pages'] == 1


def test_guest_memfd():
    report = verified('--scenario', 'guest-memfd', '--memory', '16M')
    assert report['faults']['exit'] >= 2, report
    assert report['resolved']['renew'] == report['faults']['exit'], report
    assert report['faults']['uffd'] == 0, report
    for vcpus in '1', '3', '7':
        report = verified('--scenario', 'guest-memfd', '--memory', '1M',
                          '--vcpus', vcpus)
        assert report['faults']['exit'] >= 2, report


def test_fill():
    for delivery in 'uffd', 'marker-exit':
        for more in [], ['--settle'], ['--holes', '50', '--settle']:
            report = verified('--memory', '16M', '--delivery', delivery,
                              '--fill', 'max', *more)
            assert 0 < report['filled'] <= report['pages'], report
    report = verified('--memory', '4M', '--fill', '1')
    assert report['filled'] <= report['pages'] / 2, report	# one step or two
    assert verified('--memory', '4M', '--settle')['filled'] == 0


def test_holes():
    report = verified('--memory', '16M', '--holes', '80')
    assert report['zero'] == 40 * 80 + 76, report
    assert verified('--memory', '4M', '--holes', '100')['zero'] == 1024
    assert verified('--memory', '4M', '--holes', '0')['zero'] == 0
    text = demo('--memory', '4M', '--holes', '50').stdout
    assert 'zero          500 pages' in text, text


def test_a_working_set_that_was_recorded():
    with tempfile.TemporaryDirectory() as place:
        recorded = os.path.join(place, 'set')
        for delivery in 'uffd', 'marker-exit':
            how = ['--memory', '16M', '--delivery', delivery]
            first = verified(*how, '--record', recorded)
            text = run(*KVMFAULT, 'working-set', 'print', recorded).stdout
            assert 'touched   16777216 bytes' in text, text
            second = verified(*how, '--working-set', recorded)
            assert first['demand'] >= first['pages'] == 4096, first
            assert second['demand'] <= first['demand'] / 10, (first, second)
            assert second['filled'] == 4096, second
            assert second['working_set_ms'] <= \
                second['first_instruction_ms'], second
            # It has everything: there is nothing to fill, or to add.
            for more in [], ['--fill', 'max']:
                report = verified(*how, '--working-set', recorded, '--settle',
                                  *more)
                assert report['demand'] == 0, report
            verified(*how, '--working-set', recorded, '--record', recorded)
            assert run(*KVMFAULT, 'working-set', 'print',
                       recorded).stdout == text
        demo('--memory', '1M', '--record', '/dev/full', code=1)


def test_a_working_set_of_a_part():
    """What is behind the RAM's end is left out; a guest's own come on top."""
    with tempfile.TemporaryDirectory() as place:
        image, part = (os.path.join(place, name) for name in ('image', 'part'))
        with open(image, 'wb') as file:
            file.write(os.urandom(4 << 20))
        os.utime(image, ns=(0, 5_000_000_007))
        identity = struct.pack('=qq', 5, 7)
        runs = [(700, 5), (4, 2), (254, 4), (20, 1)]
        how = ['--image', image, '--memory', '1M', '--working-set', part]
        working_set(part, runs, identity, 4 << 20)
        report = verified(*how, '--record', part)
        assert report['filled'] == 2 + 2 + 1, report
        printed = json.loads(run(*KVMFAULT, 'working-set', 'print', part,
                                 '--json').stdout)
        assert printed['runs'][:2] == [[700 * 4096, 5 * 4096],
                                       [4 * 4096, 2 * 4096]], printed
        assert printed['bytes'] == (256 + 5 + 2) * 4096, printed
        # Of another image, or the image has changed.
        for wrong in ((runs, identity, 1 << 30), (runs, b'\x01', 4 << 20)):
            working_set(part, *wrong)
            done = demo(*how, code=1)
            assert f'{part} is the working set of another' in done.stderr, done


def test_image():
    with tempfile.NamedTemporaryFile() as image:
        image.write(os.urandom(1 << 20) + b'tail')
        image.flush()
        assert verified('--image', image.name)['bytes'] == 1 << 20
        assert verified('--image', image.name, '--memory', '64K',
                        '--vcpus', '2')['bytes'] == 1 << 16


def test_an_image_that_is_too_short():
    with tempfile.NamedTemporaryFile() as image:
        image.write(os.urandom(1 << 20))
        image.flush()
        done = demo('--image', image.name, '--memory', '2M', code=1)
        assert 'shorter' in done.stderr, done
        demo('--image', image.name, '--memory', '2M', '--scenario',
             'guest-memfd', code=1)
    done = demo('--image', image.name, code=1)
    assert image.name in done.stderr, done


def test_an_image_whose_length_lies():
    """A sparse file that can be read is fine; /proc/self/mem is not."""
    done = demo('--image', '/proc/self/mem', '--memory', '4M', code=1)
    assert done.stderr, done
    with tempfile.NamedTemporaryFile() as image:
        image.truncate(1 << 20)
        verified('--image', image.name)


def test_table():
    text = demo('--memory', '4M').stdout
    assert text.endswith('verified: true\n'), text
    for word in ('faults by kind', 'uffd', 'copy', 'pages/s', 'latency',
                 'demand', 'filled', 'resident'):
        assert word in text, (word, text)


def test_progress_is_for_terminals():
    assert demo('--memory', '4M').stderr == ''
    master, slave = pty.openpty()
    done = subprocess.run([*KVMFAULT, 'demo', '--memory', '4M', '--json'],
                          stdout=subprocess.PIPE, stderr=slave)
    os.close(slave)
    seen = os.read(master, 1 << 16)
    assert done.returncode == 0 and b'100 %' in seen, seen
    json.loads(done.stdout)


def anywhere_usage():
    for wrong in (['--vcpus', '0'], ['--vcpus', '257'], ['--vcpus', 'many'],
                  ['--memory', '4Q'], ['--memory', '-4M'], ['--memory', '0'],
                  ['--memory', '5000'], ['--memory', '4K', '--vcpus', '2'],
                  ['--memory', '99999999999T'], ['--memory', '0x10M'],
                  ['--memory', ''], ['--scenario', 'x'],
                  ['--delivery', 'x'], ['--nonsense'], ['extra'],
                  ['--fill', '0'], ['--fill', 'fast'], ['--fill', ''],
                  ['--holes', '101'], ['--holes', 'x'], ['--holes', '-1'],
                  ['--holes', '5', '--image', MINIMAL_C],
                  ['--holes', '5', '--source', 'nbd://localhost'],
                  ['--image', MINIMAL_C, '--source', 'nbd://localhost'],
                  ['--record', 'x', '--fill', 'max'],
                  *(['--scenario', 'guest-memfd', *more] for more in
                    (['--fill', '1M'], ['--record', 'x'], ['--settle'],
                     ['--working-set', 'x'], ['--holes', '5']))):
        done = demo(*wrong, code=2)
        assert done.stderr and not done.stdout, (wrong, done)
    for wrong in (['--vcpus', '1,0'], ['--vcpus', ''], ['--memory', '5000'],
                  ['--memory', '4K', '--vcpus', '2'], ['--modes', 'uffd,x'],
                  ['--modes', 'uffd,uffd'], ['--window', '0'],
                  ['--window', '1x'], ['--latency-us', '-1'],
                  ['--pattern', 'x'], ['--page-size', '5K'],
                  ['--threads', '0'], ['--runs', '0'], ['--source', 'x'],
                  ['--resolver', 'x'], ['--access', 'x'], ['--nonsense'],
                  ['--plot'], ['extra']):
        done = bench(*wrong, code=2)
        assert done.stderr and not done.stdout, (wrong, done)
    run(*KVMFAULT, code=2)
    run(*KVMFAULT, 'nonsense', code=2)
    run(*KVMFAULT, 'probe', 'extra', code=2)
    for wrong in ([], ['print'], ['print', 'a', 'b'], ['merge', 'a'],
                  ['merge', 'a', 'b', '--json'], ['x', 'a'], ['--nonsense']):
        done = run(*KVMFAULT, 'working-set', *wrong, code=2)
        assert done.stderr and not done.stdout, (wrong, done)
    for command in ([], ['bench'], ['demo'], ['explain'], ['probe'],
                    ['working-set']):
        assert 'Usage' in run(*KVMFAULT, *command, '--help').stdout
    assert run(*KVMFAULT, '--version').stdout.startswith('kvmfault ')


def shell(command, code=0):
    """With $KVMFAULT as the program."""
    return run('sh', '-c', command, code=code,
               env={**os.environ, 'KVMFAULT': KVMFAULT[0]})


def anywhere_no_image():
    """What is none is refused before anything else, and waits for nobody."""
    with tempfile.TemporaryDirectory() as directory:
        fifo = os.path.join(directory, 'fifo')
        os.mkfifo(fifo)
        for path, why in ((directory, 'Is a directory'),
                          (fifo, 'neither a regular file nor a block'),
                          ('/dev/null', 'neither a regular file nor a block'),
                          (os.path.join(directory, 'none'), 'No such file')):
            for more in [], ['--memory', '1M']:
                done = demo('--image', path, *more, code=1)
                assert done.stderr.startswith(
                    f'kvmfault: cannot use {path} as an image: {why}'), done


def without_nbd(directory):
    """Of a program that has no libnbd: it says so."""
    uri = f'nbd+unix:///?socket={directory}/none'
    done = demo('--source', uri, code=1)
    assert done.stderr.startswith('kvmfault: ') and uri in done.stderr, done
    return 'built without libnbd' in done.stderr


def anywhere_no_server():
    with tempfile.TemporaryDirectory() as directory:
        if not without_nbd(directory):
            for uri, why in (
                    (f'nbd+unix:///?socket={directory}/none',
                     'No such file or directory'),
                    ('http://localhost/', 'unknown NBD URI scheme'),
                    (directory, 'does not have a scheme')):
                done = demo('--source', uri, code=1)
                assert done.stderr.startswith(
                    f'kvmfault: NBD source {uri}: cannot be opened: '), done
                assert why in done.stderr, done


def anywhere_too_much():
    """Nothing is filled before it is known to fit."""
    for command in (['demo', '--memory', '1T'],
                    ['demo', '--memory', '8388608T'],
                    ['bench', '--memory', '1M,1T']):
        done = run(*KVMFAULT, *command, code=1)
        assert 'MiB of memory' in done.stderr, done


def number(value):
    """Of the body of a working set's file."""
    low = value & 0x7f
    return bytes([low]) if value < 0x80 else \
        bytes([low | 0x80]) + number(value >> 7)


def working_set(path, runs, identity=b'', image_length=1 << 30):
    """A file as kvmfault_working_set(5) has it."""
    body, end = b'', 0
    for page, count in runs:
        step = page - end
        body += number(2 * step if step >= 0 else -2 * step - 1) + number(count)
        end = page + count
    data = struct.pack('<8sIIQ32sQQ', b'KVMFWSET', 1, 12, image_length,
                       identity, len(runs), len(body)) + body
    with open(path, 'wb') as file:
        file.write(data + struct.pack('<I', zlib.crc32(data)))
    return path


def anywhere_working_set():
    with tempfile.TemporaryDirectory() as place:
        one, two, other, out, cut = (os.path.join(place, name) for name in
                                     ('one', 'two', 'other', 'out', 'cut'))
        working_set(one, [(1000, 1), (4, 2)], b'\xab')
        working_set(two, [(4, 3), (77777, 500), (1000, 1)], b'\xab')
        working_set(other, [(5, 1)])
        command = [*KVMFAULT, 'working-set']
        text = run(*command, 'print', one).stdout
        for word in ('1073741824 bytes', 'ab00', '12288 bytes in 2 runs',
                     '0x3e8000', '0x2000'):
            assert word in text, (word, text)
        assert run(*command, 'merge', out, one, two).stdout == ''
        report = json.loads(run(*command, 'print', out, '--json').stdout)
        assert report == {
            'image_length': 1 << 30, 'identity': 'ab' + 31 * '00',
            'bytes': 504 * 4096,
            'runs': [[page * 4096, count * 4096] for page, count in
                     ((1000, 1), (4, 3), (77777, 500))]}, report
        run(*command, 'merge', one, one, two)
        with open(one, 'rb') as file, open(out, 'rb') as same:
            data = file.read()
            assert data == same.read()
        # What is wrong is said, and OUT stays as it is.
        with open(cut, 'wb') as file:
            file.write(data[:-1])
        for files, why in (([cut], 'is cut'), ([one, other], 'another image'),
                           ([one, cut], 'is cut'), ([MINIMAL_C], 'no working'),
                           ([place], 'Is a directory'),
                           ([one + 'x'], 'No such file')):
            done = run(*command, 'merge', out, *files, code=1)
            assert files[-1] in done.stderr and why in done.stderr, done
            done = run(*command, 'print', files[-1], code=1) if \
                files[-1] != other else done
            assert not done.stdout, done
        with open(out, 'rb') as file:
            assert file.read() == data
        done = run(*command, 'merge', place, one, code=1)
        assert 'cannot save' in done.stderr, done
        done = run(*command, 'merge', '/dev/full', one, code=1)
        assert 'No space left' in done.stderr, done
        shell(f'$KVMFAULT working-set print {one} >/dev/full', code=1)


def anywhere_demo_without_its_working_set():
    """What is none is refused before the guest is made."""
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, 'set')
        with open(working_set(path, [(4, 2), (1000, 1)]), 'rb') as file:
            data = bytearray(file.read())
        data[-5] ^= 1
        for content, why in ((data, 'no working set, or it has changed'),
                             (data[:-1], 'the file is cut'),
                             (b'', 'the file is cut'), (None, 'No such file')):
            if content is None:
                os.unlink(path)
            else:
                with open(path, 'wb') as file:
                    file.write(content)
            done = demo('--memory', '1M', '--working-set', path, code=1)
            assert done.stderr.startswith(f'kvmfault: cannot load {path}: '), \
                done
            assert why in done.stderr and not done.stdout, done


def anywhere_output_is_lost():
    for command in ('--help', '--version', 'demo --help', 'bench --help',
                    'probe', 'probe --json'):
        for where in '/dev/full', '&-':
            done = shell(f'$KVMFAULT {command} >{where}', code=1)
            assert 'cannot write to the standard output' in done.stderr, done


def anywhere_closed_descriptors():
    """What is opened in their place is taken for no standard descriptor."""
    expected = run(*KVMFAULT, 'probe').stdout
    for closed in '<&-', '2>&-', '<&- 2>&-':
        assert shell(f'$KVMFAULT probe {closed}').stdout == expected, closed


def test_probe():
    report = json.loads(run(*KVMFAULT, 'probe', '--json').stdout)
    answers = {'yes', 'no', 'could not ask'}
    assert len(report) == 22, report
    for name, finding in report.items():
        assert finding['answer'] in answers, (name, finding)
        assert (finding['answer'] != 'could not ask' or
                finding['error'].startswith('E')), (name, finding)
    table = run(*KVMFAULT, 'probe').stdout
    for name in report:
        assert name in table, (name, table)


def bench(*options, code=0):
    return run(*KVMFAULT, 'bench', '--runs', '2', '--memory', '1M', *options,
               code=code)


def measured(*options):
    report = json.loads(bench('--json', *options).stdout)
    assert set(report['machine']) == {'kernel', 'machine', 'cores', 'in_a_vm',
                                      'kvm', 'paging', 'load'}, report
    for result in report['results']:
        assert len(result['seconds']) == 2, result
        assert min(result['seconds']) > 0, result
        assert result['pages_per_second'] > 0, result
        assert result['cpu_us_per_page'] > 0, result
        low, high = result['quartiles']
        assert low <= result['pages_per_second'] <= high, result
        assert set(result['faults']) >= {'exit', 'marker', 'uffd'}, result
    results = {(result['mode'], result['vcpus']): result
               for result in report['results']}
    if '--modes' not in options:	# all are there, or it says why not
        assert ({mode for mode, vcpus in results} |
                set(report['unavailable'])) == {
            'raw-uffd', 'raw-exit', 'uffd', 'uffd-sleep', 'uffd-async',
            'marker-exit', 'kernel-exit', 'mmap', 'resident'}, report
    return results


def test_bench():
    results = measured('--vcpus', '1,3', '--latency-us', '10', '--window', '4')
    modes = {mode for mode, vcpus in results}
    assert modes >= {'uffd', 'uffd-async', 'raw-uffd', 'mmap',
                     'resident'}, modes
    for (mode, vcpus), result in results.items():
        fetches = mode not in ('mmap', 'resident')
        assert result['vcpus'] in (1, 3), result
        assert result['latency_us'] == (10 if fetches else 0), result
        assert result['pages'] == 256, result
        assert result['pattern'] == 'sequential', result
        faults = sum(result['faults'].values())
        if mode == 'raw-uffd':
            assert result['window'] == 1, result
            assert result['faults']['uffd'] == faults >= 256, result
        elif fetches:
            assert result['window'] == 4, result
            assert 64 <= faults < 128, result
        else:
            assert faults == 0, result


def test_bench_axes():
    for options in (['--pattern', 'random', '--access', 'write'],
                    ['--pattern', 'strided', '--source', 'file'],
                    ['--pattern', 'shared', '--threads', '2'],
                    ['--resolver', 'continue', '--window', '3']):
        results = measured('--vcpus', '2', *options)
        for result in results.values():
            key = options[0].removeprefix('--')
            assert result[key] == options[1], result
    results = measured('--memory', '1G', '--touch', '50', '--modes', 'uffd')
    assert results['uffd', 1]['faults']['uffd'] >= 50, results


def test_bench_table():
    text = bench('--modes', 'resident,uffd').stdout
    for word in ('Linux', 'paging', 'pages/s', 'resident', 'uffd'):
        assert word in text, (word, text)
    assert 'raw-uffd' not in text, text


def test_bench_plot():
    with tempfile.TemporaryDirectory() as directory:
        plot = os.path.join(directory, 'picture.svg')
        done = bench('--plot', plot, '--modes', 'resident,uffd')
        with open(os.path.join(directory, 'picture.dat')) as data:
            text = data.read()
        assert 'resident' in text and 'uffd' in text, text
        assert os.path.exists(plot) or 'no gnuplot' in done.stderr, done


def test_a_mode_that_cannot_be_had():
    done = bench('--json', '--modes', 'mmap', '--page-size', '2M',
                 '--memory', '4M', code=1)
    assert 'mmap is not available: ' in done.stderr, done
    report = json.loads(done.stdout)
    assert not report['results'] and report['unavailable']['mmap'], report


def test_minimal():
    assert run(MINIMAL).stdout == 'ABCDEFGHIJKLMNOP\n'
    run('sh', '-c', f'"{MINIMAL}" >/dev/full', code=1)


@contextlib.contextmanager
def nbdkit(directory, *arguments):
    """It is there when its file with its pid is."""
    pid = os.path.join(directory, 'pid')
    server = subprocess.Popen(['nbdkit', '-f', '--exit-with-parent', '-P', pid,
                               *arguments])
    try:
        while not os.path.exists(pid):
            assert server.poll() is None, 'nbdkit has ended'
            time.sleep(0.01)
        yield
    finally:
        server.kill()
        server.wait()
        os.remove(pid)


def free_port():
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def test_nbd_source():
    """Over a socket and over TCP, by faults, by a fill, and by conversions."""
    if len(KVMFAULT) > 1:	# a kernel of its own, on which there is no server
        return
    with tempfile.TemporaryDirectory() as directory:
        if without_nbd(directory):
            return
        if not shutil.which('nbdkit'):
            assert 'nbd' not in os.environ.get('KVMFAULT_REQUIRE', '').split(
                ','), 'REQUIRED, but missing: nbd'
            return
        image = os.path.join(directory, 'image')
        with open(image, 'wb') as file:
            for page in range(4096):	# every other MiB is a hole
                if page % 512 < 256:
                    file.seek(page * 4096)
                    file.write(os.urandom(4096))
            file.truncate(16 << 20)
        path = os.path.join(directory, 'socket')
        uri = f'nbd+unix:///?socket={path}'
        with nbdkit(directory, '-U', path, 'file', image):
            report = verified('--source', uri)
            assert report['zero'] == 2048, report
            verified('--source', uri, '--fill', 'max', '--settle')
            verified('--source', uri, '--delivery', 'uffd', '--memory', '3M')
            verified('--source', uri, '--scenario', 'guest-memfd')
        port = str(free_port())
        with nbdkit(directory, '-i', '127.0.0.1', '-p', port, 'file', image):
            verified('--source', 'nbd://127.0.0.1:' + port)


def test_output_of_a_run_is_lost():
    for command in ('demo --memory 1M', 'demo --memory 1M --json',
                    'bench --memory 1M --runs 1 --modes resident'):
        shell(f'$KVMFAULT {command} >/dev/full', code=1)


def test_a_run_with_closed_descriptors():
    shell('$KVMFAULT demo --memory 1M <&- 2>&-')


def test_a_size_is_decimal():
    assert verified('--memory', '010M')['bytes'] == 10 << 20


def anywhere_readme_shows_minimal():
    with open(README) as readme, open(MINIMAL_C) as example:
        block = readme.read().split('<!-- examples/minimal.c -->\n```c\n')[1]
        block = block.split('```\n<!-- end -->')[0]
        text = example.read()
    assert block == text, 'README.md does not show examples/minimal.c'
    assert len(text.splitlines()) <= 102


def main():
    tests = {name[5:]: test for name, test in globals().items()
             if name.startswith('test_')}
    # What needs a kernel of its own is asked for by its name.
    only = {name[5:]: test for name, test in globals().items()
            if name.startswith('only_')}
    anywhere = {name[9:]: test for name, test in globals().items()
                if name.startswith('anywhere_')}
    wanted = sys.argv[5:] or tests
    failed = 0

    if wanted == ['anywhere']:
        wanted = anywhere
    elif len(KVMFAULT) == 1:
        need('kvm', '/dev/kvm')
        need('uffd', '/dev/userfaultfd')
    for name in wanted:
        try:
            (tests | only | anywhere)[name]()
            print(f'ok {name}')
        except Exception as error:
            failed += 1
            print(f'FAILED {name}: {error!r}')
    sys.exit(bool(failed))


main()
