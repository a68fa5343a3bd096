/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The judge of what the library does. In: each call before it is made, each
 * lock that is taken or let go, and, from the wrappers around the public
 * functions, which of those the thread is in. Out: nothing where all is well;
 * else fake_wrong() is told, which ends the program. What holds: under a lock
 * there is no system call but what set-up needs there, the fault path makes
 * nothing, a vCPU's takes no lock, and each call was published by
 * kvmfault_syscalls(). What a hook or a test does by itself is judged apart.
 */

#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <time.h>

#include "fake.h"
#include "lib/setup/setup.h"

/* Where the wrappers are not linked, a thread is in none. */
__attribute__((weak)) _Thread_local const struct noted *noting_inside;

const struct noted fake__service_thread = {
	.name = "a thread of the service",
};
const struct noted fake__worker_thread = { .name = "a worker" };

/* All but set-up may run for a fault, and is judged. What of it may do more: */
static const struct path {
	const char *name;
	bool seat;		/* begin with one, which may be made */
	bool locks;		/* take the service's, briefly */
} paths[] = {
	{ .name = "kvmfault_ensure", .seat = true },
	{ .name = "kvmfault_ensure_msrs", .seat = true },
	{ .name = "kvmfault_ensure_page_tables", .seat = true },
	{ .name = "kvmfault_discard", .seat = true },
	{ .name = "kvmfault_protect", .seat = true },
	{ .name = "kvmfault_unprotect", .seat = true },
	{ .name = "kvmfault_convert", .seat = true },
	{ .name = "kvmfault_region_find", .seat = true },
	{ .name = "kvmfault_region_memslot", .seat = true },
	{ .name = "kvmfault_vm_handle_sigbus", .seat = true },
	{ .name = "kvmfault_cancel_fetches", .seat = true, .locks = true },
	{ .name = "kvmfault_fetch_done", .locks = true },
	{ .name = "kvmfault_fill_dispatch", .locks = true },
	{ .name = "kvmfault_service_dispatch", .seat = true, .locks = true },
	{ .name = "a thread of the service", .locks = true },
	{ .name = NULL },	/* all others */
};

static _Thread_local struct thread {
	pthread_mutex_t *locked;	/* the library's lock that it has */
	enum fake_name last;		/* its last call */
	bool delegated;			/* a vCPU's, of that profile */
} thread;

static const pthread_mutex_t *short_lock;

static void abort_for(const char *what, const char *function)
{
	fprintf(stderr, "%s: %s\n", function, what);
	abort();
}

void (*fake_wrong)(const char *what, const char *function) = abort_for;

static void wrong(const char *what)
{
	fake_wrong(what, noting_inside ? noting_inside->name :
					 "outside of all");
}

/* What this thread may do; NULL: anything. */
static const struct path *path(void)
{
	const struct path *path = paths;

	if (!noting_inside || noting_inside->setup)
		return NULL;
	while (path->name && strcmp(noting_inside->name, path->name))
		path++;
	return path;
}

static bool makes_something(enum fake_name name)
{
	switch (name) {
	case FAKE_OPEN:
	case FAKE_DUP:
	case FAKE_USERFAULTFD:
	case FAKE_MMAP:
	case FAKE_MUNMAP:
	case FAKE_MEMFD:
	case FAKE_EPOLL_CREATE:
	case FAKE_EVENTFD:
	case FAKE_TIMERFD:
	case FAKE_THREAD:
	case FAKE_JOIN:
	case FAKE_ALLOC:
	case FAKE_FREE:
		return true;
	default:
		return false;
	}
}

/* Its memory, its buffer, and without a buffer its memory goes again. */
static bool makes_a_seat(const struct fake_call *call)
{
	if (call->name == FAKE_ALLOC)
		return call->length == sizeof(struct kvmfault__seat);
	return (call->name == FAKE_MMAP && thread.last == FAKE_ALLOC) ||
	       (call->name == FAKE_FREE && thread.last == FAKE_MMAP);
}

/* "Locks" in HACKING.md: this is what set-up does under the VM's. */
static bool may_be_locked(const struct fake_call *call)
{
	switch (call->name) {
	case FAKE_ALLOC:
	case FAKE_FREE:
		return true;
	case FAKE_IOCTL:
		return call->number == UFFDIO_REGISTER ||
		       call->number == UFFDIO_UNREGISTER ||
		       call->number == UFFDIO_WAKE;
	case FAKE_MADVISE:
		return call->number == MADV_DONTNEED;
	case FAKE_EPOLL_CTL:
		return call->number == EPOLL_CTL_ADD ||
		       call->number == EPOLL_CTL_MOD;
	default:
		return false;
	}
}

/* As kvmfault_syscalls() names it. */
static const char *syscall_of(const struct fake_call *call, uint32_t *value)
{
	static const struct {
		const char *name;
		uint32_t value;		/* 0: the call's number */
	} names[FAKE_NAMES + 1] = {
		[FAKE_IOCTL] = { "ioctl", 0 },
		[FAKE_MADVISE] = { "madvise", 0 },
		[FAKE_FALLOCATE] = { "fallocate", 0 },
		[FAKE_LSEEK] = { "lseek", 0 },
		[FAKE_PREAD] = { "pread64", 0 },
		[FAKE_FSTAT] = { "newfstatat", 0 },
		[FAKE_MINCORE] = { "mincore", 0 },
		[FAKE_FUTEX_WAIT] = { "futex", FUTEX_WAIT_PRIVATE },
		[FAKE_FUTEX_WAKE] = { "futex", FUTEX_WAKE_PRIVATE },
		[FAKE_SIGTAKE] = { "rt_sigtimedwait", 0 },
		[FAKE_EVENTFD_SIGNAL] = { "write", sizeof(uint64_t) },
		[FAKE_TIMERFD_ARM] = { "timerfd_settime", 0 },
		[FAKE_EPOLL_WAIT] = { "epoll_pwait", 0 },
		[FAKE_EPOLL_CTL] = { "epoll_ctl", 0 },
		[FAKE_READ] = { "read", 0 },
		[FAKE_POLL] = { "ppoll", 0 },
		[FAKE_YIELD] = { "sched_yield", 0 },
		[FAKE_CLOSE] = { "close", 0 },
		[FAKE_NAMES] = { "clock_gettime", CLOCK_MONOTONIC },
	};
	uint32_t fixed = names[call->name].value;

	*value = fixed ? fixed : (uint32_t)call->number;
	if (call->name == FAKE_READ && call->number)
		return "preadv2";
	return names[call->name].name;
}

static bool published(enum kvmfault_profile profile,
		      const struct fake_call *call)
{
	const struct kvmfault_syscall *known;
	uint32_t value;
	const char *name = syscall_of(call, &value);
	unsigned int i;

	for (i = 0; name && (known = kvmfault__syscall(profile, i)); i++)
		if (!strcmp(known->name, name) &&
		    (known->argument < 0 || known->value == value))
			return true;
	return false;
}

/* Only there is it known that the thread is a vCPU's, or does what one may. */
static bool by_a_vcpu(void)
{
	static const char request[] = "kvmfault_request_";
	const char *name = noting_inside->name;

	return noting_inside == &fake__worker_thread ||
	       !strcmp(name, "kvmfault_vcpu_handle") ||
	       !strcmp(name, "kvmfault_vcpu_handle_sigbus") ||
	       !strncmp(name, request, sizeof(request) - 1);
}

/* A thread of the service, or one that calls what may be filtered too. */
static bool by_another(const struct path *on, enum kvmfault_profile *profile)
{
	*profile = noting_inside == &fake__service_thread ||
		   !strcmp(noting_inside->name, "kvmfault_service_dispatch") ?
		   KVMFAULT_PROFILE_SERVICE : KVMFAULT_PROFILE_CALLER;
	return on->name;
}

void fake__judge(const struct fake_call *call)
{
	const struct path *on = path();
	enum kvmfault_profile profile;

	if (thread.locked && !may_be_locked(call))
		wrong("a lock is held across a system call");
	if (on && makes_something(call->name) &&
	    !(on->seat && makes_a_seat(call)))
		wrong("the fault path makes something");
	else if (on && thread.delegated &&
		 !published(KVMFAULT_PROFILE_DELEGATE, call))
		wrong("what is delegated is called");
	else if (on && by_a_vcpu() && !thread.delegated &&
		 !published(KVMFAULT_PROFILE_INLINE, call))
		wrong("what is called was not published");
	else if (on && !by_a_vcpu() && by_another(on, &profile) &&
		 !makes_something(call->name) && !published(profile, call))
		wrong("what is called was not published");
	thread.last = call->name;
}

void kvmfault__sys_lock(pthread_mutex_t *mutex)
{
	const struct path *on = path();

	if (thread.locked)
		wrong("a lock is taken inside another");
	if (on && !on->locks && mutex != short_lock)
		wrong("a vCPU's fault path takes a lock");
	pthread_mutex_lock(mutex);
	thread.locked = mutex;
}

void kvmfault__sys_unlock(pthread_mutex_t *mutex)
{
	if (thread.locked != mutex)
		wrong("a lock is let go that is not held");
	thread.locked = NULL;
	pthread_mutex_unlock(mutex);
}

void fake_short_lock(const pthread_mutex_t *mutex)
{
	short_lock = mutex;
}

void fake_called_back(void)
{
	if (thread.locked)
		wrong("a callback comes with a lock held");
}

void fake_delegated(bool yes)
{
	thread.delegated = yes;
}

struct aside {
	struct thread thread;
	const struct noted *inside;
};

static struct aside step_aside(void)
{
	struct aside aside = { .thread = thread, .inside = noting_inside };

	thread = (struct thread){ .last = FAKE_NAMES };
	noting_inside = NULL;
	return aside;
}

static void step_back(const struct aside *aside)
{
	thread = aside->thread;
	noting_inside = aside->inside;
}

bool fake__run_aside(fake_hook hook, struct fake_call *call)
{
	struct aside aside = step_aside();
	bool done = hook(call);

	step_back(&aside);
	return done;
}

void fake_aside(void (*run)(void))
{
	struct aside aside = step_aside();

	run();
	step_back(&aside);
}
