/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Resolver "zero". In: a discarded page, or a hole of the source, claimed. Out:
 * zeros are installed by UFFDIO_ZEROPAGE, or where the backing has none
 * (hugetlbfs) by UFFDIO_COPY; for a hole in the whole window. For a discarded
 * page the source is not asked: it still has the bytes that were discarded.
 */

#include "resolve.h"

static int resolver_zero_page(void *data, struct kvmfault_request *request)
{
	int err;

	(void)data;
	kvmfault_request_widen(request);
	err = kvmfault_request_install(request, NULL);
	return err ? err : KVMFAULT_VERDICT_RESOLVED;
}

const struct kvmfault_resolver kvmfault__resolver_zero = {
	.size = sizeof(kvmfault__resolver_zero),
	.name = "zero",
	.pages = 1U << KVMFAULT_PAGE_DISCARDED | 1U << KVMFAULT_PAGE_HOLE,
	.resolve = resolver_zero_page,
};
