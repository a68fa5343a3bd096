/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * memory.c: what it takes, what it refuses and why, and that nobody reads a
 * zero page in place of one that was not fetched, from the first moment to the
 * last. A refusal changes nothing.
 */

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "bed.h"

#define LENGTH (BED_PAGES * PAGE)
#define HUGE (2ULL << 20)

static struct kvmfault_memory *memory;
static struct kvmfault_memory_options options;
static struct kvmfault_source source;
static int fd;
static void *host;

static void up(void)
{
	bed_vm();
	source = bed_source();
	fd = fake_memory(LENGTH, 0, &host);
	options = (struct kvmfault_memory_options){
		.size = sizeof(options),
		.host = host,
		.length = LENGTH,
		.fd = fd,
		.source = &source,
	};
}

/* Make it; a refusal leaves nothing behind, and the caller's memory alone. */
static int new_memory(void)
{
	struct fake_held before = fake_held(), after;
	int err;

	memory = (void *)1;
	err = kvmfault_memory_adopt(bed.vm, &options, &memory);
	if (!err)
		return 0;
	ck_assert_ptr_null(memory);
	after = fake_held();
	ck_assert_int_eq(before.descriptors, after.descriptors);
	ck_assert_int_le(after.mappings, before.mappings + 1);	/* a seat's */
	ck_assert(!fake_registered(host));
	ck_assert_uint_eq(fake_count(FAKE_MPROTECT, FAKE_ANY), 0);
	ck_assert_uint_eq(bed.vm->memories, 0);
	return err;
}

TEST_GROUP(new, up, bed_down);

TEST(new, tracked)
{
	uint64_t page;

	ck_assert_int_eq(new_memory(), 0);
	ck_assert(fake_registered(host));
	ck_assert(fake_registered((char *)host + LENGTH - 1));
	for (page = 0; page < BED_PAGES; page++)
		ck_assert_int_eq(kvmfault__page_state(memory, page),
				 KVMFAULT__ABSENT);
	ck_assert_int_eq(kvmfault_vm_free(bed.vm), -EBUSY);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	ck_assert(!fake_registered(host));
}

TEST(new, untracked)
{
	options.source = NULL;
	fake_put(fd, 0);	/* what it has, it has */
	ck_assert_int_eq(new_memory(), 0);
	ck_assert(!fake_registered(host));
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_API), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	ck_assert_uint_eq(fake_count(FAKE_MPROTECT, FAKE_ANY), 0);
}

TEST(new, with_a_userfaultfd)
{
	struct kvmfault_uffd *uffd;

	ck_assert_int_eq(kvmfault_uffd_new(bed.vm, NULL, &uffd), 0);
	options.uffd = uffd;
	ck_assert_int_eq(new_memory(), 0);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), -EBUSY);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
}

TEST(new, null_arguments)
{
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_memory_adopt(NULL, &options, &memory),
			 -EINVAL);
	ck_assert_ptr_null(memory);
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, NULL, &memory), -EINVAL);
	ck_assert_int_eq(kvmfault_memory_free(NULL), 0);
	options.host = NULL;
	ck_assert_int_eq(new_memory(), -EINVAL);
}

TEST_EACH(new, bad_numbers, 15)
{
	static const struct {
		uint64_t host, length, fd_offset, source_offset, page_size;
	} bad[] = {
		{ .host = 1 }, { .host = 2048 },
		{ .length = (uint64_t)-LENGTH }, { .length = 1 },
		{ .length = -2 * LENGTH },
		{ .fd_offset = 512 }, { .fd_offset = -PAGE },
		{ .source_offset = -PAGE },
		{ .page_size = 1 }, { .page_size = 2048 },
		{ .page_size = 3 * PAGE }, { .page_size = 1ULL << 31 },
		{ .page_size = 1ULL << 63 },
		/* not the file's: a page would come in parts */
		{ .page_size = 4 * PAGE }, { .page_size = HUGE },
	};

	options.host = (char *)host + bad[_i].host;
	options.length += bad[_i].length;
	options.fd_offset += bad[_i].fd_offset;
	options.source_offset += bad[_i].source_offset;
	options.page_size = bad[_i].page_size;
	ck_assert_int_eq(new_memory(), -EINVAL);
}

TEST_EACH(new, page_size_not_the_backings, 2)
{
	/* Aligned to it, so that it is the page size that is wrong. */
	options.page_size = options.length = 4 * PAGE;
	options.host = (char *)host + (-(uintptr_t)host & (4 * PAGE - 1));
	options.fd = _i ? 0 : fd;
	ck_assert_int_eq(new_memory(), -EINVAL);
	ck_assert_uint_eq(bed.logs, 1);
}

TEST(new, hugetlb)
{
	options.fd = fake_memory(2 * HUGE, HUGE, &host);
	options.host = (void *)HUGE;	/* aligned; nobody touches it */
	options.length = 2 * HUGE;
	ck_assert_int_eq(new_memory(), -EINVAL);
	ck_assert_uint_eq(bed.logs, 1);
	options.page_size = 1ULL << 30;
	ck_assert_int_eq(new_memory(), -EINVAL);
}

TEST(new, hugetlb_larger_than_the_scratch_memory)
{
	bed.vm->options.page_size_max = PAGE;
	options.page_size = HUGE;
	options.host = (void *)HUGE;
	options.length = HUGE;
	ck_assert_int_eq(new_memory(), -EINVAL);
}

TEST(new, file_too_short)
{
	options.fd_offset = PAGE;
	ck_assert_int_eq(new_memory(), -EINVAL);
	ck_assert_uint_eq(bed.logs, 1);
}

TEST(new, file_closed)
{
	options.fd = 7777;
	ck_assert_int_eq(new_memory(), -EBADF);
}

TEST(new, source_too_short)
{
	source.length = LENGTH - 1;
	ck_assert_int_eq(new_memory(), -ENODATA);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_ptr_nonnull(strstr(bed.log, "shorter"));
	source.length = LENGTH;
	options.source_offset = 1;
	ck_assert_int_eq(new_memory(), -ENODATA);
	options.source_offset = 0;
	ck_assert_int_eq(new_memory(), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

TEST(new, source_cannot_read)
{
	source.read = NULL;
	ck_assert_int_eq(new_memory(), -EINVAL);
}

TEST_EACH(new, preallocated, 3)
{
	const uint64_t pages[] = { 0, 7, BED_PAGES - 1 };

	fake_put(fd, pages[_i] * PAGE);
	*(char *)host = 42;
	ck_assert_int_eq(new_memory(), -EEXIST);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_ptr_nonnull(strstr(bed.log, "pages already"));
	ck_assert_int_eq(*(char *)host, 42);
}

static struct kvmfault__answer early;

/* A message of what was there before is read while it is being made. */
static bool late_message(struct fake_call *call)
{
	struct kvmfault__seat *seat = kvmfault__call_begin(bed.vm);
	struct kvmfault_fault fault = {
		.size = sizeof(fault), .kind = KVMFAULT_KIND_UFFD,
		.known = KVMFAULT_KNOWN_HVA, .hva = (uintptr_t)host,
	};
	struct kvmfault__target place = { 0 };

	(void)call;
	fake_on(FAKE_CACHED, NULL);
	place.origin = kvmfault__mapping_find(seat, 0, fault.hva);
	ck_assert_ptr_nonnull(place.origin);
	place.memory = place.origin->span.memory;
	kvmfault__resolve(seat, &fault, &place, &early);
	kvmfault__leave(seat);
	kvmfault__call_end(seat);
	return false;
}

/* It waits until it is known that there was nothing. */
TEST(new, touched_while_it_is_made)
{
	fake_on(FAKE_CACHED, late_message);
	ck_assert_int_eq(new_memory(), 0);
	ck_assert_int_eq(early.action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(early.error, -EAGAIN);
	ck_assert(!fake_present(fd, 0));
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

TEST(new, preallocated_anonymous)
{
	options.fd = 0;
	fake_put(fd, (BED_PAGES - 1) * PAGE);
	ck_assert_int_eq(new_memory(), -EEXIST);
}

TEST(new, preallocated_on_an_old_kernel)
{
	fake_push(FAKE_CACHED, -ENOSYS);
	fake_put(fd, 7 * PAGE);
	ck_assert_int_eq(new_memory(), -EEXIST);
}

TEST(new, cannot_look)
{
	/* Not known to be empty is not empty. */
	fake_push(FAKE_CACHED, -EIO);
	ck_assert_int_eq(new_memory(), -EIO);
	fake_push(FAKE_CACHED, -ENOSYS);
	fake_push(FAKE_LSEEK, -EIO);
	ck_assert_int_eq(new_memory(), -EIO);
}

TEST_EACH(new, not_registered, 3)
{
	static const int errors[] = { -EINVAL, -EBUSY, -ENOMEM };

	fake_refuse(FAKE_IOCTL, UFFDIO_REGISTER, errors[_i]);
	ck_assert_int_eq(new_memory(), errors[_i] == -EINVAL ? -EOPNOTSUPP :
			 errors[_i]);
	if (errors[_i] != -EINVAL)
		return;
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_ptr_nonnull(strstr(bed.log, "guest_memfd"));
}

TEST(new, no_right)
{
	fake_uffd_denied = -EPERM;
	ck_assert_int_eq(new_memory(), -EPERM);
	ck_assert_ptr_nonnull(strstr(bed.log, "/dev/userfaultfd"));
}

TEST(new, bad_userfaultfds)
{
	struct kvmfault_uffd *uffd;
	struct kvmfault_vm *other;

	ck_assert_int_eq(kvmfault_vm_new(NULL, &other), 0);
	ck_assert_int_eq(kvmfault_uffd_new(other, NULL, &uffd), 0);
	options.uffd = uffd;
	ck_assert_int_eq(new_memory(), -EINVAL);	/* another VM's */
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
	ck_assert_int_eq(kvmfault_vm_free(other), 0);
	ck_assert_int_eq(kvmfault_uffd_new(bed.vm, NULL, &uffd), 0);
	options.uffd = uffd;
	options.source = NULL;	/* its faults would be nobody's */
	ck_assert_int_eq(new_memory(), -EINVAL);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
}

TEST(new, unknown_tail)
{
	struct {
		struct kvmfault_memory_options options;
		uint64_t tail;
	} caller = { .options = options, .tail = 1 };

	caller.options.size = sizeof(caller);
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &caller.options,
					     &memory), -E2BIG);
	ck_assert_ptr_null(memory);
	caller.tail = 0;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &caller.options,
					     &memory), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

TEST(new, source_with_an_unknown_tail)
{
	struct {
		struct kvmfault_source source;
		uint64_t tail;
	} caller = { .source = source, .tail = 1 };

	caller.source.size = sizeof(caller);
	options.source = &caller.source;
	ck_assert_int_eq(new_memory(), -E2BIG);
	caller.source.size = 4;
	ck_assert_int_eq(new_memory(), -EINVAL);
}

TEST(new, same_host_range)
{
	struct kvmfault_memory *first;

	ck_assert_int_eq(new_memory(), 0);
	first = memory;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory),
			 -EEXIST);
	options.host = (char *)host + PAGE;
	options.length = PAGE;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory),
			 -EEXIST);
	ck_assert_int_eq(kvmfault_memory_free(first), 0);
	options.host = host;
	options.length = LENGTH;
	ck_assert_int_eq(new_memory(), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

TEST(new, states_take_four_bits_a_page)
{
	struct kvmfault_memory huge = {
		.vm = bed.vm, .page_shift = 12, .length = 1ULL << 36,
	};
	uint64_t bytes, pages = huge.length >> huge.page_shift;

	fake_forget();
	ck_assert_int_eq(kvmfault__pages_new(&huge), 0);
	bytes = fake_nth(FAKE_MMAP, FAKE_ANY, 0)->length;
	ck_assert_uint_eq(bytes * 8, pages * 4);
	kvmfault__page_change(&huge, pages - 1, KVMFAULT__ABSENT,
			      KVMFAULT__PRESENT);
	ck_assert_int_eq(kvmfault__page_state(&huge, pages - 1),
			 KVMFAULT__PRESENT);
	kvmfault__pages_free(&huge);
}

/* ---- the end ---- */

TEST_GROUP(free, up, bed_down);

TEST(free, absent_pages_are_protected_first)
{
	const struct fake_call *protect;

	ck_assert_int_eq(new_memory(), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	protect = fake_nth(FAKE_MPROTECT, PROT_NONE, 0);
	ck_assert_ptr_nonnull(protect);
	ck_assert_uint_eq(protect->at, (uintptr_t)host);
	ck_assert_uint_eq(protect->length, LENGTH);
	/* In the record, before the unregistering. */
	ck_assert(protect < fake_nth(FAKE_IOCTL, UFFDIO_UNREGISTER, 0));
}

TEST(free, nothing_absent_nothing_protected)
{
	uint64_t page;

	ck_assert_int_eq(new_memory(), 0);
	for (page = 0; page < BED_PAGES; page++)
		kvmfault__page_change(memory, page, KVMFAULT__ABSENT, page % 2 ?
				      KVMFAULT__PRESENT : KVMFAULT__DISCARDED);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	ck_assert_uint_eq(fake_count(FAKE_MPROTECT, FAKE_ANY), 0);
	ck_assert(!fake_registered(host));
}

#define HOLE 5		/* this page is not mapped any more */

static bool closed[BED_PAGES];

static bool a_hole(struct fake_call *call)
{
	uint64_t first = (call->at - (uintptr_t)host) / PAGE;
	uint64_t end = first + call->length / PAGE;
	bool meets = first <= HOLE && HOLE < end;

	call->result = meets ? -ENOMEM : 0;
	if (call->name == FAKE_MPROTECT)
		for (; first < end && first != HOLE; first++)
			closed[first] = true;
	return true;
}

TEST(free, unmapped_already)
{
	uint64_t page;

	ck_assert_int_eq(new_memory(), 0);
	fake_on(FAKE_MPROTECT, a_hole);
	fake_on(FAKE_MADVISE, a_hole);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	ck_assert_uint_eq(bed.logs, 0);
	ck_assert(!fake_registered(host));
	/* All around it: what is in front of it, and what is behind. */
	for (page = 0; page < BED_PAGES; page++)
		ck_assert_int_eq(closed[page], page != HOLE);
}

TEST(free, what_cannot_be_protected_stays_registered)
{
	struct kvmfault_uffd *uffd;

	ck_assert_int_eq(kvmfault_uffd_new(bed.vm, NULL, &uffd), 0);
	options.uffd = uffd;
	ck_assert_int_eq(new_memory(), 0);
	fake_push(FAKE_MPROTECT, -ENOMEM);	/* too many mappings */
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert(fake_registered(host));
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
}

TEST(free, own_userfaultfd_stays_open_if_it_must)
{
	const struct kvmfault__mappings *all;
	int guard;

	ck_assert_int_eq(new_memory(), 0);
	all = atomic_load(&memory->mappings);
	guard = all->mapping[0]->uffd->fd;
	fake_push(FAKE_MPROTECT, -ENOMEM);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	/* To close it would make zero pages of what is absent. */
	ck_assert(fake_registered(host));
	ck_assert_int_ge(kvmfault__sys_getfl(guard), 0);
	ck_assert_int_eq(kvmfault__sys_close(guard), 0);
}

TEST(free, busy_with_a_region)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = BED_GPA, .length = PAGE,
	};

	ck_assert_int_eq(new_memory(), 0);
	region.memory = memory;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), -EBUSY);
	ck_assert(fake_registered(host));
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

static int freed;

static void free_it(void)
{
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	freed = kvmfault_memory_free(bed.memory);
}

TEST(free, freed_by_its_own_fetch)
{
	bed_add();
	bed.during_read = free_it;
	ck_assert_int_eq(bed_resolve(KVMFAULT_KIND_CALL, 0, false).action,
			 KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(freed, -EDEADLK);
	ck_assert_int_eq(bed_state(0), KVMFAULT__PRESENT);
}

static void *free_in_thread(void *arg)
{
	(void)arg;
	freed = kvmfault_memory_free(bed.memory);
	return NULL;
}

static pthread_t freeing;

static void begin_free(void)
{
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	pthread_create(&freeing, NULL, free_in_thread, NULL);
	/* It waits for us, and sleeps again. */
	while (fake_count(FAKE_FUTEX_WAIT, FAKE_ANY) < 2)
		sched_yield();
	ck_assert(fake_registered(bed.host));
}

TEST(free, free_waits_for_a_fetch)
{
	bed_add();
	freed = 1;
	/* Signals do not end it: what it promises is that nobody is left. */
	fake_push(FAKE_FUTEX_WAIT, -EINTR);
	fake_push(FAKE_FUTEX_WAIT, -EINTR);
	bed.during_read = begin_free;
	ck_assert_int_eq(bed_resolve(KVMFAULT_KIND_CALL, 0, false).action,
			 KVMFAULT_ACTION_RETRY);
	pthread_join(freeing, NULL);
	ck_assert_int_eq(freed, 0);
	ck_assert(bed_has(0, bed_byte(0)));
	bed.memory = NULL;
}

int main(void)
{
	return run_suite("memory");
}
