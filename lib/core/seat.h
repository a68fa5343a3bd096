/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Seats: what a thread holds, counts and is in the middle of, in one VM. A thread holds
 * what it reads by naming it in its seat; what was taken out of use is freed when no
 * seat names it.
 */

#ifndef KVMFAULT__SEAT_H
#define KVMFAULT__SEAT_H

#include "core.h"

struct kvmfault__retired {
	struct kvmfault__retired *next;
};

/* What a table holds: an address range that belongs to a memory. Begins a
 * region and a mapping. */
struct kvmfault__span {
	struct kvmfault__retired retired;
	struct kvmfault_memory *memory;	/* or NULL */
	struct kvmfault_uffd *uffd;	/* a mapping's, or NULL */
	uint64_t first, last;		/* keys, see table.c */
	atomic_bool dead;		/* removed: nobody finds it any more */
	bool leaves;	/* its table, with the next copy: under the VM's lock */
};

#define KVMFAULT__COUNTERS \
	((sizeof(struct kvmfault_stats) - sizeof(size_t)) / sizeof(uint64_t))
#define KVMFAULT__COUNTER(field) \
	((offsetof(struct kvmfault_stats, field) - sizeof(size_t)) / \
	 sizeof(uint64_t))

/*
 * What a thread is in the middle of: a seat for each call or fault, the innermost
 * first. A callback that waits for what one of the outer ones holds would wait
 * for itself.
 */
struct kvmfault__inside {
	struct kvmfault__seat *seat;		/* or NULL */
	const struct kvmfault_memory *memory;	/* whose pages it has, or NULL */
	void **own;				/* the thread's, in which it is */
	struct kvmfault__inside *outer;
};

/* What a seat can hold, each for a short time. */
enum kvmfault__hazard {
	KVMFAULT__HAZARD_TABLE,		/* a lookup */
	KVMFAULT__HAZARD_REGION,	/* one that is known to show a memory */
	KVMFAULT__HAZARD_MAPPINGS,	/* an install or a wake */
	KVMFAULT__HAZARD_UFFD,		/* a read of messages */
	KVMFAULT__HAZARD_DEFERRED,	/* a message is deferred: the service's */
	KVMFAULT__HAZARD_INSTALLING,	/* into that userfaultfd's range */
	KVMFAULT__HAZARD_PUNCH,		/* a hole in that region's guest_memfd */
	KVMFAULT__HAZARD_MARKING,	/* a memory, given markers */
	KVMFAULT__HAZARDS,
};

#define KVMFAULT__FAILURES 8	/* as many pages as a vCPU's guard remembers */

/* A thread's place in a VM: its hazards, scratch memory and counters. Written
 * by that thread only. */
struct kvmfault__seat {
	_Alignas(KVMFAULT__CACHE_LINE) struct kvmfault_vm *vm;
	struct kvmfault__seat *next;
	atomic_bool taken;
	struct kvmfault__inside inside;	/* of who has it for one call */
	_Atomic(const void *) hazard[KVMFAULT__HAZARDS];
	_Atomic(struct kvmfault__span *) span; /* long: a fault */
	atomic_bool at_signal;		/* its span is a SIGBUS's, which may
					 * touch the page */
	const uint8_t *immediate_exit;	/* of a vCPU, or NULL */
	struct kvmfault_service *service; /* whose thread has it */
	struct kvmfault_vcpu *vcpu;	/* whose it is, or NULL */
	_Atomic uint32_t *task;		/* the state of its worker, or NULL */
	bool no_wait;			/* its vCPU waits for no page */
	bool in_hand;			/* a resolver is asked for a claimed one */
	bool pending;			/* counted in vm->pending */
	/* fetches that it asked for, and was not told of: fetch.c's */
	_Atomic uint64_t failed[KVMFAULT__FAILURES];
	_Atomic uint32_t failures;	/* that there were */
	_Atomic(struct kvmfault_memory *) wish;	/* to fetch, when one can, */
	_Atomic uint64_t wish_offset;	/* that page of it */
	_Atomic uint32_t pause;		/* futex word, never changes */
	void *buffer;
	_Atomic uint64_t counter[KVMFAULT__COUNTERS];
};

/* The VM's list grows and never shrinks; NULL when out of memory. */
struct kvmfault__seat *kvmfault__seat_take(struct kvmfault_vm *vm);
void kvmfault__seat_give(struct kvmfault__seat *seat);
void kvmfault__seats_free(struct kvmfault_vm *vm);

/* Until kvmfault__exit(), on this thread. */
void kvmfault__enter(struct kvmfault__inside *inside,
		     struct kvmfault__seat *seat,
		     const struct kvmfault_memory *memory);
static inline void kvmfault__exit(const struct kvmfault__inside *inside)
{
	*inside->own = inside->outer;
}
/* Is it true of a seat that this thread is in? Has one of them something of the
 * memory, other than that one (or NULL)? */
bool kvmfault__within(bool (*busy)(struct kvmfault__seat *seat, void *what),
		      void *what);
bool kvmfault__within_memory(const struct kvmfault_memory *memory,
			     const struct kvmfault__seat *but);
/* Has this thread a page that is claimed, and others may wait for? */
bool kvmfault__in_hand(void);
/* A seat for one call, and in it; NULL when out of memory. */
struct kvmfault__seat *kvmfault__call_begin(struct kvmfault_vm *vm);
void kvmfault__call_end(struct kvmfault__seat *seat);

/* Read *where and hold it; validated. */
static inline void *kvmfault__hold(struct kvmfault__seat *seat,
				   enum kvmfault__hazard hazard,
				   _Atomic(const void *) *where)
{
	const void *held;

	do {
		held = atomic_load(where);
		atomic_store(&seat->hazard[hazard], held);
		/* Still in use after we are seen to hold it: it is ours. */
	} while (atomic_load(where) != held);
	return (void *)(uintptr_t)held;
}

static inline const void *kvmfault__held(const struct kvmfault__seat *seat,
					 enum kvmfault__hazard hazard)
{
	return atomic_load(&seat->hazard[hazard]);
}
void kvmfault__wake_drainers(struct kvmfault_vm *vm);

/* Under the VM's lock: it is out of use (NULL is fine). A table or list that
 * was replaced and all that went with it are retired before the next reclaim,
 * which frees what no seat can be holding. */
void kvmfault__retire(struct kvmfault_vm *vm, const void *retired);
void kvmfault__reclaim(struct kvmfault_vm *vm);
bool kvmfault__retired(struct kvmfault_vm *vm, const void *what);
/* Wait, without the lock, until busy() is false for every seat; not for the
 * caller's own. */
void kvmfault__drain(struct kvmfault_vm *vm,
		     bool (*busy)(struct kvmfault__seat *seat, void *what),
		     void *what);
/* The same for anything that kvmfault__tell_drainers() is called for. */
void kvmfault__drain_until(struct kvmfault_vm *vm,
			   bool (*busy)(struct kvmfault_vm *vm, void *what),
			   void *what);
bool kvmfault__any_seat(struct kvmfault_vm *vm,
			bool (*busy)(struct kvmfault__seat *seat, void *what),
			void *what);

static inline void kvmfault__add(struct kvmfault__seat *seat, size_t counter,
				 uint64_t n)
{
	/* One writer: no locked instruction needed. */
	uint64_t value = atomic_load_explicit(&seat->counter[counter],
					      memory_order_relaxed);

	atomic_store_explicit(&seat->counter[counter], value + n,
			      memory_order_relaxed);
}
#define kvmfault__count(seat, field) \
	kvmfault__add(seat, KVMFAULT__COUNTER(field), 1)

/* Counts how long an answer took. */
void kvmfault__latency(struct kvmfault__seat *seat, uint64_t nanoseconds);

/* The fetches of the seat, or of all seats, that failed are forgotten: another thread
 * has the seat, or another memory may come to be at the same address. */
void kvmfault__failures_forget(struct kvmfault__seat *seat);
void kvmfault__failures_forget_all(struct kvmfault_vm *vm);

/*
 * vcpu-hold.c: whose turn it is between a vCPU's thread and the worker that does its
 * tasks: the worker's state, which is a futex word.
 */
#define KVMFAULT__TASK_BUSY (1U << 0)	/* the worker has it; else the vCPU's thread */
#define KVMFAULT__TASK_LEFT (1U << 1)	/* the vCPU's thread has left: the answer is
					 * for nobody */
#define KVMFAULT__TASK_HELD (1U << 2)	/* and it must not: the worker touches the
					 * vCPU */
#define KVMFAULT__TASK_STOP (1U << 3)	/* the context is being freed */
/* For work: what the vCPU is may be changed until kvmfault__free_vcpu(), since its
 * thread stays where it is. Not across what sleeps for a page in the kernel. False:
 * it has gone already. */
bool kvmfault__hold_vcpu(struct kvmfault__seat *seat);
void kvmfault__free_vcpu(struct kvmfault__seat *seat);

#endif
