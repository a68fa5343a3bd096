/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

#ifndef KVMFAULT_NBD_H
#define KVMFAULT_NBD_H

#include "kvmfault.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * libkvmfault-nbd: an NBD server as a source
 * ==========================================
 *
 * A library of its own, which needs libnbd. Its one function makes a
 * kvmfault_source of an export of an NBD server: a snapshot on another machine,
 * a compressed or layered image, the memory of a VM that was stopped. To read
 * formats and protocols is the server's affair (nbdkit, qemu-nbd). General
 * rules are those of kvmfault.h.
 *
 * - It answers later (`submit`): faults and fills have many requests in flight,
 *   on several connections if the server says that it can do so (multi-conn).
 *   `read` is there for kvmfault_source_over() and kvmfault_request_read(): it
 *   waits for its answer, at most as long as the deadline.
 * - A request whose connection died is repeated on another one, or on a new
 *   one, until its deadline. No page is made of half an answer. So the image
 *   must not change while it is a source, nor when its server is started anew.
 *   If a file is cut off under qemu-nbd, that answers with zeros.
 * - `extent` answers from a map of the export, which is asked for ahead (block
 *   status, base:allocation). All that is not known is data.
 * - The server is only ever asked to read.
 *
 * Threads: each connection has one, called kvmfault-nbd-N, with all signals
 * blocked. It answers fetches (kvmfault_fetch_done()), so it installs pages and
 * calls the VMM's callbacks. A thread that asks for a page makes no other
 * system calls than futex(2) and write(2), allocates nothing, and waits for no
 * server.
 *
 * In a child of fork() the source does not work (-EIO), and
 * kvmfault_source_free() does nothing: the threads are the parent's.
 */

struct kvmfault_nbd_options {
	size_t size;

	/* Which export of which server: nbd://HOST[:PORT]/EXPORT,
	 * nbd+unix:///EXPORT?socket=PATH, nbds:// and nbds+unix:// with TLS, as
	 * libnbd has them. Copied. The name of a host is looked up anew for
	 * each connection, which may take longer than the deadline. */
	const char *uri;

	/* The source is this part of the export: so many bytes from offset on.
	 * length 0: up to the export's end. */
	uint64_t offset;
	uint64_t length;

	/* How many connections, at most, if the server says that it can have
	 * several. 0: 4. At most 16. */
	uint32_t connections;

	/* How many requests each connection has in flight at most. 0: 64. */
	uint32_t requests;

	/* How many fetches the source takes at once; if there are more, submit
	 * returns -EAGAIN. Take the sum of kvmfault_vm_options.fetches of all
	 * contexts that use the source. 0: 256. At most 65536. */
	uint32_t fetches;

	/* In milliseconds: how long a fetch, and kvmfault_source_nbd() itself,
	 * may take, with all that is repeated. Then the fetch's error is
	 * -ETIMEDOUT. If a connection owes an answer, and nothing comes for a
	 * third of this time, it is taken for dead. 0: 30000. */
	uint32_t deadline_ms;

	/* In milliseconds: the pause before a connection is tried again that
	 * could not be made. It is doubled each time, from the first to the
	 * second. 0: 20, and 1000. */
	uint32_t pause_ms;
	uint32_t pause_max_ms;

	/* In milliseconds: how long kvmfault_source_nbd() waits for the map of
	 * the export. Without an answer by then, the map is completed later. 0:
	 * 1000. */
	uint32_t extents_ms;

	/* The URI may name files of this machine: tls-certificates=DIRECTORY,
	 * tls-psk-file=FILE. Set it for an URI that you trust. */
	bool allow_files;

	/* One line without a newline: a connection is lost, fetches had no
	 * answer in time, why kvmfault_source_nbd() has failed. An error that
	 * the server has sent is in the fetch alone. Any thread may call it,
	 * several at once. NULL: none. data: for log. */
	void (*log)(void *data, enum kvmfault_log_level level,
		    const char *message);
	void *data;
};

/*
 * Connect to a server, and make a source of its export. Free it by
 * kvmfault_source_free(), when no memory uses it any more, and not in a
 * callback: that waits for the source's threads. It has `chunk` of the server's
 * preferred block size, and no `extent` if the server does not tell of holes.
 *
 * When this returns, at least one connection is there. The others are made
 * later. If a server can't be reached at first, it is not tried again.
 *
 * Errors of a fetch, beside those that the server sends (-EIO and others):
 *   -ETIMEDOUT   there was no answer by the deadline; the log has the reason. A
 *                window's page is then asked for alone, so a fault may take
 *                twice as long
 *   -EPROTO      the server has sent more or less than it was asked for, or not
 *                in order
 *   -ECANCELED   it was cancelled, or the source was freed
 *
 * Returns 0, or
 *   -EINVAL       options, uri or source is NULL, or a size is not set;
 *                 libnbd does not understand the URI; offset is not a multiple
 *                 of the server's minimum block size; a number is too large
 *   -E2BIG        options has a member set that this library does not know
 *   -ENODATA      the export is empty, or does not reach to offset + length
 *   -EOPNOTSUPP   the server reads blocks of more than 4096 bytes only
 *   -ETIMEDOUT    the server did not answer by the deadline
 *   -ENOENT       there is no such socket, or the server has no such export
 *   -EPROTO       there is a server, and it speaks another protocol; or there
 *                 is no host of this name
 *   -EPERM        the URI names a file, and allow_files is not set
 *   -ENOMEM       there is no memory for it
 *   -EMFILE       this process has too many open descriptors
 *   other         what connect(2) or pthread_create(3) returned
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_source_nbd(const struct kvmfault_nbd_options *options,
			struct kvmfault_source *source);

#ifdef __cplusplus
}
#endif

#endif
