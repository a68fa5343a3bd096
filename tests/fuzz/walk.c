/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The walk over a guest's page tables. Input: registers, then what stands where
 * in the tables. Whatever it is, the walk ends, and exactly those pages are
 * present that a processor could read as a table.
 */

#include <linux/falloc.h>
#include <linux/kvm.h>

#include "../fake-sys.h"
#include "fuzz.h"
#include "lib/setup/setup.h"

#define GPA 0x100000ULL
#define PAGES 8
#define LEVELS 5
#define FRAME 0x000ffffffffff000ULL

static uint64_t ram[PAGES][PAGE / 8];	/* what the source has */
static struct kvm_sregs sregs;
static struct kvm_run run;
static bool table[LEVELS + 1][PAGES];	/* this page is one at this level */

static bool on_ioctl(struct fake_call *call)
{
	call->result = 0;
	if (call->number == KVM_GET_SREGS)
		memcpy(call->arg, &sregs, sizeof(sregs));
	else if (call->number == KVM_GET_VCPU_EVENTS)
		memset(call->arg, 0, sizeof(struct kvm_vcpu_events));
	else if (call->number == KVM_GET_REGS)
		memset(call->arg, 0, sizeof(struct kvm_regs));
	else if (call->number == KVM_TRANSLATE)	/* nothing is mapped */
		((struct kvm_translation *)call->arg)->valid = 0;
	else
		return false;
	return true;
}

static int read_ram(void *data, uint64_t offset, void *buffer, size_t length)
{
	(void)data;
	memcpy(buffer, (char *)ram + offset, length);
	return 0;
}

/* ---- the same, another way: over and over until nothing is new ---- */

static bool wide(void)
{
	return sregs.efer & 0x400 || sregs.cr4 & 0x20;
}

static int top(void)
{
	if (sregs.efer & 0x400)
		return sregs.cr4 & 0x1000 ? 5 : 4;
	return wide() ? 3 : 2;
}

static bool large(int level)
{
	if (level == 3)
		return sregs.efer & 0x400;
	return level == 2 && (wide() || sregs.cr4 & 0x10);
}

static bool note(int level, uint64_t gpa)
{
	uint64_t page = (gpa - GPA) / PAGE;

	if (gpa < GPA || page >= PAGES || table[level][page])
		return false;
	return table[level][page] = true;
}

static bool note_entries(int level, uint64_t page)
{
	bool few = level == 3 && !(sregs.efer & 0x400);
	uint64_t first = few ? (sregs.cr3 & 0xfe0) / 8 : 0;
	uint64_t i, count = few ? 4 : PAGE / (wide() ? 8 : 4), entry;
	bool new = false;

	for (i = first; i < first + count; i++) {
		entry = wide() ? ram[page][i] : ((uint32_t *)ram[page])[i];
		if (entry & 1 && !(entry & 0x80 && large(level)))
			new |= note(level - 1, entry & FRAME);
	}
	return new;
}

static void walk(void)
{
	bool new = true;
	uint64_t page;
	int level;

	memset(table, 0, sizeof(table));
	if (!(sregs.cr0 & 0x80000000))
		return;
	note(top(), sregs.efer & 0x400 ? sregs.cr3 & FRAME :
					 sregs.cr3 & 0xfffff000);
	while (new) {
		new = false;
		for (level = 2; level <= LEVELS; level++)
			for (page = 0; page < PAGES; page++)
				if (table[level][page])
					new |= note_entries(level, page);
	}
}

static bool is_table(uint64_t page)
{
	bool is = false;
	int level;

	for (level = 1; level <= LEVELS; level++)
		is |= table[level][page];
	return is;
}

/* ---- the input ---- */

static void take_registers(struct input *in)
{
	static const uint64_t modes[][2] = {	/* CR4, EFER */
		{ 0, 0 }, { 0x10, 0 }, { 0x20, 0 }, { 0x20, 0x500 },
		{ 0x1020, 0x500 },
	};
	uint8_t mode = next8(in), low = next8(in);

	memset(&sregs, 0, sizeof(sregs));
	sregs.cr0 = mode & 0x80 ? 0x11 : 0x80000011;
	sregs.cr4 = modes[mode % 5][0];
	sregs.efer = modes[mode % 5][1];
	sregs.cr3 = GPA + mode / 8 % PAGES * PAGE + low;
}

static void take_entry(struct input *in)
{
	uint8_t page = next8(in), place = next8(in), what = next8(in);
	uint64_t entry = GPA + what % PAGES * PAGE;

	/* At either end, and in the middle. */
	page %= PAGES;
	entry |= 1 | (what & 0x80);
	if (what & 0x40)
		next(in, &entry, sizeof(entry));
	if (wide())
		ram[page][place & 1 ? 511 - place / 2 : place] = entry;
	else
		((uint32_t *)ram[page])[place & 1 ? 1023 - place / 2 : place] =
			(uint32_t)entry;
}

static struct kvmfault_vm *vm;
static struct kvmfault_memory *memory;
static struct kvmfault_vcpu *vcpu;

static void up(int fd, int vcpu_fd, void *host)
{
	struct kvmfault_vm_options options = {
		.size = sizeof(options), .page_size_max = PAGE,
	};
	struct kvmfault_source source = {
		.size = sizeof(source), .read = read_ram,
	};
	struct kvmfault_memory_options mem = {
		.size = sizeof(mem), .host = host, .length = PAGES * PAGE,
		.fd = fd, .source = &source,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = GPA, .length = PAGES * PAGE,
	};
	struct kvmfault_vcpu_options cpu = {
		.size = sizeof(cpu), .fd = vcpu_fd, .run = &run,
	};

	MUST(!kvmfault_vm_new(&options, &vm));
	MUST(!kvmfault_memory_adopt(vm, &mem, &memory));
	region.memory = memory;
	MUST(!kvmfault_region_add(vm, &region));
	MUST(!kvmfault_vcpu_new(vm, &cpu, &vcpu));
	fake_on(FAKE_IOCTL, on_ioctl);
}

static void down(int fd)
{
	kvmfault_vcpu_free(vcpu);
	MUST(!kvmfault_region_remove(vm, 0, GPA));
	MUST(!kvmfault_memory_free(memory));
	kvmfault__sys_fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, PAGES * PAGE);
	MUST(!kvmfault_vm_free(vm));
	fake_forget();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd, vcpu_fd;
	static void *host;
	struct input in = { data, size };
	uint64_t page;

	if (!host) {
		fd = fake_memory(PAGES * PAGE, 0, &host);
		vcpu_fd = fake_fd(FAKE_KVM);
	}
	memset(ram, 0, sizeof(ram));
	take_registers(&in);
	while (in.left)
		take_entry(&in);
	walk();
	up(fd, vcpu_fd, host);
	MUST(!kvmfault_ensure_page_tables(vcpu));
	for (page = 0; page < PAGES; page++)
		MUST((kvmfault__page_state(memory, page) ==
		      KVMFAULT__PRESENT) == is_table(page));
	down(fd);
	return 0;
}
