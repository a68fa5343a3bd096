/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * How fast anonymous RAM is filled from an NBD server, by the public interface
 * alone. It needs a userfaultfd, and no KVM.
 *
 * usage: nbd-rate URI [CONNECTIONS [REQUESTS [WINDOW-KIB [THREADS]]]]
 *
 * It prints how many MiB came, in how many microseconds, and MiB a second.
 */

#include <err.h>
#include <kvmfault-nbd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "need.h"

static struct kvmfault_source source = { .size = sizeof(source) };
static struct kvmfault_vm *vm;
static struct kvmfault_memory *memory;
static struct kvmfault_service *service;

static void must(int error, const char *what)
{
	if (error)
		errx(1, "%s: %s", what, strerror(-error));
}

static double now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static uint32_t argument(int argc, char **argv, int number)
{
	return argc > number ? (uint32_t)strtoul(argv[number], NULL, 10) : 0;
}

static void make_memory(uint64_t window)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .source = &source,
		.length = source.length & -4096ULL,
		.window = window ? KVMFAULT_WINDOW_FIXED : KVMFAULT_WINDOW_NONE,
		.window_length = window,
	};
	const struct kvmfault_service_options threads = {
		.size = sizeof(threads), .threads = 1,
	};

	options.host = mmap(NULL, options.length, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (options.host == MAP_FAILED ||
	    madvise(options.host, options.length, MADV_NOHUGEPAGE))
		err(1, "RAM");
	must(kvmfault_vm_new(NULL, &vm), "a context");
	must(kvmfault_memory_adopt(vm, &options, &memory), "a memory");
	must(kvmfault_service_new(vm, &threads, &service), "a service");
}

static void fill(uint32_t threads)
{
	const struct kvmfault_fill_options options = {
		.size = sizeof(options), .memories = &memory,
		.memory_count = 1, .threads = threads ? threads : 1,
	};
	struct kvmfault_fill_progress now = { .size = sizeof(now) };
	const struct timespec wait = { .tv_nsec = 1000000 };
	struct kvmfault_fill *filling;

	must(kvmfault_fill_new(vm, &options, &filling), "a fill");
	do {
		nanosleep(&wait, NULL);
		must(kvmfault_fill_progress(filling, &now), "the progress");
	} while (!now.over);
	must(kvmfault_fill_free(filling), "the fill");
}

int main(int argc, char **argv)
{
	struct kvmfault_nbd_options options = {
		.size = sizeof(options),
		.uri = argc > 1 ? argv[1] : NULL,
		.connections = argument(argc, argv, 2),
		.requests = argument(argc, argv, 3),
	};
	double began, took, mib;

	need("uffd");
	must(kvmfault_source_nbd(&options, &source), "the server");
	mib = (double)source.length / (1 << 20);
	make_memory((uint64_t)argument(argc, argv, 4) << 10);
	began = now_us();
	fill(argument(argc, argv, 5));
	took = now_us() - began;
	printf("%.0f %.0f %.0f\n", mib, took, mib * 1e6 / took);
	must(kvmfault_service_free(service), "the service");
	must(kvmfault_memory_free(memory), "the memory");
	must(kvmfault_vm_free(vm), "the context");
	kvmfault_source_free(&source);
	return 0;
}
