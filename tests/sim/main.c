/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The simulator's command line. In: a command, and a seed or a file. Out: what
 * a run did, in words; or what many did.
 */

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "attempt.h"
#include "crash.h"
#include "explore.h"
#include "scenario.h"
#include "search.h"
#include "shrink.h"

static const char usage[] =
"usage: sim search [--seconds N] [--seeds N] [--jobs N] [--from SEED]\n"
"                  [--json] [--by-text] [--first] [PLANS]\n"
"       sim run SEED|FILE [COUNT] [--tell] [--atomics] [PLANS]\n"
"       sim shrink SEED|FILE [--seconds N] [--expect \"KIND[ ~ TEXT]\"]\n"
"                  [--fault NAME] [-o FILE] [PLANS]\n"
"       sim exhaust SEED|FILE [--preemptions N] [-o FILE] [PLANS]\n"
"       sim corpus DIRECTORY|FILE\n"
"PLANS, what seeds stand for:\n"
"       --known FILE, --without OPTION,... --only OPTION,...\n"
"       --without-step STEP,... --only-step STEP,...\n"
"Status: 0, nothing failed; 1, something did; 2, it can't be done.\n";

static struct {
	uint64_t seconds, seeds, jobs, preemptions, from;
	bool json, by_text, first, tell, atomics;
	const char *expected, *fault, *output;
	char replay[512];		/* of the options: those about plans */
} options = { .seconds = 60, .jobs = 2, .preemptions = 2, .from = 1,
	      .seeds = UINT64_MAX };

const char *__asan_default_options(void);

/* A page that the library touches is looked up where it faults; and a run that
 * ends in its middle leaves what it has allocated. */
const char *__asan_default_options(void)
{
	return "detect_leaks=0:detect_stack_use_after_return=0:handle_segv=0:"
	       "allow_user_segv_handler=1:handle_abort=0:handle_sigbus=0:"
	       "handle_sigfpe=0:handle_sigill=0:quarantine_size_mb=8";
}

/* ---- what a run is of ---- */

static struct scenario scenario;
static bool from_seed;
static uint64_t seed;

static bool read_number(const char *word, uint64_t *number)
{
	char *end;

	errno = 0;
	*number = strtoull(word, &end, 0);
	return isdigit((unsigned char)*word) && !*end && !errno;
}

static bool read_what(const char *what)
{
	from_seed = read_number(what, &seed);
	if (!from_seed)
		return scenario_read(&scenario, what);
	seed_plan(&scenario.replay.plan, seed);
	return true;
}

/* The first failure of it: the schedule that the seed stands for, or the file's
 * and then those by chance. */
static const struct failure *find_failure(const struct pattern *wanted)
{
	if (from_seed)
		return try_seed(seed, wanted);
	return try_replay(&scenario.replay, scenario.schedules, wanted);
}

/* ---- run ---- */

static void print_crash(const char *kind, const char *text)
{
	printf("%s: %s\n", kind, text);
	fflush(stdout);
	_exit(1);
}

/* All that happens, as it happens. */
static int tell_run(void)
{
	const struct failure *failure = find_failure(NULL);
	struct schedule schedule;
	struct outcome outcome;

	if (failure->outcome.kind[0] && failure->tries > 1)
		printf("(schedule %u of those that were tried)\n",
		       failure->tries);
	crash_tell(print_crash);
	crash_limit();
	telling = true;
	telling_atomics = options.atomics;
	setvbuf(stdout, NULL, _IOLBF, 0);
	plan_write(&scenario.replay.plan, stdout);
	if (failure->outcome.kind[0] && failure->count) {
		run_given(&scenario.replay.plan, failure->change,
			  failure->count, &outcome);
	} else if (from_seed && !seed_is_small(seed)) {
		seed_schedule(&schedule, seed);
		run_plan(&scenario.replay.plan, &schedule, &outcome);
	} else {
		run_given(&scenario.replay.plan, scenario.replay.change,
			  scenario.replay.count, &outcome);
	}
	return outcome.kind[0] != '\0';
}

static int run_seeds(uint64_t count)
{
	uint64_t bad = 0, i;

	for (i = 0; i < count; i++) {
		const struct failure *failure = find_failure(NULL);

		if (failure->outcome.kind[0]) {
			bad++;
			if (from_seed)
				printf("%llu: ", (unsigned long long)seed);
			printf("%s: %s\n", failure->outcome.kind,
			       failure->outcome.text);
		}
		seed++;
	}
	printf("%llu of %llu\n", (unsigned long long)bad,
	       (unsigned long long)count);
	return bad != 0;
}

static int command_run(const char *what, const char *count)
{
	uint64_t times = 1;

	if (!read_what(what))
		return 2;
	if (count && !read_number(count, &times)) {
		fprintf(stderr, "sim: %s is no number\n", count);
		return 2;
	}
	if (options.tell || options.atomics)
		return tell_run();
	return run_seeds(from_seed ? times : 1);
}

/* ---- shrink ---- */

static void count_plan(const char *when)
{
	const struct plan *plan = &scenario.replay.plan;
	unsigned int i, steps = 0, on = 0;

	for (i = 0; i < plan->actors; i++)
		steps += plan->actor[i].steps;
	for (i = 0; i < OPTION_COUNT; i++)
		on += plan->option[i] != 0;
	fprintf(stderr, "%s: %u actors, %u steps, %u options, %u switches\n",
		when, plan->actors, steps, on, scenario.replay.count);
}

static int command_shrink(const char *what)
{
	const struct failure *failure;
	struct pattern wanted;

	if (!read_what(what))
		return 2;
	if (options.expected)
		snprintf(scenario.expected, sizeof(scenario.expected), "%s",
			 options.expected);
	pattern_read(&wanted, scenario.expected);
	failure = find_failure(&wanted);
	if (!failure->outcome.kind[0]) {
		fprintf(stderr, "sim: %s does not fail\n", what);
		return 2;
	}
	scenario.replay.count = failure->count;
	memcpy(scenario.replay.change, failure->change,
	       failure->count * sizeof(*failure->change));
	if (!scenario.expected[0]) {
		snprintf(scenario.expected, sizeof(scenario.expected), "%s",
			 failure->outcome.kind);
		pattern_read(&wanted, scenario.expected);
	}
	if (options.fault)
		snprintf(scenario.fault, sizeof(scenario.fault), "%s",
			 options.fault);
	scenario.open = true;
	count_plan("before");
	shrink(&scenario.replay, &wanted, (unsigned int)options.seconds);
	count_plan("after");
	return scenario_write(&scenario, options.output) ? 1 : 2;
}

/* ---- exhaust ---- */

/* Also where the process ends of it. */
static void write_explored(const char *kind, const char *text)
{
	const struct change *change = sched_changes(&scenario.replay.count);

	printf("%s: %s\n", kind, text);
	snprintf(scenario.expected, sizeof(scenario.expected), "%s", kind);
	scenario.open = true;
	memcpy(scenario.replay.change, change,
	       scenario.replay.count * sizeof(*change));
	scenario_write(&scenario, options.output);
}

static int command_exhaust(const char *what)
{
	const struct bounds bounds = {
		.preemptions = (unsigned int)options.preemptions,
	};
	struct explored explored;
	struct outcome outcome;

	if (!read_what(what))
		return 2;
	crash_tell(write_explored);
	explored = explore(&scenario.replay.plan, &bounds, &outcome);
	printf("sim: %llu runs, %llu steps, %llu switches: %s\n",
	       (unsigned long long)explored.runs,
	       (unsigned long long)explored.steps,
	       (unsigned long long)explored.switches,
	       explored.all ? "all within the bound, none fails" :
			      "the last one fails");
	if (!explored.all)
		write_explored(outcome.kind, outcome.text);
	return !explored.all;
}

/* ---- the command line ---- */

static const struct {
	const char *name;
	/* What it sets; plans: and it is to be repeated with a seed. */
	bool *flag;
	uint64_t *number, most;
	const char **word;
	bool (*plans)(const char *value);
} known_options[] = {
	{ "--json", .flag = &options.json },
	{ "--by-text", .flag = &options.by_text },
	{ "--first", .flag = &options.first },
	{ "--tell", .flag = &options.tell },
	{ "--atomics", .flag = &options.atomics },
	{ "--seconds", .number = &options.seconds, .most = 1000000 },
	{ "--seeds", .number = &options.seeds, .most = UINT64_MAX },
	{ "--jobs", .number = &options.jobs, .most = MAX_JOBS },
	{ "--from", .number = &options.from, .most = UINT64_MAX },
	{ "--preemptions", .number = &options.preemptions,
	  .most = MAX_PREEMPTIONS },
	{ "--expect", .word = &options.expected },
	{ "--fault", .word = &options.fault },
	{ "-o", .word = &options.output },
	{ "--known", .plans = known_read },
	{ "--without", .plans = without_options },
	{ "--only", .plans = only_options },
	{ "--without-step", .plans = without_steps },
	{ "--only-step", .plans = only_steps },
};

static bool take_value(unsigned int n, const char *value)
{
	size_t length = strlen(options.replay);

	if (known_options[n].word) {
		*known_options[n].word = value;
		return true;
	}
	if (known_options[n].plans) {
		snprintf(options.replay + length,
			 sizeof(options.replay) - length, " %s %s",
			 known_options[n].name, value);
		return known_options[n].plans(value);
	}
	return read_number(value, known_options[n].number) &&
	       *known_options[n].number <= known_options[n].most;
}

/* How many words it takes; 0: it is none, or is wrong. */
static int take_option(char **words)
{
	unsigned int n;

	for (n = 0; n < sizeof(known_options) / sizeof(*known_options); n++) {
		if (strcmp(words[0], known_options[n].name))
			continue;
		if (!known_options[n].flag)
			return words[1] && take_value(n, words[1]) ? 2 : 0;
		*known_options[n].flag = true;
		return 1;
	}
	return 0;
}

static int run_command(const char *command, int count, char **words)
{
	const struct search_options how = {
		.from = options.from,
		.seconds = (unsigned int)options.seconds,
		.jobs = (unsigned int)options.jobs,
		.seeds = options.seeds,
		.json = options.json,
		.first = options.first,
		.by_text = options.by_text,
		.replay = options.replay,
	};

	if (!strcmp(command, "search") && !count)
		return !search(&how);
	if (!strcmp(command, "run") && (count == 1 || count == 2))
		return command_run(words[0], words[1]);
	if (!strcmp(command, "shrink") && count == 1)
		return command_shrink(words[0]);
	if (!strcmp(command, "exhaust") && count == 1)
		return command_exhaust(words[0]);
	if (!strcmp(command, "corpus") && count == 1)
		return !scenarios_check(words[0]);
	fputs(usage, stderr);
	return 2;
}

int main(int argc, char **argv)
{
	char *words[3] = { NULL };
	int count = 0, taken, i;

	if (argc > 1 && !strcmp(argv[1], "--help")) {
		fputs(usage, stdout);
		return 0;
	}
	for (i = 1; i < argc; i += taken) {
		taken = *argv[i] == '-' ? take_option(argv + i) : 1;
		if (*argv[i] != '-' && count < 3)
			words[count++] = argv[i];
		else if (*argv[i] != '-')
			taken = 0;
		if (!taken) {
			fputs(usage, stderr);
			return 2;
		}
	}
	if (!count) {
		fputs(usage, stderr);
		return 2;
	}
	crash_init();
	/* Two workers of a search are not to have the same machine. */
	if (strcmp(words[0], "search"))
		windows_init();
	return run_command(words[0], count - 1, words + 1);
}
