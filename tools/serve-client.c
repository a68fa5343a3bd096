/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault serve: a connection until it is a VM. In: what a client sends, in
 * any number of pieces, with descriptors. Out: a VM, or a line that says why
 * there is none. Each descriptor that came is closed here, at the latest by the
 * deadline. A message that came in one piece stays in the socket until all that
 * it says is kept: if this process is killed before, the next one reads it.
 */

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "serve.h"

#define DEADLINE_MS 30000
#define PAUSE_MS 1000
#define PIECE 65536

struct serve_client {
	struct serve_watch watch;	/* the first member */
	struct serve *serve;
	uint64_t number;
	struct ucred peer;
	struct serve_hello hello;
	bool in_pieces;
};

static void forget_hello(struct serve_hello *hello)
{
	unsigned int i;

	for (i = 0; i < hello->fds; i++)
		close(hello->fd[i]);
	serve_firecracker_forget(hello);
	hello->fds = 0;
	hello->length = 0;
}

/* Does not close the socket, which may be a VM's by now. */
static void free_client(struct serve_client *client)
{
	serve_watch_remove(&client->watch);
	forget_hello(&client->hello);
	free(client);
}

static void refuse_client(struct serve_client *client, const char *why)
{
	struct serve *serve = client->serve;
	struct json_object *event = serve_event("refused", NULL);

	serve_add_number(event, "pid", (uint64_t)client->peer.pid);
	serve_add_text(event, "why", why);
	serve_tell(serve, event);
	serve->refused++;
	serve_keep_gone(serve, client->number);
	/* The keeper has the socket, too: to close it here ends no watch. */
	serve_watch_remove(&client->watch);
	close(client->watch.fd);
	free_client(client);
	serve->clients--;
	serve_client_place(serve);
	serve_check_drained(serve);
}

static void refuse_late(struct serve_watch *watch)
{
	refuse_client((struct serve_client *)watch,
		      "no whole message came within 30 s");
}

/* Keeps the descriptors that came, up to SERVE_FDS. */
static void keep_descriptors(struct serve_hello *hello, struct msghdr *message)
{
	struct cmsghdr *cmsg;

	for (cmsg = CMSG_FIRSTHDR(message); cmsg;
	     cmsg = CMSG_NXTHDR(message, cmsg)) {
		size_t i, count = (cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		int fd;

		if (cmsg->cmsg_level != SOL_SOCKET ||
		    cmsg->cmsg_type != SCM_RIGHTS)
			continue;
		for (i = 0; i < count; i++) {
			memcpy(&fd, CMSG_DATA(cmsg) + i * sizeof(int),
			       sizeof(fd));
			if (hello->fds < SERVE_FDS)
				hello->fd[hello->fds++] = fd;
			else
				close(fd);
		}
	}
}

/* Returns as recvmsg() does, or -errno; -E2BIG: descriptors were lost. */
static ssize_t receive_piece(struct serve_client *client, char *piece)
{
	union {
		char bytes[CMSG_SPACE(SERVE_FDS * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = piece, .iov_len = PIECE };
	struct msghdr message = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	ssize_t n = recvmsg(client->watch.fd, &message, MSG_CMSG_CLOEXEC |
			    (client->in_pieces ? 0 : MSG_PEEK));

	if (n < 0)
		return -errno;
	keep_descriptors(&client->hello, &message);
	return message.msg_flags & MSG_CTRUNC ? -E2BIG : n;
}

/* The message is kept by now: what was only looked at is taken. */
static void take_message(int socket, size_t length)
{
	char piece[PIECE];

	while (length && recv(socket, piece, length, 0) < 0 && errno == EINTR)
		;
}

/* seen: so many bytes are still in the socket. */
static void become_vm(struct serve_client *client, size_t seen)
{
	struct serve *serve = client->serve;
	struct serve_range *ranges;
	int err, count = serve_firecracker_ranges(&client->hello,
						  serve->image.length, &ranges);

	if (count < 0) {
		refuse_client(client, client->hello.why);
		return;
	}
	serve_watch_remove(&client->watch);
	err = serve_vm_new(serve, client->number, client->watch.fd,
			   &client->peer, "firecracker", client->hello.fd[0],
			   ranges, (unsigned int)count);
	if (!err) {
		take_message(client->watch.fd, seen);
		free_client(client);
		return;
	}
	free(ranges);
	refuse_client(client, err == -ENOMEM ?
		      "its process is gone, or there is no memory for it" :
		      strerror(-err));
}

static void read_client(struct serve_watch *watch)
{
	struct serve_client *client = (struct serve_client *)watch;
	char piece[PIECE];
	ssize_t n = receive_piece(client, piece);
	int whole;

	if (n == -EAGAIN || n == -EINTR)
		return;
	if (n == -E2BIG) {
		refuse_client(client,
			      "more descriptors came than one, or than this process may have open");
		return;
	}
	if (n <= 0) {
		refuse_client(client, n ? strerror((int)-n) :
			      "it went away before its message was whole");
		return;
	}
	whole = serve_firecracker_take(&client->hello, piece, (size_t)n);
	if (whole < 0) {
		refuse_client(client, client->hello.why);
	} else if (whole) {
		become_vm(client, client->in_pieces ? 0 : (size_t)n);
	} else if (!client->in_pieces) {
		/* It is still in the socket, and is read there once more. */
		forget_hello(&client->hello);
		client->in_pieces = true;
	}
}

static int new_client(struct serve *serve, uint64_t number, int fd,
		      const struct ucred *peer)
{
	struct serve_client *client = calloc(1, sizeof(*client));
	int err;

	if (!client)
		return -ENOMEM;
	client->serve = serve;
	client->number = number;
	client->watch.fd = fd;
	client->watch.ready = read_client;
	client->watch.late = refuse_late;
	client->watch.deadline = serve_now() + DEADLINE_MS;
	client->peer = *peer;
	err = serve_watch_add(serve, &client->watch, EPOLLIN);
	if (err) {
		free(client);
		return err;
	}
	serve->clients++;
	return 0;
}

void serve_client_again(struct serve *serve, struct serve_kept *kept)
{
	struct ucred peer = { 0 };
	socklen_t length = sizeof(peer);
	int err = getsockopt(kept->socket, SOL_SOCKET, SO_PEERCRED, &peer,
			     &length) < 0 ? -errno : 0;

	if (!err)
		err = new_client(serve, kept->number, kept->socket, &peer);
	if (!err)
		kept->socket = -1;
	else
		serve_keep_gone(serve, kept->number);
	serve_keep_free(kept);
}

static int accept_client(struct serve *serve, int fd, const struct ucred *peer)
{
	uint64_t number = ++serve->numbers;
	int err = serve_keep_socket(serve, number, fd, peer->pid);

	if (err)
		return err;
	err = new_client(serve, number, fd, peer);
	if (err)
		serve_keep_gone(serve, number);
	return err;
}

/* ---- how many there may be ---- */

static void wait_for_place(struct serve *serve)
{
	if (serve->full)
		return;
	serve->full = true;
	serve_watch_events(&serve->listener, 0);
}

void serve_client_limit(struct serve *serve)
{
	if (serve->clients >= serve->vms_max)
		wait_for_place(serve);
}

void serve_client_place(struct serve *serve)
{
	if (!serve->full || serve->draining ||
	    serve->clients >= serve->vms_max)
		return;
	serve->full = false;
	serve->listener.deadline = 0;
	serve_watch_events(&serve->listener, EPOLLIN);
}

static void look_again(struct serve_watch *listener)
{
	serve_client_place(listener->serve);
}

/* Descriptors or memory may come back at any time: it is tried again soon. */
static void pause_listener(struct serve *serve, int err)
{
	if (!serve->full)
		serve_tell_problem(serve, NULL, "problem",
				   "cannot accept a client: it waits", err);
	wait_for_place(serve);
	serve->listener.late = look_again;
	serve->listener.deadline = serve_now() + PAUSE_MS;
}

static void refuse_stranger(struct serve *serve, const struct ucred *peer)
{
	struct json_object *event = serve_event("refused", NULL);

	serve_add_number(event, "pid", (uint64_t)peer->pid);
	serve_add_number(event, "uid", peer->uid);
	serve_add_text(event, "why",
		       "it is another user's: run serve as the user of the VMM");
	serve_tell(serve, event);
	serve->refused++;
}

void serve_client_ready(struct serve_watch *listener)
{
	struct serve *serve = listener->serve;
	struct ucred peer = { 0 };
	int err, fd = serve_socket_accept(listener->fd, &peer);

	if (fd == -EPERM) {
		refuse_stranger(serve, &peer);
		return;
	}
	if (fd == -EAGAIN || fd == -EINTR || fd == -ECONNABORTED)
		return;
	err = fd < 0 ? fd : accept_client(serve, fd, &peer);
	if (err) {
		pause_listener(serve, err);
		if (fd >= 0)
			close(fd);
		return;
	}
	serve_client_limit(serve);
}
