/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What the scheduler asks of those above it.
 */

#ifndef KVMFAULT_SIM_RUN_H
#define KVMFAULT_SIM_RUN_H

#include <stdbool.h>
#include <stdint.h>

/* fds.c: when the next timer is due that is armed; NEVER */
uint64_t fds_next_timer(void);
/* run.c: nobody can go on, and nobody ever will. True: somebody was woken, for
 * that was to be waited for. */
bool run_stuck(void);

/* Memory has failed: who touches it is killed. */
bool run_kill_is_fine(void);

#endif
