/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage translate: from an address to the span that contains it. In: a key,
 * which is an address space and a page number. Out: the span, held in the
 * caller's seat. A table is sorted, is replaced as a whole by whoever changes
 * it, and a lookup takes no lock and a logarithm of steps.
 */

#include <string.h>

#include "internal.h"

struct table {
	struct kvmfault__retired retired;
	size_t count;
	uint64_t first[];	/* keys; the spans stand behind them */
};

static struct kvmfault__span **spans(const struct table *table)
{
	return (struct kvmfault__span **)(uintptr_t)
		&table->first[table->count];
}

/* How many spans begin at or before key. */
static size_t rank(const struct table *table, uint64_t key)
{
	const uint64_t *base = table->first;
	size_t count = table->count;

	if (!count || *base > key)
		return 0;
	while (count > 1) {
		size_t half = count / 2;

		base += base[half] <= key ? half : 0;
		count -= half;
	}
	return (size_t)(base - table->first) + 1;
}

static struct kvmfault__span *search(const struct table *table, uint64_t key)
{
	struct kvmfault__span *span;
	size_t n = table ? rank(table, key) : 0;

	if (!n)
		return NULL;
	span = spans(table)[n - 1];
	return key <= span->last && !atomic_load(&span->dead) ? span : NULL;
}

struct kvmfault__span *kvmfault__table_find(struct kvmfault__seat *seat,
					    kvmfault__table *table,
					    uint64_t key)
{
	struct kvmfault__span *span;

	/* Who holds a table holds its spans: see kvmfault__retire(). */
	span = search(kvmfault__hold(&seat->table, table), key);
	atomic_store(&seat->span, span);
	/* Killed in between: whoever drains may not have seen us. */
	if (span && atomic_load(&span->dead)) {
		atomic_store(&seat->span, NULL);
		span = NULL;
	}
	atomic_store_explicit(&seat->table, NULL, memory_order_release);
	return span;
}

struct kvmfault__span *
kvmfault__table_search(struct kvmfault__seat *seat, kvmfault__table *table,
		       bool (*matches)(const struct kvmfault__span *span,
				       const void *what),
		       const void *what)
{
	const struct table *held = kvmfault__hold(&seat->table, table);
	struct kvmfault__span *span = NULL;
	size_t i;

	for (i = 0; held && i < held->count && !span; i++) {
		span = spans(held)[i];
		if (atomic_load(&span->dead) || !matches(span, what))
			span = NULL;
	}
	if (span) {
		atomic_store(&seat->span, span);
		/* Killed in between. It stays held: its memory may be what
		 * the caller has held until now by another span. */
		if (atomic_load(&span->dead))
			span = NULL;
	}
	atomic_store_explicit(&seat->table, NULL, memory_order_release);
	return span;
}

void kvmfault__table_visit(struct kvmfault__seat *seat, kvmfault__table *table,
			   void (*visit)(struct kvmfault__seat *seat,
					 struct kvmfault__span *span,
					 void *data), void *data)
{
	const struct table *held = kvmfault__hold(&seat->table, table);
	size_t i;

	for (i = 0; held && i < held->count; i++) {
		struct kvmfault__span *span = spans(held)[i];

		atomic_store(&seat->span, span);
		if (!atomic_load(&span->dead))
			visit(seat, span, data);
	}
	atomic_store(&seat->span, NULL);
	kvmfault__unhold(seat, &seat->table);
}

struct kvmfault__span *kvmfault__table_at(kvmfault__table *table, uint64_t key)
{
	return search(atomic_load(table), key);
}

int kvmfault__table_each(kvmfault__table *table,
			 int (*each)(struct kvmfault__span *span, void *data),
			 void *data)
{
	const struct table *all = atomic_load(table);
	size_t i;
	int err = 0;

	for (i = 0; all && i < all->count && !err; i++)
		if (!atomic_load(&spans(all)[i]->dead))
			err = each(spans(all)[i], data);
	return err;
}

static struct table *table_new(size_t count)
{
	struct table *table;

	table = kvmfault__sys_alloc(sizeof(*table) + count *
				    (sizeof(uint64_t) + sizeof(void *)), 0);
	if (table)
		table->count = count;
	return table;
}

static void copy(struct table *to, size_t at, const struct table *from,
		 size_t begin, size_t count)
{
	if (!count)
		return;
	memcpy(to->first + at, from->first + begin, count * sizeof(*to->first));
	memcpy(spans(to) + at, spans(from) + begin, count * sizeof(void *));
}

static struct table *replace(kvmfault__table *table, struct table *new)
{
	return (struct table *)(uintptr_t)atomic_exchange(table, new);
}

static bool may_go(const struct kvmfault__span *span)
{
	return atomic_load(&span->dead) && !span->kept;
}

/* 0, or -errno: one that may go but was not swept is in the way for want of
 * memory only. */
static int overlaps(const struct table *table, size_t at,
		    const struct kvmfault__span *span)
{
	const struct kvmfault__span *other = NULL;

	if (at && spans(table)[at - 1]->last >= span->first)
		other = spans(table)[at - 1];
	else if (at < table->count && table->first[at] <= span->last)
		other = spans(table)[at];
	if (!other)
		return 0;
	return may_go(other) ? -ENOMEM : -EEXIST;
}

int kvmfault__table_add(struct kvmfault_vm *vm, kvmfault__table *table,
			struct kvmfault__span *span)
{
	const struct table *old;
	struct table *new;
	size_t at, count;
	int err;

	kvmfault__table_sweep(vm, table);
	old = atomic_load(table);
	count = old ? old->count : 0;
	at = old ? rank(old, span->first) : 0;
	err = old ? overlaps(old, at, span) : 0;
	if (err)
		return err;
	new = table_new(count + 1);
	if (!new)
		return -ENOMEM;
	copy(new, 0, old, 0, at);
	new->first[at] = span->first;
	spans(new)[at] = span;
	copy(new, at + 1, old, at, count - at);
	kvmfault__retire(vm, replace(table, new));
	kvmfault__reclaim(vm);
	return 0;
}

void kvmfault__table_kill(struct kvmfault_vm *vm, struct kvmfault__span *span)
{
	atomic_store(&span->dead, true);
	vm->dead++;
}

/* Split what is old into what stays, in a new table, and what goes. */
static void sweep(struct kvmfault_vm *vm, kvmfault__table *table,
		  const struct table *old, struct table *new)
{
	size_t i, at = 0;

	for (i = 0; i < old->count; i++) {
		if (may_go(spans(old)[i]))
			continue;
		new->first[at] = old->first[i];
		spans(new)[at++] = spans(old)[i];
	}
	kvmfault__retire(vm, replace(table, new));
	for (i = 0; i < old->count; i++) {
		if (!may_go(spans(old)[i]))
			continue;
		kvmfault__retire(vm, spans(old)[i]);
		vm->dead--;
	}
	kvmfault__reclaim(vm);
}

void kvmfault__table_sweep(struct kvmfault_vm *vm, kvmfault__table *table)
{
	const struct table *old = atomic_load(table);
	size_t i, living = 0;
	struct table *new;

	if (!old || !vm->dead)
		return;
	for (i = 0; i < old->count; i++)
		living += !may_go(spans(old)[i]);
	if (living == old->count)
		return;
	new = table_new(living);
	/* Without memory the dead stay where they are: found by nobody. */
	if (new)
		sweep(vm, table, old, new);
}

void kvmfault__table_free(struct kvmfault_vm *vm, kvmfault__table *table)
{
	struct table *old = replace(table, NULL);
	size_t i;

	for (i = 0; old && i < old->count; i++)
		kvmfault__retire(vm, spans(old)[i]);
	kvmfault__retire(vm, old);
	kvmfault__reclaim(vm);
}
