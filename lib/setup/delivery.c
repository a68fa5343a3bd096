/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Set-up: the delivery mode, by which vCPUs' missing pages come to the library.
 * In: the mode that the VMM requests, and the modes that it allows. Out: the
 * best of these that the kernel has, and for each other mode why it is not in
 * force. A context chooses once; it leaves that mode and takes it up again at
 * any time.
 */

#include "kvmfault-experimental.h"
#include "setup.h"

static struct kvmfault_finding
delivery_finding_no(int error, const char **why, const char *text)
{
	*why = text;
	return (struct kvmfault_finding){
		.support = KVMFAULT_SUPPORT_NO, .error = error,
	};
}

static struct kvmfault_finding
delivery_finding_unasked(int error, const char **why, const char *text)
{
	*why = text;
	return (struct kvmfault_finding){
		.support = KVMFAULT_SUPPORT_COULD_NOT_ASK, .error = error,
	};
}

static struct kvmfault_finding
delivery_ask_kernel_exit(struct kvmfault_vm *vm, const char **why)
{
	enum kvmfault__kernel_exit which = KVMFAULT__KERNEL_EXIT_NONE;
	int err;

	if (vm->options.kvm_fd <= 0)
		return delivery_finding_unasked(-EBADF, why,
						"the option kvm_fd is missing: set kvm_fd, since only a scratch VM shows whether the kernel has this mode");
	err = kvmfault__kernel_exit_ask(vm->options.kvm_fd, &which);
	if (err)
		return delivery_finding_unasked(err, why,
						"the library could not create a scratch VM, or could not ask it");
	if (which == KVMFAULT__KERNEL_EXIT_NONE)
		return delivery_finding_no(0, why,
					   "this kernel has neither KVM_MEM_USERFAULT nor KVM_MEM_EXIT_ON_MISSING; no released one has");
	vm->how.kernel_exit = which;
	return (struct kvmfault_finding){
		.support = KVMFAULT_SUPPORT_YES, .value = which,
	};
}

/* If KVM walks the guest's page tables in software, it takes a marker on a page
 * of these tables for an error, and the guest sees a page fault. */
static struct kvmfault_finding
delivery_ask_paging(struct kvmfault_vm *vm, const char **why)
{
	int two;

	if (vm->options.allow & KVMFAULT_ALLOW_SHADOW_PAGING)
		return (struct kvmfault_finding){
			.support = KVMFAULT_SUPPORT_YES,
		};
	if (vm->options.kvm_fd <= 0)
		return delivery_finding_unasked(-EBADF, why,
						"the option kvm_fd is missing: set kvm_fd, since only a scratch guest shows whether KVM walks the guest's page tables in software");
	two = kvmfault__two_dimensional(vm->options.kvm_fd);
	if (two < 0)
		return delivery_finding_unasked(two, why,
						"the library could not ask a scratch guest whether KVM walks the guest's page tables in software");
	if (!two)
		return delivery_finding_no(0, why,
					   "KVM walks the guest's page tables in software (shadow paging): make them present and set KVMFAULT_ALLOW_SHADOW_PAGING, or load the KVM module with two-dimensional paging (ept=1, npt=1)");
	return (struct kvmfault_finding){ .support = KVMFAULT_SUPPORT_YES };
}

static struct kvmfault_finding
delivery_ask_marker_exit(struct kvmfault_vm *vm, const char **why)
{
	struct kvmfault_finding poison;

	if (vm->options.delivery != KVMFAULT_DELIVERY_MARKER_EXIT &&
	    !(vm->options.allow & KVMFAULT_ALLOW_MARKER_EXIT)) {
		*why = "the mode is not allowed: set KVMFAULT_ALLOW_MARKER_EXIT";
		return (struct kvmfault_finding){
			.support = KVMFAULT_SUPPORT_NOT_ASKED,
		};
	}
	poison = kvmfault__ask_poison();
	if (poison.support == KVMFAULT_SUPPORT_NO)
		*why = "this kernel has no UFFDIO_POISON for a memfd: use Linux 6.6 or later";
	else if (poison.support != KVMFAULT_SUPPORT_YES)
		*why = "the library could not ask a userfaultfd for UFFDIO_POISON: allow this process to open /dev/userfaultfd";
	if (poison.support != KVMFAULT_SUPPORT_YES)
		return poison;
	return delivery_ask_paging(vm, why);
}

/* If this process can have no userfaultfd, the call that makes the first memory
 * with a source says so. */
static struct kvmfault_finding
delivery_ask_uffd(struct kvmfault_vm *vm, const char **why)
{
	(void)vm;
	(void)why;
	return (struct kvmfault_finding){ .support = KVMFAULT_SUPPORT_YES };
}

/* The best mode comes first. */
static const struct {
	enum kvmfault_delivery delivery;
	struct kvmfault_finding (*ask)(struct kvmfault_vm *vm,
				       const char **why);
} modes[] = {
	{ KVMFAULT_DELIVERY_KERNEL_EXIT, delivery_ask_kernel_exit },
	{ KVMFAULT_DELIVERY_MARKER_EXIT, delivery_ask_marker_exit },
	{ KVMFAULT_DELIVERY_UFFD, delivery_ask_uffd },
};

int kvmfault__delivery_choose(struct kvmfault_vm *vm)
{
	enum kvmfault_delivery wanted = vm->options.delivery;
	size_t i;

	for (i = 0; i < sizeof(modes) / sizeof(*modes); i++) {
		enum kvmfault_delivery mode = modes[i].delivery;
		const char **why = &vm->how.why[mode];

		if (wanted && wanted != mode)
			*why = "another mode was requested";
		else if (vm->how.chosen)
			*why = "a better one can be had";
		else
			vm->how.asked[mode] = modes[i].ask(vm, why);
		if (vm->how.asked[mode].support == KVMFAULT_SUPPORT_YES)
			vm->how.chosen = mode;
	}
	if (!vm->how.chosen)
		return kvmfault__refuse(vm, -EOPNOTSUPP,
			"kvmfault_vm_options.delivery: %s is not available: %s",
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
	ours.why[KVMFAULT_DELIVERY_AUTO] = "auto selects the best mode that is available";
	if (ours.delivery != vm->how.chosen) {
		ours.why[vm->how.chosen] = "kvmfault_vm_set_delivery() has left this mode";
		ours.why[ours.delivery] = NULL;
	}
	return kvmfault__options_out(report, &ours, sizeof(ours));
}

static int delivery_leave_kernel_exit(struct kvmfault_memory *memory)
{
	kvmfault__userfault_leave(memory);
	return 0;
}

static int delivery_enter_kernel_exit(struct kvmfault_memory *memory)
{
	kvmfault__userfault_enter(memory);
	return 0;
}

static int delivery_switch_to(struct kvmfault__seat *seat,
			      enum kvmfault_delivery delivery)
{
	bool leave = delivery == KVMFAULT_DELIVERY_UFFD;
	struct kvmfault_vm *vm = seat->vm;

	if (vm->how.chosen == KVMFAULT_DELIVERY_KERNEL_EXIT)
		return kvmfault__each_memory(seat, leave ?
					     delivery_leave_kernel_exit :
					     delivery_enter_kernel_exit);
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
			"kvmfault_vm_set_delivery: %u is not a mode that can be set: pass KVMFAULT_DELIVERY_UFFD or the mode that the context chose",
			(unsigned int)delivery);
	if (delivery != KVMFAULT_DELIVERY_UFFD && delivery != vm->how.chosen)
		return kvmfault__refuse(vm, -EOPNOTSUPP,
			"kvmfault_vm_set_delivery: this context chose %s and cannot switch to %s: %s",
			kvmfault_delivery_str(vm->how.chosen),
			kvmfault_delivery_str(delivery),
			vm->how.why[delivery] ?
			vm->how.why[delivery] : "the mode was not requested");
	seat = kvmfault__call_begin(vm);
	if (!seat)
		return -ENOMEM;
	atomic_store(&vm->how.delivery, delivery);
	/* Another thread may set a mode at the same time. Each looks again
	 * after its switch, so the last to switch has seen the last mode
	 * set. */
	do {
		delivery = atomic_load(&vm->how.delivery);
		err = delivery_switch_to(seat, delivery);
	} while (!err && atomic_load(&vm->how.delivery) != delivery);
	kvmfault__call_end(seat);
	kvmfault__expect_service(vm);
	return err;
}
