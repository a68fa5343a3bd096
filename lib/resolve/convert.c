/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Convert: makes guest memory private or shared, for resolver-convert.c and for
 * entry/vcpu-convert.c. KVM is told by the converter's set, by default
 * setup/converter.c. In: guest-physical pages, and which of the two they are to
 * become. Out: KVM is told, and the other side is freed; or an error is
 * returned, and the run that failed is what it was. At most one thread at a
 * time converts a page, and the library's note of a page is what KVM was last
 * told.
 */

#include <fcntl.h>
#include <linux/falloc.h>

#include "../os/abi.h"
#include "range.h"

#define CHUNK ((2ULL << 20) / KVMFAULT__PAGE)	/* pages */

/* ---- the regions of a run ---- */

struct part {
	struct kvmfault__seat *seat;
	const struct kvmfault__region *region;	/* held, or NULL: none */
	struct kvmfault__gfns pages;
	const struct kvmfault__conversion *mine;
};

static struct kvmfault__region *convert_region_at(struct kvmfault__seat *seat,
						  uint64_t gfn)
{
	return kvmfault__region_find(seat, 0, kvmfault__gpa(gfn));
}

static uint64_t convert_region_end(const struct kvmfault__region *region)
{
	return (region->info.gpa + region->info.length - 1) / KVMFAULT__PAGE +
		1;
}

/* Returns the page's offset in the region's memory. */
static uint64_t convert_offset(const struct kvmfault__region *region,
			       uint64_t gfn)
{
	return kvmfault__region_offset(region, kvmfault__gpa(gfn));
}

static int convert_each_part(struct kvmfault__seat *seat,
			     struct kvmfault__gfns pages,
			     const struct kvmfault__conversion *mine,
			     int (*what)(const struct part *part))
{
	struct part part = { .seat = seat, .pages = pages, .mine = mine };
	int err = 0;

	while (part.pages.first < pages.end && !err) {
		part.region = convert_region_at(seat, part.pages.first);
		part.pages.end = part.region ? convert_region_end(part.region) :
					       part.pages.first + 1;
		if (part.pages.end > pages.end)
			part.pages.end = pages.end;
		err = what(&part);
		kvmfault__leave(seat);
		part.pages.first = part.pages.end;
	}
	return err;
}

static int convert_check_ram(const struct part *part)
{
	return part->region ? 0 : -ENXIO;
}

static int convert_check_guest_memfd(const struct part *part)
{
	return part->region && part->region->info.guest_memfd > 0 ? 0 : -ENXIO;
}

/* If a page was discarded during its fetch, its fetcher punches it in the end.
 * That must be over before the guest writes to the shared page. */
static int convert_await_discards(const struct part *part)
{
	struct kvmfault_memory *memory;
	uint64_t page, last;
	int err = 0;

	memory = part->region ? part->region->span.memory : NULL;
	/* A memory that is being settled has such pages still. */
	if (!memory || !memory->states)
		return 0;
	page = convert_offset(part->region, part->pages.first) >>
	       memory->page_shift;
	last = convert_offset(part->region, part->pages.end - 1) >>
	       memory->page_shift;
	for (; page <= last && !err; page++) {
		if (kvmfault__page_state(memory, page) !=
		    KVMFAULT__FETCHING_DISCARDED)
			continue;
		/* With a page in hand this thread must not wait: the page's
		 * fetcher may wait for that one. */
		if (part->mine->wait)
			err = kvmfault__in_hand() ? -EDEADLK :
				kvmfault__page_wait(part->seat, memory, page);
		else if (kvmfault__page_pending(part->seat, memory, page))
			err = KVMFAULT_VERDICT_LATER;
	}
	return err;
}

/* Is each page of this huge page private, and does `mine` keep it so? */
static bool convert_is_all_private(const struct part *part, uint64_t at,
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

static void convert_log_kept(const struct part *part, const char *side, int err)
{
	struct kvmfault_vm *vm = part->seat->vm;

	if (err && !atomic_exchange(&vm->conversions.kept, true))
		kvmfault__log(vm, KVMFAULT_LOG_WARNING,
			      "memory at %#llx was converted, but its %s pages could not be freed (error %d): they keep host memory; this is logged once",
			      (unsigned long long)
			      kvmfault__gpa(part->pages.first),
			      side, -err);
}

static int convert_discard_shared(const struct part *part)
{
	struct kvmfault_memory *memory;
	uint64_t at, to, size;

	memory = part->region ? part->region->span.memory : NULL;
	if (!memory)
		return 0;
	size = kvmfault__page_size(memory);
	at = convert_offset(part->region, part->pages.first);
	to = at + kvmfault__gfns_length(part->pages);
	if (size == KVMFAULT__PAGE) {
		convert_log_kept(part, "shared",
				 kvmfault__discard(part->seat, memory, at,
						   to - at, false));
		return 0;
	}
	for (at &= ~(size - 1); at < to; at += size)
		if (convert_is_all_private(part, at, size))
			convert_log_kept(part, "shared",
					 kvmfault__discard(part->seat, memory,
							   at, size, false));
	return 0;
}

static int convert_discard_private(const struct part *part)
{
	const struct kvmfault_region *info;
	struct kvmfault__seat *seat = part->seat;
	int err = 0;

	if (convert_check_guest_memfd(part))
		return 0;
	info = &part->region->info;
	atomic_store(&seat->hazard[KVMFAULT__HAZARD_PUNCH], part->region);
	/* If the region is removed, the VMM may have closed its guest_memfd. */
	if (!atomic_load(&part->region->span.dead))
		err = kvmfault__sys_fallocate(info->guest_memfd,
			FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			(off_t)(info->guest_memfd_offset +
				kvmfault__gpa(part->pages.first) - info->gpa),
			(off_t)kvmfault__gfns_length(part->pages));
	kvmfault__unhold(seat, KVMFAULT__HAZARD_PUNCH);
	convert_log_kept(part, "private", err);
	return 0;
}

/* ---- a run of pages that are not what they are to be ---- */

static int convert_errno_of(int err)
{
	/* A callback that returns a count breaks its contract: no success. */
	return err > 0 ? -EINVAL : err;
}

/* *asked counts the hooks that must hear how the conversion ended. */
static int convert_call_before(struct kvmfault_vm *vm,
			       struct kvmfault__gfns run, bool private,
			       unsigned int *asked)
{
	uint64_t gpa = kvmfault__gpa(run.first);
	uint64_t length = kvmfault__gfns_length(run);
	unsigned int count = atomic_load(&vm->conversions.hooks);
	int err = 0;

	for (*asked = 0; *asked < count; ++*asked) {
		const struct kvmfault_conversion_hook *hook =
			&vm->conversions.hook[*asked];

		if (hook->before)
			err = convert_errno_of(hook->before(hook->data, gpa,
							    length, private));
		if (err)
			break;
	}
	return err;
}

static void convert_call_after(struct kvmfault_vm *vm,
			       struct kvmfault__gfns run, bool private,
			       unsigned int asked, bool done)
{
	while (asked--) {
		const struct kvmfault_conversion_hook *hook =
			&vm->conversions.hook[asked];

		if (hook->after)
			hook->after(hook->data, kvmfault__gpa(run.first),
				    kvmfault__gfns_length(run), private, done);
	}
}

static int convert_tell_kvm(struct kvmfault_vm *vm, struct kvmfault__gfns run,
			    bool private)
{
	const struct kvmfault_converter *converter = &vm->conversions.converter;
	int err, back;

	err = convert_errno_of(converter->set(converter->data,
					      kvmfault__gpa(run.first),
					      kvmfault__gfns_length(run),
					      private));
	if (!err)
		return 0;
	/* The converter may take several steps, and may have done some. */
	back = converter->set(converter->data, kvmfault__gpa(run.first),
			      kvmfault__gfns_length(run), !private);
	if (back)
		kvmfault__log(vm, KVMFAULT_LOG_ERROR,
			      "memory at %#llx could not be converted (error %d), nor set back to what it was (error %d): KVM and the library may disagree whether this memory is private; convert it again, or stop the VM",
			      (unsigned long long)kvmfault__gpa(run.first),
			      -err, -back);
	return err;
}

static void convert_discard_other(struct kvmfault__seat *seat,
				  struct kvmfault__gfns run,
				  const struct kvmfault__conversion *mine,
				  bool private)
{
	uint32_t keeps = private ? KVMFAULT_CONVERTER_KEEP_SHARED :
				   KVMFAULT_CONVERTER_KEEP_PRIVATE;

	if (!(seat->vm->conversions.converter.flags & keeps))
		convert_each_part(seat, run, mine,
				  private ? convert_discard_shared :
					    convert_discard_private);
}

static int convert_run(struct kvmfault__seat *seat, struct kvmfault__gfns run,
		       const struct kvmfault__conversion *mine, bool private)
{
	struct kvmfault_vm *vm = seat->vm;
	unsigned int asked;
	int err;

	err = convert_each_part(seat, run, mine,
				private ? convert_check_guest_memfd :
					  convert_await_discards);
	if (err)
		return err;
	err = convert_call_before(vm, run, private, &asked);
	if (!err)
		err = convert_tell_kvm(vm, run, private);
	if (!err) {
		kvmfault__attributes_note(vm, run, private);
		convert_discard_other(seat, run, mine, private);
	}
	convert_call_after(vm, run, private, asked, !err);
	return err;
}

/* ---- a range, in chunks ---- */

/* A huge page is discarded only as a whole: so the turn covers the rest of one
 * that the chunk has in part. */
static void convert_widen_chunk(struct kvmfault__seat *seat,
				struct kvmfault__gfns *pages)
{
	struct kvmfault__region *region = convert_region_at(seat, pages->first);
	uint64_t mask, step;

	if (region && region->span.memory) {
		mask = kvmfault__page_size(region->span.memory) - 1;
		step = (convert_offset(region, pages->first) & mask) /
		       KVMFAULT__PAGE;
		if (step <= pages->first - region->info.gpa / KVMFAULT__PAGE)
			pages->first -= step;
	}
	region = convert_region_at(seat, pages->end - 1);
	if (region && region->span.memory) {
		mask = kvmfault__page_size(region->span.memory) - 1;
		step = (-convert_offset(region, pages->end) & mask) /
		       KVMFAULT__PAGE;
		if (step <= convert_region_end(region) - pages->end)
			pages->end += step;
	}
	kvmfault__leave(seat);
}

/* *reached advances over each run that is converted, or was so before. */
static int convert_runs(struct kvmfault__seat *seat,
			struct kvmfault__gfns chunk,
			const struct kvmfault__conversion *mine, bool private,
			uint64_t *reached)
{
	struct kvmfault_vm *vm = seat->vm;
	struct kvmfault__gfns run = { .end = chunk.first };
	int err = 0;

	if (!private &&
	    vm->conversions.converter.flags & KVMFAULT_CONVERTER_RAM_ONLY)
		err = convert_each_part(seat, chunk, mine, convert_check_ram);
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

	convert_widen_chunk(seat, &mine.pages);
	err = kvmfault__conversion_begin(seat, &mine);
	if (err)
		return err;
	/* If the vCPU's thread has left its task, the VMM was told how far the
	 * conversion came: then nothing more is converted. */
	if (kvmfault__hold_vcpu(seat)) {
		err = convert_runs(seat, chunk, &mine, private, reached);
		kvmfault__free_vcpu(seat);
	} else {
		err = -EINTR;
	}
	kvmfault__conversion_end(seat->vm, &mine);
	return err;
}

static struct kvmfault__gfns convert_next_chunk(struct kvmfault__gfns pages,
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
		chunk = convert_next_chunk(pages, chunk.end);
		err = kvmfault__exit_wanted(seat) ? -EINTR : 0;
		if (!err)
			err = convert_chunk(seat, chunk, private, wait,
					    reached);
	}
	return err;
}
