/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: a thread that has read a message looks for the
 * next one for a while before it sleeps, since a wake on an idle CPU takes
 * longer than most faults. In: whether a message was found. Out: whether to
 * look again. It looks only while no other thread wants the CPU. After a look
 * in vain, the thread sleeps at once in the next waits: in four times as many
 * after each further one in vain, up to a limit.
 */

#include "core.h"
#include "poll.h"

#define DEFAULT_US 100
/* A longer sched_yield() means that another thread wants the CPU. */
#define YIELD_CONTENDED_NS 2500ULL
/* Found sooner than this, polling has saved too little, and counts as in
 * vain. */
#define PAYS_AFTER_NS 10000ULL
#define VAIN_MAX 10U		/* then 1,024 waits are skipped between tries */

void kvmfault__poll_init(struct kvmfault__poll *poll, uint32_t us)
{
	*poll = (struct kvmfault__poll){ 0 };
	if (us != KVMFAULT_NO_POLL)
		poll->limit = (us ? us : DEFAULT_US) * 1000ULL;
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
	return poll->looked - before < YIELD_CONTENDED_NS &&
	       poll->looked - poll->began < poll->limit;
}

void kvmfault__poll_end(struct kvmfault__poll *poll, bool found)
{
	if (found && poll->looked - poll->began > PAYS_AFTER_NS) {
		if (poll->vain)
			poll->vain--;
		return;
	}
	poll->skip = 1U << poll->vain;
	poll->vain = poll->vain + 2 < VAIN_MAX ? poll->vain + 2 : VAIN_MAX;
}
