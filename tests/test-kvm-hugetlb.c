/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Tracked RAM on 2 MiB hugetlb pages, in both columns: a fault of 4 KiB brings
 * the whole huge page, once.
 */

#include <errno.h>

#include "kvm-rig.h"
#include "need.h"

#define HUGE_PAGES 3

static struct rig rig;

static void tracked(int column, unsigned int vcpus)
{
	rig_new_huge(&rig, column, vcpus, HUGE_PAGES);
	rig_track(&rig);
	rig_vcpus(&rig);
}

static struct kvmfault_stats stats(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	rig_restart_service(&rig);
	ck_assert_int_eq(kvmfault_vm_stats(rig.vm, &stats), 0);
	return stats;
}

TEST_GROUP(hugetlb, NULL, NULL);

TEST_EACH(hugetlb, the_whole_page_comes_once, COLUMNS)
{
	uint64_t at, page;

	tracked(_i, 2);
	for (page = 0; page < HUGE_PAGES; page++)
		for (at = 8; at < HUGE; at += HUGE / 4)
			ck_assert_uint_eq(rig_do(&rig, at / (HUGE / 2),
						 MACHINE_READ,
						 RAM + page * HUGE + at, 8, 0),
					  rig_word(page * HUGE + at));
	for (page = 0; page < HUGE_PAGES; page++)
		ck_assert_uint_eq(rig.reads[page], 1);
	ck_assert_uint_eq(stats().fetched, HUGE_PAGES);
	rig_free(&rig);
}

TEST_EACH(hugetlb, discard_takes_whole_pages, COLUMNS)
{
	tracked(_i, 1);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, RAM, 8, 0),
			  rig_word(0));
	ck_assert_int_eq(kvmfault_discard(rig.vm, 0, RAM, PAGE), -EINVAL);
	ck_assert_int_eq(kvmfault_discard(rig.vm, 0, RAM, HUGE), 0);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, RAM + HUGE - 8, 8, 0),
			  0);
	ck_assert_uint_eq(rig.reads[0], 1);
	rig_free(&rig);
}

int main(void)
{
	need("kvm");
	need("uffd");
	need("hugetlb");
	return run_suite("kvm hugetlb");
}
