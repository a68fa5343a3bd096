/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * All that is waited for: futexes, epoll, eventfds, timers and the clock. In:
 * the library's waits, and fake_advance(). Out: a futex is the real kernel's;
 * epoll says which objects are readable, and sleeps until one is. What holds:
 * the clock moves only where the test moves it, and where a thread yields, and
 * each change that may end a sleep is broadcast.
 */

#include <errno.h>
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "fake.h"

pthread_cond_t fake__changed = PTHREAD_COND_INITIALIZER;
uint64_t fake__now = 1000000000;

long fake__futex_wait(struct fake_call *c)
{
	struct timespec limit = {
		.tv_sec = (time_t)(c->length / 1000000000),
		.tv_nsec = (long)(c->length % 1000000000),
	};

	return syscall(SYS_futex, c->arg, FUTEX_WAIT_PRIVATE,
		       (uint32_t)c->number, &limit, NULL, 0) < 0 ? -errno : 0;
}

long fake__futex_wake(struct fake_call *c)
{
	return syscall(SYS_futex, c->arg, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL,
		       NULL, 0);
}

long fake__epoll_create(struct fake_call *c)
{
	(void)c;
	return fake__open_new(FAKE_EPOLL, 0);
}

long fake__epoll_ctl(struct fake_call *c)
{
	struct object *e = fake__object_of(c->fd);
	int fd = (int)c->at;
	size_t w;

	if (!e || !fake__object_of(fd))
		return -EBADF;
	for (w = 0; w < e->watches && e->watched[w] != fd; w++)
		;
	if (c->number == EPOLL_CTL_DEL) {
		if (w == e->watches)
			return -ENOENT;
		e->watches--;
		e->watch[w] = e->watch[e->watches];
		e->watched[w] = e->watched[e->watches];
		return 0;
	}
	if (c->number == EPOLL_CTL_MOD) {
		if (w == e->watches)
			return -ENOENT;
		e->watch[w] = *(struct epoll_event *)c->arg;
		pthread_cond_broadcast(&fake__changed);
		return 0;
	}
	if (w < e->watches)
		return -EEXIST;
	e->watch[w] = *(struct epoll_event *)c->arg;
	e->watched[w] = fd;
	e->watches++;
	return 0;
}

static bool readable(const struct object *object)
{
	switch (object->kind) {
	case FAKE_UFFD:
		return object->msgs;
	case FAKE_EVENT:
		return object->count;
	case FAKE_TIMER:
		return object->due && object->due <= fake__now;
	default:
		return false;
	}
}

long fake__epoll_wait(struct fake_call *c)
{
	struct epoll_event *events = c->arg;
	struct object *e = fake__object_of(c->fd);
	size_t w;
	long n = 0;

	if (!e)
		return -EBADF;
	for (;;) {
		for (w = 0; w < e->watches && n < (long)c->length; w++)
			if (e->watch[w].events &&
			    readable(fake__object_of(e->watched[w]))) {
				events[n] = e->watch[w];
				events[n++].events &= ~EPOLLONESHOT;
				if (e->watch[w].events & EPOLLONESHOT)
					e->watch[w].events = 0;
			}
		if (n || (int)c->number == 0)
			return n;
		pthread_cond_wait(&fake__changed, &fake__lock);
	}
}

long fake__eventfd(struct fake_call *c)
{
	(void)c;
	return fake__open_new(FAKE_EVENT, 0);
}

long fake__eventfd_signal(struct fake_call *c)
{
	struct object *object = fake__object_of(c->fd);

	if (!object)
		return -EBADF;
	object->count++;
	pthread_cond_broadcast(&fake__changed);
	return sizeof(uint64_t);
}

long fake__timerfd(struct fake_call *c)
{
	(void)c;
	return fake__open_new(FAKE_TIMER, 0);
}

long fake__timerfd_arm(struct fake_call *c)
{
	struct object *object = fake__object_of(c->fd);

	if (!object)
		return -EBADF;
	object->due = fake__now + c->length;
	return 0;
}

void fake_advance(uint64_t nanoseconds)
{
	pthread_mutex_lock(&fake__lock);
	fake__now += nanoseconds;
	pthread_cond_broadcast(&fake__changed);
	pthread_mutex_unlock(&fake__lock);
}
