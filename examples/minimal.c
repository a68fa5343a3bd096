/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* A whole VM whose memory, its code included, comes from a callback. */

#include <errno.h>
#include <fcntl.h>
#include <kvmfault.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM (16 * 4096)

/* for each page: al = [page + 256]; out 1, al; and then hlt */
static const unsigned char code[] = {
	0x31, 0xf6, 0x8a, 0x84, 0x00, 0x01, 0xe6, 0x01,
	0x81, 0xc6, 0x00, 0x10, 0x75, 0xf4, 0xf4,
};

static int read_page(void *data, uint64_t offset, void *buffer, size_t length)
{
	(void)data;
	memset(buffer, 0, length);
	((char *)buffer)[256] = (char)('A' + offset / 4096);
	if (!offset)
		memcpy(buffer, code, sizeof(code));
	return 0;
}

static int check(int ret, const char *what)
{
	if (ret < 0) {
		fprintf(stderr, "%s: %s\n", what, strerror(ret == -1 ? errno : -ret));
		exit(1);
	}
	return ret;
}

int main(void)
{
	/* A VM and its memory, as any VMM makes them ... */
	int kvm = check(open("/dev/kvm", O_RDWR), "/dev/kvm");
	int vm_fd = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	int vcpu_fd = check(ioctl(vm_fd, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	struct kvm_run *run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0),
				   PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);
	void *ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region slot = {
		.memory_size = RAM, .userspace_addr = (uintptr_t)ram };
	struct kvm_regs regs = { .rflags = 2 };
	struct kvm_sregs sregs;
	check(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot), "memory slot");
	check(ioctl(vcpu_fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	check(ioctl(vcpu_fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	check(ioctl(vcpu_fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");

	/* ... and what the library has to know of it. */
	struct kvmfault_source source = { .size = sizeof(source), .read = read_page };
	struct kvmfault_memory_options memory_options = {
		.size = sizeof(memory_options), .host = ram, .length = RAM,
		.source = &source };
	struct kvmfault_region region = { .size = sizeof(region), .length = RAM };
	struct kvmfault_service_options threads = { .size = sizeof(threads), .threads = 1 };
	struct kvmfault_vcpu_options vcpu_options = {
		.size = sizeof(vcpu_options), .fd = vcpu_fd, .run = run };
	struct kvmfault_vm *vm;
	struct kvmfault_memory *memory;
	struct kvmfault_service *service;
	struct kvmfault_vcpu *vcpu;
	check(kvmfault_vm_new(NULL, &vm), "context");
	check(kvmfault_memory_new(vm, &memory_options, &memory), "memory");
	region.memory = memory;
	check(kvmfault_region_add(vm, &region), "region");
	check(kvmfault_service_new(vm, &threads, &service), "service");
	check(kvmfault_vcpu_new(vm, &vcpu_options, &vcpu), "vCPU");

	for (;;) {
		int ret = ioctl(vcpu_fd, KVM_RUN, 0);
		switch (kvmfault_handle(vcpu, ret, errno)) {
		case KVMFAULT_NOT_A_FAULT:
			if (run->exit_reason == KVM_EXIT_IO)
				putchar(*((char *)run + run->io.data_offset));
			else	/* the guest's HLT, if all went well */
				return puts("") < 0 || run->exit_reason != KVM_EXIT_HLT;
			break;
		case KVMFAULT_UNRESOLVED:
			return puts(kvmfault_reason_str(kvmfault_vcpu_result(vcpu)->reason)), 1;
		default:	/* RETRY, and here also INTERRUPTED and PENDING */
			break;
		}
	}
}
