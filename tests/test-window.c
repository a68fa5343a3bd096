/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * window.c: what a fault brings with it, and what it must leave alone. The
 * memory has 16 pages.
 */

#include "bed.h"

static struct kvmfault__answer fetch(uint64_t page)
{
	return bed_resolve(KVMFAULT_KIND_CALL, page, false);
}

static void up(enum kvmfault_window window, uint64_t pages)
{
	bed_vm();
	bed.window = window;
	bed.window_length = pages * PAGE;
	bed_add();
}

/* These pages came, with their data, and no others. */
static void check_only(uint64_t first, uint64_t count)
{
	uint64_t page;

	for (page = 0; page < BED_PAGES; page++) {
		bool in = page >= first && page < first + count;

		ck_assert_int_eq(bed_state(page), in ? KVMFAULT__PRESENT :
						       KVMFAULT__ABSENT);
		ck_assert_int_eq(fake_present(bed.fd, page * PAGE), in);
		if (in)
			ck_assert(bed_has(page, bed_byte(page)));
	}
}

TEST_GROUP(window, NULL, bed_down);

TEST(window, none_brings_the_page)
{
	up(KVMFAULT_WINDOW_NONE, 4);
	ck_assert_int_eq(fetch(5).action, KVMFAULT_ACTION_RETRY);
	check_only(5, 1);
}

TEST(window, fixed_brings_the_block)
{
	up(KVMFAULT_WINDOW_FIXED, 4);
	ck_assert_int_eq(fetch(6).action, KVMFAULT_ACTION_RETRY);
	check_only(4, 4);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(bed.last_read, 4 * PAGE);
	ck_assert_uint_eq(bed.last_length, 4 * PAGE);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_COPY), 1);
	ck_assert_uint_eq(bed_stats().fetched, 4);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_FETCH], 1);
	ck_assert_uint_eq(bed.change.offset, 4 * PAGE);
	ck_assert_uint_eq(bed.change.length, 4 * PAGE);
}

TEST(window, default_length)
{
	up(KVMFAULT_WINDOW_FIXED, 0);
	fetch(6);
	check_only(0, BED_PAGES);
}

TEST(window, odd_length)
{
	up(KVMFAULT_WINDOW_FIXED, 5);
	fetch(7);
	check_only(5, 5);
	fetch(15);
	ck_assert_uint_eq(bed.last_read, 15 * PAGE);
	ck_assert_uint_eq(bed.last_length, PAGE);
}

TEST(window, bad_length)
{
	struct kvmfault_memory *memory;
	void *host;
	int fd;

	up(KVMFAULT_WINDOW_NONE, 0);
	bed.window = KVMFAULT_WINDOW_SOURCE + 1;
	ck_assert_int_eq(bed_memory(&memory, &fd, &host), -EINVAL);
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = PAGE + 1;
	ck_assert_int_eq(bed_memory(&memory, &fd, &host), -EINVAL);
	bed.window_length = bed.vm->options.page_size_max + PAGE;
	ck_assert_int_eq(bed_memory(&memory, &fd, &host), -EINVAL);
}

TEST(window, stays_in_its_region)
{
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = BED_GPA,
		.length = 6 * PAGE,
		.offset = 1 * PAGE,
	};

	up(KVMFAULT_WINDOW_FIXED, 16);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	region.memory = bed.memory;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	ck_assert_int_eq(fetch(2).action, KVMFAULT_ACTION_RETRY);	/* page 3 */
	check_only(1, 6);
}

TEST(window, message_has_no_region)
{
	up(KVMFAULT_WINDOW_FIXED, 4);
	bed_resolve(KVMFAULT_KIND_UFFD, 9, true);
	check_only(8, 4);
	/* All of them came through the mapping where the sleeper is. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 0);
}

TEST(window, not_over_what_is_there)
{
	up(KVMFAULT_WINDOW_FIXED, 8);
	ck_assert_int_eq(kvmfault__page_change(bed.memory, 1, KVMFAULT__ABSENT,
					       KVMFAULT__DISCARDED),
			 KVMFAULT__ABSENT);
	ck_assert_int_eq(kvmfault__page_change(bed.memory, 5, KVMFAULT__ABSENT,
					       KVMFAULT__FETCHING),
			 KVMFAULT__ABSENT);
	fetch(3);
	ck_assert_uint_eq(bed.last_read, 2 * PAGE);
	ck_assert_uint_eq(bed.last_length, 3 * PAGE);
	ck_assert_int_eq(bed_state(1), KVMFAULT__DISCARDED);
	ck_assert_int_eq(bed_state(5), KVMFAULT__FETCHING);
	ck_assert_int_eq(bed_state(6), KVMFAULT__ABSENT);
	ck_assert_int_eq(bed_state(0), KVMFAULT__ABSENT);
	fetch(7);
	ck_assert_uint_eq(bed.last_read, 6 * PAGE);
	ck_assert_uint_eq(bed.last_length, 2 * PAGE);
	/* A discarded page comes alone: it is zero, and no window's. */
	fetch(1);
	ck_assert(bed_has(1, 0));
	ck_assert_int_eq(bed_state(0), KVMFAULT__ABSENT);
	kvmfault__page_change(bed.memory, 5, KVMFAULT__FETCHING,
			      KVMFAULT__ABSENT);
}

TEST(window, walk_doubles)
{
	static const uint64_t lengths[] = { 1, 2, 4, 4, 4, 1 };
	uint64_t page = 0, i;

	up(KVMFAULT_WINDOW_ADAPTIVE, 4);
	for (i = 0; page < BED_PAGES; i++) {
		fetch(page);
		ck_assert_uint_eq(bed.last_read, page * PAGE);
		ck_assert_uint_eq(bed.last_length, lengths[i] * PAGE);
		page += lengths[i];
	}
}

TEST(window, walk_down_doubles)
{
	static const uint64_t lengths[] = { 1, 2, 4, 4, 4, 1 };
	uint64_t page = BED_PAGES, i;

	up(KVMFAULT_WINDOW_ADAPTIVE, 4);
	for (i = 0; page; i++) {
		fetch(page - 1);
		page -= lengths[i];
		ck_assert_uint_eq(bed.last_read, page * PAGE);
		ck_assert_uint_eq(bed.last_length, lengths[i] * PAGE);
	}
}

TEST(window, jumps_bring_the_page)
{
	static const uint64_t pages[] = { 0, 7, 3, 15, 10, 12 };
	size_t i;

	up(KVMFAULT_WINDOW_ADAPTIVE, 8);
	for (i = 0; i < 6; i++) {
		fetch(pages[i]);
		ck_assert_uint_eq(bed.last_read, pages[i] * PAGE);
		ck_assert_uint_eq(bed.last_length, PAGE);
	}
}

TEST(window, source_says)
{
	bed_vm();
	bed.window = KVMFAULT_WINDOW_SOURCE;
	bed.chunk = 8 * PAGE;
	bed_add();
	fetch(9);
	check_only(8, 8);
}

TEST(window, source_does_not_say)
{
	up(KVMFAULT_WINDOW_SOURCE, 4);
	fetch(9);
	check_only(9, 1);
}

/* ---- what can go wrong ---- */

static void fail_once(void)
{
	bed.source_result = 0;
}

TEST(window, neighbours_trouble)
{
	up(KVMFAULT_WINDOW_FIXED, 4);
	/* The first read fails, and the second one does not. */
	bed.source_result = -EIO;
	bed.during_read = fail_once;
	ck_assert_int_eq(fetch(6).action, KVMFAULT_ACTION_RETRY);
	check_only(6, 1);
	ck_assert_uint_eq(bed.reads, 2);
	ck_assert_uint_eq(bed.last_read, 6 * PAGE);
	ck_assert_uint_eq(bed.last_length, PAGE);
}

TEST(window, source_fails)
{
	struct kvmfault__answer answer;

	up(KVMFAULT_WINDOW_FIXED, 4);
	bed.source_result = -EIO;
	answer = fetch(6);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(answer.error, -EIO);
	check_only(0, 0);
}

/* The kernel takes so many pages, and then says why no more. */
static uint64_t takes;
static int64_t says;

static bool short_copy(struct fake_call *call)
{
	struct uffdio_copy *copy = call->arg;
	uint64_t wanted = copy->len;

	if (call->number != UFFDIO_COPY)
		return false;
	if (!takes) {
		copy->copy = says;
		call->result = says;
		return true;
	}
	copy->len = takes * PAGE;
	fake_model(call);
	copy->len = wanted;
	takes = 0;
	call->result = -EAGAIN;
	return true;
}

TEST(window, kernel_takes_a_part)
{
	up(KVMFAULT_WINDOW_FIXED, 4);
	takes = 3;
	says = -ENOMEM;
	fake_on(FAKE_IOCTL, short_copy);
	/* The page came: it is resolved, whatever befell its neighbour. */
	ck_assert_int_eq(fetch(6).action, KVMFAULT_ACTION_RETRY);
	check_only(4, 3);
	ck_assert_uint_eq(bed_stats().fetched, 3);
	ck_assert_uint_eq(bed.change.length, 3 * PAGE);
}

TEST(window, kernel_takes_too_little)
{
	struct kvmfault__answer answer;

	up(KVMFAULT_WINDOW_FIXED, 4);
	takes = 2;
	says = -ENOMEM;
	fake_on(FAKE_IOCTL, short_copy);
	answer = fetch(6);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.error, -ENOMEM);
	/* What came is there all the same, and counted. */
	check_only(4, 2);
	ck_assert_uint_eq(bed_stats().fetched, 2);
}

TEST(window, one_was_there)
{
	up(KVMFAULT_WINDOW_FIXED, 4);
	fake_put(bed.fd, 5 * PAGE);
	ck_assert_int_eq(fetch(6).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(4, bed_byte(4)));
	ck_assert(bed_has(6, bed_byte(6)));
	ck_assert(bed_has(7, bed_byte(7)));
	ck_assert_int_eq(bed_state(5), KVMFAULT__PRESENT);
	ck_assert_uint_eq(bed_stats().fetched, 3);
	ck_assert_uint_eq(bed_stats().existed, 1);
}

static void discard_a_neighbour(void)
{
	kvmfault__page_discard(bed.memory, 7);
}

TEST(window, neighbour_is_discarded_meanwhile)
{
	up(KVMFAULT_WINDOW_FIXED, 4);
	bed.during_read = discard_a_neighbour;
	ck_assert_int_eq(fetch(6).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(7), KVMFAULT__DISCARDED);
	ck_assert(!fake_present(bed.fd, 7 * PAGE));
	ck_assert(bed_has(4, bed_byte(4)));
	ck_assert_int_eq(bed_state(6), KVMFAULT__PRESENT);
	ck_assert_uint_eq(bed.change.offset, 4 * PAGE);
}

static void message_for_a_neighbour(void)
{
	struct kvmfault__seat *mine = bed.seat;

	bed.seat = kvmfault__seat_take(bed.vm);
	bed_resolve(KVMFAULT_KIND_UFFD, 7, true);
	kvmfault__seat_give(bed.seat);
	bed.seat = mine;
}

TEST(window, neighbour_has_a_sleeper)
{
	const struct fake_call *wake;

	up(KVMFAULT_WINDOW_FIXED, 4);
	bed.during_read = message_for_a_neighbour;
	fetch(6);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
	wake = fake_nth(FAKE_IOCTL, UFFDIO_WAKE, 0);
	ck_assert_uint_eq(wake->at, (uintptr_t)bed_page(4));
	ck_assert_uint_eq(wake->length, 4 * PAGE);
}

TEST(window, sleeper_on_a_neighbour_that_did_not_come)
{
	const struct fake_call *wake;

	up(KVMFAULT_WINDOW_FIXED, 4);
	bed.source_result = -EIO;
	bed.during_read = message_for_a_neighbour;
	fetch(6);
	/* Awake, it faults again, and is fetched for itself. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
	wake = fake_nth(FAKE_IOCTL, UFFDIO_WAKE, 0);
	ck_assert_uint_eq(wake->at, (uintptr_t)bed_page(7));
	ck_assert_int_eq(bed_state(7), KVMFAULT__ABSENT);
}

/* ---- one that widens, and then says that it is not its ---- */

static uint64_t asked_length;

static int widen_and_decline(void *data, struct kvmfault_request *request)
{
	(void)data;
	ck_assert_int_eq(kvmfault_request_widen(request), 0);
	asked_length = request->length;
	return KVMFAULT_VERDICT_DECLINED;
}

static int note_length(void *data, struct kvmfault_request *request)
{
	(void)data;
	*(uint64_t *)data = request->length;
	return KVMFAULT_VERDICT_DECLINED;
}

TEST(window, the_next_one_is_asked_for_the_page)
{
	uint64_t next = 0;
	struct kvmfault_resolver resolver = {
		.size = sizeof(resolver),
		.name = "wide",
		.resolve = widen_and_decline,
	};

	bed_vm();
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = 4 * PAGE;
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &resolver), 0);
	resolver.resolve = note_length;
	resolver.data = &next;
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &resolver), 0);
	bed_add();
	ck_assert_int_eq(fetch(6).action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(asked_length, 4 * PAGE);
	ck_assert_uint_eq(next, PAGE);
	check_only(6, 1);
}

/* ---- one that takes some pages of a memory, and not others ---- */

static int take_odd_pages(void *data, struct kvmfault_request *request)
{
	static char page[PAGE];

	(void)data;
	if (!(request->offset / PAGE % 2))
		return KVMFAULT_VERDICT_DECLINED;
	memset(page, 'o', sizeof(page));
	ck_assert_int_eq(kvmfault_request_install(request, page), 0);
	return KVMFAULT_VERDICT_RESOLVED;
}

TEST(window, no_page_of_the_vmms_comes_from_the_source)
{
	const struct kvmfault_resolver resolver = {
		.size = sizeof(resolver), .name = "odd",
		.pages = 1U << KVMFAULT_PAGE_ABSENT,
		.resolve = take_odd_pages,
	};
	uint64_t page;

	bed_vm();
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = 4 * PAGE;
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &resolver), 0);
	bed_add();
	for (page = 0; page < BED_PAGES; page++) {
		ck_assert_int_eq(fetch(page).action, KVMFAULT_ACTION_RETRY);
		ck_assert_int_eq(bed_state(page), KVMFAULT__PRESENT);
		if (page + 1 < BED_PAGES)
			ck_assert_int_eq(bed_state(page + 1),
					 KVMFAULT__ABSENT);
		ck_assert(bed_has(page, page % 2 ? 'o' : bed_byte(page)));
	}
}

/* Of others it says nothing, and the library brings the window. */
TEST(window, a_resolver_for_other_pages)
{
	const struct kvmfault_resolver resolver = {
		.size = sizeof(resolver), .name = "odd",
		.pages = 1U << KVMFAULT_PAGE_HOLE |
			 1U << KVMFAULT_PAGE_DISCARDED,
		.resolve = take_odd_pages,
	};

	bed_vm();
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = 4 * PAGE;
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &resolver), 0);
	bed_add();
	ck_assert_int_eq(fetch(6).action, KVMFAULT_ACTION_RETRY);
	check_only(4, 4);
}

int main(void)
{
	return run_suite("window");
}
