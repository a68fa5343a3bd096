/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The guard: it bounds retries. In: an answer to a vCPU's fault of any kind.
 * Out: the same answer, maybe after a pause. Or the action is UNRESOLVED: too
 * many answers in a row have brought no progress.
 */

#include <string.h>
#include "entry.h"

#define FREE_RETRIES 2			/* without a pause */

void kvmfault__guard_start(struct kvmfault_vcpu *vcpu)
{
	/* These bytes are no page's number. */
	memset(vcpu->guard.history, 0xfe, sizeof(vcpu->guard.history));
	vcpu->guard.faulted = false;
	vcpu->guard.newest = 0;
	vcpu->guard.streak = 0;
	vcpu->guard.not_now = 0;
	vcpu->resume.emulation_rip = UINT64_MAX;
}

/* True if this key is among those of the last faults; if not, it is from now
 * on. */
static bool guard_has_seen_key(struct kvmfault_vcpu *vcpu, uint64_t what)
{
	unsigned int i;

	for (i = 0; i < KVMFAULT__HISTORY; i++)
		if (vcpu->guard.history[i] == what)
			return true;
	vcpu->guard.history[vcpu->guard.newest++ % KVMFAULT__HISTORY] = what;
	return false;
}

bool kvmfault__last_retry(const struct kvmfault_vcpu *vcpu)
{
	return vcpu->guard.streak + 1 >= vcpu->vm->options.retry_budget;
}

/* n: which paused retry this is: 1 waits KVMFAULT__SOON_PAUSE, each next one
 * twice as long, up to KVMFAULT__SOON_MOST; 0: no pause. */
static void guard_pause_retry(struct kvmfault_vcpu *vcpu,
			      struct kvmfault__answer *answer, uint32_t n)
{
	uint64_t pause = n ? kvmfault__backoff(KVMFAULT__SOON_PAUSE, n - 1,
					       KVMFAULT__SOON_STEPS) : 0;

	if (kvmfault__pause(vcpu->seat, pause < KVMFAULT__SOON_MOST ?
			    pause : KVMFAULT__SOON_MOST))
		answer->action = KVMFAULT_ACTION_INTERRUPTED;
}

static void guard_give_up(const struct kvmfault_vcpu *vcpu,
			  struct kvmfault__answer *answer)
{
	/* The guest was told of lost data, and touches it all the same. */
	if (answer->told)
		kvmfault__unresolved(answer, KVMFAULT_REASON_HWPOISON,
				     -EHWPOISON);
	else if (vcpu->fault.known & KVMFAULT_KNOWN_GPA)
		kvmfault__unresolved(answer, KVMFAULT_REASON_NO_PROGRESS,
				     -vcpu->fault.error);
	else
		kvmfault__unresolved(answer, KVMFAULT_REASON_NO_ADDRESS,
				     -vcpu->fault.error);
}

void kvmfault__guard_no_page(struct kvmfault_vcpu *vcpu,
			     struct kvmfault__answer *answer)
{
	/* -EAGAIN means "not now", which is no failure, however often. */
	if (answer->error == -EAGAIN) {
		guard_pause_retry(vcpu, answer, vcpu->guard.not_now++);
		return;
	}
	vcpu->guard.not_now = 0;
	if (!guard_has_seen_key(vcpu, kvmfault__guard_key(vcpu))) {
		vcpu->guard.streak = 0;
		return;
	}
	if (++vcpu->guard.streak >= vcpu->vm->options.retry_budget) {
		vcpu->guard.streak = 0;
		guard_give_up(vcpu, answer);
		return;
	}
	if (vcpu->guard.streak > FREE_RETRIES)
		guard_pause_retry(vcpu, answer,
				  vcpu->guard.streak - FREE_RETRIES);
}
