/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Memories, where they are mapped, and what is done to their pages there.
 */

#ifndef KVMFAULT__MEMORY_H
#define KVMFAULT__MEMORY_H

#include "../kernel/kernel.h"

/* One process's userfaultfd. */
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

/* Of anonymous memory an event says what has gone: see events.c. */
static inline bool kvmfault__events_take(const struct kvmfault_memory *memory)
{
	return memory->fd <= 0 && memory->uffd->reader;
}

static inline uint64_t kvmfault__page_size(const struct kvmfault_memory *memory)
{
	return 1ULL << memory->page_shift;
}

/* backing.c */
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
	if (memory->vm->ops.changed)
		kvmfault__tell_change(memory, offset, length, cause);
}

/* maps.c: is at host what the memory says that it is? -EINVAL, refused: no. */
int kvmfault__maps_check(const struct kvmfault_memory *memory, uint64_t host);

/* source.c: has it so many bytes, as far as it says, and its file now? */
bool kvmfault__source_reaches(const struct kvmfault_source *source,
			      uint64_t end);

/* mapping.c */
/* Every memory, held; the first error. */
int kvmfault__each_memory(struct kvmfault__seat *seat,
			  int (*each)(struct kvmfault_memory *memory));

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
/* Where the library itself reads and writes what is there. Should the page have
 * been discarded meanwhile it sleeps there, as others do: so not by the memslots'
 * mapping if that has markers, nor where pages are filled. The seat's mappings
 * are held for it. */
char *kvmfault__bytes(struct kvmfault__seat *seat,
		      struct kvmfault_memory *memory, uint64_t offset);
static inline const struct kvmfault__mappings *
kvmfault__mappings_hold(struct kvmfault__seat *seat,
			struct kvmfault_memory *memory)
{
	return kvmfault__hold(seat, KVMFAULT__HAZARD_MAPPINGS, &memory->mappings);
}

/* install.c */
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

/* Poison the range in that mapping: what is there stays. */
int kvmfault__poison_run(const struct kvmfault_mapping *mapping,
			 uint64_t offset, uint64_t length);

/* events.c */
struct kvmfault__reader {
	struct kvmfault_uffd *uffd;
	struct kvmfault__seat *seat;
	int epoll;
	_Atomic uint32_t reading;	/* threads of anybody's, */
	_Atomic uint32_t waiting;	/* and those that would install */
	_Atomic uint32_t wanted;	/* takes of pages: while there are any
					 * it reads */
	atomic_bool stopping;
	pthread_t thread;
};
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

void kvmfault__reader_want(struct kvmfault__reader *reader);

#endif
