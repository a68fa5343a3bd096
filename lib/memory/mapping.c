/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage publish, its host side: every place where a memory is mapped. In: a
 * range of a memory. Out: its pages installed, its sleepers awake. Pages are
 * installed through the memslots' mapping and through no other; a wake reaches
 * only those who sleep on the same userfaultfd, so each gets its own.
 */

#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/mman.h>

#include "../os/abi.h"
#include "memory.h"

/* The first of this process that is not the memslots', or NULL. */
const struct kvmfault_mapping *
kvmfault__own_mapping(const struct kvmfault__mappings *all)
{
	size_t i;

	for (i = 1; i < all->count; i++)
		if (!all->mapping[i]->uffd || !all->mapping[i]->uffd->space)
			return all->mapping[i];
	return NULL;
}

char *kvmfault__bytes(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory, uint64_t offset)
{
	const struct kvmfault__mappings *all = kvmfault__mappings_hold(seat, memory);
	const struct kvmfault_mapping *own = NULL;

	if (memory->marked)
		own = kvmfault__own_mapping(all);
	if (!own)
		own = all->mapping[0];
	return (char *)(uintptr_t)own->host + offset;
}

struct each {
	int (*memory)(struct kvmfault_memory *memory);
	int err;
};

/* A memory has one of these, and as long as it has it is found by it. */
static void if_memslots(struct kvmfault__seat *seat,
			struct kvmfault__span *span, void *data)
{
	struct each *each = data;

	(void)seat;
	if (((struct kvmfault_mapping *)span)->memslots && !each->err)
		each->err = each->memory(span->memory);
}

int kvmfault__each_memory(struct kvmfault__seat *seat,
			  int (*each)(struct kvmfault_memory *memory))
{
	struct each data = { .memory = each };

	kvmfault__table_visit(seat, &seat->vm->mappings, if_memslots, &data);
	return data.err;
}
