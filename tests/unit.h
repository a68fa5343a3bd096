/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What every test program with Check shares. A program is one file. It defines
 * groups, each with what runs before and after its cases, and cases, each in a
 * group; its main() calls run_suite(), which runs all of them, in the file's
 * order, each in a process of its own, so that a case that crashes or hangs
 * fails alone:
 *
 *	TEST_GROUP(range, up, down);
 *
 *	TEST(range, nothing_is_asked_for) { ... }
 *	TEST_EACH(range, wrong_numbers, 3) { ... _i is 0, 1 and 2 ... }
 *
 * The linker collects them: a case cannot be left out, as no list names it.
 * With CK_RUN_CASE=range only that group runs.
 */

#ifndef KVMFAULT_TESTS_UNIT_H
#define KVMFAULT_TESTS_UNIT_H

#include <check.h>
#include <stdlib.h>

#define PAGE 4096ULL
#define HANG 60		/* seconds: so long takes only what hangs */

struct test_group {
	const char *name;
	int line;
	void (*up)(void);
	void (*down)(void);
	double seconds;			/* main() may set it */
	const struct test_group *like;	/* its cases are this one's too */
};

struct test_case {
	const struct test_group *group;
	const TTest *test;
	int line;
	int times;
	const int *counted;		/* or NULL: main() counts them */
	int signal;
};

/* A section has pointers only, as a compiler may pad anything larger. */
#define UNIT_KEEP(section_name) __attribute__((used, section(section_name)))

#define UNIT_GROUP(group, up_, down_, seconds_, like_)			\
	static struct test_group group_##group = {			\
		.name = #group, .line = __LINE__, .up = up_,		\
		.down = down_, .seconds = seconds_, .like = like_,	\
	};								\
	static struct test_group *group_##group##_kept			\
		UNIT_KEEP("unit_groups") = &group_##group

#define UNIT_CASE(in, what, test_, ...)					\
	static const struct test_case in##_##what##_case = {		\
		.group = &group_##in, .test = test_,			\
		.line = __LINE__, __VA_ARGS__				\
	};								\
	static const struct test_case *in##_##what##_kept		\
		UNIT_KEEP("unit_cases") = &in##_##what##_case

#define UNIT_TEST(in, what, ...)					\
	static void what##_fn(int _i);					\
	static const TTest what##_ttest = {				\
		.name = #what, .fn = what##_fn,				\
		.file = __FILE__, .line = __LINE__,			\
	};								\
	UNIT_CASE(in, what, &what##_ttest, __VA_ARGS__);		\
	static void what##_fn(int _i __attribute__((unused)))

/* This is a group with its fixture, where either function may be NULL. */
#define TEST_GROUP(group, up, down) UNIT_GROUP(group, up, down, HANG, NULL)
/* Each case of this one may take so many seconds. */
#define TEST_GROUP_FOR(group, up, down, seconds) \
	UNIT_GROUP(group, up, down, seconds, NULL)
/* This one has the other one's cases, and maybe more, with its own fixture. */
#define TEST_GROUP_LIKE(group, other, up, down) \
	UNIT_GROUP(group, up, down, HANG, &group_##other)

/* This is a case. */
#define TEST(group, name) UNIT_TEST(group, name, .times = 1)
/* It is run so many times, which is a constant; _i counts them from 0. */
#define TEST_EACH(group, name, times_) \
	UNIT_TEST(group, name, .times = times_)
/* It is run as many times as an int variable says, which main() sets. */
#define TEST_COUNTED(group, name, variable) \
	UNIT_TEST(group, name, .counted = &(variable))
/* It is run so many times, and this signal has to end it each time. */
#define TEST_KILLED(group, name, signal_, times_) \
	UNIT_TEST(group, name, .times = times_, .signal = signal_)
/* A case that is defined above is run in this group, too. */
#define TEST_ALSO(group, name) \
	UNIT_CASE(group, name, &name##_ttest, .times = 1)

/* This one of Check's would define a case that is in no group. */
#undef START_TEST

extern struct test_group *__start_unit_groups[], *__stop_unit_groups[];
extern const struct test_case *__start_unit_cases[], *__stop_unit_cases[];

static inline int unit_group_order(const void *a, const void *b)
{
	return (*(struct test_group *const *)a)->line -
	       (*(struct test_group *const *)b)->line;
}

static inline int unit_case_order(const void *a, const void *b)
{
	return (*(const struct test_case *const *)a)->line -
	       (*(const struct test_case *const *)b)->line;
}

static inline void unit_add_group(Suite *suite, const struct test_group *group)
{
	TCase *tcase = tcase_create(group->name);
	const struct test_case **at;

	tcase_set_timeout(tcase, group->seconds);
	tcase_add_checked_fixture(tcase, group->up, group->down);
	for (at = __start_unit_cases; at != __stop_unit_cases; at++)
		if ((*at)->group == group || (*at)->group == group->like)
			tcase_add_loop_test_raise_signal(tcase, (*at)->test,
				(*at)->signal, 0, (*at)->counted ?
					*(*at)->counted : (*at)->times);
	suite_add_tcase(suite, tcase);
}

static inline int run_suite(const char *name)
{
	Suite *suite = suite_create(name);
	struct test_group **at;
	SRunner *runner;
	int failed;

	/* A linker keeps an order of its own. */
	qsort(__start_unit_groups, __stop_unit_groups - __start_unit_groups,
	      sizeof(*__start_unit_groups), unit_group_order);
	qsort(__start_unit_cases, __stop_unit_cases - __start_unit_cases,
	      sizeof(*__start_unit_cases), unit_case_order);
	for (at = __start_unit_groups; at != __stop_unit_groups; at++)
		unit_add_group(suite, *at);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
