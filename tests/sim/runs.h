/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

#ifndef KVMFAULT_SIM_RUNS_H
#define KVMFAULT_SIM_RUNS_H

#include "plan.h"
#include "sim.h"

void run_plan(const struct plan *plan, const struct schedule *schedule,
	      struct outcome *outcome);

#endif
