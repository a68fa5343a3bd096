/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The only way from the library to the kernel, the allocator and locks. Each
 * function makes the call that its name says, and returns the call's result or
 * -errno. Unit tests link a fake in the place of sys.c.
 */

#ifndef KVMFAULT__SYS_H
#define KVMFAULT__SYS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct epoll_event;
struct stat;
struct statfs;

int kvmfault__sys_open(const char *path, int flags);
int kvmfault__sys_close(int fd);
int kvmfault__sys_dup(int fd);		/* close-on-exec */
int kvmfault__sys_getfl(int fd);	/* F_GETFL */
int kvmfault__sys_ioctl(int fd, unsigned long request, void *arg);
ssize_t kvmfault__sys_read(int fd, void *buffer, size_t length);
/* Read without waiting, whatever the descriptor's flags say. Returns
 * -EOPNOTSUPP if the kernel can't read this file in that way. */
ssize_t kvmfault__sys_read_now(int fd, void *buffer, size_t length);
bool kvmfault__sys_readable(int fd);	/* without waiting */
ssize_t kvmfault__sys_write(int fd, const void *buffer, size_t length);
ssize_t kvmfault__sys_pread(int fd, void *buffer, size_t length, off_t offset);
off_t kvmfault__sys_lseek(int fd, off_t offset, int whence);
int kvmfault__sys_fstat(int fd, struct stat *stat);
int kvmfault__sys_fstatfs(int fd, struct statfs *statfs);
/* Has the page cache a page of this part of the file, or has it evicted one?
 * Returns 1, 0 or -errno, which is -ENOSYS before 6.5. */
int kvmfault__sys_cached(int fd, uint64_t offset, uint64_t length);
int kvmfault__sys_fallocate(int fd, int mode, off_t offset, off_t length);

int kvmfault__sys_userfaultfd(int flags);

int kvmfault__sys_mmap(void **address, size_t length, int prot, int flags,
		       int fd, off_t offset);
int kvmfault__sys_munmap(void *address, size_t length);
int kvmfault__sys_mprotect(void *address, size_t length, int prot);
int kvmfault__sys_madvise(void *address, size_t length, int advice);
int kvmfault__sys_mincore(void *address, size_t length, unsigned char *vec);
int kvmfault__sys_memfd(const char *name, unsigned int flags, off_t length);
size_t kvmfault__sys_page_size(void);

/* The signals that the calling thread blocks; bit n - 1 is signal n. */
int kvmfault__sys_sigmask(uint64_t *mask);
/* Has the signal a handler? 1 or 0, or -errno. */
int kvmfault__sys_handles(int signal);
/* Take a pending signal without waiting for one. Returns 0, or -EAGAIN if none
 * is pending. */
int kvmfault__sys_sigtake(int signal, void *siginfo);

/* Private futexes. The kernel restarts a wait without a limit after a signal
 * handler with SA_RESTART; a wait with one ends, so each wait has a limit. */
int kvmfault__sys_futex_wait(_Atomic uint32_t *word, uint32_t value,
			     uint64_t nanoseconds);
int kvmfault__sys_futex_wake(_Atomic uint32_t *word);

int kvmfault__sys_epoll_create(void);
int kvmfault__sys_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev);
int kvmfault__sys_epoll_wait(int epfd, struct epoll_event *events, int count,
			     int timeout);
int kvmfault__sys_eventfd(void);
int kvmfault__sys_eventfd_signal(int fd);
int kvmfault__sys_timerfd(void);
int kvmfault__sys_timerfd_arm(int fd, uint64_t nanoseconds);

uint64_t kvmfault__sys_now(void);	/* monotonic, nanoseconds */

/* Start a thread that blocks all signals. */
int kvmfault__sys_thread(pthread_t *thread, void *(*run)(void *), void *arg,
			 const char *name);
void kvmfault__sys_join(pthread_t thread);
/* The calling thread's own pointer, NULL at first. */
void **kvmfault__sys_own(void);
void kvmfault__sys_yield(void);		/* let another thread have this CPU */

/* "Locks" in doc/design.md says what a thread may call under which lock. */
void kvmfault__sys_lock(pthread_mutex_t *lock);
void kvmfault__sys_unlock(pthread_mutex_t *lock);

void *kvmfault__sys_alloc(size_t size, size_t align);	/* zeroed, or NULL */
void kvmfault__sys_free(void *memory);

#endif
