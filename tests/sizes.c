/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What grows with the size of a VM, by the public interface alone, so that it
 * can be linked with any version of the library: `scripts/bench sizes` runs it,
 * with a small amount and a large one in turns. It needs a userfaultfd, and no
 * KVM.
 *
 * usage: sizes WHAT AMOUNT	prints how many microseconds it took
 *   threads N	2,000 faults, one after the other, with N threads of the service
 *   regions N	N regions added, then removed
 *   protect GIB	protection of that much memory, of which nothing is there
 *   remove GIB	another process's mapping of it removed, nothing there either
 *   memories N	256 MiB of RAM in N memories brought in by four threads at once
 */

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <kvmfault.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "need.h"

#define PAGE 4096ULL
#define GIB (1ULL << 30)
#define FAULTS 2000
#define RAM (256ULL << 20)
#define LOADERS 4

static struct kvmfault_vm *vm;
static struct kvmfault_memory *memory;

static void must(int error, const char *what)
{
	if (error)
		errx(1, "%s: %s", what, strerror(error < 0 ? -error : error));
}

static uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void *map(uint64_t length, int fd)
{
	void *at = mmap(NULL, length, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_NORESERVE, fd, 0);

	if (at == MAP_FAILED)
		err(1, "mmap");
	return at;
}

static struct kvmfault_memory_maps memory_add(uint64_t length,
					      bool write_protect)
{
	struct kvmfault_source zero = { .size = sizeof(zero) };
	const struct kvmfault_memory_options ram = {
		.size = sizeof(ram),
		.length = length,
		.source = &zero,
		.write_protect = write_protect,
	};
	struct kvmfault_memory_maps maps = { .size = sizeof(maps) };

	must(kvmfault_source_zero(&zero), "kvmfault_source_zero");
	must(kvmfault_memory_alloc(vm, &ram, &maps, &memory),
	     "kvmfault_memory_alloc");
	return maps;
}

/* Returns the mapping through which this process touches it. */
static volatile char *memory_up(uint64_t length, bool write_protect, int *fd)
{
	const struct kvmfault_vm_options options = { .size = sizeof(options) };
	struct kvmfault_memory_maps maps;

	must(kvmfault_vm_new(&options, &vm), "kvmfault_vm_new");
	maps = memory_add(length, write_protect);
	if (fd)
		*fd = maps.fd;
	return maps.own;
}

static void region_add(uint64_t gpa, uint64_t length)
{
	const struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = gpa,
		.length = length,
		.memory = memory,
	};

	must(kvmfault_region_add(vm, &region), "kvmfault_region_add");
}

static uint64_t threads(uint64_t count)
{
	const struct kvmfault_service_options options = {
		.size = sizeof(options),
		.threads = (uint32_t)count,
	};
	volatile char *at = memory_up(FAULTS * PAGE, false, NULL);
	struct kvmfault_service *service;
	uint64_t began, page;

	must(kvmfault_service_new(vm, &options, &service),
	     "kvmfault_service_new");
	began = now_us();
	for (page = 0; page < FAULTS; page++)
		(void)at[page * PAGE];
	return now_us() - began;
}

static uint64_t regions(uint64_t count)
{
	uint64_t began, i;

	memory_up(PAGE, false, NULL);
	began = now_us();
	for (i = 0; i < count; i++)
		region_add(2 * i * PAGE, PAGE);
	for (i = 0; i < count; i++)
		must(kvmfault_region_remove(vm, 0, 2 * i * PAGE),
		     "kvmfault_region_remove");
	return now_us() - began;
}

static uint64_t protect(uint64_t gib)
{
	uint64_t began;

	memory_up(gib * GIB, true, NULL);
	region_add(0, gib * GIB);
	began = now_us();
	must(kvmfault_protect(vm, 0, 0, gib * GIB), "kvmfault_protect");
	return now_us() - began;
}

/* A process that has a userfaultfd, under this number here as there, and waits to
 * be killed. */
static pid_t process_new(int *uffd)
{
	const struct timespec soon = { .tv_nsec = 1000000 };
	struct uffdio_api api = { .api = UFFD_API };
	pid_t child = fork();
	int pidfd;

	if (child < 0)
		err(1, "fork");
	if (!child) {
		*uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
		if (*uffd < 0 || dup2(*uffd, 100) < 0 ||
		    ioctl(100, UFFDIO_API, &api))
			err(1, "userfaultfd");
		dup2(100, 101);		/* it is ready */
		for (;;)
			pause();
	}
	pidfd = (int)syscall(SYS_pidfd_open, child, 0);
	while (close((int)syscall(SYS_pidfd_getfd, pidfd, 101, 0)))
		nanosleep(&soon, NULL);
	*uffd = (int)syscall(SYS_pidfd_getfd, pidfd, 100, 0);
	return child;
}

static uint64_t remove_mapping(uint64_t gib)
{
	struct kvmfault_uffd_options options = {
		.size = sizeof(options),
		.remote = true,
	};
	struct kvmfault_mapping_options there = { .size = sizeof(there) };
	struct kvmfault_mapping *mapping;
	uint64_t began;
	pid_t child;
	int fd;

	memory_up(gib * GIB, false, &fd);
	there.host = (uintptr_t)map(gib * GIB, fd);
	child = process_new(&options.fd);
	must(kvmfault_uffd_new(vm, &options, &there.uffd), "kvmfault_uffd_new");
	must(kvmfault_mapping_add(memory, &there, &mapping),
	     "kvmfault_mapping_add");
	began = now_us();
	must(kvmfault_mapping_remove(mapping), "kvmfault_mapping_remove");
	began = now_us() - began;
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	return began;
}

static void *load_part(void *part)
{
	must(kvmfault_ensure(vm, 0, (uintptr_t)part * (RAM / LOADERS),
			     RAM / LOADERS, true), "kvmfault_ensure");
	return NULL;
}

/* Each memory has a file and a userfaultfd of its own, and so locks of its own
 * in the kernel. Each thread has a part of the RAM to itself. */
static uint64_t memories(uint64_t count)
{
	uint64_t each = RAM / count, began;
	pthread_t loader[LOADERS];
	uintptr_t i;

	memory_up(each, false, NULL);
	region_add(0, each);
	for (i = 1; i < count; i++) {
		memory_add(each, false);
		region_add(i * each, each);
	}
	began = now_us();
	for (i = 0; i < LOADERS; i++)
		must(pthread_create(&loader[i], NULL, load_part, (void *)i),
		     "pthread_create");
	for (i = 0; i < LOADERS; i++)
		must(pthread_join(loader[i], NULL), "pthread_join");
	return now_us() - began;
}

static const struct {
	const char *name;
	uint64_t (*run)(uint64_t amount);
} all[] = {
	{ "threads", threads },
	{ "regions", regions },
	{ "protect", protect },
	{ "remove", remove_mapping },
	{ "memories", memories },
};

int main(int argc, char **argv)
{
	size_t i;

	need("uffd");
	for (i = 0; argc == 3 && i < sizeof(all) / sizeof(*all); i++) {
		if (strcmp(argv[1], all[i].name))
			continue;
		printf("%llu\n", (unsigned long long)
		       all[i].run(strtoull(argv[2], NULL, 0)));
		return 0;
	}
	errx(2, "usage: sizes threads|regions|protect|remove|memories AMOUNT");
}
