/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: working sets. In: runs of an image in the order
 * in which they were touched, which may overlap. Out: the same order without
 * what came earlier; runs that follow each other are one. An error leaves a set
 * as it was.
 */

#include <string.h>

#include "working-set.h"

/* ---- the parts of runs that were not taken before ---- */

/*
 * The edges of all runs, sorted. Between two that follow each other lies a
 * piece that each run has as a whole or not at all. next[i] leads to the first
 * piece from i on that no run has taken.
 */
struct pieces {
	uint64_t *edge, *next;
	uint64_t edges;
};

static void pieces_merge(const uint64_t *from, uint64_t *to, uint64_t start,
			 uint64_t middle, uint64_t end)
{
	uint64_t left = start, right = middle;

	for (; start < end; start++)
		if (right == end ||
		    (left < middle && from[left] <= from[right]))
			to[start] = from[left++];
		else
			to[start] = from[right++];
}

static void pieces_sort(struct pieces *pieces)
{
	uint64_t count = pieces->edges, width, start;

	for (width = 1; width < count; width *= 2) {
		uint64_t *from = pieces->edge, *to = pieces->next;

		for (start = 0; start < count; start += 2 * width) {
			uint64_t left = count - start;
			uint64_t middle = left < width ? left : width;
			uint64_t end = left < 2 * width ? left : 2 * width;

			pieces_merge(from, to, start, start + middle,
				     start + end);
		}
		pieces->edge = to;
		pieces->next = from;
	}
}

static void pieces_add_edges(struct pieces *pieces,
			     const struct kvmfault__image_run *run,
			     uint64_t runs)
{
	for (; runs; runs--, run++) {
		pieces->edge[pieces->edges++] = run->offset;
		pieces->edge[pieces->edges++] = run->offset + run->length;
	}
}

/* Returns the first piece from here on that was not taken. */
static uint64_t pieces_find_free(struct pieces *pieces, uint64_t i)
{
	uint64_t *next = pieces->next;

	while (next[i] != i) {
		next[i] = next[next[i]];
		i = next[i];
	}
	return i;
}

static uint64_t pieces_find_edge(const struct pieces *pieces, uint64_t offset)
{
	uint64_t first = 0, end = pieces->edges;

	while (first < end) {
		uint64_t middle = first + (end - first) / 2;

		if (pieces->edge[middle] < offset)
			first = middle + 1;
		else
			end = middle;
	}
	return first;
}

/* Takes the first part of the rest of a run that was not taken before. The rest
 * then begins behind it. Returns false if there is none. */
static bool pieces_take(struct pieces *pieces, struct kvmfault__image_run *rest,
			struct kvmfault__image_run *part)
{
	const uint64_t *edge = pieces->edge;
	uint64_t end = rest->offset + rest->length;
	uint64_t i = pieces_find_free(pieces, pieces_find_edge(pieces,
							rest->offset));

	if (edge[i] >= end)
		return false;
	part->offset = edge[i];
	for (; edge[i] < end && pieces->next[i] == i; i++)
		pieces->next[i] = i + 1;
	part->length = edge[i] - part->offset;
	rest->offset = edge[i];
	rest->length = end - edge[i];
	return true;
}

/* ---- the set ---- */

static int set_make_room(struct kvmfault_working_set *set)
{
	uint64_t room = set->room ? 2 * set->room : 64;
	struct kvmfault__image_run *run;

	run = kvmfault__sys_alloc(room * sizeof(*run), 0);
	if (!run)
		return -ENOMEM;
	if (set->run)
		memcpy(run, set->run, set->runs * sizeof(*run));
	kvmfault__sys_free(set->run);
	set->run = run;
	set->room = room;
	return 0;
}

static int set_append(struct kvmfault_working_set *set,
		      const struct kvmfault__image_run *part)
{
	struct kvmfault__image_run *last = NULL;
	int err = 0;

	if (set->runs)
		last = &set->run[set->runs - 1];
	if (last && last->offset + last->length == part->offset) {
		last->length += part->length;
	} else {
		if (set->runs == set->room)
			err = set_make_room(set);
		if (err)
			return err;
		set->run[set->runs++] = *part;
	}
	set->bytes += part->length;
	return 0;
}

static int set_add_free_parts(struct kvmfault_working_set *set,
			      struct pieces *pieces,
			      const struct kvmfault__image_run *run,
			      uint64_t runs)
{
	struct kvmfault__image_run rest, part;
	uint64_t i, had = set->runs, bytes = set->bytes;
	struct kvmfault__image_run last = { 0 };

	if (had)
		last = set->run[had - 1];
	for (i = 0; i < had; i++)
		for (rest = set->run[i]; pieces_take(pieces, &rest, &part);)
			;
	for (i = 0; i < runs; i++)
		for (rest = run[i]; pieces_take(pieces, &rest, &part);)
			if (set_append(set, &part))
				goto undo;
	return 0;
undo:
	if (had)
		set->run[had - 1] = last;
	set->runs = had;
	set->bytes = bytes;
	return -ENOMEM;
}

int kvmfault__working_set_add(struct kvmfault_working_set *set,
			      const struct kvmfault__image_run *run,
			      uint64_t runs)
{
	struct pieces pieces = { 0 };
	uint64_t i, *memory;
	int err;

	if (!runs)
		return 0;
	/* Two edges for each run, and as much again for the sort. */
	memory = kvmfault__sys_alloc(4 * (set->runs + runs) * sizeof(*memory),
				     0);
	if (!memory)
		return -ENOMEM;
	pieces.edge = memory;
	pieces.next = memory + 2 * (set->runs + runs);
	pieces_add_edges(&pieces, set->run, set->runs);
	pieces_add_edges(&pieces, run, runs);
	pieces_sort(&pieces);
	for (i = 0; i < pieces.edges; i++)
		pieces.next[i] = i;
	err = set_add_free_parts(set, &pieces, run, runs);
	kvmfault__sys_free(memory);
	return err;
}

KVMFAULT__EXPORT
int kvmfault_working_set_new(const struct kvmfault_working_set_options *options,
			     struct kvmfault_working_set **set)
{
	struct kvmfault_working_set_options ours;
	struct kvmfault_working_set *new;
	int err;

	if (!set)
		return -EINVAL;
	*set = NULL;
	err = kvmfault__options(&ours, sizeof(ours), options);
	if (err)
		return err;
	if (!ours.image_length)
		return -EINVAL;
	new = kvmfault__sys_alloc(sizeof(*new), 0);
	if (!new)
		return -ENOMEM;
	new->image_length = ours.image_length;
	memcpy(new->identity, ours.identity, sizeof(new->identity));
	*set = new;
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_working_set_free(struct kvmfault_working_set *set)
{
	if (set)
		kvmfault__sys_free(set->run);
	kvmfault__sys_free(set);
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_working_set_describe(const struct kvmfault_working_set *set,
				  struct kvmfault_working_set_info *info)
{
	struct kvmfault_working_set_info ours = { .size = sizeof(ours) };

	if (!set)
		return -EINVAL;
	ours.image_length = set->image_length;
	memcpy(ours.identity, set->identity, sizeof(ours.identity));
	ours.runs = set->runs;
	ours.bytes = set->bytes;
	return kvmfault__options_out(info, &ours, sizeof(ours));
}

KVMFAULT__EXPORT
int kvmfault_working_set_run(const struct kvmfault_working_set *set,
			     uint64_t index, uint64_t *offset,
			     uint64_t *length)
{
	if (!set || !offset || !length)
		return -EINVAL;
	if (index >= set->runs)
		return -ENOENT;
	*offset = set->run[index].offset;
	*length = set->run[index].length;
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_working_set_merge(struct kvmfault_working_set *set,
			       const struct kvmfault_working_set *other)
{
	if (!set || !other)
		return -EINVAL;
	if (set->image_length != other->image_length ||
	    memcmp(set->identity, other->identity, sizeof(set->identity)))
		return -EXDEV;
	return kvmfault__working_set_add(set, other->run, other->runs);
}
