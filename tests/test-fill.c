/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * fill.c: what a fill brings and what it leaves alone, when it works and when it
 * rests. The memory has 16 pages, and time passes only when a test says so.
 */

#include <linux/userfaultfd.h>
#include <string.h>
#include <unistd.h>

#include "bed.h"
#include "lib/entry/fill.h"
#include "lib/memory/working-set.h"

#define MS 1000000ULL

static struct kvmfault_fill *fill;
static unsigned int reports, ends;
static struct kvmfault_fill_progress reported;
static int freed;			/* what kvmfault_fill_free() said there */

static void report(void *data, const struct kvmfault_fill_progress *progress)
{
	int timeout;

	fake_called_back();
	ck_assert_ptr_eq(data, &reports);
	reports++;
	ends += progress->over;
	reported = *progress;
	freed = kvmfault_fill_free(fill);
	ck_assert_int_eq(kvmfault_fill_dispatch(fill, &timeout), -EDEADLK);
}

static struct kvmfault_fill_options wanted(void)
{
	static struct kvmfault_memory *memories[1];

	memories[0] = bed.memory;
	return (struct kvmfault_fill_options){
		.size = sizeof(struct kvmfault_fill_options),
		.memories = memories, .memory_count = 1,
	};
}

static void begin_as(struct kvmfault_fill_options options)
{
	ck_assert_int_eq(kvmfault_fill_new(bed.vm, &options, &fill), 0);
}

static void begin(uint64_t window_pages)
{
	struct kvmfault_fill_options options = wanted();

	options.window_length = window_pages * PAGE;
	begin_as(options);
}

static int step(void)
{
	int timeout = -2;

	ck_assert_int_eq(kvmfault_fill_dispatch(fill, &timeout), 0);
	ck_assert_int_ge(timeout, -1);
	return timeout;
}

static struct kvmfault_fill_progress progress(void)
{
	struct kvmfault_fill_progress now = { .size = sizeof(now) };

	ck_assert_int_eq(kvmfault_fill_progress(fill, &now), 0);
	return now;
}

/* All that it wants to do at once. */
static void go_on(void)
{
	while (!step())
		;
}

/* All that it wants to do, and in the pauses time passes. */
static void finish(void)
{
	int tries, pause = 0;

	for (tries = 0; tries < 1000 && pause >= 0; tries++) {
		pause = step();
		if (pause > 0)
			fake_advance((unsigned int)pause * MS);
	}
	ck_assert_int_eq(pause, -1);
}

static void check_all_is_there(void)
{
	uint64_t page;

	for (page = 0; page < BED_PAGES; page++)
		ck_assert(bed_state(page) != KVMFAULT__PRESENT ||
			  bed_has(page, bed_byte(page)));
	ck_assert_uint_eq(progress().missing, 0);
	ck_assert_uint_le(progress().resident + progress().discarded,
			  progress().total);
	ck_assert(progress().over);
	ck_assert_int_eq(step(), -1);
}

static void up(void)
{
	bed_up();
	fill = NULL;
	reports = ends = 0;
}

static void down(void)
{
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
	fill = NULL;
	bed_down();
}

TEST_GROUP(fill, up, down);

TEST(fill, brings_all_in_one_window)
{
	begin(0);
	ck_assert_uint_eq(progress().total, BED_PAGES * PAGE);
	ck_assert_uint_eq(progress().missing, BED_PAGES * PAGE);
	go_on();
	check_all_is_there();
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_COPY), 1);
	ck_assert_uint_eq(bed_stats().filled, BED_PAGES);
	ck_assert_uint_eq(bed_stats().fetched, BED_PAGES);
	ck_assert_uint_eq(bed_stats().kind[KVMFAULT_KIND_FILL], 1);
}

TEST(fill, brings_windows_in_order)
{
	uint64_t page;

	begin(4);
	for (page = 0; page < BED_PAGES; page += 4) {
		ck_assert_int_eq(step(), 0);
		ck_assert_uint_eq(bed.last_read, page * PAGE);
		ck_assert_uint_eq(bed.last_length, 4 * PAGE);
		ck_assert_uint_eq(progress().missing,
				  (BED_PAGES - page - 4) * PAGE);
	}
	ck_assert(!bed_stats().kind[KVMFAULT_KIND_CALL]);
	ck_assert_int_eq(step(), -1);
	check_all_is_there();
}

/* The memory's window is for faults. */
TEST(fill, window_of_faults_is_as_before)
{
	begin(4);
	step();
	bed_resolve(KVMFAULT_KIND_CALL, 9, false);
	ck_assert_int_eq(bed_state(9), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(10), KVMFAULT__ABSENT);
}

TEST(fill, leaves_what_is_there_or_discarded)
{
	bed_resolve(KVMFAULT_KIND_CALL, 5, false);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA + 7 * PAGE, PAGE),
			 0);
	begin(0);
	go_on();
	check_all_is_there();
	ck_assert_int_eq(bed_state(7), KVMFAULT__DISCARDED);
	ck_assert_uint_eq(progress().discarded, PAGE);
	ck_assert_uint_eq(progress().resident, (BED_PAGES - 1) * PAGE);
	ck_assert(!fake_present(bed.fd, 7 * PAGE));
	/* 0 to 4, 6, and 8 to 15; and 5 before */
	ck_assert_uint_eq(bed.reads, 4);
	ck_assert_uint_eq(bed_stats().filled, BED_PAGES - 2);
	ck_assert_uint_eq(bed_stats().existed, 0);
}

/* A balloon takes the page when the fill has just seen that it is absent. */
BED_WRAPPED(kvmfault__page_change);
static bool discard_first;

enum kvmfault__state
__wrap_kvmfault__page_change(struct kvmfault_memory *memory, uint64_t page,
			     enum kvmfault__state from,
			     enum kvmfault__state to)
{
	if (discard_first) {
		discard_first = false;
		ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA +
						  page * PAGE, PAGE), 0);
	}
	return __real_kvmfault__page_change(memory, page, from, to);
}

TEST(fill, leaves_a_page_that_was_just_discarded)
{
	begin(1);
	discard_first = true;
	ck_assert_int_eq(step(), 0);
	ck_assert(!discard_first);
	ck_assert_int_eq(bed_state(0), KVMFAULT__DISCARDED);
	ck_assert(!fake_present(bed.fd, 0));
	ck_assert_uint_eq(bed_stats().waited, 0);
	finish();
	check_all_is_there();
	ck_assert_int_eq(bed_state(0), KVMFAULT__DISCARDED);
}

TEST(fill, leaves_a_page_in_flight_to_its_fetcher)
{
	kvmfault__page_change(bed.memory, 3, KVMFAULT__ABSENT,
			      KVMFAULT__FETCHING);
	begin(0);
	go_on();
	ck_assert_uint_eq(progress().missing, PAGE);
	ck_assert(!progress().over);
	ck_assert_int_eq(bed_state(3), KVMFAULT__FETCHING);
	ck_assert_int_eq(bed_waits(), 0);
	kvmfault__page_change(bed.memory, 3, KVMFAULT__FETCHING,
			      KVMFAULT__ABSENT);
	fake_advance(1000 * MS);
	go_on();
	check_all_is_there();
}

TEST(fill, asks_a_source_that_fails_again_and_again)
{
	int pause, last = 0;

	begin(8);
	bed.source_result = -EPERM;
	while (last < 1000) {
		pause = step();
		if (!pause)
			continue;
		ck_assert_int_ge(pause, last);
		last = pause;
		fake_advance((unsigned int)pause * MS);
	}
	ck_assert_int_le(last, 1024);
	ck_assert_int_eq(progress().error, -EPERM);
	ck_assert_uint_eq(progress().missing, BED_PAGES * PAGE);
	ck_assert_uint_eq(bed_stats().filled, 0);
	ck_assert_uint_eq(bed.unresolved, 0);
	bed.source_result = 0;
	finish();
	check_all_is_there();
	ck_assert_int_eq(progress().error, 0);
}

/* One page is lost: the others come, and it is poisoned. */
static int read_but_page_2(void *data, uint64_t offset, void *buffer,
			   size_t length)
{
	uint64_t at;

	(void)data;
	if (offset <= 2 * PAGE && offset + length > 2 * PAGE)
		return -EHWPOISON;
	for (at = 0; at < length; at += PAGE)
		memset((char *)buffer + at, bed_byte((offset + at) / PAGE),
		       PAGE);
	return 0;
}

TEST_EACH(fill, poisons_what_the_source_has_lost, 2)
{
	bed_down();
	bed_vm();
	bed.source = (struct kvmfault_source){
		.size = sizeof(bed.source), .name = "but page 2",
		.read = read_but_page_2,
	};
	bed_add();
	begin(_i ? 4 : 1);
	while (!progress().over) {
		go_on();
		fake_advance(MS);
	}
	check_all_is_there();
	ck_assert_int_eq(bed_state(2), KVMFAULT__POISONED);
	ck_assert_int_eq(bed_state(1), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
}

/* One page has failed: the window is halved until it is alone, and all others
 * are there after one pass. */
static uint64_t bad_bytes;
static int read_but_page_5(void *data, uint64_t offset, void *buffer,
			   size_t length)
{
	uint64_t at;

	(void)data;
	bad_bytes += length;
	if (offset <= 5 * PAGE && offset + length > 5 * PAGE)
		return -EPERM;
	for (at = 0; at < length; at += PAGE)
		memset((char *)buffer + at, bed_byte((offset + at) / PAGE),
		       PAGE);
	return 0;
}

TEST(fill, halves_what_has_failed)
{
	bed_down();
	bed_vm();
	bed.source = (struct kvmfault_source){
		.size = sizeof(bed.source), .name = "but page 5",
		.read = read_but_page_5,
	};
	bed_add();
	begin(0);
	bad_bytes = 0;
	go_on();
	ck_assert_uint_eq(progress().missing, PAGE);
	ck_assert_int_eq(bed_state(5), KVMFAULT__ABSENT);
	ck_assert_int_eq(progress().error, -EPERM);
	/* 16 + 1, 8 + 1, 4 + 1, 2 + 1, 1, 1 ...: three times all */
	ck_assert_uint_le(bad_bytes, 3 * BED_PAGES * PAGE);
	ck_assert_uint_eq(bed_stats().filled, BED_PAGES - 1);
}

static unsigned int own_asked;
static const struct kvmfault_region *own_region;
static int own(void *data, struct kvmfault_request *request)
{
	(void)data;
	own_asked++;
	ck_assert_int_eq(request->fault->kind, KVMFAULT_KIND_FILL);
	ck_assert_uint_eq(request->fault->access, KVMFAULT_ACCESS_READ);
	ck_assert_ptr_eq((void *)(uintptr_t)request->fault->hva,
			 request->host);
	own_region = request->region;
	return KVMFAULT_VERDICT_DECLINED;
}

TEST(fill, asks_the_resolvers_of_the_vmm)
{
	bed_down();
	bed_vm();
	bed_own_resolver(own);
	bed_add();
	begin(0);
	go_on();
	check_all_is_there();
	ck_assert_uint_eq(own_asked, BED_PAGES);
	ck_assert_ptr_null(own_region);
}

static void takes_a_while(void)
{
	fake_advance(MS);
	bed.during_read = takes_a_while;
}

/* ---- a working set before all else ---- */

static struct kvmfault_working_set *set;

static void have_set(const struct kvmfault__image_run *runs, uint64_t count)
{
	const struct kvmfault_working_set_options options = {
		.size = sizeof(options), .image_length = 64 * PAGE,
	};

	ck_assert_int_eq(kvmfault_working_set_new(&options, &set), 0);
	ck_assert_int_eq(kvmfault__working_set_add(set, runs, count), 0);
}

static void begin_with_set(uint64_t window_pages)
{
	struct kvmfault_fill_options options = wanted();

	options.first = set;
	options.window_length = window_pages * PAGE;
	begin_as(options);
	ck_assert(progress().replaying);
}

static void check_step(uint64_t first, uint64_t count)
{
	unsigned int reads = bed.reads;

	ck_assert_int_eq(step(), 0);
	ck_assert_uint_eq(bed.reads, reads + 1);
	ck_assert_uint_eq(bed.last_read, first * PAGE);
	ck_assert_uint_eq(bed.last_length, count * PAGE);
}

TEST(fill, brings_the_working_set_first)
{
	static const struct kvmfault__image_run runs[] = {
		{ 9 * PAGE, PAGE }, { 60 * PAGE, PAGE }, { 2 * PAGE, 5 * PAGE },
		{ 15 * PAGE, 8 * PAGE }, { 13 * PAGE + 1, 1 },
	};

	have_set(runs, 5);
	begin_with_set(4);
	check_step(9, 1);
	check_step(2, 4);
	check_step(6, 1);
	ck_assert(progress().replaying);
	check_step(15, 1);		/* its other pages are in no memory */
	check_step(13, 1);
	ck_assert(!progress().replaying);
	check_step(0, 2);		/* in order from here on, and the rest */
	go_on();
	check_all_is_there();
	ck_assert_uint_eq(bed_stats().filled, BED_PAGES);
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
	fill = NULL;
	kvmfault_working_set_free(set);
}

/* A run may begin and end anywhere: no step is longer than the window. */
TEST(fill, takes_a_working_set_by_bytes)
{
	static const struct kvmfault__image_run runs[] = {
		{ PAGE + 1, 9 * PAGE },
	};

	have_set(runs, 1);
	begin_with_set(4);
	check_step(1, 4);
	check_step(5, 4);
	check_step(9, 2);
	ck_assert(!progress().replaying);
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
	fill = NULL;
	kvmfault_working_set_free(set);
}

/* However long a run is that is in no memory. */
TEST(fill, leaves_out_a_run_at_once)
{
	const struct kvmfault_working_set_options options = {
		.size = sizeof(options), .image_length = 1ULL << 62,
	};
	static const struct kvmfault__image_run run = { 0, 1ULL << 62 };

	ck_assert_int_eq(kvmfault_working_set_new(&options, &set), 0);
	ck_assert_int_eq(kvmfault__working_set_add(set, &run, 1), 0);
	begin_with_set(8);
	check_step(0, 8);
	check_step(8, 8);
	ck_assert(progress().replaying);
	ck_assert(!progress().over);
	go_on();
	check_all_is_there();
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
	fill = NULL;
	kvmfault_working_set_free(set);
}

/* Nor does it rest for demand before that is there. */
TEST(fill, does_not_rest_in_the_working_set)
{
	static const struct kvmfault__image_run runs[] = {
		{ 9 * PAGE, 2 * PAGE }, { 5 * PAGE, PAGE },
	};

	have_set(runs, 2);
	begin_with_set(1);
	bed.during_read = takes_a_while;
	atomic_store(&bed.seat->in_hand, true);
	check_step(9, 1);
	check_step(10, 1);
	check_step(5, 1);
	ck_assert_int_eq(step(), 7);
	atomic_store(&bed.seat->in_hand, false);
	bed.during_read = NULL;
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
	fill = NULL;
	kvmfault_working_set_free(set);
}

TEST(fill, reports_and_ends_once)
{
	struct kvmfault_fill_options options = wanted();

	options.window_length = 4 * PAGE;
	options.progress = report;
	options.data = &reports;
	options.interval_ms = 10;
	begin_as(options);
	step();			/* the first report: all is missing */
	ck_assert_uint_eq(reports, 1);
	ck_assert_uint_eq(reported.missing, BED_PAGES * PAGE);
	step();
	ck_assert_uint_eq(reports, 1);
	fake_advance(10 * MS);
	step();
	ck_assert_uint_eq(reports, 2);
	ck_assert_uint_eq(reported.missing, BED_PAGES / 2 * PAGE);
	ck_assert_uint_eq(reported.milliseconds, 10);
	go_on();
	ck_assert_uint_eq(ends, 1);
	ck_assert(reported.over);
	step();
	fake_advance(10 * MS);
	step();
	ck_assert_uint_eq(reports, 3);
	ck_assert_int_eq(freed, -EDEADLK);
}

TEST(fill, does_nothing_while_paused)
{
	begin(4);
	ck_assert_int_eq(kvmfault_fill_pause(fill, true), 0);
	ck_assert(progress().paused);
	ck_assert_int_eq(step(), 250);
	fake_advance(250 * MS);
	ck_assert_int_eq(step(), 250);
	ck_assert_uint_eq(bed.reads, 0);
	ck_assert(!progress().over);
	ck_assert_int_eq(kvmfault_fill_pause(fill, false), 0);
	go_on();
	check_all_is_there();
}

TEST(fill, keeps_to_its_rate)
{
	struct kvmfault_fill_options options = wanted();

	options.rate = 64 * PAGE;	/* windows of 4 pages, 16 a second */
	begin_as(options);
	ck_assert_int_eq(step(), 0);
	ck_assert_uint_eq(bed.last_length, 4 * PAGE);
	ck_assert_int_eq(step(), 63);
	ck_assert_uint_eq(bed.reads, 1);
	fake_advance(62 * MS);
	ck_assert_int_eq(step(), 1);
	fake_advance(MS);
	ck_assert_int_eq(step(), 0);
	ck_assert_uint_eq(bed.reads, 2);
	/* The same rate again is no reason to bring more. */
	ck_assert_int_eq(kvmfault_fill_set_rate(fill, options.rate), 0);
	ck_assert_int_gt(step(), 0);
	ck_assert_int_eq(kvmfault_fill_set_rate(fill, 0), 0);
	ck_assert_int_eq(step(), 0);
	ck_assert_uint_eq(bed.last_length, 8 * PAGE);
	go_on();
	check_all_is_there();
}

/* A rate under 16 pages a second still brings a page at a time. */
TEST(fill, a_small_rate_brings_pages)
{
	struct kvmfault_fill_options options = wanted();

	options.rate = 1;
	begin_as(options);
	ck_assert_int_eq(step(), 0);
	ck_assert_uint_eq(bed.last_length, PAGE);
	ck_assert_int_eq(step(), 250);
	fake_advance(4095 * 1000 * MS);
	ck_assert_int_eq(step(), 250);
	ck_assert_uint_eq(bed.reads, 1);
	fake_advance(1000 * MS);
	ck_assert_int_eq(step(), 0);
	ck_assert_uint_eq(bed.reads, 2);
}

/* A fill that brings nothing, or next to nothing, still tells when faults have
 * brought the rest: at its next interval, whatever the page was. */
static void begin_watching(bool paused)
{
	struct kvmfault_fill_options options = wanted();

	options.rate = !paused;
	options.paused = paused;
	options.progress = report;
	options.data = &reports;
	options.interval_ms = 20;
	begin_as(options);
	ck_assert_int_eq(progress().paused, paused);
	if (!paused)
		ck_assert_int_eq(step(), 0);
	ck_assert_int_eq(step(), 20);
}

TEST_EACH(fill, tells_that_faults_brought_the_rest, 2)
{
	uint64_t page;

	begin_watching(_i);
	for (page = 15; page > 1; page--)
		bed_resolve(KVMFAULT_KIND_CALL, page, false);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA, PAGE), 0);
	fake_advance(20 * MS);
	ck_assert_int_eq(step(), 20);
	ck_assert(!progress().over);
	bed_resolve(KVMFAULT_KIND_CALL, 1, false);
	ck_assert_int_eq(step(), 20);
	ck_assert_uint_eq(ends, 0);
	fake_advance(20 * MS);
	ck_assert_int_eq(step(), -1);
	ck_assert_uint_eq(ends, 1);
	ck_assert(reported.over);
	ck_assert_uint_eq(reported.missing, 0);
	check_all_is_there();
	ck_assert_uint_eq(bed_stats().filled, !_i);
}

/* The fetch of a page that it has passed fails: the page is absent again. */
TEST(fill, watches_a_page_whose_fetch_fails)
{
	uint64_t page;

	begin_watching(true);
	for (page = 0; page < BED_PAGES; page++)
		kvmfault__page_change(bed.memory, page, KVMFAULT__ABSENT,
				      page == 3 ? KVMFAULT__FETCHING :
						  KVMFAULT__PRESENT);
	for (page = 0; page < 3; page++) {
		fake_advance(20 * MS);
		ck_assert_int_eq(step(), 20);
	}
	kvmfault__page_change(bed.memory, 3, KVMFAULT__FETCHING,
			      KVMFAULT__ABSENT);
	fake_advance(20 * MS);
	ck_assert_int_eq(step(), 20);
	kvmfault__page_change(bed.memory, 3, KVMFAULT__ABSENT,
			      KVMFAULT__PRESENT);
	fake_advance(20 * MS);
	ck_assert_int_eq(step(), -1);
	ck_assert(progress().over);
	ck_assert_uint_eq(ends, 1);
}

TEST(fill, its_thread_tells_while_paused)
{
	struct kvmfault_fill_options options = wanted();
	uint64_t page;

	options.threads = 2;
	options.paused = true;
	begin_as(options);
	for (page = 0; page < BED_PAGES; page++)
		bed_resolve(KVMFAULT_KIND_CALL, page, false);
	for (page = 0; page < 10000 && !progress().over; page++) {
		fake_advance(MS);
		usleep(100);
	}
	ck_assert(progress().over);
	ck_assert(progress().paused);
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
	fill = NULL;
}

/* ---- the source's chunks ---- */

#define CHUNK 4ULL			/* pages */

static void up_chunks(enum kvmfault_window window, uint64_t shift)
{
	bed_down();
	bed_vm();
	bed.window = window;
	bed.source = bed_source();
	bed.source.chunk = CHUNK * PAGE;
	bed_add();
	bed.memory->source_offset = shift * PAGE;
}

/* Pages of the source, of which one step brings so many. */
static void check_chunk(uint64_t shift, uint64_t first, uint64_t count)
{
	unsigned int reads = bed.reads;

	ck_assert_int_eq(step(), 0);
	ck_assert_uint_eq(bed.reads, reads + 1);
	ck_assert_uint_eq(bed.last_read, (first + shift) * PAGE);
	ck_assert_uint_eq(bed.last_length, count * PAGE);
}

/* However little a step may bring, and however much. */
TEST_EACH(fill, reads_each_chunk_once, 4)
{
	static const uint64_t windows[] = { 4, 6, 7, 11 };
	struct kvmfault_fill_options options;
	uint64_t step_pages = windows[_i] / CHUNK * CHUNK;
	uint64_t page, end;

	up_chunks(KVMFAULT_WINDOW_NONE, 3);
	options = wanted();
	options.window_length = windows[_i] * PAGE;
	begin_as(options);
	for (page = 0; page < BED_PAGES; page = end) {
		end = (page + 3) / step_pages * step_pages + step_pages - 3;
		if (end > BED_PAGES)
			end = BED_PAGES;
		check_chunk(3, page, end - page);
	}
}

TEST(fill, brings_a_chunk_at_any_rate)
{
	struct kvmfault_fill_options options;

	up_chunks(KVMFAULT_WINDOW_NONE, 0);
	options = wanted();
	options.rate = 16 * PAGE;	/* a step would be one page */
	begin_as(options);
	check_chunk(0, 0, 4);
	ck_assert_int_gt(step(), 180);	/* and is paid for four */
	fake_advance(260 * MS);
	check_chunk(0, 4, 4);
}

/* A chunk that no step can bring at once is no reason for anything. */
TEST(fill, leaves_a_chunk_that_is_too_long)
{
	up_chunks(KVMFAULT_WINDOW_NONE, 1);
	begin(3);
	check_chunk(1, 0, 3);
	check_chunk(1, 3, 3);
}

/* As faults do, a fill brings the chunks of its working set. */
TEST_EACH(fill, brings_the_chunks_of_its_set, 2)
{
	static const struct kvmfault__image_run runs[] = {
		{ 9 * PAGE, PAGE }, { 14 * PAGE, 5 * PAGE }, { 2 * PAGE, PAGE },
		{ 10 * PAGE, PAGE },
	};

	up_chunks(_i ? KVMFAULT_WINDOW_SOURCE : KVMFAULT_WINDOW_FIXED, 2);
	have_set(runs, 4);
	begin_with_set(8);
	if (_i) {
		check_chunk(2, 6, 4);
		check_chunk(2, 10, 6);	/* the rest is in no memory */
		check_chunk(2, 0, 2);
		ck_assert_int_eq(step(), 0);	/* the set's last: is there */
	} else {
		check_chunk(2, 7, 1);
		check_chunk(2, 12, 4);
		check_chunk(2, 0, 1);
		check_chunk(2, 8, 1);
	}
	ck_assert(!progress().replaying);
	go_on();
	ck_assert(progress().over);
	ck_assert_uint_eq(bed_stats().filled, BED_PAGES);
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
	fill = NULL;
	kvmfault_working_set_free(set);
}

/* A fault of the guest, and for 2 ms after it: a step of 1 ms is followed by
 * seven of rest. */
TEST(fill, rests_after_demand)
{
	begin(1);
	bed.during_read = takes_a_while;
	ck_assert_int_eq(step(), 0);
	bed_service(0);
	bed_touch(9, false);
	bed_dispatch();
	ck_assert_int_eq(bed_state(9), KVMFAULT__PRESENT);
	ck_assert_int_eq(step(), 7);
	fake_advance(3 * MS);
	ck_assert_int_eq(step(), 0);
	bed.during_read = NULL;
}

/* It has no effect that the fill's own thread has a page in hand. */
TEST(fill, rests_while_a_page_is_waited_for)
{
	begin(1);
	bed.during_read = takes_a_while;
	ck_assert_int_eq(step(), 0);
	atomic_store(&bed.seat->in_hand, true);
	ck_assert_int_eq(step(), 7);
	fake_advance(100 * MS);
	ck_assert_int_eq(step(), 7);
	atomic_store(&bed.seat->in_hand, false);
	fake_advance(3 * MS);
	ck_assert_int_eq(step(), 0);
	bed.during_read = NULL;
}

TEST(fill, names_its_memory)
{
	char text[256];

	begin(4);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	ck_assert_int_eq(kvmfault_memory_free(bed.memory), -EBUSY);
	ck_assert_int_eq(kvmfault_vm_error(bed.vm, text, sizeof(text)), 0);
	ck_assert_ptr_nonnull(strstr(text, "kvmfault_fill_free"));
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
	fill = NULL;
	ck_assert_int_eq(bed_state(0), KVMFAULT__ABSENT);
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &(struct kvmfault_region){
		.size = sizeof(struct kvmfault_region), .gpa = BED_GPA,
		.length = BED_PAGES * PAGE, .memory = bed.memory,
	}), 0);
}

/* When a fill is over its memory can be settled, once the fill is freed. */
TEST(fill, leads_to_a_settled_memory)
{
	struct kvmfault_fill_options options = wanted();
	char text[256];
	uint64_t left;

	begin(0);
	go_on();
	check_all_is_there();
	ck_assert_int_eq(kvmfault_memory_settle(bed.memory, &left), -EBUSY);
	ck_assert_int_eq(kvmfault_vm_error(bed.vm, text, sizeof(text)), 0);
	ck_assert_ptr_nonnull(strstr(text, "kvmfault_fill_free"));
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
	ck_assert_int_eq(kvmfault_memory_settle(bed.memory, &left), 0);
	ck_assert_uint_eq(left, 0);
	ck_assert_int_eq(kvmfault_fill_new(bed.vm, &options, &fill), -EINVAL);
	ck_assert_ptr_null(fill);
}

TEST_EACH(fill, its_threads_bring_all, 2)
{
	struct kvmfault_fill_options options = wanted();

	options.threads = _i ? 4 : 1;
	options.window_length = 2 * PAGE;
	begin_as(options);
	while (!progress().over)
		fake_advance(MS);
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
	fill = NULL;
	ck_assert_uint_eq(bed.reads, BED_PAGES / 2);
	ck_assert_uint_eq(bed_stats().filled, BED_PAGES);
}

/* Whatever they wait for. */
TEST(fill, its_threads_end_early)
{
	struct kvmfault_fill_options options = wanted();
	int timeout;

	options.threads = 2;
	options.rate = 1;
	begin_as(options);
	ck_assert_int_eq(kvmfault_fill_dispatch(fill, &timeout), -EINVAL);
	kvmfault_fill_pause(fill, true);
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
	fill = NULL;
	ck_assert_int_le(bed_stats().filled, 2);
}

/* ---- sources that answer later ---- */

static struct kvmfault_fetch *flying[64];
static void *buffers[64];
static uint64_t offsets[64];
static size_t lengths[64];
static unsigned int submitted;
static bool fails_at_once;

static int submit(void *data, struct kvmfault_fetch *fetch, uint64_t offset,
		  void *buffer, size_t length)
{
	(void)data;
	if (fails_at_once) {
		kvmfault_fetch_done(fetch, -EPERM);
		return 0;
	}
	flying[submitted] = fetch;
	buffers[submitted] = buffer;
	offsets[submitted] = offset;
	lengths[submitted++] = length;
	return 0;
}

static void answer(unsigned int i, int error)
{
	uint64_t at;

	for (at = 0; at < lengths[i]; at += PAGE)
		memset((char *)buffers[i] + at,
		       bed_byte((offsets[i] + at) / PAGE), PAGE);
	kvmfault_fetch_done(flying[i], error);
}

static void up_later(void)
{
	fill = NULL;
	submitted = 0;
	bed_vm();
	bed.source = (struct kvmfault_source){
		.size = sizeof(bed.source), .name = "later", .submit = submit,
	};
	bed_add();
}

TEST_GROUP(later, up_later, down);

TEST(later, has_many_in_flight)
{
	unsigned int i;

	begin(1);
	go_on();
	ck_assert_uint_eq(submitted, BED_PAGES);
	ck_assert_uint_eq(progress().missing, BED_PAGES * PAGE);
	for (i = 0; i < BED_PAGES; i++)
		answer(i, 0);
	finish();
	check_all_is_there();
}

TEST(later, asks_again_what_has_failed)
{
	unsigned int i;

	begin(0);
	go_on();
	ck_assert_uint_eq(submitted, 1);
	answer(0, -EPERM);		/* the window, and then the page */
	ck_assert_uint_eq(submitted, 2);
	ck_assert_uint_eq(lengths[1], PAGE);
	answer(1, -EPERM);
	for (i = 2; progress().missing; fake_advance(1000 * MS)) {
		go_on();
		for (; i < submitted; i++)
			answer(i, 0);
	}
	ck_assert_int_eq(progress().error, -EPERM);
	finish();
	check_all_is_there();
}

/* A source that is gone fails for more pages than a seat remembers, before the
 * fill asks for the first of them again. */
TEST(later, tells_that_all_have_failed)
{
	unsigned int i;

	begin(1);
	fails_at_once = true;
	go_on();
	fake_advance(1000 * MS);
	go_on();
	fails_at_once = false;
	ck_assert_int_eq(progress().error, -EPERM);
	ck_assert_uint_eq(progress().missing, BED_PAGES * PAGE);
	for (i = 0; progress().missing; fake_advance(1000 * MS)) {
		go_on();
		for (; i < submitted; i++)
			answer(i, 0);
	}
	finish();
	check_all_is_there();
	ck_assert_int_eq(progress().error, 0);
}

TEST(later, has_one_in_flight_beside_demand)
{
	unsigned int i;

	begin(1);
	bed_service(0);
	bed_touch(9, false);
	bed_dispatch();
	ck_assert_uint_eq(submitted, 1);
	step();
	ck_assert_uint_eq(submitted, 2);
	ck_assert_int_gt(step(), 0);
	ck_assert_uint_eq(submitted, 2);
	answer(1, 0);
	step();
	ck_assert_uint_eq(submitted, 3);
	answer(0, 0);
	answer(2, 0);
	fake_advance(3 * MS);
	go_on();
	ck_assert_uint_eq(submitted, BED_PAGES);
	for (i = 3; i < BED_PAGES; i++)
		answer(i, 0);
	finish();
	check_all_is_there();
}

/* Another fill's fetch, which may hang, is none of its own. */
TEST(later, has_one_in_flight_beside_another_fill)
{
	struct kvmfault_fill *other;
	unsigned int i;

	begin(1);
	other = fill;
	ck_assert_int_eq(step(), 0);
	ck_assert_uint_eq(submitted, 1);
	begin(1);
	atomic_store(&bed.seat->in_hand, true);
	step();
	ck_assert_uint_eq(submitted, 2);
	ck_assert_uint_eq(offsets[1], PAGE);
	fake_advance(100 * MS);
	ck_assert_int_gt(step(), 0);
	ck_assert_uint_eq(submitted, 2);
	answer(1, 0);
	fake_advance(100 * MS);
	step();
	ck_assert_uint_eq(submitted, 3);
	atomic_store(&bed.seat->in_hand, false);
	fake_advance(100 * MS);
	go_on();
	for (i = 2; i < submitted; i++)
		answer(i, 0);
	answer(0, 0);
	finish();
	check_all_is_there();
	ck_assert_int_eq(kvmfault_fill_free(other), 0);
}

/* It leaves half of them to faults. */
TEST(later, takes_half_of_the_fetches)
{
	unsigned int i, n;

	bed_down();
	submitted = 0;
	bed_vm();
	bed.vm->options.fetches = 8;
	bed.source = (struct kvmfault_source){
		.size = sizeof(bed.source), .name = "later", .submit = submit,
	};
	bed_add();
	begin(1);
	go_on();
	ck_assert_uint_eq(submitted, 4);
	for (i = 0; i < BED_PAGES; i = n) {
		n = submitted;
		ck_assert_uint_le(n - i, 4);
		for (; i < n; i++)
			answer(i, 0);
		step();
		go_on();
	}
	finish();
	check_all_is_there();
}

/* What it can't ask for now, a part of its working set too, is next when it
 * can. */
TEST(later, asks_in_order_when_it_can)
{
	static const struct kvmfault__image_run runs[] = {
		{ 9 * PAGE, 2 * PAGE }, { 5 * PAGE, PAGE }, { 12 * PAGE, PAGE },
	};
	static const uint64_t order[] = { 9, 10, 5, 12, 0, 1, 2, 3, 4, 6 };
	unsigned int i;

	bed_down();
	submitted = 0;
	bed_vm();
	bed.vm->options.fetches = 2;	/* one is for the fill */
	bed.source = (struct kvmfault_source){
		.size = sizeof(bed.source), .name = "later", .submit = submit,
	};
	bed_add();
	have_set(runs, 3);
	begin_with_set(1);
	for (i = 0; i < 10; i++) {
		go_on();
		ck_assert_uint_eq(submitted, i + 1);
		ck_assert_uint_eq(offsets[i], order[i] * PAGE);
		ck_assert_int_eq(progress().replaying, i < 3);
		ck_assert_int_gt(step(), 0);
		answer(i, 0);
	}
	for (; i < BED_PAGES; i++) {
		go_on();
		ck_assert_uint_eq(submitted, i + 1);
		answer(i, 0);
	}
	finish();
	check_all_is_there();
	ck_assert_int_eq(kvmfault_fill_free(fill), 0);
	fill = NULL;
	kvmfault_working_set_free(set);
}

/* While the guest faults, of what it put back it takes a short step's pages. */
TEST(later, takes_a_part_of_what_it_put_back)
{
	begin(0);
	fill->backs = 1;
	fill->back[0] = (struct kvmfault__fill_piece){
		.part = fill->part, .page = 1, .end = 16, .rest = 16,
	};
	atomic_store(&bed.seat->in_hand, true);
	step();
	ck_assert_uint_eq(submitted, 1);
	ck_assert_uint_eq(offsets[0], PAGE);
	ck_assert_uint_eq(lengths[0], 7 * PAGE);
	ck_assert_uint_eq(fill->backs, 1);
	ck_assert_uint_eq(fill->back[0].page, 8);
	atomic_store(&bed.seat->in_hand, false);
	answer(0, 0);
	fake_advance(100 * MS);
	step();
	ck_assert_uint_eq(offsets[1], 8 * PAGE);
	ck_assert_uint_eq(lengths[1], 8 * PAGE);
	ck_assert_uint_eq(fill->backs, 0);
	step();
	ck_assert_uint_eq(offsets[2], 0);
	ck_assert_uint_eq(lengths[2], PAGE);
	answer(1, 0);
	answer(2, 0);
	finish();
	check_all_is_there();
}

/* Each time a fetch fails the fill asks again, and later. */
TEST(later, does_not_hammer_a_source_that_fails)
{
	uint64_t waited = 0;

	fails_at_once = true;
	begin(0);
	while (waited < 60000) {
		int pause = step();

		waited += (unsigned int)pause;
		fake_advance((unsigned int)pause * MS);
	}
	fails_at_once = false;
	ck_assert_uint_lt(bed_stats().page[KVMFAULT_PAGE_ABSENT], 2000);
	ck_assert_int_eq(progress().error, -EPERM);
	ck_assert_uint_eq(bed_stats().filled, 0);
}

/* ---- sources with holes ---- */

/* Every third page has data. */
static int extent(void *data, uint64_t offset, uint64_t *length)
{
	uint64_t page = offset / PAGE, like = page % 3 ? 3 - page % 3 : 1;

	(void)data;
	if (*length > (page + like) * PAGE - offset)
		*length = (page + like) * PAGE - offset;
	return page % 3 ? KVMFAULT_EXTENT_HOLE : KVMFAULT_EXTENT_DATA;
}

TEST(fill, brings_holes_and_data_in_one_step)
{
	uint64_t page;

	bed_down();
	bed_vm();
	bed.source = bed_source();
	bed.source.extent = extent;
	bed_add();
	begin(0);
	ck_assert_int_eq(step(), 0);
	ck_assert_int_eq(step(), -1);
	ck_assert_uint_eq(bed.reads, 6);
	ck_assert_uint_eq(bed_stats().fetched, 6);
	ck_assert_uint_eq(bed_stats().holes, 10);
	ck_assert_uint_eq(bed_stats().filled, BED_PAGES);
	for (page = 0; page < BED_PAGES; page++)
		ck_assert(bed_has(page, page % 3 ? 0 : bed_byte(page)));
}

/* What is wrong with it is told. */
TEST_GROUP(refused, up, down);

static void check_refused(struct kvmfault_fill_options options,
			  const char *what)
{
	char text[256];

	ck_assert_int_eq(kvmfault_fill_new(bed.vm, &options, &fill), -EINVAL);
	ck_assert_ptr_null(fill);
	ck_assert_int_eq(kvmfault_vm_error(bed.vm, text, sizeof(text)), 0);
	ck_assert_msg(strstr(text, what), "%s", text);
}

TEST(refused, options)
{
	struct kvmfault_memory *none = NULL, *untracked;
	struct kvmfault_memory *twice[] = { bed.memory, bed.memory };
	struct kvmfault_memory_options plain = { .size = sizeof(plain) };
	struct kvmfault_fill_options options = wanted();
	void *host;
	int fd;

	options.memory_count = 0;
	check_refused(options, "memory_count");
	options = wanted();
	options.memories = NULL;
	check_refused(options, "memories");
	options.memories = &none;
	check_refused(options, "number 0 is NULL");
	options = wanted();
	options.memories = twice;
	options.memory_count = 2;
	check_refused(options, "number 0 and 1 are the same");
	have_set(NULL, 0);
	set->image_length = BED_PAGES * PAGE - 1;
	options = wanted();
	options.first = set;
	check_refused(options, "first: its image has");
	kvmfault_working_set_free(set);
	options = wanted();
	options.threads = 65;
	check_refused(options, "threads");
	options = wanted();
	options.window_length = 4 << 20;
	check_refused(options, "window_length");
	fd = fake_memory(PAGE, PAGE, &host);
	plain.host = host;
	plain.length = PAGE;
	plain.fd = fd;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &plain, &untracked), 0);
	options = wanted();
	options.memories = &untracked;
	check_refused(options, "no source");
	ck_assert_int_eq(kvmfault_memory_free(untracked), 0);
}

TEST(refused, a_member_of_the_future)
{
	struct {
		struct kvmfault_fill_options options;
		uint64_t more;
	} later = { .options = wanted(), .more = 1 };

	later.options.size = sizeof(later);
	ck_assert_int_eq(kvmfault_fill_new(bed.vm, &later.options, &fill),
			 -E2BIG);
}

TEST(refused, null)
{
	struct kvmfault_fill_options options = wanted();
	struct kvmfault_fill_progress now = { .size = sizeof(now) };
	int timeout;

	ck_assert_int_eq(kvmfault_fill_new(bed.vm, &options, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_fill_new(NULL, &options, &fill), -EINVAL);
	ck_assert_int_eq(kvmfault_fill_dispatch(NULL, &timeout), -EINVAL);
	ck_assert_int_eq(kvmfault_fill_progress(NULL, &now), -EINVAL);
	ck_assert_int_eq(kvmfault_fill_pause(NULL, true), -EINVAL);
	ck_assert_int_eq(kvmfault_fill_set_rate(NULL, 0), -EINVAL);
	ck_assert_int_eq(kvmfault_fill_free(NULL), 0);
	begin(0);
	ck_assert_int_eq(kvmfault_fill_dispatch(fill, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_fill_progress(fill, NULL), -EINVAL);
	now.size = 0;
	ck_assert_int_eq(kvmfault_fill_progress(fill, &now), -EINVAL);
}

int main(void)
{
	return run_suite("fill");
}
