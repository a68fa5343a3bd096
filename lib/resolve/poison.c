/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage resolve, for a page that has lost its data: poisons it. failure.c, or a
 * resolver of the VMM's, decides. In: a request with a claimed page. Out: the
 * page is poisoned in every mapping, so that each thread that touches it gets a
 * SIGBUS. The page's state follows when the claim is published.
 */

#include "resolve.h"

/* Returns -EAGAIN for a page that is gone by an event: the page is zero, and
 * not lost. */
static int poison_claimed_page(struct kvmfault__request *rq)
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
			"kvmfault_request_poison: the page is installed already: poison a page instead of installing it");
	if (ours->count > 1)
		kvmfault__narrow(ours);
	err = poison_claimed_page(ours);
	ours->poisoned = !err;
	return err == -ENOTTY || err == -EINVAL ?
		kvmfault__refuse(ours->seat->vm, -EOPNOTSUPP,
			"kvmfault_request_poison: this kernel can't poison a page that has lost its data: use Linux 6.6 or later") :
		err;
}
