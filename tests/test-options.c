/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * options.c: open structs, of an older caller and of a newer one.
 */

#include <string.h>

#include "lib/setup/setup.h"
#include "unit.h"

struct ours {
	size_t size;
	uint64_t a, b;
};

struct newer {
	struct ours ours;
	uint64_t tail[4];
};

static struct ours taken;

static int take(const void *from)
{
	memset(&taken, 0x55, sizeof(taken));
	return kvmfault__options(&taken, sizeof(taken), from);
}

TEST_GROUP(options, NULL, NULL);

TEST(options, in_same)
{
	struct ours caller = { sizeof(caller), 1, 2 };

	ck_assert_int_eq(take(&caller), 0);
	ck_assert_uint_eq(taken.a, 1);
	ck_assert_uint_eq(taken.b, 2);
	ck_assert_uint_eq(taken.size, sizeof(taken));
}

TEST(options, in_shorter)
{
	struct ours caller = { offsetof(struct ours, b), 1, 2 };

	ck_assert_int_eq(take(&caller), 0);
	ck_assert_uint_eq(taken.a, 1);
	ck_assert_uint_eq(taken.b, 0);
	ck_assert_uint_eq(taken.size, sizeof(taken));
	caller.size = sizeof(size_t);
	ck_assert_int_eq(take(&caller), 0);
	ck_assert_uint_eq(taken.a, 0);
}

TEST(options, in_longer)
{
	struct newer caller = { .ours = { sizeof(caller), 1, 2 } };
	unsigned char *bytes = (unsigned char *)&caller;
	size_t i;

	ck_assert_int_eq(take(&caller), 0);
	ck_assert_uint_eq(taken.b, 2);
	ck_assert_uint_eq(taken.size, sizeof(taken));
	/* Any byte that we do not know. */
	for (i = sizeof(struct ours); i < sizeof(caller); i++) {
		bytes[i] = 1;
		ck_assert_int_eq(take(&caller), -E2BIG);
		bytes[i] = 0;
	}
}

TEST(options, in_nonsense)
{
	struct ours caller = { 0, 1, 2 };

	ck_assert_int_eq(take(NULL), -EINVAL);
	ck_assert_int_eq(take(&caller), -EINVAL);
	caller.size = sizeof(size_t) - 1;
	ck_assert_int_eq(take(&caller), -EINVAL);
}

static const struct ours given = { sizeof(given), 1, 2 };

TEST(options, out_same)
{
	struct ours caller = { .size = sizeof(caller) };

	ck_assert_int_eq(kvmfault__options_out(&caller, &given,
					       sizeof(given)), 0);
	ck_assert_mem_eq(&caller, &given, sizeof(given));
}

TEST(options, out_shorter)
{
	struct ours caller = { offsetof(struct ours, b), 77, 77 };

	ck_assert_int_eq(kvmfault__options_out(&caller, &given,
					       sizeof(given)), 0);
	ck_assert_uint_eq(caller.a, 1);
	ck_assert_uint_eq(caller.b, 77);
	ck_assert_uint_eq(caller.size, offsetof(struct ours, b));
}

TEST(options, out_longer)
{
	struct newer caller;

	memset(&caller, 0x55, sizeof(caller));
	caller.ours.size = sizeof(caller);
	ck_assert_int_eq(kvmfault__options_out(&caller, &given,
					       sizeof(given)), 0);
	ck_assert_uint_eq(caller.ours.size, sizeof(caller));
	ck_assert_uint_eq(caller.ours.b, 2);
	ck_assert_uint_eq(caller.tail[0], 0);
	ck_assert_uint_eq(caller.tail[3], 0);
}

TEST(options, out_nonsense)
{
	struct ours caller = { 7, 77, 77 };

	ck_assert_int_eq(kvmfault__options_out(NULL, &given, sizeof(given)),
			 -EINVAL);
	ck_assert_int_eq(kvmfault__options_out(&caller, &given,
					       sizeof(given)), -EINVAL);
	ck_assert_uint_eq(caller.a, 77);
}

int main(void)
{
	return run_suite("options");
}
