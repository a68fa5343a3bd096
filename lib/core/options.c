/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: open structs, which begin with their size. In: a
 * caller's struct, as any version of the library declares it. Out: this
 * version's struct, whole. If a caller sets a member that this version does not
 * know, the call is refused; the member is never ignored.
 * kvmfault__options_out() runs in signal handlers, too: no lock, no system
 * call.
 */

#include <string.h>

#include "core.h"

int kvmfault__options(void *to, size_t ours, const void *from)
{
	const unsigned char *bytes = from;
	size_t size, i;

	if (!from)
		return -EINVAL;
	memcpy(&size, from, sizeof(size));
	if (size < sizeof(size))
		return -EINVAL;
	for (i = ours; i < size; i++)
		if (bytes[i])
			return -E2BIG;
	memset(to, 0, ours);
	memcpy(to, from, size < ours ? size : ours);
	memcpy(to, &ours, sizeof(ours));
	return 0;
}

int kvmfault__options_in(struct kvmfault_vm *vm, const char *name, void *to,
			 size_t ours, const void *from)
{
	int err = kvmfault__options(to, ours, from);

	if (!err)
		return 0;
	if (!from)
		return kvmfault__refuse(vm, err, "struct %s: the pointer is NULL: pass a struct with its size set",
					name);
	if (err == -E2BIG)
		return kvmfault__refuse(vm, err,
			"struct %s: a member is set that libkvmfault %s does not know: set only members in the first %zu bytes, or use a newer library",
			name, kvmfault_version(), ours);
	return kvmfault__refuse(vm, err,
		"struct %s: size is not set: set the member to sizeof(struct %s)",
		name, name);
}

int kvmfault__options_to(const struct kvmfault_vm *vm, const char *name,
			 const void *to)
{
	size_t size = 0;

	if (to)
		memcpy(&size, to, sizeof(size));
	return size >= sizeof(size) ? 0 : kvmfault__refuse(
		(struct kvmfault_vm *)(uintptr_t)vm, -EINVAL,
		"struct %s: %s", name, to ?
		"size is not set: set the member to sizeof the struct" :
		"the pointer is NULL: pass a struct with its size set");
}

int kvmfault__options_out(void *to, const void *from, size_t ours)
{
	size_t size;

	if (!to)
		return -EINVAL;
	memcpy(&size, to, sizeof(size));
	if (size < sizeof(size))
		return -EINVAL;
	memcpy((char *)to + sizeof(size), (const char *)from + sizeof(size),
	       (size < ours ? size : ours) - sizeof(size));
	if (size > ours)
		memset((char *)to + ours, 0, size - ours);
	return 0;
}
