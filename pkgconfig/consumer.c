/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A user of the installed library, in C: tests/abi compiles it with what
 * pkg-config says, runs it, and wants the version in its output.
 */

#include <kvmfault.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
	struct kvmfault_fault fault = { .size = sizeof(fault) };

	if (strcmp(kvmfault_version(), KVMFAULT_VERSION)) {
		fprintf(stderr, "consumer: library %s, header %s\n",
			kvmfault_version(), KVMFAULT_VERSION);
		return 1;
	}
	if (kvmfault_decode(-1, EFAULT, NULL, &fault) ||
	    fault.kind != KVMFAULT_KIND_UNANNOTATED ||
	    fault.error != EFAULT || fault.known) {
		fprintf(stderr, "consumer: EFAULT was decoded as %s\n",
			kvmfault_kind_str(fault.kind));
		return 1;
	}
	if (kvmfault_decode(0, 0, NULL, &fault) ||
	    fault.kind != KVMFAULT_KIND_NONE) {
		fprintf(stderr, "consumer: success was decoded as %s\n",
			kvmfault_kind_str(fault.kind));
		return 1;
	}
	puts(kvmfault_version());
	return 0;
}
