/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Set-up: the context, which is what the stages of one VM share. In: the VMM's
 * options. Out: a place for its memories, regions and vCPUs. Two contexts share
 * nothing.
 */

#include <sys/mman.h>

#include "setup.h"

#define KNOWN_ALLOW \
	(KVMFAULT_ALLOW_MARKER_EXIT | KVMFAULT_ALLOW_SHADOW_PAGING)

static int vm_check_options(struct kvmfault_vm *vm)
{
	struct kvmfault_vm_options *options = &vm->options;
	uint64_t size;

	if (!options->page_size_max)
		options->page_size_max = 2 << 20;
	if (!options->retry_budget)
		options->retry_budget = 16;
	if (!options->source_retries)
		options->source_retries = 2;
	else if (options->source_retries == KVMFAULT_NO_RETRIES)
		options->source_retries = 0;
	size = options->page_size_max;
	if (options->delivery >= KVMFAULT_DELIVERY_COUNT)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_vm_options.delivery: %u is not a mode that this version knows",
			(unsigned int)options->delivery);
	if (options->allow & ~KNOWN_ALLOW)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_vm_options.allow: %#llx has a flag that this version does not know",
			(unsigned long long)options->allow);
	if (size & (size - 1) || size < KVMFAULT__PAGE || size > 1 << 30)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_vm_options.page_size_max: %#llx is not a power of two from 4 KiB to 1 GiB",
			(unsigned long long)size);
	return 0;
}

static int vm_check_fd(struct kvmfault_vm *vm)
{
	int flags = vm->options.vm_fd > 0 ?
		    kvmfault__sys_getfl(vm->options.vm_fd) : 0;

	return flags < 0 ? kvmfault__refuse(vm, flags,
		"kvmfault_vm_options.vm_fd: descriptor %d is not open",
		vm->options.vm_fd) : 0;
}

static void vm_add_resolvers(struct kvmfault_vm *vm)
{
	/* The order matters: a page that another resolver can make present is
	 * not converted. */
	const struct kvmfault_resolver *const ours[] = {
		&kvmfault__resolver_copy,
		&kvmfault__resolver_async,
		&kvmfault__resolver_continue,
		&kvmfault__resolver_zero,
		&kvmfault__resolver_populate,
		&kvmfault__resolver_convert,
		&kvmfault__resolver_unprotect,
	};
	const unsigned int count = sizeof(ours) / sizeof(*ours);

	for (; vm->chain.resolvers < count; vm->chain.resolvers++)
		vm->chain.resolver[vm->chain.resolvers] =
			*ours[vm->chain.resolvers];
	kvmfault__chain_changed(vm);
}

/* The kernel wipes this page in a child of fork(). */
static int vm_mark_process(struct kvmfault_vm *vm)
{
	size_t size = kvmfault__sys_page_size();
	void *page;
	int err = kvmfault__sys_mmap(&page, size, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (err)
		return err;
	if (kvmfault__sys_madvise(page, size, MADV_WIPEONFORK)) {
		kvmfault__sys_munmap(page, size);
		return 0;
	}
	vm->born = page;
	*vm->born = 1;
	return 0;
}

static void vm_unmark_process(struct kvmfault_vm *vm)
{
	if (vm->born)
		kvmfault__sys_munmap(vm->born, kvmfault__sys_page_size());
}

KVMFAULT__EXPORT
int kvmfault_vm_new(const struct kvmfault_vm_options *options,
		    struct kvmfault_vm **vm)
{
	struct kvmfault_vm_options ours = { .size = sizeof(ours) };
	struct kvmfault_vm *new;
	int err;

	if (!vm)
		return -EINVAL;
	*vm = NULL;
	if (options) {
		err = kvmfault__options(&ours, sizeof(ours), options);
		if (err)
			return err;
	}
	new = kvmfault__sys_alloc(sizeof(*new), KVMFAULT__CACHE_LINE);
	if (!new)
		return -ENOMEM;
	new->options = ours;
	new->options.ops = NULL;	/* belongs to the caller */
	err = ours.ops ? kvmfault__options(&new->ops, sizeof(new->ops),
					   ours.ops) : 0;
	if (!err)
		err = vm_check_options(new);
	if (!err)
		err = vm_check_fd(new);
	if (!err)
		err = kvmfault__converter(new, ours.converter);
	if (!err)
		err = kvmfault__delivery_choose(new);
	if (!err)
		err = vm_mark_process(new);
	if (!err) {
		new->epoll = kvmfault__sys_epoll_create();
		err = new->epoll < 0 ? new->epoll : 0;
	}
	if (err) {
		vm_unmark_process(new);
		kvmfault__sys_free(new);
		return err;
	}
	pthread_mutex_init(&new->lock, NULL);
	pthread_mutex_init(&new->conversions.lock, NULL);
	vm_add_resolvers(new);
	*vm = new;
	return 0;
}

/* A text for the first kind of object that is left, in the order in which a VMM
 * takes them down, or NULL. */
static const char *vm_find_left_over(struct kvmfault_vm *vm)
{
	size_t id;

	if (vm->vcpus)
		return "a vCPU's handle is left: call kvmfault_vcpu_free() first";
	if (vm->services)
		return "the service is left: call kvmfault_service_free() first";
	if (vm->fills)
		return "a fill is left: call kvmfault_fill_free() first";
	if (vm->region_count)
		return "a region is left: call kvmfault_region_remove() first";
	if (vm->recordings)
		return "a recording is left: call kvmfault_recording_end() first";
	if (vm->memories)
		return "a memory is left: call kvmfault_memory_free() first";
	for (id = 0; id < KVMFAULT__SPACES; id++)
		if (atomic_load(&vm->uffds[id]))
			return "a userfaultfd is left: call kvmfault_uffd_free() first";
	return NULL;
}

KVMFAULT__EXPORT
int kvmfault_vm_free(struct kvmfault_vm *vm)
{
	const char *left;

	if (!vm || kvmfault__is_child(vm))
		return 0;
	kvmfault__sys_lock(&vm->lock);
	left = vm_find_left_over(vm);
	kvmfault__sys_unlock(&vm->lock);
	if (left)
		return kvmfault__refuse(vm, -EBUSY, "kvmfault_vm_free: %s",
					left);
	kvmfault__workers_free(vm);
	kvmfault__sys_lock(&vm->lock);
	kvmfault__table_free(vm, &vm->regions);
	kvmfault__table_free(vm, &vm->mappings);
	kvmfault__sys_unlock(&vm->lock);
	while (atomic_load(&vm->drain.unpinning))	/* for an instant */
		kvmfault__sys_yield();
	kvmfault__uffds_reap(vm);	/* no seat names one any more */
	kvmfault__fetches_free(vm);
	kvmfault__seats_free(vm);
	kvmfault__attributes_free(vm);
	kvmfault__sys_close(vm->epoll);
	vm_unmark_process(vm);
	pthread_mutex_destroy(&vm->conversions.lock);
	pthread_mutex_destroy(&vm->lock);
	kvmfault__sys_free(vm);
	return 0;
}
