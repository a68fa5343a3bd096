/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What a restore costs, by the public interface alone: anonymous RAM comes from
 * an image, in one of two ways that take turns. `scripts/bench restores` runs
 * it. It needs a userfaultfd, and no KVM.
 *
 * usage: restores WHAT ROUNDS [MIB]	prints for each round how many
 *					microseconds both ways took, with MIB in
 *					the place of 1 GiB
 *   loop	all of it by a loop that reads and copies 512 pages at a time,
 *		and by a fill with one thread
 *   threads	by a fill with one thread, and with two
 *   holes	by a fill, when four fifths of the image are holes, of 1 MiB
 *		each: read as data, and left out
 *   sparse	the same, with an image on a disk that was just written: its
 *		data is in the page cache, and nothing of its holes
 *   limit	as holes, by a loop that reads and copies all of it, and by one
 *		that knows where the holes are
 *   demand	the 99th percentile of faults at random: without a fill, and
 *		while one with one thread works
 *   slow	the same with a source that takes 200 us
 */

#include <err.h>
#include <fcntl.h>
#include <kvmfault.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdbool.h>
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
#include "own-memory.h"

#define PAGE 4096ULL
#define STEP (2ULL << 20)
#define BLOCK (256ULL << 10)
#define SPARSE 5		/* one block of so many has data */
#define FAULTS 20000
#define SLOW_FAULTS 4000
#define SLOW_NS 200000

static struct kvmfault_vm *vm;
static struct kvmfault_memory *memory;
static struct kvmfault_service *service;
static struct kvmfault_fill *fill;
static char *ram;
static uint64_t size = 1ULL << 30;	/* of RAM and of the image */
static uint64_t blocks = 1;		/* of so many blocks one has data */
static int image;
static int (*read_image)(void *data, uint64_t offset, void *buffer,
			 size_t length);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static double over;			/* when the fill was; 0: not yet */

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

/* ---- the image, and RAM ---- */

static int block_byte(uint64_t at)
{
	return at / BLOCK % blocks ? 0 : 1 + (int)(at / BLOCK % 250);
}

static void make_image(int fd)
{
	static char block[BLOCK];
	uint64_t at;

	image = fd;
	if (image < 0 || ftruncate(image, (off_t)size))
		err(1, "an image");
	for (at = 0; at < size; at += blocks * BLOCK) {
		memset(block, block_byte(at), BLOCK);
		if (pwrite(image, block, BLOCK, (off_t)at) != (ssize_t)BLOCK)
			err(1, "an image");
	}
	if (fsync(image))
		err(1, "an image");
}

static int new_file(void)
{
	return open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
}

/* Who has read a file's holes leaves zeros for them in the page cache. */
static void forget_holes(void)
{
	uint64_t at;

	for (at = 0; at < size; at += blocks * BLOCK)
		posix_fadvise(image, (off_t)(at + BLOCK),
			      (off_t)((blocks - 1) * BLOCK),
			      POSIX_FADV_DONTNEED);
}

/* Small pages: a huge one would come at the first touch of any of its own. */
static void map_ram(void)
{
	ram = mmap(NULL, size, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (ram == MAP_FAILED || madvise(ram, size, MADV_NOHUGEPAGE))
		err(1, "RAM");
}

/* Memory that this machine has never used is slow when it is first touched,
 * where it is a VM itself. Whatever is freed last is used next. */
static void warm_up(void)
{
	map_ram();
	memset(ram, 1, size);
	munmap(ram, size);
}

static void check_ram(void)
{
	uint64_t at;

	for (at = 0; at < size; at += PAGE)
		if ((unsigned char)ram[at] != block_byte(at) ||
		    (unsigned char)ram[at + PAGE - 1] != block_byte(at))
			errx(1, "wrong bytes in the page at %#llx",
			     (unsigned long long)at);
}

/* ---- a loop ---- */

static void loop_copy(int uffd, char *buffer, uint64_t at, uint64_t length)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)ram + at,
		.src = (uintptr_t)buffer,
		.len = length,
	};

	if (pread(image, buffer, length, (off_t)at) != (ssize_t)length ||
	    ioctl(uffd, UFFDIO_COPY, &copy))
		err(1, "a copy");
}

/* A block of data, and the hole behind it. */
static void loop_skip(int uffd, char *buffer, uint64_t at)
{
	uint64_t end = at + blocks * BLOCK < size ? at + blocks * BLOCK : size;
	struct uffdio_zeropage zero = {
		.range = {
			.start = (uintptr_t)ram + at + BLOCK,
			.len = end - at - BLOCK,
		},
	};

	loop_copy(uffd, buffer, at, BLOCK);
	if (zero.range.len && ioctl(uffd, UFFDIO_ZEROPAGE, &zero))
		err(1, "zeros");
}

static double by_loop(bool holes)
{
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	char *buffer = mmap(NULL, STEP, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	double began, took;
	uint64_t at;

	map_ram();
	reg.range.start = (uintptr_t)ram;
	reg.range.len = size;
	if (uffd < 0 || buffer == MAP_FAILED || ioctl(uffd, UFFDIO_API, &api) ||
	    ioctl(uffd, UFFDIO_REGISTER, &reg))
		err(1, "a userfaultfd");
	began = now_us();
	for (at = 0; at < size; at += holes ? blocks * BLOCK : STEP)
		if (holes)
			loop_skip(uffd, buffer, at);
		else
			loop_copy(uffd, buffer, at, STEP);
	took = now_us() - began;
	check_ram();
	close(uffd);
	munmap(buffer, STEP);
	munmap(ram, size);
	return took;
}

/* ---- the library ---- */

static int read_slowly(void *data, uint64_t offset, void *buffer,
		       size_t length)
{
	const struct timespec wait = { .tv_nsec = SLOW_NS };

	nanosleep(&wait, NULL);
	return read_image(data, offset, buffer, length);
}

static void begin(bool holes, bool slow)
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

static void end(void)
{
	must(kvmfault_fill_free(fill), "the fill");
	fill = NULL;
	must(kvmfault_service_free(service), "the service");
	must(kvmfault_memory_free(memory), "the memory");
	must(kvmfault_vm_free(vm), "the context");
	munmap(ram, size);
}

static void note_over(void *data, const struct kvmfault_fill_progress *progress)
{
	(void)data;
	if (!progress->over)
		return;
	pthread_mutex_lock(&lock);
	over = now_us();
	pthread_cond_signal(&changed);
	pthread_mutex_unlock(&lock);
}

static void begin_fill(uint32_t threads)
{
	const struct kvmfault_fill_options options = {
		.size = sizeof(options), .memories = &memory,
		.memory_count = 1, .threads = threads,
		.progress = note_over,
	};

	must(kvmfault_fill_new(vm, &options, &fill), "a fill");
}

static double by_fill(uint32_t threads, bool holes)
{
	uint64_t data = (size + blocks * BLOCK - 1) / (blocks * BLOCK) * BLOCK;
	uint64_t taken;
	double began;

	begin(holes, false);
	over = 0;
	began = now_us();
	begin_fill(threads);
	pthread_mutex_lock(&lock);
	while (!over)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
	taken = own_memory(ram, size);
	if (holes && taken != data)
		errx(1, "RAM takes %llu bytes, of which %llu are data",
		     (unsigned long long)taken, (unsigned long long)data);
	check_ram();
	end();
	return over - began;
}

/* ---- demand ---- */

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

static double by_demand(bool filled, bool slow)
{
	double result;

	begin(true, slow);
	if (filled)
		begin_fill(1);
	result = touch_at_random(slow ? SLOW_FAULTS : FAULTS);
	end();
	return result;
}

/* ---- two ways, in turns ---- */

static double loop(bool second)
{
	return second ? by_fill(1, true) : by_loop(false);
}

static double threads(bool second)
{
	return by_fill(1 + second, true);
}

static double holes(bool second)
{
	forget_holes();
	return by_fill(1, second);
}

static double limit(bool second)
{
	return by_loop(second);
}

static double demand(bool second)
{
	return by_demand(second, false);
}

static double slow(bool second)
{
	return by_demand(second, true);
}

static const struct pair {
	const char *name;
	double (*take)(bool second);
	uint64_t blocks;
	bool disk;
} pairs[] = {
	{ "loop", loop, 1, true },
	{ "threads", threads, 1, true },
	{ "holes", holes, SPARSE, false },
	{ "sparse", holes, SPARSE, true },
	{ "limit", limit, SPARSE, false },
	{ "demand", demand, 1, false },
	{ "slow", slow, 1, false },
};

static const struct pair *find_pair(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(pairs) / sizeof(*pairs); i++)
		if (!strcmp(pairs[i].name, name))
			return &pairs[i];
	errx(2, "usage: restores loop|threads|holes|sparse|limit|demand|slow ROUNDS [MIB]");
}

/* Either way is the first one in every second round. */
static void take_round(const struct pair *pair, int round)
{
	bool swapped = round % 2;
	double took[2];

	took[swapped] = pair->take(swapped);
	took[!swapped] = pair->take(!swapped);
	if (round)		/* the first round warms up */
		printf("%.0f %.0f\n", took[0], took[1]);
}

int main(int argc, char **argv)
{
	const struct pair *pair = find_pair(argc >= 3 ? argv[1] : "");
	int rounds = atoi(argv[2]), round;

	need("uffd");
	if (argc == 4)
		size = (uint64_t)atoi(argv[3]) << 20;
	blocks = pair->blocks;
	make_image(pair->disk ? new_file() : memfd_create("image",
							  MFD_CLOEXEC));
	warm_up();
	for (round = 0; round <= rounds; round++)
		take_round(pair, round);
	return 0;
}
