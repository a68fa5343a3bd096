/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Fills: which memories they bring, in which order, and how far they are.
 */

#ifndef KVMFAULT__FILL_H
#define KVMFAULT__FILL_H

#include "entry.h"
#include "../memory/working-set.h"

/* While the guest faults, a step brings at least so many bytes. */
#define KVMFAULT__GENTLE_LENGTH (32 * 1024ULL)

struct kvmfault__fill_part {
	struct kvmfault_memory *memory;
	uint64_t first, end;		/* its pages in the cursor's count */
};

/* Pages that one step asks for. */
struct kvmfault__fill_piece {
	const struct kvmfault__fill_part *part;
	uint64_t page, end;		/* of its memory */
	uint64_t rest;			/* the end of what later steps ask for,
					 * at first `end` */
	bool first;			/* of the working set */
};

struct kvmfault_fill {
	struct kvmfault_vm *vm;
	uint64_t window_length;
	/* a working set, which comes before all else; or NULL */
	const struct kvmfault_working_set *first;
	pthread_mutex_t lock;		/* for the next five; held briefly */
	uint64_t run, done;		/* the set's next run, and how much of
					 * it was taken */
	unsigned int in_hand;		/* pieces of it that threads have, */
	unsigned int backs;		/* and any pieces that they had to put
					 * back: one each, at most */
	struct kvmfault__fill_piece *back;
	atomic_bool replaying;		/* not all of the set was taken */
	uint64_t interval;		/* between two reports, in ns */
	void (*progress)(void *data,
			 const struct kvmfault_fill_progress *progress);
	void *data;
	uint64_t began;
	_Atomic uint64_t cursor;	/* pages of this pass that were looked
					 * at, of all memories in order */
	_Atomic uint64_t rate;		/* bytes a second; 0: no limit */
	_Atomic uint64_t due;		/* when the next bytes may come */
	_Atomic uint64_t demand;	/* faults of other threads until now, */
	_Atomic uint64_t demand_at;	/* and when one was last seen */
	_Atomic uint64_t report_at;
	_Atomic uint64_t watch_at;	/* when it looks, though it does not
					 * work, whether a page is missing; */
	_Atomic uint64_t known;		/* so far, none before this one was
					 * absent, in the cursor's count */
	atomic_bool reporting;		/* one thread at a time does */
	_Atomic uint64_t missing;	/* bytes, after the last pass */
	_Atomic uint64_t next_pass;	/* when it begins; 0: this goes on */
	_Atomic uint32_t idle;		/* passes that brought nothing */
	_Atomic uint64_t run_length;	/* bytes of a run: fewer after one has
					 * failed */
	atomic_int error;		/* of the last page that failed */
	_Atomic uint64_t rested;	/* when the rest after a step is over */
	_Atomic(struct kvmfault__seat *) poller; /* looks for fetches to end, */
	_Atomic uint32_t polls;		/* and how often it has */
	atomic_bool alone;		/* a thread works while the guest
					 * faults, and no other one does; */
	uint64_t gentle_length;		/* its step, */
	uint64_t gentle_time;		/* and how long the shortest one took */
	atomic_bool paused, over, stopping;
	_Atomic uint32_t changed;	/* a futex word: see those three */
	struct kvmfault__seat *seat;	/* for dispatch, without threads */
	unsigned int threads;
	size_t count;
	struct kvmfault__fill_part *part;
	pthread_t thread[];
};

/* fill-pace.c */
/* Does another thread wait for a page, or did one lately? All of this is read
 * from where faults leave it anyway: to be seen costs a fault nothing. */
bool kvmfault__fill_sees_demand(struct kvmfault_fill *fill, uint64_t now);
/* Pay with time for bytes that are to come. Returns how long to wait if it is
 * not time yet, and then nothing was paid. */
uint64_t kvmfault__fill_pay(struct kvmfault_fill *fill, uint64_t now,
			    uint64_t bytes);
/* So many bytes were paid for, and so many have come. */
void kvmfault__fill_pay_rest(struct kvmfault_fill *fill, uint64_t paid,
			     uint64_t came);
/* How many bytes a step brings at most; gently: the guest faults. */
uint64_t kvmfault__fill_length(const struct kvmfault_fill *fill, bool gently);
/*
 * A gentle step may be longer as long as it takes hardly more time than the
 * shortest one: so with a source that is slow to answer each step brings much,
 * and with one that is fast no step is in the way of a fault for long.
 */
void kvmfault__fill_adapt(struct kvmfault_fill *fill, uint64_t took);

/* fill-order.c */
/* Take the pages that are next, of one memory: up to so many bytes, or a chunk
 * of its source. Returns false at the end of a pass; else kvmfault__fill_put()
 * has to follow. */
bool kvmfault__fill_take(struct kvmfault_fill *fill, uint64_t length,
			 struct kvmfault__fill_piece *piece);
/* The step is over: what is left from the piece's page on comes before all
 * others. */
void kvmfault__fill_put(struct kvmfault_fill *fill,
			const struct kvmfault__fill_piece *piece);
/* The first page from there on that is absent, or that is not; else `end`. */
uint64_t kvmfault__fill_find(const struct kvmfault_memory *memory,
			     uint64_t page, uint64_t end, bool absent);
/* Is a page absent? Each is looked at until it was not, and then no more: one
 * whose fetch fails may be absent again. */
bool kvmfault__fill_has_absent(struct kvmfault_fill *fill);

/* fill.c */
/* A seat for a thread of the fill, or NULL. */
struct kvmfault__seat *kvmfault__fill_seat(struct kvmfault_fill *fill);
/* Steps, until nothing is missing or the fill ends. For a thread. */
void *kvmfault__fill_run(void *seat);
/* Is the calling thread in a step of the fill, so in a callback of it? */
bool kvmfault__fill_is_self(struct kvmfault_fill *fill);
/* Have its threads look again at what has changed. */
void kvmfault__fill_wake(struct kvmfault_fill *fill);

#endif
