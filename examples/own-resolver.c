/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* A VMM's own resolver: a part of RAM comes from an image that is sealed, page
 * by page. The resolver opens a page when the guest touches it; other pages it
 * declines, and the library brings them. The guest sums up all of RAM.
 * usage: own-resolver PLAIN SEALED */

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <kvmfault.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define RAM_GPA 0x1000000
#define KEY 0x243f6a8885a308d3

static uint64_t sealed_length, table[512] __attribute__((aligned(4096)));
static uint32_t cpuid[2 + 10 * 256] = { 256 };	/* a struct kvm_cpuid2 */
static int vm_fd, vcpu_fd, sealed_fd;
static struct kvm_run *run;
static struct kvmfault_vm *vm;
static struct kvmfault_memory *sealed;

/* The guest: rcx words, from rsi on; the sum goes to a device. */
__asm__(".pushsection .rodata; .globl code, code_end; code: add (%rsi), %rax\n"
	"add $8, %rsi; loop code; mov %rax, 0x1f000000; code_end: .popsection");
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
	struct kvm_regs regs = { .rcx = length / 8, .rsi = RAM_GPA,
		.rip = 0x800, .rflags = 2 };
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

/* Stands for a real cipher, with a real key and tag, such as AES-GCM. */
static uint64_t mix(uint64_t word)
{
	word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9;
	return (word ^ word >> 27) * 0x94d049bb133111eb;
}

/* Any number of threads run this at once, each with a page and a buffer of its
 * own. The pages' tags are at the end of the image. */
static int open_page(void *data, struct kvmfault_request *request)
{
	uint64_t *to = (uint64_t *)request->buffer, sum = KEY, tag, i;
	int err;

	if (request->memory != *(struct kvmfault_memory **)data)
		return KVMFAULT_VERDICT_DECLINED;
	err = kvmfault_request_read(request, to);
	if (err)
		return err;
	for (i = 0; i < request->length / 8; i++) {
		to[i] ^= mix(KEY + request->offset + i * 8);
		sum = mix(sum ^ to[i]);
	}
	if (pread(sealed_fd, &tag, 8, (off_t)(sealed_length +
					      request->offset / 512)) != 8)
		return -EIO;
	err = sum == tag ? kvmfault_request_install(request, to) : -EBADMSG;
	return err ? err : KVMFAULT_VERDICT_RESOLVED;
}

/* The guest sleeps in the kernel on a page that does not come. */
static void fail(void *data, const struct kvmfault_sleeper *sleeper)
{
	(void)data;
	errx(1, "page at %#jx: %s: %s", (uintmax_t)sleeper->offset,
	     kvmfault_reason_str(sleeper->reason), strerror(-sleeper->error));
}

static void add_ram(uint64_t gpa, int fd, uint64_t length,
		    struct kvmfault_memory **memory)
{
	static unsigned int slot;
	struct kvmfault_source source = { .size = sizeof(source) };
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = length, .source = &source };
	struct kvmfault_memory_maps maps = { .size = sizeof(maps) };
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = gpa, .length = length };

	check(kvmfault_source_file(fd, &source), "image");
	check(kvmfault_memory_alloc(vm, &options, &maps, memory),
	      "/dev/userfaultfd");
	region.memory = *memory;
	check(kvmfault_region_add(vm, &region), "region");
	set_slot(++slot, gpa, maps.memslots, length);
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
}

int main(int argc, char **argv)
{
	struct kvmfault_vm_ops op = { .size = sizeof(op), .unresolved = fail };
	struct kvmfault_vm_options o = { .size = sizeof(o), .ops = &op };
	/* Where the file has a hole, the page is sealed all the same. */
	struct kvmfault_resolver own = { .size = sizeof(own), .name = "open",
		.pages = 1U << KVMFAULT_PAGE_ABSENT | 1U << KVMFAULT_PAGE_HOLE,
		.resolve = open_page, .data = &sealed };
	struct kvmfault_service_options w = { .size = sizeof(w), .threads = 1 };
	struct kvmfault_stats stats = { .size = sizeof(stats) };
	struct kvmfault_service *service;
	struct kvmfault_memory *plain;
	uint64_t length;
	int fd;

	if (argc != 3)
		errx(2, "usage: own-resolver PLAIN SEALED");
	fd = check(open(argv[1], O_RDONLY | O_CLOEXEC), "PLAIN");
	sealed_fd = check(open(argv[2], O_RDONLY | O_CLOEXEC), "SEALED");
	length = (uint64_t)lseek(fd, 0, SEEK_END);
	sealed_length = (uint64_t)lseek(sealed_fd, 0, SEEK_END) / 4104 * 4096;
	make_guest(length + sealed_length);
	check(kvmfault_vm_new(&o, &vm), "context");
	check(kvmfault_resolver_add(vm, &own), "resolver");
	check(kvmfault_service_new(vm, &w, &service), "service");
	add_ram(RAM_GPA, fd, length, &plain);
	add_ram(RAM_GPA + length, sealed_fd, sealed_length, &sealed);
	run_guest();
	kvmfault_service_free(service);	/* all that it did is counted now */
	check(kvmfault_vm_stats(vm, &stats), "counts");
	printf("sum: %#jx\nopened: %ju of %ju\n",
	       *(uintmax_t *)run->mmio.data, (uintmax_t)stats.resolver[0],
	       (uintmax_t)stats.fetched);
	return 0;	/* the end of the process takes all down */
}
