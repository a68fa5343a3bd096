/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What is known before a search. In: options of the command line, and a file
 * with the faults that the library is known to have. Out: what plans are made
 * of, and which fault's a failure is.
 */

#include <string.h>

#include "known.h"

#define KNOWN 64

struct ingredients ingredients = {
	.option = { [0 ... OPTION_COUNT - 1] = true },
	.step = { [0 ... STEP_COUNT - 1] = true },
};

static struct known {
	char fault[32];
	struct pattern pattern;
} known[KNOWN];
static unsigned int known_count;

/* Each name's place in allowed[] becomes this. */
static bool allow(bool *allowed, bool value, int (*find)(const char *),
		  const char *names)
{
	char name[64];
	size_t length;
	int n;

	for (; *names; names += length + (names[length] == ',')) {
		length = strcspn(names, ",");
		snprintf(name, sizeof(name), "%.*s", (int)length, names);
		n = find(name);
		if (n < 0) {
			fprintf(stderr, "sim: there is no %s\n", name);
			return false;
		}
		allowed[n] = value;
	}
	return true;
}

bool without_options(const char *names)
{
	return allow(ingredients.option, false, plan_option, names);
}

bool without_steps(const char *names)
{
	return allow(ingredients.step, false, plan_step, names);
}

bool only_options(const char *names)
{
	memset(ingredients.option, false, sizeof(ingredients.option));
	return allow(ingredients.option, true, plan_option, names);
}

bool only_steps(const char *names)
{
	memset(ingredients.step, false, sizeof(ingredients.step));
	return allow(ingredients.step, true, plan_step, names);
}

void pattern_read(struct pattern *pattern, const char *text)
{
	const char *mark = strstr(text, " ~ ");
	int length = (int)(mark ? (size_t)(mark - text) : strlen(text));

	snprintf(pattern->kind, sizeof(pattern->kind), "%.*s", length, text);
	snprintf(pattern->text, sizeof(pattern->text), "%s",
		 mark ? mark + 3 : "");
}

bool pattern_fits(const struct pattern *pattern, const struct outcome *outcome)
{
	return outcome->kind[0] && strstr(outcome->text, pattern->text) &&
	       !strncmp(outcome->kind, pattern->kind, strlen(pattern->kind));
}

static bool read_known(const char *line)
{
	struct known *next = &known[known_count];
	int at = 0;

	if (known_count == KNOWN ||
	    sscanf(line, "%31s %n", next->fault, &at) != 1 || !line[at])
		return false;
	pattern_read(&next->pattern, line + at);
	known_count++;
	return true;
}

static bool read_line(const char *line)
{
	if (!strncmp(line, "known ", 6))
		return read_known(line + 6);
	if (!strncmp(line, "without option ", 15))
		return without_options(line + 15);
	if (!strncmp(line, "without step ", 13))
		return without_steps(line + 13);
	return !*line;
}

bool known_read(const char *path)
{
	FILE *file = fopen(path, "r");
	char line[256];
	bool good = true;

	if (!file) {
		fprintf(stderr, "sim: cannot read %s\n", path);
		return false;
	}
	while (good && fgets(line, sizeof(line), file)) {
		line[strcspn(line, "#\n")] = '\0';
		good = read_line(line);
		if (!good)
			fprintf(stderr, "sim: %s: not understood: %s\n", path,
				line);
	}
	fclose(file);
	return good;
}

const char *known_fault(const struct outcome *outcome)
{
	unsigned int i;

	for (i = 0; i < known_count; i++)
		if (pattern_fits(&known[i].pattern, outcome))
			return known[i].fault;
	return NULL;
}
