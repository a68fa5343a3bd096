/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What the VMM asks for of its own accord: ranges.
 */

#ifndef KVMFAULT__RANGE_H
#define KVMFAULT__RANGE_H

#include "resolve.h"

/* range.c: make a range present, which does not wrap: 0 or -errno. */
int kvmfault__ensure(struct kvmfault__seat *seat, uint32_t address_space,
		     uint64_t gpa, uint64_t length, bool write);
/* What the regions of a range show, one after the other. -EINVAL: vm is
 * NULL, not whole pages of 4 KiB, empty, wraps; -ENXIO: a part is in no region
 * with memory; -ENOMEM. */
int kvmfault__each_region(struct kvmfault_vm *vm, uint32_t address_space,
			  uint64_t gpa, uint64_t length,
			  int (*act)(struct kvmfault__seat *seat,
				     struct kvmfault_memory *memory,
				     uint64_t offset, uint64_t length));
/* What is not: -EINVAL, with its reason. */
int kvmfault__whole_pages(const struct kvmfault_memory *memory);
/* Whole pages of the memory; wait: for fetches in flight, whose fetchers
 * discard their pages in any case, and until protected pages are saved. */
int kvmfault__discard(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory, uint64_t offset,
		      uint64_t length, bool wait);

/* conversion-queue.c: one conversion at a time */
int kvmfault__conversion_begin(struct kvmfault__seat *seat,
			       struct kvmfault__conversion *mine);
void kvmfault__conversion_end(struct kvmfault_vm *vm,
			      struct kvmfault__conversion *mine);

/* convert.c */
/* Lets go of the seat's span. *reached: all before it are converted. 0, -errno,
 * or without wait KVMFAULT_VERDICT_LATER: a page is in flight, the VMM will be told. */
int kvmfault__convert(struct kvmfault__seat *seat, struct kvmfault__gfns pages,
		      bool private, bool wait, uint64_t *reached);

#endif
