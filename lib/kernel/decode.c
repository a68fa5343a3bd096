/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage decode: from the kernel's report to one typed fault. In: KVM_RUN's
 * result and its kvm_run, or a siginfo. Out: the fault, of kind NONE if there
 * is none. kvmfault_decode_siginfo() runs in signal handlers, too: it is
 * async-signal-safe. No state is kept, and any input is accepted. A record in
 * kvm_run is read only if the kernel says that it is fresh, and only as far as
 * that exit defines it.
 */

#include <signal.h>
#include <string.h>

#include "../os/abi.h"
#include "kernel.h"

/* KVM_RUN_X86_SMM, which linux/kvm.h has for x86 only */
#define RUN_SMM (1U << 0)
#define SUBERROR_EMULATION 1

static void decode_range(struct kvmfault_fault *fault, uint64_t gpa,
			 uint64_t size)
{
	const uint64_t mask = KVMFAULT__PAGE - 1;
	uint64_t last = gpa + (size ? size - 1 : 0);

	if (last < gpa)
		last = UINT64_MAX;	/* cut a range that wraps */
	fault->known |= KVMFAULT_KNOWN_GPA;
	if (size)
		fault->known |= KVMFAULT_KNOWN_LENGTH;
	fault->gpa = gpa & ~mask;
	fault->length = (last | mask) - fault->gpa + 1;
	if (!fault->length)		/* all 2^64 */
		fault->length = UINT64_MAX;
}

static void decode_error(int err, const struct kvm_run *run,
			 struct kvmfault_fault *fault)
{
	struct kvmfault__memory_fault record;

	if (err != EFAULT && err != EHWPOISON)
		return;
	fault->error = err;
	fault->kind = KVMFAULT_KIND_UNANNOTATED;
	if (!run || run->exit_reason != KVMFAULT__EXIT_MEMORY_FAULT)
		return;
	memcpy(&record, &run->hw, sizeof(record));
	fault->kind = KVMFAULT_KIND_EXIT;
	fault->flags = record.flags;
	decode_range(fault, record.gpa, record.size);
}

static void decode_exit(const struct kvm_run *run, struct kvmfault_fault *fault)
{
	if (run->exit_reason == KVM_EXIT_MMIO) {
		/* KVM makes no such access: leave the exit to the VMM. */
		if (!run->mmio.len || run->mmio.len > sizeof(run->mmio.data) ||
		    run->mmio.phys_addr + run->mmio.len - 1 <
		    run->mmio.phys_addr)
			return;
		fault->kind = KVMFAULT_KIND_MMIO;
		fault->access = run->mmio.is_write ? KVMFAULT_ACCESS_WRITE :
						     KVMFAULT_ACCESS_READ;
		fault->known = KVMFAULT_KNOWN_GPA | KVMFAULT_KNOWN_LENGTH;
		fault->gpa = run->mmio.phys_addr;
		fault->length = run->mmio.len;
	} else if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR &&
		   run->internal.suberror == SUBERROR_EMULATION) {
		fault->kind = KVMFAULT_KIND_EMULATION;
	}
}

uint32_t kvmfault__address_space(const struct kvm_run *run)
{
#ifdef __x86_64__
	return run->flags & RUN_SMM ? 1 : 0;
#else
	(void)run;
	return 0;
#endif
}

void kvmfault__decode(int ret, int err, const struct kvm_run *run,
		      struct kvmfault_fault *fault)
{
	memset(fault, 0, sizeof(*fault));
	fault->size = sizeof(*fault);
	if (ret < 0)
		decode_error(err, run, fault);
	else if (!ret && run)
		decode_exit(run, fault);
	if (run && fault->kind)
		fault->address_space = kvmfault__address_space(run);
}

KVMFAULT__EXPORT
int kvmfault_decode(int ret, int err, const struct kvm_run *run,
		    struct kvmfault_fault *fault)
{
	struct kvmfault_fault ours;

	kvmfault__decode(ret, err, run, &ours);
	return kvmfault__options_out(fault, &ours, sizeof(ours));
}

KVMFAULT__EXPORT
int kvmfault_decode_siginfo(const void *siginfo, struct kvmfault_fault *fault)
{
	struct kvmfault_fault ours = { .size = sizeof(ours) };
	const siginfo_t *info = siginfo;
	unsigned int lsb;

	if (info && info->si_signo == SIGBUS &&
	    (info->si_code == BUS_MCEERR_AR ||
	     info->si_code == BUS_MCEERR_AO)) {
		/* The shift says how much is lost: 12 is a page, and a hugetlb
		 * page has more. An impossible one is taken for a page. */
		lsb = (unsigned int)info->si_addr_lsb;
		if (lsb < 12 || lsb > 30)
			lsb = 12;
		ours.kind = info->si_code == BUS_MCEERR_AR ?
			KVMFAULT_KIND_MARKER : KVMFAULT_KIND_FAILURE;
		ours.known = KVMFAULT_KNOWN_HVA | KVMFAULT_KNOWN_LENGTH;
		ours.length = 1ULL << lsb;
		ours.hva = (uintptr_t)info->si_addr & ~(KVMFAULT__PAGE - 1);
	}
	return kvmfault__options_out(fault, &ours, sizeof(ours));
}
