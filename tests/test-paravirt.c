/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * paravirt.c: which page each MSR names, if it is enabled; and what can go wrong.
 */

#include "bed.h"

#ifdef __x86_64__

#define UNKNOWN 0x4b564d05
#define LAST (BED_GPA + 2 * PAGE + 4096)	/* its end */

static void up(void)
{
	bed_vm();
	bed_own_resolver(bed_own);
	bed_add();
}

static bool again;

static int ensure(uint32_t index, uint64_t data)
{
	struct kvm_msr_entry msr = { .index = index, .data = data };

	again = true;
	return kvmfault_ensure_msrs(bed.vm, &msr, 1, &again);
}

static void present(unsigned int from, unsigned int to)
{
	unsigned int i;

	for (i = 0; i < BED_PAGES; i++)
		ck_assert_msg((bed_state(i) == KVMFAULT__PRESENT) ==
			      (i >= from && i < to), "page %u", i);
}

static const struct {
	uint32_t index;
	uint64_t length, align;
	bool always;			/* there is no bit for "on" */
	bool again;
} msrs[] = {
	{ 0x12, 32, 2, false, true },
	{ 0x4b564d01, 32, 2, false, true },
	{ 0x11, 12, 1, true, true },
	{ 0x4b564d00, 12, 1, true, true },
	{ 0x4b564d02, 64, 64, false, false },
	{ 0x4b564d03, 64, 64, false, false },
	{ 0x4b564d04, 4, 4, false, false },
	{ 0x40000001, 4096, 4096, false, false },
	{ 0x40000021, 4096, 4096, false, true },
	{ 0x40000073, 4096, 4096, false, false },
	{ 0x40000082, 4096, 4096, false, false },
	{ 0x40000083, 4096, 4096, false, false },
};
#define MSRS ((int)(sizeof(msrs) / sizeof(*msrs)))

static uint64_t on(int i)
{
	return msrs[i].always ? 0 : 1;
}

TEST_GROUP(paravirt, up, bed_down);

/* All of it, to the last byte, and not a byte more. */
TEST_EACH(paravirt, names_a_page, MSRS)
{
	uint64_t length = msrs[_i].length, align = msrs[_i].align;

	ck_assert_int_eq(ensure(msrs[_i].index, (LAST - length) | on(_i)), 0);
	present(2, 3);
	ck_assert_int_eq(again, msrs[_i].again);
	if (align < length && align < 64) {
		ck_assert_int_eq(ensure(msrs[_i].index,
					(LAST - length + align) | on(_i)), 0);
		present(2, 4);
	}
	ck_assert_int_eq(bed.change.cause, KVMFAULT_CAUSE_FETCH);
}

TEST_EACH(paravirt, is_off, MSRS)
{
	ck_assert_int_eq(ensure(msrs[_i].index, msrs[_i].always ? 0 : BED_GPA),
			 0);
	ck_assert(!again);
	present(0, 0);
}

/* What is saved when an SMI comes, in that mode's own address space; from 0 on,
 * too. */
TEST_EACH(paravirt, smbase, 2)
{
	struct kvmfault_region smram = {
		.size = sizeof(smram), .gpa = _i ? 0 : 0x30000,
		.length = BED_PAGES * PAGE, .address_space = 1,
	};

	ck_assert_int_eq(ensure(0x9e, smram.gpa), 0);	/* there is none */
	present(0, 0);
	smram.memory = bed.memory;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &smram), 0);
	ck_assert_int_eq(ensure(0x9e, smram.gpa), 0);
	present(15, 16);
	ck_assert(!again);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 1, smram.gpa), 0);
}

/* The bits that are no address are another's. */
TEST_EACH(paravirt, other_bits, MSRS)
{
	ck_assert_int_eq(ensure(msrs[_i].index, (BED_GPA + PAGE) |
				(msrs[_i].align - 1) | on(_i)), 0);
	present(1, 2);
}

TEST_EACH(paravirt, nowhere, MSRS)
{
	static const uint64_t values[] = {
		1, ~0ULL, ~1ULL, 1ULL << 63 | 1, (BED_GPA - 4096) | 1,
	};
	size_t i;

	for (i = 0; i < sizeof(values) / sizeof(*values); i++)
		ck_assert_int_eq(ensure(msrs[_i].index, values[i]), 0);
	present(0, 0);
}

TEST(paravirt, many)
{
	const struct kvm_msr_entry list[] = {
		{ .index = UNKNOWN, .data = BED_GPA | 1 },
		{ .index = 0x4b564d03, .data = BED_GPA | 1 },
		{ .index = 0x4b564d01, .data = BED_GPA + 4 * PAGE },
		{ .index = 0x4b564d04, .data = (BED_GPA + PAGE) | 1 },
		{ .index = 0x4b564d01, .data = (BED_GPA + 2 * PAGE) | 1 },
	};

	ck_assert_int_eq(kvmfault_ensure_msrs(bed.vm, list, 4, &again), 0);
	present(0, 2);
	ck_assert(!again);
	ck_assert_int_eq(kvmfault_ensure_msrs(bed.vm, list, 5, NULL), 0);
	present(0, 3);
	ck_assert_int_eq(kvmfault_ensure_msrs(bed.vm, list, 5, &again), 0);
	ck_assert(again);
	ck_assert_uint_eq(bed.reads, 3);
}

/* Those before are present, those behind it are not asked for. */
TEST_EACH(paravirt, source_fails, 3)
{
	static const int errors[] = { -EIO, -EINTR, -EHWPOISON };
	const struct kvm_msr_entry list[] = {
		{ .index = 0x4b564d03, .data = BED_GPA | 1 },
		{ .index = 0x4b564d04, .data = (BED_GPA + PAGE) | 1 },
		{ .index = 0x4b564d01, .data = (BED_GPA + 2 * PAGE) | 1 },
	};

	ck_assert_int_eq(ensure(0x4b564d03, BED_GPA | 1), 0);
	bed.source_result = errors[_i];
	ck_assert_int_eq(kvmfault_ensure_msrs(bed.vm, list, 3, NULL),
			 errors[_i]);
	present(0, 1);
	ck_assert_uint_eq(bed.reads, 2);
}

TEST_EACH(paravirt, resolver_says, 3)
{
	static const int answers[][2] = {
		{ KVMFAULT_VERDICT_LATER, -EAGAIN }, { KVMFAULT_VERDICT_RESOLVED, -ENODATA },
		{ -EOPNOTSUPP, -EOPNOTSUPP },
	};

	bed.own_verdict = answers[_i][0];
	ck_assert_int_eq(ensure(0x4b564d03, BED_GPA | 1), answers[_i][1]);
	present(0, 0);
}

static int inner;

static void ensure_again(void)
{
	inner = ensure(0x4b564d03, BED_GPA | 1);
}

TEST(paravirt, from_its_own_fetch)
{
	bed.during_read = ensure_again;
	ck_assert_int_eq(ensure(0x4b564d03, BED_GPA | 1), 0);
	ck_assert_int_eq(inner, -EDEADLK);
	present(0, 1);
}

TEST(paravirt, no_memory)
{
	bed_take_seats();
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(ensure(0x4b564d03, BED_GPA | 1), -ENOMEM);
	bed_give_seats();
	present(0, 0);
}

#else

TEST_GROUP(paravirt, bed_up, bed_down);

#endif

TEST(paravirt, bad_arguments)
{
	bool out = true;

	ck_assert_int_eq(kvmfault_ensure_msrs(NULL, NULL, 0, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_ensure_msrs(bed.vm, NULL, 1, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_ensure_msrs(bed.vm, NULL, 0, &out), 0);
	ck_assert(!out);
}

int main(void)
{
	return run_suite("paravirt");
}
