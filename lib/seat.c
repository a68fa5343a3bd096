/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the flow: seats, and hazard pointers in them. In: something shared
 * that is about to be read, or has been taken out of use. Out: it stays valid
 * while it is held; it is freed when nobody holds it. A reader never waits for
 * a writer; a writer waits only where a function says that it drains.
 */

#include <sys/mman.h>

#include "internal.h"

static struct kvmfault__seat *seat_new(struct kvmfault_vm *vm)
{
	struct kvmfault__seat *seat;

	seat = kvmfault__sys_alloc(sizeof(*seat), KVMFAULT__CACHE_LINE);
	if (!seat)
		return NULL;
	seat->vm = vm;
	seat->taken = true;
	/* Mapped, not allocated: what is never used is never there. */
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
		seat = seat_new(vm);
	if (seat)
		atomic_store(&seat->owner, (uintptr_t)pthread_self());
	return seat;
}

void kvmfault__seat_give(struct kvmfault__seat *seat)
{
	seat->immediate_exit = NULL;
	seat->vcpu = NULL;
	seat->no_wait = false;
	seat->delegate = false;
	atomic_store(&seat->owner, 0);
	atomic_store(&seat->taken, false);
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
	atomic_fetch_add(&vm->drain_sequence, 1);
	kvmfault__sys_futex_wake(&vm->drain_sequence);
}

static bool held(struct kvmfault_vm *vm, const void *what)
{
	struct kvmfault__seat *seat;

	for (seat = atomic_load(&vm->seats); seat; seat = seat->next)
		if (atomic_load(&seat->table) == what ||
		    atomic_load(&seat->span) == what ||
		    atomic_load(&seat->mappings) == what)
			return true;
	return false;
}

bool kvmfault__retired(struct kvmfault_vm *vm, const void *what)
{
	const struct kvmfault__retired *item;

	for (item = vm->retired; item && item != what; item = item->next)
		;
	return item;
}

/* Who holds a table or a list that was replaced may use anything in it, so
 * nothing goes before that use ends. */
static bool old_held(struct kvmfault_vm *vm)
{
	struct kvmfault__seat *seat;

	for (seat = atomic_load(&vm->seats); seat; seat = seat->next)
		if (kvmfault__retired(vm, atomic_load(&seat->table)) ||
		    kvmfault__retired(vm, atomic_load(&seat->mappings)))
			return true;
	return false;
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

	if (old_held(vm))
		return;
	while ((item = *link)) {
		if (held(vm, item)) {
			link = &item->next;
			continue;
		}
		*link = item->next;
		kvmfault__sys_free(item);
	}
}

static int any_busy(struct kvmfault_vm *vm,
		    bool (*busy)(struct kvmfault__seat *seat, void *what),
		    void *what)
{
	struct kvmfault__seat *seat;

	for (seat = atomic_load(&vm->seats); seat; seat = seat->next) {
		if (!busy(seat, what))
			continue;
		if (atomic_load(&seat->owner) == (uintptr_t)pthread_self())
			return -EDEADLK;
		return -EBUSY;
	}
	return 0;
}

int kvmfault__drain(struct kvmfault_vm *vm,
		    bool (*busy)(struct kvmfault__seat *seat, void *what),
		    void *what)
{
	int err;

	atomic_fetch_add(&vm->drainers, 1);
	for (;;) {
		uint32_t sequence = atomic_load(&vm->drain_sequence);

		/* The lock: what a seat holds is not freed under our eyes. */
		kvmfault__sys_lock(&vm->lock);
		err = any_busy(vm, busy, what);
		kvmfault__sys_unlock(&vm->lock);
		if (err != -EBUSY)
			break;
		kvmfault__sys_futex_wait(&vm->drain_sequence, sequence,
					 1000000000);
	}
	atomic_fetch_sub(&vm->drainers, 1);
	return err;
}
