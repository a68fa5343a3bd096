/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage translate, its guest side: guest-physical ranges. In: a gpa, or an
 * offset in a memory. Out: the region that shows it, held in the caller's seat.
 * Regions come and go while vCPUs run, any number of them at once. That does
 * not concern a fetch in flight, which belongs to the memory.
 */

#include "region.h"

void kvmfault__warn_unshown(struct kvmfault_memory *memory, uint64_t offset)
{
	if (atomic_exchange(&memory->unshown, true))
		return;
	kvmfault__log(memory->vm, KVMFAULT_LOG_WARNING,
		      "memory %p: a vCPU has touched offset %#llx, and no region shows that offset: add a region for each memslot with kvmfault_region_add(), or MMIO and instructions that KVM emulates there are taken for a device's",
		      memory->host, (unsigned long long)offset);
}

static bool region_is_showing(const struct kvmfault__span *span,
			      const void *what)
{
	const struct kvmfault__region *region = (const void *)span;
	const struct kvmfault__target *target = what;

	return span->memory == target->memory &&
	       target->offset >= region->info.offset &&
	       target->offset - region->info.offset < region->info.length;
}

/* Mostly one region shows a memory, and the memory knows that region. The seat
 * holds the memory by its mapping's span until now, and by the region's from
 * here on. */
static struct kvmfault__region *
region_find_known(struct kvmfault__seat *seat,
		  const struct kvmfault__target *target)
{
	struct kvmfault__span *span =
		kvmfault__hold(seat, KVMFAULT__HAZARD_REGION,
			       &target->memory->shown);

	if (span && region_is_showing(span, target)) {
		atomic_store(&seat->span, span);
		if (atomic_load(&span->dead))
			span = NULL;
	} else {
		span = NULL;
	}
	atomic_store_explicit(&seat->hazard[KVMFAULT__HAZARD_REGION], NULL,
			      memory_order_release);
	return (struct kvmfault__region *)span;
}

struct kvmfault__region *
kvmfault__region_showing(struct kvmfault__seat *seat,
			 const struct kvmfault_memory *memory, uint64_t offset)
{
	const struct kvmfault__target target = {
		.memory = (struct kvmfault_memory *)(uintptr_t)memory,
		.offset = offset,
	};
	struct kvmfault__region *known = region_find_known(seat, &target);

	if (known)
		return known;
	return (struct kvmfault__region *)
		kvmfault__table_search(seat, &seat->vm->regions,
				       region_is_showing, &target);
}

KVMFAULT__EXPORT
int kvmfault_region_find(struct kvmfault_vm *vm, uint32_t address_space,
			 uint64_t gpa, struct kvmfault_region *region)
{
	struct kvmfault__region *found;
	struct kvmfault__seat *seat;
	int err;

	if (!vm)
		return -EINVAL;
	err = kvmfault__options_to(vm, "kvmfault_region", region);
	if (err)
		return err;
	err = -ENOENT;
	seat = kvmfault__call_begin(vm);
	if (!seat)
		return -ENOMEM;
	found = kvmfault__region_find(seat, address_space, gpa);
	if (found)
		err = kvmfault__options_out(region, &found->info,
					    sizeof(found->info));
	kvmfault__leave(seat);
	kvmfault__call_end(seat);
	return err;
}
