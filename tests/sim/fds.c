/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The model's descriptors. In: what is opened, duplicated, closed, forked. Out:
 * what epoll says of it. What a descriptor names lives as long as any process
 * has it; so a child that was forked keeps it in an epoll set, although the
 * parent has closed it.
 */

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"
#include "sim.h"

#define FDS 512
#define FIRST 10
#define OPENS 1024
#define WATCHES 64

struct watch {
	struct open *open;
	int fd;
	struct epoll_event event;
};

struct epoll {
	struct watch watch[WATCHES];
	unsigned int watches;
};

static struct descriptor {
	struct open *open;
	bool library;
} table[FDS];
static struct open opens[OPENS];
static unsigned int open_count;
static bool forked;			/* a child has all of these: */
static struct open *childs[FDS];
static unsigned int child_count;

void fds_reset(void)
{
	unsigned int i;

	for (i = 0; i < open_count; i++)
		free(opens[i].epoll);
	memset(table, 0, sizeof(table));
	memset(opens, 0, open_count * sizeof(*opens));
	open_count = child_count = 0;
	forked = false;
	uffd_reset();
}

struct open *fd_open(int fd)
{
	return fd >= FIRST && fd < FIRST + FDS ? table[fd - FIRST].open : NULL;
}

static int install(struct open *open, bool library)
{
	int i;

	for (i = 0; i < FDS && table[i].open; i++)
		;
	if (i == FDS)
		sim_fail("the simulator: no more descriptors", "%d", FDS);
	table[i] = (struct descriptor){ .open = open, .library = library };
	open->refs++;
	return FIRST + i;
}

int fd_new(enum kind kind, bool library, struct open **open)
{
	struct open *new = opens;

	while (new < opens + open_count && new->refs)
		new++;
	if (new == opens + OPENS)
		sim_fail("the simulator: no more open files", "%d", OPENS);
	if (new == opens + open_count)
		open_count++;
	free(new->epoll);
	*new = (struct open){ .kind = kind };
	new->due = NEVER;
	if (kind == KIND_EPOLL)
		new->epoll = calloc(1, sizeof(*new->epoll));
	*open = new;
	return install(new, library);
}

int fd_dup(int fd, bool library)
{
	struct open *open = fd_open(fd);

	return open ? install(open, library) : -EBADF;
}

static void forget_watches(const struct open *open)
{
	unsigned int i, w;

	for (i = 0; i < open_count; i++) {
		struct epoll *epoll = opens[i].epoll;

		for (w = 0; epoll && w < epoll->watches;) {
			if (epoll->watch[w].open == open)
				epoll->watch[w] =
					epoll->watch[--epoll->watches];
			else
				w++;
		}
	}
}

struct open *open_hold(struct open *open)
{
	open->refs++;
	return open;
}

void open_put(struct open *open)
{
	if (--open->refs)
		return;
	forget_watches(open);
	if (open->kind == KIND_UFFD)
		uffd_close(open->uffd);
	if (open->kind == KIND_FILE)
		file_put(open->file);
}

int fd_close(int fd, bool library)
{
	struct open *open = fd_open(fd);

	if (!open)
		return -EBADF;
	if (library && !table[fd - FIRST].library)
		sim_fail("the library closes a descriptor that is not its own",
			 "descriptor %d", fd);
	table[fd - FIRST].open = NULL;
	open_put(open);
	return 0;
}

unsigned int fds_of_library(void)
{
	unsigned int i, n = 0;

	for (i = 0; i < FDS; i++)
		n += table[i].open && table[i].library;
	return n;
}

void fds_fork(void)
{
	unsigned int i;

	for (i = 0; !forked && i < FDS; i++)
		if (table[i].open)
			childs[child_count++] = open_hold(table[i].open);
	forked = true;
}

void fds_child_gone(void)
{
	while (child_count)
		open_put(childs[--child_count]);
	forked = false;
	fds_changed();
}

/* ---- what is there to read ---- */

bool open_readable(const struct open *open)
{
	switch (open->kind) {
	case KIND_UFFD:
		return uffd_readable(open->uffd);
	case KIND_EVENT:
		return open->count;
	case KIND_TIMER:
		return open->due <= sim_now();
	default:
		return false;
	}
}

uint64_t fds_next_timer(void)
{
	uint64_t next = NEVER;
	unsigned int i;

	for (i = 0; i < open_count; i++)
		if (opens[i].refs && opens[i].kind == KIND_TIMER &&
		    opens[i].due < next && opens[i].due > sim_now())
			next = opens[i].due;
	return next;
}

void fds_changed(void)
{
	unsigned int i;

	for (i = 0; i < open_count; i++)
		if (opens[i].epoll)
			task_wake(opens[i].epoll, TASKS);
}

/* ---- epoll ---- */

static struct watch *find_watch(struct epoll *epoll, const struct open *open,
				int fd)
{
	unsigned int w;

	for (w = 0; w < epoll->watches; w++)
		if (epoll->watch[w].open == open && epoll->watch[w].fd == fd)
			return &epoll->watch[w];
	return NULL;
}

int epoll_add(struct open *open, int fd, const struct epoll_event *event)
{
	struct open *what = fd_open(fd);
	struct epoll *epoll = open->epoll;

	if (!what || !epoll)
		return what ? -EINVAL : -EBADF;
	if (find_watch(epoll, what, fd))
		return -EEXIST;
	if (epoll->watches == WATCHES)
		sim_fail("the simulator: no more watches", "%d", WATCHES);
	epoll->watch[epoll->watches++] = (struct watch){
		.open = what, .fd = fd, .event = *event,
	};
	fds_changed();
	return 0;
}

int epoll_modify(struct open *open, int fd, const struct epoll_event *event)
{
	struct open *what = fd_open(fd);
	struct watch *watch = what ? find_watch(open->epoll, what, fd) : NULL;

	if (!watch)
		return what ? -ENOENT : -EBADF;
	watch->event = *event;
	fds_changed();
	return 0;
}

int epoll_delete(struct open *open, int fd)
{
	struct open *what = fd_open(fd);
	struct watch *watch = what ? find_watch(open->epoll, what, fd) : NULL;

	if (!watch)
		return what ? -ENOENT : -EBADF;
	*watch = open->epoll->watch[--open->epoll->watches];
	return 0;
}

/* What is told once (EPOLLONESHOT) is told no more, if it is taken. */
static int look(struct epoll *epoll, struct epoll_event *events, int count,
		bool take)
{
	unsigned int w, first = sim_below(epoll->watches);
	int n = 0;

	for (w = 0; w < epoll->watches && n < count; w++) {
		struct watch *watch =
			&epoll->watch[(first + w) % epoll->watches];

		if (!watch->event.events || !open_readable(watch->open))
			continue;
		events[n] = watch->event;
		events[n++].events = EPOLLIN;
		if (take && watch->event.events & EPOLLONESHOT)
			watch->event.events = 0;
	}
	return n;
}

int epoll_await(struct open *open, struct epoll_event *events, int count,
		int timeout)
{
	uint64_t until = timeout < 0 ? NEVER : sim_now() + (uint64_t)timeout * MS;
	int n;

	while (!(n = look(open->epoll, events, count, true)) && timeout &&
	       sim_now() < until)
		if (task_sleep(open->epoll, "epoll_wait()", until, true) ==
		    SIGNALLED) {
			task_handle_signals();
			return -EINTR;
		}
	return n;
}

bool epoll_await_any(int fd, uint64_t until)
{
	struct open *open = fd_open(fd);
	struct epoll_event event;

	while (open && !look(open->epoll, &event, 1, false) &&
	       sim_now() < until)
		task_sleep(open->epoll, "messages", until, false);
	return open && sim_now() < until;
}
