/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The model's answers to the rows of tests/vm/behaviour-uffd.c.
 */

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "behaviour.h"
#include "lib/os/abi.h"

static uint64_t features(void)
{
	struct uffdio_api api = { .api = UFFD_API };

	must(uffd_ioctl(uffd_new(our_mm), UFFDIO_API, &api), "UFFDIO_API");
	return api.features;
}

static void feature(int bit)
{
	answer(features() >> bit & 1 ? "yes" : "no");
}

static void features_without_a_name(int bit)
{
	answer("%#llx", (unsigned long long)(features() >> bit << bit));
}

uint64_t map_kind(int kind)
{
	if (kind == ANONYMOUS)
		return mm_map(our_mm, NULL, 0, HUGE_PAGES,
			      PROT_READ | PROT_WRITE, true);
	return map_file(file_new(HUGE_PAGES, kind == HUGETLB, false));
}

static void list_ioctls(int kind, uint64_t mode)
{
	static const char *const names[] = {
		[0x02] = " WAKE", [0x03] = " COPY", [0x04] = " ZEROPAGE",
		[0x05] = " MOVE", [0x06] = " WRITEPROTECT",
		[0x07] = " CONTINUE", [0x08] = " POISON",
	};
	struct uffdio_register reg = {
		.range = { map_kind(kind), HUGE }, .mode = mode,
	};
	char text[256] = "";
	unsigned int i;

	may(uffd_ioctl(watcher(0), UFFDIO_REGISTER, &reg));
	for (i = 0; i < 64; i++)
		if (reg.ioctls >> i & 1)
			strcat(text, i < sizeof(names) / sizeof(names[0]) &&
			       names[i] ? names[i] : " another");
	answer("%s", text + 1);
}

static void missing_ioctls(int kind)
{
	list_ioctls(kind, UFFDIO_REGISTER_MODE_MISSING);
}

static void minor_ioctls(int kind)
{
	list_ioctls(kind, UFFDIO_REGISTER_MODE_MINOR);
}

static void wp_ioctls(int kind)
{
	list_ioctls(kind, UFFDIO_REGISTER_MODE_WP);
}

/* One page of a file that is mapped twice, each with its userfaultfd. */
static struct {
	struct uffd *uffd_a, *uffd_b;
	uint64_t a, b;
} twice;

static void map_twice(void)
{
	struct file *file = file_new(1, false, false);

	twice.a = map_file(file);
	twice.b = map_file(file);
	twice.uffd_a = watch(twice.a, PAGE, 0);
	twice.uffd_b = watch(twice.b, PAGE, 0);
}

/* A marker, for whoever reads there in the kernel. */
static const char *stays(uint64_t page)
{
	frame_t frame;

	switch (mm_access(our_mm, page, false, true, &frame)) {
	case ACCESS_OK:
		return "goes";
	case ACCESS_POISON:
		return "stays";
	default:
		answer("another error");
	}
}

static void marker_over_marker(int arg)
{
	(void)arg;
	map_twice();
	may(poison(twice.uffd_a, twice.a, PAGE));
	answer("%s", name_of(poison(twice.uffd_a, twice.a, PAGE)));
}

static void marker_over_page(int arg)
{
	(void)arg;
	map_twice();
	copy(twice.uffd_a, twice.a, 1, PAGE);
	answer("%s", name_of(poison(twice.uffd_a, twice.a, PAGE)));
}

static void marker_and_other_mapping(int arg)
{
	int ret;

	(void)arg;
	map_twice();
	may(poison(twice.uffd_a, twice.a, PAGE));
	must(copy(twice.uffd_b, twice.b, 1, PAGE), "copy");
	ret = copy(twice.uffd_a, twice.a, 1, PAGE);
	answer("%s, then a copy over it: %s", stays(twice.a), name_of(ret));
}

static void marker_and_continue(int arg)
{
	struct file *file = file_new(1, false, false);
	struct uffd *uffd = watcher(0);
	uint64_t a = map_file(file);
	int ret;

	(void)arg;
	must(watch_as(uffd, a, PAGE, UFFDIO_REGISTER_MODE_MISSING |
				     UFFDIO_REGISTER_MODE_MINOR), "register");
	may(poison(uffd, a, PAGE));
	must(file_write(file, 0, filled(1), PAGE), "pwrite");
	ret = map_again(uffd, a, PAGE);
	answer("%s, the marker %s", name_of(ret), stays(a));
}

static void marker_unregistered(int closed)
{
	struct uffdio_range range;

	map_twice();
	may(poison(twice.uffd_a, twice.a, PAGE));
	range = (struct uffdio_range){ twice.a, PAGE };
	if (closed)
		uffd_close(twice.uffd_a);
	else
		must(uffd_ioctl(twice.uffd_a, UFFDIO_UNREGISTER, &range),
		     "unregister");
	answer("%s", stays(twice.a));
}

/* Where one still is, another is refused. */
static void still_marked(struct uffd *uffd, uint64_t page, uint64_t length)
{
	int ret = poison(uffd, page, length);

	answer("%s", ret == -EEXIST ? "stays" : ret ? name_of(ret) : "goes");
}

static void marker_and_hole(int kind)
{
	uint64_t length = kind == HUGETLB ? HUGE : PAGE;
	struct file *file = file_new(HUGE_PAGES, kind == HUGETLB, false);
	uint64_t page = map_file(file);
	struct uffd *uffd = watch(page, length, 0);

	may(poison(uffd, page, length));
	must(file_punch(file, 0, length), "fallocate");
	still_marked(uffd, page, length);
}

static void marker_and_dontneed(int arg)
{
	(void)arg;
	map_twice();
	may(poison(twice.uffd_a, twice.a, PAGE));
	must(mm_madvise(our_mm, twice.a, PAGE, MADV_DONTNEED), "madvise");
	still_marked(twice.uffd_a, twice.a, PAGE);
}

static void populate(int sigbus)
{
	uint64_t page = map_kind(SHMEM);
	struct uffd *uffd = watch(page, HUGE, sigbus ? UFFD_FEATURE_SIGBUS : 0);

	if (!sigbus)
		may(poison(uffd, page, PAGE));
	answer("%s", name_of(mm_madvise(our_mm, page, PAGE,
					KVMFAULT__MADV_POPULATE_WRITE)));
}

/* ---- sleepers ---- */

/* A task that reads a page. */
static struct {
	uint64_t page, value;
	bool over;
} sleeper;

static void read_page(void *arg)
{
	(void)arg;
	mm_read(our_mm, sleeper.page, &sleeper.value);
	sleeper.over = true;
}

static bool awake(void)
{
	task_pause(300 * MS, "whoever wakes");
	return sleeper.over;
}

static void put_to_sleep(struct uffd *uffd, uint64_t page)
{
	struct uffd_msg msg;

	sleeper.page = page;
	sleeper.over = false;
	task_new("sleeper", our_mm, read_page, NULL);
	awake();
	if (uffd && uffd_read(uffd, &msg, sizeof(msg)) < 0)
		answer("cannot ask: message");
}

static void wake_other(int by_copy)
{
	int ret = 0;

	map_twice();
	put_to_sleep(twice.uffd_b, twice.b);
	copy(twice.uffd_a, twice.a, 1, PAGE);
	if (by_copy)
		ret = copy(twice.uffd_b, twice.b, 1, PAGE);
	answer("%s, %s", name_of(ret),
	       awake() ? "wakes" : "does not wake");
}

static void close_under_sleeper(int arg)
{
	(void)arg;
	map_twice();
	put_to_sleep(twice.uffd_b, twice.b);
	uffd_close(twice.uffd_b);
	if (!awake())
		answer("hangs");
	answer(sleeper.value ? "wakes, with data" : "wakes, with zeros");
}

/* ---- edges ---- */

/* Four pages, of which the third is there. */
static void partial_copy(int arg)
{
	struct uffdio_copy four = { .len = 4 * PAGE };
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch(pages, HUGE, 0);
	int first;

	(void)arg;
	copy(uffd, pages + 2 * PAGE, 1, PAGE);
	four.dst = pages;
	four.src = (uintptr_t)filled(1);
	first = uffd_ioctl(uffd, UFFDIO_COPY, &four);
	answer("%s, copy %lld, then %s", name_of(first), (long long)four.copy,
	       name_of(copy(uffd, pages + 2 * PAGE, 1, PAGE)));
}

static void copy_unregistered(int arg)
{
	(void)arg;
	answer("%s", name_of(copy(watcher(0), map_kind(SHMEM), 1, PAGE)));
}

static void copy_by_other(int arg)
{
	(void)arg;
	map_twice();
	answer("%s", name_of(copy(twice.uffd_a, twice.b, 1, PAGE)));
}

static void discard(void *page)
{
	mm_madvise(our_mm, *(uint64_t *)page, PAGE, MADV_DONTNEED);
}

static void copy_while_removing(int arg)
{
	struct uffdio_copy one = { .len = PAGE, .copy = 77 };
	static uint64_t pages;
	struct uffd *uffd;
	int ret;

	(void)arg;
	pages = map_kind(SHMEM);
	uffd = watch(pages, HUGE, UFFD_FEATURE_EVENT_REMOVE);
	task_new("discarder", our_mm, discard, &pages);
	while (!uffd_readable(uffd))
		task_pause(MS, "an event");
	one.dst = pages + PAGE;
	one.src = (uintptr_t)filled(1);
	ret = uffd_ioctl(uffd, UFFDIO_COPY, &one);
	if (!ret)
		answer("0");
	answer("%s, copy %s", name_of(ret), one.copy == 77 ? "as it was" :
	       one.copy == ret ? "-EAGAIN" : "set");
}

static void hole_event(int arg)
{
	struct file *file = file_new(1, false, false);
	uint64_t page = map_file(file);
	struct uffd *uffd = watch(page, PAGE, UFFD_FEATURE_EVENT_REMOVE);

	(void)arg;
	copy(uffd, page, 1, PAGE);
	must(file_punch(file, 0, PAGE), "fallocate");
	answer(uffd_readable(uffd) ? "an event" : "none");
}

static void allocated_ahead(int arg)
{
	struct file *file = file_new(1, false, false);
	uint64_t page = map_file(file);
	struct uffd *uffd = watch(page, PAGE, 0);
	int64_t data;

	(void)arg;
	file->ahead[0] = true;
	data = file_seek_data(file, 0);
	put_to_sleep(NULL, page);
	if (!awake())
		answer(uffd_readable(uffd) ? "a message" : "sleeps");
	answer("%s, SEEK_DATA says %s", sleeper.value ? "data" : "zeros",
	       data ? "hole" : "data");
}

static void process_gone(int arg)
{
	uint64_t page = map_kind(SHMEM);
	struct mm *child = mm_fork(our_mm);
	struct uffd *uffd = uffd_new(child);
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_range range = { page, PAGE };
	int copied, registered;

	(void)arg;
	must(uffd_ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
	must(watch_as(uffd, page, PAGE, UFFDIO_REGISTER_MODE_MISSING),
	     "register");
	mm_exit(child);
	copied = copy(uffd, page, 1, PAGE);
	registered = watch_as(uffd, page, PAGE, UFFDIO_REGISTER_MODE_MISSING);
	answer("COPY %s, POISON %s, REGISTER %s, WAKE %s", name_of(copied),
	       name_of(poison(uffd, page, PAGE)), name_of(registered),
	       name_of(uffd_ioctl(uffd, UFFDIO_WAKE, &range)));
}

const struct row uffd_rows[] = {
	{ "uffd feature PAGEFAULT_FLAG_WP", false, feature, 0 },
	{ "uffd feature EVENT_FORK", false, feature, 1 },
	{ "uffd feature EVENT_REMAP", false, feature, 2 },
	{ "uffd feature EVENT_REMOVE", false, feature, 3 },
	{ "uffd feature MISSING_HUGETLBFS", false, feature, 4 },
	{ "uffd feature MISSING_SHMEM", false, feature, 5 },
	{ "uffd feature EVENT_UNMAP", false, feature, 6 },
	{ "uffd feature SIGBUS", false, feature, 7 },
	{ "uffd feature THREAD_ID", false, feature, 8 },
	{ "uffd feature MINOR_HUGETLBFS", false, feature, 9 },
	{ "uffd feature MINOR_SHMEM", false, feature, 10 },
	{ "uffd feature EXACT_ADDRESS", false, feature, 11 },
	{ "uffd feature WP_HUGETLBFS_SHMEM", false, feature, 12 },
	{ "uffd feature WP_UNPOPULATED", false, feature, 13 },
	{ "uffd feature POISON", false, feature, 14 },
	{ "uffd feature WP_ASYNC", false, feature, 15 },
	{ "uffd feature MOVE", false, feature, 16 },
	{ "uffd feature RWP", false, feature, 17 },
	{ "uffd feature RWP_ASYNC", false, feature, 18 },
	{ "uffd features beyond", false, features_without_a_name, 19 },
	{ "uffd calls, missing, anonymous", false, missing_ioctls, ANONYMOUS },
	{ "uffd calls, missing, shmem", false, missing_ioctls, SHMEM },
	{ "uffd calls, missing, hugetlb", false, missing_ioctls, HUGETLB },
	{ "uffd calls, minor, anonymous", false, minor_ioctls, ANONYMOUS },
	{ "uffd calls, minor, shmem", false, minor_ioctls, SHMEM },
	{ "uffd calls, minor, hugetlb", false, minor_ioctls, HUGETLB },
	{ "uffd calls, wp, anonymous", false, wp_ioctls, ANONYMOUS },
	{ "uffd calls, wp, shmem", false, wp_ioctls, SHMEM },
	{ "uffd calls, wp, hugetlb", false, wp_ioctls, HUGETLB },
	{ "marker over a marker", false, marker_over_marker, 0 },
	{ "marker over a page", false, marker_over_page, 0 },
	{ "marker, copy through another mapping", false,
	  marker_and_other_mapping, 0 },
	{ "marker, UFFDIO_CONTINUE", false, marker_and_continue, 0 },
	{ "marker, unregistered", false, marker_unregistered, false },
	{ "marker, uffd closed", false, marker_unregistered, true },
	{ "marker, hole in shmem", false, marker_and_hole, SHMEM },
	{ "marker, hole in hugetlb", false, marker_and_hole, HUGETLB },
	{ "marker, MADV_DONTNEED", false, marker_and_dontneed, 0 },
	{ "marker, MADV_POPULATE_WRITE", false, populate, false },
	{ "uffd SIGBUS, MADV_POPULATE_WRITE", false, populate, true },
	{ "page by another mapping, sleeper", false, wake_other, false },
	{ "copy over a page, sleeper", false, wake_other, true },
	{ "last descriptor closed, sleeper", false, close_under_sleeper, 0 },
	{ "copy of pages of which one is there", false, partial_copy, 0 },
	{ "copy to unregistered memory", false, copy_unregistered, 0 },
	{ "copy by another userfaultfd", false, copy_by_other, 0 },
	{ "copy with an event unread", false, copy_while_removing, 0 },
	{ "event of a hole", false, hole_event, 0 },
	{ "blocks allocated ahead", false, allocated_ahead, 0 },
	{ "process gone", false, process_gone, 0 },
	{ NULL, false, NULL, 0 },
};
