/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What every room uses: structs that grow, the log, and what a page of 4 KiB is.
 */

#ifndef KVMFAULT__CORE_H
#define KVMFAULT__CORE_H

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "kvmfault.h"
#include "../os/sys.h"

#define KVMFAULT__EXPORT __attribute__((visibility("default")))
#define KVMFAULT__PAGE 4096ULL
#define KVMFAULT__CACHE_LINE 128	/* two lines: the prefetcher's pair */

_Static_assert(sizeof(size_t) == 8, "KVM hosts are 64-bit");

/* options.c: open structs that grow. Copies what the caller has of a struct
 * of `ours` bytes, the rest zero; -EINVAL or -E2BIG. */
int kvmfault__options(void *to, size_t ours, const void *from);
/* The same for a struct of that name, with the reason for vm's log. */
int kvmfault__options_in(struct kvmfault_vm *vm, const char *name, void *to,
			 size_t ours, const void *from);
/* Can one of that name be filled? */
int kvmfault__options_to(const struct kvmfault_vm *vm, const char *name,
			 const void *to);
/* Fill one: copies out as much as the caller has. */
int kvmfault__options_out(void *to, const void *from, size_t ours);

/* log.c */
__attribute__((format(printf, 3, 4)))
void kvmfault__log(struct kvmfault_vm *vm, enum kvmfault_log_level level,
		   const char *format, ...);
/* A call fails: log why, naming the member or object, and return err. vm NULL:
 * there is no place for the text. */
__attribute__((format(printf, 3, 4)))
int kvmfault__refuse(struct kvmfault_vm *vm, int err, const char *format, ...);
int kvmfault__no_place(struct kvmfault_vm *vm, const char *function);

/* Guest-physical pages of 4 KiB; without the one at end. */
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
