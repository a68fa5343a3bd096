/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault serve: its sockets, made here or passed by a service manager. In: a
 * path of the command line, the manager's environment. Out: descriptors that do
 * not block. A client's user has to be root, or the server's own.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "serve.h"
#include "tool.h"

#define BACKLOG 128
#define PASSED 3	/* the first descriptor that a manager passes */

static int make_address(const char *path, struct sockaddr_un *address)
{
	size_t length = strlen(path);

	if (!length || length >= sizeof(address->sun_path))
		return -ENAMETOOLONG;
	*address = (struct sockaddr_un){ .sun_family = AF_UNIX };
	memcpy(address->sun_path, path, length);
	return 0;
}

static int make_socket(int type)
{
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	return fd < 0 ? -errno : fd;
}

static int bind_private(int fd, const struct sockaddr_un *address)
{
	mode_t mask = umask(0177);
	int err = bind(fd, (const struct sockaddr *)address,
		       sizeof(*address)) < 0 ? -errno : 0;

	umask(mask);
	return err;
}

/* A socket whose server is gone. -EADDRINUSE: it is something else. */
static int remove_old(const struct sockaddr_un *address)
{
	int fd, err = 0;
	struct stat st;

	if (lstat(address->sun_path, &st) < 0)
		return -errno;
	if (!S_ISSOCK(st.st_mode))
		return -EADDRINUSE;
	fd = make_socket(SOCK_STREAM);
	if (fd < 0)
		return fd;
	if (!connect(fd, (const struct sockaddr *)address, sizeof(*address)) ||
	    errno != ECONNREFUSED)
		err = -EADDRINUSE;
	close(fd);
	if (!err && unlink(address->sun_path) < 0)
		err = -errno;
	return err;
}

static int listen_at(int fd, const char *path)
{
	struct sockaddr_un address;
	int err = make_address(path, &address);

	if (!err)
		err = bind_private(fd, &address);
	if (err == -EADDRINUSE) {
		err = remove_old(&address);
		if (!err)
			err = bind_private(fd, &address);
	}
	if (!err && listen(fd, BACKLOG) < 0)
		err = -errno;
	return err;
}

int serve_socket_listen(const char *path)
{
	int fd = make_socket(SOCK_STREAM);
	int err = fd < 0 ? fd : listen_at(fd, path);

	if (!err)
		return fd;
	complain("cannot listen at %s: %s", path, err == -EADDRINUSE ?
		 "a server answers there, or it is no socket: stop that server, or take another path" :
		 strerror(-err));
	if (fd >= 0)
		close(fd);
	return err;
}

static bool is_listener(int fd)
{
	int domain = 0, type = 0, listens = 0;
	socklen_t length = sizeof(int);

	return !getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) &&
	       !getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) &&
	       !getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) &&
	       domain == AF_UNIX && type == SOCK_STREAM && listens;
}

int serve_socket_activated(void)
{
	const char *pid = getenv("LISTEN_PID"), *fds = getenv("LISTEN_FDS");

	if (!pid || !fds || strtol(pid, NULL, 10) != getpid())
		return -ENOENT;
	if (strcmp(fds, "1") || !is_listener(PASSED)) {
		complain("the service manager passed %s descriptors, and serve takes one, a Unix stream socket that listens: set ListenStream= to one path, and Accept=no",
			 fds);
		return -EINVAL;
	}
	fcntl(PASSED, F_SETFD, FD_CLOEXEC);
	fcntl(PASSED, F_SETFL, fcntl(PASSED, F_GETFL) | O_NONBLOCK);
	return PASSED;
}

void serve_socket_notify(const char *state)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address;
	socklen_t length;
	int fd;

	if (!path || make_address(path, &address))
		return;
	length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) +
			     strlen(path));
	if (*path == '@')	/* of the abstract namespace */
		address.sun_path[0] = 0;
	fd = make_socket(SOCK_DGRAM);
	if (fd < 0 || sendto(fd, state, strlen(state), MSG_NOSIGNAL,
			     (const struct sockaddr *)&address, length) < 0)
		complain_errno(errno, "tell the service manager (NOTIFY_SOCKET)");
	if (fd >= 0)
		close(fd);
}

ssize_t serve_socket_send(int socket, struct iovec *iov, size_t parts,
			  const int *fd, unsigned int fds)
{
	union {
		char bytes[CMSG_SPACE(SERVE_SENT * sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct msghdr message = {
		.msg_iov = iov,
		.msg_iovlen = parts,
		.msg_control = fds ? control.bytes : NULL,
		.msg_controllen = fds ? CMSG_SPACE(fds * sizeof(int)) : 0,
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&message);
	ssize_t n;

	if (cmsg) {
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(fds * sizeof(int));
		memcpy(CMSG_DATA(cmsg), fd, fds * sizeof(int));
	}
	do
		n = sendmsg(socket, &message, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

int serve_socket_accept(int listener, struct ucred *peer)
{
	socklen_t length = sizeof(*peer);
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0)
		return -errno;
	if (!getsockopt(fd, SOL_SOCKET, SO_PEERCRED, peer, &length) &&
	    (!peer->uid || peer->uid == geteuid()))
		return fd;
	close(fd);
	return -EPERM;
}
