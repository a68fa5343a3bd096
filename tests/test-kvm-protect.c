/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Live snapshots of a VM that goes on, in both columns: vCPUs and threads of the
 * VMM write everywhere while the memory, some of it not fetched yet, is saved as
 * it was at one instant. What is saved is compared word by word with what was
 * there then, each page is saved once, and in the end nothing is protected.
 */

#include <sched.h>
#include <string.h>

#include "kvm-rig.h"
#include "need.h"

#define VCPUS 8
#define THREADS 2
#define WRITERS (VCPUS + THREADS)
#define PAGES 256
#define HUGE_PAGES 3
#define ROUNDS 8

enum { SHMEM, MINOR, HUGETLB, KINDS };

static struct rig rig;
static uint64_t size;			/* of a page of the memory */

/* What every writer has written: where, nobody else writes. */
static uint64_t written[PAGES * WRITERS], then[PAGES * WRITERS];
static uint64_t stride;			/* from one place to the next */
static pthread_rwlock_t running;	/* held for writing: all stand still */
static atomic_bool stop;

static char *saved;
static _Atomic uint32_t saves[PAGES];

static int save(void *data, struct kvmfault_request *request)
{
	uint64_t page = request->offset / size;

	(void)data;
	if (request->page != KVMFAULT_PAGE_PROTECTED)
		return KVMFAULT_VERDICT_DECLINED;
	rig_same(request->length, size, "what is to be saved");
	memcpy(saved + request->offset, request->host, request->length);
	atomic_fetch_add(&saves[page], 1);
	return KVMFAULT_VERDICT_RESOLVED;
}

static void up(int column, int kind, bool supervisor)
{
	pthread_rwlockattr_t attr;

	if (kind == HUGETLB)
		rig_new_huge(&rig, column, VCPUS, HUGE_PAGES);
	else
		rig_new(&rig, column, VCPUS, PAGES, supervisor);
	size = rig.page_size;
	stride = rig.pages * PAGE / PAGES;
	rig.apart = true;
	rig.minor = kind == MINOR;
	rig.write_protect = true;
	rig_resolver(&rig, save);
	rig_track(&rig);
	rig_vcpus(&rig);
	saved = calloc(rig.pages, PAGE);
	pthread_rwlockattr_init(&attr);
	/* Or those who write would never stand still. */
	pthread_rwlockattr_setkind_np(&attr,
		PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&running, &attr);
}

static void down(void)
{
	free(saved);
	rig_free(&rig);
}

static struct kvmfault_stats stats(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	ck_assert_int_eq(kvmfault_vm_stats(rig.vm, &stats), 0);
	return stats;
}

/* The writer's own word in the place, which begins as the source's. */
static uint64_t at(unsigned int place, unsigned int writer)
{
	return place * stride + 64 + 8 * writer;
}

static void write_word(unsigned int place, unsigned int writer, uint64_t word)
{
	uint64_t offset = at(place, writer);

	if (writer < VCPUS)
		rig_do(&rig, writer, MACHINE_WRITE, RAM + offset, 8, word);
	else
		*(volatile uint64_t *)(rig.b + offset) = word;
	written[place * WRITERS + writer] = word;
}

static void *keep_writing(void *arg)
{
	unsigned int writer = (unsigned int)(uintptr_t)arg;
	uint64_t state = writer + 1, word = 0;

	while (!atomic_load(&stop)) {
		unsigned int place = rig_random(&state) % PAGES;

		pthread_rwlock_rdlock(&running);
		write_word(place, writer, ++word << 8 | writer);
		pthread_rwlock_unlock(&running);
	}
	return NULL;
}

static uint64_t expected(const uint64_t *words, uint64_t offset)
{
	unsigned int place = (unsigned int)(offset / stride);
	uint64_t writer = (offset % stride - 64) / 8;
	uint64_t word = 0;

	if (offset % stride >= 64 && writer < WRITERS)
		word = words[place * WRITERS + writer];
	return word ? word : rig_word(offset);
}

static void expect_all(const char *memory, const uint64_t *words,
		       const char *what)
{
	uint64_t offset;

	for (offset = 0; offset < rig.pages * PAGE; offset += 8)
		rig_same(*(const uint64_t *)(memory + offset),
			 expected(words, offset), what);
}

static void begin(void)
{
	pthread_rwlock_wrlock(&running);
	/* Before: a message of a write that is read late has a page saved at
	 * once, also while this goes on. */
	memset(saves, 0, sizeof(saves));
	ck_assert_int_eq(kvmfault_protect(rig.vm, 0, RAM, rig.pages * PAGE), 0);
	memcpy(then, written, sizeof(then));
	pthread_rwlock_unlock(&running);
}

static void sweep(void)
{
	uint64_t offset;

	for (offset = 0; offset < rig.pages * PAGE; offset += size)
		ck_assert_int_eq(kvmfault_ensure(rig.vm, 0, RAM + offset, size,
						 true), 0);
}

/* Where somebody goes on a late message may have a page saved while it is being
 * protected, and then it is saved once more. */
static void expect_each_saved(bool quiet)
{
	uint64_t page;

	for (page = 0; page < rig.pages * PAGE / size; page++)
		if (quiet || atomic_load(&saves[page]) != 2)
			rig_same(atomic_load(&saves[page]), 1,
				 "how often it is saved");
}

/* main() finds out how many times the cases of TEST_COUNTED() are run. */
static int each_kind;
static int each_way;

TEST_GROUP_FOR(protect, NULL, NULL, 2 * HANG);

TEST_COUNTED(protect, snapshots_of_what_goes_on, each_kind)
{
	unsigned int round, rounds = rig_rounds(ROUNDS);
	struct team writers;
	uint64_t before;

	up(_i % COLUMNS, _i / COLUMNS, false);
	atomic_store(&stop, false);
	team_start(&writers, WRITERS, keep_writing);
	for (round = 0; round < rounds; round++) {
		begin();
		sweep();
		expect_each_saved(false);
		expect_all(saved, then, "the snapshot");
	}
	atomic_store(&stop, true);
	team_join(&writers);
	sweep();
	before = stats().page[KVMFAULT_PAGE_PROTECTED];
	ck_assert_uint_ge(before, rounds * (rig.pages * PAGE / size));
	expect_all(rig.b, written, "the memory");
	expect_all(rig.a, written, "the memory");
	ck_assert_int_eq(rig.unresolved, 0);
	down();
}

/* One that is given up while everybody is at it. */
TEST_COUNTED(protect, given_up, each_kind)
{
	unsigned int place, writer, round;
	struct team writers;
	uint64_t asked, came;

	up(_i % COLUMNS, _i / COLUMNS, false);
	atomic_store(&stop, false);
	team_start(&writers, WRITERS, keep_writing);
	for (round = 0; round < rig_rounds(ROUNDS); round++) {
		begin();
		while (!stats().page[KVMFAULT_PAGE_PROTECTED])
			sched_yield();
		ck_assert_int_eq(kvmfault_unprotect(rig.vm, 0, RAM,
						    rig.pages * PAGE), 0);
	}
	atomic_store(&stop, true);
	team_join(&writers);
	sweep();
	/* Each of them everywhere once, and nobody is held up. */
	for (place = 0; place < PAGES; place++)
		for (writer = 0; writer < WRITERS; writer++)
			write_word(place, writer, place + writer + 1);
	asked = stats().page[KVMFAULT_PAGE_PROTECTED];
	came = stats().kind[KVMFAULT_KIND_UFFD];
	for (place = 0; place < PAGES; place++)
		for (writer = 0; writer < WRITERS; writer++)
			write_word(place, writer, place + writer + 2);
	ck_assert_uint_eq(stats().page[KVMFAULT_PAGE_PROTECTED], asked);
	ck_assert_uint_eq(stats().kind[KVMFAULT_KIND_UFFD], came);
	expect_all(rig.b, written, "the memory");
	ck_assert_int_eq(rig.unresolved, 0);
	down();
}

/* Nobody is told of what nobody protects any more. */
TEST_COUNTED(protect, discards_of_what_is_protected, each_kind)
{
	uint64_t page, pages;

	up(_i % COLUMNS, _i / COLUMNS, false);
	pages = rig.pages * PAGE / size;
	for (page = 0; page < pages; page += 2)
		ck_assert_int_eq(kvmfault_ensure(rig.vm, 0, RAM + page * size,
						 size, true), 0);
	begin();
	ck_assert_int_eq(kvmfault_discard(rig.vm, 0, RAM, rig.pages * PAGE), 0);
	expect_each_saved(true);
	expect_all(saved, then, "the snapshot");
	for (page = 0; page < pages; page++)
		ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ,
					 RAM + page * size, 8, 0), 0);
	down();
}

/* ---- accesses that are not the guest's own ---- */

TEST_COUNTED(protect, mmio_inside_ram, each_way)
{
	uint64_t word;

	up(_i % COLUMNS, SHMEM, true);
	rig_exits(&rig, _i / COLUMNS);
	begin();
	word = rig_do(&rig, 0, MACHINE_READ, RAM + 3 * PAGE, 8, 0);
	ck_assert_uint_eq(word, rig_word(3 * PAGE));
	ck_assert_uint_eq(saves[3], 0);
	rig_do(&rig, 0, MACHINE_WRITE, RAM + 3 * PAGE, 8, 99);
	rig_do(&rig, 0, MACHINE_WRITE, RAM + 4 * PAGE, 8, 99);
	rig_do(&rig, 0, MACHINE_WRITE, RAM + 3 * PAGE + 8, 8, 99);
	ck_assert_uint_eq(saves[3], 1);
	ck_assert_uint_eq(saves[4], 1);
	ck_assert_uint_eq(*(uint64_t *)(saved + 3 * PAGE), rig_word(3 * PAGE));
	ck_assert_uint_eq(*(uint64_t *)(saved + 4 * PAGE), rig_word(4 * PAGE));
	ck_assert_uint_eq(*(uint64_t *)(rig.b + 3 * PAGE), 99);
	down();
}

/* KVM, or its emulator, writes to a page that is there. */
TEST_EACH(protect, written_by_kvm, COLUMNS)
{
	up(_i, SHMEM, true);
	ck_assert_int_eq(kvmfault_ensure(rig.vm, 0, RAM, 8 * PAGE, true), 0);
	begin();
	rig_do(&rig, 0, MACHINE_ADD, RAM + 3 * PAGE, 1, 0);
	rig_do(&rig, 0, MACHINE_FPU_SAVE, RAM + 4 * PAGE, 0, 0);
	ck_assert_uint_eq(saves[3], 1);
	ck_assert_uint_eq(saves[4], 1);
	ck_assert_uint_eq(*(uint64_t *)(saved + 3 * PAGE), rig_word(3 * PAGE));
	ck_assert_uint_eq(*(uint64_t *)(rig.b + 3 * PAGE),
			  rig_word(3 * PAGE) + 1);
	down();
}

int main(void)
{
	need("kvm");
	need("uffd");
	each_kind = COLUMNS *
		    (have("hugetlb", lacks("hugetlb")) ? KINDS : HUGETLB);
	each_way = COLUMNS * rig_ways();
	return run_suite("kvm protect");
}
