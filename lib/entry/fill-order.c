/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The order of a fill: what was given back, then its working set, then its
 * memories, each from the beginning; of a source with chunks, a chunk at once.
 * In: how many bytes a step brings. Out: the pages that are next, which no
 * other thread of the fill gets.
 */

#include "fill.h"

/* ---- pages ---- */

/* A word of states at a time. */
uint64_t kvmfault__fill_find(const struct kvmfault_memory *memory,
			     uint64_t page, uint64_t end, bool absent)
{
	while (page < end) {
		unsigned int step = kvmfault__pages_step(page, end);
		uint64_t all = kvmfault__pages_lowest(step);
		uint64_t word = atomic_load(kvmfault__page_word(memory, page))
				>> kvmfault__page_shift(page);
		uint64_t found = (word | word >> 1 | word >> 2) & all;

		if (absent)
			found ^= all;
		if (found)
			return page + (unsigned int)__builtin_ctzll(found) /
				      KVMFAULT__PAGE_BITS;
		page += step;
	}
	return end;
}

bool kvmfault__fill_has_absent(struct kvmfault_fill *fill)
{
	uint64_t known = atomic_load(&fill->known);
	const struct kvmfault__fill_part *part = fill->part;
	const struct kvmfault__fill_part *end = part + fill->count;

	for (; part < end; part++) {
		if (known >= part->end)
			continue;
		known = part->first +
			kvmfault__fill_find(part->memory, known - part->first,
					    part->end - part->first, true);
		if (known < part->end)
			break;
	}
	atomic_store(&fill->known, known);
	return part < end;
}

/* The source's chunk in bytes, if a step can bring one; else 0. */
static uint64_t order_find_chunk(const struct kvmfault_fill *fill,
				 const struct kvmfault_memory *memory)
{
	uint64_t chunk = memory->source.chunk;
	uint64_t size = kvmfault__page_size(memory);

	return chunk % size || chunk > fill->window_length ? 0 : chunk;
}

/* As many of the source's bytes from the offset on as end where a whole unit
 * does: at least one, and not more than `most` if that is more. */
static uint64_t order_cut(uint64_t offset, uint64_t unit, uint64_t most)
{
	return (most > unit ? most - most % unit : unit) - offset % unit;
}

/* Where the step ends that begins at the page: at the end of a block of so many
 * bytes, which is made of the source's chunks, if it has some. */
static uint64_t order_find_end(const struct kvmfault_fill *fill,
			       const struct kvmfault_memory *memory,
			       uint64_t page, uint64_t length)
{
	uint64_t chunk = order_find_chunk(fill, memory);
	uint64_t unit = chunk ? chunk : kvmfault__page_size(memory);
	uint64_t block = order_cut(0, unit, length);
	uint64_t at = page << memory->page_shift;

	if (chunk)
		at += memory->source_offset;
	return page + ((block - at % block + kvmfault__page_size(memory) - 1)
		       >> memory->page_shift);
}

/* ---- what was not asked for after all ---- */

/* Pieces of the set that a thread has in hand were not asked for yet. */
static void order_note_replay(struct kvmfault_fill *fill)
{
	bool replaying = fill->in_hand ||
			 (fill->first && fill->run < fill->first->runs);
	unsigned int i;

	for (i = 0; i < fill->backs; i++)
		replaying |= fill->back[i].first;
	atomic_store(&fill->replaying, replaying);
}

/* A thread puts back one piece at most before it takes the next one, so there
 * is room for all. */
void kvmfault__fill_put(struct kvmfault_fill *fill,
			const struct kvmfault__fill_piece *piece)
{
	if (piece->page == piece->rest && !piece->first)
		return;
	kvmfault__sys_lock(&fill->lock);
	if (piece->page < piece->rest)
		fill->back[fill->backs++] = *piece;
	fill->in_hand -= piece->first;
	order_note_replay(fill);
	kvmfault__sys_unlock(&fill->lock);
}

static bool order_take_back(struct kvmfault_fill *fill, uint64_t length,
			    struct kvmfault__fill_piece *piece)
{
	if (!fill->backs)
		return false;
	*piece = fill->back[--fill->backs];
	piece->end = order_find_end(fill, piece->part->memory, piece->page,
				    length);
	if (piece->end > piece->rest)
		piece->end = piece->rest;
	return true;
}

/* ---- the working set ---- */

/* The part that shows the image's byte at the offset, or NULL. *length becomes
 * how far that goes, or how far away the next part is, if that is less. */
static const struct kvmfault__fill_part *
order_find_image(const struct kvmfault_fill *fill, uint64_t offset,
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

/* The pages of these bytes of the image; if faults bring whole chunks of it,
 * all pages of the chunks, as far as the memory shows them. */
static void order_set_pages(const struct kvmfault_fill *fill,
			    struct kvmfault__fill_piece *piece, uint64_t offset,
			    uint64_t length)
{
	const struct kvmfault_memory *memory = piece->part->memory;
	uint64_t start = memory->source_offset, end = offset + length;
	uint64_t chunk = order_find_chunk(fill, memory);

	if (chunk && memory->window == KVMFAULT_WINDOW_SOURCE) {
		offset -= offset % chunk;
		end += chunk - 1;
		end -= end % chunk;
		if (offset < start)
			offset = start;
		if (end > start + memory->length)
			end = start + memory->length;
	}
	piece->page = (offset - start) >> memory->page_shift;
	piece->rest = ((end - start - 1) >> memory->page_shift) + 1;
	piece->end = piece->rest;
}

/* How many bytes of a run a step brings. */
static uint64_t order_cut_run(const struct kvmfault_fill *fill,
			      const struct kvmfault_memory *memory,
			      uint64_t offset, uint64_t most)
{
	uint64_t chunk = order_find_chunk(fill, memory);

	return chunk ? order_cut(offset, chunk, most) :
		       order_cut(offset - memory->source_offset,
				 kvmfault__page_size(memory), most);
}

/* Takes the next bytes of the working set that are in a memory. Returns false
 * at its end. */
static bool order_take_first(struct kvmfault_fill *fill, uint64_t most,
			     struct kvmfault__fill_piece *piece)
{
	const struct kvmfault_working_set *set = fill->first;
	uint64_t offset = 0, length = 0;

	*piece = (struct kvmfault__fill_piece){ .first = true };
	while (set && !piece->part && fill->run < set->runs) {
		offset = set->run[fill->run].offset + fill->done;
		length = set->run[fill->run].length - fill->done;
		piece->part = order_find_image(fill, offset, &length);
		if (piece->part)
			most = order_cut_run(fill, piece->part->memory, offset,
					     most);
		if (piece->part && length > most)
			length = most;
		fill->done += length;
		if (fill->done < set->run[fill->run].length)
			continue;
		fill->done = 0;
		fill->run++;
	}
	if (piece->part)
		order_set_pages(fill, piece, offset, length);
	return piece->part;
}

/* ---- the rest, in order ---- */

/* Pages that are passed over in one step, if none of them is absent. */
#define PASSED 65536

static uint64_t order_pass_over(const struct kvmfault__fill_part *part,
				uint64_t page)
{
	uint64_t end = part->end - part->first;

	if (end - page > PASSED)
		end = page + PASSED;
	return kvmfault__fill_find(part->memory, page, end, true);
}

/* Takes the next pages of this pass: up to so many bytes of one memory. Returns
 * false at the end. */
static bool order_take_next(struct kvmfault_fill *fill, uint64_t length,
			    struct kvmfault__fill_piece *piece)
{
	uint64_t at = atomic_load(&fill->cursor), pages;
	const struct kvmfault__fill_part *last = &fill->part[fill->count - 1];
	const struct kvmfault__fill_part *part;

	piece->first = false;
	do {
		if (at >= last->end)
			return false;
		for (part = fill->part; at >= part->end; part++)
			;
		pages = part->end - part->first;
		piece->part = part;
		piece->page = order_pass_over(part, at - part->first);
		piece->end = order_find_end(fill, part->memory, piece->page,
					    length);
		if (piece->end > pages)
			piece->end = pages;
		piece->rest = piece->end;
	} while (!atomic_compare_exchange_weak(&fill->cursor, &at,
					       part->first + piece->end));
	return true;
}

bool kvmfault__fill_take(struct kvmfault_fill *fill, uint64_t length,
			 struct kvmfault__fill_piece *piece)
{
	bool taken;

	kvmfault__sys_lock(&fill->lock);
	taken = order_take_back(fill, length, piece) ||
		order_take_first(fill, length, piece);
	fill->in_hand += taken && piece->first;
	order_note_replay(fill);
	kvmfault__sys_unlock(&fill->lock);
	return taken || order_take_next(fill, length, piece);
}
