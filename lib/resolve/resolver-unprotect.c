/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Resolver "unprotect". In: a protected page that is about to be written,
 * claimed, and none of the VMM's own resolvers has taken it. Out: its word that
 * nobody has to save it. That word, and not what came of it, is all that
 * distinguishes it from a VMM's: the protection is lifted for both.
 */

#include "resolve.h"

static int resolve(void *data, struct kvmfault_request *request)
{
	(void)data;
	(void)request;
	return KVMFAULT_VERDICT_RESOLVED;
}

const struct kvmfault_resolver kvmfault__resolver_unprotect = {
	.size = sizeof(kvmfault__resolver_unprotect),
	.name = "unprotect",
	.pages = 1U << KVMFAULT_PAGE_PROTECTED,
	.resolve = resolve,
};
