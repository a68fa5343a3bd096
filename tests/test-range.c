/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * range.c: ensure and discard, over pages, regions and gaps.
 */

#include <sched.h>
#include <string.h>

#include "bed.h"

#define SECOND_GPA (BED_GPA + BED_PAGES * PAGE)	/* right behind, page 0 again */
#define END (SECOND_GPA + 2 * PAGE)

static void up(void)
{
	struct kvmfault_region alias = {
		.size = sizeof(alias), .gpa = SECOND_GPA, .length = 2 * PAGE,
	};

	bed_up();
	alias.memory = bed.memory;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &alias), 0);
}

static void down(void)
{
	kvmfault_region_remove(bed.vm, 0, SECOND_GPA);
	bed_down();
}

static int ensure(uint64_t gpa, uint64_t length)
{
	return kvmfault_ensure(bed.vm, 0, gpa, length, false);
}

static int discard(uint64_t gpa, uint64_t length)
{
	return kvmfault_discard(bed.vm, 0, gpa, length);
}

TEST_GROUP(ensure, up, down);

TEST(ensure, ensure_touches_what_it_must)
{
	ck_assert_int_eq(ensure(BED_GPA + 2 * PAGE + 4095, 2), 0);
	ck_assert_uint_eq(bed.reads, 2);
	ck_assert_int_eq(bed_state(1), KVMFAULT__ABSENT);
	ck_assert_int_eq(bed_state(2), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(4), KVMFAULT__ABSENT);
	ck_assert_int_eq(ensure(BED_GPA + 2 * PAGE, 1), 0);
	ck_assert_uint_eq(bed.reads, 2);
	ck_assert_uint_eq(bed_stats().kind[KVMFAULT_KIND_CALL], 2);
}

TEST(ensure, ensure_across_regions)
{
	ck_assert_int_eq(ensure(SECOND_GPA - PAGE, 3 * PAGE), 0);
	ck_assert_int_eq(bed_state(BED_PAGES - 1), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(0), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(1), KVMFAULT__PRESENT);
}

TEST(ensure, ensure_bad_ranges)
{
	ck_assert_int_eq(kvmfault_ensure(NULL, 0, BED_GPA, 1, false), -EINVAL);
	ck_assert_int_eq(ensure(BED_GPA, 0), -EINVAL);
	ck_assert_int_eq(ensure(UINT64_MAX, 2), -EINVAL);
	ck_assert_int_eq(ensure(UINT64_MAX, 1), -ENXIO);
	ck_assert_int_eq(ensure(0, UINT64_MAX), -ENXIO);
	ck_assert_int_eq(ensure(BED_GPA - 1, 2), -ENXIO);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 1, BED_GPA, 1, false),
			 -ENXIO);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, UINT32_MAX, BED_GPA, 1,
					 false), -ENXIO);
}

TEST(ensure, ensure_past_the_end)
{
	/* All before it is present. */
	ck_assert_int_eq(ensure(END - PAGE, 2 * PAGE), -ENXIO);
	ck_assert_int_eq(bed_state(1), KVMFAULT__PRESENT);
}

TEST(ensure, ensure_says_what_went_wrong)
{
	bed.source_result = -EIO;
	ck_assert_int_eq(ensure(BED_GPA, PAGE), -EIO);
	bed.source_result = -EINTR;
	ck_assert_int_eq(ensure(BED_GPA, PAGE), -EINTR);
	bed.source_result = 0;
	fake_push(FAKE_IOCTL, -EAGAIN);
	ck_assert_int_eq(ensure(BED_GPA, PAGE), -EAGAIN);
	fake_push(FAKE_IOCTL, -ENOMEM);
	ck_assert_int_eq(ensure(BED_GPA, PAGE), -ENOMEM);
	ck_assert_int_eq(ensure(BED_GPA, PAGE), 0);
}

static void up_own(void)
{
	bed_vm();
	bed_own_resolver(bed_own);
	bed_add();
}

TEST_GROUP(own, up_own, bed_down);

TEST(own, ensure_with_ones_own_resolver)
{
	bed.own_verdict = KVMFAULT_VERDICT_LATER;
	ck_assert_int_eq(ensure(BED_GPA, PAGE), -EAGAIN);
	bed.own_verdict = KVMFAULT_VERDICT_RESOLVED;
	ck_assert_int_eq(ensure(BED_GPA, PAGE), -ENODATA);	/* a lie */
	bed.own_verdict = 99;
	ck_assert_int_eq(ensure(BED_GPA, PAGE), -EINVAL);
}

TEST(ensure, ensure_where_nobody_takes_it)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = END, .length = PAGE,
		.guest_memfd = 5,
	};

	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	ck_assert_int_eq(ensure(END, PAGE), -EOPNOTSUPP);
	ck_assert_int_eq(discard(END, PAGE), -ENXIO);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, END), 0);
}

static struct kvmfault_memory *untracked(int *fd)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = 4 * PAGE,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = END, .length = 4 * PAGE,
	};
	struct kvmfault_memory *memory;
	void *host;

	*fd = options.fd = fake_memory(options.length, 0, &host);
	options.host = host;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory), 0);
	region.memory = memory;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	return memory;
}

TEST(ensure, ensure_untracked)
{
	int fd;
	struct kvmfault_memory *memory = untracked(&fd);

	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, END, PAGE, false), 0);
	ck_assert_uint_eq(fake_count(FAKE_MADVISE,
				     KVMFAULT__MADV_POPULATE_READ), 1);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, END, PAGE, true), 0);
	ck_assert_uint_eq(fake_count(FAKE_MADVISE,
				     KVMFAULT__MADV_POPULATE_WRITE), 1);
	fake_push(FAKE_MADVISE, -EHWPOISON);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, END, PAGE, true),
			 -EHWPOISON);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, END), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

TEST_GROUP(discard, up, down);

TEST(discard, discard_untracked)
{
	int fd;
	struct kvmfault_memory *memory = untracked(&fd);

	fake_put(fd, PAGE);
	ck_assert_int_eq(discard(END + PAGE, PAGE), 0);
	ck_assert(!fake_present(fd, PAGE));
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_DISCARD], 1);
	fake_push(FAKE_FALLOCATE, -ENOSPC);
	ck_assert_int_eq(discard(END, PAGE), -ENOSPC);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_DISCARD], 1);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, END), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

TEST(discard, discard_anonymous)
{
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = 4 * PAGE, .source = &source,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = END, .length = 4 * PAGE,
	};
	int fd = fake_memory(options.length, 0, &options.host);

	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options,
					     &region.memory), 0);
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	ck_assert_int_eq(ensure(END + PAGE, PAGE), 0);
	ck_assert(fake_present(fd, PAGE));
	ck_assert_int_eq(discard(END + PAGE, PAGE), 0);
	ck_assert(!fake_present(fd, PAGE));
	ck_assert_uint_eq(fake_count(FAKE_MADVISE, MADV_DONTNEED), 1);
	ck_assert_uint_eq(fake_count(FAKE_FALLOCATE, FAKE_ANY), 0);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, END), 0);
	ck_assert_int_eq(kvmfault_memory_free(region.memory), 0);
}

TEST(discard, discard_pages)
{
	ck_assert_int_eq(ensure(BED_GPA, 3 * PAGE), 0);
	ck_assert_int_eq(discard(BED_GPA + PAGE, 3 * PAGE), 0);
	ck_assert_int_eq(bed_state(0), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(1), KVMFAULT__DISCARDED);
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
	ck_assert_int_eq(bed_state(4), KVMFAULT__ABSENT);
	ck_assert(!fake_present(bed.fd, PAGE));
	ck_assert(bed_has(0, bed_byte(0)));
	ck_assert_uint_eq(bed_stats().discarded, 3);
	/* All at once: one hole, one change. */
	ck_assert_uint_eq(fake_count(FAKE_FALLOCATE, FAKE_ANY), 1);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_DISCARD], 1);
	ck_assert_uint_eq(bed.change.offset, PAGE);
	ck_assert_uint_eq(bed.change.length, 3 * PAGE);
	ck_assert_int_eq(ensure(BED_GPA + PAGE, PAGE), 0);
	ck_assert(bed_has(1, 0));
	ck_assert_uint_eq(bed.reads, 3);
	ck_assert_int_eq(discard(BED_GPA + PAGE, PAGE), 0);
	ck_assert_int_eq(bed_state(1), KVMFAULT__DISCARDED);
}

TEST(discard, discard_across_regions)
{
	ck_assert_int_eq(discard(SECOND_GPA - PAGE, 2 * PAGE), 0);
	ck_assert_int_eq(bed_state(BED_PAGES - 1), KVMFAULT__DISCARDED);
	ck_assert_int_eq(bed_state(0), KVMFAULT__DISCARDED);
}

TEST(discard, discard_bad_ranges)
{
	ck_assert_int_eq(kvmfault_discard(NULL, 0, BED_GPA, PAGE), -EINVAL);
	ck_assert_int_eq(discard(BED_GPA, 0), -EINVAL);
	ck_assert_int_eq(discard(BED_GPA + 1, PAGE), -EINVAL);
	ck_assert_int_eq(discard(BED_GPA, PAGE - 1), -EINVAL);
	ck_assert_int_eq(discard(-PAGE, 2 * PAGE), -EINVAL);
	ck_assert_int_eq(discard(0, PAGE), -ENXIO);
	ck_assert_int_eq(discard(END - PAGE, 2 * PAGE), -ENXIO);
	ck_assert_int_eq(bed_state(1), KVMFAULT__DISCARDED);
}

TEST(discard, discard_that_fails_changes_nothing)
{
	ck_assert_int_eq(ensure(BED_GPA, PAGE), 0);
	fake_push(FAKE_FALLOCATE, -EPERM);
	ck_assert_int_eq(discard(BED_GPA, 2 * PAGE), -EPERM);
	ck_assert_int_eq(bed_state(0), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(1), KVMFAULT__ABSENT);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_DISCARD], 0);
	ck_assert_uint_eq(bed_stats().discarded, 0);
	ck_assert(bed_has(0, bed_byte(0)));
}

/* The hole is there, and the marker of one of the pages stays. */
TEST(discard, discard_that_leaves_a_marker)
{
	ck_assert_int_eq(ensure(BED_GPA, 3 * PAGE), 0);
	kvmfault__page_change(bed.memory, 1, KVMFAULT__PRESENT,
			      KVMFAULT__POISONED);
	fake_push(FAKE_MADVISE, -ENOMEM);
	ck_assert_int_eq(discard(BED_GPA, 3 * PAGE), -ENOMEM);
	ck_assert_int_eq(bed_state(0), KVMFAULT__DISCARDED);
	ck_assert_int_eq(bed_state(1), KVMFAULT__POISONED);
	ck_assert_int_eq(bed_state(2), KVMFAULT__DISCARDED);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_DISCARD], 1);
	ck_assert_int_eq(ensure(BED_GPA, PAGE), 0);
	ck_assert(bed_has(0, 0));
	ck_assert_int_eq(discard(BED_GPA, 3 * PAGE), 0);
	ck_assert_int_eq(bed_state(1), KVMFAULT__DISCARDED);
}

static struct kvmfault__answer message;

/* Somebody touches a page that is just being discarded. */
static bool touch_in_punch(struct fake_call *call)
{
	(void)call;
	message = bed_resolve(KVMFAULT_KIND_UFFD, 2, true);
	return false;
}

TEST(discard, touched_while_it_is_discarded)
{
	fake_on(FAKE_FALLOCATE, touch_in_punch);
	ck_assert_int_eq(discard(BED_GPA, 4 * PAGE), 0);
	ck_assert_int_eq(message.action, KVMFAULT_ACTION_RETRY);
	/* Not fetched meanwhile, and awake afterwards. */
	ck_assert_uint_eq(bed.reads, 0);
	ck_assert_int_eq(bed_state(2), KVMFAULT__DISCARDED);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
	ck_assert_uint_eq(fake_nth(FAKE_IOCTL, UFFDIO_WAKE, 0)->at,
			  (uintptr_t)bed_page(2));
}

static bool touch_and_fail(struct fake_call *call)
{
	message = bed_resolve(KVMFAULT_KIND_UFFD, 2, true);
	call->result = -EPERM;
	return true;
}

TEST(discard, touched_while_a_discard_fails)
{
	fake_on(FAKE_FALLOCATE, touch_and_fail);
	ck_assert_int_eq(discard(BED_GPA + 2 * PAGE, PAGE), -EPERM);
	ck_assert_int_eq(bed_state(2), KVMFAULT__ABSENT);
	/* Awake it faults again, and gets its data. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
	bed_resolve(KVMFAULT_KIND_UFFD, 2, true);
	ck_assert(bed_has(2, bed_byte(2)));
}

static pthread_t discarding;
static int second;

static void *discard_in_thread(void *arg)
{
	(void)arg;
	second = discard(BED_GPA + 2 * PAGE, PAGE);
	return NULL;
}

/* The first one's punch fails, and a second has come meanwhile. */
static bool discard_and_fail(struct fake_call *call)
{
	fake_on(FAKE_FALLOCATE, NULL);
	pthread_create(&discarding, NULL, discard_in_thread, NULL);
	while (bed_state(2) != KVMFAULT__FETCHING_DISCARDED)
		sched_yield();
	call->result = -EPERM;
	return true;
}

static void discard_twice(void)
{
	fake_on(FAKE_FALLOCATE, discard_and_fail);
	ck_assert_int_eq(discard(BED_GPA + 2 * PAGE, PAGE), -EPERM);
	pthread_join(discarding, NULL);
	ck_assert_int_eq(second, 0);
	ck_assert_int_eq(bed_state(2), KVMFAULT__DISCARDED);
	ck_assert(!fake_present(bed.fd, 2 * PAGE));
}

/* There is nothing to punch: that it is gone is true, and the second's. */
TEST(discard, second_discard_of_an_absent_page)
{
	discard_twice();
	ck_assert_uint_eq(fake_count(FAKE_FALLOCATE, FAKE_ANY), 1);
	ck_assert_int_eq(ensure(BED_GPA + 2 * PAGE, PAGE), 0);
	ck_assert(bed_has(2, 0));
	ck_assert_uint_eq(bed.reads, 0);
}

/* There is: the first one, which could not, tries again for the second. */
TEST(discard, second_discard_of_a_present_page)
{
	ck_assert_int_eq(ensure(BED_GPA + 2 * PAGE, PAGE), 0);
	discard_twice();
	ck_assert_uint_eq(fake_count(FAKE_FALLOCATE, FAKE_ANY), 2);
	ck_assert_uint_eq(bed_stats().discarded, 1);
}

#define HUGE (2ULL << 20)

TEST(discard, discard_in_huge_pages)
{
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = 2 * HUGE,
		.page_size = HUGE, .source = &source,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = HUGE, .length = 2 * HUGE,
	};

	options.fd = fake_memory(options.length, HUGE, &options.host);
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options,
					     &region.memory), 0);
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	ck_assert_int_eq(ensure(HUGE, 1), 0);
	ck_assert_uint_eq(bed.reads, 1);
	/* A part of one, at its begin, at its end, and into the next. */
	ck_assert_int_eq(discard(HUGE, PAGE), -EINVAL);
	ck_assert_int_eq(discard(HUGE + PAGE, HUGE - PAGE), -EINVAL);
	ck_assert_int_eq(discard(HUGE, HUGE + PAGE), -EINVAL);
	ck_assert_uint_eq(fake_count(FAKE_FALLOCATE, FAKE_ANY), 0);
	ck_assert_int_eq(kvmfault__page_state(region.memory, 0),
			 KVMFAULT__PRESENT);
	ck_assert_int_eq(discard(HUGE, 2 * HUGE), 0);
	ck_assert(!fake_present(options.fd, 0));
	ck_assert_int_eq(kvmfault__page_state(region.memory, 1),
			 KVMFAULT__DISCARDED);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, HUGE), 0);
	ck_assert_int_eq(kvmfault_memory_free(region.memory), 0);
}

TEST(ensure, without_memory)
{
	bed_take_seats();
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(ensure(BED_GPA, PAGE), -ENOMEM);
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(discard(BED_GPA, PAGE), -ENOMEM);
	bed_give_seats();
}

int main(void)
{
	return run_suite("range");
}
