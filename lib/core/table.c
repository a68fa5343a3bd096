/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage translate: from an address to the span that contains it. In: a key,
 * which is an address space and a page number. Out: the span, held in the
 * caller's seat. A table is sorted, is replaced as a whole by whoever changes
 * it, in one copy for any number of spans that come and go, and a lookup takes no
 * lock and a logarithm of steps.
 */

#include <string.h>

#include "vm.h"

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

static size_t count_of(const struct table *table)
{
	return table ? table->count : 0;
}

/* How many spans begin at or before key. */
static size_t rank(const struct table *table, uint64_t key)
{
	const uint64_t *base = table ? table->first : NULL;
	size_t count = count_of(table);

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
	size_t n = rank(table, key);

	if (!n)
		return NULL;
	span = spans(table)[n - 1];
	return key <= span->last && !atomic_load(&span->dead) ? span : NULL;
}

/* What was found dead, or not at all, may have been laid anew meanwhile. */
static bool replaced(kvmfault__table *table, const struct table *held)
{
	return atomic_load(table) != held;
}

struct kvmfault__span *kvmfault__table_find(struct kvmfault__seat *seat,
					    kvmfault__table *table,
					    uint64_t key)
{
	const struct table *held;
	struct kvmfault__span *span;

	do {
		/* Who holds a table holds its spans: see kvmfault__retire(). */
		held = kvmfault__hold(seat, KVMFAULT__HAZARD_TABLE, table);
		span = search(held, key);
		atomic_store(&seat->span, span);
		/* Killed in between: whoever drains may not have seen us. */
		if (span && atomic_load(&span->dead)) {
			atomic_store(&seat->span, NULL);
			span = NULL;
		}
	} while (!span && replaced(table, held));
	atomic_store_explicit(&seat->hazard[KVMFAULT__HAZARD_TABLE], NULL, memory_order_release);
	return span;
}

static struct kvmfault__span *
first(const struct table *table,
      bool (*matches)(const struct kvmfault__span *span, const void *what),
      const void *what)
{
	size_t i;

	for (i = 0; i < count_of(table); i++)
		if (!atomic_load(&spans(table)[i]->dead) &&
		    matches(spans(table)[i], what))
			return spans(table)[i];
	return NULL;
}

struct kvmfault__span *
kvmfault__table_search(struct kvmfault__seat *seat, kvmfault__table *table,
		       bool (*matches)(const struct kvmfault__span *span,
				       const void *what),
		       const void *what)
{
	const struct table *held;
	struct kvmfault__span *span;

	do {
		held = kvmfault__hold(seat, KVMFAULT__HAZARD_TABLE, table);
		span = first(held, matches, what);
		if (span)
			atomic_store(&seat->span, span);
		/* Killed in between. It stays held: its memory may be what
		 * the caller has held until now by another span. */
		if (span && atomic_load(&span->dead))
			span = NULL;
	} while (!span && replaced(table, held));
	atomic_store_explicit(&seat->hazard[KVMFAULT__HAZARD_TABLE], NULL, memory_order_release);
	return span;
}

void kvmfault__table_visit(struct kvmfault__seat *seat, kvmfault__table *table,
			   void (*visit)(struct kvmfault__seat *seat,
					 struct kvmfault__span *span,
					 void *data), void *data)
{
	const struct table *held = kvmfault__hold(seat, KVMFAULT__HAZARD_TABLE, table);
	size_t i;

	for (i = 0; i < count_of(held); i++) {
		struct kvmfault__span *span = spans(held)[i];

		atomic_store(&seat->span, span);
		if (!atomic_load(&span->dead))
			visit(seat, span, data);
	}
	atomic_store(&seat->span, NULL);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_TABLE);
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

	for (i = 0; i < count_of(all) && !err; i++)
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

static struct table *replace(kvmfault__table *table, struct table *new)
{
	return (struct table *)(uintptr_t)atomic_exchange(table, new);
}

struct filling {
	struct table *table;
	size_t count;		/* that are in it by now */
};

static bool overlaps(const struct filling *to, uint64_t first)
{
	return to->count && spans(to->table)[to->count - 1]->last >= first;
}

static int append(struct filling *to, struct kvmfault__span *span)
{
	if (overlaps(to, span->first))
		return -EEXIST;
	to->table->first[to->count] = span->first;
	spans(to->table)[to->count++] = span;
	return 0;
}

/* Those that stay; they do not overlap among themselves. */
static int copy_run(struct filling *to, const struct table *from, size_t begin,
		    size_t end, bool all)
{
	size_t n = end - begin;
	int err = 0;

	for (; !all && begin < end && !err; begin++)
		if (!spans(from)[begin]->leaves)
			err = append(to, spans(from)[begin]);
	if (err || begin == end)
		return err;
	if (overlaps(to, from->first[begin]))
		return -EEXIST;
	memcpy(to->table->first + to->count, from->first + begin,
	       n * sizeof(*from->first));
	memcpy(spans(to->table) + to->count, spans(from) + begin,
	       n * sizeof(void *));
	to->count += n;
	return 0;
}

/* *count: how many, and then which of them overlaps another one. */
static int merge(struct table *new, const struct table *old, bool all,
		 struct kvmfault__span **add, size_t *count)
{
	struct filling to = { .table = new };
	size_t i, at = 0, next, n = *count;
	int err = 0;

	for (i = 0; i <= n && !err; i++) {
		next = i < n ? rank(old, add[i]->first) : count_of(old);
		*count = i ? i - 1 : 0;
		err = copy_run(&to, old, at, next, all);
		at = next;
		if (err || i == n)
			break;
		*count = i;
		err = append(&to, add[i]);
	}
	return err;
}

static size_t leaving(const struct kvmfault_vm *vm, const struct table *table)
{
	size_t i, n = 0;

	for (i = 0; vm->leaving && i < count_of(table); i++)
		n += spans(table)[i]->leaves;
	return n;
}

/* Out of the table, and so not to be found by who still has the old one. */
static void bury(struct kvmfault_vm *vm, const struct table *old)
{
	size_t i;

	for (i = 0; i < count_of(old); i++) {
		struct kvmfault__span *span = spans(old)[i];

		if (!span->leaves)
			continue;
		atomic_store(&span->dead, true);
		kvmfault__retire(vm, span);
		vm->leaving--;
	}
}

int kvmfault__table_copy(struct kvmfault_vm *vm, kvmfault__table *table,
			 struct kvmfault__span **add, size_t *count,
			 void **copy)
{
	const struct table *old = atomic_load(table);
	size_t gone = leaving(vm, old);
	struct table *new;
	int err;

	new = table_new(count_of(old) - gone + *count);
	if (!new)
		return -ENOMEM;
	err = merge(new, old, !gone, add, count);
	if (err) {
		kvmfault__sys_free(new);
		return err;
	}
	*copy = new;
	return 0;
}

void kvmfault__table_put(struct kvmfault_vm *vm, kvmfault__table *table,
			 void *copy)
{
	struct table *old = replace(table, copy);

	kvmfault__retire(vm, old);
	if (vm->leaving)
		bury(vm, old);
	kvmfault__reclaim(vm);
}

void kvmfault__table_drop(struct kvmfault_vm *vm, struct kvmfault__span *span)
{
	span->leaves = true;
	vm->leaving++;
}

void kvmfault__table_sweep(struct kvmfault_vm *vm, kvmfault__table *table)
{
	size_t none = 0;
	void *copy;

	if (leaving(vm, atomic_load(table)) &&
	    !kvmfault__table_copy(vm, table, NULL, &none, &copy))
		kvmfault__table_put(vm, table, copy);
}

void kvmfault__table_free(struct kvmfault_vm *vm, kvmfault__table *table)
{
	struct table *old = replace(table, NULL);
	size_t i;

	for (i = 0; i < count_of(old); i++)
		kvmfault__retire(vm, spans(old)[i]);
	kvmfault__retire(vm, old);
	kvmfault__reclaim(vm);
}
