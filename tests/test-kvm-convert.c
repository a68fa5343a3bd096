/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Private and shared memory on a real KVM with VMs of the type that has it in
 * software. There what KVM was told decides what an access is: a guest converts
 * by a hypercall, and an exit that wants the other kind comes where a private
 * page has no guest_memfd in its slot. Both are here, in both columns.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/kvm_para.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvm-rig.h"
#include "need.h"

#define TYPE 1			/* KVM_X86_SW_PROTECTED_VM */
#define VCPUS 8
#define EXIT_PRIVATE (1ULL << 3)	/* newer than 6.1's headers, as is */
#define MAP_ENCRYPTED (1U << 4)
struct attributes {
	uint64_t address, size, attributes, flags;
};
#define SET_MEMORY_ATTRIBUTES _IOW(KVMIO, 0xd2, struct attributes)

/* Two slots side by side, private or shared by page; and slots of a page each
 * that get their guest_memfd when it is needed. */
#define PAGES 16
#define SECOND (RAM + PAGES * PAGE)
#define LATE (SECOND + PAGES * PAGE)
#define ALL (3 * PAGES)
#define SECOND_AT (20 * PAGE)	/* in the guest_memfd */
#define LATE_AT (40 * PAGE)
#define LATE_SLOT 3

#define MUST(call) ck_assert_int_eq(call, 0)

static struct {
	struct machine *machine;
	struct kvmfault_vm *vm;
	struct kvmfault_memory *memory;
	struct kvmfault_service *service;
	struct kvmfault_vcpu *vcpu[VCPUS];
	int memfd, gmem;
	char *ram;
} t;

static atomic_int runs;			/* that were converted */
static _Atomic uint64_t refused;	/* gpa whose run is */
static bool late[PAGES];			/* slot has its guest_memfd */

static int read_words(void *data, uint64_t offset, void *buffer, size_t length)
{
	uint64_t at;

	(void)data;
	for (at = 0; at < length; at += 8)
		*(uint64_t *)((char *)buffer + at) = rig_word(offset + at);
	return 0;
}

/* What a VMM does that gives a slot its private memory when it is needed. */
static void give_guest_memfd(uint64_t gpa)
{
	uint32_t page = (uint32_t)((gpa - LATE) / PAGE);
	int err;

	if (late[page])
		return;
	err = machine_set_slot(t.machine, LATE_SLOT + page, 0, gpa, 0, NULL);
	if (!err)
		err = machine_set_guest_memfd_slot(
			t.machine, LATE_SLOT + page, gpa, PAGE,
			t.ram + (gpa - RAM), t.gmem, LATE_AT + page * PAGE);
	rig_same((uint64_t)err, 0, "a slot with a guest_memfd");
	late[page] = true;
}

static int before(void *data, uint64_t gpa, uint64_t length, bool to_private)
{
	uint64_t at;

	(void)data;
	if (gpa == atomic_load(&refused))
		return -EPERM;
	for (at = gpa; to_private && at < gpa + length; at += PAGE)
		if (at >= LATE && at < LATE + PAGES * PAGE)
			give_guest_memfd(at);
	return 0;
}

static void after(void *data, uint64_t gpa, uint64_t length, bool to_private,
		  bool done)
{
	(void)data;
	(void)gpa;
	(void)length;
	(void)to_private;
	atomic_fetch_add(&runs, done);
}

static void add_region(uint64_t gpa, uint64_t pages, uint64_t at, int gmem)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = gpa, .length = pages * PAGE,
		.memory = t.memory, .offset = gpa - RAM, .guest_memfd = gmem,
		.guest_memfd_offset = at,
	};

	MUST(kvmfault_region_add(t.vm, &region));
}

static void add_memory(void)
{
	struct kvmfault_source source = {
		.size = sizeof(source), .name = "words", .read = read_words,
	};
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = ALL * PAGE,
		.source = &source,
	};
	struct kvmfault_service_options service = {
		.size = sizeof(service), .threads = 2,
	};

	t.memfd = options.fd = memfd_create("test-shared", MFD_CLOEXEC);
	MUST(ftruncate(t.memfd, ALL * PAGE));
	t.ram = options.host = mmap(NULL, ALL * PAGE, PROT_READ | PROT_WRITE,
				    MAP_SHARED, t.memfd, 0);
	ck_assert_ptr_ne(t.ram, MAP_FAILED);
	MUST(kvmfault_memory_adopt(t.vm, &options, &t.memory));
	MUST(kvmfault_service_new(t.vm, &service, &t.service));
}

static void up(int column, unsigned int vcpus, uint32_t flags)
{
	struct machine_options machine = {
		.vcpus = vcpus, .type = TYPE, .irqchip = column,
		.timer = column, .supervisor = true, .span = RAM + (64 << 20),
	};
	struct kvm_enable_cap hypercalls = {
		.cap = KVM_CAP_EXIT_HYPERCALL,
		.args = { 1U << KVM_HC_MAP_GPA_RANGE },
	};
	struct kvmfault_converter converter = {
		.size = sizeof(converter), .flags = flags,
	};
	struct kvmfault_vm_options options = {
		.size = sizeof(options), .converter = &converter,
	};
	struct kvmfault_conversion_hook hook = {
		.size = sizeof(hook), .before = before, .after = after,
	};
	unsigned int i;

	MUST(machine_new(&machine, &t.machine));
	MUST(ioctl(t.machine->vm_fd, KVM_ENABLE_CAP, &hypercalls));
	options.vm_fd = t.machine->vm_fd;
	MUST(kvmfault_vm_new(&options, &t.vm));
	MUST(kvmfault_conversion_hook_add(t.vm, &hook));
	add_memory();
	t.gmem = machine_create_guest_memfd(t.machine, 64 * PAGE, 0);
	ck_assert_int_gt(t.gmem, 0);
	add_region(RAM, PAGES, 0, t.gmem);
	add_region(SECOND, PAGES, SECOND_AT, t.gmem);
	add_region(LATE, PAGES, LATE_AT, t.gmem);
	MUST(machine_set_guest_memfd_slot(t.machine, 1, RAM, PAGES * PAGE,
					  t.ram, t.gmem, 0));
	MUST(machine_set_guest_memfd_slot(t.machine, 2, SECOND, PAGES * PAGE,
					  t.ram + PAGES * PAGE, t.gmem,
					  SECOND_AT));
	for (i = 0; i < PAGES; i++)
		MUST(machine_set_slot(t.machine, LATE_SLOT + i, 0,
				      LATE + i * PAGE, PAGE,
				      t.ram + (2 * PAGES + i) * PAGE));
	for (i = 0; i < vcpus; i++) {
		struct kvmfault_vcpu_options vcpu = {
			.size = sizeof(vcpu), .fd = t.machine->vcpu[i].fd,
			.run = t.machine->vcpu[i].run,
			.profile = rig_profile(),
		};

		MUST(kvmfault_vcpu_new(t.vm, &vcpu, &t.vcpu[i]));
	}
}

static void down(void)
{
	unsigned int i;

	for (i = 0; i < VCPUS; i++)
		kvmfault_vcpu_free(t.vcpu[i]);
	MUST(kvmfault_service_free(t.service));
	MUST(kvmfault_region_remove(t.vm, 0, RAM));
	MUST(kvmfault_region_remove(t.vm, 0, SECOND));
	kvmfault_region_remove(t.vm, 0, LATE);
	MUST(kvmfault_memory_free(t.memory));
	MUST(kvmfault_vm_free(t.vm));
	machine_free(t.machine);
	close(t.gmem);
	close(t.memfd);
	munmap(t.ram, ALL * PAGE);
}

/* ---- what a VMM does ---- */

/* KVM_EXIT_HYPERCALL: the guest wants a range converted. */
static void answer_hypercall(unsigned int vcpu)
{
	struct kvm_run *run = t.machine->vcpu[vcpu].run;
	uint64_t gpa = run->hypercall.args[0];
	uint64_t length = run->hypercall.args[1] * PAGE, done;
	int err;

	rig_same(run->hypercall.nr, KVM_HC_MAP_GPA_RANGE, "hypercall");
	do {
		err = kvmfault_convert(t.vm, t.vcpu[vcpu], gpa, length,
				       run->hypercall.args[2] & MAP_ENCRYPTED,
				       &done);
		gpa += done;
		length -= done;
	} while (err == -EINTR);
	run->hypercall.ret = (uint64_t)(int64_t)err;
}

/* Until the routine's end, or what is not answered. */
static struct outcome go_on(unsigned int vcpu)
{
	struct machine_vcpu *machine = &t.machine->vcpu[vcpu];
	struct outcome outcome = { 0 };
	char story[MACHINE_STORY];
	int err, ret;

	for (;;) {
		ret = ioctl(machine->fd, KVM_RUN, 0);
		err = errno;
		outcome.action = kvmfault_vcpu_handle(t.vcpu[vcpu], ret, err);
		outcome.faults += outcome.action == KVMFAULT_ACTION_RETRY;
		if (outcome.action == KVMFAULT_ACTION_NOT_A_FAULT &&
		    machine->run->exit_reason == KVM_EXIT_HYPERCALL)
			answer_hypercall(vcpu);
		else if (outcome.action == KVMFAULT_ACTION_NOT_A_FAULT ||
			 outcome.action == KVMFAULT_ACTION_UNRESOLVED)
			break;
	}
	outcome.reason = kvmfault_vcpu_result(t.vcpu[vcpu])->reason;
	outcome.error = kvmfault_vcpu_result(t.vcpu[vcpu])->error;
	if (outcome.action == KVMFAULT_ACTION_NOT_A_FAULT) {
		if (!machine_done(machine, ret))
			ck_abort_msg("the guest left: %s",
				     machine_story(machine, story));
		outcome.result = machine_result(machine);
	}
	return outcome;
}

static uint64_t guest(unsigned int vcpu, enum machine_routine routine,
		      uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
	struct outcome outcome;

	rig_same((uint64_t)machine_call(&t.machine->vcpu[vcpu], routine, a, b,
					c, d), 0, "machine_call()");
	outcome = go_on(vcpu);
	if (outcome.action != KVMFAULT_ACTION_NOT_A_FAULT)
		ck_abort_msg("routine %d at %#llx: %s (%d)", (int)routine,
			     (unsigned long long)a,
			     kvmfault_reason_str(outcome.reason),
			     outcome.error);
	return outcome.result;
}

static uint64_t load(unsigned int vcpu, uint64_t gpa)
{
	return guest(vcpu, MACHINE_READ, gpa, 8, 0, 0);
}

static void store(unsigned int vcpu, uint64_t gpa, uint64_t value)
{
	guest(vcpu, MACHINE_WRITE, gpa, 8, value, 0);
}

/* The guest's hypercall; what it got for an answer. */
static int64_t hypercall(unsigned int vcpu, uint64_t gpa, uint64_t pages,
			 bool private)
{
	return (int64_t)guest(vcpu, MACHINE_HYPERCALL, KVM_HC_MAP_GPA_RANGE,
			      gpa, pages, private ? MAP_ENCRYPTED : 0);
}

static uint64_t at(uint64_t page)
{
	return RAM + page * PAGE;
}

/* Host memory behind the shared page? */
static bool shared_there(uint64_t gpa)
{
	off_t offset = (off_t)(gpa - RAM);

	return lseek(t.memfd, offset, SEEK_DATA) == offset;
}

static uint64_t *host(uint64_t gpa)
{
	return (uint64_t *)(t.ram + (gpa - RAM));
}

static bool zero_or_gone(uint64_t gpa)
{
	static const char zeros[PAGE];

	return !shared_there(gpa) || !memcmp(host(gpa), zeros, PAGE);
}

/* Nothing is left of the shared page. With an interrupt controller in the
 * kernel KVM's own worker waits for pages too, and may be late: what is in
 * flight for it is discarded when it has come, and a touch of it afterwards
 * gets zeros. */
static void expect_discarded(int column, uint64_t gpa)
{
	ck_assert(column || !shared_there(gpa));
	while (!zero_or_gone(gpa))
		usleep(1000);
}

/* ---- by a hypercall ---- */

TEST_GROUP(convert, NULL, NULL);

TEST_EACH(convert, by_hypercall, COLUMNS)
{
	up(_i, 1, KVMFAULT_CONVERTER_CALLS_ONLY);
	ck_assert_uint_eq(load(0, at(3)), rig_word(3 * PAGE));
	store(0, at(3), 0x1111);
	ck_assert_uint_eq(*host(at(3)), 0x1111);

	ck_assert_int_eq(hypercall(0, at(3), 1, true), 0);
	ck_assert_int_eq(kvmfault_is_private(t.vm, at(3)), 1);
	expect_discarded(_i, at(3));
	ck_assert_uint_eq(load(0, at(3)), 0);
	store(0, at(3), 0x2222);
	ck_assert_uint_eq(load(0, at(3)), 0x2222);
	expect_discarded(_i, at(3));

	ck_assert_int_eq(hypercall(0, at(3), 1, false), 0);
	ck_assert_int_eq(kvmfault_is_private(t.vm, at(3)), 0);
	ck_assert_uint_eq(load(0, at(3)), 0);
	store(0, at(3), 0x3333);
	ck_assert_uint_eq(*host(at(3)), 0x3333);
	/* Nothing is left in the guest_memfd either. */
	ck_assert_int_eq(hypercall(0, at(3), 1, true), 0);
	ck_assert_uint_eq(load(0, at(3)), 0);

	ck_assert_uint_eq(load(0, at(2)), rig_word(2 * PAGE));
	ck_assert_uint_eq(load(0, at(4)), rig_word(4 * PAGE));
	ck_assert_int_eq(runs, 3);
	down();
}

TEST_EACH(convert, across_two_slots, COLUMNS)
{
	uint64_t page;

	up(_i, 1, KVMFAULT_CONVERTER_CALLS_ONLY);
	for (page = 13; page < 19; page++)
		store(0, at(page), 100 + page);
	ck_assert_int_eq(hypercall(0, at(14), 4, true), 0);
	ck_assert_int_eq(runs, 1);
	for (page = 14; page < 18; page++) {
		expect_discarded(_i, at(page));
		ck_assert_uint_eq(load(0, at(page)), 0);
		store(0, at(page), 200 + page);
	}
	ck_assert_int_eq(hypercall(0, at(15), 2, false), 0);
	for (page = 13; page < 19; page++)
		ck_assert_uint_eq(load(0, at(page)),
				  page == 13 || page == 18 ? 100 + page :
				  page == 14 || page == 17 ? 200 + page : 0);
	ck_assert_int_eq(hypercall(0, at(15), 2, true), 0);
	ck_assert_uint_eq(load(0, at(15)), 0);
	ck_assert_uint_eq(load(0, at(16)), 0);
	down();
}

/* The guest loses nothing of the part that failed. */
TEST_EACH(convert, a_step_that_fails_in_the_middle, COLUMNS)
{
	up(_i, 1, KVMFAULT_CONVERTER_CALLS_ONLY);
	store(0, at(13), 113);
	store(0, at(16), 116);
	ck_assert_int_eq(hypercall(0, at(15), 1, true), 0);
	store(0, at(15), 215);
	atomic_store(&refused, at(16));
	ck_assert_int_eq(hypercall(0, at(13), 5, true), -EPERM);
	ck_assert_uint_eq(load(0, at(13)), 0);
	ck_assert_uint_eq(load(0, at(14)), 0);
	ck_assert_uint_eq(load(0, at(15)), 215);
	ck_assert_uint_eq(load(0, at(16)), 116);
	ck_assert_uint_eq(load(0, at(17)), rig_word(17 * PAGE));
	ck_assert_int_eq(kvmfault_is_private(t.vm, at(16)), 0);
	atomic_store(&refused, 0);
	ck_assert_int_eq(hypercall(0, at(13), 5, true), 0);
	ck_assert_uint_eq(load(0, at(15)), 215);
	ck_assert_uint_eq(load(0, at(16)), 0);
	ck_assert_int_eq(runs, 3);
	down();
}

TEST_EACH(convert, outside_of_memory, COLUMNS)
{
	up(_i, 1, KVMFAULT_CONVERTER_CALLS_ONLY);
	ck_assert_int_eq(hypercall(0, 1ULL << 40, 2, true), -ENXIO);
	ck_assert_int_eq(hypercall(0, 1ULL << 40, 2, false), 0);
	ck_assert_int_eq(runs, 0);
	down();
}

/* ---- by an exit ---- */

static uint64_t resolved(const char *name)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };
	unsigned int i = 0;

	MUST(kvmfault_vm_stats(t.vm, &stats));
	while (strcmp(kvmfault_resolver_name(t.vm, i), name))
		i++;
	return stats.resolver[i];
}

/* Somebody else has told KVM: the exit says private, the library knows it as
 * shared. It is what an exit of a guest looks like that decides by itself. */
static void tell_kvm(uint64_t gpa, uint64_t pages)
{
	struct attributes attributes = {
		.address = gpa, .size = pages * PAGE, .attributes = 8,
	};

	MUST(ioctl(t.machine->vm_fd, SET_MEMORY_ATTRIBUTES, &attributes));
}

TEST_EACH(convert, by_exit, COLUMNS)
{
	struct machine_vcpu *machine;
	struct outcome outcome;

	up(_i, 1, 0);
	machine = &t.machine->vcpu[0];
	store(0, LATE + PAGE, 0x1111);
	tell_kvm(LATE + PAGE, 1);
	/* Refused: the vCPU stays where it is, and the page too. */
	atomic_store(&refused, LATE + PAGE);
	MUST(machine_call(machine, MACHINE_READ, LATE + PAGE, 8, 0, 0));
	outcome = go_on(0);
	ck_assert_int_eq(outcome.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(outcome.reason, KVMFAULT_REASON_RESOLVER);
	ck_assert_int_eq(outcome.error, -EPERM);
	ck_assert_uint_eq(kvmfault_vcpu_result(t.vcpu[0])->fault->flags,
			  EXIT_PRIVATE);
	ck_assert_uint_eq(kvmfault_vcpu_result(t.vcpu[0])->fault->gpa,
			  LATE + PAGE);
	ck_assert_uint_eq(*host(LATE + PAGE), 0x1111);
	ck_assert_int_eq(kvmfault_is_private(t.vm, LATE + PAGE), 0);

	atomic_store(&refused, 0);
	outcome = go_on(0);
	ck_assert_int_eq(outcome.action, KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_uint_eq(outcome.result, 0);
	ck_assert_uint_eq(outcome.faults, 1);
	ck_assert_int_eq(kvmfault_is_private(t.vm, LATE + PAGE), 1);
	expect_discarded(_i, LATE + PAGE);
	ck_assert_uint_eq(resolved("convert"), 1);

	store(0, LATE + PAGE, 0x2222);
	ck_assert_uint_eq(load(0, LATE + PAGE), 0x2222);
	ck_assert_uint_eq(load(0, LATE), rig_word(LATE - RAM));
	ck_assert_int_eq(hypercall(0, LATE, 2, false), 0);
	ck_assert_uint_eq(load(0, LATE + PAGE), 0);
	down();
}

/* Where the guest decides nothing, such an exit is only tried again, and ends
 * with a reason: nobody was told to convert. */
TEST_EACH(convert, by_exit_where_calls_decide, COLUMNS)
{
	struct outcome outcome;

	up(_i, 1, KVMFAULT_CONVERTER_CALLS_ONLY);
	tell_kvm(LATE, 1);
	MUST(machine_call(&t.machine->vcpu[0], MACHINE_READ, LATE, 8, 0, 0));
	outcome = go_on(0);
	ck_assert_int_eq(outcome.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(outcome.reason, KVMFAULT_REASON_NO_PROGRESS);
	ck_assert_int_eq(kvmfault_is_private(t.vm, LATE), 0);
	ck_assert_int_eq(runs, 0);
	/* It is, and the slot gets what it needs: then it runs. */
	MUST(kvmfault_convert(t.vm, t.vcpu[0], LATE, PAGE, true, NULL));
	ck_assert_uint_eq(go_on(0).result, 0);
	down();
}

TEST_EACH(convert, by_exit_without_guest_memfd, COLUMNS)
{
	struct outcome outcome;

	up(_i, 1, 0);
	MUST(kvmfault_region_remove(t.vm, 0, LATE));
	add_region(LATE, PAGES, 0, 0);
	tell_kvm(LATE, 1);
	MUST(machine_call(&t.machine->vcpu[0], MACHINE_READ, LATE, 8, 0, 0));
	outcome = go_on(0);
	ck_assert_int_eq(outcome.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(outcome.reason, KVMFAULT_REASON_FLAGS);
	ck_assert_uint_eq(outcome.faults, 0);
	down();
}

/* The guest_memfd is lost: it is private as it should be, and never comes. */
TEST_EACH(convert, by_exit_that_does_not_help, COLUMNS)
{
	struct outcome outcome;

	up(_i, 1, 0);
	MUST(kvmfault_convert(t.vm, NULL, RAM, PAGE, true, NULL));
	close(t.gmem);
	MUST(machine_call(&t.machine->vcpu[0], MACHINE_READ, RAM, 8, 0, 0));
	outcome = go_on(0);
	ck_assert_int_eq(outcome.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(outcome.reason, KVMFAULT_REASON_NO_PROGRESS);
	ck_assert_int_eq(runs, 1);
	t.gmem = -1;
	down();
}

static void *exit_from_one(void *arg)
{
	uintptr_t vcpu = (uintptr_t)arg;
	uint64_t mine = LATE + (1 + vcpu) * PAGE;

	/* All on one page, then each on its own. */
	rig_same(load(vcpu, LATE), 0, "the page of all");
	rig_same(load(vcpu, mine), 0, "a page of its own");
	store(vcpu, mine, 77 + vcpu);
	rig_same(load(vcpu, mine), 77 + vcpu, "what it wrote");
	return NULL;
}

TEST_EACH(convert, by_exit_from_eight, COLUMNS)
{
	struct team team;
	uint64_t page;

	up(_i, VCPUS, 0);
	for (page = 0; page < 9; page++)
		*host(LATE + page * PAGE) = 55;
	tell_kvm(LATE, 9);
	team_start(&team, VCPUS, exit_from_one);
	team_join(&team);
	/* Each once, whoever came. */
	ck_assert_int_eq(runs, 9);
	for (page = 0; page < 9; page++) {
		ck_assert_int_eq(kvmfault_is_private(t.vm, LATE + page * PAGE),
				 1);
		expect_discarded(_i, LATE + page * PAGE);
	}
	down();
}

/* ---- eight vCPUs by hypercalls ---- */

#define STEPS 40
#define CONTESTED 24		/* pages from here on are everybody's */

static void step(unsigned int vcpu, uint64_t *random, uint64_t *expected)
{
	uint64_t number = rig_random(random);
	unsigned int mine = number % 3;
	uint64_t gpa = at(mine * 8 + vcpu), from, count;
	bool private = number >> 8 & 1;

	rig_same(load(vcpu, gpa), expected[mine], "own page");
	if (kvmfault_is_private(t.vm, gpa) != private)
		expected[mine] = 0;
	rig_same((uint64_t)hypercall(vcpu, gpa, 1, private), 0, "hypercall");
	rig_same((uint64_t)kvmfault_is_private(t.vm, gpa), private, "state");
	rig_same(load(vcpu, gpa), expected[mine], "own page, converted");
	expected[mine] = number | 1;
	store(vcpu, gpa, expected[mine]);

	from = number >> 16 & 7;
	count = (number >> 19) % (8 - from) + 1;
	rig_same((uint64_t)hypercall(vcpu, at(CONTESTED + from), count,
				     number >> 30 & 1), 0, "hypercall");
	load(vcpu, at(CONTESTED + (number >> 22 & 7)));
	store(vcpu, at(CONTESTED + (number >> 25 & 7)), number);
}

static void *convert_at_random(void *arg)
{
	unsigned int i, vcpu = (unsigned int)(uintptr_t)arg;
	uint64_t random = vcpu + 1, expected[3];

	for (i = 0; i < 3; i++)
		expected[i] = rig_word((i * 8 + vcpu) * PAGE);
	for (i = 0; i < STEPS; i++)
		step(vcpu, &random, expected);
	return NULL;
}

TEST_EACH(convert, eight_at_once, COLUMNS)
{
	struct team team;
	uint64_t page;

	up(_i, VCPUS, KVMFAULT_CONVERTER_CALLS_ONLY);
	team_start(&team, VCPUS, convert_at_random);
	team_join(&team);
	/* KVM and the library agree: the host sees what is shared, and no more
	 * is left of what is private. */
	for (page = 0; page < 32; page++) {
		bool private = kvmfault_is_private(t.vm, at(page)) == 1;

		store(0, at(page), 4711 + page);
		if (private && shared_there(at(page)))
			ck_assert_uint_ne(*host(at(page)), 4711 + page);
		if (!private)
			ck_assert_uint_eq(*host(at(page)), 4711 + page);
		ck_assert_int_eq(hypercall(0, at(page), 1, !private), 0);
		ck_assert_uint_eq(load(0, at(page)), 0);
	}
	down();
}

/* ---- much at once ---- */

#define BIG (RAM + (32 << 20))
#define BIG_LENGTH (8ULL << 20)
#define BIG_SLOT (LATE_SLOT + PAGES)

static int stop_after_one(void *data, uint64_t gpa, uint64_t length,
			  bool to_private)
{
	(void)data;
	(void)to_private;
	ck_assert_uint_le(length, 2 << 20);
	if (gpa == BIG)
		t.machine->vcpu[0].run->immediate_exit = 1;
	return 0;
}

TEST_EACH(convert, in_chunks, COLUMNS)
{
	struct kvmfault_conversion_hook hook = {
		.size = sizeof(hook), .before = stop_after_one,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = BIG, .length = BIG_LENGTH,
	};
	struct kvmfault_vcpu_options vcpu = { .size = sizeof(vcpu) };
	uint64_t done;

	up(_i, 1, KVMFAULT_CONVERTER_CALLS_ONLY);
	kvmfault_vcpu_free(t.vcpu[0]);
	MUST(kvmfault_service_free(t.service));
	t.service = NULL;
	MUST(kvmfault_conversion_hook_add(t.vm, &hook));
	vcpu.fd = t.machine->vcpu[0].fd;
	vcpu.run = t.machine->vcpu[0].run;
	MUST(kvmfault_vcpu_new(t.vm, &vcpu, &t.vcpu[0]));
	region.guest_memfd = machine_create_guest_memfd(t.machine, BIG_LENGTH,
							0);
	ck_assert_int_gt(region.guest_memfd, 0);
	MUST(kvmfault_region_add(t.vm, &region));
	MUST(machine_set_guest_memfd_slot(t.machine, BIG_SLOT, BIG, BIG_LENGTH,
					  t.machine->control,
					  region.guest_memfd, 0));

	ck_assert_int_eq(kvmfault_convert(t.vm, t.vcpu[0], BIG, BIG_LENGTH,
					  true, &done), -EINTR);
	ck_assert_uint_eq(done, 2 << 20);
	ck_assert_int_eq(kvmfault_is_private(t.vm, BIG + done - 1), 1);
	ck_assert_int_eq(kvmfault_is_private(t.vm, BIG + done), 0);
	t.machine->vcpu[0].run->immediate_exit = 0;
	MUST(kvmfault_convert(t.vm, t.vcpu[0], BIG + done, BIG_LENGTH - done,
			      true, &done));
	ck_assert_uint_eq(done, BIG_LENGTH - (2 << 20));
	store(0, BIG + BIG_LENGTH - PAGE, 99);
	ck_assert_uint_eq(load(0, BIG + BIG_LENGTH - PAGE), 99);
	MUST(kvmfault_region_remove(t.vm, 0, BIG));
	close(region.guest_memfd);
	down();
}

int main(void)
{
	need("kvm");
	need("private");
	need("uffd");
	return run_suite("kvm convert");
}
