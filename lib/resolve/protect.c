/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Protect and unprotect: the two ends of a live snapshot. In: a range of
 * guest-physical addresses. Out: after protect, no write reaches a page,
 * through any mapping, before a resolver had the page to save; after unprotect,
 * writes go through again. The bit beside a page's state decides. If it is set,
 * the kernel write-protects the page; if the kernel does so without need, the
 * first write lifts that. Each call first does all pages that are not in
 * flight, then waits for those that were: so fetches that begin later do not
 * prolong it.
 */

#include "range.h"

#define RUN 256			/* pages that are claimed at once */
#define BUSY 256		/* words of states with pages in flight */

/* A function of this type is called for each page that was in flight. */
typedef int again(struct kvmfault__seat *seat, struct kvmfault_memory *memory,
		  uint64_t page);

/* The pages that were in flight are kept by word of states. If there is no room
 * for more, the call waits for all of these before it goes on. */
struct busy {
	struct kvmfault__seat *seat;
	struct kvmfault_memory *memory;
	again *again;
	size_t count;
	struct {
		uint64_t first;	/* page of the word */
		uint64_t pages;	/* as kvmfault__word_protect() returns */
	} word[BUSY];
};

static int protect_wait_busy(struct busy *busy)
{
	uint64_t pages;
	int err = 0;
	size_t i;

	for (i = 0; i < busy->count; i++)
		for (pages = busy->word[i].pages; pages && !err;
		     pages &= pages - 1)
			err = busy->again(busy->seat, busy->memory,
					  busy->word[i].first +
					  (unsigned int)__builtin_ctzll(pages) /
					  KVMFAULT__PAGE_BITS);
	busy->count = 0;
	return err;
}

static int protect_note_busy(struct busy *busy, uint64_t page, uint64_t pages)
{
	int err = pages && busy->count == BUSY ? protect_wait_busy(busy) : 0;

	if (!pages || err)
		return err;
	busy->word[busy->count].first = page - page % KVMFAULT__PAGES_PER_WORD;
	busy->word[busy->count++].pages = pages;
	return 0;
}

static int protect_check(const struct kvmfault_memory *memory, uint64_t offset,
			 uint64_t length)
{
	if (!memory->write_protect)
		return kvmfault__refuse(memory->vm, -EOPNOTSUPP,
			"the memory at %p was made without kvmfault_memory_options.write_protect: set this member for memory that is to be protected",
			memory->host);
	return (offset | length) & (kvmfault__page_size(memory) - 1) ?
		kvmfault__whole_pages(memory) : 0;
}

/* The bit is set while the page is not in flight. An earlier fetcher may have
 * installed the page unprotected, or have lifted an older protection; a later
 * one sees the bit. */
static int protect_set_bit(struct kvmfault__seat *seat,
			   struct kvmfault_memory *memory, uint64_t page)
{
	int err = 0;

	while (!err && kvmfault__word_protect(memory, page, 1))
		err = kvmfault__page_wait(seat, memory, page);
	return err;
}

/* Called when the bits are set: kvmfault_memory_settle() counts itself, then
 * looks at the bits. One sees the other. */
static int protect_check_settling(const struct kvmfault_memory *memory)
{
	if (!kvmfault__tracked(memory))
		return kvmfault__refuse(memory->vm, -EOPNOTSUPP,
			"the memory at %p is settled: protect it before kvmfault_memory_settle()",
			memory->host);
	return atomic_load(&memory->settling) ? -EAGAIN : 0;
}

static int protect_in_region(struct kvmfault__seat *seat,
			     struct kvmfault_memory *memory, uint64_t offset,
			     uint64_t length)
{
	uint64_t page = offset >> memory->page_shift;
	uint64_t end = (offset + length) >> memory->page_shift;
	int err = protect_check(memory, offset, length);
	struct busy busy = { seat, memory, protect_set_bit, .count = 0 };

	for (; page < end && !err; page += kvmfault__pages_step(page, end))
		err = protect_note_busy(&busy, page,
			kvmfault__word_protect(memory, page,
				kvmfault__pages_step(page, end)));
	if (!err)
		err = protect_wait_busy(&busy);
	if (!err)
		err = protect_check_settling(memory);
	/* Absent pages are write-protected, too: when they have come, every
	 * other mapping has them. */
	if (!err)
		err = kvmfault__protect(seat, memory, NULL, offset, length,
					true);
	return err;
}

KVMFAULT__EXPORT
int kvmfault_protect(struct kvmfault_vm *vm, uint32_t address_space,
		     uint64_t gpa, uint64_t length)
{
	return kvmfault__each_region(vm, address_space, gpa, length,
				     protect_in_region);
}

/* Claims a run of protected pages in the same state. While they are claimed, no
 * new protection can be set, which would be lifted too. */
static uint64_t unprotect_claim_run(struct kvmfault_memory *memory,
				    uint64_t page, uint64_t end,
				    enum kvmfault__state *was)
{
	uint64_t n = 0;

	*was = kvmfault__page_state(memory, page);
	if (kvmfault__in_flight(*was))
		return 0;
	while (n < RUN && page + n < end &&
	       kvmfault__page_protected(memory, page + n) &&
	       kvmfault__page_change(memory, page + n, *was,
				     KVMFAULT__FETCHING) == *was)
		kvmfault__page_unprotect(memory, page + n++);
	return n;
}

/* Returns how many pages from the first on are done; 0 if that one is in
 * flight, or has just changed. */
static uint64_t unprotect_lift_run(struct kvmfault__seat *seat,
				   struct kvmfault_memory *memory,
				   uint64_t page, uint64_t end)
{
	struct kvmfault__request rq = { .request.memory = memory,
					.seat = seat };
	enum kvmfault__state was;
	uint64_t n;

	if (!kvmfault__page_protected(memory, page))
		return 1;
	n = unprotect_claim_run(memory, page, end, &was);
	if (!n)
		return 0;
	/* If a discard flags these pages meanwhile, their markers go, too. */
	rq.poisoned = was == KVMFAULT__POISONED;
	/* Errors do not matter: if the kernel's write-protection is left, the
	 * first write lifts it. */
	kvmfault__protect(seat, memory, NULL, page << memory->page_shift,
			  n << memory->page_shift, false);
	kvmfault__release(&rq, page, n, was);
	return n;
}

/* When this has returned 0, no resolver has the page to save any more. */
static int unprotect_lift_busy(struct kvmfault__seat *seat,
			       struct kvmfault_memory *memory, uint64_t page)
{
	int err = 0;

	while (!err && !unprotect_lift_run(seat, memory, page, page + 1))
		err = kvmfault__page_wait(seat, memory, page);
	return err;
}

static int unprotect_in_region(struct kvmfault__seat *seat,
			       struct kvmfault_memory *memory, uint64_t offset,
			       uint64_t length)
{
	uint64_t page = offset >> memory->page_shift;
	uint64_t end = (offset + length) >> memory->page_shift, n;
	int err = protect_check(memory, offset, length);
	struct busy busy = { seat, memory, unprotect_lift_busy, .count = 0 };

	for (; page < end && !err; page += n) {
		n = unprotect_lift_run(seat, memory, page, end);
		if (n)
			continue;
		err = protect_note_busy(&busy, page,
					1ULL << kvmfault__page_shift(page));
		n = 1;
	}
	return err ? err : protect_wait_busy(&busy);
}

KVMFAULT__EXPORT
int kvmfault_unprotect(struct kvmfault_vm *vm, uint32_t address_space,
		       uint64_t gpa, uint64_t length)
{
	return kvmfault__each_region(vm, address_space, gpa, length,
				     unprotect_in_region);
}
