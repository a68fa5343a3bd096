/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The states of pages, against an array of them. Input: a program of two bytes
 * a step: what, and to which page. No step changes another page's state.
 */

#include "fuzz.h"
#include "lib/setup/setup.h"

#define PAGES 64
#define STATES 6

static uint8_t model[PAGES];

static bool in_flight(uint8_t state)
{
	return state >= KVMFAULT__FETCHING &&
	       state <= KVMFAULT__FETCHING_DISCARDED;
}

static void claim(struct kvmfault_memory *memory, uint64_t page, bool sleeper)
{
	uint8_t was = model[page];

	MUST(kvmfault__page_claim(memory, page, sleeper) == was);
	if (was == KVMFAULT__ABSENT || was == KVMFAULT__DISCARDED)
		model[page] = KVMFAULT__FETCHING;
	else if (was == KVMFAULT__FETCHING && sleeper)
		model[page] = KVMFAULT__FETCHING_WAITED;
}

static void change(struct kvmfault_memory *memory, uint64_t page, uint8_t what)
{
	uint8_t from = what % STATES, to = what / STATES % STATES;
	uint8_t was = model[page];

	MUST(kvmfault__page_change(memory, page, from, to) == was);
	if (was == from)
		model[page] = to;
}

/* In flight it would be for ever: somebody wants this vCPU out. */
static void wait(struct kvmfault__seat *seat, struct kvmfault_memory *memory,
		 uint64_t page)
{
	static const uint8_t immediate_exit = 1;

	seat->immediate_exit = &immediate_exit;
	MUST(kvmfault__page_wait(seat, memory, page) ==
	     (in_flight(model[page]) ? -EINTR : 0));
	kvmfault__page_wake(memory, page);
}

static void check(struct kvmfault_memory *memory)
{
	uint64_t absent = 0;
	uint64_t page;

	for (page = 0; page < PAGES; page++) {
		MUST(kvmfault__page_state(memory, page) == model[page]);
		absent += model[page] != KVMFAULT__PRESENT &&
			  model[page] != KVMFAULT__DISCARDED;
	}
	MUST(kvmfault__pages_absent(memory) == absent);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct kvmfault_vm vm;
	struct kvmfault__seat seat = { .vm = &vm };
	struct kvmfault_memory memory = {
		.vm = &vm, .length = PAGES * PAGE, .page_shift = 12,
	};
	struct input in = { data, size };

	memset(model, KVMFAULT__ABSENT, sizeof(model));
	MUST(!kvmfault__pages_new(&memory));
	while (in.left) {
		uint8_t what = next8(&in);
		uint64_t page = next8(&in) % PAGES;

		if (what < 36)
			change(&memory, page, what);
		else if (what < 128)
			claim(&memory, page, what & 1);
		else if (what < 192)
			wait(&seat, &memory, page);
		else {
			kvmfault__page_discard(&memory, page);
			model[page] = in_flight(model[page]) ?
				KVMFAULT__FETCHING_DISCARDED : KVMFAULT__DISCARDED;
		}
		check(&memory);
	}
	kvmfault__pages_free(&memory);
	return 0;
}
