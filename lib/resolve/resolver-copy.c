/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Resolver "copy". In: an absent page, claimed, of a memory without minor
 * faults, whose source answers at once. Out: the source's bytes, and those of
 * its window, installed by UFFDIO_COPY, which is atomic: no one ever sees a
 * half-filled page.
 */

#include "resolve.h"

static int resolve(void *data, struct kvmfault_request *request)
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
	.resolve = resolve,
};
