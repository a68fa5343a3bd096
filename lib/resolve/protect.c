/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Protect and unprotect: the two ends of a live snapshot. In: a range of
 * guest-physical addresses. Out: nobody writes to a page of it, through whatever
 * mapping, before a resolver had it to save; or it is as it was before. The bit
 * beside a page's state is what counts: wherever it is set the kernel protects,
 * and where the kernel protects too much the first write finds out. First all
 * that nobody has in flight are done, and then what was in flight is waited for:
 * who goes on fetching others does not make it longer.
 */

#include "range.h"

#define RUN 256			/* pages that are held at once */
#define BUSY 256		/* words of states with pages in flight */

/* What is done with a page that was in flight. */
typedef int again(struct kvmfault__seat *seat, struct kvmfault_memory *memory,
		  uint64_t page);

/* The pages that were in flight, by word of states; so many that there is no room
 * for more are waited for before it goes on. */
struct busy {
	struct kvmfault__seat *seat;
	struct kvmfault_memory *memory;
	again *again;
	size_t count;
	struct {
		uint64_t first;	/* page of the word */
		uint64_t pages;	/* as kvmfault__word_protect() says */
	} word[BUSY];
};

static int wait_for(struct busy *busy)
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

static int note(struct busy *busy, uint64_t page, uint64_t pages)
{
	int err = pages && busy->count == BUSY ? wait_for(busy) : 0;

	if (!pages || err)
		return err;
	busy->word[busy->count].first = page - page % KVMFAULT__PAGES_PER_WORD;
	busy->word[busy->count++].pages = pages;
	return 0;
}

static int check(const struct kvmfault_memory *memory, uint64_t offset,
		 uint64_t length)
{
	if (!memory->write_protect)
		return kvmfault__refuse(memory->vm, -EOPNOTSUPP,
			"the memory at %p was made without kvmfault_memory_options.write_protect",
			memory->host);
	return (offset | length) & (kvmfault__page_size(memory) - 1) ?
		kvmfault__whole_pages(memory) : 0;
}

/* Set while nobody has it: who had it before may have installed it without, or
 * was about to lift what is not ours. Who gets it later sees the bit. */
static int set(struct kvmfault__seat *seat, struct kvmfault_memory *memory,
	       uint64_t page)
{
	int err = 0;

	while (!err && kvmfault__word_protect(memory, page, 1))
		err = kvmfault__page_wait(seat, memory, page);
	return err;
}

static unsigned int step(uint64_t page, uint64_t end)
{
	uint64_t rest = KVMFAULT__PAGES_PER_WORD -
			page % KVMFAULT__PAGES_PER_WORD;

	return (unsigned int)(rest < end - page ? rest : end - page);
}

static int protect(struct kvmfault__seat *seat, struct kvmfault_memory *memory,
		   uint64_t offset, uint64_t length)
{
	uint64_t page = offset >> memory->page_shift;
	uint64_t end = (offset + length) >> memory->page_shift;
	int err = check(memory, offset, length);
	struct busy busy = { seat, memory, set, .count = 0 };

	for (; page < end && !err; page += step(page, end))
		err = note(&busy, page,
			   kvmfault__word_protect(memory, page,
						  step(page, end)));
	if (!err)
		err = wait_for(&busy);
	/* Absent pages too: another mapping has them when they have come. */
	if (!err)
		err = kvmfault__protect(seat, memory, NULL, offset, length,
					true);
	return err;
}

KVMFAULT__EXPORT
int kvmfault_protect(struct kvmfault_vm *vm, uint32_t address_space,
		     uint64_t gpa, uint64_t length)
{
	return kvmfault__each_region(vm, address_space, gpa, length, protect);
}

/* A run of protected pages in the same state, claimed: no new protection comes
 * in between, which would be lifted too. */
static uint64_t claim(struct kvmfault_memory *memory, uint64_t page,
		      uint64_t end, enum kvmfault__state *was)
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

/* How many from there on are done; 0: somebody has the first one. */
static uint64_t lift(struct kvmfault__seat *seat,
		     struct kvmfault_memory *memory, uint64_t page, uint64_t end)
{
	struct kvmfault__request rq = { .request.memory = memory,
					.seat = seat };
	enum kvmfault__state was;
	uint64_t n;

	if (!kvmfault__page_protected(memory, page))
		return 1;
	n = claim(memory, page, end, &was);
	if (!n)
		return 0;
	/* A discard that comes meanwhile takes the markers, too. */
	rq.poisoned = was == KVMFAULT__POISONED;
	/* What can't be lifted now is at the first write. */
	kvmfault__protect(seat, memory, NULL, page << memory->page_shift,
			  n << memory->page_shift, false);
	kvmfault__release(&rq, page, n, was);
	return n;
}

/* Afterwards no resolver has it any more. */
static int lift_later(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory, uint64_t page)
{
	int err = 0;

	while (!err && !lift(seat, memory, page, page + 1))
		err = kvmfault__page_wait(seat, memory, page);
	return err;
}

static int unprotect(struct kvmfault__seat *seat,
		     struct kvmfault_memory *memory, uint64_t offset,
		     uint64_t length)
{
	uint64_t page = offset >> memory->page_shift;
	uint64_t end = (offset + length) >> memory->page_shift, n;
	int err = check(memory, offset, length);
	struct busy busy = { seat, memory, lift_later, .count = 0 };

	for (; page < end && !err; page += n) {
		n = lift(seat, memory, page, end);
		if (n)
			continue;
		err = note(&busy, page, 1ULL << kvmfault__page_shift(page));
		n = 1;
	}
	return err ? err : wait_for(&busy);
}

KVMFAULT__EXPORT
int kvmfault_unprotect(struct kvmfault_vm *vm, uint32_t address_space,
		       uint64_t gpa, uint64_t length)
{
	return kvmfault__each_region(vm, address_space, gpa, length, unprotect);
}
