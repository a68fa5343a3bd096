/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The kernel's constants and structs that a build host's headers may lack, each
 * with the release that added it. If the headers know a name, an assertion
 * compares its value with ours. If they do not, the feature is compiled in all
 * the same: the running kernel decides, not the build host.
 */

#ifndef KVMFAULT__ABI_H
#define KVMFAULT__ABI_H

#include <linux/fs.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define KVMFAULT__SAME(known, ours) \
	_Static_assert((known) == (ours), #known " differs from " #ours)

/* 4.14; a userfaultfd accepts it since 6.10 */
#define KVMFAULT__RWF_NOWAIT 0x8
#ifdef RWF_NOWAIT
KVMFAULT__SAME(RWF_NOWAIT, KVMFAULT__RWF_NOWAIT);
#endif

/* 6.8: the exit, and the record that it leaves in kvm_run's union */
#define KVMFAULT__EXIT_MEMORY_FAULT 39
struct kvmfault__memory_fault {
	uint64_t flags;
	uint64_t gpa;
	uint64_t size;
};
#define KVMFAULT__EXIT_FLAG_PRIVATE (1ULL << 3)
_Static_assert(offsetof(struct kvm_run, hw) == 32, "kvm_run's union moved");
/* Two proposed ABIs, neither of them merged, use the same memslot flag. The
 * first one's bitmap is where kvmfault__memory_region2 has pad2[0]. */
#define KVMFAULT__MEM_USERFAULT (1U << 3)
#define KVMFAULT__MEM_EXIT_ON_MISSING (1U << 3)
#define KVMFAULT__EXIT_FLAG_USERFAULT (1ULL << 4)
#define KVMFAULT__EXIT_FLAG_READ (1ULL << 0)
#define KVMFAULT__EXIT_FLAG_WRITE (1ULL << 1)
#define KVMFAULT__EXIT_FLAG_EXEC (1ULL << 2)
#ifdef KVM_MEM_USERFAULT
KVMFAULT__SAME(KVM_MEM_USERFAULT, KVMFAULT__MEM_USERFAULT);
KVMFAULT__SAME(KVM_MEMORY_EXIT_FLAG_USERFAULT, KVMFAULT__EXIT_FLAG_USERFAULT);
#endif
#ifdef KVM_EXIT_MEMORY_FAULT
KVMFAULT__SAME(KVM_EXIT_MEMORY_FAULT, KVMFAULT__EXIT_MEMORY_FAULT);
KVMFAULT__SAME(KVM_MEMORY_EXIT_FLAG_PRIVATE, KVMFAULT__EXIT_FLAG_PRIVATE);
#endif

/* 6.8: capabilities; 6.11: PRE_FAULT_MEMORY; 6.18: GUEST_MEMFD_FLAGS */
#define KVMFAULT__CAP_USER_MEMORY2 231
#define KVMFAULT__CAP_MEMORY_FAULT_INFO 232
#define KVMFAULT__CAP_MEMORY_ATTRIBUTES 233
#define KVMFAULT__CAP_GUEST_MEMFD 234
#define KVMFAULT__CAP_PRE_FAULT_MEMORY 236
#define KVMFAULT__CAP_GUEST_MEMFD_FLAGS 244
#ifdef KVM_CAP_USER_MEMORY2
KVMFAULT__SAME(KVM_CAP_USER_MEMORY2, KVMFAULT__CAP_USER_MEMORY2);
KVMFAULT__SAME(KVM_CAP_MEMORY_FAULT_INFO, KVMFAULT__CAP_MEMORY_FAULT_INFO);
KVMFAULT__SAME(KVM_CAP_MEMORY_ATTRIBUTES, KVMFAULT__CAP_MEMORY_ATTRIBUTES);
KVMFAULT__SAME(KVM_CAP_GUEST_MEMFD, KVMFAULT__CAP_GUEST_MEMFD);
#endif
#ifdef KVM_CAP_PRE_FAULT_MEMORY
KVMFAULT__SAME(KVM_CAP_PRE_FAULT_MEMORY, KVMFAULT__CAP_PRE_FAULT_MEMORY);
#endif
#ifdef KVM_CAP_GUEST_MEMFD_FLAGS
KVMFAULT__SAME(KVM_CAP_GUEST_MEMFD_FLAGS, KVMFAULT__CAP_GUEST_MEMFD_FLAGS);
#endif

/* 6.8: ioctls; 6.11: PRE_FAULT_MEMORY */
struct kvmfault__memory_region2 {
	uint32_t slot;
	uint32_t flags;
	uint64_t guest_phys_addr;
	uint64_t memory_size;
	uint64_t userspace_addr;
	uint64_t guest_memfd_offset;
	uint32_t guest_memfd;
	uint32_t pad1;
	uint64_t pad2[14];
};
struct kvmfault__memory_attributes {
	uint64_t address;
	uint64_t size;
	uint64_t attributes;
	uint64_t flags;
};
struct kvmfault__create_guest_memfd {
	uint64_t size;
	uint64_t flags;
	uint64_t reserved[6];
};
struct kvmfault__pre_fault_memory {
	uint64_t gpa;
	uint64_t size;
	uint64_t flags;
	uint64_t padding[5];
};
#define KVMFAULT__SET_USER_MEMORY_REGION2 \
	_IOW(KVMIO, 0x49, struct kvmfault__memory_region2)
#define KVMFAULT__SET_MEMORY_ATTRIBUTES \
	_IOW(KVMIO, 0xd2, struct kvmfault__memory_attributes)
#define KVMFAULT__CREATE_GUEST_MEMFD \
	_IOWR(KVMIO, 0xd4, struct kvmfault__create_guest_memfd)
#define KVMFAULT__PRE_FAULT_MEMORY \
	_IOWR(KVMIO, 0xd5, struct kvmfault__pre_fault_memory)
#define KVMFAULT__ATTRIBUTE_PRIVATE (1ULL << 3)
#ifdef KVM_MEMORY_ATTRIBUTE_PRIVATE
KVMFAULT__SAME(KVM_MEMORY_ATTRIBUTE_PRIVATE, KVMFAULT__ATTRIBUTE_PRIVATE);
#endif
KVMFAULT__SAME(KVMFAULT__SET_USER_MEMORY_REGION2, 0x40a0ae49);
KVMFAULT__SAME(KVMFAULT__SET_MEMORY_ATTRIBUTES, 0x4020aed2);
KVMFAULT__SAME(KVMFAULT__CREATE_GUEST_MEMFD, 0xc040aed4);
KVMFAULT__SAME(KVMFAULT__PRE_FAULT_MEMORY, 0xc040aed5);

/* 6.1: the call of /dev/userfaultfd that makes a userfaultfd */
#define KVMFAULT__USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#ifdef USERFAULTFD_IOC_NEW
KVMFAULT__SAME(USERFAULTFD_IOC_NEW, KVMFAULT__USERFAULTFD_IOC_NEW);
#endif

/* 6.4: UFFDIO_CONTINUE maps a page of the file and write-protects it */
#define KVMFAULT__UFFDIO_CONTINUE_MODE_WP (1ULL << 1)
#ifdef UFFDIO_CONTINUE_MODE_WP
KVMFAULT__SAME(UFFDIO_CONTINUE_MODE_WP, KVMFAULT__UFFDIO_CONTINUE_MODE_WP);
#endif

/* 6.6: UFFDIO_POISON; 6.8: UFFDIO_MOVE */
#define KVMFAULT__UFFD_FEATURE_POISON (1ULL << 14)
#define KVMFAULT__UFFD_FEATURE_MOVE (1ULL << 16)
#define KVMFAULT__UFFDIO_POISON_NR 0x08
struct kvmfault__uffdio_poison {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};
#define KVMFAULT__UFFDIO_POISON \
	_IOWR(UFFDIO, KVMFAULT__UFFDIO_POISON_NR, \
	      struct kvmfault__uffdio_poison)
#define KVMFAULT__POISON_MODE_DONTWAKE (1ULL << 0)
KVMFAULT__SAME(KVMFAULT__UFFDIO_POISON, 0xc020aa08);
#ifdef UFFD_FEATURE_POISON
KVMFAULT__SAME(UFFD_FEATURE_POISON, KVMFAULT__UFFD_FEATURE_POISON);
KVMFAULT__SAME(UFFDIO_POISON_MODE_DONTWAKE, KVMFAULT__POISON_MODE_DONTWAKE);
#endif
#ifdef UFFD_FEATURE_MOVE
KVMFAULT__SAME(UFFD_FEATURE_MOVE, KVMFAULT__UFFD_FEATURE_MOVE);
#endif

/* 5.14: populate; 5.18: DONTNEED_LOCKED */
#define KVMFAULT__MADV_DONTNEED_LOCKED 24
#define KVMFAULT__MADV_POPULATE_READ 22
#define KVMFAULT__MADV_POPULATE_WRITE 23
#ifdef MADV_POPULATE_READ
KVMFAULT__SAME(MADV_POPULATE_READ, KVMFAULT__MADV_POPULATE_READ);
KVMFAULT__SAME(MADV_POPULATE_WRITE, KVMFAULT__MADV_POPULATE_WRITE);
#endif

#endif
