/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The calling thread's signals. In: the test's word on what is blocked, what
 * has a handler and what is pending, and KVM_SET_SIGNAL_MASK. Out: the mask,
 * the handler and the pending signal. What holds: one signal is
 * pending at most, and it is taken once.
 */

#include <errno.h>
#include <signal.h>
#include <string.h>

#include "fake.h"

static siginfo_t pending;		/* si_signo 0: none */
static uint64_t run_mask = UINT64_MAX;	/* by KVM_SET_SIGNAL_MASK */
uint64_t fake_signal_mask;
bool fake_sigbus_handler;

long fake__sigmask(struct fake_call *c)
{
	*(uint64_t *)c->arg = fake_signal_mask;
	return 0;
}

long fake__handles(struct fake_call *c)
{
	return c->number == SIGBUS && fake_sigbus_handler;
}

long fake__sigtake(struct fake_call *c)
{
	if (pending.si_signo != (int)c->number)
		return -EAGAIN;
	memcpy(c->arg, &pending, sizeof(pending));
	pending.si_signo = 0;
	return 0;
}

/* The kernel's struct kvm_signal_mask; none: the thread's own counts. */
long fake__set_run_mask(const char *mask)
{
	run_mask = fake_signal_mask;
	if (mask)
		memcpy(&run_mask, mask + sizeof(uint32_t), sizeof(run_mask));
	return 0;
}

uint64_t fake_run_mask(void)
{
	return run_mask;
}

void fake_send(const void *siginfo)
{
	pthread_mutex_lock(&fake__lock);
	memcpy(&pending, siginfo, sizeof(pending));
	pthread_mutex_unlock(&fake__lock);
}
