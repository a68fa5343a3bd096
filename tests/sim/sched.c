/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The model's threads. In: points, sleeps and wakes. Out: exactly one task runs,
 * the schedule says which; and when all sleep, the clock goes on to the next
 * time at which one is to wake. A run that has nobody left to wake is stuck.
 */

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "include/sim-atomic.h"
#include "run.h"
#include "sim.h"

#define CHANGES (1U << 16)
#define READY_STEPS (1U << 14)
#define QUANTUM 40U		/* steps of a turn, when all is fair */
#define ALONE 4000U		/* PCT: so many steps, then others have a turn */
#define LONG 1500000U		/* a run is not to be so long */
#define POINTS 16U		/* PCT: changes of priority, at most */
#define OBJECTS 32768U		/* MEET: words that tasks have used */
#define NOBODY 0xff

struct task *current;
bool telling, telling_atomics;
uint64_t sched_step_limit = 400000, sched_steps;

static struct task tasks[TASKS];
static unsigned int task_count;
static unsigned int live, ready_count;	/* have not ended; nor sleep */
static struct fiber host;
static struct outcome *result;
static struct schedule how;
static uint64_t clock_now;
static uint64_t points, idle_points;	/* steps, and those that are none */
static uint64_t choices, schedule_random;	/* generators' states */
static uint64_t next_decision;
static bool fair;
static uint32_t switches, given_at;
static uint64_t pct_point[POINTS];
static unsigned int pct_next;
static struct change made[CHANGES];
static uint32_t made_count;
static uint32_t ready_at[READY_STEPS];
static struct used {
	const volatile void *object;
	uint32_t run;			/* else it is of another run */
	uint8_t by;			/* a task's id, or NOBODY */
	bool shared;			/* by more than that one */
} used[OBJECTS], *used_order[OBJECTS / 2];
static uint32_t run_number, used_count;

/* ---- choices ---- */

static uint32_t draw(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return (uint32_t)((z ^ z >> 31) >> 16);
}

uint32_t sim_random(void)
{
	return draw(&choices);
}

uint32_t sim_below(uint32_t n)
{
	return n ? sim_random() % n : 0;
}

uint64_t sim_now(void)
{
	return clock_now;
}

void sim_pass(uint64_t nanoseconds)
{
	clock_now += nanoseconds;
}

void tell(const char *format, ...)
{
	va_list args;

	if (!telling)
		return;
	printf("%7llu %10.3f ms  %-10s ", (unsigned long long)sched_steps,
	       (double)clock_now / 1e6, current ? current->name : "");
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
}

void sim_fail(const char *kind, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(result->text, sizeof(result->text), format, args);
	va_end(args);
	snprintf(result->kind, sizeof(result->kind), "%s", kind);
	tell("FAILS: %s: %s", kind, result->text);
	fiber_switch(&current->fiber, &host, true);
	abort();
}

void sim_stop(void)
{
	tell("the run ends here");
	fiber_switch(&current->fiber, &host, true);
	abort();
}

/* ---- who goes on ---- */

static bool is_ready(unsigned int id)
{
	return tasks[id].state == READY;
}

/* For the search that tries all: who could go on from this step. */
static void note_ready(void)
{
	uint32_t ready = 0;
	unsigned int i;

	if (how.strategy != GIVEN || sched_steps >= READY_STEPS)
		return;
	for (i = 0; !fair && i < task_count; i++)
		ready |= (uint32_t)is_ready(i) << i;
	ready_at[sched_steps] = ready;
}

/* The next that is ready, after this one. */
static struct task *next_in_order(void)
{
	unsigned int i, id;

	for (i = 1; i <= task_count; i++) {
		id = (current->id + i) % task_count;
		if (is_ready(id))
			return &tasks[id];
	}
	return NULL;
}

static struct task *any_ready(void)
{
	unsigned int n, i;

	if (!ready_count)
		return NULL;
	n = draw(&schedule_random) % ready_count;
	for (i = 0; !is_ready(i) || n--; i++)
		;
	return &tasks[i];
}

static struct task *highest(void)
{
	struct task *best = NULL;
	unsigned int i;

	for (i = 0; i < task_count; i++)
		if (is_ready(i) && !tasks[i].gives_way &&
		    (!best || tasks[i].priority > best->priority))
			best = &tasks[i];
	return best;
}

static struct task *given(void)
{
	struct task *task = NULL;

	while (given_at < how.given_count &&
	       how.given[given_at].at < sched_steps)
		given_at++;
	if (given_at < how.given_count &&
	    how.given[given_at].at == sched_steps &&
	    how.given[given_at].to < task_count &&
	    is_ready(how.given[given_at].to))
		task = &tasks[how.given[given_at++].to];
	return task;
}

/* The step of the next decision. */
static void plan_decision(void)
{
	uint32_t every = how.every ? how.every : 1;

	if (fair) {
		next_decision = sched_steps + QUANTUM;
		return;
	}
	switch (how.strategy) {
	case RANDOM_WALK:
		next_decision = sched_steps + 1 +
				draw(&schedule_random) % (2 * every);
		return;
	case MEET:
		next_decision = sched_steps + ALONE;
		return;
	case PCT:
		next_decision = sched_steps + ALONE;
		if (pct_next < how.depth && pct_point[pct_next] < next_decision)
			next_decision = pct_point[pct_next];
		if (next_decision <= sched_steps)
			next_decision = sched_steps + 1;
		return;
	case GIVEN:
		next_decision = NEVER;
		while (given_at < how.given_count &&
		       how.given[given_at].at <= sched_steps)
			given_at++;
		if (given_at < how.given_count)
			next_decision = how.given[given_at].at;
		return;
	}
}

/* blocked: the current one can't go on. NULL: nobody can. */
static struct task *choose(bool blocked)
{
	struct task *task = NULL;

	note_ready();
	if (fair)
		return next_in_order();
	switch (how.strategy) {
	case RANDOM_WALK:
	case MEET:
		return any_ready();
	case PCT:
		if (!blocked)
			current->priority = how.depth - pct_next;
		if (!blocked && pct_next < how.depth)
			pct_next++;
		return highest();
	case GIVEN:
		task = given();
		if (!task)
			task = blocked ? next_in_order() : current;
		return task;
	}
	return task;
}

static void flush_late(struct task *task)
{
	if (!task->late.object)
		return;
	memcpy((void *)(uintptr_t)task->late.object, &task->late.value,
	       task->late.size);
	task->late.object = NULL;
}

static void note_change(const struct task *task)
{
	if (made_count < CHANGES)
		made[made_count++] = (struct change){
			.at = (uint32_t)sched_steps, .to = (uint8_t)task->id,
		};
}

static void go_on(struct task *task)
{
	struct task *from = current;

	if (task == from)
		return;
	windows_close_all();
	switches++;
	note_change(task);
	current = task;
	fiber_switch(&from->fiber, &task->fiber, from->state == ENDED);
}

static void wake(struct task *task, enum woken why)
{
	task->state = READY;
	ready_count++;
	task->how = why;
	task->channel = NULL;
}

/* All sleep: what comes next? False: nothing ever does. */
static bool let_time_pass(void)
{
	uint64_t next = fds_next_timer();
	unsigned int i;

	for (i = 0; i < task_count; i++)
		if (tasks[i].state == ASLEEP && tasks[i].until < next)
			next = tasks[i].until;
	if (next == NEVER)
		return false;
	if (next > clock_now)
		clock_now = next;
	idle_points = points;
	for (i = 0; i < task_count; i++)
		if (tasks[i].state == ASLEEP && tasks[i].until <= clock_now)
			wake(&tasks[i], LATE);
	fds_changed();
	return true;
}

static void leave(void)
{
	struct task *next;

	while (!(next = choose(true))) {
		if (!let_time_pass() && !run_stuck())
			sim_fail("stuck", "nobody is left who could wake anybody");
	}
	plan_decision();
	/* One that slept and is the next itself: of others that woke too. */
	if (next == current)
		note_change(next);
	go_on(next);
}

void sim_point(void)
{
	windows_close();
	points++;
	if (points - idle_points > sched_step_limit)
		sim_fail("spins", "%s in %s, and nobody waits: steps without end",
			 current->name, current->call ? current->call : "no call");
	if (points > LONG)
		sim_fail("a run without end", "%s in %s", current->name,
			 current->call ? current->call : "no call");
	/* Nobody else could go on: no step, and no place for a switch, however
	 * much the library looks through in its set-up. */
	if (ready_count == 1)
		return;
	sched_steps++;
	note_ready();
	if (current->late.object && sim_one_in(8))
		flush_late(current);
	if (sched_steps < next_decision)
		return;
	if (how.strategy == GIVEN && !fair) {
		struct task *task = given();

		plan_decision();
		if (task)
			go_on(task);
		return;
	}
	{
		struct task *task = choose(false);

		plan_decision();
		go_on(task);
	}
}

/* Another one goes on, if one can: who spins until something has happened would
 * else never let it happen. */
void sim_give_way(void)
{
	struct task *task;

	sim_point();
	if (ready_count == 1)
		return;
	sched_steps++;
	note_ready();
	current->priority = 0;
	current->gives_way = true;
	task = how.strategy == GIVEN && !fair ? given() : choose(true);
	if (!task)
		task = next_in_order();
	current->gives_way = false;
	plan_decision();
	if (task == current)
		note_change(task);
	go_on(task);
}

/* ---- where tasks meet ---- */

void sim_meet(void)
{
	if (how.strategy != MEET || fair ||
	    draw(&schedule_random) % (how.every ? how.every : 1))
		return;
	next_decision = sched_steps + 1;
}

/* Where it is, or is to be: addresses are not the same in each process, and who
 * meets must not depend on them. */
static struct used *find_used(const volatile void *object)
{
	uint64_t hash = (uintptr_t)object / 4 * 0x9e3779b97f4a7c15ULL;
	unsigned int i = (unsigned int)(hash >> 40) % OBJECTS;

	while (used[i].run == run_number && used[i].object != object)
		i = (i + 1) % OBJECTS;
	return &used[i];
}

static void meet_at(const volatile void *object)
{
	struct used *entry;

	/* What is set up before there is another is met by nobody. */
	if (how.strategy != MEET || fair || live == 1)
		return;
	entry = find_used(object);
	if (entry->run != run_number) {
		/* More than there can be of what is worth it. */
		if (used_count == OBJECTS / 2)
			return;
		used_order[used_count++] = entry;
		*entry = (struct used){
			.object = object, .run = run_number, .by = NOBODY,
		};
	}
	if (entry->by == NOBODY)
		entry->by = (uint8_t)current->id;
	entry->shared |= entry->by != current->id;
	if (entry->shared)
		sim_meet();
}

void sim_made(const void *memory, size_t length)
{
	unsigned int i;

	for (i = 0; i < used_count; i++) {
		if ((uintptr_t)used_order[i]->object - (uintptr_t)memory >=
		    length)
			continue;
		used_order[i]->by = NOBODY;
		used_order[i]->shared = false;
	}
}

/* ---- atomic operations ---- */

void sim_atomic(const volatile void *object, const char *operation,
		const char *function)
{
	if (!current)
		return;
	flush_late(current);
	meet_at(object);
	if (telling_atomics)
		tell("%s: %s", function, operation);
	sim_point();
}

void sim_atomic_load(const volatile void *object, _Bool relaxed,
		     const char *operation, const char *function)
{
	if (!current)
		return;
	if (current->late.object == object)
		flush_late(current);
	if (!relaxed)
		meet_at(object);
	if (telling_atomics)
		tell("%s: %s", function, operation);
	sim_point();
}

/* A release comes after all that was before it; what is relaxed may come before. */
_Bool sim_store_late(volatile void *object, const void *value, size_t size,
		     _Bool relaxed, const char *operation,
		     const char *function)
{
	if (!current || live == 1 || size > sizeof(current->late.value))
		return false;
	if (relaxed && current->late.object && current->late.object != object) {
		sim_atomic_load(object, relaxed, operation, function);
		return false;
	}
	flush_late(current);
	if (!relaxed)
		meet_at(object);
	if (telling_atomics)
		tell("%s: late %s", function, operation);
	current->late.object = object;
	current->late.size = size;
	memcpy(&current->late.value, value, size);
	sim_point();
	return true;
}

/* ---- tasks ---- */

static void begin_task(void)
{
	fiber_begun();
	current->run(current->arg);
	flush_late(current);
	tell("ends");
	current->state = ENDED;
	live--;
	ready_count--;
	task_wake(current, TASKS);
	if (!current->id)
		fiber_switch(&current->fiber, &host, true);
	/* A step of its own: else its change would be the last point's. */
	points++;
	sched_steps++;
	leave();
	abort();
}

struct task *task_new(const char *name, struct mm *mm, void (*run)(void *),
		      void *arg)
{
	struct task *task;
	struct fiber fiber;

	if (task_count == TASKS)
		return NULL;
	task = &tasks[task_count];
	fiber = task->fiber;
	memset(task, 0, sizeof(*task));
	task->fiber = fiber;
	task->id = task_count++;
	live++;
	ready_count++;
	snprintf(task->name, sizeof(task->name), "%s", name);
	task->mm = mm;
	task->run = run;
	task->arg = arg;
	task->until = NEVER;
	task->priority = 1000 + draw(&schedule_random) % 100000;
	fiber_init(&task->fiber, begin_task);
	return task;
}

struct task *task_nth(unsigned int n)
{
	return n < task_count ? &tasks[n] : NULL;
}

enum woken task_sleep(const void *channel, const char *why, uint64_t until,
		      bool interruptible)
{
	windows_close();
	flush_late(current);
	points++;
	sched_steps++;
	if (interruptible && current->pending & ~current->blocked)
		return SIGNALLED;
	current->channel = channel;
	current->why = why;
	current->until = until;
	current->interruptible = interruptible;
	current->state = ASLEEP;
	ready_count--;
	leave();
	current->until = NEVER;
	current->interruptible = false;
	return current->how;
}

void task_wait_end(struct task *task)
{
	while (task->state != ENDED)
		task_sleep(task, "the end of a thread", NEVER, false);
}

void task_pause(uint64_t nanoseconds, const char *why)
{
	uint64_t until = clock_now + nanoseconds;

	while (clock_now < until)
		task_sleep(NULL, why, until, false);
}

unsigned int task_wake(const void *channel, unsigned int count)
{
	unsigned int i, n = 0;

	for (i = 0; channel && i < task_count && n < count; i++) {
		if (tasks[i].state != ASLEEP || tasks[i].channel != channel)
			continue;
		wake(&tasks[i], WOKEN);
		n++;
	}
	return n;
}

void task_wake_one(struct task *task)
{
	if (task->state == ASLEEP)
		wake(task, WOKEN);
}

void task_signal(struct task *task, int signo)
{
	uint64_t bit = 1ULL << (signo - 1);

	task->pending |= bit;
	if (!(task->blocked & bit) && task->state == ASLEEP &&
	    task->interruptible)
		wake(task, SIGNALLED);
}

bool task_take_signal(struct task *task, int signo)
{
	uint64_t bit = 1ULL << (signo - 1);

	if (!(task->pending & bit))
		return false;
	task->pending &= ~bit;
	return true;
}

bool task_handle_signals(void)
{
	uint64_t now = current->pending & ~current->blocked;
	bool any = now;
	int signo;

	for (; now; now &= now - 1) {
		signo = __builtin_ctzll(now) + 1;
		current->pending &= ~(1ULL << (signo - 1));
		if (current->on_signal)
			current->on_signal(current, signo);
	}
	return any;
}

/* ---- a run ---- */

uint32_t sched_switches(void)
{
	return switches;
}

bool sched_was_idle(void)
{
	return points == idle_points;
}

void sched_be_fair(void)
{
	fair = true;
	plan_decision();
}

bool sched_is_fair(void)
{
	return fair;
}

const struct change *sched_changes(uint32_t *count)
{
	*count = made_count;
	return made;
}

const uint32_t *sched_ready(uint32_t *steps)
{
	*steps = sched_steps < READY_STEPS ? (uint32_t)sched_steps : READY_STEPS;
	return ready_at;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

void sched_run(const struct schedule *schedule, uint64_t seed,
	       void (*main_task)(void *), void *arg, struct outcome *outcome)
{
	uint32_t i;

	result = outcome;
	memset(outcome, 0, sizeof(*outcome));
	how = *schedule;
	choices = seed;
	schedule_random = schedule->seed ^ 0x5ca1ab1e0ddba11ULL;
	task_count = live = ready_count = 0;
	clock_now = 1000 * MS;
	sched_steps = points = idle_points = 0;
	switches = made_count = given_at = 0;
	run_number++;
	used_count = 0;
	if (how.strategy == GIVEN)
		memset(ready_at, 0, sizeof(ready_at));
	fair = false;
	pct_next = 0;
	if (how.depth > POINTS)
		how.depth = POINTS;
	for (i = 0; how.strategy == PCT && i < how.depth; i++)
		pct_point[i] = 1 + draw(&schedule_random) %
				   (how.length ? how.length : 1);
	qsort(pct_point, how.strategy == PCT ? how.depth : 0,
	      sizeof(pct_point[0]), by_value);
	current = NULL;
	current = task_new("main", our_mm, main_task, arg);
	plan_decision();
	fiber_switch(&host, &current->fiber, false);
	current = NULL;
	windows_close_all();
	outcome->steps = sched_steps;
	outcome->now = clock_now;
	outcome->switches = switches;
}
