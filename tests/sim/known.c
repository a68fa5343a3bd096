/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What is known before a search. In: options of the command line, and a file
 * with the faults that the library is known to have. Out: what plans are made
 * of, and which fault's a failure is.
 */

#include <ctype.h>
#include <string.h>

#include "known.h"

#define KNOWN 256
#define CONDITIONS 4

struct ingredients ingredients = {
	.option = { [0 ... OPTION_COUNT - 1] = true },
	.step = { [0 ... STEP_COUNT - 1] = true },
};

/* An ingredient of a plan: an option that is on, or has that value; or a step. */
struct condition {
	int option, value;		/* value -1: any but 0 */
	int step;			/* -1: it is an option */
};

static struct known {
	char fault[32];
	struct condition condition[CONDITIONS];
	unsigned int conditions;	/* that all have to be so */
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

/* NAME, NAME=VALUE or +STEP */
static bool read_condition(struct condition *condition, const char *word)
{
	char name[64];

	*condition = (struct condition){ .value = -1, .step = -1 };
	if (word[0] == '+') {
		condition->step = plan_step(word + 1);
		return condition->step >= 0;
	}
	if (sscanf(word, "%63[^=]=%d", name, &condition->value) < 1)
		return false;
	condition->option = plan_option(name);
	return condition->option >= 0;
}

/* The text up to the next bar, without the blanks around it. */
static const char *next_field(const char *line, char *field, size_t size)
{
	size_t length = strcspn(line, "|"), end = length;

	while (end && isspace((unsigned char)line[end - 1]))
		end--;
	snprintf(field, size, "%.*s", (int)end, line);
	line += length + (line[length] == '|');
	return line + strspn(line, " \t");
}

/* FAULT | CONDITION... | KIND | TEXT; the last may be missing */
static bool read_known(const char *line)
{
	struct known *next = &known[known_count];
	char field[128], *word, *more;

	if (known_count == KNOWN)
		return false;
	line = next_field(line, next->fault, sizeof(next->fault));
	line = next_field(line, field, sizeof(field));
	for (word = strtok_r(field, " ", &more); word;
	     word = strtok_r(NULL, " ", &more))
		if (next->conditions == CONDITIONS ||
		    !read_condition(&next->condition[next->conditions++], word))
			return false;
	line = next_field(line, next->pattern.kind, sizeof(next->pattern.kind));
	next_field(line, next->pattern.text, sizeof(next->pattern.text));
	known_count++;
	return next->fault[0] && next->pattern.kind[0];
}

static bool has_step(const struct plan *plan, int step)
{
	unsigned int i, k;

	for (i = 0; i < plan->actors; i++)
		for (k = 0; k < plan->actor[i].steps; k++)
			if (plan->actor[i].step[k].what == step)
				return true;
	return false;
}

static bool holds(const struct condition *condition, const struct plan *plan)
{
	uint8_t value;

	if (condition->step >= 0)
		return has_step(plan, condition->step);
	value = plan->option[condition->option];
	return condition->value < 0 ? value : value == condition->value;
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

const char *known_fault(const struct plan *plan, const struct outcome *outcome)
{
	unsigned int i, k;

	for (i = 0; i < known_count; i++) {
		for (k = 0; k < known[i].conditions; k++)
			if (!holds(&known[i].condition[k], plan))
				break;
		if (k == known[i].conditions &&
		    pattern_fits(&known[i].pattern, outcome))
			return known[i].fault;
	}
	return NULL;
}
