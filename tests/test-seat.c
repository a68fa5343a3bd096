/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * seat.c: what is held is not freed, what nobody holds is; who drains waits
 * for the others, and not for itself.
 */

#include <string.h>

#include "fake-sys.h"
#include "lib/setup/setup.h"
#include "unit.h"

#define THREADS 4

static struct kvmfault_vm *vm;
static struct kvmfault__seat *seat;

static void up(void)
{
	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	seat = kvmfault__seat_take(vm);
}

static void down(void)
{
	struct fake_held held;

	kvmfault__seat_give(seat);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	held = fake_held();
	ck_assert_int_eq(held.allocations, 0);
	ck_assert_int_eq(held.mappings, 0);
}

static void *new_item(void)
{
	return kvmfault__sys_alloc(sizeof(struct kvmfault__span), 0);
}

static void retire(void *item)
{
	pthread_mutex_lock(&vm->lock);
	kvmfault__retire(vm, item);
	kvmfault__reclaim(vm);
	pthread_mutex_unlock(&vm->lock);
}

TEST_GROUP(seat, up, down);

TEST(seat, taken_once_used_again)
{
	struct kvmfault__seat *other = kvmfault__seat_take(vm);

	ck_assert_ptr_ne(seat, other);
	ck_assert_ptr_ne(seat->buffer, other->buffer);
	ck_assert_uint_eq((uintptr_t)other % KVMFAULT__CACHE_LINE, 0);
	kvmfault__seat_give(other);
	ck_assert_ptr_eq(kvmfault__seat_take(vm), other);
	ck_assert(!other->immediate_exit);
	kvmfault__seat_give(other);
}

TEST(seat, without_memory)
{
	long before = fake_held().allocations;

	fake_push(FAKE_ALLOC, 0);
	ck_assert_ptr_null(kvmfault__seat_take(vm));
	fake_push(FAKE_MMAP, -ENOMEM);
	ck_assert_ptr_null(kvmfault__seat_take(vm));
	ck_assert_int_eq(fake_held().allocations, before);
}

TEST(seat, nobody_holds_it)
{
	long before = fake_held().allocations;

	retire(new_item());
	ck_assert_int_eq(fake_held().allocations, before);
	retire(NULL);
}

TEST_EACH(seat, held_is_not_freed, KVMFAULT__HAZARDS + 1)
{
	long before = fake_held().allocations;
	void *item = new_item();

	/* By its address, as a span or by a hazard of any kind. */
	if (_i == KVMFAULT__HAZARDS)
		atomic_store(&seat->span, item);
	else
		atomic_store(&seat->hazard[_i], item);
	retire(item);
	ck_assert_int_eq(fake_held().allocations, before + 1);
	memset((char *)item + sizeof(void *), 0x55, 8);	/* still ours */
	pthread_mutex_lock(&vm->lock);
	ck_assert(kvmfault__retired(vm, item));
	pthread_mutex_unlock(&vm->lock);
	atomic_store(&seat->span, NULL);
	if (_i < KVMFAULT__HAZARDS)
		kvmfault__unhold(seat, (enum kvmfault__hazard)_i);
	retire(NULL);
	ck_assert_int_eq(fake_held().allocations, before);
}

TEST(seat, what_is_in_a_held_table_is_not_freed)
{
	long before = fake_held().allocations;
	void *table = new_item(), *item = new_item();

	/* A lookup in it may be about to hold any of them. */
	atomic_store(&seat->hazard[KVMFAULT__HAZARD_TABLE], table);
	pthread_mutex_lock(&vm->lock);
	kvmfault__retire(vm, table);
	kvmfault__retire(vm, item);
	kvmfault__reclaim(vm);
	pthread_mutex_unlock(&vm->lock);
	ck_assert_int_eq(fake_held().allocations, before + 2);
	atomic_store(&seat->hazard[KVMFAULT__HAZARD_TABLE], NULL);
	retire(NULL);
	ck_assert_int_eq(fake_held().allocations, before);
}

TEST(seat, freed_at_the_end)
{
	void *item = new_item();

	atomic_store(&seat->span, item);
	retire(item);
	atomic_store(&seat->span, NULL);
	/* down() checks that it is gone with the VM. */
}

/* ---- drain ---- */

static atomic_int is_busy;
static struct kvmfault__seat *busy_seat;

static bool busy(struct kvmfault__seat *who, void *what)
{
	ck_assert_ptr_eq(what, &is_busy);
	return who == busy_seat && atomic_load(&is_busy);
}

TEST(seat, nobody_is_busy)
{
	kvmfault__drain(vm, busy, &is_busy);
	ck_assert_uint_eq(vm->drain.drainers, 0);
}

/* One within the other, each with what it holds. */
TEST(seat, within_what_it_is_in)
{
	struct kvmfault__inside outer, inner;
	struct kvmfault_memory memory = { 0 }, other = { 0 };
	struct kvmfault__span span = { .memory = &memory };

	busy_seat = seat;
	is_busy = 1;
	ck_assert(!kvmfault__within(busy, &is_busy));
	kvmfault__enter(&outer, seat, NULL);
	kvmfault__enter(&inner, NULL, &other);
	ck_assert(kvmfault__within(busy, &is_busy));
	ck_assert(kvmfault__within_memory(&other, seat));
	ck_assert(!kvmfault__within_memory(&memory, NULL));
	atomic_store(&seat->span, &span);
	ck_assert(kvmfault__within_memory(&memory, NULL));
	ck_assert(!kvmfault__within_memory(&memory, seat));
	atomic_store(&seat->span, NULL);
	kvmfault__exit(&inner);
	ck_assert(!kvmfault__within_memory(&other, NULL));
	kvmfault__exit(&outer);
	ck_assert(!kvmfault__within(busy, &is_busy));
}

static void *leave_soon(void *arg)
{
	struct kvmfault__seat *mine = arg;

	while (!atomic_load(&vm->drain.drainers))
		sched_yield();
	atomic_store(&is_busy, 0);
	if (mine == busy_seat)
		kvmfault__leave(mine);
	return NULL;
}

TEST(seat, waits_for_another)
{
	pthread_t thread;

	busy_seat = kvmfault__seat_take(vm);
	is_busy = 1;
	pthread_create(&thread, NULL, leave_soon, busy_seat);
	kvmfault__drain(vm, busy, &is_busy);
	ck_assert_int_eq(is_busy, 0);
	pthread_join(thread, NULL);
	kvmfault__seat_give(busy_seat);
}

/* ---- threads ---- */

static _Atomic(const void *) shared;
static atomic_bool stop;
static atomic_uint wrong, seen;

struct item {
	struct kvmfault__retired retired;
	uint64_t magic;
};

static void *reader(void *arg)
{
	struct kvmfault__seat *mine = kvmfault__seat_take(vm);

	(void)arg;
	while (!atomic_load(&stop)) {
		const struct item *item = kvmfault__hold(mine, KVMFAULT__HAZARD_MAPPINGS,
							 &shared);

		if (item->magic != 42)
			atomic_fetch_add(&wrong, 1);
		kvmfault__unhold(mine, KVMFAULT__HAZARD_MAPPINGS);
		atomic_fetch_add(&seen, 1);
	}
	kvmfault__seat_give(mine);
	return NULL;
}

static struct item *new_magic(void)
{
	struct item *item = kvmfault__sys_alloc(sizeof(*item), 0);

	item->magic = 42;
	return item;
}

TEST(seat, read_while_it_is_replaced)
{
	pthread_t thread[THREADS];
	unsigned int i;

	atomic_store(&shared, new_magic());
	for (i = 0; i < THREADS; i++)
		pthread_create(&thread[i], NULL, reader, NULL);
	for (i = 0; i < 2000 || atomic_load(&seen) < 2000; i++) {
		const struct item *old = atomic_exchange(&shared, new_magic());

		retire((void *)(uintptr_t)old);
	}
	atomic_store(&stop, true);
	for (i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	ck_assert_uint_eq(wrong, 0);
	retire((void *)(uintptr_t)atomic_exchange(&shared, NULL));
}

int main(void)
{
	return run_suite("seat");
}
