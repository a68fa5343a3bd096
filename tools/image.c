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
#define AT_ONCE 256		/* pages that are compared */

/* splitmix64: no two pages begin alike, and no word is zero. */
static uint64_t word_of(uint64_t n)
{
	n += 0x9e3779b97f4a7c15ULL;
	n = (n ^ (n >> 30)) * 0xbf58476d1ce4e5b9ULL;
	n = (n ^ (n >> 27)) * 0x94d049bb133111ebULL;
	return (n ^ (n >> 31)) | 1;
}

static int write_all(int fd, uint64_t offset, const void *data, size_t length)
{
	const char *at = data;

	while (length) {
		ssize_t n = pwrite(fd, at, length, (off_t)offset);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			at += n;
			offset += (uint64_t)n;
			length -= (size_t)n;
		}
	}
	return 0;
}

static int make_page(const struct image *image, uint64_t page)
{
	uint64_t words[WORDS];
	size_t i;

	words[0] = page + 1;	/* all pages differ, for certain */
	for (i = 1; i < WORDS; i++)
		words[i] = word_of(page * WORDS + i);
	return write_all(image->fd, page * PAGE, words, sizeof(words));
}

/* Of each hundred pages the last ones are holes: in a guest's memory, too, what
 * it never used comes in runs. */
static int make(struct image *image, unsigned int holes)
{
	uint64_t page;
	int err = 0;

	image->fd = memfd_create("kvmfault-image", MFD_CLOEXEC);
	if (image->fd < 0 || ftruncate(image->fd, (off_t)image->length) < 0)
		return -errno;
	for (page = 0; page < image->pages && !err; page++)
		if (page % 100 < 100 - holes)
			err = make_page(image, page);
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
	return end ? 0 : -ENODATA;
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

static int remote_size(const struct image_place *place, uint64_t *bytes)
{
	struct kvmfault_source source = { .size = sizeof(source) };
	int err = image_connect(place, &source);

	if (!err)
		*bytes = source.length;
	kvmfault_source_free(&source);
	return err;
}

int image_size(const struct image_place *place, uint64_t *bytes)
{
	int fd;

	if (place->uri)
		return remote_size(place, bytes);
	if (!place->path)
		return 0;
	fd = open_file(place->path, bytes);
	if (fd < 0)
		return fd;
	close(fd);
	return 0;
}

/* Of an image that is a file: when it was last changed, which a copy keeps if
 * it is told to. One that is made up, or elsewhere, is like any other of its
 * length. */
static int identify(struct image *image)
{
	struct stat st;

	if (fstat(image->fd, &st) < 0)
		return -errno;
	memcpy(image->identity, &st.st_mtim, sizeof(st.st_mtim));
	return 0;
}

static int open_local(struct image *image, const char *path, unsigned int holes)
{
	int err = 0;

	if (path)
		image->fd = open_file(path, &image->length);
	else
		err = make(image, holes);
	if (!err && image->fd < 0)
		return image->fd;	/* that is told */
	if (!err)
		err = kvmfault_source_file(image->fd, &image->source);
	if (!err && path)
		err = identify(image);
	if (err)
		complain_errno(err, "make an image");
	return err;
}

static int open_remote(struct image *image, const struct image_place *place)
{
	int err;

	image->fd = -1;
	err = image_connect(place, &image->source);
	if (!err)
		image->length = image->source.length;
	return err;
}

int image_open(struct image *image, const struct image_place *place,
	       uint64_t bytes, unsigned int holes)
{
	image->pages = bytes / PAGE;
	image->length = bytes;
	image->source.size = sizeof(image->source);
	image->reads = calloc(image->pages, 1);
	if (!image->reads) {
		complain_errno(-ENOMEM, "make an image");
		return -ENOMEM;
	}
	return place->uri ? open_remote(image, place) :
			    open_local(image, place->path, holes);
}

void image_close(struct image *image)
{
	kvmfault_source_free(&image->source);
	if (image->fd > 0)
		close(image->fd);
	free((void *)(uintptr_t)image->reads);
}

/* ---- its working sets ---- */

int image_new_set(const struct image *image, struct kvmfault_working_set **set)
{
	struct kvmfault_working_set_options options = {
		.size = sizeof(options),
		.image_length = image->length,
	};
	int err;

	memcpy(options.identity, image->identity, sizeof(options.identity));
	err = kvmfault_working_set_new(&options, set);
	if (err)
		complain_errno(err, "make a working set");
	return err;
}

int image_match_set(const struct image *image,
		    const struct kvmfault_working_set *set, const char *path)
{
	struct kvmfault_working_set_info info = { .size = sizeof(info) };

	kvmfault_working_set_describe(set, &info);
	if (info.image_length == image->length &&
	    !memcmp(info.identity, image->identity, sizeof(info.identity)))
		return 0;
	complain("%s is the working set of another image, or the image has changed since: make a new one with --record",
		 path);
	return -EXDEV;
}

/* ---- the guest's source ---- */

static void count(struct image *image, uint64_t offset, size_t length)
{
	uint64_t page;

	for (page = offset / PAGE; page <= (offset + length - 1) / PAGE; page++)
		if (page < image->pages &&
		    atomic_load(&image->reads[page]) < UINT8_MAX)
			atomic_fetch_add(&image->reads[page], 1);
}

int image_read(void *data, uint64_t offset, void *buffer, size_t length)
{
	struct image *image = data;

	count(image, offset, length);
	return image->source.read(image->source.data, offset, buffer, length);
}

static int begin_read(void *data, struct kvmfault_fetch *fetch, uint64_t offset,
		      void *buffer, size_t length)
{
	struct image *image = data;
	int err = image->source.submit(image->source.data, fetch, offset,
				       buffer, length);

	if (!err)
		count(image, offset, length);
	return err;
}

static void cancel_read(void *data, struct kvmfault_fetch *fetch)
{
	struct image *image = data;

	image->source.cancel(image->source.data, fetch);
}

static int ask(void *data, uint64_t offset, uint64_t *length)
{
	const struct image *image = data;

	return image->source.extent(image->source.data, offset, length);
}

void image_source(struct image *image, struct kvmfault_source *source)
{
	*source = (struct kvmfault_source){
		.size = sizeof(*source),
		.name = "image",
		.read = image_read,
		.data = image,
		.length = image->length,
		.submit = image->source.submit ? begin_read : NULL,
		.cancel = image->source.cancel ? cancel_read : NULL,
		.extent = image->source.extent ? ask : NULL,
	};
}

/* ---- the proof ---- */

static bool is_hole(const struct image *image, uint64_t page)
{
	uint64_t length = PAGE;

	return image->source.extent &&
	       image->source.extent(image->source.data, page * PAGE, &length) !=
		       KVMFAULT_EXTENT_DATA && length == PAGE;
}

uint64_t image_misread(const struct image *image)
{
	uint64_t page, wrong = 0;

	for (page = 0; page < image->pages; page++) {
		unsigned int reads = atomic_load(&image->reads[page]);

		wrong += reads > 1 || (!reads && !is_hole(image, page));
	}
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

/* The pages at words, of which the first one is number page. */
static uint64_t compare(uint64_t *words, uint64_t page, uint64_t count,
			const void *ram, uint64_t base, uint64_t *checksum)
{
	uint64_t end = page + count, wrong = 0;

	for (; page < end; page++, words += WORDS) {
		uint64_t sum = page_sum(words);

		*checksum += sum ^ (page - base) * MACHINE_SCAN_MUL;
		words[WORDS - 1] = sum;		/* the guest's mark */
		wrong += !!memcmp(words, (const char *)ram + page * PAGE,
				  PAGE);
	}
	return wrong;
}

int64_t image_compare(const struct image *image, const void *ram,
		      uint64_t first, uint64_t count, uint64_t base,
		      uint64_t *checksum)
{
	static uint64_t words[AT_ONCE * WORDS];
	uint64_t n, end = first + count, wrong = 0;
	int err;

	for (; first < end; first += n) {
		n = end - first < AT_ONCE ? end - first : AT_ONCE;
		err = image->source.read(image->source.data, first * PAGE,
					 words, n * PAGE);
		if (err)
			return err;
		wrong += compare(words, first, n, ram, base, checksum);
	}
	return (int64_t)wrong;
}
