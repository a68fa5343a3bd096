/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Static tracepoints of the provider "kvmfault", for perf, bpftrace, SystemTap
 * and gdb. Each is one no-op in the code and a note beside it; a build without
 * sys/sdt.h has neither. doc/integration.md lists them with their arguments.
 */

#ifndef KVMFAULT__TRACE_H
#define KVMFAULT__TRACE_H

#ifdef KVMFAULT__SDT
#define SDT_USE_VARIADIC
#include <sys/sdt.h>
/* The macros of sys/sdt.h pass an empty argument list, which is a GNU extension
 * that clang warns about. */
#ifdef __clang__
#pragma clang diagnostic ignored "-Wgnu-zero-variadic-macro-arguments"
#endif
#define KVMFAULT__TRACE(name, ...) STAP_PROBEV(kvmfault, name, __VA_ARGS__)
#else
#define KVMFAULT__TRACE(name, ...) do { } while (0)
#endif

#endif
