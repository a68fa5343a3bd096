/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The test bed of the stages that need a whole VM: on the fake door, one
 * tracked memory of 16 pages, its source, a region that shows it, a vCPU. Every
 * callback is counted, and judged by the door: it comes with no lock held. At
 * the end nothing may be left.
 */

#ifndef KVMFAULT_TESTS_BED_H
#define KVMFAULT_TESTS_BED_H

#include <linux/kvm.h>

#include "fake-sys.h"
#include "lib/os/abi.h"
#include "lib/setup/setup.h"
#include "unit.h"

#define BED_GPA 0x100000ULL
#define BED_PAGES 16ULL

struct bed {
	struct kvmfault_vm *vm;
	struct kvmfault_memory *memory;
	int fd;
	int guest_memfd;		/* of its region; set before bed_add() */
	/* Of its vCPU; the same. With KVMFAULT_DELEGATED in the environment
	 * it is that. */
	enum kvmfault_profile profile;
	char *host;
	struct kvmfault_vcpu *vcpu;
	struct kvm_run *run;
	struct kvmfault__seat *seat;	/* for tests that call resolve */
	struct kvmfault_service *service;	/* see bed_service() */
	const void *pause[2];		/* futex words: see bed_pauses() */

	unsigned int reads;		/* of the source */
	uint64_t last_read;
	int source_result;		/* what it returns */
	int own_verdict;		/* of bed_own() */
	uint64_t chunk;
	struct kvmfault_source source;	/* in its place, if it has a size */
	enum kvmfault_window window;	/* of memories made from now on */
	uint64_t window_length;
	bool minor, write_protect;
	size_t last_length;
	void (*during_read)(void);	/* once, inside a read */

	unsigned int logs, unresolved, changes[8];
	char log[512];
	struct kvmfault_change change;
	struct kvmfault_sleeper sleeper;	/* the last one, */
	struct kvmfault_fault fault;		/* and its fault */
	enum kvmfault_reason reason;
	int error;
};
extern struct bed bed;
/* What the next context is made with. */
extern int bed_vm_fd;
extern const struct kvmfault_converter *bed_converter;
extern enum kvmfault_delivery bed_delivery;

void bed_up(void);		/* all of it: */
void bed_vm(void);		/* the context, */
void bed_add(void);		/* and the rest */
void bed_down(void);
/* Is it a pause of its vCPU's thread, or of who works for it? */
bool bed_pauses(const struct fake_call *call);
/* This is a hook of FAKE_FUTEX_WAIT: those pauses take no time. */
bool bed_no_pause(struct fake_call *call);

/* No seat is free meanwhile: who needs one has to make it. */
void bed_take_seats(void);
void bed_give_seats(void);

struct kvmfault_source bed_source(void);
char bed_byte(uint64_t page);	/* what the source has in this page */
/* Host memory of the bed at this page, and whether the page has its data. */
char *bed_page(uint64_t page);
bool bed_has(uint64_t page, char byte);
enum kvmfault__state bed_state(uint64_t page);
/* Any memory of the fake's with the bed's source; 0 or -errno. Its window is
 * what the bed says. */
int bed_memory(struct kvmfault_memory **memory, int *fd, void **host);
/* It has a resolver of the VMM's, named "own", for all pages. This is called
 * between bed_vm() and bed_add(). */
void bed_own_resolver(int (*resolve)(void *data,
				     struct kvmfault_request *request));
/* This is one that says bed.own_verdict, which is DECLINED at first. */
int bed_own(void *data, struct kvmfault_request *request);
/* It has a service with so many threads from now on, until bed_down() or
 * bed_end_service(). */
void bed_service(unsigned int threads);
void bed_end_service(void);
/* The service does one round, in this thread. */
void bed_dispatch(void);
/* A thread touches the page, and sleeps: the service has a message to read. */
void bed_touch(uint64_t page, bool write);
struct kvmfault_stats bed_stats(void);
/* Resolve as the entrance would; a message's, with origin. */
struct kvmfault__answer bed_resolve(enum kvmfault_kind entrance,
				    uint64_t page, bool origin);
/* How often the vCPU's thread has waited, but for what it has delegated. */
size_t bed_waits(void);
/* KVM_RUN's results. */
enum kvmfault_action bed_handle(int ret, int err);
enum kvmfault_action bed_handle_sigbus(const void *siginfo);
enum kvmfault_action bed_exit(uint64_t gpa, uint64_t flags);
enum kvmfault_action bed_bare(void);
enum kvmfault_action bed_mmio(uint64_t gpa, uint32_t length, bool write);
enum kvmfault_action bed_other(void);

/* A function of the library's is called through __wrap_ and its name, which the
 * test defines, and __real_ and its name is the function: see meson.build. */
#define BED_WRAPPED(name) extern __typeof__(name) __real_##name, __wrap_##name

#endif
