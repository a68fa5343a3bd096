/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Resolver "continue". In: an absent page, claimed, of a memory with minor
 * faults. Out: the source's bytes of the page and its window are written to the
 * file through the library's own mapping, and mapped by UFFDIO_CONTINUE when
 * they are whole. Until then every other thread still faults.
 */

#include "resolve.h"

static int resolver_continue_page(void *data, struct kvmfault_request *request)
{
	int err;

	(void)data;
	if (!request->memory->fill)
		return KVMFAULT_VERDICT_DECLINED;
	kvmfault_request_widen(request);
	err = kvmfault_request_read(request, request->buffer);
	if (!err)
		err = kvmfault_request_install(request, request->buffer);
	else if (err == -EHWPOISON)
		err = kvmfault__lost(request);
	return err ? err : KVMFAULT_VERDICT_RESOLVED;
}

const struct kvmfault_resolver kvmfault__resolver_continue = {
	.size = sizeof(kvmfault__resolver_continue),
	.name = "continue",
	.pages = 1U << KVMFAULT_PAGE_ABSENT,
	.resolve = resolver_continue_page,
};
