/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * mmio.c: an access that KVM took for a device's is completed out of RAM, or
 * handed on. Each width, across pages, to ROM, and when the page can't come.
 */

#include <string.h>

#include "bed.h"

#define ROM_GPA 0x800000ULL

static void up(void)
{
	struct kvmfault_region rom = {
		.size = sizeof(rom), .gpa = ROM_GPA, .length = 2 * PAGE,
		.flags = KVMFAULT_REGION_READONLY,
	};

	bed_up();
	rom.memory = bed.memory;
	rom.offset = 4 * PAGE;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &rom), 0);
	fake_on(FAKE_FUTEX_WAIT, bed_no_pause);
}

static void down(void)
{
	kvmfault_region_remove(bed.vm, 0, ROM_GPA);
	bed_down();
}

static const struct kvmfault_result *result(void)
{
	return kvmfault_vcpu_result(bed.vcpu);
}

static const uint32_t widths[] = { 1, 2, 4, 8, 3, 5 };

TEST_GROUP(access, up, down);

TEST_EACH(access, read_of_an_absent_page, 6)
{
	uint32_t width = widths[_i], i;

	memset(bed.run->mmio.data, 0x55, 8);
	ck_assert_int_eq(bed_mmio(BED_GPA + 3 * PAGE + 16, width, false),
			 KVMFAULT_ACTION_RETRY);
	for (i = 0; i < 8; i++)
		ck_assert_int_eq(bed.run->mmio.data[i],
				 i < width ? bed_byte(3) : 0x55);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_MMIO], 0);
	ck_assert_int_eq(result()->fault->kind, KVMFAULT_KIND_MMIO);
}

TEST_EACH(access, write_to_an_absent_page, 6)
{
	uint32_t width = widths[_i], i;

	for (i = 0; i < 8; i++)
		bed.run->mmio.data[i] = (uint8_t)(0xa0 + i);
	ck_assert_int_eq(bed_mmio(BED_GPA + 3 * PAGE + 16, width, true),
			 KVMFAULT_ACTION_RETRY);
	for (i = 0; i < 8; i++)
		ck_assert_int_eq((uint8_t)bed_page(3)[16 + i], i < width ?
				 0xa0 + i : (uint8_t)bed_byte(3));
	ck_assert_int_eq(bed_page(3)[15], bed_byte(3));
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_FETCH], 1);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_MMIO], 1);
	ck_assert_uint_eq(bed.change.offset, 3 * PAGE + 16);
	ck_assert_uint_eq(bed.change.length, width);
}

TEST(access, access_to_a_present_page)
{
	bed_mmio(BED_GPA, 1, false);
	bed_page(0)[9] = 42;
	ck_assert_int_eq(bed_mmio(BED_GPA + 9, 1, false), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed.run->mmio.data[0], 42);
	ck_assert_uint_eq(bed.reads, 1);
}

TEST(access, read_across_pages)
{
	ck_assert_int_eq(bed_mmio(BED_GPA + 2 * PAGE - 3, 8, false),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed.run->mmio.data[2], bed_byte(1));
	ck_assert_int_eq(bed.run->mmio.data[3], bed_byte(2));
	ck_assert_int_eq(bed.run->mmio.data[7], bed_byte(2));
	ck_assert_uint_eq(bed.reads, 2);
}

TEST(access, write_across_pages)
{
	memset(bed.run->mmio.data, 0x42, 8);
	ck_assert_int_eq(bed_mmio(BED_GPA + 2 * PAGE - 3, 8, true),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_page(2)[-4], bed_byte(1));
	ck_assert_int_eq(bed_page(2)[-3], 0x42);
	ck_assert_int_eq(bed_page(2)[4], 0x42);
	ck_assert_int_eq(bed_page(2)[5], bed_byte(2));
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_MMIO], 2);
}

TEST_EACH(access, device, 2)
{
	ck_assert_int_eq(bed_mmio(0xfee00000, 4, _i), KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_uint_eq(bed.reads, 0);
	ck_assert(!result()->unfinished);
	ck_assert_uint_eq(bed_stats().kind[KVMFAULT_KIND_MMIO], 0);
}

TEST(access, write_to_rom)
{
	bed.run->mmio.data[0] = 42;
	ck_assert_int_eq(bed_mmio(ROM_GPA, 1, true), KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_uint_eq(bed.reads, 0);
	ck_assert_int_eq(bed_state(4), KVMFAULT__ABSENT);
}

TEST(access, read_of_rom)
{
	ck_assert_int_eq(bed_mmio(ROM_GPA + PAGE, 4, false), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed.run->mmio.data[3], bed_byte(5));
}

#ifdef __x86_64__
TEST(access, other_address_space)
{
	bed.run->flags = 1;	/* SMM, where there is no region */
	ck_assert_int_eq(bed_mmio(BED_GPA, 4, false), KVMFAULT_ACTION_NOT_A_FAULT);
}
#endif

TEST(access, guest_memfd_is_not_for_us)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = 0x2000000, .length = PAGE,
		.guest_memfd = 5,
	};

	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	ck_assert_int_eq(bed_mmio(0x2000000, 4, false), KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, 0x2000000), 0);
}

TEST_EACH(access, source_fails, 2)
{
	bed.source_result = -EIO;
	memset(bed.run->mmio.data, 0x55, 8);
	ck_assert_int_eq(bed_mmio(BED_GPA, 8, _i), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(bed.run->mmio.data[0], 0x55);
	/* The VMM may cure it and go on. */
	bed.source_result = 0;
	ck_assert_int_eq(bed_mmio(BED_GPA, 8, _i), KVMFAULT_ACTION_RETRY);
}

TEST(access, not_now_is_unfinished)
{
	fake_refuse(FAKE_IOCTL, UFFDIO_COPY, -EAGAIN);
	memset(bed.run->mmio.data, 0x55, 8);
	/* Never RETRY: KVM_RUN would go on with the wrong bytes. */
	ck_assert_int_eq(bed_mmio(BED_GPA, 8, false), KVMFAULT_ACTION_UNFINISHED);
	ck_assert(result()->unfinished);
	ck_assert_int_eq(bed.run->mmio.data[0], 0x55);
	fake_refuse(FAKE_IOCTL, UFFDIO_COPY, 0);
	ck_assert_int_eq(bed_mmio(BED_GPA, 8, false), KVMFAULT_ACTION_RETRY);
	ck_assert(!result()->unfinished);
	ck_assert_int_eq(bed.run->mmio.data[7], bed_byte(0));
}

static int later(void *data, struct kvmfault_request *request)
{
	(void)data;
	return request->page == KVMFAULT_PAGE_ABSENT ? KVMFAULT_VERDICT_LATER :
						       KVMFAULT_VERDICT_DECLINED;
}

static void up_later(void)
{
	bed_vm();
	bed_own_resolver(later);
	bed_add();
	fake_on(FAKE_FUTEX_WAIT, bed_no_pause);
}

TEST_GROUP(pending, up_later, bed_down);

TEST(pending, pending_is_unfinished)
{
	ck_assert_int_eq(bed_mmio(BED_GPA + PAGE - 4, 8, false),
			 KVMFAULT_ACTION_PENDING_UNFINISHED);
	ck_assert(result()->unfinished);
	ck_assert_str_eq(result()->resolver, "own");
	/* It has come meanwhile. */
	fake_put(bed.fd, 0);
	fake_put(bed.fd, PAGE);
	kvmfault__page_change(bed.memory, 0, KVMFAULT__ABSENT,
			      KVMFAULT__PRESENT);
	kvmfault__page_change(bed.memory, 1, KVMFAULT__ABSENT,
			      KVMFAULT__PRESENT);
	bed_page(1)[-4] = 11;
	bed_page(1)[3] = 22;
	ck_assert_int_eq(bed_mmio(BED_GPA + PAGE - 4, 8, false),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed.run->mmio.data[0], 11);
	ck_assert_int_eq(bed.run->mmio.data[7], 22);
}

TEST(access, long_series_is_progress)
{
	unsigned int i;

	for (i = 0; i < 100; i++)
		ck_assert_int_eq(bed_mmio(BED_GPA, 8, i % 2), KVMFAULT_ACTION_RETRY);
}

int main(void)
{
	return run_suite("mmio");
}
