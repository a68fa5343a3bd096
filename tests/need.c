/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * In: the name of what a test needs. Out: nothing, or the end of the program.
 * Each is asked by really using it.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "need.h"

#define NEW_UFFD _IO(0xAA, 0x00)
#define SKIPPED 77

static char reason[160];

static const char *because(const char *what)
{
	snprintf(reason, sizeof(reason), "%s: %s", what, strerror(errno));
	return reason;
}

static const char *lacks_kvm(void)
{
	int vm, fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return because("/dev/kvm");
	vm = ioctl(fd, _IO(0xAE, 0x01), 0);
	close(fd);
	if (vm < 0)
		return because("/dev/kvm makes no VM");
	close(vm);
	return NULL;
}

void use_exit_abi(unsigned int abi)
{
	int fd = open("/sys/module/kvm/parameters/exit_abi",
		      O_WRONLY | O_CLOEXEC);

	/* Another kernel than ours is as it is. */
	if (fd < 0)
		return;
	dprintf(fd, "%u", abi);
	close(fd);
}

static const char *lacks_private(void)
{
	const long vm_types = 235, attributes = 233, private = 8;
	int vm, mask, fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		return because("/dev/kvm");
	/* Type 1 is the one that needs no hardware for it. */
	mask = ioctl(fd, _IO(0xAE, 0x03), vm_types);
	vm = mask > 0 && mask & 1 << 1 ? ioctl(fd, _IO(0xAE, 0x01), 1) : -1;
	close(fd);
	if (vm < 0)
		return "KVM has no VM type with private memory in software "
		       "(CONFIG_KVM_SW_PROTECTED_VM)";
	mask = ioctl(vm, _IO(0xAE, 0x03), attributes);
	close(vm);
	return mask > 0 && mask & private ? NULL :
		"KVM has no private memory attribute";
}

/* Whether memslots of a new VM may have the flag that two proposals have. */
static bool takes_flag(int kvm)
{
	uint64_t bitmap = 0, page = 4096;
	struct {
		uint32_t slot, flags;
		uint64_t gpa, size, host, memfd[2], bitmap, pad[13];
	} region = {
		.flags = 1 << 3,
		.size = page,
		.host = (uintptr_t)&region & -page,
		.bitmap = (uintptr_t)&bitmap,
	};
	int ret, vm = ioctl(kvm, _IO(0xAE, 0x01), 0);

	if (vm < 0)
		return false;
	ret = ioctl(vm, _IOC(_IOC_WRITE, 0xAE, 0x49, sizeof(region)), &region);
	close(vm);
	return !ret;
}

static const char *lacks_userfault(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	bool has;

	if (kvm < 0)
		return because("/dev/kvm");
	use_exit_abi(1);
	has = takes_flag(kvm);
	use_exit_abi(0);
	close(kvm);
	return has ? NULL : "KVM has no memslots whose missing pages exit "
			    "(KVM_MEM_USERFAULT, KVM_MEM_EXIT_ON_MISSING)";
}

static const char *lacks_uffd(void)
{
	int fd, device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

	if (device >= 0) {
		fd = ioctl(device, NEW_UFFD, O_CLOEXEC);
		close(device);
	} else {
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	}
	if (fd < 0)
		return because("/dev/userfaultfd (or the sysctl "
			       "vm.unprivileged_userfaultfd)");
	close(fd);
	return NULL;
}

static const char *lacks_pages(size_t length, int shift, const char *why)
{
	void *pages = mmap(NULL, length, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
			   shift << MAP_HUGE_SHIFT, -1, 0);

	if (pages == MAP_FAILED)
		return because(why);
	munmap(pages, length);
	return NULL;
}

const char *lacks(const char *what)
{
	if (!strcmp(what, "kvm"))
		return lacks_kvm();
	if (!strcmp(what, "private"))
		return lacks_private();
	if (!strcmp(what, "userfault"))
		return lacks_userfault();
	if (!strcmp(what, "uffd"))
		return lacks_uffd();
	if (!strcmp(what, "hugetlb"))
		return lacks_pages(1UL << 21, 21, "no free huge page "
				   "(/proc/sys/vm/nr_hugepages)");
	if (!strcmp(what, "gigantic"))
		return lacks_pages(2UL << 30, 30, "no two free huge pages of "
				   "1 GiB (/sys/kernel/mm/hugepages/"
				   "hugepages-1048576kB/nr_hugepages)");
	if (!strcmp(what, "root"))
		return geteuid() ? "not root" : NULL;
	return "this need has no name that need() knows";
}

static bool required(const char *what)
{
	const char *list = getenv("KVMFAULT_REQUIRE");
	size_t length = strlen(what);

	while (list && *list) {
		size_t n = strcspn(list, ",");

		if (n == length && !strncmp(list, what, n))
			return true;
		list += n + (list[n] == ',');
	}
	return false;
}

bool have(const char *what, const char *why)
{
	if (!why)
		return true;
	if (required(what)) {
		printf("REQUIRED, but missing: %s: %s\n", what, why);
		exit(1);
	}
	printf("SKIP: %s: %s\n", what, why);
	return false;
}

void need(const char *what)
{
	if (!have(what, lacks(what)))
		exit(SKIPPED);
}
