/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What the fuzz targets share. A target is one LLVMFuzzerTestOneInput(): it
 * takes its input apart with next(), which never ends (it gives zeros then),
 * and says with MUST() what has to hold, with or without a sanitizer.
 */

#ifndef KVMFAULT_TESTS_FUZZ_H
#define KVMFAULT_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096ULL

#define MUST(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, \
				__LINE__, #what); \
			abort(); \
		} \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	const uint8_t *at;
	size_t left;
};

static inline void next(struct input *in, void *to, size_t length)
{
	size_t n = length < in->left ? length : in->left;

	memset(to, 0, length);
	if (!n)
		return;
	memcpy(to, in->at, n);
	in->at += n;
	in->left -= n;
}

static inline uint8_t next8(struct input *in)
{
	uint8_t value;

	next(in, &value, sizeof(value));
	return value;
}

/* A copy of exactly this length, so that a read past it is noticed. */
static inline void *exactly(const void *from, size_t length)
{
	void *copy = malloc(length ? length : 1);

	MUST(copy);
	if (length)
		memcpy(copy, from, length);
	return copy;
}

#endif
