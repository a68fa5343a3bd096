/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */
/*
 * The machine's x86-64 half, see machine-arch.h. The guest runs in 64-bit
 * mode at CPL 3, or at CPL 0 as supervisor.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "machine-arch.h"

/* Control memory, the same bytes as guest physical addresses. */
enum {
	GDT_GPA = 0x0000,
	TSS_GPA = 0x0800,	/* all zero: no stack switch, IOPL is 3 */
	IDT_GPA = 0x1000,
	CODE_GPA = 0x2000,	/* 8 KiB; the blob has less than one */
	AREA_GPA = 0x4000,
	TABLE_GPA = AREA_GPA + MACHINE_MAX_VCPUS * AREA_SIZE,
};

/* In area.arch, as guest_x86_64.S has it. */
enum {
	FAULT_STATE,
	FAULT_SAME,
	FAULT_RETRIED,
	FAULT_VECTOR,
	FAULT_ERROR,
	FAULT_RIP,
	FAULT_RFLAGS,
	FAULT_RSP,
	FAULT_TRIES,
};

/*
 * The selectors are Linux's own: on PVM, an iretq of the guest's CPL 3 loads
 * them from the host's descriptor table.
 */
enum {
	KERNEL_CS = 0x10,
	KERNEL_SS = 0x18,
	USER_SS = 0x2b,
	USER_CS = 0x33,
	TASK = 0x40,
};

enum {
	DONE_PORT = 0xf4,
	CRASHED_PORT = 0xf6,
	EXCEPTIONS = 32,
	FAULT_ENTRY = 16,	/* bytes */
	DOUBLE_FAULT = 8,
	PAGE_FAULT = 14,
	TIMER_VECTOR = 0x40,
	INTERRUPT_VECTOR = 0x41,
	APIC_HZ = 1000000000,	/* KVM's APIC bus */
};

#define APIC_BASE	0xfee00000U
#define APIC_PAGE	UINT64_C(0xfee00000)
#define APIC_GIB	(APIC_PAGE / GIB)

/* Bits of a page table entry; accessed and dirty, so that none is written. */
#define PTE_RAM		UINT64_C(0x067)
#define PTE_UNCACHED	UINT64_C(0x018)
#define PTE_LEAF	UINT64_C(0x080)
#define PTE_PRESENT	UINT64_C(0x001)
#define PTE_FRAME	UINT64_C(0x000ffffffffff000)

#define LARGE_PAGE	(UINT64_C(2) << 20)
#define ENTRIES		512

extern const unsigned char guest_tick_user[], guest_tick_supervisor[];
extern const unsigned char guest_interrupt_user[];
extern const unsigned char guest_interrupt_supervisor[];
extern const unsigned char guest_faults[];

static uint64_t code_gpa(const unsigned char *symbol)
{
	return CODE_GPA + guest_offset(symbol);
}

uint64_t arch_area_gpa(unsigned int vcpu)
{
	return AREA_GPA + (uint64_t)vcpu * AREA_SIZE;
}

static struct area *area_of(const struct machine_vcpu *vcpu)
{
	return control_at(vcpu->machine, arch_area_gpa(vcpu->id));
}

int arch_init_vm(struct machine *m, const struct machine_options *options)
{
	int ret;

	/* Intel's back end wants three pages for itself, others ignore this. */
	ret = kvm_ioctl_number(m->vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000);
	if (!ret && options->irqchip)
		ret = kvm_ioctl_number(m->vm_fd, KVM_CREATE_IRQCHIP, 0);
	return ret;
}

static int get_cpuid(struct machine *m, struct kvm_cpuid2 **out)
{
	const uint32_t max = 256;
	struct kvm_cpuid2 *cpuid;
	int ret;

	cpuid = calloc(1, sizeof(*cpuid) + max * sizeof(cpuid->entries[0]));
	if (!cpuid)
		return -ENOMEM;
	cpuid->nent = max;
	ret = kvm_ioctl(m->kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid);
	if (ret < 0) {
		free(cpuid);
		return ret;
	}
	*out = cpuid;
	return 0;
}

/* Whether the guest may use pages of 1 GiB. */
static int has_gib_pages(struct machine *m)
{
	struct kvm_cpuid2 *cpuid;
	int found = 0;
	uint32_t i;
	int ret;

	ret = get_cpuid(m, &cpuid);
	if (ret)
		return ret;
	for (i = 0; i < cpuid->nent; i++)
		if (cpuid->entries[i].function == 0x80000001)
			found = !!(cpuid->entries[i].edx & 1U << 26);
	free(cpuid);
	return found;
}

/* Fill the page directory of one GiB. */
static void map_gib(uint64_t *directory, uint64_t gpa)
{
	unsigned int i;

	for (i = 0; i < ENTRIES; i++, gpa += LARGE_PAGE) {
		directory[i] = gpa | PTE_LEAF | PTE_RAM;
		if (gpa == APIC_PAGE)
			directory[i] |= PTE_UNCACHED;
	}
}

/*
 * Page tables from TABLE_GPA on: the top level, then the next one for all
 * of gibs, then directories.
 */
static void build_tables(struct machine *m, uint64_t gibs, bool gib_pages)
{
	uint64_t uppers = (gibs + ENTRIES - 1) / ENTRIES;
	uint64_t next = TABLE_GPA + (1 + uppers) * PAGE;
	uint64_t *top = control_at(m, TABLE_GPA);
	uint64_t *upper = top + ENTRIES;
	uint64_t i;

	for (i = 0; i < uppers; i++)
		top[i] = (TABLE_GPA + (1 + i) * PAGE) | PTE_RAM;
	for (i = 0; i < gibs; i++) {
		if (gib_pages && i != APIC_GIB) {
			upper[i] = i * GIB | PTE_LEAF | PTE_RAM;
			continue;
		}
		upper[i] = next | PTE_RAM;
		map_gib(control_at(m, next), i * GIB);
		next += PAGE;
	}
}

/* One descriptor; access and flags are its bits 40 to 55. */
static uint64_t descriptor(uint64_t access_flags)
{
	return UINT64_C(0x000f00000000ffff) | access_flags << 40;
}

/* A trap gate at CPL 3, see guest_tick_user; an interrupt gate. */
static void build_gate(struct machine *m, unsigned int vector,
		       const unsigned char *user,
		       const unsigned char *supervisor)
{
	uint64_t *gate = (uint64_t *)control_at(m, IDT_GPA) +
			 (size_t)vector * 2;

	if (m->supervisor)
		*gate = code_gpa(supervisor) | KERNEL_CS << 16 |
			UINT64_C(0x8e00) << 32;
	else
		*gate = code_gpa(user) | USER_CS << 16 | UINT64_C(0xef00) << 32;
}

static void build_descriptors(struct machine *m)
{
	uint64_t *gdt = control_at(m, GDT_GPA);
	unsigned int i;

	gdt[KERNEL_CS / 8] = descriptor(0xa09b);
	gdt[KERNEL_SS / 8] = descriptor(0xc093);
	gdt[USER_SS / 8] = descriptor(0xc0f3);
	gdt[USER_CS / 8] = descriptor(0xa0fb);
	for (i = 0; i < EXCEPTIONS; i++)
		build_gate(m, i, guest_faults + i * FAULT_ENTRY,
			   guest_faults + i * FAULT_ENTRY);
	build_gate(m, TIMER_VECTOR, guest_tick_user, guest_tick_supervisor);
	build_gate(m, INTERRUPT_VECTOR, guest_interrupt_user,
		   guest_interrupt_supervisor);
}

int arch_map(struct machine *m, uint64_t gibs)
{
	uint64_t tables;
	int gib_pages, ret;

	/* The lower half of 48 bits is what four levels can map. */
	if (gibs > ENTRIES * ENTRIES / 2)
		return -EINVAL;
	gib_pages = has_gib_pages(m);
	if (gib_pages < 0)
		return gib_pages;
	tables = 1 + (gibs + ENTRIES - 1) / ENTRIES + (gib_pages ? 1 : gibs);
	ret = machine_alloc_control(m, TABLE_GPA + tables * PAGE);
	if (ret)
		return ret;
	memcpy(control_at(m, CODE_GPA), guest_start, guest_offset(guest_end));
	build_tables(m, gibs, gib_pages);
	build_descriptors(m);
	return 0;
}

int arch_init_vcpu(struct machine_vcpu *vcpu)
{
	struct kvm_cpuid2 *cpuid;
	int ret;

	ret = get_cpuid(vcpu->machine, &cpuid);
	if (ret)
		return ret;
	ret = kvm_ioctl(vcpu->fd, KVM_SET_CPUID2, cpuid);
	free(cpuid);
	return ret;
}

static struct kvm_segment segment(uint16_t selector, bool code)
{
	uint8_t dpl = selector & 3;

	return (struct kvm_segment){
		.selector = selector,
		.limit = 0xffffffff,
		.type = code ? 0xb : 0x3,
		.present = 1,
		.dpl = dpl,
		.s = 1,
		.l = code,
		.db = !code,
		.g = 1,
	};
}

/* 64-bit mode with paging and SSE, interrupts as KVM set them up. */
static int set_sregs(struct machine_vcpu *vcpu)
{
	bool supervisor = vcpu->machine->supervisor;
	struct kvm_sregs sregs;
	int ret;

	ret = kvm_ioctl(vcpu->fd, KVM_GET_SREGS, &sregs);
	if (ret)
		return ret;
	sregs.cr0 = 0x80050033;
	sregs.cr3 = TABLE_GPA;
	sregs.cr4 = 0x620;
	sregs.efer = 0xd01;
	sregs.cs = segment(supervisor ? KERNEL_CS : USER_CS, true);
	sregs.ss = segment(supervisor ? KERNEL_SS : USER_SS, false);
	sregs.ds = sregs.ss;
	sregs.es = sregs.ss;
	sregs.fs = sregs.ss;
	sregs.gs = sregs.ss;
	sregs.gs.base = arch_area_gpa(vcpu->id);
	sregs.gdt.base = GDT_GPA;
	sregs.gdt.limit = TASK - 1;
	sregs.idt.base = IDT_GPA;
	sregs.idt.limit = PAGE - 1;
	sregs.tr = (struct kvm_segment){
		.selector = TASK,
		.base = TSS_GPA,
		.limit = 0x67,
		.type = 0xb,
		.present = 1,
	};
	return kvm_ioctl(vcpu->fd, KVM_SET_SREGS, &sregs);
}

static void set_apic(struct kvm_lapic_state *apic, unsigned int reg,
		     uint32_t value)
{
	memcpy(apic->regs + reg, &value, sizeof(value));
}

/* Start the vCPU's periodic timer, so that the guest has nothing to do. */
static int start_timer(struct machine_vcpu *vcpu)
{
	struct kvm_lapic_state apic;
	unsigned int reg;
	uint32_t period = APIC_HZ / machine_tick_rate(vcpu->machine);
	int ret;

	ret = kvm_ioctl(vcpu->fd, KVM_GET_LAPIC, &apic);
	if (ret)
		return ret;
	for (reg = 0x100; reg < 0x180; reg += 0x10)	/* none in service */
		set_apic(&apic, reg, 0);
	set_apic(&apic, 0x0f0, 0x1ff);			/* enable */
	set_apic(&apic, 0x320, 0x20000 | TIMER_VECTOR);	/* periodic */
	set_apic(&apic, 0x3e0, 0xb);			/* undivided */
	set_apic(&apic, 0x380, period);
	set_apic(&apic, 0x390, period);			/* what is left */
	return kvm_ioctl(vcpu->fd, KVM_SET_LAPIC, &apic);
}

int arch_reset_vcpu(struct machine_vcpu *vcpu)
{
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };
	int ret;

	ret = set_sregs(vcpu);
	if (!ret && vcpu->machine->timer)
		ret = start_timer(vcpu);
	/* Secondary vCPUs would wait for a start-up message otherwise. */
	return ret ? ret : kvm_ioctl(vcpu->fd, KVM_SET_MP_STATE, &runnable);
}

/* Nothing is left to do. */
int arch_start(struct machine *m, const struct machine_options *options)
{
	(void)m;
	(void)options;
	return 0;
}

/*
 * KVM finishes a device access on the next KVM_RUN and would spoil the
 * registers set meanwhile: have it finish now. An access in many parts
 * exits for each of them.
 */
int arch_finish_exit(struct machine_vcpu *vcpu)
{
	int ret;

	vcpu->run->immediate_exit = 1;
	do
		ret = kvm_ioctl_number(vcpu->fd, KVM_RUN, 0);
	while (!ret);
	vcpu->run->immediate_exit = 0;
	vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
	return ret == -EINTR ? 0 : ret;
}

int arch_call(struct machine_vcpu *vcpu, uint64_t offset,
	      const uint64_t args[4])
{
	struct kvm_regs regs = {
		.rip = CODE_GPA + offset,
		.rdi = args[0],
		.rsi = args[1],
		.rdx = args[2],
		.rcx = args[3],
		.rsp = arch_area_gpa(vcpu->id) + AREA_SIZE,
		.rflags = vcpu->machine->timer ? 0x3202 : 0x3002,
	};
	uint64_t *fault = area_of(vcpu)->arch;

	fault[FAULT_SAME] = 0;
	fault[FAULT_TRIES] = vcpu->machine->fault_tries;
	return kvm_ioctl(vcpu->fd, KVM_SET_REGS, &regs);
}

int arch_interrupt(struct machine_vcpu *vcpu)
{
	struct kvm_msi msi = {
		.address_lo = APIC_BASE | vcpu->id << 12,
		.data = INTERRUPT_VECTOR,
	};
	int ret = kvm_ioctl(vcpu->machine->vm_fd, KVM_SIGNAL_MSI, &msi);

	/* How many it reached. */
	return ret < 0 ? ret : ret == 1 ? 0 : -ENXIO;
}

static bool wrote_port(const struct kvm_run *run, unsigned int port)
{
	return run->exit_reason == KVM_EXIT_IO &&
	       run->io.direction == KVM_EXIT_IO_OUT && run->io.port == port;
}

bool arch_done(const struct kvm_run *run)
{
	return wrote_port(run, DONE_PORT);
}

bool arch_crashed(const struct kvm_run *run)
{
	return wrote_port(run, CRASHED_PORT);
}

/* What the guest's tables, as far as they are the machine's own, say of an
 * address. */
static const char *mapped(const struct machine *m, uint64_t cr3, uint64_t at)
{
	uint64_t table = cr3 & PTE_FRAME, entry;
	int shift;

	for (shift = 39; ; shift -= 9) {
		if (table >= m->control_size)
			return "whose table is not the machine's";
		entry = ((uint64_t *)control_at(m, table))[at >> shift &
							   (ENTRIES - 1)];
		if (!(entry & PTE_PRESENT))
			return "which the guest's tables do not map";
		if (shift == 12 || (shift < 39 && entry & PTE_LEAF))
			return "which the guest's tables map";
		table = entry & PTE_FRAME;
	}
}

/* Outside of the guest's own code the address is all that there is to say. */
static void add_place(char *text, size_t size, uint64_t rip, uint64_t rsp)
{
	bool known = rip >= CODE_GPA && rip < code_gpa(guest_end);
	size_t length = strlen(text);

	snprintf(text + length, size - length,
		 " at %s%#llx, rsp %#llx", known ? "its code + " : "",
		 (unsigned long long)(known ? rip - CODE_GPA : rip),
		 (unsigned long long)rsp);
}

static void add_address(const struct machine *m, char *text, size_t size,
			const struct kvm_sregs *sregs)
{
	size_t length = strlen(text);

	snprintf(text + length, size - length, ", cr2 %#llx, %s",
		 (unsigned long long)sregs->cr2,
		 mapped(m, sregs->cr3, sregs->cr2));
}

/* By the registers alone, if the back end has not reset the vCPU meanwhile. */
static void story_of_registers(const struct machine_vcpu *vcpu, char *text,
			       size_t size, const struct kvm_sregs *sregs)
{
	struct kvm_vcpu_events events;
	struct kvm_regs regs;

	if (sregs->cr3 != TABLE_GPA) {
		snprintf(text, size, ": the vCPU was reset");
		return;
	}
	if (kvm_ioctl(vcpu->fd, KVM_GET_REGS, &regs) ||
	    kvm_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events))
		return;
	add_place(text, size, regs.rip, regs.rsp);
	add_address(vcpu->machine, text, size, sregs);
	if (events.exception.injected || events.exception.pending)
		snprintf(text + strlen(text), size - strlen(text),
			 ", exception %u queued", events.exception.nr);
	if (events.interrupt.injected)
		snprintf(text + strlen(text), size - strlen(text),
			 ", interrupt %#x queued", events.interrupt.nr);
}

static void story_of_fault(const struct machine_vcpu *vcpu, char *text,
			   size_t size, const struct kvm_sregs *sregs)
{
	const uint64_t *fault = area_of(vcpu)->arch;
	unsigned long long vector = fault[FAULT_VECTOR];

	snprintf(text, size, ": the guest met exception %llu, error code %#llx,",
		 vector, (unsigned long long)fault[FAULT_ERROR]);
	add_place(text, size, fault[FAULT_RIP], fault[FAULT_RSP]);
	if (vector == PAGE_FAULT || vector == DOUBLE_FAULT)
		add_address(vcpu->machine, text, size, sregs);
}

void arch_story(const struct machine_vcpu *vcpu, char *text, size_t size)
{
	struct kvm_sregs sregs;

	text[0] = '\0';
	if (kvm_ioctl(vcpu->fd, KVM_GET_SREGS, &sregs))
		return;
	if (arch_crashed(vcpu->run))
		story_of_fault(vcpu, text, size, &sregs);
	else
		story_of_registers(vcpu, text, size, &sregs);
	snprintf(text + strlen(text), size - strlen(text),
		 "; page faults that were tried again: %llu",
		 (unsigned long long)arch_retried(vcpu));
}

uint64_t arch_retried(const struct machine_vcpu *vcpu)
{
	return __atomic_load_n(&area_of(vcpu)->arch[FAULT_RETRIED],
			       __ATOMIC_RELAXED);
}

void machine_put_return(void *host)
{
	*(unsigned char *)host = 0xc3;
}
