/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What a restore does beside demand: the working set before the guest starts,
 * the rest while it runs, and in the end the memory is left to the kernel. In: a
 * memory whose guest is ready to run. Out: its pages, and when they were there.
 */

#include <errno.h>
#include <poll.h>
#include <string.h>

#include "demo.h"
#include "tool.h"

#define FILL_THREADS 2

static double since_began(const struct demo *demo)
{
	return demo_now() - demo->began;
}

/* The guest may run already; one thread calls this at a time. */
static void note_resident(struct demo *demo)
{
	if (atomic_load(&demo->all_there))
		return;
	demo->resident = since_began(demo);
	atomic_store(&demo->all_there, true);
}

/* ---- the working set, before the guest starts ---- */

int restore_match(struct demo *demo)
{
	if (demo->set)
		return image_match_set(&demo->image, demo->set,
				       demo->working_set_path);
	return demo->record_path ? image_new_set(&demo->image, &demo->set) : 0;
}

/* How many runs of the set are in RAM, which may be a part of the image. */
static uint64_t count_runs(const struct demo *demo)
{
	uint64_t i, offset, length, runs = 0;

	for (i = 0; !kvmfault_working_set_run(demo->set, i, &offset, &length);
	     i++)
		runs += offset < demo->bytes;
	return runs;
}

/* One step of the fill, on this thread. */
static int step(struct kvmfault_fill *fill)
{
	int ms, err = kvmfault_fill_dispatch(fill, &ms);

	if (!err && ms > 0)
		poll(NULL, 0, ms);
	return err;
}

/* Brings the set, and nothing else. To ask for the progress is to look at all
 * pages: as a step brings no more than one run, the first question comes when
 * each run had its step. */
static int replay(struct demo *demo)
{
	struct kvmfault_fill_progress progress = { .size = sizeof(progress) };
	struct kvmfault_fill_options options = {
		.size = sizeof(options),
		.memories = &demo->memory,
		.memory_count = 1,
		.first = demo->set,
	};
	uint64_t left = count_runs(demo);
	struct kvmfault_fill *fill;
	int err = kvmfault_fill_new(demo->vm, &options, &fill);

	progress.replaying = left;
	while (!err && progress.replaying) {
		err = step(fill);
		if (left)
			left--;
		if (!err && !left)
			err = kvmfault_fill_progress(fill, &progress);
	}
	kvmfault_fill_free(fill);
	demo->working_set = since_began(demo);
	if (!err && progress.over)
		note_resident(demo);
	return err;
}

/* ---- while the guest runs ---- */

static void fill_progress(void *data,
			  const struct kvmfault_fill_progress *progress)
{
	if (progress->over)
		note_resident(data);
}

static int start_fill(struct demo *demo)
{
	struct kvmfault_fill_options options = {
		.size = sizeof(options),
		.memories = &demo->memory,
		.memory_count = 1,
		.threads = FILL_THREADS,
		.rate = demo->fill_rate,
		.progress = fill_progress,
		.data = demo,
	};

	return kvmfault_fill_new(demo->vm, &options, &demo->filling);
}

static int start_recording(struct demo *demo)
{
	struct kvmfault_recording_options options = {
		.size = sizeof(options),
		.set = demo->set,
		.memories = &demo->memory,
		.memory_count = 1,
		.bytes = demo->bytes,
	};

	return kvmfault_recording_new(demo->vm, &options, &demo->recording);
}

void restore_begin(struct demo *demo)
{
	int err = 0;

	if (demo->working_set_path)
		err = replay(demo);
	if (err) {
		demo_fail(demo, "cannot bring the working set: %s",
			  strerror(-err));
		return;
	}
	if (demo->record_path)
		err = start_recording(demo);
	if (!err && demo->fill)
		err = start_fill(demo);
	if (err)
		demo_fail(demo, "cannot start to record or fill: %s",
			  strerror(-err));
}

static void end_fill(struct demo *demo)
{
	kvmfault_fill_free(demo->filling);
	demo->filling = NULL;
}

/* The vCPUs run on. A page that a fault has in hand just now is left to the next
 * tick. */
void restore_tick(struct demo *demo)
{
	if (!demo->settle || demo->settled || !atomic_load(&demo->all_there))
		return;
	end_fill(demo);
	demo->settled = !kvmfault_memory_settle(demo->memory, NULL);
}

/* ---- the guest is done, and has touched all pages ---- */

static int save_recording(struct demo *demo)
{
	int err = kvmfault_recording_end(demo->recording);

	if (err) {
		complain_errno(err, "end the recording");
		return err;
	}
	demo->recording = NULL;
	return save_working_set(demo->set, demo->record_path) ? 0 : -EIO;
}

static int settle(struct demo *demo)
{
	uint64_t left = 0;
	int err = kvmfault_memory_settle(demo->memory, &left);

	demo->settled = !err;
	if (err)
		complain("cannot settle RAM, for %llu pages of it: %s",
			 (unsigned long long)left, strerror(-err));
	return err;
}

int restore_end(struct demo *demo)
{
	int err = 0;

	end_fill(demo);
	if (!atomic_load(&demo->all_there) || demo->resident > demo->touched)
		demo->resident = demo->touched;
	if (demo->recording)
		err = save_recording(demo);
	if (!err && demo->settle && !demo->settled)
		err = settle(demo);
	return err;
}

void restore_drop(struct demo *demo)
{
	end_fill(demo);
	kvmfault_recording_end(demo->recording);
	demo->recording = NULL;
}
