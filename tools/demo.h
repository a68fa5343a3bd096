/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* kvmfault demo: what its scenarios share. */

#ifndef DEMO_H
#define DEMO_H

#include <kvmfault.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "image.h"
#include "machine.h"

#define DEMO_RAM (4ULL << 30)	/* where the guest has its RAM */
#define DEMO_PAGE 4096ULL

struct demo;

struct demo_vcpu {
	struct demo *demo;
	struct machine_vcpu *machine;
	struct machine_scan *job;
	struct kvmfault_vcpu *handle;
	pthread_t thread;
	double began, ended;	/* when it entered the guest, and was done */
};

struct demo {
	/* what was asked for */
	struct image_place place;
	uint64_t bytes;
	unsigned int vcpus;
	unsigned int holes;	/* per cent of an image that is made up */
	enum kvmfault_delivery wanted;
	const char *record_path, *working_set_path;
	bool fill;
	uint64_t fill_rate;	/* bytes a second, 0: no limit */
	bool settle;
	bool no_irqchip;
	bool json;

	/* what there is */
	struct image image;
	struct machine *machine;
	void *ram;			/* of all the guest's RAM */
	struct kvmfault_vm *vm;
	struct kvmfault_memory *memory;		/* NULL: not of one */
	struct kvmfault_working_set *set;	/* loaded, or to record */
	struct kvmfault_recording *recording;
	struct kvmfault_fill *filling;
	struct demo_vcpu vcpu[MACHINE_MAX_VCPUS];
	unsigned int started;

	/* what happened */
	const char *delivery;		/* NULL: ask the context */
	atomic_bool failed;
	atomic_uint finished;
	double seconds;
	/* The restore's clock, and how long after it began: the set was there
	 * (0: there is none), all was there, the guest had touched all. */
	double began;
	double working_set, resident, touched;
	atomic_bool all_there;	/* and nothing left to bring */
	bool settled;
	uint64_t fetched, zero;		/* pages */
	uint64_t misread, wrong_pages, wrong_checksums;
	bool verified;
};

/* A scenario: set up RAM after the machine and the context are there; take it
 * down, from any state. */
struct demo_scenario {
	const char *name;
	int (*set_up)(struct demo *demo);
	/* Make whoever still sleeps on memory wake up, failing. */
	void (*release)(struct demo *demo);
	/* Compare all of RAM with the image. 0 or -errno. */
	int (*compare)(struct demo *demo, uint64_t *checksum);
	void (*take_down)(struct demo *demo);
};

extern const struct demo_scenario demo_ram;
extern const struct demo_scenario demo_guest_memfd;

/* Say what went wrong, once, and stop the guest. */
__attribute__((format(printf, 2, 3)))
void demo_fail(struct demo *demo, const char *format, ...);

/* Share RAM between the vCPUs: a scattered walk over pages [first, first +
 * pages) for each one. */
void demo_job(struct demo_vcpu *vcpu, uint64_t first, uint64_t pages);

/* In seconds; it never goes back. */
double demo_now(void);

/*
 * demo-restore.c. restore_match() makes the set, or finds out whether the one
 * that was loaded is the image's, with a message if it fails. restore_begin()
 * comes before the vCPUs run, and fails by demo_fail(); restore_tick() now and
 * then while they run; restore_end() when all have ended, with a message if it
 * fails; restore_drop() before the memory goes, in any state. 0 or -errno.
 */
int restore_match(struct demo *demo);
void restore_begin(struct demo *demo);
void restore_tick(struct demo *demo);
int restore_end(struct demo *demo);
void restore_drop(struct demo *demo);

/* demo-options.c. Returns an exit code, or -1: go on. */
int demo_options(int argc, char **argv, struct demo *demo,
		 const struct demo_scenario **scenario);

/* report.c */
void report_progress(const struct demo *demo, uint64_t done);
void report_end_progress(const struct demo *demo);
void report_table(const struct demo *demo);
void report_json(const struct demo *demo);

#endif
