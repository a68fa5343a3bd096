/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the flow: a thread that waits for messages, and has just had one. In:
 * that there was one, or not. Out: whether to look for the next before it
 * sleeps, since to be woken on a CPU that has gone idle takes longer than most
 * faults. Only while nobody else wants that CPU, and only where it pays: each
 * time in vain it is not tried four times as often, up to a limit.
 */

#include "core.h"
#include "poll.h"

#define DEFAULT 100		/* us */
#define SOMEBODY 2500ULL	/* ns: who yields for so long has yielded */
#define SOON 10000ULL		/* ns: sooner, sleeping would have cost nothing */
#define VAIN_MAX 10U		/* then it is tried one time in 1024 */

void kvmfault__poll_init(struct kvmfault__poll *poll, uint32_t us)
{
	*poll = (struct kvmfault__poll){ 0 };
	if (us != KVMFAULT_NO_POLL)
		poll->limit = (us ? us : DEFAULT) * 1000ULL;
}

bool kvmfault__poll_begin(struct kvmfault__poll *poll)
{
	if (!poll->limit)
		return false;
	if (poll->skip) {
		poll->skip--;
		return false;
	}
	poll->began = poll->looked = kvmfault__sys_now();
	return true;
}

bool kvmfault__poll_again(struct kvmfault__poll *poll)
{
	uint64_t before = poll->looked;

	kvmfault__sys_yield();
	poll->looked = kvmfault__sys_now();
	return poll->looked - before < SOMEBODY &&
	       poll->looked - poll->began < poll->limit;
}

void kvmfault__poll_end(struct kvmfault__poll *poll, bool found)
{
	if (found && poll->looked - poll->began > SOON) {
		if (poll->vain)
			poll->vain--;
		return;
	}
	poll->skip = 1U << poll->vain;
	poll->vain = poll->vain + 2 < VAIN_MAX ? poll->vain + 2 : VAIN_MAX;
}
