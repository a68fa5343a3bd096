/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The library without a thread of its own: the VMM's event loop answers faults,
 * and brings the rest of RAM in between. The vCPU has a thread, as in any VMM.
 * The guest sums up each fifth page of RAM.
 * usage: eventloop IMAGE
 */

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <kvmfault.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM_GPA 0x1000000

static uint64_t table[512] __attribute__((aligned(4096)));
static uint32_t cpuid[2 + 10 * 256] = { 256 };	/* a struct kvm_cpuid2 */
static int vm_fd, vcpu_fd, event_fd;
static struct kvm_run *run;
static struct kvmfault_vm *vm;
static struct kvmfault_memory *ram;
static struct kvmfault_memory_maps maps = { .size = sizeof(maps) };
static struct kvmfault_service *service;
static struct kvmfault_fill *fill;

/* The guest: the words of each fifth page of rdi bytes, from rsi on. */
__asm__(".pushsection .rodata; .globl code, code_end\n"
	"code:	mov $512, %ecx\n"
	"1:	add -8(%rsi, %rcx, 8), %rax; loop 1b\n"
	"	add $5 * 4096, %rsi; sub $5 * 4096, %rdi; ja code\n"
	"	mov %rax, 0x1f000000; code_end: .popsection");	/* a device */
extern const char code[], code_end[];

static int check(int ret, const char *what)
{
	if (ret < 0)	/* 77: the machine lacks something */
		errx(what[0] == '/' ? 77 : 1, "%s: %s", what,
		     strerror(ret == -1 ? errno : -ret));
	return ret;
}

static void set_slot(unsigned int id, uint64_t gpa, void *host, uint64_t length)
{
	struct kvm_userspace_memory_region slot = { .slot = id,
		.guest_phys_addr = gpa, .memory_size = length,
		.userspace_addr = (uintptr_t)host };

	check(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot), "memory slot");
}

/* A vCPU in 64-bit mode at CPL 3. One page, at 0, is all that it needs beside
 * RAM: its first entry leads to itself, so that it is each of the four levels
 * of a page table, for pages of 2 MiB. The code is in its second half. */
static void make_guest(uint64_t length)
{
	int i, kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "vCPU");
	struct kvm_regs regs = { .rsi = RAM_GPA, .rdi = length, .rip = 0x800,
		.rflags = 2 };
	struct kvm_sregs sregs;

	vm_fd = check(ioctl(kvm, KVM_CREATE_VM, 0), "VM");
	vcpu_fd = check(ioctl(vm_fd, KVM_CREATE_VCPU, 0), "vCPU");
	run = (struct kvm_run *)mmap(NULL, (size_t)size,
		PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0);
	check(run == MAP_FAILED ? -1 : 0, "vCPU");
	for (i = 0; i < 256; i++)	/* writable, for CPL 3, accessed */
		table[i] = (uint64_t)i << 21 | (i ? 0xe7 : 0x27);
	memcpy(table + 256, code, (size_t)(code_end - code));
	set_slot(0, 0, table, sizeof(table));
	check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid), "CPUID");
	check(ioctl(vcpu_fd, KVM_SET_CPUID2, cpuid), "CPUID");
	check(ioctl(vcpu_fd, KVM_GET_SREGS, &sregs), "registers");
	sregs.cr0 = 0x80000001;
	sregs.cr4 = 0x20;
	sregs.efer = 0x500;
	sregs.cs.l = 1;
	sregs.cs.dpl = sregs.ss.dpl = 3;
	sregs.cs.selector = 0x33;
	sregs.ss.selector = 0x2b;
	check(ioctl(vcpu_fd, KVM_SET_SREGS, &sregs), "registers");
	check(ioctl(vcpu_fd, KVM_SET_REGS, &regs), "registers");
}

/* In the loop too. A fill that fails goes on trying: it is for us to end it. */
static void show_progress(void *data, const struct kvmfault_fill_progress *now)
{
	(void)data;
	if (now->error)
		errx(1, "IMAGE: %s", strerror(-now->error));
	printf("%ju of %ju bytes\n", (uintmax_t)(now->total - now->missing),
	       (uintmax_t)now->total);
}

static void make_ram(int image, uint64_t length)
{
	struct kvmfault_source source = { .size = sizeof(source) };
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = length, .source = &source };
	struct kvmfault_service_options none = { .size = sizeof(none) };
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = RAM_GPA, .length = length };
	struct kvmfault_fill_options rest = { .size = sizeof(rest),
		.memories = &ram, .memory_count = 1, .rate = 16 << 20,
		.window_length = 65536, .progress = show_progress };

	check(kvmfault_source_file(image, &source), "image");
	check(kvmfault_vm_new(NULL, &vm), "context");
	check(kvmfault_memory_alloc(vm, &options, &maps, &ram),
	      "/dev/userfaultfd");
	check(kvmfault_service_new(vm, &none, &service), "service");
	region.memory = ram;
	check(kvmfault_region_add(vm, &region), "region");
	set_slot(1, RAM_GPA, maps.memslots, length);
	check(kvmfault_fill_new(vm, &rest, &fill), "fill");
}

/* A vCPU that misses a page sleeps in KVM_RUN until the loop has brought it. */
static void *run_vcpu(void *data)
{
	struct kvmfault_vcpu_options options = {
		.size = sizeof(options), .fd = vcpu_fd, .run = run };
	struct kvmfault_vcpu *vcpu = (struct kvmfault_vcpu *)data;
	enum kvmfault_action what;

	check(kvmfault_vcpu_new(vm, &options, &vcpu), "vCPU's handle");
	do {
		int ret = ioctl(vcpu_fd, KVM_RUN, 0), why = errno;

		do
			what = kvmfault_vcpu_handle(vcpu, ret, why);
		while (what == KVMFAULT_ACTION_UNFINISHED);
	} while (what == KVMFAULT_ACTION_RETRY ||
		 what == KVMFAULT_ACTION_INTERRUPTED);
	if (what != KVMFAULT_ACTION_NOT_A_FAULT ||
	    run->exit_reason != KVM_EXIT_MMIO)
		errx(1, "the guest has failed");
	kvmfault_vcpu_free(vcpu);
	check(eventfd_write(event_fd, 1), "event");
	return NULL;
}

/* Until the guest is done and RAM is whole. */
static void loop(void)
{
	struct pollfd fds[] = { { kvmfault_service_fd(service), POLLIN, 0 },
				{ event_fd, POLLIN, 0 } };	/* and others */
	int timeout = 0;

	while (timeout >= 0 || fds[1].fd >= 0) {
		check(poll(fds, 2, timeout), "poll");
		if (fds[0].revents)
			check(kvmfault_service_dispatch(service), "service");
		if (fds[1].revents)
			fds[1].fd = -1;
		check(kvmfault_fill_dispatch(fill, &timeout), "fill");
	}
}

int main(int argc, char **argv)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };
	uint64_t length, sum = 0, i;
	pthread_t thread;
	int image;

	if (argc != 2)
		errx(2, "usage: eventloop IMAGE");
	image = check(open(argv[1], O_RDONLY | O_CLOEXEC), "IMAGE");
	length = (uint64_t)lseek(image, 0, SEEK_END);
	make_guest(length);
	make_ram(image, length);
	event_fd = check(eventfd(0, EFD_CLOEXEC), "event");
	if (pthread_create(&thread, NULL, run_vcpu, NULL))
		errx(1, "no thread");
	loop();
	pthread_join(thread, NULL);
	kvmfault_fill_free(fill);
	check(kvmfault_memory_settle(ram, NULL), "settle");
	kvmfault_service_free(service);
	check(kvmfault_vm_stats(vm, &stats), "counts");
	for (i = 0; i < length / 8; i++)
		sum += ((uint64_t *)maps.own)[i];
	printf("guest: %#jx\nRAM: %#jx\ndemand: %ju\n",
	       *(uintmax_t *)run->mmio.data, (uintmax_t)sum,
	       (uintmax_t)(stats.fetched + stats.holes - stats.filled));
	return 0;
}
