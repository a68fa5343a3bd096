/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Interfaces to kernel patches that are not merged. No released kernel has
 * them, and what is declared here may change or go with any version of the
 * library: neither its names nor its symbols are promised.
 *
 * Two ABIs were proposed by which KVM_RUN ends with KVM_EXIT_MEMORY_FAULT at a
 * missing page: KVM_MEM_USERFAULT, which has a bitmap, and
 * KVM_MEM_EXIT_ON_MISSING. They claim the same flag of memslots, so a kernel
 * has one of them at most.
 */

#ifndef KVMFAULT_EXPERIMENTAL_H
#define KVMFAULT_EXPERIMENTAL_H

#include "kvmfault.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Features that kvmfault_probe() asks a scratch VM for. */
#define KVMFAULT_FEATURE_USERFAULT KVMFAULT_FEATURE_EXPERIMENTAL_21
#define KVMFAULT_FEATURE_EXIT_ON_MISSING KVMFAULT_FEATURE_EXPERIMENTAL_22

/* A mode of delivery: KVM_RUN ends with KVM_EXIT_MEMORY_FAULT. If the kernel
 * has it, AUTO takes it. */
#define KVMFAULT_DELIVERY_KERNEL_EXIT KVMFAULT_DELIVERY_EXPERIMENTAL_3

/* A region's memslot needs these in addition to what the VMM tells KVM. */
struct kvmfault_memslot {
	size_t size;
	uint32_t flags;		/* to be or-ed into the slot's */
	/* It goes where struct kvm_userspace_memory_region2 has
	 * userfault_bitmap, or in older headers pad2[0]. It is other than 0
	 * only with a flag that needs KVM_SET_USER_MEMORY_REGION2. */
	uint64_t userfault_bitmap;
};

/*
 * Let missing pages of the region that begins at gpa leave KVM_RUN, on kernels
 * that have KVM_MEM_USERFAULT or KVM_MEM_EXIT_ON_MISSING. Call it before the
 * slot is created, and before it is changed.
 *
 * On other kernels both members are 0, so the caller needs no special case.
 * They are 0 also
 * - for a region with a guest_memfd or without a source,
 * - with a bitmap, for a region whose offset into its memory is not a multiple
 *   of 64 host pages,
 * - without a bitmap, for a READONLY region.
 * The pages of such a region are served all the same, as userfaultfd tells of
 * them.
 *
 * The bitmap is the memory's, and KVM reads it: delete the slot, or set it
 * without the flag, before the memory is freed. memslot->size must be set.
 *
 * Returns 0, or
 *   -EINVAL   a pointer is NULL, or the size of memslot is not set
 *   -ENOENT   no region begins there
 *   -ENOMEM   there is no memory for it
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_region_memslot(struct kvmfault_vm *vm, uint32_t address_space,
			    uint64_t gpa, struct kvmfault_memslot *memslot);

#ifdef __cplusplus
}
#endif

#endif
