/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Userfaultfds that tell of events, too. In: a thread that reads such a
 * descriptor, installs pages there, or takes pages away. Out: no thread waits
 * for itself, and no page comes back that is gone. Once an event is read, the
 * kernel may drop its pages at any moment, and a page that is installed after
 * that would stay. So no thread installs while another one reads. And a thread
 * that takes pages away sleeps until its event is read: the reader's thread
 * reads for as long. A descriptor of another process has a reader without a
 * thread: nobody here sleeps on its events.
 */

#include "page.h"

#define TRIES 8			/* to begin an install */

static bool event_seat_is_installing(struct kvmfault__seat *seat, void *uffd)
{
	return kvmfault__held(seat, KVMFAULT__HAZARD_INSTALLING) == uffd;
}

void kvmfault__reading_begin(struct kvmfault_uffd *uffd)
{
	atomic_fetch_add(&uffd->reader->reading, 1);
	kvmfault__drain(uffd->vm, event_seat_is_installing, uffd);
}

void kvmfault__reading_end(struct kvmfault_uffd *uffd)
{
	struct kvmfault__reader *reader = uffd->reader;

	if (atomic_fetch_sub(&reader->reading, 1) == 1 &&
	    atomic_load(&reader->waiting))
		kvmfault__sys_futex_wake(&reader->reading);
}

/* Returns false if a signal came first. */
static bool event_wait_for_readers(struct kvmfault__reader *reader)
{
	uint32_t reading;
	int err = 0;

	atomic_fetch_add(&reader->waiting, 1);
	reading = atomic_load(&reader->reading);
	if (reading)
		err = kvmfault__sys_futex_wait(&reader->reading, reading,
					       KVMFAULT__MS);
	atomic_fetch_sub(&reader->waiting, 1);
	return err != -EINTR;
}

/* Limit the length to pages of which no event has come. A page that an event
 * has taken reads zero from then on, even if a fetch of it is in flight. */
static uint64_t event_limit_length(const struct kvmfault_memory *memory,
				   uint64_t offset, uint64_t length)
{
	uint64_t page = offset >> memory->page_shift;
	uint64_t end = (offset + length) >> memory->page_shift;

	while (page < end && kvmfault__page_state(memory, page) !=
			     KVMFAULT__FETCHING_DISCARDED)
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
		/* A reader is counted, then drains installers. We set the
		 * hazard, then look at the count: one of us sees the other. */
		atomic_store(&seat->hazard[KVMFAULT__HAZARD_INSTALLING],
			     memory->uffd);
		if (!atomic_load(&reader->reading))
			return event_limit_length(memory, offset, length);
		kvmfault__install_end(seat);
		if (!event_wait_for_readers(reader) ||
		    kvmfault__exit_wanted(seat))
			break;
	}
	return 0;
}

void kvmfault__install_end(struct kvmfault__seat *seat)
{
	kvmfault__unhold(seat, KVMFAULT__HAZARD_INSTALLING);
}

bool kvmfault__reader_is_self(const struct kvmfault_uffd *uffd)
{
	return uffd->reader && uffd->reader->seat &&
		pthread_equal(uffd->reader->thread, pthread_self());
}

void kvmfault__reader_want(struct kvmfault__reader *reader)
{
	if (!atomic_fetch_add(&reader->wanted, 1))
		kvmfault__sys_futex_wake(&reader->wanted);
}

int kvmfault__take_away(const struct kvmfault_uffd *uffd, void *host,
			uint64_t length, int advice)
{
	struct kvmfault__reader *reader = uffd ? uffd->reader : NULL;
	int err;

	/* The log callback runs on the reader's thread, and maybe no other
	 * thread reads: madvise() would wait for this one. */
	if (reader && kvmfault__reader_is_self(uffd))
		return -EDEADLK;
	if (reader)
		kvmfault__reader_want(reader);
	err = kvmfault__sys_madvise(host, length, advice);
	if (reader)
		atomic_fetch_sub(&reader->wanted, 1);
	return err;
}
