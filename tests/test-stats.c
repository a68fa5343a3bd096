/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * stats.c: what threads count, added up; and one vCPU's own.
 */

#include <string.h>

#include "bed.h"

static struct kvmfault_stats of_vcpu(const struct kvmfault_vcpu *vcpu)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	ck_assert_int_eq(kvmfault_vcpu_stats(vcpu, &stats), 0);
	return stats;
}

TEST_GROUP(stats, bed_up, bed_down);

TEST(stats, begin_with_nothing)
{
	struct kvmfault_stats zero = { .size = sizeof(zero) };
	struct kvmfault_stats stats = bed_stats();

	ck_assert_mem_eq(&stats, &zero, sizeof(zero));
}

TEST(stats, sum_of_all_seats)
{
	struct kvmfault__seat *seat = kvmfault__seat_take(bed.vm);

	kvmfault__count(bed.seat, fetched);
	kvmfault__count(seat, fetched);
	kvmfault__add(seat, KVMFAULT__COUNTER(fetched), 40);
	ck_assert_uint_eq(bed_stats().fetched, 42);
	kvmfault__seat_give(seat);
	/* Also of those that have gone. */
	ck_assert_uint_eq(bed_stats().fetched, 42);
}

TEST(stats, every_counter_has_its_place)
{
	struct kvmfault_stats stats;

#define HAS_ITS_PLACE(field) do { \
	kvmfault__count(bed.seat, field); \
	stats = bed_stats(); \
	ck_assert_uint_eq(stats.field, 1); \
} while (0)
	HAS_ITS_PLACE(fetched);
	HAS_ITS_PLACE(zeroed);
	HAS_ITS_PLACE(existed);
	HAS_ITS_PLACE(waited);
	HAS_ITS_PLACE(repeated);
	HAS_ITS_PLACE(woken);
	HAS_ITS_PLACE(deferred);
	HAS_ITS_PLACE(discarded);
	HAS_ITS_PLACE(unresolved);
	HAS_ITS_PLACE(kind[0]);
	HAS_ITS_PLACE(kind[15]);
	HAS_ITS_PLACE(resolver[KVMFAULT_RESOLVER_COUNT - 1]);
	HAS_ITS_PLACE(latency[KVMFAULT_LATENCY_COUNT - 1]);
	HAS_ITS_PLACE(retried);
	HAS_ITS_PLACE(prefaulted);
	HAS_ITS_PLACE(action[0]);
	HAS_ITS_PLACE(action[7]);
	HAS_ITS_PLACE(page[0]);
	HAS_ITS_PLACE(page[15]);
	HAS_ITS_PLACE(marked);
	HAS_ITS_PLACE(holes);
	ck_assert_uint_eq(stats.fetched, 1);
	ck_assert_uint_eq(stats.kind[1], 0);
}

static void expect_actions(uint64_t retry, uint64_t unresolved)
{
	struct kvmfault_stats stats = bed_stats();
	uint64_t sum = 0;
	size_t i;

	for (i = 0; i < 8; i++)
		sum += stats.action[i];
	ck_assert_uint_eq(stats.action[KVMFAULT_ACTION_RETRY], retry);
	ck_assert_uint_eq(stats.action[KVMFAULT_ACTION_UNRESOLVED], unresolved);
	ck_assert_uint_eq(sum, retry + unresolved);
}

TEST(stats, by_action)
{
	bed_exit(BED_GPA, 0);
	expect_actions(1, 0);
	bed_exit(0, 0);
	expect_actions(1, 1);
	bed_other();		/* not a fault */
	bed_mmio(0, 4, false);
	expect_actions(1, 1);
	kvmfault_ensure(bed.vm, 0, BED_GPA, 4 * PAGE, false);
	expect_actions(2, 1);
	kvmfault_ensure(bed.vm, 0, 0, PAGE, false);
	expect_actions(2, 2);
}

TEST(stats, messages_by_action)
{
	bed_service(0);
	bed_touch(3, false);
	bed_dispatch();
	expect_actions(1, 0);
	bed.source_result = -EIO;
	bed_touch(4, false);
	bed_dispatch();
	expect_actions(1, 1);
	fake_advance(10000000);
	bed_dispatch();
	expect_actions(1, 2);
}

TEST(stats, by_kind_of_page)
{
	bed_exit(BED_GPA, 0);
	bed_exit(BED_GPA, 0);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA, PAGE), 0);
	bed_exit(BED_GPA, 0);
	bed_exit(BED_GPA + PAGE, 0);
	bed_exit(0, 0);
	ck_assert_uint_eq(bed_stats().page[KVMFAULT_PAGE_ABSENT], 2);
	ck_assert_uint_eq(bed_stats().page[KVMFAULT_PAGE_PRESENT], 1);
	ck_assert_uint_eq(bed_stats().page[KVMFAULT_PAGE_DISCARDED], 1);
	ck_assert_uint_eq(bed_stats().page[KVMFAULT_PAGE_UNTRACKED], 1);
	ck_assert_uint_eq(of_vcpu(bed.vcpu).page[KVMFAULT_PAGE_ABSENT], 2);
}

TEST(stats, of_one_vcpu)
{
	struct kvmfault_vcpu_options options = {
		.size = sizeof(options), .run = bed.run,
		.fd = fake_fd(FAKE_KVM),
	};
	struct kvmfault_vcpu *other;

	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &options, &other), 0);
	bed_exit(BED_GPA, 0);
	ck_assert_uint_eq(of_vcpu(bed.vcpu).fetched, 1);
	ck_assert_uint_eq(of_vcpu(bed.vcpu).kind[KVMFAULT_KIND_EXIT],
			  1);
	ck_assert_uint_eq(of_vcpu(other).fetched, 0);
	ck_assert_uint_eq(bed_stats().fetched, 1);
	kvmfault_vcpu_free(other);
}

TEST(stats, next_vcpu_begins_with_nothing)
{
	struct kvmfault_vcpu_options options = {
		.size = sizeof(options), .run = bed.run,
		.fd = fake_fd(FAKE_KVM),
	};

	bed_exit(BED_GPA, 0);
	kvmfault_vcpu_free(bed.vcpu);
	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &options, &bed.vcpu), 0);
	ck_assert_uint_eq(of_vcpu(bed.vcpu).fetched, 0);
	bed_exit(BED_GPA + PAGE, 0);
	ck_assert_uint_eq(of_vcpu(bed.vcpu).fetched, 1);
	ck_assert_uint_eq(bed_stats().fetched, 2);
}

TEST(stats, bad_arguments)
{
	struct kvmfault_stats stats = { .size = 0 };

	ck_assert_int_eq(kvmfault_vm_stats(NULL, &stats), -EINVAL);
	ck_assert_int_eq(kvmfault_vm_stats(bed.vm, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_vm_stats(bed.vm, &stats), -EINVAL);
	ck_assert_int_eq(kvmfault_vcpu_stats(NULL, &stats), -EINVAL);
	ck_assert_int_eq(kvmfault_vcpu_stats(bed.vcpu, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_vcpu_stats(bed.vcpu, &stats), -EINVAL);
}

int main(void)
{
	return run_suite("stats");
}
