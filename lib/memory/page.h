/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The states of a memory's pages, and how a thread waits for one to change.
 */

#ifndef KVMFAULT__PAGE_H
#define KVMFAULT__PAGE_H

#include "memory.h"

enum kvmfault__state {
	KVMFAULT__ABSENT = 0,
	KVMFAULT__FETCHING = 1,		/* exactly one thread has claimed it */
	KVMFAULT__FETCHING_WAITED = 2,	/* flagged: it has a sleeper */
	KVMFAULT__FETCHING_DISCARDED = 3, /* flagged: discarded meanwhile */
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

/* page.c */
int kvmfault__pages_new(struct kvmfault_memory *memory);
void kvmfault__pages_free(struct kvmfault_memory *memory);
/* If the states are in a file: from now on pages change without them. */
void kvmfault__pages_settle(struct kvmfault_memory *memory);
/* Give the states' memory back, when no thread looks at them any more. */
void kvmfault__pages_forget(struct kvmfault_memory *memory);

/* If the states are in a file: these pages need the source no more, or again.
 * See setup/states-file.c. */
void kvmfault__pages_note(struct kvmfault_memory *memory, uint64_t first,
			  uint64_t count, bool unsourced);

/* A page has four bits: three are its state, and the fourth says that it is
 * protected. */
#define KVMFAULT__PAGE_BITS 4
#define KVMFAULT__PAGE_STATE 7ULL
#define KVMFAULT__PAGE_PROTECTED 8ULL
#define KVMFAULT__PAGES_PER_WORD (64 / KVMFAULT__PAGE_BITS)
/* The lowest bit of each page of a word. */
#define KVMFAULT__PAGE_LOWEST 0x1111111111111111ULL

/* How many bytes the states of so many pages have. */
static inline size_t kvmfault__states_size(uint64_t pages)
{
	return (pages + KVMFAULT__PAGES_PER_WORD - 1) /
	       KVMFAULT__PAGES_PER_WORD * sizeof(uint64_t);
}

static inline _Atomic uint64_t *
kvmfault__page_word(const struct kvmfault_memory *memory, uint64_t page)
{
	return &memory->states[page / KVMFAULT__PAGES_PER_WORD];
}

/* The lowest bit of each of so many pages, which is not 0. */
static inline uint64_t kvmfault__pages_lowest(unsigned int count)
{
	return KVMFAULT__PAGE_LOWEST >> (64 - count * KVMFAULT__PAGE_BITS);
}

/* How many pages there are from this one on to the end, or to that of its
 * word. */
static inline unsigned int kvmfault__pages_step(uint64_t page, uint64_t end)
{
	uint64_t rest = KVMFAULT__PAGES_PER_WORD -
			page % KVMFAULT__PAGES_PER_WORD;

	return (unsigned int)(rest < end - page ? rest : end - page);
}

/* How many of those bits are set. */
static inline unsigned int kvmfault__pages_in(uint64_t mask)
{
	/* The sum of each two pages, then of all bytes. */
	mask = (mask & 0x0101010101010101ULL) +
	       (mask >> 4 & 0x0101010101010101ULL);
	return mask * 0x0101010101010101ULL >> 56;
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

/* Change the state from -> to. Returns the state that was found: `from` if the
 * state was changed. */
enum kvmfault__state kvmfault__page_change(struct kvmfault_memory *memory,
					   uint64_t page,
					   enum kvmfault__state from,
					   enum kvmfault__state to);
/* The same for a run of pages, a word of states at a time. Returns how many
 * were in that state, from the first page on. */
uint64_t kvmfault__pages_change(struct kvmfault_memory *memory, uint64_t first,
				uint64_t count, enum kvmfault__state from,
				enum kvmfault__state to);
/* Absent or discarded -> fetching; returns the state that was found. If the
 * page is in flight and a sleeper asks, flag it: the fetcher has to wake the
 * mappings. */
enum kvmfault__state kvmfault__page_claim(struct kvmfault_memory *memory,
					  uint64_t page, bool sleeper);
/* The bit does not change with the state. It says that the page's data, come or
 * yet to come, must be saved before a write. */
static inline bool
kvmfault__page_protected(const struct kvmfault_memory *memory, uint64_t page)
{
	return atomic_load(kvmfault__page_word(memory, page)) >>
	       kvmfault__page_shift(page) & KVMFAULT__PAGE_PROTECTED;
}
/* Of so many pages in one word of states, protect those that are not in flight.
 * Returns the lowest bit of each page that is in flight. */
uint64_t kvmfault__word_protect(struct kvmfault_memory *memory, uint64_t page,
				unsigned int count);
void kvmfault__page_unprotect(struct kvmfault_memory *memory, uint64_t page);
/* True if the kernel alone settles an access: the page is there, or its marker
 * gives SIGBUS. */
bool kvmfault__page_accessible(const struct kvmfault_memory *memory,
			    uint64_t page);
/* The page's data is gone: it becomes discarded, or a page in flight is
 * flagged. */
void kvmfault__page_discard(struct kvmfault_memory *memory, uint64_t page);

/* wait.c: all functions from here on but the last two */
/* Wait while the page is in flight. Returns 0, -EINTR, -EDEADLK if this thread
 * is in a callback for the memory, or -EAGAIN if the memory is being freed. */
int kvmfault__page_wait(struct kvmfault__seat *seat,
			struct kvmfault_memory *memory, uint64_t page);
/* After a change of state: wake the page's waiters, and tell vCPUs that are
 * pending. */
void kvmfault__page_wake(struct kvmfault_memory *memory, uint64_t page);
/* Tell the VMM that the page there is ready. */
void kvmfault__tell_page_ready(struct kvmfault_memory *memory, uint64_t offset);
/* Have all waiters of all pages look again. */
void kvmfault__wake_waiters(struct kvmfault_vm *vm);
/* Have the VMM told when the page is not in flight any more. Returns false if
 * it is not in flight. */
bool kvmfault__page_pending(struct kvmfault__seat *seat,
			    struct kvmfault_memory *memory, uint64_t page);
/* Count the seat's vCPU as one that has to be told, or no more. */
void kvmfault__set_pending(struct kvmfault__seat *seat);
void kvmfault__not_pending(struct kvmfault__seat *seat);
/* Returns how many pages no thread may read: neither present nor discarded. A
 * page in flight is waited for, 10 ms at most, unless another one is in the
 * result already. */
uint64_t kvmfault__pages_absent(struct kvmfault_memory *memory);
/* Is the vCPU's immediate_exit set? For a worker's seat: has the vCPU left? */
bool kvmfault__exit_wanted(const struct kvmfault__seat *seat);
/* Sleep until the word may have changed. Returns 0, or -EINTR for a signal or
 * immediate_exit. */
int kvmfault__sleep(struct kvmfault__seat *seat, _Atomic uint32_t *word,
		    uint32_t value);
/* Sleep for that time. Returns as above. */
int kvmfault__pause(struct kvmfault__seat *seat, uint64_t nanoseconds);
/* Take back the wish for a fetch of a vCPU that does not wait. */
void kvmfault__withdraw(struct kvmfault__seat *seat);
/* Let go of a memory that a fetch or a wish has pinned. */
void kvmfault__unpin(struct kvmfault_memory *memory);

/* states.c: how many of so many pages are in which state */
void kvmfault__pages_count(const struct kvmfault_memory *memory,
			   uint64_t first, uint64_t count,
			   struct kvmfault_memory_counts *counts);

static inline bool kvmfault__poisoned(const struct kvmfault_memory *memory,
				      uint64_t offset)
{
	return kvmfault__tracked(memory) &&
	       kvmfault__page_state(memory, offset >> memory->page_shift) ==
	       KVMFAULT__POISONED;
}

#endif
