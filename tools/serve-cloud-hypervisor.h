/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* A VM of Cloud Hypervisor that `kvmfault serve` restores: its snapshot, its
 * memories, and the protocol. */

#ifndef SERVE_CLOUD_HYPERVISOR_H
#define SERVE_CLOUD_HYPERVISOR_H

#include <kvmfault.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { CLOUD_MOST_SLOTS = 256 };

struct cloud_slot {
	/* as the snapshot has it */
	uint32_t number;
	uint64_t gpa, size;
	uint64_t file_offset;		/* in the memfd */
	uint64_t page_size;
	uint64_t image_offset;		/* in all slots' bytes, one by one */
	int file;			/* memory-NUMBER */
	struct kvmfault_source source;	/* of that file */

	/* as it is served */
	unsigned int group;		/* the slot that has the memfd */
	int memfd;			/* of its group */
	void *host;
	struct kvmfault_memory *memory;
	uint64_t *asked;		/* a bit for each page */
	uint64_t next;			/* that the prefault would ask for */
};

struct cloud_text {
	char *bytes;
	size_t length;
};

struct cloud_snapshot {
	struct cloud_text config, state;
	struct cloud_slot *slot;
	unsigned int slots;
	uint64_t length;		/* of all slots */
	uint64_t page_size_max;
	uint8_t identity[KVMFAULT_IDENTITY_LENGTH];
};

/* serve-cloud-snapshot.c. The snapshot in a directory. False, and that is told:
 * it is not one. Close it in both cases. */
bool cloud_open_snapshot(const char *path, struct cloud_snapshot *snapshot);
void cloud_close_snapshot(struct cloud_snapshot *snapshot);

struct cloud_guard {
	pid_t process;			/* 0: there is none yet */
	int channel[2];			/* 0: nor this */
};

/* The memories of a snapshot, and what fills them. */
struct cloud_ram {
	struct cloud_snapshot *snapshot;
	struct kvmfault_vm *vm;
	struct kvmfault_uffd *uffd;
	struct kvmfault_working_set *set;
	struct kvmfault_fill *fill;
	bool hold;			/* after the working set it pauses */
	atomic_bool replayed;		/* by the fill's thread */
	struct cloud_guard guard;
};

/* serve-cloud-ram.c. False, and that is told: free what is there.
 * working_set: NULL, or a path. */
bool cloud_make_ram(struct cloud_ram *ram, const char *working_set);
void cloud_free_ram(struct cloud_ram *ram);

/* Begins to bring pages, at most so many bytes a second; 0: no limit. If all is
 * not set: those of the working set alone, and some behind them. */
bool cloud_fill_ram(struct cloud_ram *ram, bool all, uint64_t rate);

/* Makes a range present, with patience for its source. 0 or -errno. */
int cloud_ensure_range(struct cloud_ram *ram, uint64_t gpa, uint64_t length);

/* Bytes that are not in the memfds. */
uint64_t cloud_count_missing(const struct cloud_ram *ram);

/* Brings the rest as fast as it can. */
bool cloud_drain_ram(struct cloud_ram *ram);

/* If a page is missing, takes the guest's memory away: then no access is
 * answered with zeros. faults: the connection, or -1. */
void cloud_cut_off_ram(const struct cloud_ram *ram, int faults);
/* The same in any case. It neither allocates nor prints. 0 or -errno. */
int cloud_empty_memfds(const struct cloud_ram *ram, int faults);

/* How waiting for a message ended. */
enum cloud_outcome {
	CLOUD_WENT_ON,
	CLOUD_ENDED,		/* the peer is gone, or wants no more */
	CLOUD_FAILED,		/* and that is told */
};

/* serve-cloud-wire.c. A connection, or -1, and that is told. */
int cloud_connect(const char *path);
/* False, and that is told: it can't be sent. */
bool cloud_send(int fd, const void *bytes, size_t length);
bool cloud_fail_to_send(int err);
/* begins: the peer may end the connection before the first byte. */
enum cloud_outcome cloud_receive(int fd, void *bytes, size_t length,
				 bool begins);

/* serve-cloud-guard.c. False, and that is told: it can't be. Release it when no
 * page is missing any more; any thread may do that, also before it is started.
 * Without that, its end leaves the VM without memory. */
bool cloud_open_guard(struct cloud_guard *guard);
bool cloud_start_guard(struct cloud_guard *guard, const struct cloud_ram *ram,
		       int faults);
void cloud_release_guard(const struct cloud_guard *guard);
void cloud_end_guard(struct cloud_guard *guard);

#endif
