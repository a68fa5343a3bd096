/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Delivery by markers on real vCPUs, in both columns and with both ways of
 * SIGBUS: the pages come on the vCPUs' own threads, once each, whatever the
 * VMM's threads, signals, discards and the mode's being left do meanwhile; and no
 * interrupt and no instruction is lost.
 */

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kvm-rig.h"
#include "need.h"

#define PAGES 512
#define VCPUS 4
#define HOSTS 2
#define WAYS_OF_SIGBUS 2
#define BOTH (COLUMNS * WAYS_OF_SIGBUS)	/* for TEST_EACH() */

static struct rig rig;
static pthread_barrier_t together;
static atomic_bool over;

static void set_up(int i, unsigned int vcpus)
{
	rig_delivery = KVMFAULT_DELIVERY_MARKER_EXIT;
	rig_sigbus = i / COLUMNS;
	rig_new(&rig, i % COLUMNS, vcpus, PAGES, false);
	rig.apart = true;
	rig_track(&rig);
	rig_vcpus(&rig);
}

static struct kvmfault_stats stats(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	rig_restart_service(&rig);	/* and so all is counted */
	rig_same((uint64_t)kvmfault_vm_stats(rig.vm, &stats), 0, "stats");
	return stats;
}

static void guest_reads(unsigned int vcpu, uint64_t page)
{
	uint64_t offset = page * PAGE + 8 * vcpu;

	rig_same(rig_do(&rig, vcpu, MACHINE_READ, RAM + offset, 8, 0),
		 rig_word(offset), "the guest's word");
}

static void host_reads(uint64_t page)
{
	uint64_t offset = page * PAGE + 512;

	rig_same(*(volatile uint64_t *)(rig.b + offset), rig_word(offset),
		 "the host's word");
}

/* ---- exits in the place of messages ---- */

/* main() finds out how many times the cases of TEST_COUNTED() are run. */
static int huge;

TEST_GROUP(marker, NULL, NULL);

TEST_EACH(marker, pages_come_by_markers, BOTH)
{
	struct kvmfault_stats now;
	uint64_t page;

	set_up(_i, 1);
	for (page = 0; page < PAGES; page++)
		guest_reads(0, page * 7 % PAGES);
	now = stats();
	ck_assert_uint_eq(now.fetched, PAGES);
	ck_assert_uint_eq(now.existed, 0);
	/* 4 MiB are not full: one stretch. */
	ck_assert_uint_eq(now.kind[KVMFAULT_KIND_UFFD], 1);
	/* And if a timer has woken the vCPU before its first page came, it has
	 * met a marker there too. */
	ck_assert_uint_ge(now.kind[KVMFAULT_KIND_MARKER], PAGES - 1);
	ck_assert_uint_eq(now.marked, PAGES);
	for (page = 0; page < PAGES; page++)
		ck_assert_uint_eq(rig.reads[page], 1);
	rig_free(&rig);
}

TEST_EACH(marker, reads_and_writes_of_all_kinds, BOTH)
{
	set_up(_i, 1);
	guest_reads(0, 0);
	rig_do(&rig, 0, MACHINE_WRITE, RAM + PAGE, 8, 4711);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_EXCHANGE, RAM + 2 * PAGE, 1,
				 0), rig_word(2 * PAGE));
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_ADD, RAM + 3 * PAGE, 1, 0),
			  rig_word(3 * PAGE));
	/* Over a page's end, one instruction. */
	rig_do(&rig, 0, MACHINE_COPY, RAM + 8 * PAGE - 64, RAM + 6 * PAGE - 64,
	       128);
	ck_assert_uint_eq(*(uint64_t *)(rig.b + PAGE), 4711);
	ck_assert_uint_eq(*(uint64_t *)(rig.b + PAGE + 8), rig_word(PAGE + 8));
	ck_assert_uint_eq(*(uint64_t *)(rig.b + 2 * PAGE), 1);
	ck_assert_uint_eq(*(uint64_t *)(rig.b + 3 * PAGE),
			  rig_word(3 * PAGE) + 1);
	ck_assert_mem_eq(rig.b + 8 * PAGE - 64, rig.b + 6 * PAGE - 64, 128);
	rig_free(&rig);
}

static void *everybody_reads(void *arg)
{
	unsigned int i, round, id = (unsigned int)(uintptr_t)arg;
	uint16_t order[PAGES];

	for (round = 0; round < rig_rounds(8); round++) {
		rig_shuffle(order, PAGES, round % 2 ? round * 100 + id : round);
		pthread_barrier_wait(&together);
		for (i = 0; i < PAGES; i++) {
			if (id < VCPUS)
				guest_reads(id, order[i]);
			else
				host_reads(order[i]);
		}
		pthread_barrier_wait(&together);
		if (!id && round + 1 < rig_rounds(8))
			rig_renew(&rig);
	}
	return NULL;
}

TEST_EACH(marker, with_the_vmms_threads, BOTH)
{
	struct kvmfault_stats now;
	struct team team;
	uint64_t page;

	set_up(_i, VCPUS);
	pthread_barrier_init(&together, NULL, VCPUS + HOSTS);
	team_start(&team, VCPUS + HOSTS, everybody_reads);
	team_join(&team);
	now = stats();
	ck_assert_uint_eq(now.fetched, rig_rounds(8) * PAGES);
	ck_assert_uint_eq(now.existed, 0);
	ck_assert_uint_eq(now.unresolved, 0);
	ck_assert_uint_gt(now.kind[KVMFAULT_KIND_MARKER], 0);
	for (page = 0; page < PAGES; page++)
		ck_assert_uint_eq(rig.reads[page], 1);
	rig_free(&rig);
}

TEST_EACH(marker, discarded_and_marked_again, BOTH)
{
	uint64_t page;

	set_up(_i, 1);
	for (page = 0; page < 64; page++)
		guest_reads(0, page);
	ck_assert_int_eq(kvmfault_discard(rig.vm, 0, RAM, 128 * PAGE), 0);
	for (page = 0; page < 128; page++)
		ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ,
					 RAM + page * PAGE, 8, 0), 0);
	guest_reads(0, 128);
	/* One message: what was present before has lost its marker. */
	ck_assert_uint_eq(stats().kind[KVMFAULT_KIND_UFFD], 2);
	ck_assert_uint_eq(stats().zeroed, 128);
	rig_free(&rig);
}

TEST_COUNTED(marker, huge_pages, huge)
{
	uint64_t page;

	rig_delivery = KVMFAULT_DELIVERY_MARKER_EXIT;
	rig_sigbus = _i / COLUMNS;
	rig_new_huge(&rig, _i % COLUMNS, 1, 4);
	rig.apart = true;
	rig_track(&rig);
	rig_vcpus(&rig);
	for (page = 0; page < 4; page++)
		guest_reads(0, page * HUGE / PAGE + 5);
	ck_assert_uint_eq(stats().kind[KVMFAULT_KIND_UFFD], 1);
	ck_assert_uint_ge(stats().kind[KVMFAULT_KIND_MARKER], 3);
	rig_free(&rig);
}

/* ---- the mode ---- */

static void *leave_and_return(void *unused)
{
	while (!atomic_load(&over)) {
		rig_same((uint64_t)kvmfault_vm_set_delivery(rig.vm,
				KVMFAULT_DELIVERY_UFFD), 0, "leave");
		usleep(1000);
		rig_same((uint64_t)kvmfault_vm_set_delivery(rig.vm,
				KVMFAULT_DELIVERY_MARKER_EXIT), 0, "return");
		usleep(1000);
	}
	return unused;
}

TEST_EACH(marker, left_and_taken_up_while_vcpus_run, BOTH)
{
	struct team team;
	pthread_t thread;

	set_up(_i, VCPUS);
	pthread_barrier_init(&together, NULL, VCPUS + HOSTS);
	ck_assert_int_eq(pthread_create(&thread, NULL, leave_and_return, NULL),
			 0);
	team_start(&team, VCPUS + HOSTS, everybody_reads);
	team_join(&team);
	atomic_store(&over, true);
	pthread_join(thread, NULL);
	ck_assert_uint_eq(stats().fetched, rig_rounds(8) * PAGES);
	ck_assert_uint_eq(stats().unresolved, 0);
	rig_free(&rig);
}

TEST_EACH(marker, after_it_was_left_all_are_messages, BOTH)
{
	uint64_t page, before;

	set_up(_i, 1);
	guest_reads(0, 0);
	ck_assert_int_eq(kvmfault_vm_set_delivery(rig.vm,
						  KVMFAULT_DELIVERY_UFFD), 0);
	before = stats().kind[KVMFAULT_KIND_MARKER];
	for (page = 1; page < PAGES; page++)
		guest_reads(0, page);
	ck_assert_uint_eq(stats().kind[KVMFAULT_KIND_MARKER], before);
	rig_free(&rig);
}

/* ---- signals ---- */

TEST_EACH(marker, vcpu_without_sigbus_is_refused, BOTH)
{
	struct kvmfault_vcpu_options options = { .size = sizeof(options) };
	struct kvmfault_vcpu *vcpu;
	sigset_t set;

	set_up(_i, 1);
	options.fd = rig.machine->vcpu[0].fd;
	options.run = rig.machine->vcpu[0].run;
	options.sigbus = rig_sigbus;
	sigemptyset(&set);
	sigaddset(&set, SIGBUS);
	ck_assert_int_eq(pthread_sigmask(rig_sigbus == KVMFAULT_SIGBUS_MASKED ?
					 SIG_UNBLOCK : SIG_BLOCK, &set, NULL),
			 0);
	ck_assert_int_eq(kvmfault_vcpu_new(rig.vm, &options, &vcpu), -EINVAL);
	rig_free(&rig);
}

/* One that somebody sends, and that is no fault at all. */
TEST_EACH(marker, anothers_sigbus_is_handed_on, COLUMNS)
{
	struct outcome outcome;
	const siginfo_t *info;

	set_up(_i % COLUMNS, 1);
	pthread_kill(pthread_self(), SIGBUS);
	outcome = rig_call(&rig, 0, MACHINE_SPIN, 0, 0, 0);
	ck_assert_int_eq(outcome.action, KVMFAULT_ACTION_INTERRUPTED);
	info = kvmfault_vcpu_result(rig.vcpu[0])->siginfo;
	ck_assert_ptr_nonnull(info);
	ck_assert_int_eq(info->si_code, SI_TKILL);
	guest_reads(0, 3);
	rig_free(&rig);
}

/* ---- nothing is lost ---- */

static atomic_uint_fast64_t sent;
static pthread_t walker;

/* Each after the one before was taken: what is lost is waited for. */
static void *interrupt(void *unused)
{
	while (!atomic_load(&over)) {
		rig_same((uint64_t)machine_interrupt(rig.machine, 0), 0,
			 "send an interrupt");
		atomic_fetch_add(&sent, 1);
		while (machine_interrupts(rig.machine, 0) <
		       atomic_load(&sent) && !atomic_load(&over))
			usleep(100);
	}
	return unused;
}

static void *kick_at_random(void *unused)
{
	uint64_t state = 4711;

	while (!atomic_load(&over)) {
		usleep((useconds_t)(rig_random(&state) % 2000));
		pthread_kill(walker, KICK);
	}
	return unused;
}

static void nothing(int signal)
{
	(void)signal;
}

static uint64_t sum_of(uint64_t page)
{
	uint64_t sum = MACHINE_SCAN_SEED, at;

	for (at = 0; at < PAGE; at += 8)
		sum = ((sum << 5 | sum >> 59) ^ rig_word(page * PAGE + at)) *
		      MACHINE_SCAN_MUL;
	return sum;
}

/* All of RAM once: what the guest has computed is what there is. */
static void walk(void)
{
	struct machine_scan *job = machine_scan_job(rig.machine, 0);
	uint64_t page, checksum = 0;

	*job = (struct machine_scan){
		.base = RAM, .pages = PAGES, .stride = 7, .count = PAGES,
	};
	rig_do(&rig, 0, MACHINE_SCAN, 0, 0, 0);
	for (page = 0; page < PAGES; page++) {
		checksum += sum_of(page) ^ page * MACHINE_SCAN_MUL;
		rig_same(*(uint64_t *)(rig.b + page * PAGE + 4088),
			 sum_of(page), "the guest's mark");
	}
	rig_same(job->progress, PAGES, "pages");
	rig_same(job->checksum, checksum, "the checksum");
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* KVMFAULT_TEST_SECONDS; what is begun by then is done. */
static double how_long(void)
{
	const char *text = getenv("KVMFAULT_TEST_SECONDS");

	return text ? atof(text) : 2;
}

TEST_GROUP(lost, NULL, NULL);

TEST_EACH(lost, no_interrupt_and_no_instruction_is_lost, WAYS_OF_SIGBUS)
{
	struct sigaction action = { .sa_handler = nothing };
	double end = seconds() + how_long();
	unsigned int walks = 0;
	pthread_t threads[2];

	set_up(1 + COLUMNS * _i, 1);	/* with an interrupt controller */
	if (machine_interrupt(rig.machine, 0) == -EOPNOTSUPP) {
		rig_free(&rig);
		return;
	}
	ck_assert_int_eq(sigaction(KICK, &action, NULL), 0);
	walker = pthread_self();
	ck_assert_int_eq(pthread_create(&threads[0], NULL, interrupt, NULL), 0);
	ck_assert_int_eq(pthread_create(&threads[1], NULL, kick_at_random,
					NULL), 0);
	do {
		if (walks++)
			rig_renew(&rig);
		walk();
	} while (seconds() < end);
	atomic_store(&over, true);
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	/* The last one may still be on its way. */
	while (machine_interrupts(rig.machine, 0) < atomic_load(&sent))
		rig_do(&rig, 0, MACHINE_SPIN, 1000, 0, 0);
	ck_assert_uint_eq(machine_interrupts(rig.machine, 0),
			  atomic_load(&sent));
	ck_assert_uint_gt(atomic_load(&sent), 0);
	ck_assert_uint_gt(machine_ticks(rig.machine, 0), 0);
	ck_assert_uint_eq(stats().unresolved, 0);
	ck_assert_uint_gt(stats().kind[KVMFAULT_KIND_MARKER], 0);
	printf("# %u walks, %llu interrupts, %llu ticks\n", walks,
	       (unsigned long long)atomic_load(&sent),
	       (unsigned long long)machine_ticks(rig.machine, 0));
	rig_free(&rig);
}

int main(void)
{
	need("kvm");
	need("uffd");
	huge = have("hugetlb", lacks("hugetlb")) ? BOTH : 0;
	group_lost.seconds = HANG + how_long() * 4;
	return run_suite("kvm-marker");
}
