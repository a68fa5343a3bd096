/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Tracked RAM under real vCPUs, in both columns: every page comes once and is
 * right, whoever asks; what fails says so, and nobody ever reads a zero page in
 * the place of one that has data.
 */

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvm-rig.h"
#include "need.h"

#define PAGES 512

static struct rig rig;

static void tracked(int column, unsigned int vcpus)
{
	rig_new(&rig, column, vcpus, PAGES, false);
	rig_track(&rig);
	rig_vcpus(&rig);
}

/* The service counts a page a moment after it woke who waits for it: when its
 * threads are gone, all is counted. */
static struct kvmfault_stats stats(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	rig_restart_service(&rig);
	ck_assert_int_eq(kvmfault_vm_stats(rig.vm, &stats), 0);
	return stats;
}

static void expect_each_read_once(uint64_t pages)
{
	uint64_t page;

	for (page = 0; page < pages; page++)
		ck_assert_uint_eq(rig.reads[page], 1);
	ck_assert_uint_eq(stats().fetched, pages);
}

TEST_GROUP(ram, NULL, NULL);

TEST_EACH(ram, one_page, COLUMNS)
{
	tracked(_i, 1);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, RAM + 8, 8, 0),
			  rig_word(8));
	expect_each_read_once(1);
	ck_assert_uint_eq(stats().kind[KVMFAULT_KIND_UFFD], 1);
	ck_assert_int_eq(rig.changes[KVMFAULT_CAUSE_FETCH], 1);
	rig_free(&rig);
}

TEST_EACH(ram, a_write_keeps_the_rest_of_the_page, COLUMNS)
{
	tracked(_i, 1);
	rig_do(&rig, 0, MACHINE_WRITE, RAM + 16, 8, 5);
	ck_assert_uint_eq(*(uint64_t *)(rig.b + 16), 5);
	ck_assert_uint_eq(*(uint64_t *)(rig.b + 8), rig_word(8));
	ck_assert_uint_eq(*(uint64_t *)(rig.b + 24), rig_word(24));
	rig_free(&rig);
}

struct crowd {
	pthread_t thread;
	unsigned int id;
};

#define SHARED rig_rounds(PAGES)	/* pages that all of them touch */

static pthread_barrier_t together;

static void *read_shared_pages(void *arg)
{
	struct crowd *one = arg;
	uint64_t page;

	for (page = 0; page < SHARED; page++) {
		pthread_barrier_wait(&together);
		ck_assert_uint_eq(rig_do(&rig, one->id, MACHINE_READ,
					 RAM + page * PAGE + 8 * one->id, 8,
					 0),
				  rig_word(page * PAGE + 8 * one->id));
	}
	return NULL;
}

static void *touch_shared_pages(void *arg)
{
	uint64_t page;

	for (page = 0; page < SHARED; page++) {
		pthread_barrier_wait(&together);
		ck_assert_uint_eq(*(volatile uint64_t *)(rig.b + page * PAGE),
				  rig_word(page * PAGE));
	}
	return arg;
}

/* Many vCPUs and a thread of the VMM's, on the same page at the same time. */
TEST_EACH(ram, many_on_the_same_page, COLUMNS)
{
	enum { VCPUS = 12 };
	struct crowd crowd[VCPUS + 1];
	unsigned int i;

	tracked(_i, VCPUS);
	pthread_barrier_init(&together, NULL, VCPUS + 1);
	for (i = 0; i <= VCPUS; i++) {
		crowd[i].id = i;
		ck_assert_int_eq(pthread_create(&crowd[i].thread, NULL,
						i < VCPUS ? read_shared_pages :
						touch_shared_pages,
						&crowd[i]), 0);
	}
	for (i = 0; i <= VCPUS; i++)
		pthread_join(crowd[i].thread, NULL);
	expect_each_read_once(SHARED);
	rig_free(&rig);
}

TEST_EACH(ram, ensured_pages_do_not_fault, COLUMNS)
{
	struct kvmfault_stats before;

	tracked(_i, 1);
	ck_assert_int_eq(kvmfault_ensure(rig.vm, 0, RAM + 100, 3 * PAGE, false),
			 0);
	expect_each_read_once(4);
	before = stats();
	ck_assert_uint_eq(before.kind[KVMFAULT_KIND_CALL], 1);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, RAM + 3 * PAGE, 8, 0),
			  rig_word(3 * PAGE));
	ck_assert_uint_eq(stats().kind[KVMFAULT_KIND_UFFD],
			  before.kind[KVMFAULT_KIND_UFFD]);
	ck_assert_int_eq(kvmfault_ensure(rig.vm, 0, RAM + PAGES * PAGE - 8, 16,
					 false), -ENXIO);
	rig_free(&rig);
}

/* Discarded before and after it was fetched: zero, and never the source. */
TEST_EACH(ram, discarded_pages_read_as_zero, COLUMNS)
{
	tracked(_i, 1);
	rig_do(&rig, 0, MACHINE_READ, RAM, 8, 0);
	ck_assert_int_eq(kvmfault_discard(rig.vm, 0, RAM, 2 * PAGE), 0);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, RAM, 8, 0), 0);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, RAM + PAGE, 8, 0), 0);
	ck_assert_uint_eq(rig.reads[0], 1);
	ck_assert_uint_eq(rig.reads[1], 0);
	/* A late message may have had a page back before the discard ended,
	 * which then took it once more. */
	ck_assert_uint_ge(stats().zeroed, 2);
	ck_assert_uint_ge(stats().discarded, 2);
	rig_do(&rig, 0, MACHINE_WRITE, RAM, 8, 9);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, RAM, 8, 0), 9);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, RAM + 2 * PAGE, 8, 0),
			  rig_word(2 * PAGE));
	rig_free(&rig);
}

static atomic_bool enough;
static atomic_uint laps;

/* Every fourth page was discarded. */
static void *read_on(void *arg)
{
	uint64_t page;

	for (page = 0; !atomic_load(&enough); page = (page + 1) % PAGES) {
		rig_same(rig_do(&rig, 0, MACHINE_READ, RAM + page * PAGE, 8, 0),
			 page % 4 ? rig_word(page * PAGE) : 0, "a word");
		atomic_fetch_add(&laps, !page);
	}
	return arg;
}

static void await_laps(unsigned int more)
{
	unsigned int until = atomic_load(&laps) + more;

	while (atomic_load(&laps) < until)
		usleep(1000);
}

/* A vCPU runs on while its memory is left to the kernel; then nothing of it is a
 * fault any more. */
TEST_EACH(ram, settled_under_a_vcpu, COLUMNS)
{
	struct kvmfault_stats before, after;
	pthread_t thread;
	uint64_t page;
	int err;

	tracked(_i, 1);
	atomic_store(&enough, false);
	ck_assert_int_eq(kvmfault_memory_settle(rig.memory, NULL), -EBUSY);
	ck_assert_int_eq(kvmfault_ensure(rig.vm, 0, RAM, PAGES * PAGE, false),
			 0);
	for (page = 0; page < PAGES; page += 4)
		ck_assert_int_eq(kvmfault_discard(rig.vm, 0, RAM + page * PAGE,
						  PAGE), 0);
	ck_assert_int_eq(pthread_create(&thread, NULL, read_on, NULL), 0);
	do
		err = kvmfault_memory_settle(rig.memory, NULL);
	while (err == -EBUSY);
	ck_assert_int_eq(err, 0);
	before = stats();
	await_laps(2);
	after = stats();
	ck_assert_mem_eq(after.kind, before.kind, sizeof(after.kind));
	ck_assert_int_eq(kvmfault_discard(rig.vm, 0, RAM, PAGE), 0);
	await_laps(2);
	atomic_store(&enough, true);
	pthread_join(thread, NULL);
	rig_free(&rig);
}

static void *heal(void *arg)
{
	while (!atomic_load(&rig.unresolved))
		usleep(1000);
	atomic_store(&rig.source_error, 0);
	return arg;
}

/* The source fails for a while: the VMM is told once, the vCPU sleeps and
 * loses nothing. */
TEST_EACH(ram, a_source_that_fails_and_heals, COLUMNS)
{
	pthread_t thread;

	tracked(_i, 1);
	atomic_store(&rig.source_error, -EIO);
	ck_assert_int_eq(pthread_create(&thread, NULL, heal, NULL), 0);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, RAM, 8, 0),
			  rig_word(0));
	pthread_join(thread, NULL);
	ck_assert_int_eq(rig.unresolved, 1);
	ck_assert_uint_ge(rig.reads[0], 4);
	ck_assert_uint_ge(stats().deferred, 3);
	rig_free(&rig);
}

struct victim {
	pthread_t thread;
	struct outcome outcome;
};

static void *read_doomed(void *arg)
{
	struct victim *victim = arg;

	victim->outcome = rig_call(&rig, 0, MACHINE_READ, RAM, 8, 0);
	return NULL;
}

/* The VMM gives up while a vCPU sleeps on a page that never came. */
TEST_EACH(ram, teardown_with_absent_pages, COLUMNS)
{
	struct victim victim;

	tracked(_i, 1);
	atomic_store(&rig.source_error, -EIO);
	ck_assert_int_eq(pthread_create(&victim.thread, NULL, read_doomed,
					&victim), 0);
	while (!atomic_load(&rig.unresolved))
		usleep(1000);
	ck_assert_int_eq(kvmfault_service_free(rig.service), 0);
	ck_assert_int_eq(kvmfault_memory_free(rig.memory), -EBUSY);
	ck_assert_int_eq(kvmfault_region_remove(rig.vm, 0, RAM), 0);
	ck_assert_int_eq(kvmfault_memory_free(rig.memory), 0);
	pthread_join(victim.thread, NULL);
	ck_assert_int_eq(victim.outcome.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(victim.outcome.reason, KVMFAULT_REASON_NO_ADDRESS);
	rig.service = NULL;
	rig.memory = NULL;
	rig_free(&rig);
}

/* Regions come and go under running vCPUs; only the memslot is the truth. */
static atomic_bool churning;

static void *churn(void *arg)
{
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = RAM + (128ULL << 30),
		.length = PAGE,
		.memory = rig.memory,
	};

	while (atomic_load(&churning)) {
		rig_same((uint64_t)kvmfault_region_add(rig.vm, &region), 0,
			 "add");
		rig_same((uint64_t)kvmfault_region_remove(rig.vm, 0,
							  region.gpa), 0,
			 "remove");
	}
	return arg;
}

TEST_EACH(ram, regions_change_under_vcpus, COLUMNS)
{
	enum { VCPUS = 8 };
	struct crowd crowd[VCPUS];
	pthread_t churner;
	unsigned int i;

	tracked(_i, VCPUS);
	atomic_store(&churning, true);
	ck_assert_int_eq(pthread_create(&churner, NULL, churn, NULL), 0);
	pthread_barrier_init(&together, NULL, VCPUS);
	for (i = 0; i < VCPUS; i++) {
		crowd[i].id = i;
		ck_assert_int_eq(pthread_create(&crowd[i].thread, NULL,
						read_shared_pages, &crowd[i]), 0);
	}
	for (i = 0; i < VCPUS; i++)
		pthread_join(crowd[i].thread, NULL);
	atomic_store(&churning, false);
	pthread_join(churner, NULL);
	expect_each_read_once(SHARED);
	rig_free(&rig);
}

int main(void)
{
	need("kvm");
	need("uffd");
	return run_suite("kvm ram");
}
