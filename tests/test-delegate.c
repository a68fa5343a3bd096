/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * delegate.c: a vCPU's work is a worker's. Each wait of the vCPU's thread for it
 * is a step of a script: a signal, or whatever else comes then. The door sees that
 * this thread only waits and wakes.
 */

#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "bed.h"
#include "sigbus.h"

#define LATER (BED_GPA + 5 * PAGE)
#define BUSY 1U

/* What comes in each wait of the vCPU's thread, and what the wait returns. */
static int (*steps[16])(void);
static size_t step;
static _Atomic pthread_t vcpu_thread;

/* Of the one who works for the vCPU. */
static struct kvmfault__worker *worker(void)
{
	return bed.vcpu->task.worker;
}

static bool next_step(struct fake_call *call)
{
	if (!pthread_equal(pthread_self(), atomic_load(&vcpu_thread)) ||
	    !steps[step])
		return false;
	ck_assert_ptr_eq(call->arg, &worker()->state);
	call->result = steps[step++]();
	return true;
}

#define SCRIPT(...) script((int (*[])(void)){ __VA_ARGS__, NULL })

static void script(int (**what)(void))
{
	for (step = 0; (steps[step] = *what); step++)
		what++;
	step = 0;
	atomic_store(&vcpu_thread, pthread_self());
	fake_on(FAKE_FUTEX_WAIT, next_step);
}

/* ---- while it works: where it stops, until it is told to go on ---- */

static sem_t inside, go_on;

static void stop(void)
{
	sem_post(&inside);
	sem_wait(&go_on);
}

static int signal_comes(void)
{
	sem_wait(&inside);
	return -EINTR;
}

static void await_idle(const struct kvmfault__worker *who)
{
	while (atomic_load(&who->state) & BUSY)
		sched_yield();
}

static void let_it_end(void)
{
	sem_post(&go_on);
	await_idle(worker());
}

static int ends_meanwhile(void)
{
	let_it_end();
	return 0;
}

static void up(void)
{
	sem_init(&inside, 0, 0);
	sem_init(&go_on, 0, 0);
	bed_vm();
	bed.profile = KVMFAULT_PROFILE_DELEGATE;
	bed.guest_memfd = fake_fd(FAKE_MEMORY);
	bed_add();
	fake_forget();
}

static void check_nobody_waits(void)
{
	const struct kvmfault__bucket *bucket = bed.vm->bucket;
	size_t i;

	for (i = 0; i < KVMFAULT__BUCKETS; i++)
		ck_assert_uint_eq(bucket[i].waiters, 0);
	ck_assert_uint_eq(bed.vm->conversions.ended.waiters, 0);
	ck_assert_uint_eq(bed.vm->pending, 0);
}

static void down(void)
{
	fake_on(FAKE_FUTEX_WAIT, NULL);
	if (bed.vcpu)
		await_idle(worker());
	kvmfault_vcpu_free(bed.vcpu);
	bed.vcpu = NULL;
	check_nobody_waits();
	bed_down();
}

static const struct kvmfault_result *result(void)
{
	return kvmfault_vcpu_result(bed.vcpu);
}

/* In the place of the bed's, which has left its worker or is idle. */
static void new_vcpu(bool no_wait)
{
	struct kvmfault_vcpu_options options = {
		.size = sizeof(options), .fd = fake_fd(FAKE_KVM),
		.run = bed.run, .profile = bed.profile, .no_wait = no_wait,
	};

	kvmfault_vcpu_free(bed.vcpu);
	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &options, &bed.vcpu), 0);
}

/* A signal comes while the source is asked for the page. */
static void leave_it_inside(uint64_t page)
{
	bed.during_read = stop;
	SCRIPT(signal_comes);
	ck_assert_int_eq(bed_exit(BED_GPA + page * PAGE, 0),
			 KVMFAULT_ACTION_INTERRUPTED);
	ck_assert(atomic_load(&worker()->state) & BUSY);
}

static pthread_t reader;

static void note_reader(void)
{
	reader = pthread_self();
}

TEST_GROUP(delegate, up, down);

TEST(delegate, by_a_worker)
{
	bed.during_read = note_reader;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(0, bed_byte(0)));
	ck_assert_str_eq(result()->resolver, "copy");
	ck_assert(pthread_equal(reader, worker()->thread));
	ck_assert_uint_eq(bed_stats().latency[0], 1);
}

/* What its worker counts is the vCPU's, and not the next one's. */
TEST(delegate, counted)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };
	struct kvmfault__worker *first = worker();

	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(kvmfault_vcpu_stats(bed.vcpu, &stats), 0);
	ck_assert_uint_eq(stats.fetched, 1);
	ck_assert_uint_eq(stats.action[KVMFAULT_ACTION_RETRY], 1);
	new_vcpu(false);
	ck_assert_ptr_eq(worker(), first);
	ck_assert_int_eq(kvmfault_vcpu_stats(bed.vcpu, &stats), 0);
	ck_assert_uint_eq(stats.fetched, 0);
}

TEST(delegate, unknown_profile)
{
	struct kvmfault_vcpu_options options = {
		.size = sizeof(options), .fd = fake_fd(FAKE_KVM),
		.run = bed.run, .profile = KVMFAULT_PROFILE_DELEGATE + 1,
	};
	struct kvmfault_vcpu *vcpu;

	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &options, &vcpu), -EINVAL);
}

/* ---- signals ---- */

TEST(delegate, signal_while_it_works)
{
	leave_it_inside(0);
	ck_assert(!result()->unfinished);
	/* It goes on all the same, and the page says so. */
	SCRIPT(ends_meanwhile);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(step, 1);
	ck_assert_uint_eq(bed.reads, 1);
}

/* What takes no system call does not wait for one that was left. */
TEST(delegate, signal_and_what_is_no_fault)
{
	siginfo_t info = sigbus_info(&bed, BUS_MCEERR_AR, 12);

	leave_it_inside(0);
	ck_assert_int_eq(bed_other(), KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_int_eq(bed_mmio(BED_GPA / 2, 8, false), KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_int_eq(bed_handle_sigbus(&info), KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert(atomic_load(&worker()->state) & BUSY);
	let_it_end();
}

TEST(delegate, signal_and_another_fault)
{
	leave_it_inside(0);
	ck_assert_int_eq(bed_other(), KVMFAULT_ACTION_NOT_A_FAULT);
	/* First what it is at, then its own. */
	SCRIPT(ends_meanwhile);
	ck_assert_int_eq(bed_exit(BED_GPA + PAGE, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(0), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(1), KVMFAULT__PRESENT);
	ck_assert_uint_eq(result()->fault->gpa, BED_GPA + PAGE);
}

/* The failure of what was left behind is nobody's. */
TEST(delegate, signal_and_failure)
{
	bed.source_result = -EIO;
	leave_it_inside(0);
	let_it_end();
	ck_assert_uint_eq(bed.reads, 1);
	bed.source_result = 0;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.reads, 2);
}

TEST(delegate, immediate_exit)
{
	bed.during_read = stop;
	bed.run->immediate_exit = 1;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_INTERRUPTED);
	bed.run->immediate_exit = 0;
	let_it_end();
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.reads, 1);
}

TEST(delegate, mmio_is_unfinished)
{
	memset(bed.run->mmio.data, 0x5a, 8);
	bed.during_read = stop;
	SCRIPT(signal_comes);
	ck_assert_int_eq(bed_mmio(BED_GPA + 8, 8, true), KVMFAULT_ACTION_UNFINISHED);
	ck_assert(result()->unfinished);
	let_it_end();
	ck_assert_int_ne(*(bed_page(0) + 8), 0x5a);
	ck_assert_int_eq(bed_mmio(BED_GPA + 8, 8, true), KVMFAULT_ACTION_RETRY);
	ck_assert(!result()->unfinished);
	ck_assert_int_eq(*(bed_page(0) + 8), 0x5a);
}

/* Taken out of the regions between the page and the copy. */
static int ends_and_is_removed(void)
{
	let_it_end();
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	return 0;
}

TEST(delegate, mmio_of_what_is_no_ram_any_more)
{
	bed.during_read = stop;
	SCRIPT(ends_and_is_removed);
	ck_assert_int_eq(bed_mmio(BED_GPA + 8, 8, true), KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert(!result()->unfinished);
}

/* ---- the ends of things, which wait for no worker ---- */

TEST(delegate, vcpu_freed_while_it_works)
{
	struct kvmfault__worker *first = worker();
	int fd = first->fd;

	leave_it_inside(0);
	new_vcpu(false);
	ck_assert_ptr_ne(worker(), first);
	ck_assert_int_ne(fd, bed.vcpu->fd);
	ck_assert_int_eq(bed_exit(BED_GPA + PAGE, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.reads, 2);
	ck_assert_int_eq(first->fd, fd);
	sem_post(&go_on);
	await_idle(first);
	ck_assert_int_eq(bed_state(0), KVMFAULT__PRESENT);
	/* Who is idle is taken again. */
	fake_forget();
	new_vcpu(false);
	ck_assert_uint_eq(fake_count(FAKE_THREAD, FAKE_ANY), 0);
}

TEST(delegate, vcpu_reset_while_it_works)
{
	leave_it_inside(0);
	kvmfault_vcpu_reset(bed.vcpu);
	ck_assert(atomic_load(&worker()->state) & BUSY);
	let_it_end();
}

TEST(delegate, service_freed_while_it_works)
{
	bed_service(1);
	leave_it_inside(0);
	bed_end_service();
	let_it_end();
}

/* ---- a worker that is asleep in the kernel ---- */

/* The page is discarded by another thread just then, so the call sleeps on it;
 * and as the kernel would, until a message of it was answered. */
static bool sleep_in_populate(struct fake_call *call)
{
	if (call->number != KVMFAULT__MADV_POPULATE_READ &&
	    call->number != KVMFAULT__MADV_POPULATE_WRITE)
		return false;
	fake_take(bed.fd, 0);
	kvmfault__page_discard(bed.memory, 0);
	ck_assert(fake_fault(bed_page(0), false));
	while (bed_state(0) != KVMFAULT__PRESENT)
		sched_yield();
	call->result = 0;
	return true;
}

TEST(delegate, its_page_comes_by_the_one_service_thread)
{
	struct kvmfault_service_options options = {
		.size = sizeof(options), .threads = 1,
		.poll_us = KVMFAULT_NO_POLL,
	};
	struct kvmfault_service *service;

	ck_assert_int_eq(kvmfault_service_new(bed.vm, &options, &service), 0);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	fake_on(FAKE_MADVISE, sleep_in_populate);
	/* It faults although it is present: a resolver has KVM map it. */
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed_stats().kind[KVMFAULT_KIND_UFFD], 1);
	ck_assert_int_eq(kvmfault_service_free(service), 0);
}

/* The same, and the vCPU's thread has left by then. */
static bool sleep_and_be_left(struct fake_call *call)
{
	if (call->number != KVMFAULT__MADV_POPULATE_READ &&
	    call->number != KVMFAULT__MADV_POPULATE_WRITE)
		return false;
	sem_post(&inside);
	sem_wait(&go_on);
	return sleep_in_populate(call);
}

/* The worker sleeps where no service answers any more. */
TEST(delegate, memory_freed_while_it_sleeps)
{
	struct kvmfault__worker *first = worker();

	bed_service(1);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	fake_on(FAKE_MADVISE, sleep_and_be_left);
	SCRIPT(signal_comes);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_INTERRUPTED);
	kvmfault_vcpu_free(bed.vcpu);
	bed.vcpu = NULL;
	bed_end_service();
	sem_post(&go_on);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	ck_assert_int_eq(kvmfault_memory_free(bed.memory), 0);
	bed.memory = NULL;
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(bed_stats().kind[KVMFAULT_KIND_UFFD], 1);
	await_idle(first);
}

/* ---- pages in flight ---- */

static void claim(void)
{
	ck_assert_int_eq(kvmfault__page_claim(bed.memory, 0, false),
			 KVMFAULT__ABSENT);
}

static void unclaim(void)
{
	kvmfault__page_change(bed.memory, 0, KVMFAULT__FETCHING,
			      KVMFAULT__ABSENT);
}

static bool anybody_waits(void)
{
	const struct kvmfault__bucket *bucket = bed.vm->bucket;
	size_t i;

	for (i = 0; i < KVMFAULT__BUCKETS; i++)
		if (bucket[i].waiters)
			return true;
	return bed.vm->conversions.ended.waiters;
}

static int page_comes(void)
{
	while (!anybody_waits())
		sched_yield();
	fake_put(bed.fd, 0);
	kvmfault__page_change(bed.memory, 0, KVMFAULT__FETCHING,
			      KVMFAULT__PRESENT);
	kvmfault__page_wake(bed.memory, 0);
	return 0;
}

static int signal_comes_as_it_waits(void)
{
	while (!anybody_waits())
		sched_yield();
	return -EINTR;
}

TEST(delegate, page_in_flight)
{
	claim();
	SCRIPT(page_comes);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.reads, 0);
	ck_assert_uint_eq(bed_stats().waited, 1);
	/* It was waited for: nothing else need be tried. */
	ck_assert_uint_eq(fake_count(FAKE_MADVISE, FAKE_ANY), 0);
}

/* A worker that nobody waits for any more does not wait either. */
TEST(delegate, page_in_flight_and_a_signal)
{
	claim();
	SCRIPT(signal_comes_as_it_waits);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_INTERRUPTED);
	await_idle(worker());
	check_nobody_waits();
	SCRIPT(page_comes);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
}

TEST_EACH(delegate, page_in_flight_and_no_wait, 2)
{
	new_vcpu(true);
	claim();
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_PENDING);
	ck_assert_uint_eq(bed.vm->pending, 1);
	if (_i) {	/* Or it does not want to be told any more. */
		kvmfault_vcpu_reset(bed.vcpu);
		ck_assert_uint_eq(bed.vm->pending, 0);
	}
	unclaim();
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.vm->pending, 0);
}

/* Who has left was not told PENDING, and is not to be told that it has come. */
TEST(delegate, pending_and_a_signal)
{
	new_vcpu(true);
	leave_it_inside(0);
	kvmfault__set_pending(worker()->seat);
	let_it_end();
	ck_assert_uint_eq(bed.vm->pending, 0);
}

/* ---- a source that answers later ---- */

static struct kvmfault_fetch *fetch;

static int submit(void *data, struct kvmfault_fetch *new, uint64_t offset,
		  void *to, size_t length)
{
	(void)data;
	(void)offset;
	memset(to, bed_byte(5), length);
	fetch = new;
	return 0;
}

static int answer_comes(void)
{
	while (!anybody_waits())
		sched_yield();
	kvmfault_fetch_done(fetch, 0);
	return 0;
}

static int failure_comes(void)
{
	while (!anybody_waits())
		sched_yield();
	kvmfault_fetch_done(fetch, -EIO);
	return 0;
}

static void add_later(struct kvmfault_memory **memory)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = BED_GPA + (1 << 20),
		.length = BED_PAGES * PAGE,
	};
	void *host;
	int fd;

	bed.source = (struct kvmfault_source){
		.size = sizeof(bed.source), .submit = submit,
	};
	ck_assert_int_eq(bed_memory(memory, &fd, &host), 0);
	region.memory = *memory;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
}

static void drop_later(struct kvmfault_memory *memory)
{
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA + (1 << 20)),
			 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

TEST(delegate, answered_later)
{
	struct kvmfault_memory *memory;

	add_later(&memory);
	SCRIPT(answer_comes);
	ck_assert_int_eq(bed_exit(LATER + (1 << 20), 0), KVMFAULT_ACTION_RETRY);
	drop_later(memory);
}

TEST(delegate, failed_later)
{
	struct kvmfault_memory *memory;

	add_later(&memory);
	SCRIPT(failure_comes);
	ck_assert_int_eq(bed_exit(LATER + (1 << 20), 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(result()->error, -EIO);
	drop_later(memory);
}

/* ---- conversions ---- */

static struct kvmfault__conversion other = {
	.pages = { BED_GPA / PAGE, BED_GPA / PAGE + 1 },
};

static int conversion_ends(void)
{
	while (!anybody_waits())
		sched_yield();
	kvmfault__sys_lock(&bed.vm->conversions.lock);
	bed.vm->conversions.first = other.next;
	atomic_fetch_add(&bed.vm->conversions.ended.sequence, 1);
	kvmfault__sys_unlock(&bed.vm->conversions.lock);
	return 0;
}

static int convert(uint64_t *done)
{
	int err;

	fake_delegated(true);
	err = kvmfault_convert(bed.vm, bed.vcpu, BED_GPA, 2 * PAGE, true,
			       done);
	fake_delegated(false);
	return err;
}

static bool stops;

static int told(void *data, uint64_t gpa, uint64_t length, bool private)
{
	(void)data;
	(void)gpa;
	(void)length;
	(void)private;
	if (stops)
		stop();
	stops = false;
	return 0;
}

static void up_converter(void)
{
	static const struct kvmfault_converter converter = {
		.size = sizeof(converter), .set = told,
		.flags = KVMFAULT_CONVERTER_KEEP_PRIVATE |
			 KVMFAULT_CONVERTER_KEEP_SHARED,
	};

	bed_converter = &converter;
	up();
}

TEST_GROUP(convert, up_converter, down);

TEST(convert, conversion)
{
	uint64_t done = 1;

	ck_assert_int_eq(convert(&done), 0);
	ck_assert_uint_eq(done, 2 * PAGE);
	ck_assert_int_eq(kvmfault_is_private(bed.vm, BED_GPA), 1);
}

/* What has begun is not left, and counts. */
static int goes_on(void)
{
	sem_post(&go_on);
	return 0;
}

TEST(convert, conversion_and_a_signal)
{
	uint64_t done = 1;
	int err;

	stops = true;
	SCRIPT(signal_comes, goes_on);
	err = convert(&done);
	ck_assert(!err || err == -EINTR);
	ck_assert_uint_eq(done, 2 * PAGE);
	ck_assert_int_eq(kvmfault_is_private(bed.vm, BED_GPA), 1);
}

TEST(convert, conversion_that_waits_for_another)
{
	bed.vm->conversions.first = &other;
	SCRIPT(conversion_ends);
	ck_assert_int_eq(convert(NULL), 0);
}

/* And is not made for a vCPU that has gone on. */
TEST(convert, conversion_that_waits_and_a_signal)
{
	uint64_t done = 1;

	bed.vm->conversions.first = &other;
	SCRIPT(signal_comes_as_it_waits);
	ck_assert_int_eq(convert(&done), -EINTR);
	ck_assert_uint_eq(done, 0);
	await_idle(worker());
	bed.vm->conversions.first = NULL;
	ck_assert_int_eq(kvmfault_is_private(bed.vm, BED_GPA), 0);
}

/* From within a callback of the vCPU's, which is on its worker's thread. */
static int nested;

static void convert_nested(void)
{
	nested = kvmfault_convert(bed.vm, bed.vcpu, BED_GPA + PAGE, PAGE, true,
				  NULL);
}

TEST(convert, conversion_in_a_callback)
{
	nested = 1;
	bed.during_read = convert_nested;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(nested, 0);
	ck_assert_int_eq(kvmfault_is_private(bed.vm, BED_GPA + PAGE), 1);
}

/* ---- the vCPU, which a worker may hold ---- */

static bool could_hold;

static void hold(void)
{
	stop();
	could_hold = kvmfault__hold_vcpu(worker()->seat);
	if (could_hold)
		kvmfault__free_vcpu(worker()->seat);
}

TEST(delegate, not_held_when_it_has_left)
{
	bed.during_read = hold;
	SCRIPT(signal_comes);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_INTERRUPTED);
	let_it_end();
	ck_assert(!could_hold);
}

static void hold_on(void)
{
	could_hold = kvmfault__hold_vcpu(worker()->seat);
	stop();
	kvmfault__free_vcpu(worker()->seat);
}

static atomic_uint held_waits;

static int still_held(void)
{
	if (atomic_fetch_add(&held_waits, 1) == 2)
		sem_post(&go_on);
	sched_yield();
	return -EINTR;
}

TEST(delegate, does_not_leave_while_it_is_held)
{
	bed.during_read = hold_on;
	SCRIPT(signal_comes, still_held, still_held, still_held);
	/* By then it is done; or it is not held any more, and about to be. */
	ck_assert_int_ne(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert(could_hold);
	ck_assert_uint_ge(held_waits, 3);
}

/* ---- the emulator ---- */

#ifdef __x86_64__

static unsigned long stops_in;		/* that ioctl, once */
static int ioctl_fd;

static bool vcpu_calls(struct fake_call *call)
{
	struct kvm_translation *t = call->arg;

	if (_IOC_TYPE(call->number) != KVMIO)
		return false;
	ioctl_fd = call->fd;
	if (call->number == stops_in) {
		stops_in = 0;
		stop();
	}
	call->result = 0;
	if (call->number == KVM_TRANSLATE) {
		t->valid = t->linear_address < PAGE;
		t->physical_address = BED_GPA + t->linear_address;
	} else {
		memset(call->arg, 0, _IOC_SIZE(call->number));
	}
	return true;
}

static enum kvmfault_action give_up(void)
{
	bed.run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
	bed.run->internal.suberror = 1;
	return bed_handle(0, 0);
}

static void up_emulation(void)
{
	up();
	fake_on(FAKE_IOCTL, vcpu_calls);
}

TEST_GROUP(emulation, up_emulation, down);

/* KVM_TRANSLATE sleeps for a page table: the vCPU does not; and nothing is done to
 * it any more. */
TEST(emulation, emulation_is_unfinished)
{
	stops_in = KVM_TRANSLATE;
	SCRIPT(signal_comes);
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_UNFINISHED);
	ck_assert(result()->unfinished);
	let_it_end();
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, KVM_GET_VCPU_EVENTS), 0);
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_RETRY);
	ck_assert(!result()->unfinished);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, KVM_GET_VCPU_EVENTS), 1);
	ck_assert_uint_eq(bed.reads, 1);
}

TEST(emulation, emulation_is_lost)
{
	stops_in = KVM_TRANSLATE;
	SCRIPT(signal_comes);
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_UNFINISHED);
	ck_assert_int_eq(bed_other(), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_LOST_MMIO);
	ck_assert(!result()->unfinished);
	let_it_end();
}

/* The descriptor is the worker's own: the VMM may close its own by then. */
TEST(emulation, emulation_of_a_vcpu_that_was_freed)
{
	struct kvmfault__worker *first = worker();
	int fd = first->fd;

	stops_in = KVM_GET_REGS;
	SCRIPT(signal_comes);
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_UNFINISHED);
	ck_assert_int_ne(fd, bed.vcpu->fd);
	new_vcpu(false);
	sem_post(&go_on);
	await_idle(first);
	ck_assert_int_eq(ioctl_fd, fd);
}

#endif

/* ---- broken: what the door would notice ---- */

static char said[200];

static void listen(const char *what, const char *function)
{
	if (!*said)
		snprintf(said, sizeof(said), "%s: %s", function, what);
}

/* The thread is said to be one that delegates, and the vCPU's is not. */
TEST(delegate, noticed)
{
	bed.profile = KVMFAULT_PROFILE_INLINE;
	new_vcpu(false);
	bed.profile = KVMFAULT_PROFILE_DELEGATE;
	fake_wrong = listen;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_str_eq(said,
			 "kvmfault_vcpu_handle: what is delegated is called");
	kvmfault_vcpu_free(bed.vcpu);
	bed.vcpu = NULL;
}

/* And a call that was not published, of an inline one and of a worker. */
static int reads_something(void *data, struct kvmfault_request *request)
{
	char byte;

	(void)data;
	(void)request;
	kvmfault__sys_read(bed.fd, &byte, 1);
	return KVMFAULT_VERDICT_DECLINED;
}

TEST_GROUP(unpublished, NULL, NULL);

TEST_EACH(unpublished, unpublished, 2)
{
	bed_vm();
	bed.profile = _i ? KVMFAULT_PROFILE_DELEGATE : KVMFAULT_PROFILE_INLINE;
	bed_own_resolver(reads_something);
	bed_add();
	fake_wrong = listen;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_str_eq(said, _i ?
			 "a worker: what is called was not published" :
			 "kvmfault_vcpu_handle: what is called was not published");
}

int main(void)
{
	return run_suite("delegate");
}
