/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Memory files, their mappings, and what each mapping has of each page. In:
 * mmap, munmap, madvise, mincore and memfd_create, and the test's own memory.
 * Out: real memory at real addresses, of a real memfd, so that data can be
 * read and written; whether a page is there is only the model's to say. What
 * holds: what the library unmaps it has mapped, and a page is present in the
 * file, but mapped, marked or protected in a mapping of it.
 */

#include <errno.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fake.h"

static struct object *memories[256];
static size_t memory_count;
static struct range mapped[4096];	/* by the library */

struct object *fake__memory_at(uint64_t address, uint64_t *offset)
{
	size_t i, h;

	for (i = 0; i < memory_count; i++) {
		struct object *m = memories[i];

		for (h = 0; h < m->hosts; h++) {
			if (address < m->host[h] ||
			    address - m->host[h] >= m->length)
				continue;
			*offset = address - m->host[h];
			return m;
		}
	}
	return NULL;
}

/* What a mapping has of a page: is it mapped there, is there a marker? */
unsigned char *fake__page_of(struct object *m, unsigned char **what,
			      uint64_t address)
{
	unsigned int h;

	for (h = 0; h < m->hosts; h++)
		if (address >= m->host[h] && address - m->host[h] < m->length)
			break;
	return &what[h][(address - m->host[h]) / m->page_size];
}

unsigned char *fake__page_mapped(struct object *m, uint64_t address)
{
	return fake__page_of(m, m->mapped, address);
}

/* Is it write-protected there, or will be when it has come? */
unsigned char *fake__page_protected(struct object *m, uint64_t address)
{
	return fake__page_of(m, m->protected, address);
}

bool fake__is_mapped(uint64_t address)
{
	uint64_t offset;
	size_t i;

	if (fake__memory_at(address, &offset))
		return true;
	for (i = 0; i < sizeof(mapped) / sizeof(*mapped); i++)
		if (mapped[i].length && address >= mapped[i].start &&
		    address - mapped[i].start < mapped[i].length)
			return true;
	return false;
}

static void *map_memory(struct object *m)
{
	uintptr_t room;
	void *host;

	/* Room to align it in, which is never given back. */
	room = (uintptr_t)mmap(NULL, m->length + m->page_size, PROT_NONE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	host = (void *)((room + m->page_size - 1) & ~(m->page_size - 1));
	host = mmap(host, m->length, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_FIXED, m->real, 0);
	if ((void *)room == MAP_FAILED || host == MAP_FAILED ||
	    m->hosts == HOSTS)
		abort();
	m->mapped[m->hosts] = calloc(m->length / m->page_size, 1);
	m->marker[m->hosts] = calloc(m->length / m->page_size, 1);
	m->protected[m->hosts] = calloc(m->length / m->page_size, 1);
	m->host[m->hosts++] = (uintptr_t)host;
	return host;
}

static void unmap_memory(uint64_t address)
{
	uint64_t offset;
	struct object *m = fake__memory_at(address, &offset);
	unsigned int h;

	for (h = 0; m && h < m->hosts; h++)
		if (m->host[h] == address)
			m->host[h] = UINT64_MAX;
}

long fake__mmap(struct fake_call *c)
{
	struct object *file = c->fd >= 0 ? fake__object_of(c->fd) : NULL;
	void *address;
	size_t i;

	if (c->fd >= 0 && !file)
		return -EBADF;
	/* Another file's contents are nobody's business here. */
	address = file && file->kind == FAKE_MEMORY ? map_memory(file) :
		mmap(NULL, c->length, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (address == MAP_FAILED)
		return -ENOMEM;
	for (i = 0; mapped[i].length; i++)
		;
	mapped[i] = (struct range){
		.start = (uintptr_t)address,
		.length = c->length,
	};
	c->at = (uintptr_t)address;
	fake__holds.mappings++;
	return 0;
}

long fake__munmap(struct fake_call *c)
{
	struct object *uffd = fake__registered_with(c->at);
	size_t i;

	if (uffd)
		*fake__range_at(uffd, c->at) = (struct range){ 0 };
	for (i = 0; i < sizeof(mapped) / sizeof(*mapped); i++) {
		if (mapped[i].start != c->at || mapped[i].length != c->length)
			continue;
		mapped[i] = (struct range){ 0 };
		fake__holds.mappings--;
		unmap_memory(c->at);
		return munmap((void *)(uintptr_t)c->at, c->length);
	}
	fprintf(stderr, "the library unmaps what it has not mapped\n");
	abort();
}

long fake__mprotect(struct fake_call *c)
{
	return fake__is_mapped(c->at) ? 0 : -ENOMEM;
}

void fake__punch(struct object *m, uint64_t offset, uint64_t length)
{
	uint64_t at;
	unsigned int h;

	for (at = offset; at < offset + length; at += m->page_size) {
		m->present[at / m->page_size] = 0;
		for (h = 0; h < m->hosts; h++)
			m->mapped[h][at / m->page_size] = 0;
		memset((char *)(uintptr_t)m->host[0] + at, 0, m->page_size);
	}
}

/* What is mapped more than once is a file's, and stays in it. */
static void dont_need(struct object *m, uint64_t address, uint64_t offset,
		      uint64_t length)
{
	uint64_t at;

	if (m->hosts == 1)
		fake__punch(m, offset, length);
	for (at = 0; at < length; at += m->page_size)
		*fake__page_of(m, m->marker, address + at) = 0;
}

long fake__madvise(struct fake_call *c)
{
	uint64_t offset;
	struct object *m = fake__memory_at(c->at, &offset);

	if (!m && !fake__is_mapped(c->at))
		return -ENOMEM;
	if (!m && c->number == MADV_DONTNEED)
		memset((void *)(uintptr_t)c->at, 0, c->length);
	if (!m)
		return 0;
	if (c->number == MADV_DONTNEED)
		dont_need(m, c->at, offset, c->length);
	/* What is registered would wait for its page instead. */
	if (c->number == KVMFAULT__MADV_POPULATE_WRITE &&
	    !fake__registered_with(c->at))
		memset(m->present + offset / m->page_size, 1,
		       c->length / m->page_size);
	return 0;
}

long fake__mincore(struct fake_call *c)
{
	unsigned char *vec = c->arg;
	uint64_t i, offset;
	struct object *m = fake__memory_at(c->at, &offset);

	if (!m)
		return -ENOMEM;
	for (i = 0; i < c->length / UNIT; i++)
		vec[i] = m->present[(offset + i * UNIT) / m->page_size];
	return 0;
}

static void back(struct object *m, uint64_t length, uint64_t page_size)
{
	m->length = length;
	m->page_size = page_size;
	m->present = calloc(length / page_size, 1);
	m->real = memfd_create("fake", MFD_CLOEXEC);
	if (ftruncate(m->real, (off_t)length) ||
	    memory_count == sizeof(memories) / sizeof(*memories))
		abort();
	memories[memory_count++] = m;
}

/* What is not to be a guest's only has a length. */
long fake__memfd(struct fake_call *c)
{
	bool guest = !strcmp(c->path, "guest memory");
	int fd = fake__open_new(guest ? FAKE_MEMORY : FAKE_PIPE, 0);
	unsigned int shift = (unsigned int)(c->number >> MFD_HUGE_SHIFT);

	if (fd >= 0 && guest)
		back(fake__object_of(fd), c->length,
		     shift ? 1ULL << shift : UNIT);
	else if (fd >= 0)
		fake__object_of(fd)->length = c->length;
	return fd;
}

void *fake_map(int fd)
{
	return map_memory(fake__object_of(fd));
}

int fake_memory(uint64_t length, uint64_t page_size, void **host)
{
	int fd = fake_fd(FAKE_MEMORY);

	back(fake__object_of(fd), length, page_size ? page_size : UNIT);
	*host = fake_map(fd);
	return fd;
}

bool fake_present(int fd, uint64_t offset)
{
	struct object *m = fake__object_of(fd);

	return m->present[offset / m->page_size];
}

void fake_put(int fd, uint64_t offset)
{
	struct object *m = fake__object_of(fd);

	m->present[offset / m->page_size] = 1;
}

void fake_take(int fd, uint64_t offset)
{
	struct object *m = fake__object_of(fd);

	m->present[offset / m->page_size] = 0;
}

bool fake_marked(const void *address)
{
	uint64_t offset;
	struct object *m = fake__memory_at((uintptr_t)address, &offset);

	return *fake__page_of(m, m->marker, (uintptr_t)address);
}

bool fake_protected(const void *address)
{
	uint64_t offset;
	struct object *m;
	bool yes;

	pthread_mutex_lock(&fake__lock);
	m = fake__memory_at((uintptr_t)address, &offset);
	yes = m && *fake__page_protected(m, (uintptr_t)address);
	pthread_mutex_unlock(&fake__lock);
	return yes;
}
