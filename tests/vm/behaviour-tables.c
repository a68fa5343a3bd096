/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A page table of the guest's that is not there. The machine's own are always
 * present, so these are others, in RAM and at an address of their own (see
 * behaviour-tables.h). They show what the page DATA holds, by way of a table
 * that is present and of one that gets lost.
 */

#include <fcntl.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "behaviour-tables.h"

#define ENTRY_OF_DATA 16
#define ENTRY_ADDRESS 0xfffffffff000ULL

#ifdef __x86_64__

#define TABLE_BITS 0x067		/* present, writable, user, accessed */
#define PAGE_BITS 0x067			/* and dirty */

static uint64_t top_table(void)
{
	struct kvm_sregs sregs;

	must(ioctl(bed.vcpu->fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	return sregs.cr3;
}

#else

#define TABLE_BITS 0x003
/* A page, shared, accessed; what EL0 may write, EL1 may not execute. */
#define PAGE_BITS (bed.supervisor ? 0x703U : 0x743U)
#define TTBR0_EL1 ARM64_SYS_REG(3, 0, 2, 0, 0)

static uint64_t top_table(void)
{
	uint64_t value;
	struct kvm_one_reg reg = {
		.id = TTBR0_EL1,
		.addr = (uintptr_t)&value,
	};

	must(ioctl(bed.vcpu->fd, KVM_GET_ONE_REG, &reg), "KVM_GET_ONE_REG");
	return value;
}

#endif

static int uffd;

void *page_at(unsigned int page)
{
	return bed.ram + page * PAGE;
}

uint64_t gpa_of(unsigned int page)
{
	return RAM + page * PAGE;
}

/* Where the machine's page tables end in nothing, put ours. */
static void map_window(void)
{
	uint64_t *top = (void *)(bed.machine->control +
				 (top_table() & ENTRY_ADDRESS));
	uint64_t *upper = (void *)(bed.machine->control +
				   (top[0] & ENTRY_ADDRESS));
	uint64_t *directory = page_at(DIRECTORY);
	uint64_t *table = page_at(TABLE);

	if (upper[WINDOW >> 30])
		answer("cannot ask: the window is in use");
	upper[WINDOW >> 30] = gpa_of(DIRECTORY) | TABLE_BITS;
	directory[0] = gpa_of(TABLE) | TABLE_BITS;
	directory[1] = gpa_of(LOST_TABLE) | TABLE_BITS;
	table[ENTRY_OF_DATA] = gpa_of(DATA) | PAGE_BITS;
	table[ENTRY_OF_DATA + 1] = gpa_of(LOST_DATA) | PAGE_BITS;
}

void start_with_tables(void)
{
	start();
	memset(bed.ram, 0, PAGES * PAGE);
	map_window();
#ifdef __x86_64__
	catch_page_faults();
#endif
	*(uint64_t *)page_at(DATA) = WORD;
}

void put_marker(unsigned int page)
{
	must(fallocate(bed.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		       (off_t)(page * PAGE), PAGE), "fallocate");
	uffd = uffd_of_ram(0, 0);
	errno = -uffd_poison(uffd, page_at(page), PAGE);
	may(errno ? -1 : 0);
	aim(gpa_of(page), page_at(page));
}

void copy_over_marker(unsigned int page, const void *from)
{
	errno = -uffd_copy(uffd, page_at(page), from, PAGE);
	must(errno ? -1 : 0, "copy");
}

void copy_table(void)
{
	static uint64_t table[PAGE / 8];

	table[ENTRY_OF_DATA] = gpa_of(DATA) | PAGE_BITS;
	copy_over_marker(LOST_TABLE, table);
}

static void map_table(void)
{
	uint64_t *table = page_at(LOST_TABLE);

	must_map(mmap(table, PAGE, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_FIXED, bed.memfd, LOST_TABLE * PAGE),
		 "mmap");
	table[ENTRY_OF_DATA] = gpa_of(DATA) | PAGE_BITS;
}

static enum outcome read_window(uint64_t address)
{
	enum outcome outcome = touch(MACHINE_READ, address, 8, 0, 0);

#ifdef __x86_64__
	seen_by_guest(outcome, address);
#endif
	return outcome;
}

/* By way of the table that is there it has to work. */
static void start_and_check(void)
{
	start_with_tables();
	if (read_window(GOOD) != COMPLETES ||
	    machine_result(bed.vcpu) != WORD)
		answer("cannot ask: all is present, but: %s", bed.said);
}

static void table_marked(int arg)
{
	(void)arg;
	start_and_check();
	put_marker(LOST_TABLE);
	conclude(read_window(LOST), copy_table, WORD);
}

static void table_unmapped(int arg)
{
	(void)arg;
	start_and_check();
	must(munmap(page_at(LOST_TABLE), PAGE), "munmap");
	aim(gpa_of(LOST_TABLE), page_at(LOST_TABLE));
	conclude(read_window(LOST), map_table, WORD);
}

void read_missing_table(struct reader *reader)
{
	*reader = (struct reader){ .word = gpa_of(DATA) | PAGE_BITS };
	must(fallocate(bed.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		       LOST_TABLE * PAGE, PAGE), "fallocate");
	reader->fd = uffd_of_ram(0, UFFD_FEATURE_THREAD_ID);
	reader_start(reader);
}

void conclude_missing_table(const struct reader *reader)
{
	pthread_join(reader->thread, NULL);
	if (reader->address != page_at(LOST_TABLE))
		answer("message, wrong address");
	answer("message, ptid=%s",
	       reader->ptid == (uint32_t)gettid() ? "vcpu" : "other");
}

static void table_missing(int arg)
{
	struct reader reader;

	(void)arg;
	start_and_check();
	read_missing_table(&reader);
	if (read_window(LOST) != COMPLETES ||
	    machine_result(bed.vcpu) != WORD)
		answer("%s", bed.said);
	conclude_missing_table(&reader);
}

const struct row table_rows[] = {
	{ "page table marked", BOTH, table_marked, 0 },
	{ "page table unmapped", BOTH, table_unmapped, 0 },
	{ "page table missing", BOTH, table_missing, 0 },
	{ NULL, 0, NULL, 0 },
};
