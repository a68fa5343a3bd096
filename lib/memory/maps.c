/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the flow: what is mapped where the VMM says that a memory is. In: a
 * memory, and an address of this process. Out: the kernel says the same in
 * /proc/self/maps, or a refusal. A memory whose file is not what the guest sees
 * would be discarded in one place and read in another. Where that file can't be
 * opened the VMM is believed: what is wrong in its code is wrong everywhere.
 */

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "memory.h"

struct maps {
	int fd;
	off_t read;		/* of the file, */
	size_t at, end;		/* and of that what is in */
	char buffer[1024];
};

/* One of its lines: the range, and of what. */
struct line {
	uint64_t start, end, offset, inode;
	char shared;		/* 's', or 'p' */
};

/* The text of the next line, as far as there is room for it. */
static bool maps_read_text(struct maps *maps, char *text, size_t size)
{
	size_t length = 0;
	char c;

	do {
		if (maps->at == maps->end) {
			ssize_t n = kvmfault__sys_pread(maps->fd, maps->buffer,
							sizeof(maps->buffer),
							maps->read);

			if (n <= 0)
				return false;
			maps->read += n;
			maps->at = 0;
			maps->end = (size_t)n;
		}
		c = maps->buffer[maps->at++];
		if (length < size - 1)
			text[length++] = c;
	} while (c != '\n');
	text[length] = '\0';
	return true;
}

/* False: there are no more, or they are not what they were since 2.6. */
static bool maps_read_line(struct maps *maps, struct line *line)
{
	unsigned long long start, end, offset, inode;
	char text[128];

	if (!maps_read_text(maps, text, sizeof(text)) ||
	    sscanf(text, "%llx-%llx %*3c%c %llx %*x:%*x %llu", &start, &end,
		   &line->shared, &offset, &inode) != 5)
		return false;
	line->start = start;
	line->end = end;
	line->offset = offset;
	line->inode = inode;
	return true;
}

/* What of it is not as it was said, or NULL. Only of files that userfaultfd
 * takes is the inode's number here the one that fstat() tells. */
static const char *maps_find_difference(const struct kvmfault_memory *memory,
					uint64_t host, const struct line *line,
					uint64_t inode)
{
	if (memory->fd <= 0)
		return line->shared == 'p' && !line->inode ? NULL :
			"is a file or shared, and no fd means private anonymous memory: give its descriptor";
	if (line->shared != 's')
		return "is private: what is written there does not come into the file, and is not discarded with it: map it MAP_SHARED";
	if (kvmfault__tracked(memory) && line->inode != inode)
		return "is another file";
	if (line->offset - line->start != memory->fd_offset - host)
		return "is another part of the file";
	return NULL;
}

int kvmfault__maps_check(const struct kvmfault_memory *memory, uint64_t host)
{
	struct maps maps = { .fd = kvmfault__sys_open("/proc/self/maps",
						      O_RDONLY) };
	const char *wrong = NULL;
	struct stat stat = { 0 };
	struct line line;
	int err = 0;

	if (maps.fd < 0)
		return 0;
	if (memory->fd > 0)
		err = kvmfault__sys_fstat(memory->fd, &stat);
	while (!err && !wrong && maps_read_line(&maps, &line))
		if (line.start < host + memory->length && line.end > host)
			wrong = maps_find_difference(memory, host, &line, stat.st_ino);
	kvmfault__sys_close(maps.fd);
	if (wrong)
		return kvmfault__refuse(memory->vm, -EINVAL,
			"%s: what is mapped at %#llx %s",
			atomic_load(&memory->mappings) ?
			"kvmfault_mapping_options.host" :
			"kvmfault_memory_options.fd, fd_offset",
			(unsigned long long)host, wrong);
	return err;
}
