/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Waiting for pages. In: a page that is in flight, or a time. Out: the page has
 * changed or the time is over, or a signal came. A vCPU that does not wait is
 * counted instead, and the VMM is told. A waiter is counted, then looks at the
 * state. The thread that changes the state looks for waiters afterwards: one of
 * them sees the other.
 */

#include "page.h"

static struct kvmfault__bucket *wait_find_bucket(struct kvmfault_memory *memory,
						 uint64_t page)
{
	uint64_t hash = (page ^ (uintptr_t)memory) * 0x9e3779b97f4a7c15ULL;

	return &memory->vm->bucket[(hash >> 32) % KVMFAULT__BUCKETS];
}

bool kvmfault__exit_wanted(const struct kvmfault__seat *seat)
{
	/* Any thread may write the byte, and so may a handler on this one. */
	return seat->immediate_exit &&
	       __atomic_load_n(seat->immediate_exit, __ATOMIC_RELAXED);
}

int kvmfault__sleep(struct kvmfault__seat *seat, _Atomic uint32_t *word,
		    uint32_t value)
{
	int err;

	if (kvmfault__exit_wanted(seat))
		return -EINTR;
	err = kvmfault__sys_futex_wait(word, value, KVMFAULT__SLICE);
	return err == -EINTR ? -EINTR : 0;
}

int kvmfault__page_wait(struct kvmfault__seat *seat,
			struct kvmfault_memory *memory, uint64_t page)
{
	struct kvmfault__bucket *b = wait_find_bucket(memory, page);
	int err = 0;

	/* A callback that is fetching for this memory would wait for itself. */
	if (kvmfault__within_memory(memory, seat))
		return -EDEADLK;
	/* The waker changes the state, then looks for waiters. We are counted,
	 * then look at the state: one of us sees the other. */
	atomic_fetch_add(&b->waiters, 1);
	while (!err) {
		uint32_t sequence = atomic_load(&b->sequence);

		if (!kvmfault__in_flight(kvmfault__page_state(memory, page)))
			break;
		if (atomic_load(&memory->closing))
			err = -EAGAIN;
		else
			err = kvmfault__sleep(seat, &b->sequence, sequence);
	}
	atomic_fetch_sub(&b->waiters, 1);
	return err;
}

void kvmfault__tell_page_ready(struct kvmfault_memory *memory, uint64_t offset)
{
	const struct kvmfault_vm *vm = memory->vm;

	if (vm->ops.page_ready)
		vm->ops.page_ready(vm->options.data, memory, offset,
				 kvmfault__page_size(memory));
}

static void wait_wake_bucket(struct kvmfault__bucket *b)
{
	if (!atomic_load(&b->waiters))
		return;
	atomic_fetch_add(&b->sequence, 1);
	kvmfault__sys_futex_wake(&b->sequence);
}

void kvmfault__page_wake(struct kvmfault_memory *memory, uint64_t page)
{
	struct kvmfault__bucket *b = wait_find_bucket(memory, page);

	if (atomic_load(&memory->vm->pending))
		kvmfault__tell_page_ready(memory, page << memory->page_shift);
	wait_wake_bucket(b);
}

void kvmfault__wake_waiters(struct kvmfault_vm *vm)
{
	size_t i;

	for (i = 0; i < KVMFAULT__BUCKETS; i++)
		wait_wake_bucket(&vm->bucket[i]);
}

void kvmfault__unpin(struct kvmfault_memory *memory)
{
	struct kvmfault_vm *vm = memory->vm;

	/* The memory may be freed after the last pin, but the VM is not freed
	 * while `unpinning` counts us. */
	atomic_fetch_add(&vm->drain.unpinning, 1);
	atomic_fetch_sub(&memory->fetches, 1);
	kvmfault__tell_drainers(vm);
	atomic_fetch_sub(&vm->drain.unpinning, 1);
}

/*
 * A vCPU that does not wait is told when it can have a fetch. Until then its
 * wish pins the memory, and the thread that takes the wish out of the seat
 * unpins it.
 */
void kvmfault__withdraw(struct kvmfault__seat *seat)
{
	struct kvmfault_memory *memory = atomic_exchange(&seat->wish, NULL);

	if (memory)
		kvmfault__unpin(memory);
}

void kvmfault__set_pending(struct kvmfault__seat *seat)
{
	if (!seat->pending)
		atomic_fetch_add(&seat->vm->pending, 1);
	seat->pending = true;
}

void kvmfault__not_pending(struct kvmfault__seat *seat)
{
	if (!seat->pending)
		return;
	kvmfault__withdraw(seat);
	atomic_fetch_sub(&seat->vm->pending, 1);
	seat->pending = false;
}

bool kvmfault__page_pending(struct kvmfault__seat *seat,
			    struct kvmfault_memory *memory, uint64_t page)
{
	kvmfault__set_pending(seat);
	/* As a waiter does: we are counted, then look at the state, and the
	 * waker looks for us afterwards. */
	if (kvmfault__in_flight(kvmfault__page_state(memory, page)))
		return true;
	kvmfault__not_pending(seat);
	return false;
}

/* Wait up to 10 ms for a page in flight, and return its state. Most often the
 * page was present, and a thread that looks at it has claimed it for a
 * moment. */
static enum kvmfault__state wait_for_state(struct kvmfault_memory *memory,
					   uint64_t page)
{
	uint64_t end = kvmfault__sys_now() + KVMFAULT__SLICE;
	struct kvmfault__bucket *b = wait_find_bucket(memory, page);
	uint32_t sequence;
	int err = 0;

	atomic_fetch_add(&b->waiters, 1);
	/* A wake of another page, or a signal, does not end the wait. */
	while (err != -ETIMEDOUT && kvmfault__sys_now() < end) {
		sequence = atomic_load(&b->sequence);
		if (!kvmfault__in_flight(kvmfault__page_state(memory, page)))
			break;
		err = kvmfault__sys_futex_wait(&b->sequence, sequence,
					       KVMFAULT__SLICE);
	}
	atomic_fetch_sub(&b->waiters, 1);
	return kvmfault__page_state(memory, page);
}

/* Of so many pages in one word of states, set the lowest bit of each that is
 * neither present nor discarded, which are the states 4 and 5. */
static uint64_t wait_mask_unreadable(const struct kvmfault_memory *memory,
				     uint64_t page, unsigned int count)
{
	uint64_t word = atomic_load(kvmfault__page_word(memory, page));

	return (~(word >> 2) | word >> 1) & kvmfault__pages_lowest(count);
}

static bool wait_until_readable(struct kvmfault_memory *memory, uint64_t page)
{
	enum kvmfault__state state = kvmfault__page_state(memory, page);

	if (kvmfault__in_flight(state))
		state = wait_for_state(memory, page);
	return state == KVMFAULT__PRESENT || state == KVMFAULT__DISCARDED;
}

uint64_t kvmfault__pages_absent(struct kvmfault_memory *memory)
{
	uint64_t page = 0, pages = memory->length >> memory->page_shift, n = 0;

	for (; page < pages; page += KVMFAULT__PAGES_PER_WORD) {
		uint64_t rest = wait_mask_unreadable(memory, page,
			kvmfault__pages_step(page, pages));

		for (; rest && !n; rest &= rest - 1)
			n += !wait_until_readable(memory, page +
				(unsigned int)__builtin_ctzll(rest) /
				KVMFAULT__PAGE_BITS);
		n += kvmfault__pages_in(rest);
	}
	return n;
}

int kvmfault__pause(struct kvmfault__seat *seat, uint64_t nanoseconds)
{
	while (nanoseconds && !kvmfault__exit_wanted(seat)) {
		uint64_t slice = nanoseconds < KVMFAULT__SLICE ?
				 nanoseconds : KVMFAULT__SLICE;

		if (kvmfault__sys_futex_wait(&seat->pause, 0, slice) == -EINTR)
			return -EINTR;
		nanoseconds -= slice;
	}
	return kvmfault__exit_wanted(seat) ? -EINTR : 0;
}
