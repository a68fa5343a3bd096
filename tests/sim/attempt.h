/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A run, and what it was: its plan and its switches, so that it can be made
 * again.
 */

#ifndef KVMFAULT_SIM_ATTEMPT_H
#define KVMFAULT_SIM_ATTEMPT_H

#include "known.h"
#include "runs.h"

#define SWITCHES (1U << 16)

/* A plan, and the switches of a run of it; those that are not given are made as
 * the scheduler makes them when it has to. */
struct replay {
	struct plan plan;
	uint32_t count;
	struct change change[SWITCHES];
};

struct failure {
	struct outcome outcome;		/* no kind: it has not failed */
	uint32_t tries;
	bool crashed;
	uint32_t count;			/* the switches that it took */
	struct change change[SWITCHES];
};

/* What a seed stands for: a plan and a schedule; or, one seed in so many, a
 * small plan and all its schedules within a bound. */
bool seed_is_small(uint64_t seed);
void seed_plan(struct plan *plan, uint64_t seed);
void seed_schedule(struct schedule *schedule, uint64_t seed);

/* Run it here, with the schedule of these switches only. */
void run_given(const struct plan *plan, const struct change *change,
	       uint32_t count, struct outcome *outcome);

/*
 * In a process of its own: the switches that are given, and after them so many
 * schedules by chance, until one fails as is wanted (NULL: however). The answer
 * is in *failure; it is the next call's too.
 */
const struct failure *try_replay(const struct replay *replay, uint32_t random,
				 const struct pattern *wanted);
/* As that, of what a seed stands for. */
const struct failure *try_seed(uint64_t seed, const struct pattern *wanted);

#endif
