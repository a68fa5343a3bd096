/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The call after KVM_RUN: from decode to the action, on the vCPU's own thread.
 * In: what KVM_RUN returned. Out: what to do next. A retry is bounded: the
 * guard counts answers without progress, whatever the entrance.
 */

#include <string.h>

#include "../os/abi.h"
#include "entry.h"
#include "../os/trace.h"

#define SOURCE_PAUSE 1000000ULL		/* a failed source: 1 ms, doubled */
#define SOURCE_STEPS 10			/* each time, up to about a second */
#define NO_MMIO 0			/* mmio_length: nothing unfinished */

static int vcpu_check_options(struct kvmfault_vm *vm,
			      const struct kvmfault_vcpu_options *o)
{
	int flags;

	if (o->fd <= 0 || !o->run)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_vcpu_options.%s: it is not set%s",
			o->run ? "fd" : "run", o->run ?
			" (a descriptor that is 0 means none: duplicate it)" :
			"");
	if (o->profile > KVMFAULT_PROFILE_DELEGATE)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_vcpu_options.profile: %u is none that this version knows",
			(unsigned int)o->profile);
	if (o->sigbus > KVMFAULT_SIGBUS_HANDLER)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_vcpu_options.sigbus: %u is no way that this version knows",
			(unsigned int)o->sigbus);
	flags = kvmfault__sys_getfl(o->fd);
	return flags < 0 ? kvmfault__refuse(vm, flags,
		"kvmfault_vcpu_options.fd: descriptor %d is not open",
		o->fd) : 0;
}

static void vcpu_forget_source(struct kvmfault_vcpu *vcpu)
{
	vcpu->source.failures = 0;
	vcpu->source.due = 0;
}

/* Its threads' seats. */
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

	if (!vcpu)
		return;
	vm = vcpu->vm;
	kvmfault__signal_free(vcpu);
	kvmfault__forget_pending(vcpu);
	vcpu_delete(vcpu);
	kvmfault__sys_lock(&vm->lock);
	vm->vcpus--;
	kvmfault__sys_unlock(&vm->lock);
}

/* KVM_RUN must not be entered now. */
static bool vcpu_is_unfinished(const struct kvmfault_vcpu *vcpu)
{
	return vcpu->resume.mmio_length != NO_MMIO || vcpu->resume.emulating;
}

/* To the outside: what the caller must not do after it has its own name. */
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

/* Not a memory fault: the guest got somewhere. */
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

/* All of it is one task. */
static void vcpu_perform_task(struct kvmfault_vcpu *vcpu, kvmfault__work *work,
			      struct kvmfault__answer *answer)
{
	struct kvmfault__task task = kvmfault__task(vcpu, work);

	kvmfault__perform(vcpu, &task, answer);
}

/* A SIGBUS of the VMM's own memory is no work for another thread. */
static bool vcpu_is_guest_hva(struct kvmfault_vcpu *vcpu)
{
	bool ours = kvmfault__mapping_find(vcpu->seat, 0, vcpu->fault.hva);

	kvmfault__leave(vcpu->seat);
	return ours;
}

/* No address: run it again, it may have been a race. */
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
		/* Used up: it must not be taken for the next one's. */
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

/* Once more, after a pause? Failed memory does not come back. */
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
			   (SOURCE_PAUSE << (n < SOURCE_STEPS ? n : SOURCE_STEPS));
	vcpu->source.failures++;
	kvmfault__count(vcpu->seat, retried);
	return true;
}

/* As often as a failing source is worth it, and not before it is due. */
static void vcpu_resolve_patiently(struct kvmfault_vcpu *vcpu,
				   struct kvmfault__answer *answer)
{
	uint64_t what = kvmfault__guard_key(vcpu);	/* before it is translated */

	if (vcpu->source.key != what)
		vcpu_forget_source(vcpu);
	vcpu->source.key = what;
	do
		vcpu_resolve_once(vcpu, answer);
	while (vcpu_may_retry_source(vcpu, answer));
	/* Only now it is known which instruction it is. */
	if (vcpu->fault.kind == KVMFAULT_KIND_EMULATION)
		vcpu->source.key = kvmfault__guard_key(vcpu);
	if (answer->action != KVMFAULT_ACTION_INTERRUPTED)
		vcpu_forget_source(vcpu);
}

/* KVM_RUN was entered although an access was half done: the guest has gone on
 * with whatever bytes were there, or with a #UD. */
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

/* Taken from the queue, and not guest memory's: the VMM's to see to. */
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

/* A signal is no progress: a timer must not keep a spin alive. */
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

/* Apart, so that an exit that is no fault pays for none of it. */
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
