/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The order of a fill: its working set, then its memories, each from the
 * beginning. In: how many bytes a step brings. Out: the pages that are next,
 * which no other thread of the fill gets.
 */

#include "fill.h"

/* ---- what is next ---- */

/* Pages that are passed over in one step, if none of them is absent. */
#define PASSED 65536

static uint64_t fill_pass_over(const struct kvmfault__fill_part *part,
			       uint64_t page)
{
	uint64_t end = part->end - part->first;

	if (end - page > PASSED)
		end = page + PASSED;
	while (page < end && kvmfault__page_state(part->memory, page) !=
			     KVMFAULT__ABSENT)
		page++;
	return page;
}

/* Takes the next pages of this pass: up to so many bytes of one memory. Returns
 * false at the end. */
static bool fill_take_next(struct kvmfault_fill *fill, uint64_t length,
			   const struct kvmfault__fill_part **part,
			   uint64_t *page, uint64_t *end)
{
	uint64_t at = atomic_load(&fill->cursor), pages;
	const struct kvmfault__fill_part *last = &fill->part[fill->count - 1];

	do {
		if (at >= last->end)
			return false;
		for (*part = fill->part; at >= (*part)->end; ++*part)
			;
		pages = length >> (*part)->memory->page_shift;
		*page = fill_pass_over(*part, at - (*part)->first);
		*end = pages ? (*page / pages + 1) * pages : *page + 1;
		if (*end > (*part)->end - (*part)->first)
			*end = (*part)->end - (*part)->first;
	} while (!atomic_compare_exchange_weak(&fill->cursor, &at,
					       (*part)->first + *end));
	return true;
}

/* The part that shows the image's byte at the offset, or NULL. *length becomes
 * how far that goes, or how far away the next part is, if that is less. */
static const struct kvmfault__fill_part *
fill_find_image(const struct kvmfault_fill *fill, uint64_t offset,
		uint64_t *length)
{
	const struct kvmfault__fill_part *found = NULL;
	size_t i;

	for (i = 0; i < fill->count && !found; i++) {
		const struct kvmfault_memory *memory = fill->part[i].memory;
		uint64_t end = memory->source_offset;

		if (offset >= end) {
			end += memory->length;
			if (offset < end)
				found = &fill->part[i];
		}
		if (end > offset && *length > end - offset)
			*length = end - offset;
	}
	return found;
}

/* So many bytes from the offset on, at most: as many as whole pages of `most`
 * bytes have, and at least one page. */
static uint64_t fill_cut_to_pages(const struct kvmfault_memory *memory,
				  uint64_t offset, uint64_t most)
{
	uint64_t size = kvmfault__page_size(memory);
	uint64_t inside = (offset - memory->source_offset) & (size - 1);

	return (most > size ? most & ~(size - 1) : size) - inside;
}

/* Takes the next bytes of the working set that are in a memory. Returns false
 * at its end. */
static bool fill_take_first(struct kvmfault_fill *fill, uint64_t most,
			    const struct kvmfault__fill_part **part,
			    uint64_t *page, uint64_t *end)
{
	const struct kvmfault_working_set *set = fill->first;
	const struct kvmfault_memory *memory;
	uint64_t offset = 0, length = 0;

	if (!atomic_load(&fill->replaying))
		return false;
	*part = NULL;
	kvmfault__sys_lock(&fill->lock);
	while (!*part && fill->run < set->runs) {
		offset = set->run[fill->run].offset + fill->done;
		length = set->run[fill->run].length - fill->done;
		*part = fill_find_image(fill, offset, &length);
		if (*part)
			most = fill_cut_to_pages((*part)->memory, offset, most);
		if (*part && length > most)
			length = most;
		fill->done += length;
		if (fill->done < set->run[fill->run].length)
			continue;
		fill->done = 0;
		fill->run++;
	}
	if (fill->run == set->runs)
		atomic_store(&fill->replaying, false);
	kvmfault__sys_unlock(&fill->lock);
	if (!*part)
		return false;
	memory = (*part)->memory;
	offset -= memory->source_offset;
	*page = offset >> memory->page_shift;
	*end = ((offset + length - 1) >> memory->page_shift) + 1;
	return true;
}

bool kvmfault__fill_take(struct kvmfault_fill *fill, uint64_t length,
			 const struct kvmfault__fill_part **part,
			 uint64_t *page, uint64_t *end)
{
	return fill_take_first(fill, length, part, page, end) ||
	       fill_take_next(fill, length, part, page, end);
}

void kvmfault__fill_give_back(struct kvmfault_fill *fill,
			      const struct kvmfault__fill_part *part,
			      uint64_t page, uint64_t end)
{
	uint64_t at = part->first + end;

	atomic_compare_exchange_strong(&fill->cursor, &at, part->first + page);
}
