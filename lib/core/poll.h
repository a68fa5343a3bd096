/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Polling: whether a thread looks for its next message for a while before it
 * sleeps.
 */

#ifndef KVMFAULT__POLL_H
#define KVMFAULT__POLL_H

#include <stdbool.h>
#include <stdint.h>

struct kvmfault__poll {
	uint64_t limit;			/* nanoseconds; 0: it never polls */
	uint64_t began, looked;
	uint32_t vain;			/* up if it was in vain, or down */
	uint32_t skip;			/* so many waits do not poll */
};

void kvmfault__poll_init(struct kvmfault__poll *poll, uint32_t us);
/* If begin() returns true, call again() until it returns false or a message was
 * found, and then end(). */
bool kvmfault__poll_begin(struct kvmfault__poll *poll);
bool kvmfault__poll_again(struct kvmfault__poll *poll);
void kvmfault__poll_end(struct kvmfault__poll *poll, bool found);

#endif
