/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage translate: from an address to the span that contains it. In: a key,
 * which is an address space and a page number. Out: the span, held in the
 * caller's seat. A table is sorted and never changes: a writer replaces it by
 * one copy for any number of spans that come and go. A lookup takes no lock and
 * a logarithm of steps. kvmfault__table_find() runs in a signal handler, too
 * (entry/signal.c): it makes no system call.
 */

#include <string.h>

#include "vm.h"

struct table {
	struct kvmfault__retired retired;
	size_t count;
	uint64_t first[];	/* keys; pointers to the spans follow them */
};

static struct kvmfault__span **table_spans(const struct table *table)
{
	return (struct kvmfault__span **)(uintptr_t)
		&table->first[table->count];
}

static size_t table_count(const struct table *table)
{
	return table ? table->count : 0;
}

/* Count the spans that begin at or before key. */
static size_t table_rank(const struct table *table, uint64_t key)
{
	const uint64_t *base = table ? table->first : NULL;
	size_t count = table_count(table);

	if (!count || *base > key)
		return 0;
	while (count > 1) {
		size_t half = count / 2;

		base += base[half] <= key ? half : 0;
		count -= half;
	}
	return (size_t)(base - table->first) + 1;
}

static struct kvmfault__span *table_search_key(const struct table *table,
					       uint64_t key)
{
	struct kvmfault__span *span;
	size_t n = table_rank(table, key);

	if (!n)
		return NULL;
	span = table_spans(table)[n - 1];
	return key <= span->last && !atomic_load(&span->dead) ? span : NULL;
}

/* If a lookup finds no living span, a newer table may have one: a writer may
 * have put it in the place of the held table meanwhile. */
static bool table_is_replaced(kvmfault__table *table, const struct table *held)
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
		/* A held table keeps its spans, see kvmfault__retire(). */
		held = kvmfault__hold(seat, KVMFAULT__HAZARD_TABLE, table);
		span = table_search_key(held, key);
		atomic_store(&seat->span, span);
		/* The span died before the seat named it, so a drainer may have
		 * missed this seat. */
		if (span && atomic_load(&span->dead)) {
			atomic_store(&seat->span, NULL);
			span = NULL;
		}
	} while (!span && table_is_replaced(table, held));
	/* A signal handler runs this, so there is no wake, which would be a
	 * system call: a drainer looks again by itself. */
	atomic_store_explicit(&seat->hazard[KVMFAULT__HAZARD_TABLE], NULL,
			      memory_order_release);
	return span;
}

static struct kvmfault__span *
table_first_match(const struct table *table,
		  bool (*matches)(const struct kvmfault__span *span,
				  const void *what),
		  const void *what)
{
	size_t i;

	for (i = 0; i < table_count(table); i++)
		if (!atomic_load(&table_spans(table)[i]->dead) &&
		    matches(table_spans(table)[i], what))
			return table_spans(table)[i];
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
		span = table_first_match(held, matches, what);
		if (span)
			atomic_store(&seat->span, span);
		/* The span died before the seat named it. Leave it in
		 * seat->span: a region that just died can still be what keeps
		 * the caller's memory from being freed. */
		if (span && atomic_load(&span->dead))
			span = NULL;
	} while (!span && table_is_replaced(table, held));
	atomic_store_explicit(&seat->hazard[KVMFAULT__HAZARD_TABLE], NULL,
			      memory_order_release);
	return span;
}

void kvmfault__table_visit(struct kvmfault__seat *seat, kvmfault__table *table,
			   void (*visit)(struct kvmfault__seat *seat,
					 struct kvmfault__span *span,
					 void *data), void *data)
{
	const struct table *held;
	size_t i;

	held = kvmfault__hold(seat, KVMFAULT__HAZARD_TABLE, table);
	for (i = 0; i < table_count(held); i++) {
		struct kvmfault__span *span = table_spans(held)[i];

		atomic_store(&seat->span, span);
		if (!atomic_load(&span->dead))
			visit(seat, span, data);
	}
	atomic_store(&seat->span, NULL);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_TABLE);
}

struct kvmfault__span *kvmfault__table_at(kvmfault__table *table, uint64_t key)
{
	return table_search_key(atomic_load(table), key);
}

int kvmfault__table_each(kvmfault__table *table,
			 int (*each)(struct kvmfault__span *span, void *data),
			 void *data)
{
	const struct table *all = atomic_load(table);
	size_t i;
	int err = 0;

	for (i = 0; i < table_count(all) && !err; i++)
		if (!atomic_load(&table_spans(all)[i]->dead))
			err = each(table_spans(all)[i], data);
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

static struct table *table_exchange(kvmfault__table *table, struct table *new)
{
	return (struct table *)(uintptr_t)atomic_exchange(table, new);
}

/* A new table that is being filled. */
struct filling {
	struct table *table;
	size_t count;		/* the spans that are in it by now */
};

static bool filling_overlaps(const struct filling *to, uint64_t first)
{
	return to->count &&
	       table_spans(to->table)[to->count - 1]->last >= first;
}

static int filling_append(struct filling *to, struct kvmfault__span *span)
{
	if (filling_overlaps(to, span->first))
		return -EEXIST;
	to->table->first[to->count] = span->first;
	table_spans(to->table)[to->count++] = span;
	return 0;
}

/* Copy the spans that stay. Spans of one table do not overlap each other: if
 * all of them stay, only the first can overlap the one before it. */
static int filling_copy_run(struct filling *to, const struct table *from,
			    size_t begin, size_t end, bool all)
{
	size_t n = end - begin;
	int err = 0;

	for (; !all && begin < end && !err; begin++)
		if (!table_spans(from)[begin]->leaves)
			err = filling_append(to, table_spans(from)[begin]);
	if (err || begin == end)
		return err;
	if (filling_overlaps(to, from->first[begin]))
		return -EEXIST;
	memcpy(to->table->first + to->count, from->first + begin,
	       n * sizeof(*from->first));
	memcpy(table_spans(to->table) + to->count, table_spans(from) + begin,
	       n * sizeof(void *));
	to->count += n;
	return 0;
}

/* *count is the number of spans to add. On -EEXIST it becomes the index of one
 * that overlaps another span. */
static int table_merge(struct table *new, const struct table *old, bool all,
		       struct kvmfault__span **add, size_t *count)
{
	struct filling to = { .table = new };
	size_t i, at = 0, next, n = *count;
	int err = 0;

	for (i = 0; i <= n && !err; i++) {
		next = i < n ? table_rank(old, add[i]->first) :
			       table_count(old);
		*count = i ? i - 1 : 0;
		err = filling_copy_run(&to, old, at, next, all);
		at = next;
		if (err || i == n)
			break;
		*count = i;
		err = filling_append(&to, add[i]);
	}
	return err;
}

static size_t table_count_leaving(const struct kvmfault_vm *vm,
				  const struct table *table)
{
	size_t i, n = 0;

	for (i = 0; vm->leaving && i < table_count(table); i++)
		n += table_spans(table)[i]->leaves;
	return n;
}

/* These spans are not in the new table. They die now, since a reader that still
 * holds the old one must not find them there. */
static void table_bury_leaving(struct kvmfault_vm *vm, const struct table *old)
{
	size_t i;

	for (i = 0; i < table_count(old); i++) {
		struct kvmfault__span *span = table_spans(old)[i];

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
	size_t gone = table_count_leaving(vm, old);
	struct table *new;
	int err;

	new = table_new(table_count(old) - gone + *count);
	if (!new)
		return -ENOMEM;
	err = table_merge(new, old, !gone, add, count);
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
	struct table *old = table_exchange(table, copy);

	kvmfault__retire(vm, old);
	if (vm->leaving)
		table_bury_leaving(vm, old);
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

	if (table_count_leaving(vm, atomic_load(table)) &&
	    !kvmfault__table_copy(vm, table, NULL, &none, &copy))
		kvmfault__table_put(vm, table, copy);
}

void kvmfault__table_free(struct kvmfault_vm *vm, kvmfault__table *table)
{
	struct table *old = table_exchange(table, NULL);
	size_t i;

	for (i = 0; i < table_count(old); i++)
		kvmfault__retire(vm, table_spans(old)[i]);
	kvmfault__retire(vm, old);
	kvmfault__reclaim(vm);
}
