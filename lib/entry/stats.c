/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: statistics. In: the counters in the seats, each
 * of which one thread writes. Out: their sum. A fault pays for this only with
 * additions.
 */

#include <string.h>

#include "entry.h"

static void stats_add_seat(struct kvmfault_stats *sum,
			   const struct kvmfault__seat *seat)
{
	uint64_t *to = (uint64_t *)((char *)sum + sizeof(sum->size));
	size_t i;

	for (i = 0; i < KVMFAULT__COUNTERS; i++)
		to[i] += atomic_load_explicit(&seat->counter[i],
					      memory_order_relaxed);
}

void kvmfault__vcpu_counted(const struct kvmfault_vcpu *vcpu,
			    struct kvmfault_stats *sum)
{
	stats_add_seat(sum, vcpu->seat);
	if (vcpu->task.worker)
		stats_add_seat(sum, vcpu->task.worker->seat);
}

KVMFAULT__EXPORT
int kvmfault_vm_stats(const struct kvmfault_vm *vm,
		      struct kvmfault_stats *stats)
{
	struct kvmfault_stats sum = { .size = sizeof(sum) };
	const struct kvmfault__seat *seat;
	int err;

	if (!vm)
		return -EINVAL;
	err = kvmfault__options_to(vm, "kvmfault_stats", stats);
	if (err)
		return err;
	for (seat = atomic_load(&vm->seats); seat; seat = seat->next)
		stats_add_seat(&sum, seat);
	return kvmfault__options_out(stats, &sum, sizeof(sum));
}

KVMFAULT__EXPORT
int kvmfault_vcpu_stats(const struct kvmfault_vcpu *vcpu,
			struct kvmfault_stats *stats)
{
	struct kvmfault_stats sum = { .size = sizeof(sum) };
	const uint64_t *before;
	uint64_t *now;
	size_t i;
	int err;

	if (!vcpu)
		return -EINVAL;
	err = kvmfault__options_to(vcpu->vm, "kvmfault_stats", stats);
	if (err)
		return err;
	kvmfault__vcpu_counted(vcpu, &sum);
	/* The seat has counted for earlier vCPUs, too: subtract their part. */
	now = (uint64_t *)((char *)&sum + sizeof(sum.size));
	before = (const uint64_t *)((const char *)&vcpu->before +
				    sizeof(sum.size));
	for (i = 0; i < KVMFAULT__COUNTERS; i++)
		now[i] -= before[i];
	return kvmfault__options_out(stats, &sum, sizeof(sum));
}
