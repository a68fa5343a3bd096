/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What comes of a call, and the record of all. In: each call, from the door,
 * and what the test has asked for: results, refusals, hooks, a failure of the
 * nth call. Out: the result, of the first of these that has one: the failure,
 * the script, the refusal, the hook, the model. What holds: the judge sees a
 * call before anything comes of it, a hook runs without the fake's lock, what
 * it calls meets no hook, and each call is recorded with its result.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "fake.h"

#define RECORDS 65536
#define SCRIPTS 256

pthread_mutex_t fake__lock = PTHREAD_MUTEX_INITIALIZER;
static struct fake_call *record;
static size_t records;
static long script[FAKE_NAMES][SCRIPTS];
static size_t scripted[FAKE_NAMES], used[FAKE_NAMES];
static struct {
	uint64_t number;
	long error;			/* 0: there is none */
} refusals[FAKE_NAMES];
static fake_hook hooks[FAKE_NAMES];
static unsigned int until_failure;
static bool failed;
static _Thread_local bool in_hook;

_Static_assert(sizeof(struct fake_call) < 128, "one small struct per call");

static long (*const models[FAKE_NAMES])(struct fake_call *call) = {
	[FAKE_OPEN] = fake__open,
	[FAKE_CLOSE] = fake__close,
	[FAKE_DUP] = fake__dup,
	[FAKE_GETFL] = fake__getfl,
	[FAKE_IOCTL] = fake__ioctl,
	[FAKE_READ] = fake__read,
	[FAKE_WRITE] = fake__write,
	[FAKE_POLL] = fake__poll,
	[FAKE_PREAD] = fake__pread,
	[FAKE_LSEEK] = fake__lseek,
	[FAKE_FSTAT] = fake__fstat,
	[FAKE_FSTATFS] = fake__fstatfs,
	[FAKE_CACHED] = fake__cached,
	[FAKE_FALLOCATE] = fake__fallocate,
	[FAKE_USERFAULTFD] = fake__userfaultfd,
	[FAKE_MMAP] = fake__mmap,
	[FAKE_MUNMAP] = fake__munmap,
	[FAKE_MPROTECT] = fake__mprotect,
	[FAKE_MADVISE] = fake__madvise,
	[FAKE_MINCORE] = fake__mincore,
	[FAKE_MEMFD] = fake__memfd,
	[FAKE_SIGMASK] = fake__sigmask,
	[FAKE_HANDLES] = fake__handles,
	[FAKE_SIGTAKE] = fake__sigtake,
	[FAKE_FUTEX_WAIT] = fake__futex_wait,
	[FAKE_FUTEX_WAKE] = fake__futex_wake,
	[FAKE_EPOLL_CREATE] = fake__epoll_create,
	[FAKE_EPOLL_CTL] = fake__epoll_ctl,
	[FAKE_EPOLL_WAIT] = fake__epoll_wait,
	[FAKE_EVENTFD] = fake__eventfd,
	[FAKE_EVENTFD_SIGNAL] = fake__eventfd_signal,
	[FAKE_TIMERFD] = fake__timerfd,
	[FAKE_TIMERFD_ARM] = fake__timerfd_arm,
	[FAKE_THREAD] = fake__thread,
	[FAKE_JOIN] = fake__join,
	[FAKE_YIELD] = fake__yield,
	[FAKE_ALLOC] = fake__alloc,
	[FAKE_FREE] = fake__free,
};

/* How each call fails when its turn comes; 0: it can't. An allocation's result
 * 0 is NULL. */
static const long failure[FAKE_NAMES] = {
	[FAKE_OPEN] = -EMFILE,
	[FAKE_DUP] = -EMFILE,
	[FAKE_IOCTL] = -ENOMEM,
	[FAKE_USERFAULTFD] = -EMFILE,
	[FAKE_MMAP] = -ENOMEM,
	[FAKE_MPROTECT] = -ENOMEM,
	[FAKE_MEMFD] = -EMFILE,
	[FAKE_EPOLL_CREATE] = -EMFILE,
	[FAKE_EPOLL_CTL] = -ENOMEM,
	[FAKE_EVENTFD] = -EMFILE,
	[FAKE_TIMERFD] = -EMFILE,
	[FAKE_THREAD] = -EAGAIN,
	[FAKE_FALLOCATE] = -ENOMEM,
	[FAKE_READ] = -EAGAIN,		/* another reader was faster */
	[FAKE_WRITE] = -ENOSPC,
	[FAKE_PREAD] = -EIO,
	[FAKE_LSEEK] = -EIO,
	[FAKE_FSTAT] = -EIO,
	[FAKE_FSTATFS] = -EIO,
	[FAKE_CACHED] = -EIO,
	[FAKE_MADVISE] = -ENOMEM,
	[FAKE_MINCORE] = -EAGAIN,
	[FAKE_FUTEX_WAIT] = -EINTR,
	[FAKE_EPOLL_WAIT] = -EINTR,
};

static bool sleeps(enum fake_name name)
{
	return name == FAKE_FUTEX_WAIT || name == FAKE_FUTEX_WAKE;
}

long fake_model(struct fake_call *call)
{
	/* A sleeper fake__holds no lock, and the allocator's is its own. */
	if (sleeps(call->name))
		return call->result = models[call->name](call);
	pthread_mutex_lock(&fake__lock);
	call->result = models[call->name](call);
	pthread_mutex_unlock(&fake__lock);
	return call->result;
}

static bool has_number(const struct fake_call *call, uint64_t number)
{
	return number == FAKE_ANY || call->number == number;
}

/* Under the lock: has the test said what comes now? */
static bool foretold(struct fake_call *call)
{
	enum fake_name name = call->name;

	if (until_failure && (failure[name] || name == FAKE_ALLOC) &&
	    !(name == FAKE_EPOLL_CTL && call->number != EPOLL_CTL_ADD) &&
	    !--until_failure) {
		failed = true;
		call->result = failure[name];
		return true;
	}
	if (used[name] != scripted[name]) {
		call->result = script[name][used[name]++];
		return call->result != FAKE_MODEL;
	}
	if (!refusals[name].error || !has_number(call, refusals[name].number))
		return false;
	call->result = refusals[name].error;
	return true;
}

static void keep(const struct fake_call *call)
{
	if (!record)
		record = calloc(RECORDS, sizeof(*record));
	if (records < RECORDS)
		record[records++] = *call;
}

static bool by_hook(struct fake_call *call, fake_hook hook)
{
	bool done;

	if (!hook || in_hook)
		return false;
	in_hook = true;
	done = fake__run_aside(hook, call);
	in_hook = false;
	return done;
}

long fake__perform(struct fake_call *call)
{
	bool told;
	fake_hook hook;

	fake__judge(call);
	pthread_mutex_lock(&fake__lock);
	told = foretold(call);
	hook = hooks[call->name];
	pthread_mutex_unlock(&fake__lock);
	if (!told && !by_hook(call, hook))
		fake_model(call);
	pthread_mutex_lock(&fake__lock);
	keep(call);
	pthread_mutex_unlock(&fake__lock);
	return call->result;
}

void fake_on(enum fake_name name, fake_hook hook)
{
	pthread_mutex_lock(&fake__lock);
	hooks[name] = hook;
	pthread_mutex_unlock(&fake__lock);
}

void fake_push(enum fake_name name, long result)
{
	pthread_mutex_lock(&fake__lock);
	if (scripted[name] == SCRIPTS)
		abort();
	script[name][scripted[name]++] = result;
	pthread_mutex_unlock(&fake__lock);
}

void fake_refuse(enum fake_name name, uint64_t number, long error)
{
	pthread_mutex_lock(&fake__lock);
	refusals[name].number = number;
	refusals[name].error = error;
	pthread_mutex_unlock(&fake__lock);
}

void fake_fail_nth(unsigned int nth)
{
	pthread_mutex_lock(&fake__lock);
	until_failure = nth;
	failed = false;
	pthread_mutex_unlock(&fake__lock);
}

bool fake_failed(void)
{
	bool did;

	pthread_mutex_lock(&fake__lock);
	did = failed;
	until_failure = 0;
	pthread_mutex_unlock(&fake__lock);
	return did;
}

static bool matches(const struct fake_call *call, enum fake_name name,
		    uint64_t number)
{
	return call->name == name && has_number(call, number);
}

size_t fake_count(enum fake_name name, uint64_t number)
{
	size_t i, n = 0;

	pthread_mutex_lock(&fake__lock);
	for (i = 0; i < records; i++)
		n += matches(&record[i], name, number);
	pthread_mutex_unlock(&fake__lock);
	return n;
}

const struct fake_call *fake_nth(enum fake_name name, uint64_t number, size_t n)
{
	const struct fake_call *found = NULL;
	size_t i;

	pthread_mutex_lock(&fake__lock);
	for (i = 0; i < records && !found; i++)
		if (matches(&record[i], name, number) && !n--)
			found = &record[i];
	pthread_mutex_unlock(&fake__lock);
	return found;
}

void fake_forget(void)
{
	pthread_mutex_lock(&fake__lock);
	records = 0;
	memset(hooks, 0, sizeof(hooks));
	memset(refusals, 0, sizeof(refusals));
	memset(scripted, 0, sizeof(scripted));
	memset(used, 0, sizeof(used));
	pthread_mutex_unlock(&fake__lock);
}
