/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage claim, for the neighbours of the page: one fault may bring a window of
 * pages. In: a claimed page of a memory with a window. Out: the run of absent
 * pages around it, all claimed. The run never goes past the page's region, or
 * if the fault has none, as a message, past the memory; nor over a page that is
 * present, discarded, poisoned or in flight; and either all of its pages are
 * holes of the source, or none is.
 */

#include "resolve.h"

struct page_run {
	uint64_t first, end;	/* pages, without the one at end */
};

/* The pages that the region shows as a whole; without a region (a message) all
 * pages of the memory. */
static struct page_run window_find_bounds(const struct kvmfault__request *rq)
{
	const struct kvmfault_region *region = rq->request.region;
	const struct kvmfault_memory *memory = rq->request.memory;
	uint64_t start = 0, end = memory->length;

	if (region) {
		start = region->offset + kvmfault__page_size(memory) - 1;
		end = region->offset + region->length;
	}
	return (struct page_run){
		.first = start >> memory->page_shift,
		.end = end >> memory->page_shift,
	};
}

/* The aligned block of so many pages around the page; `origin` pages come
 * before the memory's first one. */
static struct page_run window_align_block(uint64_t page, uint64_t pages,
					  uint64_t origin)
{
	uint64_t before = (page + origin) % pages;

	return (struct page_run){
		.first = page > before ? page - before : 0,
		.end = page - before + pages,
	};
}

static uint64_t window_count_present(const struct kvmfault_memory *memory,
				     uint64_t page, int64_t step,
				     uint64_t limit, struct page_run within)
{
	uint64_t n = 0;

	while (n < limit) {
		page += (uint64_t)step;
		if (page < within.first || page >= within.end ||
		    kvmfault__page_state(memory, page) != KVMFAULT__PRESENT)
			break;
		n++;
	}
	return n;
}

/*
 * A walk leaves present pages behind it: the window goes to the other side, by
 * as many pages. So it doubles from fault to fault of a walk, up or down, is
 * one page for random accesses, and needs no state of its own.
 */
static struct page_run window_adapt_run(const struct kvmfault_memory *memory,
					uint64_t page, struct page_run within)
{
	uint64_t most = memory->window_pages - 1;
	uint64_t below = window_count_present(memory, page, -1, most, within);
	uint64_t above = window_count_present(memory, page, 1, most, within);
	struct page_run window = { .first = page, .end = page + 1 };

	if (below >= above)
		window.end += below;
	else
		window.first -= above < page ? above : page;
	return window;
}

static struct page_run window_choose_run(const struct kvmfault__request *rq,
					 struct page_run within)
{
	const struct kvmfault_memory *memory = rq->request.memory;

	if (kvmfault__fills(rq))
		return (struct page_run){
			.first = rq->page,
			.end = rq->page + rq->seat->ahead,
		};
	switch (memory->window) {
	case KVMFAULT_WINDOW_FIXED:
		return window_align_block(rq->page, memory->window_pages, 0);
	case KVMFAULT_WINDOW_SOURCE:
		return window_align_block(rq->page, memory->window_pages,
					  memory->source_offset >>
					  memory->page_shift);
	case KVMFAULT_WINDOW_ADAPTIVE:
		return window_adapt_run(memory, rq->page, within);
	case KVMFAULT_WINDOW_NONE:
		break;
	}
	return (struct page_run){ .first = rq->page, .end = rq->page + 1 };
}

static bool window_claim_page(struct kvmfault_memory *memory, uint64_t page)
{
	return kvmfault__page_change(memory, page, KVMFAULT__ABSENT,
				     KVMFAULT__FETCHING) == KVMFAULT__ABSENT;
}

void kvmfault__run(struct kvmfault__request *rq, uint64_t first, uint64_t count)
{
	struct kvmfault_memory *memory = rq->request.memory;

	rq->first = first;
	rq->count = count;
	rq->request.offset = first << memory->page_shift;
	rq->request.length = count << memory->page_shift;
	rq->request.host = (char *)memory->host + rq->request.offset;
	rq->request.buffer = kvmfault__buffer(rq->seat, memory,
					      rq->request.offset);
}

/* The VMM's resolvers come first. If one of them has declined the page, a
 * neighbour may be one that it takes: so it is asked about each of them. */
static bool window_others_were_asked(const struct kvmfault__request *rq)
{
	const struct kvmfault_vm *vm = rq->seat->vm;

	return rq->resolver >= vm->chain.own &&
	       vm->chain.asked[rq->request.page] & ((1U << vm->chain.own) - 1);
}

void kvmfault__widen(struct kvmfault__request *rq)
{
	struct kvmfault_memory *memory = rq->request.memory;
	uint64_t first = rq->first, end = first + rq->count;
	struct page_run within, window;

	if (window_others_were_asked(rq))
		return;
	within = window_find_bounds(rq);
	window = window_choose_run(rq, within);
	if (window.first < within.first)
		window.first = within.first;
	if (window.end > within.end)
		window.end = within.end;
	if (memory->source.extent && window.end - window.first > rq->count)
		kvmfault__extent_window(rq, &window.first, &window.end);
	if (end < window.end)
		end += kvmfault__pages_change(memory, end, window.end - end,
					      KVMFAULT__ABSENT,
					      KVMFAULT__FETCHING);
	while (first > window.first && window_claim_page(memory, first - 1))
		first--;
	kvmfault__run(rq, first, end - first);
}

/* Neighbours before the page that were installed become present, whatever
 * becomes of the page. */
void kvmfault__narrow(struct kvmfault__request *rq)
{
	uint64_t first = rq->first, count = rq->count;
	uint64_t came = rq->installed.there;

	kvmfault__release(rq, first, came, KVMFAULT__PRESENT);
	kvmfault__account(rq, KVMFAULT__ABSENT);
	rq->installed = (struct kvmfault__installed){ 0 };
	kvmfault__run(rq, rq->page, 1);
	kvmfault__release(rq, first + came, rq->page - first - came,
			  KVMFAULT__ABSENT);
	kvmfault__release(rq, rq->page + 1, first + count - rq->page - 1,
			  KVMFAULT__ABSENT);
}
