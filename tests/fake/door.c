/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The door, as lib/sys.c has it: one function for each thing that the library
 * asks of the kernel. In: its arguments. Out: what fake__perform() says of
 * them. What holds: a function here decides nothing; it only puts its arguments
 * into a struct fake_call, where the judge, the hooks and the record find them.
 */

#include <sched.h>
#include <string.h>

#include "fake.h"
#include "lib/os/sys.h"

#define CALL(...) fake__perform(&(struct fake_call){ __VA_ARGS__ })

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
	return (int)fake__perform(&call);
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

ssize_t kvmfault__sys_write(int fd, const void *buffer, size_t length)
{
	return CALL(.name = FAKE_WRITE, .fd = fd,
		    .arg = (void *)(uintptr_t)buffer, .length = length);
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
	fake__perform(&call);
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
	fake__judge(&(struct fake_call){ .name = FAKE_NAMES });
	pthread_mutex_lock(&fake__lock);
	now = fake__now;
	pthread_mutex_unlock(&fake__lock);
	return now;
}

int kvmfault__sys_thread(pthread_t *id, void *(*run)(void *), void *arg,
			 const char *name)
{
	bool worker = !strcmp(name, "kvmfault-vcpu");
	struct start start = {
		.run = run, .arg = arg,
		.judged = worker ? &fake__worker_thread : &fake__service_thread,
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

	return fake__perform(&call) ? (void *)(uintptr_t)call.at : NULL;
}

void kvmfault__sys_free(void *memory)
{
	CALL(.name = FAKE_FREE, .at = (uintptr_t)memory);
}
