/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What descriptors stand for. In: the kind of object that is wanted, and its
 * owner, which is the library or the test. Out: a number, which is the lowest
 * free one from BASE on, so that none is taken for a real descriptor. What
 * holds: an object lives as long as a number of it, and memory for ever, as it
 * may be mapped.
 */

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "fake.h"

struct slot fake__fds[FDS];
struct fake_held fake__holds;

struct object *fake__object_of(int fd)
{
	if (fd < BASE || fd >= BASE + FDS)
		return NULL;
	return fake__fds[fd - BASE].object;
}

int fake__install(struct object *object, bool owned)
{
	int i;

	for (i = 0; i < FDS && fake__fds[i].object; i++)
		;
	if (i == FDS)
		return -EMFILE;
	fake__fds[i].object = object;
	fake__fds[i].owned = owned;
	object->refs++;
	fake__holds.descriptors += owned;
	return BASE + i;
}

struct object *fake__object_new(enum fake_kind kind)
{
	struct object *object = calloc(1, sizeof(*object));

	object->kind = kind;
	object->real = -1;
	if (kind == FAKE_UFFD)
		object->msg = calloc(MESSAGES, sizeof(*object->msg));
	if (kind == FAKE_EPOLL) {
		object->watch = calloc(WATCHES, sizeof(*object->watch));
		object->watched = calloc(WATCHES, sizeof(*object->watched));
	}
	return object;
}

void fake__object_put(struct object *object)
{
	/* Memory outlives its descriptors: it is mapped. */
	if (--object->refs || object->kind == FAKE_MEMORY)
		return;
	free(object->msg);
	free(object->watch);
	free(object->watched);
	free(object);
}

int fake__open_new(enum fake_kind kind, int flags)
{
	struct object *object = fake__object_new(kind);

	object->flags = flags;
	return fake__install(object, true);
}

struct fake_held fake_held(void)
{
	struct fake_held now;

	pthread_mutex_lock(&fake__lock);
	now = fake__holds;
	pthread_mutex_unlock(&fake__lock);
	return now;
}

int fake_fd(enum fake_kind kind)
{
	int fd;

	pthread_mutex_lock(&fake__lock);
	fd = fake__install(fake__object_new(kind), false);
	pthread_mutex_unlock(&fake__lock);
	return fd;
}

void fake_give(int fd)
{
	pthread_mutex_lock(&fake__lock);
	fake__fds[fd - BASE].owned = true;
	fake__holds.descriptors++;
	pthread_mutex_unlock(&fake__lock);
}

int fake_file(enum fake_kind kind, const void *data, uint64_t length)
{
	int fd = fake_fd(kind);

	fake__object_of(fd)->data = data;
	fake__object_of(fd)->length = length;
	return fd;
}

int fake_new_file(void *data, uint64_t most)
{
	int fd = fake_file(FAKE_FILE, data, 0);

	fake__object_of(fd)->room = data;
	fake__object_of(fd)->most = most;
	return fd;
}

uint64_t fake_file_length(int fd)
{
	return fake__object_of(fd)->length;
}

void fake_rewind(int fd)
{
	fake__object_of(fd)->position = 0;
}
