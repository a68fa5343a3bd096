/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */
/*
 * The smallest real virtual machine. Input: options, then slots and routine
 * calls. Output: vCPUs to call KVM_RUN on. Invariant: all that the guest
 * needs to run (page tables, descriptors, code, stacks, results) is in the
 * control memory, which is always present, so that each fault of the guest
 * is a fault of the caller's memory.
 *
 * The first half is any architecture's, the second half x86-64's.
 */
#include "machine.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define GIB (UINT64_C(1) << 30)

/* Linux 6.8; host kernel headers may be older. */
struct region2 {
	uint32_t slot;
	uint32_t flags;
	uint64_t guest_phys_addr;
	uint64_t memory_size;
	uint64_t userspace_addr;
	uint64_t guest_memfd_offset;
	uint32_t guest_memfd;
	uint32_t pad1;
	uint64_t pad2[14];
};

struct create_guest_memfd {
	uint64_t size;
	uint64_t flags;
	uint64_t reserved[6];
};

#define SET_USER_MEMORY_REGION2	_IOW(KVMIO, 0x49, struct region2)
#define CREATE_GUEST_MEMFD	_IOWR(KVMIO, 0xd4, struct create_guest_memfd)
#define MEM_GUEST_MEMFD		(1U << 2)

_Static_assert(SET_USER_MEMORY_REGION2 == 0x40a0ae49, "ioctl number");
_Static_assert(CREATE_GUEST_MEMFD == 0xc040aed4, "ioctl number");

/* A vCPU's part of the control memory: two pages, the second the stack. */
struct area {
	uint64_t ticks;
	uint64_t unused;
	uint64_t result[2];
	uint64_t unused2[4];
	struct machine_scan scan;
};

#define PAGE		4096
#define AREA_SIZE	(2 * PAGE)

/* guest_*.S knows these. */
_Static_assert(offsetof(struct area, ticks) == 0x00, "AREA_TICKS");
_Static_assert(offsetof(struct area, result) == 0x10, "AREA_RESULT");
_Static_assert(offsetof(struct area, scan) == 0x40, "AREA_SCAN");
_Static_assert(offsetof(struct machine_scan, base) == 0x00, "SCAN_BASE");
_Static_assert(offsetof(struct machine_scan, pages) == 0x08, "SCAN_PAGES");
_Static_assert(offsetof(struct machine_scan, first) == 0x10, "SCAN_FIRST");
_Static_assert(offsetof(struct machine_scan, stride) == 0x18, "SCAN_STRIDE");
_Static_assert(offsetof(struct machine_scan, count) == 0x20, "SCAN_COUNT");
_Static_assert(offsetof(struct machine_scan, progress) == 0x28, "_PROGRESS");
_Static_assert(offsetof(struct machine_scan, checksum) == 0x30, "_CHECKSUM");

/* What the second half has to provide. */
static int arch_init_vm(struct machine *m);
static int arch_create_irqchip(struct machine *m);
static int arch_map(struct machine *m, uint64_t span);
static int arch_init_vcpu(struct machine_vcpu *vcpu);
static int arch_reset_vcpu(struct machine_vcpu *vcpu);
static int arch_call(struct machine_vcpu *vcpu, enum machine_routine routine,
		     const uint64_t args[4]);
static bool arch_done(const struct kvm_run *run);
static uint64_t arch_area_gpa(unsigned int vcpu);

/* ioctl() that returns a result or -errno; arg is a pointer or a number. */
static int kvm_ioctl(int fd, unsigned long request, void *arg)
{
	int ret = ioctl(fd, request, arg);

	return ret < 0 ? -errno : ret;
}

static int kvm_ioctl_number(int fd, unsigned long request, unsigned long arg)
{
	int ret = ioctl(fd, request, arg);

	return ret < 0 ? -errno : ret;
}

static void *control_at(const struct machine *m, uint64_t gpa)
{
	return m->control + gpa;
}

static struct area *area_of(const struct machine *m, unsigned int vcpu)
{
	return control_at(m, arch_area_gpa(vcpu));
}

int machine_set_slot(struct machine *machine, uint32_t slot, uint32_t flags,
		     uint64_t gpa, uint64_t size, void *host)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)host,
	};

	return kvm_ioctl(machine->vm_fd, KVM_SET_USER_MEMORY_REGION, &region);
}

int machine_create_guest_memfd(struct machine *machine, uint64_t size,
			       uint64_t flags)
{
	struct create_guest_memfd arg = { .size = size, .flags = flags };

	return kvm_ioctl(machine->vm_fd, CREATE_GUEST_MEMFD, &arg);
}

int machine_set_guest_memfd_slot(struct machine *machine, uint32_t slot,
				 uint64_t gpa, uint64_t size, void *host,
				 int guest_memfd, uint64_t offset)
{
	struct region2 region = {
		.slot = slot,
		.flags = MEM_GUEST_MEMFD,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)host,
		.guest_memfd = (uint32_t)guest_memfd,
		.guest_memfd_offset = offset,
	};

	return kvm_ioctl(machine->vm_fd, SET_USER_MEMORY_REGION2, &region);
}

static int create_vm(struct machine *m, const struct machine_options *options)
{
	int ret;

	m->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (m->kvm_fd < 0)
		return -errno;
	m->vm_fd = kvm_ioctl_number(m->kvm_fd, KVM_CREATE_VM, options->type);
	if (m->vm_fd < 0)
		return m->vm_fd;
	ret = arch_init_vm(m);
	if (!ret && options->irqchip)
		ret = arch_create_irqchip(m);
	return ret;
}

/* The state that routines start from, but for their own registers. */
static int reset_vcpu(struct machine_vcpu *vcpu)
{
	struct kvm_mp_state runnable = { .mp_state = KVM_MP_STATE_RUNNABLE };
	int ret;

	ret = arch_reset_vcpu(vcpu);
	if (ret)
		return ret;
	/* Secondary vCPUs would wait for a start-up message otherwise. */
	return kvm_ioctl(vcpu->fd, KVM_SET_MP_STATE, &runnable);
}

static int create_vcpu(struct machine *m, unsigned int id)
{
	struct machine_vcpu *vcpu = &m->vcpu[id];
	void *run;
	int ret;

	vcpu->machine = m;
	vcpu->id = id;
	vcpu->fd = kvm_ioctl_number(m->vm_fd, KVM_CREATE_VCPU, id);
	if (vcpu->fd < 0)
		return vcpu->fd;
	ret = kvm_ioctl_number(m->kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (ret < 0)
		return ret;
	vcpu->run_size = (size_t)ret;
	run = mmap(NULL, vcpu->run_size, PROT_READ | PROT_WRITE, MAP_SHARED,
		   vcpu->fd, 0);
	if (run == MAP_FAILED)
		return -errno;
	vcpu->run = run;
	ret = arch_init_vcpu(vcpu);
	return ret ? ret : reset_vcpu(vcpu);
}

static struct machine *alloc_machine(const struct machine_options *options)
{
	struct machine *m = calloc(1, sizeof(*m));
	unsigned int i;

	if (!m)
		return NULL;
	m->vcpu = calloc(options->vcpus, sizeof(*m->vcpu));
	if (!m->vcpu) {
		free(m);
		return NULL;
	}
	m->kvm_fd = -1;
	m->vm_fd = -1;
	m->vcpus = options->vcpus;
	m->timer = options->timer;
	m->supervisor = options->supervisor;
	for (i = 0; i < m->vcpus; i++)
		m->vcpu[i].fd = -1;
	return m;
}

int machine_new(const struct machine_options *options, struct machine **out)
{
	struct machine *m;
	unsigned int i;
	int ret;

	*out = NULL;
	if (!options->vcpus || options->vcpus > MACHINE_MAX_VCPUS ||
	    (options->timer && !options->irqchip))
		return -EINVAL;
	m = alloc_machine(options);
	if (!m)
		return -ENOMEM;
	ret = create_vm(m, options);
	if (!ret)
		ret = arch_map(m, options->span);
	if (!ret)
		ret = machine_set_slot(m, 0, 0, 0, m->control_size,
				       m->control);
	for (i = 0; !ret && i < m->vcpus; i++)
		ret = create_vcpu(m, i);
	if (ret) {
		machine_free(m);
		return ret;
	}
	*out = m;
	return 0;
}

void machine_free(struct machine *machine)
{
	unsigned int i;

	if (!machine)
		return;
	for (i = 0; i < machine->vcpus; i++) {
		struct machine_vcpu *vcpu = &machine->vcpu[i];

		if (vcpu->run)
			munmap(vcpu->run, vcpu->run_size);
		if (vcpu->fd >= 0)
			close(vcpu->fd);
	}
	if (machine->vm_fd >= 0)
		close(machine->vm_fd);
	if (machine->kvm_fd >= 0)
		close(machine->kvm_fd);
	if (machine->control)
		munmap(machine->control, machine->control_size);
	free(machine->vcpu);
	free(machine);
}

/*
 * KVM finishes a device access on the next KVM_RUN and would spoil the
 * registers set meanwhile: have it finish now. An access in many parts
 * exits for each of them.
 */
static int finish_exit(struct machine_vcpu *vcpu)
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

int machine_call(struct machine_vcpu *vcpu, enum machine_routine routine,
		 uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	const uint64_t args[4] = { a, b, c, d };
	/* The guest crashed; some back ends have reset the vCPU then. */
	bool crashed = vcpu->run->exit_reason == KVM_EXIT_SHUTDOWN;
	int ret;

	ret = finish_exit(vcpu);
	if (!ret && crashed)
		ret = reset_vcpu(vcpu);
	return ret ? ret : arch_call(vcpu, routine, args);
}

bool machine_done(const struct machine_vcpu *vcpu, int ret)
{
	return ret == 0 && arch_done(vcpu->run);
}

uint64_t machine_result(const struct machine_vcpu *vcpu)
{
	return area_of(vcpu->machine, vcpu->id)->result[0];
}

uint64_t machine_result_high(const struct machine_vcpu *vcpu)
{
	return area_of(vcpu->machine, vcpu->id)->result[1];
}

uint64_t machine_ticks(const struct machine *machine, unsigned int vcpu)
{
	return __atomic_load_n(&area_of(machine, vcpu)->ticks,
			       __ATOMIC_RELAXED);
}

struct machine_scan *machine_scan_job(struct machine *machine,
				      unsigned int vcpu)
{
	return &area_of(machine, vcpu)->scan;
}

#ifdef __x86_64__

/* Control memory, the same bytes as guest physical addresses. */
enum {
	GDT_GPA = 0x0000,
	TSS_GPA = 0x0800,	/* all zero: no stack switch, IOPL is 3 */
	IDT_GPA = 0x1000,
	CODE_GPA = 0x2000,	/* 8 KiB; the blob has less than one */
	AREA_GPA = 0x4000,
	TABLE_GPA = AREA_GPA + MACHINE_MAX_VCPUS * AREA_SIZE,
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
	TIMER_VECTOR = 0x40,
	TICK_NS = 1000000,	/* KVM's APIC bus runs at 1 GHz */
	FULL_RATE_VCPUS = 8,
};

#define APIC_PAGE	UINT64_C(0xfee00000)
#define APIC_GIB	(APIC_PAGE / GIB)

/* Bits of a page table entry; accessed and dirty, so that none is written. */
#define PTE_RAM		UINT64_C(0x067)
#define PTE_UNCACHED	UINT64_C(0x018)
#define PTE_LEAF	UINT64_C(0x080)

#define LARGE_PAGE	(UINT64_C(2) << 20)
#define ENTRIES		512

extern const unsigned char guest_start[], guest_end[];
extern const unsigned char guest_read[], guest_write[], guest_exchange[];
extern const unsigned char guest_add[], guest_read16[], guest_write16[];
extern const unsigned char guest_copy[], guest_fpu_save[];
extern const unsigned char guest_fpu_restore[], guest_jump[], guest_spin[];
extern const unsigned char guest_scan[];
extern const unsigned char guest_tick_user[], guest_tick_supervisor[];

static const unsigned char *const routines[] = {
	[MACHINE_READ] = guest_read,
	[MACHINE_WRITE] = guest_write,
	[MACHINE_EXCHANGE] = guest_exchange,
	[MACHINE_ADD] = guest_add,
	[MACHINE_READ16] = guest_read16,
	[MACHINE_WRITE16] = guest_write16,
	[MACHINE_COPY] = guest_copy,
	[MACHINE_FPU_SAVE] = guest_fpu_save,
	[MACHINE_FPU_RESTORE] = guest_fpu_restore,
	[MACHINE_JUMP] = guest_jump,
	[MACHINE_SPIN] = guest_spin,
	[MACHINE_SCAN] = guest_scan,
};

static uint64_t code_gpa(const unsigned char *symbol)
{
	return CODE_GPA + ((uintptr_t)symbol - (uintptr_t)guest_start);
}

static uint64_t arch_area_gpa(unsigned int vcpu)
{
	return AREA_GPA + (uint64_t)vcpu * AREA_SIZE;
}

/* Intel's back end wants three pages for itself, others ignore this. */
static int arch_init_vm(struct machine *m)
{
	return kvm_ioctl_number(m->vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000);
}

static int arch_create_irqchip(struct machine *m)
{
	return kvm_ioctl_number(m->vm_fd, KVM_CREATE_IRQCHIP, 0);
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

static void build_descriptors(struct machine *m)
{
	uint64_t *gdt = control_at(m, GDT_GPA);
	uint64_t *gate = control_at(m, IDT_GPA);
	uint64_t user = code_gpa(guest_tick_user);
	uint64_t supervisor = code_gpa(guest_tick_supervisor);

	gdt[KERNEL_CS / 8] = descriptor(0xa09b);
	gdt[KERNEL_SS / 8] = descriptor(0xc093);
	gdt[USER_SS / 8] = descriptor(0xc0f3);
	gdt[USER_CS / 8] = descriptor(0xa0fb);

	/* A trap gate at CPL 3, see guest_tick_user; an interrupt gate. */
	gate += (size_t)TIMER_VECTOR * 2;
	if (m->supervisor)
		*gate = supervisor | KERNEL_CS << 16 | UINT64_C(0x8e00) << 32;
	else
		*gate = user | USER_CS << 16 | UINT64_C(0xef00) << 32;
}

/* Allocate and fill the control memory, with span bytes mapped from 0. */
static int arch_map(struct machine *m, uint64_t span)
{
	uint64_t gibs = span / GIB + !!(span % GIB);
	uint64_t tables;
	void *control;
	int gib_pages;

	if (gibs <= APIC_GIB)
		gibs = APIC_GIB + 1;
	/* The lower half of 48 bits is what four levels can map. */
	if (gibs > ENTRIES * ENTRIES / 2)
		return -EINVAL;
	gib_pages = has_gib_pages(m);
	if (gib_pages < 0)
		return gib_pages;
	tables = 1 + (gibs + ENTRIES - 1) / ENTRIES + (gib_pages ? 1 : gibs);
	m->control_size = TABLE_GPA + tables * PAGE;
	if (m->control_size > GIB)
		return -EINVAL;
	control = mmap(NULL, m->control_size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (control == MAP_FAILED)
		return -errno;
	m->control = control;
	memcpy(control_at(m, CODE_GPA), guest_start,
	       code_gpa(guest_end) - CODE_GPA);
	build_tables(m, gibs, gib_pages);
	build_descriptors(m);
	return 0;
}

static int arch_init_vcpu(struct machine_vcpu *vcpu)
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
	unsigned int vcpus = vcpu->machine->vcpus;
	uint32_t period = TICK_NS;
	int ret;

	/* Timers cost the host even of idle vCPUs: bound their total rate. */
	if (vcpus > FULL_RATE_VCPUS)
		period = period / FULL_RATE_VCPUS * vcpus;
	ret = kvm_ioctl(vcpu->fd, KVM_GET_LAPIC, &apic);
	if (ret)
		return ret;
	set_apic(&apic, 0x0f0, 0x1ff);			/* enable */
	set_apic(&apic, 0x320, 0x20000 | TIMER_VECTOR);	/* periodic */
	set_apic(&apic, 0x3e0, 0xb);			/* undivided */
	set_apic(&apic, 0x380, period);
	set_apic(&apic, 0x390, period);			/* what is left */
	return kvm_ioctl(vcpu->fd, KVM_SET_LAPIC, &apic);
}

static int arch_reset_vcpu(struct machine_vcpu *vcpu)
{
	int ret;

	ret = set_sregs(vcpu);
	if (!ret && vcpu->machine->timer)
		ret = start_timer(vcpu);
	return ret;
}

static int arch_call(struct machine_vcpu *vcpu, enum machine_routine routine,
		     const uint64_t args[4])
{
	struct kvm_regs regs = {
		.rdi = args[0],
		.rsi = args[1],
		.rdx = args[2],
		.rcx = args[3],
		.rsp = arch_area_gpa(vcpu->id) + AREA_SIZE,
		.rflags = vcpu->machine->timer ? 0x3202 : 0x3002,
	};
	size_t number = (size_t)routine;

	if (number >= sizeof(routines) / sizeof(routines[0]) ||
	    !routines[number])
		return -EINVAL;
	regs.rip = code_gpa(routines[number]);
	return kvm_ioctl(vcpu->fd, KVM_SET_REGS, &regs);
}

static bool arch_done(const struct kvm_run *run)
{
	return run->exit_reason == KVM_EXIT_IO &&
	       run->io.direction == KVM_EXIT_IO_OUT &&
	       run->io.port == DONE_PORT;
}

void machine_put_return(void *host)
{
	*(unsigned char *)host = 0xc3;
}

#else
#error "no machine for this architecture yet"
#endif
