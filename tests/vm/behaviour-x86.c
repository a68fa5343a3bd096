/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * x86 alone: instructions that KVM emulates on every back end, and so walks the
 * guest's page tables and touches its memory itself; and the accesses that it
 * makes for kvmclock.
 */

#include <linux/kvm.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "behaviour-tables.h"

#define PAGE_FAULT 14
#define FAULT_PORT 0xf5
#define IST1 36				/* in the TSS */
#define CLOCK_MSR 0x4b564d01

/* The handler runs at the guest's own level, on a stack of its own. */
void catch_page_faults(void)
{
	static const unsigned char out_and_stay[] = {
		0xe6, FAULT_PORT, 0xeb, 0xfc,
	};
	uint64_t stack = gpa_of(STACK) + PAGE, handler = gpa_of(HANDLER);
	unsigned char *control = bed.machine->control;
	struct kvm_sregs sregs;
	uint64_t gate[2];

	must(ioctl(bed.vcpu->fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	memcpy(page_at(HANDLER), out_and_stay, sizeof(out_and_stay));
	memcpy(control + sregs.tr.base + IST1, &stack, sizeof(stack));
	gate[0] = (handler & 0xffff) | (uint64_t)sregs.cs.selector << 16 |
		  (sregs.cs.dpl ? 0xee01ULL : 0x8e01ULL) << 32 |
		  handler >> 16 << 48;
	gate[1] = handler >> 32;
	memcpy(control + sregs.idt.base + sizeof(gate) * PAGE_FAULT, gate,
	       sizeof(gate));
}

void seen_by_guest(enum outcome outcome, uint64_t address)
{
	struct kvm_run *run = bed.vcpu->run;
	struct kvm_sregs sregs;

	if (outcome != OTHERWISE || run->exit_reason != KVM_EXIT_IO ||
	    run->io.port != FAULT_PORT)
		return;
	must(ioctl(bed.vcpu->fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	strcpy(bed.said, sregs.cr2 == address ? "page fault in the guest" :
	       "page fault in the guest, wrong address");
}

/*
 * Instructions that KVM emulates on every back end. The code is called with
 * the RAM operand's address in rsi and the device's, or its port, in rdx.
 */
enum { OUTS, INS, MOVS, PUSH, CALL };

/* Not at the operands' offset in its page: KVM takes an operand of CALL that
 * has the device's for the device's (seen up to 7.3). */
#define REGISTER (DEVICE + 0x40)

static const struct {
	unsigned char code[16];
	uint64_t device;
} instructions[] = {
	[OUTS] = { {
		0x6e,			/* outsb */
		0xc3,
	}, DEVICE_PORT },
	[INS] = { {
		0x48, 0x89, 0xf7,	/* mov %rsi, %rdi */
		0x6c,			/* insb */
		0xc3,
	}, DEVICE_PORT },
	[MOVS] = { {
		0x48, 0x89, 0xf7,	/* mov %rsi, %rdi */
		0x48, 0x89, 0xd6,	/* mov %rdx, %rsi */
		0xa4,			/* movsb */
		0xc3,
	}, REGISTER },
	[PUSH] = { {
		0x48, 0x83, 0xc6, 0x08,	/* add $8, %rsi */
		0x48, 0x87, 0xe6,	/* xchg %rsp, %rsi */
		0xff, 0x32,		/* push (%rdx) */
		0x48, 0x89, 0xf4,	/* mov %rsi, %rsp */
		0xc3,
	}, REGISTER },
	/* The device reads as the address of what comes after the call. */
	[CALL] = { {
		0x48, 0x83, 0xc6, 0x08,	/* add $8, %rsi */
		0x48, 0x87, 0xe6,	/* xchg %rsp, %rsi */
		0xff, 0x12,		/* call *(%rdx) */
		0x48, 0x89, 0xf4,	/* mov %rsi, %rsp */
		0xc3,
	}, REGISTER },
};

#define AFTER_CALL 9

static enum outcome execute(int number, uint64_t operand)
{
	enum outcome outcome = touch(MACHINE_JUMP, gpa_of(CODE), operand,
				     instructions[number].device, 0);

	seen_by_guest(outcome, operand);
	return outcome;
}

/* With all of it there it has to work. */
static void start_instruction(int number)
{
	start_with_tables();
	memcpy(page_at(CODE), instructions[number].code,
	       sizeof(instructions[number].code));
	bed.device_value = gpa_of(CODE) + AFTER_CALL;
	if (execute(number, GOOD) != COMPLETES)
		answer("cannot ask: all is present, but: %s", bed.said);
}

static void operand_table_marked(int number)
{
	start_instruction(number);
	put_marker(LOST_TABLE);
	conclude(execute(number, LOST), copy_table, LOST);
}

/* Who walks the tables sleeps until the page is there. */
static void operand_table_missing(int number)
{
	struct reader reader;

	start_instruction(number);
	read_missing_table(&reader);
	if (execute(number, LOST) != COMPLETES)
		answer("%s", bed.said);
	conclude_missing_table(&reader);
}

static void put_data(void)
{
	copy_over_marker(LOST_DATA, filled(WORD));
}

static void operand_marked(int number)
{
	start_instruction(number);
	put_marker(LOST_DATA);
	conclude(execute(number, LOST_DATA_AT), put_data, LOST_DATA_AT);
}

static void operand_unmapped(int number)
{
	start_instruction(number);
	must(munmap(page_at(LOST_DATA), PAGE), "munmap");
	aim(gpa_of(LOST_DATA), page_at(LOST_DATA));
	execute(number, LOST_DATA_AT);
	answer("%s", bed.said);
}

/* Tell KVM where to write the clock. What KVM_SET_MSRS said. */
static int set_clock(void)
{
	union {
		struct kvm_msrs msrs;	/* the entry stands behind it */
		char bytes[sizeof(struct kvm_msrs) +
			   sizeof(struct kvm_msr_entry)];
	} arg = { .msrs.nmsrs = 1 };

	arg.msrs.entries[0] = (struct kvm_msr_entry){
		.index = CLOCK_MSR, .data = RAM | 1,
	};
	return ioctl(bed.vcpu->fd, KVM_SET_MSRS, &arg);
}

static void run_guest(void)
{
	if (touch(MACHINE_SPIN, 1000, 0, 0, 0) != COMPLETES)
		answer("then the guest does not run: %s", bed.said);
}

static const char *clock_written(void)
{
	static const char nothing[64];

	return memcmp(bed.ram, nothing, sizeof(nothing)) ? "written" :
							   "not written";
}

static void clock_present(int arg)
{
	int ret;

	(void)arg;
	start();
	memset(bed.ram, 0, PAGE);
	ret = set_clock();
	run_guest();
	answer("returns %d, %s", ret, clock_written());
}

static void clock_marked(int arg)
{
	int ret;

	(void)arg;
	start();
	put_marker(0);
	ret = set_clock();
	run_guest();
	copy_over_marker(0, filled(0));
	run_guest();
	answer("returns %d, %s", ret, clock_written());
}

/* The kicks come all the time; the page comes after some of them. */
static void clock_missing(int arg)
{
	struct reader reader = { .wait_ms = 500 };
	bool waited;
	int ret;

	(void)arg;
	start();
	reader.fd = uffd_of_ram(0, 0);
	reader_start(&reader);
	ret = set_clock();
	waited = __atomic_load_n(&reader.copied, __ATOMIC_SEQ_CST);
	pthread_join(reader.thread, NULL);
	run_guest();
	answer("%s, returns %d, %s", waited ? "waits" : "does not wait", ret,
	       clock_written());
}

const struct row x86_rows[] = {
	{ "OUTS, page table marked", LEVELS, operand_table_marked, OUTS },
	{ "INS, page table marked", LEVELS, operand_table_marked, INS },
	{ "MOVS from MMIO, page table marked", LEVELS, operand_table_marked,
	  MOVS },
	{ "PUSH of MMIO, page table marked", LEVELS, operand_table_marked,
	  PUSH },
	{ "CALL by MMIO, page table marked", LEVELS, operand_table_marked,
	  CALL },
	{ "OUTS, page table missing", LEVELS, operand_table_missing, OUTS },
	{ "INS, page table missing", LEVELS, operand_table_missing, INS },
	{ "MOVS from MMIO, page table missing", LEVELS, operand_table_missing,
	  MOVS },
	{ "PUSH of MMIO, page table missing", LEVELS, operand_table_missing,
	  PUSH },
	{ "CALL by MMIO, page table missing", LEVELS, operand_table_missing,
	  CALL },
	{ "OUTS, operand marked", LEVELS, operand_marked, OUTS },
	{ "INS, operand marked", LEVELS, operand_marked, INS },
	{ "MOVS from MMIO, operand marked", LEVELS, operand_marked, MOVS },
	{ "PUSH of MMIO, operand marked", LEVELS, operand_marked, PUSH },
	{ "CALL by MMIO, operand marked", LEVELS, operand_marked, CALL },
	{ "OUTS, operand unmapped", LEVELS, operand_unmapped, OUTS },
	{ "INS, operand unmapped", LEVELS, operand_unmapped, INS },
	{ "kvmclock present", 0, clock_present, 0 },
	{ "kvmclock marked", 0, clock_marked, 0 },
	{ "kvmclock missing", 0, clock_missing, 0 },
	{ NULL, 0, NULL, 0 },
};
