/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Entry: where a vCPU's exit, a signal or a message comes in. In: what each of
 * them says. Out: a fault that the one path resolves, and the vCPU's next
 * action. This header has a vCPU's state, its tasks, and the functions that
 * these files share.
 *
 * A room may use the rooms before it in this order: os, core, kernel, memory,
 * resolve, entry, setup; none that comes after it.
 */

#ifndef KVMFAULT__ENTRY_H
#define KVMFAULT__ENTRY_H

#include "../resolve/defer.h"
#include "../resolve/range.h"

#define KVMFAULT__HISTORY 8		/* keys that the guard remembers */
#define KVMFAULT__SIGINFO 128		/* bytes of a siginfo_t */

struct kvmfault__past {			/* an event and its fault */
	struct kvmfault_event event;
	struct kvmfault_fault fault;
};

/* operand.c: the registers that address an x86 instruction's memory operand */
struct kvmfault__x86 {
	uint64_t gpr[16];	/* rax rcx rdx rbx rsp rbp rsi rdi r8 ... */
	uint64_t rip;
	uint64_t segment[6];	/* bases: es cs ss ds fs gs */
	bool long_mode;		/* 64-bit code */
	bool big;		/* 32-bit code, if not 64-bit */
};
#define KVMFAULT__CODE 15	/* bytes of the longest instruction */

/* delegate.c: work for a vCPU that may make system calls. It uses nothing else
 * of the vCPU, which may be freed while a worker does the task. */
struct kvmfault__task;
typedef void kvmfault__work(struct kvmfault__task *task,
			    struct kvmfault__answer *answer);
struct kvmfault__task {
	kvmfault__work *work;
	struct kvmfault__seat *seat;	/* of the thread that does it */
	struct kvmfault_fault *fault;	/* the vCPU's, or the worker's copy */
	int fd;				/* the vCPU's, or the worker's own */
	bool anew;			/* no task was done for the fault yet */
	bool prefault;			/* map the rest of a window after it */
	uint32_t space;			/* the vCPU's address space */
	uint64_t due;			/* the task waits until then; 0: no */
	uint64_t began, ended;		/* times of kvmfault__sys_now() */
	uint64_t gpa;			/* mmio: the part's */
	uint64_t rip;			/* emulation: of the last instruction,
					 * and then of this one */
	bool last;			/* emulation: the budget has no other
					 * try without progress */
	bool left;			/* emulation: the vCPU's thread left
					 * before the task was done */
	struct kvmfault__gfns pages;	/* conversion: its pages, */
	bool private;			/* what they are to be, */
	uint64_t reached;		/* and the end of those converted */
};

/* A thread that does the tasks of one vCPU, and those of another after that
 * vCPU is freed. It has its own copies of all that a task uses. */
struct kvmfault__worker {
	struct kvmfault__worker *next;
	struct kvmfault__seat *seat;
	pthread_t thread;
	bool taken;			/* by a vCPU, under the VM's lock */
	uint8_t leave;			/* the seat's immediate_exit: the
					 * vCPU's thread has left */
	int fd;				/* a duplicate of the vCPU's, or -1 */
	_Atomic uint32_t state;		/* KVMFAULT__TASK_*: a futex word */
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
	struct kvmfault_stats before;	/* counts of the seat's earlier users */
	/* guard.c: the last faults' keys, and retries without progress */
	struct kvmfault__guard {
		bool faulted;		/* since the last plain exit */
		uint64_t history[KVMFAULT__HISTORY];
		uint32_t newest;
		uint32_t streak;	/* retries without progress, in a row */
		uint32_t not_now;	/* answers of -EAGAIN, in a row */
	} guard;
	/* history.c: the last faults, and pointers to them, newest first */
	struct kvmfault__history {
		struct kvmfault__past ring[KVMFAULT_HISTORY_COUNT];
		uint64_t count;
		const struct kvmfault_event *events[KVMFAULT_HISTORY_COUNT];
	} past;
	/* vcpu.c: a source that failed, how often, and when to ask it again */
	struct kvmfault__source_tries {
		uint64_t key;		/* the guard's */
		uint32_t failures;
		uint64_t due;		/* 0: now */
	} source;
	/* mmio.c, emulation.c: an access that is half done */
	struct kvmfault__resume {
		uint64_t mmio_gpa;
		uint32_t mmio_length;
		uint64_t emulation_rip;	/* of the last instruction */
		bool emulating;		/* interrupted: #UD may be queued */
	} resume;
	/* signal.c: the SIGBUS that ended KVM_RUN */
	struct kvmfault__vcpu_sigbus {
		struct kvmfault__seat *handler;	/* of the VMM's handler */
		bool masked;	/* the library has set KVM's signal mask */
		uint64_t *own_mask;	/* the VMM's mask, or NULL */
		uint64_t own_mask_value;
		atomic_bool noted;	/* the handler has filled note */
		_Alignas(8) char siginfo[KVMFAULT__SIGINFO];
		char note[KVMFAULT__SIGINFO];
	} sigbus;
	/* delegate.c: the fault's tasks */
	struct kvmfault__vcpu_task {
		struct kvmfault__worker *worker; /* NULL: the vCPU's thread */
		bool anew;		/* no task was done for the fault yet */
		uint64_t began, ended;	/* the first, the last; 0: none */
	} task;
};

/* The guard compares faults by this: the page's number, or a stand-in where no
 * address is known. */
static inline uint64_t
kvmfault__guard_key(const struct kvmfault_vcpu *vcpu)
{
	const struct kvmfault_fault *fault = &vcpu->fault;

	if (fault->kind == KVMFAULT_KIND_EMULATION)
		return ~vcpu->resume.emulation_rip;	/* not a page number */
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
 * without a fault, which starts the guard anew. Without progress the pauses
 * grow, and the retry budget ends the retries.
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
/* True if one more answer without progress would use up the retry budget. */
bool kvmfault__last_retry(const struct kvmfault_vcpu *vcpu);

/* history.c: keep the fault and its result for a person to read later */
void kvmfault__remember(struct kvmfault_vcpu *vcpu);

/* signal.c: set up the delivery of a marker's SIGBUS during KVM_RUN. -EINVAL:
 * the kernel would not deliver the signal there. */
int kvmfault__signal_new(struct kvmfault_vcpu *vcpu,
			 const struct kvmfault_vcpu_options *options);
void kvmfault__signal_free(struct kvmfault_vcpu *vcpu);
/* After KVM_RUN was interrupted: true if a SIGBUS did it, and then it is in
 * vcpu->sigbus.siginfo. */
bool kvmfault__signal_take(struct kvmfault_vcpu *vcpu);

/* delegate.c */
/* Do the task on this thread or have the worker do it. Returns 0, or -EINTR if
 * a signal or immediate_exit came, with INTERRUPTED in the answer. */
int kvmfault__perform(struct kvmfault_vcpu *vcpu, struct kvmfault__task *task,
		      struct kvmfault__answer *answer);
/* Fill in a task about the vCPU's fault. */
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

/* On the vCPU's thread: the VMM does not wait any more for a page that was
 * answered with PENDING. */
void kvmfault__forget_pending(struct kvmfault_vcpu *vcpu);
/* Take a worker for a vCPU with the delegate profile, and give the worker back,
 * also after an error. Giving waits for no task; workers end with the
 * context. */
int kvmfault__worker_take(struct kvmfault_vcpu *vcpu);
void kvmfault__worker_give(struct kvmfault_vcpu *vcpu);
void kvmfault__workers_free(struct kvmfault_vm *vm);

/* mmio.c */
void kvmfault__mmio(struct kvmfault_vcpu *vcpu,
		    struct kvmfault__answer *answer);
/* emulation.c */
void kvmfault__emulation(struct kvmfault_vcpu *vcpu,
			 struct kvmfault__answer *answer);
/* operand.c */
/* Compute the operand's linear address. False: the instruction has none, or
 * these bytes do not tell. */
bool kvmfault__x86_operand(const struct kvmfault__x86 *cpu,
			   const uint8_t *code, size_t length,
			   uint64_t *address);

/* prefault.c: have KVM map a window that came into the guest's page tables */
bool kvmfault__can_prefault(int vcpu_fd);
void kvmfault__prefault(const struct kvmfault__task *task,
			const struct kvmfault__answer *answer);

/* sigbus.c: resolve a SIGBUS at fault->hva, and fill in the gpa. NOT_A_FAULT:
 * no mapping of guest memory is at that address. */
void kvmfault__sigbus(struct kvmfault__seat *seat, struct kvmfault_fault *fault,
		      struct kvmfault__answer *answer);

/* stats.c: add all counts of the vCPU's seats, also those of earlier users */
void kvmfault__vcpu_counted(const struct kvmfault_vcpu *vcpu,
			    struct kvmfault_stats *sum);

/* service.c: warn once if vCPUs may miss pages and no service answers them */
void kvmfault__expect_service(struct kvmfault_vm *vm);

/* The same as kvmfault__drain(), for threads of the library that may sleep on a
 * page: while no thread of a service reads messages, this one answers them. */
void kvmfault__drain_sleepers(struct kvmfault_vm *vm,
			      bool (*busy)(struct kvmfault__seat *seat,
					   void *what), void *what);

/* message.c: read the messages that are there, and discard the pages that they
 * say are gone. Then decode each of them: true if it is a fault. */
struct uffd_msg;
ssize_t kvmfault__messages_read(struct kvmfault__seat *seat,
			   struct kvmfault_uffd *uffd, struct uffd_msg *msg,
			   size_t count);
bool kvmfault__message_decode(struct kvmfault__seat *seat, uint32_t space,
			  const struct uffd_msg *msg,
			  struct kvmfault__message *item);

/* Add a userfaultfd to the service's epoll set (EPOLL_CTL_ADD), or with
 * EPOLL_CTL_MOD arm it again after EPOLLONESHOT. */
int kvmfault__uffd_listen(struct kvmfault_uffd *uffd, int op);
/* Under the VM's lock. If on, a message wakes one thread of the service, which
 * arms the userfaultfd again when it has read that message. */
void kvmfault__pass_baton(struct kvmfault_vm *vm, bool on);

#endif
