#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""What the library's own code costs, in instructions and as time.

usage: micro.py check VALGRIND MICRO	the instructions are within the bars
       micro.py json VALGRIND MICRO	all figures, as JSON

Instructions are counted by callgrind, which does not depend on what else the
machine does: those of what micro.c measures, but for what stands in micro.c
itself. Times are a machine's, and nothing asserts them.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

WHAT = ['exit', 'fault', 'fault in 1 TiB', 'message', 'lookup in 4',
        'lookup in 512', 'lookup in 4096']
SLOW = ['lookup in 32764']	# to set up, under valgrind
# At most so many; what compilers make of it differs by a few per cent.
BARS = {'exit': 40, 'fault': 1400, 'message': 1390}
THREADS = 1, 8, 64
RUNS = 5


def names(text, kind):
    """callgrind writes a name once, with a number that stands for it later."""
    known = {}

    def name(match):
        number, spelled = match.groups()
        return known.setdefault(number, spelled)
    return lambda field: name(re.match(r'\((\d+)\)(?: (.*))?', field))


def self_cost(text):
    """Instructions by the source file that they are from."""
    costs = {}
    file_name = names(text, 'file')
    function_file = current = None
    skip = False
    for line in text.splitlines():
        if skip:		# what a call cost, all in all
            skip = False
        elif line.startswith('fl='):
            function_file = current = file_name(line[3:])
        elif line.startswith(('fi=', 'fe=')):
            current = file_name(line[3:])
        elif line.startswith('cfi=') or line.startswith('cfl='):
            file_name(line[4:])
        elif line.startswith('calls='):
            skip = True
        elif re.match(r'[+*\-\d]\S* \d+$', line):
            costs[current] = costs.get(current, 0) + int(line.split()[1])
    return costs


def instructions(valgrind, micro, what):
    with tempfile.TemporaryDirectory() as directory:
        out = os.path.join(directory, 'out')
        done = subprocess.run(
            [valgrind, '--tool=callgrind', '--instr-atstart=no',
             f'--callgrind-out-file={out}', micro, 'count', what],
            capture_output=True, text=True, check=True)
        with open(out) as file:
            costs = self_cost(file.read())
    ours = sum(cost for name, cost in costs.items()
               if os.path.basename(name) != 'micro.c')
    assert ours, costs
    return ours / int(done.stdout)


def count_all(valgrind, micro, of):
    return {what: instructions(valgrind, micro, what) for what in of}


def check(valgrind, micro):
    cost = count_all(valgrind, micro, WHAT)
    for what in WHAT:
        print(f'{what:16} {cost[what]:7.1f} instructions')
    for what, bar in BARS.items():
        assert cost[what] <= bar, f'{what}: at most {bar} instructions'
    # Each doubling costs the same: so 32,764 cost less than 3 times of 4.
    assert cost['lookup in 4096'] <= 2.5 * cost['lookup in 4'], \
        'a lookup grows too much with the regions'
    assert cost['fault in 1 TiB'] <= 1.01 * cost['fault'], \
        'a fault grows with the memory'


def nanoseconds(micro, threads, pages):
    times = [float(subprocess.run([micro, 'time', str(threads), pages],
                                  capture_output=True, text=True,
                                  check=True).stdout) for _ in range(RUNS)]
    return statistics.median(times)


def main():
    command, valgrind, micro = sys.argv[1:]
    if command == 'check':
        check(valgrind, micro)
    else:
        json.dump({'instructions': count_all(valgrind, micro, WHAT + SLOW),
                   'nanoseconds': {pages: {str(n): nanoseconds(micro, n, pages)
                                           for n in THREADS}
                                   for pages in ('apart', 'same')}},
                  sys.stdout, indent=2)
        print()


main()
