/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * region.c and the table under it: each address finds its region and no other,
 * also while regions come and go.
 */

#include <string.h>

#include "fake-sys.h"
#include "lib/setup/setup.h"
#include "unit.h"

#ifdef __SANITIZE_THREAD__
#define SLOTS 4096U		/* tables of gigabytes in all, byte by byte */
#else
#define SLOTS 32764U
#endif
#define THREADS 4

static struct kvmfault_vm *vm;
static struct kvmfault__seat *seat;

static void up(void)
{
	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	seat = kvmfault__seat_take(vm);
}

static void down(void)
{
	struct fake_held held;

	kvmfault__seat_give(seat);
	ck_assert_uint_eq(vm->region_count, 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	held = fake_held();
	ck_assert_int_eq(held.allocations, 0);
	ck_assert_int_eq(held.mappings, 0);
}

/* Without a memory: what is looked up is the same. */
static int add(uint32_t space, uint64_t gpa, uint64_t length)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .address_space = space, .gpa = gpa,
		.length = length, .guest_memfd = 5,
	};

	return kvmfault_region_add(vm, &region);
}

static int drop(uint32_t space, uint64_t gpa)
{
	return kvmfault_region_remove(vm, space, gpa);
}

/* The gpa of the region that is found; UINT64_MAX: none. */
static uint64_t find(uint32_t space, uint64_t gpa)
{
	struct kvmfault__region *region =
		kvmfault__region_find(seat, space, gpa);
	uint64_t found = region ? region->info.gpa : UINT64_MAX;

	kvmfault__leave(seat);
	return found;
}

TEST_GROUP(find, up, down);

TEST(find, empty)
{
	ck_assert_uint_eq(find(0, 0), UINT64_MAX);
	ck_assert_uint_eq(find(4095, UINT64_MAX), UINT64_MAX);
	ck_assert_int_eq(drop(0, 0), -ENOENT);
}

TEST(find, one)
{
	ck_assert_int_eq(add(0, 0x10000, 0x2000), 0);
	ck_assert_uint_eq(find(0, 0xffff), UINT64_MAX);
	ck_assert_uint_eq(find(0, 0x10000), 0x10000);
	ck_assert_uint_eq(find(0, 0x11fff), 0x10000);
	ck_assert_uint_eq(find(0, 0x12000), UINT64_MAX);
	ck_assert_int_eq(drop(0, 0x11000), -ENOENT);	/* not its beginning */
	ck_assert_int_eq(drop(0, 0x10000), 0);
	ck_assert_uint_eq(find(0, 0x10000), UINT64_MAX);
	ck_assert_int_eq(drop(0, 0x10000), -ENOENT);
}

TEST_EACH(find, overlaps, 8)
{
	static const struct {
		uint64_t gpa, length;
	} wrong[] = {
		{ 0x10000, 0x4000 }, { 0x10000, 0x1000 }, { 0x11000, 0x1000 },
		{ 0x13000, 0x1000 }, { 0x13000, 0x2000 }, { 0xf000, 0x2000 },
		{ 0xf000, 0x10000 }, { 0, 0xfffffffffffff000 },
	};

	ck_assert_int_eq(add(0, 0x10000, 0x4000), 0);
	ck_assert_int_eq(add(0, wrong[_i].gpa, wrong[_i].length), -EEXIST);
	ck_assert_uint_eq(find(0, 0xf000), UINT64_MAX);
	ck_assert_uint_eq(find(0, 0x13fff), 0x10000);
	ck_assert_int_eq(drop(0, 0x10000), 0);
}

TEST(find, adjacent)
{
	ck_assert_int_eq(add(0, 0x10000, 0x1000), 0);
	ck_assert_int_eq(add(0, 0x11000, 0x1000), 0);
	ck_assert_int_eq(add(0, 0xf000, 0x1000), 0);
	ck_assert_uint_eq(find(0, 0xffff), 0xf000);
	ck_assert_uint_eq(find(0, 0x10fff), 0x10000);
	ck_assert_uint_eq(find(0, 0x11000), 0x11000);
	ck_assert_int_eq(drop(0, 0x10000), 0);
	ck_assert_uint_eq(find(0, 0x10000), UINT64_MAX);
	ck_assert_uint_eq(find(0, 0xffff), 0xf000);
	ck_assert_uint_eq(find(0, 0x11000), 0x11000);
	ck_assert_int_eq(drop(0, 0xf000), 0);
	ck_assert_int_eq(drop(0, 0x11000), 0);
}

TEST(find, address_spaces)
{
	ck_assert_int_eq(add(0, 0x10000, 0x1000), 0);
	ck_assert_int_eq(add(1, 0x10000, 0x2000), 0);
	ck_assert_int_eq(add(4095, 0x10000, 0x1000), 0);
	ck_assert_uint_eq(find(0, 0x11000), UINT64_MAX);
	ck_assert_uint_eq(find(1, 0x11000), 0x10000);
	ck_assert_uint_eq(find(2, 0x10000), UINT64_MAX);
	ck_assert_uint_eq(find(4096, 0x10000), UINT64_MAX);
	ck_assert_uint_eq(find(UINT32_MAX, 0x10000), UINT64_MAX);
	ck_assert_int_eq(drop(1, 0x10000), 0);
	ck_assert_uint_eq(find(0, 0x10000), 0x10000);
	ck_assert_int_eq(drop(4096, 0x10000), -ENOENT);
	ck_assert_int_eq(drop(0, 0x10000), 0);
	ck_assert_int_eq(drop(4095, 0x10000), 0);
}

TEST(find, at_the_end_of_everything)
{
	const uint64_t last = UINT64_MAX & ~(PAGE - 1);

	ck_assert_int_eq(add(0, last, PAGE), 0);
	ck_assert_int_eq(add(1, 0, PAGE), 0);
	ck_assert_uint_eq(find(0, UINT64_MAX), last);
	ck_assert_uint_eq(find(0, last - 1), UINT64_MAX);
	ck_assert_uint_eq(find(1, 0), 0);
	ck_assert_uint_eq(find(1, UINT64_MAX), UINT64_MAX);
	ck_assert_int_eq(add(0, last, 2 * PAGE), -EINVAL);	/* wraps */
	ck_assert_int_eq(add(2, 0, last), 0);
	ck_assert_uint_eq(find(2, last - 1), 0);
	ck_assert_int_eq(drop(0, last), 0);
	ck_assert_int_eq(drop(1, 0), 0);
	ck_assert_int_eq(drop(2, 0), 0);
}

TEST(find, bad_regions)
{
	struct kvmfault_memory memory = { .vm = vm, .length = 4 * PAGE };
	const struct kvmfault_region good = {
		.size = sizeof(good), .gpa = PAGE, .length = 2 * PAGE,
		.memory = &memory,
	};
	struct kvmfault_region bad[11];
	size_t i;

	for (i = 0; i < 11; i++)
		bad[i] = good;
	bad[0].gpa++;
	bad[1].length++;
	bad[2].length = 0;
	bad[3].offset = 1;
	bad[4].offset = 3 * PAGE;		/* past the memory's end */
	bad[5].length = 5 * PAGE;
	bad[6].offset = -PAGE;			/* wraps */
	bad[7].gpa = -PAGE;
	bad[8].address_space = 4096;
	bad[9].memory = NULL;			/* and no guest_memfd */
	bad[10].size = 4;
	for (i = 0; i < 11; i++)
		ck_assert_int_eq(kvmfault_region_add(vm, &bad[i]), -EINVAL);
	ck_assert_int_eq(kvmfault_region_add(vm, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_region_add(NULL, &good), -EINVAL);
	ck_assert_int_eq(kvmfault_region_remove(NULL, 0, PAGE), -EINVAL);
	ck_assert_uint_eq(memory.regions, 0);
	ck_assert_int_eq(kvmfault_region_add(vm, &good), 0);
	ck_assert_uint_eq(memory.regions, 1);
	ck_assert_int_eq(drop(0, PAGE), 0);
	ck_assert_uint_eq(memory.regions, 0);
}

TEST(find, another_vms_memory)
{
	struct kvmfault_memory memory = { .length = 4 * PAGE };
	struct kvmfault_region region = {
		.size = sizeof(region), .length = PAGE, .memory = &memory,
	};

	ck_assert_int_eq(kvmfault_region_add(vm, &region), -EINVAL);
}

TEST(find, unknown_tail)
{
	struct {
		struct kvmfault_region region;
		uint64_t tail;
	} caller = {
		.region = { .size = sizeof(caller), .length = PAGE,
			    .guest_memfd = 5 },
		.tail = 1,
	};

	ck_assert_int_eq(kvmfault_region_add(vm, &caller.region), -E2BIG);
	caller.tail = 0;
	ck_assert_int_eq(kvmfault_region_add(vm, &caller.region), 0);
	ck_assert_int_eq(drop(0, 0), 0);
}

TEST(find, public_find)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = PAGE, .length = PAGE,
		.guest_memfd = 5, .guest_memfd_offset = 11 * PAGE,
		.flags = KVMFAULT_REGION_READONLY,
	};
	struct kvmfault_region found = { .size = sizeof(found) };

	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
	ck_assert_int_eq(kvmfault_region_find(vm, 0, PAGE + 5, &found), 0);
	ck_assert_mem_eq(&found, &region, sizeof(region));
	ck_assert_int_eq(kvmfault_region_find(vm, 0, 0, &found), -ENOENT);
	ck_assert_int_eq(kvmfault_region_find(vm, 0, PAGE, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_region_find(NULL, 0, PAGE, &found), -EINVAL);
	found.size = 0;
	ck_assert_int_eq(kvmfault_region_find(vm, 0, PAGE, &found), -EINVAL);
	ck_assert_int_eq(drop(0, PAGE), 0);
}

/* ---- as many as KVM has ---- */

/* Of different lengths, with gaps; near the end of the space. */
static uint64_t gpa_of(unsigned int i)
{
	return 0xffffff0000000000ULL + i * 4 * PAGE;
}

static uint64_t length_of(unsigned int i)
{
	return (i % 3 + 1) * PAGE;
}

static struct kvmfault_region layout[SLOTS];
static const struct kvmfault_region *listed[SLOTS];

/* So many from there on, in order; the offset into the guest_memfd says which layout it is of. */
static void have_layout(unsigned int first, unsigned int count, uint64_t slot)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		layout[i] = (struct kvmfault_region){
			.size = sizeof(layout[i]), .address_space = 1,
			.gpa = gpa_of(first + i), .guest_memfd_offset = slot * PAGE,
			.length = length_of(first + i), .guest_memfd = 5,
		};
		listed[i] = &layout[i];
	}
}

static int lay(unsigned int removed, unsigned int added)
{
	return kvmfault_regions_replace(vm, removed ? listed : NULL, removed,
					added ? listed : NULL, added);
}

/* The rest, and the count of those that are not there: one by one it takes the
 * square of them. */
static void drop_but(unsigned int every, unsigned int below)
{
	unsigned int i, n = 0;

	have_layout(0, SLOTS, 0);
	for (i = 0; i < SLOTS; i++)
		if (i % every || i / every >= below)
			listed[n++] = &layout[i];
	ck_assert_int_eq(lay(n, 0), 0);
}

TEST_GROUP_FOR(many, up, down, 10 * HANG);

/* Those that are bad are counted: an assertion costs a system call. */
TEST(many, as_many_as_kvm_has)
{
	unsigned int i, n, bad = 0;

	/* Scattered: 32,764 and the step have no common divisor. */
	for (i = 0; i < SLOTS; i++) {
		n = (unsigned int)((uint64_t)i * 10007 % SLOTS);
		bad += add(1, gpa_of(n), length_of(n)) != 0;
	}
	ck_assert_uint_eq(bad, 0);
	for (i = 0; i < SLOTS; i++) {
		uint64_t gpa = gpa_of(i), end = gpa + length_of(i);

		bad += find(1, gpa) != gpa || find(1, end - 1) != gpa ||
		       find(1, end) != UINT64_MAX ||
		       find(1, gpa - 1) != UINT64_MAX ||
		       find(0, gpa) != UINT64_MAX;
	}
	ck_assert_uint_eq(bad, 0);
	for (i = 0; i < 100; i++)
		ck_assert_int_eq(drop(1, gpa_of(i * 31)), 0);
	for (i = 0; i < SLOTS; i++)
		bad += find(1, gpa_of(i)) != (i % 31 || i / 31 >= 100 ?
					      gpa_of(i) : UINT64_MAX);
	ck_assert_uint_eq(bad, 0);
	drop_but(31, 100);
}

/* Tables that were made: each has a key and a pointer for a span. */
static unsigned int copies(unsigned int spans)
{
	const struct fake_call *call;
	unsigned int n = 0;
	size_t i;

	for (i = 0; (call = fake_nth(FAKE_ALLOC, FAKE_ANY, i)); i++)
		n += call->length >= 2 * sizeof(uint64_t) * spans;
	return n;
}

static unsigned int bad_slots(uint64_t slot, unsigned int first)
{
	struct kvmfault_region found;
	unsigned int i, bad = 0;

	for (i = first; i < SLOTS; i++) {
		found = (struct kvmfault_region){ .size = sizeof(found) };
		bad += kvmfault_region_find(vm, 1, gpa_of(i), &found) ||
		       found.gpa != gpa_of(i) || found.guest_memfd_offset != slot * PAGE;
	}
	return bad;
}

/* A layout of as many as there can be is one copy of the table, and another one
 * in its place is one more, and so is its end. */
TEST(many, laid_in_one_copy)
{
	have_layout(0, SLOTS, 7);
	fake_forget();
	ck_assert_int_eq(lay(0, SLOTS), 0);
	ck_assert_uint_eq(copies(SLOTS), 1);
	ck_assert_uint_eq(bad_slots(7, 0), 0);
	have_layout(0, SLOTS, 8);
	fake_forget();
	ck_assert_int_eq(lay(SLOTS, SLOTS), 0);
	ck_assert_uint_eq(copies(SLOTS), 1);
	ck_assert_uint_eq(bad_slots(8, 0), 0);
	fake_forget();
	ck_assert_int_eq(lay(SLOTS / 2, 0), 0);
	ck_assert_uint_eq(copies(SLOTS / 2), 1);
	ck_assert_uint_eq(bad_slots(8, SLOTS / 2), 0);
	ck_assert_uint_eq(find(1, gpa_of(SLOTS / 2 - 1)), UINT64_MAX);
	have_layout(SLOTS / 2, SLOTS - SLOTS / 2, 0);
	fake_forget();
	ck_assert_int_eq(lay(SLOTS - SLOTS / 2, 0), 0);
	ck_assert_uint_eq(copies(SLOTS / 2), 0);
}

/* ---- a layout in the place of another ---- */

static struct kvmfault_region region_of(uint32_t space, uint64_t gpa,
					uint64_t length)
{
	return (struct kvmfault_region){
		.size = sizeof(struct kvmfault_region), .address_space = space,
		.gpa = gpa, .length = length, .guest_memfd = 5,
	};
}

#define AT 0x10000ULL

/* Four of two pages each, with a page between them; and the second may go. */
static void have_four(void)
{
	unsigned int i;

	for (i = 0; i < 4; i++)
		ck_assert_int_eq(add(0, AT + i * 3 * PAGE, 2 * PAGE), 0);
}

static void expect_four(void)
{
	unsigned int i;

	ck_assert_uint_eq(vm->region_count, 4);
	ck_assert_uint_eq(vm->leaving, 0);
	for (i = 0; i < 4; i++) {
		uint64_t gpa = AT + i * 3 * PAGE;

		ck_assert_uint_eq(find(0, gpa + PAGE), gpa);
		ck_assert_uint_eq(find(0, gpa + 2 * PAGE), UINT64_MAX);
	}
}

static void drop_four(void)
{
	unsigned int i;

	for (i = 0; i < 4; i++)
		ck_assert_int_eq(drop(0, AT + i * 3 * PAGE), 0);
}

/* What the second may be replaced with, and what not. */
static const struct {
	int err;
	unsigned int count;
	struct {
		uint32_t space;
		int64_t from, pages;	/* from AT */
	} add[3];
} layouts[] = {
	{ 0, 0, { { 0 } } },
	{ 0, 1, { { 0, 2, 4 } } },
	{ 0, 2, { { 0, 2, 2 }, { 0, 4, 2 } } },
	{ 0, 3, { { 0, -1, 1 }, { 0, 3, 1 }, { 1, 0, 9 } } },
	{ 0, 3, { { 0, 2, 1 }, { 0, 4, 1 }, { 0, 11, 1 } } },
	{ -EEXIST, 1, { { 0, 1, 2 } } },		/* the first stays */
	{ -EEXIST, 1, { { 0, 3, 4 } } },		/* the third */
	{ -EEXIST, 1, { { 0, -1, 99 } } },
	{ -EEXIST, 1, { { 0, 10, 2 } } },		/* the last */
	{ -EEXIST, 2, { { 0, 3, 2 }, { 0, 4, 2 } } },	/* each other */
	{ -EEXIST, 3, { { 0, 2, 1 }, { 0, 3, 1 }, { 0, 7, 1 } } },
	{ -EINVAL, 2, { { 0, 4, 1 }, { 0, 3, 1 } } },	/* no order */
	{ -EINVAL, 2, { { 1, 0, 1 }, { 0, 3, 1 } } },
	{ -EINVAL, 2, { { 0, 4, 1 }, { 0, 4, 1 } } },
	{ -EINVAL, 2, { { 0, 3, 1 }, { 0, 4, 0 } } },	/* empty */
};

TEST_EACH(find, in_the_place_of_another, sizeof(layouts) / sizeof(layouts[0]))
{
	const struct kvmfault_region second = region_of(0, AT + 3 * PAGE, PAGE);
	const struct kvmfault_region *remove[] = { &second }, *list[3];
	struct kvmfault_region come[3];
	unsigned int i, count = layouts[_i].count;

	have_four();
	for (i = 0; i < count; i++) {
		come[i] = region_of(layouts[_i].add[i].space,
				    AT + (uint64_t)layouts[_i].add[i].from *
				    PAGE,
				    (uint64_t)layouts[_i].add[i].pages * PAGE);
		list[i] = &come[i];
	}
	ck_assert_int_eq(kvmfault_regions_replace(vm, remove, 1, list, count),
			 layouts[_i].err);
	if (!layouts[_i].err) {
		ck_assert_uint_eq(vm->region_count, 3 + count);
		for (i = 0; i < count; i++)
			ck_assert_uint_eq(find(come[i].address_space,
					       come[i].gpa + come[i].length -
					       1), come[i].gpa);
		ck_assert_int_eq(kvmfault_regions_replace(vm, list, count,
							  remove, 1), 0);
		ck_assert_int_eq(drop(0, AT + 3 * PAGE), 0);
		ck_assert_int_eq(add(0, AT + 3 * PAGE, 2 * PAGE), 0);
	}
	expect_four();
	drop_four();
}

TEST_EACH(find, not_there_to_be_replaced, 4)
{
	const struct kvmfault_region gone[] = {
		region_of(0, AT, PAGE), region_of(0, AT + PAGE, PAGE),
		region_of(1, AT, PAGE), region_of(4096, AT, PAGE),
	};
	const struct kvmfault_region fifth = region_of(0, 0, PAGE);
	const struct kvmfault_region *remove[2] = { &gone[0], &gone[_i] };
	const struct kvmfault_region *come = &fifth;

	have_four();		/* with _i 0 one is named twice */
	ck_assert_int_eq(kvmfault_regions_replace(vm, remove, 2, &come, 1),
			 -ENOENT);
	expect_four();
	ck_assert_uint_eq(find(0, 0), UINT64_MAX);
	drop_four();
}

TEST(find, bad_lists)
{
	const struct kvmfault_region good = region_of(0, AT, PAGE);
	const struct kvmfault_region *list[] = { &good, NULL };
	const struct {
		struct kvmfault_region region;
		uint64_t tail;
	} newer = {
		.region = { .size = sizeof(newer), .gpa = AT, .length = PAGE,
			    .guest_memfd = 5 },
		.tail = 1,
	};
	const struct kvmfault_region *later[] = { &newer.region };

	ck_assert_int_eq(kvmfault_regions_replace(NULL, NULL, 0, list, 1),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_regions_replace(vm, NULL, 1, list, 1),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_regions_replace(vm, list, 1, NULL, 1),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_regions_replace(vm, NULL, 0, list, 2),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_regions_replace(vm, list, 2, NULL, 0),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_regions_replace(vm, NULL, 0, later, 1),
			 -E2BIG);
	ck_assert_int_eq(kvmfault_regions_replace(vm, later, 1, NULL, 0),
			 -E2BIG);
	ck_assert_int_eq(kvmfault_regions_replace(vm, NULL, 0, NULL, 0), 0);
	ck_assert_uint_eq(vm->region_count, 0);
}

/* Who looks by the memory finds what shows it now. */
TEST(find, memory_of_another_layout)
{
	struct kvmfault_memory memory = { .vm = vm, .length = 4 * PAGE };
	struct kvmfault_region old = region_of(0, AT, PAGE), new = old;
	struct kvmfault_region stays = region_of(0, 0, PAGE);
	const struct kvmfault_region *remove = &old, *come = &new;
	const struct kvmfault__region *found;

	stays.memory = old.memory = new.memory = &memory;
	new.gpa = AT + PAGE;
	ck_assert_int_eq(kvmfault_region_add(vm, &stays), 0);
	ck_assert_int_eq(kvmfault_region_add(vm, &old), 0);
	ck_assert_int_eq(kvmfault_regions_replace(vm, &remove, 1, &come, 1),
			 0);
	ck_assert_uint_eq(memory.regions, 2);
	found = atomic_load(&memory.shown);
	ck_assert_uint_eq(found->info.gpa, new.gpa);
	ck_assert_int_eq(kvmfault_regions_replace(vm, &come, 1, NULL, 0), 0);
	ck_assert_uint_eq(memory.regions, 1);
	found = atomic_load(&memory.shown);
	ck_assert_ptr_nonnull(found);
	ck_assert_uint_eq(found->info.gpa, 0);
	/* It stays the one that is known when another one can't go. */
	remove = &stays;
	new.gpa = UINT64_MAX & -PAGE;
	new.length = 2 * PAGE;
	ck_assert_int_eq(kvmfault_regions_replace(vm, &remove, 1, &come, 1),
			 -EINVAL);
	new.length = PAGE;
	fake_push(FAKE_ALLOC, FAKE_MODEL);	/* the list, */
	fake_push(FAKE_ALLOC, FAKE_MODEL);	/* the region, */
	fake_push(FAKE_ALLOC, FAKE_MODEL);	/* its attributes, */
	fake_push(FAKE_ALLOC, 0);		/* and no table */
	ck_assert_int_eq(kvmfault_regions_replace(vm, &remove, 1, &come, 1),
			 -ENOMEM);
	ck_assert_uint_eq(memory.regions, 1);
	ck_assert_ptr_eq(atomic_load(&memory.shown), found);
	ck_assert_int_eq(drop(0, 0), 0);
	ck_assert_ptr_null(atomic_load(&memory.shown));
}

/* ---- while they come and go ---- */

static atomic_bool stop;
static atomic_uint wrong, found_some;

/* Odd ones stay, even ones come and go. */
static void *look_up(void *arg)
{
	struct kvmfault__seat *mine = kvmfault__seat_take(vm);
	unsigned int i = (unsigned int)(uintptr_t)arg;

	while (!atomic_load(&stop)) {
		unsigned int n = i++ % 64;
		uint64_t gpa = n * PAGE;
		struct kvmfault__region *region =
			kvmfault__region_find(mine, 0, gpa + 7);

		if (region ? region->info.gpa != gpa ||
			     region->info.guest_memfd_offset != n * PAGE : n % 2)
			atomic_fetch_add(&wrong, 1);
		atomic_fetch_add(&found_some, region && !(n % 2));
		kvmfault__leave(mine);
	}
	kvmfault__seat_give(mine);
	return NULL;
}

static void add_slot(unsigned int n)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = n * PAGE, .length = PAGE,
		.guest_memfd = 5, .guest_memfd_offset = n * PAGE,
	};

	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
}

TEST(find, looked_up_while_they_come_and_go)
{
	pthread_t thread[THREADS];
	unsigned int i, round;

	for (i = 1; i < 64; i += 2)
		add_slot(i);
	for (i = 0; i < THREADS; i++)
		pthread_create(&thread[i], NULL, look_up,
			       (void *)(uintptr_t)(i * 16));
	for (round = 0; round < 50 || !atomic_load(&found_some); round++) {
		for (i = 0; i < 64; i += 2)
			add_slot(i);
		sched_yield();
		for (i = 0; i < 64; i += 2)
			ck_assert_int_eq(drop(0, i * PAGE), 0);
	}
	atomic_store(&stop, true);
	for (i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	ck_assert_uint_eq(wrong, 0);
	for (i = 1; i < 64; i += 2)
		ck_assert_int_eq(drop(0, i * PAGE), 0);
}

/* One that is in both layouts is there at any moment. */
static void *look_at_one(void *arg)
{
	struct kvmfault__seat *mine = kvmfault__seat_take(vm);

	while (!atomic_load(&stop)) {
		struct kvmfault__region *region =
			kvmfault__region_find(mine, 0, AT);

		atomic_fetch_add(&wrong, !region || region->info.gpa != AT);
		kvmfault__leave(mine);
	}
	kvmfault__seat_give(mine);
	return arg;
}

TEST(find, looked_up_while_laid_anew)
{
	const struct kvmfault_region stays = region_of(0, AT, PAGE);
	const struct kvmfault_region *list = &stays;
	pthread_t thread[THREADS];
	unsigned int i, round;

	ck_assert_int_eq(kvmfault_region_add(vm, &stays), 0);
	for (i = 0; i < THREADS; i++)
		pthread_create(&thread[i], NULL, look_at_one, NULL);
	for (round = 0; round < 20000; round++)
		if (kvmfault_regions_replace(vm, &list, 1, &list, 1))
			break;
	atomic_store(&stop, true);
	for (i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	ck_assert_uint_eq(round, 20000);
	ck_assert_uint_eq(wrong, 0);
	ck_assert_int_eq(drop(0, AT), 0);
}

/* ---- without memory ---- */

TEST(find, removal_cannot_fail)
{
	ck_assert_int_eq(add(0, 0, PAGE), 0);
	ck_assert_int_eq(add(0, PAGE, PAGE), 0);
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(drop(0, 0), 0);
	ck_assert_uint_eq(find(0, 0), UINT64_MAX);
	ck_assert_uint_eq(find(0, PAGE), PAGE);
	ck_assert_int_eq(drop(0, 0), -ENOENT);
	/* The place is free again. */
	ck_assert_int_eq(add(0, 0, PAGE), 0);
	ck_assert_uint_eq(find(0, 0), 0);
	ck_assert_int_eq(drop(0, 0), 0);
	ck_assert_int_eq(drop(0, PAGE), 0);
}

TEST(find, no_place_without_memory)
{
	ck_assert_int_eq(add(0, 0, PAGE), 0);
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(drop(0, 0), 0);
	/* The region's own, and then no table for it. */
	fake_push(FAKE_ALLOC, FAKE_MODEL);
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(add(0, 0, PAGE), -ENOMEM);
	ck_assert_int_eq(add(0, 0, PAGE), 0);
	ck_assert_int_eq(drop(0, 0), 0);
}

int main(void)
{
	return run_suite("region");
}
