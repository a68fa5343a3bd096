/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What this kernel does where the library relies on it. In: the keys of rows,
 * or none for all. Out: one line `key: answer` for each row and variant.
 * Invariant: each is asked in a process of its own and has a line, whatever
 * became of that process. behaviour.py knows what should come.
 */

#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "behaviour.h"

#define PATIENCE_MS 60000
#define RAMFS_MAGIC 0x858458f6
#define TMPFS_MAGIC 0x01021994

static int answer_fd;

void answer(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vdprintf(answer_fd, format, args);
	va_end(args);
	_exit(0);
}

int must(long ret, const char *what)
{
	if (ret < 0)
		answer("cannot ask: %s: %s", what, strerrorname_np(errno));
	return (int)ret;
}

void *must_map(void *address, const char *what)
{
	must(address == (void *)-1 ? -1 : 0, what);
	return address;
}

int may(long ret)
{
	if (ret < 0)
		answer("unsupported: %s", strerrorname_np(errno));
	return (int)ret;
}

/* A machine that was booted into its initramfs ends with this test. */
bool throwaway(void)
{
	struct statfs root;

	return !statfs("/", &root) &&
	       (root.f_type == RAMFS_MAGIC || root.f_type == TMPFS_MAGIC);
}

/* What the child wrote until it closed its end; false: it never did. */
static bool listen_to(int fd, char *text, size_t size)
{
	struct pollfd poll_fd = { .fd = fd, .events = POLLIN };
	size_t length = 0;
	ssize_t n = 1;

	while (n > 0 && length < size - 1) {
		if (poll(&poll_fd, 1, PATIENCE_MS) <= 0)
			return false;
		n = read(fd, text + length, size - 1 - length);
		if (n > 0)
			length += (size_t)n;
	}
	text[length] = '\0';
	return true;
}

static void ask_child(const struct row *row, int fd)
{
	answer_fd = fd;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	row->ask(row->arg);
	answer("no answer");
}

static void ask(const struct row *row, const char *variant)
{
	char text[512] = "";
	int fds[2], status = 0;
	bool hangs;
	pid_t child;

	fflush(stdout);
	if (pipe(fds) || (child = fork()) < 0) {
		perror("behaviour");
		exit(1);
	}
	if (!child) {
		close(fds[0]);
		ask_child(row, fds[1]);
	}
	close(fds[1]);
	hangs = !listen_to(fds[0], text, sizeof(text));
	close(fds[0]);
	if (hangs)
		kill(child, SIGKILL);
	waitpid(child, &status, 0);
	if (hangs)
		strcpy(text, "hangs");
	else if (WIFSIGNALED(status))
		sprintf(text, "killed by signal %d", WTERMSIG(status));
	printf("%s%s: %s\n", row->key, variant, text);
}

/* A row in all of its variants. */
static void ask_row(const struct row *row)
{
	unsigned int level, irqchip;
	char variant[64];

	for (level = 0; level <= !!(row->variants & LEVELS); level++) {
		for (irqchip = 0; irqchip <= !!(row->variants & IRQCHIP);
		     irqchip++) {
			bed.supervisor = level;
			bed.irqchip = irqchip;
			variant[0] = '\0';
			if (row->variants & LEVELS)
				strcat(variant, level ? ", supervisor" :
							", user");
			if (row->variants & IRQCHIP)
				strcat(variant, irqchip ? ", irqchip" :
							  ", no irqchip");
			ask(row, variant);
		}
	}
}

static bool chosen(const struct row *row, char **keys)
{
	if (!*keys)
		return true;
	for (; *keys; keys++)
		if (!strcmp(row->key, *keys))
			return true;
	return false;
}

int main(int argc, char **argv)
{
	static const struct row *const tables[] = {
		memory_rows,
		table_rows,
#ifdef __x86_64__
		x86_rows,
#endif
		guest_memfd_rows,
		userfault_rows,
		uffd_rows,
		edge_rows,
	};
	const struct row *row;
	struct utsname name;
	size_t i;

	(void)argc;
	uname(&name);
	printf("kernel: %s\n", name.release);
	for (i = 0; i < sizeof(tables) / sizeof(tables[0]); i++)
		for (row = tables[i]; row->key; row++)
			if (chosen(row, argv + 1))
				ask_row(row);
	return 0;
}
