#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

"""The least page server for one VM of Firecracker's, which can be wrong on
purpose: a client that does not find that proves nothing.

usage: handler.py serve --listen SOCKET --image FILE [--wrong HOW PAGE]

HOW: bit      one bit of the page is another one
     zero     the page reads as zeros
     other    it is the page after it
     back     what the balloon takes of any page comes back from the image
"""

import json
import os
import select
import socket
import sys

import uffd

sys.dont_write_bytecode = True
PAGE = 4096


class Handler:
    def __init__(self, fd, regions, image, how, wrong):
        self.fd, self.regions, self.image = fd, regions, image
        self.how, self.wrong = how, wrong
        self.removed = set()	# addresses of pages
        self.asked = []		# not answered while the balloon takes pages

    def content(self, address):
        for region in self.regions:
            start, size = region['base_host_virt_addr'], region['page_size']
            if 0 <= address - start < region['size']:
                break
        else:
            raise ValueError(f'a fault at {address:#x}, in no region')
        address -= (address - start) % size
        if address in self.removed:
            return address, bytes(size)
        offset = region['offset'] + address - start
        data = bytearray(os.pread(self.image, size, offset))
        place = self.wrong * PAGE - offset
        if 0 <= place < size:
            if self.how == 'bit':
                data[place + 1000] ^= 4
            elif self.how == 'zero':
                data[place:place + PAGE] = bytes(PAGE)
            elif self.how == 'other':
                data[place:place + PAGE] = os.pread(self.image, PAGE,
                                                    (self.wrong + 1) * PAGE)
        return address, bytes(data)

    def answer(self, address):
        try:
            uffd.copy(self.fd, *self.content(address))
        except FileExistsError:
            uffd.wake(self.fd, address & -PAGE, PAGE)
        except BlockingIOError:
            self.asked.append(address)

    def remove(self, start, end):
        if self.how != 'back':
            self.removed.update(range(start, end, PAGE))

    def serve(self, channel):
        wait = select.poll()
        wait.register(self.fd, select.POLLIN)
        wait.register(channel, select.POLLIN)
        # No message says that the balloon's call has ended.
        while channel.fileno() not in dict(
                wait.poll(1 if self.asked else None)):
            again, self.asked = self.asked, []
            message = uffd.read(self.fd)
            while message:
                event, first, second, _ = message
                if event == uffd.EVENT_REMOVE:
                    self.remove(first, second)
                else:
                    again.append(second)
                message = uffd.read(self.fd)
            for address in again:
                self.answer(address)


def accept(listening):
    """One message, of any length, and its descriptor."""
    channel, _ = listening.accept()
    text, fds, _, _ = socket.recv_fds(channel, 1 << 20, 1)
    while not text.endswith(b']'):
        text += channel.recv(1 << 20)
    regions = json.loads(text)
    for region in regions:
        region.setdefault('page_size', region['page_size_kib'])
    return channel, fds[0], regions


def main(listen, image, how='not', page='-1'):
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(listen)
    listening.listen()
    print('ready', flush=True)
    channel, fd, regions = accept(listening)
    Handler(fd, regions, os.open(image, os.O_RDONLY), how,
            int(page)).serve(channel)


words = sys.argv[1:]
if words[:2] != ['serve', '--listen'] or words[3:4] != ['--image']:
    sys.exit(__doc__)
main(words[2], words[4], *words[6:8])
