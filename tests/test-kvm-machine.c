/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The machine that the other live tests and the program run: every routine does
 * what machine.h says, at both levels of privilege and in both columns, on
 * memory where nothing faults for long.
 */

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>

#include "kvm-rig.h"
#include "need.h"

#define PAGES 16
#define LEVELS 2		/* least and most privileged */

static struct rig rig;

/* i: each level in each column */
static void set_up(int i)
{
	uint64_t at;

	rig_new(&rig, i % COLUMNS, 2, PAGES, i / COLUMNS);
	rig_plain(&rig);
	rig_vcpus(&rig);
	for (at = 0; at < PAGES * PAGE; at += 8)
		*(uint64_t *)(rig.a + at) = rig_word(at);
}

/* By the first vCPU. */
static uint64_t run(enum machine_routine routine, uint64_t a, uint64_t b,
		    uint64_t c)
{
	return rig_do(&rig, 0, routine, a, b, c);
}

static uint64_t word_at(uint64_t offset)
{
	uint64_t word;

	memcpy(&word, rig.a + offset, sizeof(word));
	return word;
}

TEST_GROUP(machine, NULL, NULL);

TEST_EACH(machine, reads_and_writes, COLUMNS * LEVELS)
{
	const uint64_t value = 0x1122334455667788, at = 3 * PAGE + 40;
	uint64_t size, mask, before;

	set_up(_i);
	for (size = 1; size <= 8; size *= 2) {
		mask = ~0ULL >> (64 - 8 * size);
		before = word_at(at);
		ck_assert_uint_eq(run(MACHINE_READ, RAM + at, size, 0),
				  before & mask);
		run(MACHINE_WRITE, RAM + at, size, value);
		ck_assert_uint_eq(word_at(at),
				  (before & ~mask) | (value & mask));
		memcpy(rig.a + at, &before, 8);
	}
	ck_assert_uint_eq(word_at(at - 8), rig_word(at - 8));
	ck_assert_uint_eq(word_at(at + 8), rig_word(at + 8));
	rig_free(&rig);
}

TEST_EACH(machine, across_pages, COLUMNS * LEVELS)
{
	const uint64_t at = 2 * PAGE - 3;

	set_up(_i);
	ck_assert_uint_eq(run(MACHINE_READ, RAM + at, 8, 0), word_at(at));
	run(MACHINE_WRITE, RAM + at, 8, 0x0102030405060708);
	ck_assert_uint_eq(word_at(at), 0x0102030405060708);
	rig_free(&rig);
}

TEST_EACH(machine, atomic_accesses, COLUMNS * LEVELS)
{
	set_up(_i);
	ck_assert_uint_eq(run(MACHINE_EXCHANGE, RAM, 12, 0), rig_word(0));
	ck_assert_uint_eq(word_at(0), 12);
	ck_assert_uint_eq(run(MACHINE_ADD, RAM, 30, 0), 12);
	ck_assert_uint_eq(word_at(0), 42);
	rig_free(&rig);
}

static void *add_many(void *arg)
{
	unsigned int i;

	for (i = 0; i < 1000; i++)
		rig_do(&rig, (unsigned int)(uintptr_t)arg, MACHINE_ADD, RAM, 1,
		       0);
	return NULL;
}

/* Two vCPUs and a thread of the host's, at one word. */
TEST_EACH(machine, atomic_among_vcpus, COLUMNS * LEVELS)
{
	struct team team;
	unsigned int i;

	set_up(_i);
	memset(rig.a, 0, 8);
	team_start(&team, 2, add_many);
	for (i = 0; i < 1000; i++)
		atomic_fetch_add((_Atomic uint64_t *)rig.a, 1);
	team_join(&team);
	ck_assert_uint_eq(word_at(0), 3000);
	rig_free(&rig);
}

TEST_EACH(machine, sixteen_bytes, COLUMNS * LEVELS)
{
	set_up(_i);
	ck_assert_uint_eq(run(MACHINE_READ16, RAM + 32, 0, 0), rig_word(32));
	ck_assert_uint_eq(machine_result_high(&rig.machine->vcpu[0]),
			  rig_word(40));
	run(MACHINE_WRITE16, RAM + 32, 21, 22);
	ck_assert_uint_eq(word_at(32), 21);
	ck_assert_uint_eq(word_at(40), 22);
	ck_assert_uint_eq(word_at(48), rig_word(48));
	rig_free(&rig);
}

TEST_EACH(machine, copies, COLUMNS * LEVELS)
{
	char was[PAGE];

	set_up(_i);
	memcpy(was, rig.a + 4 * PAGE - 100, sizeof(was));
	run(MACHINE_COPY, RAM + 8 * PAGE - 50, RAM + 4 * PAGE - 100, 1234);
	ck_assert_mem_eq(rig.a + 8 * PAGE - 50, was, 1234);
	memcpy(was, rig.a, sizeof(was));
	run(MACHINE_COPY, RAM, RAM + PAGE, 0);
	ck_assert_mem_eq(rig.a, was, sizeof(was));
	rig_free(&rig);
}

/* Of these 512 bytes both architectures have registers of 16 in the middle. */
TEST_EACH(machine, fpu_state, COLUMNS * LEVELS)
{
	const size_t from = 160, length = 256;
	char *state = NULL;

	set_up(_i);
	state = rig.a + PAGE;
	memset(state, 0xee, 512);
	run(MACHINE_FPU_SAVE, RAM + PAGE, 0, 0);
	memcpy(state + from, rig.a, length);
	run(MACHINE_FPU_RESTORE, RAM + PAGE, 0, 0);
	run(MACHINE_FPU_SAVE, RAM + 2 * PAGE, 0, 0);
	ck_assert_mem_eq(rig.a + 2 * PAGE + from, rig.a, length);
	rig_free(&rig);
}

TEST_EACH(machine, jumps, COLUMNS * LEVELS)
{
	set_up(_i);
	machine_put_return(rig.a + 5 * PAGE + 64);
	ck_assert_uint_eq(run(MACHINE_JUMP, RAM + 5 * PAGE + 64, 31, 0), 31);
	rig_free(&rig);
}

#ifdef __x86_64__
/* At CPL 0 some back ends emulate the guest, and say so in their own way. */
static void tells_of_an_invalid_opcode(struct machine_vcpu *vcpu, int ret)
{
	char story[MACHINE_STORY];

	if (vcpu->machine->supervisor && !machine_crashed(vcpu, ret))
		return;
	machine_story(vcpu, story);
	ck_assert_msg(strstr(story, "exception 6, error code 0,") != NULL,
		      "%s", story);
}
#endif

/* All ones are no instruction. */
TEST_EACH(machine, called_again_after_a_crash, COLUMNS * LEVELS)
{
	struct machine_vcpu *vcpu;
	int err, ret;

	set_up(_i);
	vcpu = &rig.machine->vcpu[0];
	memset(rig.a, 0xff, 64);
	ck_assert_int_eq(machine_call(vcpu, MACHINE_JUMP, RAM, 0, 0, 0), 0);
	do {
		ret = rig_run(&rig, 0, &err);
	} while (ret < 0 && err == EINTR);
	ck_assert(!machine_done(vcpu, ret));
#ifdef __x86_64__
	tells_of_an_invalid_opcode(vcpu, ret);
#endif
	ck_assert_uint_eq(run(MACHINE_READ, RAM + PAGE, 8, 0), rig_word(PAGE));
	rig_free(&rig);
}

TEST(machine, no_such_routine)
{
	set_up(0);
	ck_assert_int_eq(machine_call(&rig.machine->vcpu[0], 0, 0, 0, 0, 0),
			 -EINVAL);
	ck_assert_int_eq(machine_call(&rig.machine->vcpu[0], 1000, 0, 0, 0, 0),
			 -EINVAL);
	rig_free(&rig);
}

/* As machine.h has it. */
static void scan(struct machine_scan *job, uint64_t *page)
{
	uint64_t n, i, sum, p = job->first;

	for (n = 0; n < job->count; n++) {
		sum = MACHINE_SCAN_SEED;
		for (i = 0; i < 512; i++)
			sum = ((sum << 5 | sum >> 59) ^ page[p * 512 + i]) *
			      MACHINE_SCAN_MUL;
		page[p * 512 + 511] = sum;
		job->checksum += sum ^ (p * MACHINE_SCAN_MUL);
		job->progress++;
		p += job->stride;
		if (p >= job->pages)
			p -= job->pages;
	}
}

TEST_EACH(machine, scans, COLUMNS * LEVELS)
{
	static uint64_t expected[PAGES * PAGE / 8];
	struct machine_scan job = {
		.base = RAM,
		.pages = PAGES,
		.first = 5,
		.stride = 7,
		.count = PAGES + 3,	/* some twice */
		.progress = 100,
		.checksum = 4711,
	};
	struct machine_scan *theirs;

	set_up(_i);
	memcpy(expected, rig.a, sizeof(expected));
	theirs = machine_scan_job(rig.machine, 0);
	*theirs = job;
	run(MACHINE_SCAN, 0, 0, 0);
	scan(&job, expected);
	ck_assert_mem_eq(rig.a, expected, sizeof(expected));
	ck_assert_mem_eq(theirs, &job, sizeof(job));
	rig_free(&rig);
}

/* Neither in order nor each once; the last page has the table. */
TEST_EACH(machine, touches, COLUMNS * LEVELS)
{
	static const unsigned char order[] = { 3, 0, 7, 7, 14, 1 };
	uint64_t *table, sum = 0;
	unsigned int i;
	int write;

	set_up(_i);
	table = (uint64_t *)(rig.a + 15 * PAGE);
	for (i = 0; i < sizeof(order); i++)
		table[i] = RAM + order[i] * PAGE + 64;
	for (i = 0; i < sizeof(order); i++)
		sum = ((sum << 5 | sum >> 59) ^
		       rig_word(order[i] * PAGE + 64)) * MACHINE_SCAN_MUL;
	for (write = 0; write <= 1; write++) {
		ck_assert_uint_eq(run(MACHINE_TOUCH, RAM + 15 * PAGE,
				      sizeof(order), write), sum);
		for (i = 0; i < sizeof(order); i++)
			ck_assert_uint_eq(word_at(order[i] * PAGE + 72),
					  write ? table[i] :
					  rig_word(order[i] * PAGE + 72));
	}
	ck_assert_uint_eq(run(MACHINE_TOUCH, RAM + 15 * PAGE, 0, 0), 0);
	rig_free(&rig);
}

#define TICKS 5

/* Spin ever longer, until this comes in one call. */
static void await_ticks(unsigned int vcpu, uint64_t count)
{
	uint64_t before, length = 1000;

	do {
		before = machine_ticks(rig.machine, vcpu);
		rig_do(&rig, vcpu, MACHINE_SPIN, length, 0, 0);
		length *= 2;
	} while (machine_ticks(rig.machine, vcpu) < before + count);
}

/* The timer goes on and on, and only where it is asked for. */
TEST_EACH(machine, ticks, COLUMNS * LEVELS)
{
	set_up(_i);
	if (_i % COLUMNS)
		await_ticks(0, TICKS);
	else
		run(MACHINE_SPIN, 10000, 0, 0);
	if (!(_i % COLUMNS))
		ck_assert_uint_eq(machine_ticks(rig.machine, 0), 0);
	ck_assert_uint_eq(machine_ticks(rig.machine, 1), 0);
	rig_free(&rig);
}

static struct kicker kicker;

#ifdef __x86_64__
#define FAULTS 200
#define ROOM 1024		/* of its stack */

static uint64_t stack_pointer(void)
{
	struct kvm_regs regs;

	ck_assert_int_eq(ioctl(rig.machine->vcpu[0].fd, KVM_GET_REGS, &regs),
			 0);
	return regs.rsp;
}

/* A fault that the guest has not earned, wherever it is; not if many of them
 * are still being handled. */
static bool have_it_fault(unsigned int vector, uint64_t top)
{
	struct kvm_vcpu_events events;
	int fd = rig.machine->vcpu[0].fd;

	ck_assert_int_eq(ioctl(fd, KVM_GET_VCPU_EVENTS, &events), 0);
	if (events.exception.injected || events.interrupt.injected ||
	    top - stack_pointer() > ROOM)
		return false;
	events.exception.injected = 1;
	events.exception.nr = (uint8_t)vector;
	events.exception.has_error_code = 1;
	events.exception.error_code = 0;
	events.flags = 0;
	ck_assert_int_eq(ioctl(fd, KVM_SET_VCPU_EVENTS, &events), 0);
	return true;
}

static void crashed_not(const struct machine_vcpu *vcpu, int ret)
{
	char story[MACHINE_STORY];

	ck_assert_msg(machine_done(vcpu, ret), "%s",
		      machine_story(vcpu, story));
}

/*
 * Page faults and double faults that are nobody's, between any two
 * instructions, those of interrupt handlers too: the guest goes on as if
 * nothing were.
 */
TEST_EACH(machine, unearned_faults, COLUMNS * LEVELS)
{
	static uint64_t expected[PAGES * PAGE / 8];
	struct machine_scan job = {
		.base = RAM,
		.pages = PAGES,
		.stride = 7,
		.count = 1000,
	};
	struct machine_vcpu *vcpu;
	unsigned int n = 0;
	uint64_t top;
	int err, ret;

	set_up(_i);
	memcpy(expected, rig.a, sizeof(expected));
	vcpu = &rig.machine->vcpu[0];
	kicker_start(&kicker);
	do {
		job.progress = 0;
		*machine_scan_job(rig.machine, 0) = job;
		ck_assert_int_eq(machine_call(vcpu, MACHINE_SCAN, 0, 0, 0, 0),
				 0);
		top = stack_pointer();
		while ((ret = rig_run(&rig, 0, &err)) < 0 && err == EINTR)
			n += have_it_fault(n % 4 ? 14 : 8, top);
		crashed_not(vcpu, ret);
		scan(&job, expected);
		ck_assert_mem_eq(rig.a, expected, sizeof(expected));
		ck_assert_mem_eq(machine_scan_job(rig.machine, 0), &job,
				 sizeof(job));
		job.checksum = 0;
	} while (n < FAULTS);
	kicker_stop(&kicker);
	ck_assert_uint_ge(machine_retried(rig.machine, 0), FAULTS / 2);
	rig_free(&rig);
}
#endif

/* Whatever it was doing before, be it a tick. */
TEST_EACH(machine, ticks_after_calls_that_were_left, LEVELS)
{
	unsigned int n;
	int err;

	set_up(1 + _i * COLUMNS);
	kicker_start(&kicker);
	for (n = 0; n < 100; n++) {
		ck_assert_int_eq(machine_call(&rig.machine->vcpu[0],
					      MACHINE_SPIN, 0, 0, 0, 0), 0);
		ck_assert_int_eq(rig_run(&rig, 0, &err), -1);
		ck_assert_int_eq(err, EINTR);
	}
	kicker_stop(&kicker);
	await_ticks(0, TICKS);
	rig_free(&rig);
}

int main(void)
{
	need("kvm");
	return run_suite("kvm machine");
}
