/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * signal.c: both ways of a marker's SIGBUS from KVM_RUN to kvmfault_vcpu_handle(). A
 * vCPU that it would not reach is refused, and one that is not ours is handed
 * on as it is.
 */

#include <signal.h>
#include <string.h>

#include "bed.h"
#include "sigbus.h"

#define BIT(number) (1ULL << ((number) - 1))

static struct kvm_run run;
static struct kvmfault_vcpu *vcpu;
static struct kvmfault_vcpu_options options;

static void up(void)
{
	bed_delivery = KVMFAULT_DELIVERY_MARKER_EXIT;
	bed_up();
	options = (struct kvmfault_vcpu_options){
		.size = sizeof(options), .run = &run, .fd = fake_fd(FAKE_KVM),
	};
	fake_signal_mask = BIT(SIGBUS) | BIT(SIGUSR1);
	fake_sigbus_handler = false;
}

static void down(void)
{
	kvmfault_vcpu_free(vcpu);
	bed_down();
}

static int new_vcpu(void)
{
	return kvmfault_vcpu_new(bed.vm, &options, &vcpu);
}

static void refused(const char *why)
{
	ck_assert_int_eq(new_vcpu(), -EINVAL);
	ck_assert_ptr_null(vcpu);
	ck_assert_ptr_nonnull(strstr(bed.log, why));
}

static enum kvmfault_action interrupted(void)
{
	return kvmfault_vcpu_handle(vcpu, -1, EINTR);
}

/* ---- masked ---- */

TEST_GROUP(signal, up, down);

TEST(signal, unblocked_in_kvm_run_alone)
{
	ck_assert_int_eq(new_vcpu(), 0);
	ck_assert_uint_eq(fake_run_mask(), BIT(SIGUSR1));
	kvmfault_vcpu_free(vcpu);
	vcpu = NULL;
	ck_assert_uint_eq(fake_run_mask(), fake_signal_mask);
}

TEST(signal, on_top_of_the_vmms_mask)
{
	const uint64_t mask = BIT(SIGBUS) | BIT(SIGUSR2) | BIT(SIGTERM);

	options.signal_mask = &mask;
	ck_assert_int_eq(new_vcpu(), 0);
	ck_assert_uint_eq(fake_run_mask(), BIT(SIGUSR2) | BIT(SIGTERM));
	kvmfault_vcpu_free(vcpu);
	vcpu = NULL;
	ck_assert_uint_eq(fake_run_mask(), mask);
}

/* It would kill the process. */
TEST(signal, not_blocked_is_refused)
{
	fake_signal_mask = BIT(SIGUSR1);
	refused("pthread_sigmask");
	fake_signal_mask |= BIT(SIGBUS);
	ck_assert_int_eq(new_vcpu(), 0);
}

TEST(signal, kvm_refuses_the_mask)
{
	fake_refuse(FAKE_IOCTL, KVM_SET_SIGNAL_MASK, -EINVAL);
	ck_assert_int_eq(new_vcpu(), -EINVAL);
	ck_assert_ptr_null(vcpu);
}

TEST(signal, taken_from_the_queue)
{
	siginfo_t info = sigbus_info(bed_page(3), BUS_MCEERR_AR, 12);

	ck_assert_int_eq(new_vcpu(), 0);
	fake_send(&info);
	ck_assert_int_eq(interrupted(), KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_int_eq(kvmfault_vcpu_result(vcpu)->fault->kind,
			 KVMFAULT_KIND_MARKER);
	ck_assert_ptr_null(kvmfault_vcpu_result(vcpu)->siginfo);
	/* Another signal. */
	ck_assert_int_eq(interrupted(), KVMFAULT_ACTION_INTERRUPTED);
	ck_assert_ptr_null(kvmfault_vcpu_result(vcpu)->siginfo);
}

TEST_EACH(signal, not_ours_is_handed_on, 3)
{
	siginfo_t info[] = {
		sigbus_info(&options, BUS_MCEERR_AR, 12),
		sigbus_info(bed_page(3), BUS_ADRERR, 12),
		sigbus_info(bed_page(3), SI_USER, 12),
	};

	ck_assert_int_eq(new_vcpu(), 0);
	fake_send(&info[_i]);
	ck_assert_int_eq(interrupted(), KVMFAULT_ACTION_INTERRUPTED);
	ck_assert_mem_eq(kvmfault_vcpu_result(vcpu)->siginfo, &info[_i],
			 sizeof(info[_i]));
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	ck_assert_int_eq(interrupted(), KVMFAULT_ACTION_INTERRUPTED);
	ck_assert_ptr_null(kvmfault_vcpu_result(vcpu)->siginfo);
	run.exit_reason = KVM_EXIT_IO;
	ck_assert_int_eq(kvmfault_vcpu_handle(vcpu, 0, 0), KVMFAULT_ACTION_NOT_A_FAULT);
}

/* Memory that has failed comes the same way. */
TEST(signal, failed_memory)
{
	siginfo_t info = sigbus_info(bed_page(3), BUS_MCEERR_AR, 12);

	ck_assert_int_eq(new_vcpu(), 0);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA + 3 * PAGE, 1,
					 false), 0);
	fake_send(&info);
	fake_push(FAKE_MADVISE, -EHWPOISON);
	fake_push(FAKE_MADVISE, 0);
	fake_push(FAKE_MADVISE, -EHWPOISON);
	ck_assert_int_eq(interrupted(), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(kvmfault_vcpu_result(vcpu)->reason,
			 KVMFAULT_REASON_HWPOISON);
}

/* Only where it ended KVM_RUN. */
TEST(signal, looked_for_after_eintr)
{
	siginfo_t info = sigbus_info(bed_page(3), BUS_MCEERR_AR, 12);

	ck_assert_int_eq(new_vcpu(), 0);
	fake_send(&info);
	fake_forget();
	run.exit_reason = KVM_EXIT_IO;
	ck_assert_int_eq(kvmfault_vcpu_handle(vcpu, 0, 0), KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_int_eq(kvmfault_vcpu_handle(vcpu, -1, EAGAIN),
			 KVMFAULT_ACTION_NOT_A_FAULT);
	ck_assert_uint_eq(fake_count(FAKE_SIGTAKE, FAKE_ANY), 0);
	ck_assert_int_eq(interrupted(), KVMFAULT_ACTION_RETRY);
}

/* ---- by a handler ---- */

static void have_handler(void)
{
	options.sigbus = KVMFAULT_SIGBUS_HANDLER;
	fake_sigbus_handler = true;
	fake_signal_mask = BIT(SIGUSR1);
}

TEST(signal, handler_that_would_not_be_called)
{
	const uint64_t mask = BIT(SIGBUS);

	have_handler();
	fake_signal_mask |= BIT(SIGBUS);
	refused("do not block it");
	have_handler();
	options.signal_mask = &mask;
	refused("KVM_SET_SIGNAL_MASK");
	options.signal_mask = NULL;
	fake_sigbus_handler = false;
	refused("no handler");
	have_handler();
	fake_forget();
	ck_assert_int_eq(new_vcpu(), 0);
	/* KVM's own mask is none of our business then. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, KVM_SET_SIGNAL_MASK), 0);
}

static bool noted(int code, const void *address)
{
	siginfo_t info = sigbus_info(address, code, 12);

	return kvmfault_vcpu_note_sigbus(vcpu, &info);
}

TEST(signal, noted_and_answered)
{
	size_t i, calls = 0, after = 0;

	have_handler();
	ck_assert_int_eq(new_vcpu(), 0);
	for (i = 0; i < FAKE_NAMES; i++)
		calls += fake_count((enum fake_name)i, FAKE_ANY);
	ck_assert(noted(BUS_MCEERR_AR, bed_page(3) + 8));
	for (i = 0; i < FAKE_NAMES; i++)
		after += fake_count((enum fake_name)i, FAKE_ANY);
	ck_assert_uint_eq(calls, after);
	ck_assert_int_eq(interrupted(), KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_int_eq(interrupted(), KVMFAULT_ACTION_INTERRUPTED);
}

TEST(signal, handler_is_told_what_is_not_ours)
{
	struct kvmfault_mapping_options second = { .size = sizeof(second) };
	struct kvmfault_mapping *mapping;
	siginfo_t info = sigbus_info(bed_page(3), BUS_MCEERR_AR, 12);

	have_handler();
	ck_assert_int_eq(new_vcpu(), 0);
	second.host = (uintptr_t)fake_map(bed.fd);
	ck_assert_int_eq(kvmfault_mapping_add(bed.memory, &second, &mapping),
			 0);
	ck_assert(!noted(BUS_MCEERR_AR, &options));
	ck_assert(!noted(BUS_MCEERR_AO, bed_page(3)));
	ck_assert(!noted(BUS_ADRERR, bed_page(3)));
	ck_assert(!noted(BUS_MCEERR_AR, (void *)(uintptr_t)second.host));
	ck_assert(!kvmfault_vcpu_note_sigbus(vcpu, NULL));
	ck_assert(!kvmfault_vcpu_note_sigbus(NULL, &info));
	ck_assert(!kvmfault_vcpu_note_sigbus(bed.vcpu, &info));	/* masked */
	ck_assert_int_eq(interrupted(), KVMFAULT_ACTION_INTERRUPTED);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

/* Before the first is answered: the vCPU comes back to it. */
TEST(signal, a_second_one)
{
	have_handler();
	ck_assert_int_eq(new_vcpu(), 0);
	ck_assert(noted(BUS_MCEERR_AR, bed_page(3)));
	ck_assert(noted(BUS_MCEERR_AR, bed_page(4)));
	ck_assert_int_eq(interrupted(), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(4), KVMFAULT__ABSENT);
	ck_assert(noted(BUS_MCEERR_AR, bed_page(4)));
	ck_assert_int_eq(interrupted(), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(4), KVMFAULT__PRESENT);
}

/* ---- */

TEST(signal, unknown_way)
{
	options.sigbus = (enum kvmfault_sigbus)2;
	ck_assert_int_eq(new_vcpu(), -EINVAL);
}

/* In the other modes nobody has to care about SIGBUS. */
TEST(signal, without_markers_nothing_is_asked)
{
	bed.vm->how.chosen = KVMFAULT_DELIVERY_UFFD;
	fake_signal_mask = 0;
	fake_forget();
	ck_assert_int_eq(new_vcpu(), 0);
	ck_assert_int_eq(interrupted(), KVMFAULT_ACTION_INTERRUPTED);
	ck_assert_uint_eq(fake_count(FAKE_SIGMASK, FAKE_ANY), 0);
	ck_assert_uint_eq(fake_count(FAKE_SIGTAKE, FAKE_ANY), 0);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, KVM_SET_SIGNAL_MASK), 0);
}

int main(void)
{
	return run_suite("signal");
}
