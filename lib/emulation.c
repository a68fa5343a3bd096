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

#define OPERAND_MAX 512		/* the largest operand: FXSAVE's */
#define UD 6

/* The vCPU's thread waits meanwhile, or has left. */
static int ask_vcpu(struct kvmfault_vcpu *vcpu, unsigned long request,
		    void *arg)
{
	int err;

	if (!kvmfault__hold_vcpu(vcpu->seat))
		return -EINTR;
	err = kvmfault__sys_ioctl(vcpu->fd, request, arg);
	kvmfault__free_vcpu(vcpu->seat);
	return err;
}

/* Make the page at a linear address present; its gpa, or false: not RAM of
 * ours, or it failed. */
static bool need(struct kvmfault_vcpu *vcpu, uint64_t linear, uint64_t *gpa)
{
	struct kvm_translation translation = { .linear_address = linear };
	struct kvmfault__emulation *e = &vcpu->emulation;
	struct kvmfault_fault fault = *vcpu->task->fault;
	struct kvmfault__answer answer;

	if (ask_vcpu(vcpu, KVM_TRANSLATE, &translation) || !translation.valid)
		return false;
	*gpa = translation.physical_address;
	fault.known = KVMFAULT_KNOWN_GPA;
	fault.gpa = *gpa & ~(KVMFAULT__PAGE - 1);
	fault.length = KVMFAULT__PAGE;
	kvmfault__resolve_gpa(vcpu->seat, &fault, fault.gpa, &answer);
	if (answer.reason == KVMFAULT_REASON_NO_REGION)
		return false;
	if (answer.action == KVMFAULT_RETRY)
		e->came |= answer.came;
	/* What has failed counts, whatever is on its way. */
	else if (!vcpu->seat->awaited &&
		 e->answer.action != KVMFAULT_UNRESOLVED)
		e->answer = answer;
	return answer.action == KVMFAULT_RETRY;
}

static void need_range(struct kvmfault_vcpu *vcpu, uint64_t linear,
		       uint64_t length)
{
	uint64_t gpa, last = linear + length - 1;

	need(vcpu, linear, &gpa);
	if ((linear ^ last) & ~(KVMFAULT__PAGE - 1))
		need(vcpu, last, &gpa);
}

static bool registers(struct kvmfault_vcpu *vcpu, struct kvmfault__x86 *cpu)
{
	struct kvm_sregs s;
	struct kvm_regs r;

	if (ask_vcpu(vcpu, KVM_GET_REGS, &r) ||
	    ask_vcpu(vcpu, KVM_GET_SREGS, &s))
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

/* ---- the tasks ---- */

/* Whatever became of the pages, it goes on; but a job's that is to wait for one
 * is done again. */
static void go_on(const struct kvmfault_vcpu *vcpu,
		  struct kvmfault__answer *answer)
{
	kvmfault__say(answer, vcpu->seat->awaited ? KVMFAULT_INTERRUPTED :
						    KVMFAULT_RETRY);
}

/* The registers, and the instruction's bytes present. */
static void find_code(struct kvmfault_vcpu *vcpu,
		      struct kvmfault__answer *answer)
{
	struct kvmfault__emulation *e = &vcpu->emulation;
	const struct kvmfault__x86 *cpu = &e->cpu;
	uint64_t gpa, linear;
	uint32_t done = 0, step;
	unsigned int n;

	kvmfault__say(answer, KVMFAULT_NOT_A_FAULT);
	if (!vcpu->seat->waited)
		*e = (struct kvmfault__emulation){ .answer = *answer };
	if (!registers(vcpu, &e->cpu))
		return;
	linear = cpu->rip + (cpu->long_mode ? 0 : cpu->segment[1]);
	for (n = 0; n < 2 && done < KVMFAULT__CODE; n++) {
		if (!need(vcpu, linear + done, &gpa))
			break;
		step = (uint32_t)(KVMFAULT__PAGE - gpa % KVMFAULT__PAGE);
		if (step > KVMFAULT__CODE - done)
			step = KVMFAULT__CODE - done;
		e->code[n] = gpa;
		e->lengths[n] = step;
		done += step;
	}
	go_on(vcpu, answer);
}

static void find_operands(struct kvmfault_vcpu *vcpu,
			  struct kvmfault__answer *answer)
{
	const struct kvmfault__emulation *e = &vcpu->emulation;
	const struct kvmfault__x86 *cpu = &e->cpu;

	if (e->has_operand)
		need_range(vcpu, e->operand, OPERAND_MAX);
	/* Strings and the stack have no ModRM. */
	need_range(vcpu, cpu->gpr[4], 8);
	need_range(vcpu, cpu->gpr[6] + cpu->segment[3], 8);
	need_range(vcpu, cpu->gpr[7] + cpu->segment[0], 8);
	go_on(vcpu, answer);
}

/* Unless the VMM has KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM has queued #UD for
 * the guest by now, which must not see it. */
static void take_back_ud(struct kvmfault_vcpu *vcpu,
			 struct kvmfault__answer *answer)
{
	struct kvm_vcpu_events events;
	int err;

	err = ask_vcpu(vcpu, KVM_GET_VCPU_EVENTS, &events);
	if (!err && events.exception.nr == UD &&
	    (events.exception.injected || events.exception.pending)) {
		memset(&events.exception, 0, sizeof(events.exception));
		/* Only what is said to be valid is set: nothing else
		 * changes. */
		events.flags &= KVM_VCPUEVENT_VALID_PAYLOAD;
		err = ask_vcpu(vcpu, KVM_SET_VCPU_EVENTS, &events);
	}
	kvmfault__say(answer, err ? KVMFAULT_NOT_A_FAULT : KVMFAULT_RETRY);
}

/* ---- the vCPU's thread, between them ---- */

/* The instruction's bytes, out of guest memory. */
static size_t read_code(struct kvmfault_vcpu *vcpu, uint8_t *code)
{
	const struct kvmfault__emulation *e = &vcpu->emulation;
	size_t done = 0;
	unsigned int n;

	for (n = 0; n < 2 && e->lengths[n]; n++) {
		struct kvmfault__region *region;
		struct kvmfault_memory *memory;
		uint64_t offset;

		region = kvmfault__region_find(vcpu->seat,
					       vcpu->fault.address_space,
					       e->code[n]);
		memory = region ? region->span.memory : NULL;
		if (!memory)
			break;
		offset = kvmfault__region_offset(region, e->code[n]);
		if (kvmfault__poisoned(memory, offset))
			break;
		memcpy(code + done, kvmfault__bytes(vcpu->seat, memory, offset),
		       e->lengths[n]);
		kvmfault__unhold(vcpu->seat, &vcpu->seat->mappings);
		done += e->lengths[n];
	}
	kvmfault__leave(vcpu->seat);
	return done;
}

static void verdict(const struct kvmfault_vcpu *vcpu,
		    struct kvmfault__answer *answer)
{
	const struct kvmfault__emulation *e = &vcpu->emulation;

	kvmfault__say(answer, KVMFAULT_RETRY);
	answer->came = e->came;
	/* A page that failed may be one that the instruction has no use for:
	 * it counts when none came. */
	if (!e->came && e->answer.action != KVMFAULT_NOT_A_FAULT)
		*answer = e->answer;
	/* Nothing was absent: maybe others were faster, as often as the guard
	 * has patience. Then it is the VMM's, with its #UD. */
	else if (!e->came && kvmfault__last_retry(vcpu))
		answer->action = KVMFAULT_NOT_A_FAULT;
}

static int perform(struct kvmfault_vcpu *vcpu, kvmfault__work *work,
		   struct kvmfault__answer *answer)
{
	struct kvmfault__task task = kvmfault__task(vcpu, work);
	int err = kvmfault__perform(vcpu, &task, answer);

	vcpu->emulating = err;
	return err;
}

void kvmfault__emulation(struct kvmfault_vcpu *vcpu,
			 struct kvmfault__answer *answer)
{
	struct kvmfault__emulation *e = &vcpu->emulation;
	struct kvmfault__answer taken_back;
	uint8_t code[KVMFAULT__CODE];

	if (perform(vcpu, find_code, answer) ||
	    answer->action == KVMFAULT_NOT_A_FAULT)
		return;
	e->has_operand = kvmfault__x86_operand(&e->cpu, code,
					       read_code(vcpu, code),
					       &e->operand);
	if (perform(vcpu, find_operands, answer))
		return;
	verdict(vcpu, answer);
	/* Whatever comes of it, KVM_RUN may be entered again by then. */
	if (answer->action != KVMFAULT_NOT_A_FAULT &&
	    (perform(vcpu, take_back_ud, &taken_back) ||
	     taken_back.action == KVMFAULT_NOT_A_FAULT))
		*answer = taken_back;
}

#else

/* arm64 KVM emulates no instruction that could meet an absent page. */
void kvmfault__emulation(struct kvmfault_vcpu *vcpu,
			 struct kvmfault__answer *answer)
{
	(void)vcpu;
	kvmfault__say(answer, KVMFAULT_NOT_A_FAULT);
}

#endif
