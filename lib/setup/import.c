/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Set-up: a memory whose pages are partly there is taken up. In: a memory with
 * the states that its owner before this one left, who may have been killed at
 * any moment. Out: states that are true, with no page in flight and none
 * protected; or an error, because states and backing are not of the same
 * memory. A state is a claim, as an error or a resolver's word is: each page is
 * looked for in the backing.
 */

#include <fcntl.h>
#include <unistd.h>

#include "../core/bitmap.h"
#include "setup.h"

struct import {
	struct kvmfault__seat *seat;
	struct kvmfault_memory *memory;
	uint64_t end;		/* up to this page, the backing is alike: */
	bool there;		/* it has the pages, or has not */
};

static enum kvmfault__state import_state(const struct import *import,
					 uint64_t page)
{
	return kvmfault__page_state(import->memory, page);
}

/* With minor faults, the file may hold what is no data yet: old bytes where a
 * page is absent, half of the bytes where it was in flight. If it was discarded
 * meanwhile, these bytes have to go. */
static bool import_needs_no_look(const struct import *import, uint64_t page)
{
	enum kvmfault__state state = import_state(import, page);

	return import->memory->fill && state != KVMFAULT__FETCHING_DISCARDED &&
	       (state == KVMFAULT__ABSENT ||
		(kvmfault__in_flight(state) &&
		 !kvmfault__bit(import->memory->unsourced, page)));
}

/* A hugetlbfs file does not tell where it has data, so the kernel is asked for
 * each page. */
static int import_look_at_page(struct import *import, uint64_t page)
{
	const struct kvmfault_memory *memory = import->memory;
	int there = import_needs_no_look(import, page) ? 0 :
		kvmfault__see(import->seat, import->memory,
			      page << memory->page_shift);

	if (there == -EOPNOTSUPP)
		return kvmfault__refuse(memory->vm, there,
			"kvmfault_memory_options.states_fd: this kernel does not tell which huge pages are there: use Linux 5.13 or later");
	if (there < 0)
		return there;
	import->there = there;
	import->end = page + 1;
	return 0;
}

/* Where pages are out of reach nobody can look. A page that was present is
 * believed to be: if it is not, its process has taken it away. A page that was
 * in flight may be there, and then no thread misses it. */
static int import_believe_page(struct import *import, uint64_t page)
{
	import->there = import_state(import, page) == KVMFAULT__PRESENT;
	import->end = page + 1;
	return 0;
}

/* Sets how far the file is alike from this page on. */
static int import_look(struct import *import, uint64_t page)
{
	const struct kvmfault_memory *memory = import->memory;
	off_t start = (off_t)(memory->fd_offset + (page << memory->page_shift));
	off_t end = (off_t)(memory->fd_offset + memory->length), next;

	if (kvmfault__out_of_reach(memory))
		return import_believe_page(import, page);
	if (memory->hugetlb)
		return import_look_at_page(import, page);
	next = kvmfault__sys_lseek(memory->fd, start, SEEK_DATA);
	if (next < 0 && next != -ENXIO)
		return (int)next;
	import->there = next == start;
	if (import->there)
		next = kvmfault__sys_lseek(memory->fd, start, SEEK_HOLE);
	if (next > end || next == -ENXIO)
		next = end;
	if (next < 0)
		return (int)next;
	import->end = (uint64_t)(next - (off_t)memory->fd_offset) >>
		      memory->page_shift;
	return 0;
}

/* The state of a page that may have been in flight. A discarded page that is
 * there came after it was emptied, through a mapping that the library does not
 * know (any more): it is kept, as a fault there would keep it. */
static enum kvmfault__state import_settle_state(const struct import *import,
						uint64_t page)
{
	enum kvmfault__state state = import_state(import, page);

	if (state == KVMFAULT__FETCHING_DISCARDED)
		return KVMFAULT__DISCARDED;
	if (state == KVMFAULT__DISCARDED && import->there)
		return KVMFAULT__PRESENT;
	if (!kvmfault__in_flight(state))
		return state;
	if (import->there && !import_needs_no_look(import, page))
		return KVMFAULT__PRESENT;
	return kvmfault__bit(import->memory->unsourced, page) ?
	       KVMFAULT__DISCARDED : KVMFAULT__ABSENT;
}

/* Returns an error if the page is not what its state says. */
static int import_check_page(const struct import *import, uint64_t page,
			     enum kvmfault__state state)
{
	const struct kvmfault_memory *memory = import->memory;
	const char *why = NULL;
	int err = -ESTALE;

	if (state > KVMFAULT__POISONED) {
		why = "its state is none that this version knows";
	} else if (state == KVMFAULT__PRESENT && !import->there) {
		why = "the states call it present, and fd does not have it";
	} else if (state == KVMFAULT__ABSENT && import->there &&
		   !memory->fill) {
		why = "the states call it absent, and fd has it";
		err = -EEXIST;
	}
	return why ? kvmfault__refuse(memory->vm, err,
		"kvmfault_memory_options.states_fd: the page at offset %#llx: %s; pass the states that go with this file",
		(unsigned long long)(page << memory->page_shift), why) : 0;
}

/* The page that is there may be one that a discard had not emptied yet; or it
 * is lost. */
static int import_change_page(const struct import *import, uint64_t page,
			      enum kvmfault__state state)
{
	struct kvmfault_memory *memory = import->memory;
	uint64_t size = kvmfault__page_size(memory);

	if (kvmfault__page_protected(memory, page))
		kvmfault__page_unprotect(memory, page);
	if (state > KVMFAULT__PRESENT && import->there) {
		int err = kvmfault__memory_punch(memory, page * size, size);

		if (err)
			return err;
	}
	kvmfault__page_change(memory, page, import_state(import, page), state);
	if (state == KVMFAULT__ABSENT &&
	    kvmfault__bit(memory->unsourced, page))
		kvmfault__pages_note(memory, page, 1, false);
	return 0;
}

static int import_page(struct import *import, uint64_t page, bool change)
{
	enum kvmfault__state state;
	int err = 0;

	if (page >= import->end)
		err = import_look(import, page);
	if (err)
		return err;
	state = import_settle_state(import, page);
	return change ? import_change_page(import, page, state) :
			import_check_page(import, page, state);
}

/* Of a large memory most pages are absent, and the backing has nothing there:
 * nothing is to be done for such pages, and a word of them is passed over. */
static uint64_t import_count_done(const struct import *import, uint64_t page)
{
	const struct kvmfault_memory *memory = import->memory;
	uint64_t bits = atomic_load(&memory->unsourced[page / KVMFAULT__BITS])
			>> page % KVMFAULT__BITS;
	bool none = !import->there && !(page % KVMFAULT__PAGES_PER_WORD) &&
		    page + KVMFAULT__PAGES_PER_WORD <= import->end &&
		    !atomic_load(kvmfault__page_word(memory, page)) &&
		    !(bits & ((1U << KVMFAULT__PAGES_PER_WORD) - 1));

	return none ? KVMFAULT__PAGES_PER_WORD : 1;
}

static int import_pages(struct import *import, bool change)
{
	const struct kvmfault_memory *memory = import->memory;
	uint64_t page = 0, pages = memory->length >> memory->page_shift;
	int err = 0;

	import->end = 0;
	while (page < pages && !err) {
		err = import_page(import, page, change);
		page += import_count_done(import, page);
	}
	return err;
}

/* Nothing changes before all pages were looked at: files that do not go
 * together are refused as they are. */
int kvmfault__import(struct kvmfault_memory *memory)
{
	struct import import = {
		.memory = memory,
		.seat = kvmfault__call_begin(memory->vm),
	};
	int err;

	if (!import.seat)
		return -ENOMEM;
	err = import_pages(&import, false);
	if (!err)
		err = import_pages(&import, true);
	if (!err)
		kvmfault__userfault_follow(memory, 0, memory->length >>
					   memory->page_shift);
	kvmfault__call_end(import.seat);
	return err;
}
