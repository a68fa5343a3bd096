/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * fetch.c: a source that answers later, at once, twice, never, or with an
 * error, while everybody else goes on.
 */

#include <string.h>

#include "bed.h"

#define ASKED 64

/* What the source was asked for, in order. */
static struct asked {
	struct kvmfault_fetch *fetch;
	uint64_t offset;
	void *buffer;
	size_t length;
	unsigned int cancelled;
} asked[ASKED];
static _Atomic unsigned int asks;
static int submit_result;		/* what submit returns */
static bool at_once;			/* answers before submit returns, */
static int with_error;			/* with that */
static bool ends_when_cancelled;
static bool racing;			/* nobody looks who is cancelled */
static void (*before_submit)(void);	/* before it notes what it is asked */
static void (*when_settled)(void);
static unsigned int settled;

static void answer_with(unsigned int i, int error)
{
	uint64_t at;

	for (at = 0; at < asked[i].length; at += PAGE)
		memset((char *)asked[i].buffer + at,
		       bed_byte((asked[i].offset + at) / PAGE), PAGE);
	kvmfault_fetch_done(asked[i].fetch, error);
}

static void answer(unsigned int i)
{
	answer_with(i, 0);
}

static int submit(void *data, struct kvmfault_fetch *fetch, uint64_t offset,
		  void *buffer, size_t length)
{
	unsigned int i;

	(void)data;
	if (before_submit)
		before_submit();
	if (submit_result)
		return submit_result;
	i = atomic_load(&asks) % ASKED;
	asked[i] = (struct asked){ fetch, offset, buffer, length, 0 };
	atomic_fetch_add(&asks, 1);
	if (at_once)
		answer_with(i, with_error);
	return 0;
}

static void cancel(void *data, struct kvmfault_fetch *fetch)
{
	unsigned int i;

	(void)data;
	if (racing)
		return;
	for (i = asks; i--;)
		if (asked[i].fetch == fetch)
			break;
	ck_assert_uint_lt(i, asks);	/* it knows what it was asked for */
	asked[i].cancelled++;
	if (ends_when_cancelled)
		kvmfault_fetch_done(fetch, -ECANCELED);
}

static void on_settled(void *data, struct kvmfault_memory *memory,
		       uint64_t offset, uint64_t length)
{
	ck_assert_ptr_eq(data, &settled);
	ck_assert_ptr_eq(memory, bed.memory);
	ck_assert_uint_eq(offset % PAGE, 0);
	ck_assert_uint_eq(length, PAGE);
	settled++;
	if (when_settled)
		when_settled();
}

static struct kvmfault_source async_source(void)
{
	return (struct kvmfault_source){
		.size = sizeof(struct kvmfault_source),
		.name = "later", .submit = submit, .cancel = cancel,
		.deadline_ms = 0,
	};
}

static void begin(void)
{
	bed_vm();
	bed.source = async_source();
	bed.vm->ops.page_ready = on_settled;
	bed.vm->options.data = &settled;
	bed.vm->options.fetches = 4;
}

static void up(void)
{
	begin();
	bed_add();
}

/* A vCPU that is told PENDING. */
static void up_no_wait(void)
{
	up();
	bed.vcpu->seat->no_wait = true;
}

static enum kvmfault_action fault(uint64_t page)
{
	return bed_exit(BED_GPA + page * PAGE, 0);
}

static const struct kvmfault_result *result(void)
{
	return kvmfault_vcpu_result(bed.vcpu);
}

static struct kvmfault__answer message(uint64_t page)
{
	return bed_resolve(KVMFAULT_KIND_UFFD, page, true);
}

/* ---- one fetch ---- */

TEST_GROUP(pending, up_no_wait, bed_down);

TEST(pending, answers_at_once)
{
	at_once = true;
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_RETRY);
	ck_assert_str_eq(result()->resolver, "async");
	ck_assert_uint_eq(asks, 1);
	ck_assert_uint_eq(asked[0].offset, 3 * PAGE);
	ck_assert_uint_eq(asked[0].length, PAGE);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_uint_eq(bed_stats().fetched, 1);
	ck_assert_uint_eq(bed_stats().waited, 0);
	ck_assert_uint_eq(bed_stats().resolver[1], 1);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_FETCH], 1);
}

/* And nobody is told to wait for it, or asks again and again. */
TEST(pending, fails_at_once)
{
	at_once = true;
	with_error = -EIO;
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(result()->error, -EIO);
	ck_assert_uint_eq(asks, 1);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

TEST(pending, told_to_wait)
{
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	ck_assert_int_eq(bed_state(3), KVMFAULT__FETCHING);
	ck_assert_uint_eq(settled, 0);
	/* It may come again, and again. */
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	ck_assert_uint_eq(asks, 1);
	answer(0);
	ck_assert_uint_eq(settled, 1);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_RETRY);
	/* Nobody is pending any more: nobody is told. */
	fault(4);
	bed_other();
	fault(3);
	settled = 0;
	answer(1);
	ck_assert_uint_eq(settled, 0);
}

TEST(pending, told_that_it_failed)
{
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	answer_with(0, -EIO);
	ck_assert_uint_eq(settled, 1);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(result()->error, -EIO);
	/* Said once: the next one asks again. */
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	ck_assert_uint_eq(asks, 2);
	/* And what failed on another page is not this one's. */
	answer_with(1, -EIO);
	ck_assert_int_eq(fault(4), KVMFAULT_ACTION_PENDING);
	answer(2);
}

/* Each page's own, whichever is touched first. */
TEST(pending, told_of_each_that_failed)
{
	unsigned int n;

	for (n = 0; n < 3; n++)
		ck_assert_int_eq(fault(3 + n), KVMFAULT_ACTION_PENDING);
	answer_with(1, -EIO);
	answer_with(0, -EIO);
	answer_with(2, -EIO);
	for (n = 0; n < 3; n++)
		ck_assert_int_eq(fault(3 + n), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_uint_eq(asks, 3);
}

/* A failure is forgotten when the page comes, whoever brings it... */
TEST(pending, failed_and_has_come_since)
{
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	answer_with(0, -EIO);
	at_once = true;
	ck_assert_int_eq(message(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA + 3 * PAGE, PAGE),
			 0);
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
}

/* ... and nobody is told of another one's, in whose place he is. */
TEST(pending, failed_for_who_has_gone)
{
	struct kvmfault__seat *seat = bed.vcpu->seat;

	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	answer_with(0, -EIO);
	kvmfault__seat_give(seat);
	ck_assert_ptr_eq(kvmfault__seat_take(bed.vm), seat);
	seat->vcpu = bed.vcpu;
	seat->no_wait = true;
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	answer(1);
}

TEST(pending, answers_that_are_not_heard)
{
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	kvmfault_fetch_done(NULL, 0);
	answer(0);
	kvmfault_fetch_done(asked[0].fetch, -EIO);
	kvmfault_fetch_done(asked[0].fetch, 0);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_uint_eq(bed_stats().fetched, 1);
	/* A count is no answer. */
	ck_assert_int_eq(fault(4), KVMFAULT_ACTION_PENDING);
	answer_with(1, (int)PAGE);
	ck_assert_int_eq(bed_state(4), KVMFAULT__ABSENT);
	fault(4);
	ck_assert_int_eq(result()->error, -EIO);
}

TEST(pending, not_begun)
{
	submit_result = -EIO;
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(result()->error, -EIO);
	ck_assert_str_eq(result()->resolver, "async");
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	submit_result = 5;
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->error, -EIO);
	submit_result = -EAGAIN;
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	submit_result = 0;
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	answer(0);
	ck_assert(bed_has(3, bed_byte(3)));
}

TEST(pending, kernel_is_not_ready)
{
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	fake_push(FAKE_IOCTL, -EAGAIN);
	answer(0);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	answer(1);
	ck_assert(bed_has(3, bed_byte(3)));
}

TEST(pending, discarded_meanwhile)
{
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	kvmfault__page_discard(bed.memory, 3);
	answer(0);
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
	ck_assert(!fake_present(bed.fd, 3 * PAGE));
}

TEST(pending, lost_at_the_source)
{
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	answer_with(0, -EHWPOISON);
	ck_assert_int_eq(bed_state(3), KVMFAULT__POISONED);
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_HWPOISON);
}

TEST(pending, region_removed_meanwhile)
{
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	answer(0);
	ck_assert(bed_has(3, bed_byte(3)));
}

TEST(pending, mmio_is_unfinished)
{
	ck_assert_int_eq(bed_mmio(BED_GPA + 3 * PAGE, 8, false),
			 KVMFAULT_ACTION_PENDING_UNFINISHED);
	ck_assert(result()->unfinished);
	answer(0);
	ck_assert_int_eq(bed_mmio(BED_GPA + 3 * PAGE, 8, false),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed.run->mmio.data[0], bed_byte(3));
}

TEST(pending, cancel_what_is_not_there)
{
	ck_assert_int_eq(kvmfault_cancel_fetches(bed.vm, 0, BED_GPA, PAGE), 0);
	ck_assert_int_eq(kvmfault_cancel_fetches(NULL, 0, BED_GPA, PAGE), -EINVAL);
	ck_assert_int_eq(kvmfault_cancel_fetches(bed.vm, 0, BED_GPA, 0), -EINVAL);
	ck_assert_int_eq(kvmfault_cancel_fetches(bed.vm, 0, -1ULL, 2), -EINVAL);
	ck_assert_int_eq(kvmfault_cancel_fetches(bed.vm, 0, BED_GPA - PAGE, PAGE),
			 -ENXIO);
	bed_take_seats();
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(kvmfault_cancel_fetches(bed.vm, 0, BED_GPA, PAGE), -ENOMEM);
	bed_give_seats();
}

/* ---- others, meanwhile ---- */

static void *waiter(void *arg)
{
	*(int *)arg = kvmfault_ensure(bed.vm, 0, BED_GPA + 3 * PAGE, 1, false);
	return NULL;
}

static void await(unsigned int n)
{
	while (atomic_load(&asks) < n)
		sched_yield();
}

TEST_GROUP(wait, up, bed_down);

TEST(wait, everybody_waits_for_one_fetch)
{
	int results[3] = { 1, 1, 1 };
	pthread_t thread[3];
	int i;

	for (i = 0; i < 3; i++)
		pthread_create(&thread[i], NULL, waiter, &results[i]);
	await(1);
	ck_assert_int_eq(message(3).action, KVMFAULT_ACTION_RETRY);
	answer(0);
	for (i = 0; i < 3; i++) {
		pthread_join(thread[i], NULL);
		ck_assert_int_eq(results[i], 0);
	}
	ck_assert_uint_eq(asks, 1);
	/* The message left its mark: the mappings were woken. */
	ck_assert_uint_ge(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
}

TEST(wait, who_has_asked_is_told_the_error)
{
	pthread_t thread;
	int got = 1;

	pthread_create(&thread, NULL, waiter, &got);
	await(1);
	answer_with(0, -EPERM);
	pthread_join(thread, NULL);
	ck_assert_int_eq(got, -EPERM);
	ck_assert_uint_eq(asks, 1);
}

TEST(wait, all_fetches_are_in_flight)
{
	pthread_t thread;
	unsigned int i;
	int got = 1;

	for (i = 0; i < 4; i++)
		ck_assert(message(10 + i).detached);
	/* A message is parked, a thread waits. */
	ck_assert_int_eq(message(5).error, -EAGAIN);
	pthread_create(&thread, NULL, waiter, &got);
	while (!fake_count(FAKE_FUTEX_WAIT, FAKE_ANY))
		sched_yield();
	ck_assert_uint_eq(asks, 4);
	answer(2);
	await(5);
	answer(4);
	pthread_join(thread, NULL);
	ck_assert_int_eq(got, 0);
	answer(0);
	answer(1);
	answer(3);
	for (i = 0; i < 4; i++)
		ck_assert(bed_has(10 + i, bed_byte(10 + i)));
}

static void kick(void)
{
	bed.run->immediate_exit = 1;
}

static bool kick_in_wait(struct fake_call *call)
{
	(void)call;
	kick();
	return false;
}

TEST(wait, wait_is_interrupted)
{
	fake_on(FAKE_FUTEX_WAIT, kick_in_wait);
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_INTERRUPTED);
	bed.run->immediate_exit = 0;
	fake_on(FAKE_FUTEX_WAIT, NULL);
	/* The fetch goes on without it. */
	answer(0);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(asks, 1);
}

/* ---- sleepers ---- */

TEST(wait, sleeper_is_served)
{
	struct kvmfault__answer a = message(3);

	ck_assert(a.detached);
	ck_assert_int_eq(a.action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed_stats().repeated, 0);
	answer(0);
	ck_assert(bed_has(3, bed_byte(3)));
	/* Through the memslots' mapping: the kernel woke it. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 0);
}

TEST(wait, sleeper_whose_fetch_fails)
{
	unsigned int i;

	bed.vm->options.source_retries = 2;
	bed_service(0);
	bed_touch(3, false);
	bed_dispatch();
	for (i = 0; i < 4; i++) {
		ck_assert_uint_eq(asks, i + 1);
		ck_assert_uint_eq(bed.unresolved, i >= 3);
		answer_with(i, -EIO);
		ck_assert_uint_eq(bed_stats().deferred, i + 1);
		/* Not at once. */
		bed_dispatch();
		ck_assert_uint_eq(asks, i + 1);
		fake_advance(2000000000);
		bed_dispatch();
	}
	ck_assert_int_eq(bed.reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(bed.error, -EIO);
	answer(4);
	ck_assert(bed_has(3, bed_byte(3)));
}

TEST(wait, sleeper_without_a_service)
{
	ck_assert(message(3).detached);
	answer_with(0, -EIO);
	/* Awake it faults again, for the next service. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

static int free_result = -1;

static void on_unresolved(void *data, const struct kvmfault_sleeper *sleeper)
{
	(void)data;
	(void)sleeper;
	free_result = kvmfault_service_free(bed.service);
	bed.service = NULL;
}

TEST(wait, service_freed_by_who_is_told)
{
	bed.vm->ops.unresolved = on_unresolved;
	bed_service(0);
	bed_touch(3, false);
	bed_dispatch();
	answer_with(0, -EIO);
	/* It is nothing that the callback would wait for. */
	ck_assert_int_eq(free_result, 0);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

/* ---- windows ---- */

static void up_window(void)
{
	begin();
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = 4 * PAGE;
	bed_add();
	bed.vcpu->seat->no_wait = true;
}

TEST_GROUP(window, up_window, bed_down);

TEST(window, run_of_pages)
{
	ck_assert_int_eq(fault(6), KVMFAULT_ACTION_PENDING);
	ck_assert_uint_eq(asked[0].offset, 4 * PAGE);
	ck_assert_uint_eq(asked[0].length, 4 * PAGE);
	answer(0);
	ck_assert_uint_eq(bed_stats().fetched, 4);
	ck_assert(bed_has(4, bed_byte(4)));
	ck_assert(bed_has(7, bed_byte(7)));
	ck_assert_int_eq(fault(6), KVMFAULT_ACTION_RETRY);
}

TEST(window, neighbours_trouble)
{
	ck_assert_int_eq(fault(6), KVMFAULT_ACTION_PENDING);
	answer_with(0, -EIO);
	/* Once more, alone. */
	ck_assert_uint_eq(asks, 2);
	ck_assert_uint_eq(asked[1].offset, 6 * PAGE);
	ck_assert_uint_eq(asked[1].length, PAGE);
	ck_assert_int_eq(bed_state(4), KVMFAULT__ABSENT);
	ck_assert_int_eq(bed_state(6), KVMFAULT__FETCHING);
	answer(1);
	ck_assert(bed_has(6, bed_byte(6)));
}

TEST(window, alone_is_not_begun)
{
	ck_assert_int_eq(fault(6), KVMFAULT_ACTION_PENDING);
	submit_result = -EPERM;
	answer_with(0, -EIO);
	ck_assert_int_eq(bed_state(6), KVMFAULT__ABSENT);
	submit_result = 0;
	ck_assert_int_eq(fault(6), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->error, -EPERM);
}

/* ---- minor faults ---- */

static void up_minor(void)
{
	begin();
	bed.minor = true;
	bed_add();
	bed.vcpu->seat->no_wait = true;
}

TEST_GROUP(minor, up_minor, bed_down);

TEST(minor, read_to_where_it_stays)
{
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	ck_assert_ptr_eq(asked[0].buffer, bed.memory->fill + 3 * PAGE);
	answer(0);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_CONTINUE), 1);
	fake_push(FAKE_MADVISE, -EFAULT);
	ck_assert_int_eq(fault(4), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->error, -ENOMEM);
	ck_assert_uint_eq(asks, 1);
}

/* ---- the end of patience ---- */

TEST(pending, cancelled)
{
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	ck_assert_int_eq(fault(5), KVMFAULT_ACTION_PENDING);
	ck_assert_int_eq(kvmfault_cancel_fetches(bed.vm, 0, BED_GPA + 3 * PAGE, PAGE),
			 0);
	ck_assert_uint_eq(asked[0].cancelled, 1);
	ck_assert_uint_eq(asked[1].cancelled, 0);
	/* Once is enough. */
	ck_assert_int_eq(kvmfault_cancel_fetches(bed.vm, 0, BED_GPA, 4 * PAGE), 0);
	ck_assert_uint_eq(asked[0].cancelled, 1);
	answer_with(0, -ECANCELED);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->error, -ECANCELED);
	answer(1);
}

TEST(pending, cancelled_and_answered_all_the_same)
{
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	ck_assert_int_eq(kvmfault_cancel_fetches(bed.vm, 0, BED_GPA, 16 * PAGE), 0);
	answer(0);
	ck_assert(bed_has(3, bed_byte(3)));
}

TEST(pending, ended_within_cancel)
{
	ends_when_cancelled = true;
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	ck_assert_int_eq(kvmfault_cancel_fetches(bed.vm, 0, BED_GPA, 16 * PAGE), 0);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	/* The fetch can be used again. */
	ck_assert_int_eq(fault(4), KVMFAULT_ACTION_PENDING);
	answer(1);
	ck_assert(bed_has(4, bed_byte(4)));
}

static void cancel_all(void)
{
	ck_assert_int_eq(kvmfault_cancel_fetches(bed.vm, 0, BED_GPA, 16 * PAGE), 0);
}

/* The source does not have it yet: it is told when it has. */
TEST(pending, cancelled_while_it_is_submitted)
{
	before_submit = cancel_all;
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	ck_assert_uint_eq(asked[0].cancelled, 1);
	cancel_all();
	ck_assert_uint_eq(asked[0].cancelled, 1);
	answer_with(0, -ECANCELED);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_UNRESOLVED);
	/* It ends at once; or was answered, and there is nothing to tell. */
	ends_when_cancelled = true;
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->error, -ECANCELED);
	ck_assert_uint_eq(asked[1].cancelled, 1);
	at_once = true;
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(asked[2].cancelled, 0);
	ck_assert(bed_has(3, bed_byte(3)));
	submit_result = -EIO;
	ck_assert_int_eq(fault(4), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->error, -EIO);
	ck_assert_uint_eq(asks, 3);
}

static void *answer_who_waits(void *arg)
{
	while (!bed_stats().waited)
		sched_yield();
	answer(1);
	return arg;
}

/* The thread that said that a window is not to be had, and so has asked for the
 * page alone, may wait for it. */
TEST(window, who_asked_for_the_page_alone_waits_for_it)
{
	pthread_t thread;

	ck_assert_int_eq(fault(6), KVMFAULT_ACTION_PENDING);
	answer_with(0, -EIO);
	ck_assert_uint_eq(asks, 2);
	pthread_create(&thread, NULL, answer_who_waits, NULL);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA + 6 * PAGE, PAGE,
					 false), 0);
	pthread_join(thread, NULL);
	ck_assert(bed_has(6, bed_byte(6)));
}

TEST(window, window_is_not_asked_for_again)
{
	ends_when_cancelled = true;
	ck_assert_int_eq(fault(6), KVMFAULT_ACTION_PENDING);
	ck_assert_int_eq(kvmfault_cancel_fetches(bed.vm, 0, BED_GPA, 16 * PAGE), 0);
	ck_assert_uint_eq(asks, 1);
	ck_assert_int_eq(bed_state(6), KVMFAULT__ABSENT);
}

TEST(pending, memory_is_freed)
{
	ends_when_cancelled = true;
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	ck_assert_int_eq(kvmfault_memory_free(bed.memory), 0);
	bed.memory = NULL;
	ck_assert_uint_eq(asked[0].cancelled, 1);
}

static void *answer_soon(void *arg)
{
	(void)arg;
	while (!atomic_load(&bed.vm->drain.drainers))
		sched_yield();
	answer(0);
	return NULL;
}

TEST(pending, memory_is_freed_and_the_source_goes_on)
{
	pthread_t thread;

	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	pthread_create(&thread, NULL, answer_soon, NULL);
	ck_assert_int_eq(kvmfault_memory_free(bed.memory), 0);
	bed.memory = NULL;
	pthread_join(thread, NULL);
	ck_assert_uint_eq(bed_stats().fetched, 1);
}

static void up_deadline(void)
{
	begin();
	bed.source.deadline_ms = 50;
	bed_add();
	bed.vcpu->seat->no_wait = true;
	bed_service(0);
}

static void pass_deadline(void)
{
	fake_advance(51000000);
	bed_dispatch();
}

TEST_GROUP(deadline, up_deadline, bed_down);

TEST(deadline, deadline)
{
	ends_when_cancelled = true;
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	fake_advance(20000000);
	bed_dispatch();
	ck_assert_int_eq(fault(4), KVMFAULT_ACTION_PENDING);
	ck_assert_uint_eq(asked[0].cancelled, 0);
	fake_advance(31000000);
	bed_dispatch();
	ck_assert_uint_eq(asked[0].cancelled, 1);
	ck_assert_uint_eq(asked[1].cancelled, 0);
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->error, -ECANCELED);
	answer(1);
	ck_assert(bed_has(4, bed_byte(4)));
	fake_advance(100000000);
	bed_dispatch();
	ck_assert_uint_eq(asked[1].cancelled, 0);
}

/* The deadline comes while the source is just asked, */
TEST(deadline, deadline_while_it_is_submitted)
{
	before_submit = pass_deadline;
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_PENDING);
	fake_advance(1);
	bed_dispatch();
	ck_assert_uint_eq(asked[0].cancelled, 1);
	answer_with(0, -ECANCELED);
}

/* or while it has just failed for a window: what is asked for in its place does
 * not last for ever. */
TEST(deadline, deadline_of_a_page_asked_for_alone)
{
	bed.memory->window = KVMFAULT_WINDOW_FIXED;
	bed.memory->window_pages = 4;
	ck_assert_int_eq(fault(6), KVMFAULT_ACTION_PENDING);
	ck_assert_uint_eq(asked[0].length, 4 * PAGE);
	when_settled = pass_deadline;
	answer_with(0, -EIO);
	when_settled = NULL;
	ck_assert_uint_eq(asks, 2);
	fake_advance(1);
	bed_dispatch();
	ck_assert_uint_eq(asked[1].cancelled, 1);
	answer_with(1, -ECANCELED);
	ck_assert_int_eq(fault(6), KVMFAULT_ACTION_UNRESOLVED);
}

/* A window that was cancelled is not asked for page by page: the data of which page
 * is lost nobody knows. */
TEST(deadline, deadline_of_a_window_with_a_lost_page)
{
	bed.memory->window = KVMFAULT_WINDOW_FIXED;
	bed.memory->window_pages = 4;
	ck_assert_int_eq(fault(6), KVMFAULT_ACTION_PENDING);
	pass_deadline();
	ck_assert_uint_eq(asked[0].cancelled, 1);
	answer_with(0, -EHWPOISON);
	ck_assert_int_eq(bed_state(6), KVMFAULT__ABSENT);
	ck_assert_int_eq(fault(6), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->error, -EIO);
	ck_assert_int_eq(fault(6), KVMFAULT_ACTION_PENDING);
	answer(1);
	ck_assert(bed_has(6, bed_byte(6)));
}

/* ---- set-up ---- */

TEST_GROUP(new, NULL, bed_down);

TEST(new, without_memory)
{
	unsigned int nth;

	for (nth = 1; nth < 40; nth++) {
		struct kvmfault_memory *memory;
		struct kvmfault_source source = async_source();
		struct kvmfault_memory_options options = {
			.size = sizeof(options), .source = &source,
			.length = BED_PAGES * PAGE,
		};
		void *host;
		int err;

		begin();
		options.fd = fake_memory(options.length, 0, &host);
		options.host = host;
		fake_fail_nth(nth);
		err = kvmfault_memory_adopt(bed.vm, &options, &memory);
		if (!fake_failed()) {
			ck_assert_int_eq(err, 0);
			ck_assert_int_eq(kvmfault_memory_free(memory), 0);
			break;
		}
		/* Some calls may fail, and it goes on. */
		if (!err)
			ck_assert_int_eq(kvmfault_memory_free(memory), 0);
		bed_down();
	}
	ck_assert_uint_gt(nth, 8);
	ck_assert_uint_lt(nth, 40);
}

/* ---- a resolver that would read at once ---- */

static int read_at_once(void *data, struct kvmfault_request *request)
{
	const void *bytes;

	if (data)
		return kvmfault_request_data(request, &bytes);
	return kvmfault_request_read(request, request->buffer);
}

TEST_EACH(new, there_is_nothing_to_read, 2)
{
	struct kvmfault_resolver resolver = {
		.size = sizeof(resolver), .name = "own",
		.resolve = read_at_once,
		.data = _i ? &resolver : NULL,
	};

	begin();
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &resolver), 0);
	bed_add();
	ck_assert_int_eq(fault(3), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->error, -EOPNOTSUPP);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

/* ---- a race ---- */

#define ROUNDS 2000

static void *answerer(void *arg)
{
	unsigned int i;

	(void)arg;
	for (i = 0; i < ROUNDS; i++) {
		await(i + 1);
		kvmfault_fetch_done(asked[i % ASKED].fetch,
				    i % 3 ? -EIO : 0);
	}
	return NULL;
}

static void *canceller(void *arg)
{
	while (atomic_load((atomic_bool *)arg))
		kvmfault_cancel_fetches(bed.vm, 0, BED_GPA, BED_PAGES * PAGE);
	return NULL;
}

TEST(wait, answers_race_cancels)
{
	atomic_bool go = true;
	pthread_t thread[2];
	unsigned int i;

	racing = true;
	pthread_create(&thread[0], NULL, answerer, NULL);
	pthread_create(&thread[1], NULL, canceller, &go);
	for (i = 0; i < ROUNDS; i++) {
		int err = kvmfault_ensure(bed.vm, 0, BED_GPA + 3 * PAGE, 1,
					  false);

		ck_assert_int_eq(err, i % 3 ? -EIO : 0);
		if (!err)
			ck_assert_int_eq(kvmfault__page_change(
				bed.memory, 3, KVMFAULT__PRESENT,
				KVMFAULT__ABSENT), KVMFAULT__PRESENT);
		kvmfault__memory_punch(bed.memory, 3 * PAGE, PAGE);
	}
	atomic_store(&go, false);
	pthread_join(thread[0], NULL);
	pthread_join(thread[1], NULL);
	ck_assert_uint_eq(asks, ROUNDS);
}

int main(void)
{
	return run_suite("fetch");
}
