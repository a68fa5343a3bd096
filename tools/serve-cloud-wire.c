/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Connections to Cloud Hypervisor. In: the path of a socket, bytes. Out: whole
 * messages, each within its deadline, or why there are none. The listener is
 * root's, or of the user that runs this.
 */

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "serve-cloud-hypervisor.h"
#include "tool.h"

#define CONNECT_MS 10000
#define MESSAGE_MS 10000		/* for the rest of a message */

bool cloud_fail_to_send(int err)
{
	complain("cannot send to Cloud Hypervisor: %s",
		 err == EAGAIN ? "it does not receive" :
		 err == EPIPE ? "it has hung up, and its log says why" :
		 strerror(err));
	return false;
}

bool cloud_send(int fd, const void *bytes, size_t length)
{
	const char *at = bytes;

	while (length) {
		ssize_t n = send(fd, at, length, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return cloud_fail_to_send(errno);
		at += n;
		length -= (size_t)n;
	}
	return true;
}

/* The socket has a deadline for each read. Only where a message may begin, its
 * end may be the peer's. */
enum cloud_outcome cloud_receive(int fd, void *bytes, size_t length,
				 bool begins)
{
	size_t done = 0;

	while (done < length) {
		ssize_t n = recv(fd, (char *)bytes + done, length - done, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if ((!n || (n < 0 && errno == ECONNRESET)) && begins && !done)
			return CLOUD_ENDED;
		if (n <= 0) {
			complain("Cloud Hypervisor's message breaks off: %s",
				 !n ? "it has hung up" : errno == EAGAIN ?
				 "the rest does not come" : strerror(errno));
			return CLOUD_FAILED;
		}
		done += (size_t)n;
	}
	return CLOUD_WENT_ON;
}

/* Its user has to be root, or the one that runs this. */
static bool check_cloud_peer(int fd)
{
	struct ucred peer;
	socklen_t size = sizeof(peer);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size)) {
		complain_errno(errno, "ask who listens");
		return false;
	}
	if (!peer.uid || peer.uid == geteuid())
		return true;
	complain("the socket is user %u's: Cloud Hypervisor has to run as root or as user %u",
		 peer.uid, geteuid());
	return false;
}

/* Cloud Hypervisor may only just have been told to listen. */
static int connect_cloud_socket(const char *path)
{
	const struct timeval most = { .tv_sec = MESSAGE_MS / 1000 };
	const struct timespec pause = { .tv_nsec = 20 * 1000 * 1000 };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int tries = CONNECT_MS / 20, err;

	if (fd < 0)
		return -errno;
	if (strlen(path) >= sizeof(address.sun_path)) {
		close(fd);
		return -ENAMETOOLONG;
	}
	strcpy(address.sun_path, path);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &most, sizeof(most));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &most, sizeof(most));
	while (connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		err = -errno;
		if ((err != -ENOENT && err != -ECONNREFUSED) || !tries--) {
			close(fd);
			return err;
		}
		nanosleep(&pause, NULL);
	}
	return fd;
}

int cloud_connect(const char *path)
{
	int fd = connect_cloud_socket(path);

	if (fd < 0) {
		complain("cannot connect to %s: %s: tell Cloud Hypervisor to `receive-migration receiver_url=unix:%s,memory_mode=postcopy`",
			 path, strerror(-fd), path);
		return -1;
	}
	if (check_cloud_peer(fd))
		return fd;
	close(fd);
	return -1;
}
