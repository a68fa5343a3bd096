/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The context: all that the rooms share about one VM. Two contexts share
 * nothing.
 */

#ifndef KVMFAULT__VM_H
#define KVMFAULT__VM_H

#include "seat.h"
#include "table.h"

/* Waiters sleep on the sequence, which advances before a wake. */
struct kvmfault__bucket {
	_Alignas(KVMFAULT__CACHE_LINE) _Atomic uint32_t sequence;
	_Atomic uint32_t waiters;
};
#define KVMFAULT__BUCKETS 256

struct kvmfault__leaf;			/* attributes.c */
#define KVMFAULT__LEAVES 256		/* lists of leaves */

/* A conversion in progress or in the queue, on its thread's stack. */
struct kvmfault__conversion {
	struct kvmfault__conversion *next;
	struct kvmfault__gfns pages;
	uintptr_t owner;		/* pthread_self() of its thread */
	bool wait;			/* may wait for other conversions, and
					 * for pages in flight */
	bool refused;			/* another one that may not wait was
					 * sent away, and is told of its end */
};

/* Which of the proposed ABIs claims bit 3 of a memslot's flags. */
enum kvmfault__kernel_exit {
	KVMFAULT__KERNEL_EXIT_NONE,
	KVMFAULT__KERNEL_EXIT_USERFAULT,
	KVMFAULT__KERNEL_EXIT_ON_MISSING,
};

#define KVMFAULT__PAGE_KINDS (KVMFAULT_PAGE_HOLE + 1)

/* log.c: the texts of the last errors, see kvmfault_vm_error() */
#define KVMFAULT__TEXT 512		/* bytes of each */
#define KVMFAULT__TEXTS 8
struct kvmfault__text {
	atomic_bool busy;		/* one thread reads or writes it */
	_Atomic(uintptr_t) owner;	/* the failed call's pthread_self() */
	_Atomic uint64_t number;	/* from 1 on; the highest is newest */
	char text[KVMFAULT__TEXT];
};

/* How vCPUs' missing pages get here, and why not in another mode. */
struct kvmfault__delivery {
	enum kvmfault_delivery chosen;	/* at kvmfault_vm_new() */
	_Atomic uint32_t delivery;	/* in force: the chosen one, or UFFD */
	struct kvmfault_finding asked[KVMFAULT_DELIVERY_COUNT];
	const char *why[KVMFAULT_DELIVERY_COUNT];
	enum kvmfault__kernel_exit kernel_exit;
};

/* The resolvers: the VMM's own come before the library's. */
struct kvmfault__chain {
	struct kvmfault_resolver resolver[KVMFAULT_RESOLVER_COUNT];
	uint32_t asked[KVMFAULT__PAGE_KINDS];	/* for each kind of page: one
						 * bit for each resolver */
	unsigned int own;			/* how many are the VMM's */
	unsigned int resolvers;
};

/* Which pages are private, how KVM is told, and conversions in progress. */
struct kvmfault__conversions {
	_Atomic(struct kvmfault__leaf *) leaves[KVMFAULT__LEAVES];
	struct kvmfault_converter converter;	/* set is NULL: no conversion */
	struct kvmfault_conversion_hook hook[KVMFAULT_CONVERSION_HOOK_COUNT];
	atomic_uint hooks;
	atomic_bool kept;		/* the log has said that pages could
					 * not be freed */
	pthread_mutex_t lock;		/* for what follows; held briefly */
	struct kvmfault__conversion *first;	/* the oldest one */
	struct kvmfault__bucket ended;
};

/* Drainers are threads that wait until no seat holds an object. */
struct kvmfault__drain {
	_Atomic uint32_t drainers, sequence;
	_Atomic uint32_t unpinning;	/* threads that unpin a memory, and may
					 * not have told the drainers yet */
};

struct kvmfault__texts {
	_Atomic uint64_t kept;
	struct kvmfault__text text[KVMFAULT__TEXTS];
};

struct kvmfault_vm {
	struct kvmfault_vm_options options;
	struct kvmfault_vm_ops ops;
	/* A page that is not zero, but in a child of fork(); or NULL, if the
	 * kernel can't make one (before 4.14). */
	char *born;
	struct kvmfault__delivery how;
	kvmfault__table regions;	/* by gpa */
	kvmfault__table mappings;	/* by hva */
	_Atomic(struct kvmfault__seat *) seats;
	_Atomic(const void *) uffds[KVMFAULT__SPACES];
	struct kvmfault__chain chain;
	int epoll;			/* each userfaultfd is in it */
	_Atomic uint32_t baton;		/* epoll flag for every userfaultfd:
					 * EPOLLONESHOT with several service
					 * threads, else 0 */
	_Atomic(struct kvmfault__fetches *) fetches;	/* made once */
	_Atomic uint32_t pending;	/* seats that have `pending` set */
	_Atomic(const void *) deferred;	/* the service's, or NULL */
	atomic_bool unserved;		/* messages were read when there was
					 * no service */
	atomic_bool read;		/* threads of a service read messages */
	atomic_bool service_missed;	/* the log has said that there is no
					 * service */

	pthread_mutex_t lock;		/* for changes to all above */
	struct kvmfault__retired *retired;
	struct kvmfault_uffd *ended;	/* freed when no seat's span has it */
	size_t leaving;			/* spans that leave and are in a table
					 * still */
	unsigned int vcpus, services, memories, region_count, recordings;
	unsigned int tracked;		/* memories with page states */
	unsigned int fills;
	struct kvmfault__worker *workers;	/* all, until the end */

	struct kvmfault__conversions conversions;
	struct kvmfault__drain drain;
	struct kvmfault__bucket bucket[KVMFAULT__BUCKETS];
	struct kvmfault__texts texts;
};

/* Is this a child of fork()? The memories, their registrations and the threads
 * are its parent's, so that it must not take any of them down. */
static inline bool kvmfault__is_child(const struct kvmfault_vm *vm)
{
	return vm->born && !*vm->born;
}

static inline void kvmfault__tell_drainers(struct kvmfault_vm *vm)
{
	if (atomic_load(&vm->drain.drainers))
		kvmfault__wake_drainers(vm);
}

/* Clear the hazard, and wake the threads that drain on it. */
static inline void kvmfault__unhold(struct kvmfault__seat *seat,
				    enum kvmfault__hazard hazard)
{
	atomic_store(&seat->hazard[hazard], NULL);
	kvmfault__tell_drainers(seat->vm);
}

/* Clear the span, and wake the threads that drain on it. */
static inline void kvmfault__leave(struct kvmfault__seat *seat)
{
	atomic_store(&seat->span, NULL);
	kvmfault__tell_drainers(seat->vm);
}

#endif
