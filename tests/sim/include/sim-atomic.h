/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What an atomic operation of the library tells the scheduler.
 */

#ifndef KVMFAULT_SIM_ATOMIC_H
#define KVMFAULT_SIM_ATOMIC_H

#include <stddef.h>

void sim_atomic(const volatile void *object, const char *operation,
		const char *function);
/* Before a load: what this thread has stored and nobody has seen is seen. */
void sim_atomic_load(const volatile void *object, _Bool relaxed,
		     const char *operation, const char *function);
/* Whether this store is put off; then the value is copied from there. */
_Bool sim_store_late(volatile void *object, const void *value, size_t size,
		     _Bool relaxed, const char *operation,
		     const char *function);

#endif
