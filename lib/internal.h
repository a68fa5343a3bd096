/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The whole private contract between the files of lib/, in the order of the
 * flow. A file may use what stands above its own section, and sys.h.
 */

#ifndef KVMFAULT__INTERNAL_H
#define KVMFAULT__INTERNAL_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "kvmfault.h"
#include "sys.h"

#define KVMFAULT__EXPORT __attribute__((visibility("default")))
#define KVMFAULT__PAGE 4096ULL
#define KVMFAULT__CACHE_LINE 128	/* two lines: the prefetcher's pair */

_Static_assert(sizeof(size_t) == 8, "KVM hosts are 64-bit");

/* options.c: open structs that grow. Copies what the caller has of a struct
 * of `ours` bytes, the rest zero; -EINVAL or -E2BIG. */
int kvmfault__options(void *to, size_t ours, const void *from);
/* The same for a struct of that name, with the reason for vm's log. */
int kvmfault__options_in(struct kvmfault_vm *vm, const char *name, void *to,
			 size_t ours, const void *from);
/* Can one of that name be filled? */
int kvmfault__options_to(const struct kvmfault_vm *vm, const char *name,
			 const void *to);
/* Fill one: copies out as much as the caller has. */
int kvmfault__options_out(void *to, const void *from, size_t ours);

/* paging.c: 1: the hardware walks the guest's page tables; 0: KVM does, in
 * software; -errno: could not ask. Of all VMs of this KVM. */
int kvmfault__two_dimensional(int kvm_fd);

/* decode.c */
void kvmfault__decode(int ret, int err, const struct kvm_run *run,
		      struct kvmfault_fault *fault);
/* The one that the vCPU is in. */
uint32_t kvmfault__address_space(const struct kvm_run *run);

/* seat.c: hazards. A reader holds what it reads by naming it in its seat; what
 * was taken out of use is freed when no seat names it. */
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

#define KVMFAULT__FAILURES 8	/* as many pages as a vCPU's guard remembers */

/* A thread's place in a VM: its hazards, scratch memory and counters. Written
 * by that thread only. */
struct kvmfault__seat {
	_Alignas(KVMFAULT__CACHE_LINE) struct kvmfault_vm *vm;
	struct kvmfault__seat *next;
	atomic_bool taken;
	struct kvmfault__inside inside;	/* of who has it for one call */
	_Atomic(const void *) table;	/* short: a lookup */
	_Atomic(struct kvmfault__span *) span; /* long: a fault */
	_Atomic(const void *) mappings;	/* short: an install or a wake */
	_Atomic(const void *) uffd;	/* short: a read of messages, or the
					 * service while something is parked */
	_Atomic(const void *) installing; /* short: into that userfaultfd's
					 * range */
	_Atomic(const void *) punch;	/* short: a hole in its guest_memfd */
	_Atomic(const void *) marking;	/* short: a memory, given markers */
	atomic_bool at_signal;		/* its span is a SIGBUS's, which may
					 * touch the page */
	const uint8_t *immediate_exit;	/* of a vCPU, or NULL */
	struct kvmfault_service *service; /* whose thread has it */
	struct kvmfault_vcpu *vcpu;	/* whose it is, or NULL */
	struct kvmfault__worker *worker; /* who has it, or NULL */
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

/* Read *where and hold it in hazard; validated. */
static inline void *kvmfault__hold(_Atomic(const void *) *hazard,
				   _Atomic(const void *) *where)
{
	const void *held;

	do {
		held = atomic_load(where);
		atomic_store(hazard, held);
		/* Still in use after we are seen to hold it: it is ours. */
	} while (atomic_load(where) != held);
	return (void *)(uintptr_t)held;
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

/* table.c: address -> span, lock-free for readers */
#define KVMFAULT__SPACES 4096		/* address spaces of either kind */

static inline uint64_t kvmfault__key(uint32_t space, uint64_t address)
{
	return (uint64_t)space << 52 | address >> 12;
}

typedef _Atomic(const void *) kvmfault__table;
struct kvmfault__span *kvmfault__table_find(struct kvmfault__seat *seat,
					    kvmfault__table *table,
					    uint64_t key);
/* The first that matches; as slow as the table is long. Without one what was
 * held before is held still, or something of the same memory. */
struct kvmfault__span *
kvmfault__table_search(struct kvmfault__seat *seat, kvmfault__table *table,
		       bool (*matches)(const struct kvmfault__span *span,
				       const void *what),
		       const void *what);
/* Under the VM's lock: */
struct kvmfault__span *kvmfault__table_at(kvmfault__table *table, uint64_t key);
/* A copy without those that leave, and with `add`, in the order of their keys. 0,
 * -ENOMEM, or -EEXIST: *count is then which of them overlaps another one. It is to
 * be freed, or put in the table's place: then those that leave are dead. */
int kvmfault__table_copy(struct kvmfault_vm *vm, kvmfault__table *table,
			 struct kvmfault__span **add, size_t *count,
			 void **copy);
void kvmfault__table_put(struct kvmfault_vm *vm, kvmfault__table *table,
			 void *copy);
/* It is to leave. Who has made it dead has removed it, which so can't fail: it is
 * in the table until there is memory for one without it. */
void kvmfault__table_drop(struct kvmfault_vm *vm, struct kvmfault__span *span);
void kvmfault__table_sweep(struct kvmfault_vm *vm, kvmfault__table *table);
/* Every living span, until that is not 0 for one. */
int kvmfault__table_each(kvmfault__table *table,
			 int (*each)(struct kvmfault__span *span, void *data),
			 void *data);
/* Every living span, held, without the lock. */
void kvmfault__table_visit(struct kvmfault__seat *seat, kvmfault__table *table,
			   void (*visit)(struct kvmfault__seat *seat,
					 struct kvmfault__span *span,
					 void *data), void *data);
/* When nobody is left to look anything up. */
void kvmfault__table_free(struct kvmfault_vm *vm, kvmfault__table *table);

/* vm.c */
struct kvmfault__bucket {		/* where waiters for pages sleep */
	_Alignas(KVMFAULT__CACHE_LINE) _Atomic uint32_t sequence;
	_Atomic uint32_t waiters;
};
#define KVMFAULT__BUCKETS 256

/* Guest-physical pages of 4 KiB; without the one at end. */
struct kvmfault__gfns {
	uint64_t first, end;
};

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

/* vm.c: the texts of the last errors, see kvmfault_vm_error() */
#define KVMFAULT__TEXT 512
#define KVMFAULT__TEXTS 8
struct kvmfault__text {
	atomic_bool busy;		/* read or written by one thread */
	_Atomic(uintptr_t) owner;	/* pthread_self() of who failed */
	_Atomic uint64_t number;	/* from 1 on; the highest is the newest */
	char text[KVMFAULT__TEXT];
};

struct kvmfault_vm {
	struct kvmfault_vm_options options;
	enum kvmfault_delivery chosen;	/* the mode that can be had */
	_Atomic uint32_t delivery;	/* in force: that, or UFFD */
	struct kvmfault_finding delivery_asked[KVMFAULT_DELIVERY_COUNT];
	const char *delivery_why[KVMFAULT_DELIVERY_COUNT];
	enum kvmfault__kernel_exit kernel_exit;
	kvmfault__table regions;	/* by gpa */
	kvmfault__table mappings;	/* by hva */
	_Atomic(struct kvmfault__seat *) seats;
	_Atomic(const void *) uffds[KVMFAULT__SPACES];
	struct kvmfault_resolver chain[KVMFAULT_RESOLVER_COUNT];
	uint32_t asked[KVMFAULT__PAGE_KINDS];	/* of each kind of page: bits
						 * of the chain's indices */
	unsigned int own_resolvers;	/* the VMM's, before ours */
	unsigned int resolvers;
	int epoll;			/* every uffd is in it, */
	_Atomic uint32_t baton;		/* EPOLLONESHOT: one thread is woken
					 * for a message; or 0 */
	_Atomic(struct kvmfault__fetches *) fetches;	/* made once */
	_Atomic uint32_t pending;	/* vCPUs that were told so */
	_Atomic(const void *) service;	/* struct kvmfault_service */
	atomic_bool unserved;		/* messages that were read without */

	pthread_mutex_t lock;		/* of all changes to the above */
	struct kvmfault__retired *retired;
	struct kvmfault_uffd *ended;
	size_t leaving;			/* spans that are in a table still */
	unsigned int vcpus, services, memories, region_count;
	unsigned int tracked;		/* of the memories */
	struct kvmfault__worker *workers;	/* all that there ever were */

	_Atomic(struct kvmfault__leaf *) leaves[KVMFAULT__LEAVES];
	struct kvmfault_converter converter;	/* set NULL: none possible */
	struct kvmfault_conversion_hook hook[KVMFAULT_CONVERSION_HOOK_COUNT];
	atomic_uint hooks;
	atomic_bool kept;		/* pages that could not be freed */

	pthread_mutex_t conversion_lock;	/* short; of the following */
	struct kvmfault__conversion *conversions;	/* the oldest first */
	struct kvmfault__bucket conversion_ended;

	_Atomic uint32_t drainers, drain_sequence;
	_Atomic uint32_t unpinning;	/* have unpinned a memory, and see to
					 * the drainers yet */
	struct kvmfault__bucket bucket[KVMFAULT__BUCKETS];

	atomic_bool service_missed;	/* that was said */
	_Atomic uint64_t texts_kept;
	struct kvmfault__text text[KVMFAULT__TEXTS];
};

static inline void kvmfault__tell_drainers(struct kvmfault_vm *vm)
{
	if (atomic_load(&vm->drainers))
		kvmfault__wake_drainers(vm);
}

/* What a seat held it holds no more, and who waits for that is told. */
static inline void kvmfault__unhold(struct kvmfault__seat *seat,
				    _Atomic(const void *) *hazard)
{
	atomic_store(hazard, NULL);
	kvmfault__tell_drainers(seat->vm);
}

/* Likewise, its span. */
static inline void kvmfault__leave(struct kvmfault__seat *seat)
{
	atomic_store(&seat->span, NULL);
	kvmfault__tell_drainers(seat->vm);
}

__attribute__((format(printf, 3, 4)))
void kvmfault__log(struct kvmfault_vm *vm, enum kvmfault_log_level level,
		   const char *format, ...);
/* A call fails: log why, naming the member or object, and return err. vm NULL:
 * there is no place for the text. */
__attribute__((format(printf, 3, 4)))
int kvmfault__refuse(struct kvmfault_vm *vm, int err, const char *format, ...);
int kvmfault__no_place(struct kvmfault_vm *vm, const char *function);
/* Once: warn if nobody answers what vCPUs may miss. */
void kvmfault__expect_service(struct kvmfault_vm *vm);

/* probe.c */
struct kvmfault_finding kvmfault__ask_poison(void);

/* delivery.c: how vCPUs' missing pages get here; -EOPNOTSUPP, logged */
int kvmfault__delivery_choose(struct kvmfault_vm *vm);

/* source.c: has it so many bytes, as far as it says, and its file now? */
bool kvmfault__source_reaches(const struct kvmfault_source *source,
			      uint64_t end);

/* uffd.c: one process's userfaultfd, and its calls with errors made sane */
struct kvmfault_uffd {
	struct kvmfault_vm *vm;
	int fd;
	uint32_t id;		/* index in vm->uffds */
	uint32_t space;		/* 0: this process; else id */
	unsigned int users;	/* mappings, under the VM's lock */
	bool own;		/* made for one mapping, goes with it */
	bool guards;		/* absent pages: its descriptor stays open */
	atomic_bool moved;	/* so does what mremap() has moved */
	struct kvmfault__reader *reader; /* it tells of events; or NULL */
	struct kvmfault_uffd *next;	/* that waits for its last use */
};

/* mode: UFFDIO_REGISTER_MODE_*, beside that for missing pages; ioctls: what can
 * be done there, bits of UFFDIO_* numbers */
int kvmfault__uffd_register(int fd, uint64_t start, uint64_t length,
			    uint64_t mode, uint64_t *ioctls);
int kvmfault__uffd_unregister(int fd, uint64_t start, uint64_t length);
/* How many bytes, from the first page on; it may be less than length. Or of that
 * page: -EEXIST: it is said to be there, nobody was woken; -ENOENT: nothing is
 * mapped; -EAGAIN: not now; ... page: its size. */
enum kvmfault__install {
	KVMFAULT__COPY,		/* from there */
	KVMFAULT__ZERO,
	KVMFAULT__MAP,		/* what is in the file: UFFDIO_CONTINUE */
};
int64_t kvmfault__uffd_install(int fd, enum kvmfault__install how, uint64_t to,
			       const void *from, uint64_t length, uint64_t page,
			       bool protect);
/* Off: who sleeps there is woken. Where nothing is mapped there is nothing to
 * protect. */
int kvmfault__uffd_protect(int fd, uint64_t start, uint64_t length,
			   uint64_t page, bool on);
int kvmfault__uffd_wake(int fd, uint64_t start, uint64_t length);
/* Markers, on *done bytes, and then 0 or as above; quiet: whoever sleeps there
 * sleeps on. */
int kvmfault__uffd_poison(int fd, uint64_t start, uint64_t length,
			  uint64_t page, bool quiet, uint64_t *done);
/* As read(2), and never asleep. */
ssize_t kvmfault__uffd_read(int fd, void *messages, size_t size);
/* Have the service told of its messages: EPOLL_CTL_ADD, or again, _MOD. */
int kvmfault__uffd_listen(struct kvmfault_uffd *uffd, int op);
/* Under the VM's lock. On: a message wakes one of the service's threads, and it has
 * the next one woken when it has read it. */
void kvmfault__pass_baton(struct kvmfault_vm *vm, bool on);
int kvmfault__uffd_open(unsigned int how);
/* No mapping uses it any more: it lives as long as a fault names it, which may take
 * its time; and then is freed by the next one to reap. */
void kvmfault__uffd_end(struct kvmfault_uffd *uffd, bool guards);
void kvmfault__uffds_reap(struct kvmfault_vm *vm);
#define KVMFAULT__UFFD_DEVICE (1U << 0)
#define KVMFAULT__UFFD_SYSCALL (1U << 1)

/* memory.c, mapping.c: what they are */
struct kvmfault_mapping {
	struct kvmfault__span span;
	struct kvmfault_uffd *uffd;	/* NULL: not tracked */
	uint64_t host;
	_Atomic uint64_t ioctls; /* that the kernel has there, by number */
	bool memslots;		/* the first one, which pages go through */
};

/* Of an address of that process; held in the seat until kvmfault__leave(), NULL:
 * none there. */
static inline struct kvmfault_mapping *
kvmfault__mapping_find(struct kvmfault__seat *seat, uint32_t space, uint64_t hva)
{
	return (struct kvmfault_mapping *)
		kvmfault__table_find(seat, &seat->vm->mappings,
				     kvmfault__key(space, hva));
}

struct kvmfault__mappings {		/* immutable; [0] is the memslots' */
	struct kvmfault__retired retired;
	size_t count;
	struct kvmfault_mapping *mapping[];
};

struct kvmfault_memory {
	struct kvmfault_vm *vm;
	uint64_t length;
	unsigned int page_shift;
	bool hugetlb;
	bool write_protect;	/* it can be */
	atomic_bool making;	/* nothing may come to it yet */
	int fd;
	uint64_t fd_offset;
	struct kvmfault_source source;	/* read NULL: not tracked */
	uint64_t source_offset;
	enum kvmfault_window window;
	uint64_t window_pages;		/* at most */
	void *host;		/* the memslots' mapping, and its uffd */
	struct kvmfault_uffd *uffd;
	char *fill;		/* the file, not registered: minor faults */
	_Atomic uint64_t *states;
	_Atomic(unsigned long) *userfault;	/* KVM's bitmap, or NULL */
	atomic_bool exits;		/* to be told by exits, see userfault.c */
	_Atomic(const void *) mappings;	/* struct kvmfault__mappings */
	unsigned int regions;		/* under the VM's lock */
	_Atomic(const void *) shown;	/* one of them, or NULL */
	_Atomic uint32_t fetches;	/* in flight, or wished for */
	_Atomic uint32_t closing;	/* it is being freed: */
#define KVMFAULT__CLOSED_FOR_VCPUS 1	/* only messages are answered yet, */
#define KVMFAULT__CLOSED 2		/* nor are they */
	_Atomic uint64_t *marked;	/* stretches that were given markers;
					 * behind them those only touched */
	atomic_uint marked_at_once;	/* of the former, not touched before */
	atomic_bool warned;		/* of pages that others put there */
	atomic_bool unshown;		/* a vCPU met it where no region is: said */
};

static inline bool kvmfault__tracked(const struct kvmfault_memory *memory)
{
	return memory->source.read || memory->source.submit;
}

/* Of anonymous memory an event says what has gone: see reader.c. */
static inline bool kvmfault__events_take(const struct kvmfault_memory *memory)
{
	return memory->fd <= 0 && memory->uffd->reader;
}

static inline uint64_t kvmfault__page_size(const struct kvmfault_memory *memory)
{
	return 1ULL << memory->page_shift;
}

/* page.c: the state machine of a memory's pages */
enum kvmfault__state {
	KVMFAULT__ABSENT = 0,
	KVMFAULT__FETCHING = 1,		/* exactly one thread has it */
	KVMFAULT__FETCHING_WAITED = 2,	/* and a thread sleeps in the kernel */
	KVMFAULT__FETCHING_REMOVED = 3,	/* and it was discarded meanwhile */
	KVMFAULT__PRESENT = 4,
	KVMFAULT__REMOVED = 5,
	KVMFAULT__POISONED = 6,		/* its data is lost */
};

static inline bool kvmfault__in_flight(enum kvmfault__state state)
{
	return state == KVMFAULT__FETCHING ||
	       state == KVMFAULT__FETCHING_WAITED ||
	       state == KVMFAULT__FETCHING_REMOVED;
}

int kvmfault__pages_new(struct kvmfault_memory *memory);
void kvmfault__pages_free(struct kvmfault_memory *memory);

/* Four bits a page: three are its state, the fourth says that it is protected. */
#define KVMFAULT__PAGE_BITS 4
#define KVMFAULT__PAGE_STATE 7ULL
#define KVMFAULT__PAGE_PROTECTED 8ULL
#define KVMFAULT__PAGES_PER_WORD (64 / KVMFAULT__PAGE_BITS)

static inline _Atomic uint64_t *
kvmfault__page_word(const struct kvmfault_memory *memory, uint64_t page)
{
	return &memory->states[page / KVMFAULT__PAGES_PER_WORD];
}

static inline unsigned int kvmfault__page_shift(uint64_t page)
{
	return page % KVMFAULT__PAGES_PER_WORD * KVMFAULT__PAGE_BITS;
}

static inline enum kvmfault__state
kvmfault__page_state(const struct kvmfault_memory *memory, uint64_t page)
{
	return atomic_load(kvmfault__page_word(memory, page)) >>
	       kvmfault__page_shift(page) & KVMFAULT__PAGE_STATE;
}

/* from -> to; returns what was found, from if it was changed. */
enum kvmfault__state kvmfault__page_change(struct kvmfault_memory *memory,
					   uint64_t page,
					   enum kvmfault__state from,
					   enum kvmfault__state to);
/* The same for as many as there are in that state, from the first on; how many.
 * A word's at a time. */
uint64_t kvmfault__pages_change(struct kvmfault_memory *memory, uint64_t first,
				uint64_t count, enum kvmfault__state from,
				enum kvmfault__state to);
/* absent or removed -> fetching; returns what was found. sleeper: if it is in
 * flight, tell the fetcher to wake the mappings. */
enum kvmfault__state kvmfault__page_claim(struct kvmfault_memory *memory,
					  uint64_t page, bool sleeper);
/* Beside the state, and not changed with it: what the page holds, or will when
 * it has come, must be saved before it is written. */
static inline bool
kvmfault__page_protected(const struct kvmfault_memory *memory, uint64_t page)
{
	return atomic_load(kvmfault__page_word(memory, page)) >>
	       kvmfault__page_shift(page) & KVMFAULT__PAGE_PROTECTED;
}
/* Of so many pages in one word of states those that are not in flight get the bit.
 * For each of the others the lowest of its bits is returned. */
uint64_t kvmfault__word_protect(struct kvmfault_memory *memory, uint64_t page,
				unsigned int count);
void kvmfault__page_unprotect(struct kvmfault_memory *memory, uint64_t page);
/* Who touches it needs nobody: present, or poisoned and marked so. */
bool kvmfault__page_settled(const struct kvmfault_memory *memory,
			    uint64_t page);
/* Its data is gone: removed, or its fetcher is told. */
void kvmfault__page_remove(struct kvmfault_memory *memory, uint64_t page);
/* Wait while it is in flight; 0, -EINTR, -EDEADLK: this thread has it, or -EAGAIN:
 * its memory is being freed. */
int kvmfault__page_wait(struct kvmfault__seat *seat,
			struct kvmfault_memory *memory, uint64_t page);
void kvmfault__page_wake(struct kvmfault_memory *memory, uint64_t page);
/* To the VMM, of the page there. */
void kvmfault__tell_settled(struct kvmfault_memory *memory, uint64_t offset);
/* Have all who wait for pages look again. */
void kvmfault__wake_waiters(struct kvmfault_vm *vm);
/* The VMM will be told when it is not in flight any more; false: it is not. */
bool kvmfault__page_pending(struct kvmfault__seat *seat,
			    struct kvmfault_memory *memory, uint64_t page);
void kvmfault__set_pending(struct kvmfault__seat *seat);
void kvmfault__not_pending(struct kvmfault__seat *seat);
/* Is there a page that nobody may read? */
bool kvmfault__pages_absent(struct kvmfault_memory *memory);
/* Is the vCPU's immediate_exit set, or has it left its worker? */
bool kvmfault__exit_wanted(const struct kvmfault__seat *seat);
/* Sleep until the word may be another; 0, or -EINTR for a signal or
 * immediate_exit. */
int kvmfault__sleep(struct kvmfault__seat *seat, _Atomic uint32_t *word,
		    uint32_t value);
/* Sleep for a moment; as above. */
int kvmfault__pause(struct kvmfault__seat *seat, uint64_t nanoseconds);

/* memory.c and mapping.c, what they do */
/* Is the page in the backing? 1, 0 or -errno. */
int kvmfault__memory_resident(const struct kvmfault_memory *memory,
			      uint64_t offset, uint64_t length);
/* Take pages out of the backing. */
int kvmfault__memory_punch(const struct kvmfault_memory *memory,
			   uint64_t offset, uint64_t length);
void kvmfault__tell_change(struct kvmfault_memory *memory, uint64_t offset,
			   uint64_t length, enum kvmfault_cause cause);
static inline void kvmfault__changed(struct kvmfault_memory *memory,
				     uint64_t offset, uint64_t length,
				     enum kvmfault_cause cause)
{
	if (memory->vm->options.changed)
		kvmfault__tell_change(memory, offset, length, cause);
}

/* maps.c: is at host what the memory says that it is? -EINVAL, refused: no. */
int kvmfault__maps_check(const struct kvmfault_memory *memory, uint64_t host);

/* The memory's first mapping is the memslots'. A tracked memory's mapping is
 * registered, with a uffd of its own where it was given none; it goes to no child
 * of fork(), unless it is inherited. */
int kvmfault__mapping_new(struct kvmfault_memory *memory, uint64_t host,
			  struct kvmfault_uffd *uffd, bool inherited,
			  struct kvmfault_mapping **mapping);
/* Every memory, held; the first error. */
int kvmfault__each_memory(struct kvmfault__seat *seat,
			  int (*each)(struct kvmfault_memory *memory));
/* After the mapping's last use: let go of the uffd; guard: where pages are
 * absent nobody may read zeros afterwards. */
void kvmfault__mapping_close(struct kvmfault_mapping *mapping, bool guard);
/* Where data for it is to be written: scratch memory, or with minor faults the
 * file itself, which must be asked for by kvmfault__prepare() first. */
static inline void *kvmfault__buffer(struct kvmfault__seat *seat,
				     const struct kvmfault_memory *memory,
				     uint64_t offset)
{
	return memory->fill ? memory->fill + offset : seat->buffer;
}
const struct kvmfault_mapping *
kvmfault__own_mapping(const struct kvmfault__mappings *all);
static inline bool kvmfault__poisoned(const struct kvmfault_memory *memory,
				      uint64_t offset)
{
	return kvmfault__tracked(memory) &&
	       kvmfault__page_state(memory, offset >> memory->page_shift) ==
	       KVMFAULT__POISONED;
}
/* Where the library itself reads and writes what is there. Should the page have
 * been discarded meanwhile it sleeps there, as others do: so not by the memslots'
 * mapping if that has markers, nor where pages are filled. The seat's mappings
 * are held for it. */
char *kvmfault__bytes(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory, uint64_t offset);
int kvmfault__prepare(const struct kvmfault_memory *memory, uint64_t offset,
		      uint64_t length);
/* Install through the memslots' mapping; data NULL: zeros, or with minor faults
 * what the file has there. Pages that are there are left as they are. Those before
 * the one that failed are counted. */
struct kvmfault__installed {
	uint64_t there;		/* pages, from the first on */
	uint64_t existed;	/* of those: were there before */
};
int kvmfault__install(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory, uint64_t offset,
		      const void *data, uint64_t length,
		      struct kvmfault__installed *installed);
/* Is the page there? Then it is mapped by the memslots' mapping, too. 1, 0, -errno:
 * it can't be asked (-EOPNOTSUPP: by this kernel, -EAGAIN: now). */
int kvmfault__see(struct kvmfault__seat *seat, struct kvmfault_memory *memory,
		  uint64_t offset);
/* With minor faults: map a page that is in the file, and wake. -EEXIST: it was
 * mapped, nobody was woken; -EFAULT: it is not in the file. */
int kvmfault__map(const struct kvmfault_mapping *mapping, uint64_t offset,
		  uint64_t length);
/* Write-protect the range in every mapping or `only` one; or lift that, and
 * wake. Where nothing is mapped (any more) there is nothing to lift. */
int kvmfault__protect(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory,
		      const struct kvmfault_mapping *only, uint64_t offset,
		      uint64_t length, bool on);
/* Poison the range in every mapping or `only` one, and wake. */
int kvmfault__poison(struct kvmfault__seat *seat,
		     struct kvmfault_memory *memory,
		     const struct kvmfault_mapping *only, uint64_t offset,
		     uint64_t length);
/* Take the marker of a page that was punched, and is in flight, out of every
 * mapping: punching leaves it there. */
int kvmfault__unpoison(struct kvmfault__seat *seat,
		       struct kvmfault_memory *memory, uint64_t offset);
/* Wake who sleeps on the range, through every mapping or `only` one. */
void kvmfault__wake(struct kvmfault__seat *seat,
		    struct kvmfault_memory *memory,
		    const struct kvmfault_mapping *only, uint64_t offset,
		    uint64_t length);

/* userfault.c: pages that leave KVM_RUN. Asked of a scratch VM by what it
 * accepts; 0, or -errno: could not ask. */
int kvmfault__kernel_exit_ask(int kvm_fd, enum kvmfault__kernel_exit *which);
/* The flags of an exit that are this VM's delivery and no resolver's affair;
 * and what they say of the access. */
uint64_t kvmfault__exit_flags(const struct kvmfault_vm *vm,
			      const struct kvmfault_fault *fault);
void kvmfault__exit_access(const struct kvmfault_vm *vm,
			   struct kvmfault_fault *fault);
int kvmfault__userfault_new(struct kvmfault_memory *memory);
void kvmfault__userfault_free(struct kvmfault_memory *memory);
/* Have the pages' bits say what their states say now. After a change of states
 * and before the wakes; before a hole is punched, when the pages are taken. */
void kvmfault__userfault_set(struct kvmfault_memory *memory, uint64_t page,
			     uint64_t count);
static inline void kvmfault__userfault_follow(struct kvmfault_memory *memory,
					      uint64_t page, uint64_t count)
{
	if (memory->userfault)
		kvmfault__userfault_set(memory, page, count);
}
/* All by userfaultfd from now on; as it was. Also while vCPUs run. */
void kvmfault__userfault_leave(struct kvmfault_memory *memory);
void kvmfault__userfault_enter(struct kvmfault_memory *memory);

/* region.c */
struct kvmfault__region {
	struct kvmfault__span span;
	struct kvmfault_region info;
};
/* Where a gpa of the region is in what it shows. */
static inline uint64_t
kvmfault__region_offset(const struct kvmfault__region *region, uint64_t gpa)
{
	return region->info.offset + gpa - region->info.gpa;
}

/* Where a fault is, as far as it is known: in the held span. */
struct kvmfault__place {
	struct kvmfault_memory *memory;
	const struct kvmfault__region *region;
	struct kvmfault_mapping *origin;	/* where its thread sleeps */
	uint64_t offset;	/* into the memory, or region without one */
	struct kvmfault__tries {
		unsigned int count;	/* that were not possible then */
		unsigned int failures;	/* that nobody resolved */
	} tries;		/* a message's, until now */
};
/* region may be NULL. */
static inline struct kvmfault__place
kvmfault__region_place(const struct kvmfault__region *region, uint64_t gpa)
{
	struct kvmfault__place place = { .region = region };

	if (region) {
		place.memory = region->span.memory;
		place.offset = kvmfault__region_offset(region, gpa);
	}
	return place;
}

/* Held in the seat until kvmfault__leave(); NULL: none there. */
static inline struct kvmfault__region *
kvmfault__region_find(struct kvmfault__seat *seat, uint32_t space, uint64_t gpa)
{
	if (space >= KVMFAULT__SPACES)
		return NULL;
	return (struct kvmfault__region *)
		kvmfault__table_find(seat, &seat->vm->regions,
				     kvmfault__key(space, gpa));
}

/* The first that shows this place of a memory, held like the above. */
struct kvmfault__region *
kvmfault__region_showing(struct kvmfault__seat *seat,
			 const struct kvmfault_memory *memory, uint64_t offset);

/* marker.c: markers in the memslots' mapping, by stretch */
int kvmfault__markers_new(struct kvmfault_memory *memory);
void kvmfault__markers_free(struct kvmfault_memory *memory);
/* A thread sleeps on a page there: mark its stretch, if that pays; and
 * when the thread was answered, what it may come to next. */
void kvmfault__mark(struct kvmfault__seat *seat,
		    const struct kvmfault__place *place);
void kvmfault__mark_ahead(struct kvmfault__seat *seat,
			  const struct kvmfault__place *place);
/* Take all of them out, of every memory. */
int kvmfault__unmark_all(struct kvmfault__seat *seat);

/* attributes.c: which pages are private, as KVM was last told */
bool kvmfault__private(struct kvmfault_vm *vm, uint64_t gfn);
/* The first page that is so, private or not; the end: none is. */
uint64_t kvmfault__attributes_find(struct kvmfault_vm *vm,
				   struct kvmfault__gfns pages, bool private);
void kvmfault__attributes_note(struct kvmfault_vm *vm,
			       struct kvmfault__gfns pages, bool private);
/* Under the VM's lock: room to note what these pages are; or -ENOMEM, and
 * nothing has changed. What there is stays until the VM goes. */
int kvmfault__attributes_cover(struct kvmfault_vm *vm,
			       struct kvmfault__gfns pages);
void kvmfault__attributes_free(struct kvmfault_vm *vm);

/* What the region shows there is in its guest_memfd, and nowhere else. */
static inline bool
kvmfault__shows_private(struct kvmfault_vm *vm,
			const struct kvmfault__region *region, uint64_t gpa)
{
	return region->info.guest_memfd > 0 &&
	       kvmfault__private(vm, gpa / KVMFAULT__PAGE);
}

/* range.c: make a range present, which does not wrap: 0 or -errno. */
int kvmfault__ensure(struct kvmfault__seat *seat, uint32_t address_space,
		     uint64_t gpa, uint64_t length, bool write);
/* What the regions of a range show, one after the other. -EINVAL: vm is
 * NULL, not whole pages of 4 KiB, empty, wraps; -ENXIO: a part is in no region
 * with memory; -ENOMEM. */
int kvmfault__each_region(struct kvmfault_vm *vm, uint32_t address_space,
			  uint64_t gpa, uint64_t length,
			  int (*act)(struct kvmfault__seat *seat,
				     struct kvmfault_memory *memory,
				     uint64_t offset, uint64_t length));
/* What is not: -EINVAL, with its reason. */
int kvmfault__whole_pages(const struct kvmfault_memory *memory);
/* Whole pages of the memory; wait: for fetches in flight, whose fetchers
 * discard their pages in any case, and until protected pages are saved. */
int kvmfault__discard(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory, uint64_t offset,
		      uint64_t length, bool wait);

/* convert.c */
int kvmfault__converter(struct kvmfault_vm *vm,
			const struct kvmfault_converter *converter);
/* Is it a fault that a conversion could answer? Of which pages; the region
 * need not be held any more. */
bool kvmfault__convertible(const struct kvmfault_vm *vm,
			   const struct kvmfault_fault *fault,
			   const struct kvmfault_region *region,
			   struct kvmfault__gfns *pages);
bool kvmfault__wants_private(const struct kvmfault_fault *fault);
/* Lets go of the seat's span. *reached: all before it are converted. 0, -errno,
 * or without wait KVMFAULT_LATER: a page is in flight, the VMM will be told. */
int kvmfault__convert(struct kvmfault__seat *seat, struct kvmfault__gfns pages,
		      bool private, bool wait, uint64_t *reached);

/* region.c: once for each memory, that a slot has no region */
void kvmfault__warn_unshown(struct kvmfault_memory *memory, uint64_t offset);

/* resolver.c: the chain, before the VMM adds to it; resolver-*.c */
void kvmfault__resolvers_new(struct kvmfault_vm *vm);
extern const struct kvmfault_resolver kvmfault__resolver_async;
extern const struct kvmfault_resolver kvmfault__resolver_copy;
extern const struct kvmfault_resolver kvmfault__resolver_continue;
extern const struct kvmfault_resolver kvmfault__resolver_zero;
extern const struct kvmfault_resolver kvmfault__resolver_populate;
extern const struct kvmfault_resolver kvmfault__resolver_convert;
extern const struct kvmfault_resolver kvmfault__resolver_unprotect;

/* resolve.c: claim -> chain -> publish, for every entrance. present.c: of pages
 * that are present. */
struct kvmfault__request {
	struct kvmfault_request request;	/* first: what resolvers see */
	struct kvmfault__seat *seat;
	struct kvmfault_mapping *origin;	/* of a message, or NULL */
	uint64_t page;		/* that faulted */
	uint64_t first, count;	/* pages that are claimed, it among them */
	/* by kvmfault_request_install(), from the first claimed page on */
	struct kvmfault__installed installed;
	const void *view;	/* by kvmfault_request_data(), or NULL */
	struct kvmfault__tries tries;
	unsigned int resolver;	/* who is asked, by index */
	bool own_way;		/* a resolver put it there by itself */
	bool poisoned;		/* by kvmfault_request_poison() */
	bool detached;		/* a fetch in flight has it now */
	bool source_failed;
	unsigned int looked;	/* at a page that can be had, and cannot */
	uint64_t window, window_length;	/* as request.offset and length: that
					 * came, or was fetched, before this */
};
/* 0: the request's page is claimed; -EINVAL, with its reason: it is not. */
int kvmfault__unclaimed(const struct kvmfault_request *request,
			const char *function);
/* For ours: its data is lost, poison it. -EHWPOISON; -EAGAIN: not now, or an event
 * has taken it. */
int kvmfault__lost(struct kvmfault_request *request);
/* Is the page that faulted among what was installed? */
static inline bool kvmfault__has_come(const struct kvmfault__request *rq)
{
	return rq->page < rq->first + rq->installed.there;
}
/* Claim absent neighbours too, as the memory's window says; or let go of all
 * but the page that faulted, which has not come. */
void kvmfault__widen(struct kvmfault__request *rq);	/* window.c */
/* What is claimed, and so requested. */
void kvmfault__run(struct kvmfault__request *rq, uint64_t first,
		   uint64_t count);
void kvmfault__narrow(struct kvmfault__request *rq);
struct kvmfault__answer {
	enum kvmfault_action action;
	enum kvmfault_reason reason;
	int error;
	const char *resolver;
	bool came;	/* the page was absent, and now it is there */
	bool told;	/* the guest: its data is lost */
	bool detached;	/* a sleeper's fetch is in flight */
	/* of a window: its gpa, from the region's beginning on, and its length,
	 * maybe past the region's end; not all of it need have come */
	uint64_t gpa, length;
};

/* That, and nothing more. */
static inline void kvmfault__say(struct kvmfault__answer *answer,
				 enum kvmfault_action action)
{
	*answer = (struct kvmfault__answer){ .action = action };
}

static inline void kvmfault__unresolved(struct kvmfault__answer *answer,
					enum kvmfault_reason reason, int error)
{
	answer->action = KVMFAULT_UNRESOLVED;
	answer->reason = reason;
	answer->error = error;
}

/* What is not known to be a read. */
static inline bool kvmfault__may_write(const struct kvmfault_fault *fault)
{
	return fault->access != KVMFAULT_ACCESS_READ &&
	       fault->access != KVMFAULT_ACCESS_EXEC;
}

/* Will the library itself touch it, for the guest? Then the host's protection of
 * it has to be asked for, also when it has just come. */
static inline bool kvmfault__touched(const struct kvmfault__request *rq)
{
	return rq->request.fault->entrance == KVMFAULT_ENTRANCE_MMIO ||
	       rq->request.fault->entrance == KVMFAULT_ENTRANCE_EMULATION;
}

static inline bool kvmfault__must_save(const struct kvmfault__request *rq)
{
	return rq->request.memory->write_protect &&
	       kvmfault__may_write(rq->request.fault) &&
	       kvmfault__page_protected(rq->request.memory, rq->page);
}

/* Does it wait for a page that is on its way? */
static inline bool kvmfault__waits(const struct kvmfault__request *rq)
{
	return !rq->seat->no_wait ||
	       rq->request.fault->entrance == KVMFAULT_ENTRANCE_CALL;
}

/* Ask one resolver after the other. The answer says nothing yet; then what the
 * verdict comes to. */
void kvmfault__ask(struct kvmfault__request *rq, enum kvmfault_page page,
		   struct kvmfault__answer *answer);
/* What a verdict, or an -errno, comes to. */
void kvmfault__judge(const struct kvmfault__request *rq, int verdict,
		     struct kvmfault__answer *answer);
/* Ask, of a page that nobody claims; and wake who sleeps on it. */
void kvmfault__resolve_unclaimed(struct kvmfault__request *rq,
				 enum kvmfault_page page,
				 struct kvmfault__answer *answer);
/* The page was present; waited: not when it was asked for first. False: look
 * again, it has changed. */
bool kvmfault__resolve_present(struct kvmfault__request *rq, bool waited,
			       struct kvmfault__answer *answer);
/* Publish and count what became of the claimed pages: those that did not come
 * are what they were. */
void kvmfault__conclude(struct kvmfault__request *rq,
			enum kvmfault__state was);
/* Claimed pages whose data is what it was before: absent again, or present. */
void kvmfault__release(struct kvmfault__request *rq, uint64_t first,
		       uint64_t count, enum kvmfault__state to);
/* Count what came, and tell the VMM. */
void kvmfault__account(struct kvmfault__request *rq, enum kvmfault__state was);

/* Resolve one page. */
void kvmfault__resolve(struct kvmfault__seat *seat,
		       const struct kvmfault_fault *fault,
		       const struct kvmfault__place *place,
		       struct kvmfault__answer *answer);
/* For callers who are told by an errno. */
int kvmfault__error(const struct kvmfault__answer *answer);
void kvmfault__latency(struct kvmfault__seat *seat, uint64_t nanoseconds);

/* fetch.c: sources that answer later */
int kvmfault__fetches_new(struct kvmfault_vm *vm);
void kvmfault__fetches_free(struct kvmfault_vm *vm);
/* A verdict or -errno; LATER: rq is detached. */
int kvmfault__submit(struct kvmfault__request *rq);
/* All fetches are in use, and this vCPU does not wait: true, and the VMM will be
 * told. Not any more. */
bool kvmfault__fetch_wished(struct kvmfault__request *rq);
void kvmfault__withdraw(struct kvmfault__seat *seat);
/* What became of this seat's submit for this page, unless it has come since: 0
 * or -errno, once. */
int kvmfault__fetch_failed(struct kvmfault__request *rq);
/* Nothing of what failed is told: another has the seat; all seats: another memory
 * may come to be at the same address. */
void kvmfault__failures_forget(struct kvmfault__seat *seat);
void kvmfault__failures_forget_all(struct kvmfault_vm *vm);
void kvmfault__fetches_cancel(struct kvmfault_memory *memory);
/* Deadlines: the next one, UINT64_MAX if there is none; cancel what is late. */
uint64_t kvmfault__fetches_due(struct kvmfault_vm *vm);
void kvmfault__fetches_expire(struct kvmfault_vm *vm, uint64_t now);
/* poll.c: look for the next message before sleeping? A thread's own. */
struct kvmfault__poll {
	uint64_t limit;			/* nanoseconds; 0: never */
	uint64_t began, looked;
	uint32_t vain, skip;		/* how often in vain, not to be tried */
};
void kvmfault__poll_init(struct kvmfault__poll *poll, uint32_t us);
/* Then again until that is false or something was found, and then end. */
bool kvmfault__poll_begin(struct kvmfault__poll *poll);
bool kvmfault__poll_again(struct kvmfault__poll *poll);
void kvmfault__poll_end(struct kvmfault__poll *poll, bool found);

/* park.c: messages that are to be tried again, later. The lock is a short one. */
#define KVMFAULT__PARKED_MAX 256
struct kvmfault__parked {
	struct kvmfault_fault fault;
	uint32_t space;
	struct kvmfault__tries tries;
	uint64_t due;
};
struct kvmfault__park {
	pthread_mutex_t lock;
	int timer;			/* expires when the earliest is due */
	uint64_t no_room;		/* 0, or when all are to be woken */
	_Atomic size_t count;
	struct kvmfault__parked item[KVMFAULT__PARKED_MAX];
};
/* It is put off, and has failed: after as many tries as a vCPU's has the VMM is told.
 * mapping: where its thread sleeps, held. */
void kvmfault__not_resolved(struct kvmfault__seat *seat,
			    struct kvmfault__parked *item,
			    const struct kvmfault_mapping *mapping,
			    enum kvmfault_reason reason, int error);
/* Later again: it has failed, or is not possible now. */
void kvmfault__put_off(struct kvmfault__park *park, struct kvmfault__seat *seat,
		       struct kvmfault__parked *item, bool failed);
/* For a thread of the service to begin with. */
void kvmfault__park_now(struct kvmfault__park *park,
			struct kvmfault__seat *seat,
			struct kvmfault__parked *item);
bool kvmfault__is_parked(struct kvmfault__park *park, uint32_t space,
			 uint64_t hva);
/* One item whose time has come, taken out; false: none. */
bool kvmfault__unpark(struct kvmfault__park *park, uint64_t now,
		      struct kvmfault__parked *item);
/* Wake those that there was no room for, when it is time. */
void kvmfault__wake_without_room(struct kvmfault__park *park,
				 struct kvmfault__seat *seat, uint64_t now);
/* Set the timer. */
void kvmfault__park_arm(struct kvmfault__park *park);
/* At the end, their messages are read: awake they fault again, for the next
 * service. */
void kvmfault__wake_parked(struct kvmfault__park *park,
			   struct kvmfault__seat *seat);
/* Whoever sleeps anywhere. */
void kvmfault__wake_all(struct kvmfault__seat *seat);

/* message.c: as many as there are; what they say of pages that are gone is noted.
 * And then each of them; true: it is a fault. */
struct uffd_msg;
ssize_t kvmfault__messages(struct kvmfault__seat *seat,
			   struct kvmfault_uffd *uffd, struct uffd_msg *msg,
			   size_t count);
bool kvmfault__message_in(struct kvmfault__seat *seat, uint32_t space,
			  const struct uffd_msg *msg,
			  struct kvmfault__parked *item);

/* reader.c: made for a descriptor that tells of more than faults. */
int kvmfault__reader_new(struct kvmfault_uffd *uffd);
void kvmfault__reader_free(struct kvmfault_uffd *uffd);
bool kvmfault__reader_is_self(const struct kvmfault_uffd *uffd);
/* madvise() of what may have an event that has to be read; uffd: or NULL. */
int kvmfault__take_away(const struct kvmfault_uffd *uffd, void *host,
			uint64_t length, int advice);
/* Around each read of one that has a reader. */
void kvmfault__reading_begin(struct kvmfault_uffd *uffd);
void kvmfault__reading_end(struct kvmfault_uffd *uffd);
/* Around each install where events take pages: how much of it, up to what is gone.
 * 0: nothing now. */
uint64_t kvmfault__install_begin(struct kvmfault__seat *seat,
				 const struct kvmfault_memory *memory,
				 uint64_t offset, uint64_t length);
void kvmfault__install_end(struct kvmfault__seat *seat);

/* service.c: a message's fetch has failed: later again. */
void kvmfault__put_off_fetch(struct kvmfault__request *rq, int error);
void kvmfault__set_deadline(struct kvmfault__seat *seat, uint64_t due);
/* A message that another thread has read. */
void kvmfault__serve_next(struct kvmfault_service *service,
			  struct kvmfault__seat *seat,
			  struct kvmfault__parked *item);

/* vcpu.c and its entrances */
#define KVMFAULT__HISTORY 8
#define KVMFAULT__SIGINFO 128		/* bytes of a siginfo_t */

struct kvmfault__past {			/* an event, and what it points to */
	struct kvmfault_event event;
	struct kvmfault_fault fault;
};

/* operand.c: the memory operand of an x86 instruction */
struct kvmfault__x86 {
	uint64_t gpr[16];	/* rax rcx rdx rbx rsp rbp rsi rdi r8 ... */
	uint64_t rip;
	uint64_t segment[6];	/* bases: es cs ss ds fs gs */
	bool long_mode;		/* 64-bit code */
	bool big;		/* 32-bit code, if not 64-bit */
};
#define KVMFAULT__CODE 15	/* the longest instruction */

/* delegate.c: what is done for a vCPU, with system calls, on whichever thread: so
 * it knows nothing of the vCPU but this, since that may have been freed. */
struct kvmfault__task;
typedef void kvmfault__work(struct kvmfault__task *task,
			    struct kvmfault__answer *answer);
struct kvmfault__task {
	kvmfault__work *work;
	struct kvmfault__seat *seat;	/* of the thread that does it */
	struct kvmfault_fault *fault;	/* the vCPU's, or a copy */
	int fd;				/* the vCPU's, or a duplicate */
	bool anew;			/* nothing was done for this fault yet */
	bool prefault;			/* what else came; then */
	uint32_t space;			/* the one that the vCPU is in */
	uint64_t due;			/* not before; 0: now */
	uint64_t began, ended;		/* by the clock */
	uint64_t gpa;			/* mmio: the part's */
	uint64_t rip;			/* emulation: of the last one; this one's */
	bool last;			/* and no other try without progress */
	struct kvmfault__gfns pages;	/* a conversion's, */
	bool private;			/* to what, */
	uint64_t reached;		/* and how far it came */
};

/* A thread that does one vCPU's tasks after the other's, and what it has of them. */
struct kvmfault__worker {
	struct kvmfault__worker *next;
	struct kvmfault__seat *seat;
	pthread_t thread;
	bool taken;			/* by a vCPU, under the VM's lock */
	uint8_t leave;			/* the seat's immediate_exit */
	int fd;				/* the vCPU's, a duplicate; or -1 */
	_Atomic uint32_t state;		/* futex word */
	struct kvmfault__task task;
	struct kvmfault_fault fault;
	struct kvmfault__answer answer;
	int err;
};

struct kvmfault_vcpu {
	struct kvmfault_vm *vm;
	struct kvmfault__seat *seat;
	int fd;
	struct kvm_run *run;
	struct kvmfault_fault fault;
	struct kvmfault_result result;
	struct kvmfault_stats before;	/* of the seat's earlier users */
	/* the guard: what faulted last, and how often without progress */
	bool faulted;		/* since the last exit of another kind */
	uint64_t history[KVMFAULT__HISTORY];
	uint32_t newest;
	uint32_t streak;
	uint32_t not_now;	/* how often it was not possible */
	/* its last faults: a ring, how many there were; and for who asks for
	 * the result, in order */
	struct kvmfault__past past[KVMFAULT_HISTORY_COUNT];
	uint64_t past_count;
	const struct kvmfault_event *events[KVMFAULT_HISTORY_COUNT];
	/* a source that failed: for what, how often, when to try again */
	uint64_t source_key;
	uint32_t source_failures;
	uint64_t source_due;		/* 0: now */
	/* an MMIO access that was interrupted */
	uint64_t mmio_gpa;
	uint32_t mmio_length;
	uint64_t emulation_rip;		/* the last one's */
	bool emulating;			/* interrupted: #UD may be queued */
	bool prefault;
	/* signal.c: the SIGBUS that ended KVM_RUN */
	struct kvmfault__seat *handler;	/* the handler's own, or NULL */
	bool masked;		/* the library has set KVM's signal mask, */
	uint64_t *own_mask;	/* the VMM's, or NULL */
	uint64_t own_mask_value;
	atomic_bool noted;	/* by the handler */
	_Alignas(8) char siginfo[KVMFAULT__SIGINFO], note[KVMFAULT__SIGINFO];
	struct kvmfault__worker *worker; /* who does its tasks, or NULL: itself */
	bool anew;			/* nothing was done for this fault yet */
	uint64_t began, ended;		/* its first task, its last one; 0: no */
};

/* vcpu.c: one more answer without progress would be the last. */
bool kvmfault__last_retry(const struct kvmfault_vcpu *vcpu);

/* signal.c: the ways of a marker's SIGBUS. -EINVAL: it would not get through */
int kvmfault__signal_new(struct kvmfault_vcpu *vcpu,
			 const struct kvmfault_vcpu_options *options);
void kvmfault__signal_free(struct kvmfault_vcpu *vcpu);
/* KVM_RUN was interrupted: by a SIGBUS? Then vcpu->siginfo is it. */
bool kvmfault__signal_take(struct kvmfault_vcpu *vcpu);

/* Have it done, here or by the worker. 0: it is; -EINTR: a signal or
 * immediate_exit came. The answer says either. */
int kvmfault__perform(struct kvmfault_vcpu *vcpu, struct kvmfault__task *task,
		      struct kvmfault__answer *answer);
/* One that is about the vCPU's fault. */
static inline struct kvmfault__task
kvmfault__task(struct kvmfault_vcpu *vcpu, kvmfault__work *work)
{
	return (struct kvmfault__task){
		.work = work,
		.seat = vcpu->seat,
		.fault = &vcpu->fault,
		.fd = vcpu->fd,
		.anew = vcpu->anew,
		.prefault = vcpu->prefault,
		.space = kvmfault__address_space(vcpu->run),
		.due = vcpu->source_due,
	};
}
/* For work: what the vCPU is may be changed until kvmfault__free_vcpu(), since its
 * thread stays where it is. Not across what sleeps for a page in the kernel. False:
 * it has gone already. */
bool kvmfault__hold_vcpu(struct kvmfault__seat *seat);
void kvmfault__free_vcpu(struct kvmfault__seat *seat);
/* By the vCPU's thread: it does not wait to be told any more. */
void kvmfault__forget_pending(struct kvmfault_vcpu *vcpu);
/* The set-up of a vCPU whose work is delegated, and its end, which waits for no
 * task; after an error as well. The last end, with the context. */
int kvmfault__worker_take(struct kvmfault_vcpu *vcpu);
void kvmfault__worker_give(struct kvmfault_vcpu *vcpu);
void kvmfault__workers_free(struct kvmfault_vm *vm);

void kvmfault__mmio(struct kvmfault_vcpu *vcpu,
		    struct kvmfault__answer *answer);
void kvmfault__emulation(struct kvmfault_vcpu *vcpu,
			 struct kvmfault__answer *answer);
/* Its linear address; false: none, or not to be told from these bytes. */
bool kvmfault__x86_operand(const struct kvmfault__x86 *cpu,
			   const uint8_t *code, size_t length,
			   uint64_t *address);
/* Translate a gpa, resolve its page, leave. */
void kvmfault__resolve_gpa(struct kvmfault__seat *seat,
			   const struct kvmfault_fault *fault, uint64_t gpa,
			   struct kvmfault__answer *answer);

/* prefault.c: have KVM map a window that came */
bool kvmfault__can_prefault(int vcpu_fd);
void kvmfault__prefault(const struct kvmfault__task *task,
			const struct kvmfault__answer *answer);

/* failure.c: has the page there failed, or was there a marker that is gone by now?
 * Its state is present. */
bool kvmfault__has_failed(const struct kvmfault_memory *memory, uint64_t hva);
/* Tell of memory that failed; what becomes of the answer */
void kvmfault__tell_failure(struct kvmfault__request *rq,
			    struct kvmfault__answer *answer);
/* A SIGBUS at fault->hva; the gpa is filled in. NOT_A_FAULT: not ours. */
void kvmfault__sigbus(struct kvmfault__seat *seat, struct kvmfault_fault *fault,
		      struct kvmfault__answer *answer);

/* syscalls.c; NULL: past the end */
const struct kvmfault_syscall *
kvmfault__syscall(enum kvmfault_profile profile, unsigned int index);

/* stats.c: what its seats have counted, for earlier users too */
void kvmfault__vcpu_counted(const struct kvmfault_vcpu *vcpu,
			    struct kvmfault_stats *sum);

#endif
