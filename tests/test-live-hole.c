/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Sparse images on the real userfaultfd and real files: every byte is right,
 * holes are not read, and in anonymous memory they take no memory.
 */

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/setup/setup.h"
#include "need.h"
#include "own-memory.h"
#include "unit.h"

#define PAGES 1024ULL
#define LENGTH (PAGES * PAGE)
#define GPA 0x40000000ULL

static struct kvmfault_vm *vm;
static struct kvmfault_service *service;
static struct kvmfault_memory *memory;
static struct kvmfault_source source;
static int image;
static char *host;
static char expected[LENGTH];

/* Two pages in ten have data: the first byte of one, the last of the other. */
static bool page_has_data(uint64_t page)
{
	return page % 10 == 3 || page % 10 == 4;
}

static void put(int fd, char *copy, uint64_t at, char byte)
{
	ck_assert_int_eq(pwrite(fd, &byte, 1, (off_t)at), 1);
	copy[at] = byte;
}

static void fill_image(int fd)
{
	uint64_t page;

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, LENGTH), 0);
	for (page = 0; page < PAGES; page++)
		if (page_has_data(page))
			put(fd, expected, page * PAGE +
			    (page % 10 == 4 ? PAGE - 1 : 0),
			    (char)(page % 100 + 1));
}

static void file_source(int fd, struct kvmfault_source *of)
{
	of->size = sizeof(*of);
	ck_assert_int_eq(kvmfault_source_file(fd, of), 0);
}

static void up_vm(void)
{
	struct kvmfault_service_options options = {
		.size = sizeof(options), .threads = 1,
	};

	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	ck_assert_int_eq(kvmfault_service_new(vm, &options, &service), 0);
}

static void add_memory(int fd)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = LENGTH, .source = &source,
		.fd = fd, .window = KVMFAULT_WINDOW_FIXED,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = GPA, .length = LENGTH,
	};

	host = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, fd ? MAP_SHARED :
		    MAP_PRIVATE | MAP_ANONYMOUS, fd ? fd : -1, 0);
	ck_assert_ptr_ne(host, MAP_FAILED);
	options.host = host;
	ck_assert_int_eq(kvmfault_memory_adopt(vm, &options, &memory), 0);
	region.memory = memory;
	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
}

static int shared_file(void)
{
	int fd = memfd_create("guest", MFD_CLOEXEC);

	ck_assert_int_eq(ftruncate(fd, LENGTH), 0);
	return fd;
}

static void up(void)
{
	up_vm();
	image = memfd_create("image", MFD_CLOEXEC);
	fill_image(image);
	file_source(image, &source);
}

static void down(void)
{
	ck_assert_int_eq(kvmfault_region_remove(vm, 0, GPA), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	kvmfault_source_free(&source);
}

static int ensure(uint64_t page, uint64_t count)
{
	return kvmfault_ensure(vm, 0, GPA + page * PAGE, count * PAGE, false);
}

static struct kvmfault_stats stats(void)
{
	struct kvmfault_stats all = { .size = sizeof(all) };

	ck_assert_int_eq(kvmfault_vm_stats(vm, &all), 0);
	return all;
}

static uint64_t own_pages(void)
{
	return own_memory(host, LENGTH) / PAGE;
}

TEST_GROUP(hole, up, down);

TEST(hole, anonymous_memory_does_not_grow)
{
	add_memory(0);
	ck_assert_int_eq(ensure(0, PAGES), 0);
	ck_assert_uint_eq(stats().fetched, PAGES / 10 * 2 + 1);
	ck_assert_uint_eq(stats().holes, PAGES - stats().fetched);
	ck_assert_uint_eq(own_pages(), stats().fetched);
	ck_assert(!memcmp(host, expected, LENGTH));
	ck_assert_uint_eq(own_pages(), stats().fetched);
	/* A hole that is written is a page as any. */
	host[0] = 42;
	expected[0] = 42;
	ck_assert_uint_eq(own_pages(), stats().fetched + 1);
	ck_assert(!memcmp(host, expected, LENGTH));
}

/* Threads sleep on the pages, and each is served. */
static void *compare(void *arg)
{
	const char *from = arg;

	return memcmp(from, expected + (from - host), LENGTH / 4) ? arg : NULL;
}

TEST_EACH(hole, touched_by_threads, 2)
{
	pthread_t thread[4];
	void *wrong;
	int i;

	add_memory(_i ? shared_file() : 0);
	for (i = 0; i < 4; i++)
		pthread_create(&thread[i], NULL, compare,
			       host + (unsigned int)i * LENGTH / 4);
	for (i = 0; i < 4; i++) {
		pthread_join(thread[i], &wrong);
		ck_assert_ptr_null(wrong);
	}
	while (stats().fetched + stats().holes < PAGES)
		sched_yield();
	ck_assert_uint_eq(stats().holes, PAGES - PAGES / 10 * 2 - 1);
	ck_assert_uint_eq(stats().existed, 0);
}

/* Whatever its file system does with holes. */
TEST(hole, file_on_disk)
{
	FILE *file = tmpfile();

	memset(expected, 0, LENGTH);
	fill_image(fileno(file));
	file_source(fileno(file), &source);
	add_memory(0);
	ck_assert_int_eq(ensure(0, PAGES), 0);
	ck_assert(!memcmp(host, expected, LENGTH));
	ck_assert_uint_eq(own_pages(), stats().fetched);
	ck_assert_uint_eq(stats().fetched + stats().holes, PAGES);
}

TEST(hole, layers)
{
	struct kvmfault_source above = { .size = sizeof(above) };
	int top = memfd_create("top", MFD_CLOEXEC);
	uint64_t page, i;

	ck_assert_int_eq(ftruncate(top, LENGTH), 0);
	file_source(top, &above);
	for (page = 5; page < PAGES; page += 7) {
		for (i = 0; i < PAGE; i++)
			expected[page * PAGE + i] = 0;
		put(top, expected, page * PAGE + page % PAGE, 'a');
	}
	ck_assert_int_eq(kvmfault_source_over(&above, &source, &source), 0);
	add_memory(0);
	ck_assert_int_eq(ensure(0, PAGES), 0);
	ck_assert(!memcmp(host, expected, LENGTH));
	ck_assert_uint_gt(stats().holes, PAGES / 2);
	ck_assert_uint_eq(own_pages(), stats().fetched);
}

/* The image is cut off under a VM that runs: what is missing is no hole. */
TEST(hole, image_is_cut)
{
	add_memory(0);
	ck_assert_int_eq(ftruncate(image, 513 * PAGE + 100), 0);
	ck_assert_int_eq(ensure(PAGES - 1, 1), -ENODATA);
	ck_assert_int_eq(ensure(600, 1), -ENODATA);
	ck_assert_int_eq(ensure(513, 1), -ENODATA);	/* a part of it is */
	ck_assert_int_eq(ensure(512, 1), 0);		/* the last whole one */
	ck_assert_int_eq(ensure(0, 64), 0);
	ck_assert(!memcmp(host, expected, 64 * PAGE));
	ck_assert_uint_eq(kvmfault__page_state(memory, PAGES - 1),
			  KVMFAULT__ABSENT);
	ck_assert_uint_eq(kvmfault__page_state(memory, 513), KVMFAULT__ABSENT);
}

int main(void)
{
	need("uffd");
	return run_suite("live-hole");
}
