/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Resolver "clone". In: an absent page, claimed, of a memory that is a private
 * mapping of another one's file. Out: the base has the page and its window,
 * each of which it fetches once for all of its clones. Nothing is installed
 * here: a thread that looks again finds the file's page, which it shares with
 * the other clones until it writes to it.
 */

#include "range.h"

static int clone_ensure_base(const struct kvmfault_request *request)
{
	const struct kvmfault_memory *memory = request->memory;
	struct kvmfault__seat *seat = kvmfault__call_begin(memory->vm);
	int err;

	if (!seat)
		return -ENOMEM;
	err = kvmfault__ensure_memory(seat, memory->base,
				      memory->source_offset + request->offset,
				      request->length);
	kvmfault__call_end(seat);
	return err;
}

static int resolver_clone_page(void *data, struct kvmfault_request *request)
{
	struct kvmfault__request *ours = (struct kvmfault__request *)request;
	int err;

	(void)data;
	if (!request->memory->base)
		return KVMFAULT_VERDICT_DECLINED;
	kvmfault_request_widen(request);
	err = clone_ensure_base(request);
	/* An error of a neighbour must not fail the page. */
	if (err && ours->count > 1) {
		kvmfault__narrow(ours);
		err = clone_ensure_base(request);
	}
	if (err == -EHWPOISON)
		return kvmfault__lost(request);
	if (err)
		return err;
	ours->installed.there = ours->count;
	ours->own_way = true;
	return KVMFAULT_VERDICT_RESOLVED;
}

const struct kvmfault_resolver kvmfault__resolver_clone = {
	.size = sizeof(kvmfault__resolver_clone),
	.name = "clone",
	.pages = 1U << KVMFAULT_PAGE_ABSENT,
	.resolve = resolver_clone_page,
};
