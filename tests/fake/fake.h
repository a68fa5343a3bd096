/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What the files of the fake door share; tests see fake-sys.h only. A call
 * comes in through a function of door.c and goes to fake__perform() in
 * control.c, which shows it to judge.c and, where the test has not said what
 * comes of it, has it done by the model: objects.c has what descriptors stand
 * for, and one file each has what is done to them (descriptors.c, uffd.c,
 * private.c, memory.c, signals.c, wait.c, threads.c).
 *
 * What holds: the door's side uses all of it under fake__lock, but for the
 * futexes, which sleep, and for the judge, whose knowledge is each thread's
 * own. fake__perform() and fake_model() take the lock themselves. The test's
 * side takes it too, where the library may be running.
 */

#ifndef KVMFAULT_TESTS_FAKE_FAKE_H
#define KVMFAULT_TESTS_FAKE_FAKE_H

#include "kvmfault-experimental.h"
#include "../fake-sys.h"
#include "../noting.h"
#include "lib/os/abi.h"

#define BASE 1000		/* real descriptors are below */
#define FDS 8192
#define HOSTS 4
#define RANGES 8
#define MESSAGES 1024
#define WATCHES 4200
#define UNIT 4096ULL

struct range {
	uint64_t start, length;
	bool write_protect;		/* registered for that too */
};

struct object {
	enum fake_kind kind;
	unsigned int refs;
	int flags;
	const unsigned char *data;	/* files */
	unsigned char *room;		/* the same, of one that is written */
	uint64_t most, position;	/* and how much fits there */
	uint64_t length, page_size;
	unsigned char *present;		/* memory: by page */
	uint64_t host[HOSTS];
	unsigned char *mapped[HOSTS];	/* by page, for minor faults */
	unsigned char *marker[HOSTS];	/* by page: UFFDIO_POISON */
	unsigned char *protected[HOSTS]; /* by page */
	unsigned int hosts;
	int real;			/* memory: the memfd behind it */
	bool api;			/* userfaultfd */
	uint64_t features;
	char info[64];			/* what /proc tells of it */
	struct range range[RANGES];
	struct uffd_msg *msg;
	size_t msgs;
	struct epoll_event *watch;	/* epoll */
	int *watched;
	size_t watches;
	uint64_t count, due;		/* eventfd, timer */
};

struct slot {
	struct object *object;
	bool owned;			/* by the library */
};

/* A thread begins with this. */
struct start {
	void *(*run)(void *);
	void *arg;
	const struct noted *judged;
};

extern pthread_mutex_t fake__lock;
extern pthread_cond_t fake__changed;	/* something that is waited for */
extern struct slot fake__fds[FDS];
extern struct fake_held fake__holds;
extern uint64_t fake__now;

/* ---- control.c ---- */

long fake__perform(struct fake_call *call);

/* ---- judge.c ---- */

extern const struct noted fake__service_thread, fake__worker_thread;
void fake__judge(const struct fake_call *call);
/* It returns the hook's answer. What the hook does is judged by itself, as
 * fake_aside() has it. */
bool fake__run_aside(fake_hook hook, struct fake_call *call);

/* ---- objects.c ---- */

/* It returns NULL where there is none. */
struct object *fake__object_of(int fd);
struct object *fake__object_new(enum fake_kind kind);
void fake__object_put(struct object *object);
/* Both return a descriptor, or -errno. */
int fake__install(struct object *object, bool owned);
int fake__open_new(enum fake_kind kind, int flags);

/* ---- uffd.c ---- */

struct range *fake__range_at(struct object *uffd, uint64_t address);
/* It returns the userfaultfd that has a range there, or NULL. */
struct object *fake__registered_with(uint64_t address);
long fake__uffd_open(int flags);
long fake__uffd_ioctl(struct object *uffd, struct fake_call *c);

/* ---- private.c ---- */

long fake__set_attributes(const struct kvmfault__memory_attributes *a);

/* ---- memory.c ---- */

/* It returns the memory that is mapped there, and how far into it that is; or
 * NULL. */
struct object *fake__memory_at(uint64_t address, uint64_t *offset);
/* Is anything mapped there, of the library's too? */
bool fake__is_mapped(uint64_t address);
/* It returns what a mapping has of a page. @what is m->mapped, m->marker or
 * m->protected. */
unsigned char *fake__page_of(struct object *m, unsigned char **what,
			     uint64_t address);
unsigned char *fake__page_mapped(struct object *m, uint64_t address);
unsigned char *fake__page_protected(struct object *m, uint64_t address);
void fake__punch(struct object *m, uint64_t offset, uint64_t length);

/* ---- signals.c ---- */

long fake__set_run_mask(const char *mask);

/* ---- the model of each call: its result, as the door returns it ---- */

typedef long fake__call(struct fake_call *c);
/* descriptors.c */
fake__call fake__open, fake__close, fake__dup, fake__getfl, fake__ioctl,
	fake__write;
fake__call fake__read, fake__poll, fake__pread, fake__lseek, fake__fstat;
fake__call fake__fstatfs, fake__cached, fake__fallocate;
/* uffd.c */
fake__call fake__userfaultfd;
/* memory.c */
fake__call fake__mmap, fake__munmap, fake__mprotect, fake__madvise;
fake__call fake__mincore, fake__memfd;
/* signals.c */
fake__call fake__sigmask, fake__handles, fake__sigtake;
/* wait.c */
fake__call fake__futex_wait, fake__futex_wake, fake__epoll_create;
fake__call fake__epoll_ctl, fake__epoll_wait, fake__eventfd;
fake__call fake__eventfd_signal, fake__timerfd, fake__timerfd_arm;
/* threads.c */
fake__call fake__thread, fake__join, fake__yield, fake__alloc, fake__free;

#endif
