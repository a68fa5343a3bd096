/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The pace of a fill. In: what faults and fetches leave behind, the rate, how
 * long a step took. Out: whether the guest faults, when the next bytes may
 * come, and how many of them a step brings.
 */

#include "fill.h"

/* How long ago the guest's last fault may have been while it faults. */
#define LATELY (2 * KVMFAULT__MS)

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

bool kvmfault__fill_sees_demand(struct kvmfault_fill *fill, uint64_t now)
{
	const struct kvmfault__seat *seat = atomic_load(&fill->vm->seats);
	bool busy = kvmfault__fetch_for_others(fill->vm);
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

/* A rate is kept over this part of a second: a step brings no more than that at
 * once, and so much time may be made up. */
#define RATE_PART 16

static uint64_t fill_time_of(uint64_t bytes, uint64_t rate)
{
	return (uint64_t)((double)bytes * 1e9 / (double)rate);
}

uint64_t kvmfault__fill_pay(struct kvmfault_fill *fill, uint64_t now,
			    uint64_t bytes)
{
	uint64_t rate = atomic_load(&fill->rate);
	uint64_t due = atomic_load(&fill->due), from, cost;

	if (!rate)
		return 0;
	cost = fill_time_of(bytes, rate);
	do {
		if (due > now)
			return due - now;
		from = now - KVMFAULT__SECOND / RATE_PART;
		if (due > from)
			from = due;
	} while (!atomic_compare_exchange_weak(&fill->due, &due, from + cost));
	/* The rate may have changed: what was paid at the old one is void. */
	if (atomic_load(&fill->rate) != rate)
		atomic_store(&fill->due, 0);
	return 0;
}

void kvmfault__fill_pay_rest(struct kvmfault_fill *fill, uint64_t paid,
			     uint64_t came)
{
	uint64_t rate = atomic_load(&fill->rate);
	uint64_t due = atomic_load(&fill->due), back, more;

	if (!rate || paid == came)
		return;
	back = came < paid ? fill_time_of(paid - came, rate) : 0;
	more = came > paid ? fill_time_of(came - paid, rate) : 0;
	while (!atomic_compare_exchange_weak(&fill->due, &due, due + more >
					     back ? due + more - back : 0))
		;
}

uint64_t kvmfault__fill_length(const struct kvmfault_fill *fill, bool gently)
{
	uint64_t length = fill->window_length;
	uint64_t rate = atomic_load(&fill->rate);

	if (gently && length > fill->gentle_length)
		length = fill->gentle_length;
	if (rate && length > rate / RATE_PART)
		length = rate / RATE_PART;
	return length > KVMFAULT__PAGE ? length : KVMFAULT__PAGE;
}

void kvmfault__fill_adapt(struct kvmfault_fill *fill, uint64_t took)
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
