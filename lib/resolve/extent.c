/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage claim, for sources that know where they have nothing. In: a claimed
 * absent page, or the window around it. Out: whether the page is a hole; or the
 * window, cut down to pages that are like the page. A page is a hole only if
 * the source has said of each of its bytes that it is zero. If that takes too
 * many questions, the page is read.
 */

#include "resolve.h"

#define EXTENTS 8		/* questions for a page, or for a window */
#define LONG_RUN 512		/* pages that are worth a question by itself */

struct extents {
	struct kvmfault_memory *memory;
	uint64_t limit;		/* an offset: ask for no more than this */
	uint64_t end;		/* where the last answer ends, */
	bool zero;		/* and what it was */
	unsigned int asked;
};

/* To find where data ends may cost the kernel a look at each page of a file: so
 * the last long run of pages that are all data is kept, and asked for once.
 * Holes are not kept: each time that a source says that it has nothing there,
 * it was looked at whether it was cut off. */
static void extent_keep_run(struct kvmfault_memory *memory, uint64_t offset,
			    uint64_t length)
{
	uint64_t size = kvmfault__page_size(memory), first, end;

	first = (offset + size - 1) >> memory->page_shift;
	end = (offset + length) >> memory->page_shift;
	if (end > first + LONG_RUN && end <= UINT32_MAX)
		atomic_store(&memory->data_run, first << 32 | (end - first));
}

/* Where the kept run ends, in bytes, or 0 if the page is not in it. */
static uint64_t extent_find_kept(const struct kvmfault_memory *memory,
				 uint64_t page)
{
	uint64_t run = atomic_load(&memory->data_run);
	uint64_t first = run >> 32, count = (uint32_t)run;

	return page - first < count ? (first + count) << memory->page_shift : 0;
}

/* The first question is for all that follows: what is alike goes on for long
 * where it matters. If that can't be answered, whatever is wrong may lie behind
 * the bytes that are wanted. */
static int extent_ask_far(struct kvmfault_memory *memory, uint64_t offset,
			  uint64_t *length)
{
	uint64_t at = memory->source_offset + offset;
	uint64_t rest = memory->length - offset;
	int kind = -ENODATA;

	if (rest > LONG_RUN * kvmfault__page_size(memory))
		kind = kvmfault__source_extent(&memory->source, at, &rest);
	if (kind < 0)
		return kvmfault__source_extent(&memory->source, at, length);
	if (kind == KVMFAULT_EXTENT_DATA)
		extent_keep_run(memory, offset, rest);
	*length = rest;
	return kind;
}

static int extent_ask_source(struct extents *extents, uint64_t offset)
{
	uint64_t length = extents->limit - offset;
	int kind = KVMFAULT_EXTENT_DATA;

	if (extents->asked++ < EXTENTS)
		kind = extent_ask_far(extents->memory, offset, &length);
	if (kind < 0)
		return kind;
	extents->end = offset + length;
	extents->zero = kind != KVMFAULT_EXTENT_DATA;
	return 0;
}

/* Returns 1 if all of the page is zero in the source, 0 if not, or -errno. */
static int extent_page_is_zero(struct extents *extents, uint64_t page)
{
	uint64_t at = page << extents->memory->page_shift;
	uint64_t end = at + kvmfault__page_size(extents->memory);
	uint64_t kept = extent_find_kept(extents->memory, page);

	if (kept) {
		extents->end = kept;
		extents->zero = false;
		return 0;
	}
	while (at < end) {
		int err = at < extents->end ? 0 :
					      extent_ask_source(extents, at);

		if (err)
			return err;
		if (!extents->zero)
			return 0;
		at = extents->end;
	}
	return 1;
}

int kvmfault__extent_page(struct kvmfault__request *rq)
{
	struct extents extents = {
		.memory = rq->request.memory,
		.limit = rq->request.offset + rq->request.length,
	};
	int zero = extent_page_is_zero(&extents, rq->page);

	if (zero < 0)
		return zero;
	rq->alike = extents.end;
	return zero ? KVMFAULT_PAGE_HOLE : KVMFAULT_PAGE_ABSENT;
}

/* The page after this one that has to be looked at by itself: what is true up
 * to there is known. */
static uint64_t extent_next_page(const struct kvmfault_memory *memory,
				 uint64_t page, uint64_t known)
{
	uint64_t next = known >> memory->page_shift;

	return next > page ? next : page + 1;
}

/* A neighbour's error is not this page's: the window ends there. */
void kvmfault__extent_window(const struct kvmfault__request *rq,
			     uint64_t *first, uint64_t *end)
{
	struct kvmfault_memory *memory = rq->request.memory;
	int hole = rq->request.page == KVMFAULT_PAGE_HOLE;
	struct extents extents = {
		.memory = memory,
		.limit = *end << memory->page_shift,
	};
	uint64_t page, next;

	for (page = *first; page < rq->page; page = next) {
		bool alike = extent_page_is_zero(&extents, page) == hole;

		next = extent_next_page(memory, page, extents.end);
		if (!alike)
			*first = next < rq->page ? next : rq->page;
	}
	if (extents.end < rq->alike) {
		extents.end = rq->alike;
		extents.zero = hole;
	}
	for (page = extent_next_page(memory, rq->page, rq->alike); page < *end;
	     page = extent_next_page(memory, page, extents.end))
		if (extent_page_is_zero(&extents, page) != hole)
			*end = page;
}
