/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* The image that RAM is made of, and the proof that the guest saw it. */

#ifndef IMAGE_H
#define IMAGE_H

#include <kvmfault.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct image {
	int fd;			/* -1: it is elsewhere */
	struct kvmfault_source source;	/* knows where it has holes */
	uint64_t pages;		/* of the RAM that is made of it */
	uint64_t length;	/* of the image: shorter, or longer */
	uint8_t identity[KVMFAULT_IDENTITY_LENGTH];	/* for working sets */
	_Atomic uint8_t *reads;	/* how often each page was read, up to 255 */
};

/* Where an image is: a file, or a server; or one is made up. */
struct image_place {
	const char *path, *uri;
	uint32_t fetches;	/* of a server, at once; 0: the default */
};

/* Open it; or make an image whose pages all differ and none of which is zero,
 * but for so many per cent that are holes. 0 or -errno, with a message
 * printed. */
int image_open(struct image *image, const struct image_place *place,
	       uint64_t bytes, unsigned int holes);
/* How long it is; as it was, of one that is made up. 0 or -errno, with a message
 * printed. */
int image_size(const struct image_place *place, uint64_t *bytes);
void image_close(struct image *image);

/* A source that reads the image and counts. It is the image's, which has to be
 * closed after the memory is freed. */
void image_source(struct image *image, struct kvmfault_source *source);
/* Its read. data: a struct image. */
int image_read(void *data, uint64_t offset, void *buffer, size_t length);

/* source-nbd.c, or in its place source-none.c: the source that the place's URI
 * names. 0 or -errno, with a message printed. */
int image_connect(const struct image_place *place,
		  struct kvmfault_source *source);

/* An empty working set of this image. 0 or -errno, with a message printed. */
int image_new_set(const struct image *image, struct kvmfault_working_set **set);
/* Whether a set that was loaded from path is this image's. 0 or -EXDEV, with a
 * message printed. */
int image_match_set(const struct image *image,
		    const struct kvmfault_working_set *set, const char *path);

/* Pages that were not read exactly once. A hole need not be read. */
uint64_t image_misread(const struct image *image);

/*
 * What the guest must have computed, from the file. Adds the checksums of
 * count pages from first on to *checksum, and compares each with what the RAM
 * at ram (the whole image's) holds now, its mark included. Returns how many
 * pages differ, or -errno.
 */
int64_t image_compare(const struct image *image, const void *ram,
		      uint64_t first, uint64_t count, uint64_t base,
		      uint64_t *checksum);

#endif
