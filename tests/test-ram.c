/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* ram.c: memory in one call, of a new memfd or of a file, and the caller's. */

#include <string.h>
#include <sys/mman.h>

#include "bed.h"

#define HUGE (2ULL << 20)

static struct kvmfault_memory_options options;
static struct kvmfault_memory_maps maps;
static struct kvmfault_memory *memory;
static struct kvmfault_source source;

static void up(void)
{
	bed_vm();
	source = bed_source();
	options = (struct kvmfault_memory_options){
		.size = sizeof(options), .length = BED_PAGES * PAGE,
		.source = &source,
	};
	maps = (struct kvmfault_memory_maps){ .size = sizeof(maps) };
}

static int create(void)
{
	return kvmfault_memory_alloc(bed.vm, &options, &maps, &memory);
}

/* As a VMM does it. */
static void drop(void)
{
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	ck_assert_int_eq(kvmfault__sys_munmap(maps.memslots, options.length),
			 0);
	ck_assert_int_eq(kvmfault__sys_munmap(maps.own, options.length), 0);
	if (!options.fd)
		ck_assert_int_eq(kvmfault__sys_close(maps.fd), 0);
}

TEST_GROUP(ram, up, bed_down);

TEST(ram, made_of_nothing)
{
	ck_assert_int_eq(create(), 0);
	ck_assert_int_gt(maps.fd, 0);
	ck_assert_ptr_ne(maps.memslots, maps.own);
	ck_assert(fake_registered(maps.memslots));
	ck_assert(fake_registered(maps.own));
	ck_assert_uint_eq(fake_count(FAKE_MADVISE, MADV_NOHUGEPAGE), 2);
	ck_assert_ptr_eq(memory->host, maps.memslots);
	drop();
}

TEST(ram, made_of_huge_pages)
{
	options.page_size = HUGE;
	options.length = 2 * HUGE;
	ck_assert_int_eq(create(), 0);
	ck_assert_uint_eq(fake_nth(FAKE_MEMFD, FAKE_ANY, 0)->number,
			  MFD_HUGETLB | 21U << 26);
	ck_assert_uint_eq(kvmfault__page_size(memory), HUGE);
	drop();
}

TEST(ram, made_of_a_file)
{
	void *elsewhere;

	options.fd = fake_memory(options.length, 0, &elsewhere);
	ck_assert_int_eq(create(), 0);
	ck_assert_int_eq(maps.fd, options.fd);
	ck_assert_uint_eq(fake_count(FAKE_MEMFD, FAKE_ANY), 0);
	drop();
}

TEST(ram, without_a_source)
{
	options.source = NULL;
	ck_assert_int_eq(create(), 0);
	ck_assert(!fake_registered(maps.memslots));
	drop();
}

TEST(ram, descriptor_0_is_none)
{
	int fd = fake_fd(FAKE_PIPE);

	/* The kernel's lowest one is 0 in a process that has closed it. */
	fake_push(FAKE_MEMFD, 0);
	fake_push(FAKE_DUP, fd);
	fake_push(FAKE_CLOSE, 0);
	fake_push(FAKE_MMAP, -ENODEV);
	fake_push(FAKE_CLOSE, 0);
	ck_assert_int_eq(create(), -ENODEV);
	ck_assert_int_eq(fake_nth(FAKE_CLOSE, FAKE_ANY, 0)->fd, 0);
	ck_assert_int_eq(fake_nth(FAKE_CLOSE, FAKE_ANY, 1)->fd, fd);
}

TEST(ram, wrong_arguments)
{
	struct {
		struct kvmfault_memory_options options;
		uint64_t more;
	} newer = { .more = 1 };

	maps.size = 1;
	ck_assert_int_eq(create(), -EINVAL);
	maps.size = sizeof(maps);
	ck_assert_int_eq(kvmfault_memory_alloc(bed.vm, &options, NULL,
						&memory), -EINVAL);
	ck_assert_int_eq(kvmfault_memory_alloc(bed.vm, &options, &maps, NULL),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_memory_alloc(NULL, &options, &maps,
						&memory), -EINVAL);
	options.host = &options;
	ck_assert_int_eq(create(), -EINVAL);
	options.host = NULL;
	options.length = 0;
	ck_assert_int_eq(create(), -EINVAL);
	options.length = PAGE;
	options.page_size = PAGE + 1;
	ck_assert_int_eq(create(), -EINVAL);
	/* A size that this kernel has no huge pages of. */
	options.length = options.page_size = HUGE;
	fake_push(FAKE_MEMFD, -ENODEV);
	ck_assert_int_eq(create(), -EOPNOTSUPP);
	newer.options.size = sizeof(newer);
	ck_assert_int_eq(kvmfault_memory_alloc(bed.vm, &newer.options, &maps,
						&memory), -E2BIG);
	ck_assert_ptr_null(memory);
	ck_assert_ptr_null(maps.own);
}

int main(void)
{
	return run_suite("ram");
}
