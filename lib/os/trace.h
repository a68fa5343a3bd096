/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Static tracepoints for perf, bpftrace, SystemTap and gdb: notes beside the
 * code and one no-op in it, of the provider "kvmfault". Without sys/sdt.h
 * nothing at all. What each one tells is in doc/integration.md.
 */

#ifndef KVMFAULT__TRACE_H
#define KVMFAULT__TRACE_H

#ifdef KVMFAULT__SDT
#define SDT_USE_VARIADIC
#include <sys/sdt.h>
/* The macros of sys/sdt.h end in an empty list, which is the compiler's own. */
#ifdef __clang__
#pragma clang diagnostic ignored "-Wgnu-zero-variadic-macro-arguments"
#endif
#define KVMFAULT__TRACE(name, ...) STAP_PROBEV(kvmfault, name, __VA_ARGS__)
#else
#define KVMFAULT__TRACE(name, ...) do { } while (0)
#endif

#endif
