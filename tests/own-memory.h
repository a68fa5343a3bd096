/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * How much memory a range of anonymous memory takes, as the kernel counts it. The
 * page of zeros that all mappings share is none of this, and neither is what a
 * sanitizer keeps elsewhere.
 */

#ifndef KVMFAULT_TESTS_OWN_MEMORY_H
#define KVMFAULT_TESTS_OWN_MEMORY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* In bytes; of all mappings that begin in the range. */
static inline uint64_t own_memory(const void *at, uint64_t length)
{
	FILE *smaps = fopen("/proc/self/smaps", "re");
	unsigned long start, end, kib;
	uint64_t bytes = 0;
	bool here = false;
	char line[512];

	while (smaps && fgets(line, sizeof(line), smaps)) {
		if (sscanf(line, "%lx-%lx", &start, &end) == 2)
			here = start - (uintptr_t)at < length;
		else if (here && sscanf(line, "Anonymous: %lu kB", &kib) == 1)
			bytes += kib << 10;
	}
	if (smaps)
		fclose(smaps);
	return bytes;
}

#endif
