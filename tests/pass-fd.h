/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A descriptor goes from one process to another, over a socket, with bytes or a
 * number: a device's userfaultfd, with the address where the device has the
 * memory.
 */

#ifndef KVMFAULT_TESTS_PASS_FD_H
#define KVMFAULT_TESTS_PASS_FD_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

union passed {
	struct cmsghdr align;
	char bytes[CMSG_SPACE(sizeof(int))];
};

static inline bool pass_fd_with(int channel, int fd, void *bytes,
				size_t length)
{
	union passed control = { 0 };
	struct iovec iov = { .iov_base = bytes, .iov_len = length };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	return sendmsg(channel, &msg, MSG_NOSIGNAL) == (ssize_t)length;
}

static inline bool pass_fd(int channel, int fd, uint64_t number)
{
	return pass_fd_with(channel, fd, &number, sizeof(number));
}

/* Returns the descriptor, or -1. */
static inline int take_fd(int channel, uint64_t *number)
{
	union passed control;
	struct iovec iov = { .iov_base = number, .iov_len = sizeof(*number) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	int fd;

	if (recvmsg(channel, &msg, 0) != sizeof(*number) ||
	    !CMSG_FIRSTHDR(&msg))
		return -1;
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fd));
	return fd;
}

#endif
