/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A device process beside the vCPUs, in both columns: it maps the guest's
 * memory, also at the very address where the VMM has it, and its userfaultfd is
 * adopted. Both touch the same pages; it is killed at any moment; it is let go
 * of while it lives, and then it reads what is there or dies, and never zeros.
 */

#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvm-rig.h"
#include "pass-fd.h"
#include "need.h"

#define PAGES 256
#define VCPUS 4
#define MOMENT 100		/* us, between two looks */

static struct rig rig;

/* ---- the device process: no Check here, it ends with a number ---- */

enum { READ_ONE, READ_ALL };

struct order {
	uint64_t what, page;
};

struct reply {
	uint64_t signal;	/* that stopped it, or 0 */
	uint64_t word;		/* of READ_ONE; how many are right */
};

static sigjmp_buf stopped;

static void stop_here(int signal)
{
	siglongjmp(stopped, signal);
}

static struct reply read_one(const char *map, uint64_t page)
{
	struct reply reply = { .signal = (uint64_t)sigsetjmp(stopped, 1) };

	if (!reply.signal)
		reply.word = *(const volatile uint64_t *)(map + page * PAGE);
	return reply;
}

static struct reply read_all(const char *map)
{
	struct reply reply = { 0 };
	uint16_t order[PAGES];
	unsigned int i;

	rig_shuffle(order, PAGES, 99);
	for (i = 0; i < PAGES; i++) {
		struct reply one = read_one(map, order[i]);

		reply.word += one.word == rig_word(order[i] * PAGE);
	}
	return reply;
}

static void device(int channel)
{
	struct sigaction action = { .sa_handler = stop_here };
	struct order order;
	struct reply reply;
	uint64_t at;
	int memfd, uffd;
	char *map;

	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	memfd = take_fd(channel, &at);
	map = mmap((void *)(uintptr_t)at, PAGES * PAGE, PROT_READ | PROT_WRITE,
		   MAP_SHARED | (at ? MAP_FIXED_NOREPLACE : 0), memfd, 0);
	uffd = rig_open_uffd(0);
	if (map == MAP_FAILED || uffd < 0 ||
	    !pass_fd(channel, uffd, (uintptr_t)map))
		_exit(1);
	while (read(channel, &order, sizeof(order)) == sizeof(order)) {
		reply = order.what == READ_ALL ? read_all(map) :
						 read_one(map, order.page);
		if (write(channel, &reply, sizeof(reply)) != sizeof(reply))
			_exit(2);
	}
	_exit(0);
}

/* ---- and its other end ---- */

struct process {
	pid_t pid;
	int channel;
	struct kvmfault_uffd *uffd;
	struct kvmfault_mapping *mapping;
	uint64_t host;
};

/* Before there are threads, and before the rig has mapped anything. */
static void spawn(struct process *process)
{
	int ends[2];

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0,
				    ends), 0);
	process->pid = fork();
	ck_assert_int_ge(process->pid, 0);
	if (!process->pid) {
		close(ends[0]);
		device(ends[1]);
	}
	close(ends[1]);
	process->channel = ends[0];
}

static void add_mapping(struct process *process)
{
	struct kvmfault_mapping_options mapping = {
		.size = sizeof(mapping),
		.host = process->host,
		.uffd = process->uffd,
	};

	ck_assert_int_eq(kvmfault_mapping_add(rig.memory, &mapping,
					      &process->mapping), 0);
}

/* at: where it has to map the memory, or NULL. */
static void adopt(struct process *process, void *at)
{
	struct kvmfault_uffd_options uffd = {
		.size = sizeof(uffd),
		.remote = true,
	};

	ck_assert(pass_fd(process->channel, rig.memfd, (uintptr_t)at));
	uffd.fd = take_fd(process->channel, &process->host);
	ck_assert_int_ge(uffd.fd, 0);
	if (at)
		ck_assert_uint_eq(process->host, (uintptr_t)at);
	ck_assert_int_eq(kvmfault_uffd_new(rig.vm, &uffd, &process->uffd), 0);
	close(uffd.fd);
	add_mapping(process);
}

static void order(struct process *process, uint64_t what, uint64_t page)
{
	struct order order = { .what = what, .page = page };

	ck_assert_int_eq(write(process->channel, &order, sizeof(order)),
			 sizeof(order));
}

static struct reply reply(struct process *process)
{
	struct reply reply;

	ck_assert_int_eq(read(process->channel, &reply, sizeof(reply)),
			 sizeof(reply));
	return reply;
}

static void expect_word(struct process *process, uint64_t page, uint64_t word)
{
	struct reply got;

	order(process, READ_ONE, page);
	got = reply(process);
	ck_assert_uint_eq(got.signal, 0);
	ck_assert_uint_eq(got.word, word);
}

static void expect_poisoned(struct process *process, uint64_t page)
{
	order(process, READ_ONE, page);
	ck_assert_uint_eq(reply(process).signal, SIGBUS);
}

static int end(struct process *process)
{
	int status;

	close(process->channel);
	ck_assert_int_eq(waitpid(process->pid, &status, 0), process->pid);
	return status;
}

static void expect_good_end(struct process *process)
{
	int status = end(process);

	ck_assert(WIFEXITED(status));
	ck_assert_int_eq(WEXITSTATUS(status), 0);
}

static void let_go(struct process *process)
{
	ck_assert_int_eq(kvmfault_mapping_remove(process->mapping), 0);
	ck_assert_int_eq(kvmfault_uffd_free(process->uffd), 0);
}

static void tracked(int column)
{
	rig_new(&rig, column, VCPUS, PAGES, false);
	rig.apart = true;
	rig_track(&rig);
	rig_vcpus(&rig);
}

static struct kvmfault_stats stats(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	ck_assert_int_eq(kvmfault_vm_stats(rig.vm, &stats), 0);
	return stats;
}

static void guest_reads(unsigned int vcpu, uint64_t offset)
{
	rig_same(rig_do(&rig, vcpu, MACHINE_READ, RAM + offset, 8, 0),
		 rig_word(offset), "the guest's word");
}

static void *all_pages(void *arg)
{
	unsigned int i, id = (unsigned int)(uintptr_t)arg;
	uint16_t order[PAGES];

	/* One of them goes the device's way. */
	rig_shuffle(order, PAGES, 99 + id);
	for (i = 0; i < PAGES; i++)
		guest_reads(id, order[i] * PAGE + 8 * id);
	return NULL;
}

static void expect_each_read_once(void)
{
	uint64_t page;

	for (page = 0; page < PAGES; page++)
		ck_assert_uint_eq(rig.reads[page], 1);
}

/* ---- both at work ---- */

#define ROUNDS 6

TEST_GROUP(remote, NULL, NULL);

TEST_EACH(remote, both_touch_all_pages, 2 * COLUMNS)
{
	struct process process;
	unsigned int round;
	struct team team;

	spawn(&process);
	tracked(_i % COLUMNS);
	adopt(&process, _i / COLUMNS ? rig.a : NULL);
	for (round = 0; round < ROUNDS; round++) {
		order(&process, READ_ALL, 0);
		team_start(&team, VCPUS, all_pages);
		team_join(&team);
		ck_assert_uint_eq(reply(&process).word, PAGES);
		expect_each_read_once();
		rig_renew(&rig);
		add_mapping(&process);
	}
	let_go(&process);
	expect_good_end(&process);
	rig_free(&rig);
}

static uint64_t the_page;

static void *guest_wants_it(void *arg)
{
	guest_reads(0, the_page * PAGE);
	return arg;
}

/* Each is the first at every other page, and the other comes while the source
 * is stopped. */
TEST_EACH(remote, each_wakes_the_other, 2 * COLUMNS)
{
	struct process process;
	pthread_t guest;

	spawn(&process);
	tracked(_i % COLUMNS);
	adopt(&process, _i / COLUMNS ? rig.a : NULL);
	for (the_page = 0; the_page < PAGES / 4; the_page++) {
		uint64_t before = stats().repeated;

		rig_close_gate(&rig);
		if (the_page % 2) {
			order(&process, READ_ONE, the_page);
			rig_await_gate(&rig, 1);
		}
		ck_assert_int_eq(pthread_create(&guest, NULL, guest_wants_it,
						NULL), 0);
		rig_await_gate(&rig, 1);
		if (!(the_page % 2))
			order(&process, READ_ONE, the_page);
		while (stats().repeated == before)
			usleep(MOMENT);
		rig_open_gate(&rig);
		pthread_join(guest, NULL);
		ck_assert_uint_eq(reply(&process).word,
				  rig_word(the_page * PAGE));
		ck_assert_uint_eq(rig.reads[the_page], 1);
	}
	let_go(&process);
	expect_good_end(&process);
	rig_free(&rig);
}

/* ---- killed ---- */

static void kill_it(struct process *process)
{
	int status;

	ck_assert_int_eq(kill(process->pid, SIGKILL), 0);
	status = end(process);
	ck_assert(WIFSIGNALED(status));
}

/* Its mapping goes with the memory, and its userfaultfd after that. */
static void free_memory(void)
{
	ck_assert_int_eq(kvmfault_region_remove(rig.vm, 0, RAM), 0);
	ck_assert_int_eq(kvmfault_memory_free(rig.memory), 0);
	rig.memory = NULL;
}

static void let_go_with_the_memory(struct process *process)
{
	free_memory();
	ck_assert_int_eq(kvmfault_uffd_free(process->uffd), 0);
}

static void (*const let_gos[])(struct process *) = {
	let_go, let_go_with_the_memory,
};

TEST_EACH(remote, killed_in_the_middle, 2 * COLUMNS)
{
	struct process process;
	struct team team;

	spawn(&process);
	tracked(_i % COLUMNS);
	adopt(&process, NULL);
	order(&process, READ_ALL, 0);
	team_start(&team, VCPUS, all_pages);
	while (stats().fetched < PAGES / 4)
		sched_yield();
	kill_it(&process);
	team_join(&team);
	expect_each_read_once();
	let_gos[_i / COLUMNS](&process);
	/* There was nobody to be protected from. */
	ck_assert_int_eq(rig.logged, 0);
	rig_free(&rig);
}

/* Asleep on a page, when it is killed, that is on its way for it. */
TEST_EACH(remote, killed_asleep, 2 * COLUMNS)
{
	struct process process;

	spawn(&process);
	tracked(_i % COLUMNS);
	adopt(&process, NULL);
	rig_close_gate(&rig);
	order(&process, READ_ONE, 3);
	rig_await_gate(&rig, 1);
	kill_it(&process);
	rig_open_gate(&rig);
	guest_reads(0, 3 * PAGE);
	guest_reads(0, 4 * PAGE);
	ck_assert_uint_eq(rig.reads[3], 1);
	let_gos[_i / COLUMNS](&process);
	/* There was nobody to be protected from. */
	ck_assert_int_eq(rig.logged, 0);
	rig_free(&rig);
}

#define PROCESSES 8

/* It dies while it is let go of, with most pages absent: some are poisoned, and
 * then there is nobody any more. */
TEST_EACH(remote, killed_while_let_go_of, COLUMNS)
{
	struct process process[PROCESSES];
	unsigned int i;
	int status;

	for (i = 0; i < PROCESSES; i++)
		spawn(&process[i]);
	tracked(_i);
	for (i = 0; i < PROCESSES; i++) {
		adopt(&process[i], i % 2 ? rig.a : NULL);
		expect_word(&process[i], i, rig_word(i * PAGE));
		order(&process[i], READ_ONE, PAGES - 1 - i);
		ck_assert_int_eq(kill(process[i].pid, SIGKILL), 0);
		let_go(&process[i]);
		status = end(&process[i]);
		ck_assert(WIFSIGNALED(status));
		guest_reads(0, i * PAGE);
		guest_reads(0, (PAGES - 1 - i) * PAGE);
	}
	ck_assert_int_eq(rig.logged, 0);
	rig_free(&rig);
}

/* ---- let go of while it lives ---- */

#define FETCHED 0
#define DISCARDED 1
#define ABSENT 2
#define UNTOUCHED 3

static void make_states(void)
{
	ck_assert_int_eq(kvmfault_ensure(rig.vm, 0, RAM + FETCHED * PAGE, PAGE,
					 false), 0);
	ck_assert_int_eq(kvmfault_discard(rig.vm, 0, RAM + DISCARDED * PAGE,
					  PAGE), 0);
}

static void expect_no_zeros(struct process *process)
{
	expect_word(process, FETCHED, rig_word(FETCHED * PAGE));
	expect_word(process, DISCARDED, 0);
	expect_poisoned(process, ABSENT);
	expect_poisoned(process, UNTOUCHED);
	expect_poisoned(process, PAGES - 1);
}

/* Asleep on a page that does not come: woken, and dies of it; likewise whoever
 * comes to one later. */
TEST_EACH(remote, alive_and_asleep, 2 * COLUMNS)
{
	struct process process;

	spawn(&process);
	tracked(_i % COLUMNS);
	adopt(&process, NULL);
	make_states();
	atomic_store(&rig.source_error, -EIO);
	order(&process, READ_ONE, ABSENT);
	while (stats().deferred < 2)
		usleep(MOMENT);
	let_gos[_i / COLUMNS](&process);
	ck_assert_uint_eq(reply(&process).signal, SIGBUS);
	expect_no_zeros(&process);
	atomic_store(&rig.source_error, 0);
	if (rig.memory)
		guest_reads(0, ABSENT * PAGE);
	expect_no_zeros(&process);
	expect_good_end(&process);
	rig_free(&rig);
}

/* The page that it waits for is on its way, and comes for the others. */
TEST_EACH(remote, alive_and_in_flight, 2 * COLUMNS)
{
	struct process process;
	pthread_t guest;

	spawn(&process);
	tracked(_i % COLUMNS);
	adopt(&process, _i / COLUMNS ? rig.a : NULL);
	make_states();
	rig_close_gate(&rig);
	order(&process, READ_ONE, ABSENT);
	rig_await_gate(&rig, 1);
	the_page = ABSENT;
	ck_assert_int_eq(pthread_create(&guest, NULL, guest_wants_it, NULL), 0);
	let_go(&process);
	ck_assert_uint_eq(reply(&process).signal, SIGBUS);
	rig_open_gate(&rig);
	pthread_join(guest, NULL);
	ck_assert_uint_eq(rig.reads[ABSENT], 1);
	expect_no_zeros(&process);
	expect_good_end(&process);
	rig_free(&rig);
}

/* While the guest and it are at all pages. */
TEST_EACH(remote, alive_and_at_work, COLUMNS)
{
	struct process process;
	struct team team;
	struct reply got;
	uint64_t page;

	spawn(&process);
	tracked(_i);
	adopt(&process, NULL);
	order(&process, READ_ALL, 0);
	team_start(&team, VCPUS, all_pages);
	while (stats().fetched < PAGES / 4)
		sched_yield();
	let_go(&process);
	team_join(&team);
	expect_each_read_once();
	reply(&process);
	for (page = 0; page < PAGES; page++) {
		order(&process, READ_ONE, page);
		got = reply(&process);
		if (got.signal)
			ck_assert_uint_eq(got.signal, SIGBUS);
		else
			ck_assert_uint_eq(got.word, rig_word(page * PAGE));
	}
	expect_good_end(&process);
	rig_free(&rig);
}

int main(void)
{
	need("kvm");
	need("uffd");
	return run_suite("kvm remote");
}
