/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * One thread is stopped at a step of what it does, and another one does
 * something meanwhile, until that is done or sleeps on the still clock. A
 * program says by its pass() what happens at a step, and calls it at each;
 * those at a page's changes of state are here. Its kvmfault__page_change() has
 * to be wrapped: see meson.build.
 */

#ifndef KVMFAULT_TESTS_STEPS_H
#define KVMFAULT_TESTS_STEPS_H

#include "bed.h"
#include "still.h"

static pthread_t first_thread;		/* the one that is stopped, */
static unsigned int passes_left;	/* at this step, from 1; 0: never */
static const char *stopped;		/* where */

/* The first thread comes by: is this where it is stopped? */
static inline bool stops(const char *where)
{
	if (!pthread_equal(pthread_self(), first_thread) || !passes_left ||
	    --passes_left)
		return false;
	stopped = where;
	return true;
}

/* This is another thread, and what it does. */
struct helper {
	void (*run)(void *arg);
	void *arg;
	pthread_t thread;
	sem_t paused;		/* it has gone to sleep, or is done */
	bool started;
};

static void *help(void *arg)
{
	struct helper *helper = arg;

	still_asleep = &helper->paused;
	helper->run(helper->arg);
	sem_post(&helper->paused);
	return NULL;
}

/* It begins, and this returns when it is done or sleeps. */
static inline void helper_start(struct helper *helper, void (*run)(void *arg),
				void *arg)
{
	helper->run = run;
	helper->arg = arg;
	helper->started = true;
	sem_init(&helper->paused, 0, 0);
	ck_assert_int_eq(pthread_create(&helper->thread, NULL, help, helper),
			 0);
	sem_wait(&helper->paused);
}

static inline void helper_join(struct helper *helper)
{
	if (helper->started)
		pthread_join(helper->thread, NULL);
	helper->started = false;
}

static void pass(const char *where);

BED_WRAPPED(kvmfault__page_change);

enum kvmfault__state
__wrap_kvmfault__page_change(struct kvmfault_memory *memory, uint64_t page,
			     enum kvmfault__state from,
			     enum kvmfault__state to)
{
	enum kvmfault__state state;

	pass("before a change of state");
	state = __real_kvmfault__page_change(memory, page, from, to);
	pass("after a change of state");
	return state;
}

#endif
