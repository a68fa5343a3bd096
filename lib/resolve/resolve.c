/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stages claim, resolve and publish: the one path that every entrance takes.
 * In: a fault, and the span that it is in, held. Out: an answer. Whatever
 * happens between claim and publish, the page ends in a state that is true:
 * data first, then the state, then its bit for KVM, then the wakes.
 */

#include "resolve.h"
#include "../os/trace.h"

/* Ask for one of the pages. With minor faults it may be in the file since long ago,
 * or be half written there: only install says that it is whole. */
static int see(struct kvmfault__request *rq, uint64_t page)
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
 * "Resolved", says one that did not use our install. That is a claim: what has
 * come is what is seen to be there, and what can't be asked is not believed.
 */
static void see_what_came(struct kvmfault__request *rq,
			  enum kvmfault__state was,
			  struct kvmfault__answer *answer)
{
	uint64_t page = rq->first, end = page + rq->count;
	int there;

	rq->own_way = true;
	for (; page < end; page++) {
		if (page == rq->page)
			continue;
		see(rq, page);
		kvmfault__conclude(rq, was);
	}
	there = see(rq, rq->page);
	answer->came = there > 0;
	if (there < 0 && there != -EOPNOTSUPP)
		kvmfault__judge(rq, there, answer);
	else if (there <= 0)
		kvmfault__unresolved(answer, KVMFAULT_REASON_STILL_ABSENT, -ENODATA);
}

/* Its data is lost. Who sleeps on it in the kernel is woken into a SIGBUS. */
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

/* was: absent or removed, and now ours. */
static void resolve_claimed(struct kvmfault__request *rq,
			    enum kvmfault__state was,
			    struct kvmfault__answer *answer)
{
	*answer = (struct kvmfault__answer){ 0 };
	kvmfault__ask(rq, was == KVMFAULT__DISCARDED ? KVMFAULT_PAGE_DISCARDED :
						     KVMFAULT_PAGE_ABSENT,
		      answer);
	if (rq->detached)
		return;
	answer->came = answer->action == KVMFAULT_ACTION_RETRY && !answer->error;
	if (answer->came && !kvmfault__has_come(rq))
		see_what_came(rq, was, answer);
	kvmfault__conclude(rq, was);
	if (rq->poisoned)
		resolve_poisoned(rq, answer);
}

/* Who only reads a page that is being saved, where another mapping has it, need not
 * wait for that. Of minor memory what is in the file may be half of it. */
static void show_protected(const struct kvmfault__request *rq)
{
	const struct kvmfault_memory *memory = rq->request.memory;

	if (memory->fd > 0 && !memory->fill &&
	    !kvmfault__may_write(rq->request.fault) &&
	    kvmfault__page_protected(memory, rq->page))
		kvmfault__map(rq->origin, rq->request.offset,
			      rq->request.length);
}

/*
 * The page is on its way. A sleeper's fetcher knows of it; a vCPU that does not
 * want to wait is told when it has arrived. True: that is the answer; else it
 * has changed.
 */
static bool wait_for_page(struct kvmfault__request *rq,
			  struct kvmfault__answer *answer)
{
	struct kvmfault_memory *memory = rq->request.memory;
	int err = 0;

	if (!rq->detached)
		kvmfault__add(rq->seat, rq->origin ?
			      KVMFAULT__COUNTER(repeated) :
			      KVMFAULT__COUNTER(waited), 1);
	if (rq->origin) {
		show_protected(rq);
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

/* For the page alone: what came with it in the turn before, and was claimed, is not
 * its own any more, or a fetch's in flight. */
static void begin_turn(struct kvmfault__request *rq)
{
	rq->installed = (struct kvmfault__installed){ 0 };
	if (rq->count == 1)
		return;
	rq->window = rq->request.offset;
	rq->window_length = rq->request.length;
	kvmfault__run(rq, rq->page, 1);
}

/* Is there an answer before the page is looked at? */
static bool answered(struct kvmfault__request *rq,
		     struct kvmfault__answer *answer)
{
	struct kvmfault_memory *memory = rq->request.memory;
	int err = 0;

	/* A late message, of what was there before: it has to be empty yet. */
	if (atomic_load(&memory->making))
		err = -EAGAIN;
	/* What it did not wait for has failed meanwhile. */
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

static void resolve_tracked(struct kvmfault__request *rq,
			    struct kvmfault__answer *answer)
{
	struct kvmfault_memory *memory = rq->request.memory;
	bool waited = false;

	rq->page = rq->request.offset >> memory->page_shift;
	rq->first = rq->page;
	rq->count = 1;
	if (answered(rq, answer))
		return;
	for (;;) {
		enum kvmfault__state state =
			kvmfault__page_claim(memory, rq->page, rq->origin);

		begin_turn(rq);
		switch (state) {
		case KVMFAULT__ABSENT:
		case KVMFAULT__DISCARDED:
			resolve_claimed(rq, state, answer);
			if (rq->detached)
				break;
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
		if (wait_for_page(rq, answer))
			return;
		rq->detached = false;
	}
}

/* Does the fault want the other kind of page, private or shared? */
static bool unconverted(const struct kvmfault__request *rq,
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
		       kvmfault__attributes_find(rq->seat->vm, pages,
						 !private) == pages.end;
}

/* Each member by itself: to clear it all costs more than to fill it. */
static void begin(struct kvmfault__request *rq, struct kvmfault__seat *seat,
		  const struct kvmfault_fault *fault,
		  const struct kvmfault__target *place)
{
	struct kvmfault_memory *memory = place->memory;
	uint64_t size = memory ? kvmfault__page_size(memory) : KVMFAULT__PAGE;

	rq->request = (struct kvmfault_request){
		.size = sizeof(rq->request),
		.fault = fault,
		.region = place->region ? &place->region->info : NULL,
		.memory = memory,
		.page = KVMFAULT_PAGE_UNTRACKED,
		.buffer = seat->buffer,
	};
	rq->seat = seat;
	rq->origin = place->origin;
	rq->tries = place->tries;
	rq->page = rq->first = rq->count = 0;
	rq->installed = (struct kvmfault__installed){ 0 };
	rq->view = NULL;
	rq->resolver = 0;
	rq->own_way = rq->poisoned = rq->detached = rq->source_failed = false;
	rq->looked = 0;
	rq->window_length = 0;
	if (memory || place->region) {
		rq->request.offset = place->offset & -size;
		rq->request.length = size;
	}
	if (memory) {
		rq->request.host = (char *)memory->host + rq->request.offset;
		rq->request.buffer = kvmfault__buffer(seat, memory,
						      rq->request.offset);
	}
}

/* Memory that failed has lost its data whatever its state; and who wants the
 * private page is not served with the shared one. */
static bool not_about_the_page(const struct kvmfault_fault *fault)
{
	return fault->error == EHWPOISON ||
	       (fault->kind == KVMFAULT_KIND_EXIT &&
		kvmfault__wants_private(fault));
}

/* What was to come with the page, and where its region shows it. */
static void tell_window(const struct kvmfault__request *rq,
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
		       const struct kvmfault__target *place,
		       struct kvmfault__answer *answer)
{
	struct kvmfault_memory *memory = place->memory;
	struct kvmfault__request rq;
	struct kvmfault__gfns pages;

	begin(&rq, seat, fault, place);
	kvmfault__say(answer, KVMFAULT_ACTION_RETRY);
	KVMFAULT__TRACE(resolve_begin, seat, fault->kind, memory,
			rq.request.offset);
	if (place->region && place->region->info.guest_memfd > 0 &&
	    unconverted(&rq, &pages))
		resolve_unconverted(&rq, pages, answer);
	else if (!memory || !kvmfault__tracked(memory) ||
		 not_about_the_page(fault))
		kvmfault__resolve_unclaimed(&rq, KVMFAULT_PAGE_UNTRACKED,
					    answer);
	else
		resolve_tracked(&rq, answer);
	/* A sleeper has its SIGBUS, an ensure() its errno. */
	if (answer->reason == KVMFAULT_REASON_HWPOISON && !place->origin &&
	    fault->kind != KVMFAULT_KIND_CALL)
		kvmfault__tell_failure(&rq, answer);
	if (rq.count > 1 || rq.window_length)
		tell_window(&rq, answer);
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
	struct kvmfault__target place = kvmfault__region_target(region, gpa);

	if (region && fault->kind != KVMFAULT_KIND_EXIT &&
	    kvmfault__shows_private(seat->vm, region, gpa))
		kvmfault__say(answer, KVMFAULT_ACTION_RETRY);	/* it is KVM's */
	else
		kvmfault__resolve(seat, fault, &place, answer);
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
