/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Fetches in flight: what a source that answers later was asked for. In: a run
 * of absent pages, claimed. Out, some time, on the thread that says so: the
 * same publish as ever. A fetch is counted by its memory, and has a seat of its
 * own, made ahead, with room for the data: nothing is allocated for a fault, and
 * who asked is free to go.
 */

#include "defer.h"
#include "../os/trace.h"

#define FETCHES 64		/* if the VMM does not say */
#define MS 1000000ULL

/*
 * Who has it: the source, until it has said what came of it; who submits it; and
 * who cancels it. The last one to let go completes it, so that it is never given
 * back, and used again, while somebody is on his way to the source.
 */
#define HOLDERS 0xffffU
#define SUBMITTED (1U << 16)	/* the source can be told to end it */
#define CANCELLED (1U << 17)

#define UNSAID 1		/* the source's first word counts */

struct kvmfault_fetch {
	atomic_bool taken;
	atomic_uint state;
	atomic_int said;
	struct kvmfault__seat *seat;
	struct kvmfault__seat *asked;	/* whose thread may wait for it */
	struct kvmfault__request rq;
	struct kvmfault_fault fault;
	bool message;			/* somebody sleeps for it, there: */
	uint32_t space;
	uint64_t began;
	_Atomic uint64_t due;		/* UINT64_MAX: no deadline */
};

struct kvmfault__fetches {
	size_t count;
	struct kvmfault_fetch fetch[];
};

static void delete(struct kvmfault__fetches *fetches)
{
	size_t i;

	for (i = 0; fetches && i < fetches->count; i++)
		kvmfault__seat_give(fetches->fetch[i].seat);
	kvmfault__sys_free(fetches);
}

void kvmfault__fetches_free(struct kvmfault_vm *vm)
{
	delete(atomic_load(&vm->fetches));
}

static int make(struct kvmfault_vm *vm, struct kvmfault__fetches **fetches)
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
			delete(new);
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
	err = make(vm, &new);
	if (!err &&
	    !atomic_compare_exchange_strong(&vm->fetches, &none, new))
		delete(new);
	return err;
}

/* ---- what became of it, for who waits ---- */

/* A page and an error in one word: one that belongs to another fetch is not
 * mistaken for ours. */
static uint64_t ticket(const struct kvmfault_memory *memory, uint64_t page,
		       unsigned int low)
{
	uint64_t hash = (page ^ (uintptr_t)memory) * 0x9e3779b97f4a7c15ULL;

	return hash << 16 | low;
}

#define OF_SOURCE (1U << 15)

/* Each has a place of its own: a vCPU that does not wait may have asked for all
 * that its instruction needs before it is told of the first. */
static void note_failure(const struct kvmfault_fetch *fetch, int error)
{
	const struct kvmfault__request *rq = &fetch->rq;
	struct kvmfault__seat *asked = fetch->asked;
	unsigned int low = (unsigned int)-error;
	uint32_t n = atomic_fetch_add(&asked->failures, 1);

	if (rq->source_failed)
		low |= OF_SOURCE;
	atomic_store(&asked->failed[n % KVMFAULT__FAILURES],
		     ticket(rq->request.memory, rq->page, low));
}

/* Its lower half, or 0: there is none. */
static unsigned int take_failure(const struct kvmfault__request *rq)
{
	struct kvmfault__seat *seat = rq->seat;
	size_t i;

	for (i = 0; i < KVMFAULT__FAILURES; i++) {
		uint64_t failed = atomic_load(&seat->failed[i]);
		unsigned int low = failed & 0xffff;

		if (failed && failed == ticket(rq->request.memory, rq->page,
					       low)) {
			atomic_store(&seat->failed[i], 0);
			return low;
		}
	}
	return 0;
}

int kvmfault__fetch_failed(struct kvmfault__request *rq)
{
	unsigned int low = 0;

	/* What has come once is never absent again. */
	if (atomic_load(&rq->seat->failures) &&
	    kvmfault__page_state(rq->request.memory, rq->page) ==
	    KVMFAULT__ABSENT)
		low = take_failure(rq);
	if (low)
		rq->source_failed = low & OF_SOURCE;
	return -(int)(low & ~OF_SOURCE);
}

/* ---- its life ---- */

static struct kvmfault_fetch *take(struct kvmfault__fetches *all)
{
	size_t i;

	for (i = 0; i < all->count; i++)
		if (!atomic_load(&all->fetch[i].taken) &&
		    !atomic_exchange(&all->fetch[i].taken, true))
			return &all->fetch[i];
	return NULL;
}

static bool all_in_use(const struct kvmfault__fetches *all)
{
	size_t i = 0;

	while (i < all->count && atomic_load(&all->fetch[i].taken))
		i++;
	return i == all->count;
}

bool kvmfault__fetch_wished(struct kvmfault__request *rq)
{
	struct kvmfault_memory *memory = rq->request.memory;
	struct kvmfault__seat *seat = rq->seat;
	struct kvmfault__fetches *all = atomic_load(&seat->vm->fetches);

	if (kvmfault__waits(rq) ||
	    kvmfault__page_state(memory, rq->page) != KVMFAULT__ABSENT ||
	    !all_in_use(all))
		return false;
	kvmfault__set_pending(seat);
	kvmfault__withdraw(seat);	/* what it wished before */
	atomic_fetch_add(&memory->fetches, 1);
	atomic_store(&seat->wish_offset, rq->request.offset);
	atomic_store(&seat->wish, memory);
	/* Who gives one back, or frees the memory, looks afterwards. */
	if (all_in_use(all) && !atomic_load(&memory->closing))
		return true;
	kvmfault__not_pending(seat);
	return false;
}

/* The wishes of all, or for one memory. */
static void grant(struct kvmfault_vm *vm, struct kvmfault_memory *only)
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
		kvmfault__tell_page_ready(memory, atomic_load(&seat->wish_offset));
		kvmfault__exit(&inside);
		kvmfault__unpin(memory);
	}
}

static void give(struct kvmfault_fetch *fetch)
{
	struct kvmfault_memory *memory = fetch->rq.request.memory;
	struct kvmfault_vm *vm = fetch->seat->vm;

	atomic_store(&fetch->due, UINT64_MAX);
	kvmfault__leave(fetch->seat);
	atomic_store(&fetch->taken, false);
	grant(vm, NULL);
	kvmfault__unpin(memory);
}

/* All that it needs after the one who asked has gone: not its region, nor where
 * the sleeper's message came from, which may be removed. */
static void move_in(struct kvmfault_fetch *fetch,
		    const struct kvmfault__request *rq)
{
	struct kvmfault_memory *memory = rq->request.memory;
	uint64_t deadline = memory->source.deadline_ms * MS;

	/* Counted before the other lets go. */
	atomic_fetch_add(&memory->fetches, 1);
	fetch->asked = rq->seat;
	fetch->fault = *rq->request.fault;
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
	take_failure(rq);	/* it is asked for anew */
}

static void complete(struct kvmfault_fetch *fetch);

static bool hold(struct kvmfault_fetch *fetch)
{
	unsigned int state = atomic_load(&fetch->state);

	do {
		if (!(state & HOLDERS))
			return false;
	} while (!atomic_compare_exchange_weak(&fetch->state, &state,
					       state + 1));
	return true;
}

/* True: nobody has it any more. */
static bool let_go(struct kvmfault_fetch *fetch)
{
	return (atomic_fetch_sub(&fetch->state, 1) & HOLDERS) == 1;
}

/* False: the source has said something before. */
static bool say(struct kvmfault_fetch *fetch, int error)
{
	int unsaid = UNSAID;

	return atomic_compare_exchange_strong(&fetch->said, &unsaid, error);
}

static bool unsaid(const struct kvmfault_fetch *fetch)
{
	return atomic_load(&fetch->said) == UNSAID;
}

/* Of a memory that is being freed nothing is asked for any more. */
static int submit(struct kvmfault_fetch *fetch)
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

/* The source may answer before submit() returns. -errno: it was refused, and
 * nobody else has it. */
static int begin(struct kvmfault_fetch *fetch)
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
	atomic_store(&fetch->state, 2);		/* the source, and we */
	err = submit(fetch);
	/* Said to have failed, and yet answered: the answer is heard. */
	if (err && say(fetch, err)) {
		refused = true;
		let_go(fetch);
	}
	kvmfault__set_deadline(fetch->seat, atomic_load(&fetch->due));
	if (atomic_fetch_or(&fetch->state, SUBMITTED) & CANCELLED &&
	    unsaid(fetch))
		source->cancel(source->data, fetch);
	if (!let_go(fetch))
		return 0;
	if (refused)
		return err;
	complete(fetch);
	return 0;
}

int kvmfault__submit(struct kvmfault__request *rq)
{
	struct kvmfault__fetches *all = atomic_load(&rq->seat->vm->fetches);
	struct kvmfault_fetch *fetch;
	int err;

	while (!(fetch = take(all))) {
		/* A message can wait where it is parked, and who does not
		 * want to wait comes again. */
		if (rq->origin || !kvmfault__waits(rq) ||
		    atomic_load(&rq->request.memory->closing))
			return -EAGAIN;
		err = kvmfault__pause(rq->seat, MS);
		if (err)
			return err;
	}
	move_in(fetch, rq);
	err = begin(fetch);
	if (err) {
		rq->source_failed = fetch->rq.source_failed;
		give(fetch);
		return err;
	}
	rq->detached = true;
	return KVMFAULT_VERDICT_LATER;
}

/* It failed for the run: ask for the page alone. */
static bool again_alone(struct kvmfault_fetch *fetch)
{
	int err;

	if (fetch->rq.count == 1 || atomic_load(&fetch->state) & CANCELLED)
		return false;
	kvmfault__narrow(&fetch->rq);
	err = begin(fetch);
	/* It is the page's error that counts. */
	if (err)
		atomic_store(&fetch->said, err);
	return !err;
}

static int install(struct kvmfault_fetch *fetch, int error)
{
	struct kvmfault_request *request = &fetch->rq.request;

	if (!error)
		return kvmfault_request_install(request, request->buffer);
	/* Cancelled before it could be asked for the page alone: the data of which
	 * page is lost? */
	if (error == -EHWPOISON && fetch->rq.count > 1)
		error = -EIO;
	if (error == -EHWPOISON)
		error = kvmfault__lost(request);
	fetch->rq.source_failed = error != -EAGAIN;
	return error;
}

/* Where the sleeper's message came from, if that is a mapping of it still. */
static struct kvmfault_mapping *find_origin(struct kvmfault_fetch *fetch)
{
	struct kvmfault_mapping *origin = NULL;

	if (fetch->message)
		origin = kvmfault__mapping_find(fetch->seat, fetch->space,
						fetch->fault.hva);
	return origin && origin->span.memory == fetch->rq.request.memory ?
		origin : NULL;
}

/* False: it is in flight again, or somebody's by now. */
static bool conclude(struct kvmfault_fetch *fetch)
{
	struct kvmfault__request *rq = &fetch->rq;
	int error = atomic_load(&fetch->said);

	if (error && again_alone(fetch))
		return false;
	rq->origin = find_origin(fetch);
	error = install(fetch, atomic_load(&fetch->said));
	KVMFAULT__TRACE(fetch_done, fetch, rq->request.memory,
			rq->request.offset, rq->request.length, error);
	/* Of a poisoned page its state says enough. */
	if (error && !rq->poisoned) {
		note_failure(fetch, error);
		if (rq->origin)
			kvmfault__defer_fetch(rq, error);
	}
	kvmfault__conclude(rq, KVMFAULT__ABSENT);
	if (!error) {
		kvmfault__add(fetch->seat, KVMFAULT__COUNTER(resolver) +
			      rq->resolver, 1);
		kvmfault__latency(fetch->seat,
				  kvmfault__sys_now() - fetch->began);
	}
	return true;
}

static void complete(struct kvmfault_fetch *fetch)
{
	struct kvmfault__inside inside;
	bool over;

	kvmfault__enter(&inside, fetch->seat, fetch->rq.request.memory);
	over = conclude(fetch);
	kvmfault__exit(&inside);
	if (over)
		give(fetch);
}

KVMFAULT__EXPORT
void kvmfault_fetch_done(struct kvmfault_fetch *fetch, int error)
{
	if (error > 0)
		error = -EIO;
	if (fetch && say(fetch, error) && let_go(fetch))
		complete(fetch);
}

/* ---- the end of patience ---- */

/* A source can't be told to end what it does not have yet: then who submits it
 * tells it. */
static void cancel(struct kvmfault_fetch *fetch,
		   bool (*wanted)(const struct kvmfault_fetch *fetch,
				  const void *what),
		   const void *what)
{
	const struct kvmfault_source *source;

	if (!hold(fetch))
		return;
	source = &fetch->rq.request.memory->source;
	if (source->cancel && wanted(fetch, what) && unsaid(fetch) &&
	    (atomic_fetch_or(&fetch->state, CANCELLED) &
	     (CANCELLED | SUBMITTED)) == SUBMITTED)
		source->cancel(source->data, fetch);
	if (let_go(fetch))
		complete(fetch);
}

static void cancel_all(struct kvmfault_vm *vm,
		       bool (*wanted)(const struct kvmfault_fetch *fetch,
				      const void *what),
		       const void *what)
{
	struct kvmfault__fetches *all = atomic_load(&vm->fetches);
	size_t i;

	for (i = 0; all && i < all->count; i++)
		cancel(&all->fetch[i], wanted, what);
}

static bool of_memory(const struct kvmfault_fetch *fetch, const void *memory)
{
	return fetch->rq.request.memory == memory;
}

void kvmfault__fetches_cancel(struct kvmfault_memory *memory)
{
	cancel_all(memory->vm, of_memory, memory);
	grant(memory->vm, memory);
}

struct range {
	const struct kvmfault_memory *memory;
	uint64_t offset, length;
};

static bool of_range(const struct kvmfault_fetch *fetch, const void *what)
{
	const struct kvmfault_request *request = &fetch->rq.request;
	const struct range *range = what;

	return request->memory == range->memory &&
	       request->offset < range->offset + range->length &&
	       range->offset < request->offset + request->length;
}

/* As much of it as one region shows. */
static int cancel_region(struct kvmfault__seat *seat, uint32_t space,
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
		cancel_all(seat->vm, of_range, &range);
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
			"kvmfault_cancel_fetches: gpa %#llx, length %#llx: empty, or past the end of all",
			(unsigned long long)gpa, (unsigned long long)length);
	seat = kvmfault__call_begin(vm);
	if (!seat)
		return -ENOMEM;
	while (length && !err) {
		uint64_t step = 0;

		err = cancel_region(seat, address_space, gpa, length, &step);
		gpa += step;
		length -= step;
	}
	kvmfault__call_end(seat);
	return err;
}

static bool is_due(const struct kvmfault_fetch *fetch, const void *now)
{
	return atomic_load(&fetch->due) <= *(const uint64_t *)now;
}

void kvmfault__fetches_expire(struct kvmfault_vm *vm, uint64_t now)
{
	cancel_all(vm, is_due, &now);
}

uint64_t kvmfault__fetches_due(struct kvmfault_vm *vm)
{
	const struct kvmfault__fetches *all = atomic_load(&vm->fetches);
	uint64_t due = UINT64_MAX;
	size_t i;

	for (i = 0; all && i < all->count; i++) {
		const struct kvmfault_fetch *fetch = &all->fetch[i];
		uint64_t its = atomic_load(&fetch->due);

		if (its < due && unsaid(fetch) &&
		    !(atomic_load(&fetch->state) & CANCELLED))
			due = its;
	}
	return due;
}
