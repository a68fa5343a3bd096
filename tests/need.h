/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What a test program needs of the machine. Called at the start of main: where
 * the machine lacks it the program says why and ends with 77, which meson
 * counts as skipped; with it in KVMFAULT_REQUIRE (a list with commas) it ends
 * with 1, so that a test that silently stops running is a failure.
 */

#ifndef KVMFAULT_TESTS_NEED_H
#define KVMFAULT_TESTS_NEED_H

#include <stdbool.h>

/* what: "kvm", "private" (VMs with private memory, in software), "userfault"
 * (memslots whose missing pages exit), "uffd" (one that sees the kernel's
 * accesses), "hugetlb" (a free 2 MiB page), "gigantic" (two of 1 GiB) or
 * "root". */
void need(const char *what);

/* The same question without the end: NULL: it is there; else why not. */
const char *lacks(const char *what);

/* What only a part of the program needs. why: NULL: it is there; else this says
 * so, and the program goes on without that part, or ends if it is required. */
bool have(const char *what, const char *why);

/* What flag 1 << 3 of memslots is in VMs that are made from now on, on the kernel
 * with tests/vm/userfault.patch: see there. */
void use_exit_abi(unsigned int abi);

#endif
