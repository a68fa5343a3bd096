/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Entrance uffd, of a descriptor that tells of more than faults. In: whoever reads it,
 * installs there, or takes pages away. Out: none of them waits for itself, and nothing
 * comes back that is gone. Once an event is read its pages may go at any moment, and
 * what is installed after that would stay: so nobody installs while somebody reads.
 * And who takes pages away sleeps until that is read: if the library does so, a thread
 * reads that does nothing else.
 */

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "abi.h"
#include "internal.h"

#define MESSAGES 16
#define TRIES 8			/* to begin an install */
#define WAIT 1000000		/* ns, for a read, which takes less */
#define LOOK 10			/* ms, after which it looks whether it is wanted */

struct kvmfault__reader {
	struct kvmfault_uffd *uffd;
	struct kvmfault__seat *seat;
	int epoll;
	_Atomic uint32_t reading;	/* threads of anybody's, */
	_Atomic uint32_t waiting;	/* and those that would install */
	_Atomic uint32_t wanted;	/* takes of pages: while there are any
					 * it reads */
	atomic_bool stopping;
	pthread_t thread;
};

/* ---- is one needed? ---- */

#define TOLD (UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | \
	      UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP)

/* The features that its handshake chose, in the third line of this: "API:", the
 * version, the features, and what there is beside. All, if that can't be read. */
static uint64_t features_of(int fd)
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

/* ---- who reads, and who installs ---- */

static bool installs(struct kvmfault__seat *seat, void *uffd)
{
	return atomic_load(&seat->installing) == uffd;
}

void kvmfault__reading_begin(struct kvmfault_uffd *uffd)
{
	atomic_fetch_add(&uffd->reader->reading, 1);
	kvmfault__drain(uffd->vm, installs, uffd);
}

void kvmfault__reading_end(struct kvmfault_uffd *uffd)
{
	struct kvmfault__reader *reader = uffd->reader;

	if (atomic_fetch_sub(&reader->reading, 1) == 1 &&
	    atomic_load(&reader->waiting))
		kvmfault__sys_futex_wake(&reader->reading);
}

/* False: a signal came first. */
static bool wait_for_readers(struct kvmfault__reader *reader)
{
	uint32_t reading;
	int err = 0;

	atomic_fetch_add(&reader->waiting, 1);
	reading = atomic_load(&reader->reading);
	if (reading)
		err = kvmfault__sys_futex_wait(&reader->reading, reading, WAIT);
	atomic_fetch_sub(&reader->waiting, 1);
	return err != -EINTR;
}

/* What an event has told is gone is zero from then on, also where it is being
 * fetched. */
static uint64_t length_not_gone(const struct kvmfault_memory *memory,
				uint64_t offset, uint64_t length)
{
	uint64_t page = offset >> memory->page_shift;
	uint64_t end = (offset + length) >> memory->page_shift;

	while (page < end && kvmfault__page_state(memory, page) !=
			     KVMFAULT__FETCHING_REMOVED)
		page++;
	return (page << memory->page_shift) - offset;
}

uint64_t kvmfault__install_begin(struct kvmfault__seat *seat,
				 const struct kvmfault_memory *memory,
				 uint64_t offset, uint64_t length)
{
	struct kvmfault__reader *reader = memory->uffd->reader;
	unsigned int i;

	for (i = 0; i < TRIES; i++) {
		/* Who reads says so, then looks for who installs; one of us sees
		 * the other. */
		atomic_store(&seat->installing, memory->uffd);
		if (!atomic_load(&reader->reading))
			return length_not_gone(memory, offset, length);
		kvmfault__install_end(seat);
		if (!wait_for_readers(reader))
			break;
	}
	return 0;
}

void kvmfault__install_end(struct kvmfault__seat *seat)
{
	kvmfault__unhold(seat, &seat->installing);
}

/* ---- the thread ---- */

/* Nobody is left asleep: without a service the next one wakes all, and they fault
 * again. */
static void hand_over(struct kvmfault__seat *seat,
		      struct kvmfault__parked *item)
{
	struct kvmfault_vm *vm = seat->vm;
	struct kvmfault_service *service;

	service = kvmfault__hold(&seat->uffd, &vm->service);
	if (!service) {
		atomic_store(&vm->unserved, true);
		service = kvmfault__hold(&seat->uffd, &vm->service);
	}
	if (service)
		kvmfault__serve_next(service, seat, item);
	kvmfault__unhold(seat, &seat->uffd);
}

static void read_messages(struct kvmfault__reader *reader)
{
	struct kvmfault_uffd *uffd = reader->uffd;
	struct uffd_msg msg[MESSAGES];
	struct kvmfault__parked item;
	ssize_t n, i;

	n = kvmfault__messages(reader->seat, uffd, msg, MESSAGES);
	for (i = 0; i < n; i++)
		if (kvmfault__message_in(reader->seat, uffd->space, &msg[i],
					 &item))
			hand_over(reader->seat, &item);
}

static void *run(void *data)
{
	struct kvmfault__reader *reader = data;
	struct epoll_event ready;

	kvmfault__enter(&reader->seat->inside, reader->seat, NULL);
	while (!atomic_load(&reader->stopping))
		if (!atomic_load(&reader->wanted))
			kvmfault__sys_futex_wait(&reader->wanted, 0,
						 1000000000);
		else if (kvmfault__sys_epoll_wait(reader->epoll, &ready, 1,
						  LOOK) == 1)
			read_messages(reader);
	kvmfault__exit(&reader->seat->inside);
	return NULL;
}

static void want(struct kvmfault__reader *reader)
{
	if (!atomic_fetch_add(&reader->wanted, 1))
		kvmfault__sys_futex_wake(&reader->wanted);
}

int kvmfault__take_away(const struct kvmfault_uffd *uffd, void *host,
			uint64_t length, int advice)
{
	struct kvmfault__reader *reader = uffd ? uffd->reader : NULL;
	int err;

	/* The log callback: maybe nobody but this thread reads. */
	if (reader && kvmfault__reader_is_self(uffd))
		return -EDEADLK;
	if (reader)
		want(reader);
	err = kvmfault__sys_madvise(host, length, advice);
	if (reader)
		atomic_fetch_sub(&reader->wanted, 1);
	return err;
}

/* ---- its beginning and its end ---- */

static void delete(struct kvmfault__reader *reader)
{
	if (reader->epoll >= 0)
		kvmfault__sys_close(reader->epoll);
	if (reader->seat)
		kvmfault__seat_give(reader->seat);
	kvmfault__sys_free(reader);
}

static int listen_to(struct kvmfault__reader *reader, int fd)
{
	struct epoll_event event = { .events = EPOLLIN };

	reader->epoll = kvmfault__sys_epoll_create();
	return reader->epoll < 0 ? reader->epoll :
		kvmfault__sys_epoll_ctl(reader->epoll, EPOLL_CTL_ADD, fd,
					&event);
}

int kvmfault__reader_new(struct kvmfault_uffd *uffd)
{
	struct kvmfault__reader *reader;
	int err;

	if (!(features_of(uffd->fd) & TOLD))
		return 0;
	reader = kvmfault__sys_alloc(sizeof(*reader), 0);
	if (!reader)
		return -ENOMEM;
	reader->uffd = uffd;
	reader->epoll = -1;
	reader->seat = kvmfault__seat_take(uffd->vm);
	err = reader->seat ? listen_to(reader, uffd->fd) : -ENOMEM;
	if (!err)
		err = kvmfault__sys_thread(&reader->thread, run, reader,
					   "kvmfault-reader");
	if (err)
		delete(reader);
	else
		uffd->reader = reader;
	return err;
}

bool kvmfault__reader_is_self(const struct kvmfault_uffd *uffd)
{
	return uffd->reader &&
		pthread_equal(uffd->reader->thread, pthread_self());
}

void kvmfault__reader_free(struct kvmfault_uffd *uffd)
{
	struct kvmfault__reader *reader = uffd->reader;

	if (!reader)
		return;
	atomic_store(&reader->stopping, true);
	want(reader);
	kvmfault__sys_join(reader->thread);
	delete(reader);
}
