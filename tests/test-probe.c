/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * probe.c: three answers, each by a real call; "could not ask" is not "no"; and
 * nothing stays open.
 */

#include <string.h>

#include "kvmfault-experimental.h"
#include "fake-sys.h"
#include "lib/os/abi.h"
#include "lib/setup/setup.h"
#include "unit.h"

static struct kvmfault_features features;
static int kvm, vm;

/* What KVM says: of an extension, and of its calls. */
static long capability[256];
static long call_result[256];	/* by the request's number */
static long slot_result;
static bool vm_is_refused;

/* A slot with the flag of which there are two proposals: this is the one with a
 * bitmap. */
static long exits_of_slot(const struct kvmfault__memory_region2 *region)
{
	return region->pad2[0] >> 47 ? -EINVAL : slot_result;
}

static bool kvm_calls(struct fake_call *call)
{
	const struct kvmfault__memory_region2 *region = call->arg;

	if (_IOC_TYPE(call->number) != KVMIO)
		return false;
	call->result = call_result[_IOC_NR(call->number)];
	if (call->number == KVMFAULT__SET_USER_MEMORY_REGION2 &&
	    region->flags) {
		call->result = exits_of_slot(region);
		return true;
	}
	if (call->number == KVM_CHECK_EXTENSION) {
		call->result = capability[(uintptr_t)call->arg];
	} else if (call->number == KVM_CREATE_VM && vm_is_refused) {
		call->result = -EMFILE;
	} else if (call->result == FAKE_MODEL) {
		call->result = fake_fd(FAKE_KVM);
		fake_give((int)call->result);
	}
	return true;
}

#define NR(request) _IOC_NR(request)

/* A kernel that has it all. */
static void up(void)
{
	size_t i;

	kvm = fake_fd(FAKE_KVM);
	vm = fake_fd(FAKE_KVM);
	fake_on(FAKE_IOCTL, kvm_calls);
	for (i = 0; i < 256; i++)
		capability[i] = 1;
	capability[KVMFAULT__CAP_MEMORY_ATTRIBUTES] = 8;
	capability[KVMFAULT__CAP_GUEST_MEMFD_FLAGS] = 3;
	capability[KVM_CAP_MULTI_ADDRESS_SPACE] = 2;
	call_result[NR(KVMFAULT__SET_USER_MEMORY_REGION2)] = -EINVAL;
	call_result[NR(KVMFAULT__SET_MEMORY_ATTRIBUTES)] = -EINVAL;
	call_result[NR(KVMFAULT__PRE_FAULT_MEMORY)] = -EFAULT;
	call_result[NR(KVMFAULT__CREATE_GUEST_MEMFD)] = FAKE_MODEL;
	call_result[NR(KVM_CREATE_VM)] = FAKE_MODEL;
	call_result[NR(KVM_CREATE_VCPU)] = FAKE_MODEL;
	call_result[NR(KVM_GET_VCPU_MMAP_SIZE)] = 3 * PAGE;
	call_result[NR(KVM_RUN)] = -EFAULT;
}

static void down(void)
{
	struct fake_held held = fake_held();

	ck_assert_int_eq(held.descriptors, 0);
	ck_assert_int_eq(held.mappings, 0);
	ck_assert_int_eq(held.allocations, 0);
}

static void probe(void)
{
	memset(&features, 0x55, sizeof(features));
	features.size = sizeof(features);
	ck_assert_int_eq(kvmfault_probe(kvm, vm, &features), 0);
}

static void check(enum kvmfault_feature feature, enum kvmfault_support answer,
		  int error, uint64_t value)
{
	const struct kvmfault_finding *f = &features.feature[feature];

	ck_assert_msg((int)f->support == (int)answer && f->error == error &&
		      f->value == value, "%s: %s, %d, %#llx",
		      kvmfault_feature_str(feature),
		      kvmfault_support_str(f->support), f->error,
		      (unsigned long long)f->value);
}

TEST_GROUP(probe, up, down);

TEST(probe, all_of_it)
{
	int i;

	probe();
	for (i = 1; i < KVMFAULT_FEATURE_COUNT; i++)
		if (i != KVMFAULT_FEATURE_UFFD_MOVE &&
		    i != KVMFAULT_FEATURE_EXIT_ON_MISSING)
			ck_assert_msg(features.feature[i].support ==
				      KVMFAULT_SUPPORT_YES, "%s",
				      kvmfault_feature_str(i));
	check(KVMFAULT_FEATURE_MEMORY_ATTRIBUTES, KVMFAULT_SUPPORT_YES, 0, 8);
	check(KVMFAULT_FEATURE_GUEST_MEMFD, KVMFAULT_SUPPORT_YES, 0, 3);
	check(KVMFAULT_FEATURE_ADDRESS_SPACES, KVMFAULT_SUPPORT_YES, 0, 2);
	check(KVMFAULT_FEATURE_UFFD_MOVE, KVMFAULT_SUPPORT_NO, 0, 0);
	/* They exclude each other. */
	check(KVMFAULT_FEATURE_EXIT_ON_MISSING, KVMFAULT_SUPPORT_NO, -EINVAL, 0);
	ck_assert_int_eq(features.feature[KVMFAULT_FEATURE_NONE].support,
			 KVMFAULT_SUPPORT_NOT_ASKED);
}

TEST(probe, bad_arguments)
{
	ck_assert_int_eq(kvmfault_probe(kvm, vm, NULL), -EINVAL);
	features.size = 0;
	ck_assert_int_eq(kvmfault_probe(kvm, vm, &features), -EINVAL);
}

TEST(probe, no_kvm)
{
	int i;

	kvm = vm = -1;
	probe();
	for (i = KVMFAULT_FEATURE_MEMORY_FAULT_INFO;
	     i <= KVMFAULT_FEATURE_ADDRESS_SPACES; i++)
		check(i, KVMFAULT_SUPPORT_COULD_NOT_ASK, -EBADF, 0);
	check(KVMFAULT_FEATURE_TWO_DIMENSIONAL_PAGING, KVMFAULT_SUPPORT_COULD_NOT_ASK,
	      -EBADF, 0);
	check(KVMFAULT_FEATURE_USERFAULT, KVMFAULT_SUPPORT_COULD_NOT_ASK, -EBADF, 0);
	check(KVMFAULT_FEATURE_EXIT_ON_MISSING, KVMFAULT_SUPPORT_COULD_NOT_ASK, -EBADF,
	      0);
	check(KVMFAULT_FEATURE_POPULATE_READ, KVMFAULT_SUPPORT_YES, 0, 0);
}

TEST(probe, old_kvm)
{
	int i;

	memset(capability, 0, sizeof(capability));
	vm_is_refused = true;
	probe();
	for (i = KVMFAULT_FEATURE_MEMORY_FAULT_INFO;
	     i <= KVMFAULT_FEATURE_ADDRESS_SPACES; i++)
		check(i, KVMFAULT_SUPPORT_NO, 0, 0);
	/* Where the number says no, nothing is tried: the VMs are others'. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, KVM_CREATE_VM), 2);
	check(KVMFAULT_FEATURE_TWO_DIMENSIONAL_PAGING, KVMFAULT_SUPPORT_COULD_NOT_ASK,
	      -EMFILE, 0);
}

static bool as_missing(struct fake_call *call)
{
	if (call->number == KVMFAULT__SET_USER_MEMORY_REGION2 ||
	    call->number == KVM_SET_USER_MEMORY_REGION) {
		call->result = 0;
		return true;
	}
	return kvm_calls(call);
}

/* There is no number to believe: only what a slot is taken with. */
TEST(probe, kvm_that_exits)
{
	slot_result = -EINVAL;
	probe();
	check(KVMFAULT_FEATURE_USERFAULT, KVMFAULT_SUPPORT_NO, -EINVAL, 0);
	check(KVMFAULT_FEATURE_EXIT_ON_MISSING, KVMFAULT_SUPPORT_NO, -EINVAL, 0);
	slot_result = -ENOMEM;
	probe();
	check(KVMFAULT_FEATURE_USERFAULT, KVMFAULT_SUPPORT_COULD_NOT_ASK, -ENOMEM, 0);
	fake_on(FAKE_IOCTL, as_missing);
	probe();
	check(KVMFAULT_FEATURE_USERFAULT, KVMFAULT_SUPPORT_NO, -EINVAL, 0);
	check(KVMFAULT_FEATURE_EXIT_ON_MISSING, KVMFAULT_SUPPORT_YES, 0, 0);
}

/* The numbers of patches that were not merged mean other things: the call has
 * the last word. */
TEST(probe, number_says_yes_and_the_call_no)
{
	call_result[NR(KVMFAULT__SET_USER_MEMORY_REGION2)] = -ENOTTY;
	call_result[NR(KVMFAULT__SET_MEMORY_ATTRIBUTES)] = -ENOTTY;
	call_result[NR(KVMFAULT__PRE_FAULT_MEMORY)] = -EINVAL;
	call_result[NR(KVMFAULT__CREATE_GUEST_MEMFD)] = -ENOTTY;
	probe();
	check(KVMFAULT_FEATURE_USER_MEMORY2, KVMFAULT_SUPPORT_NO, -ENOTTY, 0);
	check(KVMFAULT_FEATURE_MEMORY_ATTRIBUTES, KVMFAULT_SUPPORT_NO, -ENOTTY, 0);
	check(KVMFAULT_FEATURE_PRE_FAULT_MEMORY, KVMFAULT_SUPPORT_NO, -EINVAL, 0);
	check(KVMFAULT_FEATURE_GUEST_MEMFD, KVMFAULT_SUPPORT_NO, -ENOTTY, 0);
}

TEST(probe, kvm_cannot_say)
{
	call_result[NR(KVMFAULT__CREATE_GUEST_MEMFD)] = -EMFILE;
	call_result[NR(KVMFAULT__SET_USER_MEMORY_REGION2)] = -EPERM;
	vm_is_refused = true;
	probe();
	check(KVMFAULT_FEATURE_GUEST_MEMFD, KVMFAULT_SUPPORT_COULD_NOT_ASK, -EMFILE,
	      0);
	check(KVMFAULT_FEATURE_USER_MEMORY2, KVMFAULT_SUPPORT_COULD_NOT_ASK, -EPERM,
	      0);
	check(KVMFAULT_FEATURE_PRE_FAULT_MEMORY, KVMFAULT_SUPPORT_COULD_NOT_ASK,
	      -EMFILE, 0);
	check(KVMFAULT_FEATURE_TWO_DIMENSIONAL_PAGING, KVMFAULT_SUPPORT_COULD_NOT_ASK,
	      -EMFILE, 0);
}

/* The scratch guest takes a page fault, and has nobody to handle it. */
static bool shadow_paging(struct fake_call *call)
{
	const struct fake_call *map;
	size_t i;

	if (call->number != KVM_RUN)
		return kvm_calls(call);
	for (i = 0; (map = fake_nth(FAKE_MMAP, FAKE_ANY, i)); i++)
		if (map->length == 3 * PAGE)
			((struct kvm_run *)map->at)->exit_reason =
				KVM_EXIT_SHUTDOWN;
	call->result = 0;
	return true;
}

TEST(probe, kvm_with_shadow_paging)
{
	fake_on(FAKE_IOCTL, shadow_paging);
	probe();
	check(KVMFAULT_FEATURE_TWO_DIMENSIONAL_PAGING, KVMFAULT_SUPPORT_NO, 0, 0);
}

TEST(probe, no_right_to_userfaultfd)
{
	int i;

	fake_uffd_denied = -EPERM;
	probe();
	for (i = KVMFAULT_FEATURE_UFFD_DEVICE; i <= KVMFAULT_FEATURE_UFFD_MOVE;
	     i++)
		check(i, KVMFAULT_SUPPORT_COULD_NOT_ASK, -EPERM, 0);
}

TEST(probe, no_userfaultfd)
{
	fake_push(FAKE_OPEN, -ENOENT);
	fake_push(FAKE_OPEN, -ENOENT);
	fake_push(FAKE_USERFAULTFD, -ENOSYS);
	fake_push(FAKE_USERFAULTFD, -ENOSYS);
	probe();
	check(KVMFAULT_FEATURE_UFFD_DEVICE, KVMFAULT_SUPPORT_NO, -ENOENT, 0);
	check(KVMFAULT_FEATURE_UFFD_SYSCALL, KVMFAULT_SUPPORT_NO, -ENOSYS, 0);
	check(KVMFAULT_FEATURE_UFFD, KVMFAULT_SUPPORT_NO, -ENOSYS, 0);
	check(KVMFAULT_FEATURE_UFFD_SHMEM, KVMFAULT_SUPPORT_NO, -ENOSYS, 0);
}

TEST_EACH(probe, no_memfd, 3)
{
	static const int errors[] = { -EPERM, -EMFILE, -ENOMEM };
	size_t i;

	/* -EPERM is -1, which is also what anonymous memory is mapped with. */
	for (i = 0; i < 20; i++)
		fake_push(FAKE_MEMFD, errors[_i]);
	probe();
	check(KVMFAULT_FEATURE_UFFD_SHMEM, KVMFAULT_SUPPORT_COULD_NOT_ASK, errors[_i],
	      0);
	check(KVMFAULT_FEATURE_UFFD_HUGETLB, KVMFAULT_SUPPORT_COULD_NOT_ASK,
	      errors[_i], 0);
	ck_assert_int_eq(features.feature[KVMFAULT_FEATURE_UFFD_ANON].support,
			 KVMFAULT_SUPPORT_YES);
}

static bool no_minor(struct fake_call *call)
{
	struct uffdio_register *reg = call->arg;

	if (call->number != UFFDIO_REGISTER)
		return kvm_calls(call);
	if (reg->mode != UFFDIO_REGISTER_MODE_MINOR)
		return false;
	call->result = -EINVAL;
	return true;
}

TEST(probe, kernel_without_minor)
{
	fake_on(FAKE_IOCTL, no_minor);
	probe();
	check(KVMFAULT_FEATURE_UFFD_MINOR_SHMEM, KVMFAULT_SUPPORT_NO, -EINVAL, 0);
	ck_assert_int_eq(features.feature[KVMFAULT_FEATURE_UFFD_SHMEM].support,
			 KVMFAULT_SUPPORT_YES);
}

TEST(probe, kernel_without_populate)
{
	fake_push(FAKE_MADVISE, -EINVAL);
	fake_push(FAKE_MADVISE, -ENOMEM);
	probe();
	check(KVMFAULT_FEATURE_POPULATE_READ, KVMFAULT_SUPPORT_NO, -EINVAL, 0);
	check(KVMFAULT_FEATURE_POPULATE_WRITE, KVMFAULT_SUPPORT_COULD_NOT_ASK,
	      -ENOMEM, 0);
}

int main(void)
{
	return run_suite("probe");
}
