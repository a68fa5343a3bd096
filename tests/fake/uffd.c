/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Userfaultfds: their ranges, the pages that come through them, and their
 * messages. In: the library's ioctls, and the test's accesses and messages.
 * Out: pages that are present, mapped, marked or protected, the counts and
 * errors that the kernel would return, and a queue that a read empties. What
 * holds: a range belongs to one userfaultfd, nothing is filled that is there,
 * and a marker goes where there is nothing.
 */

#include <errno.h>
#include <string.h>

#include "fake.h"

long fake_uffd_denied;

struct range *fake__range_at(struct object *uffd, uint64_t address)
{
	size_t i;

	for (i = 0; i < RANGES; i++)
		if (uffd->range[i].length &&
		    address >= uffd->range[i].start &&
		    address - uffd->range[i].start < uffd->range[i].length)
			return &uffd->range[i];
	return NULL;
}

struct object *fake__registered_with(uint64_t address)
{
	size_t i;

	for (i = 0; i < FDS; i++) {
		struct object *object = fake__fds[i].object;

		if (object && object->kind == FAKE_UFFD &&
		    fake__range_at(object, address))
			return object;
	}
	return NULL;
}

long fake__uffd_open(int flags)
{
	return fake_uffd_denied ? fake_uffd_denied :
		fake__open_new(FAKE_UFFD, flags);
}

static long uffd_api(struct object *uffd, struct uffdio_api *api)
{
	if (api->api != UFFD_API || uffd->api)
		return -EINVAL;
	uffd->api = true;
	uffd->features = api->features;
	api->features = KVMFAULT__UFFD_FEATURE_POISON |
			UFFD_FEATURE_MISSING_SHMEM;
	api->ioctls = 1ULL << _UFFDIO_REGISTER;
	return 0;
}

static long uffd_register(struct object *uffd, struct uffdio_register *reg)
{
	struct object *m;
	uint64_t offset;
	size_t i;

	if (!fake__is_mapped(reg->range.start))
		return -EINVAL;
	if (fake__registered_with(reg->range.start))
		return -EBUSY;
	for (i = 0; i < RANGES && uffd->range[i].length; i++)
		;
	if (i == RANGES)
		return -ENOMEM;
	uffd->range[i].start = reg->range.start;
	uffd->range[i].length = reg->range.len;
	uffd->range[i].write_protect = reg->mode & UFFDIO_REGISTER_MODE_WP;
	reg->ioctls = 1ULL << _UFFDIO_COPY | 1ULL << _UFFDIO_WAKE |
		      1ULL << KVMFAULT__UFFDIO_POISON_NR;
	m = fake__memory_at(reg->range.start, &offset);
	if (!m || m->page_size == UNIT)
		reg->ioctls |= 1ULL << _UFFDIO_ZEROPAGE;
	return 0;
}

static long uffd_unregister(struct object *uffd, struct uffdio_range *range)
{
	struct range *r = fake__range_at(uffd, range->start);

	if (!r)
		return -EINVAL;
	*r = (struct range){ 0 };
	return 0;
}

/* from 0: zeros. What comes without protection has none, whatever was there. */
static long uffd_fill(struct object *uffd, uint64_t to, uint64_t from,
		      uint64_t length, bool protect, __s64 *count)
{
	uint64_t done = 0, offset;
	struct object *m = fake__memory_at(to, &offset);

	if (!m || !fake__range_at(uffd, to))
		return *count = -ENOENT;
	if ((to | length) & (m->page_size - 1))
		return -EINVAL;
	if (!from && m->page_size != UNIT)
		return -EINVAL;
	while (done < length &&
	       !m->present[(offset + done) / m->page_size]) {
		char *page = (char *)(uintptr_t)to + done;

		if (from)
			memcpy(page, (char *)(uintptr_t)from + done,
			       m->page_size);
		else
			memset(page, 0, m->page_size);
		m->present[(offset + done) / m->page_size] = 1;
		*fake__page_mapped(m, to + done) = 1;
		*fake__page_of(m, m->marker, to + done) = 0;
		*fake__page_protected(m, to + done) = protect;
		done += m->page_size;
	}
	*count = done ? (int64_t)done : -EEXIST;
	return done == length ? 0 : done ? -EAGAIN : -EEXIST;
}

static long uffd_continue(struct object *uffd, struct uffdio_continue *cont)
{
	uint64_t to = cont->range.start, done = 0, offset;
	struct object *m = fake__memory_at(to, &offset);
	long err = 0;

	if (!m || !fake__range_at(uffd, to))
		return cont->mapped = -ENOENT;
	for (; done < cont->range.len && !err; done += err ? 0 : m->page_size) {
		if (!m->present[(offset + done) / m->page_size])
			err = -EFAULT;
		else if (*fake__page_mapped(m, to + done))
			err = -EEXIST;
		else
			*fake__page_mapped(m, to + done) = 1;
		if (!err)
			*fake__page_of(m, m->marker, to + done) = 0;
		if (!err)
			*fake__page_protected(m, to + done) = cont->mode &
				KVMFAULT__UFFDIO_CONTINUE_MODE_WP ? 1 : 0;
	}
	cont->mapped = done ? (int64_t)done : err;
	return err && done ? -EAGAIN : err;
}

static long uffd_copy(struct object *uffd, struct uffdio_copy *copy)
{
	return uffd_fill(uffd, copy->dst, copy->src, copy->len,
			 copy->mode & UFFDIO_COPY_MODE_WP, &copy->copy);
}

static long uffd_zero(struct object *uffd, struct uffdio_zeropage *zero)
{
	__s64 count = 0;
	long err = uffd_fill(uffd, zero->range.start, 0, zero->range.len,
			     false, &count);

	zero->zeropage = count;
	return err;
}

/* A marker goes where there is nothing, not even another one. */
static long uffd_poison(struct object *uffd,
			struct kvmfault__uffdio_poison *poison)
{
	uint64_t at = poison->range.start, done = 0, offset;
	struct object *m = fake__memory_at(at, &offset);

	if (!uffd->api)
		return -EINVAL;
	if (!m || !fake__range_at(uffd, at))
		return poison->updated = -ENOENT;
	if ((at | poison->range.len) & (m->page_size - 1))
		return -EINVAL;
	for (; done < poison->range.len; done += m->page_size) {
		unsigned char *marker = fake__page_of(m, m->marker, at + done);

		if (*marker || *fake__page_protected(m, at + done) ||
		    m->present[(offset + done) / m->page_size])
			break;
		*marker = 1;
	}
	poison->updated = done ? (int64_t)done : -EEXIST;
	return done == poison->range.len ? 0 : done ? -EAGAIN : -EEXIST;
}

static long uffd_protect(struct object *uffd, struct uffdio_writeprotect *p)
{
	struct range *range = fake__range_at(uffd, p->range.start);
	uint64_t offset, at;
	struct object *m = fake__memory_at(p->range.start, &offset);

	if (!m || !range || !range->write_protect ||
	    p->range.start + p->range.len > range->start + range->length)
		return -ENOENT;
	if ((p->range.start | p->range.len) & (m->page_size - 1))
		return -EINVAL;
	for (at = 0; at < p->range.len; at += m->page_size)
		*fake__page_protected(m, p->range.start + at) =
			p->mode & UFFDIO_WRITEPROTECT_MODE_WP;
	return 0;
}

long fake__uffd_ioctl(struct object *uffd, struct fake_call *c)
{
	switch (c->number) {
	case UFFDIO_API:
		return uffd_api(uffd, c->arg);
	case UFFDIO_REGISTER:
		return uffd_register(uffd, c->arg);
	case UFFDIO_UNREGISTER:
		return uffd_unregister(uffd, c->arg);
	case UFFDIO_COPY:
		return uffd_copy(uffd, c->arg);
	case UFFDIO_ZEROPAGE:
		return uffd_zero(uffd, c->arg);
	case UFFDIO_CONTINUE:
		return uffd_continue(uffd, c->arg);
	case UFFDIO_WRITEPROTECT:
		return uffd_protect(uffd, c->arg);
	case KVMFAULT__UFFDIO_POISON:
		return uffd_poison(uffd, c->arg);
	case UFFDIO_WAKE:
		return uffd->api ? 0 : -EINVAL;
	}
	return -ENOTTY;
}

long fake__userfaultfd(struct fake_call *c)
{
	return fake__uffd_open((int)c->number);
}

int fake_uffd(int flags)
{
	int fd = fake_fd(FAKE_UFFD);

	fake__object_of(fd)->flags = flags;
	fake__object_of(fd)->api = true;
	return fd;
}

bool fake_registered(const void *address)
{
	bool yes;

	pthread_mutex_lock(&fake__lock);
	yes = fake__registered_with((uintptr_t)address);
	pthread_mutex_unlock(&fake__lock);
	return yes;
}

static bool queue(struct object *uffd, const struct uffd_msg *msg)
{
	if (!uffd || uffd->msgs == MESSAGES)
		return false;
	uffd->msg[uffd->msgs++] = *msg;
	pthread_cond_broadcast(&fake__changed);
	return true;
}

void fake_message(int fd, const struct uffd_msg *msg)
{
	pthread_mutex_lock(&fake__lock);
	queue(fake__object_of(fd), msg);
	pthread_mutex_unlock(&fake__lock);
}

bool fake_fault(const void *address, bool write)
{
	struct uffd_msg msg = { .event = UFFD_EVENT_PAGEFAULT };
	uint64_t offset;
	struct object *m;
	bool queued;

	msg.arg.pagefault.address = (uintptr_t)address;
	msg.arg.pagefault.flags = write ? UFFD_PAGEFAULT_FLAG_WRITE : 0;
	pthread_mutex_lock(&fake__lock);
	m = fake__memory_at((uintptr_t)address, &offset);
	if (write && m && m->present[offset / m->page_size] &&
	    *fake__page_protected(m, (uintptr_t)address))
		msg.arg.pagefault.flags |= UFFD_PAGEFAULT_FLAG_WP;
	queued = queue(fake__registered_with((uintptr_t)address), &msg);
	pthread_mutex_unlock(&fake__lock);
	return queued;
}
