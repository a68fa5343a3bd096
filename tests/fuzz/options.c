/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Open structs of any size, with any tail, in both directions, against the
 * rules said byte by byte. Input: the library's size, the caller's, the bytes.
 */

#include "fuzz.h"
#include "lib/setup/setup.h"

#define MOST 256
#define HEAD sizeof(size_t)

static int expected(const uint8_t *caller, size_t size, size_t ours)
{
	size_t i;

	if (size < HEAD)
		return -EINVAL;
	for (i = ours; i < size; i++)
		if (caller[i])
			return -E2BIG;
	return 0;
}

static void check_in(const uint8_t *caller, size_t size, size_t ours)
{
	uint8_t *to = malloc(ours);
	int err;
	size_t i;

	MUST(to);
	err = kvmfault__options(to, ours, caller);
	MUST(err == expected(caller, size, ours));
	for (i = HEAD; !err && i < ours; i++)
		MUST(to[i] == (i < size ? caller[i] : 0));
	MUST(err || !memcmp(to, &ours, HEAD));
	free(to);
}

static void check_out(const uint8_t *ours_bytes, size_t size, size_t ours)
{
	size_t i, length = size < HEAD ? HEAD : size;
	uint8_t *from = exactly(ours_bytes, ours);
	uint8_t *to = malloc(length);
	int err;

	MUST(to);
	memset(to, 0xa5, length);
	memcpy(to, &size, HEAD);
	err = kvmfault__options_out(to, from, ours);
	MUST(err == (size < HEAD ? -EINVAL : 0));
	MUST(!memcmp(to, &size, HEAD));
	for (i = HEAD; !err && i < size; i++)
		MUST(to[i] == (i < ours ? from[i] : 0));
	free(from);
	free(to);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	size_t ours = HEAD + next8(&in), theirs = next8(&in);
	uint8_t bytes[HEAD + MOST], *caller;

	next(&in, bytes, sizeof(bytes));
	memcpy(bytes, &theirs, HEAD);
	caller = exactly(bytes, theirs < HEAD ? HEAD : theirs);
	check_in(caller, theirs, ours);
	check_out(bytes, theirs, ours);
	MUST(kvmfault__options(bytes, ours, NULL) == -EINVAL);
	MUST(kvmfault__options_out(NULL, bytes, ours) == -EINVAL);
	free(caller);
	return 0;
}
