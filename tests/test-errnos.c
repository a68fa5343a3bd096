/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Documented errnos that come from a stage below the function that is called:
 * no right to a userfaultfd, none left, a callback that waits for itself, a
 * signal in a wait. errnos.py finds what no other test returns.
 */

#include <fcntl.h>

#include "bed.h"

/* By every way to a userfaultfd: a new one, a memory's, a mapping's. */
static void expect_all(int error)
{
	struct kvmfault_mapping_options mapping = {
		.size = sizeof(mapping),
		.host = (uintptr_t)fake_map(bed.fd),
	};
	struct kvmfault_mapping *added;
	struct kvmfault_memory *memory;
	struct kvmfault_uffd *uffd;
	void *host;
	int fd;

	ck_assert_int_eq(kvmfault_uffd_new(bed.vm, NULL, &uffd), error);
	ck_assert_ptr_null(uffd);
	ck_assert_int_eq(bed_memory(&memory, &fd, &host), error);
	ck_assert_ptr_null(memory);
	ck_assert_int_eq(kvmfault_mapping_add(bed.memory, &mapping, &added),
			 error);
	ck_assert_ptr_null(added);
}

TEST_GROUP(errnos, bed_up, NULL);

TEST_EACH(errnos, no_userfaultfd, 3)
{
	static const int errors[] = { -EPERM, -ENOSYS, -EMFILE };

	fake_uffd_denied = errors[_i];
	expect_all(errors[_i]);
	fake_uffd_denied = 0;
	bed_down();
}

#define MOST 4095

TEST(errnos, no_userfaultfd_left)
{
	static struct kvmfault_uffd *all[MOST];
	size_t i = 0;

	while (i < MOST && !kvmfault_uffd_new(bed.vm, NULL, &all[i]))
		i++;
	ck_assert_uint_eq(i, MOST - 1);		/* one is the bed's */
	expect_all(-ENOSPC);
	while (i--)
		ck_assert_int_eq(kvmfault_uffd_free(all[i]), 0);
	bed_down();
}

static int inner_discard, inner_ensure;

static void call_from_inside(void)
{
	inner_discard = kvmfault_discard(bed.vm, 0, BED_GPA, PAGE);
	inner_ensure = kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false);
}

/* A source that wants the page that it is about to deliver. */
TEST(errnos, a_callback_that_waits_for_itself)
{
	bed.during_read = call_from_inside;
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false), 0);
	ck_assert_int_eq(inner_discard, -EDEADLK);
	ck_assert_int_eq(inner_ensure, -EDEADLK);
	/* The discard was heard all the same: it is carried out at the end. */
	ck_assert_int_eq(bed_state(0), KVMFAULT__DISCARDED);
	ck_assert(!fake_present(bed.fd, 0));
	bed_down();
}

TEST(errnos, a_signal_while_a_discard_waits)
{
	ck_assert_int_eq(kvmfault__page_claim(bed.memory, 0, false),
			 KVMFAULT__ABSENT);
	fake_push(FAKE_FUTEX_WAIT, -EINTR);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA, 2 * PAGE),
			 -EINTR);
	ck_assert_int_eq(bed_state(0), KVMFAULT__FETCHING_DISCARDED);
	ck_assert_int_eq(bed_state(1), KVMFAULT__ABSENT);
	kvmfault__page_change(bed.memory, 0, KVMFAULT__FETCHING_DISCARDED,
			      KVMFAULT__DISCARDED);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA, 2 * PAGE), 0);
	ck_assert_int_eq(bed_state(1), KVMFAULT__DISCARDED);
	bed_down();
}

TEST(errnos, no_memory_for_a_seat)
{
	struct kvmfault_region region = { .size = sizeof(region) };
	struct kvmfault_vm *vm;

	bed_down();
	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(kvmfault_region_find(vm, 0, 0, &region), -ENOMEM);
	ck_assert_int_eq(kvmfault_region_find(vm, 0, 0, &region), -ENOENT);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
}

int main(void)
{
	return run_suite("errnos");
}
