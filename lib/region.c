/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage translate, its guest side: guest-physical ranges. In: the regions of
 * the VMM. Out: for a gpa the region that shows it, held. Regions come and go
 * while vCPUs run; a fetch in flight is the memory's and does not care.
 */

#include "internal.h"

#define ULL(n) ((unsigned long long)(n))
#define KNOWN_FLAGS KVMFAULT_REGION_READONLY

/* Which member is wrong, or NULL. */
static const char *wrong(struct kvmfault_vm *vm,
			 const struct kvmfault_region *r)
{
	const uint64_t mask = KVMFAULT__PAGE - 1;

	if (!r->length)
		return "length: it is 0";
	if ((r->gpa | r->length | r->offset) & mask)
		return "gpa, length, offset: one is not a multiple of 4 KiB";
	if (r->gpa + r->length - 1 < r->gpa)
		return "gpa, length: together they are past the end of all";
	if (r->address_space >= KVMFAULT__SPACES)
		return "address_space: it is more than 4095";
	if (r->flags & ~KNOWN_FLAGS)
		return "flags: one is not known to this version";
	if (!r->memory && r->guest_memfd <= 0)
		return "memory, guest_memfd: neither is set (a descriptor that is 0 means none: duplicate it)";
	if (!r->memory)
		return NULL;
	if (r->memory->vm != vm)
		return "memory: it is of another context";
	if (r->offset + r->length < r->offset ||
	    r->offset + r->length > r->memory->length)
		return "offset, length: the region goes past its memory's end";
	return NULL;
}

static int check(struct kvmfault_vm *vm, const struct kvmfault_region *r)
{
	const char *why = wrong(vm, r);

	if (!why)
		return 0;
	return kvmfault__refuse(vm, -EINVAL,
		"kvmfault_region.%s (gpa %#llx, length %#llx, offset %#llx, address space %u, flags %#x)",
		why, ULL(r->gpa), ULL(r->length), ULL(r->offset),
		r->address_space, r->flags);
}

/* Under the VM's lock. Found by nobody before there is room for its pages'
 * attributes. */
static int add(struct kvmfault_vm *vm, struct kvmfault__region *region)
{
	const struct kvmfault_region *info = &region->info;
	struct kvmfault__gfns pages = {
		.first = info->gpa / KVMFAULT__PAGE,
		.end = (info->gpa + info->length - 1) / KVMFAULT__PAGE + 1,
	};
	int err;

	region->span.dead = true;
	err = kvmfault__table_add(vm, &vm->regions, &region->span);
	if (err) {
		kvmfault__sys_free(region);
		return err;
	}
	/* KVM keeps them by gpa, and for address space 0. */
	if (info->guest_memfd > 0 && !info->address_space)
		err = kvmfault__attributes_cover(vm, pages);
	if (err) {
		kvmfault__table_kill(vm, &region->span);
		kvmfault__table_sweep(vm, &vm->regions);
		return err;
	}
	vm->region_count++;
	atomic_store(&region->span.dead, false);
	if (info->memory) {
		info->memory->regions++;
		atomic_store(&info->memory->shown, region);
	}
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_region_add(struct kvmfault_vm *vm,
			const struct kvmfault_region *region)
{
	struct kvmfault_region ours;
	struct kvmfault__region *new;
	int err;

	err = kvmfault__options_in(vm, "kvmfault_region", &ours, sizeof(ours),
				   region);
	if (err)
		return err;
	if (!vm)
		return -EINVAL;
	err = check(vm, &ours);
	if (err)
		return err;
	new = kvmfault__sys_alloc(sizeof(*new), 0);
	if (!new)
		return -ENOMEM;
	new->info = ours;
	new->span.memory = ours.memory;
	new->span.first = kvmfault__key(ours.address_space, ours.gpa);
	new->span.last = kvmfault__key(ours.address_space,
				       ours.gpa + ours.length - 1);
	kvmfault__sys_lock(&vm->lock);
	err = add(vm, new);
	kvmfault__sys_unlock(&vm->lock);
	if (err == -EEXIST)
		kvmfault__refuse(vm, err,
			"the region at gpa %#llx, of %#llx bytes, overlaps another one of address space %u",
			ULL(ours.gpa), ULL(ours.length), ours.address_space);
	if (!err && ours.memory)
		kvmfault__expect_service(vm);
	return err;
}

/* Another one that shows the same memory? */
static int show(struct kvmfault__span *span, void *region)
{
	const struct kvmfault__span *removed = region;

	if (span == removed || span->memory != removed->memory)
		return 0;
	atomic_store(&span->memory->shown, span);
	return 1;
}

/* Who looks by its memory must not find it any more. */
static void hide(struct kvmfault_vm *vm, struct kvmfault__region *region)
{
	_Atomic(const void *) *shown = &region->span.memory->shown;

	if (atomic_load(shown) == region &&
	    !kvmfault__table_each(&vm->regions, show, region))
		atomic_store(shown, NULL);
}

static bool punches(struct kvmfault__seat *seat, void *region)
{
	return atomic_load(&seat->punch) == region;
}

KVMFAULT__EXPORT
int kvmfault_region_remove(struct kvmfault_vm *vm, uint32_t address_space,
			   uint64_t gpa)
{
	struct kvmfault__region *region;
	struct kvmfault__span *span;
	bool private = false;

	if (!vm)
		return -EINVAL;
	if (address_space >= KVMFAULT__SPACES)
		return -ENOENT;
	kvmfault__sys_lock(&vm->lock);
	span = kvmfault__table_at(&vm->regions,
				  kvmfault__key(address_space, gpa));
	region = (struct kvmfault__region *)span;
	if (region && region->info.gpa != gpa)
		region = NULL;
	if (region) {
		private = region->info.guest_memfd > 0;
		vm->region_count--;
		if (span->memory) {
			span->memory->regions--;
			hide(vm, region);
		}
		kvmfault__table_kill(vm, span);
		kvmfault__table_sweep(vm, &vm->regions);
	}
	kvmfault__sys_unlock(&vm->lock);
	/* From now on the guest_memfd is the VMM's to close. */
	if (private)
		kvmfault__drain(vm, punches, region);
	return region ? 0 : -ENOENT;
}

void kvmfault__warn_unshown(struct kvmfault_memory *memory, uint64_t offset)
{
	if (atomic_exchange(&memory->unshown, true))
		return;
	kvmfault__log(memory->vm, KVMFAULT_LOG_WARNING,
		      "a vCPU has touched the memory at %p, %#llx bytes into it, and no region shows that: add one for each slot (kvmfault_region_add()), or MMIO and instructions that KVM emulates there are taken for a device's",
		      memory->host, ULL(offset));
}

static bool shows(const struct kvmfault__span *span, const void *what)
{
	const struct kvmfault__region *region = (const void *)span;
	const struct kvmfault__place *place = what;

	return span->memory == place->memory &&
	       place->offset >= region->info.offset &&
	       place->offset - region->info.offset < region->info.length;
}

/* Mostly there is but one, and the memory knows it. That is held until now by a
 * span of its own, and from then on by this one. */
static struct kvmfault__region *
known_region(struct kvmfault__seat *seat, const struct kvmfault__place *place)
{
	struct kvmfault__span *span =
		kvmfault__hold(&seat->table, &place->memory->shown);

	if (span && shows(span, place)) {
		atomic_store(&seat->span, span);
		if (atomic_load(&span->dead))
			span = NULL;
	} else {
		span = NULL;
	}
	atomic_store_explicit(&seat->table, NULL, memory_order_release);
	return (struct kvmfault__region *)span;
}

struct kvmfault__region *
kvmfault__region_showing(struct kvmfault__seat *seat,
			 const struct kvmfault_memory *memory, uint64_t offset)
{
	const struct kvmfault__place place = {
		.memory = (struct kvmfault_memory *)(uintptr_t)memory,
		.offset = offset,
	};
	struct kvmfault__region *known = known_region(seat, &place);

	if (known)
		return known;
	return (struct kvmfault__region *)
		kvmfault__table_search(seat, &seat->vm->regions, shows, &place);
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
