/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * maps.c: what is mapped where a memory is said to be. What is another file,
 * another part of it, private, or a file where there was to be none, is refused
 * with a text that says which; what the kernel does not tell is believed.
 */

#include <stdio.h>
#include <string.h>

#include "bed.h"

#define LENGTH (BED_PAGES * PAGE)

static struct kvmfault_memory_options options;
static struct kvmfault_memory *memory;
static struct kvmfault_source source;
static char maps[8192];
static void *host;

static void up(void)
{
	bed_vm();
	source = bed_source();
	options = (struct kvmfault_memory_options){
		.size = sizeof(options), .length = LENGTH, .source = &source,
	};
	options.fd = fake_memory(LENGTH, 0, &host);
	options.host = host;
	fake_maps = maps;
	maps[0] = '\0';
}

/* One more line: so many bytes from there on, as what. */
static void line(const void *start, uint64_t length, const char *rights,
		 uint64_t offset, int inode)
{
	char *end = maps + strlen(maps);

	sprintf(end, "%llx-%llx %s %08llx 00:01 %d %s\n",
		(unsigned long long)(uintptr_t)start,
		(unsigned long long)((uintptr_t)start + length), rights,
		(unsigned long long)offset, inode,
		inode ? "        /memfd:ram (deleted)" : "");
}

/* Whether it is refused, and then with that text; nothing is left of it. */
static void expect(int result, const char *text)
{
	struct fake_held before = fake_held();

	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory),
			 result);
	if (!result) {
		ck_assert_uint_eq(bed.logs, 0);
		ck_assert_int_eq(kvmfault_memory_free(memory), 0);
		return;
	}
	ck_assert_int_eq(fake_held().descriptors, before.descriptors);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_ptr_nonnull(strstr(bed.log, text));
	ck_assert_ptr_nonnull(strstr(bed.log, "memory_options.fd"));
}

TEST_GROUP(maps, up, bed_down);

TEST(maps, as_it_was_said)
{
	/* And others beside it, which are none of its business. */
	line((char *)host - PAGE, PAGE, "r--p", 0, 7);
	line(host, LENGTH, "rw-s", 0, options.fd);
	line((char *)host + LENGTH, PAGE, "r-xp", 0, 8);
	expect(0, NULL);
}

TEST(maps, in_parts)
{
	line(host, 3 * PAGE, "rw-s", 0, options.fd);
	line((char *)host + 3 * PAGE, LENGTH - 3 * PAGE, "r--s", 3 * PAGE,
	     options.fd);
	expect(0, NULL);
}

TEST(maps, other_part)
{
	line(host, LENGTH, "rw-s", PAGE, options.fd);
	expect(-EINVAL, "another part");
}

TEST(maps, other_part_behind)
{
	line(host, 3 * PAGE, "rw-s", 0, options.fd);
	line((char *)host + 3 * PAGE, LENGTH, "rw-s", 0, options.fd);
	expect(-EINVAL, "another part");
}

/* It begins before the memory does, and the memory in its middle. */
TEST_EACH(maps, part_of_a_mapping, 2)
{
	options.host = (char *)host + 2 * PAGE;
	options.length = LENGTH - 4 * PAGE;
	options.fd_offset = _i ? 2 * PAGE : 3 * PAGE;
	line(host, LENGTH, "rw-s", 0, options.fd);
	expect(_i ? 0 : -EINVAL, "another part");
}

TEST(maps, other_file)
{
	line(host, LENGTH, "rw-s", 0, options.fd + 1);
	expect(-EINVAL, "another file");
}

TEST(maps, private_file)
{
	line(host, LENGTH, "rw-p", 0, options.fd);
	expect(-EINVAL, "MAP_SHARED");
}

/* Its inode may have another number there, and it has no userfaultfd. */
TEST_EACH(maps, untracked_file, 2)
{
	options.source = NULL;
	line(host, LENGTH, _i ? "rw-p" : "rw-s", 0, options.fd + 1);
	expect(_i ? -EINVAL : 0, "MAP_SHARED");
}

TEST_EACH(maps, anonymous, 3)
{
	static const struct {
		const char *rights;
		int inode, result;
	} what[] = {
		{ "rw-p", 0, 0 }, { "rw-s", 1, -EINVAL },
		{ "rw-p", 1, -EINVAL },
	};

	options.fd = 0;
	line(host, LENGTH, what[_i].rights, 0, what[_i].inode);
	expect(what[_i].result, "descriptor");
}

TEST(maps, second_mapping)
{
	struct kvmfault_mapping_options add = { .size = sizeof(add) };
	struct kvmfault_mapping *mapping;
	void *other = fake_map(options.fd);

	line(host, LENGTH, "rw-s", 0, options.fd);
	line(other, LENGTH, "rw-p", 0, options.fd);
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory), 0);
	add.host = (uintptr_t)other;
	ck_assert_int_eq(kvmfault_mapping_add(memory, &add, &mapping),
			 -EINVAL);
	ck_assert_ptr_null(mapping);
	ck_assert(!fake_registered(other));
	ck_assert_ptr_nonnull(strstr(bed.log, "mapping_options.host"));
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

/* What is longer than what is read at once, or than what a line is kept of. */
TEST(maps, long_lines)
{
	size_t i, at;

	for (i = 0; i < 3; i++) {
		line((char *)host + LENGTH, PAGE, "r--p", 0, 7);
		at = strlen(maps) - 1;
		memset(maps + at, 'x', 1500 + i);
		strcpy(maps + at + 1500 + i, "\n");
	}
	line(host, LENGTH, "rw-p", 0, options.fd);
	expect(-EINVAL, "MAP_SHARED");
}

/* It is no text that is known, or ends in the middle of a line. */
TEST_EACH(maps, not_understood, 5)
{
	static const char *const texts[] = {
		"", "\n", "0", "not a mapping\n", "0-ffffffffffffffff rw-p",
	};

	strcpy(maps, texts[_i]);
	expect(0, NULL);
}

TEST(maps, cannot_be_read)
{
	line(host, LENGTH, "rw-p", 0, options.fd);
	fake_push(FAKE_PREAD, -EACCES);
	expect(0, NULL);
}

int main(void)
{
	return run_suite("maps");
}
