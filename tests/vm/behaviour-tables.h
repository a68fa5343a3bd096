/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * RAM with page tables in it, for behaviour-tables.c and behaviour-x86.c.
 */

#ifndef KVMFAULT_TESTS_BEHAVIOUR_TABLES_H
#define KVMFAULT_TESTS_BEHAVIOUR_TABLES_H

#include "behaviour.h"

/* Guest virtual, above the machine's. */
#define WINDOW (100ULL << 30)
#define GOOD (WINDOW + 16 * PAGE)	/* DATA, by way of TABLE */
#define LOST (GOOD + HUGE)		/* the same, by way of LOST_TABLE */
#define LOST_DATA_AT (GOOD + PAGE)	/* LOST_DATA, by way of TABLE */

#define WORD 0x6c62272e07bb0142ULL	/* what DATA begins with */

/* Pages of RAM. */
enum {
	DIRECTORY = 1, TABLE, LOST_TABLE, DATA, LOST_DATA, CODE, HANDLER,
	STACK,
};

void *page_at(unsigned int page);
uint64_t gpa_of(unsigned int page);

/* All is present. */
void start_with_tables(void);
/* In place of that page; aims at it. */
void put_marker(unsigned int page);
void copy_over_marker(unsigned int page, const void *from);
void copy_table(void);			/* over LOST_TABLE */

/* LOST_TABLE is missing, and will come for who walks it. */
void read_missing_table(struct reader *reader);
void conclude_missing_table(const struct reader *reader)
	__attribute__((noreturn));

#ifdef __x86_64__
/* So that a page fault that the guest gets is told by an exit. */
void catch_page_faults(void);
/* Says so in place of what the bed says; address is where it has to be. */
void seen_by_guest(enum outcome outcome, uint64_t address);
#endif

#endif
