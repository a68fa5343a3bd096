/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage publish, its host side: what userfaultfd does to pages. In: a range of
 * a memory. Out: its pages are installed, write-protected or poisoned, or its
 * sleepers are awake. Pages are installed through the memslots' mapping and
 * through no other. A wake reaches only the sleepers of one userfaultfd, so
 * each mapping gets its own.
 */

#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/mman.h>
#include "../os/abi.h"
#include "page.h"

/* If the file could not grow, the library's own touch would raise SIGBUS: the
 * kernel says EFAULT here instead. */
int kvmfault__prepare(const struct kvmfault_memory *memory, uint64_t offset,
		      uint64_t length)
{
	int err = kvmfault__sys_madvise(memory->fill + offset, length,
					KVMFAULT__MADV_POPULATE_WRITE);

	return err == -EFAULT ? -ENOMEM : err;
}

/* With minor faults the data is written to the file first. A discarded page has
 * no data: it reads zero, unless a mapping that the library does not know wrote
 * to it. */
static int install_write_file(struct kvmfault_memory *memory,
			      uint64_t offset, const void *data,
			      uint64_t length)
{
	const char *from = data;
	char *to = memory->fill + offset;
	int err = 0;

	/* The source has read into the request's own buffer, which is the file:
	 * the bytes are in place, even if the request was wider then. */
	if (!from || from < memory->fill ||
	    from >= memory->fill + memory->length) {
		err = kvmfault__prepare(memory, offset, length);
		if (!err && data)
			memcpy(to, data, length);
	}
	/* The file has all of the bytes, and once a page is mapped a guest may
	 * write others there: so whoever takes the states up keeps the page. */
	if (!err)
		kvmfault__pages_note(memory, offset >> memory->page_shift,
				     length >> memory->page_shift, true);
	return err;
}

/* If one page is write-protected, the pages that come with it are too. The
 * first write to one of those finds that it need not be, and lifts that. */
static bool install_has_protected(const struct kvmfault_memory *memory,
				  uint64_t offset, uint64_t length)
{
	uint64_t page = offset >> memory->page_shift;
	uint64_t end = (offset + length) >> memory->page_shift;

	if (!memory->write_protect)
		return false;
	while (page < end && !kvmfault__page_protected(memory, page))
		page++;
	return page < end;
}

/* UFFDIO_CONTINUE maps a page that the file has, and replaces a marker. If the
 * kernel can't do so now, ask the file; before 5.13 it can't for huge pages. */
static int install_find_page(const struct kvmfault_mapping *mapping,
			     uint64_t offset, bool protect)
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
	/* If the kernel did not say, do not call the page absent: a guest may
	 * have written to its bytes by now. */
	if (!memory->hugetlb)
		return kvmfault__memory_resident(memory, offset, size);
	return done == -EINVAL || done == -ENOTTY ? -EOPNOTSUPP : (int)done;
}

int kvmfault__see(struct kvmfault__seat *seat, struct kvmfault_memory *memory,
		  uint64_t offset)
{
	const struct kvmfault__mappings *all =
		kvmfault__mappings_hold(seat, memory);
	uint64_t size = kvmfault__page_size(memory);
	int there = install_find_page(all->mapping[0], offset,
				      install_has_protected(memory, offset,
							    size));

	kvmfault__unhold(seat, KVMFAULT__HAZARD_MAPPINGS);
	return there;
}

/* The kernel also says EEXIST if no huge page is left, so see whether the page
 * of a file is there. EEXIST of anonymous memory is true. */
static int install_confirm_existing(const struct kvmfault_mapping *mapping,
				    uint64_t offset, bool protect)
{
	int there = 1;

	if (mapping->span.memory->fd > 0)
		there = install_find_page(mapping, offset, protect);
	if (there == -EOPNOTSUPP)
		there = 1;
	return there > 0 ? 0 : there ? there : -ENOMEM;
}

/* Unless the kernel stops in between, one call installs each run of pages that
 * are not there. */
static int install_fill_range(struct kvmfault__seat *seat,
			      const struct kvmfault_mapping *mapping,
			      enum kvmfault__install how, uint64_t offset,
			      const char *data, uint64_t length, bool protect,
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
				install_confirm_existing(mapping, offset + at,
							 protect);
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

static bool install_is_own_buffer(const struct kvmfault__seat *seat,
				  const void *data)
{
	const char *at = data, *buffer = seat->buffer;

	return at >= buffer && at < buffer + seat->vm->options.page_size_max;
}

int kvmfault__install(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory, uint64_t offset,
		      const void *data, uint64_t length,
		      struct kvmfault__installed *installed)
{
	const struct kvmfault__mappings *all =
		kvmfault__mappings_hold(seat, memory);
	const struct kvmfault_mapping *mapping = all->mapping[0];
	bool protect = install_has_protected(memory, offset, length);
	enum kvmfault__install how = KVMFAULT__COPY;
	int err = 0;

	*installed = (struct kvmfault__installed){ 0 };
	if (memory->fill) {
		how = KVMFAULT__MAP;
		err = install_write_file(memory, offset, data, length);
	} else if (!data && !protect && atomic_load(&mapping->ioctls) &
		   1ULL << _UFFDIO_ZEROPAGE) {
		how = KVMFAULT__ZERO;	/* it can't write-protect */
	} else if (!data) {
		data = memset(seat->buffer, 0, length);
	} else if (kvmfault__events_take(memory) &&
		   !install_is_own_buffer(seat, data)) {
		/* Touch the data here: UFFDIO_COPY must not sleep on a page of
		 * it while readers of events wait for the install to end. */
		data = memcpy(seat->buffer, data, length);
	}
	if (!err)
		err = install_fill_range(seat, mapping, how, offset, data,
					 length, protect, installed);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MAPPINGS);
	return err;
}

int kvmfault__map(const struct kvmfault_mapping *mapping, uint64_t offset,
		  uint64_t length)
{
	bool protect = install_has_protected(mapping->span.memory, offset,
					     length);
	uint64_t size = kvmfault__page_size(mapping->span.memory);
	int64_t done = kvmfault__uffd_install(mapping->uffd->fd, KVMFAULT__MAP,
					      mapping->host + offset, NULL,
					      length, size, protect);

	return done < 0 ? (int)done : 0;
}

/* A mapping without a userfaultfd came after the memory was settled. ESRCH: the
 * mapping's process is gone, and so it writes nothing. */
static int install_protect_one(const struct kvmfault_mapping *mapping,
			       uint64_t offset, uint64_t length, bool on)
{
	uint64_t size = kvmfault__page_size(mapping->span.memory);
	int err;

	if (!mapping->uffd)
		return 0;
	err = kvmfault__uffd_protect(mapping->uffd->fd, mapping->host + offset,
				     length, size, on);
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
		return install_protect_one(only, offset, length, on);
	all = kvmfault__mappings_hold(seat, memory);
	for (i = 0; i < all->count; i++) {
		int err = install_protect_one(all->mapping[i], offset, length,
					      on);

		if (!first)
			first = err;
	}
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MAPPINGS);
	return first;
}

/* A page that is there stays. ENOENT and ESRCH are no errors: no thread reads
 * where nothing is mapped, or in a process that is gone. */
int kvmfault__poison_run(const struct kvmfault_mapping *mapping,
			 uint64_t offset, uint64_t length)
{
	const struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t size = kvmfault__page_size(memory), at = 0, done;
	int fd = mapping->uffd->fd, err = 0;

	/* UFFDIO_POISON replaces no marker of a write-protection: it says
	 * EEXIST, which would be taken for a page. */
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

static int install_poison_one(const struct kvmfault_mapping *mapping,
			      uint64_t offset, uint64_t length)
{
	int err = kvmfault__poison_run(mapping, offset, length);

	/* If a page had a marker before, the kernel has woken no sleeper
	 * there. */
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
		return install_poison_one(only, offset, length);
	all = kvmfault__mappings_hold(seat, memory);
	for (i = 0; i < all->count && !err; i++)
		if (all->mapping[i]->uffd)
			err = install_poison_one(all->mapping[i], offset,
						 length);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MAPPINGS);
	return err;
}

/* Only its own process can remove a marker, but an installed page replaces it.
 * So install zeros, which a discarded page holds, and punch them out again. In
 * anonymous memory it is its process that discards, and so it removes them. */
static int install_unpoison_remote(struct kvmfault__seat *seat,
				   const struct kvmfault_mapping *mapping,
				   uint64_t offset)
{
	const struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t size = kvmfault__page_size(memory);
	uint64_t host = mapping->host + offset;
	int64_t done = -EEXIST;
	int punched, err = 0;

	if (kvmfault__out_of_reach(memory))
		return 0;
	/* Pages with minor faults may be larger than the seat's buffer. */
	if (memory->fill)
		err = kvmfault__prepare(memory, offset, size);
	if (err)
		return err;
	if (!memory->fill)
		done = kvmfault__uffd_install(mapping->uffd->fd,
			KVMFAULT__COPY, host, memset(seat->buffer, 0, size),
			size, size, false);
	if (done == -EEXIST)	/* the page is in the file */
		done = kvmfault__uffd_install(mapping->uffd->fd, KVMFAULT__MAP,
					      host, NULL, size, size, false);
	/* Its process may be gone, or its mapping; or the marker is of a
	 * hardware error, which only that process can remove. All the same, the
	 * page in the file is ours to take away. */
	if (done == -EFAULT)
		err = memory->hugetlb ? -ENOMEM : 0;
	else if (done < 0 && done != -EEXIST && done != -ENOENT &&
		 done != -ESRCH)
		err = (int)done;
	punched = kvmfault__memory_punch(memory, offset, size);
	return err ? err : punched;
}

int kvmfault__unpoison(struct kvmfault__seat *seat,
		       struct kvmfault_memory *memory, uint64_t offset)
{
	const struct kvmfault__mappings *all =
		kvmfault__mappings_hold(seat, memory);
	int err = 0;
	size_t i;

	for (i = 0; i < all->count && !err; i++) {
		const struct kvmfault_mapping *mapping = all->mapping[i];
		void *host = (void *)(uintptr_t)(mapping->host + offset);

		err = mapping->uffd && mapping->uffd->space ?
			install_unpoison_remote(seat, mapping, offset) :
			kvmfault__take_away(mapping->uffd, host,
					    kvmfault__page_size(memory),
					    MADV_DONTNEED);
	}
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MAPPINGS);
	return err;
}

/* The ioctl fails only where no thread can sleep (any more). */
static void install_wake_one(struct kvmfault__seat *seat,
			     const struct kvmfault_mapping *mapping,
			     uint64_t offset, uint64_t length)
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

	/* The caller holds the mapping, which may have left the list by now. */
	if (only) {
		install_wake_one(seat, only, offset, length);
		return;
	}
	all = kvmfault__mappings_hold(seat, memory);
	for (i = 0; i < all->count; i++)
		if (all->mapping[i]->uffd)
			install_wake_one(seat, all->mapping[i], offset, length);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_MAPPINGS);
}
