/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: the system calls that each kind of thread makes,
 * for a VMM that filters them. In: a profile. Out: each call, and the value of
 * the argument that a filter can look at. The tests' fake of os/sys.c lets no
 * other call pass.
 */

#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/futex.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../os/abi.h"
#include "setup.h"

#define INLINE (1U << KVMFAULT_PROFILE_INLINE)
#define DELEGATE (1U << KVMFAULT_PROFILE_DELEGATE)
#define SERVICE (1U << KVMFAULT_PROFILE_SERVICE)
#define CALLER (1U << KVMFAULT_PROFILE_CALLER)
#define FAULT (INLINE | SERVICE | CALLER)	/* threads that answer one */

/* A libc may have a macro with a call's name. # and ## take the name before any
 * other macro gets it and expands it. */
#define CALL(call, arg, what, what_name, why) \
	ENTRY(#call, SYS_##call, arg, what, what_name, why)
#define ANY(call, why) ENTRY(#call, SYS_##call, -1, 0, "", why)
#define WITH(call, arg, what, why) \
	ENTRY(#call, SYS_##call, arg, what, #what, why)
/* For a constant of abi.h: `prefix` and `rest` make the kernel's name. */
#define OURS(call, arg, prefix, rest, why) \
	ENTRY(#call, SYS_##call, arg, KVMFAULT__##rest, #prefix #rest, why)
#define ENTRY(call, call_number, arg, what, what_name, reason) { \
	.size = sizeof(struct kvmfault_syscall), \
	.name = call, \
	.number = call_number, \
	.argument = arg, \
	.value = (uint32_t)(what), \
	.value_name = what_name, \
	.why = reason, \
}

static const struct {
	unsigned int profiles;
	struct kvmfault_syscall call;
} calls[] = {
	{ FAULT | DELEGATE, WITH(futex, 1, FUTEX_WAIT_PRIVATE,
	  "waits, with a timeout: for a page, a conversion or work, and pauses") },
	{ FAULT | DELEGATE, WITH(futex, 1, FUTEX_WAKE_PRIVATE,
	  "waking those who wait for a page, a conversion, a removal or work") },
	{ FAULT | DELEGATE, ANY(restart_syscall,
	  "a wait goes on after SIGSTOP and SIGCONT, or under a debugger") },
	{ INLINE, ANY(rt_sigtimedwait,
	  "delivery by markers: the SIGBUS that ended KVM_RUN") },
#ifdef SYS_epoll_wait
	{ SERVICE, ANY(epoll_wait, "waits for messages; libc's epoll_wait()") },
#endif
	{ SERVICE, ANY(epoll_pwait, "the same, where libc uses this one") },
	{ SERVICE, OURS(preadv2, 5, , RWF_NOWAIT, "messages") },
#ifdef SYS_poll
	{ SERVICE, ANY(poll, "before 6.10: are there messages?") },
#endif
	{ SERVICE, ANY(ppoll, "the same, where libc uses this one") },
	{ SERVICE, ANY(read, "timers, and before 6.10 messages") },
	{ SERVICE, ANY(sched_yield, "unless poll_us is KVMFAULT_NO_POLL") },
	{ SERVICE, WITH(epoll_ctl, 1, EPOLL_CTL_DEL,
	  "a userfaultfd that has failed is not listened to any more") },
	{ SERVICE, WITH(epoll_ctl, 1, EPOLL_CTL_MOD,
	  "with several threads: the next message may wake another one") },
	{ SERVICE, ANY(close, "an adopted userfaultfd with fork events") },
	{ CALLER, ANY(mmap, "the first calls, by libc too: scratch memory") },
	{ CALLER, ANY(munmap, "the same, when memory ran out") },
	{ CALLER, ANY(brk, "the same, by libc") },
	{ FAULT, WITH(clock_gettime, 0, CLOCK_MONOTONIC,
	  "where the vDSO has no clock") },
	{ FAULT, WITH(ioctl, 1, UFFDIO_COPY, "a page is installed") },
	{ FAULT, WITH(ioctl, 1, UFFDIO_ZEROPAGE,
	  "a discarded page is installed, or a hole of the source") },
	{ FAULT, WITH(ioctl, 1, UFFDIO_CONTINUE,
	  "a page is installed, in memory with minor faults") },
	{ FAULT, WITH(ioctl, 1, UFFDIO_WRITEPROTECT,
	  "a page was saved, in memory that can be protected") },
	{ FAULT, OURS(ioctl, 1, , UFFDIO_POISON, "a page's data is lost") },
	{ FAULT, WITH(ioctl, 1, UFFDIO_WAKE,
	  "waking those who sleep in the kernel") },
	{ FAULT, OURS(madvise, 2, , MADV_POPULATE_READ,
	  "a present page is out of reach; a SIGBUS may be a failure") },
	{ FAULT, OURS(madvise, 2, , MADV_POPULATE_WRITE,
	  "a present page is out of reach; minor faults: a page of the file") },
	{ FAULT, WITH(madvise, 2, MADV_DONTNEED,
	  "a discard, of anonymous or poisoned memory") },
	{ FAULT, CALL(fallocate, 1, FALLOC_FL_PUNCH_HOLE |
	  FALLOC_FL_KEEP_SIZE, "FALLOC_FL_PUNCH_HOLE, FALLOC_FL_KEEP_SIZE",
	  "a discard: a page that was fetched meanwhile, or a conversion's") },
	{ FAULT, ANY(pread64, "the file source") },
	{ FAULT, ANY(fstat, "the length of a source's file; musl's fstat()") },
	{ FAULT, ANY(newfstatat, "the same, where libc uses this one") },
	{ FAULT, CALL(timerfd_settime, 1, 0, "",
	  "the deadline of a source that answers later") },
	{ FAULT, WITH(lseek, 2, SEEK_DATA,
	  "the file source's holes; has a resolver put the page there?") },
	{ FAULT, WITH(lseek, 2, SEEK_HOLE, "the file source's holes") },
	{ FAULT, ANY(mincore,
	  "has a resolver put the page into anonymous memory?") },
	{ FAULT, OURS(ioctl, 1, KVM_, SET_MEMORY_ATTRIBUTES,
	  "a conversion, if the VMM has no back end of its own") },
	{ INLINE, OURS(ioctl, 1, KVM_, PRE_FAULT_MEMORY,
	  "a window came, and the context's option prefault is set") },
#ifdef __x86_64__
	{ INLINE | CALLER, WITH(ioctl, 1, KVM_GET_REGS,
	  "an emulation error; page tables that are ensured") },
	{ INLINE | CALLER, WITH(ioctl, 1, KVM_GET_SREGS,
	  "an emulation error; page tables that are ensured") },
	{ INLINE | CALLER, WITH(ioctl, 1, KVM_TRANSLATE,
	  "an emulation error; page tables that are ensured") },
	{ INLINE | CALLER, WITH(ioctl, 1, KVM_GET_VCPU_EVENTS,
	  "an emulation error; page tables that are ensured") },
	{ INLINE, WITH(ioctl, 1, KVM_SET_VCPU_EVENTS,
	  "an emulation error: the #UD that is queued is taken back") },
#endif
};

const struct kvmfault_syscall *
kvmfault__syscall(enum kvmfault_profile profile, unsigned int index)
{
	size_t i;

	for (i = 0; i < sizeof(calls) / sizeof(*calls); i++)
		if (calls[i].profiles & 1U << profile && !index--)
			return &calls[i].call;
	return NULL;
}

KVMFAULT__EXPORT
int kvmfault_syscalls(enum kvmfault_profile profile, unsigned int index,
		      struct kvmfault_syscall *call)
{
	const struct kvmfault_syscall *ours;

	if (!call || profile > KVMFAULT_PROFILE_CALLER)
		return -EINVAL;
	ours = kvmfault__syscall(profile, index);
	if (!ours)
		return -ENOENT;
	return kvmfault__options_out(call, ours, sizeof(*ours));
}
