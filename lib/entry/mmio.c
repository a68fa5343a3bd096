/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Kind mmio: KVM's emulator met a page that it could not reach, took it for a
 * device, and will not run the instruction again. In: KVM_EXIT_MMIO. Out: the
 * page is present and the library has completed the access to it. Or the exit
 * is not a fault: the address is a device's, or ROM that is written.
 */

#include <linux/kvm.h>
#include <string.h>

#include "entry.h"

/* An aligned access is not torn, as the guest's own would not be. */
static void mmio_copy_bytes(volatile void *to, const volatile void *from,
			    uint64_t length)
{
	uintptr_t both = (uintptr_t)to | (uintptr_t)from;

	if (length == 8 && !(both & 7))
		*(volatile uint64_t *)to = *(const volatile uint64_t *)from;
	else if (length == 4 && !(both & 3))
		*(volatile uint32_t *)to = *(const volatile uint32_t *)from;
	else if (length == 2 && !(both & 1))
		*(volatile uint16_t *)to = *(const volatile uint16_t *)from;
	else
		memcpy((void *)(uintptr_t)to, (const void *)(uintptr_t)from,
		       length);
}

static void mmio_access_page(struct kvmfault_vcpu *vcpu,
			     struct kvmfault__region *region, uint64_t done,
			     uint64_t length)
{
	struct kvmfault_memory *memory = region->span.memory;
	struct kvm_run *run = vcpu->run;
	uint64_t offset = kvmfault__region_offset(region, run->mmio.phys_addr +
						  done);
	char *host;

	/* The guest was told that this page's data is lost. */
	if (kvmfault__poisoned(memory, offset)) {
		if (!run->mmio.is_write)
			memset(run->mmio.data + done, 0xff, length);
		return;
	}
	host = kvmfault__bytes(vcpu->seat, memory, offset);
	if (run->mmio.is_write)
		mmio_copy_bytes(host, run->mmio.data + done, length);
	else
		mmio_copy_bytes(run->mmio.data + done, host, length);
	kvmfault__unhold(vcpu->seat, KVMFAULT__HAZARD_MAPPINGS);
	if (run->mmio.is_write)
		kvmfault__changed(memory, offset, length, KVMFAULT_CAUSE_MMIO);
}

/* The region is held until kvmfault__leave(). NULL: a device's address, ROM
 * that is written, or a private page, which only the guest can reach. */
static struct kvmfault__region *
mmio_find_ram(struct kvmfault__seat *seat, const struct kvmfault_fault *fault,
	      uint64_t gpa)
{
	struct kvmfault__region *region;

	region = kvmfault__region_find(seat, fault->address_space, gpa);
	if (!region || !region->span.memory ||
	    kvmfault__shows_private(seat->vm, region, gpa) ||
	    (fault->access == KVMFAULT_ACCESS_WRITE &&
	     region->info.flags & KVMFAULT_REGION_READONLY))
		return NULL;
	return region;
}

static void mmio_resolve_part(struct kvmfault__task *task,
			      struct kvmfault__answer *answer)
{
	struct kvmfault__region *region =
		mmio_find_ram(task->seat, task->fault, task->gpa);
	struct kvmfault__target target = kvmfault__region_target(region,
							       task->gpa);

	kvmfault__say(answer, KVMFAULT_ACTION_NOT_A_FAULT);
	if (region)
		kvmfault__resolve(task->seat, task->fault, &target, answer);
	kvmfault__leave(task->seat);
}

/* This makes no system call, so the vCPU's thread needs no task for it. */
static bool mmio_is_device(struct kvmfault_vcpu *vcpu, uint64_t gpa)
{
	bool device = !mmio_find_ram(vcpu->seat, &vcpu->fault, gpa);

	kvmfault__leave(vcpu->seat);
	return device;
}

/* Complete the part of the access that is in one page. The vCPU's own thread
 * copies the bytes: a worker that it has left may not touch kvm_run. */
static void mmio_complete_part(struct kvmfault_vcpu *vcpu, uint64_t done,
			       uint64_t length, struct kvmfault__answer *answer)
{
	struct kvmfault__task task = kvmfault__task(vcpu, mmio_resolve_part);
	struct kvmfault__region *region;

	task.gpa = vcpu->fault.gpa + done;
	if (mmio_is_device(vcpu, task.gpa)) {
		kvmfault__say(answer, KVMFAULT_ACTION_NOT_A_FAULT);
		return;
	}
	kvmfault__perform(vcpu, &task, answer);
	/* The mapping is changing, so the bytes cannot be copied yet, and the
	 * VMM must not enter KVM_RUN without them. */
	if (answer->action == KVMFAULT_ACTION_RETRY && answer->error) {
		kvmfault__pause(vcpu->seat, KVMFAULT__MS);
		answer->action = KVMFAULT_ACTION_INTERRUPTED;
	}
	if (answer->action != KVMFAULT_ACTION_RETRY)
		return;
	region = mmio_find_ram(vcpu->seat, &vcpu->fault, task.gpa);
	if (region)
		mmio_access_page(vcpu, region, done, length);
	else
		answer->action = KVMFAULT_ACTION_NOT_A_FAULT;	/* by then */
	kvmfault__leave(vcpu->seat);
}

void kvmfault__mmio(struct kvmfault_vcpu *vcpu, struct kvmfault__answer *answer)
{
	const struct kvmfault_fault *fault = &vcpu->fault;
	uint64_t done = 0, step;

	kvmfault__say(answer, KVMFAULT_ACTION_NOT_A_FAULT);
	vcpu->resume.mmio_length = 0;
	while (done < fault->length) {
		step = KVMFAULT__PAGE - (fault->gpa + done) % KVMFAULT__PAGE;
		if (step > fault->length - done)
			step = fault->length - done;
		mmio_complete_part(vcpu, done, step, answer);
		if (answer->action != KVMFAULT_ACTION_RETRY)
			break;
		done += step;
	}
	/* The guest's access is complete, and the guard counts that as
	 * progress, whatever faults next. */
	answer->came = answer->action == KVMFAULT_ACTION_RETRY;
	if (answer->action == KVMFAULT_ACTION_NOT_A_FAULT ||
	    answer->action == KVMFAULT_ACTION_RETRY)
		return;
	vcpu->resume.mmio_gpa = fault->gpa;
	vcpu->resume.mmio_length = (uint32_t)fault->length;
}
