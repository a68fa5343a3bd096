/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * One run of a plan. In: the plan and a schedule. Out: what became of it. First
 * all goes on as the plan says, until the actors have ended, or nothing moves any
 * more, or it has taken its time. Then all is well: the sources answer, no call
 * fails, everybody has his turn; and within a while all have to come to an end.
 */

#include <string.h>

#include "run.h"
#include "runs.h"
#include "sim.h"
#include "sources.h"

#define COURSE (5000 * MS)
#define CURE (20000 * MS)

static bool waiting;			/* the main task, for the actors */

bool run_stuck(void)
{
	struct task *task = task_nth(0);

	if (!waiting || task->state != ASLEEP)
		return false;
	task_wake_one(task);
	return true;
}

bool run_kill_is_fine(void)
{
	return world.failures || world.poisons;
}

/* False: not by then. */
static bool await_actors(uint64_t limit)
{
	uint64_t until = sim_now() + limit;

	waiting = true;
	while (!steps_over() && sim_now() < until) {
		struct task *task;
		unsigned int i;

		/* Any of them. */
		for (i = 1; (task = task_nth(i)) && task->state == ENDED; i++)
			;
		if (task_sleep(&waiting, "the actors", sim_now() + 50 * MS,
			       false) == WOKEN && !steps_over())
			break;
	}
	waiting = false;
	return steps_over();
}

/* What has to end by itself, however the source behaves. */
static void check_who_waits(void)
{
	struct task *task;
	unsigned int i;

	for (i = 0; (task = task_nth(i)); i++)
		if (task->state == ASLEEP && task->call &&
		    !strcmp(task->call, "kvmfault_memory_free") &&
		    option(OPT_source) == 2 && option(OPT_answers) == 3 &&
		    !option(OPT_no_cancel) && !world.cancels)
			sim_fail("a fetch is not cancelled",
				 "kvmfault_memory_free() waits for it");
}

/* Another process sleeps in a memory that was freed, until the next owner takes it
 * up by its states: here there is none. */
static bool waits_for_next_owner(void)
{
	const struct sim_memory *memory = world.memory;

	while (memory < &world.memory[world.memories] &&
	       (memory->exists || !memory->states_fd || !memory->remote))
		memory++;
	return memory < &world.memory[world.memories];
}

/* False: somebody sleeps where the library has said that he may. */
static bool cure(void)
{
	char text[400];

	if (await_actors(CURE))
		return true;
	/* Nor is he woken whose message nobody understands. */
	if (world.unprotected || kvm.odd || waits_for_next_owner())
		return false;
	steps_tell_who_waits(text, sizeof(text));
	sim_fail("somebody sleeps for ever", "%s", text);
}

static void main_task(void *arg)
{
	(void)arg;
	world_make();
	steps_start();
	if (!await_actors(COURSE))
		check_who_waits();
	world_heal();
	sched_be_fair();
	if (!cure())
		return;
	steps_check();
	if (cure())
		world_end();
}

void run_plan(const struct plan *plan, const struct schedule *schedule,
	      struct outcome *outcome)
{
	world_reset(plan);
	waiting = false;
	sched_run(schedule, plan->choices, main_task, NULL, outcome);
}
