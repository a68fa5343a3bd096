/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* kvmfault explain: why an address of a running VMM is not mapped. In: the
 * command line. Out: the explanation of explain-causes.c, printed; 0: there is
 * one, 1: there is none, 2: the command line is wrong. It looks twice, so that
 * what is only on its way is not taken for stuck. */

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "explain.h"
#include "tool.h"

enum { LOOKS = 10, BETWEEN_MS = 40 };

static const char help[] =
	"Usage: kvmfault explain --pid PID [--gpa A | --hva A | --all] [OPTION]...\n"
	"Say why an address of a VMM's guest is not mapped, or what its faults wait\n"
	"for. PID may be any process; nothing of it is changed.\n\n"
	"  --pid PID   the process\n"
	"  --gpa A     a guest-physical address\n"
	"  --hva A     an address of the process\n"
	"  --all       all that is seen of it (the default)\n"
	"  --write     would a write work? Without it: a read\n"
	"  --slot GPA:HVA:LENGTH\n"
	"              a memslot of the VM; once for each\n"
	"  --json      one JSON object\n"
	"  --help      this text\n\n"
	"The exit status is 0 if there is an explanation, 1 if there is none, 2 for a\n"
	"wrong command line.\n";

static bool parse_address(const char *text, uint64_t *address)
{
	char *end;

	errno = 0;
	*address = strtoull(text, &end, 0);
	return *text >= '0' && *text <= '9' && !*end && !errno &&
	       *address != NO_ADDRESS;
}

static bool parse_pid(const char *text, pid_t *pid)
{
	uint64_t number;

	if (!parse_address(text, &number) || !number || number > INT32_MAX)
		return false;
	*pid = number;
	return true;
}

static bool take_slot(struct explain_look *look, const char *text)
{
	look->slots = grow_list(look->slots, look->slot_count,
				sizeof(*look->slots));
	return parse_slot(text, &look->slots[look->slot_count++]);
}

struct explain_options {
	bool all, json;
};

/* -1: go on; else an exit code. */
static int parse_option(int c, struct explain_look *look,
			struct explain_options *options)
{
	bool good = true;

	switch (c) {
	case 'p':
		good = parse_pid(optarg, &look->pid);
		break;
	case 'g':
		good = parse_address(optarg, &look->gpa);
		break;
	case 'v':
		good = parse_address(optarg, &look->hva);
		break;
	case 's':
		good = take_slot(look, optarg);
		break;
	case 'a':
		options->all = true;
		break;
	case 'w':
		look->write = true;
		break;
	case 'j':
		options->json = true;
		break;
	case 'h':
		fputs(help, stdout);
		return EXIT_OK;
	default:
		return EXIT_USAGE;
	}
	if (good)
		return -1;
	complain("'%s' is wrong for that option; see kvmfault explain --help",
		 optarg);
	return EXIT_USAGE;
}

static int parse_explain(int argc, char **argv, struct explain_look *look,
			 struct explain_options *options)
{
	static const struct option known[] = {
		{ "pid", required_argument, NULL, 'p' },
		{ "gpa", required_argument, NULL, 'g' },
		{ "hva", required_argument, NULL, 'v' },
		{ "slot", required_argument, NULL, 's' },
		{ "all", no_argument, NULL, 'a' },
		{ "write", no_argument, NULL, 'w' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c, code = -1;

	while (code < 0 &&
	       (c = getopt_long(argc, argv, "jh", known, NULL)) != -1)
		code = parse_option(c, look, options);
	if (code >= 0)
		return code;
	if (optind < argc) {
		complain("explain takes no argument '%s'", argv[optind]);
		return EXIT_USAGE;
	}
	if (!look->pid) {
		complain("explain needs --pid");
		return EXIT_USAGE;
	}
	if ((look->gpa != NO_ADDRESS) + (look->hva != NO_ADDRESS) +
	    options->all > 1) {
		complain("explain takes one of --gpa, --hva and --all");
		return EXIT_USAGE;
	}
	return -1;
}

static void wait_between(void)
{
	struct timespec pause = { .tv_nsec = BETWEEN_MS * 1000000L };

	while (nanosleep(&pause, &pause) && errno == EINTR)
		;
}

/* Something that has not moved yet. */
static bool has_waiter(const struct explain_look *look)
{
	size_t i;

	for (i = 0; i < look->uffd_count; i++)
		if (look->uffds[i].total && look->uffds[i].still)
			return true;
	for (i = 0; i < look->thread_count; i++)
		if (look->threads[i].state == 'D' && look->threads[i].still)
			return true;
	return false;
}

static void repeat_look(struct explain_look *look)
{
	uint64_t before, after;
	bool known = has_waiter(look) && measure_progress(look, &before);
	int i;

	for (i = 1; i < LOOKS && (i == 1 || has_waiter(look)); i++) {
		wait_between();
		compare_uffds(look);
		compare_threads(look);
	}
	look->no_progress = known && i == LOOKS &&
			    measure_progress(look, &after) && before == after;
}

/* All that does not depend on what is asked. */
static void look_at_process(struct explain_look *look)
{
	read_threads(look);
	read_mappings(look);
	read_descriptors(look);
	find_holders(look);
	repeat_look(look);
	read_memory_cgroup(look);
	read_uffd_rights(look);
	if (!look->slot_count)
		guess_slots(look);
}

static void free_look(struct explain_look *look)
{
	size_t i;

	for (i = 0; i < look->thread_count; i++)
		free(look->threads[i].stack);
	for (i = 0; i < look->uffd_count; i++)
		free(look->uffds[i].holders);
	for (i = 0; i < look->denied_count; i++)
		free(look->denied[i].what);
	free(look->threads);
	free(look->uffds);
	free(look->denied);
	free(look->mappings);
	free(look->slots);
}

static int explain_process(struct explain_look *look, bool json)
{
	struct explain_verdict verdict;

	read_process(look);
	if (!look->gone)
		look_at_process(look);
	if (look->gone) {
		complain("cannot see process %d in /proc: %s", look->pid,
			 kill(look->pid, 0) && errno == ESRCH ?
			 "there is none" : "it is there; use a /proc that is "
			 "mounted without hidepid, as its user or as root");
		return EXIT_FAILED;
	}
	verdict = look->hva == NO_ADDRESS && look->gpa == NO_ADDRESS ?
		decide_process(look) : decide_address(look);
	if (json)
		print_json(explanation_json(look, &verdict));
	else
		print_explanation(look, &verdict);
	return verdict.cause == EXPLAIN_UNKNOWN ? EXIT_FAILED : EXIT_OK;
}

int cmd_explain(int argc, char **argv)
{
	struct explain_look look = {
		.gpa = NO_ADDRESS, .hva = NO_ADDRESS,
		.base = sysconf(_SC_PAGESIZE),
	};
	struct explain_options options = { 0 };
	int code = parse_explain(argc, argv, &look, &options);

	if (code < 0)
		code = explain_process(&look, options.json);
	free_look(&look);
	return code;
}
