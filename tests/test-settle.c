/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * settle.c: a memory that lacks a page is left as it is; one that lacks none is
 * left to the kernel, whatever was going on at that moment.
 */

#include <linux/userfaultfd.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

#include "kvmfault-experimental.h"
#include "bed.h"

#define ALL (BED_PAGES * PAGE)

static char *other;		/* the bed's second mapping */
static struct kvmfault_mapping *mapping;
static void (*meanwhile)(void);	/* once, when the memslots' goes */

static void add_other(void)
{
	struct kvmfault_mapping_options options = { .size = sizeof(options) };

	other = fake_map(bed.fd);
	options.host = (uintptr_t)other;
	ck_assert_int_eq(kvmfault_mapping_add(bed.memory, &options, &mapping),
			 0);
}

static void up(void)
{
	meanwhile = NULL;
	bed_up();
	add_other();
}

static int save_nothing(void *data, struct kvmfault_request *request)
{
	(void)data;
	(void)request;
	return KVMFAULT_VERDICT_RESOLVED;
}

static void up_protected(void)
{
	static const struct kvmfault_resolver resolver = {
		.size = sizeof(resolver), .name = "snapshot",
		.pages = 1U << KVMFAULT_PAGE_PROTECTED, .resolve = save_nothing,
	};

	bed_vm();
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &resolver), 0);
	bed.write_protect = true;
	bed_add();
}

static void up_marked(void)
{
	bed_delivery = KVMFAULT_DELIVERY_MARKER_EXIT;
	up();
	bed_service(0);
}

static void up_exits(void)
{
	bed_vm();
	bed.vm->how.kernel_exit = KVMFAULT__KERNEL_EXIT_USERFAULT;
	bed_add();
}

static int ensure(uint64_t page)
{
	return kvmfault_ensure(bed.vm, 0, BED_GPA + page * PAGE, PAGE, true);
}

static void bring_all(void)
{
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, ALL, false), 0);
}

static int discard(uint64_t page)
{
	return kvmfault_discard(bed.vm, 0, BED_GPA + page * PAGE, PAGE);
}

static int protect(void)
{
	return kvmfault_protect(bed.vm, 0, BED_GPA, ALL);
}

static int settle(uint64_t *left)
{
	return kvmfault_memory_settle(bed.memory, left);
}

static size_t unregistered(void)
{
	return fake_count(FAKE_IOCTL, UFFDIO_UNREGISTER);
}

static uint64_t present(void)
{
	struct kvmfault_memory_counts counts = { .size = sizeof(counts) };

	ck_assert_int_eq(kvmfault_memory_count(bed.memory, 0, ALL, &counts), 0);
	return counts.present;
}

static void expect_busy(uint64_t pages)
{
	uint64_t left = 77;

	ck_assert_int_eq(settle(&left), -EBUSY);
	ck_assert_uint_eq(left, pages);
	ck_assert_int_eq(settle(NULL), -EBUSY);
	ck_assert(kvmfault__tracked(bed.memory));
	ck_assert_uint_eq(unregistered(), 0);
	ck_assert(fake_registered(bed.host));
}

static void expect_settled(void)
{
	uint64_t left = 77;

	ck_assert_int_eq(settle(&left), 0);
	ck_assert_uint_eq(left, 0);
	ck_assert(!fake_registered(bed.host));
	ck_assert_uint_eq(present(), BED_PAGES);
	ck_assert_uint_eq(bed.vm->tracked, 0);
}

TEST_GROUP(settle, up, bed_down);

TEST(settle, refused_while_a_page_is_absent)
{
	expect_busy(BED_PAGES);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, ALL - PAGE, false),
			 0);
	expect_busy(1);
	/* And it is as it was. */
	ck_assert_int_eq(ensure(BED_PAGES - 1), 0);
	ck_assert(bed_has(BED_PAGES - 1, bed_byte(BED_PAGES - 1)));
	expect_settled();
}

TEST_EACH(settle, refused_while_a_page_is_in_flight, 3)
{
	enum kvmfault__state state = KVMFAULT__FETCHING + _i;

	bring_all();
	kvmfault__page_change(bed.memory, 5, KVMFAULT__PRESENT, state);
	kvmfault__page_change(bed.memory, 6, KVMFAULT__PRESENT, state);
	expect_busy(2);
	kvmfault__page_change(bed.memory, 5, state, KVMFAULT__PRESENT);
	kvmfault__page_change(bed.memory, 6, state, KVMFAULT__PRESENT);
	expect_settled();
}

TEST(settle, refused_while_a_page_is_poisoned)
{
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, ALL - PAGE, false),
			 0);
	bed.source_result = -EHWPOISON;
	ck_assert_int_eq(ensure(BED_PAGES - 1), -EHWPOISON);
	bed.source_result = 0;
	expect_busy(1);
	ck_assert_int_eq(discard(BED_PAGES - 1), 0);
	expect_settled();
}

TEST(settle, each_mapping_is_unregistered)
{
	bring_all();
	ck_assert(fake_registered(other));
	expect_settled();
	ck_assert(!fake_registered(other));
	ck_assert_uint_eq(unregistered(), 2);
	/* Once more is nothing more. */
	expect_settled();
	ck_assert_uint_eq(unregistered(), 2);
}

TEST(settle, discarded_pages_stay_empty)
{
	bring_all();
	ck_assert_int_eq(discard(3), 0);
	expect_settled();
	ck_assert(!fake_present(bed.fd, 3 * PAGE));
	/* And they can be emptied as ever. */
	ck_assert_int_eq(discard(4), 0);
	ck_assert(!fake_present(bed.fd, 4 * PAGE));
	ck_assert(fake_present(bed.fd, 5 * PAGE));
	ck_assert_uint_eq(present(), BED_PAGES);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_DISCARD], 2);
}

/* Whatever comes then is asked for as if the memory had no source. */
TEST(settle, faults_are_untracked)
{
	struct kvmfault_stats stats;
	unsigned int reads;

	bring_all();
	ck_assert_int_eq(discard(3), 0);
	expect_settled();
	reads = bed.reads;
	ck_assert_int_eq(ensure(3), 0);
	ck_assert_int_eq(bed_exit(BED_GPA + 4 * PAGE, 0), KVMFAULT_ACTION_RETRY);
	stats = bed_stats();
	ck_assert_uint_eq(stats.page[KVMFAULT_PAGE_UNTRACKED], 2);
	ck_assert_uint_eq(stats.zeroed, 0);
	ck_assert_uint_eq(bed.reads, reads);
}

TEST(settle, mapping_that_comes_later_is_not_registered)
{
	struct kvmfault_mapping_options options = { .size = sizeof(options) };
	struct kvmfault_mapping *late;
	struct kvmfault_uffd *uffd;
	char *host;

	bring_all();
	expect_settled();
	host = fake_map(bed.fd);
	options.host = (uintptr_t)host;
	ck_assert_int_eq(kvmfault_uffd_new(bed.vm, NULL, &uffd), 0);
	options.uffd = uffd;
	ck_assert_int_eq(kvmfault_mapping_add(bed.memory, &options, &late),
			 -EINVAL);
	options.uffd = NULL;
	ck_assert_int_eq(kvmfault_mapping_add(bed.memory, &options, &late), 0);
	ck_assert(!fake_registered(host));
	ck_assert_int_eq(kvmfault_mapping_remove(late), 0);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
	/* Nothing is closed to readers, and nothing unregistered again. */
	ck_assert_uint_eq(fake_count(FAKE_MPROTECT, FAKE_ANY), 0);
	ck_assert_uint_eq(unregistered(), 2);
}

/* The second mapping goes first; if it does not, the memory works on. */
TEST_EACH(settle, mapping_that_stays_registered, 2)
{
	static const int errors[] = { -ENOMEM, -EINVAL };
	uint64_t left;

	bring_all();
	ck_assert_int_eq(discard(3), 0);
	fake_refuse(FAKE_IOCTL, UFFDIO_UNREGISTER, errors[_i]);
	ck_assert_int_eq(settle(&left), errors[_i]);
	ck_assert_uint_eq(left, 0);
	fake_refuse(FAKE_IOCTL, UFFDIO_UNREGISTER, 0);
	ck_assert(kvmfault__tracked(bed.memory));
	ck_assert_uint_eq(bed.vm->tracked, 1);
	ck_assert_int_eq(ensure(3), 0);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_uint_eq(bed_stats().zeroed, 1);
	expect_settled();
}

static bool at_the_last(struct fake_call *call)
{
	const struct uffdio_range *range = call->arg;
	void (*now)(void) = meanwhile;

	if (call->number != UFFDIO_UNREGISTER || !now ||
	    range->start != (uintptr_t)bed.host)
		return false;
	meanwhile = NULL;
	fake_aside(now);
	return false;
}

/* It had claimed the page, and the kernel does not take it any more. */
static int its_error;

static bool fails_to_install(struct fake_call *call)
{
	if (call->number != UFFDIO_ZEROPAGE && call->number != UFFDIO_COPY)
		return false;
	atomic_store(&bed.memory->tracked, false);
	call->result = -ENOENT;
	return true;
}

TEST(settle, fault_that_began_before)
{
	bring_all();
	ck_assert_int_eq(discard(3), 0);
	fake_on(FAKE_IOCTL, fails_to_install);
	ck_assert_int_eq(ensure(3), 0);
	ck_assert_uint_eq(bed_stats().page[KVMFAULT_PAGE_DISCARDED], 1);
	ck_assert_uint_eq(bed_stats().page[KVMFAULT_PAGE_UNTRACKED], 1);
	ck_assert_uint_eq(bed_stats().unresolved, 0);
}

static void message_meanwhile(void)
{
	ck_assert(fake_fault(bed_page(3), false));
	bed_dispatch();
}

/* Its sleeper is not left asleep: the mapping may stay registered. */
TEST(settle, message_that_is_read_in_between)
{
	size_t wakes;

	bring_all();
	ck_assert_int_eq(discard(3), 0);
	bed_service(0);
	wakes = fake_count(FAKE_IOCTL, UFFDIO_WAKE);
	meanwhile = message_meanwhile;
	fake_on(FAKE_IOCTL, at_the_last);
	expect_settled();
	ck_assert_uint_gt(fake_count(FAKE_IOCTL, UFFDIO_WAKE), wakes);
	ck_assert_uint_eq(bed_stats().zeroed, 0);
}

static void settle_inside(void)
{
	its_error = settle(NULL);
}

TEST(settle, callback_that_waits_for_itself)
{
	bed.during_read = settle_inside;
	ck_assert_int_eq(ensure(3), 0);
	ck_assert_int_eq(its_error, -EDEADLK);
}

TEST(settle, wrong_argument)
{
	ck_assert_int_eq(kvmfault_memory_settle(NULL, NULL), -EINVAL);
}

TEST(settle, memory_without_a_source)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = ALL,
	};
	struct kvmfault_memory *memory;
	uint64_t left = 77;

	options.fd = fake_memory(ALL, PAGE, &options.host);
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory), 0);
	ck_assert_int_eq(kvmfault_memory_settle(memory, &left), 0);
	ck_assert_uint_eq(left, 0);
	ck_assert_uint_eq(unregistered(), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

/* ---- what a thread is in the middle of ---- */

static atomic_bool over;

static void *settle_elsewhere(void *unused)
{
	expect_settled();
	atomic_store(&over, true);
	return unused;
}

/* Until it has let go of the memory, the states stay. */
TEST(settle, waits_for_who_has_seen_states)
{
	struct kvmfault__seat *seat = kvmfault__seat_take(bed.vm);
	pthread_t thread;

	atomic_store(&over, false);
	bring_all();
	ck_assert_ptr_nonnull(kvmfault__region_find(seat, 0, BED_GPA));
	ck_assert_int_eq(pthread_create(&thread, NULL, settle_elsewhere, NULL),
			 0);
	while (!atomic_load(&bed.vm->drain.drainers))
		sched_yield();
	ck_assert(!kvmfault__tracked(bed.memory));
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert(!atomic_load(&over));
	kvmfault__leave(seat);
	pthread_join(thread, NULL);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	kvmfault__seat_give(seat);
}

/* ---- protected pages ---- */

TEST_GROUP(guarded, up_protected, bed_down);

TEST(guarded, refused_while_a_page_is_protected)
{
	bring_all();
	ck_assert_int_eq(protect(), 0);
	expect_busy(BED_PAGES);
	ck_assert_int_eq(ensure(3), 0);
	expect_busy(BED_PAGES - 1);
	ck_assert_int_eq(kvmfault_unprotect(bed.vm, 0, BED_GPA, ALL), 0);
	expect_settled();
	ck_assert_int_eq(protect(), -EOPNOTSUPP);
	ck_assert_int_eq(kvmfault_unprotect(bed.vm, 0, BED_GPA, ALL), 0);
}

/* What was begun too late does not protect, and says so. */
TEST(guarded, protected_meanwhile)
{
	bring_all();
	atomic_store(&bed.memory->settling, 1);
	ck_assert_int_eq(protect(), -EAGAIN);
	ck_assert(!fake_protected(bed_page(3)));
	atomic_store(&bed.memory->settling, 0);
	expect_busy(BED_PAGES);
	ck_assert_int_eq(protect(), 0);
	ck_assert(fake_protected(bed_page(3)));
	ck_assert_int_eq(kvmfault_unprotect(bed.vm, 0, BED_GPA, ALL), 0);
}

/* A mapping may be without protection by now. */
TEST(guarded, not_after_a_failure)
{
	bring_all();
	fake_refuse(FAKE_IOCTL, UFFDIO_UNREGISTER, -ENOMEM);
	ck_assert_int_eq(settle(NULL), -ENOMEM);
	fake_refuse(FAKE_IOCTL, UFFDIO_UNREGISTER, 0);
	ck_assert_int_eq(protect(), -EAGAIN);
	ck_assert_int_eq(kvmfault_unprotect(bed.vm, 0, BED_GPA, ALL), 0);
	expect_settled();
}

/* ---- markers ---- */

TEST_GROUP(marked, up_marked, bed_down);

TEST(marked, markers_go)
{
	ck_assert(fake_fault(bed_page(3), false));
	bed_dispatch();
	ck_assert(fake_marked(bed_page(5)));
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, ALL - PAGE, false),
			 0);
	ck_assert_int_eq(discard(BED_PAGES - 1), 0);
	ck_assert(fake_marked(bed_page(BED_PAGES - 1)));
	expect_settled();
	ck_assert(!fake_marked(bed_page(BED_PAGES - 1)));
}

TEST(marked, markers_that_stay)
{
	ck_assert(fake_fault(bed_page(3), false));
	bed_dispatch();
	bring_all();
	fake_refuse(FAKE_MADVISE, MADV_DONTNEED, -EINVAL);
	ck_assert_int_eq(settle(NULL), -EINVAL);
	fake_refuse(FAKE_MADVISE, MADV_DONTNEED, 0);
	ck_assert(kvmfault__tracked(bed.memory));
	ck_assert_uint_eq(unregistered(), 0);
	ck_assert_uint_eq(atomic_load(&bed.memory->settling), 0);
	expect_settled();
}

/* ---- exits ---- */

TEST_GROUP(exits, up_exits, bed_down);

TEST(exits, no_page_exits_any_more)
{
	struct kvmfault_memslot memslot = { .size = sizeof(memslot) };

	bring_all();
	ck_assert_int_eq(discard(3), 0);
	ck_assert_uint_eq(atomic_load(&bed.memory->userfault[0]) & 0xffff,
			  1U << 3);
	expect_settled();
	ck_assert_uint_eq(atomic_load(&bed.memory->userfault[0]) & 0xffff, 0);
	ck_assert_int_eq(kvmfault_region_memslot(bed.vm, 0, BED_GPA, &memslot),
			 0);
	ck_assert_uint_eq(memslot.flags, 0);
	/* Nor is one set anew. */
	atomic_store(&bed.memory->userfault[0], 1U << 3);
	atomic_store(&bed.memory->exits, true);
	ck_assert_int_eq(bed_exit(BED_GPA + 3 * PAGE, 16),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(atomic_load(&bed.memory->userfault[0]), 0);
}

int main(void)
{
	return run_suite("settle");
}
