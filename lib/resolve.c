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

void kvmfault__judge(const struct kvmfault__request *rq, int verdict,
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
	kvmfault__unresolved(answer, rq->source_failed ?
			     KVMFAULT_REASON_SOURCE : KVMFAULT_REASON_RESOLVER,
			     verdict < 0 ? verdict : -EINVAL);
}

/* Nobody has taken it. */
static void refuse(const struct kvmfault__request *rq, bool flags,
		   struct kvmfault__answer *answer)
{
	if (rq->request.fault->error == EHWPOISON)
		kvmfault__unresolved(answer, KVMFAULT_REASON_HWPOISON,
				     -EHWPOISON);
	else
		kvmfault__unresolved(answer, flags ? KVMFAULT_REASON_FLAGS :
				     KVMFAULT_REASON_DECLINED, -EOPNOTSUPP);
}

/* Flags of the fault that are not this VM's way to tell of it. */
static uint64_t unknown_flags(const struct kvmfault__request *rq)
{
	const struct kvmfault_fault *fault = rq->request.fault;

	return fault->flags ? fault->flags &
			      ~kvmfault__exit_flags(rq->seat->vm, fault) : 0;
}

void kvmfault__ask(struct kvmfault__request *rq, enum kvmfault_page page,
		   struct kvmfault__answer *answer)
{
	const struct kvmfault_vm *vm = rq->seat->vm;
	uint64_t unknown = unknown_flags(rq);
	uint32_t asked = vm->asked[page];
	bool flags = false;

	rq->request.page = page;
	kvmfault__add(rq->seat, KVMFAULT__COUNTER(page) + page, 1);
	/* Ours know nothing of failed memory. */
	if (rq->request.fault->error == EHWPOISON)
		asked &= (1U << vm->own_resolvers) - 1;
	for (; asked; asked &= asked - 1) {
		unsigned int i = (unsigned int)__builtin_ctz(asked);
		const struct kvmfault_resolver *r = &vm->chain[i];
		int verdict;

		if (unknown & ~r->flags) {
			flags = true;
			continue;
		}
		rq->resolver = i;
		rq->seat->in_hand = page != KVMFAULT_PAGE_UNTRACKED &&
				    page != KVMFAULT_PAGE_UNCONVERTED;
		verdict = r->resolve(r->data, &rq->request);
		rq->seat->in_hand = false;
		/* Whatever it says of it, it has brought the page. */
		if (verdict == KVMFAULT_DECLINED && kvmfault__has_come(rq))
			verdict = KVMFAULT_RESOLVED;
		if (verdict != KVMFAULT_DECLINED) {
			answer->resolver = r->name;
			kvmfault__judge(rq, verdict, answer);
			if (verdict == KVMFAULT_RESOLVED)
				kvmfault__add(rq->seat,
					      KVMFAULT__COUNTER(resolver) + i,
					      1);
			return;
		}
		if (rq->count > 1)
			kvmfault__narrow(rq);
	}
	refuse(rq, flags, answer);
}

/* A page that nobody fetches: untracked, or present and out of reach. */
void kvmfault__resolve_unclaimed(struct kvmfault__request *rq,
				 enum kvmfault_page page,
				 struct kvmfault__answer *answer)
{
	kvmfault__ask(rq, page, answer);
	if (answer->action == KVMFAULT_RETRY && rq->origin)
		kvmfault__wake(rq->seat, rq->request.memory, rq->origin,
			       rq->request.offset, rq->request.length);
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
		err = kvmfault__unpoison(rq->seat, memory, page * size);
	/* Where nothing came nothing is fetched any more. */
	if (memory->fd <= 0 && else_to == KVMFAULT__ABSENT)
		err = 0;
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

/* Somebody left a mark on it: a sleeper, or a discard. */
__attribute__((noinline))
static void publish_marked(struct kvmfault__request *rq, uint64_t page,
			   enum kvmfault__state from, enum kvmfault__state to)
{
	enum kvmfault__state found;

	while (!discarded(rq, page, to)) {
		found = kvmfault__page_change(rq->request.memory, page, from,
					      to);
		if (found == from)
			break;
		from = found;
	}
}

static inline void tell_page(struct kvmfault_memory *memory, uint64_t page)
{
	kvmfault__userfault_follow(memory, page, 1);
	kvmfault__page_wake(memory, page);
}

/* fetching -> to. True: it was marked. */
static inline bool publish_page(struct kvmfault__request *rq, uint64_t page,
				enum kvmfault__state to)
{
	struct kvmfault_memory *memory = rq->request.memory;
	enum kvmfault__state found;

	found = kvmfault__page_change(memory, page, KVMFAULT__FETCHING, to);
	if (found != KVMFAULT__FETCHING)
		publish_marked(rq, page, found, to);
	tell_page(memory, page);
	return found != KVMFAULT__FETCHING;
}

/* A run of them: mostly nobody has marked any. */
static bool publish_run(struct kvmfault__request *rq, uint64_t first,
			uint64_t count, enum kvmfault__state to)
{
	struct kvmfault_memory *memory = rq->request.memory;
	uint64_t done = 0, page = first;
	bool marked = false;

	if (count > 1)
		done = kvmfault__pages_change(memory, first, count,
					      KVMFAULT__FETCHING, to);
	for (; page < first + done; page++)
		tell_page(memory, page);
	for (; page < first + count; page++)
		marked |= publish_page(rq, page, to);
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
	uint64_t there = installed->there;
	bool marked = publish_run(rq, rq->first, there, KVMFAULT__PRESENT);

	if (there < rq->count)
		marked |= publish_run(rq, rq->first + there, rq->count - there,
				      was);
	if (marked)
		kvmfault__wake(rq->seat, memory, NULL, rq->request.offset,
			       rq->request.length);
	/* Whose page has not come is tried again where he sleeps. */
	else if (rq->origin && kvmfault__has_come(rq) &&
		 (installed->there < rq->count || rq->own_way ||
		  installed->existed || !rq->origin->memslots))
		kvmfault__wake(rq->seat, memory, rq->origin,
			       rq->request.offset, rq->request.length);
}

static void warn_existed(struct kvmfault_memory *memory)
{
	if (!atomic_exchange(&memory->warned, true))
		kvmfault__log(memory->vm, KVMFAULT_LOG_WARNING,
			      "pages came into the memory at %p past the library, and are taken as they are: somebody maps it unregistered, or its huge=always fills the neighbours of what is written",
			      memory->host);
}

/* After it was published: what a callback does may need the page. */
void kvmfault__account(struct kvmfault__request *rq,
		       enum kvmfault__state was)
{
	const struct kvmfault__installed *installed = &rq->installed;
	struct kvmfault_memory *memory = rq->request.memory;
	uint64_t came = installed->there - installed->existed;
	bool zero = was == KVMFAULT__REMOVED;

	if (installed->existed) {
		kvmfault__add(rq->seat, KVMFAULT__COUNTER(existed),
			      installed->existed);
		if (!zero)
			warn_existed(memory);
	}
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
	kvmfault__account(rq, was);
}

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
		kvmfault__unresolved(answer, KVMFAULT_REASON_LIE, -ENODATA);
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
	answer->action = rq->origin && !err ? KVMFAULT_RETRY :
					      KVMFAULT_UNRESOLVED;
	answer->reason = KVMFAULT_REASON_HWPOISON;
	answer->error = rq->origin ? err : -EHWPOISON;
}

/* was: absent or removed, and now ours. */
static void resolve_claimed(struct kvmfault__request *rq,
			    enum kvmfault__state was,
			    struct kvmfault__answer *answer)
{
	*answer = (struct kvmfault__answer){ 0 };
	kvmfault__ask(rq, was == KVMFAULT__REMOVED ? KVMFAULT_PAGE_REMOVED :
						     KVMFAULT_PAGE_ABSENT,
		      answer);
	if (rq->detached)
		return;
	answer->came = answer->action == KVMFAULT_RETRY && !answer->error;
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
		answer->action = KVMFAULT_PENDING;
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
		answer->action = KVMFAULT_PENDING;
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
		case KVMFAULT__REMOVED:
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
		case KVMFAULT__FETCHING_REMOVED:
			break;
		}
		*answer = (struct kvmfault__answer){
			.action = KVMFAULT_RETRY,
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
	answer->came = answer->action == KVMFAULT_RETRY &&
		       kvmfault__attributes_find(rq->seat->vm, pages,
						 !private) == pages.end;
}

/* Each member by itself: to clear it all costs more than to fill it. */
static void begin(struct kvmfault__request *rq, struct kvmfault__seat *seat,
		  const struct kvmfault_fault *fault,
		  const struct kvmfault__place *place)
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
	       (fault->entrance == KVMFAULT_ENTRANCE_EXIT &&
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
		       const struct kvmfault__place *place,
		       struct kvmfault__answer *answer)
{
	struct kvmfault_memory *memory = place->memory;
	struct kvmfault__request rq;
	struct kvmfault__gfns pages;

	begin(&rq, seat, fault, place);
	kvmfault__say(answer, KVMFAULT_RETRY);
	KVMFAULT__TRACE(resolve_begin, seat, fault->entrance, memory,
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
	    fault->entrance != KVMFAULT_ENTRANCE_CALL)
		kvmfault__tell_failure(&rq, answer);
	if (rq.count > 1 || rq.window_length)
		tell_window(&rq, answer);
	KVMFAULT__TRACE(resolve_end, seat, fault->entrance, memory,
			rq.request.offset, answer->action, answer->reason,
			answer->error, answer->resolver);
}

void kvmfault__resolve_gpa(struct kvmfault__seat *seat,
			   const struct kvmfault_fault *fault, uint64_t gpa,
			   struct kvmfault__answer *answer)
{
	struct kvmfault__region *region =
		kvmfault__region_find(seat, fault->address_space, gpa);
	struct kvmfault__place place = kvmfault__region_place(region, gpa);

	if (region && fault->entrance != KVMFAULT_ENTRANCE_EXIT &&
	    kvmfault__shows_private(seat->vm, region, gpa))
		kvmfault__say(answer, KVMFAULT_RETRY);	/* it is KVM's */
	else
		kvmfault__resolve(seat, fault, &place, answer);
	if (!region && answer->reason == KVMFAULT_REASON_DECLINED)
		answer->reason = KVMFAULT_REASON_NO_REGION;
	kvmfault__leave(seat);
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
