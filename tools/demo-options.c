/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* kvmfault demo: what was asked for. In: the arguments. Out: a struct demo whose
 * sizes fit the image and this machine, or what is wrong. */

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "demo.h"
#include "tool.h"

#define VCPUS_DEFAULT 4
#define MEMORY_DEFAULT (64ULL << 20)

static const char help[] =
	"Usage: kvmfault demo [OPTION]...\n"
	"Run native guest code on real vCPUs, whose RAM comes from an image\n"
	"page by page as they touch it; then prove that they saw all of it.\n\n"
	"  --image FILE     the image (default: made up, every page different)\n"
	"  --source URI     the image is an NBD server's, as nbd://host/export or\n"
	"                   nbd+unix:///?socket=PATH\n"
	"  --memory SIZE    RAM, as 64M or 1G (default 64M, or the image's size)\n"
	"  --holes N        of an image that is made up, N % are holes\n"
	"  --vcpus N        1 to 256 (default 4)\n"
	"  --scenario NAME  ram (default): missing pages, by userfaultfd\n"
	"                   guest-memfd: lost guest_memfds, by annotated exits\n"
	"  --delivery MODE  how a vCPU's missing page is told: auto (default),\n"
	"                   uffd, marker-exit, kernel-exit\n"
	"  --fill RATE      bring the rest while the guest runs: bytes a second,\n"
	"                   as 200M, or max\n"
	"  --record FILE    save in which order the guest touched its pages\n"
	"  --working-set FILE\n"
	"                   bring the pages of such a file before the guest starts\n"
	"  --settle         leave RAM to the kernel when all of it is there\n"
	"  --no-irqchip     no interrupt controller in the kernel, and no timer\n"
	"  --json           print one JSON object\n"
	"  --help           this text\n\n"
	"Exits with 0 if everything was right, 1 if not, 2 for a wrong option.\n";

static const struct demo_scenario *find_scenario(const char *name)
{
	static const struct demo_scenario *const all[] = {
		&demo_ram, &demo_guest_memfd,
	};
	size_t i;

	for (i = 0; i < sizeof(all) / sizeof(*all); i++)
		if (!strcmp(all[i]->name, name))
			return all[i];
	complain("no scenario '%s'; see kvmfault demo --help", name);
	return NULL;
}

static bool parse_delivery(const char *name, enum kvmfault_delivery *delivery)
{
	unsigned int i;

	for (i = 0; i < KVMFAULT_DELIVERY_COUNT; i++) {
		*delivery = (enum kvmfault_delivery)i;
		if (!strcmp(name, kvmfault_delivery_str(*delivery)))
			return true;
	}
	complain("no delivery mode '%s'; see kvmfault demo --help", name);
	return false;
}

static bool parse_vcpus(const char *text, unsigned int *vcpus)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	*vcpus = (unsigned int)n;
	if (*text >= '0' && *text <= '9' && !*end && n &&
	    n <= MACHINE_MAX_VCPUS)
		return true;
	complain("--vcpus takes 1 to %d, not '%s'", MACHINE_MAX_VCPUS, text);
	return false;
}

static bool parse_holes(const char *text, unsigned int *percent)
{
	uint64_t n;
	bool good = parse_size(text, &n) && n <= 100;

	*percent = (unsigned int)n;
	if (!good)
		complain("--holes takes 0 to 100 per cent, not '%s'", text);
	return good;
}

static bool parse_rate(const char *text, struct demo *demo)
{
	demo->fill = true;
	if (!strcmp(text, "max") ||
	    (parse_size(text, &demo->fill_rate) && demo->fill_rate))
		return true;
	complain("--fill takes bytes a second as 200M, or max, not '%s'", text);
	return false;
}

/* Options that do not go together. */
static bool agree(const struct demo *demo, const struct demo_scenario *scenario)
{
	const char *problem = NULL;

	if (demo->place.path && demo->place.uri)
		problem = "--image and --source are two images: leave out one of them";
	else if (demo->holes && (demo->place.path || demo->place.uri))
		problem = "--holes is for an image that is made up: leave out --image and --source";
	else if (demo->fill && demo->record_path)
		problem = "--record would miss what --fill brings first: leave out one of them";
	else if (scenario != &demo_ram &&
		 (demo->fill || demo->record_path || demo->working_set_path ||
		  demo->settle || demo->holes))
		problem = "--fill, --record, --working-set, --settle and --holes are for --scenario ram";
	if (problem)
		complain("%s", problem);
	return !problem;
}

/* Returns false if the option's argument is wrong, which is told, or the option
 * is not known. */
static bool take_option(int c, struct demo *demo,
			const struct demo_scenario **scenario)
{
	bool good = true;

	switch (c) {
	case 'i':
		demo->place.path = optarg;
		break;
	case 'u':
		demo->place.uri = optarg;
		break;
	case 'm':
		good = parse_size(optarg, &demo->bytes) && demo->bytes;
		if (!good)
			complain("--memory takes a size as 64M, not '%s'",
				 optarg);
		break;
	case 'o':
		good = parse_holes(optarg, &demo->holes);
		break;
	case 'v':
		good = parse_vcpus(optarg, &demo->vcpus);
		break;
	case 's':
		*scenario = find_scenario(optarg);
		good = *scenario;
		break;
	case 'd':
		good = parse_delivery(optarg, &demo->wanted);
		break;
	case 'f':
		good = parse_rate(optarg, demo);
		break;
	case 'r':
		demo->record_path = optarg;
		break;
	case 'w':
		demo->working_set_path = optarg;
		break;
	case 't':
		demo->settle = true;
		break;
	case 'n':
		demo->no_irqchip = true;
		break;
	case 'j':
		demo->json = true;
		break;
	default:
		good = false;
	}
	return good;
}

/* Returns an exit code, or -1: go on. */
static int parse(int argc, char **argv, struct demo *demo,
		 const struct demo_scenario **scenario)
{
	static const struct option options[] = {
		{ "image", required_argument, NULL, 'i' },
		{ "source", required_argument, NULL, 'u' },
		{ "memory", required_argument, NULL, 'm' },
		{ "holes", required_argument, NULL, 'o' },
		{ "vcpus", required_argument, NULL, 'v' },
		{ "scenario", required_argument, NULL, 's' },
		{ "delivery", required_argument, NULL, 'd' },
		{ "fill", required_argument, NULL, 'f' },
		{ "record", required_argument, NULL, 'r' },
		{ "working-set", required_argument, NULL, 'w' },
		{ "settle", no_argument, NULL, 't' },
		{ "no-irqchip", no_argument, NULL, 'n' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	bool good = true;
	int c;

	while (good && (c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'h') {
			fputs(help, stdout);
			return EXIT_OK;
		}
		good = take_option(c, demo, scenario);
	}
	if (good && optind < argc) {
		complain("demo takes no argument '%s'", argv[optind]);
		good = false;
	}
	return good && agree(demo, *scenario) ? -1 : EXIT_USAGE;
}

/* Sizes that only the image tells. Returns an exit code, or -1: go on. */
static int check(struct demo *demo)
{
	bool made_up = !demo->place.path && !demo->place.uri;
	uint64_t size = MEMORY_DEFAULT;

	if (image_size(&demo->place, &size))
		return EXIT_FAILED;
	if (!demo->bytes)
		demo->bytes = size & ~(DEMO_PAGE - 1);
	if (demo->bytes % DEMO_PAGE || demo->bytes / DEMO_PAGE < demo->vcpus) {
		complain("RAM is whole pages of 4K, and at least one for each vCPU");
		return EXIT_USAGE;
	}
	/* In the end all RAM is there, and an image that is made up as well. */
	if (!have_room("the demo", demo->bytes, made_up ? 2 : 1))
		return EXIT_FAILED;
	if (demo->working_set_path) {
		demo->set = load_working_set(demo->working_set_path);
		if (!demo->set)
			return EXIT_FAILED;
	}
	return -1;
}

int demo_options(int argc, char **argv, struct demo *demo,
		 const struct demo_scenario **scenario)
{
	int code;

	*scenario = &demo_ram;
	demo->vcpus = VCPUS_DEFAULT;
	code = parse(argc, argv, demo, scenario);
	return code < 0 ? check(demo) : code;
}
