/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage claim, beyond the page: a fault may bring its neighbours. In: a claimed
 * page of a memory with a window. Out: the run of absent pages around it, all
 * claimed: never past its region, and never over a page that is present,
 * removed or in flight.
 */

#include "resolve.h"

struct span {
	uint64_t first, end;	/* pages, without the one at end */
};

/* The pages that the region shows as a whole; of a message the memory's. */
static struct span bounds(const struct kvmfault__request *rq)
{
	const struct kvmfault_region *region = rq->request.region;
	const struct kvmfault_memory *memory = rq->request.memory;
	uint64_t start = 0, end = memory->length;

	if (region) {
		start = region->offset + kvmfault__page_size(memory) - 1;
		end = region->offset + region->length;
	}
	return (struct span){
		.first = start >> memory->page_shift,
		.end = end >> memory->page_shift,
	};
}

/* The aligned block of so many pages, counted from the page at `origin`. */
static struct span block(uint64_t page, uint64_t pages, uint64_t origin)
{
	uint64_t before = (page + origin) % pages;

	return (struct span){
		.first = page > before ? page - before : 0,
		.end = page - before + pages,
	};
}

static uint64_t present(const struct kvmfault_memory *memory, uint64_t page,
			int64_t step, uint64_t limit, struct span within)
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
 * What came before tells what comes next: a walk leaves present pages behind
 * it. So the window doubles from fault to fault while somebody walks, up or
 * down, and is one page for who jumps about. Nothing is kept for it.
 */
static struct span adaptive(const struct kvmfault_memory *memory,
			    uint64_t page, struct span within)
{
	uint64_t most = memory->window_pages - 1;
	uint64_t below = present(memory, page, -1, most, within);
	uint64_t above = present(memory, page, 1, most, within);
	struct span window = { .first = page, .end = page + 1 };

	if (below >= above)
		window.end += below;
	else
		window.first -= above < page ? above : page;
	return window;
}

static struct span wanted(const struct kvmfault__request *rq,
			  struct span within)
{
	const struct kvmfault_memory *memory = rq->request.memory;

	switch (memory->window) {
	case KVMFAULT_WINDOW_FIXED:
		return block(rq->page, memory->window_pages, 0);
	case KVMFAULT_WINDOW_SOURCE:
		return block(rq->page, memory->window_pages,
			     memory->source_offset >> memory->page_shift);
	case KVMFAULT_WINDOW_ADAPTIVE:
		return adaptive(memory, rq->page, within);
	case KVMFAULT_WINDOW_NONE:
		break;
	}
	return (struct span){ .first = rq->page, .end = rq->page + 1 };
}

static bool claim(struct kvmfault_memory *memory, uint64_t page)
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

void kvmfault__widen(struct kvmfault__request *rq)
{
	struct kvmfault_memory *memory = rq->request.memory;
	uint64_t first = rq->first, end = first + rq->count;
	struct span within, window;

	within = bounds(rq);
	window = wanted(rq, within);
	if (window.first < within.first)
		window.first = within.first;
	if (window.end > within.end)
		window.end = within.end;
	if (end < window.end)
		end += kvmfault__pages_change(memory, end, window.end - end,
					      KVMFAULT__ABSENT,
					      KVMFAULT__FETCHING);
	while (first > window.first && claim(memory, first - 1))
		first--;
	kvmfault__run(rq, first, end - first);
}

/* Neighbours before the page that were installed are present, however it goes
 * on. */
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
