/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Memories: a backing and what is known of its pages. In: where it is mapped
 * and where its pages come from. Out: something that regions show and faults
 * are resolved in. From the first moment to the last, a page that was not
 * fetched can't be read by anyone.
 */

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "setup.h"

#define WINDOW (64ULL << 10)

/* As much as scratch memory holds, or a page. */
static uint64_t window_most(const struct kvmfault_vm *vm, uint64_t page_size)
{
	uint64_t most = vm->options.page_size_max;

	return most > page_size ? most : page_size;
}

#define ULL(n) ((unsigned long long)(n))
#define OPTION "kvmfault_memory_options."

static int check_page_size(struct kvmfault_vm *vm,
			   struct kvmfault_memory_options *o)
{
	uint64_t size;

	if (!o->page_size)
		o->page_size = kvmfault__sys_page_size();
	size = o->page_size;
	if (size & (size - 1) || size < kvmfault__sys_page_size())
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "page_size: %#llx is not a power of two from the host's page on",
			ULL(size));
	/* A page that is copied needs room in scratch memory. */
	if (!o->minor && size > vm->options.page_size_max)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "page_size: %#llx is more than the context's page_size_max, %#llx: make that larger, or set minor",
			ULL(size), ULL(vm->options.page_size_max));
	return 0;
}

static int check_needs(struct kvmfault_vm *vm,
		       const struct kvmfault_memory_options *o)
{
	if (o->minor && o->fd <= 0)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "minor: needs fd, a memfd or hugetlbfs file");
	if ((o->minor || o->write_protect) && !o->source)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "%s: needs a source (kvmfault_source_zero() will do)",
			o->minor ? "minor" : "write_protect");
	/* Registered without a source it would sleep and nobody knows why. */
	if (o->uffd && !o->source)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "uffd: needs a source: without one nothing is registered");
	if (o->uffd && o->uffd->vm != vm)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "uffd: it is of another context");
	if (o->uffd && o->uffd->space)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "uffd: it is of another process: the memslots are mapped in this one");
	return 0;
}

static int check_range(struct kvmfault_vm *vm, const char *member,
		       uint64_t start, uint64_t length, uint64_t align)
{
	if ((start | length) & (align - 1))
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "%s, length: %#llx, %#llx are not multiples of the page size, %#llx",
			member, ULL(start), ULL(length), ULL(align));
	if (start + length < length)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "%s, length: %#llx and %#llx together are past the end of all",
			member, ULL(start), ULL(length));
	return 0;
}

static int check_ranges(struct kvmfault_vm *vm,
			const struct kvmfault_memory_options *o)
{
	int err;

	if (!o->host || !o->length)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "%s: it is not set",
			o->host ? "length" : "host");
	err = check_range(vm, "host", (uintptr_t)o->host, o->length,
			  o->page_size);
	if (!err)
		err = check_range(vm, "fd_offset", o->fd_offset, o->length,
				  o->page_size);
	if (!err)
		err = check_range(vm, "source_offset", o->source_offset,
				  o->length, 1);
	return err;
}

static int check_window(struct kvmfault_vm *vm,
			struct kvmfault_memory_options *o)
{
	uint64_t size = o->page_size, most = window_most(vm, size);

	if (o->window > KVMFAULT_WINDOW_SOURCE)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "window: %u is none that this version knows",
			(unsigned int)o->window);
	if (!o->window_length) {
		o->window_length = size > WINDOW ? size : WINDOW;
		if (o->window_length > most)
			o->window_length = most;
	}
	if (o->window_length & (size - 1) || o->window_length > most)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "window_length: %#llx is not a multiple of the page size, %#llx, up to %#llx",
			ULL(o->window_length), ULL(size), ULL(most));
	return 0;
}

static int check(struct kvmfault_vm *vm, struct kvmfault_memory_options *o)
{
	int err = check_page_size(vm, o);

	if (!err)
		err = check_needs(vm, o);
	if (!err)
		err = check_ranges(vm, o);
	if (!err)
		err = check_window(vm, o);
	return err;
}

static int check_submit(struct kvmfault_vm *vm,
			const struct kvmfault_source *source)
{
	if (source->read || source->submit)
		return 0;
	return kvmfault__refuse(vm, -EINVAL,
		"kvmfault_source: neither read nor submit is set");
}

static int check_file(struct kvmfault_vm *vm,
		      const struct kvmfault_memory_options *o,
		      uint64_t *page_size)
{
	struct statfs fs;
	struct stat stat;
	int err = kvmfault__sys_getfl(o->fd);

	/* Discards could not punch it, and it could not be mapped. */
	if (err < 0 || err & O_PATH)
		return kvmfault__refuse(vm, -EBADF,
			OPTION "fd: descriptor %d is not open%s", o->fd,
			err < 0 ? "" : " for anything (O_PATH)");
	err = kvmfault__sys_fstatfs(o->fd, &fs);
	if (!err)
		err = kvmfault__sys_fstat(o->fd, &stat);
	if (err)
		return err;
	if (fs.f_type == HUGETLBFS_MAGIC)
		*page_size = (uint64_t)fs.f_bsize;
	if (!S_ISREG(stat.st_mode) ||
	    (uint64_t)stat.st_size >= o->fd_offset + o->length)
		return 0;
	return kvmfault__refuse(vm, -EINVAL,
		OPTION "fd: the file behind the memory is too short: it has %llu bytes of %llu; set its size with ftruncate() first",
		ULL(stat.st_size), ULL(o->fd_offset + o->length));
}

/* One page of ours is one page of the backing: it comes as a whole. */
static int check_backing(struct kvmfault_vm *vm,
			 const struct kvmfault_memory_options *o)
{
	uint64_t real = kvmfault__sys_page_size();
	int err = o->fd > 0 ? check_file(vm, o, &real) : 0;

	if (err || o->page_size == real)
		return err;
	return kvmfault__refuse(vm, -EINVAL,
		OPTION "page_size: the memory has pages of %llu bytes: set page_size to that (for huge pages it needs a hugetlbfs file)",
		ULL(real));
}

static int check_source(struct kvmfault_vm *vm,
			const struct kvmfault_memory *memory)
{
	uint64_t needed = memory->source_offset + memory->length;

	if (!kvmfault__tracked(memory) ||
	    kvmfault__source_reaches(&memory->source, needed))
		return 0;
	return kvmfault__refuse(vm, -ENODATA,
		"the source is shorter than the memory: it, or its file, has not all of %llu bytes; make the memory smaller or the source longer",
		ULL(needed));
}

/* What nobody can end has no deadline. */
static int check_deadline(struct kvmfault_vm *vm,
			  const struct kvmfault_source *source)
{
	if (!source->deadline_ms || (source->submit && source->cancel))
		return 0;
	return kvmfault__refuse(vm, -EINVAL,
		"kvmfault_source.deadline_ms: nothing can end what takes longer than %u ms: it needs submit and cancel",
		source->deadline_ms);
}

/*
 * Blocks that must be ours, however the rest of the file is. It is all that a
 * hugetlbfs file tells (there SEEK_DATA sees data everywhere), and it finds
 * what was preallocated in a memfd, which is no data and yet never missed.
 */
static int blocks_resident(const struct kvmfault_memory *memory,
			   uint64_t length)
{
	struct stat stat;
	int err = kvmfault__sys_fstat(memory->fd, &stat);

	if (err)
		return err;
	return (uint64_t)stat.st_blocks * 512 + length >
	       (uint64_t)stat.st_size;
}

/* Checked after it was registered: from then on nothing comes unseen. */
static int check_empty(struct kvmfault_memory *memory)
{
	int resident = 0;

	/* With minor faults what is there already is found out about. */
	if (!kvmfault__tracked(memory) || memory->fill)
		return 0;
	if (memory->fd > 0)
		resident = blocks_resident(memory, memory->length);
	if (memory->fd > 0 && !resident && !memory->hugetlb)
		resident = kvmfault__sys_cached(memory->fd, memory->fd_offset,
						memory->length);
	/* A kernel before 6.5 can't be asked that way. */
	if ((!resident && !memory->hugetlb) || resident == -ENOSYS)
		resident = kvmfault__memory_resident(memory, 0,
						     memory->length);
	if (resident <= 0)
		return resident;
	kvmfault__log(memory->vm, KVMFAULT_LOG_ERROR,
		      "the memory at %p has pages already, which would never be missed and never fetched: punch a hole first, and do not preallocate",
		      memory->host);
	return -EEXIST;
}

static void memory_delete(struct kvmfault_memory *memory)
{
	if (memory->fill)
		kvmfault__sys_munmap(memory->fill, memory->length);
	kvmfault__markers_free(memory);
	kvmfault__userfault_free(memory);
	kvmfault__pages_free(memory);
	kvmfault__sys_free(memory);
}

/* In pages. What is not a whole number of pages is the source's business. */
static uint64_t window_pages(const struct kvmfault_memory *memory,
			     uint64_t length)
{
	uint64_t chunk = memory->source.chunk >> memory->page_shift;
	uint64_t most = window_most(memory->vm, kvmfault__page_size(memory)) >>
			memory->page_shift;

	if (memory->window != KVMFAULT_WINDOW_SOURCE)
		return length >> memory->page_shift;
	return !chunk ? 1 : chunk > most ? most : chunk;
}

/* Where pages are filled: nobody else's, and not registered. */
static int map_fill(struct kvmfault_memory *memory)
{
	void *fill;
	int err = kvmfault__sys_mmap(&fill, memory->length,
				     PROT_READ | PROT_WRITE, MAP_SHARED,
				     memory->fd, (off_t)memory->fd_offset);

	if (!err)
		memory->fill = fill;
	/* A child has no use for it. */
	return err ? err : kvmfault__sys_madvise(fill, memory->length,
						 MADV_DONTFORK);
}

static int memory_make(struct kvmfault_vm *vm,
		       const struct kvmfault_memory_options *o,
		       struct kvmfault_memory **memory)
{
	struct kvmfault_memory *new = kvmfault__sys_alloc(sizeof(*new), 0);
	int err = 0;

	if (!new)
		return -ENOMEM;
	new->vm = vm;
	new->length = o->length;
	new->page_shift = (unsigned int)__builtin_ctzll(o->page_size);
	new->write_protect = o->write_protect;
	new->hugetlb = o->page_size != kvmfault__sys_page_size();
	new->fd = o->fd > 0 ? o->fd : 0;
	new->fd_offset = o->fd_offset;
	new->host = o->host;
	atomic_store(&new->making, true);
	new->source_offset = o->source_offset;
	if (o->source)
		err = kvmfault__options_in(vm, "kvmfault_source", &new->source,
					   sizeof(new->source), o->source);
	if (!err && o->source)
		err = check_submit(vm, &new->source);
	if (!err)
		err = check_deadline(vm, &new->source);
	new->window = o->window;
	new->window_pages = window_pages(new, o->window_length);
	if (!err)
		err = check_source(vm, new);
	if (!err && kvmfault__tracked(new))
		err = kvmfault__pages_new(new);
	if (!err && kvmfault__tracked(new) && new->fd > 0 &&
	    vm->how.chosen == KVMFAULT_DELIVERY_MARKER_EXIT)
		err = kvmfault__markers_new(new);
	if (!err && kvmfault__tracked(new))
		err = kvmfault__userfault_new(new);
	if (!err && o->minor)
		err = map_fill(new);
	if (!err && new->source.submit)
		err = kvmfault__fetches_new(vm);
	if (err)
		memory_delete(new);
	else
		*memory = new;
	return err;
}

/* Everything of a memory that reaches outside it, undone by memory_detach(). */
static int memory_attach(struct kvmfault_memory *memory,
			 const struct kvmfault_memory_options *o)
{
	struct kvmfault_mapping *mapping;
	struct kvmfault_vm *vm = memory->vm;
	int err;

	err = kvmfault__mapping_new(memory, (uintptr_t)memory->host, o->uffd,
				    o->inherited, &mapping);
	if (err)
		return err;
	kvmfault__sys_lock(&vm->lock);
	vm->memories++;
	vm->tracked += kvmfault__tracked(memory);
	kvmfault__sys_unlock(&vm->lock);
	return 0;
}

/*
 * What is mapped by UFFDIO_CONTINUE must come protected (6.4): before, a page
 * that nobody had mapped yet could be written for a moment. Asked where nothing
 * is registered, since a kernel looks at the mode first.
 */
static int check_protect(const struct kvmfault_memory *memory)
{
	const struct kvmfault__mappings *all = atomic_load(&memory->mappings);

	if (!memory->fill || !memory->write_protect ||
	    kvmfault__uffd_install(all->mapping[0]->uffd->fd, KVMFAULT__MAP,
				   (uintptr_t)memory->fill, NULL,
				   kvmfault__page_size(memory),
				   kvmfault__page_size(memory), true) !=
	    -EINVAL)
		return 0;
	return kvmfault__refuse(memory->vm, -EOPNOTSUPP,
		OPTION "write_protect: memory with minor faults can't be write-protected by this kernel: it needs Linux 6.4");
}

static void memory_detach(struct kvmfault_memory *memory, bool guard)
{
	struct kvmfault_vm *vm = memory->vm;
	struct kvmfault__mappings *all =
		(void *)(uintptr_t)atomic_load(&memory->mappings);
	size_t i;

	/* The memslots' last: the others' sleepers are woken into it. */
	for (i = all->count; i--;)
		kvmfault__mapping_close(all->mapping[i], guard);
	kvmfault__sys_lock(&vm->lock);
	for (i = 0; i < all->count; i++)
		kvmfault__table_drop(vm, &all->mapping[i]->span);
	kvmfault__table_sweep(vm, &vm->mappings);
	kvmfault__retire(vm, all);
	kvmfault__reclaim(vm);
	vm->memories--;
	vm->tracked -= kvmfault__tracked(memory);
	kvmfault__sys_unlock(&vm->lock);
}

static void kill_mappings(struct kvmfault_memory *memory)
{
	const struct kvmfault__mappings *all = atomic_load(&memory->mappings);
	size_t i;

	for (i = 0; i < all->count; i++)
		atomic_store(&all->mapping[i]->span.dead, true);
}

static bool serves(struct kvmfault__seat *seat, void *memory)
{
	const struct kvmfault__span *span = atomic_load(&seat->span);

	return span && span->memory == memory;
}

/* In this order: who asked for a fetch has counted it before he leaves. */
static bool in_use(struct kvmfault_vm *vm, void *data)
{
	struct kvmfault_memory *memory = data;

	return kvmfault__any_seat(vm, serves, memory) ||
	       atomic_load(&memory->fetches);
}

static bool is_mapping(const struct kvmfault__mappings *all,
		       const struct kvmfault__span *span)
{
	size_t i = 0;

	while (i < all->count && &all->mapping[i]->span != span)
		i++;
	return i < all->count;
}

/* Through a region, or in one of its mappings, where it may be asleep. Who answers
 * a message there is not. */
static bool uses(struct kvmfault__seat *seat, void *data)
{
	const struct kvmfault_memory *memory = data;
	const struct kvmfault__mappings *all = atomic_load(&memory->mappings);

	return kvmfault__held(seat, KVMFAULT__HAZARD_MAPPINGS) == all ||
	       (serves(seat, data) &&
		(atomic_load(&seat->at_signal) ||
		 !is_mapping(all, atomic_load(&seat->span))));
}

/*
 * It is in no region, so nobody comes any more but by messages. Those are
 * answered as long as one who is in it yet may sleep there; then they are no
 * more. A fetch that is begun meanwhile sees that it is not to be, or is
 * cancelled here.
 */
static void close_entrances(struct kvmfault_memory *memory)
{
	struct kvmfault_vm *vm = memory->vm;

	atomic_store(&memory->closing, KVMFAULT__CLOSED_FOR_VCPUS);
	kvmfault__wake_waiters(vm);
	kvmfault__fetches_cancel(memory);
	kvmfault__drain(vm, uses, memory);
	kvmfault__sys_lock(&vm->lock);
	kill_mappings(memory);
	kvmfault__sys_unlock(&vm->lock);
	atomic_store(&memory->closing, KVMFAULT__CLOSED);
	kvmfault__fetches_cancel(memory);
}

static int memory_end(struct kvmfault_memory *memory, bool guard)
{
	struct kvmfault_vm *vm = memory->vm;
	int err;

	kvmfault__sys_lock(&vm->lock);
	err = memory->regions ? -EBUSY : 0;
	kvmfault__sys_unlock(&vm->lock);
	if (err == -EBUSY)
		return kvmfault__refuse(vm, err,
			"kvmfault_memory_free: a region shows the memory at %p: kvmfault_region_remove() first",
			memory->host);
	if (!err && kvmfault__within_memory(memory, NULL))
		err = -EDEADLK;
	if (err)
		return err;
	close_entrances(memory);
	kvmfault__drain_until(vm, in_use, memory);
	kvmfault__failures_forget_all(vm);
	memory_detach(memory, guard);
	memory_delete(memory);
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_memory_adopt(struct kvmfault_vm *vm,
			const struct kvmfault_memory_options *options,
			struct kvmfault_memory **memory)
{
	struct kvmfault_memory_options ours;
	struct kvmfault_memory *new;
	int err;

	if (!memory)
		return kvmfault__no_place(vm, "kvmfault_memory_adopt");
	*memory = NULL;
	err = kvmfault__options_in(vm, "kvmfault_memory_options", &ours,
				   sizeof(ours), options);
	if (err)
		return err;
	if (!vm)
		return -EINVAL;
	err = check(vm, &ours);
	if (!err)
		err = check_backing(vm, &ours);
	if (!err)
		err = memory_make(vm, &ours, &new);
	if (err)
		return err;
	err = memory_attach(new, &ours);
	if (err) {
		memory_delete(new);
		return err;
	}
	err = check_protect(new);
	if (!err)
		err = check_empty(new);
	if (err) {
		/* Nothing was fetched, nothing is to be guarded. */
		memory_end(new, false);
		return err;
	}
	atomic_store(&new->making, false);
	*memory = new;
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_memory_free(struct kvmfault_memory *memory)
{
	return memory ? memory_end(memory, true) : 0;
}
