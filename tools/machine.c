/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */
/*
 * The smallest real virtual machine. Input: options, then slots and routine
 * calls. Output: vCPUs to call KVM_RUN on. Invariant: all that the guest
 * needs to run (page tables, descriptors, code, stacks, results) is in the
 * control memory, which is always present, so that each fault of the guest
 * is a fault of the caller's memory. What depends on the architecture is in
 * machine-*.c, behind machine-arch.h.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "machine-arch.h"

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

enum {
	MIN_GIBS = 4,		/* the interrupt controllers too */
	TICKS = 1000,		/* a second */
	FULL_RATE_VCPUS = 8,
	FAULT_TRIES = 10000,
};

extern const unsigned char guest_read[], guest_write[], guest_exchange[];
extern const unsigned char guest_add[], guest_read16[], guest_write16[];
extern const unsigned char guest_copy[], guest_fpu_save[];
extern const unsigned char guest_fpu_restore[], guest_jump[], guest_spin[];
extern const unsigned char guest_scan[], guest_hypercall[], guest_touch[];

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
	[MACHINE_HYPERCALL] = guest_hypercall,
	[MACHINE_TOUCH] = guest_touch,
};

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

int machine_set_userfault_slot(struct machine *machine, uint32_t slot,
			       uint32_t flags, uint64_t gpa, uint64_t size,
			       void *host, uint64_t bitmap)
{
	struct region2 region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = size,
		.userspace_addr = (uintptr_t)host,
		.pad2 = { bitmap },
	};

	return kvm_ioctl(machine->vm_fd, SET_USER_MEMORY_REGION2, &region);
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
	m->kvm_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (m->kvm_fd < 0)
		return -errno;
	m->vm_fd = kvm_ioctl_number(m->kvm_fd, KVM_CREATE_VM, options->type);
	if (m->vm_fd < 0)
		return m->vm_fd;
	return arch_init_vm(m, options);
}

/*
 * Present, and where it is, for good: KVM reads and writes it for the guest
 * (page tables in shadow, frames of interrupts), and what fails there is a
 * fault of the guest's. A child's copy would take each page's write permission
 * away. The lock may be refused.
 */
int machine_alloc_control(struct machine *m, uint64_t size)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	void *control;

	if (size > GIB)
		return -EINVAL;
	m->control_size = (size + page - 1) / page * page;
	control = mmap(NULL, m->control_size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (control == MAP_FAILED)
		return -errno;
	m->control = control;
	if (madvise(control, m->control_size, MADV_DONTFORK))
		return -errno;
	(void)!mlock(control, m->control_size);
	return 0;
}

/* Timers cost the host even of idle vCPUs: bound their total rate. */
unsigned int machine_tick_rate(const struct machine *m)
{
	return m->vcpus > FULL_RATE_VCPUS ?
		TICKS * FULL_RATE_VCPUS / m->vcpus : TICKS;
}

static int map_memory(struct machine *m, uint64_t span)
{
	uint64_t gibs = span / GIB + !!(span % GIB);
	int ret;

	ret = arch_map(m, gibs < MIN_GIBS ? MIN_GIBS : gibs);
	if (ret)
		return ret;
	return machine_set_slot(m, 0, 0, 0, m->control_size, m->control);
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
	return ret ? ret : arch_reset_vcpu(vcpu);
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
	m->fault_tries = FAULT_TRIES;
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
		ret = map_memory(m, options->span);
	for (i = 0; !ret && i < m->vcpus; i++)
		ret = create_vcpu(m, i);
	if (!ret)
		ret = arch_start(m, options);
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

int machine_call(struct machine_vcpu *vcpu, enum machine_routine routine,
		 uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	const uint64_t args[4] = { a, b, c, d };
	/* The call before was left, maybe in the middle of an interrupt; or
	 * the guest crashed, and some back ends have reset the vCPU then. */
	bool left = !arch_done(vcpu->run);
	size_t number = (size_t)routine;
	int ret;

	if (number >= sizeof(routines) / sizeof(routines[0]) ||
	    !routines[number])
		return -EINVAL;
	ret = arch_finish_exit(vcpu);
	if (!ret && left)
		ret = arch_reset_vcpu(vcpu);
	if (ret)
		return ret;
	return arch_call(vcpu, guest_offset(routines[number]), args);
}

bool machine_done(const struct machine_vcpu *vcpu, int ret)
{
	return ret == 0 && arch_done(vcpu->run);
}

bool machine_crashed(const struct machine_vcpu *vcpu, int ret)
{
	return ret == 0 && (arch_crashed(vcpu->run) ||
			    vcpu->run->exit_reason == KVM_EXIT_SHUTDOWN);
}

const char *machine_story(const struct machine_vcpu *vcpu,
			  char text[MACHINE_STORY])
{
	const struct kvm_run *run = vcpu->run;
	int length = snprintf(text, MACHINE_STORY, "KVM exit %u",
			      run->exit_reason);

	if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
		length += snprintf(text + length,
				   MACHINE_STORY - (size_t)length,
				   ", suberror %u", run->internal.suberror);
	arch_story(vcpu, text + length, MACHINE_STORY - (size_t)length);
	return text;
}

uint64_t machine_retried(const struct machine *machine, unsigned int vcpu)
{
	return arch_retried(&machine->vcpu[vcpu]);
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

int machine_interrupt(struct machine *machine, unsigned int vcpu)
{
	return arch_interrupt(&machine->vcpu[vcpu]);
}

uint64_t machine_interrupts(const struct machine *machine, unsigned int vcpu)
{
	return __atomic_load_n(&area_of(machine, vcpu)->interrupts,
			       __ATOMIC_RELAXED);
}

struct machine_scan *machine_scan_job(struct machine *machine,
				      unsigned int vcpu)
{
	return &area_of(machine, vcpu)->scan;
}
