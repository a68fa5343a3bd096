/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Bitmaps that several threads change, and that others read without a lock.
 */

#ifndef KVMFAULT__BITMAP_H
#define KVMFAULT__BITMAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define KVMFAULT__BITS 64	/* of a word */

/* Set or clear so many bits from the first on, a word at a time: each word
 * changes at once, and sequentially consistent. */
static inline void kvmfault__bits_change(_Atomic uint64_t *words,
					 uint64_t first, uint64_t count,
					 bool set)
{
	uint64_t step, mask;

	for (; count; first += step, count -= step) {
		_Atomic uint64_t *word = &words[first / KVMFAULT__BITS];

		step = KVMFAULT__BITS - first % KVMFAULT__BITS;
		if (step > count)
			step = count;
		mask = UINT64_MAX >> (KVMFAULT__BITS - step) <<
		       first % KVMFAULT__BITS;
		if (set)
			atomic_fetch_or(word, mask);
		else
			atomic_fetch_and(word, ~mask);
	}
}

static inline bool kvmfault__bit(const _Atomic uint64_t *words, uint64_t bit)
{
	return atomic_load(&words[bit / KVMFAULT__BITS]) >>
	       bit % KVMFAULT__BITS & 1;
}

#endif
