/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * How regions are added, removed and replaced. In: guest-physical ranges, and the
 * memories that they show. Out: the table of regions, in which no two overlap.
 */

#include "setup.h"

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

/* One to be added, or -errno. */
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
		err = vm ? check(vm, &ours) : -EINVAL;
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

static void enter(struct kvmfault_vm *vm, struct kvmfault__span *span)
{
	vm->region_count++;
	if (!span->memory)
		return;
	span->memory->regions++;
	atomic_store(&span->memory->shown, span);
}

/* It goes with the table's next copy. Who looks by its memory must not find it
 * any more. Has it a guest_memfd? */
static bool leave(struct kvmfault_vm *vm, struct kvmfault__span *span)
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

/* After some have left, or could not: those that stay. Where the one that a
 * memory knew is gone another one takes its place. */
static int stay(struct kvmfault__span *span, void *vm)
{
	if (span->leaves) {
		span->leaves = false;
		((struct kvmfault_vm *)vm)->leaving--;
		enter(vm, span);
	} else if (span->memory && !atomic_load(&span->memory->shown)) {
		atomic_store(&span->memory->shown, span);
	}
	return 0;
}

/* That begins there, and does not leave yet. */
static struct kvmfault__span *begins_at(struct kvmfault_vm *vm,
					uint32_t address_space, uint64_t gpa)
{
	struct kvmfault__span *span = NULL;

	if (address_space < KVMFAULT__SPACES)
		span = kvmfault__table_at(&vm->regions,
					  kvmfault__key(address_space, gpa));
	return span && !span->leaves &&
	       ((struct kvmfault__region *)span)->info.gpa == gpa ? span : NULL;
}

/* Room for the attributes of its pages, which KVM keeps by gpa, and for address
 * space 0. What is not used in the end does no harm. */
static int cover(struct kvmfault_vm *vm, const struct kvmfault__span *span)
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

/* Instead of those that leave. *count: as kvmfault__table_copy(). */
static int lay(struct kvmfault_vm *vm, struct kvmfault__span **add,
	       size_t *count)
{
	size_t i, n = *count;
	void *copy;
	int err;

	err = kvmfault__table_copy(vm, &vm->regions, add, count, &copy);
	if (err)
		return err;
	for (i = 0; i < n && !err; i++)
		err = cover(vm, add[i]);
	if (err) {
		kvmfault__sys_free(copy);
		return err;
	}
	kvmfault__table_put(vm, &vm->regions, copy);
	for (i = 0; i < n; i++)
		enter(vm, add[i]);
	return 0;
}

/* ---- */

static bool punches_removed(struct kvmfault__seat *seat, void *unused)
{
	/* Its seat holds it by span as well, and the VM's lock is held: it is
	 * not freed meanwhile. */
	const struct kvmfault__region *region = kvmfault__held(seat, KVMFAULT__HAZARD_PUNCH);

	(void)unused;
	return region && atomic_load(&region->span.dead);
}

/* From now on a removed region's guest_memfd is the VMM's to close. */
static void let_close(struct kvmfault_vm *vm)
{
	kvmfault__drain(vm, punches_removed, NULL);
}

static int overlaps(struct kvmfault_vm *vm, const struct kvmfault__span *span)
{
	const struct kvmfault_region *info =
		&((const struct kvmfault__region *)span)->info;

	return kvmfault__refuse(vm, -EEXIST,
		"the region at gpa %#llx, of %#llx bytes, overlaps another one of address space %u",
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
	err = lay(vm, &span, &one);
	kvmfault__sys_unlock(&vm->lock);
	if (err == -EEXIST)
		overlaps(vm, span);
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
	span = begins_at(vm, address_space, gpa);
	if (span) {
		atomic_store(&span->dead, true);
		private = leave(vm, span);
		kvmfault__table_sweep(vm, &vm->regions);
		kvmfault__table_each(&vm->regions, stay, vm);
	}
	kvmfault__sys_unlock(&vm->lock);
	if (private)
		let_close(vm);
	return span ? 0 : -ENOENT;
}

/* All of them, in the order of their keys. */
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
				"kvmfault_regions_replace: add[%zu], at gpa %#llx, does not come after the one before it: sort them by address space and gpa",
				i, ULL(from[i]->gpa));
	}
	return 0;
}

static void regions_free(struct kvmfault__span **span, size_t count)
{
	while (count--)
		kvmfault__sys_free(span[count]);
}

/* As the caller's struct says, of whichever version it is. */
static struct kvmfault__span *named(struct kvmfault_vm *vm,
				    const struct kvmfault_region *region)
{
	struct kvmfault_region ours;

	kvmfault__options(&ours, sizeof(ours), region);
	return begins_at(vm, ours.address_space, ours.gpa);
}

/* Under the VM's lock. *removed and *added: which one is in the way. */
static int replace(struct kvmfault_vm *vm,
		   const struct kvmfault_region *const *remove, size_t *removed,
		   struct kvmfault__span **add, size_t *added, bool *private)
{
	size_t i, n = *removed;
	int err = 0;

	for (i = 0; i < n && !err; i++) {
		struct kvmfault__span *span = named(vm, remove[i]);

		if (span)
			*private |= leave(vm, span);
		else
			err = -ENOENT;
		*removed = i;
	}
	if (!err)
		err = lay(vm, add, added);
	kvmfault__table_each(&vm->regions, stay, vm);
	return err;
}

static int check_lists(struct kvmfault_vm *vm,
		       const struct kvmfault_region *const *remove,
		       size_t removed,
		       const struct kvmfault_region *const *add, size_t added)
{
	struct kvmfault_region unused;
	int err = 0;
	size_t i;

	if (!vm)
		return -EINVAL;
	if ((removed && !remove) || (added && !add))
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_regions_replace: a list is NULL, and its count is not 0");
	for (i = 0; i < removed && !err; i++)
		err = kvmfault__options_in(vm, "kvmfault_region", &unused,
					   sizeof(unused), remove[i]);
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

	err = check_lists(vm, remove, removed, add, added);
	if (err)
		return err;
	new = kvmfault__sys_alloc((added + 1) * sizeof(*new), 0);
	if (!new)
		return -ENOMEM;
	err = regions_new(vm, add, added, new);
	if (!err) {
		kvmfault__sys_lock(&vm->lock);
		err = replace(vm, remove, &gone, new, &come, &private);
		kvmfault__sys_unlock(&vm->lock);
	}
	if (err == -EEXIST)
		overlaps(vm, new[come]);
	if (err == -ENOENT)
		kvmfault__refuse(vm, err,
			"kvmfault_regions_replace: remove[%zu]: no region begins there, or it was named before",
			gone);
	if (err)
		regions_free(new, added);
	kvmfault__sys_free(new);
	if (!err && private)
		let_close(vm);
	if (!err)
		kvmfault__expect_service(vm);
	return err;
}
