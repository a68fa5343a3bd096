/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * vCPUs whose missing pages leave KVM_RUN, on a kernel that has one of the two
 * ABIs that were proposed for it, in both columns: that they do, each page once,
 * and that everybody reads what was there to be read, whatever else is going on:
 * threads of the VMM's, discards, the dirty log, the slot's flag switched off
 * and on, the mode left and entered.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvmfault-experimental.h"
#include "kvm-rig.h"
#include "lib/setup/setup.h"
#include "need.h"

#define PAGES 128
#define VCPUS 8
#define HOSTS 4			/* threads of the VMM's */
#define ROUNDS rig_rounds(24)

static struct rig rig;
static pthread_barrier_t together;
static atomic_uint walking;

/* The ABIs that this kernel has: for TEST_COUNTED(), in each column. */
static enum kvmfault__kernel_exit abis[2];
static unsigned int abi_count;

static void find_abis(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	enum kvmfault__kernel_exit which;
	unsigned int abi;

	for (abi = KVMFAULT__KERNEL_EXIT_USERFAULT;
	     abi <= KVMFAULT__KERNEL_EXIT_ON_MISSING; abi++) {
		use_exit_abi(abi);
		if (!kvmfault__kernel_exit_ask(kvm, &which) && which == abi)
			abis[abi_count++] = abi;
	}
	use_exit_abi(0);
	close(kvm);
	printf("# this kernel has %u of the 2\n", abi_count);
}

/* As a VMM does it, on every kernel alike. */
static void set_slot(uint32_t flags)
{
	struct kvmfault_memslot memslot = { .size = sizeof(memslot) };

	rig_same((uint64_t)kvmfault_region_memslot(rig.vm, 0, RAM, &memslot),
		 0, "memslot");
	rig_same((uint64_t)machine_set_userfault_slot(
			 rig.machine, SLOT, flags | memslot.flags, RAM,
			 rig.pages * PAGE, rig.a, memslot.userfault_bitmap),
		 0, "slot");
}

/* The same without the library's flags. */
static void set_plain_slot(uint32_t flags)
{
	rig_same((uint64_t)machine_set_slot(rig.machine, SLOT, flags, RAM,
					    rig.pages * PAGE, rig.a),
		 0, "slot");
}

static enum kvmfault__kernel_exit mode(int i)
{
	return abis[i / COLUMNS];
}

static void set_up(int i, bool huge)
{
	use_exit_abi(mode(i));
	rig_delivery = KVMFAULT_DELIVERY_KERNEL_EXIT;
	if (huge)
		rig_new_huge(&rig, i % COLUMNS, 1, 4);
	else
		rig_new(&rig, i % COLUMNS, VCPUS, PAGES, false);
	use_exit_abi(0);
	ck_assert_int_eq(rig.vm->how.kernel_exit, mode(i));
	rig.apart = true;
	rig_track(&rig);
	set_slot(0);
	rig_vcpus(&rig);
}

/* Its bitmap goes with the memory. */
static void renew(void)
{
	set_plain_slot(0);
	rig_renew(&rig);
	set_slot(0);
}

static struct kvmfault_stats stats(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	rig_same((uint64_t)kvmfault_vm_stats(rig.vm, &stats), 0, "stats");
	return stats;
}

static uint64_t exits(void)
{
	return stats().kind[KVMFAULT_KIND_EXIT];
}

static uint64_t messages(void)
{
	return stats().kind[KVMFAULT_KIND_UFFD];
}

static void guest_reads(unsigned int vcpu, uint64_t offset)
{
	rig_same(rig_do(&rig, vcpu, MACHINE_READ, RAM + offset, 8, 0),
		 rig_word(offset), "the guest's word");
}

static void host_reads(uint64_t offset)
{
	rig_same(*(volatile uint64_t *)(rig.b + offset), rig_word(offset),
		 "the host's word");
}

/* ---- all pages, by all ---- */

/* By vCPUs, and by threads of the VMM's, which have the numbers after them. In
 * even rounds all go the same way, in odd ones each its own. */
static void *all_pages_many_times(void *arg)
{
	unsigned int i, round, id = (unsigned int)(uintptr_t)arg;
	unsigned int page, rounds = ROUNDS;
	uint16_t order[PAGES];

	for (round = 0; round < rounds; round++) {
		rig_shuffle(order, PAGES, round % 2 ? round * 100 + id : round);
		pthread_barrier_wait(&together);
		for (i = 0; i < PAGES; i++) {
			uint64_t offset = order[i] * PAGE + 8 * id;

			if (id < VCPUS)
				guest_reads(id, offset);
			else
				host_reads(offset);
		}
		pthread_barrier_wait(&together);
		if (id)
			continue;
		for (page = 0; page < PAGES; page++)
			rig_same(rig.reads[page], 1, "reads");
		if (round + 1 < rounds)
			renew();
	}
	return NULL;
}

static void read_by(unsigned int count)
{
	struct team team;

	pthread_barrier_init(&together, NULL, count);
	team_start(&team, count, all_pages_many_times);
	team_join(&team);
	rig_restart_service(&rig);	/* and so all is counted */
	ck_assert_uint_eq(stats().fetched, (uint64_t)ROUNDS * PAGES);
	ck_assert_uint_eq(stats().existed, 0);
	ck_assert_uint_eq(stats().unresolved, 0);
	ck_assert_int_eq(atomic_load(&rig.unresolved), 0);
}

/* main() finds out how many times the cases of TEST_COUNTED() are run. */
static int each_abi;
static int each_huge;
static int with_bitmap;

TEST_GROUP(userfault, NULL, NULL);

/* Each page comes by an exit, and nobody sleeps. */
TEST_COUNTED(userfault, vcpus, each_abi)
{
	set_up(_i, false);
	read_by(VCPUS);
	ck_assert_uint_ge(exits(), (uint64_t)ROUNDS * PAGES);
	ck_assert_uint_eq(messages(), 0);
	rig_free(&rig);
}

TEST_COUNTED(userfault, vcpus_and_hosts, each_abi)
{
	set_up(_i, false);
	read_by(VCPUS + HOSTS);
	ck_assert_uint_ge(exits(), ROUNDS);
	rig_free(&rig);
}

TEST_COUNTED(userfault, huge_pages, each_huge)
{
	uint64_t offset, page = 0;

	set_up(_i, true);
	for (offset = 5 * PAGE; offset < rig.pages * PAGE; offset += HUGE / 2) {
		guest_reads(0, offset);
		rig_same(rig.reads[page / 2], 1, "reads");
		page++;
	}
	/* Once its bits are clear no other 4 KiB of a page exits. */
	ck_assert_uint_eq(exits(), rig.pages * PAGE / HUGE);
	ck_assert_uint_eq(messages(), 0);
	rig_free(&rig);
}

/* ---- discards ---- */

static void discard(uint64_t page)
{
	rig_same((uint64_t)kvmfault_discard(rig.vm, 0, RAM + page * PAGE, PAGE),
		 0, "discard");
}

/* Discarded pages exit as those do that never were there. */
TEST_COUNTED(userfault, discarded_pages, each_abi)
{
	uint64_t page;

	set_up(_i, false);
	for (page = 0; page < PAGES; page++)
		guest_reads(0, page * PAGE);
	ck_assert_uint_eq(exits(), PAGES);
	for (page = 0; page < PAGES; page += 2)
		discard(page);
	for (page = 0; page < PAGES; page++)
		rig_same(rig_do(&rig, 0, MACHINE_READ, RAM + page * PAGE, 8, 0),
			 page % 2 ? rig_word(page * PAGE) : 0, "a word");
	ck_assert_uint_eq(exits(), PAGES + PAGES / 2);
	ck_assert_uint_eq(messages(), 0);
	rig_free(&rig);
}

static void expect_word_or_zero(uint64_t word, uint64_t offset)
{
	if (word)
		rig_same(word, rig_word(offset), "a word that is not zero");
}

/* Anything: what the source had, or nothing any more. */
static void *walk(void *arg)
{
	unsigned int i, round, id = (unsigned int)(uintptr_t)arg;
	unsigned int rounds = rig_rounds(16);
	uint16_t order[PAGES];

	for (round = 0; round < rounds; round++) {
		rig_shuffle(order, PAGES, round * 100 + id + 1);
		for (i = 0; i < PAGES; i++) {
			uint64_t offset = order[i] * PAGE + 8 * id, word;

			if (id < VCPUS)
				word = rig_do(&rig, id, MACHINE_READ,
					      RAM + offset, 8, 0);
			else
				word = *(volatile uint64_t *)(rig.b + offset);
			expect_word_or_zero(word, offset);
		}
	}
	atomic_fetch_sub(&walking, 1);
	return NULL;
}

static void *discard_while_they_walk(void *arg)
{
	uint64_t state = (uintptr_t)arg + 1;

	while (atomic_load(&walking)) {
		discard(rig_random(&state) % PAGES);
		usleep(200);
	}
	return NULL;
}

/* Something else goes on until all have walked. */
static void while_they_walk(void (*something)(unsigned int turn))
{
	struct team walkers, discarders;
	unsigned int turn;
	uint64_t page;

	atomic_store(&walking, VCPUS + HOSTS);
	team_start(&walkers, VCPUS + HOSTS, walk);
	team_start(&discarders, 1, discard_while_they_walk);
	for (turn = 0; atomic_load(&walking); turn++) {
		something(turn);
		usleep(1000);
	}
	team_join(&walkers);
	team_join(&discarders);
	ck_assert_uint_ge(turn, 2);
	for (page = 0; page < PAGES; page++)
		ck_assert_uint_le(rig.reads[page], 1);
	ck_assert_uint_eq(stats().unresolved, 0);
	ck_assert_int_eq(atomic_load(&rig.unresolved), 0);
}

static void nothing(unsigned int turn)
{
	(void)turn;
}

TEST_COUNTED(userfault, discards_against_faults, each_abi)
{
	set_up(_i, false);
	while_they_walk(nothing);
	ck_assert_uint_ge(exits(), 1);
	ck_assert_uint_ge(stats().discarded, 1);
	rig_free(&rig);
}

/* ---- the slot's flag, and the dirty log's beside it ---- */

static void switch_flag(unsigned int turn)
{
	if (turn % 2)
		set_slot(0);
	else
		set_plain_slot(0);
}

TEST_COUNTED(userfault, flag_switched, each_abi)
{
	set_up(_i, false);
	while_they_walk(switch_flag);
	set_slot(0);
	discard(3);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, RAM + 3 * PAGE, 8, 0),
			  0);
	rig_free(&rig);
}

static void switch_both(unsigned int turn)
{
	uint32_t log = turn / 2 % 2 ? KVM_MEM_LOG_DIRTY_PAGES : 0;

	if (turn % 2)
		set_slot(log);
	else
		set_plain_slot(log);
}

static void read_log(uint64_t *log)
{
	struct kvm_dirty_log get = { .slot = SLOT, .dirty_bitmap = log };

	ck_assert_int_eq(ioctl(rig.machine->vm_fd, KVM_GET_DIRTY_LOG, &get), 0);
}

TEST_COUNTED(userfault, dirty_log_beside_it, each_abi)
{
	uint64_t before, log[PAGES / 64], page;

	set_up(_i, false);
	while_they_walk(switch_both);
	set_plain_slot(0);
	renew();
	set_slot(KVM_MEM_LOG_DIRTY_PAGES);
	read_log(log);
	before = exits();
	for (page = 0; page < PAGES; page += 3)
		rig_do(&rig, 0, MACHINE_WRITE, RAM + page * PAGE, 8, page);
	ck_assert_uint_eq(exits() - before, (PAGES + 2) / 3);
	read_log(log);
	for (page = 0; page < PAGES; page++)
		ck_assert_int_eq(log[page / 64] >> page % 64 & 1, page % 3 == 0);
	rig_free(&rig);
}

/* ---- the mode, left and entered ---- */

static void enter(void)
{
	ck_assert_int_eq(kvmfault_vm_set_delivery(
				 rig.vm, KVMFAULT_DELIVERY_KERNEL_EXIT), 0);
}

static void leave(void)
{
	ck_assert_int_eq(kvmfault_vm_set_delivery(
				 rig.vm, KVMFAULT_DELIVERY_UFFD), 0);
}

static void switch_mode(unsigned int turn)
{
	if (turn % 2)
		enter();
	else
		leave();
	/* A bitmap does by itself; with it the slot may stay as it is. */
	if (!rig.memory->userfault || turn / 2 % 2)
		set_slot(0);
}

TEST_COUNTED(userfault, left_and_entered, each_abi)
{
	uint64_t before;

	set_up(_i, false);
	while_they_walk(switch_mode);
	leave();
	set_slot(0);
	discard(3);
	before = exits();
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, RAM + 3 * PAGE, 8, 0),
			  0);
	ck_assert_uint_eq(exits(), before);
	enter();
	set_slot(0);
	discard(3);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, RAM + 3 * PAGE, 8, 0),
			  0);
	ck_assert_uint_eq(exits(), before + 1);
	rig_free(&rig);
}

/* ---- a bitmap that KVM can't read ---- */

TEST_COUNTED(userfault, unreadable_bitmap, with_bitmap)
{
	struct outcome outcome;
	void *bitmap;

	set_up(_i, false);
	bitmap = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		      0);
	set_plain_slot(0);
	ck_assert_int_eq(machine_set_userfault_slot(
				 rig.machine, SLOT, 1 << 3, RAM,
				 rig.pages * PAGE, rig.a, (uintptr_t)bitmap),
			 0);
	outcome = rig_call(&rig, 0, MACHINE_READ, RAM, 8, 0);
	ck_assert_int_eq(outcome.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(outcome.reason, KVMFAULT_REASON_NO_ADDRESS);
	ck_assert_uint_eq(stats().fetched, 0);
	rig_free(&rig);
}

int main(void)
{
	need("kvm");
	need("uffd");
	need("userfault");
	find_abis();
	each_abi = COLUMNS * (int)abi_count;
	each_huge = have("hugetlb", lacks("hugetlb")) ? each_abi : 0;
	if (abis[0] == KVMFAULT__KERNEL_EXIT_USERFAULT)
		with_bitmap = COLUMNS;
	return run_suite("kvm userfault");
}
