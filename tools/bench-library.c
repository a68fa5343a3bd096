/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault bench: the library's modes. In: RAM and a source, from which what a
 * VMM would make is made. Out: a guest that runs. How faults are told is all
 * that they differ in: a mode is a row at the end.
 */

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include "kvmfault-experimental.h"
#include "bench.h"

#define FETCHES 64	/* at least so many can be in flight */
#define SCRATCH (2ULL << 20)

/* A source that answers later: what it was asked for, in order. All takes the
 * same time, so one thread answers in that order too. */
struct later {
	struct bench *bench;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t more;
	bool stop;
	uint64_t head, tail, room;
	struct asked {
		struct kvmfault_fetch *fetch;
		uint64_t offset;
		void *buffer;
		size_t length;
		double due;
	} asked[];
};

struct library {
	struct kvmfault_vm *vm;
	struct kvmfault_memory_maps maps;
	struct kvmfault_memory *memory;
	struct kvmfault_service *service;
	struct later *later;
	bool region;
};

/* ---- the source ---- */

/* A file's image is read, and so is one in memory where pages are filled in
 * place. */
static int read_now(void *data, uint64_t offset, void *buffer, size_t length)
{
	const void *bytes = bench_fetch(data, offset, buffer, length);

	if (bytes != buffer)
		memcpy(buffer, bytes, length);
	return 0;
}

/* Else it is installed from where it is, as the others do. */
static const void *view(void *data, uint64_t offset, size_t length)
{
	return bench_fetch(data, offset, NULL, length);
}

static int submit(void *data, struct kvmfault_fetch *fetch, uint64_t offset,
		  void *buffer, size_t length)
{
	struct later *later = data;
	double due = bench_now() +
		     (double)later->bench->options->latency_us / 1e6;

	pthread_mutex_lock(&later->lock);
	later->asked[later->tail++ % later->room] = (struct asked){
		fetch, offset, buffer, length, due,
	};
	pthread_cond_signal(&later->more);
	pthread_mutex_unlock(&later->lock);
	return 0;
}

/* The next one; false: no more will come. */
static bool next(struct later *later, struct asked *asked)
{
	bool found;

	pthread_mutex_lock(&later->lock);
	while (later->head == later->tail && !later->stop)
		pthread_cond_wait(&later->more, &later->lock);
	found = later->head != later->tail;
	if (found)
		*asked = later->asked[later->head++ % later->room];
	pthread_mutex_unlock(&later->lock);
	return found;
}

/* To set a timer for what is due already would take longer than to answer. */
static void wait_until(double due)
{
	struct timespec at = {
		.tv_sec = (time_t)due,
		.tv_nsec = (long)((due - (double)(time_t)due) * 1e9),
	};

	while (bench_now() < due &&
	       clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL))
		;
}

static void *answer(void *arg)
{
	struct later *later = arg;
	struct asked asked;
	const void *bytes;

	while (next(later, &asked)) {
		wait_until(asked.due);
		bytes = bench_fetch_now(later->bench, asked.offset,
					asked.buffer, asked.length);
		if (bytes != asked.buffer)
			memcpy(asked.buffer, bytes, asked.length);
		kvmfault_fetch_done(asked.fetch, 0);
	}
	return NULL;
}

static uint32_t fetches(const struct bench *bench)
{
	return bench->vcpus > FETCHES ? bench->vcpus : FETCHES;
}

static int start_later(struct bench *bench)
{
	struct library *lib = bench->state;
	struct later *later = calloc(1, sizeof(*later) + fetches(bench) *
				     sizeof(later->asked[0]));
	int err;

	if (!later)
		return -ENOMEM;
	later->bench = bench;
	later->room = fetches(bench);
	pthread_mutex_init(&later->lock, NULL);
	pthread_cond_init(&later->more, NULL);
	err = pthread_create(&later->thread, NULL, answer, later);
	if (err)
		free(later);
	else
		lib->later = later;
	return -err;
}

static void stop_later(struct later *later)
{
	if (!later)
		return;
	pthread_mutex_lock(&later->lock);
	later->stop = true;
	pthread_cond_signal(&later->more);
	pthread_mutex_unlock(&later->lock);
	pthread_join(later->thread, NULL);
	pthread_cond_destroy(&later->more);
	pthread_mutex_destroy(&later->lock);
	free(later);
}

/* ---- what a VMM would do ---- */

static void note(void *data, enum kvmfault_log_level level, const char *message)
{
	(void)level;
	bench_why(data, 0, "%s", message);
}

static void unresolved(void *data, const struct kvmfault_sleeper *sleeper)
{
	(void)data;
	bench_die("a vCPU's %s can't go on: %s (%s)",
		  kvmfault_access_str(sleeper->fault->access),
		  kvmfault_reason_str(sleeper->reason),
		  strerror(-sleeper->error));
}

/* Of a kernel that lets missing pages leave KVM_RUN, with what it needs. */
static int set_slot(struct bench *bench, struct library *lib)
{
	struct kvmfault_memslot memslot = { .size = sizeof(memslot) };
	int err = kvmfault_region_memslot(lib->vm, 0, BENCH_RAM, &memslot);

	return err ? err : bench_set_slot(bench, memslot.flags,
					  memslot.userfault_bitmap);
}

static int add_memory(struct bench *bench, struct library *lib)
{
	struct kvmfault_source source = {
		.size = sizeof(source),
		.name = "image",
		.read = bench->mode->async ? NULL : read_now,
		.submit = bench->mode->async ? submit : NULL,
		.view = bench->mode->async || bench->options->file ?
			NULL : view,
		.data = bench->mode->async ? (void *)lib->later : bench,
		.length = bench->bytes,
	};
	struct kvmfault_memory_options memory = {
		.size = sizeof(memory),
		.length = bench->bytes,
		.page_size = bench->options->page_size,
		.source = &source,
		.minor = bench->options->minor,
	};
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = BENCH_RAM,
		.length = bench->bytes,
	};
	int err;

	if (bench->options->window > 1) {
		memory.window = KVMFAULT_WINDOW_FIXED;
		memory.window_length = bench_window(bench);
	}
	lib->maps.size = sizeof(lib->maps);
	err = kvmfault_memory_alloc(lib->vm, &memory, &lib->maps,
				     &lib->memory);
	if (err)
		return err;
	bench->ram = lib->maps.memslots;
	bench->memfd = lib->maps.fd;
	region.memory = lib->memory;
	err = kvmfault_region_add(lib->vm, &region);
	lib->region = !err;
	return err ? err : set_slot(bench, lib);
}

static int add_vcpus(struct bench *bench, struct library *lib)
{
	unsigned int i;
	int err = 0;

	for (i = 0; i < bench->vcpus && !err; i++) {
		struct kvmfault_vcpu_options vcpu = {
			.size = sizeof(vcpu),
			.fd = bench->machine->vcpu[i].fd,
			.run = bench->machine->vcpu[i].run,
		};

		err = kvmfault_vcpu_new(lib->vm, &vcpu,
					&bench->vcpu[i].handle);
	}
	return err;
}

static int set_up_all(struct bench *bench, struct library *lib)
{
	const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops),
		.log = note,
		.unresolved = unresolved,
	};
	struct kvmfault_vm_options options = {
		.size = sizeof(options),
		.page_size_max = bench_window(bench),
		.ops = &ops,
		.data = bench,
		.fetches = fetches(bench),
		.delivery = bench->mode->delivery,
		/* The guest's page tables are always present. */
		.allow = KVMFAULT_ALLOW_SHADOW_PAGING,
		.kvm_fd = bench->machine->kvm_fd,
	};
	struct kvmfault_service_options service = {
		.size = sizeof(service),
		.threads = (uint32_t)bench->options->threads,
		.poll_us = bench->mode->no_poll ? KVMFAULT_NO_POLL : 0,
	};
	int err;

	/* It is a power of two, as a window need not be. */
	if (options.page_size_max < SCRATCH)
		options.page_size_max = SCRATCH;
	while (options.page_size_max & (options.page_size_max - 1))
		options.page_size_max += options.page_size_max &
					 -options.page_size_max;
	err = kvmfault_vm_new(&options, &lib->vm);
	if (!err && bench->mode->async)
		err = start_later(bench);
	if (!err)
		err = add_memory(bench, lib);
	if (!err)
		err = kvmfault_service_new(lib->vm, &service, &lib->service);
	return err ? err : add_vcpus(bench, lib);
}

static int set_up(struct bench *bench)
{
	int err;

	bench->state = calloc(1, sizeof(struct library));
	err = bench->state ? set_up_all(bench, bench->state) : -ENOMEM;
	/* What the library has said is better. */
	if (err && !bench->why[0])
		bench_why(bench, err, "cannot set the library up: %s",
			  strerror(-err));
	return err;
}

static void run(struct bench_vcpu *vcpu)
{
	struct machine_vcpu *machine = vcpu->machine;
	const struct kvmfault_result *result;
	char story[MACHINE_STORY];
	int ret = 0, err = 0;
	bool enter = true;

	for (;;) {
		if (enter) {
			ret = ioctl(machine->fd, KVM_RUN, 0);
			err = errno;
		}
		enter = true;
		switch (kvmfault_vcpu_handle(vcpu->handle, ret, err)) {
		case KVMFAULT_ACTION_RETRY:
		case KVMFAULT_ACTION_INTERRUPTED:
		case KVMFAULT_ACTION_PENDING:
			continue;
		case KVMFAULT_ACTION_UNFINISHED:
		case KVMFAULT_ACTION_PENDING_UNFINISHED:
			enter = false;	/* an access is half done */
			continue;
		case KVMFAULT_ACTION_NOT_A_FAULT:
			if (machine_done(machine, ret))
				return;
			bench_die("vCPU %u left the guest unexpectedly: %s",
				  machine->id, machine_story(machine, story));
		case KVMFAULT_ACTION_UNRESOLVED:
			result = kvmfault_vcpu_result(vcpu->handle);
			bench_die("vCPU %u cannot go on: %s (%s)", machine->id,
				  kvmfault_reason_str(result->reason),
				  strerror(-result->error));
		}
	}
}

/* Its threads have counted everything when they are gone. */
static void count_faults(struct bench *bench, struct library *lib)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };
	unsigned int i;

	kvmfault_vm_stats(lib->vm, &stats);
	for (i = 0; i < KVMFAULT_KIND_COUNT; i++)
		bench->faults[i] += stats.kind[i];
}

static void take_down(struct bench *bench)
{
	struct library *lib = bench->state;
	unsigned int i;

	for (i = 0; i < bench->vcpus; i++) {
		kvmfault_vcpu_free(bench->vcpu[i].handle);
		bench->vcpu[i].handle = NULL;
	}
	if (lib) {
		kvmfault_service_free(lib->service);
		stop_later(lib->later);
		if (lib->region)
			kvmfault_region_remove(lib->vm, 0, BENCH_RAM);
		kvmfault_memory_free(lib->memory);
		if (lib->vm)
			count_faults(bench, lib);
		if (kvmfault_vm_free(lib->vm))
			bench_die("something of the context is left");
	}
	bench_unmap(bench);
	if (lib && lib->maps.own)
		munmap(lib->maps.own, bench->bytes);
	free(lib);
	bench->state = NULL;
}

/* All of them: what is not said here is the same. */
#define LIBRARY \
	.widens = true, .fetches = true, .set_up = set_up, .run = run, \
	.take_down = take_down

const struct bench_mode bench_uffd = {
	.name = "uffd",
	.what = "the library: userfaultfd, by its service",
	.delivery = KVMFAULT_DELIVERY_UFFD,
	LIBRARY,
};

const struct bench_mode bench_uffd_sleep = {
	.name = "uffd-sleep",
	.what = "the library: the same, with threads that sleep at once",
	.delivery = KVMFAULT_DELIVERY_UFFD,
	.no_poll = true,
	LIBRARY,
};

const struct bench_mode bench_uffd_async = {
	.name = "uffd-async",
	.what = "the library: as uffd, from a source that answers later",
	.delivery = KVMFAULT_DELIVERY_UFFD,
	.async = true,
	LIBRARY,
};

const struct bench_mode bench_marker_exit = {
	.name = "marker-exit",
	.what = "the library: markers, on the vCPU's own thread",
	.delivery = KVMFAULT_DELIVERY_MARKER_EXIT,
	LIBRARY,
};

const struct bench_mode bench_kernel_exit = {
	.name = "kernel-exit",
	.what = "the library: exits of a kernel that has them",
	.delivery = KVMFAULT_DELIVERY_KERNEL_EXIT,
	LIBRARY,
};
