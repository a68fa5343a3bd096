/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * As Cloud Hypervisor's thread "uffd-handler". In: slots that are mapped, and
 * the connection. One request at a time: the page of a fault if there is one,
 * else the next one that was never asked for, in the order of the guest's
 * addresses. Out: all pages mapped, and the userfaultfd and the connection
 * closed.
 */

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cloud-hypervisor.h"

struct range {
	uint64_t gpa, length;
};

static int open_uffd(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int fd = device < 0 ? -1 : ioctl(device, USERFAULTFD_IOC_NEW,
					 O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
		err(1, "userfaultfd");
	close(device);
	return fd;
}

void register_slots(struct client *client)
{
	uint64_t features = UFFD_FEATURE_MISSING_SHMEM |
			    UFFD_FEATURE_MISSING_HUGETLBFS;
	unsigned int i;

	if (!client->wakes)
		features |= UFFD_FEATURE_MINOR_SHMEM |
			    UFFD_FEATURE_MINOR_HUGETLBFS;
	client->uffd = open_uffd(features);
	for (i = 0; i < client->slots; i++) {
		struct uffdio_register r = {
			.range.start = (uintptr_t)client->slot[i].host,
			.range.len = client->slot[i].size,
			.mode = UFFDIO_REGISTER_MODE_MISSING |
				(client->wakes ? 0 :
				 UFFDIO_REGISTER_MODE_MINOR),
		};

		if (ioctl(client->uffd, UFFDIO_REGISTER, &r) < 0)
			err(1, "slot %u is not registered",
			    client->slot[i].number);
	}
}

/* No such request should be sent. */
static void ask_wrongly(struct client *client)
{
	const struct slot *last = &client->slot[client->slots - 1];
	struct request request = { COMMAND_PAGE_FAULT, { 0 },
				   sizeof(struct range) };
	struct range range = { last->gpa, last->page_size };
	struct response response;

	if (client->wrong == WRONG_LENGTH)
		request.length = 8;
	if (client->wrong == WRONG_COMMAND)
		request.command = 4711;
	if (client->wrong == WRONG_RANGE)
		range.gpa = last->gpa + last->size;
	if (client->wrong == WRONG_END)
		range.length = last->size + last->page_size;
	if (client->wrong == WRONG_WRAP)
		range.length = UINT64_MAX - range.gpa + 1 + last->page_size;
	if (client->wrong == WRONG_ODD)
		range.gpa += 100;
	if (client->wrong == WRONG_EMPTY)
		range.length = 0;
	send_exactly(client->faults, &request, sizeof(request));
	send_exactly(client->faults, &range, sizeof(range));
	receive_exactly(client->faults, &response, sizeof(response));
	if (response.status != 2)
		errx(1, "status %u, not 2", response.status);
	client->refused = true;
}

static void send_abandon(struct client *client)
{
	struct request request = { COMMAND_ABANDON, { 0 }, 0 };
	struct response response;

	send_exactly(client->faults, &request, sizeof(request));
	receive_exactly(client->faults, &response, sizeof(response));
	if (response.status != 1 || response.length)
		errx(1, "status %u to Abandon", response.status);
	puts("abandoned");
	exit(0);
}

/* Once, after so many answers. */
static void go_wrong(struct client *client)
{
	struct request request = { COMMAND_PAGE_FAULT, { 0 },
				   sizeof(struct range) };

	if (client->wrong == WRONG_DIE)
		_exit(0);
	if (client->wrong == WRONG_HALF) {
		send_exactly(client->faults, &request, sizeof(request));
		_exit(0);
	}
	if (client->wrong == WRONG_ABANDON)
		send_abandon(client);
	ask_wrongly(client);
}

static bool is_time_for_wrong(const struct client *client)
{
	return client->wrong != WRONG_NOTHING &&
	       client->demanded + client->prefaulted == client->wrong_after;
}

/* False: it was refused, or the server is gone. */
static bool request_page(struct client *client, uint64_t gpa, uint64_t length)
{
	const struct request request = { COMMAND_PAGE_FAULT, { 0 },
					 sizeof(struct range) };
	const struct range range = { gpa, length };
	struct response response;
	int fd = client->faults;

	if (is_time_for_wrong(client))
		go_wrong(client);
	if (client->refused)
		return false;
	if (!send_or_end(fd, &request, sizeof(request)) ||
	    !send_or_end(fd, &range, sizeof(range)) ||
	    !receive_or_end(fd, &response, sizeof(response)) ||
	    response.status == 2)
		client->refused = true;
	else if (response.status != 1 || response.length)
		errx(1, "status %u and %llu bytes for the page at %#llx",
		     response.status, (unsigned long long)response.length,
		     (unsigned long long)gpa);
	return !client->refused;
}

static void wake_page(struct client *client, uint64_t address, uint64_t length)
{
	struct uffdio_range range = { address, length };

	if (ioctl(client->uffd, UFFDIO_WAKE, &range) < 0)
		err(1, "UFFDIO_WAKE");
}

static void continue_page(struct client *client, uint64_t address,
			  uint64_t length)
{
	struct uffdio_continue page = { .range = { address, length } };

	while (ioctl(client->uffd, UFFDIO_CONTINUE, &page) < 0) {
		if (errno == EEXIST) {
			wake_page(client, address, length);
			return;
		}
		/* The page is there no more: the server has gone since. */
		if (errno == EINVAL || errno == EFAULT) {
			client->refused = true;
			return;
		}
		if (errno != EAGAIN)
			err(1, "UFFDIO_CONTINUE at %#llx",
			    (unsigned long long)address);
	}
}

static void resolve_page(struct client *client, struct slot *slot,
			 uint64_t page)
{
	uint64_t address = (uintptr_t)slot->host + page * slot->page_size;

	if (!request_page(client, slot->gpa + page * slot->page_size,
			  slot->page_size))
		return;
	if (client->wakes)
		wake_page(client, address, slot->page_size);
	else
		continue_page(client, address, slot->page_size);
	if (!client->refused)
		atomic_store(&slot->served[page], true);
}

static void resolve_fault(struct client *client, uint64_t address)
{
	unsigned int i;

	for (i = 0; i < client->slots; i++) {
		struct slot *slot = &client->slot[i];
		uint64_t from = (uintptr_t)slot->host;

		if (address < from || address - from >= slot->size)
			continue;
		resolve_page(client, slot, (address - from) / slot->page_size);
		client->demanded++;
		return;
	}
	errx(1, "a fault at %#llx, in no slot", (unsigned long long)address);
}

/* Whether there was one. */
static bool take_fault(struct client *client)
{
	struct uffd_msg message;
	ssize_t n = read(client->uffd, &message, sizeof(message));

	if (n < 0 && errno == EAGAIN)
		return false;
	if (n != sizeof(message))
		err(1, "userfaultfd");
	if (message.event != UFFD_EVENT_PAGEFAULT)
		errx(1, "event %u of the userfaultfd", message.event);
	resolve_fault(client, message.arg.pagefault.address);
	return true;
}

/* False: there is no page left. */
static bool prefault_page(struct client *client, unsigned int *i,
			  uint64_t *page)
{
	for (; *i < client->slots; ++*i, *page = 0) {
		struct slot *slot = &client->slot[*i];

		for (; *page < slot->size / slot->page_size; ++*page) {
			if (atomic_load(&slot->served[*page]))
				continue;
			resolve_page(client, slot, *page);
			client->prefaulted++;
			return true;
		}
	}
	return false;
}

void *serve_faults(void *data)
{
	struct client *client = data;
	struct pollfd waits = { .fd = client->uffd, .events = POLLIN };
	unsigned int i = 0;
	uint64_t page = 0;
	char more;

	while (!client->refused) {
		bool done = atomic_load(&client->guest_is_done);
		bool prefaults = client->prefaults &&
				 (done || client->demanded >= client->first);

		if (poll(&waits, 1, prefaults ? 0 : 10) < 0 && errno != EINTR)
			err(1, "poll");
		if (!take_fault(client) && (prefaults || done) &&
		    (!prefaults || !prefault_page(client, &i, &page)))
			break;
	}
	/* From here on an absent page is a page of zeros, also for vCPUs: the
	 * memory's bytes tell whether one is left. */
	close(client->uffd);
	if (client->refused && receive_or_end(client->faults, &more, 1))
		errx(1, "more came after the error");
	/* Where pages are missing, the server takes the others at this end,
	 * which has to wait for their comparison. */
	if (client->prefaults)
		close(client->faults);
	return NULL;
}
