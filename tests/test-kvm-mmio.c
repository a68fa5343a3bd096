/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Accesses to RAM that KVM takes for a device's (mmio), because the memslot is
 * not there or because its emulator met an absent page, and those that it gives
 * up on (emulation, arm64's accesses without a syndrome). For the emulator absent
 * pages carry a marker here, as they do for a VMM that uses them; without one
 * KVM's own access would sleep on the userfaultfd like any other, and no exit
 * would come.
 */

#include <errno.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "kvm-rig.h"
#include "need.h"

#define PAGES 16

static struct rig rig;

/* i: each way in each column */
static void exits(int i)
{
	rig_new(&rig, i % COLUMNS, 1, PAGES, i / COLUMNS == EMULATED);
	rig_track(&rig);
	rig_vcpus(&rig);
	rig_exits(&rig, i / COLUMNS);
}

static void emulated(int column)
{
	exits(EMULATED * COLUMNS + column);
}

static struct kvmfault_stats stats(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	ck_assert_int_eq(kvmfault_vm_stats(rig.vm, &stats), 0);
	return stats;
}

static uint64_t low(uint64_t value, uint64_t size)
{
	return size == 8 ? value : value & ((1ULL << 8 * size) - 1);
}

/* main() finds out how many times the cases of TEST_COUNTED() are run. */
static int each_way;
static int where_emulated;

TEST_GROUP(mmio, NULL, NULL);

TEST_COUNTED(mmio, reads, each_way)
{
	uint64_t size, page = 0;

	exits(_i);
	for (size = 1; size <= 8; size *= 2, page++)
		ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ,
					 RAM + page * PAGE + 8, size, 0),
				  low(rig_word(page * PAGE + 8), size));
	ck_assert_uint_eq(stats().kind[KVMFAULT_KIND_MMIO], page);
	ck_assert_uint_eq(stats().fetched, page);
	rig_free(&rig);
}

TEST_COUNTED(mmio, writes, each_way)
{
	uint64_t size, page = 0, value = 0x1122334455667788, word;

	exits(_i);
	for (size = 1; size <= 8; size *= 2, page++) {
		rig_do(&rig, 0, MACHINE_WRITE, RAM + page * PAGE + 16, size,
		       value);
		word = rig_word(page * PAGE + 16);
		memcpy(&word, &value, size);
		ck_assert_uint_eq(*(uint64_t *)(rig.b + page * PAGE + 16),
				  word);
		ck_assert_uint_eq(*(uint64_t *)(rig.b + page * PAGE),
				  rig_word(page * PAGE));
	}
	ck_assert_uint_eq(stats().kind[KVMFAULT_KIND_MMIO], page);
	ck_assert_int_eq(rig.changes[KVMFAULT_CAUSE_MMIO], (int)page);
	rig_free(&rig);
}

TEST_COUNTED(mmio, across_a_page, each_way)
{
	uint64_t got, want;
	char bytes[16];

	exits(_i);
	got = rig_do(&rig, 0, MACHINE_READ, RAM + PAGE - 3, 8, 0);
	want = rig_word(PAGE - 8);
	memcpy(bytes, &want, 8);
	want = rig_word(PAGE);
	memcpy(bytes + 8, &want, 8);
	memcpy(&want, bytes + 5, 8);
	ck_assert_uint_eq(got, want);
	rig_do(&rig, 0, MACHINE_WRITE, RAM + 3 * PAGE - 3, 8,
	       0x0102030405060708);
	memcpy(&got, rig.b + 3 * PAGE - 3, 8);
	ck_assert_uint_eq(got, 0x0102030405060708);
	ck_assert_uint_eq(stats().fetched, 4);
	rig_free(&rig);
}

#ifdef __x86_64__	/* see no_syndrome for arm64 */

TEST_COUNTED(mmio, read_modify_write, each_way)
{
	exits(_i);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_EXCHANGE, RAM, 12, 0),
			  rig_word(0));
	ck_assert_uint_eq(*(uint64_t *)rig.b, 12);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_ADD, RAM + PAGE, 30, 0),
			  rig_word(PAGE));
	ck_assert_uint_eq(*(uint64_t *)(rig.b + PAGE), rig_word(PAGE) + 30);
	rig_free(&rig);
}

TEST_COUNTED(mmio, sixteen_bytes, each_way)
{
	exits(_i);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ16, RAM, 0, 0),
			  rig_word(0));
	ck_assert_uint_eq(machine_result_high(&rig.machine->vcpu[0]),
			  rig_word(8));
	rig_do(&rig, 0, MACHINE_WRITE16, RAM + PAGE, 21, 22);
	ck_assert_uint_eq(*(uint64_t *)(rig.b + PAGE), 21);
	ck_assert_uint_eq(*(uint64_t *)(rig.b + PAGE + 8), 22);
	rig_free(&rig);
}

#endif

TEST_COUNTED(mmio, string_copy, each_way)
{
	exits(_i);
	rig_do(&rig, 0, MACHINE_COPY, RAM + PAGE - 16, RAM + 4 * PAGE - 24, 48);
	ck_assert_mem_eq(rig.b + PAGE - 16, rig.b + 4 * PAGE - 24, 48);
	ck_assert_uint_eq(*(uint64_t *)(rig.b + PAGE - 16),
			  rig_word(4 * PAGE - 24));
	rig_free(&rig);
}

#ifdef __x86_64__

/* The guest copies from a device into absent pages: what it reads is the VMM's
 * business, where it writes it is ours. Every KVM emulates such an instruction. */
TEST_EACH(mmio, from_a_device, COLUMNS)
{
	const uint64_t at = PAGE - 4, device = RAM + (16 << 20);
	enum kvmfault_action action;
	struct machine_vcpu *vcpu;
	char expected[2 * PAGE];
	int err, ret, bytes = 0;
	uint64_t i;

	emulated(_i);
	vcpu = &rig.machine->vcpu[0];
	ck_assert_int_eq(machine_call(vcpu, MACHINE_COPY, RAM + at, device, 8,
				      0), 0);
	for (;;) {
		ret = rig_run(&rig, 0, &err);
		action = kvmfault_vcpu_handle(rig.vcpu[0], ret, err);
		if (action == KVMFAULT_ACTION_RETRY)
			continue;
		ck_assert_int_eq(action, KVMFAULT_ACTION_NOT_A_FAULT);
		if (machine_done(vcpu, ret))
			break;
		ck_assert_uint_eq(vcpu->run->exit_reason, KVM_EXIT_MMIO);
		ck_assert_uint_eq(vcpu->run->mmio.phys_addr,
				  device + (uint64_t)bytes);
		vcpu->run->mmio.data[0] = (unsigned char)++bytes;
	}
	ck_assert_int_eq(bytes, 8);
	ck_assert_uint_eq(stats().kind[KVMFAULT_KIND_MMIO], 2);
	ck_assert_int_eq(rig.changes[KVMFAULT_CAUSE_MMIO], 2);
	for (i = 0; i < sizeof(expected); i += 8)
		*(uint64_t *)(expected + i) = rig_word(i);
	memcpy(expected + at, "\1\2\3\4\5\6\7\10", 8);
	ck_assert_mem_eq(rig.b, expected, sizeof(expected));
	rig_free(&rig);
}

#endif

/* A device's address is the VMM's business, and so is a write to ROM. */
TEST_COUNTED(mmio, not_ours, each_way)
{
	struct kvmfault_region rom = {
		.size = sizeof(rom),
		.gpa = RAM,
		.length = PAGES * PAGE,
		.flags = KVMFAULT_REGION_READONLY,
	};
	int err, ret;

	exits(_i);
	ck_assert_int_eq(machine_call(&rig.machine->vcpu[0], MACHINE_READ,
				      RAM + (16 << 20), 8, 0, 0), 0);
	ret = rig_run(&rig, 0, &err);
	ck_assert_int_eq(ret, 0);
	ck_assert_uint_eq(rig.machine->vcpu[0].run->exit_reason, KVM_EXIT_MMIO);
	ck_assert_int_eq(kvmfault_vcpu_handle(rig.vcpu[0], ret, err),
			 KVMFAULT_ACTION_NOT_A_FAULT);

	rom.memory = rig.memory;
	ck_assert_int_eq(kvmfault_region_remove(rig.vm, 0, RAM), 0);
	ck_assert_int_eq(kvmfault_region_add(rig.vm, &rom), 0);
	ck_assert_int_eq(machine_call(&rig.machine->vcpu[0], MACHINE_WRITE,
				      RAM, 8, 3, 0), 0);
	ret = rig_run(&rig, 0, &err);
	ck_assert_int_eq(ret, 0);
	ck_assert_uint_eq(rig.machine->vcpu[0].run->exit_reason, KVM_EXIT_MMIO);
	ck_assert_int_eq(kvmfault_vcpu_handle(rig.vcpu[0], ret, err),
			 KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, RAM, 8, 0),
			  rig_word(0));
	rig_free(&rig);
}

/* The source fails: the access waits for its bytes, and is done when they come,
 * by the same call. */
TEST_COUNTED(mmio, an_access_that_has_to_wait, each_way)
{
	const struct kvmfault_result *result;
	int err, ret;

	exits(_i);
	atomic_store(&rig.source_error, -EIO);
	ck_assert_int_eq(machine_call(&rig.machine->vcpu[0], MACHINE_READ,
				      RAM, 8, 0, 0), 0);
	ret = rig_run(&rig, 0, &err);
	ck_assert_int_eq(ret, 0);
	ck_assert_int_eq(kvmfault_vcpu_handle(rig.vcpu[0], ret, err),
			 KVMFAULT_ACTION_UNRESOLVED);
	result = kvmfault_vcpu_result(rig.vcpu[0]);
	ck_assert_int_eq(result->reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(result->error, -EIO);
	ck_assert(result->unfinished);
	atomic_store(&rig.source_error, 0);
	ck_assert_int_eq(kvmfault_vcpu_handle(rig.vcpu[0], ret, err),
			 KVMFAULT_ACTION_RETRY);
	ck_assert(!result->unfinished);
	do {
		ret = rig_run(&rig, 0, &err);
	} while (kvmfault_vcpu_handle(rig.vcpu[0], ret, err) == KVMFAULT_ACTION_RETRY);
	ck_assert(machine_done(&rig.machine->vcpu[0], ret));
	ck_assert_uint_eq(machine_result(&rig.machine->vcpu[0]), rig_word(0));
	rig_free(&rig);
}

static void overlay(uint64_t at, const void *bytes, size_t length)
{
	rig.overlay_at = at;
	rig.overlay_length = length;
	memcpy(rig.overlay, bytes, length);
}

static void expect_emulation(uint64_t fetched)
{
	ck_assert_uint_ge(stats().kind[KVMFAULT_KIND_EMULATION], 1);
	ck_assert_uint_eq(stats().fetched, fetched);
	ck_assert_uint_eq(stats().unresolved, 0);
}

TEST_COUNTED(mmio, code_page, where_emulated)
{
	char code[64];

	emulated(_i);
	machine_put_return(code);
	overlay(5 * PAGE + 64, code, sizeof(code));
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_JUMP, RAM + 5 * PAGE + 64,
				 31, 0), 31);
	expect_emulation(1);
	rig_free(&rig);
}

TEST_COUNTED(mmio, fpu_state, where_emulated)
{
	char state[512];

	emulated(_i);
	rig_do(&rig, 0, MACHINE_FPU_SAVE, RAM + 2 * PAGE + 64, 0, 0);
	expect_emulation(1);
	memcpy(state, rig.b + 2 * PAGE + 64, sizeof(state));
	/* MXCSR's mask is there, so it was written. */
	ck_assert_uint_ne(*(uint64_t *)(state + 24),
			  rig_word(2 * PAGE + 64 + 24));
	overlay(6 * PAGE, state, sizeof(state));
	rig_do(&rig, 0, MACHINE_FPU_RESTORE, RAM + 6 * PAGE, 0, 0);
	expect_emulation(2);
	rig_free(&rig);
}

/* Nothing of ours is absent where this gives up: the VMM's business. */
TEST_COUNTED(mmio, emulation_that_is_not_ours, where_emulated)
{
	int err, ret, n = 0;
	enum kvmfault_action action;

	emulated(_i);
	ck_assert_int_eq(machine_call(&rig.machine->vcpu[0], MACHINE_JUMP,
				      RAM + (16 << 20), 0, 0, 0), 0);
	do {
		ret = rig_run(&rig, 0, &err);
		action = kvmfault_vcpu_handle(rig.vcpu[0], ret, err);
	} while (action == KVMFAULT_ACTION_RETRY && ++n < 100);
	ck_assert_int_eq(action, KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_uint_eq(rig.machine->vcpu[0].run->exit_reason,
			  KVM_EXIT_INTERNAL_ERROR);
	ck_assert_uint_eq(stats().fetched, 0);
	rig_free(&rig);
}

#ifdef __aarch64__

#define EXIT_ARM_NISV 28		/* 5.5 */

static void expect_not_ours(int want, int want_errno)
{
	int err, ret = rig_run(&rig, 0, &err);

	ck_assert_int_eq(ret, want);
	if (ret)
		ck_assert_int_eq(err, want_errno);
	ck_assert_int_eq(kvmfault_vcpu_handle(rig.vcpu[0], ret, err),
			 KVMFAULT_ACTION_NOT_A_FAULT);
}

static void put_the_slot_back(void)
{
	ck_assert_int_eq(machine_set_slot(rig.machine, SLOT, 0, RAM,
					  PAGES * PAGE, rig.a), 0);
}

/* An access of which the CPU does not say what it is (atomic, 16 bytes, two
 * registers) cannot be completed by anybody: it is the VMM's, which has to have
 * its memslots in place. Then it runs again. */
TEST_EACH(mmio, no_syndrome, COLUMNS)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_ARM_NISV_TO_USER };
	struct machine_vcpu *vcpu;

	exits(NO_SLOT * COLUMNS + _i);
	vcpu = &rig.machine->vcpu[0];
	ck_assert_int_eq(machine_call(vcpu, MACHINE_ADD, RAM, 30, 0, 0), 0);
	expect_not_ours(-1, ENOSYS);
	ck_assert_int_eq(ioctl(rig.machine->vm_fd, KVM_ENABLE_CAP, &cap), 0);
	expect_not_ours(0, 0);
	ck_assert_uint_eq(vcpu->run->exit_reason, EXIT_ARM_NISV);
	ck_assert_uint_eq(vcpu->run->arm_nisv.fault_ipa, RAM);
	ck_assert_uint_eq(stats().fetched, 0);
	put_the_slot_back();
	expect_not_ours(0, 0);
	ck_assert(machine_done(vcpu, 0));
	ck_assert_uint_eq(machine_result(vcpu), rig_word(0));
	ck_assert_uint_eq(*(uint64_t *)rig.b, rig_word(0) + 30);
	rig_free(&rig);
}

#endif

int main(void)
{
	int ways;

	need("kvm");
	need("uffd");
	ways = rig_ways();
	each_way = COLUMNS * ways;
	where_emulated = ways > EMULATED ? COLUMNS : 0;
	return run_suite("kvm mmio");
}
