/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * delivery.c: which mode is chosen of what the VMM wants, what it allows and
 * what the kernel has; and that it is said why the others are not.
 */

#include <stdio.h>
#include <string.h>

#include "kvmfault-experimental.h"
#include "bed.h"

static struct kvmfault_vm_options options;
static struct kvmfault_vm *vm;
static char logged[512];

static void on_log(void *data, enum kvmfault_log_level level,
		   const char *message)
{
	(void)data;
	ck_assert_int_eq(level, KVMFAULT_LOG_ERROR);
	snprintf(logged, sizeof(logged), "%s", message);
}

static void up(void)
{
	static const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops), .log = on_log,
	};

	options = (struct kvmfault_vm_options){
		.size = sizeof(options), .ops = &ops,
	};
	*logged = '\0';
}

static void down(void)
{
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	ck_assert_int_eq(fake_held().descriptors, 0);
	ck_assert_int_eq(fake_held().mappings, 0);
}

static struct kvmfault_delivery_report report(void)
{
	struct kvmfault_delivery_report report = { .size = sizeof(report) };

	ck_assert_int_eq(kvmfault_vm_delivery(vm, &report), 0);
	return report;
}

static void expect(enum kvmfault_delivery delivery)
{
	struct kvmfault_delivery_report is;
	int i;

	ck_assert_int_eq(kvmfault_vm_new(&options, &vm), 0);
	is = report();
	ck_assert_int_eq(is.delivery, delivery);
	for (i = 0; i < KVMFAULT_DELIVERY_COUNT; i++)
		ck_assert_int_eq(is.why[i] == NULL, i == (int)delivery);
}

static void refused(enum kvmfault_delivery delivery, const char *why)
{
	options.delivery = delivery;
	ck_assert_int_eq(kvmfault_vm_new(&options, &vm), -EOPNOTSUPP);
	ck_assert_ptr_null(vm);
	ck_assert_ptr_nonnull(strstr(logged, kvmfault_delivery_str(delivery)));
	ck_assert_ptr_nonnull(strstr(logged, why));
}

static void why(enum kvmfault_delivery delivery, enum kvmfault_support answer,
		const char *text)
{
	ck_assert_int_eq(report().mode[delivery].support, answer);
	ck_assert_ptr_nonnull(strstr(report().why[delivery], text));
}

TEST_GROUP(delivery, up, down);

TEST(delivery, by_default_uffd)
{
	fake_forget();
	expect(KVMFAULT_DELIVERY_UFFD);
	why(KVMFAULT_DELIVERY_MARKER_EXIT, KVMFAULT_SUPPORT_NOT_ASKED, "not allowed");
	why(KVMFAULT_DELIVERY_KERNEL_EXIT, KVMFAULT_SUPPORT_COULD_NOT_ASK, "kvm_fd");
	/* And nothing is opened for it. */
	ck_assert_uint_eq(fake_count(FAKE_OPEN, FAKE_ANY), 0);
	ck_assert_uint_eq(fake_count(FAKE_USERFAULTFD, FAKE_ANY), 0);
}

TEST(delivery, allowed)
{
	options.allow = KVMFAULT_ALLOW_MARKER_EXIT |
			KVMFAULT_ALLOW_SHADOW_PAGING;
	expect(KVMFAULT_DELIVERY_MARKER_EXIT);
	why(KVMFAULT_DELIVERY_UFFD, KVMFAULT_SUPPORT_NOT_ASKED, "better");
}

TEST(delivery, asked_for_by_name)
{
	options.allow = KVMFAULT_ALLOW_SHADOW_PAGING;
	options.delivery = KVMFAULT_DELIVERY_MARKER_EXIT;
	expect(KVMFAULT_DELIVERY_MARKER_EXIT);
	why(KVMFAULT_DELIVERY_KERNEL_EXIT, KVMFAULT_SUPPORT_NOT_ASKED, "another");
	down();
	options.delivery = KVMFAULT_DELIVERY_UFFD;
	options.allow |= KVMFAULT_ALLOW_MARKER_EXIT;
	expect(KVMFAULT_DELIVERY_UFFD);
	why(KVMFAULT_DELIVERY_MARKER_EXIT, KVMFAULT_SUPPORT_NOT_ASKED, "another");
}

TEST(delivery, markers_need_to_know_who_walks)
{
	options.allow = KVMFAULT_ALLOW_MARKER_EXIT;
	expect(KVMFAULT_DELIVERY_UFFD);
	why(KVMFAULT_DELIVERY_MARKER_EXIT, KVMFAULT_SUPPORT_COULD_NOT_ASK, "kvm_fd");
	down();
	refused(KVMFAULT_DELIVERY_MARKER_EXIT, "kvm_fd");
}

static bool no_poison(struct fake_call *call)
{
	struct uffdio_api *api = call->arg;

	if (call->number != UFFDIO_API)
		return false;
	fake_model(call);
	api->features = 0;
	return true;
}

TEST(delivery, kernel_without_markers)
{
	options.allow = KVMFAULT_ALLOW_MARKER_EXIT |
			KVMFAULT_ALLOW_SHADOW_PAGING;
	fake_on(FAKE_IOCTL, no_poison);
	expect(KVMFAULT_DELIVERY_UFFD);
	why(KVMFAULT_DELIVERY_MARKER_EXIT, KVMFAULT_SUPPORT_NO, "UFFDIO_POISON");
	down();
	refused(KVMFAULT_DELIVERY_MARKER_EXIT, "UFFDIO_POISON");
}

TEST(delivery, no_right_to_a_userfaultfd)
{
	options.allow = KVMFAULT_ALLOW_MARKER_EXIT |
			KVMFAULT_ALLOW_SHADOW_PAGING;
	fake_uffd_denied = -EPERM;
	expect(KVMFAULT_DELIVERY_UFFD);
	why(KVMFAULT_DELIVERY_MARKER_EXIT, KVMFAULT_SUPPORT_COULD_NOT_ASK,
	    "/dev/userfaultfd");
	ck_assert_int_eq(report().mode[KVMFAULT_DELIVERY_MARKER_EXIT].error,
			 -EPERM);
	fake_uffd_denied = 0;
}

/* ---- on a KVM that can be asked ---- */

#ifdef __x86_64__

#define RUN_SIZE (3 * PAGE)

static bool hardware_walks, has_userfault;

/* What the scratch guest comes to. */
static long run(void)
{
	const struct fake_call *call;
	size_t i;

	for (i = 0; (call = fake_nth(FAKE_MMAP, FAKE_ANY, i)); i++)
		if (call->length == RUN_SIZE)
			((struct kvm_run *)call->at)->exit_reason =
				KVM_EXIT_SHUTDOWN;
	return hardware_walks ? -EFAULT : 0;
}

/* A bitmap that no process can have is refused. */
static long set_slot(const struct kvmfault__memory_region2 *region)
{
	return region->pad2[0] == UINT64_MAX || !has_userfault ? -EINVAL : 0;
}

static bool kvm_calls(struct fake_call *call)
{
	switch (call->number) {
	case KVM_CREATE_VM:
	case KVM_CREATE_VCPU:
		call->result = fake_fd(FAKE_KVM);
		fake_give((int)call->result);
		return true;
	case KVM_GET_VCPU_MMAP_SIZE:
		call->result = RUN_SIZE;
		return true;
	case KVM_GET_SREGS:
		memset(call->arg, 0, sizeof(struct kvm_sregs));
		call->result = 0;
		return true;
	case KVM_SET_USER_MEMORY_REGION:
	case KVM_SET_SREGS:
		call->result = 0;
		return true;
	case KVMFAULT__SET_USER_MEMORY_REGION2:
		call->result = set_slot(call->arg);
		return true;
	case KVM_RUN:
		call->result = run();
		return true;
	}
	return false;
}

static void can_be_asked(bool hardware, bool userfault)
{
	hardware_walks = hardware;
	has_userfault = userfault;
	options.kvm_fd = fake_fd(FAKE_KVM);
	options.allow = KVMFAULT_ALLOW_MARKER_EXIT;
	fake_on(FAKE_IOCTL, kvm_calls);
}

TEST(delivery, the_hardware_walks)
{
	can_be_asked(true, false);
	expect(KVMFAULT_DELIVERY_MARKER_EXIT);
	why(KVMFAULT_DELIVERY_KERNEL_EXIT, KVMFAULT_SUPPORT_NO, "KVM_MEM_USERFAULT");
}

TEST(delivery, kvm_walks)
{
	can_be_asked(false, false);
	expect(KVMFAULT_DELIVERY_UFFD);
	why(KVMFAULT_DELIVERY_MARKER_EXIT, KVMFAULT_SUPPORT_NO, "shadow paging");
	down();
	refused(KVMFAULT_DELIVERY_MARKER_EXIT, "shadow paging");
	options.allow |= KVMFAULT_ALLOW_SHADOW_PAGING;
	expect(KVMFAULT_DELIVERY_MARKER_EXIT);
}

TEST(delivery, the_kernels_own_way_is_the_best)
{
	can_be_asked(true, true);
	expect(KVMFAULT_DELIVERY_KERNEL_EXIT);
	why(KVMFAULT_DELIVERY_MARKER_EXIT, KVMFAULT_SUPPORT_NOT_ASKED, "better");
	ck_assert_int_eq(kvmfault_vm_set_delivery(
		vm, KVMFAULT_DELIVERY_UFFD), 0);
	ck_assert_int_eq(kvmfault_vm_set_delivery(
		vm, KVMFAULT_DELIVERY_MARKER_EXIT), -EOPNOTSUPP);
	ck_assert_int_eq(kvmfault_vm_set_delivery(
		vm, KVMFAULT_DELIVERY_KERNEL_EXIT), 0);
	down();
	has_userfault = false;
	refused(KVMFAULT_DELIVERY_KERNEL_EXIT, "no released one");
}

#endif

TEST(delivery, left_and_taken_up)
{
	options.allow = KVMFAULT_ALLOW_MARKER_EXIT |
			KVMFAULT_ALLOW_SHADOW_PAGING;
	expect(KVMFAULT_DELIVERY_MARKER_EXIT);
	ck_assert_int_eq(kvmfault_vm_set_delivery(
		vm, KVMFAULT_DELIVERY_UFFD), 0);
	ck_assert_int_eq(report().delivery, KVMFAULT_DELIVERY_UFFD);
	ck_assert_ptr_null(report().why[KVMFAULT_DELIVERY_UFFD]);
	why(KVMFAULT_DELIVERY_MARKER_EXIT, KVMFAULT_SUPPORT_YES, "left");
	ck_assert_int_eq(kvmfault_vm_set_delivery(
		vm, KVMFAULT_DELIVERY_MARKER_EXIT), 0);
	ck_assert_int_eq(report().delivery, KVMFAULT_DELIVERY_MARKER_EXIT);
	ck_assert_ptr_null(report().why[KVMFAULT_DELIVERY_MARKER_EXIT]);
}

TEST(delivery, wrong_arguments)
{
	struct kvmfault_delivery_report small = { .size = 1 };

	options.delivery = (enum kvmfault_delivery)KVMFAULT_DELIVERY_COUNT;
	ck_assert_int_eq(kvmfault_vm_new(&options, &vm), -EINVAL);
	options.delivery = KVMFAULT_DELIVERY_AUTO;
	expect(KVMFAULT_DELIVERY_UFFD);
	ck_assert_int_eq(kvmfault_vm_delivery(NULL, &small), -EINVAL);
	ck_assert_int_eq(kvmfault_vm_delivery(vm, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_vm_delivery(vm, &small), -EINVAL);
	ck_assert_int_eq(kvmfault_vm_set_delivery(
		NULL, KVMFAULT_DELIVERY_UFFD), -EINVAL);
	ck_assert_int_eq(kvmfault_vm_set_delivery(
		vm, KVMFAULT_DELIVERY_MARKER_EXIT), -EOPNOTSUPP);
	ck_assert_int_eq(kvmfault_vm_set_delivery(
		vm, KVMFAULT_DELIVERY_AUTO), -EINVAL);
	ck_assert_int_eq(kvmfault_vm_set_delivery(
		vm, KVMFAULT_DELIVERY_UFFD), 0);
}

int main(void)
{
	return run_suite("delivery");
}
