/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The fake door. In: what lib/ asks of the kernel. Out: what the test has
 * scripted, or what a kernel of a few hundred lines would say. Every call goes
 * through perform(): fail the nth, script, hook, model, record.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "kvmfault-experimental.h"
#include "fake-sys.h"
#include "lib/os/abi.h"
#include "lib/setup/setup.h"
#include "noting.h"

#define BASE 1000		/* real descriptors are below */
#define FDS 8192
#define RECORDS 65536
#define SCRIPTS 256
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

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct slot fds[FDS];
static struct object *memories[256];
static size_t memory_count;
static struct range mapped[4096];	/* by the library */
static struct fake_call *record;
static size_t records;
static long script[FAKE_NAMES][SCRIPTS];
static size_t scripted[FAKE_NAMES], used[FAKE_NAMES];
static fake_hook hooks[FAKE_NAMES];
static unsigned int until_failure;
static bool failed;
static struct fake_held holds;
static uint64_t clock_now = 1000000000;
static _Thread_local bool in_hook;
static siginfo_t pending;		/* si_signo 0: none */
static uint64_t run_mask = UINT64_MAX;	/* by KVM_SET_SIGNAL_MASK */
long fake_uffd_denied;
const char *fake_maps;
bool fake_no_info;
bool fake_no_nowait;
uint64_t fake_signal_mask;
bool fake_sigbus_handler;

_Static_assert(sizeof(struct fake_call) < 128, "one small struct per call");

/* ---- what may not be done ---- */

/* Where the wrappers are not linked, a thread is in none. */
__attribute__((weak)) _Thread_local const struct noted *noting_inside;

static const struct noted service_thread = {
	.name = "a thread of the service",
};
static const struct noted worker_thread = { .name = "a worker" };

/* All but set-up may run for a fault, and is judged. What of it may do more: */
static const struct path {
	const char *name;
	bool seat;		/* begin with one, which may have to be made */
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
		return call->number == UFFDIO_REGISTER;
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

	return noting_inside == &worker_thread ||
	       !strcmp(name, "kvmfault_vcpu_handle") ||
	       !strcmp(name, "kvmfault_vcpu_handle_sigbus") ||
	       !strncmp(name, request, sizeof(request) - 1);
}

/* A thread of the service, or one that calls what may be filtered too. */
static bool by_another(const struct path *on, enum kvmfault_profile *profile)
{
	*profile = noting_inside == &service_thread ||
		   !strcmp(noting_inside->name, "kvmfault_service_dispatch") ?
		   KVMFAULT_PROFILE_SERVICE : KVMFAULT_PROFILE_CALLER;
	return on->name;
}

static void judge(const struct fake_call *call)
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
	else if (on && by_a_vcpu() && !published(KVMFAULT_PROFILE_INLINE, call) &&
		 !thread.delegated)
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

void fake_aside(void (*run)(void))
{
	struct aside aside = step_aside();

	run();
	step_back(&aside);
}

/* ---- objects ---- */

static struct object *object_of(int fd)
{
	if (fd < BASE || fd >= BASE + FDS)
		return NULL;
	return fds[fd - BASE].object;
}

static int install(struct object *object, bool owned)
{
	int i;

	for (i = 0; i < FDS && fds[i].object; i++)
		;
	if (i == FDS)
		return -EMFILE;
	fds[i].object = object;
	fds[i].owned = owned;
	object->refs++;
	holds.descriptors += owned;
	return BASE + i;
}

static struct object *object_new(enum fake_kind kind)
{
	struct object *object = calloc(1, sizeof(*object));

	object->kind = kind;
	object->real = -1;
	if (kind == FAKE_UFFD)
		object->msg = calloc(MESSAGES, sizeof(*object->msg));
	if (kind == FAKE_EPOLL) {
		object->watch = calloc(WATCHES, sizeof(*object->watch));
		object->watched = calloc(WATCHES, sizeof(*object->watched));
	}
	return object;
}

static void object_put(struct object *object)
{
	/* Memory outlives its descriptors: it is mapped. */
	if (--object->refs || object->kind == FAKE_MEMORY)
		return;
	free(object->msg);
	free(object->watch);
	free(object->watched);
	free(object);
}

static int open_new(enum fake_kind kind, int flags)
{
	struct object *object = object_new(kind);

	object->flags = flags;
	return install(object, true);
}

static struct object *memory_at(uint64_t address, uint64_t *offset)
{
	size_t i, h;

	for (i = 0; i < memory_count; i++) {
		struct object *m = memories[i];

		for (h = 0; h < m->hosts; h++) {
			if (address < m->host[h] ||
			    address - m->host[h] >= m->length)
				continue;
			*offset = address - m->host[h];
			return m;
		}
	}
	return NULL;
}

/* What a mapping has of a page: is it mapped there, is there a marker? */
static unsigned char *page_of(struct object *m, unsigned char **what,
			      uint64_t address)
{
	unsigned int h;

	for (h = 0; h < m->hosts; h++)
		if (address >= m->host[h] && address - m->host[h] < m->length)
			break;
	return &what[h][(address - m->host[h]) / m->page_size];
}

static unsigned char *page_mapped(struct object *m, uint64_t address)
{
	return page_of(m, m->mapped, address);
}

/* Is it write-protected there, or will be when it has come? */
static unsigned char *page_protected(struct object *m, uint64_t address)
{
	return page_of(m, m->protected, address);
}

static struct range *range_at(struct object *uffd, uint64_t address)
{
	size_t i;

	for (i = 0; i < RANGES; i++)
		if (uffd->range[i].length &&
		    address >= uffd->range[i].start &&
		    address - uffd->range[i].start < uffd->range[i].length)
			return &uffd->range[i];
	return NULL;
}

static struct object *registered_with(uint64_t address)
{
	size_t i;

	for (i = 0; i < FDS; i++)
		if (fds[i].object && fds[i].object->kind == FAKE_UFFD &&
		    range_at(fds[i].object, address))
			return fds[i].object;
	return NULL;
}

/* ---- the model: descriptors ---- */

/* What the kernel tells of a descriptor. */
static int open_info(const char *path)
{
	struct object *object;
	int of, fd = -ENOENT;

	if (!fake_no_info && sscanf(path, "/proc/self/fdinfo/%d", &of) == 1)
		fd = open_new(FAKE_FILE, 0);
	if (fd < 0)
		return fd;
	object = object_of(of);
	object_of(fd)->data = (const unsigned char *)object->info;
	object_of(fd)->length = (uint64_t)snprintf(object->info,
		sizeof(object->info), "pos:\t0\ntotal:\t0\nAPI:\taa:%llx:1ff\n",
		(unsigned long long)object->features);
	return fd;
}

static long model_open(struct fake_call *c)
{
	int fd = open_info(c->path);

	if (!strcmp(c->path, "/dev/userfaultfd"))
		return fake_uffd_denied ? fake_uffd_denied :
			open_new(FAKE_DEVICE, 0);
	if (fake_maps && !strcmp(c->path, "/proc/self/maps")) {
		fd = open_new(FAKE_FILE, 0);
		if (fd >= 0) {
			object_of(fd)->data = (const unsigned char *)fake_maps;
			object_of(fd)->length = strlen(fake_maps);
		}
	}
	return fd;
}

static void unwatch(struct object *object)
{
	size_t i, w;

	if (object->refs > 1)
		return;
	for (i = 0; i < FDS; i++) {
		struct object *e = fds[i].object;

		if (!e || e->kind != FAKE_EPOLL)
			continue;
		for (w = 0; w < e->watches;) {
			if (object_of(e->watched[w]) != object) {
				w++;
				continue;
			}
			e->watches--;
			e->watch[w] = e->watch[e->watches];
			e->watched[w] = e->watched[e->watches];
		}
	}
}

static long model_close(struct fake_call *c)
{
	struct object *object = object_of(c->fd);

	if (!object || !fds[c->fd - BASE].owned) {
		fprintf(stderr, "the library closes %d, which is not its own\n",
			c->fd);
		abort();
	}
	unwatch(object);
	fds[c->fd - BASE] = (struct slot){ 0 };
	holds.descriptors--;
	object_put(object);
	return 0;
}

static long model_dup(struct fake_call *c)
{
	struct object *object = object_of(c->fd);

	return object ? install(object, true) : -EBADF;
}

static long model_getfl(struct fake_call *c)
{
	struct object *object = object_of(c->fd);

	return object ? O_RDWR | object->flags : -EBADF;
}

static long read_messages(struct object *object, struct fake_call *c)
{
	size_t n = c->length / sizeof(struct uffd_msg);

	if (!object->msgs)
		return -EAGAIN;
	if (n > object->msgs)
		n = object->msgs;
	memcpy(c->arg, object->msg, n * sizeof(*object->msg));
	object->msgs -= n;
	memmove(object->msg, object->msg + n,
		object->msgs * sizeof(*object->msg));
	return (long)(n * sizeof(*object->msg));
}

static long model_read(struct fake_call *c)
{
	struct object *object = object_of(c->fd);

	if (!object)
		return -EBADF;
	if (c->number && fake_no_nowait)
		return -EOPNOTSUPP;
	if (object->kind == FAKE_UFFD)
		return read_messages(object, c);
	if (object->kind == FAKE_EVENT && object->count) {
		object->count--;
		return (long)c->length;
	}
	if (object->kind == FAKE_EVENT)
		return -EAGAIN;
	if (object->kind != FAKE_TIMER)
		return -EINVAL;
	if (!object->due || object->due > clock_now)
		return -EAGAIN;
	object->due = 0;
	memset(c->arg, 0, c->length);
	return (long)c->length;
}

/* With messages, and as long as a read would not sleep. */
static long model_poll(struct fake_call *c)
{
	struct object *object = object_of(c->fd);

	return object && object->msgs;
}

static long model_pread(struct fake_call *c)
{
	struct object *object = object_of(c->fd);
	uint64_t n = c->length;

	if (!object)
		return -EBADF;
	if (object->kind != FAKE_FILE && object->kind != FAKE_BLOCK &&
	    object->kind != FAKE_MEMORY)
		return -ESPIPE;
	if (c->at >= object->length)
		return 0;
	if (n > object->length - c->at)
		n = object->length - c->at;
	if (object->kind == FAKE_MEMORY)
		return pread(object->real, c->arg, n, (off_t)c->at);
	memcpy(c->arg, object->data + c->at, n);
	return (long)n;
}

static long seek_data(struct object *m, uint64_t from)
{
	uint64_t at;

	for (at = from; at < m->length; at += m->page_size)
		if (m->present[at / m->page_size])
			return (long)at;
	return -ENXIO;
}

static long model_lseek(struct fake_call *c)
{
	struct object *object = object_of(c->fd);

	if (!object)
		return -EBADF;
	if (object->kind == FAKE_PIPE)
		return -ESPIPE;
	if (c->number == SEEK_DATA)
		return object->present ? seek_data(object, c->at) : -EINVAL;
	return c->number == SEEK_END ? (long)object->length : -EINVAL;
}

static long model_fstat(struct fake_call *c)
{
	static const mode_t mode[] = {
		[FAKE_FILE] = S_IFREG, [FAKE_MEMORY] = S_IFREG,
		[FAKE_BLOCK] = S_IFBLK, [FAKE_PIPE] = S_IFIFO,
		[FAKE_TIMER] = 0,
	};
	struct object *object = object_of(c->fd);
	struct stat *stat = c->arg;
	uint64_t i;

	if (!object)
		return -EBADF;
	memset(stat, 0, sizeof(*stat));
	stat->st_mode = mode[object->kind];
	stat->st_ino = (ino_t)c->fd;
	if (object->kind != FAKE_BLOCK)
		stat->st_size = (off_t)object->length;
	for (i = 0; object->present && i < object->length / object->page_size;
	     i++)
		if (object->present[i])
			stat->st_blocks += (blkcnt_t)(object->page_size / 512);
	return 0;
}

static long model_fstatfs(struct fake_call *c)
{
	struct object *object = object_of(c->fd);
	struct statfs *fs = c->arg;

	if (!object)
		return -EBADF;
	memset(fs, 0, sizeof(*fs));
	fs->f_type = object->page_size > UNIT ? HUGETLBFS_MAGIC : TMPFS_MAGIC;
	fs->f_bsize = (long)(object->page_size ? object->page_size : UNIT);
	return 0;
}

static void punch(struct object *m, uint64_t offset, uint64_t length)
{
	uint64_t at;
	unsigned int h;

	for (at = offset; at < offset + length; at += m->page_size) {
		m->present[at / m->page_size] = 0;
		for (h = 0; h < m->hosts; h++)
			m->mapped[h][at / m->page_size] = 0;
		memset((char *)(uintptr_t)m->host[0] + at, 0, m->page_size);
	}
}

static long model_cached(struct fake_call *c)
{
	struct object *object = object_of(c->fd);
	uint64_t at;

	if (!object)
		return -EBADF;
	for (at = c->at; object->present && at < c->at + c->length &&
	     at < object->length; at += object->page_size)
		if (object->present[at / object->page_size])
			return 1;
	return 0;
}

static long model_fallocate(struct fake_call *c)
{
	struct object *object = object_of(c->fd);

	if (!object)
		return -EBADF;
	if (!object->present)
		return -EOPNOTSUPP;
	if (c->at + c->length > object->length)
		return -EINVAL;
	punch(object, c->at, c->length);
	return 0;
}

/* ---- the model: userfaultfd ---- */

static long uffd_open(int flags)
{
	return fake_uffd_denied ? fake_uffd_denied :
		open_new(FAKE_UFFD, flags);
}

static long uffd_api(struct object *uffd, struct uffdio_api *api)
{
	if (api->api != UFFD_API || uffd->api)
		return -EINVAL;
	uffd->api = true;
	uffd->features = api->features;
	api->features = KVMFAULT__UFFD_FEATURE_POISON |
			UFFD_FEATURE_MISSING_SHMEM;
	api->ioctls = 1ULL << _UFFDIO_REGISTER;
	return 0;
}

static bool is_mapped(uint64_t address)
{
	uint64_t offset;
	size_t i;

	if (memory_at(address, &offset))
		return true;
	for (i = 0; i < sizeof(mapped) / sizeof(*mapped); i++)
		if (mapped[i].length && address >= mapped[i].start &&
		    address - mapped[i].start < mapped[i].length)
			return true;
	return false;
}

static long uffd_register(struct object *uffd, struct uffdio_register *reg)
{
	struct object *m;
	uint64_t offset;
	size_t i;

	if (!is_mapped(reg->range.start))
		return -EINVAL;
	if (registered_with(reg->range.start))
		return -EBUSY;
	for (i = 0; i < RANGES && uffd->range[i].length; i++)
		;
	if (i == RANGES)
		return -ENOMEM;
	uffd->range[i].start = reg->range.start;
	uffd->range[i].length = reg->range.len;
	uffd->range[i].write_protect = reg->mode & UFFDIO_REGISTER_MODE_WP;
	reg->ioctls = 1ULL << _UFFDIO_COPY | 1ULL << _UFFDIO_WAKE |
		      1ULL << KVMFAULT__UFFDIO_POISON_NR;
	m = memory_at(reg->range.start, &offset);
	if (!m || m->page_size == UNIT)
		reg->ioctls |= 1ULL << _UFFDIO_ZEROPAGE;
	return 0;
}

static long uffd_unregister(struct object *uffd, struct uffdio_range *range)
{
	struct range *r = range_at(uffd, range->start);

	if (!r)
		return -EINVAL;
	*r = (struct range){ 0 };
	return 0;
}

/* from 0: zeros. What comes without protection has none, whatever was there. */
static long uffd_fill(struct object *uffd, uint64_t to, uint64_t from,
		      uint64_t length, bool protect, __s64 *count)
{
	uint64_t done = 0, offset;
	struct object *m = memory_at(to, &offset);

	if (!m || !range_at(uffd, to))
		return *count = -ENOENT;
	if ((to | length) & (m->page_size - 1))
		return -EINVAL;
	if (!from && m->page_size != UNIT)
		return -EINVAL;
	while (done < length &&
	       !m->present[(offset + done) / m->page_size]) {
		char *page = (char *)(uintptr_t)to + done;

		if (from)
			memcpy(page, (char *)(uintptr_t)from + done,
			       m->page_size);
		else
			memset(page, 0, m->page_size);
		m->present[(offset + done) / m->page_size] = 1;
		*page_mapped(m, to + done) = 1;
		*page_of(m, m->marker, to + done) = 0;
		*page_protected(m, to + done) = protect;
		done += m->page_size;
	}
	*count = done ? (int64_t)done : -EEXIST;
	return done == length ? 0 : done ? -EAGAIN : -EEXIST;
}

static long uffd_continue(struct object *uffd, struct uffdio_continue *cont)
{
	uint64_t to = cont->range.start, done = 0, offset;
	struct object *m = memory_at(to, &offset);
	long err = 0;

	if (!m || !range_at(uffd, to))
		return cont->mapped = -ENOENT;
	for (; done < cont->range.len && !err; done += err ? 0 : m->page_size) {
		if (!m->present[(offset + done) / m->page_size])
			err = -EFAULT;
		else if (*page_mapped(m, to + done))
			err = -EEXIST;
		else
			*page_mapped(m, to + done) = 1;
		if (!err)
			*page_of(m, m->marker, to + done) = 0;
		if (!err)
			*page_protected(m, to + done) = cont->mode &
				KVMFAULT__UFFDIO_CONTINUE_MODE_WP ? 1 : 0;
	}
	cont->mapped = done ? (int64_t)done : err;
	return err && done ? -EAGAIN : err;
}

static long uffd_copy(struct object *uffd, struct uffdio_copy *copy)
{
	return uffd_fill(uffd, copy->dst, copy->src, copy->len,
			 copy->mode & UFFDIO_COPY_MODE_WP, &copy->copy);
}

static long uffd_zero(struct object *uffd, struct uffdio_zeropage *zero)
{
	__s64 count = 0;
	long err = uffd_fill(uffd, zero->range.start, 0, zero->range.len,
			     false, &count);

	zero->zeropage = count;
	return err;
}

/* A marker goes where there is nothing, not even another one. */
static long uffd_poison(struct object *uffd,
			struct kvmfault__uffdio_poison *poison)
{
	uint64_t at = poison->range.start, done = 0, offset;
	struct object *m = memory_at(at, &offset);

	if (!uffd->api)
		return -EINVAL;
	if (!m || !range_at(uffd, at))
		return poison->updated = -ENOENT;
	if ((at | poison->range.len) & (m->page_size - 1))
		return -EINVAL;
	for (; done < poison->range.len; done += m->page_size) {
		unsigned char *marker = page_of(m, m->marker, at + done);

		if (*marker || *page_protected(m, at + done) ||
		    m->present[(offset + done) / m->page_size])
			break;
		*marker = 1;
	}
	poison->updated = done ? (int64_t)done : -EEXIST;
	return done == poison->range.len ? 0 : done ? -EAGAIN : -EEXIST;
}

static long uffd_protect(struct object *uffd, struct uffdio_writeprotect *p)
{
	struct range *range = range_at(uffd, p->range.start);
	uint64_t offset, at;
	struct object *m = memory_at(p->range.start, &offset);

	if (!m || !range || !range->write_protect ||
	    p->range.start + p->range.len > range->start + range->length)
		return -ENOENT;
	if ((p->range.start | p->range.len) & (m->page_size - 1))
		return -EINVAL;
	for (at = 0; at < p->range.len; at += m->page_size)
		*page_protected(m, p->range.start + at) =
			p->mode & UFFDIO_WRITEPROTECT_MODE_WP;
	return 0;
}

static long uffd_ioctl(struct object *uffd, struct fake_call *c)
{
	switch (c->number) {
	case UFFDIO_API:
		return uffd_api(uffd, c->arg);
	case UFFDIO_REGISTER:
		return uffd_register(uffd, c->arg);
	case UFFDIO_UNREGISTER:
		return uffd_unregister(uffd, c->arg);
	case UFFDIO_COPY:
		return uffd_copy(uffd, c->arg);
	case UFFDIO_ZEROPAGE:
		return uffd_zero(uffd, c->arg);
	case UFFDIO_CONTINUE:
		return uffd_continue(uffd, c->arg);
	case UFFDIO_WRITEPROTECT:
		return uffd_protect(uffd, c->arg);
	case KVMFAULT__UFFDIO_POISON:
		return uffd_poison(uffd, c->arg);
	case UFFDIO_WAKE:
		return uffd->api ? 0 : -EINVAL;
	}
	return -ENOTTY;
}

/* ---- the model: a VM's private memory ---- */

#define GFNS (1ULL << 20)	/* 4 GiB of guest memory */
static bool private[GFNS];

static long set_attributes(const struct kvmfault__memory_attributes *a)
{
	uint64_t gfn = a->address / UNIT, count = a->size / UNIT;

	if (a->flags || !count || (a->address | a->size) % UNIT ||
	    gfn + count > GFNS || a->attributes & ~KVMFAULT__ATTRIBUTE_PRIVATE)
		return -EINVAL;
	memset(private + gfn, !!a->attributes, count);
	return 0;
}

/* The kernel's struct kvm_signal_mask; none: the thread's own counts. */
static long set_run_mask(const char *mask)
{
	run_mask = fake_signal_mask;
	if (mask)
		memcpy(&run_mask, mask + sizeof(uint32_t), sizeof(run_mask));
	return 0;
}

static long model_ioctl(struct fake_call *c)
{
	struct object *object = object_of(c->fd);

	if (!object)
		return -EBADF;
	if (object->kind == FAKE_KVM && c->number == KVM_SET_SIGNAL_MASK)
		return set_run_mask(c->arg);
	if (object->kind == FAKE_KVM &&
	    c->number == KVMFAULT__SET_MEMORY_ATTRIBUTES)
		return set_attributes(c->arg);
	if (object->kind == FAKE_UFFD)
		return uffd_ioctl(object, c);
	if (object->kind == FAKE_DEVICE &&
	    c->number == KVMFAULT__USERFAULTFD_IOC_NEW)
		return uffd_open((int)(uintptr_t)c->arg);
	if (object->kind == FAKE_BLOCK && c->number == BLKGETSIZE64) {
		*(uint64_t *)c->arg = object->length;
		return 0;
	}
	return -ENOTTY;
}

static long model_userfaultfd(struct fake_call *c)
{
	return uffd_open((int)c->number);
}

/* ---- the model: memory ---- */

static void *map_memory(struct object *m)
{
	uintptr_t room;
	void *host;

	/* Room to align it in, which is never given back. */
	room = (uintptr_t)mmap(NULL, m->length + m->page_size, PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	host = (void *)((room + m->page_size - 1) & ~(m->page_size - 1));
	host = mmap(host, m->length, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_FIXED, m->real, 0);
	if ((void *)room == MAP_FAILED || host == MAP_FAILED ||
	    m->hosts == HOSTS)
		abort();
	m->mapped[m->hosts] = calloc(m->length / m->page_size, 1);
	m->marker[m->hosts] = calloc(m->length / m->page_size, 1);
	m->protected[m->hosts] = calloc(m->length / m->page_size, 1);
	m->host[m->hosts++] = (uintptr_t)host;
	return host;
}

static void unmap_memory(uint64_t address)
{
	uint64_t offset;
	struct object *m = memory_at(address, &offset);
	unsigned int h;

	for (h = 0; m && h < m->hosts; h++)
		if (m->host[h] == address)
			m->host[h] = UINT64_MAX;
}

static long model_mmap(struct fake_call *c)
{
	struct object *file = c->fd >= 0 ? object_of(c->fd) : NULL;
	void *address;
	size_t i;

	if (c->fd >= 0 && !file)
		return -EBADF;
	/* Another file's contents are nobody's business here. */
	address = file && file->kind == FAKE_MEMORY ? map_memory(file) :
		mmap(NULL, c->length, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (address == MAP_FAILED)
		return -ENOMEM;
	for (i = 0; mapped[i].length; i++)
		;
	mapped[i] = (struct range){
		.start = (uintptr_t)address,
		.length = c->length,
	};
	c->at = (uintptr_t)address;
	holds.mappings++;
	return 0;
}

static long model_munmap(struct fake_call *c)
{
	struct object *uffd = registered_with(c->at);
	size_t i;

	if (uffd)
		*range_at(uffd, c->at) = (struct range){ 0 };
	for (i = 0; i < sizeof(mapped) / sizeof(*mapped); i++) {
		if (mapped[i].start != c->at || mapped[i].length != c->length)
			continue;
		mapped[i] = (struct range){ 0 };
		holds.mappings--;
		unmap_memory(c->at);
		return munmap((void *)(uintptr_t)c->at, c->length);
	}
	fprintf(stderr, "the library unmaps what it has not mapped\n");
	abort();
}

static long model_mprotect(struct fake_call *c)
{
	return is_mapped(c->at) ? 0 : -ENOMEM;
}

/* What is mapped more than once is a file's, and stays in it. */
static void dont_need(struct object *m, uint64_t address, uint64_t offset,
		      uint64_t length)
{
	uint64_t at;

	if (m->hosts == 1)
		punch(m, offset, length);
	for (at = 0; at < length; at += m->page_size)
		*page_of(m, m->marker, address + at) = 0;
}

static long model_madvise(struct fake_call *c)
{
	uint64_t offset;
	struct object *m = memory_at(c->at, &offset);

	if (!m)
		return is_mapped(c->at) ? 0 : -ENOMEM;
	if (c->number == MADV_DONTNEED)
		dont_need(m, c->at, offset, c->length);
	/* What is registered would wait for its page instead. */
	if (c->number == KVMFAULT__MADV_POPULATE_WRITE &&
	    !registered_with(c->at))
		memset(m->present + offset / m->page_size, 1,
		       c->length / m->page_size);
	return 0;
}

static long model_mincore(struct fake_call *c)
{
	unsigned char *vec = c->arg;
	uint64_t i, offset;
	struct object *m = memory_at(c->at, &offset);

	if (!m)
		return -ENOMEM;
	for (i = 0; i < c->length / UNIT; i++)
		vec[i] = m->present[(offset + i * UNIT) / m->page_size];
	return 0;
}

static void back(struct object *m, uint64_t length, uint64_t page_size)
{
	m->length = length;
	m->page_size = page_size;
	m->present = calloc(length / page_size, 1);
	m->real = memfd_create("fake", MFD_CLOEXEC);
	if (ftruncate(m->real, (off_t)length) ||
	    memory_count == sizeof(memories) / sizeof(*memories))
		abort();
	memories[memory_count++] = m;
}

/* What is not to be a guest's only has a length. */
static long model_memfd(struct fake_call *c)
{
	bool guest = !strcmp(c->path, "guest memory");
	int fd = open_new(guest ? FAKE_MEMORY : FAKE_PIPE, 0);
	unsigned int shift = (unsigned int)(c->number >> MFD_HUGE_SHIFT);

	if (fd >= 0 && guest)
		back(object_of(fd), c->length, shift ? 1ULL << shift : UNIT);
	else if (fd >= 0)
		object_of(fd)->length = c->length;
	return fd;
}

/* ---- the model: signals ---- */

static long model_sigmask(struct fake_call *c)
{
	*(uint64_t *)c->arg = fake_signal_mask;
	return 0;
}

static long model_handles(struct fake_call *c)
{
	return c->number == SIGBUS && fake_sigbus_handler;
}

static long model_sigtake(struct fake_call *c)
{
	if (pending.si_signo != (int)c->number)
		return -EAGAIN;
	memcpy(c->arg, &pending, sizeof(pending));
	pending.si_signo = 0;
	return 0;
}

/* ---- the model: waiting ---- */

static long model_futex_wait(struct fake_call *c)
{
	struct timespec limit = {
		.tv_sec = (time_t)(c->length / 1000000000),
		.tv_nsec = (long)(c->length % 1000000000),
	};

	return syscall(SYS_futex, c->arg, FUTEX_WAIT_PRIVATE,
		       (uint32_t)c->number, &limit, NULL, 0) < 0 ? -errno : 0;
}

static long model_futex_wake(struct fake_call *c)
{
	return syscall(SYS_futex, c->arg, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL,
		       NULL, 0);
}

static long model_epoll_create(struct fake_call *c)
{
	(void)c;
	return open_new(FAKE_EPOLL, 0);
}

static long model_epoll_ctl(struct fake_call *c)
{
	struct object *e = object_of(c->fd);
	int fd = (int)c->at;
	size_t w;

	if (!e || !object_of(fd))
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
		pthread_cond_broadcast(&changed);
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
		return object->due && object->due <= clock_now;
	default:
		return false;
	}
}

static long model_epoll_wait(struct fake_call *c)
{
	struct epoll_event *events = c->arg;
	struct object *e = object_of(c->fd);
	size_t w;
	long n = 0;

	if (!e)
		return -EBADF;
	for (;;) {
		for (w = 0; w < e->watches && n < (long)c->length; w++)
			if (e->watch[w].events &&
			    readable(object_of(e->watched[w]))) {
				events[n] = e->watch[w];
				events[n++].events &= ~EPOLLONESHOT;
				if (e->watch[w].events & EPOLLONESHOT)
					e->watch[w].events = 0;
			}
		if (n || (int)c->number == 0)
			return n;
		pthread_cond_wait(&changed, &lock);
	}
}

static long model_eventfd(struct fake_call *c)
{
	(void)c;
	return open_new(FAKE_EVENT, 0);
}

static long model_eventfd_signal(struct fake_call *c)
{
	struct object *object = object_of(c->fd);

	if (!object)
		return -EBADF;
	object->count++;
	pthread_cond_broadcast(&changed);
	return sizeof(uint64_t);
}

static long model_timerfd(struct fake_call *c)
{
	(void)c;
	return open_new(FAKE_TIMER, 0);
}

static long model_timerfd_arm(struct fake_call *c)
{
	struct object *object = object_of(c->fd);

	if (!object)
		return -EBADF;
	object->due = clock_now + c->length;
	return 0;
}

/* ---- the model: threads and the allocator ---- */

struct start {
	void *(*run)(void *);
	void *arg;
	const struct noted *judged;
};

static void *begin(void *arg)
{
	struct start start = *(struct start *)arg;

	free(arg);
	noting_inside = start.judged;
	return start.run(start.arg);
}

static long model_thread(struct fake_call *c)
{
	struct start *start = malloc(sizeof(*start));
	int err;

	*start = *(struct start *)(uintptr_t)c->at;
	err = pthread_create(c->arg, NULL, begin, start);
	if (err)
		free(start);
	holds.threads += !err;
	return -err;
}

static long model_join(struct fake_call *c)
{
	pthread_t id = *(pthread_t *)c->arg;

	holds.threads--;
	/* The thread may need the lock to end. */
	pthread_mutex_unlock(&lock);
	pthread_join(id, NULL);
	pthread_mutex_lock(&lock);
	return 0;
}

/* Time goes by. */
static long model_yield(struct fake_call *c)
{
	(void)c;
	clock_now += 1000;
	return 0;
}

static long model_alloc(struct fake_call *c)
{
	void *memory = NULL;

	if (posix_memalign(&memory, c->number < sizeof(void *) ?
			   sizeof(void *) : c->number, c->length))
		return 0;
	memset(memory, 0, c->length);
	c->at = (uintptr_t)memory;
	holds.allocations++;
	return 1;
}

static long model_free(struct fake_call *c)
{
	if (c->at)
		holds.allocations--;
	free((void *)(uintptr_t)c->at);
	return 0;
}

static long (*const models[FAKE_NAMES])(struct fake_call *call) = {
	[FAKE_OPEN] = model_open,
	[FAKE_CLOSE] = model_close,
	[FAKE_DUP] = model_dup,
	[FAKE_GETFL] = model_getfl,
	[FAKE_IOCTL] = model_ioctl,
	[FAKE_READ] = model_read,
	[FAKE_POLL] = model_poll,
	[FAKE_PREAD] = model_pread,
	[FAKE_LSEEK] = model_lseek,
	[FAKE_FSTAT] = model_fstat,
	[FAKE_FSTATFS] = model_fstatfs,
	[FAKE_CACHED] = model_cached,
	[FAKE_FALLOCATE] = model_fallocate,
	[FAKE_USERFAULTFD] = model_userfaultfd,
	[FAKE_MMAP] = model_mmap,
	[FAKE_MUNMAP] = model_munmap,
	[FAKE_MPROTECT] = model_mprotect,
	[FAKE_MADVISE] = model_madvise,
	[FAKE_MINCORE] = model_mincore,
	[FAKE_MEMFD] = model_memfd,
	[FAKE_SIGMASK] = model_sigmask,
	[FAKE_HANDLES] = model_handles,
	[FAKE_SIGTAKE] = model_sigtake,
	[FAKE_FUTEX_WAIT] = model_futex_wait,
	[FAKE_FUTEX_WAKE] = model_futex_wake,
	[FAKE_EPOLL_CREATE] = model_epoll_create,
	[FAKE_EPOLL_CTL] = model_epoll_ctl,
	[FAKE_EPOLL_WAIT] = model_epoll_wait,
	[FAKE_EVENTFD] = model_eventfd,
	[FAKE_EVENTFD_SIGNAL] = model_eventfd_signal,
	[FAKE_TIMERFD] = model_timerfd,
	[FAKE_TIMERFD_ARM] = model_timerfd_arm,
	[FAKE_THREAD] = model_thread,
	[FAKE_JOIN] = model_join,
	[FAKE_YIELD] = model_yield,
	[FAKE_ALLOC] = model_alloc,
	[FAKE_FREE] = model_free,
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
	/* A sleeper holds no lock, and the allocator's is its own. */
	if (sleeps(call->name))
		return call->result = models[call->name](call);
	pthread_mutex_lock(&lock);
	call->result = models[call->name](call);
	pthread_mutex_unlock(&lock);
	return call->result;
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
	if (used[name] == scripted[name])
		return false;
	call->result = script[name][used[name]++];
	return call->result != FAKE_MODEL;
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
	struct aside aside;
	bool done;

	if (!hook || in_hook)
		return false;
	in_hook = true;
	aside = step_aside();
	done = hook(call);
	step_back(&aside);
	in_hook = false;
	return done;
}

static long perform(struct fake_call *call)
{
	bool told;
	fake_hook hook;

	judge(call);
	pthread_mutex_lock(&lock);
	told = foretold(call);
	hook = hooks[call->name];
	pthread_mutex_unlock(&lock);
	if (!told && !by_hook(call, hook))
		fake_model(call);
	pthread_mutex_lock(&lock);
	keep(call);
	pthread_mutex_unlock(&lock);
	return call->result;
}

#define CALL(...) perform(&(struct fake_call){ __VA_ARGS__ })

/* ---- the door ---- */

int kvmfault__sys_open(const char *path, int flags)
{
	return (int)CALL(.name = FAKE_OPEN, .path = path,
			 .number = (uint64_t)flags);
}

int kvmfault__sys_close(int fd)
{
	return (int)CALL(.name = FAKE_CLOSE, .fd = fd);
}

int kvmfault__sys_dup(int fd)
{
	return (int)CALL(.name = FAKE_DUP, .fd = fd);
}

int kvmfault__sys_getfl(int fd)
{
	return (int)CALL(.name = FAKE_GETFL, .fd = fd);
}

int kvmfault__sys_ioctl(int fd, unsigned long request, void *arg)
{
	struct fake_call call = {
		.name = FAKE_IOCTL, .fd = fd, .number = request, .arg = arg,
	};

	/* arg is on the stack: for the record, its range. (Some requests say
	 * "read" where they mean "write".) */
	if ((_IOC_TYPE(request) == UFFDIO && _IOC_SIZE(request) >= 16) ||
	    request == KVMFAULT__SET_MEMORY_ATTRIBUTES) {
		memcpy(&call.at, arg, sizeof(call.at));
		memcpy(&call.length, (char *)arg + 8, sizeof(call.length));
	}
	return (int)perform(&call);
}

ssize_t kvmfault__sys_read(int fd, void *buffer, size_t length)
{
	return CALL(.name = FAKE_READ, .fd = fd, .arg = buffer,
		    .length = length);
}

ssize_t kvmfault__sys_read_now(int fd, void *buffer, size_t length)
{
	return CALL(.name = FAKE_READ, .fd = fd, .arg = buffer,
		    .length = length, .number = KVMFAULT__RWF_NOWAIT);
}

bool kvmfault__sys_readable(int fd)
{
	return CALL(.name = FAKE_POLL, .fd = fd);
}

ssize_t kvmfault__sys_pread(int fd, void *buffer, size_t length, off_t offset)
{
	return CALL(.name = FAKE_PREAD, .fd = fd, .arg = buffer,
		    .length = length, .at = (uint64_t)offset);
}

off_t kvmfault__sys_lseek(int fd, off_t offset, int whence)
{
	return CALL(.name = FAKE_LSEEK, .fd = fd, .at = (uint64_t)offset,
		    .number = (uint64_t)whence);
}

int kvmfault__sys_fstat(int fd, struct stat *stat)
{
	return (int)CALL(.name = FAKE_FSTAT, .fd = fd, .arg = stat);
}

int kvmfault__sys_fstatfs(int fd, struct statfs *statfs)
{
	return (int)CALL(.name = FAKE_FSTATFS, .fd = fd, .arg = statfs);
}

int kvmfault__sys_cached(int fd, uint64_t offset, uint64_t length)
{
	return (int)CALL(.name = FAKE_CACHED, .fd = fd, .at = offset,
			 .length = length);
}

int kvmfault__sys_fallocate(int fd, int mode, off_t offset, off_t length)
{
	return (int)CALL(.name = FAKE_FALLOCATE, .fd = fd,
			 .number = (uint64_t)mode, .at = (uint64_t)offset,
			 .length = (uint64_t)length);
}

int kvmfault__sys_userfaultfd(int flags)
{
	return (int)CALL(.name = FAKE_USERFAULTFD, .number = (uint64_t)flags);
}

int kvmfault__sys_mmap(void **address, size_t length, int prot, int flags,
		       int fd, off_t offset)
{
	struct fake_call call = {
		.name = FAKE_MMAP, .fd = fd, .length = length,
		.number = (uint64_t)flags,
	};

	(void)prot;
	(void)offset;
	perform(&call);
	*address = call.result ? NULL : (void *)(uintptr_t)call.at;
	return (int)call.result;
}

int kvmfault__sys_munmap(void *address, size_t length)
{
	return (int)CALL(.name = FAKE_MUNMAP, .at = (uintptr_t)address,
			 .length = length);
}

int kvmfault__sys_mprotect(void *address, size_t length, int prot)
{
	return (int)CALL(.name = FAKE_MPROTECT, .at = (uintptr_t)address,
			 .length = length, .number = (uint64_t)prot);
}

int kvmfault__sys_madvise(void *address, size_t length, int advice)
{
	return (int)CALL(.name = FAKE_MADVISE, .at = (uintptr_t)address,
			 .length = length, .number = (uint64_t)advice);
}

int kvmfault__sys_mincore(void *address, size_t length, unsigned char *vec)
{
	return (int)CALL(.name = FAKE_MINCORE, .at = (uintptr_t)address,
			 .length = length, .arg = vec);
}

int kvmfault__sys_memfd(const char *name, unsigned int flags, off_t length)
{
	return (int)CALL(.name = FAKE_MEMFD, .path = name, .number = flags,
			 .length = (uint64_t)length);
}

int kvmfault__sys_sigmask(uint64_t *mask)
{
	return (int)CALL(.name = FAKE_SIGMASK, .arg = mask);
}

int kvmfault__sys_handles(int number)
{
	return (int)CALL(.name = FAKE_HANDLES, .number = (uint64_t)number);
}

int kvmfault__sys_sigtake(int number, void *siginfo)
{
	return (int)CALL(.name = FAKE_SIGTAKE, .number = (uint64_t)number,
			 .arg = siginfo);
}

size_t kvmfault__sys_page_size(void)
{
	return UNIT;
}

int kvmfault__sys_futex_wait(_Atomic uint32_t *word, uint32_t value,
			     uint64_t nanoseconds)
{
	return (int)CALL(.name = FAKE_FUTEX_WAIT,
			 .arg = (void *)(uintptr_t)word, .number = value,
			 .length = nanoseconds);
}

int kvmfault__sys_futex_wake(_Atomic uint32_t *word)
{
	return (int)CALL(.name = FAKE_FUTEX_WAKE,
			 .arg = (void *)(uintptr_t)word);
}

int kvmfault__sys_epoll_create(void)
{
	return (int)CALL(.name = FAKE_EPOLL_CREATE);
}

int kvmfault__sys_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev)
{
	return (int)CALL(.name = FAKE_EPOLL_CTL, .fd = epfd,
			 .number = (uint64_t)op, .at = (uint64_t)fd,
			 .arg = ev);
}

int kvmfault__sys_epoll_wait(int epfd, struct epoll_event *events, int count,
			     int timeout)
{
	return (int)CALL(.name = FAKE_EPOLL_WAIT, .fd = epfd, .arg = events,
			 .length = (uint64_t)count,
			 .number = (uint32_t)timeout);
}

int kvmfault__sys_eventfd(void)
{
	return (int)CALL(.name = FAKE_EVENTFD);
}

int kvmfault__sys_eventfd_signal(int fd)
{
	return (int)CALL(.name = FAKE_EVENTFD_SIGNAL, .fd = fd);
}

int kvmfault__sys_timerfd(void)
{
	return (int)CALL(.name = FAKE_TIMERFD);
}

int kvmfault__sys_timerfd_arm(int fd, uint64_t nanoseconds)
{
	return (int)CALL(.name = FAKE_TIMERFD_ARM, .fd = fd,
			 .length = nanoseconds);
}

uint64_t kvmfault__sys_now(void)
{
	uint64_t now;

	/* Not recorded; a system call where the vDSO has no clock. */
	judge(&(struct fake_call){ .name = FAKE_NAMES });
	pthread_mutex_lock(&lock);
	now = clock_now;
	pthread_mutex_unlock(&lock);
	return now;
}

int kvmfault__sys_thread(pthread_t *id, void *(*run)(void *), void *arg,
			 const char *name)
{
	struct start start = {
		.run = run, .arg = arg,
		.judged = strcmp(name, "kvmfault-vcpu") ? &service_thread :
							  &worker_thread,
	};

	return (int)CALL(.name = FAKE_THREAD, .path = name, .arg = id,
			 .at = (uintptr_t)&start);
}

void **kvmfault__sys_own(void)
{
	static _Thread_local void *own;

	return &own;
}

void kvmfault__sys_join(pthread_t id)
{
	CALL(.name = FAKE_JOIN, .arg = &id);
}

void kvmfault__sys_yield(void)
{
	CALL(.name = FAKE_YIELD);
	sched_yield();
}

void *kvmfault__sys_alloc(size_t size, size_t align)
{
	struct fake_call call = {
		.name = FAKE_ALLOC, .length = size, .number = align,
	};

	return perform(&call) ? (void *)(uintptr_t)call.at : NULL;
}

void kvmfault__sys_free(void *memory)
{
	CALL(.name = FAKE_FREE, .at = (uintptr_t)memory);
}

/* ---- the test's side ---- */

void fake_on(enum fake_name name, fake_hook hook)
{
	pthread_mutex_lock(&lock);
	hooks[name] = hook;
	pthread_mutex_unlock(&lock);
}

void fake_push(enum fake_name name, long result)
{
	pthread_mutex_lock(&lock);
	if (scripted[name] == SCRIPTS)
		abort();
	script[name][scripted[name]++] = result;
	pthread_mutex_unlock(&lock);
}

void fake_fail_nth(unsigned int nth)
{
	pthread_mutex_lock(&lock);
	until_failure = nth;
	failed = false;
	pthread_mutex_unlock(&lock);
}

bool fake_failed(void)
{
	bool did;

	pthread_mutex_lock(&lock);
	did = failed;
	until_failure = 0;
	pthread_mutex_unlock(&lock);
	return did;
}

static bool matches(const struct fake_call *call, enum fake_name name,
		    uint64_t number)
{
	return call->name == name &&
	       (number == FAKE_ANY || call->number == number);
}

size_t fake_count(enum fake_name name, uint64_t number)
{
	size_t i, n = 0;

	pthread_mutex_lock(&lock);
	for (i = 0; i < records; i++)
		n += matches(&record[i], name, number);
	pthread_mutex_unlock(&lock);
	return n;
}

const struct fake_call *fake_nth(enum fake_name name, uint64_t number, size_t n)
{
	const struct fake_call *found = NULL;
	size_t i;

	pthread_mutex_lock(&lock);
	for (i = 0; i < records && !found; i++)
		if (matches(&record[i], name, number) && !n--)
			found = &record[i];
	pthread_mutex_unlock(&lock);
	return found;
}

void fake_forget(void)
{
	pthread_mutex_lock(&lock);
	records = 0;
	memset(hooks, 0, sizeof(hooks));
	memset(scripted, 0, sizeof(scripted));
	memset(used, 0, sizeof(used));
	pthread_mutex_unlock(&lock);
}

struct fake_held fake_held(void)
{
	struct fake_held now;

	pthread_mutex_lock(&lock);
	now = holds;
	pthread_mutex_unlock(&lock);
	return now;
}

int fake_fd(enum fake_kind kind)
{
	int fd;

	pthread_mutex_lock(&lock);
	fd = install(object_new(kind), false);
	pthread_mutex_unlock(&lock);
	return fd;
}

void fake_give(int fd)
{
	pthread_mutex_lock(&lock);
	fds[fd - BASE].owned = true;
	holds.descriptors++;
	pthread_mutex_unlock(&lock);
}

int fake_file(enum fake_kind kind, const void *data, uint64_t length)
{
	int fd = fake_fd(kind);

	object_of(fd)->data = data;
	object_of(fd)->length = length;
	return fd;
}

void *fake_map(int fd)
{
	return map_memory(object_of(fd));
}

int fake_memory(uint64_t length, uint64_t page_size, void **host)
{
	int fd = fake_fd(FAKE_MEMORY);

	back(object_of(fd), length, page_size ? page_size : UNIT);
	*host = fake_map(fd);
	return fd;
}

bool fake_present(int fd, uint64_t offset)
{
	struct object *m = object_of(fd);

	return m->present[offset / m->page_size];
}

void fake_put(int fd, uint64_t offset)
{
	struct object *m = object_of(fd);

	m->present[offset / m->page_size] = 1;
}

bool fake_marked(const void *address)
{
	uint64_t offset;
	struct object *m = memory_at((uintptr_t)address, &offset);

	return *page_of(m, m->marker, (uintptr_t)address);
}

uint64_t fake_run_mask(void)
{
	return run_mask;
}

void fake_send(const void *siginfo)
{
	pthread_mutex_lock(&lock);
	memcpy(&pending, siginfo, sizeof(pending));
	pthread_mutex_unlock(&lock);
}

void fake_take(int fd, uint64_t offset)
{
	struct object *m = object_of(fd);

	m->present[offset / m->page_size] = 0;
}

int fake_uffd(int flags)
{
	int fd = fake_fd(FAKE_UFFD);

	object_of(fd)->flags = flags;
	object_of(fd)->api = true;
	return fd;
}

bool fake_registered(const void *address)
{
	bool yes;

	pthread_mutex_lock(&lock);
	yes = registered_with((uintptr_t)address);
	pthread_mutex_unlock(&lock);
	return yes;
}

static bool queue(struct object *uffd, const struct uffd_msg *msg)
{
	if (!uffd || uffd->msgs == MESSAGES)
		return false;
	uffd->msg[uffd->msgs++] = *msg;
	pthread_cond_broadcast(&changed);
	return true;
}

void fake_message(int fd, const struct uffd_msg *msg)
{
	pthread_mutex_lock(&lock);
	queue(object_of(fd), msg);
	pthread_mutex_unlock(&lock);
}

bool fake_protected(const void *address)
{
	uint64_t offset;
	struct object *m;
	bool yes;

	pthread_mutex_lock(&lock);
	m = memory_at((uintptr_t)address, &offset);
	yes = m && *page_protected(m, (uintptr_t)address);
	pthread_mutex_unlock(&lock);
	return yes;
}

bool fake_fault(const void *address, bool write)
{
	struct uffd_msg msg = { .event = UFFD_EVENT_PAGEFAULT };
	uint64_t offset;
	struct object *m;
	bool queued;

	msg.arg.pagefault.address = (uintptr_t)address;
	msg.arg.pagefault.flags = write ? UFFD_PAGEFAULT_FLAG_WRITE : 0;
	pthread_mutex_lock(&lock);
	m = memory_at((uintptr_t)address, &offset);
	if (write && m && m->present[offset / m->page_size] &&
	    *page_protected(m, (uintptr_t)address))
		msg.arg.pagefault.flags |= UFFD_PAGEFAULT_FLAG_WP;
	queued = queue(registered_with((uintptr_t)address), &msg);
	pthread_mutex_unlock(&lock);
	return queued;
}

void fake_short_lock(const pthread_mutex_t *mutex)
{
	short_lock = mutex;
}

bool fake_private(uint64_t gpa)
{
	bool is;

	pthread_mutex_lock(&lock);
	is = private[gpa / UNIT];
	pthread_mutex_unlock(&lock);
	return is;
}

bool fake_access(uint64_t gpa, bool wanted, void (*access)(void *), void *arg)
{
	bool fits;

	pthread_mutex_lock(&lock);
	fits = private[gpa / UNIT] == wanted;
	if (fits)
		access(arg);
	pthread_mutex_unlock(&lock);
	return fits;
}

void fake_advance(uint64_t nanoseconds)
{
	pthread_mutex_lock(&lock);
	clock_now += nanoseconds;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}
