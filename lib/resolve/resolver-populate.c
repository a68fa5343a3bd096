/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Resolver "populate". In: a page that was present before, or that is not
 * tracked. Out: the page is mapped at the memslots' address, by
 * MADV_POPULATE_*. If that fails, its errno is the diagnosis: -EFAULT past the
 * file's end, -ENOMEM not mapped, -EINVAL (-EOPNOTSUPP to the outside) not
 * permitted there, -EHWPOISON. Of another process's memory nothing is known.
 */

#include "../os/abi.h"
#include "resolve.h"

/* A KVM with KVM_MEM_EXIT_ON_MISSING, with exits that tell the access, looks
 * for a writable page also for a read. Without one it would exit for ever. */
static bool populate_wants_writable(const struct kvmfault_request *request)
{
	const struct kvmfault_fault *fault = request->fault;

	return fault->kind == KVMFAULT_KIND_EXIT &&
	       fault->flags & (KVMFAULT__EXIT_FLAG_READ |
			       KVMFAULT__EXIT_FLAG_EXEC);
}

static bool populate_is_for_writing(const struct kvmfault_request *request)
{
	const struct kvmfault_fault *fault = request->fault;

	if (request->region && request->region->flags &
	    KVMFAULT_REGION_READONLY)
		return false;
	return populate_wants_writable(request) || kvmfault__may_write(fault);
}

static int resolver_populate_page(void *data, struct kvmfault_request *request)
{
	bool write = populate_is_for_writing(request);
	int err;

	(void)data;
	if (!request->host || (request->memory && request->memory->remote))
		return KVMFAULT_VERDICT_DECLINED;
	err = kvmfault__sys_madvise(request->host, request->length, write ?
				    KVMFAULT__MADV_POPULATE_WRITE :
				    KVMFAULT__MADV_POPULATE_READ);
	/* If the access need not be a write, a readable mapping is enough,
	 * unless KVM looks for a writable page. */
	if (err == -EINVAL && request->fault->access != KVMFAULT_ACCESS_WRITE &&
	    !populate_wants_writable(request))
		err = kvmfault__sys_madvise(request->host, request->length,
					    KVMFAULT__MADV_POPULATE_READ);
	/* The arguments are right: the kernel (before 5.14) or the kind of
	 * mapping does not support the call. */
	if (err == -EINVAL)
		err = -EOPNOTSUPP;
	return err ? err : KVMFAULT_VERDICT_RESOLVED;
}

const struct kvmfault_resolver kvmfault__resolver_populate = {
	.size = sizeof(kvmfault__resolver_populate),
	.name = "populate",
	.pages = 1U << KVMFAULT_PAGE_PRESENT | 1U << KVMFAULT_PAGE_UNTRACKED,
	.resolve = resolver_populate_page,
};
