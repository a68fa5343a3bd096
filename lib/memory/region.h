/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The guest's side: regions that show memories, which of their pages are private, and
 * how KVM or a marker has a missing page end in the library.
 */

#ifndef KVMFAULT__REGION_H
#define KVMFAULT__REGION_H

#include "../os/abi.h"
#include "page.h"

/* userfault.c: pages that leave KVM_RUN */
/* The flags of an exit that are this VM's delivery and no resolver's affair;
 * and what they say of the access. */
uint64_t kvmfault__exit_flags(const struct kvmfault_vm *vm,
			      const struct kvmfault_fault *fault);
void kvmfault__exit_access(const struct kvmfault_vm *vm,
			   struct kvmfault_fault *fault);
int kvmfault__userfault_new(struct kvmfault_memory *memory);
void kvmfault__userfault_free(struct kvmfault_memory *memory);
/* Have the pages' bits say what their states say now. After a change of states
 * and before the wakes; before a hole is punched, when the pages are taken. */
void kvmfault__userfault_set(struct kvmfault_memory *memory, uint64_t page,
			     uint64_t count);
static inline void kvmfault__userfault_follow(struct kvmfault_memory *memory,
					      uint64_t page, uint64_t count)
{
	if (memory->userfault)
		kvmfault__userfault_set(memory, page, count);
}
/* All by userfaultfd from now on; as it was. Also while vCPUs run. */
void kvmfault__userfault_leave(struct kvmfault_memory *memory);
void kvmfault__userfault_enter(struct kvmfault_memory *memory);

/* region.c */
struct kvmfault__region {
	struct kvmfault__span span;
	struct kvmfault_region info;
};
/* Where a gpa of the region is in what it shows. */
static inline uint64_t
kvmfault__region_offset(const struct kvmfault__region *region, uint64_t gpa)
{
	return region->info.offset + gpa - region->info.gpa;
}

/* Where a fault is, as far as it is known: in the held span. */
struct kvmfault__target {
	struct kvmfault_memory *memory;
	const struct kvmfault__region *region;
	struct kvmfault_mapping *origin;	/* where its thread sleeps */
	uint64_t offset;	/* into the memory, or region without one */
	struct kvmfault__tries {
		unsigned int count;	/* that were not possible then */
		unsigned int failures;	/* that nobody resolved */
	} tries;		/* a message's, until now */
};
/* region may be NULL. */
static inline struct kvmfault__target
kvmfault__region_target(const struct kvmfault__region *region, uint64_t gpa)
{
	struct kvmfault__target target = { .region = region };

	if (region) {
		target.memory = region->span.memory;
		target.offset = kvmfault__region_offset(region, gpa);
	}
	return target;
}

/* Held in the seat until kvmfault__leave(); NULL: none there. */
static inline struct kvmfault__region *
kvmfault__region_find(struct kvmfault__seat *seat, uint32_t space, uint64_t gpa)
{
	if (space >= KVMFAULT__SPACES)
		return NULL;
	return (struct kvmfault__region *)
		kvmfault__table_find(seat, &seat->vm->regions,
				     kvmfault__key(space, gpa));
}

/* The first that shows this place of a memory, held like the above. */
struct kvmfault__region *
kvmfault__region_showing(struct kvmfault__seat *seat,
			 const struct kvmfault_memory *memory, uint64_t offset);

/* Once for each memory, that a slot has no region. */
void kvmfault__warn_unshown(struct kvmfault_memory *memory, uint64_t offset);

/* marker.c: markers in the memslots' mapping, by stretch */
int kvmfault__markers_new(struct kvmfault_memory *memory);
void kvmfault__markers_free(struct kvmfault_memory *memory);
/* A thread sleeps on a page there: mark its stretch, if that pays; and
 * when the thread was answered, what it may come to next. */
void kvmfault__mark(struct kvmfault__seat *seat,
		    const struct kvmfault__target *target);
void kvmfault__mark_ahead(struct kvmfault__seat *seat,
			  const struct kvmfault__target *target);
/* Take all of them out, of every memory. */
int kvmfault__unmark_all(struct kvmfault__seat *seat);

/* attributes.c: which pages are private, as KVM was last told */
bool kvmfault__private(struct kvmfault_vm *vm, uint64_t gfn);
/* The first page that is so, private or not; the end: none is. */
uint64_t kvmfault__attributes_find(struct kvmfault_vm *vm,
				   struct kvmfault__gfns pages, bool private);
void kvmfault__attributes_note(struct kvmfault_vm *vm,
			       struct kvmfault__gfns pages, bool private);
/* Under the VM's lock: room to note what these pages are; or -ENOMEM, and
 * nothing has changed. What there is stays until the VM goes. */
int kvmfault__attributes_cover(struct kvmfault_vm *vm,
			       struct kvmfault__gfns pages);
void kvmfault__attributes_free(struct kvmfault_vm *vm);

/* What the region shows there is in its guest_memfd, and nowhere else. */
static inline bool
kvmfault__shows_private(struct kvmfault_vm *vm,
			const struct kvmfault__region *region, uint64_t gpa)
{
	return region->info.guest_memfd > 0 &&
	       kvmfault__private(vm, gpa / KVMFAULT__PAGE);
}

/* Is it a fault that a conversion could answer? Of which pages; the region
 * need not be held any more. */
bool kvmfault__convertible(const struct kvmfault_vm *vm,
			   const struct kvmfault_fault *fault,
			   const struct kvmfault_region *region,
			   struct kvmfault__gfns *pages);
/* Does it want the private page? */
static inline bool kvmfault__wants_private(const struct kvmfault_fault *fault)
{
	return fault->flags & KVMFAULT__EXIT_FLAG_PRIVATE;
}

#endif
