/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * userfaultfd: what it has, and what it does at the edges. No VM is asked.
 */

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "behaviour.h"

#define POPULATE_WRITE 23		/* MADV_POPULATE_WRITE */
#define PIDFD_OPEN 434
#define PIDFD_GETFD 438

static void feature(int bit)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = must((int)syscall(SYS_userfaultfd, O_CLOEXEC), "userfaultfd");

	must(ioctl(fd, UFFDIO_API, &api), "UFFDIO_API");
	answer(api.features >> bit & 1 ? "yes" : "no");
}

static void features_without_a_name(int bit)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = must((int)syscall(SYS_userfaultfd, O_CLOEXEC), "userfaultfd");

	must(ioctl(fd, UFFDIO_API, &api), "UFFDIO_API");
	answer("%#llx", (unsigned long long)(api.features >> bit << bit));
}

char *map_kind(int kind)
{
	const int prot = PROT_READ | PROT_WRITE;
	int fd;

	if (kind == ANONYMOUS)
		return must_map(mmap(NULL, HUGE, prot,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
				"mmap");
	fd = must(memfd_create("kind", kind == SHMEM ? 0 :
			       MFD_HUGETLB | 21U << MAP_HUGE_SHIFT), "memfd");
	must(ftruncate(fd, HUGE), "ftruncate");
	return must_map(mmap(NULL, HUGE, prot, MAP_SHARED | MAP_NORESERVE, fd,
			     0), "mmap");
}

/* The calls that a range of this kind of memory takes, by name. */
static void list_ioctls(int kind, uint64_t mode)
{
	static const char *const names[64] = {
		[0x02] = "WAKE", [0x03] = "COPY", [0x04] = "ZEROPAGE",
		[0x05] = "MOVE", [0x06] = "WRITEPROTECT", [0x07] = "CONTINUE",
		[0x08] = "POISON", [0x09] = "RWPROTECT",
	};
	char text[256] = "";
	uint64_t ioctls;
	unsigned int i;

	may(uffd_register(uffd_new(0, 0), map_kind(kind), HUGE, mode,
			  &ioctls));
	for (i = 0; i < 64; i++) {
		if (!(ioctls >> i & 1))
			continue;
		if (names[i])
			strcat(text, names[i]);
		else
			sprintf(text + strlen(text), "%#04x", i);
		strcat(text, " ");
	}
	text[strlen(text) - 1] = '\0';
	answer("%s", text);
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
	int fd, uffd_a, uffd_b;
	char *a, *b;
} twice;

static char *map_shared(int fd, size_t length)
{
	return must_map(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED,
			     fd, 0), "mmap");
}

int watch(void *start, size_t length, uint64_t features)
{
	int fd = uffd_new(0, features);

	must(uffd_register(fd, start, length, UFFDIO_REGISTER_MODE_MISSING,
			   NULL), "register");
	return fd;
}

static void map_twice(void)
{
	twice.fd = must(memfd_create("twice", 0), "memfd");
	must(ftruncate(twice.fd, PAGE), "ftruncate");
	twice.a = map_shared(twice.fd, PAGE);
	twice.b = map_shared(twice.fd, PAGE);
	twice.uffd_a = watch(twice.a, PAGE, 0);
	twice.uffd_b = watch(twice.b, PAGE, 0);
}

static void mark(int uffd, char *page, size_t length)
{
	errno = -uffd_poison(uffd, page, length);
	may(errno ? -1 : 0);
}

const char *name_of(int ret)
{
	return ret ? strerrorname_np(-ret) : "0";
}

/* Where no page is missing: a marker cannot be read. */
static const char *stays(const char *page)
{
	int fds[2];

	must(pipe(fds), "pipe");
	if (write(fds[1], page, 1) == 1)
		return "goes";
	must(errno == EFAULT ? 0 : -1, "write");
	return "stays";
}

static void marker_over_marker(int arg)
{
	(void)arg;
	map_twice();
	mark(twice.uffd_a, twice.a, PAGE);
	answer("%s", name_of(uffd_poison(twice.uffd_a, twice.a, PAGE)));
}

static void marker_over_page(int arg)
{
	(void)arg;
	map_twice();
	uffd_copy(twice.uffd_a, twice.a, filled(1), PAGE);
	answer("%s", name_of(uffd_poison(twice.uffd_a, twice.a, PAGE)));
}

static void marker_and_other_mapping(int arg)
{
	int ret;

	(void)arg;
	map_twice();
	mark(twice.uffd_a, twice.a, PAGE);
	errno = -uffd_copy(twice.uffd_b, twice.b, filled(1), PAGE);
	must(errno ? -1 : 0, "copy");
	ret = uffd_copy(twice.uffd_a, twice.a, filled(1), PAGE);
	answer("%s, then a copy over it: %s", stays(twice.a), name_of(ret));
}

/* The page is in the file, from elsewhere; the marker hides it. */
static void marker_and_continue(int arg)
{
	char *a;
	int fd = must(memfd_create("minor", 0), "memfd");
	int ret, uffd = uffd_new(0, 0);

	(void)arg;
	must(ftruncate(fd, PAGE), "ftruncate");
	a = map_shared(fd, PAGE);
	must(uffd_register(uffd, a, PAGE, UFFDIO_REGISTER_MODE_MISSING |
			   UFFDIO_REGISTER_MODE_MINOR, NULL), "register");
	mark(uffd, a, PAGE);
	must(pwrite(fd, filled(1), PAGE, 0), "pwrite");
	ret = uffd_continue(uffd, a, PAGE);
	answer("%s, the marker %s", name_of(ret), stays(a));
}

static void marker_unregistered(int closed)
{
	struct uffdio_range range;

	map_twice();
	mark(twice.uffd_a, twice.a, PAGE);
	range = (struct uffdio_range){ (uintptr_t)twice.a, PAGE };
	if (closed)
		close(twice.uffd_a);
	else
		must(ioctl(twice.uffd_a, UFFDIO_UNREGISTER, &range),
		     "unregister");
	answer("%s", stays(twice.a));
}

/* Where one still is, another is refused. */
static void still_marked(int uffd, char *page, size_t length)
{
	int ret = uffd_poison(uffd, page, length);

	answer("%s", ret == -EEXIST ? "stays" : ret ? name_of(ret) : "goes");
}

static void marker_and_hole(int kind)
{
	size_t length = kind == HUGETLB ? HUGE : PAGE;
	int fd, uffd;
	char *page;

	if (kind == HUGETLB && !throwaway())
		answer("not asked: takes a huge page from others");
	fd = must(memfd_create("kind", kind == SHMEM ? 0 :
			       MFD_HUGETLB | 21U << MAP_HUGE_SHIFT), "memfd");
	must(ftruncate(fd, (off_t)length), "ftruncate");
	page = map_shared(fd, length);
	uffd = watch(page, length, 0);
	mark(uffd, page, length);
	must(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
		       (off_t)length), "fallocate");
	still_marked(uffd, page, length);
}

static void marker_and_dontneed(int arg)
{
	(void)arg;
	map_twice();
	mark(twice.uffd_a, twice.a, PAGE);
	must(madvise(twice.a, PAGE, MADV_DONTNEED), "madvise");
	still_marked(twice.uffd_a, twice.a, PAGE);
}

static void populate(uint64_t features)
{
	char *page = map_kind(SHMEM);
	int uffd = watch(page, HUGE, features);

	if (!features)
		mark(uffd, page, PAGE);
	answer("%s", madvise(page, PAGE, POPULATE_WRITE) ?
	       strerrorname_np(errno) : "0");
}

static void populate_marker(int arg)
{
	(void)arg;
	populate(0);
}

static void populate_sigbus(int arg)
{
	(void)arg;
	populate(UFFD_FEATURE_SIGBUS);
}

/* A thread that reads a page that is missing. */
static struct {
	pthread_t thread;
	const volatile char *page;
	char value;
	bool awake;
} sleeper;

static void *read_page(void *arg)
{
	sleeper.value = *sleeper.page;
	__atomic_store_n(&sleeper.awake, true, __ATOMIC_SEQ_CST);
	return arg;
}

/* Returns when the kernel has said that it sleeps. */
static void put_to_sleep(int uffd, const char *page)
{
	struct uffd_msg msg;

	sleeper.page = page;
	errno = pthread_create(&sleeper.thread, NULL, read_page, NULL);
	must(errno ? -1 : 0, "thread");
	must(read(uffd, &msg, sizeof(msg)), "message");
}

/* Not woken, it is asleep for good: the moment only lets it come by. */
static bool awake(void)
{
	usleep(300000);
	return __atomic_load_n(&sleeper.awake, __ATOMIC_SEQ_CST);
}

/* A page that comes through a, for who sleeps on b. */
static void wake_other(int by_copy)
{
	struct uffdio_range range;
	int ret = 0;

	map_twice();
	put_to_sleep(twice.uffd_b, twice.b);
	uffd_copy(twice.uffd_a, twice.a, filled(1), PAGE);
	if (by_copy)
		ret = uffd_copy(twice.uffd_b, twice.b, filled(1), PAGE);
	if (awake())
		answer("%s, wakes", name_of(ret));
	range = (struct uffdio_range){ (uintptr_t)twice.b, PAGE };
	must(ioctl(twice.uffd_b, UFFDIO_WAKE, &range), "wake");
	pthread_join(sleeper.thread, NULL);
	answer("%s, does not wake", name_of(ret));
}

static void close_under_sleeper(int arg)
{
	(void)arg;
	map_twice();
	put_to_sleep(twice.uffd_b, twice.b);
	close(twice.uffd_b);
	pthread_join(sleeper.thread, NULL);
	answer(sleeper.value ? "wakes, with data" : "wakes, with zeros");
}

/* Four pages, of which the third is there. */
static void partial_copy(int arg)
{
	struct uffdio_copy copy = { .len = 4 * PAGE };
	char *pages = map_kind(SHMEM);
	int first, uffd = watch(pages, HUGE, 0);

	(void)arg;
	uffd_copy(uffd, pages + 2 * PAGE, filled(1), PAGE);
	copy.dst = (uintptr_t)pages;
	copy.src = (uintptr_t)filled(1);
	first = ioctl(uffd, UFFDIO_COPY, &copy) ? -errno : 0;
	answer("%s, copy %lld, then %s", name_of(first), (long long)copy.copy,
	       name_of(uffd_copy(uffd, pages + 2 * PAGE, filled(1), PAGE)));
}

static void copy_unregistered(int arg)
{
	(void)arg;
	answer("%s", name_of(uffd_copy(uffd_new(0, 0), map_kind(SHMEM),
				       filled(1), PAGE)));
}

/* The other mapping is registered, but with the other userfaultfd. */
static void copy_by_other(int arg)
{
	(void)arg;
	map_twice();
	answer("%s", name_of(uffd_copy(twice.uffd_a, twice.b, filled(1),
				       PAGE)));
}

/* Whether there is something to read; a blocking one cannot be asked. */
static bool told(int uffd, int timeout_ms)
{
	struct pollfd message = { .fd = uffd, .events = POLLIN };

	must(fcntl(uffd, F_SETFL, O_NONBLOCK), "fcntl");
	must(poll(&message, 1, timeout_ms), "poll");
	return message.revents & POLLIN;
}

static void *discard(void *page)
{
	madvise(page, PAGE, MADV_DONTNEED);
	return NULL;
}

/* While a thread in madvise() waits for its event to be read. */
static void copy_while_removing(int arg)
{
	struct uffdio_copy copy = { .len = PAGE, .copy = 77 };
	char *pages = map_kind(SHMEM);
	int uffd = watch(pages, HUGE, UFFD_FEATURE_EVENT_REMOVE);
	pthread_t thread;

	(void)arg;
	errno = pthread_create(&thread, NULL, discard, pages);
	must(errno ? -1 : 0, "thread");
	told(uffd, -1);
	copy.dst = (uintptr_t)(pages + PAGE);
	copy.src = (uintptr_t)filled(1);
	if (!ioctl(uffd, UFFDIO_COPY, &copy))
		answer("0");
	answer("%s, copy %s", strerrorname_np(errno), copy.copy == 77 ?
	       "as it was" : copy.copy == -errno ? "-EAGAIN" : "set");
}

static void hole_event(int arg)
{
	int uffd, fd = must(memfd_create("hole", 0), "memfd");
	char *page;

	(void)arg;
	must(ftruncate(fd, PAGE), "ftruncate");
	page = map_shared(fd, PAGE);
	uffd = watch(page, PAGE, UFFD_FEATURE_EVENT_REMOVE);
	uffd_copy(uffd, page, filled(1), PAGE);
	must(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
		       PAGE), "fallocate");
	answer(told(uffd, 0) ? "an event" : "none");
}

/* Blocks without pages: is there anything to miss? */
static void allocated_ahead(int arg)
{
	int uffd, fd = must(memfd_create("ahead", 0), "memfd");
	off_t data;
	char *page;

	(void)arg;
	must(ftruncate(fd, PAGE), "ftruncate");
	must(fallocate(fd, 0, 0, PAGE), "fallocate");
	page = map_shared(fd, PAGE);
	uffd = watch(page, PAGE, 0);
	data = lseek(fd, 0, SEEK_DATA);
	sleeper.page = page;
	errno = pthread_create(&sleeper.thread, NULL, read_page, NULL);
	must(errno ? -1 : 0, "thread");
	if (!awake())
		answer(told(uffd, 0) ? "a message" : "sleeps");
	answer("%s, SEEK_DATA says %s", sleeper.value ? "data" : "zeros",
	       data ? "hole" : "data");
}

static void register_and_tell(int tell, char *page)
{
	int fd = watch(page, PAGE, 0);

	must(write(tell, &fd, sizeof(fd)), "write");
	pause();
}

/* What is left of another process's userfaultfd when that is gone. */
static void process_gone(int arg)
{
	char *page = map_kind(SHMEM);
	struct uffdio_range range = { (uintptr_t)page, PAGE };
	int copied, fd, fds[2], registered, uffd;
	pid_t child;

	(void)arg;
	must(pipe(fds), "pipe");
	child = must(fork(), "fork");
	if (!child)
		register_and_tell(fds[1], page);
	must(read(fds[0], &fd, sizeof(fd)), "read");
	uffd = must((int)syscall(PIDFD_GETFD, must((int)syscall(PIDFD_OPEN,
		    child, 0), "pidfd_open"), fd, 0), "pidfd_getfd");
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	copied = uffd_copy(uffd, page, filled(1), PAGE);
	registered = uffd_register(uffd, page, PAGE,
				   UFFDIO_REGISTER_MODE_MISSING, NULL) ?
		     -errno : 0;
	answer("COPY %s, POISON %s, REGISTER %s, WAKE %s", name_of(copied),
	       name_of(uffd_poison(uffd, page, PAGE)), name_of(registered),
	       name_of(ioctl(uffd, UFFDIO_WAKE, &range) ? -errno : 0));
}

const struct row uffd_rows[] = {
	{ "uffd feature PAGEFAULT_FLAG_WP", 0, feature, 0 },
	{ "uffd feature EVENT_FORK", 0, feature, 1 },
	{ "uffd feature EVENT_REMAP", 0, feature, 2 },
	{ "uffd feature EVENT_REMOVE", 0, feature, 3 },
	{ "uffd feature MISSING_HUGETLBFS", 0, feature, 4 },
	{ "uffd feature MISSING_SHMEM", 0, feature, 5 },
	{ "uffd feature EVENT_UNMAP", 0, feature, 6 },
	{ "uffd feature SIGBUS", 0, feature, 7 },
	{ "uffd feature THREAD_ID", 0, feature, 8 },
	{ "uffd feature MINOR_HUGETLBFS", 0, feature, 9 },
	{ "uffd feature MINOR_SHMEM", 0, feature, 10 },
	{ "uffd feature EXACT_ADDRESS", 0, feature, 11 },
	{ "uffd feature WP_HUGETLBFS_SHMEM", 0, feature, 12 },
	{ "uffd feature WP_UNPOPULATED", 0, feature, 13 },
	{ "uffd feature POISON", 0, feature, 14 },
	{ "uffd feature WP_ASYNC", 0, feature, 15 },
	{ "uffd feature MOVE", 0, feature, 16 },
	{ "uffd feature RWP", 0, feature, 17 },
	{ "uffd feature RWP_ASYNC", 0, feature, 18 },
	{ "uffd features beyond", 0, features_without_a_name, 19 },
	{ "uffd calls, missing, anonymous", 0, missing_ioctls, ANONYMOUS },
	{ "uffd calls, missing, shmem", 0, missing_ioctls, SHMEM },
	{ "uffd calls, missing, hugetlb", 0, missing_ioctls, HUGETLB },
	{ "uffd calls, minor, anonymous", 0, minor_ioctls, ANONYMOUS },
	{ "uffd calls, minor, shmem", 0, minor_ioctls, SHMEM },
	{ "uffd calls, minor, hugetlb", 0, minor_ioctls, HUGETLB },
	{ "uffd calls, wp, anonymous", 0, wp_ioctls, ANONYMOUS },
	{ "uffd calls, wp, shmem", 0, wp_ioctls, SHMEM },
	{ "uffd calls, wp, hugetlb", 0, wp_ioctls, HUGETLB },
	{ "marker over a marker", 0, marker_over_marker, 0 },
	{ "marker over a page", 0, marker_over_page, 0 },
	{ "marker, copy through another mapping", 0, marker_and_other_mapping,
	  0 },
	{ "marker, UFFDIO_CONTINUE", 0, marker_and_continue, 0 },
	{ "marker, unregistered", 0, marker_unregistered, false },
	{ "marker, uffd closed", 0, marker_unregistered, true },
	{ "marker, hole in shmem", 0, marker_and_hole, SHMEM },
	{ "marker, hole in hugetlb", 0, marker_and_hole, HUGETLB },
	{ "marker, MADV_DONTNEED", 0, marker_and_dontneed, 0 },
	{ "marker, MADV_POPULATE_WRITE", 0, populate_marker, 0 },
	{ "uffd SIGBUS, MADV_POPULATE_WRITE", 0, populate_sigbus, 0 },
	{ "page by another mapping, sleeper", 0, wake_other, false },
	{ "copy over a page, sleeper", 0, wake_other, true },
	{ "last descriptor closed, sleeper", 0, close_under_sleeper, 0 },
	{ "copy of pages of which one is there", 0, partial_copy, 0 },
	{ "copy to unregistered memory", 0, copy_unregistered, 0 },
	{ "copy by another userfaultfd", 0, copy_by_other, 0 },
	{ "copy with an event unread", 0, copy_while_removing, 0 },
	{ "event of a hole", 0, hole_event, 0 },
	{ "blocks allocated ahead", 0, allocated_ahead, 0 },
	{ "process gone", 0, process_gone, 0 },
	{ NULL, 0, NULL, 0 },
};
