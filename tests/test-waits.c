/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Waits, on a clock that stands still: who waits goes on because it is woken,
 * or because of a signal, and not because time passes.
 */

#include "bed.h"
#include "still.h"

static void up(void)
{
	bed_up();
	still_clock();
}

struct waiter {
	pthread_t thread;
	int result;
	bool discards;
};

static struct waiter waiters[3];
#define WAITERS 3

static void *wait_for_page(void *arg)
{
	struct waiter *waiter = arg;

	waiter->result = waiter->discards ?
		kvmfault_discard(bed.vm, 0, BED_GPA, PAGE) :
		kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false);
	return NULL;
}

static void start_waiters(void)
{
	size_t i;

	for (i = 0; i < WAITERS; i++)
		ck_assert_int_eq(pthread_create(&waiters[i].thread, NULL,
						wait_for_page, &waiters[i]),
				 0);
	still_until(WAITERS);
}

static void join_waiters(int result)
{
	size_t i;

	for (i = 0; i < WAITERS; i++) {
		pthread_join(waiters[i].thread, NULL);
		ck_assert_int_eq(waiters[i].result, result);
	}
}

TEST_GROUP(waits, up, NULL);

/* Others want the page while it is fetched: one fetch, and all go on. */
TEST(waits, a_fetch_that_ends_wakes)
{
	bed.during_read = start_waiters;
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false), 0);
	join_waiters(0);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(bed_stats().fetched, 1);
	ck_assert_uint_ge(bed_stats().waited, WAITERS);
	bed_down();
}

/* So does one that came for its neighbour. */
TEST(waits, a_window_that_comes_wakes)
{
	bed.memory->window = KVMFAULT_WINDOW_FIXED;
	bed.memory->window_pages = 4;
	bed.during_read = start_waiters;
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA + PAGE, PAGE,
					 false), 0);
	join_waiters(0);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(bed_stats().fetched, 4);
	bed_down();
}

/* It fails: each waiter tries for itself, and says what it got. */
TEST(waits, a_fetch_that_fails_wakes)
{
	bed.source_result = -EIO;
	bed.during_read = start_waiters;
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false),
			 -EIO);
	join_waiters(-EIO);
	ck_assert_uint_eq(bed.reads, 1 + WAITERS);
	ck_assert_int_eq(bed_state(0), KVMFAULT__ABSENT);
	bed_down();
}

/* A discard waits too, and then the page is gone. */
TEST(waits, a_discard_is_woken)
{
	waiters[1].discards = true;
	bed.during_read = start_waiters;
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false), 0);
	join_waiters(0);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert(!bed_has(0, bed_byte(0)));
	bed_down();
}

static void interrupt_waiters(void)
{
	start_waiters();
	still_signal();
	join_waiters(-EINTR);
}

/* A signal ends the waits while the fetch goes on; nothing is lost. */
TEST(waits, a_signal_ends_waits)
{
	bed.during_read = interrupt_waiters;
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false), 0);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert(bed_has(0, bed_byte(0)));
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false), 0);
	ck_assert_uint_eq(bed.reads, 1);
	bed_down();
}

static void *handle_exit(void *arg)
{
	struct waiter *waiter = arg;

	waiter->result = (int)bed_exit(BED_GPA, 0);
	return NULL;
}

static void run_vcpu_into_it(void)
{
	ck_assert_int_eq(pthread_create(&waiters[0].thread, NULL, handle_exit,
					&waiters[0]), 0);
	still_until(1);
	still_signal();
	pthread_join(waiters[0].thread, NULL);
}

/* The same for a vCPU: INTERRUPTED, and the next time it is there. */
TEST(waits, a_signal_ends_a_vcpus_wait)
{
	bed.during_read = run_vcpu_into_it;
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false), 0);
	ck_assert_int_eq(waiters[0].result, KVMFAULT_ACTION_INTERRUPTED);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.reads, 1);
	bed_down();
}

static void remove_region(void)
{
	start_waiters();
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
}

/* The region goes while others wait in it: they are answered, the page is the
 * memory's, and who comes after finds nothing. */
TEST(waits, a_region_that_goes_under_waiters)
{
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = BED_GPA,
		.length = BED_PAGES * PAGE,
		.memory = bed.memory,
	};

	bed.during_read = remove_region;
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false), 0);
	join_waiters(0);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false),
			 -ENXIO);
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false), 0);
	ck_assert_uint_eq(bed.reads, 1);
	bed_down();
}

int main(void)
{
	return run_suite("waits");
}
