/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Delivery by markers: puts markers into the memslots' mapping, so that a vCPU
 * that misses a page there leaves KVM_RUN by a SIGBUS. The SIGBUS that a marker
 * causes is answered in entry/sigbus.c. In: a message for a page of a marker
 * block. Out: a marker in each absent or discarded page of that block, if the
 * work pays. If a marker is missing, the fault is slow, since it comes as a
 * message. If a page comes meanwhile, its marker stays for a moment, until this
 * file looks again and removes it; resolve/failure.c handles one that is left.
 */

#include <sys/mman.h>

#include "../core/bitmap.h"
#include "region.h"

/* A block is 4 MiB, if pages have 4 KiB: two page tables, one more than a lone
 * touch needs. Even if two vCPUs send a message for the same block before it is
 * marked, that is one message for 2 MiB. */
#define MARKER_BLOCK 1024ULL	/* pages */
#define AHEAD 4ULL		/* blocks that are marked ahead, at most */
#define AT_ONCE 32U		/* blocks marked at the first touch: 128 MiB */

static uint64_t marker_count_blocks(const struct kvmfault_memory *memory)
{
	return (memory->length >> memory->page_shift) / MARKER_BLOCK + 1;
}

static size_t marker_bitmap_bytes(const struct kvmfault_memory *memory)
{
	return (marker_count_blocks(memory) / KVMFAULT__BITS + 1) *
	       sizeof(uint64_t);
}

int kvmfault__markers_new(struct kvmfault_memory *memory)
{
	void *marked;
	int err = kvmfault__sys_mmap(&marked, 2 * marker_bitmap_bytes(memory),
				     PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS |
				     MAP_NORESERVE, -1, 0);

	if (!err)
		memory->marked = marked;
	return err;
}

void kvmfault__markers_free(struct kvmfault_memory *memory)
{
	if (memory->marked)
		kvmfault__sys_munmap((void *)(uintptr_t)memory->marked,
				     2 * marker_bitmap_bytes(memory));
}

/* The page is absent or discarded, and is not being fetched. */
static bool marker_page_is_missing(const struct kvmfault_memory *memory,
				   uint64_t page)
{
	enum kvmfault__state state = kvmfault__page_state(memory, page);

	return state == KVMFAULT__ABSENT || state == KVMFAULT__DISCARDED;
}

/*
 * If another thread's copy came after the marker, it has replaced the marker.
 * If it came before, the kernel may have unmapped the page since, and the
 * marker is stale: remove it in either case.
 */
static int marker_recheck_run(const struct kvmfault_mapping *mapping,
			      uint64_t page, uint64_t count)
{
	const struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t size = kvmfault__page_size(memory), end = page + count;
	int err = 0;

	for (; page < end && !err; page++)
		if (!marker_page_is_missing(memory, page))
			err = kvmfault__take_away(memory->uffd,
						  (char *)memory->host +
						  page * size, size,
						  MADV_DONTNEED);
	return err;
}

/* One call marks each run of pages that have neither data nor a marker. If
 * `first` is set, only the first of these runs is marked. */
static int marker_mark_run(struct kvmfault__seat *seat,
			   const struct kvmfault_mapping *mapping,
			   uint64_t page, uint64_t count, bool first)
{
	uint64_t size = kvmfault__page_size(mapping->span.memory);
	uint64_t end = page + count, done;
	int err = 0, gone = 0;

	while (page < end && !err && !gone) {
		err = kvmfault__uffd_poison(mapping->uffd->fd,
					    mapping->host + page * size,
					    (end - page) * size, size, true,
					    &done);
		done /= size;
		kvmfault__add(seat, KVMFAULT__COUNTER(marked), done);
		gone = marker_recheck_run(mapping, page, done);
		page += done;
		/* A page or a marker is there, or nothing is mapped. */
		if (!first && (err == -EEXIST || err == -ENOENT)) {
			err = 0;
			page++;
		}
	}
	return err ? err : gone;
}

/* Mark from the page up to the end of its marker block. */
static int marker_mark_pages(struct kvmfault__seat *seat,
			     const struct kvmfault_mapping *mapping,
			     uint64_t page, bool first)
{
	const struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t pages = memory->length >> memory->page_shift;
	uint64_t end = page - page % MARKER_BLOCK + MARKER_BLOCK, next;
	int err = 0;

	if (end > pages)
		end = pages;
	for (; page < end && !err; page = next) {
		for (next = page; next < end &&
		     marker_page_is_missing(memory, next); next++)
			;
		if (next > page)
			err = marker_mark_run(seat, mapping, page, next - page,
					      first);
		else
			next++;
		if (first)
			break;
	}
	return err;
}

/* Never mark a memory's only mapping: the VMM itself would take the SIGBUS. */
static int marker_mark_if_safe(struct kvmfault__seat *seat,
			       struct kvmfault_memory *memory, uint64_t page,
			       bool first)
{
	const struct kvmfault__mappings *all =
		kvmfault__hold(seat, KVMFAULT__HAZARD_MAPPINGS,
			       &memory->mappings);
	int err = -EAGAIN;

	if (kvmfault__own_mapping(all))
		err = marker_mark_pages(seat, all->mapping[0], page, first);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MAPPINGS);
	return err;
}

static bool marker_is_wanted(const struct kvmfault_memory *memory)
{
	return atomic_load(&memory->vm->how.delivery) ==
	       KVMFAULT_DELIVERY_MARKER_EXIT &&
	       !atomic_load(&memory->settling);
}

static bool marker_block_is_marked(const struct kvmfault_memory *memory,
				   uint64_t block)
{
	return kvmfault__bit(memory->marked, block);
}

/* The thread that sets the block's bit marks the block. Returns false if the
 * block is not marked afterwards. */
static bool marker_block_mark(struct kvmfault__seat *seat,
			      struct kvmfault_memory *memory, uint64_t block)
{
	_Atomic uint64_t *word = &memory->marked[block / KVMFAULT__BITS];
	uint64_t bit = 1ULL << block % KVMFAULT__BITS;

	/* A thread that leaves the mode, or settles the memory, stores that,
	 * then drains on this hazard. We store the hazard, then load the mode:
	 * one sees the other. */
	atomic_store(&seat->hazard[KVMFAULT__HAZARD_MARKING], memory);
	if (marker_is_wanted(memory) && !(atomic_fetch_or(word, bit) & bit) &&
	    marker_mark_if_safe(seat, memory, block * MARKER_BLOCK, false))
		atomic_fetch_and(word, ~bit);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MARKING);
	return marker_block_is_marked(memory, block);
}

/* A message for a page of a marked block means that the page was punched, maybe
 * with those behind it. Those are marked again, up to the first that has a
 * marker. */
static void marker_block_mark_again(struct kvmfault__seat *seat,
				    struct kvmfault_memory *memory,
				    uint64_t page)
{
	if (kvmfault__page_state(memory, page) != KVMFAULT__DISCARDED ||
	    !(++page % MARKER_BLOCK))
		return;
	atomic_store(&seat->hazard[KVMFAULT__HAZARD_MARKING], memory);
	if (marker_is_wanted(memory))
		marker_mark_if_safe(seat, memory, page, true);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MARKING);
}

static bool marker_is_used(const struct kvmfault__target *target)
{
	return target->origin->memslots && target->memory->marked &&
	       marker_is_wanted(target->memory);
}

static uint64_t marker_block_of(const struct kvmfault__target *target)
{
	return (target->offset >> target->memory->page_shift) / MARKER_BLOCK;
}

/*
 * Marking costs as much as two messages, and a guest that jumps about in a
 * large memory never comes back. So after AT_ONCE blocks, only a neighbour of a
 * marked block, where the guest walks, is marked at its first touch.
 */
static bool marker_block_is_worth_it(struct kvmfault_memory *memory,
				     uint64_t block)
{
	_Atomic uint64_t *touched = memory->marked +
				    marker_bitmap_bytes(memory) /
				    sizeof(uint64_t);
	uint64_t bit = 1ULL << block % KVMFAULT__BITS;

	if (atomic_load(&memory->marked_at_once) < AT_ONCE &&
	    atomic_fetch_add(&memory->marked_at_once, 1) < AT_ONCE)
		return true;
	if ((block && marker_block_is_marked(memory, block - 1)) ||
	    (block + 1 < marker_count_blocks(memory) &&
	     marker_block_is_marked(memory, block + 1)))
		return true;
	return atomic_fetch_or(&touched[block / KVMFAULT__BITS], bit) & bit;
}

void kvmfault__mark(struct kvmfault__seat *seat,
		    const struct kvmfault__target *target)
{
	struct kvmfault_memory *memory = target->memory;

	if (!marker_is_used(target))
		return;
	if (marker_block_is_marked(memory, marker_block_of(target)))
		marker_block_mark_again(seat, memory,
					target->offset >> memory->page_shift);
	else if (marker_block_is_worth_it(memory, marker_block_of(target)))
		marker_block_mark(seat, memory, marker_block_of(target));
}

/* Count the next blocks in that direction that are marked, or that are not
 * marked. Counting ends at AHEAD. */
static uint64_t marker_count_run(const struct kvmfault_memory *memory,
				 uint64_t block, int64_t way, bool marked)
{
	uint64_t n = 0, end = marker_count_blocks(memory);

	while (n < AHEAD && (block += (uint64_t)way) < end &&
	       marker_block_is_marked(memory, block) == marked)
		n++;
	return n;
}

/* So few blocks are marked that it does not matter which are. */
static bool marker_has_few_blocks(struct kvmfault_memory *memory)
{
	return atomic_load(&memory->marked_at_once) < AT_ONCE / 4;
}

/* This grows as windows do: a guest that walks leaves marked blocks behind, and
 * as many are marked in front of it. For a guest that jumps about in a large
 * memory one block is marked at a time. */
void kvmfault__mark_ahead(struct kvmfault__seat *seat,
			  const struct kvmfault__target *target)
{
	struct kvmfault_memory *memory = target->memory;
	uint64_t block, below, above, n;
	int64_t way;

	if (!marker_is_used(target) ||
	    !marker_block_is_marked(memory, marker_block_of(target)))
		return;
	block = marker_block_of(target);
	below = marker_count_run(memory, block, -1, true);
	above = marker_count_run(memory, block, 1, true);
	way = below >= above ? 1 : -1;
	n = marker_count_run(memory, block, way, false);
	if (n > (way > 0 ? below : above) && !marker_has_few_blocks(memory))
		n = way > 0 ? below : above;
	while (n-- && marker_block_mark(seat, memory, block += (uint64_t)way))
		;
}

static bool marker_seat_is_marking(struct kvmfault__seat *seat, void *unused)
{
	(void)unused;
	return kvmfault__held(seat, KVMFAULT__HAZARD_MARKING);
}

/* Dropping the page tables takes the markers. A page that is in the file stays
 * there. */
int kvmfault__unmark(struct kvmfault_memory *memory)
{
	uint64_t i;

	if (!memory->marked)
		return 0;
	for (i = 0; i < marker_bitmap_bytes(memory) / sizeof(uint64_t); i++)
		atomic_store(&memory->marked[i], 0);
	return kvmfault__take_away(memory->uffd, memory->host, memory->length,
				   MADV_DONTNEED);
}

static bool marker_seat_is_marking_memory(struct kvmfault__seat *seat,
					  void *memory)
{
	return kvmfault__held(seat, KVMFAULT__HAZARD_MARKING) == memory;
}

int kvmfault__markers_end(struct kvmfault_memory *memory)
{
	if (memory->marked)
		kvmfault__drain(memory->vm, marker_seat_is_marking_memory,
				memory);
	return kvmfault__unmark(memory);
}

int kvmfault__unmark_all(struct kvmfault__seat *seat)
{
	/* Marking is no callback, so this never waits for the caller itself. */
	kvmfault__drain(seat->vm, marker_seat_is_marking, NULL);
	return kvmfault__each_memory(seat, kvmfault__unmark);
}
