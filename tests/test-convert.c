/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * attributes.c, convert.c, resolver-convert.c on one thread: what a conversion
 * does and in which order, over which pages, and what is left when a step
 * fails. The races are test-convert-race.c's.
 */

#include <fcntl.h>
#include <linux/falloc.h>
#include <stdio.h>
#include <sched.h>
#include <string.h>

#include "bed.h"

#define PRIVATE KVMFAULT__EXIT_FLAG_PRIVATE
#define SET KVMFAULT__SET_MEMORY_ATTRIBUTES
/* Right behind the bed's region, another one with the same guest_memfd. */
#define SECOND_GPA (BED_GPA + BED_PAGES * PAGE)
#define SECOND_PAGES 4ULL
#define END (SECOND_GPA + SECOND_PAGES * PAGE)
#define SECOND_AT (20 * PAGE)		/* in the guest_memfd */

static int gmem;
static struct kvmfault_memory *second;
static int second_fd;
static uint64_t done;

static uint64_t at(uint64_t page)
{
	return BED_GPA + page * PAGE;
}

static int convert(uint64_t gpa, uint64_t pages, bool to_private)
{
	return kvmfault_convert(bed.vm, NULL, gpa, pages * PAGE, to_private,
				&done);
}

static void add_region(uint64_t gpa, uint64_t pages,
		       struct kvmfault_memory *memory, uint64_t guest_memfd_at)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = gpa, .length = pages * PAGE,
		.memory = memory, .guest_memfd = gmem,
		.guest_memfd_offset = guest_memfd_at,
	};

	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
}

static void up_vm(const struct kvmfault_converter *converter)
{
	void *host;

	bed_vm_fd = fake_fd(FAKE_KVM);
	bed_converter = converter;
	bed_vm();
	bed.guest_memfd = gmem = fake_memory(64 * PAGE, 0, &host);
}

/* Not tracked, unlike the bed's. */
static void up_rest(void)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = SECOND_PAGES * PAGE,
	};

	bed_add();
	second_fd = options.fd = fake_memory(options.length, 0, &options.host);
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &second), 0);
	add_region(SECOND_GPA, SECOND_PAGES, second, SECOND_AT);
	fake_forget();
}

static void up(void)
{
	up_vm(NULL);
	up_rest();
}

static void down(void)
{
	kvmfault_region_remove(bed.vm, 0, SECOND_GPA);
	ck_assert_int_eq(kvmfault_memory_free(second), 0);
	bed_down();
}

/* The library and KVM agree. */
static void expect(uint64_t gpa, uint64_t pages, bool private)
{
	for (; pages--; gpa += PAGE) {
		ck_assert_int_eq(kvmfault_is_private(bed.vm, gpa), private);
		ck_assert_int_eq(fake_private(gpa), private);
	}
}

static size_t told(void)
{
	return fake_count(FAKE_IOCTL, SET);
}

static void expect_told(size_t n, uint64_t gpa, uint64_t pages)
{
	const struct fake_call *call = fake_nth(FAKE_IOCTL, SET, n);

	ck_assert_ptr_nonnull(call);
	ck_assert_int_eq(call->fd, bed_vm_fd);
	ck_assert_uint_eq(call->at, gpa);
	ck_assert_uint_eq(call->length, pages * PAGE);
}

/* Faults that the resolver has answered. */
static uint64_t resolved(void)
{
	unsigned int i = 0;

	while (strcmp(kvmfault_resolver_name(bed.vm, i), "convert"))
		i++;
	return bed_stats().resolver[i];
}

static const struct kvmfault_result *result(void)
{
	return kvmfault_vcpu_result(bed.vcpu);
}

/* ---- by an access ---- */

TEST_GROUP(plain, up, down);

TEST(plain, access_converts)
{
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, at(3), PAGE, false), 0);
	ck_assert_int_eq(bed_exit(at(3), PRIVATE), KVMFAULT_ACTION_RETRY);
	ck_assert_str_eq(result()->resolver, "convert");
	ck_assert_uint_eq(told(), 1);
	expect_told(0, at(3), 1);
	expect(at(3), 1, true);
	expect(at(2), 1, false);
	expect(at(4), 1, false);
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
	ck_assert(!fake_present(bed.fd, 3 * PAGE));
	ck_assert_int_eq(bed_state(4), KVMFAULT__ABSENT);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_DISCARD], 1);
	ck_assert_uint_eq(resolved(), 1);

	fake_put(gmem, 2 * PAGE);
	fake_put(gmem, 3 * PAGE);
	ck_assert_int_eq(bed_exit(at(3), 0), KVMFAULT_ACTION_RETRY);
	expect(at(3), 1, false);
	ck_assert(!fake_present(gmem, 3 * PAGE));
	ck_assert(fake_present(gmem, 2 * PAGE));
	ck_assert_uint_eq(resolved(), 2);
	ck_assert_uint_eq(bed_stats().kind[KVMFAULT_KIND_EXIT], 2);
}

/* What was private holds nothing of before; what never was is fetched. */
TEST(plain, contents)
{
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, at(3), PAGE, false), 0);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_int_eq(convert(at(3), 2, true), 0);
	ck_assert_int_eq(convert(at(3), 2, false), 0);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, at(3), 3 * PAGE, false), 0);
	ck_assert(bed_has(3, 0));
	ck_assert(bed_has(4, 0));
	ck_assert(bed_has(5, bed_byte(5)));
	ck_assert_uint_eq(bed.reads, 2);
}

/* The other vCPU was first: try again, but not for ever. */
TEST(plain, access_that_came_second)
{
	ck_assert_int_eq(convert(at(3), 1, true), 0);
	ck_assert_int_eq(bed_exit(at(3), PRIVATE), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(told(), 1);
	while (bed_exit(at(3), PRIVATE) == KVMFAULT_ACTION_RETRY)
		;
	ck_assert_int_eq(result()->action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_NO_PROGRESS);
	ck_assert_str_eq(result()->resolver, "convert");
}

/* To and fro is what the guest wants, and is not a retry. */
TEST(plain, access_to_and_fro)
{
	unsigned int i;

	for (i = 0; i < 100; i++)
		ck_assert_int_eq(bed_exit(at(3), i % 2 ? 0 : PRIVATE),
				 KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(told(), 100);
	ck_assert_uint_eq(bed_waits(), 0);
}

TEST(plain, access_to_more_than_a_page)
{
	struct kvmfault__memory_fault record = {
		.flags = PRIVATE, .gpa = at(14), .size = 100 * PAGE,
	};

	bed.run->exit_reason = KVMFAULT__EXIT_MEMORY_FAULT;
	memcpy(&bed.run->hw, &record, sizeof(record));
	ck_assert_int_eq(bed_handle(-1, EFAULT), KVMFAULT_ACTION_RETRY);
	/* Of its region: the next one's pages may fault by themselves. */
	expect_told(0, at(14), 2);
	expect(at(13), 1, false);
	expect(SECOND_GPA, 1, false);
}

TEST(plain, access_without_guest_memfd)
{
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, SECOND_GPA), 0);
	gmem = 0;
	add_region(SECOND_GPA, SECOND_PAGES, second, 0);
	ck_assert_int_eq(bed_exit(SECOND_GPA, PRIVATE), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_FLAGS);
	ck_assert_int_eq(bed_exit(END, PRIVATE), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_uint_eq(told(), 0);
	gmem = bed.guest_memfd;
}

TEST(plain, access_in_another_address_space)
{
	bed.run->flags = 1;	/* SMM */
	ck_assert_int_eq(bed_exit(at(0), PRIVATE), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_uint_eq(told(), 0);
}

TEST(plain, access_with_more_flags)
{
	ck_assert_int_eq(bed_exit(at(0), PRIVATE | 1 << 9),
			 KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_FLAGS);
	expect(at(0), 1, false);
}

TEST(plain, access_to_failed_memory)
{
	struct kvmfault__memory_fault record = {
		.flags = PRIVATE, .gpa = at(0), .size = PAGE,
	};

	bed.run->exit_reason = KVMFAULT__EXIT_MEMORY_FAULT;
	memcpy(&bed.run->hw, &record, sizeof(record));
	ck_assert_int_eq(bed_handle(-1, EHWPOISON),
			 KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_HWPOISON);
	ck_assert_uint_eq(told(), 0);
}

/* A shared page that faults as such is the other resolvers'. */
TEST(plain, access_that_fits)
{
	ck_assert_int_eq(bed_exit(at(2), 0), KVMFAULT_ACTION_RETRY);
	ck_assert_str_eq(result()->resolver, "copy");
	ck_assert_int_eq(bed_exit(SECOND_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_str_eq(result()->resolver, "populate");
	ck_assert_uint_eq(told(), 0);
}

/* It is to be shared again, and the fetch that was in flight when it became
 * private is not over: a vCPU that waits for no page is told so. */
TEST(plain, access_that_does_not_wait)
{
	struct kvmfault_vcpu_options options = {
		.size = sizeof(options), .fd = fake_fd(FAKE_KVM),
		.run = bed.run, .no_wait = true, .profile = bed.profile,
	};
	struct kvmfault_vcpu *waits = bed.vcpu;

	ck_assert_int_eq(kvmfault__page_claim(bed.memory, 3, false),
			 KVMFAULT__ABSENT);
	ck_assert_int_eq(convert(at(3), 1, true), 0);
	ck_assert_int_eq(bed_state(3), KVMFAULT__FETCHING_DISCARDED);
	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &options, &bed.vcpu), 0);
	ck_assert_int_eq(bed_exit(at(3), 0), KVMFAULT_ACTION_PENDING);
	expect(at(3), 1, true);
	ck_assert_uint_eq(bed_waits(), 0);
	kvmfault__page_change(bed.memory, 3, KVMFAULT__FETCHING_DISCARDED,
			      KVMFAULT__DISCARDED);
	ck_assert_int_eq(bed_exit(at(3), 0), KVMFAULT_ACTION_RETRY);
	expect(at(3), 1, false);
	kvmfault_vcpu_free(bed.vcpu);
	bed.vcpu = waits;
}

/* ---- with resolvers of the VMM's ---- */

static enum kvmfault_page asked_for;
static int verdict;

static int own(void *data, struct kvmfault_request *request)
{
	(void)data;
	asked_for = request->page;
	ck_assert_uint_eq(request->region->gpa, BED_GPA);
	ck_assert_ptr_eq(request->memory, bed.memory);
	ck_assert_int_eq(kvmfault_request_install(request, NULL), -EINVAL);
	return verdict;
}

static void up_own(void)
{
	static const struct kvmfault_resolver resolver = {
		.size = sizeof(resolver), .name = "own", .resolve = own,
		.pages = 1U << KVMFAULT_PAGE_UNCONVERTED, .flags = PRIVATE,
	};

	up_vm(NULL);
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &resolver), 0);
	up_rest();
}

TEST_GROUP(own, up_own, down);

TEST(own, own_resolver_first)
{
	verdict = KVMFAULT_VERDICT_RESOLVED;
	ck_assert_int_eq(bed_exit(at(1), PRIVATE), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(asked_for, KVMFAULT_PAGE_UNCONVERTED);
	ck_assert_str_eq(result()->resolver, "own");
	expect(at(1), 1, false);
	verdict = KVMFAULT_VERDICT_LATER;
	ck_assert_int_eq(bed_exit(at(1), PRIVATE), KVMFAULT_ACTION_PENDING);
	verdict = KVMFAULT_VERDICT_DECLINED;
	ck_assert_int_eq(bed_exit(at(1), PRIVATE), KVMFAULT_ACTION_RETRY);
	ck_assert_str_eq(result()->resolver, "convert");
	expect(at(1), 1, true);
}

/* ---- a VM where accesses say nothing ---- */

static void up_calls_only(void)
{
	static const struct kvmfault_converter converter = {
		.size = sizeof(converter),
		.flags = KVMFAULT_CONVERTER_CALLS_ONLY,
	};

	up_vm(&converter);
	up_rest();
}

TEST_GROUP(calls_only, up_calls_only, down);

TEST(calls_only, calls_only)
{
	ck_assert_int_eq(convert(at(1), 1, true), 0);
	ck_assert_int_eq(bed_exit(at(1), 0), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_exit(at(2), PRIVATE), KVMFAULT_ACTION_RETRY);
	expect(at(1), 1, true);
	expect(at(2), 1, false);
	ck_assert_uint_eq(told(), 1);
	while (bed_exit(at(2), PRIVATE) == KVMFAULT_ACTION_RETRY)
		;
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_NO_PROGRESS);
}

/* ---- by a call ---- */

TEST(plain, only_what_differs)
{
	ck_assert_int_eq(convert(at(2), 1, true), 0);
	ck_assert_int_eq(convert(at(5), 2, true), 0);
	ck_assert_int_eq(convert(at(0), 9, true), 0);
	ck_assert_uint_eq(done, 9 * PAGE);
	ck_assert_uint_eq(told(), 5);
	expect_told(2, at(0), 2);
	expect_told(3, at(3), 2);
	expect_told(4, at(7), 2);
	expect(at(0), 9, true);
	expect(at(9), 1, false);
	ck_assert_int_eq(convert(at(0), 9, true), 0);
	ck_assert_uint_eq(done, 9 * PAGE);
	ck_assert_int_eq(convert(at(9), 1, false), 0);
	ck_assert_uint_eq(told(), 5);
}

TEST(plain, across_regions)
{
	uint64_t page;

	for (page = 0; page < SECOND_PAGES; page++)
		fake_put(second_fd, page * PAGE);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, at(13), 3 * PAGE, false),
			 0);
	ck_assert_int_eq(convert(at(14), 4, true), 0);
	/* One call for both. */
	ck_assert_uint_eq(told(), 1);
	expect_told(0, at(14), 4);
	ck_assert(fake_present(bed.fd, 13 * PAGE));
	ck_assert(!fake_present(bed.fd, 14 * PAGE));
	ck_assert(!fake_present(bed.fd, 15 * PAGE));
	ck_assert(!fake_present(second_fd, PAGE));
	ck_assert(fake_present(second_fd, 2 * PAGE));

	for (page = 0; page < 64; page++)
		fake_put(gmem, page * PAGE);
	ck_assert_int_eq(convert(at(14), 4, false), 0);
	ck_assert_uint_eq(told(), 2);
	for (page = 0; page < 64; page++)
		ck_assert_int_eq(fake_present(gmem, page * PAGE),
				 !(page == 14 || page == 15 || page == 20 ||
				   page == 21));
	ck_assert_uint_eq(fake_nth(FAKE_FALLOCATE, FAKE_ANY, 2)->number,
			  FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE);
}

TEST(plain, outside)
{
	/* Nothing to be private with: refused as a whole. */
	ck_assert_int_eq(convert(END - PAGE, 2, true), -ENXIO);
	ck_assert_uint_eq(done, 0);
	ck_assert_int_eq(convert(BED_GPA - PAGE, 2, true), -ENXIO);
	/* Shared it is already. */
	ck_assert_int_eq(convert(END, 100, false), 0);
	ck_assert_uint_eq(done, 100 * PAGE);
	ck_assert_int_eq(kvmfault_convert(bed.vm, NULL, -(PAGE * 512),
					  PAGE * 512, false, NULL), 0);
	ck_assert_uint_eq(told(), 0);
	expect(END - PAGE, 2, false);
}

/* KVM keeps them by address, whatever is there. */
TEST(plain, outlives_the_region)
{
	ck_assert_int_eq(convert(SECOND_GPA, 2, true), 0);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, SECOND_GPA), 0);
	expect(SECOND_GPA, 2, true);
	ck_assert_int_eq(convert(SECOND_GPA, 2, true), 0);
	ck_assert_int_eq(convert(SECOND_GPA, 4, true), -ENXIO);
	ck_assert_int_eq(convert(SECOND_GPA, 1, false), 0);
	expect(SECOND_GPA, 1, false);
	add_region(SECOND_GPA, SECOND_PAGES, second, SECOND_AT);
	expect(SECOND_GPA + PAGE, 1, true);
	ck_assert_int_eq(bed_exit(SECOND_GPA + PAGE, 0), KVMFAULT_ACTION_RETRY);
	expect(SECOND_GPA + PAGE, 1, false);
}

static void up_ram_only(void)
{
	static const struct kvmfault_converter converter = {
		.size = sizeof(converter),
		.flags = KVMFAULT_CONVERTER_RAM_ONLY,
	};

	up_vm(&converter);
	up_rest();
}

TEST_GROUP(ram_only, up_ram_only, down);

TEST(ram_only, ram_only)
{
	ck_assert_int_eq(convert(END - PAGE, 1, true), 0);
	ck_assert_int_eq(convert(END - PAGE, 2, false), -ENXIO);
	expect(END - PAGE, 1, true);
	ck_assert_int_eq(convert(END - PAGE, 1, false), 0);
	ck_assert_int_eq(convert(END, 1, false), -ENXIO);
	expect(END - PAGE, 1, false);
}

TEST(plain, bad_calls)
{
	struct kvmfault_vm *vm = bed.vm, *other;
	struct kvmfault_vcpu *vcpu = bed.vcpu;

	done = 77;
	ck_assert_int_eq(kvmfault_convert(NULL, NULL, at(0), PAGE, true, &done),
			 -EINVAL);
	ck_assert_uint_eq(done, 0);
	ck_assert_int_eq(convert(at(0), 0, true), -EINVAL);
	ck_assert_int_eq(convert(at(0) + 1, 1, true), -EINVAL);
	ck_assert_int_eq(kvmfault_convert(vm, NULL, at(0), 1, true, NULL),
			 -EINVAL);
	ck_assert_int_eq(convert(-PAGE, 2, true), -EINVAL);
	ck_assert_int_eq(kvmfault_is_private(NULL, 0), -EINVAL);
	ck_assert_int_eq(kvmfault_is_private(vm, UINT64_MAX), 0);

	/* Neither fd nor back end; and a vCPU of another context. */
	ck_assert_int_eq(kvmfault_vm_new(NULL, &other), 0);
	ck_assert_int_eq(kvmfault_convert(other, NULL, 0, PAGE, false, NULL),
			 -EOPNOTSUPP);
	ck_assert_int_eq(kvmfault_convert(other, vcpu, 0, PAGE, false, NULL),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_vm_free(other), 0);
}

TEST(plain, bad_contexts)
{
	struct kvmfault_converter converter = { .size = sizeof(converter) };
	struct kvmfault_vm_options options = {
		.size = sizeof(options), .vm_fd = 999999,
	};
	struct {
		struct kvmfault_converter converter;
		uint64_t tail;
	} longer = { .converter.size = sizeof(longer), .tail = 1 };
	struct kvmfault_vm *vm;

	ck_assert_int_eq(kvmfault_vm_new(&options, &vm), -EBADF);
	ck_assert_ptr_null(vm);
	options.vm_fd = bed_vm_fd;
	options.converter = &converter;
	converter.flags = 1U << 4;
	ck_assert_int_eq(kvmfault_vm_new(&options, &vm), -EINVAL);
	options.converter = &longer.converter;
	ck_assert_int_eq(kvmfault_vm_new(&options, &vm), -E2BIG);
	ck_assert_ptr_null(vm);
	converter.flags = 0;
	options.converter = &converter;
	ck_assert_int_eq(kvmfault_vm_new(&options, &vm), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
}

TEST(plain, no_memory_for_a_seat)
{
	struct kvmfault__seat *all[64];
	size_t n = 0;

	for (;;) {
		fake_push(FAKE_ALLOC, 0);
		all[n] = kvmfault__seat_take(bed.vm);
		if (!all[n])
			break;
		n++;
	}
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(convert(at(0), 1, true), -ENOMEM);
	/* A vCPU has its own. */
	ck_assert_int_eq(kvmfault_convert(bed.vm, bed.vcpu, at(0), PAGE, true,
					  NULL), 0);
	while (n--)
		kvmfault__seat_give(all[n]);
}

/* ---- many pages ---- */

#define BIG_GPA ((1ULL << 30) - 1000 * PAGE)	/* over the end of a leaf */
#define BIG_PAGES 3000ULL

static unsigned int until_exit;

/* The vCPU is wanted elsewhere while a chunk is being converted. */
static bool want_exit(struct fake_call *call)
{
	struct kvmfault__worker *worker = bed.vcpu->task.worker;

	if (call->number != SET || --until_exit)
		return false;
	__atomic_store_n(&bed.run->immediate_exit, 1, __ATOMIC_RELAXED);
	while (worker && !__atomic_load_n(&worker->leave, __ATOMIC_RELAXED))
		sched_yield();	/* until that is seen by the vCPU's thread */
	return false;
}

TEST(plain, in_chunks)
{
	uint64_t page, first = 3;
	size_t n, calls;

	add_region(BIG_GPA, BIG_PAGES, NULL, 0);
	until_exit = 2;
	fake_on(FAKE_IOCTL, want_exit);
	ck_assert_int_eq(kvmfault_convert(bed.vm, bed.vcpu,
					  BIG_GPA + first * PAGE,
					  (BIG_PAGES - first) * PAGE, true,
					  &done), -EINTR);
	ck_assert_uint_eq(told(), 2);
	ck_assert_uint_gt(done, 0);
	ck_assert_uint_eq((BIG_GPA + first * PAGE + done) % (2 << 20), 0);
	expect(BIG_GPA + first * PAGE, done / PAGE, true);
	expect(BIG_GPA + first * PAGE + done, 1, false);
	ck_assert_int_eq(kvmfault_convert(bed.vm, bed.vcpu, BIG_GPA, PAGE,
					  true, &done), -EINTR);
	ck_assert_uint_eq(done, 0);
	bed.run->immediate_exit = 0;
	ck_assert_int_eq(convert(BIG_GPA, BIG_PAGES, true), 0);
	ck_assert_uint_eq(done, BIG_PAGES * PAGE);
	expect(BIG_GPA, BIG_PAGES, true);
	expect(BIG_GPA - PAGE, 1, false);
	expect(BIG_GPA + BIG_PAGES * PAGE, 1, false);
	calls = told();
	for (n = 0; n < calls; n++)
		ck_assert_uint_le(fake_nth(FAKE_IOCTL, SET, n)->length,
				  2 << 20);
	for (page = 1; page < BIG_PAGES; page += 7)
		ck_assert_int_eq(convert(BIG_GPA + page * PAGE, 1, false), 0);
	for (page = 0; page < BIG_PAGES; page++)
		expect(BIG_GPA + page * PAGE, 1, page % 7 != 1);
	ck_assert_int_eq(convert(BIG_GPA, BIG_PAGES, false), 0);
	expect(BIG_GPA, BIG_PAGES, false);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BIG_GPA), 0);
}

/* No room for the attributes: no region, and nothing of it is left. */
TEST(plain, no_memory_for_attributes)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = BIG_GPA + (1ULL << 30),
		.length = BIG_PAGES * PAGE, .guest_memfd = gmem,
	};
	struct fake_held before, after;
	unsigned int nth;

	/* Nothing here is a job, and its thread may take the failure. */
	if (bed.profile == KVMFAULT_PROFILE_DELEGATE)
		return;
	ck_assert_int_eq(kvmfault_region_find(bed.vm, 0, region.gpa, &region),
			 -ENOENT);	/* there is a seat from now on */
	before = fake_held();
	for (nth = 1;; nth++) {
		int err;

		fake_fail_nth(nth);
		err = kvmfault_region_add(bed.vm, &region);
		if (!fake_failed())
			break;
		ck_assert_int_eq(err, -ENOMEM);
		after = fake_held();
		ck_assert_int_eq(after.mappings, before.mappings);
		ck_assert_int_eq(after.allocations, before.allocations);
		ck_assert_int_eq(kvmfault_region_find(bed.vm, 0, region.gpa,
						      &region), -ENOENT);
	}
	/* The region, the table, and two leaves. */
	ck_assert_uint_eq(nth, 5);
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), -EEXIST);
	ck_assert_int_eq(convert(region.gpa, BIG_PAGES, true), 0);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, region.gpa), 0);
}

/* ---- hooks ---- */

static char story[512];
static int refuse[3];		/* what each before returns */
static void (*in_before)(void);

static void tell(const char *what, void *who, uint64_t gpa, uint64_t length,
		 bool to_private)
{
	size_t n = strlen(story);

	fake_called_back();
	snprintf(story + n, sizeof(story) - n, "%s%d %d+%d %s; ", what,
		 (int)(uintptr_t)who, (int)((gpa - BED_GPA) / PAGE),
		 (int)(length / PAGE), to_private ? "private" : "shared");
}

static int before(void *data, uint64_t gpa, uint64_t length, bool to_private)
{
	int n = (int)(uintptr_t)data;

	/* Nothing has happened. */
	expect(gpa, length / PAGE, !to_private);
	tell("before", data, gpa, length, to_private);
	if (in_before)
		in_before();
	return refuse[n];
}

static void after(void *data, uint64_t gpa, uint64_t length, bool to_private,
		  bool was_done)
{
	/* All has, or nothing. */
	expect(gpa, length / PAGE, to_private == was_done);
	tell(was_done ? "after" : "undone", data, gpa, length, to_private);
}

static int hook(int n, bool with_before, bool with_after)
{
	struct kvmfault_conversion_hook hook = {
		.size = sizeof(hook), .data = (void *)(uintptr_t)n,
		.before = with_before ? before : NULL,
		.after = with_after ? after : NULL,
	};

	return kvmfault_conversion_hook_add(bed.vm, &hook);
}

static void up_hooks(void)
{
	up_vm(NULL);
	ck_assert_int_eq(hook(0, true, true), 0);
	ck_assert_int_eq(hook(1, true, false), 0);
	ck_assert_int_eq(hook(2, true, true), 0);
	ck_assert_int_eq(hook(3, false, true), 0);
	up_rest();
}

static void expect_story(const char *expected)
{
	ck_assert_str_eq(story, expected);
	story[0] = 0;
}

TEST_GROUP(hooks, up_hooks, down);

TEST(hooks, hooks_in_their_order)
{
	ck_assert_int_eq(convert(at(3), 1, true), 0);
	expect_story("before0 3+1 private; before1 3+1 private; "
		     "before2 3+1 private; "
		     "after3 3+1 private; after2 3+1 private; "
		     "after0 3+1 private; ");
	/* They see what differs, and no more. */
	ck_assert_int_eq(convert(at(2), 3, false), 0);
	expect_story("before0 3+1 shared; before1 3+1 shared; "
		     "before2 3+1 shared; "
		     "after3 3+1 shared; after2 3+1 shared; "
		     "after0 3+1 shared; ");
	ck_assert_int_eq(convert(at(2), 3, false), 0);
	expect_story("");
}

TEST_GROUP(twice, up_hooks, down);

TEST_EACH(twice, hook_that_refuses, 2)
{
	refuse[2] = _i ? 5 : -EPERM;
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, at(3), PAGE, false), 0);
	ck_assert_int_eq(convert(at(3), 1, true), _i ? -EINVAL : -EPERM);
	expect_story("before0 3+1 private; before1 3+1 private; "
		     "before2 3+1 private; undone0 3+1 private; ");
	ck_assert_uint_eq(told(), 0);
	expect(at(3), 1, false);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_int_eq(bed_exit(at(3), PRIVATE), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_RESOLVER);
	ck_assert_int_eq(result()->error, _i ? -EINVAL : -EPERM);
	refuse[2] = -EINTR;
	ck_assert_int_eq(bed_exit(at(3), PRIVATE), KVMFAULT_ACTION_INTERRUPTED);
	refuse[2] = -EAGAIN;
	ck_assert_int_eq(bed_exit(at(3), PRIVATE), KVMFAULT_ACTION_RETRY);
	expect(at(3), 1, false);
	refuse[2] = 0;
	ck_assert_int_eq(bed_exit(at(3), PRIVATE), KVMFAULT_ACTION_RETRY);
	expect(at(3), 1, true);
}

/* A run that fails is undone, and those before it stay. */
TEST(hooks, step_that_fails_in_the_middle)
{
	ck_assert_int_eq(convert(at(14), 1, true), 0);
	fake_put(gmem, SECOND_AT);
	story[0] = 0;
	fake_push(FAKE_IOCTL, FAKE_MODEL);
	fake_push(FAKE_IOCTL, -ENOMEM);
	ck_assert_int_eq(convert(at(13), 4, true), -ENOMEM);
	ck_assert_uint_eq(done, 2 * PAGE);
	expect_story("before0 13+1 private; before1 13+1 private; "
		     "before2 13+1 private; "
		     "after3 13+1 private; after2 13+1 private; "
		     "after0 13+1 private; "
		     "before0 15+2 private; before1 15+2 private; "
		     "before2 15+2 private; "
		     "undone3 15+2 private; undone2 15+2 private; "
		     "undone0 15+2 private; ");
	expect(at(13), 2, true);
	expect(at(15), 2, false);
	ck_assert_int_eq(bed_state(13), KVMFAULT__DISCARDED);
	ck_assert_int_eq(bed_state(15), KVMFAULT__ABSENT);
	/* It was set back, to be sure. */
	ck_assert_uint_eq(told(), 4);
	expect_told(3, at(15), 2);
	ck_assert_int_eq(convert(at(13), 4, true), 0);
	expect(at(13), 4, true);
}

static int inner, inner_other;

static void convert_from_hook(void)
{
	in_before = NULL;
	inner = kvmfault_convert(bed.vm, NULL, at(3), PAGE, true, NULL);
	inner_other = kvmfault_convert(bed.vm, NULL, at(9), PAGE, true, NULL);
	/* But the rest of the library. */
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, at(3), PAGE, false), 0);
	ck_assert_int_eq(kvmfault_is_private(bed.vm, at(3)), 0);
}

TEST(hooks, hook_that_converts)
{
	in_before = convert_from_hook;
	ck_assert_int_eq(convert(at(3), 1, true), 0);
	ck_assert_int_eq(inner, -EDEADLK);
	ck_assert_int_eq(inner_other, -EDEADLK);
	expect(at(3), 1, true);
	expect(at(9), 1, false);
	/* What it fetched is gone. */
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
}

static void up_vm_only(void);

TEST_GROUP(vm_only, up_vm_only, down);

TEST(vm_only, bad_hooks)
{
	struct {
		struct kvmfault_conversion_hook hook;
		uint64_t tail;
	} longer = { .hook.size = sizeof(longer), .tail = 1 };
	unsigned int n = 0;

	ck_assert_int_eq(kvmfault_conversion_hook_add(bed.vm, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_conversion_hook_add(bed.vm, &longer.hook),
			 -E2BIG);
	longer.tail = 0;
	ck_assert_int_eq(kvmfault_conversion_hook_add(NULL, &longer.hook),
			 -EINVAL);
	while (!hook(0, true, true))
		n++;
	ck_assert_uint_eq(n, KVMFAULT_CONVERSION_HOOK_COUNT);
	ck_assert_int_eq(hook(0, true, true), -ENOSPC);
	up_rest();
	ck_assert_int_eq(hook(0, true, true), -EBUSY);
}

static void up_vm_only(void)
{
	up_vm(NULL);
}

/* ---- a back end of the VMM's ---- */

static int back_end_result[8];
static unsigned int back_end_calls;

/* Two steps, the second of which may fail. */
static int back_end(void *data, uint64_t gpa, uint64_t length, bool to_private)
{
	unsigned int n = back_end_calls++;
	struct kvmfault__memory_attributes attributes = {
		.address = gpa, .size = length,
		.attributes = to_private ? KVMFAULT__ATTRIBUTE_PRIVATE : 0,
	};

	ck_assert_ptr_eq(data, &back_end_calls);
	if (back_end_result[n])
		attributes.size /= 2;
	if (attributes.size)
		ck_assert_int_eq(kvmfault__sys_ioctl(bed_vm_fd, SET,
						     &attributes), 0);
	return back_end_result[n];
}

static void up_back_end(void)
{
	static const struct kvmfault_converter converter = {
		.size = sizeof(converter), .set = back_end,
		.data = &back_end_calls,
	};
	int fd;

	up_vm(&converter);
	/* It takes no descriptor of the VM's. */
	ck_assert_int_eq(kvmfault_vm_free(bed.vm), 0);
	fd = bed_vm_fd;
	bed_vm_fd = 0;
	bed_vm();
	bed_vm_fd = fd;
	bed.guest_memfd = gmem;
	up_rest();
}

TEST_GROUP(back_end, up_back_end, down);

TEST(back_end, back_end_converts)
{
	ck_assert_int_eq(bed_exit(at(3), PRIVATE), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(back_end_calls, 1);
	expect(at(3), 1, true);
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
	ck_assert_int_eq(convert(at(0), 8, false), 0);
	ck_assert_uint_eq(back_end_calls, 2);
	expect(at(3), 1, false);
}

TEST_GROUP(half_way, up_back_end, down);

TEST_EACH(half_way, back_end_that_fails_half_way, 2)
{
	back_end_result[0] = _i ? 1 : -EAGAIN;
	ck_assert_int_eq(convert(at(0), 8, true), _i ? -EINVAL : -EAGAIN);
	ck_assert_uint_eq(back_end_calls, 2);
	expect(at(0), 8, false);
	ck_assert_uint_eq(bed.logs, 0);
}

TEST(back_end, back_end_that_fails_for_good)
{
	back_end_result[0] = -ENOMEM;
	back_end_result[1] = -EIO;
	ck_assert_int_eq(convert(at(0), 8, true), -ENOMEM);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_ptr_nonnull(strstr(bed.log, "error 12"));
	ck_assert_ptr_nonnull(strstr(bed.log, "error 5"));
	/* Nothing was thrown away. */
	ck_assert_int_eq(bed_state(0), KVMFAULT__ABSENT);
}

/* ---- the other side ---- */

TEST(plain, discard_that_fails)
{
	fake_put(gmem, 3 * PAGE);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, at(3), PAGE, false), 0);
	fake_push(FAKE_FALLOCATE, -EPERM);
	/* It is private all the same, and the memory is lost to the host. */
	ck_assert_int_eq(convert(at(3), 1, true), 0);
	expect(at(3), 1, true);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_ptr_nonnull(strstr(bed.log, "shared pages"));
	ck_assert_ptr_nonnull(strstr(bed.log, "error 1)"));
	fake_push(FAKE_FALLOCATE, -EPERM);
	ck_assert_int_eq(convert(at(3), 1, false), 0);
	expect(at(3), 1, false);
	ck_assert(fake_present(gmem, 3 * PAGE));
	ck_assert_uint_eq(bed.logs, 1);		/* once */
}

TEST(plain, discard_of_the_second_region_only)
{
	fake_put(second_fd, 0);
	fake_push(FAKE_FALLOCATE, -EPERM);
	ck_assert_int_eq(convert(at(15), 2, true), 0);
	ck_assert_int_eq(bed_state(15), KVMFAULT__ABSENT);
	ck_assert(!fake_present(second_fd, 0));
}

static void up_keep(void)
{
	static const struct kvmfault_converter converter = {
		.size = sizeof(converter),
		.flags = KVMFAULT_CONVERTER_KEEP_SHARED |
			 KVMFAULT_CONVERTER_KEEP_PRIVATE,
	};

	up_vm(&converter);
	up_rest();
}

TEST_GROUP(keep, up_keep, down);

TEST(keep, nothing_discarded)
{
	fake_put(gmem, 3 * PAGE);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, at(3), PAGE, false), 0);
	ck_assert_int_eq(convert(at(3), 1, true), 0);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_int_eq(convert(at(3), 1, false), 0);
	ck_assert(fake_present(gmem, 3 * PAGE));
	ck_assert_uint_eq(fake_count(FAKE_FALLOCATE, FAKE_ANY), 0);
}

/* Removed while KVM is told: its descriptors are the VMM's again. */
static bool remove_region(struct fake_call *call)
{
	if (call->number == SET)
		ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, SECOND_GPA),
				 0);
	return false;
}

TEST(plain, region_removed_meanwhile)
{
	ck_assert_int_eq(convert(at(15), 2, true), 0);
	fake_put(gmem, 15 * PAGE);
	fake_put(gmem, SECOND_AT);
	fake_on(FAKE_IOCTL, remove_region);
	ck_assert_int_eq(convert(at(15), 2, false), 0);
	expect(at(15), 2, false);
	ck_assert(!fake_present(gmem, 15 * PAGE));
	ck_assert(fake_present(gmem, SECOND_AT));
}

/* ---- huge pages ---- */

#define HUGE (2ULL << 20)
#define HUGE_GPA (64 * HUGE)

static struct kvmfault_memory *huge;
static int huge_fd;

static void add_huge(uint64_t gpa, uint64_t pages, uint64_t offset)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = gpa, .length = pages * PAGE,
		.memory = huge, .offset = offset, .guest_memfd = gmem,
	};

	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
}

static void up_huge(void)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = 4 * HUGE, .page_size = HUGE,
	};
	uint64_t page;

	up();
	huge_fd = options.fd = fake_memory(options.length, HUGE, &options.host);
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &huge), 0);
	for (page = 0; page < 4; page++)
		fake_put(huge_fd, page * HUGE);
}

static void down_huge(void)
{
	kvmfault_region_remove(bed.vm, 0, HUGE_GPA);
	ck_assert_int_eq(kvmfault_memory_free(huge), 0);
	down();
}

static unsigned int huge_pages(void)
{
	unsigned int page, n = 0;

	for (page = 0; page < 4; page++)
		n |= (unsigned int)fake_present(huge_fd, page * HUGE) << page;
	return n;
}

TEST_GROUP(huge, up_huge, down_huge);

TEST(huge, huge_as_a_whole)
{
	add_huge(HUGE_GPA, 2048, 0);
	ck_assert_int_eq(convert(HUGE_GPA, 511, true), 0);
	ck_assert_uint_eq(huge_pages(), 15);
	ck_assert_int_eq(convert(HUGE_GPA + 511 * PAGE, 1, true), 0);
	ck_assert_uint_eq(huge_pages(), 14);
	ck_assert_int_eq(convert(HUGE_GPA + HUGE + PAGE, 1023, true), 0);
	ck_assert_uint_eq(huge_pages(), 10);
	/* And back: what is shared again in part is no more discarded. */
	fake_put(huge_fd, 0);
	ck_assert_int_eq(convert(HUGE_GPA, 1, false), 0);
	ck_assert_int_eq(convert(HUGE_GPA + 9 * PAGE, 1, false), 0);
	ck_assert_int_eq(convert(HUGE_GPA + 9 * PAGE, 1, true), 0);
	ck_assert_uint_eq(huge_pages(), 11);
}

/* Regions that show no whole huge page, or show it off its boundary. */
TEST(huge, huge_in_part)
{
	add_huge(HUGE_GPA, 600, 100 * PAGE);
	ck_assert_int_eq(convert(HUGE_GPA, 600, true), 0);
	ck_assert_uint_eq(huge_pages(), 15);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, HUGE_GPA), 0);
	ck_assert_int_eq(convert(HUGE_GPA, 600, false), 0);

	add_huge(HUGE_GPA, 1400, 100 * PAGE);
	ck_assert_int_eq(convert(HUGE_GPA + 412 * PAGE, 511, true), 0);
	ck_assert_uint_eq(huge_pages(), 15);
	ck_assert_int_eq(convert(HUGE_GPA + 923 * PAGE, 1, true), 0);
	ck_assert_uint_eq(huge_pages(), 13);
}

/* Nobody converts another part of a huge page while it is looked at as a
 * whole: what is taken is all of it. */
static struct kvmfault__gfns taken;

static bool look(struct fake_call *call)
{
	if (call->number == SET)
		taken = bed.vm->conversions.first->pages;
	return false;
}

TEST(huge, huge_is_taken_as_a_whole)
{
	const uint64_t first = HUGE_GPA / PAGE;

	fake_on(FAKE_IOCTL, look);
	add_huge(HUGE_GPA, 1400, 100 * PAGE);
	ck_assert_int_eq(convert(HUGE_GPA + 500 * PAGE, 1, true), 0);
	ck_assert_uint_eq(taken.first, first + 412);
	ck_assert_uint_eq(taken.end, first + 924);
	/* Only as far as the region goes; then it is none as a whole. */
	ck_assert_int_eq(convert(HUGE_GPA + 5 * PAGE, 1, true), 0);
	ck_assert_uint_eq(taken.first, first + 5);
	ck_assert_int_eq(convert(at(3), 1, true), 0);
	ck_assert_uint_eq(taken.first, at(3) / PAGE);
	ck_assert_uint_eq(taken.end, at(4) / PAGE);
}

/* ---- where nothing can convert ---- */

static void up_without(void)
{
	up_vm(NULL);
	ck_assert_int_eq(kvmfault_vm_free(bed.vm), 0);
	bed_vm_fd = 0;
	bed_vm();
	bed.guest_memfd = gmem;
	up_rest();
}

TEST_GROUP(without, up_without, down);

TEST(without, without_converter)
{
	ck_assert_int_eq(bed_exit(at(3), PRIVATE), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_FLAGS);
	ck_assert_int_eq(bed_exit(at(3), 0), KVMFAULT_ACTION_RETRY);
	ck_assert_str_eq(result()->resolver, "copy");
	ck_assert_int_eq(convert(at(3), 1, true), -EOPNOTSUPP);
}

int main(void)
{
	return run_suite("convert");
}
