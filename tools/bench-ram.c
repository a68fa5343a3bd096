/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault bench: what all modes are given. In: sizes and a pattern. Out: an
 * image, the walks of the vCPUs over it, RAM that is empty, and a source. The
 * guest reads the first word of each page, and what it must have read is known
 * from the page's number alone.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "tool.h"

#define STRIDE 16	/* pages */

/* splitmix64 */
static uint64_t mix(uint64_t n)
{
	n += 0x9e3779b97f4a7c15ULL;
	n = (n ^ (n >> 30)) * 0xbf58476d1ce4e5b9ULL;
	n = (n ^ (n >> 27)) * 0x94d049bb133111ebULL;
	return n ^ (n >> 31);
}

/* What the page is full of: not zero. */
static uint64_t word_of(uint64_t page)
{
	return mix(page) | 1;
}

/* The nth of the touched ones, spread evenly. */
static uint64_t nth_page(const struct bench *bench, uint64_t n)
{
	uint64_t pages = bench_pages(bench->options, bench->bytes);

	return (uint64_t)((__uint128_t)n * pages / bench->touched);
}

static void lay_out_in_order(struct bench *bench)
{
	uint64_t n;

	for (n = 0; n < bench->touched; n++)
		bench->page[n] = nth_page(bench, n);
}

static void lay_out_random(struct bench *bench)
{
	uint64_t n, other, page;

	lay_out_in_order(bench);
	for (n = bench->touched; n > 1; n--) {
		other = mix(n) % n;
		page = bench->page[n - 1];
		bench->page[n - 1] = bench->page[other];
		bench->page[other] = page;
	}
}

static void lay_out_strided(struct bench *bench)
{
	uint64_t first, n, at = 0;

	for (first = 0; first < STRIDE; first++)
		for (n = first; n < bench->touched; n += STRIDE)
			bench->page[at++] = nth_page(bench, n);
}

const struct bench_pattern bench_patterns[] = {
	{ "sequential", lay_out_in_order, false },
	{ "random", lay_out_random, false },
	{ "strided", lay_out_strided, false },
	{ "shared", lay_out_in_order, true },
};
const size_t bench_pattern_count =
	sizeof(bench_patterns) / sizeof(*bench_patterns);

static void share_out(struct bench *bench)
{
	uint64_t first = 0, rest = bench->touched;
	unsigned int i;

	for (i = 0; i < bench->vcpus; i++) {
		struct bench_vcpu *vcpu = &bench->vcpu[i];

		vcpu->bench = bench;
		vcpu->machine = &bench->machine->vcpu[i];
		vcpu->first = first;
		vcpu->count = bench->touched;
		if (bench->options->pattern->shared)
			continue;
		vcpu->count = rest / (bench->vcpus - i);
		first += vcpu->count;
		rest -= vcpu->count;
	}
}

static int make_image(struct bench *bench)
{
	uint64_t size = bench->options->page_size, n, i;
	uint64_t *words;
	void *image;
	int err;

	bench->image_fd = bench->options->file ?
		open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) :
		memfd_create("image", MFD_CLOEXEC);
	if (bench->image_fd < 0 ||
	    ftruncate(bench->image_fd, (off_t)bench->bytes) < 0)
		return -errno;
	image = mmap(NULL, bench->bytes, PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_NORESERVE, bench->image_fd, 0);
	if (image == MAP_FAILED)
		return -errno;
	bench->image = image;
	for (n = 0; n < bench->touched; n++) {
		/* A disk that is full would be a SIGBUS. */
		err = bench->options->file ?
			posix_fallocate(bench->image_fd,
					(off_t)(bench->page[n] * size),
					(off_t)size) : 0;
		if (err)
			return -err;
		words = (uint64_t *)(bench->image + bench->page[n] * size);
		for (i = 0; i < size / sizeof(*words); i++)
			words[i] = word_of(bench->page[n]);
	}
	return 0;
}

/* The guest's list of places; in a slot of its own, present. */
static int make_table(struct bench *bench)
{
	uint64_t n;
	void *table;

	table = mmap(NULL, bench->touched * sizeof(uint64_t),
		     PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		     0);
	if (table == MAP_FAILED)
		return -errno;
	bench->table = table;
	for (n = 0; n < bench->touched; n++)
		bench->table[n] = BENCH_RAM +
				  bench->page[n] * bench->options->page_size;
	return 0;
}

int bench_prepare(struct bench *bench)
{
	int err = 0;

	bench->touched = bench_touched(bench->options, bench->bytes);
	bench->page = calloc(bench->touched, sizeof(*bench->page));
	bench->vcpu = calloc(bench->vcpus, sizeof(*bench->vcpu));
	if (!bench->page || !bench->vcpu)
		err = -ENOMEM;
	if (!err) {
		bench->options->pattern->lay_out(bench);
		share_out(bench);
		err = make_image(bench);
	}
	if (!err)
		err = make_table(bench);
	if (err)
		complain_errno(err, "make an image");
	return err;
}

void bench_unprepare(struct bench *bench)
{
	if (bench->table)
		munmap(bench->table, bench->touched * sizeof(uint64_t));
	if (bench->image)
		munmap(bench->image, bench->bytes);
	if (bench->image_fd >= 0)
		close(bench->image_fd);
	free(bench->vcpu);
	free(bench->page);
}

uint64_t bench_sum(const struct bench_vcpu *vcpu)
{
	const uint64_t *page = vcpu->bench->page + vcpu->first;
	uint64_t sum = 0, n;

	for (n = 0; n < vcpu->count; n++)
		sum = (word_of(page[n]) ^ (sum << 5 | sum >> 59)) *
		      MACHINE_SCAN_MUL;
	return sum;
}

/* Slots take whole pages, and the table's mapping has them. */
static int set_table_slot(struct bench *bench)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t size = (bench->touched * sizeof(uint64_t) + page - 1) &
			~(page - 1);

	return machine_set_slot(bench->machine, BENCH_TABLE_SLOT, 0,
				BENCH_TABLE, size, bench->table);
}

int bench_set_slot(struct bench *bench, uint32_t flags, uint64_t bitmap)
{
	int err;

	if (flags)
		err = machine_set_userfault_slot(bench->machine, BENCH_SLOT,
						 flags, BENCH_RAM, bench->bytes,
						 bench->ram, bitmap);
	else
		err = machine_set_slot(bench->machine, BENCH_SLOT, 0,
				       BENCH_RAM, bench->bytes, bench->ram);
	if (!err)
		err = set_table_slot(bench);
	return err ? bench_why(bench, err, "cannot make a memslot: %s",
			       strerror(-err)) : 0;
}

static int huge_flags(uint64_t page_size)
{
	unsigned int shift = (unsigned int)__builtin_ctzll(page_size);

	return page_size == (uint64_t)sysconf(_SC_PAGESIZE) ? 0 :
		(int)(MFD_HUGETLB | shift << MFD_HUGE_SHIFT);
}

int bench_map(struct bench *bench)
{
	int huge = huge_flags(bench->options->page_size);
	void *ram = MAP_FAILED;

	bench->memfd = memfd_create("guest-ram", MFD_CLOEXEC |
				    (unsigned int)huge);
	if (bench->memfd >= 0 &&
	    !ftruncate(bench->memfd, (off_t)bench->bytes))
		ram = mmap(NULL, bench->bytes, PROT_READ | PROT_WRITE,
			   MAP_SHARED | (huge ? 0 : MAP_NORESERVE),
			   bench->memfd, 0);
	if (ram == MAP_FAILED)
		return bench_why(bench, -errno, "cannot make RAM: %s%s",
				 strerror(errno), huge ?
				 "; reserve enough huge pages of this size first" :
				 "");
	bench->ram = ram;
	return bench_set_slot(bench, 0, 0);
}

void bench_unmap(struct bench *bench)
{
	machine_set_slot(bench->machine, BENCH_TABLE_SLOT, 0, BENCH_TABLE, 0,
			 NULL);
	machine_set_slot(bench->machine, BENCH_SLOT, 0, BENCH_RAM, 0, NULL);
	if (bench->ram)
		munmap(bench->ram, bench->bytes);
	if (bench->memfd >= 0)
		close(bench->memfd);
	bench->ram = NULL;
	bench->memfd = -1;
}

uint64_t bench_window(const struct bench *bench)
{
	const struct bench_options *o = bench->options;

	return bench->mode->widens ? o->window * o->page_size : o->page_size;
}

const void *bench_fetch_now(struct bench *bench, uint64_t offset, void *buffer,
			    size_t length)
{
	size_t at = 0;
	ssize_t n;

	if (!bench->options->file)
		return bench->image + offset;
	while (at < length) {
		n = pread(bench->image_fd, (char *)buffer + at, length - at,
			  (off_t)(offset + at));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			bench_die("cannot read the image: %s",
				  strerror(n < 0 ? errno : ENODATA));
		at += (size_t)n;
	}
	return buffer;
}

const void *bench_fetch(struct bench *bench, uint64_t offset, void *buffer,
			size_t length)
{
	uint64_t us = bench->options->latency_us;
	struct timespec left = {
		.tv_sec = (time_t)(us / 1000000),
		.tv_nsec = (long)(us % 1000000 * 1000),
	};

	while (us && clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR)
		;
	return bench_fetch_now(bench, offset, buffer, length);
}
