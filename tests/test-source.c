/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * source.c and layers.c: all of the bytes, or an error; whatever pread(2) does.
 * What is said to be zero is.
 */

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

/* ---- holes ---- */

/* The fake's files have a hole where 512 bytes of them are zero. */
static void dig(uint64_t offset, uint64_t length)
{
	memset(data + offset, 0, length);
}

static int extent(const struct kvmfault_source *of, uint64_t offset,
		  uint64_t asked, uint64_t expected)
{
	int kind = of->extent(of->data, offset, &asked);

	ck_assert_uint_eq(asked, expected);
	return kind;
}

static size_t seeks(void)
{
	return fake_count(FAKE_LSEEK, SEEK_DATA) +
	       fake_count(FAKE_LSEEK, SEEK_HOLE);
}

TEST(source, holes_of_a_file)
{
	dig(4096, 2048);
	ck_assert_int_eq(extent(&source, 0, SIZE, 4096), KVMFAULT_EXTENT_DATA);
	ck_assert_uint_eq(seeks(), 2);
	ck_assert_int_eq(extent(&source, 4096, SIZE - 4096, 2048),
			 KVMFAULT_EXTENT_HOLE);
	ck_assert_uint_eq(seeks(), 3);
	ck_assert_int_eq(extent(&source, 5000, 10, 10), KVMFAULT_EXTENT_HOLE);
	ck_assert_int_eq(extent(&source, 6144, 3000, 3000),
			 KVMFAULT_EXTENT_DATA);
}

/* Also within a page: in a layer the rest of it is another one's. */
TEST(source, hole_within_a_page)
{
	dig(1024, 512);
	ck_assert_int_eq(extent(&source, 0, 4096, 1024), KVMFAULT_EXTENT_DATA);
	ck_assert_int_eq(extent(&source, 1024, 4096, 512),
			 KVMFAULT_EXTENT_HOLE);
}

/* A hole goes as far as the file does: and no further. */
TEST(source, hole_at_the_end)
{
	dig(8192, SIZE - 8192);
	ck_assert_int_eq(extent(&source, 8192, 8192, SIZE - 8192),
			 KVMFAULT_EXTENT_HOLE);
	ck_assert_int_eq(extent(&source, SIZE - 1, 100, 1),
			 KVMFAULT_EXTENT_HOLE);
	ck_assert_int_eq(extent(&source, SIZE, 100, 100), -ENODATA);
	ck_assert_int_eq(extent(&source, 1ULL << 40, 4096, 4096), -ENODATA);
	fake_push(FAKE_FSTAT, -EIO);
	ck_assert_int_eq(extent(&source, 8192, 100, 100), -EIO);
}

static off_t cut_to;

static bool tell_cut(struct fake_call *call)
{
	fake_model(call);
	((struct stat *)call->arg)->st_size = cut_to;
	return true;
}

/* The file was cut off: what was data is no hole. */
TEST(source, hole_in_a_file_that_was_cut)
{
	cut_to = 5000;
	fake_on(FAKE_FSTAT, tell_cut);
	fake_push(FAKE_LSEEK, -ENXIO);
	ck_assert_int_eq(extent(&source, 8192, 1000, 1000), -ENODATA);
	fake_push(FAKE_LSEEK, -ENXIO);
	ck_assert_int_eq(extent(&source, 5000, 1000, 1000), -ENODATA);
	fake_push(FAKE_LSEEK, -ENXIO);
	ck_assert_int_eq(extent(&source, 4096, 4096, 904),
			 KVMFAULT_EXTENT_HOLE);
}

/* The kernel can't say: then it is read. */
TEST(source, holes_that_are_not_known)
{
	static const long errors[] = { -EINVAL, -ENOTTY, -ENOSYS };
	unsigned int i;

	dig(0, SIZE);
	for (i = 0; i < 3; i++) {
		fake_push(FAKE_LSEEK, errors[i]);
		ck_assert_int_eq(extent(&source, 0, 8192, 8192),
				 KVMFAULT_EXTENT_DATA);
	}
	fd = fake_file(FAKE_BLOCK, data, 8192);
	ck_assert_int_eq(kvmfault_source_file(fd, &source), 0);
	ck_assert_int_eq(extent(&source, 0, 8192, 8192), KVMFAULT_EXTENT_DATA);
}

/* What may be known the next time is no data: in a layer that would hide what
 * is below. */
TEST(source, holes_that_cannot_be_asked_for_now)
{
	dig(512, 512);
	fake_push(FAKE_LSEEK, -EIO);
	ck_assert_int_eq(extent(&source, 512, 512, 512), -EIO);
	fake_push(FAKE_LSEEK, FAKE_MODEL);
	fake_push(FAKE_LSEEK, -EINTR);
	ck_assert_int_eq(extent(&source, 0, 8192, 8192), -EINTR);
	/* The file changes meanwhile. */
	fake_push(FAKE_LSEEK, FAKE_MODEL);
	fake_push(FAKE_LSEEK, 0);
	ck_assert_int_eq(extent(&source, 0, 8192, 8192), -EIO);
}

TEST(source, zeros_are_zero)
{
	ck_assert_int_eq(kvmfault_source_zero(&source), 0);
	ck_assert_int_eq(extent(&source, 1ULL << 62, 4096, 4096),
			 KVMFAULT_EXTENT_ZERO);
	ck_assert_int_eq(kvmfault_source_memory(data, 8192, &source), 0);
	ck_assert(!source.extent);
}

/* ---- free ---- */

static unsigned int freed;

static void note_free(void *what)
{
	ck_assert_ptr_eq(what, data);
	freed++;
}

TEST(source, freed)
{
	struct kvmfault_source none = { .size = sizeof(none) };

	kvmfault_source_free(NULL);
	kvmfault_source_free(&source);	/* has nothing of its own */
	ck_assert_mem_eq(&source, &none, sizeof(none));
	source.data = data;
	source.free = note_free;
	kvmfault_source_free(&source);
	ck_assert_uint_eq(freed, 1);
	ck_assert_mem_eq(&source, &none, sizeof(none));
	kvmfault_source_free(&source);
	ck_assert_uint_eq(freed, 1);
}

/* Of a caller that was compiled with an older header: what comes behind its
 * struct is not ours. */
TEST(source, old_struct_freed)
{
	source.size = offsetof(struct kvmfault_source, free);
	source.free = note_free;
	kvmfault_source_free(&source);
	ck_assert_uint_eq(freed, 0);
	ck_assert(source.free == note_free && !source.read);
	source.size = 0;
	source.name = "none";
	kvmfault_source_free(&source);
	ck_assert_str_eq(source.name, "none");
}

/* ---- layers ---- */

static unsigned char below_data[SIZE];
static struct kvmfault_source above, below, over;

static void over_up(void)
{
	unsigned int i;

	up();
	for (i = 0; i < SIZE; i++)
		below_data[i] = (unsigned char)(i % 250 + 1);
	memset(data, 0xaa, SIZE);
	above = source;
	below.size = over.size = sizeof(over);
	ck_assert_int_eq(kvmfault_source_memory(below_data, SIZE, &below), 0);
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &over), 0);
}

static void over_down(void)
{
	kvmfault_source_free(&over);
	ck_assert_int_eq(fake_held().allocations, 0);
}

static int read_over(uint64_t offset, size_t length)
{
	memset(buffer, 0x55, SIZE);
	return over.read(over.data, offset, buffer, length);
}

/* Each byte from the layer that has it. */
static void check_over(uint64_t offset, size_t length)
{
	size_t i;

	ck_assert_int_eq(read_over(offset, length), 0);
	for (i = 0; i < length; i++)
		ck_assert_uint_eq(buffer[i], data[offset + i] ?
				  data[offset + i] : below_data[offset + i]);
	ck_assert_uint_eq(buffer[length], 0x55);
}

TEST_GROUP(over, over_up, over_down);

TEST(over, each_byte_from_its_layer)
{
	check_over(0, 8192);
	dig(512, 1024);
	dig(4096, 512);
	check_over(0, 8192);
	check_over(600, 10);
	check_over(1000, 3500);
	check_over(1535, 2);
	ck_assert_str_eq(over.name, "over");
}

TEST(over, extents)
{
	dig(512, 1024);
	ck_assert_int_eq(extent(&over, 0, 8192, 512), KVMFAULT_EXTENT_DATA);
	ck_assert_int_eq(extent(&over, 512, 8192, 1024), KVMFAULT_EXTENT_DATA);
	/* Below has a hole there as well. */
	kvmfault_source_free(&over);
	fd = fake_file(FAKE_FILE, below_data, SIZE);
	memset(below_data + 1024, 0, 4096);
	ck_assert_int_eq(kvmfault_source_file(fd, &below), 0);
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &over), 0);
	ck_assert_int_eq(extent(&over, 512, 8192, 512), KVMFAULT_EXTENT_DATA);
	ck_assert_int_eq(extent(&over, 1024, 8192, 512), KVMFAULT_EXTENT_HOLE);
	check_over(0, 8192);
	/* And on zeros it is zero. */
	kvmfault_source_free(&over);
	ck_assert_int_eq(kvmfault_source_zero(&below), 0);
	memset(below_data, 0, SIZE);
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &over), 0);
	ck_assert_int_eq(extent(&over, 600, 8192, 936), KVMFAULT_EXTENT_ZERO);
	check_over(0, 8192);
}

TEST(over, view_of_one_layer)
{
	dig(4096, 4096);
	ck_assert(!over.view(over.data, 0, 4096));	/* a file has none */
	ck_assert_ptr_eq(over.view(over.data, 4096, 4096), below_data + 4096);
	ck_assert_ptr_eq(over.view(over.data, 5000, 100), below_data + 5000);
	ck_assert(!over.view(over.data, 4000, 4096));
	ck_assert(!over.view(over.data, 4096, 4097));
	/* Two files have none at all. */
	kvmfault_source_free(&over);
	ck_assert_int_eq(kvmfault_source_over(&above, &above, &over), 0);
	ck_assert(!over.view);
}

/* The one above ends earlier: as if it had a hole there. */
TEST(over, above_ends)
{
	kvmfault_source_free(&over);
	ck_assert_int_eq(kvmfault_source_file(fake_file(FAKE_FILE, data, 4100),
					      &above), 0);
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &over), 0);
	ck_assert_uint_eq(over.length, SIZE);
	memset(data + 4100, 0, SIZE - 4100);
	check_over(0, SIZE - 1);
	check_over(4000, 200);
	ck_assert_int_eq(extent(&over, 4000, 1000, 100), KVMFAULT_EXTENT_DATA);
	ck_assert_ptr_eq(over.view(over.data, 4100, 100), below_data + 4100);
}

/* The one below does: there is nothing then, and that is not zeros. */
TEST(over, below_ends)
{
	kvmfault_source_free(&over);
	ck_assert_int_eq(kvmfault_source_memory(below_data, 4100, &below), 0);
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &over), 0);
	ck_assert_uint_eq(over.length, SIZE);
	check_over(0, 8192);
	dig(4096, 1024);
	check_over(4000, 100);
	ck_assert_int_eq(extent(&over, 4096, 1024, 4), KVMFAULT_EXTENT_DATA);
	ck_assert_int_eq(extent(&over, 4100, 10, 10), -ENODATA);
	ck_assert_int_eq(read_over(4000, 101), -ENODATA);
	ck_assert_int_eq(read_over(4100, 1), -ENODATA);
	ck_assert(!over.view(over.data, 4100, 1));
	check_over(5120, 1000);
}

TEST(over, length_not_known)
{
	kvmfault_source_free(&over);
	ck_assert_int_eq(kvmfault_source_zero(&above), 0);
	below.chunk = 8192;
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &over), 0);
	ck_assert_uint_eq(over.length, 0);
	ck_assert_uint_eq(over.chunk, 8192);
	ck_assert_int_eq(read_over(1ULL << 40, 100), 0);
	ck_assert_uint_eq(buffer[99], 0);
}

/* A layer was cut off: an error, wherever the bytes would have come from. */
TEST_EACH(over, layer_that_was_cut, 2)
{
	struct kvmfault_source *cut = _i ? &above : &below;

	kvmfault_source_free(&over);
	cut->file = fake_file(FAKE_FILE, data, SIZE);
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &over), 0);
	dig(0, 4096);
	check_over(0, 4096);
	cut_to = 4095;
	fake_on(FAKE_FSTAT, tell_cut);
	ck_assert_int_eq(read_over(0, 4096), -ENODATA);
	ck_assert(!over.view(over.data, 0, 4096));
	check_over(0, 4095);
	cut_to = 4096;
	check_over(0, 4096);
}

static int answer;
static uint64_t answer_length;

static int lie(void *what, uint64_t offset, uint64_t *length)
{
	(void)what;
	(void)offset;
	*length = answer_length;
	return answer;
}

static int fail_to_read(void *what, uint64_t offset, void *to, size_t length)
{
	(void)what;
	(void)offset;
	(void)to;
	(void)length;
	return answer;
}

/* What a layer says that cannot be is the source's failure, not zeros. */
TEST(over, layer_that_lies_or_fails)
{
	static const struct {
		int answer;
		uint64_t length;
		int expected;
	} lies[] = {
		{ KVMFAULT_EXTENT_ZERO, 0, -EIO },
		{ KVMFAULT_EXTENT_ZERO, 101, -EIO },
		{ KVMFAULT_EXTENT_DATA, 0, -EIO },
		{ KVMFAULT_EXTENT_HOLE + 1, 100, -EIO },
		{ -EAGAIN, 100, -EAGAIN },
		{ -EHWPOISON, 100, -EHWPOISON },
	};
	unsigned int i;

	kvmfault_source_free(&over);
	above.extent = lie;
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &over), 0);
	for (i = 0; i < sizeof(lies) / sizeof(*lies); i++) {
		answer = lies[i].answer;
		answer_length = lies[i].length;
		ck_assert_int_eq(read_over(0, 100), lies[i].expected);
		ck_assert(!over.view(over.data, 0, 100));
	}
	kvmfault_source_free(&over);
	above = source;
	below.read = fail_to_read;
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &over), 0);
	dig(512, 512);
	answer = -EREMOTEIO;
	ck_assert_int_eq(read_over(0, 1024), -EREMOTEIO);
	answer = 512;		/* a count is no answer */
	ck_assert_int_eq(read_over(0, 1024), -EIO);
	ck_assert_int_eq(read_over(0, 512), 0);
}

/* More than two, from the lowest one up. */
TEST(over, three)
{
	static unsigned char top[SIZE];
	struct kvmfault_source highest = { .size = sizeof(highest) };

	memset(top, 0xcc, 512);
	dig(0, SIZE);
	memset(data + 1024, 0xaa, 512);
	ck_assert_int_eq(kvmfault_source_file(fake_file(FAKE_FILE, top, SIZE),
					      &highest), 0);
	ck_assert_int_eq(kvmfault_source_over(&highest, &over, &over), 0);
	ck_assert_int_eq(read_over(0, 4096), 0);
	ck_assert_mem_eq(buffer, top, 512);
	ck_assert_mem_eq(buffer + 512, below_data + 512, 512);
	ck_assert_mem_eq(buffer + 1024, data + 1024, 512);
	ck_assert_mem_eq(buffer + 1536, below_data + 1536, 4096 - 1536);
}

TEST(over, frees_both)
{
	kvmfault_source_free(&over);
	above.data = below.data = data;
	above.free = below.free = note_free;
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &over), 0);
	kvmfault_source_free(&over);
	ck_assert_uint_eq(freed, 2);
}

TEST(over, refused)
{
	struct {
		struct kvmfault_source source;
		char newer;
	} newer = { .source = above, .newer = 1 };
	struct kvmfault_source new = { .size = sizeof(new) };

	newer.source.size = sizeof(newer);
	above.data = below.data = data;
	above.free = below.free = note_free;
	ck_assert_int_eq(kvmfault_source_over(NULL, &below, &new), -EINVAL);
	ck_assert_int_eq(kvmfault_source_over(&above, NULL, &new), -EINVAL);
	ck_assert_int_eq(kvmfault_source_over(&above, &below, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_source_over(&newer.source, &below, &new),
			 -E2BIG);
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &new), -ENOMEM);
	above.read = NULL;
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &new),
			 -EOPNOTSUPP);
	above.read = below.read;
	below.read = NULL;
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &new),
			 -EOPNOTSUPP);
	above.extent = NULL;
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &new), -EINVAL);
	above.size = 0;
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &new), -EINVAL);
	ck_assert_uint_eq(freed, 0);
	ck_assert(!new.read);
}

int main(void)
{
	return run_suite("source");
}
