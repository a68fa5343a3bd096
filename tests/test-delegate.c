/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * delegate.c: a vCPU's work is the service's. Each wait of the vCPU's thread is
 * a step of a script: the service's turn, a signal, whatever else comes then.
 * The door sees that this thread only waits and writes to an eventfd.
 */

#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>

#include "bed.h"

#define LATER (BED_GPA + 5 * PAGE)

static struct kvmfault_service *service;

/* What comes in each wait of the vCPU's thread, and what the wait returns. */
static int (*steps[16])(void);
static size_t step;
static _Atomic uint32_t *waited_for;	/* in the last one */

static int serve(void)
{
	ck_assert_int_eq(kvmfault_service_dispatch(service), 0);
	return 0;
}

static int signal_comes(void)
{
	return -EINTR;
}

static bool next_step(struct fake_call *call)
{
	ck_assert_uint_lt(step, 16);
	waited_for = call->arg;
	call->result = steps[step] ? steps[step++]() : serve();
	return true;
}

#define SCRIPT(...) script((int (*[])(void)){ __VA_ARGS__, NULL })

static void script(int (**what)(void))
{
	step = 0;
	for (;; what++) {
		steps[step++] = *what;
		if (!*what)
			break;
	}
	step = 0;
	fake_on(FAKE_FUTEX_WAIT, next_step);
}

static void start_service(unsigned int threads)
{
	struct kvmfault_service_options options = {
		.size = sizeof(options), .threads = threads,
	};

	ck_assert_int_eq(kvmfault_service_new(bed.vm, &options, &service), 0);
}

static void up_with(unsigned int threads)
{
	bed_vm();
	bed.profile = KVMFAULT_PROFILE_DELEGATE;
	bed.guest_memfd = fake_fd(FAKE_MEMORY);
	bed_add();
	start_service(threads);
	fake_forget();
}

static void up(void)
{
	up_with(0);
	SCRIPT(serve);
}

static void down(void)
{
	const struct kvmfault__bucket *bucket = bed.vm->bucket;
	size_t i;

	fake_on(FAKE_FUTEX_WAIT, NULL);
	kvmfault_vcpu_free(bed.vcpu);
	bed.vcpu = NULL;
	for (i = 0; i < KVMFAULT__BUCKETS; i++)
		ck_assert_uint_eq(bucket[i].waiters, 0);
	ck_assert_uint_eq(bed.vm->conversion_ended.waiters, 0);
	ck_assert_int_eq(kvmfault_service_free(service), 0);
	bed_down();
}

static const struct kvmfault_result *result(void)
{
	return kvmfault_vcpu_result(bed.vcpu);
}

static struct kvmfault_vcpu *new_vcpu(enum kvmfault_profile profile,
				      bool no_wait)
{
	struct kvmfault_vcpu_options options = {
		.size = sizeof(options), .fd = fake_fd(FAKE_KVM),
		.run = bed.run, .profile = profile, .no_wait = no_wait,
	};
	struct kvmfault_vcpu *vcpu;

	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &options, &vcpu), 0);
	return vcpu;
}

static enum kvmfault_action exit_of(struct kvmfault_vcpu *vcpu, uint64_t page)
{
	struct kvmfault_vcpu *own = bed.vcpu;
	enum kvmfault_action action;

	bed.vcpu = vcpu;
	action = bed_exit(BED_GPA + page * PAGE, 0);
	bed.vcpu = own;
	return action;
}

START_TEST(by_the_service)
{
	SCRIPT(serve);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_RETRY);
	ck_assert(bed_has(0, bed_byte(0)));
	ck_assert_str_eq(result()->resolver, "copy");
	ck_assert_uint_eq(fake_count(FAKE_EVENTFD_SIGNAL, FAKE_ANY), 1);
	ck_assert_uint_eq(fake_count(FAKE_FUTEX_WAIT, FAKE_ANY), 1);
	ck_assert_ptr_eq(waited_for, &bed.vcpu->seat->job);
	ck_assert_uint_eq(bed_stats().latency[0], 1);
}
END_TEST

START_TEST(unknown_profile)
{
	struct kvmfault_vcpu_options options = {
		.size = sizeof(options), .fd = fake_fd(FAKE_KVM),
		.run = bed.run, .profile = KVMFAULT_PROFILE_DELEGATE + 1,
	};
	struct kvmfault_vcpu *vcpu;

	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &options, &vcpu), -EINVAL);
}
END_TEST

/* ---- signals ---- */

START_TEST(signal_before_it_was_taken)
{
	SCRIPT(signal_comes);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_INTERRUPTED);
	ck_assert(!result()->unfinished);
	ck_assert_uint_eq(bed.reads, 0);
	/* It is done all the same, and the page says so. */
	serve();
	ck_assert_uint_eq(bed.reads, 1);
	SCRIPT(serve);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_RETRY);
	ck_assert_uint_eq(bed.reads, 1);
}
END_TEST

START_TEST(signal_and_another_fault)
{
	SCRIPT(signal_comes);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_INTERRUPTED);
	ck_assert_int_eq(bed_other(), KVMFAULT_NOT_A_FAULT);
	/* First what is posted, then its own. */
	SCRIPT(serve, serve);
	ck_assert_int_eq(bed_exit(BED_GPA + PAGE, 0), KVMFAULT_RETRY);
	ck_assert_uint_eq(step, 2);
	ck_assert_int_eq(bed_state(0), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(1), KVMFAULT__PRESENT);
	ck_assert_uint_eq(result()->fault->gpa, BED_GPA + PAGE);
}
END_TEST

/* The failure of a job that was left behind is nobody's. */
START_TEST(signal_and_failure)
{
	bed.source_result = -EIO;
	SCRIPT(signal_comes);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_INTERRUPTED);
	serve();
	ck_assert_uint_eq(bed.reads, 1);
	bed.source_result = 0;
	SCRIPT(serve);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_RETRY);
	ck_assert_uint_eq(bed.reads, 2);
}
END_TEST

START_TEST(immediate_exit)
{
	bed.run->immediate_exit = 1;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_INTERRUPTED);
	ck_assert_uint_eq(fake_count(FAKE_FUTEX_WAIT, FAKE_ANY), 0);
	bed.run->immediate_exit = 0;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_RETRY);
	ck_assert_uint_eq(bed.reads, 1);
}
END_TEST

START_TEST(mmio_is_unfinished)
{
	memset(bed.run->mmio.data, 0x5a, 8);
	SCRIPT(signal_comes);
	ck_assert_int_eq(bed_mmio(BED_GPA + 8, 8, true), KVMFAULT_UNFINISHED);
	ck_assert(result()->unfinished);
	serve();
	ck_assert_int_ne(*(bed_page(0) + 8), 0x5a);
	ck_assert_int_eq(bed_mmio(BED_GPA + 8, 8, true), KVMFAULT_RETRY);
	ck_assert(!result()->unfinished);
	ck_assert_int_eq(*(bed_page(0) + 8), 0x5a);
}
END_TEST

/* Taken out of the regions between the page and the copy. */
static int serve_and_remove(void)
{
	serve();
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	return 0;
}

START_TEST(mmio_of_what_is_no_ram_any_more)
{
	SCRIPT(serve_and_remove);
	ck_assert_int_eq(bed_mmio(BED_GPA + 8, 8, true), KVMFAULT_NOT_A_FAULT);
	ck_assert(!result()->unfinished);
}
END_TEST

/* ---- the ends of things ---- */

START_TEST(service_freed_with_a_job)
{
	SCRIPT(signal_comes);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_INTERRUPTED);
	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_uint_eq(bed.reads, 0);
	start_service(0);
	SCRIPT(serve);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_RETRY);
	ck_assert_uint_eq(bed.reads, 1);
}
END_TEST

START_TEST(vcpu_freed_with_a_job)
{
	SCRIPT(signal_comes);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_INTERRUPTED);
	kvmfault_vcpu_free(bed.vcpu);
	if (_i)		/* the job's place in the list is used again */
		serve();
	ck_assert_uint_eq(bed.reads, 0);
	bed.vcpu = new_vcpu(KVMFAULT_PROFILE_DELEGATE, false);
	SCRIPT(serve);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_RETRY);
	ck_assert_uint_eq(bed.reads, 1);
	serve();
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_ptr_null(bed.vm->taken);
	ck_assert_ptr_null(bed.vm->posted);
}
END_TEST

START_TEST(first_come_first_served)
{
	struct kvmfault_vcpu *vcpu[3];
	uint64_t i;

	SCRIPT(signal_comes, signal_comes, signal_comes);
	for (i = 0; i < 3; i++) {
		vcpu[i] = new_vcpu(KVMFAULT_PROFILE_DELEGATE, false);
		ck_assert_int_eq(exit_of(vcpu[i], i), KVMFAULT_INTERRUPTED);
	}
	/* One at a time: what is left is other threads'. */
	for (i = 0; i < 3; i++) {
		serve();
		ck_assert_uint_eq(bed.reads, i + 1);
		ck_assert_uint_eq(bed.last_read, i * PAGE);
	}
	for (i = 0; i < 3; i++)
		kvmfault_vcpu_free(vcpu[i]);
}
END_TEST

/* Another thread has read the eventfd. */
START_TEST(nothing_left_to_take)
{
	fake_push(FAKE_READ, -EAGAIN);
	SCRIPT(serve, serve);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_RETRY);
	ck_assert_uint_eq(step, 2);
}
END_TEST

/* ---- pages in flight ---- */

static void claim(void)
{
	ck_assert_int_eq(kvmfault__page_claim(bed.memory, 0, false),
			 KVMFAULT__ABSENT);
}

static int page_comes(void)
{
	ck_assert_ptr_ne(waited_for, &bed.vcpu->seat->job);
	fake_put(bed.fd, 0);
	kvmfault__page_change(bed.memory, 0, KVMFAULT__FETCHING,
			      KVMFAULT__PRESENT);
	kvmfault__page_wake(bed.memory, 0);
	return 0;
}

static int time_passes(void)
{
	ck_assert_ptr_ne(waited_for, &bed.vcpu->seat->job);
	return -ETIMEDOUT;
}

START_TEST(page_in_flight)
{
	claim();
	SCRIPT(serve, time_passes, page_comes, serve);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_RETRY);
	ck_assert_uint_eq(step, 4);
	ck_assert_uint_eq(bed.reads, 0);
	ck_assert_uint_eq(bed_stats().waited, 1);
	ck_assert_uint_eq(fake_count(FAKE_EVENTFD_SIGNAL, FAKE_ANY), 2);
	/* It was waited for: nothing else need be tried. */
	ck_assert_uint_eq(fake_count(FAKE_MADVISE, FAKE_ANY), 0);
}
END_TEST

START_TEST(page_in_flight_and_a_signal)
{
	claim();
	SCRIPT(serve, signal_comes);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_INTERRUPTED);
	SCRIPT(serve, page_comes, serve);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_RETRY);
	ck_assert_uint_eq(step, 3);
}
END_TEST

/* The job found it so when nobody was there to wait. */
START_TEST(page_in_flight_after_a_signal)
{
	claim();
	SCRIPT(signal_comes);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_INTERRUPTED);
	serve();
	if (!_i) {
		SCRIPT(serve, page_comes, serve);
		ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_RETRY);
		ck_assert_uint_eq(step, 3);
		return;
	}
	/* Another fault, or the vCPU's end: nobody waits for it any more. */
	SCRIPT(serve);
	if (_i == 1)
		ck_assert_int_eq(bed_exit(BED_GPA + PAGE, 0), KVMFAULT_RETRY);
	kvmfault__page_change(bed.memory, 0, KVMFAULT__FETCHING,
			      KVMFAULT__ABSENT);
}
END_TEST

START_TEST(page_in_flight_and_no_wait)
{
	struct kvmfault_vcpu *vcpu = new_vcpu(KVMFAULT_PROFILE_DELEGATE, true);

	claim();
	SCRIPT(serve);
	ck_assert_int_eq(exit_of(vcpu, 0), KVMFAULT_PENDING);
	ck_assert_uint_eq(bed.vm->pending, 1);
	kvmfault__page_change(bed.memory, 0, KVMFAULT__FETCHING,
			      KVMFAULT__ABSENT);
	ck_assert_int_eq(exit_of(vcpu, 0), KVMFAULT_RETRY);
	ck_assert_uint_eq(bed.vm->pending, 0);
	kvmfault_vcpu_free(vcpu);
}
END_TEST

/* ---- a source that answers later ---- */

static struct kvmfault_fetch *fetch;
static void *buffer;

static int submit(void *data, struct kvmfault_fetch *new, uint64_t offset,
		  void *to, size_t length)
{
	(void)data;
	(void)offset;
	fetch = new;
	buffer = memset(to, bed_byte(5), length);
	return 0;
}

static int answer_comes(void)
{
	ck_assert_ptr_ne(waited_for, &bed.vcpu->seat->job);
	kvmfault_fetch_done(fetch, 0);
	return 0;
}

static int failure_comes(void)
{
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

START_TEST(answered_later)
{
	struct kvmfault_memory *memory;

	add_later(&memory);
	SCRIPT(serve, answer_comes, serve);
	ck_assert_int_eq(bed_exit(LATER + (1 << 20), 0), KVMFAULT_RETRY);
	ck_assert_uint_eq(step, 3);
	drop_later(memory);
}
END_TEST

START_TEST(failed_later)
{
	struct kvmfault_memory *memory;

	add_later(&memory);
	SCRIPT(serve, failure_comes, serve);
	ck_assert_int_eq(bed_exit(LATER + (1 << 20), 0), KVMFAULT_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(result()->error, -EIO);
	drop_later(memory);
}
END_TEST

/* ---- conversions ---- */

static struct kvmfault__conversion other = {
	.pages = { BED_GPA / PAGE, BED_GPA / PAGE + 1 },
};

static int conversion_ends(void)
{
	ck_assert_ptr_eq(waited_for, &bed.vm->conversion_ended.sequence);
	ck_assert_uint_ge(bed.vm->conversion_ended.waiters, 1);
	bed.vm->conversions = NULL;
	atomic_fetch_add(&bed.vm->conversion_ended.sequence, 1);
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

static int told(void *data, uint64_t gpa, uint64_t length, bool private)
{
	(void)data;
	(void)gpa;
	(void)length;
	(void)private;
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

START_TEST(conversion)
{
	uint64_t done = 1;

	SCRIPT(serve);
	ck_assert_int_eq(convert(&done), 0);
	ck_assert_uint_eq(done, 2 * PAGE);
	ck_assert_int_eq(kvmfault_is_private(bed.vm, BED_GPA), 1);
}
END_TEST

START_TEST(conversion_and_a_signal)
{
	uint64_t done = 1;

	SCRIPT(signal_comes);
	ck_assert_int_eq(convert(&done), -EINTR);
	ck_assert_uint_eq(done, 0);
	SCRIPT(serve);
	ck_assert_int_eq(convert(&done), 0);
	ck_assert_uint_eq(done, 2 * PAGE);
}
END_TEST

START_TEST(conversion_that_waits_for_another)
{
	bed.vm->conversions = &other;
	SCRIPT(serve, conversion_ends, serve);
	ck_assert_int_eq(convert(NULL), 0);
	ck_assert_uint_eq(step, 3);
}
END_TEST

/* ---- while it runs: two threads ---- */

static sem_t inside, go_on;
static atomic_uint held_waits;

static void stop(void)
{
	sem_post(&inside);
	sem_wait(&go_on);
}

static int signal_comes_when_inside(void)
{
	sem_wait(&inside);
	return -EINTR;
}

static int let_it_end(void)
{
	sem_post(&go_on);
	while ((atomic_load(&bed.vcpu->seat->job) & 7) != 4)	/* DONE */
		sched_yield();
	return 0;
}

static void up_threads(void)
{
	sem_init(&inside, 0, 0);
	sem_init(&go_on, 0, 0);
	up_with(1);
	bed.during_read = stop;
}

START_TEST(signal_while_it_runs)
{
	SCRIPT(signal_comes_when_inside);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_INTERRUPTED);
	/* What is no fault does not wait for it. */
	ck_assert_int_eq(bed_other(), KVMFAULT_NOT_A_FAULT);
	SCRIPT(let_it_end);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_RETRY);
	ck_assert_uint_eq(step, 1);
	ck_assert_uint_eq(bed.reads, 1);
}
END_TEST

START_TEST(vcpu_freed_while_it_runs)
{
	SCRIPT(signal_comes_when_inside);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_INTERRUPTED);
	SCRIPT(let_it_end);
	kvmfault_vcpu_free(bed.vcpu);
	ck_assert_uint_eq(step, 1);
	ck_assert_int_eq(bed_state(0), KVMFAULT__PRESENT);
	bed.vcpu = NULL;
}
END_TEST

/* The service may not touch the vCPU any more: its thread has left. */
static bool could_hold;

static void hold(void)
{
	stop();
	could_hold = kvmfault__hold_vcpu(bed.vcpu->seat);
	if (could_hold)
		kvmfault__free_vcpu(bed.vcpu->seat);
}

START_TEST(not_held_when_it_has_left)
{
	bed.during_read = hold;
	SCRIPT(signal_comes_when_inside);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_INTERRUPTED);
	sem_post(&go_on);
	while ((atomic_load(&bed.vcpu->seat->job) & 7) != 4)
		sched_yield();
	ck_assert(!could_hold);
	/* What was cut short is done again. */
	fake_on(FAKE_FUTEX_WAIT, NULL);
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_RETRY);
	ck_assert_uint_eq(fake_count(FAKE_EVENTFD_SIGNAL, FAKE_ANY), 2);
}
END_TEST

static void hold_on(void)
{
	could_hold = kvmfault__hold_vcpu(bed.vcpu->seat);
	stop();
	kvmfault__free_vcpu(bed.vcpu->seat);
}

static int still_held(void)
{
	if (atomic_fetch_add(&held_waits, 1) == 2)
		sem_post(&go_on);
	sched_yield();
	return -EINTR;
}

START_TEST(does_not_leave_while_it_is_held)
{
	bed.during_read = hold_on;
	SCRIPT(signal_comes_when_inside, still_held, still_held, still_held);
	/* By then it is done; or it is not held any more, and about to be. */
	ck_assert_int_ne(bed_exit(BED_GPA, 0), KVMFAULT_UNRESOLVED);
	ck_assert(could_hold);
	ck_assert_uint_ge(held_waits, 3);
}
END_TEST

/* ---- the emulator ---- */

#ifdef __x86_64__

static bool vcpu_calls(struct fake_call *call)
{
	struct kvm_translation *t = call->arg;

	if (_IOC_TYPE(call->number) != KVMIO)
		return false;
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

/* One that is posted, and nobody is told of: until the signal has come. */
static atomic_int kept_back;

static bool keep_back(struct fake_call *call)
{
	if (atomic_fetch_sub(&kept_back, 1))
		return false;
	bed.run->immediate_exit = 1;
	call->result = sizeof(uint64_t);
	return true;
}

static void up_emulation(void)
{
	up_with(1);
	fake_on(FAKE_IOCTL, vcpu_calls);
	fake_on(FAKE_EVENTFD_SIGNAL, keep_back);
}

static void go_on_with_it(void)
{
	bed.run->immediate_exit = 0;
	kvmfault__sys_eventfd_signal(bed.vm->jobs);
}

START_TEST(emulation_is_unfinished)
{
	/* Whichever of its three tasks it is: #UD may be queued still. */
	kept_back = _i;
	ck_assert_int_eq(give_up(), KVMFAULT_UNFINISHED);
	ck_assert(result()->unfinished);
	go_on_with_it();
	ck_assert_int_eq(give_up(), KVMFAULT_RETRY);
	ck_assert(!result()->unfinished);
	ck_assert_uint_eq(bed.reads, 1);
}
END_TEST

START_TEST(emulation_is_lost)
{
	kept_back = 0;
	ck_assert_int_eq(give_up(), KVMFAULT_UNFINISHED);
	ck_assert_int_eq(bed_other(), KVMFAULT_UNRESOLVED);
	ck_assert_int_eq(result()->reason, KVMFAULT_REASON_LOST_MMIO);
	ck_assert(!result()->unfinished);
	go_on_with_it();
}
END_TEST

#endif

/* ---- broken: what the door would notice ---- */

static char said[200];

static void listen(const char *what, const char *function)
{
	if (!*said)
		snprintf(said, sizeof(said), "%s: %s", function, what);
}

/* The thread is said to be one that delegates, and the vCPU is another's. */
START_TEST(noticed)
{
	struct kvmfault_vcpu *vcpu = new_vcpu(KVMFAULT_PROFILE_INLINE, false);

	fake_wrong = listen;
	ck_assert_int_eq(exit_of(vcpu, 0), KVMFAULT_RETRY);
	ck_assert_str_eq(said,
			 "kvmfault_handle: what is delegated is called");
	kvmfault_vcpu_free(vcpu);
}
END_TEST

/* And a call that was not published, of an inline one. */
static int reads_something(void *data, struct kvmfault_request *request)
{
	char byte;

	(void)data;
	(void)request;
	kvmfault__sys_read(bed.fd, &byte, 1);
	return KVMFAULT_DECLINED;
}

START_TEST(unpublished)
{
	static const struct kvmfault_resolver resolver = {
		.size = sizeof(resolver), .name = "reads",
		.resolve = reads_something,
	};

	bed_vm();
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &resolver), 0);
	bed_add();
	fake_wrong = listen;
	ck_assert_int_eq(bed_exit(BED_GPA, 0), KVMFAULT_RETRY);
	ck_assert_str_eq(said,
			 "kvmfault_handle: what is called was not published");
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("delegate");
	TCase *t = tests(suite, "delegate");

	tcase_add_checked_fixture(t, up, down);
	tcase_add_test(t, by_the_service);
	tcase_add_test(t, unknown_profile);
	tcase_add_test(t, signal_before_it_was_taken);
	tcase_add_test(t, signal_and_another_fault);
	tcase_add_test(t, signal_and_failure);
	tcase_add_test(t, immediate_exit);
	tcase_add_test(t, mmio_is_unfinished);
	tcase_add_test(t, mmio_of_what_is_no_ram_any_more);
	tcase_add_test(t, service_freed_with_a_job);
	tcase_add_loop_test(t, vcpu_freed_with_a_job, 0, 2);
	tcase_add_test(t, first_come_first_served);
	tcase_add_test(t, nothing_left_to_take);
	tcase_add_test(t, page_in_flight);
	tcase_add_test(t, page_in_flight_and_a_signal);
	tcase_add_loop_test(t, page_in_flight_after_a_signal, 0, 3);
	tcase_add_test(t, page_in_flight_and_no_wait);
	tcase_add_test(t, answered_later);
	tcase_add_test(t, failed_later);
	tcase_add_test(t, noticed);
	t = tests(suite, "convert");
	tcase_add_checked_fixture(t, up_converter, down);
	tcase_add_test(t, conversion);
	tcase_add_test(t, conversion_and_a_signal);
	tcase_add_test(t, conversion_that_waits_for_another);
	t = tests(suite, "threads");
	tcase_add_checked_fixture(t, up_threads, down);
	tcase_add_test(t, signal_while_it_runs);
	tcase_add_test(t, vcpu_freed_while_it_runs);
	tcase_add_test(t, not_held_when_it_has_left);
	tcase_add_test(t, does_not_leave_while_it_is_held);
#ifdef __x86_64__
	t = tests(suite, "emulation");
	tcase_add_checked_fixture(t, up_emulation, down);
	tcase_add_loop_test(t, emulation_is_unfinished, 0, 3);
	tcase_add_test(t, emulation_is_lost);
#endif
	tcase_add_test(tests(suite, "unpublished"), unpublished);
	return run_suite(suite);
}
