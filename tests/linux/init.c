/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Process 1 of the guest. In: /words, which came with the initrd. Out: on the
 * console whether these words, and those that it and its children have written
 * to memory of their own, were what they had to be when they were read. Then it
 * resets the machine.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"

#define BLOCK (8UL << 20)		/* of each process */
#define CHILDREN 3

/* initrd.py writes those of seed 0. */
static uint64_t word(uint64_t seed, uint64_t index)
{
	return ((seed << 32) + index + 1) * 0x9e3779b97f4a7c15ULL;
}

static void fill(uint64_t *words, uint64_t seed)
{
	uint64_t i;

	for (i = 0; i < BLOCK / sizeof(*words); i++)
		words[i] = word(seed, i);
}

static bool same(const uint64_t *words, size_t length, uint64_t seed)
{
	uint64_t i;

	for (i = 0; i < length / sizeof(*words); i++)
		if (words[i] != word(seed, i))
			return false;
	return true;
}

static bool initrd_came(void)
{
	int fd = open("/words", O_RDONLY | O_CLOEXEC);
	struct stat stat;
	uint64_t *words;

	if (fd < 0 || fstat(fd, &stat) || !stat.st_size)
		return false;
	words = mmap(NULL, (size_t)stat.st_size, PROT_READ, MAP_PRIVATE, fd,
		     0);
	return words != MAP_FAILED && same(words, (size_t)stat.st_size, 0);
}

/* Each child has its parent's words until it writes its own. */
static bool memory_holds(void)
{
	uint64_t seed, *words = mmap(NULL, BLOCK, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	bool good = words != MAP_FAILED;
	int status;

	if (!good)
		return false;
	fill(words, CHILDREN + 1);
	for (seed = 1; seed <= CHILDREN; seed++) {
		if (fork())
			continue;
		good = same(words, BLOCK, CHILDREN + 1);
		fill(words, seed);
		_exit(!good || !same(words, BLOCK, seed));
	}
	for (seed = 1; seed <= CHILDREN; seed++)
		good &= wait(&status) > 0 && !status;
	return good && same(words, BLOCK, CHILDREN + 1);
}

int main(void)
{
	/* Printed whatever the log level. */
	const char *verdict = "<0>" INIT_PASSED "\n";
	int log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);

	if (!initrd_came())
		verdict = "<0>init: the initrd's words are wrong\n";
	else if (!memory_holds())
		verdict = "<0>init: words in memory are wrong\n";
	if (write(log, verdict, strlen(verdict)) > 0)
		reboot(RB_AUTOBOOT);
	return errno;			/* the kernel panics */
}
