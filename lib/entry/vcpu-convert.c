/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: conversions that the VMM asks for, by itself or
 * for a vCPU's hypercall. In: a range. Out: the range is converted, or its
 * first part is, and the length of that. For a vCPU the conversion is a task of
 * that vCPU.
 */

#include "entry.h"

static void vcpu_convert_do_task(struct kvmfault__task *task,
				 struct kvmfault__answer *answer)
{
	kvmfault__say(answer, KVMFAULT_ACTION_RETRY);
	answer->error = kvmfault__convert(task->seat, task->pages,
					  task->private, true, &task->reached);
}

static int vcpu_convert_by_task(struct kvmfault_vcpu *vcpu,
				struct kvmfault__gfns pages, bool private,
				uint64_t *reached)
{
	struct kvmfault__task task = kvmfault__task(vcpu, vcpu_convert_do_task);
	struct kvmfault__answer answer;
	int err;

	task.pages = pages;
	task.private = private;
	task.reached = pages.first;
	task.due = 0;
	task.anew = task.prefault = false;
	err = kvmfault__perform(vcpu, &task, &answer);
	*reached = task.reached;
	return err ? err : answer.error;
}

static bool vcpu_convert_is_own_seat(struct kvmfault__seat *seat, void *vcpu)
{
	return seat->vcpu == vcpu;
}

KVMFAULT__EXPORT
int kvmfault_convert(struct kvmfault_vm *vm, struct kvmfault_vcpu *vcpu,
		     uint64_t gpa, uint64_t length, bool to_private,
		     uint64_t *done)
{
	struct kvmfault__gfns pages = {
		.first = gpa / KVMFAULT__PAGE,
		.end = (gpa + length - 1) / KVMFAULT__PAGE + 1,
	};
	struct kvmfault__inside inside;
	struct kvmfault__seat *seat;
	uint64_t reached = pages.first;
	int err;

	if (done)
		*done = 0;
	if (!vm)
		return -EINVAL;
	if (!length || (gpa | length) & (KVMFAULT__PAGE - 1) ||
	    gpa + length - 1 < gpa)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_convert: the range at gpa %#llx, of %#llx bytes, is empty, is not made of whole pages of 4 KiB, or goes past the last address",
			(unsigned long long)gpa, (unsigned long long)length);
	if (vcpu && vcpu->vm != vm)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_convert: the vCPU belongs to another context: pass the context that it was made in");
	if (!vm->conversions.converter.set)
		return kvmfault__refuse(vm, -EOPNOTSUPP,
			"kvmfault_convert: the context cannot tell KVM: give it kvmfault_vm_options.vm_fd, or a kvmfault_converter with set");
	if (vcpu && kvmfault__within(vcpu_convert_is_own_seat, vcpu))
		vcpu = NULL;	/* called from a callback of its own fault */
	seat = vcpu ? vcpu->seat : kvmfault__seat_take(vm);
	if (!seat)
		return -ENOMEM;
	kvmfault__enter(&inside, seat, NULL);
	if (vcpu)
		err = vcpu_convert_by_task(vcpu, pages, to_private, &reached);
	else
		err = kvmfault__convert(seat, pages, to_private, true,
					&reached);
	kvmfault__exit(&inside);
	if (!vcpu)
		kvmfault__seat_give(seat);
	if (done)
		*done = (reached - pages.first) * KVMFAULT__PAGE;
	return err;
}
