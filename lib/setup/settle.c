/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Set-up: a memory of which nothing is missing any more is left to the kernel
 * alone, while vCPUs run. In: a memory. Out: its mappings are not registered,
 * have no markers and cause no exits, and its pages have no states; or it is
 * what it was, because a page is not there. A page that was once present or
 * discarded never is absent again: so pages are looked at one by one, and what
 * no page is found to be then, none can become. A hole reads as zero, with the
 * library or without.
 */

#include "setup.h"

#define ULL(n) ((unsigned long long)(n))

static int settle_refuse_absent(const struct kvmfault_memory *memory,
				uint64_t left)
{
	return kvmfault__refuse(memory->vm, -EBUSY,
		"kvmfault_memory_settle: %llu pages of the memory at %p are not there (absent, being fetched, or poisoned): bring absent pages with kvmfault_ensure(), and empty poisoned ones with kvmfault_discard()",
		ULL(left), memory->host);
}

static int settle_check_protected(const struct kvmfault_memory *memory,
				  uint64_t *left)
{
	struct kvmfault_memory_counts counts = { 0 };

	kvmfault__pages_count(memory, 0, memory->length >> memory->page_shift,
			      &counts);
	*left = counts.to_save;
	return *left ? kvmfault__refuse(memory->vm, -EBUSY,
		"kvmfault_memory_settle: %llu pages of the memory at %p are protected: let the snapshot end, or call kvmfault_unprotect()",
		ULL(*left), memory->host) : 0;
}

/* Pages change without the library as soon as one mapping is not registered. So
 * the file of states first says that the memory is settled, and does so even if
 * the next mapping can't be unregistered: no page is absent, and the next owner
 * needs no more than fd.
 *
 * Under the VM's lock. Until the memslots' mapping is unregistered, which is
 * the first of the list and the last here, pages are installed through it as
 * ever. A thread that fails to then sees that the memory is not tracked any
 * more; the kernel wakes those that sleep. */
static int settle_unregister(struct kvmfault_memory *memory, uint64_t *host)
{
	const struct kvmfault__mappings *all = atomic_load(&memory->mappings);
	size_t i = all->count;
	int err = 0;

	kvmfault__pages_settle(memory);
	while (i-- && !err) {
		*host = all->mapping[i]->host;
		atomic_store(&memory->tracked, i);
		err = kvmfault__uffd_unregister(all->mapping[i]->uffd->fd,
						*host, memory->length);
	}
	if (err)
		atomic_store(&memory->tracked, true);
	else
		memory->vm->tracked--;
	return err;
}

struct settling {
	const struct kvmfault__seat *seat;
	const struct kvmfault_memory *memory;
};

static bool settle_is_used_by_seat(struct kvmfault__seat *seat, void *data)
{
	const struct settling *settling = data;
	const struct kvmfault__span *span = atomic_load(&seat->span);

	return seat == settling->seat && span &&
	       span->memory == settling->memory;
}

/* Each seat is waited for by itself: a thread that comes now sees that the
 * memory is settled, and at some moments there may always be one. */
static void settle_drain_seats(const struct kvmfault_memory *memory)
{
	struct settling settling = { .memory = memory };
	struct kvmfault__seat *seat = atomic_load(&memory->vm->seats);

	for (; seat; seat = seat->next) {
		settling.seat = seat;
		kvmfault__drain(memory->vm, settle_is_used_by_seat, &settling);
	}
}

static int settle_end_markers(struct kvmfault_memory *memory)
{
	int err = kvmfault__markers_end(memory);

	return err ? kvmfault__refuse(memory->vm, err,
		"kvmfault_memory_settle: the memory at %p keeps its markers (error %d): unlock the memory if it is locked, and call again",
		memory->host, -err) : 0;
}

/* A fill looks at the states of its memories' pages. */
static int settle_refuse_filled(struct kvmfault_memory *memory)
{
	atomic_fetch_sub(&memory->settling, 1);
	return kvmfault__refuse(memory->vm, -EBUSY,
		"kvmfault_memory_settle: a fill has the memory at %p: call kvmfault_fill_free() first",
		memory->host);
}

/* From the first call that fails on, the memory is not protected again: some
 * mappings may not be registered any more. */
static int settle_take_away(struct kvmfault_memory *memory)
{
	struct kvmfault_vm *vm = memory->vm;
	uint64_t host = 0;
	bool filled;
	int err = 0;

	kvmfault__sys_lock(&vm->lock);
	filled = memory->fills;
	if (kvmfault__tracked(memory) && !filled)
		err = settle_unregister(memory, &host);
	kvmfault__sys_unlock(&vm->lock);
	if (filled)
		return settle_refuse_filled(memory);
	if (err)
		return kvmfault__refuse(vm, err,
			"kvmfault_memory_settle: the mapping at %#llx could not be unregistered (error %d): if its process is gone, or has unmapped it, call kvmfault_mapping_remove(); then settle the memory again",
			ULL(host), -err);
	kvmfault__userfault_leave(memory);
	settle_drain_seats(memory);
	kvmfault__pages_forget(memory);
	return 0;
}

static int settle_memory(struct kvmfault_memory *memory, uint64_t *left)
{
	int err;

	*left = kvmfault__pages_absent(memory);
	/* Another thread may have settled the memory by now. */
	if (*left && kvmfault__tracked(memory))
		return settle_refuse_absent(memory, *left);
	/* kvmfault_protect() sets its bits, then looks whether a thread is
	 * here. This thread says that it is, then looks at the bits. */
	atomic_fetch_add(&memory->settling, 1);
	err = settle_check_protected(memory, left);
	if (!err)
		err = settle_end_markers(memory);
	if (!err)
		return settle_take_away(memory);
	atomic_fetch_sub(&memory->settling, 1);
	return err;
}

KVMFAULT__EXPORT
int kvmfault_memory_settle(struct kvmfault_memory *memory, uint64_t *left)
{
	uint64_t ours;

	if (!left)
		left = &ours;
	*left = 0;
	if (!memory)
		return -EINVAL;
	if (!kvmfault__tracked(memory))
		return 0;
	if (kvmfault__within_memory(memory, NULL))
		return -EDEADLK;
	return settle_memory(memory, left);
}
