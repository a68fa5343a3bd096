/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Resolver "convert". In: an exit that wants the other kind of memory, private
 * or shared. Out: the exit's pages are converted. If the page is of the wanted
 * kind already, another vCPU was faster: the access is tried again, as often as
 * the vCPU's guard allows.
 */

#include "../os/abi.h"
#include "range.h"

static int resolver_convert_pages(void *data, struct kvmfault_request *request)
{
	struct kvmfault__seat *seat =
		((struct kvmfault__request *)request)->seat;
	const struct kvmfault_converter *converter =
		&seat->vm->conversions.converter;
	struct kvmfault__gfns pages;
	uint64_t reached;
	int err;

	(void)data;
	if (!kvmfault__convertible(seat->vm, request->fault, request->region,
				   &pages))
		return KVMFAULT_VERDICT_DECLINED;
	if (request->page != KVMFAULT_PAGE_UNCONVERTED ||
	    converter->flags & KVMFAULT_CONVERTER_CALLS_ONLY)
		return KVMFAULT_VERDICT_RESOLVED;
	err = kvmfault__convert(seat, pages,
				kvmfault__wants_private(request->fault),
				!seat->no_wait, &reached);
	return err ? err : KVMFAULT_VERDICT_RESOLVED;
}

const struct kvmfault_resolver kvmfault__resolver_convert = {
	.size = sizeof(kvmfault__resolver_convert),
	.name = "convert",
	.pages = 1U << KVMFAULT_PAGE_UNCONVERTED |
		 1U << KVMFAULT_PAGE_UNTRACKED,
	.flags = KVMFAULT__EXIT_FLAG_PRIVATE,
	.resolve = resolver_convert_pages,
};
