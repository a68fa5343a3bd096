/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Memory of another process: anonymous, with a userfaultfd that this process
 * was sent and that tells of what is removed. The other process does what a VMM
 * does. Each of its bytes is right, and what it has removed is zero for ever,
 * whoever serves it.
 */

#include <errno.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/setup/setup.h"
#include "need.h"
#include "pass-fd.h"
#include "unit.h"

#define PAGES 256ULL
#define HUGE (2ULL << 20)
#define HUGE_PAGES 4ULL

enum command { NONE, READ, WRITE, REMOVE, READ_ALL };

/* It outlives every process but the test's own. */
static struct {
	_Atomic int command, done;	/* done: how many commands */
	atomic_int page, count;
	atomic_bool ready, stuck;
	atomic_uint reads;		/* of the source */
	char seen[PAGES];
	char *at;			/* where the other process has it */
} *shared;

static uint64_t page_size, pages;
static int uffd_fd, states_fd, commands;
static pid_t vmm, owner;
static char removed[PAGES];		/* here: removed, and not written since */
static struct kvmfault_vm *vm;
static struct kvmfault_service *service;
static struct kvmfault_memory *memory;
static struct kvmfault_uffd *uffd;
static struct kvmfault_fill *fill;

static char data_of(uint64_t page)
{
	return (char)(page % 100 + 1);
}

static int read_source(void *data, uint64_t offset, void *buffer, size_t length)
{
	char *to = buffer;
	size_t i;

	(void)data;
	atomic_fetch_add(&shared->reads, 1);
	while (atomic_load(&shared->stuck))
		sched_yield();
	for (i = 0; i < length; i++)
		to[i] = data_of((offset + i) / page_size);
	return 0;
}

/* ---- the other process ---- */

static void look(int page)
{
	shared->seen[page] = *(volatile char *)(shared->at +
						(uint64_t)page * page_size +
						page_size - 1);
}

static void obey(enum command command, int page, int count)
{
	char *at = shared->at + (uint64_t)page * page_size;
	uint64_t i;

	if (command == REMOVE &&
	    madvise(at, (uint64_t)count * page_size, MADV_DONTNEED))
		_exit(97);
	if (command == WRITE)
		at[page_size - 1] = 'w';
	if (command == READ)
		look(page);
	for (i = 0; command == READ_ALL && i < pages; i++)
		look((int)i);
}

__attribute__((noreturn))
static void be_vmm(int to)
{
	struct uffdio_api api = {
		.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE,
	};
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	int fd = kvmfault__uffd_open(KVMFAULT__UFFD_DEVICE |
				     KVMFAULT__UFFD_SYSCALL);
	enum command command;

	shared->at = mmap(NULL, pages * page_size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS |
			  (page_size == HUGE ? MAP_HUGETLB : 0), -1, 0);
	reg.range.start = (uintptr_t)shared->at;
	reg.range.len = pages * page_size;
	if (shared->at == MAP_FAILED || ioctl(fd, UFFDIO_API, &api) ||
	    (page_size == PAGE &&
	     madvise(shared->at, pages * PAGE, MADV_NOHUGEPAGE)) ||
	    ioctl(fd, UFFDIO_REGISTER, &reg) || !pass_fd(to, fd, 0))
		_exit(98);
	for (;;) {
		while (!(command = atomic_exchange(&shared->command, NONE)))
			sched_yield();
		obey(command, shared->page, shared->count);
		atomic_fetch_add(&shared->done, 1);
	}
}

static void begin(enum command command, int page, int count)
{
	shared->page = page;
	shared->count = count;
	atomic_store(&shared->command, command);
	commands++;
}

/* If it sleeps for ever, the test does, and is ended. */
static void await(void)
{
	while (atomic_load(&shared->done) < commands)
		sched_yield();
}

static void order(enum command command, int page, int count)
{
	begin(command, page, count);
	await();
	if (command == REMOVE)
		memset(removed + page, 1, (size_t)count);
	if (command == WRITE)
		removed[page] = 0;
}

static void check_page(int page)
{
	order(READ, page, 1);
	ck_assert_int_eq(shared->seen[page],
			 removed[page] ? 0 : data_of((uint64_t)page));
}

static void check_all(void)
{
	uint64_t i;

	order(READ_ALL, 0, 0);
	for (i = 0; i < pages; i++)
		ck_assert_msg(shared->seen[i] == (removed[i] ? 0 : data_of(i)),
			      "page %d: %d%s", (int)i, shared->seen[i],
			      removed[i] ? ", and it was removed" : "");
}

/* ---- owners ---- */

static int adopt(void)
{
	const struct kvmfault_source source = {
		.size = sizeof(source), .read = read_source,
		.length = pages * page_size,
	};
	const struct kvmfault_memory_options options = {
		.size = sizeof(options), .host = shared->at,
		.length = pages * page_size, .page_size = page_size,
		.source = &source, .uffd = uffd, .states_fd = states_fd,
	};

	return kvmfault_memory_adopt(vm, &options, &memory);
}

static void own(void)
{
	const struct kvmfault_vm_options context = {
		.size = sizeof(context), .page_size_max = page_size,
	};
	const struct kvmfault_service_options threads = {
		.size = sizeof(threads), .threads = 1,
	};
	const struct kvmfault_uffd_options remote = {
		.size = sizeof(remote), .fd = uffd_fd, .remote = true,
	};

	ck_assert_int_eq(kvmfault_vm_new(&context, &vm), 0);
	ck_assert_int_eq(kvmfault_service_new(vm, &threads, &service), 0);
	ck_assert_int_eq(kvmfault_uffd_new(vm, &remote, &uffd), 0);
	ck_assert_int_eq(adopt(), 0);
}

static void disown(void)
{
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
}

/* Returns when it has taken the memory, and will be killed. */
static void start_owner(void)
{
	atomic_store(&shared->ready, false);
	owner = fork();
	ck_assert_int_ge(owner, 0);
	if (!owner) {
		own();
		atomic_store(&shared->ready, true);
		for (;;)
			pause();
	}
	while (!atomic_load(&shared->ready))
		sched_yield();
}

static void kill_owner(void)
{
	ck_assert_int_eq(kill(owner, SIGKILL), 0);
	ck_assert_int_eq(waitpid(owner, NULL, 0), owner);
}

static void begin_fill(void)
{
	const struct kvmfault_fill_options options = {
		.size = sizeof(options), .memories = &memory,
		.memory_count = 1, .threads = 1,
	};

	ck_assert_int_eq(kvmfault_fill_new(vm, &options, &fill), 0);
}

static void end_fill(void)
{
	struct kvmfault_fill_progress progress = { .size = sizeof(progress) };

	do {
		sched_yield();
		ck_assert_int_eq(kvmfault_fill_progress(fill, &progress), 0);
	} while (!progress.over);
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
}

static void up_with(uint64_t size, uint64_t count)
{
	int channel[2];
	uint64_t number;

	page_size = size;
	pages = count;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(shared, MAP_FAILED);
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, channel), 0);
	vmm = fork();
	ck_assert_int_ge(vmm, 0);
	if (!vmm)
		be_vmm(channel[1]);
	close(channel[1]);
	uffd_fd = take_fd(channel[0], &number);
	ck_assert_int_ge(uffd_fd, 0);
	close(channel[0]);
}

static void up(void)
{
	up_with(PAGE, PAGES);
}

static void down(void)
{
	kill(vmm, SIGKILL);
	waitpid(vmm, NULL, 0);
	close(uffd_fd);
	munmap(shared, sizeof(*shared));
}

TEST_GROUP(remote, up, down);
TEST_GROUP(remote_huge, NULL, NULL);

static void pages_come(void)
{
	own();
	check_page(1);
	order(WRITE, 2, 1);
	order(READ, 2, 1);
	ck_assert_int_eq(shared->seen[2], 'w');
	check_page(3);
	disown();
}

TEST(remote, pages_come_when_missed)
{
	pages_come();
}

static void what_is_removed_is_zero(void)
{
	own();
	check_page(0);
	order(REMOVE, 0, 2);		/* one was there, and one was not */
	check_page(0);
	check_page(1);
	order(REMOVE, 3, 1);
	begin_fill();
	end_fill();
	check_all();
	order(REMOVE, 2, 1);
	check_page(2);
	disown();
}

TEST(remote, what_is_removed_stays_zero)
{
	what_is_removed_is_zero();
}

/* While a page is fetched, it is removed. This process has something else at
 * that address. */
TEST(remote, removed_in_flight)
{
	uint64_t length = pages * page_size, i;
	char *ours = mmap(shared->at, length, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
			  -1, 0);

	ck_assert_ptr_eq(ours, shared->at);
	memset(ours, 'o', length);
	own();
	atomic_store(&shared->stuck, true);
	begin_fill();
	while (!atomic_load(&shared->reads))
		sched_yield();
	order(REMOVE, 0, 4);
	atomic_store(&shared->stuck, false);
	end_fill();
	check_all();
	disown();
	for (i = 0; i < length; i++)
		ck_assert_int_eq(ours[i], 'o');
	ck_assert_int_eq(munmap(ours, length), 0);
}

TEST(remote, removed_while_it_is_filled)
{
	int page;

	own();
	begin_fill();
	for (page = 0; page < (int)pages; page += 3)
		order(REMOVE, page, 1);
	end_fill();
	check_all();
	disown();
}

/* Without a fill: each page is removed and read by turns. */
TEST(remote, removed_and_missed_by_turns)
{
	int page;

	own();
	for (page = 0; page + 1 < (int)pages; page += 2) {
		check_page(page);
		order(REMOVE, page, 1);
		check_page(page);
		check_page(page + 1);
	}
	disown();
}

TEST(remote, settled)
{
	uint64_t left;

	own();
	begin_fill();
	order(REMOVE, 1, 1);
	end_fill();
	ck_assert_int_eq(kvmfault_memory_settle(memory, &left), 0);
	check_all();
	disown();
}

/* An owner is killed while it fetches a page, and others are there. */
static void taken_over(void)
{
	struct kvmfault_memory_counts counts = { .size = sizeof(counts) };
	unsigned int reads;

	states_fd = memfd_create("states", MFD_CLOEXEC);
	start_owner();
	check_page(0);
	order(WRITE, 1, 1);
	order(REMOVE, 0, 1);
	check_page(0);
	atomic_store(&shared->stuck, true);
	reads = atomic_load(&shared->reads);
	begin(READ, 2, 1);
	while (atomic_load(&shared->reads) == reads)
		sched_yield();
	kill_owner();
	atomic_store(&shared->stuck, false);
	own();
	await();
	ck_assert_int_eq(shared->seen[2], data_of(2));
	ck_assert_int_eq(kvmfault_memory_count(memory, 0, pages * page_size,
					       &counts), 0);
	ck_assert_uint_ge(counts.present, 2);
	reads = atomic_load(&shared->reads);
	order(READ, 1, 1);
	ck_assert_int_eq(shared->seen[1], 'w');
	check_page(0);
	ck_assert_uint_eq(atomic_load(&shared->reads), reads);
	begin_fill();
	end_fill();
	for (reads = 0; reads < pages; reads++)
		if (reads != 1)
			check_page((int)reads);
	disown();
	close(states_fd);
}

TEST(remote, taken_over_after_a_kill)
{
	taken_over();
}

static int with_huge;

static void (*const huge_cases[])(void) = {
	pages_come, what_is_removed_is_zero, taken_over,
};

TEST_COUNTED(remote_huge, huge_pages, with_huge)
{
	up_with(HUGE, HUGE_PAGES);
	huge_cases[_i]();
	down();
}

/* ---- what does not work ---- */

TEST(remote, a_region_shows_it)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .length = pages * page_size,
	};

	own();
	region.memory = memory;
	ck_assert_int_eq(kvmfault_region_add(vm, &region), -EOPNOTSUPP);
	disown();
}

TEST(remote, its_process_is_gone)
{
	own();
	check_page(0);
	kill(vmm, SIGKILL);
	waitpid(vmm, NULL, 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	ck_assert_int_eq(adopt(), -ENOMEM);
	memory = NULL;
	disown();
}

int main(void)
{
	need("uffd");
	with_huge = have("hugetlb", lacks("hugetlb")) ?
		sizeof(huge_cases) / sizeof(*huge_cases) : 0;
	return run_suite("live-remote");
}
