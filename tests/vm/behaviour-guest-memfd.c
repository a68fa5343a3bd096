/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * guest_memfd, private memory, KVM_PRE_FAULT_MEMORY, and what this KVM says
 * that it has.
 */

#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "behaviour.h"

#define WORD 0x6c62272e07bb0142ULL
#define SW_PROTECTED_VM 1
#define ATTRIBUTE_PRIVATE (1ULL << 3)
#define HWPOISON 100			/* MADV_HWPOISON */

static int uffd;

static void put_slot(uint64_t size, int fd)
{
	errno = -machine_set_guest_memfd_slot(bed.machine, 2, OTHER, size,
					      size ? bed.ram : NULL, fd, 0);
	must(errno ? -1 : 0, "slot");
}

/* A slot of guest_memfd that the guest may use as it is, and its fd. */
static int shared_memfd(void)
{
	int fd = machine_create_guest_memfd(bed.machine, PAGES * PAGE,
					    MACHINE_GUEST_MEMFD_MMAP |
					    MACHINE_GUEST_MEMFD_INIT_SHARED);

	errno = -fd;
	return may(fd);
}

/* The same from before 6.18: it cannot be mapped. */
static int plain_memfd(void)
{
	int fd = machine_create_guest_memfd(bed.machine, PAGES * PAGE, 0);

	errno = -fd;
	return may(fd);
}

static void *mapped(int fd)
{
	return must_map(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
			     MAP_SHARED, fd, 0), "mmap");
}

static void renew(void)
{
	int fd;

	put_slot(0, 0);
	fd = shared_memfd();
	put_slot(PAGES * PAGE, fd);
	*(uint64_t *)((char *)mapped(fd) + 2 * PAGE) = WORD;
}

static void closed(int arg)
{
	int fd;

	(void)arg;
	start();
	fd = shared_memfd();
	put_slot(PAGES * PAGE, fd);
	close(fd);
	aim(OTHER + 2 * PAGE, NULL);
	conclude(touch_read(), renew, WORD);
}

static void absent(int arg)
{
	(void)arg;
	start();
	put_slot(PAGES * PAGE, shared_memfd());
	memset(bed.ram, 1, PAGES * PAGE);
	aim(OTHER + 2 * PAGE, NULL);
	if (touch_read() != COMPLETES)
		answer("%s", bed.said);
	answer(machine_result(bed.vcpu) ? "the slot's mapping" : "zero page");
}

static void register_it(int arg)
{
	(void)arg;
	start();
	may(uffd_register(uffd_new(0, 0), mapped(shared_memfd()), PAGES * PAGE,
			  UFFDIO_REGISTER_MODE_MISSING, NULL));
	answer("yes");
}

static void poisoned(int arg)
{
	char *page;
	int fd;

	(void)arg;
	if (!throwaway())
		answer("not asked: costs the machine a page");
	start();
	fd = shared_memfd();
	put_slot(PAGES * PAGE, fd);
	page = (char *)mapped(fd) + 2 * PAGE;
	*page = 1;
	/* EBUSY: it is lost, and in use. The SIGBUS is for this mapping. */
	if (madvise(page, PAGE, HWPOISON) && errno != EBUSY)
		may(-1);
	aim(OTHER + 2 * PAGE, page);
	touch_read();
	answer("%s", bed.said);
}

/* The whole of the other slot, or of RAM. */
static void set_private(uint64_t gpa, uint64_t attributes)
{
	struct memory_attributes arg = {
		.address = gpa,
		.size = PAGES * PAGE,
		.attributes = attributes,
	};

	may(ioctl(bed.machine->vm_fd, SET_MEMORY_ATTRIBUTES, &arg));
}

static void set_shared(void)
{
	set_private(RAM, 0);
}

static void set_shared_and_slot(void)
{
	set_private(RAM, 0);
	errno = -machine_set_slot(bed.machine, 1, 0, RAM, PAGES * PAGE,
				  bed.ram);
	must(errno ? -1 : 0, "slot");
}

static void start_private(void)
{
	bed.type = SW_PROTECTED_VM;
	start();
	memset(bed.ram, 1, PAGES * PAGE);
}

static void private_without_memfd(int arg)
{
	(void)arg;
	start_private();
	set_private(RAM, ATTRIBUTE_PRIVATE);
	aim(RAM + 2 * PAGE, NULL);
	conclude(touch_read(), set_shared, 0x0101010101010101);
}

static void private_without_slot(int arg)
{
	(void)arg;
	start_private();
	set_private(RAM, ATTRIBUTE_PRIVATE);
	errno = -machine_set_slot(bed.machine, 1, 0, RAM, 0, bed.ram);
	must(errno ? -1 : 0, "slot");
	aim(RAM + 2 * PAGE, NULL);
	conclude(touch_read(), set_shared_and_slot, 0x0101010101010101);
}

static void private_with_memfd(int arg)
{
	(void)arg;
	start_private();
	put_slot(PAGES * PAGE, plain_memfd());
	set_private(OTHER, ATTRIBUTE_PRIVATE);
	aim(OTHER + 2 * PAGE, NULL);
	if (touch_read() != COMPLETES)
		answer("%s", bed.said);
	answer(machine_result(bed.vcpu) ? "the slot's mapping" : "zero page");
}

static void shared_with_memfd(int arg)
{
	(void)arg;
	start_private();
	put_slot(PAGES * PAGE, plain_memfd());
	aim(OTHER + 2 * PAGE, NULL);
	if (touch_read() != COMPLETES)
		answer("%s", bed.said);
	answer(machine_result(bed.vcpu) ? "the slot's mapping" : "zero page");
}

static void put_private_memfd(void)
{
	put_slot(0, 0);
	put_slot(PAGES * PAGE, plain_memfd());
}

static void private_closed(int arg)
{
	int fd;

	(void)arg;
	start_private();
	fd = plain_memfd();
	put_slot(PAGES * PAGE, fd);
	close(fd);
	set_private(OTHER, ATTRIBUTE_PRIVATE);
	aim(OTHER + 2 * PAGE, NULL);
	conclude(touch_read(), put_private_memfd, 0);
}

static void system_capability(int number)
{
	start_machine();
	answer("%d", must(ioctl(bed.machine->kvm_fd, KVM_CHECK_EXTENSION,
				(long)number), "KVM_CHECK_EXTENSION"));
}

static void vm_capability(int number)
{
	start_machine();
	answer("%d", must(ioctl(bed.machine->vm_fd, KVM_CHECK_EXTENSION,
				(long)number), "KVM_CHECK_EXTENSION"));
}

/* A flag of a slot: refused, or what is it? */
static void slot_flag(int flag)
{
	int ret;

	start();
	ret = machine_set_slot(bed.machine, 2, (uint32_t)flag, OTHER,
			       PAGES * PAGE, bed.ram);
	answer("%s", ret ? strerrorname_np(-ret) : "accepted");
}

/* Ask for the page aimed at and the next one; say what came. */
static void pre_fault(void)
{
	struct pre_fault_memory range = { .gpa = bed.gpa, .size = 2 * PAGE };
	struct kvm_run *run = bed.vcpu->run;
	int ret;

	arm();
	do {
		ret = ioctl(bed.vcpu->fd, PRE_FAULT_MEMORY, &range);
	} while (ret && errno == EINTR && !sigbus_came() && !looping());
	if (!ret)
		answer(range.size ? "0, part is left" : "0, all of it");
	if (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOTTY)
		may(ret);
	if (errno == EINTR)
		answer("EINTR, %s", bed.said);
	if (run->exit_reason)
		answer("%s, exit reason %u is left", strerrorname_np(errno),
		       run->exit_reason);
	answer("%s", strerrorname_np(errno));
}

static void pre_fault_present(int arg)
{
	(void)arg;
	start();
	memset(bed.ram, 1, PAGES * PAGE);
	pre_fault();
}

static void pre_fault_absent(int arg)
{
	(void)arg;
	start();
	pre_fault();
}

static void pre_fault_unmapped(int arg)
{
	(void)arg;
	start();
	must(munmap(bed.ram, PAGE), "munmap");
	pre_fault();
}

static void pre_fault_marker(int blocked)
{
	start();
	uffd = uffd_of_ram(0, 0);
	errno = -uffd_poison(uffd, bed.ram, PAGES * PAGE);
	may(errno ? -1 : 0);
	if (blocked)
		block_sigbus();
	pre_fault();
}

static void pre_fault_second_marker(int arg)
{
	(void)arg;
	start();
	uffd = uffd_of_ram(0, 0);
	errno = -uffd_poison(uffd, bed.ram, PAGES * PAGE);
	may(errno ? -1 : 0);
	errno = -uffd_copy(uffd, bed.ram, filled(WORD), PAGE);
	must(errno ? -1 : 0, "copy");
	bed.hva = bed.ram + PAGE;
	pre_fault();
}

static void pre_fault_uffd_sigbus(int arg)
{
	(void)arg;
	start();
	uffd = uffd_of_ram(0, UFFD_FEATURE_SIGBUS);
	pre_fault();
}

/* The kicks come all the time; the page comes after some of them. */
static void pre_fault_missing(int arg)
{
	struct pre_fault_memory range = { .gpa = RAM, .size = PAGE };
	struct reader reader = { .word = WORD, .wait_ms = 500 };
	bool waited;
	int ret;

	(void)arg;
	start();
	reader.fd = uffd_of_ram(0, UFFD_FEATURE_THREAD_ID);
	reader_start(&reader);
	ret = ioctl(bed.vcpu->fd, PRE_FAULT_MEMORY, &range);
	if (ret && errno != EINTR)
		may(ret);
	waited = __atomic_load_n(&reader.copied, __ATOMIC_SEQ_CST);
	pthread_join(reader.thread, NULL);
	answer("message, ptid=%s, a kick %s",
	       reader.ptid == (uint32_t)gettid() ? "vcpu" : "other",
	       waited ? "does not end it" : ret ? "ends it" : "is not needed");
}

static void pre_fault_no_slot(int arg)
{
	(void)arg;
	start();
	aim(DEVICE, NULL);
	pre_fault();
}

static void pre_fault_closed(int arg)
{
	int fd;

	(void)arg;
	start();
	fd = shared_memfd();
	put_slot(PAGES * PAGE, fd);
	close(fd);
	aim(OTHER, NULL);
	pre_fault();
}

static void pre_fault_private(int arg)
{
	(void)arg;
	start_private();
	set_private(RAM, ATTRIBUTE_PRIVATE);
	pre_fault();
}

const struct row guest_memfd_rows[] = {
	{ "capability 231, USER_MEMORY2", 0, vm_capability, CAP_USER_MEMORY2 },
	{ "capability 232, MEMORY_FAULT_INFO", 0, vm_capability,
	  CAP_MEMORY_FAULT_INFO },
	{ "capability 233, MEMORY_ATTRIBUTES", 0, vm_capability,
	  CAP_MEMORY_ATTRIBUTES },
	{ "capability 233 of /dev/kvm", 0, system_capability,
	  CAP_MEMORY_ATTRIBUTES },
	{ "capability 234, GUEST_MEMFD", 0, vm_capability, CAP_GUEST_MEMFD },
	{ "capability 236, PRE_FAULT_MEMORY", 0, vm_capability,
	  CAP_PRE_FAULT_MEMORY },
	{ "capability 244, GUEST_MEMFD_FLAGS", 0, vm_capability,
	  CAP_GUEST_MEMFD_FLAGS },
	{ "slot flag 1<<3", 0, slot_flag, 1 << 3 },

	{ "guest_memfd closed", BOTH, closed, 0 },
	{ "guest_memfd absent", BOTH, absent, 0 },
	{ "guest_memfd poisoned", BOTH, poisoned, 0 },
	{ "guest_memfd and userfaultfd", 0, register_it, 0 },

	{ "private, no guest_memfd", BOTH, private_without_memfd, 0 },
	{ "private, slot gone", BOTH, private_without_slot, 0 },
	{ "private, guest_memfd closed", BOTH, private_closed, 0 },
	{ "private, guest_memfd absent", BOTH, private_with_memfd, 0 },
	{ "shared, guest_memfd absent", BOTH, shared_with_memfd, 0 },

	{ "pre-fault present", 0, pre_fault_present, 0 },
	{ "pre-fault absent", 0, pre_fault_absent, 0 },
	{ "pre-fault unmapped", 0, pre_fault_unmapped, 0 },
	{ "pre-fault over a marker", 0, pre_fault_marker, false },
	{ "pre-fault over a marker, SIGBUS blocked", 0, pre_fault_marker,
	  true },
	{ "pre-fault up to a marker", 0, pre_fault_second_marker, 0 },
	{ "pre-fault uffd SIGBUS", IRQCHIP, pre_fault_uffd_sigbus, 0 },
	{ "pre-fault uffd missing", IRQCHIP, pre_fault_missing, 0 },
	{ "pre-fault no slot", 0, pre_fault_no_slot, 0 },
	{ "pre-fault guest_memfd closed", 0, pre_fault_closed, 0 },
	{ "pre-fault private", 0, pre_fault_private, 0 },
	{ NULL, 0, NULL, 0 },
};
