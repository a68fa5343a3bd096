/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* kvmfault bench: its command line. In: arguments. Out: options that can be
 * run, or a message and an exit code. */

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "tool.h"

#define PAGE 4096ULL
#define WINDOW_MAX 16384
#define THREADS_MAX 256
#define LATENCY_MAX 10000000

static const char help[] =
	"Usage: kvmfault bench [OPTION]...\n"
	"Demand-page a guest on real vCPUs, in several ways that take turns,\n"
	"and say how many pages came each second.\n\n"
	"  --modes A,B,...     which ways, see below (default: all)\n"
	"  --vcpus N[,N...]    1 to 256 (default 1)\n"
	"  --memory SIZE[,...] the guest's RAM (default 32M)\n"
	"  --touch N           pages that the guest touches, spread over the RAM\n"
	"                      (default: all)\n"
	"  --page-size SIZE    4K (default) or a huge page's, as 2M\n"
	"  --window N          pages that one fault brings (default 1)\n"
	"  --pattern NAME      sequential (default): each vCPU its own part\n"
	"                      random: parts with pages from everywhere\n"
	"                      strided: every 16th page, then those beside them\n"
	"                      shared: all vCPUs all pages, in the same order\n"
	"  --access NAME       the guest's first access: read (default), write\n"
	"  --source NAME       where pages come from: memory (default), file\n"
	"  --latency-us N      how long the source takes (default 0)\n"
	"  --resolver NAME     how pages are installed: copy (default), continue\n"
	"  --threads N         readers of userfaultfd (default 1)\n"
	"  --runs N            runs of each way (default 9)\n"
	"  --json              print one JSON object\n"
	"  --plot FILE.svg     a picture, if there is gnuplot, and FILE.dat\n"
	"  --help              this text\n\nModes:\n";

static void print_help(void)
{
	const struct bench_mode *const *mode;

	fputs(help, stdout);
	for (mode = bench_modes; *mode; mode++)
		printf("  %-13s %s\n", (*mode)->name, (*mode)->what);
	puts("\nExits with 0 if something was measured and every page was right, 1 if not,\n"
	     "2 for a wrong option.");
}

static bool number(const char *option, const char *text, uint64_t least,
		   uint64_t most, uint64_t *value)
{
	char *end;

	*value = strtoull(text, &end, 10);
	if (*text >= '0' && *text <= '9' && !*end && *value >= least &&
	    *value <= most)
		return true;
	complain("--%s takes %llu to %llu, not '%s'", option,
		 (unsigned long long)least, (unsigned long long)most, text);
	return false;
}

/* The words of a list with commas, each given to add(). */
static bool list(struct bench_options *options, const char *option, char *text,
		 size_t *count,
		 bool (*add)(struct bench_options *options, const char *word))
{
	char *rest = text, *word;

	*count = 0;
	while ((word = strsep(&rest, ","))) {
		if (*count == BENCH_LIST) {
			complain("--%s takes up to %d values", option,
				 BENCH_LIST);
			return false;
		}
		if (!add(options, word))
			return false;
	}
	return true;
}

static bool add_mode(struct bench_options *options, const char *name)
{
	const struct bench_mode *const *mode;
	size_t i;

	for (i = 0; i < options->modes; i++) {
		if (strcmp(options->mode[i]->name, name))
			continue;
		complain("--modes has '%s' twice", name);
		return false;
	}
	for (mode = bench_modes; *mode; mode++) {
		if (strcmp((*mode)->name, name))
			continue;
		options->mode[options->modes++] = *mode;
		return true;
	}
	complain("no mode '%s'; see kvmfault bench --help", name);
	return false;
}

static bool add_vcpus(struct bench_options *options, const char *text)
{
	return number("vcpus", text, 1, MACHINE_MAX_VCPUS,
		      &options->vcpus[options->vcpu_counts++]);
}

static bool size(const char *option, const char *text, uint64_t *bytes)
{
	if (parse_size(text, bytes) && *bytes)
		return true;
	complain("--%s takes a size as 64M, not '%s'", option, text);
	return false;
}

static bool add_memory(struct bench_options *options, const char *text)
{
	return size("memory", text, &options->memory[options->memories++]);
}

/* One of two words: sets *second. */
static bool either(const char *option, const char *text, const char *first,
		   const char *other, bool *second)
{
	*second = !strcmp(text, other);
	if (*second || !strcmp(text, first))
		return true;
	complain("--%s takes %s or %s, not '%s'", option, first, other, text);
	return false;
}

static bool set_pattern(struct bench_options *options, const char *name)
{
	size_t i;

	for (i = 0; i < bench_pattern_count; i++) {
		if (strcmp(bench_patterns[i].name, name))
			continue;
		options->pattern = &bench_patterns[i];
		return true;
	}
	complain("no pattern '%s'; see kvmfault bench --help", name);
	return false;
}

static bool set(struct bench_options *o, const char *name, int option,
		char *text)
{
	switch (option) {
	case 'm':
		return list(o, name, text, &o->modes, add_mode);
	case 'v':
		return list(o, name, text, &o->vcpu_counts, add_vcpus);
	case 'M':
		return list(o, name, text, &o->memories, add_memory);
	case 't':
		return number(name, text, 1, UINT32_MAX, &o->touch);
	case 's':
		return size(name, text, &o->page_size);
	case 'w':
		return number(name, text, 1, WINDOW_MAX, &o->window);
	case 'p':
		return set_pattern(o, text);
	case 'a':
		return either(name, text, "read", "write", &o->write);
	case 'S':
		return either(name, text, "memory", "file", &o->file);
	case 'l':
		return number(name, text, 0, LATENCY_MAX, &o->latency_us);
	case 'R':
		return either(name, text, "copy", "continue", &o->minor);
	case 'T':
		return number(name, text, 1, THREADS_MAX, &o->threads);
	case 'r':
		return number(name, text, 1, BENCH_RUNS, &o->runs);
	case 'P':
		o->plot = text;
		return true;
	case 'j':
		o->json = true;
		return true;
	}
	return false;
}

uint64_t bench_pages(const struct bench_options *options, uint64_t bytes)
{
	return bytes / options->page_size;
}

uint64_t bench_touched(const struct bench_options *options, uint64_t bytes)
{
	uint64_t pages = bench_pages(options, bytes);

	return options->touch && options->touch < pages ? options->touch :
							  pages;
}

/* What only all of them together tell. */
static bool check(const struct bench_options *o)
{
	size_t m, v;

	if (o->page_size < PAGE || o->page_size & (o->page_size - 1)) {
		complain("--page-size is 4K, or that of a huge page");
		return false;
	}
	if (o->window * o->page_size > 1ULL << 30) {
		complain("--window is up to 1G of pages");
		return false;
	}
	for (m = 0; m < o->memories; m++) {
		for (v = 0; v < o->vcpu_counts; v++) {
			if (o->memory[m] % o->page_size == 0 &&
			    bench_touched(o, o->memory[m]) >= o->vcpus[v])
				continue;
			complain("--memory is whole pages, and the guest touches at least one with each vCPU");
			return false;
		}
	}
	return true;
}

static void set_defaults(struct bench_options *o)
{
	const struct bench_mode *const *mode;

	if (!o->vcpu_counts)
		o->vcpus[o->vcpu_counts++] = 1;
	if (!o->memories)
		o->memory[o->memories++] = 32ULL << 20;
	if (!o->modes)
		for (mode = bench_modes; *mode; mode++)
			o->mode[o->modes++] = *mode;
}

int bench_parse(int argc, char **argv, struct bench_options *options)
{
	static const struct option known[] = {
		{ "modes", required_argument, NULL, 'm' },
		{ "vcpus", required_argument, NULL, 'v' },
		{ "memory", required_argument, NULL, 'M' },
		{ "touch", required_argument, NULL, 't' },
		{ "page-size", required_argument, NULL, 's' },
		{ "window", required_argument, NULL, 'w' },
		{ "pattern", required_argument, NULL, 'p' },
		{ "access", required_argument, NULL, 'a' },
		{ "source", required_argument, NULL, 'S' },
		{ "latency-us", required_argument, NULL, 'l' },
		{ "resolver", required_argument, NULL, 'R' },
		{ "threads", required_argument, NULL, 'T' },
		{ "runs", required_argument, NULL, 'r' },
		{ "json", no_argument, NULL, 'j' },
		{ "plot", required_argument, NULL, 'P' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c, which;

	*options = (struct bench_options){
		.page_size = PAGE,
		.window = 1,
		.threads = 1,
		.runs = 9,
		.pattern = &bench_patterns[0],
	};
	while ((c = getopt_long(argc, argv, "", known, &which)) != -1) {
		if (c == 'h') {
			print_help();
			return EXIT_OK;
		}
		if (c == '?' || !set(options, known[which].name, c, optarg))
			return EXIT_USAGE;
	}
	if (optind < argc) {
		complain("bench takes no argument '%s'", argv[optind]);
		return EXIT_USAGE;
	}
	set_defaults(options);
	return check(options) ? -1 : EXIT_USAGE;
}
