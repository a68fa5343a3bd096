/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A failing run, made small.
 */

#ifndef KVMFAULT_SIM_SHRINK_H
#define KVMFAULT_SIM_SHRINK_H

#include "attempt.h"

/* To fewer actors, steps, options and switches, while it still fails as is
 * wanted; for so many seconds at most. */
void shrink(struct replay *replay, const struct pattern *wanted,
	    unsigned int seconds);

#endif
