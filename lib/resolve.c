/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stages claim, resolve and publish: the one path that every entrance takes.
 * In: a fault, and the span that it is in, held. Out: an answer. Whatever
 * happens between claim and publish, the page ends in a state that is true:
 * data first, then the state, then its bit for KVM, then the wakes.
 */

#include "internal.h"
#include "trace.h"

static struct kvmfault__answer failed(enum kvmfault_reason reason, int error)
{
	return (struct kvmfault__answer){
		.action = KVMFAULT_UNRESOLVED,
		.reason = reason,
		.error = error,
	};
}

/* Ask one resolver after the other; a verdict or -errno. */
static int ask(struct kvmfault__request *rq, struct kvmfault__answer *answer)
{
	struct kvmfault_request *request = &rq->request;
	struct kvmfault_vm *vm = rq->seat->vm;
	uint64_t unknown = request->fault->flags &
			   ~kvmfault__exit_flags(vm, request->fault);
	bool flags = false;
	unsigned int i;

	kvmfault__add(rq->seat, KVMFAULT__COUNTER(page) + request->page, 1);
	for (i = 0; i < vm->resolvers; i++) {
		const struct kvmfault_resolver *r = &vm->chain[i];
		int verdict;

		if (r->pages && !(r->pages & 1U << request->page))
			continue;
		/* Ours know nothing of failed memory. */
		if (i >= vm->own_resolvers &&
		    request->fault->error == EHWPOISON)
			continue;
		if (unknown & ~r->flags) {
			flags = true;
			continue;
		}
		rq->resolver = i;
		verdict = r->resolve(r->data, request);
		if (verdict == KVMFAULT_DECLINED) {
			if (rq->count > 1)
				kvmfault__narrow(rq);
			continue;
		}
		answer->resolver = r->name;
		if (verdict == KVMFAULT_RESOLVED)
			kvmfault__add(rq->seat, KVMFAULT__COUNTER(resolver) + i,
				      1);
		return verdict;
	}
	if (request->fault->error == EHWPOISON) {
		answer->reason = KVMFAULT_REASON_HWPOISON;
		return -EHWPOISON;
	}
	answer->reason = flags ? KVMFAULT_REASON_FLAGS :
				 KVMFAULT_REASON_DECLINED;
	return -EOPNOTSUPP;
}

static void judge(const struct kvmfault__request *rq, int verdict,
		  struct kvmfault__answer *answer)
{
	switch (verdict) {
	case KVMFAULT_RESOLVED:
		answer->action = KVMFAULT_RETRY;
		return;
	case KVMFAULT_LATER:
		answer->action = KVMFAULT_PENDING;
		return;
	case -EINTR:
		answer->action = KVMFAULT_INTERRUPTED;
		return;
	case -EAGAIN:
		/* The mappings are changing: it faults again. */
		answer->action = KVMFAULT_RETRY;
		answer->error = -EAGAIN;
		return;
	}
	answer->action = KVMFAULT_UNRESOLVED;
	answer->error = verdict < 0 ? verdict : -EINVAL;
	if (!answer->reason)
		answer->reason = rq->source_failed ? KVMFAULT_REASON_SOURCE :
						     KVMFAULT_REASON_RESOLVER;
}

/* A page that nobody fetches: untracked, or present and out of reach. */
static struct kvmfault__answer resolve_unclaimed(struct kvmfault__request *rq,
						 enum kvmfault_page page)
{
	struct kvmfault__answer answer = { 0 };

	rq->request.page = page;
	judge(rq, ask(rq, &answer), &answer);
	if (answer.action == KVMFAULT_RETRY && rq->origin)
		kvmfault__wake(rq->seat, rq->request.memory, rq->origin,
			       rq->request.offset, rq->request.length);
	return answer;
}

/* A discard came while the page was being fetched: it has the last word. */
static bool discarded(struct kvmfault__request *rq, uint64_t page,
		      enum kvmfault__state else_to)
{
	struct kvmfault_memory *memory = rq->request.memory;
	uint64_t size = kvmfault__page_size(memory);
	int err;

	if (kvmfault__page_state(memory, page) != KVMFAULT__FETCHING_REMOVED)
		return false;
	err = kvmfault__memory_punch(memory, page * size, size);
	if (!err && rq->poisoned)
		err = kvmfault__unpoison(rq->seat, memory, page * size, size);
	if (err)
		kvmfault__log(memory->vm, KVMFAULT_LOG_WARNING,
			      "a page at offset %#llx was discarded while it was fetched, and could not be freed (error %d): it keeps its data",
			      (unsigned long long)(page * size), -err);
	kvmfault__page_change(memory, page, KVMFAULT__FETCHING_REMOVED,
			      err ? else_to : KVMFAULT__REMOVED);
	if (err)
		return true;
	kvmfault__count(rq->seat, removed);
	kvmfault__changed(memory, page * size, size, KVMFAULT_CAUSE_DISCARD);
	return true;
}

/* fetching -> to. True: somebody left a mark on it. */
static bool publish_page(struct kvmfault__request *rq, uint64_t page,
			 enum kvmfault__state to)
{
	struct kvmfault_memory *memory = rq->request.memory;
	enum kvmfault__state found, from = KVMFAULT__FETCHING;
	bool marked = false;

	while ((found = kvmfault__page_change(memory, page, from, to)) !=
	       from) {
		marked = true;	/* a reader's, or a discard's */
		if (discarded(rq, page, to))
			break;
		from = found;
	}
	kvmfault__userfault_follow(memory, page, 1);
	kvmfault__page_wake(memory, page);
	return marked;
}

void kvmfault__release(struct kvmfault__request *rq, uint64_t first,
		       uint64_t count, enum kvmfault__state to)
{
	struct kvmfault_memory *memory = rq->request.memory;
	uint64_t size = kvmfault__page_size(memory), page;

	for (page = first; page < first + count; page++)
		if (publish_page(rq, page, to))
			kvmfault__wake(rq->seat, memory, NULL, page * size,
				       size);
}

/* The claimed pages become what they are: present where they were installed,
 * what they were where they were not. And all wake who could not know: what was
 * installed through the memslots' mapping has had its sleepers woken by the
 * kernel. */
static void publish(struct kvmfault__request *rq, enum kvmfault__state was)
{
	const struct kvmfault__installed *installed = &rq->installed;
	struct kvmfault_memory *memory = rq->request.memory;
	bool marked = false;
	uint64_t i;

	for (i = 0; i < rq->count; i++)
		if (publish_page(rq, rq->first + i, i < installed->there ?
				 KVMFAULT__PRESENT : was))
			marked = true;
	if (marked)
		kvmfault__wake(rq->seat, memory, NULL, rq->request.offset,
			       rq->request.length);
	else if (rq->origin && (installed->there < rq->count || rq->own_way ||
				installed->existed || !rq->origin->memslots))
		kvmfault__wake(rq->seat, memory, rq->origin,
			       rq->request.offset, rq->request.length);
}

/* "Resolved", says one that did not use our install: is it? What can't be
 * asked is not believed. */
static bool lied(const struct kvmfault__request *rq)
{
	struct kvmfault_memory *memory = rq->request.memory;

	/* Of a single hugetlb page the kernel can't be asked. */
	return !memory->hugetlb &&
	       kvmfault__memory_resident(memory, rq->request.offset,
					 rq->request.length) <= 0;
}

static void warn_existed(struct kvmfault_memory *memory)
{
	if (!atomic_exchange(&memory->warned, true))
		kvmfault__log(memory->vm, KVMFAULT_LOG_WARNING,
			      "pages came into the memory at %p past the library, and are taken as they are: somebody maps it unregistered, or its huge=always fills the neighbours of what is written",
			      memory->host);
}

/* After it was published: what a callback does may need the page. */
static void account(struct kvmfault__request *rq, enum kvmfault__state was)
{
	const struct kvmfault__installed *installed = &rq->installed;
	struct kvmfault_memory *memory = rq->request.memory;
	uint64_t came = installed->there - installed->existed;
	bool zero = was == KVMFAULT__REMOVED;

	kvmfault__add(rq->seat, KVMFAULT__COUNTER(existed), installed->existed);
	if (installed->existed && !zero)
		warn_existed(memory);
	if (!came)
		return;
	kvmfault__add(rq->seat, zero ? KVMFAULT__COUNTER(zeroed) :
				       KVMFAULT__COUNTER(fetched), came);
	kvmfault__changed(memory, rq->request.offset,
			  installed->there << memory->page_shift,
			  zero ? KVMFAULT_CAUSE_ZERO : KVMFAULT_CAUSE_FETCH);
}

void kvmfault__conclude(struct kvmfault__request *rq,
			enum kvmfault__state was)
{
	publish(rq, rq->poisoned ? KVMFAULT__POISONED : was);
	account(rq, was);
}

/* Its data is lost. Who sleeps on it in the kernel is woken into a SIGBUS. */
static void resolve_poisoned(struct kvmfault__request *rq,
			     struct kvmfault__answer *answer)
{
	int err = 0;

	rq->request.page = KVMFAULT_PAGE_POISONED;
	if (rq->origin && !rq->poisoned)
		err = kvmfault__poison(rq->seat, rq->request.memory, rq->origin,
				       rq->request.offset, rq->request.length);
	answer->action = rq->origin && !err ? KVMFAULT_RETRY :
					      KVMFAULT_UNRESOLVED;
	answer->reason = KVMFAULT_REASON_HWPOISON;
	answer->error = rq->origin ? err : -EHWPOISON;
}

/* was: absent or removed, and now ours. */
static struct kvmfault__answer resolve_claimed(struct kvmfault__request *rq,
					       enum kvmfault__state was)
{
	struct kvmfault__answer answer = { 0 };

	rq->request.page = was == KVMFAULT__REMOVED ? KVMFAULT_PAGE_REMOVED :
						      KVMFAULT_PAGE_ABSENT;
	if (rq->count != 1)
		kvmfault__run(rq, rq->page, 1);
	judge(rq, ask(rq, &answer), &answer);
	if (rq->detached)
		return answer;
	answer.came = answer.action == KVMFAULT_RETRY && !answer.error;
	if (answer.came && !rq->installed.there) {
		if (lied(rq)) {
			answer.came = false;
			answer.action = KVMFAULT_UNRESOLVED;
			answer.reason = KVMFAULT_REASON_LIE;
			answer.error = -ENODATA;
		} else {
			rq->installed.there = rq->count;
			rq->own_way = true;
		}
	}
	kvmfault__conclude(rq, was);
	if (rq->poisoned)
		resolve_poisoned(rq, &answer);
	return answer;
}

/* What is not known to be a read. */
static bool may_write(const struct kvmfault__request *rq)
{
	return rq->request.fault->access != KVMFAULT_ACCESS_READ &&
	       rq->request.fault->access != KVMFAULT_ACCESS_EXEC;
}

static bool must_save(const struct kvmfault__request *rq)
{
	return rq->request.memory->write_protect && may_write(rq) &&
	       kvmfault__page_protected(rq->request.memory, rq->page);
}

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
	rq->request.page = KVMFAULT_PAGE_PROTECTED;
	judge(rq, ask(rq, answer), answer);
	if (answer->action != KVMFAULT_RETRY || answer->error)
		return;
	kvmfault__page_protect(memory, rq->page, false);
	err = kvmfault__protect(rq->seat, memory, NULL, rq->request.offset,
				rq->request.length, false);
	if (err)
		judge(rq, err, answer);
	answer->came = !err;
}

/* True: that is the answer. False: look again. */
static bool resolve_protected(struct kvmfault__request *rq,
			      struct kvmfault__answer *answer)
{
	*answer = (struct kvmfault__answer){ 0 };
	if (!claim_present(rq))
		return false;
	if (must_save(rq))
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

	if (memory->write_protect && may_write(rq) &&
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
		if (!err)
			return 0;
		if (err == -EEXIST)
			return wake_origin(rq);
		/* Only where it is not in the file may it become zero: a page
		 * table that is just going is no reason. */
		if (err != -EFAULT)
			return err;
	}
	rq->request.page = KVMFAULT_PAGE_REMOVED;
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
		account(rq, KVMFAULT__REMOVED);
	if (err == -EAGAIN)
		answer->error = err;
	else if (err)
		*answer = failed(KVMFAULT_REASON_RESOLVER, err);
	return true;
}

static bool resolve_present(struct kvmfault__request *rq, bool waited,
			    struct kvmfault__answer *answer)
{
	*answer = (struct kvmfault__answer){
		.action = KVMFAULT_RETRY,
		.came = waited,
	};
	if (rq->origin)
		return recheck(rq, answer);
	kvmfault__userfault_follow(rq->request.memory, rq->page, 1);
	if (!waited && rq->request.fault->entrance != KVMFAULT_ENTRANCE_CALL)
		*answer = resolve_unclaimed(rq, KVMFAULT_PAGE_PRESENT);
	return true;
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
	bool wait = !rq->seat->no_wait ||
		    rq->request.fault->entrance == KVMFAULT_ENTRANCE_CALL;
	int err = 0;

	if (!rq->detached && !rq->seat->waited)
		kvmfault__add(rq->seat, rq->origin ?
			      KVMFAULT__COUNTER(repeated) :
			      KVMFAULT__COUNTER(waited), 1);
	if (rq->origin)
		return true;
	if (wait) {
		err = kvmfault__page_wait(rq->seat, memory, rq->page);
	} else if (kvmfault__page_pending(rq->seat, memory, rq->page)) {
		answer->action = KVMFAULT_PENDING;
		return true;
	}
	if (!err)
		err = kvmfault__fetch_failed(rq);
	if (err)
		judge(rq, err, answer);
	return err;
}

static struct kvmfault__answer resolve_tracked(struct kvmfault__request *rq)
{
	struct kvmfault_memory *memory = rq->request.memory;
	struct kvmfault__answer answer = { .action = KVMFAULT_RETRY };
	const char *fetched_by;
	bool done, waited = rq->seat->waited;
	int err;

	rq->page = rq->request.offset >> memory->page_shift;
	rq->first = rq->page;
	rq->count = 1;
	/* What it did not wait for has failed meanwhile. */
	err = rq->seat->no_wait || rq->seat->delegate ?
		kvmfault__fetch_failed(rq) : 0;
	if (err) {
		judge(rq, err, &answer);
		return answer;
	}
	for (;;) {
		enum kvmfault__state state =
			kvmfault__page_claim(memory, rq->page, rq->origin);

		switch (state) {
		case KVMFAULT__ABSENT:
		case KVMFAULT__REMOVED:
			answer = resolve_claimed(rq, state);
			if (rq->detached)
				break;
			if (!answer.came || !must_save(rq))
				return answer;
			waited = true;
			continue;
		case KVMFAULT__PRESENT:
			fetched_by = answer.resolver;
			done = must_save(rq) ?
				resolve_protected(rq, &answer) :
				resolve_present(rq, waited, &answer);
			if (!answer.resolver)
				answer.resolver = fetched_by;
			if (done)
				return answer;
			waited |= answer.came;
			continue;
		case KVMFAULT__POISONED:
			resolve_poisoned(rq, &answer);
			return answer;
		case KVMFAULT__FETCHING:
		case KVMFAULT__FETCHING_WAITED:
		case KVMFAULT__FETCHING_REMOVED:
			break;
		}
		answer = (struct kvmfault__answer){
			.action = KVMFAULT_RETRY,
			.detached = rq->detached,
			.resolver = answer.resolver,
		};
		waited = true;
		if (wait_for_page(rq, &answer))
			return answer;
		rq->detached = false;
	}
}

/* An exit that wants the other kind of page, private or shared. */
static struct kvmfault__answer
resolve_unconverted(struct kvmfault__request *rq, struct kvmfault__gfns pages)
{
	bool private = kvmfault__wants_private(rq->request.fault);
	struct kvmfault_vm *vm = rq->seat->vm;
	struct kvmfault__answer answer;

	answer = resolve_unclaimed(rq, KVMFAULT_PAGE_UNCONVERTED);
	answer.came = answer.action == KVMFAULT_RETRY &&
		      kvmfault__attributes_find(vm, pages, !private) ==
		      pages.end;
	return answer;
}

static void address(struct kvmfault__request *rq,
		    const struct kvmfault__place *place)
{
	struct kvmfault_memory *memory = place->memory;
	uint64_t size = memory ? kvmfault__page_size(memory) : KVMFAULT__PAGE;

	if (!memory && !place->region)
		return;
	rq->request.region = place->region ? &place->region->info : NULL;
	rq->request.memory = memory;
	rq->request.offset = place->offset & ~(size - 1);
	rq->request.length = size;
	if (!memory)
		return;
	rq->request.host = (char *)memory->host + rq->request.offset;
	rq->request.buffer = kvmfault__buffer(rq->seat, memory,
					      rq->request.offset);
}

/* Memory that failed has lost its data whatever its state; and who wants the
 * private page is not served with the shared one. */
static bool not_about_the_page(const struct kvmfault_fault *fault)
{
	return fault->error == EHWPOISON ||
	       (fault->entrance == KVMFAULT_ENTRANCE_EXIT &&
		kvmfault__wants_private(fault));
}

/* What was to come with the page, and where its region shows it. */
static void tell_window(const struct kvmfault__request *rq,
			struct kvmfault__answer *answer)
{
	const struct kvmfault_region *region = rq->request.region;
	unsigned int shift = rq->request.memory->page_shift;
	uint64_t offset = rq->first << shift;
	uint64_t end = offset + (rq->count << shift);

	if (!region)
		return;
	/* A huge page may begin before the region does. */
	if (offset < region->offset)
		offset = region->offset;
	answer->gpa = region->gpa + offset - region->offset;
	answer->length = end - offset;
}

struct kvmfault__answer kvmfault__resolve(struct kvmfault__seat *seat,
					  const struct kvmfault_fault *fault,
					  const struct kvmfault__place *place)
{
	struct kvmfault__answer answer;
	struct kvmfault__request rq = {
		.request = {
			.size = sizeof(rq.request),
			.fault = fault,
			.page = KVMFAULT_PAGE_UNTRACKED,
			.buffer = seat->buffer,
		},
		.seat = seat,
		.origin = place->origin,
		.tries = place->tries,
	};
	struct kvmfault__gfns pages;

	address(&rq, place);
	KVMFAULT__TRACE(resolve_begin, seat, fault->entrance, place->memory,
			rq.request.offset);
	if (kvmfault__convertible(seat->vm, fault, rq.request.region, &pages) &&
	    kvmfault__attributes_find(seat->vm, pages,
				      !kvmfault__wants_private(fault)) <
	    pages.end)
		answer = resolve_unconverted(&rq, pages);
	else if (!place->memory || !kvmfault__tracked(place->memory) ||
		 not_about_the_page(fault))
		answer = resolve_unclaimed(&rq, KVMFAULT_PAGE_UNTRACKED);
	else
		answer = resolve_tracked(&rq);
	/* A sleeper has its SIGBUS, an ensure() its errno. */
	if (answer.reason == KVMFAULT_REASON_HWPOISON && !place->origin &&
	    fault->entrance != KVMFAULT_ENTRANCE_CALL)
		kvmfault__tell_failure(&rq, &answer);
	if (rq.count > 1)
		tell_window(&rq, &answer);
	KVMFAULT__TRACE(resolve_end, seat, fault->entrance, place->memory,
			rq.request.offset, answer.action, answer.reason,
			answer.error, answer.resolver);
	return answer;
}

struct kvmfault__answer kvmfault__resolve_gpa(struct kvmfault__seat *seat,
					      const struct kvmfault_fault *f,
					      uint64_t gpa)
{
	struct kvmfault__answer answer;
	struct kvmfault__region *region;
	struct kvmfault__place place;

	region = kvmfault__region_find(seat, f->address_space, gpa);
	place = kvmfault__region_place(region, gpa);
	answer = kvmfault__resolve(seat, f, &place);
	if (!region && answer.reason == KVMFAULT_REASON_DECLINED)
		answer.reason = KVMFAULT_REASON_NO_REGION;
	kvmfault__leave(seat);
	return answer;
}

int kvmfault__error(const struct kvmfault__answer *answer)
{
	switch (answer->action) {
	case KVMFAULT_RETRY:
		return answer->error;
	case KVMFAULT_INTERRUPTED:
		return -EINTR;
	case KVMFAULT_PENDING:
		return -EAGAIN;
	default:
		break;
	}
	if (answer->reason == KVMFAULT_REASON_NO_REGION)
		return -ENXIO;
	return answer->error ? answer->error : -EOPNOTSUPP;
}

void kvmfault__latency(struct kvmfault__seat *seat, uint64_t nanoseconds)
{
	uint64_t us = nanoseconds / 1000;
	unsigned int bin = us ? 64 - (unsigned int)__builtin_clzll(us) : 0;

	if (bin >= KVMFAULT_LATENCY_COUNT)
		bin = KVMFAULT_LATENCY_COUNT - 1;
	kvmfault__add(seat, KVMFAULT__COUNTER(latency) + bin, 1);
}
