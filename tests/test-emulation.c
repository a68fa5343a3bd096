/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * emulation.c: KVM's emulator gave up. The fake's vCPU is a page of registers
 * and a flat translation; guest memory is the bed's.
 */

#include <string.h>

#include "bed.h"

#ifdef __x86_64__

#define CODE (BED_GPA + 4 * PAGE)
#define OPERAND (BED_GPA + 8 * PAGE)
#define STACK (BED_GPA + 12 * PAGE)
#define LINEAR 0x10000000ULL	/* linear = gpa + this */
#define NOWHERE 0x7000000000ULL
#define BUDGET 16	/* of retries */
#define UD 6

static struct kvm_regs regs;
static struct kvm_sregs sregs;
static struct kvm_vcpu_events events, set;
static unsigned int sets;

static bool translate(struct kvm_translation *t)
{
	t->valid = t->linear_address >= LINEAR && t->linear_address < NOWHERE;
	t->physical_address = t->linear_address - LINEAR;
	return true;
}

static bool vcpu_calls(struct fake_call *call)
{
	call->result = 0;
	switch (call->number) {
	case KVM_GET_REGS:
		memcpy(call->arg, &regs, sizeof(regs));
		return true;
	case KVM_GET_SREGS:
		memcpy(call->arg, &sregs, sizeof(sregs));
		return true;
	case KVM_TRANSLATE:
		return translate(call->arg);
	case KVM_GET_VCPU_EVENTS:
		memcpy(call->arg, &events, sizeof(events));
		return true;
	case KVM_SET_VCPU_EVENTS:
		memcpy(&set, call->arg, sizeof(set));
		sets++;
		return true;
	}
	return false;
}

static void up(void)
{
	static const unsigned char code[] = { 0x0f, 0xae, 0x03 };

	bed_up();
	fake_on(FAKE_IOCTL, vcpu_calls);
	regs.rip = CODE + LINEAR;
	regs.rbx = OPERAND + LINEAR;	/* fxsave (%rbx) */
	regs.rsp = STACK + LINEAR;
	regs.rsi = regs.rdi = NOWHERE;
	sregs.cs.l = 1;
	sregs.cs.base = sregs.ds.base = 0x12345000;	/* do not count */
	events.exception.injected = 1;
	events.exception.nr = UD;
	events.flags = 0xff;
	/* The code's page comes with its instruction. */
	memset(bed_page(4), 0x90, PAGE);
	memcpy(bed_page(4), code, sizeof(code));
}

static enum kvmfault_action give_up(void)
{
	bed.run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
	bed.run->internal.suberror = 1;
	return bed_handle(0, 0);
}

/* Nothing is absent: as often as the guard has patience, and then not ours. */
static void give_up_for_good(void)
{
	unsigned int n;

	for (n = 0; n < BUDGET; n++)
		ck_assert_int_eq(give_up(), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_NOT_A_FAULT);
}

static void make_present(uint64_t page)
{
	fake_put(bed.fd, page * PAGE);
	kvmfault__page_change(bed.memory, page, KVMFAULT__ABSENT,
			      KVMFAULT__PRESENT);
}

static void all_present(void)
{
	make_present(4);
	make_present(8);
	make_present(12);
}

TEST_GROUP(x86, up, bed_down);

TEST(x86, operand_is_absent)
{
	make_present(4);
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(8), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(12), KVMFAULT__PRESENT);
	ck_assert_uint_eq(bed.reads, 2);
	ck_assert_uint_eq(bed_stats().kind[KVMFAULT_KIND_EMULATION],
			  1);
}

TEST(x86, operand_across_pages)
{
	make_present(4);
	regs.rbx += PAGE - 16;
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(8), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(9), KVMFAULT__PRESENT);
}

TEST(x86, code_is_absent)
{
	make_present(8);
	make_present(12);
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(4), KVMFAULT__PRESENT);
}

TEST(x86, code_across_pages)
{
	static const unsigned char code[] = { 0x0f, 0xae, 0x03 };

	make_present(4);
	make_present(5);
	memcpy(bed_page(5) - 1, code, sizeof(code));
	regs.rip = CODE + LINEAR + PAGE - 1;
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(8), KVMFAULT__PRESENT);
}

TEST(x86, ud_is_taken_back)
{
	make_present(4);
	give_up();
	ck_assert_uint_eq(sets, 1);
	ck_assert_uint_eq(set.exception.injected, 0);
	ck_assert_uint_eq(set.exception.pending, 0);
	ck_assert_uint_eq(set.exception.nr, 0);
	/* Nothing else is said to be valid, and so nothing else changes. */
	ck_assert_uint_eq(set.flags & ~(uint32_t)KVM_VCPUEVENT_VALID_PAYLOAD,
			  0);
}

TEST(x86, another_exception_stays)
{
	make_present(4);
	events.exception.nr = 14;
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(sets, 0);
	events.exception.nr = UD;
	events.exception.injected = 0;
	regs.rbx += PAGE;
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(sets, 0);
}

TEST_EACH(x86, another_exit_starts_anew, 2)
{
	if (_i)
		all_present();
	else
		make_present(4);	/* the rest comes by the first */
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_other(), KVMFAULT_ACTION_NOT_A_FAULT);
	give_up_for_good();
}

TEST(x86, nothing_was_absent)
{
	all_present();
	/* Other threads may have been faster. */
	give_up_for_good();
	/* It is the VMM's now, with its #UD. */
	ck_assert_uint_eq(sets, BUDGET);
	ck_assert_uint_eq(bed.reads, 0);
}

TEST(x86, other_instruction)
{
	all_present();
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_RETRY);
	regs.rip++;
	give_up_for_good();
}

TEST(x86, strings)
{
	make_present(4);
	regs.rsi = BED_GPA + 1 * PAGE + LINEAR;
	regs.rdi = BED_GPA + 2 * PAGE + LINEAR;
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(1), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(2), KVMFAULT__PRESENT);
}

TEST(x86, source_fails)
{
	make_present(4);
	bed.source_result = -EIO;
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(kvmfault_vcpu_result(bed.vcpu)->reason,
			 KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(kvmfault_vcpu_result(bed.vcpu)->error, -EIO);
}

TEST_EACH(x86, vcpu_cannot_be_asked, 3)
{
	static const uint64_t requests[] = {
		KVM_GET_REGS, KVM_GET_SREGS, KVM_TRANSLATE,
	};

	fake_refuse(FAKE_IOCTL, requests[_i], -EIO);
	make_present(4);
	/* Without an answer nothing is made present, nothing taken back... */
	if (requests[_i] == KVM_TRANSLATE)
		give_up_for_good();
	else
		ck_assert_int_eq(give_up(), KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_uint_eq(bed.reads, 0);
}

TEST_EACH(x86, ud_cannot_be_taken_back, 2)
{
	static const uint64_t requests[] = {
		KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS,
	};

	/* To run it would give the guest a #UD: the VMM decides. */
	fake_refuse(FAKE_IOCTL, requests[_i], -EIO);
	make_present(4);
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_NOT_A_FAULT);
}

TEST(x86, other_internal_errors)
{
	bed.run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
	bed.run->internal.suberror = 2;
	ck_assert_int_eq(bed_handle(0, 0),
			 KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, KVM_GET_REGS), 0);
}

TEST(x86, protected_mode)
{
	sregs.cs.l = 0;
	sregs.cs.db = 1;
	sregs.cs.base = LINEAR;
	sregs.ds.base = LINEAR;
	regs.rip = CODE;
	regs.rbx = OPERAND;
	make_present(4);
	ck_assert_int_eq(give_up(), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(8), KVMFAULT__PRESENT);
}

#else

TEST_GROUP(other, bed_up, bed_down);

TEST(other, never_a_fault)
{
	bed.run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
	bed.run->internal.suberror = 1;
	ck_assert_int_eq(bed_handle(0, 0),
			 KVMFAULT_ACTION_NOT_A_FAULT);
}

#endif

int main(void)
{
	return run_suite("emulation");
}
