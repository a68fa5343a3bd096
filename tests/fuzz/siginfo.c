/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* decode_siginfo, on any siginfo_t. Input: its bytes. */

#include <signal.h>

#include "fuzz.h"
#include "kvmfault.h"

static bool is_failure(const siginfo_t *info)
{
	return info->si_signo == SIGBUS && (info->si_code == BUS_MCEERR_AR ||
					    info->si_code == BUS_MCEERR_AO);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct kvmfault_fault nothing = {
		.size = sizeof(nothing),
	};
	struct input in = { data, size };
	struct kvmfault_fault fault;
	siginfo_t info;
	uint64_t address;

	memset(&fault, 0xff, sizeof(fault));
	fault.size = sizeof(fault);
	next(&in, &info, sizeof(info));
	MUST(!kvmfault_decode_siginfo(&info, &fault));
	if (!is_failure(&info)) {
		MUST(!memcmp(&fault, &nothing, sizeof(nothing)));
		return 0;
	}
	address = (uintptr_t)info.si_addr;
	MUST(fault.kind == (info.si_code == BUS_MCEERR_AR ?
				KVMFAULT_KIND_MARKER :
				KVMFAULT_KIND_FAILURE));
	MUST(fault.known == (KVMFAULT_KNOWN_HVA | KVMFAULT_KNOWN_LENGTH));
	MUST(fault.length >= PAGE && fault.length <= 1ULL << 30);
	MUST(!(fault.length & (fault.length - 1)));
	MUST(fault.hva <= address && address - fault.hva < fault.length);
	MUST(fault.hva + fault.length - 1 >= fault.hva);
	MUST(!fault.gpa && !fault.flags && !fault.error && !fault.access);
	return 0;
}
