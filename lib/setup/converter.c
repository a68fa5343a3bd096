/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Set-up: conversions, with the call that tells KVM of one
 * (KVM_SET_MEMORY_ATTRIBUTES). In: the VMM's converter, and the hooks that it
 * adds before the first vCPU and service. Out: the converter's set, which is
 * the library's own if the VMM gives none and the context has vm_fd; and the
 * hooks. Neither changes once a vCPU or a service exists. resolve/convert.c
 * calls them.
 */

#include "../os/abi.h"
#include "setup.h"

#define FLAGS (KVMFAULT_CONVERTER_KEEP_SHARED | \
	       KVMFAULT_CONVERTER_KEEP_PRIVATE | \
	       KVMFAULT_CONVERTER_RAM_ONLY | KVMFAULT_CONVERTER_CALLS_ONLY)

static int converter_set_attributes(void *data, uint64_t address,
				    uint64_t length, bool private)
{
	struct kvmfault_vm *vm = data;
	struct kvmfault__memory_attributes attributes = {
		.address = address,
		.size = length,
		.attributes = private ? KVMFAULT__ATTRIBUTE_PRIVATE : 0,
	};

	int err = kvmfault__sys_ioctl(vm->options.vm_fd,
				      KVMFAULT__SET_MEMORY_ATTRIBUTES,
				      &attributes);

	/* A kernel before 6.8 does not know the call, and some types of VM do
	 * not take it. The arguments are right, so neither is a caller's
	 * bug. */
	return err == -ENOTTY || err == -EINVAL ? -EOPNOTSUPP : err;
}

int kvmfault__converter(struct kvmfault_vm *vm,
			const struct kvmfault_converter *converter)
{
	int err = 0;

	vm->options.converter = NULL;	/* belongs to the caller */
	if (converter)
		err = kvmfault__options_in(vm, "kvmfault_converter",
					   &vm->conversions.converter,
					   sizeof(vm->conversions.converter),
					   converter);
	if (err)
		return err;
	if (vm->conversions.converter.flags & ~FLAGS)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_converter.flags: %#x has a flag that this version does not know",
			vm->conversions.converter.flags);
	if (!vm->conversions.converter.set && vm->options.vm_fd > 0) {
		vm->conversions.converter.set = converter_set_attributes;
		vm->conversions.converter.data = vm;
	}
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_conversion_hook_add(struct kvmfault_vm *vm,
				 const struct kvmfault_conversion_hook *hook)
{
	struct kvmfault_conversion_hook ours;
	unsigned int n;
	int err;

	err = kvmfault__options_in(vm, "kvmfault_conversion_hook", &ours,
				   sizeof(ours), hook);
	if (err)
		return err;
	if (!vm)
		return -EINVAL;
	kvmfault__sys_lock(&vm->lock);
	n = atomic_load(&vm->conversions.hooks);
	if (vm->vcpus || vm->services) {
		err = -EBUSY;
	} else if (n == KVMFAULT_CONVERSION_HOOK_COUNT) {
		err = -ENOSPC;
	} else {
		vm->conversions.hook[n] = ours;
		atomic_store(&vm->conversions.hooks, n + 1);
	}
	kvmfault__sys_unlock(&vm->lock);
	if (err)
		kvmfault__refuse(vm, err, err == -EBUSY ?
			"kvmfault_conversion_hook_add: a vCPU or a service exists already: add hooks before the first kvmfault_vcpu_new() and kvmfault_service_new()" :
			"kvmfault_conversion_hook_add: the context has KVMFAULT_CONVERSION_HOOK_COUNT hooks, which is the limit: combine two of them in one");
	return err;
}
