/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Ensure and discard: the VMM itself wants guest memory present, or emptied.
 * In: a range of guest-physical addresses. Out: after ensure, the range is
 * present, by the path that every fault takes (its kind is CALL). After
 * discard, the range is empty: no fetch in flight brings data back, and
 * protected pages were saved before.
 */

#include "range.h"

static int range_check(struct kvmfault_vm *vm, uint64_t gpa, uint64_t length,
		       uint64_t align)
{
	if (!vm)
		return -EINVAL;
	if (length && gpa + length - 1 >= gpa &&
	    !((gpa | length) & (align - 1)))
		return 0;
	return kvmfault__refuse(vm, -EINVAL,
		"the range at gpa %#llx, of %#llx bytes, is empty, or wraps past the end of the address space%s",
		(unsigned long long)gpa, (unsigned long long)length,
		align > 1 ? ", or is not made of whole pages of 4 KiB" : "");
}

int kvmfault__ensure(struct kvmfault__seat *seat, uint32_t address_space,
		     uint64_t gpa, uint64_t length, bool write)
{
	struct kvmfault_fault fault = {
		.size = sizeof(fault),
		.kind = KVMFAULT_KIND_CALL,
		.access = write ? KVMFAULT_ACCESS_WRITE : KVMFAULT_ACCESS_READ,
		.known = KVMFAULT_KNOWN_GPA | KVMFAULT_KNOWN_LENGTH,
		.address_space = address_space,
		.gpa = gpa,
		.length = length,
	};
	uint64_t last = gpa + length - 1;
	struct kvmfault__answer answer;
	int err;

	kvmfault__add(seat, KVMFAULT__COUNTER(kind) + fault.kind, 1);
	for (;;) {
		kvmfault__resolve_gpa(seat, &fault, gpa, &answer);
		err = kvmfault__error(&answer);
		gpa |= KVMFAULT__PAGE - 1;
		if (err || gpa >= last)
			break;
		gpa++;
	}
	kvmfault__add(seat, KVMFAULT__COUNTER(action) + answer.action, 1);
	return err;
}

KVMFAULT__EXPORT
int kvmfault_ensure(struct kvmfault_vm *vm, uint32_t address_space,
		    uint64_t gpa, uint64_t length, bool write)
{
	struct kvmfault__seat *seat;
	int err = range_check(vm, gpa, length, 1);

	if (err)
		return err;
	seat = kvmfault__call_begin(vm);
	if (!seat)
		return -ENOMEM;
	err = kvmfault__ensure(seat, address_space, gpa, length, write);
	kvmfault__call_end(seat);
	return err;
}

/* A second discard has flagged the page, and need not wait for this one: so its
 * page is emptied here. With minor faults the file of an absent page may hold
 * old data. */
static bool discard_for_another(const struct kvmfault_memory *memory,
				uint64_t page, enum kvmfault__state was)
{
	uint64_t size = kvmfault__page_size(memory);

	if (was == KVMFAULT__ABSENT && !memory->fill)
		return true;
	return was != KVMFAULT__POISONED &&
	       !kvmfault__memory_punch(memory, page * size, size);
}

#define RUN 256			/* pages that are discarded at once */

/* Gives claimed pages back, each in the state that `was` has for it. */
static void discard_put_pages(struct kvmfault__seat *seat,
			      struct kvmfault_memory *memory, uint64_t page,
			      size_t count, const enum kvmfault__state *was)
{
	uint64_t size = kvmfault__page_size(memory);
	size_t i;

	for (i = 0; i < count; i++) {
		enum kvmfault__state from = KVMFAULT__FETCHING, to = was[i];
		enum kvmfault__state found;
		bool wake = false, emptied = false;

		while ((found = kvmfault__page_change(memory, page + i, from,
						      to)) != from) {
			emptied |= found == KVMFAULT__FETCHING_DISCARDED &&
				   to != KVMFAULT__DISCARDED &&
				   discard_for_another(memory, page + i, to);
			if (emptied)
				to = KVMFAULT__DISCARDED;
			from = found;
			wake = true;
		}
		kvmfault__userfault_follow(memory, page + i, 1);
		kvmfault__page_wake(memory, page + i);
		if (wake)
			kvmfault__wake(seat, memory, NULL, (page + i) * size,
				       size);
		if (!emptied)
			continue;
		kvmfault__count(seat, discarded);
		kvmfault__changed(memory, (page + i) * size, size,
				  KVMFAULT_CAUSE_DISCARD);
	}
}

/* Is the page protected, and would a discard lose what it holds or has to
 * fetch? */
static bool discard_must_save(const struct kvmfault_memory *memory,
			      uint64_t page, enum kvmfault__state state)
{
	return memory->write_protect && state != KVMFAULT__DISCARDED &&
	       state != KVMFAULT__POISONED &&
	       kvmfault__page_protected(memory, page);
}

/* Claims pages up to one that is in flight, which is flagged for its fetcher,
 * or if `save`, one that must be saved first. Returns how many, and what each
 * was. */
static size_t discard_take_pages(struct kvmfault__seat *seat,
				 struct kvmfault_memory *memory, uint64_t page,
				 size_t count, bool save,
				 enum kvmfault__state *was)
{
	size_t n = 0;

	while (n < count) {
		enum kvmfault__state state =
			kvmfault__page_state(memory, page + n);
		enum kvmfault__state to = KVMFAULT__FETCHING;

		if (save && discard_must_save(memory, page + n, state))
			break;
		if (state == KVMFAULT__FETCHING ||
		    state == KVMFAULT__FETCHING_WAITED)
			to = KVMFAULT__FETCHING_DISCARDED;
		if (state != KVMFAULT__FETCHING_DISCARDED &&
		    kvmfault__page_change(memory, page + n, state, to) != state)
			continue;	/* the state has just changed */
		if (to == KVMFAULT__FETCHING_DISCARDED ||
		    state == KVMFAULT__FETCHING_DISCARDED)
			break;
		was[n] = state;
		if (save && discard_must_save(memory, page + n, state)) {
			/* The page was protected after the first look. */
			discard_put_pages(seat, memory, page + n, 1, &was[n]);
			break;
		}
		n++;
	}
	return n;
}

/* Asks for the page as a write would: so a resolver saves it first. */
static int discard_save_page(struct kvmfault__seat *seat,
			     struct kvmfault_memory *memory, uint64_t page)
{
	uint64_t offset = page << memory->page_shift;
	const struct kvmfault_fault fault = {
		.size = sizeof(fault),
		.kind = KVMFAULT_KIND_CALL,
		.access = KVMFAULT_ACCESS_WRITE,
		.known = KVMFAULT_KNOWN_HVA | KVMFAULT_KNOWN_LENGTH,
		.hva = (uintptr_t)memory->host + offset,
		.length = kvmfault__page_size(memory),
	};
	const struct kvmfault__target target = {
		.memory = memory,
		.offset = offset,
	};
	struct kvmfault__answer answer;

	kvmfault__resolve(seat, &fault, &target, &answer);
	return kvmfault__error(&answer);
}

/* The pages hold nothing any more. If not all markers could be removed,
 * poisoned pages stay poisoned. */
static void discard_note_gone(enum kvmfault__state *was, size_t count,
			      bool markers_left)
{
	size_t i;

	for (i = 0; i < count; i++)
		if (!markers_left || was[i] != KVMFAULT__POISONED)
			was[i] = KVMFAULT__DISCARDED;
}

/* If their markers are removed, poisoned pages become memory again. */
static int discard_clear_markers(struct kvmfault__seat *seat,
				 struct kvmfault_memory *memory, uint64_t page,
				 size_t count, const enum kvmfault__state *was)
{
	uint64_t size = kvmfault__page_size(memory);
	int err = 0;
	size_t i;

	for (i = 0; i < count && !err; i++)
		if (was[i] == KVMFAULT__POISONED)
			err = kvmfault__unpoison(seat, memory,
						 (page + i) * size);
	return err;
}

/* Punches claimed pages, and gives them back in the state that follows. */
static int discard_punch_pages(struct kvmfault__seat *seat,
			       struct kvmfault_memory *memory, uint64_t page,
			       size_t count, enum kvmfault__state *was)
{
	uint64_t size = kvmfault__page_size(memory);
	uint64_t offset = page * size, length = count * size;
	int err;

	/* KVM's bits are set before the pages are gone: so a vCPU that misses
	 * one leaves KVM_RUN by an exit. */
	kvmfault__userfault_follow(memory, page, count);
	err = kvmfault__memory_punch(memory, offset, length);
	if (err) {
		discard_put_pages(seat, memory, page, count, was);
		return err;
	}
	err = discard_clear_markers(seat, memory, page, count, was);
	discard_note_gone(was, count, err);
	discard_put_pages(seat, memory, page, count, was);
	kvmfault__add(seat, KVMFAULT__COUNTER(discarded), count);
	kvmfault__changed(memory, offset, length, KVMFAULT_CAUSE_DISCARD);
	return err;
}

static int discard_run(struct kvmfault__seat *seat,
		       struct kvmfault_memory *memory, uint64_t page,
		       size_t count, bool wait)
{
	enum kvmfault__state was[RUN];
	size_t done = 0, n;
	int err;

	while (done < count) {
		n = discard_take_pages(seat, memory, page + done, count - done,
				       wait, was);
		if (!n && !wait) {
			done++;	/* in flight: its fetcher discards it */
			continue;
		}
		if (!n) {
			/* Until it is saved, or its fetch has ended, the data
			 * of the page may be seen: so this waits. */
			err = discard_must_save(memory, page + done,
						KVMFAULT__PRESENT) ?
				discard_save_page(seat, memory, page + done) :
				kvmfault__page_wait(seat, memory, page + done);
			if (err)
				return err;
			/* If the fetcher could not discard the page, this
			 * thread tries. */
			if (kvmfault__page_state(memory, page + done) ==
			    KVMFAULT__DISCARDED)
				done++;
			continue;
		}
		err = discard_punch_pages(seat, memory, page + done, n, was);
		if (err)
			return err;
		done += n;
	}
	return 0;
}

int kvmfault__whole_pages(const struct kvmfault_memory *memory)
{
	return kvmfault__refuse(memory->vm, -EINVAL,
		"a part of the range is not made of whole pages of its memory: each of these has %llu bytes",
		(unsigned long long)kvmfault__page_size(memory));
}

int kvmfault__discard(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory, uint64_t offset,
		      uint64_t length, bool wait)
{
	uint64_t page, count, step;
	int err = 0;

	if ((offset | length) & (kvmfault__page_size(memory) - 1))
		return kvmfault__whole_pages(memory);
	if (!kvmfault__tracked(memory)) {
		err = kvmfault__memory_punch(memory, offset, length);
		if (!err)
			kvmfault__changed(memory, offset, length,
					  KVMFAULT_CAUSE_DISCARD);
		return err;
	}
	page = offset >> memory->page_shift;
	for (count = length >> memory->page_shift; count && !err;
	     count -= step) {
		step = count < RUN ? count : RUN;
		err = discard_run(seat, memory, page, step, wait);
		page += step;
	}
	return err;
}

int kvmfault__each_region(struct kvmfault_vm *vm, uint32_t address_space,
			  uint64_t gpa, uint64_t length,
			  int (*act)(struct kvmfault__seat *seat,
				     struct kvmfault_memory *memory,
				     uint64_t offset, uint64_t length))
{
	struct kvmfault__seat *seat;
	int err = range_check(vm, gpa, length, KVMFAULT__PAGE);

	if (err)
		return err;
	seat = kvmfault__call_begin(vm);
	if (!seat)
		return -ENOMEM;
	while (length && !err) {
		struct kvmfault__region *region =
			kvmfault__region_find(seat, address_space, gpa);
		uint64_t step = 0;

		if (!region || !region->span.memory) {
			err = -ENXIO;
		} else {
			step = region->info.gpa + region->info.length - gpa;
			if (step > length)
				step = length;
			err = act(seat, region->span.memory,
				  kvmfault__region_offset(region, gpa), step);
		}
		kvmfault__leave(seat);
		gpa += step;
		length -= step;
	}
	kvmfault__call_end(seat);
	return err;
}

static int discard_in_region(struct kvmfault__seat *seat,
			     struct kvmfault_memory *memory, uint64_t offset,
			     uint64_t length)
{
	return kvmfault__discard(seat, memory, offset, length, true);
}

KVMFAULT__EXPORT
int kvmfault_discard(struct kvmfault_vm *vm, uint32_t address_space,
		     uint64_t gpa, uint64_t length)
{
	return kvmfault__each_region(vm, address_space, gpa, length,
				     discard_in_region);
}
