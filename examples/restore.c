/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* A VM runs while its RAM still comes from a snapshot's file: what is touched
 * comes first, a fill brings the rest, and then RAM is settled. Two vCPUs, a
 * device's thread and a device's process add 1 to each word of a fifth of RAM
 * each; the last fifth is a balloon's. A signal ends it at any moment.
 * usage: restore IMAGE >COPY	COPY: gets RAM as it is in the end */

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <kvmfault.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GPA 0x1000000			/* of RAM */
static struct kvmfault_vm *vm;
static struct kvmfault_memory_maps ram = { .size = sizeof(ram) };
static uint64_t fifth;			/* of RAM, in bytes */
static int kvm, vm_fd, working = 4;

/* What the guest always has: page tables, and at 0x3000 the code that adds 1 to
 * each of the rcx words from rsi on and then writes to a device, at 0x4000. */
__asm__(".data; .balign 4096; .globl guest; guest: .quad 0x1027\n"
	".balign 4096; .quad 0x2027; .balign 4096; page = 0xe7\n"
	".rept 512; .quad page; page = page + 0x200000; .endr; 1: incq (%rsi)\n"
	"add $8, %rsi; loop 1b; mov %eax, 0x4000; .balign 4096; .text");
extern char guest[0x4000];

static int check(int ret, const char *what)
{
	if (ret < 0)
		errx(1, "%s: %s", what, strerror(ret == -1 ? errno : -ret));
	return ret;
}

static void *run_vcpu(void *which)
{
	uint64_t id = (uintptr_t)which;
	int fd = check(ioctl(vm_fd, KVM_CREATE_VCPU, id), "vCPU");
	int size = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "vCPU");
	struct kvmfault_vcpu_options o = { .size = sizeof(o), .fd = fd,
		.run = (struct kvm_run *)mmap(NULL, (size_t)size,
			PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) };
	struct kvm_regs regs = { .rcx = fifth / 8, .rsi = GPA + id * fifth,
		.rip = 0x3000, .rflags = 2 };
	uint32_t cpuid[12] = { 1, 0, 0x80000001, 0, 0, 0, 0, 0, 1 << 29 };
	struct kvm_sregs sregs;
	struct kvmfault_vcpu *vcpu;
	enum kvmfault_action what;

	check(ioctl(fd, KVM_SET_CPUID2, cpuid), "long mode");
	check(ioctl(fd, KVM_GET_SREGS, &sregs), "registers");
	sregs.cr0 = 0x80000001;		/* 64-bit mode */
	sregs.cr4 = 0x20;
	sregs.efer = 0x500;
	sregs.cs.l = 1;
	sregs.cs.dpl = sregs.ss.dpl = 3;	/* CPL 3 */
	check(ioctl(fd, KVM_SET_SREGS, &sregs), "registers");
	check(ioctl(fd, KVM_SET_REGS, &regs), "registers");
	check(kvmfault_vcpu_new(vm, &o, &vcpu), "vCPU's handle");
	do {
		int ret = ioctl(fd, KVM_RUN, 0), why = errno;
		do	/* while UNFINISHED, not into KVM_RUN */
			what = kvmfault_vcpu_handle(vcpu, ret, why);
		while (what == KVMFAULT_ACTION_UNFINISHED);
		if (what == KVMFAULT_ACTION_UNRESOLVED)
			errx(1, "vCPU: %s", kvmfault_reason_str(
				kvmfault_vcpu_result(vcpu)->reason));
	} while (what != KVMFAULT_ACTION_NOT_A_FAULT);
	if (o.run->exit_reason != KVM_EXIT_MMIO)
		errx(1, "vCPU: KVM exit %u", o.run->exit_reason);
	kvmfault_vcpu_free(vcpu);
	__atomic_fetch_sub(&working, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void *run_device(void *from)	/* does as the guest does */
{
	for (uint64_t i = 0; i < fifth / 8; i++)
		((uint64_t *)from)[i]++;
	__atomic_fetch_sub(&working, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

/* A device in a process. The VMM takes its userfaultfd, and answers it. */
static int start_process(struct kvmfault_memory *memory)
{
	struct kvmfault_uffd_options theirs = {
		.size = sizeof(theirs), .remote = true };
	struct kvmfault_mapping_options where = { .size = sizeof(where) };
	struct uffdio_api api = { .api = UFFD_API };
	struct kvmfault_mapping *mapping;
	uint64_t message[2] = { 0 };
	int pair[2], process, fd;

	check(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), "process");
	process = check(fork(), "process");
	close(pair[!!process]);
	if (!process) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		message[0] = (uint64_t)check(syscall(SYS_userfaultfd,
			O_NONBLOCK | UFFD_USER_MODE_ONLY), "userfaultfd");
		message[1] = (uintptr_t)mmap(NULL, 5 * fifth,
			PROT_READ | PROT_WRITE, MAP_SHARED, ram.fd, 0);
		check(ioctl((int)message[0], UFFDIO_API, &api), "userfaultfd");
		/* The descriptor stays open here too: without the VMM this
		 * process sleeps on until it dies, and reads no zeros. */
		check(write(pair[1], message, 16), "process");
		if (read(pair[1], &process, 1) == 1)
			run_device((char *)message[1] + 3 * fifth);
		check(write(pair[1], "", 1), "process");
		pause();
	}
	if (read(pair[0], message, 16) != 16)
		errx(1, "process: no userfaultfd");
	fd = check(syscall(SYS_pidfd_open, process, 0), "pidfd");
	theirs.fd = check(syscall(SYS_pidfd_getfd, fd, message[0], 0), "pidfd");
	where.host = message[1];
	check(kvmfault_uffd_new(vm, &theirs, &where.uffd), "process");
	check(kvmfault_mapping_add(memory, &where, &mapping), "process");
	check(write(pair[0], "", 1), "process");
	return pair[0];
}

int main(int argc, char **argv)
{
	struct kvmfault_source image = { .size = sizeof(image) };
	struct kvmfault_memory_options memory = {
		.size = sizeof(memory), .source = &image };
	struct kvmfault_region region = { .size = sizeof(region), .gpa = GPA };
	struct kvmfault_service_options w = { .size = sizeof(w), .threads = 1 };
	struct kvmfault_fill_options rest = { .size = sizeof(rest),
		.memories = &region.memory, .memory_count = 1, .threads = 1 };
	struct kvmfault_fill_progress now = { .size = sizeof(now) };
	struct kvm_userspace_memory_region slot = {
		.memory_size = 0x4000, .userspace_addr = (uintptr_t)guest };
	struct timespec tick = { .tv_nsec = 20 * 1000 * 1000 };
	struct kvmfault_service *service;
	struct kvmfault_fill *fill;
	sigset_t signals;
	pthread_t thread;
	int channel, ret;

	if (argc != 2)
		errx(1, "usage: restore IMAGE >COPY");
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		err(77, "/dev/kvm");	/* this machine lacks it */
	check(kvmfault_source_file(open(argv[1], O_RDONLY), &image), argv[1]);
	fifth = image.length / 5 / 4096 * 4096;
	memory.length = region.length = 5 * fifth;
	sigfillset(&signals);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	vm_fd = check(ioctl(kvm, KVM_CREATE_VM, 0), "VM");
	check(kvmfault_vm_new(NULL, &vm), "context");
	ret = kvmfault_memory_alloc(vm, &memory, &ram, &region.memory);
	if (ret == -EPERM || ret == -ENOSYS)
		errx(77, "no userfaultfd: %s", strerror(-ret));
	check(ret, "RAM");
	channel = start_process(region.memory);
	check(kvmfault_service_new(vm, &w, &service), "service");
	check(kvmfault_region_add(vm, &region), "region");
	check(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot), "slot 0");
	slot.slot = 1;
	slot.guest_phys_addr = GPA;
	slot.memory_size = region.length;
	slot.userspace_addr = (uintptr_t)ram.memslots;
	check(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot), "slot 1");
	check(-pthread_create(&thread, NULL, run_vcpu, (void *)0), "vCPU 0");
	check(-pthread_create(&thread, NULL, run_vcpu, (void *)1), "vCPU 1");
	check(-pthread_create(&thread, NULL, run_device,
			      (char *)ram.own + 2 * fifth), "thread");
	check(kvmfault_fill_new(vm, &rest, &fill), "fill");
	check(kvmfault_discard(vm, 0, GPA + 4 * fifth, fifth), "balloon");
	while (__atomic_load_n(&working, __ATOMIC_SEQ_CST) || !now.over) {
		if (recv(channel, &ret, 1, MSG_DONTWAIT) == 1)
			__atomic_fetch_sub(&working, 1, __ATOMIC_SEQ_CST);
		check(kvmfault_fill_progress(fill, &now), "fill");
		check(now.error, argv[1]);
		fprintf(stderr, "%lu of %lu bytes\n", now.resident, now.total);
		if (sigtimedwait(&signals, NULL, &tick) > 0)
			errx(3, "ended, %lu bytes are missing", now.missing);
	}
	check(kvmfault_fill_free(fill), "fill");
	check(kvmfault_memory_settle(region.memory, NULL), "settle");
	return fwrite(ram.own, region.length, 1, stdout) != 1 || fflush(stdout);
}
