/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: which thread does a vCPU's work. In: a task of
 * the vCPU's thread. Out: that thread has done the task, or with the delegate
 * profile the vCPU's worker has. The vCPU's thread then makes only futex calls,
 * to wait and to wake. A worker sleeps where an inline vCPU's thread would: for
 * a page that another thread fetches, and in the kernel on a missing page,
 * until the service answers the page's message. So no thread that reads
 * messages is ever a worker: it could wait for a message that it has to read
 * itself.
 */

#include <string.h>

#include "../os/abi.h"
#include "entry.h"

#define LONG (1ULL << 60)		/* ns: the worker sleeps until woken */

/* ---- the thread that does the task ---- */

/* On a worker: true if the vCPU's thread has left, which may be in KVM_RUN by
 * now. */
static bool worker_is_left(const struct kvmfault__seat *seat)
{
	return seat->task && kvmfault__exit_wanted(seat);
}

static int task_execute(struct kvmfault__task *task,
			struct kvmfault__answer *answer)
{
	if (task->anew)
		kvmfault__not_pending(task->seat);
	task->began = kvmfault__sys_now();
	if (task->due > task->began) {
		if (kvmfault__pause(task->seat, task->due - task->began))
			return -EINTR;
		task->began = kvmfault__sys_now();
	}
	task->work(task, answer);
	task->ended = kvmfault__sys_now();
	if (answer->length && task->prefault &&
	    answer->action == KVMFAULT_ACTION_RETRY &&
	    !worker_is_left(task->seat))
		kvmfault__prefault(task, answer);
	return 0;
}

/* The vCPU may be freed as soon as the state is not BUSY any more; the worker
 * stays. */
static void worker_do_task(struct kvmfault__worker *worker)
{
	uint32_t state;

	worker->err = task_execute(&worker->task, &worker->answer);
	if (worker->task.left)
		worker->err = -EINTR;
	state = atomic_load(&worker->state);
	do
		/* The VMM was not told PENDING: no page_ready() is due. */
		if (state & KVMFAULT__TASK_LEFT)
			kvmfault__not_pending(worker->seat);
	while (!atomic_compare_exchange_weak(&worker->state, &state,
					     state & KVMFAULT__TASK_STOP));
	kvmfault__sys_futex_wake(&worker->state);
}

static void *worker_run(void *arg)
{
	struct kvmfault__worker *worker = arg;
	uint32_t state;

	kvmfault__enter(&worker->seat->inside, worker->seat, NULL);
	while (!((state = atomic_load(&worker->state)) & KVMFAULT__TASK_STOP)) {
		if (state & KVMFAULT__TASK_BUSY)
			worker_do_task(worker);
		else
			kvmfault__sys_futex_wait(&worker->state, state, LONG);
	}
	kvmfault__exit(&worker->seat->inside);
	return NULL;
}

/* ---- the vCPU's thread ---- */

/*
 * Wait until the worker is idle. Returns -EINTR if a signal or immediate_exit
 * came; *left is true if the worker is busy still, and its answer is dropped.
 *
 * A wait of that worker in the library ends soon. Its waits in the kernel, in a
 * source or in a callback end in their own time.
 */
static int worker_await(struct kvmfault__seat *seat,
			struct kvmfault__worker *worker, bool *left)
{
	uint32_t state = atomic_load(&worker->state);
	int err = 0;

	while (state & KVMFAULT__TASK_BUSY) {
		if (!err) {
			err = kvmfault__sleep(seat, &worker->state, state);
		} else if (!(state & KVMFAULT__TASK_LEFT)) {
			__atomic_store_n(&worker->leave, 1, __ATOMIC_RELAXED);
			atomic_fetch_or(&worker->state, KVMFAULT__TASK_LEFT);
		} else if (state & KVMFAULT__TASK_HELD) {
			kvmfault__sys_futex_wait(&worker->state, state,
						 KVMFAULT__SLICE);
		} else {
			break;
		}
		state = atomic_load(&worker->state);
	}
	*left = state & KVMFAULT__TASK_BUSY;
	return err;
}

static void worker_post_task(struct kvmfault__worker *worker,
			     const struct kvmfault__task *task)
{
	worker->fault = *task->fault;
	worker->task = *task;
	worker->task.fault = &worker->fault;
	worker->task.seat = worker->seat;
	worker->task.fd = worker->fd;
	__atomic_store_n(&worker->leave, 0, __ATOMIC_RELAXED);
	atomic_store(&worker->state, KVMFAULT__TASK_BUSY);
	kvmfault__sys_futex_wake(&worker->state);
}

static int task_perform_by_worker(struct kvmfault_vcpu *vcpu,
				  struct kvmfault__task *task,
				  struct kvmfault__answer *answer)
{
	struct kvmfault__worker *worker = vcpu->task.worker;
	bool left;
	int err = worker_await(vcpu->seat, worker, &left);

	/* A vCPU's thread that is wanted elsewhere begins no task. */
	if (err || kvmfault__exit_wanted(vcpu->seat))
		return -EINTR;
	worker_post_task(worker, task);
	worker_await(vcpu->seat, worker, &left);
	/* The worker changes this member only while it holds the vCPU, and a
	 * thread cannot leave then: so it is valid also if this one has
	 * left. */
	task->reached = worker->task.reached;
	if (left)
		return -EINTR;
	/* A task that has ended counts as done, even if a signal came. */
	*task->fault = worker->fault;
	task->began = worker->task.began;
	task->ended = worker->task.ended;
	task->rip = worker->task.rip;
	*answer = worker->answer;
	return worker->err;
}

static int task_perform(struct kvmfault_vcpu *vcpu,
			struct kvmfault__task *task,
			struct kvmfault__answer *answer)
{
	return vcpu->task.worker ? task_perform_by_worker(vcpu, task, answer) :
				   task_execute(task, answer);
}

/* KVM_PRE_FAULT_MEMORY may write a record of a fault to kvm_run. The VMM, or
 * KVM on its next entry, may still need the old contents: they are put back. */
static int task_perform_saving_run(struct kvmfault_vcpu *vcpu,
				   struct kvmfault__task *task,
				   struct kvmfault__answer *answer)
{
	struct kvm_run *run = vcpu->run;
	struct kvmfault__memory_fault record;
	uint32_t exit_reason = run->exit_reason;
	int err;

	memcpy(&record, &run->hw, sizeof(record));
	err = task_perform(vcpu, task, answer);
	memcpy(&run->hw, &record, sizeof(record));
	run->exit_reason = exit_reason;
	return err;
}

int kvmfault__perform(struct kvmfault_vcpu *vcpu, struct kvmfault__task *task,
		      struct kvmfault__answer *answer)
{
	int err;

	/* A worker may prefault after the vCPU's thread has left, and KVM write
	 * to kvm_run then. Only after KVM_EXIT_MEMORY_FAULT is that
	 * harmless. */
	task->prefault &= !vcpu->task.worker ||
			  task->fault->kind == KVMFAULT_KIND_EXIT;
	err = task->prefault ? task_perform_saving_run(vcpu, task, answer) :
			       task_perform(vcpu, task, answer);
	if (err) {
		kvmfault__say(answer, KVMFAULT_ACTION_INTERRUPTED);
		return err;
	}
	vcpu->task.anew = false;
	if (!vcpu->task.began)
		vcpu->task.began = task->began;
	vcpu->task.ended = task->ended;
	return 0;
}

void kvmfault__forget_pending(struct kvmfault_vcpu *vcpu)
{
	if (!vcpu->task.worker)
		kvmfault__not_pending(vcpu->seat);
	else if (!(atomic_load(&vcpu->task.worker->state) &
		   KVMFAULT__TASK_BUSY))
		kvmfault__not_pending(vcpu->task.worker->seat);
	/* Else the worker was left, and calls this itself: worker_do_task(). */
}

/* ---- set-up ---- */

static void worker_close_fd(struct kvmfault__worker *worker)
{
	if (worker->fd >= 0)
		kvmfault__sys_close(worker->fd);
	worker->fd = -1;
}

static int worker_new(struct kvmfault_vm *vm, struct kvmfault__worker **worker)
{
	struct kvmfault__worker *new = kvmfault__sys_alloc(sizeof(*new), 0);
	int err;

	if (!new)
		return -ENOMEM;
	new->fd = -1;
	new->taken = true;
	new->seat = kvmfault__seat_take(vm);
	err = new->seat ? 0 : -ENOMEM;
	if (!err) {
		new->seat->task = &new->state;
		new->seat->immediate_exit = &new->leave;
		err = kvmfault__sys_thread(&new->thread, worker_run, new,
					   "kvmfault-vcpu");
	}
	if (err) {
		if (new->seat)
			kvmfault__seat_give(new->seat);
		kvmfault__sys_free(new);
		return err;
	}
	kvmfault__sys_lock(&vm->lock);
	new->next = vm->workers;
	vm->workers = new;
	kvmfault__sys_unlock(&vm->lock);
	*worker = new;
	return 0;
}

/* Take a worker that is idle and that no vCPU has: its last one was freed.
 * NULL: there is none. */
static struct kvmfault__worker *worker_take_idle(struct kvmfault_vm *vm)
{
	struct kvmfault__worker *worker;

	kvmfault__sys_lock(&vm->lock);
	worker = vm->workers;
	while (worker && (worker->taken ||
			  atomic_load(&worker->state) & KVMFAULT__TASK_BUSY))
		worker = worker->next;
	if (worker)
		worker->taken = true;
	kvmfault__sys_unlock(&vm->lock);
	return worker;
}

int kvmfault__worker_take(struct kvmfault_vcpu *vcpu)
{
	struct kvmfault__worker *worker = worker_take_idle(vcpu->vm);
	int err = worker ? 0 : worker_new(vcpu->vm, &worker);

	if (err)
		return err;
	vcpu->task.worker = worker;
	worker->seat->vcpu = vcpu;
	worker->seat->no_wait = vcpu->seat->no_wait;
	kvmfault__failures_forget(worker->seat);
	worker_close_fd(worker);
	/* A duplicate: the VMM may close its own descriptor while the worker
	 * still does a task that the vCPU's thread has left, and the number may
	 * come to be another file's. */
	worker->fd = kvmfault__sys_dup(vcpu->fd);
	return worker->fd < 0 ? worker->fd : 0;
}

void kvmfault__worker_give(struct kvmfault_vcpu *vcpu)
{
	struct kvmfault__worker *worker = vcpu->task.worker;

	if (!worker)
		return;
	if (!(atomic_load(&worker->state) & KVMFAULT__TASK_BUSY))
		worker_close_fd(worker);
	kvmfault__sys_lock(&vcpu->vm->lock);
	worker->taken = false;
	kvmfault__sys_unlock(&vcpu->vm->lock);
}

/* All memories are freed by now, so no worker sleeps on a page any more. */
void kvmfault__workers_free(struct kvmfault_vm *vm)
{
	struct kvmfault__worker *worker = vm->workers, *next;

	for (; worker; worker = next) {
		next = worker->next;
		atomic_fetch_or(&worker->state, KVMFAULT__TASK_STOP);
		kvmfault__sys_futex_wake(&worker->state);
		kvmfault__sys_join(worker->thread);
		worker_close_fd(worker);
		kvmfault__sys_free(worker);
	}
}
