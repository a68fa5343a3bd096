/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Fail the nth call that can fail, for n = 1, 2, ... until there is none left,
 * over the functions that work on what is set up already (the constructors do
 * this in their own tests). After an error nothing has leaked, no page is lost,
 * and the same call works when nothing is in its way.
 */

#include "bed.h"

#define CALLS_MAX 100

static const struct kvmfault_region elsewhere = {
	.size = sizeof(elsewhere),
	.gpa = BED_GPA + (1ULL << 30),
	.length = PAGE,
	.guest_memfd = 1000,
};

static int ensure(void)
{
	return kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, true);
}

static int discard(void)
{
	return kvmfault_discard(bed.vm, 0, BED_GPA, PAGE);
}

static int find(void)
{
	struct kvmfault_region region = { .size = sizeof(region) };

	return kvmfault_region_find(bed.vm, 0, BED_GPA, &region);
}

static int add_and_remove_region(void)
{
	int err = kvmfault_region_add(bed.vm, &elsewhere);

	/* A removal can't fail for want of anything. */
	if (!err)
		ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0,
							elsewhere.gpa), 0);
	return err;
}

static int handle(void)
{
	enum kvmfault_action action = bed_exit(BED_GPA, 0);

	if (action == KVMFAULT_UNRESOLVED) {
		ck_assert_int_lt(kvmfault_vcpu_result(bed.vcpu)->error, 0);
		return kvmfault_vcpu_result(bed.vcpu)->error;
	}
	ck_assert(action == KVMFAULT_RETRY || action == KVMFAULT_INTERRUPTED);
	return action == KVMFAULT_RETRY ? 0 : -EINTR;
}

static int new_uffd(void)
{
	struct kvmfault_uffd *uffd;
	int err = kvmfault_uffd_new(bed.vm, NULL, &uffd);

	ck_assert(err ? !uffd : !!uffd);
	return err ? err : kvmfault_uffd_free(uffd);
}

static void *another;	/* a second place where the memory is mapped */

static int add_and_remove_mapping(void)
{
	struct kvmfault_mapping_options options = {
		.size = sizeof(options),
		.host = (uintptr_t)another,
	};
	struct kvmfault_mapping *mapping;
	int err, n = 0;

	err = kvmfault_mapping_add(bed.memory, &options, &mapping);
	ck_assert(err ? !mapping : !!mapping);
	if (err)
		return err;
	/* Refused for want of memory it is whole, and can be tried again. */
	while ((err = kvmfault_mapping_remove(mapping)) && n++ < 2)
		ck_assert_int_eq(err, -ENOMEM);
	return err;
}

static int (*const calls[])(void) = {
	ensure, discard, find, add_and_remove_region, handle, new_uffd,
	add_and_remove_mapping,
};
#define CALLS (sizeof(calls) / sizeof(*calls))

/* What a page is after a failure is what it was: it can still be had. */
static void expect_whole(void)
{
	enum kvmfault__state state = bed_state(0);

	ck_assert(state == KVMFAULT__ABSENT || state == KVMFAULT__PRESENT ||
		  state == KVMFAULT__REMOVED);
	if (state == KVMFAULT__PRESENT)
		ck_assert(bed_has(0, bed_byte(0)));
}

START_TEST(fail_the_nth)
{
	struct fake_held before, after;
	unsigned int n, failures = 0;
	int err;

	bed_up();
	another = fake_map(bed.fd);
	ck_assert_int_eq(find(), 0);	/* there is a seat from now on */
	/* With absent pages a mapping that can't be protected stays, and its
	 * descriptor with it: that is tests/test-mapping.c's. */
	if (calls[_i] == add_and_remove_mapping)
		ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA,
						 BED_PAGES * PAGE, false), 0);
	before = fake_held();
	for (n = 1; n < CALLS_MAX; n++) {
		fake_fail_nth(n);
		err = calls[_i]();
		if (!fake_failed())
			break;
		failures += err < 0;
		expect_whole();
		after = fake_held();
		if (err) {
			ck_assert_int_eq(after.descriptors, before.descriptors);
			ck_assert_int_eq(after.mappings, before.mappings);
			ck_assert_int_le(after.allocations,
					 before.allocations + 1);
		}
		fake_forget();
	}
	ck_assert_uint_lt(n, CALLS_MAX);
	ck_assert_int_eq(calls[_i](), 0);
	/* Looking up what is there needs nothing that could fail. */
	ck_assert(failures || calls[_i] == find);
	if (calls[_i] == ensure || calls[_i] == handle)
		ck_assert(bed_has(0, bed_byte(0)));
	bed_down();	/* which finds whatever leaked */
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("failnth");

	tcase_add_loop_test(tests(suite, "failnth"), fail_the_nth, 0, CALLS);
	return run_suite(suite);
}
