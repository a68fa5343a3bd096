/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: what the states of pages are, for the VMM to see.
 * In: a range of a memory. Out: how many of its pages are in which state, or a
 * bitmap of those in some states. A word of states is read at once, and nothing
 * waits for a page. A memory that is not tracked has present pages only.
 */

#include <string.h>

#include "page.h"

/* The public states, of which a page in flight has one. */
#define STATES (KVMFAULT_STATE_PROTECTED * 2 - 1)

/* The lowest bit of each page of the word that is in the state. */
static uint64_t states_mask_one(uint64_t word, enum kvmfault__state state)
{
	uint64_t other = word ^ (uint64_t)state * KVMFAULT__PAGE_LOWEST;

	return ~(other | other >> 1 | other >> 2) & KVMFAULT__PAGE_LOWEST;
}

/* The same for KVMFAULT_STATE_*. */
static uint64_t states_mask(uint64_t word, uint32_t states)
{
	uint64_t mask = 0;

	if (states & KVMFAULT_STATE_ABSENT)
		mask |= states_mask_one(word, KVMFAULT__ABSENT);
	if (states & KVMFAULT_STATE_CLAIMED)
		mask |= states_mask_one(word, KVMFAULT__FETCHING) |
			states_mask_one(word, KVMFAULT__FETCHING_WAITED) |
			states_mask_one(word, KVMFAULT__FETCHING_DISCARDED);
	if (states & KVMFAULT_STATE_PRESENT)
		mask |= states_mask_one(word, KVMFAULT__PRESENT);
	if (states & KVMFAULT_STATE_DISCARDED)
		mask |= states_mask_one(word, KVMFAULT__DISCARDED);
	if (states & KVMFAULT_STATE_POISONED)
		mask |= states_mask_one(word, KVMFAULT__POISONED);
	if (states & KVMFAULT_STATE_PROTECTED)
		mask |= word / KVMFAULT__PAGE_PROTECTED;
	return mask & KVMFAULT__PAGE_LOWEST;
}

/* The word that the page is in. If the memory was settled meanwhile, its
 * states may be gone: so the word is read first. */
static uint64_t states_load(const struct kvmfault_memory *memory, uint64_t page)
{
	uint64_t word = memory->states ?
		atomic_load(kvmfault__page_word(memory, page)) : 0;

	return kvmfault__tracked(memory) ? word :
		KVMFAULT__PRESENT * KVMFAULT__PAGE_LOWEST;
}

/* The lowest bit of each of so many pages from this one on. */
static uint64_t states_range(uint64_t page, unsigned int count)
{
	return kvmfault__pages_lowest(count) << kvmfault__page_shift(page);
}

static uint64_t states_count(uint64_t word, uint64_t range, uint32_t states)
{
	return kvmfault__pages_in(states_mask(word, states) & range);
}

void kvmfault__pages_count(const struct kvmfault_memory *memory,
			   uint64_t first, uint64_t count,
			   struct kvmfault_memory_counts *counts)
{
	uint64_t page = first, end = first + count;
	unsigned int step;

	for (; page < end; page += step) {
		uint64_t word = states_load(memory, page), range;

		step = kvmfault__pages_step(page, end);
		range = states_range(page, step);
		counts->absent += states_count(word, range,
					       KVMFAULT_STATE_ABSENT);
		counts->claimed += states_count(word, range,
						KVMFAULT_STATE_CLAIMED);
		counts->present += states_count(word, range,
						KVMFAULT_STATE_PRESENT);
		counts->discarded += states_count(word, range,
						  KVMFAULT_STATE_DISCARDED);
		counts->poisoned += states_count(word, range,
						 KVMFAULT_STATE_POISONED);
		counts->to_save += states_count(word, range,
						KVMFAULT_STATE_PROTECTED);
	}
}

static int states_check_range(const struct kvmfault_memory *memory,
			      const char *function, uint64_t offset,
			      uint64_t length)
{
	if (length && offset < memory->length &&
	    length <= memory->length - offset &&
	    !((offset | length) & (kvmfault__page_size(memory) - 1)))
		return 0;
	return kvmfault__refuse(memory->vm, -EINVAL,
		"%s: the range at offset %#llx, of %#llx bytes, is empty, goes past the memory's end, or is not made of whole pages of %llu bytes",
		function, (unsigned long long)offset,
		(unsigned long long)length,
		(unsigned long long)kvmfault__page_size(memory));
}

KVMFAULT__EXPORT
int kvmfault_memory_count(const struct kvmfault_memory *memory, uint64_t offset,
			  uint64_t length,
			  struct kvmfault_memory_counts *counts)
{
	struct kvmfault_memory_counts ours = { .size = sizeof(ours) };
	int err;

	if (!memory)
		return -EINVAL;
	err = kvmfault__options_to(memory->vm, "kvmfault_memory_counts",
				   counts);
	if (!err)
		err = states_check_range(memory, "kvmfault_memory_count",
					 offset, length);
	if (err)
		return err;
	kvmfault__pages_count(memory, offset >> memory->page_shift,
			      length >> memory->page_shift, &ours);
	return kvmfault__options_out(counts, &ours, sizeof(ours));
}

/* Every fourth bit of the mask, side by side. */
static uint64_t states_pack(uint64_t mask)
{
	mask = (mask | mask >> 3) & 0x0303030303030303ULL;
	mask = (mask | mask >> 6) & 0x000f000f000f000fULL;
	mask = (mask | mask >> 12) & 0x000000ff000000ffULL;
	return (mask | mask >> 24) & 0xffff;
}

static void states_export(const struct kvmfault_memory *memory, uint64_t first,
			  uint64_t count, uint32_t states, uint64_t *bitmap)
{
	uint64_t page = first, end = first + count;
	unsigned int step;

	for (; page < end; page += step) {
		uint64_t at = (page - first) / 64, bits;
		unsigned int shift = (page - first) % 64;

		step = kvmfault__pages_step(page, end);
		bits = states_pack((states_mask(states_load(memory, page),
						states) &
				    states_range(page, step)) >>
				   kvmfault__page_shift(page));
		bitmap[at] |= bits << shift;
		if (shift + step > 64)
			bitmap[at + 1] |= bits >> (64 - shift);
	}
}

KVMFAULT__EXPORT
int kvmfault_memory_bitmap(const struct kvmfault_memory *memory,
			   uint64_t offset, uint64_t length, uint32_t states,
			   uint64_t *bitmap, size_t size)
{
	uint64_t pages;
	int err;

	if (!memory)
		return -EINVAL;
	err = states_check_range(memory, "kvmfault_memory_bitmap", offset,
				 length);
	if (err)
		return err;
	if (!states || states & ~STATES)
		return kvmfault__refuse(memory->vm, -EINVAL,
			"kvmfault_memory_bitmap: states %#x has no bit, or one of no state that this version knows: set only KVMFAULT_STATE_*",
			states);
	pages = length >> memory->page_shift;
	if (!bitmap || size < (pages + 63) / 64 * sizeof(*bitmap))
		return kvmfault__refuse(memory->vm, -EINVAL,
			"kvmfault_memory_bitmap: bitmap is NULL, or has %zu bytes, which is too small for %llu pages: pass 8 bytes for each 64 pages, rounded up",
			size, (unsigned long long)pages);
	memset(bitmap, 0, (pages + 63) / 64 * sizeof(*bitmap));
	states_export(memory, offset >> memory->page_shift, pages, states,
		      bitmap);
	return 0;
}
