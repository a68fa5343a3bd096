/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Recordings: each page that a touch has brought from its source is noted once,
 * in order, until a limit is reached; and nothing else is.
 */

#include <linux/userfaultfd.h>
#include <pthread.h>

#include "bed.h"
#include "lib/resolve/record.h"

#define IMAGE ((BED_PAGES + 64) * PAGE)
#define SECOND 1000000000ULL

static struct kvmfault_working_set *set;
static struct kvmfault_recording *recording;

static void make_set(void)
{
	const struct kvmfault_working_set_options options = {
		.size = sizeof(options), .image_length = IMAGE,
	};

	ck_assert_int_eq(kvmfault_working_set_new(&options, &set), 0);
}

static struct kvmfault_recording_options record_what(void)
{
	return (struct kvmfault_recording_options){
		.size = sizeof(struct kvmfault_recording_options),
		.set = set, .memories = &bed.memory, .memory_count = 1,
	};
}

static int record_with(const struct kvmfault_recording_options *options)
{
	return kvmfault_recording_new(bed.vm, options, &recording);
}

static void record(void)
{
	struct kvmfault_recording_options options = record_what();

	ck_assert_int_eq(record_with(&options), 0);
}

static void up(void)
{
	bed_up();
	make_set();
}

static void down(void)
{
	ck_assert_int_eq(kvmfault_recording_end(recording), 0);
	ck_assert_int_eq(kvmfault_working_set_free(set), 0);
	bed_down();
}

/* The recording ends, and has these pages: pairs as in test-working-set.c. */
static void expect_pages(const unsigned int *at)
{
	uint64_t n, offset, length;

	ck_assert_int_eq(kvmfault_recording_end(recording), 0);
	recording = NULL;
	for (n = 0; at[2 * n + 1]; n++) {
		ck_assert_int_eq(kvmfault_working_set_run(set, n, &offset,
							  &length), 0);
		ck_assert_uint_eq(offset, at[2 * n] * PAGE);
		ck_assert_uint_eq(length, at[2 * n + 1] * PAGE);
	}
	ck_assert_int_eq(kvmfault_working_set_run(set, n, &offset, &length),
			 -ENOENT);
}
#define EXPECT(...) expect_pages((const unsigned int[]){ __VA_ARGS__, 0, 0 })

static void touch(uint64_t page)
{
	ck_assert_int_eq(bed_exit(BED_GPA + page * PAGE, 0),
			 KVMFAULT_ACTION_RETRY);
}

TEST_GROUP(recording, up, down);

TEST(recording, in_the_order_of_touches)
{
	touch(1);
	record();
	touch(9);
	touch(3);
	touch(9);
	touch(1);
	touch(4);
	touch(15);
	EXPECT(9, 1, 3, 2, 15, 1);
}

TEST(recording, each_kind_of_touch)
{
	record();
	bed_resolve(KVMFAULT_KIND_UFFD, 7, true);
	bed_resolve(KVMFAULT_KIND_MARKER, 5, false);
	bed_resolve(KVMFAULT_KIND_UNANNOTATED, 3, false);
	bed_mmio(BED_GPA + 1 * PAGE, 4, false);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false), 0);
	ck_assert_int_eq(bed_state(0), KVMFAULT__PRESENT);
	EXPECT(7, 1, 5, 1, 3, 1, 1, 1);
}

TEST(recording, no_discarded_page)
{
	record();
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA, 2 * PAGE), 0);
	touch(0);
	touch(2);
	ck_assert_int_eq(bed_state(0), KVMFAULT__PRESENT);
	EXPECT(2, 1);
}

TEST(recording, no_page_that_failed)
{
	record();
	bed.source_result = -EIO;
	bed_exit(BED_GPA, 0);
	ck_assert_int_eq(bed_state(0), KVMFAULT__ABSENT);
	bed.source_result = 0;
	touch(1);
	touch(0);
	EXPECT(1, 1, 0, 1);
}

TEST(recording, goes_on_in_the_same_set)
{
	record();
	touch(4);
	EXPECT(4, 1);
	touch(5);
	record();
	touch(6);
	touch(5);
	EXPECT(4, 1, 6, 1);
}

TEST(recording, nothing_after_the_end)
{
	record();
	EXPECT(0, 0);
	touch(5);
	ck_assert_int_eq(kvmfault_recording_end(NULL), 0);
	EXPECT(0, 0);
}

TEST(recording, so_many_bytes)
{
	struct kvmfault_recording_options options = record_what();

	options.bytes = 2 * PAGE + 1;
	ck_assert_int_eq(record_with(&options), 0);
	touch(8);
	touch(2);
	touch(4);
	touch(6);
	EXPECT(8, 1, 2, 1, 4, 1);
}

TEST(recording, a_page_is_the_least)
{
	struct kvmfault_recording_options options = record_what();

	options.bytes = 1;
	ck_assert_int_eq(record_with(&options), 0);
	touch(8);
	touch(2);
	EXPECT(8, 1);
}

/* There are no more pages than the memory has, whatever the limit is. */
TEST(recording, all_of_it)
{
	struct kvmfault_recording_options options = record_what();
	uint64_t page;

	options.bytes = UINT64_MAX;
	ck_assert_int_eq(record_with(&options), 0);
	ck_assert_uint_eq(fake_nth(FAKE_MMAP, FAKE_ANY,
				   fake_count(FAKE_MMAP, FAKE_ANY) - 1)->length,
			  BED_PAGES * 16);
	for (page = BED_PAGES; page--;)
		touch(page);
	ck_assert_int_eq(kvmfault_recording_end(recording), 0);
	recording = NULL;
	ck_assert_uint_eq(set->runs, BED_PAGES);
	ck_assert_uint_eq(set->bytes, BED_PAGES * PAGE);
	ck_assert_uint_eq(set->run[0].offset, 15 * PAGE);
}

TEST(recording, so_long)
{
	struct kvmfault_recording_options options = record_what();

	options.milliseconds = 3000;
	ck_assert_int_eq(record_with(&options), 0);
	touch(8);
	fake_advance(3 * SECOND - 1);
	touch(2);
	fake_advance(1);
	touch(4);
	EXPECT(8, 1, 2, 1);
}

/* The image's offset counts. */
TEST(recording, two_memories_of_one_image)
{
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options memory = {
		.size = sizeof(memory), .length = 4 * PAGE, .source = &source,
		.source_offset = 40 * PAGE,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = 16 * BED_GPA,
		.length = 4 * PAGE,
	};
	struct kvmfault_recording_options options = record_what();
	struct kvmfault_memory *both[2] = { bed.memory };

	memory.fd = fake_memory(memory.length, 0, &memory.host);
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &memory, &both[1]), 0);
	region.memory = both[1];
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	options.memories = both;
	options.memory_count = 2;
	ck_assert_int_eq(record_with(&options), 0);
	touch(3);
	bed_exit(region.gpa + 2 * PAGE, 0);
	touch(2);
	EXPECT(3, 1, 42, 1, 2, 1);
	kvmfault_region_remove(bed.vm, 0, region.gpa);
	ck_assert_int_eq(kvmfault_memory_free(both[1]), 0);
}

TEST(recording, what_is_wrong)
{
	struct {
		struct kvmfault_recording_options options;
		uint64_t more;
	} longer = { record_what(), 1 };
	struct kvmfault_recording_options options = record_what();
	struct kvmfault_memory *list[2] = { bed.memory, bed.memory };
	struct kvmfault_vm *vm;

	longer.options.size = sizeof(longer);
	ck_assert_int_eq(record_with(&longer.options), -E2BIG);
	ck_assert_int_eq(record_with(NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_recording_new(NULL, &options, &recording),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_recording_new(bed.vm, &options, NULL),
			 -EINVAL);
	options.set = NULL;
	ck_assert_int_eq(record_with(&options), -EINVAL);
	options.set = set;
	options.memory_count = 0;
	ck_assert_int_eq(record_with(&options), -EINVAL);
	options.memory_count = 2;
	options.memories = NULL;
	ck_assert_int_eq(record_with(&options), -EINVAL);
	options.memories = list;
	ck_assert_int_eq(record_with(&options), -EINVAL);	/* twice */
	list[1] = NULL;
	ck_assert_int_eq(record_with(&options), -EINVAL);
	options.memory_count = 1;
	atomic_store(&bed.memory->tracked, false);
	ck_assert_int_eq(record_with(&options), -EINVAL);
	atomic_store(&bed.memory->tracked, true);
	set->image_length = BED_PAGES * PAGE - 1;
	ck_assert_int_eq(record_with(&options), -EINVAL);
	set->image_length++;
	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	ck_assert_int_eq(kvmfault_recording_new(vm, &options, &recording),
			 -EINVAL);		/* another context's */
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	ck_assert_ptr_null(recording);
	ck_assert_int_eq(record_with(&options), 0);
}

TEST(recording, one_at_a_time)
{
	struct kvmfault_recording_options options = record_what();
	struct kvmfault_recording *second;

	record();
	ck_assert_int_eq(kvmfault_recording_new(bed.vm, &options, &second),
			 -EBUSY);
	ck_assert_ptr_null(second);
	touch(1);
	EXPECT(1, 1);
	ck_assert_int_eq(record_with(&options), 0);
}

/* Without memory for its runs the recording stays, and so does the context. */
TEST(recording, an_end_without_memory)
{
	record();
	kvmfault_region_remove(bed.vm, 0, BED_GPA);
	ck_assert_int_eq(kvmfault_memory_free(bed.memory), -EBUSY);
	bed_resolve(KVMFAULT_KIND_UFFD, 3, true);
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(kvmfault_recording_end(recording), -ENOMEM);
	ck_assert_uint_eq(set->runs, 0);
	bed_resolve(KVMFAULT_KIND_UFFD, 4, true);
	ck_assert_int_eq(kvmfault_memory_free(bed.memory), 0);
	bed.memory = NULL;
	kvmfault__seat_give(bed.seat);
	bed.seat = NULL;
	kvmfault_vcpu_free(bed.vcpu);
	bed.vcpu = NULL;
	ck_assert_int_eq(kvmfault_vm_free(bed.vm), -EBUSY);
	EXPECT(3, 1);
}

TEST(recording, a_child_ends_nothing)
{
	char *born = bed.vm->born, child = 0;

	record();
	touch(2);
	bed.vm->born = &child;
	ck_assert_int_eq(kvmfault_recording_end(recording), 0);
	bed.vm->born = born;
	touch(6);
	EXPECT(2, 1, 6, 1);
}

/* ---- windows ---- */

static void up_with_window(void)
{
	bed_vm();
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = 4 * PAGE;
	bed_add();
	make_set();
}

TEST_GROUP(windows, up_with_window, down);

TEST(windows, all_that_a_touch_brought)
{
	record();
	touch(9);
	touch(10);
	touch(2);
	EXPECT(8, 4, 0, 4);
}

static uint64_t copied;

/* The first two pages come, and then there is no more memory. */
static bool copy_stops_early(struct fake_call *call)
{
	struct uffdio_copy *copy = call->arg;

	if (call->number != UFFDIO_COPY)
		return false;
	call->result = -ENOMEM;
	if (copied++)
		return true;
	copy->len = 2 * PAGE;
	fake_model(call);
	copy->len = 4 * PAGE;
	copy->copy = 2 * PAGE;
	call->result = -EAGAIN;
	return true;
}

TEST(windows, of_a_part_only_that_part)
{
	record();
	fake_on(FAKE_IOCTL, copy_stops_early);
	touch(4);
	bed_exit(BED_GPA + 8 * PAGE, 0);
	ck_assert_int_eq(bed_state(5), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(6), KVMFAULT__ABSENT);
	ck_assert_int_eq(bed_state(8), KVMFAULT__ABSENT);
	EXPECT(4, 2);
}

/* ---- a source that answers later ---- */

static struct kvmfault_fetch *asked[2];
static unsigned int asks;

static int submit(void *data, struct kvmfault_fetch *fetch, uint64_t offset,
		  void *buffer, size_t length)
{
	(void)data;
	(void)offset;
	(void)buffer;
	(void)length;
	asked[asks++] = fetch;
	return 0;
}

static void up_later(void)
{
	bed_vm();
	bed.source = (struct kvmfault_source){
		.size = sizeof(bed.source), .name = "later", .submit = submit,
	};
	bed_add();
	make_set();
}

TEST_GROUP(later, up_later, down);

TEST(later, in_the_order_in_which_they_come)
{
	bed_resolve(KVMFAULT_KIND_UFFD, 1, true);
	record();
	bed_resolve(KVMFAULT_KIND_UFFD, 2, true);
	kvmfault_fetch_done(asked[1], 0);
	kvmfault_fetch_done(asked[0], 0);
	EXPECT(2, 1, 1, 1);
}

/* ---- many threads ---- */

enum { THREADS = 4, ROUNDS = 200 };
static pthread_barrier_t together;

/* All of them touch all pages, each in an order of its own. */
static void *touch_all(void *arg)
{
	uint64_t step = 2 * (uintptr_t)arg + 1, page;
	struct kvmfault__seat *seat = kvmfault__seat_take(bed.vm);
	struct kvmfault_fault fault = {
		.size = sizeof(fault), .kind = KVMFAULT_KIND_EXIT,
		.access = KVMFAULT_ACCESS_READ, .known = KVMFAULT_KNOWN_GPA,
		.length = PAGE,
	};
	struct kvmfault__answer answer;

	ck_assert_ptr_nonnull(seat);
	pthread_barrier_wait(&together);
	for (page = 0; page < BED_PAGES; page++) {
		fault.gpa = BED_GPA + page * step % BED_PAGES * PAGE;
		kvmfault__resolve_gpa(seat, &fault, fault.gpa, &answer);
	}
	kvmfault__seat_give(seat);
	return NULL;
}

static void end_while_they_touch(void)
{
	pthread_t thread[THREADS];
	uint64_t i, offset, length;
	bool noted[BED_PAGES] = { false };

	up();
	record();
	pthread_barrier_init(&together, NULL, THREADS + 1);
	for (i = 0; i < THREADS; i++)
		ck_assert_int_eq(pthread_create(&thread[i], NULL, touch_all,
						(void *)i), 0);
	pthread_barrier_wait(&together);
	ck_assert_int_eq(kvmfault_recording_end(recording), 0);
	recording = NULL;
	for (i = 0; !kvmfault_working_set_run(set, i, &offset, &length); i++)
		for (; length; length -= PAGE, offset += PAGE) {
			ck_assert(!noted[offset / PAGE]);
			noted[offset / PAGE] = true;
			ck_assert_int_eq(bed_state(offset / PAGE),
					 KVMFAULT__PRESENT);
		}
	for (i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	pthread_barrier_destroy(&together);
	down();
	fake_forget();
}

TEST_GROUP(threads, NULL, NULL);

TEST(threads, an_end_at_any_time)
{
	unsigned int round;

	for (round = 0; round < ROUNDS; round++)
		end_while_they_touch();
}

static struct kvmfault_recording *held;

/* The thread that ends it waits for the one that is noting a page. */
static bool note_while_it_ends(struct fake_call *call)
{
	ck_assert_ptr_eq(call->arg, &bed.vm->drain.sequence);
	ck_assert_ptr_null(atomic_load(&bed.memory->recording));
	ck_assert_int_ne(fake_held().mappings, 0);
	held->run[0] = (struct kvmfault__image_run){ 5 * PAGE, PAGE };
	atomic_store(&held->runs, 1);
	kvmfault__unhold(bed.seat, KVMFAULT__HAZARD_RECORDING);
	call->result = -EAGAIN;
	return true;
}

TEST(threads, an_end_waits_for_a_thread_that_notes)
{
	up();
	record();
	held = recording;
	ck_assert_ptr_eq(kvmfault__hold(bed.seat, KVMFAULT__HAZARD_RECORDING,
					&bed.memory->recording), held);
	fake_on(FAKE_FUTEX_WAIT, note_while_it_ends);
	EXPECT(5, 1);
	ck_assert_uint_eq(fake_count(FAKE_FUTEX_WAIT, FAKE_ANY), 1);
	down();
}

int main(void)
{
	return run_suite("recording");
}
