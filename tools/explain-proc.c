/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* kvmfault explain: reads small files of /proc and /sys. In: a path, and the
 * right that it takes. Out: the text; what was denied is in the look, once for
 * each path. A file's text is never trusted to have what it should. */

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "explain.h"
#include "tool.h"

const char right_to_inspect[] =
	"the same user as the process, or CAP_SYS_PTRACE";

static void end_without_memory(void)
{
	complain("cannot go on: no memory");
	exit(EXIT_FAILED);
}

void *grow_list(void *list, size_t count, size_t item)
{
	if (!(count & (count - 1))) {
		list = reallocarray(list, count ? 2 * count : 1, item);
		if (!list)
			end_without_memory();
	}
	memset((char *)list + count * item, 0, item);
	return list;
}

void note_denied(struct explain_look *look, const char *what, int error,
		 const char *right)
{
	struct explain_denied *denied;
	size_t i;

	for (i = 0; i < look->denied_count; i++)
		if (!strcmp(look->denied[i].what, what))
			return;
	look->denied = grow_list(look->denied, look->denied_count,
				 sizeof(*look->denied));
	denied = &look->denied[look->denied_count];
	denied->what = strdup(what);
	if (!denied->what)
		end_without_memory();
	denied->error = error;
	denied->right = right;
	look->denied_count++;
}

int open_told(struct explain_look *look, const char *path, int flags,
	      const char *right)
{
	int fd = open(path, flags | O_CLOEXEC);

	if (fd < 0 && right && errno != ENOENT && errno != ESRCH)
		note_denied(look, path, errno, right);
	return fd;
}

char *read_text(struct explain_look *look, const char *path, const char *right)
{
	int fd = open_told(look, path, O_RDONLY, right);
	size_t length = 0, room = 4096;
	char *text = fd < 0 ? NULL : malloc(room);
	ssize_t n;

	if (fd < 0)
		return NULL;
	while (text && (n = read(fd, text + length, room - length - 1)) > 0) {
		length += n;
		if (room - length <= 1024)
			text = realloc(text, room *= 2);
	}
	if (!text)
		end_without_memory();
	if (n < 0 && right && errno != ESRCH)
		note_denied(look, path, errno, right);
	close(fd);
	if (n < 0) {
		free(text);
		return NULL;
	}
	text[length] = '\0';
	return text;
}

bool find_number(const char *text, const char *name, int base,
		 uint64_t *number)
{
	const char *line, *next;
	char *end;

	for (line = text; line; line = next) {
		next = strchr(line, '\n');
		if (next)
			next++;
		if (strncmp(line, name, strlen(name)))
			continue;
		line += strlen(name);
		line += strspn(line, " \t");
		if (!isxdigit((unsigned char)*line))
			return false;
		errno = 0;
		*number = strtoull(line, &end, base);
		return end != line && !errno;
	}
	return false;
}

bool read_number(struct explain_look *look, const char *path, uint64_t *number)
{
	char *text = read_text(look, path, NULL);
	bool found = text && find_number(text, "", 10, number);

	free(text);
	return found;
}

/* Up to the line's end; what does not fit is cut. */
bool copy_word(char *to, size_t size, const char *from)
{
	size_t i, length = from ? strcspn(from, "\n") : 0;

	if (length >= size)
		length = size - 1;
	/* A process chooses its names, and a terminal would obey them. */
	for (i = 0; i < length; i++)
		to[i] = (unsigned char)from[i] < ' ' || from[i] == 0x7f ?
			'?' : from[i];
	to[length] = '\0';
	return length > 0;
}
