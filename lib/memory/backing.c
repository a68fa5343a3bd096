/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The backing, which holds a memory's bytes: a file, or anonymous pages. In: a
 * range of a memory. Out: whether one of its pages is in the backing, or the
 * range punched out of the backing. Here the VMM is also told what has changed.
 */

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <unistd.h>
#include "memory.h"

static int backing_file_has_page(const struct kvmfault_memory *memory,
				 uint64_t offset, uint64_t length)
{
	uint64_t start = memory->fd_offset + offset;
	off_t data;

	data = kvmfault__sys_lseek(memory->fd, (off_t)start, SEEK_DATA);
	if (data == -ENXIO)
		return 0;
	return data < 0 ? (int)data : (uint64_t)data < start + length;
}

static int backing_anon_has_page(const struct kvmfault_memory *memory,
				 uint64_t offset, uint64_t length)
{
	unsigned char vec[512];
	size_t page = kvmfault__sys_page_size(), i;

	if (kvmfault__out_of_reach(memory))
		return -EOPNOTSUPP;
	while (length) {
		uint64_t step = length < sizeof(vec) * page ?
			length : sizeof(vec) * page;
		int err = kvmfault__sys_mincore((char *)memory->host + offset,
						step, vec);

		if (err)
			return err;
		for (i = 0; i < step / page; i++)
			if (vec[i] & 1)
				return 1;
		offset += step;
		length -= step;
	}
	return 0;
}

int kvmfault__memory_resident(const struct kvmfault_memory *memory,
			      uint64_t offset, uint64_t length)
{
	if (memory->fd <= 0)
		return backing_anon_has_page(memory, offset, length);
	return backing_file_has_page(memory, offset, length);
}

/* Pages that are out of reach can be taken by their own process alone. The
 * library discards such a page only after an event has told of it; no page
 * comes there after that, and what had come before is what the process
 * takes. */
int kvmfault__memory_punch(const struct kvmfault_memory *memory,
			   uint64_t offset, uint64_t length)
{
	if (kvmfault__out_of_reach(memory))
		return 0;
	if (memory->fd <= 0)
		return kvmfault__take_away(memory->uffd,
					   (char *)memory->host + offset,
					   length, MADV_DONTNEED);
	return kvmfault__sys_fallocate(memory->fd, FALLOC_FL_PUNCH_HOLE |
				       FALLOC_FL_KEEP_SIZE,
				       (off_t)(memory->fd_offset + offset),
				       (off_t)length);
}

void kvmfault__tell_change(struct kvmfault_memory *memory, uint64_t offset,
			   uint64_t length, enum kvmfault_cause cause)
{
	const struct kvmfault_vm *vm = memory->vm;
	const struct kvmfault_change change = {
		.size = sizeof(change),
		.memory = memory,
		.offset = offset,
		.length = length,
		.cause = cause,
	};

	vm->ops.changed(vm->options.data, &change);
}
