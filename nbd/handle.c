/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * libnbd. In: a connection, and requests to be sent on it. Out: each of them is
 * put into the connection's list `answered`, with its error, or the connection
 * is dead, and libnbd has none of them any more. Bytes are counted as they
 * come: libnbd itself notices only a sum that is wrong, and not in a callback.
 */

#include <libnbd.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "nbd.h"

#define READ_MAX (32ULL << 20)		/* what each server takes */
#define BLOCK_MAX 4096			/* the smallest page of a memory */

/* ---- connecting ---- */

static int handle_say(struct kvmfault__nbd_connection *connection, int err,
		      const char *text)
{
	snprintf(connection->why, sizeof(connection->why), "%s", text);
	connection->err = err;
	return err;
}

/* Take over the complaint of the last call of libnbd on this thread. */
static int handle_fail(struct kvmfault__nbd_connection *connection)
{
	const char *text = nbd_get_error();
	int err = nbd_get_errno();

	return handle_say(connection, err > 0 ? -err : -EPROTO,
			  text ? text : "libnbd does not say why");
}

static int handle_set_up(const struct kvmfault__nbd *nbd,
			 struct nbd_handle *handle)
{
	/* A buffer of which something is missing is never used: to clear it
	 * before would be in vain. */
	if (nbd_set_pread_initialize(handle, false) < 0 ||
	    nbd_set_uri_allow_local_file(handle,
					 nbd->options.allow_files) < 0 ||
	    nbd_add_meta_context(handle, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0)
		return -1;
	return nbd_aio_connect_uri(handle, nbd->uri);
}

int kvmfault__nbd_open(struct kvmfault__nbd_connection *connection)
{
	int err = 0;

	connection->handle = nbd_create();
	if (!connection->handle)
		return handle_fail(connection);
	connection->heard = kvmfault__nbd_now();
	connection->proved = connection->dead = false;
	if (handle_set_up(connection->nbd, connection->handle) < 0) {
		err = handle_fail(connection);
		kvmfault__nbd_close(connection);
	}
	return err;
}

void kvmfault__nbd_close(struct kvmfault__nbd_connection *connection)
{
	nbd_close(connection->handle);
	connection->handle = NULL;
	connection->answered = NULL;
}

/* If the socket is full the server sees the end all the same. */
void kvmfault__nbd_say_goodbye(struct kvmfault__nbd_connection *connection)
{
	nbd_aio_disconnect(connection->handle, 0);
}

static bool handle_is_over(struct nbd_handle *handle)
{
	return nbd_aio_is_dead(handle) == 1 || nbd_aio_is_closed(handle) == 1;
}

int kvmfault__nbd_connected(struct kvmfault__nbd_connection *connection)
{
	if (connection->dead)
		return connection->err;
	if (handle_is_over(connection->handle))
		return handle_fail(connection);
	return nbd_aio_is_connecting(connection->handle) == 1 ? -EAGAIN : 0;
}

/* ---- what the server says ---- */

/* libnbd says 0 if the server does not say. */
static uint64_t handle_block(struct nbd_handle *handle, int which,
			     uint64_t silent)
{
	int64_t size = nbd_get_block_size(handle, which);

	return size > 0 ? (uint64_t)size : silent;
}

__attribute__((format(printf, 3, 4)))
static int handle_refuse(struct kvmfault__nbd_connection *connection, int err,
			 const char *format, ...)
{
	char text[KVMFAULT__NBD_WHY];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	return handle_say(connection, err, text);
}

/* Does the export reach to the source's end? */
int kvmfault__nbd_check_size(struct kvmfault__nbd_connection *connection)
{
	const struct kvmfault__nbd *nbd = connection->nbd;
	int64_t size = nbd_get_size(connection->handle);
	uint64_t from = nbd->options.offset;

	if (size < 0)
		return handle_fail(connection);
	if (from >= (uint64_t)size || nbd->length > (uint64_t)size - from)
		return handle_refuse(connection, -ENODATA,
			"the export has %llu bytes only: is it the right one?",
			(unsigned long long)size);
	return 0;
}

/* Without a length, the source has all that there is. */
static int handle_take_size(struct kvmfault__nbd_connection *connection)
{
	struct kvmfault__nbd *nbd = connection->nbd;
	int64_t size = nbd_get_size(connection->handle);

	if (!nbd->length && size > 0 && nbd->options.offset < (uint64_t)size)
		nbd->length = (uint64_t)size - nbd->options.offset;
	return kvmfault__nbd_check_size(connection);
}

static int handle_check_blocks(struct kvmfault__nbd_connection *connection)
{
	struct kvmfault__nbd *nbd = connection->nbd;
	struct nbd_handle *handle = connection->handle;
	uint64_t block = handle_block(handle, LIBNBD_SIZE_MINIMUM, 1);
	uint64_t most = handle_block(handle, LIBNBD_SIZE_MAXIMUM, READ_MAX);

	if (block > BLOCK_MAX)
		return handle_refuse(connection, -EOPNOTSUPP,
			"the server reads blocks of %llu bytes only: have it read smaller ones (nbdkit --filter=blocksize)",
			(unsigned long long)block);
	if (nbd->options.offset % block)
		return handle_refuse(connection, -EINVAL,
			"options.offset is not a multiple of the server's blocks of %llu bytes",
			(unsigned long long)block);
	nbd->block = block;
	nbd->chunk = handle_block(handle, LIBNBD_SIZE_PREFERRED, 0);
	nbd->part_max = most < READ_MAX ? most - most % BLOCK_MAX : READ_MAX;
	return nbd->part_max ? 0 : handle_refuse(connection, -EOPNOTSUPP,
		"the server reads no more than %llu bytes at once",
		(unsigned long long)most);
}

int kvmfault__nbd_describe(struct kvmfault__nbd_connection *connection)
{
	struct kvmfault__nbd *nbd = connection->nbd;
	int err = handle_take_size(connection);

	if (err)
		return err;
	nbd->has_many = nbd_can_multi_conn(connection->handle) == 1;
	nbd->has_extents = nbd_can_meta_context(connection->handle,
				LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
	return handle_check_blocks(connection);
}

/* ---- requests and answers ---- */

/* Bytes have come: the next ones, or the server does not keep to what it was
 * asked for. */
static int handle_count(void *data, const void *bytes, size_t count,
			uint64_t offset, unsigned int status, int *error)
{
	struct kvmfault__nbd_request *request = data;

	(void)bytes;
	if (status == LIBNBD_READ_ERROR)
		return 0;
	if (offset == request->offset + request->done + request->seen) {
		request->seen += count;
		return 0;
	}
	*error = EPROTO;
	return -1;
}

static int handle_note_extents(void *data, const char *context, uint64_t offset,
			       uint32_t *pairs, size_t count, int *error)
{
	struct kvmfault__nbd_request *request = data;

	(void)error;
	if (!strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION))
		kvmfault__nbd_note_extents(request->at->nbd, offset, pairs,
					   count);
	return 0;
}

static void handle_put_answer(struct kvmfault__nbd_request *request, int error)
{
	struct kvmfault__nbd_connection *connection = request->at;

	request->error = -error;
	request->answered = connection->answered;
	connection->answered = request;
}

/*
 * ENOTCONN is libnbd's word for all that was in flight on a connection that is
 * dead: to be repeated. So is what a server refuses because it ends. Returns 1:
 * libnbd forgets the command; but not the one that it is about to send, of
 * which it reads the number when the connection has died meanwhile (1.14).
 */
static int handle_end(void *data, int *error)
{
	struct kvmfault__nbd_request *request = data;
	bool sending = request->at->sending;

	if (*error == ESHUTDOWN)
		handle_say(request->at, -ESHUTDOWN, "the server is ending");
	if (*error == ENOTCONN || *error == ESHUTDOWN)
		request->at->dead = true;
	else if (!*error && request->buffer && request->seen != request->part)
		handle_put_answer(request, EPROTO);
	else
		handle_put_answer(request, *error);
	return !sending;
}

void kvmfault__nbd_send(struct kvmfault__nbd_connection *connection,
			struct kvmfault__nbd_request *request)
{
	const nbd_completion_callback end = {
		.callback = handle_end, .user_data = request,
	};
	const nbd_chunk_callback count = {
		.callback = handle_count, .user_data = request,
	};
	const nbd_extent_callback extent = {
		.callback = handle_note_extents, .user_data = request,
	};
	uint64_t left = request->length - request->done;
	uint64_t from = request->offset + request->done;
	uint64_t most = connection->nbd->part_max;
	int64_t cookie;

	connection->sending = true;
	if (!request->buffer) {
		cookie = nbd_aio_block_status(connection->handle, left, from,
					      extent, end, 0);
	} else {
		request->part = left < most ? left : most;
		request->seen = 0;
		cookie = nbd_aio_pread_structured(connection->handle,
						  request->buffer +
						  request->done, request->part,
						  from, count, end, 0);
	}
	connection->sending = false;
	if (connection->dead || handle_is_over(connection->handle)) {
		handle_fail(connection);
		connection->dead = true;
	} else if (cookie < 0) {
		handle_put_answer(request, -handle_fail(connection));
	}
}

/* ---- the socket ---- */

static int handle_notify(struct nbd_handle *handle, short came)
{
	unsigned int wanted = nbd_aio_get_direction(handle);

	if (came & (POLLIN | POLLHUP | POLLERR) &&
	    wanted & LIBNBD_AIO_DIRECTION_READ)
		return nbd_aio_notify_read(handle);
	if (came && wanted & LIBNBD_AIO_DIRECTION_WRITE)
		return nbd_aio_notify_write(handle);
	return 0;
}

static short handle_events(struct nbd_handle *handle)
{
	unsigned int wanted = nbd_aio_get_direction(handle);

	return (short)((wanted & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
		       (wanted & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
}

static void handle_receive(struct kvmfault__nbd_connection *connection,
			   short came)
{
	connection->heard = kvmfault__nbd_now();
	if (handle_notify(connection->handle, came) < 0)
		handle_fail(connection);
	else if (handle_is_over(connection->handle))
		handle_say(connection, -ECONNRESET,
			   "the server has closed the connection");
	else if (!connection->dead)
		return;
	connection->dead = true;
}

void kvmfault__nbd_step(struct kvmfault__nbd_connection *connection, int ms)
{
	struct pollfd fds[2] = {
		{ .fd = connection->kick, .events = POLLIN },
		{ .fd = -1 },
	};
	uint64_t kicks;

	if (connection->handle) {
		fds[1].fd = nbd_aio_get_fd(connection->handle);
		fds[1].events = handle_events(connection->handle);
	}
	if (poll(fds, 2, ms) <= 0)
		return;
	if (fds[0].revents && read(connection->kick, &kicks, sizeof(kicks)) < 0)
		return;
	if (fds[1].revents)
		handle_receive(connection, fds[1].revents);
}
