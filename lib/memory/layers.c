/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Layers: a source that lies on another one. In: a range of bytes. Out: each of
 * its bytes from the layer that has it: from the one above, or where that has a
 * hole, or has ended, from the one below. A border may lie anywhere. A layer
 * that fails, or that was cut off, is an error, whatever the other one has.
 */

#include <string.h>

#include "memory.h"

struct layers {
	struct kvmfault_source above, below;
};

/* Ask one layer. Where it has ended it has a hole: there, -ENODATA. */
static int layers_ask_one(const struct kvmfault_source *source,
			  uint64_t offset, uint64_t *length)
{
	if (source->length && offset >= source->length)
		return -ENODATA;
	if (source->length && *length > source->length - offset)
		*length = source->length - offset;
	return kvmfault__source_extent(source, offset, length);
}

/* Says how the layer above is there. Past its end it has a hole. */
static int layers_find_above(const struct layers *layers, uint64_t offset,
			     uint64_t *length)
{
	const struct kvmfault_source *above = &layers->above;

	return above->length && offset >= above->length ?
	       KVMFAULT_EXTENT_HOLE : layers_ask_one(above, offset, length);
}

/* Find the layer that has the bytes from the offset on, and for how many it
 * does. Returns what they are, or -errno. */
static int layers_find(const struct layers *layers, uint64_t offset,
		       uint64_t *length, const struct kvmfault_source **layer)
{
	int kind = layers_find_above(layers, offset, length);

	*layer = &layers->above;
	if (kind != KVMFAULT_EXTENT_HOLE)
		return kind;
	*layer = &layers->below;
	return layers_ask_one(*layer, offset, length);
}

static int layers_read(void *data, uint64_t offset, void *buffer,
		       size_t length)
{
	const struct layers *layers = data;
	char *to = buffer;
	int err = 0;

	while (length && !err) {
		uint64_t part = length;
		int kind = layers_find_above(data, offset, &part);

		if (kind < 0)
			return kind;
		if (kind == KVMFAULT_EXTENT_ZERO)
			memset(to, 0, part);
		else
			err = kvmfault__source_read(kind ? &layers->below :
						    &layers->above, offset,
						    to, part);
		offset += part;
		to += part;
		length -= part;
	}
	return err;
}

static int layers_extent(void *data, uint64_t offset, uint64_t *length)
{
	const struct kvmfault_source *layer;

	return layers_find(data, offset, length, &layer);
}

/* If anything is in the way, the bytes are read: that says what it is. */
static const void *layers_view(void *data, uint64_t offset, size_t length)
{
	const struct kvmfault_source *layer;
	uint64_t part = length;

	if (layers_find(data, offset, &part, &layer) != KVMFAULT_EXTENT_DATA ||
	    part != length || !layer->view ||
	    !kvmfault__source_reaches(layer, offset + length))
		return NULL;
	return layer->view(layer->data, offset, length);
}

static void layers_free(void *data)
{
	struct layers *layers = data;

	kvmfault_source_free(&layers->above);
	kvmfault_source_free(&layers->below);
	kvmfault__sys_free(layers);
}

static uint64_t layers_max(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static int layers_fill(struct layers *layers, struct kvmfault_source *source)
{
	const struct kvmfault_source *above = &layers->above;
	const struct kvmfault_source *below = &layers->below;
	struct kvmfault_source ours = {
		.name = "over",
		.read = layers_read,
		.data = layers,
		.chunk = layers_max(above->chunk, below->chunk),
		.extent = layers_extent,
		.free = layers_free,
	};

	if (!above->extent)
		return -EINVAL;
	if (!above->read || !below->read)
		return -EOPNOTSUPP;
	if (above->length && below->length)
		ours.length = layers_max(above->length, below->length);
	if (above->view || below->view)
		ours.view = layers_view;
	return kvmfault__options_out(source, &ours, sizeof(ours));
}

KVMFAULT__EXPORT
int kvmfault_source_over(const struct kvmfault_source *above,
			 const struct kvmfault_source *below,
			 struct kvmfault_source *source)
{
	struct layers *layers = kvmfault__sys_alloc(sizeof(*layers), 0);
	int err;

	if (!layers)
		return -ENOMEM;
	err = kvmfault__options(&layers->above, sizeof(*above), above);
	if (!err)
		err = kvmfault__options(&layers->below, sizeof(*below), below);
	if (!err)
		err = layers_fill(layers, source);
	if (err)
		kvmfault__sys_free(layers);
	return err;
}
