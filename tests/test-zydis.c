/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * operand.c against a decoder that knows all of x86 (Zydis): many instructions,
 * made of prefixes in any order and wild bytes, in 64-bit and in 32-bit code. Where
 * Zydis knows one and it has a memory operand of its own (by ModRM, or an absolute
 * address), the linear address has to be the same; where it has none, there is
 * none.
 */

#include <Zydis/Zydis.h>
#include <stdio.h>
#include <string.h>

#include "lib/setup/setup.h"
#include "unit.h"

#define ROUNDS 400000

static uint64_t state = 88172645463325252ULL;

static uint64_t any(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

/* Prefixes first, as often as not, so that most have some. */
static void make(uint8_t *code, size_t length)
{
	static const uint8_t prefix[] = {
		0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2,
		0xf3, 0x40, 0x41, 0x42, 0x44, 0x48, 0x4f,
	};
	size_t i = 0;

	while (i < 4 && any() & 1)
		code[i++] = prefix[any() % sizeof(prefix)];
	if (any() % 3 == 0)
		code[i++] = 0x0f;
	while (i < length)
		code[i++] = (uint8_t)(any() >> 20);
}

static struct kvmfault__x86 machine(bool long_mode)
{
	struct kvmfault__x86 cpu = {
		.rip = long_mode ? 0x7f0000401000ULL : 0x401000,
		.long_mode = long_mode, .big = !long_mode,
	};
	size_t i;

	for (i = 0; i < 16; i++) {
		cpu.gpr[i] = any();
		if (!long_mode)
			cpu.gpr[i] = (uint32_t)cpu.gpr[i];
	}
	/* Also of those that 64-bit code does not have. */
	for (i = 0; i < 6; i++)
		cpu.segment[i] = (uint32_t)any();
	return cpu;
}

static ZydisRegisterContext registers(const struct kvmfault__x86 *cpu)
{
	ZydisRegisterContext context = { 0 };
	int i;

	for (i = 0; i < 16; i++) {
		context.values[ZYDIS_REGISTER_RAX + i] = cpu->gpr[i];
		context.values[ZYDIS_REGISTER_EAX + i] =
			(uint32_t)cpu->gpr[i];
	}
	return context;
}

/* Its own, not what it touches besides, like the stack; LEA touches none. */
static const ZydisDecodedOperand *
own_memory(const ZydisDecodedInstruction *instruction,
	   const ZydisDecodedOperand *operand)
{
	int i;

	for (i = 0; i < instruction->operand_count; i++)
		if (operand[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
		    operand[i].mem.type == ZYDIS_MEMOP_TYPE_MEM &&
		    operand[i].visibility == ZYDIS_OPERAND_VISIBILITY_EXPLICIT &&
		    operand[i].encoding != ZYDIS_OPERAND_ENCODING_NONE)
			return &operand[i];
	return NULL;
}

static uint64_t base_of(const struct kvmfault__x86 *cpu, ZydisRegister segment)
{
	int number = segment - ZYDIS_REGISTER_ES;

	ck_assert(number >= 0 && number < 6);
	return cpu->long_mode && number < 4 ? 0 : cpu->segment[number];
}

/* Memory that is named and not touched: an address that is formed, a hint. */
static bool is_named(const ZydisDecodedInstruction *instruction,
		     const ZydisDecodedOperand *operand)
{
	int i;

	for (i = 0; i < instruction->operand_count; i++)
		if (operand[i].type == ZYDIS_OPERAND_TYPE_MEMORY &&
		    operand[i].mem.type != ZYDIS_MEMOP_TYPE_MEM)
			return true;
	return instruction->mnemonic == ZYDIS_MNEMONIC_NOP;
}

/* Zydis forms some addresses only: it says so. */
static bool expected(const struct kvmfault__x86 *cpu,
		     const ZydisDecodedInstruction *instruction,
		     const ZydisDecodedOperand *operand, uint64_t *address)
{
	ZydisRegisterContext context = registers(cpu);

	if (!ZYAN_SUCCESS(ZydisCalcAbsoluteAddressEx(instruction, operand,
						     cpu->rip, &context,
						     address)))
		return false;
	if (instruction->address_width == 32)
		*address = (uint32_t)*address;
	*address += base_of(cpu, operand->mem.segment);
	if (!cpu->long_mode)
		*address = (uint32_t)*address;
	return true;
}

static void explain(const uint8_t *code, size_t length, const char *what,
		    uint64_t address, uint64_t wanted)
{
	char bytes[64] = "";
	size_t i;

	for (i = 0; i < length; i++)
		sprintf(bytes + 3 * i, " %02x", code[i]);
	ck_abort_msg("%s:%s: %#lx, not %#lx", what, bytes,
		     (unsigned long)address, (unsigned long)wanted);
}

/* A base of 5 without a displacement of ModRM's is no base, whatever REX.B says:
 * Zydis 4.0 takes R13. */
static bool misread(const ZydisDecodedInstruction *instruction)
{
	return instruction->attributes & ZYDIS_ATTRIB_HAS_SIB &&
	       !instruction->raw.modrm.mod && instruction->raw.sib.base == 5 &&
	       instruction->raw.rex.B;
}

/* Left to others: what KVM's emulator does not know. */
static bool left_out(const ZydisDecodedInstruction *instruction)
{
	return instruction->encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY ||
	       instruction->address_width == 16 || misread(instruction) ||
	       /* Of a jump 3e may be that, or a segment's. */
	       instruction->attributes & ZYDIS_ATTRIB_HAS_NOTRACK ||
	       /* The address is of a table, by a register of bounds. */
	       instruction->mnemonic == ZYDIS_MNEMONIC_BNDLDX ||
	       instruction->mnemonic == ZYDIS_MNEMONIC_BNDSTX ||
	       /* After the stack pointer was moved. */
	       instruction->mnemonic == ZYDIS_MNEMONIC_POP;
}

/* Returns whether it had an operand to compare. */
static bool compare(const ZydisDecoder *decoder,
		    const struct kvmfault__x86 *cpu, const uint8_t *code)
{
	ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
	ZydisDecodedInstruction instruction;
	const ZydisDecodedOperand *memory;
	uint64_t address, wanted;
	bool has;

	if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(decoder, code, KVMFAULT__CODE,
			&instruction, operands)) ||
	    left_out(&instruction))
		return false;
	has = kvmfault__x86_operand(cpu, code, instruction.length, &address);
	memory = own_memory(&instruction, operands);
	if (!memory) {
		if (has && !is_named(&instruction, operands))
			explain(code, instruction.length, "no operand",
				address, 0);
		return false;
	}
	if (!expected(cpu, &instruction, memory, &wanted))
		return false;
	if (!has)
		explain(code, instruction.length, "an operand", 0, wanted);
	if (address != wanted)
		explain(code, instruction.length, "another operand", address,
			wanted);
	return true;
}

TEST_GROUP(zydis, NULL, NULL);

TEST_EACH(zydis, as_zydis_says, 2)
{
	bool long_mode = _i;
	uint8_t code[KVMFAULT__CODE];
	unsigned int i, compared = 0;
	struct kvmfault__x86 cpu;
	ZydisDecoder decoder;

	ck_assert(ZYAN_SUCCESS(ZydisDecoderInit(&decoder, long_mode ?
		ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32,
		long_mode ? ZYDIS_STACK_WIDTH_64 : ZYDIS_STACK_WIDTH_32)));
	for (i = 0; i < ROUNDS; i++) {
		cpu = machine(long_mode);
		make(code, sizeof(code));
		compared += compare(&decoder, &cpu, code);
	}
	ck_assert_uint_gt(compared, ROUNDS / 20);
}

int main(void)
{
	return run_suite("zydis");
}
