# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""A userfaultfd from python: the calls that both ends of a restore make, and
nothing of what they mean by it."""

import ctypes
import fcntl
import mmap
import os
import struct

NEW = 0xaa00
API, REGISTER = 0xc018aa3f, 0xc020aa00
COPY, WAKE = 0xc028aa03, 0x8010aa02
EVENT_PAGEFAULT, EVENT_REMOVE = 0x12, 0x15
FEATURE_EVENT_REMOVE = 1 << 3
MISSING = 1
MESSAGE = struct.Struct('=B7xQQQ')	# a fault: flags, address; or start, end


def open_new():
    """One without UFFDIO_API yet."""
    with open('/dev/userfaultfd', 'r+b', 0) as device:
        return fcntl.ioctl(device, NEW, os.O_CLOEXEC | os.O_NONBLOCK)


def open_ready():
    fd = open_new()
    fcntl.ioctl(fd, API, struct.pack('=QQQ', 0xaa, FEATURE_EVENT_REMOVE, 0))
    return fd


def register(fd, memory):
    """memory: an mmap object. Returns its address."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(fd, REGISTER,
                struct.pack('=QQQQ', address, len(memory), MISSING, 0))
    return address


def anonymous(length):
    return mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def copy(fd, address, data):
    """Install a page and wake its sleepers. FileExistsError: it is there;
    BlockingIOError: an event has to be read first."""
    source = ctypes.create_string_buffer(data, len(data))
    fcntl.ioctl(fd, COPY, struct.pack('=QQQQq', address,
                                      ctypes.addressof(source), len(data), 0,
                                      0))


def wake(fd, address, length):
    fcntl.ioctl(fd, WAKE, struct.pack('=QQ', address, length))


def read(fd):
    """The next message: (event, first, second), or None."""
    try:
        return MESSAGE.unpack(os.read(fd, MESSAGE.size))[0:4]
    except BlockingIOError:
        return None
