/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The fake door: a small kernel in memory, in the place of lib/sys.c. It has
 * descriptors, memory files with pages that are present or not, userfaultfds
 * with registered ranges and messages, epoll, timers on a clock that only the
 * test moves, and an allocator that counts. A test can
 *
 * - let it be: each call does what the kernel would (the model);
 * - fake_push() results: they are returned first, in their order;
 * - fake_refuse() a call: each of that kind fails, until that is taken back;
 * - fake_on() a call: its own code runs in the place of the call, may look at
 *   the arguments, call the library, run the model by fake_model(), and say
 *   the result. That is how something happens *during* a call;
 * - fake_fail_nth() call: whatever it is, it fails.
 *
 * Every call is recorded. Any thread may call; hooks run without the fake's
 * lock, and what a hook calls meets no hook.
 *
 * Every call is judged, too. Under one of the library's locks there is none but
 * what set-up does there; the fault path makes nothing (no memory, no
 * descriptor, no thread), and what of it is a vCPU's takes no lock at all, and
 * makes no call that kvmfault_syscalls() does not name. A call that breaks this
 * ends the program. tests/errnos.py's wrappers say which function a thread is
 * in.
 *
 * This is the face for tests. The fake itself is in tests/fake/, where fake.h
 * says which file has what.
 */

#ifndef KVMFAULT_TESTS_FAKE_SYS_H
#define KVMFAULT_TESTS_FAKE_SYS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct uffd_msg;

enum fake_name {
	FAKE_OPEN, FAKE_CLOSE, FAKE_DUP, FAKE_GETFL, FAKE_IOCTL, FAKE_READ,
	FAKE_WRITE, FAKE_POLL, FAKE_PREAD, FAKE_LSEEK, FAKE_FSTAT, FAKE_FSTATFS, FAKE_CACHED,
	FAKE_FALLOCATE, FAKE_USERFAULTFD, FAKE_MMAP, FAKE_MUNMAP,
	FAKE_MPROTECT, FAKE_MADVISE, FAKE_MINCORE, FAKE_MEMFD,
	FAKE_SIGMASK, FAKE_HANDLES, FAKE_SIGTAKE,
	FAKE_FUTEX_WAIT, FAKE_FUTEX_WAKE, FAKE_EPOLL_CREATE, FAKE_EPOLL_CTL,
	FAKE_EPOLL_WAIT, FAKE_EVENTFD, FAKE_EVENTFD_SIGNAL, FAKE_TIMERFD,
	FAKE_TIMERFD_ARM, FAKE_THREAD, FAKE_JOIN, FAKE_YIELD, FAKE_ALLOC, FAKE_FREE,
	FAKE_NAMES
};

/* One call: its arguments where they fit, and what it returned. */
struct fake_call {
	enum fake_name name;
	int fd;
	uint64_t number;	/* request, flags, advice, whence, mode, op */
	uint64_t at;		/* address, or offset */
	uint64_t length;	/* or nanoseconds */
	void *arg;		/* what a pointer points to */
	const char *path;
	long result;		/* as the door returns it; an alloc's: 1 or 0 */
};

/* Runs in the place of the call. True: call->result is the result. False: go
 * on with the model. */
typedef bool (*fake_hook)(struct fake_call *call);
void fake_on(enum fake_name name, fake_hook hook);
long fake_model(struct fake_call *call);

#define FAKE_ANY UINT64_MAX	/* for a number: it does not matter */
#define FAKE_MODEL 0x4d4f444cL		/* push it to let one call through */
void fake_push(enum fake_name name, long result);
/* Each such call fails with this -errno from now on, whatever its hook would
 * say; 0 takes that back. The number says which calls of that name are meant,
 * and a name has one refusal at a time. */
void fake_refuse(enum fake_name name, uint64_t number, long error);

/* The nth call (from 1) of those that can fail, counted from now on, fails.
 * False afterwards: there were fewer. */
void fake_fail_nth(unsigned int nth);
bool fake_failed(void);

/* What was done wrong, and in which function; by itself it prints that and
 * aborts. */
extern void (*fake_wrong)(const char *what, const char *function);
/* A callback says that it was called: with none of the locks held. */
void fake_called_back(void);
/* This thread is a vCPU's, of the delegate profile, from now on. */
void fake_delegated(bool yes);
/* Run what is not the library's, as on another thread: what it does is judged
 * by itself. A hook is run like that. */
void fake_aside(void (*run)(void));

/* The record has so many calls of that name and number. */
size_t fake_count(enum fake_name name, uint64_t number);
/* The nth of them, from 0; NULL: there are fewer. */
const struct fake_call *fake_nth(enum fake_name name, uint64_t number,
				 size_t n);
void fake_forget(void);		/* the record, and what was asked for */

/* What the library has open. */
struct fake_held {
	long allocations, descriptors, mappings, threads;
};
struct fake_held fake_held(void);

/* Things. A descriptor from here is the test's: that the library closes one
 * aborts the program. */
enum fake_kind {
	FAKE_FILE = 1, FAKE_BLOCK, FAKE_PIPE, FAKE_KVM, FAKE_MEMORY, FAKE_UFFD,
	FAKE_DEVICE, FAKE_EPOLL, FAKE_EVENT, FAKE_TIMER,
};
int fake_fd(enum fake_kind kind);
void fake_give(int fd);		/* from now on it is the library's to close */
int fake_file(enum fake_kind kind, const void *data, uint64_t length);
/* A regular file that can be written, into so many bytes at data. It is empty,
 * and has one position for reading and writing. */
int fake_new_file(void *data, uint64_t most);
uint64_t fake_file_length(int fd);
/* From there on it is read or written next. */
void fake_rewind(int fd);
/* A memory file with one mapping. page_size over 4 KiB: hugetlbfs. */
int fake_memory(uint64_t length, uint64_t page_size, void **host);
void *fake_map(int fd);		/* one more mapping of it */
bool fake_present(int fd, uint64_t offset);
void fake_put(int fd, uint64_t offset);	/* the page is there */
void fake_take(int fd, uint64_t offset);	/* and is not */
bool fake_marked(const void *address);	/* in that mapping of it */
/* A userfaultfd after UFFDIO_API. flags: O_NONBLOCK or not. */
int fake_uffd(int flags);
bool fake_registered(const void *address);
void fake_message(int fd, const struct uffd_msg *msg);
/* Would a write to it be told? Also of a page that is not there yet. */
bool fake_protected(const void *address);
/* A thread touches the address, and sleeps: its message is queued at the
 * userfaultfd that is registered there. False: none is. */
bool fake_fault(const void *address, bool write);
extern bool fake_no_nowait;	/* a kernel before 6.10 */
/* May userfaultfds be had? -errno of both ways, 0: yes. */
extern long fake_uffd_denied;
/* What /proc/self/maps says; NULL: it can't be opened. */
extern const char *fake_maps;
/* Nothing is told of descriptors: there is no /proc. */
extern bool fake_no_info;

/* The calling thread's signals: what it blocks, whether SIGBUS has a handler,
 * one that is pending; and what KVM was told to have blocked in KVM_RUN. */
extern uint64_t fake_signal_mask;
extern bool fake_sigbus_handler;
void fake_send(const void *siginfo);
uint64_t fake_run_mask(void);

void fake_advance(uint64_t nanoseconds);

/* A lock that a vCPU's path may take: nobody has it for long. */
void fake_short_lock(const pthread_mutex_t *lock);

/* What KVM_SET_MEMORY_ATTRIBUTES has set last; all FAKE_KVMs are one VM. */
bool fake_private(uint64_t gpa);
/* A guest's access, as one with what the fake knows: access() may only look at
 * and change pages. False: it wanted the other kind of memory, and exits. */
bool fake_access(uint64_t gpa, bool wanted, void (*access)(void *), void *arg);

#endif
