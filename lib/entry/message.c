/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Kind uffd, stage decode: reads messages and decodes them. In: a userfaultfd
 * that is readable. Out: faults for the service, and the states of pages that
 * an event takes. The kernel hands out faults before events that came earlier:
 * so the events of all messages that were read are noted before the first fault
 * is served.
 */

#include <sys/epoll.h>

#include "../os/abi.h"
#include "entry.h"
#include "../os/trace.h"

int kvmfault__uffd_listen(struct kvmfault_uffd *uffd, int op)
{
	struct epoll_event event = {
		.events = EPOLLIN | atomic_load(&uffd->vm->baton),
		.data.u64 = uffd->id,
	};

	return kvmfault__sys_epoll_ctl(uffd->vm->epoll, op, uffd->fd, &event);
}

void kvmfault__pass_baton(struct kvmfault_vm *vm, bool on)
{
	uint32_t baton = on ? EPOLLONESHOT : 0;
	uint32_t id;

	if (atomic_exchange(&vm->baton, baton) == baton)
		return;
	for (id = 1; id < KVMFAULT__SPACES; id++) {
		const void *uffd = atomic_load(&vm->uffds[id]);

		if (uffd)
			kvmfault__uffd_listen((void *)(uintptr_t)uffd,
					      EPOLL_CTL_MOD);
	}
}

struct range {
	uint64_t first, last;		/* keys: pages of 4 KiB */
};

/*
 * UFFD_EVENT_REMOVE comes for one mapping, also where the data stays in the
 * file. So only anonymous pages are discarded here; a file's page that is
 * really gone is noticed when a thread misses it.
 */
static void message_discard_span(struct kvmfault__seat *seat,
				 struct kvmfault__span *span, void *data)
{
	struct kvmfault_memory *memory = span->memory;
	const struct range *gone = data;
	uint64_t first = gone->first > span->first ? gone->first : span->first;
	uint64_t last = gone->last < span->last ? gone->last : span->last;
	unsigned int shift = memory->page_shift - 12;
	uint64_t page;

	(void)seat;
	if (first > last || memory->fd > 0 || !kvmfault__tracked(memory))
		return;
	page = (first - span->first) >> shift;
	last = (last - span->first) >> shift;
	for (; page <= last; page++) {
		kvmfault__page_discard(memory, page);
		kvmfault__userfault_follow(memory, page, 1);
	}
}

/* One event may span two memories that lie side by side. */
static void message_discard_range(struct kvmfault__seat *seat, uint32_t space,
				  uint64_t start, uint64_t end)
{
	struct range gone = {
		.first = kvmfault__key(space, start),
		.last = kvmfault__key(space, end - 1),
	};

	if (end > start)
		kvmfault__table_visit(seat, &seat->vm->mappings,
				      message_discard_span, &gone);
}

ssize_t kvmfault__messages_read(struct kvmfault__seat *seat,
			   struct kvmfault_uffd *uffd, struct uffd_msg *msg,
			   size_t count)
{
	ssize_t i, n;

	if (uffd->reader)
		kvmfault__reading_begin(uffd);
	n = kvmfault__uffd_read(uffd->fd, msg, count * sizeof(*msg)) /
	    (ssize_t)sizeof(*msg);
	for (i = 0; i < n; i++)
		if (msg[i].event == UFFD_EVENT_REMOVE)
			message_discard_range(seat, uffd->space,
					      msg[i].arg.remove.start,
					      msg[i].arg.remove.end);
		else if (msg[i].event == UFFD_EVENT_REMAP)
			atomic_store(&uffd->moved, true);
	if (uffd->reader)
		kvmfault__reading_end(uffd);
	return n;
}

static void message_report_event(struct kvmfault_vm *vm,
				 const struct uffd_msg *msg)
{
	switch (msg->event) {
	case UFFD_EVENT_FORK:
		/* The kernel gives a descriptor for the child's memory. */
		kvmfault__sys_close((int)msg->arg.fork.ufd);
		kvmfault__log(vm, KVMFAULT_LOG_WARNING,
			      "a process with registered guest memory has forked: its child must not touch that memory");
		return;
	case UFFD_EVENT_REMAP:
		kvmfault__log(vm, KVMFAULT_LOG_ERROR,
			      "guest memory at %#llx was moved to %#llx by mremap(): no page comes there any more, and a thread that misses one sleeps; before mremap() call kvmfault_mapping_remove(), or kvmfault_memory_free() for the first mapping, and add it again after that",
			      (unsigned long long)msg->arg.remap.from,
			      (unsigned long long)msg->arg.remap.to);
		return;
	case UFFD_EVENT_UNMAP:
		kvmfault__log(vm, KVMFAULT_LOG_WARNING,
			      "registered guest memory was unmapped: call kvmfault_mapping_remove() before that, or kvmfault_memory_free() for the first mapping");
		return;
	}
}

bool kvmfault__message_decode(struct kvmfault__seat *seat, uint32_t space,
			  const struct uffd_msg *msg,
			  struct kvmfault__message *item)
{
	uint64_t flags = msg->arg.pagefault.flags;

	if (msg->event != UFFD_EVENT_PAGEFAULT) {
		message_report_event(seat->vm, msg);
		return false;
	}
	*item = (struct kvmfault__message){
		.fault = {
			.size = sizeof(item->fault),
			.kind = KVMFAULT_KIND_UFFD,
			.access = flags & UFFD_PAGEFAULT_FLAG_WRITE ?
				KVMFAULT_ACCESS_WRITE : KVMFAULT_ACCESS_READ,
			.known = KVMFAULT_KNOWN_HVA,
			.hva = msg->arg.pagefault.address &
			       ~(KVMFAULT__PAGE - 1),
			.length = KVMFAULT__PAGE,
			/* These three flags are told by the access and by the
			 * page's state. */
			.flags = flags & ~(uint64_t)(UFFD_PAGEFAULT_FLAG_WRITE |
						     UFFD_PAGEFAULT_FLAG_WP |
						     UFFD_PAGEFAULT_FLAG_MINOR),
		},
		.space = space,
	};
	KVMFAULT__TRACE(message, space, item->fault.hva, item->fault.access,
			flags);
	kvmfault__add(seat, KVMFAULT__COUNTER(kind) +
		      KVMFAULT_KIND_UFFD, 1);
	return true;
}
