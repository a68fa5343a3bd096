/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Files of runs, as in corpus/. In: text.
 *
 *   fault NAME		what it is about
 *   state open		the library has this fault: it has to be found
 *   state mended	or not any more: nothing may fail
 *   expect KIND ~ TEXT	how it fails; what follows ~ may be left out
 *   schedules N	so many are tried by chance, beside the one below (300)
 *   ...		the plan
 *   schedule
 *   STEP TASK		at that step this task goes on
 *
 * Out: whether it is as the file says. The schedule is that of the library as
 * it was then; the others are there because it has changed since.
 */

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "scenario.h"

#define SCHEDULES 300U

/* A line of these is not the plan's. False: it is one, and is wrong. */
static bool read_head(struct scenario *scenario, const char *line, bool *taken)
{
	char state[16];

	*taken = true;
	if (sscanf(line, "fault %63[^\n]", scenario->fault) == 1 ||
	    sscanf(line, "expect %191[^\n]", scenario->expected) == 1 ||
	    sscanf(line, "schedules %u", &scenario->schedules) == 1)
		return true;
	*taken = sscanf(line, "state %15s", state) == 1;
	if (!*taken)
		return true;
	scenario->open = !strcmp(state, "open");
	return scenario->open || !strcmp(state, "mended");
}

static bool read_switch(struct replay *replay, const char *line)
{
	unsigned int at, to;

	if (line[strspn(line, " \t\n")] == '\0')
		return true;
	if (replay->count == SWITCHES || sscanf(line, "%u %u", &at, &to) != 2 ||
	    to >= TASKS)
		return false;
	replay->change[replay->count++] = (struct change){
		.at = at, .to = (uint8_t)to,
	};
	return true;
}

/* What is the plan's goes to another file. */
static bool read_lines(struct scenario *scenario, FILE *file, FILE *plan)
{
	bool schedule = false, good = true, taken;
	char line[256];

	while (good && fgets(line, sizeof(line), file)) {
		line[strcspn(line, "#")] = '\0';
		if (schedule) {
			good = read_switch(&scenario->replay, line);
			continue;
		}
		schedule = !strncmp(line, "schedule\n", 9);
		good = schedule || read_head(scenario, line, &taken);
		if (good && !schedule && !taken)
			fprintf(plan, "%s\n", line);
	}
	if (!good)
		fprintf(stderr, "sim: not understood: %s", line);
	return good;
}

bool scenario_read(struct scenario *scenario, const char *path)
{
	FILE *file = fopen(path, "r"), *plan = tmpfile();
	bool good;

	memset(scenario, 0, offsetof(struct scenario, replay));
	scenario->replay.count = 0;
	scenario->schedules = SCHEDULES;
	good = file && plan && read_lines(scenario, file, plan);
	if (good) {
		rewind(plan);
		good = plan_read(&scenario->replay.plan, plan);
	}
	if (!good)
		fprintf(stderr, "sim: cannot read %s\n", path);
	if (file)
		fclose(file);
	if (plan)
		fclose(plan);
	return good;
}

bool scenario_write(const struct scenario *scenario, const char *path)
{
	const struct replay *replay = &scenario->replay;
	FILE *file = path ? fopen(path, "w") : stdout;
	uint32_t i;

	if (!file) {
		fprintf(stderr, "sim: cannot write %s\n", path);
		return false;
	}
	if (scenario->fault[0])
		fprintf(file, "fault %s\n", scenario->fault);
	fprintf(file, "state %s\nexpect %s\n",
		scenario->open ? "open" : "mended", scenario->expected);
	plan_write(&replay->plan, file);
	fprintf(file, "schedule\n");
	for (i = 0; i < replay->count; i++)
		fprintf(file, "%u %u\n", replay->change[i].at,
			replay->change[i].to);
	return path ? !fclose(file) : !fflush(file);
}

bool scenario_fails(const struct scenario *scenario,
		    const struct failure **failure)
{
	struct pattern pattern;

	pattern_read(&pattern, scenario->expected);
	/* One that is mended may not fail in any way. */
	*failure = try_replay(&scenario->replay, scenario->schedules,
			      scenario->open ? &pattern : NULL);
	return (*failure)->outcome.kind[0];
}

static bool check(const char *path)
{
	static struct scenario scenario;
	const struct failure *failure;
	bool fails, good;

	if (!scenario_read(&scenario, path))
		return false;
	fails = scenario_fails(&scenario, &failure);
	good = fails == scenario.open;
	printf("%s %s (%s, %s): ", good ? "ok" : "NOT OK",
	       strrchr(path, '/') ? strrchr(path, '/') + 1 : path,
	       scenario.fault, scenario.open ? "open" : "mended");
	if (fails)
		printf("%s: %s (schedule %u)\n", failure->outcome.kind,
		       failure->outcome.text, failure->tries);
	else
		printf("%u schedules, none fails\n", failure->tries);
	return good;
}

static int is_visible(const struct dirent *entry)
{
	return entry->d_name[0] != '.';
}

bool scenarios_check(const char *path)
{
	struct dirent **entries;
	int i, n = scandir(path, &entries, is_visible, alphasort);
	bool good = n > 0;
	char file[512];

	if (n < 0)
		return check(path);
	if (!n)
		fprintf(stderr, "sim: there is nothing in %s\n", path);
	for (i = 0; i < n; i++) {
		snprintf(file, sizeof(file), "%s/%s", path, entries[i]->d_name);
		good &= check(file);
		free(entries[i]);
	}
	free(entries);
	return good;
}
