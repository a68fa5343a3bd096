/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: the calls of userfaultfds, this process's and
 * others'. In: a descriptor, a range and what to do there. Out: what the kernel
 * did, with the many ways in which it reports that made one. No descriptor that
 * has registered ranges is closed here: absent pages would read as zeros from
 * then on.
 */

#include <fcntl.h>

#include "../os/abi.h"
#include "kernel.h"

static int uffd_open_device(void)
{
	int device, fd;

	device = kvmfault__sys_open("/dev/userfaultfd", O_RDWR);
	if (device < 0)
		return device;
	fd = kvmfault__sys_ioctl(device, KVMFAULT__USERFAULTFD_IOC_NEW,
				 (void *)(uintptr_t)(O_CLOEXEC | O_NONBLOCK));
	kvmfault__sys_close(device);
	return fd;
}

/* Without UFFD_USER_MODE_ONLY, since KVM's accesses are the kernel's. */
int kvmfault__uffd_open(unsigned int how)
{
	int fd = -ENOSYS;

	if (how & KVMFAULT__UFFD_DEVICE)
		fd = uffd_open_device();
	if (fd < 0 && how & KVMFAULT__UFFD_SYSCALL)
		fd = kvmfault__sys_userfaultfd(O_CLOEXEC | O_NONBLOCK);
	return fd;
}

int kvmfault__uffd_register(int fd, uint64_t start, uint64_t length,
			    uint64_t mode, uint64_t *ioctls)
{
	struct uffdio_register reg = {
		.range = { .start = start, .len = length },
		.mode = UFFDIO_REGISTER_MODE_MISSING | mode,
	};
	int err = kvmfault__sys_ioctl(fd, UFFDIO_REGISTER, &reg);

	*ioctls = err ? 0 : reg.ioctls;
	return err;
}

/* The kernel wakes sleepers, and only then waits for faults that began before:
 * such a thread may go to sleep in between, and be left asleep (seen: 6.18). */
int kvmfault__uffd_unregister(int fd, uint64_t start, uint64_t length)
{
	struct uffdio_range range = { .start = start, .len = length };
	int err = kvmfault__sys_ioctl(fd, UFFDIO_UNREGISTER, &range);

	kvmfault__uffd_wake(fd, start, length);
	return err;
}

/*
 * Another process may share the open file: it could clear O_NONBLOCK, and read
 * the message that was waiting. If the kernel can't be told with each read not
 * to sleep (before 6.10), a few instructions remain in which both may happen.
 */
ssize_t kvmfault__uffd_read(int fd, void *messages, size_t size)
{
	ssize_t n = kvmfault__sys_read_now(fd, messages, size);

	if (n != -EOPNOTSUPP && n != -ENOSYS)
		return n;
	if (!kvmfault__sys_readable(fd))
		return -EAGAIN;
	return kvmfault__sys_read(fd, messages, size);
}

/* If a call fails, the kernel leaves the count of bytes at 0 or writes -errno
 * into it. Returns the count if there was progress, and else the error. */
static int64_t uffd_progress(int err, uint64_t length, int64_t count)
{
	if (!err)
		return (int64_t)length;
	return count > 0 ? count : err;
}

static int64_t uffd_copy(int fd, uint64_t to, const void *from, uint64_t length,
			 bool protect)
{
	struct uffdio_copy copy = {
		.dst = to,
		.src = (uintptr_t)from,
		.len = length,
		.mode = protect ? UFFDIO_COPY_MODE_WP : 0,
	};
	int err = kvmfault__sys_ioctl(fd, UFFDIO_COPY, &copy);

	return uffd_progress(err, length, copy.copy);
}

static int64_t uffd_zero(int fd, uint64_t to, uint64_t length)
{
	struct uffdio_zeropage zero = {
		.range = { .start = to, .len = length },
	};
	int err = kvmfault__sys_ioctl(fd, UFFDIO_ZEROPAGE, &zero);

	return uffd_progress(err, length, zero.zeropage);
}

/* Map the page that the file has. */
static int64_t uffd_map(int fd, uint64_t to, uint64_t length, bool protect)
{
	struct uffdio_continue cont = {
		.range = { .start = to, .len = length },
		.mode = protect ? KVMFAULT__UFFDIO_CONTINUE_MODE_WP : 0,
	};
	int err = kvmfault__sys_ioctl(fd, UFFDIO_CONTINUE, &cont);

	return uffd_progress(err, length, cont.mapped);
}

/* The kernel returns -ENOENT for a range across the border of two VMAs, as it
 * does if nothing is mapped: try half of the range. False: it was one page. */
static bool uffd_halve_range(uint64_t *length, uint64_t page)
{
	*length = *length / 2 & -page;
	return *length;
}

int64_t kvmfault__uffd_install(int fd, enum kvmfault__install how, uint64_t to,
			       const void *from, uint64_t length, uint64_t page,
			       bool protect)
{
	int64_t done;

	if (how == KVMFAULT__COPY)
		done = uffd_copy(fd, to, from, length, protect);
	else if (how == KVMFAULT__ZERO)
		done = uffd_zero(fd, to, length);
	else
		done = uffd_map(fd, to, length, protect);
	if (done != -ENOENT || !uffd_halve_range(&length, page))
		return done;
	return kvmfault__uffd_install(fd, how, to, from, length, page, protect);
}

int kvmfault__uffd_wake(int fd, uint64_t start, uint64_t length)
{
	struct uffdio_range range = { .start = start, .len = length };

	return kvmfault__sys_ioctl(fd, UFFDIO_WAKE, &range);
}

static int uffd_write_protect(int fd, uint64_t start, uint64_t length, bool on)
{
	struct uffdio_writeprotect protect = {
		.range = { .start = start, .len = length },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return kvmfault__sys_ioctl(fd, UFFDIO_WRITEPROTECT, &protect);
}

int kvmfault__uffd_protect(int fd, uint64_t start, uint64_t length,
			   uint64_t page, bool on)
{
	uint64_t at = 0, step;
	int err = 0;

	for (; at < length && !err; at += step) {
		step = length - at;
		do
			err = uffd_write_protect(fd, start + at, step, on);
		while (err == -ENOENT && uffd_halve_range(&step, page));
		if (err == -ENOENT) {	/* a hole can't be written to */
			step = page;
			err = 0;
		}
	}
	return err;
}

static int64_t uffd_poison_range(int fd, uint64_t start, uint64_t length,
				 bool quiet)
{
	struct kvmfault__uffdio_poison poison = {
		.range = { .start = start, .len = length },
		.mode = quiet ? KVMFAULT__POISON_MODE_DONTWAKE : 0,
	};
	int err = kvmfault__sys_ioctl(fd, KVMFAULT__UFFDIO_POISON, &poison);

	return uffd_progress(err, length, poison.updated);
}

int kvmfault__uffd_poison(int fd, uint64_t start, uint64_t length,
			  uint64_t page, bool quiet, uint64_t *done)
{
	int64_t count = 0;

	for (*done = 0; *done < length; *done += (uint64_t)count) {
		uint64_t step = length - *done;

		do
			count = uffd_poison_range(fd, start + *done, step,
						  quiet);
		while (count == -ENOENT && uffd_halve_range(&step, page));
		if (count < 0)
			return (int)count;
	}
	return 0;
}
