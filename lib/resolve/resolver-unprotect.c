/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Resolver "unprotect". In: a protected page, claimed, that is about to be
 * written and that none of the VMM's resolvers has taken. Out: the verdict
 * RESOLVED. Of another resolver of protected pages it says that the page was
 * saved; of this one, that there is nothing to save. After either the caller
 * lifts the protection: this resolver itself touches nothing.
 */

#include "resolve.h"

static int resolver_unprotect_page(void *data, struct kvmfault_request *request)
{
	(void)data;
	(void)request;
	return KVMFAULT_VERDICT_RESOLVED;
}

const struct kvmfault_resolver kvmfault__resolver_unprotect = {
	.size = sizeof(kvmfault__resolver_unprotect),
	.name = "unprotect",
	.pages = 1U << KVMFAULT_PAGE_PROTECTED,
	.resolve = resolver_unprotect_page,
};
