/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Futexes without time. In: the calls at the door. Out: sleep until somebody
 * wakes, or a signal comes.
 */

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "fake-sys.h"
#include "still.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t woken = PTHREAD_COND_INITIALIZER;
static unsigned int asleep, wakes;
static bool signalled;
_Thread_local sem_t *still_asleep;

static bool sleep_until_woken(struct fake_call *call)
{
	const _Atomic uint32_t *word = call->arg;
	unsigned int before;

	pthread_mutex_lock(&lock);
	before = wakes;
	call->result = -EAGAIN;
	if (atomic_load(word) == call->number) {
		asleep++;
		if (still_asleep)
			sem_post(still_asleep);
		while (wakes == before && !signalled)
			pthread_cond_wait(&woken, &lock);
		asleep--;
		call->result = signalled ? -EINTR : 0;
	}
	pthread_mutex_unlock(&lock);
	return true;
}

static bool wake(struct fake_call *call)
{
	pthread_mutex_lock(&lock);
	wakes++;
	pthread_cond_broadcast(&woken);
	pthread_mutex_unlock(&lock);
	call->result = 1;
	return true;
}

void still_signal(void)
{
	pthread_mutex_lock(&lock);
	signalled = true;
	pthread_cond_broadcast(&woken);
	pthread_mutex_unlock(&lock);
}

void still_until(unsigned int threads)
{
	bool all;

	do {
		sched_yield();
		pthread_mutex_lock(&lock);
		all = asleep == threads;
		pthread_mutex_unlock(&lock);
	} while (!all);
}

void still_clock(void)
{
	signalled = false;
	fake_on(FAKE_FUTEX_WAIT, sleep_until_woken);
	fake_on(FAKE_FUTEX_WAKE, wake);
}
