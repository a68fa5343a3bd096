/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * decode.c: every result of KVM_RUN and every siginfo, with a kvm_run that
 * ends where the exit's data ends: one byte more is a crash.
 */

#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/os/abi.h"
#include "lib/setup/setup.h"
#include "sigbus.h"
#include "unit.h"

#define HEADER 32U		/* kvm_run before its union */

static unsigned char *end;	/* of readable memory */

static void up(void)
{
	unsigned char *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ck_assert_ptr_ne(pages, MAP_FAILED);
	end = pages + PAGE;
	ck_assert_int_eq(mprotect(end, PAGE, PROT_NONE), 0);
}

static void put32(unsigned char *run, size_t at, uint32_t value)
{
	memcpy(run + at, &value, sizeof(value));
}

static void put64(unsigned char *run, size_t at, uint64_t value)
{
	memcpy(run + at, &value, sizeof(value));
}

/* A kvm_run that ends `size` bytes into its union; a multiple of 8, since it is
 * aligned so. */
static unsigned char *new_run(uint32_t reason, size_t size)
{
	unsigned char *run = end - HEADER - size;

	memset(run, 0, HEADER + size);
	put32(run, offsetof(struct kvm_run, exit_reason), reason);
	return run;
}

static struct kvmfault_fault decode(int ret, int err, const void *run)
{
	struct kvmfault_fault fault;

	memset(&fault, 0x55, sizeof(fault));
	fault.size = sizeof(fault);
	ck_assert_int_eq(kvmfault_decode(ret, err, run, &fault), 0);
	ck_assert_uint_eq(fault.size, sizeof(fault));
	return fault;
}

static unsigned char *annotated(uint64_t flags, uint64_t gpa, uint64_t size)
{
	unsigned char *run = new_run(39, 24);

	put64(run, HEADER, flags);
	put64(run, HEADER + 8, gpa);
	put64(run, HEADER + 16, size);
	return run;
}

TEST_GROUP(run, up, NULL);

TEST_EACH(run, exit_is_annotated, 2)
{
	static const int errors[] = { EFAULT, EHWPOISON };
	struct kvmfault_fault fault =
		decode(-1, errors[_i], annotated(0, 0x5000, 0x1000));

	ck_assert_int_eq(fault.kind, KVMFAULT_KIND_EXIT);
	ck_assert_int_eq(fault.error, errors[_i]);
	ck_assert_int_eq(fault.access, KVMFAULT_ACCESS_UNKNOWN);
	ck_assert_uint_eq(fault.known,
			  KVMFAULT_KNOWN_GPA | KVMFAULT_KNOWN_LENGTH);
	ck_assert_uint_eq(fault.gpa, 0x5000);
	ck_assert_uint_eq(fault.length, 0x1000);
	ck_assert_uint_eq(fault.flags, 0);
	ck_assert_uint_eq(fault.hva, 0);
}

TEST(run, other_errno_means_a_stale_record)
{
	struct kvmfault_fault fault;
	int err;

	for (err = 0; err < 200; err++) {
		if (err == EFAULT || err == EHWPOISON)
			continue;
		fault = decode(-1, err, annotated(0, 0x5000, 0x1000));
		ck_assert_int_eq(fault.kind, KVMFAULT_KIND_NONE);
		ck_assert_uint_eq(fault.known, 0);
		ck_assert_uint_eq(fault.gpa, 0);
		ck_assert_int_eq(fault.error, 0);
	}
}

TEST(run, success_means_a_stale_record)
{
	struct kvmfault_fault fault =
		decode(0, EFAULT, annotated(0, 0x5000, 0x1000));

	ck_assert_int_eq(fault.kind, KVMFAULT_KIND_NONE);
	ck_assert_uint_eq(fault.gpa, 0);
}

TEST_EACH(run, bare, 8)
{
	static const uint32_t reasons[] = {
		KVM_EXIT_UNKNOWN, KVM_EXIT_IO, KVM_EXIT_MMIO, KVM_EXIT_INTR,
		KVM_EXIT_INTERNAL_ERROR, 38, 40, UINT32_MAX,
	};
	struct kvmfault_fault fault =
		decode(-1, EFAULT, new_run(reasons[_i], 0));

	ck_assert_int_eq(fault.kind, KVMFAULT_KIND_UNANNOTATED);
	ck_assert_int_eq(fault.error, EFAULT);
	ck_assert_uint_eq(fault.known, 0);
	ck_assert_uint_eq(fault.flags, 0);
}

TEST(run, bare_poison)
{
	struct kvmfault_fault fault = decode(-1, EHWPOISON, new_run(0, 0));

	ck_assert_int_eq(fault.kind, KVMFAULT_KIND_UNANNOTATED);
	ck_assert_int_eq(fault.error, EHWPOISON);
}

TEST(run, no_run)
{
	ck_assert_int_eq(decode(-1, EFAULT, NULL).kind,
			 KVMFAULT_KIND_UNANNOTATED);
	ck_assert_int_eq(decode(-1, EINTR, NULL).kind,
			 KVMFAULT_KIND_NONE);
	ck_assert_int_eq(decode(0, 0, NULL).kind, KVMFAULT_KIND_NONE);
}

TEST(run, size_zero_is_not_known)
{
	struct kvmfault_fault fault =
		decode(-1, EFAULT, annotated(0, 0x5123, 0));

	ck_assert_uint_eq(fault.known, KVMFAULT_KNOWN_GPA);
	ck_assert_uint_eq(fault.gpa, 0x5000);
	ck_assert_uint_eq(fault.length, 0x1000);
}

static const struct {
	uint64_t gpa, size, expected_gpa, expected_length;
} ranges[] = {
	/* unaligned: all that was touched, in whole pages */
	{ 0x5123, 0x1000, 0x5000, 0x2000 },
	{ 0x5fff, 1, 0x5000, 0x1000 },
	{ 0x5fff, 2, 0x5000, 0x2000 },
	{ 0x5000, 0x200000, 0x5000, 0x200000 },
	/* the last page, and ranges that wrap: they end at the end */
	{ 0xfffffffffffff000, 0x1000, 0xfffffffffffff000, 0x1000 },
	{ 0xfffffffffffff000, 0x2000, 0xfffffffffffff000, 0x1000 },
	{ 0xfffffffffffff800, 0x1000, 0xfffffffffffff000, 0x1000 },
	{ 0xffffffffffffffff, UINT64_MAX, 0xfffffffffffff000, 0x1000 },
	{ 0xfffffffffffffff0, 0, 0xfffffffffffff000, 0x1000 },
	{ 0x1000, UINT64_MAX, 0x1000, 0xfffffffffffff000 },
	{ 0, UINT64_MAX, 0, UINT64_MAX },
};

TEST_EACH(run, range, sizeof(ranges) / sizeof(*ranges))
{
	struct kvmfault_fault fault =
		decode(-1, EFAULT, annotated(0, ranges[_i].gpa,
					     ranges[_i].size));

	ck_assert_uint_eq(fault.gpa, ranges[_i].expected_gpa);
	ck_assert_uint_eq(fault.length, ranges[_i].expected_length);
	ck_assert_uint_ge(fault.gpa + fault.length - 1, fault.gpa);
}

TEST(run, unknown_flags_are_kept)
{
	const uint64_t flags = 0xdeadbeefcafef00d;

	ck_assert_uint_eq(decode(-1, EFAULT,
				 annotated(flags, 0, 0x1000)).flags, flags);
	ck_assert_uint_eq(decode(-1, EFAULT,
				 annotated(8, 0, 0x1000)).flags, 8);
}

static unsigned char *mmio(uint64_t gpa, uint32_t length, unsigned char write)
{
	unsigned char *run = new_run(KVM_EXIT_MMIO, 24);

	put64(run, HEADER, gpa);
	put32(run, HEADER + 16, length);
	run[HEADER + 20] = write;
	return run;
}

TEST(run, mmio_exit)
{
	struct kvmfault_fault fault = decode(0, 0, mmio(0x5123, 4, 0));

	ck_assert_int_eq(fault.kind, KVMFAULT_KIND_MMIO);
	ck_assert_int_eq(fault.access, KVMFAULT_ACCESS_READ);
	ck_assert_uint_eq(fault.known,
			  KVMFAULT_KNOWN_GPA | KVMFAULT_KNOWN_LENGTH);
	ck_assert_uint_eq(fault.gpa, 0x5123);	/* to the byte */
	ck_assert_uint_eq(fault.length, 4);
	ck_assert_int_eq(fault.error, 0);
	fault = decode(0, 0, mmio(0x5123, 8, 1));
	ck_assert_int_eq(fault.access, KVMFAULT_ACCESS_WRITE);
}

TEST(run, mmio_with_an_error_is_stale)
{
	ck_assert_int_eq(decode(-1, EINTR, mmio(0x5000, 4, 0)).kind,
			 KVMFAULT_KIND_NONE);
}

TEST(run, internal_error)
{
	unsigned char *run = new_run(KVM_EXIT_INTERNAL_ERROR, 8);
	uint32_t suberror;

	for (suberror = 0; suberror < 16; suberror++) {
		put32(run, HEADER, suberror);
		ck_assert_int_eq(decode(0, 0, run).kind, suberror == 1 ?
				 KVMFAULT_KIND_EMULATION :
				 KVMFAULT_KIND_NONE);
	}
	put32(run, HEADER, 1);
	ck_assert_int_eq(decode(-1, EINTR, run).kind,
			 KVMFAULT_KIND_NONE);
}

TEST(run, interrupted)
{
	struct kvmfault_fault fault =
		decode(-1, EINTR, new_run(KVM_EXIT_INTR, 0));

	ck_assert_int_eq(fault.kind, KVMFAULT_KIND_NONE);
	ck_assert_int_eq(fault.error, 0);
}

#ifdef __x86_64__
TEST(run, smm_is_another_address_space)
{
	unsigned char *run = annotated(0, 0x5000, 0x1000);

	run[offsetof(struct kvm_run, flags)] = 1;
	ck_assert_uint_eq(decode(-1, EFAULT, run).address_space, 1);
	/* Only that flag. */
	run[offsetof(struct kvm_run, flags)] = 0xfe;
	ck_assert_uint_eq(decode(-1, EFAULT, run).address_space, 0);
	run = mmio(0xa0000, 4, 1);
	run[offsetof(struct kvm_run, flags)] = 1;
	ck_assert_uint_eq(decode(0, 0, run).address_space, 1);
}
#endif

/* Each exit is given no more than it defines. */
static size_t defined(uint32_t reason)
{
	switch (reason) {
	case 39:
	case KVM_EXIT_MMIO:
		return 24;
	case KVM_EXIT_INTERNAL_ERROR:
		return 8;
	}
	return 0;
}

static uint64_t state = 88172645463325252ULL;

static uint64_t next_random(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

/* What is wrong with it, or NULL. An assertion costs a system call, so there is
 * none for each of many. */
static const char *broken(const struct kvmfault_fault *fault)
{
	if (fault->kind >= KVMFAULT_KIND_COUNT)
		return "an entrance that there is not";
	if (fault->access > KVMFAULT_ACCESS_EXEC)
		return "an access that there is not";
	if (!(fault->known & KVMFAULT_KNOWN_GPA) && fault->gpa)
		return "a gpa that is not known";
	if (fault->known & KVMFAULT_KNOWN_GPA &&
	    (!fault->length || fault->gpa + fault->length - 1 < fault->gpa))
		return "a length that is none";
	if (fault->kind == KVMFAULT_KIND_EXIT && fault->gpa % PAGE)
		return "a gpa within a page";
	if (fault->kind == KVMFAULT_KIND_NONE && fault->known)
		return "something known of no fault";
	return NULL;
}

/* Wild bytes, or all alike: what is near an end is not met by chance. */
static void fill_random(unsigned char *to, size_t length)
{
	static const unsigned char ends[] = { 0, 0xff };
	uint64_t kind = next_random() % 4;
	size_t at;

	for (at = 0; at < length; at++)
		to[at] = kind < 2 ? ends[kind] : (unsigned char)next_random();
}

/* What is wrong with what comes of random bytes, or NULL. */
static const char *decode_random(uint32_t reason)
{
	static const int errors[] = {
		0, EFAULT, EHWPOISON, EINTR, EAGAIN, ENOMEM, EIO, EINVAL,
	};
	size_t size = defined(reason);
	unsigned char *run = new_run(reason, size);
	int ret = (int)(next_random() % 3) - 1;
	struct kvmfault_fault fault;

	if (size) {
		fill_random(run + HEADER, size / 2);
		fill_random(run + HEADER + size / 2, size - size / 2);
	}
	run[offsetof(struct kvm_run, flags)] = (unsigned char)next_random();
	memset(&fault, 0x55, sizeof(fault));
	fault.size = sizeof(fault);
	if (kvmfault_decode(ret, errors[next_random() % 8],
			    (const void *)run, &fault))
		return "an error";
	return broken(&fault);
}

TEST(run, total)
{
	const char *why;
	uint32_t reason;
	int i;

	for (reason = 0; reason <= 64; reason++) {
		for (i = 0; i < 2000; i++) {
			why = decode_random(reason);
			if (why)
				ck_abort_msg("exit %u: %s", reason, why);
		}
	}
}

TEST(run, no_fault_to_fill)
{
	struct kvmfault_fault fault = { .size = 0 };

	ck_assert_int_eq(kvmfault_decode(0, 0, NULL, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_decode(0, 0, NULL, &fault), -EINVAL);
	ck_assert_int_eq(kvmfault_decode_siginfo(NULL, NULL), -EINVAL);
}

TEST(run, shorter_fault)
{
	struct {
		struct kvmfault_fault fault;
	} caller;

	memset(&caller, 0x55, sizeof(caller));
	caller.fault.size = offsetof(struct kvmfault_fault, known);
	ck_assert_int_eq(kvmfault_decode(-1, EFAULT, NULL, &caller.fault), 0);
	ck_assert_int_eq(caller.fault.kind, KVMFAULT_KIND_UNANNOTATED);
	/* What an older caller does not have is not written. */
	ck_assert_uint_eq(caller.fault.known, 0x55555555);
	ck_assert_uint_eq(caller.fault.flags, 0x5555555555555555);
}

static struct kvmfault_fault decode_signal(const siginfo_t *info)
{
	struct kvmfault_fault fault;

	memset(&fault, 0x55, sizeof(fault));
	fault.size = sizeof(fault);
	ck_assert_int_eq(kvmfault_decode_siginfo(info, &fault), 0);
	return fault;
}

static siginfo_t sigbus(int code, uintptr_t address, short lsb)
{
	return sigbus_info((const void *)address, code, lsb);
}

TEST_GROUP(siginfo, NULL, NULL);

TEST(siginfo, marker)
{
	siginfo_t info = sigbus(BUS_MCEERR_AR, 0x7f0000123456, 12);
	struct kvmfault_fault fault = decode_signal(&info);

	ck_assert_int_eq(fault.kind, KVMFAULT_KIND_MARKER);
	ck_assert_uint_eq(fault.known,
			  KVMFAULT_KNOWN_HVA | KVMFAULT_KNOWN_LENGTH);
	ck_assert_uint_eq(fault.hva, 0x7f0000123000);
	ck_assert_uint_eq(fault.length, 0x1000);
	ck_assert_uint_eq(fault.gpa, 0);
}

TEST(siginfo, huge_marker)
{
	siginfo_t info = sigbus(BUS_MCEERR_AR, 0x7f0000323456, 21);
	struct kvmfault_fault fault = decode_signal(&info);

	ck_assert_uint_eq(fault.hva, 0x7f0000323000);
	ck_assert_uint_eq(fault.length, 0x200000);
}

TEST_EACH(siginfo, impossible_lsb_is_a_page, 8)
{
	static const short lsb[] = { 0, -1, 11, 31, 63, 64, 32767, -32768 };
	siginfo_t info = sigbus(BUS_MCEERR_AR, 0x7f0000123456, lsb[_i]);
	struct kvmfault_fault fault = decode_signal(&info);

	ck_assert_uint_eq(fault.hva, 0x7f0000123000);
	ck_assert_uint_eq(fault.length, 0x1000);
}

TEST(siginfo, failure)
{
	siginfo_t info = sigbus(BUS_MCEERR_AO, 0x7f0000123000, 12);

	ck_assert_int_eq(decode_signal(&info).kind,
			 KVMFAULT_KIND_FAILURE);
}

TEST(siginfo, not_our_signal)
{
	siginfo_t info = sigbus(BUS_ADRERR, 0x7f0000123000, 12);

	ck_assert_int_eq(decode_signal(NULL).kind, KVMFAULT_KIND_NONE);
	ck_assert_int_eq(decode_signal(&info).kind,
			 KVMFAULT_KIND_NONE);
	info = sigbus(SI_USER, 0x7f0000123000, 12);
	ck_assert_int_eq(decode_signal(&info).kind,
			 KVMFAULT_KIND_NONE);
	info = sigbus(BUS_MCEERR_AR, 0x7f0000123000, 12);
	info.si_signo = SIGSEGV;
	ck_assert_int_eq(decode_signal(&info).kind,
			 KVMFAULT_KIND_NONE);
	ck_assert_uint_eq(decode_signal(&info).known, 0);
}

int main(void)
{
	return run_suite("decode");
}
