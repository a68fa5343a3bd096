/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: a worker does a vCPU's task, and the vCPU's
 * thread may leave meanwhile. In: a worker's seat, before the worker touches
 * the vCPU. Out: the thread stays until kvmfault__free_vcpu(), or it has left
 * already. Any other seat's thread may touch its vCPU at once.
 */

#include "seat.h"

bool kvmfault__hold_vcpu(struct kvmfault__seat *seat)
{
	uint32_t state;

	if (!seat->task)
		return true;
	state = atomic_load(seat->task);
	do {
		if (state & KVMFAULT__TASK_LEFT)
			return false;
	} while (!atomic_compare_exchange_weak(seat->task, &state,
					       state | KVMFAULT__TASK_HELD));
	return true;
}

void kvmfault__free_vcpu(struct kvmfault__seat *seat)
{
	if (seat->task && atomic_fetch_and(seat->task, ~KVMFAULT__TASK_HELD) &
			  KVMFAULT__TASK_LEFT)
		kvmfault__sys_futex_wake(seat->task);
}
