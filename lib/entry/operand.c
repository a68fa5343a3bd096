/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Kind emulation, its decoder: where an x86 instruction's memory operand is.
 * In: the instruction's bytes and the registers. Out: a linear address. The
 * functions are pure and read no byte past those given. They decode what
 * addresses the operand, never what the instruction does.
 */

#include <string.h>

#include "entry.h"

enum { ES, CS, SS, DS, FS, GS };
enum { RSP = 4, RBP = 5 };

struct cursor {
	const uint8_t *code;
	size_t length, at;
	int segment;		/* of a prefix, or -1 */
	uint8_t rex;
	bool address_size;	/* prefix 67 */
	bool operand_size;	/* prefix 66 */
};

static bool operand_take_bytes(struct cursor *c, void *to, size_t length)
{
	if (c->length - c->at < length)
		return false;
	memcpy(to, c->code + c->at, length);
	c->at += length;
	return true;
}

/* 64-bit code has segment bases for FS and GS only. A prefix of another segment
 * does nothing there, also behind a prefix of these two. */
static void operand_override_segment(struct cursor *c, bool long_mode,
				     int segment)
{
	if (!long_mode || segment >= FS)
		c->segment = segment;
}

static bool operand_note_legacy_prefix(struct cursor *c, bool long_mode,
				       uint8_t byte)
{
	switch (byte) {
	case 0x26: operand_override_segment(c, long_mode, ES); return true;
	case 0x2e: operand_override_segment(c, long_mode, CS); return true;
	case 0x36: operand_override_segment(c, long_mode, SS); return true;
	case 0x3e: operand_override_segment(c, long_mode, DS); return true;
	case 0x64: operand_override_segment(c, long_mode, FS); return true;
	case 0x65: operand_override_segment(c, long_mode, GS); return true;
	case 0x66: c->operand_size = true; return true;
	case 0x67: c->address_size = true; return true;
	case 0xf0: case 0xf2: case 0xf3: return true;
	default: return false;
	}
}

/* Take the prefixes and the opcode's first byte, which is returned in *op. A
 * REX prefix counts only if it is the last one. */
static bool operand_take_prefixes(struct cursor *c, bool long_mode, uint8_t *op)
{
	c->segment = -1;
	while (operand_take_bytes(c, op, 1)) {
		if (operand_note_legacy_prefix(c, long_mode, *op))
			c->rex = 0;
		else if (long_mode && (*op & 0xf0) == 0x40)
			c->rex = *op;
		else
			return true;
	}
	return false;
}

/*
 * Which opcodes have a ModRM: one bit each, rows by their first hex digit.
 *
 * LES, LDS and BOUND (c4, c5, 62) are VEX and EVEX in 64-bit code, and in any
 * code if they name a register. VEX and EVEX are left out, since KVM's emulator
 * does not know them.
 *
 * MOV to and from CR and DR (0f 20 to 23) has a ModRM and never memory, so it
 * is left out too.
 */
static const uint16_t one_byte[16] = {
	0x0f0f, 0x0f0f, 0x0f0f, 0x0f0f, 0x0000, 0x0000, 0x0a0c, 0x0000,
	0xffff, 0x0000, 0x0000, 0x0000, 0x00f3, 0xff0f, 0x0000, 0xc0c0,
};
static const uint16_t two_byte[16] = {	/* behind 0f */
	0x200f, 0xffff, 0xff00, 0x0000, 0xffff, 0xffff, 0xffff, 0xff7f,
	0x0000, 0xffff, 0xf838, 0xffff, 0x00ff, 0xffff, 0xffff, 0xffff,
};

static bool operand_has_modrm(const uint16_t *map, uint8_t op)
{
	return map[op >> 4] >> (op & 15) & 1;
}

/* An opcode: its map and its last byte. */
struct opcode {
	enum { ONE_BYTE, TWO_BYTES, MAP_38, MAP_3A } map;
	uint8_t byte;
};

/* Take the rest of the opcode. False: no ModRM follows it. */
static bool operand_take_opcode(struct cursor *c, bool long_mode, uint8_t first,
				struct opcode *op)
{
	*op = (struct opcode){ .map = ONE_BYTE, .byte = first };
	if (first != 0x0f)
		return operand_has_modrm(one_byte, first) &&
		       !(long_mode && (first == 0x62 || first == 0xc4 ||
				       first == 0xc5));
	if (!operand_take_bytes(c, &op->byte, 1))
		return false;
	op->map = TWO_BYTES;
	if (op->byte != 0x38 && op->byte != 0x3a)
		return operand_has_modrm(two_byte, op->byte);
	op->map = op->byte == 0x38 ? MAP_38 : MAP_3A;
	return operand_take_bytes(c, &op->byte, 1);
}

/* Count the bytes of the immediate behind ModRM, SIB and displacement. */
static size_t operand_count_immediate(const struct cursor *c,
				      const struct opcode *op, uint8_t modrm)
{
	size_t whole = c->operand_size && !(c->rex & 8) ? 2 : 4;
	bool test = !(modrm & 0x30);	/* f6, f7: TEST is /0 and /1 */

	if (op->map == MAP_3A)
		return 1;
	if (op->map == MAP_38)
		return 0;
	if (op->map == TWO_BYTES)
		switch (op->byte) {
		case 0x70: case 0x71: case 0x72: case 0x73: case 0xa4:
		case 0xac: case 0xba: case 0xc2: case 0xc4: case 0xc5:
		case 0xc6:
			return 1;
		default:
			return 0;
		}
	switch (op->byte) {
	case 0x6b: case 0x80: case 0x82: case 0x83: case 0xc0: case 0xc1:
	case 0xc6:
		return 1;
	case 0x69: case 0x81: case 0xc7:
		return whole;
	case 0xf6:
		return test ? 1 : 0;
	case 0xf7:
		return test ? whole : 0;
	default:
		return 0;
	}
}

static bool operand_add_displacement(struct cursor *c, size_t size,
				     uint64_t *address)
{
	int8_t d8;
	int32_t d32;

	if (size == 1) {
		if (!operand_take_bytes(c, &d8, 1))
			return false;
		*address += (uint64_t)(int64_t)d8;
	} else if (size == 4) {
		if (!operand_take_bytes(c, &d32, 4))
			return false;
		*address += (uint64_t)(int64_t)d32;
	}
	return true;
}

static bool operand_add_sib(struct cursor *c, const struct kvmfault__x86 *cpu,
			    unsigned int mod, uint64_t *address, int *segment,
			    size_t *displaced)
{
	unsigned int base, index;
	uint8_t byte;

	if (!operand_take_bytes(c, &byte, 1))
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

static bool operand_add_modrm(struct cursor *c, const struct kvmfault__x86 *cpu,
			      uint8_t byte, uint64_t *address, int *segment,
			      bool *relative)
{
	static const size_t sizes[] = { 0, 1, 4 };
	unsigned int mod, rm;
	size_t displaced;

	mod = byte >> 6;
	rm = byte & 7;
	if (mod == 3)
		return false;	/* a register */
	displaced = sizes[mod];
	if (rm == RSP) {
		if (!operand_add_sib(c, cpu, mod, address, segment, &displaced))
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
	return operand_add_displacement(c, displaced, address);
}

/* MOV between the accumulator and an absolute address (a0 to a3). */
static bool operand_take_absolute(struct cursor *c, bool long_mode,
				  uint64_t *address)
{
	return operand_take_bytes(c, address,
				  long_mode && !c->address_size ? 8 : 4);
}

bool kvmfault__x86_operand(const struct kvmfault__x86 *cpu,
			   const uint8_t *code, size_t length,
			   uint64_t *address)
{
	struct cursor c = { .code = code, .length = length };
	bool relative = false;
	int segment = DS;
	struct opcode op;
	uint8_t byte;

	*address = 0;
	if (!operand_take_prefixes(&c, cpu->long_mode, &byte))
		return false;
	/* ModRM has another meaning in 16-bit addressing, which this does not
	 * decode. */
	if (!cpu->long_mode && cpu->big == c.address_size)
		return false;
	if (byte >= 0xa0 && byte <= 0xa3) {
		if (!operand_take_absolute(&c, cpu->long_mode, address))
			return false;
	} else if (!operand_take_opcode(&c, cpu->long_mode, byte, &op) ||
		   !operand_take_bytes(&c, &byte, 1) ||
		   !operand_add_modrm(&c, cpu, byte, address, &segment,
				      &relative)) {
		return false;
	}
	if (relative)
		*address += cpu->rip + c.at +
			    operand_count_immediate(&c, &op, byte);
	if (!cpu->long_mode || c.address_size)
		*address = (uint32_t)*address;
	if (c.segment >= 0)
		segment = c.segment;
	if (!cpu->long_mode || segment >= FS)
		*address += cpu->segment[segment];
	if (!cpu->long_mode)
		*address = (uint32_t)*address;
	return true;
}
