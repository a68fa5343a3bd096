/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What the wrappers around the public functions (made by errnos.py) tell the
 * tests: each function there is, how often it was called, and which one a
 * thread is in.
 */

#ifndef KVMFAULT_TESTS_NOTING_H
#define KVMFAULT_TESTS_NOTING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

struct noted {
	const char *name;
	bool setup;		/* its thread class, in the header */
	atomic_uint calls;
};
extern struct noted noted[];
extern const size_t noted_count;

/* The innermost public function that this thread is in, or NULL. */
extern _Thread_local const struct noted *noting_inside;

#endif
