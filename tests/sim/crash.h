/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

#ifndef KVMFAULT_SIM_CRASH_H
#define KVMFAULT_SIM_CRASH_H

#define CRASHED 70			/* the exit status of a process */

/* To be called before this process ends so: with a kind, which is the same for
 * the same fault, and words for people. NULL: nothing is called. */
void crash_tell(void (*told)(const char *kind, const char *text));
/* Once, before anything else. */
void crash_init(void);
/* From here on a run has so many seconds of real time; more is a hang. */
void crash_limit(void);

#endif
