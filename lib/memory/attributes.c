/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: which guest-physical pages are private. This
 * keeps a note of what KVM was last told, since KVM can't be asked. In: pages,
 * and what KVM was told of them. Out: whether a page is private. Each page has
 * a bit, in leaves of 1 GiB. Leaves are made where a region has a guest_memfd
 * and are looked up without a lock. They stay until the VM goes, as KVM's
 * attributes do.
 */

#include "../core/bitmap.h"
#include "region.h"

#define LEAF ((1ULL << 30) / KVMFAULT__PAGE)	/* pages */

struct kvmfault__leaf {
	struct kvmfault__leaf *next;
	uint64_t number;
	_Atomic uint64_t private[LEAF / KVMFAULT__BITS];
};

static _Atomic(struct kvmfault__leaf *) *
attributes_leaf_list(struct kvmfault_vm *vm, uint64_t number)
{
	return &vm->conversions.leaves[number % KVMFAULT__LEAVES];
}

static struct kvmfault__leaf *attributes_find_leaf(struct kvmfault_vm *vm,
						   uint64_t number)
{
	struct kvmfault__leaf *leaf =
		atomic_load(attributes_leaf_list(vm, number));

	while (leaf && leaf->number != number)
		leaf = leaf->next;
	return leaf;
}

/* Returns the 64-bit word that holds the page's bit; 0 if no leaf is there:
 * shared. */
static uint64_t attributes_load_word(struct kvmfault_vm *vm, uint64_t gfn)
{
	struct kvmfault__leaf *leaf = attributes_find_leaf(vm, gfn / LEAF);

	return leaf ? atomic_load(&leaf->private[gfn % LEAF /
						 KVMFAULT__BITS]) : 0;
}

bool kvmfault__private(struct kvmfault_vm *vm, uint64_t gfn)
{
	return attributes_load_word(vm, gfn) >> gfn % KVMFAULT__BITS & 1;
}

uint64_t kvmfault__attributes_find(struct kvmfault_vm *vm,
				   struct kvmfault__gfns pages, bool private)
{
	uint64_t gfn = pages.first;

	while (gfn < pages.end) {
		uint64_t bits = attributes_load_word(vm, gfn);

		bits = (private ? bits : ~bits) >> gfn % KVMFAULT__BITS;
		if (bits) {
			gfn += (unsigned int)__builtin_ctzll(bits);
			return gfn < pages.end ? gfn : pages.end;
		}
		gfn = (gfn | (KVMFAULT__BITS - 1)) + 1;
	}
	return pages.end;
}

void kvmfault__attributes_note(struct kvmfault_vm *vm,
			       struct kvmfault__gfns pages, bool private)
{
	uint64_t gfn = pages.first, count;

	for (; gfn < pages.end; gfn += count) {
		struct kvmfault__leaf *leaf =
			attributes_find_leaf(vm, gfn / LEAF);

		count = LEAF - gfn % LEAF;
		if (count > pages.end - gfn)
			count = pages.end - gfn;
		kvmfault__bits_change(leaf->private, gfn % LEAF, count,
				      private);
	}
}

static void attributes_free_leaves(struct kvmfault__leaf *leaf)
{
	while (leaf) {
		struct kvmfault__leaf *next = leaf->next;

		kvmfault__sys_free(leaf);
		leaf = next;
	}
}

/* Make the leaves that are missing. On error *leaves is NULL. */
static int attributes_make_leaves(struct kvmfault_vm *vm, uint64_t number,
				  uint64_t last,
				  struct kvmfault__leaf **leaves)
{
	*leaves = NULL;
	for (; number <= last; number++) {
		struct kvmfault__leaf *leaf;

		if (attributes_find_leaf(vm, number))
			continue;
		/* Zeroed: all of its pages are shared. */
		leaf = kvmfault__sys_alloc(sizeof(*leaf), 0);
		if (!leaf) {
			attributes_free_leaves(*leaves);
			*leaves = NULL;
			return -ENOMEM;
		}
		leaf->number = number;
		leaf->next = *leaves;
		*leaves = leaf;
	}
	return 0;
}

int kvmfault__attributes_cover(struct kvmfault_vm *vm,
			       struct kvmfault__gfns pages)
{
	struct kvmfault__leaf *leaf, *next;
	int err = attributes_make_leaves(vm, pages.first / LEAF,
					 (pages.end - 1) / LEAF, &leaf);

	for (; leaf; leaf = next) {
		next = leaf->next;
		leaf->next = atomic_load(attributes_leaf_list(vm,
							      leaf->number));
		atomic_store(attributes_leaf_list(vm, leaf->number), leaf);
	}
	return err;
}

void kvmfault__attributes_free(struct kvmfault_vm *vm)
{
	size_t i;

	for (i = 0; i < KVMFAULT__LEAVES; i++)
		attributes_free_leaves(atomic_load(&vm->conversions.leaves[i]));
}

KVMFAULT__EXPORT
int kvmfault_is_private(struct kvmfault_vm *vm, uint64_t gpa)
{
	return vm ? kvmfault__private(vm, gpa / KVMFAULT__PAGE) : -EINVAL;
}

bool kvmfault__convertible(const struct kvmfault_vm *vm,
			   const struct kvmfault_fault *fault,
			   const struct kvmfault_region *region,
			   struct kvmfault__gfns *pages)
{
	uint64_t last;

	if (!vm->conversions.converter.set || !region ||
	    region->guest_memfd <= 0 ||
	    fault->kind != KVMFAULT_KIND_EXIT ||
	    fault->error == EHWPOISON || fault->address_space)
		return false;
	last = region->gpa + region->length - 1;
	if (last > fault->gpa + fault->length - 1)
		last = fault->gpa + fault->length - 1;
	pages->first = fault->gpa / KVMFAULT__PAGE;
	pages->end = last / KVMFAULT__PAGE + 1;
	return true;
}
