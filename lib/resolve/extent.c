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
#define LONG_RUN 512		/* pages of data that are worth to be kept */

struct extents {
	struct kvmfault_memory *memory;
	uint64_t limit;		/* an offset: ask for no more than this */
	uint64_t end;		/* where the last answer ends, */
	bool zero;		/* and what it was */
	unsigned int asked;
};

/* To find where data ends may cost the kernel a look at each page of a file: so
 * the last long run of pages that are all data is kept, and asked for once. */
static void extent_keep_run(struct kvmfault_memory *memory, uint64_t offset)
{
	uint64_t size = kvmfault__page_size(memory), first, end;
	uint64_t length = memory->length - offset;

	if (length <= LONG_RUN * size ||
	    kvmfault__source_extent(&memory->source, memory->source_offset +
				    offset, &length) != KVMFAULT_EXTENT_DATA)
		return;
	first = (offset + size - 1) >> memory->page_shift;
	end = (offset + length) >> memory->page_shift;
	if (end > first + LONG_RUN && end <= UINT32_MAX)
		atomic_store(&memory->data_run, first << 32 | (end - first));
}

static bool extent_is_kept(const struct kvmfault_memory *memory, uint64_t page)
{
	uint64_t run = atomic_load(&memory->data_run);

	return page - (run >> 32) < (uint32_t)run;
}

static int extent_ask_source(struct extents *extents, uint64_t offset)
{
	struct kvmfault_memory *memory = extents->memory;
	uint64_t length = extents->limit - offset;
	int kind = KVMFAULT_EXTENT_DATA;

	if (extents->asked++ < EXTENTS)
		kind = kvmfault__source_extent(&memory->source,
					       memory->source_offset + offset,
					       &length);
	if (kind < 0)
		return kind;
	extents->end = offset + length;
	extents->zero = kind != KVMFAULT_EXTENT_DATA;
	if (!extents->zero && extents->asked <= EXTENTS &&
	    extents->end == extents->limit)
		extent_keep_run(memory, offset);
	return 0;
}

/* Returns 1 if all of the page is zero in the source, 0 if not, or -errno. */
static int extent_page_is_zero(struct extents *extents, uint64_t page)
{
	uint64_t at = page << extents->memory->page_shift;
	uint64_t end = at + kvmfault__page_size(extents->memory);

	if (extent_is_kept(extents->memory, page))
		return 0;
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

int kvmfault__extent_page(const struct kvmfault__request *rq)
{
	struct extents extents = {
		.memory = rq->request.memory,
		.limit = rq->request.offset + rq->request.length,
	};
	int zero = extent_page_is_zero(&extents, rq->page);

	if (zero < 0)
		return zero;
	return zero ? KVMFAULT_PAGE_HOLE : KVMFAULT_PAGE_ABSENT;
}

/* A neighbour's error is not this page's: the window ends there. */
void kvmfault__extent_window(const struct kvmfault__request *rq,
			     uint64_t *first, uint64_t *end)
{
	int hole = rq->request.page == KVMFAULT_PAGE_HOLE;
	struct extents extents = {
		.memory = rq->request.memory,
		.limit = *end << rq->request.memory->page_shift,
	};
	uint64_t page;

	for (page = *first; page < *end; page++) {
		if (page == rq->page ||
		    extent_page_is_zero(&extents, page) == hole)
			continue;
		if (page < rq->page)
			*first = page + 1;
		else
			*end = page;
	}
}
