/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Entrances: where a vCPU's exit, a signal or a message comes in.
 */

#ifndef KVMFAULT__ENTRY_H
#define KVMFAULT__ENTRY_H

#include "../resolve/defer.h"
#include "../resolve/range.h"

/* vcpu.c and its entrances */
#define KVMFAULT__HISTORY 8
#define KVMFAULT__SIGINFO 128		/* bytes of a siginfo_t */

struct kvmfault__past {			/* an event, and what it points to */
	struct kvmfault_event event;
	struct kvmfault_fault fault;
};

/* operand.c: the memory operand of an x86 instruction */
struct kvmfault__x86 {
	uint64_t gpr[16];	/* rax rcx rdx rbx rsp rbp rsi rdi r8 ... */
	uint64_t rip;
	uint64_t segment[6];	/* bases: es cs ss ds fs gs */
	bool long_mode;		/* 64-bit code */
	bool big;		/* 32-bit code, if not 64-bit */
};
#define KVMFAULT__CODE 15	/* the longest instruction */

/* delegate.c: what is done for a vCPU, with system calls, on whichever thread: so
 * it knows nothing of the vCPU but this, since that may have been freed. */
struct kvmfault__task;
typedef void kvmfault__work(struct kvmfault__task *task,
			    struct kvmfault__answer *answer);
struct kvmfault__task {
	kvmfault__work *work;
	struct kvmfault__seat *seat;	/* of the thread that does it */
	struct kvmfault_fault *fault;	/* the vCPU's, or a copy */
	int fd;				/* the vCPU's, or a duplicate */
	bool anew;			/* nothing was done for this fault yet */
	bool prefault;			/* what else came; then */
	uint32_t space;			/* the one that the vCPU is in */
	uint64_t due;			/* not before; 0: now */
	uint64_t began, ended;		/* by the clock */
	uint64_t gpa;			/* mmio: the part's */
	uint64_t rip;			/* emulation: of the last one; this one's */
	bool last;			/* and no other try without progress */
	struct kvmfault__gfns pages;	/* a conversion's, */
	bool private;			/* to what, */
	uint64_t reached;		/* and how far it came */
};

/* A thread that does one vCPU's tasks after the other's, and what it has of them. */
struct kvmfault__worker {
	struct kvmfault__worker *next;
	struct kvmfault__seat *seat;
	pthread_t thread;
	bool taken;			/* by a vCPU, under the VM's lock */
	uint8_t leave;			/* the seat's immediate_exit */
	int fd;				/* the vCPU's, a duplicate; or -1 */
	_Atomic uint32_t state;		/* futex word */
	struct kvmfault__task task;
	struct kvmfault_fault fault;
	struct kvmfault__answer answer;
	int err;
};

struct kvmfault_vcpu {
	struct kvmfault_vm *vm;
	struct kvmfault__seat *seat;
	int fd;
	struct kvm_run *run;
	bool prefault;
	struct kvmfault_fault fault;
	struct kvmfault_result result;
	struct kvmfault_stats before;	/* of the seat's earlier users */
	/* guard.c: what faulted last, and how often without progress */
	struct kvmfault__guard {
		bool faulted;		/* since the last exit of another kind */
		uint64_t history[KVMFAULT__HISTORY];
		uint32_t newest;
		uint32_t streak;
		uint32_t not_now;	/* how often it was not possible */
	} guard;
	/* history.c: its last faults, and pointers to them in their order */
	struct kvmfault__history {
		struct kvmfault__past ring[KVMFAULT_HISTORY_COUNT];
		uint64_t count;
		const struct kvmfault_event *events[KVMFAULT_HISTORY_COUNT];
	} past;
	/* a source that failed: for what, how often, when to try again */
	struct kvmfault__source_tries {
		uint64_t key;
		uint32_t failures;
		uint64_t due;		/* 0: now */
	} source;
	/* mmio.c, emulation.c: an access that was interrupted */
	struct kvmfault__resume {
		uint64_t mmio_gpa;
		uint32_t mmio_length;
		uint64_t emulation_rip;	/* the last one's */
		bool emulating;		/* interrupted: #UD may be queued */
	} resume;
	/* signal.c: the SIGBUS that ended KVM_RUN */
	struct kvmfault__vcpu_sigbus {
		struct kvmfault__seat *handler;	/* the handler's own, or NULL */
		bool masked;	/* the library has set KVM's signal mask, */
		uint64_t *own_mask;	/* the VMM's, or NULL */
		uint64_t own_mask_value;
		atomic_bool noted;	/* by the handler */
		_Alignas(8) char siginfo[KVMFAULT__SIGINFO];
		char note[KVMFAULT__SIGINFO];
	} sigbus;
	/* delegate.c: its tasks */
	struct kvmfault__vcpu_task {
		struct kvmfault__worker *worker; /* does them, or NULL: itself */
		bool anew;		/* nothing was done for this fault yet */
		uint64_t began, ended;	/* the first and the last; 0: none */
	} task;
};

/* The page that faulted, or what stands for it. */
static inline uint64_t
kvmfault__guard_key(const struct kvmfault_vcpu *vcpu)
{
	const struct kvmfault_fault *fault = &vcpu->fault;

	if (fault->kind == KVMFAULT_KIND_EMULATION)
		return ~vcpu->resume.emulation_rip;	/* no page's */
	if (fault->known & KVMFAULT_KNOWN_GPA)
		return fault->gpa / KVMFAULT__PAGE;
	if (fault->known & KVMFAULT_KNOWN_HVA)
		return fault->hva / KVMFAULT__PAGE;
	return UINT64_MAX;
}

/* guard.c */
void kvmfault__guard_start(struct kvmfault_vcpu *vcpu);
void kvmfault__guard_no_page(struct kvmfault_vcpu *vcpu,
			     struct kvmfault__answer *answer);
/*
 * Progress is a page that came, a page that did not fault lately, or an exit
 * of another kind (which starts the guard anew). Without it the pauses grow,
 * and the budget ends it.
 */
static inline void kvmfault__guard(struct kvmfault_vcpu *vcpu,
				   struct kvmfault__answer *answer)
{
	if (answer->action != KVMFAULT_ACTION_RETRY)
		return;
	if (answer->came)
		vcpu->guard.not_now = vcpu->guard.streak = 0;
	else
		kvmfault__guard_no_page(vcpu, answer);
}
/* One more answer without progress would be the last. */
bool kvmfault__last_retry(const struct kvmfault_vcpu *vcpu);

/* history.c */
void kvmfault__remember(struct kvmfault_vcpu *vcpu);

/* signal.c: the ways of a marker's SIGBUS. -EINVAL: it would not get through */
int kvmfault__signal_new(struct kvmfault_vcpu *vcpu,
			 const struct kvmfault_vcpu_options *options);
void kvmfault__signal_free(struct kvmfault_vcpu *vcpu);
/* KVM_RUN was interrupted: by a SIGBUS? Then vcpu->siginfo is it. */
bool kvmfault__signal_take(struct kvmfault_vcpu *vcpu);

/* Have it done, here or by the worker. 0: it is; -EINTR: a signal or
 * immediate_exit came. The answer says either. */
int kvmfault__perform(struct kvmfault_vcpu *vcpu, struct kvmfault__task *task,
		      struct kvmfault__answer *answer);
/* One that is about the vCPU's fault. */
static inline struct kvmfault__task
kvmfault__task(struct kvmfault_vcpu *vcpu, kvmfault__work *work)
{
	return (struct kvmfault__task){
		.work = work,
		.seat = vcpu->seat,
		.fault = &vcpu->fault,
		.fd = vcpu->fd,
		.anew = vcpu->task.anew,
		.prefault = vcpu->prefault,
		.space = kvmfault__address_space(vcpu->run),
		.due = vcpu->source.due,
	};
}

/* By the vCPU's thread: it does not wait to be told any more. */
void kvmfault__forget_pending(struct kvmfault_vcpu *vcpu);
/* The set-up of a vCPU whose work is delegated, and its end, which waits for no
 * task; after an error as well. The last end, with the context. */
int kvmfault__worker_take(struct kvmfault_vcpu *vcpu);
void kvmfault__worker_give(struct kvmfault_vcpu *vcpu);
void kvmfault__workers_free(struct kvmfault_vm *vm);

void kvmfault__mmio(struct kvmfault_vcpu *vcpu,
		    struct kvmfault__answer *answer);
void kvmfault__emulation(struct kvmfault_vcpu *vcpu,
			 struct kvmfault__answer *answer);
/* Its linear address; false: none, or not to be told from these bytes. */
bool kvmfault__x86_operand(const struct kvmfault__x86 *cpu,
			   const uint8_t *code, size_t length,
			   uint64_t *address);

/* prefault.c: have KVM map a window that came */
bool kvmfault__can_prefault(int vcpu_fd);
void kvmfault__prefault(const struct kvmfault__task *task,
			const struct kvmfault__answer *answer);

/* sigbus.c */
/* A SIGBUS at fault->hva; the gpa is filled in. NOT_A_FAULT: not ours. */
void kvmfault__sigbus(struct kvmfault__seat *seat, struct kvmfault_fault *fault,
		      struct kvmfault__answer *answer);

/* stats.c: what its seats have counted, for earlier users too */
void kvmfault__vcpu_counted(const struct kvmfault_vcpu *vcpu,
			    struct kvmfault_stats *sum);

/* service.c */
/* Once: warn if nobody answers what vCPUs may miss. */
void kvmfault__expect_service(struct kvmfault_vm *vm);

/* message.c: as many as there are; what they say of pages that are gone is noted.
 * And then each of them; true: it is a fault. */
struct uffd_msg;
ssize_t kvmfault__messages_read(struct kvmfault__seat *seat,
			   struct kvmfault_uffd *uffd, struct uffd_msg *msg,
			   size_t count);
bool kvmfault__message_decode(struct kvmfault__seat *seat, uint32_t space,
			  const struct uffd_msg *msg,
			  struct kvmfault__message *item);

/* Have the service told of its messages: EPOLL_CTL_ADD, or again, _MOD. */
int kvmfault__uffd_listen(struct kvmfault_uffd *uffd, int op);
/* Under the VM's lock. On: a message wakes one of the service's threads, and it has
 * the next one woken when it has read it. */
void kvmfault__pass_baton(struct kvmfault_vm *vm, bool on);

#endif
