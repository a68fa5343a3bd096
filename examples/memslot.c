/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* A region's memslot, on any kernel and with any kernel's headers. */

#include <errno.h>
#include <kvmfault-experimental.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

/* KVM_SET_USER_MEMORY_REGION2, and its struct, are in linux/kvm.h since 6.8. */
struct slot {
	uint32_t slot, flags;
	uint64_t guest_phys_addr, memory_size, userspace_addr;
	uint64_t guest_memfd_offset;
	uint32_t guest_memfd, pad1;
	uint64_t userfault_bitmap;	/* pad2[0], there */
	uint64_t pad2[13];
};
#define SET_SLOT2 _IOW(KVMIO, 0x49, struct slot)

int set_slot(struct kvmfault_vm *vm, int vm_fd, struct slot *slot);

int set_slot(struct kvmfault_vm *vm, int vm_fd, struct slot *slot)
{
	const uint32_t old = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY;
	struct kvmfault_memslot memslot = { .size = sizeof(memslot) };
	int err;

	err = kvmfault_region_memslot(vm, 0, slot->guest_phys_addr, &memslot);
	if (err)
		return err;
	slot->flags |= memslot.flags;
	slot->userfault_bitmap = memslot.userfault_bitmap;
	/* Kernels before 6.8 have the other call only, whose struct is the
	 * beginning of this one. */
	if (slot->flags & ~old)
		err = ioctl(vm_fd, SET_SLOT2, slot);
	else
		err = ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, slot);
	return err < 0 ? -errno : 0;
}
