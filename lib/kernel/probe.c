/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Before the path of any fault: which features this kernel offers. In:
 * descriptors of /dev/kvm and of the VM. Out: for each feature yes, no, or why
 * it could not be asked. The smallest real call decides, on scratch memory or
 * with arguments that change nothing; no version or capability's number does by
 * itself.
 */

#include <fcntl.h>
#include <limits.h>
#include <string.h>

#include "kvmfault-experimental.h"
#include "../os/abi.h"
#include "kernel.h"

static struct kvmfault_finding probe_yes(uint64_t value)
{
	return (struct kvmfault_finding){
		.support = KVMFAULT_SUPPORT_YES, .value = value,
	};
}

static struct kvmfault_finding probe_no(int error)
{
	return (struct kvmfault_finding){
		.support = KVMFAULT_SUPPORT_NO, .error = error,
	};
}

static struct kvmfault_finding probe_could_not(int error)
{
	return (struct kvmfault_finding){
		.support = KVMFAULT_SUPPORT_COULD_NOT_ASK, .error = error,
	};
}

/* If the kernel refuses a call only for its arguments, it knows the call. */
static struct kvmfault_finding probe_by_refusal(int err, uint64_t value)
{
	if (err == -ENOTTY || err == -ENOSYS)
		return probe_no(err);
	if (err >= 0 || err == -EINVAL)
		return probe_yes(value);
	return probe_could_not(err);
}

static int probe_extension(int fd, long capability)
{
	if (fd < 0)
		return -EBADF;
	return kvmfault__sys_ioctl(fd, KVM_CHECK_EXTENSION,
				   (void *)capability);
}

static struct kvmfault_finding probe_by_extension(int fd, long capability)
{
	int value = probe_extension(fd, capability);

	if (value < 0)
		return probe_could_not(value);
	return value ? probe_yes((uint64_t)value) : probe_no(0);
}

/* No VM has this slot number: a kernel that knows the call refuses it, and
 * changes nothing. */
static struct kvmfault_finding probe_user_memory2(int vm_fd)
{
	struct kvmfault__memory_region2 region = { .slot = 0xffff };
	struct kvmfault_finding said =
		probe_by_extension(vm_fd, KVMFAULT__CAP_USER_MEMORY2);

	if (said.support != KVMFAULT_SUPPORT_YES)
		return said;
	return probe_by_refusal(kvmfault__sys_ioctl(
		vm_fd, KVMFAULT__SET_USER_MEMORY_REGION2, &region), 0);
}

static struct kvmfault_finding probe_guest_memfd(int vm_fd)
{
	struct kvmfault__create_guest_memfd create = {
		.size = kvmfault__sys_page_size(),
	};
	struct kvmfault_finding said =
		probe_by_extension(vm_fd, KVMFAULT__CAP_GUEST_MEMFD);
	int fd, flags;

	if (said.support != KVMFAULT_SUPPORT_YES)
		return said;
	fd = kvmfault__sys_ioctl(vm_fd, KVMFAULT__CREATE_GUEST_MEMFD, &create);
	if (fd == -ENOTTY || fd == -EINVAL)
		return probe_no(fd);
	if (fd < 0)
		return probe_could_not(fd);
	kvmfault__sys_close(fd);
	flags = probe_extension(vm_fd, KVMFAULT__CAP_GUEST_MEMFD_FLAGS);
	return probe_yes(flags > 0 ? (uint64_t)flags : 0);
}

/* KVM refuses size 0 before it looks at anything else. */
static struct kvmfault_finding probe_attributes(int vm_fd)
{
	struct kvmfault__memory_attributes attributes = { 0 };
	struct kvmfault_finding said =
		probe_by_extension(vm_fd, KVMFAULT__CAP_MEMORY_ATTRIBUTES);

	if (said.support != KVMFAULT_SUPPORT_YES)
		return said;
	return probe_by_refusal(kvmfault__sys_ioctl(
		vm_fd, KVMFAULT__SET_MEMORY_ATTRIBUTES, &attributes),
		said.value);
}

/* A vCPU's call takes a VM of its own. KVM answers an unknown call of a vCPU
 * with -EINVAL, as it does a bad range. If it knows this one, it can't read the
 * NULL range: -EFAULT. */
static struct kvmfault_finding probe_pre_fault(int kvm_fd)
{
	struct kvmfault_finding said =
		probe_by_extension(kvm_fd, KVMFAULT__CAP_PRE_FAULT_MEMORY);
	int vm, vcpu, err;

	if (said.support != KVMFAULT_SUPPORT_YES)
		return said;
	vm = kvmfault__sys_ioctl(kvm_fd, KVM_CREATE_VM, NULL);
	if (vm < 0)
		return probe_could_not(vm);
	vcpu = kvmfault__sys_ioctl(vm, KVM_CREATE_VCPU, NULL);
	if (vcpu < 0) {
		said = probe_could_not(vcpu);
	} else {
		err = kvmfault__sys_ioctl(vcpu, KVMFAULT__PRE_FAULT_MEMORY,
					  NULL);
		said = err == -EFAULT ? probe_yes(0) : probe_no(err);
		kvmfault__sys_close(vcpu);
	}
	kvmfault__sys_close(vm);
	return said;
}

static struct kvmfault_finding probe_two_dimensional(int kvm_fd)
{
	int said = kvmfault__two_dimensional(kvm_fd);

	if (said < 0)
		return probe_could_not(said);
	return said ? probe_yes(0) : probe_no(0);
}

static void probe_kernel_exit(int kvm_fd, struct kvmfault_finding *f)
{
	struct kvmfault_finding *userfault = &f[KVMFAULT_FEATURE_USERFAULT];
	struct kvmfault_finding *missing = &f[KVMFAULT_FEATURE_EXIT_ON_MISSING];
	enum kvmfault__kernel_exit which;
	int err = kvmfault__kernel_exit_ask(kvm_fd, &which);

	*userfault = *missing = err ? probe_could_not(err) : probe_no(-EINVAL);
	if (which == KVMFAULT__KERNEL_EXIT_USERFAULT)
		*userfault = probe_yes(0);
	if (which == KVMFAULT__KERNEL_EXIT_ON_MISSING)
		*missing = probe_yes(0);
}

static void probe_kvm(int kvm_fd, int vm_fd, struct kvmfault_finding *f)
{
	f[KVMFAULT_FEATURE_MEMORY_FAULT_INFO] =
		probe_by_extension(vm_fd, KVMFAULT__CAP_MEMORY_FAULT_INFO);
	f[KVMFAULT_FEATURE_USER_MEMORY2] = probe_user_memory2(vm_fd);
	f[KVMFAULT_FEATURE_GUEST_MEMFD] = probe_guest_memfd(vm_fd);
	f[KVMFAULT_FEATURE_MEMORY_ATTRIBUTES] = probe_attributes(vm_fd);
	f[KVMFAULT_FEATURE_PRE_FAULT_MEMORY] = probe_pre_fault(kvm_fd);
	f[KVMFAULT_FEATURE_EXIT_ON_EMULATION_FAILURE] =
		probe_by_extension(vm_fd, KVM_CAP_EXIT_ON_EMULATION_FAILURE);
	f[KVMFAULT_FEATURE_ADDRESS_SPACES] =
		probe_by_extension(vm_fd, KVM_CAP_MULTI_ADDRESS_SPACE);
	f[KVMFAULT_FEATURE_TWO_DIMENSIONAL_PAGING] =
		probe_two_dimensional(kvm_fd);
	probe_kernel_exit(kvm_fd, f);
}

static struct kvmfault_finding probe_uffd_open(unsigned int how)
{
	int fd = kvmfault__uffd_open(how);

	if (fd >= 0) {
		kvmfault__sys_close(fd);
		return probe_yes(0);
	}
	/* Without the device or the call the answer is no. If only the right is
	 * missing, another process may have it. */
	return fd == -ENOENT || fd == -ENOSYS || fd == -ENOTTY ?
		probe_no(fd) : probe_could_not(fd);
}

/* Open a userfaultfd and do the handshake. Returns it, or -errno. */
static int probe_uffd_handshake(uint64_t *features)
{
	struct uffdio_api api = { .api = UFFD_API };
	int err, fd = kvmfault__uffd_open(KVMFAULT__UFFD_DEVICE |
					  KVMFAULT__UFFD_SYSCALL);

	if (fd < 0)
		return fd;
	err = kvmfault__sys_ioctl(fd, UFFDIO_API, &api);
	if (err) {
		kvmfault__sys_close(fd);
		return err;
	}
	*features = api.features;
	return fd;
}

#define ANONYMOUS INT_MIN	/* neither a descriptor nor an -errno */

/* Register scratch memory of fd, or ANONYMOUS; no thread touches it. */
static struct kvmfault_finding
probe_uffd_register(int uffd, int fd, size_t size, uint64_t mode)
{
	bool anonymous = fd == ANONYMOUS;
	struct uffdio_register reg = { .mode = mode };
	void *page;
	int err;

	if (fd < 0 && !anonymous)
		return probe_could_not(fd);
	err = kvmfault__sys_mmap(&page, size, PROT_READ | PROT_WRITE,
				 anonymous ? MAP_PRIVATE | MAP_ANONYMOUS :
				 MAP_SHARED | MAP_NORESERVE,
				 anonymous ? -1 : fd, 0);
	if (err)
		return probe_could_not(err);
	reg.range.start = (uintptr_t)page;
	reg.range.len = size;
	err = kvmfault__sys_ioctl(uffd, UFFDIO_REGISTER, &reg);
	kvmfault__sys_munmap(page, size);
	if (!err)
		return probe_yes(reg.ioctls);
	return err == -EINVAL ? probe_no(err) : probe_could_not(err);
}

static struct kvmfault_finding
probe_uffd_register_file(int uffd, unsigned int memfd_flags, uint64_t mode)
{
	/* The default huge page size is not known: try larger and larger files,
	 * up to 1 GiB. */
	static const size_t sizes[] = { 2 << 20, 32 << 20, 512 << 20, 1 << 30 };
	size_t i, size = kvmfault__sys_page_size();
	struct kvmfault_finding said;
	int fd;

	if (!memfd_flags) {
		fd = kvmfault__sys_memfd("kvmfault-probe", 0, (off_t)size);
		said = probe_uffd_register(uffd, fd, size, mode);
		if (fd >= 0)
			kvmfault__sys_close(fd);
		return said;
	}
	for (i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		fd = kvmfault__sys_memfd("kvmfault-probe", memfd_flags,
					 (off_t)sizes[i]);
		said = probe_uffd_register(uffd, fd, sizes[i], mode);
		if (fd >= 0)
			kvmfault__sys_close(fd);
		if (said.support != KVMFAULT_SUPPORT_COULD_NOT_ASK)
			break;
	}
	return said;
}

/* Guest memory is a memfd. shmem: can one be registered, and which calls does
 * its range then allow? */
static struct kvmfault_finding
probe_uffd_poison(uint64_t features, struct kvmfault_finding shmem)
{
	if (shmem.support != KVMFAULT_SUPPORT_YES)
		return shmem;
	return features & KVMFAULT__UFFD_FEATURE_POISON &&
	       shmem.value & 1ULL << KVMFAULT__UFFDIO_POISON_NR ?
		probe_yes(0) : probe_no(0);
}

struct kvmfault_finding kvmfault__ask_poison(void)
{
	uint64_t features = 0;
	int uffd = probe_uffd_handshake(&features);
	struct kvmfault_finding said;

	if (uffd < 0)
		return uffd == -ENOSYS ? probe_no(uffd) : probe_could_not(uffd);
	said = probe_uffd_poison(features, probe_uffd_register_file(
		uffd, 0, UFFDIO_REGISTER_MODE_MISSING));
	kvmfault__sys_close(uffd);
	return said;
}

static void probe_uffd_registered(int uffd, uint64_t features,
				  struct kvmfault_finding *f)
{
	const uint64_t missing = UFFDIO_REGISTER_MODE_MISSING;
	const uint64_t minor = UFFDIO_REGISTER_MODE_MINOR;

	f[KVMFAULT_FEATURE_UFFD_ANON] = probe_uffd_register(
		uffd, ANONYMOUS, kvmfault__sys_page_size(), missing);
	f[KVMFAULT_FEATURE_UFFD_SHMEM] =
		probe_uffd_register_file(uffd, 0, missing);
	f[KVMFAULT_FEATURE_UFFD_HUGETLB] =
		probe_uffd_register_file(uffd, MFD_HUGETLB, missing);
	f[KVMFAULT_FEATURE_UFFD_MINOR_SHMEM] =
		probe_uffd_register_file(uffd, 0, minor);
	f[KVMFAULT_FEATURE_UFFD_MINOR_HUGETLB] =
		probe_uffd_register_file(uffd, MFD_HUGETLB, minor);
	f[KVMFAULT_FEATURE_UFFD_POISON] =
		probe_uffd_poison(features, f[KVMFAULT_FEATURE_UFFD_SHMEM]);
	f[KVMFAULT_FEATURE_UFFD_MOVE] =
		features & KVMFAULT__UFFD_FEATURE_MOVE ?
		probe_yes(0) : probe_no(0);
}

static void probe_uffd(struct kvmfault_finding *f)
{
	uint64_t features = 0;
	int i, uffd;

	f[KVMFAULT_FEATURE_UFFD_DEVICE] =
		probe_uffd_open(KVMFAULT__UFFD_DEVICE);
	f[KVMFAULT_FEATURE_UFFD_SYSCALL] =
		probe_uffd_open(KVMFAULT__UFFD_SYSCALL);
	uffd = probe_uffd_handshake(&features);
	if (uffd < 0) {
		for (i = KVMFAULT_FEATURE_UFFD;
		     i <= KVMFAULT_FEATURE_UFFD_MOVE; i++)
			f[i] = uffd == -ENOSYS ? probe_no(uffd) :
						 probe_could_not(uffd);
		return;
	}
	f[KVMFAULT_FEATURE_UFFD] = probe_yes(features);
	probe_uffd_registered(uffd, features, f);
	kvmfault__sys_close(uffd);
}

static struct kvmfault_finding probe_populate(int advice)
{
	size_t size = kvmfault__sys_page_size();
	void *page;
	int err;

	err = kvmfault__sys_mmap(&page, size, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (err)
		return probe_could_not(err);
	err = kvmfault__sys_madvise(page, size, advice);
	kvmfault__sys_munmap(page, size);
	if (!err)
		return probe_yes(0);
	return err == -EINVAL ? probe_no(err) : probe_could_not(err);
}

KVMFAULT__EXPORT
int kvmfault_probe(int kvm_fd, int vm_fd, struct kvmfault_features *features)
{
	struct kvmfault_features ours = { .size = sizeof(ours) };

	if (!features)
		return -EINVAL;
	probe_kvm(kvm_fd, vm_fd, ours.feature);
	probe_uffd(ours.feature);
	ours.feature[KVMFAULT_FEATURE_POPULATE_READ] =
		probe_populate(KVMFAULT__MADV_POPULATE_READ);
	ours.feature[KVMFAULT_FEATURE_POPULATE_WRITE] =
		probe_populate(KVMFAULT__MADV_POPULATE_WRITE);
	return kvmfault__options_out(features, &ours, sizeof(ours));
}
