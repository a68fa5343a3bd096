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

#include <limits.h>

#include "fill.h"

/* While the guest faults: how many times as long as a step took the fill rests
 * after it. */
#define REST 7

#define POLL_STEPS 5		/* of KVMFAULT__SOON_PAUSE, up to 1.6 ms */

/* In place of a wait: no page is missing, and there is no next step. */
#define OVER UINT64_MAX

/* ---- progress, and passes ---- */

static void fill_look(const struct kvmfault_fill *fill,
		      struct kvmfault_fill_progress *progress)
{
	uint64_t spent = kvmfault__sys_now() - fill->began;
	size_t i;

	*progress = (struct kvmfault_fill_progress){
		.size = sizeof(*progress),
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
	/* A page that is there may be claimed for a moment. */
	progress->over = atomic_load(&fill->over);
	if (progress->over)
		progress->missing = progress->error = 0;
}

static void fill_report(struct kvmfault_fill *fill, uint64_t now)
{
	struct kvmfault_fill_progress progress;
	uint64_t at = atomic_load(&fill->report_at);

	if (!fill->progress || now < at || atomic_exchange(&fill->reporting,
							   true))
		return;
	atomic_store(&fill->report_at, now + fill->interval);
	/* The last report is made by the thread that ends the fill. */
	if (!atomic_load(&fill->over)) {
		fill_look(fill, &progress);
		fill->progress(fill->data, &progress);
	}
	atomic_store(&fill->reporting, false);
}

/* No report comes after this one, nor while it is made. */
static void fill_report_end(struct kvmfault_fill *fill,
			    const struct kvmfault_fill_progress *progress)
{
	while (fill->progress && atomic_exchange(&fill->reporting, true))
		kvmfault__sys_yield();
	if (fill->progress)
		fill->progress(fill->data, progress);
	atomic_store(&fill->reporting, false);
}

void kvmfault__fill_wake(struct kvmfault_fill *fill)
{
	atomic_fetch_add(&fill->changed, 1);
	kvmfault__sys_futex_wake(&fill->changed);
}

/* Ends the fill if no page is missing. */
static bool fill_end_if_all_there(struct kvmfault_fill *fill,
				  struct kvmfault_fill_progress *progress)
{
	fill_look(fill, progress);
	if (progress->missing)
		return false;
	if (!atomic_exchange(&fill->over, true)) {
		progress->over = true;
		progress->error = 0;
		fill_report_end(fill, progress);
		kvmfault__fill_wake(fill);
	}
	return true;
}

/* The pages of a pass were all looked at: either nothing is missing, or there
 * is another pass. Pages are left because they are in flight, or because their
 * fetch has failed; each pass after which as much is missing makes the next one
 * wait twice as long. */
static uint64_t fill_judge_pass(struct kvmfault_fill *fill, uint64_t now)
{
	struct kvmfault_fill_progress progress;
	uint64_t none = 0, wait;

	if (fill_end_if_all_there(fill, &progress))
		return OVER;
	if (atomic_exchange(&fill->missing, progress.missing) !=
	    progress.missing)
		atomic_store(&fill->idle, 0);
	wait = kvmfault__backoff(KVMFAULT__FAILED_PAUSE,
				 atomic_fetch_add(&fill->idle, 1),
				 KVMFAULT__FAILED_STEPS);
	return atomic_compare_exchange_strong(&fill->next_pass, &none,
					      now + wait) ? wait : KVMFAULT__MS;
}

/* Whatever a fill does not bring, because it is paused or waits for its rate,
 * faults may: so it looks at every interval. One thread does, and a fault does
 * nothing for it. Returns how long to wait, at most so long. */
static uint64_t fill_watch(struct kvmfault_fill *fill, uint64_t now,
			   uint64_t wait)
{
	struct kvmfault_fill_progress progress;
	uint64_t at = atomic_load(&fill->watch_at), next = now + fill->interval;

	if (at > now)
		return at - now < wait ? at - now : wait;
	if (atomic_compare_exchange_strong(&fill->watch_at, &at, next) &&
	    !kvmfault__fill_has_absent(fill) &&
	    fill_end_if_all_there(fill, &progress))
		return OVER;
	return fill->interval < wait ? fill->interval : wait;
}

static uint64_t fill_end_pass(struct kvmfault_fill *fill, uint64_t now)
{
	uint64_t due = atomic_load(&fill->next_pass);

	if (!due)
		return fill_judge_pass(fill, now);
	if (due > now)
		return due - now;
	if (atomic_compare_exchange_strong(&fill->next_pass, &due, 0))
		atomic_store(&fill->cursor, 0);
	return 0;
}

/* ---- a step ---- */

static int fill_ask(struct kvmfault_fill *fill, struct kvmfault__seat *seat,
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
	return err;
}

static uint64_t fill_count_installed(const struct kvmfault__seat *seat)
{
	return atomic_load_explicit(&seat->counter[KVMFAULT__COUNTER(fetched)],
				    memory_order_relaxed) +
	       atomic_load_explicit(&seat->counter[KVMFAULT__COUNTER(holes)],
				    memory_order_relaxed);
}

/* Asks for the run of absent pages that begins there. Returns how many of them
 * came, or are on their way: the run may end early, where the source's data
 * ends, or after its first page, if the source has failed for the run. */
static uint64_t fill_bring_run(struct kvmfault_fill *fill,
			       struct kvmfault__seat *seat,
			       struct kvmfault_memory *memory, uint64_t page,
			       uint64_t end, bool *again)
{
	uint64_t before = fill_count_installed(seat), came;

	*again = fill_ask(fill, seat, memory, page, end) == -EAGAIN;
	came = kvmfault__fill_find(memory, page, end, true) - page;
	kvmfault__add(seat, KVMFAULT__COUNTER(filled),
		      fill_count_installed(seat) - before);
	return came;
}

/*
 * A run that has failed, because of one of its pages, is halved until that page
 * is asked for alone; runs that come are doubled again. Where page after page
 * fails, the rest is left to the next pass.
 */
#define FAILURES 4

static void fill_adapt_run(struct kvmfault_fill *fill, uint64_t asked,
			   uint64_t came, unsigned int shift)
{
	uint64_t run = atomic_load(&fill->run_length);

	if (came == asked && run < fill->window_length)
		atomic_store(&fill->run_length, run * 2);
	else if (came <= 1 && asked > 1)
		atomic_store(&fill->run_length, asked / 2 << shift);
}

/* The end of the run of absent pages there, no longer than a run may be now. */
static uint64_t fill_find_end(const struct kvmfault_fill *fill,
			      const struct kvmfault_memory *memory,
			      uint64_t page, uint64_t end)
{
	uint64_t pages = atomic_load(&fill->run_length) >> memory->page_shift;

	if (end - page > (pages ? pages : 1))
		end = page + (pages ? pages : 1);
	return kvmfault__fill_find(memory, page, end, false);
}

/* Returns the page before which all was asked for. *again: not more can be
 * asked for now. */
static uint64_t fill_bring(struct kvmfault_fill *fill,
			   struct kvmfault__seat *seat,
			   struct kvmfault_memory *memory, uint64_t page,
			   uint64_t end, bool *again)
{
	unsigned int failures = 0;

	*again = false;
	while (page < end && failures < FAILURES &&
	       !atomic_load(&fill->stopping)) {
		uint64_t next = fill_find_end(fill, memory, page, end), came;

		if (next == page) {
			page++;
			continue;
		}
		came = fill_bring_run(fill, seat, memory, page, next, again);
		if (*again && !came)
			return page;
		fill_adapt_run(fill, next - page, came, memory->page_shift);
		failures = came ? 0 : failures + 1;
		page += came ? came : 1;
	}
	*again = false;
	return failures < FAILURES ? page : end;
}

/* As many fetches are in flight as may be: one thread looks every now and then
 * whether that has changed, the others seldom. */
static uint64_t fill_await_fetches(struct kvmfault_fill *fill,
				   struct kvmfault__seat *seat)
{
	struct kvmfault__seat *poller = NULL;

	if (!atomic_compare_exchange_strong(&fill->poller, &poller, seat) &&
	    poller != seat)
		return KVMFAULT__SOON_MOST;
	return kvmfault__backoff(KVMFAULT__SOON_PAUSE,
				 atomic_fetch_add(&fill->polls, 1),
				 POLL_STEPS);
}

static void fill_end_polls(struct kvmfault_fill *fill,
			   struct kvmfault__seat *seat)
{
	if (atomic_compare_exchange_strong(&fill->poller, &seat, NULL))
		atomic_store(&fill->polls, 0);
}

/* Returns how long the caller has to wait before its next step. */
static uint64_t fill_work(struct kvmfault_fill *fill,
			  struct kvmfault__seat *seat, uint64_t now,
			  bool gently)
{
	uint64_t length = kvmfault__fill_length(fill, gently), bytes, wait;
	struct kvmfault__fill_piece piece;
	uint64_t page;
	bool again;

	wait = kvmfault__fill_pay(fill, now, length);
	if (wait)
		return fill_watch(fill, now, wait);
	if (!kvmfault__fill_take(fill, length, &piece)) {
		kvmfault__fill_pay_rest(fill, length, 0);
		return fill_end_pass(fill, now);
	}
	seat->gentle = gently;
	page = piece.page;
	piece.page = fill_bring(fill, seat, piece.part->memory, page, piece.end,
				&again);
	bytes = (piece.page - page) << piece.part->memory->page_shift;
	kvmfault__fill_pay_rest(fill, length, bytes);
	kvmfault__fill_put(fill, &piece);
	if (gently && bytes)
		kvmfault__fill_adapt(fill, kvmfault__sys_now() - now);
	if (!again) {
		fill_end_polls(fill, seat);
		return 0;
	}
	return fill_await_fetches(fill, seat);
}

/* A rest ends when the guest does not fault any more. */
static uint64_t fill_work_gently(struct kvmfault_fill *fill,
				 struct kvmfault__seat *seat, uint64_t now)
{
	uint64_t rested = atomic_load(&fill->rested), took, wait;

	if (rested > now)
		return rested - now < KVMFAULT__SLICE ? rested - now :
							KVMFAULT__SLICE;
	if (atomic_exchange(&fill->alone, true))
		return KVMFAULT__MS;
	wait = fill_work(fill, seat, now, true);
	rested = kvmfault__sys_now();
	took = rested - now;
	atomic_store(&fill->rested, rested + took * REST);
	atomic_store(&fill->alone, false);
	if (wait < took * REST)
		wait = took * REST;
	return wait == OVER || wait < KVMFAULT__SLICE ? wait : KVMFAULT__SLICE;
}

/* Of a source that answers later, failures come between two steps. */
static void fill_take_error(struct kvmfault_fill *fill,
			    struct kvmfault__seat *seat)
{
	int err = atomic_exchange(&seat->fill_error, 0);

	if (err)
		atomic_store(&fill->error, err);
}

static uint64_t fill_step(struct kvmfault_fill *fill,
			  struct kvmfault__seat *seat)
{
	uint64_t now = kvmfault__sys_now();

	fill_take_error(fill, seat);
	if (atomic_load(&fill->over))
		return OVER;
	if (atomic_load(&fill->paused))
		return fill_watch(fill, now, fill->interval);
	fill_report(fill, now);
	/* The guest is about to touch its working set: no rest before that is
	 * there. */
	return kvmfault__fill_sees_demand(fill, now) &&
	       !atomic_load(&fill->replaying) ?
	       fill_work_gently(fill, seat, now) :
	       fill_work(fill, seat, now, false);
}

/* ---- its threads ---- */

/* Until that time, or the fill has changed. */
static void fill_rest(struct kvmfault_fill *fill, uint32_t changed,
		      uint64_t wait)
{
	uint64_t until = kvmfault__sys_now() + wait, now;

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
		atomic_store(&seat->fill_error, 0);
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

static bool fill_is_of_seat(struct kvmfault__seat *seat, void *fill)
{
	return atomic_load(&seat->fill) == fill;
}

bool kvmfault__fill_is_self(struct kvmfault_fill *fill)
{
	return kvmfault__within(fill_is_of_seat, fill);
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
	if (kvmfault__fill_is_self(fill))
		return -EDEADLK;
	kvmfault__enter(&fill->seat->inside, fill->seat, NULL);
	wait = fill_step(fill, fill->seat);
	kvmfault__exit(&fill->seat->inside);
	wait = wait == OVER ? wait : (wait + KVMFAULT__MS - 1) / KVMFAULT__MS;
	*timeout_ms = wait == OVER ? -1 : wait < INT_MAX ? (int)wait : INT_MAX;
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
	if (atomic_exchange(&fill->rate, rate) != rate)
		atomic_store(&fill->due, kvmfault__sys_now());
	kvmfault__fill_wake(fill);
	return 0;
}
