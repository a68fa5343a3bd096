/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * vcpu.c: the call after KVM_RUN, and the guard that bounds every retry. The
 * guard's pauses are futex waits; here they end at once and are looked at.
 */

#include <signal.h>
#include <string.h>

#include "bed.h"
#include "sigbus.h"

static void up(void)
{
	bed_up();
	fake_on(FAKE_FUTEX_WAIT, bed_no_pause);
}

static const struct kvmfault_result *result(void)
{
	return kvmfault_vcpu_result(bed.vcpu);
}

static int interrupt(void)
{
	bed.run->exit_reason = KVM_EXIT_INTR;
	return bed_handle(-1, EINTR);
}

TEST_GROUP(handle, up, bed_down);

TEST(handle, new_vcpu)
{
	struct kvmfault_vcpu_options options = {
		.size = sizeof(options), .fd = fake_fd(FAKE_KVM),
	};
	struct kvmfault_vcpu *vcpu = (void *)1;

	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &options, &vcpu), -EINVAL);
	ck_assert_ptr_null(vcpu);
	options.run = bed.run;
	ck_assert_int_eq(kvmfault_vcpu_new(NULL, &options, &vcpu), -EINVAL);
	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, NULL, &vcpu), -EINVAL);
	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &options, NULL), -EINVAL);
	options.fd = 0;
	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &options, &vcpu), -EINVAL);
	options.fd = 7777;
	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &options, &vcpu), -EBADF);
	kvmfault_vcpu_free(NULL);
	ck_assert_int_eq(kvmfault_vm_free(bed.vm), -EBUSY);
}

TEST(handle, new_vcpu_unknown_tail)
{
	struct {
		struct kvmfault_vcpu_options options;
		uint64_t tail;
	} caller = {
		.options = { .size = sizeof(caller), .run = bed.run,
			     .fd = fake_fd(FAKE_KVM) },
		.tail = 1,
	};
	struct kvmfault_vcpu *vcpu = (void *)1;

	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &caller.options, &vcpu),
			 -E2BIG);
	ck_assert_ptr_null(vcpu);
	caller.tail = 0;
	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &caller.options, &vcpu), 0);
	kvmfault_vcpu_free(vcpu);
}

TEST(handle, null_vcpu)
{
	ck_assert_int_eq(kvmfault_vcpu_handle(NULL, 0, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_ptr_null(kvmfault_vcpu_result(NULL));
}

TEST(handle, not_a_fault)
{
	bed_exit(BED_GPA, 1ULL << 40);	/* the last result said much */
	ck_assert_int_eq(bed_other(), KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_int_eq(result()->action, KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_NONE);
	ck_assert_int_eq(result()->error, 0);
	ck_assert_ptr_null(result()->resolver);
	ck_assert(!result()->unfinished);
	ck_assert_int_eq(result()->fault->kind, KVMFAULT_KIND_NONE);
	ck_assert_uint_eq(result()->size, sizeof(struct kvmfault_result));
}

TEST(handle, not_a_fault_costs_no_call)
{
	bed_other();
	fake_forget();
	bed_other();
	ck_assert_ptr_null(fake_nth(FAKE_IOCTL, FAKE_ANY, 0));
	ck_assert_ptr_null(fake_nth(FAKE_MADVISE, FAKE_ANY, 0));
	ck_assert_ptr_null(fake_nth(FAKE_FUTEX_WAIT, FAKE_ANY, 0));
	ck_assert_ptr_null(fake_nth(FAKE_ALLOC, FAKE_ANY, 0));
}

TEST_EACH(handle, other_errors_are_the_vmms, 5)
{
	static const int errors[] = { EAGAIN, ENOMEM, EIO, EINVAL, ENOEXEC };

	/* 39 was left there: it is stale, and stays for arm64 to look at. */
	bed.run->exit_reason = KVMFAULT__EXIT_MEMORY_FAULT;
	ck_assert_int_eq(bed_handle(-1, errors[_i]),
			 KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_uint_eq(bed.reads, 0);
}

TEST(handle, interrupted)
{
	ck_assert_int_eq(interrupt(), KVMFAULT_ACTION_INTERRUPTED);
	ck_assert_int_eq(result()->action, KVMFAULT_ACTION_INTERRUPTED);
	ck_assert(!result()->unfinished);
	/* A stale record changes nothing. */
	bed.run->exit_reason = KVMFAULT__EXIT_MEMORY_FAULT;
	ck_assert_int_eq(bed_handle(-1, EINTR),
			 KVMFAULT_ACTION_INTERRUPTED);
	ck_assert_uint_eq(bed.reads, 0);
}

TEST(handle, exit_is_resolved)
{
	ck_assert_int_eq(bed_exit(BED_GPA + 2 * PAGE + 5, 0), KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(2, bed_byte(2)));
	ck_assert_str_eq(result()->resolver, "copy");
	ck_assert_int_eq(result()->fault->kind, KVMFAULT_KIND_EXIT);
	ck_assert_uint_eq(result()->fault->gpa, BED_GPA + 2 * PAGE);
	/* Used up: a later EFAULT must not be taken for this one. */
	ck_assert_uint_eq(bed.run->exit_reason, KVM_EXIT_UNKNOWN);
	ck_assert_uint_eq(bed_stats().kind[KVMFAULT_KIND_EXIT], 1);
	ck_assert_uint_eq(bed_stats().latency[0], 1);
}

TEST(handle, exit_is_unresolved)
{
	ck_assert_int_eq(bed_exit(BED_GPA, 1ULL << 40), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_FLAGS);
	ck_assert_uint_eq(result()->fault->flags, 1ULL << 40);
	ck_assert_int_eq(bed_exit(0, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_NO_REGION);
	ck_assert_uint_eq(bed_stats().unresolved, 2);
	bed.source_result = -EIO;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(result()->error, -EIO);
}

TEST(handle, mmio_exit_reason_stays)
{
	/* arm64 reads it on entry to finish the access. */
	bed_mmio(0, 4, false);
	ck_assert_uint_eq(bed.run->exit_reason, KVM_EXIT_MMIO);
}

TEST(handle, poison_without_an_address)
{
	bed.run->exit_reason = KVM_EXIT_UNKNOWN;
	ck_assert_int_eq(bed_handle(-1, EHWPOISON),
			 KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_HWPOISON);
	ck_assert_int_eq(result()->error, -EHWPOISON);
}

/* ---- the history ---- */

static const struct kvmfault_event *past(uint32_t n)
{
	ck_assert_uint_lt(n, result()->history_count);
	return result()->history[n];
}

TEST_GROUP(history, up, bed_down);

TEST(history, history_begins_empty)
{
	ck_assert_uint_eq(result()->history_count, 0);
	bed_other();
	interrupt();
	ck_assert_uint_eq(result()->history_count, 0);
}

TEST(history, history_says_what_came_of_it)
{
	bed_exit(BED_GPA + 2 * PAGE, 0);
	bed_exit(BED_GPA + 3 * PAGE, 1ULL << 40);
	ck_assert_uint_eq(result()->history_count, 2);
	ck_assert_uint_eq(past(0)->size, sizeof(struct kvmfault_event));
	ck_assert_int_eq(past(0)->action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(past(0)->reason, KVMFAULT_REASON_FLAGS);
	ck_assert_int_eq(past(0)->error, -EOPNOTSUPP);
	ck_assert_ptr_null(past(0)->resolver);
	ck_assert_uint_eq(past(0)->fault->gpa, BED_GPA + 3 * PAGE);
	ck_assert_uint_eq(past(0)->fault->flags, 1ULL << 40);
	ck_assert_int_eq(past(1)->action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(past(1)->reason, KVMFAULT_REASON_NONE);
	ck_assert_int_eq(past(1)->error, 0);
	ck_assert_str_eq(past(1)->resolver, "copy");
	ck_assert_int_eq(past(1)->fault->kind, KVMFAULT_KIND_EXIT);
	ck_assert_uint_eq(past(1)->fault->gpa, BED_GPA + 2 * PAGE);
	ck_assert_uint_eq(past(1)->times, 1);
	/* An exit of another kind is no fault, and takes nothing away. */
	bed_other();
	ck_assert_uint_eq(result()->history_count, 2);
	ck_assert_uint_eq(past(1)->fault->gpa, BED_GPA + 2 * PAGE);
}

TEST(history, history_keeps_the_newest)
{
	uint32_t i;

	for (i = 0; i < 13; i++)
		bed_exit(BED_GPA + i * PAGE, 0);
	ck_assert_uint_eq(result()->history_count, KVMFAULT_HISTORY_COUNT);
	for (i = 0; i < KVMFAULT_HISTORY_COUNT; i++)
		ck_assert_uint_eq(past(i)->fault->gpa,
				  BED_GPA + (12 - i) * PAGE);
}

TEST(history, history_counts_a_storm_as_one)
{
	bed_exit(BED_GPA, 0);
	while (bed_bare() == KVMFAULT_ACTION_RETRY)
		;
	ck_assert_uint_eq(result()->history_count, 3);
	ck_assert_int_eq(past(0)->reason, KVMFAULT_REASON_NO_ADDRESS);
	ck_assert_uint_eq(past(0)->times, 1);
	ck_assert_int_eq(past(1)->action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(past(1)->fault->kind, KVMFAULT_KIND_UNANNOTATED);
	ck_assert_uint_eq(past(1)->times, 16);
	ck_assert_uint_eq(past(2)->fault->gpa, BED_GPA);
	/* Two that take turns are no storm of one. */
	bed_exit(BED_GPA, 0);
	bed_exit(BED_GPA + PAGE, 0);
	bed_exit(BED_GPA, 0);
	ck_assert_uint_eq(result()->history_count, 6);
}

/* ---- the guard ---- */

#define BUDGET 16

TEST_GROUP(guard, up, bed_down);

TEST(guard, bare_within_the_budget)
{
	unsigned int i;

	for (i = 0; i < BUDGET; i++)
		ck_assert_int_eq(bed_bare(), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_bare(), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_NO_ADDRESS);
	ck_assert_int_eq(result()->error, -EFAULT);
	ck_assert_int_eq(result()->fault->kind, KVMFAULT_KIND_UNANNOTATED);
}

TEST(guard, same_page_within_the_budget)
{
	unsigned int i;

	/* It comes: progress. Then it is there, and faults all the same. */
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	bed_other();
	for (i = 0; i < BUDGET; i++)
		ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_NO_PROGRESS);
	ck_assert_uint_eq(result()->fault->gpa, BED_GPA);
}

TEST(guard, pauses_grow)
{
	const struct kvmfault_fault *fault = result()->fault;
	uint64_t before = 0;
	size_t n;

	while (bed_bare() == KVMFAULT_ACTION_RETRY)
		;
	ck_assert_int_eq(fault->kind, KVMFAULT_KIND_UNANNOTATED);
	n = fake_count(FAKE_FUTEX_WAIT, 0);
	/* "From the third on with a pause." */
	ck_assert_uint_ge(n, BUDGET - 3);
	ck_assert_uint_le(n, BUDGET - 2);
	while (n--) {
		const struct fake_call *call =
			fake_nth(FAKE_FUTEX_WAIT, 0, n);

		ck_assert_uint_gt(call->length, 0);
		if (before)
			ck_assert_uint_le(call->length, before);
		before = call->length;
	}
}

TEST(guard, pause_ends_by_a_signal)
{
	unsigned int i;

	for (i = 0; i < 3; i++)
		ck_assert_int_eq(bed_bare(), KVMFAULT_ACTION_RETRY);
	fake_push(FAKE_FUTEX_WAIT, -EINTR);
	ck_assert_int_eq(bed_bare(), KVMFAULT_ACTION_INTERRUPTED);
	ck_assert(!result()->unfinished);
}

TEST(guard, pause_ends_by_immediate_exit)
{
	unsigned int i;

	for (i = 0; i < 3; i++)
		ck_assert_int_eq(bed_bare(), KVMFAULT_ACTION_RETRY);
	bed.run->immediate_exit = 1;
	ck_assert_int_eq(bed_bare(), KVMFAULT_ACTION_INTERRUPTED);
}

TEST(guard, another_exit_is_progress)
{
	unsigned int i;

	for (i = 0; i < 5 * BUDGET; i++) {
		ck_assert_int_eq(bed_bare(), KVMFAULT_ACTION_RETRY);
		if (i % 10 == 9)
			ck_assert_int_eq(bed_other(), KVMFAULT_ACTION_NOT_A_FAULT);
	}
}

TEST(guard, device_mmio_is_progress)
{
	unsigned int i;

	for (i = 0; i < 5 * BUDGET; i++) {
		ck_assert_int_eq(bed_bare(), KVMFAULT_ACTION_RETRY);
		if (i % 10 == 9)
			ck_assert_int_eq(bed_mmio(0, 4, false),
					 KVMFAULT_ACTION_NOT_A_FAULT);
	}
}

TEST(guard, signal_is_no_progress)
{
	unsigned int i;

	for (i = 0; i <= 5 * BUDGET && bed_bare() == KVMFAULT_ACTION_RETRY; i++)
		ck_assert_int_eq(interrupt(), KVMFAULT_ACTION_INTERRUPTED);
	ck_assert_uint_le(i, BUDGET);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_NO_ADDRESS);
}

TEST(guard, pages_that_come_are_progress)
{
	uint64_t page;

	for (page = 0; page < BED_PAGES; page++) {
		ck_assert_int_eq(bed_bare(), KVMFAULT_ACTION_RETRY);
		ck_assert_int_eq(bed_bare(), KVMFAULT_ACTION_RETRY);
		ck_assert_int_eq(bed_exit(BED_GPA + page * PAGE, 0),
				 KVMFAULT_ACTION_RETRY);
	}
}

TEST(guard, budget_is_an_option)
{
	unsigned int i;

	bed.vm->options.retry_budget = 3;
	for (i = 0; i < 3; i++)
		ck_assert_int_eq(bed_bare(), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_bare(), KVMFAULT_ACTION_UNRESOLVED);
	/* Whoever runs it again all the same gets as many. */
	for (i = 0; bed_bare() == KVMFAULT_ACTION_RETRY; i++)
		ck_assert_uint_lt(i, 4);
}

/* Not now is no failure, however often it is so; and it can be left. */
TEST(guard, kernel_not_ready)
{
	unsigned int i;

	for (i = 0; i < 10 * BUDGET; i++) {
		fake_push(FAKE_IOCTL, -EAGAIN);
		ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
		ck_assert_int_eq(bed_state(0), KVMFAULT__ABSENT);
	}
	/* Of what is delegated nothing is begun. */
	if (!bed.vcpu->task.worker)
		fake_push(FAKE_IOCTL, -EAGAIN);
	bed.run->immediate_exit = 1;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_INTERRUPTED);
	bed.run->immediate_exit = 0;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(0), KVMFAULT__PRESENT);
}

/* ---- a source that fails ---- */

#define MS 1000000ULL

static unsigned int pauses, recovers_in, interrupts;
static uint64_t slept;
static int then_says;

/* Time passes as it is slept, unless a signal comes halfway. */
static bool sleep_well(struct fake_call *call)
{
	bool signal;

	if (!bed_pauses(call))
		return false;
	signal = interrupts;
	pauses++;
	/* immediate_exit is looked at every 10 ms. */
	ck_assert_uint_le(call->length, 10 * MS);
	slept += call->length;
	fake_advance(signal ? call->length / 2 : call->length);
	call->result = signal ? -EINTR : -ETIMEDOUT;
	interrupts -= signal;
	if (pauses == recovers_in)
		bed.source_result = then_says;
	return true;
}

static void failing(void)
{
	pauses = recovers_in = interrupts = 0;
	slept = 0;
	then_says = 0;
	bed_up();
	bed.source_result = -EIO;
	bed.vm->options.source_retries = 3;
	fake_on(FAKE_FUTEX_WAIT, sleep_well);
}

TEST_GROUP(source, failing, bed_down);

TEST(source, source_recovers)
{
	recovers_in = 2;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(0, bed_byte(0)));
	ck_assert_uint_eq(bed.reads, 3);
	ck_assert_uint_eq(slept, 3 * MS);
	ck_assert_uint_eq(bed_stats().retried, 2);
	ck_assert_uint_eq(bed_stats().unresolved, 0);
	ck_assert_uint_eq(bed_stats().kind[KVMFAULT_KIND_EXIT], 1);
}

TEST(source, source_does_not_recover)
{
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(result()->error, -EIO);
	ck_assert_uint_eq(bed.reads, 4);
	ck_assert_uint_eq(bed_stats().retried, 3);
	ck_assert_uint_eq(bed_stats().unresolved, 1);
	ck_assert_int_eq(bed_state(0), KVMFAULT__ABSENT);
	/* Whoever runs it again all the same gets as many. */
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_uint_eq(bed.reads, 8);
	ck_assert_uint_eq(slept, 2 * (1 + 2 + 4) * MS);
}

/* The bed asks for none. */
TEST(source, source_is_final)
{
	bed.vm->options.source_retries = 0;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(pauses, 0);
}

TEST(source, source_is_tried_three_times_by_default)
{
	struct kvmfault_vm_options options = { .size = sizeof(options) };
	struct kvmfault_vm *vm;

	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	ck_assert_uint_eq(vm->options.source_retries, 2);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	options.source_retries = KVMFAULT_NO_RETRIES;
	ck_assert_int_eq(kvmfault_vm_new(&options, &vm), 0);
	ck_assert_uint_eq(vm->options.source_retries, 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
}

TEST(source, source_pauses_grow_to_a_second)
{
	bed.vm->options.source_retries = 13;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_uint_eq(bed.reads, 14);
	/* 1 + 2 + ... + 1024, and two more like the last */
	ck_assert_uint_eq(slept, (2047 + 2 * 1024) * MS);
}

TEST(source, source_pause_ends_by_a_signal)
{
	interrupts = 1;
	recovers_in = 3;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_INTERRUPTED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_NONE);
	ck_assert(!result()->unfinished);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(slept, MS);
	interrupt();
	bed_other();
	/* The rest of this pause, the whole of the next. */
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.reads, 3);
	ck_assert_uint_eq(slept, MS + MS / 2 + 2 * MS);
}

TEST(source, signals_cost_no_try_and_win_none)
{
	unsigned int i;

	interrupts = 9;
	for (i = 0; i < 9; i++) {
		ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_INTERRUPTED);
		ck_assert_uint_eq(bed.reads, 1);
	}
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_uint_eq(bed.reads, 4);
	ck_assert_uint_eq(bed_stats().retried, 3);
}

TEST(source, interrupted_source_wins_no_try)
{
	recovers_in = 1;
	then_says = -EINTR;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_INTERRUPTED);
	ck_assert_uint_eq(bed.reads, 2);
	bed.source_result = -EIO;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_uint_eq(bed.reads, 5);
}

TEST(source, source_pause_ends_by_immediate_exit)
{
	bed.run->immediate_exit = 1;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_INTERRUPTED);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_INTERRUPTED);
	/* What is delegated goes on by itself. */
	if (bed.profile == KVMFAULT_PROFILE_INLINE)
		ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(pauses, 0);
	bed.run->immediate_exit = 0;
	recovers_in = 1;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
}

TEST(source, another_fault_does_not_wait)
{
	interrupts = 1;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_INTERRUPTED);
	bed.source_result = 0;
	ck_assert_int_eq(bed_mmio(0, 4, false), KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_int_eq(bed_exit(BED_GPA + PAGE, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(pauses, 1);
}

TEST(source, mmio_is_unfinished_while_the_source_fails)
{
	interrupts = 2;
	ck_assert_int_eq(bed_mmio(BED_GPA, 4, false), KVMFAULT_ACTION_UNFINISHED);
	ck_assert(result()->unfinished);
	ck_assert_int_eq(bed_mmio(BED_GPA, 4, false), KVMFAULT_ACTION_UNFINISHED);
	ck_assert(result()->unfinished);
	recovers_in = pauses + 1;
	ck_assert_int_eq(bed_mmio(BED_GPA, 4, false), KVMFAULT_ACTION_RETRY);
	ck_assert(!result()->unfinished);
	ck_assert_int_eq(bed.run->mmio.data[0], bed_byte(0));
}

TEST(source, marker_waits_for_its_source)
{
	siginfo_t info = sigbus_info(bed_page(5), BUS_MCEERR_AR, 12);

	interrupts = 1;
	recovers_in = 3;
	ck_assert_int_eq(bed_handle_sigbus(&info),
			 KVMFAULT_ACTION_INTERRUPTED);
	ck_assert_uint_eq(bed.reads, 1);
	/* Its hva is told, and then its gpa: it is the same fault. */
	ck_assert_int_eq(bed_handle_sigbus(&info),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.reads, 3);
	ck_assert(bed_has(5, bed_byte(5)));
}

TEST(source, who_does_not_wait_is_told_at_once)
{
	bed.vcpu->seat->no_wait = true;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_SOURCE);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(pauses, 0);
}

TEST_EACH(source, lost_data_is_final, 2)
{
	bed.source_result = -EHWPOISON;
	if (_i)
		fake_refuse(FAKE_IOCTL, KVMFAULT__UFFDIO_POISON, -ENOTTY);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, _i ? KVMFAULT_REASON_SOURCE :
						KVMFAULT_REASON_HWPOISON);
	ck_assert_int_eq(result()->error, -EHWPOISON);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(pauses, 0);
}

/* ---- an MMIO access half done ---- */

TEST_GROUP(unfinished, up, bed_down);

TEST(unfinished, unfinished_is_said_and_finished)
{
	bed.source_result = -EINTR;
	ck_assert_int_eq(bed_mmio(BED_GPA, 4, false), KVMFAULT_ACTION_UNFINISHED);
	ck_assert(result()->unfinished);
	bed.source_result = 0;
	ck_assert_int_eq(bed_mmio(BED_GPA, 4, false), KVMFAULT_ACTION_RETRY);
	ck_assert(!result()->unfinished);
	ck_assert_int_eq(bed.run->mmio.data[0], bed_byte(0));
	ck_assert_int_eq(bed_other(), KVMFAULT_ACTION_NOT_A_FAULT);
}

TEST(unfinished, lost_by_another_exit)
{
	bed.source_result = -EINTR;
	bed_mmio(BED_GPA, 4, false);
	ck_assert_int_eq(bed_other(), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_LOST_MMIO);
	ck_assert(!result()->unfinished);
	/* Said once. */
	ck_assert_int_eq(bed_other(), KVMFAULT_ACTION_NOT_A_FAULT);
}

TEST(unfinished, lost_by_another_access)
{
	bed.source_result = -EINTR;
	bed_mmio(BED_GPA, 4, false);
	bed.source_result = 0;
	ck_assert_int_eq(bed_mmio(BED_GPA + PAGE, 4, false),
			 KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_LOST_MMIO);
}

TEST(unfinished, lost_by_an_interrupt)
{
	bed.source_result = -EINTR;
	bed_mmio(BED_GPA, 4, false);
	/* KVM completes what is pending before it looks at immediate_exit. */
	ck_assert_int_eq(interrupt(), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_LOST_MMIO);
	ck_assert_int_eq(interrupt(), KVMFAULT_ACTION_INTERRUPTED);
}

/* The guest begins anew: nobody waits for what it was about. */
TEST(unfinished, given_up_by_a_reset)
{
	bed.source_result = -EINTR;
	ck_assert_int_eq(bed_mmio(BED_GPA, 4, false), KVMFAULT_ACTION_UNFINISHED);
	kvmfault_vcpu_reset(bed.vcpu);
	ck_assert(!result()->unfinished);
	ck_assert_uint_eq(result()->history_count, 0);
	ck_assert_int_eq(bed_other(), KVMFAULT_ACTION_NOT_A_FAULT);
	/* And another time by an access of another page. */
	bed_mmio(BED_GPA, 4, false);
	kvmfault_vcpu_reset(bed.vcpu);
	bed.source_result = 0;
	ck_assert_int_eq(bed_mmio(BED_GPA + PAGE, 4, false), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(interrupt(), KVMFAULT_ACTION_INTERRUPTED);
	kvmfault_vcpu_reset(NULL);
}

int main(void)
{
	return run_suite("vcpu");
}
