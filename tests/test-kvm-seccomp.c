/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Each profile's vCPU threads under a filter that kills the process, made of
 * kvmfault_syscalls() and of what a vCPU thread of this test does itself. A
 * thread is one run of a routine: it is set up and looked at by another, so
 * that nothing but KVM_RUN and the library is under the filter. Twins, with a
 * call taken out, are killed.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kvm-rig.h"
#include "need.h"

#define PAGES 16ULL
#define VCPUS 2
#define POISON 0xc020aa08UL	/* UFFDIO_POISON, newer than 6.1's headers */
#define PRIVATE_TYPE 1		/* KVM_X86_SW_PROTECTED_VM */
#define MUST(call) ck_assert_int_eq(call, 0)

/* Each test in each profile and each column. */
#define PROFILES 2
#define ALL (PROFILES * 2)
#define PROFILE(i) ((enum kvmfault_profile)((i) % PROFILES))
#define COLUMN(i) ((i) / PROFILES)

static struct machine *machine;
static struct kvmfault_vm *vm;
static struct kvmfault_vcpu *vcpu[VCPUS];
static struct kvmfault_uffd *uffd;
static struct kvmfault_memory *memory;
static struct kvmfault_mapping *mapping;
static struct kvmfault_service *service;
static char *a, *b;		/* the memslot's mapping, and another */
static int memfd, image, guest_memfd;

/* The source, and what it does. */
static atomic_uint reads, fails;
static atomic_int fails_with;
static atomic_bool gate;	/* closed */
static atomic_uint inside;

static uint64_t word(uint64_t offset)
{
	return (offset + 8) * 0x9e3779b97f4a7c15ULL | 1;
}

static void moment(void)
{
	const struct timespec time = { .tv_nsec = 1000000 };

	clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
}

static void fill(uint64_t offset, void *buffer, size_t length)
{
	uint64_t at;

	for (at = 0; at < length; at += 8)
		*(uint64_t *)((char *)buffer + at) = word(offset + at);
}

static int read_words(void *data, uint64_t offset, void *buffer, size_t length)
{
	unsigned int left = atomic_load(&fails);

	(void)data;
	atomic_fetch_add(&reads, 1);
	atomic_fetch_add(&inside, 1);
	while (atomic_load(&gate))
		moment();
	atomic_fetch_sub(&inside, 1);
	if (left) {
		atomic_store(&fails, left - 1);
		return atomic_load(&fails_with);
	}
	fill(offset, buffer, length);
	return 0;
}

/* ---- one that answers later ---- */

static struct {
	_Atomic(struct kvmfault_fetch *) fetch;
	uint64_t offset;
	void *buffer;
	size_t length;
} asked;

static int submit(void *data, struct kvmfault_fetch *fetch, uint64_t offset,
		  void *buffer, size_t length)
{
	(void)data;
	asked.offset = offset;
	asked.buffer = buffer;
	asked.length = length;
	atomic_store(&asked.fetch, fetch);
	return 0;
}

/* It is answered long before that. */
static void cancel(void *data, struct kvmfault_fetch *fetch)
{
	(void)data;
	(void)fetch;
}

static void *answer(void *arg)
{
	struct kvmfault_fetch *fetch;

	while (!(fetch = atomic_load(&asked.fetch)))
		moment();
	moment();
	fill(asked.offset, asked.buffer, asked.length);
	kvmfault_fetch_done(fetch, 0);
	return arg;
}

/* ---- the filter ---- */

#define FILTER_MAX 512
static struct sock_filter filter[FILTER_MAX];
static unsigned short filter_length;
static const char *without;	/* a twin's: this value, or call, is not in it */

static void add(uint16_t code, uint32_t k, uint8_t otherwise)
{
	ck_assert_uint_lt(filter_length, FILTER_MAX);
	filter[filter_length++] = (struct sock_filter)
		BPF_JUMP(code, k, 0, otherwise);
}

static void allow(int64_t number, int32_t argument, uint32_t value)
{
	add(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr), 0);
	add(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)number, argument < 0 ? 1 : 3);
	if (argument >= 0) {
		/* The low half, on machines with that byte order. */
		add(BPF_LD | BPF_W | BPF_ABS, (uint32_t)
		    offsetof(struct seccomp_data, args[argument]), 0);
		add(BPF_JMP | BPF_JEQ | BPF_K, value, 1);
	}
	add(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0);
}

static void make_filter(enum kvmfault_profile profile)
{
	struct kvmfault_syscall call = { .size = sizeof(call) };
	unsigned int i;

	filter_length = 0;
	for (i = 0; !kvmfault_syscalls(profile, i, &call); i++)
		if (!without || (strcmp(call.value_name, without) &&
				 strcmp(call.name, without)))
			allow(call.number, call.argument, call.value);
	/* This test's own, on a vCPU's thread: to run it, to end, signal
	 * handlers, and the source's sleep. */
	allow(SYS_ioctl, 1, KVM_RUN);
	allow(SYS_exit, -1, 0);
	allow(SYS_rt_sigreturn, -1, 0);
	allow(SYS_clock_nanosleep, -1, 0);
	add(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS, 0);
}

static bool filter_me(void)
{
	struct sock_fprog program = {
		.len = filter_length, .filter = filter,
	};

	return !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
	       !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

/* ---- the VM ---- */

struct set_up {
	enum kvmfault_profile profile;
	int column;
	bool supervisor;
	bool anonymous;		/* memory; one mapping */
	bool minor;
	bool later;		/* the source answers so */
	bool file;		/* the source is one */
	bool prefault;
	bool private;		/* VM, region */
	enum kvmfault_window window;
	int (*resolve)(void *, struct kvmfault_request *);
};

static void make_image(struct kvmfault_source *source)
{
	char page[PAGE];
	uint64_t at;

	image = memfd_create("image", MFD_CLOEXEC);
	for (at = 0; at < PAGES * PAGE; at += PAGE) {
		fill(at, page, PAGE);
		ck_assert_int_eq(write(image, page, PAGE), (int)PAGE);
	}
	MUST(kvmfault_source_file(image, source));
}

static char *map(void)
{
	char *at = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
			memfd ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS,
			memfd ? memfd : -1, 0);

	ck_assert_ptr_ne(at, MAP_FAILED);
	return at;
}

static void add_memory(const struct set_up *what)
{
	struct kvmfault_source source = { .size = sizeof(source) };
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .host = a, .length = PAGES * PAGE,
		.fd = memfd, .source = &source, .uffd = uffd,
		.window = what->window, .window_length = 4 * PAGE,
		.minor = what->minor,
	};
	struct kvmfault_mapping_options second = {
		.size = sizeof(second), .host = (uintptr_t)b, .uffd = uffd,
	};

	if (what->file)
		make_image(&source);
	else if (!what->later)
		source.read = read_words;
	if (what->later) {
		source.submit = submit;
		source.cancel = cancel;
		source.deadline_ms = 60000;
	}
	MUST(kvmfault_memory_adopt(vm, &options, &memory));
	if (memfd)
		MUST(kvmfault_mapping_add(memory, &second, &mapping));
}

static void add_vm(const struct set_up *what)
{
	struct machine_options options = {
		.vcpus = VCPUS, .irqchip = what->column, .timer = what->column,
		.supervisor = what->supervisor, .span = RAM + (64 << 20),
		.type = what->private ? PRIVATE_TYPE : 0,
	};
	struct kvmfault_vm_options context = {
		.size = sizeof(context), .source_retries = 3,
		.prefault = what->prefault,
	};
	struct kvmfault_resolver resolver = {
		.size = sizeof(resolver), .name = "test",
		.resolve = what->resolve,
	};

	MUST(machine_new(&options, &machine));
	if (what->private)
		context.vm_fd = machine->vm_fd;
	MUST(kvmfault_vm_new(&context, &vm));
	if (what->resolve)
		MUST(kvmfault_resolver_add(vm, &resolver));
}

static void add_vcpus(enum kvmfault_profile profile)
{
	unsigned int i;

	for (i = 0; i < VCPUS; i++) {
		struct kvmfault_vcpu_options options = {
			.size = sizeof(options), .fd = machine->vcpu[i].fd,
			.run = machine->vcpu[i].run, .profile = profile,
		};

		MUST(kvmfault_vcpu_new(vm, &options, &vcpu[i]));
	}
}

static void up(const struct set_up *what)
{
	struct kvmfault_service_options options = {
		.size = sizeof(options), .threads = 2,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = RAM, .length = PAGES * PAGE,
	};

	if (!filter_length)
		make_filter(what->profile);
	add_vm(what);
	memfd = what->anonymous ? 0 : memfd_create("ram", MFD_CLOEXEC);
	if (memfd)
		MUST(ftruncate(memfd, PAGES * PAGE));
	a = map();
	b = memfd ? map() : NULL;
	MUST(kvmfault_uffd_new(vm, NULL, &uffd));
	add_memory(what);
	region.memory = memory;
	if (what->private) {
		guest_memfd = machine_create_guest_memfd(machine, PAGES * PAGE,
							 0);
		ck_assert_int_gt(guest_memfd, 0);
		region.guest_memfd = guest_memfd;
	}
	MUST(kvmfault_region_add(vm, &region));
	MUST(kvmfault_service_new(vm, &options, &service));
	add_vcpus(what->profile);
}

static void down(void)
{
	unsigned int i;

	for (i = 0; i < VCPUS; i++)
		kvmfault_vcpu_free(vcpu[i]);
	MUST(kvmfault_service_free(service));
	MUST(kvmfault_region_remove(vm, 0, RAM));
	MUST(kvmfault_memory_free(memory));
	MUST(kvmfault_uffd_free(uffd));
	MUST(kvmfault_vm_free(vm));
	machine_free(machine);
}

static struct kvmfault_stats stats(void)
{
	struct kvmfault_stats sum = { .size = sizeof(sum) };

	MUST(kvmfault_vm_stats(vm, &sum));
	return sum;
}

/* ---- vCPU threads ---- */

static struct runner {
	pthread_t thread;
	unsigned int vcpu;
	bool once;			/* the first answer is the last */
	bool converts;			/* in the place of a routine */
	bool to_private;
	atomic_bool running;
	enum kvmfault_action action;
	unsigned int interrupted;
	int ret, err;
} runners[VCPUS];

static _Thread_local siginfo_t bus;
static _Thread_local volatile sig_atomic_t bus_came;
static atomic_uint kicks;

static void on_bus(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	bus = *info;
	bus_came = 1;
}

static void on_kick(int number)
{
	(void)number;
	atomic_fetch_add(&kicks, 1);
}

static enum kvmfault_action handle(const struct runner *r)
{
	if (!bus_came)
		return kvmfault_vcpu_handle(vcpu[r->vcpu], r->ret, r->err);
	bus_came = 0;
	return kvmfault_vcpu_handle_sigbus(vcpu[r->vcpu], &bus);
}

/* As a VMM's: a SIGBUS that was interrupted comes again by itself. */
static void run_guest(struct runner *r)
{
	const struct kvmfault_result *result =
		kvmfault_vcpu_result(vcpu[r->vcpu]);

	r->action = 0;
	do {
		if (!r->action || !result->unfinished) {
			r->ret = ioctl(machine->vcpu[r->vcpu].fd, KVM_RUN, 0);
			r->err = errno;
		}
		r->action = handle(r);
		r->interrupted += r->action == KVMFAULT_ACTION_INTERRUPTED ||
				  r->action == KVMFAULT_ACTION_UNFINISHED;
	} while (!r->once && (r->action == KVMFAULT_ACTION_RETRY ||
			      r->action == KVMFAULT_ACTION_INTERRUPTED ||
			      r->action == KVMFAULT_ACTION_UNFINISHED));
}

static void *run_filtered(void *arg)
{
	struct runner *r = arg;

	if (filter_me()) {
		if (r->converts)
			r->err = kvmfault_convert(vm, vcpu[r->vcpu], RAM,
						  PAGES * PAGE, r->to_private,
						  NULL);
		else
			run_guest(r);
		atomic_store(&r->running, false);
	}
	/* Not what libc does at a thread's end. */
	syscall(SYS_exit, 0);
	return NULL;
}

static struct runner *start(unsigned int n, enum machine_routine routine,
			    uint64_t x, uint64_t y, uint64_t z)
{
	struct runner *r = &runners[n];

	memset(r, 0, sizeof(*r));
	r->vcpu = n;
	r->running = true;
	MUST(machine_call(&machine->vcpu[n], routine, x, y, z, 0));
	MUST(pthread_create(&r->thread, NULL, run_filtered, r));
	return r;
}

static void join(struct runner *r)
{
	pthread_join(r->thread, NULL);
	ck_assert_msg(!atomic_load(&r->running), "no filter: %d", errno);
}

static uint64_t end(struct runner *r)
{
	const struct kvmfault_result *result =
		kvmfault_vcpu_result(vcpu[r->vcpu]);
	char story[MACHINE_STORY];

	join(r);
	ck_assert_msg(r->action == KVMFAULT_ACTION_NOT_A_FAULT, "%s: %s (%d)",
		      kvmfault_action_str(r->action),
		      kvmfault_reason_str(result->reason), result->error);
	ck_assert_msg(machine_done(&machine->vcpu[r->vcpu], r->ret), "%s",
		      machine_story(&machine->vcpu[r->vcpu], story));
	return machine_result(&machine->vcpu[r->vcpu]);
}

static uint64_t guest(enum machine_routine routine, uint64_t x, uint64_t y,
		      uint64_t z)
{
	return end(start(0, routine, x, y, z));
}

static uint64_t reads_page(uint64_t page)
{
	return guest(MACHINE_READ, RAM + page * PAGE, 8, 0);
}

static void expect_page(uint64_t page)
{
	ck_assert_uint_eq(reads_page(page), word(page * PAGE));
}

/* From now on there is a slot, and accesses end KVM_RUN by SIGBUS, or where KVM
 * emulates they are MMIO. Before, as while a VMM changes its slots, all are. */
static void by_marker(void)
{
	struct {
		struct uffdio_range range;
		uint64_t mode;
		int64_t updated;
	} poison = {
		.range = { .start = (uintptr_t)a, .len = PAGES * PAGE },
	};

	MUST(machine_set_slot(machine, SLOT, 0, RAM, PAGES * PAGE, a));
	MUST(ioctl(kvmfault_uffd_fd(uffd), POISON, &poison));
}

/* ---- each entrance ---- */

static struct set_up plain(int i)
{
	return (struct set_up){
		.profile = PROFILE(i), .column = COLUMN(i),
	};
}

static void all_pages(void)
{
	uint64_t page;

	for (page = 0; page < PAGES; page++)
		expect_page(page);
	for (page = 0; page < PAGES; page++)
		guest(MACHINE_WRITE, RAM + page * PAGE + 8, 8, page + 5);
	for (page = 0; b && page < PAGES; page++)
		ck_assert_uint_eq(*(uint64_t *)(b + page * PAGE + 8), page + 5);
}

/* main() finds out how many times the cases of TEST_COUNTED() are run. */
static int where_emulated;
static int with_private;

static void before_each(void);

TEST_GROUP(seccomp, before_each, NULL);

TEST_EACH(seccomp, markers, ALL)
{
	struct set_up what = plain(_i);

	up(&what);
	by_marker();
	all_pages();
	ck_assert_uint_eq(reads, PAGES);
	ck_assert_uint_ge(stats().kind[KVMFAULT_KIND_MARKER], PAGES);
	down();
}

TEST_EACH(seccomp, mmio, ALL)
{
	struct set_up what = plain(_i);

	up(&what);
	all_pages();
	guest(MACHINE_WRITE, RAM + 2 * PAGE - 3, 8, 0);	/* two pages */
	ck_assert_uint_eq(reads, PAGES);
	ck_assert_uint_ge(stats().kind[KVMFAULT_KIND_MMIO], PAGES);
	down();
}

TEST_COUNTED(seccomp, emulation, where_emulated)
{
	struct set_up what = plain(_i);

	what.supervisor = true;
	up(&what);
	by_marker();
	guest(MACHINE_FPU_SAVE, RAM + 2 * PAGE, 0, 0);
	guest(MACHINE_FPU_RESTORE, RAM + 2 * PAGE, 0, 0);
	ck_assert_uint_ge(stats().kind[KVMFAULT_KIND_EMULATION], 1);
	guest(MACHINE_WRITE, RAM, 8, 3);
	ck_assert_uint_eq(reads_page(0), 3);
	ck_assert_uint_ge(stats().kind[KVMFAULT_KIND_MMIO], 1);
	down();
}

/* ---- each way to bring a page ---- */

TEST_EACH(seccomp, windows, ALL)
{
	struct set_up what = plain(_i);

	what.window = KVMFAULT_WINDOW_FIXED;
	what.prefault = true;
	up(&what);
	by_marker();
	all_pages();
	ck_assert_uint_eq(reads, PAGES / 4);
	down();
}

TEST_EACH(seccomp, minor_faults, ALL)
{
	struct set_up what = plain(_i);

	what.minor = true;
	up(&what);
	all_pages();
	down();
}

TEST_EACH(seccomp, anonymous, ALL)
{
	struct set_up what = plain(_i);

	what.anonymous = true;
	up(&what);
	all_pages();
	down();
}

TEST_EACH(seccomp, of_a_file, ALL)
{
	struct set_up what = plain(_i);

	what.file = true;
	up(&what);
	all_pages();
	down();
}

TEST_EACH(seccomp, later, ALL)
{
	struct set_up what = plain(_i);
	pthread_t thread;

	what.later = true;
	up(&what);
	MUST(pthread_create(&thread, NULL, answer, NULL));
	expect_page(3);
	pthread_join(thread, NULL);
	down();
}

TEST_EACH(seccomp, discarded, ALL)
{
	struct set_up what = plain(_i);

	up(&what);
	expect_page(3);
	MUST(kvmfault_discard(vm, 0, RAM + 3 * PAGE, PAGE));
	ck_assert_uint_eq(reads_page(3), 0);
	ck_assert_uint_eq(stats().zeroed, 1);
	down();
}

static void *discard(void *arg)
{
	MUST(kvmfault_discard(vm, 0, RAM + 3 * PAGE, PAGE));
	return arg;
}

static void close_gate(void)
{
	atomic_store(&gate, true);
}

static void await_gate(void)
{
	while (!atomic_load(&inside))
		moment();
}

/* Its fetcher punches it. Someone who sleeps in the kernel is woken too. */
static void *sleeps(void *arg)
{
	(void)*(volatile uint64_t *)((b ? b : a) + 3 * PAGE);
	return arg;
}

TEST_EACH(seccomp, discarded_in_flight, 2 * ALL)
{
	struct set_up what = plain(_i % ALL);
	pthread_t other, reader;
	struct runner *r;

	what.anonymous = _i / ALL;
	up(&what);
	close_gate();
	r = start(0, MACHINE_READ, RAM + 3 * PAGE, 8, 0);
	await_gate();
	MUST(pthread_create(&reader, NULL, sleeps, NULL));
	MUST(pthread_create(&other, NULL, discard, NULL));
	moment();
	atomic_store(&gate, false);
	end(r);
	pthread_join(other, NULL);
	pthread_join(reader, NULL);
	ck_assert_uint_eq(*(volatile uint64_t *)((b ? b : a) + 3 * PAGE), 0);
	down();
}

static int lies(void *data, struct kvmfault_request *request)
{
	(void)data;
	return request->page == KVMFAULT_PAGE_ABSENT ? KVMFAULT_VERDICT_RESOLVED :
						       KVMFAULT_VERDICT_DECLINED;
}

static void expect_unresolved(enum kvmfault_reason reason)
{
	struct runner *r = start(0, MACHINE_READ, RAM, 8, 0);

	join(r);
	ck_assert_int_eq(r->action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(kvmfault_vcpu_result(vcpu[0])->reason, reason);
}

TEST_EACH(seccomp, lied_to, 2 * ALL)
{
	struct set_up what = plain(_i % ALL);

	what.resolve = lies;
	what.anonymous = _i / ALL;
	up(&what);
	expect_unresolved(KVMFAULT_REASON_STILL_ABSENT);
	down();
}

TEST_EACH(seccomp, failing_source, ALL)
{
	struct set_up what = plain(_i);

	up(&what);
	fails_with = -EIO;
	fails = 2;
	expect_page(0);
	ck_assert_uint_eq(reads, 3);
	ck_assert_uint_eq(stats().retried, 2);
	down();
}

TEST_EACH(seccomp, lost_data, ALL)
{
	struct set_up what = plain(_i);

	up(&what);
	fails_with = -EHWPOISON;
	fails = 1;
	expect_unresolved(KVMFAULT_REASON_HWPOISON);
	down();
}

/* ---- private memory ---- */

static void converts(bool to_private)
{
	struct runner *r = &runners[0];

	memset(r, 0, sizeof(*r));
	r->running = r->converts = true;
	r->to_private = to_private;
	MUST(pthread_create(&r->thread, NULL, run_filtered, r));
	join(r);
	MUST(r->err);
	ck_assert_int_eq(kvmfault_is_private(vm, RAM + 5 * PAGE), to_private);
}

TEST_GROUP(convert, before_each, NULL);

TEST_COUNTED(convert, conversions, with_private)
{
	struct set_up what = plain(_i);

	what.private = what.supervisor = true;
	up(&what);
	converts(true);
	converts(false);
	down();
}

/* ---- waiting ---- */

static void kick(const struct runner *r)
{
	unsigned int before = atomic_load(&kicks);

	pthread_kill(r->thread, SIGUSR1);
	while (atomic_load(&kicks) == before)
		moment();
}

TEST_GROUP(waits, before_each, NULL);

/* Two vCPUs, one page: one fetch, and both go on. */
TEST_EACH(waits, two_on_one_page, ALL)
{
	struct set_up what = plain(_i);
	struct runner *r[VCPUS];
	int i;

	up(&what);
	close_gate();
	r[0] = start(0, MACHINE_READ, RAM + 3 * PAGE, 8, 0);
	await_gate();
	r[1] = start(1, MACHINE_READ, RAM + 3 * PAGE, 8, 0);
	for (i = 0; i < 10; i++)
		moment();
	atomic_store(&gate, false);
	ck_assert_uint_eq(end(r[0]), word(3 * PAGE));
	ck_assert_uint_eq(end(r[1]), word(3 * PAGE));
	ck_assert_uint_eq(reads, 1);
	down();
}

/* An access that is half done, if there is one: KVM's half too. */
static void give_up(unsigned int n)
{
	struct kvm_run *run = machine->vcpu[n].run;

	kvmfault_vcpu_reset(vcpu[n]);
	run->immediate_exit = 1;
	ck_assert_int_eq(ioctl(machine->vcpu[n].fd, KVM_RUN, 0), -1);
	ck_assert_int_eq(errno, EINTR);
	run->immediate_exit = 0;
}

/* The one that waits is told of it while the fetch goes on: that is not over
 * before the gate opens, which is afterwards. */
TEST_EACH(waits, signal_to_one_of_two, ALL)
{
	struct set_up what = plain(_i);
	struct runner *r[VCPUS];

	up(&what);
	close_gate();
	r[0] = start(0, MACHINE_READ, RAM + 3 * PAGE, 8, 0);
	await_gate();
	memset(&runners[1], 0, sizeof(runners[1]));
	r[1] = &runners[1];
	r[1]->vcpu = 1;
	r[1]->once = true;
	r[1]->running = true;
	MUST(machine_call(&machine->vcpu[1], MACHINE_READ, RAM + 3 * PAGE, 8,
			  0, 0));
	MUST(pthread_create(&r[1]->thread, NULL, run_filtered, r[1]));
	while (!stats().waited)
		moment();
	while (atomic_load(&r[1]->running))
		kick(r[1]);
	join(r[1]);
	ck_assert(r[1]->action == KVMFAULT_ACTION_INTERRUPTED ||
		  r[1]->action == KVMFAULT_ACTION_UNFINISHED);
	ck_assert_uint_eq(inside, 1);
	atomic_store(&gate, false);
	ck_assert_uint_eq(end(r[0]), word(3 * PAGE));
	give_up(1);
	ck_assert_uint_eq(end(start(1, MACHINE_READ, RAM + 3 * PAGE, 8, 0)),
			  word(3 * PAGE));
	ck_assert_uint_eq(reads, 1);
	down();
}

TEST_EACH(waits, under_signals, ALL)
{
	struct set_up what = plain(_i);
	struct runner *r;
	uint64_t page;

	up(&what);
	for (page = 0; page < PAGES; page++) {
		close_gate();
		r = start(0, MACHINE_READ, RAM + page * PAGE, 8, 0);
		await_gate();
		if (what.profile == KVMFAULT_PROFILE_DELEGATE)
			while (!r->interrupted)
				kick(r);
		atomic_store(&gate, false);
		ck_assert_uint_eq(end(r), word(page * PAGE));
	}
	ck_assert_uint_eq(reads, PAGES);
	down();
}

/* Another process stops this one in the middle of a wait: the kernel goes on
 * with the wait by a system call of its own. */
TEST_EACH(waits, stopped_and_continued, ALL)
{
	struct set_up what = plain(_i);
	struct runner *r[VCPUS];
	pid_t me = getpid(), child;
	int status;

	up(&what);
	close_gate();
	r[0] = start(0, MACHINE_READ, RAM, 8, 0);
	await_gate();
	r[1] = start(1, MACHINE_READ, RAM, 8, 0);
	moment();
	child = fork();
	if (!child) {
		for (status = 0; status < 20; status++) {
			kill(me, SIGSTOP);
			moment();
			kill(me, SIGCONT);
			moment();
		}
		_exit(0);
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_int_eq(status, 0);
	atomic_store(&gate, false);
	ck_assert_uint_eq(end(r[0]), word(0));
	ck_assert_uint_eq(end(r[1]), word(0));
	down();
}

/* ---- with a call taken out ---- */

static const struct {
	enum kvmfault_profile profile, filter;
	const char *without;
} twins[] = {
	{ KVMFAULT_PROFILE_INLINE, KVMFAULT_PROFILE_INLINE, "UFFDIO_COPY" },
	{ KVMFAULT_PROFILE_INLINE, KVMFAULT_PROFILE_DELEGATE, NULL },
	{ KVMFAULT_PROFILE_DELEGATE, KVMFAULT_PROFILE_DELEGATE,
	  "FUTEX_WAKE_PRIVATE" },
	{ KVMFAULT_PROFILE_DELEGATE, KVMFAULT_PROFILE_DELEGATE,
	  "FUTEX_WAIT_PRIVATE" },
};
#define TWINS ((int)(sizeof(twins) / sizeof(*twins)))

TEST_GROUP(twin, NULL, NULL);

TEST_KILLED(twin, killed, SIGSYS, TWINS)
{
	struct set_up what = { .profile = twins[_i].profile };

	without = twins[_i].without;
	make_filter(twins[_i].filter);
	up(&what);
	/* Whoever has to wait for the source does. */
	if (what.profile == KVMFAULT_PROFILE_DELEGATE)
		close_gate();
	reads_page(3);
}

static void before_each(void)
{
	struct sigaction kicked = { .sa_handler = on_kick };
	struct sigaction failed = {
		.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO,
	};

	sigaction(SIGUSR1, &kicked, NULL);
	sigaction(SIGBUS, &failed, NULL);
}

static const char *lacks_seccomp(void)
{
	const uint32_t action = SECCOMP_RET_KILL_PROCESS;

	return syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action) ?
		"this kernel has no filters that kill" : NULL;
}

int main(void)
{
	need("kvm");
	need("uffd");
	if (!have("seccomp", lacks_seccomp()))
		return 77;
	where_emulated = rig_ways() > EMULATED ? ALL : 0;
	with_private = have("private", lacks("private")) ? ALL : 0;
	return run_suite("kvm-seccomp");
}
