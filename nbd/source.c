/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * An NBD server as a source: how it is made and freed, and what the core calls.
 * In: fetches, from any number of threads. Out: each is answered once, by the
 * thread of a connection, or by the thread that cancels it before it was sent.
 */

#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "nbd.h"

#define CONNECTIONS 4
#define REQUESTS 64
#define FETCHES 256
#define FETCHES_MAX 65536
#define DEADLINE_MS 30000
#define PAUSE_MS 20
#define PAUSE_MAX_MS 1000
#define EXTENTS_MS 1000

#define EXPORT __attribute__((visibility("default")))

uint64_t kvmfault__nbd_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 * KVMFAULT__NBD_MS +
	       (uint64_t)now.tv_nsec;
}

void kvmfault__nbd_log(const struct kvmfault__nbd *nbd,
		       enum kvmfault_log_level level, const char *format, ...)
{
	char line[2 * KVMFAULT__NBD_WHY], *at;
	va_list args;
	int begun;

	if (!nbd->options.log)
		return;
	begun = snprintf(line, sizeof(line), "NBD source %.*s: ",
			 KVMFAULT__NBD_WHY / 2,
			 nbd->uri ? nbd->uri : "(none)");
	at = line + begun;
	va_start(args, format);
	vsnprintf(at, sizeof(line) - (size_t)begun, format, args);
	va_end(args);
	nbd->options.log(nbd->options.data, level, line);
}

/* ---- what the core calls ---- */

static void source_answer(void *fetch, int err)
{
	kvmfault_fetch_done(fetch, err);
}

static int source_submit(void *data, struct kvmfault_fetch *fetch,
			 uint64_t offset, void *buffer, size_t length)
{
	struct kvmfault__nbd *nbd = data;
	const struct kvmfault__nbd_request what = {
		.over = source_answer,
		.data = fetch,
		.offset = nbd->options.offset + offset,
		.buffer = buffer,
		.length = length,
	};

	return kvmfault__nbd_submit(nbd, &what);
}

static void source_cancel(void *data, struct kvmfault_fetch *fetch)
{
	kvmfault__nbd_cancel(data, fetch);
}

struct source_wait {
	struct kvmfault__nbd *nbd;
	bool over;
	int err;
};

static void source_end_wait(void *data, int err)
{
	struct source_wait *wait = data;
	struct kvmfault__nbd *nbd = wait->nbd;

	pthread_mutex_lock(&nbd->lock);
	wait->over = true;
	wait->err = err;
	pthread_cond_broadcast(&nbd->told);
	pthread_mutex_unlock(&nbd->lock);
}

static int source_read_nbd(void *data, uint64_t offset, void *buffer,
			   size_t length)
{
	struct kvmfault__nbd *nbd = data;
	struct source_wait wait = { .nbd = nbd };
	const struct kvmfault__nbd_request what = {
		.over = source_end_wait,
		.data = &wait,
		.offset = nbd->options.offset + offset,
		.buffer = buffer,
		.length = length,
	};
	int err;

	/* No thread answers there. */
	if (nbd->owner != getpid())
		return -EIO;
	err = kvmfault__nbd_submit(nbd, &what);
	if (err)
		return err;
	pthread_mutex_lock(&nbd->lock);
	while (!wait.over)
		pthread_cond_wait(&nbd->told, &nbd->lock);
	pthread_mutex_unlock(&nbd->lock);
	return wait.err;
}

/* ---- the end ---- */

static void source_release(struct kvmfault__nbd *nbd)
{
	unsigned int i;

	for (i = 0; i < KVMFAULT__NBD_CONNECTIONS; i++)
		if (nbd->connection[i].kick >= 0)
			close(nbd->connection[i].kick);
	pthread_cond_destroy(&nbd->told);
	pthread_mutex_destroy(&nbd->lock);
	free(nbd->extents.extent);
	free(nbd->request);
	free(nbd->uri);
	free(nbd);
}

static void source_stop(struct kvmfault__nbd *nbd, unsigned int threads)
{
	unsigned int i;

	pthread_mutex_lock(&nbd->lock);
	nbd->stopping = true;
	pthread_mutex_unlock(&nbd->lock);
	for (i = 0; i < threads; i++)
		kvmfault__nbd_kick(&nbd->connection[i]);
	for (i = 0; i < threads; i++)
		pthread_join(nbd->connection[i].thread, NULL);
	kvmfault__nbd_abandon(nbd);
}

/* A child of fork() has none of the threads. */
static void source_free_nbd(void *data)
{
	struct kvmfault__nbd *nbd = data;

	if (nbd->owner != getpid())
		return;
	source_stop(nbd, nbd->connections);
	source_release(nbd);
}

/* ---- the beginning ---- */

/* As the core's: a caller may have an older header, or a newer one. */
static int source_take_options(struct kvmfault_nbd_options *ours,
			       const struct kvmfault_nbd_options *options)
{
	const unsigned char *bytes = (const unsigned char *)options;
	size_t size, i;

	if (!options)
		return -EINVAL;
	memcpy(&size, options, sizeof(size));
	if (size < sizeof(size))
		return -EINVAL;
	for (i = sizeof(*ours); i < size; i++)
		if (bytes[i])
			return -E2BIG;
	memset(ours, 0, sizeof(*ours));
	memcpy(ours, options, size < sizeof(*ours) ? size : sizeof(*ours));
	return 0;
}

static void source_default(uint32_t *member, uint32_t value)
{
	if (!*member)
		*member = value;
}

static int source_check_options(struct kvmfault_nbd_options *options)
{
	source_default(&options->connections, CONNECTIONS);
	source_default(&options->requests, REQUESTS);
	source_default(&options->fetches, FETCHES);
	source_default(&options->deadline_ms, DEADLINE_MS);
	source_default(&options->pause_ms, PAUSE_MS);
	source_default(&options->pause_max_ms, PAUSE_MAX_MS);
	source_default(&options->extents_ms, EXTENTS_MS);
	if (!options->uri || options->connections > KVMFAULT__NBD_CONNECTIONS ||
	    options->fetches > FETCHES_MAX ||
	    options->offset + options->length < options->offset)
		return -EINVAL;
	return 0;
}

static int source_prepare(struct kvmfault__nbd *nbd)
{
	pthread_condattr_t clock;
	unsigned int i;

	nbd->owner = getpid();
	for (i = 0; i < KVMFAULT__NBD_CONNECTIONS; i++) {
		nbd->connection[i].nbd = nbd;
		nbd->connection[i].number = i;
		nbd->connection[i].kick = -1;
	}
	pthread_mutex_init(&nbd->lock, NULL);
	pthread_condattr_init(&clock);
	pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
	pthread_cond_init(&nbd->told, &clock);
	pthread_condattr_destroy(&clock);
	nbd->uri = strdup(nbd->options.uri);
	if (!nbd->uri)
		return -ENOMEM;
	nbd->length = nbd->options.length;
	return kvmfault__nbd_make_requests(nbd);
}

static int source_open_kick(struct kvmfault__nbd_connection *connection)
{
	connection->kick = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return connection->kick < 0 ? -errno : 0;
}

/* The first connection is made on the caller's thread: it says what there
 * is. */
static int source_connect(struct kvmfault__nbd *nbd)
{
	struct kvmfault__nbd_connection *first = &nbd->connection[0];
	uint64_t until = kvmfault__nbd_now() +
			 nbd->options.deadline_ms * KVMFAULT__NBD_MS;
	int err = source_open_kick(first);

	if (!err)
		err = kvmfault__nbd_open(first);
	while (!err && (err = kvmfault__nbd_connected(first)) == -EAGAIN) {
		uint64_t now = kvmfault__nbd_now();

		if (now >= until)
			return -ETIMEDOUT;
		now = (until - now) / KVMFAULT__NBD_MS + 1;
		kvmfault__nbd_step(first, now < INT_MAX ? (int)now : INT_MAX);
		err = 0;
	}
	if (!err)
		err = kvmfault__nbd_describe(first);
	return err;
}

static int source_start_thread(struct kvmfault__nbd_connection *connection)
{
	char name[16];
	int err = -pthread_create(&connection->thread, NULL, kvmfault__nbd_run,
				  connection);

	if (err)
		return err;
	snprintf(name, sizeof(name), "kvmfault-nbd-%u",
		 connection->number % KVMFAULT__NBD_CONNECTIONS);
	pthread_setname_np(connection->thread, name);
	return 0;
}

/* Each thread may kick each connection. They inherit the mask, so that no
 * signal reaches them even once. */
static int source_start(struct kvmfault__nbd *nbd)
{
	unsigned int i;
	sigset_t all, before;
	int err = 0;

	nbd->connections = nbd->has_many ? nbd->options.connections : 1;
	for (i = 1; i < nbd->connections && !err; i++)
		err = source_open_kick(&nbd->connection[i]);
	if (err)
		return err;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (i = 0; i < nbd->connections && !err; i++)
		err = source_start_thread(&nbd->connection[i]);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err)
		source_stop(nbd, i - 1);
	return err;
}

static void source_wait_for_map(struct kvmfault__nbd *nbd)
{
	uint64_t until = kvmfault__nbd_now() +
			 nbd->options.extents_ms * KVMFAULT__NBD_MS;
	const struct timespec limit = {
		.tv_sec = (time_t)(until / (1000 * KVMFAULT__NBD_MS)),
		.tv_nsec = (long)(until % (1000 * KVMFAULT__NBD_MS)),
	};

	kvmfault__nbd_map(nbd);
	pthread_mutex_lock(&nbd->lock);
	while (!nbd->extents.over &&
	       !pthread_cond_timedwait(&nbd->told, &nbd->lock, &limit))
		;
	pthread_mutex_unlock(&nbd->lock);
}

/* The caller's struct may be of an older version, or of a newer one. */
static void source_put_out(struct kvmfault__nbd *nbd,
			   struct kvmfault_source *source)
{
	const struct kvmfault_source ours = {
		.name = "nbd",
		.read = source_read_nbd,
		.data = nbd,
		.length = nbd->length,
		.chunk = nbd->chunk,
		.submit = source_submit,
		.cancel = source_cancel,
		.extent = nbd->has_extents ? kvmfault__nbd_extent : NULL,
		.free = source_free_nbd,
	};
	const size_t head = sizeof(source->size);
	size_t size = source->size;

	memset((char *)source + head, 0, size - head);
	memcpy((char *)source + head, (const char *)&ours + head,
	       (size < sizeof(ours) ? size : sizeof(ours)) - head);
}

static int source_begin(struct kvmfault__nbd *nbd)
{
	int err = source_prepare(nbd);

	if (!err)
		err = source_connect(nbd);
	if (!err)
		err = source_start(nbd);
	if (err)
		kvmfault__nbd_log(nbd, KVMFAULT_LOG_ERROR,
			"cannot be opened: %s",
			nbd->connection[0].err == err ?
			nbd->connection[0].why : strerror(-err));
	else if (nbd->has_extents)
		source_wait_for_map(nbd);
	return err;
}

EXPORT
int kvmfault_source_nbd(const struct kvmfault_nbd_options *options,
			struct kvmfault_source *source)
{
	struct kvmfault__nbd *nbd;
	int err;

	if (!source || source->size < sizeof(source->size))
		return -EINVAL;
	nbd = calloc(1, sizeof(*nbd));
	if (!nbd)
		return -ENOMEM;
	err = source_take_options(&nbd->options, options);
	if (!err)
		err = source_check_options(&nbd->options);
	if (err) {
		free(nbd);
		return err;
	}
	err = source_begin(nbd);
	if (err) {
		if (nbd->connection[0].handle)
			kvmfault__nbd_close(&nbd->connection[0]);
		source_release(nbd);
		return err;
	}
	source_put_out(nbd, source);
	return 0;
}
