/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Recordings: which pages faults brought, in order.
 */

#ifndef KVMFAULT__RECORD_H
#define KVMFAULT__RECORD_H

#include "resolve.h"
#include "../memory/working-set.h"

struct kvmfault_recording {
	struct kvmfault_vm *vm;
	struct kvmfault_working_set *set;
	uint64_t until;			/* UINT64_MAX: no end of its time */
	uint64_t limit;			/* bytes, of whole pages */
	struct kvmfault__image_run *run; /* in mapped memory, with room for as
					 * many pages as the limit has */
	uint64_t room;			/* its length, in bytes */
	_Alignas(KVMFAULT__CACHE_LINE) _Atomic uint64_t bytes;
	_Atomic uint64_t runs;
	size_t memories;
	struct kvmfault_memory *memory[];
};

#endif
