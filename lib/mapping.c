/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage publish, its host side: every place where a memory is mapped. In: a
 * range of a memory. Out: its pages installed, its sleepers awake. Pages are
 * installed through the memslots' mapping and through no other; a wake reaches
 * only those who sleep on the same userfaultfd, so each gets its own.
 */

#include <sys/mman.h>

#include "internal.h"

static const struct kvmfault__mappings *
hold_mappings(struct kvmfault__seat *seat, struct kvmfault_memory *memory)
{
	return kvmfault__hold(&seat->mappings, &memory->mappings);
}

int kvmfault__install(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory, uint64_t offset,
		      const void *data, uint64_t length)
{
	const struct kvmfault__mappings *all = hold_mappings(seat, memory);
	const struct kvmfault_mapping *mapping = all->mapping[0];
	int err;

	err = kvmfault__uffd_copy(mapping->uffd->fd, mapping->host + offset,
				  data, length);
	kvmfault__unhold(seat, &seat->mappings);
	return err;
}

void kvmfault__wake(struct kvmfault__seat *seat,
		    struct kvmfault_memory *memory,
		    const struct kvmfault_mapping *only, uint64_t offset,
		    uint64_t length)
{
	const struct kvmfault__mappings *all = hold_mappings(seat, memory);
	size_t i;

	for (i = 0; i < all->count; i++) {
		const struct kvmfault_mapping *mapping = all->mapping[i];

		if (!mapping->registered || (only && only != mapping))
			continue;
		/* It fails only where nobody can be asleep any more. */
		kvmfault__uffd_wake(mapping->uffd->fd, mapping->host + offset,
				    length);
		kvmfault__count(seat, woken);
	}
	kvmfault__unhold(seat, &seat->mappings);
}

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

static int register_range(struct kvmfault_mapping *mapping)
{
	struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t ioctls;
	int err;

	err = kvmfault__uffd_register(mapping->uffd, mapping->host,
				      memory->length, &ioctls);
	mapping->registered = !err;
	if (err == -EINVAL)
		kvmfault__log(memory->vm, KVMFAULT_LOG_ERROR,
			      "userfaultfd does not take the memory at %#llx: it needs anonymous memory, a memfd or a hugetlbfs file that is mapped there as a whole (not a guest_memfd)",
			      (unsigned long long)mapping->host);
	return err;
}

/* Known by address and in the list before it is registered: a message never
 * comes from where nobody can be found and woken. */
static int publish(struct kvmfault_mapping *mapping, bool registered)
{
	struct kvmfault_memory *memory = mapping->span.memory;
	struct kvmfault_vm *vm = memory->vm;
	const struct kvmfault__mappings *old = atomic_load(&memory->mappings);
	struct kvmfault__mappings *new = list_new(old, mapping, NULL);
	int err;

	if (!new)
		return -ENOMEM;
	err = kvmfault__table_add(vm, &vm->mappings, &mapping->span);
	if (err) {
		kvmfault__sys_free(new);
		return err;
	}
	atomic_store(&memory->mappings, new);
	err = registered ? register_range(mapping) : 0;
	if (!err) {
		kvmfault__retire(vm, (void *)(uintptr_t)old);
		return 0;
	}
	atomic_store(&memory->mappings, old);
	kvmfault__retire(vm, new);
	kvmfault__table_kill(vm, &mapping->span);
	return err;
}

int kvmfault__mapping_new(struct kvmfault_memory *memory, uint64_t host,
			  struct kvmfault_uffd *uffd, bool registered,
			  struct kvmfault_mapping **mapping)
{
	uint32_t space = uffd ? uffd->space : 0;
	struct kvmfault_mapping *new;
	int err;

	new = kvmfault__sys_alloc(sizeof(*new), 0);
	if (!new)
		return -ENOMEM;
	new->span.memory = memory;
	new->span.first = kvmfault__key(space, host);
	new->span.last = kvmfault__key(space, host + memory->length - 1);
	new->host = host;
	new->uffd = uffd;
	err = publish(new, registered);
	if (atomic_load(&new->span.dead))
		kvmfault__table_sweep(memory->vm, &memory->vm->mappings);
	else if (err)
		kvmfault__sys_free(new);
	if (err)
		return err;
	if (uffd)
		uffd->users++;
	*mapping = new;
	return 0;
}

/* Another process's memory can't be protected from here; its absent pages can
 * be made to kill who touches them. */
static int poison_absent(struct kvmfault_mapping *mapping)
{
	struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t page, pages = memory->length >> memory->page_shift;
	uint64_t size = kvmfault__page_size(memory);
	int err = 0;

	for (page = 0; page < pages && (!err || err == -EEXIST); page++) {
		enum kvmfault__state state = kvmfault__page_state(memory, page);

		if (state != KVMFAULT__PRESENT && state != KVMFAULT__REMOVED)
			err = kvmfault__uffd_poison(mapping->uffd->fd,
						    mapping->host + page * size,
						    size);
	}
	/* A process that is gone reads nothing; likewise a range. */
	return err == -EEXIST || err == -ESRCH || err == -ENOENT ? 0 : err;
}

static int protect(struct kvmfault_mapping *mapping)
{
	void *host = (void *)(uintptr_t)mapping->host;
	uint64_t length = mapping->span.memory->length;
	unsigned char vec;
	int err = kvmfault__sys_mprotect(host, length, PROT_NONE);

	/* Not mapped any more: nothing there can be read. The same errno says
	 * that there are too many mappings: ask. */
	if (err == -ENOMEM &&
	    kvmfault__sys_mincore(host, kvmfault__sys_page_size(), &vec) ==
	    -ENOMEM)
		return 0;
	return err;
}

/* Nobody may read zeros where pages are still absent. */
static int fail_closed(struct kvmfault_mapping *mapping)
{
	struct kvmfault_memory *memory = mapping->span.memory;

	if (!kvmfault__tracked(memory) || !kvmfault__pages_absent(memory))
		return 0;
	if (mapping->uffd->space)
		return poison_absent(mapping);
	return protect(mapping);
}

void kvmfault__mapping_close(struct kvmfault_mapping *mapping)
{
	struct kvmfault_memory *memory = mapping->span.memory;
	struct kvmfault_uffd *uffd = mapping->uffd;
	int err = mapping->registered ? fail_closed(mapping) : 0;

	if (err)
		kvmfault__log(memory->vm, KVMFAULT_LOG_WARNING,
			      "absent pages at %#llx could not be protected (error %d): they stay registered; end their users before the userfaultfd is freed",
			      (unsigned long long)mapping->host, -err);
	else if (mapping->registered)
		kvmfault__uffd_unregister(uffd, mapping->host, memory->length);
	if (!uffd)
		return;
	pthread_mutex_lock(&memory->vm->lock);
	uffd->users--;
	pthread_mutex_unlock(&memory->vm->lock);
	/* One that still guards absent pages must not be closed. */
	if (uffd->own && !err)
		kvmfault_uffd_free(uffd);
}

KVMFAULT__EXPORT
int kvmfault_mapping_add(struct kvmfault_memory *memory,
			 const struct kvmfault_mapping_options *options,
			 struct kvmfault_mapping **mapping)
{
	struct kvmfault_mapping_options ours;
	int err;

	if (!mapping)
		return -EINVAL;
	*mapping = NULL;
	err = kvmfault__options(&ours, sizeof(ours), options);
	if (err)
		return err;
	if (!memory || !ours.host || memory->fd <= 0 ||
	    ours.host & (kvmfault__page_size(memory) - 1) ||
	    ours.host + memory->length < ours.host)
		return -EINVAL;
	pthread_mutex_lock(&memory->vm->lock);
	err = kvmfault__mapping_new(memory, ours.host, ours.uffd, ours.uffd,
				    mapping);
	pthread_mutex_unlock(&memory->vm->lock);
	return err;
}

static bool uses_list(struct kvmfault__seat *seat, void *list)
{
	return atomic_load(&seat->mappings) == list;
}

KVMFAULT__EXPORT
int kvmfault_mapping_remove(struct kvmfault_mapping *mapping)
{
	struct kvmfault__mappings *old, *new;
	struct kvmfault_memory *memory;
	struct kvmfault_vm *vm;

	if (!mapping)
		return 0;
	memory = mapping->span.memory;
	vm = memory->vm;
	pthread_mutex_lock(&vm->lock);
	old = (void *)(uintptr_t)atomic_load(&memory->mappings);
	new = old->mapping[0] == mapping ? NULL : list_new(old, NULL, mapping);
	if (new)
		atomic_store(&memory->mappings, new);
	pthread_mutex_unlock(&vm->lock);
	if (!new)
		return old->mapping[0] == mapping ? -EINVAL : -ENOMEM;
	/* Who still wakes through it is inside a system call, not a callback:
	 * that ends. */
	kvmfault__drain(vm, uses_list, old);
	kvmfault__mapping_close(mapping);
	pthread_mutex_lock(&vm->lock);
	kvmfault__table_kill(vm, &mapping->span);
	kvmfault__table_sweep(vm, &vm->mappings);
	kvmfault__retire(vm, old);
	pthread_mutex_unlock(&vm->lock);
	return 0;
}
