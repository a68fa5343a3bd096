/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage publish: what became of claimed pages. In: a request, and what was installed for
 * it. Out: each page in a state that is true: data first, then the state, then its bit
 * for KVM, then the wakes.
 */

#include "resolve.h"

/* A discard came while the page was being fetched: it has the last word. */
static bool discarded(struct kvmfault__request *rq, uint64_t page,
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
	/* Where nothing came nothing is fetched any more. */
	if (memory->fd <= 0 && else_to == KVMFAULT__ABSENT)
		err = 0;
	if (err)
		kvmfault__log(memory->vm, KVMFAULT_LOG_WARNING,
			      "a page at offset %#llx was discarded while it was fetched, and could not be freed (error %d): it keeps its data",
			      (unsigned long long)(page * size), -err);
	kvmfault__page_change(memory, page, KVMFAULT__FETCHING_DISCARDED,
			      err ? else_to : KVMFAULT__DISCARDED);
	if (err)
		return true;
	kvmfault__count(rq->seat, discarded);
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
	bool zero = was == KVMFAULT__DISCARDED;

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
