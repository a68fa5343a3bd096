#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""Builds programs for the arm64 kernel, in a build tree of their own.

usage: cross.py CACHE SOURCE BUILD STAMP PROGRAM...

CACHE may be empty, as in run.py without --cache. STAMP is written when all of
them are built.
"""

import os
import subprocess
import sys

import kernels


def main():
    cache, source, build, stamp, *programs = sys.argv[1:]
    sysroot = kernels.Cache(cache).find('sysroot-arm64')
    constants = build + '.ini'
    text = f"[constants]\nsysroot = '{sysroot}'\n"
    known = os.path.exists(constants) and kernels.text_of(constants) == text
    if not (known and os.path.exists(os.path.join(build, 'build.ninja'))):
        with open(constants, 'w') as file:
            file.write(text)
        wipe = ['--wipe'] if os.path.isdir(build) else []
        kernels.run(['meson', 'setup', *wipe, '--cross-file', constants,
                     '--cross-file',
                     os.path.join(kernels.HERE, 'arm64.ini'),
                     '-Dtests=enabled', '-Dtools=enabled', build, source],
                    f'configuring {build}')
    subprocess.run(['ninja', '--quiet', '-C', build, *programs], check=True)
    open(stamp, 'w').close()


try:
    main()
except kernels.Failed as failed:
    sys.exit(f'vm: {failed}')
except subprocess.CalledProcessError as failed:
    sys.exit(failed.returncode)
