/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A failing run, made small. In: a plan, and the switches with which it fails.
 * Out: a plan with fewer actors, steps and options, and fewer switches, that
 * fails in the same way. A smaller plan has other steps, so its schedule is
 * looked for anew; the switches are the last to go.
 */

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "shrink.h"

#define SCHEDULES 100U			/* for each smaller plan */

static struct replay *best;
static const struct pattern *pattern;
static time_t until;

static bool is_late(void)
{
	return time(NULL) >= until;
}

/* If this fails as is wanted, it is the best so far. */
static bool improves(const struct plan *plan)
{
	static struct replay candidate;
	const struct failure *failure;

	if (is_late())
		return false;
	candidate = *best;
	candidate.plan = *plan;
	failure = try_replay(&candidate, SCHEDULES, pattern);
	if (!failure->outcome.kind[0])
		return false;
	best->plan = *plan;
	best->count = failure->count;
	memcpy(best->change, failure->change,
	       failure->count * sizeof(*failure->change));
	return true;
}

static bool drop_actors(void)
{
	struct plan plan;
	bool any = false;
	unsigned int i;

	for (i = best->plan.actors; i--;) {
		plan = best->plan;
		plan.actors--;
		memmove(&plan.actor[i], &plan.actor[i + 1],
			(plan.actors - i) * sizeof(plan.actor[0]));
		any |= improves(&plan);
	}
	return any;
}

/* Of one actor: so many at a time. */
static bool drop_steps_of(unsigned int n, unsigned int count)
{
	struct actor *actor;
	struct plan plan;
	bool any = false;
	unsigned int i;

	for (i = best->plan.actor[n].steps / count * count; i >= count;
	     i -= count) {
		plan = best->plan;
		actor = &plan.actor[n];
		actor->steps = (uint8_t)(actor->steps - count);
		memmove(&actor->step[i - count], &actor->step[i],
			(actor->steps + count - i) * sizeof(actor->step[0]));
		any |= improves(&plan);
	}
	return any;
}

static bool drop_steps(void)
{
	unsigned int n, count;
	bool any = false;

	for (count = ACTOR_STEPS / 2; count; count /= 2)
		for (n = 0; n < best->plan.actors; n++)
			any |= drop_steps_of(n, count);
	return any;
}

static bool drop_options(void)
{
	struct plan plan;
	bool any = false;
	unsigned int i;

	for (i = 0; i < OPTION_COUNT; i++) {
		if (!best->plan.option[i])
			continue;
		plan = best->plan;
		plan.option[i] = 0;
		any |= improves(&plan);
	}
	return any;
}

/* So many at a time. */
static bool drop_switches_by(uint32_t count)
{
	static struct replay candidate;
	const struct failure *failure;
	bool any = false;
	uint32_t end;

	for (end = best->count; end >= count && !is_late(); end -= count) {
		candidate = *best;
		candidate.count -= count;
		memmove(&candidate.change[end - count], &candidate.change[end],
			(candidate.count + count - end) *
			sizeof(candidate.change[0]));
		failure = try_replay(&candidate, 0, pattern);
		if (!failure->outcome.kind[0])
			continue;
		*best = candidate;
		any = true;
	}
	return any;
}

static void drop_switches(void)
{
	uint32_t count = best->count;

	for (; count; count /= 2)
		drop_switches_by(count);
	while (!is_late() && drop_switches_by(1))
		;
}

void shrink(struct replay *replay, const struct pattern *wanted,
	    unsigned int seconds)
{
	bool any = true;

	best = replay;
	pattern = wanted;
	/* Some of the time is for the switches. */
	until = time(NULL) + seconds - seconds / 4;
	while (any && !is_late()) {
		any = drop_actors();
		any |= drop_steps();
		any |= drop_options();
	}
	until = time(NULL) + seconds / 4 + 1;
	drop_switches();
}
