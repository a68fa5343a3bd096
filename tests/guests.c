/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What a restore costs a guest, on a real vCPU, in one of two ways that take
 * turns. `scripts/bench guests` runs it.
 *
 * usage: guests WHAT ROUNDS [AMOUNT]	prints for each round how many
 *					microseconds both ways took
 *   start	until the guest is ready, which touches AMOUNT (1000) pages in
 *		an order of its own, with some work after each ten; the source
 *		takes 1 ms, and has any number of requests at once. Without a
 *		working set, and with the one that was recorded the first time.
 *		And prints how many faults waited, both ways
 *   settled	AMOUNT (5000) exits for a device, and as many pages read: in a
 *		VMM that never had the library, and in one that has, with a
 *		memory that is settled
 */

#include <err.h>
#include <errno.h>
#include <kvmfault.h>
#include <linux/kvm.h>
#include <machine.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>

#include "need.h"

#define PAGE 4096ULL
#define SIZE (256ULL << 20)		/* of RAM and of the image */
#define PAGES (SIZE / PAGE)
#define RAM (4ULL << 30)		/* gpas: RAM, */
#define TABLE (1ULL << 30)		/* where the guest finds its pages, */
#define DEVICE 0xe0000000ULL		/* and where nothing is */
#define AMOUNT_MOST 100000ULL
#define TABLE_SIZE (2 * AMOUNT_MOST * 8 / PAGE * PAGE + PAGE)
#define TOUCHES 10			/* pages, and then some work: */
#define SPINS 1500000
#define FETCHES 128
#define LATENCY_NS 1000000

static char *image, *ram;
static uint64_t *table;
static uint64_t amount;

static void must(int error, const char *what)
{
	if (error)
		errx(1, "%s: %s", what, strerror(error < 0 ? -error : error));
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static uint64_t mix(uint64_t n)
{
	n += 0x9e3779b97f4a7c15ULL;
	n = (n ^ (n >> 30)) * 0xbf58476d1ce4e5b9ULL;
	n = (n ^ (n >> 27)) * 0x94d049bb133111ebULL;
	return n ^ (n >> 31);
}

static void *map(uint64_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		err(1, "memory");
	return memory;
}

static void make_image(void)
{
	uint64_t page;

	image = map(SIZE);
	for (page = 0; page < PAGES; page++)
		*(uint64_t *)(image + page * PAGE) = mix(page);
}

/* ---- a source that answers later: all that it was asked for at once ---- */

static struct asked {
	struct kvmfault_fetch *fetch;
	uint64_t offset, due;
	void *buffer;
	size_t length;
} asked[FETCHES];
static uint64_t asked_head, asked_tail;
static bool asked_end;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;
static pthread_t answering;

static int submit(void *data, struct kvmfault_fetch *fetch, uint64_t offset,
		  void *buffer, size_t length)
{
	(void)data;
	pthread_mutex_lock(&lock);
	asked[asked_tail++ % FETCHES] = (struct asked){
		fetch, offset, now_ns() + LATENCY_NS, buffer, length,
	};
	pthread_cond_signal(&more);
	pthread_mutex_unlock(&lock);
	return 0;
}

static bool take_asked(struct asked *next)
{
	bool found;

	pthread_mutex_lock(&lock);
	while (asked_head == asked_tail && !asked_end)
		pthread_cond_wait(&more, &lock);
	found = asked_head != asked_tail;
	if (found)
		*next = asked[asked_head++ % FETCHES];
	pthread_mutex_unlock(&lock);
	return found;
}

static void *answer(void *arg)
{
	struct asked next;

	while (take_asked(&next)) {
		const struct timespec due = {
			.tv_sec = (time_t)(next.due / 1000000000),
			.tv_nsec = (long)(next.due % 1000000000),
		};

		while (now_ns() < next.due &&
		       clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due,
				       NULL))
			;
		memcpy(next.buffer, image + next.offset, next.length);
		kvmfault_fetch_done(next.fetch, 0);
	}
	return arg;
}

static void stop_answering(void)
{
	pthread_mutex_lock(&lock);
	asked_end = true;
	pthread_cond_signal(&more);
	pthread_mutex_unlock(&lock);
	pthread_join(answering, NULL);
	asked_end = false;
}

static int read_now(void *data, uint64_t offset, void *buffer, size_t length)
{
	(void)data;
	memcpy(buffer, image + offset, length);
	return 0;
}

/* ---- the guest ---- */

static struct machine *machine;
static struct kvmfault_vm *vm;
static struct kvmfault_memory *memory;
static struct kvmfault_service *service;
static struct kvmfault_vcpu *vcpu;

__attribute__((noreturn))
static void end_unexpectedly(const char *where)
{
	char story[MACHINE_STORY];

	errx(1, "%s: the guest left unexpectedly: %s", where,
	     machine_story(&machine->vcpu[0], story));
}

/* A device that has this for every read. */
static bool answer_device(struct kvm_run *run)
{
	if (run->exit_reason != KVM_EXIT_MMIO || run->mmio.is_write ||
	    run->mmio.phys_addr < DEVICE ||
	    run->mmio.phys_addr >= DEVICE + AMOUNT_MOST * 8)
		return false;
	memset(run->mmio.data, 7, sizeof(run->mmio.data));
	return true;
}

static void run_plain(struct machine_vcpu *cpu)
{
	for (;;) {
		int ret = ioctl(cpu->fd, KVM_RUN, 0);

		if (machine_done(cpu, ret))
			return;
		if ((ret || !answer_device(cpu->run)) &&
		    !(ret < 0 && errno == EINTR))
			end_unexpectedly("without the library");
	}
}

static void run_handled(struct machine_vcpu *cpu)
{
	bool enter = true;
	int ret = 0, error = 0;

	for (;;) {
		if (enter) {
			ret = ioctl(cpu->fd, KVM_RUN, 0);
			error = errno;
		}
		enter = true;
		switch (kvmfault_vcpu_handle(vcpu, ret, error)) {
		case KVMFAULT_ACTION_NOT_A_FAULT:
			if (machine_done(cpu, ret))
				return;
			if (ret || !answer_device(cpu->run))
				end_unexpectedly("with the library");
			continue;
		case KVMFAULT_ACTION_UNFINISHED:
		case KVMFAULT_ACTION_PENDING_UNFINISHED:
			enter = false;
			continue;
		case KVMFAULT_ACTION_UNRESOLVED:
			end_unexpectedly("unresolved");
		default:
			continue;
		}
	}
}

static void run(void)
{
	if (vcpu)
		run_handled(&machine->vcpu[0]);
	else
		run_plain(&machine->vcpu[0]);
}

static void new_machine(void)
{
	const struct machine_options options = {
		.vcpus = 1, .irqchip = true, .span = RAM + SIZE,
	};

	must(machine_new(&options, &machine), "a VM");
	ram = map(SIZE);
	must(madvise(ram, SIZE, MADV_NOHUGEPAGE), "RAM");
	must(machine_set_slot(machine, 1, 0, TABLE, TABLE_SIZE, table),
	     "a slot");
	must(machine_set_slot(machine, 2, 0, RAM, SIZE, ram), "a slot");
}

static void begin_library(struct kvmfault_source source)
{
	const struct kvmfault_vm_options options = {
		.size = sizeof(options), .fetches = FETCHES,
		.delivery = KVMFAULT_DELIVERY_UFFD,
		.allow = KVMFAULT_ALLOW_SHADOW_PAGING,
		.kvm_fd = machine->kvm_fd,
	};
	const struct kvmfault_memory_options ours = {
		.size = sizeof(ours), .host = ram, .length = SIZE,
		.source = &source,
	};
	const struct kvmfault_service_options threads = {
		.size = sizeof(threads), .threads = 1,
	};
	const struct kvmfault_vcpu_options cpu = {
		.size = sizeof(cpu), .fd = machine->vcpu[0].fd,
		.run = machine->vcpu[0].run,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = RAM, .length = SIZE,
	};

	must(kvmfault_vm_new(&options, &vm), "a context");
	must(kvmfault_memory_adopt(vm, &ours, &memory), "a memory");
	region.memory = memory;
	must(kvmfault_region_add(vm, &region), "a region");
	must(kvmfault_service_new(vm, &threads, &service), "a service");
	must(kvmfault_vcpu_new(vm, &cpu, &vcpu), "a vCPU");
}

static void end(void)
{
	if (vm) {
		kvmfault_vcpu_free(vcpu);
		must(kvmfault_service_free(service), "the service");
		must(kvmfault_region_remove(vm, 0, RAM), "the region");
		must(kvmfault_memory_free(memory), "the memory");
		must(kvmfault_vm_free(vm), "the context");
	}
	vm = NULL;
	vcpu = NULL;
	machine_free(machine);
	munmap(ram, SIZE);
}

static void call(enum machine_routine routine, uint64_t a, uint64_t b)
{
	must(machine_call(&machine->vcpu[0], routine, a, b, 0, 0), "a call");
	run();
}

/* What MACHINE_TOUCH has to come to. */
static uint64_t sum_of(uint64_t first, uint64_t count)
{
	uint64_t i, sum = 0;

	for (i = first; i < first + count; i++) {
		uint64_t word = table[i] < RAM ? 0x0707070707070707ULL :
				mix((table[i] - RAM) / PAGE);

		sum = ((sum << 5 | sum >> 59) ^ word) * MACHINE_SCAN_MUL;
	}
	return sum;
}

static void touch(uint64_t first, uint64_t count)
{
	call(MACHINE_TOUCH, TABLE + first * 8, count);
	if (machine_result(&machine->vcpu[0]) != sum_of(first, count))
		errx(1, "the guest has read what the image does not have");
}

/* ---- a second start ---- */

static struct kvmfault_working_set *set;
static uint64_t waited[2];

/* Different pages all over RAM. */
static void lay_out_start(void)
{
	uint64_t i;

	for (i = 0; i < amount; i++)
		table[i] = RAM + (i * 40503 + 4711) % PAGES * PAGE;
}

static struct kvmfault_recording *record(void)
{
	const struct kvmfault_working_set_options options = {
		.size = sizeof(options), .image_length = SIZE,
	};
	struct kvmfault_recording_options recorded = {
		.size = sizeof(recorded), .memories = &memory,
		.memory_count = 1,
	};
	struct kvmfault_recording *recording;

	must(kvmfault_working_set_new(&options, &set), "a working set");
	recorded.set = set;
	must(kvmfault_recording_new(vm, &recorded, &recording), "a recording");
	return recording;
}

static struct kvmfault_fill *bring_set(void)
{
	const struct kvmfault_fill_options options = {
		.size = sizeof(options), .memories = &memory,
		.memory_count = 1, .first = set, .threads = 1,
	};
	struct kvmfault_fill *fill;

	must(kvmfault_fill_new(vm, &options, &fill), "a fill");
	return fill;
}

static uint64_t count_demand(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	must(kvmfault_vm_stats(vm, &stats), "figures");
	return stats.kind[KVMFAULT_KIND_UFFD] + stats.kind[KVMFAULT_KIND_EXIT];
}

static double start(bool second)
{
	const struct kvmfault_source source = {
		.size = sizeof(source), .name = "later", .submit = submit,
		.length = SIZE,
	};
	struct kvmfault_recording *recording = NULL;
	struct kvmfault_fill *fill = NULL;
	uint64_t began, i;
	double took;

	new_machine();
	must(pthread_create(&answering, NULL, answer, NULL), "a thread");
	begin_library(source);
	if (!set)
		recording = record();
	began = now_ns();
	if (second)
		fill = bring_set();
	for (i = 0; i < amount; i += TOUCHES) {
		touch(i, TOUCHES);
		call(MACHINE_SPIN, SPINS, 0);
	}
	took = (double)(now_ns() - began) / 1e3;
	waited[second] += count_demand();
	must(kvmfault_fill_free(fill), "the fill");
	must(kvmfault_recording_end(recording), "the recording");
	end();
	stop_answering();
	return took;
}

/* ---- after it is settled ---- */

/* A read of a device, and one of RAM. */
static void lay_out_exits(void)
{
	uint64_t i;

	for (i = 0; i < amount; i++) {
		table[2 * i] = DEVICE + i * 8;
		table[2 * i + 1] = RAM + (i * 40503 + 4711) % PAGES * PAGE;
	}
}

static void bring_all(void)
{
	const struct kvmfault_source source = {
		.size = sizeof(source), .name = "memory", .read = read_now,
		.length = SIZE,
	};

	begin_library(source);
	must(kvmfault_ensure(vm, 0, RAM, SIZE, false), "all of RAM");
	must(kvmfault_memory_settle(memory, NULL), "the memory");
}

static double settled(bool second)
{
	uint64_t began;
	double took;

	new_machine();
	if (second)
		bring_all();
	else
		memcpy(ram, image, SIZE);
	touch(0, 2 * amount);		/* KVM's own faults */
	began = now_ns();
	touch(0, 2 * amount);
	took = (double)(now_ns() - began) / 1e3;
	end();
	return took;
}

/* ---- two ways, in turns ---- */

/* The first round warms up, and the first start is recorded. */
static void take_rounds(double (*take)(bool second), int rounds)
{
	double took[2];
	int round;

	for (round = 0; round <= rounds; round++) {
		bool swapped = round % 2;

		took[swapped] = take(swapped);
		took[!swapped] = take(!swapped);
		if (round)
			printf("%.0f %.0f\n", took[0], took[1]);
		else
			waited[0] = waited[1] = 0;
	}
}

int main(int argc, char **argv)
{
	bool starts = argc >= 3 && !strcmp(argv[1], "start");

	if (argc < 3 || (!starts && strcmp(argv[1], "settled")))
		errx(2, "usage: guests start|settled ROUNDS [AMOUNT]");
	need("uffd");
	need("kvm");
	prctl(PR_SET_TIMERSLACK, 1);
	amount = starts ? 1000 : 5000;
	if (argc > 3)
		amount = strtoull(argv[3], NULL, 10);
	if (amount % TOUCHES || amount > AMOUNT_MOST)
		errx(2, "a multiple of %d, and at most %llu", TOUCHES,
		     AMOUNT_MOST);
	table = map(TABLE_SIZE);
	make_image();
	if (starts)
		lay_out_start();
	else
		lay_out_exits();
	take_rounds(starts ? start : settled, atoi(argv[2]));
	if (starts)
		printf("waited %llu %llu\n", (unsigned long long)waited[0],
		       (unsigned long long)waited[1]);
	kvmfault_working_set_free(set);
	return 0;
}
