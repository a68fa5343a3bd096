/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Entrance emulation, its arithmetic: where an x86 instruction's memory operand
 * is. In: the instruction's bytes and the registers. Out: a linear address.
 * Pure; reads no byte past those given. Only what says where the operand is
 * gets decoded, never what the instruction does.
 */

#include <string.h>

#include "internal.h"

enum { ES, CS, SS, DS, FS, GS };
enum { RSP = 4, RBP = 5 };

struct cursor {
	const uint8_t *code;
	size_t length, at;
	int segment;		/* by prefix, or -1 */
	uint8_t rex;
	bool address_size;	/* prefix 67 */
};

static bool take(struct cursor *c, void *to, size_t length)
{
	if (c->length - c->at < length)
		return false;
	memcpy(to, c->code + c->at, length);
	c->at += length;
	return true;
}

/* Prefixes, up to the opcode's first byte, which is returned in *op. */
static bool prefixes(struct cursor *c, bool long_mode, uint8_t *op)
{
	c->segment = -1;
	while (take(c, op, 1)) {
		switch (*op) {
		case 0x26: c->segment = ES; break;
		case 0x2e: c->segment = CS; break;
		case 0x36: c->segment = SS; break;
		case 0x3e: c->segment = DS; break;
		case 0x64: c->segment = FS; break;
		case 0x65: c->segment = GS; break;
		case 0x67: c->address_size = true; break;
		case 0x66: case 0xf0: case 0xf2: case 0xf3: break;
		default:
			if (!long_mode || (*op & 0xf0) != 0x40)
				return true;
			c->rex = *op;
			return take(c, op, 1);
		}
	}
	return false;
}

/* Which opcodes have ModRM behind them: one bit each, row by first digit. VEX
 * and EVEX are left out: KVM's emulator does not know them. */
static const uint16_t one_byte[16] = {
	0x0f0f, 0x0f0f, 0x0f0f, 0x0f0f, 0x0000, 0x0000, 0x0a08, 0x0000,
	0xffff, 0x0000, 0x0000, 0x0000, 0x00c3, 0xff0f, 0x0000, 0xc0c0,
};
static const uint16_t two_byte[16] = {	/* behind 0f */
	0x200f, 0xffff, 0xff0f, 0x0000, 0xffff, 0xffff, 0xffff, 0xff7f,
	0x0000, 0xffff, 0xf838, 0xffff, 0x00ff, 0xffff, 0xffff, 0xffff,
};

static bool has_modrm(const uint16_t *map, uint8_t op)
{
	return map[op >> 4] >> (op & 15) & 1;
}

/* Skip the rest of the opcode: what follows is ModRM, or false. */
static bool opcode(struct cursor *c, uint8_t op)
{
	if (op != 0x0f)
		return has_modrm(one_byte, op);
	if (!take(c, &op, 1))
		return false;
	if (op == 0x38 || op == 0x3a)
		return take(c, &op, 1);
	return has_modrm(two_byte, op);
}

static bool displacement(struct cursor *c, size_t size, uint64_t *address)
{
	int8_t d8;
	int32_t d32;

	if (size == 1) {
		if (!take(c, &d8, 1))
			return false;
		*address += (uint64_t)(int64_t)d8;
	} else if (size == 4) {
		if (!take(c, &d32, 4))
			return false;
		*address += (uint64_t)(int64_t)d32;
	}
	return true;
}

static bool sib(struct cursor *c, const struct kvmfault__x86 *cpu,
		unsigned int mod, uint64_t *address, int *segment,
		size_t *displaced)
{
	unsigned int base, index;
	uint8_t byte;

	if (!take(c, &byte, 1))
		return false;
	index = ((byte >> 3) & 7) | (c->rex & 2) << 2;
	base = (byte & 7) | (c->rex & 1) << 3;
	if (index != RSP)
		*address += cpu->gpr[index] << (byte >> 6);
	if ((byte & 7) == RBP && !mod) {
		*displaced = 4;
		return true;
	}
	*address += cpu->gpr[base];
	if (base == RSP || base == RBP)
		*segment = SS;
	return true;
}

static bool modrm(struct cursor *c, const struct kvmfault__x86 *cpu,
		  uint64_t *address, int *segment, bool *relative)
{
	static const size_t sizes[] = { 0, 1, 4 };
	unsigned int mod, rm;
	size_t displaced;
	uint8_t byte;

	if (!take(c, &byte, 1))
		return false;
	mod = byte >> 6;
	rm = byte & 7;
	if (mod == 3)
		return false;	/* a register */
	displaced = sizes[mod];
	if (rm == RSP) {
		if (!sib(c, cpu, mod, address, segment, &displaced))
			return false;
	} else if (rm == RBP && !mod) {
		displaced = 4;
		*relative = cpu->long_mode;
	} else {
		rm |= (c->rex & 1) << 3;
		*address += cpu->gpr[rm];
		if (rm == RBP)
			*segment = SS;
	}
	return displacement(c, displaced, address);
}

bool kvmfault__x86_operand(const struct kvmfault__x86 *cpu,
			   const uint8_t *code, size_t length,
			   uint64_t *address)
{
	struct cursor c = { .code = code, .length = length };
	bool relative = false;
	int segment = DS;
	uint8_t op;

	*address = 0;
	if (!prefixes(&c, cpu->long_mode, &op) || !opcode(&c, op))
		return false;
	/* 16-bit addressing has another ModRM: not decoded. */
	if (!cpu->long_mode && cpu->big == c.address_size)
		return false;
	if (!modrm(&c, cpu, address, &segment, &relative))
		return false;
	/* Of what has an immediate behind it this is a few bytes short: the
	 * page is right all the same, but at its very end. */
	if (relative)
		*address += cpu->rip + c.at;
	if (!cpu->long_mode || c.address_size)
		*address = (uint32_t)*address;
	if (c.segment >= 0)
		segment = c.segment;
	*address += cpu->segment[segment];
	if (!cpu->long_mode)
		*address = (uint32_t)*address;
	return true;
}
