/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Regions that come and go, against a list of them. Input: a program: add,
 * remove, look up, hold one while it goes, and fail the nth allocation of the
 * next step. An error changes nothing, and what is held stays readable.
 */

#include "../fake-sys.h"
#include "fuzz.h"
#include "lib/setup/setup.h"

#define MOST 64
#define MEMORY (128 * PAGE)

static struct kvmfault_region list[MOST];
static size_t count;

/* A page near the bottom or the top, sometimes not quite aligned. */
static uint64_t take_gpa(struct input *in)
{
	uint8_t how = next8(in);
	uint64_t gpa = next8(in) * PAGE;

	if (how & 1)
		gpa -= 256 * PAGE;
	return gpa + ((how & 6) == 6 ? how : 0);
}

static uint32_t take_space(struct input *in)
{
	static const uint32_t spaces[] = { 0, 1, 4095, 4096, UINT32_MAX };
	uint8_t n = next8(in);

	return spaces[n % 5];
}

static uint64_t last(const struct kvmfault_region *r)
{
	return r->gpa + r->length - 1;
}

static struct kvmfault_region *at(uint32_t space, uint64_t gpa)
{
	size_t i;

	for (i = 0; i < count; i++)
		if (list[i].address_space == space && list[i].gpa <= gpa &&
		    gpa <= last(&list[i]))
			return &list[i];
	return NULL;
}

static int expected(const struct kvmfault_region *r)
{
	size_t i;

	if (!r->length || r->gpa % PAGE || r->length % PAGE ||
	    r->offset % PAGE || last(r) < r->gpa || r->address_space > 4095)
		return -EINVAL;
	if (r->memory ? r->offset > MEMORY || r->length > MEMORY - r->offset :
			r->guest_memfd <= 0)
		return -EINVAL;
	for (i = 0; i < count; i++)
		if (list[i].address_space == r->address_space &&
		    list[i].gpa <= last(r) && r->gpa <= last(&list[i]))
			return -EEXIST;
	return 0;
}

static void add(struct kvmfault_vm *vm, struct kvmfault_memory *memory,
		uint32_t space, uint64_t gpa, struct input *in)
{
	struct kvmfault_region r = {
		.size = sizeof(r), .address_space = space, .gpa = gpa,
	};
	uint8_t how = next8(in);
	int err, right;

	r.length = next8(in) * PAGE;
	r.offset = next8(in) * PAGE;
	r.memory = how & 1 ? memory : NULL;
	r.guest_memfd = (how & 6) - 1;
	if (count == MOST)
		return;
	right = expected(&r);
	err = kvmfault_region_add(vm, &r);
	MUST(err == right || (err == -ENOMEM && fake_failed()));
	if (!err)
		list[count++] = r;
}

static void find(struct kvmfault_vm *vm, uint32_t space, uint64_t gpa)
{
	struct kvmfault_region found = { .size = sizeof(found) };
	const struct kvmfault_region *right = at(space, gpa);
	int err = kvmfault_region_find(vm, space, gpa, &found);

	if (err == -ENOMEM && fake_failed())
		return;
	MUST(err == (right ? 0 : -ENOENT));
	MUST(err || !memcmp(&found, right, sizeof(found)));
}

static void discard(struct kvmfault_vm *vm, uint32_t space, uint64_t gpa)
{
	struct kvmfault_region *old = at(space, gpa);

	if (old && old->gpa != gpa)
		old = NULL;
	MUST(kvmfault_region_remove(vm, space, gpa) == (old ? 0 : -ENOENT));
	if (old)
		*old = list[--count];
}

static struct kvmfault__region *held;
static struct kvmfault_region as_it_was;

static void hold(struct kvmfault__seat *seat, uint32_t space, uint64_t gpa)
{
	held = kvmfault__region_find(seat, space, gpa);
	MUST(!held == !at(space, gpa));
	if (held)
		as_it_was = held->info;
}

static void leave(struct kvmfault__seat *seat)
{
	/* The first also for a sanitizer, which may not see memcmp(). */
	if (held)
		MUST(held->info.gpa == as_it_was.gpa &&
		     !memcmp(&held->info, &as_it_was, sizeof(as_it_was)));
	kvmfault__leave(seat);
	held = NULL;
}

static void step(struct kvmfault_vm *vm, struct kvmfault_memory *memory,
		 struct kvmfault__seat *seat, struct input *in)
{
	uint8_t what = next8(in);
	uint32_t space = take_space(in);
	uint64_t gpa = take_gpa(in);

	fake_fail_nth(what >> 4);	/* 0: none fails */
	switch (what & 7) {
	case 0:
		leave(seat);
		break;
	case 1:
		discard(vm, space, gpa);
		break;
	case 2:
		find(vm, space, gpa);
		break;
	case 3:
		hold(seat, space, gpa);
		break;
	default:
		add(vm, memory, space, gpa, in);
	}
	fake_failed();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct kvmfault_vm_options options = {
		.size = sizeof(options), .page_size_max = PAGE,
	};
	struct kvmfault_memory memory = { .length = MEMORY };
	struct input in = { data, size };
	struct kvmfault__seat *seat;
	struct fake_held left;
	struct kvmfault_vm *vm;

	MUST(!kvmfault_vm_new(&options, &vm));
	memory.vm = vm;
	seat = kvmfault__seat_take(vm);
	MUST(seat);
	while (in.left)
		step(vm, &memory, seat, &in);
	leave(seat);
	kvmfault__seat_give(seat);
	MUST(vm->region_count == count);
	while (count)
		discard(vm, list[0].address_space, list[0].gpa);
	MUST(!memory.regions && !kvmfault_vm_free(vm));
	left = fake_held();
	MUST(!left.allocations && !left.descriptors && !left.mappings);
	fake_forget();
	return 0;
}
