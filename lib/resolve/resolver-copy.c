/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Resolver "copy". In: an absent page, claimed, of a memory without minor
 * faults, with a source that answers at once. Out: the source's bytes of the
 * page and its window are installed by UFFDIO_COPY. UFFDIO_COPY is atomic: no
 * thread ever sees a half-filled page.
 */

#include "resolve.h"

static int resolver_copy_page(void *data, struct kvmfault_request *request)
{
	const void *bytes;
	int err;

	(void)data;
	if (request->memory->fill || request->memory->source.submit)
		return KVMFAULT_VERDICT_DECLINED;
	kvmfault_request_widen(request);
	err = kvmfault_request_data(request, &bytes);
	if (!err)
		err = kvmfault_request_install(request, bytes);
	else if (err == -EHWPOISON)
		err = kvmfault__lost(request);
	return err ? err : KVMFAULT_VERDICT_RESOLVED;
}

const struct kvmfault_resolver kvmfault__resolver_copy = {
	.size = sizeof(kvmfault__resolver_copy),
	.name = "copy",
	.pages = 1U << KVMFAULT_PAGE_ABSENT,
	.resolve = resolver_copy_page,
};
