/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Memory whose pages come from an NBD server: by faults on the real
 * userfaultfd, by fills, and by both while the server is killed again and
 * again. Every word is compared with what it has to be.
 */

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvmfault-nbd.h"
#include "nbd-server.h"
#include "need.h"
#include "unit.h"

#define PAGES 8192ULL
#define LENGTH (PAGES * PAGE)
#define GPA 0x40000000ULL
#define TOUCHERS 4

static struct kvmfault_vm *vm;
static struct kvmfault_service *service;
static struct kvmfault_memory *memory;
static struct kvmfault_source source;
static struct kvmfault_nbd_options options;
static char *ram;
static atomic_uint wrong, touched;
static atomic_bool stop;

/* Of 32 pages the last 12 are holes. */
static bool is_hole(uint64_t page)
{
	return page % 32 >= 20;
}

static uint64_t count_holes(void)
{
	return PAGES / 32 * 12;
}

static bool is_right(uint64_t page)
{
	const char *at = ram + page * PAGE;

	if (!is_hole(page))
		return server_is_right(at, page * PAGE, PAGE);
	return !at[0] && !memcmp(at, at + 1, PAGE - 1);
}

#define SERVE_IMAGE(...)						\
	SERVER_NBDKIT("--filter=delay", "file", server_path("image"),	\
		      __VA_ARGS__)

/* The memory's options and the source are set. */
static void make_memory(uint64_t window)
{
	struct kvmfault_memory_options wanted = {
		.size = sizeof(wanted), .length = LENGTH, .source = &source,
		.window = window ? KVMFAULT_WINDOW_FIXED : KVMFAULT_WINDOW_NONE,
		.window_length = window,
	};
	struct kvmfault_service_options threads = {
		.size = sizeof(threads), .threads = 2,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = GPA, .length = LENGTH,
	};

	ram = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(ram, MAP_FAILED);
	madvise(ram, LENGTH, MADV_NOHUGEPAGE);
	wanted.host = ram;
	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	ck_assert_int_eq(kvmfault_memory_adopt(vm, &wanted, &memory), 0);
	ck_assert_int_eq(kvmfault_service_new(vm, &threads, &service), 0);
	region.memory = memory;
	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
}

static void open_source(void)
{
	options.size = sizeof(options);
	options.uri = server_uri();
	options.pause_max_ms = 50;
	source.size = sizeof(source);
	ck_assert_int_eq(kvmfault_source_nbd(&options, &source), 0);
}

static void up(void)
{
	server_make_image(server_path("image"), LENGTH, is_hole);
	atomic_store(&stop, false);
}

static void end_memory(void)
{
	if (!vm)
		return;
	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_int_eq(kvmfault_region_remove(vm, 0, GPA), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	munmap(ram, LENGTH);
	vm = NULL;
}

static void down(void)
{
	end_memory();
	kvmfault_source_free(&source);
	server_clean_up();
	ck_assert_uint_eq(atomic_load(&wrong), 0);
}

static struct kvmfault_stats stats(void)
{
	struct kvmfault_stats now = { .size = sizeof(now) };

	ck_assert_int_eq(kvmfault_vm_stats(vm, &now), 0);
	return now;
}

/* Each in an order of its own. */
static void *touch_all(void *arg)
{
	uint64_t i, page = (uintptr_t)arg * 1111;

	for (i = 0; i < PAGES; i++) {
		page = (page * 5 + 2 * (uintptr_t)arg + 1) % PAGES;
		atomic_fetch_add(&wrong, !is_right(page));
	}
	atomic_fetch_add(&touched, 1);
	return NULL;
}

static void start_touching(pthread_t *thread)
{
	uintptr_t i;

	atomic_store(&touched, 0);
	for (i = 0; i < TOUCHERS; i++)
		ck_assert_int_eq(pthread_create(&thread[i], NULL, touch_all,
						(void *)i), 0);
}

static void end_touching(pthread_t *thread)
{
	unsigned int i;

	for (i = 0; i < TOUCHERS; i++)
		pthread_join(thread[i], NULL);
}

static struct kvmfault_fill *start_fill(uint32_t threads)
{
	struct kvmfault_fill_options wanted = {
		.size = sizeof(wanted), .memories = &memory, .memory_count = 1,
		.threads = threads,
	};
	struct kvmfault_fill *fill;

	ck_assert_int_eq(kvmfault_fill_new(vm, &wanted, &fill), 0);
	return fill;
}

static struct kvmfault_fill_progress end_fill(struct kvmfault_fill *fill)
{
	struct kvmfault_fill_progress now = { .size = sizeof(now) };

	do {
		usleep(1000);
		ck_assert_int_eq(kvmfault_fill_progress(fill, &now), 0);
	} while (!now.over);
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
	return now;
}

TEST_GROUP_FOR(memory, up, down, 300);

/* Each page comes once, and holes without being read. */
TEST_EACH(memory, by_faults, 2)
{
	pthread_t thread[TOUCHERS];

	SERVE_IMAGE("rdelay=1ms");
	open_source();
	make_memory(_i ? 16 * PAGE : 0);
	start_touching(thread);
	end_touching(thread);
	ck_assert_uint_eq(stats().fetched, PAGES - count_holes());
	ck_assert_uint_eq(stats().holes, count_holes());
}

TEST_EACH(memory, by_a_fill, 2)
{
	uint64_t page;

	SERVE_IMAGE("rdelay=1ms");
	open_source();
	make_memory(0);
	end_fill(start_fill(1));
	for (page = 0; page < PAGES; page++)
		ck_assert(is_right(page));
	ck_assert_uint_eq(stats().holes, count_holes());
	if (!_i)
		return;
	/* And without the source for all time after. */
	ck_assert_int_eq(kvmfault_memory_settle(memory, NULL), 0);
	kvmfault_source_free(&source);
	for (page = 0; page < PAGES; page++)
		ck_assert(is_right(page));
}

TEST(memory, of_a_qcow2)
{
	pthread_t thread[TOUCHERS];
	struct kvmfault_fill *fill;

	server_run((const char *const[]){ "qemu-img", "convert", "-f", "raw",
		   "-O", "qcow2", server_path("image"), server_path("qcow2"),
		   NULL });
	server_start((const char *const[]){ "qemu-nbd", "-r", "-t", "-e", "8",
		     "-f", "qcow2", "-k", server_path("socket"),
		     server_path("qcow2"), NULL });
	open_source();
	make_memory(0);
	fill = start_fill(1);
	start_touching(thread);
	end_touching(thread);
	end_fill(fill);
}

/* A snapshot's difference in a file, and its base far away. */
TEST(memory, under_a_layer)
{
	struct kvmfault_source above = { .size = sizeof(above) };
	uint64_t page;
	int fd = open(server_path("above"), O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	SERVE_IMAGE("rdelay=1ms");
	open_source();
	ck_assert_int_eq(ftruncate(fd, LENGTH), 0);
	for (page = 0; page < PAGES; page += 7)
		ck_assert_int_eq(pwrite(fd, "above", 5, (off_t)(page * PAGE)),
				 5);
	ck_assert_int_eq(kvmfault_source_file(fd, &above), 0);
	ck_assert_int_eq(kvmfault_source_over(&above, &source, &source), 0);
	make_memory(0);
	end_fill(start_fill(4));
	for (page = 0; page < PAGES; page++)
		ck_assert(page % 7 ? is_right(page) :
			  !memcmp(ram + page * PAGE, "above", 6));
	close(fd);
}

static unsigned int number(const char *variable, unsigned int silent)
{
	const char *text = getenv(variable);

	return text ? (unsigned int)atoi(text) : silent;
}

/* The server is killed at moments that no person has thought of, while threads
 * touch the memory. Returns how often. */
static unsigned int kill_now_and_then(unsigned int most, unsigned int *seed)
{
	unsigned int kills = 0;

	while (kills < most && atomic_load(&touched) < TOUCHERS) {
		usleep((useconds_t)rand_r(seed) % 20000);
		server_kill(rand_r(seed) % 4 ? SIGKILL : SIGTERM);
		usleep((useconds_t)rand_r(seed) % 20000);
		SERVE_IMAGE("rdelay=2ms");
		kills++;
	}
	return kills;
}

/* Restores again and again, until the server was killed as often as wanted. */
TEST(memory, while_the_server_is_killed)
{
	unsigned int kills = number("KVMFAULT_TEST_KILLS", 20);
	unsigned int seed = number("KVMFAULT_TEST_SEED", 1);
	pthread_t thread[TOUCHERS];
	struct kvmfault_fill *fill;

	SERVE_IMAGE("rdelay=2ms");
	open_source();
	while (kills) {
		make_memory(0);
		fill = start_fill(1);
		ck_assert_int_eq(kvmfault_fill_set_rate(fill, 4 << 20), 0);
		start_touching(thread);
		kills -= kill_now_and_then(kills, &seed);
		end_touching(thread);
		ck_assert_int_eq(kvmfault_fill_set_rate(fill, 0), 0);
		ck_assert_int_eq(end_fill(fill).error, 0);
		ck_assert_uint_eq(stats().fetched, PAGES - count_holes());
		ck_assert_uint_eq(stats().holes, count_holes());
		end_memory();
	}
}

/* What can't be had is an error, and neither zeros nor a hang; and it can be
 * had when the server is back. */
TEST(memory, deadline)
{
	options.deadline_ms = 2000;
	SERVE_IMAGE("rdelay=0");
	open_source();
	make_memory(0);
	ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA, PAGE,
					 KVMFAULT_ACCESS_READ), 0);
	server_kill(SIGKILL);
	ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA + PAGE, PAGE,
					 KVMFAULT_ACCESS_READ), -ETIMEDOUT);
	SERVE_IMAGE("rdelay=0");
	ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA + PAGE, PAGE,
					 KVMFAULT_ACCESS_READ), 0);
	ck_assert(is_right(1));
}

static void *touch_one(void *unused)
{
	(void)unused;
	kvmfault_ensure(vm, 0, GPA, PAGE, KVMFAULT_ACCESS_READ);
	return NULL;
}

/* The server has the request and says nothing: the memory can be freed. */
TEST(memory, freed_with_a_fetch_in_flight)
{
	pthread_t thread;

	SERVE_IMAGE("rdelay=60");
	open_source();
	make_memory(0);
	ck_assert_int_eq(pthread_create(&thread, NULL, touch_one, NULL), 0);
	usleep(50000);
	ck_assert_int_eq(kvmfault_cancel_fetches(vm, 0, GPA, LENGTH), 0);
	pthread_join(thread, NULL);
	end_memory();
}

int main(void)
{
	need("uffd");
	if (!have("nbd", server_lacks("nbdkit")) ||
	    !have("nbd", server_lacks("qemu-nbd")))
		return 77;
	return run_suite("live-nbd");
}
