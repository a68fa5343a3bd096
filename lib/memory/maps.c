/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: is a memory mapped where the VMM says so? In: a
 * memory, and an address of this process. Out: 0 if /proc/self/maps says the
 * same, or a refusal. If the guest saw another file than the memory's, pages
 * would be discarded in one place and read in another. If /proc/self/maps can't
 * be opened, the library believes the VMM: a mistake in its code shows wherever
 * the file can be opened.
 */

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

#include "memory.h"

struct maps {
	int fd;
	off_t read;		/* bytes of the file until now */
	size_t at, end;		/* of the buffer: not yet used */
	char buffer[1024];
};

/* One line of the file: a range, and the part of a file that is mapped
 * there. */
struct line {
	uint64_t start, end, offset, inode;
	char shared;		/* 's', or 'p' */
};

/* Read the next line's text. If there is no room for all of it, the end is
 * lost. */
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

/* Returns false if there are no more lines, or if a line has not the form that
 * lines have had since Linux 2.6. */
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

/* Returns how the mapping differs from the memory, or NULL. The inode's number
 * is the one of fstat() for the files that userfaultfd takes, so only for
 * tracked memory. */
static const char *maps_find_difference(const struct kvmfault_memory *memory,
					uint64_t host, const struct line *line,
					uint64_t inode)
{
	if (memory->fd <= 0)
		return line->shared == 'p' && !line->inode ? NULL :
			"is of a file or is shared, but a memory without fd is private and anonymous: set fd to the file's descriptor";
	if (line->shared != 's')
		return "is private, so writes there do not reach the file and its discards do not take them: map the file MAP_SHARED";
	if (kvmfault__tracked(memory) && line->inode != inode)
		return "is of another file than the memory's fd: map that file there";
	if (line->offset - line->start != memory->fd_offset - host)
		return "is of another part of the file than the memory's fd_offset says: map that part there";
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
			wrong = maps_find_difference(memory, host, &line,
						     stat.st_ino);
	kvmfault__sys_close(maps.fd);
	if (wrong)
		return kvmfault__refuse(memory->vm, -EINVAL,
			"%s: the mapping at %#llx %s",
			atomic_load(&memory->mappings) ?
			"kvmfault_mapping_options.host" :
			"kvmfault_memory_options.fd, fd_offset",
			(unsigned long long)host, wrong);
	return err;
}
