/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * paging.c: the scratch guest, on a KVM that is scripted. What a real one says
 * is test-kvm-paging.c's.
 */

#include <string.h>

#include "fake-sys.h"
#include "lib/os/abi.h"
#include "lib/setup/setup.h"
#include "unit.h"

static int kvm;

static void up(void)
{
	kvm = fake_fd(FAKE_KVM);
}

static void down(void)
{
	struct fake_held held = fake_held();

	ck_assert_int_eq(held.descriptors, 0);
	ck_assert_int_eq(held.mappings, 0);
	ck_assert_int_eq(held.allocations, 0);
}

TEST_GROUP(paging, up, down);

#ifdef __x86_64__

#define RUN_SIZE (3 * PAGE)

static long answers[100];	/* of KVM_RUN, one after the other */
static unsigned int runs;
static uint32_t exit_reason;
static struct kvm_sregs set;
static struct kvm_userspace_memory_region slot;

static long give_fd(void)
{
	int fd = fake_fd(FAKE_KVM);

	fake_give(fd);
	return fd;
}

static long run(void)
{
	const struct fake_call *call;
	size_t i;

	for (i = 0; (call = fake_nth(FAKE_MMAP, FAKE_ANY, i)); i++)
		if (call->length == RUN_SIZE)
			((struct kvm_run *)call->at)->exit_reason = exit_reason;
	return answers[runs++];
}

static bool kvm_calls(struct fake_call *call)
{
	call->result = 0;
	switch (call->number) {
	case KVM_CREATE_VM:
	case KVM_CREATE_VCPU:
		call->result = give_fd();
		return true;
	case KVM_GET_VCPU_MMAP_SIZE:
		call->result = RUN_SIZE;
		return true;
	case KVM_SET_USER_MEMORY_REGION:
		memcpy(&slot, call->arg, sizeof(slot));
		return true;
	case KVM_GET_SREGS:
		memset(call->arg, 0, sizeof(struct kvm_sregs));
		((struct kvm_sregs *)call->arg)->idt.limit = 0xffff;
		return true;
	case KVM_SET_SREGS:
		memcpy(&set, call->arg, sizeof(set));
		return true;
	case KVM_RUN:
		call->result = run();
		return true;
	}
	return false;
}

static int ask(long answer, uint32_t reason)
{
	answers[0] = answer;
	exit_reason = reason;
	fake_on(FAKE_IOCTL, kvm_calls);
	return kvmfault__two_dimensional(kvm);
}

TEST(paging, yes)
{
	ck_assert_int_eq(ask(-EFAULT, KVM_EXIT_UNKNOWN), 1);
	/* A kernel that would say where it was. */
	runs = 0;
	ck_assert_int_eq(ask(-EFAULT, KVMFAULT__EXIT_MEMORY_FAULT), 1);
}

TEST(paging, no)
{
	ck_assert_int_eq(ask(0, KVM_EXIT_SHUTDOWN), 0);
}

/* What it was not made for says nothing. */
TEST_EACH(paging, another_exit, 4)
{
	static const uint32_t reasons[] = {
		KVM_EXIT_UNKNOWN, KVM_EXIT_MMIO, KVM_EXIT_FAIL_ENTRY,
		KVM_EXIT_INTERNAL_ERROR,
	};

	ck_assert_int_eq(ask(0, reasons[_i]), -EIO);
}

TEST(paging, the_guest)
{
	ck_assert_int_eq(ask(0, KVM_EXIT_SHUTDOWN), 0);
	/* Its page table is in the slot, and paging is on. */
	ck_assert_uint_eq(slot.guest_phys_addr, 0);
	ck_assert_uint_eq(slot.memory_size, PAGE);
	ck_assert_uint_ne(slot.userspace_addr, 0);
	ck_assert_uint_eq(set.cr3, 0);
	ck_assert_uint_eq(set.cr0 & 0x80000001, 0x80000001);
	ck_assert_uint_eq(set.efer, 0);
	ck_assert_uint_eq(set.idt.limit, 0);
	/* It has no interrupt controller. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, KVM_CREATE_IRQCHIP), 0);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, KVM_ENABLE_CAP), 0);
}

TEST(paging, signals)
{
	size_t i;

	for (i = 0; i < 10; i++)
		answers[i] = -EINTR;
	answers[10] = -EFAULT;
	ck_assert_int_eq(ask(-EINTR, KVM_EXIT_SHUTDOWN), 1);
	ck_assert_uint_eq(runs, 11);
}

TEST(paging, nothing_but_signals)
{
	size_t i;

	for (i = 0; i < 100; i++)
		answers[i] = -EINTR;
	ck_assert_int_eq(ask(-EINTR, KVM_EXIT_SHUTDOWN), -EINTR);
	ck_assert_uint_lt(runs, 100);
}

TEST_EACH(paging, cannot_ask, 7)
{
	static const uint64_t requests[] = {
		KVM_CREATE_VM, KVM_SET_USER_MEMORY_REGION, KVM_CREATE_VCPU,
		KVM_GET_VCPU_MMAP_SIZE, KVM_GET_SREGS, KVM_SET_SREGS, KVM_RUN,
	};

	fake_refuse(FAKE_IOCTL, requests[_i], -EMFILE);
	ck_assert_int_eq(ask(-EFAULT, 0), -EMFILE);
}

TEST_EACH(paging, no_room, 2)
{
	size_t i;

	for (i = 0; i < (size_t)_i; i++)
		fake_push(FAKE_MMAP, FAKE_MODEL);
	fake_push(FAKE_MMAP, -ENOMEM);
	ck_assert_int_eq(ask(-EFAULT, 0), -ENOMEM);
	ck_assert_uint_eq(runs, 0);
}

#else

TEST(paging, always)
{
	ck_assert_int_eq(kvmfault__two_dimensional(kvm), 1);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, FAKE_ANY), 0);
}

#endif

TEST(paging, without_kvm)
{
	ck_assert_int_eq(kvmfault__two_dimensional(-1), -EBADF);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, FAKE_ANY), 0);
}

int main(void)
{
	return run_suite("paging");
}
