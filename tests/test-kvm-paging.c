/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Memory that KVM itself touches, where it has markers: page tables that it
 * walks in software, and pages of paravirtual features. Each test shows first
 * what goes wrong without the library's call, so that a kernel that changes it
 * is noticed, and then that it does not with it.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvm-rig.h"
#include "need.h"

#define PAGES 16

static struct rig rig;

static uint32_t ask(void)
{
	struct kvmfault_features features = { .size = sizeof(features) };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	kvmfault_probe(kvm, -1, &features);
	close(kvm);
	return features.feature[KVMFAULT_FEATURE_TWO_DIMENSIONAL_PAGING].support;
}

static bool two_dimensional(void)
{
	uint32_t answer = ask();

	ck_assert(answer == KVMFAULT_SUPPORT_YES || answer == KVMFAULT_SUPPORT_NO);
	return answer == KVMFAULT_SUPPORT_YES;
}

TEST_GROUP(paging, NULL, NULL);

#ifdef __x86_64__

/* main() finds out how many times the cases of TEST_COUNTED() are run. */
static int shadow;

/* Pages of RAM, and the guest's virtual address of DATA by way of tables that
 * are in RAM, above all that the machine maps. */
enum { DIRECTORY = 1, TABLE, DATA, CODE, FEATURE };
#define WINDOW_GIB 100ULL
#define ENTRY 9
#define AT ((WINDOW_GIB << 30) + ENTRY * PAGE + 8)

#define ADDRESS 0xffffffffff000ULL
#define BITS 0x067		/* present, writable, user, accessed, dirty */
#define PORT 0x99

static struct kvmfault_memory *control;

static uint64_t gpa_of(unsigned int page)
{
	return RAM + page * PAGE;
}

static void fill(uint64_t offset, void *page)
{
	static const unsigned char outs[] = { 0x6e, 0xc3 };
	uint64_t *table = page;

	switch (offset / PAGE) {
	case DIRECTORY:
		memset(page, 0, PAGE);
		table[0] = gpa_of(TABLE) | BITS;
		break;
	case TABLE:
		memset(page, 0, PAGE);
		table[ENTRY] = gpa_of(DATA) | BITS;
		break;
	case CODE:
		memcpy(page, outs, sizeof(outs));
	}
}

/* The machine's own tables are a region too, and lead to those in RAM. */
static void add_control(void)
{
	struct kvmfault_memory_options memory = {
		.size = sizeof(memory),
		.host = rig.machine->control,
		.length = rig.machine->control_size,
	};
	struct kvmfault_region region = {
		.size = sizeof(region),
		.length = rig.machine->control_size,
	};
	struct kvm_sregs sregs;
	uint64_t *top, *upper;

	ck_assert_int_eq(kvmfault_memory_adopt(rig.vm, &memory, &control), 0);
	region.memory = control;
	ck_assert_int_eq(kvmfault_region_add(rig.vm, &region), 0);
	ck_assert_int_eq(ioctl(rig.machine->vcpu[0].fd, KVM_GET_SREGS, &sregs),
			 0);
	top = (void *)(rig.machine->control + sregs.cr3);
	upper = (void *)(rig.machine->control + (top[0] & ADDRESS));
	ck_assert_uint_eq(upper[WINDOW_GIB], 0);
	upper[WINDOW_GIB] = gpa_of(DIRECTORY) | BITS;
}

/* Y or 1, N or 0; else there is no such parameter. */
static int parameter(const char *path)
{
	FILE *file = fopen(path, "re");
	int c;

	if (!file)
		return -1;
	c = fgetc(file);
	fclose(file);
	return c == 'Y' || c == '1';
}

#define NPT "/sys/module/kvm_amd/parameters/npt"

/*
 * i: user and supervisor, each in both columns. But under QEMU's SVM with npt=0
 * a timer ends the VM, sooner or later: KVM finds that the write which ends an
 * interrupt came while another was being delivered (internal error, suberror 3).
 */
static void up(int i)
{
	rig_new(&rig, parameter(NPT) ? i % COLUMNS : 0, 1, PAGES, i / COLUMNS);
	/* Each is earned. */
	rig.machine->fault_tries = 0;
	rig.fill = fill;
	rig_track(&rig);
	rig_vcpus(&rig);
	add_control();
}

static void down(void)
{
	ck_assert_int_eq(kvmfault_region_remove(rig.vm, 0, 0), 0);
	ck_assert_int_eq(kvmfault_memory_free(control), 0);
	rig_free(&rig);
}

static uint64_t fetched(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	ck_assert_int_eq(kvmfault_vm_stats(rig.vm, &stats), 0);
	return stats.fetched;
}

static void ensure(unsigned int page)
{
	ck_assert_int_eq(kvmfault_ensure(rig.vm, 0, gpa_of(page), PAGE, true),
			 0);
}

/* KVM_RUN until something comes that is not the library's. */
static uint32_t leave(void)
{
	enum kvmfault_action action;
	int err, ret;

	do {
		ret = rig_run(&rig, 0, &err);
		do
		action = kvmfault_vcpu_handle(rig.vcpu[0], ret, err);
		while (action == KVMFAULT_ACTION_UNFINISHED);
	} while (action == KVMFAULT_ACTION_RETRY || action == KVMFAULT_ACTION_INTERRUPTED);
	ck_assert_int_eq(action, KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_int_eq(ret, 0);
	return rig.machine->vcpu[0].run->exit_reason;
}

/* The guest met a page fault. */
static void crashes(void)
{
	char story[MACHINE_STORY];

	leave();
	machine_story(&rig.machine->vcpu[0], story);
	ck_assert_msg(machine_crashed(&rig.machine->vcpu[0], 0), "%s", story);
	ck_assert_msg(strstr(story, "exception 14") != NULL, "%s", story);
}

static void begin(enum machine_routine routine, uint64_t a, uint64_t b,
		  uint64_t c)
{
	ck_assert_int_eq(machine_call(&rig.machine->vcpu[0], routine, a, b, c,
				      0), 0);
}

/* OUTSB from AT: every KVM emulates it. */
static void begin_string(void)
{
	begin(MACHINE_JUMP, gpa_of(CODE), AT, PORT);
}

static uint8_t byte_written(void)
{
	const struct kvm_run *run = rig.machine->vcpu[0].run;

	ck_assert_uint_eq(run->io.port, PORT);
	return *((const uint8_t *)run + run->io.data_offset);
}

TEST_EACH(paging, operand_of_what_kvm_emulates, 2 * COLUMNS)
{
	up(_i);
	ensure(CODE);
	rig_mark(&rig, kvmfault_uffd_fd(rig.uffd), 0, CODE);
	/* A page fault, which does not go away. */
	begin_string();
	crashes();
	ck_assert_uint_eq(fetched(), 1);

	begin_string();
	ck_assert_int_eq(kvmfault_ensure_page_tables(rig.vcpu[0]), 0);
	ck_assert_uint_eq(fetched(), 3);
	ck_assert_uint_eq(leave(), KVM_EXIT_IO);
	ck_assert_uint_eq(byte_written(), (uint8_t)rig_word(DATA * PAGE + 8));
	ck_assert_uint_eq(fetched(), 4);	/* told by an mmio exit */
	ck_assert_uint_eq(leave(), KVM_EXIT_IO);
	ck_assert(machine_done(&rig.machine->vcpu[0], 0));
	down();
}

/* All that a guest does goes by way of tables that KVM walks. */
TEST_COUNTED(paging, shadow_paging, shadow)
{
	up(_i);
	ensure(DATA);
	rig_mark(&rig, kvmfault_uffd_fd(rig.uffd), 0, DATA);
	begin(MACHINE_READ, AT, 8, 0);
	crashes();
	ck_assert_uint_eq(fetched(), 1);

	begin(MACHINE_READ, AT, 8, 0);
	ck_assert_int_eq(kvmfault_ensure_page_tables(rig.vcpu[0]), 0);
	ck_assert_uint_eq(fetched(), 3);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, AT, 8, 0),
			  rig_word(DATA * PAGE + 8));
	down();
}

enum { STACK, IDT, GDT, NEEDED };

static struct kvm_sregs before;		/* where the machine has them */

static void fill_descriptors(uint64_t offset, void *page)
{
	static const unsigned char invalid[] = { 0x0f, 0x0b };

	switch (offset / PAGE) {
	case IDT:
		memcpy(page, rig.machine->control + before.idt.base, PAGE);
		break;
	case GDT:
		memcpy(page, rig.machine->control + before.gdt.base,
		       before.gdt.limit + 1U);
		break;
	case NEEDED:
		memcpy(page, invalid, sizeof(invalid));
	}
}

/* The next instruction is none, and what its exception needs is in that page. */
static void aim_exception(int page)
{
	int fd = rig.machine->vcpu[0].fd;
	struct kvm_sregs sregs;
	struct kvm_regs regs;

	begin(MACHINE_SPIN, 1, 0, 0);
	ck_assert_int_eq(ioctl(fd, KVM_GET_SREGS, &sregs), 0);
	ck_assert_int_eq(ioctl(fd, KVM_GET_REGS, &regs), 0);
	before = sregs;
	regs.rip = RAM + NEEDED * PAGE;
	if (page == STACK)
		regs.rsp = RAM + (STACK + 1) * PAGE;
	else if (page == IDT)
		sregs.idt.base = RAM + IDT * PAGE;
	else
		sregs.gdt.base = RAM + GDT * PAGE;
	ck_assert_int_eq(ioctl(fd, KVM_SET_SREGS, &sregs), 0);
	ck_assert_int_eq(ioctl(fd, KVM_SET_REGS, &regs), 0);
}

/*
 * i: each page at both levels. The processor delivers exceptions, and a marker
 * on the way is a fault like any other; but in software that ends the guest.
 */
TEST_EACH(paging, exceptions, 2 * NEEDED)
{
	struct machine_vcpu *vcpu;
	char story[MACHINE_STORY];

	rig_delivery = KVMFAULT_DELIVERY_MARKER_EXIT;
	rig_sigbus = KVMFAULT_SIGBUS_MASKED;
	rig_new(&rig, 0, 1, PAGES, _i / NEEDED);
	rig.fill = fill_descriptors;
	rig_track(&rig);
	rig_vcpus(&rig);
	vcpu = &rig.machine->vcpu[0];
	ensure(NEEDED);
	rig_mark(&rig, kvmfault_uffd_fd(rig.uffd), 0, NEEDED);
	aim_exception(_i % NEEDED);
	leave();
	machine_story(vcpu, story);
	if (!strstr(story, "exception 6,")) {
		ck_assert_msg(!two_dimensional(), "%s", story);
		printf("# KVM delivers exceptions itself: %s\n", story);
	} else {
		ck_assert_uint_eq(fetched(), 2);
	}
	rig_free(&rig);
}

/* What the probe says of a scratch guest holds for one as VMMs make it. */
TEST_EACH(paging, what_the_probe_says, COLUMNS)
{
	int err, ret;

	up(_i);
	ensure(DIRECTORY);
	ensure(TABLE);
	ensure(DATA);
	ck_assert_int_eq(mprotect(rig.a + TABLE * PAGE, PAGE, PROT_NONE), 0);
	begin(MACHINE_READ, AT, 8, 0);
	ret = rig_run(&rig, 0, &err);
	if (two_dimensional()) {
		ck_assert_int_eq(ret, -1);
		ck_assert_int_eq(err, EFAULT);
	} else {
		ck_assert_int_eq(ret, 0);
		ck_assert(machine_crashed(&rig.machine->vcpu[0], ret));
	}
	ck_assert_int_eq(mprotect(rig.a + TABLE * PAGE, PAGE,
				  PROT_READ | PROT_WRITE), 0);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, AT, 8, 0),
			  rig_word(DATA * PAGE + 8));
	down();
}

TEST(paging, what_the_modules_say)
{
	int ept = parameter("/sys/module/kvm_intel/parameters/ept");
	int npt = parameter(NPT);

	if (ept >= 0 || npt >= 0)
		ck_assert_int_eq(two_dimensional(), ept > 0 || npt > 0);
}

/* ---- paravirtual features ---- */

static const struct {
	uint32_t msr;
	bool again;
} features[] = {
	{ 0x4b564d01, true },		/* kvmclock */
	{ 0x4b564d00, true },		/* its wall clock */
	{ 0x4b564d03, false },		/* steal time */
};
#define FEATURES ((int)(sizeof(features) / sizeof(*features)))

static union {
	struct kvm_msrs msrs;		/* the entry stands behind it */
	char bytes[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)];
} arg;

static bool aim(int feature)
{
	const uint32_t index = features[feature].msr;

	arg.msrs.nmsrs = 1;
	/* Off: some kernels have no steal time. */
	arg.msrs.entries[0] = (struct kvm_msr_entry){ .index = index };
	if (ioctl(rig.machine->vcpu[0].fd, KVM_SET_MSRS, &arg) != 1) {
		printf("# this KVM has no MSR %#x\n", index);
		return false;
	}
	arg.msrs.entries[0].data = gpa_of(FEATURE) | (index & 0xf ? 1 : 0);
	return true;
}

static void set_msr(void)
{
	ck_assert_int_eq(ioctl(rig.machine->vcpu[0].fd, KVM_SET_MSRS, &arg),
			 1);
	rig_do(&rig, 0, MACHINE_SPIN, 1000, 0, 0);
}

static bool ensure_msr(void)
{
	bool again;

	ck_assert_int_eq(kvmfault_ensure_msrs(rig.vm, arg.msrs.entries, 1,
					      &again), 0);
	return again;
}

static bool written(void)
{
	const uint64_t *page = (void *)(rig.b + FEATURE * PAGE);
	size_t i;

	for (i = 0; i < 8; i++)
		if (page[i] != rig_word(FEATURE * PAGE + i * 8))
			return true;
	return false;
}

TEST_EACH(paging, present_before_the_msr, COLUMNS * FEATURES)
{
	up(_i / FEATURES);
	rig_mark_all(&rig);
	if (aim(_i % FEATURES)) {
		ensure_msr();
		ck_assert_uint_eq(fetched(), 1);
		ck_assert(!written());
		set_msr();
		ck_assert(written());
	}
	down();
}

/* KVM says that all is well, and writes nothing; some of it for ever. */
TEST_EACH(paging, present_after_the_msr, COLUMNS * FEATURES)
{
	up(_i / FEATURES);
	rig_mark_all(&rig);
	if (aim(_i % FEATURES)) {
		set_msr();
		ck_assert_uint_eq(fetched(), 0);
		ck_assert_int_eq(ensure_msr(), features[_i % FEATURES].again);
		ck_assert_uint_eq(fetched(), 1);
		ck_assert(!written());
		if (features[_i % FEATURES].again)
			set_msr();
		else
			rig_do(&rig, 0, MACHINE_SPIN, 1000, 0, 0);
		ck_assert(written());
	}
	down();
}

#else

TEST_EACH(paging, kvm_walks_no_tables, COLUMNS)
{
	bool again = true;

	ck_assert(two_dimensional());
	rig_new(&rig, _i, 1, PAGES, false);
	rig_track(&rig);
	rig_vcpus(&rig);
	ck_assert_int_eq(kvmfault_ensure_page_tables(rig.vcpu[0]), 0);
	ck_assert_int_eq(kvmfault_ensure_msrs(rig.vm, NULL, 0, &again), 0);
	ck_assert(!again);
	rig_free(&rig);
}

#endif

int main(void)
{
	need("kvm");
	need("uffd");
#ifdef __x86_64__
	shadow = ask() == KVMFAULT_SUPPORT_NO ? 2 * COLUMNS : 0;
#endif
	return run_suite("kvm paging");
}
