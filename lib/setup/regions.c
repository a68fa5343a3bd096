/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Set-up: how regions are added, removed and replaced. In: guest-physical
 * ranges, and the memories that they show. Out: the table of regions, in which
 * no two overlap. All changes of the table are made under the VM's lock;
 * lookups take none.
 */

#include "setup.h"

#define ULL(n) ((unsigned long long)(n))
#define KNOWN_FLAGS KVMFAULT_REGION_READONLY

/* A text that names the first wrong member and says what is wrong, or NULL. */
static const char *region_find_wrong_member(struct kvmfault_vm *vm,
					    const struct kvmfault_region *r)
{
	const uint64_t mask = KVMFAULT__PAGE - 1;

	if (!r->length)
		return "length: the region is empty";
	if ((r->gpa | r->length | r->offset) & mask)
		return "gpa, length, offset: one of them is not a multiple of 4 KiB";
	if (r->gpa + r->length - 1 < r->gpa)
		return "gpa, length: the region goes past the end of the address space";
	if (r->address_space >= KVMFAULT__SPACES)
		return "address_space: the number is more than 4095";
	if (r->flags & ~KNOWN_FLAGS)
		return "flags: this version does not know one of them";
	if (!r->memory && r->guest_memfd <= 0)
		return "memory, guest_memfd: neither is set: set one (a descriptor of 0 means none: duplicate that descriptor)";
	if (!r->memory)
		return NULL;
	if (r->memory->vm != vm)
		return "memory: the memory belongs to another context";
	if (r->offset + r->length < r->offset ||
	    r->offset + r->length > r->memory->length)
		return "offset, length: the region goes past its memory's end";
	return NULL;
}

static int region_check(struct kvmfault_vm *vm, const struct kvmfault_region *r)
{
	const char *why = region_find_wrong_member(vm, r);

	if (!why && r->memory && r->memory->remote)
		return kvmfault__refuse(vm, -EOPNOTSUPP,
			"kvmfault_region.memory: the memory at %p is mapped in another process, and a region is what vCPUs of this process see: map the memory's file here, and pass the other process's mapping to kvmfault_mapping_add()",
			r->memory->host);
	if (!why)
		return 0;
	return kvmfault__refuse(vm, -EINVAL,
		"kvmfault_region.%s (gpa %#llx, length %#llx, offset %#llx, address space %u, flags %#x)",
		why, ULL(r->gpa), ULL(r->length), ULL(r->offset),
		r->address_space, r->flags);
}

/* Makes a region that is still to be added. */
static int region_new(struct kvmfault_vm *vm,
		      const struct kvmfault_region *region,
		      struct kvmfault__span **span)
{
	struct kvmfault_region ours;
	struct kvmfault__region *new;
	int err;

	err = kvmfault__options_in(vm, "kvmfault_region", &ours, sizeof(ours),
				   region);
	if (!err)
		err = vm ? region_check(vm, &ours) : -EINVAL;
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
	*span = &new->span;
	return 0;
}

/* ---- under the VM's lock ---- */

static void region_enter_table(struct kvmfault_vm *vm,
			       struct kvmfault__span *span)
{
	vm->region_count++;
	if (!span->memory)
		return;
	span->memory->regions++;
	atomic_store(&span->memory->shown, span);
}

/* The region leaves with the table's next copy, but its memory must not name it
 * any more. True if the region has a guest_memfd. */
static bool region_leave_table(struct kvmfault_vm *vm,
			       struct kvmfault__span *span)
{
	kvmfault__table_drop(vm, span);
	vm->region_count--;
	if (span->memory) {
		span->memory->regions--;
		if (atomic_load(&span->memory->shown) == span)
			atomic_store(&span->memory->shown, NULL);
	}
	return ((struct kvmfault__region *)span)->info.guest_memfd > 0;
}

/* Called for each region in the table after others have left, or could not
 * leave. If the region that a memory named has left, another one of the memory
 * takes its place. */
static int region_stay_in_table(struct kvmfault__span *span, void *vm)
{
	if (span->leaves) {
		span->leaves = false;
		((struct kvmfault_vm *)vm)->leaving--;
		region_enter_table(vm, span);
	} else if (span->memory && !atomic_load(&span->memory->shown)) {
		atomic_store(&span->memory->shown, span);
	}
	return 0;
}

/* The region that begins there and is not about to leave, or NULL. */
static struct kvmfault__span *region_beginning_at(struct kvmfault_vm *vm,
						  uint32_t address_space,
						  uint64_t gpa)
{
	struct kvmfault__span *span = NULL;

	if (address_space < KVMFAULT__SPACES)
		span = kvmfault__table_at(&vm->regions,
					  kvmfault__key(address_space, gpa));
	return span && !span->leaves &&
	       ((struct kvmfault__region *)span)->info.gpa == gpa ? span : NULL;
}

/* The attributes of its pages need room. KVM keeps them by gpa and for address
 * space 0 only; room that is not used in the end does no harm. */
static int region_cover_attributes(struct kvmfault_vm *vm,
				   const struct kvmfault__span *span)
{
	const struct kvmfault_region *info =
		&((const struct kvmfault__region *)span)->info;
	struct kvmfault__gfns pages = {
		.first = info->gpa / KVMFAULT__PAGE,
		.end = (info->gpa + info->length - 1) / KVMFAULT__PAGE + 1,
	};

	return info->guest_memfd > 0 && !info->address_space ?
		kvmfault__attributes_cover(vm, pages) : 0;
}

/* Adds the regions in the place of those that leave. *count: see
 * kvmfault__table_copy(). */
static int regions_lay(struct kvmfault_vm *vm, struct kvmfault__span **add,
		       size_t *count)
{
	size_t i, n = *count;
	void *copy;
	int err;

	err = kvmfault__table_copy(vm, &vm->regions, add, count, &copy);
	if (err)
		return err;
	for (i = 0; i < n && !err; i++)
		err = region_cover_attributes(vm, add[i]);
	if (err) {
		kvmfault__sys_free(copy);
		return err;
	}
	kvmfault__table_put(vm, &vm->regions, copy);
	for (i = 0; i < n; i++)
		region_enter_table(vm, add[i]);
	return 0;
}

/* ---- adding, removing and replacing ---- */

static bool region_removed_has_punch(struct kvmfault__seat *seat, void *unused)
{
	/* The seat holds the region by its span as well, and the caller holds
	 * the VM's lock: so the region is not freed meanwhile. */
	const struct kvmfault__region *region =
		kvmfault__held(seat, KVMFAULT__HAZARD_PUNCH);

	(void)unused;
	return region && atomic_load(&region->span.dead);
}

/* Until this returns, a thread may punch holes in a removed region's
 * guest_memfd; the VMM may close the guest_memfd afterwards. */
static void region_drain_punches(struct kvmfault_vm *vm)
{
	kvmfault__drain(vm, region_removed_has_punch, NULL);
}

static int region_refuse_overlap(struct kvmfault_vm *vm,
				 const struct kvmfault__span *span)
{
	const struct kvmfault_region *info =
		&((const struct kvmfault__region *)span)->info;

	return kvmfault__refuse(vm, -EEXIST,
		"the region at gpa %#llx, of %#llx bytes, overlaps another region of address space %u: remove that one first",
		ULL(info->gpa), ULL(info->length), info->address_space);
}

KVMFAULT__EXPORT
int kvmfault_region_add(struct kvmfault_vm *vm,
			const struct kvmfault_region *region)
{
	struct kvmfault__span *span;
	int err = region_new(vm, region, &span);
	size_t one = 1;

	if (err)
		return err;
	kvmfault__sys_lock(&vm->lock);
	err = regions_lay(vm, &span, &one);
	kvmfault__sys_unlock(&vm->lock);
	if (err == -EEXIST)
		region_refuse_overlap(vm, span);
	if (err)
		kvmfault__sys_free(span);
	else
		kvmfault__expect_service(vm);
	return err;
}

KVMFAULT__EXPORT
int kvmfault_region_remove(struct kvmfault_vm *vm, uint32_t address_space,
			   uint64_t gpa)
{
	struct kvmfault__span *span;
	bool private = false;

	if (!vm)
		return -EINVAL;
	kvmfault__sys_lock(&vm->lock);
	span = region_beginning_at(vm, address_space, gpa);
	if (span) {
		atomic_store(&span->dead, true);
		private = region_leave_table(vm, span);
		kvmfault__table_sweep(vm, &vm->regions);
		kvmfault__table_each(&vm->regions, region_stay_in_table, vm);
	}
	kvmfault__sys_unlock(&vm->lock);
	if (private)
		region_drain_punches(vm);
	return span ? 0 : -ENOENT;
}

/* The list has to be in the order of the keys. */
static int regions_new(struct kvmfault_vm *vm,
		       const struct kvmfault_region *const *from, size_t count,
		       struct kvmfault__span **add)
{
	size_t i;
	int err;

	for (i = 0; i < count; i++) {
		err = region_new(vm, from[i], &add[i]);
		if (err)
			return err;
		if (i && add[i]->first <= add[i - 1]->first)
			return kvmfault__refuse(vm, -EINVAL,
				"kvmfault_regions_replace: add[%zu], at gpa %#llx, does not come after the region before it: sort the list by address space and gpa",
				i, ULL(from[i]->gpa));
	}
	return 0;
}

static void regions_free(struct kvmfault__span **span, size_t count)
{
	while (count--)
		kvmfault__sys_free(span[count]);
}

/* The caller's struct may be of another version of the library. */
static struct kvmfault__span *
region_find_named(struct kvmfault_vm *vm, const struct kvmfault_region *region)
{
	struct kvmfault_region ours;

	kvmfault__options(&ours, sizeof(ours), region);
	return region_beginning_at(vm, ours.address_space, ours.gpa);
}

/* Under the VM's lock. If this fails, *removed or *added is the index of the
 * region that is in the way. */
static int regions_replace_locked(struct kvmfault_vm *vm,
				  const struct kvmfault_region *const *remove,
				  size_t *removed, struct kvmfault__span **add,
				  size_t *added, bool *private)
{
	size_t i, n = *removed;
	int err = 0;

	for (i = 0; i < n && !err; i++) {
		struct kvmfault__span *span = region_find_named(vm, remove[i]);

		if (span)
			*private |= region_leave_table(vm, span);
		else
			err = -ENOENT;
		*removed = i;
	}
	if (!err)
		err = regions_lay(vm, add, added);
	kvmfault__table_each(&vm->regions, region_stay_in_table, vm);
	return err;
}

static uint64_t regions_key(const struct kvmfault_region *region)
{
	return kvmfault__key(region->address_space, region->gpa);
}

static int regions_check_lists(struct kvmfault_vm *vm,
			       const struct kvmfault_region *const *remove,
			       size_t removed,
			       const struct kvmfault_region *const *add,
			       size_t added)
{
	struct kvmfault_region unused;
	int err = 0;
	size_t i;

	if (!vm)
		return -EINVAL;
	if ((removed && !remove) || (added && !add))
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_regions_replace: a list is NULL, and its count is not 0: pass the list or a count of 0");
	for (i = 0; i < removed && !err; i++)
		err = kvmfault__options_in(vm, "kvmfault_region", &unused,
					   sizeof(unused), remove[i]);
	for (i = 1; i < removed && !err; i++)
		if (regions_key(remove[i]) < regions_key(remove[i - 1]))
			err = kvmfault__refuse(vm, -EINVAL,
				"kvmfault_regions_replace: remove[%zu] does not ascend: sort the list by address space and gpa",
				i);
	return err;
}

KVMFAULT__EXPORT
int kvmfault_regions_replace(struct kvmfault_vm *vm,
			     const struct kvmfault_region *const *remove,
			     size_t removed,
			     const struct kvmfault_region *const *add,
			     size_t added)
{
	struct kvmfault__span **new;
	size_t gone = removed, come = added;
	bool private = false;
	int err;

	err = regions_check_lists(vm, remove, removed, add, added);
	if (err)
		return err;
	new = kvmfault__sys_alloc((added + 1) * sizeof(*new), 0);
	if (!new)
		return -ENOMEM;
	err = regions_new(vm, add, added, new);
	if (!err) {
		kvmfault__sys_lock(&vm->lock);
		err = regions_replace_locked(vm, remove, &gone, new, &come,
					     &private);
		kvmfault__sys_unlock(&vm->lock);
	}
	if (err == -EEXIST)
		region_refuse_overlap(vm, new[come]);
	if (err == -ENOENT)
		kvmfault__refuse(vm, err,
			"kvmfault_regions_replace: remove[%zu]: no region begins there, or the list names that region twice",
			gone);
	if (err)
		regions_free(new, added);
	kvmfault__sys_free(new);
	if (!err && private)
		region_drain_punches(vm);
	if (!err)
		kvmfault__expect_service(vm);
	return err;
}
