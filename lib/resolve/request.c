/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage resolve: the calls that a resolver may make. In: a request with a
 * claimed page. Out: more pages claimed, the bytes of the range, or the range
 * installed. The library's resolvers for absent and discarded pages and holes
 * read and install by the same calls as a VMM's.
 */

#include <string.h>
#include "resolve.h"

#define CLAIMED (1U << KVMFAULT_PAGE_ABSENT | 1U << KVMFAULT_PAGE_DISCARDED | \
		 1U << KVMFAULT_PAGE_HOLE)

int kvmfault__unclaimed(const struct kvmfault_request *request,
			const char *function)
{
	struct kvmfault__request *ours =
		(struct kvmfault__request *)(uintptr_t)request;

	if (!request)
		return -EINVAL;
	if (CLAIMED >> request->page & 1)
		return 0;
	return kvmfault__refuse(ours->seat->vm, -EINVAL,
		"%s: the page is %s and is not claimed: make this call only for absent and discarded pages and holes",
		function, kvmfault_page_str(request->page));
}

static int request_refuse_null(const struct kvmfault_request *request,
			       const char *function, const char *what)
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
	if (request->page != KVMFAULT_PAGE_DISCARDED &&
	    (kvmfault__fills(ours) ||
	     request->memory->window != KVMFAULT_WINDOW_NONE) &&
	    !ours->installed.there)
		kvmfault__widen(ours);
	return 0;
}

static int request_read_source(struct kvmfault__request *rq, void *buffer)
{
	const struct kvmfault_memory *memory = rq->request.memory;
	int err = kvmfault__source_read(&memory->source,
					memory->source_offset +
					rq->request.offset, buffer,
					rq->request.length);

	rq->source_failed = err;
	return err;
}

/* own: read into the request's own buffer, which moves when the request is
 * narrowed. */
static int request_read_run(struct kvmfault__request *rq, void *buffer,
			    bool own)
{
	const struct kvmfault_memory *memory = rq->request.memory;
	int err = 0;

	if (own)
		buffer = rq->request.buffer;
	/* A part of the range was installed, so all of its bytes are in the
	 * file, and those of that part may have been written to since. */
	if (own && memory->fill && rq->installed.there)
		return 0;
	if (own && memory->fill)
		err = kvmfault__prepare(memory, rq->request.offset,
					rq->request.length);
	if (err)
		return err;
	if (rq->request.page == KVMFAULT_PAGE_ABSENT)
		return request_read_source(rq, buffer);
	/* Of a discarded page the file holds zeros already, or what was written
	 * since; of a hole maybe an old page. */
	if (!own || !memory->fill || rq->request.page == KVMFAULT_PAGE_HOLE)
		memset(buffer, 0, rq->request.length);
	return 0;
}

static int request_read_or_narrow(struct kvmfault__request *rq, void *buffer)
{
	bool own = buffer == rq->request.buffer;
	int err = request_read_run(rq, buffer, own);

	if (!err || rq->count == 1 || kvmfault__has_come(rq))
		return err;
	/* An error of a neighbour must not fail the page: read it alone. */
	kvmfault__narrow(rq);
	return request_read_run(rq, buffer, own);
}

KVMFAULT__EXPORT
int kvmfault_request_read(struct kvmfault_request *request, void *buffer)
{
	int err = kvmfault__unclaimed(request, "kvmfault_request_read");

	if (err)
		return err;
	if (!buffer)
		return request_refuse_null(request, "kvmfault_request_read",
					   "buffer");
	return request_read_or_narrow((struct kvmfault__request *)request,
				      buffer);
}

/* Returns NULL if the bytes have to be read. With minor faults they belong into
 * the file; where events take pages a copy must not sleep, so not on a view. */
static const void *request_view_source(struct kvmfault__request *rq)
{
	const struct kvmfault_memory *memory = rq->request.memory;
	const struct kvmfault_source *source = &memory->source;
	uint64_t offset;

	if (!source->view || memory->fill || kvmfault__events_take(memory) ||
	    rq->request.page != KVMFAULT_PAGE_ABSENT)
		return NULL;
	offset = memory->source_offset + rq->request.offset;
	if (!kvmfault__source_reaches(source, offset + rq->request.length))
		return NULL;
	return source->view(source->data, offset, rq->request.length);
}

KVMFAULT__EXPORT
int kvmfault_request_data(struct kvmfault_request *request, const void **data)
{
	struct kvmfault__request *ours = (struct kvmfault__request *)request;
	int err = kvmfault__unclaimed(request, "kvmfault_request_data");

	if (err)
		return err;
	if (!data)
		return request_refuse_null(request, "kvmfault_request_data",
					   "data");
	*data = ours->view = request_view_source(ours);
	if (!ours->view) {
		err = request_read_or_narrow(ours, request->buffer);
		*data = request->buffer;
	}
	return err;
}

/* Install the part of the range that has not come yet. */
static int request_install_rest(struct kvmfault__request *rq, const void *data)
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

/* A page of a view cannot be read any more, maybe a neighbour before the page:
 * install the page alone, as a failed read is repeated for it alone. */
static int request_install_alone(struct kvmfault__request *rq)
{
	uint64_t before = rq->page - rq->first;

	kvmfault__narrow(rq);
	return request_install_rest(rq, (const char *)rq->view +
				    (before << rq->request.memory->page_shift));
}

/* NULL stands for zeros, which only these pages hold. With minor faults the
 * file may have an old page where the source has a hole: write zeros into the
 * part that has not come yet. */
static int request_put_zeros(struct kvmfault__request *rq, const void **data)
{
	const struct kvmfault_memory *memory = rq->request.memory;
	uint64_t done = rq->installed.there << memory->page_shift;
	uint64_t length = rq->request.length - done;
	int err;

	if (rq->request.page == KVMFAULT_PAGE_ABSENT)
		return request_refuse_null(&rq->request,
					   "kvmfault_request_install",
					   "for an absent page data");
	if (rq->request.page == KVMFAULT_PAGE_DISCARDED || !memory->fill)
		return 0;
	*data = rq->request.buffer;
	err = kvmfault__prepare(memory, rq->request.offset + done, length);
	if (!err)
		memset((char *)rq->request.buffer + done, 0, length);
	return err;
}

KVMFAULT__EXPORT
int kvmfault_request_install(struct kvmfault_request *request,
			     const void *data)
{
	struct kvmfault__request *ours = (struct kvmfault__request *)request;
	int err = kvmfault__unclaimed(request, "kvmfault_request_install");

	if (err)
		return err;
	if (ours->poisoned)
		return kvmfault__refuse(ours->seat->vm, -EINVAL,
			"kvmfault_request_install: kvmfault_request_poison() has poisoned the page: install a page or poison it, not both");
	if (!data)
		err = request_put_zeros(ours, &data);
	if (err)
		return err;
	err = request_install_rest(ours, data);
	if (err == -EFAULT && data && data == ours->view) {
		if (ours->count > 1 && !kvmfault__has_come(ours))
			err = request_install_alone(ours);
		/* The source's view can't be read any more. */
		ours->source_failed = err;
	}
	/* Only the page that faulted counts; the others fault again. */
	return kvmfault__has_come(ours) ? 0 : err;
}
