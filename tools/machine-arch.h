/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */
/*
 * Between machine.c and what depends on the architecture: machine-*.c, whose
 * functions begin with arch_, and guest_*.S. They are called in the order in
 * which they stand here, and return 0 or -errno.
 */
#ifndef MACHINE_ARCH_H
#define MACHINE_ARCH_H

#include <errno.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>

#include "machine.h"

#define PAGE		4096		/* of the guest's tables */
#define GIB		(UINT64_C(1) << 30)

/* A vCPU's part of the control memory: two pages, the second the stack. */
struct area {
	uint64_t ticks;
	uint64_t interrupts;
	uint64_t result[2];
	uint64_t unused2[4];
	struct machine_scan scan;
	uint64_t unused3;
	uint64_t arch[16];	/* the architecture's own */
};

#define AREA_SIZE	(2 * PAGE)

/* guest_*.S knows these. */
_Static_assert(offsetof(struct area, ticks) == 0x00, "AREA_TICKS");
_Static_assert(offsetof(struct area, interrupts) == 0x08, "AREA_INTERRUPTS");
_Static_assert(offsetof(struct area, result) == 0x10, "AREA_RESULT");
_Static_assert(offsetof(struct area, scan) == 0x40, "AREA_SCAN");
_Static_assert(offsetof(struct area, arch) == 0x80, "AREA_ARCH");
_Static_assert(offsetof(struct machine_scan, base) == 0x00, "SCAN_BASE");
_Static_assert(offsetof(struct machine_scan, pages) == 0x08, "SCAN_PAGES");
_Static_assert(offsetof(struct machine_scan, first) == 0x10, "SCAN_FIRST");
_Static_assert(offsetof(struct machine_scan, stride) == 0x18, "SCAN_STRIDE");
_Static_assert(offsetof(struct machine_scan, count) == 0x20, "SCAN_COUNT");
_Static_assert(offsetof(struct machine_scan, progress) == 0x28, "_PROGRESS");
_Static_assert(offsetof(struct machine_scan, checksum) == 0x30, "_CHECKSUM");

/* The guest's program, position-independent: guest_*.S. */
extern const unsigned char guest_start[], guest_end[];

static inline uint64_t guest_offset(const unsigned char *symbol)
{
	return (uintptr_t)symbol - (uintptr_t)guest_start;
}

/* ioctl() that returns a result or -errno; arg is a pointer or a number. */
static inline int kvm_ioctl(int fd, unsigned long request, void *arg)
{
	int ret = ioctl(fd, request, arg);

	return ret < 0 ? -errno : ret;
}

static inline int kvm_ioctl_number(int fd, unsigned long request,
				   unsigned long arg)
{
	int ret = ioctl(fd, request, arg);

	return ret < 0 ? -errno : ret;
}

static inline void *control_at(const struct machine *m, uint64_t gpa)
{
	return m->control + gpa;
}

/* machine.c's, for arch_map(): the control memory, all zero. */
int machine_alloc_control(struct machine *m, uint64_t size);

/* Timer interrupts a second that a vCPU is to have: their total is bounded. */
unsigned int machine_tick_rate(const struct machine *m);

/* The VM is there, with neither memory nor vCPUs. */
int arch_init_vm(struct machine *m, const struct machine_options *options);

/*
 * Allocate the control memory and fill it: code, and tables that map so many
 * GiB from 0 on. -EINVAL: too many.
 */
int arch_map(struct machine *m, uint64_t gibs);

/* Where a vCPU's struct area is. */
uint64_t arch_area_gpa(unsigned int vcpu);

/* The vCPU's fd and run are there. */
int arch_init_vcpu(struct machine_vcpu *vcpu);

/* The state that routines start from; also after one that was left. */
int arch_reset_vcpu(struct machine_vcpu *vcpu);

/* All vCPUs are there. */
int arch_start(struct machine *m, const struct machine_options *options);

/* Have KVM be done with the last exit: no device access waits for its end. */
int arch_finish_exit(struct machine_vcpu *vcpu);

/* Point the vCPU at the code at this offset of the guest's program. */
int arch_call(struct machine_vcpu *vcpu, uint64_t offset,
	      const uint64_t args[4]);

/* One interrupt, by the controller in the kernel. */
int arch_interrupt(struct machine_vcpu *vcpu);

/* KVM_RUN has returned 0: is it a routine's end? Or the guest's own end, on a
 * fault that it met? */
bool arch_done(const struct kvm_run *run);
bool arch_crashed(const struct kvm_run *run);

/* What is known of the last exit, to go on a line with; size is not 0. */
void arch_story(const struct machine_vcpu *vcpu, char *text, size_t size);

/* Page faults that the vCPU tried again, since it had not earned them. */
uint64_t arch_retried(const struct machine_vcpu *vcpu);

#endif /* MACHINE_ARCH_H */
