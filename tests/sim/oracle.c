/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What each word of guest memory may be. In: what was written, discarded, lost,
 * and when each of these began and ended. Out: a word that is read is one of the
 * values that it may have, or the run has failed. What is read is known from then
 * on: a value that was seen to be gone does not come back.
 */

#include <stdlib.h>
#include <string.h>

#include "sim.h"

const unsigned int oracle_word[WORDS] = { 0, 8, 2048, 4088 };

uint64_t oracle_source(unsigned int source, uint64_t offset)
{
	uint64_t z = (offset + 1) * 0x9e3779b97f4a7c15ULL + source;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	return z | 1;		/* never zero */
}

void truth_init(struct truth *truth, const char *name, unsigned int pages)
{
	truth->name = name;
	truth->pages = pages;
	truth->word = calloc((size_t)pages * WORDS, sizeof(*truth->word));
	truth->discarding = calloc(pages, 1);
	truth->ever = calloc(pages, 1);
	truth->left = calloc(pages, sizeof(*truth->left));
}

void truth_free(struct truth *truth)
{
	free(truth->word);
	free(truth->discarding);
	free(truth->ever);
	free(truth->left);
	memset(truth, 0, sizeof(*truth));
}

struct word *truth_word(struct truth *truth, unsigned int page,
			unsigned int word)
{
	return &truth->word[page * WORDS + word];
}

/* It may become zero at any time. */
static bool going(const struct truth *truth, unsigned int page)
{
	return truth->discarding[page] || truth->left[page];
}

bool word_may_be(const struct word *word, uint64_t value)
{
	unsigned int i;

	for (i = 0; i < word->count; i++)
		if (word->value[i] == value)
			return true;
	return word->lost;
}

static void add(struct word *word, uint64_t value)
{
	if (word_may_be(word, value) && !word->lost)
		return;
	if (word->count == VALUES) {
		word->lost = true;	/* more than can be told apart */
		return;
	}
	word->value[word->count++] = value;
}

static void set(struct word *word, uint64_t value)
{
	unsigned int i;

	word->count = 1;
	word->value[0] = value;
	for (i = 0; i < word->pendings; i++)
		add(word, word->pending[i]);
}

static const char *describe(const struct word *word, char *text, size_t size)
{
	unsigned int i;
	int n = 0;

	text[0] = '\0';
	for (i = 0; i < word->count; i++)
		n += snprintf(text + n, size - (size_t)n, "%s%#llx", i ? " or " : "",
			      (unsigned long long)word->value[i]);
	return text;
}

void truth_read(struct truth *truth, unsigned int page, unsigned int word,
		uint64_t value, const char *who)
{
	struct word *w = truth_word(truth, page, word);
	char text[160];

	tell("%s reads %s, page %u, word %u: %#llx", who, truth->name, page, word,
	     (unsigned long long)value);
	if (!word_may_be(w, value))
		sim_fail(value ? "wrong bytes" : "zeros in place of data",
			 "%s reads %s, page %u, word %u: %#llx, and it is %s",
			 who, truth->name, page, word, (unsigned long long)value,
			 describe(w, text, sizeof(text)));
	if (w->lost)
		return;
	/* While it may still be discarded, what it was may still be seen. */
	if (truth->loose || (going(truth, page) && value))
		return;
	set(w, value);
}

void truth_first(struct truth *truth, unsigned int page, unsigned int word,
		 uint64_t value)
{
	set(truth_word(truth, page, word), value);
}

void truth_anew(struct truth *truth, unsigned int page, unsigned int word,
		uint64_t value)
{
	struct word *w = truth_word(truth, page, word);

	w->version++;
	w->lost = w->written = false;
	truth->left[page] = false;
	/* A write of the library's that is under way may come to this one. */
	set(w, value);
	truth->changes++;
}

void truth_write(struct truth *truth, unsigned int page, unsigned int word,
		 uint64_t value)
{
	struct word *w = truth_word(truth, page, word);

	tell("%s, page %u, word %u is now %#llx", truth->name, page, word,
	     (unsigned long long)value);
	set(w, value);
	truth->changes++;
	w->written = true;
	w->version++;
	if (going(truth, page))
		add(w, 0);
}

uint32_t truth_write_begin(struct truth *truth, unsigned int page,
			   unsigned int word, uint64_t value)
{
	struct word *w = truth_word(truth, page, word);

	truth->changes++;
	add(w, value);
	if (w->pendings < PENDING_WRITES)
		w->pending[w->pendings++] = value;
	w->written = true;
	return ++w->version;
}

void truth_write_end(struct truth *truth, unsigned int page, unsigned int word,
		     uint64_t value, uint32_t version, bool done)
{
	struct word *w = truth_word(truth, page, word);
	unsigned int i;

	truth->changes++;
	for (i = 0; i < w->pendings && w->pending[i] != value; i++)
		;
	if (i < w->pendings)
		w->pending[i] = w->pending[--w->pendings];
	/* Nobody else has touched it: it was the last to write. */
	if (done && w->version == version && !going(truth, page))
		set(w, value);
}

void truth_discard_begin(struct truth *truth, unsigned int page,
			 unsigned int count)
{
	unsigned int i, k;

	truth->open++;
	truth->changes++;
	memset(&truth->ever[page], true, count);
	for (i = page; i < page + count; i++) {
		for (k = 0; k < WORDS; k++) {
			if (!truth->discarding[i])
				truth_word(truth, i, k)->written =
					truth_word(truth, i, k)->pendings;
			truth_word(truth, i, k)->version++;
			add(truth_word(truth, i, k), 0);
		}
		truth->discarding[i]++;
	}
}

void truth_discard_left(struct truth *truth, unsigned int page,
			unsigned int count)
{
	memset(&truth->left[page], true, count);
}

void truth_discard_end(struct truth *truth, unsigned int page,
		       unsigned int count, bool done)
{
	unsigned int i, k;

	truth->open--;
	truth->changes++;
	for (i = page; i < page + count; i++) {
		truth->discarding[i]--;
		if (done && !truth->discarding[i])
			truth->left[i] = false;
		for (k = 0; k < WORDS; k++) {
			struct word *w = truth_word(truth, i, k);

			/* A write that is under way may have come before. */
			w->version++;
			if (done && !w->written && !truth->discarding[i]) {
				w->lost &= !truth->mends;
				set(w, 0);
			}
		}
	}
}

void truth_lose(struct truth *truth, unsigned int page, unsigned int count)
{
	unsigned int i, k;

	truth->changes++;
	for (i = page; i < page + count; i++)
		for (k = 0; k < WORDS; k++)
			truth_word(truth, i, k)->lost = true;
}
