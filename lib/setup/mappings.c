/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Set-up: how a mapping is made and taken down. In: a memory, and the address
 * at which it is mapped. Out: a range that is registered, and that a lookup by
 * address finds. When the VMM ends a mapping or its memory, no thread can read
 * zeros afterwards where pages are absent.
 */

#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include "../os/abi.h"
#include "setup.h"

/* A copy of the list with `add` and without `remove`; each of them may be
 * NULL. */
static struct kvmfault__mappings *
mapping_list_new(const struct kvmfault__mappings *old,
		 struct kvmfault_mapping *add,
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

static uint64_t mapping_register_modes(const struct kvmfault_memory *memory)
{
	return (memory->fill ? UFFDIO_REGISTER_MODE_MINOR : 0) |
	       (memory->write_protect ? UFFDIO_REGISTER_MODE_WP : 0);
}

/* An owner before this one, or the other process itself, may have registered
 * the range with the same userfaultfd, and for protection, too: Linux 7.3 takes
 * no mode away. */
static int mapping_register(const struct kvmfault_mapping *mapping,
			    uint64_t *ioctls)
{
	const struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t modes = mapping_register_modes(memory);
	int err = kvmfault__uffd_register(mapping->uffd->fd, mapping->host,
					  memory->length, modes, ioctls);

	if (err == -EBUSY && !memory->write_protect &&
	    (memory->states_file || memory->remote))
		err = kvmfault__uffd_register(mapping->uffd->fd, mapping->host,
					      memory->length, modes |
					      UFFDIO_REGISTER_MODE_WP, ioctls);
	return err;
}

/* Under the VM's lock. The mapping is registered last: when a message comes,
 * even one for what was mapped there before, a lookup finds a mapping to
 * wake. */
static int mapping_publish(struct kvmfault_mapping *mapping, bool *known)
{
	struct kvmfault_memory *memory = mapping->span.memory;
	struct kvmfault_vm *vm = memory->vm;
	const struct kvmfault__mappings *old = atomic_load(&memory->mappings);
	struct kvmfault__mappings *new = mapping_list_new(old, mapping, NULL);
	struct kvmfault__span *span = &mapping->span;
	size_t one = 1;
	uint64_t ioctls = 0;
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
	if (mapping->uffd && kvmfault__tracked(memory))
		err = mapping_register(mapping, &ioctls);
	if (!err) {
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

/* The arguments were checked before, so -EINVAL means that this kernel can't
 * register this kind of memory, or that nothing is mapped there. */
static int mapping_explain_error(const struct kvmfault_memory *memory,
				 uint64_t host, bool local, int err)
{
	const char *more = "";
	unsigned char vec;

	if (err == -EBUSY)
		return kvmfault__refuse(memory->vm, err,
			"the memory at %#llx is registered with another userfaultfd: pass that userfaultfd as uffd, or unregister the range there",
			(unsigned long long)host);
	if (err == -EEXIST)
		return kvmfault__refuse(memory->vm, err,
			"the range at %#llx overlaps another memory or mapping of this context: free that one first",
			(unsigned long long)host);
	if (err == -ENOMEM)
		return kvmfault__refuse(memory->vm, err,
			"the memory at %#llx is not mapped as a whole%s, or there is no room to keep track of the memory",
			(unsigned long long)host,
			local ? "" : ", or its process is gone");
	if (err != -EINVAL)
		return err;
	/* The kernel returns -EINVAL, too, if nothing is mapped at host and
	 * something is mapped behind it. */
	if (local && kvmfault__sys_mincore((void *)(uintptr_t)host,
					   kvmfault__sys_page_size(), &vec) ==
	    -ENOMEM)
		return kvmfault__refuse(memory->vm, -ENOMEM,
			"nothing is mapped at %#llx: map the memory there first",
			(unsigned long long)host);
	if (kvmfault__out_of_reach(memory))
		more = "; in that process something else may be mapped there, or pages that are larger than page_size";
	if (memory->fill)
		more = "; minor faults need Linux 5.13, and with a memfd Linux 5.14";
	if (memory->write_protect)
		more = memory->fill ?
			"; write protection with minor faults needs Linux 6.4" :
			"; write protection of a file needs Linux 5.19";
	return kvmfault__refuse(memory->vm, -EOPNOTSUPP,
		"this kernel's userfaultfd does not take the memory at %#llx: map anonymous memory, a memfd or a hugetlbfs file there as a whole (not a guest_memfd)%s",
		(unsigned long long)host, more);
}

/* True if the seat holds a memory's list of mappings that has been replaced. */
static bool mapping_seat_has_old_list(struct kvmfault__seat *seat, void *vm)
{
	return kvmfault__retired(vm, kvmfault__held(seat,
						    KVMFAULT__HAZARD_MAPPINGS));
}

static bool mapping_is_held_by_seat(struct kvmfault__seat *seat, void *mapping)
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
	err = mapping_publish(new, &known);
	if (!err && uffd)
		uffd->users++;
	kvmfault__sys_unlock(&memory->vm->lock);
	if (!err) {
		*mapping = new;
		return 0;
	}
	/* A thread that saw the mapping in the list may still use the
	 * userfaultfd, which the caller may free. */
	if (known) {
		kvmfault__drain_sleepers(memory->vm, mapping_seat_has_old_list,
					 memory->vm);
		kvmfault__drain(memory->vm, mapping_is_held_by_seat, new);
	} else {
		kvmfault__sys_free(new);
	}
	return err;
}

/* A page that a page table holds causes no minor fault, and threads would see
 * what was there before. So every page is taken out of the page tables. */
static int mapping_forget_pages(const struct kvmfault_memory *memory,
				void *host, const struct kvmfault_uffd *uffd)
{
	int err = kvmfault__take_away(uffd, host, memory->length,
				      MADV_DONTNEED);

	if (err == -EINVAL)
		err = kvmfault__take_away(uffd, host, memory->length,
					  KVMFAULT__MADV_DONTNEED_LOCKED);
	if (err == -EINVAL)
		return kvmfault__refuse(memory->vm, -EOPNOTSUPP,
			      "the memory at %p may have pages in page tables, which would show what was there before, and this kernel does not take them out of memory that is locked or huge: do not lock the memory, or use Linux 5.18",
			      host);
	return err;
}

static int mapping_check_overlap(struct kvmfault__span *span, void *other)
{
	const struct kvmfault__span *its = other;

	return span->first <= its->last && its->first <= span->last ?
		-EEXIST : 0;
}

/* Asked before the library changes anything in the range. */
static int mapping_check_free(const struct kvmfault_memory *memory,
			      uint64_t host, const struct kvmfault_uffd *uffd)
{
	struct kvmfault__span span = {
		.first = kvmfault__key(uffd ? uffd->space : 0, host),
		.last = kvmfault__key(uffd ? uffd->space : 0,
				      host + memory->length - 1),
	};
	struct kvmfault_vm *vm = memory->vm;
	int err;

	kvmfault__sys_lock(&vm->lock);
	err = kvmfault__table_each(&vm->mappings, mapping_check_overlap, &span);
	kvmfault__sys_unlock(&vm->lock);
	return err;
}

/* For a mapping of this process. A child's copy is not registered: a child
 * would read zeros from absent pages, and its reads would bring these zeros
 * into the file. */
static int mapping_prepare_range(const struct kvmfault_memory *memory,
				 void *host, const struct kvmfault_uffd *uffd,
				 bool inherited)
{
	int err = memory->fill ? mapping_forget_pages(memory, host, uffd) : 0;

	return err || inherited ? err :
		kvmfault__sys_madvise(host, memory->length, MADV_DONTFORK);
}

int kvmfault__mapping_new(struct kvmfault_memory *memory, uint64_t host,
			  struct kvmfault_uffd *uffd, bool inherited,
			  struct kvmfault_mapping **mapping)
{
	bool own = kvmfault__tracked(memory) && !uffd;
	bool local = own || !uffd || !uffd->space;
	int err = mapping_check_free(memory, host, uffd);

	if (err)
		return mapping_explain_error(memory, host, local, err);
	if (local)
		err = kvmfault__maps_check(memory, host);
	if (!err && kvmfault__tracked(memory) && local)
		err = mapping_prepare_range(memory, (void *)(uintptr_t)host,
					    uffd, inherited);
	if (err)
		return err;
	/* An owner before this one may have been killed while it settled the
	 * memory: whoever sleeps there now is woken, and nobody does again. */
	if (memory->was_settled && uffd)
		err = kvmfault__uffd_unregister(uffd->fd, host, memory->length);
	if (err)
		return mapping_explain_error(memory, host, local, err);
	if (own) {
		err = kvmfault_uffd_new(memory->vm, NULL, &uffd);
		if (err)
			return err;
		uffd->own = true;
	}
	err = mapping_make(memory, host, uffd, mapping);
	if (err && own)
		kvmfault_uffd_free(uffd);
	if (err)
		return mapping_explain_error(memory, host, local, err);
	/* An owner before this one may have read the message of a thread that
	 * sleeps there: have the kernel tell it again. */
	if (memory->states_file && !own && uffd)
		kvmfault__uffd_wake(uffd->fd, host, memory->length);
	return 0;
}

static bool mapping_page_may_be_read(const struct kvmfault_memory *memory,
				     uint64_t page)
{
	enum kvmfault__state state = kvmfault__page_state(memory, page);

	return state == KVMFAULT__PRESENT || state == KVMFAULT__DISCARDED;
}

/* mprotect() does not reach another process. So its absent pages get markers,
 * and a thread that touches one gets SIGBUS. */
static int mapping_poison_absent(struct kvmfault_mapping *mapping)
{
	const struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t page = 0, end, pages = memory->length >> memory->page_shift;
	int err = 0;

	for (; page < pages && !err; page = end + 1) {
		for (end = page; end < pages &&
		     !mapping_page_may_be_read(memory, end);)
			end++;
		if (end > page)
			err = kvmfault__poison_run(mapping,
				page << memory->page_shift,
				(end - page) << memory->page_shift);
	}
	return err;
}

/* -ENOMEM says that a part of the range is not mapped. This advice is the one
 * that changes nothing: a registered mapping has it already, unless it is
 * inherited. */
static bool mapping_has_hole(char *host, uint64_t length)
{
	return kvmfault__sys_madvise(host, length, MADV_DONTFORK) == -ENOMEM;
}

/* -ENOMEM means a hole, which no thread can read, or that the process has too
 * many mappings. If there is a hole, each half is sealed by itself. */
static int mapping_seal(char *host, uint64_t length, uint64_t page)
{
	uint64_t half = length / 2 & -page;
	int err = kvmfault__sys_mprotect(host, length, PROT_NONE);

	if (err != -ENOMEM || !mapping_has_hole(host, length))
		return err;
	if (!half)
		return 0;
	err = mapping_seal(host, half, page);
	return err ? err : mapping_seal(host + half, length - half, page);
}

/* Once the range is unregistered, a thread that can read an absent page reads
 * zeros. */
static int mapping_guard_absent(struct kvmfault_mapping *mapping)
{
	struct kvmfault_memory *memory = mapping->span.memory;
	int err;

	/* It may be settled in this moment. */
	if (!kvmfault__tracked(memory) || !kvmfault__pages_absent(memory) ||
	    !kvmfault__tracked(memory))
		return 0;
	err = mapping->uffd->space ? mapping_poison_absent(mapping) :
		mapping_seal((char *)(uintptr_t)mapping->host, memory->length,
			     kvmfault__page_size(memory));
	if (err)
		kvmfault__log(memory->vm, KVMFAULT_LOG_WARNING,
			      "absent pages at %#llx could not be protected (error %d) and stay registered: end the threads and processes that use them before the userfaultfd is freed",
			      (unsigned long long)mapping->host, -err);
	return err;
}

/* If the memory will be taken up by its states, another process sleeps until
 * then where pages are absent: a marker there would outlive this owner. */
static bool mapping_stays_registered(const struct kvmfault_mapping *mapping)
{
	const struct kvmfault_memory *memory = mapping->span.memory;

	return memory->states_file && mapping->uffd->space &&
	       atomic_load(&memory->closing);
}

void kvmfault__mapping_close(struct kvmfault_mapping *mapping, bool guard)
{
	struct kvmfault_memory *memory = mapping->span.memory;
	struct kvmfault_uffd *uffd = mapping->uffd;
	bool stays;
	int err;

	if (!uffd)
		return;
	stays = mapping_stays_registered(mapping);
	err = guard && !stays ? mapping_guard_absent(mapping) : 0;
	/* Where a memory is settled, the VMM may have registered the range. */
	if (!err && !stays && kvmfault__tracked(memory))
		kvmfault__uffd_unregister(uffd->fd, mapping->host,
					  memory->length);
	kvmfault__sys_lock(&memory->vm->lock);
	uffd->users--;
	kvmfault__sys_unlock(&memory->vm->lock);
	if (uffd->own)
		kvmfault__uffd_end(uffd, err);
}

/* Under the VM's lock. */
static int mapping_unlist(struct kvmfault_mapping *mapping)
{
	struct kvmfault_memory *memory = mapping->span.memory;
	const struct kvmfault__mappings *old = atomic_load(&memory->mappings);
	struct kvmfault__mappings *new;

	new = mapping_list_new(old, NULL, mapping);
	if (!new)
		return -ENOMEM;
	atomic_store(&memory->mappings, new);
	kvmfault__retire(memory->vm, old);
	kvmfault__reclaim(memory->vm);
	return 0;
}

/* Without a mapping of its own the VMM has only the memslots' one, and a marker
 * there would be a SIGBUS for it. No marker is put there any more. */
static void mapping_unmark(struct kvmfault_memory *memory)
{
	int err = kvmfault__unmark(memory);

	if (err)
		kvmfault__log(memory->vm, KVMFAULT_LOG_WARNING,
			      "the memory at %p keeps its markers (error %d): add a mapping for this process's own accesses, or free the memory",
			      memory->host, -err);
}

/* While a thread of the library may still touch the mapping, its faults are
 * answered; then lookups no longer find the mapping, and it is closed. A fault
 * that is still in progress then holds the mapping and its userfaultfd until it
 * ends. */
static int mapping_end(struct kvmfault_mapping *mapping, bool guard)
{
	struct kvmfault_memory *memory = mapping->span.memory;
	struct kvmfault_vm *vm = memory->vm;
	const struct kvmfault_mapping *own;
	int err;

	if (mapping->memslots)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_mapping_remove: the mapping at %#llx is the memslots' one: kvmfault_memory_free() removes it with the memory",
			(unsigned long long)mapping->host);
	kvmfault__sys_lock(&vm->lock);
	err = mapping_unlist(mapping);
	kvmfault__sys_unlock(&vm->lock);
	if (err)
		return err;
	kvmfault__drain_sleepers(vm, mapping_seat_has_old_list, vm);
	kvmfault__sys_lock(&vm->lock);
	atomic_store(&mapping->span.dead, true);
	own = kvmfault__own_mapping(atomic_load(&memory->mappings));
	kvmfault__sys_unlock(&vm->lock);
	if (!own)
		mapping_unmark(memory);
	kvmfault__mapping_close(mapping, guard);
	kvmfault__sys_lock(&vm->lock);
	kvmfault__table_drop(vm, &mapping->span);
	kvmfault__table_sweep(vm, &vm->mappings);
	kvmfault__sys_unlock(&vm->lock);
	return 0;
}

/* Pages that were write-protected before the library knew the mapping have to
 * be write-protected there, too. */
static int mapping_write_protect(struct kvmfault_mapping *mapping)
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

static int mapping_check_options(const struct kvmfault_memory *memory,
				 const struct kvmfault_mapping_options *o)
{
	struct kvmfault_vm *vm = memory->vm;

	if (memory->fd <= 0)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_mapping_add: the memory at %p is anonymous and can have no second mapping: back the memory with a memfd",
			memory->host);
	if (!o->host || o->host & (kvmfault__page_size(memory) - 1) ||
	    o->host + memory->length < o->host)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_mapping_options.host: %#llx is 0, is not a multiple of the page size, %#llx, or puts the memory's end past the end of the address space",
			(unsigned long long)o->host,
			(unsigned long long)kvmfault__page_size(memory));
	if (o->uffd && o->uffd->vm != vm)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_mapping_options.uffd: the userfaultfd belongs to another context: pass one of this context");
	if (o->uffd && !kvmfault__tracked(memory) && !memory->was_settled)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_mapping_options.uffd: the memory at %p has no source, or is settled, and is not registered: leave uffd NULL",
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
		return kvmfault__no_place(memory ? memory->vm : NULL,
					  "kvmfault_mapping_add");
	*mapping = NULL;
	err = kvmfault__options_in(memory ? memory->vm : NULL,
				   "kvmfault_mapping_options", &ours,
				   sizeof(ours), options);
	if (!err)
		err = memory ? mapping_check_options(memory, &ours) : -EINVAL;
	if (err)
		return err;
	err = kvmfault__mapping_new(memory, ours.host, ours.uffd,
				    ours.inherited, mapping);
	if (err || !memory->write_protect)
		return err;
	err = mapping_write_protect(*mapping);
	if (!err)
		return 0;
	/* No guard: the range is what it was before this call, when the VMM,
	 * too, had to let no thread read zeros there. */
	mapping_end(*mapping, false);
	*mapping = NULL;
	return err;
}

KVMFAULT__EXPORT
int kvmfault_mapping_remove(struct kvmfault_mapping *mapping)
{
	return mapping && !kvmfault__is_child(mapping->span.memory->vm) ?
	       mapping_end(mapping, true) : 0;
}
