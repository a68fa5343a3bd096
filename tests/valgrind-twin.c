/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* What valgrind must not let pass: a test, in its own process as all are, that
 * decides on a byte which nobody wrote. */

#include <stdio.h>

#include "unit.h"

TEST_GROUP(twin, NULL, NULL);

TEST(twin, decides_on_garbage)
{
	volatile char *byte = malloc(1);

	__asm__("" : "+r" (byte));	/* no compiler knows it */
	if (*byte)
		puts("one");
	free((void *)(uintptr_t)byte);
}

int main(void)
{
	return run_suite("valgrind twin");
}
