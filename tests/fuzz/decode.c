/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * decode, on any kvm_run. Input: ret, errno, the shared page. The page given is
 * as long as what its exit defines, and not a byte longer.
 */

#include <errno.h>

#include "fuzz.h"
#include "lib/os/abi.h"
#include "lib/setup/setup.h"

#define HEAD offsetof(struct kvm_run, hw)

static size_t defined(const struct kvm_run *run)
{
	switch (run->exit_reason) {
	case KVMFAULT__EXIT_MEMORY_FAULT:
		return HEAD + sizeof(struct kvmfault__memory_fault);
	case KVM_EXIT_MMIO:
		return HEAD + sizeof(run->mmio);
	case KVM_EXIT_INTERNAL_ERROR:
		return HEAD + sizeof(run->internal.suberror);
	default:
		return HEAD;
	}
}

static void check_exit(const struct kvmfault_fault *fault,
		       const struct kvm_run *run)
{
	struct kvmfault__memory_fault record;
	uint64_t last;

	memcpy(&record, &run->hw, sizeof(record));
	last = record.gpa + (record.size ? record.size - 1 : 0);
	if (last < record.gpa)
		last = UINT64_MAX;
	MUST(fault->flags == record.flags);
	MUST(!(fault->gpa % PAGE) && fault->gpa <= record.gpa);
	MUST(fault->gpa + PAGE - 1 >= record.gpa);
	MUST(fault->length >= PAGE);
	/* All 2^64 are one more than a length can say. */
	MUST(fault->length == UINT64_MAX ||
	     fault->gpa + fault->length - 1 >= last);
	MUST(!(fault->known & KVMFAULT_KNOWN_LENGTH) == !record.size);
}

static void check_mmio(const struct kvmfault_fault *fault,
		       const struct kvm_run *run)
{
	MUST(fault->gpa == run->mmio.phys_addr && !fault->flags);
	MUST(fault->length == run->mmio.len && fault->length <= 8);
	MUST(fault->access == (run->mmio.is_write ? KVMFAULT_ACCESS_WRITE :
						    KVMFAULT_ACCESS_READ));
}

static void check(int ret, int err, const struct kvm_run *run,
		  const struct kvmfault_fault *fault)
{
	static const struct kvmfault_fault nothing = {
		.size = sizeof(nothing),
	};

	MUST(fault->size == sizeof(*fault));
	MUST(!(fault->known & ~(uint32_t)(KVMFAULT_KNOWN_GPA |
					  KVMFAULT_KNOWN_LENGTH)));
	MUST(fault->gpa + fault->length - !!fault->length >= fault->gpa);
	MUST(!fault->hva && fault->address_space <= 1);
	MUST(fault->error == (ret < 0 && fault->kind ? err : 0));
	switch (fault->kind) {
	case KVMFAULT_KIND_NONE:
		MUST(!memcmp(fault, &nothing, sizeof(nothing)));
		return;
	case KVMFAULT_KIND_EXIT:
		MUST(ret < 0 && (err == EFAULT || err == EHWPOISON));
		check_exit(fault, run);
		return;
	case KVMFAULT_KIND_MMIO:
		MUST(!ret);
		check_mmio(fault, run);
		return;
	case KVMFAULT_KIND_UNANNOTATED:
		MUST(ret < 0 && !fault->known && !fault->length);
		return;
	case KVMFAULT_KIND_EMULATION:
		MUST(!ret && !fault->known && !fault->length);
		return;
	default:
		MUST(!"an entrance of KVM_RUN");
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const int errors[] = { EFAULT, EHWPOISON, 0, EINTR, EAGAIN };
	struct input in = { data, size };
	struct kvmfault_fault fault, again;
	int ret = (int8_t)next8(&in), err = next8(&in);
	struct kvm_run whole, *run;
	bool some;

	err = err < 5 ? errors[err] : err;
	some = in.left;
	next(&in, &whole, sizeof(whole));
	run = some ? exactly(&whole, defined(&whole)) : NULL;
	memset(&fault, 0xff, sizeof(fault));
	memset(&again, 0, sizeof(again));
	fault.size = again.size = sizeof(fault);
	MUST(!kvmfault_decode(ret, err, run, &fault));
	MUST(!kvmfault_decode(ret, err, run, &again));
	MUST(!memcmp(&fault, &again, sizeof(fault)));
	check(ret, err, &whole, &fault);
	free(run);
	return 0;
}
