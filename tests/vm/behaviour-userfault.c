/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The two proposals by which a missing page leaves KVM_RUN, with flag 1 << 3 of
 * a memslot: KVM_MEM_USERFAULT and KVM_MEM_EXIT_ON_MISSING. Neither is merged:
 * most kernels refuse the flag. The one that is built with userfault.patch has
 * either, as its parameter says when a VM is made.
 */

#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "behaviour.h"

#define PARAMETER "/sys/module/kvm/parameters/exit_abi"
#define USERFAULT "1"
#define ON_MISSING "2"
#define FLAG (1U << 3)
#define WORD 0x6c62272e07bb0142ULL

static int uffd;
static unsigned long *bitmap;

static void write_parameter(const char *abi)
{
	int fd = open(PARAMETER, O_WRONLY | O_CLOEXEC);

	/* Another kernel: whatever it has, it has for all VMs. */
	if (fd < 0)
		return;
	must(write(fd, abi, 1), PARAMETER);
	close(fd);
}

/* For others nothing has changed. */
static void start_with(const char *abi)
{
	write_parameter(abi);
	start();
	write_parameter("0");
}

static void set_slot(uint32_t flags)
{
	errno = -machine_set_userfault_slot(bed.machine, 1, flags, RAM,
					    PAGES * PAGE, bed.ram,
					    (uintptr_t)bitmap);
	may(errno ? -1 : 0);
}

static void set_bit(char *page)
{
	__atomic_fetch_or(bitmap, 1UL << (page - bed.ram) / PAGE,
			  __ATOMIC_SEQ_CST);
}

static void clear_bit(char *page)
{
	__atomic_fetch_and(bitmap, ~(1UL << (page - bed.ram) / PAGE),
			   __ATOMIC_RELEASE);
}

/* Aimed at a page in the middle; no bit is set. */
static void start_userfault(uint32_t flags)
{
	start_with(USERFAULT);
	bitmap = must_map(mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
	set_slot(FLAG | flags);
	aim(RAM + 5 * PAGE, bed.ram + 5 * PAGE);
}

static void copy(void)
{
	errno = -uffd_copy(uffd, bed.hva, filled(WORD), PAGE);
	must(errno ? -1 : 0, "copy");
}

static void copy_and_clear(void)
{
	copy();
	clear_bit(bed.hva);
}

static void clear(void)
{
	clear_bit(bed.hva);
}

static void set(int write)
{
	start_userfault(0);
	uffd = uffd_of_ram(0, 0);
	set_bit(bed.hva);
	if (write)
		conclude(touch_write(), copy_and_clear, 1);
	conclude(touch_read(), copy_and_clear, WORD);
}

/* Where nothing is missing. */
static void set_and_present(int arg)
{
	(void)arg;
	start_userfault(0);
	memcpy(bed.hva, filled(WORD), PAGE);
	set_bit(bed.hva);
	conclude(touch_read(), clear, WORD);
}

static void touched_once(uint32_t flags)
{
	start_userfault(flags);
	memcpy(bed.hva, filled(WORD), PAGE);
	if (touch_read() != COMPLETES)
		answer("at first: %s", bed.said);
	set_bit(bed.hva);
}

static void mapped(int arg)
{
	(void)arg;
	touched_once(0);
	conclude(touch_read(), clear, WORD);
}

static void toggled(int arg)
{
	(void)arg;
	touched_once(0);
	set_slot(0);
	set_slot(FLAG);
	conclude(touch_read(), clear, WORD);
}

static void switched_off(int arg)
{
	(void)arg;
	start_userfault(0);
	memcpy(bed.hva, filled(WORD), PAGE);
	set_bit(bed.hva);
	set_slot(0);
	conclude(touch_read(), clear, WORD);
}

static void put_again(void)
{
	memcpy(bed.hva, filled(WORD), PAGE);
	clear_bit(bed.hva);
}

static void punched(int arg)
{
	(void)arg;
	touched_once(0);
	must(fallocate(bed.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		       bed.hva - bed.ram, PAGE), "fallocate");
	conclude(touch_read(), put_again, WORD);
}

static void allow_bitmap(void)
{
	must(mprotect(bitmap, PAGE, PROT_READ), "mprotect");
}

static void unreadable(int arg)
{
	(void)arg;
	start_userfault(0);
	memcpy(bed.hva, filled(WORD), PAGE);
	must(mprotect(bitmap, PAGE, PROT_NONE), "mprotect");
	conclude(touch_read(), allow_bitmap, WORD);
}

static void no_such_bitmap(int arg)
{
	int ret;

	(void)arg;
	start_userfault(0);
	set_slot(0);
	ret = machine_set_userfault_slot(bed.machine, 1, FLAG, RAM,
					 PAGES * PAGE, bed.ram, UINT64_MAX);
	answer("%s", ret ? strerrorname_np(-ret) : "accepted");
}

static void old_call(int arg)
{
	int ret;

	start_with(arg ? ON_MISSING : USERFAULT);
	ret = machine_set_slot(bed.machine, 1, FLAG, RAM, PAGES * PAGE,
			       bed.ram);
	answer("%s", ret ? strerrorname_np(-ret) : "accepted");
}

/* Beside it: what the guest writes is in the log, and log and flag are switched
 * without each other. */
static void dirty_log(int arg)
{
	uint64_t log[PAGES / 64 + 1] = { 0 };
	struct kvm_dirty_log get = { .slot = 1, .dirty_bitmap = log };
	uint64_t dirty;

	(void)arg;
	touched_once(KVM_MEM_LOG_DIRTY_PAGES);
	set_slot(KVM_MEM_LOG_DIRTY_PAGES);
	set_slot(KVM_MEM_LOG_DIRTY_PAGES | FLAG);
	if (touch_write() != FAULTS)
		answer("%s", bed.said);
	clear();
	if (resume() != COMPLETES)
		answer("cured: %s", bed.said);
	must(ioctl(bed.machine->vm_fd, KVM_GET_DIRTY_LOG, &get), "log");
	dirty = log[0];
	set_slot(FLAG);
	set_bit(bed.hva);
	set_slot(0);
	if (touch_read() != COMPLETES)
		answer("without both: %s", bed.said);
	answer("exit, %s", dirty == 1UL << 5 ? "and it is dirty" :
					       "and it is not dirty");
}

/* A huge page behind it: the flag has it mapped in pages of 4 KiB. */
static void huge(int arg)
{
	int fd;

	(void)arg;
	start_userfault(0);
	if (!throwaway())
		answer("not asked: takes a huge page from others");
	fd = must(memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB |
			       21U << MAP_HUGE_SHIFT), "memfd");
	must(ftruncate(fd, HUGE), "ftruncate");
	bed.ram = must_map(mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED,
				fd, 0), "mmap");
	memcpy(bed.ram, filled(WORD), HUGE);
	errno = -machine_set_userfault_slot(bed.machine, 2, FLAG, OTHER, HUGE,
					    bed.ram, (uintptr_t)bitmap);
	must(errno ? -1 : 0, "slot");
	set_bit(bed.ram + 6 * PAGE);
	aim(OTHER + 5 * PAGE, bed.ram + 5 * PAGE);
	if (touch_read() != COMPLETES)
		answer("its neighbour: %s", bed.said);
	aim(OTHER + 6 * PAGE, bed.ram + 6 * PAGE);
	conclude(touch_read(), clear, WORD);
}

static void pre_fault(int arg)
{
	struct pre_fault_memory range = { .size = PAGE };
	int ret;

	(void)arg;
	start_userfault(0);
	memcpy(bed.hva, filled(WORD), PAGE);
	set_bit(bed.hva);
	range.gpa = bed.gpa;
	ret = ioctl(bed.vcpu->fd, PRE_FAULT_MEMORY, &range);
	answer("%s, exit reason %u is left",
	       ret ? strerrorname_np(errno) : "0", bed.vcpu->run->exit_reason);
}

/* ---- exit on missing ---- */

static void start_missing(void)
{
	start_with(ON_MISSING);
	set_slot(FLAG);
	aim(RAM + 5 * PAGE, bed.ram + 5 * PAGE);
}

static void missing(int write)
{
	start_missing();
	uffd = uffd_of_ram(0, 0);
	if (write)
		conclude(touch_write(), copy, 1);
	conclude(touch_read(), copy, WORD);
}

static void copy_return(void)
{
	static char page[PAGE];

	machine_put_return(page);
	errno = -uffd_copy(uffd, bed.hva, page, PAGE);
	must(errno ? -1 : 0, "copy");
}

static void missing_code(int arg)
{
	(void)arg;
	start_missing();
	uffd = uffd_of_ram(0, 0);
	conclude(touch(MACHINE_JUMP, bed.gpa, 7, 0, 0), copy_return, 7);
}

static void populate(void)
{
	must(madvise(bed.hva, PAGE, MADV_POPULATE_WRITE), "populate");
}

/* In the file; the slot's own mapping has not been touched there. */
static void not_mapped(int arg)
{
	(void)arg;
	start_missing();
	must(pwrite(bed.memfd, filled(WORD), PAGE, bed.hva - bed.ram),
	     "pwrite");
	conclude(touch_read(), populate, WORD);
}

/* Anonymous memory that was read: one zero page for all, not to be written. */
static void zero_page(int arg)
{
	(void)arg;
	start_missing();
	bed.hva = must_map(mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
	must(madvise(bed.hva, PAGE, MADV_POPULATE_READ), "populate");
	errno = -machine_set_slot(bed.machine, 2, FLAG, OTHER, PAGE, bed.hva);
	must(errno ? -1 : 0, "slot");
	aim(OTHER, bed.hva);
	conclude(touch_read(), populate, 0);
}

static void map_again(void)
{
	must_map(mmap(bed.hva, PAGE, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_FIXED | MAP_POPULATE, bed.memfd,
		      bed.hva - bed.ram), "mmap");
}

static void no_mapping(int arg)
{
	(void)arg;
	start_missing();
	must(munmap(bed.hva, PAGE), "munmap");
	conclude(touch_read(), map_again, 0);
}

static void read_only(int arg)
{
	int ret;

	start_with(arg ? ON_MISSING : USERFAULT);
	bitmap = must_map(mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), "mmap");
	ret = machine_set_userfault_slot(bed.machine, 2,
					 FLAG | KVM_MEM_READONLY, OTHER,
					 PAGES * PAGE, bed.ram,
					 (uintptr_t)bitmap);
	answer("%s", ret ? strerrorname_np(-ret) : "accepted");
}

const struct row userfault_rows[] = {
	{ "userfault", BOTH, set, false },
	{ "userfault, written", BOTH, set, true },
	{ "userfault, present", BOTH, set_and_present, 0 },
	{ "userfault, mapped", 0, mapped, 0 },
	{ "userfault, toggled", 0, toggled, 0 },
	{ "userfault, switched off", 0, switched_off, 0 },
	{ "userfault, hole", 0, punched, 0 },
	{ "userfault, bitmap unreadable", BOTH, unreadable, 0 },
	{ "userfault, bitmap impossible", 0, no_such_bitmap, 0 },
	{ "userfault, old call", 0, old_call, false },
	{ "userfault, read-only slot", 0, read_only, false },
	{ "userfault, dirty log", 0, dirty_log, 0 },
	{ "userfault, huge page", 0, huge, 0 },
	{ "userfault, pre-fault", 0, pre_fault, 0 },
	{ "exit on missing", BOTH, missing, false },
	{ "exit on missing, written", BOTH, missing, true },
	{ "exit on missing, code", BOTH, missing_code, 0 },
	{ "exit on missing, not mapped", 0, not_mapped, 0 },
	{ "exit on missing, zero page", 0, zero_page, 0 },
	{ "exit on missing, unmapped", 0, no_mapping, 0 },
	{ "exit on missing, old call", 0, old_call, true },
	{ "exit on missing, read-only slot", 0, read_only, true },
	{ NULL, 0, NULL, 0 },
};
