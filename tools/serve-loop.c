/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault serve: the loop. In: descriptors with their functions and deadlines.
 * Out: each function is called when its time has come, all on one thread. One
 * event is taken at a time, so a function may free any watch.
 */

#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "serve.h"

int64_t serve_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

int serve_watch_add(struct serve *serve, struct serve_watch *watch,
		    uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = watch };

	if (epoll_ctl(serve->epoll, EPOLL_CTL_ADD, watch->fd, &event) < 0)
		return -errno;
	watch->serve = serve;
	watch->previous = NULL;
	watch->next = serve->watches;
	if (watch->next)
		watch->next->previous = watch;
	serve->watches = watch;
	return 0;
}

void serve_watch_events(struct serve_watch *watch, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = watch };

	epoll_ctl(watch->serve->epoll, EPOLL_CTL_MOD, watch->fd, &event);
}

void serve_watch_remove(struct serve_watch *watch)
{
	if (!watch->serve)
		return;
	epoll_ctl(watch->serve->epoll, EPOLL_CTL_DEL, watch->fd, NULL);
	if (watch->next)
		watch->next->previous = watch->previous;
	if (watch->previous)
		watch->previous->next = watch->next;
	else
		watch->serve->watches = watch->next;
	watch->serve = NULL;
}

static struct serve_watch *find_earliest(const struct serve *serve)
{
	struct serve_watch *watch, *earliest = NULL;

	for (watch = serve->watches; watch; watch = watch->next)
		if (watch->deadline && (!earliest ||
					watch->deadline < earliest->deadline))
			earliest = watch;
	return earliest;
}

/* Returns for how long the loop may sleep, for epoll_wait(). */
static int call_late(struct serve *serve)
{
	struct serve_watch *watch;

	while ((watch = find_earliest(serve)) && !serve->done) {
		int64_t left = watch->deadline - serve_now();

		if (left > 0)
			return left < 60000 ? (int)left : 60000;
		watch->deadline = 0;
		watch->late(watch);
	}
	return -1;
}

int serve_loop(struct serve *serve)
{
	struct epoll_event event;

	while (!serve->done) {
		int n, timeout = call_late(serve);
		struct serve_watch *watch;

		if (serve->done)
			break;
		n = epoll_wait(serve->epoll, &event, 1, timeout);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n <= 0)
			continue;
		watch = event.data.ptr;
		watch->ready(watch);
	}
	return 0;
}

static void take_wakeup(struct serve_watch *watch)
{
	uint64_t count;

	if (read(watch->fd, &count, sizeof(count)) == sizeof(count))
		serve_vm_look(watch->serve);
}

void serve_wake(struct serve *serve)
{
	static const uint64_t one = 1;

	/* Full means that the loop was woken already. */
	if (write(serve->wakeup.fd, &one, sizeof(one)) < 0)
		return;
}

int serve_loop_new(struct serve *serve)
{
	serve->wakeup.fd = -1;
	serve->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (serve->epoll < 0)
		return -errno;
	serve->wakeup.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (serve->wakeup.fd < 0)
		return -errno;
	serve->wakeup.ready = take_wakeup;
	return serve_watch_add(serve, &serve->wakeup, EPOLLIN);
}

void serve_loop_free(struct serve *serve)
{
	serve_watch_remove(&serve->wakeup);
	if (serve->wakeup.fd >= 0)
		close(serve->wakeup.fd);
	if (serve->epoll >= 0)
		close(serve->epoll);
}
