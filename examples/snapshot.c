/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* A live snapshot of a VM that is itself half restored. NEW gets the pages that
 * have come, as they are at one instant, though the guest writes on. For all
 * others it has holes, which mean IMAGE: none is brought in for it. The guest
 * adds 1 to each word of the lower half of RAM, 200 times.
 *	snapshot save IMAGE NEW >COPY	the VM comes from IMAGE, and is saved
 *	snapshot load IMAGE NEW >COPY	it goes on from there, to that COPY */

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <kvmfault.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define GPA 0x1000000		/* of RAM */
#define HAS(bitmap, at) ((bitmap)[(at) / 4096 / 64] >> (at) / 4096 % 64 & 1)

static struct kvmfault_vm *vm;
static struct kvmfault_region ram = { .size = sizeof(ram), .gpa = GPA };
static struct kvm_regs regs = { .rip = 0x3000, .rflags = 2 };
static struct kvm_run *run;
static pthread_mutex_t running = PTHREAD_MUTEX_INITIALIZER;
static int vcpu_fd, new_fd, written;

/* What the guest always has: page tables, and at 0x3000 its code. */
__asm__(".data; .balign 4096; .globl guest; guest: .quad 0x1027\n"
	".balign 4096; .quad 0x2027; .balign 4096; page = 0xe7\n"
	".rept 512; .quad page; page = page + 0x200000; .endr\n"
	"mov $200, %edx; 1: mov $0x1000000, %esi; mov %rdi, %rcx\n"
	"2: incq (%rsi); add $8, %rsi; loop 2b; dec %edx; jnz 1b\n"
	"3: mov %eax, 0x4000; jmp 3b; .balign 4096; .text");
extern char guest[0x4000];

static int check(int ret, const char *what)
{
	if (ret < 0)
		errx(1, "%s: %s", what, strerror(ret == -1 ? errno : -ret));
	return ret;
}

/* The resolver: a protected page is about to be written, or its turn comes. */
static int save_page(void *data, struct kvmfault_request *request)
{
	(void)data;
	if (request->fault->kind != KVMFAULT_KIND_CALL)
		__atomic_fetch_add(&written, 1, __ATOMIC_RELAXED);
	return pwrite(new_fd, request->host, 4096, request->offset) == 4096 ?
		KVMFAULT_VERDICT_RESOLVED : -EIO;
}

static void kick(int signal __attribute__((unused)))
{
}

static void *run_vcpu(void *unused)
{
	struct kvmfault_vcpu_options o = {
		.size = sizeof(o), .fd = vcpu_fd, .run = run };
	uint32_t cpuid[12] = { 1, 0, 0x80000001, 0, 0, 0, 0, 0, 1 << 29 };
	struct kvm_sregs sregs;
	struct kvmfault_vcpu *vcpu;
	enum kvmfault_action what;

	check(ioctl(vcpu_fd, KVM_SET_CPUID2, cpuid), "long mode");
	check(ioctl(vcpu_fd, KVM_GET_SREGS, &sregs), "registers");
	sregs.cr0 = 0x80000001;		/* 64-bit mode */
	sregs.cr4 = 0x20;
	sregs.efer = 0x500;
	sregs.cs.l = 1;
	sregs.cs.dpl = sregs.ss.dpl = 3;	/* CPL 3 */
	check(ioctl(vcpu_fd, KVM_SET_SREGS, &sregs), "registers");
	check(ioctl(vcpu_fd, KVM_SET_REGS, &regs), "registers");
	check(kvmfault_vcpu_new(vm, &o, &vcpu), "vCPU's handle");
	pthread_mutex_lock(&running);
	do {
		int ret = ioctl(vcpu_fd, KVM_RUN, 0), why = errno;
		do	/* while UNFINISHED, not into KVM_RUN */
			what = kvmfault_vcpu_handle(vcpu, ret, why);
		while (what == KVMFAULT_ACTION_UNFINISHED);
		if (what == KVMFAULT_ACTION_UNRESOLVED)
			errx(1, "vCPU: %s", kvmfault_reason_str(
				kvmfault_vcpu_result(vcpu)->reason));
		if (what == KVMFAULT_ACTION_INTERRUPTED) {
			pthread_mutex_unlock(&running);	/* the kick's instant */
			pthread_mutex_lock(&running);
		}
	} while (what != KVMFAULT_ACTION_NOT_A_FAULT);
	if (run->exit_reason != KVM_EXIT_MMIO)
		errx(1, "vCPU: KVM exit %u", run->exit_reason);
	pthread_mutex_unlock(&running);
	return unused;
}

static void save(pthread_t vcpu)
{
	static uint64_t to_save[4096], zeros[4096];	/* a bit a page */
	static const char zero[4096] = "";
	struct kvmfault_memory_counts now = { .size = sizeof(now) };
	uint64_t p, end, size = ram.length;	/* p: a page of RAM */

	check(kvmfault_discard(vm, 0, GPA + size - 4096, 4096), "balloon");
	while (now.present < size / 4096 / 2 && usleep(1000) == 0)
		check(kvmfault_memory_count(ram.memory, 0, size, &now), "RAM");
	/* The instant: no vCPU runs, and no device. */
	__atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_kill(vcpu, SIGUSR1);
	pthread_mutex_lock(&running);
	check(ioctl(vcpu_fd, KVM_GET_REGS, &regs), "registers");
	check(kvmfault_memory_bitmap(ram.memory, 0, size,
		KVMFAULT_STATE_DISCARDED, zeros, sizeof(zeros)), "states");
	check(kvmfault_memory_bitmap(ram.memory, 0, size,
		KVMFAULT_STATE_PRESENT | KVMFAULT_STATE_CLAIMED,
		to_save, sizeof(to_save)), "states");
	for (p = 0; p < size; p = end + 4096) {
		for (end = p; end < size && HAS(to_save, end); end += 4096)
			;
		if (end > p)
			check(kvmfault_protect(vm, 0, GPA + p, end - p), "RAM");
	}
	__atomic_store_n(&run->immediate_exit, 0, __ATOMIC_SEQ_CST);
	pthread_mutex_unlock(&running);
	/* The guest goes on. What it writes to is saved first. */
	for (p = 0; p < size; p += 4096)
		if (HAS(to_save, p))
			check(kvmfault_ensure(vm, 0, GPA + p, 4096, 1), "NEW");
		else if (HAS(zeros, p))
			check(pwrite(new_fd, zero, 4096, p), "NEW");
	check(pwrite(new_fd, &regs, sizeof(regs), size), "NEW");
	check(kvmfault_memory_count(ram.memory, 0, size, &now), "RAM");
	fprintf(stderr, "absent: %lu, written: %d\n", now.absent, written);
}

int main(int argc, char **argv)
{
	bool saves = argc == 4 && !strcmp(argv[1], "save");
	struct kvmfault_source image = { .size = sizeof(image) }, above = image;
	struct kvmfault_memory_options memory = { .size = sizeof(memory),
		.source = &image, .write_protect = true };
	struct kvmfault_memory_maps maps = { .size = sizeof(maps) };
	struct kvmfault_resolver r = { .size = sizeof(r), .name = "saver",
		.pages = 1U << KVMFAULT_PAGE_PROTECTED, .resolve = save_page };
	struct kvmfault_service_options w = { .size = sizeof(w), .threads = 1 };
	struct kvm_userspace_memory_region slot = {
		.memory_size = 0x4000, .userspace_addr = (uintptr_t)guest };
	struct kvmfault_service *service;
	int kvm, vm_fd, ret;
	pthread_t vcpu;

	if (!saves && (argc != 4 || strcmp(argv[1], "load")))
		errx(1, "usage: snapshot save|load IMAGE NEW >COPY");
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		err(77, "/dev/kvm");	/* this machine lacks it */
	check(kvmfault_source_file(open(argv[2], O_RDONLY), &image), argv[2]);
	ram.length = memory.length = image.length / 4096 * 4096;
	regs.rdi = ram.length / 2 / 8;
	new_fd = saves ? creat(argv[3], 0666) : open(argv[3], O_RDONLY);
	check(new_fd, argv[3]);
	if (!saves) {
		check(kvmfault_source_file(new_fd, &above), argv[3]);
		check(kvmfault_source_over(&above, &image, &image), argv[3]);
		if (pread(new_fd, &regs, sizeof(regs), ram.length) <= 0)
			errx(1, "%s is not whole", argv[3]);
	}
	signal(SIGUSR1, kick);
	vm_fd = check(ioctl(kvm, KVM_CREATE_VM, 0), "VM");
	vcpu_fd = check(ioctl(vm_fd, KVM_CREATE_VCPU, 0), "vCPU");
	ret = check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "vCPU");
	run = (struct kvm_run *)mmap(NULL, (size_t)ret, PROT_READ | PROT_WRITE,
				     MAP_SHARED, vcpu_fd, 0);
	check(kvmfault_vm_new(NULL, &vm), "context");
	ret = kvmfault_memory_alloc(vm, &memory, &maps, &ram.memory);
	if (ret == -EPERM || ret == -ENOSYS || ret == -EOPNOTSUPP)
		errx(77, "no userfaultfd for this: %s", strerror(-ret));
	check(ret, "RAM");
	check(kvmfault_resolver_add(vm, &r), "resolver");
	check(kvmfault_service_new(vm, &w, &service), "service");
	check(kvmfault_region_add(vm, &ram), "region");
	check(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot), "slot 0");
	slot.slot = 1;
	slot.guest_phys_addr = GPA;
	slot.memory_size = ram.length;
	slot.userspace_addr = (uintptr_t)maps.memslots;
	check(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot), "slot 1");
	check(-pthread_create(&vcpu, NULL, run_vcpu, NULL), "vCPU");
	if (saves)
		save(vcpu);
	check(-pthread_join(vcpu, NULL), "vCPU");
	return fwrite(maps.own, ram.length, 1, stdout) != 1 || fflush(stdout);
}
