/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The map of the export: where it is zero. In: the server's answers to one
 * question after the other, from the first byte to the last. Out: at once, how
 * bytes are. All that is not known yet, or never will be, is data, which is
 * read.
 */

#include <stdlib.h>
#include <string.h>

#include "nbd.h"

#define QUESTION (1ULL << 30)		/* bytes that one question is about */
#define EXTENTS_MAX (4U << 20)		/* 64 MiB of map: the rest is data */
/* Of what is not known, no more than this is called data in one answer: it may
 * be known at the next question. */
#define UNKNOWN_MAX (1ULL << 20)

#define STATE_HOLE (1U << 0)		/* NBD's NBD_STATE_* */
#define STATE_ZERO (1U << 1)

/* A hole that does not read as zero has bytes that nobody knows: data. */
static uint64_t extents_kind(uint32_t flags)
{
	if (!(flags & STATE_ZERO))
		return KVMFAULT_EXTENT_DATA;
	return flags & STATE_HOLE ? KVMFAULT_EXTENT_HOLE : KVMFAULT_EXTENT_ZERO;
}

/* Room for so many more. Returns what is not needed any more and is to be freed
 * without the lock; or extents is over: the map can't become larger. Only the
 * thread that has the answer changes the map. */
static void *extents_grow(struct kvmfault__nbd *nbd, size_t more)
{
	struct kvmfault__nbd_extents *extents = &nbd->extents;
	struct kvmfault__nbd_extent *old = NULL, *new = NULL;
	size_t room = 2 * (extents->count + more);

	if (extents->count + more <= extents->room)
		return NULL;
	if (room <= EXTENTS_MAX)
		new = malloc(room * sizeof(*new));
	if (new && extents->count)
		memcpy(new, extents->extent, extents->count * sizeof(*new));
	pthread_mutex_lock(&nbd->lock);
	extents->over |= !new;
	if (new) {
		old = extents->extent;
		extents->extent = new;
		extents->room = room;
	}
	pthread_mutex_unlock(&nbd->lock);
	return old;
}

/* Up to `end` it is of this kind. Like neighbours are one. */
static void extents_append(struct kvmfault__nbd_extents *extents, uint64_t end,
			   uint64_t kind)
{
	struct kvmfault__nbd_extent *last = extents->extent + extents->count;

	if (extents->count && last[-1].kind == kind)
		last[-1].end = end;
	else
		extents->extent[extents->count++] =
			(struct kvmfault__nbd_extent){ end, kind };
	extents->known = end;
}

/* The question may be repeated: what is known already is passed over. */
void kvmfault__nbd_note_extents(struct kvmfault__nbd *nbd, uint64_t offset,
				const uint32_t *pairs, size_t count)
{
	uint64_t end = nbd->options.offset + nbd->length;
	struct kvmfault__nbd_extents *extents = &nbd->extents;
	size_t i;

	free(extents_grow(nbd, count / 2));
	pthread_mutex_lock(&nbd->lock);
	for (i = 0; i + 1 < count && offset < end && !extents->over; i += 2) {
		offset += pairs[i];
		if (offset > end)
			offset = end;
		if (offset > extents->known)
			extents_append(extents, offset,
				       extents_kind(pairs[i + 1]));
	}
	pthread_mutex_unlock(&nbd->lock);
}

static void extents_ask(struct kvmfault__nbd *nbd, uint64_t from)
{
	uint64_t left = nbd->options.offset + nbd->length - from;

	/* Whole blocks: an answer may go past the source's end, and the
	 * export's end is one of a block. */
	left += (nbd->block - left % nbd->block) % nbd->block;
	nbd->question.offset = from;
	nbd->question.length = left < QUESTION ? left : QUESTION;
	kvmfault__nbd_ask(nbd);
}

static void extents_go_on(void *data, int err)
{
	struct kvmfault__nbd *nbd = data;
	struct kvmfault__nbd_extents *extents = &nbd->extents;
	uint64_t from = nbd->question.offset, known;
	bool over;

	pthread_mutex_lock(&nbd->lock);
	known = extents->known;
	/* An answer without a byte would be asked for over and over again. */
	if (err || known <= from ||
	    known == nbd->options.offset + nbd->length)
		extents->over = true;
	over = extents->over || nbd->stopping;
	if (over)
		pthread_cond_broadcast(&nbd->told);
	pthread_mutex_unlock(&nbd->lock);
	if (!over)
		extents_ask(nbd, known);
	else if (err && err != -ECANCELED)
		kvmfault__nbd_log(nbd, KVMFAULT_LOG_WARNING,
			"the server does not tell of holes from byte %llu on: %s; all of that is read",
			(unsigned long long)known, strerror(-err));
}

void kvmfault__nbd_map(struct kvmfault__nbd *nbd)
{
	nbd->question.over = extents_go_on;
	nbd->question.data = nbd;
	nbd->extents.known = nbd->options.offset;
	extents_ask(nbd, nbd->options.offset);
}

/* The first extent that ends after the offset. */
static size_t extents_find(const struct kvmfault__nbd_extents *extents,
			   uint64_t offset)
{
	size_t low = 0, high = extents->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (extents->extent[middle].end <= offset)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

int kvmfault__nbd_extent(void *data, uint64_t offset, uint64_t *length)
{
	struct kvmfault__nbd *nbd = data;
	const struct kvmfault__nbd_extents *extents = &nbd->extents;
	uint64_t most = UNKNOWN_MAX;
	int kind = KVMFAULT_EXTENT_DATA;

	offset += nbd->options.offset;
	pthread_mutex_lock(&nbd->lock);
	if (extents->over)
		most = *length;
	if (offset < extents->known) {
		const struct kvmfault__nbd_extent *at =
			&extents->extent[extents_find(extents, offset)];

		kind = (int)at->kind;
		most = at->end - offset;
	}
	pthread_mutex_unlock(&nbd->lock);
	if (*length > most)
		*length = most;
	return kind;
}
