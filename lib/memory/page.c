/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage claim, and the state part of publish: the only code that writes a
 * page's state and its protected bit. Its callers decide:
 * resolve/{resolve,window,publish,present,protect,range}.c and
 * entry/{message,sigbus}.c. In: a page of a tracked memory. Out: which thread
 * may fetch it, and whether others wait. A page has four bits, changed
 * atomically: of all threads that want a page, exactly one takes it from absent
 * to fetching. Three bits are the state. The fourth says that the page is
 * protected, and no change of the state changes it.
 */

#include <sys/mman.h>

#include "../core/bitmap.h"
#include "page.h"

static size_t page_states_size(const struct kvmfault_memory *memory)
{
	return kvmfault__states_size(memory->length >> memory->page_shift);
}

int kvmfault__pages_new(struct kvmfault_memory *memory)
{
	void *states;
	int err;

	/* Zero means absent, and the map costs nothing until it is written. */
	err = kvmfault__sys_mmap(&states,
				 page_states_size(memory),
				 PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
				 -1, 0);
	if (err)
		return err;
	memory->states = states;
	return 0;
}

void kvmfault__pages_free(struct kvmfault_memory *memory)
{
	if (memory->states_file)
		kvmfault__sys_munmap(memory->states_file, memory->states_size);
	else if (memory->states)
		kvmfault__sys_munmap((void *)(uintptr_t)memory->states,
				     page_states_size(memory));
}

void kvmfault__pages_settle(struct kvmfault_memory *memory)
{
	if (memory->states_file)
		atomic_store(&memory->states_file->settled, 1);
}

/* If this fails, the states stay, and do no harm. In a file they stay, too. */
void kvmfault__pages_forget(struct kvmfault_memory *memory)
{
	if (!memory->states_file)
		kvmfault__sys_madvise((void *)(uintptr_t)memory->states,
				      page_states_size(memory), MADV_DONTNEED);
}

void kvmfault__pages_note(struct kvmfault_memory *memory, uint64_t first,
			  uint64_t count, bool unsourced)
{
	if (memory->unsourced)
		kvmfault__bits_change(memory->unsourced, first, count,
				      unsourced);
}

static inline enum kvmfault__state
page_exchange(struct kvmfault_memory *memory, uint64_t page,
	      enum kvmfault__state from, enum kvmfault__state to)
{
	_Atomic uint64_t *word = kvmfault__page_word(memory, page);
	unsigned int shift = kvmfault__page_shift(page);
	uint64_t old = atomic_load(word);
	enum kvmfault__state found;

	do {
		found = old >> shift & KVMFAULT__PAGE_STATE;
		if (found != from)
			return found;
	} while (!atomic_compare_exchange_weak(word, &old, old ^
					       (uint64_t)(from ^ to) << shift));
	return from;
}

/* If the owner is killed now, the next one has to know what these pages are
 * without the source: so they are noted before a claim ends. A page that is
 * poisoned is nothing without it: its bit stays what it was. */
static inline bool page_is_noted(const struct kvmfault_memory *memory,
				 enum kvmfault__state from,
				 enum kvmfault__state to)
{
	return memory->unsourced && kvmfault__in_flight(from) &&
	       !kvmfault__in_flight(to) && to != KVMFAULT__POISONED;
}

/* Apart, since a function that calls nothing saves no registers. */
__attribute__((noinline))
static enum kvmfault__state
page_note_and_exchange(struct kvmfault_memory *memory, uint64_t page,
		       enum kvmfault__state from, enum kvmfault__state to)
{
	kvmfault__pages_note(memory, page, 1, to != KVMFAULT__ABSENT);
	return page_exchange(memory, page, from, to);
}

enum kvmfault__state kvmfault__page_change(struct kvmfault_memory *memory,
					   uint64_t page,
					   enum kvmfault__state from,
					   enum kvmfault__state to)
{
	return page_is_noted(memory, from, to) ?
		page_note_and_exchange(memory, page, from, to) :
		page_exchange(memory, page, from, to);
}

/* Repeat one page's bits for each of so many pages. */
static uint64_t page_repeat_bits(uint64_t bits, unsigned int pages)
{
	return bits * kvmfault__pages_lowest(pages);
}

/* Change pages of one word of states. Returns how many, from the first on. */
static unsigned int page_change_in_word(struct kvmfault_memory *memory,
					uint64_t page, unsigned int count,
					enum kvmfault__state from,
					enum kvmfault__state to)
{
	_Atomic uint64_t *word = kvmfault__page_word(memory, page);
	unsigned int shift = kvmfault__page_shift(page), alike;
	uint64_t old = atomic_load(word), other;

	do {
		other = (old >> shift ^ page_repeat_bits(from, count)) &
			page_repeat_bits(KVMFAULT__PAGE_STATE, count);
		alike = other ? (unsigned int)__builtin_ctzll(other) /
				KVMFAULT__PAGE_BITS : count;
	} while (alike &&
		 !atomic_compare_exchange_weak(word, &old,
			old ^ page_repeat_bits(from ^ to, alike) << shift));
	return alike;
}

uint64_t kvmfault__pages_change(struct kvmfault_memory *memory, uint64_t first,
				uint64_t count, enum kvmfault__state from,
				enum kvmfault__state to)
{
	uint64_t page = first, end = first + count;

	if (page_is_noted(memory, from, to))
		kvmfault__pages_note(memory, first, count,
				     to != KVMFAULT__ABSENT);
	while (page < end) {
		unsigned int step = kvmfault__pages_step(page, end), alike;

		alike = page_change_in_word(memory, page, step, from, to);
		page += alike;
		if (alike < step)
			break;
	}
	return page - first;
}

bool kvmfault__page_accessible(const struct kvmfault_memory *memory,
			       uint64_t page)
{
	enum kvmfault__state state = kvmfault__page_state(memory, page);

	return state == KVMFAULT__PRESENT || state == KVMFAULT__POISONED;
}

/* Returns the page's state after a request for it. If another thread has
 * claimed the page, or it is present or poisoned, that is the same state. */
static enum kvmfault__state page_state_if_claimed(enum kvmfault__state state,
						  bool sleeper)
{
	if (state == KVMFAULT__ABSENT || state == KVMFAULT__DISCARDED)
		return KVMFAULT__FETCHING;
	if (state == KVMFAULT__FETCHING && sleeper)
		return KVMFAULT__FETCHING_WAITED;
	return state;
}

enum kvmfault__state kvmfault__page_claim(struct kvmfault_memory *memory,
					  uint64_t page, bool sleeper)
{
	_Atomic uint64_t *word = kvmfault__page_word(memory, page);
	unsigned int shift = kvmfault__page_shift(page);
	uint64_t old = atomic_load(word);
	enum kvmfault__state state, to;

	do {
		state = old >> shift & KVMFAULT__PAGE_STATE;
		to = page_state_if_claimed(state, sleeper);
	} while (to != state &&
		 !atomic_compare_exchange_weak(word, &old,
			old ^ (uint64_t)(state ^ to) << shift));
	return state;
}

/* Set the lowest of a page's four bits if the page is in flight: its state is
 * 1, 2 or 3 then. */
static uint64_t page_mask_in_flight(uint64_t word)
{
	return (word | word >> 1) & ~(word >> 2);
}

uint64_t kvmfault__word_protect(struct kvmfault_memory *memory, uint64_t page,
				unsigned int count)
{
	_Atomic uint64_t *word = kvmfault__page_word(memory, page);
	uint64_t pages = page_repeat_bits(1, count) <<
			 kvmfault__page_shift(page);
	uint64_t old = atomic_load(word), busy;

	do
		busy = pages & page_mask_in_flight(old);
	while (!atomic_compare_exchange_weak(word, &old, old | (pages ^ busy) *
					     KVMFAULT__PAGE_PROTECTED));
	return busy;
}

void kvmfault__page_unprotect(struct kvmfault_memory *memory, uint64_t page)
{
	atomic_fetch_and(kvmfault__page_word(memory, page),
			 ~(KVMFAULT__PAGE_PROTECTED <<
			   kvmfault__page_shift(page)));
}

void kvmfault__page_discard(struct kvmfault_memory *memory, uint64_t page)
{
	enum kvmfault__state state = kvmfault__page_state(memory, page), found;

	for (;; state = found) {
		found = kvmfault__page_change(memory, page, state,
					      kvmfault__in_flight(state) ?
					      KVMFAULT__FETCHING_DISCARDED :
					      KVMFAULT__DISCARDED);
		if (found == state)
			return;
	}
}
