/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* A whole VM whose memory, its code included, comes from a callback. */

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <kvmfault.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#define RAM (16 * 4096)

/* for each page: al = [page + 256]; out 1, al; and then hlt */
static const char code[] =
	"\x31\xf6\x8a\x84\x00\x01\xe6\x01\x81\xc6\x00\x10\x75\xf4\xf4";

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
	if (ret < 0)
		errx(1, "%s: %s", what, strerror(ret == -1 ? errno : -ret));
	return ret;
}

int main(void)
{
	/* A VM, as any VMM makes it ... */
	int kvm = check(open("/dev/kvm", O_RDWR), "/dev/kvm");
	int vm_fd = check(ioctl(kvm, KVM_CREATE_VM, 0), "VM");
	int fd = check(ioctl(vm_fd, KVM_CREATE_VCPU, 0), "vCPU");
	int size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "vCPU");
	struct kvm_run *run = (struct kvm_run *)mmap(NULL, (size_t)size,
		PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	struct kvm_userspace_memory_region slot = { .memory_size = RAM };
	struct kvm_regs regs = { .rflags = 2 };
	struct kvm_sregs sregs;
	check(ioctl(fd, KVM_GET_SREGS, &sregs), "registers");
	sregs.cs.base = sregs.cs.selector = 0;
	check(ioctl(fd, KVM_SET_SREGS, &sregs), "registers");
	check(ioctl(fd, KVM_SET_REGS, &regs), "registers");
	/* ... what the library has to know of it ... */
	struct kvmfault_source src = { .size = sizeof(src), .read = read_page };
	struct kvmfault_vm_options options = { .size = sizeof(options),
		.kvm_fd = kvm, .allow = KVMFAULT_ALLOW_MARKER_EXIT };
	struct kvmfault_memory_options memory = {
		.size = sizeof(memory), .length = RAM, .source = &src };
	struct kvmfault_memory_maps maps = { .size = sizeof(maps) };
	struct kvmfault_region ram = { .size = sizeof(ram), .length = RAM };
	struct kvmfault_service_options w = { .size = sizeof(w), .threads = 1 };
	struct kvmfault_vcpu_options o = {
		.size = sizeof(o), .fd = fd, .run = run };
	struct kvmfault_service *service;
	struct kvmfault_vcpu *vcpu;
	struct kvmfault_vm *vm;
	sigset_t bus;
	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);	/* the library's to take */
	sigprocmask(SIG_BLOCK, &bus, NULL);
	check(kvmfault_vm_new(&options, &vm), "context");
	check(kvmfault_memory_alloc(vm, &memory, &maps, &ram.memory), "RAM");
	check(kvmfault_service_new(vm, &w, &service), "service");
	check(kvmfault_region_add(vm, &ram), "region");
	slot.userspace_addr = (uintptr_t)maps.memslots;
	check(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot), "memory slot");
	check(kvmfault_vcpu_new(vm, &o, &vcpu), "vCPU handle");
	/* ... and the run loop. */
	for (;;) {
		int ret = ioctl(fd, KVM_RUN, 0), why = errno;
		enum kvmfault_action what = kvmfault_vcpu_handle(vcpu, ret, why);
		while (what == KVMFAULT_ACTION_UNFINISHED)	/* not into KVM_RUN */
			what = kvmfault_vcpu_handle(vcpu, ret, why);
		if (what == KVMFAULT_ACTION_UNRESOLVED)
			errx(1, "%s", kvmfault_reason_str(
				kvmfault_vcpu_result(vcpu)->reason));
		if (what != KVMFAULT_ACTION_NOT_A_FAULT)
			continue;	/* RETRY; here the others too */
		if (run->exit_reason != KVM_EXIT_IO)
			break;
		putchar(((char *)run)[run->io.data_offset]);
	}
	kvmfault_vcpu_free(vcpu);
	kvmfault_service_free(service);
	kvmfault_region_remove(vm, 0, 0);
	kvmfault_memory_free(ram.memory);
	kvmfault_vm_free(vm);
	return puts("") < 0 || fflush(NULL) || run->exit_reason != KVM_EXIT_HLT;
}
