/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Threads and the allocator. In: what a thread is to run, and how much memory
 * is wanted. Out: real threads and real memory, which is zero. What holds: each
 * is counted until it is joined or freed, and a thread knows from its first
 * step on what it is judged as.
 */

#include <stdlib.h>
#include <string.h>

#include "fake.h"

static void *begin(void *arg)
{
	struct start start = *(struct start *)arg;

	free(arg);
	noting_inside = start.judged;
	return start.run(start.arg);
}

long fake__thread(struct fake_call *c)
{
	struct start *start = malloc(sizeof(*start));
	int err;

	*start = *(struct start *)(uintptr_t)c->at;
	err = pthread_create(c->arg, NULL, begin, start);
	if (err)
		free(start);
	fake__holds.threads += !err;
	return -err;
}

long fake__join(struct fake_call *c)
{
	pthread_t id = *(pthread_t *)c->arg;

	fake__holds.threads--;
	/* The thread may need the lock to end. */
	pthread_mutex_unlock(&fake__lock);
	pthread_join(id, NULL);
	pthread_mutex_lock(&fake__lock);
	return 0;
}

/* Time goes by. */
long fake__yield(struct fake_call *c)
{
	(void)c;
	fake__now += 1000;
	return 0;
}

long fake__alloc(struct fake_call *c)
{
	void *memory = NULL;

	if (posix_memalign(&memory, c->number < sizeof(void *) ?
			   sizeof(void *) : c->number, c->length))
		return 0;
	memset(memory, 0, c->length);
	c->at = (uintptr_t)memory;
	fake__holds.allocations++;
	return 1;
}

long fake__free(struct fake_call *c)
{
	if (c->at)
		fake__holds.allocations--;
	free((void *)(uintptr_t)c->at);
	return 0;
}
