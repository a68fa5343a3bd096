/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: seats, the hazard pointers in them, and the list
 * of the seats that a thread uses in its calls, innermost first. In: a shared
 * object that a thread is about to read, or that was taken out of use. Out: the
 * object stays valid while a seat names it, and is freed when none does. A
 * reader never waits for a writer; a writer waits only in the functions that
 * drain.
 */

#include <sys/mman.h>

#include "vm.h"

void kvmfault__failures_forget(struct kvmfault__seat *seat)
{
	size_t i;

	if (!atomic_exchange(&seat->failures, 0))
		return;
	for (i = 0; i < KVMFAULT__FAILURES; i++)
		atomic_store(&seat->failed[i], 0);
}

void kvmfault__failures_forget_all(struct kvmfault_vm *vm)
{
	struct kvmfault__seat *seat;

	for (seat = atomic_load(&vm->seats); seat; seat = seat->next)
		kvmfault__failures_forget(seat);
}

static struct kvmfault__seat *seat_new(struct kvmfault_vm *vm)
{
	struct kvmfault__seat *seat;

	seat = kvmfault__sys_alloc(sizeof(*seat), KVMFAULT__CACHE_LINE);
	if (!seat)
		return NULL;
	seat->vm = vm;
	seat->taken = true;
	/* Mapped, not allocated: scratch memory that no fault uses takes no
	 * host memory. */
	if (kvmfault__sys_mmap(&seat->buffer, vm->options.page_size_max,
			       PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			       -1, 0) < 0) {
		kvmfault__sys_free(seat);
		return NULL;
	}
	seat->next = atomic_load(&vm->seats);
	while (!atomic_compare_exchange_weak(&vm->seats, &seat->next, seat))
		;
	return seat;
}

struct kvmfault__seat *kvmfault__seat_take(struct kvmfault_vm *vm)
{
	struct kvmfault__seat *seat;

	for (seat = atomic_load(&vm->seats); seat; seat = seat->next)
		if (!atomic_load_explicit(&seat->taken, memory_order_relaxed) &&
		    !atomic_exchange(&seat->taken, true))
			break;
	if (!seat)
		return seat_new(vm);
	kvmfault__failures_forget(seat);
	return seat;
}

void kvmfault__seat_give(struct kvmfault__seat *seat)
{
	seat->immediate_exit = NULL;
	seat->vcpu = NULL;
	seat->task = NULL;
	seat->no_wait = false;
	atomic_store(&seat->fill, NULL);
	atomic_store(&seat->taken, false);
}

void kvmfault__enter(struct kvmfault__inside *inside,
		     struct kvmfault__seat *seat,
		     const struct kvmfault_memory *memory)
{
	void **own = kvmfault__sys_own();

	*inside = (struct kvmfault__inside){
		.seat = seat, .memory = memory, .own = own, .outer = *own,
	};
	*own = inside;
}

bool kvmfault__within(bool (*busy)(struct kvmfault__seat *seat, void *what),
		      void *what)
{
	const struct kvmfault__inside *in = *kvmfault__sys_own();

	while (in && !(in->seat && busy(in->seat, what)))
		in = in->outer;
	return in;
}

bool kvmfault__within_memory(const struct kvmfault_memory *memory,
			     const struct kvmfault__seat *but)
{
	const struct kvmfault__inside *in = *kvmfault__sys_own();

	for (; in; in = in->outer) {
		const struct kvmfault__span *span;

		if (in->memory == memory)
			return true;
		if (!in->seat || in->seat == but)
			continue;
		span = atomic_load(&in->seat->span);
		if (span && span->memory == memory)
			return true;
	}
	return false;
}

bool kvmfault__in_hand(void)
{
	const struct kvmfault__inside *in = *kvmfault__sys_own();

	while (in && !in->memory &&
	       !(in->seat && atomic_load(&in->seat->in_hand)))
		in = in->outer;
	return in;
}

struct kvmfault__seat *kvmfault__call_begin(struct kvmfault_vm *vm)
{
	struct kvmfault__seat *seat = kvmfault__seat_take(vm);

	if (seat)
		kvmfault__enter(&seat->inside, seat, NULL);
	return seat;
}

void kvmfault__call_end(struct kvmfault__seat *seat)
{
	kvmfault__exit(&seat->inside);
	kvmfault__seat_give(seat);
}

void kvmfault__seats_free(struct kvmfault_vm *vm)
{
	struct kvmfault__seat *seat = atomic_load(&vm->seats);

	while (seat) {
		struct kvmfault__seat *next = seat->next;

		kvmfault__sys_munmap(seat->buffer, vm->options.page_size_max);
		kvmfault__sys_free(seat);
		seat = next;
	}
}

void kvmfault__wake_drainers(struct kvmfault_vm *vm)
{
	atomic_fetch_add(&vm->drain.sequence, 1);
	kvmfault__sys_futex_wake(&vm->drain.sequence);
}

bool kvmfault__any_seat(struct kvmfault_vm *vm,
			bool (*busy)(struct kvmfault__seat *seat, void *what),
			void *what)
{
	struct kvmfault__seat *seat = atomic_load(&vm->seats);

	while (seat && !busy(seat, what))
		seat = seat->next;
	return seat;
}

static bool seat_holds(struct kvmfault__seat *seat, void *what)
{
	unsigned int hazard = 0;

	while (hazard < KVMFAULT__HAZARDS &&
	       kvmfault__held(seat, hazard) != what)
		hazard++;
	return hazard < KVMFAULT__HAZARDS || atomic_load(&seat->span) == what;
}

bool kvmfault__retired(struct kvmfault_vm *vm, const void *what)
{
	const struct kvmfault__retired *item;

	for (item = vm->retired; item && item != what; item = item->next)
		;
	return item;
}

/* A thread that holds a replaced table or list may use all that is in it, so
 * nothing is freed before that use ends. */
static bool seat_holds_replaced(struct kvmfault__seat *seat, void *vm)
{
	return kvmfault__retired(vm, kvmfault__held(seat,
					KVMFAULT__HAZARD_TABLE)) ||
	       kvmfault__retired(vm, kvmfault__held(seat,
					KVMFAULT__HAZARD_MAPPINGS));
}

void kvmfault__retire(struct kvmfault_vm *vm, const void *retired)
{
	struct kvmfault__retired *item = (void *)(uintptr_t)retired;

	if (!item)
		return;
	item->next = vm->retired;
	vm->retired = item;
}

void kvmfault__reclaim(struct kvmfault_vm *vm)
{
	struct kvmfault__retired **link = &vm->retired, *item;

	if (kvmfault__any_seat(vm, seat_holds_replaced, vm))
		return;
	while ((item = *link)) {
		if (kvmfault__any_seat(vm, seat_holds, item)) {
			link = &item->next;
			continue;
		}
		*link = item->next;
		kvmfault__sys_free(item);
	}
}

/* Look once, and if busy() is true wait for a change, for so long at most.
 * Returns what busy() did. */
static bool drain_look(struct kvmfault_vm *vm,
		       bool (*busy)(struct kvmfault_vm *vm, void *what),
		       void *what, uint64_t nanoseconds)
{
	uint32_t sequence;
	bool again;

	atomic_fetch_add(&vm->drain.drainers, 1);
	sequence = atomic_load(&vm->drain.sequence);
	/* Without the lock a reclaim could free an object that busy() looks at
	 * through a seat. */
	kvmfault__sys_lock(&vm->lock);
	again = busy(vm, what);
	kvmfault__sys_unlock(&vm->lock);
	if (again)
		kvmfault__sys_futex_wait(&vm->drain.sequence, sequence,
					 nanoseconds);
	atomic_fetch_sub(&vm->drain.drainers, 1);
	return again;
}

void kvmfault__drain_until(struct kvmfault_vm *vm,
			   bool (*busy)(struct kvmfault_vm *vm, void *what),
			   void *what)
{
	while (drain_look(vm, busy, what, KVMFAULT__SECOND))
		;
}

struct seats {
	bool (*busy)(struct kvmfault__seat *seat, void *what);
	void *what;
};

static bool any_seat_is_busy(struct kvmfault_vm *vm, void *what)
{
	const struct seats *seats = what;

	return kvmfault__any_seat(vm, seats->busy, seats->what);
}

void kvmfault__drain(struct kvmfault_vm *vm,
		     bool (*busy)(struct kvmfault__seat *seat, void *what),
		     void *what)
{
	struct seats seats = { busy, what };

	kvmfault__drain_until(vm, any_seat_is_busy, &seats);
}

bool kvmfault__drain_look(struct kvmfault_vm *vm,
			  bool (*busy)(struct kvmfault__seat *seat, void *what),
			  void *what, uint64_t nanoseconds)
{
	struct seats seats = { busy, what };

	return drain_look(vm, any_seat_is_busy, &seats, nanoseconds);
}

void kvmfault__latency(struct kvmfault__seat *seat, uint64_t nanoseconds)
{
	uint64_t us = nanoseconds / 1000;
	unsigned int bin = us ? 64 - (unsigned int)__builtin_clzll(us) : 0;

	if (bin >= KVMFAULT_LATENCY_COUNT)
		bin = KVMFAULT_LATENCY_COUNT - 1;
	kvmfault__add(seat, KVMFAULT__COUNTER(latency) + bin, 1);
}
