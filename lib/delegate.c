/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the flow: who does a vCPU's work. In: a task of the vCPU's thread.
 * Out: done by that thread itself, or with the delegate profile by one of the
 * service's, as a job. The vCPU's thread then makes no call but to wait for a
 * futex and to write to an eventfd; and all that the job would wait for is
 * waited for by that thread, so that the service's never wait for each other.
 */

#include <sys/epoll.h>

#include "internal.h"

#define SLICE 10000000ULL	/* 10 ms */

/*
 * A seat's job. Its state says who has the seat and the vCPU's task: while it
 * is posted or running the job, else the vCPU's thread.
 */
enum {
	IDLE,
	POSTED,			/* in the list */
	DROPPED,		/* in the list, and nobody wants it */
	RUNNING,
	DONE,			/* and what came of it can be seen */
};
#define STATE 7U
#define LEFT (1U << 3)		/* the vCPU's thread has left: a signal */
#define HELD (1U << 4)		/* and it must not */

/* ---- the thread that does it ---- */

static void execute(struct kvmfault_vcpu *vcpu, struct kvmfault__answer *answer)
{
	struct kvmfault__outcome *outcome = &vcpu->outcome;
	const struct kvmfault__task *task = vcpu->task;

	outcome->began = kvmfault__sys_now();
	outcome->pause = 0;
	if (task->due > outcome->began) {
		outcome->pause = task->due - outcome->began;
		return;
	}
	task->work(vcpu, answer);
	outcome->ended = kvmfault__sys_now();
	if (answer->length && vcpu->prefault &&
	    answer->action == KVMFAULT_RETRY &&
	    kvmfault__hold_vcpu(vcpu->seat)) {
		kvmfault__prefault(vcpu, answer);
		kvmfault__free_vcpu(vcpu->seat);
	}
}

/* The list is pushed to without a lock, and taken as a whole. */
struct kvmfault__seat *kvmfault__job_take(struct kvmfault_vm *vm)
{
	struct kvmfault__seat *seat, *next;

	if (!vm->taken) {
		seat = atomic_exchange(&vm->posted, NULL);
		for (; seat; seat = next) {
			next = seat->next_job;
			seat->next_job = vm->taken;
			vm->taken = seat;
		}
	}
	seat = vm->taken;
	if (seat)
		vm->taken = seat->next_job;
	return seat;
}

void kvmfault__job_run(struct kvmfault__seat *seat)
{
	uint32_t state = atomic_load(&seat->job), to;
	struct kvmfault__inside inside;

	do
		to = (state & STATE) == DROPPED ? IDLE :
			RUNNING | (state & LEFT);
	while (!atomic_compare_exchange_weak(&seat->job, &state, to));
	if (to == IDLE)
		return;
	kvmfault__enter(&inside, seat, NULL);
	execute(seat->vcpu, &seat->vcpu->outcome.answer);
	kvmfault__exit(&inside);
	/* The vCPU may be freed from here on; the seat stays. */
	atomic_store(&seat->job, DONE);
	kvmfault__sys_futex_wake(&seat->job);
}

bool kvmfault__hold_vcpu(struct kvmfault__seat *seat)
{
	uint32_t state = atomic_load(&seat->job);

	if (!seat->delegate)
		return true;
	do {
		if (state & LEFT)
			return false;
	} while (!atomic_compare_exchange_weak(&seat->job, &state,
					       state | HELD));
	return true;
}

void kvmfault__free_vcpu(struct kvmfault__seat *seat)
{
	if (seat->delegate)
		atomic_fetch_and(&seat->job, ~HELD);
}

/* ---- the vCPU's thread ---- */

static void post(struct kvmfault_vcpu *vcpu, const struct kvmfault__task *task)
{
	struct kvmfault__seat *seat = vcpu->seat;
	struct kvmfault_vm *vm = vcpu->vm;

	vcpu->job = *task;
	vcpu->job_fault = *task->fault;
	vcpu->job.fault = &vcpu->job_fault;
	vcpu->task = &vcpu->job;
	/* What was dropped is in its place in the list still. */
	if (atomic_exchange(&seat->job, POSTED) != DROPPED) {
		seat->next_job = atomic_load(&vm->posted);
		while (!atomic_compare_exchange_weak(&vm->posted,
						     &seat->next_job, seat))
			;
	}
	kvmfault__sys_eventfd_signal(vm->jobs);
}

static bool unfinished(uint32_t state)
{
	return (state & STATE) == POSTED || (state & STATE) == RUNNING;
}

bool kvmfault__job_has(const struct kvmfault__seat *seat)
{
	return unfinished(atomic_load(&seat->job));
}

/* Until nothing of this vCPU's is posted or running. -EINTR: a signal or
 * immediate_exit came; then *left: it has not ended. */
static int await_job(struct kvmfault__seat *seat, bool *left)
{
	uint32_t state = atomic_load(&seat->job);
	int err = 0;

	*left = false;
	while (unfinished(state)) {
		if (!err) {
			err = kvmfault__sleep(seat, &seat->job, state);
		} else if (state & HELD) {
			kvmfault__sys_futex_wait(&seat->job, state, SLICE);
		} else if (atomic_compare_exchange_strong(&seat->job, &state,
							  state | LEFT)) {
			*left = true;
			break;
		}
		state = atomic_load(&seat->job);
	}
	return err;
}

/* What became of a job that was left behind is nobody's: the pages know. */
static int have_done(struct kvmfault_vcpu *vcpu,
		     const struct kvmfault__task *task,
		     struct kvmfault__answer *answer)
{
	struct kvmfault__seat *seat = vcpu->seat;
	bool left;
	int err = await_job(seat, &left);

	if (err)
		return err;
	kvmfault__forget_awaited(seat);
	if (vcpu->anew)
		kvmfault__not_pending(seat);
	post(vcpu, task);
	/* What has ended is done, even if a signal came meanwhile. */
	await_job(seat, &left);
	if (left)
		return -EINTR;
	*answer = vcpu->outcome.answer;
	atomic_store(&seat->job, IDLE);
	return 0;
}

/* Here and now. */
static int do_it(struct kvmfault_vcpu *vcpu, const struct kvmfault__task *task,
		 struct kvmfault__answer *answer)
{
	if (vcpu->anew)
		kvmfault__not_pending(vcpu->seat);
	vcpu->task = task;
	execute(vcpu, answer);
	return 0;
}

/* Sleep for what a job could not wait for. */
static int sleep_for(struct kvmfault__seat *seat)
{
	struct kvmfault__bucket *bucket = seat->awaited;
	int err = 0;

	while (!err && atomic_load(&bucket->sequence) == seat->awaited_sequence)
		err = kvmfault__sleep(seat, &bucket->sequence,
				      seat->awaited_sequence);
	return err;
}

/* 0: it was done; 1: it is to be done now; -EINTR. */
static int look(struct kvmfault_vcpu *vcpu,
		const struct kvmfault__answer *answer)
{
	struct kvmfault__seat *seat = vcpu->seat;
	int err;

	if (vcpu->outcome.pause) {
		err = kvmfault__pause(seat, vcpu->outcome.pause);
		return err ? err : 1;
	}
	if (!vcpu->began)
		vcpu->began = vcpu->outcome.began;
	vcpu->ended = vcpu->outcome.ended;
	seat->waited = false;
	if (!seat->awaited || answer->action != KVMFAULT_INTERRUPTED) {
		kvmfault__forget_awaited(seat);
		return 0;
	}
	err = sleep_for(seat);
	kvmfault__forget_awaited(seat);
	seat->waited = !err;
	return err ? err : 1;
}

int kvmfault__perform(struct kvmfault_vcpu *vcpu, struct kvmfault__task *task,
		      struct kvmfault__answer *answer)
{
	int err;

	do {
		err = vcpu->seat->delegate ? have_done(vcpu, task, answer) :
					     do_it(vcpu, task, answer);
		if (err)
			break;
		vcpu->anew = false;
		task->due = 0;
		err = look(vcpu, answer);
	} while (err > 0);
	if (err)
		kvmfault__say(answer, KVMFAULT_INTERRUPTED);
	return err;
}

/* ---- set-up ---- */

int kvmfault__jobs_new(struct kvmfault_vm *vm)
{
	struct epoll_event event = {
		.events = EPOLLIN, .data.u64 = KVMFAULT__JOBS,
	};
	int err, fd, none = -1;

	if (atomic_load(&vm->jobs) >= 0)
		return 0;
	fd = kvmfault__sys_eventfd();
	if (fd < 0)
		return fd;
	err = kvmfault__sys_epoll_ctl(vm->epoll, EPOLL_CTL_ADD, fd, &event);
	if (err || !atomic_compare_exchange_strong(&vm->jobs, &none, fd))
		kvmfault__sys_close(fd);
	return err;
}

void kvmfault__job_drop(struct kvmfault_vcpu *vcpu)
{
	struct kvmfault__seat *seat = vcpu->seat;
	uint32_t state = atomic_load(&seat->job);

	while (unfinished(state)) {
		if ((state & STATE) == RUNNING)
			kvmfault__sys_futex_wait(&seat->job, state, SLICE);
		else if (atomic_compare_exchange_strong(&seat->job, &state,
							DROPPED))
			break;
		state = atomic_load(&seat->job);
	}
	if ((state & STATE) == DONE)
		atomic_store(&seat->job, IDLE);
	kvmfault__forget_awaited(seat);
}
