/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* Whether a thread looks for the next message before it sleeps. */

#include "fake-sys.h"
#include "lib/core/core.h"
#include "lib/core/poll.h"
#include "unit.h"

#define US 1000ULL

static struct kvmfault__poll poll;

static void up(void)
{
	fake_forget();
	kvmfault__poll_init(&poll, 0);
}

/* Until somebody has looked for so long and found something, or gave up. */
static uint64_t look(uint64_t until, bool found)
{
	uint64_t n = 0;

	while (kvmfault__poll_again(&poll) && ++n < until)
		;
	kvmfault__poll_end(&poll, found);
	return n;
}

/* How often it is not tried. */
static uint32_t skipped(void)
{
	uint32_t n = 0;

	while (!kvmfault__poll_begin(&poll))
		n++;
	return n;
}

TEST_GROUP(poll, up, NULL);

TEST(poll, never)
{
	uint32_t n;

	kvmfault__poll_init(&poll, KVMFAULT_NO_POLL);
	for (n = 0; n < 5000; n++)
		ck_assert(!kvmfault__poll_begin(&poll));
	ck_assert_uint_eq(fake_count(FAKE_YIELD, FAKE_ANY), 0);
}

/* The fake's yield takes a microsecond. */
TEST(poll, for_so_long)
{
	ck_assert(kvmfault__poll_begin(&poll));
	ck_assert_uint_eq(look(5000, false), 99);
	kvmfault__poll_init(&poll, 30);
	ck_assert(kvmfault__poll_begin(&poll));
	ck_assert_uint_eq(look(5000, false), 29);
}

static bool somebody_runs(struct fake_call *call)
{
	(void)call;
	fake_advance(3 * US);
	return false;
}

TEST(poll, not_where_somebody_wants_the_cpu)
{
	ck_assert(kvmfault__poll_begin(&poll));
	fake_on(FAKE_YIELD, somebody_runs);
	ck_assert_uint_eq(look(5000, false), 0);
	ck_assert_uint_eq(skipped(), 1);
}

TEST(poll, while_it_pays)
{
	uint32_t n;

	for (n = 0; n < 100; n++) {
		ck_assert_uint_eq(skipped(), 0);
		ck_assert_uint_eq(look(50, true), 50);
	}
}

TEST(poll, hardly_ever_where_it_does_not)
{
	static const uint32_t expected[] = { 0, 1, 4, 16, 64, 256, 1024, 1024 };
	size_t i;

	for (i = 0; i < sizeof(expected) / sizeof(*expected); i++) {
		ck_assert_uint_eq(skipped(), expected[i]);
		look(5000, false);
	}
	/* It comes back as it went. */
	ck_assert_uint_eq(skipped(), 1024);
	look(50, true);
	ck_assert_uint_eq(skipped(), 0);
	look(5000, false);
	ck_assert_uint_eq(skipped(), 512);
}

/* That would have been so asleep too. */
TEST(poll, found_at_once)
{
	ck_assert_uint_eq(skipped(), 0);
	look(3, true);
	ck_assert_uint_eq(skipped(), 1);
	look(3, true);
	ck_assert_uint_eq(skipped(), 4);
}

int main(void)
{
	return run_suite("poll");
}
