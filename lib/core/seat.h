/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Seats: a thread's record in one VM of the objects that it holds, of its
 * counters and of its scratch memory. A thread holds a shared object by naming
 * it in its seat. An object that was taken out of use is freed when no seat
 * names it. kvmfault__hold() runs in a signal handler, too (entry/signal.c).
 */

#ifndef KVMFAULT__SEAT_H
#define KVMFAULT__SEAT_H

#include "core.h"

struct kvmfault__retired {
	struct kvmfault__retired *next;
};

/* An interval of addresses in a table, which belongs to a memory. Each region
 * and each mapping begins with one. */
struct kvmfault__span {
	struct kvmfault__retired retired;
	struct kvmfault_memory *memory;	/* or NULL */
	struct kvmfault_uffd *uffd;	/* a mapping's, or NULL */
	uint64_t first, last;		/* see kvmfault__key() */
	atomic_bool dead;		/* removed: no lookup returns it */
	bool leaves;			/* not in the table's next copy;
					 * under the VM's lock */
};

#define KVMFAULT__COUNTERS \
	((sizeof(struct kvmfault_stats) - sizeof(size_t)) / sizeof(uint64_t))
#define KVMFAULT__COUNTER(field) \
	((offsetof(struct kvmfault_stats, field) - sizeof(size_t)) / \
	 sizeof(uint64_t))

/*
 * One call, fault, worker or completed fetch that a thread is inside of. They
 * form a list, the innermost first: if a callback waited for something that an
 * outer one holds, the thread would wait for itself.
 */
struct kvmfault__inside {
	struct kvmfault__seat *seat;		/* or NULL */
	const struct kvmfault_memory *memory;	/* has a page of it, or NULL */
	void **own;				/* the head of the list */
	struct kvmfault__inside *outer;
};

/* The objects that a seat can hold, each for a short time. */
enum kvmfault__hazard {
	KVMFAULT__HAZARD_TABLE,		/* a table, for a lookup */
	KVMFAULT__HAZARD_REGION,	/* a memory's `shown` region */
	KVMFAULT__HAZARD_MAPPINGS,	/* a list, for an install or a wake */
	KVMFAULT__HAZARD_UFFD,		/* to read its messages */
	KVMFAULT__HAZARD_DEFERRED,	/* the service's deferred messages */
	KVMFAULT__HAZARD_INSTALLING,	/* the uffd of an install's memory */
	KVMFAULT__HAZARD_PUNCH,		/* a region, for a hole in its file */
	KVMFAULT__HAZARD_MARKING,	/* a memory that is given markers */
	KVMFAULT__HAZARD_RECORDING,	/* to note a page that has come */
	KVMFAULT__HAZARDS,
};

#define KVMFAULT__FAILURES 8	/* as many pages as a vCPU's guard remembers */

/* One thread at a time has the seat. Only that thread writes the hazards, the
 * span, the counters and the scratch memory. */
struct kvmfault__seat {
	_Alignas(KVMFAULT__CACHE_LINE) struct kvmfault_vm *vm;
	struct kvmfault__seat *next;
	atomic_bool taken;
	struct kvmfault__inside inside;	/* the call or thread that has it */
	_Atomic(const void *) hazard[KVMFAULT__HAZARDS];
	_Atomic(struct kvmfault__span *) span; /* for a whole fault */
	atomic_bool at_signal;		/* the span is a mapping, held for a
					 * SIGBUS, and may be touched */
	const uint8_t *immediate_exit;	/* if not 0, waits end; or NULL */
	struct kvmfault_service *service; /* that its thread belongs to */
	struct kvmfault_vcpu *vcpu;	/* that its thread serves, or NULL */
	_Atomic uint32_t *task;		/* a worker's state, or NULL */
	bool no_wait;			/* its vCPU waits for no page */
	atomic_bool in_hand;		/* its thread is in a resolver, with
					 * a page that it has claimed */
	_Atomic(struct kvmfault_fill *) fill; /* that its thread works for, */
	uint64_t ahead;			/* and the window: so many pages from
					 * the fault's on; 0: no fill asks */
	bool gentle;			/* that fill may have but one fetch in
					 * flight */
	bool pending;			/* counted in vm->pending */
	/* its fetches that failed, each until a fault takes it: see fetch.c */
	_Atomic uint64_t failed[KVMFAULT__FAILURES];
	_Atomic uint32_t failures;	/* how many were noted in it */
	_Atomic int fill_error;		/* of the last one that was its fill's,
					 * until that fill takes it */
	/* no fetch was free for this page: page_ready() is called for it when
	 * one is */
	_Atomic(struct kvmfault_memory *) wish;
	_Atomic uint64_t wish_offset;
	_Atomic uint32_t pause;		/* futex word, never changes */
	void *buffer;			/* scratch: the largest page size */
	_Atomic uint64_t counter[KVMFAULT__COUNTERS];
};

/* Take a seat that is free, or a new one: the VM's list never shrinks. Returns
 * NULL if there is no memory. */
struct kvmfault__seat *kvmfault__seat_take(struct kvmfault_vm *vm);
void kvmfault__seat_give(struct kvmfault__seat *seat);
void kvmfault__seats_free(struct kvmfault_vm *vm);

/* The calling thread is inside of seat and memory (each may be NULL) until
 * kvmfault__exit(). */
void kvmfault__enter(struct kvmfault__inside *inside,
		     struct kvmfault__seat *seat,
		     const struct kvmfault_memory *memory);
static inline void kvmfault__exit(const struct kvmfault__inside *inside)
{
	*inside->own = inside->outer;
}
/* Is busy() true for a seat that the calling thread is inside of? */
bool kvmfault__within(bool (*busy)(struct kvmfault__seat *seat, void *what),
		      void *what);
/* Does an entry of the calling thread's list name the memory, or does a seat in
 * the list, other than `but`, hold a span of it? */
bool kvmfault__within_memory(const struct kvmfault_memory *memory,
			     const struct kvmfault__seat *but);
/* Has the calling thread claimed a page, which other threads may wait for? */
bool kvmfault__in_hand(void);
/* Take a seat for one call and enter it. Returns NULL if there is no memory. */
struct kvmfault__seat *kvmfault__call_begin(struct kvmfault_vm *vm);
void kvmfault__call_end(struct kvmfault__seat *seat);

/* Read *where and hold the object that it names. This runs in a signal handler,
 * too: no lock, no system call. */
static inline void *kvmfault__hold(struct kvmfault__seat *seat,
				   enum kvmfault__hazard hazard,
				   _Atomic(const void *) *where)
{
	const void *held;

	do {
		held = atomic_load(where);
		atomic_store(&seat->hazard[hazard], held);
		/* If *where names it even now, a thread that retires it later
		 * sees the hazard: the object stays. */
	} while (atomic_load(where) != held);
	return (void *)(uintptr_t)held;
}

static inline const void *kvmfault__held(const struct kvmfault__seat *seat,
					 enum kvmfault__hazard hazard)
{
	return atomic_load(&seat->hazard[hazard]);
}
void kvmfault__wake_drainers(struct kvmfault_vm *vm);

/* Under the VM's lock: `retired` (or NULL) is out of use. Before the next
 * reclaim the caller retires a replaced table or list and all that went with
 * it. */
void kvmfault__retire(struct kvmfault_vm *vm, const void *retired);
/* Under the VM's lock: free the retired objects that no seat can be using. */
void kvmfault__reclaim(struct kvmfault_vm *vm);
/* Under the VM's lock: is it retired, and not freed yet? */
bool kvmfault__retired(struct kvmfault_vm *vm, const void *what);
/* Wait, without the VM's lock, until busy() is false for every seat. If a seat
 * of the caller's were busy, the thread would wait for itself. */
void kvmfault__drain(struct kvmfault_vm *vm,
		     bool (*busy)(struct kvmfault__seat *seat, void *what),
		     void *what);
/* The same, for any state of which a change calls kvmfault__tell_drainers(). */
void kvmfault__drain_until(struct kvmfault_vm *vm,
			   bool (*busy)(struct kvmfault_vm *vm, void *what),
			   void *what);
/* One look of kvmfault__drain(), which waits for so long at most. Returns true
 * if the caller has to look again. */
bool kvmfault__drain_look(struct kvmfault_vm *vm,
			  bool (*busy)(struct kvmfault__seat *seat, void *what),
			  void *what, uint64_t nanoseconds);
/* Under the VM's lock: is busy() true for any seat? */
bool kvmfault__any_seat(struct kvmfault_vm *vm,
			bool (*busy)(struct kvmfault__seat *seat, void *what),
			void *what);

static inline void kvmfault__add(struct kvmfault__seat *seat, size_t counter,
				 uint64_t n)
{
	/* The seat's thread alone writes: no locked instruction is needed. */
	uint64_t value = atomic_load_explicit(&seat->counter[counter],
					      memory_order_relaxed);

	atomic_store_explicit(&seat->counter[counter], value + n,
			      memory_order_relaxed);
}
#define kvmfault__count(seat, field) \
	kvmfault__add(seat, KVMFAULT__COUNTER(field), 1)

/* Count an answer in the histogram of the times that answers took. */
void kvmfault__latency(struct kvmfault__seat *seat, uint64_t nanoseconds);

/* Forget the failed fetches of one seat, since another thread takes it; or of
 * all seats, since another memory may come to be at the same address. */
void kvmfault__failures_forget(struct kvmfault__seat *seat);
void kvmfault__failures_forget_all(struct kvmfault_vm *vm);

/*
 * vcpu-hold.c: bits of a worker's state. The state is a futex word, on which
 * the worker and the thread of the vCPU with the task wait for each other.
 */
#define KVMFAULT__TASK_BUSY (1U << 0)	/* the worker has a task to do */
#define KVMFAULT__TASK_LEFT (1U << 1)	/* the vCPU's thread has left, and
					 * the answer is dropped */
#define KVMFAULT__TASK_HELD (1U << 2)	/* the worker touches the vCPU: its
					 * thread must not return */
#define KVMFAULT__TASK_STOP (1U << 3)	/* the context is being freed */
/* Before a worker touches the vCPU: keep the vCPU's thread where it is until
 * kvmfault__free_vcpu(); do not sleep in the kernel for a page between the two.
 * Returns false if the thread has left already. */
bool kvmfault__hold_vcpu(struct kvmfault__seat *seat);
void kvmfault__free_vcpu(struct kvmfault__seat *seat);

#endif
