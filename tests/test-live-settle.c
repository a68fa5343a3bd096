/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * settle.c on the real userfaultfd: threads read, write and discard all the
 * time, before, while and after the memory is left to the kernel. None reads
 * what it should not, and none is left asleep.
 */

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/setup/setup.h"
#include "need.h"
#include "unit.h"

#define PAGES 256ULL
#define LENGTH (PAGES * PAGE)
#define GPA 0x40000000ULL
#define READERS 3
#define BALLOON 4ULL		/* every fourth page is discarded now and then */
#define ROUNDS 40U

static struct kvmfault_vm *vm;
static struct kvmfault_service *service;
static struct kvmfault_memory *memory;
static int backing;
static char *host, *own;
static atomic_uint wrong, rounds;
static atomic_bool stop;

static unsigned char byte_of(uint64_t page)
{
	return (unsigned char)(page % 255 + 1);
}

static int read_page(void *data, uint64_t offset, void *buffer, size_t length)
{
	size_t at;

	(void)data;
	for (at = 0; at < length; at += PAGE)
		memset((char *)buffer + at, byte_of((offset + at) / PAGE), PAGE);
	return 0;
}

static char *map_backing(void)
{
	char *at = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, backing ?
			MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS,
			backing ? backing : -1, 0);

	ck_assert_ptr_ne(at, MAP_FAILED);
	return at;
}

static void up_with(bool file, bool minor, bool write_protect)
{
	const struct kvmfault_source source = {
		.size = sizeof(source), .read = read_page, .length = LENGTH,
	};
	struct kvmfault_service_options threads = {
		.size = sizeof(threads), .threads = 2,
	};
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = LENGTH, .source = &source,
		.minor = minor, .write_protect = write_protect,
	};
	struct kvmfault_mapping_options second = { .size = sizeof(second) };
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = GPA, .length = LENGTH,
	};
	struct kvmfault_mapping *mapping;

	atomic_store(&stop, false);
	atomic_store(&wrong, 0);
	atomic_store(&rounds, 0);
	backing = file ? memfd_create("guest", MFD_CLOEXEC) : 0;
	if (file)
		ck_assert_int_eq(ftruncate(backing, LENGTH), 0);
	host = own = map_backing();
	options.host = host;
	options.fd = backing;
	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	ck_assert_int_eq(kvmfault_service_new(vm, &threads, &service), 0);
	ck_assert_int_eq(kvmfault_memory_adopt(vm, &options, &memory), 0);
	region.memory = memory;
	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
	if (!file)
		return;
	own = map_backing();
	second.host = (uintptr_t)own;
	ck_assert_int_eq(kvmfault_mapping_add(memory, &second, &mapping), 0);
}

static void up_file(void)
{
	up_with(true, false, false);
}

static void up_minor(void)
{
	up_with(true, true, false);
}

static void up_anonymous(void)
{
	up_with(false, false, true);
}

static void down(void)
{
	ck_assert_int_eq(kvmfault_region_remove(vm, 0, GPA), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
}

static bool is_right(const char *at, uint64_t page)
{
	const volatile unsigned char *bytes = (const void *)at;
	unsigned char first = bytes[page * PAGE];

	return first == byte_of(page) || (page % BALLOON == 0 && !first);
}

/* Of each mapping, in an order of its own. */
static void *read_all(void *arg)
{
	uint64_t n = (uintptr_t)arg, page = n;

	while (!atomic_load(&stop)) {
		page = (page * 5 + 2 * n + 1) % PAGES;
		atomic_fetch_add(&wrong, !is_right(n % 2 ? own : host, page));
	}
	return NULL;
}

static void *discard_all(void *unused)
{
	uint64_t page = 0;

	for (; !atomic_load(&stop); page = (page + BALLOON) % PAGES) {
		ck_assert_int_eq(kvmfault_discard(vm, 0, GPA + page * PAGE,
						  PAGE), 0);
		atomic_fetch_add(&rounds, !page);
	}
	return unused;
}

static void await_rounds(unsigned int more)
{
	unsigned int until = atomic_load(&rounds) + more;

	while (atomic_load(&rounds) < until)
		sched_yield();
}

/* Of the mapping's VMA: is it registered in any way? */
static bool is_registered(const void *at)
{
	char line[512];
	FILE *file = fopen("/proc/self/smaps", "re");
	bool here = false, registered = false;
	unsigned long from, to;

	ck_assert_ptr_nonnull(file);
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			here = (uintptr_t)at >= from && (uintptr_t)at < to;
		if (here && !strncmp(line, "VmFlags:", 8))
			registered = strstr(line, " um") ||
				     strstr(line, " uw") ||
				     strstr(line, " ui");
	}
	fclose(file);
	return registered;
}

static struct kvmfault_memory_counts counts(void)
{
	struct kvmfault_memory_counts now = { .size = sizeof(now) };

	ck_assert_int_eq(kvmfault_memory_count(memory, 0, LENGTH, &now), 0);
	return now;
}

/* While the others go on: what is in flight just then may be in the way. */
static void settle(void)
{
	uint64_t left;
	int err;

	do {
		err = kvmfault_memory_settle(memory, &left);
		ck_assert(!err || (err == -EBUSY && left));
	} while (err);
	ck_assert(!is_registered(host));
	ck_assert(!is_registered(own));
	ck_assert_uint_eq(counts().present, PAGES);
}

static void bring_all(void)
{
	ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA, LENGTH, false), 0);
}

TEST_GROUP(file, up_file, down);

TEST(file, settled_while_threads_touch_it)
{
	pthread_t thread[READERS + 1];
	uint64_t page;
	uintptr_t i;

	for (i = 0; i < READERS; i++)
		pthread_create(&thread[i], NULL, read_all, (void *)i);
	pthread_create(&thread[READERS], NULL, discard_all, NULL);
	bring_all();
	await_rounds(ROUNDS);
	settle();
	await_rounds(ROUNDS);
	atomic_store(&stop, true);
	for (i = 0; i <= READERS; i++)
		pthread_join(thread[i], NULL);
	ck_assert_uint_eq(atomic_load(&wrong), 0);
	/* It is memory as any other: what is written stays, and shows. */
	for (page = 0; page < PAGES; page++) {
		ck_assert(is_right(host, page));
		host[page * PAGE] = 77;
		ck_assert_int_eq(own[page * PAGE], 77);
	}
	ck_assert_int_eq(kvmfault_discard(vm, 0, GPA, LENGTH), 0);
	for (page = 0; page < PAGES; page++)
		ck_assert_int_eq(own[page * PAGE], 0);
	ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA, LENGTH, true), 0);
}

/* One page is absent: then each mapping is as it was, and the page comes. */
TEST(file, refused_while_a_page_is_absent)
{
	uint64_t left;

	ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA, LENGTH - PAGE, false), 0);
	ck_assert_int_eq(kvmfault_memory_settle(memory, &left), -EBUSY);
	ck_assert_uint_eq(left, 1);
	ck_assert(is_registered(host));
	ck_assert(is_registered(own));
	ck_assert_uint_eq((unsigned char)own[LENGTH - 1], byte_of(PAGES - 1));
	ck_assert_uint_eq(counts().absent, 0);
	settle();
}

/* The twin of is_registered(). */
TEST(file, is_registered_before)
{
	ck_assert(is_registered(host));
	ck_assert(is_registered(own));
	ck_assert(!is_registered(&wrong));
}

TEST_GROUP(freed, up_file, NULL);

/* Nothing is closed to readers then. */
TEST(freed, readable_after_that)
{
	bring_all();
	ck_assert_int_eq(kvmfault_discard(vm, 0, GPA, PAGE), 0);
	settle();
	down();
	ck_assert_int_eq(host[0], 0);
	ck_assert_uint_eq((unsigned char)host[PAGE], byte_of(1));
	ck_assert_uint_eq((unsigned char)own[PAGE], byte_of(1));
}

TEST_GROUP(minor, up_minor, down);
TEST_ALSO(minor, settled_while_threads_touch_it);
TEST_ALSO(minor, refused_while_a_page_is_absent);

TEST_GROUP(anonymous, up_anonymous, down);
TEST_ALSO(anonymous, settled_while_threads_touch_it);
TEST_ALSO(anonymous, refused_while_a_page_is_absent);

int main(void)
{
	need("uffd");
	return run_suite("live-settle");
}
