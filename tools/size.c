/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* Sizes as people write them. In: a text. Out: bytes, or no. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tool.h"

bool parse_size(const char *text, uint64_t *size)
{
	static const char units[] = "KMGT";
	const char *unit;
	char *end;

	errno = 0;
	*size = strtoull(text, &end, 10);
	if (errno || *text < '0' || *text > '9')
		return false;
	if (*end) {
		unsigned int shift;

		unit = strchr(units, *end);
		if (!unit || end[1])
			return false;
		shift = 10 * (unsigned int)(unit - units + 1);
		if (*size > UINT64_MAX >> shift)
			return false;
		*size <<= shift;
	}
	return true;
}
