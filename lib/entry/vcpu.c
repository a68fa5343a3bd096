/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The call after KVM_RUN: from decode to the action, on the vCPU's own thread.
 * In: what KVM_RUN returned. Out: the action that tells the VMM what to do
 * next. Retries are bounded: the guard counts answers without progress, for
 * faults of any kind.
 */

#include <string.h>

#include "../os/abi.h"
#include "entry.h"
#include "../os/trace.h"

#define NO_MMIO 0			/* mmio_length: none is half done */

static int vcpu_check_options(struct kvmfault_vm *vm,
			      const struct kvmfault_vcpu_options *o)
{
	int flags;

	if (o->fd <= 0 || !o->run)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_vcpu_options.%s: the member is not set%s",
			o->run ? "fd" : "run", o->run ?
			" (0 means no descriptor: duplicate one that is 0)" :
			"");
	if (o->profile > KVMFAULT_PROFILE_DELEGATE)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_vcpu_options.profile: %u is no profile that this version knows for a vCPU: use KVMFAULT_PROFILE_INLINE or KVMFAULT_PROFILE_DELEGATE",
			(unsigned int)o->profile);
	if (o->sigbus > KVMFAULT_SIGBUS_HANDLER)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_vcpu_options.sigbus: %u is no way that this version knows: use KVMFAULT_SIGBUS_MASKED or KVMFAULT_SIGBUS_HANDLER",
			(unsigned int)o->sigbus);
	flags = kvmfault__sys_getfl(o->fd);
	return flags < 0 ? kvmfault__refuse(vm, flags,
		"kvmfault_vcpu_options.fd: descriptor %d is not open: pass the vCPU's, and close it after kvmfault_vcpu_free()",
		o->fd) : 0;
}

static void vcpu_forget_source(struct kvmfault_vcpu *vcpu)
{
	vcpu->source.failures = 0;
	vcpu->source.due = 0;
}

/* Take the seats of the threads that do the vCPU's work. */
static int vcpu_take_seats(struct kvmfault_vcpu *vcpu,
			   const struct kvmfault_vcpu_options *o)
{
	vcpu->seat = kvmfault__seat_take(vcpu->vm);
	if (!vcpu->seat)
		return -ENOMEM;
	vcpu->seat->immediate_exit = &o->run->immediate_exit;
	vcpu->seat->vcpu = vcpu;
	vcpu->seat->no_wait = o->no_wait;
	return o->profile == KVMFAULT_PROFILE_DELEGATE ?
		kvmfault__worker_take(vcpu) : 0;
}

static void vcpu_delete(struct kvmfault_vcpu *vcpu)
{
	kvmfault__worker_give(vcpu);
	if (vcpu->seat)
		kvmfault__seat_give(vcpu->seat);
	kvmfault__sys_free(vcpu);
}

KVMFAULT__EXPORT
int kvmfault_vcpu_new(struct kvmfault_vm *vm,
		      const struct kvmfault_vcpu_options *options,
		      struct kvmfault_vcpu **vcpu)
{
	struct kvmfault_vcpu_options ours;
	struct kvmfault_vcpu *new;
	int err;

	if (!vcpu)
		return kvmfault__no_place(vm, "kvmfault_vcpu_new");
	*vcpu = NULL;
	err = kvmfault__options_in(vm, "kvmfault_vcpu_options", &ours,
				   sizeof(ours), options);
	if (!err)
		err = vm ? vcpu_check_options(vm, &ours) : -EINVAL;
	if (err)
		return err;
	new = kvmfault__sys_alloc(sizeof(*new), 0);
	if (!new)
		return -ENOMEM;
	new->vm = vm;
	new->fd = ours.fd;
	new->run = ours.run;
	new->result.size = sizeof(new->result);
	new->result.fault = &new->fault;
	new->result.history = new->past.events;
	new->fault.size = sizeof(new->fault);
	err = vcpu_take_seats(new, &ours);
	if (!err)
		err = kvmfault__signal_new(new, &ours);
	if (err) {
		vcpu_delete(new);
		return err;
	}
	kvmfault__vcpu_counted(new, &new->before);
	new->prefault = vm->options.prefault && kvmfault__can_prefault(new->fd);
	kvmfault__guard_start(new);
	kvmfault__sys_lock(&vm->lock);
	vm->vcpus++;
	kvmfault__sys_unlock(&vm->lock);
	*vcpu = new;
	kvmfault__expect_service(vm);
	return 0;
}

static void vcpu_forget_access(struct kvmfault_vcpu *vcpu)
{
	vcpu->resume.mmio_length = NO_MMIO;
	vcpu->resume.emulating = false;
	vcpu->result.unfinished = false;
}

KVMFAULT__EXPORT
void kvmfault_vcpu_reset(struct kvmfault_vcpu *vcpu)
{
	if (!vcpu)
		return;
	kvmfault__forget_pending(vcpu);
	vcpu_forget_access(vcpu);
	vcpu_forget_source(vcpu);
	vcpu->past.count = 0;
	kvmfault__guard_start(vcpu);
}

KVMFAULT__EXPORT
void kvmfault_vcpu_free(struct kvmfault_vcpu *vcpu)
{
	struct kvmfault_vm *vm;

	if (!vcpu || kvmfault__is_child(vcpu->vm))
		return;
	vm = vcpu->vm;
	kvmfault__signal_free(vcpu);
	kvmfault__forget_pending(vcpu);
	vcpu_delete(vcpu);
	kvmfault__sys_lock(&vm->lock);
	vm->vcpus--;
	kvmfault__sys_unlock(&vm->lock);
}

/* True while an access is half done: the VMM must not enter KVM_RUN. */
static bool vcpu_is_unfinished(const struct kvmfault_vcpu *vcpu)
{
	return vcpu->resume.mmio_length != NO_MMIO || vcpu->resume.emulating;
}

/* The VMM's action: if an access is half done, an action after which the VMM
 * would enter KVM_RUN has another name. */
static enum kvmfault_action
vcpu_choose_action(const struct kvmfault_vcpu *vcpu,
		   const struct kvmfault__answer *answer)
{
	if (!vcpu_is_unfinished(vcpu))
		return answer->action;
	switch (answer->action) {
	case KVMFAULT_ACTION_INTERRUPTED:
		return KVMFAULT_ACTION_UNFINISHED;
	case KVMFAULT_ACTION_PENDING:
		return KVMFAULT_ACTION_PENDING_UNFINISHED;
	default:
		return answer->action;
	}
}

static enum kvmfault_action
vcpu_finish_fault(struct kvmfault_vcpu *vcpu,
		  const struct kvmfault__answer *answer)
{
	struct kvmfault_result *result = &vcpu->result;

	result->action = vcpu_choose_action(vcpu, answer);
	result->reason = answer->reason;
	result->error = answer->error;
	result->resolver = answer->resolver;
	result->siginfo = NULL;
	result->unfinished = vcpu_is_unfinished(vcpu);
	kvmfault__add(vcpu->seat, KVMFAULT__COUNTER(action) + result->action,
		      1);
	if (answer->action == KVMFAULT_ACTION_UNRESOLVED) {
		kvmfault__count(vcpu->seat, unresolved);
		KVMFAULT__TRACE(unresolved, vcpu->fault.kind,
				vcpu->fault.gpa, vcpu->fault.hva,
				answer->reason, answer->error);
	}
	kvmfault__remember(vcpu);
	return result->action;
}

/* Fill in the result of an exit that is not a memory fault. */
static enum kvmfault_action vcpu_finish_no_fault(struct kvmfault_vcpu *vcpu,
						 enum kvmfault_action action)
{
	vcpu->fault.kind = KVMFAULT_KIND_NONE;
	vcpu->result.action = action;
	vcpu->result.reason = KVMFAULT_REASON_NONE;
	vcpu->result.error = 0;
	vcpu->result.resolver = NULL;
	vcpu->result.siginfo = NULL;
	vcpu->result.unfinished = vcpu_is_unfinished(vcpu);
	return action;
}

static void vcpu_resolve_gpa(struct kvmfault__task *task,
			     struct kvmfault__answer *answer)
{
	kvmfault__resolve_gpa(task->seat, task->fault, task->fault->gpa,
			      answer);
}

static void vcpu_resolve_hva(struct kvmfault__task *task,
			     struct kvmfault__answer *answer)
{
	kvmfault__sigbus(task->seat, task->fault, answer);
}

/* Resolve the whole fault by one task. */
static void vcpu_perform_task(struct kvmfault_vcpu *vcpu, kvmfault__work *work,
			      struct kvmfault__answer *answer)
{
	struct kvmfault__task task = kvmfault__task(vcpu, work);

	kvmfault__perform(vcpu, &task, answer);
}

/* False for a SIGBUS in the VMM's own memory, which needs no worker. */
static bool vcpu_is_guest_hva(struct kvmfault_vcpu *vcpu)
{
	bool ours = kvmfault__mapping_find(vcpu->seat, 0, vcpu->fault.hva);

	kvmfault__leave(vcpu->seat);
	return ours;
}

/* An error without an address may have been a race: KVM_RUN is tried again. */
static void vcpu_resolve_bare(const struct kvmfault_vcpu *vcpu,
			      struct kvmfault__answer *answer)
{
	kvmfault__say(answer, KVMFAULT_ACTION_RETRY);
	if (vcpu->fault.error == EHWPOISON)
		kvmfault__unresolved(answer, KVMFAULT_REASON_HWPOISON,
				     -EHWPOISON);
}

static void vcpu_resolve_once(struct kvmfault_vcpu *vcpu,
			      struct kvmfault__answer *answer)
{
	switch (vcpu->fault.kind) {
	case KVMFAULT_KIND_EXIT:
		/* The record is used up: a later bare error must not be taken
		 * for one with this address. */
		vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
		vcpu_perform_task(vcpu, vcpu_resolve_gpa, answer);
		return;
	case KVMFAULT_KIND_MARKER:
	case KVMFAULT_KIND_FAILURE:
		kvmfault__say(answer, KVMFAULT_ACTION_NOT_A_FAULT);
		if (!vcpu->task.worker || vcpu_is_guest_hva(vcpu))
			vcpu_perform_task(vcpu, vcpu_resolve_hva, answer);
		return;
	case KVMFAULT_KIND_MMIO:
		kvmfault__mmio(vcpu, answer);
		return;
	case KVMFAULT_KIND_EMULATION:
		kvmfault__emulation(vcpu, answer);
		return;
	default:
		vcpu_resolve_bare(vcpu, answer);
	}
}

/* True if the source is to be asked again, after a pause. Memory that failed in
 * hardware does not recover. */
static bool vcpu_may_retry_source(struct kvmfault_vcpu *vcpu,
				  const struct kvmfault__answer *answer)
{
	uint32_t n = vcpu->source.failures;

	if (answer->action != KVMFAULT_ACTION_UNRESOLVED ||
	    answer->reason != KVMFAULT_REASON_SOURCE ||
	    answer->error == -EHWPOISON || vcpu->seat->no_wait ||
	    n >= vcpu->vm->options.source_retries)
		return false;
	vcpu->source.due = vcpu->task.ended +
			   kvmfault__backoff(KVMFAULT__FAILED_PAUSE, n,
					     KVMFAULT__FAILED_STEPS);
	vcpu->source.failures++;
	kvmfault__count(vcpu->seat, retried);
	return true;
}

/* Resolve the fault; if its source fails, again after a pause, as often as
 * source_retries says. */
static void vcpu_resolve_patiently(struct kvmfault_vcpu *vcpu,
				   struct kvmfault__answer *answer)
{
	/* Read before the fault is translated, which changes the key. */
	uint64_t what = kvmfault__guard_key(vcpu);

	if (vcpu->source.key != what)
		vcpu_forget_source(vcpu);
	vcpu->source.key = what;
	do
		vcpu_resolve_once(vcpu, answer);
	while (vcpu_may_retry_source(vcpu, answer));
	/* The instruction is known only after it was resolved. */
	if (vcpu->fault.kind == KVMFAULT_KIND_EMULATION)
		vcpu->source.key = kvmfault__guard_key(vcpu);
	if (answer->action != KVMFAULT_ACTION_INTERRUPTED)
		vcpu_forget_source(vcpu);
}

/* True if the VMM entered KVM_RUN although an access was half done: the guest
 * has gone on with arbitrary bytes, or with a #UD. */
static bool vcpu_has_lost_access(const struct kvmfault_vcpu *vcpu)
{
	const struct kvmfault_fault *fault = &vcpu->fault;

	if (vcpu->resume.emulating)
		return fault->kind != KVMFAULT_KIND_EMULATION;
	return vcpu->resume.mmio_length != NO_MMIO &&
	       (fault->kind != KVMFAULT_KIND_MMIO ||
		fault->gpa != vcpu->resume.mmio_gpa ||
		fault->length != vcpu->resume.mmio_length);
}

static bool vcpu_is_plain_exit(int ret, const struct kvm_run *run)
{
	return !ret && run->exit_reason != KVM_EXIT_MMIO &&
	       run->exit_reason != KVM_EXIT_INTERNAL_ERROR;
}

static enum kvmfault_action vcpu_handle_fault(struct kvmfault_vcpu *vcpu)
{
	const struct kvmfault_fault *fault = &vcpu->fault;
	struct kvmfault__inside inside;
	struct kvmfault__answer answer;

	KVMFAULT__TRACE(fault, vcpu, fault->kind, fault->access, fault->gpa,
			fault->hva, fault->length, fault->flags);
	vcpu->guard.faulted = true;
	vcpu->task.anew = true;
	vcpu->task.began = vcpu->task.ended = 0;
	kvmfault__enter(&inside, vcpu->seat, NULL);
	vcpu_resolve_patiently(vcpu, &answer);
	kvmfault__exit(&inside);
	if (answer.action == KVMFAULT_ACTION_NOT_A_FAULT) {
		kvmfault__guard_start(vcpu);
		return vcpu_finish_no_fault(vcpu, KVMFAULT_ACTION_NOT_A_FAULT);
	}
	kvmfault__add(vcpu->seat, KVMFAULT__COUNTER(kind) +
		      fault->kind, 1);
	kvmfault__guard(vcpu, &answer);
	if (answer.action == KVMFAULT_ACTION_RETRY)
		kvmfault__latency(vcpu->seat,
				  vcpu->task.ended - vcpu->task.began);
	return vcpu_finish_fault(vcpu, &answer);
}

static enum kvmfault_action vcpu_handle_decoded(struct kvmfault_vcpu *vcpu)
{
	if (vcpu->fault.kind != KVMFAULT_KIND_NONE)
		return vcpu_handle_fault(vcpu);
	return vcpu_finish_no_fault(vcpu, KVMFAULT_ACTION_NOT_A_FAULT);
}

static void vcpu_decode_signal(struct kvmfault_vcpu *vcpu, const void *siginfo)
{
	memset(&vcpu->fault, 0, sizeof(vcpu->fault));
	vcpu->fault.size = sizeof(vcpu->fault);
	kvmfault_decode_siginfo(siginfo, &vcpu->fault);
}

/* The library took this SIGBUS from the thread's queue, and it is not guest
 * memory's: the VMM has to handle it. */
static enum kvmfault_action vcpu_hand_on_signal(struct kvmfault_vcpu *vcpu)
{
	vcpu_finish_no_fault(vcpu, KVMFAULT_ACTION_INTERRUPTED);
	vcpu->result.siginfo = vcpu->sigbus.siginfo;
	return KVMFAULT_ACTION_INTERRUPTED;
}

static enum kvmfault_action vcpu_report_lost_access(struct kvmfault_vcpu *vcpu)
{
	const struct kvmfault__answer lost = {
		.action = KVMFAULT_ACTION_UNRESOLVED,
		.reason = KVMFAULT_REASON_LOST_MMIO,
	};

	vcpu_forget_access(vcpu);
	return vcpu_finish_fault(vcpu, &lost);
}

/* A signal does not count as progress: else a periodic timer would keep a vCPU
 * spinning past its retry budget. */
static enum kvmfault_action vcpu_handle_interruption(struct kvmfault_vcpu *vcpu)
{
	enum kvmfault_action action;

	if (!kvmfault__signal_take(vcpu))
		return vcpu_finish_no_fault(vcpu, KVMFAULT_ACTION_INTERRUPTED);
	vcpu_decode_signal(vcpu, vcpu->sigbus.siginfo);
	action = vcpu_handle_decoded(vcpu);
	return action == KVMFAULT_ACTION_NOT_A_FAULT ?
		vcpu_hand_on_signal(vcpu) : action;
}

/* A function of its own, so that an exit that is no fault pays for none of
 * it. */
__attribute__((noinline))
static enum kvmfault_action vcpu_decode_and_handle(struct kvmfault_vcpu *vcpu,
						   int ret, int err)
{
	KVMFAULT__TRACE(exit, vcpu, ret, err, vcpu->run->exit_reason);
	kvmfault__decode(ret, err, vcpu->run, &vcpu->fault);
	if (vcpu->vm->how.kernel_exit)
		kvmfault__exit_access(vcpu->vm, &vcpu->fault);
	if (vcpu_has_lost_access(vcpu))
		return vcpu_report_lost_access(vcpu);
	if (ret < 0 && err == EINTR)
		return vcpu_handle_interruption(vcpu);
	return vcpu_handle_decoded(vcpu);
}

KVMFAULT__EXPORT
enum kvmfault_action kvmfault_vcpu_handle(struct kvmfault_vcpu *vcpu, int ret,
				     int err)
{
	if (!vcpu)
		return KVMFAULT_ACTION_UNRESOLVED;
	if (!vcpu_is_plain_exit(ret, vcpu->run) || vcpu_is_unfinished(vcpu))
		return vcpu_decode_and_handle(vcpu, ret, err);
	if (vcpu->guard.faulted)
		kvmfault__guard_start(vcpu);
	return vcpu_finish_no_fault(vcpu, KVMFAULT_ACTION_NOT_A_FAULT);
}

KVMFAULT__EXPORT
enum kvmfault_action kvmfault_vcpu_handle_sigbus(struct kvmfault_vcpu *vcpu,
					    const void *siginfo)
{
	if (!vcpu)
		return KVMFAULT_ACTION_UNRESOLVED;
	vcpu_decode_signal(vcpu, siginfo);
	return vcpu_handle_decoded(vcpu);
}
