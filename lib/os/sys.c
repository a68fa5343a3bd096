/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: system calls, allocation and locks, and nothing
 * else. In: the call's arguments. Out: the call's result, or -errno. No
 * function here decides anything, because unit tests replace the whole file.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "abi.h"
#include "sys.h"

static long sys_result(long ret)
{
	return ret < 0 ? -errno : ret;
}

int kvmfault__sys_open(const char *path, int flags)
{
	return (int)sys_result(open(path, flags | O_CLOEXEC));
}

int kvmfault__sys_close(int fd)
{
	return (int)sys_result(close(fd));
}

int kvmfault__sys_dup(int fd)
{
	return (int)sys_result(fcntl(fd, F_DUPFD_CLOEXEC, 3));
}

int kvmfault__sys_getfl(int fd)
{
	return (int)sys_result(fcntl(fd, F_GETFL));
}

int kvmfault__sys_ioctl(int fd, unsigned long request, void *arg)
{
	return (int)sys_result(ioctl(fd, request, arg));
}

ssize_t kvmfault__sys_read(int fd, void *buffer, size_t length)
{
	return sys_result(read(fd, buffer, length));
}

/* A raw system call, since musl has preadv2() only since 1.2.5. */
ssize_t kvmfault__sys_read_now(int fd, void *buffer, size_t length)
{
	const struct iovec part = { .iov_base = buffer, .iov_len = length };

	return sys_result(syscall(SYS_preadv2, fd, &part, 1L, -1L, -1L,
				  KVMFAULT__RWF_NOWAIT));
}

bool kvmfault__sys_readable(int fd)
{
	struct pollfd one = { .fd = fd, .events = POLLIN };

	return poll(&one, 1, 0) == 1 && one.revents & POLLIN;
}

ssize_t kvmfault__sys_write(int fd, const void *buffer, size_t length)
{
	return sys_result(write(fd, buffer, length));
}

ssize_t kvmfault__sys_pread(int fd, void *buffer, size_t length, off_t offset)
{
	return sys_result(pread(fd, buffer, length, offset));
}

off_t kvmfault__sys_lseek(int fd, off_t offset, int whence)
{
	return sys_result(lseek(fd, offset, whence));
}

int kvmfault__sys_fstat(int fd, struct stat *stat)
{
	return (int)sys_result(fstat(fd, stat));
}

int kvmfault__sys_fstatfs(int fd, struct statfs *statfs)
{
	return (int)sys_result(fstatfs(fd, statfs));
}

#define NR_CACHESTAT 451	/* since 6.5, the same on each architecture */

int kvmfault__sys_cached(int fd, uint64_t offset, uint64_t length)
{
	struct {
		uint64_t offset, length;
	} range = { offset, length };
	struct {
		uint64_t cache, dirty, writeback, evicted, recently_evicted;
	} stat;
	long err = sys_result(syscall(NR_CACHESTAT, fd, &range, &stat, 0));

	return err ? (int)err : stat.cache || stat.evicted;
}

int kvmfault__sys_fallocate(int fd, int mode, off_t offset, off_t length)
{
	return (int)sys_result(fallocate(fd, mode, offset, length));
}

int kvmfault__sys_userfaultfd(int flags)
{
	return (int)sys_result(syscall(SYS_userfaultfd, flags));
}

int kvmfault__sys_mmap(void **address, size_t length, int prot, int flags,
		       int fd, off_t offset)
{
	void *mapped = mmap(NULL, length, prot, flags, fd, offset);

	*address = mapped == MAP_FAILED ? NULL : mapped;
	return mapped == MAP_FAILED ? -errno : 0;
}

int kvmfault__sys_munmap(void *address, size_t length)
{
	return (int)sys_result(munmap(address, length));
}

int kvmfault__sys_mprotect(void *address, size_t length, int prot)
{
	return (int)sys_result(mprotect(address, length, prot));
}

int kvmfault__sys_madvise(void *address, size_t length, int advice)
{
	return (int)sys_result(madvise(address, length, advice));
}

int kvmfault__sys_mincore(void *address, size_t length, unsigned char *vec)
{
	return (int)sys_result(mincore(address, length, vec));
}

int kvmfault__sys_memfd(const char *name, unsigned int flags, off_t length)
{
	int fd = memfd_create(name, flags | MFD_CLOEXEC);

	if (fd < 0)
		return -errno;
	if (ftruncate(fd, length) < 0) {
		int err = -errno;

		close(fd);
		return err;
	}
	return fd;
}

size_t kvmfault__sys_page_size(void)
{
	return (size_t)sysconf(_SC_PAGESIZE);
}

int kvmfault__sys_sigmask(uint64_t *mask)
{
	return (int)sys_result(syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL,
				       mask, sizeof(*mask)));
}

int kvmfault__sys_handles(int signal)
{
	struct sigaction action;
	long ret = sys_result(sigaction(signal, NULL, &action));

	if (ret < 0)
		return (int)ret;
	return action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN;
}

int kvmfault__sys_sigtake(int signal, void *siginfo)
{
	const uint64_t set = 1ULL << (signal - 1);
	const struct timespec now = { 0 };
	long ret = sys_result(syscall(SYS_rt_sigtimedwait, &set, siginfo, &now,
				      sizeof(set)));

	return ret < 0 ? (int)ret : 0;
}

int kvmfault__sys_futex_wait(_Atomic uint32_t *word, uint32_t value,
			     uint64_t nanoseconds)
{
	struct timespec limit = {
		.tv_sec = (time_t)(nanoseconds / 1000000000),
		.tv_nsec = (long)(nanoseconds % 1000000000),
	};

	return (int)sys_result(syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE,
				       value, &limit, NULL, 0));
}

int kvmfault__sys_futex_wake(_Atomic uint32_t *word)
{
	return (int)sys_result(syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE,
				       INT32_MAX, NULL, NULL, 0));
}

int kvmfault__sys_epoll_create(void)
{
	return (int)sys_result(epoll_create1(EPOLL_CLOEXEC));
}

int kvmfault__sys_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev)
{
	return (int)sys_result(epoll_ctl(epfd, op, fd, ev));
}

int kvmfault__sys_epoll_wait(int epfd, struct epoll_event *events, int count,
			     int timeout)
{
	return (int)sys_result(epoll_wait(epfd, events, count, timeout));
}

int kvmfault__sys_eventfd(void)
{
	return (int)sys_result(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

int kvmfault__sys_eventfd_signal(int fd)
{
	uint64_t one = 1;

	return (int)sys_result(write(fd, &one, sizeof(one)));
}

int kvmfault__sys_timerfd(void)
{
	return (int)sys_result(timerfd_create(CLOCK_MONOTONIC,
					      TFD_CLOEXEC | TFD_NONBLOCK));
}

int kvmfault__sys_timerfd_arm(int fd, uint64_t nanoseconds)
{
	struct itimerspec when = {
		.it_value = {
			.tv_sec = (time_t)(nanoseconds / 1000000000),
			.tv_nsec = (long)(nanoseconds % 1000000000),
		},
	};

	return (int)sys_result(timerfd_settime(fd, 0, &when, NULL));
}

uint64_t kvmfault__sys_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

int kvmfault__sys_thread(pthread_t *thread, void *(*run)(void *), void *arg,
			 const char *name)
{
	sigset_t all, before;
	int err;

	/* The new thread inherits the mask, so that no signal reaches it even
	 * in its first moment. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	err = pthread_create(thread, NULL, run, arg);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (err)
		return -err;
	pthread_setname_np(*thread, name);
	return 0;
}

void **kvmfault__sys_own(void)
{
	static _Thread_local void *own;

	return &own;
}

void kvmfault__sys_join(pthread_t thread)
{
	pthread_join(thread, NULL);
}

void kvmfault__sys_yield(void)
{
	sched_yield();
}

void kvmfault__sys_lock(pthread_mutex_t *lock)
{
	pthread_mutex_lock(lock);
}

void kvmfault__sys_unlock(pthread_mutex_t *lock)
{
	pthread_mutex_unlock(lock);
}

void *kvmfault__sys_alloc(size_t size, size_t align)
{
	void *memory = NULL;

	if (align < sizeof(void *))
		align = sizeof(void *);
	if (posix_memalign(&memory, align, size))
		return NULL;
	return memset(memory, 0, size);
}

void kvmfault__sys_free(void *memory)
{
	free(memory);
}
