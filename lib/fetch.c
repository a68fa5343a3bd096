/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Fetches in flight: what a source that answers later was asked for. In: a run
 * of absent pages, claimed. Out, some time, on the thread that says so: the
 * same publish as ever. A fetch has a seat of its own, made ahead, which holds
 * the memory and has room for the data: nothing is allocated for a fault, and
 * who asked is free to go.
 */

#include "internal.h"
#include "trace.h"

#define FETCHES 64		/* if the VMM does not say */
#define MS 1000000ULL

/*
 * Whoever sets DONE completes it, unless somebody is submitting or cancelling:
 * then that one does, when it is finished with it. So a fetch is never given
 * back, and used again, while submit() or cancel() is on its way to the source.
 */
#define BEGUN (1U << 0)		/* the source has it, or is being given it */
#define DONE (1U << 1)
#define CANCELLING (1U << 2)
#define CANCELLED (1U << 3)
#define SUBMITTING (1U << 4)

struct kvmfault_fetch {
	atomic_bool taken;
	atomic_uint state;
	atomic_int error;
	struct kvmfault__seat *seat;
	struct kvmfault__seat *asked;	/* whose thread may wait for it */
	struct kvmfault__request rq;
	struct kvmfault_fault fault;
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
		atomic_store(&fetch->seat->owner, 0);
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

static void note_failure(const struct kvmfault_fetch *fetch, int error)
{
	const struct kvmfault__request *rq = &fetch->rq;
	unsigned int low = (unsigned int)-error;

	if (rq->source_failed)
		low |= OF_SOURCE;
	atomic_store(&fetch->asked->failed,
		     ticket(rq->request.memory, rq->page, low));
}

int kvmfault__fetch_failed(struct kvmfault__request *rq)
{
	uint64_t failed = atomic_exchange(&rq->seat->failed, 0);
	unsigned int low = failed & 0xffff;

	if (!failed || failed != ticket(rq->request.memory, rq->page, low))
		return 0;
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

static void give(struct kvmfault_fetch *fetch)
{
	atomic_store(&fetch->state, 0);
	atomic_store(&fetch->due, UINT64_MAX);
	atomic_store(&fetch->seat->owner, 0);
	kvmfault__leave(fetch->seat);
	atomic_store(&fetch->taken, false);
}

/* All that it needs after the one who asked has gone. */
static void move_in(struct kvmfault_fetch *fetch,
		    const struct kvmfault__request *rq)
{
	const struct kvmfault_memory *memory = rq->request.memory;
	uint64_t deadline = memory->source.deadline_ms * MS;

	/* Held by us before the other lets go. */
	atomic_store(&fetch->seat->span, atomic_load(&rq->seat->span));
	fetch->asked = rq->seat;
	fetch->fault = *rq->request.fault;
	fetch->rq = *rq;
	fetch->rq.seat = fetch->seat;
	fetch->rq.request.fault = &fetch->fault;
	fetch->rq.request.buffer = kvmfault__buffer(fetch->seat, memory,
						    rq->request.offset);
	fetch->began = kvmfault__sys_now();
	atomic_store(&fetch->due, deadline ? fetch->began + deadline :
					     UINT64_MAX);
	atomic_store(&rq->seat->failed, 0);
}

/* A source can't be told to end what it does not have yet: who submits tells
 * it what was cancelled meanwhile. Returns what else became of it. */
static unsigned int submitted(struct kvmfault_fetch *fetch)
{
	const struct kvmfault_source *source =
		&fetch->rq.request.memory->source;
	unsigned int state = atomic_load(&fetch->state);
	bool told = false;

	do {
		if (state & CANCELLED && !(state & DONE) && !told) {
			told = true;
			source->cancel(source->data, fetch);
		}
	} while (!atomic_compare_exchange_weak(&fetch->state, &state,
					       state & ~SUBMITTING));
	return state;
}

static void complete(struct kvmfault_fetch *fetch);

/* The source may answer before submit() returns. */
static int begin(struct kvmfault_fetch *fetch)
{
	const struct kvmfault_request *request = &fetch->rq.request;
	const struct kvmfault_memory *memory = request->memory;
	unsigned int state;
	int err = 0;

	if (memory->fill)
		err = kvmfault__prepare(memory, request->offset,
					request->length);
	if (err)
		return err;
	atomic_store(&fetch->state, BEGUN | SUBMITTING);
	err = memory->source.submit(memory->source.data, fetch,
				    memory->source_offset + request->offset,
				    request->buffer, request->length);
	if (err > 0)
		err = -EIO;
	/* Said to have failed, and yet answered: the answer is heard. */
	if (err && atomic_fetch_or(&fetch->state, DONE) & DONE)
		err = 0;
	if (err) {
		fetch->rq.source_failed = true;
		atomic_store(&fetch->error, err);
	}
	/* From here on it is in flight, and not in this thread's hands. */
	atomic_store(&fetch->seat->owner, 0);
	kvmfault__set_deadline(fetch->seat, atomic_load(&fetch->due));
	state = submitted(fetch);
	if (!(state & DONE) || state & CANCELLING)
		return 0;
	if (!err)
		complete(fetch);
	return err;
}

int kvmfault__submit(struct kvmfault__request *rq)
{
	struct kvmfault__fetches *all = atomic_load(&rq->seat->vm->fetches);
	struct kvmfault_fetch *fetch;
	int err;

	while (!(fetch = take(all))) {
		/* A message can wait where it is parked. */
		if (rq->origin)
			return -EAGAIN;
		/* A job waits for nobody: its vCPU's thread does. */
		if (rq->seat->delegate) {
			rq->seat->vcpu->outcome.pause = MS;
			return -EINTR;
		}
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
	return KVMFAULT_LATER;
}

/* It failed for the run: ask for the page alone. */
static bool again_alone(struct kvmfault_fetch *fetch)
{
	if (fetch->rq.count == 1 || atomic_load(&fetch->state) & CANCELLED)
		return false;
	kvmfault__narrow(&fetch->rq);
	atomic_store(&fetch->state, 0);
	return !begin(fetch);
}

static int install(struct kvmfault_fetch *fetch, int error)
{
	struct kvmfault_request *request = &fetch->rq.request;

	fetch->rq.source_failed = error;
	if (!error)
		return kvmfault_request_install(request, request->buffer);
	if (error == -EHWPOISON)
		kvmfault_request_poison(request);
	return error;
}

static void complete(struct kvmfault_fetch *fetch)
{
	struct kvmfault__request *rq = &fetch->rq;
	int error = atomic_load(&fetch->error);

	atomic_store(&fetch->seat->owner, (uintptr_t)pthread_self());
	if (error && again_alone(fetch))
		return;
	error = install(fetch, error);
	KVMFAULT__TRACE(fetch_done, fetch, rq->request.memory,
			rq->request.offset, rq->request.length, error);
	/* Of a poisoned page its state says enough. */
	if (error && !rq->poisoned) {
		note_failure(fetch, error);
		if (rq->origin)
			kvmfault__put_off_fetch(rq, error);
	}
	kvmfault__conclude(rq, KVMFAULT__ABSENT);
	if (!error) {
		kvmfault__add(fetch->seat, KVMFAULT__COUNTER(resolver) +
			      rq->resolver, 1);
		kvmfault__latency(fetch->seat,
				  kvmfault__sys_now() - fetch->began);
	}
	give(fetch);
}

KVMFAULT__EXPORT
void kvmfault_fetch_done(struct kvmfault_fetch *fetch, int error)
{
	unsigned int state;

	if (!fetch || !(atomic_load(&fetch->state) & BEGUN))
		return;
	if (error > 0)
		error = -EIO;
	atomic_store(&fetch->error, error);
	state = atomic_fetch_or(&fetch->state, DONE);
	if (!(state & (DONE | CANCELLING | SUBMITTING)))
		complete(fetch);
}

/* ---- the end of patience ---- */

/* Is it the source's, and nobody cancels it? Then it stays what it is, until
 * CANCELLING is taken back. */
static bool stop_it(struct kvmfault_fetch *fetch)
{
	unsigned int state;

	do {
		/* Somebody looks whether it is wanted: that is soon over. */
		while ((state = atomic_load(&fetch->state)) & CANCELLING &&
		       !(state & CANCELLED))
			;
		if ((state & ~SUBMITTING) != BEGUN)
			return false;
	} while (!atomic_compare_exchange_weak(&fetch->state, &state,
					       state | CANCELLING));
	return true;
}

static void cancel(struct kvmfault_fetch *fetch,
		   bool (*wanted)(const struct kvmfault_fetch *fetch,
				  const void *what),
		   const void *what)
{
	const struct kvmfault_source *source;
	unsigned int state;

	if (!stop_it(fetch))
		return;
	source = &fetch->rq.request.memory->source;
	if (source->cancel && wanted(fetch, what) &&
	    !(atomic_fetch_or(&fetch->state, CANCELLED) & SUBMITTING))
		source->cancel(source->data, fetch);
	state = atomic_fetch_and(&fetch->state, ~CANCELLING);
	if (state & DONE && !(state & SUBMITTING))
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
int kvmfault_cancel(struct kvmfault_vm *vm, uint32_t address_space,
		    uint64_t gpa, uint64_t length)
{
	struct kvmfault__seat *seat;
	int err = 0;

	if (!vm)
		return -EINVAL;
	if (!length || gpa + length - 1 < gpa)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_cancel: gpa %#llx, length %#llx: empty, or past the end of all",
			(unsigned long long)gpa, (unsigned long long)length);
	seat = kvmfault__seat_take(vm);
	if (!seat)
		return -ENOMEM;
	while (length && !err) {
		uint64_t step = 0;

		err = cancel_region(seat, address_space, gpa, length, &step);
		gpa += step;
		length -= step;
	}
	kvmfault__seat_give(seat);
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

		if (its < due &&
		    (atomic_load(&fetch->state) & ~SUBMITTING) == BEGUN)
			due = its;
	}
	return due;
}
