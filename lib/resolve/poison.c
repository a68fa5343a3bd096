/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Poison: a page whose data is lost. In: a request whose page is claimed. Out: whoever
 * touches the page gets a SIGBUS, in every mapping; the state follows when the claim
 * is published.
 */

#include "resolve.h"

/* Not what an event has told is gone: it is zero. */
static int poison_claimed(struct kvmfault__request *rq)
{
	struct kvmfault_memory *memory = rq->request.memory;
	bool apart = kvmfault__events_take(memory);
	int err = -EAGAIN;

	if (!apart || kvmfault__install_begin(rq->seat, memory,
					      rq->request.offset,
					      rq->request.length))
		err = kvmfault__poison(rq->seat, memory, NULL,
				       rq->request.offset, rq->request.length);
	if (apart)
		kvmfault__install_end(rq->seat);
	return err;
}

KVMFAULT__EXPORT
int kvmfault_request_poison(struct kvmfault_request *request)
{
	struct kvmfault__request *ours = (struct kvmfault__request *)request;
	int err = kvmfault__unclaimed(request, "kvmfault_request_poison");

	if (err)
		return err;
	if (kvmfault__has_come(ours))
		return kvmfault__refuse(ours->seat->vm, -EINVAL,
			"kvmfault_request_poison: the page was installed before");
	if (ours->count > 1)
		kvmfault__narrow(ours);
	err = poison_claimed(ours);
	ours->poisoned = !err;
	return err == -ENOTTY || err == -EINVAL ?
		kvmfault__refuse(ours->seat->vm, -EOPNOTSUPP,
			"a page whose data is lost can't be poisoned by this kernel: it needs Linux 6.6") :
		err;
}
