/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */
/*
 * The machine's arm64 half, see machine-arch.h. The guest runs at EL0, or at
 * EL1 as supervisor; a stub at EL1 starts each routine, and the timer's
 * interrupts are taken there. The interrupt controller is a GICv3.
 */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "machine-arch.h"

/* Control memory, the same bytes as guest physical addresses. */
enum {
	CODE_GPA = 0x0000,	/* 8 KiB, read-only */
	AREA_GPA = 0x2000,
	TABLE_GPA = AREA_GPA + MACHINE_MAX_VCPUS * AREA_SIZE,
};

#define GIC_DISTRIBUTOR		UINT64_C(0xc0000000)
#define DONE_GPA		UINT64_C(0xe0000000)	/* guest_arm64.S's */
#define CRASHED_GPA		UINT64_C(0xe0000008)
#define GIC_REDISTRIBUTORS	UINT64_C(0xf0000000)
#define DEVICES_GIB		3

/* The virtual timer's private interrupt: 11. */
#define TIMER_BIT		(UINT64_C(1) << 27)
#define GICD_CTLR		0x0
#define GICD_CTLR_GROUP1	0x2
#define GICR_ISENABLER0		0x10100

/* What the stub finds in struct area; guest_arm64.S knows it. */
enum { ENTRY, PSTATE, ARGS, RATE = ARGS + 4 };

/* DAIF; that with EL1h, and EL0t is nothing. */
#define PSTATE_MASKED		0x3c0
#define PSTATE_EL1		0x005

/* Bits of a descriptor; accessed, so that none is written. */
#define PTE_TABLE	UINT64_C(0x003)
#define PTE_BLOCK	UINT64_C(0x001)
#define PTE_PAGE	UINT64_C(0x003)
#define PTE_RAM		UINT64_C(0x700)		/* accessed, shared */
#define PTE_DEVICE	(UINT64_C(0x404) | UINT64_C(3) << 53)
#define PTE_READONLY	UINT64_C(0x080)
#define PTE_USER	UINT64_C(0x040)

#define LARGE_PAGE	(UINT64_C(2) << 20)
#define ENTRIES		512
#define MAX_GIBS	1024	/* 40 bits: what the default VM has */

#define SCTLR_EL1	ARM64_SYS_REG(3, 0, 1, 0, 0)
#define CPACR_EL1	ARM64_SYS_REG(3, 0, 1, 0, 2)
#define TTBR0_EL1	ARM64_SYS_REG(3, 0, 2, 0, 0)
#define TCR_EL1		ARM64_SYS_REG(3, 0, 2, 0, 2)
#define MAIR_EL1	ARM64_SYS_REG(3, 0, 10, 2, 0)
#define VBAR_EL1	ARM64_SYS_REG(3, 0, 12, 0, 0)
#define TPIDR_EL0	ARM64_SYS_REG(3, 3, 13, 0, 2)
#define MPIDR_EL1	ARM64_SYS_REG(3, 0, 0, 0, 5)
#define CORE(reg) \
	(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | \
	 KVM_REG_ARM_CORE_REG(regs.reg))

extern const unsigned char guest_vectors[], guest_enter[];

int arch_init_vm(struct machine *m, const struct machine_options *options)
{
	(void)m;
	(void)options;
	return 0;
}

static uint64_t pte_ram(const struct machine *m)
{
	/* What EL0 may write, EL1 may not execute. */
	return m->supervisor ? PTE_RAM : PTE_RAM | PTE_USER;
}

/*
 * The first GiB: pages in its first 2 MiB, because both levels execute the
 * code in there.
 */
static void map_first_gib(struct machine *m, uint64_t *directory,
			  uint64_t pages_gpa)
{
	uint64_t *pages = control_at(m, pages_gpa);
	uint64_t i;

	directory[0] = pages_gpa | PTE_TABLE;
	for (i = 1; i < ENTRIES; i++)
		directory[i] = i * LARGE_PAGE | PTE_BLOCK | pte_ram(m);
	for (i = 0; i < ENTRIES; i++)
		pages[i] = i * PAGE | PTE_PAGE | pte_ram(m);
	for (i = CODE_GPA / PAGE; i < AREA_GPA / PAGE; i++)
		pages[i] |= PTE_READONLY;
}

/*
 * Tables from TABLE_GPA on: the top level, then the next one for all of
 * gibs, then those of the first GiB.
 */
static void build_tables(struct machine *m, uint64_t gibs, uint64_t uppers)
{
	uint64_t first = TABLE_GPA + (1 + uppers) * PAGE;
	uint64_t *top = control_at(m, TABLE_GPA);
	uint64_t *upper = top + ENTRIES;
	uint64_t i;

	for (i = 0; i < uppers; i++)
		top[i] = (TABLE_GPA + (1 + i) * PAGE) | PTE_TABLE;
	for (i = 0; i < gibs; i++)
		upper[i] = i * GIB | PTE_BLOCK | pte_ram(m);
	upper[DEVICES_GIB] = DEVICES_GIB * GIB | PTE_BLOCK | PTE_DEVICE |
			     PTE_USER;
	upper[0] = first | PTE_TABLE;
	map_first_gib(m, control_at(m, first), first + PAGE);
}

int arch_map(struct machine *m, uint64_t gibs)
{
	uint64_t uppers = (gibs + ENTRIES - 1) / ENTRIES;
	int ret;

	if (gibs > MAX_GIBS)
		return -EINVAL;
	ret = machine_alloc_control(m, TABLE_GPA + (1 + uppers + 2) * PAGE);
	if (ret)
		return ret;
	memcpy(control_at(m, CODE_GPA), guest_start, guest_offset(guest_end));
	build_tables(m, gibs, uppers);
	return 0;
}

uint64_t arch_area_gpa(unsigned int vcpu)
{
	return AREA_GPA + (uint64_t)vcpu * AREA_SIZE;
}

static struct area *area_of(const struct machine_vcpu *vcpu)
{
	return control_at(vcpu->machine, arch_area_gpa(vcpu->id));
}

int arch_init_vcpu(struct machine_vcpu *vcpu)
{
	struct kvm_vcpu_init init;
	int ret;

	ret = kvm_ioctl(vcpu->machine->vm_fd, KVM_ARM_PREFERRED_TARGET, &init);
	return ret ? ret : kvm_ioctl(vcpu->fd, KVM_ARM_VCPU_INIT, &init);
}

static int set_reg(struct machine_vcpu *vcpu, uint64_t id, uint64_t value)
{
	struct kvm_one_reg reg = { .id = id, .addr = (uintptr_t)&value };

	return kvm_ioctl(vcpu->fd, KVM_SET_ONE_REG, &reg);
}

/* The MMU on, with caches; 4 KiB pages, 48 bits in, 40 out; SIMD. */
int arch_reset_vcpu(struct machine_vcpu *vcpu)
{
	const struct {
		uint64_t id, value;
	} regs[] = {
		{ MAIR_EL1, 0x00ff },
		{ TCR_EL1, 0x200803510 },
		{ TTBR0_EL1, TABLE_GPA },
		{ CPACR_EL1, 0x300000 },
		{ VBAR_EL1, CODE_GPA + guest_offset(guest_vectors) },
		{ TPIDR_EL0, arch_area_gpa(vcpu->id) },
		{ SCTLR_EL1, 0x30d01805 },
	};
	size_t i;
	int ret = 0;

	for (i = 0; !ret && i < sizeof(regs) / sizeof(regs[0]); i++)
		ret = set_reg(vcpu, regs[i].id, regs[i].value);
	return ret;
}

static int gic_set(int gic, uint32_t group, uint64_t attr, uint64_t value)
{
	struct kvm_device_attr set = {
		.group = group,
		.attr = attr,
		.addr = (uintptr_t)&value,
	};

	return kvm_ioctl(gic, KVM_SET_DEVICE_ATTR, &set);
}

static int place_gic(int gic)
{
	int ret;

	ret = gic_set(gic, KVM_DEV_ARM_VGIC_GRP_ADDR,
		      KVM_VGIC_V3_ADDR_TYPE_DIST, GIC_DISTRIBUTOR);
	if (!ret)
		ret = gic_set(gic, KVM_DEV_ARM_VGIC_GRP_ADDR,
			      KVM_VGIC_V3_ADDR_TYPE_REDIST,
			      GIC_REDISTRIBUTORS);
	if (!ret)
		ret = gic_set(gic, KVM_DEV_ARM_VGIC_GRP_CTRL,
			      KVM_DEV_ARM_VGIC_CTRL_INIT, 0);
	return ret;
}

/* Have the GIC pass a vCPU's timer on; the stub does the rest. */
static int enable_timer(int gic, struct machine_vcpu *vcpu)
{
	uint64_t mpidr, affinity;
	struct kvm_one_reg reg = {
		.id = MPIDR_EL1,
		.addr = (uintptr_t)&mpidr,
	};
	int ret;

	area_of(vcpu)->arch[RATE] = machine_tick_rate(vcpu->machine);
	ret = kvm_ioctl(vcpu->fd, KVM_GET_ONE_REG, &reg);
	if (ret)
		return ret;
	affinity = (mpidr & 0xffffff) | (mpidr >> 8 & 0xff000000);
	return gic_set(gic, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
		       affinity << KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT |
		       GICR_ISENABLER0, TIMER_BIT);
}

int arch_start(struct machine *m, const struct machine_options *options)
{
	struct kvm_create_device gic = { .type = KVM_DEV_TYPE_ARM_VGIC_V3 };
	unsigned int i;
	int ret;

	if (!options->irqchip)
		return 0;
	ret = kvm_ioctl(m->vm_fd, KVM_CREATE_DEVICE, &gic);
	if (ret)
		return ret;
	ret = place_gic((int)gic.fd);
	if (!ret && m->timer)
		ret = gic_set((int)gic.fd, KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
			      GICD_CTLR, GICD_CTLR_GROUP1);
	for (i = 0; !ret && m->timer && i < m->vcpus; i++)
		ret = enable_timer((int)gic.fd, &m->vcpu[i]);
	/* The VM keeps it. */
	close((int)gic.fd);
	return ret;
}

/*
 * KVM finishes a device access on the next KVM_RUN if that was the last exit,
 * and steps over the instruction: what is called next needs neither.
 */
int arch_finish_exit(struct machine_vcpu *vcpu)
{
	vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
	return 0;
}

int arch_call(struct machine_vcpu *vcpu, uint64_t offset,
	      const uint64_t args[4])
{
	const struct machine *m = vcpu->machine;
	uint64_t *stub = area_of(vcpu)->arch;
	int ret;

	stub[ENTRY] = CODE_GPA + offset;
	stub[PSTATE] = (m->supervisor ? PSTATE_EL1 : 0) |
		       (m->timer ? 0 : PSTATE_MASKED);
	memcpy(&stub[ARGS], args, 4 * sizeof(args[0]));
	ret = set_reg(vcpu, CORE(pstate), PSTATE_EL1 | PSTATE_MASKED);
	if (ret)
		return ret;
	return set_reg(vcpu, CORE(pc), CODE_GPA + guest_offset(guest_enter));
}

int arch_interrupt(struct machine_vcpu *vcpu)
{
	(void)vcpu;
	return -EOPNOTSUPP;
}

bool arch_done(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write &&
	       run->mmio.phys_addr == DONE_GPA;
}

bool arch_crashed(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_MMIO && run->mmio.is_write &&
	       run->mmio.phys_addr == CRASHED_GPA;
}

void arch_story(const struct machine_vcpu *vcpu, char *text, size_t size)
{
	uint64_t syndrome;

	text[0] = '\0';
	if (!arch_crashed(vcpu->run))
		return;
	memcpy(&syndrome, vcpu->run->mmio.data, sizeof(syndrome));
	snprintf(text, size, ": the guest met an exception, ESR_EL1 %#llx",
		 (unsigned long long)syndrome);
}

/* KVM walks no tables of the guest's there: none comes. */
uint64_t arch_retried(const struct machine_vcpu *vcpu)
{
	(void)vcpu;
	return 0;
}

void machine_put_return(void *host)
{
	memcpy(host, &(const uint32_t){ 0xd65f03c0 }, sizeof(uint32_t));
}
