/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * In: an image, and what was found in a page of RAM. Out: whether that may be
 * there. Always: if a page was not ballooned while the guest ran, there is one
 * answer for each of its words.
 */

#include <err.h>
#include <fcntl.h>
#include <machine.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "content.h"

#define STRETCH 16	/* pages among which one stretch is */

void content_read(struct content *content, const char *path, uint64_t grain,
		  bool ballooned)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t size, done = 0;
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		err(1, "%s", path);
	size = (uint64_t)st.st_size;
	if (!size || size % (grain * PAGE))
		errx(2, "%s: its size is no multiple of %llu", path,
		     (unsigned long long)(grain * PAGE));
	*content = (struct content){
		.pages = size / PAGE, .grain = grain, .ballooned = ballooned,
		.page = malloc(size),
	};
	if (!content->page)
		err(1, "the image's bytes");
	while (done < size) {
		ssize_t n = pread(fd, (char *)content->page + done,
				  size - done, (off_t)done);

		if (n <= 0)
			err(1, "%s", path);
		done += (uint64_t)n;
	}
	close(fd);
}

static uint64_t stretch_pages(const struct content *content)
{
	return content->grain > STRETCH ? content->grain : STRETCH;
}

uint64_t content_stretches(const struct content *content)
{
	return content->pages / stretch_pages(content);
}

struct stretch content_stretch(const struct content *content, uint64_t number)
{
	static const enum balloon when[8] = {
		BALLOON_NEVER, BALLOON_BEFORE, BALLOON_NEVER, BALLOON_WHILE,
		BALLOON_NEVER, BALLOON_AFTER, BALLOON_WHILE, BALLOON_NEVER,
	};
	uint64_t scatter = number * MACHINE_SCAN_MUL >> 32;
	struct stretch stretch = {
		.when = when[number % 8],
		.first = number * stretch_pages(content),
		.count = content->grain,
	};

	if (content->grain == 1) {	/* 1 to 12 of the 16 */
		stretch.first += scatter % 5;
		stretch.count = 1 + scatter / 5 % 12;
	}
	if (!content->ballooned || stretch.when == BALLOON_NEVER ||
	    number >= content_stretches(content))
		stretch = (struct stretch){ .when = BALLOON_NEVER };
	return stretch;
}

enum balloon content_balloon(const struct content *content, uint64_t page)
{
	struct stretch stretch =
		content_stretch(content, page / stretch_pages(content));

	return page - stretch.first < stretch.count ? stretch.when :
						      BALLOON_NEVER;
}

static uint64_t mark_word(uint64_t sum, uint64_t word)
{
	return ((sum << 5 | sum >> 59) ^ word) * MACHINE_SCAN_MUL;
}

uint64_t content_mark(const uint64_t *words)
{
	uint64_t sum = MACHINE_SCAN_SEED;
	int i;

	for (i = 0; i < PAGE_WORDS; i++)
		sum = mark_word(sum, words[i]);
	return sum;
}

/* The mark of a page that the balloon took after so many words were read. */
static bool is_cut_mark(const uint64_t *words, uint64_t mark)
{
	uint64_t sum = MACHINE_SCAN_SEED;
	int i, read;

	for (read = 0; read <= PAGE_WORDS; read++) {
		uint64_t rest = sum;

		for (i = read; i < PAGE_WORDS; i++)
			rest = mark_word(rest, 0);
		if (rest == mark)
			return true;
		if (read < PAGE_WORDS)
			sum = mark_word(sum, words[read]);
	}
	return false;
}

int content_wrong_after(const struct content *content, uint64_t page,
			const uint64_t *words)
{
	const uint64_t *was = content->page[page];
	bool taken = content_balloon(content, page) == BALLOON_WHILE;
	int i;

	for (i = 0; i < MARK; i++)
		if (words[i] != (taken ? 0 : was[i]))
			return i;
	if (!taken)
		return words[MARK] == content_mark(was) ? -1 : MARK;
	return !words[MARK] || is_cut_mark(was, words[MARK]) ? -1 : MARK;
}

int content_wrong_while(const struct content *content, uint64_t page,
			const uint64_t *words)
{
	const uint64_t *was = content->page[page];
	bool taken = content_balloon(content, page) == BALLOON_WHILE;
	int i;

	for (i = 0; i < MARK; i++)
		if (words[i] != was[i] && !(taken && !words[i]))
			return i;
	if (taken || words[MARK] == was[MARK])
		return -1;
	return words[MARK] == content_mark(was) ? -1 : MARK;
}
