/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* The program kvmfault: picks the subcommand. */

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <json-c/json.h>

#include "tool.h"

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *what;
} commands[] = {
	{ "bench", cmd_bench, "how fast a guest gets its pages, in several ways" },
	{ "demo", cmd_demo, "run real vCPUs out of an image, page by page" },
	{ "explain", cmd_explain, "why an address of a running VM is not mapped" },
	{ "probe", cmd_probe, "what this kernel offers" },
	{ "serve", cmd_serve, "bring the pages of VMs that are restored" },
	{ "working-set", cmd_working_set, "what guests touch first: print, merge" },
};
#define COMMANDS (sizeof(commands) / sizeof(*commands))

static void usage(FILE *to)
{
	size_t i;

	fputs("Usage: kvmfault COMMAND [OPTION]...\n"
	      "Answers the memory faults of KVM guests.\n\nCommands:\n", to);
	for (i = 0; i < COMMANDS; i++)
		fprintf(to, "  %-11s %s\n", commands[i].name, commands[i].what);
	fputs("\n  --help      this text; after a command, its own\n"
	      "  --version   the version\n", to);
}

void complain(const char *format, ...)
{
	va_list args;

	fputs("kvmfault: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
}

void complain_errno(int err, const char *what)
{
	complain("cannot %s: %s", what, strerror(err < 0 ? -err : err));
}

int parse_json(int argc, char **argv, const char *help, bool *json)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "jh", options, NULL)) != -1) {
		if (c == 'h') {
			fputs(help, stdout);
			return EXIT_OK;
		}
		if (c != 'j')
			return EXIT_USAGE;
		*json = true;
	}
	return -1;
}

void print_json(struct json_object *object)
{
	puts(json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY |
					    JSON_C_TO_STRING_SPACED));
	json_object_put(object);
}

/* What is opened must not become one of the three standard descriptors, where
 * they were closed. To use them still fails. */
static bool fill_standard_descriptors(void)
{
	int fd;

	do
		fd = open("/dev/null", O_PATH);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

/* What was printed has to have arrived. */
static int finish(int code)
{
	bool lost = ferror(stdout);
	int err = fflush(stdout) ? errno : 0;

	if (!lost && !err)
		return code;
	complain("cannot write to the standard output: %s",
		 err ? strerror(err) : "some of it is lost");
	return EXIT_FAILED;
}

static int run(int argc, char **argv)
{
	size_t i;

	if (argc < 2) {
		usage(stderr);
		return EXIT_USAGE;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")) {
		usage(stdout);
		return EXIT_OK;
	}
	if (!strcmp(argv[1], "--version")) {
		printf("kvmfault %s\n", kvmfault_version());
		return EXIT_OK;
	}
	for (i = 0; i < COMMANDS; i++)
		if (!strcmp(argv[1], commands[i].name))
			return commands[i].run(argc - 1, argv + 1);
	complain("no command '%s'; see kvmfault --help", argv[1]);
	return EXIT_USAGE;
}

int main(int argc, char **argv)
{
	if (!fill_standard_descriptors()) {
		complain_errno(errno, "open /dev/null");
		return EXIT_FAILED;
	}
	return finish(run(argc, argv));
}
