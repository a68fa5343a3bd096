/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Set-up: fills. In: memories, and how they are to be filled. Out: a fill, with
 * its threads or a seat for the VMM's, which holds its memories until it is
 * freed. It may be freed at any time.
 */

#include <stdio.h>

#include "setup.h"
#include "../entry/fill.h"

#define THREADS_MAX 64
#define INTERVAL_MS 250	/* between two reports, if the VMM does not say */

/* Without threads, the seat is for the VMM's. */
static int fill_start_threads(struct kvmfault_fill *fill, unsigned int threads)
{
	struct kvmfault__seat *seat;
	char name[16];
	int err;

	if (!threads) {
		fill->seat = kvmfault__fill_seat(fill);
		return fill->seat ? 0 : -ENOMEM;
	}
	while (fill->threads < threads) {
		seat = kvmfault__fill_seat(fill);
		if (!seat)
			return -ENOMEM;
		snprintf(name, sizeof(name), "kvmfault-fill/%u", fill->threads);
		err = kvmfault__sys_thread(&fill->thread[fill->threads],
					   kvmfault__fill_run, seat, name);
		if (err) {
			kvmfault__seat_give(seat);
			return err;
		}
		fill->threads++;
	}
	return 0;
}

/* Under the VM's lock. A memory that a fill names stays, and is not settled. */
static void fill_count_users(struct kvmfault_fill *fill, unsigned int more)
{
	size_t i;

	for (i = 0; i < fill->count; i++)
		fill->part[i].memory->fills += more;
	fill->vm->fills += more;
}

static int fill_pin(struct kvmfault_fill *fill)
{
	struct kvmfault_vm *vm = fill->vm;
	bool tracked = true;
	size_t i;

	kvmfault__sys_lock(&vm->lock);
	for (i = 0; i < fill->count; i++)
		tracked &= kvmfault__tracked(fill->part[i].memory);
	if (tracked)
		fill_count_users(fill, 1);
	kvmfault__sys_unlock(&vm->lock);
	return tracked ? 0 : kvmfault__refuse(vm, -EINVAL,
		"kvmfault_fill_options.memories: one of them has no source, or is settled: leave it out, since nothing of it is missing");
}

static void fill_unpin(struct kvmfault_fill *fill)
{
	kvmfault__sys_lock(&fill->vm->lock);
	fill_count_users(fill, -1U);
	kvmfault__sys_unlock(&fill->vm->lock);
}

static void fill_delete(struct kvmfault_fill *fill)
{
	pthread_mutex_destroy(&fill->lock);
	kvmfault__sys_free(fill->part);
	kvmfault__sys_free(fill);
}

static void fill_end(struct kvmfault_fill *fill)
{
	unsigned int i;

	atomic_store(&fill->stopping, true);
	kvmfault__fill_wake(fill);
	for (i = 0; i < fill->threads; i++)
		kvmfault__sys_join(fill->thread[i]);
	if (fill->seat)
		kvmfault__seat_give(fill->seat);
	fill_unpin(fill);
	fill_delete(fill);
}

static int fill_check_set(struct kvmfault_vm *vm,
			  const struct kvmfault_fill_options *o)
{
	uint32_t i;

	for (i = 0; o->first && i < o->memory_count; i++) {
		const struct kvmfault_memory *memory = o->memories[i];
		uint64_t end = memory->source_offset + memory->length;

		if (end > o->first->image_length)
			return kvmfault__refuse(vm, -EINVAL,
				"kvmfault_fill_options.first: its image has %#llx bytes, and memory number %u ends at %#llx of its source: pass a working set of this image",
				(unsigned long long)o->first->image_length, i,
				(unsigned long long)end);
	}
	return 0;
}

static int fill_check(struct kvmfault_vm *vm,
		      const struct kvmfault_fill_options *o)
{
	int err;

	if (o->threads > THREADS_MAX)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_fill_options.threads: %u is more than %u, the most that a fill can have",
			o->threads, (unsigned int)THREADS_MAX);
	if (o->window_length > vm->options.page_size_max)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_fill_options.window_length: %#llx is more than the context's page_size_max, %#llx",
			(unsigned long long)o->window_length,
			(unsigned long long)vm->options.page_size_max);
	if (!o->memories || !o->memory_count)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_fill_options.%s is not set: name the memories that are to be filled",
			o->memories ? "memory_count" : "memories");
	err = kvmfault__memories_check(vm, "kvmfault_fill_options",
				       o->memories, o->memory_count);
	return err ? err : fill_check_set(vm, o);
}

static int fill_make(struct kvmfault_vm *vm,
		     const struct kvmfault_fill_options *o,
		     struct kvmfault_fill **fill)
{
	size_t pieces = o->threads ? o->threads : 1;
	struct kvmfault_fill *new;
	uint64_t pages = 0;

	new = kvmfault__sys_alloc(sizeof(*new) + o->threads *
				  sizeof(new->thread[0]), 0);
	if (!new)
		return -ENOMEM;
	new->part = kvmfault__sys_alloc(o->memory_count *
					sizeof(new->part[0]) + pieces *
					sizeof(new->back[0]), 0);
	if (!new->part) {
		kvmfault__sys_free(new);
		return -ENOMEM;
	}
	new->back = (struct kvmfault__fill_piece *)
		    &new->part[o->memory_count];
	new->vm = vm;
	new->window_length = o->window_length ? o->window_length :
						vm->options.page_size_max;
	new->interval = (o->interval_ms ? o->interval_ms : INTERVAL_MS) *
			KVMFAULT__MS;
	atomic_store(&new->run_length, new->window_length);
	new->gentle_length = KVMFAULT__GENTLE_LENGTH;
	new->first = o->first;
	atomic_store(&new->replaying, o->first);
	pthread_mutex_init(&new->lock, NULL);
	new->progress = o->progress;
	new->data = o->data;
	new->began = kvmfault__sys_now();
	atomic_store(&new->rate, o->rate);
	atomic_store(&new->paused, o->paused);
	atomic_store(&new->due, new->began);
	for (; new->count < o->memory_count; new->count++) {
		struct kvmfault__fill_part *part = &new->part[new->count];

		part->memory = o->memories[new->count];
		part->first = pages;
		pages += part->memory->length >> part->memory->page_shift;
		part->end = pages;
	}
	*fill = new;
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_fill_new(struct kvmfault_vm *vm,
		      const struct kvmfault_fill_options *options,
		      struct kvmfault_fill **fill)
{
	struct kvmfault_fill_options ours;
	struct kvmfault_fill *new;
	int err;

	if (!fill)
		return kvmfault__no_place(vm, "kvmfault_fill_new");
	*fill = NULL;
	err = kvmfault__options_in(vm, "kvmfault_fill_options", &ours,
				   sizeof(ours), options);
	if (!err)
		err = vm ? fill_check(vm, &ours) : -EINVAL;
	if (!err)
		err = fill_make(vm, &ours, &new);
	if (err)
		return err;
	err = fill_pin(new);
	if (err) {
		fill_delete(new);
		return err;
	}
	err = fill_start_threads(new, ours.threads);
	if (err) {
		fill_end(new);
		return err;
	}
	*fill = new;
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_fill_free(struct kvmfault_fill *fill)
{
	if (!fill || kvmfault__is_child(fill->vm))
		return 0;
	if (kvmfault__fill_is_self(fill))
		return kvmfault__refuse(fill->vm, -EDEADLK,
			"kvmfault_fill_free: the call comes from a callback of the fill itself: free it on another thread, or afterwards");
	fill_end(fill);
	return 0;
}
