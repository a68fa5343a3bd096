/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The program's sizes. Input: a text. What is taken is the decimal number times
 * its unit, with no bit lost, and means the same when it is written out.
 */

#include <inttypes.h>

#include "fuzz.h"
#include "tools/tool.h"

#define LONGEST 40

/* How many bits the unit behind the number shifts; -1: no such unit. */
static int shift(const char *unit)
{
	static const char units[] = "KMGT";
	const char *at;

	if (!*unit)
		return 0;
	at = strchr(units, *unit);
	return at && !unit[1] ? 10 * (int)(at - units + 1) : -1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	char text[LONGEST + 1] = "", again[LONGEST + 1], *end;
	uint64_t bytes = 0, other = 1;
	int bits;

	next(&in, text, LONGEST);
	if (!parse_size(text, &bytes))
		return 0;
	MUST(*text >= '0' && *text <= '9');
	other = strtoull(text, &end, 10);
	bits = shift(end);
	MUST(bits >= 0 && bytes >> bits == other && other << bits == bytes);
	snprintf(again, sizeof(again), "%" PRIu64, bytes);
	MUST(parse_size(again, &other) && other == bytes);
	return 0;
}
