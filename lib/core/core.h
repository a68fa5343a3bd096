/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Declarations that every room uses: structs that grow, the log and texts of
 * errors, and pages of 4 KiB.
 *
 * A room may use the rooms before it in this order: os, core, kernel, memory,
 * resolve, entry, setup; none that comes after it.
 */

#ifndef KVMFAULT__CORE_H
#define KVMFAULT__CORE_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "kvmfault.h"
#include "../os/sys.h"
#include "pause.h"

#define KVMFAULT__EXPORT __attribute__((visibility("default")))
#define KVMFAULT__PAGE 4096ULL
#define KVMFAULT__CACHE_LINE 128	/* two lines, fetched as a pair */

_Static_assert(sizeof(size_t) == 8, "KVM hosts are 64-bit");

/* options.c: copy a caller's open struct of any size into one of `ours` bytes,
 * and zero the rest. Returns 0, -EINVAL or -E2BIG. */
int kvmfault__options(void *to, size_t ours, const void *from);
/* The same; if it fails, vm's log says why and names the struct. */
int kvmfault__options_in(struct kvmfault_vm *vm, const char *name, void *to,
			 size_t ours, const void *from);
/* Check that kvmfault__options_out() can fill the struct of that name. */
int kvmfault__options_to(const struct kvmfault_vm *vm, const char *name,
			 const void *to);
/* Copy out as many bytes as the caller's struct has. */
int kvmfault__options_out(void *to, const void *from, size_t ours);

/* log.c */
__attribute__((format(printf, 3, 4)))
void kvmfault__log(struct kvmfault_vm *vm, enum kvmfault_log_level level,
		   const char *format, ...);
/* Log why a call fails, with the member's or object's name first, and return
 * err. If vm is NULL, no log is known and the text is dropped. */
__attribute__((format(printf, 3, 4)))
int kvmfault__refuse(struct kvmfault_vm *vm, int err, const char *format, ...);
/* The last argument, through which the new object is returned, is NULL. */
int kvmfault__no_place(struct kvmfault_vm *vm, const char *function);

/* Guest-physical pages of 4 KiB, from first up to, but not including, end. */
struct kvmfault__gfns {
	uint64_t first, end;
};

static inline uint64_t kvmfault__gpa(uint64_t gfn)
{
	return gfn * KVMFAULT__PAGE;
}

static inline uint64_t kvmfault__gfns_length(struct kvmfault__gfns pages)
{
	return kvmfault__gpa(pages.end - pages.first);
}

#endif
