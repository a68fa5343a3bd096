/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * How much memory there is to fill. In: what the kernel says of the machine, and
 * of the cgroups that this process is in. Out: bytes. Memory is promised without
 * being there, so only this tells before it is too late.
 */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tool.h"

#define CGROUPS "/sys/fs/cgroup"

static uint64_t free_in_machine(void)
{
	FILE *file = fopen("/proc/meminfo", "re");
	uint64_t kib, ram = 0, swap = 0;
	char line[128];

	if (!file)
		return UINT64_MAX;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "MemAvailable: %" SCNu64, &kib) == 1)
			ram = kib;
		if (sscanf(line, "SwapFree: %" SCNu64, &kib) == 1)
			swap = kib;
	}
	fclose(file);
	return ram ? (ram + swap) * 1024 : UINT64_MAX;
}

/* "max" is no limit. */
static uint64_t limit_of(const char *cgroup)
{
	uint64_t bytes = UINT64_MAX;
	char path[4096 + 64];
	FILE *file;

	snprintf(path, sizeof(path), CGROUPS "%s/memory.max", cgroup);
	file = fopen(path, "re");
	if (!file)
		return UINT64_MAX;
	if (fscanf(file, "%" SCNu64, &bytes) != 1)
		bytes = UINT64_MAX;
	fclose(file);
	return bytes;
}

/* The least of its cgroup's and all of those around it. */
static uint64_t limit_of_cgroups(void)
{
	FILE *file = fopen("/proc/self/cgroup", "re");
	uint64_t least = UINT64_MAX, limit;
	char line[4096] = "", *path = line + 3, *end;

	while (file && strncmp(line, "0::", 3) &&
	       fgets(line, sizeof(line), file))
		;
	if (file)
		fclose(file);
	if (strncmp(line, "0::", 3))
		return UINT64_MAX;
	path[strcspn(path, "\n")] = 0;
	while ((end = strrchr(path, '/'))) {
		limit = limit_of(path);
		if (limit < least)
			least = limit;
		*end = 0;
	}
	limit = limit_of("");
	return limit < least ? limit : least;
}

bool have_room(const char *what, uint64_t bytes, unsigned int times)
{
	uint64_t room = free_in_machine(), limit = limit_of_cgroups();

	if (limit < room)
		room = limit;
	if (bytes <= room / times)
		return true;
	complain("%s fills %u times %" PRIu64 " MiB of memory, and there are %"
		 PRIu64 " MiB; take less with --memory", what, times,
		 bytes >> 20, room >> 20);
	return false;
}
