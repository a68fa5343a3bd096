/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What every test program with Check shares: a suite of test functions and a
 * main. Each test runs in a process of its own, so that one that crashes or
 * hangs fails alone.
 */

#ifndef KVMFAULT_TESTS_UNIT_H
#define KVMFAULT_TESTS_UNIT_H

#include <check.h>
#include <stdlib.h>

#define PAGE 4096ULL
#define HANG 60		/* seconds: so long takes only what hangs */

static inline TCase *tests(Suite *suite, const char *name)
{
	TCase *tcase = tcase_create(name);

	tcase_set_timeout(tcase, HANG);
	suite_add_tcase(suite, tcase);
	return tcase;
}

static inline int run_suite(Suite *suite)
{
	SRunner *runner = srunner_create(suite);
	int failed;

	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
