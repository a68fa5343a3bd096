/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * states.c: each page is in one state, and is found in it from wherever the
 * range begins and ends; what is not a range or a state is refused.
 */

#include <string.h>

#include "lib/setup/setup.h"
#include "unit.h"

#define PAGES 200ULL
#define ALL (PAGES * PAGE)
#define FIVE 31U		/* all states, without PROTECTED */

static struct kvmfault_vm *vm;
static struct kvmfault_memory memory;
static enum kvmfault__state is[PAGES];
static bool is_protected[PAGES];
static uint64_t bitmap[PAGES / 64 + 2];

/* Neighbours are in all states, and no two words are alike. */
static void up(void)
{
	uint64_t page;

	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	memory = (struct kvmfault_memory){
		.vm = vm, .page_shift = 12, .length = ALL, .tracked = true,
	};
	ck_assert_int_eq(kvmfault__pages_new(&memory), 0);
	for (page = 0; page < PAGES; page++) {
		is[page] = (enum kvmfault__state)(page * page % 11 % 7);
		is_protected[page] = page % 5 == 2;
		if (is_protected[page])
			kvmfault__word_protect(&memory, page, 1);
		kvmfault__page_change(&memory, page, KVMFAULT__ABSENT,
				      is[page]);
	}
}

static void down(void)
{
	kvmfault__pages_free(&memory);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
}

/* What the VMM is told of the page. */
static uint32_t states_of(uint64_t page)
{
	static const uint32_t told[] = {
		[KVMFAULT__ABSENT] = KVMFAULT_STATE_ABSENT,
		[KVMFAULT__FETCHING] = KVMFAULT_STATE_CLAIMED,
		[KVMFAULT__FETCHING_WAITED] = KVMFAULT_STATE_CLAIMED,
		[KVMFAULT__FETCHING_DISCARDED] = KVMFAULT_STATE_CLAIMED,
		[KVMFAULT__PRESENT] = KVMFAULT_STATE_PRESENT,
		[KVMFAULT__DISCARDED] = KVMFAULT_STATE_DISCARDED,
		[KVMFAULT__POISONED] = KVMFAULT_STATE_POISONED,
	};

	return told[is[page]] |
	       (is_protected[page] ? KVMFAULT_STATE_PROTECTED : 0);
}

static uint64_t count_model(uint64_t first, uint64_t count, uint32_t state)
{
	uint64_t n = 0;

	while (count--)
		n += !!(states_of(first++) & state);
	return n;
}

static struct kvmfault_memory_counts count(uint64_t first, uint64_t n)
{
	struct kvmfault_memory_counts counts = { .size = sizeof(counts) };

	ck_assert_int_eq(kvmfault_memory_count(&memory, first * PAGE, n * PAGE,
					       &counts), 0);
	return counts;
}

static int export(uint64_t first, uint64_t n, uint32_t states)
{
	memset(bitmap, 0xa5, sizeof(bitmap));
	return kvmfault_memory_bitmap(&memory, first * PAGE, n * PAGE, states,
				      bitmap, (n + 63) / 64 * 8);
}

static bool bit(uint64_t n)
{
	return bitmap[n / 64] >> n % 64 & 1;
}

TEST_GROUP(states, up, down);

/* From each page of the first words on, to ends before and after words' ends. */
TEST(states, counted_in_each_range)
{
	uint64_t first, n;

	for (first = 0; first < 40; first++) {
		for (n = 1; first + n <= PAGES; n += n < 40 ? 1 : 7) {
			struct kvmfault_memory_counts c = count(first, n);

			ck_assert_uint_eq(c.absent, count_model(first, n,
				KVMFAULT_STATE_ABSENT));
			ck_assert_uint_eq(c.claimed, count_model(first, n,
				KVMFAULT_STATE_CLAIMED));
			ck_assert_uint_eq(c.present, count_model(first, n,
				KVMFAULT_STATE_PRESENT));
			ck_assert_uint_eq(c.discarded, count_model(first, n,
				KVMFAULT_STATE_DISCARDED));
			ck_assert_uint_eq(c.poisoned, count_model(first, n,
				KVMFAULT_STATE_POISONED));
			ck_assert_uint_eq(c.to_save, count_model(first, n,
				KVMFAULT_STATE_PROTECTED));
			ck_assert_uint_eq(c.absent + c.claimed + c.present +
					  c.discarded + c.poisoned, n);
		}
	}
}

/* One state each, or several; behind the last page there are no bits, and behind
 * the last word nothing is written. */
static void check_bitmap(uint32_t states)
{
	uint64_t first, n, page;

	for (first = 0; first < 20; first++) {
		for (n = 1; first + n <= PAGES; n += 13) {
			ck_assert_int_eq(export(first, n, states), 0);
			for (page = 0; page < n; page++)
				ck_assert_int_eq(bit(page),
					!!(states_of(first + page) & states));
			for (; page % 64; page++)
				ck_assert(!bit(page));
			ck_assert_uint_eq(bitmap[page / 64],
					  0xa5a5a5a5a5a5a5a5ULL);
		}
	}
}

TEST_EACH(states, in_a_bitmap, 7)
{
	uint32_t states;

	for (states = (uint32_t)_i * 9 + 1; states <= (uint32_t)_i * 9 + 9;
	     states++)
		check_bitmap(states);
}

static void expect_all_present(void)
{
	ck_assert_uint_eq(count(0, PAGES).present, PAGES);
	ck_assert_int_eq(export(0, 64, KVMFAULT_STATE_PRESENT), 0);
	ck_assert_uint_eq(bitmap[0], UINT64_MAX);
	ck_assert_int_eq(export(0, 64, FIVE & ~KVMFAULT_STATE_PRESENT), 0);
	ck_assert_uint_eq(bitmap[0], 0);
}

TEST(states, settled_memory_is_present)
{
	atomic_store(&memory.tracked, false);
	expect_all_present();
}

TEST(states, memory_without_a_source_is_present)
{
	_Atomic uint64_t *states = memory.states;

	memory.states = NULL;
	atomic_store(&memory.tracked, false);
	expect_all_present();
	memory.states = states;
}

/* A memory of huge pages counts huge pages. */
TEST(states, of_its_own_pages)
{
	struct kvmfault_memory_counts counts = { .size = sizeof(counts) };

	memory.page_shift = 14;
	ck_assert_int_eq(kvmfault_memory_count(&memory, 4 * PAGE, 8 * PAGE,
					       &counts), 0);
	ck_assert_uint_eq(counts.absent + counts.claimed + counts.present +
			  counts.discarded + counts.poisoned, 2);
	ck_assert_int_eq(kvmfault_memory_count(&memory, 2 * PAGE, 4 * PAGE,
					       &counts), -EINVAL);
	memory.page_shift = 12;
}

static const struct {
	uint64_t offset, length;
} wrong[] = {
	{ 0, 0 }, { ALL, PAGE }, { 0, ALL + PAGE }, { PAGE, ALL },
	{ 1, PAGE }, { 0, PAGE + 1 }, { PAGE, -PAGE }, { -PAGE, PAGE },
};
#define WRONG ((int)(sizeof(wrong) / sizeof(*wrong)))

TEST_EACH(states, wrong_range, WRONG)
{
	struct kvmfault_memory_counts counts = {
		.size = sizeof(counts), .absent = 77,
	};

	ck_assert_int_eq(kvmfault_memory_count(&memory, wrong[_i].offset,
					       wrong[_i].length, &counts),
			 -EINVAL);
	ck_assert_uint_eq(counts.absent, 77);
	ck_assert_int_eq(kvmfault_memory_bitmap(&memory, wrong[_i].offset,
						wrong[_i].length, FIVE, bitmap,
						sizeof(bitmap)), -EINVAL);
}

TEST(states, wrong_arguments)
{
	struct kvmfault_memory_counts counts = { 0 };

	ck_assert_int_eq(kvmfault_memory_count(NULL, 0, PAGE, &counts),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_memory_count(&memory, 0, PAGE, NULL),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_memory_count(&memory, 0, PAGE, &counts),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_memory_bitmap(NULL, 0, PAGE, FIVE, bitmap, 8),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_memory_bitmap(&memory, 0, PAGE, FIVE, NULL, 8),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_memory_bitmap(&memory, 0, PAGE, 0, bitmap, 8),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_memory_bitmap(&memory, 0, PAGE, 64, bitmap, 8),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_memory_bitmap(&memory, 0, PAGE, FIVE, bitmap,
						7), -EINVAL);
	ck_assert_int_eq(kvmfault_memory_bitmap(&memory, 0, 65 * PAGE, FIVE,
						bitmap, 15), -EINVAL);
	ck_assert_int_eq(kvmfault_memory_bitmap(&memory, 0, 65 * PAGE, FIVE,
						bitmap, 16), 0);
}

int main(void)
{
	return run_suite("states");
}
