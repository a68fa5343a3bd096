/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The context: what the stages of one VM share. In: the VMM's options. Out: a
 * place for its memories, regions, vCPUs. Nothing is shared between contexts.
 */

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

static int check(struct kvmfault_vm_options *options)
{
	uint64_t size;

	if (!options->page_size_max)
		options->page_size_max = 2 << 20;
	if (!options->retry_budget)
		options->retry_budget = 16;
	size = options->page_size_max;
	if (options->delivery >= KVMFAULT_DELIVERY_COUNT)
		return -EINVAL;
	return size & (size - 1) || size < KVMFAULT__PAGE || size > 1 << 30 ?
		-EINVAL : 0;
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
	err = check(&ours);
	if (!err && ours.fd > 0)
		err = kvmfault__sys_getfl(ours.fd);
	if (err < 0)
		return err;
	new = kvmfault__sys_alloc(sizeof(*new), KVMFAULT__CACHE_LINE);
	if (!new)
		return -ENOMEM;
	new->options = ours;
	atomic_store(&new->jobs, -1);
	err = kvmfault__converter(new, ours.converter);
	if (!err)
		err = kvmfault__delivery_choose(new);
	if (!err) {
		new->epoll = kvmfault__sys_epoll_create();
		err = new->epoll < 0 ? new->epoll : 0;
	}
	if (err) {
		kvmfault__sys_free(new);
		return err;
	}
	pthread_mutex_init(&new->lock, NULL);
	pthread_mutex_init(&new->conversion_lock, NULL);
	kvmfault__resolvers_new(new);
	*vm = new;
	return 0;
}

static bool in_use(struct kvmfault_vm *vm)
{
	size_t id;

	for (id = 0; id < KVMFAULT__SPACES; id++)
		if (atomic_load(&vm->uffds[id]))
			return true;
	return vm->vcpus || vm->services || vm->memories || vm->region_count;
}

KVMFAULT__EXPORT
int kvmfault_vm_free(struct kvmfault_vm *vm)
{
	bool busy;

	if (!vm)
		return 0;
	kvmfault__sys_lock(&vm->lock);
	busy = in_use(vm);
	if (!busy) {
		kvmfault__table_free(vm, &vm->regions);
		kvmfault__table_free(vm, &vm->mappings);
	}
	kvmfault__sys_unlock(&vm->lock);
	if (busy)
		return -EBUSY;
	kvmfault__fetches_free(vm);
	kvmfault__seats_free(vm);
	kvmfault__attributes_free(vm);
	kvmfault__sys_close(vm->epoll);
	if (vm->jobs >= 0)
		kvmfault__sys_close(vm->jobs);
	pthread_mutex_destroy(&vm->conversion_lock);
	pthread_mutex_destroy(&vm->lock);
	kvmfault__sys_free(vm);
	return 0;
}

void kvmfault__log(struct kvmfault_vm *vm, enum kvmfault_log_level level,
		   const char *format, ...)
{
	char line[512];
	va_list args;

	if (!vm->options.log)
		return;
	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	vm->options.log(vm->options.log_data, level, line);
}
