/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A VMM whose guest is Linux. In: a delivery mode, a bzImage, an initrd. Out:
 * the guest's console, and what came of its memory. RAM is an empty memfd, and
 * what the boot loader would have put there is the source's: so all that the
 * guest ever touches comes by a fault, page tables and the kernel's text too.
 *
 * Ends with 0 if the guest has found every word that it looked at to be right,
 * no page was fetched twice, and the faults came as the mode has them.
 */

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <kvmfault.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "kvmfault-experimental.h"
#include "../need.h"
#include "image.h"
#include "init.h"

#define PAGE 4096UL
#define RAM (96UL << 20)
#define PAGES (RAM / PAGE)
#define LEAST (32UL << 20)		/* of which the guest touches */
#define SKIPPED 77

#define SERIAL 0x3f8
#define SERIAL_STATUS (SERIAL + 5)
#define SERIAL_EMPTY 0x60		/* it takes a byte at any time */
#define CLOCK_DATA 0x71

/*
 * The serial port can only be written to, which is what Linux does with an
 * early console. There is neither ACPI nor an MP table: Linux takes the
 * interrupt controllers and the timers that have always been there, which are
 * KVM's. It resets by a triple fault.
 */
#define COMMAND_LINE \
	"earlycon=uart8250,io,0x3f8 keep_bootcon acpi=off reboot=t panic=-1 " \
	"oops=panic"

static struct {
	int kvm_fd, vm_fd, fd;
	struct kvm_run *run;
	unsigned char *image;
	_Atomic uint16_t reads[PAGES];
	bool passed;			/* says the guest */

	struct kvmfault_vm *vm;
	struct kvmfault_memory *memory;
	struct kvmfault_memory_maps maps;
	struct kvmfault_service *service;
	struct kvmfault_vcpu *vcpu;
} guest;

static int must(int ret, const char *what)
{
	if (ret < 0)
		errx(1, "%s: %s", what, strerror(ret == -1 ? errno : -ret));
	return ret;
}

static void make_machine(void)
{
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	int size;

	guest.kvm_fd = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	guest.vm_fd = must(ioctl(guest.kvm_fd, KVM_CREATE_VM, 0), "VM");
	must(ioctl(guest.vm_fd, KVM_SET_TSS_ADDR, 0xfffbd000UL), "TSS");
	must(ioctl(guest.vm_fd, KVM_CREATE_IRQCHIP), "interrupt controllers");
	must(ioctl(guest.vm_fd, KVM_CREATE_PIT2, &pit), "timer");
	guest.fd = must(ioctl(guest.vm_fd, KVM_CREATE_VCPU, 0), "vCPU");
	size = must(ioctl(guest.kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0), "vCPU");
	guest.run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE,
			 MAP_SHARED, guest.fd, 0);
	if (guest.run == MAP_FAILED)
		err(1, "vCPU");
}

/* Where KVM walks the guest's page tables, it runs the guest's kernel in its
 * emulator, if at all: that takes hours. */
static void need_speed(void)
{
	struct kvmfault_features features = { .size = sizeof(features) };

	must(kvmfault_probe(guest.kvm_fd, guest.vm_fd, &features), "probe");
	if (features.feature[KVMFAULT_FEATURE_TWO_DIMENSIONAL_PAGING].support ==
	    KVMFAULT_SUPPORT_YES)
		return;
	printf("SKIP: this KVM has no two-dimensional paging: it would emulate "
	       "the guest's kernel, instruction by instruction\n");
	exit(SKIPPED);
}

/* The least that a 64-bit Linux needs: with all that the host has it finds
 * sizes of the extended state that do not go together. */
static bool keep(struct kvm_cpuid_entry2 *entry)
{
	switch (entry->function) {
	case 0:
		entry->eax = 1;
		return true;
	case 1:
		entry->ebx &= 0xffffff;		/* the first APIC's number */
		entry->ecx &= 1 << 13;		/* CMPXCHG16B */
		entry->edx &= 0x0783fbff;	/* up to SSE2 */
		return true;
	case 0x80000000:
		entry->eax = 0x80000001;
		return true;
	case 0x80000001:
		entry->ecx &= 1;		/* LAHF */
		entry->edx &= 0x2c100800;	/* SYSCALL, NX, 1 GiB, 64-bit */
		return true;
	default:
		return false;
	}
}

static void set_cpuid(void)
{
	enum { MOST = 256 };
	struct kvm_cpuid2 *cpuid =
		calloc(1, sizeof(*cpuid) + MOST * sizeof(*cpuid->entries));
	uint32_t i, kept = 0;

	if (!cpuid)
		err(1, "CPUID");
	cpuid->nent = MOST;
	must(ioctl(guest.kvm_fd, KVM_GET_SUPPORTED_CPUID, cpuid), "CPUID");
	for (i = 0; i < cpuid->nent; i++)
		if (keep(&cpuid->entries[i]))
			cpuid->entries[kept++] = cpuid->entries[i];
	cpuid->nent = kept;
	must(ioctl(guest.fd, KVM_SET_CPUID2, cpuid), "CPUID");
	free(cpuid);
}

static struct kvm_segment segment(uint16_t selector, uint8_t type)
{
	return (struct kvm_segment){
		.selector = selector,
		.limit = 0xffffffff,
		.type = type,
		.present = 1,
		.s = 1,
		.l = type == 0xb,
		.db = type != 0xb,
		.g = 1,
	};
}

static void set_registers(const struct entry *entry)
{
	struct kvm_regs regs = {
		.rip = entry->rip,
		.rsi = entry->rsi,
		.rflags = 2,
	};
	struct kvm_sregs sregs;

	must(ioctl(guest.fd, KVM_GET_SREGS, &sregs), "registers");
	sregs.cs = segment(0x10, 0xb);
	sregs.ds = segment(0x18, 0x3);
	sregs.es = sregs.ss = sregs.fs = sregs.gs = sregs.ds;
	sregs.cr0 = 0x80000011;			/* PG, ET, PE */
	sregs.cr3 = entry->cr3;
	sregs.cr4 = 0x20;			/* PAE */
	sregs.efer = 0x500;			/* LMA, LME */
	must(ioctl(guest.fd, KVM_SET_SREGS, &sregs), "registers");
	must(ioctl(guest.fd, KVM_SET_REGS, &regs), "registers");
}

static int read_image(void *data, uint64_t offset, void *buffer, size_t length)
{
	uint64_t at;

	(void)data;
	for (at = offset; at < offset + length; at += PAGE)
		atomic_fetch_add(&guest.reads[at / PAGE], 1);
	memcpy(buffer, guest.image + offset, length);
	return 0;
}

static void log_line(void *data, enum kvmfault_log_level level,
		     const char *message)
{
	(void)data;
	(void)level;
	printf("# %s\n", message);
}

/* Linux 6.8; with the bitmap of KVM_MEM_USERFAULT where that has padding. */
struct region2 {
	struct kvm_userspace_memory_region old;
	uint64_t guest_memfd_offset;
	uint32_t guest_memfd, pad;
	uint64_t userfault_bitmap;
	uint64_t pad2[13];
};
#define SET_USER_MEMORY_REGION2 _IOW(KVMIO, 0x49, struct region2)
_Static_assert(SET_USER_MEMORY_REGION2 == 0x40a0ae49, "ioctl number");

/* As the delivery mode wants it; with the newer call where there is a need. */
static void set_slot(void)
{
	struct kvmfault_memslot memslot = { .size = sizeof(memslot) };
	struct region2 slot = {
		.old.memory_size = RAM,
		.old.userspace_addr = (uintptr_t)guest.maps.memslots,
	};

	must(kvmfault_region_memslot(guest.vm, 0, 0, &memslot), "memslot");
	slot.old.flags = memslot.flags;
	slot.userfault_bitmap = memslot.userfault_bitmap;
	must(ioctl(guest.vm_fd, memslot.userfault_bitmap ?
		   SET_USER_MEMORY_REGION2 : KVM_SET_USER_MEMORY_REGION, &slot),
	     "RAM");
}

static void make_ram(enum kvmfault_delivery delivery)
{
	const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops), .log = log_line,
	};
	struct kvmfault_vm_options options = {
		.size = sizeof(options),
		.ops = &ops,
		.kvm_fd = guest.kvm_fd,
		.delivery = delivery,
	};
	struct kvmfault_source source = {
		.size = sizeof(source),
		.name = "image",
		.read = read_image,
		.length = RAM,
	};
	struct kvmfault_memory_options memory = {
		.size = sizeof(memory),
		.length = RAM,
		.source = &source,
	};
	struct kvmfault_region region = {
		.size = sizeof(region),
		.length = RAM,
	};
	must(kvmfault_vm_new(&options, &guest.vm), "context");
	guest.maps.size = sizeof(guest.maps);
	must(kvmfault_memory_alloc(guest.vm, &memory, &guest.maps,
				    &guest.memory), "memory");
	region.memory = guest.memory;
	must(kvmfault_region_add(guest.vm, &region), "region");
	set_slot();
}

static void start_library(void)
{
	struct kvmfault_service_options service = {
		.size = sizeof(service),
		.threads = 1,
	};
	struct kvmfault_vcpu_options vcpu = {
		.size = sizeof(vcpu),
		.fd = guest.fd,
		.run = guest.run,
	};

	must(kvmfault_service_new(guest.vm, &service, &guest.service),
	     "service");
	must(kvmfault_vcpu_new(guest.vm, &vcpu, &guest.vcpu), "vCPU");
}

/* Line by line, each as soon as it is there: what was last of a guest that
 * hangs is known then. */
static void print(char byte)
{
	static char line[256];
	static size_t length;

	if (byte != '\n' && length < sizeof(line) - 1) {
		if (byte != '\r')
			line[length++] = byte;
		return;
	}
	line[length] = 0;
	length = 0;
	guest.passed |= strstr(line, INIT_PASSED) != NULL;
	printf("| %s\n", line);
	fflush(stdout);
}

static void do_port(void)
{
	const struct kvm_run *run = guest.run;
	unsigned char *data = (unsigned char *)guest.run + run->io.data_offset;
	size_t i, length = (size_t)run->io.size * run->io.count;

	if (run->io.direction == KVM_EXIT_IO_OUT) {
		for (i = 0; run->io.port == SERIAL && i < length; i++)
			print((char)data[i]);
		return;
	}
	memset(data, 0xff, length);
	if (run->io.port == SERIAL_STATUS)
		*data = SERIAL_EMPTY;
	else if (run->io.port == CLOCK_DATA)
		*data = 0;		/* 0xff is a clock that is being set */
}

/* Returns whether the guest goes on. */
static bool do_exit(void)
{
	switch (guest.run->exit_reason) {
	case KVM_EXIT_IO:
		do_port();
		return true;
	case KVM_EXIT_MMIO:		/* there are no devices */
		memset(guest.run->mmio.data, 0xff,
		       sizeof(guest.run->mmio.data));
		return true;
	case KVM_EXIT_SHUTDOWN:
		return false;
	default:
		errx(1, "the guest left with exit %u", guest.run->exit_reason);
	}
}

static void run_guest(void)
{
	const struct kvmfault_result *result =
		kvmfault_vcpu_result(guest.vcpu);
	int ret = 0, error = 0;

	for (;;) {
		if (!result->unfinished) {
			ret = ioctl(guest.fd, KVM_RUN, 0);
			error = errno;
		}
		switch (kvmfault_vcpu_handle(guest.vcpu, ret, error)) {
		case KVMFAULT_ACTION_NOT_A_FAULT:
			if (ret < 0)
				errx(1, "KVM_RUN: %s", strerror(error));
			if (!do_exit())
				return;
			break;
		case KVMFAULT_ACTION_UNRESOLVED:
			errx(1, "unresolved: %s: %s",
			     kvmfault_reason_str(result->reason),
			     strerror(-result->error));
		case KVMFAULT_ACTION_INTERRUPTED:
		case KVMFAULT_ACTION_UNFINISHED:
			if (result->siginfo)
				errx(1, "a SIGBUS that is not for the guest");
			break;
		default:
			break;
		}
	}
}

static uint64_t in_file(void)
{
	struct stat stat;

	must(fstat(guest.maps.fd, &stat), "RAM");
	return (uint64_t)stat.st_blocks * 512 / PAGE;
}

/* Whether the library's account, the source's and the kernel's agree. */
static bool each_page_once(const struct kvmfault_stats *stats)
{
	uint64_t i, once = 0, twice = 0;

	for (i = 0; i < PAGES; i++) {
		once += guest.reads[i] == 1;
		twice += guest.reads[i] > 1;
	}
	printf("pages: %" PRIu64 " fetched, %" PRIu64 " read once, %" PRIu64
	       " twice, %" PRIu64 " in the file, of %lu\n", stats->fetched,
	       once, twice, in_file(), PAGES);
	return !twice && once == stats->fetched && once == in_file() &&
		once >= LEAST / PAGE;
}

/* How nine of ten faults have to come. */
static const enum kvmfault_kind entrance_of[KVMFAULT_DELIVERY_COUNT] = {
	[KVMFAULT_DELIVERY_UFFD] = KVMFAULT_KIND_UFFD,
	[KVMFAULT_DELIVERY_MARKER_EXIT] = KVMFAULT_KIND_MARKER,
	[KVMFAULT_DELIVERY_KERNEL_EXIT] = KVMFAULT_KIND_EXIT,
};

static bool good(enum kvmfault_delivery delivery)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };
	enum kvmfault_kind i;
	bool once;

	must(kvmfault_vm_stats(guest.vm, &stats), "statistics");
	for (i = 0; i < KVMFAULT_KIND_COUNT; i++)
		if (stats.kind[i])
			printf("%s: %" PRIu64 "\n", kvmfault_kind_str(i),
			       stats.kind[i]);
	once = each_page_once(&stats);
	if (!guest.passed)
		printf("the guest did not say that it has passed\n");
	return guest.passed && once && !stats.unresolved &&
		stats.kind[entrance_of[delivery]] * 10 >= stats.fetched * 9;
}

static void take_down(void)
{
	kvmfault_vcpu_free(guest.vcpu);
	must(kvmfault_region_remove(guest.vm, 0, 0), "region");
	must(kvmfault_memory_free(guest.memory), "memory");
	must(kvmfault_vm_free(guest.vm), "context");
}

static enum kvmfault_delivery find_delivery(const char *name)
{
	enum kvmfault_delivery i;

	for (i = KVMFAULT_DELIVERY_UFFD; i < KVMFAULT_DELIVERY_COUNT; i++)
		if (!strcmp(name, kvmfault_delivery_str(i)))
			return i;
	errx(2, "no delivery mode '%s'", name);
}

int main(int argc, char **argv)
{
	enum kvmfault_delivery delivery;
	struct entry entry;
	sigset_t bus;
	bool right;

	if (argc != 4)
		errx(2, "usage: %s DELIVERY KERNEL INITRD", argv[0]);
	delivery = find_delivery(argv[1]);
	need("kvm");
	need("uffd");
	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	sigprocmask(SIG_BLOCK, &bus, NULL);
	make_machine();
	need_speed();
	guest.image = image_new(RAM, argv[2], argv[3], COMMAND_LINE, &entry);
	make_ram(delivery);
	set_cpuid();
	set_registers(&entry);
	start_library();
	run_guest();
	/* When its thread is gone, it has counted everything. */
	must(kvmfault_service_free(guest.service), "service");
	right = good(delivery);
	take_down();
	return !right;
}
