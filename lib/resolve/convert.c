/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Convert: private and shared memory. In: guest-physical pages, and what they
 * are to be. Out: KVM told so, and the other side freed; or an error, and of
 * the run that failed all as it was. One thread at a time converts a page, and
 * what is noted of it is what KVM was told.
 */

#include <fcntl.h>
#include <linux/falloc.h>

#include "../os/abi.h"
#include "range.h"

#define CHUNK ((2ULL << 20) / KVMFAULT__PAGE)	/* pages */

/* ---- the regions of a run ---- */

struct part {
	struct kvmfault__seat *seat;
	const struct kvmfault__region *region;	/* held; NULL: none there */
	struct kvmfault__gfns pages;
	const struct kvmfault__conversion *mine;
};

static struct kvmfault__region *region_at(struct kvmfault__seat *seat,
					  uint64_t gfn)
{
	return kvmfault__region_find(seat, 0, kvmfault__gpa(gfn));
}

static uint64_t region_end(const struct kvmfault__region *region)
{
	return (region->info.gpa + region->info.length - 1) / KVMFAULT__PAGE +
		1;
}

/* Where the page is in the region's memory. */
static uint64_t offset(const struct kvmfault__region *region, uint64_t gfn)
{
	return kvmfault__region_offset(region, kvmfault__gpa(gfn));
}

static int for_each_part(struct kvmfault__seat *seat,
			 struct kvmfault__gfns pages,
			 const struct kvmfault__conversion *mine,
			 int (*what)(const struct part *part))
{
	struct part part = { .seat = seat, .pages = pages, .mine = mine };
	int err = 0;

	while (part.pages.first < pages.end && !err) {
		part.region = region_at(seat, part.pages.first);
		part.pages.end = part.region ? region_end(part.region) :
					       part.pages.first + 1;
		if (part.pages.end > pages.end)
			part.pages.end = pages.end;
		err = what(&part);
		kvmfault__leave(seat);
		part.pages.first = part.pages.end;
	}
	return err;
}

static int is_ram(const struct part *part)
{
	return part->region ? 0 : -ENXIO;
}

static int has_guest_memfd(const struct part *part)
{
	return part->region && part->region->info.guest_memfd > 0 ? 0 : -ENXIO;
}

/* A page that was discarded while it was fetched is punched by its fetcher in
 * the end: not while the guest writes to it. */
static int await_discards(const struct part *part)
{
	struct kvmfault_memory *memory;
	uint64_t page, last;
	int err = 0;

	memory = part->region ? part->region->span.memory : NULL;
	if (!memory || !kvmfault__tracked(memory))
		return 0;
	page = offset(part->region, part->pages.first) >> memory->page_shift;
	last = offset(part->region, part->pages.end - 1) >> memory->page_shift;
	for (; page <= last && !err; page++) {
		if (kvmfault__page_state(memory, page) !=
		    KVMFAULT__FETCHING_DISCARDED)
			continue;
		if (part->mine->wait)
			err = kvmfault__page_wait(part->seat, memory, page);
		else if (kvmfault__page_pending(part->seat, memory, page))
			err = KVMFAULT_VERDICT_LATER;
	}
	return err;
}

/* Is all that this huge page shows private, and stays so for now? */
static bool private_as_a_whole(const struct part *part, uint64_t at,
			       uint64_t size)
{
	const struct kvmfault_region *info = &part->region->info;
	struct kvmfault__gfns pages;

	if (at < info->offset || at + size > info->offset + info->length)
		return false;
	pages.first = (info->gpa + at - info->offset) / KVMFAULT__PAGE;
	pages.end = pages.first + size / KVMFAULT__PAGE;
	return pages.first >= part->mine->pages.first &&
	       pages.end <= part->mine->pages.end &&
	       kvmfault__attributes_find(part->seat->vm, pages, false) ==
	       pages.end;
}

static void keep(const struct part *part, const char *side, int err)
{
	struct kvmfault_vm *vm = part->seat->vm;

	if (err && !atomic_exchange(&vm->conversions.kept, true))
		kvmfault__log(vm, KVMFAULT_LOG_WARNING,
			      "memory at %#llx was converted, but its %s pages could not be freed (error %d): they keep host memory; this is logged once",
			      (unsigned long long)kvmfault__gpa(part->pages.first),
			      side, -err);
}

static int discard_shared(const struct part *part)
{
	struct kvmfault_memory *memory;
	uint64_t at, to, size;

	memory = part->region ? part->region->span.memory : NULL;
	if (!memory)
		return 0;
	size = kvmfault__page_size(memory);
	at = offset(part->region, part->pages.first);
	to = at + kvmfault__gfns_length(part->pages);
	if (size == KVMFAULT__PAGE) {
		keep(part, "shared",
		     kvmfault__discard(part->seat, memory, at, to - at, false));
		return 0;
	}
	for (at &= ~(size - 1); at < to; at += size)
		if (private_as_a_whole(part, at, size))
			keep(part, "shared",
			     kvmfault__discard(part->seat, memory, at, size,
					       false));
	return 0;
}

static int discard_private(const struct part *part)
{
	const struct kvmfault_region *info;
	struct kvmfault__seat *seat = part->seat;
	int err = 0;

	if (has_guest_memfd(part))
		return 0;
	info = &part->region->info;
	atomic_store(&seat->hazard[KVMFAULT__HAZARD_PUNCH], part->region);
	/* Removed by now? Then the VMM may have closed it. */
	if (!atomic_load(&part->region->span.dead))
		err = kvmfault__sys_fallocate(info->guest_memfd,
			FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			(off_t)(info->guest_memfd_offset +
				kvmfault__gpa(part->pages.first) - info->gpa),
			(off_t)kvmfault__gfns_length(part->pages));
	kvmfault__unhold(seat, KVMFAULT__HAZARD_PUNCH);
	keep(part, "private", err);
	return 0;
}

/* ---- a run of pages that are not what they are to be ---- */

static int negative(int err)
{
	/* A count, or anything else that is not the contract, is no success. */
	return err > 0 ? -EINVAL : err;
}

/* *asked: how many hooks have to hear how it ended. */
static int call_before(struct kvmfault_vm *vm, struct kvmfault__gfns run,
		       bool private, unsigned int *asked)
{
	uint64_t gpa = kvmfault__gpa(run.first);
	uint64_t length = kvmfault__gfns_length(run);
	unsigned int count = atomic_load(&vm->conversions.hooks);
	int err = 0;

	for (*asked = 0; *asked < count; ++*asked) {
		const struct kvmfault_conversion_hook *hook =
			&vm->conversions.hook[*asked];

		if (hook->before)
			err = negative(hook->before(hook->data, gpa, length,
						    private));
		if (err)
			break;
	}
	return err;
}

static void call_after(struct kvmfault_vm *vm, struct kvmfault__gfns run,
		       bool private, unsigned int asked, bool done)
{
	while (asked--) {
		const struct kvmfault_conversion_hook *hook = &vm->conversions.hook[asked];

		if (hook->after)
			hook->after(hook->data, kvmfault__gpa(run.first),
				    kvmfault__gfns_length(run), private, done);
	}
}

static int tell_kvm(struct kvmfault_vm *vm, struct kvmfault__gfns run,
		    bool private)
{
	const struct kvmfault_converter *converter = &vm->conversions.converter;
	int err, back;

	err = negative(converter->set(converter->data, kvmfault__gpa(run.first),
				      kvmfault__gfns_length(run), private));
	if (!err)
		return 0;
	/* It may take several steps, of which some were done. */
	back = converter->set(converter->data, kvmfault__gpa(run.first),
			      kvmfault__gfns_length(run), !private);
	if (back)
		kvmfault__log(vm, KVMFAULT_LOG_ERROR,
			      "memory at %#llx could not be converted (error %d), and then not be set back (error %d): KVM and the library may not agree what it is; convert it again, or stop the VM",
			      (unsigned long long)kvmfault__gpa(run.first), -err, -back);
	return err;
}

static void discard_other(struct kvmfault__seat *seat,
			  struct kvmfault__gfns run,
			  const struct kvmfault__conversion *mine, bool private)
{
	uint32_t keeps = private ? KVMFAULT_CONVERTER_KEEP_SHARED :
				   KVMFAULT_CONVERTER_KEEP_PRIVATE;

	if (!(seat->vm->conversions.converter.flags & keeps))
		for_each_part(seat, run, mine, private ? discard_shared :
							 discard_private);
}

static int convert_run(struct kvmfault__seat *seat, struct kvmfault__gfns run,
		       const struct kvmfault__conversion *mine, bool private)
{
	struct kvmfault_vm *vm = seat->vm;
	unsigned int asked;
	int err;

	err = for_each_part(seat, run, mine, private ? has_guest_memfd :
						       await_discards);
	if (err)
		return err;
	err = call_before(vm, run, private, &asked);
	if (!err)
		err = tell_kvm(vm, run, private);
	if (!err) {
		kvmfault__attributes_note(vm, run, private);
		discard_other(seat, run, mine, private);
	}
	call_after(vm, run, private, asked, !err);
	return err;
}

/* ---- a range, in chunks ---- */

/* Whole huge pages, wherever one is in part: discarding it is about all. */
static void widen(struct kvmfault__seat *seat, struct kvmfault__gfns *pages)
{
	struct kvmfault__region *region = region_at(seat, pages->first);
	uint64_t mask, step;

	if (region && region->span.memory) {
		mask = kvmfault__page_size(region->span.memory) - 1;
		step = (offset(region, pages->first) & mask) / KVMFAULT__PAGE;
		if (step <= pages->first - region->info.gpa / KVMFAULT__PAGE)
			pages->first -= step;
	}
	region = region_at(seat, pages->end - 1);
	if (region && region->span.memory) {
		mask = kvmfault__page_size(region->span.memory) - 1;
		step = (-offset(region, pages->end) & mask) / KVMFAULT__PAGE;
		if (step <= region_end(region) - pages->end)
			pages->end += step;
	}
	kvmfault__leave(seat);
}

/* *reached is advanced as runs are converted, or are found to be. */
static int convert_runs(struct kvmfault__seat *seat,
			struct kvmfault__gfns chunk,
			const struct kvmfault__conversion *mine, bool private,
			uint64_t *reached)
{
	struct kvmfault_vm *vm = seat->vm;
	struct kvmfault__gfns run = { .end = chunk.first };
	int err = 0;

	if (!private && vm->conversions.converter.flags & KVMFAULT_CONVERTER_RAM_ONLY)
		err = for_each_part(seat, chunk, mine, is_ram);
	while (!err) {
		run.first = kvmfault__attributes_find(vm,
			(struct kvmfault__gfns){ run.end, chunk.end },
			!private);
		*reached = run.first;
		if (run.first == chunk.end)
			break;
		run.end = kvmfault__attributes_find(vm,
			(struct kvmfault__gfns){ run.first, chunk.end },
			private);
		err = convert_run(seat, run, mine, private);
	}
	return err;
}

static int convert_chunk(struct kvmfault__seat *seat,
			 struct kvmfault__gfns chunk, bool private, bool wait,
			 uint64_t *reached)
{
	struct kvmfault__conversion mine = { .pages = chunk, .wait = wait };
	int err;

	widen(seat, &mine.pages);
	err = kvmfault__conversion_begin(seat, &mine);
	if (err)
		return err;
	/* Not for a vCPU that has gone on, which knows how far it came. */
	if (kvmfault__hold_vcpu(seat)) {
		err = convert_runs(seat, chunk, &mine, private, reached);
		kvmfault__free_vcpu(seat);
	} else {
		err = -EINTR;
	}
	kvmfault__conversion_end(seat->vm, &mine);
	return err;
}

static struct kvmfault__gfns next_chunk(struct kvmfault__gfns pages,
					uint64_t first)
{
	struct kvmfault__gfns chunk = {
		.first = first,
		.end = (first | (CHUNK - 1)) + 1,
	};

	if (chunk.end > pages.end)
		chunk.end = pages.end;
	return chunk;
}

int kvmfault__convert(struct kvmfault__seat *seat, struct kvmfault__gfns pages,
		      bool private, bool wait, uint64_t *reached)
{
	struct kvmfault__gfns chunk = { .end = pages.first };
	int err = 0;

	kvmfault__leave(seat);
	while (chunk.end < pages.end && !err) {
		chunk = next_chunk(pages, chunk.end);
		err = kvmfault__exit_wanted(seat) ? -EINTR : 0;
		if (!err)
			err = convert_chunk(seat, chunk, private, wait,
					    reached);
	}
	return err;
}
