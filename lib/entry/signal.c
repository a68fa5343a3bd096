/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Kind marker: how the SIGBUS of a marker gets from KVM_RUN to decode. It is
 * taken from the blocked signals, or noted by the VMM's own handler.
 * kvmfault_vcpu_note_sigbus() and all that it calls runs in that signal
 * handler: no lock, no system call. In: the SIGBUS that KVM sends to a vCPU's
 * thread. Out: its siginfo, once. The kernel can deliver the signal during
 * KVM_RUN, or no vCPU is made: if it were blocked, KVM_RUN would never return.
 */

#include <signal.h>
#include <string.h>

#include "../os/abi.h"
#include "entry.h"

_Static_assert(sizeof(siginfo_t) == KVMFAULT__SIGINFO, "a siginfo's size");

#define SIGBUS_BIT (1ULL << (SIGBUS - 1))

/* The kernel's struct kvm_signal_mask, with room for its set. */
struct mask {
	uint32_t length;
	uint8_t set[sizeof(uint64_t)];
};

static int signal_set_mask(struct kvmfault_vcpu *vcpu, const uint64_t *set)
{
	struct mask mask = { .length = sizeof(mask.set) };

	if (!set)
		return kvmfault__sys_ioctl(vcpu->fd, KVM_SET_SIGNAL_MASK, NULL);
	memcpy(mask.set, set, sizeof(mask.set));
	return kvmfault__sys_ioctl(vcpu->fd, KVM_SET_SIGNAL_MASK, &mask);
}

static int signal_refuse_vcpu(struct kvmfault_vcpu *vcpu, const char *what)
{
	return kvmfault__refuse(vcpu->vm, -EINVAL,
		"kvmfault_vcpu_new: the kernel could not deliver SIGBUS during KVM_RUN, so MARKER_EXIT would hang this vCPU: %s",
		what);
}

/* blocked: the signals that KVM_RUN is to block. */
static int signal_set_up_masked(struct kvmfault_vcpu *vcpu, uint64_t thread,
				uint64_t blocked)
{
	int err;

	if (vcpu->task.worker)
		return signal_refuse_vcpu(vcpu, "a vCPU with KVMFAULT_PROFILE_DELEGATE may not take the signal by a system call: install a handler and set sigbus to KVMFAULT_SIGBUS_HANDLER");
	if (!(thread & SIGBUS_BIT))
		return signal_refuse_vcpu(vcpu, "block SIGBUS in the vCPU's thread (pthread_sigmask) before kvmfault_vcpu_new(), or install a handler and set sigbus to KVMFAULT_SIGBUS_HANDLER");
	blocked &= ~SIGBUS_BIT;
	err = signal_set_mask(vcpu, &blocked);
	vcpu->sigbus.masked = !err;
	return err ? kvmfault__refuse(vcpu->vm, err,
		"kvmfault_vcpu_options.fd: KVM_SET_SIGNAL_MASK of descriptor %d failed (error %d)",
		vcpu->fd, -err) : 0;
}

static int signal_set_up_handler(struct kvmfault_vcpu *vcpu, uint64_t blocked)
{
	if (blocked & SIGBUS_BIT)
		return signal_refuse_vcpu(vcpu, "SIGBUS is blocked: do not block it in the vCPU's thread or by KVM_SET_SIGNAL_MASK, or set sigbus to KVMFAULT_SIGBUS_MASKED");
	if (kvmfault__sys_handles(SIGBUS) <= 0)
		return signal_refuse_vcpu(vcpu, "SIGBUS has no handler: install one that calls kvmfault_vcpu_note_sigbus(), or set sigbus to KVMFAULT_SIGBUS_MASKED");
	vcpu->sigbus.handler = kvmfault__seat_take(vcpu->vm);
	return vcpu->sigbus.handler ? 0 : -ENOMEM;
}

int kvmfault__signal_new(struct kvmfault_vcpu *vcpu,
			 const struct kvmfault_vcpu_options *options)
{
	uint64_t thread, blocked;
	int err;

	if (vcpu->vm->how.chosen != KVMFAULT_DELIVERY_MARKER_EXIT)
		return 0;
	err = kvmfault__sys_sigmask(&thread);
	if (err)
		return err;
	blocked = thread;
	if (options->signal_mask) {
		vcpu->sigbus.own_mask_value = *options->signal_mask;
		vcpu->sigbus.own_mask = &vcpu->sigbus.own_mask_value;
		blocked = *vcpu->sigbus.own_mask;
	}
	if (options->sigbus == KVMFAULT_SIGBUS_MASKED)
		return signal_set_up_masked(vcpu, thread, blocked);
	return signal_set_up_handler(vcpu, blocked);
}

void kvmfault__signal_free(struct kvmfault_vcpu *vcpu)
{
	if (vcpu->sigbus.masked)
		signal_set_mask(vcpu, vcpu->sigbus.own_mask);
	if (vcpu->sigbus.handler)
		kvmfault__seat_give(vcpu->sigbus.handler);
}

/*
 * True if the address is in a memory's memslots' mapping. The handler has its
 * own seat for this, since the thread may be in the middle of a lookup.
 *
 * The seat's span is cleared without waking drainers, which would be a system
 * call: they look again by themselves.
 */
static bool signal_is_guest_fault(struct kvmfault_vcpu *vcpu,
				  const struct kvmfault_fault *fault)
{
	const struct kvmfault_mapping *mapping =
		kvmfault__mapping_find(vcpu->sigbus.handler, 0, fault->hva);
	bool ours = mapping && mapping->memslots;

	atomic_store(&vcpu->sigbus.handler->span, NULL);
	return ours;
}

KVMFAULT__EXPORT
bool kvmfault_vcpu_note_sigbus(struct kvmfault_vcpu *vcpu, const void *siginfo)
{
	struct kvmfault_fault fault = { .size = sizeof(fault) };

	if (!vcpu || !vcpu->sigbus.handler || !siginfo)
		return false;
	kvmfault_decode_siginfo(siginfo, &fault);
	if (fault.kind != KVMFAULT_KIND_MARKER ||
	    !signal_is_guest_fault(vcpu, &fault))
		return false;
	/* The signal that was noted before is not answered yet. This one is
	 * dropped: the access faults again. */
	if (atomic_load(&vcpu->sigbus.noted))
		return true;
	memcpy(vcpu->sigbus.note, siginfo, sizeof(vcpu->sigbus.note));
	atomic_store(&vcpu->sigbus.noted, true);
	return true;
}

bool kvmfault__signal_take(struct kvmfault_vcpu *vcpu)
{
	if (vcpu->sigbus.masked)
		return !kvmfault__sys_sigtake(SIGBUS, vcpu->sigbus.siginfo);
	if (!vcpu->sigbus.handler || !atomic_load(&vcpu->sigbus.noted))
		return false;
	memcpy(vcpu->sigbus.siginfo, vcpu->sigbus.note,
	       sizeof(vcpu->sigbus.siginfo));
	atomic_store(&vcpu->sigbus.noted, false);
	return true;
}
