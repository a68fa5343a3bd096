/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What plans are made of, and which failures are expected.
 */

#ifndef KVMFAULT_SIM_KNOWN_H
#define KVMFAULT_SIM_KNOWN_H

#include "plan.h"
#include "sim.h"

struct ingredients {			/* that plan_from_seed() may use */
	bool option[OPTION_COUNT];
	bool step[STEP_COUNT];
};

extern struct ingredients ingredients;	/* at first, all */

/* NAME,NAME...: keep these out; or nothing but these. False: there is no such
 * one, and that is told. */
bool without_options(const char *names);
bool without_steps(const char *names);
bool only_options(const char *names);
bool only_steps(const char *names);

/* A failure as it is expected: the beginning of its kind, and what its text has
 * in it. As text, "KIND" or "KIND ~ TEXT". */
struct pattern {
	char kind[96];
	char text[96];
};

void pattern_read(struct pattern *pattern, const char *text);
bool pattern_fits(const struct pattern *pattern, const struct outcome *outcome);

/* The lines of a file, as open.txt describes them. False: it can't be read. */
bool known_read(const char *path);
/* The fault whose failure that is, or NULL. */
const char *known_fault(const struct plan *plan, const struct outcome *outcome);

#endif
