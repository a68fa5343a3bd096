/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage resolve, of pages that are present and fault all the same. In: a page
 * that is protected, or whose sleeper's message was read late, or that somebody
 * took away behind our back. Out: saved and writable; its sleeper awake; there
 * again.
 */

#include "resolve.h"

/* Claim a page that is present; false: it is not any more. */
static bool claim_present(struct kvmfault__request *rq)
{
	if (kvmfault__page_change(rq->request.memory, rq->page,
				  KVMFAULT__PRESENT, KVMFAULT__FETCHING) !=
	    KVMFAULT__PRESENT)
		return false;
	kvmfault__run(rq, rq->page, 1);
	rq->installed = (struct kvmfault__installed){ 0 };
	return true;
}

/*
 * About to be written, and nobody has saved it yet. While somebody does, it can
 * be read. Saved, then the bit, then the kernel's protection, and only then not
 * claimed any more: who protects it anew waits for that.
 */
static void save(struct kvmfault__request *rq, struct kvmfault__answer *answer)
{
	struct kvmfault_memory *memory = rq->request.memory;
	int err;

	if (memory->fill)	/* there it faults for nobody */
		rq->request.host = memory->fill + rq->request.offset;
	kvmfault__ask(rq, KVMFAULT_PAGE_PROTECTED, answer);
	if (answer->action != KVMFAULT_ACTION_RETRY || answer->error)
		return;
	kvmfault__page_unprotect(memory, rq->page);
	err = kvmfault__protect(rq->seat, memory, NULL, rq->request.offset,
				rq->request.length, false);
	if (err)
		kvmfault__judge(rq, err, answer);
	answer->came = !err;
}

/* True: that is the answer. False: look again. */
static bool resolve_protected(struct kvmfault__request *rq,
			      struct kvmfault__answer *answer)
{
	*answer = (struct kvmfault__answer){ .resolver = answer->resolver };
	if (!claim_present(rq))
		return false;
	if (kvmfault__must_save(rq))
		save(rq, answer);
	kvmfault__release(rq, rq->page, 1, KVMFAULT__PRESENT);
	/* Who slept is awake, and for others it is like any present page. */
	return answer->action && (rq->origin || !answer->came);
}

/* Wake who sleeps in this mapping, also on a protection that is left in the
 * kernel alone. */
static int wake_origin(struct kvmfault__request *rq)
{
	struct kvmfault_memory *memory = rq->request.memory;

	if (memory->write_protect && kvmfault__may_write(rq->request.fault) &&
	    !kvmfault__page_protected(memory, rq->page))
		return kvmfault__protect(rq->seat, memory, rq->origin,
					 rq->request.offset,
					 rq->request.length, false);
	kvmfault__wake(rq->seat, memory, rq->origin, rq->request.offset,
		       rq->request.length);
	return 0;
}

/* With minor faults a page is present in the file, and each mapping has still
 * to be told. Else, or if it is not in the file, it becomes zero. */
static int install_again(struct kvmfault__request *rq)
{
	int err;

	if (rq->request.memory->fill) {
		err = kvmfault__map(rq->origin, rq->request.offset,
				    rq->request.length);
		/* Of a process that is gone nobody sleeps. */
		if (!err || err == -ESRCH)
			return 0;
		if (err == -EEXIST)
			return wake_origin(rq);
		/* Only where it is not in the file does it become zero: a page
		 * table that is just going is no reason to tell so. */
		if (err != -EFAULT)
			return err;
	}
	rq->request.page = KVMFAULT_PAGE_DISCARDED;
	err = kvmfault_request_install(&rq->request, NULL);
	if (err || (!rq->installed.existed && rq->origin->memslots))
		return err;
	return wake_origin(rq);
}

/*
 * A message for a page that is present. Most often it was read late. But a
 * page that somebody took out of the file behind our back would fault for
 * ever: ask the kernel by installing zeros, which is what a hole holds, and
 * which fails where there is a page. False: look again.
 */
static bool recheck(struct kvmfault__request *rq,
		    struct kvmfault__answer *answer)
{
	int err;

	kvmfault__count(rq->seat, repeated);
	if (!claim_present(rq))
		return false;
	err = install_again(rq);
	kvmfault__release(rq, rq->page, 1, KVMFAULT__PRESENT);
	if (!rq->installed.existed)
		kvmfault__account(rq, KVMFAULT__DISCARDED);
	if (err == -EAGAIN)
		answer->error = err;
	else if (err)
		kvmfault__unresolved(answer, KVMFAULT_REASON_RESOLVER, err);
	return true;
}

#define LOOKS 8

/*
 * KVM can't reach it, or the library is about to touch it: is it to be had? The
 * memslots' mapping is asked, and may have a marker there: the page was discarded
 * since, or came past the library. False: look again.
 */
static bool reach(struct kvmfault__request *rq, struct kvmfault__answer *answer)
{
	struct kvmfault_memory *memory = rq->request.memory;

	kvmfault__resolve_unclaimed(rq, KVMFAULT_PAGE_PRESENT, answer);
	if (answer->error != -EHWPOISON || !memory->marked)
		return true;
	if (kvmfault__page_state(memory, rq->page) != KVMFAULT__PRESENT ||
	    !kvmfault__has_failed(memory, (uintptr_t)rq->request.host)) {
		kvmfault__say(answer, KVMFAULT_ACTION_RETRY);
		/* As often as this: who asked waits a while, and comes again. */
		if (++rq->looked < LOOKS)
			return false;
		answer->error = -EAGAIN;
	}
	return true;
}

/* Most often it came meanwhile; or KVM can't reach it all the same. */
static bool resolve_unprotected(struct kvmfault__request *rq, bool waited,
				struct kvmfault__answer *answer)
{
	*answer = (struct kvmfault__answer){
		.action = KVMFAULT_ACTION_RETRY,
		.came = waited,
		.resolver = answer->resolver,
	};
	if (rq->origin)
		return recheck(rq, answer);
	kvmfault__userfault_follow(rq->request.memory, rq->page, 1);
	if (kvmfault__touched(rq) || (!waited &&
	    rq->request.fault->kind != KVMFAULT_KIND_CALL))
		return reach(rq, answer);
	return true;
}

bool kvmfault__resolve_present(struct kvmfault__request *rq, bool waited,
			       struct kvmfault__answer *answer)
{
	return kvmfault__must_save(rq) ?
		resolve_protected(rq, answer) :
		resolve_unprotected(rq, waited, answer);
}
