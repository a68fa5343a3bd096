/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage publish, its host side. In: a range of a memory. Out: its pages installed,
 * protected, poisoned, or the threads that sleep on it awake. Pages are installed
 * through the memslots' mapping and through no other; a wake reaches only those who
 * sleep on the same userfaultfd, so each mapping gets its own.
 */

#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/mman.h>
#include "../os/abi.h"
#include "page.h"

/* Touched without it, a file that can't grow would be a SIGBUS for us. */
int kvmfault__prepare(const struct kvmfault_memory *memory, uint64_t offset,
		      uint64_t length)
{
	int err = kvmfault__sys_madvise(memory->fill + offset, length,
					KVMFAULT__MADV_POPULATE_WRITE);

	return err == -EFAULT ? -ENOMEM : err;
}

/* With minor faults: what is to be there is written to the file first. Of a page
 * that was discarded nothing is: it reads zero by itself, unless somebody has
 * written to it since, through a mapping that the library does not know. */
static int write_file(const struct kvmfault_memory *memory, uint64_t offset,
		      const void *data, uint64_t length)
{
	const char *from = data;
	char *to = memory->fill + offset;
	int err;

	/* The request's own buffer, also if the request was a wider one when
	 * that was read: the bytes are where they belong. */
	if (from && from >= memory->fill && from < memory->fill + memory->length)
		return 0;
	err = kvmfault__prepare(memory, offset, length);
	if (!err && data)
		memcpy(to, data, length);
	return err;
}

/* Is one of the pages? Those that come with it are protected too, and the first
 * write to them finds that it needs not be. */
static bool any_protected(const struct kvmfault_memory *memory, uint64_t offset,
			  uint64_t length)
{
	uint64_t page = offset >> memory->page_shift;
	uint64_t end = (offset + length) >> memory->page_shift;

	if (!memory->write_protect)
		return false;
	while (page < end && !kvmfault__page_protected(memory, page))
		page++;
	return page < end;
}

/* What is in the file can be mapped, which also takes a marker away that is in
 * its place; if that is not possible now, the file says whether it is there. Before
 * 5.13 a huge page can't be asked for. As kvmfault__see(). */
static int see(const struct kvmfault_mapping *mapping, uint64_t offset,
	       bool protect)
{
	const struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t size = kvmfault__page_size(memory);
	int64_t done = -ENOTTY;

	if (memory->fd > 0)
		done = kvmfault__uffd_install(mapping->uffd->fd, KVMFAULT__MAP,
					      mapping->host + offset, NULL,
					      size, size, protect);
	if (done > 0 || done == -EEXIST)
		return 1;
	if (done == -EFAULT)
		return 0;
	/* Not known, and its bytes may be what somebody has written by now. */
	if (!memory->hugetlb)
		return kvmfault__memory_resident(memory, offset, size);
	return done == -EINVAL || done == -ENOTTY ? -EOPNOTSUPP : (int)done;
}

int kvmfault__see(struct kvmfault__seat *seat, struct kvmfault_memory *memory,
		  uint64_t offset)
{
	const struct kvmfault__mappings *all = kvmfault__mappings_hold(seat, memory);
	int there = see(all->mapping[0], offset,
			any_protected(memory, offset,
				      kvmfault__page_size(memory)));

	kvmfault__unhold(seat, KVMFAULT__HAZARD_MAPPINGS);
	return there;
}

/* "It is there" is a claim: a kernel says so, too, when no huge page is left. Of
 * anonymous memory it is true. */
static int prove(const struct kvmfault_mapping *mapping, uint64_t offset,
		 bool protect)
{
	int there = 1;

	if (mapping->span.memory->fd > 0)
		there = see(mapping, offset, protect);
	if (there == -EOPNOTSUPP)
		there = 1;
	return there > 0 ? 0 : there ? there : -ENOMEM;
}

/* One call for each run of pages that are not there, if the kernel does not stop
 * in between. */
static int fill(struct kvmfault__seat *seat,
		const struct kvmfault_mapping *mapping,
		enum kvmfault__install how, uint64_t offset, const char *data,
		uint64_t length, bool protect,
		struct kvmfault__installed *installed)
{
	const struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t size = kvmfault__page_size(memory);
	uint64_t host = mapping->host + offset, at = 0, end = length;
	bool apart = kvmfault__events_take(memory);
	int64_t done = 0;

	if (apart)
		end = kvmfault__install_begin(seat, memory, offset, length);
	while (at < end) {
		bool existed;

		done = kvmfault__uffd_install(mapping->uffd->fd, how, host + at,
					      data ? data + at : NULL,
					      end - at, size, protect);
		existed = done == -EEXIST;
		if (existed)
			done = how == KVMFAULT__MAP ? 0 :
				prove(mapping, offset + at, protect);
		if (done < 0)
			break;
		if (existed)
			done = (int64_t)size;
		installed->existed += existed;
		at += (uint64_t)done;
	}
	if (apart)
		kvmfault__install_end(seat);
	installed->there = at / size;
	if (done < 0)
		return (int)done;
	return end < length ? -EAGAIN : 0;
}

static bool is_ours(const struct kvmfault__seat *seat, const void *data)
{
	const char *at = data, *buffer = seat->buffer;

	return at >= buffer && at < buffer + seat->vm->options.page_size_max;
}

int kvmfault__install(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory, uint64_t offset,
		      const void *data, uint64_t length,
		      struct kvmfault__installed *installed)
{
	const struct kvmfault__mappings *all = kvmfault__mappings_hold(seat, memory);
	const struct kvmfault_mapping *mapping = all->mapping[0];
	bool protect = any_protected(memory, offset, length);
	enum kvmfault__install how = KVMFAULT__COPY;
	int err = 0;

	*installed = (struct kvmfault__installed){ 0 };
	if (memory->fill) {
		how = KVMFAULT__MAP;
		err = write_file(memory, offset, data, length);
	} else if (!data && !protect && atomic_load(&mapping->ioctls) &
		   1ULL << _UFFDIO_ZEROPAGE) {
		how = KVMFAULT__ZERO;	/* it knows of no protection */
	} else if (!data) {
		data = memset(seat->buffer, 0, length);
	} else if (kvmfault__events_take(memory) && !is_ours(seat, data)) {
		/* Nobody sleeps on what is copied while others wait to read. */
		data = memcpy(seat->buffer, data, length);
	}
	if (!err)
		err = fill(seat, mapping, how, offset, data, length, protect,
			   installed);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MAPPINGS);
	return err;
}

int kvmfault__map(const struct kvmfault_mapping *mapping, uint64_t offset,
		  uint64_t length)
{
	bool protect = any_protected(mapping->span.memory, offset, length);
	uint64_t size = kvmfault__page_size(mapping->span.memory);
	int64_t done = kvmfault__uffd_install(mapping->uffd->fd, KVMFAULT__MAP,
					      mapping->host + offset, NULL,
					      length, size, protect);

	return done < 0 ? (int)done : 0;
}

/* A process that is gone writes nothing. */
static int protect_in(const struct kvmfault_mapping *mapping, uint64_t offset,
		      uint64_t length, bool on)
{
	uint64_t size = kvmfault__page_size(mapping->span.memory);
	int err = kvmfault__uffd_protect(mapping->uffd->fd,
					 mapping->host + offset, length, size,
					 on);

	return err == -ESRCH ? 0 : err;
}

int kvmfault__protect(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory,
		      const struct kvmfault_mapping *only, uint64_t offset,
		      uint64_t length, bool on)
{
	const struct kvmfault__mappings *all;
	int first = 0;
	size_t i;

	if (only)
		return protect_in(only, offset, length, on);
	all = kvmfault__mappings_hold(seat, memory);
	for (i = 0; i < all->count; i++) {
		int err = protect_in(all->mapping[i], offset, length, on);

		if (!first)
			first = err;
	}
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MAPPINGS);
	return first;
}

/* What is there stays; and nobody reads where nothing is mapped, or in a process
 * that is gone. */
int kvmfault__poison_run(const struct kvmfault_mapping *mapping,
			 uint64_t offset, uint64_t length)
{
	const struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t size = kvmfault__page_size(memory), at = 0, done;
	int fd = mapping->uffd->fd, err = 0;

	/* Nothing goes over a protection's marker, and it would be taken for a
	 * page. */
	if (memory->write_protect)
		err = kvmfault__uffd_protect(fd, mapping->host + offset, length,
					     size, false);
	while (at < length && !err) {
		err = kvmfault__uffd_poison(fd, mapping->host + offset + at,
					    length - at, size, false, &done);
		at += done;
		if (err == -EEXIST || err == -ENOENT) {
			at += size;
			err = 0;
		}
	}
	return err == -ESRCH ? 0 : err;
}

static int poison_and_wake(const struct kvmfault_mapping *mapping,
			   uint64_t offset, uint64_t length)
{
	int err = kvmfault__poison_run(mapping, offset, length);

	/* Nobody was woken where there was a marker before. */
	if (!err)
		kvmfault__uffd_wake(mapping->uffd->fd, mapping->host + offset,
				    length);
	return err;
}

int kvmfault__poison(struct kvmfault__seat *seat,
		     struct kvmfault_memory *memory,
		     const struct kvmfault_mapping *only, uint64_t offset,
		     uint64_t length)
{
	const struct kvmfault__mappings *all;
	int err = 0;
	size_t i;

	if (only)
		return poison_and_wake(only, offset, length);
	all = kvmfault__mappings_hold(seat, memory);
	for (i = 0; i < all->count && !err; i++)
		if (all->mapping[i]->uffd)
			err = poison_and_wake(all->mapping[i], offset, length);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MAPPINGS);
	return err;
}

/* Nobody but the process itself can take a marker out, and yet what is installed
 * there takes its place: zeros, which is what a discarded page holds, and a hole
 * takes these away again. */
static int unpoison_remote(struct kvmfault__seat *seat,
			   const struct kvmfault_mapping *mapping,
			   uint64_t offset)
{
	const struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t size = kvmfault__page_size(memory);
	uint64_t host = mapping->host + offset;
	int64_t done = -EEXIST;
	/* Those pages may be larger than the buffer. */
	int err = memory->fill ? kvmfault__prepare(memory, offset, size) : 0;

	if (err)
		return err;
	if (!memory->fill)
		done = kvmfault__uffd_install(mapping->uffd->fd,
			KVMFAULT__COPY, host, memset(seat->buffer, 0, size),
			size, size, false);
	if (done == -EEXIST)	/* it is in the file */
		done = kvmfault__uffd_install(mapping->uffd->fd, KVMFAULT__MAP,
					      host, NULL, size, size, false);
	if (done == -ENOENT || done == -ESRCH)
		return 0;
	/* Of hardware, which only that process can take out. */
	if (done == -EFAULT && !memory->hugetlb)
		return 0;
	if (done < 0 && done != -EEXIST)
		return done == -EFAULT ? -ENOMEM : (int)done;
	return kvmfault__memory_punch(memory, offset, size);
}

int kvmfault__unpoison(struct kvmfault__seat *seat,
		       struct kvmfault_memory *memory, uint64_t offset)
{
	const struct kvmfault__mappings *all = kvmfault__mappings_hold(seat, memory);
	int err = 0;
	size_t i;

	for (i = 0; i < all->count && !err; i++) {
		const struct kvmfault_mapping *mapping = all->mapping[i];
		void *host = (void *)(uintptr_t)(mapping->host + offset);

		err = mapping->uffd && mapping->uffd->space ?
			unpoison_remote(seat, mapping, offset) :
			kvmfault__take_away(mapping->uffd, host,
					    kvmfault__page_size(memory),
					    MADV_DONTNEED);
	}
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MAPPINGS);
	return err;
}

/* It fails only where nobody can be asleep (any more). */
static void wake_in(struct kvmfault__seat *seat,
		    const struct kvmfault_mapping *mapping, uint64_t offset,
		    uint64_t length)
{
	kvmfault__uffd_wake(mapping->uffd->fd, mapping->host + offset, length);
	kvmfault__count(seat, woken);
}

void kvmfault__wake(struct kvmfault__seat *seat,
		    struct kvmfault_memory *memory,
		    const struct kvmfault_mapping *only, uint64_t offset,
		    uint64_t length)
{
	const struct kvmfault__mappings *all;
	size_t i;

	/* It is held, and may be in the list no more. */
	if (only) {
		wake_in(seat, only, offset, length);
		return;
	}
	all = kvmfault__mappings_hold(seat, memory);
	for (i = 0; i < all->count; i++)
		if (all->mapping[i]->uffd)
			wake_in(seat, all->mapping[i], offset, length);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MAPPINGS);
}
