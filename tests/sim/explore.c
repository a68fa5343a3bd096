/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Exhaustive search within a bound, as CHESS does it. The scheduler without a
 * choice of its own lets each task go on until it sleeps, and then the next one
 * in order. In: a plan, and how often a run may do otherwise: another task goes
 * on at a point where the running one could, or another than the next where it
 * sleeps. Out: the first run that fails, of all that there are; those with fewer
 * such switches come first.
 */

#include <stdlib.h>
#include <string.h>

#include "attempt.h"
#include "crash.h"
#include "explore.h"

const struct bounds seed_bounds = { .preemptions = 1, .runs = 3000 };

struct search {
	const struct plan *plan;
	const struct bounds *bounds;
	struct outcome *outcome;
	struct explored explored;
	struct change path[MAX_PREEMPTIONS];
};

/* Where a run could have gone on otherwise. */
struct choices {
	uint32_t steps;
	uint32_t *others;		/* by step: tasks, a bit each */
};

/* False: this is the end of the search. */
static bool run_path(struct search *search, unsigned int length, bool counts)
{
	struct explored *explored = &search->explored;

	crash_limit();
	run_given(search->plan, search->path, length, search->outcome);
	if (!counts)
		return true;
	explored->runs++;
	explored->steps += search->outcome->steps;
	explored->switches += search->outcome->switches;
	if (search->bounds->after && !search->bounds->after(search->outcome))
		return false;
	return !search->outcome->kind[0] &&
	       (!search->bounds->runs ||
		explored->runs < search->bounds->runs);
}

/* Of the last run: at each step those that were ready, but not who went on. */
static struct choices find_choices(void)
{
	struct choices choices;
	const uint32_t *ready = sched_ready(&choices.steps);
	uint32_t count, i = 0, step;
	const struct change *change = sched_changes(&count);
	unsigned int running = 0;

	choices.others = calloc(choices.steps + 1, sizeof(*choices.others));
	if (!choices.others)
		abort();
	for (step = 1; step < choices.steps; step++) {
		for (; i < count && change[i].at <= step; i++)
			running = change[i].to;
		choices.others[step] = ready[step] & ~(1U << running);
	}
	return choices;
}

/* All that go on from this path with so many switches more. */
static bool explore_from(struct search *search, unsigned int length,
			 unsigned int more)
{
	struct choices choices;
	uint32_t step, others;
	bool go_on = true;

	if (!more)
		return run_path(search, length, true);
	run_path(search, length, false);
	choices = find_choices();
	step = length ? search->path[length - 1].at + 1 : 1;
	for (; go_on && step < choices.steps; step++) {
		for (others = choices.others[step]; go_on && others;
		     others &= others - 1) {
			search->path[length] = (struct change){
				.at = step,
				.to = (uint8_t)__builtin_ctz(others),
			};
			go_on = explore_from(search, length + 1, more - 1);
		}
	}
	free(choices.others);
	return go_on;
}

struct explored explore(const struct plan *plan, const struct bounds *bounds,
			struct outcome *outcome)
{
	struct search search = {
		.plan = plan, .bounds = bounds, .outcome = outcome,
	};
	unsigned int bound = bounds->preemptions;
	unsigned int n;

	if (bound > MAX_PREEMPTIONS)
		bound = MAX_PREEMPTIONS;
	search.explored.all = true;
	for (n = 0; search.explored.all && n <= bound; n++)
		search.explored.all = explore_from(&search, 0, n);
	return search.explored;
}
