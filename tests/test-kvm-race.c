/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Many vCPUs and threads of the VMM's on the same pages at the same time, in
 * both columns: in random order and in each order of events, under signals,
 * while regions change, and against discards. Every page comes once, everybody
 * goes on, and what anybody reads was there to be read.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kvm-rig.h"
#include "need.h"

#define PAGES 128
#define HALF (PAGES / 2 * PAGE)
#define VCPUS 8
#define HOSTS 4			/* threads of the VMM's */
#define MOMENT 100		/* us, between two looks */

static struct rig rig;
static pthread_barrier_t together;

static void set_up(int column, unsigned int vcpus, bool supervisor)
{
	rig_new(&rig, column, vcpus, PAGES, supervisor);
	rig.apart = true;
	rig_track(&rig);
	rig_vcpus(&rig);
}

static void tracked(int column, unsigned int vcpus)
{
	set_up(column, vcpus, false);
}

/* vCPUs that exit and do not sleep; i: each way in each column. */
static void exits(int i, unsigned int vcpus)
{
	set_up(i % COLUMNS, vcpus, i / COLUMNS == EMULATED);
	rig_exits(&rig, i / COLUMNS);
}

static struct kvmfault_stats stats(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	rig_same((uint64_t)kvmfault_vm_stats(rig.vm, &stats), 0, "stats");
	return stats;
}

static void expect_each_read_once(void)
{
	uint64_t page;

	for (page = 0; page < rig.pages; page++)
		ck_assert_uint_eq(rig.reads[page], 1);
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

/* ---- all on the same pages ---- */

#define ROUNDS rig_rounds(24)

/* A message that was read late brings in a page of the new memory: there it is
 * asked for once more, or after the last round by nobody. */
static void renew_unless_last(unsigned int round, unsigned int rounds)
{
	if (round + 1 < rounds)
		rig_renew(&rig);
}

/* In even rounds all go the same way, and meet on every page; in odd ones each
 * has an order of its own. Everybody's word is another. */
static void *all_pages_many_times(void *arg)
{
	unsigned int i, round, id = (unsigned int)(uintptr_t)arg;
	uint16_t order[PAGES];

	for (round = 0; round < ROUNDS; round++) {
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
		expect_each_read_once();
		renew_unless_last(round, ROUNDS);
	}
	return NULL;
}

static void expect_all_fetched(unsigned int rounds)
{
	rig_restart_service(&rig);	/* and so all is counted */
	ck_assert_uint_eq(stats().fetched, rounds * PAGES);
	ck_assert_uint_eq(stats().existed, 0);
	ck_assert_uint_eq(stats().unresolved, 0);
}

/* main() finds out how many times the cases of TEST_COUNTED() are run. */
static int each_way;

TEST_GROUP(race, NULL, NULL);

TEST_EACH(race, vcpus_and_hosts_on_the_same_pages, COLUMNS)
{
	struct team team;

	tracked(_i, VCPUS);
	pthread_barrier_init(&together, NULL, VCPUS + HOSTS);
	team_start(&team, VCPUS + HOSTS, all_pages_many_times);
	team_join(&team);
	expect_all_fetched(ROUNDS);
	rig_free(&rig);
}

static struct team harassed;
static atomic_uint finished, signals;

static void *all_pages_harassed(void *arg)
{
	all_pages_many_times(arg);
	atomic_fetch_add(&finished, 1);
	return NULL;
}

static void harass(void)
{
	unsigned int i;

	for (i = 0; atomic_load(&finished) < harassed.count; i++) {
		pthread_kill(harassed.thread[i % harassed.count], KICK);
		usleep(MOMENT);
	}
}

static void count_signal(int signal)
{
	(void)signal;
	atomic_fetch_add(&signals, 1);
}

static void under_signals(int column, int flags)
{
	struct sigaction action = {
		.sa_handler = count_signal,
		.sa_flags = flags,
	};

	tracked(column, VCPUS);
	ck_assert_int_eq(sigaction(KICK, &action, NULL), 0);
	pthread_barrier_init(&together, NULL, VCPUS + HOSTS);
	team_start(&harassed, VCPUS + HOSTS, all_pages_harassed);
	harass();
	team_join(&harassed);
	ck_assert_uint_ge(atomic_load(&signals), ROUNDS);
	expect_all_fetched(ROUNDS);
	rig_free(&rig);
}

TEST_EACH(race, the_same_under_signals, COLUMNS)
{
	under_signals(_i, 0);
}

TEST_EACH(race, the_same_under_signals_that_restart, COLUMNS)
{
	under_signals(_i, SA_RESTART);
}

/* ---- regions that change ---- */

static atomic_uint walking;

static void *all_pages(void *arg)
{
	unsigned int i, id = (unsigned int)(uintptr_t)arg;
	uint16_t order[PAGES];

	rig_shuffle(order, PAGES, id + 1);
	for (i = 0; i < PAGES; i++)
		guest_reads(id, order[i] * PAGE + 8 * id);
	atomic_fetch_sub(&walking, 1);
	return NULL;
}

static void add_region(uint64_t gpa, uint64_t length, uint64_t offset)
{
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = gpa,
		.length = length,
		.memory = rig.memory,
		.offset = offset,
	};

	ck_assert_int_eq(kvmfault_region_add(rig.vm, &region), 0);
}

static void remove_region(uint64_t gpa)
{
	ck_assert_int_eq(kvmfault_region_remove(rig.vm, 0, gpa), 0);
}

/* The vCPUs' own RAM in two, and in one again. */
static void split_and_join(void)
{
	remove_region(RAM);
	add_region(RAM, HALF, 0);
	add_region(RAM + HALF, HALF, HALF);
	remove_region(RAM + HALF);
	remove_region(RAM);
	add_region(RAM, 2 * HALF, 0);
}

/* Another view of it, far away. */
static void come_and_go(void)
{
	const uint64_t far = RAM + (128ULL << 30);

	add_region(far, HALF, HALF);
	add_region(far + HALF, PAGE, 0);
	remove_region(far);
	remove_region(far + HALF);
}

/* Asks for pages and regions by gpa while they change: a region is whole or it
 * is not there. */
static void *ask(void *arg)
{
	struct kvmfault_region found = { .size = sizeof(found) };
	uint64_t page, state = (uintptr_t)arg + 1;
	int err;

	while (atomic_load(&walking)) {
		page = rig_random(&state) % PAGES;
		err = kvmfault_ensure(rig.vm, 0, RAM + page * PAGE, PAGE,
				      false);
		if (err != -ENXIO)
			rig_same((uint64_t)err, 0, "ensure");
		if (!err)
			rig_same(atomic_load(&rig.reads[page]), 1, "reads");
		err = kvmfault_region_find(rig.vm, 0, RAM + page * PAGE,
					   &found);
		if (err != -ENOENT)
			rig_same((uint64_t)err, 0, "find");
		if (!err)
			rig_same(found.offset, found.gpa - RAM, "offset");
		usleep(MOMENT);
	}
	return NULL;
}

static unsigned int change_while_they_walk(void (*change)(void))
{
	struct team walkers, askers;
	unsigned int changes = 0;

	atomic_store(&walking, VCPUS);
	team_start(&askers, 2, ask);
	team_start(&walkers, VCPUS, all_pages);
	for (; atomic_load(&walking); changes++) {
		change();
		sched_yield();
	}
	team_join(&walkers);
	team_join(&askers);
	expect_each_read_once();
	return changes;
}

/* vCPUs that sleep on a userfaultfd do not come by their region. */
TEST_EACH(race, their_region_changes, COLUMNS)
{
	unsigned int round, changes = 0;

	tracked(_i, VCPUS);
	for (round = 0; round < 8; round++) {
		changes += change_while_they_walk(split_and_join);
		rig_renew(&rig);
	}
	ck_assert_uint_ge(changes, round);
	rig_free(&rig);
}

/* vCPUs that exit do: the regions around theirs change. */
TEST_COUNTED(race, regions_around_theirs_change, each_way)
{
	unsigned int round, changes = 0;

	exits(_i, VCPUS);
	for (round = 0; round < 8; round++) {
		changes += change_while_they_walk(come_and_go);
		rig_renew(&rig);
	}
	ck_assert_uint_ge(changes, round);
	ck_assert_uint_ge(stats().kind[KVMFAULT_KIND_MMIO], round);
	rig_free(&rig);
}

/* ---- a thread of the VMM's asleep on a page that a vCPU brings in ---- */

static uint64_t the_page;

static void *guest_wants_it(void *arg)
{
	guest_reads(0, the_page * PAGE + 8);
	return arg;
}

static void *host_wants_it(void *arg)
{
	host_reads(the_page * PAGE + 16);
	return arg;
}

static pthread_t start(void *(*run)(void *))
{
	pthread_t thread;

	ck_assert_int_eq(pthread_create(&thread, NULL, run, NULL), 0);
	return thread;
}

/* Who finds the page in flight and is counted for it: a reader of messages that
 * leaves its mark, a vCPU that waits. */
static uint64_t late_comers(void)
{
	return stats().repeated + stats().waited;
}

/* The one comes while the other's fetch is stopped in the source. */
static void one_after_the_other(void *(*first)(void *), void *(*second)(void *))
{
	uint64_t before = late_comers();
	pthread_t one, other;

	rig_close_gate(&rig);
	one = start(first);
	rig_await_gate(&rig, 1);
	other = start(second);
	while (late_comers() == before)
		usleep(MOMENT);
	rig_open_gate(&rig);
	pthread_join(one, NULL);
	pthread_join(other, NULL);
}

/* Both on their way, however far; then the source goes on. */
static void both_at_once(void *(*first)(void *), void *(*second)(void *))
{
	pthread_t one, other;

	rig_close_gate(&rig);
	one = start(first);
	other = start(second);
	rig_await_gate(&rig, 1);
	rig_open_gate(&rig);
	pthread_join(one, NULL);
	pthread_join(other, NULL);
}

static void in_each_order(void)
{
	for (the_page = 0; the_page < PAGES; the_page++) {
		switch (the_page % 4) {
		case 0:
			one_after_the_other(host_wants_it, guest_wants_it);
			break;
		case 1:
			one_after_the_other(guest_wants_it, host_wants_it);
			break;
		case 2:
			both_at_once(host_wants_it, guest_wants_it);
			break;
		case 3:
			both_at_once(guest_wants_it, host_wants_it);
			break;
		}
	}
	expect_each_read_once();
}

/* The vCPU sleeps in the kernel: two messages, of two userfaultfds. */
TEST_EACH(race, host_and_vcpu_asleep, COLUMNS)
{
	tracked(_i, 1);
	in_each_order();
	ck_assert_uint_ge(stats().kind[KVMFAULT_KIND_UFFD], 2);
	rig_free(&rig);
}

/* The vCPU is told by an exit, and fetches or waits on its own thread. */
TEST_COUNTED(race, host_asleep_and_vcpu_fetches, each_way)
{
	exits(_i, 1);
	in_each_order();
	ck_assert_uint_ge(stats().kind[KVMFAULT_KIND_MMIO], PAGES / 4);
	rig_free(&rig);
}

static void await_message(const struct kvmfault_uffd *uffd)
{
	struct pollfd fd = {
		.fd = kvmfault_uffd_fd(uffd),
		.events = POLLIN,
	};

	ck_assert_int_eq(poll(&fd, 1, -1), 1);
}

/* The message is read when the page has long been there: nobody but its reader
 * knows of this sleeper. */
TEST_COUNTED(race, host_asleep_and_message_late, each_way)
{
	pthread_t host;

	exits(_i, 1);
	for (the_page = 0; the_page < PAGES / 8; the_page++) {
		ck_assert_int_eq(kvmfault_service_free(rig.service), 0);
		rig.service = NULL;
		host = start(host_wants_it);
		await_message(rig.uffd_b);
		guest_wants_it(NULL);
		rig_restart_service(&rig);
		pthread_join(host, NULL);
		ck_assert_uint_eq(rig.reads[the_page], 1);
	}
	ck_assert_uint_ge(stats().repeated, PAGES / 8);
	rig_free(&rig);
}

/* ---- two copies of one page through two mappings ---- */

#define COPIES rig_rounds(10000)

/* All at the same moment: the barrier wakes one after the other. */
static void at_once(atomic_uint *arrived, unsigned int all)
{
	pthread_barrier_wait(&together);
	atomic_fetch_add(arrived, 1);
	while (atomic_load(arrived) % all)
		sched_yield();
}

static struct copier {
	int fd;
	char *map;
	int result;
	uint64_t word;		/* of all its page */
} copiers[2];
static atomic_uint arrived;

static int copy(int fd, void *to, const void *from)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)to,
		.src = (uintptr_t)from,
		.len = PAGE,
	};

	return ioctl(fd, UFFDIO_COPY, &copy) ? -errno : 0;
}

static void *copy_again_and_again(void *arg)
{
	struct copier *copier = &copiers[(uintptr_t)arg];
	uint64_t words[PAGE / 8];
	unsigned int round, i;

	for (round = 0; round < COPIES; round++) {
		copier->word = round * 2 + (uintptr_t)arg + 1;
		for (i = 0; i < PAGE / 8; i++)
			words[i] = copier->word;
		at_once(&arrived, 2);
		copier->result = copy(copier->fd, copier->map +
				      round % PAGES * PAGE, words);
		pthread_barrier_wait(&together);	/* done */
		pthread_barrier_wait(&together);	/* looked at */
	}
	return NULL;
}

static bool all_words(const char *page, uint64_t word)
{
	unsigned int i;

	for (i = 0; i < PAGE / 8; i++)
		if (((const volatile uint64_t *)page)[i] != word)
			return false;
	return true;
}

/* One has won, and the page is the winner's from end to end, for all. */
static void expect_one_winner(uint64_t page)
{
	const struct copier *winner = &copiers[!!copiers[0].result];
	const struct copier *loser = &copiers[!copiers[0].result];

	rig_same((uint64_t)winner->result, 0, "the winner");
	rig_same((uint64_t)loser->result, (uint64_t)-EEXIST, "the loser");
	if (!all_words(rig.a + page * PAGE, winner->word) ||
	    !all_words(rig.b + page * PAGE, winner->word))
		ck_abort_msg("a page of both");
	if (page % 8 == 0)
		rig_same(rig_do(&rig, 0, MACHINE_READ, RAM + page * PAGE, 8,
				0), winner->word, "the guest's word");
}

static int registered(char *map)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)map, .len = PAGES * PAGE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ioctl(fd, UFFDIO_API, &api), 0);
	ck_assert_int_eq(ioctl(fd, UFFDIO_REGISTER, &reg), 0);
	return fd;
}

/* What all rests on, without the library: the kernel lets one copy win. */
TEST_EACH(race, two_copies_by_the_kernel, COLUMNS)
{
	struct team team;
	unsigned int round, first = 0;

	rig_new(&rig, _i, 1, PAGES, false);
	rig_plain(&rig);
	rig_vcpus(&rig);
	copiers[0] = (struct copier){ .fd = registered(rig.a), .map = rig.a };
	copiers[1] = (struct copier){ .fd = registered(rig.b), .map = rig.b };
	pthread_barrier_init(&together, NULL, 3);
	team_start(&team, 2, copy_again_and_again);
	for (round = 0; round < COPIES; round++) {
		pthread_barrier_wait(&together);
		pthread_barrier_wait(&together);
		expect_one_winner(round % PAGES);
		first += !copiers[0].result;
		rig_same((uint64_t)fallocate(rig.memfd, FALLOC_FL_PUNCH_HOLE |
					     FALLOC_FL_KEEP_SIZE,
					     round % PAGES * PAGE, PAGE),
			 0, "punch");
		pthread_barrier_wait(&together);
	}
	team_join(&team);
	ck_assert_uint_gt(first, 0);
	ck_assert_uint_lt(first, COPIES);
	close(copiers[0].fd);
	close(copiers[1].fd);
	rig_free(&rig);
}

#define BOTH_PAGES 2500		/* four times: as many copies */

static void *both_mappings(void *arg)
{
	uint64_t page;

	for (page = 0; page < rig.pages; page++) {
		at_once(&arrived, 2);
		if (arg)
			host_reads(page * PAGE + 8);
		else
			guest_reads(0, page * PAGE);
	}
	return NULL;
}

/* Two service threads, each with a message for the same page from another
 * mapping: one fetches, and both sleepers go on. */
TEST_EACH(race, two_mappings_by_the_library, COLUMNS)
{
	struct team team;
	unsigned int round;

	rig_new(&rig, _i, 1, BOTH_PAGES, false);
	rig.apart = true;
	rig_track(&rig);
	rig_vcpus(&rig);
	pthread_barrier_init(&together, NULL, 2);
	for (round = 0; round < COPIES / BOTH_PAGES; round++) {
		team_start(&team, 2, both_mappings);
		team_join(&team);
		expect_each_read_once();
		renew_unless_last(round, COPIES / BOTH_PAGES);
	}
	rig_restart_service(&rig);
	ck_assert_uint_eq(stats().fetched, COPIES);
	ck_assert_uint_eq(stats().existed, 0);
	rig_free(&rig);
}

static atomic_uint stolen;

/* Somebody who fetches too, past the library, through the other mapping. */
static void steal(uint64_t page)
{
	uint64_t words[PAGE / 8];
	unsigned int i;
	int err;

	for (i = 0; i < PAGE / 8; i++)
		words[i] = rig_word(page * PAGE + 8 * i);
	err = copy(kvmfault_uffd_fd(rig.uffd_b), rig.b + page * PAGE, words);
	if (!err)
		atomic_fetch_add(&stolen, 1);
	else
		rig_same((uint64_t)err, (uint64_t)-EEXIST, "copy");
}

static void *guest_host_and_thief(void *arg)
{
	uint64_t page;

	for (page = 0; page < rig.pages; page++) {
		at_once(&arrived, 3);
		if (arg == (void *)2)
			steal(page);
		else if (arg == (void *)1)
			host_reads(page * PAGE + 8);
		else
			guest_reads(0, page * PAGE);
	}
	return NULL;
}

/* The library's copy finds a page there: that is a success, and whom the other
 * copy could not wake goes on too. */
TEST_EACH(race, two_copies_and_one_is_not_ours, COLUMNS)
{
	struct team team;
	unsigned int round;

	tracked(_i, 1);
	pthread_barrier_init(&together, NULL, 3);
	for (round = 0; round < ROUNDS; round++) {
		team_start(&team, 3, guest_host_and_thief);
		team_join(&team);
		/* Nobody may have asked the library for what was stolen. */
		ck_assert_int_eq(kvmfault_ensure(rig.vm, 0, RAM, PAGES * PAGE,
						 false), 0);
		renew_unless_last(round, ROUNDS);
	}
	rig_restart_service(&rig);
	ck_assert_uint_gt(atomic_load(&stolen), 0);
	ck_assert_uint_eq(stats().existed, atomic_load(&stolen));
	ck_assert_uint_eq(stats().fetched + atomic_load(&stolen),
			  ROUNDS * PAGES);
	ck_assert_uint_eq(stats().unresolved, 0);
	rig_free(&rig);
}

/* ---- discards ---- */

#define WRITERS 4
#define TURNS rig_rounds(3000)

/* When what happened to a page, on one clock. Every vCPU writes one word of the
 * page, and reads them all. */
static atomic_ulong now;
static struct {
	atomic_ulong begun, ended;	/* the last discard; ended < begun: it
					 * goes on */
	atomic_ulong gone;		/* begun, of the last one that ended */
	atomic_ulong wrote[WRITERS];	/* the last write began, */
	atomic_ulong done[WRITERS];	/* and ended */
} life[PAGES];

static unsigned long tick(void)
{
	return atomic_fetch_add(&now, 1) + 1;
}

/* Even, and so nowhere in the source. */
static uint64_t written(unsigned int writer, unsigned long when)
{
	return (uint64_t)(writer + 1) << 56 | when << 1;
}

static void guest_writes(unsigned int writer, uint64_t page)
{
	unsigned long when = tick();

	atomic_store(&life[page].wrote[writer], when);
	rig_do(&rig, writer, MACHINE_WRITE, RAM + page * PAGE + 8 * writer, 8,
	       written(writer, when));
	atomic_store(&life[page].done[writer], tick());
}

/* What was known of a word before it was read. */
struct before {
	unsigned long gone, wrote, done;
};

static struct before before(uint64_t page, unsigned int writer)
{
	return (struct before){
		.gone = atomic_load(&life[page].gone),
		.wrote = atomic_load(&life[page].wrote[writer]),
		.done = atomic_load(&life[page].done[writer]),
	};
}

/* Zero is right if a discard began, unless the last one had ended before a
 * write that had ended too. */
static bool zero_is_right(uint64_t page, const struct before *before)
{
	unsigned long begun = atomic_load(&life[page].begun);
	unsigned long ended = atomic_load(&life[page].ended);

	return begun && !(before->wrote < before->done && begun < ended &&
			  ended < before->wrote);
}

/* Was the word there at some time since before? */
static bool right(uint64_t page, unsigned int writer, uint64_t word,
		  const struct before *before)
{
	unsigned long when = (word & ~(0xffUL << 56)) >> 1;

	if (!word)
		return zero_is_right(page, before);
	/* What was discarded never comes from there again. */
	if (word == rig_word(page * PAGE + 8 * writer))
		return !before->gone && !before->done;
	if (word != written(writer, when) ||
	    when > atomic_load(&life[page].wrote[writer]))
		return false;
	/* Neither overwritten nor discarded before. */
	if (before->wrote < before->done && when < before->wrote)
		return false;
	return !(when < before->done && before->done < before->gone);
}

static uint64_t read_word(unsigned int reader, uint64_t offset)
{
	if (reader == WRITERS)
		return *(volatile uint64_t *)(rig.b + offset);
	return rig_do(&rig, reader, MACHINE_READ, RAM + offset, 8, 0);
}

static void reads(unsigned int reader, uint64_t page, unsigned int writer)
{
	const struct before known = before(page, writer);
	uint64_t word = read_word(reader, page * PAGE + 8 * writer);

	if (right(page, writer, word, &known))
		return;
	ck_abort_msg("reader %u, page %llu, word %u: %#llx; written %lu to %lu, discarded %lu to %lu",
		     reader, (unsigned long long)page, writer,
		     (unsigned long long)word, known.wrote, known.done,
		     atomic_load(&life[page].begun),
		     atomic_load(&life[page].ended));
}

static void *read_and_write(void *arg)
{
	unsigned int turn, id = (unsigned int)(uintptr_t)arg;
	uint64_t number, state = id + 1;

	for (turn = 0; turn < TURNS; turn++) {
		number = rig_random(&state);
		if (id < WRITERS && number >> 20 & 1)
			guest_writes(id, number % PAGES);
		else
			reads(id, number % PAGES, (number >> 24) % WRITERS);
	}
	atomic_fetch_add(&finished, 1);
	return NULL;
}

static void discard(uint64_t page, uint64_t count)
{
	uint64_t i;

	for (i = page; i < page + count; i++)
		atomic_store(&life[i].begun, tick());
	rig_same((uint64_t)kvmfault_discard(rig.vm, 0, RAM + page * PAGE,
					    count * PAGE), 0, "discard");
	for (i = page; i < page + count; i++) {
		atomic_store(&life[i].ended, tick());
		atomic_store(&life[i].gone, atomic_load(&life[i].begun));
	}
}

static void discard_at_random(uint64_t *state)
{
	uint64_t number = rig_random(state);
	uint64_t count = (number >> 20) % 4 + 1;

	discard(number % (PAGES - count), count);
}

/* Everybody has stopped: what was discarded since it was written is zero, and
 * all else is what was written. */
static void expect_settled(void)
{
	unsigned int writer, zero = 0;
	uint64_t page;

	for (page = 0; page < PAGES; page++) {
		for (writer = 0; writer < WRITERS; writer++) {
			reads(0, page, writer);
			reads(WRITERS, page, writer);
			if (life[page].done[writer] >= life[page].gone)
				continue;
			rig_same(read_word(0, page * PAGE + 8 * writer), 0,
				 "a discarded word");
			zero++;
		}
		ck_assert_uint_le(rig.reads[page], 1);
	}
	ck_assert_uint_gt(zero, 0);
}

TEST_EACH(race, discards_against_faults, COLUMNS)
{
	uint64_t i, state = 4711;
	struct team team;

	tracked(_i, WRITERS);
	team_start(&team, WRITERS + 1, read_and_write);
	while (atomic_load(&finished) <= WRITERS) {
		discard_at_random(&state);
		usleep(MOMENT);
	}
	team_join(&team);
	for (i = 0; i < PAGES / 8; i++)
		discard_at_random(&state);
	expect_settled();
	ck_assert_uint_gt(stats().zeroed, 0);
	ck_assert_uint_eq(stats().unresolved, 0);
	rig_free(&rig);
}

static void *read_anything(void *arg)
{
	uint64_t word = rig_do(&rig, 0, MACHINE_READ, RAM + the_page * PAGE, 8,
			       0);

	/* The discard had not ended: both are right. */
	if (word)
		rig_same(word, rig_word(the_page * PAGE), "the guest's word");
	return arg;
}

static void *discard_it(void *arg)
{
	discard(the_page, 1);
	return arg;
}

/* The discard comes while the source is stopped: it has the last word. */
TEST_EACH(race, discard_of_a_page_in_flight, COLUMNS)
{
	pthread_t guest, discarder;

	tracked(_i, 1);
	for (the_page = 0; the_page < PAGES; the_page++) {
		rig_close_gate(&rig);
		guest = start(read_anything);
		rig_await_gate(&rig, 1);
		discarder = start(discard_it);
		if (the_page % 2)
			usleep(MOMENT);
		rig_open_gate(&rig);
		pthread_join(discarder, NULL);
		rig_same(*(volatile uint64_t *)(rig.b + the_page * PAGE), 0,
			 "a discarded word");
		pthread_join(guest, NULL);
		rig_same(rig_do(&rig, 0, MACHINE_READ, RAM + the_page * PAGE,
				8, 0), 0, "a discarded word");
		ck_assert_uint_eq(rig.reads[the_page], 1);
	}
	ck_assert_uint_ge(stats().discarded, PAGES);
	rig_free(&rig);
}

int main(void)
{
	need("kvm");
	need("uffd");
	each_way = COLUMNS * rig_ways();
	return run_suite("kvm race");
}
