/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The message that Firecracker sends to kvmfault serve, in two pieces. Whatever
 * comes, ranges that are accepted are whole pages in the image, and none of
 * them overlaps another; one that is refused has a reason.
 */

#include "fuzz.h"
#include "tools/serve.h"

#define IMAGE (1ULL << 32)

static void check_ranges(const struct serve_range *range, int count)
{
	int i, k;

	for (i = 0; i < count; i++) {
		uint64_t all = range[i].address | range[i].length |
			       range[i].offset;

		MUST(range[i].length && range[i].address);
		MUST(range[i].page_size == 4096 ||
			    range[i].page_size == 2 << 20);
		MUST(!(all & (range[i].page_size - 1)));
		MUST(range[i].offset + range[i].length <= IMAGE);
		for (k = 0; k < i; k++)
			MUST(range[i].address >= range[k].address +
				    range[k].length ||
				    range[k].address >= range[i].address +
				    range[i].length);
	}
}

static int take_in_pieces(struct serve_hello *hello, const uint8_t *data,
			  size_t size, size_t first)
{
	int whole = 0;

	if (first)
		whole = serve_firecracker_take(hello, (const char *)data,
					       first);
	if (!whole && size > first)
		whole = serve_firecracker_take(hello,
					       (const char *)data + first,
					       size - first);
	return whole;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	/* A descriptor that nothing is known of. */
	struct serve_hello hello = { .fd = { -1 }, .fds = 1 };
	struct serve_range *ranges = NULL;
	int whole, count = -1;

	if (!size)
		return 0;
	whole = take_in_pieces(&hello, data + 1, size - 1,
			       data[0] % size);
	if (whole > 0)
		count = serve_firecracker_ranges(&hello, IMAGE, &ranges);
	MUST(whole >= 0 || hello.why[0]);
	MUST(whole <= 0 || count > 0 || hello.why[0]);
	if (count > 0)
		check_ranges(ranges, count);
	free(ranges);
	serve_firecracker_forget(&hello);
	return 0;
}
