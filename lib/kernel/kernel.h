/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What the kernel says and what it is asked for: its ways to say so made one.
 */

#ifndef KVMFAULT__KERNEL_H
#define KVMFAULT__KERNEL_H

#include "../core/vm.h"

/* paging.c: 1: the hardware walks the guest's page tables; 0: KVM does, in
 * software; -errno: could not ask. Of all VMs of this KVM. */
int kvmfault__two_dimensional(int kvm_fd);

/* decode.c */
void kvmfault__decode(int ret, int err, const struct kvm_run *run,
		      struct kvmfault_fault *fault);
/* The one that the vCPU is in. */
uint32_t kvmfault__address_space(const struct kvm_run *run);

/* probe.c */
struct kvmfault_finding kvmfault__ask_poison(void);

/* kernel-exit.c: asked of a scratch VM by what it accepts; 0, or -errno: could not
 * ask. */
int kvmfault__kernel_exit_ask(int kvm_fd, enum kvmfault__kernel_exit *which);

/* uffd.c */
/* mode: UFFDIO_REGISTER_MODE_*, beside that for missing pages; ioctls: what can
 * be done there, bits of UFFDIO_* numbers */
int kvmfault__uffd_register(int fd, uint64_t start, uint64_t length,
			    uint64_t mode, uint64_t *ioctls);
int kvmfault__uffd_unregister(int fd, uint64_t start, uint64_t length);
/* How many bytes, from the first page on; it may be less than length. Or of that
 * page: -EEXIST: it is said to be there, nobody was woken; -ENOENT: nothing is
 * mapped; -EAGAIN: not now; ... page: its size. */
enum kvmfault__install {
	KVMFAULT__COPY,		/* from there */
	KVMFAULT__ZERO,
	KVMFAULT__MAP,		/* what is in the file: UFFDIO_CONTINUE */
};
int64_t kvmfault__uffd_install(int fd, enum kvmfault__install how, uint64_t to,
			       const void *from, uint64_t length, uint64_t page,
			       bool protect);
/* Off: who sleeps there is woken. Where nothing is mapped there is nothing to
 * protect. */
int kvmfault__uffd_protect(int fd, uint64_t start, uint64_t length,
			   uint64_t page, bool on);
int kvmfault__uffd_wake(int fd, uint64_t start, uint64_t length);
/* Markers, on *done bytes, and then 0 or as above; quiet: whoever sleeps there
 * sleeps on. */
int kvmfault__uffd_poison(int fd, uint64_t start, uint64_t length,
			  uint64_t page, bool quiet, uint64_t *done);
/* As read(2), and never asleep. */
ssize_t kvmfault__uffd_read(int fd, void *messages, size_t size);
int kvmfault__uffd_open(unsigned int how);
#define KVMFAULT__UFFD_DEVICE (1U << 0)
#define KVMFAULT__UFFD_SYSCALL (1U << 1)

#endif
