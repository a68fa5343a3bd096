/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Files, and what is done to any descriptor: open, close, read, seek, ask. In:
 * calls with numbers that objects.c gave out, and what the test says of /proc.
 * Out: what the kernel returns, and -EBADF for any other number. What holds:
 * only what is the library's may be closed by it, and what is closed is watched
 * by no epoll any more. An ioctl() goes to the file of the object's kind.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "fake.h"

const char *fake_maps;
bool fake_no_info;
bool fake_no_nowait;

/* What the kernel tells of a descriptor. */
static int open_info(const char *path)
{
	struct object *object;
	int of, fd = -ENOENT;

	if (!fake_no_info && sscanf(path, "/proc/self/fdinfo/%d", &of) == 1)
		fd = fake__open_new(FAKE_FILE, 0);
	if (fd < 0)
		return fd;
	object = fake__object_of(of);
	fake__object_of(fd)->data = (const unsigned char *)object->info;
	fake__object_of(fd)->length = (uint64_t)snprintf(object->info,
		sizeof(object->info), "pos:\t0\ntotal:\t0\nAPI:\taa:%llx:1ff\n",
		(unsigned long long)object->features);
	return fd;
}

long fake__open(struct fake_call *c)
{
	int fd = open_info(c->path);
	struct object *file;

	if (!strcmp(c->path, "/dev/userfaultfd"))
		return fake_uffd_denied ? fake_uffd_denied :
			fake__open_new(FAKE_DEVICE, 0);
	if (fake_maps && !strcmp(c->path, "/proc/self/maps")) {
		fd = fake__open_new(FAKE_FILE, 0);
		file = fake__object_of(fd);
		if (file) {
			file->data = (const unsigned char *)fake_maps;
			file->length = strlen(fake_maps);
		}
	}
	return fd;
}

static void unwatch(struct object *object)
{
	size_t i, w;

	if (object->refs > 1)
		return;
	for (i = 0; i < FDS; i++) {
		struct object *e = fake__fds[i].object;

		if (!e || e->kind != FAKE_EPOLL)
			continue;
		for (w = 0; w < e->watches;) {
			if (fake__object_of(e->watched[w]) != object) {
				w++;
				continue;
			}
			e->watches--;
			e->watch[w] = e->watch[e->watches];
			e->watched[w] = e->watched[e->watches];
		}
	}
}

long fake__close(struct fake_call *c)
{
	struct object *object = fake__object_of(c->fd);

	if (!object || !fake__fds[c->fd - BASE].owned) {
		fprintf(stderr, "the library closes %d, which is not its own\n",
			c->fd);
		abort();
	}
	unwatch(object);
	fake__fds[c->fd - BASE] = (struct slot){ 0 };
	fake__holds.descriptors--;
	fake__object_put(object);
	return 0;
}

long fake__dup(struct fake_call *c)
{
	struct object *object = fake__object_of(c->fd);

	return object ? fake__install(object, true) : -EBADF;
}

long fake__getfl(struct fake_call *c)
{
	struct object *object = fake__object_of(c->fd);

	return object ? O_RDWR | object->flags : -EBADF;
}

static long read_messages(struct object *object, struct fake_call *c)
{
	size_t n = c->length / sizeof(struct uffd_msg);

	if (!object->msgs)
		return -EAGAIN;
	if (n > object->msgs)
		n = object->msgs;
	memcpy(c->arg, object->msg, n * sizeof(*object->msg));
	object->msgs -= n;
	memmove(object->msg, object->msg + n,
		object->msgs * sizeof(*object->msg));
	return (long)(n * sizeof(*object->msg));
}

static long read_file(struct object *object, struct fake_call *c)
{
	uint64_t n = object->length - object->position;

	if (n > c->length)
		n = c->length;
	if (n)
		memcpy(c->arg, object->data + object->position, n);
	object->position += n;
	return (long)n;
}

/* As much as fits, as a file system does that becomes full. */
long fake__write(struct fake_call *c)
{
	struct object *object = fake__object_of(c->fd);
	uint64_t n = c->length;

	if (!object || !object->room)
		return -EBADF;
	if (n > object->most - object->position)
		n = object->most - object->position;
	if (!n)
		return -ENOSPC;
	memcpy(object->room + object->position, c->arg, n);
	object->position += n;
	if (object->length < object->position)
		object->length = object->position;
	return (long)n;
}

long fake__read(struct fake_call *c)
{
	struct object *object = fake__object_of(c->fd);

	if (!object)
		return -EBADF;
	if (c->number && fake_no_nowait)
		return -EOPNOTSUPP;
	if (object->kind == FAKE_UFFD)
		return read_messages(object, c);
	if (object->kind == FAKE_FILE)
		return read_file(object, c);
	if (object->kind == FAKE_EVENT && object->count) {
		object->count--;
		return (long)c->length;
	}
	if (object->kind == FAKE_EVENT)
		return -EAGAIN;
	if (object->kind != FAKE_TIMER)
		return -EINVAL;
	if (!object->due || object->due > fake__now)
		return -EAGAIN;
	object->due = 0;
	memset(c->arg, 0, c->length);
	return (long)c->length;
}

/* With messages, and as long as a read would not sleep. */
long fake__poll(struct fake_call *c)
{
	struct object *object = fake__object_of(c->fd);

	return object && object->msgs;
}

long fake__pread(struct fake_call *c)
{
	struct object *object = fake__object_of(c->fd);
	uint64_t n = c->length;

	if (!object)
		return -EBADF;
	if (object->kind != FAKE_FILE && object->kind != FAKE_BLOCK &&
	    object->kind != FAKE_MEMORY)
		return -ESPIPE;
	if (c->at >= object->length)
		return 0;
	if (n > object->length - c->at)
		n = object->length - c->at;
	if (object->kind == FAKE_MEMORY)
		return pread(object->real, c->arg, n, (off_t)c->at);
	memcpy(c->arg, object->data + c->at, n);
	return (long)n;
}

static long seek_memory(const struct object *m, uint64_t from, bool hole)
{
	uint64_t at;

	for (at = from; at < m->length; at += m->page_size)
		if (!m->present[at / m->page_size] == hole)
			return (long)at;
	return hole && from < m->length ? (long)m->length : -ENXIO;
}

#define BLOCK 512U

/* As its file system would: a block of zeros was never written. */
static bool is_hole(const struct object *file, uint64_t block)
{
	static const char zeros[BLOCK];
	uint64_t n = file->length - block * BLOCK;

	return !memcmp(file->data + block * BLOCK, zeros,
		       n < BLOCK ? n : BLOCK);
}

/* At the end of a file is a hole. */
static long seek_file(const struct object *file, uint64_t from, bool hole)
{
	uint64_t block = from / BLOCK;

	if (from >= file->length)
		return -ENXIO;
	while (block * BLOCK < file->length && is_hole(file, block) != hole)
		block++;
	if (block * BLOCK >= file->length)
		return hole ? (long)file->length : -ENXIO;
	return (long)(block * BLOCK > from ? block * BLOCK : from);
}

long fake__lseek(struct fake_call *c)
{
	struct object *object = fake__object_of(c->fd);

	if (!object)
		return -EBADF;
	if (object->kind == FAKE_PIPE)
		return -ESPIPE;
	if (object->kind == FAKE_FILE && object->data &&
	    (c->number == SEEK_DATA || c->number == SEEK_HOLE))
		return seek_file(object, c->at, c->number == SEEK_HOLE);
	if (c->number == SEEK_DATA || c->number == SEEK_HOLE)
		return object->present ? seek_memory(object, c->at, c->number ==
						     SEEK_HOLE) : -EINVAL;
	return c->number == SEEK_END ? (long)object->length : -EINVAL;
}

long fake__fstat(struct fake_call *c)
{
	static const mode_t mode[] = {
		[FAKE_FILE] = S_IFREG, [FAKE_MEMORY] = S_IFREG,
		[FAKE_BLOCK] = S_IFBLK, [FAKE_PIPE] = S_IFIFO,
		[FAKE_TIMER] = 0,
	};
	struct object *object = fake__object_of(c->fd);
	struct stat *stat = c->arg;
	uint64_t i;

	if (!object)
		return -EBADF;
	memset(stat, 0, sizeof(*stat));
	stat->st_mode = mode[object->kind];
	stat->st_ino = (ino_t)c->fd;
	if (object->kind != FAKE_BLOCK)
		stat->st_size = (off_t)object->length;
	for (i = 0; object->present && i < object->length / object->page_size;
	     i++)
		if (object->present[i])
			stat->st_blocks += (blkcnt_t)(object->page_size / 512);
	return 0;
}

long fake__fstatfs(struct fake_call *c)
{
	struct object *object = fake__object_of(c->fd);
	struct statfs *fs = c->arg;

	if (!object)
		return -EBADF;
	memset(fs, 0, sizeof(*fs));
	fs->f_type = object->page_size > UNIT ? HUGETLBFS_MAGIC : TMPFS_MAGIC;
	fs->f_bsize = (long)(object->page_size ? object->page_size : UNIT);
	return 0;
}

long fake__cached(struct fake_call *c)
{
	struct object *object = fake__object_of(c->fd);
	uint64_t at;

	if (!object)
		return -EBADF;
	for (at = c->at; object->present && at < c->at + c->length &&
	     at < object->length; at += object->page_size)
		if (object->present[at / object->page_size])
			return 1;
	return 0;
}

long fake__fallocate(struct fake_call *c)
{
	struct object *object = fake__object_of(c->fd);

	if (!object)
		return -EBADF;
	if (!object->present)
		return -EOPNOTSUPP;
	if (c->at + c->length > object->length)
		return -EINVAL;
	if (!c->number)
		return 0;	/* it never grows, and there is always room */
	fake__punch(object, c->at, c->length);
	return 0;
}

long fake__ioctl(struct fake_call *c)
{
	struct object *object = fake__object_of(c->fd);

	if (!object)
		return -EBADF;
	if (object->kind == FAKE_KVM && c->number == KVM_SET_SIGNAL_MASK)
		return fake__set_run_mask(c->arg);
	if (object->kind == FAKE_KVM &&
	    c->number == KVMFAULT__SET_MEMORY_ATTRIBUTES)
		return fake__set_attributes(c->arg);
	if (object->kind == FAKE_UFFD)
		return fake__uffd_ioctl(object, c);
	if (object->kind == FAKE_DEVICE &&
	    c->number == KVMFAULT__USERFAULTFD_IOC_NEW)
		return fake__uffd_open((int)(uintptr_t)c->arg);
	if (object->kind == FAKE_BLOCK && c->number == BLKGETSIZE64) {
		*(uint64_t *)c->arg = object->length;
		return 0;
	}
	return -ENOTTY;
}
