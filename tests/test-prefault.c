/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * prefault.c: what came beside the page is mapped for the guest too, if KVM
 * likes to, and nothing else is touched by it.
 */

#include <signal.h>
#include <string.h>

#include "bed.h"
#include "sigbus.h"

#define WINDOW 4

static struct {
	bool knows;			/* the kernel has the call */
	unsigned int asked, calls;
	struct kvmfault__pre_fault_memory range[8];
	uint64_t at_once;		/* bytes that one call does; 0: all */
	int error;			/* and no byte */
} kernel;

static bool pre_fault(struct fake_call *call)
{
	struct kvmfault__pre_fault_memory *range = call->arg;
	uint64_t done = kernel.at_once;

	if (call->number != KVMFAULT__PRE_FAULT_MEMORY)
		return false;
	call->result = kernel.knows ? -EFAULT : -EINVAL;
	if (!range || !kernel.knows) {
		kernel.asked++;
		return true;
	}
	ck_assert_uint_lt(kernel.calls, 8);
	kernel.range[kernel.calls++] = *range;
	/* It leaves the record of a fault, whatever it says. */
	bed.run->exit_reason = KVMFAULT__EXIT_MEMORY_FAULT;
	memset(&bed.run->hw, 0xee, sizeof(struct kvmfault__memory_fault));
	call->result = kernel.error;
	if (kernel.error)
		return true;
	if (!done || done > range->size)
		done = range->size;
	range->gpa += done;
	range->size -= done;
	return true;
}

static void up_with(bool prefault, bool knows, uint64_t window)
{
	memset(&kernel, 0, sizeof(kernel));
	kernel.knows = knows;
	bed_vm();
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = window * PAGE;
	bed.vm->options.prefault = prefault;
	/* Two huge pages fit into the scratch memory. */
	bed.vm->options.page_size_max = 4 << 20;
	fake_on(FAKE_IOCTL, pre_fault);
	bed_add();
}

static void up(void)
{
	up_with(true, true, WINDOW);
}

static void expect(unsigned int call, uint64_t page, uint64_t pages)
{
	ck_assert_uint_lt(call, kernel.calls);
	ck_assert_uint_eq(kernel.range[call].gpa, BED_GPA + page * PAGE);
	ck_assert_uint_eq(kernel.range[call].size, pages * PAGE);
	ck_assert_uint_eq(kernel.range[call].flags, 0);
}

TEST_GROUP(prefault, up, bed_down);

TEST(prefault, window_is_mapped)
{
	ck_assert_uint_eq(kernel.asked, 1);
	ck_assert_int_eq(bed_exit(BED_GPA + 6 * PAGE, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(kernel.calls, 1);
	expect(0, 4, WINDOW);
	ck_assert_uint_eq(bed_stats().prefaulted, WINDOW);
	/* Asked for once, and not for what was there. */
	ck_assert_int_eq(bed_exit(BED_GPA + 6 * PAGE, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(kernel.calls, 1);
	ck_assert_int_eq(bed_exit(BED_GPA + PAGE, 0), KVMFAULT_ACTION_RETRY);
	expect(1, 0, WINDOW);
	ck_assert_uint_eq(kernel.asked, 1);
}

TEST(prefault, marker_too)
{
	siginfo_t info = sigbus_info(bed_page(9), BUS_MCEERR_AR, 12);

	ck_assert_int_eq(bed_handle_sigbus(&info),
			 KVMFAULT_ACTION_RETRY);
	/* A worker may come late, and kvm_run may be in use then. */
	ck_assert_uint_eq(kernel.calls, !bed.vcpu->task.worker);
	if (kernel.calls)
		expect(0, 8, WINDOW);
}

TEST(prefault, mmio_keeps_its_data)
{
	/* KVM completes the access with what stands there. */
	ck_assert_int_eq(bed_mmio(BED_GPA + PAGE, 8, false), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(kernel.calls, !bed.vcpu->task.worker);
	if (kernel.calls)
		expect(0, 0, WINDOW);
	ck_assert_uint_eq(bed.run->exit_reason, KVM_EXIT_MMIO);
	ck_assert_uint_eq(bed.run->mmio.phys_addr, BED_GPA + PAGE);
	ck_assert_int_eq(bed.run->mmio.data[0], bed_byte(1));
	ck_assert_int_eq(bed.run->mmio.data[7], bed_byte(1));
	ck_assert_uint_eq(bed.run->mmio.len, 8);
	ck_assert(!bed.run->mmio.is_write);
}

TEST(prefault, exit_reason_stays)
{
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.run->exit_reason, KVM_EXIT_UNKNOWN);
}

TEST(prefault, page_alone_is_not)
{
	bed_down();
	up_with(true, true, 1);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(kernel.calls, 0);
}

TEST(prefault, not_without_the_option)
{
	bed_down();
	up_with(false, true, WINDOW);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(kernel.asked + kernel.calls, 0);
}

TEST(prefault, not_without_the_call)
{
	bed_down();
	up_with(true, false, WINDOW);
	ck_assert_uint_eq(kernel.asked, 1);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(kernel.asked, 1);
	ck_assert_uint_eq(bed_stats().prefaulted, 0);
}

TEST(prefault, ensure_and_messages_have_no_vcpu)
{
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false), 0);
	ck_assert_int_eq(bed_resolve(KVMFAULT_KIND_UFFD, 8, true).action,
			 KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(9), KVMFAULT__PRESENT);
	ck_assert_uint_eq(kernel.calls, 0);
}

TEST(prefault, a_part_is_gone_on_with)
{
	kernel.at_once = 2 * PAGE;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(kernel.calls, 2);
	expect(1, 2, 2);
	ck_assert_uint_eq(bed_stats().prefaulted, WINDOW);
}

TEST_EACH(prefault, an_error_is_nobodys, 7)
{
	static const int errors[] = {
		-EINTR, -ENOENT, -EOPNOTSUPP, -EFAULT, -EINVAL, -ENOMEM, -EIO,
	};

	kernel.error = errors[_i];
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(kvmfault_vcpu_result(bed.vcpu)->error, 0);
	ck_assert_uint_eq(kernel.calls, 1);
	ck_assert_uint_eq(bed_stats().prefaulted, 0);
	ck_assert_uint_eq(bed.run->exit_reason, KVM_EXIT_UNKNOWN);
}

TEST(prefault, not_now_is_bounded)
{
	kernel.error = -EAGAIN;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_gt(kernel.calls, 1);
	ck_assert_uint_le(kernel.calls, 4);
}

TEST(prefault, small_steps_are_bounded)
{
	bed_down();
	up_with(true, true, 16);
	kernel.at_once = PAGE;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_le(kernel.calls, 4);
	ck_assert_uint_eq(bed_stats().prefaulted, kernel.calls);
}

static int submit(void *data, struct kvmfault_fetch *fetch, uint64_t offset,
		  void *buffer, size_t length)
{
	(void)data;
	(void)offset;
	memset(buffer, 7, length);
	kvmfault_fetch_done(fetch, 0);
	return 0;
}

TEST(prefault, window_of_a_source_that_answers_later)
{
	bed_down();
	memset(&kernel, 0, sizeof(kernel));
	kernel.knows = true;
	bed_vm();
	bed.source = (struct kvmfault_source){
		.size = sizeof(bed.source), .submit = submit,
	};
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = WINDOW * PAGE;
	bed.vm->options.prefault = true;
	fake_on(FAKE_IOCTL, pre_fault);
	bed_add();
	ck_assert_int_eq(bed_exit(BED_GPA + 5 * PAGE, 0), KVMFAULT_ACTION_RETRY);
	expect(0, 4, WINDOW);
}

static void discard_page(uint64_t page)
{
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA + page * PAGE,
					  PAGE), 0);
}

static uint64_t takes;

/* Another thread discards as soon as it hears of what came. */
static void on_change(void *data, const struct kvmfault_change *change)
{
	(void)data;
	if (change->cause == KVMFAULT_CAUSE_FETCH)
		discard_page(takes);
}

TEST(prefault, never_over_what_is_gone)
{
	bed.vm->ops.changed = on_change;
	takes = 2;
	ck_assert_int_eq(bed_exit(BED_GPA + PAGE, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(kernel.calls, 1);
	expect(0, 0, 2);
	takes = 4;
	ck_assert_int_eq(bed_exit(BED_GPA + 7 * PAGE, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(kernel.calls, 1);
}

TEST(prefault, never_past_the_region)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = BED_GPA,
		.length = 3 * PAGE, .memory = bed.memory,
		.offset = 5 * PAGE,
	};

	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	ck_assert_int_eq(bed_exit(BED_GPA + PAGE, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(kernel.calls, 1);
	expect(0, 0, 3);
}

TEST(prefault, not_where_private_memory_is)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = BED_GPA,
		.length = BED_PAGES * PAGE, .memory = bed.memory,
		.guest_memfd = fake_fd(FAKE_FILE),
	};

	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_uint_eq(kernel.calls, 0);
}

/* A vCPU in SMM sees another address space, with nothing at this gpa. */
TEST(prefault, not_in_another_address_space)
{
	siginfo_t info = sigbus_info(bed_page(9), BUS_MCEERR_AR, 12);

	bed.run->flags = 1;
	ck_assert_int_eq(bed_handle_sigbus(&info),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(8), KVMFAULT__PRESENT);
	ck_assert_uint_eq(kernel.calls, 0);
}

TEST(prefault, not_what_failed)
{
	bed.source_result = -EIO;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_uint_eq(kernel.calls, 0);
}

/* A page of the memory that the region shows a part of. */
TEST(prefault, huge_pages)
{
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = 4 << 21,
		.page_size = 2 << 20, .source = &source,
		.window = KVMFAULT_WINDOW_FIXED, .window_length = 4 << 20,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = 1ULL << 32,
		.offset = PAGE, .length = (4 << 21) - 2 * PAGE,
	};
	void *host;

	options.fd = fake_memory(options.length, options.page_size, &host);
	options.host = host;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &region.memory),
			 0);
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	ck_assert_int_eq(bed_exit(region.gpa, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(kernel.calls, 1);
	ck_assert_uint_eq(kernel.range[0].gpa, region.gpa);
	ck_assert_uint_eq(kernel.range[0].size, (4 << 20) - PAGE);
	ck_assert_int_eq(bed_exit(region.gpa + region.length - PAGE, 0),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(kernel.range[1].gpa, region.gpa + (4 << 20) - PAGE);
	ck_assert_uint_eq(kernel.range[1].size, (4 << 20) - PAGE);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, region.gpa), 0);
	ck_assert_int_eq(kvmfault_memory_free(region.memory), 0);
}

int main(void)
{
	return run_suite("prefault");
}
