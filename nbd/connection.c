/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A connection's thread. In: requests that wait at the connection. Out: each is
 * answered; or, if the connection dies, or does not say a word for too long,
 * all that it owes is given back to be repeated, and a new one is made, with
 * pauses that become longer.
 */

#include <stdio.h>
#include <string.h>

#include "nbd.h"

#define STALLS 3		/* of a deadline: so often it is tried anew */

static uint64_t connection_stall(const struct kvmfault__nbd *nbd)
{
	return nbd->options.deadline_ms * KVMFAULT__NBD_MS / STALLS;
}

static bool connection_is_ready(struct kvmfault__nbd_connection *connection)
{
	/* No other thread changes it. */
	return connection->ready;
}

/* Does the server owe something? */
static bool connection_owes(struct kvmfault__nbd_connection *connection)
{
	return connection->handle &&
	       (!connection_is_ready(connection) || connection->sent.count);
}

/* ---- losing one, and making another ---- */

static void connection_pause(struct kvmfault__nbd_connection *connection)
{
	const struct kvmfault_nbd_options *options = &connection->nbd->options;
	uint64_t most = options->pause_max_ms * KVMFAULT__NBD_MS;

	connection->again = kvmfault__nbd_now() + connection->pause;
	if (!connection->pause)
		connection->pause = options->pause_ms * KVMFAULT__NBD_MS;
	else
		connection->pause *= 2;
	if (connection->pause > most)
		connection->pause = most;
}

static void connection_tell(struct kvmfault__nbd_connection *connection,
			    bool was_ready,
			    const struct kvmfault__nbd_given *given)
{
	if (was_ready)
		kvmfault__nbd_log(connection->nbd, KVMFAULT_LOG_WARNING,
			"connection %u is lost: %s; it is made anew, and %zu requests are repeated",
			connection->number, connection->why, given->repeated);
	if (given->late)
		kvmfault__nbd_log(connection->nbd, KVMFAULT_LOG_ERROR,
			"%zu requests had no answer within %u ms: %s; see that the server runs and answers",
			given->late, connection->nbd->options.deadline_ms,
			connection->why);
}

/* The first try to connect anew is made at once, if the connection was good for
 * something. */
static void connection_drop(struct kvmfault__nbd_connection *connection)
{
	struct kvmfault__nbd_given given = { 0, 0 };
	bool was_ready = connection_is_ready(connection);

	if (connection->handle)
		kvmfault__nbd_close(connection);
	if (connection->proved)
		connection->pause = 0;
	connection_pause(connection);
	connection->proved = connection->dead = false;
	kvmfault__nbd_give_back(connection, &given);
	connection_tell(connection, was_ready, &given);
}

static void connection_try(struct kvmfault__nbd_connection *connection)
{
	if (kvmfault__nbd_now() < connection->again)
		return;
	if (kvmfault__nbd_open(connection))
		connection_pause(connection);
}

/* It is connected: is it the same export still? */
static void connection_begin(struct kvmfault__nbd_connection *connection)
{
	if (kvmfault__nbd_check_size(connection))
		connection->dead = true;
	else
		kvmfault__nbd_is_ready(connection);
}

/* ---- requests ---- */

static void connection_send(struct kvmfault__nbd_connection *connection)
{
	struct kvmfault__nbd_request *request;

	while (!connection->dead &&
	       (request = kvmfault__nbd_take(connection))) {
		/* Its silence counts from here. */
		if (connection->sent.count == 1)
			connection->heard = kvmfault__nbd_now();
		request->done = 0;
		kvmfault__nbd_send(connection, request);
	}
}

/* One part has come, or an error: the next part, or it is over. */
static void connection_answer(struct kvmfault__nbd_connection *connection,
			      struct kvmfault__nbd_request *request)
{
	connection->proved = true;
	connection->pause = 0;
	request->done += request->part;
	if (request->error || !request->buffer ||
	    request->done == request->length)
		kvmfault__nbd_finish(request, request->error);
	else if (!connection->dead)
		kvmfault__nbd_send(connection, request);
}

/* Pages are installed here, and callbacks called, which may take long: the
 * server's silence counts from when this thread listens again. */
static void connection_answer_all(struct kvmfault__nbd_connection *connection)
{
	if (!connection->answered)
		return;
	while (connection->answered) {
		struct kvmfault__nbd_request *request = connection->answered;

		connection->answered = request->answered;
		connection_answer(connection, request);
	}
	connection->heard = kvmfault__nbd_now();
}

/* ---- time ---- */

/* Returns for how many milliseconds there is nothing to do; -1: for ever. */
static int connection_rest(struct kvmfault__nbd_connection *connection)
{
	struct kvmfault__nbd *nbd = connection->nbd;
	uint64_t now = kvmfault__nbd_now();
	uint64_t until = kvmfault__nbd_rest(connection);

	if (!connection->handle && connection->again < until)
		until = connection->again;
	if (connection_owes(connection) &&
	    connection->heard + connection_stall(nbd) < until)
		until = connection->heard + connection_stall(nbd);
	if (until == KVMFAULT__NBD_NEVER)
		return -1;
	if (until <= now)
		return 0;
	until = (until - now) / KVMFAULT__NBD_MS + 1;
	return until < 60000 ? (int)until : 60000;
}

static bool connection_is_silent(struct kvmfault__nbd_connection *connection)
{
	return connection_owes(connection) && kvmfault__nbd_now() >=
	       connection->heard + connection_stall(connection->nbd);
}

static void connection_check_time(struct kvmfault__nbd_connection *connection)
{
	struct kvmfault__nbd_given given = { 0, 0 };

	if (!connection->dead && (kvmfault__nbd_is_overdue(connection) ||
				  connection_is_silent(connection))) {
		snprintf(connection->why, sizeof(connection->why),
			 "the server does not answer");
		connection->dead = true;
	}
	given.late = kvmfault__nbd_expire(connection);
	connection_tell(connection, false, &given);
}

/* ---- the thread ---- */

static void connection_turn(struct kvmfault__nbd_connection *connection)
{
	int err;

	if (!connection->handle)
		connection_try(connection);
	if (connection->handle && !connection_is_ready(connection)) {
		err = kvmfault__nbd_connected(connection);
		if (!err)
			connection_begin(connection);
		else if (err != -EAGAIN)
			connection->dead = true;
	}
	if (connection_is_ready(connection))
		connection_send(connection);
	if (!connection->dead)
		kvmfault__nbd_step(connection, connection_rest(connection));
	connection_answer_all(connection);
	connection_check_time(connection);
	if (connection->dead)
		connection_drop(connection);
}

static bool connection_is_stopped(struct kvmfault__nbd_connection *connection)
{
	struct kvmfault__nbd *nbd = connection->nbd;
	bool stopping;

	pthread_mutex_lock(&nbd->lock);
	stopping = nbd->stopping;
	pthread_mutex_unlock(&nbd->lock);
	return stopping;
}

void *kvmfault__nbd_run(void *data)
{
	struct kvmfault__nbd_connection *connection = data;

	while (!connection_is_stopped(connection))
		connection_turn(connection);
	if (connection->handle && connection_is_ready(connection))
		kvmfault__nbd_say_goodbye(connection);
	if (connection->handle)
		kvmfault__nbd_close(connection);
	return NULL;
}
