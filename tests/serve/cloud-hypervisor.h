/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A program that does what Cloud Hypervisor does as the receiver of a migration
 * with memory_mode=postcopy: its halves. It is written from Cloud Hypervisor's
 * protocol, and shares no line with `kvmfault serve`.
 */

#ifndef KVMFAULT_TESTS_CLOUD_HYPERVISOR_H
#define KVMFAULT_TESTS_CLOUD_HYPERVISOR_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct machine;

enum { MOST_SLOTS = 8, MOST_VCPUS = 8 };
#define WAIT_MS 60000			/* for what takes less than a second */

struct slot {
	uint32_t number;
	uint64_t gpa, size, file_offset;
	uint64_t page_size;		/* of its zone */
	int fd;				/* the memfd that came; -1: not yet */
	unsigned char *host;		/* where it is mapped here */
	unsigned char *expected;	/* what the snapshot has */
	_Atomic bool *served, *written;	/* for each page */
};

/* How it does otherwise than Cloud Hypervisor. */
enum wrong {
	WRONG_NOTHING,
	WRONG_DIE,		/* it is gone */
	WRONG_HALF,		/* it is gone in the middle of a request */
	WRONG_ABANDON,		/* it wants no more; it may say that */
	WRONG_LENGTH,		/* a payload that is too short, */
	WRONG_RANGE,		/* a page that no slot has, */
	WRONG_END,		/* or that goes past its slot's end, */
	WRONG_WRAP,		/* or past the end of all numbers, */
	WRONG_ODD,		/* or is not a page, */
	WRONG_EMPTY,		/* or has no byte; */
	WRONG_COMMAND,		/* a command that there is not */
	WRONGS,
};

struct client {
	struct slot slot[MOST_SLOTS];
	unsigned int slots;
	unsigned int vcpus;
	struct machine *machine;
	int uffd;
	int faults;		/* the connection for page faults */
	/* Version 53 itself: faults of missing pages alone, which are woken.
	 * Later: minor faults as well, which are continued. */
	bool wakes;
	bool prefaults;
	/* It prefaults after so many demand faults, or when the guest is
	 * done. */
	unsigned int first;
	enum wrong wrong;
	unsigned int wrong_after;	/* so many answers */
	uint64_t demanded, prefaulted;
	bool refused;			/* a page; or the server is gone */
	bool paused;			/* the VM is to be left so */
	atomic_uint ended;		/* vCPUs whose memory is gone */
	_Atomic bool guest_is_done;
};

/* cloud-hypervisor-faults.c: the thread that serves faults over the socket. */
void register_slots(struct client *client);
void *serve_faults(void *client);

/* cloud-hypervisor.c. The first ones return false at the connection's end, the
 * others end this program. */
enum { TOO_EARLY = 4 };
bool receive_or_end(int fd, void *bytes, uint64_t length);
bool send_or_end(int fd, const void *bytes, uint64_t length);
void receive_exactly(int fd, void *bytes, uint64_t length);
void send_exactly(int fd, const void *bytes, uint64_t length);

struct request {
	uint16_t command;
	uint8_t headers[6];
	uint64_t length;
};

struct response {
	uint16_t status;	/* 1: OK, 2: error */
	uint8_t padding[6];
	uint64_t length;
};

enum command {
	COMMAND_START = 1,
	COMMAND_CONFIG = 2,
	COMMAND_STATE = 3,
	COMMAND_COMPLETE = 5,
	COMMAND_ABANDON = 6,
	COMMAND_MEMORY_FD = 7,
	COMMAND_COMPLETE_PAUSED = 8,
	COMMAND_PAGE_FAULT = 9,
};

#endif
