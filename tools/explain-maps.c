/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* kvmfault explain: a process's mappings and the state of a page. In:
 * /proc/PID/maps, by PROCMAP_QUERY where the kernel has it, for that holds the
 * lock of the mappings shortest; smaps for VmFlags; pagemap. Out: the look's
 * mappings in the order of addresses, and one page. */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "explain.h"

/* Linux 6.11 */
struct map_query {
	uint64_t size, query_flags, query_addr;
	uint64_t start, end, flags, page_size, offset, inode;
	uint32_t device_major, device_minor;
	uint32_t name_size, build_id_size;
	uint64_t name, build_id;
};
_Static_assert(sizeof(struct map_query) == 104, "the kernel's size");
#define MAP_QUERY _IOWR('f', 17, struct map_query)
enum { QUERY_READABLE = 1, QUERY_WRITABLE = 2, QUERY_EXECUTABLE = 4,
	QUERY_SHARED = 8, QUERY_COVERING_OR_NEXT = 16 };

/* Linux 6.7 */
struct scan_region {
	uint64_t start, end, categories;
};
struct scan_query {
	uint64_t size, flags, start, end, walk_end, regions, region_count;
	uint64_t max_pages, inverted, mask, any, wanted;
};
_Static_assert(sizeof(struct scan_query) == 96, "the kernel's size");
#define PAGE_SCAN _IOWR('f', 16, struct scan_query)
enum { SCAN_WRITTEN = 2, SCAN_PRESENT = 8,
	SCAN_SWAPPED = 16 };

static struct explain_mapping *add_mapping(struct explain_look *look)
{
	look->mappings = grow_list(look->mappings, look->mapping_count,
				   sizeof(*look->mappings));
	return &look->mappings[look->mapping_count++];
}

static void take_query(struct explain_mapping *m, const struct map_query *query)
{
	m->start = query->start;
	m->end = query->end;
	m->offset = query->offset;
	m->inode = query->inode;
	m->device_major = query->device_major;
	m->device_minor = query->device_minor;
	m->page_size = query->page_size;
	m->readable = query->flags & QUERY_READABLE;
	m->writable = query->flags & QUERY_WRITABLE;
	m->executable = query->flags & QUERY_EXECUTABLE;
	m->shared = query->flags & QUERY_SHARED;
}

/* False: this kernel cannot, and nothing was taken. */
static bool query_mappings(struct explain_look *look, int fd)
{
	uint64_t at = 0;
	char name[4096];

	for (;;) {
		struct map_query query = { .size = sizeof(query),
			.query_flags = QUERY_COVERING_OR_NEXT, .query_addr = at,
			.name_size = sizeof(name),
			.name = (uintptr_t)name };
		struct explain_mapping *m;

		name[0] = '\0';
		if (ioctl(fd, MAP_QUERY, &query))
			return look->mapping_count || errno == ENOENT;
		if (query.end <= at)
			return true;
		m = add_mapping(look);
		take_query(m, &query);
		copy_word(m->name, sizeof(m->name),
			  query.name_size ? name : NULL);
		at = query.end;
	}
}

static bool parse_mapping(const char *line, struct explain_mapping *m)
{
	char rights[5];
	int at = 0;

	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %"
		   SCNu64 "%n", &m->start, &m->end, rights, &m->offset,
		   &m->device_major, &m->device_minor, &m->inode, &at) < 7 ||
	    m->end <= m->start)
		return false;
	m->readable = strchr(rights, 'r');
	m->writable = strchr(rights, 'w');
	m->executable = strchr(rights, 'x');
	m->shared = strchr(rights, 's');
	line += at;
	copy_word(m->name, sizeof(m->name), line + strspn(line, " "));
	return true;
}

void parse_mappings(struct explain_look *look, char *text)
{
	char *line;

	while ((line = strsep(&text, "\n"))) {
		struct explain_mapping m = { 0 };

		if (parse_mapping(line, &m))
			*add_mapping(look) = m;
	}
}

/* smaps has each mapping's first line as maps does, then lines NAME: VALUE. */
void parse_flags(struct explain_look *look, char *text)
{
	struct explain_mapping *m = look->mappings;
	struct explain_mapping *end = m + look->mapping_count;
	bool known = false;
	char *line;

	while ((line = strsep(&text, "\n"))) {
		uint64_t start, stop, kilobytes;

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &start,
			   &stop) == 2) {
			while (m < end && m->start < start)
				m++;
			known = m < end && m->start == start && m->end == stop;
		}
		if (!known)
			continue;
		if (find_number(line, "KernelPageSize:", 10, &kilobytes))
			m->page_size = kilobytes << 10;
		else if (!strncmp(line, "VmFlags:", 8))
			copy_word(m->flags, sizeof(m->flags), line + 8);
	}
}

void read_mappings(struct explain_look *look)
{
	char path[64];
	char *text;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/maps", look->pid);
	fd = open_told(look, path, O_RDONLY, right_to_inspect);
	look->maps_denied = fd < 0 && errno != ESRCH && errno != ENOENT;
	if (fd < 0)
		return;
	look->maps_known = query_mappings(look, fd);
	close(fd);
	if (!look->maps_known) {
		text = read_text(look, path, right_to_inspect);
		if (text)
			parse_mappings(look, text);
		free(text);
	}
	/* A process that has ended has none; each other one has. */
	look->maps_known = look->mapping_count;
	snprintf(path, sizeof(path), "/proc/%d/smaps", look->pid);
	text = read_text(look, path, right_to_inspect);
	look->flags_known = text;
	if (text)
		parse_flags(look, text);
	free(text);
}

const struct explain_mapping *find_mapping(const struct explain_look *look,
					   uint64_t hva)
{
	size_t i;

	for (i = 0; i < look->mapping_count; i++)
		if (hva >= look->mappings[i].start &&
		    hva < look->mappings[i].end)
			return &look->mappings[i];
	return NULL;
}

bool has_flag(const struct explain_mapping *mapping, const char *flag)
{
	const char *at = mapping->flags;

	while ((at = strstr(at, flag))) {
		if (at != mapping->flags && at[-1] == ' ' &&
		    (!at[2] || at[2] == ' '))
			return true;
		at += 2;
	}
	return false;
}

static int open_pagemap(struct explain_look *look)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/pagemap", look->pid);
	return open_told(look, path, O_RDONLY, right_to_inspect);
}

struct explain_page read_page(struct explain_look *look, uint64_t hva)
{
	struct explain_page page = { 0 };
	int fd = open_pagemap(look);
	uint64_t entry;

	if (fd < 0)
		return page;
	page.known = pread(fd, &entry, sizeof(entry),
			   hva / look->base * sizeof(entry)) == sizeof(entry);
	close(fd);
	if (!page.known)
		return page;
	page.present = entry >> 63 & 1;
	page.swapped = entry >> 62 & 1;
	page.guard = entry >> 58 & 1;
	page.uffd_protected = entry >> 57 & 1;
	page.type_known = page.swapped && look->admin;
	page.type = page.type_known ? entry & 0x1f : 0;
	page.offset = page.type_known ?
		(entry & ((UINT64_C(1) << 55) - 1)) >> 5 : 0;
	return page;
}

bool find_page(struct explain_look *look, uint64_t start, uint64_t end,
	       bool protected, uint64_t *found)
{
	struct scan_region region = { 0 };
	uint64_t not = protected ? SCAN_WRITTEN : SCAN_PRESENT | SCAN_SWAPPED;
	struct scan_query query = {
		.size = sizeof(query), .start = start, .end = end,
		.regions = (uintptr_t)&region, .region_count = 1,
		.max_pages = 1, .inverted = not,
		.mask = protected ? not | SCAN_PRESENT : not,
		.wanted = SCAN_PRESENT,
	};
	int fd = open_pagemap(look), count;

	if (fd < 0)
		return false;
	count = ioctl(fd, PAGE_SCAN, &query);
	close(fd);
	*found = count > 0 ? region.start : NO_ADDRESS;
	return count >= 0;
}

/* Of one range; false as below. */
static bool count_range(int fd, uint64_t start, uint64_t end,
			uint64_t *progress)
{
	struct scan_region region[256];

	while (start < end) {
		struct scan_query query = {
			.size = sizeof(query), .start = start, .end = end,
			.regions = (uintptr_t)region, .region_count = 256,
			.mask = SCAN_PRESENT,
			.wanted = SCAN_PRESENT | SCAN_WRITTEN,
		};
		int i, count = ioctl(fd, PAGE_SCAN, &query);

		if (count < 0 || query.walk_end <= start)
			return false;
		for (i = 0; i < count; i++)
			*progress += (region[i].end - region[i].start) *
				     (region[i].categories & SCAN_WRITTEN ?
				      2 : 1);
		start = query.walk_end;
	}
	return true;
}

bool is_registered(const struct explain_mapping *mapping)
{
	return has_flag(mapping, "um") || has_flag(mapping, "uw") ||
	       has_flag(mapping, "ui");
}

bool measure_progress(struct explain_look *look, uint64_t *progress)
{
	int fd = open_pagemap(look);
	bool known = fd >= 0 && look->flags_known;
	size_t i;

	*progress = 0;
	for (i = 0; i < look->mapping_count && known; i++)
		if (is_registered(&look->mappings[i]))
			known = count_range(fd, look->mappings[i].start,
					    look->mappings[i].end, progress);
	if (fd >= 0)
		close(fd);
	return known;
}
