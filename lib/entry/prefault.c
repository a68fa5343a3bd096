/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: a window came, and KVM has not mapped its other
 * pages for the guest yet. In: the window. Out: KVM has mapped as much of it as
 * it does now. This is a hint: nothing depends on it, and its errors are not
 * reported.
 */

#include "../os/abi.h"
#include "entry.h"

#define TRIES 4

/* A kernel that knows KVM_PRE_FAULT_MEMORY reads its argument first: -EFAULT.
 * One that does not know it says -EINVAL. */
bool kvmfault__can_prefault(int vcpu_fd)
{
	return kvmfault__sys_ioctl(vcpu_fd, KVMFAULT__PRE_FAULT_MEMORY, NULL) ==
	       -EFAULT;
}

/* Count the bytes that are present, from the range's beginning to its first
 * absent page: KVM would sleep there until that page comes. */
static uint64_t prefault_count_present(struct kvmfault__seat *seat,
				       uint32_t space, uint64_t gpa,
				       uint64_t length, unsigned int *shift)
{
	struct kvmfault__region *region = kvmfault__region_find(seat, space,
								gpa);
	struct kvmfault_memory *memory = region ? region->span.memory : NULL;
	uint64_t offset, end, at;

	/* A private page is never part of a window that came. */
	if (!memory || !kvmfault__tracked(memory) ||
	    region->info.guest_memfd > 0) {
		kvmfault__leave(seat);
		return 0;
	}
	offset = kvmfault__region_offset(region, gpa);
	end = region->info.offset + region->info.length;
	if (end > offset + length)
		end = offset + length;
	for (at = offset; at < end && kvmfault__page_state(memory,
	     at >> memory->page_shift) == KVMFAULT__PRESENT;)
		at = (at | (kvmfault__page_size(memory) - 1)) + 1;
	*shift = memory->page_shift;
	kvmfault__leave(seat);
	return (at < end ? at : end) - offset;
}

/* One call maps the whole range, unless something interrupts it. Then the rest
 * is tried again. */
static uint64_t prefault_map_range(int fd, uint64_t gpa, uint64_t length)
{
	struct kvmfault__pre_fault_memory range = {
		.gpa = gpa,
		.size = length,
	};
	int err = 0;
	int i;

	for (i = 0; i < TRIES && range.size && (!err || err == -EAGAIN); i++)
		err = kvmfault__sys_ioctl(fd, KVMFAULT__PRE_FAULT_MEMORY,
					  &range);
	return length - range.size;
}

void kvmfault__prefault(const struct kvmfault__task *task,
			const struct kvmfault__answer *answer)
{
	unsigned int shift = 0;
	uint64_t length;

	length = prefault_count_present(task->seat, task->space, answer->gpa,
					answer->length, &shift);
	if (!length)
		return;
	length = prefault_map_range(task->fd, answer->gpa, length);
	kvmfault__add(task->seat, KVMFAULT__COUNTER(prefaulted),
		      length >> shift);
}
