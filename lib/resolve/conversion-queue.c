/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Conversion queue: at most one thread at a time converts a page. In: a run of
 * guest-physical pages. Out: the thread has its turn, in the order of arrival;
 * or an error says why the thread must not wait. Conversions of disjoint runs
 * never wait for each other.
 */

#include "range.h"

static bool conversions_overlap(const struct kvmfault__conversion *one,
				const struct kvmfault__conversion *other)
{
	return one->pages.first < other->pages.end &&
	       other->pages.first < one->pages.end;
}

/* The list has the order of arrival: an older one that overlaps goes first. */
static bool conversion_is_blocked(const struct kvmfault_vm *vm,
				  const struct kvmfault__conversion *mine)
{
	const struct kvmfault__conversion *other = vm->conversions.first;

	while (other != mine && !conversions_overlap(other, mine))
		other = other->next;
	return other != mine;
}

/* The thread has converted its pages, or gives up waiting for its turn. */
void kvmfault__conversion_end(struct kvmfault_vm *vm,
			      struct kvmfault__conversion *mine)
{
	struct kvmfault__conversion **link = &vm->conversions.first;
	bool wake, tell;

	kvmfault__sys_lock(&vm->conversions.lock);
	while (*link != mine)
		link = &(*link)->next;
	*link = mine->next;
	wake = atomic_load(&vm->conversions.ended.waiters);
	tell = mine->refused && vm->ops.page_ready;
	atomic_fetch_add(&vm->conversions.ended.sequence, 1);
	kvmfault__sys_unlock(&vm->conversions.lock);
	if (wake)
		kvmfault__sys_futex_wake(&vm->conversions.ended.sequence);
	if (tell)
		vm->ops.page_ready(vm->options.data, NULL,
				    kvmfault__gpa(mine->pages.first),
				    kvmfault__gfns_length(mine->pages));
}

/* If this thread has a page in hand, the other conversion may wait for that
 * page: then this thread must not wait. */
static int conversion_check_wait(struct kvmfault__conversion *other, bool wait)
{
	other->refused |= !wait;
	if (!wait)
		return KVMFAULT_VERDICT_LATER;
	return kvmfault__in_hand() ? -EDEADLK : 0;
}

/* Unless this returns 0, the conversion is not in the queue. */
static int conversion_queue(struct kvmfault_vm *vm,
			    struct kvmfault__conversion *mine)
{
	struct kvmfault__conversion **link;
	int err = 0;

	mine->owner = (uintptr_t)pthread_self();
	kvmfault__sys_lock(&vm->conversions.lock);
	for (link = &vm->conversions.first; *link; link = &(*link)->next)
		if ((*link)->owner == mine->owner)
			err = -EDEADLK;
		else if (!err && conversions_overlap(*link, mine))
			err = conversion_check_wait(*link, mine->wait);
	if (!err)
		*link = mine;
	kvmfault__sys_unlock(&vm->conversions.lock);
	return err;
}

static int conversion_wait_turn(struct kvmfault__seat *seat,
				const struct kvmfault__conversion *mine)
{
	struct kvmfault_vm *vm = seat->vm;
	struct kvmfault__bucket *ended = &vm->conversions.ended;
	int err = 0;

	kvmfault__sys_lock(&vm->conversions.lock);
	while (!err && conversion_is_blocked(vm, mine)) {
		/* The sequence is read under the lock, under which it is
		 * advanced, too: so no wake is lost. */
		uint32_t sequence = atomic_load(&ended->sequence);

		atomic_fetch_add(&ended->waiters, 1);
		kvmfault__sys_unlock(&vm->conversions.lock);
		err = kvmfault__sleep(seat, &ended->sequence, sequence);
		atomic_fetch_sub(&ended->waiters, 1);
		kvmfault__sys_lock(&vm->conversions.lock);
	}
	kvmfault__sys_unlock(&vm->conversions.lock);
	return err;
}

int kvmfault__conversion_begin(struct kvmfault__seat *seat,
			       struct kvmfault__conversion *mine)
{
	int err = conversion_queue(seat->vm, mine);

	if (err)
		return err;
	err = conversion_wait_turn(seat, mine);
	if (err)
		kvmfault__conversion_end(seat->vm, mine);
	return err;
}
