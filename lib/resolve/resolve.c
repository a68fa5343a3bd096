/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stages claim, resolve and publish: the one path of faults of every kind. In:
 * a fault, and its target, with the target's span held. Out: an answer.
 * Whatever happens between claim and publish, the page ends in a true state,
 * and always in this order: the data, the state, the page's bit for KVM, the
 * wakes.
 */

#include "resolve.h"
#include "../os/trace.h"

/* Ask the kernel if one page of the claim is there: 1, 0 or -errno. With minor
 * faults the file may hold an old or half a page: only an install tells. */
static int resolve_see_page(struct kvmfault__request *rq, uint64_t page)
{
	struct kvmfault_memory *memory = rq->request.memory;
	int there;

	kvmfault__run(rq, page, 1);
	there = memory->fill ? 0 : kvmfault__see(rq->seat, memory,
						 rq->request.offset);
	rq->installed = (struct kvmfault__installed){ .there = there > 0 };
	return there;
}

/*
 * A resolver has answered RESOLVED and not used kvmfault_request_install(): it
 * is not believed. Only the pages that the kernel reports to be there have
 * come.
 */
static void resolve_verify_pages(struct kvmfault__request *rq,
				 enum kvmfault__state was,
				 struct kvmfault__answer *answer)
{
	uint64_t page = rq->first, end = page + rq->count;
	int there;

	rq->own_way = true;
	for (; page < end; page++) {
		if (page == rq->page)
			continue;
		resolve_see_page(rq, page);
		kvmfault__conclude(rq, was);
	}
	there = resolve_see_page(rq, rq->page);
	answer->came = there > 0;
	if (there < 0 && there != -EOPNOTSUPP)
		kvmfault__judge(rq, there, answer);
	else if (there <= 0)
		kvmfault__unresolved(answer, KVMFAULT_REASON_STILL_ABSENT,
				     -ENODATA);
}

/* The page's data is lost: its sleeper is woken into a SIGBUS. */
static void resolve_poisoned(struct kvmfault__request *rq,
			     struct kvmfault__answer *answer)
{
	int err = 0;

	*answer = (struct kvmfault__answer){ .resolver = answer->resolver };
	rq->request.page = KVMFAULT_PAGE_POISONED;
	if (rq->origin && !rq->poisoned)
		err = kvmfault__poison(rq->seat, rq->request.memory, rq->origin,
				       rq->request.offset, rq->request.length);
	answer->action = rq->origin && !err ? KVMFAULT_ACTION_RETRY :
					      KVMFAULT_ACTION_UNRESOLVED;
	answer->reason = KVMFAULT_REASON_HWPOISON;
	answer->error = rq->origin ? err : -EHWPOISON;
}

/* The source can't say what it has there, as if a read had failed. */
static void resolve_unknown(struct kvmfault__request *rq, int err,
			    struct kvmfault__answer *answer)
{
	rq->request.page = KVMFAULT_PAGE_ABSENT;
	rq->source_failed = true;
	if (err == -EHWPOISON)
		err = kvmfault__lost(&rq->request);
	kvmfault__judge(rq, err, answer);
}

/* If the memory was settled, an exit may come by a bit for KVM that is set
 * still, and a message may have been sent before: its sleeper looks again. */
static void resolve_untracked(struct kvmfault__request *rq,
			      struct kvmfault__answer *answer)
{
	struct kvmfault_memory *memory = rq->request.memory;

	if (memory)
		kvmfault__userfault_follow(memory, rq->request.offset >>
					   memory->page_shift, 1);
	if (rq->origin)
		kvmfault__wake(rq->seat, memory, rq->origin,
			       rq->request.offset, rq->request.length);
	else
		kvmfault__resolve_unclaimed(rq, KVMFAULT_PAGE_UNTRACKED,
					    answer);
}

/* The page has not come, and is published again. If the memory was settled
 * since this thread had claimed the page, it can't be installed any more, nor
 * need it. */
static void resolve_if_settled(struct kvmfault__request *rq,
			       struct kvmfault__answer *answer)
{
	if (rq->poisoned || kvmfault__tracked(rq->request.memory))
		return;
	kvmfault__run(rq, rq->page, 1);
	rq->request.page = KVMFAULT_PAGE_UNTRACKED;
	kvmfault__say(answer, KVMFAULT_ACTION_RETRY);
	resolve_untracked(rq, answer);
}

/* was: the page's state before this thread claimed it, absent or discarded. */
static void resolve_claimed(struct kvmfault__request *rq,
			    enum kvmfault__state was,
			    struct kvmfault__answer *answer)
{
	int page = KVMFAULT_PAGE_ABSENT;

	*answer = (struct kvmfault__answer){ 0 };
	if (was == KVMFAULT__DISCARDED)
		page = KVMFAULT_PAGE_DISCARDED;
	else if (rq->request.memory->source.extent)
		page = kvmfault__extent_page(rq);
	if (page < 0)
		resolve_unknown(rq, page, answer);
	else
		kvmfault__ask(rq, page, answer);
	if (rq->detached)
		return;
	answer->came = answer->action == KVMFAULT_ACTION_RETRY &&
		       !answer->error;
	if (answer->came && !kvmfault__has_come(rq))
		resolve_verify_pages(rq, was, answer);
	kvmfault__conclude(rq, was);
	if (rq->poisoned)
		resolve_poisoned(rq, answer);
}

/* A sleeper that only reads need not wait until the page is saved: map the
 * file's page for it. With minor faults the file may hold half a page. */
static void resolve_show_protected(const struct kvmfault__request *rq)
{
	const struct kvmfault_memory *memory = rq->request.memory;

	if (memory->fd > 0 && !memory->fill &&
	    !kvmfault__may_write(rq->request.fault) &&
	    kvmfault__page_protected(memory, rq->page))
		kvmfault__map(rq->origin, rq->request.offset,
			      rq->request.length);
}

/*
 * The page is in flight: its fetcher wakes a sleeper, and a vCPU that does not
 * wait is told when the page is ready. Returns true if that is the answer, and
 * false if the page has changed.
 */
static bool resolve_wait_for_page(struct kvmfault__request *rq,
				  struct kvmfault__answer *answer)
{
	struct kvmfault_memory *memory = rq->request.memory;
	int err = 0;

	if (kvmfault__fills(rq))
		return true;
	if (!rq->detached)
		kvmfault__add(rq->seat, rq->origin ?
			      KVMFAULT__COUNTER(repeated) :
			      KVMFAULT__COUNTER(waited), 1);
	if (rq->origin) {
		resolve_show_protected(rq);
		return true;
	}
	if (kvmfault__waits(rq)) {
		err = kvmfault__page_wait(rq->seat, memory, rq->page);
	} else if (kvmfault__page_pending(rq->seat, memory, rq->page)) {
		answer->action = KVMFAULT_ACTION_PENDING;
		return true;
	}
	if (!err)
		err = kvmfault__fetch_failed(rq);
	if (err)
		kvmfault__judge(rq, err, answer);
	return err;
}

/* Each turn is about the page alone. The neighbours of the turn before are
 * published, or belong to a fetch in flight. */
static void resolve_begin_turn(struct kvmfault__request *rq)
{
	rq->installed = (struct kvmfault__installed){ 0 };
	if (rq->count == 1)
		return;
	rq->window = rq->request.offset;
	rq->window_length = rq->request.length;
	kvmfault__run(rq, rq->page, 1);
}

/* Returns true if there is an answer before the page is looked at. */
static bool resolve_answer_early(struct kvmfault__request *rq,
				 struct kvmfault__answer *answer)
{
	struct kvmfault_memory *memory = rq->request.memory;
	int err = 0;

	/* The message is late, about what was mapped there before: a memory
	 * has to be empty until it is made. */
	if (atomic_load(&memory->making))
		err = -EAGAIN;
	/* A fetch that this vCPU did not wait for may have failed. */
	else if (rq->seat->no_wait)
		err = kvmfault__fetch_failed(rq);
	if (err) {
		kvmfault__judge(rq, err, answer);
		return true;
	}
	if (memory->source.submit && kvmfault__fetch_wished(rq)) {
		answer->action = KVMFAULT_ACTION_PENDING;
		return true;
	}
	return false;
}

/* A fill claims absent pages alone: what is discarded stays so, and to the fill
 * any other page is one that has come. */
static enum kvmfault__state resolve_claim_page(struct kvmfault__request *rq)
{
	struct kvmfault_memory *memory = rq->request.memory;

	if (!kvmfault__fills(rq))
		return kvmfault__page_claim(memory, rq->page, rq->origin);
	return kvmfault__page_change(memory, rq->page, KVMFAULT__ABSENT,
				     KVMFAULT__FETCHING) == KVMFAULT__ABSENT ?
	       KVMFAULT__ABSENT : KVMFAULT__FETCHING;
}

static void resolve_tracked(struct kvmfault__request *rq,
			    struct kvmfault__answer *answer)
{
	struct kvmfault_memory *memory = rq->request.memory;
	bool waited = false;

	rq->page = rq->request.offset >> memory->page_shift;
	rq->first = rq->page;
	rq->count = 1;
	if (resolve_answer_early(rq, answer))
		return;
	for (;;) {
		enum kvmfault__state state = resolve_claim_page(rq);

		resolve_begin_turn(rq);
		switch (state) {
		case KVMFAULT__ABSENT:
		case KVMFAULT__DISCARDED:
			resolve_claimed(rq, state, answer);
			if (rq->detached)
				break;
			if (!answer->came)
				resolve_if_settled(rq, answer);
			if (!answer->came || !(kvmfault__must_save(rq) ||
					       kvmfault__touched(rq)))
				return;
			waited = true;
			continue;
		case KVMFAULT__PRESENT:
			if (kvmfault__resolve_present(rq, waited, answer))
				return;
			waited |= answer->came;
			continue;
		case KVMFAULT__POISONED:
			resolve_poisoned(rq, answer);
			return;
		case KVMFAULT__FETCHING:
		case KVMFAULT__FETCHING_WAITED:
		case KVMFAULT__FETCHING_DISCARDED:
			break;
		}
		*answer = (struct kvmfault__answer){
			.action = KVMFAULT_ACTION_RETRY,
			.detached = rq->detached,
			.resolver = answer->resolver,
		};
		waited = true;
		if (resolve_wait_for_page(rq, answer))
			return;
		rq->detached = false;
	}
}

/* Does the fault want the other kind of page, private or shared? */
static bool resolve_is_unconverted(const struct kvmfault__request *rq,
				   struct kvmfault__gfns *pages)
{
	const struct kvmfault_fault *fault = rq->request.fault;
	struct kvmfault_vm *vm = rq->seat->vm;

	return kvmfault__convertible(vm, fault, rq->request.region, pages) &&
	       kvmfault__attributes_find(vm, *pages,
					 !kvmfault__wants_private(fault)) <
	       pages->end;
}

static void resolve_unconverted(struct kvmfault__request *rq,
				struct kvmfault__gfns pages,
				struct kvmfault__answer *answer)
{
	bool private = kvmfault__wants_private(rq->request.fault);

	kvmfault__resolve_unclaimed(rq, KVMFAULT_PAGE_UNCONVERTED, answer);
	answer->came = answer->action == KVMFAULT_ACTION_RETRY &&
		       !answer->error &&
		       kvmfault__attributes_find(rq->seat->vm, pages,
						 !private) == pages.end;
}

/* Sets each member by itself: clearing the whole request costs more. */
static void resolve_begin_request(struct kvmfault__request *rq,
				  struct kvmfault__seat *seat,
				  const struct kvmfault_fault *fault,
				  const struct kvmfault__target *target)
{
	struct kvmfault_memory *memory = target->memory;
	uint64_t size = memory ? kvmfault__page_size(memory) : KVMFAULT__PAGE;

	rq->request = (struct kvmfault_request){
		.size = sizeof(rq->request),
		.fault = fault,
		.region = target->region ? &target->region->info : NULL,
		.memory = memory,
		.page = KVMFAULT_PAGE_UNTRACKED,
		.buffer = seat->buffer,
	};
	rq->seat = seat;
	rq->origin = target->origin;
	rq->tries = target->tries;
	rq->page = rq->first = rq->count = 0;
	rq->installed = (struct kvmfault__installed){ 0 };
	rq->view = NULL;
	rq->resolver = 0;
	rq->own_way = rq->poisoned = rq->detached = rq->source_failed = false;
	rq->looked = 0;
	rq->window_length = 0;
	if (memory || target->region) {
		rq->request.offset = target->offset & -size;
		rq->request.length = size;
	}
	if (memory) {
		rq->request.host = (char *)memory->host + rq->request.offset;
		rq->request.buffer = kvmfault__buffer(seat, memory,
						      rq->request.offset);
	}
}

/* Memory that failed has lost its data whatever its state; and an exit for the
 * private page must not be answered with the shared one. */
static bool resolve_must_skip_state(const struct kvmfault_fault *fault)
{
	return fault->error == EHWPOISON ||
	       (fault->kind == KVMFAULT_KIND_EXIT &&
		kvmfault__wants_private(fault));
}

/* Put the window that was claimed with the page, as its region shows it, into
 * the answer. */
static void resolve_tell_window(const struct kvmfault__request *rq,
				struct kvmfault__answer *answer)
{
	const struct kvmfault_region *region = rq->request.region;
	bool now = rq->count > 1;
	uint64_t offset = now ? rq->request.offset : rq->window;
	uint64_t end = offset + (now ? rq->request.length : rq->window_length);

	if (!region || offset == end)
		return;
	/* A huge page may begin before the region does. */
	if (offset < region->offset)
		offset = region->offset;
	answer->gpa = region->gpa + offset - region->offset;
	answer->length = end - offset;
}

void kvmfault__resolve(struct kvmfault__seat *seat,
		       const struct kvmfault_fault *fault,
		       const struct kvmfault__target *target,
		       struct kvmfault__answer *answer)
{
	struct kvmfault_memory *memory = target->memory;
	struct kvmfault__request rq;
	struct kvmfault__gfns pages;

	resolve_begin_request(&rq, seat, fault, target);
	kvmfault__say(answer, KVMFAULT_ACTION_RETRY);
	KVMFAULT__TRACE(resolve_begin, seat, fault->kind, memory,
			rq.request.offset);
	if (target->region && target->region->info.guest_memfd > 0 &&
	    resolve_is_unconverted(&rq, &pages))
		resolve_unconverted(&rq, pages, answer);
	else if (!memory || !kvmfault__tracked(memory) ||
		 resolve_must_skip_state(fault))
		resolve_untracked(&rq, answer);
	else
		resolve_tracked(&rq, answer);
	/* Sleepers get a SIGBUS and calls an errno; only for a vCPU's fault the
	 * VMM has to be told. */
	if (answer->reason == KVMFAULT_REASON_HWPOISON && !target->origin &&
	    !kvmfault__is_call(fault))
		kvmfault__tell_failure(&rq, answer);
	if (rq.count > 1 || rq.window_length)
		resolve_tell_window(&rq, answer);
	KVMFAULT__TRACE(resolve_end, seat, fault->kind, memory,
			rq.request.offset, answer->action, answer->reason,
			answer->error, answer->resolver);
}

void kvmfault__resolve_gpa(struct kvmfault__seat *seat,
			   const struct kvmfault_fault *fault, uint64_t gpa,
			   struct kvmfault__answer *answer)
{
	struct kvmfault__region *region =
		kvmfault__region_find(seat, fault->address_space, gpa);
	struct kvmfault__target target = kvmfault__region_target(region, gpa);

	if (region && fault->kind != KVMFAULT_KIND_EXIT &&
	    kvmfault__shows_private(seat->vm, region, gpa))
		/* KVM alone handles private pages. */
		kvmfault__say(answer, KVMFAULT_ACTION_RETRY);
	else
		kvmfault__resolve(seat, fault, &target, answer);
	if (!region && answer->reason == KVMFAULT_REASON_DECLINED)
		answer->reason = KVMFAULT_REASON_NO_REGION;
	kvmfault__leave(seat);
}

int kvmfault__error(const struct kvmfault__answer *answer)
{
	switch (answer->action) {
	case KVMFAULT_ACTION_RETRY:
		return answer->error;
	case KVMFAULT_ACTION_INTERRUPTED:
		return -EINTR;
	case KVMFAULT_ACTION_PENDING:
		return -EAGAIN;
	default:
		break;
	}
	if (answer->reason == KVMFAULT_REASON_NO_REGION)
		return -ENXIO;
	return answer->error ? answer->error : -EOPNOTSUPP;
}
