/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A user of the installed library, in C++: tests/abi compiles it with what
 * pkg-config says, runs it, and wants the version in its output.
 */

#include <kvmfault.h>

#include <cerrno>
#include <iostream>
#include <string>

int main()
{
	kvmfault_fault fault{};

	if (std::string(kvmfault_version()) != KVMFAULT_VERSION) {
		std::cerr << "consumer: library " << kvmfault_version()
			  << ", header " << KVMFAULT_VERSION << '\n';
		return 1;
	}
	fault.size = sizeof(fault);
	if (kvmfault_decode(-1, EFAULT, nullptr, &fault) ||
	    fault.kind != KVMFAULT_KIND_UNANNOTATED ||
	    fault.error != EFAULT || fault.known) {
		std::cerr << "consumer: EFAULT was decoded as "
			  << kvmfault_kind_str(fault.kind) << '\n';
		return 1;
	}
	if (kvmfault_decode(0, 0, nullptr, &fault) ||
	    fault.kind != KVMFAULT_KIND_NONE) {
		std::cerr << "consumer: success was decoded as "
			  << kvmfault_kind_str(fault.kind) << '\n';
		return 1;
	}
	std::cout << kvmfault_version() << '\n';
	return 0;
}
