/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Before the flow: what this kernel offers. In: descriptors of /dev/kvm and of
 * the VM. Out: for each feature yes, no, or why it could not be asked. Each by
 * the smallest real call, on scratch memory or with arguments that change
 * nothing; no version and no number decides.
 */

#include <fcntl.h>
#include <limits.h>
#include <string.h>

#include "kvmfault-experimental.h"
#include "../os/abi.h"
#include "kernel.h"

static struct kvmfault_finding yes(uint64_t value)
{
	return (struct kvmfault_finding){ .support = KVMFAULT_SUPPORT_YES, .value = value };
}

static struct kvmfault_finding no(int error)
{
	return (struct kvmfault_finding){ .support = KVMFAULT_SUPPORT_NO, .error = error };
}

static struct kvmfault_finding could_not(int error)
{
	return (struct kvmfault_finding){ .support = KVMFAULT_SUPPORT_COULD_NOT_ASK, .error = error };
}

/* A call that the kernel knows but refuses for its arguments: yes. */
static struct kvmfault_finding by_refusal(int err, uint64_t value)
{
	if (err == -ENOTTY || err == -ENOSYS)
		return no(err);
	if (err >= 0 || err == -EINVAL)
		return yes(value);
	return could_not(err);
}

static int extension(int fd, long capability)
{
	if (fd < 0)
		return -EBADF;
	return kvmfault__sys_ioctl(fd, KVM_CHECK_EXTENSION,
				   (void *)capability);
}

static struct kvmfault_finding by_extension(int fd, long capability)
{
	int value = extension(fd, capability);

	if (value < 0)
		return could_not(value);
	return value ? yes((uint64_t)value) : no(0);
}

/* A slot number that no VM has: known, refused, nothing changed. */
static struct kvmfault_finding ask_user_memory2(int vm_fd)
{
	struct kvmfault__memory_region2 region = { .slot = 0xffff };
	struct kvmfault_finding said = by_extension(vm_fd, KVMFAULT__CAP_USER_MEMORY2);

	if (said.support != KVMFAULT_SUPPORT_YES)
		return said;
	return by_refusal(kvmfault__sys_ioctl(
		vm_fd, KVMFAULT__SET_USER_MEMORY_REGION2, &region), 0);
}

static struct kvmfault_finding ask_guest_memfd(int vm_fd)
{
	struct kvmfault__create_guest_memfd create = {
		.size = kvmfault__sys_page_size(),
	};
	struct kvmfault_finding said = by_extension(vm_fd, KVMFAULT__CAP_GUEST_MEMFD);
	int fd, flags;

	if (said.support != KVMFAULT_SUPPORT_YES)
		return said;
	fd = kvmfault__sys_ioctl(vm_fd, KVMFAULT__CREATE_GUEST_MEMFD, &create);
	if (fd == -ENOTTY || fd == -EINVAL)
		return no(fd);
	if (fd < 0)
		return could_not(fd);
	kvmfault__sys_close(fd);
	flags = extension(vm_fd, KVMFAULT__CAP_GUEST_MEMFD_FLAGS);
	return yes(flags > 0 ? (uint64_t)flags : 0);
}

/* Size 0 is refused before anything is looked at. */
static struct kvmfault_finding ask_attributes(int vm_fd)
{
	struct kvmfault__memory_attributes attributes = { 0 };
	struct kvmfault_finding said = by_extension(vm_fd, KVMFAULT__CAP_MEMORY_ATTRIBUTES);

	if (said.support != KVMFAULT_SUPPORT_YES)
		return said;
	return by_refusal(kvmfault__sys_ioctl(
		vm_fd, KVMFAULT__SET_MEMORY_ATTRIBUTES, &attributes),
		said.value);
}

/* A vCPU's call, so it takes a VM of its own. To a call that it does not know a
 * vCPU says -EINVAL, as it does to a bad range: so it is given none at all, which
 * is -EFAULT from who looks for one. */
static struct kvmfault_finding ask_pre_fault(int kvm_fd)
{
	struct kvmfault_finding said = by_extension(kvm_fd, KVMFAULT__CAP_PRE_FAULT_MEMORY);
	int vm, vcpu, err;

	if (said.support != KVMFAULT_SUPPORT_YES)
		return said;
	vm = kvmfault__sys_ioctl(kvm_fd, KVM_CREATE_VM, NULL);
	if (vm < 0)
		return could_not(vm);
	vcpu = kvmfault__sys_ioctl(vm, KVM_CREATE_VCPU, NULL);
	if (vcpu < 0) {
		said = could_not(vcpu);
	} else {
		err = kvmfault__sys_ioctl(vcpu, KVMFAULT__PRE_FAULT_MEMORY,
					  NULL);
		said = err == -EFAULT ? yes(0) : no(err);
		kvmfault__sys_close(vcpu);
	}
	kvmfault__sys_close(vm);
	return said;
}

static struct kvmfault_finding ask_two_dimensional(int kvm_fd)
{
	int said = kvmfault__two_dimensional(kvm_fd);

	if (said < 0)
		return could_not(said);
	return said ? yes(0) : no(0);
}

static void probe_kernel_exit(int kvm_fd, struct kvmfault_finding *f)
{
	struct kvmfault_finding *userfault = &f[KVMFAULT_FEATURE_USERFAULT];
	struct kvmfault_finding *missing = &f[KVMFAULT_FEATURE_EXIT_ON_MISSING];
	enum kvmfault__kernel_exit which;
	int err = kvmfault__kernel_exit_ask(kvm_fd, &which);

	*userfault = *missing = err ? could_not(err) : no(-EINVAL);
	if (which == KVMFAULT__KERNEL_EXIT_USERFAULT)
		*userfault = yes(0);
	if (which == KVMFAULT__KERNEL_EXIT_ON_MISSING)
		*missing = yes(0);
}

static void probe_kvm(int kvm_fd, int vm_fd, struct kvmfault_finding *f)
{
	f[KVMFAULT_FEATURE_MEMORY_FAULT_INFO] =
		by_extension(vm_fd, KVMFAULT__CAP_MEMORY_FAULT_INFO);
	f[KVMFAULT_FEATURE_USER_MEMORY2] = ask_user_memory2(vm_fd);
	f[KVMFAULT_FEATURE_GUEST_MEMFD] = ask_guest_memfd(vm_fd);
	f[KVMFAULT_FEATURE_MEMORY_ATTRIBUTES] = ask_attributes(vm_fd);
	f[KVMFAULT_FEATURE_PRE_FAULT_MEMORY] = ask_pre_fault(kvm_fd);
	f[KVMFAULT_FEATURE_EXIT_ON_EMULATION_FAILURE] =
		by_extension(vm_fd, KVM_CAP_EXIT_ON_EMULATION_FAILURE);
	f[KVMFAULT_FEATURE_ADDRESS_SPACES] =
		by_extension(vm_fd, KVM_CAP_MULTI_ADDRESS_SPACE);
	f[KVMFAULT_FEATURE_TWO_DIMENSIONAL_PAGING] =
		ask_two_dimensional(kvm_fd);
	probe_kernel_exit(kvm_fd, f);
}

static struct kvmfault_finding ask_open(unsigned int how)
{
	int fd = kvmfault__uffd_open(how);

	if (fd >= 0) {
		kvmfault__sys_close(fd);
		return yes(0);
	}
	/* No such device or call: no. No right: another process may have it. */
	return fd == -ENOENT || fd == -ENOSYS || fd == -ENOTTY ? no(fd) :
								  could_not(fd);
}

/* A userfaultfd with the handshake done, or -errno. */
static int handshake(uint64_t *features)
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

#define ANONYMOUS INT_MIN	/* no -errno is that */

/* Register scratch memory of fd (or anonymous); nothing touches it. */
static struct kvmfault_finding ask_register(int uffd, int fd, size_t size, uint64_t mode)
{
	bool anonymous = fd == ANONYMOUS;
	struct uffdio_register reg = { .mode = mode };
	void *page;
	int err;

	if (fd < 0 && !anonymous)
		return could_not(fd);
	err = kvmfault__sys_mmap(&page, size, PROT_READ | PROT_WRITE,
				 anonymous ? MAP_PRIVATE | MAP_ANONYMOUS :
				 MAP_SHARED | MAP_NORESERVE,
				 anonymous ? -1 : fd, 0);
	if (err)
		return could_not(err);
	reg.range.start = (uintptr_t)page;
	reg.range.len = size;
	err = kvmfault__sys_ioctl(uffd, UFFDIO_REGISTER, &reg);
	kvmfault__sys_munmap(page, size);
	if (!err)
		return yes(reg.ioctls);
	return err == -EINVAL ? no(err) : could_not(err);
}

static struct kvmfault_finding register_file(int uffd, unsigned int memfd_flags, uint64_t mode)
{
	/* hugetlb: whatever the default huge page size is, up to 1 GiB */
	static const size_t sizes[] = { 2 << 20, 32 << 20, 512 << 20, 1 << 30 };
	size_t i, size = kvmfault__sys_page_size();
	struct kvmfault_finding said;
	int fd;

	if (!memfd_flags) {
		fd = kvmfault__sys_memfd("kvmfault-probe", 0, (off_t)size);
		said = ask_register(uffd, fd, size, mode);
		if (fd >= 0)
			kvmfault__sys_close(fd);
		return said;
	}
	for (i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		fd = kvmfault__sys_memfd("kvmfault-probe", memfd_flags,
					 (off_t)sizes[i]);
		said = ask_register(uffd, fd, sizes[i], mode);
		if (fd >= 0)
			kvmfault__sys_close(fd);
		if (said.support != KVMFAULT_SUPPORT_COULD_NOT_ASK)
			break;
	}
	return said;
}

/* A page of a memfd, as guest memory is: registered, and what can be done? */
static struct kvmfault_finding poison(uint64_t features, struct kvmfault_finding shmem)
{
	if (shmem.support != KVMFAULT_SUPPORT_YES)
		return shmem;
	return features & KVMFAULT__UFFD_FEATURE_POISON &&
	       shmem.value & 1ULL << KVMFAULT__UFFDIO_POISON_NR ?
		yes(0) : no(0);
}

struct kvmfault_finding kvmfault__ask_poison(void)
{
	uint64_t features = 0;
	int uffd = handshake(&features);
	struct kvmfault_finding said;

	if (uffd < 0)
		return uffd == -ENOSYS ? no(uffd) : could_not(uffd);
	said = poison(features, register_file(uffd, 0,
					      UFFDIO_REGISTER_MODE_MISSING));
	kvmfault__sys_close(uffd);
	return said;
}

static void probe_registered(int uffd, uint64_t features, struct kvmfault_finding *f)
{
	const uint64_t missing = UFFDIO_REGISTER_MODE_MISSING;
	const uint64_t minor = UFFDIO_REGISTER_MODE_MINOR;

	f[KVMFAULT_FEATURE_UFFD_ANON] = ask_register(
		uffd, ANONYMOUS, kvmfault__sys_page_size(), missing);
	f[KVMFAULT_FEATURE_UFFD_SHMEM] = register_file(uffd, 0, missing);
	f[KVMFAULT_FEATURE_UFFD_HUGETLB] =
		register_file(uffd, MFD_HUGETLB, missing);
	f[KVMFAULT_FEATURE_UFFD_MINOR_SHMEM] = register_file(uffd, 0, minor);
	f[KVMFAULT_FEATURE_UFFD_MINOR_HUGETLB] =
		register_file(uffd, MFD_HUGETLB, minor);
	f[KVMFAULT_FEATURE_UFFD_POISON] =
		poison(features, f[KVMFAULT_FEATURE_UFFD_SHMEM]);
	f[KVMFAULT_FEATURE_UFFD_MOVE] =
		features & KVMFAULT__UFFD_FEATURE_MOVE ? yes(0) : no(0);
}

static void probe_uffd(struct kvmfault_finding *f)
{
	uint64_t features = 0;
	int i, uffd;

	f[KVMFAULT_FEATURE_UFFD_DEVICE] = ask_open(KVMFAULT__UFFD_DEVICE);
	f[KVMFAULT_FEATURE_UFFD_SYSCALL] = ask_open(KVMFAULT__UFFD_SYSCALL);
	uffd = handshake(&features);
	if (uffd < 0) {
		for (i = KVMFAULT_FEATURE_UFFD;
		     i <= KVMFAULT_FEATURE_UFFD_MOVE; i++)
			f[i] = uffd == -ENOSYS ? no(uffd) : could_not(uffd);
		return;
	}
	f[KVMFAULT_FEATURE_UFFD] = yes(features);
	probe_registered(uffd, features, f);
	kvmfault__sys_close(uffd);
}

static struct kvmfault_finding ask_populate(int advice)
{
	size_t size = kvmfault__sys_page_size();
	void *page;
	int err;

	err = kvmfault__sys_mmap(&page, size, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (err)
		return could_not(err);
	err = kvmfault__sys_madvise(page, size, advice);
	kvmfault__sys_munmap(page, size);
	if (!err)
		return yes(0);
	return err == -EINVAL ? no(err) : could_not(err);
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
		ask_populate(KVMFAULT__MADV_POPULATE_READ);
	ours.feature[KVMFAULT_FEATURE_POPULATE_WRITE] =
		ask_populate(KVMFAULT__MADV_POPULATE_WRITE);
	return kvmfault__options_out(features, &ours, sizeof(ours));
}
