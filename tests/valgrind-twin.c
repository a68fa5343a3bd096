/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* What valgrind must not let pass: a test, in its own process as all are, that
 * decides on a byte which nobody wrote. */

#include <stdio.h>

#include "unit.h"

START_TEST(decides_on_garbage)
{
	volatile char *byte = malloc(1);

	__asm__("" : "+r" (byte));	/* no compiler knows it */
	if (*byte)
		puts("one");
	free((void *)(uintptr_t)byte);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("valgrind twin");

	tcase_add_test(tests(suite, "twin"), decides_on_garbage);
	return run_suite(suite);
}
