/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* kvmfault bench: what its parts share. */

#ifndef BENCH_H
#define BENCH_H

#include <kvmfault.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "machine.h"

#define BENCH_RAM (4ULL << 30)		/* gpa; its slot is 1 */
#define BENCH_TABLE (1ULL << 30)	/* gpa of the walks, in slot 2 */
#define BENCH_SLOT 1
#define BENCH_TABLE_SLOT 2
#define BENCH_LIST 16			/* values of one option */
#define BENCH_WHY 256
#define BENCH_RUNS 256

struct bench;
struct bench_vcpu;

/* A contender. Whatever it is, it is given the same RAM, walks and source. */
struct bench_mode {
	const char *name;
	const char *what;
	bool widens;		/* --window is for it */
	bool fetches;		/* --latency-us is for it */
	/* RAM in its slot, as new, and all that answers faults of it. 0 or
	 * -errno, with bench->why saying what is to be done. */
	int (*set_up)(struct bench *bench);
	/* Part of what is measured: what has to be done before the guest can
	 * run. May be NULL. */
	void (*begin)(struct bench *bench);
	/* KVM_RUN until the routine's end, on the vCPU's own thread. */
	void (*run)(struct bench_vcpu *vcpu);
	/* From any state. */
	void (*take_down)(struct bench *bench);
	/* What the library's modes differ in. */
	enum kvmfault_delivery delivery;
	bool async;		/* the source answers later */
	bool no_poll;		/* the service's threads sleep at once */
};

extern const struct bench_mode *const bench_modes[];	/* ends with NULL */
extern const struct bench_mode bench_raw_uffd, bench_raw_exit, bench_mmap,
	bench_resident, bench_uffd, bench_uffd_sleep, bench_uffd_async,
	bench_marker_exit, bench_kernel_exit;

struct bench_pattern {
	const char *name;
	/* The places of the walks: bench->touched pages, into bench->page. */
	void (*lay_out)(struct bench *bench);
	bool shared;		/* all of them by each vCPU */
};

struct bench_options {
	const struct bench_mode *mode[BENCH_LIST];
	size_t modes;
	uint64_t vcpus[BENCH_LIST];
	size_t vcpu_counts;
	uint64_t memory[BENCH_LIST];
	size_t memories;
	uint64_t page_size;
	uint64_t touch;			/* pages; 0: all */
	uint64_t window, latency_us, threads, runs;
	const struct bench_pattern *pattern;
	bool file;			/* the source is one */
	bool minor;			/* --resolver continue */
	bool write;			/* --access write */
	bool json;
	const char *plot;
};

struct bench_vcpu {
	struct bench *bench;
	struct machine_vcpu *machine;
	struct kvmfault_vcpu *handle;	/* of library modes */
	void *buffer;			/* of a window, for the source */
	pthread_t thread;
	uint64_t first, count;		/* its walk, in the table */
	double ended;
	uint64_t faults[KVMFAULT_KIND_COUNT];
};

/* A number of vCPUs and a size of RAM: all modes run on it, in turn. */
struct bench {
	const struct bench_options *options;
	const struct bench_mode *mode;
	struct machine *machine;
	struct bench_vcpu *vcpu;
	unsigned int vcpus;
	uint64_t bytes;
	int image_fd;
	char *image;
	uint64_t touched;
	uint64_t *page;			/* page numbers, by the pattern */
	uint64_t *table;		/* the same as gpas, for the guest */

	/* of one run */
	int memfd;
	char *ram;			/* the memslot's mapping, or NULL */
	void *state;			/* the mode's own, or NULL */
	char why[BENCH_WHY];		/* that it can't be had */
	pthread_barrier_t ready, go;
	uint64_t faults[KVMFAULT_KIND_COUNT];
};

/* What was measured of one mode. */
struct bench_case {
	struct bench *bench;
	const struct bench_mode *mode;
	bool unavailable;
	char why[BENCH_WHY];
	unsigned int runs;
	double *seconds;
	double *cpu_seconds;	/* of all threads, the kernel's work included */
	uint64_t faults[KVMFAULT_KIND_COUNT];	/* of all runs */
	/* What grew until the guest was done, of the last run: this process's
	 * own memory, and its page tables. */
	uint64_t anonymous, page_tables;
};

/* "kvmfault: ...", and the end: a guest that can't go on can't be stopped in
 * all modes. */
__attribute__((format(printf, 1, 2), noreturn))
void bench_die(const char *format, ...);
/* Returns err. */
__attribute__((format(printf, 3, 4)))
int bench_why(struct bench *bench, int err, const char *format, ...);
double bench_now(void);		/* seconds */

/* bench-options.c. Returns an exit code, or -1: go on. */
int bench_parse(int argc, char **argv, struct bench_options *options);
uint64_t bench_pages(const struct bench_options *options, uint64_t bytes);
/* How many of them the guest touches. */
uint64_t bench_touched(const struct bench_options *options, uint64_t bytes);

/* bench-ram.c */
extern const struct bench_pattern bench_patterns[];
extern const size_t bench_pattern_count;

/* Walks, image, table: what stays the same for all runs. 0 or -errno, with a
 * message printed. */
int bench_prepare(struct bench *bench);
void bench_unprepare(struct bench *bench);
/* What the guest computes if it sees what the image has. */
uint64_t bench_sum(const struct bench_vcpu *vcpu);
/* An empty file as RAM, mapped and in its slot. 0 or -errno, with why. */
int bench_map(struct bench *bench);
/* flags, bitmap: a kernel's own for missing pages, or 0. */
int bench_set_slot(struct bench *bench, uint32_t flags, uint64_t bitmap);
void bench_unmap(struct bench *bench);
/* The source: waits for the latency, then has the bytes in the buffer or
 * elsewhere. */
const void *bench_fetch(struct bench *bench, uint64_t offset, void *buffer,
			size_t length);
const void *bench_fetch_now(struct bench *bench, uint64_t offset, void *buffer,
			    size_t length);
uint64_t bench_window(const struct bench *bench);	/* bytes */

/* bench-report.c */
struct bench_report {
	const struct bench_options *options;
	struct bench_case *cases;
	size_t count;
	double load[2];		/* of the machine, before and after */
};
void bench_progress(const struct bench_case *at, unsigned int run);
void bench_end_progress(void);
void bench_table(const struct bench_report *report);
void bench_json(const struct bench_report *report);
/* 0 or -errno, with a message printed. */
int bench_plot(const struct bench_report *report);

#endif
