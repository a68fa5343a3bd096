/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The guest's side: regions that show memories, which guest pages are private,
 * and which missing pages end KVM_RUN, by a marker or with an exit
 * (KVM_MEM_USERFAULT, not userfaultfd).
 */

#ifndef KVMFAULT__REGION_H
#define KVMFAULT__REGION_H

#include "../os/abi.h"
#include "page.h"

/* userfault.c: which missing pages end KVM_RUN with an exit (KVM_MEM_USERFAULT,
 * not userfaultfd) */
/* The flags of an exit that this VM's delivery mode explains, and that are no
 * resolver's affair; and the access that those flags tell. */
uint64_t kvmfault__exit_flags(const struct kvmfault_vm *vm,
			      const struct kvmfault_fault *fault);
void kvmfault__exit_access(const struct kvmfault_vm *vm,
			   struct kvmfault_fault *fault);
int kvmfault__userfault_new(struct kvmfault_memory *memory);
void kvmfault__userfault_free(struct kvmfault_memory *memory);
/* Have the pages' bits follow their states. Call this after a change of states
 * and before the wakes; and after pages are claimed for a hole, before that is
 * punched. */
void kvmfault__userfault_set(struct kvmfault_memory *memory, uint64_t page,
			     uint64_t count);
static inline void kvmfault__userfault_follow(struct kvmfault_memory *memory,
					      uint64_t page, uint64_t count)
{
	if (memory->userfault)
		kvmfault__userfault_set(memory, page, count);
}
/* From now on all of the memory's missing pages come by userfaultfd; or again
 * by exits, if the kernel has them. Both also work while vCPUs run. */
void kvmfault__userfault_leave(struct kvmfault_memory *memory);
void kvmfault__userfault_enter(struct kvmfault_memory *memory);

/* region.c */
struct kvmfault__region {
	struct kvmfault__span span;
	struct kvmfault_region info;
};
/* The offset of a gpa in the memory that the region shows. */
static inline uint64_t
kvmfault__region_offset(const struct kvmfault__region *region, uint64_t gpa)
{
	return region->info.offset + gpa - region->info.gpa;
}

/* The target of a fault, as far as it is known, in the span that the seat
 * holds. */
struct kvmfault__target {
	struct kvmfault_memory *memory;
	const struct kvmfault__region *region;
	struct kvmfault_mapping *origin;	/* where a sleeper sleeps */
	uint64_t offset;	/* into the memory, or region without one */
	struct kvmfault__tries {
		unsigned int count;	/* not possible at that time */
		unsigned int failures;	/* no resolver resolved it */
	} tries;		/* of a message, until now */
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

/* Find the region at a gpa, or NULL. The seat holds it until
 * kvmfault__leave(). */
static inline struct kvmfault__region *
kvmfault__region_find(struct kvmfault__seat *seat, uint32_t space, uint64_t gpa)
{
	if (space >= KVMFAULT__SPACES)
		return NULL;
	return (struct kvmfault__region *)
		kvmfault__table_find(seat, &seat->vm->regions,
				     kvmfault__key(space, gpa));
}

/* Find a region that shows this offset of a memory, or NULL; held as above. */
struct kvmfault__region *
kvmfault__region_showing(struct kvmfault__seat *seat,
			 const struct kvmfault_memory *memory, uint64_t offset);

/* Warn, once for each memory, that a memslot has no region. */
void kvmfault__warn_unshown(struct kvmfault_memory *memory, uint64_t offset);

/* marker.c: markers in the memslots' mapping, by marker block */
int kvmfault__markers_new(struct kvmfault_memory *memory);
void kvmfault__markers_free(struct kvmfault_memory *memory);
/* For a message: mark the page's marker block, if that pays. After the answer:
 * mark blocks that the guest may come to next. */
void kvmfault__mark(struct kvmfault__seat *seat,
		    const struct kvmfault__target *target);
void kvmfault__mark_ahead(struct kvmfault__seat *seat,
			  const struct kvmfault__target *target);
/* Take every marker out of the memory, or out of every memory. */
int kvmfault__unmark(struct kvmfault_memory *memory);
int kvmfault__unmark_all(struct kvmfault__seat *seat);
/* The same for a memory that is not marked any more (memory->settling). */
int kvmfault__markers_end(struct kvmfault_memory *memory);

/* attributes.c: which pages are private, as KVM was last told */
bool kvmfault__private(struct kvmfault_vm *vm, uint64_t gfn);
/* The first of the pages that is private, or that is not; pages.end if none
 * is. */
uint64_t kvmfault__attributes_find(struct kvmfault_vm *vm,
				   struct kvmfault__gfns pages, bool private);
void kvmfault__attributes_note(struct kvmfault_vm *vm,
			       struct kvmfault__gfns pages, bool private);
/* Under the VM's lock: make room to note these pages' attributes, which stays
 * until the VM goes. Returns 0, or -ENOMEM: nothing has changed. */
int kvmfault__attributes_cover(struct kvmfault_vm *vm,
			       struct kvmfault__gfns pages);
void kvmfault__attributes_free(struct kvmfault_vm *vm);

/* Is the page there private: only in the region's guest_memfd, and not in a
 * memory? */
static inline bool
kvmfault__shows_private(struct kvmfault_vm *vm,
			const struct kvmfault__region *region, uint64_t gpa)
{
	return region->info.guest_memfd > 0 &&
	       kvmfault__private(vm, gpa / KVMFAULT__PAGE);
}

/* Could a conversion answer the fault, and of which pages? The caller need not
 * hold the region any more. */
bool kvmfault__convertible(const struct kvmfault_vm *vm,
			   const struct kvmfault_fault *fault,
			   const struct kvmfault_region *region,
			   struct kvmfault__gfns *pages);
/* Does the fault want the private page? */
static inline bool kvmfault__wants_private(const struct kvmfault_fault *fault)
{
	return fault->flags & KVMFAULT__EXIT_FLAG_PRIVATE;
}

#endif
