/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The decoder of x86 operands. Input: the mode, the instruction's length, its
 * bytes, the registers. What it answers depends on nothing else, and not on
 * bytes behind those that it needed.
 */

#include "fuzz.h"
#include "lib/setup/setup.h"

#define MOST 32

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	uint8_t mode = next8(&in), bytes[MOST], *code;
	size_t length = next8(&in) % MOST, shorter;
	struct kvmfault__x86 cpu = { 0 };
	uint64_t address, other;
	bool found;

	next(&in, bytes, length);
	next(&in, cpu.gpr, sizeof(cpu.gpr));
	next(&in, &cpu.rip, sizeof(cpu.rip));
	next(&in, cpu.segment, sizeof(cpu.segment));
	cpu.long_mode = mode & 1;
	cpu.big = mode & 2;
	code = exactly(bytes, length);
	found = kvmfault__x86_operand(&cpu, code, length, &address);
	MUST(!found || cpu.long_mode || address <= UINT32_MAX);
	MUST(found == kvmfault__x86_operand(&cpu, code, length, &other));
	MUST(address == other);
	free(code);
	for (shorter = 0; shorter < length; shorter++) {
		code = exactly(bytes, shorter);
		if (kvmfault__x86_operand(&cpu, code, shorter, &other))
			MUST(found && address == other);
		free(code);
	}
	return 0;
}
