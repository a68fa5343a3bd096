/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A fuzz target as a plain test: libFuzzer's main without the fuzzer. In: a
 * directory. Out: each file of it was an input of the target, once. A directory
 * that is missing or has none is a failure.
 */

#include <dirent.h>
#include <errno.h>
#include <sys/stat.h>

#include "fuzz.h"

#define INPUT_MAX 65536

static void run(const char *path)
{
	static uint8_t buffer[INPUT_MAX];
	FILE *file = fopen(path, "rb");
	uint8_t *data;
	size_t size;

	if (!file) {
		fprintf(stderr, "%s: %s\n", path, strerror(errno));
		exit(EXIT_FAILURE);
	}
	size = fread(buffer, 1, sizeof(buffer), file);
	fclose(file);
	data = exactly(buffer, size);
	LLVMFuzzerTestOneInput(data, size);
	free(data);
}

int main(int argc, char **argv)
{
	const char *directory = argc == 2 ? argv[1] : "";
	DIR *dir = opendir(directory);
	struct dirent *entry;
	unsigned int n = 0;

	while (dir && (entry = readdir(dir))) {
		char path[4096];
		struct stat info;

		snprintf(path, sizeof(path), "%s/%s", directory, entry->d_name);
		if (stat(path, &info) || !S_ISREG(info.st_mode))
			continue;
		/* Where it stops, this is the input that did it. */
		printf("%s\n", entry->d_name);
		fflush(stdout);
		run(path);
		n++;
	}
	if (dir)
		closedir(dir);
	printf("%u inputs in %s\n", n, directory);
	return n ? EXIT_SUCCESS : EXIT_FAILURE;
}
