/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The inside of libkvmfault-nbd. A fetch goes through its files in this order:
 *
 *   source.c      submit, read, cancel, extent; how all of it is made and freed
 *   requests.c    a request waits, is given to a connection, and is over once
 *   connection.c  a connection's thread: it sends, receives, and connects anew
 *   handle.c      libnbd, which no other file calls
 *   extents.c     the map of the export, and the question that completes it
 *
 * One lock is for the lists of requests and for the map. It is held for some
 * loads and stores, never across a system call or a callback.
 */

#ifndef KVMFAULT_NBD_INSIDE_H
#define KVMFAULT_NBD_INSIDE_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "kvmfault-nbd.h"

#define KVMFAULT__NBD_MS 1000000ULL
#define KVMFAULT__NBD_NEVER UINT64_MAX
#define KVMFAULT__NBD_WHY 256		/* bytes of a reason */
#define KVMFAULT__NBD_CONNECTIONS 16	/* at most */

struct nbd_handle;			/* libnbd's */

/* Bytes to be read, or if buffer is NULL the question how bytes are. */
struct kvmfault__nbd_request {
	struct kvmfault__nbd_request *prev, *next;	/* in one list */
	struct kvmfault__nbd_connection *at;	/* whose list it is in */
	bool sent;		/* libnbd has it, and writes into the buffer */
	bool cancelled;
	uint64_t due;

	void (*over)(void *data, int err);
	void *data;
	uint64_t offset;	/* in the export */
	char *buffer;
	uint64_t length;

	/* The connection's thread has these. A long request is read in parts,
	 * one after another. */
	uint64_t done, part, seen;
	struct kvmfault__nbd_request *answered;	/* the next of those that are */
	int error;
};

struct kvmfault__nbd_list {
	struct kvmfault__nbd_request *first, *last;
	size_t count;
};

struct kvmfault__nbd_connection {
	struct kvmfault__nbd *nbd;
	unsigned int number;
	pthread_t thread;
	int kick;		/* eventfd: look at the lists */

	/* Under the lock. */
	struct kvmfault__nbd_list waiting, sent;
	bool ready;
	bool asleep;		/* and has to be kicked */

	/* The thread's own. */
	struct nbd_handle *handle;	/* NULL: there is none until `again` */
	uint64_t again, pause;
	uint64_t heard;		/* when something came last */
	bool proved;		/* something came since it was made */
	bool dead;
	bool sending;		/* libnbd has a new command in hand */
	struct kvmfault__nbd_request *answered;
	int err;		/* why it is dead, and in words: */
	char why[KVMFAULT__NBD_WHY];
};

/* Up to `end` the bytes are of this kind; they begin where the one before
 * ends. */
struct kvmfault__nbd_extent {
	uint64_t end;
	uint64_t kind;
};

struct kvmfault__nbd_extents {
	struct kvmfault__nbd_extent *extent;
	size_t count, room;
	uint64_t known;		/* the map is complete up to here, */
	bool over;		/* and no more of it will be known */
};

struct kvmfault__nbd {
	pid_t owner;
	struct kvmfault_nbd_options options;	/* all defaults filled in */
	char *uri;
	uint64_t length;	/* of the source */
	uint64_t block;		/* the server's smallest */
	uint64_t chunk;
	uint64_t part_max;
	bool has_extents, has_many;

	pthread_mutex_t lock;
	pthread_cond_t told;	/* a read, or the map, is over */
	bool stopping;
	struct kvmfault__nbd_request *request;	/* options.fetches of them */
	struct kvmfault__nbd_list free;
	struct kvmfault__nbd_request question;
	struct kvmfault__nbd_extents extents;

	unsigned int connections;
	struct kvmfault__nbd_connection connection[KVMFAULT__NBD_CONNECTIONS];
};

/* ---- source.c ---- */

uint64_t kvmfault__nbd_now(void);

__attribute__((format(printf, 3, 4)))
void kvmfault__nbd_log(const struct kvmfault__nbd *nbd,
		       enum kvmfault_log_level level, const char *format, ...);

/* ---- requests.c ---- */

int kvmfault__nbd_make_requests(struct kvmfault__nbd *nbd);

/* Ask for what is said in over, data, offset, buffer and length. Returns 0,
 * and over is called once; or -EAGAIN: there are too many; or -ECANCELED: the
 * source is being freed. */
int kvmfault__nbd_submit(struct kvmfault__nbd *nbd,
			 const struct kvmfault__nbd_request *what);

/* The question has no deadline. Its struct is nbd->question. */
void kvmfault__nbd_ask(struct kvmfault__nbd *nbd);

void kvmfault__nbd_cancel(struct kvmfault__nbd *nbd, const void *data);

/* For a connection's thread: the next of its requests is its to send. NULL:
 * there is none, or enough are in flight. */
struct kvmfault__nbd_request *
kvmfault__nbd_take(struct kvmfault__nbd_connection *connection);

/* A request that was sent is over. */
void kvmfault__nbd_finish(struct kvmfault__nbd_request *request, int err);

/* The connection can take requests: others that can't leave theirs to it. */
void kvmfault__nbd_is_ready(struct kvmfault__nbd_connection *connection);

/* libnbd has none of the connection's requests any more: those that are due or
 * cancelled are over, and the others are repeated. Counts are added to. */
struct kvmfault__nbd_given {
	size_t repeated, late;
};

void kvmfault__nbd_give_back(struct kvmfault__nbd_connection *connection,
			     struct kvmfault__nbd_given *given);

/* Requests that were not sent and are due are over. Returns how many. */
size_t kvmfault__nbd_expire(struct kvmfault__nbd_connection *connection);

/* Is one due that was sent? */
bool kvmfault__nbd_is_overdue(struct kvmfault__nbd_connection *connection);

/* The connection's thread is about to sleep, and is kicked from now on. Returns
 * when its first request is due; 0: there is something to do at once. */
uint64_t kvmfault__nbd_rest(struct kvmfault__nbd_connection *connection);

/* When nothing runs any more: all that is left is -ECANCELED. */
void kvmfault__nbd_abandon(struct kvmfault__nbd *nbd);

void kvmfault__nbd_kick(struct kvmfault__nbd_connection *connection);

/* ---- connection.c ---- */

void *kvmfault__nbd_run(void *connection);

/* ---- handle.c ---- */

/* Begin to connect. Returns 0, or -errno, and the connection's `why` says why.
 * It goes on by kvmfault__nbd_step(). */
int kvmfault__nbd_open(struct kvmfault__nbd_connection *connection);

/* Before the connection is closed for good. */
void kvmfault__nbd_say_goodbye(struct kvmfault__nbd_connection *connection);

void kvmfault__nbd_close(struct kvmfault__nbd_connection *connection);

/* Returns 0: it is connected; -EAGAIN: not yet; else it has failed, as `err`
 * and `why` say. */
int kvmfault__nbd_connected(struct kvmfault__nbd_connection *connection);

/* Is the export as long as it has to be? -ENODATA, and `why`. */
int kvmfault__nbd_check_size(struct kvmfault__nbd_connection *connection);

/* Of the first connection, before there are threads: take over what the server
 * says into nbd. */
int kvmfault__nbd_describe(struct kvmfault__nbd_connection *connection);

/* Send a request. When it is answered it is in the connection's list, with its
 * error; or the connection is dead. */
void kvmfault__nbd_send(struct kvmfault__nbd_connection *connection,
			struct kvmfault__nbd_request *request);

/* Wait for the server, and for a kick, at most so many milliseconds (-1: for
 * ever), and handle what came. */
void kvmfault__nbd_step(struct kvmfault__nbd_connection *connection, int ms);

/* ---- extents.c ---- */

/* Begin to ask for the map. */
void kvmfault__nbd_map(struct kvmfault__nbd *nbd);

/* An answer: from offset on, pairs of a length and flags of base:allocation. */
void kvmfault__nbd_note_extents(struct kvmfault__nbd *nbd, uint64_t offset,
				const uint32_t *pairs, size_t count);

int kvmfault__nbd_extent(void *data, uint64_t offset, uint64_t *length);

#endif
