/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A window that is mapped ahead, on a real vCPU: KVM's own count of the guest's
 * page faults tells whether it was. Absent pages have markers, so that they
 * stop the vCPU, and there is no service: who slept would sleep for ever.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <machine.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <kvmfault.h>

#include "need.h"
#include "unit.h"

#define RAM (4ULL << 30)
#define PAGES 64ULL
#define WINDOW 16ULL
#define POISON 0xc020aa08UL	/* UFFDIO_POISON, newer than 6.1's headers */
#define MUST(call) ck_assert_int_eq(call, 0)

static struct machine *machine;
static struct kvmfault_vm *vm;
static struct kvmfault_vcpu *vcpu;
static struct kvmfault_uffd *uffd;
static struct kvmfault_region region;
static char *host;
static int memfd;

/* ---- what KVM counts ---- */

static uint64_t read_at(int fd, const struct kvm_stats_header *header,
			const struct kvm_stats_desc *desc)
{
	uint64_t value;

	ck_assert_int_eq(pread(fd, &value, sizeof(value), header->data_offset +
			       desc->offset), sizeof(value));
	return value;
}

/* The guest's page faults that KVM has taken, on this vCPU. */
static uint64_t taken(void)
{
	int fd = ioctl(machine->vcpu[0].fd, KVM_GET_STATS_FD, NULL);
	struct kvm_stats_header header;
	union {
		struct kvm_stats_desc desc;	/* its name stands behind it */
		char bytes[sizeof(struct kvm_stats_desc) + 128];
	} entry;
	uint64_t value = UINT64_MAX;
	uint32_t i;

	ck_assert_int_eq(read(fd, &header, sizeof(header)), sizeof(header));
	ck_assert_uint_le(sizeof(entry.desc) + header.name_size, sizeof(entry));
	for (i = 0; i < header.num_desc && value == UINT64_MAX; i++) {
		size_t size = sizeof(entry.desc) + header.name_size;

		ck_assert_int_eq(pread(fd, &entry, size, (off_t)
				       (header.desc_offset + i * size)), size);
		if (!strcmp(entry.desc.name, "pf_taken"))
			value = read_at(fd, &header, &entry.desc);
	}
	close(fd);
	ck_assert_uint_ne(value, UINT64_MAX);
	return value;
}

/* ---- the VM ---- */

static uint64_t word(uint64_t offset)
{
	return (offset + 8) * 0x9e3779b97f4a7c15ULL | 1;
}

static int read_words(void *data, uint64_t offset, void *buffer, size_t length)
{
	uint64_t at;

	(void)data;
	for (at = 0; at < length; at += 8)
		*(uint64_t *)((char *)buffer + at) = word(offset + at);
	return 0;
}

/* SIGBUS comes inside KVM_RUN and nowhere else. */
static void let_sigbus_in(void)
{
	struct {
		uint32_t length;
		unsigned char set[8];
	} inside = { .length = sizeof(inside.set) };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGBUS);
	MUST(sigprocmask(SIG_BLOCK, &set, NULL));
	MUST(ioctl(machine->vcpu[0].fd, KVM_SET_SIGNAL_MASK, &inside));
}

static void mark_all(void)
{
	struct {
		struct uffdio_range range;
		uint64_t mode;
		int64_t updated;
	} poison = {
		.range = { .start = (uintptr_t)host, .len = PAGES * PAGE },
	};

	MUST(ioctl(kvmfault_uffd_fd(uffd), POISON, &poison));
}

static void add_memory(void)
{
	struct kvmfault_source source = {
		.size = sizeof(source),
		.read = read_words,
	};
	struct kvmfault_memory_options memory = {
		.size = sizeof(memory),
		.host = host,
		.length = PAGES * PAGE,
		.fd = memfd,
		.source = &source,
		.uffd = uffd,
		.window = KVMFAULT_WINDOW_FIXED,
		.window_length = WINDOW * PAGE,
	};

	MUST(kvmfault_memory_adopt(vm, &memory, &region.memory));
	region.size = sizeof(region);
	region.gpa = RAM;
	region.length = PAGES * PAGE;
	MUST(kvmfault_region_add(vm, &region));
	mark_all();
}

static void up(int column, bool prefault)
{
	struct machine_options options = {
		.vcpus = 1,
		.irqchip = column,
		.timer = column,
		.span = RAM + (64 << 20),
	};
	struct kvmfault_vm_options context = {
		.size = sizeof(context),
		.prefault = prefault,
	};
	struct kvmfault_vcpu_options handle = { .size = sizeof(handle) };

	MUST(machine_new(&options, &machine));
	memfd = memfd_create("test-ram", MFD_CLOEXEC);
	MUST(ftruncate(memfd, PAGES * PAGE));
	host = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
		    memfd, 0);
	ck_assert_ptr_ne(host, MAP_FAILED);
	MUST(machine_set_slot(machine, 1, 0, RAM, PAGES * PAGE, host));
	MUST(kvmfault_vm_new(&context, &vm));
	MUST(kvmfault_uffd_new(vm, NULL, &uffd));
	add_memory();
	handle.fd = machine->vcpu[0].fd;
	handle.run = machine->vcpu[0].run;
	MUST(kvmfault_vcpu_new(vm, &handle, &vcpu));
	let_sigbus_in();
}

static void down(void)
{
	kvmfault_vcpu_free(vcpu);
	MUST(kvmfault_region_remove(vm, 0, RAM));
	MUST(kvmfault_memory_free(region.memory));
	MUST(kvmfault_uffd_free(uffd));
	MUST(kvmfault_vm_free(vm));
	machine_free(machine);
	munmap(host, PAGES * PAGE);
	close(memfd);
}

/* One KVM_RUN and what the library makes of it. */
static enum kvmfault_action run(int *ret)
{
	const struct timespec now = { 0 };
	siginfo_t info;
	sigset_t set;
	int err;

	*ret = ioctl(machine->vcpu[0].fd, KVM_RUN, 0);
	err = errno;
	sigemptyset(&set);
	sigaddset(&set, SIGBUS);
	if (*ret < 0 && err == EINTR && sigtimedwait(&set, &info, &now) > 0)
		return kvmfault_vcpu_handle_sigbus(vcpu, &info);
	return kvmfault_vcpu_handle(vcpu, *ret, err);
}

/* The guest reads a page; returns how many faults were answered for it. */
static unsigned int guest_reads(uint64_t page)
{
	uint64_t offset = page * PAGE + 8;
	enum kvmfault_action action;
	unsigned int answered = 0;
	int ret;

	MUST(machine_call(&machine->vcpu[0], MACHINE_READ, RAM + offset, 8, 0,
			  0));
	while ((action = run(&ret)) == KVMFAULT_ACTION_RETRY)
		answered++;
	ck_assert_int_eq(action, KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert(machine_done(&machine->vcpu[0], ret));
	ck_assert_uint_eq(machine_result(&machine->vcpu[0]), word(offset));
	return answered;
}

static uint64_t prefaulted(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	MUST(kvmfault_vcpu_stats(vcpu, &stats));
	return stats.prefaulted;
}

/* What the rest of a window costs, when one page of it was touched. */
static uint64_t rest_of_window(void)
{
	uint64_t before, page;

	/* What the routine itself needs is there by then. */
	ck_assert_uint_eq(guest_reads(WINDOW + 5), 1);
	ck_assert_uint_eq(guest_reads(5), 1);
	before = taken();
	for (page = 0; page < WINDOW; page++)
		ck_assert_uint_eq(guest_reads(page), 0);
	return taken() - before;
}

TEST_GROUP(prefault, NULL, NULL);

TEST_EACH(prefault, window_is_mapped_ahead, 2)
{
	up(_i, true);
	ck_assert_uint_eq(rest_of_window(), 0);
	ck_assert_uint_eq(prefaulted(), 2 * WINDOW);
	down();
}

TEST_EACH(prefault, else_each_page_is_a_fault, 2)
{
	up(_i, false);
	ck_assert_uint_ge(rest_of_window(), WINDOW - 1);
	ck_assert_uint_eq(prefaulted(), 0);
	down();
}

/* Its other pages keep their markers, and are asked for. */
TEST_EACH(prefault, absent_pages_stay_absent, 2)
{
	uint64_t page;

	up(_i, true);
	for (page = 0; page < PAGES; page += WINDOW)
		ck_assert_uint_eq(guest_reads(page), 1);
	ck_assert_uint_eq(prefaulted(), PAGES);
	down();
}

/* Skips where KVM cannot map ahead, or there are no markers. */
static void need_prefault(void)
{
	struct kvmfault_features features = { .size = sizeof(features) };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	const struct kvmfault_finding *f = features.feature;

	kvmfault_probe(kvm, -1, &features);
	close(kvm);
	if (f[KVMFAULT_FEATURE_PRE_FAULT_MEMORY].support == KVMFAULT_SUPPORT_YES &&
	    f[KVMFAULT_FEATURE_UFFD_POISON].support == KVMFAULT_SUPPORT_YES)
		return;
	puts("SKIP: KVM_PRE_FAULT_MEMORY or UFFDIO_POISON: not on this machine");
	exit(77);
}

int main(void)
{
	need("kvm");
	need("uffd");
	need_prefault();
	return run_suite("kvm prefault");
}
