/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The context: what the rooms share of one VM. Nothing is shared between two of them.
 */

#ifndef KVMFAULT__VM_H
#define KVMFAULT__VM_H

#include "seat.h"
#include "table.h"

struct kvmfault__bucket {		/* where waiters for pages sleep */
	_Alignas(KVMFAULT__CACHE_LINE) _Atomic uint32_t sequence;
	_Atomic uint32_t waiters;
};
#define KVMFAULT__BUCKETS 256

struct kvmfault__leaf;			/* attributes.c */
#define KVMFAULT__LEAVES 256		/* lists of them */

/* A conversion in progress or waiting; on the stack of who converts. */
struct kvmfault__conversion {
	struct kvmfault__conversion *next;
	struct kvmfault__gfns pages;
	uintptr_t owner;
	bool wait;			/* for others, and pages in flight */
	bool refused;			/* who did not want to wait for it */
};

/* Which of the proposed ABIs claims flag bit 3 of memslots. */
enum kvmfault__kernel_exit {
	KVMFAULT__KERNEL_EXIT_NONE,
	KVMFAULT__KERNEL_EXIT_USERFAULT,
	KVMFAULT__KERNEL_EXIT_ON_MISSING,
};

#define KVMFAULT__PAGE_KINDS (KVMFAULT_PAGE_PROTECTED + 1)

/* log.c: the texts of the last errors, see kvmfault_vm_error() */
#define KVMFAULT__TEXT 512
#define KVMFAULT__TEXTS 8
struct kvmfault__text {
	atomic_bool busy;		/* read or written by one thread */
	_Atomic(uintptr_t) owner;	/* pthread_self() of who failed */
	_Atomic uint64_t number;	/* from 1 on; the highest is the newest */
	char text[KVMFAULT__TEXT];
};

/* How vCPUs' missing pages get here, and why not in another way. */
struct kvmfault__delivery {
	enum kvmfault_delivery chosen;	/* the mode that can be had */
	_Atomic uint32_t delivery;	/* in force: that, or UFFD */
	struct kvmfault_finding asked[KVMFAULT_DELIVERY_COUNT];
	const char *why[KVMFAULT_DELIVERY_COUNT];
	enum kvmfault__kernel_exit kernel_exit;
};

/* The resolvers: the VMM's own come before the library's. */
struct kvmfault__chain {
	struct kvmfault_resolver resolver[KVMFAULT_RESOLVER_COUNT];
	uint32_t asked[KVMFAULT__PAGE_KINDS];	/* of each kind of page: bits
						 * of the chain's indices */
	unsigned int own;
	unsigned int resolvers;
};

/* Which pages are private, who tells KVM, and whose turn it is. */
struct kvmfault__conversions {
	_Atomic(struct kvmfault__leaf *) leaves[KVMFAULT__LEAVES];
	struct kvmfault_converter converter;	/* set NULL: none possible */
	struct kvmfault_conversion_hook hook[KVMFAULT_CONVERSION_HOOK_COUNT];
	atomic_uint hooks;
	atomic_bool kept;		/* pages that could not be freed */
	pthread_mutex_t lock;		/* short; of the following */
	struct kvmfault__conversion *first;	/* the oldest one */
	struct kvmfault__bucket ended;
};

/* Threads that wait until no seat holds something. */
struct kvmfault__drain {
	_Atomic uint32_t drainers, sequence;
	_Atomic uint32_t unpinning;	/* threads that have unpinned a memory,
					 * and have not told the drainers yet */
};

struct kvmfault__texts {
	_Atomic uint64_t kept;
	struct kvmfault__text text[KVMFAULT__TEXTS];
};

struct kvmfault_vm {
	struct kvmfault_vm_options options;
	struct kvmfault_vm_ops ops;
	struct kvmfault__delivery how;
	kvmfault__table regions;	/* by gpa */
	kvmfault__table mappings;	/* by hva */
	_Atomic(struct kvmfault__seat *) seats;
	_Atomic(const void *) uffds[KVMFAULT__SPACES];
	struct kvmfault__chain chain;
	int epoll;			/* every uffd is in it, */
	_Atomic uint32_t baton;		/* EPOLLONESHOT: one thread is woken
					 * for a message; or 0 */
	_Atomic(struct kvmfault__fetches *) fetches;	/* made once */
	_Atomic uint32_t pending;	/* vCPUs that were told so */
	_Atomic(const void *) deferred;	/* the service's, or NULL */
	atomic_bool unserved;		/* messages that were read without */
	atomic_bool service_missed;	/* that was said */

	pthread_mutex_t lock;		/* of all changes to the above */
	struct kvmfault__retired *retired;
	struct kvmfault_uffd *ended;
	size_t leaving;			/* spans that are in a table still */
	unsigned int vcpus, services, memories, region_count;
	unsigned int tracked;		/* of the memories */
	struct kvmfault__worker *workers;	/* all that there ever were */

	struct kvmfault__conversions conversions;
	struct kvmfault__drain drain;
	struct kvmfault__bucket bucket[KVMFAULT__BUCKETS];
	struct kvmfault__texts texts;
};

static inline void kvmfault__tell_drainers(struct kvmfault_vm *vm)
{
	if (atomic_load(&vm->drain.drainers))
		kvmfault__wake_drainers(vm);
}

/* What a seat held it holds no more, and who waits for that is told. */
static inline void kvmfault__unhold(struct kvmfault__seat *seat,
				    enum kvmfault__hazard hazard)
{
	atomic_store(&seat->hazard[hazard], NULL);
	kvmfault__tell_drainers(seat->vm);
}

/* Likewise, its span. */
static inline void kvmfault__leave(struct kvmfault__seat *seat)
{
	atomic_store(&seat->span, NULL);
	kvmfault__tell_drainers(seat->vm);
}

#endif
