/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage resolve, for memory that has lost its data, in hardware or at the
 * source: decides what was lost, and tells the VMM. poison.c then poisons. In:
 * a claimed page that its source has lost, a present page at which a SIGBUS
 * came, or a fault at failed memory. Out: the page is poisoned; or it is known
 * whether the page has failed; or the VMM was told of it. A SIGBUS at an absent
 * page is none of this: it came from a marker, and the page is fetched.
 */

#include <sys/mman.h>

#include "../os/abi.h"
#include "resolve.h"

int kvmfault__lost(struct kvmfault_request *request)
{
	return kvmfault_request_poison(request) == -EAGAIN ? -EAGAIN :
							     -EHWPOISON;
}

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
	/* The callback may use the vCPU's descriptor. */
	if (!kvmfault__hold_vcpu(rq->seat)) {
		answer->action = KVMFAULT_ACTION_INTERRUPTED;
		return;
	}
	err = vm->ops.failed(vm->options.data, &failure);
	kvmfault__free_vcpu(rq->seat);
	if (err)
		return;
	/* The VMM has told the guest, so the vCPU may go on. */
	answer->action = KVMFAULT_ACTION_RETRY;
	answer->reason = KVMFAULT_REASON_NONE;
	answer->error = 0;
	answer->told = true;
}

/* The errno says nothing of the page, which will be touched again. */
static bool failure_is_unknown(int err)
{
	return err == -ENOMEM || err == -EAGAIN || err == -EINTR;
}

/*
 * The SIGBUS may be of a marker that is gone: another thread may have fetched
 * the page since. Ask the kernel; one that can't be asked (before 5.14) has no
 * markers, which came with 6.6.
 */
bool kvmfault__has_failed(const struct kvmfault_memory *memory, uint64_t hva)
{
	uint64_t size = kvmfault__page_size(memory);
	void *page = (void *)(uintptr_t)(hva & ~(size - 1));
	int err;

	err = kvmfault__sys_madvise(page, size, KVMFAULT__MADV_POPULATE_READ);
	if (failure_is_unknown(err))
		return false;
	/* A page that came without the library, through another mapping, left
	 * the marker in its place. Take that out: the file's page decides, as a
	 * failed page is still in the file. */
	if (err && memory->marked)
		err = kvmfault__take_away(memory->uffd, page, size,
					  MADV_DONTNEED);
	else
		return err;
	if (!err)
		err = kvmfault__sys_madvise(page, size,
					    KVMFAULT__MADV_POPULATE_READ);
	return err && !failure_is_unknown(err);
}
