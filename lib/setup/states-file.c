/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Set-up: the states of a memory's pages, in a file of the VMM's that outlives
 * this process. In: a descriptor. Out: the memory's states, mapped there: all
 * absent if the file was empty; else those that an owner before this one left,
 * which import.c compares with the backing. A file that is not this memory's is
 * refused, and stays as it is.
 *
 * The file has a header, then the words of states, then a bit for each page:
 * the page has come, or was discarded, so the source is not asked for it any
 * more. If an owner is killed while a page is in flight, this bit tells whether
 * the page is zero or the source's when it is not in the backing.
 */

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "setup.h"

#define OPTION "kvmfault_memory_options.states_fd"
#define VERSION 1U
#define HEADER 4096U		/* bytes before the words of states */

struct states_size {
	size_t words, bits, all;	/* bytes */
};

static struct states_size states_size(uint64_t pages)
{
	struct states_size size = {
		.words = kvmfault__states_size(pages),
		.bits = (pages + 63) / 64 * sizeof(uint64_t),
	};

	size.all = HEADER + size.words + size.bits;
	return size;
}

/* This memory's file has to begin like that. A memory of another process,
 * without a file, is known by its address. */
static int states_describe(const struct kvmfault_memory_options *o,
			   struct kvmfault__states_file *header)
{
	struct stat stat = { .st_ino = (uintptr_t)o->host };
	int err = o->fd > 0 ? kvmfault__sys_fstat(o->fd, &stat) : 0;

	if (err)
		return err;
	*header = (struct kvmfault__states_file){
		.magic = KVMFAULT__STATES_MAGIC,
		.version = VERSION,
		.page_size = o->page_size,
		.length = o->length,
		.source_offset = o->source_offset,
		.fd_offset = o->fd_offset,
		.device = stat.st_dev,
		.inode = stat.st_ino,
		.minor = o->minor,
	};
	return 0;
}

static int states_refuse(struct kvmfault_vm *vm, const char *why)
{
	return kvmfault__refuse(vm, -ESTALE,
		OPTION ": the file holds no states of this memory: %s; pass the file that was made with this memory, or an empty one for a memory without pages",
		why);
}

static int states_compare(struct kvmfault_vm *vm,
			  const struct kvmfault__states_file *is,
			  const struct kvmfault__states_file *ours)
{
	if (is->magic != ours->magic || is->version != ours->version)
		return states_refuse(vm, "it has another format, or was written by another version of the library");
	if (is->length != ours->length || is->page_size != ours->page_size)
		return states_refuse(vm, "that memory's length or page_size was another one");
	if (is->source_offset != ours->source_offset ||
	    is->fd_offset != ours->fd_offset)
		return states_refuse(vm, "that memory's source_offset or fd_offset was another one");
	if (is->device != ours->device || is->inode != ours->inode)
		return states_refuse(vm, "that memory's fd was another file, or its host another address");
	/* With minor faults a page in flight may be half a page in the file,
	 * and without them a guest may have written to it. */
	if (is->minor != ours->minor)
		return states_refuse(vm, "that memory's minor was another one");
	return 0;
}

static int states_check_file(struct kvmfault_vm *vm, int fd,
			     struct stat *stat)
{
	int err = kvmfault__sys_getfl(fd);

	if (err < 0 || (err & O_ACCMODE) != O_RDWR)
		return kvmfault__refuse(vm, -EBADF,
			OPTION ": descriptor %d is not open for reading and writing: pass a memfd, or a file that was opened with O_RDWR",
			fd);
	err = kvmfault__sys_fstat(fd, stat);
	if (!err && !S_ISREG(stat->st_mode))
		err = states_refuse(vm, "it is no regular file");
	return err;
}

int kvmfault__states_look(struct kvmfault_vm *vm,
			  const struct kvmfault_memory_options *o,
			  enum kvmfault__states *found)
{
	struct states_size size =
		states_size(o->length / o->page_size);
	struct kvmfault__states_file is, ours;
	struct stat stat;
	ssize_t got;
	int err = states_check_file(vm, o->states_fd, &stat);

	*found = KVMFAULT__STATES_NEW;
	if (err || !stat.st_size)
		return err;
	if ((uint64_t)stat.st_size != size.all)
		return states_refuse(vm, "its length does not go with the memory's");
	got = kvmfault__sys_pread(o->states_fd, &is, sizeof(is), 0);
	if (got < 0)
		return (int)got;
	if (got != sizeof(is))
		return states_refuse(vm, "it is cut off");
	/* Its first owner was killed before the memory was made. */
	if (!is.magic)
		return 0;
	err = states_describe(o, &ours);
	if (!err)
		err = states_compare(vm, &is, &ours);
	*found = is.settled ? KVMFAULT__STATES_SETTLED : KVMFAULT__STATES_LEFT;
	return err;
}

int kvmfault__states_map(struct kvmfault_memory *memory,
			 const struct kvmfault_memory_options *o)
{
	struct states_size size =
		states_size(memory->length >> memory->page_shift);
	void *map;
	/* The file gets its memory now: a thread that touches a page of states
	 * later could only be told by a SIGBUS that there is none. */
	int err = kvmfault__sys_fallocate(o->states_fd, 0, 0,
					  (off_t)size.all);

	if (!err)
		err = kvmfault__sys_mmap(&map, size.all, PROT_READ | PROT_WRITE,
					 MAP_SHARED, o->states_fd, 0);
	if (err)
		return kvmfault__refuse(memory->vm, err,
			OPTION ": descriptor %d has no room for %zu bytes, or can't be mapped (error %d): pass a memfd",
			o->states_fd, size.all, -err);
	memory->states_file = map;
	memory->states_size = size.all;
	memory->states = (void *)((char *)map + HEADER);
	memory->unsourced = (void *)((char *)map + HEADER + size.words);
	return 0;
}

/* The magic number comes last: an owner that is killed before has left a file
 * that counts as empty. */
int kvmfault__states_begin(struct kvmfault_memory *memory,
			   const struct kvmfault_memory_options *o)
{
	struct kvmfault__states_file header;
	int err = states_describe(o, &header);

	if (err)
		return err;
	memset(memory->states_file, 0, memory->states_size);
	header.magic = 0;
	memcpy(memory->states_file, &header, sizeof(header));
	atomic_store(&memory->states_file->magic, KVMFAULT__STATES_MAGIC);
	return 0;
}
