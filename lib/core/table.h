/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Tables: from an address to the span that it is in, without a lock for readers.
 */

#ifndef KVMFAULT__TABLE_H
#define KVMFAULT__TABLE_H

#include "seat.h"

#define KVMFAULT__SPACES 4096		/* address spaces of either kind */

static inline uint64_t kvmfault__key(uint32_t space, uint64_t address)
{
	return (uint64_t)space << 52 | address >> 12;
}

typedef _Atomic(const void *) kvmfault__table;
struct kvmfault__span *kvmfault__table_find(struct kvmfault__seat *seat,
					    kvmfault__table *table,
					    uint64_t key);
/* The first that matches; as slow as the table is long. Without one what was
 * held before is held still, or something of the same memory. */
struct kvmfault__span *
kvmfault__table_search(struct kvmfault__seat *seat, kvmfault__table *table,
		       bool (*matches)(const struct kvmfault__span *span,
				       const void *what),
		       const void *what);
/* Under the VM's lock: */
struct kvmfault__span *kvmfault__table_at(kvmfault__table *table, uint64_t key);
/* A copy without those that leave, and with `add`, in the order of their keys. 0,
 * -ENOMEM, or -EEXIST: *count is then which of them overlaps another one. It is to
 * be freed, or put in the table's place: then those that leave are dead. */
int kvmfault__table_copy(struct kvmfault_vm *vm, kvmfault__table *table,
			 struct kvmfault__span **add, size_t *count,
			 void **copy);
void kvmfault__table_put(struct kvmfault_vm *vm, kvmfault__table *table,
			 void *copy);
/* It is to leave. Who has made it dead has removed it, which so can't fail: it is
 * in the table until there is memory for one without it. */
void kvmfault__table_drop(struct kvmfault_vm *vm, struct kvmfault__span *span);
void kvmfault__table_sweep(struct kvmfault_vm *vm, kvmfault__table *table);
/* Every living span, until that is not 0 for one. */
int kvmfault__table_each(kvmfault__table *table,
			 int (*each)(struct kvmfault__span *span, void *data),
			 void *data);
/* Every living span, held, without the lock. */
void kvmfault__table_visit(struct kvmfault__seat *seat, kvmfault__table *table,
			   void (*visit)(struct kvmfault__seat *seat,
					 struct kvmfault__span *span,
					 void *data), void *data);
/* When nobody is left to look anything up. */
void kvmfault__table_free(struct kvmfault_vm *vm, kvmfault__table *table);

#endif
