/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Delivery by markers. In: a touch of a stretch of the memslots' mapping that
 * has none. Out: a marker in each absent page of it, so that the next touch of
 * one ends KVM_RUN; unless the touch may be a lone one in a large memory, for
 * which that would be too much work. A marker that is missing makes a fault
 * slow, for then it comes as a message; one on a page that is present would be
 * an error, and is never left there.
 */

#include <sys/mman.h>

#include "region.h"

/* Pages. Of 4 KiB it is what two pages of the host's page tables map, so a lone
 * touch takes one more of these than it needs; and there is room for vCPUs that
 * touch a stretch at the same time within one message for each 2 MiB. */
#define STRETCH 1024ULL
#define BITS 64
#define AHEAD 4ULL		/* stretches, at most */
#define AT_ONCE 32U		/* so many without asking: 128 MiB */

static uint64_t stretches(const struct kvmfault_memory *memory)
{
	return (memory->length >> memory->page_shift) / STRETCH + 1;
}

static size_t bytes(const struct kvmfault_memory *memory)
{
	return (stretches(memory) / BITS + 1) * sizeof(uint64_t);
}

int kvmfault__markers_new(struct kvmfault_memory *memory)
{
	void *marked;
	int err = kvmfault__sys_mmap(&marked, 2 * bytes(memory),
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
				     2 * bytes(memory));
}

/* Nobody has it, nor is about to. */
static bool missing(const struct kvmfault_memory *memory, uint64_t page)
{
	enum kvmfault__state state = kvmfault__page_state(memory, page);

	return state == KVMFAULT__ABSENT || state == KVMFAULT__DISCARDED;
}

/*
 * Somebody may have fetched one of these pages meanwhile. If his copy comes
 * after the marker it takes its place. If it came before, and the kernel has
 * unmapped the page since, the marker is wrong: in either case taking it away is
 * right.
 */
static int recheck(const struct kvmfault_mapping *mapping, uint64_t page,
		   uint64_t count)
{
	const struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t size = kvmfault__page_size(memory), end = page + count;
	int err = 0;

	for (; page < end && !err; page++)
		if (!missing(memory, page))
			err = kvmfault__take_away(memory->uffd,
						  (char *)memory->host +
						  page * size, size,
						  MADV_DONTNEED);
	return err;
}

/* One call for each run of pages that have neither data nor a marker; first: the
 * first of these runs is all. */
static int mark_run(struct kvmfault__seat *seat,
		    const struct kvmfault_mapping *mapping, uint64_t page,
		    uint64_t count, bool first)
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
		gone = recheck(mapping, page, done);
		page += done;
		/* There is a page, or a marker; or nothing is mapped. */
		if (!first && (err == -EEXIST || err == -ENOENT)) {
			err = 0;
			page++;
		}
	}
	return err ? err : gone;
}

/* From the page on, in its stretch. */
static int mark_pages(struct kvmfault__seat *seat,
		      const struct kvmfault_mapping *mapping, uint64_t page,
		      bool first)
{
	const struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t pages = memory->length >> memory->page_shift;
	uint64_t end = page - page % STRETCH + STRETCH, next;
	int err = 0;

	if (end > pages)
		end = pages;
	for (; page < end && !err; page = next) {
		for (next = page; next < end && missing(memory, next); next++)
			;
		if (next > page)
			err = mark_run(seat, mapping, page, next - page, first);
		else
			next++;
		if (first)
			break;
	}
	return err;
}

/* Who touches a marker through the only mapping there is may be the VMM. */
static int mark(struct kvmfault__seat *seat, struct kvmfault_memory *memory,
		uint64_t page, bool first)
{
	const struct kvmfault__mappings *all =
		kvmfault__hold(seat, KVMFAULT__HAZARD_MAPPINGS, &memory->mappings);
	int err = -EAGAIN;

	if (kvmfault__own_mapping(all))
		err = mark_pages(seat, all->mapping[0], page, first);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MAPPINGS);
	return err;
}

static bool wanted(const struct kvmfault_memory *memory)
{
	return atomic_load(&memory->vm->how.delivery) ==
	       KVMFAULT_DELIVERY_MARKER_EXIT;
}

static bool is_marked(const struct kvmfault_memory *memory, uint64_t stretch)
{
	return atomic_load(&memory->marked[stretch / BITS]) >> stretch % BITS &
	       1;
}

/* Unless it is. False: it is not now either. */
static bool mark_once(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory, uint64_t stretch)
{
	_Atomic uint64_t *word = &memory->marked[stretch / BITS];
	uint64_t bit = 1ULL << stretch % BITS;

	/* Who leaves the mode says so, and then looks for who is marking. */
	atomic_store(&seat->hazard[KVMFAULT__HAZARD_MARKING], memory);
	if (wanted(memory) && !(atomic_fetch_or(word, bit) & bit) &&
	    mark(seat, memory, stretch * STRETCH, false))
		atomic_fetch_and(word, ~bit);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MARKING);
	return is_marked(memory, stretch);
}

/* A message for a page of a stretch that is marked: it was punched, maybe with those
 * behind it. They get their markers again, up to the first that still has one. */
static void mark_again(struct kvmfault__seat *seat,
		       struct kvmfault_memory *memory, uint64_t page)
{
	if (kvmfault__page_state(memory, page) != KVMFAULT__DISCARDED ||
	    !(++page % STRETCH))
		return;
	atomic_store(&seat->hazard[KVMFAULT__HAZARD_MARKING], memory);
	if (wanted(memory))
		mark(seat, memory, page, true);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MARKING);
}

static bool by_markers(const struct kvmfault__target *place)
{
	return place->origin->memslots && place->memory->marked &&
	       wanted(place->memory);
}

static uint64_t stretch_of(const struct kvmfault__target *place)
{
	return (place->offset >> place->memory->page_shift) / STRETCH;
}

/*
 * To mark a stretch costs as much as two messages, and who jumps about in a
 * large memory never touches it again. So the first ones are marked at once, a
 * neighbour of a marked one is where somebody walks, and others have to be
 * touched twice.
 */
static bool worth_it(struct kvmfault_memory *memory, uint64_t stretch)
{
	_Atomic uint64_t *touched = memory->marked +
				    bytes(memory) / sizeof(uint64_t);
	uint64_t bit = 1ULL << stretch % BITS;

	if (atomic_load(&memory->marked_at_once) < AT_ONCE &&
	    atomic_fetch_add(&memory->marked_at_once, 1) < AT_ONCE)
		return true;
	if ((stretch && is_marked(memory, stretch - 1)) ||
	    (stretch + 1 < stretches(memory) && is_marked(memory, stretch + 1)))
		return true;
	return atomic_fetch_or(&touched[stretch / BITS], bit) & bit;
}

void kvmfault__mark(struct kvmfault__seat *seat,
		    const struct kvmfault__target *place)
{
	struct kvmfault_memory *memory = place->memory;

	if (!by_markers(place))
		return;
	if (is_marked(memory, stretch_of(place)))
		mark_again(seat, memory, place->offset >> memory->page_shift);
	else if (worth_it(memory, stretch_of(place)))
		mark_once(seat, memory, stretch_of(place));
}

/* How many of the next ones that way are marked, or are not, up to AHEAD. */
static uint64_t run(const struct kvmfault_memory *memory, uint64_t stretch,
		    int64_t way, bool marked)
{
	uint64_t n = 0, end = stretches(memory);

	while (n < AHEAD && (stretch += (uint64_t)way) < end &&
	       is_marked(memory, stretch) == marked)
		n++;
	return n;
}

/* So few are marked that it does not matter which. */
static bool few(struct kvmfault_memory *memory)
{
	return atomic_load(&memory->marked_at_once) < AT_ONCE / 4;
}

/* As windows grow: who walks leaves marked stretches behind, and finds as many
 * in front. Who jumps about in a large memory has one marked at a time. */
void kvmfault__mark_ahead(struct kvmfault__seat *seat,
			  const struct kvmfault__target *place)
{
	struct kvmfault_memory *memory = place->memory;
	uint64_t stretch, below, above, n;
	int64_t way;

	if (!by_markers(place) || !is_marked(memory, stretch_of(place)))
		return;
	stretch = stretch_of(place);
	below = run(memory, stretch, -1, true);
	above = run(memory, stretch, 1, true);
	way = below >= above ? 1 : -1;
	n = run(memory, stretch, way, false);
	if (n > (way > 0 ? below : above) && !few(memory))
		n = way > 0 ? below : above;
	while (n-- && mark_once(seat, memory, stretch += (uint64_t)way))
		;
}

static bool is_marking(struct kvmfault__seat *seat, void *unused)
{
	(void)unused;
	return kvmfault__held(seat, KVMFAULT__HAZARD_MARKING);
}

/* What is present in the file stays so. */
static int unmark(struct kvmfault_memory *memory)
{
	uint64_t i;

	if (!memory->marked)
		return 0;
	for (i = 0; i < bytes(memory) / sizeof(uint64_t); i++)
		atomic_store(&memory->marked[i], 0);
	return kvmfault__take_away(memory->uffd, memory->host, memory->length,
				   MADV_DONTNEED);
}

int kvmfault__unmark_all(struct kvmfault__seat *seat)
{
	/* Marking is no callback: this never waits for the caller itself. */
	kvmfault__drain(seat->vm, is_marking, NULL);
	return kvmfault__each_memory(seat, unmark);
}
