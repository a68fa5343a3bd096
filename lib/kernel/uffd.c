/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the flow: userfaultfds, this process's and others'. In: a range and
 * what to do with it. Out: what the kernel did, with the many ways in which it
 * says so made one. A descriptor that holds registered ranges stays open: to
 * close it would make zero pages of all that is absent.
 */

#include <fcntl.h>

#include "../os/abi.h"
#include "kernel.h"

static int open_device(void)
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

/* Without UFFD_USER_MODE_ONLY: what KVM does are kernel accesses. */
int kvmfault__uffd_open(unsigned int how)
{
	int fd = -ENOSYS;

	if (how & KVMFAULT__UFFD_DEVICE)
		fd = open_device();
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

int kvmfault__uffd_unregister(int fd, uint64_t start, uint64_t length)
{
	struct uffdio_range range = { .start = start, .len = length };

	return kvmfault__sys_ioctl(fd, UFFDIO_UNREGISTER, &range);
}

/*
 * O_NONBLOCK is a flag of what other processes have, too: one could take it away,
 * and the message that was waiting. Where the kernel can't be told by each read not
 * to sleep (before 6.10) there are some instructions left in which that is so.
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

/* Some errors leave the count of bytes as it was, which is 0, and others write
 * -errno: only more than 0 is progress. Returns it, or why there is none. */
static int64_t progress(int err, uint64_t length, int64_t count)
{
	if (!err)
		return (int64_t)length;
	return count > 0 ? count : err;
}

static int64_t copy(int fd, uint64_t to, const void *from, uint64_t length,
		    bool protect)
{
	struct uffdio_copy copy = {
		.dst = to,
		.src = (uintptr_t)from,
		.len = length,
		.mode = protect ? UFFDIO_COPY_MODE_WP : 0,
	};
	int err = kvmfault__sys_ioctl(fd, UFFDIO_COPY, &copy);

	return progress(err, length, copy.copy);
}

static int64_t zero(int fd, uint64_t to, uint64_t length)
{
	struct uffdio_zeropage zero = {
		.range = { .start = to, .len = length },
	};
	int err = kvmfault__sys_ioctl(fd, UFFDIO_ZEROPAGE, &zero);

	return progress(err, length, zero.zeropage);
}

/* What is in the file. */
static int64_t map(int fd, uint64_t to, uint64_t length, bool protect)
{
	struct uffdio_continue cont = {
		.range = { .start = to, .len = length },
		.mode = protect ? KVMFAULT__UFFDIO_CONTINUE_MODE_WP : 0,
	};
	int err = kvmfault__sys_ioctl(fd, UFFDIO_CONTINUE, &cont);

	return progress(err, length, cont.mapped);
}

/* ENOENT is what a range says that crosses a border of two VMAs, as where nothing
 * is mapped: then half of it is asked for. False: it is one page. */
static bool halve(uint64_t *length, uint64_t page)
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
		done = copy(fd, to, from, length, protect);
	else if (how == KVMFAULT__ZERO)
		done = zero(fd, to, length);
	else
		done = map(fd, to, length, protect);
	if (done != -ENOENT || !halve(&length, page))
		return done;
	return kvmfault__uffd_install(fd, how, to, from, length, page, protect);
}

int kvmfault__uffd_wake(int fd, uint64_t start, uint64_t length)
{
	struct uffdio_range range = { .start = start, .len = length };

	return kvmfault__sys_ioctl(fd, UFFDIO_WAKE, &range);
}

static int protect(int fd, uint64_t start, uint64_t length, bool on)
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
			err = protect(fd, start + at, step, on);
		while (err == -ENOENT && halve(&step, page));
		if (err == -ENOENT) {	/* nobody writes to a hole */
			step = page;
			err = 0;
		}
	}
	return err;
}

static int64_t poison(int fd, uint64_t start, uint64_t length, bool quiet)
{
	struct kvmfault__uffdio_poison poison = {
		.range = { .start = start, .len = length },
		.mode = quiet ? KVMFAULT__POISON_MODE_DONTWAKE : 0,
	};
	int err = kvmfault__sys_ioctl(fd, KVMFAULT__UFFDIO_POISON, &poison);

	return progress(err, length, poison.updated);
}

int kvmfault__uffd_poison(int fd, uint64_t start, uint64_t length,
			  uint64_t page, bool quiet, uint64_t *done)
{
	int64_t count = 0;

	for (*done = 0; *done < length; *done += (uint64_t)count) {
		uint64_t step = length - *done;

		do
			count = poison(fd, start + *done, step, quiet);
		while (count == -ENOENT && halve(&step, page));
		if (count < 0)
			return (int)count;
	}
	return 0;
}
