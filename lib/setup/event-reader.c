/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Set-up: the thread that reads a userfaultfd with events while the library
 * takes pages away there (see events.c). In: a descriptor that the VMM has
 * made. Out: the events are read, and the faults are handed to the service.
 * Only a descriptor with a feature that reports events has such a thread. No
 * thread of this process waits for an event of another process's descriptor: so
 * it is enough there that who reads and who installs know of each other.
 */

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include "../os/abi.h"
#include "setup.h"

#define MESSAGES 16
#define LOOK 10			/* ms, until it looks whether it is wanted */

#define TOLD (UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | \
	      UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP)

/* The third line of fdinfo is "API:", the version, the features that the
 * handshake chose, and more. If it can't be read, every event counts as
 * chosen. */
static uint64_t reader_read_features(int fd)
{
	unsigned long long features;
	char name[40], text[512], *line;
	int info, found = 0;
	ssize_t n;

	snprintf(name, sizeof(name), "/proc/self/fdinfo/%d", fd);
	info = kvmfault__sys_open(name, 0);
	if (info < 0)
		return TOLD;
	n = kvmfault__sys_pread(info, text, sizeof(text) - 1, 0);
	kvmfault__sys_close(info);
	text[n > 0 ? n : 0] = '\0';
	line = strstr(text, "API:");
	if (line)
		found = sscanf(line, "API: %*x:%llx:", &features);
	return found == 1 ? features : TOLD;
}

/* If there is no service, the next one that starts sees vm->unserved and wakes
 * all sleepers, which fault again. A service that starts in between is found
 * here. */
static void reader_hand_over(struct kvmfault__seat *seat,
			     struct kvmfault__message *item)
{
	struct kvmfault_vm *vm = seat->vm;
	struct kvmfault__deferred *deferred;

	deferred = kvmfault__hold(seat, KVMFAULT__HAZARD_DEFERRED,
				  &vm->deferred);
	if (!deferred) {
		atomic_store(&vm->unserved, true);
		deferred = kvmfault__hold(seat, KVMFAULT__HAZARD_DEFERRED,
					  &vm->deferred);
	}
	if (deferred)
		kvmfault__defer_to_service(deferred, seat, item);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_DEFERRED);
}

static void reader_read_messages(struct kvmfault__reader *reader)
{
	struct kvmfault_uffd *uffd = reader->uffd;
	struct uffd_msg msg[MESSAGES];
	struct kvmfault__message item;
	ssize_t n, i;

	n = kvmfault__messages_read(reader->seat, uffd, msg, MESSAGES);
	for (i = 0; i < n; i++)
		if (kvmfault__message_decode(reader->seat, uffd->space, &msg[i],
					     &item))
			reader_hand_over(reader->seat, &item);
}

static void *reader_run(void *data)
{
	struct kvmfault__reader *reader = data;
	struct epoll_event ready;

	kvmfault__enter(&reader->seat->inside, reader->seat, NULL);
	while (!atomic_load(&reader->stopping))
		if (!atomic_load(&reader->wanted))
			kvmfault__sys_futex_wait(&reader->wanted, 0,
						 KVMFAULT__SECOND);
		else if (kvmfault__sys_epoll_wait(reader->epoll, &ready, 1,
						  LOOK) == 1)
			reader_read_messages(reader);
	kvmfault__exit(&reader->seat->inside);
	return NULL;
}

static void reader_delete(struct kvmfault__reader *reader)
{
	if (reader->epoll >= 0)
		kvmfault__sys_close(reader->epoll);
	if (reader->seat)
		kvmfault__seat_give(reader->seat);
	kvmfault__sys_free(reader);
}

static int reader_listen(struct kvmfault__reader *reader, int fd)
{
	struct epoll_event event = { .events = EPOLLIN };

	reader->epoll = kvmfault__sys_epoll_create();
	return reader->epoll < 0 ? reader->epoll :
		kvmfault__sys_epoll_ctl(reader->epoll, EPOLL_CTL_ADD, fd,
					&event);
}

static int reader_start(struct kvmfault__reader *reader)
{
	struct kvmfault_uffd *uffd = reader->uffd;
	int err;

	reader->seat = kvmfault__seat_take(uffd->vm);
	err = reader->seat ? reader_listen(reader, uffd->fd) : -ENOMEM;
	if (!err)
		err = kvmfault__sys_thread(&reader->thread, reader_run, reader,
					   "kvmfault-reader");
	return err;
}

int kvmfault__reader_new(struct kvmfault_uffd *uffd)
{
	struct kvmfault__reader *reader;
	int err;

	if (!(reader_read_features(uffd->fd) & TOLD))
		return 0;
	reader = kvmfault__sys_alloc(sizeof(*reader), 0);
	if (!reader)
		return -ENOMEM;
	reader->uffd = uffd;
	reader->epoll = -1;
	err = uffd->space ? 0 : reader_start(reader);
	if (err)
		reader_delete(reader);
	else
		uffd->reader = reader;
	return err;
}

void kvmfault__reader_free(struct kvmfault_uffd *uffd)
{
	struct kvmfault__reader *reader = uffd->reader;

	if (!reader)
		return;
	if (reader->seat) {
		atomic_store(&reader->stopping, true);
		kvmfault__reader_want(reader);
		kvmfault__sys_join(reader->thread);
	}
	reader_delete(reader);
}
