/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage publish, KVM's side: which missing pages end KVM_RUN with an exit
 * (KVM_MEM_USERFAULT, not userfaultfd), on kernels that have one of the
 * proposed ABIs. In: the states of pages. Out: a bitmap that follows the
 * states, and the flags and the bitmap's address for a memslot. A bit that is
 * set without need costs an exit, and a bit that is clear without need costs a
 * message. Neither is an error, since both lead to the page's state.
 */

#include <string.h>
#include <sys/mman.h>

#include "kvmfault-experimental.h"
#include "../os/abi.h"
#include "../core/bitmap.h"
#include "region.h"

/* ---- exits: flags and access ---- */

uint64_t kvmfault__exit_flags(const struct kvmfault_vm *vm,
			      const struct kvmfault_fault *fault)
{
	if (fault->kind != KVMFAULT_KIND_EXIT)
		return 0;
	switch (vm->how.kernel_exit) {
	case KVMFAULT__KERNEL_EXIT_USERFAULT:
		return KVMFAULT__EXIT_FLAG_USERFAULT;
	case KVMFAULT__KERNEL_EXIT_ON_MISSING:
		return KVMFAULT__EXIT_FLAG_READ | KVMFAULT__EXIT_FLAG_WRITE |
		       KVMFAULT__EXIT_FLAG_EXEC;
	case KVMFAULT__KERNEL_EXIT_NONE:
		break;
	}
	return 0;
}

void kvmfault__exit_access(const struct kvmfault_vm *vm,
			   struct kvmfault_fault *fault)
{
	uint64_t flags = fault->flags & kvmfault__exit_flags(vm, fault);

	if (flags & KVMFAULT__EXIT_FLAG_WRITE)
		fault->access = KVMFAULT_ACCESS_WRITE;
	else if (flags & KVMFAULT__EXIT_FLAG_EXEC)
		fault->access = KVMFAULT_ACCESS_EXEC;
	else if (flags & KVMFAULT__EXIT_FLAG_READ)
		fault->access = KVMFAULT_ACCESS_READ;
}

/* ---- the bitmap ---- */

/* A bit stands for a page of the host, and a page of the memory may be many. */
static unsigned int userfault_page_shift(const struct kvmfault_memory *memory)
{
	return memory->page_shift -
	       (unsigned int)__builtin_ctzll(kvmfault__sys_page_size());
}

static uint64_t userfault_bitmap_size(const struct kvmfault_memory *memory)
{
	uint64_t pages = memory->length / kvmfault__sys_page_size();

	return (pages + KVMFAULT__BITS - 1) / KVMFAULT__BITS *
	       sizeof(uint64_t);
}

int kvmfault__userfault_new(struct kvmfault_memory *memory)
{
	void *bitmap;
	int err;

	atomic_store(&memory->exits, memory->vm->how.kernel_exit !=
		     KVMFAULT__KERNEL_EXIT_NONE);
	if (memory->vm->how.kernel_exit != KVMFAULT__KERNEL_EXIT_USERFAULT)
		return 0;
	err = kvmfault__sys_mmap(&bitmap, userfault_bitmap_size(memory),
				 PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
				 -1, 0);
	if (err)
		return err;
	/* All pages are absent. */
	memset(bitmap, 0xff, userfault_bitmap_size(memory));
	memory->userfault = bitmap;
	return 0;
}

void kvmfault__userfault_free(struct kvmfault_memory *memory)
{
	if (memory->userfault)
		kvmfault__sys_munmap((void *)(uintptr_t)memory->userfault,
				     userfault_bitmap_size(memory));
}

/* The operations are sequentially consistent: if KVM sees a bit clear, it also
 * sees the data that came before. */
static void userfault_change_page(struct kvmfault_memory *memory,
				  uint64_t page, bool set)
{
	unsigned int shift = userfault_page_shift(memory);

	kvmfault__bits_change(memory->userfault, page << shift, 1ULL << shift,
			      set);
}

static bool userfault_is_wanted(const struct kvmfault_memory *memory,
				uint64_t page)
{
	return !kvmfault__page_accessible(memory, page) &&
	       atomic_load(&memory->exits) && kvmfault__tracked(memory);
}

/*
 * A thread that changes a state calls this afterwards, and this looks at the
 * state again after the bit. So the last thread to write the bit has seen the
 * last state, and threads need no order among them.
 */
void kvmfault__userfault_set(struct kvmfault_memory *memory, uint64_t page,
			     uint64_t count)
{
	bool set;

	for (; count; page++, count--) {
		do {
			set = userfault_is_wanted(memory, page);
			userfault_change_page(memory, page, set);
		} while (userfault_is_wanted(memory, page) != set);
	}
}

static void userfault_switch_to(struct kvmfault_memory *memory, bool exits)
{
	atomic_store(&memory->exits, exits);
	kvmfault__userfault_follow(memory, 0,
				   memory->length >> memory->page_shift);
}

void kvmfault__userfault_leave(struct kvmfault_memory *memory)
{
	userfault_switch_to(memory, false);
}

void kvmfault__userfault_enter(struct kvmfault_memory *memory)
{
	if (kvmfault__tracked(memory))
		userfault_switch_to(memory, memory->vm->how.kernel_exit !=
				    KVMFAULT__KERNEL_EXIT_NONE);
}

/* ---- memslots ---- */

/* The region's bits have to begin at a long of the bitmap. Private pages are
 * not the memory's, so the bitmap says nothing of them. */
static void userfault_describe_memslot(const struct kvmfault_region *region,
				       struct kvmfault_memslot *memslot)
{
	const struct kvmfault_memory *memory = region->memory;
	/* The bytes of memory that one long's bits stand for. */
	uint64_t span = KVMFAULT__BITS * kvmfault__sys_page_size();

	if (!memory || region->guest_memfd > 0 ||
	    !kvmfault__tracked(memory) || !atomic_load(&memory->exits))
		return;
	if (memory->userfault && !(region->offset % span)) {
		memslot->flags = KVMFAULT__MEM_USERFAULT;
		memslot->userfault_bitmap =
			(uintptr_t)&memory->userfault[region->offset / span];
	} else if (!memory->userfault &&
		   !(region->flags & KVMFAULT_REGION_READONLY)) {
		memslot->flags = KVMFAULT__MEM_EXIT_ON_MISSING;
	}
}

KVMFAULT__EXPORT
int kvmfault_region_memslot(struct kvmfault_vm *vm, uint32_t address_space,
			    uint64_t gpa, struct kvmfault_memslot *memslot)
{
	struct kvmfault_memslot ours = { .size = sizeof(ours) };
	struct kvmfault__region *found;
	struct kvmfault__seat *seat;
	int err;

	if (!vm)
		return -EINVAL;
	err = kvmfault__options_to(vm, "kvmfault_memslot", memslot);
	if (err)
		return err;
	err = -ENOENT;
	seat = kvmfault__call_begin(vm);
	if (!seat)
		return -ENOMEM;
	found = kvmfault__region_find(seat, address_space, gpa);
	if (found && found->info.gpa == gpa) {
		userfault_describe_memslot(&found->info, &ours);
		err = kvmfault__options_out(memslot, &ours, sizeof(ours));
	}
	kvmfault__leave(seat);
	kvmfault__call_end(seat);
	return err;
}
