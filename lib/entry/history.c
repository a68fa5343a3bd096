/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The history: a vCPU's last faults, for a person that looks for the cause of a
 * failure. In: a fault and its result. Out: a ring of these, which the public
 * result shows with the newest first.
 */

#include "entry.h"

static struct kvmfault__past *history_get_past(struct kvmfault_vcpu *vcpu,
					       uint64_t n)
{
	return &vcpu->past.ring[n % KVMFAULT_HISTORY_COUNT];
}

KVMFAULT__EXPORT
const struct kvmfault_result *
kvmfault_vcpu_result(struct kvmfault_vcpu *vcpu)
{
	uint64_t n;
	uint32_t i = 0;

	if (!vcpu)
		return NULL;
	/* Sort the ring here, so that a fault only has to append to it. */
	for (n = vcpu->past.count; n && i < KVMFAULT_HISTORY_COUNT; i++)
		vcpu->past.events[i] = &history_get_past(vcpu, --n)->event;
	vcpu->result.history_count = i;
	return &vcpu->result;
}

/* True if the fault repeats the last one. Repeats are only counted, so that a
 * storm of them does not push out the fault that began it. */
static bool history_is_repeat(const struct kvmfault__past *last,
			      const struct kvmfault_vcpu *vcpu)
{
	const struct kvmfault_fault *now = &vcpu->fault, *then = &last->fault;
	const struct kvmfault_result *result = &vcpu->result;

	/* The members that differ most often are compared first. */
	return then->gpa == now->gpa && then->hva == now->hva &&
	       then->kind == now->kind && then->known == now->known &&
	       then->address_space == now->address_space &&
	       then->flags == now->flags &&
	       last->event.action == result->action &&
	       last->event.reason == result->reason &&
	       last->event.error == result->error &&
	       last->event.resolver == result->resolver;
}

void kvmfault__remember(struct kvmfault_vcpu *vcpu)
{
	const struct kvmfault_result *result = &vcpu->result;
	struct kvmfault__past *next = history_get_past(vcpu, vcpu->past.count);

	if (vcpu->past.count &&
	    history_is_repeat(history_get_past(vcpu, vcpu->past.count - 1),
			      vcpu)) {
		history_get_past(vcpu, vcpu->past.count - 1)->event.times++;
		return;
	}
	vcpu->past.count++;
	next->fault = vcpu->fault;
	next->event = (struct kvmfault_event){
		.size = sizeof(next->event),
		.fault = &next->fault,
		.action = result->action,
		.reason = result->reason,
		.error = result->error,
		.times = 1,
		.resolver = result->resolver,
	};
}
