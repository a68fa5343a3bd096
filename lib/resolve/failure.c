/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Memory whose data is lost: in hardware, or at the source. In: a SIGBUS, or a
 * page that is known to be poisoned. Out: the page's state says so, nobody
 * reads anything else there, and the VMM was told which gpa it is. A SIGBUS at
 * an absent page is none of this: that was a marker, and the page is fetched.
 */

#include <sys/mman.h>

#include "../os/abi.h"
#include "resolve.h"

int kvmfault__lost(struct kvmfault_request *request)
{
	return kvmfault_request_poison(request) == -EAGAIN ? -EAGAIN :
							     -EHWPOISON;
}

/* The VMM has told the guest: the vCPU may go on. */
void kvmfault__tell_failure(struct kvmfault__request *rq,
			    struct kvmfault__answer *answer)
{
	const struct kvmfault_vm *vm = rq->seat->vm;
	struct kvmfault_failure failure = {
		.size = sizeof(failure),
		.fault = rq->request.fault,
		.vcpu = rq->seat->vcpu,
		.memory = rq->request.memory,
		.offset = rq->request.offset,
		.length = rq->request.length,
	};
	int err;

	if (!vm->ops.failed)
		return;
	/* The callback uses the vCPU's descriptor. */
	if (!kvmfault__hold_vcpu(rq->seat)) {
		answer->action = KVMFAULT_ACTION_INTERRUPTED;
		return;
	}
	err = vm->ops.failed(vm->options.data, &failure);
	kvmfault__free_vcpu(rq->seat);
	if (err)
		return;
	answer->action = KVMFAULT_ACTION_RETRY;
	answer->reason = KVMFAULT_REASON_NONE;
	answer->error = 0;
	answer->told = true;
}

/* Now: the page will be touched again. */
static bool says_nothing(int err)
{
	return err == -ENOMEM || err == -EAGAIN || err == -EINTR;
}

/*
 * Has it failed, or was there a marker that is gone by now? Another thread may
 * have fetched the page since the signal was sent. The kernel knows; one that
 * can't be asked (before 5.14) has no markers (6.6).
 */
bool kvmfault__has_failed(const struct kvmfault_memory *memory, uint64_t hva)
{
	uint64_t size = kvmfault__page_size(memory);
	void *page = (void *)(uintptr_t)(hva & ~(size - 1));
	int err;

	err = kvmfault__sys_madvise(page, size, KVMFAULT__MADV_POPULATE_READ);
	if (says_nothing(err))
		return false;
	/* A page that came past the library, by way of another mapping, has
	 * left the marker where it was. Without it the file's page counts; one
	 * that has failed is in the file still. */
	if (err && memory->marked)
		err = kvmfault__take_away(memory->uffd, page, size,
					  MADV_DONTNEED);
	else
		return err;
	if (!err)
		err = kvmfault__sys_madvise(page, size,
					    KVMFAULT__MADV_POPULATE_READ);
	return err && !says_nothing(err);
}
