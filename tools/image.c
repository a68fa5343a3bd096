/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The image that RAM is made of. The host's side of the proof stands here: it
 * computes the checksums from the file, by other code than the guest's.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"
#include "machine.h"
#include "tool.h"

#define PAGE 4096
#define WORDS (PAGE / sizeof(uint64_t))

/* splitmix64: no two pages begin alike, and no word is zero. */
static uint64_t word_of(uint64_t n)
{
	n += 0x9e3779b97f4a7c15ULL;
	n = (n ^ (n >> 30)) * 0xbf58476d1ce4e5b9ULL;
	n = (n ^ (n >> 27)) * 0x94d049bb133111ebULL;
	return (n ^ (n >> 31)) | 1;
}

static int write_all(int fd, const void *data, size_t length)
{
	const char *at = data;

	while (length) {
		ssize_t n = write(fd, at, length);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			at += n;
			length -= (size_t)n;
		}
	}
	return 0;
}

static int make(struct image *image)
{
	uint64_t words[WORDS], page;
	size_t i;
	int err = 0;

	image->fd = memfd_create("kvmfault-image", MFD_CLOEXEC);
	if (image->fd < 0)
		return -errno;
	for (page = 0; page < image->pages && !err; page++) {
		words[0] = page + 1;	/* all pages differ, for certain */
		for (i = 1; i < WORDS; i++)
			words[i] = word_of(page * WORDS + i);
		err = write_all(image->fd, words, sizeof(words));
	}
	return err;
}

/* Pages are read in any order: only these can. 0 or -errno. */
static int measure(int fd, uint64_t *length)
{
	struct stat st;
	off_t end;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (S_ISDIR(st.st_mode))
		return -EISDIR;
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return -ESPIPE;
	end = lseek(fd, 0, SEEK_END);
	if (end < 0)
		return -errno;
	*length = (uint64_t)end;
	return 0;
}

static int open_file(const char *path, uint64_t *length)
{
	/* Not waiting for who might write to it. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	int err = fd < 0 ? -errno : measure(fd, length);

	if (!err)
		return fd;
	complain("cannot use %s as an image: %s", path, err == -ESPIPE ?
		 "neither a regular file nor a block device" : strerror(-err));
	if (fd >= 0)
		close(fd);
	return err;
}

int image_size(const char *path, uint64_t *bytes)
{
	int fd = open_file(path, bytes);

	if (fd < 0)
		return fd;
	close(fd);
	return 0;
}

int image_open(struct image *image, const char *path, uint64_t bytes)
{
	int err = 0;

	image->pages = bytes / PAGE;
	image->length = bytes;
	image->reads = calloc(image->pages, 1);
	if (!image->reads)
		err = -ENOMEM;
	else if (path)
		image->fd = open_file(path, &image->length);
	else
		err = make(image);
	if (err)
		complain_errno(err, "make an image");
	return err ? err : image->fd < 0 ? image->fd : 0;
}

void image_close(struct image *image)
{
	if (image->fd > 0)
		close(image->fd);
	free((void *)(uintptr_t)image->reads);
}

static int read_all(int fd, uint64_t offset, void *buffer, size_t length)
{
	char *at = buffer;

	while (length) {
		ssize_t n = pread(fd, at, length, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			return -ENODATA;
		at += n;
		offset += (uint64_t)n;
		length -= (size_t)n;
	}
	return 0;
}

int image_read(void *data, uint64_t offset, void *buffer, size_t length)
{
	struct image *image = data;
	uint64_t page;

	for (page = offset / PAGE; page <= (offset + length - 1) / PAGE; page++)
		if (page < image->pages &&
		    atomic_load(&image->reads[page]) < UINT8_MAX)
			atomic_fetch_add(&image->reads[page], 1);
	return read_all(image->fd, offset, buffer, length);
}

uint64_t image_misread(const struct image *image)
{
	uint64_t page, wrong = 0;

	for (page = 0; page < image->pages; page++)
		wrong += atomic_load(&image->reads[page]) != 1;
	return wrong;
}

static uint64_t page_sum(const uint64_t *words)
{
	uint64_t sum = MACHINE_SCAN_SEED;
	const uint64_t *end = words + WORDS;

	for (; words < end; words++)
		sum = MACHINE_SCAN_MUL * (*words ^ (sum << 5 | sum >> 59));
	return sum;
}

int64_t image_compare(const struct image *image, const void *ram,
		      uint64_t first, uint64_t count, uint64_t base,
		      uint64_t *checksum)
{
	uint64_t words[WORDS], page, sum;
	int64_t wrong = 0;
	int err;

	for (page = first; page < first + count; page++) {
		err = read_all(image->fd, page * PAGE, words, sizeof(words));
		if (err)
			return err;
		sum = page_sum(words);
		*checksum += sum ^ (page - base) * MACHINE_SCAN_MUL;
		words[WORDS - 1] = sum;		/* the guest's mark */
		wrong += !!memcmp(words, (const char *)ram + page * PAGE,
				  PAGE);
	}
	return wrong;
}
