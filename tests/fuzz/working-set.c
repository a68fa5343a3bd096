/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Working sets and their files. Input: how, and then a file, as it is or with a
 * header and a checksum that are right; or runs that are added one after the
 * other, in two sets that are merged, against a list of bytes. A set has no
 * byte twice, and comes out of its file as it went in; a file that gives no set
 * leaves nothing.
 */

#include <errno.h>

#include "../fake-sys.h"
#include "fuzz.h"
#include "lib/memory/working-set.h"

#define HEADER 72U
#define IMAGE 256U

static void check_set(const struct kvmfault_working_set *set)
{
	uint64_t i, j, bytes = 0;

	for (i = 0; i < set->runs; i++) {
		const struct kvmfault__image_run *run = &set->run[i];

		MUST(run->length && run->length <= set->image_length &&
		     run->offset <= set->image_length - run->length);
		MUST(!i || run[-1].offset + run[-1].length != run->offset);
		for (j = 0; j < i; j++)
			MUST(set->run[j].offset >= run->offset + run->length ||
			     run->offset >= set->run[j].offset +
					    set->run[j].length);
		bytes += run->length;
	}
	MUST(bytes == set->bytes);
}

static void check_same(const struct kvmfault_working_set *one,
		       const struct kvmfault_working_set *other)
{
	MUST(one->image_length == other->image_length);
	MUST(!memcmp(one->identity, other->identity, sizeof(one->identity)));
	MUST(one->runs == other->runs && one->bytes == other->bytes);
	MUST(!one->runs || !memcmp(one->run, other->run,
				   one->runs * sizeof(*one->run)));
}

/* There are so many descriptors for all inputs of a run. */
static void close_file(int fd)
{
	fake_give(fd);
	kvmfault__sys_close(fd);
}

static void check_round_trip(const struct kvmfault_working_set *set)
{
	static unsigned char disk[1 << 16];
	struct kvmfault_working_set *again;
	int fd = fake_new_file(disk, sizeof(disk));

	MUST(!kvmfault_working_set_save(set, fd));
	fake_rewind(fd);
	MUST(!kvmfault_working_set_load(fd, &again));
	check_same(set, again);
	MUST(!kvmfault_working_set_merge(again, set));
	check_same(set, again);
	kvmfault_working_set_free(again);
	close_file(fd);
}

static void load(const void *bytes, size_t length)
{
	int fd = fake_file(FAKE_FILE, bytes, length);
	struct kvmfault_working_set *set;
	int err = kvmfault_working_set_load(fd, &set);

	close_file(fd);
	MUST(!err || (!set && (err == -ENODATA || err == -EBADMSG ||
			       err == -EPROTONOSUPPORT)));
	if (err)
		return;
	check_set(set);
	check_round_trip(set);
	kvmfault_working_set_free(set);
}

static uint32_t checksum(const uint8_t *bytes, size_t length)
{
	uint32_t sum = ~0U;
	unsigned int bit;

	while (length--)
		for (sum ^= *bytes++, bit = 0; bit < 8; bit++)
			sum = sum >> 1 ^ (sum & 1 ? 0xedb88320U : 0);
	return ~sum;
}

/* Input: shift, image's length, number of runs, and the body. */
static void load_with_header(struct input *in)
{
	static const char begin[] = "KVMFWSET\1\0\0";
	uint8_t *bytes = calloc(1, HEADER + in->left + 4);
	uint64_t length;
	uint32_t sum;

	MUST(bytes);
	memcpy(bytes, begin, sizeof(begin));
	bytes[12] = next8(in);
	next(in, bytes + 16, 8);
	bytes[56] = next8(in);
	length = in->left;
	memcpy(bytes + 64, &length, 8);
	next(in, bytes + HEADER, length);
	sum = checksum(bytes, HEADER + length);
	memcpy(bytes + HEADER + length, &sum, 4);
	load(bytes, HEADER + length + 4);
	free(bytes);
}

struct list {
	unsigned int count;
	uint8_t byte[IMAGE];
	bool has[IMAGE];
};

static void list_add(struct list *list, uint64_t offset, uint64_t length)
{
	for (; length; length--, offset++) {
		if (!list->has[offset])
			list->byte[list->count++] = (uint8_t)offset;
		list->has[offset] = true;
	}
}

static void check_list(const struct kvmfault_working_set *set,
		       const struct list *list)
{
	uint64_t i, at;
	unsigned int n = 0;

	for (i = 0; i < set->runs; i++)
		for (at = 0; at < set->run[i].length; at++)
			MUST(n < list->count &&
			     list->byte[n++] == set->run[i].offset + at);
	MUST(n == list->count);
}

static void add_runs(struct input *in)
{
	const struct kvmfault_working_set_options options = {
		.size = sizeof(options), .image_length = IMAGE,
	};
	struct kvmfault_working_set *set[2];
	struct list list[2] = { { 0 }, { 0 } };
	struct kvmfault__image_run run[8];
	uint64_t i, n;

	for (i = 0; i < 2; i++)
		MUST(!kvmfault_working_set_new(&options, &set[i]));
	while (in->left) {
		uint8_t which = next8(in);

		n = (which >> 1) % 8 + 1;
		for (i = 0; i < n; i++) {
			run[i].offset = next8(in);
			run[i].length = next8(in) % (IMAGE - run[i].offset) + 1;
			list_add(&list[which & 1], run[i].offset,
				 run[i].length);
		}
		MUST(!kvmfault__working_set_add(set[which & 1], run, n));
	}
	MUST(!kvmfault_working_set_merge(set[0], set[1]));
	for (i = 0; i < list[1].count; i++)
		list_add(&list[0], list[1].byte[i], 1);
	for (i = 0; i < 2; i++) {
		check_set(set[i]);
		check_list(set[i], &list[i]);
		check_round_trip(set[i]);
		kvmfault_working_set_free(set[i]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };

	switch (next8(&in) % 3) {
	case 0:
		load(in.at, in.left);
		break;
	case 1:
		load_with_header(&in);
		break;
	default:
		add_runs(&in);
	}
	MUST(!fake_held().allocations);
	fake_forget();
	return 0;
}
