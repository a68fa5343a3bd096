/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * userfault.c: which ABI it is, the bits that follow the states of pages, what
 * a memslot is told, and what the exits' flags mean.
 */

#include <linux/falloc.h>
#include <linux/userfaultfd.h>
#include <string.h>

#include "kvmfault-experimental.h"
#include "bed.h"

#define ALL ((1UL << BED_PAGES) - 1)
#define READ 1ULL
#define WRITE 2ULL
#define EXEC 4ULL
#define USERFAULT 16ULL

static void up_as(enum kvmfault__kernel_exit which)
{
	bed_vm();
	bed.vm->how.kernel_exit = which;
	bed_add();
}

static void up_userfault(void)
{
	up_as(KVMFAULT__KERNEL_EXIT_USERFAULT);
}

static void up_missing(void)
{
	up_as(KVMFAULT__KERNEL_EXIT_ON_MISSING);
}

static uint64_t gpa(uint64_t page)
{
	return BED_GPA + page * PAGE;
}

static bool bit(uint64_t page)
{
	return atomic_load(&bed.memory->userfault[page / 64]) >> page % 64 & 1;
}

static unsigned long bits(void)
{
	return atomic_load(&bed.memory->userfault[0]) & ALL;
}

/* What the guest's touch of the page is answered with. */
static enum kvmfault_action touch(uint64_t page)
{
	return bed_exit(gpa(page), USERFAULT);
}

static void expect_unresolved(enum kvmfault_reason reason)
{
	const struct kvmfault_result *result = kvmfault_vcpu_result(bed.vcpu);

	ck_assert_int_eq(result->action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result->reason, reason);
}

/* ---- which of the two: kernels that have neither, one, or something else ---- */

static const struct kernel {
	int region2;		/* what the flag in a new slot is answered with, */
	int no_bitmap;		/* where no process can have the bitmap, */
	int old;		/* in the old call */
	int answer;
	enum kvmfault__kernel_exit which;
} kernels[] = {
	{ -EINVAL, -EINVAL, -EINVAL, 0, KVMFAULT__KERNEL_EXIT_NONE },
	{ -ENOTTY, -ENOTTY, -EINVAL, 0, KVMFAULT__KERNEL_EXIT_NONE },
	{ 0, -EINVAL, -EINVAL, 0, KVMFAULT__KERNEL_EXIT_USERFAULT },
	{ 0, 0, 0, 0, KVMFAULT__KERNEL_EXIT_ON_MISSING },
	/* Another meaning of the bit, without a bitmap and only in the new
	 * call. */
	{ 0, 0, -EINVAL, 0, KVMFAULT__KERNEL_EXIT_NONE },
	/* It could not be asked. */
	{ -ENOMEM, 0, 0, -ENOMEM, KVMFAULT__KERNEL_EXIT_NONE },
};
#define KERNELS ((int)(sizeof(kernels) / sizeof(*kernels)))

static const struct kernel *kernel;
static uint64_t slots;

static bool kvm_calls(struct fake_call *call)
{
	const struct kvmfault__memory_region2 *region = call->arg;

	if (call->number == KVM_CREATE_VM) {
		call->result = fake_fd(FAKE_KVM);
		fake_give((int)call->result);
		return true;
	}
	/* Each is a slot of its own: a change of one that is there may be
	 * looked at in another way. */
	ck_assert_uint_eq(region->flags, 1 << 3);
	ck_assert_uint_eq(region->guest_phys_addr,
			  region->slot * region->memory_size);
	ck_assert_uint_eq(region->memory_size, PAGE);
	ck_assert_uint_eq(region->userspace_addr % PAGE, 0);
	ck_assert(!(slots >> region->slot & 1));
	slots |= 1ULL << region->slot;
	if (call->number == KVM_SET_USER_MEMORY_REGION)
		call->result = kernel->old;
	else if (region->pad2[0] >> 47)
		call->result = kernel->no_bitmap;
	else
		call->result = kernel->region2;
	return true;
}

TEST_GROUP(ask, NULL, NULL);

TEST_EACH(ask, told_apart, KERNELS)
{
	enum kvmfault__kernel_exit which = 99;

	kernel = &kernels[_i];
	fake_on(FAKE_IOCTL, kvm_calls);
	ck_assert_int_eq(kvmfault__kernel_exit_ask(fake_fd(FAKE_KVM), &which),
			 kernel->answer);
	ck_assert_int_eq(which, kernel->which);
	ck_assert_int_eq(fake_held().descriptors, 0);
}

TEST(ask, cannot_be_asked)
{
	enum kvmfault__kernel_exit which = 99;

	ck_assert_int_eq(kvmfault__kernel_exit_ask(0, &which), -EBADF);
	ck_assert_int_eq(which, KVMFAULT__KERNEL_EXIT_NONE);
	fake_push(FAKE_IOCTL, -EMFILE);
	ck_assert_int_eq(kvmfault__kernel_exit_ask(fake_fd(FAKE_KVM), &which),
			 -EMFILE);
}

/* ---- bits ---- */

TEST_GROUP(userfault, up_userfault, bed_down);

TEST(userfault, set_where_pages_are_absent)
{
	ck_assert_uint_eq(bits(), ALL);
	ck_assert_int_eq(touch(3), KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_uint_eq(bits(), ALL & ~(1UL << 3));
	/* Whoever brings it. */
	ck_assert_int_eq(bed_resolve(KVMFAULT_KIND_UFFD, 4, true).action,
			 KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, gpa(5), 1, false), 0);
	ck_assert_uint_eq(bits(), ALL & ~(7UL << 3));
}

TEST_GROUP(any_kernel, bed_up, bed_down);

TEST(any_kernel, none_without_the_mode)
{
	ck_assert_ptr_null(bed.memory->userfault);
	kvmfault__userfault_leave(bed.memory);
	kvmfault__userfault_enter(bed.memory);
	ck_assert(!bed.memory->exits);
	ck_assert_int_eq(bed_exit(gpa(0), 0), KVMFAULT_ACTION_RETRY);
}

static bool seen;

/* The bit goes after the data and before the wakes. */
static bool data_and_wakes(struct fake_call *call)
{
	if (call->number == UFFDIO_COPY) {
		ck_assert(bit(2));
		ck_assert_int_eq(bed_state(2), KVMFAULT__FETCHING_WAITED);
	}
	if (call->number == UFFDIO_WAKE) {
		ck_assert(!bit(2));
		seen = true;
	}
	return false;
}

static void someone_sleeps(void)
{
	kvmfault__page_claim(bed.memory, 2, true);
}

TEST(userfault, after_the_data_and_before_the_wake)
{
	fake_on(FAKE_IOCTL, data_and_wakes);
	bed.during_read = someone_sleeps;
	ck_assert_int_eq(touch(2), KVMFAULT_ACTION_RETRY);
	ck_assert(seen);
}

static bool no_bit(struct fake_call *call)
{
	(void)call;
	seen = true;
	ck_assert(!bit(6));
	return false;
}

static void *waits(void *arg)
{
	struct kvmfault__seat *seat = kvmfault__seat_take(bed.vm);

	kvmfault__page_wait(seat, bed.memory, 6);
	kvmfault__seat_give(seat);
	return arg;
}

static pthread_t waiter;

static void someone_waits(void)
{
	pthread_create(&waiter, NULL, waits, NULL);
	while (!fake_count(FAKE_FUTEX_WAIT, FAKE_ANY))
		;
}

TEST(userfault, before_the_wake_of_who_waits_on_a_futex)
{
	fake_on(FAKE_FUTEX_WAKE, no_bit);
	bed.during_read = someone_waits;
	ck_assert_int_eq(touch(6), KVMFAULT_ACTION_RETRY);
	pthread_join(waiter, NULL);
	ck_assert(seen);
}

TEST(userfault, a_page_that_did_not_come_keeps_it)
{
	bed.source_result = -EIO;
	ck_assert_int_eq(touch(3), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_uint_eq(bits(), ALL);
}

TEST(userfault, a_poisoned_page_has_none)
{
	bed.source_result = -EHWPOISON;
	ck_assert_int_eq(touch(3), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(bed_state(3), KVMFAULT__POISONED);
	ck_assert_uint_eq(bits(), ALL & ~(1UL << 3));
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, gpa(3), PAGE), 0);
	ck_assert_uint_eq(bits(), ALL);
}

static void up_window(void)
{
	bed_vm();
	bed.vm->how.kernel_exit = KVMFAULT__KERNEL_EXIT_USERFAULT;
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = 4 * PAGE;
	bed_add();
}

static bool three_of_four(struct fake_call *call)
{
	struct uffdio_copy *copy = call->arg;

	if (call->number != UFFDIO_COPY)
		return false;
	if (copy->dst == (uintptr_t)bed_page(7)) {
		call->result = -ENOMEM;
		return true;
	}
	copy->len = 3 * PAGE;
	call->result = fake_model(call);
	copy->copy = 3 * PAGE;
	call->result = -EAGAIN;
	return true;
}

TEST_GROUP(window, up_window, bed_down);

TEST(window, of_a_window_those_that_came)
{
	fake_on(FAKE_IOCTL, three_of_four);
	ck_assert_int_eq(touch(5), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bits(), ALL & ~(7UL << 4));
}

/* ---- discards ---- */

static int discard(uint64_t page, uint64_t count)
{
	return kvmfault_discard(bed.vm, 0, gpa(page), count * PAGE);
}

/* Else it would be missed by a message. */
static bool set_before(struct fake_call *call)
{
	(void)call;
	seen = true;
	ck_assert(bit(2) && bit(3));
	return false;
}

TEST(userfault, a_discarded_page_exits_again)
{
	touch(2);
	touch(3);
	fake_on(FAKE_FALLOCATE, set_before);
	ck_assert_int_eq(discard(2, 2), 0);
	ck_assert(seen);
	ck_assert_uint_eq(bits(), ALL);
	ck_assert_int_eq(touch(2), KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(2, 0));
	ck_assert_uint_eq(bits(), ALL & ~(1UL << 2));
}

TEST(userfault, a_discard_that_failed_changes_nothing)
{
	touch(2);
	fake_push(FAKE_FALLOCATE, -ENOSYS);
	ck_assert_int_eq(discard(1, 3), -ENOSYS);
	ck_assert_uint_eq(bits(), ALL & ~(1UL << 2));
}

static void discard_it(void)
{
	kvmfault__page_change(bed.memory, 2, KVMFAULT__FETCHING,
			      KVMFAULT__FETCHING_DISCARDED);
}

TEST(userfault, a_discard_while_it_is_fetched)
{
	bed.during_read = discard_it;
	ck_assert_int_eq(touch(2), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(2), KVMFAULT__DISCARDED);
	ck_assert_uint_eq(bits(), ALL);
	/* It could not be freed, and is what was fetched. */
	bed.during_read = discard_it;
	kvmfault__page_change(bed.memory, 2, KVMFAULT__DISCARDED,
			      KVMFAULT__ABSENT);
	fake_push(FAKE_FALLOCATE, -ENOSYS);
	ck_assert_int_eq(touch(2), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(2), KVMFAULT__PRESENT);
	ck_assert_uint_eq(bits(), ALL & ~(1UL << 2));
}

static struct kvmfault_memory *anonymous(char **host)
{
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.length = BED_PAGES * PAGE,
		.source = &source,
	};
	struct kvmfault_memory *memory;

	fake_memory(options.length, 0, &options.host);
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory), 0);
	*host = options.host;
	return memory;
}

TEST(userfault, an_event_says_that_it_is_gone)
{
	struct uffd_msg msg = { .event = UFFD_EVENT_REMOVE };
	const struct kvmfault__mappings *all;
	struct kvmfault_memory *memory;
	char *host;

	memory = anonymous(&host);
	all = atomic_load(&memory->mappings);
	bed_service(0);
	fake_fault(host + 3 * PAGE, false);
	bed_dispatch();
	ck_assert_uint_eq(memory->userfault[0] & ALL, ALL & ~(1UL << 3));
	msg.arg.remove.start = (uintptr_t)host + 3 * PAGE;
	msg.arg.remove.end = (uintptr_t)host + 4 * PAGE;
	fake_message(all->mapping[0]->uffd->fd, &msg);
	bed_dispatch();
	ck_assert_uint_eq(memory->userfault[0] & ALL, ALL);
	bed_end_service();
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

/* ---- a bit that is not as it should be, and whoever is late ---- */

TEST(userfault, a_bit_without_need_costs_an_exit)
{
	touch(2);
	atomic_fetch_or(&bed.memory->userfault[0], 1UL << 2);
	ck_assert_int_eq(touch(2), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bits(), ALL & ~(1UL << 2));
	ck_assert_uint_eq(bed.reads, 1);
}

/* What happens right after somebody has looked at a state. */
static void (*_Atomic meanwhile)(void);
BED_WRAPPED(kvmfault__page_accessible);

bool __wrap_kvmfault__page_accessible(const struct kvmfault_memory *memory,
				   uint64_t page)
{
	bool settled = __real_kvmfault__page_accessible(memory, page);
	void (*now)(void) = atomic_exchange(&meanwhile, NULL);

	if (now)
		now();
	return settled;
}

static void it_is_discarded(void)
{
	ck_assert_int_eq(discard(2, 1), 0);
}

static void it_comes(void)
{
	ck_assert_int_eq(bed_resolve(KVMFAULT_KIND_EXIT, 2, false).action,
			 KVMFAULT_ACTION_RETRY);
}

TEST(userfault, who_is_late_looks_again)
{
	it_comes();
	meanwhile = it_is_discarded;
	kvmfault__userfault_follow(bed.memory, 2, 1);
	ck_assert_uint_eq(bits(), ALL);
	meanwhile = it_comes;
	kvmfault__userfault_follow(bed.memory, 2, 1);
	ck_assert_uint_eq(bits(), ALL & ~(1UL << 2));
}

#define THREADS 4
#define TURNS 20000

/* Each change with its follower, by many at once: the last state wins. */
static void *changes(void *arg)
{
	uint64_t state = (uintptr_t)arg * 2 + 1;
	int i;

	for (i = 0; i < TURNS; i++) {
		uint64_t page;
		enum kvmfault__state from, to;

		state = state * 6364136223846793005ULL + 1442695040888963407ULL;
		page = state >> 60;
		from = state >> 32 & 1 ? KVMFAULT__PRESENT : KVMFAULT__DISCARDED;
		to = state >> 32 & 1 ? KVMFAULT__DISCARDED : KVMFAULT__PRESENT;
		kvmfault__page_change(bed.memory, page, from, to);
		kvmfault__userfault_follow(bed.memory, page, 1);
	}
	return NULL;
}

TEST(userfault, the_last_state_wins)
{
	pthread_t thread[THREADS];
	uint64_t page;
	uintptr_t i;

	for (page = 0; page < BED_PAGES; page++)
		kvmfault__page_change(bed.memory, page, KVMFAULT__ABSENT,
				      KVMFAULT__DISCARDED);
	for (i = 0; i < THREADS; i++)
		pthread_create(&thread[i], NULL, changes, (void *)i);
	for (i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	for (page = 0; page < BED_PAGES; page++)
		ck_assert_int_eq(bit(page),
				 bed_state(page) == KVMFAULT__DISCARDED);
}

/* ---- huge pages ---- */

#define HUGE (2ULL << 20)

TEST(userfault, a_huge_page_has_many)
{
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.length = 2 * HUGE,
		.page_size = HUGE,
		.source = &source,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .length = 2 * HUGE, .gpa = 1ULL << 30,
	};
	struct kvmfault_memory *memory;
	unsigned int i;

	options.fd = fake_memory(options.length, HUGE, &options.host);
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory), 0);
	region.memory = memory;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	ck_assert_int_eq(bed_exit(region.gpa + HUGE + 5 * PAGE, USERFAULT),
			 KVMFAULT_ACTION_RETRY);
	for (i = 0; i < 16; i++)
		ck_assert_uint_eq(memory->userfault[i], i < 8 ? ~0UL : 0);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, region.gpa), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

/* ---- flags of exits ---- */

static uint64_t asked_flags;
static enum kvmfault_access asked_access;

static int own(void *data, struct kvmfault_request *request)
{
	(void)data;
	asked_flags = request->fault->flags;
	asked_access = request->fault->access;
	return KVMFAULT_VERDICT_DECLINED;
}

static void up_own(enum kvmfault__kernel_exit which)
{
	bed_vm();
	bed.vm->how.kernel_exit = which;
	bed_own_resolver(own);
	bed_add();
	asked_flags = UINT64_MAX;
}

/* Nobody has to name what the delivery itself says; all else, as ever. */
static const struct {
	enum kvmfault__kernel_exit mode;
	uint64_t flags;
	bool understood;
	enum kvmfault_access access;
} exits[] = {
	{ KVMFAULT__KERNEL_EXIT_NONE, 0, true, KVMFAULT_ACCESS_UNKNOWN },
	{ KVMFAULT__KERNEL_EXIT_NONE, READ, false, 0 },
	{ KVMFAULT__KERNEL_EXIT_NONE, WRITE, false, 0 },
	{ KVMFAULT__KERNEL_EXIT_NONE, EXEC, false, 0 },
	{ KVMFAULT__KERNEL_EXIT_NONE, USERFAULT, false, 0 },
	{ KVMFAULT__KERNEL_EXIT_USERFAULT, 0, true, KVMFAULT_ACCESS_UNKNOWN },
	{ KVMFAULT__KERNEL_EXIT_USERFAULT, USERFAULT, true,
	  KVMFAULT_ACCESS_UNKNOWN },
	{ KVMFAULT__KERNEL_EXIT_USERFAULT, USERFAULT | READ, false, 0 },
	{ KVMFAULT__KERNEL_EXIT_USERFAULT, USERFAULT | 1 << 5, false, 0 },
	{ KVMFAULT__KERNEL_EXIT_ON_MISSING, READ, true, KVMFAULT_ACCESS_READ },
	{ KVMFAULT__KERNEL_EXIT_ON_MISSING, WRITE, true,
	  KVMFAULT_ACCESS_WRITE },
	{ KVMFAULT__KERNEL_EXIT_ON_MISSING, EXEC, true, KVMFAULT_ACCESS_EXEC },
	{ KVMFAULT__KERNEL_EXIT_ON_MISSING, READ | USERFAULT, false, 0 },
	{ KVMFAULT__KERNEL_EXIT_ON_MISSING, READ | 1ULL << 63, false, 0 },
};
#define EXITS ((int)(sizeof(exits) / sizeof(*exits)))

TEST_EACH(ask, flags_of_an_exit, EXITS)
{
	enum kvmfault_action action;

	up_own(exits[_i].mode);
	action = bed_exit(gpa(1), exits[_i].flags);
	if (exits[_i].understood) {
		ck_assert_int_eq(action, KVMFAULT_ACTION_RETRY);
		ck_assert_int_eq(bed_state(1), KVMFAULT__PRESENT);
		ck_assert_uint_eq(asked_flags, exits[_i].flags);
		ck_assert_int_eq(asked_access, exits[_i].access);
	} else {
		expect_unresolved(KVMFAULT_REASON_FLAGS);
		ck_assert_int_eq(bed_state(1), KVMFAULT__ABSENT);
		ck_assert_uint_eq(asked_flags, UINT64_MAX);
	}
	bed_down();
}

/* The private page is not what the bit is of. */
TEST(ask, flags_of_a_private_access)
{
	up_own(KVMFAULT__KERNEL_EXIT_USERFAULT);
	ck_assert_int_eq(bed_exit(gpa(1), USERFAULT | 1 << 3),
			 KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(bed_state(1), KVMFAULT__ABSENT);
	bed_down();
}

TEST_GROUP(exit_on_missing, up_missing, bed_down);

/* A message has the same bits for other things. */
TEST(exit_on_missing, flags_of_a_message)
{
	struct kvmfault_fault fault = {
		.size = sizeof(fault),
		.kind = KVMFAULT_KIND_UFFD,
		.known = KVMFAULT_KNOWN_HVA,
		.length = PAGE,
		.flags = UFFD_PAGEFAULT_FLAG_WP,
	};
	struct kvmfault__target place = { .memory = bed.memory };
	struct kvmfault__answer answer;

	kvmfault__resolve(bed.seat, &fault, &place, &answer);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_FLAGS);
}

/* KVM wants one that can be written, or it exits for ever. */
TEST(exit_on_missing, a_read_of_what_is_not_mapped)
{
	ck_assert_int_eq(bed_exit(gpa(1), READ), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_exit(gpa(1), READ), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(fake_count(FAKE_MADVISE,
				     KVMFAULT__MADV_POPULATE_WRITE), 1);
	/* The mapping can only be read: that would not do. */
	fake_push(FAKE_MADVISE, -EINVAL);
	ck_assert_int_eq(bed_exit(gpa(1), EXEC), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_uint_eq(fake_count(FAKE_MADVISE,
				     KVMFAULT__MADV_POPULATE_READ), 0);
	fake_push(FAKE_MADVISE, -EINVAL);
	ck_assert_int_eq(bed_exit(gpa(1), WRITE), KVMFAULT_ACTION_UNRESOLVED);
}

/* ---- memslots ---- */

static struct kvmfault_memslot memslot(uint64_t at)
{
	struct kvmfault_memslot memslot = { .size = sizeof(memslot) };

	ck_assert_int_eq(kvmfault_region_memslot(bed.vm, 0, at, &memslot), 0);
	return memslot;
}

static void expect_memslot(uint64_t at, uint32_t flags,
			   const _Atomic uint64_t *bitmap)
{
	struct kvmfault_memslot got = memslot(at);

	ck_assert_uint_eq(got.flags, flags);
	ck_assert_uint_eq(got.userfault_bitmap, (uintptr_t)bitmap);
}

TEST(userfault, memslot_with_a_bitmap)
{
	expect_memslot(BED_GPA, 1 << 3, bed.memory->userfault);
	kvmfault__userfault_leave(bed.memory);
	expect_memslot(BED_GPA, 0, NULL);
	kvmfault__userfault_enter(bed.memory);
	expect_memslot(BED_GPA, 1 << 3, bed.memory->userfault);
}

TEST(exit_on_missing, memslot_that_exits_on_missing)
{
	ck_assert_ptr_null(bed.memory->userfault);
	expect_memslot(BED_GPA, 1 << 3, NULL);
	kvmfault__userfault_leave(bed.memory);
	expect_memslot(BED_GPA, 0, NULL);
	kvmfault__userfault_enter(bed.memory);
	expect_memslot(BED_GPA, 1 << 3, NULL);
}

TEST(any_kernel, memslot_of_any_kernel)
{
	expect_memslot(BED_GPA, 0, NULL);
}

TEST(userfault, memslot_is_not_known)
{
	struct kvmfault_memslot memslot = { .size = sizeof(memslot) };

	ck_assert_int_eq(kvmfault_region_memslot(NULL, 0, BED_GPA, &memslot),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_region_memslot(bed.vm, 0, BED_GPA, NULL),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_region_memslot(bed.vm, 0, gpa(1), &memslot),
			 -ENOENT);
	ck_assert_int_eq(kvmfault_region_memslot(bed.vm, 1, BED_GPA, &memslot),
			 -ENOENT);
	memslot.size = 0;
	ck_assert_int_eq(kvmfault_region_memslot(bed.vm, 0, BED_GPA, &memslot),
			 -EINVAL);
}

TEST(userfault, memslot_without_memory_for_a_seat)
{
	struct kvmfault_memslot memslot = { .size = sizeof(memslot) };

	bed_take_seats();
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(kvmfault_region_memslot(bed.vm, 0, BED_GPA, &memslot),
			 -ENOMEM);
	bed_give_seats();
}

#define MANY (130 * PAGE)
#define FIRST (1ULL << 30)
#define SECOND (2ULL << 30)

/* A memory of its own, with a region from this page on, and its end. */
static struct kvmfault_memory *memory_with_region(uint64_t page, uint32_t flags,
						  int guest_memfd, bool tracked)
{
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.length = MANY,
		.source = tracked ? &source : NULL,
	};
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = FIRST,
		.length = MANY - page * PAGE,
		.offset = page * PAGE,
		.flags = flags,
		.guest_memfd = guest_memfd,
	};
	struct kvmfault_memory *memory;

	options.fd = fake_memory(MANY, 0, &options.host);
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory), 0);
	region.memory = memory;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	return memory;
}

static void drop(struct kvmfault_memory *memory)
{
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, FIRST), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

TEST(userfault, memslot_in_the_middle_of_a_memory)
{
	struct kvmfault_memory *memory;

	memory = memory_with_region(64, 0, 0, true);
	expect_memslot(FIRST, 1 << 3, &memory->userfault[1]);
	/* The last long is whole. */
	ck_assert_uint_eq(memory->userfault[2], ~0UL);
	ck_assert_int_eq(bed_exit(FIRST + 65 * PAGE, USERFAULT),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(memory->userfault[2], ~2UL);
	drop(memory);
	/* Its bits begin within a long: then by userfaultfd. */
	memory = memory_with_region(65, 0, 0, true);
	expect_memslot(FIRST, 0, NULL);
	drop(memory);
}

TEST(userfault, memslots_that_have_none)
{
	struct kvmfault_memory *memory;

	memory = memory_with_region(0, 0, 0, false);
	expect_memslot(FIRST, 0, NULL);
	/* Nor does it begin to. */
	kvmfault__userfault_enter(memory);
	expect_memslot(FIRST, 0, NULL);
	drop(memory);
	memory = memory_with_region(0, 0, fake_fd(FAKE_FILE), true);
	expect_memslot(FIRST, 0, NULL);
	drop(memory);
}
TEST_ALSO(exit_on_missing, memslots_that_have_none);

TEST(userfault, memslot_of_a_rom)
{
	struct kvmfault_memory *memory;

	memory = memory_with_region(0, KVMFAULT_REGION_READONLY, 0, true);
	expect_memslot(FIRST, memory->userfault ? 1 << 3 : 0,
		       memory->userfault);
	drop(memory);
}
TEST_ALSO(exit_on_missing, memslot_of_a_rom);

TEST(userfault, memslot_of_an_older_caller)
{
	struct {
		struct kvmfault_memslot known;
		uint64_t newer;
	} longer = { .known.size = sizeof(longer), .newer = 1 };
	struct kvmfault_memslot shorter = {
		.size = offsetof(struct kvmfault_memslot, userfault_bitmap),
		.userfault_bitmap = 5,
	};

	ck_assert_int_eq(kvmfault_region_memslot(bed.vm, 0, BED_GPA, &shorter),
			 0);
	ck_assert_uint_eq(shorter.flags, 1 << 3);
	ck_assert_uint_eq(shorter.userfault_bitmap, 5);
	ck_assert_int_eq(kvmfault_region_memslot(bed.vm, 0, BED_GPA,
						 &longer.known), 0);
	ck_assert_uint_eq(longer.newer, 0);
}

/* ---- leave and enter ---- */

TEST(userfault, left_and_entered_again)
{
	touch(2);
	touch(3);
	touch(4);
	ck_assert_int_eq(discard(3, 1), 0);
	kvmfault__userfault_leave(bed.memory);
	ck_assert_uint_eq(bits(), 0);
	/* By messages now, and by a late exit all the same. */
	ck_assert_int_eq(discard(4, 1), 0);
	ck_assert_int_eq(bed_resolve(KVMFAULT_KIND_UFFD, 5, true).action,
			 KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(touch(6), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bits(), 0);
	kvmfault__userfault_enter(bed.memory);
	ck_assert_uint_eq(bits(), ALL & ~(1UL << 2 | 3UL << 5));
}

TEST(userfault, no_memory_for_the_bitmap)
{
	struct kvmfault_memory *memory;
	void *host;
	int fd;

	/* The states, then the bitmap. */
	fake_push(FAKE_MMAP, FAKE_MODEL);
	fake_push(FAKE_MMAP, -ENOMEM);
	ck_assert_int_eq(bed_memory(&memory, &fd, &host), -ENOMEM);
	ck_assert_ptr_null(memory);
}

int main(void)
{
	return run_suite("userfault");
}
