/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Private memory: RAM is shared with the VMM, and comes from its source, until
 * the guest makes a page private by a hypercall; and shared again. It takes VMs
 * with private memory in software (CONFIG_KVM_SW_PROTECTED_VM).
 */

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <kvmfault.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM (16 * 4096)		/* as the guest has it, from 0 on */
#define PAGE_GPA 4096		/* of the page that is converted */
#define PRIVATE_VM 1		/* KVM_X86_SW_PROTECTED_VM */

/* These are in linux/kvm.h since 6.8. */
struct slot {
	uint32_t slot, flags;
	uint64_t guest_phys_addr, memory_size, userspace_addr;
	uint64_t guest_memfd_offset;
	uint32_t guest_memfd, pad1;
	uint64_t pad2[14];
};
struct guest_memfd {
	uint64_t size, flags, reserved[6];
};
#define SET_SLOT2 _IOW(KVMIO, 0x49, struct slot)
#define CREATE_GUEST_MEMFD _IOWR(KVMIO, 0xd4, struct guest_memfd)
#define WITH_GUEST_MEMFD (1U << 2)

static int vm_fd, vcpu_fd;
static struct kvm_run *run;
static struct kvmfault_vm *vm;
static struct kvmfault_memory_maps maps = { .size = sizeof(maps) };

/* The guest, in real mode, tells what its page has: as it comes; made private;
 * written; shared again; written. */
__asm__(".pushsection .rodata; .globl code, code_end; .code16; code:\n"
	"mov (%bx), %eax; out %eax, $1\n"
	"mov $12, %eax; mov $1, %ecx; mov $16, %edx; vmmcall\n"
	"mov (%bx), %eax; out %eax, $2\n"
	"movl $0x5ec2e7, (%bx); mov (%bx), %eax; out %eax, $3\n"
	"mov $12, %eax; xor %edx, %edx; vmmcall\n"
	"mov (%bx), %eax; out %eax, $4\n"
	"movl $0x5a2ed, (%bx); mov (%bx), %eax; out %eax, $5\n"
	"hlt; code_end: .code64; .popsection");
extern const char code[], code_end[];

static int check(int ret, const char *what)
{
	if (ret < 0)	/* 77: the machine lacks something */
		errx(what[0] == '/' ? 77 : 1, "%s: %s", what,
		     strerror(ret == -1 ? errno : -ret));
	return ret;
}

/* Each word of the image is its own offset; but first comes the code. */
static int read_image(void *data, uint64_t offset, void *buffer, size_t length)
{
	uint32_t *word = (uint32_t *)buffer;
	size_t i;

	(void)data;
	for (i = 0; i < length / sizeof(*word); i++)
		word[i] = (uint32_t)(offset + i * sizeof(*word));
	if (!offset)
		memcpy(buffer, code, (size_t)(code_end - code));
	return 0;
}

static void make_guest(void)
{
	int kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "vCPU");
	struct kvm_enable_cap hypercalls = { .cap = KVM_CAP_EXIT_HYPERCALL };
	struct kvm_regs regs = { .rbx = PAGE_GPA, .rflags = 2 };
	struct kvm_sregs sregs;

	hypercalls.args[0] = 1 << KVM_HC_MAP_GPA_RANGE;
	vm_fd = check(ioctl(kvm, KVM_CREATE_VM, PRIVATE_VM),
		      "/dev/kvm, for a VM with private memory");
	check(ioctl(vm_fd, KVM_ENABLE_CAP, &hypercalls), "hypercalls");
	vcpu_fd = check(ioctl(vm_fd, KVM_CREATE_VCPU, 0), "vCPU");
	run = (struct kvm_run *)mmap(NULL, (size_t)size,
		PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);
	check(run == MAP_FAILED ? -1 : 0, "vCPU");
	check(ioctl(vcpu_fd, KVM_GET_SREGS, &sregs), "registers");
	sregs.cs.base = sregs.cs.selector = 0;
	check(ioctl(vcpu_fd, KVM_SET_SREGS, &sregs), "registers");
	check(ioctl(vcpu_fd, KVM_SET_REGS, &regs), "registers");
}

/* Each page has two sides, one in a memory and one in a guest_memfd. The guest
 * has one of them. */
static void make_ram(void)
{
	struct kvmfault_converter converter = { .size = sizeof(converter),
		.flags = KVMFAULT_CONVERTER_CALLS_ONLY };
	struct kvmfault_vm_options options = { .size = sizeof(options),
		.vm_fd = vm_fd, .converter = &converter };
	struct kvmfault_source source = {
		.size = sizeof(source), .read = read_image };
	struct kvmfault_memory_options shared = {
		.size = sizeof(shared), .length = RAM, .source = &source };
	struct kvmfault_service_options w = { .size = sizeof(w), .threads = 1 };
	struct kvmfault_region region = {
		.size = sizeof(region), .length = RAM };
	struct kvmfault_service *service;
	struct guest_memfd file = { .size = RAM };
	struct slot slot = { .flags = WITH_GUEST_MEMFD, .memory_size = RAM };

	region.guest_memfd = check(ioctl(vm_fd, CREATE_GUEST_MEMFD, &file),
				   "guest_memfd");
	check(kvmfault_vm_new(&options, &vm), "context");
	check(kvmfault_memory_alloc(vm, &shared, &maps, &region.memory),
	      "/dev/userfaultfd");
	check(kvmfault_service_new(vm, &w, &service), "service");
	check(kvmfault_region_add(vm, &region), "region");
	slot.userspace_addr = (uintptr_t)maps.memslots;
	slot.guest_memfd = (uint32_t)region.guest_memfd;
	check(ioctl(vm_fd, SET_SLOT2, &slot), "memory slot");
}

/* The guest wants pages private, or shared. */
static void answer_hypercall(struct kvmfault_vcpu *vcpu)
{
	uint64_t gpa = run->hypercall.args[0], pages = run->hypercall.args[1];
	uint64_t length = pages * 4096, done;
	int ret = pages > UINT64_MAX / 4096 ? -EINVAL : -EINTR;

	while (ret == -EINTR) {	/* a VMM first sees what has kicked it */
		ret = kvmfault_convert(vm, vcpu, gpa, length,
			run->hypercall.args[2] & KVM_MAP_GPA_RANGE_ENCRYPTED,
			&done);
		gpa += done;
		length -= done;
	}
	run->hypercall.ret = (uint64_t)ret;
}

/* The guest's page, as it has it and as the VMM sees it. */
static void show(void)
{
	uint32_t *guest = (uint32_t *)((char *)run + run->io.data_offset);

	printf("%d: %s, guest %#x, VMM %#x\n", run->io.port,
	       kvmfault_is_private(vm, PAGE_GPA) ? "private" : "shared", *guest,
	       *(volatile uint32_t *)((char *)maps.own + PAGE_GPA));
}

int main(void)
{
	struct kvmfault_vcpu_options o = { .size = sizeof(o) };
	enum kvmfault_action what;
	struct kvmfault_vcpu *vcpu;

	make_guest();
	make_ram();
	o.fd = vcpu_fd;
	o.run = run;
	check(kvmfault_vcpu_new(vm, &o, &vcpu), "vCPU's handle");
	for (;;) {
		int ret = ioctl(vcpu_fd, KVM_RUN, 0), why = errno;

		do
			what = kvmfault_vcpu_handle(vcpu, ret, why);
		while (what == KVMFAULT_ACTION_UNFINISHED);
		if (what == KVMFAULT_ACTION_UNRESOLVED)
			errx(1, "fault: %s", kvmfault_reason_str(
				kvmfault_vcpu_result(vcpu)->reason));
		if (what != KVMFAULT_ACTION_NOT_A_FAULT)
			continue;
		if (run->exit_reason == KVM_EXIT_HYPERCALL)
			answer_hypercall(vcpu);
		else if (run->exit_reason == KVM_EXIT_IO)
			show();
		else
			return fflush(NULL) || run->exit_reason != KVM_EXIT_HLT;
	}
}
