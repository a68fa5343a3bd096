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
	kvmfault__sys_lock(&vm->lock);
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
	kvmfault__sys_unlock(&vm->lock);
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
int kvmfault_request_widen(struct kvmfault_request *request)
{
	if (!claimed(request))
		return -EINVAL;
	if (request->page == KVMFAULT_PAGE_ABSENT)
		kvmfault__widen((struct kvmfault__request *)request);
	return 0;
}

static int read_source(struct kvmfault__request *rq, void *buffer)
{
	const struct kvmfault_source *source = &rq->request.memory->source;
	int err = -EOPNOTSUPP;	/* it answers later, and not to us */

	if (source->read)
		err = source->read(source->data,
				   rq->request.memory->source_offset +
				   rq->request.offset, buffer,
				   rq->request.length);
	/* A count, or anything else that is not the contract, is no page. */
	if (err > 0)
		err = -EIO;
	rq->source_failed = err;
	return err;
}

/* own: to the request's own buffer, wherever that is by now. */
static int read_run(struct kvmfault__request *rq, void *buffer, bool own)
{
	int err = 0;

	if (own)
		buffer = rq->request.buffer;
	if (own && rq->request.memory->fill)
		err = kvmfault__prepare(rq->request.memory, rq->request.offset,
					rq->request.length);
	if (err)
		return err;
	if (rq->request.page == KVMFAULT_PAGE_ABSENT)
		return read_source(rq, buffer);
	memset(buffer, 0, rq->request.length);
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_request_read(struct kvmfault_request *request, void *buffer)
{
	struct kvmfault__request *ours = (struct kvmfault__request *)request;
	bool own;
	int err;

	if (!claimed(request) || !buffer)
		return -EINVAL;
	own = buffer == request->buffer;
	err = read_run(ours, buffer, own);
	if (!err || ours->count == 1)
		return err;
	/* The neighbours' trouble is not the page's. */
	kvmfault__narrow(ours);
	return read_run(ours, buffer, own);
}

KVMFAULT__EXPORT
int kvmfault_request_install(struct kvmfault_request *request,
			     const void *data)
{
	struct kvmfault__request *ours = (struct kvmfault__request *)request;
	int err;

	if (!claimed(request))
		return -EINVAL;
	/* Zeros for nothing: only where that is what it holds. */
	if (!data && request->page != KVMFAULT_PAGE_REMOVED)
		return -EINVAL;
	err = kvmfault__install(ours->seat, request->memory, request->offset,
				data, request->length, &ours->installed);
	/* Of a window it is the page that counts; the others fault again. */
	return ours->page < ours->first + ours->installed.there ? 0 : err;
}
