/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Resolver "async". In: an absent page, claimed, whose source answers later.
 * Out: the source has been asked for it and its window; the claim goes with the
 * fetch, which installs and publishes when the answer is there.
 */

#include "resolve.h"

static int resolve(void *data, struct kvmfault_request *request)
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
	.resolve = resolve,
};
