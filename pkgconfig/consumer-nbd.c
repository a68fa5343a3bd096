/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A user of the installed libkvmfault-nbd, in C: tests/abi compiles it with what
 * pkg-config says, runs it, and wants the version in its output.
 */

#include <kvmfault-nbd.h>

#include <errno.h>
#include <stdio.h>

int main(void)
{
	struct kvmfault_source source = { .size = sizeof(source) };
	struct kvmfault_nbd_options options = {
		.size = sizeof(options),
		.uri = "nbd+unix:///?socket=/nowhere/at/all",
	};
	int err = kvmfault_source_nbd(&options, &source);

	if (err != -ENOENT) {
		fprintf(stderr, "consumer: a server that is nowhere: %d\n",
			err);
		return 1;
	}
	puts(kvmfault_version());
	return 0;
}
