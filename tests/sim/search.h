/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Many seeds, for a time.
 */

#ifndef KVMFAULT_SIM_SEARCH_H
#define KVMFAULT_SIM_SEARCH_H

#include <stdbool.h>
#include <stdint.h>

#define MAX_JOBS 64U

struct search_options {
	uint64_t from;			/* the first seed */
	unsigned int seconds, jobs;
	uint64_t seeds;			/* how many at most */
	bool json;
	bool first;			/* it ends with one that is not known */
	bool by_text;			/* kinds, and their texts apart */
	const char *replay;		/* what the command line needs again */
};

/* False: there was a failure that was not known. */
bool search(const struct search_options *options);

#endif
