/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The fault path makes nothing and holds no lock across a system call. The door
 * judges every call of every test; here they are counted by entrance, and each
 * rule is broken once, to see that the door notices.
 */

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "bed.h"
#include "noting.h"

#define SECOND 1000000000ULL

/* ---- counted ---- */

static void up(void)
{
	struct kvmfault_region region = { .size = sizeof(region) };

	bed_up();
	bed_service(0);
	/* From now on there is a seat for each call. */
	ck_assert_int_eq(kvmfault_region_find(bed.vm, 0, BED_GPA, &region), 0);
	fake_forget();
}

static void by_exit(void)
{
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
}

static void by_exits_that_go_on(void)
{
	while (bed_exit(BED_GPA, 0) == KVMFAULT_ACTION_RETRY)
		;
	ck_assert_uint_ge(fake_count(FAKE_FUTEX_WAIT, FAKE_ANY), 1);
	ck_assert_uint_ge(fake_count(FAKE_MADVISE, FAKE_ANY), 1);
}

static void by_an_exit_that_fails(void)
{
	bed.source_result = -EIO;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_UNRESOLVED);
	bed.source_result = 0;
	by_exit();
}

static void by_mmio(void)
{
	ck_assert_int_eq(bed_mmio(BED_GPA + PAGE - 4, 8, true),
			 KVMFAULT_ACTION_RETRY);
}

static void by_ensure(void)
{
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, BED_PAGES * PAGE,
					 true), 0);
}

static void by_discard(void)
{
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA, 2 * PAGE), 0);
	by_ensure();
}

static void dispatch(void)
{
	size_t i;

	for (i = 0; i < 10; i++)
		bed_dispatch();
}

static void by_message(void)
{
	bed_touch(0, true);
	bed_touch(0, false);	/* late: a wake */
	dispatch();
}

static void by_a_message_that_is_parked(void)
{
	bed.source_result = -EAGAIN;
	bed_touch(0, true);
	dispatch();
	bed.source_result = 0;
	fake_advance(10 * SECOND);
	dispatch();
	ck_assert_uint_eq(bed_stats().deferred, 1);
}

static void (*const entrances[])(void) = {
	by_exit, by_exits_that_go_on, by_an_exit_that_fails, by_mmio,
	by_ensure, by_discard, by_message, by_a_message_that_is_parked,
};
#define ENTRANCES ((int)(sizeof(entrances) / sizeof(*entrances)))

static size_t made(void)
{
	static const enum fake_name names[] = {
		FAKE_ALLOC, FAKE_FREE, FAKE_MMAP, FAKE_MUNMAP, FAKE_THREAD,
		FAKE_OPEN, FAKE_DUP, FAKE_EVENTFD, FAKE_TIMERFD,
	};
	size_t i, n = 0;

	for (i = 0; i < sizeof(names) / sizeof(*names); i++)
		n += fake_count(names[i], FAKE_ANY);
	return n;
}

TEST_GROUP(counted, up, bed_down);

TEST_EACH(counted, nothing_is_made, ENTRANCES)
{
	entrances[_i]();
	ck_assert_uint_ge(fake_count(FAKE_IOCTL, UFFDIO_COPY), 1);
	ck_assert_int_eq(bed_state(0), KVMFAULT__PRESENT);
	ck_assert_uint_eq(made(), 0);
}

/* Decoding makes no call at all, whatever the exit is. */
TEST(counted, decode_is_pure)
{
	static const int results[][2] = {
		{ 0, 0 }, { -1, EFAULT }, { -1, EHWPOISON }, { -1, EINTR },
		{ -1, EAGAIN }, { 7, 0 },
	};
	struct kvmfault_fault fault = { .size = sizeof(fault) };
	size_t i, name, calls = 0;

	for (i = 0; i < 6; i++)
		for (bed.run->exit_reason = 0; bed.run->exit_reason < 64;
		     bed.run->exit_reason++)
			ck_assert_int_eq(kvmfault_decode(results[i][0],
							 results[i][1],
							 bed.run, &fault), 0);
	for (name = 0; name < FAKE_NAMES; name++)
		calls += fake_count(name, FAKE_ANY);
	ck_assert_uint_eq(calls, 0);
}

/* ---- broken: by a resolver that does what the library must not ---- */

static pthread_mutex_t one = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t two = PTHREAD_MUTEX_INITIALIZER;
static char said[8][100];
static atomic_uint wrongs;
static void (*misdeed)(void);

static void listen(const char *what, const char *function)
{
	unsigned int n = atomic_fetch_add(&wrongs, 1);

	ck_assert_uint_lt(n, 8);
	snprintf(said[n], sizeof(said[n]), "%s: %s", function, what);
}

static int resolve_wrongly(void *data, struct kvmfault_request *request)
{
	(void)data;
	(void)request;
	if (misdeed)
		misdeed();
	return KVMFAULT_VERDICT_DECLINED;
}

static void up_wrong(void)
{
	bed_vm();
	bed_own_resolver(resolve_wrongly);
	bed_add();
	bed_service(0);
	fake_wrong = listen;
}

static void allocates(void)
{
	kvmfault__sys_free(kvmfault__sys_alloc(8, 0));
}

/* As large as a seat, and so allowed where one may be made. */
static void makes_a_seat(void)
{
	kvmfault__sys_alloc(sizeof(struct kvmfault__seat),
			    KVMFAULT__CACHE_LINE);
}

static void opens(void)
{
	kvmfault__sys_open("/dev/null", 0);
}

static void locks(void)
{
	kvmfault__sys_lock(&one);
	kvmfault__sys_unlock(&one);
}

static void calls_under_a_lock(void)
{
	kvmfault__sys_lock(&one);
	kvmfault__sys_madvise(bed.host, PAGE, 0);
	kvmfault__sys_unlock(&one);
}

static void asks_the_time_under_a_lock(void)
{
	kvmfault__sys_lock(&one);
	kvmfault__sys_now();
	kvmfault__sys_unlock(&one);
}

static void takes_two(void)
{
	kvmfault__sys_lock(&one);
	kvmfault__sys_lock(&two);
	kvmfault__sys_unlock(&two);
	pthread_mutex_unlock(&one);
}

static void lets_go_of_none(void)
{
	pthread_mutex_lock(&one);
	kvmfault__sys_unlock(&one);
}

static void calls_back_under_a_lock(void)
{
	kvmfault__sys_lock(&one);
	fake_called_back();
	kvmfault__sys_unlock(&one);
}

static const struct {
	void (*misdeed)(void);
	const char *by_handle, *by_ensure, *by_dispatch;	/* said first */
} misdeeds[] = {
	{ allocates, "makes something", "makes something", "makes something" },
	{ opens, "makes something", "makes something", "makes something" },
	{ makes_a_seat, "makes something", NULL, NULL },
	{ locks, "takes a lock", "takes a lock", NULL },
	{ calls_under_a_lock, "takes a lock", "takes a lock",
	  "held across a system call" },
	{ asks_the_time_under_a_lock, "takes a lock", "takes a lock",
	  "held across a system call" },
	{ takes_two, "takes a lock", "takes a lock", "inside another" },
	{ lets_go_of_none, "let go", "let go", "let go" },
	{ calls_back_under_a_lock, "takes a lock", "takes a lock",
	  "callback comes with a lock" },
};
#define MISDEEDS ((int)(sizeof(misdeeds) / sizeof(*misdeeds)))

static void expect(const char *function, const char *what)
{
	if (!what) {
		ck_assert_uint_eq(wrongs, 0);
		return;
	}
	ck_assert_uint_ge(wrongs, 1);
	ck_assert_msg(strstr(said[0], function) && strstr(said[0], what),
		      "said: %s", said[0]);
}

TEST_GROUP(twin, up_wrong, NULL);

TEST_EACH(twin, noticed_in_handle, MISDEEDS)
{
	misdeed = misdeeds[_i].misdeed;
	bed_exit(BED_GPA, 0);
	expect("kvmfault_vcpu_handle", misdeeds[_i].by_handle);
}

TEST_EACH(twin, noticed_in_ensure, MISDEEDS)
{
	misdeed = misdeeds[_i].misdeed;
	kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false);
	expect("kvmfault_ensure", misdeeds[_i].by_ensure);
}

TEST_EACH(twin, noticed_in_dispatch, MISDEEDS)
{
	misdeed = misdeeds[_i].misdeed;
	bed_touch(0, true);
	kvmfault_service_dispatch(bed.service);
	expect("kvmfault_service_dispatch", misdeeds[_i].by_dispatch);
}

TEST(twin, noticed_in_a_thread_of_the_service)
{
	bed_end_service();
	bed_service(1);
	misdeed = allocates;
	bed_touch(0, true);
	while (!bed_stats().fetched)
		sched_yield();
	bed_end_service();
	expect("a thread of the service", "makes something");
}

TEST_GROUP(abort, NULL, NULL);

/* By itself the door does not go on. */
TEST_KILLED(abort, what_is_wrong_aborts, SIGABRT, 1)
{
	static const struct noted judged = { .name = "what is judged" };

	noting_inside = &judged;
	allocates();
}

int main(void)
{
	return run_suite("path");
}
