/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Runs that may end their process. In: a plan and switches, or a seed. Out: how
 * one failed, and the switches that it took, even if it has taken the process
 * with it.
 */

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "attempt.h"
#include "crash.h"
#include "explore.h"

#define SMALL_ONE_IN 1009U		/* seeds; each is some 500 runs */
#define SMALL_ACTORS 3U
#define SMALL_STEPS 3U

bool seed_is_small(uint64_t seed)
{
	return seed % SMALL_ONE_IN == SMALL_ONE_IN - 1;
}

void seed_plan(struct plan *plan, uint64_t seed)
{
	unsigned int i;

	plan_from_seed(plan, seed, ingredients.option, ingredients.step);
	if (!seed_is_small(seed))
		return;
	if (plan->actors > SMALL_ACTORS)
		plan->actors = SMALL_ACTORS;
	for (i = 0; i < plan->actors; i++)
		if (plan->actor[i].steps > SMALL_STEPS)
			plan->actor[i].steps = SMALL_STEPS;
}

void seed_schedule(struct schedule *schedule, uint64_t seed)
{
	static const enum strategy strategies[] = { RANDOM_WALK, MEET, PCT };

	*schedule = (struct schedule){
		.strategy = strategies[seed % 3],
		.seed = seed,
		.every = 1U << seed % 7,
		.depth = 1 + seed % 5,
		.length = 125U << seed % 6,
	};
}

void run_given(const struct plan *plan, const struct change *change,
	       uint32_t count, struct outcome *outcome)
{
	const struct schedule schedule = {
		.strategy = GIVEN, .given = change, .given_count = count,
	};

	run_plan(plan, &schedule, outcome);
}

/* ---- in a process of its own ---- */

static struct failure *shared;

static void note_switches(void)
{
	const struct change *change = sched_changes(&shared->count);

	memcpy(shared->change, change, shared->count * sizeof(*change));
}

static void note_crash(const char *kind, const char *text)
{
	struct outcome *outcome = &shared->outcome;

	snprintf(outcome->kind, sizeof(outcome->kind), "%s", kind);
	snprintf(outcome->text, sizeof(outcome->text), "%s", text);
	outcome->steps = sched_steps;
	shared->crashed = true;
	shared->tries++;
	note_switches();
}

/* Whether that is it; what is not is forgotten. */
static bool note(const struct outcome *outcome, const struct pattern *wanted)
{
	shared->tries++;
	if (!outcome->kind[0] || (wanted && !pattern_fits(wanted, outcome)))
		return false;
	shared->outcome = *outcome;
	note_switches();
	return true;
}

static void try_all(const struct replay *replay, uint32_t random,
		    const struct pattern *wanted)
{
	struct schedule schedule;
	struct outcome outcome;
	uint32_t i;

	crash_limit();
	run_given(&replay->plan, replay->change, replay->count, &outcome);
	for (i = 0; !note(&outcome, wanted) && i < random; i++) {
		crash_limit();
		seed_schedule(&schedule, i);
		run_plan(&replay->plan, &schedule, &outcome);
	}
}

static void try_that(uint64_t seed, const struct pattern *wanted)
{
	struct schedule schedule;
	struct outcome outcome;
	struct plan plan;

	seed_plan(&plan, seed);
	if (seed_is_small(seed)) {
		explore(&plan, &seed_bounds, &outcome);
	} else {
		seed_schedule(&schedule, seed);
		crash_limit();
		run_plan(&plan, &schedule, &outcome);
	}
	note(&outcome, wanted);
}

/* In the child true. */
static bool apart(void)
{
	int status;
	pid_t pid;

	if (!shared)
		shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED)
		abort();
	memset(shared, 0, offsetof(struct failure, change));
	fflush(NULL);
	pid = fork();
	if (pid < 0)
		abort();
	if (!pid) {
		crash_tell(note_crash);
		if (!freopen("/dev/null", "w", stderr))
			_exit(1);
		return true;
	}
	while (waitpid(pid, &status, 0) < 0)
		;
	if (!WIFEXITED(status)) {
		note_crash("", "");
		snprintf(shared->outcome.kind, sizeof(shared->outcome.kind),
			 "signal %d", WTERMSIG(status));
		shared->count = 0;
	}
	return false;
}

/* A crash of another kind is not what is wanted. */
static const struct failure *judge(const struct pattern *wanted)
{
	if (wanted && !pattern_fits(wanted, &shared->outcome))
		shared->outcome.kind[0] = '\0';
	return shared;
}

const struct failure *try_replay(const struct replay *replay, uint32_t random,
				 const struct pattern *wanted)
{
	if (apart()) {
		try_all(replay, random, wanted);
		_exit(0);
	}
	return judge(wanted);
}

const struct failure *try_seed(uint64_t seed, const struct pattern *wanted)
{
	if (apart()) {
		try_that(seed, wanted);
		_exit(0);
	}
	return judge(wanted);
}
