/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What the files of the program that asks the model share: see behaviour.c.
 */

#ifndef KVMFAULT_SIM_BEHAVIOUR_H
#define KVMFAULT_SIM_BEHAVIOUR_H

#include "sim.h"

#define PAGES 16U
#define HUGE (HUGE_PAGES * PAGE)

struct row {
	const char *key;		/* NULL: the end */
	bool levels;			/* asked as user, and as supervisor */
	void (*ask)(int arg);		/* ends in answer() */
	int arg;
};

extern const struct row uffd_rows[];
extern const struct row edge_rows[];

/* The row's answer, and the end of its run. */
void answer(const char *format, ...)
	__attribute__((noreturn, format(printf, 1, 2)));
const char *name_of(int ret);		/* of 0 or -errno */
/* What has to be 0 for the row to be asked; "unsupported: ..." unless it is. */
void must(int ret, const char *what);
void may(int ret);

struct uffd *watcher(uint64_t features);	/* watches nothing */
struct uffd *watch(uint64_t at, uint64_t length, uint64_t features);
int watch_as(struct uffd *uffd, uint64_t at, uint64_t length, uint64_t mode);
/* 0 or -errno */
int copy(struct uffd *uffd, uint64_t at, uint64_t word, uint64_t length);
int copy_as(struct uffd *uffd, uint64_t at, uint64_t word, uint64_t length,
	    uint64_t mode);
int poison(struct uffd *uffd, uint64_t at, uint64_t length);
int map_again(struct uffd *uffd, uint64_t at, uint64_t length);	/* CONTINUE */
const void *filled(uint64_t word);	/* a huge page of it */
uint64_t map_file(struct file *file);	/* all of it */

/* behaviour-uffd.c: */
enum { ANONYMOUS, SHMEM, HUGETLB };
uint64_t map_kind(int kind);		/* HUGE long */

#endif
