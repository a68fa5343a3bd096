/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * userfaultfd where two things meet: a call and the border of a mapping, a
 * sleeper and what is done under him, a protected page and what becomes of it.
 * No VM is asked.
 */

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "behaviour.h"

#define POPULATE_WRITE 23		/* MADV_POPULATE_WRITE */
#define FSOPEN 430
#define FSCONFIG 431
#define FSCONFIG_STRING 1
#define FSCONFIG_CREATE 6
#define FSMOUNT 432

#define MISSING UFFDIO_REGISTER_MODE_MISSING
#define MINOR UFFDIO_REGISTER_MODE_MINOR
#define PROTECTED UFFDIO_REGISTER_MODE_WP

#define PATIENCE_MS 500			/* what comes later does not come */

static int watch_as(char *start, size_t length, uint64_t mode)
{
	int fd = uffd_new(0, 0);

	may(uffd_register(fd, start, length, mode, NULL));
	return fd;
}

static int copy_as(int fd, struct uffdio_copy copy)
{
	return ioctl(fd, UFFDIO_COPY, &copy) ? -errno : 0;
}

static int copy(int fd, const char *to)
{
	return copy_as(fd, (struct uffdio_copy){
		.dst = (uintptr_t)to, .src = (uintptr_t)filled(1),
		.len = PAGE });
}

static int zero(int fd, const char *page)
{
	struct uffdio_zeropage arg = { .range = { (uintptr_t)page, PAGE } };

	return ioctl(fd, UFFDIO_ZEROPAGE, &arg) ? -errno : 0;
}

static int protect(int fd, const char *start, size_t length, bool on)
{
	struct uffdio_writeprotect arg = {
		.range = { (uintptr_t)start, length },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return ioctl(fd, UFFDIO_WRITEPROTECT, &arg) ? -errno : 0;
}

static int range_call(int fd, unsigned long request, const char *start,
		      size_t length)
{
	struct uffdio_range range = { (uintptr_t)start, length };

	return ioctl(fd, request, &range) ? -errno : 0;
}

/* As must() and may(), of 0 or -errno. */
static void demand(int ret, const char *what)
{
	errno = -ret;
	must(ret ? -1 : 0, what);
}

static void mark(int fd, char *page, size_t length)
{
	errno = -uffd_poison(fd, page, length);
	may(errno ? -1 : 0);
}

/* HUGE of a file whose first pages have data. */
static char *map_written(size_t written)
{
	int fd = must(memfd_create("written", 0), "memfd");

	must(ftruncate(fd, HUGE), "ftruncate");
	must(pwrite(fd, filled(1), written, 0), "pwrite");
	return must_map(mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			     0), "mmap");
}

/* ---- a thread that touches a page ---- */

enum how { READS, WRITES, POPULATES, COPIES };

static struct {
	pthread_t thread;
	volatile char *page;
	enum how how;
	int pipe;
	sigjmp_buf out;
	volatile int signal;		/* that the access ended in */
	volatile int error;
	char value;
	bool over;
} toucher;

static void on_fault(int signo)
{
	toucher.signal = signo;
	siglongjmp(toucher.out, 1);
}

static void touch_it(char *page)
{
	switch (toucher.how) {
	case READS:
		toucher.value = *toucher.page;
		return;
	case WRITES:
		*toucher.page = 2;
		return;
	case POPULATES:
		toucher.error = madvise(page, PAGE, POPULATE_WRITE) ? errno : 0;
		return;
	case COPIES:
		toucher.error = write(toucher.pipe, page, 1) < 0 ? errno : 0;
		return;
	}
}

static void *touch_once(void *page)
{
	if (!sigsetjmp(toucher.out, 1))
		touch_it(page);
	__atomic_store_n(&toucher.over, true, __ATOMIC_SEQ_CST);
	return NULL;
}

static void begin(char *page, enum how how)
{
	struct sigaction action = { .sa_handler = on_fault };
	int fds[2];

	must(pipe(fds), "pipe");
	toucher.pipe = fds[1];
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	toucher.page = page;
	toucher.how = how;
	toucher.over = false;
	toucher.signal = 0;
	demand(-pthread_create(&toucher.thread, NULL, touch_once, page),
	       "thread");
}

static bool comes(int uffd)
{
	struct pollfd message = { .fd = uffd, .events = POLLIN };

	/* A blocking one cannot be asked. */
	must(fcntl(uffd, F_SETFL, O_NONBLOCK), "fcntl");
	must(poll(&message, 1, PATIENCE_MS), "poll");
	return message.revents & POLLIN;
}

/* Its kind; one may be withdrawn again at once. */
static const char *message(int uffd)
{
	struct uffd_msg msg;
	uint64_t flags;

	do {
		if (!comes(uffd))
			return "none";
	} while (read(uffd, &msg, sizeof(msg)) < 0 && errno == EAGAIN);
	flags = msg.arg.pagefault.flags;
	if (flags & UFFD_PAGEFAULT_FLAG_WP)
		return "protected";
	return flags & UFFD_PAGEFAULT_FLAG_MINOR ? "minor" : "missing";
}

static void put_to_sleep(int uffd, char *page, enum how how)
{
	begin(page, how);
	if (!strcmp(message(uffd), "none"))
		answer("cannot ask: no message");
}

static bool is_over(void)
{
	unsigned int ms;

	for (ms = 0; ms < PATIENCE_MS; ms++) {
		if (__atomic_load_n(&toucher.over, __ATOMIC_SEQ_CST))
			return true;
		usleep(1000);
	}
	return false;
}

/* What has become of the thread. */
static const char *became(void)
{
	if (!is_over())
		return "sleeps";
	if (toucher.signal)
		return toucher.signal == SIGSEGV ? "SIGSEGV" : "SIGBUS";
	switch (toucher.how) {
	case READS:
		return toucher.value ? "reads data" : "reads zeros";
	case WRITES:
		return "writes";
	default:
		return name_of(-toucher.error);
	}
}

/* The message that a write there is, or what it comes to. */
static const char *written(int uffd, char *page)
{
	const char *came;

	begin(page, WRITES);
	came = message(uffd);
	return strcmp(came, "none") ? came : became();
}

/* ---- borders ---- */

static void over_a_border(int arg)
{
	char *pages = map_kind(SHMEM);
	int uffd = watch_as(pages, HUGE, MISSING | MINOR | PROTECTED);
	int copied, continued, poisoned;

	(void)arg;
	must(mprotect(pages + PAGE, PAGE, PROT_READ), "mprotect");
	copied = uffd_copy(uffd, pages, filled(1), 2 * PAGE);
	continued = uffd_continue(uffd, pages, 2 * PAGE);
	poisoned = uffd_poison(uffd, pages, 2 * PAGE);
	answer("COPY %s, CONTINUE %s, POISON %s, WRITEPROTECT %s",
	       name_of(copied), name_of(continued), name_of(poisoned),
	       name_of(protect(uffd, pages, 2 * PAGE, true)));
}

static void copy_unreadable(int kind)
{
	size_t length = kind == HUGETLB ? HUGE : PAGE;
	struct uffdio_copy arg = { .len = length };
	char *pages, *from;
	int absent, uffd;

	if (kind == HUGETLB && !throwaway())
		answer("not asked: takes a huge page from others");
	from = must_map(mmap(NULL, length, PROT_NONE, MAP_PRIVATE |
			     MAP_ANONYMOUS, -1, 0), "mmap");
	pages = map_kind(kind);
	uffd = watch_as(pages, HUGE, MISSING);
	arg.dst = (uintptr_t)pages;
	arg.src = (uintptr_t)from;
	absent = ioctl(uffd, UFFDIO_COPY, &arg) ? -errno : 0;
	demand(uffd_copy(uffd, pages, filled(1), length), "copy");
	answer("%s, copy -%s, over a page %s", name_of(absent),
	       name_of((int)arg.copy), name_of(copy_as(uffd, arg)));
}

static void past_the_end(int arg)
{
	int fd = must(memfd_create("short", 0), "memfd"), uffd;
	int copied, continued;
	char *pages;

	(void)arg;
	must(ftruncate(fd, PAGE), "ftruncate");
	pages = must_map(mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
			      MAP_SHARED, fd, 0), "mmap");
	uffd = watch_as(pages, 2 * PAGE, MISSING | MINOR);
	copied = copy(uffd, pages + PAGE);
	continued = uffd_continue(uffd, pages + PAGE, PAGE);
	answer("COPY %s, CONTINUE %s, POISON %s", name_of(copied),
	       name_of(continued),
	       name_of(uffd_poison(uffd, pages + PAGE, PAGE)));
}

/* A file system with room for one page, that is mounted nowhere. */
static void full(int arg)
{
	int fs = must((int)syscall(FSOPEN, "tmpfs", 0), "fsopen"), fd, uffd;
	char *pages;

	(void)arg;
	must(syscall(FSCONFIG, fs, FSCONFIG_STRING, "size", "4096", 0), "size");
	must(syscall(FSCONFIG, fs, FSCONFIG_CREATE, NULL, NULL, 0), "create");
	fs = must((int)syscall(FSMOUNT, fs, 0, 0), "fsmount");
	fd = must(openat(fs, "full", O_RDWR | O_CREAT, 0600), "open");
	must(ftruncate(fd, 2 * PAGE), "ftruncate");
	pages = must_map(mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
			      MAP_SHARED, fd, 0), "mmap");
	uffd = watch_as(pages, 2 * PAGE, MISSING);
	demand(copy(uffd, pages), "copy");
	answer("%s, over a page %s", name_of(copy(uffd, pages + PAGE)),
	       name_of(copy(uffd, pages)));
}

/* ---- registered again, and not any more ---- */

static void register_again(int arg)
{
	char *pages = map_kind(SHMEM);
	int uffd = watch_as(pages, HUGE, MISSING | PROTECTED), first;

	(void)arg;
	first = uffd_register(uffd, pages, HUGE, MISSING, NULL) ? -errno : 0;
	answer("%s, with another %s", name_of(first),
	       name_of(uffd_register(uffd_new(0, 0), pages, HUGE, MISSING,
				     NULL) ? -errno : 0));
}

static void unregister_other(int arg)
{
	char *pages = map_kind(SHMEM);
	int uffd = watch_as(pages, HUGE, MISSING);
	int ret = range_call(uffd_new(0, 0), UFFDIO_UNREGISTER, pages, HUGE);

	(void)arg;
	answer("%s, then a copy %s", name_of(ret), name_of(copy(uffd, pages)));
}

static void unregister_unmapped(int arg)
{
	char *pages = map_kind(SHMEM);
	int uffd = watch_as(pages, HUGE, MISSING), part, whole;

	(void)arg;
	must(munmap(pages, PAGE), "munmap");
	part = range_call(uffd, UFFDIO_UNREGISTER, pages, 2 * PAGE);
	whole = range_call(uffd, UFFDIO_UNREGISTER, pages, PAGE);
	answer("%s, in part %s, WAKE %s", name_of(whole), name_of(part),
	       name_of(range_call(uffd, UFFDIO_WAKE, pages, PAGE)));
}

static void unregister_under_sleeper(int mode)
{
	char *pages = map_written(mode == MISSING ? 0 : PAGE);
	int uffd = watch_as(pages, HUGE, (uint64_t)mode);

	if (mode == PROTECTED)
		demand(protect(uffd, pages, PAGE, true), "protect");
	put_to_sleep(uffd, pages, WRITES);
	demand(range_call(uffd, UFFDIO_UNREGISTER, pages, HUGE), "unregister");
	answer("%s", became());
}

/* ---- sleepers ---- */

static void copy_without_wake(int arg)
{
	struct uffdio_copy quiet = {
		.src = (uintptr_t)filled(1), .len = PAGE,
		.mode = UFFDIO_COPY_MODE_DONTWAKE,
	};
	char *pages = map_kind(SHMEM);
	int ret, uffd = watch_as(pages, HUGE, MISSING);
	const char *first;

	(void)arg;
	put_to_sleep(uffd, pages, READS);
	quiet.dst = (uintptr_t)pages;
	ret = copy_as(uffd, quiet);
	first = became();
	demand(range_call(uffd, UFFDIO_WAKE, pages, PAGE), "wake");
	answer("%s, %s, woken: %s", name_of(ret), first, became());
}

static void unread_message(int arg)
{
	char *pages = map_kind(SHMEM);
	int uffd = watch_as(pages, HUGE, MISSING);
	const char *first;

	(void)arg;
	begin(pages, READS);
	if (!comes(uffd))
		answer("cannot ask: no message");
	demand(copy(uffd, pages), "copy");
	first = became();
	answer("%s, message: %s", first, message(uffd));
}

static void wake_for_nothing(int arg)
{
	char *pages = map_kind(SHMEM);
	int uffd = watch_as(pages, HUGE, MISSING);
	const char *first;

	(void)arg;
	put_to_sleep(uffd, pages, READS);
	demand(range_call(uffd, UFFDIO_WAKE, pages, PAGE), "wake");
	first = became();
	answer("%s, message: %s", first, message(uffd));
}

static void unmap_under_sleeper(int arg)
{
	char *pages = map_kind(SHMEM);
	int uffd = watch_as(pages, HUGE, MISSING);
	const char *first;

	(void)arg;
	put_to_sleep(uffd, pages, READS);
	must(munmap(pages, PAGE), "munmap");
	first = became();
	demand(range_call(uffd, UFFDIO_WAKE, pages, PAGE), "wake");
	answer("%s, woken: %s", first, became());
}

static void forbid_under_sleeper(int closed)
{
	char *pages = map_kind(SHMEM);
	int uffd = watch_as(pages, HUGE, MISSING), ret;
	const char *first;

	put_to_sleep(uffd, pages, READS);
	must(mprotect(pages, PAGE, PROT_NONE), "mprotect");
	first = became();
	if (closed) {
		close(uffd);
		answer("%s, closed: %s", first, became());
	}
	ret = copy(uffd, pages);
	answer("%s, copy %s: %s", first, name_of(ret), became());
}

static void on_usr1(int signo)
{
	(void)signo;
}

static void signal_sleeper(int how)
{
	struct sigaction action = { .sa_handler = on_usr1 };
	char *pages = map_kind(SHMEM);
	int uffd = watch_as(pages, HUGE, MISSING);
	const char *first;

	sigaction(SIGUSR1, &action, NULL);
	put_to_sleep(uffd, pages, (enum how)how);
	usleep(100000);
	pthread_kill(toucher.thread, SIGUSR1);
	first = became();
	answer("%s, message: %s", first, message(uffd));
}

/* ---- moved, forked, removed ---- */

static void moved(int arg)
{
	struct uffdio_copy protected = {
		.src = (uintptr_t)filled(1), .len = PAGE,
		.mode = UFFDIO_COPY_MODE_WP,
	};
	char *new = map_kind(ANONYMOUS), *old = map_kind(SHMEM);
	int uffd = watch_as(old, HUGE, MISSING | PROTECTED), here, there;
	const char *absent, *marked, *slept;

	(void)arg;
	protected.dst = (uintptr_t)(old + PAGE);
	demand(copy_as(uffd, protected), "copy");
	mark(uffd, old + 2 * PAGE, PAGE);
	put_to_sleep(uffd, old, READS);
	must_map(mremap(old, HUGE, HUGE, MREMAP_MAYMOVE | MREMAP_FIXED, new),
		 "mremap");
	slept = became();
	there = copy(uffd, old);
	here = copy(uffd, new);
	begin(new + 2 * PAGE, READS);
	marked = became();
	begin(new + 3 * PAGE, READS);
	absent = became();
	answer("sleeper %s, COPY there %s, here %s, marker: %s, absent: %s, "
	       "protected: %s", slept, name_of(there), name_of(here), marked,
	       absent, written(uffd, new + PAGE));
}

static void child(char *pages)
{
	const char *absent;

	begin(pages, READS);
	absent = became();
	begin(pages + PAGE, READS);
	answer("absent: %s, marker: %s", absent, became());
}

static void forked(int kind)
{
	char *pages = map_kind(kind);
	int uffd = watch_as(pages, HUGE, MISSING);

	mark(uffd, pages + PAGE, PAGE);
	demand(copy(uffd, pages + 2 * PAGE), "copy");
	if (!must(fork(), "fork"))
		child(pages);
	wait(NULL);
	_exit(0);
}

static void *remove_page(void *page)
{
	madvise(page, PAGE, MADV_REMOVE);
	return NULL;
}

static void remove_event(int arg)
{
	char *pages = map_kind(SHMEM);
	int uffd = watch(pages, HUGE, UFFD_FEATURE_EVENT_REMOVE);
	pthread_t thread;

	(void)arg;
	demand(-pthread_create(&thread, NULL, remove_page, pages), "thread");
	answer(comes(uffd) ? "an event" : "none");
}

/* ---- markers ---- */

static void fill_marked(int kind)
{
	char *pages = map_kind(kind);
	int copied, uffd = watch_as(pages, HUGE, MISSING);

	mark(uffd, pages, 2 * PAGE);
	copied = copy(uffd, pages);
	answer("COPY %s, ZEROPAGE %s", name_of(copied),
	       name_of(zero(uffd, pages + PAGE)));
}

static void marker_in_file(int arg)
{
	char *pages = map_written(PAGE);
	int ret, uffd = watch_as(pages, HUGE, MISSING);
	unsigned char state;

	(void)arg;
	ret = uffd_poison(uffd, pages, 2 * PAGE);
	begin(pages, READS);
	must(mincore(pages + PAGE, PAGE, &state), "mincore");
	answer("%s, then %s, mincore() of another: %u", name_of(ret), became(),
	       state & 1U);
}

static void protect_marked(int arg)
{
	char *pages = map_kind(SHMEM);
	int ret, uffd = watch_as(pages, HUGE, MISSING | PROTECTED);

	(void)arg;
	mark(uffd, pages, PAGE);
	ret = protect(uffd, pages, PAGE, true);
	answer("%s, then %s", name_of(ret), written(uffd, pages));
}

/* ---- protected pages ---- */

static void protect_absent(int kind)
{
	char *pages = map_kind(kind);
	int uffd = watch_as(pages, HUGE, PROTECTED);
	int ret = protect(uffd, pages, PAGE, true);

	answer("%s, then %s", name_of(ret), written(uffd, pages));
}

static void protect_beyond(int arg)
{
	char *pages = map_kind(SHMEM);
	int ret, uffd = watch_as(pages, PAGE, PROTECTED);

	(void)arg;
	ret = protect(uffd, pages, 2 * PAGE, true);
	answer("%s, then %s", name_of(ret), written(uffd, pages));
}

static void fill_protected(int arg)
{
	char *pages = map_kind(SHMEM);
	int poisoned, uffd = watch_as(pages, HUGE, MISSING | PROTECTED);
	const char *copied;

	(void)arg;
	demand(protect(uffd, pages, 3 * PAGE, true), "protect");
	poisoned = uffd_poison(uffd, pages + 2 * PAGE, PAGE);
	demand(copy(uffd, pages), "copy");
	demand(zero(uffd, pages + PAGE), "zero");
	copied = written(uffd, pages);
	answer("COPY: %s, ZEROPAGE: %s, POISON %s", copied,
	       written(uffd, pages + PAGE), name_of(poisoned));
}

static void minor_protected(int arg)
{
	char *pages = map_written(PAGE);
	int uffd = watch_as(pages, HUGE, MINOR | PROTECTED);
	const char *first;

	(void)arg;
	demand(protect(uffd, pages, PAGE, true), "protect");
	first = written(uffd, pages);
	demand(uffd_continue(uffd, pages, PAGE), "continue");
	answer("%s, then CONTINUE: %s", first, became());
}

static void discard_protected(int kind)
{
	char *pages = map_kind(kind);
	int uffd = watch_as(pages, HUGE, PROTECTED);

	pages[0] = 1;
	demand(protect(uffd, pages, PAGE, true), "protect");
	must(madvise(pages, PAGE, MADV_DONTNEED), "madvise");
	answer("%s", written(uffd, pages));
}

static void punch_protected(int kind)
{
	size_t length = kind == HUGETLB ? HUGE : PAGE;
	int fd, uffd;
	char *pages;

	if (kind == HUGETLB && !throwaway())
		answer("not asked: takes a huge page from others");
	fd = must(memfd_create("kind", kind == SHMEM ? 0 :
			       MFD_HUGETLB | 21U << MAP_HUGE_SHIFT), "memfd");
	must(ftruncate(fd, (off_t)length), "ftruncate");
	pages = must_map(mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED,
			      fd, 0), "mmap");
	uffd = watch_as(pages, length, PROTECTED);
	pages[0] = 1;
	demand(protect(uffd, pages, length, true), "protect");
	must(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
		       (off_t)length), "fallocate");
	answer("%s", written(uffd, pages));
}

/* What is left of it when the pages are registered once more. */
static void unregister_protected(int closed)
{
	char *pages = map_written(PAGE);
	int uffd = watch_as(pages, HUGE, PROTECTED);
	const char *there;

	pages[0] = 2;
	demand(protect(uffd, pages, 2 * PAGE, true), "protect");
	if (closed)
		close(uffd);
	else
		demand(range_call(uffd, UFFDIO_UNREGISTER, pages, HUGE),
		       "unregister");
	uffd = watch_as(pages, HUGE, PROTECTED);
	there = written(uffd, pages);
	answer("%s, absent: %s", there, written(uffd, pages + PAGE));
}

static void populate_protected(int arg)
{
	char *pages = map_kind(SHMEM);
	int uffd = watch_as(pages, HUGE, PROTECTED);
	const char *came;

	(void)arg;
	pages[0] = 1;
	demand(protect(uffd, pages, PAGE, true), "protect");
	begin(pages, POPULATES);
	came = message(uffd);
	demand(protect(uffd, pages, PAGE, false), "unprotect");
	answer("%s, lifted: %s", came, became());
}

const struct row edge_rows[] = {
	{ "marker, COPY and ZEROPAGE, anonymous", 0, fill_marked, ANONYMOUS },
	{ "marker, COPY and ZEROPAGE, shmem", 0, fill_marked, SHMEM },
	{ "marker over a page in the file", 0, marker_in_file, 0 },
	{ "marker, UFFDIO_WRITEPROTECT", 0, protect_marked, 0 },
	{ "protected, absent, anonymous", 0, protect_absent, ANONYMOUS },
	{ "protected, absent, shmem", 0, protect_absent, SHMEM },
	{ "protected, over the end", 0, protect_beyond, 0 },
	{ "protected, filled", 0, fill_protected, 0 },
	{ "protected, in the file", 0, minor_protected, 0 },
	{ "protected, MADV_DONTNEED, anonymous", 0, discard_protected,
	  ANONYMOUS },
	{ "protected, MADV_DONTNEED, shmem", 0, discard_protected, SHMEM },
	{ "protected, hole in shmem", 0, punch_protected, SHMEM },
	{ "protected, hole in hugetlb", 0, punch_protected, HUGETLB },
	{ "protected, unregistered", 0, unregister_protected, false },
	{ "protected, uffd closed", 0, unregister_protected, true },
	{ "protected, MADV_POPULATE_WRITE", 0, populate_protected, 0 },
	{ "calls over a border", 0, over_a_border, 0 },
	{ "copy from unreadable memory, anonymous", 0, copy_unreadable,
	  ANONYMOUS },
	{ "copy from unreadable memory, shmem", 0, copy_unreadable, SHMEM },
	{ "copy from unreadable memory, hugetlb", 0, copy_unreadable, HUGETLB },
	{ "calls past the file's end", 0, past_the_end, 0 },
	{ "copy, file system full", 0, full, 0 },
	{ "registered again", 0, register_again, 0 },
	{ "unregistered by another", 0, unregister_other, 0 },
	{ "unregistered, not mapped", 0, unregister_unmapped, 0 },
	{ "unregistered, sleeper, missing", 0, unregister_under_sleeper,
	  MISSING },
	{ "unregistered, sleeper, minor", 0, unregister_under_sleeper, MINOR },
	{ "unregistered, sleeper, protected", 0, unregister_under_sleeper,
	  PROTECTED },
	{ "copy without a wake, sleeper", 0, copy_without_wake, 0 },
	{ "copy before the message is read", 0, unread_message, 0 },
	{ "woken, page still missing", 0, wake_for_nothing, 0 },
	{ "munmap(), sleeper", 0, unmap_under_sleeper, 0 },
	{ "PROT_NONE, sleeper", 0, forbid_under_sleeper, false },
	{ "PROT_NONE, uffd closed, sleeper", 0, forbid_under_sleeper, true },
	{ "signal, sleeper", 0, signal_sleeper, READS },
	{ "signal, sleeper in write()", 0, signal_sleeper, COPIES },
	{ "signal, sleeper in MADV_POPULATE_WRITE", 0, signal_sleeper,
	  POPULATES },
	{ "moved by mremap()", 0, moved, 0 },
	{ "forked, anonymous", 0, forked, ANONYMOUS },
	{ "forked, shmem", 0, forked, SHMEM },
	{ "event of MADV_REMOVE", 0, remove_event, 0 },
	{ NULL, 0, NULL, 0 },
};
