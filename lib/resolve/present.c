/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage resolve, for pages that are present and fault all the same. In: a
 * protected page; a page with a message that was read late; or a page that was
 * taken away without the library's knowledge. Out: the page is saved and
 * writable; its sleeper is awake; or the page is there again, as zeros. A page
 * is claimed as long as it is saved or installed again.
 */

#include "resolve.h"

/* Returns false if the page is not present any more. */
static bool present_claim_page(struct kvmfault__request *rq)
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
 * Have the page saved before it is written; meanwhile it can be read. Then
 * clear the bit, then lift the kernel's protection; the claim ends last, since
 * a thread that protects the page anew waits for that.
 */
static void present_save_page(struct kvmfault__request *rq,
			      struct kvmfault__answer *answer)
{
	struct kvmfault_memory *memory = rq->request.memory;
	int err;

	/* The library's own mapping is not registered: no read faults there. */
	if (memory->fill)
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

/* Returns false if the caller has to look at the page again. */
static bool present_resolve_protected(struct kvmfault__request *rq,
				      struct kvmfault__answer *answer)
{
	*answer = (struct kvmfault__answer){ .resolver = answer->resolver };
	if (!present_claim_page(rq))
		return false;
	if (kvmfault__must_save(rq))
		present_save_page(rq, answer);
	kvmfault__release(rq, rq->page, 1, KVMFAULT__PRESENT);
	/* The sleeper was woken; a vCPU goes on as for any present page. */
	return answer->action && (rq->origin || !answer->came);
}

/* Wake the sleeper in the message's mapping. It may sleep on a protection that
 * is left in the kernel alone, and not in the page's bit: also in a process
 * that has outlived an owner who protected pages, where this one does not. */
static int present_wake_origin(struct kvmfault__request *rq)
{
	struct kvmfault_memory *memory = rq->request.memory;
	bool lift = (memory->write_protect || memory->states_file) &&
		    kvmfault__may_write(rq->request.fault) &&
		    !kvmfault__page_protected(memory, rq->page);
	int err = lift ? kvmfault__protect(rq->seat, memory, rq->origin,
					   rq->request.offset,
					   rq->request.length, false) : 0;

	/* The kernel wakes only where it has lifted something. */
	if (lift && memory->write_protect)
		return err;
	kvmfault__wake(rq->seat, memory, rq->origin, rq->request.offset,
		       rq->request.length);
	return 0;
}

/* With minor faults a present page is in the file, and may still have to be
 * mapped here. Without them, or if the file lacks the page, zeros are
 * installed. */
static int present_install_again(struct kvmfault__request *rq)
{
	int err;

	if (rq->request.memory->fill) {
		err = kvmfault__map(rq->origin, rq->request.offset,
				    rq->request.length);
		/* No thread sleeps in a process that is gone (-ESRCH), nor
		 * where nothing is registered (-ENOENT): the mapping was
		 * removed, or is being added anew. */
		if (!err || err == -ESRCH || err == -ENOENT)
			return 0;
		if (err == -EEXIST)
			return present_wake_origin(rq);
		/* Only -EFAULT says that the file lacks the page. If a page
		 * table is just going, zeros must not be told to the VMM. */
		if (err != -EFAULT)
			return err;
	}
	rq->request.page = KVMFAULT_PAGE_DISCARDED;
	err = kvmfault_request_install(&rq->request, NULL);
	if (err || (!rq->installed.existed && rq->origin->memslots))
		return err;
	return present_wake_origin(rq);
}

/*
 * A message for a present page was mostly read late. But a page that was taken
 * out of the file without the library's knowledge would fault for ever: install
 * zeros, as a hole holds, which fails if there is a page. Returns false if the
 * caller has to look at the page again.
 */
static bool present_recheck_page(struct kvmfault__request *rq,
				 struct kvmfault__answer *answer)
{
	int err;

	kvmfault__count(rq->seat, repeated);
	if (!present_claim_page(rq))
		return false;
	err = present_install_again(rq);
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
 * KVM can't reach the page, or the library is about to touch it: ask for it in
 * the memslots' mapping. A marker may be there, if the page was discarded since
 * or came without the library: then returns false, and the caller looks again.
 */
static bool present_reach_page(struct kvmfault__request *rq,
			       struct kvmfault__answer *answer)
{
	struct kvmfault_memory *memory = rq->request.memory;

	kvmfault__resolve_unclaimed(rq, KVMFAULT_PAGE_PRESENT, answer);
	if (answer->error != -EHWPOISON || !memory->marked)
		return true;
	if (kvmfault__page_state(memory, rq->page) != KVMFAULT__PRESENT ||
	    !kvmfault__has_failed(memory, (uintptr_t)rq->request.host)) {
		kvmfault__say(answer, KVMFAULT_ACTION_RETRY);
		/* After LOOKS times the caller waits a while and asks again. */
		if (++rq->looked < LOOKS)
			return false;
		answer->error = -EAGAIN;
	}
	return true;
}

/* Mostly the page came meanwhile; or KVM can't reach it although it is
 * there. */
static bool present_resolve_unprotected(struct kvmfault__request *rq,
					bool waited,
					struct kvmfault__answer *answer)
{
	*answer = (struct kvmfault__answer){
		.action = KVMFAULT_ACTION_RETRY,
		.came = waited,
		.resolver = answer->resolver,
	};
	if (rq->origin)
		return present_recheck_page(rq, answer);
	kvmfault__userfault_follow(rq->request.memory, rq->page, 1);
	if (kvmfault__touched(rq) || (!waited &&
	    !kvmfault__is_call(rq->request.fault)))
		return present_reach_page(rq, answer);
	return true;
}

bool kvmfault__resolve_present(struct kvmfault__request *rq, bool waited,
			       struct kvmfault__answer *answer)
{
	return kvmfault__must_save(rq) ?
		present_resolve_protected(rq, answer) :
		present_resolve_unprotected(rq, waited, answer);
}
