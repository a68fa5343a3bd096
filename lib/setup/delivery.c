/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Before the flow: how vCPUs' missing pages get into it. In: the mode that the
 * VMM wants, and what it allows. Out: the best of these that the kernel has, and
 * of each other one why it is not in force. Chosen once; left and taken up again
 * at any time.
 */

#include "kvmfault-experimental.h"
#include "setup.h"

static struct kvmfault_finding no(int error, const char **why, const char *text)
{
	*why = text;
	return (struct kvmfault_finding){ .support = KVMFAULT_SUPPORT_NO, .error = error };
}

static struct kvmfault_finding could_not(int error, const char **why, const char *text)
{
	*why = text;
	return (struct kvmfault_finding){ .support = KVMFAULT_SUPPORT_COULD_NOT_ASK, .error = error };
}

static struct kvmfault_finding ask_kernel_exit(struct kvmfault_vm *vm, const char **why)
{
	enum kvmfault__kernel_exit which = KVMFAULT__KERNEL_EXIT_NONE;
	int err;

	if (vm->options.kvm_fd <= 0)
		return could_not(-EBADF, why,
				 "the option kvm_fd is missing: only a scratch VM tells");
	err = kvmfault__kernel_exit_ask(vm->options.kvm_fd, &which);
	if (err)
		return could_not(err, why, "no scratch VM could be asked");
	if (which == KVMFAULT__KERNEL_EXIT_NONE)
		return no(0, why,
			  "this kernel has neither KVM_MEM_USERFAULT nor KVM_MEM_EXIT_ON_MISSING; no released one has");
	vm->how.kernel_exit = which;
	return (struct kvmfault_finding){ .support = KVMFAULT_SUPPORT_YES, .value = which };
}

/* A table page that is marked is a fault for who walks it in software. */
static struct kvmfault_finding ask_paging(struct kvmfault_vm *vm, const char **why)
{
	int two;

	if (vm->options.allow & KVMFAULT_ALLOW_SHADOW_PAGING)
		return (struct kvmfault_finding){ .support = KVMFAULT_SUPPORT_YES };
	if (vm->options.kvm_fd <= 0)
		return could_not(-EBADF, why,
				 "the option kvm_fd is missing: only a scratch guest tells whether KVM walks the guest's page tables in software");
	two = kvmfault__two_dimensional(vm->options.kvm_fd);
	if (two < 0)
		return could_not(two, why,
				 "no scratch guest could be asked whether KVM walks the guest's page tables in software");
	if (!two)
		return no(0, why,
			  "KVM walks the guest's page tables in software (shadow paging): make them present and set KVMFAULT_ALLOW_SHADOW_PAGING, or load the KVM module with two-dimensional paging (ept=1, npt=1)");
	return (struct kvmfault_finding){ .support = KVMFAULT_SUPPORT_YES };
}

static struct kvmfault_finding ask_marker_exit(struct kvmfault_vm *vm, const char **why)
{
	struct kvmfault_finding poison;

	if (vm->options.delivery != KVMFAULT_DELIVERY_MARKER_EXIT &&
	    !(vm->options.allow & KVMFAULT_ALLOW_MARKER_EXIT)) {
		*why = "it is not allowed: set KVMFAULT_ALLOW_MARKER_EXIT";
		return (struct kvmfault_finding){ .support = KVMFAULT_SUPPORT_NOT_ASKED };
	}
	poison = kvmfault__ask_poison();
	if (poison.support == KVMFAULT_SUPPORT_NO)
		*why = "this kernel has no UFFDIO_POISON for a memfd (Linux 6.6)";
	else if (poison.support != KVMFAULT_SUPPORT_YES)
		*why = "no userfaultfd could be asked: allow this process to open /dev/userfaultfd";
	if (poison.support != KVMFAULT_SUPPORT_YES)
		return poison;
	return ask_paging(vm, why);
}

/* Whether there is one at all shows when memory is registered. */
static struct kvmfault_finding ask_uffd(struct kvmfault_vm *vm, const char **why)
{
	(void)vm;
	(void)why;
	return (struct kvmfault_finding){ .support = KVMFAULT_SUPPORT_YES };
}

/* The best first. */
static const struct {
	enum kvmfault_delivery delivery;
	struct kvmfault_finding (*ask)(struct kvmfault_vm *vm, const char **why);
} modes[] = {
	{ KVMFAULT_DELIVERY_KERNEL_EXIT, ask_kernel_exit },
	{ KVMFAULT_DELIVERY_MARKER_EXIT, ask_marker_exit },
	{ KVMFAULT_DELIVERY_UFFD, ask_uffd },
};

int kvmfault__delivery_choose(struct kvmfault_vm *vm)
{
	enum kvmfault_delivery wanted = vm->options.delivery;
	size_t i;

	for (i = 0; i < sizeof(modes) / sizeof(*modes); i++) {
		enum kvmfault_delivery mode = modes[i].delivery;
		const char **why = &vm->how.why[mode];

		if (wanted && wanted != mode)
			*why = "another one was asked for";
		else if (vm->how.chosen)
			*why = "a better one can be had";
		else
			vm->how.asked[mode] = modes[i].ask(vm, why);
		if (vm->how.asked[mode].support == KVMFAULT_SUPPORT_YES)
			vm->how.chosen = mode;
	}
	if (!vm->how.chosen)
		return kvmfault__refuse(vm, -EOPNOTSUPP,
			"kvmfault_vm_options.delivery: %s can't be had: %s",
			kvmfault_delivery_str(wanted),
			vm->how.why[wanted]);
	atomic_store(&vm->how.delivery, vm->how.chosen);
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_vm_delivery(const struct kvmfault_vm *vm,
			 struct kvmfault_delivery_report *report)
{
	struct kvmfault_delivery_report ours = { .size = sizeof(ours) };
	size_t i;
	int err;

	if (!vm)
		return -EINVAL;
	err = kvmfault__options_to(vm, "kvmfault_delivery_report", report);
	if (err)
		return err;
	ours.delivery = atomic_load(&vm->how.delivery);
	for (i = 0; i < KVMFAULT_DELIVERY_COUNT; i++) {
		ours.mode[i] = vm->how.asked[i];
		ours.why[i] = vm->how.why[i];
	}
	ours.why[KVMFAULT_DELIVERY_AUTO] = "it stands for the best of the others";
	if (ours.delivery != vm->how.chosen) {
		ours.why[vm->how.chosen] = "it was left by kvmfault_vm_set_delivery()";
		ours.why[ours.delivery] = NULL;
	}
	return kvmfault__options_out(report, &ours, sizeof(ours));
}

static int leave_kernel_exit(struct kvmfault_memory *memory)
{
	kvmfault__userfault_leave(memory);
	return 0;
}

static int enter_kernel_exit(struct kvmfault_memory *memory)
{
	kvmfault__userfault_enter(memory);
	return 0;
}

static int switch_to(struct kvmfault__seat *seat,
		     enum kvmfault_delivery delivery)
{
	bool leave = delivery == KVMFAULT_DELIVERY_UFFD;
	struct kvmfault_vm *vm = seat->vm;

	if (vm->how.chosen == KVMFAULT_DELIVERY_KERNEL_EXIT)
		return kvmfault__each_memory(seat, leave ? leave_kernel_exit :
							   enter_kernel_exit);
	return vm->how.chosen == KVMFAULT_DELIVERY_MARKER_EXIT && leave ?
		kvmfault__unmark_all(seat) : 0;
}

KVMFAULT__EXPORT
int kvmfault_vm_set_delivery(struct kvmfault_vm *vm,
			     enum kvmfault_delivery delivery)
{
	struct kvmfault__seat *seat;
	int err;

	if (!vm)
		return -EINVAL;
	if (!delivery || delivery >= KVMFAULT_DELIVERY_COUNT)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_vm_set_delivery: %u is no mode that can be set",
			(unsigned int)delivery);
	if (delivery != KVMFAULT_DELIVERY_UFFD && delivery != vm->how.chosen)
		return kvmfault__refuse(vm, -EOPNOTSUPP,
			"kvmfault_vm_set_delivery: this context chose %s, so that %s can't be set: %s",
			kvmfault_delivery_str(vm->how.chosen),
			kvmfault_delivery_str(delivery),
			vm->how.why[delivery] ?
			vm->how.why[delivery] : "it was not asked for");
	seat = kvmfault__call_begin(vm);
	if (!seat)
		return -ENOMEM;
	atomic_store(&vm->how.delivery, delivery);
	/* Another thread may do so too: the last one to switch has seen the last
	 * mode that was set. */
	do {
		delivery = atomic_load(&vm->how.delivery);
		err = switch_to(seat, delivery);
	} while (!err && atomic_load(&vm->how.delivery) != delivery);
	kvmfault__call_end(seat);
	kvmfault__expect_service(vm);
	return err;
}
