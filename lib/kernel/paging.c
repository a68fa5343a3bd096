/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Before the path of any fault: which of two ways this KVM has to page. In:
 * /dev/kvm. Out: the hardware walks the guest's page tables, behind KVM's own
 * tables (two-dimensional paging), or KVM does in software (shadow paging), or
 * why the question could not be asked. A scratch guest shows it, and not the
 * name or a parameter of a module. Nothing stays open.
 */

#include <string.h>

#include "../os/abi.h"
#include "kernel.h"

#ifdef __x86_64__

#define TRIES 64		/* signals that may interrupt KVM_RUN */
#define CR0 0x80000011UL	/* paging, protected mode */
#define CODE_SEGMENT 0xb	/* type: code, read, accessed */

struct scratch {
	int vm, vcpu;
	struct kvm_run *run;
	size_t run_size;
	void *table;
};

static void scratch_free(const struct scratch *s)
{
	if (s->run)
		kvmfault__sys_munmap(s->run, s->run_size);
	if (s->vcpu >= 0)
		kvmfault__sys_close(s->vcpu);
	if (s->vm >= 0)
		kvmfault__sys_close(s->vm);
	if (s->table)
		kvmfault__sys_munmap(s->table, kvmfault__sys_page_size());
}

/* The guest's only memory is its page table's page, which KVM can't read. */
static int scratch_add_table(struct scratch *s)
{
	struct kvm_userspace_memory_region slot = {
		.memory_size = kvmfault__sys_page_size(),
	};
	int err;

	err = kvmfault__sys_mmap(&s->table, slot.memory_size, PROT_NONE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (err)
		return err;
	slot.userspace_addr = (uintptr_t)s->table;
	return kvmfault__sys_ioctl(s->vm, KVM_SET_USER_MEMORY_REGION, &slot);
}

/* The state after a reset, but with 32-bit paging, which needs no more than CR0
 * and a code segment. An IDT of one byte has no handler. */
static int scratch_set_registers(const struct scratch *s)
{
	struct kvm_sregs sregs;
	int err = kvmfault__sys_ioctl(s->vcpu, KVM_GET_SREGS, &sregs);

	if (err)
		return err;
	sregs.cr0 = CR0;
	sregs.cr3 = 0;
	sregs.cs.type = CODE_SEGMENT;
	sregs.idt.limit = 0;
	return kvmfault__sys_ioctl(s->vcpu, KVM_SET_SREGS, &sregs);
}

static int scratch_add_vcpu(int kvm_fd, struct scratch *s)
{
	void *run;
	int ret = kvmfault__sys_ioctl(s->vm, KVM_CREATE_VCPU, NULL);

	if (ret < 0)
		return ret;
	s->vcpu = ret;
	ret = kvmfault__sys_ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, NULL);
	if (ret < 0)
		return ret;
	s->run_size = (size_t)ret;
	ret = kvmfault__sys_mmap(&run, s->run_size, PROT_READ | PROT_WRITE,
				 MAP_SHARED, s->vcpu, 0);
	if (ret)
		return ret;
	s->run = run;
	return scratch_set_registers(s);
}

static int scratch_new(int kvm_fd, struct scratch *s)
{
	int err;

	s->vm = kvmfault__sys_ioctl(kvm_fd, KVM_CREATE_VM, NULL);
	if (s->vm < 0)
		return s->vm;
	err = scratch_add_table(s);
	return err ? err : scratch_add_vcpu(kvm_fd, s);
}

/*
 * The first instruction's fetch walks the page table. If the hardware walks,
 * KVM has to bring the table's page in and can't: -EFAULT. If KVM walks, it
 * takes the table for one that maps nothing, and the guest shuts down for want
 * of a page fault handler.
 *
 * KVM_RUN ends either way: nothing is mapped, so no instruction runs; and the
 * VM has no interrupt controller, without which KVM brings no page in behind
 * the vCPU's back.
 */
static int scratch_ask_paging(const struct scratch *s)
{
	int err, tries = 0;

	do
		err = kvmfault__sys_ioctl(s->vcpu, KVM_RUN, NULL);
	while (err == -EINTR && ++tries < TRIES);
	if (err == -EFAULT)
		return 1;
	if (err)
		return err;
	return s->run->exit_reason == KVM_EXIT_SHUTDOWN ? 0 : -EIO;
}

int kvmfault__two_dimensional(int kvm_fd)
{
	struct scratch s = { .vm = -1, .vcpu = -1 };
	int ret;

	if (kvm_fd < 0)
		return -EBADF;
	ret = scratch_new(kvm_fd, &s);
	if (!ret)
		ret = scratch_ask_paging(&s);
	scratch_free(&s);
	return ret;
}

#else

/* arm64's KVM has no other way: the hardware walks both stages. */
int kvmfault__two_dimensional(int kvm_fd)
{
	return kvm_fd < 0 ? -EBADF : 1;
}

#endif
