/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault serve: its events. In: a JSON object of numbers and texts. Out: one
 * line on standard output, written at once, as JSON or for people to read.
 */

#include <inttypes.h>
#include <json-c/json.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "serve.h"
#include "tool.h"

struct json_object *serve_event(const char *event, const struct serve_vm *vm)
{
	struct json_object *object = json_object_new_object();

	serve_add_text(object, "event", event);
	if (vm) {
		serve_add_number(object, "vm", vm->number);
		serve_add_number(object, "ms",
				 (uint64_t)(serve_now() - vm->came));
	}
	return object;
}

void serve_add_number(struct json_object *to, const char *key, uint64_t value)
{
	json_object_object_add(to, key, json_object_new_uint64(value));
}

void serve_add_text(struct json_object *to, const char *key, const char *text)
{
	json_object_object_add(to, key, json_object_new_string(text));
}

/* "came: vm 1, ms 0, pid 4711" */
static void print_readable(FILE *to, struct json_object *event)
{
	struct json_object_iter member;
	const char *before = "";

	json_object_object_foreachC(event, member) {
		const char *text = json_object_get_string(member.val);

		if (!strcmp(member.key, "event")) {
			fprintf(to, "%s", text);
			before = ": ";
			continue;
		}
		fprintf(to, "%s%s %s", before, member.key, text);
		before = ", ";
	}
}

/* A reader that stands still must not keep VMs waiting: its events are lost,
 * and the next one that it gets says how many. */
static bool can_tell(struct json_object *event)
{
	static atomic_uint lost;
	struct pollfd output = { .fd = STDOUT_FILENO, .events = POLLOUT };
	unsigned int count;

	if (!poll(&output, 1, 0)) {
		atomic_fetch_add(&lost, 1);
		return false;
	}
	count = atomic_exchange(&lost, 0);
	if (count)
		serve_add_number(event, "lost", count);
	return true;
}

void serve_tell(const struct serve *serve, struct json_object *event)
{
	char *line = NULL;
	size_t length;
	FILE *to = NULL;

	if (can_tell(event))
		to = open_memstream(&line, &length);
	if (to && serve->json)
		fputs(json_object_to_json_string_ext(event,
						     JSON_C_TO_STRING_PLAIN),
		      to);
	else if (to)
		print_readable(to, event);
	if (to && !fclose(to)) {
		printf("%s\n", line);
		fflush(stdout);
	}
	free(line);
	json_object_put(event);
}

void serve_tell_problem(const struct serve *serve, const struct serve_vm *vm,
			const char *event, const char *what, int err)
{
	struct json_object *object = serve_event(event, vm);

	serve_add_text(object, "why", what);
	if (err)
		serve_add_text(object, "error", strerror(-err));
	serve_tell(serve, object);
}
