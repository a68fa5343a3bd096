/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What the live tests share: a machine with RAM in a memfd that is mapped
 * twice, a context, and vCPU threads that do what a VMM does. Each test runs in
 * both columns: without an interrupt controller in the kernel, and as VMMs have
 * it, with one, interrupts enabled and a timer firing.
 */

#ifndef KVMFAULT_TESTS_KVM_RIG_H
#define KVMFAULT_TESTS_KVM_RIG_H

#include <kvmfault.h>
#include <machine.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "unit.h"

#define RAM (4ULL << 30)	/* gpa */
#define HUGE (2ULL << 20)
#define SLOT 1
#define COLUMNS 2		/* for TEST_EACH() */
#define KICK SIGUSR1

/* Where a test stops the source. */
struct gate {
	atomic_bool closed;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned int inside;		/* reads that stand at it */
};

struct rig {
	struct machine *machine;
	uint64_t pages;			/* of 4 KiB */
	uint64_t page_size;		/* of the memfd: 4 KiB, or huge */
	int memfd;
	char *a, *b;			/* the memslot's mapping, and another */
	struct kvmfault_vm *vm;
	struct kvmfault_vcpu *vcpu[MACHINE_MAX_VCPUS];
	bool apart;			/* b has a userfaultfd of its own */
	bool minor, write_protect;	/* options of the memory */
	bool marked;			/* absent pages in a, by rig_exits() */
	struct kvmfault_uffd *uffd;	/* of a, by rig_track() */
	struct kvmfault_uffd *uffd_b;	/* of b, if apart */
	struct kvmfault_memory *memory;
	struct kvmfault_mapping *mapping;	/* b, by rig_track() */
	struct kvmfault_service *service;
	_Atomic uint32_t reads[4096];	/* of each page, by the source */
	atomic_int source_error;	/* what the source returns */
	struct gate gate;
	uint64_t overlay_at;		/* what it has there instead of words */
	size_t overlay_length;
	char overlay[512];
	/* Changes what the source has in a page; NULL: nothing does. */
	void (*fill)(uint64_t offset, void *page);
	atomic_int changes[8];		/* of memory, by cause */
	atomic_int unresolved;
	atomic_int logged;		/* lines */
};

/* Of the contexts that are made from now on; 0: the default. */
extern uint32_t rig_retry_budget;
/* And how vCPUs' missing pages are told there, by which way of SIGBUS. It is
 * blocked for all threads that come from now on, or the rig's handler notes
 * what is the vCPU's whose rig_call() it has interrupted. */
extern enum kvmfault_delivery rig_delivery;
extern enum kvmfault_sigbus rig_sigbus;

/* column: 0 or 1; supervisor: guest code that some of KVM's back ends emulate */
void rig_new(struct rig *rig, int column, unsigned int vcpus, uint64_t pages,
	     bool supervisor);
/* The same on huge pages of 2 MiB. */
void rig_new_huge(struct rig *rig, int column, unsigned int vcpus,
		  uint64_t huge_pages);
/* RAM with a source, a service and a second mapping that is registered too. */
void rig_track(struct rig *rig);
/* The same RAM as new: empty, nothing fetched. Also after the test has freed
 * the memory and set it to NULL. Nobody may touch it meanwhile. */
void rig_renew(struct rig *rig);
void rig_restart_service(struct rig *rig);
/* Put markers in a, where nothing is, by the userfaultfd that it is registered
 * with: who reads by way of a is then told by a signal or an exit, and does not
 * sleep. */
void rig_mark(struct rig *rig, int uffd, uint64_t page, uint64_t pages);
void rig_mark_all(struct rig *rig);	/* of tracked RAM */

/* The ways in which the guest's accesses to RAM are told by mmio exits, whatever
 * they would be otherwise: the memslot is not there, as while a VMM changes it;
 * or KVM's emulator does them and meets a marker. */
enum { NO_SLOT, EMULATED, WAYS };
/* How many of them this KVM has, for TEST_COUNTED(). Says so if it does not
 * emulate. */
int rig_ways(void);
/* Have it so, of tracked RAM: also of what rig_renew() makes. The rig of
 * EMULATED is a supervisor's. */
void rig_exits(struct rig *rig, int way);

/* Whether a guest_memfd can be what an ordinary slot shows (Linux 6.18). Says so
 * if not. */
bool rig_has_guest_memfd(void);

/* RAM without a source. */
void rig_plain(struct rig *rig);
void rig_resolver(struct rig *rig,
		  int (*resolve)(void *, struct kvmfault_request *));
/* Of the vCPUs: with KVMFAULT_DELEGATED in the environment workers do
 * their work. */
enum kvmfault_profile rig_profile(void);
/* After what is added to the context: the vCPUs' handles. */
void rig_vcpus(struct rig *rig);
void rig_free(struct rig *rig);

/* How often a test that takes long does what it does: as often as it says, or 1
 * in KVMFAULT_TEST_DIVISOR times, where all is slow. */
unsigned int rig_rounds(unsigned int rounds);

/* What the source has there: never zero, different everywhere. */
uint64_t rig_word(uint64_t offset);

/* Every read of the source stops at the gate while it is closed. */
void rig_close_gate(struct rig *rig);
void rig_await_gate(struct rig *rig, unsigned int reads);
void rig_open_gate(struct rig *rig);

/* As ck_assert_uint_eq(), for threads: Check's takes a lock also where all is
 * well, and would put in order the threads whose races are the subject. */
void rig_same(uint64_t got, uint64_t want, const char *what);

/* KVM_RUN and handle, until the routine's end or anything but RETRY. */
struct outcome {
	enum kvmfault_action action;	/* NOT_A_FAULT: the routine ended */
	enum kvmfault_reason reason;
	int error;
	uint64_t result;
	unsigned int faults;		/* that were answered RETRY */
};
struct outcome rig_call(struct rig *rig, unsigned int vcpu,
			enum machine_routine routine, uint64_t a, uint64_t b,
			uint64_t c);
/* The same, where it has to end well, whatever signals come; returns the
 * routine's result. */
uint64_t rig_do(struct rig *rig, unsigned int vcpu,
		enum machine_routine routine, uint64_t a, uint64_t b,
		uint64_t c);

/* One KVM_RUN, with nobody's help: its return value, and errno. */
int rig_run(struct rig *rig, unsigned int vcpu, int *err);

/* Threads that run one function, each with its number, cast to void *. */
#define TEAM_MAX 16
struct team {
	unsigned int count;
	pthread_t thread[TEAM_MAX];
};
void team_start(struct team *team, unsigned int count,
		 void *(*run)(void *));
void team_join(struct team *team);

/* Numbers without pattern, the same in every run; state is not zero. */
uint64_t rig_random(uint64_t *state);
/* 0 .. count - 1 in such an order. */
void rig_shuffle(uint16_t *order, unsigned int count, uint64_t seed);

/* Kick the calling thread again and again until it is unset; KICK's handler
 * does nothing. Bounds what would loop in the kernel. */
struct kicker {
	pthread_t thread, target;
	atomic_bool stop;
};
void kicker_start(struct kicker *kicker);
void kicker_stop(struct kicker *kicker);

/* For who opens it itself: a userfaultfd that the library takes, with these
 * features (UFFD_FEATURE_*), or -1. Nothing of Check's. */
int rig_open_uffd(uint64_t features);

#endif
