/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage publish: the end of a claim. In: a request, and the pages that were
 * installed for it. Out: each claimed page has a true state, its waiters and
 * sleepers are awake, and the pages that came are counted and told. The order
 * is always: the data, the state, the page's bit for KVM, the wakes.
 */

#include "resolve.h"

/* If a discard flagged the page while it was in flight, free it: the discard
 * has the last word. Returns true if the page was flagged so, and is
 * published. */
static bool publish_if_discarded(struct kvmfault__request *rq, uint64_t page,
				 enum kvmfault__state else_to)
{
	struct kvmfault_memory *memory = rq->request.memory;
	uint64_t size = kvmfault__page_size(memory);
	int err;

	if (kvmfault__page_state(memory, page) != KVMFAULT__FETCHING_DISCARDED)
		return false;
	err = kvmfault__memory_punch(memory, page * size, size);
	if (!err && rq->poisoned)
		err = kvmfault__unpoison(rq->seat, memory, page * size);
	/* Nothing came into anonymous memory, so there is nothing to free. */
	if (memory->fd <= 0 && else_to == KVMFAULT__ABSENT)
		err = 0;
	if (err)
		kvmfault__log(memory->vm, KVMFAULT_LOG_WARNING,
			      "the page at offset %#llx was discarded while it was in flight, but could not be freed (error %d): the page keeps its data, or stays poisoned",
			      (unsigned long long)(page * size), -err);
	kvmfault__page_change(memory, page, KVMFAULT__FETCHING_DISCARDED,
			      err ? else_to : KVMFAULT__DISCARDED);
	if (err)
		return true;
	kvmfault__count(rq->seat, discarded);
	kvmfault__changed(memory, page * size, size, KVMFAULT_CAUSE_DISCARD);
	return true;
}

/* A sleeper or a discard has flagged the page, and may do so again. */
__attribute__((noinline))
static void publish_flagged_page(struct kvmfault__request *rq, uint64_t page,
				 enum kvmfault__state from,
				 enum kvmfault__state to)
{
	enum kvmfault__state found;

	while (!publish_if_discarded(rq, page, to)) {
		found = kvmfault__page_change(rq->request.memory, page, from,
					      to);
		if (found == from)
			break;
		from = found;
	}
}

static inline void publish_tell_page(struct kvmfault_memory *memory,
				     uint64_t page)
{
	kvmfault__userfault_follow(memory, page, 1);
	kvmfault__page_wake(memory, page);
}

/* fetching -> to. Returns true if the page was flagged. */
static inline bool publish_page(struct kvmfault__request *rq, uint64_t page,
				enum kvmfault__state to)
{
	struct kvmfault_memory *memory = rq->request.memory;
	enum kvmfault__state found;

	found = kvmfault__page_change(memory, page, KVMFAULT__FETCHING, to);
	if (found != KVMFAULT__FETCHING)
		publish_flagged_page(rq, page, found, to);
	publish_tell_page(memory, page);
	return found != KVMFAULT__FETCHING;
}

/* Publish a run in one step up to its first flagged page; mostly none is. */
static bool publish_run(struct kvmfault__request *rq, uint64_t first,
			uint64_t count, enum kvmfault__state to)
{
	struct kvmfault_memory *memory = rq->request.memory;
	uint64_t done = 0, page = first;
	bool flagged = false;

	if (count > 1)
		done = kvmfault__pages_change(memory, first, count,
					      KVMFAULT__FETCHING, to);
	for (; page < first + done; page++)
		publish_tell_page(memory, page);
	for (; page < first + count; page++)
		flagged |= publish_page(rq, page, to);
	return flagged;
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

/* Installed pages become present, the others get the state `was`. The kernel
 * has woken the sleepers of the memslots' mapping where it installed pages; all
 * other sleepers are woken here. */
static void publish_claimed(struct kvmfault__request *rq,
			    enum kvmfault__state was)
{
	const struct kvmfault__installed *installed = &rq->installed;
	struct kvmfault_memory *memory = rq->request.memory;
	uint64_t there = installed->there;
	bool flagged = publish_run(rq, rq->first, there, KVMFAULT__PRESENT);

	if (there < rq->count)
		flagged |= publish_run(rq, rq->first + there, rq->count - there,
				       was);
	if (flagged)
		kvmfault__wake(rq->seat, memory, NULL, rq->request.offset,
			       rq->request.length);
	/* If the page has not come, its sleeper sleeps on and its message is
	 * deferred. */
	else if (rq->origin && kvmfault__has_come(rq) &&
		 (installed->there < rq->count || rq->own_way ||
		  installed->existed || !rq->origin->memslots))
		kvmfault__wake(rq->seat, memory, rq->origin,
			       rq->request.offset, rq->request.length);
}

static void publish_warn_existed(struct kvmfault_memory *memory)
{
	if (!atomic_exchange(&memory->warned, true))
		kvmfault__log(memory->vm, KVMFAULT_LOG_WARNING,
			      "memory %p: found pages that the library did not install; they are kept. Check for mappings not added by kvmfault_mapping_add() and for shmem huge=always, which fills the neighbours of a write",
			      memory->host);
}

/* Call this after the publish: the VMM's callback may need the pages. */
void kvmfault__account(struct kvmfault__request *rq,
		       enum kvmfault__state was)
{
	const struct kvmfault__installed *installed = &rq->installed;
	struct kvmfault_memory *memory = rq->request.memory;
	uint64_t came = installed->there - installed->existed;
	bool zero = was == KVMFAULT__DISCARDED;

	if (atomic_load_explicit(&memory->recording, memory_order_relaxed) &&
	    installed->there && !zero)
		kvmfault__record(rq);
	if (installed->existed) {
		kvmfault__add(rq->seat, KVMFAULT__COUNTER(existed),
			      installed->existed);
		/* Of a page out of reach nobody can tell whether an owner that
		 * was killed has installed it. */
		if (!zero && !(kvmfault__out_of_reach(memory) &&
			       memory->states_file))
			publish_warn_existed(memory);
	}
	if (!came)
		return;
	if (zero)
		kvmfault__add(rq->seat, KVMFAULT__COUNTER(zeroed), came);
	else if (rq->request.page == KVMFAULT_PAGE_HOLE)
		kvmfault__add(rq->seat, KVMFAULT__COUNTER(holes), came);
	else
		kvmfault__add(rq->seat, KVMFAULT__COUNTER(fetched), came);
	kvmfault__changed(memory, rq->request.offset,
			  installed->there << memory->page_shift,
			  zero ? KVMFAULT_CAUSE_ZERO : KVMFAULT_CAUSE_FETCH);
}

void kvmfault__conclude(struct kvmfault__request *rq,
			enum kvmfault__state was)
{
	publish_claimed(rq, rq->poisoned ? KVMFAULT__POISONED : was);
	kvmfault__account(rq, was);
}
