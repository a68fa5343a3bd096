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

#include "fill.h"

/* While the guest faults: how many times as long as a step took the fill rests
 * after it, and how long ago the last fault may have been. */
#define REST 7
#define LATELY (2 * KVMFAULT__MS)

/* Two special waits between steps. */
#define AT_CALL UINT64_MAX	/* until the fill is resumed */
#define OVER (UINT64_MAX - 1)	/* no page is missing: there is no next step */

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
		      const struct kvmfault__fill_part **part, uint64_t *page,
		      uint64_t *end)
{
	uint64_t at = atomic_load(&fill->cursor), pages;
	const struct kvmfault__fill_part *last = &fill->part[fill->count - 1];

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

/* The part that shows these bytes of the image, of which no more than *length
 * are in it; or NULL, and then *length is how far the next part is, at most. */
static const struct kvmfault__fill_part *
fill_find_image(const struct kvmfault_fill *fill, uint64_t offset,
		uint64_t *length)
{
	size_t i;

	for (i = 0; i < fill->count; i++) {
		const struct kvmfault_memory *memory = fill->part[i].memory;
		uint64_t first = memory->source_offset;
		uint64_t end = first + memory->length;

		if (offset >= first && offset < end) {
			if (*length > end - offset)
				*length = end - offset;
			return &fill->part[i];
		}
		if (first > offset && *length > first - offset)
			*length = first - offset;
	}
	return NULL;
}

/* Takes the next bytes of the working set that are in a memory. Returns false
 * at its end. */
static bool fill_take_first(struct kvmfault_fill *fill, uint64_t most,
			    const struct kvmfault__fill_part **part,
			    uint64_t *page, uint64_t *end)
{
	const struct kvmfault_working_set *set = fill->first;
	const struct kvmfault_memory *memory;
	uint64_t offset = 0, length = 0;

	if (!atomic_load(&fill->replaying))
		return false;
	*part = NULL;
	kvmfault__sys_lock(&fill->lock);
	while (!*part && fill->run < set->runs) {
		offset = set->run[fill->run].offset + fill->done;
		length = set->run[fill->run].length - fill->done;
		if (length > most)
			length = most;
		*part = fill_find_image(fill, offset, &length);
		fill->done += length;
		if (fill->done < set->run[fill->run].length)
			continue;
		fill->done = 0;
		fill->run++;
	}
	if (fill->run == set->runs)
		atomic_store(&fill->replaying, false);
	kvmfault__sys_unlock(&fill->lock);
	if (!*part)
		return false;
	memory = (*part)->memory;
	offset -= memory->source_offset;
	*page = offset >> memory->page_shift;
	*end = ((offset + length - 1) >> memory->page_shift) + 1;
	return true;
}

static void fill_look(const struct kvmfault_fill *fill,
		      struct kvmfault_fill_progress *progress)
{
	uint64_t spent = kvmfault__sys_now() - fill->began;
	size_t i;

	*progress = (struct kvmfault_fill_progress){
		.size = sizeof(*progress),
		.filled = atomic_load(&fill->filled),
		.milliseconds = spent / KVMFAULT__MS,
		.error = atomic_load(&fill->error),
		.paused = atomic_load(&fill->paused),
		.replaying = atomic_load(&fill->replaying),
	};
	for (i = 0; i < fill->count; i++) {
		const struct kvmfault_memory *memory = fill->part[i].memory;
		struct kvmfault_memory_counts counts = { 0 };

		kvmfault__pages_count(memory, 0, fill->part[i].end -
				      fill->part[i].first, &counts);
		progress->total += memory->length;
		progress->missing += (counts.absent + counts.claimed) <<
				     memory->page_shift;
		progress->resident += counts.present << memory->page_shift;
		progress->discarded += counts.discarded << memory->page_shift;
	}
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

void kvmfault__fill_wake(struct kvmfault_fill *fill)
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
			kvmfault__fill_wake(fill);
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

/* Asks for the run of absent pages that begins there. Returns how many of them
 * came, or are on their way: the run may end early, where the source's data
 * ends. */
static uint64_t fill_bring_run(struct kvmfault_fill *fill,
			       struct kvmfault__seat *seat,
			       struct kvmfault_memory *memory, uint64_t page,
			       uint64_t end)
{
	uint64_t came = 0;

	fill_ask(fill, seat, memory, page, end);
	while (page + came < end &&
	       kvmfault__page_state(memory, page + came) != KVMFAULT__ABSENT)
		came++;
	if (came)
		atomic_store(&fill->brought, true);
	kvmfault__add(seat, KVMFAULT__COUNTER(filled), came);
	atomic_fetch_add(&fill->filled, came << memory->page_shift);
	return came;
}

/* Returns how many bytes were asked for. If a run fails, it is left to the next
 * pass. */
static uint64_t fill_bring(struct kvmfault_fill *fill,
			   struct kvmfault__seat *seat,
			   struct kvmfault_memory *memory, uint64_t page,
			   uint64_t end)
{
	uint64_t asked = 0, next, came;

	for (; page < end && !atomic_load(&fill->stopping); page = next) {
		next = page;
		while (next < end && kvmfault__page_state(memory, next) ==
				     KVMFAULT__ABSENT)
			next++;
		if (next == page) {
			next++;
			continue;
		}
		came = fill_bring_run(fill, seat, memory, page, next);
		if (came)
			next = page + came;
		asked += next - page;
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
	return length > KVMFAULT__PAGE ? length : KVMFAULT__PAGE;
}

/*
 * A step may be longer as long as it takes hardly more time than the shortest
 * one: so with a source that is slow to answer each step brings much, and with
 * one that is fast no step is in the way of a fault for long.
 */
static void fill_adapt_length(struct kvmfault_fill *fill, uint64_t took)
{
	uint64_t length = fill->gentle_length;

	if (length == KVMFAULT__GENTLE_LENGTH)
		fill->gentle_time = took;
	if (took > fill->gentle_time * 3 / 2)
		fill->gentle_length = KVMFAULT__GENTLE_LENGTH;
	else if (took <= fill->gentle_time * 5 / 4 &&
		 length < fill->window_length)
		fill->gentle_length = length * 2;
}

/* Returns how long the caller has to wait before its next step. */
static uint64_t fill_work(struct kvmfault_fill *fill,
			  struct kvmfault__seat *seat, uint64_t now,
			  bool gently)
{
	const struct kvmfault__fill_part *part;
	uint64_t page, end, bytes, took;
	uint64_t length = fill_choose_length(fill, gently);

	if (!fill_take_first(fill, length, &part, &page, &end) &&
	    !fill_take(fill, length, &part, &page, &end))
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
	/* The guest is about to touch its working set: no rest before that is
	 * there. */
	gently = fill_sees_demand(fill, now, others) &&
		 !atomic_load(&fill->replaying);
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
struct kvmfault__seat *kvmfault__fill_seat(struct kvmfault_fill *fill)
{
	struct kvmfault__seat *seat = kvmfault__seat_take(fill->vm);

	if (seat) {
		seat->no_wait = true;
		atomic_store(&seat->fill, fill);
	}
	return seat;
}

void *kvmfault__fill_run(void *arg)
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
	kvmfault__fill_wake(fill);
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_fill_set_rate(struct kvmfault_fill *fill, uint64_t rate)
{
	if (!fill)
		return -EINVAL;
	atomic_store(&fill->rate, rate);
	atomic_store(&fill->due, 0);
	kvmfault__fill_wake(fill);
	return 0;
}
