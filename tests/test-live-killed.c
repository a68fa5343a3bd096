/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A process that restores a memory is killed at a random moment, again and
 * again, and the next process takes the memory up by its states. Threads read,
 * write and discard pages all the while, a fill brings the rest, and the source
 * is slow. Every page has what it must have, whatever moment it was; what a
 * thread has seen or discarded once is never fetched again.
 */

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "lib/setup/setup.h"
#include "need.h"
#include "unit.h"

#define PAGES 512ULL
#define LENGTH (PAGES * PAGE)
#define THREADS 3U
#define LIVES 10U		/* of one memory: then comes a new one */

/* What a page has: `head` in its first eight bytes, if it is not 0, and behind
 * it the source's bytes, or zeros. */
struct content {
	uint64_t head;
	bool zero;
};

/* It outlives every process but the test's own. A page is used by one thread
 * only, which says first what it will do, and afterwards that it is done. */
static struct {
	struct {
		struct content is, will_be;
		bool touched;	/* its content was seen: it has come */
		bool closed;	/* it must not be fetched any more */
		atomic_uint fetched;
	} page[PAGES];
	atomic_uint begun;	/* owners whose memory was made */
	atomic_uint taken_up;	/* of those, not new ones */
	unsigned int refetched;	/* pages that were in flight */
	char error[200];
} *shared;

static int fd, states_fd;
static bool minor;
static unsigned char *host;
static struct kvmfault_memory *memory;
static struct kvmfault_vm *vm;

#define FAIL(...) do {							\
		snprintf(shared->error, sizeof(shared->error), __VA_ARGS__); \
		_exit(3);						\
	} while (0)

static unsigned char byte_of(uint64_t page)
{
	return (unsigned char)(page % 250 + 1);
}

static unsigned int next_random(unsigned int *seed)
{
	*seed = *seed * 1664525U + 1013904223U;
	return *seed >> 8;
}

static void nap(unsigned int microseconds)
{
	struct timespec time = {
		.tv_sec = microseconds / 1000000,
		.tv_nsec = microseconds % 1000000 * 1000L,
	};

	nanosleep(&time, NULL);
}

static int read_source(void *data, uint64_t offset, void *buffer, size_t length)
{
	size_t at;

	(void)data;
	for (at = 0; at < length; at += PAGE) {
		uint64_t page = (offset + at) / PAGE;

		if (shared->page[page].closed)
			FAIL("page %u is fetched again", (unsigned int)page);
		atomic_fetch_add(&shared->page[page].fetched, 1);
		memset((char *)buffer + at, byte_of(page), PAGE);
		if (at == length / 2)
			nap(60);
	}
	return 0;
}

/* ---- the owner, which will be killed ---- */

static bool page_is(uint64_t page, struct content content)
{
	const unsigned char *at = host + page * PAGE;
	unsigned char byte = content.zero ? 0 : byte_of(page);
	uint64_t head;
	size_t i;

	memcpy(&head, at, sizeof(head));
	for (i = sizeof(head); i < PAGE; i++)
		if (at[i] != byte)
			return false;
	return content.head ? head == content.head :
	       head == byte * 0x0101010101010101ULL;
}

/* Touches the page. If its last user was killed, it is in one of two ways. */
static void check(uint64_t page)
{
	struct content will_be = shared->page[page].will_be;

	if (page_is(page, will_be))
		shared->page[page].is = will_be;
	else if (page_is(page, shared->page[page].is))
		shared->page[page].will_be = shared->page[page].is;
	else
		FAIL("page %u has %#x, %#x, not source %d, head %#x",
		     (unsigned int)page, host[page * PAGE],
		     host[page * PAGE + 9], !will_be.zero,
		     (unsigned int)will_be.head);
	shared->page[page].touched = true;
}

static void write_page(uint64_t page, uint64_t head)
{
	shared->page[page].will_be.head = head;
	*(volatile uint64_t *)(void *)(host + page * PAGE) = head;
	shared->page[page].is = shared->page[page].will_be;
}

static void discard(uint64_t page)
{
	shared->page[page].will_be = (struct content){ .zero = true };
	if (kvmfault_discard(vm, 0, page * PAGE, PAGE))
		FAIL("page %u: not discarded", (unsigned int)page);
	shared->page[page].is = shared->page[page].will_be;
	shared->page[page].touched = true;
}

static void *use_pages(void *arg)
{
	unsigned int number = (unsigned int)(uintptr_t)arg;
	unsigned int seed = number * 77 + (unsigned int)getpid();

	for (;;) {
		uint64_t page = next_random(&seed) % (PAGES / THREADS) *
				THREADS + number;

		check(page);
		switch (next_random(&seed) % 8) {
		case 0:
			discard(page);
			break;
		case 1:
		case 2:
		case 3:
			write_page(page, (uint64_t)seed << 16 | 1);
			break;
		}
		if (!(next_random(&seed) % 4))
			nap(40);
	}
	return NULL;
}

/* What has come is there, and is never fetched again. */
static void look_at_states(void)
{
	uint64_t bitmap[PAGES / 64], page;

	if (kvmfault_memory_bitmap(memory, 0, LENGTH, KVMFAULT_STATE_PRESENT |
				   KVMFAULT_STATE_DISCARDED, bitmap,
				   sizeof(bitmap)))
		FAIL("no bitmap");
	for (page = 0; page < PAGES; page++) {
		if (bitmap[page / 64] >> page % 64 & 1)
			shared->page[page].closed = true;
		else if (shared->page[page].touched)
			FAIL("page %u had come, and is absent",
			     (unsigned int)page);
		else if (atomic_load(&shared->page[page].fetched))
			shared->refetched++;
	}
}

static void make_memory(void)
{
	static const struct kvmfault_service_options service = {
		.size = sizeof(service), .threads = 2,
	};
	const struct kvmfault_source source = {
		.size = sizeof(source), .read = read_source, .length = LENGTH,
	};
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = LENGTH, .source = &source,
		.fd = fd, .states_fd = states_fd, .minor = minor,
		.window = KVMFAULT_WINDOW_FIXED, .window_length = 4 * PAGE,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .length = LENGTH,
	};
	struct kvmfault_service *threads;

	host = options.host = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE,
				   MAP_SHARED, fd, 0);
	if (host == MAP_FAILED || kvmfault_vm_new(NULL, &vm) ||
	    kvmfault_service_new(vm, &service, &threads) ||
	    kvmfault_memory_adopt(vm, &options, &memory))
		FAIL("no memory");
	region.memory = memory;
	if (kvmfault_region_add(vm, &region))
		FAIL("no region");
}

__attribute__((noreturn))
static void be_owner(bool first)
{
	const struct kvmfault_fill_options options = {
		.size = sizeof(options), .memories = &memory,
		.memory_count = 1, .threads = 1, .window_length = 8 * PAGE,
		.rate = 64 << 20,
	};
	struct kvmfault_fill *fill;
	pthread_t thread;
	unsigned int i;

	make_memory();
	look_at_states();
	atomic_fetch_add(&shared->begun, 1);
	atomic_fetch_add(&shared->taken_up, !first);
	if (kvmfault_fill_new(vm, &options, &fill))
		FAIL("no fill");
	for (i = 0; i < THREADS; i++)
		if (pthread_create(&thread, NULL, use_pages,
				   (void *)(uintptr_t)i))
			FAIL("no thread");
	for (;;)
		pause();
}

/* ---- who kills ---- */

static uint64_t longest;	/* life of an owner, in microseconds */

static void new_files(void)
{
	close(fd);
	close(states_fd);
	fd = memfd_create("guest", MFD_CLOEXEC);
	states_fd = memfd_create("states", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(fd, LENGTH), 0);
	memset(shared->page, 0, sizeof(shared->page));
}

/* A life is up to four times as long as it takes to make the memory. */
static void wait_until_begun(void)
{
	uint64_t began = kvmfault__sys_now();

	while (!atomic_load(&shared->begun) && !shared->error[0])
		nap(20);
	longest = (kvmfault__sys_now() - began) / 1000 * 4 + 1;
}

static void live_and_die(bool first, unsigned int random)
{
	pid_t pid = fork();
	int status;

	ck_assert_int_ge(pid, 0);
	if (!pid)
		be_owner(first);
	if (!longest)
		wait_until_begun();
	nap((unsigned int)(random % longest));
	ck_assert_int_eq(kill(pid, SIGKILL), 0);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
		      "status %#x: %s", status, shared->error);
}

/* Page by page, a last owner finds all as it must be. */
static void check_all(void)
{
	pid_t pid = fork();
	uint64_t page;
	int status;

	ck_assert_int_ge(pid, 0);
	if (!pid) {
		make_memory();
		look_at_states();
		for (page = 0; page < PAGES; page++)
			check(page);
		_exit(kvmfault_memory_settle(memory, NULL) ? 4 : 0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_msg(WIFEXITED(status) && !WEXITSTATUS(status),
		      "status %#x: %s", status, shared->error);
}

static void kill_owners(bool of_minor, unsigned int kills)
{
	unsigned int seed = 4711, i;

	minor = of_minor;
	fd = states_fd = -1;
	longest = 0;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(shared, MAP_FAILED);
	for (i = 0; i < kills; i++) {
		if (!(i % LIVES))
			new_files();
		live_and_die(!(i % LIVES), next_random(&seed));
		if (i % LIVES == LIVES - 1)
			check_all();
	}
	/* The moments were of all kinds: before, in and after the restore. */
	printf("%u owners killed, %u of them at work, %u of these after another; %u pages in flight fetched again\n",
	       kills, atomic_load(&shared->begun),
	       atomic_load(&shared->taken_up), shared->refetched);
	ck_assert_uint_gt(atomic_load(&shared->taken_up), 0);
}

TEST_GROUP(killed, NULL, NULL);

static unsigned int count_kills(void)
{
	const char *text = getenv("KVMFAULT_TEST_KILLS");

	return text ? (unsigned int)strtoul(text, NULL, 10) : 200;
}

TEST(killed, at_any_moment)
{
	kill_owners(false, count_kills());
}

TEST(killed, with_minor_faults)
{
	kill_owners(true, count_kills());
}

int main(void)
{
	need("uffd");
	return run_suite("live-killed");
}
