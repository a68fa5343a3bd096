/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */
/*
 * The smallest real virtual machine: what `kvmfault demo` and the live tests
 * run. It knows nothing of libkvmfault: who uses it gives it memory, calls
 * KVM_RUN and answers the faults.
 *
 * Guest physical addresses:
 *	0 .. 1 GiB		control memory (slot 0, always present)
 *	1 GiB .. 3 GiB		the caller's
 *	3 GiB .. 4 GiB		devices: interrupt controllers, a call's end
 *	4 GiB .. span		the caller's
 * The guest's virtual addresses are its physical ones.
 *
 * Everything here is setup code for one thread, except where it says
 * otherwise. Functions return 0 or -errno.
 */
#ifndef MACHINE_H
#define MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kvm_run;

#define MACHINE_MAX_VCPUS 256

/* Newer than the kernel headers of some build hosts. */
#define MACHINE_GUEST_MEMFD_MMAP	(UINT64_C(1) << 0)
#define MACHINE_GUEST_MEMFD_INIT_SHARED	(UINT64_C(1) << 1)

struct machine_options {
	unsigned int vcpus;	/* 1 to MACHINE_MAX_VCPUS */
	unsigned long type;	/* for KVM_CREATE_VM, 0 is the default VM */
	bool irqchip;		/* interrupt controllers in the kernel */
	bool timer;		/* interrupts on, and coming; needs irqchip */
	bool supervisor;	/* x86: CPL 0, not 3; arm64: EL1, not EL0 */
	uint64_t span;		/* bytes mapped from 0, rounded up to GiB */
};

struct machine_vcpu {
	struct machine *machine;
	struct kvm_run *run;
	size_t run_size;
	int fd;
	unsigned int id;	/* index in machine->vcpu */
};

struct machine {
	struct machine_vcpu *vcpu;
	unsigned int vcpus;
	int kvm_fd;
	int vm_fd;
	bool timer;
	bool supervisor;
	/* How often in a row the same page fault of a vCPU is tried again,
	 * from its next call on, see machine_retried(). */
	unsigned int fault_tries;
	unsigned char *control;	/* host view of the control memory */
	size_t control_size;
};

/*
 * What the guest can do. Each routine runs from machine_call() until
 * machine_done(); an access faults at one instruction, unless it says
 * otherwise, and has no other side effect on the caller's memory.
 */
enum machine_routine {
	/* (gpa, size): size is 1, 2, 4 or 8. Result: the value */
	MACHINE_READ = 1,
	/* (gpa, size, value): size is 1, 2, 4 or 8 */
	MACHINE_WRITE = 2,
	/* (gpa, value): atomic, 8 bytes. Result: the old value */
	MACHINE_EXCHANGE = 3,
	/* (gpa, value): atomic, 8 bytes. Result: the old value */
	MACHINE_ADD = 4,
	/* (gpa): 16 bytes in one access. Result: low and high half */
	MACHINE_READ16 = 5,
	/* (gpa, low, high): 16 bytes in one access */
	MACHINE_WRITE16 = 6,
	/* (to, from, bytes): one instruction for all of it, where there is */
	MACHINE_COPY = 7,
	/* (gpa): 512 bytes of floating point state, gpa 16-aligned; one
	 * instruction on x86, sixteen on arm64 */
	MACHINE_FPU_SAVE = 8,
	/* (gpa): the same, read */
	MACHINE_FPU_RESTORE = 9,
	/* (gpa, x): call the code at gpa. Result: x, unless it changed it */
	MACHINE_JUMP = 10,
	/* (n): count down from n, no memory access. 0 is 2^64 */
	MACHINE_SPIN = 11,
	/* (): carry out the vCPU's scan job, see below */
	MACHINE_SCAN = 12,
	/* (number, a, b, c): KVM's hypercall, for a supervisor only. Result:
	 * what it returns */
	MACHINE_HYPERCALL = 13,
	/* (table, count, write): one access to each of many places. table: gpa
	 * of count gpas; for each, in order, done is (modulo 2^64)
	 *	if write is not 0: the word at gpa + 8 = gpa
	 *	sum = (rol(sum, 5) ^ word at gpa) * MACHINE_SCAN_MUL
	 * from 0 on. Result: sum, which also tells in which order. Of each
	 * place both words may fault */
	MACHINE_TOUCH = 14,
};

/*
 * The scan job of a vCPU: a walk over RAM that reads every word and leaves
 * one mark in every page. RAM is an array of @pages pages of 4096 bytes at
 * guest physical address @base, a page an array of 512 little-endian u64.
 * With first < pages and stride < pages (stride 0 if pages is 1), this is
 * done (all arithmetic modulo 2^64, rol is rotate left):
 *
 *	p = first
 *	repeat count times:
 *		sum = MACHINE_SCAN_SEED
 *		for i = 0 .. 511, in this order:
 *			sum = (rol(sum, 5) ^ page[p][i]) * MACHINE_SCAN_MUL
 *		page[p][511] = sum
 *		checksum += sum ^ (p * MACHINE_SCAN_MUL)
 *		progress += 1
 *		p += stride, less pages if that is pages or more
 *
 * A stride coprime with pages makes p a scattered walk over all pages. The
 * vCPUs' shares are then disjoint if each begins where the one before ends:
 * first = (start * stride) % pages, start being the sum of the counts of
 * the vCPUs before. checksum and progress start from what the host puts
 * there; their order is such that a page counted in progress is written.
 * The host may read progress at any time with an atomic load.
 */
#define MACHINE_SCAN_SEED	UINT64_C(0x243f6a8885a308d3)
#define MACHINE_SCAN_MUL	UINT64_C(0x9e3779b97f4a7c15)

struct machine_scan {
	uint64_t base;
	uint64_t pages;
	uint64_t first;
	uint64_t stride;
	uint64_t count;
	uint64_t progress;
	uint64_t checksum;
};

/*
 * Create a VM with all its vCPUs, ready for machine_call(), and no RAM but
 * the control memory. -ENOENT or -EACCES: no /dev/kvm for us; -EINVAL: bad
 * options; else the errno of the system call that failed. *out is NULL on
 * error.
 */
int machine_new(const struct machine_options *options, struct machine **out);

/* The vCPUs must not be running. Memory in slots stays the caller's. */
void machine_free(struct machine *machine);

/*
 * Set, move or delete (size 0) an ordinary slot; slot 0 is taken. flags are
 * KVM_MEM_*. The memory at host is the caller's and outlives the slot.
 */
int machine_set_slot(struct machine *machine, uint32_t slot, uint32_t flags,
		     uint64_t gpa, uint64_t size, void *host);

/*
 * The same by the newer call, and with the bitmap of pages that leave KVM_RUN
 * when the guest touches them, for kernels that know of such.
 */
int machine_set_userfault_slot(struct machine *machine, uint32_t slot,
			       uint32_t flags, uint64_t gpa, uint64_t size,
			       void *host, uint64_t bitmap);

/* The fd (the caller closes it), or -errno. flags: MACHINE_GUEST_MEMFD_* */
int machine_create_guest_memfd(struct machine *machine, uint64_t size,
			       uint64_t flags);

/* The same as machine_set_slot() with memory of a guest_memfd. */
int machine_set_guest_memfd_slot(struct machine *machine, uint32_t slot,
				 uint64_t gpa, uint64_t size, void *host,
				 int guest_memfd, uint64_t offset);

/*
 * Point a vCPU that is not running at a routine, whatever it was doing
 * before. Then KVM_RUN it until machine_done(). A device access that was not
 * answered yet ends with whatever its data buffer holds. One thread per vCPU.
 */
int machine_call(struct machine_vcpu *vcpu, enum machine_routine routine,
		 uint64_t a, uint64_t b, uint64_t c, uint64_t d);

/* Whether KVM_RUN, which returned ret, came back from a routine's end. */
bool machine_done(const struct machine_vcpu *vcpu, int ret);

/*
 * Whether it is that the guest ended by itself instead: it met a fault that it
 * can't go on from, or KVM gave it up (KVM_EXIT_SHUTDOWN). machine_call() works
 * after that.
 */
bool machine_crashed(const struct machine_vcpu *vcpu, int ret);

/*
 * What is known of the last exit, in words, for who did not expect it: which
 * fault, where, and what the guest's tables say of it. Returns text. The vCPU
 * must not be running.
 */
#define MACHINE_STORY 400
const char *machine_story(const struct machine_vcpu *vcpu,
			  char text[MACHINE_STORY]);

/*
 * Page faults that the vCPU met so far without having earned them, and tried
 * again: where KVM has page tables in shadow such may come. Any thread.
 */
uint64_t machine_retried(const struct machine *machine, unsigned int vcpu);

/* What the last routine returned; high is for MACHINE_READ16 only. */
uint64_t machine_result(const struct machine_vcpu *vcpu);
uint64_t machine_result_high(const struct machine_vcpu *vcpu);

/*
 * Timer interrupts that the vCPU has taken so far: about 1000 a second, and
 * 8000 among all vCPUs if there are more than 8. Any thread.
 */
uint64_t machine_ticks(const struct machine *machine, unsigned int vcpu);

/*
 * Send the vCPU an interrupt, and how many of these it has taken: none is lost
 * if each is sent after the one before was taken. Any thread. It needs timer;
 * -EOPNOTSUPP: not on arm64.
 */
int machine_interrupt(struct machine *machine, unsigned int vcpu);
uint64_t machine_interrupts(const struct machine *machine, unsigned int vcpu);

/* The vCPU's scan job, to fill before the call and to read after it. */
struct machine_scan *machine_scan_job(struct machine *machine,
				      unsigned int vcpu);

/* Write at host the code that MACHINE_JUMP comes back from at once. */
void machine_put_return(void *host);

#endif /* MACHINE_H */
