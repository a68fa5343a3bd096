/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Plans. In: a seed, or text. Out: the same plan each time. Each option is on in
 * a part of the plans only, so that a fault of one does not hide what another
 * would find. Most plans are brief, with up to three steps a thread, or with one:
 * what two threads do to each other needs few steps, and is found where little else
 * goes on. And half are narrow: all that threads do in one is of one kind or two, and
 * any option is on as often as any other, in some plans many, in others few. So what
 * is rare beside the rest is frequent somewhere, together with each other rare thing.
 */

#include <string.h>

#include "plan.h"

#define NARROW 2U			/* kinds of steps of a role, at most */

const char *const option_name[OPTION_COUNT] = {
#define OPTION(name, values, often) #name,
	OPTIONS(OPTION)
#undef OPTION
};

const uint8_t option_values[OPTION_COUNT] = {
#define OPTION(name, values, often) values,
	OPTIONS(OPTION)
#undef OPTION
};

static const uint8_t option_often[OPTION_COUNT] = {
#define OPTION(name, values, often) often,
	OPTIONS(OPTION)
#undef OPTION
};

const char *const step_name[STEP_COUNT] = {
#define STEP(name, role, weight, arguments) #name,
	STEPS(STEP)
#undef STEP
};

static const struct {
	uint8_t role, weight;
} kinds[STEP_COUNT] = {
#define STEP(name, role, weight, arguments) { ROLE_##role, weight },
	STEPS(STEP)
#undef STEP
};

static const char *const role_name[ROLE_COUNT] = {
	"vcpu", "thread", "device", "kernel",
};

static uint32_t draw(uint64_t *state, uint32_t below)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return (uint32_t)((z ^ z >> 31) >> 16) % below;
}

/* Steps that are nothing without an option, and are what it is about. */
static const struct {
	uint8_t step, option;
} belong[] = {
	{ STEP_snapshot, OPT_write_protect },
	{ STEP_unprotect, OPT_write_protect },
	{ STEP_touch_private, OPT_guest_memfd },
	{ STEP_touch_by_turns, OPT_guest_memfd },
	{ STEP_convert, OPT_guest_memfd },
	{ STEP_convert_here, OPT_guest_memfd },
	{ STEP_read_own, OPT_own },
	{ STEP_write_own, OPT_own },
	{ STEP_balloon, OPT_events },
	{ STEP_owner_killed, OPT_states },
	{ STEP_set_delivery, OPT_delivery },
	{ STEP_other_sigbus, OPT_delivery },
};

static uint8_t weight_of(const struct plan *plan, unsigned int step)
{
	unsigned int i;

	for (i = 0; i < sizeof(belong) / sizeof(*belong); i++)
		if (belong[i].step == step)
			return plan->option[belong[i].option] ?
				2 * kinds[step].weight : 0;
	return kinds[step].weight;
}

/* Mostly the same few pages: there they meet. */
static uint32_t draw_page(uint64_t *state, const struct plan *plan)
{
	uint32_t few = plan->most < ACTOR_STEPS ? 2 : 4;

	return draw(state, draw(state, 3) ? few : 4U << plan->option[OPT_pages]);
}

/* One of the role's steps, by their weights. */
static unsigned int draw_kind(uint64_t *state, uint8_t role,
			      const uint8_t weight[STEP_COUNT], uint32_t total)
{
	uint32_t n = draw(state, total);
	unsigned int i;

	for (i = 0; i < STEP_COUNT; i++) {
		if (kinds[i].role != role)
			continue;
		if (n < weight[i])
			break;
		n -= weight[i];
	}
	return i;
}

/* What each step of the role weighs that is allowed; the sum. */
static uint32_t weigh(const struct plan *plan, uint8_t role,
		      const bool allowed[STEP_COUNT],
		      uint8_t weight[STEP_COUNT])
{
	uint32_t total = 0;
	unsigned int i;

	for (i = 0; i < STEP_COUNT; i++) {
		weight[i] = allowed[i] && kinds[i].role == role ?
			weight_of(plan, i) : 0;
		total += weight[i];
	}
	return total;
}

/* Of each role's steps a few kinds. */
static void draw_kinds(uint64_t *state, const struct plan *plan,
		       bool allowed[STEP_COUNT])
{
	bool drawn[STEP_COUNT] = { false };
	uint8_t role, weight[STEP_COUNT];
	uint32_t total, n;

	for (role = 0; role < ROLE_COUNT; role++) {
		total = weigh(plan, role, allowed, weight);
		for (n = 1 + draw(state, NARROW); total && n; n--)
			drawn[draw_kind(state, role, weight, total)] = true;
	}
	memcpy(allowed, drawn, sizeof(drawn));
}

static void draw_step(uint64_t *state, const struct plan *plan,
		      struct step *step, unsigned int what)
{
	step->what = (uint8_t)what;
	step->a = (uint16_t)draw_page(state, plan);
	step->b = (uint16_t)draw(state, 4);
	step->c = (uint16_t)draw(state, 2);
}

/* In a plan some kinds of steps are frequent, and others do not come at all. */
static void draw_actor(uint64_t *state, struct plan *plan, uint8_t role,
		       const bool allowed[STEP_COUNT])
{
	struct actor *actor = &plan->actor[plan->actors++];
	uint8_t weight[STEP_COUNT];
	bool some[STEP_COUNT];
	uint32_t total;
	unsigned int i;

	actor->role = role;
	for (i = 0; i < STEP_COUNT; i++)
		some[i] = allowed[i] && draw(state, 2);
	total = weigh(plan, role, some, weight);
	if (!total)
		total = weigh(plan, role, allowed, weight);
	actor->steps = total ? (uint8_t)(1 + draw(state, plan->most)) : 0;
	if (role == ROLE_KERNEL && actor->steps > 4)
		actor->steps = 4;
	for (i = 0; i < actor->steps; i++)
		draw_step(state, plan, &actor->step[i],
			  draw_kind(state, role, weight, total));
}

/* A narrow plan takes each as often as any other: always, or rarely. */
static void draw_options(uint64_t *state, struct plan *plan,
			 const bool allowed[OPTION_COUNT])
{
	uint32_t rarely = plan->narrow ? 1U << draw(state, 3) : 0;
	unsigned int i;

	for (i = 0; i < OPTION_COUNT; i++) {
		bool on = !draw(state, rarely && option_often[i] > 1 ?
				rarely : option_often[i]);
		uint32_t value = draw(state, option_values[i]);

		if (on && allowed[i])
			plan->option[i] = (uint8_t)value;
	}
}

void plan_from_seed(struct plan *plan, uint64_t seed,
		    const bool allowed[OPTION_COUNT],
		    const bool allowed_step[STEP_COUNT])
{
	static const uint8_t steps[] = { 1, 3, ACTOR_STEPS };
	uint64_t state = seed * 0x2545f4914f6cdd1dULL;
	unsigned int vcpus, threads, i;
	bool step[STEP_COUNT];

	memset(plan, 0, sizeof(*plan));
	plan->choices = seed;
	plan->most = steps[draw(&state, 3)];
	plan->narrow = draw(&state, 2);
	draw_options(&state, plan, allowed);
	memcpy(step, allowed_step, sizeof(step));
	if (plan->narrow)
		draw_kinds(&state, plan, step);
	vcpus = draw(&state, 3);
	threads = 1 + draw(&state, plan->most < ACTOR_STEPS ? 2 : 3);
	for (i = 0; i < vcpus; i++)
		draw_actor(&state, plan, ROLE_VCPU, step);
	for (i = 0; i < threads; i++)
		draw_actor(&state, plan, ROLE_THREAD, step);
	if (plan->option[OPT_device])
		draw_actor(&state, plan, ROLE_DEVICE, step);
	if (!draw(&state, 3))
		draw_actor(&state, plan, ROLE_KERNEL, step);
}

void plan_write(const struct plan *plan, FILE *file)
{
	unsigned int i, k;

	fprintf(file, "choices %llu\n", (unsigned long long)plan->choices);
	for (i = 0; i < OPTION_COUNT; i++)
		if (plan->option[i])
			fprintf(file, "option %s %u\n", option_name[i],
				plan->option[i]);
	for (i = 0; i < plan->actors; i++) {
		const struct actor *actor = &plan->actor[i];

		fprintf(file, "%s\n", role_name[actor->role]);
		for (k = 0; k < actor->steps; k++)
			fprintf(file, "\t%s %u %u %u\n",
				step_name[actor->step[k].what],
				actor->step[k].a, actor->step[k].b,
				actor->step[k].c);
	}
}

static int find(const char *const *names, int count, const char *name)
{
	int i;

	for (i = 0; i < count; i++)
		if (!strcmp(names[i], name))
			return i;
	return -1;
}

int plan_option(const char *name)
{
	return find(option_name, OPTION_COUNT, name);
}

int plan_step(const char *name)
{
	return find(step_name, STEP_COUNT, name);
}

static bool read_line(struct plan *plan, const char *line)
{
	unsigned int a = 0, b = 0, c = 0;
	unsigned long long seed;
	struct actor *actor;
	char word[64];
	int n;

	if (sscanf(line, "choices %llu", &seed) == 1) {
		plan->choices = seed;
		return true;
	}
	if (sscanf(line, "option %63s %u", word, &a) == 2) {
		n = plan_option(word);
		if (n < 0 || a >= option_values[n])
			return false;
		plan->option[n] = (uint8_t)a;
		return true;
	}
	if (sscanf(line, "%63s %u %u %u", word, &a, &b, &c) < 1)
		return true;
	n = find(role_name, ROLE_COUNT, word);
	if (n >= 0) {
		if (plan->actors == ACTORS)
			return false;
		plan->actor[plan->actors++].role = (uint8_t)n;
		return true;
	}
	n = plan_step(word);
	if (n < 0 || !plan->actors)
		return false;
	actor = &plan->actor[plan->actors - 1];
	if (actor->steps == ACTOR_STEPS || kinds[n].role != actor->role)
		return false;
	actor->step[actor->steps++] = (struct step){
		.what = (uint8_t)n, .a = (uint16_t)a, .b = (uint16_t)b,
		.c = (uint16_t)c,
	};
	return true;
}

bool plan_read(struct plan *plan, FILE *file)
{
	char line[256];

	memset(plan, 0, sizeof(*plan));
	while (fgets(line, sizeof(line), file)) {
		line[strcspn(line, "#\n")] = '\0';
		if (!strncmp(line, "schedule", 8))
			return true;
		if (!read_line(plan, line)) {
			fprintf(stderr, "not understood: %s\n", line);
			return false;
		}
	}
	return true;
}
