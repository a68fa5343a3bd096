/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Memories, the mappings of each, and the operations on pages in those
 * mappings.
 *
 * A room may use the rooms before it in this order: os, core, kernel, memory,
 * resolve, entry, setup; none that comes after it.
 */

#ifndef KVMFAULT__MEMORY_H
#define KVMFAULT__MEMORY_H

#include "../kernel/kernel.h"

/* The userfaultfd of one process. */
struct kvmfault_uffd {
	struct kvmfault_vm *vm;
	int fd;
	uint32_t id;		/* index in vm->uffds */
	uint32_t space;		/* 0: this process; else id */
	unsigned int users;	/* mappings, under the VM's lock */
	bool own;		/* made for one mapping, freed with it */
	bool guards;		/* ranges with absent pages are still
				 * registered: closing would make them zero */
	atomic_bool moved;	/* by mremap(): that, too, keeps it open */
	struct kvmfault__reader *reader; /* if it tells of events; or NULL */
	struct kvmfault_uffd *next;	/* in vm->ended, while seats use it */
};

struct kvmfault_mapping {
	struct kvmfault__span span;
	struct kvmfault_uffd *uffd;	/* NULL: not tracked */
	uint64_t host;
	_Atomic uint64_t ioctls; /* that the kernel allows there: a bit each */
	bool memslots;		/* the first: pages come through it */
};

/* Find the mapping at an address of that process, or NULL. The seat holds the
 * mapping until kvmfault__leave(). */
static inline struct kvmfault_mapping *
kvmfault__mapping_find(struct kvmfault__seat *seat, uint32_t space,
		       uint64_t hva)
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

/* The beginning of a file of states, see setup/states-file.c. */
#define KVMFAULT__STATES_MAGIC 0x74617473666d766bULL	/* kvmfstat */
struct kvmfault__states_file {
	_Atomic uint64_t magic;
	uint32_t version;
	_Atomic uint32_t settled;
	uint64_t page_size;
	uint64_t length;
	uint64_t source_offset;
	uint64_t fd_offset;
	uint64_t device, inode;		/* of the memory's file */
	uint64_t minor;
};

struct kvmfault_memory {
	struct kvmfault_vm *vm;
	uint64_t length;
	unsigned int page_shift;
	bool hugetlb;
	bool write_protect;	/* pages may be write-protected */
	atomic_bool making;	/* it must stay empty: no page may come yet */
	atomic_bool tracked;	/* has a source, and is not settled */
	bool was_settled;	/* by an owner before this one */
	bool remote;		/* the first mapping is another process's */
	int fd;
	uint64_t fd_offset;
	struct kvmfault_source source;	/* none: not tracked */
	uint64_t source_offset;
	enum kvmfault_window window;
	uint64_t window_pages;		/* at most */
	void *host;		/* the first mapping, and its uffd */
	struct kvmfault_uffd *uffd;
	char *fill;		/* for minor faults: the file, unregistered */
	_Atomic uint64_t *states;	/* of pages: see page.h */
	struct kvmfault__states_file *states_file; /* that has them, or NULL; */
	size_t states_size;			/* and its length */
	_Atomic uint64_t *unsourced;	/* in it: bits of pages that need the
					 * source no more; or NULL */
	_Atomic uint64_t data_run;	/* pages that are data in the source:
					 * the first, and in the lower half how
					 * many; see extent.c */
	_Atomic uint64_t *userfault;	/* KVM's bitmap, of longs; or NULL */
	atomic_bool exits;	/* missing pages exit: see userfault.c */
	_Atomic(const void *) mappings;	/* struct kvmfault__mappings */
	unsigned int regions, fills;	/* that name it; under the VM's lock */
	_Atomic(const void *) shown;	/* one region's span, or NULL */
	_Atomic uint32_t fetches;	/* in flight, or wished for */
	_Atomic uint32_t settling;	/* not 0: it is protected and marked no
					 * more */
	_Atomic uint32_t closing;	/* 0, or being freed: */
#define KVMFAULT__CLOSED_FOR_VCPUS 1	/* only messages are answered */
#define KVMFAULT__CLOSED 2		/* messages are not, either */
	_Atomic uint64_t *marked;	/* bits of marker blocks: marked; and
					 * behind them: touched once */
	atomic_uint marked_at_once;	/* blocks marked at the first touch */
	_Atomic(const void *) recording;	/* that it is part of, or NULL;
						 * set under the VM's lock */
	atomic_bool warned;		/* of pages that others put there */
	atomic_bool unshown;		/* warned: no region shows a part */
};

static inline bool kvmfault__tracked(const struct kvmfault_memory *memory)
{
	return atomic_load(&memory->tracked);
}

/* Anonymous memory of another process: the library has neither an address nor a
 * file of its pages. */
static inline bool
kvmfault__out_of_reach(const struct kvmfault_memory *memory)
{
	return memory->remote && memory->fd <= 0;
}

/* If memory is anonymous, an event tells which pages are gone: see events.c. */
static inline bool kvmfault__events_take(const struct kvmfault_memory *memory)
{
	return memory->fd <= 0 && memory->uffd->reader;
}

static inline uint64_t
kvmfault__page_size(const struct kvmfault_memory *memory)
{
	return 1ULL << memory->page_shift;
}

/* backing.c */
/* Is a page of the range in the backing? Returns 1, 0 or -errno. */
int kvmfault__memory_resident(const struct kvmfault_memory *memory,
			      uint64_t offset, uint64_t length);
/* Take the range's pages out of the backing. */
int kvmfault__memory_punch(const struct kvmfault_memory *memory,
			   uint64_t offset, uint64_t length);
/* Call the VMM's changed(), which has to be set. */
void kvmfault__tell_change(struct kvmfault_memory *memory, uint64_t offset,
			   uint64_t length, enum kvmfault_cause cause);
static inline void kvmfault__changed(struct kvmfault_memory *memory,
				     uint64_t offset, uint64_t length,
				     enum kvmfault_cause cause)
{
	if (memory->vm->ops.changed)
		kvmfault__tell_change(memory, offset, length, cause);
}

/* maps.c: is the memory's file, or anonymous memory, mapped at host? Returns 0,
 * or -EINVAL after a refusal. */
int kvmfault__maps_check(const struct kvmfault_memory *memory, uint64_t host);

/* source.c: do the source's length, if it has one, and its file's size now, if
 * it has a file, reach so far? */
bool kvmfault__source_reaches(const struct kvmfault_source *source,
			      uint64_t end);
/* Read all of the bytes. A mapped file shows zeros between its end and the end
 * of that page, so the source's end is asked for before its bytes are used. */
static inline int
kvmfault__source_read(const struct kvmfault_source *source, uint64_t offset,
		      void *buffer, uint64_t length)
{
	int err = -EOPNOTSUPP;	/* a source that only has submit() */

	if (!kvmfault__source_reaches(source, offset + length))
		err = -ENODATA;
	else if (source->read)
		err = source->read(source->data, offset, buffer, length);
	/* A positive value, such as a count, breaks the contract. */
	return err > 0 ? -EIO : err;
}
/* Returns what the bytes are, a kvmfault_extent, or -errno. *length comes in as
 * how many are asked about, and goes out as how many of these are alike. */
int kvmfault__source_extent(const struct kvmfault_source *source,
			    uint64_t offset, uint64_t *length);

/* mapping.c */
/* Call each() for every memory, which the seat holds, until one returns an
 * error. */
int kvmfault__each_memory(struct kvmfault__seat *seat,
			  int (*each)(struct kvmfault_memory *memory));

/* Where data for the offset is to be written: the seat's buffer; or, with minor
 * faults, the file itself, after kvmfault__prepare(). */
static inline void *kvmfault__buffer(struct kvmfault__seat *seat,
				     const struct kvmfault_memory *memory,
				     uint64_t offset)
{
	return memory->fill ? memory->fill + offset : seat->buffer;
}

/* The first mapping of this process that is not the memslots', or NULL. */
const struct kvmfault_mapping *
kvmfault__own_mapping(const struct kvmfault__mappings *all);
/* Where the library itself reads and writes a page's bytes; the caller unholds
 * the seat's mappings. A thread there must sleep if the page was discarded
 * meanwhile, so neither a mapping with markers nor `fill` will do. */
char *kvmfault__bytes(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory, uint64_t offset);
static inline const struct kvmfault__mappings *
kvmfault__mappings_hold(struct kvmfault__seat *seat,
			struct kvmfault_memory *memory)
{
	return kvmfault__hold(seat, KVMFAULT__HAZARD_MAPPINGS,
			      &memory->mappings);
}

/* install.c */
/* With minor faults: give the file pages there. -ENOMEM: the file can't
 * grow. */
int kvmfault__prepare(const struct kvmfault_memory *memory, uint64_t offset,
		      uint64_t length);
/* Install pages through the memslots' mapping; if data is NULL, zeros, or with
 * minor faults the file's. Pages that are there stay, and after an error those
 * before the one that failed are counted. */
struct kvmfault__installed {
	uint64_t there;		/* pages, from the first on */
	uint64_t existed;	/* of those: were there before */
};
int kvmfault__install(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory, uint64_t offset,
		      const void *data, uint64_t length,
		      struct kvmfault__installed *installed);
/* Returns 1 if the page is there; a file's page is then mapped by the memslots'
 * mapping, if the kernel can do that now. Returns 0 if not, or -errno if the
 * kernel can't say (-EOPNOTSUPP: it never can; -EAGAIN: not now). */
int kvmfault__see(struct kvmfault__seat *seat, struct kvmfault_memory *memory,
		  uint64_t offset);
/* With minor faults: map a page that is in the file, and wake its sleepers.
 * -EEXIST: the page was mapped, and no sleeper was woken; -EFAULT: it is not in
 * the file. */
int kvmfault__map(const struct kvmfault_mapping *mapping, uint64_t offset,
		  uint64_t length);
/* Write-protect the range in every mapping, or in `only` one; or lift that, and
 * wake sleepers. No error if nothing is mapped there (any more). */
int kvmfault__protect(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory,
		      const struct kvmfault_mapping *only, uint64_t offset,
		      uint64_t length, bool on);
/* Poison the range in every mapping, or in `only` one, and wake sleepers. */
int kvmfault__poison(struct kvmfault__seat *seat,
		     struct kvmfault_memory *memory,
		     const struct kvmfault_mapping *only, uint64_t offset,
		     uint64_t length);
/* Take the marker of a page that was punched, and is in flight, out of every
 * mapping: punching leaves markers there. */
int kvmfault__unpoison(struct kvmfault__seat *seat,
		       struct kvmfault_memory *memory, uint64_t offset);
/* Wake the range's sleepers, through every mapping or through `only` one. */
void kvmfault__wake(struct kvmfault__seat *seat,
		    struct kvmfault_memory *memory,
		    const struct kvmfault_mapping *only, uint64_t offset,
		    uint64_t length);

/* Poison the range in that mapping, and wake only sleepers that the kernel
 * wakes by itself. Pages that are there stay. */
int kvmfault__poison_run(const struct kvmfault_mapping *mapping,
			 uint64_t offset, uint64_t length);

/* events.c */
struct kvmfault__reader {
	struct kvmfault_uffd *uffd;
	struct kvmfault__seat *seat;
	int epoll;
	_Atomic uint32_t reading;	/* threads that read, any thread's */
	_Atomic uint32_t waiting;	/* threads that wait to install */
	_Atomic uint32_t wanted;	/* threads that take pages away: this
					 * thread reads while there are any */
	atomic_bool stopping;
	pthread_t thread;
};
/* Is the calling thread the reader's? */
bool kvmfault__reader_is_self(const struct kvmfault_uffd *uffd);
/* madvise() that may cause an event, which has to be read before the call
 * returns; uffd may be NULL. The reader's own thread gets -EDEADLK. */
int kvmfault__take_away(const struct kvmfault_uffd *uffd, void *host,
			uint64_t length, int advice);
/* Around each read of a userfaultfd that has a reader. */
void kvmfault__reading_begin(struct kvmfault_uffd *uffd);
void kvmfault__reading_end(struct kvmfault_uffd *uffd);
/* Around each install where events take pages. Returns the length that may be
 * installed, which ends at a page that is gone; 0: nothing may be, now. */
uint64_t kvmfault__install_begin(struct kvmfault__seat *seat,
				 const struct kvmfault_memory *memory,
				 uint64_t offset, uint64_t length);
void kvmfault__install_end(struct kvmfault__seat *seat);

/* Have the reader's thread read, until `wanted` is lowered again. */
void kvmfault__reader_want(struct kvmfault__reader *reader);

#endif
