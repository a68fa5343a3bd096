/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Clones: many memories that are private mappings of one, the base, on the real
 * userfaultfd. Each shows the image and what it has written itself. Each page of
 * the image is fetched once for all of them, and is in memory once until it is
 * written; what a clone discards is zero for that clone alone.
 */

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/setup/setup.h"
#include "need.h"
#include "own-memory.h"
#include "unit.h"

#define PAGES 512ULL
#define LENGTH (PAGES * PAGE)
#define FIRST 16ULL			/* page of the base, a clone's first */
#define CLONE_PAGES (PAGES - FIRST)
#define CLONE_LENGTH (CLONE_PAGES * PAGE)
#define CLONES 6
#define THREADS 3

struct clone {
	char *host;
	struct kvmfault_memory *memory;
	char expected[CLONE_PAGES];	/* by page, of its last byte */
};

static struct kvmfault_vm *vm;
static struct kvmfault_service *service;
static struct kvmfault_memory *base;
static struct clone clones[CLONES];
static char *base_host;
static int fd;
static atomic_uint reads[PAGES];
static atomic_int lost_page;		/* -1: none */

static char data_of(uint64_t page)
{
	return (char)(page % 100 + 1);
}

static int read_source(void *data, uint64_t offset, void *buffer, size_t length)
{
	uint64_t page = offset / PAGE;
	size_t i;

	(void)data;
	for (i = 0; i < length; i += PAGE, page++) {
		if (atomic_load(&lost_page) == (int)page)
			return -EHWPOISON;
		atomic_fetch_add(&reads[page], 1);
		memset((char *)buffer + i, data_of(page), PAGE);
	}
	return 0;
}

static int adopt_clone(struct clone *it,
		       const struct kvmfault_memory_options *o)
{
	struct kvmfault_memory_options options = *o;

	options.size = sizeof(options);
	options.length = CLONE_LENGTH;
	options.base = base;
	options.source_offset = FIRST * PAGE;
	options.host = it->host;
	return kvmfault_memory_adopt(vm, &options, &it->memory);
}

static void make_clone(unsigned int n)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = n * (1ULL << 30),
		.length = CLONE_LENGTH,
	};
	const struct kvmfault_memory_options none = { 0 };
	uint64_t i;

	clones[n].host = mmap(NULL, CLONE_LENGTH, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE, fd, FIRST * PAGE);
	ck_assert_ptr_ne(clones[n].host, MAP_FAILED);
	ck_assert_int_eq(adopt_clone(&clones[n], &none), 0);
	region.memory = clones[n].memory;
	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
	for (i = 0; i < CLONE_PAGES; i++)
		clones[n].expected[i] = data_of(FIRST + i);
}

static void up(void)
{
	const struct kvmfault_source source = {
		.size = sizeof(source), .read = read_source, .length = LENGTH,
	};
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = LENGTH, .source = &source,
	};
	const struct kvmfault_service_options threads = {
		.size = sizeof(threads), .threads = 2,
	};
	unsigned int i;

	atomic_store(&lost_page, -1);
	fd = memfd_create("image", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(fd, LENGTH), 0);
	base_host = options.host = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE,
					MAP_SHARED, fd, 0);
	ck_assert_ptr_ne(base_host, MAP_FAILED);
	options.fd = fd;
	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	ck_assert_int_eq(kvmfault_service_new(vm, &threads, &service), 0);
	ck_assert_int_eq(kvmfault_memory_adopt(vm, &options, &base), 0);
	for (i = 0; i < CLONES; i++)
		make_clone(i);
}

static void down(void)
{
	unsigned int i;

	for (i = 0; i < CLONES; i++) {
		ck_assert_int_eq(kvmfault_region_remove(vm, 0, i *
							(1ULL << 30)), 0);
		ck_assert_int_eq(kvmfault_memory_free(base), -EBUSY);
		ck_assert_int_eq(kvmfault_memory_free(clones[i].memory), 0);
		munmap(clones[i].host, CLONE_LENGTH);
	}
	ck_assert_int_eq(kvmfault_memory_free(base), 0);
	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	munmap(base_host, LENGTH);
	close(fd);
}

static char look(const struct clone *it, uint64_t page)
{
	return *(volatile char *)(it->host + page * PAGE + PAGE - 1);
}

static void check_clone(const struct clone *it)
{
	uint64_t i;

	for (i = 0; i < CLONE_PAGES; i++)
		ck_assert_msg(look(it, i) == it->expected[i],
			      "clone %d, page %d: %d in place of %d",
			      (int)(it - clones), (int)i, look(it, i),
			      it->expected[i]);
}

static void check_read_once(void)
{
	uint64_t i;

	for (i = FIRST; i < PAGES; i++)
		ck_assert_uint_eq(atomic_load(&reads[i]), 1);
}

static void discard(struct clone *it, uint64_t page, uint64_t count)
{
	ck_assert_int_eq(kvmfault_discard(vm, 0, (uint64_t)(it - clones) *
					  (1ULL << 30) + page * PAGE,
					  count * PAGE), 0);
	memset(it->expected + page, 0, count);
}

TEST_GROUP(clone, up, down);

static void *use_clones(void *arg)
{
	unsigned int n = *(unsigned int *)arg, i;

	for (i = n; i < CLONES; i += THREADS)
		check_clone(&clones[i]);
	return NULL;
}

/* All clones at once, from several threads. */
TEST(clone, fetched_once_for_all)
{
	unsigned int number[THREADS], i;
	pthread_t thread[THREADS];

	for (i = 0; i < THREADS; i++) {
		number[i] = i;
		ck_assert_int_eq(pthread_create(&thread[i], NULL, use_clones,
						&number[i]), 0);
	}
	for (i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	check_read_once();
	/* Nothing is a clone's own, and the base's pages are all there. */
	for (i = 0; i < CLONES; i++)
		ck_assert_uint_eq(own_memory(clones[i].host, CLONE_LENGTH), 0);
}

TEST(clone, writes_are_its_own)
{
	unsigned int i;

	for (i = 0; i < CLONES; i++) {
		memset(clones[i].host + i * PAGE, 'a' + (int)i, PAGE);
		clones[i].expected[i] = (char)('a' + i);
	}
	for (i = 0; i < CLONES; i++)
		check_clone(&clones[i]);
	check_read_once();
	for (i = 0; i < CLONES; i++)
		ck_assert_uint_eq(own_memory(clones[i].host, CLONE_LENGTH),
				  PAGE);
}

TEST(clone, what_is_discarded_is_zero)
{
	unsigned int i;

	ck_assert_int_eq(look(&clones[0], 0), data_of(FIRST));
	clones[0].host[PAGE] = 'w';
	discard(&clones[0], 0, 3);	/* there, written, and not there */
	check_clone(&clones[0]);
	clones[0].host[2 * PAGE - 1] = clones[0].expected[1] = 'x';
	for (i = 0; i < CLONES; i++)
		check_clone(&clones[i]);
	discard(&clones[0], 1, 1);
	check_clone(&clones[0]);
}

TEST(clone, a_fill_of_the_base_is_for_all)
{
	const struct kvmfault_fill_options options = {
		.size = sizeof(options), .memories = &base,
		.memory_count = 1, .threads = 2,
	};
	struct kvmfault_fill_progress progress = { .size = sizeof(progress) };
	struct kvmfault_fill *fill;
	unsigned int i;

	ck_assert_int_eq(kvmfault_fill_new(vm, &options, &fill), 0);
	discard(&clones[1], 5, 20);
	for (i = 0; i < CLONES; i++)
		check_clone(&clones[i]);
	do
		ck_assert_int_eq(kvmfault_fill_progress(fill, &progress), 0);
	while (!progress.over);
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
	check_read_once();
}

TEST(clone, a_fill_of_a_clone_and_settle)
{
	struct kvmfault_fill_options options = {
		.size = sizeof(options), .memory_count = 1, .threads = 1,
	};
	struct kvmfault_fill_progress progress = { .size = sizeof(progress) };
	struct kvmfault_fill *fill;
	unsigned int i;

	discard(&clones[2], 0, 1);
	options.memories = &clones[2].memory;
	ck_assert_int_eq(kvmfault_fill_new(vm, &options, &fill), 0);
	do
		ck_assert_int_eq(kvmfault_fill_progress(fill, &progress), 0);
	while (!progress.over);
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
	ck_assert_int_eq(kvmfault_memory_settle(clones[2].memory, NULL), 0);
	for (i = 0; i < CLONES; i++)
		check_clone(&clones[i]);
	check_read_once();
}

/* A page that the source has lost is lost to each that misses it. */
TEST(clone, a_lost_page)
{
	struct kvmfault_memory_counts counts = { .size = sizeof(counts) };

	atomic_store(&lost_page, (int)FIRST + 7);
	ck_assert_int_eq(kvmfault_ensure(vm, 0, 7 * PAGE, PAGE, false),
			 -EHWPOISON);
	ck_assert_int_eq(look(&clones[0], 6), data_of(FIRST + 6));
	ck_assert_int_eq(look(&clones[1], 8), data_of(FIRST + 8));
	ck_assert_int_eq(kvmfault_ensure(vm, 0, (1ULL << 30) + 7 * PAGE, PAGE,
					 false), -EHWPOISON);
	ck_assert_int_eq(kvmfault_memory_count(clones[0].memory, 0,
					       CLONE_LENGTH, &counts), 0);
	ck_assert_uint_eq(counts.poisoned, 1);
	discard(&clones[0], 7, 1);
	ck_assert_int_eq(look(&clones[0], 7), 0);
}

static void *look_at_third(void *arg)
{
	*(char *)arg = look(&clones[0], 3);
	return NULL;
}

/* The page has come by the time the message is read. */
TEST(clone, a_message_that_is_late)
{
	const struct kvmfault_service_options threads = {
		.size = sizeof(threads), .threads = 1,
	};
	struct pollfd message = {
		.fd = clones[0].memory->uffd->fd, .events = POLLIN,
	};
	pthread_t thread;
	char seen = 0;

	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_int_eq(pthread_create(&thread, NULL, look_at_third, &seen),
			 0);
	ck_assert_int_eq(poll(&message, 1, -1), 1);
	ck_assert_int_eq(kvmfault_ensure(vm, 0, 3 * PAGE, PAGE, false), 0);
	ck_assert_int_eq(kvmfault_service_new(vm, &threads, &service), 0);
	pthread_join(thread, NULL);
	ck_assert_int_eq(seen, data_of(FIRST + 3));
	ck_assert_int_eq(look(&clones[0], 3), data_of(FIRST + 3));
}

/* ---- what is refused ---- */

TEST(clone, what_goes_not_with_a_base)
{
	const struct kvmfault_source source = {
		.size = sizeof(source), .read = read_source, .length = LENGTH,
	};
	const struct kvmfault_memory_options options[] = {
		{ .source = &source }, { .fd = fd }, { .minor = true },
		{ .write_protect = true }, { .states_fd = fd },
	};
	const struct kvmfault_memory_options none = { 0 };
	struct kvmfault_memory *whole;
	struct clone it = { 0 };
	unsigned int i;

	it.host = mmap(NULL, CLONE_LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE,
		       fd, FIRST * PAGE);
	ck_assert_ptr_ne(it.host, MAP_FAILED);
	for (i = 0; i < sizeof(options) / sizeof(*options); i++)
		ck_assert_int_eq(adopt_clone(&it, &options[i]), -EINVAL);
	munmap(it.host, CLONE_LENGTH);
	/* Mapped at another place of the file, or shared. */
	it.host = mmap(NULL, CLONE_LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE,
		       fd, 0);
	ck_assert_int_eq(adopt_clone(&it, &none), -EINVAL);
	munmap(it.host, CLONE_LENGTH);
	it.host = mmap(NULL, CLONE_LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED,
		       fd, FIRST * PAGE);
	ck_assert_int_eq(adopt_clone(&it, &none), -EINVAL);
	munmap(it.host, CLONE_LENGTH);
	/* A clone's clone. */
	whole = base;
	base = clones[1].memory;
	it.host = clones[0].host;
	ck_assert_int_eq(adopt_clone(&it, &none), -EINVAL);
	base = whole;
}

int main(void)
{
	need("uffd");
	return run_suite("live-clone");
}
