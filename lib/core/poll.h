/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Whether a thread looks for the next message for a while before it sleeps.
 */

#ifndef KVMFAULT__POLL_H
#define KVMFAULT__POLL_H

#include <stdbool.h>
#include <stdint.h>

struct kvmfault__poll {
	uint64_t limit;			/* nanoseconds; 0: never */
	uint64_t began, looked;
	uint32_t vain, skip;		/* how often in vain, not to be tried */
};
void kvmfault__poll_init(struct kvmfault__poll *poll, uint32_t us);
/* Then again until that is false or something was found, and then end. */
bool kvmfault__poll_begin(struct kvmfault__poll *poll);
bool kvmfault__poll_again(struct kvmfault__poll *poll);
void kvmfault__poll_end(struct kvmfault__poll *poll, bool found);

#endif
