/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * How a mapping is made and taken down. In: a memory, and where it is mapped. Out: the
 * range registered, and known by its address; in the end nobody can read zeros where
 * pages are absent.
 */

#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include "../os/abi.h"
#include "setup.h"

/* The list with one more, or without one. */
static struct kvmfault__mappings *
list_new(const struct kvmfault__mappings *old, struct kvmfault_mapping *add,
	 const struct kvmfault_mapping *remove)
{
	size_t i, count = old ? old->count : 0;
	struct kvmfault__mappings *new;

	new = kvmfault__sys_alloc(sizeof(*new) + (count + 1) * sizeof(void *),
				  0);
	if (!new)
		return NULL;
	for (i = 0; i < count; i++)
		if (old->mapping[i] != remove)
			new->mapping[new->count++] = old->mapping[i];
	if (add)
		new->mapping[new->count++] = add;
	return new;
}

static uint64_t modes(const struct kvmfault_memory *memory)
{
	return (memory->fill ? UFFDIO_REGISTER_MODE_MINOR : 0) |
	       (memory->write_protect ? UFFDIO_REGISTER_MODE_WP : 0);
}

/* In the list, then known by address, then registered: a message, even one for
 * what was there before, never comes from where nobody can be found and woken. */
static int publish(struct kvmfault_mapping *mapping, bool *known)
{
	struct kvmfault_memory *memory = mapping->span.memory;
	struct kvmfault_vm *vm = memory->vm;
	const struct kvmfault__mappings *old = atomic_load(&memory->mappings);
	struct kvmfault__mappings *new = list_new(old, mapping, NULL);
	struct kvmfault__span *span = &mapping->span;
	size_t one = 1;
	uint64_t ioctls;
	void *table;
	int err;

	if (!new)
		return -ENOMEM;
	err = kvmfault__table_copy(vm, &vm->mappings, &span, &one, &table);
	if (err) {
		kvmfault__sys_free(new);
		return err;
	}
	mapping->memslots = !old;
	if (!old)
		memory->uffd = mapping->uffd;
	*known = true;		/* from here on it is retired, not freed */
	atomic_store(&memory->mappings, new);
	kvmfault__table_put(vm, &vm->mappings, table);
	if (mapping->uffd)
		err = kvmfault__uffd_register(mapping->uffd->fd, mapping->host,
					      memory->length, modes(memory),
					      &ioctls);
	if (!err) {
		if (mapping->uffd)
			atomic_store(&mapping->ioctls, ioctls);
		kvmfault__retire(vm, old);
		kvmfault__reclaim(vm);
		return 0;
	}
	atomic_store(&memory->mappings, old);
	kvmfault__retire(vm, new);
	atomic_store(&mapping->span.dead, true);
	kvmfault__table_drop(vm, &mapping->span);
	kvmfault__table_sweep(vm, &vm->mappings);
	return err;
}

/* What was asked for is right by itself: it is this kernel that can't, with
 * this kind of memory. */
static int explain(const struct kvmfault_memory *memory, uint64_t host,
		   bool local, int err)
{
	const char *more = "";
	unsigned char vec;

	if (err == -EBUSY)
		return kvmfault__refuse(memory->vm, err,
			"the memory at %#llx is registered with another userfaultfd: give that one as uffd, or unregister it there",
			(unsigned long long)host);
	if (err == -EEXIST)
		return kvmfault__refuse(memory->vm, err,
			"another memory or mapping of this context has a part of the range at %#llx",
			(unsigned long long)host);
	if (err == -ENOMEM)
		return kvmfault__refuse(memory->vm, err,
			"no room to keep track of the memory at %#llx, or it is not mapped as a whole",
			(unsigned long long)host);
	if (err != -EINVAL)
		return err;
	/* It says the same where nothing is mapped, but something behind it. */
	if (local && kvmfault__sys_mincore((void *)(uintptr_t)host,
					   kvmfault__sys_page_size(), &vec) ==
	    -ENOMEM)
		return kvmfault__refuse(memory->vm, -ENOMEM,
			"nothing is mapped at %#llx",
			(unsigned long long)host);
	if (memory->fill)
		more = "; and for minor faults Linux 5.13, of a memfd 5.14";
	if (memory->write_protect)
		more = memory->fill ?
			"; and for minor faults that can be protected Linux 6.4" :
			"; and to write-protect a file Linux 5.19";
	return kvmfault__refuse(memory->vm, -EOPNOTSUPP,
		"this kernel's userfaultfd does not take the memory at %#llx: it needs anonymous memory, a memfd or a hugetlbfs file that is mapped there as a whole (not a guest_memfd)%s",
		(unsigned long long)host, more);
}

/* A seat that came before the list was replaced. */
static bool uses_old_list(struct kvmfault__seat *seat, void *vm)
{
	return kvmfault__retired(vm, kvmfault__held(seat, KVMFAULT__HAZARD_MAPPINGS));
}

static bool serves(struct kvmfault__seat *seat, void *mapping)
{
	return atomic_load(&seat->span) == mapping;
}

static int mapping_make(struct kvmfault_memory *memory, uint64_t host,
			struct kvmfault_uffd *uffd,
			struct kvmfault_mapping **mapping)
{
	uint32_t space = uffd ? uffd->space : 0;
	struct kvmfault_mapping *new;
	bool known = false;
	int err;

	new = kvmfault__sys_alloc(sizeof(*new), 0);
	if (!new)
		return -ENOMEM;
	new->span.memory = memory;
	new->span.first = kvmfault__key(space, host);
	new->span.last = kvmfault__key(space, host + memory->length - 1);
	new->host = host;
	new->span.uffd = uffd;
	new->uffd = uffd;
	kvmfault__sys_lock(&memory->vm->lock);
	err = publish(new, &known);
	if (!err && uffd)
		uffd->users++;
	kvmfault__sys_unlock(&memory->vm->lock);
	if (!err) {
		*mapping = new;
		return 0;
	}
	/* Who has seen it in the list may use the userfaultfd yet. */
	if (known) {
		kvmfault__drain(memory->vm, uses_old_list, memory->vm);
		kvmfault__drain(memory->vm, serves, new);
	} else {
		kvmfault__sys_free(new);
	}
	return err;
}

/* Of minor faults a page table tells nobody: what is in one already would be seen
 * as it is. */
static int forget_pages(const struct kvmfault_memory *memory, void *host,
			const struct kvmfault_uffd *uffd)
{
	int err = kvmfault__take_away(uffd, host, memory->length, MADV_DONTNEED);

	if (err == -EINVAL)
		err = kvmfault__take_away(uffd, host, memory->length,
					  KVMFAULT__MADV_DONTNEED_LOCKED);
	if (err == -EINVAL)
		return kvmfault__refuse(memory->vm, -EOPNOTSUPP,
			      "the memory at %p may have pages in page tables, which would show what was there before, and this kernel does not take them out of memory that is locked or huge: do not lock it, or use Linux 5.18",
			      host);
	return err;
}

static int overlaps(struct kvmfault__span *span, void *other)
{
	const struct kvmfault__span *its = other;

	return span->first <= its->last && its->first <= span->last ?
		-EEXIST : 0;
}

/* Before anything is done to what is there. */
static int check_free(const struct kvmfault_memory *memory, uint64_t host,
		      const struct kvmfault_uffd *uffd)
{
	struct kvmfault__span span = {
		.first = kvmfault__key(uffd ? uffd->space : 0, host),
		.last = kvmfault__key(uffd ? uffd->space : 0,
				      host + memory->length - 1),
	};
	struct kvmfault_vm *vm = memory->vm;
	int err;

	kvmfault__sys_lock(&vm->lock);
	err = kvmfault__table_each(&vm->mappings, overlaps, &span);
	kvmfault__sys_unlock(&vm->lock);
	return err;
}

/* In this process. A child's mapping is not registered: it would read zeros out of
 * what is absent, and have them come into the file. */
static int prepare(const struct kvmfault_memory *memory, void *host,
		   const struct kvmfault_uffd *uffd, bool inherited)
{
	int err = memory->fill ? forget_pages(memory, host, uffd) : 0;

	return err || inherited ? err :
		kvmfault__sys_madvise(host, memory->length, MADV_DONTFORK);
}

int kvmfault__mapping_new(struct kvmfault_memory *memory, uint64_t host,
			  struct kvmfault_uffd *uffd, bool inherited,
			  struct kvmfault_mapping **mapping)
{
	bool own = kvmfault__tracked(memory) && !uffd;
	bool local = own || !uffd || !uffd->space;
	int err = check_free(memory, host, uffd);

	if (err)
		return explain(memory, host, local, err);
	if (local)
		err = kvmfault__maps_check(memory, host);
	if (!err && kvmfault__tracked(memory) && local)
		err = prepare(memory, (void *)(uintptr_t)host, uffd, inherited);
	if (err)
		return err;
	if (own) {
		err = kvmfault_uffd_new(memory->vm, NULL, &uffd);
		if (err)
			return err;
		uffd->own = true;
	}
	err = mapping_make(memory, host, uffd, mapping);
	if (err && own)
		kvmfault_uffd_free(uffd);
	return err ? explain(memory, host, local, err) : 0;
}

static bool may_be_read(const struct kvmfault_memory *memory, uint64_t page)
{
	enum kvmfault__state state = kvmfault__page_state(memory, page);

	return state == KVMFAULT__PRESENT || state == KVMFAULT__DISCARDED;
}

/* Another process's memory can't be protected from here; its absent pages can
 * be made to kill who touches them. */
static int poison_absent(struct kvmfault_mapping *mapping)
{
	const struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t page = 0, end, pages = memory->length >> memory->page_shift;
	int err = 0;

	for (; page < pages && !err; page = end + 1) {
		for (end = page; end < pages && !may_be_read(memory, end);)
			end++;
		if (end > page)
			err = kvmfault__poison_run(mapping,
				page << memory->page_shift,
				(end - page) << memory->page_shift);
	}
	return err;
}

/* Has it a hole? Of all the advice this is what changes nothing: what is
 * registered does not go to a child. */
static bool unmapped(char *host, uint64_t length)
{
	return kvmfault__sys_madvise(host, length, MADV_DONTFORK) == -ENOMEM;
}

/* What is not mapped any more can't be read. The same errno says that there are
 * too many mappings. */
static int protect(char *host, uint64_t length, uint64_t page)
{
	uint64_t half = length / 2 & -page;
	int err = kvmfault__sys_mprotect(host, length, PROT_NONE);

	if (err != -ENOMEM || !unmapped(host, length))
		return err;
	if (!half)
		return 0;
	err = protect(host, half, page);
	return err ? err : protect(host + half, length - half, page);
}

/* Nobody may read zeros where pages are still absent. */
static int fail_closed(struct kvmfault_mapping *mapping)
{
	struct kvmfault_memory *memory = mapping->span.memory;
	int err;

	if (!kvmfault__pages_absent(memory))
		return 0;
	err = mapping->uffd->space ? poison_absent(mapping) :
		protect((char *)(uintptr_t)mapping->host, memory->length,
			kvmfault__page_size(memory));
	if (err)
		kvmfault__log(memory->vm, KVMFAULT_LOG_WARNING,
			      "absent pages at %#llx could not be protected (error %d): they stay registered; end their users before the userfaultfd is freed",
			      (unsigned long long)mapping->host, -err);
	return err;
}

void kvmfault__mapping_close(struct kvmfault_mapping *mapping, bool guard)
{
	struct kvmfault_memory *memory = mapping->span.memory;
	struct kvmfault_uffd *uffd = mapping->uffd;
	int err;

	if (!uffd)
		return;
	err = guard ? fail_closed(mapping) : 0;
	if (!err)
		kvmfault__uffd_unregister(uffd->fd, mapping->host,
					  memory->length);
	kvmfault__sys_lock(&memory->vm->lock);
	uffd->users--;
	kvmfault__sys_unlock(&memory->vm->lock);
	if (uffd->own)
		kvmfault__uffd_end(uffd, err);
}

/* Under the lock: the list without it. */
static int unlist(struct kvmfault_mapping *mapping)
{
	struct kvmfault_memory *memory = mapping->span.memory;
	const struct kvmfault__mappings *old = atomic_load(&memory->mappings);
	struct kvmfault__mappings *new;

	new = list_new(old, NULL, mapping);
	if (!new)
		return -ENOMEM;
	atomic_store(&memory->mappings, new);
	kvmfault__retire(memory->vm, old);
	kvmfault__reclaim(memory->vm);
	return 0;
}

/* The library uses it no more, and who touches it for the library is answered until
 * he is done; then nobody finds it, and it is closed. A fault of it that is in
 * progress may take its time: it has the mapping and its userfaultfd until it ends. */
static int mapping_end(struct kvmfault_mapping *mapping, bool guard)
{
	struct kvmfault_vm *vm = mapping->span.memory->vm;
	int err;

	if (mapping->memslots)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_mapping_remove: the one at %#llx is the memslots': it goes with its memory",
			(unsigned long long)mapping->host);
	kvmfault__sys_lock(&vm->lock);
	err = unlist(mapping);
	kvmfault__sys_unlock(&vm->lock);
	if (err)
		return err;
	kvmfault__drain(vm, uses_old_list, vm);
	kvmfault__sys_lock(&vm->lock);
	atomic_store(&mapping->span.dead, true);
	kvmfault__sys_unlock(&vm->lock);
	kvmfault__mapping_close(mapping, guard);
	kvmfault__sys_lock(&vm->lock);
	kvmfault__table_drop(vm, &mapping->span);
	kvmfault__table_sweep(vm, &vm->mappings);
	kvmfault__sys_unlock(&vm->lock);
	return 0;
}

/* What was protected before the mapping was known is protected there too. */
static int protect_too(struct kvmfault_mapping *mapping)
{
	struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t page = 0, end, pages = memory->length >> memory->page_shift;
	uint64_t size = kvmfault__page_size(memory);
	int err = 0;

	for (; page < pages && !err; page = end + 1) {
		for (end = page; end < pages &&
		     kvmfault__page_protected(memory, end);)
			end++;
		if (end > page)
			err = kvmfault__uffd_protect(mapping->uffd->fd,
						     mapping->host +
						     page * size,
						     (end - page) * size, size,
						     true);
	}
	return err == -ESRCH ? 0 : err;
}

static int check_mapping(const struct kvmfault_memory *memory,
			 const struct kvmfault_mapping_options *o)
{
	struct kvmfault_vm *vm = memory->vm;

	if (memory->fd <= 0)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_mapping_add: the memory at %p is anonymous, and so has one mapping",
			memory->host);
	if (!o->host || o->host & (kvmfault__page_size(memory) - 1) ||
	    o->host + memory->length < o->host)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_mapping_options.host: %#llx is 0, or no multiple of the page size, %#llx, or the memory's end is past the end of all",
			(unsigned long long)o->host,
			(unsigned long long)kvmfault__page_size(memory));
	if (o->uffd && o->uffd->vm != vm)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_mapping_options.uffd: it is of another context");
	if (o->uffd && !kvmfault__tracked(memory))
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_mapping_options.uffd: the memory at %p has no source: leave it out",
			memory->host);
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_mapping_add(struct kvmfault_memory *memory,
			 const struct kvmfault_mapping_options *options,
			 struct kvmfault_mapping **mapping)
{
	struct kvmfault_mapping_options ours;
	int err;

	if (!mapping)
		return kvmfault__no_place(memory ? memory->vm : NULL, "kvmfault_mapping_add");
	*mapping = NULL;
	err = kvmfault__options_in(memory ? memory->vm : NULL,
				   "kvmfault_mapping_options", &ours,
				   sizeof(ours), options);
	if (!err)
		err = memory ? check_mapping(memory, &ours) : -EINVAL;
	if (err)
		return err;
	err = kvmfault__mapping_new(memory, ours.host, ours.uffd,
				    ours.inherited, mapping);
	if (err || !memory->write_protect)
		return err;
	err = protect_too(*mapping);
	if (!err)
		return 0;
	/* As it was before: nobody was to read zeros there then either. */
	mapping_end(*mapping, false);
	*mapping = NULL;
	return err;
}

KVMFAULT__EXPORT
int kvmfault_mapping_remove(struct kvmfault_mapping *mapping)
{
	return mapping ? mapping_end(mapping, true) : 0;
}
