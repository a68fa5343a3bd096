/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A VMM of the model: what it has made of the library's objects, and the sources,
 * resolvers and callbacks that it gives to them, which do what the plan says.
 */

#ifndef KVMFAULT_SIM_WORLD_H
#define KVMFAULT_SIM_WORLD_H

#include "plan.h"
#include "sim.h"

#define MEMORIES 2
#define VCPUS_MAX 2
#define MEMORY_PAGES 256U		/* at most; of PAGE */

struct sim_memory {
	unsigned int id;
	bool exists;			/* its handle does */
	bool busy;			/* a step makes or frees something of it */
	unsigned int users;		/* steps that hold its handle */
	bool filled;			/* one of them once did */
	struct kvmfault_memory *handle;
	struct file *file;		/* NULL: anonymous */
	int fd;
	uint64_t memslots, own, remote;	/* where it is mapped; 0: not */
	struct kvmfault_mapping *own_mapping, *remote_mapping;
	struct kvmfault_uffd *own_uffd, *adopted;
	unsigned int pages, unit;
	uint64_t gpa;
	unsigned int parts;		/* regions that show it, */
	bool shown;			/* and that is all of them */
	bool settling;			/* has been tried */
	bool settled;			/* or half: it can't be protected */
	bool has_settled;		/* the call said so */
	int states_fd;			/* 0: the library keeps them */
	bool came[MEMORY_PAGES];	/* they have said so once */
	struct truth truth;
	struct file *guest_memfd;
	int guest_memfd_fd;
	struct truth hidden;		/* what is in the guest_memfd */
	int image_fd;
	struct kvmfault_source source;
	/* a snapshot */
	bool snapshot, watched;
	unsigned int first, count;	/* its pages */
	struct word *then;
	uint8_t *saved;			/* of each: SAVED... */
};

enum { SAVED = 1, SAVED_EARLY };	/* while protecting it was going on */

struct sim_vcpu {
	unsigned int id;
	struct vcpu *kvm;
	struct kvm_run run;
	struct kvmfault_vcpu *handle;
	struct task *task;
	bool stopped;			/* UNRESOLVED: it does not run any more */
	bool writes;			/* it is in KVM_RUN, and may write */
	bool lost;			/* KVM_RUN was entered in the middle of an
					 * access */
	bool bus;			/* its handler has kept a SIGBUS: */
	siginfo_t info;
};

extern struct world {
	const struct plan *plan;
	struct kvmfault_vm *vm;
	struct kvmfault_service *service;
	int kvm_fd, vm_fd;
	bool service_busy, no_device, no_uffd, no_cachestat;
	struct sim_memory memory[MEMORIES];
	struct sim_vcpu vcpu[VCPUS_MAX];
	unsigned int memories, vcpus;
	struct mm *device;		/* the other process */
	struct kvmfault_uffd *device_uffd;
	struct mm *child;		/* a fork */
	/* the course of the run */
	bool healed;			/* all is well from now on */
	bool paused;			/* writers wait: a snapshot begins */
	unsigned int writing;		/* accesses that write, in progress */
	uint64_t page_ready;		/* how often page_ready() came, */
	uint64_t told;			/* and failed(), for a vCPU */
	uint64_t later_until;		/* the resolver's "later" */
	/* what excuses an error */
	bool cut[MEMORIES][MEMORY_PAGES];	/* of a view, pages that are gone */
	unsigned int source_errors, cuts, poisons, cancels, lies, resolver_errors;
	unsigned int regions_changed, holes, no_memory, failures;
	unsigned int sets_failed;	/* calls that tell KVM */
	unsigned int conversions;	/* that were begun, */
	unsigned int converting;	/* and are in progress */
	unsigned int hooked;		/* whose hooks were told the beginning only */
	bool signalled, ever_private, ever_forked;
	unsigned int going;		/* page tables that went */
	unsigned int switching;		/* of the delivery, in progress */
	bool unprotected;		/* the log says that absent pages are */
	bool ending;			/* the dispatcher is not needed any more */
} world;

static inline unsigned int option(enum option which)
{
	return world.plan->option[which];
}

void world_reset(const struct plan *plan);
void world_make(void);
void world_heal(void);
/* All objects go, in the order of the manual; and nothing reads zeros. */
void world_end(void);
/* No page reads wrong bytes, by any mapping. */
void world_check(void);
void world_free(void);

bool world_makes_seat(void);		/* door.c: the path may map a buffer */
/* vCPUs' threads block SIGBUS, and the library fetches it. */
bool world_masks_sigbus(void);
bool world_is_vcpu(const struct task *task);
enum kvmfault_profile world_profile(const struct task *task);
struct sim_vcpu *world_vcpu(const struct task *task);
struct sim_vcpu *world_vcpu_of(const struct vcpu *kvm_vcpu);
/* Another thread uses it: its own has to be in the library until that is over. */
void world_check_vcpu(const struct sim_vcpu *vcpu);
/* The vCPU whose work the current task does as its worker; NULL: that was freed. */
struct sim_vcpu *door_worked_for(void);
bool door_is_worker(void);
/* Whoever has the vCPU may be wanted at any time. */
void door_kick_who_delegates(uint32_t one_in);
/* The worker that a new vCPU has got does nothing for another one. */
void door_check_idle(const struct kvmfault_vcpu *vcpu);
/* Whether somebody has the page in hand. */
bool door_in_flight(const struct sim_memory *memory, unsigned int page);
/* Whether the page was not absent once: then it is never absent again. */
bool door_has_come(const struct sim_memory *memory, unsigned int page);
/* Whether an owner before this one had settled it. */
bool door_was_settled(const struct sim_memory *memory);
/* All vCPUs are freed: nobody is to be told of a page. */
void door_check_pending(void);
/* The memory whose region shows that gpa. */
struct sim_memory *world_memory_at(uint64_t gpa);
/* The memory that has this file. */
struct sim_memory *world_memory_of(const struct file *file);

/* A call of a public function, by the current task. path: it may run for a
 * fault. Calls nest: a callback may call. */
struct in_call {
	const char *call;
	bool on_path;
	uint64_t waited;
	unsigned int callbacks;
};
void call_begin(struct in_call *in, const char *name, bool path);
void call_end(const struct in_call *in, int64_t ret);
#define CALL(name, path, expression) __extension__({ \
	struct in_call in__; \
	call_begin(&in__, #name, (path)); \
	__auto_type ret__ = (expression); \
	call_end(&in__, (int64_t)ret__); \
	ret__; })

/* Whether an error of a call about guest memory has a reason; else the run has
 * failed. injected: of this task's, when the call began. */
void check_error(const char *call, int err, unsigned int injected);
void check_unresolved(const struct kvmfault_result *result,
		      unsigned int injected);

/* A descriptor of a file's, the VMM's. */
int world_open(struct file *file);
int world_make_memory(struct sim_memory *memory);
bool world_is_rom(const struct sim_memory *memory);
int world_set_slot(struct sim_memory *memory);
int world_add_region(struct sim_memory *memory);
struct kvmfault_region world_part(const struct sim_memory *memory,
				  unsigned int part);
int world_remove_region(struct sim_memory *memory);
void world_clear_slot(const struct sim_memory *memory);
int world_make_vcpu(struct sim_vcpu *vcpu);
int world_add_own(struct sim_memory *memory);
int world_add_remote(struct sim_memory *memory);
int world_make_service(unsigned int threads);
/* Another one in its place, that is shown by no region yet; or the same, taken up
 * as its states say. */
int world_plug_memory(struct sim_memory *memory, bool same);
/* Free it, and see that nothing reads zeros then. */
void world_free_memory(struct sim_memory *memory);
void world_check_closed(struct sim_memory *memory, struct mm *mm, uint64_t at,
			const char *who);

/* tables.c */
struct quiet {				/* since a call began */
	bool calm;
	unsigned int changes;
};
struct quiet quiet_begin(void);
bool was_quiet(const struct quiet *quiet);	/* nobody has changed anything */
const char *present_bytes(const struct sim_memory *memory, unsigned int page);
void tables_reset(void);
void tables_make(void);			/* in the sources' images */
void tables_walk(struct sim_vcpu *vcpu, unsigned int page);
void tables_msrs(uint64_t page);	/* its gpa */
void tables_ask(bool everything);	/* who walks them, and what else it has */
/* What the source is asked for, and what is read of a memory's file: by whom is
 * it? */
void tables_note_fetch(const struct sim_memory *memory, uint64_t offset,
		       uint64_t length);
void tables_note_read(const struct file *file, uint64_t offset, size_t length);
void tables_note_asked(uint64_t gpa);	/* by KVM_TRANSLATE */

/* Without a mapping of the VMM's own nothing is marked, nor when the mode was
 * left. */
void door_check_unmarked(const struct sim_memory *memory);
/* What has come has no marker. */
void door_check_markers(const struct sim_memory *memory);

/* steps.c */
void steps_start(void);
bool steps_over(void);
void steps_end(void);
/* Some conversion, in a callback that is asked for a page. */
void steps_convert_inside(void);
void steps_check(void);			/* a task that reads everything */
void steps_tell_who_waits(char *text, size_t size);

#endif
