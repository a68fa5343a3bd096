/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Every way in which KVM tells of a fault, produced for real, in both columns:
 * what the kernel does, what decode says of it, what handle makes of it. A
 * kernel that changes its answer fails here.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kvm-rig.h"
#include "need.h"

#define PAGES 16

static struct rig rig;

static struct kvmfault_fault decode(int ret, int err)
{
	struct kvmfault_fault fault = { .size = sizeof(fault) };

	ck_assert_int_eq(kvmfault_decode(ret, err, rig.machine->vcpu[0].run,
					 &fault), 0);
	return fault;
}

/* Row: bare. The first KVM_RUN says EFAULT and no more; the library tries as
 * often as its budget says, and then tells why it stopped. */
static void expect_bare(enum machine_routine routine)
{
	struct kvmfault_fault fault;
	struct outcome outcome;
	int err, ret;

	ck_assert_int_eq(machine_call(&rig.machine->vcpu[0], routine, RAM, 8,
				      1, 0), 0);
	ret = rig_run(&rig, 0, &err);
	ck_assert_int_eq(ret, -1);
	ck_assert_int_eq(err, EFAULT);
	fault = decode(ret, err);
	ck_assert_int_eq(fault.kind, KVMFAULT_KIND_UNANNOTATED);
	ck_assert_int_eq(fault.error, EFAULT);
	ck_assert_uint_eq(fault.known, 0);

	outcome = rig_call(&rig, 0, routine, RAM, 8, 1);
	ck_assert_int_eq(outcome.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(outcome.reason, KVMFAULT_REASON_NO_ADDRESS);
	ck_assert_int_eq(outcome.error, -EFAULT);
	ck_assert_uint_gt(outcome.faults, 1);
}

/* Row: no exit at all. Only a signal gets the vCPU out, and the guest has not
 * moved. */
static void expect_loop(void)
{
	struct kicker kicker;
	int err, ret, n;

	ck_assert_int_eq(machine_call(&rig.machine->vcpu[0], MACHINE_READ, RAM,
				      8, 0, 0), 0);
	kicker_start(&kicker);
	for (n = 0; n < 3; n++) {
		ret = rig_run(&rig, 0, &err);
		ck_assert_int_eq(ret, -1);
		ck_assert_int_eq(err, EINTR);
		ck_assert_int_eq(kvmfault_vcpu_handle(rig.vcpu[0], ret, err),
				 KVMFAULT_ACTION_INTERRUPTED);
	}
	kicker_stop(&kicker);
}

static void plain(int column)
{
	rig_new(&rig, column, 1, PAGES, false);
	rig_plain(&rig);
	rig_vcpus(&rig);
}

/* main() finds out how many times the cases of TEST_COUNTED() are run. */
static int with_guest_memfd;

TEST_GROUP(rows, NULL, NULL);

TEST_EACH(rows, unmapped, COLUMNS)
{
	plain(_i);
	ck_assert_int_eq(munmap(rig.a, PAGE), 0);
	expect_bare(MACHINE_READ);
	expect_bare(MACHINE_WRITE);
	rig_free(&rig);
}

TEST_EACH(rows, prot_none, COLUMNS)
{
	plain(_i);
	ck_assert_int_eq(mprotect(rig.a, PAGE, PROT_NONE), 0);
	expect_bare(MACHINE_READ);
	rig_free(&rig);
}

TEST_EACH(rows, prot_read_and_write, COLUMNS)
{
	plain(_i);
	ck_assert_int_eq(mprotect(rig.a, PAGE, PROT_READ), 0);
	expect_bare(MACHINE_WRITE);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, RAM, 8, 0), 0);
	rig_free(&rig);
}

static void *unprotect(void *arg)
{
	usleep(3000);
	ck_assert_int_eq(mprotect(rig.a, PAGE, PROT_READ | PROT_WRITE), 0);
	return arg;
}

/* A bare fault can be a race with the VMM's own mprotect(): tried again. */
TEST_EACH(rows, bare_race, COLUMNS)
{
	pthread_t thread;

	rig_retry_budget = 100000;	/* however late that thread is */
	plain(_i);
	ck_assert_int_eq(mprotect(rig.a, PAGE, PROT_NONE), 0);
	ck_assert_int_eq(pthread_create(&thread, NULL, unprotect, NULL), 0);
	rig_do(&rig, 0, MACHINE_WRITE, RAM, 8, 77);
	pthread_join(thread, NULL);
	ck_assert_uint_eq(*(uint64_t *)rig.a, 77);
	rig_free(&rig);
}

/* Where KVM can have a kernel thread bring a page in, it takes whatever cannot
 * be had for a page that takes its time. Only x86 does. */
static bool asynchronous(int column)
{
#ifdef __x86_64__
	return column;
#else
	(void)column;
	return false;
#endif
}

static void expect_bare_or_loop(int column)
{
	if (asynchronous(column))
		expect_loop();
	else
		expect_bare(MACHINE_READ);
}

TEST_EACH(rows, file_too_short, COLUMNS)
{
	plain(_i);
	ck_assert_int_eq(ftruncate(rig.memfd, 0), 0);
	expect_bare_or_loop(_i);
	rig_free(&rig);
}

static int raw_uffd(int flags, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)rig.a, .len = PAGES * PAGE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | flags);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ioctl(fd, UFFDIO_API, &api), 0);
	ck_assert_int_eq(ioctl(fd, UFFDIO_REGISTER, &reg), 0);
	return fd;
}

TEST_EACH(rows, uffd_sigbus, COLUMNS)
{
	int fd;

	plain(_i);
	fd = raw_uffd(0, UFFD_FEATURE_SIGBUS);
	expect_bare_or_loop(_i);
	close(fd);
	rig_free(&rig);
}

TEST_EACH(rows, uffd_user_mode_only, COLUMNS)
{
	int fd;

	plain(_i);
	fd = raw_uffd(UFFD_USER_MODE_ONLY, 0);
	expect_bare_or_loop(_i);
	close(fd);
	rig_free(&rig);
}

static siginfo_t last_sigbus;
static volatile sig_atomic_t sigbuses;

static void on_sigbus(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	last_sigbus = *info;
	sigbuses++;
}

static void catch_sigbus(void)
{
	struct sigaction action = {
		.sa_sigaction = on_sigbus,
		.sa_flags = SA_SIGINFO,
	};

	sigbuses = 0;
	sigaction(SIGBUS, &action, NULL);
}

TEST_EACH(rows, marker, COLUMNS)
{
	struct kvmfault_fault fault = { .size = sizeof(fault) };
	int err, fd, ret;

	plain(_i);
	catch_sigbus();
	fd = raw_uffd(0, 0);
	rig_mark(&rig, fd, 5, 1);
	ck_assert_int_eq(machine_call(&rig.machine->vcpu[0], MACHINE_READ,
				      RAM + 5 * PAGE + 8, 8, 0, 0), 0);
	do {	/* the timer's signals are KVM's own: none reach us */
		ret = rig_run(&rig, 0, &err);
	} while (ret < 0 && err == EINTR && !sigbuses);
	ck_assert_int_eq(ret, -1);
	ck_assert_int_eq(err, EINTR);
	ck_assert_int_eq(sigbuses, 1);
	ck_assert_int_eq(kvmfault_decode_siginfo(&last_sigbus, &fault), 0);
	ck_assert_int_eq(fault.kind, KVMFAULT_KIND_MARKER);
	ck_assert_uint_eq(fault.hva, (uintptr_t)rig.a + 5 * PAGE);
	ck_assert_uint_eq(fault.length, PAGE);
	ck_assert_int_eq(kvmfault_vcpu_handle(rig.vcpu[0], ret, err),
			 KVMFAULT_ACTION_INTERRUPTED);
	close(fd);
	rig_free(&rig);
}

/* Blocked, the signal does not come, and the vCPU spins in the kernel. */
TEST_EACH(rows, marker_with_sigbus_blocked, COLUMNS)
{
	sigset_t block;
	int fd;

	plain(_i);
	catch_sigbus();
	sigemptyset(&block);
	sigaddset(&block, SIGBUS);
	fd = raw_uffd(0, 0);
	rig_mark(&rig, fd, 0, 1);
	pthread_sigmask(SIG_BLOCK, &block, NULL);
	expect_loop();
	ck_assert_int_eq(sigbuses, 0);
	close(fd);
	rig_free(&rig);
}

struct reader {
	pthread_t thread;
	int fd;
	uint32_t ptid;
};

static void *answer_one(void *arg)
{
	struct reader *reader = arg;
	static const char page[PAGE] = { 42 };
	struct uffd_msg msg;
	struct uffdio_copy copy = {
		.src = (uintptr_t)page,
		.len = PAGE,
	};

	ck_assert_int_eq(read(reader->fd, &msg, sizeof(msg)), sizeof(msg));
	ck_assert_uint_eq(msg.event, UFFD_EVENT_PAGEFAULT);
	reader->ptid = msg.arg.pagefault.feat.ptid;
	copy.dst = msg.arg.pagefault.address & ~(PAGE - 1);
	ck_assert_int_eq(ioctl(reader->fd, UFFDIO_COPY, &copy), 0);
	return NULL;
}

/* A blocking userfaultfd: who asks is the vCPU's thread, or a kernel thread on
 * its behalf. */
TEST_EACH(rows, uffd_message, COLUMNS)
{
	struct reader reader;

	plain(_i);
	reader.fd = raw_uffd(0, UFFD_FEATURE_THREAD_ID);
	ck_assert_int_eq(pthread_create(&reader.thread, NULL, answer_one,
					&reader), 0);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, RAM, 8, 0), 42);
	pthread_join(reader.thread, NULL);
	if (asynchronous(_i))
		ck_assert_int_ne(reader.ptid, gettid());
	else
		ck_assert_int_eq(reader.ptid, gettid());
	close(reader.fd);
	rig_free(&rig);
}

#define GMEM_SLOT 9
#define GMEM (RAM + (32 << 20))

static int guest_memfd(void)
{
	int fd = machine_create_guest_memfd(rig.machine, 4 * PAGE,
					    MACHINE_GUEST_MEMFD_MMAP |
					    MACHINE_GUEST_MEMFD_INIT_SHARED);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(machine_set_guest_memfd_slot(rig.machine, GMEM_SLOT,
						      GMEM, 4 * PAGE, rig.a,
						      fd, 0), 0);
	return fd;
}

static int renewals;

/* What a VMM does whose guest_memfd is lost: a new one, filled, in its slot. */
static int renew(void *data, struct kvmfault_request *request)
{
	const struct kvmfault_region *region = request->region;
	uint64_t *page;
	int fd;

	(void)data;
	if (request->fault->kind != KVMFAULT_KIND_EXIT)
		return KVMFAULT_VERDICT_DECLINED;
	ck_assert_ptr_nonnull(region);
	ck_assert_uint_eq(region->gpa, GMEM);
	ck_assert_ptr_null(request->memory);
	ck_assert_uint_eq(request->offset, 2 * PAGE);
	ck_assert_int_eq(machine_set_guest_memfd_slot(rig.machine, GMEM_SLOT,
						      GMEM, 0, NULL, 0, 0), 0);
	fd = guest_memfd();
	page = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ck_assert_ptr_ne(page, MAP_FAILED);
	page[2 * PAGE / 8] = 4711;
	renewals++;
	return KVMFAULT_VERDICT_RESOLVED;
}

TEST_COUNTED(rows, closed_guest_memfd, with_guest_memfd)
{
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = GMEM,
		.length = 4 * PAGE,
	};
	struct kvmfault_fault fault;
	int err, fd, ret;

	rig_new(&rig, _i, 1, PAGES, false);
	rig_resolver(&rig, renew);
	rig_plain(&rig);
	rig_vcpus(&rig);
	renewals = 0;
	fd = guest_memfd();
	region.guest_memfd = fd;
	ck_assert_int_eq(kvmfault_region_add(rig.vm, &region), 0);
	close(fd);
	ck_assert_int_eq(machine_call(&rig.machine->vcpu[0], MACHINE_READ,
				      GMEM + 2 * PAGE, 8, 0, 0), 0);
	ret = rig_run(&rig, 0, &err);
	ck_assert_int_eq(ret, -1);
	ck_assert_int_eq(err, EFAULT);
	ck_assert_uint_eq(rig.machine->vcpu[0].run->exit_reason, 39);
	fault = decode(ret, err);
	ck_assert_int_eq(fault.kind, KVMFAULT_KIND_EXIT);
	ck_assert_uint_eq(fault.gpa, GMEM + 2 * PAGE);
	ck_assert_uint_eq(fault.length, PAGE);
	ck_assert_uint_eq(fault.flags, 0);
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, GMEM + 2 * PAGE, 8, 0),
			  4711);
	ck_assert_int_eq(renewals, 1);
	ck_assert_int_eq(kvmfault_region_remove(rig.vm, 0, GMEM), 0);
	rig_free(&rig);
}

/* Nobody claims it: it ends with a reason, and is not resumed. */
TEST_COUNTED(rows, closed_guest_memfd_unclaimed, with_guest_memfd)
{
	struct outcome outcome;
	int fd;

	plain(_i);
	fd = guest_memfd();
	close(fd);
	outcome = rig_call(&rig, 0, MACHINE_READ, GMEM, 8, 0);
	ck_assert_int_eq(outcome.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(outcome.reason, KVMFAULT_REASON_NO_REGION);
	ck_assert_uint_eq(outcome.faults, 0);
	rig_free(&rig);
}

TEST_COUNTED(rows, live_guest_memfd, with_guest_memfd)
{
	int fd;

	plain(_i);
	fd = guest_memfd();
	ck_assert_uint_eq(rig_do(&rig, 0, MACHINE_READ, GMEM + PAGE, 8, 0), 0);
	close(fd);
	rig_free(&rig);
}

int main(void)
{
	need("kvm");
	need("uffd");
	with_guest_memfd = rig_has_guest_memfd() ? COLUMNS : 0;
	return run_suite("kvm rows");
}
