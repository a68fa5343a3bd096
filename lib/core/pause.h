/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * How long the library waits, in one place: each pause between two tries, and
 * each slice of a wait after which a thread looks again. All are nanoseconds.
 */

#ifndef KVMFAULT__PAUSE_H
#define KVMFAULT__PAUSE_H

#include <stdint.h>

#define KVMFAULT__MS 1000000ULL
#define KVMFAULT__SECOND (1000 * KVMFAULT__MS)

/* A source or a resolver has failed: 1 ms, doubled each time up to a second. */
#define KVMFAULT__FAILED_PAUSE KVMFAULT__MS
#define KVMFAULT__FAILED_STEPS 10

/* A try was not possible yet, or brought no progress: 50 us, doubled each time
 * up to 13 ms for a message, and up to 10 ms for a vCPU. */
#define KVMFAULT__SOON_PAUSE 50000ULL
#define KVMFAULT__SOON_STEPS 8
#define KVMFAULT__SOON_MOST (10 * KVMFAULT__MS)

/* The longest sleep between two looks at immediate_exit. */
#define KVMFAULT__SLICE (10 * KVMFAULT__MS)

/* `first`, doubled n times, but not more than so many steps. */
static inline uint64_t kvmfault__backoff(uint64_t first, unsigned int n,
					 unsigned int steps)
{
	return first << (n < steps ? n : steps);
}

#endif
