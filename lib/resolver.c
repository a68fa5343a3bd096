/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage resolve, its interface: the chain, and what a resolver may ask for. In:
 * a request. Out: the range's bytes, or the range installed. Ours use nothing
 * that a VMM's own resolver could not.
 */

#include <string.h>

#include "internal.h"

KVMFAULT__EXPORT
int kvmfault_resolver_add(struct kvmfault_vm *vm,
			  const struct kvmfault_resolver *resolver)
{
	struct kvmfault_resolver ours, *slot;
	int err;

	err = kvmfault__options(&ours, sizeof(ours), resolver);
	if (err)
		return err;
	if (!vm || !ours.resolve || !ours.name)
		return -EINVAL;
	pthread_mutex_lock(&vm->lock);
	if (vm->vcpus || vm->services) {
		err = -EBUSY;
	} else if (vm->resolvers == KVMFAULT_RESOLVER_COUNT) {
		err = -ENOSPC;
	} else {
		slot = &vm->chain[vm->own_resolvers];
		memmove(slot + 1, slot, (vm->resolvers - vm->own_resolvers) *
			sizeof(*slot));
		*slot = ours;
		vm->own_resolvers++;
		vm->resolvers++;
	}
	pthread_mutex_unlock(&vm->lock);
	return err;
}

KVMFAULT__EXPORT
const char *kvmfault_resolver_name(const struct kvmfault_vm *vm,
				   unsigned int index)
{
	return vm && index < vm->resolvers ? vm->chain[index].name : NULL;
}

static bool claimed(const struct kvmfault_request *request)
{
	return request && (request->page == KVMFAULT_PAGE_ABSENT ||
			   request->page == KVMFAULT_PAGE_REMOVED);
}

KVMFAULT__EXPORT
int kvmfault_request_read(struct kvmfault_request *request, void *buffer)
{
	const struct kvmfault_source *source;
	int err;

	if (!claimed(request) || !buffer)
		return -EINVAL;
	if (request->page == KVMFAULT_PAGE_REMOVED) {
		memset(buffer, 0, request->length);
		return 0;
	}
	source = &request->memory->source;
	err = source->read(source->data,
			   request->memory->source_offset + request->offset,
			   buffer, request->length);
	/* A count, or anything else that is not the contract, is no page. */
	if (err > 0)
		err = -EIO;
	((struct kvmfault__request *)request)->source_failed = err;
	return err;
}

KVMFAULT__EXPORT
int kvmfault_request_install(struct kvmfault_request *request,
			     const void *data)
{
	struct kvmfault__request *ours = (struct kvmfault__request *)request;
	int err;

	if (!claimed(request) || !data)
		return -EINVAL;
	err = kvmfault__install(ours->seat, request->memory, request->offset,
				data, request->length);
	ours->installed = !err || err == -EEXIST;
	ours->existed = err == -EEXIST;
	return ours->installed ? 0 : err;
}
