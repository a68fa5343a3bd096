/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * source.c: all of the bytes, or an error; whatever pread(2) does.
 */

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "fake-sys.h"
#include "kvmfault.h"
#include "unit.h"

#define SIZE 10000U

static unsigned char data[SIZE];
static unsigned char buffer[SIZE];
static struct kvmfault_source source;
static int fd;

static void up(void)
{
	unsigned int i;

	for (i = 0; i < SIZE; i++)
		data[i] = (unsigned char)(i * 7 + i / 256);
	fd = fake_file(FAKE_FILE, data, SIZE);
	source.size = sizeof(source);
	ck_assert_int_eq(kvmfault_source_file(fd, &source), 0);
	memset(buffer, 0x55, SIZE);
}

static int read_source(uint64_t offset, size_t length)
{
	return source.read(source.data, offset, buffer, length);
}

TEST_GROUP(source, up, NULL);

TEST(source, file)
{
	ck_assert_str_eq(source.name, "file");
	ck_assert_uint_eq(source.length, SIZE);
	ck_assert_int_eq(read_source(0, 4096), 0);
	ck_assert_mem_eq(buffer, data, 4096);
	ck_assert_int_eq(buffer[4096], 0x55);
	ck_assert_int_eq(read_source(5000, 5000), 0);
	ck_assert_mem_eq(buffer, data + 5000, 5000);
}

/* As few bytes at once as the kernel likes. */
static bool short_read(struct fake_call *call)
{
	if (call->length > 1000)
		call->length = 1000;
	fake_model(call);
	return true;
}

TEST(source, short_reads)
{
	fake_on(FAKE_PREAD, short_read);
	ck_assert_int_eq(read_source(100, 4096), 0);
	ck_assert_mem_eq(buffer, data + 100, 4096);
	ck_assert_uint_eq(fake_count(FAKE_PREAD, FAKE_ANY), 5);
	ck_assert_uint_eq(fake_nth(FAKE_PREAD, FAKE_ANY, 4)->at, 4100);
}

TEST(source, signals)
{
	fake_push(FAKE_PREAD, -EINTR);
	fake_push(FAKE_PREAD, -EINTR);
	ck_assert_int_eq(read_source(0, 4096), 0);
	ck_assert_mem_eq(buffer, data, 4096);
}

TEST(source, ends_too_early)
{
	ck_assert_int_eq(read_source(SIZE, 1), -ENODATA);
	ck_assert_int_eq(read_source(SIZE - 10, 11), -ENODATA);
	ck_assert_int_eq(read_source(1ULL << 40, 4096), -ENODATA);
}

TEST(source, fails)
{
	fake_push(FAKE_PREAD, -EIO);
	ck_assert_int_eq(read_source(0, 4096), -EIO);
	/* Half of it was there already. */
	fake_on(FAKE_PREAD, short_read);
	fake_push(FAKE_PREAD, FAKE_MODEL);
	fake_push(FAKE_PREAD, -EIO);
	ck_assert_int_eq(read_source(0, 4096), -EIO);
	ck_assert_mem_eq(buffer, data, 1000);
}

TEST(source, not_a_source)
{
	ck_assert_int_eq(kvmfault_source_file(fd, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_source_file(7777, &source), -EBADF);
	ck_assert_int_eq(kvmfault_source_file(-1, &source), -EBADF);
	/* As F_GETFL says it; live-uffd has such descriptors. */
	fake_push(FAKE_GETFL, O_WRONLY);
	ck_assert_int_eq(kvmfault_source_file(fd, &source), -EACCES);
	fake_push(FAKE_GETFL, O_PATH);
	ck_assert_int_eq(kvmfault_source_file(fd, &source), -EACCES);
	fake_push(FAKE_GETFL, O_RDONLY);
	ck_assert_int_eq(kvmfault_source_file(fd, &source), 0);
	ck_assert_int_eq(kvmfault_source_file(fake_fd(FAKE_PIPE), &source),
			 -ESPIPE);
	ck_assert_int_eq(kvmfault_source_file(fake_file(FAKE_FILE, data, 0),
					      &source), -ENODATA);
	ck_assert_int_eq(kvmfault_source_file(fake_file(FAKE_BLOCK, data, 0),
					      &source), -ENODATA);
	source.size = 0;
	ck_assert_int_eq(kvmfault_source_file(fd, &source), -EINVAL);
}

TEST(source, block_device)
{
	fd = fake_file(FAKE_BLOCK, data, 8192);
	ck_assert_int_eq(kvmfault_source_file(fd, &source), 0);
	ck_assert_uint_eq(source.length, 8192);
	ck_assert_int_eq(read_source(4096, 4096), 0);
	ck_assert_mem_eq(buffer, data + 4096, 4096);
	fake_push(FAKE_IOCTL, -EIO);
	ck_assert_int_eq(kvmfault_source_file(fd, &source), -EIO);
}

TEST(source, zero)
{
	ck_assert_int_eq(kvmfault_source_zero(NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_source_zero(&source), 0);
	ck_assert_str_eq(source.name, "zero");
	ck_assert_uint_eq(source.length, 0);	/* no end */
	ck_assert_int_eq(read_source(1ULL << 62, 100), 0);
	ck_assert_int_eq(buffer[0], 0);
	ck_assert_int_eq(buffer[99], 0);
	ck_assert_int_eq(buffer[100], 0x55);
}

TEST(source, memory)
{
	ck_assert_int_eq(kvmfault_source_memory(data, 8192, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_source_memory(NULL, 8192, &source), -EINVAL);
	ck_assert_int_eq(kvmfault_source_memory(data, 0, &source), -EINVAL);
	ck_assert_int_eq(kvmfault_source_memory(data, 8192, &source), 0);
	ck_assert_str_eq(source.name, "memory");
	ck_assert_uint_eq(source.length, 8192);
	ck_assert_ptr_eq(source.view(source.data, 4096, 4096), data + 4096);
	ck_assert_int_eq(read_source(4096, 4096), 0);
	ck_assert_mem_eq(buffer, data + 4096, 4096);
	source.size = 0;
	ck_assert_int_eq(kvmfault_source_memory(data, 8192, &source), -EINVAL);
}

int main(void)
{
	return run_suite("source");
}
