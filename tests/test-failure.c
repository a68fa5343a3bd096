/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * failure.c: memory that failed, here or at the source, and markers that only
 * look like it.
 */

#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "bed.h"
#include "sigbus.h"

static struct kvmfault_failure told;
static struct kvmfault_fault told_fault;
static unsigned int tells;
static int tell_result;

static int on_failed(void *data, const struct kvmfault_failure *failure)
{
	ck_assert_ptr_eq(data, &tells);
	tells++;
	told = *failure;
	told_fault = *failure->fault;
	return tell_result;
}

static void up(void)
{
	bed_vm();
	bed.vm->ops.failed = on_failed;
	bed.vm->options.data = &tells;
	bed_add();
}

/* The vCPU's thread touched page in the memslots' mapping. */
static enum kvmfault_action touched(uint64_t page)
{
	siginfo_t info = sigbus_info(bed_page(page) + 100, BUS_MCEERR_AR, 12);

	return bed_handle_sigbus(&info);
}

static const struct kvmfault_result *result(void)
{
	return kvmfault_vcpu_result(bed.vcpu);
}

static void fetch(uint64_t page)
{
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA + page * PAGE, 1,
					 false), 0);
}

/* What the kernel says of a page that has failed. */
static void populate_says(int err)
{
	fake_push(FAKE_MADVISE, err);
}

TEST_GROUP(here, up, bed_down);

TEST(here, present_page_failed)
{
	fetch(3);
	populate_says(-EHWPOISON);
	ck_assert_int_eq(touched(3), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(3), KVMFAULT__POISONED);
	ck_assert_uint_eq(tells, 1);
	ck_assert_ptr_eq(told.vcpu, bed.vcpu);
	ck_assert_ptr_eq(told.memory, bed.memory);
	ck_assert_uint_eq(told.offset, 3 * PAGE);
	ck_assert_uint_eq(told.length, PAGE);
	ck_assert_int_eq(told_fault.kind, KVMFAULT_KIND_MARKER);
	ck_assert_uint_ne(told_fault.known & KVMFAULT_KNOWN_GPA, 0);
	ck_assert_uint_eq(told_fault.gpa, BED_GPA + 3 * PAGE);
	ck_assert_int_eq(told_fault.error, EHWPOISON);
}

/* A slot that has no region: said once, and the page is served all the same. */
TEST(here, where_no_region_is)
{
	fetch(3);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	populate_says(0);
	ck_assert_int_eq(touched(3), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_ptr_nonnull(strstr(bed.log, "no region shows that"));
	populate_says(0);
	ck_assert_int_eq(touched(3), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.logs, 1);
}

/* A guest that does not mind being told: it ends, and says why. */
TEST(here, told_and_touched_again)
{
	uint32_t i, budget = bed.vm->options.retry_budget;

	fetch(3);
	populate_says(-EHWPOISON);
	for (i = 0; i < budget; i++)	/* the first is another page */
		ck_assert_int_eq(touched(3), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(tells, budget);
	ck_assert_int_eq(touched(3), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_HWPOISON);
	ck_assert_int_eq(result()->error, -EHWPOISON);
}

TEST(here, vmm_can_not_tell)
{
	fetch(3);
	populate_says(-EHWPOISON);
	tell_result = -EIO;
	ck_assert_int_eq(touched(3), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_HWPOISON);
	ck_assert_int_eq(result()->error, -EHWPOISON);
	ck_assert_uint_eq(result()->fault->gpa, BED_GPA + 3 * PAGE);
	bed.vm->ops.failed = NULL;
	ck_assert_int_eq(touched(3), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_HWPOISON);
}

/* Fetched by somebody else since the signal was sent. */
TEST(here, late_signal_of_a_marker)
{
	fetch(3);
	ck_assert_int_eq(touched(3), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_uint_eq(tells, 0);
	ck_assert_uint_eq(fake_count(FAKE_MADVISE,
				     KVMFAULT__MADV_POPULATE_READ), 1);
}

TEST(here, marker_is_fetched)
{
	ck_assert_int_eq(touched(3), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(tells, 0);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_uint_eq(bed_stats().kind[KVMFAULT_KIND_MARKER], 1);
	ck_assert_str_eq(result()->resolver, "copy");
	bed.source_result = -EIO;
	ck_assert_int_eq(touched(4), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_SOURCE);
}

TEST(here, not_ours)
{
	siginfo_t info = sigbus_info(bed_page(3), BUS_ADRERR, 12);

	ck_assert_int_eq(bed_handle_sigbus(&info),
			 KVMFAULT_ACTION_NOT_A_FAULT);
	info = sigbus_info(&info, BUS_MCEERR_AR, 12);
	ck_assert_int_eq(bed_handle_sigbus(&info),
			 KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_int_eq(bed_handle_sigbus(NULL),
			 KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_int_eq(kvmfault_vcpu_handle_sigbus(NULL, &info),
			 KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_uint_eq(tells, 0);
}

TEST(here, several_pages_failed)
{
	siginfo_t info;
	uint64_t page = 4;

	/* Failures are aligned to their size. */
	while ((uintptr_t)bed_page(page) % (4 * PAGE))
		page++;
	fetch(page);
	fetch(page + 1);
	fetch(page + 3);
	fetch(page + 4);
	info = sigbus_info(bed_page(page), BUS_MCEERR_AO, 14);
	ck_assert_int_eq(kvmfault_vm_handle_sigbus(bed.vm, &info), 0);
	ck_assert_ptr_null(told.vcpu);
	ck_assert_int_eq(bed_state(page), KVMFAULT__POISONED);
	ck_assert_int_eq(bed_state(page + 1), KVMFAULT__POISONED);
	ck_assert_int_eq(bed_state(page + 2), KVMFAULT__ABSENT);
	ck_assert_int_eq(bed_state(page + 3), KVMFAULT__POISONED);
	ck_assert_int_eq(bed_state(page + 4), KVMFAULT__PRESENT);
}

TEST(here, another_thread)
{
	siginfo_t info = sigbus_info(bed_page(3), BUS_MCEERR_AO, 12);
	siginfo_t stack = sigbus_info(&info, BUS_MCEERR_AO, 12);
	siginfo_t other = sigbus_info(bed_page(3), BUS_ADRERR, 12);
	struct kvmfault__seat *spare;

	fetch(3);
	ck_assert_int_eq(kvmfault_vm_handle_sigbus(NULL, &info), -EINVAL);
	ck_assert_int_eq(kvmfault_vm_handle_sigbus(bed.vm, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_vm_handle_sigbus(bed.vm, &stack), -ENOENT);
	ck_assert_int_eq(kvmfault_vm_handle_sigbus(bed.vm, &other), -ENOENT);
	spare = kvmfault__seat_take(bed.vm);	/* what fetch() has left */
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(kvmfault_vm_handle_sigbus(bed.vm, &info), -ENOMEM);
	kvmfault__seat_give(spare);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_int_eq(kvmfault_vm_handle_sigbus(bed.vm, &info), 0);
	ck_assert_uint_eq(tells, 1);
	tell_result = -EIO;
	ck_assert_int_eq(kvmfault_vm_handle_sigbus(bed.vm, &info), -EHWPOISON);
	/* A marker in the VMM's way is fetched. */
	info = sigbus_info(bed_page(5), BUS_MCEERR_AR, 12);
	ck_assert_int_eq(kvmfault_vm_handle_sigbus(bed.vm, &info), 0);
	ck_assert(bed_has(5, bed_byte(5)));
	bed.source_result = -EIO;
	info = sigbus_info(bed_page(6), BUS_MCEERR_AR, 12);
	ck_assert_int_eq(kvmfault_vm_handle_sigbus(bed.vm, &info), -EIO);
}

TEST(here, no_region_shows_it)
{
	fetch(3);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	populate_says(-EHWPOISON);
	ck_assert_int_eq(touched(3), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(tells, 1);
	ck_assert_uint_eq(told_fault.known & KVMFAULT_KNOWN_GPA, 0);
	ck_assert_uint_eq(told.offset, 3 * PAGE);
}

/* Of several regions that show the page one is known at once, also when it is
 * not the one that was. */
TEST(here, the_region_that_is_known_goes)
{
	struct kvmfault_region second = {
		.size = sizeof(second), .gpa = 2 * BED_GPA,
		.length = BED_PAGES * PAGE, .memory = bed.memory,
	};
	const struct kvmfault__region *known;

	ck_assert_int_eq(kvmfault_region_add(bed.vm, &second), 0);
	known = atomic_load(&bed.memory->shown);
	ck_assert_uint_eq(known->info.gpa, 2 * BED_GPA);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, 2 * BED_GPA), 0);
	known = atomic_load(&bed.memory->shown);
	ck_assert_uint_eq(known->info.gpa, BED_GPA);
	ck_assert_int_eq(touched(3), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	ck_assert_ptr_null(atomic_load(&bed.memory->shown));
	second.gpa = BED_GPA;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &second), 0);
}

TEST(here, memory_without_a_source)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = 4 * PAGE,
	};
	struct kvmfault_memory *memory;
	void *host;
	siginfo_t info;

	options.fd = fake_memory(options.length, 0, &host);
	options.host = host;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory), 0);
	info = sigbus_info((char *)host + PAGE, BUS_MCEERR_AR, 12);
	ck_assert_int_eq(bed_handle_sigbus(&info),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(tells, 0);
	populate_says(-EHWPOISON);
	ck_assert_int_eq(bed_handle_sigbus(&info),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(tells, 1);
	ck_assert_ptr_eq(told.memory, memory);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

/* ---- a page that is known to be poisoned ---- */

static void poison_at_source(uint64_t page)
{
	bed.source_result = -EHWPOISON;
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA + page * PAGE, 1,
					 false), -EHWPOISON);
	bed.source_result = 0;
}

TEST(here, source_says_poisoned)
{
	poison_at_source(3);
	ck_assert_int_eq(bed_state(3), KVMFAULT__POISONED);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, KVMFAULT__UFFDIO_POISON), 1);
	ck_assert_uint_eq(fake_nth(FAKE_IOCTL, KVMFAULT__UFFDIO_POISON, 0)->at,
			  (uintptr_t)bed_page(3));
	ck_assert_uint_eq(tells, 0);	/* an ensure() has its errno */
	/* A vCPU that touches it: */
	ck_assert_int_eq(bed_exit(BED_GPA + 3 * PAGE, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(tells, 1);
	ck_assert_int_eq(touched(3), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(tells, 2);
	ck_assert_uint_eq(bed.reads, 1);
}

TEST(here, sleeper_gets_its_sigbus)
{
	struct kvmfault__answer answer;

	bed.source_result = -EHWPOISON;
	answer = bed_resolve(KVMFAULT_KIND_UFFD, 3, true);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(answer.error, 0);
	ck_assert_int_eq(bed_state(3), KVMFAULT__POISONED);
	/* Another one, by a mapping without the marker. */
	answer = bed_resolve(KVMFAULT_KIND_UFFD, 3, true);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, KVMFAULT__UFFDIO_POISON), 2);
	ck_assert_uint_eq(tells, 0);
	/* It stays asleep rather than read anything else. */
	fake_push(FAKE_IOCTL, -EAGAIN);
	answer = bed_resolve(KVMFAULT_KIND_UFFD, 3, true);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.error, -EAGAIN);
}

TEST(here, marker_was_there)
{
	bed.source_result = -EHWPOISON;
	fake_push(FAKE_IOCTL, -EEXIST);
	ck_assert_int_eq(bed_resolve(KVMFAULT_KIND_UFFD, 3, true).action,
			 KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(3), KVMFAULT__POISONED);
	ck_assert_uint_ge(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
}

TEST(here, kernel_without_poison)
{
	fake_push(FAKE_IOCTL, -ENOTTY);
	bed.source_result = -EHWPOISON;
	ck_assert_int_eq(bed_exit(BED_GPA + 3 * PAGE, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(result()->error, -EHWPOISON);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

TEST(here, vcpu_is_told_at_once)
{
	bed.source_result = -EHWPOISON;
	ck_assert_int_eq(bed_exit(BED_GPA + 3 * PAGE, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(tells, 1);
	ck_assert_uint_eq(told_fault.gpa, BED_GPA + 3 * PAGE);
}

/* Its bytes are not to be touched: the guest was told, and gets none. */
TEST(here, mmio_in_a_lost_page)
{
	bed.source_result = -EHWPOISON;
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA + 3 * PAGE, 1,
					 false), -EHWPOISON);
	ck_assert_int_eq(bed_state(3), KVMFAULT__POISONED);
	ck_assert_int_eq(mprotect(bed_page(3), PAGE, PROT_NONE), 0);
	memset(bed.run->mmio.data, 0, 8);
	ck_assert_int_eq(bed_mmio(BED_GPA + 3 * PAGE, 4, false),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.run->mmio.data[3], 0xff);
	ck_assert_uint_eq(bed.run->mmio.data[4], 0);
	ck_assert_int_eq(bed_mmio(BED_GPA + 3 * PAGE, 4, true),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(tells, 2);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_MMIO], 0);
	ck_assert_int_eq(mprotect(bed_page(3), PAGE, PROT_READ | PROT_WRITE),
			 0);
}

TEST(here, discard_makes_it_memory_again)
{
	poison_at_source(3);
	fake_push(FAKE_MADVISE, -ENOMEM);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA + 3 * PAGE, PAGE),
			 -ENOMEM);
	ck_assert_int_eq(bed_state(3), KVMFAULT__POISONED);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA + 3 * PAGE, PAGE),
			 0);
	/* Punching leaves markers in the mappings. */
	ck_assert_uint_eq(fake_count(FAKE_MADVISE, MADV_DONTNEED), 2);
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
	fetch(3);
	ck_assert(bed_has(3, 0));
}

static void discard_it(void)
{
	kvmfault__page_discard(bed.memory, 3);
}

TEST(here, discard_while_it_is_poisoned)
{
	bed.during_read = discard_it;
	bed.source_result = -EHWPOISON;
	kvmfault_ensure(bed.vm, 0, BED_GPA + 3 * PAGE, 1, false);
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
	ck_assert_uint_eq(fake_count(FAKE_MADVISE, MADV_DONTNEED), 1);
}

/* ---- by a resolver of the VMM's ---- */

static int request_error, install_error;
static bool install_too;

static int poison_run(void *data, struct kvmfault_request *request)
{
	(void)data;
	kvmfault_request_widen(request);
	request_error = kvmfault_request_poison(request);
	if (!install_too)
		return request_error ? request_error : -EHWPOISON;
	install_error = kvmfault_request_install(request, request->buffer);
	return KVMFAULT_VERDICT_DECLINED;
}

static void up_own(void)
{
	bed_vm();
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed_own_resolver(poison_run);
	bed_add();
}

TEST_GROUP(own, up_own, bed_down);

TEST(own, neighbours_are_not_poisoned)
{
	ck_assert_int_eq(bed_exit(BED_GPA + 3 * PAGE, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_HWPOISON);
	ck_assert_str_eq(result()->resolver, "own");
	ck_assert_int_eq(bed_state(3), KVMFAULT__POISONED);
	ck_assert_int_eq(bed_state(2), KVMFAULT__ABSENT);
	ck_assert_int_eq(bed_state(4), KVMFAULT__ABSENT);
}

/* No resolver brings what another one has given up. */
TEST(own, poisoned_is_the_last_word)
{
	install_too = true;
	ck_assert_int_eq(bed_exit(BED_GPA + 3 * PAGE, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(install_error, -EINVAL);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_HWPOISON);
	ck_assert_int_eq(bed_state(3), KVMFAULT__POISONED);
	ck_assert_uint_eq(bed.reads, 0);
}

TEST_EACH(own, says_what_the_kernel_said, 2)
{
	static const int errors[] = { -EAGAIN, -ENOMEM };

	fake_push(FAKE_IOCTL, errors[_i]);
	bed_exit(BED_GPA + 3 * PAGE, 0);
	ck_assert_int_eq(request_error, errors[_i]);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

TEST(own, nothing_claimed)
{
	ck_assert_int_eq(kvmfault_request_poison(NULL), -EINVAL);
	kvmfault__page_change(bed.memory, 3, KVMFAULT__ABSENT,
			      KVMFAULT__PRESENT);
	bed_exit(BED_GPA + 3 * PAGE, 0);
	ck_assert_int_eq(request_error, -EINVAL);
}

int main(void)
{
	return run_suite("failure");
}
