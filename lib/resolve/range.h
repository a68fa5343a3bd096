/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Ranges of guest memory, which the VMM itself asks for: no vCPU has faulted.
 */

#ifndef KVMFAULT__RANGE_H
#define KVMFAULT__RANGE_H

#include "resolve.h"

/* range.c */
/* Makes a range present, which must not wrap. Returns 0 or -errno. */
int kvmfault__ensure(struct kvmfault__seat *seat, uint32_t address_space,
		     uint64_t gpa, uint64_t length, bool write);
/*
 * Calls act for the part of the range that each region shows, in order, until
 * act fails. Returns what act returned, or
 * -EINVAL: vm is NULL, or the range is empty, wraps, or is not made of whole
 *	pages of 4 KiB;
 * -ENXIO: a part of the range is in no region with memory;
 * -ENOMEM.
 */
int kvmfault__each_region(struct kvmfault_vm *vm, uint32_t address_space,
			  uint64_t gpa, uint64_t length,
			  int (*act)(struct kvmfault__seat *seat,
				     struct kvmfault_memory *memory,
				     uint64_t offset, uint64_t length));
/* Refuses a range that is not whole pages of the memory: returns -EINVAL. */
int kvmfault__whole_pages(const struct kvmfault_memory *memory);
/* Discards whole pages of the memory; the fetcher of a page in flight discards
 * that page. If wait, this waits for such fetches, and has protected pages
 * saved first. */
int kvmfault__discard(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory, uint64_t offset,
		      uint64_t length, bool wait);

/* conversion-queue.c: at most one thread at a time converts a page */
int kvmfault__conversion_begin(struct kvmfault__seat *seat,
			       struct kvmfault__conversion *mine);
void kvmfault__conversion_end(struct kvmfault_vm *vm,
			      struct kvmfault__conversion *mine);

/* convert.c */
/* Lets go of the seat's span; all pages before *reached are converted. Returns
 * 0, -errno, or without wait KVMFAULT_VERDICT_LATER: the VMM will be told when
 * to try again. */
int kvmfault__convert(struct kvmfault__seat *seat, struct kvmfault__gfns pages,
		      bool private, bool wait, uint64_t *reached);

#endif
