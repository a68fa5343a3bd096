/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * In the place of <stdatomic.h> when the library is compiled for the simulator:
 * the same operations, with a point before each at which the scheduler may let
 * another thread go on. A store that is not sequentially consistent may be seen
 * late by the other threads, as on arm64: see sim_store_late().
 */

#include_next <stdatomic.h>

#ifndef KVMFAULT_SIM_STDATOMIC_H
#define KVMFAULT_SIM_STDATOMIC_H

#include "sim-atomic.h"

#undef atomic_load
#undef atomic_load_explicit
#undef atomic_store
#undef atomic_store_explicit
#undef atomic_exchange
#undef atomic_compare_exchange_strong
#undef atomic_compare_exchange_weak
#undef atomic_fetch_add
#undef atomic_fetch_sub
#undef atomic_fetch_or
#undef atomic_fetch_and

#define atomic_load_explicit(p, order) __extension__({ \
	__auto_type sim__p = (p); \
	__typeof__((void)0, *sim__p) sim__v; \
	sim_atomic_load(sim__p, (order) == __ATOMIC_RELAXED, "load(" #p ")", \
			__func__); \
	__atomic_load(sim__p, &sim__v, (order)); \
	sim__v; })
#define atomic_load(p) atomic_load_explicit(p, __ATOMIC_SEQ_CST)

#define atomic_store(p, v) __extension__({ \
	__auto_type sim__p = (p); \
	__typeof__((void)0, *sim__p) sim__v = (v); \
	sim_atomic(sim__p, "store(" #p ")", __func__); \
	__atomic_store(sim__p, &sim__v, __ATOMIC_SEQ_CST); })
#define atomic_store_explicit(p, v, order) __extension__({ \
	__auto_type sim__q = (p); \
	__typeof__((void)0, *sim__q) sim__w = (v); \
	if ((order) == __ATOMIC_SEQ_CST) \
		atomic_store(sim__q, sim__w); \
	else if (!sim_store_late(sim__q, &sim__w, sizeof(sim__w), \
				 (order) == __ATOMIC_RELAXED, \
				 "store(" #p ")", __func__)) \
		__atomic_store(sim__q, &sim__w, (order)); })

#define atomic_exchange(p, v) __extension__({ \
	__auto_type sim__p = (p); \
	__typeof__((void)0, *sim__p) sim__v = (v), sim__r; \
	sim_atomic(sim__p, "exchange(" #p ")", __func__); \
	__atomic_exchange(sim__p, &sim__v, &sim__r, __ATOMIC_SEQ_CST); \
	sim__r; })

#define atomic_compare_exchange_strong(p, e, v) __extension__({ \
	__auto_type sim__p = (p); \
	__typeof__((void)0, *sim__p) sim__v = (v); \
	sim_atomic(sim__p, "compare_exchange(" #p ")", __func__); \
	__atomic_compare_exchange(sim__p, (e), &sim__v, 0, __ATOMIC_SEQ_CST, \
				  __ATOMIC_SEQ_CST); })
#define atomic_compare_exchange_weak(p, e, v) \
	atomic_compare_exchange_strong(p, e, v)

#define atomic_fetch_add(p, v) __extension__({ \
	__auto_type sim__p = (p); \
	sim_atomic(sim__p, "fetch_add(" #p ")", __func__); \
	__atomic_fetch_add(sim__p, (v), __ATOMIC_SEQ_CST); })
#define atomic_fetch_sub(p, v) __extension__({ \
	__auto_type sim__p = (p); \
	sim_atomic(sim__p, "fetch_sub(" #p ")", __func__); \
	__atomic_fetch_sub(sim__p, (v), __ATOMIC_SEQ_CST); })
#define atomic_fetch_or(p, v) __extension__({ \
	__auto_type sim__p = (p); \
	sim_atomic(sim__p, "fetch_or(" #p ")", __func__); \
	__atomic_fetch_or(sim__p, (v), __ATOMIC_SEQ_CST); })
#define atomic_fetch_and(p, v) __extension__({ \
	__auto_type sim__p = (p); \
	sim_atomic(sim__p, "fetch_and(" #p ")", __func__); \
	__atomic_fetch_and(sim__p, (v), __ATOMIC_SEQ_CST); })

#endif
