/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Kind uffd: messages of all threads that sleep in the kernel on a missing
 * page. In: every userfaultfd of the VM. Out: the one path has brought the page
 * and the sleeper is awake. A message that cannot be answered now is deferred,
 * and is tried again here when its time has come (the list: resolve/defer.c):
 * no thread spins, and no sleeper is forgotten.
 */

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

#include "../os/abi.h"
#include "../core/poll.h"
#include "entry.h"

#define MESSAGES 16
#define EVENTS 8
#define THREADS_MAX 256

/* Ids in the epoll set that no userfaultfd has. */
enum { TIMER = KVMFAULT__SPACES, DEADLINES, STOP };

struct kvmfault_service {
	struct kvmfault_vm *vm;
	struct kvmfault__seat *seat;	/* for deletion, which cannot fail */
	int stop;
	size_t batch;			/* messages that one read takes */
	uint32_t poll_us;
	atomic_bool polled;		/* a thread polls before it sleeps */
	atomic_bool stopping;		/* threads end after what they do now */
	struct kvmfault__deferred deferred;
	unsigned int threads;
	pthread_t thread[];
};

static void service_expire_fetches(struct kvmfault_service *service)
{
	uint64_t expirations;

	kvmfault__sys_read(service->deferred.deadlines, &expirations,
			   sizeof(expirations));
	atomic_store(&service->deferred.next_deadline, UINT64_MAX);
	kvmfault__fetches_expire(service->vm, kvmfault__sys_now());
	kvmfault__deadline_lower(&service->deferred,
				 kvmfault__fetches_due(service->vm));
}

/* The message is deferred before the VMM is told, which may take long: so a
 * repeated message is recognised meanwhile. A thread that answers in the place
 * of a service (NULL) wakes all sleepers later instead. */
static void service_defer_message(struct kvmfault_service *service,
				  struct kvmfault__seat *seat,
				  struct kvmfault__message *item,
				  const struct kvmfault_mapping *mapping,
				  const struct kvmfault__answer *answer)
{
	bool failed = answer->action == KVMFAULT_ACTION_UNRESOLVED;

	item->tries.failures += failed;
	if (service)
		kvmfault__defer(&service->deferred, seat, item, failed);
	else
		atomic_store(&seat->vm->unserved, true);
	if (failed)
		kvmfault__not_resolved(seat, item, mapping, answer->reason,
				       answer->error);
}

/* Resolve the fault, or defer its message. */
static void service_serve_fault(struct kvmfault_service *service,
				struct kvmfault__seat *seat,
				struct kvmfault__message *item)
{
	uint64_t began = kvmfault__sys_now();
	struct kvmfault__target target = { 0 };
	struct kvmfault__answer answer;
	struct kvmfault_mapping *mapping;
	bool done;

	mapping = kvmfault__mapping_find(seat, item->space, item->fault.hva);
	if (!mapping || !mapping->uffd) {
		/* The mapping was removed, and the kernel has woken its
		 * sleepers. Memory without a source may be there now. */
		kvmfault__leave(seat);
		return;
	}
	target.memory = mapping->span.memory;
	target.origin = mapping;
	target.offset = item->fault.hva - mapping->host;
	target.tries = item->tries;
	kvmfault__mark(seat, &target);
	kvmfault__resolve(seat, &item->fault, &target, &answer);
	kvmfault__mark_ahead(seat, &target);
	done = answer.action == KVMFAULT_ACTION_RETRY && !answer.error;
	/* If a fetch in flight has the message, the fetch answers it. */
	if (!done && !answer.detached)
		service_defer_message(service, seat, item, mapping, &answer);
	kvmfault__leave(seat);
	kvmfault__add(seat, KVMFAULT__COUNTER(action) + answer.action, 1);
	if (done && !answer.detached)
		kvmfault__latency(seat, kvmfault__sys_now() - began);
}

static void service_take_fault(struct kvmfault_service *service,
			       struct kvmfault__seat *seat,
			       struct kvmfault__message *item)
{
	/* Another sleeper sent this for a page that is tried again already. */
	if (kvmfault__is_deferred(&service->deferred, item->space,
				  item->fault.hva)) {
		kvmfault__count(seat, repeated);
		return;
	}
	if (atomic_load(&service->stopping))
		kvmfault__defer(&service->deferred, seat, item, false);
	else
		service_serve_fault(service, seat, item);
}

/* Returns how many messages were read, or less than 1. */
static inline ssize_t service_read_uffd(struct kvmfault_vm *vm,
				 struct kvmfault__seat *seat, uint32_t id,
				 struct uffd_msg *msg, size_t batch,
				 uint32_t *space)
{
	struct kvmfault_uffd *uffd;
	ssize_t n = 0;

	uffd = kvmfault__hold(seat, KVMFAULT__HAZARD_UFFD, &vm->uffds[id]);
	if (uffd) {
		*space = uffd->space;
		n = kvmfault__messages_read(seat, uffd, msg, batch);
		if (atomic_load(&vm->baton))
			kvmfault__uffd_listen(uffd, EPOLL_CTL_MOD);
	}
	/* A callback may free the userfaultfd from here on. */
	kvmfault__unhold(seat, KVMFAULT__HAZARD_UFFD);
	return n;
}

static void service_read_messages(struct kvmfault_service *service,
				  struct kvmfault__seat *seat, uint32_t id)
{
	struct uffd_msg msg[MESSAGES];
	struct kvmfault__message item;
	uint32_t space = 0;
	ssize_t n, i;

	n = service_read_uffd(service->vm, seat, id, msg, service->batch,
			      &space);
	for (i = 0; i < n; i++)
		if (kvmfault__message_decode(seat, space, &msg[i], &item))
			service_take_fault(service, seat, &item);
}

static void service_retry_deferred(struct kvmfault_service *service,
				   struct kvmfault__seat *seat)
{
	uint64_t expirations, now = kvmfault__sys_now();
	struct kvmfault__message item;

	kvmfault__sys_read(service->deferred.timer, &expirations,
			   sizeof(expirations));
	kvmfault__wake_without_room(&service->deferred, seat, now);
	/* A message that is deferred again is due later than now, so the loop
	 * ends. The timer is armed first: if this try takes long, another
	 * thread takes the next message. */
	while (!atomic_load(&service->stopping) &&
	       kvmfault__deferred_take(&service->deferred, now, &item)) {
		kvmfault__deferred_arm(&service->deferred);
		service_serve_fault(service, seat, &item);
	}
	kvmfault__deferred_arm(&service->deferred);
}

/* A userfaultfd that has failed would wake epoll_wait() for ever. */
static void service_mute_uffd(struct kvmfault_vm *vm, uint32_t id,
			      struct kvmfault__seat *seat)
{
	struct kvmfault_uffd *uffd = kvmfault__hold(seat, KVMFAULT__HAZARD_UFFD,
						    &vm->uffds[id]);

	if (uffd)
		kvmfault__sys_epoll_ctl(vm->epoll, EPOLL_CTL_DEL, uffd->fd,
					NULL);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_UFFD);
	kvmfault__log(vm, KVMFAULT_LOG_ERROR,
		      "a userfaultfd has failed, and the service does not read it any more: remove its mappings, since threads that miss a page there sleep");
}

/* Wait once and serve what came. Returns the number of events, or -1: stop. */
static int service_serve_events(struct kvmfault_service *service,
				struct kvmfault__seat *seat, int timeout)
{
	struct epoll_event ready[EVENTS];
	int i, n;

	n = kvmfault__sys_epoll_wait(service->vm->epoll, ready,
				     service->batch == 1 ? 1 : EVENTS, timeout);
	for (i = 0; i < n; i++) {
		uint64_t id = ready[i].data.u64;

		if (id == STOP || atomic_load(&service->stopping))
			return -1;
		if (id == TIMER)
			service_retry_deferred(service, seat);
		else if (id == DEADLINES)
			service_expire_fetches(service);
		else if (!(ready[i].events & EPOLLIN))
			service_mute_uffd(service->vm, (uint32_t)id, seat);
		else
			service_read_messages(service, seat, (uint32_t)id);
	}
	return n > 0 ? n : 0;
}

/* Poll for a while before sleeping, on one thread at a time. Returns the same
 * as service_serve_events(). */
static int service_poll_events(struct kvmfault_service *service,
			       struct kvmfault__seat *seat,
			       struct kvmfault__poll *poll)
{
	int n = 0;

	if (atomic_load(&service->polled) || !kvmfault__poll_begin(poll) ||
	    atomic_exchange(&service->polled, true))
		return 0;
	while (!n && kvmfault__poll_again(poll))
		n = service_serve_events(service, seat, 0);
	atomic_store(&service->polled, false);
	kvmfault__poll_end(poll, n);
	return n;
}

static void *service_run_thread(void *arg)
{
	struct kvmfault__seat *seat = arg;
	struct kvmfault_service *service = seat->service;
	struct kvmfault__poll poll;
	int n = 0;

	kvmfault__enter(&seat->inside, seat, NULL);
	kvmfault__poll_init(&poll, service->poll_us);
	while (n >= 0) {
		n = n ? service_poll_events(service, seat, &poll) : 0;
		if (!n)
			n = service_serve_events(service, seat, -1);
	}
	seat->service = NULL;
	kvmfault__call_end(seat);
	return NULL;
}

static int service_start_threads(struct kvmfault_service *service,
				 unsigned int threads)
{
	struct kvmfault__seat *seat;
	char name[16];
	int err;

	while (service->threads < threads) {
		seat = kvmfault__seat_take(service->vm);
		if (!seat)
			return -ENOMEM;
		seat->service = service;
		snprintf(name, sizeof(name), "kvmfault/%u", service->threads);
		err = kvmfault__sys_thread(&service->thread[service->threads],
					   service_run_thread, seat, name);
		if (err) {
			kvmfault__seat_give(seat);
			return err;
		}
		service->threads++;
	}
	return 0;
}

static int service_add_event(struct kvmfault_vm *vm, int fd, uint64_t id)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = id };

	return kvmfault__sys_epoll_ctl(vm->epoll, EPOLL_CTL_ADD, fd, &event);
}

static int service_open_descriptors(struct kvmfault_service *service)
{
	int err;

	service->stop = service->deferred.deadlines = -1;
	service->deferred.timer = kvmfault__sys_timerfd();
	if (service->deferred.timer < 0)
		return service->deferred.timer;
	service->deferred.deadlines = kvmfault__sys_timerfd();
	if (service->deferred.deadlines < 0)
		return service->deferred.deadlines;
	service->stop = kvmfault__sys_eventfd();
	if (service->stop < 0)
		return service->stop;
	err = service_add_event(service->vm, service->deferred.timer, TIMER);
	if (!err)
		err = service_add_event(service->vm,
					service->deferred.deadlines, DEADLINES);
	return err ? err : service_add_event(service->vm, service->stop, STOP);
}

/* Closing alone would leave the descriptor in the epoll set if a child of
 * fork() has it, too. */
static void service_close_event(struct kvmfault_vm *vm, int fd)
{
	if (fd < 0)
		return;
	kvmfault__sys_epoll_ctl(vm->epoll, EPOLL_CTL_DEL, fd, NULL);
	kvmfault__sys_close(fd);
}

static void service_delete(struct kvmfault_service *service)
{
	struct kvmfault_vm *vm = service->vm;
	unsigned int i;

	atomic_store(&service->stopping, true);
	if (service->threads)
		kvmfault__sys_eventfd_signal(service->stop);
	for (i = 0; i < service->threads; i++)
		kvmfault__sys_join(service->thread[i]);
	if (service->seat) {
		kvmfault__deferred_wake(&service->deferred, service->seat);
		kvmfault__seat_give(service->seat);
	}
	service_close_event(vm, service->deferred.timer);
	service_close_event(vm, service->deferred.deadlines);
	service_close_event(vm, service->stop);
	kvmfault__sys_lock(&vm->lock);
	kvmfault__pass_baton(vm, false);
	vm->services--;
	kvmfault__sys_unlock(&vm->lock);
	pthread_mutex_destroy(&service->deferred.lock);
	kvmfault__sys_free(service);
}

/* A context has at most one service. */
static int service_reserve_context(struct kvmfault_vm *vm)
{
	int err;

	kvmfault__sys_lock(&vm->lock);
	err = vm->services ? -EBUSY : 0;
	vm->services += !err;
	kvmfault__sys_unlock(&vm->lock);
	return err ? kvmfault__refuse(vm, err,
		"kvmfault_service_new: the context has a service already: call kvmfault_service_free() first") :
		0;
}

static int service_make(struct kvmfault_vm *vm,
			const struct kvmfault_service_options *o,
			struct kvmfault_service **service)
{
	struct kvmfault_service *new;

	new = kvmfault__sys_alloc(sizeof(*new) + o->threads *
				  sizeof(new->thread[0]), 0);
	if (!new) {
		kvmfault__sys_lock(&vm->lock);
		vm->services--;
		kvmfault__sys_unlock(&vm->lock);
		return -ENOMEM;
	}
	new->vm = vm;
	/* With several threads, none takes a message that another could answer
	 * at once. */
	new->batch = o->threads > 1 ? 1 : MESSAGES;
	new->poll_us = o->poll_us;
	pthread_mutex_init(&new->deferred.lock, NULL);
	atomic_store(&new->deferred.next_deadline, UINT64_MAX);
	*service = new;
	return 0;
}

/* The context has a service from here on. Sleepers of messages that were read
 * before are woken: they fault again, for this service. */
static void service_publish(struct kvmfault_service *service)
{
	struct kvmfault_vm *vm = service->vm;

	atomic_store(&vm->deferred, &service->deferred);
	atomic_store(&vm->read, service->threads);
	kvmfault__deadline_lower(&service->deferred, kvmfault__fetches_due(vm));
	if (atomic_exchange(&vm->unserved, false))
		kvmfault__wake_all(service->seat);
}

KVMFAULT__EXPORT
int kvmfault_service_new(struct kvmfault_vm *vm,
			 const struct kvmfault_service_options *options,
			 struct kvmfault_service **service)
{
	struct kvmfault_service_options ours;
	struct kvmfault_service *new;
	int err;

	if (!service)
		return kvmfault__no_place(vm, "kvmfault_service_new");
	*service = NULL;
	err = kvmfault__options_in(vm, "kvmfault_service_options", &ours,
				   sizeof(ours), options);
	if (err)
		return err;
	if (!vm)
		return -EINVAL;
	if (ours.threads > THREADS_MAX)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_service_options.threads: %u is more than %u, the most that a service can have",
			ours.threads, (unsigned int)THREADS_MAX);
	err = service_reserve_context(vm);
	if (!err)
		err = service_make(vm, &ours, &new);
	if (err)
		return err;
	err = service_open_descriptors(new);
	if (!err && ours.threads > 1) {
		kvmfault__sys_lock(&vm->lock);
		kvmfault__pass_baton(vm, true);
		kvmfault__sys_unlock(&vm->lock);
	}
	if (!err) {
		new->seat = kvmfault__seat_take(vm);
		err = new->seat ? service_start_threads(new, ours.threads) :
				  -ENOMEM;
	}
	if (err) {
		service_delete(new);
		return err;
	}
	service_publish(new);
	*service = new;
	return 0;
}

/*
 * Nothing tells the library of a message that no thread reads. So the calls
 * that set up vCPUs, regions and the delivery check this: if there is a vCPU
 * and a memory with a source, a page may be missed.
 */
void kvmfault__expect_service(struct kvmfault_vm *vm)
{
	bool missed;

	kvmfault__sys_lock(&vm->lock);
	missed = !vm->services && vm->vcpus && vm->tracked;
	kvmfault__sys_unlock(&vm->lock);
	if (missed && !atomic_exchange(&vm->service_missed, true))
		kvmfault__log(vm, KVMFAULT_LOG_WARNING,
			      "there is no service: every thread that misses a page of guest memory sleeps until there is one, vCPUs too; call kvmfault_service_new() before kvmfault_region_add() and kvmfault_vcpu_new()");
}

KVMFAULT__EXPORT
int kvmfault_service_fd(const struct kvmfault_service *service)
{
	return service ? service->vm->epoll : -EINVAL;
}

KVMFAULT__EXPORT
int kvmfault_service_dispatch(struct kvmfault_service *service)
{
	struct kvmfault__seat *seat;

	if (!service)
		return -EINVAL;
	seat = kvmfault__call_begin(service->vm);
	if (!seat)
		return -ENOMEM;
	service_serve_events(service, seat, 0);
	kvmfault__call_end(seat);
	return 0;
}

/* True while the seat's thread uses the service's deferred messages, for
 * example since a fetch has failed. */
static bool service_seat_is_deferring(struct kvmfault__seat *seat,
				      void *deferred)
{
	return kvmfault__held(seat, KVMFAULT__HAZARD_DEFERRED) == deferred;
}

KVMFAULT__EXPORT
int kvmfault_service_free(struct kvmfault_service *service)
{
	struct kvmfault_vm *vm;
	unsigned int i;

	if (!service || kvmfault__is_child(service->vm))
		return 0;
	for (i = 0; i < service->threads; i++)
		if (pthread_equal(service->thread[i], pthread_self()))
			return -EDEADLK;
	vm = service->vm;
	atomic_store(&vm->read, false);
	atomic_store(&vm->deferred, NULL);
	kvmfault__drain(vm, service_seat_is_deferring, &service->deferred);
	service_delete(service);
	/* One that waits for sleepers answers them itself from here on. */
	kvmfault__tell_drainers(vm);
	return 0;
}

/* A thread that answers while no thread of a service does. */
struct stand_in {
	struct kvmfault__seat *seat;
	uint64_t due;			/* when all sleepers are woken */
	uint64_t hva;			/* of the message that was answered */
	uint32_t space;			/* last, and how often it had come */
	uint32_t failures;		/* before */
};

/* A message that comes again was answered in vain. */
static void service_answer_message(struct stand_in *in,
				   struct kvmfault__message *item)
{
	if (item->space != in->space || item->fault.hva != in->hva)
		in->failures = 0;
	in->space = item->space;
	in->hva = item->fault.hva;
	item->tries.failures = in->failures++;
	service_serve_fault(NULL, in->seat, item);
	in->due = kvmfault__sys_now() +
		  kvmfault__backoff(KVMFAULT__FAILED_PAUSE,
				    item->tries.failures,
				    KVMFAULT__FAILED_STEPS);
}

/* Messages that were read, and not answered, come again. */
static void service_wake_unserved(struct stand_in *in)
{
	if (kvmfault__sys_now() >= in->due &&
	    atomic_exchange(&in->seat->vm->unserved, false))
		kvmfault__wake_all(in->seat);
}

/* Answer what has come, and do not wait for more. Events without a number of a
 * userfaultfd are of a service that begins, ends or has no threads. */
static void service_stand_in(struct stand_in *in)
{
	struct kvmfault_vm *vm = in->seat->vm;
	struct epoll_event ready[EVENTS];
	struct kvmfault__message item;
	struct uffd_msg msg;
	uint32_t id, space;
	int i, n;

	kvmfault__fetches_expire(vm, kvmfault__sys_now());
	service_wake_unserved(in);
	n = kvmfault__sys_epoll_wait(vm->epoll, ready, EVENTS, 0);
	for (i = 0; i < n; i++) {
		if (ready[i].data.u64 >= KVMFAULT__SPACES)
			continue;
		id = (uint32_t)ready[i].data.u64;
		if (!(ready[i].events & EPOLLIN))
			service_mute_uffd(vm, id, in->seat);
		else if (service_read_uffd(vm, in->seat, id, &msg, 1,
					   &space) == 1 &&
			 kvmfault__message_decode(in->seat, space, &msg, &item))
			service_answer_message(in, &item);
	}
}

static bool service_seat_is_of_thread(struct kvmfault__seat *seat, void *unused)
{
	(void)unused;
	return seat->service;
}

/* If this is a thread of the service, in a callback, it may be the only one. */
static bool service_has_reader(struct kvmfault_vm *vm)
{
	return atomic_load(&vm->read) &&
	       !kvmfault__within(service_seat_is_of_thread, NULL);
}

void kvmfault__drain_sleepers(struct kvmfault_vm *vm,
			      bool (*busy)(struct kvmfault__seat *seat,
					   void *what), void *what)
{
	struct stand_in in = { 0 };

	while (kvmfault__drain_look(vm, busy, what, service_has_reader(vm) ?
				    KVMFAULT__SECOND : KVMFAULT__SLICE)) {
		if (service_has_reader(vm))
			continue;
		if (!in.seat) {
			/* A message may have been read before. */
			atomic_store(&vm->unserved, true);
			in.seat = kvmfault__call_begin(vm);
		}
		if (in.seat)
			service_stand_in(&in);
	}
	if (!in.seat)
		return;
	in.due = 0;
	service_wake_unserved(&in);
	kvmfault__call_end(in.seat);
}
