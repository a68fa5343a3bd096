/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* This is what a SIGBUS comes with, made by hand. */

#ifndef KVMFAULT_TESTS_SIGBUS_H
#define KVMFAULT_TESTS_SIGBUS_H

#include <signal.h>
#include <stdint.h>
#include <string.h>

/* 1 << lsb bytes around the address are meant. The rest of it is 0, so that two
 * of them can be compared. */
static inline siginfo_t sigbus_info(const void *address, int code, short lsb)
{
	siginfo_t info;

	memset(&info, 0, sizeof(info));
	info.si_signo = SIGBUS;
	info.si_code = code;
	info.si_addr = (void *)(uintptr_t)address;
	info.si_addr_lsb = lsb;
	return info;
}

#endif
