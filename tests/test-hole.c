/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * extent.c, and what the path does with holes: pages that the source says are
 * zero come without a read, and no page does that has data. The memory has 16
 * pages, and the source says what it has in each 512 bytes of them.
 */

#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "bed.h"

#define BLOCK 512ULL
#define PER_PAGE (PAGE / BLOCK)
#define BLOCKS (BED_PAGES * PER_PAGE)

enum { DATA = KVMFAULT_EXTENT_DATA, ZERO = KVMFAULT_EXTENT_ZERO,
       HOLE = KVMFAULT_EXTENT_HOLE };

static unsigned char kinds[BLOCKS];	/* what the source has: data */
static unsigned int asks;		/* for extents, */
static uint64_t first_ask, longest;	/* from where on, how long */
static uint64_t shift;			/* of the memory in the source */
static int says;			/* in place of all that, from here on: */
static uint64_t says_from = UINT64_MAX, says_length;

static bool is_data(uint64_t block)
{
	return kinds[block] == DATA;
}

static int read_blocks(void *data, uint64_t offset, void *buffer,
		       size_t length)
{
	uint64_t at;

	(void)data;
	fake_called_back();
	bed.reads++;
	bed.last_read = offset - shift;
	bed.last_length = length;
	for (at = 0; at < length; at += BLOCK) {
		uint64_t block = (offset - shift + at) / BLOCK;

		memset((char *)buffer + at, is_data(block) ?
		       bed_byte(block / PER_PAGE) : 0, BLOCK);
	}
	return bed.source_result;
}

static int tell_extent(void *data, uint64_t offset, uint64_t *length)
{
	uint64_t block, from = (offset - shift) / BLOCK, end;

	(void)data;
	fake_called_back();
	if (!asks++)
		first_ask = offset;
	if (*length > longest)
		longest = *length;
	ck_assert_uint_le(offset - shift + *length, BED_PAGES * PAGE);
	if (offset - shift >= says_from) {
		*length = says_length;
		return says;
	}
	for (block = from; block < BLOCKS && kinds[block] == kinds[from];)
		block++;
	end = block * BLOCK + shift;
	if (end - offset < *length)
		*length = end - offset;
	return kinds[from];
}

static void set(uint64_t page, uint64_t count, int kind)
{
	memset(kinds + page * PER_PAGE, kind, count * PER_PAGE);
}

static void begin(void)
{
	bed_vm();
	bed.source = (struct kvmfault_source){
		.size = sizeof(bed.source), .name = "holes",
		.read = read_blocks, .extent = tell_extent,
	};
}

static void up(void)
{
	begin();
	bed_add();
}

static void up_window(uint64_t pages)
{
	begin();
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = pages * PAGE;
	bed_add();
}

static struct kvmfault__answer fetch(uint64_t page)
{
	return bed_resolve(KVMFAULT_KIND_CALL, page, false);
}

/* Each byte is what the source has. */
static bool page_is_right(uint64_t page)
{
	char right[PAGE];
	uint64_t i;

	for (i = 0; i < PER_PAGE; i++)
		memset(right + i * BLOCK, is_data(page * PER_PAGE + i) ?
		       bed_byte(page) : 0, BLOCK);
	return fake_present(bed.fd, page * PAGE) &&
	       !memcmp(bed_page(page), right, PAGE);
}

static void expect_came(uint64_t page)
{
	ck_assert_int_eq(bed_state(page), KVMFAULT__PRESENT);
	ck_assert(page_is_right(page));
}

static void expect_absent(uint64_t page)
{
	ck_assert_int_eq(bed_state(page), KVMFAULT__ABSENT);
	ck_assert(!fake_present(bed.fd, page * PAGE));
}

static void expect_only(uint64_t first, uint64_t count)
{
	uint64_t page;

	for (page = 0; page < BED_PAGES; page++)
		if (page >= first && page < first + count)
			expect_came(page);
		else
			expect_absent(page);
}

static size_t zeropages(void)
{
	return fake_count(FAKE_IOCTL, UFFDIO_ZEROPAGE);
}

/* ---- one page ---- */

TEST_GROUP(page, up, bed_down);

TEST_EACH(page, is_not_read, 2)
{
	struct kvmfault__answer answer;

	set(3, 1, _i ? HOLE : ZERO);
	answer = fetch(3);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_RETRY);
	ck_assert_str_eq(answer.resolver, "zero");
	expect_only(3, 1);
	ck_assert_uint_eq(bed.reads, 0);
	ck_assert_uint_eq(zeropages(), 1);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_COPY), 0);
	ck_assert_uint_eq(asks, 1);
	ck_assert_uint_eq(first_ask, 3 * PAGE);
	ck_assert_uint_eq(longest, PAGE);
	ck_assert_uint_eq(bed_stats().holes, 1);
	ck_assert_uint_eq(bed_stats().fetched + bed_stats().zeroed, 0);
	ck_assert_uint_eq(bed_stats().page[KVMFAULT_PAGE_HOLE], 1);
	ck_assert_uint_eq(bed_stats().page[KVMFAULT_PAGE_ABSENT], 0);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_FETCH], 1);
	/* And it is there. */
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(asks, 1);
}

TEST(page, of_several_extents)
{
	set(3, 1, ZERO);
	kinds[3 * PER_PAGE + 2] = kinds[3 * PER_PAGE + 3] = HOLE;
	ck_assert_str_eq(fetch(3).resolver, "zero");
	expect_only(3, 1);
	ck_assert_uint_eq(asks, 3);
}

/* All but 512 bytes of it, wherever they are. */
TEST_EACH(page, with_some_data_is_read, 8)
{
	set(3, 1, HOLE);
	kinds[3 * PER_PAGE + (uint64_t)_i] = DATA;
	ck_assert_str_eq(fetch(3).resolver, "copy");
	expect_only(3, 1);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(bed_stats().holes, 0);
	ck_assert_uint_eq(bed_stats().fetched, 1);
}

/* It says so bit by bit: to ask it all would take too long. */
static int tell_a_byte(void *data, uint64_t offset, uint64_t *length)
{
	(void)data;
	(void)offset;
	asks++;
	*length = 1;
	return ZERO;
}

TEST(page, of_too_many_extents_is_read)
{
	bed.memory->source.extent = tell_a_byte;
	set(3, 1, ZERO);
	ck_assert_str_eq(fetch(3).resolver, "copy");
	expect_only(3, 1);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(asks, 8);
}

TEST(page, by_a_message)
{
	set(3, 1, HOLE);
	ck_assert_int_eq(bed_resolve(KVMFAULT_KIND_UFFD, 3, true).action,
			 KVMFAULT_ACTION_RETRY);
	expect_only(3, 1);
	/* The kernel woke the sleeper as it installed the page. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 0);
}

TEST(page, by_an_exit)
{
	set(3, 1, HOLE);
	ck_assert_int_eq(bed_exit(BED_GPA + 3 * PAGE, 0),
			 KVMFAULT_ACTION_RETRY);
	expect_only(3, 1);
}

/* The source has what was discarded, and is not asked. */
TEST(page, discarded_is_another_thing)
{
	fetch(3);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA + 3 * PAGE, PAGE),
			 0);
	asks = 0;
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, 0));
	ck_assert_uint_eq(asks, 0);
	ck_assert_uint_eq(bed_stats().zeroed, 1);
	ck_assert_uint_eq(bed_stats().holes, 0);
}

static bool discard_meanwhile(struct fake_call *call)
{
	if (call->number != UFFDIO_ZEROPAGE)
		return false;
	kvmfault__page_discard(bed.memory, 3);
	fake_model(call);
	return true;
}

TEST(page, discarded_while_it_comes)
{
	set(3, 1, HOLE);
	fake_on(FAKE_IOCTL, discard_meanwhile);
	fetch(3);
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
	ck_assert(!fake_present(bed.fd, 3 * PAGE));
}

TEST(page, was_there_already)
{
	set(3, 1, HOLE);
	fake_put(bed.fd, 3 * PAGE);
	memset(bed_page(3), 7, PAGE);
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, 7));
	ck_assert_uint_eq(bed_stats().existed, 1);
	ck_assert_uint_eq(bed_stats().holes, 0);
	ck_assert_uint_eq(bed.logs, 1);
}

TEST(page, that_cannot_be_installed)
{
	set(3, 1, HOLE);
	fake_refuse(FAKE_IOCTL, UFFDIO_ZEROPAGE, -ENOMEM);
	ck_assert_int_eq(fetch(3).error, -ENOMEM);
	ck_assert_int_eq(fetch(3).reason, KVMFAULT_REASON_RESOLVER);
	expect_absent(3);
	fake_refuse(FAKE_IOCTL, UFFDIO_ZEROPAGE, -EAGAIN);
	ck_assert_int_eq(fetch(3).error, -EAGAIN);
	expect_absent(3);
	fake_refuse(FAKE_IOCTL, UFFDIO_ZEROPAGE, 0);
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_RETRY);
	expect_only(3, 1);
	ck_assert_uint_eq(bed_stats().holes, 1);
}

/* ---- what cannot be said, or cannot be ---- */

static const struct {
	int says;
	uint64_t length;
	int error;
} lies[] = {
	{ ZERO, 0, -EIO },
	{ HOLE, PAGE + 1, -EIO },
	{ DATA, 0, -EIO },
	{ DATA, UINT64_MAX, -EIO },
	{ HOLE + 1, PAGE, -EIO },
	{ INT32_MAX, PAGE, -EIO },
	{ -EIO, PAGE, -EIO },
	{ -ENODATA, PAGE, -ENODATA },
	{ INT32_MIN + 1, PAGE, INT32_MIN + 1 },
};

TEST_EACH(page, source_fails_or_lies, 9)
{
	struct kvmfault__answer answer;

	says_from = 0;
	says = lies[_i].says;
	says_length = lies[_i].length;
	answer = fetch(3);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(answer.error, lies[_i].error);
	expect_absent(3);
	ck_assert_uint_eq(bed.reads, 0);
	says_from = UINT64_MAX;
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_RETRY);
	expect_only(3, 1);
}

TEST(page, source_is_not_ready)
{
	says_from = 0;
	says = -EAGAIN;
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(fetch(3).error, -EAGAIN);
	expect_absent(3);
	says = -EINTR;
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_INTERRUPTED);
	expect_absent(3);
}

TEST(page, source_has_lost_it)
{
	struct kvmfault__answer answer;

	says_from = 0;
	says = -EHWPOISON;
	answer = fetch(3);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_HWPOISON);
	ck_assert_int_eq(answer.error, -EHWPOISON);
	ck_assert_int_eq(bed_state(3), KVMFAULT__POISONED);
	ck_assert(fake_marked(bed_page(3)));
}

/* A message whose page could not be asked for is deferred, as after a read. */
TEST(page, source_fails_for_a_sleeper)
{
	set(3, 1, HOLE);
	bed_service(0);
	says_from = 0;
	says = -EIO;
	bed_touch(3, false);
	bed_dispatch();
	expect_absent(3);
	says_from = UINT64_MAX;
	fake_advance(1000000000ULL);
	bed_dispatch();
	expect_only(3, 1);
	ck_assert_uint_eq(bed_stats().deferred, 1);
}

static uint64_t file_length;

static bool tell_length(struct fake_call *call)
{
	*(struct stat *)call->arg = (struct stat){
		.st_mode = S_IFREG, .st_size = (off_t)file_length,
	};
	call->result = 0;
	return true;
}

/* Where the source's file was cut off are no zeros, whatever it says. */
TEST(page, past_the_end_of_the_file)
{
	set(0, BED_PAGES, HOLE);
	bed.memory->source.file = fake_file(FAKE_FILE, kinds, sizeof(kinds));
	fake_on(FAKE_FSTAT, tell_length);
	file_length = 4 * PAGE - 1;
	ck_assert_int_eq(fetch(3).error, -ENODATA);
	ck_assert_int_eq(fetch(3).reason, KVMFAULT_REASON_SOURCE);
	expect_absent(3);
	expect_absent(2);
	ck_assert_int_eq(fetch(2).action, KVMFAULT_ACTION_RETRY);
	expect_only(2, 1);
}

/* ---- windows ---- */

TEST_GROUP(window, NULL, bed_down);

TEST(window, of_holes)
{
	up_window(8);
	set(2, 3, HOLE);
	set(5, 1, ZERO);
	ck_assert_str_eq(fetch(4).resolver, "zero");
	expect_only(2, 4);
	ck_assert_uint_eq(zeropages(), 1);
	ck_assert_uint_eq(bed.reads, 0);
	ck_assert_uint_eq(bed_stats().holes, 4);
	ck_assert_uint_eq(bed.change.offset, 2 * PAGE);
	ck_assert_uint_eq(bed.change.length, 4 * PAGE);
}

TEST(window, of_data_between_holes)
{
	up_window(8);
	set(1, 1, HOLE);
	set(5, 1, ZERO);
	ck_assert_str_eq(fetch(4).resolver, "copy");
	expect_only(2, 3);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(bed.last_length, 3 * PAGE);
	ck_assert_uint_eq(bed_stats().holes, 0);
}

/* A hole that is no whole page ends no window. */
TEST(window, over_a_hole_between_pages)
{
	up_window(8);
	memset(kinds + 3 * PER_PAGE + 4, HOLE, PER_PAGE);
	ck_assert_str_eq(fetch(1).resolver, "copy");
	expect_only(0, 8);
}

TEST(window, all_data_takes_two_questions)
{
	up_window(8);
	fetch(5);
	expect_only(0, 8);
	ck_assert_uint_eq(asks, 2);
	ck_assert_uint_eq(longest, 8 * PAGE);
}

/* Every layout of eight pages, and a fault at each of them. */
TEST_EACH(window, any_layout, 256)
{
	uint64_t page, at, first, end;

	for (page = 0; page < 8; page++) {
		for (at = 0; at < 8; at++)
			set(at, 1, _i >> at & 1 ? HOLE : DATA);
		up_window(8);
		asks = 0;
		ck_assert_int_eq(fetch(page).action, KVMFAULT_ACTION_RETRY);
		ck_assert_uint_le(asks, 9);
		for (first = page; first && kinds[(first - 1) * PER_PAGE] ==
		     kinds[page * PER_PAGE];)
			first--;
		for (end = page + 1; end < 8 && kinds[end * PER_PAGE] ==
		     kinds[page * PER_PAGE];)
			end++;
		expect_only(first, end - first);
		ck_assert_uint_eq(bed_stats().holes, is_data(page * PER_PAGE) ?
				  0 : end - first);
		if (page < 7)
			bed_down();
	}
}

/* After so many questions the rest is taken for data: never the other way. */
TEST(window, too_many_extents)
{
	uint64_t at;

	up_window(16);
	for (at = 0; at < BLOCKS; at++)
		kinds[at] = at % 2 ? ZERO : HOLE;
	bed.memory->source.extent = tell_a_byte;
	fetch(9);
	ck_assert_uint_eq(asks, 16);
	for (at = 0; at < BED_PAGES; at++)
		if (bed_state(at) == KVMFAULT__PRESENT)
			expect_came(at);
	expect_came(9);
}

TEST(window, neighbour_that_fails)
{
	up_window(8);
	set(0, 5, HOLE);
	says_from = 5 * PAGE;
	says = -EIO;
	ck_assert_int_eq(fetch(4).action, KVMFAULT_ACTION_RETRY);
	expect_only(0, 5);
}

TEST(window, neighbour_before_that_fails)
{
	up_window(4);
	set(2, 2, HOLE);
	says_from = 0;
	says = -EIO;
	ck_assert_int_eq(fetch(2).error, -EIO);
	says_from = UINT64_MAX;
	ck_assert_int_eq(fetch(2).action, KVMFAULT_ACTION_RETRY);
	expect_only(2, 2);
}

TEST(window, leaves_alone_what_is_there)
{
	up_window(8);
	set(0, 8, HOLE);
	fetch(0);
	expect_only(0, 8);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA, 8 * PAGE), 0);
	set(8, 8, HOLE);
	bed_down();
	up_window(8);
	kvmfault__page_change(bed.memory, 2, KVMFAULT__ABSENT,
			      KVMFAULT__DISCARDED);
	fetch(5);
	ck_assert_int_eq(bed_state(2), KVMFAULT__DISCARDED);
	ck_assert_int_eq(bed_state(1), KVMFAULT__ABSENT);
	ck_assert_uint_eq(bed_stats().holes, 5);
}

TEST(window, grows_over_holes)
{
	begin();
	bed.window = KVMFAULT_WINDOW_ADAPTIVE;
	bed.window_length = 8 * PAGE;
	bed_add();
	set(0, BED_PAGES, HOLE);
	fetch(0);
	fetch(1);
	fetch(3);
	fetch(7);
	expect_only(0, 15);
	ck_assert_uint_eq(zeropages(), 4);
}

/* The memory begins somewhere in the source. */
TEST(window, offset_of_the_source)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = BED_PAGES * PAGE,
		.source_offset = 3 * BLOCK, .window = KVMFAULT_WINDOW_FIXED,
		.window_length = 8 * PAGE,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = BED_GPA + 0x10000000,
		.length = BED_PAGES * PAGE,
	};
	struct kvmfault_memory *memory;
	void *host;

	up_window(8);
	options.source = &bed.source;
	options.fd = fake_memory(options.length, 0, &host);
	options.host = host;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory), 0);
	region.memory = memory;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	shift = 3 * BLOCK;
	set(2, 3, HOLE);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, region.gpa + 3 * PAGE, 1,
					 false), 0);
	ck_assert_uint_eq(first_ask, 3 * PAGE + 3 * BLOCK);
	ck_assert_uint_eq(bed_stats().holes, 3);
	ck_assert(fake_present(options.fd, 2 * PAGE));
	ck_assert(!fake_present(options.fd, 5 * PAGE));
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, region.gpa), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

TEST(window, all_of_it_by_a_call)
{
	up_window(4);
	set(0, 3, HOLE);
	set(6, 5, ZERO);
	kinds[8 * PER_PAGE + 7] = DATA;
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, BED_PAGES * PAGE,
					 false), 0);
	expect_only(0, BED_PAGES);
	ck_assert_uint_eq(bed_stats().holes, 7);
	ck_assert_uint_eq(bed_stats().fetched, BED_PAGES - 7);
}

/* ---- a memory that is long: a question for all that follows ---- */

#define LONG 2048ULL		/* pages */

static struct {
	struct kvmfault_memory *memory;
	void *host;
	int fd;
	uint64_t data, hole;	/* pages of data, then of a hole, and so on */
	uint64_t bad;		/* an error for who asks past this page */
} big;

static int tell_far(void *data, uint64_t offset, uint64_t *length)
{
	uint64_t page = offset / PAGE, at = page % (big.data + big.hole);
	bool is_hole = at >= big.data;
	uint64_t end = page - at + big.data + (is_hole ? big.hole : 0);

	(void)data;
	fake_called_back();
	asks++;
	if (*length > longest)
		longest = *length;
	ck_assert_uint_le(offset + *length, LONG * PAGE);
	if (*length > end * PAGE - offset)
		*length = end * PAGE - offset;
	return offset + *length > big.bad * PAGE ? -EIO :
	       is_hole ? HOLE : DATA;
}

static int read_far(void *data, uint64_t offset, void *buffer, size_t length)
{
	(void)data;
	fake_called_back();
	bed.last_read = offset;
	bed.last_length = length;
	memset(buffer, 0x55, length);
	return 0;
}

static void up_far(void)
{
	static struct kvmfault_source source;
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = LONG * PAGE,
		.window = KVMFAULT_WINDOW_FIXED, .window_length = 8 * PAGE,
		.source = &source,
	};

	bed_up();
	source = (struct kvmfault_source){
		.size = sizeof(source), .name = "far",
		.read = read_far, .extent = tell_far,
	};
	big.fd = options.fd = fake_memory(options.length, 0, &big.host);
	big.bad = LONG;
	options.host = big.host;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &big.memory),
			 0);
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &(struct kvmfault_region){
		.size = sizeof(struct kvmfault_region),
		.gpa = BED_GPA + 0x10000000, .length = options.length,
		.memory = big.memory,
	}), 0);
	asks = 0;
	longest = 0;
}

static void down_far(void)
{
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA +
						0x10000000), 0);
	ck_assert_int_eq(kvmfault_memory_free(big.memory), 0);
	bed_down();
}

static int fetch_far(uint64_t page)
{
	return kvmfault_ensure(bed.vm, 0, BED_GPA + 0x10000000 + page * PAGE,
			       1, false);
}

static uint64_t present_far(void)
{
	uint64_t page, n = 0;

	for (page = 0; page < LONG; page++)
		n += kvmfault__page_state(big.memory, page) ==
		     KVMFAULT__PRESENT;
	return n;
}

TEST_GROUP(far, up_far, down_far);

/* One question for the page and its window, and none for what is kept. */
TEST(far, data_is_asked_for_once)
{
	big.data = 1000;
	big.hole = 1048;
	ck_assert_int_eq(fetch_far(11), 0);
	ck_assert_uint_eq(asks, 2);	/* from the page on, and before it */
	ck_assert_uint_eq(longest, (LONG - 8) * PAGE);
	ck_assert_uint_eq(bed.last_read, 8 * PAGE);
	ck_assert_uint_eq(bed.last_length, 8 * PAGE);
	ck_assert_int_eq(fetch_far(500), 0);
	ck_assert_uint_eq(asks, 2);
	ck_assert_uint_eq(present_far(), 16);
	ck_assert_uint_eq(bed_stats().holes, 0);
}

/* What is kept ends with the data; a hole is asked for each time. */
TEST(far, holes_are_not_kept)
{
	big.data = 1004;
	big.hole = 1044;
	ck_assert_int_eq(fetch_far(8), 0);
	asks = 0;
	ck_assert_int_eq(fetch_far(1000), 0);
	ck_assert_uint_eq(bed.last_read, 1000 * PAGE);
	ck_assert_uint_eq(bed.last_length, 4 * PAGE);
	ck_assert_int_eq(fetch_far(1004), 0);
	ck_assert_uint_eq(bed_stats().holes, 4);
	asks = 0;
	ck_assert_int_eq(fetch_far(1200), 0);
	ck_assert_uint_eq(asks, 1);
	ck_assert_int_eq(fetch_far(1208), 0);
	ck_assert_uint_eq(asks, 2);
	ck_assert_uint_eq(bed_stats().holes, 20);
	ck_assert_uint_eq(present_far(), 8 + 8 + 16);
}

/* The source fails far behind the page. */
TEST(far, error_behind_the_page)
{
	big.data = 1;
	big.hole = 2047;
	big.bad = 100;
	ck_assert_int_eq(fetch_far(16), 0);
	ck_assert_uint_eq(bed_stats().holes, 8);
	ck_assert_int_eq(fetch_far(96), 0);
	ck_assert_uint_eq(bed_stats().holes, 9);
	ck_assert_int_eq(fetch_far(100), -EIO);
	ck_assert_uint_eq(present_far(), 9);
}

/* ---- minor faults: what the file had before is not what it holds ---- */

static void up_minor(void)
{
	uint64_t page;

	begin();
	bed.minor = true;
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = 4 * PAGE;
	bed_add();
	for (page = 0; page < BED_PAGES; page++) {
		fake_put(bed.fd, page * PAGE);
		memset(bed_page(page), 0x77, PAGE);
	}
}

TEST_GROUP(minor, up_minor, bed_down);

TEST(minor, zeros_are_written)
{
	set(3, 1, HOLE);
	ck_assert_str_eq(fetch(3).resolver, "zero");
	expect_came(3);
	ck_assert(bed_has(2, 0x77));
	ck_assert_int_eq(bed_state(2), KVMFAULT__ABSENT);
	ck_assert_uint_eq(bed.reads, 0);
	ck_assert_uint_eq(zeropages(), 0);
	ck_assert_uint_eq(bed_stats().holes, 1);
}

TEST(minor, window)
{
	set(5, 2, HOLE);
	ck_assert_str_eq(fetch(6).resolver, "zero");
	expect_came(5);
	expect_came(6);
	ck_assert(bed_has(4, 0x77) && bed_has(7, 0x77));
	ck_assert_str_eq(fetch(7).resolver, "continue");
	expect_came(7);
}

TEST(minor, file_that_cannot_grow)
{
	set(3, 1, HOLE);
	fake_push(FAKE_MADVISE, -EFAULT);
	ck_assert_int_eq(fetch(3).error, -ENOMEM);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	ck_assert(bed_has(3, 0x77));
}

/* The first page was mapped, and the guest has written to it: what comes after
 * it is not written over. */
static unsigned int maps;

static bool map_one_by_one(struct fake_call *call)
{
	if (call->number != UFFDIO_CONTINUE)
		return false;
	if (maps++) {
		call->result = -EAGAIN;
		((struct uffdio_continue *)call->arg)->mapped = -EAGAIN;
		return true;
	}
	((struct uffdio_continue *)call->arg)->range.len = PAGE;
	fake_model(call);
	((struct uffdio_continue *)call->arg)->range.len = 4 * PAGE;
	memset(bed_page(4), 0x33, PAGE);
	call->result = -EAGAIN;
	return true;
}

static bool reads_first;

static int install_once(struct kvmfault_request *request)
{
	if (!reads_first)
		return kvmfault_request_install(request, NULL);
	ck_assert_int_eq(kvmfault_request_read(request, request->buffer), 0);
	return kvmfault_request_install(request, request->buffer);
}

static int install_twice(void *data, struct kvmfault_request *request)
{
	(void)data;
	kvmfault_request_widen(request);
	ck_assert_int_eq(install_once(request), -EAGAIN);
	fake_on(FAKE_IOCTL, NULL);
	ck_assert_int_eq(install_once(request), 0);
	return KVMFAULT_VERDICT_RESOLVED;
}

TEST_GROUP(own, NULL, bed_down);

/* Zeros, zeros that are read, and data. */
TEST_EACH(own, minor_in_parts, 3)
{
	begin();
	bed.minor = true;
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = 4 * PAGE;
	bed_own_resolver(install_twice);
	bed_add();
	set(4, 4, _i < 2 ? HOLE : DATA);
	reads_first = _i;
	fake_on(FAKE_IOCTL, map_one_by_one);
	ck_assert_str_eq(fetch(6).resolver, "own");
	ck_assert(bed_has(4, 0x33));
	expect_came(5);
	expect_came(6);
	expect_came(7);
}

/* ---- a resolver of the VMM's ---- */

static int look(void *data, struct kvmfault_request *request)
{
	const void *bytes;
	char byte = 1;

	(void)data;
	if (request->page != KVMFAULT_PAGE_HOLE)
		return KVMFAULT_VERDICT_DECLINED;
	ck_assert_str_eq(kvmfault_page_str(request->page), "hole");
	ck_assert_int_eq(kvmfault_request_widen(request), 0);
	ck_assert_int_eq(kvmfault_request_read(request, request->buffer), 0);
	ck_assert(!((char *)request->buffer)[request->length - 1]);
	*(char *)request->buffer = 1;
	ck_assert_int_eq(kvmfault_request_data(request, &bytes), 0);
	memcpy(&byte, bytes, 1);
	ck_assert_int_eq(byte, 0);
	ck_assert_int_eq(kvmfault_request_install(request, bytes), 0);
	return KVMFAULT_VERDICT_RESOLVED;
}

TEST_EACH(own, resolver_gets_zeros, 2)
{
	begin();
	bed.minor = _i;
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = 4 * PAGE;
	bed_own_resolver(look);
	bed_add();
	set(5, 3, HOLE);
	ck_assert_str_eq(fetch(6).resolver, "own");
	expect_only(5, 3);
	ck_assert_uint_eq(bed.reads, 0);
	ck_assert_uint_eq(bed_stats().holes, 3);
	ck_assert_str_eq(fetch(4).resolver, bed.minor ? "continue" : "copy");
}

static int poison(void *data, struct kvmfault_request *request)
{
	(void)data;
	ck_assert_int_eq(kvmfault_request_poison(request), 0);
	return -EHWPOISON;
}

TEST(own, resolver_poisons)
{
	begin();
	bed_own_resolver(poison);
	bed_add();
	set(3, 1, HOLE);
	ck_assert_int_eq(fetch(3).reason, KVMFAULT_REASON_HWPOISON);
	ck_assert_int_eq(bed_state(3), KVMFAULT__POISONED);
}

static int say_resolved(void *data, struct kvmfault_request *request)
{
	(void)data;
	return request->page == KVMFAULT_PAGE_HOLE ?
		KVMFAULT_VERDICT_RESOLVED : KVMFAULT_VERDICT_DECLINED;
}

TEST(own, resolver_lies)
{
	begin();
	bed_own_resolver(say_resolved);
	bed_add();
	set(3, 1, HOLE);
	ck_assert_int_eq(fetch(3).reason, KVMFAULT_REASON_STILL_ABSENT);
	expect_absent(3);
}

/* ---- a source that answers later ---- */

static unsigned int submits;

static int submit(void *data, struct kvmfault_fetch *fetch, uint64_t offset,
		  void *buffer, size_t length)
{
	submits++;
	kvmfault_fetch_done(fetch, read_blocks(data, offset, buffer, length));
	return 0;
}

TEST(own, hole_is_not_submitted)
{
	begin();
	bed.source.read = NULL;
	bed.source.submit = submit;
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = 4 * PAGE;
	bed_add();
	set(1, 1, HOLE);
	ck_assert_str_eq(fetch(1).resolver, "zero");
	ck_assert_uint_eq(submits, 0);
	expect_only(1, 1);
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(submits, 1);
	ck_assert_uint_eq(bed.last_length, 2 * PAGE);
	expect_came(2);
	expect_came(3);
	expect_absent(0);
}

/* ---- protected pages ---- */

TEST(own, protected_hole_comes_protected)
{
	begin();
	bed.write_protect = true;
	bed.own_verdict = KVMFAULT_VERDICT_DECLINED;
	bed_own_resolver(bed_own);
	bed_add();
	set(3, 1, HOLE);
	ck_assert_int_eq(kvmfault_protect(bed.vm, 0, BED_GPA,
					  BED_PAGES * PAGE), 0);
	ck_assert_int_eq(bed_resolve(KVMFAULT_KIND_UFFD, 3, true).action,
			 KVMFAULT_ACTION_RETRY);
	expect_came(3);
	ck_assert(fake_protected(bed_page(3)));
	ck_assert_uint_eq(zeropages(), 0);
	ck_assert_uint_eq(bed.reads, 0);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA + 3 * PAGE, 1,
					 true), 0);
	ck_assert_uint_eq(bed_stats().page[KVMFAULT_PAGE_PROTECTED], 1);
	ck_assert(!fake_protected(bed_page(3)));
}

/* ---- files, and layers of them ---- */

static char image[BED_PAGES * PAGE], lower[BED_PAGES * PAGE];

static void make_file(char *bytes, struct kvmfault_source *source)
{
	int fd = fake_file(FAKE_FILE, bytes, BED_PAGES * PAGE);

	source->size = sizeof(*source);
	ck_assert_int_eq(kvmfault_source_file(fd, source), 0);
}

TEST(own, file_with_holes)
{
	begin();
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = 8 * PAGE;
	memset(image + 4 * PAGE, 1, PAGE);
	image[6 * PAGE - 1] = 1;
	make_file(image, &bed.source);
	bed_add();
	ck_assert_str_eq(fetch(1).resolver, "zero");
	ck_assert_uint_eq(bed_stats().holes, 4);
	ck_assert_str_eq(fetch(4).resolver, "copy");
	ck_assert_uint_eq(bed_stats().fetched, 2);
	ck_assert_str_eq(fetch(15).resolver, "zero");
	ck_assert_uint_eq(bed_stats().holes, 12);
	ck_assert_uint_eq(fake_count(FAKE_PREAD, FAKE_ANY), 1);
	ck_assert(!memcmp(bed_page(0), image, 6 * PAGE));
	ck_assert(!memcmp(bed_page(8), image + 8 * PAGE, 8 * PAGE));
	expect_absent(6);
}

/* No data up to the end: but of a file that is shorter now. */
TEST(own, file_that_was_cut)
{
	begin();
	make_file(image, &bed.source);
	bed_add();
	fake_on(FAKE_FSTAT, tell_length);
	file_length = 3 * PAGE + 100;
	ck_assert_int_eq(fetch(3).error, -ENODATA);
	ck_assert_int_eq(fetch(3).reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(fetch(4).error, -ENODATA);
	expect_absent(3);
	ck_assert_int_eq(fetch(2).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(2, 0));
}

static void expect_layers(uint64_t page)
{
	uint64_t i;

	for (i = 0; i < PAGE; i++) {
		char upper = image[page * PAGE + i];

		ck_assert_int_eq(bed_page(page)[i], upper ? upper :
				 lower[page * PAGE + i]);
	}
}

TEST(own, layers)
{
	struct kvmfault_source above, below;
	uint64_t page;

	begin();
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = 4 * PAGE;
	memset(image + PAGE + 2 * BLOCK, 'a', 3 * BLOCK);
	memset(image + 8 * PAGE, 'a', PAGE);
	memset(lower + PAGE, 'b', 2 * PAGE);
	memset(lower + 9 * PAGE - BLOCK, 'b', PAGE);
	make_file(image, &above);
	make_file(lower, &below);
	bed.source.size = sizeof(bed.source);
	ck_assert_int_eq(kvmfault_source_over(&above, &below, &bed.source), 0);
	bed_add();
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, BED_PAGES * PAGE,
					 false), 0);
	for (page = 0; page < BED_PAGES; page++)
		expect_layers(page);
	ck_assert_uint_eq(bed_stats().holes, 12);
	ck_assert_uint_eq(bed_stats().fetched, 4);
	/* Only when the memory does not need it any more. */
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	ck_assert_int_eq(kvmfault_memory_free(bed.memory), 0);
	bed.memory = NULL;
	kvmfault_source_free(&bed.source);
}

int main(void)
{
	return run_suite("hole");
}
