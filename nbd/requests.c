/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Requests on their way to a connection. In: bytes that are wanted. Out: `over`
 * is called once, with none of the locks held. A request is in exactly one
 * list: it is free, waits at a connection, or was sent by it. Only the thread
 * of that connection ends a request that was sent, since libnbd writes into its
 * buffer until then.
 */

#include <stdlib.h>
#include <unistd.h>

#include "nbd.h"

/* A server that is well answers a cancelled request within this time. Only
 * after it the connection is given up, with all that is in flight on it. */
#define GRACE (100 * KVMFAULT__NBD_MS)

static void requests_append(struct kvmfault__nbd_list *list,
			    struct kvmfault__nbd_request *request)
{
	request->next = NULL;
	request->prev = list->last;
	if (list->last)
		list->last->next = request;
	else
		list->first = request;
	list->last = request;
	list->count++;
}

static void requests_remove(struct kvmfault__nbd_list *list,
			    struct kvmfault__nbd_request *request)
{
	if (request->prev)
		request->prev->next = request->next;
	else
		list->first = request->next;
	if (request->next)
		request->next->prev = request->prev;
	else
		list->last = request->prev;
	list->count--;
}

int kvmfault__nbd_make_requests(struct kvmfault__nbd *nbd)
{
	size_t i;

	nbd->request = calloc(nbd->options.fetches, sizeof(*nbd->request));
	if (!nbd->request)
		return -ENOMEM;
	for (i = 0; i < nbd->options.fetches; i++)
		requests_append(&nbd->free, &nbd->request[i]);
	return 0;
}

static size_t requests_load(const struct kvmfault__nbd_connection *connection)
{
	return connection->waiting.count + connection->sent.count;
}

/* A connection that is ready is better than one that is not; of two like ones,
 * the one with less to do is. */
static struct kvmfault__nbd_connection *
requests_choose(struct kvmfault__nbd *nbd)
{
	struct kvmfault__nbd_connection *best = &nbd->connection[0];
	unsigned int i;

	for (i = 1; i < nbd->connections; i++) {
		struct kvmfault__nbd_connection *other = &nbd->connection[i];

		if (other->ready > best->ready ||
		    (other->ready == best->ready &&
		     requests_load(other) < requests_load(best)))
			best = other;
	}
	return best;
}

/* Returns the connection if it has to be kicked, without the lock. */
static struct kvmfault__nbd_connection *
requests_wake(struct kvmfault__nbd_connection *connection)
{
	if (!connection->asleep)
		return NULL;
	connection->asleep = false;
	return connection;
}

static struct kvmfault__nbd_connection *
requests_put(struct kvmfault__nbd *nbd, struct kvmfault__nbd_request *request)
{
	request->sent = false;
	request->at = requests_choose(nbd);
	requests_append(&request->at->waiting, request);
	return requests_wake(request->at);
}

void kvmfault__nbd_kick(struct kvmfault__nbd_connection *connection)
{
	const uint64_t one = 1;

	/* It fails if 2^64 kicks wait there already. */
	if (connection && write(connection->kick, &one, sizeof(one)) < 0)
		return;
}

static void requests_kick_all(struct kvmfault__nbd *nbd)
{
	unsigned int i;

	for (i = 0; i < nbd->connections; i++)
		kvmfault__nbd_kick(&nbd->connection[i]);
}

int kvmfault__nbd_submit(struct kvmfault__nbd *nbd,
			 const struct kvmfault__nbd_request *what)
{
	uint64_t due = kvmfault__nbd_now() +
		       nbd->options.deadline_ms * KVMFAULT__NBD_MS;
	struct kvmfault__nbd_connection *sleeper = NULL;
	struct kvmfault__nbd_request *request;
	int err = -EAGAIN;

	pthread_mutex_lock(&nbd->lock);
	request = nbd->free.first;
	if (nbd->stopping) {
		err = -ECANCELED;
	} else if (request) {
		requests_remove(&nbd->free, request);
		*request = *what;
		request->due = due;
		sleeper = requests_put(nbd, request);
		err = 0;
	}
	pthread_mutex_unlock(&nbd->lock);
	kvmfault__nbd_kick(sleeper);
	return err;
}

void kvmfault__nbd_ask(struct kvmfault__nbd *nbd)
{
	struct kvmfault__nbd_connection *sleeper;

	nbd->question.due = KVMFAULT__NBD_NEVER;
	pthread_mutex_lock(&nbd->lock);
	sleeper = requests_put(nbd, &nbd->question);
	pthread_mutex_unlock(&nbd->lock);
	kvmfault__nbd_kick(sleeper);
}

/* How a request ends, to be told when the lock is not held any more. */
struct ending {
	void (*over)(void *data, int err);
	void *data;
};

static struct ending requests_end(struct kvmfault__nbd *nbd,
				  struct kvmfault__nbd_list *list,
				  struct kvmfault__nbd_request *request)
{
	struct ending ending = { request->over, request->data };

	requests_remove(list, request);
	request->at = NULL;
	if (request != &nbd->question)
		requests_append(&nbd->free, request);
	return ending;
}

static struct kvmfault__nbd_request *
requests_find(struct kvmfault__nbd *nbd, const void *data)
{
	size_t i;

	for (i = 0; i < nbd->options.fetches; i++)
		if (nbd->request[i].at && nbd->request[i].data == data)
			return &nbd->request[i];
	return NULL;
}

void kvmfault__nbd_cancel(struct kvmfault__nbd *nbd, const void *data)
{
	uint64_t soon = kvmfault__nbd_now() + GRACE;
	struct kvmfault__nbd_connection *sleeper = NULL;
	struct kvmfault__nbd_request *request;
	struct ending ending = { NULL, NULL };

	pthread_mutex_lock(&nbd->lock);
	request = requests_find(nbd, data);
	if (request && request->sent) {
		request->cancelled = true;
		if (request->due > soon)
			request->due = soon;
		sleeper = requests_wake(request->at);
	} else if (request) {
		ending = requests_end(nbd, &request->at->waiting, request);
	}
	pthread_mutex_unlock(&nbd->lock);
	kvmfault__nbd_kick(sleeper);
	if (ending.over)
		ending.over(ending.data, -ECANCELED);
}

struct kvmfault__nbd_request *
kvmfault__nbd_take(struct kvmfault__nbd_connection *connection)
{
	struct kvmfault__nbd *nbd = connection->nbd;
	struct kvmfault__nbd_request *request = NULL;

	pthread_mutex_lock(&nbd->lock);
	connection->asleep = false;
	if (connection->sent.count < nbd->options.requests)
		request = connection->waiting.first;
	if (request) {
		requests_remove(&connection->waiting, request);
		requests_append(&connection->sent, request);
		request->sent = true;
	}
	pthread_mutex_unlock(&nbd->lock);
	return request;
}

void kvmfault__nbd_finish(struct kvmfault__nbd_request *request, int err)
{
	struct kvmfault__nbd_connection *connection = request->at;
	struct ending ending;

	pthread_mutex_lock(&connection->nbd->lock);
	ending = requests_end(connection->nbd, &connection->sent, request);
	pthread_mutex_unlock(&connection->nbd->lock);
	ending.over(ending.data, err);
}

/* Move all that waits at one connection to the best one. */
static void requests_move(struct kvmfault__nbd_connection *connection)
{
	size_t count = connection->waiting.count;

	for (; count; count--) {
		struct kvmfault__nbd_request *request =
			connection->waiting.first;

		requests_remove(&connection->waiting, request);
		requests_put(connection->nbd, request);
	}
}

void kvmfault__nbd_is_ready(struct kvmfault__nbd_connection *connection)
{
	struct kvmfault__nbd *nbd = connection->nbd;
	unsigned int i;

	pthread_mutex_lock(&nbd->lock);
	connection->ready = true;
	for (i = 0; i < nbd->connections; i++)
		if (!nbd->connection[i].ready)
			requests_move(&nbd->connection[i]);
	pthread_mutex_unlock(&nbd->lock);
	requests_kick_all(nbd);
}

/* Take one request back. Returns false if none was sent. */
static bool requests_take_back(struct kvmfault__nbd_connection *connection,
			       uint64_t now, struct kvmfault__nbd_given *given)
{
	struct kvmfault__nbd *nbd = connection->nbd;
	struct ending ending = { NULL, NULL };
	struct kvmfault__nbd_request *request;
	int err = 0;

	pthread_mutex_lock(&nbd->lock);
	request = connection->sent.first;
	if (request && request->cancelled)
		err = -ECANCELED;
	else if (request && request->due <= now)
		err = -ETIMEDOUT;
	if (err) {
		ending = requests_end(nbd, &connection->sent, request);
	} else if (request) {
		requests_remove(&connection->sent, request);
		requests_put(nbd, request);
	}
	pthread_mutex_unlock(&nbd->lock);
	given->late += err == -ETIMEDOUT;
	given->repeated += request && !err;
	if (ending.over)
		ending.over(ending.data, err);
	return request;
}

void kvmfault__nbd_give_back(struct kvmfault__nbd_connection *connection,
			     struct kvmfault__nbd_given *given)
{
	struct kvmfault__nbd *nbd = connection->nbd;
	uint64_t now = kvmfault__nbd_now();

	pthread_mutex_lock(&nbd->lock);
	connection->ready = false;
	requests_move(connection);
	pthread_mutex_unlock(&nbd->lock);
	while (requests_take_back(connection, now, given))
		;
	requests_kick_all(nbd);
}

/* Returns false if none that waits is due. */
static bool requests_expire_one(struct kvmfault__nbd_connection *connection,
				uint64_t now)
{
	struct kvmfault__nbd *nbd = connection->nbd;
	struct ending ending = { NULL, NULL };
	struct kvmfault__nbd_request *request;

	pthread_mutex_lock(&nbd->lock);
	request = connection->waiting.first;
	while (request && request->due > now)
		request = request->next;
	if (request)
		ending = requests_end(nbd, &connection->waiting, request);
	pthread_mutex_unlock(&nbd->lock);
	if (ending.over)
		ending.over(ending.data, -ETIMEDOUT);
	return request;
}

size_t kvmfault__nbd_expire(struct kvmfault__nbd_connection *connection)
{
	uint64_t now = kvmfault__nbd_now();
	size_t count = 0;

	while (requests_expire_one(connection, now))
		count++;
	return count;
}

static uint64_t requests_first_due(const struct kvmfault__nbd_list *list)
{
	const struct kvmfault__nbd_request *request;
	uint64_t due = KVMFAULT__NBD_NEVER;

	for (request = list->first; request; request = request->next)
		if (request->due < due)
			due = request->due;
	return due;
}

bool kvmfault__nbd_is_overdue(struct kvmfault__nbd_connection *connection)
{
	uint64_t due;

	pthread_mutex_lock(&connection->nbd->lock);
	due = requests_first_due(&connection->sent);
	pthread_mutex_unlock(&connection->nbd->lock);
	return due <= kvmfault__nbd_now();
}

uint64_t kvmfault__nbd_rest(struct kvmfault__nbd_connection *connection)
{
	struct kvmfault__nbd *nbd = connection->nbd;
	uint64_t sent, waiting;
	bool busy;

	pthread_mutex_lock(&nbd->lock);
	busy = nbd->stopping ||
	       (connection->ready && connection->waiting.count &&
		connection->sent.count < nbd->options.requests);
	connection->asleep = !busy;
	sent = requests_first_due(&connection->sent);
	waiting = requests_first_due(&connection->waiting);
	pthread_mutex_unlock(&nbd->lock);
	if (busy)
		return 0;
	return sent < waiting ? sent : waiting;
}

void kvmfault__nbd_abandon(struct kvmfault__nbd *nbd)
{
	size_t i;

	for (i = 0; i < nbd->options.fetches; i++)
		if (nbd->request[i].at)
			nbd->request[i].over(nbd->request[i].data, -ECANCELED);
}
