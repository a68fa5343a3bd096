/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Resolver "async". In: an absent page, claimed, of a memory with a source that
 * answers later. Out: the source was asked for the page and its window. The
 * fetch now has the claim, and installs and publishes when the source has
 * answered.
 */

#include "resolve.h"

static int resolver_async_submit(void *data, struct kvmfault_request *request)
{
	(void)data;
	if (!request->memory->source.submit)
		return KVMFAULT_VERDICT_DECLINED;
	kvmfault_request_widen(request);
	return kvmfault__submit((struct kvmfault__request *)request);
}

const struct kvmfault_resolver kvmfault__resolver_async = {
	.size = sizeof(kvmfault__resolver_async),
	.name = "async",
	.pages = 1U << KVMFAULT_PAGE_ABSENT,
	.resolve = resolver_async_submit,
};
