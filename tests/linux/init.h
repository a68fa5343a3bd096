/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* What the guest's first process says on the console when all is well. */

#ifndef KVMFAULT_TESTS_LINUX_INIT_H
#define KVMFAULT_TESTS_LINUX_INIT_H

#define INIT_PASSED "init: every word was what it had to be"

#endif
