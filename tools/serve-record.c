/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault serve: what VMs touch first. In: VMs, each recorded for a while
 * after it came. Out: one file, which has what the first of them touched, and
 * then what each other one had more. It is written each time when a VM's
 * recording is complete.
 */

#include <json-c/json.h>

#include "serve.h"
#include "tool.h"

static int begin_recording(struct serve_vm *vm)
{
	const struct serve *serve = vm->serve;
	struct kvmfault_recording_options options = {
		.size = sizeof(options),
		.memories = vm->memory,
		.memory_count = vm->memories,
		.milliseconds = serve->record_ms,
	};
	int err = image_new_set(&serve->image, &vm->recorded);

	/* Pages that are brought first cannot be seen to be touched. */
	if (!err && serve->set)
		err = kvmfault_working_set_merge(vm->recorded, serve->set);
	options.set = vm->recorded;
	if (!err)
		err = kvmfault_recording_new(vm->vm, &options, &vm->recording);
	if (err) {
		kvmfault_working_set_free(vm->recorded);
		vm->recorded = NULL;
	}
	return err;
}

int serve_record_begin(struct serve_vm *vm)
{
	int err = vm->serve->record_path ? begin_recording(vm) : 0;

	if (!err && vm->recording)
		vm->watch.deadline = serve_now() + vm->serve->record_ms;
	return err;
}

/* The set is the server's from then on. */
static int keep_set(struct serve *serve, struct kvmfault_working_set *set)
{
	int err;

	if (!serve->recorded) {
		serve->recorded = set;
		return 0;
	}
	err = kvmfault_working_set_merge(serve->recorded, set);
	kvmfault_working_set_free(set);
	return err;
}

static void save_all(struct serve *serve, const struct serve_vm *vm)
{
	struct kvmfault_working_set_info info = { .size = sizeof(info) };
	struct json_object *event;

	kvmfault_working_set_describe(serve->recorded, &info);
	/* A VM that went at once leaves the old file alone. */
	if (!info.runs ||
	    !save_working_set(serve->recorded, serve->record_path))
		return;
	event = serve_event("recorded", vm);
	serve_add_number(event, "bytes", info.bytes);
	serve_add_number(event, "runs", info.runs);
	serve_tell(serve, event);
}

void serve_record_end(struct serve_vm *vm)
{
	int err = kvmfault_recording_end(vm->recording);

	vm->watch.deadline = 0;
	if (!err && vm->recorded) {
		err = keep_set(vm->serve, vm->recorded);
		vm->recording = NULL;
		vm->recorded = NULL;
		save_all(vm->serve, vm);
	}
	if (err)
		serve_tell_problem(vm->serve, vm, "problem",
				   "cannot end the recording", err);
}

void serve_record_again(struct serve *serve)
{
	struct serve_vm *vm;
	int err;

	for (vm = serve->vms; vm; vm = vm->next) {
		vm->again = vm->recording;
		serve_record_end(vm);
	}
	kvmfault_working_set_free(serve->recorded);
	serve->recorded = NULL;
	for (vm = serve->vms; vm; vm = vm->next) {
		err = vm->again ? serve_record_begin(vm) : 0;
		if (err)
			serve_tell_problem(serve, vm, "problem",
					   "cannot record it anew", err);
	}
}
