/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The kernel's features, its reports of faults, and userfaultfd's calls with
 * their errors normalised.
 *
 * A room may use the rooms before it in this order: os, core, kernel, memory,
 * resolve, entry, setup; none that comes after it.
 */

#ifndef KVMFAULT__KERNEL_H
#define KVMFAULT__KERNEL_H

#include "../core/vm.h"

/* paging.c: does the hardware walk the guest's page tables, in all VMs of this
 * KVM? Returns 1, 0 if KVM walks them in software, or -errno: could not ask. */
int kvmfault__two_dimensional(int kvm_fd);

/* decode.c */
void kvmfault__decode(int ret, int err, const struct kvm_run *run,
		      struct kvmfault_fault *fault);
/* The address space that the vCPU is in. */
uint32_t kvmfault__address_space(const struct kvm_run *run);

/* probe.c: can UFFDIO_POISON put markers into a memfd's pages? */
struct kvmfault_finding kvmfault__ask_poison(void);

/* kernel-exit.c: which ABI do memslots accept? 0, or -errno: could not ask. */
int kvmfault__kernel_exit_ask(int kvm_fd, enum kvmfault__kernel_exit *which);

/* uffd.c */
/* mode: UFFDIO_REGISTER_MODE_* beside the one for missing pages. *ioctls: the
 * calls that the range allows, as bits of their UFFDIO_* numbers. */
int kvmfault__uffd_register(int fd, uint64_t start, uint64_t length,
			    uint64_t mode, uint64_t *ioctls);
int kvmfault__uffd_unregister(int fd, uint64_t start, uint64_t length);
enum kvmfault__install {
	KVMFAULT__COPY,		/* a copy of `from` */
	KVMFAULT__ZERO,		/* zeros */
	KVMFAULT__MAP,		/* the file's page: UFFDIO_CONTINUE */
};
/*
 * Install pages of size `page`. Returns how many bytes were installed, from the
 * first page on, which may be less than length; or the first page's error.
 * -EEXIST: the kernel says that the page is there, and has woken no sleeper.
 * -ENOENT: nothing is mapped there. -EAGAIN: not now.
 */
int64_t kvmfault__uffd_install(int fd, enum kvmfault__install how, uint64_t to,
			       const void *from, uint64_t length, uint64_t page,
			       bool protect);
/* Write-protect the range, or lift that: on == false also wakes the sleepers
 * there. A hole in the range, where nothing is mapped, is no error. */
int kvmfault__uffd_protect(int fd, uint64_t start, uint64_t length,
			   uint64_t page, bool on);
int kvmfault__uffd_wake(int fd, uint64_t start, uint64_t length);
/* Put markers on the range: its first *done bytes have one. Returns 0, or an
 * error as above; quiet: sleepers there are not woken. */
int kvmfault__uffd_poison(int fd, uint64_t start, uint64_t length,
			  uint64_t page, bool quiet, uint64_t *done);
/* As read(2), but it never waits for a message. */
ssize_t kvmfault__uffd_read(int fd, void *messages, size_t size);
/* how: KVMFAULT__UFFD_*, the ways to try. Returns a descriptor or -errno. */
int kvmfault__uffd_open(unsigned int how);
#define KVMFAULT__UFFD_DEVICE (1U << 0)
#define KVMFAULT__UFFD_SYSCALL (1U << 1)

#endif
