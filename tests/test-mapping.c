/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * mapping.c: the places where a memory is mapped: installed through the first,
 * woken through each, and at the end nobody reads zeros through any.
 */

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>

#include "bed.h"

#define LENGTH (BED_PAGES * PAGE)

static struct kvmfault_mapping *mapping;
static struct kvmfault_mapping_options options;
static struct kvmfault_uffd *remote;

static void up(void)
{
	bed_up();
	options = (struct kvmfault_mapping_options){
		.size = sizeof(options),
		.host = (uintptr_t)fake_map(bed.fd),
	};
}

static int add(void)
{
	mapping = (void *)1;
	return kvmfault_mapping_add(bed.memory, &options, &mapping);
}

static void add_remote(void)
{
	struct kvmfault_uffd_options uffd = {
		.size = sizeof(uffd), .fd = fake_uffd(O_NONBLOCK),
		.remote = true,
	};

	ck_assert_int_eq(kvmfault_uffd_new(bed.vm, &uffd, &remote), 0);
	options.uffd = remote;
	ck_assert_int_eq(add(), 0);
}

static void *address(void)
{
	return (void *)(uintptr_t)options.host;
}

static struct kvmfault__answer message(uint64_t page)
{
	struct kvmfault_fault fault = {
		.size = sizeof(fault),
		.kind = KVMFAULT_KIND_UFFD,
		.known = KVMFAULT_KNOWN_HVA,
		.hva = options.host + page * PAGE,
	};
	struct kvmfault__answer answer;

	ck_assert_ptr_eq(kvmfault__table_find(
		bed.seat, &bed.vm->mappings,
		kvmfault__key(options.uffd ? options.uffd->space : 0,
			      fault.hva)), &mapping->span);
	kvmfault__resolve(bed.seat, &fault, &(struct kvmfault__target){
		.memory = bed.memory, .origin = mapping, .offset = page * PAGE,
	}, &answer);
	kvmfault__leave(bed.seat);
	return answer;
}

TEST_GROUP(add, up, bed_down);

TEST(add, second_mapping)
{
	const struct fake_call *wake;

	ck_assert_int_eq(add(), 0);
	ck_assert(fake_registered(address()));
	ck_assert_int_eq(message(3).action, KVMFAULT_ACTION_RETRY);
	/* Installed through the memslots', and woken through its own. */
	ck_assert_uint_eq(fake_nth(FAKE_IOCTL, UFFDIO_COPY, 0)->at,
			  (uintptr_t)bed_page(3));
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_COPY), 1);
	wake = fake_nth(FAKE_IOCTL, UFFDIO_WAKE, 0);
	ck_assert_ptr_nonnull(wake);
	ck_assert_uint_eq(wake->at, options.host + 3 * PAGE);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	ck_assert(!fake_registered(address()));
	ck_assert(fake_registered(bed.host));
}

static void message_meanwhile(void)
{
	struct kvmfault__seat *mine = bed.seat;

	bed.seat = kvmfault__seat_take(bed.vm);
	message(3);
	kvmfault__seat_give(bed.seat);
	bed.seat = mine;
}

TEST(add, fetch_wakes_every_mapping)
{
	ck_assert_int_eq(add(), 0);
	bed.during_read = message_meanwhile;
	bed_resolve(KVMFAULT_KIND_CALL, 3, false);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 2);
	ck_assert_uint_eq(fake_nth(FAKE_IOCTL, UFFDIO_WAKE, 0)->at,
			  (uintptr_t)bed_page(3));
	ck_assert_uint_eq(fake_nth(FAKE_IOCTL, UFFDIO_WAKE, 1)->at,
			  options.host + 3 * PAGE);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
}

static struct kvmfault__answer at_once;

/* A thread faults as soon as it can. */
static bool touch_in_register(struct fake_call *call)
{
	const struct kvmfault__mappings *all;

	if (call->number != UFFDIO_REGISTER)
		return false;
	fake_model(call);
	all = atomic_load(&bed.memory->mappings);
	mapping = all->mapping[all->count - 1];
	at_once = message(3);
	return true;
}

TEST(add, touched_while_it_is_registered)
{
	const struct fake_call *wake;

	bed_resolve(KVMFAULT_KIND_CALL, 3, false);
	fake_on(FAKE_IOCTL, touch_in_register);
	ck_assert_int_eq(add(), 0);
	ck_assert_int_eq(at_once.action, KVMFAULT_ACTION_RETRY);
	wake = fake_nth(FAKE_IOCTL, UFFDIO_WAKE, 0);
	ck_assert_ptr_nonnull(wake);
	ck_assert_uint_eq(wake->at, options.host + 3 * PAGE);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
}

TEST(add, bad_arguments)
{
	struct kvmfault_vm *other;
	struct kvmfault_uffd *uffd;

	ck_assert_int_eq(kvmfault_mapping_add(NULL, &options, &mapping),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_mapping_add(bed.memory, NULL, &mapping),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_mapping_add(bed.memory, &options, NULL),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_mapping_remove(NULL), 0);
	options.host += 8;
	ck_assert_int_eq(add(), -EINVAL);
	ck_assert_ptr_null(mapping);
	options.host = 0;
	ck_assert_int_eq(add(), -EINVAL);
	options.host = -PAGE;
	ck_assert_int_eq(add(), -EINVAL);
	ck_assert_int_eq(kvmfault_vm_new(NULL, &other), 0);
	ck_assert_int_eq(kvmfault_uffd_new(other, NULL, &uffd), 0);
	options.host = (uintptr_t)fake_map(bed.fd);
	options.uffd = uffd;
	ck_assert_int_eq(add(), -EINVAL);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
	ck_assert_int_eq(kvmfault_vm_free(other), 0);
}

TEST(add, unknown_tail)
{
	struct {
		struct kvmfault_mapping_options options;
		uint64_t tail;
	} caller = { .options = options, .tail = 1 };

	caller.options.size = sizeof(caller);
	ck_assert_int_eq(kvmfault_mapping_add(bed.memory, &caller.options,
					      &mapping), -E2BIG);
	ck_assert_ptr_null(mapping);
}

TEST(add, untracked)
{
	struct kvmfault_memory_options plain = {
		.size = sizeof(plain), .length = LENGTH,
	};
	struct kvmfault_memory *memory;
	struct kvmfault_uffd *uffd;
	void *host;

	plain.fd = fake_memory(LENGTH, 0, &host);
	plain.host = host;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &plain, &memory), 0);
	options.host = (uintptr_t)fake_map(plain.fd);
	ck_assert_int_eq(kvmfault_mapping_add(memory, &options, &mapping), 0);
	ck_assert(!fake_registered(address()));
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	/* Its sleepers would be nobody's. */
	ck_assert_int_eq(kvmfault_uffd_new(bed.vm, NULL, &uffd), 0);
	options.uffd = uffd;
	ck_assert_int_eq(kvmfault_mapping_add(memory, &options, &mapping),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

TEST(add, anonymous_has_one)
{
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options anonymous = {
		.size = sizeof(anonymous), .length = LENGTH,
		.source = &source,
	};
	struct kvmfault_memory *memory;
	void *host;

	fake_memory(LENGTH, 0, &host);
	anonymous.host = host;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &anonymous, &memory), 0);
	ck_assert_int_eq(kvmfault_mapping_add(memory, &options, &mapping),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

TEST(add, known_already)
{
	ck_assert_int_eq(add(), 0);
	ck_assert_int_eq(kvmfault_mapping_add(bed.memory, &options,
					      &(struct kvmfault_mapping *){
					      NULL }), -EEXIST);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	options.host = (uintptr_t)bed.host;
	ck_assert_int_eq(add(), -EEXIST);
	ck_assert_ptr_null(mapping);
}

TEST(add, same_address_of_another_process)
{
	options.host = (uintptr_t)bed.host;
	/* Registered is by address alone in the fake: not asked here. */
	fake_push(FAKE_IOCTL, FAKE_MODEL);	/* the adopted one's wake */
	fake_push(FAKE_IOCTL, 0);		/* register */
	add_remote();
	ck_assert_ptr_ne(kvmfault__table_at(&bed.vm->mappings,
					    kvmfault__key(0, options.host)),
			 kvmfault__table_at(&bed.vm->mappings,
					    kvmfault__key(remote->space,
							  options.host)));
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	ck_assert_int_eq(kvmfault_uffd_free(remote), 0);
}

TEST_EACH(add, not_registered, 3)
{
	static const int errors[] = { -EINVAL, -EBUSY, -ENOMEM };
	struct fake_held before = fake_held(), after;

	fake_refuse(FAKE_IOCTL, UFFDIO_REGISTER, errors[_i]);
	ck_assert_int_eq(add(), errors[_i] == -EINVAL ? -EOPNOTSUPP :
			 errors[_i]);
	ck_assert_ptr_null(mapping);
	after = fake_held();
	ck_assert_int_eq(before.descriptors, after.descriptors);
	fake_refuse(FAKE_IOCTL, UFFDIO_REGISTER, 0);
	ck_assert_int_eq(add(), 0);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
}

TEST(add, memslots_mapping_stays)
{
	const struct kvmfault__mappings *all =
		atomic_load(&bed.memory->mappings);

	ck_assert_int_eq(kvmfault_mapping_remove(all->mapping[0]), -EINVAL);
	ck_assert(fake_registered(bed.host));
}

TEST(add, remove_without_memory)
{
	ck_assert_int_eq(add(), 0);
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), -ENOMEM);
	ck_assert(fake_registered(address()));
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
}

/* ---- the end ---- */

TEST_GROUP(end, up, bed_down);

TEST(end, removed_with_absent_pages)
{
	const struct fake_call *protect;

	ck_assert_int_eq(add(), 0);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	protect = fake_nth(FAKE_MPROTECT, PROT_NONE, 0);
	ck_assert_ptr_nonnull(protect);
	ck_assert_uint_eq(protect->at, options.host);
	ck_assert_uint_eq(protect->length, LENGTH);
	ck_assert(protect < fake_nth(FAKE_IOCTL, UFFDIO_UNREGISTER, 0));
	ck_assert_uint_eq(fake_count(FAKE_MPROTECT, FAKE_ANY), 1);
}

/* The kernel may let a thread go to sleep while it unregisters, and leave it
 * asleep. */
TEST(end, wakes_who_went_to_sleep_meanwhile)
{
	const struct fake_call *last, *call;
	size_t n = 0;

	ck_assert_int_eq(add(), 0);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	last = fake_nth(FAKE_IOCTL, UFFDIO_UNREGISTER, 0);
	ck_assert_ptr_nonnull(last);
	do
		call = fake_nth(FAKE_IOCTL, UFFDIO_WAKE, n++);
	while (call && call < last);
	ck_assert_ptr_nonnull(call);
	ck_assert_uint_eq(call->at, options.host);
	ck_assert_uint_eq(call->length, LENGTH);
	ck_assert_int_eq(call->fd, last->fd);
}

static struct kvmfault__seat *sleeper;

static bool sleeper_goes_on(struct fake_call *call)
{
	if (kvmfault__page_state(bed.memory, 3) != KVMFAULT__PRESENT)
		return call->result = -ETIMEDOUT, true;
	kvmfault__unhold(sleeper, KVMFAULT__HAZARD_MAPPINGS);
	call->result = 0;
	return true;
}

/* A worker reads the guest's bytes there, and there is no service any more. */
TEST(end, removed_while_a_thread_sleeps_there)
{
	ck_assert_int_eq(add(), 0);
	sleeper = kvmfault__seat_take(bed.vm);
	ck_assert_ptr_nonnull(kvmfault__mappings_hold(sleeper, bed.memory));
	ck_assert(fake_fault((char *)address() + 3 * PAGE, false));
	fake_on(FAKE_FUTEX_WAIT, sleeper_goes_on);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	fake_on(FAKE_FUTEX_WAIT, NULL);
	ck_assert_uint_eq(bed.reads, 1);
	kvmfault__seat_give(sleeper);
}

static bool it_settles(struct fake_call *call)
{
	kvmfault__page_change(bed.memory, 3, KVMFAULT__FETCHING,
			      KVMFAULT__PRESENT);
	call->result = 0;
	return true;
}

/* As one is whose message was read late. */
TEST_EACH(end, removed_while_a_page_is_looked_at, 2)
{
	uint64_t page;

	ck_assert_int_eq(add(), 0);
	for (page = 0; page < BED_PAGES; page++)
		bed_resolve(KVMFAULT_KIND_EXIT, page, false);
	kvmfault__page_change(bed.memory, 3, KVMFAULT__PRESENT,
			      KVMFAULT__FETCHING);
	if (_i)
		fake_on(FAKE_FUTEX_WAIT, it_settles);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	ck_assert_uint_eq(fake_count(FAKE_MPROTECT, PROT_NONE), !_i);
	kvmfault__page_change(bed.memory, 3, KVMFAULT__FETCHING,
			      KVMFAULT__PRESENT);
}

TEST(end, memory_freed_with_absent_pages)
{
	ck_assert_int_eq(add(), 0);
	kvmfault_region_remove(bed.vm, 0, BED_GPA);
	ck_assert_int_eq(kvmfault_memory_free(bed.memory), 0);
	bed.memory = NULL;
	/* Each of its mappings. */
	ck_assert_uint_eq(fake_count(FAKE_MPROTECT, PROT_NONE), 2);
	ck_assert_uint_eq(fake_nth(FAKE_MPROTECT, PROT_NONE, 0)->at,
			  options.host);
	ck_assert_uint_eq(fake_nth(FAKE_MPROTECT, PROT_NONE, 1)->at,
			  (uintptr_t)bed.host);
}

TEST(end, remote_is_poisoned)
{
	uint64_t page;

	add_remote();
	bed_resolve(KVMFAULT_KIND_CALL, 3, false);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	ck_assert_uint_eq(fake_count(FAKE_MPROTECT, FAKE_ANY), 0);
	/* A call for what is before the page, and one for the rest. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, KVMFAULT__UFFDIO_POISON), 2);
	for (page = 0; page < BED_PAGES; page++)
		ck_assert_int_eq(fake_marked((char *)address() + page * PAGE),
				 page != 3);
	ck_assert(!fake_registered(address()));
	ck_assert_int_eq(kvmfault_uffd_free(remote), 0);
}

TEST(end, remote_that_cannot_be_poisoned)
{
	add_remote();
	fake_refuse(FAKE_IOCTL, KVMFAULT__UFFDIO_POISON, -EINVAL);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert(fake_registered(address()));
	ck_assert_int_eq(kvmfault_uffd_free(remote), 0);
}

/* What marks a protection is in the place of a page that is absent: it is no page,
 * and nothing that would guard one. */
TEST(end, remote_that_stays_protected)
{
	add_remote();
	bed.memory->write_protect = true;
	fake_refuse(FAKE_IOCTL, UFFDIO_WRITEPROTECT, -EAGAIN);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert(fake_registered(address()));
	ck_assert_int_eq(kvmfault_uffd_free(remote), 0);
}

TEST_EACH(end, remote_that_is_gone, 2)
{
	static const int errors[] = { -ESRCH, -ENOENT };

	add_remote();
	fake_refuse(FAKE_IOCTL, KVMFAULT__UFFDIO_POISON, errors[_i]);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	ck_assert_uint_eq(bed.logs, 0);
	ck_assert_int_eq(kvmfault_uffd_free(remote), 0);
}

TEST(end, remote_poisoned_before)
{
	/* Marked already: that is what is wanted, for each of them. */
	add_remote();
	fake_refuse(FAKE_IOCTL, KVMFAULT__UFFDIO_POISON, -EEXIST);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, KVMFAULT__UFFDIO_POISON),
			  BED_PAGES);
	ck_assert_uint_eq(bed.logs, 0);
	ck_assert_int_eq(kvmfault_uffd_free(remote), 0);
}

/* A page that has failed, and is discarded: its marker goes there, too, by what
 * comes and goes in its place; and whatever is in the way is no marker. */
static const struct {
	long copy, map;		/* what the kernel says; FAKE_MODEL: it does it */
	int err;
	bool stays;
} lifts[] = {
	{ FAKE_MODEL, FAKE_MODEL, 0, false },
	{ -EEXIST, FAKE_MODEL, 0, false },	/* somebody writes the file */
	{ -EEXIST, -EEXIST, 0, true },		/* it was another page's */
	{ -ENOENT, FAKE_MODEL, 0, true },	/* not mapped any more */
	{ -ESRCH, FAKE_MODEL, 0, true },
	{ -ENOMEM, FAKE_MODEL, -ENOMEM, true },
	{ -EEXIST, -EFAULT, 0, true },		/* the hardware's */
};

static bool lift(struct fake_call *call)
{
	long says = call->number == UFFDIO_COPY ? lifts[bed.error].copy :
		    call->number == UFFDIO_CONTINUE ? lifts[bed.error].map :
						      FAKE_MODEL;

	if (says == FAKE_MODEL)
		return false;
	if (lifts[bed.error].map == FAKE_MODEL && says == -EEXIST)
		fake_put(bed.fd, 3 * PAGE);
	call->result = says;
	return true;
}

TEST_EACH(add, remote_that_was_poisoned, sizeof(lifts) / sizeof(lifts[0]))
{
	char *page;

	add_remote();
	page = (char *)address() + 3 * PAGE;
	bed_resolve(KVMFAULT_KIND_CALL, 2, false);
	kvmfault__page_change(bed.memory, 3, KVMFAULT__ABSENT,
			      KVMFAULT__POISONED);
	ck_assert_int_eq(kvmfault__poison(bed.seat, bed.memory, NULL, 3 * PAGE,
					  PAGE), 0);
	ck_assert(fake_marked(page));
	bed.error = _i;
	fake_on(FAKE_IOCTL, lift);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA + 3 * PAGE, PAGE),
			 lifts[_i].err);
	ck_assert_int_eq(bed_state(3), lifts[_i].err ? KVMFAULT__POISONED :
						       KVMFAULT__DISCARDED);
	ck_assert_int_eq(fake_marked(page), lifts[_i].stays);
	ck_assert(!fake_present(bed.fd, 3 * PAGE));
	ck_assert(bed_has(2, bed_byte(2)));
	fake_on(FAKE_IOCTL, NULL);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	ck_assert_int_eq(kvmfault_uffd_free(remote), 0);
}

int main(void)
{
	return run_suite("mapping");
}
