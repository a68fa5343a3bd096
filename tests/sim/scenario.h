/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A file of a run: a plan, its schedule, and what is expected of it.
 */

#ifndef KVMFAULT_SIM_SCENARIO_H
#define KVMFAULT_SIM_SCENARIO_H

#include "attempt.h"

struct scenario {
	char fault[64];			/* of the library: its name; or empty */
	bool open;			/* it has that fault now */
	char expected[192];		/* a pattern; empty: any failure */
	uint32_t schedules;		/* tried beside the given one */
	struct replay replay;
};

/* False: it can't be read, and that is told. */
bool scenario_read(struct scenario *scenario, const char *path);
bool scenario_write(const struct scenario *scenario, const char *path);
/* Does it? *failure says how: as is expected, or, of one that is mended, in any
 * way. */
bool scenario_fails(const struct scenario *scenario,
		    const struct failure **failure);
/* A file, or all of a directory, one line each: is each as it says? */
bool scenarios_check(const char *path);

#endif
