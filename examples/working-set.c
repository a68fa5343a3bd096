/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The first start of a VM records which pages of its image the guest touches,
 * into the file SET. Each later start finds that file, and brings these pages
 * before the guest asks for them. The guest sums up each fifth page of RAM.
 * usage: working-set IMAGE SET
 */

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <kvmfault.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define RAM_GPA 0x1000000

static uint64_t table[512] __attribute__((aligned(4096)));
static uint32_t cpuid[2 + 10 * 256] = { 256 };	/* a struct kvm_cpuid2 */
static int vm_fd, vcpu_fd;
static struct kvm_run *run;
static struct kvmfault_vm *vm;
static struct kvmfault_memory *ram;
static struct kvmfault_service *service;
static struct kvmfault_working_set *set;
static struct kvmfault_recording *recording;
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

/* The set that an earlier start of this image has saved, or one that has none
 * of it yet. Returns how much is in it. */
static uint64_t get_set(const char *path, const struct stat *image)
{
	struct kvmfault_working_set_options is = { .size = sizeof(is),
		.image_length = (uint64_t)image->st_size };
	struct kvmfault_working_set_info has = { .size = sizeof(has) };
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	/* A VMM may have a hash or a UUID of the image, which is better. */
	memcpy(is.identity, &image->st_mtim, sizeof(image->st_mtim));
	if (!kvmfault_working_set_load(fd, &set) &&
	    !kvmfault_working_set_describe(set, &has) &&
	    has.image_length == is.image_length &&
	    !memcmp(has.identity, is.identity, sizeof(is.identity)))
		return has.bytes;
	kvmfault_working_set_free(set);
	check(kvmfault_working_set_new(&is, &set), "working set");
	return 0;
}

/* RAM comes from the image; a recording or a fill is on before the guest is. */
static void restore(int image, uint64_t length, bool replay)
{
	struct kvmfault_source source = { .size = sizeof(source) };
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = length, .source = &source };
	struct kvmfault_memory_maps maps = { .size = sizeof(maps) };
	struct kvmfault_service_options w = { .size = sizeof(w), .threads = 1 };
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = RAM_GPA, .length = length };
	struct kvmfault_recording_options r = { .size = sizeof(r), .set = set,
		.memories = &ram, .memory_count = 1, .bytes = 64 << 20 };
	struct kvmfault_fill_options f = { .size = sizeof(f), .memories = &ram,
		.memory_count = 1, .first = set, .threads = 1 };

	check(kvmfault_source_file(image, &source), "image");
	check(kvmfault_vm_new(NULL, &vm), "context");
	check(kvmfault_memory_alloc(vm, &options, &maps, &ram),
	      "/dev/userfaultfd");
	check(kvmfault_service_new(vm, &w, &service), "service");
	if (replay)
		check(kvmfault_fill_new(vm, &f, &fill), "fill");
	else
		check(kvmfault_recording_new(vm, &r, &recording), "recording");
	region.memory = ram;
	check(kvmfault_region_add(vm, &region), "region");
	set_slot(1, RAM_GPA, maps.memslots, length);
}

/* Until the guest has something for its device. */
static void run_guest(void)
{
	struct kvmfault_vcpu_options options = {
		.size = sizeof(options), .fd = vcpu_fd, .run = run };
	enum kvmfault_action what;
	struct kvmfault_vcpu *vcpu;

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
}

int main(int argc, char **argv)
{
	struct kvmfault_fill_progress now = { .size = sizeof(now) };
	struct kvmfault_stats stats = { .size = sizeof(stats) };
	uint64_t known, sum;
	struct stat stat;
	int fd;

	if (argc != 3)
		errx(2, "usage: working-set IMAGE SET");
	fd = check(open(argv[1], O_RDONLY | O_CLOEXEC), "IMAGE");
	check(fstat(fd, &stat), "IMAGE");
	make_guest((uint64_t)stat.st_size);
	known = get_set(argv[2], &stat);
	restore(fd, (uint64_t)stat.st_size, known);
	/* The fill needs a head start; a VMM restores devices meanwhile. */
	while (fill && !kvmfault_fill_progress(fill, &now) && now.replaying)
		usleep(1000);
	run_guest();
	memcpy(&sum, run->mmio.data, sizeof(sum));
	if (!known) {
		check(kvmfault_recording_end(recording), "recording");
		fd = check(creat(argv[2], 0600), "SET");
		check(kvmfault_working_set_save(set, fd), "SET");
	}
	kvmfault_fill_free(fill);	/* a VMM lets it bring the rest */
	kvmfault_service_free(service);
	check(kvmfault_vm_stats(vm, &stats), "counts");
	printf("sum: %#jx\ndemand: %ju\n", (uintmax_t)sum,
	       (uintmax_t)(stats.fetched + stats.holes - stats.filled));
	return 0;	/* the end of the process takes all down */
}
