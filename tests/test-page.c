/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * page.c: the states of pages, with real threads and real futexes: exactly one
 * has a page, who waits is woken or interrupted, neighbours do not notice.
 */

#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "lib/setup/setup.h"
#include "unit.h"

#define PAGES 1000ULL
#define THREADS 4

static struct kvmfault_vm *vm;
static struct kvmfault_memory memory;
static struct kvmfault__seat *seat;

static void up(void)
{
	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	memory = (struct kvmfault_memory){
		.vm = vm, .page_shift = 12, .length = PAGES * PAGE,
	};
	ck_assert_int_eq(kvmfault__pages_new(&memory), 0);
	seat = kvmfault__seat_take(vm);
}

static void down(void)
{
	kvmfault__seat_give(seat);
	kvmfault__pages_free(&memory);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
}

static enum kvmfault__state state(uint64_t page)
{
	return kvmfault__page_state(&memory, page);
}

TEST_GROUP(state, up, down);

TEST(state, all_begin_absent)
{
	uint64_t page;

	for (page = 0; page < PAGES; page++)
		ck_assert_int_eq(state(page), KVMFAULT__ABSENT);
	ck_assert(kvmfault__pages_absent(&memory));
}

TEST(state, change)
{
	ck_assert_int_eq(kvmfault__page_change(&memory, 5, KVMFAULT__ABSENT,
					       KVMFAULT__PRESENT),
			 KVMFAULT__ABSENT);
	ck_assert_int_eq(state(5), KVMFAULT__PRESENT);
	/* Not from what it is not. */
	ck_assert_int_eq(kvmfault__page_change(&memory, 5, KVMFAULT__ABSENT,
					       KVMFAULT__DISCARDED),
			 KVMFAULT__PRESENT);
	ck_assert_int_eq(state(5), KVMFAULT__PRESENT);
}

TEST(state, neighbours_are_untouched)
{
	uint64_t page, other;
	int to;

	for (page = 0; page < 70; page++) {
		for (to = KVMFAULT__FETCHING; to <= KVMFAULT__DISCARDED; to++) {
			kvmfault__page_change(&memory, page, state(page),
					      (enum kvmfault__state)to);
			ck_assert_int_eq(state(page), to);
			for (other = 0; other < 140; other++)
				if (other != page)
					ck_assert_int_eq(state(other),
							 KVMFAULT__ABSENT);
		}
		kvmfault__page_change(&memory, page, KVMFAULT__DISCARDED,
				      KVMFAULT__ABSENT);
	}
}

TEST(state, last_page)
{
	kvmfault__page_change(&memory, PAGES - 1, KVMFAULT__ABSENT,
			      KVMFAULT__PRESENT);
	ck_assert_int_eq(state(PAGES - 1), KVMFAULT__PRESENT);
}

TEST(state, claim)
{
	/* absent, then its own; a sleeper is marked, nobody else is. */
	ck_assert_int_eq(kvmfault__page_claim(&memory, 1, false),
			 KVMFAULT__ABSENT);
	ck_assert_int_eq(state(1), KVMFAULT__FETCHING);
	ck_assert_int_eq(kvmfault__page_claim(&memory, 1, false),
			 KVMFAULT__FETCHING);
	ck_assert_int_eq(state(1), KVMFAULT__FETCHING);
	ck_assert_int_eq(kvmfault__page_claim(&memory, 1, true),
			 KVMFAULT__FETCHING);
	ck_assert_int_eq(state(1), KVMFAULT__FETCHING_WAITED);
	kvmfault__page_change(&memory, 2, KVMFAULT__ABSENT, KVMFAULT__DISCARDED);
	ck_assert_int_eq(kvmfault__page_claim(&memory, 2, true),
			 KVMFAULT__DISCARDED);
	ck_assert_int_eq(state(2), KVMFAULT__FETCHING);
	kvmfault__page_change(&memory, 3, KVMFAULT__ABSENT, KVMFAULT__PRESENT);
	ck_assert_int_eq(kvmfault__page_claim(&memory, 3, true),
			 KVMFAULT__PRESENT);
	ck_assert_int_eq(state(3), KVMFAULT__PRESENT);
	kvmfault__page_change(&memory, 4, KVMFAULT__ABSENT,
			      KVMFAULT__FETCHING_DISCARDED);
	ck_assert_int_eq(kvmfault__page_claim(&memory, 4, true),
			 KVMFAULT__FETCHING_DISCARDED);
	ck_assert_int_eq(state(4), KVMFAULT__FETCHING_DISCARDED);
}

TEST_EACH(state, remove_page, 6)
{
	static const enum kvmfault__state from[] = {
		KVMFAULT__ABSENT, KVMFAULT__PRESENT, KVMFAULT__DISCARDED,
		KVMFAULT__FETCHING, KVMFAULT__FETCHING_WAITED,
		KVMFAULT__FETCHING_DISCARDED,
	};

	kvmfault__page_change(&memory, 1, KVMFAULT__ABSENT, from[_i]);
	kvmfault__page_discard(&memory, 1);
	ck_assert_int_eq(state(1), _i < 3 ? KVMFAULT__DISCARDED :
					    KVMFAULT__FETCHING_DISCARDED);
}

TEST(state, absent_or_in_flight)
{
	uint64_t page;

	for (page = 0; page < PAGES; page++)
		kvmfault__page_change(&memory, page, KVMFAULT__ABSENT,
				      page % 2 ? KVMFAULT__PRESENT :
						 KVMFAULT__DISCARDED);
	ck_assert(!kvmfault__pages_absent(&memory));
	kvmfault__page_change(&memory, PAGES - 1, KVMFAULT__PRESENT,
			      KVMFAULT__FETCHING);
	ck_assert(kvmfault__pages_absent(&memory));
}

/* ---- threads ---- */

static pthread_barrier_t barrier;
static atomic_uint winners[PAGES];

static void *claim_all(void *arg)
{
	uint64_t page;

	(void)arg;
	pthread_barrier_wait(&barrier);
	for (page = 0; page < PAGES; page++)
		if (kvmfault__page_claim(&memory, page, false) ==
		    KVMFAULT__ABSENT)
			atomic_fetch_add(&winners[page], 1);
	return NULL;
}

TEST_GROUP(threads, up, down);

TEST(threads, exactly_one_has_it)
{
	pthread_t thread[THREADS];
	uint64_t page;
	size_t i;

	pthread_barrier_init(&barrier, NULL, THREADS);
	for (i = 0; i < THREADS; i++)
		pthread_create(&thread[i], NULL, claim_all, NULL);
	for (i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	for (page = 0; page < PAGES; page++) {
		ck_assert_uint_eq(winners[page], 1);
		ck_assert_int_eq(state(page), KVMFAULT__FETCHING);
	}
}

struct waiter {
	pthread_t thread;
	struct kvmfault__seat *seat;
	int result;
	atomic_bool ended;
};

static void *wait_for_page(void *arg)
{
	struct waiter *waiter = arg;

	waiter->result = kvmfault__page_wait(waiter->seat, &memory, 7);
	atomic_store(&waiter->ended, true);
	return NULL;
}

static uint32_t waiting(void)
{
	uint32_t n = 0;
	size_t i;

	for (i = 0; i < KVMFAULT__BUCKETS; i++)
		n += atomic_load(&vm->bucket[i].waiters);
	return n;
}

static void start(struct waiter *waiter)
{
	uint32_t before = waiting();

	waiter->seat = kvmfault__seat_take(vm);
	pthread_create(&waiter->thread, NULL, wait_for_page, waiter);
	while (waiting() == before && !atomic_load(&waiter->ended))
		sched_yield();
}

static int join(struct waiter *waiter)
{
	pthread_join(waiter->thread, NULL);
	kvmfault__seat_give(waiter->seat);
	return waiter->result;
}

TEST_EACH(threads, wait_and_wake, 3)
{
	static const enum kvmfault__state in_flight[] = {
		KVMFAULT__FETCHING, KVMFAULT__FETCHING_WAITED,
		KVMFAULT__FETCHING_DISCARDED,
	};
	struct waiter waiter[THREADS] = { 0 };
	size_t i;

	kvmfault__page_change(&memory, 7, KVMFAULT__ABSENT, in_flight[_i]);
	for (i = 0; i < THREADS; i++)
		start(&waiter[i]);
	for (i = 0; i < THREADS; i++)
		ck_assert(!atomic_load(&waiter[i].ended));
	kvmfault__page_change(&memory, 7, in_flight[_i], KVMFAULT__PRESENT);
	kvmfault__page_wake(&memory, 7);
	for (i = 0; i < THREADS; i++)
		ck_assert_int_eq(join(&waiter[i]), 0);
	ck_assert_uint_eq(waiting(), 0);
}

TEST(threads, nothing_to_wait_for)
{
	ck_assert_int_eq(kvmfault__page_wait(seat, &memory, 7), 0);
	kvmfault__page_change(&memory, 7, KVMFAULT__ABSENT, KVMFAULT__PRESENT);
	ck_assert_int_eq(kvmfault__page_wait(seat, &memory, 7), 0);
}

TEST(threads, immediate_exit_ends_a_wait)
{
	static uint8_t wanted;
	struct waiter waiter = { 0 };

	kvmfault__page_claim(&memory, 7, false);
	waiter.seat = kvmfault__seat_take(vm);
	waiter.seat->immediate_exit = &wanted;
	pthread_create(&waiter.thread, NULL, wait_for_page, &waiter);
	while (!waiting())
		sched_yield();
	__atomic_store_n(&wanted, 1, __ATOMIC_RELAXED);
	ck_assert_int_eq(join(&waiter), -EINTR);
	ck_assert_uint_eq(waiting(), 0);
}

static void handler(int number)
{
	(void)number;
}

TEST_EACH(threads, signal_ends_a_wait, 2)
{
	/* Also a handler that asks for restarts. */
	struct sigaction action = {
		.sa_handler = handler, .sa_flags = _i ? SA_RESTART : 0,
	};
	struct waiter waiter = { 0 };

	sigaction(SIGUSR1, &action, NULL);
	kvmfault__page_claim(&memory, 7, false);
	start(&waiter);
	while (!atomic_load(&waiter.ended)) {
		pthread_kill(waiter.thread, SIGUSR1);
		usleep(100);	/* it may not sleep yet */
	}
	ck_assert_int_eq(join(&waiter), -EINTR);
	ck_assert_int_eq(state(7), KVMFAULT__FETCHING);
}

TEST(threads, pause_is_interrupted)
{
	uint8_t wanted = 1;

	ck_assert_int_eq(kvmfault__pause(seat, 1), 0);
	seat->immediate_exit = &wanted;
	ck_assert_int_eq(kvmfault__pause(seat, 3600000000000ULL), -EINTR);
	wanted = 0;
	ck_assert_int_eq(kvmfault__pause(seat, 1), 0);
	seat->immediate_exit = NULL;
}

/* A run goes as far as it is alike, however it lies in the words. */
TEST_EACH(state, runs, 16)
{
	const uint64_t first = 5 + (uint64_t)_i, count = 40;
	uint64_t page, odd;

	for (odd = first; odd < first + count; odd++) {
		ck_assert_uint_eq(kvmfault__pages_change(&memory, first, count,
							 KVMFAULT__ABSENT,
							 KVMFAULT__FETCHING),
				  count);
		/* Not while somebody has it. */
		ck_assert_uint_eq(kvmfault__word_protect(&memory, odd, 1),
				  1ULL << kvmfault__page_shift(odd));
		ck_assert(!kvmfault__page_protected(&memory, odd));
		kvmfault__page_change(&memory, odd, KVMFAULT__FETCHING,
				      KVMFAULT__PRESENT);
		ck_assert_uint_eq(kvmfault__word_protect(&memory, odd, 1), 0);
		kvmfault__page_change(&memory, odd, KVMFAULT__PRESENT,
				      KVMFAULT__FETCHING_WAITED);
		ck_assert_uint_eq(kvmfault__pages_change(&memory, first, count,
							 KVMFAULT__FETCHING,
							 KVMFAULT__PRESENT),
				  odd - first);
		for (page = 0; page < first + count + 5; page++)
			ck_assert_int_eq(kvmfault__page_state(&memory, page),
					 page < first || page >= first + count ?
					 KVMFAULT__ABSENT : page < odd ?
					 KVMFAULT__PRESENT : page == odd ?
					 KVMFAULT__FETCHING_WAITED :
					 KVMFAULT__FETCHING);
		ck_assert(kvmfault__page_protected(&memory, odd));
		kvmfault__page_unprotect(&memory, odd);
		for (page = first; page < first + count; page++)
			kvmfault__page_change(&memory, page,
					      kvmfault__page_state(&memory,
								   page),
					      KVMFAULT__ABSENT);
	}
}

int main(void)
{
	return run_suite("page");
}
