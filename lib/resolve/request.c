/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage resolve, what a resolver may ask for. In: a request. Out: the range's bytes, the
 * range installed, or its page poisoned. The library's resolvers use nothing that a
 * VMM's own could not.
 */

#include <string.h>
#include "resolve.h"

int kvmfault__unclaimed(const struct kvmfault_request *request,
			const char *function)
{
	struct kvmfault__request *ours =
		(struct kvmfault__request *)(uintptr_t)request;

	if (!request)
		return -EINVAL;
	if (request->page == KVMFAULT_PAGE_ABSENT ||
	    request->page == KVMFAULT_PAGE_DISCARDED)
		return 0;
	return kvmfault__refuse(ours->seat->vm, -EINVAL,
		"%s: nothing is claimed: the page is %s, and only absent and removed ones are installed",
		function, kvmfault_page_str(request->page));
}

static int is_null(const struct kvmfault_request *request, const char *function,
		   const char *what)
{
	const struct kvmfault__request *ours = (const void *)request;

	return kvmfault__refuse(ours->seat->vm, -EINVAL, "%s: %s is NULL",
				function, what);
}

KVMFAULT__EXPORT
int kvmfault_request_widen(struct kvmfault_request *request)
{
	struct kvmfault__request *ours = (struct kvmfault__request *)request;
	int err = kvmfault__unclaimed(request, "kvmfault_request_widen");

	if (err)
		return err;
	if (request->page == KVMFAULT_PAGE_ABSENT && !ours->installed.there &&
	    request->memory->window != KVMFAULT_WINDOW_NONE)
		kvmfault__widen(ours);
	return 0;
}

/* A mapping has zeros behind its file's end, up to the end of the page. */
static bool cut_off(const struct kvmfault__request *rq)
{
	const struct kvmfault_memory *memory = rq->request.memory;
	uint64_t end = memory->source_offset + rq->request.offset +
		       rq->request.length;

	return !kvmfault__source_reaches(&memory->source, end);
}

static int read_source(struct kvmfault__request *rq, void *buffer)
{
	const struct kvmfault_source *source = &rq->request.memory->source;
	int err = -EOPNOTSUPP;	/* it answers later, and not to us */

	if (cut_off(rq))
		err = -ENODATA;
	else if (source->read)
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

/* To the request's own buffer it is wherever that is by now. */
static int read_run(struct kvmfault__request *rq, void *buffer, bool own)
{
	const struct kvmfault_memory *memory = rq->request.memory;
	int err = 0;

	if (own)
		buffer = rq->request.buffer;
	if (own && memory->fill)
		err = kvmfault__prepare(memory, rq->request.offset,
					rq->request.length);
	if (err)
		return err;
	if (rq->request.page == KVMFAULT_PAGE_ABSENT)
		return read_source(rq, buffer);
	/* In the file it is zero, or what was written there since. */
	if (!own || !memory->fill)
		memset(buffer, 0, rq->request.length);
	return 0;
}

static int read_patiently(struct kvmfault__request *rq, void *buffer)
{
	bool own = buffer == rq->request.buffer;
	int err = read_run(rq, buffer, own);

	if (!err || rq->count == 1 || kvmfault__has_come(rq))
		return err;
	/* The neighbours' trouble is not the page's. */
	kvmfault__narrow(rq);
	return read_run(rq, buffer, own);
}

KVMFAULT__EXPORT
int kvmfault_request_read(struct kvmfault_request *request, void *buffer)
{
	int err = kvmfault__unclaimed(request, "kvmfault_request_read");

	if (err)
		return err;
	if (!buffer)
		return is_null(request, "kvmfault_request_read", "buffer");
	return read_patiently((struct kvmfault__request *)request, buffer);
}

/* With minor faults they have to be in the file. */
static const void *view(struct kvmfault__request *rq)
{
	const struct kvmfault_memory *memory = rq->request.memory;
	const struct kvmfault_source *source = &memory->source;

	if (!source->view || memory->fill || kvmfault__events_take(memory) ||
	    rq->request.page != KVMFAULT_PAGE_ABSENT || cut_off(rq))
		return NULL;
	return source->view(source->data,
			    memory->source_offset + rq->request.offset,
			    rq->request.length);
}

KVMFAULT__EXPORT
int kvmfault_request_data(struct kvmfault_request *request, const void **data)
{
	struct kvmfault__request *ours = (struct kvmfault__request *)request;
	int err = kvmfault__unclaimed(request, "kvmfault_request_data");

	if (err)
		return err;
	if (!data)
		return is_null(request, "kvmfault_request_data", "data");
	*data = ours->view = view(ours);
	if (!ours->view) {
		err = read_patiently(ours, request->buffer);
		*data = request->buffer;
	}
	return err;
}

/* What has not come yet. */
static int install(struct kvmfault__request *rq, const void *data)
{
	uint64_t done = rq->installed.there << rq->request.memory->page_shift;
	struct kvmfault__installed rest = { 0 };
	int err = 0;

	if (!done)
		return kvmfault__install(rq->seat, rq->request.memory,
					 rq->request.offset, data,
					 rq->request.length, &rq->installed);
	if (done < rq->request.length)
		err = kvmfault__install(rq->seat, rq->request.memory,
					rq->request.offset + done,
					data ? (const char *)data + done : NULL,
					rq->request.length - done, &rest);
	rq->installed.there += rest.there;
	rq->installed.existed += rest.existed;
	return err;
}

/* Of a view a neighbour before the page is gone: the page alone, as if it had
 * been read. */
static int install_alone(struct kvmfault__request *rq)
{
	uint64_t before = rq->page - rq->first;

	kvmfault__narrow(rq);
	return install(rq, (const char *)rq->view +
		       (before << rq->request.memory->page_shift));
}

KVMFAULT__EXPORT
int kvmfault_request_install(struct kvmfault_request *request,
			     const void *data)
{
	struct kvmfault__request *ours = (struct kvmfault__request *)request;
	int err = kvmfault__unclaimed(request, "kvmfault_request_install");

	if (err)
		return err;
	/* Zeros for nothing: only where that is what it holds. */
	if (!data && request->page != KVMFAULT_PAGE_DISCARDED)
		return is_null(request, "kvmfault_request_install",
			       "the page is absent, and data");
	err = install(ours, data);
	if (err == -EFAULT && data && data == ours->view) {
		if (ours->count > 1 && !kvmfault__has_come(ours))
			err = install_alone(ours);
		/* What the source has shown is not there any more. */
		ours->source_failed = err;
	}
	/* Of a window it is the page that counts; the others fault again. */
	return kvmfault__has_come(ours) ? 0 : err;
}
