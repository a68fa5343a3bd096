/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Which of the proposed ABIs this kernel has, by which a missing page ends KVM_RUN (they
 * are not merged). In: a scratch VM. Out: what its memslots accept.
 */

#include "../os/abi.h"
#include "kernel.h"

/* A slot that nobody ever uses: its memory need not be there. */
static int try_slot(int vm, uint64_t request, uint32_t slot, uint64_t bitmap)
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
 * What has a bitmap refuses one that no process can have; what has none does
 * not look, and takes the flag in the old call as well, which has no room for a
 * pointer. Whatever else the bit may come to mean is neither.
 */
static int ask(int vm, enum kvmfault__kernel_exit *which)
{
	const uint64_t new = KVMFAULT__SET_USER_MEMORY_REGION2;
	uint64_t bitmap = 0;
	int err = try_slot(vm, new, 0, (uintptr_t)&bitmap);

	if (err)
		return err == -EINVAL || err == -ENOTTY ? 0 : err;
	if (try_slot(vm, new, 1, UINT64_MAX) == -EINVAL)
		*which = KVMFAULT__KERNEL_EXIT_USERFAULT;
	else if (!try_slot(vm, KVM_SET_USER_MEMORY_REGION, 2, 0))
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
	err = ask(vm, which);
	kvmfault__sys_close(vm);
	return err;
}
