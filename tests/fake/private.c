/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Which of a VM's pages are private. In: KVM_SET_MEMORY_ATTRIBUTES, and the
 * test's accesses as a guest. Out: the attribute of a page, and whether an
 * access finds the kind of memory that it wants. What holds: there is one VM,
 * with GFNS pages, and an access runs as one with the question for its kind.
 */

#include <errno.h>
#include <string.h>

#include "fake.h"

#define GFNS (1ULL << 20)	/* 4 GiB of guest memory */
static bool private[GFNS];

long fake__set_attributes(const struct kvmfault__memory_attributes *a)
{
	uint64_t gfn = a->address / UNIT, count = a->size / UNIT;

	if (a->flags || !count || (a->address | a->size) % UNIT ||
	    gfn + count > GFNS || a->attributes & ~KVMFAULT__ATTRIBUTE_PRIVATE)
		return -EINVAL;
	memset(private + gfn, !!a->attributes, count);
	return 0;
}

bool fake_private(uint64_t gpa)
{
	bool is;

	pthread_mutex_lock(&fake__lock);
	is = private[gpa / UNIT];
	pthread_mutex_unlock(&fake__lock);
	return is;
}

bool fake_access(uint64_t gpa, bool wanted, void (*access)(void *), void *arg)
{
	bool fits;

	pthread_mutex_lock(&fake__lock);
	fits = private[gpa / UNIT] == wanted;
	if (fits)
		access(arg);
	pthread_mutex_unlock(&fake__lock);
	return fits;
}
