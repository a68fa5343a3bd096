/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A plan: what kind of VMM it is (options), and what each of its threads does
 * (steps). It is made from a seed, or read from text; what a run does beside that
 * is the choices' and the schedule's.
 *
 * To add an option: a line in OPTIONS; world.c does as it says. To add a step: a
 * line in STEPS, and a function of that name in steps.c.
 */

#ifndef KVMFAULT_SIM_PLAN_H
#define KVMFAULT_SIM_PLAN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* name, values (0 to one less), a plan has another than 0 one time in so many */
#define OPTIONS(option) \
	option(pages, 5, 1)		/* 4 << n */ \
	option(memories, 2, 3)		/* one more than that */ \
	option(backing, 3, 3)		/* memfd, hugetlb, anonymous */ \
	option(minor, 2, 5) \
	option(write_protect, 2, 3) \
	option(window, 4, 2)		/* as enum kvmfault_window */ \
	option(window_pages, 4, 1)	/* 1 << n */ \
	option(source, 5, 1)		/* read, memory, later, file, zero */ \
	option(source_slow, 3, 3)	/* at once, 1 ms, 3 s */ \
	option(source_fails, 3, 4)	/* never, one in 8, one in 2 */ \
	option(source_poisons, 3, 8)	/* one page in 8 is gone, or in 2 */ \
	option(answers, 6, 2)		/* soon, at once, twice, if cancelled,
					 * -EAGAIN, an error and yet an answer */ \
	option(no_cancel, 2, 5) \
	option(deadline, 3, 5)		/* none, 5 ms, 50 ms */ \
	option(own, 2, 1)		/* a second mapping, the VMM's */ \
	option(own_uffd, 2, 2)		/* that has an object of the VMM's */ \
	option(device, 3, 3)		/* another process has a mapping; at our
					 * addresses */ \
	option(delivery, 4, 1)		/* uffd, markers, userfault, on missing */ \
	option(delegate, 3, 3)		/* kicked while workers work */ \
	option(handler, 2, 3)		/* of SIGBUS */ \
	option(no_wait, 2, 2) \
	option(service, 4, 1)		/* threads; 0: a thread dispatches */ \
	option(retry_budget, 2, 4)	/* 16, 6 */ \
	option(source_retries, 3, 3) \
	option(fetches, 3, 2)		/* 1 + n */ \
	option(resolver, 9, 3)		/* none, plain, declines after it has
					 * installed, does it twice, its own way,
					 * in part, fails, later, lies */ \
	option(prefault, 2, 3) \
	option(guest_memfd, 2, 3) \
	option(converter, 4, 2)		/* 0, keep shared, keep private, calls */ \
	option(own_set, 2, 3)		/* KVM is told page by page, and that may
					 * fail */ \
	option(hooks, 3, 3) \
	option(bad_luck, 3, 4)		/* never, one call in 200, in 30 */ \
	option(events, 2, 6)		/* an adopted userfaultfd with REMOVE */ \
	option(split, 2, 5)		/* a VMA border in the memslots' mapping */ \
	option(populated, 2, 6)		/* the file has been used before */ \
	option(huge_pool, 2, 6)		/* few huge pages are left */ \
	option(no_cachestat, 2, 5) \
	option(shadow, 2, 4)		/* page tables in shadow */ \
	option(signals, 2, 3) \
	option(careless, 2, 3)		/* KVM_RUN is entered too early */ \
	option(resets, 2, 3)		/* of a vCPU, in the middle of a fault */ \
	option(exits, 2, 8)		/* as a newer kernel's may be: flags that
					 * nobody knows, a gpa within a page */ \
	option(rom, 2, 6)		/* the first memory's region is one */ \
	option(halves, 2, 4)		/* a memory is shown by two regions */ \
	option(late_memory, 2, 1)	/* the vCPUs' handles are made first */ \
	option(source_short, 2, 5)	/* it ends in the middle of a page */ \
	option(tables, 6, 2)		/* of the guest: none, 32 bits, the same
					 * with PSE, PAE, 4 and 5 levels */ \
	option(holes, 4, 3)		/* of the source: none, pages, halves of
					 * pages, in two layers */ \
	option(states, 2, 2)		/* a file has them */

enum option {
#define OPTION(name, values, often) OPT_##name,
	OPTIONS(OPTION)
#undef OPTION
	OPTION_COUNT
};

enum role { ROLE_VCPU, ROLE_THREAD, ROLE_DEVICE, ROLE_KERNEL, ROLE_COUNT };

/* name, whose, weight, what a, b and c are, for people */
#define STEPS(step) \
	step(touch, VCPU, 20, "page word write") \
	step(touch_emulated, VCPU, 6, "page word write") \
	step(touch_unknown, VCPU, 2, "page - -") \
	step(touch_private, VCPU, 6, "page word write") \
	step(touch_by_turns, VCPU, 3, "page word long") \
	step(touch_nothing, VCPU, 1, "- - -") \
	step(page_tables, VCPU, 2, "page - -") \
	step(convert_here, VCPU, 2, "page count private") \
	step(vcpu_again, VCPU, 1, "- - -") \
	step(stand, VCPU, 1, "- - -") \
	step(sigbus_elsewhere, VCPU, 1, "- - -") \
	step(read_memslots, THREAD, 5, "page word -") \
	step(read_own, THREAD, 6, "page word -") \
	step(write_own, THREAD, 5, "page word -") \
	step(ensure, THREAD, 8, "page count write") \
	step(discard, THREAD, 6, "page count -") \
	step(snapshot, THREAD, 3, "page count sweep") \
	step(unprotect, THREAD, 1, "page count -") \
	step(convert, THREAD, 4, "page count private") \
	step(cancel, THREAD, 2, "page count -") \
	step(fill, THREAD, 3, "page threads how") \
	step(region_again, THREAD, 3, "memory - -") \
	step(relay, THREAD, 3, "memory layout -") \
	step(memory_again, THREAD, 6, "memory back same") \
	step(another_memory, THREAD, 1, "page word -") \
	step(owner_killed, THREAD, 8, "memory times changed") \
	step(mapping_again, THREAD, 2, "memory remote back") \
	step(settle, THREAD, 4, "page bring -") \
	step(count, THREAD, 2, "page count -") \
	step(wrong_mapping, THREAD, 1, "memory what -") \
	step(service_again, THREAD, 2, "threads - -") \
	step(set_delivery, THREAD, 2, "leave - -") \
	step(kick, THREAD, 8, "vcpu immediate_exit -") \
	step(other_sigbus, THREAD, 2, "vcpu - -") \
	step(balloon, THREAD, 2, "page count -") \
	step(fork, THREAD, 1, "page - -") \
	step(failed, THREAD, 1, "page size -") \
	step(msrs, THREAD, 2, "page - -") \
	step(record, THREAD, 2, "memory ms pages") \
	step(another_vm, THREAD, 1, "- - probe") \
	step(ask, THREAD, 2, "page - -") \
	step(wait, THREAD, 2, "ms - -") \
	step(read_device, DEVICE, 10, "page word -") \
	step(write_device, DEVICE, 5, "page word -") \
	step(unmap_device, DEVICE, 1, "page - -") \
	step(die, DEVICE, 1, "- - -") \
	step(reclaim, KERNEL, 6, "page mapping table") \
	step(vma, KERNEL, 2, "page count -") \
	step(tick, KERNEL, 4, "task - -")

enum what {
#define STEP(name, role, weight, arguments) STEP_##name,
	STEPS(STEP)
#undef STEP
	STEP_COUNT
};

#define ACTORS 7
#define ACTOR_STEPS 12

struct step {
	uint8_t what;
	uint16_t a, b, c;
};

struct actor {
	uint8_t role;
	uint8_t steps;
	struct step step[ACTOR_STEPS];
};

struct plan {
	uint64_t choices;		/* the seed of what a run chooses */
	uint8_t option[OPTION_COUNT];
	uint8_t actors;
	uint8_t most;			/* steps of an actor, when it was made */
	bool narrow;			/* these are of a few kinds */
	struct actor actor[ACTORS];
};

extern const char *const option_name[OPTION_COUNT];
extern const char *const step_name[STEP_COUNT];
extern const uint8_t option_values[OPTION_COUNT];

/* allowed: by option, whether it may be other than 0. */
void plan_from_seed(struct plan *plan, uint64_t seed,
		    const bool allowed[OPTION_COUNT],
		    const bool allowed_step[STEP_COUNT]);
void plan_write(const struct plan *plan, FILE *file);
/* False: it can't be understood; the line is told. */
bool plan_read(struct plan *plan, FILE *file);
int plan_option(const char *name);		/* -1: none */
int plan_step(const char *name);

#endif
