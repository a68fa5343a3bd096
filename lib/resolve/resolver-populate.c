/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Resolver "populate". In: a page that was present before, or that nobody
 * tracks. Out: mapped at the memslots' address, by MADV_POPULATE_*. Its errno
 * is the diagnosis: -EFAULT past the file's end, -ENOMEM not mapped, -EINVAL
 * (-EOPNOTSUPP to the outside) not permitted there, -EHWPOISON.
 */

#include "../os/abi.h"
#include "resolve.h"

/* A KVM whose exits say what the access was (KVM_MEM_EXIT_ON_MISSING) has looked
 * for a page that can be written, also for a read: else it exits for ever. */
static bool wants_writable(const struct kvmfault_request *request)
{
	const struct kvmfault_fault *fault = request->fault;

	return fault->kind == KVMFAULT_KIND_EXIT &&
	       fault->flags & (KVMFAULT__EXIT_FLAG_READ |
			       KVMFAULT__EXIT_FLAG_EXEC);
}

static bool for_writing(const struct kvmfault_request *request)
{
	const struct kvmfault_fault *fault = request->fault;

	if (request->region && request->region->flags &
	    KVMFAULT_REGION_READONLY)
		return false;
	return wants_writable(request) || kvmfault__may_write(fault);
}

static int resolve(void *data, struct kvmfault_request *request)
{
	bool write = for_writing(request);
	int err;

	(void)data;
	if (!request->host)
		return KVMFAULT_VERDICT_DECLINED;
	err = kvmfault__sys_madvise(request->host, request->length, write ?
				    KVMFAULT__MADV_POPULATE_WRITE :
				    KVMFAULT__MADV_POPULATE_READ);
	/* Not known to be a write: a mapping that is only readable will do, but
	 * for a KVM that looks for one that is not. */
	if (err == -EINVAL && request->fault->access != KVMFAULT_ACCESS_WRITE &&
	    !wants_writable(request))
		err = kvmfault__sys_madvise(request->host, request->length,
					    KVMFAULT__MADV_POPULATE_READ);
	/* What is asked for is right: this kernel (before 5.14), or this kind of
	 * mapping, does not do it. */
	if (err == -EINVAL)
		err = -EOPNOTSUPP;
	return err ? err : KVMFAULT_VERDICT_RESOLVED;
}

const struct kvmfault_resolver kvmfault__resolver_populate = {
	.size = sizeof(kvmfault__resolver_populate),
	.name = "populate",
	.pages = 1U << KVMFAULT_PAGE_PRESENT | 1U << KVMFAULT_PAGE_UNTRACKED,
	.resolve = resolve,
};
