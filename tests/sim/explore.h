/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * All schedules of a plan, within a bound.
 */

#ifndef KVMFAULT_SIM_EXPLORE_H
#define KVMFAULT_SIM_EXPLORE_H

#include "runs.h"

#define MAX_PREEMPTIONS 4U

struct bounds {
	unsigned int preemptions;
	uint64_t runs;			/* at most; 0: without limit */
	/* Called after each run; false: that is enough. NULL: none. */
	bool (*after)(const struct outcome *outcome);
};

struct explored {
	uint64_t runs, steps, switches;
	bool all;			/* false: given up before the end */
};

/* What a seed of a small plan stands for. */
extern const struct bounds seed_bounds;

/* Until a run fails, or there are no more. *outcome is the last one's. */
struct explored explore(const struct plan *plan, const struct bounds *bounds,
			struct outcome *outcome);

#endif
