/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A user of the installed libkvmfault-nbd, in C++: tests/abi compiles it with
 * what pkg-config says, runs it, and wants the version in its output.
 */

#include <kvmfault-nbd.h>

#include <cerrno>
#include <iostream>

int main()
{
	kvmfault_source source{};
	kvmfault_nbd_options options{};

	source.size = sizeof(source);
	options.size = sizeof(options);
	options.uri = "nbd+unix:///?socket=/nowhere/at/all";
	const int err = kvmfault_source_nbd(&options, &source);
	if (err != -ENOENT) {
		std::cerr << "consumer: a server that is nowhere: " << err
			  << '\n';
		return 1;
	}
	std::cout << kvmfault_version() << '\n';
	return 0;
}
