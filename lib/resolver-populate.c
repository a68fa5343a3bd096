/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Resolver "populate". In: a page that was present before, or that nobody
 * tracks. Out: mapped at the memslots' address, by MADV_POPULATE_*. Its errno
 * is the diagnosis: -EFAULT past the file's end, -ENOMEM not mapped, -EINVAL
 * not permitted, -EHWPOISON.
 */

#include "abi.h"
#include "internal.h"

static int resolve(void *data, struct kvmfault_request *request)
{
	bool write = request->fault->access != KVMFAULT_ACCESS_READ &&
		     request->fault->access != KVMFAULT_ACCESS_EXEC;
	int err;

	(void)data;
	if (!request->host)
		return KVMFAULT_DECLINED;
	if (request->region && request->region->flags &
	    KVMFAULT_REGION_READONLY)
		write = false;
	err = kvmfault__sys_madvise(request->host, request->length, write ?
				    KVMFAULT__MADV_POPULATE_WRITE :
				    KVMFAULT__MADV_POPULATE_READ);
	/* Not known to be a write: a mapping that is only readable will do. */
	if (err == -EINVAL && request->fault->access == KVMFAULT_ACCESS_UNKNOWN)
		err = kvmfault__sys_madvise(request->host, request->length,
					    KVMFAULT__MADV_POPULATE_READ);
	return err ? err : KVMFAULT_RESOLVED;
}

const struct kvmfault_resolver kvmfault__resolver_populate = {
	.size = sizeof(kvmfault__resolver_populate),
	.name = "populate",
	.pages = 1U << KVMFAULT_PAGE_PRESENT | 1U << KVMFAULT_PAGE_UNTRACKED,
	.resolve = resolve,
};
