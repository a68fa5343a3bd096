/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Tables: from an address to the span that contains it. Readers take no lock.
 */

#ifndef KVMFAULT__TABLE_H
#define KVMFAULT__TABLE_H

#include "seat.h"

#define KVMFAULT__SPACES 4096	/* address spaces: 12 bits of a key */

static inline uint64_t kvmfault__key(uint32_t space, uint64_t address)
{
	return (uint64_t)space << 52 | address >> 12;
}

typedef _Atomic(const void *) kvmfault__table;
/* Find the living span that contains the key, and hold it as seat->span. */
struct kvmfault__span *kvmfault__table_find(struct kvmfault__seat *seat,
					    kvmfault__table *table,
					    uint64_t key);
/* Linear search for the first match, which is held. If it returns NULL,
 * seat->span holds the previous span still, or another of the same memory. */
struct kvmfault__span *
kvmfault__table_search(struct kvmfault__seat *seat, kvmfault__table *table,
		       bool (*matches)(const struct kvmfault__span *span,
				       const void *what),
		       const void *what);
/* Each of the following needs the VM's lock, if it does not say otherwise. */
struct kvmfault__span *kvmfault__table_at(kvmfault__table *table, uint64_t key);
/* Copy the table without the spans that leave, and with the *count spans of
 * `add`, which are sorted by key. Returns 0, -ENOMEM or -EEXIST: *count is then
 * the index of a span that overlaps another. */
int kvmfault__table_copy(struct kvmfault_vm *vm, kvmfault__table *table,
			 struct kvmfault__span **add, size_t *count,
			 void **copy);
/* Put the copy in the table's place: the spans that leave are dead from then
 * on. A copy that is not put there is freed by kvmfault__sys_free(). */
void kvmfault__table_put(struct kvmfault_vm *vm, kvmfault__table *table,
			 void *copy);
/* Note that the span leaves with the next copy, so that removing it can't fail:
 * if the caller has made it dead, it is not found any more, and a dead span may
 * stay in the table until there is memory for the copy. */
void kvmfault__table_drop(struct kvmfault_vm *vm, struct kvmfault__span *span);
/* Drop the spans that leave from the table, if there is memory for a copy. */
void kvmfault__table_sweep(struct kvmfault_vm *vm, kvmfault__table *table);
/* Call each() for the living spans until it returns anything but 0. */
int kvmfault__table_each(kvmfault__table *table,
			 int (*each)(struct kvmfault__span *span, void *data),
			 void *data);
/* Without the lock: call visit() for each living span, which is held. */
void kvmfault__table_visit(struct kvmfault__seat *seat, kvmfault__table *table,
			   void (*visit)(struct kvmfault__seat *seat,
					 struct kvmfault__span *span,
					 void *data), void *data);
/* Retire the table and its spans, when no thread looks anything up any more. */
void kvmfault__table_free(struct kvmfault_vm *vm, kvmfault__table *table);

#endif
