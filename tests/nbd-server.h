/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * NBD servers for tests: nbdkit, qemu-nbd, and one that lies. Each listens on a
 * socket in a directory of its own, and ends with the process that began it.
 */

#ifndef KVMFAULT_TESTS_NBD_SERVER_H
#define KVMFAULT_TESTS_NBD_SERVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* The directory of all of a case's files; made at the first call. */
const char *server_directory(void);

/* A path in it, in static memory of which there are eight. */
const char *server_path(const char *name);

/* The URI of the servers' socket. */
const char *server_uri(void);

/* Start what the arguments say, up to NULL, on the socket, and wait until it
 * accepts connections. A server that ran before is ended first. */
void server_start(const char *const *argv);

/* nbdkit with these arguments, up to NULL. */
#define SERVER_NBDKIT(...)						\
	server_start((const char *const[]){ "nbdkit", "-f",		\
		"--exit-with-parent", "-U", server_path("socket"),	\
		__VA_ARGS__, NULL })

void server_kill(int signal);	/* and wait for its end */
void server_clean_up(void);

/* The program of that name is not here: NULL, or why. */
const char *server_lacks(const char *program);

/* A file with 8 bytes of its own at each multiple of 8, as nbdkit's plugin
 * "pattern" has them; but a page is a hole if hole says so. */
void server_make_image(const char *path, uint64_t length,
		       bool (*hole)(uint64_t page));

/* Are these bytes of such a file, or of a hole in it? */
bool server_is_right(const void *bytes, uint64_t offset, uint64_t length);

void server_run(const char *const *argv);	/* and wait for its success */

/* ---- one that lies, on a thread of this process ---- */

enum lie {
	LIE_NONE,
	LIE_GREETING,		/* it is no NBD server at all */
	LIE_SHORT,		/* half of the bytes, and "that was all" */
	LIE_TWICE,		/* the first half two times */
	LIE_BACKWARDS,		/* the second half first */
	LIE_MAGIC,		/* what is no reply at all */
	LIE_SILENT,		/* not a word */
	LIE_HANG_UP,		/* closes the connection in place of a reply */
	LIE_ENDS,		/* says that it is ending */
	LIE_NO_STATUS,		/* refuses to tell of holes */
	LIE_ZERO_STATUS,	/* tells of an extent without a byte */
};

struct liar {
	_Atomic enum lie lie;	/* of the next replies */
	_Atomic uint64_t size;	/* of the export, for the next connection */
	atomic_uint connections, requests;
	int fd;
	pthread_t thread;
};

void liar_start(struct liar *liar, enum lie lie, uint64_t size);
void liar_stop(struct liar *liar);

#endif
