/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: pages that KVM itself reads and writes since an
 * MSR names them, as for kvmclock and steal time. In: MSRs that the VMM
 * restores or has read. Out: those pages are present, by the one path. The
 * caller may pass any value of any MSR; one that names no page is skipped.
 */

#include "../os/abi.h"
#include "entry.h"

#ifdef __x86_64__

static const struct feature {
	uint32_t msr;
	uint32_t length;	/* bytes that KVM uses there */
	uint64_t address;	/* bits of the value that are the gpa */
	uint64_t enabled;	/* bits of which one is set if the feature is
				 * on; 0: it is always on */
	bool once;		/* KVM tries once, when the MSR is set, and
				 * does not report a failure */
	uint32_t space;		/* address space: 0 also for a vCPU in SMM */
	uint32_t offset;	/* of those bytes from the gpa */
} features[] = {
	/* linux/kvm_para.h: kvmclock; its wall clock, at any address but 0; */
	{ 0x4b564d01, 32, ~1ULL, 1, .once = true },
	{ 0x12, 32, ~1ULL, 1, .once = true },
	{ 0x4b564d00, 12, ~0ULL, ~0ULL, .once = true },
	{ 0x11, 12, ~0ULL, ~0ULL, .once = true },
	/* asynchronous page faults, steal time, PV EOI */
	{ 0x4b564d02, 64, ~63ULL, 1, .once = false },
	{ 0x4b564d03, 64, ~63ULL, 1, .once = false },
	{ 0x4b564d04, 4, ~3ULL, 1, .once = false },
	/* Hyper-V: hypercall page, reference TSC, VP assist, events,
	 * messages */
	{ 0x40000001, 4096, ~4095ULL, 1, .once = false },
	{ 0x40000021, 4096, ~4095ULL, 1, .once = true },
	{ 0x40000073, 4096, ~4095ULL, 1, .once = false },
	{ 0x40000082, 4096, ~4095ULL, 1, .once = false },
	{ 0x40000083, 4096, ~4095ULL, 1, .once = false },
	/* SMBASE: KVM saves the vCPU's state there when an SMI comes. If it
	 * cannot write there, the VM is dead. */
	{ 0x9e, 512, ~0ULL, 0, .space = 1, .offset = 0xfe00 },
};

/* NULL: this value of the MSR names no page. */
static const struct feature *
paravirt_find_feature(const struct kvm_msr_entry *msr)
{
	size_t i;

	for (i = 0; i < sizeof(features) / sizeof(*features); i++)
		if (features[i].msr == msr->index)
			return !features[i].enabled ||
			       msr->data & features[i].enabled ? &features[i] :
								 NULL;
	return NULL;
}

static int paravirt_ensure_page(struct kvmfault__seat *seat,
				const struct kvm_msr_entry *msr, bool *again)
{
	const struct feature *feature = paravirt_find_feature(msr);
	uint64_t gpa;
	int err;

	if (!feature)
		return 0;
	*again |= feature->once;
	gpa = (msr->data & feature->address) + feature->offset;
	if (gpa + feature->length - 1 < gpa)
		return 0;
	err = kvmfault__ensure(seat, feature->space, gpa, feature->length,
			       true);
	return err == -ENXIO ? 0 : err;
}

KVMFAULT__EXPORT
int kvmfault_ensure_msrs(struct kvmfault_vm *vm,
			 const struct kvm_msr_entry *msrs, uint32_t count,
			 bool *again)
{
	struct kvmfault__seat *seat;
	bool once = false;
	uint32_t i;
	int err = 0;

	if (!vm)
		return -EINVAL;
	if (count && !msrs)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_ensure_msrs: msrs is NULL");
	seat = kvmfault__call_begin(vm);
	if (!seat)
		return -ENOMEM;
	for (i = 0; i < count && !err; i++)
		err = paravirt_ensure_page(seat, &msrs[i], &once);
	kvmfault__call_end(seat);
	if (again)
		*again = once;
	return err;
}

#else

/* arm64 has no MSRs. The VMM says where its steal time is, by
 * KVM_ARM_VCPU_PVTIME_IPA. */
KVMFAULT__EXPORT
int kvmfault_ensure_msrs(struct kvmfault_vm *vm,
			 const struct kvm_msr_entry *msrs, uint32_t count,
			 bool *again)
{
	if (!vm)
		return -EINVAL;
	if (count && !msrs)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_ensure_msrs: msrs is NULL");
	if (again)
		*again = false;
	return 0;
}

#endif
