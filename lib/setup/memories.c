/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Set-up: memories, each a backing and the states of its pages. In: where the
 * backing is mapped, and the source that its pages come from. Out: a memory
 * that regions show and in which faults are resolved. From a memory's first
 * moment to its last, no thread can read a page that was not fetched.
 */

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "setup.h"

#define WINDOW (64ULL << 10)

/* A window is at most as long as a seat's scratch memory, or is one page. */
static uint64_t memory_window_max(const struct kvmfault_vm *vm,
				  uint64_t page_size)
{
	uint64_t most = vm->options.page_size_max;

	return most > page_size ? most : page_size;
}

#define ULL(n) ((unsigned long long)(n))
#define OPTION "kvmfault_memory_options."

static int memory_check_page_size(struct kvmfault_vm *vm,
				  struct kvmfault_memory_options *o)
{
	uint64_t size;

	if (!o->page_size)
		o->page_size = kvmfault__sys_page_size();
	size = o->page_size;
	if (size & (size - 1) || size < kvmfault__sys_page_size())
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "page_size: %#llx is not a power of two, or is smaller than the host's page",
			ULL(size));
	/* A page that is copied needs room in scratch memory. */
	if (!o->minor && size > vm->options.page_size_max)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "page_size: %#llx is more than the context's page_size_max, %#llx: make page_size_max larger, or set minor",
			ULL(size), ULL(vm->options.page_size_max));
	return 0;
}

static bool memory_is_remote(const struct kvmfault_memory_options *o)
{
	return o->uffd && o->uffd->space;
}

static bool memory_outlives_us(const struct kvmfault_memory_options *o)
{
	return o->fd > 0 || memory_is_remote(o);
}

static int memory_check_needs(struct kvmfault_vm *vm,
			      const struct kvmfault_memory_options *o)
{
	if (o->minor && o->fd <= 0)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "minor: fd is not set: minor faults need a memfd or a hugetlbfs file");
	if ((o->minor || o->write_protect) && !o->source)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "%s: source is not set: set one (kvmfault_source_zero() will do)",
			o->minor ? "minor" : "write_protect");
	if (o->states_fd && (!memory_outlives_us(o) || !o->source))
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "states_fd: %s is not set, and only a file's pages outlive this process, and only a source leaves pages absent: set fd and source, or no states_fd",
			o->source ? "fd" : "source");
	/* In registered memory without a source a thread would sleep, and the
	 * VMM would not learn why. */
	if (o->uffd && !o->source)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "uffd: source is not set, and memory without a source is not registered: set source, or leave uffd NULL");
	if (o->uffd && o->uffd->vm != vm)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "uffd: the userfaultfd belongs to another context: pass one of this context");
	return 0;
}

static int memory_check_range(struct kvmfault_vm *vm, const char *member,
			      uint64_t start, uint64_t length, uint64_t align)
{
	if ((start | length) & (align - 1))
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "%s, length: %#llx, %#llx are not multiples of the page size, %#llx",
			member, ULL(start), ULL(length), ULL(align));
	if (start + length < length)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "%s, length: %#llx and %#llx together exceed 64 bits",
			member, ULL(start), ULL(length));
	return 0;
}

static int memory_check_ranges(struct kvmfault_vm *vm,
			       const struct kvmfault_memory_options *o)
{
	int err;

	if (!o->host || !o->length)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "%s: the member is not set",
			o->host ? "length" : "host");
	err = memory_check_range(vm, "host", (uintptr_t)o->host, o->length,
				 o->page_size);
	if (!err)
		err = memory_check_range(vm, "fd_offset", o->fd_offset, o->length,
					 o->page_size);
	if (!err)
		err = memory_check_range(vm, "source_offset", o->source_offset,
					 o->length, 1);
	return err;
}

static int memory_check_window(struct kvmfault_vm *vm,
			       struct kvmfault_memory_options *o)
{
	uint64_t size = o->page_size, most = memory_window_max(vm, size);

	if (o->window > KVMFAULT_WINDOW_SOURCE)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "window: %u is not a window that this version knows",
			(unsigned int)o->window);
	if (!o->window_length) {
		o->window_length = size > WINDOW ? size : WINDOW;
		if (o->window_length > most)
			o->window_length = most;
	}
	if (o->window_length & (size - 1) || o->window_length > most)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "window_length: %#llx is not a multiple of the page size, %#llx, or is more than %#llx",
			ULL(o->window_length), ULL(size), ULL(most));
	return 0;
}

static int memory_check_options(struct kvmfault_vm *vm,
				struct kvmfault_memory_options *o)
{
	int err = memory_check_page_size(vm, o);

	if (!err)
		err = memory_check_needs(vm, o);
	if (!err)
		err = memory_check_ranges(vm, o);
	if (!err)
		err = memory_check_window(vm, o);
	return err;
}

static int memory_check_submit(struct kvmfault_vm *vm,
			       const struct kvmfault_source *source)
{
	if (source->read || source->submit)
		return 0;
	return kvmfault__refuse(vm, -EINVAL,
		"kvmfault_source: neither read nor submit is set: set one of them");
}

static int memory_check_file(struct kvmfault_vm *vm,
			     const struct kvmfault_memory_options *o,
			     uint64_t *page_size)
{
	struct statfs fs;
	struct stat stat;
	int err = kvmfault__sys_getfl(o->fd);

	/* The library could neither punch holes in such a file nor map it. */
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
		OPTION "fd: the file behind the memory is too short: the file has %llu bytes of %llu; set the file's size with ftruncate() first",
		ULL(stat.st_size), ULL(o->fd_offset + o->length));
}

/* The kernel installs a page of the backing as a whole, so the memory's pages
 * have to be of the same size. Another process's can't be asked about; there
 * the kernel refuses to register a part of a huge page. */
static int memory_check_backing(struct kvmfault_vm *vm,
				const struct kvmfault_memory_options *o)
{
	uint64_t real = kvmfault__sys_page_size();
	int err = o->fd > 0 ? memory_check_file(vm, o, &real) : 0;

	if (err || o->page_size == real ||
	    (o->fd <= 0 && memory_is_remote(o)))
		return err;
	return kvmfault__refuse(vm, -EINVAL,
		OPTION "page_size: the memory has pages of %llu bytes: set page_size to that (huge pages need a hugetlbfs file)",
		ULL(real));
}

static int memory_check_source(struct kvmfault_vm *vm,
			       const struct kvmfault_memory *memory)
{
	uint64_t needed = memory->source_offset + memory->length;

	if (!kvmfault__tracked(memory) ||
	    kvmfault__source_reaches(&memory->source, needed))
		return 0;
	return kvmfault__refuse(vm, -ENODATA,
		"the source is shorter than the memory: the source, or its file, does not have all of %llu bytes; make the memory smaller or the source longer",
		ULL(needed));
}

/* A deadline needs a way to end the fetch, which only cancel() is. */
static int memory_check_deadline(struct kvmfault_vm *vm,
				 const struct kvmfault_source *source)
{
	if (!source->deadline_ms || (source->submit && source->cancel))
		return 0;
	return kvmfault__refuse(vm, -EINVAL,
		"kvmfault_source.deadline_ms: the library can't end a fetch that takes longer than %u ms: set submit and cancel, too",
		source->deadline_ms);
}

/*
 * Returns 1 if the file has more blocks than there is room for outside the
 * memory's range. For a hugetlbfs file there is no other way, since SEEK_DATA
 * sees data everywhere there; in a memfd this finds preallocated pages, which
 * are no data and never missed.
 */
static int memory_file_has_blocks(const struct kvmfault_memory *memory,
				  uint64_t length)
{
	struct stat stat;
	int err = kvmfault__sys_fstat(memory->fd, &stat);

	if (err)
		return err;
	return (uint64_t)stat.st_blocks * 512 + length >
	       (uint64_t)stat.st_size;
}

/* Called after the memory was registered: from then on no page comes unseen. */
static int memory_check_empty(struct kvmfault_memory *memory)
{
	int resident = 0;

	/* With minor faults the library finds out which pages the file has. */
	if (!kvmfault__tracked(memory) || memory->fill ||
	    kvmfault__out_of_reach(memory))
		return 0;
	if (memory->fd > 0)
		resident = memory_file_has_blocks(memory, memory->length);
	if (memory->fd > 0 && !resident && !memory->hugetlb)
		resident = kvmfault__sys_cached(memory->fd, memory->fd_offset,
						memory->length);
	/* A kernel before 6.5 can't tell what is in the page cache. */
	if ((!resident && !memory->hugetlb) || resident == -ENOSYS)
		resident = kvmfault__memory_resident(memory, 0,
						     memory->length);
	if (resident <= 0)
		return resident;
	kvmfault__log(memory->vm, KVMFAULT_LOG_ERROR,
		      "the memory at %p has pages already, which would never be missed and never fetched: punch a hole in the backing first, and do not preallocate",
		      memory->host);
	return -EEXIST;
}

/* Of a memory that was taken up: a preallocated page is no data, so import.c
 * has not seen it. */
static int memory_check_rest_empty(struct kvmfault_memory *memory)
{
	struct kvmfault_memory_counts counts = { 0 };
	int more;

	if (memory->fill || kvmfault__out_of_reach(memory))
		return 0;
	kvmfault__pages_count(memory, 0, memory->length >> memory->page_shift,
			      &counts);
	more = memory_file_has_blocks(memory, memory->length -
				      (counts.present << memory->page_shift));
	return more <= 0 ? more : kvmfault__refuse(memory->vm, -EEXIST,
		OPTION "states_fd: fd has more pages than the states call present, which would never be missed and never fetched: do not preallocate");
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

/* In pages. If a source's chunk is not a whole number of pages, the source has
 * to cope with the rest. */
static uint64_t memory_window_pages(const struct kvmfault_memory *memory,
				    uint64_t length)
{
	uint64_t chunk = memory->source.chunk >> memory->page_shift;
	uint64_t most = memory_window_max(memory->vm,
					  kvmfault__page_size(memory)) >>
			memory->page_shift;

	if (memory->window != KVMFAULT_WINDOW_SOURCE)
		return length >> memory->page_shift;
	return !chunk ? 1 : chunk > most ? most : chunk;
}

/* The mapping in which the library fills pages: it is not registered, and
 * belongs to the library alone. */
static int memory_map_fill(struct kvmfault_memory *memory)
{
	void *fill;
	int err = kvmfault__sys_mmap(&fill, memory->length,
				     PROT_READ | PROT_WRITE, MAP_SHARED,
				     memory->fd, (off_t)memory->fd_offset);

	if (!err)
		memory->fill = fill;
	/* A child has no use for this mapping. */
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
	new->remote = memory_is_remote(o);
	atomic_store(&new->making, true);
	new->source_offset = o->source_offset;
	if (o->source)
		err = kvmfault__options_in(vm, "kvmfault_source", &new->source,
					   sizeof(new->source), o->source);
	if (!err && o->source)
		err = memory_check_submit(vm, &new->source);
	atomic_store(&new->tracked, o->source);
	if (!err)
		err = memory_check_deadline(vm, &new->source);
	new->window = o->window;
	new->window_pages = memory_window_pages(new, o->window_length);
	if (!err)
		err = memory_check_source(vm, new);
	if (!err && kvmfault__tracked(new))
		err = o->states_fd ? kvmfault__states_map(new, o) :
					 kvmfault__pages_new(new);
	if (!err && kvmfault__tracked(new) && new->fd > 0 && !new->remote &&
	    vm->how.chosen == KVMFAULT_DELIVERY_MARKER_EXIT)
		err = kvmfault__markers_new(new);
	if (!err && kvmfault__tracked(new))
		err = kvmfault__userfault_new(new);
	if (!err && o->minor)
		err = memory_map_fill(new);
	if (!err && new->source.submit)
		err = kvmfault__fetches_new(vm);
	if (err)
		memory_delete(new);
	else
		*memory = new;
	return err;
}

/* All of a memory that reaches outside it; memory_detach() undoes this. */
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
 * UFFDIO_CONTINUE has to map a page write-protected, which kernels do since
 * 6.4: otherwise a page that is in no page table yet could be written for a
 * moment. This asks where nothing is registered, since a kernel looks at the
 * mode first and answers -EINVAL.
 */
static int memory_check_write_protect(const struct kvmfault_memory *memory)
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
		OPTION "write_protect: this kernel can't write-protect memory with minor faults: use Linux 6.4 or later");
}

static void memory_detach(struct kvmfault_memory *memory, bool guard)
{
	struct kvmfault_vm *vm = memory->vm;
	struct kvmfault__mappings *all =
		(void *)(uintptr_t)atomic_load(&memory->mappings);
	size_t i;

	/* To close a mapping wakes its sleepers. The memslots' mapping, which
	 * is the first, stays registered until the others' sleepers are up. */
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

static void memory_kill_mappings(struct kvmfault_memory *memory)
{
	const struct kvmfault__mappings *all = atomic_load(&memory->mappings);
	size_t i;

	for (i = 0; i < all->count; i++)
		atomic_store(&all->mapping[i]->span.dead, true);
}

static bool memory_is_held_by_seat(struct kvmfault__seat *seat, void *memory)
{
	const struct kvmfault__span *span = atomic_load(&seat->span);

	return span && span->memory == memory;
}

/* The seats are looked at first: a thread that asked for a fetch has counted
 * that fetch before it leaves its seat's span. */
static bool memory_is_in_use(struct kvmfault_vm *vm, void *data)
{
	struct kvmfault_memory *memory = data;

	return kvmfault__any_seat(vm, memory_is_held_by_seat, memory) ||
	       atomic_load(&memory->fetches);
}

static bool memory_has_mapping_span(const struct kvmfault__mappings *all,
				    const struct kvmfault__span *span)
{
	size_t i = 0;

	while (i < all->count && &all->mapping[i]->span != span)
		i++;
	return i < all->count;
}

/* True if the seat's thread came through a region, or may sleep in one of the
 * mappings. A thread that answers a message of a mapping does not sleep
 * there. */
static bool memory_is_used_by_seat(struct kvmfault__seat *seat, void *data)
{
	const struct kvmfault_memory *memory = data;
	const struct kvmfault__mappings *all = atomic_load(&memory->mappings);

	return kvmfault__held(seat, KVMFAULT__HAZARD_MAPPINGS) == all ||
	       (memory_is_held_by_seat(seat, data) &&
		(atomic_load(&seat->at_signal) ||
		 !memory_has_mapping_span(all, atomic_load(&seat->span))));
}

/*
 * No region shows the memory, so only messages still reach it; they are
 * answered until no thread of the library can sleep there any more. A fetch
 * that begins meanwhile sees memory->closing, or is cancelled here.
 */
static void memory_close_to_faults(struct kvmfault_memory *memory)
{
	struct kvmfault_vm *vm = memory->vm;

	atomic_store(&memory->closing, KVMFAULT__CLOSED_FOR_VCPUS);
	kvmfault__wake_waiters(vm);
	kvmfault__fetches_cancel(memory);
	kvmfault__drain_sleepers(vm, memory_is_used_by_seat, memory);
	kvmfault__sys_lock(&vm->lock);
	memory_kill_mappings(memory);
	kvmfault__sys_unlock(&vm->lock);
	atomic_store(&memory->closing, KVMFAULT__CLOSED);
	kvmfault__fetches_cancel(memory);
}

int kvmfault__memories_check(struct kvmfault_vm *vm, const char *option,
			     struct kvmfault_memory *const *memories,
			     uint32_t count)
{
	uint32_t i, j;

	for (i = 0; i < count; i++) {
		if (!memories[i] || memories[i]->vm != vm)
			return kvmfault__refuse(vm, -EINVAL,
				"%s.memories: number %u is %s", option, i,
				memories[i] ?
				"of another context: pass it to a call there" :
				"NULL: pass a memory");
		for (j = 0; j < i; j++)
			if (memories[j] == memories[i])
				return kvmfault__refuse(vm, -EINVAL,
					"%s.memories: number %u and %u are the same: pass each once",
					option, j, i);
	}
	return 0;
}

static int memory_check_unused(struct kvmfault_memory *memory)
{
	struct kvmfault_vm *vm = memory->vm;
	const char *user = NULL;

	kvmfault__sys_lock(&vm->lock);
	if (memory->regions)
		user = "is shown by a region: call kvmfault_region_remove() first";
	else if (memory->fills)
		user = "is filled: call kvmfault_fill_free() first";
	else if (atomic_load(&memory->recording))
		user = "is recorded: call kvmfault_recording_end() first";
	kvmfault__sys_unlock(&vm->lock);
	return user ? kvmfault__refuse(vm, -EBUSY,
		"kvmfault_memory_free: the memory at %p %s", memory->host,
		user) : 0;
}

static int memory_end(struct kvmfault_memory *memory, bool guard)
{
	struct kvmfault_vm *vm = memory->vm;
	int err;

	err = memory_check_unused(memory);
	if (!err && kvmfault__within_memory(memory, NULL))
		err = -EDEADLK;
	if (err)
		return err;
	memory_close_to_faults(memory);
	kvmfault__drain_until(vm, memory_is_in_use, memory);
	kvmfault__failures_forget_all(vm);
	memory_detach(memory, guard);
	memory_delete(memory);
	return 0;
}

/* A memory that was settled needs nothing of the library any more. */
static int memory_look_at_states(struct kvmfault_vm *vm,
				 struct kvmfault_memory_options *o,
				 enum kvmfault__states *left)
{
	int err = o->states_fd ? kvmfault__states_look(vm, o, left) : 0;

	if (!err && *left == KVMFAULT__STATES_SETTLED) {
		o->source = NULL;
		o->uffd = memory_is_remote(o) ? o->uffd : NULL;
		o->minor = false;
		o->write_protect = false;
	}
	return err;
}

/* From here on no page comes unseen. */
static int memory_begin(struct kvmfault_memory *memory,
			const struct kvmfault_memory_options *o,
			enum kvmfault__states left)
{
	int err = memory_check_write_protect(memory);

	if (!err)
		err = left == KVMFAULT__STATES_LEFT ?
			kvmfault__import(memory) : memory_check_empty(memory);
	if (!err && left == KVMFAULT__STATES_LEFT)
		err = memory_check_rest_empty(memory);
	if (!err && memory->states_file && left == KVMFAULT__STATES_NEW)
		err = kvmfault__states_begin(memory, o);
	return err;
}

KVMFAULT__EXPORT
int kvmfault_memory_adopt(struct kvmfault_vm *vm,
			const struct kvmfault_memory_options *options,
			struct kvmfault_memory **memory)
{
	enum kvmfault__states left = KVMFAULT__STATES_NEW;
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
	err = memory_check_options(vm, &ours);
	if (!err)
		err = memory_check_backing(vm, &ours);
	if (!err)
		err = memory_look_at_states(vm, &ours, &left);
	if (!err)
		err = memory_make(vm, &ours, &new);
	if (err)
		return err;
	new->was_settled = left == KVMFAULT__STATES_SETTLED;
	err = memory_attach(new, &ours);
	if (err) {
		memory_delete(new);
		return err;
	}
	err = memory_begin(new, &ours, left);
	if (err) {
		/* No guard: no page has come in this process yet. */
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
	return memory && !kvmfault__is_child(memory->vm) ?
	       memory_end(memory, true) : 0;
}
