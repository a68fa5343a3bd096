/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Set-up: the functions that the files of this room share. The VMM's calls come
 * here to make contexts, userfaultfds, memories, mappings and regions, and to
 * take them down. vCPUs and services are made in entry/.
 *
 * A room may use the rooms before it in this order: os, core, kernel, memory,
 * resolve, entry, setup; none that comes after it.
 */

#ifndef KVMFAULT__SETUP_H
#define KVMFAULT__SETUP_H

#include "../entry/entry.h"

/* delivery.c: chooses the delivery mode; -EOPNOTSUPP is logged. */
int kvmfault__delivery_choose(struct kvmfault_vm *vm);

/* memories.c: is each memory of an option's list one of this context, and there
 * once? Returns 0, or -EINVAL after a refusal. */
int kvmfault__memories_check(struct kvmfault_vm *vm, const char *option,
			     struct kvmfault_memory *const *memories,
			     uint32_t count);

/* states-file.c: what is in states_fd? */
enum kvmfault__states {
	KVMFAULT__STATES_NEW,		/* nothing, or states_fd is not set */
	KVMFAULT__STATES_LEFT,		/* states to take up */
	KVMFAULT__STATES_SETTLED,	/* all was there: none is needed */
};
int kvmfault__states_look(struct kvmfault_vm *vm,
			  const struct kvmfault_memory_options *o,
			  enum kvmfault__states *found);
/* Map it, as the memory's states; kvmfault__pages_free() undoes that. */
int kvmfault__states_map(struct kvmfault_memory *memory,
			 const struct kvmfault_memory_options *o);
/* Make it the file of this memory's states. */
int kvmfault__states_begin(struct kvmfault_memory *memory,
			   const struct kvmfault_memory_options *o);
/* import.c: make states that were left true, while nothing else uses them. */
int kvmfault__import(struct kvmfault_memory *memory);

/* mappings.c */

/* The memory's first mapping is the memslots'. A tracked memory's mapping is
 * registered: with a userfaultfd of its own if uffd is NULL. It goes to no
 * child of fork(), unless it is inherited. */
int kvmfault__mapping_new(struct kvmfault_memory *memory, uint64_t host,
			  struct kvmfault_uffd *uffd, bool inherited,
			  struct kvmfault_mapping **mapping);

/* Called after the mapping's last use; lets go of its userfaultfd. If
 * guard is true, no thread can read zeros afterwards where pages are absent. */
void kvmfault__mapping_close(struct kvmfault_mapping *mapping, bool guard);

/* userfaultfds.c */
/* For a userfaultfd that no mapping uses any more. It lives as long as a fault
 * names it, which may take long; kvmfault__uffds_reap() frees it after that. */
void kvmfault__uffd_end(struct kvmfault_uffd *uffd, bool guards);
void kvmfault__uffds_reap(struct kvmfault_vm *vm);

/* event-reader.c: a reader is made for a descriptor that reports more than
 * faults. */
int kvmfault__reader_new(struct kvmfault_uffd *uffd);
void kvmfault__reader_free(struct kvmfault_uffd *uffd);

/* converter.c */
int kvmfault__converter(struct kvmfault_vm *vm,
			const struct kvmfault_converter *converter);

/* syscalls.c: NULL if index is past the end */
const struct kvmfault_syscall *
kvmfault__syscall(enum kvmfault_profile profile, unsigned int index);

#endif
