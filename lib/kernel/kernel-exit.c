/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Before the path of any fault: with which of two proposed ABIs, neither of
 * them merged, a missing page ends KVM_RUN on this kernel. In: /dev/kvm. Out:
 * the ABI, or none. The memslots of a scratch VM show it by what they accept;
 * nothing stays open.
 */

#include "../os/abi.h"
#include "kernel.h"

/* No vCPU ever uses the slot, so its memory need not exist. */
static int kernel_exit_try_slot(int vm, uint64_t request, uint32_t slot,
				uint64_t bitmap)
{
	struct kvmfault__memory_region2 region = {
		.slot = slot,
		.flags = KVMFAULT__MEM_USERFAULT,
		.memory_size = kvmfault__sys_page_size(),
		.pad2 = { bitmap },
	};

	region.guest_phys_addr = slot * region.memory_size;
	region.userspace_addr = (uintptr_t)&region & -region.memory_size;
	return kvmfault__sys_ioctl(vm, request, &region);
}

/*
 * KVM_MEM_USERFAULT has a bitmap, and refuses an address that no process can
 * have. Exit-on-missing ignores the address, and takes the flag in the old call
 * as well, which has no room for one. Any other meaning of the flag is neither.
 */
static int kernel_exit_ask_vm(int vm, enum kvmfault__kernel_exit *which)
{
	const uint64_t new = KVMFAULT__SET_USER_MEMORY_REGION2;
	uint64_t bitmap = 0;
	int err = kernel_exit_try_slot(vm, new, 0, (uintptr_t)&bitmap);

	if (err)
		return err == -EINVAL || err == -ENOTTY ? 0 : err;
	if (kernel_exit_try_slot(vm, new, 1, UINT64_MAX) == -EINVAL)
		*which = KVMFAULT__KERNEL_EXIT_USERFAULT;
	else if (!kernel_exit_try_slot(vm, KVM_SET_USER_MEMORY_REGION, 2, 0))
		*which = KVMFAULT__KERNEL_EXIT_ON_MISSING;
	return 0;
}

int kvmfault__kernel_exit_ask(int kvm_fd, enum kvmfault__kernel_exit *which)
{
	int vm, err;

	*which = KVMFAULT__KERNEL_EXIT_NONE;
	if (kvm_fd < 0)
		return -EBADF;
	vm = kvmfault__sys_ioctl(kvm_fd, KVM_CREATE_VM, NULL);
	if (vm < 0)
		return vm;
	err = kernel_exit_ask_vm(vm, which);
	kvmfault__sys_close(vm);
	return err;
}
