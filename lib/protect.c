/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Protect and unprotect: the two ends of a live snapshot. In: a range of
 * guest-physical addresses. Out: nobody writes to a page of it, through whatever
 * mapping, before a resolver had it to save; or it is as it was before. The bit
 * beside a page's state is what counts: wherever it is set the kernel protects,
 * and where the kernel protects too much the first write finds out.
 */

#include "internal.h"

#define RUN 256			/* pages that are held at once */

static int check(const struct kvmfault_memory *memory, uint64_t offset,
		 uint64_t length)
{
	if (!memory->write_protect)
		return kvmfault__refuse(memory->vm, -EOPNOTSUPP,
			"the memory at %p was made without kvmfault_memory_options.write_protect",
			memory->host);
	return (offset | length) & (kvmfault__page_size(memory) - 1) ?
		kvmfault__whole_pages(memory) : 0;
}

/* Set while nobody has it: who had it before may have installed it without, or
 * was about to lift what is not ours. Who gets it later sees the bit. */
static int set(struct kvmfault__seat *seat, struct kvmfault_memory *memory,
	       uint64_t page)
{
	int err = 0;

	while (!err && kvmfault__in_flight(kvmfault__page_protect(memory, page,
								  true)))
		err = kvmfault__page_wait(seat, memory, page);
	return err;
}

static int protect(struct kvmfault__seat *seat, struct kvmfault_memory *memory,
		   uint64_t offset, uint64_t length)
{
	uint64_t page = offset >> memory->page_shift;
	uint64_t end = (offset + length) >> memory->page_shift;
	int err = check(memory, offset, length);

	for (; page < end && !err; page++)
		err = set(seat, memory, page);
	/* Absent pages too: another mapping has them when they have come. */
	if (!err)
		err = kvmfault__protect(seat, memory, NULL, offset, length,
					true);
	return err;
}

KVMFAULT__EXPORT
int kvmfault_protect(struct kvmfault_vm *vm, uint32_t address_space,
		     uint64_t gpa, uint64_t length)
{
	return kvmfault__each_region(vm, address_space, gpa, length, protect);
}

/* A run of protected pages in the same state, claimed: no new protection comes
 * in between, which would be lifted too. */
static uint64_t claim(struct kvmfault_memory *memory, uint64_t page,
		      uint64_t end, enum kvmfault__state *was)
{
	uint64_t n = 0;

	*was = kvmfault__page_state(memory, page);
	if (kvmfault__in_flight(*was))
		return 0;
	while (n < RUN && page + n < end &&
	       kvmfault__page_protected(memory, page + n) &&
	       kvmfault__page_change(memory, page + n, *was,
				     KVMFAULT__FETCHING) == *was)
		kvmfault__page_protect(memory, page + n++, false);
	return n;
}

static int unprotect(struct kvmfault__seat *seat,
		     struct kvmfault_memory *memory, uint64_t offset,
		     uint64_t length)
{
	struct kvmfault__request rq = { .request.memory = memory,
					.seat = seat };
	uint64_t page = offset >> memory->page_shift;
	uint64_t end = (offset + length) >> memory->page_shift;
	int err = check(memory, offset, length);
	enum kvmfault__state was;
	uint64_t n;

	for (; page < end && !err; page += n) {
		n = claim(memory, page, end, &was);
		if (n) {
			/* What can't be lifted now is at the first write. */
			kvmfault__protect(seat, memory, NULL,
					  page << memory->page_shift,
					  n << memory->page_shift, false);
			kvmfault__release(&rq, page, n, was);
		} else if (!kvmfault__page_protected(memory, page)) {
			n = 1;
		} else {
			/* Afterwards no resolver has it any more. */
			err = kvmfault__page_wait(seat, memory, page);
		}
	}
	return err;
}

KVMFAULT__EXPORT
int kvmfault_unprotect(struct kvmfault_vm *vm, uint32_t address_space,
		       uint64_t gpa, uint64_t length)
{
	return kvmfault__each_region(vm, address_space, gpa, length, unprotect);
}
