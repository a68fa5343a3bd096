/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The model's answers to the rows of tests/vm/behaviour-edges.c.
 */

#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "behaviour.h"
#include "lib/os/abi.h"

#define MISSING UFFDIO_REGISTER_MODE_MISSING
#define MINOR UFFDIO_REGISTER_MODE_MINOR
#define PROTECTED UFFDIO_REGISTER_MODE_WP
#define PATIENCE (500 * MS)

static struct uffd *watch_kind(uint64_t start, uint64_t length, uint64_t mode)
{
	struct uffd *uffd = watcher(0);

	may(watch_as(uffd, start, length, mode));
	return uffd;
}

static int zero(struct uffd *uffd, uint64_t page)
{
	struct uffdio_zeropage arg = { .range = { page, PAGE } };

	return uffd_ioctl(uffd, UFFDIO_ZEROPAGE, &arg);
}

static int protect(struct uffd *uffd, uint64_t start, uint64_t length, bool on)
{
	struct uffdio_writeprotect arg = {
		.range = { start, length },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return uffd_ioctl(uffd, UFFDIO_WRITEPROTECT, &arg);
}

static int range_call(struct uffd *uffd, unsigned long request, uint64_t start,
		      uint64_t length)
{
	struct uffdio_range range = { start, length };

	return uffd_ioctl(uffd, request, &range);
}

/* HUGE of a file whose first pages have data. */
static uint64_t map_written(uint64_t written)
{
	struct file *file = file_new(HUGE_PAGES, false, false);

	must(file_write(file, 0, filled(1), written), "pwrite");
	return map_file(file);
}

/* A page with data, as a write makes it. */
static void write_page(uint64_t page)
{
	if (mm_write(our_mm, page, 1) != ACCESS_OK)
		answer("cannot ask: write");
}

/* ---- a task that touches a page ---- */

enum how { READS, WRITES, POPULATES, COPIES };

static struct {
	struct task *task;
	struct mm *mm;
	uint64_t page, value;
	enum how how;
	bool over;
	enum access access;
	int error;			/* of populating */
} toucher;

static void touch_page(void *arg)
{
	frame_t frame;

	(void)arg;
	switch (toucher.how) {
	case READS:
		toucher.access = mm_read(toucher.mm, toucher.page,
					 &toucher.value);
		break;
	case WRITES:
		toucher.access = mm_write(toucher.mm, toucher.page, 2);
		break;
	case POPULATES:
		toucher.error = mm_madvise(toucher.mm, toucher.page, PAGE,
					   KVMFAULT__MADV_POPULATE_WRITE);
		break;
	case COPIES:
		toucher.access = mm_copy(toucher.mm, toucher.page, false,
					 &frame);
		break;
	}
	toucher.over = true;
}

static void begin_in(struct mm *mm, uint64_t page, enum how how)
{
	memset(&toucher, 0, sizeof(toucher));
	toucher.mm = mm;
	toucher.page = page;
	toucher.how = how;
	toucher.task = task_new("toucher", mm, touch_page, NULL);
}

static void begin(uint64_t page, enum how how)
{
	begin_in(our_mm, page, how);
}

static const char *message(struct uffd *uffd)
{
	struct uffd_msg msg;
	uint64_t flags;

	task_pause(PATIENCE, "a message");
	if (uffd_read(uffd, &msg, sizeof(msg)) < 0)
		return "none";
	flags = msg.arg.pagefault.flags;
	if (flags & UFFD_PAGEFAULT_FLAG_WP)
		return "protected";
	return flags & UFFD_PAGEFAULT_FLAG_MINOR ? "minor" : "missing";
}

static void put_to_sleep(struct uffd *uffd, uint64_t page, enum how how)
{
	begin(page, how);
	if (!strcmp(message(uffd), "none"))
		answer("cannot ask: no message");
}

static const char *became(void)
{
	task_pause(PATIENCE, "whoever wakes");
	if (!toucher.over)
		return "sleeps";
	if (toucher.how == POPULATES)
		return name_of(toucher.error);
	switch (toucher.access) {
	case ACCESS_OK:
		break;
	case ACCESS_SEGV:
		return "SIGSEGV";
	case ACCESS_BUS:
	case ACCESS_POISON:
		return "SIGBUS";
	default:
		return "another end";
	}
	if (toucher.how == WRITES)
		return "writes";
	return toucher.value ? "reads data" : "reads zeros";
}

/* The message that a write there is, or what it comes to. */
static const char *written(struct uffd *uffd, uint64_t page)
{
	const char *came;

	begin(page, WRITES);
	came = message(uffd);
	return strcmp(came, "none") ? came : became();
}

/* ---- borders ---- */

static void over_a_border(int arg)
{
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch_kind(pages, HUGE,
				       MISSING | MINOR | PROTECTED);
	int copied, continued, poisoned;

	(void)arg;
	must(mm_protect(our_mm, pages + PAGE, PAGE, PROT_READ), "mprotect");
	copied = copy(uffd, pages, 1, 2 * PAGE);
	continued = map_again(uffd, pages, 2 * PAGE);
	poisoned = poison(uffd, pages, 2 * PAGE);
	answer("COPY %s, CONTINUE %s, POISON %s, WRITEPROTECT %s",
	       name_of(copied), name_of(continued), name_of(poisoned),
	       name_of(protect(uffd, pages, 2 * PAGE, true)));
}

static void copy_unreadable(int kind)
{
	static char unreadable[HUGE_PAGES * PAGE];
	uint64_t pages = map_kind(kind);
	uint64_t length = kind == HUGETLB ? HUGE : PAGE;
	struct uffdio_copy from = {
		.dst = pages, .src = (uintptr_t)unreadable, .len = length,
	};
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING);
	int absent, there;

	uffd_cut(unreadable, sizeof(unreadable));
	absent = uffd_ioctl(uffd, UFFDIO_COPY, &from);
	there = (int)from.copy;
	must(copy(uffd, pages, 1, length), "copy");
	answer("%s, copy -%s, over a page %s", name_of(absent), name_of(there),
	       name_of(uffd_ioctl(uffd, UFFDIO_COPY, &from)));
}

static void past_the_end(int arg)
{
	struct file *file = file_new(2, false, false);
	uint64_t pages = map_file(file);
	struct uffd *uffd = watch_kind(pages, 2 * PAGE, MISSING | MINOR);
	int copied, continued;

	(void)arg;
	file->pages = 1;
	copied = copy(uffd, pages + PAGE, 1, PAGE);
	continued = map_again(uffd, pages + PAGE, PAGE);
	answer("COPY %s, CONTINUE %s, POISON %s", name_of(copied),
	       name_of(continued), name_of(poison(uffd, pages + PAGE, PAGE)));
}

static void full(int arg)
{
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING);

	(void)arg;
	shmem_left = 1;
	must(copy(uffd, pages, 1, PAGE), "copy");
	answer("%s, over a page %s", name_of(copy(uffd, pages + PAGE, 1, PAGE)),
	       name_of(copy(uffd, pages, 1, PAGE)));
}

/* ---- registered again, and not any more ---- */

static void register_again(int arg)
{
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING | PROTECTED);
	int first = watch_as(uffd, pages, HUGE, MISSING);

	(void)arg;
	answer("%s, with another %s", name_of(first),
	       name_of(watch_as(watcher(0), pages, HUGE, MISSING)));
}

static void unregister_other(int arg)
{
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING);
	int ret = range_call(watcher(0), UFFDIO_UNREGISTER, pages, HUGE);

	(void)arg;
	answer("%s, then a copy %s", name_of(ret),
	       name_of(copy(uffd, pages, 1, PAGE)));
}

static void unregister_unmapped(int arg)
{
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING);
	int part, whole;

	(void)arg;
	must(mm_unmap(our_mm, pages, PAGE), "munmap");
	part = range_call(uffd, UFFDIO_UNREGISTER, pages, 2 * PAGE);
	whole = range_call(uffd, UFFDIO_UNREGISTER, pages, PAGE);
	answer("%s, in part %s, WAKE %s", name_of(whole), name_of(part),
	       name_of(range_call(uffd, UFFDIO_WAKE, pages, PAGE)));
}

static void unregister_under_sleeper(int mode)
{
	uint64_t pages = map_written(mode == MISSING ? 0 : PAGE);
	struct uffd *uffd = watch_kind(pages, HUGE, (uint64_t)mode);

	if (mode == PROTECTED)
		must(protect(uffd, pages, PAGE, true), "protect");
	put_to_sleep(uffd, pages, WRITES);
	must(range_call(uffd, UFFDIO_UNREGISTER, pages, HUGE), "unregister");
	answer("%s", became());
}

/* ---- sleepers ---- */

static void copy_without_wake(int arg)
{
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING);
	const char *first;
	int ret;

	(void)arg;
	put_to_sleep(uffd, pages, READS);
	ret = copy_as(uffd, pages, 1, PAGE, UFFDIO_COPY_MODE_DONTWAKE);
	first = became();
	must(range_call(uffd, UFFDIO_WAKE, pages, PAGE), "wake");
	answer("%s, %s, woken: %s", name_of(ret), first, became());
}

static void unread_message(int arg)
{
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING);
	const char *first;

	(void)arg;
	begin(pages, READS);
	task_pause(PATIENCE, "a message");
	if (!uffd_readable(uffd))
		answer("cannot ask: no message");
	must(copy(uffd, pages, 1, PAGE), "copy");
	first = became();
	answer("%s, message: %s", first, message(uffd));
}

static void wake_for_nothing(int arg)
{
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING);
	const char *first;

	(void)arg;
	put_to_sleep(uffd, pages, READS);
	must(range_call(uffd, UFFDIO_WAKE, pages, PAGE), "wake");
	first = became();
	answer("%s, message: %s", first, message(uffd));
}

static void unmap_under_sleeper(int arg)
{
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING);
	const char *first;

	(void)arg;
	put_to_sleep(uffd, pages, READS);
	must(mm_unmap(our_mm, pages, PAGE), "munmap");
	first = became();
	must(range_call(uffd, UFFDIO_WAKE, pages, PAGE), "wake");
	answer("%s, woken: %s", first, became());
}

static void forbid_under_sleeper(int closed)
{
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING);
	const char *first;
	int ret;

	put_to_sleep(uffd, pages, READS);
	must(mm_protect(our_mm, pages, PAGE, PROT_NONE), "mprotect");
	first = became();
	if (closed) {
		uffd_close(uffd);
		answer("%s, closed: %s", first, became());
	}
	ret = copy(uffd, pages, 1, PAGE);
	answer("%s, copy %s: %s", first, name_of(ret), became());
}

static void signal_sleeper(int how)
{
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING);
	const char *first;

	put_to_sleep(uffd, pages, (enum how)how);
	task_signal(toucher.task, SIGUSR1);
	first = became();
	answer("%s, message: %s", first, message(uffd));
}

/* ---- moved, forked ---- */

static void moved(int arg)
{
	uint64_t old = map_kind(SHMEM), new;
	struct uffd *uffd = watch_kind(old, HUGE, MISSING | PROTECTED);
	const char *absent, *mark, *slept;
	int here, there;

	(void)arg;
	must(copy_as(uffd, old + PAGE, 1, PAGE, UFFDIO_COPY_MODE_WP), "copy");
	may(poison(uffd, old + 2 * PAGE, PAGE));
	put_to_sleep(uffd, old, READS);
	new = mm_move(our_mm, old, HUGE);
	slept = became();
	there = copy(uffd, old, 1, PAGE);
	here = copy(uffd, new, 1, PAGE);
	begin(new + 2 * PAGE, READS);
	mark = became();
	begin(new + 3 * PAGE, READS);
	absent = became();
	answer("sleeper %s, COPY there %s, here %s, marker: %s, absent: %s, "
	       "protected: %s", slept, name_of(there), name_of(here), mark,
	       absent, written(uffd, new + PAGE));
}

static void forked(int kind)
{
	uint64_t pages = map_kind(kind);
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING);
	const char *absent;
	struct mm *child;

	may(poison(uffd, pages + PAGE, PAGE));
	must(copy(uffd, pages + 2 * PAGE, 1, PAGE), "copy");
	child = mm_fork(our_mm);
	begin_in(child, pages, READS);
	absent = became();
	begin_in(child, pages + PAGE, READS);
	answer("absent: %s, marker: %s", absent, became());
}

static void remove_page(void *page)
{
	mm_madvise(our_mm, *(uint64_t *)page, PAGE, MADV_REMOVE);
}

static void remove_event(int arg)
{
	static uint64_t pages;
	struct uffd *uffd;

	(void)arg;
	pages = map_kind(SHMEM);
	uffd = watch(pages, HUGE, UFFD_FEATURE_EVENT_REMOVE);
	task_new("remover", our_mm, remove_page, &pages);
	task_pause(PATIENCE, "an event");
	answer(uffd_readable(uffd) ? "an event" : "none");
}

/* ---- markers ---- */

static void fill_marked(int kind)
{
	uint64_t pages = map_kind(kind);
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING);
	int copied;

	may(poison(uffd, pages, 2 * PAGE));
	copied = copy(uffd, pages, 1, PAGE);
	answer("COPY %s, ZEROPAGE %s", name_of(copied),
	       name_of(zero(uffd, pages + PAGE)));
}

static void marker_in_file(int arg)
{
	uint64_t pages = map_written(PAGE);
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING);
	unsigned char state = 1;
	int ret;

	(void)arg;
	ret = poison(uffd, pages, 2 * PAGE);
	begin(pages, READS);
	must(mm_mincore(our_mm, pages + PAGE, PAGE, &state), "mincore");
	answer("%s, then %s, mincore() of another: %u", name_of(ret), became(),
	       state & 1U);
}

static void protect_marked(int arg)
{
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING | PROTECTED);
	int ret;

	(void)arg;
	may(poison(uffd, pages, PAGE));
	ret = protect(uffd, pages, PAGE, true);
	answer("%s, then %s", name_of(ret), written(uffd, pages));
}

/* ---- protected pages ---- */

static void protect_absent(int kind)
{
	uint64_t pages = map_kind(kind);
	struct uffd *uffd = watch_kind(pages, HUGE, PROTECTED);
	int ret = protect(uffd, pages, PAGE, true);

	answer("%s, then %s", name_of(ret), written(uffd, pages));
}

static void protect_beyond(int arg)
{
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch_kind(pages, PAGE, PROTECTED);
	int ret;

	(void)arg;
	ret = protect(uffd, pages, 2 * PAGE, true);
	answer("%s, then %s", name_of(ret), written(uffd, pages));
}

static void fill_protected(int arg)
{
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch_kind(pages, HUGE, MISSING | PROTECTED);
	const char *copied;
	int poisoned;

	(void)arg;
	must(protect(uffd, pages, 3 * PAGE, true), "protect");
	poisoned = poison(uffd, pages + 2 * PAGE, PAGE);
	must(copy(uffd, pages, 1, PAGE), "copy");
	must(zero(uffd, pages + PAGE), "zero");
	copied = written(uffd, pages);
	answer("COPY: %s, ZEROPAGE: %s, POISON %s", copied,
	       written(uffd, pages + PAGE), name_of(poisoned));
}

static void minor_protected(int arg)
{
	uint64_t pages = map_written(PAGE);
	struct uffd *uffd = watch_kind(pages, HUGE, MINOR | PROTECTED);
	const char *first;

	(void)arg;
	must(protect(uffd, pages, PAGE, true), "protect");
	first = written(uffd, pages);
	must(map_again(uffd, pages, PAGE), "continue");
	answer("%s, then CONTINUE: %s", first, became());
}

static void discard_protected(int kind)
{
	uint64_t pages = map_kind(kind);
	struct uffd *uffd = watch_kind(pages, HUGE, PROTECTED);

	write_page(pages);
	must(protect(uffd, pages, PAGE, true), "protect");
	must(mm_madvise(our_mm, pages, PAGE, MADV_DONTNEED), "madvise");
	answer("%s", written(uffd, pages));
}

static void punch_protected(int kind)
{
	struct file *file = file_new(HUGE_PAGES, kind == HUGETLB, false);
	uint64_t length = kind == HUGETLB ? HUGE : PAGE;
	uint64_t pages = map_file(file);
	struct uffd *uffd = watch_kind(pages, HUGE, PROTECTED);

	write_page(pages);
	must(protect(uffd, pages, length, true), "protect");
	must(file_punch(file, 0, length), "fallocate");
	answer("%s", written(uffd, pages));
}

/* What is left of it when the pages are registered once more. */
static void unregister_protected(int closed)
{
	uint64_t pages = map_written(PAGE);
	struct uffd *uffd = watch_kind(pages, HUGE, PROTECTED);
	const char *there;

	write_page(pages);
	must(protect(uffd, pages, 2 * PAGE, true), "protect");
	if (closed)
		uffd_close(uffd);
	else
		must(range_call(uffd, UFFDIO_UNREGISTER, pages, HUGE),
		     "unregister");
	uffd = watch_kind(pages, HUGE, PROTECTED);
	there = written(uffd, pages);
	answer("%s, absent: %s", there, written(uffd, pages + PAGE));
}

static void populate_protected(int arg)
{
	uint64_t pages = map_kind(SHMEM);
	struct uffd *uffd = watch_kind(pages, HUGE, PROTECTED);
	const char *came;

	(void)arg;
	write_page(pages);
	must(protect(uffd, pages, PAGE, true), "protect");
	begin(pages, POPULATES);
	came = message(uffd);
	must(protect(uffd, pages, PAGE, false), "unprotect");
	answer("%s, lifted: %s", came, became());
}

const struct row edge_rows[] = {
	{ "marker, COPY and ZEROPAGE, anonymous", false, fill_marked,
	  ANONYMOUS },
	{ "marker, COPY and ZEROPAGE, shmem", false, fill_marked, SHMEM },
	{ "marker over a page in the file", false, marker_in_file, 0 },
	{ "marker, UFFDIO_WRITEPROTECT", false, protect_marked, 0 },
	{ "protected, absent, anonymous", false, protect_absent, ANONYMOUS },
	{ "protected, absent, shmem", false, protect_absent, SHMEM },
	{ "protected, over the end", false, protect_beyond, 0 },
	{ "protected, filled", false, fill_protected, 0 },
	{ "protected, in the file", false, minor_protected, 0 },
	{ "protected, MADV_DONTNEED, anonymous", false, discard_protected,
	  ANONYMOUS },
	{ "protected, MADV_DONTNEED, shmem", false, discard_protected, SHMEM },
	{ "protected, hole in shmem", false, punch_protected, SHMEM },
	{ "protected, hole in hugetlb", false, punch_protected, HUGETLB },
	{ "protected, unregistered", false, unregister_protected, false },
	{ "protected, uffd closed", false, unregister_protected, true },
	{ "protected, MADV_POPULATE_WRITE", false, populate_protected, 0 },
	{ "calls over a border", false, over_a_border, 0 },
	{ "copy from unreadable memory, anonymous", false, copy_unreadable,
	  ANONYMOUS },
	{ "copy from unreadable memory, shmem", false, copy_unreadable, SHMEM },
	{ "copy from unreadable memory, hugetlb", false, copy_unreadable,
	  HUGETLB },
	{ "calls past the file's end", false, past_the_end, 0 },
	{ "copy, file system full", false, full, 0 },
	{ "registered again", false, register_again, 0 },
	{ "unregistered by another", false, unregister_other, 0 },
	{ "unregistered, not mapped", false, unregister_unmapped, 0 },
	{ "unregistered, sleeper, missing", false, unregister_under_sleeper,
	  MISSING },
	{ "unregistered, sleeper, minor", false, unregister_under_sleeper,
	  MINOR },
	{ "unregistered, sleeper, protected", false, unregister_under_sleeper,
	  PROTECTED },
	{ "copy without a wake, sleeper", false, copy_without_wake, 0 },
	{ "copy before the message is read", false, unread_message, 0 },
	{ "woken, page still missing", false, wake_for_nothing, 0 },
	{ "munmap(), sleeper", false, unmap_under_sleeper, 0 },
	{ "PROT_NONE, sleeper", false, forbid_under_sleeper, false },
	{ "PROT_NONE, uffd closed, sleeper", false, forbid_under_sleeper,
	  true },
	{ "signal, sleeper", false, signal_sleeper, READS },
	{ "signal, sleeper in write()", false, signal_sleeper, COPIES },
	{ "signal, sleeper in MADV_POPULATE_WRITE", false, signal_sleeper,
	  POPULATES },
	{ "moved by mremap()", false, moved, 0 },
	{ "forked, anonymous", false, forked, ANONYMOUS },
	{ "forked, shmem", false, forked, SHMEM },
	{ "event of MADV_REMOVE", false, remove_event, 0 },
	{ NULL, false, NULL, 0 },
};
