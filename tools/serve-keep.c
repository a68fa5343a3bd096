/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault serve: what outlives the process that serves. In: a client's
 * socket, a VM's userfaultfd, and the files of its pages' states. Out: messages
 * that carry them from the worker to the keeper, and from there to the next
 * worker. A message that was sent arrives, even if its sender is killed then.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "serve.h"

enum message_type { SOCKET, MEMORY, STATES, RESIDENT, GONE, READY, END };

/* The ranges follow a MEMORY. */
struct message {
	uint32_t type;
	uint32_t count;		/* ranges; or descriptors of states */
	uint32_t first;		/* the range of the first of these */
	int32_t pid;
	uint64_t number;
};

/* A message that has come, with its descriptors. */
struct packet {
	struct message message;
	struct serve_range range[SERVE_RANGES];
	int fd[SERVE_SENT];
	unsigned int fds;
};

/* ---- to the other process ---- */

static int send_packet(int channel, const struct message *message,
		       const struct serve_range *range, const int *fd,
		       unsigned int fds)
{
	struct iovec iov[2] = {
		{ (void *)(uintptr_t)message, sizeof(*message) },
		{ (void *)(uintptr_t)range,
		  range ? message->count * sizeof(*range) : 0 },
	};
	ssize_t n = serve_socket_send(channel, iov, 2, fd, fds);

	return n < 0 ? (int)n : 0;
}

static int send_states(int channel, const struct serve_kept *kept)
{
	unsigned int first, left = kept->count;
	int err = 0;

	for (first = 0; left && !err; first += SERVE_SENT) {
		struct message message = {
			.type = STATES, .number = kept->number, .first = first,
			.count = left < SERVE_SENT ? left : SERVE_SENT,
		};

		err = send_packet(channel, &message, NULL, kept->states + first,
				  message.count);
		left -= message.count;
	}
	return err;
}

static int send_memory(int channel, const struct serve_kept *kept)
{
	const struct message message = {
		.type = MEMORY, .number = kept->number, .count = kept->count,
	};
	int err = send_packet(channel, &message, kept->range, &kept->uffd, 1);

	return err ? err : send_states(channel, kept);
}

static int send_socket(int channel, const struct serve_kept *kept)
{
	const struct message message = {
		.type = SOCKET, .number = kept->number, .pid = kept->pid,
	};

	return send_packet(channel, &message, NULL, &kept->socket, 1);
}

static int send_word(int channel, enum message_type type, uint64_t number)
{
	const struct message message = { .type = type, .number = number };

	return send_packet(channel, &message, NULL, NULL, 0);
}

int serve_keep_all(int channel, const struct serve_kept *kept,
		   uint64_t numbers)
{
	int err = 0;

	for (; kept && !err; kept = kept->next) {
		err = send_socket(channel, kept);
		if (!err && kept->resident)
			err = send_word(channel, RESIDENT, kept->number);
		else if (!err && kept->count)
			err = send_memory(channel, kept);
	}
	return err ? err : send_word(channel, END, numbers);
}

/* ---- from the other process ---- */

static void take_descriptors(struct packet *packet, struct msghdr *header)
{
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(header);

	packet->fds = 0;
	if (!cmsg)
		return;
	packet->fds = (unsigned int)((cmsg->cmsg_len - CMSG_LEN(0)) /
				     sizeof(int));
	memcpy(packet->fd, CMSG_DATA(cmsg), packet->fds * sizeof(int));
}

/* 0; -EPIPE: the other process is gone; or -errno. */
static int receive_packet(int channel, struct packet *packet)
{
	union {
		char bytes[CMSG_SPACE(SERVE_SENT * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = {
		packet, offsetof(struct packet, range) + sizeof(packet->range),
	};
	struct msghdr header = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	ssize_t n;

	do
		n = recvmsg(channel, &header, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return n && errno != ECONNRESET ? -errno : -EPIPE;
	take_descriptors(packet, &header);
	return header.msg_flags & MSG_CTRUNC ? -EMFILE : 0;
}

static struct serve_kept **find_kept(struct serve_kept **list, uint64_t number)
{
	while (*list && (*list)->number != number)
		list = &(*list)->next;
	return list;
}

void serve_keep_close(const int *states, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		if (states[i] >= 0)
			close(states[i]);
}

static void close_memory(struct serve_kept *kept)
{
	serve_keep_close(kept->states, kept->count);
	if (kept->uffd >= 0)
		close(kept->uffd);
	kept->uffd = -1;
	kept->count = 0;
}

void serve_keep_free(struct serve_kept *kept)
{
	close_memory(kept);
	if (kept->socket >= 0)
		close(kept->socket);
	free(kept->states);
	free(kept->range);
	free(kept);
}

static void add_socket(struct serve_kept **list, struct packet *packet)
{
	struct serve_kept *kept = calloc(1, sizeof(*kept));

	if (!kept || packet->fds != 1) {
		free(kept);
		return;
	}
	kept->number = packet->message.number;
	kept->pid = packet->message.pid;
	kept->socket = packet->fd[0];
	kept->uffd = -1;
	kept->next = *list;
	*list = kept;
	packet->fds = 0;
}

static void add_memory(struct serve_kept *kept, struct packet *packet)
{
	unsigned int i, count = packet->message.count;

	kept->range = calloc(count, sizeof(*kept->range));
	kept->states = calloc(count, sizeof(*kept->states));
	if (!kept->range || !kept->states || packet->fds != 1)
		return;
	memcpy(kept->range, packet->range, count * sizeof(*kept->range));
	for (i = 0; i < count; i++)
		kept->states[i] = -1;
	kept->count = count;
	kept->uffd = packet->fd[0];
	packet->fds = 0;
}

static void add_states(struct serve_kept *kept, struct packet *packet)
{
	unsigned int i, first = packet->message.first;

	if (first > kept->count || packet->fds > kept->count - first)
		return;
	for (i = 0; i < packet->fds; i++) {
		if (kept->states[first + i] >= 0)
			close(kept->states[first + i]);
		kept->states[first + i] = packet->fd[i];
	}
	packet->fds = 0;
}

static void apply_to_kept(struct serve_kept **at, struct packet *packet)
{
	struct serve_kept *kept = *at;

	switch (packet->message.type) {
	case MEMORY:
		if (!kept->count && packet->message.count <= SERVE_RANGES)
			add_memory(kept, packet);
		break;
	case STATES:
		add_states(kept, packet);
		break;
	case RESIDENT:
		/* Only its socket is of use now: it tells when the VM goes. */
		close_memory(kept);
		kept->resident = true;
		break;
	case GONE:
		*at = kept->next;
		serve_keep_free(kept);
		break;
	}
}

/* One thread of a process takes messages. */
int serve_keep_take(int channel, struct serve_kept **list, uint64_t *numbers)
{
	static struct packet packet;
	int err = receive_packet(channel, &packet);
	uint32_t type = packet.message.type;
	struct serve_kept **at;

	if (err)
		return err;
	if (packet.message.number > *numbers)
		*numbers = packet.message.number;
	at = find_kept(list, packet.message.number);
	if (type == SOCKET)
		add_socket(list, &packet);
	else if (*at)
		apply_to_kept(at, &packet);
	while (packet.fds)
		close(packet.fd[--packet.fds]);
	return type == END ? SERVE_KEPT_ALL :
	       type == READY ? SERVE_KEPT_READY : 0;
}

/* ---- of the worker ---- */

/* Without a keeper the VMs are served on; only no worker will follow. */
static int note_sent(struct serve *serve, int err)
{
	if (err == -EPIPE || err == -ECONNRESET) {
		serve_tell_problem(serve, NULL, "warning",
			"the keeper is gone: if this process ends, no other goes on with its VMs",
			0);
		close(serve->channel);
		serve->channel = -1;
		err = 0;
	}
	return err;
}

int serve_keep_socket(struct serve *serve, uint64_t number, int socket,
		      pid_t pid)
{
	const struct serve_kept kept = {
		.number = number, .socket = socket, .pid = pid,
	};

	return serve->channel < 0 ? 0 :
		note_sent(serve, send_socket(serve->channel, &kept));
}

int serve_keep_memory(struct serve *serve, const struct serve_vm *vm, int uffd)
{
	const struct serve_kept kept = {
		.number = vm->number, .uffd = uffd, .count = vm->memories,
		.range = vm->range, .states = vm->states,
	};

	return serve->channel < 0 ? 0 :
		note_sent(serve, send_memory(serve->channel, &kept));
}

int serve_keep_states(struct serve *serve, const struct serve_vm *vm)
{
	const struct serve_kept kept = {
		.number = vm->number, .count = vm->memories,
		.states = vm->states,
	};

	return serve->channel < 0 ? 0 :
		note_sent(serve, send_states(serve->channel, &kept));
}

void serve_keep_resident(struct serve *serve, uint64_t number)
{
	if (serve->channel >= 0)
		note_sent(serve, send_word(serve->channel, RESIDENT, number));
}

void serve_keep_gone(struct serve *serve, uint64_t number)
{
	if (serve->channel >= 0)
		note_sent(serve, send_word(serve->channel, GONE, number));
}

void serve_keep_ready(struct serve *serve)
{
	if (serve->channel >= 0)
		note_sent(serve, send_word(serve->channel, READY, 0));
}
