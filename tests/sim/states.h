/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Files of states (kvmfault_memory_options.states_fd), and an owner that is
 * killed.
 */

#ifndef KVMFAULT_SIM_STATES_H
#define KVMFAULT_SIM_STATES_H

#include "world.h"

void states_reset(void);
/* A file for the memory's states, if the plan has it; or that file is empty. */
void states_make(struct sim_memory *memory);
void states_empty(struct sim_memory *memory);
bool states_say_settled(const struct sim_memory *memory);
/* The memory's owner is killed just now: look at what the next one finds. */
void states_check_killed(struct sim_memory *memory);
/* What differs when the states do, or what is mapped. */
uint64_t states_digest(struct sim_memory *memory);

#endif
