/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * walk.c: which pages are tables, in each paging mode; what a guest may have put
 * there instead; and what can go wrong. The bed's source has the tables.
 */

#include <string.h>

#include "bed.h"

#ifdef __x86_64__

#define ENTRIES 512
#define P 0x1ULL
#define BIG 0x80ULL
#define BITS (P | 0x8000000000000066ULL)	/* and others: not the walk's */
#define ELSEWHERE 0x7000000000ULL
#define PG 0x80000001
#define LMA 0x500

static uint64_t ram[BED_PAGES][ENTRIES];	/* what the source has */
static struct kvm_sregs sregs;
static struct kvm_vcpu_events events;
static int source_error;
static void (*during_read)(void);

static uint64_t gpa(unsigned int page)
{
	return BED_GPA + page * PAGE;
}

static uint64_t to(unsigned int page)
{
	return gpa(page) | BITS;
}

/* The guest's linear addresses of the bed's memory. */
#define LINEAR 0xffff888000000000ULL
static struct kvm_regs regs;

static void translate(struct kvm_translation *page)
{
	uint64_t offset = page->linear_address - LINEAR;

	page->valid = offset < BED_PAGES * PAGE;
	page->physical_address = page->valid ? BED_GPA + offset : UINT64_MAX;
}

static bool vcpu_calls(struct fake_call *call)
{
	call->result = 0;
	if (call->number == KVM_GET_SREGS)
		memcpy(call->arg, &sregs, sizeof(sregs));
	else if (call->number == KVM_GET_REGS)
		memcpy(call->arg, &regs, sizeof(regs));
	else if (call->number == KVM_TRANSLATE)
		translate(call->arg);
	else if (call->number == KVM_GET_VCPU_EVENTS)
		memcpy(call->arg, &events, sizeof(events));
	else
		return false;
	return true;
}

static int read_ram(void *data, uint64_t offset, void *buffer, size_t length)
{
	void (*during)(void) = during_read;

	(void)data;
	fake_called_back();
	during_read = NULL;
	if (during)
		fake_aside(during);
	memcpy(buffer, (char *)ram + offset, length);
	return source_error;
}

static void up(void)
{
	bed_vm();
	bed.source = (struct kvmfault_source){
		.size = sizeof(bed.source), .name = "ram", .read = read_ram,
	};
	bed_own_resolver(bed_own);
	bed_add();
	fake_on(FAKE_IOCTL, vcpu_calls);
}

static int walk(void)
{
	return kvmfault_ensure_page_tables(bed.vcpu);
}

/* Pages 0 .. count - 1 are present, and no others. */
static void only(unsigned int count)
{
	unsigned int i;

	for (i = 0; i < BED_PAGES; i++)
		ck_assert_msg((bed_state(i) == KVMFAULT__PRESENT) ==
			      (i < count), "page %u", i);
}

/* Each table leads to the next, by its first and by its last entry. */
static void chain(unsigned int levels)
{
	unsigned int i;

	for (i = 0; i < levels; i++)
		ram[i][i % 2 ? 0 : ENTRIES - 1] = to(i + 1);
}

static void four_levels(void)
{
	sregs.cr0 = PG;
	sregs.cr4 = 0x20;
	sregs.efer = LMA;
	sregs.cr3 = gpa(0) | 0x18;
}

TEST_GROUP(walk, up, bed_down);

TEST(walk, paging_off)
{
	four_levels();
	chain(4);
	sregs.cr0 = 1;
	ck_assert_int_eq(walk(), 0);
	only(0);
}

TEST(walk, four)
{
	four_levels();
	chain(4);
	ck_assert_int_eq(walk(), 0);
	only(4);
	ck_assert_int_eq(walk(), 0);
	only(4);
}

TEST(walk, five)
{
	four_levels();
	sregs.cr4 |= 0x1000;
	/* Those are PCIDs' and keys' bits, no address's. */
	sregs.cr3 |= 0xfff0000000000fffULL;
	chain(5);
	ck_assert_int_eq(walk(), 0);
	only(5);
}

TEST(walk, pae)
{
	sregs.cr0 = PG;
	sregs.cr4 = 0x20;
	/* Its first table has four entries, anywhere in its page. */
	sregs.cr3 = gpa(0) + 0x20;
	ram[0][3] = to(9);
	ram[0][4] = to(1);
	ram[0][7] = to(2);
	ram[0][8] = to(9);
	ram[1][0] = to(3);
	ram[2][ENTRIES - 1] = to(4);
	ram[2][7] = to(9) | BIG;
	ram[3][0] = to(9);
	ck_assert_int_eq(walk(), 0);
	only(5);
}

static void narrow(unsigned int page, unsigned int entry, uint64_t value)
{
	uint32_t *table = (void *)ram[page];

	table[entry] = (uint32_t)value;
}

TEST_EACH(walk, two, 2)
{
	sregs.cr0 = PG;
	sregs.cr4 = _i ? 0x10 : 0;
	/* What is above its 32 bits does not count. */
	sregs.cr3 = gpa(0) | 0x100000000ULL | 0x18;
	narrow(0, 0, to(1));
	narrow(0, 1023, to(2));
	narrow(0, 7, (_i ? to(9) : to(3)) | BIG);
	narrow(1, 0, to(9));
	ck_assert_int_eq(walk(), 0);
	only(_i ? 3 : 4);
}

TEST(walk, large_pages)
{
	four_levels();
	chain(3);
	ram[1][5] = to(9) | BIG;
	ram[2][5] = to(9) | BIG;
	/* There is no such size. */
	ram[0][5] = to(4) | BIG;
	ram[4][0] = to(5);
	ram[5][0] = to(6);
	ck_assert_int_eq(walk(), 0);
	only(7);
}

/* What is not present may have anything in it. */
TEST(walk, not_present)
{
	four_levels();
	chain(4);
	ram[0][3] = to(9) & ~P;
	ram[1][3] = UINT64_MAX & ~P;
	ck_assert_int_eq(walk(), 0);
	only(4);
}

TEST(walk, not_memory)
{
	four_levels();
	chain(4);
	ram[0][3] = ELSEWHERE | BITS;
	ram[1][3] = UINT64_MAX & ~BIG;
	ram[2][3] = ELSEWHERE | BITS;
	ck_assert_int_eq(walk(), 0);
	only(4);
	sregs.cr3 = ELSEWHERE;
	ck_assert_int_eq(walk(), 0);
}

/* As some systems map their tables, and in every entry. */
TEST_EACH(walk, tables_in_themselves, 2)
{
	unsigned int i;

	four_levels();
	chain(3);
	ram[0][_i ? 0x1ed : 0] = to(0);
	for (i = 0; i < ENTRIES && !_i; i++)
		ram[0][i] = ram[1][i] = ram[2][i] = to(i % 3);
	ck_assert_int_eq(walk(), 0);
	only(_i ? 4 : 3);
	/* Three tables at three levels, in eight pieces. */
	ck_assert_uint_le(fake_count(FAKE_PREAD, FAKE_ANY), 3 * 3 * 8);
}

/* Two tables that push one another out of what is remembered. */
TEST(walk, tables_without_end)
{
	struct kvmfault_region alias = {
		.size = sizeof(alias), .gpa = BED_GPA + 64 * PAGE,
		.length = BED_PAGES * PAGE,
	};
	unsigned int i;

	alias.memory = bed.memory;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &alias), 0);
	four_levels();
	for (i = 0; i < ENTRIES; i++)
		ram[0][i] = to(0) + i % 2 * 64 * PAGE;
	ck_assert_int_eq(walk(), -ELOOP);
	only(1);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, alias.gpa), 0);
}

/* In system management mode it has memory of its own. */
TEST(walk, smm)
{
	struct kvmfault_region smram = {
		.size = sizeof(smram), .gpa = ELSEWHERE, .length = PAGE,
		.address_space = 1, .offset = 7 * PAGE,
	};

	smram.memory = bed.memory;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &smram), 0);
	four_levels();
	chain(4);
	events.smi.smm = 1;
	sregs.cr3 = ELSEWHERE;
	ck_assert_int_eq(walk(), 0);
	only(0);		/* the kernel does not say that it knows */
	events.flags = KVM_VCPUEVENT_VALID_SMM;
	ck_assert_int_eq(walk(), 0);
	ck_assert_int_eq(bed_state(7), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(0), KVMFAULT__ABSENT);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 1, ELSEWHERE), 0);
}

TEST(walk, private_pages)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = ELSEWHERE, .length = 4 * PAGE,
		.guest_memfd = 5, .offset = 4 * PAGE,
	};
	const uint64_t gfn = ELSEWHERE / PAGE;

	region.memory = bed.memory;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	region.gpa += 16 * PAGE;
	region.memory = NULL;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	kvmfault__attributes_note(bed.vm, (struct kvmfault__gfns){
				  gfn + 1, gfn + 2 }, true);
	four_levels();
	chain(4);
	ram[0][0] = ELSEWHERE | BITS;			/* page 4 */
	ram[0][1] = (ELSEWHERE + PAGE) | BITS;		/* private */
	ram[0][2] = (ELSEWHERE + 16 * PAGE) | BITS;	/* has no other */
	ck_assert_int_eq(walk(), 0);
	only(5);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, ELSEWHERE), 0);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, region.gpa), 0);
}

/* Memory without a source is read where it is. */
TEST(walk, untracked)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = PAGE,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = ELSEWHERE, .length = PAGE,
	};
	void *host;

	options.fd = fake_memory(PAGE, 0, &host);
	options.host = host;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options,
					     &region.memory), 0);
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	((uint64_t *)host)[ENTRIES - 1] = to(0);
	four_levels();
	chain(3);
	sregs.cr3 = ELSEWHERE;
	ck_assert_int_eq(walk(), 0);
	only(3);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, ELSEWHERE), 0);
	ck_assert_int_eq(kvmfault_memory_free(region.memory), 0);
}

TEST(walk, no_vcpu)
{
	ck_assert_int_eq(kvmfault_ensure_page_tables(NULL), -EINVAL);
}

TEST_EACH(walk, registers_are_not_to_be_had, 2)
{
	fake_refuse(FAKE_IOCTL, _i ? KVM_GET_SREGS : KVM_GET_VCPU_EVENTS, -ENXIO);
	four_levels();
	chain(4);
	ck_assert_int_eq(walk(), -ENXIO);
	only(0);
}

/* What is there stays there, and the next call goes on. */
TEST_EACH(walk, source_fails, 3)
{
	static const int errors[] = { -EIO, -EINTR, -EHWPOISON };

	four_levels();
	chain(4);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, gpa(0), 2 * PAGE, false),
			 0);
	source_error = errors[_i];
	ck_assert_int_eq(walk(), errors[_i]);
	only(2);
	source_error = 0;
	ck_assert_int_eq(walk(), errors[_i] == -EHWPOISON ? -EHWPOISON : 0);
	only(errors[_i] == -EHWPOISON ? 2 : 4);
}

TEST_EACH(walk, resolver_says, 4)
{
	static const int answers[][2] = {
		{ KVMFAULT_VERDICT_LATER, -EAGAIN }, { KVMFAULT_VERDICT_RESOLVED, -ENODATA },
		{ -EOPNOTSUPP, -EOPNOTSUPP }, { -EAGAIN, -EAGAIN },
	};

	four_levels();
	chain(4);
	bed.own_verdict = answers[_i][0];
	ck_assert_int_eq(walk(), answers[_i][1]);
	only(0);
}

static int inner;

static void walk_again(void)
{
	inner = walk();
}

TEST(walk, from_its_own_fetch)
{
	four_levels();
	chain(4);
	during_read = walk_again;
	ck_assert_int_eq(walk(), 0);
	ck_assert_int_eq(inner, -EDEADLK);
	only(4);
}

static void remove_region(void)
{
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
}

/* Its table came, but nobody shows it any more. */
TEST(walk, region_goes)
{
	four_levels();
	chain(4);
	during_read = remove_region;
	ck_assert_int_eq(walk(), 0);
	only(1);
}

TEST(walk, exit_wanted)
{
	four_levels();
	chain(4);
	bed.run->immediate_exit = 1;
	ck_assert_int_eq(walk(), -EINTR);
	only(0);
	bed.run->immediate_exit = 0;
	ck_assert_int_eq(walk(), 0);
	only(4);
}

/* ---- what an exception needs ---- */

static void only_these(uint64_t pages)
{
	unsigned int i;

	for (i = 0; i < BED_PAGES; i++)
		ck_assert_msg((bed_state(i) == KVMFAULT__PRESENT) ==
			      (pages >> i & 1), "page %u", i);
}

TEST(walk, descriptor_tables)
{
	four_levels();
	chain(4);
	sregs.idt.base = LINEAR + 5 * PAGE;
	sregs.idt.limit = PAGE - 1;
	sregs.gdt.base = LINEAR + 8 * PAGE - 8;
	sregs.gdt.limit = 15;
	sregs.tr.base = LINEAR + 11 * PAGE - 1;
	sregs.tr.limit = 0x2067;		/* with a map of ports */
	regs.rsp = LINEAR + 14 * PAGE;
	ck_assert_int_eq(walk(), 0);
	only_these(0xf | 1 << 5 | 3 << 7 | 3 << 10 | 1 << 13);
}

static const size_t stacks[] = { 4, 12, 20, 36, 44, 52, 60, 68, 76, 84 };
#define STACKS ((int)(sizeof(stacks) / sizeof(*stacks)))

/* Of a TSS that crosses a page's end, each of the stacks that it names. */
TEST_EACH(walk, exception_stacks, STACKS)
{
	const uint64_t top = LINEAR + 12 * PAGE + 8, nowhere = 8 * PAGE;
	unsigned char *tss = (unsigned char *)ram + 9 * PAGE - 30;

	four_levels();
	chain(4);
	sregs.tr.base = LINEAR + 9 * PAGE - 30;
	sregs.tr.limit = 103;
	memcpy(tss + stacks[_i], &top, sizeof(top));
	memcpy(tss + stacks[(_i + 1) % STACKS], &nowhere, sizeof(nowhere));
	ck_assert_int_eq(walk(), 0);
	only_these(0xf | 3 << 8 | 3 << 11);
}

/* Of 32 bits: three stacks, of which only so much counts; and a stack segment. */
TEST(walk, exception_stacks_of_32_bits)
{
	uint32_t *tss = (uint32_t *)ram[9];

	sregs.cr0 = PG;
	sregs.cr3 = gpa(0);
	sregs.tr.base = LINEAR + 9 * PAGE;
	sregs.tr.limit = 103;
	tss[1] = 0x1000;
	tss[2] = tss[4] = tss[6] = 0xffffffff;	/* SS0 to SS2, CR3 */
	sregs.ss.base = LINEAR + 3 * PAGE;
	regs.rsp = 2 * PAGE;
	ck_assert_int_eq(walk(), 0);
	only_these(1 | 1 << 4 | 1 << 9);
}

/* None is in use, and none is looked for. */
TEST(walk, no_exceptions_yet)
{
	four_levels();
	chain(4);
	ck_assert_int_eq(walk(), 0);
	only(4);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, KVM_TRANSLATE), 0);
}

static const uint64_t exception_requests[] = { KVM_GET_REGS, KVM_TRANSLATE };

TEST_EACH(walk, exceptions_cannot_be_asked, 2)
{
	four_levels();
	chain(4);
	regs.rsp = LINEAR + 14 * PAGE;
	fake_refuse(FAKE_IOCTL, exception_requests[_i], -ENXIO);
	ck_assert_int_eq(walk(), -ENXIO);
	only(4);
}

TEST(walk, no_memory)
{
	four_levels();
	chain(4);
	bed_take_seats();
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(walk(), -ENOMEM);
	bed_give_seats();
	only(0);
	/* A seat that was used is nobody's any more. */
	ck_assert_int_eq(walk(), 0);
	ck_assert_int_eq(walk(), 0);
}

TEST_EACH(walk, file_cannot_be_read, 2)
{
	static const long results[][2] = { { -EBADF, -EBADF }, { 8, -EIO } };

	four_levels();
	chain(4);
	fake_push(FAKE_PREAD, FAKE_MODEL);
	fake_push(FAKE_PREAD, results[_i][0]);
	ck_assert_int_eq(walk(), (int)results[_i][1]);
}

#else

TEST_GROUP(walk, bed_up, bed_down);

TEST(walk, nothing_to_do)
{
	ck_assert_int_eq(kvmfault_ensure_page_tables(bed.vcpu), 0);
	ck_assert_int_eq(kvmfault_ensure_page_tables(NULL), -EINVAL);
	ck_assert_uint_eq(bed.reads, 0);
}

#endif

int main(void)
{
	return run_suite("walk");
}
