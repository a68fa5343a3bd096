#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""The commands of doc/simulator.md: each that calls the simulator does something,
and each file, function and table that it names is there.

usage: document.py SOURCE SIM
"""

import os
import re
import subprocess
import sys

source, sim = map(os.path.abspath, sys.argv[1:])
os.chdir(source)
with open('doc/simulator.md') as file:
    text = file.read()

wrong = []
commands = re.findall(r'^    build/tests/sim/sim (.*?)\s*(?:#.*)?$', text, re.M)
for command in commands:
    done = subprocess.run([sim, *command.split()], capture_output=True)
    if done.returncode not in (0, 1) or not done.stdout:
        wrong.append(f'sim {command} ends with {done.returncode}')

every = ''
rooms = [os.path.join('lib', name) for name in os.listdir('lib')]
for folder in ('tests/sim', 'tests/vm', *filter(os.path.isdir, rooms), 'scripts',
               'tests'):
    for name in os.listdir(folder):
        if os.path.isfile(os.path.join(folder, name)):
            every += f'{name}\n'
            if name.endswith(('.c', '.h')):
                with open(os.path.join(folder, name)) as file:
                    every += file.read()
names = re.findall(r'`([\w/-]+\.[ch])`|`(\w+)\(\)`|`([A-Z]{4,})`', text)
for name in {''.join(groups) for groups in names}:
    if os.path.basename(name) not in every:
        wrong.append(f'{name} is nowhere')

for line in wrong:
    print(line)
sys.exit(bool(wrong) or len(commands) < 2 or len(names) < 20)
