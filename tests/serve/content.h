/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The bytes that RAM has to have, page by page, while it is restored from an
 * image, read and marked by a guest (MACHINE_SCAN), and ballooned. It is set up
 * on one thread; any number may ask after that, while none changes a page.
 *
 * Which pages the balloon takes, and when, is a matter of the page's number
 * alone, so that for each page it is known what may be there:
 *	BALLOON_NEVER	the image's bytes, with the guest's mark
 *	BALLOON_BEFORE	before the guest runs: zeros, with the mark of zeros
 *	BALLOON_WHILE	while the guest runs: zeros, and no mark, or that of a
 *			page of which the guest read a first part before
 *	BALLOON_AFTER	after the guest's first walk: zeros, and no mark
 */

#ifndef KVMFAULT_TESTS_SERVE_CONTENT_H
#define KVMFAULT_TESTS_SERVE_CONTENT_H

#include <stdbool.h>
#include <stdint.h>

#define PAGE 4096ULL
#define PAGE_WORDS 512
#define MARK (PAGE_WORDS - 1)	/* the word that the guest writes */

enum balloon {
	BALLOON_NEVER,
	BALLOON_BEFORE,
	BALLOON_WHILE,
	BALLOON_AFTER,
};

struct content {
	uint64_t pages;
	uint64_t grain;			/* pages that come and go as one */
	bool ballooned;			/* else it never is */
	uint64_t (*page)[PAGE_WORDS];	/* what RAM has to be now */
};

/* A stretch of pages that the balloon takes at once. */
struct stretch {
	enum balloon when;
	uint64_t first, count;
};

/* Read the image. The program ends with 1 if it can't be read, with 2 if it is
 * no multiple of grain pages. */
void content_read(struct content *content, const char *path, uint64_t grain,
		  bool ballooned);

/* How many stretches there are at most, and each of them; count may be 0. */
uint64_t content_stretches(const struct content *content);
struct stretch content_stretch(const struct content *content, uint64_t number);

enum balloon content_balloon(const struct content *content, uint64_t page);

/* The guest's mark for a page of which it reads these words. */
uint64_t content_mark(const uint64_t *words);

/*
 * The index of the first word of the page that is wrong, or -1. At rest, after
 * the guest has walked over it once; and while it walks.
 */
int content_wrong_after(const struct content *content, uint64_t page,
			const uint64_t *words);
int content_wrong_while(const struct content *content, uint64_t page,
			const uint64_t *words);

#endif
