/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What the library itself costs, with a kernel that answers at once: the door's
 * calls that a fault makes are scripted here. micro.py has
 * callgrind count the instructions of what is measured, but for those in this
 * file.
 *
 * usage: micro count WHAT			runs it COUNT times
 *	  micro time THREADS same|apart	prints a fault's CPU nanoseconds
 */

#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <valgrind/callgrind.h>

#include "lib/os/abi.h"
#include "lib/setup/setup.h"

#define COUNT 1000
#define THREADS_MAX 256
#define FAULTS 50000		/* of each thread */
#define HOST 0x100000000000ULL	/* nothing is there */
#define STEP (2ULL << 20)	/* from one region to the next */

static struct {
	struct kvmfault_vm *vm;
	struct kvmfault_memory *memory;
	struct kvmfault_service *service;
	struct kvmfault__seat *seat;
	uint64_t regions, pages;	/* pages of each region */
	uint64_t next_message;
	int fd;
} bed;

struct cpu {
	struct kvmfault_vcpu *vcpu;
	struct kvm_run run;
	pthread_t thread;
	uint64_t first;
};
static struct cpu cpus[THREADS_MAX];

/* ---- the door, where a fault goes through it ---- */

int __wrap_kvmfault__sys_ioctl(int fd, unsigned long request, void *arg);
int __wrap_kvmfault__sys_open(const char *path, int flags);
int __wrap_kvmfault__sys_userfaultfd(int flags);
int __wrap_kvmfault__sys_madvise(void *address, size_t length, int advice);
int __wrap_kvmfault__sys_epoll_wait(int epfd, struct epoll_event *events,
				    int count, int timeout);
ssize_t __wrap_kvmfault__sys_read_now(int fd, void *buffer, size_t length);
uint64_t __wrap_kvmfault__sys_now(void);

int __wrap_kvmfault__sys_ioctl(int fd, unsigned long request, void *arg)
{
	(void)fd;
	if (request == UFFDIO_COPY)
		((struct uffdio_copy *)arg)->copy =
			(int64_t)((struct uffdio_copy *)arg)->len;
	return 0;
}

int __wrap_kvmfault__sys_open(const char *path, int flags)
{
	(void)path;
	(void)flags;
	return -ENOENT;
}

int __wrap_kvmfault__sys_userfaultfd(int flags)
{
	(void)flags;
	return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

int __wrap_kvmfault__sys_madvise(void *address, size_t length, int advice)
{
	(void)address;
	(void)length;
	(void)advice;
	return 0;
}

/* The memory's userfaultfd has a message. */
int __wrap_kvmfault__sys_epoll_wait(int epfd, struct epoll_event *events,
				    int count, int timeout)
{
	(void)epfd;
	(void)count;
	(void)timeout;
	events[0] = (struct epoll_event){ .events = EPOLLIN, .data.u64 = 1 };
	return 1;
}

ssize_t __wrap_kvmfault__sys_read_now(int fd, void *buffer, size_t length)
{
	struct uffd_msg *msg = buffer;

	(void)fd;
	(void)length;
	*msg = (struct uffd_msg){
		.event = UFFD_EVENT_PAGEFAULT,
		.arg.pagefault.address = HOST + bed.next_message,
	};
	bed.next_message += KVMFAULT__PAGE;
	return sizeof(*msg);
}

uint64_t __wrap_kvmfault__sys_now(void)
{
	return 1000;
}

static int read_source(void *data, uint64_t offset, void *buffer, size_t length)
{
	(void)data;
	(void)offset;
	(void)buffer;
	(void)length;
	return 0;
}

/* ---- a VM ---- */

static void must(int err, const char *what)
{
	if (err) {
		fprintf(stderr, "micro: cannot %s: %s\n", what, strerror(-err));
		exit(1);
	}
}

static void add_regions(void)
{
	struct kvmfault_region region = {
		.size = sizeof(region),
		.length = bed.pages * KVMFAULT__PAGE,
		.memory = bed.memory,
	};
	uint64_t i;

	for (i = 0; i < bed.regions; i++) {
		region.gpa = i * (STEP > region.length ? STEP : region.length);
		region.offset = i * region.length;
		must(kvmfault_region_add(bed.vm, &region), "add a region");
	}
}

static void add_vcpu(struct cpu *cpu)
{
	struct kvmfault_vcpu_options options = {
		.size = sizeof(options),
		.fd = bed.fd,
		.run = &cpu->run,
	};

	must(kvmfault_vcpu_new(bed.vm, &options, &cpu->vcpu), "make a vCPU");
}

static void make_vm(uint64_t regions, uint64_t pages)
{
	struct kvmfault_source source = {
		.size = sizeof(source),
		.name = "nothing",
		.read = read_source,
	};
	struct kvmfault_memory_options memory = {
		.size = sizeof(memory),
		.host = (void *)(uintptr_t)HOST,
		.length = regions * pages * KVMFAULT__PAGE,
		.source = &source,
	};
	struct kvmfault_service_options service = { .size = sizeof(service) };

	bed.regions = regions;
	bed.pages = pages;
	bed.fd = memfd_create("nothing", MFD_CLOEXEC);
	must(ftruncate(bed.fd, (off_t)memory.length), "make a file");
	memory.fd = bed.fd;
	must(kvmfault_vm_new(NULL, &bed.vm), "make a context");
	must(kvmfault_memory_adopt(bed.vm, &memory, &bed.memory),
	     "make a memory");
	add_regions();
	must(kvmfault_service_new(bed.vm, &service, &bed.service),
	     "make a service");
	bed.seat = kvmfault__seat_take(bed.vm);
	add_vcpu(&cpus[0]);
}

/* Of a page of the first region. */
static void fault(struct cpu *cpu, uint64_t page)
{
	struct kvmfault__memory_fault record = {
		.gpa = page * KVMFAULT__PAGE,
		.size = KVMFAULT__PAGE,
	};

	cpu->run.exit_reason = KVMFAULT__EXIT_MEMORY_FAULT;
	memcpy(&cpu->run.hw, &record, sizeof(record));
	if (kvmfault_vcpu_handle(cpu->vcpu, -1, EFAULT) != KVMFAULT_ACTION_RETRY)
		must(-EPROTO, "resolve a fault");
}

/* ---- what is counted ---- */

static void exits(uint64_t n)
{
	(void)n;
	cpus[0].run.exit_reason = KVM_EXIT_IO;
	if (kvmfault_vcpu_handle(cpus[0].vcpu, 0, 0) != KVMFAULT_ACTION_NOT_A_FAULT)
		must(-EPROTO, "hand an exit on");
}

static void faults(uint64_t n)
{
	fault(&cpus[0], n);
}

static void messages(uint64_t n)
{
	(void)n;
	must(kvmfault_service_dispatch(bed.service), "dispatch");
}

static void lookups(uint64_t n)
{
	uint64_t gpa = n * 7919 % bed.regions * STEP;

	if (!kvmfault__region_find(bed.seat, 0, gpa))
		must(-ENOENT, "find a region");
	kvmfault__leave(bed.seat);
}

static const struct what {
	const char *name;
	void (*once)(uint64_t n);
	uint64_t regions, pages;
} all[] = {
	{ "exit", exits, 4, 512 },
	{ "fault", faults, 4, 262144 },
	{ "fault in 1 TiB", faults, 4, 67108864 },
	{ "message", messages, 4, 262144 },
	{ "lookup in 4", lookups, 4, 1 },
	{ "lookup in 512", lookups, 512, 1 },
	{ "lookup in 4096", lookups, 4096, 1 },
	{ "lookup in 32764", lookups, 32764, 1 },
};

static int count(const char *name)
{
	uint64_t n;
	size_t i;

	for (i = 0; i < sizeof(all) / sizeof(*all); i++) {
		if (strcmp(all[i].name, name))
			continue;
		make_vm(all[i].regions, all[i].pages);
		all[i].once(0);		/* to warm up */
		CALLGRIND_START_INSTRUMENTATION;
		for (n = 1; n <= COUNT; n++)
			all[i].once(n);
		CALLGRIND_STOP_INSTRUMENTATION;
		printf("%d\n", COUNT);
		return 0;
	}
	return 1;
}

/* ---- what is timed ---- */

static pthread_barrier_t start;

static void *thread(void *arg)
{
	struct cpu *cpu = arg;
	uint64_t n;

	pthread_barrier_wait(&start);
	for (n = 0; n < FAULTS; n++)
		fault(cpu, cpu->first + n);
	return NULL;
}

/* What this process has had of the CPUs: what else they do does not count. */
static uint64_t cpu_time(void)
{
	struct timespec now;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static int timed(unsigned int threads, bool same)
{
	uint64_t began;
	unsigned int i;

	make_vm(1, (uint64_t)threads * FAULTS);
	pthread_barrier_init(&start, NULL, threads + 1);
	for (i = 0; i < threads; i++) {
		if (i)
			add_vcpu(&cpus[i]);
		cpus[i].first = same ? 0 : (uint64_t)i * FAULTS;
		must(-pthread_create(&cpus[i].thread, NULL, thread, &cpus[i]),
		     "start a thread");
	}
	pthread_barrier_wait(&start);
	began = cpu_time();
	for (i = 0; i < threads; i++)
		pthread_join(cpus[i].thread, NULL);
	printf("%.1f\n", (double)(cpu_time() - began) / FAULTS / threads);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "count"))
		return count(argv[2]);
	if (argc == 4 && !strcmp(argv[1], "time")) {
		long threads = strtol(argv[2], NULL, 10);

		if (threads > 0 && threads <= THREADS_MAX)
			return timed((unsigned int)threads,
				     !strcmp(argv[3], "same"));
	}
	fputs("usage: micro count WHAT | time THREADS same|apart\n", stderr);
	return 2;
}
