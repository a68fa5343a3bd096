/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Mappings: where memories are mapped. In: a memory and an offset, or a
 * function to call. Out: the address at which the library itself may read and
 * write there, or one call for each memory. A memory has exactly one memslots'
 * mapping, and that is the first of its list.
 */

#include "memory.h"

/* Returns the first mapping of this process behind the memslots', or NULL. */
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
	const struct kvmfault__mappings *all =
		kvmfault__mappings_hold(seat, memory);
	const struct kvmfault_mapping *own = NULL;

	if (memory->marked)
		own = kvmfault__own_mapping(all);
	if (!own)
		own = all->mapping[0];
	return (char *)(uintptr_t)own->host + offset;
}

struct memory_visit {
	int (*memory)(struct kvmfault_memory *memory);
	int err;
};

/* Every memory has one memslots' mapping until it is freed, so that mapping
 * stands for the memory. */
static void mapping_visit_memory(struct kvmfault__seat *seat,
				 struct kvmfault__span *span, void *data)
{
	struct memory_visit *visit = data;

	(void)seat;
	if (((struct kvmfault_mapping *)span)->memslots && !visit->err)
		visit->err = visit->memory(span->memory);
}

int kvmfault__each_memory(struct kvmfault__seat *seat,
			  int (*each)(struct kvmfault_memory *memory))
{
	struct memory_visit visit = { .memory = each };

	kvmfault__table_visit(seat, &seat->vm->mappings, mapping_visit_memory,
			      &visit);
	return visit.err;
}
