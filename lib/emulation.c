/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Entrance emulation: KVM's emulator gave up on an instruction, maybe because a
 * page that it needs is absent. In: an internal error that tells nothing but
 * RIP. Out: the pages of the code and of its operands present and the queued
 * #UD taken back, so that the instruction runs again; or not a fault.
 */

#include <string.h>

#include "abi.h"
#include "internal.h"

#ifdef __x86_64__

#define CODE_MAX 15		/* the longest instruction */
#define OPERAND_MAX 512		/* the largest operand: FXSAVE's */
#define UD 6

struct attempt {
	struct kvmfault_vcpu *vcpu;
	struct kvmfault__answer answer;
	bool came;
};

/* Make the page at a linear address present; its gpa, or false: not RAM of
 * ours, or it failed. */
static bool need(struct attempt *a, uint64_t linear, uint64_t *gpa)
{
	struct kvm_translation translation = { .linear_address = linear };
	struct kvmfault_vcpu *vcpu = a->vcpu;
	struct kvmfault_fault fault = vcpu->fault;
	struct kvmfault__answer answer;

	if (kvmfault__sys_ioctl(vcpu->fd, KVM_TRANSLATE, &translation) ||
	    !translation.valid)
		return false;
	*gpa = translation.physical_address;
	fault.known = KVMFAULT_KNOWN_GPA;
	fault.gpa = *gpa & ~(KVMFAULT__PAGE - 1);
	fault.length = KVMFAULT__PAGE;
	answer = kvmfault__resolve_gpa(vcpu->seat, &fault, fault.gpa);
	if (answer.reason == KVMFAULT_REASON_NO_REGION)
		return false;
	if (answer.action != KVMFAULT_RETRY)
		a->answer = answer;
	else
		a->came |= answer.came;
	return answer.action == KVMFAULT_RETRY;
}

static void need_range(struct attempt *a, uint64_t linear, uint64_t length)
{
	uint64_t gpa, last = linear + length - 1;

	need(a, linear, &gpa);
	if ((linear ^ last) & ~(KVMFAULT__PAGE - 1))
		need(a, last, &gpa);
}

static bool registers(struct kvmfault_vcpu *vcpu, struct kvmfault__x86 *cpu)
{
	struct kvm_sregs s;
	struct kvm_regs r;

	if (kvmfault__sys_ioctl(vcpu->fd, KVM_GET_REGS, &r) ||
	    kvmfault__sys_ioctl(vcpu->fd, KVM_GET_SREGS, &s))
		return false;
	*cpu = (struct kvmfault__x86){
		.gpr = { r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi,
			 r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
			 r.r15 },
		.rip = r.rip,
		.segment = { s.es.base, s.cs.base, s.ss.base, s.ds.base,
			     s.fs.base, s.gs.base },
		.long_mode = s.cs.l,
		.big = s.cs.db,
	};
	if (cpu->long_mode)	/* those bases do not count there */
		memset(cpu->segment, 0, 4 * sizeof(cpu->segment[0]));
	return true;
}

/* The instruction's bytes, out of guest memory that need() made present. */
static size_t fetch(struct attempt *a, uint64_t linear, uint8_t *code)
{
	struct kvmfault_vcpu *vcpu = a->vcpu;
	size_t done = 0;

	while (done < CODE_MAX) {
		struct kvmfault__region *region;
		uint64_t gpa, step;

		if (!need(a, linear + done, &gpa))
			break;
		step = KVMFAULT__PAGE - gpa % KVMFAULT__PAGE;
		if (step > CODE_MAX - done)
			step = CODE_MAX - done;
		region = kvmfault__region_find(vcpu->seat,
					       vcpu->fault.address_space, gpa);
		if (region && region->span.memory)
			memcpy(code + done, (char *)region->span.memory->host +
			       kvmfault__region_offset(region, gpa), step);
		kvmfault__leave(vcpu->seat);
		if (!region || !region->span.memory)
			break;
		done += step;
	}
	return done;
}

/* Unless the VMM has KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM has queued #UD for
 * the guest by now, which must not see it. */
static int take_back_ud(struct kvmfault_vcpu *vcpu)
{
	struct kvm_vcpu_events events;
	int err;

	err = kvmfault__sys_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events);
	if (err)
		return err;
	if (events.exception.nr != UD ||
	    !(events.exception.injected || events.exception.pending))
		return 0;
	memset(&events.exception, 0, sizeof(events.exception));
	/* Only what is said to be valid is set: nothing else changes. */
	events.flags &= KVM_VCPUEVENT_VALID_PAYLOAD;
	return kvmfault__sys_ioctl(vcpu->fd, KVM_SET_VCPU_EVENTS, &events);
}

static void verdict(struct attempt *a, uint64_t rip)
{
	/* A page that failed may be one that the instruction has no use for:
	 * it counts when none came. */
	if (!a->came && a->answer.action != KVMFAULT_NOT_A_FAULT)
		return;
	a->answer = (struct kvmfault__answer){ .action = KVMFAULT_RETRY,
					       .came = a->came };
	/* Nothing was absent: maybe another thread was faster. Once. */
	if (!a->came && a->vcpu->emulation_rip == rip)
		a->answer.action = KVMFAULT_NOT_A_FAULT;
	a->vcpu->emulation_rip = rip;
}

struct kvmfault__answer kvmfault__emulation(struct kvmfault_vcpu *vcpu)
{
	struct attempt a = {
		.vcpu = vcpu,
		.answer = { .action = KVMFAULT_NOT_A_FAULT },
	};
	uint8_t code[CODE_MAX];
	struct kvmfault__x86 cpu;
	uint64_t operand, linear;
	size_t length;

	if (!registers(vcpu, &cpu))
		return a.answer;
	linear = cpu.rip + (cpu.long_mode ? 0 : cpu.segment[1]);
	length = fetch(&a, linear, code);
	if (kvmfault__x86_operand(&cpu, code, length, &operand))
		need_range(&a, operand, OPERAND_MAX);
	/* Strings and the stack have no ModRM. */
	need_range(&a, cpu.gpr[4], 8);
	need_range(&a, cpu.gpr[6] + cpu.segment[3], 8);
	need_range(&a, cpu.gpr[7] + cpu.segment[0], 8);
	verdict(&a, cpu.rip);
	/* Whatever comes of it, KVM_RUN may be entered again by then. */
	if (a.answer.action != KVMFAULT_NOT_A_FAULT && take_back_ud(vcpu))
		a.answer.action = KVMFAULT_NOT_A_FAULT;
	return a.answer;
}

#else

/* arm64 KVM emulates no instruction that could meet an absent page. */
struct kvmfault__answer kvmfault__emulation(struct kvmfault_vcpu *vcpu)
{
	(void)vcpu;
	return (struct kvmfault__answer){ .action = KVMFAULT_NOT_A_FAULT };
}

#endif
