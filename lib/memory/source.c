/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Sources: where absent pages come from. In: an offset and a buffer. Out: all
 * of the bytes, or an error. If a source has only some of the bytes, that is an
 * error: no page is made of half an answer.
 */

#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memory.h"

static int source_read_file(void *data, uint64_t offset, void *buffer,
			    size_t length)
{
	int fd = (int)(intptr_t)data;
	size_t done = 0;

	while (done < length) {
		ssize_t n = kvmfault__sys_pread(fd, (char *)buffer + done,
						length - done,
						(off_t)(offset + done));

		if (n == -EINTR)
			continue;
		if (n < 0)
			return (int)n;
		if (!n)
			return -ENODATA;	/* the file has shrunk */
		done += (size_t)n;
	}
	return 0;
}

/*
 * No data up to the file's end is a hole as far as the file goes: past its end,
 * there is nothing that could be one. Data is told no further than it goes, and
 * not because of an error that may pass: in a layer it hides what is below.
 */
static int source_ask_file(void *data, uint64_t offset, uint64_t *length)
{
	int fd = (int)(intptr_t)data, err, kind = KVMFAULT_EXTENT_HOLE;
	off_t from = (off_t)offset, to;
	struct stat stat;

	to = kvmfault__sys_lseek(fd, from, SEEK_DATA);
	if (to == -ENXIO) {
		err = kvmfault__sys_fstat(fd, &stat);
		if (err)
			return err;
		if (stat.st_size <= from)
			return -ENODATA;
		to = stat.st_size;
	} else if (to == from) {
		kind = KVMFAULT_EXTENT_DATA;
		to = kvmfault__sys_lseek(fd, from, SEEK_HOLE);
	}
	/* A block device, or a file system that keeps no holes. */
	if (to == -EINVAL || to == -ENOTTY || to == -ENOSYS)
		return KVMFAULT_EXTENT_DATA;
	if (to <= from)
		return to < 0 ? (int)to : -EIO;
	if ((uint64_t)(to - from) < *length)
		*length = (uint64_t)(to - from);
	return kind;
}

static const void *source_view_memory(void *data, uint64_t offset,
				      size_t length)
{
	(void)length;
	return (const char *)data + offset;
}

static int source_read_memory(void *data, uint64_t offset, void *buffer,
			      size_t length)
{
	memcpy(buffer, source_view_memory(data, offset, length), length);
	return 0;
}

static int source_read_zero(void *data, uint64_t offset, void *buffer,
			    size_t length)
{
	(void)data;
	(void)offset;
	memset(buffer, 0, length);
	return 0;
}

static int source_ask_zero(void *data, uint64_t offset, uint64_t *length)
{
	(void)data;
	(void)offset;
	(void)length;
	return KVMFAULT_EXTENT_ZERO;
}

bool kvmfault__source_reaches(const struct kvmfault_source *source,
			      uint64_t end)
{
	struct stat stat;

	if (source->length && source->length < end)
		return false;
	if (source->file <= 0)
		return true;
	/* A block device does not shrink, and its stat has no size. */
	return !kvmfault__sys_fstat(source->file, &stat) &&
	       (S_ISBLK(stat.st_mode) || (uint64_t)stat.st_size >= end);
}

/* No read follows that would find that the source was cut off: look here,
 * before zeros are believed. */
int kvmfault__source_extent(const struct kvmfault_source *source,
			    uint64_t offset, uint64_t *length)
{
	uint64_t asked = *length;
	int kind = KVMFAULT_EXTENT_DATA;

	if (source->extent)
		kind = source->extent(source->data, offset, length);
	if (kind < 0)
		return kind;
	if (kind > KVMFAULT_EXTENT_HOLE || !*length || *length > asked)
		return -EIO;
	if (kind != KVMFAULT_EXTENT_DATA &&
	    !kvmfault__source_reaches(source, offset + *length))
		return -ENODATA;
	return kind;
}

KVMFAULT__EXPORT
int kvmfault_source_file(int fd, struct kvmfault_source *source)
{
	struct kvmfault_source ours = {
		.name = "file",
		.read = source_read_file,
		.data = (void *)(intptr_t)fd,
		.extent = source_ask_file,
	};
	struct stat stat;
	uint64_t end;
	int err, flags;

	if (!source)
		return -EINVAL;
	flags = kvmfault__sys_getfl(fd);
	if (flags < 0)
		return flags;
	/* Refuse the descriptor now, and not when the guest waits for a
	 * page. */
	if (flags & O_PATH || (flags & O_ACCMODE) == O_WRONLY)
		return -EACCES;
	err = kvmfault__sys_fstat(fd, &stat);
	if (err)
		return err;
	if (!S_ISREG(stat.st_mode) && !S_ISBLK(stat.st_mode))
		return -ESPIPE;
	end = (uint64_t)stat.st_size;
	/* A block device tells its size by an ioctl alone. */
	if (S_ISBLK(stat.st_mode))
		err = kvmfault__sys_ioctl(fd, BLKGETSIZE64, &end);
	if (err)
		return err;
	if (!end)
		return -ENODATA;
	ours.length = end;
	return kvmfault__options_out(source, &ours, sizeof(ours));
}

KVMFAULT__EXPORT
int kvmfault_source_memory(const void *bytes, uint64_t length,
			   struct kvmfault_source *source)
{
	struct kvmfault_source ours = {
		.name = "memory",
		.read = source_read_memory,
		.data = (void *)(uintptr_t)bytes,
		.length = length,
		.view = source_view_memory,
	};

	if (!bytes || !length)
		return -EINVAL;
	return kvmfault__options_out(source, &ours, sizeof(ours));
}

KVMFAULT__EXPORT
int kvmfault_source_zero(struct kvmfault_source *source)
{
	struct kvmfault_source ours = {
		.name = "zero",
		.read = source_read_zero,
		.extent = source_ask_zero,
	};

	return kvmfault__options_out(source, &ours, sizeof(ours));
}

/* The caller's struct may be of an older version, without the last members, or
 * of a newer one. */
KVMFAULT__EXPORT
void kvmfault_source_free(struct kvmfault_source *source)
{
	size_t size = source ? source->size : 0;

	if (size >= offsetof(struct kvmfault_source, free) +
		    sizeof(source->free) && source->free)
		source->free(source->data);
	if (size > sizeof(size))
		memset((char *)source + sizeof(size), 0, size - sizeof(size));
}
