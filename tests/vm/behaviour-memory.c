/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * An access of the guest's to a page of an ordinary memory slot that is not
 * there, in each way in which it can be not there. Where the guest would do
 * the access again, it is also seen that it goes on once the page is there.
 */

#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "behaviour.h"

#define WORD 0x6c62272e07bb0142ULL

static int uffd;

static void map_again(void)
{
	must_map(mmap(bed.hva, PAGE, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_FIXED, bed.memfd, bed.hva - bed.ram),
		 "mmap");
}

static void allow(void)
{
	must(mprotect(bed.hva, PAGE, PROT_READ | PROT_WRITE), "mprotect");
}

static void lengthen(void)
{
	must(ftruncate(bed.memfd, PAGES * PAGE), "ftruncate");
}

static void copy(void)
{
	errno = -uffd_copy(uffd, bed.hva, filled(WORD), PAGE);
	must(errno ? -1 : 0, "copy");
}

static void unmapped(int arg)
{
	(void)arg;
	start();
	must(munmap(bed.hva, PAGE), "munmap");
	conclude(touch_read(), map_again, 0);
}

static void protected(int prot)
{
	start();
	must(mprotect(bed.hva, PAGE, prot), "mprotect");
	if (prot == PROT_NONE)
		conclude(touch_read(), allow, 0);
	conclude(touch_write(), allow, 1);
}

static void short_file(int arg)
{
	(void)arg;
	start();
	must(ftruncate(bed.memfd, 0), "ftruncate");
	conclude(touch_read(), lengthen, 0);
}

static void uffd_sigbus(int arg)
{
	(void)arg;
	start();
	uffd = uffd_of_ram(0, UFFD_FEATURE_SIGBUS);
	conclude(touch_read(), copy, WORD);
}

static void uffd_user_mode_only(int arg)
{
	(void)arg;
	start();
	uffd = uffd_of_ram(UFFD_USER_MODE_ONLY, 0);
	conclude(touch_read(), copy, WORD);
}

static void mark(void)
{
	start();
	aim(RAM + 5 * PAGE, bed.ram + 5 * PAGE);
	uffd = uffd_of_ram(0, 0);
	errno = -uffd_poison(uffd, bed.hva, PAGE);
	may(errno ? -1 : 0);
}

static void marker(int blocked)
{
	mark();
	if (blocked)
		block_sigbus();
	conclude(touch_read(), copy, WORD);
}

static void conclude_message(struct reader *reader)
{
	reader_start(reader);
	if (touch_read() != COMPLETES)
		answer("%s", bed.said);
	pthread_join(reader->thread, NULL);
	if (machine_result(bed.vcpu) != WORD || reader->address != bed.hva)
		answer("message, wrong address or data");
	answer("message, ptid=%s",
	       reader->ptid == (uint32_t)gettid() ? "vcpu" : "other");
}

static void missing(int arg)
{
	struct reader reader = { .word = WORD };

	(void)arg;
	start();
	reader.fd = uffd_of_ram(0, UFFD_FEATURE_THREAD_ID);
	conclude_message(&reader);
}

/* All signals are for who sleeps. */
static void *give_up(void *arg)
{
	(void)arg;
	sleep(10);
	answer("a kick does not end it");
}

static void kicked(int arg)
{
	sigset_t all, old;
	pthread_t thread;

	(void)arg;
	start();
	uffd = uffd_of_ram(0, 0);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	errno = pthread_create(&thread, NULL, give_up, NULL);
	must(errno ? -1 : 0, "thread");
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	touch_read();
	/* How busy it was is the timer's affair. */
	if (!strcmp(bed.said, "sleeps") || !strcmp(bed.said, "loops"))
		answer("a kick ends it");
	answer("%s", bed.said);
}

/* In the file, and not mapped. */
static void minor(int arg)
{
	struct reader reader = { .word = 0 };

	(void)arg;
	start();
	must(pwrite(bed.memfd, filled(WORD), PAGE, 0), "pwrite");
	reader.fd = uffd_new(0, UFFD_FEATURE_THREAD_ID |
			     UFFD_FEATURE_MINOR_SHMEM);
	may(uffd_register(reader.fd, bed.ram, PAGES * PAGE,
			  UFFDIO_REGISTER_MODE_MINOR, NULL));
	conclude_message(&reader);
}

/* Elsewhere another may need it, or there may be none. */
static char *huge_page(void)
{
	int fd;

	if (!throwaway())
		answer("not asked: takes a huge page from others");
	fd = must(memfd_create("huge", MFD_CLOEXEC | MFD_HUGETLB |
			       21U << MAP_HUGE_SHIFT), "memfd");
	must(ftruncate(fd, HUGE), "ftruncate");
	return must_map(mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_SHARED,
			     fd, 0), "mmap");
}

static void copy_huge(void)
{
	char *start_of = (char *)((uintptr_t)bed.hva & ~(HUGE - 1));

	errno = -uffd_copy(uffd, start_of, filled(WORD), HUGE);
	must(errno ? -1 : 0, "copy");
}

static void huge_marker(int arg)
{
	char *huge = huge_page();

	(void)arg;
	start();
	errno = -machine_set_slot(bed.machine, 2, 0, OTHER, HUGE, huge);
	must(errno ? -1 : 0, "slot");
	aim(OTHER + 5 * PAGE, huge + 5 * PAGE);
	uffd = uffd_new(0, 0);
	must(uffd_register(uffd, huge, HUGE, UFFDIO_REGISTER_MODE_MISSING,
			   NULL), "register");
	errno = -uffd_poison(uffd, huge, HUGE);
	may(errno ? -1 : 0);
	conclude(touch_read(), copy_huge, WORD);
}

static void no_slot(int arg)
{
	(void)arg;
	start();
	aim(DEVICE, NULL);
	touch_read();
	answer("%s", bed.said);
}

static void read_only_slot(int arg)
{
	(void)arg;
	start();
	errno = -machine_set_slot(bed.machine, 1, 0, RAM, 0, bed.ram);
	must(errno ? -1 : 0, "slot");
	errno = -machine_set_slot(bed.machine, 1, KVM_MEM_READONLY, RAM,
				  PAGES * PAGE, bed.ram);
	must(errno ? -1 : 0, "slot");
	touch_write();
	answer("%s", bed.said);
}

static void return_there(void)
{
	map_again();
	machine_put_return(bed.hva);
}

static void code(int arg)
{
	(void)arg;
	start();
	must(munmap(bed.hva, PAGE), "munmap");
	conclude(touch(MACHINE_JUMP, bed.gpa, 7, 0, 0), return_there, 7);
}

static void copy_return(void)
{
	static char page[PAGE];

	machine_put_return(page);
	errno = -uffd_copy(uffd, bed.hva, page, PAGE);
	must(errno ? -1 : 0, "copy");
}

static void marked_code(int arg)
{
	(void)arg;
	mark();
	conclude(touch(MACHINE_JUMP, bed.gpa, 7, 0, 0), copy_return, 7);
}

/* Accesses in one piece that an emulator may have to take apart. */
static void large(int routine)
{
	start();
	must(munmap(bed.hva, PAGE), "munmap");
	if (routine == MACHINE_READ16 || routine == MACHINE_EXCHANGE)
		conclude(touch(routine, bed.gpa, WORD, 0, 0), map_again, 0);
	touch(routine, bed.gpa, 0, 0, 0);
	answer("%s", bed.said);
}

/* What a later KVM_RUN that faults at nothing leaves of an earlier record. */
static void exit_reason_left(int arg)
{
	(void)arg;
	start();
	must(munmap(bed.hva, PAGE), "munmap");
	touch_read();
	bed.vcpu->run->exit_reason = EXIT_MEMORY_FAULT;
	bed.vcpu->run->immediate_exit = 1;
	if (!ioctl(bed.vcpu->fd, KVM_RUN, 0))
		answer("no error, exit reason %u", bed.vcpu->run->exit_reason);
	answer("%s, exit reason %u", strerrorname_np(errno),
	       bed.vcpu->run->exit_reason);
}

const struct row memory_rows[] = {
	{ "unmapped", BOTH, unmapped, 0 },
	{ "PROT_NONE", BOTH, protected, PROT_NONE },
	{ "PROT_READ and a write", BOTH, protected, PROT_READ },
	{ "short file", BOTH, short_file, 0 },
	{ "uffd SIGBUS", BOTH, uffd_sigbus, 0 },
	{ "uffd USER_MODE_ONLY", BOTH, uffd_user_mode_only, 0 },
	{ "marker", BOTH, marker, false },
	{ "marker, SIGBUS blocked", BOTH, marker, true },
	{ "marker in hugetlb", BOTH, huge_marker, 0 },
	{ "uffd missing", BOTH, missing, 0 },
	{ "uffd missing, kicked", BOTH, kicked, 0 },
	{ "uffd minor", BOTH, minor, 0 },
	{ "no slot", BOTH, no_slot, 0 },
	{ "write to a read-only slot", BOTH, read_only_slot, 0 },
	{ "code unmapped", BOTH, code, 0 },
	{ "code marked", BOTH, marked_code, 0 },
	{ "read-modify-write unmapped", BOTH, large, MACHINE_EXCHANGE },
	{ "16 bytes unmapped", BOTH, large, MACHINE_READ16 },
	{ "FPU state unmapped", BOTH, large, MACHINE_FPU_SAVE },
	{ "exit reason after immediate_exit", 0, exit_reason_left, 0 },
	{ NULL, 0, NULL, 0 },
};
