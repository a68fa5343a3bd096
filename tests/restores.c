/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What a restore costs, by the public interface alone: anonymous RAM comes from
 * an image in a memfd. `scripts/bench restores` runs it. It needs a userfaultfd,
 * and no KVM.
 *
 * usage: restores WHAT AMOUNT [MIB]	prints how many microseconds it took,
 *					with MIB in the place of 1 GiB
 *   loop 1	a loop that reads and copies 512 pages at a time
 *   fill N	1 GiB by a fill with N threads
 *   holes 0|1	1 GiB, of which four fifths are holes, of 1 MiB each: read as
 *		data (0), or left out (1)
 *   demand N	the 99th percentile of faults at random, while a fill with N
 *		threads works; 0: without a fill
 *   slow N	the same with a source that takes 200 us
 */

#include <err.h>
#include <fcntl.h>
#include <kvmfault.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "need.h"

#define PAGE 4096ULL
#define STEP (2ULL << 20)
#define BLOCK (256ULL << 10)
#define FAULTS 20000
#define SLOW_FAULTS 4000
#define SLOW_NS 200000

static struct kvmfault_vm *vm;
static struct kvmfault_memory *memory;
static struct kvmfault_service *service;
static struct kvmfault_fill *fill;
static char *ram;
static uint64_t size = 1ULL << 30;	/* of RAM and of the image */
static int image;
static int (*read_image)(void *data, uint64_t offset, void *buffer,
			 size_t length);

static void must(int error, const char *what)
{
	if (error)
		errx(1, "%s: %s", what, strerror(error < 0 ? -error : error));
}

static double now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

/* Of so many blocks one has data, and the others are holes. */
static void make_image(uint64_t blocks)
{
	static char block[BLOCK];
	uint64_t at;

	image = memfd_create("image", MFD_CLOEXEC);
	if (image < 0 || ftruncate(image, (off_t)size))
		err(1, "an image");
	for (at = 0; at < size; at += blocks * BLOCK) {
		memset(block, 1 + (int)(at / BLOCK % 250), BLOCK);
		if (pwrite(image, block, BLOCK, (off_t)at) != (ssize_t)BLOCK)
			err(1, "an image");
	}
}

/* Small pages: a huge one would come at the first touch of any of its own. */
static void map_ram(void)
{
	ram = mmap(NULL, size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (ram == MAP_FAILED || madvise(ram, size, MADV_NOHUGEPAGE))
		err(1, "RAM");
}

static double loop(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	char *buffer = mmap(NULL, STEP, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	double began;
	uint64_t at;

	map_ram();
	reg.range.start = (uintptr_t)ram;
	reg.range.len = size;
	if (uffd < 0 || buffer == MAP_FAILED || ioctl(uffd, UFFDIO_API, &api) ||
	    ioctl(uffd, UFFDIO_REGISTER, &reg))
		err(1, "a userfaultfd");
	began = now_us();
	for (at = 0; at < size; at += STEP) {
		struct uffdio_copy copy = {
			.dst = (uintptr_t)ram + at,
			.src = (uintptr_t)buffer,
			.len = STEP,
		};

		if (pread(image, buffer, STEP, (off_t)at) != (ssize_t)STEP ||
		    ioctl(uffd, UFFDIO_COPY, &copy))
			err(1, "a copy");
	}
	return now_us() - began;
}

static int read_slowly(void *data, uint64_t offset, void *buffer,
		       size_t length)
{
	const struct timespec wait = { .tv_nsec = SLOW_NS };

	nanosleep(&wait, NULL);
	return read_image(data, offset, buffer, length);
}

static void restore(bool holes, bool slow)
{
	struct kvmfault_source source = { .size = sizeof(source) };
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = size, .source = &source,
	};
	const struct kvmfault_service_options threads = {
		.size = sizeof(threads), .threads = 1,
	};

	map_ram();
	must(kvmfault_source_file(image, &source), "a source");
	read_image = source.read;
	if (slow)
		source.read = read_slowly;
	if (!holes)
		source.extent = NULL;
	options.host = ram;
	must(kvmfault_vm_new(NULL, &vm), "a context");
	must(kvmfault_memory_adopt(vm, &options, &memory), "a memory");
	must(kvmfault_service_new(vm, &threads, &service), "a service");
}

static void begin_fill(uint32_t threads)
{
	const struct kvmfault_fill_options options = {
		.size = sizeof(options), .memories = &memory,
		.memory_count = 1, .threads = threads,
	};

	must(kvmfault_fill_new(vm, &options, &fill), "a fill");
}

static double fill_all(uint32_t threads)
{
	struct kvmfault_fill_progress now = { .size = sizeof(now) };
	const struct timespec wait = { .tv_nsec = 2000000 };
	double began = now_us();

	begin_fill(threads);
	do {
		nanosleep(&wait, NULL);
		must(kvmfault_fill_progress(fill, &now), "the progress");
	} while (!now.over);
	return now_us() - began;
}

static int compare(const void *a, const void *b)
{
	const double *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

static double touch_at_random(unsigned int faults)
{
	double *took = calloc(faults, sizeof(*took)), result;
	uint64_t random = 88172645463325252ULL;
	unsigned int i;

	if (!took)
		err(1, "an array");
	for (i = 0; i < faults; i++) {
		random ^= random << 13;
		random ^= random >> 7;
		random ^= random << 17;
		took[i] = now_us();
		(void)*(volatile char *)(ram + random % (size / PAGE) * PAGE);
		took[i] = now_us() - took[i];
	}
	qsort(took, faults, sizeof(*took), compare);
	result = took[faults / 100 * 99];
	free(took);
	return result;
}

static double demand(uint32_t threads, bool slow)
{
	restore(true, slow);
	if (threads)
		begin_fill(threads);
	return touch_at_random(slow ? SLOW_FAULTS : FAULTS);
}

static void end(void)
{
	must(kvmfault_fill_free(fill), "the fill");
	must(kvmfault_service_free(service), "the service");
	must(kvmfault_memory_free(memory), "the memory");
	must(kvmfault_vm_free(vm), "the context");
}

int main(int argc, char **argv)
{
	const char *what = argc >= 3 ? argv[1] : "";
	uint32_t amount = argc >= 3 ? (uint32_t)atoi(argv[2]) : 0;
	double result;

	need("uffd");
	if (argc == 4)
		size = (uint64_t)atoi(argv[3]) << 20;
	make_image(strcmp(what, "holes") ? 1 : 5);
	if (!strcmp(what, "loop")) {
		result = loop();
	} else if (!strcmp(what, "fill")) {
		restore(true, false);
		result = fill_all(amount);
	} else if (!strcmp(what, "holes")) {
		restore(amount, false);
		result = fill_all(1);
	} else if (!strcmp(what, "demand") || !strcmp(what, "slow")) {
		result = demand(amount, *what == 's');
	} else {
		errx(2, "usage: restores loop|fill|holes|demand|slow AMOUNT [MIB]");
	}
	printf("%.0f\n", result);
	if (vm)
		end();
	return 0;
}
