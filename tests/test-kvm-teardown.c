/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The end of a memory, of a mapping, of a service, with pages in each state and
 * the guest still running, in both columns. Whoever reads a page from then on
 * reads what belongs there or is stopped: never a zero in the place of data.
 */

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvm-rig.h"
#include "need.h"

#define PAGES 16
#define VCPUS 4
#define HOSTS 4
#define MOMENT 100		/* us, between two looks */

/* What is to be had at a page: each group of pages is in one state. */
#define FETCHED 0
#define DISCARDED 4
#define ABSENT 8
#define GROUP 4

static struct rig rig;

/* ---- threads that read, and may be stopped ---- */

static __thread sigjmp_buf stopped;

static void stop_here(int signal)
{
	siglongjmp(stopped, signal);
}

static void catch_stops(void)
{
	struct sigaction action = { .sa_handler = stop_here };

	ck_assert_int_eq(sigaction(SIGSEGV, &action, NULL), 0);
	ck_assert_int_eq(sigaction(SIGBUS, &action, NULL), 0);
}

static uint64_t right_word(uint64_t page)
{
	return page / GROUP == DISCARDED / GROUP ? 0 : rig_word(page * PAGE);
}

/* 0, or the signal that stopped it. */
static int host_reads(const char *map, uint64_t page)
{
	int signal = sigsetjmp(stopped, 1);

	if (!signal)
		rig_same(*(const volatile uint64_t *)(map + page * PAGE),
			 right_word(page), "the host's word");
	return signal;
}

static struct outcome guest_reads(unsigned int vcpu, uint64_t page)
{
	struct outcome outcome = rig_call(&rig, vcpu, MACHINE_READ,
					  RAM + page * PAGE, 8, 0);

	if (outcome.action == KVMFAULT_ACTION_NOT_A_FAULT)
		rig_same(outcome.result, right_word(page), "the guest's word");
	return outcome;
}

/* Everybody reads again and again, a vCPU from a and the others from b, until
 * they are stopped or told to end. */
static atomic_bool over;
static atomic_uint_fast64_t turns[VCPUS + HOSTS];
static uint64_t page_of[VCPUS + HOSTS];	/* what each reads */
static struct outcome guest_end[VCPUS];
static atomic_int host_end[HOSTS];
static struct team team;

static void *run(void *arg)
{
	unsigned int id = (unsigned int)(uintptr_t)arg;

	while (!atomic_load(&over)) {
		if (id < VCPUS)
			guest_end[id] = guest_reads(id, page_of[id]);
		else
			host_end[id - VCPUS] = host_reads(rig.b, page_of[id]);
		if (id < VCPUS && guest_end[id].action != KVMFAULT_ACTION_NOT_A_FAULT)
			break;
		if (id >= VCPUS && host_end[id - VCPUS])
			break;
		atomic_fetch_add(&turns[id], 1);
	}
	return NULL;
}

/* Reader i of either kind reads the i-th page of those. */
static void start_readers(const uint64_t pages[4])
{
	unsigned int i;

	for (i = 0; i < 4; i++) {
		page_of[i] = pages[i];
		page_of[VCPUS + i] = pages[i];
	}
	team_start(&team, VCPUS + HOSTS, run);
}

/* Who reads what is there has done so a few more times. */
static void await_turns(unsigned int id)
{
	uint64_t before = atomic_load(&turns[id]);

	while (atomic_load(&turns[id]) < before + 3)
		usleep(MOMENT);
}

static void await_stop(unsigned int host)
{
	while (!atomic_load(&host_end[host]))
		usleep(MOMENT);
}

static void expect_stopped_guests(void)
{
	unsigned int i;

	for (i = 0; i < VCPUS; i++) {
		ck_assert_int_eq(guest_end[i].action, KVMFAULT_ACTION_UNRESOLVED);
		ck_assert_int_eq(guest_end[i].reason,
				 KVMFAULT_REASON_NO_ADDRESS);
	}
}

static void expect_stopped_hosts(void)
{
	unsigned int i;

	for (i = 0; i < HOSTS; i++)
		ck_assert_int_eq(host_end[i], SIGSEGV);
}

static void expect_nobody_stopped(void)
{
	unsigned int i;

	for (i = 0; i < VCPUS + HOSTS; i++)
		ck_assert_uint_ge(turns[i], 1);
	for (i = 0; i < VCPUS; i++)
		ck_assert_int_eq(guest_end[i].action, KVMFAULT_ACTION_NOT_A_FAULT);
	for (i = 0; i < HOSTS; i++)
		ck_assert_int_eq(host_end[i], 0);
}

/* ---- the states ---- */

enum state {
	NOTHING_ABSENT,		/* all pages fetched or discarded */
	UNTOUCHED,		/* absent, and nobody asks for them */
	IN_FLIGHT,		/* being fetched: the source is stopped */
	UNREAD,			/* nobody reads the messages */
	PARKED,			/* the source fails */
	STATES
};

static struct kvmfault_stats stats(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	ck_assert_int_eq(kvmfault_vm_stats(rig.vm, &stats), 0);
	return stats;
}

static void make_present(uint64_t page, uint64_t count)
{
	ck_assert_int_eq(kvmfault_ensure(rig.vm, 0, RAM + page * PAGE,
					 count * PAGE, false), 0);
}

static void set_up(int column)
{
	rig_new(&rig, column, VCPUS, PAGES, false);
	rig.apart = true;
	rig_track(&rig);
	rig_vcpus(&rig);
	catch_stops();
	make_present(FETCHED, GROUP);
	make_present(DISCARDED, GROUP / 2);
	ck_assert_int_eq(kvmfault_discard(rig.vm, 0, RAM + DISCARDED * PAGE,
					  GROUP * PAGE), 0);
}

static void await_message(const struct kvmfault_uffd *uffd)
{
	struct pollfd fd = {
		.fd = kvmfault_uffd_fd(uffd),
		.events = POLLIN,
	};

	ck_assert_int_eq(poll(&fd, 1, -1), 1);
}

/* Two vCPUs and two threads of the VMM's read what is there, the others ask for
 * what is not, and are in the state when this returns. */
static void begin(enum state state)
{
	const uint64_t there[] = {
		FETCHED, DISCARDED, FETCHED + 1, DISCARDED + 3,
	};
	const uint64_t absent[] = {
		FETCHED, DISCARDED, ABSENT, ABSENT + 1,
	};

	if (state == NOTHING_ABSENT)
		make_present(ABSENT, PAGES - ABSENT);
	if (state == IN_FLIGHT)
		rig_close_gate(&rig);
	if (state == PARKED)
		atomic_store(&rig.source_error, -EIO);
	if (state == UNREAD) {
		/* Of what is discarded no more messages are to come. */
		make_present(DISCARDED, GROUP);
		ck_assert_int_eq(kvmfault_service_free(rig.service), 0);
		rig.service = NULL;
	}
	start_readers(state <= UNTOUCHED ? there : absent);
	if (state == IN_FLIGHT)
		rig_await_gate(&rig, 2);
	if (state == PARKED)
		while (stats().deferred < 4)
			usleep(MOMENT);
	if (state == UNREAD) {
		await_message(rig.uffd);
		await_message(rig.uffd_b);
	}
	await_turns(0);
	await_turns(VCPUS);
}

static void heal(void)
{
	atomic_store(&rig.source_error, 0);
	rig_open_gate(&rig);
	if (!rig.service)
		rig_restart_service(&rig);
}

/* ---- from the VMM's side: the memory ---- */

static void *free_memory(void *arg)
{
	ck_assert_int_eq(kvmfault_memory_free(rig.memory), 0);
	return arg;
}

/* Waits for fetches in flight, and they for the source. */
static void free_memory_in_flight(void)
{
	pthread_t thread;

	ck_assert_int_eq(pthread_create(&thread, NULL, free_memory, NULL), 0);
	usleep(20 * MOMENT);
	rig_open_gate(&rig);
	pthread_join(thread, NULL);
}

TEST_GROUP(teardown, NULL, NULL);

TEST_EACH(teardown, memory_freed, COLUMNS * STATES)
{
	enum state state = _i / COLUMNS;
	unsigned int i;

	set_up(_i % COLUMNS);
	begin(state);
	ck_assert_int_eq(kvmfault_memory_free(rig.memory), -EBUSY);
	ck_assert_int_eq(kvmfault_region_remove(rig.vm, 0, RAM), 0);
	if (state == IN_FLIGHT)
		free_memory_in_flight();
	else
		free_memory(NULL);
	rig.memory = NULL;
	for (i = 0; state == NOTHING_ABSENT && i < VCPUS + HOSTS; i++)
		await_turns(i);
	if (state == NOTHING_ABSENT)
		atomic_store(&over, true);
	team_join(&team);
	if (state == NOTHING_ABSENT) {
		expect_nobody_stopped();
	} else {
		expect_stopped_guests();
		expect_stopped_hosts();
	}
	rig_free(&rig);
}

/* ---- from the other mapping's side ---- */

TEST_EACH(teardown, mapping_removed, COLUMNS * STATES)
{
	enum state state = _i / COLUMNS;
	unsigned int i;

	set_up(_i % COLUMNS);
	begin(state);
	ck_assert_int_eq(kvmfault_mapping_remove(rig.mapping), 0);
	/* The guest does not notice. */
	await_turns(0);
	heal();
	for (i = 0; i < VCPUS; i++)
		await_turns(i);
	for (i = 0; i < HOSTS; i++) {
		if (state == NOTHING_ABSENT)
			await_turns(VCPUS + i);
		else
			await_stop(i);
	}
	atomic_store(&over, true);
	team_join(&team);
	if (state == NOTHING_ABSENT)
		expect_nobody_stopped();
	else
		expect_stopped_hosts();
	for (i = 0; i < PAGES; i++)
		ck_assert_int_eq(guest_reads(0, i).action,
				 KVMFAULT_ACTION_NOT_A_FAULT);
	rig_free(&rig);
}

static int ends[2];

static void *write_from_b(void *arg)
{
	ssize_t n = write(ends[1], rig.b + ABSENT * PAGE, 8);

	ck_assert_int_eq(n, -1);
	ck_assert_int_eq(errno, EFAULT);
	return arg;
}

/* Asleep in a system call: it fails, and has written nothing. */
TEST_EACH(teardown, mapping_removed_under_a_system_call, COLUMNS)
{
	pthread_t thread;

	set_up(_i);
	ck_assert_int_eq(pipe(ends), 0);
	rig_close_gate(&rig);
	ck_assert_int_eq(pthread_create(&thread, NULL, write_from_b, NULL), 0);
	rig_await_gate(&rig, 1);
	ck_assert_int_eq(kvmfault_mapping_remove(rig.mapping), 0);
	pthread_join(thread, NULL);
	rig_open_gate(&rig);
	ck_assert_int_eq(guest_reads(0, ABSENT).action, KVMFAULT_ACTION_NOT_A_FAULT);
	rig_free(&rig);
}

/* ---- from the service's side ---- */

static void *free_service(void *arg)
{
	ck_assert_int_eq(kvmfault_service_free(rig.service), 0);
	return arg;
}

static void free_service_in_flight(void)
{
	pthread_t thread;

	ck_assert_int_eq(pthread_create(&thread, NULL, free_service, NULL), 0);
	usleep(20 * MOMENT);
	rig_open_gate(&rig);
	pthread_join(thread, NULL);
}

/* Nobody is lost between two services. */
TEST_EACH(teardown, service_replaced, COLUMNS * STATES)
{
	enum state state = _i / COLUMNS;
	unsigned int i;

	set_up(_i % COLUMNS);
	begin(state);
	if (state == IN_FLIGHT)
		free_service_in_flight();
	else
		free_service(NULL);
	rig.service = NULL;
	heal();
	for (i = 0; i < VCPUS + HOSTS; i++)
		await_turns(i);
	atomic_store(&over, true);
	team_join(&team);
	expect_nobody_stopped();
	rig_free(&rig);
}

/* ---- again and again, while all pages come ---- */

#define MANY 1024

static atomic_uint walking;

static void *walk(void *arg)
{
	unsigned int i, id = (unsigned int)(uintptr_t)arg;
	uint16_t order[MANY];

	rig_shuffle(order, MANY, id + 1);
	for (i = 0; i < MANY; i++) {
		uint64_t offset = order[i] * PAGE + 8 * id;
		uint64_t word = id < VCPUS ?
			rig_do(&rig, id, MACHINE_READ, RAM + offset, 8, 0) :
			*(volatile uint64_t *)(rig.b + offset);

		rig_same(word, rig_word(offset), "the word");
	}
	atomic_fetch_sub(&walking, 1);
	return NULL;
}

TEST_EACH(teardown, services_come_and_go, COLUMNS)
{
	unsigned int services = 0;
	uint64_t page;

	rig_new(&rig, _i, VCPUS, MANY, false);
	rig.apart = true;
	rig_track(&rig);
	rig_vcpus(&rig);
	atomic_store(&walking, VCPUS + 2);
	team_start(&team, VCPUS + 2, walk);
	for (; atomic_load(&walking); services++) {
		rig_restart_service(&rig);
		usleep(20 * MOMENT);
	}
	team_join(&team);
	for (page = 0; page < MANY; page++)
		ck_assert_uint_eq(rig.reads[page], 1);
	ck_assert_uint_ge(services, 2);
	rig_free(&rig);
}

#define ENDS 24
#define FEW 128

static void *walk_until_stopped(void *arg)
{
	unsigned int i, id = (unsigned int)(uintptr_t)arg;
	uint16_t order[FEW];
	bool on = true;

	rig_shuffle(order, FEW, id + 1);
	for (i = 0; i < FEW && on; i++) {
		uint64_t page = ABSENT + order[i];

		if (id < VCPUS)
			on = guest_reads(id, page).action ==
			     KVMFAULT_ACTION_NOT_A_FAULT;
		else
			on = !host_reads(rig.b, page);
	}
	return NULL;
}

/* Freed at any moment, while all pages come. */
TEST_EACH(teardown, memory_freed_in_the_middle, COLUMNS)
{
	unsigned int round, cut_short = 0;

	rig_new(&rig, _i, VCPUS, ABSENT + FEW, false);
	rig.apart = true;
	rig_track(&rig);
	rig_vcpus(&rig);
	catch_stops();
	for (round = 0; round < ENDS; round++) {
		uint64_t before = stats().fetched;

		team_start(&team, VCPUS + 2, walk_until_stopped);
		while (stats().fetched < before + FEW * round / ENDS)
			sched_yield();
		ck_assert_int_eq(kvmfault_region_remove(rig.vm, 0, RAM), 0);
		free_memory(NULL);
		rig.memory = NULL;
		team_join(&team);
		cut_short += stats().fetched < before + FEW;
		rig_renew(&rig);
	}
	ck_assert_uint_ge(cut_short, 1);
	rig_free(&rig);
}

int main(void)
{
	need("kvm");
	need("uffd");
	return run_suite("kvm teardown");
}
