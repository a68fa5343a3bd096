/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Kind emulation: KVM's emulator gave up on an instruction, maybe because a
 * page that it needs is absent. In: an internal error that tells nothing but
 * RIP. Out: the pages of the instruction and of its operands are present and
 * the queued #UD is taken back, so that the instruction runs again. Or the exit
 * is not a fault.
 */

#include <string.h>

#include "../os/abi.h"
#include "entry.h"

#ifdef __x86_64__

#define OPERAND_MAX 512		/* the largest operand: FXSAVE's */
#define UD 6

struct emulation {
	struct kvmfault__task *task;
	struct kvmfault__x86 cpu;
	uint64_t code[2];	/* the gpa of its bytes on each page */
	uint32_t lengths[2];	/* and their number there */
	struct kvmfault__answer answer;	/* for a page that failed */
	bool came;		/* a page was absent and came */
	bool later;		/* a page could not come now: -EAGAIN */
};

/* If KVM reads guest memory for the call, it may sleep until a page comes. */
static int emulation_call_kvm(const struct kvmfault__task *task,
			      unsigned long request, void *arg)
{
	return kvmfault__sys_ioctl(task->fd, request, arg);
}

/* Make the page at a linear address present, and say its gpa. False: it is no
 * memory of the VM's regions, or it could not be made present. */
static bool emulation_ensure_page(struct emulation *e, uint64_t linear,
				  uint64_t *gpa)
{
	struct kvm_translation translation = { .linear_address = linear };
	struct kvmfault_fault fault = *e->task->fault;
	struct kvmfault__answer answer;

	/* A signal has ended the wait for an earlier page. */
	if (e->answer.action == KVMFAULT_ACTION_INTERRUPTED)
		return false;
	if (emulation_call_kvm(e->task, KVM_TRANSLATE, &translation) ||
	    !translation.valid)
		return false;
	*gpa = translation.physical_address;
	fault.known = KVMFAULT_KNOWN_GPA;
	fault.gpa = *gpa & ~(KVMFAULT__PAGE - 1);
	fault.length = KVMFAULT__PAGE;
	kvmfault__resolve_gpa(e->task->seat, &fault, fault.gpa, &answer);
	if (answer.reason == KVMFAULT_REASON_NO_REGION)
		return false;
	if (answer.action == KVMFAULT_ACTION_RETRY) {
		e->came |= answer.came;
		e->later |= answer.error == -EAGAIN;
	} else if (e->answer.action != KVMFAULT_ACTION_UNRESOLVED) {
		/* UNRESOLVED outranks PENDING and INTERRUPTED. */
		e->answer = answer;
	}
	return answer.action == KVMFAULT_ACTION_RETRY;
}

static void emulation_ensure_range(struct emulation *e, uint64_t linear,
				   uint64_t length)
{
	uint64_t gpa, last = linear + length - 1;

	emulation_ensure_page(e, linear, &gpa);
	if ((linear ^ last) & ~(KVMFAULT__PAGE - 1))
		emulation_ensure_page(e, last, &gpa);
}

static bool emulation_get_registers(const struct kvmfault__task *task,
				    struct kvmfault__x86 *cpu)
{
	struct kvm_sregs s;
	struct kvm_regs r;

	if (emulation_call_kvm(task, KVM_GET_REGS, &r) ||
	    emulation_call_kvm(task, KVM_GET_SREGS, &s))
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
	if (cpu->long_mode)	/* 64-bit code ignores these bases */
		memset(cpu->segment, 0, 4 * sizeof(cpu->segment[0]));
	return true;
}

/* Make the instruction's bytes present, up to the first page that fails. */
static void emulation_ensure_code(struct emulation *e)
{
	const struct kvmfault__x86 *cpu = &e->cpu;
	uint64_t gpa, linear = cpu->rip +
			       (cpu->long_mode ? 0 : cpu->segment[1]);
	uint32_t done = 0, step;
	unsigned int n;

	for (n = 0; n < 2 && done < KVMFAULT__CODE; n++) {
		if (!emulation_ensure_page(e, linear + done, &gpa))
			break;
		step = (uint32_t)(KVMFAULT__PAGE - gpa % KVMFAULT__PAGE);
		if (step > KVMFAULT__CODE - done)
			step = KVMFAULT__CODE - done;
		e->code[n] = gpa;
		e->lengths[n] = step;
		done += step;
	}
}

/* Copy the instruction's bytes out of guest memory; returns their number. */
static size_t emulation_read_code(const struct emulation *e, uint8_t *code)
{
	struct kvmfault__seat *seat = e->task->seat;
	size_t done = 0;
	unsigned int n;

	for (n = 0; n < 2 && e->lengths[n]; n++) {
		struct kvmfault__region *region;
		struct kvmfault_memory *memory;
		uint64_t offset;

		region = kvmfault__region_find(seat,
					       e->task->fault->address_space,
					       e->code[n]);
		memory = region ? region->span.memory : NULL;
		if (!memory)
			break;
		offset = kvmfault__region_offset(region, e->code[n]);
		if (kvmfault__poisoned(memory, offset))
			break;
		memcpy(code + done, kvmfault__bytes(seat, memory, offset),
		       e->lengths[n]);
		kvmfault__unhold(seat, KVMFAULT__HAZARD_MAPPINGS);
		done += e->lengths[n];
	}
	kvmfault__leave(seat);
	return done;
}

static void emulation_ensure_operands(struct emulation *e)
{
	const struct kvmfault__x86 *cpu = &e->cpu;
	uint8_t code[KVMFAULT__CODE];
	uint64_t operand;

	if (kvmfault__x86_operand(cpu, code, emulation_read_code(e, code),
				  &operand))
		emulation_ensure_range(e, operand, OPERAND_MAX);
	/* String instructions and the stack use these registers, without a
	 * ModRM. */
	emulation_ensure_range(e, cpu->gpr[4], 8);
	emulation_ensure_range(e, cpu->gpr[6] + cpu->segment[3], 8);
	emulation_ensure_range(e, cpu->gpr[7] + cpu->segment[0], 8);
}

/* Unless the VMM has enabled KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM has queued
 * #UD, which the guest must not see. If the vCPU's thread has left, it will ask
 * again for the same instruction. */
static bool emulation_take_back_ud(struct kvmfault__task *task)
{
	struct kvm_vcpu_events events;
	int err;

	if (!kvmfault__hold_vcpu(task->seat)) {
		task->left = true;
		return false;
	}
	err = emulation_call_kvm(task, KVM_GET_VCPU_EVENTS, &events);
	if (!err && events.exception.nr == UD &&
	    (events.exception.injected || events.exception.pending)) {
		memset(&events.exception, 0, sizeof(events.exception));
		/* KVM sets only what the flags say is valid: nothing else
		 * changes. */
		events.flags &= KVM_VCPUEVENT_VALID_PAYLOAD;
		err = emulation_call_kvm(task, KVM_SET_VCPU_EVENTS, &events);
	}
	kvmfault__free_vcpu(task->seat);
	return !err;
}

static void emulation_conclude(const struct emulation *e,
			       struct kvmfault__answer *answer)
{
	kvmfault__say(answer, KVMFAULT_ACTION_RETRY);
	answer->came = e->came;
	/* The instruction may not need the page that failed: its answer counts
	 * only if no other page came. */
	if (!e->came && e->answer.action != KVMFAULT_ACTION_NOT_A_FAULT)
		*answer = e->answer;
	else if (!e->came && e->later)
		answer->error = -EAGAIN;
	/* Nothing was absent: another thread may have been faster. When the
	 * retry budget is used up, the exit is the VMM's, with the #UD. */
	else if (!e->came && e->task->last && e->task->rip == e->cpu.rip)
		answer->action = KVMFAULT_ACTION_NOT_A_FAULT;
}

static void emulation_do_task(struct kvmfault__task *task,
			      struct kvmfault__answer *answer)
{
	struct emulation e = { .task = task };

	kvmfault__say(answer, KVMFAULT_ACTION_NOT_A_FAULT);
	e.answer = *answer;
	if (!emulation_get_registers(task, &e.cpu))
		return;
	emulation_ensure_code(&e);
	emulation_ensure_operands(&e);
	emulation_conclude(&e, answer);
	/* After any other answer the VMM may enter KVM_RUN again, where the
	 * guest would see a queued #UD. */
	if (answer->action != KVMFAULT_ACTION_NOT_A_FAULT &&
	    !emulation_take_back_ud(task))
		kvmfault__say(answer, KVMFAULT_ACTION_NOT_A_FAULT);
	task->rip = e.cpu.rip;
}

void kvmfault__emulation(struct kvmfault_vcpu *vcpu,
			 struct kvmfault__answer *answer)
{
	struct kvmfault__task task = kvmfault__task(vcpu, emulation_do_task);

	task.rip = vcpu->resume.emulation_rip;
	task.last = kvmfault__last_retry(vcpu);
	vcpu->resume.emulating = kvmfault__perform(vcpu, &task, answer);
	vcpu->resume.emulation_rip = task.rip;
}

#else

/* On arm64 KVM emulates no instruction that could meet an absent page. */
void kvmfault__emulation(struct kvmfault_vcpu *vcpu,
			 struct kvmfault__answer *answer)
{
	(void)vcpu;
	kvmfault__say(answer, KVMFAULT_ACTION_NOT_A_FAULT);
}

#endif
