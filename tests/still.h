/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A clock that stands still: who waits on the fake's futexes goes on because it
 * is woken, or because of a signal, and not because time passes.
 */

#ifndef KVMFAULT_TESTS_STILL_H
#define KVMFAULT_TESTS_STILL_H

#include <semaphore.h>

void still_clock(void);			/* from now on, until fake_forget() */
/* Posted whenever this thread goes to sleep, if it wants that known. */
extern _Thread_local sem_t *still_asleep;
void still_until(unsigned int threads);	/* so many sleep */
void still_signal(void);		/* to all who sleep, now and later */

#endif
