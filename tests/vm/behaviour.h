/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What the files of the program `behaviour` share: rows, the VM that a row
 * asks, and words for what came out of it. Nothing of the library is in it:
 * it shows what the kernel does, not what the library makes of it.
 *
 * Each row is asked in a process of its own, so that there is one VM, one set
 * of signal handlers, nothing to clean up, and a row can hang or crash.
 */

#ifndef KVMFAULT_TESTS_BEHAVIOUR_H
#define KVMFAULT_TESTS_BEHAVIOUR_H

#include <errno.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <machine.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

#define PAGE 4096UL
#define PAGES 16UL
#define HUGE (2UL << 20)

/* Guest physical addresses. */
#define RAM (1ULL << 30)		/* PAGES pages of a memfd, slot 1 */
#define OTHER (RAM + (64 << 20))	/* what a row puts there, slot 2 */
#define DEVICE (RAM + (512 << 20))	/* nothing is there */
#define DEVICE_PORT 0x99

/* Newer than the kernel headers of some build hosts. */
#define EXIT_MEMORY_FAULT 39
#define CAP_USER_MEMORY2 231
#define CAP_MEMORY_FAULT_INFO 232
#define CAP_MEMORY_ATTRIBUTES 233
#define CAP_GUEST_MEMFD 234
#define CAP_PRE_FAULT_MEMORY 236
#define CAP_GUEST_MEMFD_FLAGS 244
#define SET_MEMORY_ATTRIBUTES 0x4020aed2UL
#define PRE_FAULT_MEMORY 0xc040aed5UL
#define POISON 0xc020aa08UL		/* UFFDIO_POISON */

struct memory_attributes {
	uint64_t address, size, attributes, flags;
};

struct pre_fault_memory {
	uint64_t gpa, size, flags, padding[5];
};

struct poison {
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};

/* A row, and whether it is asked with and without an interrupt controller in
 * the kernel (with one, interrupts are enabled and a timer fires), and in the
 * guest's least and most privileged level. */
enum {
	IRQCHIP = 1,
	LEVELS = 2,
	BOTH = IRQCHIP | LEVELS,
};

struct row {
	const char *key;		/* NULL: the end */
	unsigned int variants;
	void (*ask)(int arg);		/* ends in answer() */
	int arg;
};

extern const struct row memory_rows[];
extern const struct row table_rows[];
extern const struct row guest_memfd_rows[];
extern const struct row uffd_rows[];
extern const struct row edge_rows[];
extern const struct row userfault_rows[];
#ifdef __x86_64__
extern const struct row x86_rows[];
#endif

/* The row's answer, and the end of its process. */
void answer(const char *format, ...)
	__attribute__((noreturn, format(printf, 1, 2)));
/* What has to work for the row to be asked: -1, with errno, is its answer. */
int must(long ret, const char *what);
void *must_map(void *address, const char *what);
/* "unsupported: E..." unless it worked. */
int may(long ret);
/* Whether this system exists for this test only: it may be damaged. */
bool throwaway(void);

/* What came out of KVM_RUN. */
enum outcome {
	COMPLETES,			/* the guest has done it */
	FAULTS,				/* it has not, and will do it again */
	OTHERWISE,			/* neither */
};

struct bed {
	struct machine *machine;
	struct machine_vcpu *vcpu;
	unsigned long type;		/* of the VM, for start() */
	bool irqchip, supervisor;
	int memfd;
	char *ram;			/* where slot 1 is mapped */
	uint64_t gpa;			/* what is to fault: see aim() */
	char *hva;
	bool writes;			/* what was touched last */
	uint64_t device_value;		/* what DEVICE reads as */
	char said[128];			/* words for what came last */
};

extern struct bed bed;

/* The VM of this row's variant, with RAM. */
void start(void);
/* The same, with the VM alone: RAM is not there. */
void start_machine(void);
/* The page whose address a fault has to tell; start() aims at the first. */
void aim(uint64_t gpa, void *hva);
/* Have the guest do it; its first argument is its own affair. */
enum outcome touch(enum machine_routine routine, uint64_t a, uint64_t b,
		   uint64_t c, uint64_t d);
enum outcome touch_read(void);		/* 8 bytes where it was aimed at */
enum outcome touch_write(void);
enum outcome resume(void);		/* KVM_RUN, after FAULTS */
/* Nobody but the kicks and SIGBUS ends this: what call() returns, or EINTR. */
void arm(void);				/* a kick now and then, from now on */
bool looping(void);			/* after EINTR: say so, or go on */
bool sigbus_came(void);			/* then it is described in bed.said */
void block_sigbus(void);

/* Answer with what was said. If that was a fault, cure it first, and see that
 * the guest then reads value, or has written it. */
void conclude(enum outcome outcome, void (*cure)(void), uint64_t value)
	__attribute__((noreturn));

/* A userfaultfd that is not registered, and one of RAM for missing pages. */
int uffd_new(int flags, uint64_t features);
int uffd_of_ram(int flags, uint64_t features);
int uffd_register(int fd, void *start, size_t length, uint64_t mode,
		  uint64_t *ioctls);
/* 0, or -errno */
int uffd_copy(int fd, void *to, const void *from, size_t length);
int uffd_poison(int fd, void *start, size_t length);
int uffd_continue(int fd, void *start, size_t length);
const void *filled(uint64_t word);	/* a page of it */

/* behaviour-uffd.c: HUGE of that memory, and a userfaultfd that watches for what
 * is missing there. */
enum { ANONYMOUS, SHMEM, HUGETLB };
char *map_kind(int kind);
int watch(void *start, size_t length, uint64_t features);
/* The errno of a call, or 0, by name. */
const char *name_of(int ret);

/* A thread that waits for one message and answers it. */
struct reader {
	pthread_t thread;
	int fd;
	unsigned int wait_ms;		/* before it answers */
	uint64_t word;			/* what the page is filled with */
	char *address;
	uint32_t ptid;
	uint64_t flags;			/* of the message */
	bool copied;
};

void reader_start(struct reader *reader);

#endif
