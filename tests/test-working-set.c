/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Working sets and their files: what goes in comes out, in its order; a set has
 * no byte twice; and a file that is cut or changed, whichever of its bytes it
 * is, gives no set and leaves nothing.
 */

#include <string.h>

#include "fake-sys.h"
#include "lib/memory/working-set.h"
#include "unit.h"

#define IMAGE (1024 * PAGE)
#define HEADER 72U

static unsigned char disk[1 << 16];
static int file;

static struct kvmfault_working_set *new_set(uint64_t image_length,
					    uint8_t identity)
{
	struct kvmfault_working_set_options options = {
		.size = sizeof(options), .image_length = image_length,
		.identity = { [31] = identity },
	};
	struct kvmfault_working_set *set;

	ck_assert_int_eq(kvmfault_working_set_new(&options, &set), 0);
	return set;
}

/* Pairs of first page and number of pages; none has 0 pages. */
static void add_pages(struct kvmfault_working_set *set, const unsigned int *at)
{
	struct kvmfault__image_run run[16];
	uint64_t n;

	for (n = 0; at[2 * n + 1]; n++)
		run[n] = (struct kvmfault__image_run){
			at[2 * n] * PAGE, at[2 * n + 1] * PAGE,
		};
	ck_assert_int_eq(kvmfault__working_set_add(set, run, n), 0);
}
#define ADD(set, ...) \
	add_pages(set, (const unsigned int[]){ __VA_ARGS__, 0, 0 })

static void expect_pages(const struct kvmfault_working_set *set,
			 const unsigned int *at)
{
	struct kvmfault_working_set_info info = { .size = sizeof(info) };
	uint64_t n, offset, length, bytes = 0;

	for (n = 0; at[2 * n + 1]; n++) {
		ck_assert_int_eq(kvmfault_working_set_run(set, n, &offset,
							  &length), 0);
		ck_assert_uint_eq(offset, at[2 * n] * PAGE);
		ck_assert_uint_eq(length, at[2 * n + 1] * PAGE);
		bytes += length;
	}
	ck_assert_int_eq(kvmfault_working_set_run(set, n, &offset, &length),
			 -ENOENT);
	ck_assert_int_eq(kvmfault_working_set_describe(set, &info), 0);
	ck_assert_uint_eq(info.runs, n);
	ck_assert_uint_eq(info.bytes, bytes);
}
#define EXPECT(set, ...) \
	expect_pages(set, (const unsigned int[]){ __VA_ARGS__, 0, 0 })

static void expect_nothing_left(void)
{
	ck_assert_int_eq(fake_held().allocations, 0);
}

/* ---- sets ---- */

TEST_GROUP(sets, NULL, expect_nothing_left);

TEST(sets, what_is_wrong)
{
	struct kvmfault_working_set_options options = {
		.size = sizeof(options), .image_length = IMAGE,
	};
	struct {
		struct kvmfault_working_set_options options;
		uint64_t more;
	} longer = { options, 1 };
	struct kvmfault_working_set_info info = { .size = sizeof(info) };
	struct kvmfault_working_set *set;
	uint64_t n;

	longer.options.size = sizeof(longer);
	ck_assert_int_eq(kvmfault_working_set_new(&options, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_working_set_new(NULL, &set), -EINVAL);
	ck_assert_int_eq(kvmfault_working_set_new(&longer.options, &set),
			 -E2BIG);
	options.image_length = 0;
	ck_assert_int_eq(kvmfault_working_set_new(&options, &set), -EINVAL);
	ck_assert_ptr_null(set);
	ck_assert_int_eq(kvmfault_working_set_free(NULL), 0);
	ck_assert_int_eq(kvmfault_working_set_describe(NULL, &info), -EINVAL);
	ck_assert_int_eq(kvmfault_working_set_load(0, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_working_set_load(-1, &set), -EBADF);
	ck_assert_ptr_null(set);
	ck_assert_int_eq(kvmfault_working_set_save(NULL, 0), -EINVAL);

	set = new_set(IMAGE, 0);
	info.size = 0;
	ck_assert_int_eq(kvmfault_working_set_describe(set, &info), -EINVAL);
	ck_assert_int_eq(kvmfault_working_set_describe(set, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_working_set_run(NULL, 0, &n, &n), -EINVAL);
	ck_assert_int_eq(kvmfault_working_set_run(set, 0, NULL, &n), -EINVAL);
	ck_assert_int_eq(kvmfault_working_set_run(set, 0, &n, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_working_set_merge(set, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_working_set_merge(NULL, set), -EINVAL);
	ck_assert_int_eq(kvmfault_working_set_save(set, -1), -EBADF);
	kvmfault_working_set_free(set);
}

TEST(sets, describe_says_the_image)
{
	struct kvmfault_working_set *set = new_set(IMAGE + 1, 7);
	struct kvmfault_working_set_info info = { .size = sizeof(info) };

	ck_assert_int_eq(kvmfault_working_set_describe(set, &info), 0);
	ck_assert_uint_eq(info.image_length, IMAGE + 1);
	ck_assert_uint_eq(info.identity[0], 0);
	ck_assert_uint_eq(info.identity[31], 7);
	ck_assert_uint_eq(info.runs, 0);
	kvmfault_working_set_free(set);
}

TEST(sets, the_order_stays)
{
	struct kvmfault_working_set *set = new_set(IMAGE, 0);

	ADD(set, 9, 1, 3, 2, 100, 50, 7, 1);
	EXPECT(set, 9, 1, 3, 2, 100, 50, 7, 1);
	/* Where one goes on, it is one; from behind it is none. */
	ADD(set, 8, 1, 10, 2);
	EXPECT(set, 9, 1, 3, 2, 100, 50, 7, 2, 10, 2);
	ADD(set, 12, 1);
	EXPECT(set, 9, 1, 3, 2, 100, 50, 7, 2, 10, 3);
	kvmfault_working_set_free(set);
}

TEST(sets, the_first_touch_wins)
{
	struct kvmfault_working_set *set = new_set(IMAGE, 0);

	/* All of them over one another, also within one call. */
	ADD(set, 10, 4, 8, 8, 10, 4, 11, 1, 0, 30);
	EXPECT(set, 10, 4, 8, 2, 14, 2, 0, 8, 16, 14);
	ADD(set, 0, 30);
	EXPECT(set, 10, 4, 8, 2, 14, 2, 0, 8, 16, 14);
	ADD(set, 28, 4);
	EXPECT(set, 10, 4, 8, 2, 14, 2, 0, 8, 16, 16);
	kvmfault_working_set_free(set);
}

/* Against a list of pages. */
TEST(sets, as_page_by_page)
{
	struct kvmfault_working_set *set = new_set(IMAGE, 0);
	uint64_t order[1024], offset, length, count = 0, random = 1;
	bool seen[1024] = { false };
	uint64_t i, page, n = 0;

	for (i = 0; i < 300; i++) {
		struct kvmfault__image_run run;

		random = random * 6364136223846793005ULL + 1;
		page = random >> 54;
		run.offset = page * PAGE;
		run.length = 1 + (random >> 40) % 8;
		if (page + run.length > 1024)
			run.length = 1024 - page;
		for (n = page; n < page + run.length; n++) {
			if (!seen[n])
				order[count++] = n;
			seen[n] = true;
		}
		run.length *= PAGE;
		ck_assert_int_eq(kvmfault__working_set_add(set, &run, 1), 0);
	}
	for (i = n = 0; !kvmfault_working_set_run(set, i, &offset, &length);
	     i++)
		for (page = 0; page < length / PAGE; page++)
			ck_assert_uint_eq(order[n++], offset / PAGE + page);
	ck_assert_uint_eq(n, count);
	ck_assert_uint_gt(count, 500);
	ck_assert_uint_eq(set->bytes, count * PAGE);
	kvmfault_working_set_free(set);
}

TEST(sets, merge)
{
	struct kvmfault_working_set *set = new_set(IMAGE, 1);
	struct kvmfault_working_set *other = new_set(IMAGE, 1);
	struct kvmfault_working_set *identity = new_set(IMAGE, 2);
	struct kvmfault_working_set *length = new_set(IMAGE + PAGE, 1);

	ADD(set, 5, 2, 1, 1);
	ADD(other, 2, 1, 4, 4, 1, 1);
	ADD(identity, 90, 1);
	ADD(length, 91, 1);
	ck_assert_int_eq(kvmfault_working_set_merge(set, other), 0);
	EXPECT(set, 5, 2, 1, 2, 4, 1, 7, 1);
	EXPECT(other, 2, 1, 4, 4, 1, 1);
	ck_assert_int_eq(kvmfault_working_set_merge(set, set), 0);
	ck_assert_int_eq(kvmfault_working_set_merge(set, identity), -EXDEV);
	ck_assert_int_eq(kvmfault_working_set_merge(set, length), -EXDEV);
	EXPECT(set, 5, 2, 1, 2, 4, 1, 7, 1);
	kvmfault_working_set_free(set);
	kvmfault_working_set_free(other);
	kvmfault_working_set_free(identity);
	kvmfault_working_set_free(length);
}

/* The last run has grown, another one has come, and the array is full when there
 * is no more memory. */
TEST(sets, no_memory_changes_nothing)
{
	struct kvmfault_working_set *set = new_set(IMAGE, 0);
	struct kvmfault_working_set *other = new_set(IMAGE, 0);
	struct kvmfault__image_run run = { .length = PAGE };
	unsigned int i, nth = 1;

	for (i = 0; i < 63; i++) {
		run.offset = 4 * i * PAGE;
		ck_assert_int_eq(kvmfault__working_set_add(set, &run, 1), 0);
	}
	ADD(other, 249, 1, 900, 1, 910, 1);
	do {
		fake_fail_nth(nth);
		if (kvmfault_working_set_merge(set, other)) {
			ck_assert_uint_eq(set->runs, 63);
			ck_assert_uint_eq(set->bytes, 63 * PAGE);
			ck_assert_uint_eq(set->run[62].length, PAGE);
		}
		nth++;
	} while (fake_failed());
	ck_assert_uint_eq(nth, 4);
	ck_assert_uint_eq(set->runs, 65);
	ck_assert_uint_eq(set->run[62].length, 2 * PAGE);
	kvmfault_working_set_free(set);
	kvmfault_working_set_free(other);
}

/* ---- files ---- */

static void have_file(void)
{
	file = fake_new_file(disk, sizeof(disk));
}

TEST_GROUP(files, have_file, expect_nothing_left);

static struct kvmfault_working_set *loaded(void)
{
	struct kvmfault_working_set *set;

	fake_rewind(file);
	ck_assert_int_eq(kvmfault_working_set_load(file, &set), 0);
	return set;
}

/* Saves it and frees it. */
static void save(struct kvmfault_working_set *set)
{
	ck_assert_int_eq(kvmfault_working_set_save(set, file), 0);
	kvmfault_working_set_free(set);
}

static int load_error(const void *bytes, uint64_t length)
{
	int fd = fake_file(FAKE_FILE, bytes, length);
	struct kvmfault_working_set *set;
	int err = kvmfault_working_set_load(fd, &set);

	ck_assert_ptr_null(set);
	ck_assert_int_eq(fake_held().allocations, 0);
	return err;
}

static void save_some(void)
{
	struct kvmfault_working_set *set = new_set(IMAGE + 5, 9);

	ADD(set, 900, 1, 3, 2, 100, 500, 7, 1);
	save(set);
}

TEST(files, round_trip)
{
	struct kvmfault_working_set *set;

	save_some();
	set = loaded();
	EXPECT(set, 900, 1, 3, 2, 100, 500, 7, 1);
	ck_assert_uint_eq(set->image_length, IMAGE + 5);
	ck_assert_uint_eq(set->identity[31], 9);
	kvmfault_working_set_free(set);
}

TEST(files, two_sets_in_one_file)
{
	struct kvmfault_working_set *set;

	save_some();
	save(new_set(1, 0));
	set = loaded();
	kvmfault_working_set_free(set);
	ck_assert_int_eq(kvmfault_working_set_load(file, &set), 0);
	ck_assert_uint_eq(set->image_length, 1);
	EXPECT(set, 0, 0);
	kvmfault_working_set_free(set);
}

/* The format is what kvmfault_working_set(5) says. */
TEST(files, byte_by_byte)
{
	static const unsigned char expected[] = {
		'K', 'V', 'M', 'F', 'W', 'S', 'E', 'T',
		1, 0, 0, 0, 12, 0, 0, 0,
		0, 0, 64, 0, 0, 0, 0, 0,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xaa,
		2, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0,
		0xa0, 0x06, 1,		/* page 400 */
		0x8f, 0x06, 3,		/* 392 pages before 401: page 9 */
		0x29, 0xf7, 0x2f, 0x83,	/* zlib's crc32() of all this */
	};
	struct kvmfault_working_set *set = new_set(IMAGE, 0xaa);

	ADD(set, 400, 1, 9, 3);
	save(set);
	ck_assert_uint_eq(fake_file_length(file), sizeof(expected));
	ck_assert_mem_eq(disk, expected, sizeof(expected));
}

/* No page is needed: an offset may be any number. */
TEST(files, bytes_and_the_largest_numbers)
{
	static const struct kvmfault__image_run run[] = {
		{ UINT64_MAX - 2, 2 }, { 0, 1 }, { 3, 1ULL << 63 },
	};
	struct kvmfault_working_set *set = new_set(UINT64_MAX, 0);

	ck_assert_int_eq(kvmfault__working_set_add(set, run, 3), 0);
	save(set);
	set = loaded();
	ck_assert_uint_eq(set->runs, 3);
	ck_assert_mem_eq(set->run, run, sizeof(run));
	kvmfault_working_set_free(set);
}

/* More than a buffer of the writer, and than the reader's first. */
TEST(files, a_large_one)
{
	enum { RUNS = 20000 };
	static struct kvmfault__image_run run[RUNS];
	static unsigned char large[1 << 20];
	struct kvmfault_working_set *set = new_set(1ULL << 40, 0);
	uint64_t i;

	file = fake_new_file(large, sizeof(large));
	for (i = 0; i < RUNS; i++)
		run[i] = (struct kvmfault__image_run){
			(i * 7919 % RUNS) * 4 * PAGE, PAGE,
		};
	ck_assert_int_eq(kvmfault__working_set_add(set, run, RUNS), 0);
	save(set);
	ck_assert_uint_gt(fake_file_length(file), 1 << 16);
	ck_assert_uint_lt(fake_file_length(file), RUNS * 5);
	set = loaded();
	ck_assert_uint_eq(set->runs, RUNS);
	ck_assert_mem_eq(set->run, run, sizeof(run));
	kvmfault_working_set_free(set);
}

TEST(files, each_cut_is_found)
{
	uint64_t length, cut;

	save_some();
	length = fake_file_length(file);
	ck_assert_uint_gt(length, HEADER + 8);
	for (cut = 0; cut < length; cut++)
		ck_assert_int_eq(load_error(disk, cut), -ENODATA);
}

TEST(files, each_bit_is_found)
{
	uint64_t length, bit;
	int err;

	save_some();
	length = fake_file_length(file);
	for (bit = 0; bit < 8 * length; bit++) {
		disk[bit / 8] ^= 1 << bit % 8;
		err = load_error(disk, length);
		if (bit / 8 < 8)
			ck_assert_int_eq(err, -EBADMSG);
		else if (bit / 8 < 12)
			ck_assert_int_eq(err, -EPROTONOSUPPORT);
		else	/* it may be the length that grows */
			ck_assert(err == -EBADMSG || err == -ENODATA);
		disk[bit / 8] ^= 1 << bit % 8;
	}
}

/* A file with a body, and a checksum that is right. */
static int load_body(unsigned int shift, uint64_t runs, const char *body,
		     size_t length)
{
	static const uint64_t image = 100;
	uint32_t sum = ~0U;
	size_t i, bit;

	save(new_set(image, 0));
	disk[12] = (unsigned char)shift;
	memcpy(disk + 56, &runs, 8);
	memcpy(disk + 64, &length, 8);
	memcpy(disk + HEADER, body, length);
	for (i = 0; i < HEADER + length; i++)
		for (sum ^= disk[i], bit = 0; bit < 8; bit++)
			sum = sum >> 1 ^ (sum & 1 ? 0xedb88320U : 0);
	sum = ~sum;
	memcpy(disk + HEADER + length, &sum, 4);
	return load_error(disk, HEADER + length + 4);
}

TEST(files, what_no_set_has)
{
	static const struct {
		unsigned int shift;
		uint64_t runs;
		const char *body;
		size_t length;
	} wrong[] = {
		{ 0, 1, "\0\0", 2 },			/* no bytes */
		{ 0, 1, "\0\x65", 2 },			/* 101 bytes of 100 */
		{ 0, 1, "\xc8\x01\x01", 3 },		/* at 100 */
		{ 0, 1, "\x01\x02", 2 },		/* at -1 */
		{ 0, 2, "\x04\x04\x01\x01", 4 },	/* twice 5 */
		{ 0, 2, "\0\x64\xc7\x01\x64", 5 },	/* all of it, twice */
		{ 0, 1, "\0\x01\0", 3 },		/* and more */
		{ 0, 2, "\0\x81\x80\0", 4 },		/* one is missing */
		{ 0, 1, "\0\x80", 2 },			/* a number goes on, */
		{ 0, 1, "\0\x80\x80\x80\x80\x80\x80\x80\x80\x80\x02", 11 },
		{ 0, 1, "\0\x81\x80\x80\x80\x80\x80\x80\x80\x80\x80\0", 12 },
		{ 6, 1, "\0\x02", 2 },			/* 128 bytes of 100 */
		{ 63, 1, "\x02\x01", 2 },
		{ 64, 0, "", 0 },
		{ 0, 2, "\0\x01\x01", 3 },		/* no room for two */
		{ 0, UINT64_MAX / 8, "\0\x01", 2 },
	};
	size_t i;

	for (i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		file = fake_new_file(disk, sizeof(disk));
		ck_assert_msg(load_body(wrong[i].shift, wrong[i].runs,
					wrong[i].body, wrong[i].length) ==
			      -EBADMSG, "number %zu", i);
	}
}

/* Runs that touch in a file are one in the set. */
TEST(files, runs_that_touch)
{
	struct kvmfault_working_set *set;

	save(new_set(100, 0));
	disk[56] = 2;
	disk[64] = 4;
	memcpy(disk + HEADER, "\0\x04\0\x05\xcd\x15\xec\x4e", 8);
	file = fake_file(FAKE_FILE, disk, HEADER + 8);
	ck_assert_int_eq(kvmfault_working_set_load(file, &set), 0);
	ck_assert_uint_eq(set->runs, 1);
	ck_assert_uint_eq(set->run[0].length, 9);
	kvmfault_working_set_free(set);
}

static bool page_of_zeros(struct fake_call *call)
{
	memset(call->arg, 0, call->length);
	call->result = (long)call->length;
	return true;
}

/* Of an endless file no more is read than its first bytes. */
TEST(files, another_file)
{
	struct kvmfault_working_set *set;

	fake_on(FAKE_READ, page_of_zeros);
	ck_assert_int_eq(kvmfault_working_set_load(file, &set), -EBADMSG);
	ck_assert_uint_eq(fake_count(FAKE_READ, FAKE_ANY), 1);
}

static bool allocates_little(struct fake_call *call)
{
	ck_assert_uint_le(call->length, 1 << 16);
	return false;
}

/* It says that an exabyte comes, and ends. */
TEST(files, a_file_that_claims_much)
{
	save_some();
	memset(disk + 64, 0xff, 7);
	fake_on(FAKE_ALLOC, allocates_little);
	ck_assert_int_eq(load_error(disk, fake_file_length(file)), -ENODATA);
}

static bool byte_by_byte_call(struct fake_call *call)
{
	call->length = 1;
	fake_model(call);
	return true;
}

TEST(files, a_descriptor_that_is_slow)
{
	struct kvmfault_working_set *set;

	fake_on(FAKE_WRITE, byte_by_byte_call);
	fake_on(FAKE_READ, byte_by_byte_call);
	fake_push(FAKE_WRITE, -EINTR);
	fake_push(FAKE_READ, -EINTR);
	save_some();
	set = loaded();
	EXPECT(set, 900, 1, 3, 2, 100, 500, 7, 1);
	kvmfault_working_set_free(set);
}

TEST(files, a_descriptor_that_fails)
{
	struct kvmfault_working_set *set = new_set(IMAGE, 0);

	fake_push(FAKE_WRITE, -EDQUOT);
	ck_assert_int_eq(kvmfault_working_set_save(set, file), -EDQUOT);
	fake_push(FAKE_WRITE, 0);
	ck_assert_int_eq(kvmfault_working_set_save(set, file), -EIO);
	fake_push(FAKE_WRITE, FAKE_MODEL);
	fake_push(FAKE_WRITE, -ENOSPC);
	ck_assert_int_eq(kvmfault_working_set_save(set, file), -ENOSPC);
	kvmfault_working_set_free(set);
	fake_push(FAKE_READ, -EISDIR);
	ck_assert_int_eq(kvmfault_working_set_load(file, &set), -EISDIR);
	ck_assert_ptr_null(set);
}

int main(void)
{
	return run_suite("working-set");
}
