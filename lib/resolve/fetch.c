/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Fetches in flight: requests to a source that answers later. In: a claimed run
 * of absent pages. Out: once the source has answered, mostly on its thread, the
 * run is installed and published as every run is. Each fetch is counted by its
 * memory, and has a seat of its own, which is made ahead and has room for the
 * data. So a fault allocates nothing, and the thread that asked may leave.
 */

#include "defer.h"
#include "../os/trace.h"

#define FETCHES 64		/* if the VMM does not say */

/*
 * A fetch is held by the source until it has answered, by the thread that
 * submits it, and by each that cancels it. The last holder completes the fetch:
 * so no thread reuses it while another is about to call the source for it.
 */
#define HOLDERS 0xffffU
#define SUBMITTED (1U << 16)	/* the source may be told to cancel */
#define CANCELLED (1U << 17)

#define UNSAID 1		/* no result yet: only the first one counts */

struct kvmfault_fetch {
	atomic_bool taken;
	_Atomic(struct kvmfault_fill *) fill;	/* that asks, and no thread
						 * waits for it; or NULL */
	atomic_uint state;
	atomic_int said;
	struct kvmfault__seat *seat;
	struct kvmfault__seat *asked;	/* its thread may wait for the fetch */
	struct kvmfault__request rq;
	struct kvmfault_fault fault;
	bool message;			/* a sleeper waits, in this one: */
	uint32_t space;
	uint64_t began;
	_Atomic uint64_t due;		/* UINT64_MAX: no deadline */
};

struct kvmfault__fetches {
	size_t count;
	_Atomic size_t fills;		/* in flight for fills */
	struct kvmfault_fetch fetch[];
};

static void fetches_delete(struct kvmfault__fetches *fetches)
{
	size_t i;

	for (i = 0; fetches && i < fetches->count; i++)
		kvmfault__seat_give(fetches->fetch[i].seat);
	kvmfault__sys_free(fetches);
}

void kvmfault__fetches_free(struct kvmfault_vm *vm)
{
	fetches_delete(atomic_load(&vm->fetches));
}

static int fetches_make(struct kvmfault_vm *vm,
			struct kvmfault__fetches **fetches)
{
	size_t count = vm->options.fetches ? vm->options.fetches : FETCHES;
	struct kvmfault__fetches *new;

	new = kvmfault__sys_alloc(sizeof(*new) +
				  count * sizeof(new->fetch[0]), 0);
	if (!new)
		return -ENOMEM;
	for (; new->count < count; new->count++) {
		struct kvmfault_fetch *fetch = &new->fetch[new->count];

		fetch->seat = kvmfault__seat_take(vm);
		if (!fetch->seat) {
			fetches_delete(new);
			return -ENOMEM;
		}
		atomic_store(&fetch->due, UINT64_MAX);
	}
	*fetches = new;
	return 0;
}

int kvmfault__fetches_new(struct kvmfault_vm *vm)
{
	struct kvmfault__fetches *new, *none = NULL;
	int err;

	if (atomic_load(&vm->fetches))
		return 0;
	err = fetches_make(vm, &new);
	if (!err &&
	    !atomic_compare_exchange_strong(&vm->fetches, &none, new))
		fetches_delete(new);
	return err;
}

/* ---- failures, for the threads that asked ---- */

/*
 * A ticket is a 48-bit hash of memory and page, with the error. Two pages can,
 * though rarely, have the same hash. A thread may then take the failure of the
 * other page's fetch for its own, and the other page is asked for again.
 */
static uint64_t fetch_ticket(const struct kvmfault_memory *memory,
			     uint64_t page, unsigned int low)
{
	/* Both multiplied: two memories that lie side by side do not have the
	 * same hash at pages that are as far apart. */
	uint64_t hash = page * 0xbf58476d1ce4e5b9ULL +
			(uintptr_t)memory * 0x9e3779b97f4a7c15ULL;

	return (hash ^ hash >> 32) << 16 | low;
}

#define OF_SOURCE (1U << 15)

/* Each failure has its own slot: a vCPU with no_wait may have asked for all
 * pages of its instruction before it hears of the first. */
static void fetch_note_failure(const struct kvmfault_fetch *fetch, int error)
{
	const struct kvmfault_fill *fill = atomic_load(&fetch->fill);
	const struct kvmfault__request *rq = &fetch->rq;
	struct kvmfault__seat *asked = fetch->asked;
	unsigned int low = (unsigned int)-error;
	uint32_t n = atomic_fetch_add(&asked->failures, 1);

	if (rq->source_failed)
		low |= OF_SOURCE;
	atomic_store(&asked->failed[n % KVMFAULT__FAILURES],
		     fetch_ticket(rq->request.memory, rq->page, low));
	/* A fill has asked for more pages than there are slots, before it asks
	 * for this one again. */
	if (fill && fill == atomic_load(&asked->fill) && error != -EAGAIN)
		atomic_store(&asked->fill_error, error);
}

/* Returns the ticket's low 16 bits, or 0 if the page has none. */
static unsigned int fetch_take_failure(const struct kvmfault__request *rq)
{
	struct kvmfault__seat *seat = rq->seat;
	size_t i;

	for (i = 0; i < KVMFAULT__FAILURES; i++) {
		uint64_t failed = atomic_load(&seat->failed[i]);
		unsigned int low = failed & 0xffff;

		if (failed && failed == fetch_ticket(rq->request.memory,
						     rq->page, low)) {
			atomic_store(&seat->failed[i], 0);
			return low;
		}
	}
	return 0;
}

int kvmfault__fetch_failed(struct kvmfault__request *rq)
{
	unsigned int low = 0;

	/* A page that has come is never absent again: then an older failure
	 * of its fetch does not count. */
	if (atomic_load(&rq->seat->failures) &&
	    kvmfault__page_state(rq->request.memory, rq->page) ==
	    KVMFAULT__ABSENT)
		low = fetch_take_failure(rq);
	if (low)
		rq->source_failed = low & OF_SOURCE;
	return -(int)(low & ~OF_SOURCE);
}

/* ---- the life of a fetch ---- */

static struct kvmfault_fetch *fetch_take(struct kvmfault__fetches *all)
{
	size_t i;

	for (i = 0; i < all->count; i++)
		if (!atomic_load(&all->fetch[i].taken) &&
		    !atomic_exchange(&all->fetch[i].taken, true))
			return &all->fetch[i];
	return NULL;
}

static bool fetches_are_all_taken(const struct kvmfault__fetches *all)
{
	size_t i = 0;

	while (i < all->count && atomic_load(&all->fetch[i].taken))
		i++;
	return i == all->count;
}

bool kvmfault__fetch_for_others(struct kvmfault_vm *vm)
{
	const struct kvmfault__fetches *all = atomic_load(&vm->fetches);
	size_t i, count = all ? all->count : 0;

	for (i = 0; i < count; i++)
		if (atomic_load(&all->fetch[i].taken) &&
		    !atomic_load(&all->fetch[i].fill))
			return true;
	return false;
}

static bool fetch_flies_for(const struct kvmfault__fetches *all,
			    const struct kvmfault_fill *fill)
{
	size_t i;

	for (i = 0; i < all->count; i++)
		if (atomic_load(&all->fetch[i].taken) &&
		    atomic_load(&all->fetch[i].fill) == fill)
			return true;
	return false;
}

/* A fill has one fetch in flight while the guest faults, and all of them have
 * at most half: the others are left to faults. */
static struct kvmfault_fetch *
fetch_take_for_fill(struct kvmfault__fetches *all,
		    const struct kvmfault__seat *seat)
{
	size_t limit = all->count < 2 ? 1 : all->count / 2;
	struct kvmfault_fetch *fetch = NULL;

	if (seat->gentle && fetch_flies_for(all, atomic_load(&seat->fill)))
		return NULL;
	if (atomic_fetch_add(&all->fills, 1) < limit)
		fetch = fetch_take(all);
	if (!fetch)
		atomic_fetch_sub(&all->fills, 1);
	return fetch;
}

bool kvmfault__fetch_wished(struct kvmfault__request *rq)
{
	struct kvmfault_memory *memory = rq->request.memory;
	struct kvmfault__seat *seat = rq->seat;
	struct kvmfault__fetches *all = atomic_load(&seat->vm->fetches);

	if (kvmfault__waits(rq) || kvmfault__fills(rq) ||
	    kvmfault__page_state(memory, rq->page) != KVMFAULT__ABSENT ||
	    !fetches_are_all_taken(all))
		return false;
	kvmfault__set_pending(seat);
	kvmfault__withdraw(seat);	/* an earlier wish */
	atomic_fetch_add(&memory->fetches, 1);
	atomic_store(&seat->wish_offset, rq->request.offset);
	atomic_store(&seat->wish, memory);
	/* A thread that gives a fetch back, or frees the memory, looks at the
	 * wishes afterwards: so no wish is missed. */
	if (fetches_are_all_taken(all) && !atomic_load(&memory->closing))
		return true;
	kvmfault__not_pending(seat);
	return false;
}

/* Tells the VMM that these vCPUs can try again: all that wish for a fetch, or
 * those that wish for a page of one memory. */
static void fetches_grant_wishes(struct kvmfault_vm *vm,
				 struct kvmfault_memory *only)
{
	struct kvmfault__seat *seat = atomic_load(&vm->pending) ?
				      atomic_load(&vm->seats) : NULL;
	struct kvmfault__inside inside;

	for (; seat; seat = seat->next) {
		struct kvmfault_memory *memory = atomic_load(&seat->wish);

		if (!memory || (only && memory != only) ||
		    !atomic_compare_exchange_strong(&seat->wish, &memory, NULL))
			continue;
		kvmfault__enter(&inside, NULL, memory);
		/* The vCPU may have the next wish by now, with another offset.
		 * Then that page is told early, and once more in its turn. */
		kvmfault__tell_page_ready(memory,
					  atomic_load(&seat->wish_offset));
		kvmfault__exit(&inside);
		kvmfault__unpin(memory);
	}
}

static void fetch_give(struct kvmfault_fetch *fetch)
{
	struct kvmfault_memory *memory = fetch->rq.request.memory;
	struct kvmfault_vm *vm = fetch->seat->vm;
	struct kvmfault__fetches *fetches = atomic_load(&vm->fetches);

	atomic_store(&fetch->due, UINT64_MAX);
	kvmfault__leave(fetch->seat);
	if (atomic_load(&fetch->fill))
		atomic_fetch_sub(&fetches->fills, 1);
	atomic_store(&fetch->taken, false);
	fetches_grant_wishes(vm, NULL);
	kvmfault__unpin(memory);
}

/* The fetch gets all that it needs after the thread that asked has gone. The
 * region and the message's mapping are left out, since they may be removed. */
static void fetch_take_over(struct kvmfault_fetch *fetch,
			    const struct kvmfault__request *rq)
{
	struct kvmfault_memory *memory = rq->request.memory;
	uint64_t deadline = memory->source.deadline_ms * KVMFAULT__MS;

	/* The fetch is counted before that thread lets go of the memory. */
	atomic_fetch_add(&memory->fetches, 1);
	fetch->asked = rq->seat;
	fetch->fault = *rq->request.fault;
	atomic_store(&fetch->fill, kvmfault__fills(rq) ?
				   atomic_load(&rq->seat->fill) : NULL);
	fetch->message = rq->origin;
	fetch->space = rq->origin ? rq->origin->uffd->space : 0;
	fetch->rq = *rq;
	fetch->rq.seat = fetch->seat;
	fetch->rq.origin = NULL;
	fetch->rq.request.region = NULL;
	fetch->rq.request.fault = &fetch->fault;
	fetch->rq.request.buffer = kvmfault__buffer(fetch->seat, memory,
						    rq->request.offset);
	fetch->began = kvmfault__sys_now();
	atomic_store(&fetch->due, deadline ? fetch->began + deadline :
					     UINT64_MAX);
	fetch_take_failure(rq);	/* the page is asked for again */
}

static void fetch_complete(struct kvmfault_fetch *fetch);

static bool fetch_hold(struct kvmfault_fetch *fetch)
{
	unsigned int state = atomic_load(&fetch->state);

	do {
		if (!(state & HOLDERS))
			return false;
	} while (!atomic_compare_exchange_weak(&fetch->state, &state,
					       state + 1));
	return true;
}

/* Returns true if this was the last holder. */
static bool fetch_let_go(struct kvmfault_fetch *fetch)
{
	return (atomic_fetch_sub(&fetch->state, 1) & HOLDERS) == 1;
}

/* Returns false if the fetch has a result already. */
static bool fetch_set_result(struct kvmfault_fetch *fetch, int error)
{
	int unsaid = UNSAID;

	return atomic_compare_exchange_strong(&fetch->said, &unsaid, error);
}

static bool fetch_is_unanswered(const struct kvmfault_fetch *fetch)
{
	return atomic_load(&fetch->said) == UNSAID;
}

/* If the memory is being freed, its source is asked for nothing more. For
 * messages this holds only when the memory is KVMFAULT__CLOSED. */
static int fetch_submit(struct kvmfault_fetch *fetch)
{
	const struct kvmfault_request *request = &fetch->rq.request;
	const struct kvmfault_memory *memory = request->memory;
	int err;

	if (atomic_load(&memory->closing) > fetch->message)
		return -EAGAIN;
	err = memory->source.submit(memory->source.data, fetch,
				    memory->source_offset + request->offset,
				    request->buffer, request->length);
	if (err > 0)
		err = -EIO;
	fetch->rq.source_failed = err && err != -EAGAIN;
	return err;
}

/* The source may answer before its submit() returns. If this function returns
 * -errno, the fetch was not begun, and has no other holder. */
static int fetch_begin(struct kvmfault_fetch *fetch)
{
	const struct kvmfault_memory *memory = fetch->rq.request.memory;
	const struct kvmfault_source *source = &memory->source;
	bool refused = false;
	int err = 0;

	if (memory->fill)
		err = kvmfault__prepare(memory, fetch->rq.request.offset,
					fetch->rq.request.length);
	if (err)
		return err;
	atomic_store(&fetch->said, UNSAID);
	atomic_store(&fetch->state, 2);		/* the source, this thread */
	err = fetch_submit(fetch);
	/* If submit() fails and the source has answered, the answer counts. */
	if (err && fetch_set_result(fetch, err)) {
		refused = true;
		fetch_let_go(fetch);
	}
	kvmfault__vm_deadline_lower(fetch->seat, atomic_load(&fetch->due));
	if (atomic_fetch_or(&fetch->state, SUBMITTED) & CANCELLED &&
	    fetch_is_unanswered(fetch))
		source->cancel(source->data, fetch);
	if (!fetch_let_go(fetch))
		return 0;
	if (refused)
		return err;
	fetch_complete(fetch);
	return 0;
}

int kvmfault__submit(struct kvmfault__request *rq)
{
	struct kvmfault__fetches *all = atomic_load(&rq->seat->vm->fetches);
	struct kvmfault_fetch *fetch;
	int err;

	while (!(fetch = kvmfault__fills(rq) ?
			 fetch_take_for_fill(all, rq->seat) :
			 fetch_take(all))) {
		/* A message can be deferred, and a vCPU with no_wait or a fill
		 * comes again. */
		if (rq->origin || !kvmfault__waits(rq) ||
		    atomic_load(&rq->request.memory->closing))
			return -EAGAIN;
		err = kvmfault__pause(rq->seat, KVMFAULT__MS);
		if (err)
			return err;
	}
	fetch_take_over(fetch, rq);
	err = fetch_begin(fetch);
	if (err) {
		rq->source_failed = fetch->rq.source_failed;
		fetch_give(fetch);
		return err;
	}
	rq->detached = true;
	return KVMFAULT_VERDICT_LATER;
}

/* If the source failed for a run, it is asked for the faulting page alone. */
static bool fetch_retry_alone(struct kvmfault_fetch *fetch)
{
	int err;

	if (fetch->rq.count == 1 || atomic_load(&fetch->state) & CANCELLED)
		return false;
	kvmfault__narrow(&fetch->rq);
	err = fetch_begin(fetch);
	/* The error of the page counts, and not that of the run. */
	if (err)
		atomic_store(&fetch->said, err);
	return !err;
}

static int fetch_install(struct kvmfault_fetch *fetch, int error)
{
	struct kvmfault_request *request = &fetch->rq.request;

	if (!error)
		return kvmfault_request_install(request, request->buffer);
	/* If a run was cancelled before the page was asked for alone, the
	 * library does not know which page has lost its data. */
	if (error == -EHWPOISON && fetch->rq.count > 1)
		error = -EIO;
	if (error == -EHWPOISON)
		error = kvmfault__lost(request);
	fetch->rq.source_failed = error != -EAGAIN;
	return error;
}

/* Returns the mapping that the sleeper's message came from; NULL if there is no
 * sleeper, or the address shows another memory by now. */
static struct kvmfault_mapping *fetch_find_origin(struct kvmfault_fetch *fetch)
{
	struct kvmfault_mapping *origin = NULL;

	if (fetch->message)
		origin = kvmfault__mapping_find(fetch->seat, fetch->space,
						fetch->fault.hva);
	return origin && origin->span.memory == fetch->rq.request.memory ?
		origin : NULL;
}

/* Returns false if the fetch was submitted again: others may have it now. */
static bool fetch_conclude(struct kvmfault_fetch *fetch)
{
	struct kvmfault__request *rq = &fetch->rq;
	int error = atomic_load(&fetch->said);

	if (error && fetch_retry_alone(fetch))
		return false;
	rq->origin = fetch_find_origin(fetch);
	error = fetch_install(fetch, atomic_load(&fetch->said));
	KVMFAULT__TRACE(fetch_done, fetch, rq->request.memory,
			rq->request.offset, rq->request.length, error);
	/* The state of a poisoned page says enough. */
	if (error && !rq->poisoned) {
		fetch_note_failure(fetch, error);
		if (rq->origin)
			kvmfault__defer_fetch(rq, error);
	}
	kvmfault__conclude(rq, KVMFAULT__ABSENT);
	if (atomic_load(&fetch->fill))
		kvmfault__add(fetch->seat, KVMFAULT__COUNTER(filled),
			      rq->installed.there - rq->installed.existed);
	if (!error) {
		kvmfault__add(fetch->seat, KVMFAULT__COUNTER(resolver) +
			      rq->resolver, 1);
		kvmfault__latency(fetch->seat,
				  kvmfault__sys_now() - fetch->began);
	}
	return true;
}

static void fetch_complete(struct kvmfault_fetch *fetch)
{
	struct kvmfault__inside inside;
	bool over;

	kvmfault__enter(&inside, fetch->seat, fetch->rq.request.memory);
	over = fetch_conclude(fetch);
	kvmfault__exit(&inside);
	if (over)
		fetch_give(fetch);
}

KVMFAULT__EXPORT
void kvmfault_fetch_done(struct kvmfault_fetch *fetch, int error)
{
	if (error > 0)
		error = -EIO;
	if (fetch && fetch_set_result(fetch, error) && fetch_let_go(fetch))
		fetch_complete(fetch);
}

/* ---- cancelling ---- */

/* If the source does not have the fetch yet, it cannot be told to cancel: then
 * the thread that submits the fetch tells it. */
static void fetch_cancel(struct kvmfault_fetch *fetch,
			 bool (*wanted)(const struct kvmfault_fetch *fetch,
					const void *what),
			 const void *what)
{
	const struct kvmfault_source *source;

	if (!fetch_hold(fetch))
		return;
	source = &fetch->rq.request.memory->source;
	if (source->cancel && wanted(fetch, what) &&
	    fetch_is_unanswered(fetch) &&
	    (atomic_fetch_or(&fetch->state, CANCELLED) &
	     (CANCELLED | SUBMITTED)) == SUBMITTED)
		source->cancel(source->data, fetch);
	if (fetch_let_go(fetch))
		fetch_complete(fetch);
}

static void fetches_cancel_if(struct kvmfault_vm *vm,
			      bool (*wanted)(const struct kvmfault_fetch *fetch,
					     const void *what),
			      const void *what)
{
	struct kvmfault__fetches *all = atomic_load(&vm->fetches);
	size_t i;

	for (i = 0; all && i < all->count; i++)
		fetch_cancel(&all->fetch[i], wanted, what);
}

static bool fetch_is_of_memory(const struct kvmfault_fetch *fetch,
			       const void *memory)
{
	return fetch->rq.request.memory == memory;
}

void kvmfault__fetches_cancel(struct kvmfault_memory *memory)
{
	fetches_cancel_if(memory->vm, fetch_is_of_memory, memory);
	fetches_grant_wishes(memory->vm, memory);
}

struct range {
	const struct kvmfault_memory *memory;
	uint64_t offset, length;
};

static bool fetch_is_in_range(const struct kvmfault_fetch *fetch,
			      const void *what)
{
	const struct kvmfault_request *request = &fetch->rq.request;
	const struct range *range = what;

	return request->memory == range->memory &&
	       request->offset < range->offset + range->length &&
	       range->offset < request->offset + request->length;
}

/* Cancels in the part of the range that one region shows, *step bytes. */
static int fetches_cancel_region(struct kvmfault__seat *seat, uint32_t space,
				 uint64_t gpa, uint64_t length, uint64_t *step)
{
	struct kvmfault__region *region;
	struct range range;

	region = kvmfault__region_find(seat, space, gpa);
	if (region) {
		*step = region->info.gpa + region->info.length - gpa;
		if (*step > length)
			*step = length;
		range.memory = region->span.memory;
		range.offset = kvmfault__region_offset(region, gpa);
		range.length = *step;
		fetches_cancel_if(seat->vm, fetch_is_in_range, &range);
	}
	kvmfault__leave(seat);
	return region ? 0 : -ENXIO;
}

KVMFAULT__EXPORT
int kvmfault_cancel_fetches(struct kvmfault_vm *vm, uint32_t address_space,
		    uint64_t gpa, uint64_t length)
{
	struct kvmfault__seat *seat;
	int err = 0;

	if (!vm)
		return -EINVAL;
	if (!length || gpa + length - 1 < gpa)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_cancel_fetches: the range at gpa %#llx, length %#llx, is empty, or wraps past the end of the address space",
			(unsigned long long)gpa, (unsigned long long)length);
	seat = kvmfault__call_begin(vm);
	if (!seat)
		return -ENOMEM;
	while (length && !err) {
		uint64_t step = 0;

		err = fetches_cancel_region(seat, address_space, gpa, length,
					    &step);
		gpa += step;
		length -= step;
	}
	kvmfault__call_end(seat);
	return err;
}

static bool fetch_is_due(const struct kvmfault_fetch *fetch, const void *now)
{
	return atomic_load(&fetch->due) <= *(const uint64_t *)now;
}

void kvmfault__fetches_expire(struct kvmfault_vm *vm, uint64_t now)
{
	fetches_cancel_if(vm, fetch_is_due, &now);
}

uint64_t kvmfault__fetches_due(struct kvmfault_vm *vm)
{
	const struct kvmfault__fetches *all = atomic_load(&vm->fetches);
	uint64_t due = UINT64_MAX;
	size_t i;

	for (i = 0; all && i < all->count; i++) {
		const struct kvmfault_fetch *fetch = &all->fetch[i];
		uint64_t its = atomic_load(&fetch->due);

		if (its < due && fetch_is_unanswered(fetch) &&
		    !(atomic_load(&fetch->state) & CANCELLED))
			due = its;
	}
	return due;
}
