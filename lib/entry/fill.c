/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Fill, an entrance: the VMM wants the rest of its memories, and no thread
 * waits for it. In: memories with absent pages. Out: faults of the kind FILL,
 * each for a run of pages, which take the path of every fault, until no page is
 * missing. A fill claims absent pages alone: what is discarded stays discarded,
 * and what is in flight is left to its fetcher. While another thread's fault is
 * under way a fill works on one thread, in small steps, and rests between two
 * of them.
 */

#include <stdio.h>

#include "entry.h"

#define THREADS_MAX 64
#define INTERVAL_MS 250	/* between two reports, if the VMM does not say */

/* While the guest faults: how many bytes a step brings at least, how many times
 * as long as the step took the fill rests after it, and how long ago the last
 * fault may have been. */
#define GENTLE_LENGTH (32 * 1024ULL)
#define REST 7
#define LATELY (2 * KVMFAULT__MS)

/* Two special waits between steps. */
#define AT_CALL UINT64_MAX	/* until the fill is resumed */
#define OVER (UINT64_MAX - 1)	/* no page is missing: there is no next step */

struct fill_part {
	struct kvmfault_memory *memory;
	uint64_t first, end;		/* its pages in the cursor's count */
};

struct kvmfault_fill {
	struct kvmfault_vm *vm;
	uint64_t window_length;
	uint64_t interval;		/* between two reports, in ns */
	void (*progress)(void *data,
			 const struct kvmfault_fill_progress *progress);
	void *data;
	uint64_t began;
	_Atomic uint64_t cursor;	/* pages of this pass that were looked
					 * at, of all memories in order */
	_Atomic uint64_t rate;		/* bytes a second; 0: no limit */
	_Atomic uint64_t due;		/* when the next bytes may come */
	_Atomic uint64_t filled;	/* bytes that came, or are on their
					 * way */
	_Atomic uint64_t demand;	/* faults of other threads until now, */
	_Atomic uint64_t demand_at;	/* and when one was last seen */
	_Atomic uint64_t report_at;
	_Atomic uint32_t idle;		/* passes that brought nothing */
	atomic_bool brought;		/* this pass has brought something */
	atomic_int error;		/* of the last page that failed */
	atomic_bool alone;		/* a thread works while the guest
					 * faults, and no other one does; */
	uint64_t gentle_length;		/* its step, */
	uint64_t gentle_time;		/* and how long the shortest one took */
	atomic_bool paused, over, stopping;
	_Atomic uint32_t changed;	/* a futex word: see those three */
	struct kvmfault__seat *seat;	/* for dispatch, without threads */
	unsigned int threads;
	size_t count;
	struct fill_part *part;
	pthread_t thread[];
};

/* ---- whose turn it is ---- */

static uint64_t fill_count_faults(const struct kvmfault__seat *seat)
{
	uint64_t faults = 0;
	size_t i;

	for (i = 0; i < KVMFAULT_KIND_COUNT; i++)
		if (i != KVMFAULT_KIND_CALL && i != KVMFAULT_KIND_FILL)
			faults += atomic_load_explicit(
				&seat->counter[KVMFAULT__COUNTER(kind) + i],
				memory_order_relaxed);
	return faults;
}

/* Does another thread wait for a page, or did one lately? All of this is read
 * from where faults leave it anyway: to be seen costs a fault nothing. */
static bool fill_sees_demand(struct kvmfault_fill *fill, uint64_t now,
			     size_t others)
{
	const struct kvmfault__seat *seat = atomic_load(&fill->vm->seats);
	bool busy = others;
	uint64_t faults = 0;

	for (; seat; seat = seat->next) {
		faults += fill_count_faults(seat);
		busy |= atomic_load_explicit(&seat->in_hand,
					     memory_order_relaxed) &&
			!atomic_load(&seat->fill);
	}
	if (atomic_exchange(&fill->demand, faults) != faults || busy)
		atomic_store(&fill->demand_at, now);
	return now - atomic_load(&fill->demand_at) < LATELY;
}

/* Takes these bytes' time from the rate's. */
static void fill_pay(struct kvmfault_fill *fill, uint64_t now, uint64_t bytes)
{
	uint64_t rate = atomic_load(&fill->rate);
	uint64_t due = atomic_load(&fill->due), from;

	if (!rate)
		return;
	do {
		from = due > now ? due : now;
	} while (!atomic_compare_exchange_weak(&fill->due, &due,
			from + (uint64_t)((double)bytes * 1e9 / (double)rate)));
}

/* ---- what is next ---- */

/* Takes the next pages of this pass: up to so many bytes of one memory. Returns
 * false at the end. */
static bool fill_take(struct kvmfault_fill *fill, uint64_t length,
		      const struct fill_part **part, uint64_t *page,
		      uint64_t *end)
{
	uint64_t at = atomic_load(&fill->cursor), pages;
	const struct fill_part *last = &fill->part[fill->count - 1];

	do {
		if (at >= last->end)
			return false;
		for (*part = fill->part; at >= (*part)->end; ++*part)
			;
		pages = length >> (*part)->memory->page_shift;
		*page = at - (*part)->first;
		*end = pages ? (*page / pages + 1) * pages : *page + 1;
		if (*end > (*part)->end - (*part)->first)
			*end = (*part)->end - (*part)->first;
	} while (!atomic_compare_exchange_weak(&fill->cursor, &at,
					       (*part)->first + *end));
	return true;
}

static uint64_t fill_count_missing(const struct kvmfault_memory *memory)
{
	uint64_t page, missing = 0;

	for (page = 0; page < memory->length >> memory->page_shift; page++) {
		enum kvmfault__state state = kvmfault__page_state(memory, page);

		missing += state == KVMFAULT__ABSENT ||
			   kvmfault__in_flight(state);
	}
	return missing << memory->page_shift;
}

static uint64_t fill_missing(const struct kvmfault_fill *fill)
{
	uint64_t missing = 0;
	size_t i;

	for (i = 0; i < fill->count; i++)
		missing += fill_count_missing(fill->part[i].memory);
	return missing;
}

static void fill_look(const struct kvmfault_fill *fill,
		      struct kvmfault_fill_progress *progress)
{
	uint64_t spent = kvmfault__sys_now() - fill->began;
	size_t i;

	*progress = (struct kvmfault_fill_progress){
		.size = sizeof(*progress),
		.missing = fill_missing(fill),
		.filled = atomic_load(&fill->filled),
		.milliseconds = spent / KVMFAULT__MS,
		.error = atomic_load(&fill->error),
		.paused = atomic_load(&fill->paused),
	};
	for (i = 0; i < fill->count; i++)
		progress->total += fill->part[i].memory->length;
	progress->over = !progress->missing;
}

static void fill_report(struct kvmfault_fill *fill, uint64_t now)
{
	struct kvmfault_fill_progress progress;
	uint64_t at = atomic_load(&fill->report_at);

	if (!fill->progress || now < at ||
	    !atomic_compare_exchange_strong(&fill->report_at, &at,
					    now + fill->interval))
		return;
	fill_look(fill, &progress);
	/* The last report is made by the thread that ends the fill. */
	if (!progress.over)
		fill->progress(fill->data, &progress);
}

static void fill_wake(struct kvmfault_fill *fill)
{
	atomic_fetch_add(&fill->changed, 1);
	kvmfault__sys_futex_wake(&fill->changed);
}

/* A pass is over: either nothing is missing, or there is another one. Pages are
 * left because they are in flight, or because their fetch has failed; each pass
 * that brings nothing makes the next one wait twice as long. */
static uint64_t fill_end_pass(struct kvmfault_fill *fill)
{
	struct kvmfault_fill_progress progress;
	uint64_t at = atomic_load(&fill->cursor);
	size_t fills, others, all;
	uint32_t idle;

	kvmfault__fetches_count(fill->vm, &fills, &others, &all);
	if (fills)
		return KVMFAULT__MS;
	fill_look(fill, &progress);
	if (progress.over) {
		if (!atomic_exchange(&fill->over, true)) {
			if (fill->progress)
				fill->progress(fill->data, &progress);
			fill_wake(fill);
		}
		return OVER;
	}
	if (at && atomic_compare_exchange_strong(&fill->cursor, &at, 0))
		atomic_store(&fill->idle,
			     atomic_exchange(&fill->brought, false) ? 0 :
			     atomic_load(&fill->idle) + 1);
	idle = atomic_load(&fill->idle);
	return kvmfault__backoff(KVMFAULT__FAILED_PAUSE, idle,
				 KVMFAULT__FAILED_STEPS);
}

/* ---- a step ---- */

static void fill_ask(struct kvmfault_fill *fill, struct kvmfault__seat *seat,
		     struct kvmfault_memory *memory, uint64_t page,
		     uint64_t end)
{
	const struct kvmfault__target target = {
		.memory = memory,
		.offset = page << memory->page_shift,
	};
	const struct kvmfault_fault fault = {
		.size = sizeof(fault),
		.kind = KVMFAULT_KIND_FILL,
		.access = KVMFAULT_ACCESS_READ,
		.known = KVMFAULT_KNOWN_HVA | KVMFAULT_KNOWN_LENGTH,
		.hva = (uintptr_t)memory->host + target.offset,
		.length = kvmfault__page_size(memory),
	};
	struct kvmfault__inside inside;
	struct kvmfault__answer answer;
	int err;

	kvmfault__add(seat, KVMFAULT__COUNTER(kind) + fault.kind, 1);
	seat->ahead = end - page;
	kvmfault__enter(&inside, seat, memory);
	kvmfault__resolve(seat, &fault, &target, &answer);
	kvmfault__exit(&inside);
	seat->ahead = 0;
	kvmfault__add(seat, KVMFAULT__COUNTER(action) + answer.action, 1);
	err = kvmfault__error(&answer);
	if (err && err != -EAGAIN)
		atomic_store(&fill->error, err);
}

/* Brings the run of absent pages that begins there. */
static void fill_bring_run(struct kvmfault_fill *fill,
			   struct kvmfault__seat *seat,
			   struct kvmfault_memory *memory, uint64_t page,
			   uint64_t end)
{
	uint64_t came = 0;

	fill_ask(fill, seat, memory, page, end);
	for (; page < end; page++)
		came += kvmfault__page_state(memory, page) != KVMFAULT__ABSENT;
	if (came)
		atomic_store(&fill->brought, true);
	kvmfault__add(seat, KVMFAULT__COUNTER(filled), came);
	atomic_fetch_add(&fill->filled, came << memory->page_shift);
}

/* Returns how many bytes were asked for. */
static uint64_t fill_bring(struct kvmfault_fill *fill,
			   struct kvmfault__seat *seat,
			   struct kvmfault_memory *memory, uint64_t page,
			   uint64_t end)
{
	uint64_t asked = 0;

	while (page < end && !atomic_load(&fill->stopping)) {
		uint64_t from = page;

		while (page < end && kvmfault__page_state(memory, page) ==
				     KVMFAULT__ABSENT)
			page++;
		asked += page - from;
		if (page > from)
			fill_bring_run(fill, seat, memory, from, page);
		else
			page++;
	}
	return asked << memory->page_shift;
}

/* The rate's window lasts for no more than this part of a second. */
#define RATE_PART 16

static uint64_t fill_choose_length(const struct kvmfault_fill *fill,
				   bool gently)
{
	uint64_t length = fill->window_length;
	uint64_t rate = atomic_load(&fill->rate);

	if (gently && length > fill->gentle_length)
		length = fill->gentle_length;
	if (rate && length > rate / RATE_PART)
		length = rate / RATE_PART;
	return length;
}

/*
 * A step may be longer as long as it takes hardly more time than the shortest
 * one: so with a source that is slow to answer each step brings much, and with
 * one that is fast no step is in the way of a fault for long.
 */
static void fill_adapt_length(struct kvmfault_fill *fill, uint64_t took)
{
	uint64_t length = fill->gentle_length;

	if (length == GENTLE_LENGTH)
		fill->gentle_time = took;
	if (took > fill->gentle_time * 3 / 2)
		fill->gentle_length = GENTLE_LENGTH;
	else if (took <= fill->gentle_time * 5 / 4 &&
		 length < fill->window_length)
		fill->gentle_length = length * 2;
}

/* Returns how long the caller has to wait before its next step. */
static uint64_t fill_work(struct kvmfault_fill *fill,
			  struct kvmfault__seat *seat, uint64_t now,
			  bool gently)
{
	const struct fill_part *part;
	uint64_t page, end, bytes, took;

	if (!fill_take(fill, fill_choose_length(fill, gently), &part, &page,
		       &end))
		return fill_end_pass(fill);
	bytes = fill_bring(fill, seat, part->memory, page, end);
	fill_pay(fill, now, bytes);
	if (!gently || !bytes)
		return 0;
	took = kvmfault__sys_now() - now;
	fill_adapt_length(fill, took);
	return took * REST;
}

static uint64_t fill_step(struct kvmfault_fill *fill,
			  struct kvmfault__seat *seat)
{
	uint64_t now = kvmfault__sys_now(), due = atomic_load(&fill->due);
	size_t fills, others, all;
	uint64_t wait;
	bool gently;

	if (atomic_load(&fill->over))
		return OVER;
	if (atomic_load(&fill->paused))
		return AT_CALL;
	fill_report(fill, now);
	if (due > now && atomic_load(&fill->rate))
		return due - now;
	kvmfault__fetches_count(fill->vm, &fills, &others, &all);
	gently = fill_sees_demand(fill, now, others);
	/* At least half of the fetches are left to faults. */
	if (fills && fills >= (gently ? 1 : all / 2))
		return KVMFAULT__SOON_PAUSE;
	if (!gently)
		return fill_work(fill, seat, now, false);
	if (atomic_exchange(&fill->alone, true))
		return KVMFAULT__MS;
	wait = fill_work(fill, seat, now, true);
	atomic_store(&fill->alone, false);
	return wait;
}

/* ---- its threads ---- */

/* Until that time, or the fill has changed. */
static void fill_rest(struct kvmfault_fill *fill, uint32_t changed,
		      uint64_t wait)
{
	uint64_t until = kvmfault__sys_now() + wait, now;

	if (wait == AT_CALL)
		until = UINT64_MAX;
	while (atomic_load(&fill->changed) == changed &&
	       (now = kvmfault__sys_now()) < until)
		kvmfault__sys_futex_wait(&fill->changed, changed,
					 until - now < KVMFAULT__SECOND ?
					 until - now : KVMFAULT__SECOND);
}

/* Its thread waits for no page in flight: there are others to bring. */
static struct kvmfault__seat *fill_take_seat(struct kvmfault_fill *fill)
{
	struct kvmfault__seat *seat = kvmfault__seat_take(fill->vm);

	if (seat) {
		seat->no_wait = true;
		atomic_store(&seat->fill, fill);
	}
	return seat;
}

static void *fill_run_thread(void *arg)
{
	struct kvmfault__seat *seat = arg;
	struct kvmfault_fill *fill = atomic_load(&seat->fill);
	uint64_t wait = 0;

	kvmfault__enter(&seat->inside, seat, NULL);
	while (wait != OVER) {
		uint32_t changed = atomic_load(&fill->changed);

		if (atomic_load(&fill->stopping))
			break;
		wait = fill_step(fill, seat);
		if (wait && wait != OVER)
			fill_rest(fill, changed, wait);
	}
	kvmfault__call_end(seat);
	return NULL;
}

KVMFAULT__EXPORT
int kvmfault_fill_dispatch(struct kvmfault_fill *fill, int *timeout_ms)
{
	uint64_t wait;

	if (!fill || !timeout_ms)
		return -EINVAL;
	if (!fill->seat)
		return kvmfault__refuse(fill->vm, -EINVAL,
			"kvmfault_fill_dispatch: the fill has threads of its own: set kvmfault_fill_options.threads to 0 to dispatch it");
	kvmfault__enter(&fill->seat->inside, fill->seat, NULL);
	wait = fill_step(fill, fill->seat);
	kvmfault__exit(&fill->seat->inside);
	*timeout_ms = wait == OVER || wait == AT_CALL ? -1 :
		(int)((wait + KVMFAULT__MS - 1) / KVMFAULT__MS);
	return 0;
}

/* ---- the object ---- */

/* Without threads, the seat is for the VMM's. */
static int fill_start_threads(struct kvmfault_fill *fill, unsigned int threads)
{
	struct kvmfault__seat *seat;
	char name[16];
	int err;

	if (!threads) {
		fill->seat = fill_take_seat(fill);
		return fill->seat ? 0 : -ENOMEM;
	}
	while (fill->threads < threads) {
		seat = fill_take_seat(fill);
		if (!seat)
			return -ENOMEM;
		snprintf(name, sizeof(name), "kvmfault-fill/%u", fill->threads);
		err = kvmfault__sys_thread(&fill->thread[fill->threads],
					   fill_run_thread, seat, name);
		if (err) {
			kvmfault__seat_give(seat);
			return err;
		}
		fill->threads++;
	}
	return 0;
}

/* A memory that a fill names stays. */
static void fill_pin(struct kvmfault_fill *fill, bool pinned)
{
	size_t i;

	kvmfault__sys_lock(&fill->vm->lock);
	for (i = 0; i < fill->count; i++)
		fill->part[i].memory->fills += pinned ? 1 : -1U;
	fill->vm->fills += pinned ? 1 : -1U;
	kvmfault__sys_unlock(&fill->vm->lock);
}

static void fill_delete(struct kvmfault_fill *fill)
{
	unsigned int i;

	atomic_store(&fill->stopping, true);
	fill_wake(fill);
	for (i = 0; i < fill->threads; i++)
		kvmfault__sys_join(fill->thread[i]);
	if (fill->seat)
		kvmfault__seat_give(fill->seat);
	fill_pin(fill, false);
	kvmfault__sys_free(fill->part);
	kvmfault__sys_free(fill);
}

static int fill_check_memories(struct kvmfault_vm *vm,
			       const struct kvmfault_fill_options *o)
{
	size_t i;

	if (!o->memories || !o->count)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_fill_options.%s is not set: name the memories that are to be filled",
			o->memories ? "count" : "memories");
	for (i = 0; i < o->count; i++) {
		if (!o->memories[i] || o->memories[i]->vm != vm)
			return kvmfault__refuse(vm, -EINVAL,
				"kvmfault_fill_options.memories[%zu] is %s",
				i, o->memories[i] ?
				"of another context: make a fill for each context" :
				"NULL");
		if (!kvmfault__tracked(o->memories[i]))
			return kvmfault__refuse(vm, -EINVAL,
				"kvmfault_fill_options.memories[%zu] has no source: leave it out, since nothing of it is missing",
				i);
	}
	return 0;
}

static int fill_check(struct kvmfault_vm *vm,
		      const struct kvmfault_fill_options *o)
{
	if (o->threads > THREADS_MAX)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_fill_options.threads: %u is more than %u, the most that a fill can have",
			o->threads, (unsigned int)THREADS_MAX);
	if (o->window_length > vm->options.page_size_max)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_fill_options.window_length: %#llx is more than the context's page_size_max, %#llx",
			(unsigned long long)o->window_length,
			(unsigned long long)vm->options.page_size_max);
	return fill_check_memories(vm, o);
}

static int fill_make(struct kvmfault_vm *vm,
		     const struct kvmfault_fill_options *o,
		     struct kvmfault_fill **fill)
{
	struct kvmfault_fill *new;
	uint64_t pages = 0;

	new = kvmfault__sys_alloc(sizeof(*new) + o->threads *
				  sizeof(new->thread[0]), 0);
	if (!new)
		return -ENOMEM;
	new->part = kvmfault__sys_alloc(o->count * sizeof(new->part[0]), 0);
	if (!new->part) {
		kvmfault__sys_free(new);
		return -ENOMEM;
	}
	new->vm = vm;
	new->window_length = o->window_length ? o->window_length :
						vm->options.page_size_max;
	new->interval = (o->interval_ms ? o->interval_ms : INTERVAL_MS) *
			KVMFAULT__MS;
	new->gentle_length = GENTLE_LENGTH;
	new->progress = o->progress;
	new->data = o->data;
	new->began = kvmfault__sys_now();
	atomic_store(&new->rate, o->rate);
	for (; new->count < o->count; new->count++) {
		struct fill_part *part = &new->part[new->count];

		part->memory = o->memories[new->count];
		part->first = pages;
		pages += part->memory->length >> part->memory->page_shift;
		part->end = pages;
	}
	fill_pin(new, true);
	*fill = new;
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_fill_new(struct kvmfault_vm *vm,
		      const struct kvmfault_fill_options *options,
		      struct kvmfault_fill **fill)
{
	struct kvmfault_fill_options ours;
	struct kvmfault_fill *new;
	int err;

	if (!fill)
		return kvmfault__no_place(vm, "kvmfault_fill_new");
	*fill = NULL;
	err = kvmfault__options_in(vm, "kvmfault_fill_options", &ours,
				   sizeof(ours), options);
	if (!err)
		err = vm ? fill_check(vm, &ours) : -EINVAL;
	if (!err)
		err = fill_make(vm, &ours, &new);
	if (err)
		return err;
	err = fill_start_threads(new, ours.threads);
	if (err) {
		fill_delete(new);
		return err;
	}
	*fill = new;
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_fill_progress(const struct kvmfault_fill *fill,
			   struct kvmfault_fill_progress *progress)
{
	struct kvmfault_fill_progress now;
	int err;

	if (!fill)
		return -EINVAL;
	err = kvmfault__options_to(fill->vm, "kvmfault_fill_progress",
				   progress);
	if (err)
		return err;
	fill_look(fill, &now);
	return kvmfault__options_out(progress, &now, sizeof(now));
}

KVMFAULT__EXPORT
int kvmfault_fill_pause(struct kvmfault_fill *fill, bool paused)
{
	if (!fill)
		return -EINVAL;
	atomic_store(&fill->paused, paused);
	fill_wake(fill);
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_fill_set_rate(struct kvmfault_fill *fill, uint64_t rate)
{
	if (!fill)
		return -EINVAL;
	atomic_store(&fill->rate, rate);
	atomic_store(&fill->due, 0);
	fill_wake(fill);
	return 0;
}

static bool fill_is_of_seat(struct kvmfault__seat *seat, void *fill)
{
	return atomic_load(&seat->fill) == fill;
}

KVMFAULT__EXPORT
int kvmfault_fill_free(struct kvmfault_fill *fill)
{
	if (!fill || kvmfault__is_child(fill->vm))
		return 0;
	if (kvmfault__within(fill_is_of_seat, fill))
		return kvmfault__refuse(fill->vm, -EDEADLK,
			"kvmfault_fill_free: the call comes from a callback of the fill itself: free it on another thread, or afterwards");
	fill_delete(fill);
	return 0;
}
