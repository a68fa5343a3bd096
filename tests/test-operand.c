/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * operand.c: bytes of x86 instructions whose addresses are known, each of them
 * at the end of readable memory, and cut short at every byte.
 */

#include <string.h>
#include <sys/mman.h>

#include "lib/setup/setup.h"
#include "unit.h"

#define RIP 0x400000ULL
#define FSBASE 0x700000000000ULL
#define GSBASE 0x600000000000ULL

static unsigned char *end;

static void up(void)
{
	unsigned char *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ck_assert_ptr_ne(pages, MAP_FAILED);
	end = pages + PAGE;
	ck_assert_int_eq(mprotect(end, PAGE, PROT_NONE), 0);
}

/* rax = 0x10000, rcx = 0x20000, ... r15 = 0x100000 */
static struct kvmfault__x86 machine(bool long_mode)
{
	struct kvmfault__x86 cpu = {
		.rip = RIP, .long_mode = long_mode, .big = !long_mode,
		.segment = { 0, 0, 0, 0, FSBASE, GSBASE },
	};
	size_t i;

	for (i = 0; i < 16; i++)
		cpu.gpr[i] = (i + 1) << 16;
	if (!long_mode) {
		static const uint64_t bases[] = {
			0x1000000, 0x2000000, 0x3000000, 0x4000000,
			0x5000000, 0x6000000,
		};

		memcpy(cpu.segment, bases, sizeof(bases));
	}
	return cpu;
}

static bool operand(const struct kvmfault__x86 *cpu, const void *code,
		    size_t length, uint64_t *address)
{
	memcpy(end - length, code, length);
	return kvmfault__x86_operand(cpu, end - length, length, address);
}

struct row {
	const char *name;
	const char *code;
	size_t length;
	uint64_t address;
};
#define ROW(name, code, address) { name, code, sizeof(code) - 1, address }

static const struct row long_mode[] = {
	ROW("mov (%rax),%eax", "\x8b\x00", 0x10000),
	ROW("mov (%rdi),%eax", "\x8b\x07", 0x80000),
	ROW("mov 16(%rbx),%eax", "\x8b\x43\x10", 0x40010),
	ROW("mov -16(%rbx),%eax", "\x8b\x43\xf0", 0x3fff0),
	ROW("mov 0x12345(%rcx),%eax", "\x8b\x81\x45\x23\x01\x00", 0x32345),
	ROW("mov -0x12345(%rcx),%eax", "\x8b\x81\xbb\xdc\xfe\xff", 0xdcbb),
	ROW("mov 0x100(%rip),%eax", "\x8b\x05\x00\x01\x00\x00",
	    RIP + 6 + 0x100),
	ROW("mov -6(%rip),%eax", "\x8b\x05\xfa\xff\xff\xff", RIP),
	ROW("mov 0x100(%rip),%rax", "\x48\x8b\x05\x00\x01\x00\x00",
	    RIP + 7 + 0x100),
	/* SIB */
	ROW("mov (%rsp),%eax", "\x8b\x04\x24", 0x50000),
	ROW("mov 8(%rsp),%eax", "\x8b\x44\x24\x08", 0x50008),
	ROW("mov (%rax,%rcx),%eax", "\x8b\x04\x08", 0x30000),
	ROW("mov (%rax,%rcx,8),%eax", "\x8b\x04\xc8", 0x110000),
	ROW("mov 4(%rax,%rcx,2),%eax", "\x8b\x44\x48\x04", 0x50004),
	ROW("mov 0x1000(,%rcx,4),%eax", "\x8b\x04\x8d\x00\x10\x00\x00",
	    0x81000),
	ROW("mov 0x1000,%eax", "\x8b\x04\x25\x00\x10\x00\x00", 0x1000),
	ROW("mov -0x1000,%eax", "\x8b\x04\x25\x00\xf0\xff\xff",
	    0xfffffffffffff000),
	ROW("mov 0(%rbp,%rcx),%eax", "\x8b\x44\x0d\x00", 0x80000),
	/* REX */
	ROW("mov (%r8),%eax", "\x41\x8b\x00", 0x90000),
	ROW("mov (%r12),%eax", "\x41\x8b\x04\x24", 0xd0000),
	ROW("mov 0(%r13),%eax", "\x41\x8b\x45\x00", 0xe0000),
	ROW("mov (%rax,%r12),%eax", "\x42\x8b\x04\x20", 0xe0000),
	ROW("mov (%r15,%r14,2),%rax", "\x4b\x8b\x04\x77", 0x2e0000),
	ROW("mov 0x1000(,%r12,1),%eax", "\x42\x8b\x04\x25\x00\x10\x00\x00",
	    0xd1000),
	ROW("mov %r9,(%rax)", "\x4c\x89\x08", 0x10000),
	/* prefixes */
	ROW("mov %fs:(%rax),%eax", "\x64\x8b\x00", FSBASE + 0x10000),
	ROW("mov %gs:0x28,%rax", "\x65\x48\x8b\x04\x25\x28\x00\x00\x00",
	    GSBASE + 0x28),
	ROW("mov %es:(%rax),%eax", "\x26\x8b\x00", 0x10000),
	ROW("mov (%rax),%ax", "\x66\x8b\x00", 0x10000),
	ROW("lock incl (%rax)", "\xf0\xff\x00", 0x10000),
	ROW("mov (%eax),%eax", "\x67\x8b\x00", 0x10000),
	ROW("mov -1(%eax)", "\x67\x8b\x40\xff", 0xffff),
	ROW("mov %fs:(%eax),%eax", "\x64\x67\x8b\x00", FSBASE + 0x10000),
	ROW("mov 0x100(%eip),%eax", "\x67\x8b\x05\x00\x01\x00\x00",
	    RIP + 7 + 0x100),
	/* In 64-bit code the others do nothing, wherever they are. */
	ROW("fs ds mov", "\x64\x3e\x8b\x00", FSBASE + 0x10000),
	ROW("ds fs mov", "\x3e\x64\x8b\x00", FSBASE + 0x10000),
	ROW("gs es cs ss mov", "\x65\x26\x2e\x36\x8b\x00", GSBASE + 0x10000),
	ROW("fs gs mov", "\x64\x65\x8b\x00", GSBASE + 0x10000),
	/* A REX that is not the last prefix does nothing. */
	ROW("rex.b data16 mov", "\x41\x66\x8b\x00", 0x10000),
	ROW("rex.b rex mov", "\x41\x40\x8b\x00", 0x10000),
	ROW("rex fs rex.b mov", "\x40\x64\x41\x8b\x00", FSBASE + 0x90000),
	ROW("movabs 0x123456789abcdef0,%al",
	    "\xa0\xf0\xde\xbc\x9a\x78\x56\x34\x12", 0x123456789abcdef0),
	/* opcodes of two and three bytes */
	ROW("movzbl (%rax),%eax", "\x0f\xb6\x00", 0x10000),
	ROW("fxsave (%rbx)", "\x0f\xae\x03", 0x40000),
	ROW("fxrstor 64(%rbx)", "\x0f\xae\x4b\x40", 0x40040),
	ROW("cmpxchg %ecx,(%rdx)", "\x0f\xb1\x0a", 0x30000),
	ROW("movaps (%rsi),%xmm0", "\x0f\x28\x06", 0x70000),
	ROW("movbe (%rax),%eax", "\x0f\x38\xf0\x00", 0x10000),
	/* immediates behind */
	ROW("movl $1,(%rax)", "\xc7\x00\x01\x00\x00\x00", 0x10000),
	ROW("addl $1,8(%rax)", "\x83\x40\x08\x01", 0x10008),
	ROW("movl $1,0(%rip)", "\xc7\x05\x00\x00\x00\x00\x01\x00\x00\x00",
	    RIP + 10),
	ROW("movw $1,0(%rip)", "\x66\xc7\x05\x00\x00\x00\x00\x01\x00",
	    RIP + 9),
	ROW("testb $1,0(%rip)", "\xf6\x05\x00\x00\x00\x00\x01", RIP + 7),
	ROW("notl 0(%rip)", "\xf7\x15\x00\x00\x00\x00", RIP + 6),
	/* nothing after it counts */
	ROW("mov (%rax),%eax; ...", "\x8b\x00\xff\xff\xff\xff\xff", 0x10000),
};

#define COUNT(rows) ((int)(sizeof(rows) / sizeof(*(rows))))

TEST_GROUP(operand, up, NULL);

TEST_EACH(operand, in_long_mode, COUNT(long_mode))
{
	const struct row *row = &long_mode[_i];
	struct kvmfault__x86 cpu = machine(true);
	uint64_t address = 1;

	ck_assert_msg(operand(&cpu, row->code, row->length, &address),
		      "%s: no operand", row->name);
	ck_assert_msg(address == row->address, "%s: %#lx, not %#lx", row->name,
		      (unsigned long)address, (unsigned long)row->address);
}

static const struct row protected_mode[] = {
	ROW("mov (%eax),%eax", "\x8b\x00", 0x4010000),
	ROW("mov 0x1000,%eax", "\x8b\x05\x00\x10\x00\x00", 0x4001000),
	ROW("mov 4(%ebp),%eax", "\x8b\x45\x04", 0x3060004),	/* ss */
	ROW("mov (%esp),%eax", "\x8b\x04\x24", 0x3050000),	/* ss */
	ROW("mov %ds:4(%ebp),%eax", "\x3e\x8b\x45\x04", 0x4060004),
	ROW("mov %cs:(%eax),%eax", "\x2e\x8b\x00", 0x2010000),
	ROW("mov %es:(%eax),%eax", "\x26\x8b\x00", 0x1010000),
	ROW("mov %fs:(%eax),%eax", "\x64\x8b\x00", 0x5010000),
	ROW("mov -0x20000(%eax),%eax", "\x8b\x80\x00\x00\xfe\xff", 0x3ff0000),
	ROW("fs ds mov", "\x64\x3e\x8b\x00", 0x4010000),
	ROW("les (%eax),%eax", "\xc4\x00", 0x4010000),
	ROW("lds (%eax),%eax", "\xc5\x00", 0x4010000),
	ROW("bound %eax,(%eax)", "\x62\x00", 0x4010000),
	ROW("mov 0x1000,%al", "\xa0\x00\x10\x00\x00", 0x4001000),
};

TEST_EACH(operand, in_protected_mode, COUNT(protected_mode))
{
	const struct row *row = &protected_mode[_i];
	struct kvmfault__x86 cpu = machine(false);
	uint64_t address = 1;

	ck_assert_msg(operand(&cpu, row->code, row->length, &address),
		      "%s: no operand", row->name);
	ck_assert_msg(address == row->address, "%s: %#lx, not %#lx", row->name,
		      (unsigned long)address, (unsigned long)row->address);
}

static const struct row none[] = {
	ROW("nothing", "", 0),
	ROW("mov %eax,%eax", "\x8b\xc0", 0),
	ROW("mov %r8,%rax", "\x4c\x89\xc0", 0),
	ROW("movzbl %al,%eax", "\x0f\xb6\xc0", 0),
	ROW("prefixes only", "\x66\x66\x66\x66", 0),
	ROW("rex only", "\x48", 0),
	ROW("0f only", "\x0f", 0),
	ROW("0f 38 only", "\x0f\x38", 0),
	/* without ModRM: what follows is the next instruction */
	ROW("push %rax", "\x50\x8b\x00", 0),
	ROW("ret", "\xc3\x8b\x00", 0),
	ROW("movsb", "\xa4\x8b\x00", 0),
	ROW("insb", "\x6c\x8b\x00", 0),
	ROW("call", "\xe8\x00\x00\x00\x00", 0),
	ROW("int3", "\xcc\x00", 0),
	ROW("mov $1,%eax", "\xb8\x01\x00\x00\x00", 0),
	ROW("syscall", "\x0f\x05\x00", 0),
	ROW("cpuid", "\x0f\xa2\x00", 0),
	ROW("rdtsc", "\x0f\x31\x00", 0),
	ROW("jne far", "\x0f\x85\x00\x00\x00\x00", 0),
	ROW("vex 2", "\xc5\xf8\x28\x00", 0),
	ROW("vex 3", "\xc4\xe2\x79\x18\x00", 0),
	ROW("evex", "\x62\xf1\x7c\x48\x28\x00", 0),
	ROW("mov %cr0,%rax", "\x0f\x20\x00", 0),
	ROW("mov %rax,%cr0", "\x0f\x22\x40\x00", 0),
	ROW("mov %dr7,%rax", "\x0f\x21\x38", 0),
};

TEST_EACH(operand, no_operand, COUNT(none))
{
	const struct row *row = &none[_i];
	struct kvmfault__x86 cpu = machine(true);
	uint64_t address;

	ck_assert_msg(!operand(&cpu, row->code, row->length, &address),
		      "%s: %#lx", row->name, (unsigned long)address);
}

TEST(operand, sixteen_bits_are_left_alone)
{
	struct kvmfault__x86 cpu = machine(false);
	uint64_t address;

	cpu.big = false;
	ck_assert(!operand(&cpu, "\x8b\x00", 2, &address));
	/* With an address prefix it is 32-bit addressing. */
	ck_assert(operand(&cpu, "\x67\x8b\x00", 3, &address));
	ck_assert_uint_eq(address, 0x4010000);
	cpu.big = true;
	ck_assert(!operand(&cpu, "\x67\x8b\x00", 3, &address));
}

/* Up to where it needs its bytes, and from there on the same address. */
TEST_EACH(operand, cut_short, COUNT(long_mode))
{
	const struct row *row = &long_mode[_i];
	struct kvmfault__x86 cpu = machine(true);
	uint64_t address;
	bool before = false;
	size_t length;

	for (length = 0; length <= row->length; length++) {
		bool now = operand(&cpu, row->code, length, &address);

		ck_assert(now || !before);
		if (now)
			ck_assert_uint_eq(address, row->address);
		before = now;
	}
	ck_assert(before);
}

TEST(operand, wild_bytes)
{
	struct kvmfault__x86 cpu = machine(true);
	uint64_t random = 88172645463325252ULL, address;
	unsigned char code[15];
	unsigned int i, n, hits = 0;

	for (i = 0; i < 200000; i++) {
		for (n = 0; n < sizeof(code); n++) {
			random ^= random << 13;
			random ^= random >> 7;
			random ^= random << 17;
			code[n] = (unsigned char)random;
		}
		cpu.long_mode = i % 3;
		cpu.big = i % 2;
		/* It says something, and does not crash. */
		hits += operand(&cpu, code, random % 16, &address);
	}
	ck_assert_uint_gt(hits, 1000);
	ck_assert_uint_lt(hits, 199000);
}

int main(void)
{
	return run_suite("operand");
}
