/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The states of a memory's pages, and waiting for one to change.
 */

#ifndef KVMFAULT__PAGE_H
#define KVMFAULT__PAGE_H

#include "memory.h"

enum kvmfault__state {
	KVMFAULT__ABSENT = 0,
	KVMFAULT__FETCHING = 1,		/* exactly one thread has it */
	KVMFAULT__FETCHING_WAITED = 2,	/* and a thread sleeps in the kernel */
	KVMFAULT__FETCHING_DISCARDED = 3,	/* and it was discarded meanwhile */
	KVMFAULT__PRESENT = 4,
	KVMFAULT__DISCARDED = 5,
	KVMFAULT__POISONED = 6,		/* its data is lost */
};

static inline bool kvmfault__in_flight(enum kvmfault__state state)
{
	return state == KVMFAULT__FETCHING ||
	       state == KVMFAULT__FETCHING_WAITED ||
	       state == KVMFAULT__FETCHING_DISCARDED;
}

int kvmfault__pages_new(struct kvmfault_memory *memory);
void kvmfault__pages_free(struct kvmfault_memory *memory);

/* Four bits a page: three are its state, the fourth says that it is protected. */
#define KVMFAULT__PAGE_BITS 4
#define KVMFAULT__PAGE_STATE 7ULL
#define KVMFAULT__PAGE_PROTECTED 8ULL
#define KVMFAULT__PAGES_PER_WORD (64 / KVMFAULT__PAGE_BITS)

static inline _Atomic uint64_t *
kvmfault__page_word(const struct kvmfault_memory *memory, uint64_t page)
{
	return &memory->states[page / KVMFAULT__PAGES_PER_WORD];
}

static inline unsigned int kvmfault__page_shift(uint64_t page)
{
	return page % KVMFAULT__PAGES_PER_WORD * KVMFAULT__PAGE_BITS;
}

static inline enum kvmfault__state
kvmfault__page_state(const struct kvmfault_memory *memory, uint64_t page)
{
	return atomic_load(kvmfault__page_word(memory, page)) >>
	       kvmfault__page_shift(page) & KVMFAULT__PAGE_STATE;
}

/* from -> to; returns what was found, from if it was changed. */
enum kvmfault__state kvmfault__page_change(struct kvmfault_memory *memory,
					   uint64_t page,
					   enum kvmfault__state from,
					   enum kvmfault__state to);
/* The same for as many as there are in that state, from the first on; how many.
 * A word's at a time. */
uint64_t kvmfault__pages_change(struct kvmfault_memory *memory, uint64_t first,
				uint64_t count, enum kvmfault__state from,
				enum kvmfault__state to);
/* absent or removed -> fetching; returns what was found. sleeper: if it is in
 * flight, tell the fetcher to wake the mappings. */
enum kvmfault__state kvmfault__page_claim(struct kvmfault_memory *memory,
					  uint64_t page, bool sleeper);
/* Beside the state, and not changed with it: what the page holds, or will when
 * it has come, must be saved before it is written. */
static inline bool
kvmfault__page_protected(const struct kvmfault_memory *memory, uint64_t page)
{
	return atomic_load(kvmfault__page_word(memory, page)) >>
	       kvmfault__page_shift(page) & KVMFAULT__PAGE_PROTECTED;
}
/* Of so many pages in one word of states those that are not in flight get the bit.
 * For each of the others the lowest of its bits is returned. */
uint64_t kvmfault__word_protect(struct kvmfault_memory *memory, uint64_t page,
				unsigned int count);
void kvmfault__page_unprotect(struct kvmfault_memory *memory, uint64_t page);
/* Who touches it needs nobody: present, or poisoned and marked so. */
bool kvmfault__page_accessible(const struct kvmfault_memory *memory,
			    uint64_t page);
/* Its data is gone: removed, or its fetcher is told. */
void kvmfault__page_discard(struct kvmfault_memory *memory, uint64_t page);
/* Wait while it is in flight; 0, -EINTR, -EDEADLK: this thread has it, or -EAGAIN:
 * its memory is being freed. */
int kvmfault__page_wait(struct kvmfault__seat *seat,
			struct kvmfault_memory *memory, uint64_t page);
void kvmfault__page_wake(struct kvmfault_memory *memory, uint64_t page);
/* To the VMM, of the page there. */
void kvmfault__tell_page_ready(struct kvmfault_memory *memory, uint64_t offset);
/* Have all who wait for pages look again. */
void kvmfault__wake_waiters(struct kvmfault_vm *vm);
/* The VMM will be told when it is not in flight any more; false: it is not. */
bool kvmfault__page_pending(struct kvmfault__seat *seat,
			    struct kvmfault_memory *memory, uint64_t page);
void kvmfault__set_pending(struct kvmfault__seat *seat);
void kvmfault__not_pending(struct kvmfault__seat *seat);
/* Is there a page that nobody may read? */
bool kvmfault__pages_absent(struct kvmfault_memory *memory);
/* Is the vCPU's immediate_exit set, or has it left its worker? */
bool kvmfault__exit_wanted(const struct kvmfault__seat *seat);
/* Sleep until the word may be another; 0, or -EINTR for a signal or
 * immediate_exit. */
int kvmfault__sleep(struct kvmfault__seat *seat, _Atomic uint32_t *word,
		    uint32_t value);
/* Sleep for a moment; as above. */
int kvmfault__pause(struct kvmfault__seat *seat, uint64_t nanoseconds);
/* Take back what a vCPU that does not wait has wished for; let go of a memory. */
void kvmfault__withdraw(struct kvmfault__seat *seat);
void kvmfault__unpin(struct kvmfault_memory *memory);

static inline bool kvmfault__poisoned(const struct kvmfault_memory *memory,
				      uint64_t offset)
{
	return kvmfault__tracked(memory) &&
	       kvmfault__page_state(memory, offset >> memory->page_shift) ==
	       KVMFAULT__POISONED;
}

#endif
