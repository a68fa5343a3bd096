/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The dialect of Cloud Hypervisor 53 and later: this is the client of its
 * `receive-migration receiver_url=unix:SOCKET,memory_mode=postcopy`. In: a
 * snapshot. Out: a VM that runs there while its pages come. Its requests for
 * pages are answered one by one, on a connection of their own. Each number in a
 * message is checked. If a page can't be brought, the guest's memory is taken
 * away before Cloud Hypervisor learns of it: until it has ended its vCPUs, they
 * would read zeros.
 *
 * Cloud Hypervisor asks for each page that a guest misses, and beside that for
 * all pages, one by one. The next page that it would ask for in this way is
 * known: a request for another page is taken for a guest's.
 */

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "serve.h"
#include "serve-cloud-hypervisor.h"
#include "tool.h"

#define ANSWER_MS 60000			/* to a command */
#define LONGEST_PAGE (1ULL << 30)

enum {
	CLOUD_START = 1,
	CLOUD_CONFIG = 2,
	CLOUD_STATE = 3,
	CLOUD_COMPLETE = 5,
	CLOUD_ABANDON = 6,
	CLOUD_MEMORY_FD = 7,
	CLOUD_COMPLETE_PAUSED = 8,
	CLOUD_PAGE_FAULT = 9,

	CLOUD_OK = 1,
	CLOUD_ERROR = 2,

	CLOUD_ROLE_FAULT = 2,
};

struct cloud_request {
	uint16_t command;
	uint8_t headers[6];		/* Start: the version, 0 */
	uint64_t length;
};

struct cloud_response {
	uint16_t status;
	uint8_t padding[6];
	uint64_t length;
};

struct cloud_range {
	uint64_t gpa, length;
};

struct cloud {
	const struct serve *serve;
	struct cloud_snapshot snapshot;
	struct cloud_ram ram;
	int control;		/* -1: it is done with */
	int faults;		/* -1: there is none */
	int signals;
	bool draining;		/* a signal came */
	uint64_t demand, prefault;	/* requests */
	bool abandoned;
};

static void tell_cloud_event(const struct cloud *cloud, const char *what)
{
	struct json_object *event = serve_event(what, NULL);

	serve_add_text(event, "dialect", "cloud-hypervisor");
	serve_add_number(event, "bytes", cloud->snapshot.length);
	serve_add_number(event, "demand", cloud->demand);
	serve_add_number(event, "prefault", cloud->prefault);
	serve_tell(cloud->serve, event);
}

/* ---- pages ---- */

static bool answer_cloud_request(int fd, uint16_t status)
{
	const struct cloud_response response = { .status = status };

	return cloud_send(fd, &response, sizeof(response));
}

/* The peer may be gone: then it needs no answer. */
static void refuse_cloud_request(int fd)
{
	const struct cloud_response response = { .status = CLOUD_ERROR };

	send(fd, &response, sizeof(response), MSG_NOSIGNAL | MSG_DONTWAIT);
}

static struct cloud_slot *find_cloud_slot(const struct cloud *cloud,
					  const struct cloud_range *range)
{
	unsigned int i;

	for (i = 0; i < cloud->snapshot.slots; i++) {
		struct cloud_slot *slot = &cloud->snapshot.slot[i];

		if (range->gpa >= slot->gpa &&
		    range->gpa - slot->gpa < slot->size &&
		    range->length <= slot->size - (range->gpa - slot->gpa))
			return slot;
	}
	return NULL;
}

static bool is_cloud_page_asked(const struct cloud_slot *slot, uint64_t page)
{
	return slot->asked[page / 64] >> page % 64 & 1;
}

/* Where the prefault is, it asks for the first page that was never asked
 * for. */
static void count_cloud_request(struct cloud *cloud, struct cloud_slot *slot,
				const struct cloud_range *range)
{
	uint64_t page = (range->gpa - slot->gpa) / slot->page_size;
	uint64_t pages = slot->size / slot->page_size, end;

	if (page == slot->next)
		cloud->prefault++;
	else
		cloud->demand++;
	for (end = page + range->length / slot->page_size; page < end; page++)
		slot->asked[page / 64] |= UINT64_C(1) << page % 64;
	while (slot->next < pages && is_cloud_page_asked(slot, slot->next))
		slot->next++;
}

static enum cloud_outcome serve_cloud_page(struct cloud *cloud)
{
	struct cloud_range range;
	struct cloud_slot *slot;
	enum cloud_outcome outcome;
	int err;

	outcome = cloud_receive(cloud->faults, &range, sizeof(range),
				      false);
	if (outcome != CLOUD_WENT_ON)
		return outcome;
	slot = range.length && range.length <= LONGEST_PAGE ?
	       find_cloud_slot(cloud, &range) : NULL;
	if (!slot || (range.gpa | range.length) & (slot->page_size - 1)) {
		complain("Cloud Hypervisor asks for %#llx bytes at gpa %#llx, which are no pages of the snapshot",
			 (unsigned long long)range.length,
			 (unsigned long long)range.gpa);
		return CLOUD_FAILED;
	}
	count_cloud_request(cloud, slot, &range);
	err = cloud_ensure_range(&cloud->ram, range.gpa, range.length);
	if (err) {
		complain("cannot bring the page at gpa %#llx: %s: the VM ends",
			 (unsigned long long)range.gpa, strerror(-err));
		return CLOUD_FAILED;
	}
	return answer_cloud_request(cloud->faults, CLOUD_OK) ? CLOUD_WENT_ON :
							       CLOUD_FAILED;
}

static enum cloud_outcome serve_cloud_request(struct cloud *cloud)
{
	struct cloud_request request;
	enum cloud_outcome outcome;

	outcome = cloud_receive(cloud->faults, &request, sizeof(request),
				      true);
	if (outcome != CLOUD_WENT_ON)
		return outcome;
	if (request.command == CLOUD_PAGE_FAULT &&
	    request.length == sizeof(struct cloud_range))
		return serve_cloud_page(cloud);
	if (request.command == CLOUD_ABANDON && !request.length) {
		cloud->abandoned = true;
		answer_cloud_request(cloud->faults, CLOUD_OK);
		return CLOUD_ENDED;
	}
	complain("Cloud Hypervisor sends command %u with %llu bytes, where a request for a page is due: this is not the protocol of version 53",
		 request.command, (unsigned long long)request.length);
	return CLOUD_FAILED;
}

/* The order is what keeps zeros from the guest. */
static enum cloud_outcome serve_cloud_faults(struct cloud *cloud)
{
	enum cloud_outcome outcome = serve_cloud_request(cloud);

	if (outcome == CLOUD_WENT_ON)
		return outcome;
	if (outcome == CLOUD_FAILED) {
		cloud_cut_off_ram(&cloud->ram, cloud->faults);
		refuse_cloud_request(cloud->faults);
	}
	close(cloud->faults);
	cloud->faults = -1;
	return outcome;
}

/* ---- commands ---- */

static bool receive_cloud_answer(struct cloud *cloud, const char *command)
{
	struct cloud_response response;

	switch (cloud_receive(cloud->control, &response,
				    sizeof(response), true)) {
	case CLOUD_WENT_ON:
		break;
	case CLOUD_ENDED:
		complain("Cloud Hypervisor has hung up at the command %s: its log says why",
			 command);
		return false;
	default:
		return false;
	}
	if (response.status == CLOUD_OK && !response.length)
		return true;
	complain("Cloud Hypervisor says no to the command %s (status %u, %llu bytes): its log says why",
		 command, response.status,
		 (unsigned long long)response.length);
	return false;
}

enum {
	CLOUD_READY_CONTROL = 1 << 0,
	CLOUD_READY_FAULTS = 1 << 1,
	CLOUD_READY_SIGNALS = 1 << 2,
};

/* Returns what can be received, 0: nothing came in time. */
static int wait_for_cloud(const struct cloud *cloud, int ms)
{
	struct pollfd waits[] = {
		{ .fd = cloud->control, .events = POLLIN },
		{ .fd = cloud->faults, .events = POLLIN },
		{ .fd = cloud->signals, .events = POLLIN },
	};
	int n;

	do
		n = poll(waits, 3, ms);
	while (n < 0 && errno == EINTR);
	return (waits[0].revents ? CLOUD_READY_CONTROL : 0) |
	       (waits[1].revents ? CLOUD_READY_FAULTS : 0) |
	       (waits[2].revents ? CLOUD_READY_SIGNALS : 0);
}

/* Pages are asked for before the answer to a command, and for its sake. A small
 * VM may even have all of them by then. */
static bool await_cloud_answer(struct cloud *cloud, const char *command)
{
	for (;;) {
		int ready = wait_for_cloud(cloud, ANSWER_MS);

		if (ready & CLOUD_READY_CONTROL)
			return receive_cloud_answer(cloud, command);
		if (!ready)
			complain("Cloud Hypervisor does not answer the command %s",
				 command);
		if (ready & CLOUD_READY_SIGNALS)
			complain("a signal came before the VM was restored");
		if (!(ready & CLOUD_READY_FAULTS) ||
		    serve_cloud_faults(cloud) == CLOUD_FAILED)
			return false;
	}
}

static bool send_cloud_command(struct cloud *cloud, uint16_t command,
			       const char *name, const struct cloud_text *text)
{
	const struct cloud_request request = {
		.command = command,
		.length = text ? text->length : 0,
	};

	return cloud_send(cloud->control, &request, sizeof(request)) &&
	       (!text || cloud_send(cloud->control, text->bytes,
					  text->length)) &&
	       await_cloud_answer(cloud, name);
}

static bool send_cloud_memfd(struct cloud *cloud, struct cloud_slot *slot)
{
	const struct cloud_request request = {
		.command = CLOUD_MEMORY_FD,
		.length = sizeof(slot->number),
	};
	struct iovec iov = { &slot->number, sizeof(slot->number) };
	ssize_t n;

	if (!cloud_send(cloud->control, &request, sizeof(request)))
		return false;
	n = serve_socket_send(cloud->control, &iov, 1, &slot->memfd, 1);
	if (n != (ssize_t)sizeof(slot->number))
		return cloud_fail_to_send(n < 0 ? (int)-n : EIO);
	return await_cloud_answer(cloud, "MemoryFd");
}

static bool send_cloud_memory(struct cloud *cloud)
{
	unsigned int i;

	for (i = 0; i < cloud->snapshot.slots; i++)
		if (!send_cloud_memfd(cloud, &cloud->snapshot.slot[i]))
			return false;
	return true;
}

/* It has to be there before State: Cloud Hypervisor waits for it then. */
static bool open_cloud_faults(struct cloud *cloud)
{
	const uint16_t role = CLOUD_ROLE_FAULT;

	cloud->faults = cloud_connect(cloud->serve->cloud_path);
	return cloud->faults >= 0 &&
	       cloud_start_guard(&cloud->ram.guard, &cloud->ram,
				 cloud->faults) &&
	       cloud_send(cloud->faults, &role, sizeof(role));
}

static bool start_cloud_vm(struct cloud *cloud)
{
	bool paused = cloud->serve->paused;

	cloud->control = cloud_connect(cloud->serve->cloud_path);
	return cloud->control >= 0 &&
	       send_cloud_command(cloud, CLOUD_START, "Start", NULL) &&
	       cloud_fill_ram(&cloud->ram, cloud->serve->fill,
			      cloud->serve->fill_rate) &&
	       send_cloud_memory(cloud) &&
	       send_cloud_command(cloud, CLOUD_CONFIG, "Config",
				  &cloud->snapshot.config) &&
	       open_cloud_faults(cloud) &&
	       send_cloud_command(cloud, CLOUD_STATE, "State",
				  &cloud->snapshot.state) &&
	       send_cloud_command(cloud, paused ? CLOUD_COMPLETE_PAUSED :
				  CLOUD_COMPLETE,
				  paused ? "CompletePaused" : "Complete", NULL);
}

/* ---- one VM ---- */

/* Each page was asked for. */
static bool has_cloud_vm_all(const struct cloud *cloud)
{
	unsigned int i;

	for (i = 0; i < cloud->snapshot.slots; i++) {
		const struct cloud_slot *slot = &cloud->snapshot.slot[i];

		if (slot->next != slot->size / slot->page_size)
			return false;
	}
	return true;
}

/* At the first signal, the rest is brought at once: then the VM needs this
 * process no more. A second one does not wait for that. */
static enum cloud_outcome drain_cloud_vm(struct cloud *cloud)
{
	struct signalfd_siginfo info;

	if (read(cloud->signals, &info, sizeof(info)) != sizeof(info))
		return CLOUD_WENT_ON;
	if (cloud->draining || !cloud_drain_ram(&cloud->ram)) {
		complain("a signal ends the VM, of which %llu bytes are missing",
			 (unsigned long long)cloud_count_missing(&cloud->ram));
		cloud_cut_off_ram(&cloud->ram, cloud->faults);
		return CLOUD_FAILED;
	}
	cloud->draining = true;
	tell_cloud_event(cloud, "draining");
	return CLOUD_WENT_ON;
}

static bool serve_cloud_vm(struct cloud *cloud)
{
	enum cloud_outcome outcome = cloud->faults < 0 ? CLOUD_ENDED :
							 CLOUD_WENT_ON;

	close(cloud->control);
	cloud->control = -1;
	tell_cloud_event(cloud, "running");
	while (outcome == CLOUD_WENT_ON) {
		int ready = wait_for_cloud(cloud, -1);

		if (ready & CLOUD_READY_SIGNALS)
			outcome = drain_cloud_vm(cloud);
		else if (ready & CLOUD_READY_FAULTS)
			outcome = serve_cloud_faults(cloud);
	}
	if (outcome == CLOUD_FAILED)
		tell_cloud_event(cloud, "failed");
	else if (has_cloud_vm_all(cloud))
		tell_cloud_event(cloud, "resident");
	else
		tell_cloud_event(cloud, cloud->abandoned ? "abandoned" :
				 "gone");
	return outcome != CLOUD_FAILED;
}

/* Before there are threads: these have the signals blocked, too. */
static bool open_cloud_signals(struct cloud *cloud)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	cloud->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (cloud->signals < 0)
		complain_errno(errno, "wait for signals");
	return cloud->signals >= 0;
}

static bool restore_cloud_vm(struct cloud *cloud)
{
	const struct serve *serve = cloud->serve;

	if (!open_cloud_signals(cloud) ||
	    !cloud_open_snapshot(serve->snapshot_path, &cloud->snapshot) ||
	    !cloud_make_ram(&cloud->ram, serve->working_set_path))
		return false;
	if (start_cloud_vm(cloud))
		return serve_cloud_vm(cloud);
	cloud_cut_off_ram(&cloud->ram, cloud->faults);
	return false;
}

int serve_cloud_hypervisor(const struct serve *serve)
{
	struct cloud cloud = {
		.serve = serve,
		.control = -1,
		.faults = -1,
		.signals = -1,
	};
	bool done;

	cloud.ram.snapshot = &cloud.snapshot;
	done = restore_cloud_vm(&cloud);
	cloud_free_ram(&cloud.ram);
	if (cloud.control >= 0)
		close(cloud.control);
	if (cloud.faults >= 0)
		close(cloud.faults);
	if (cloud.signals >= 0)
		close(cloud.signals);
	cloud_close_snapshot(&cloud.snapshot);
	return done ? EXIT_OK : EXIT_FAILED;
}
