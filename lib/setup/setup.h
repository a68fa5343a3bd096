/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * How objects are made and taken down: what the files of this room share.
 */

#ifndef KVMFAULT__SETUP_H
#define KVMFAULT__SETUP_H

#include "../entry/entry.h"

/* delivery.c: how vCPUs' missing pages get here; -EOPNOTSUPP, logged */
int kvmfault__delivery_choose(struct kvmfault_vm *vm);

/* mappings.c */

/* The memory's first mapping is the memslots'. A tracked memory's mapping is
 * registered, with a uffd of its own where it was given none; it goes to no child
 * of fork(), unless it is inherited. */
int kvmfault__mapping_new(struct kvmfault_memory *memory, uint64_t host,
			  struct kvmfault_uffd *uffd, bool inherited,
			  struct kvmfault_mapping **mapping);

/* After the mapping's last use: let go of the uffd; guard: where pages are
 * absent nobody may read zeros afterwards. */
void kvmfault__mapping_close(struct kvmfault_mapping *mapping, bool guard);

/* userfaultfds.c */
/* No mapping uses it any more: it lives as long as a fault names it, which may take
 * its time; and then is freed by the next one to reap. */
void kvmfault__uffd_end(struct kvmfault_uffd *uffd, bool guards);
void kvmfault__uffds_reap(struct kvmfault_vm *vm);

/* event-reader.c: made for a descriptor that tells of more than faults. */
int kvmfault__reader_new(struct kvmfault_uffd *uffd);
void kvmfault__reader_free(struct kvmfault_uffd *uffd);

/* converter.c */
int kvmfault__converter(struct kvmfault_vm *vm,
			const struct kvmfault_converter *converter);

/* syscalls.c; NULL: past the end */
const struct kvmfault_syscall *
kvmfault__syscall(enum kvmfault_profile profile, unsigned int index);

#endif
