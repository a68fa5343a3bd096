/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Kind uffd, messages that cannot be answered now. In: a message, and whether
 * its try failed or was not possible yet. Out: the message is in a list, with
 * the time of its next try, when a timer wakes the service. If the try was not
 * possible, the next one comes at once, and later ones soon; if it failed, the
 * delay is longer. Both delays double up to a limit. No sleeper is forgotten:
 * if the list is full, the thread sleeps on until the library wakes all
 * sleepers, which then fault again.
 */

#include "defer.h"
#include "../os/trace.h"

/* The caller holds the lock. */
static struct kvmfault__message *
deferred_find(struct kvmfault__deferred *deferred, uint32_t space, uint64_t hva)
{
	size_t i;

	for (i = 0; i < deferred->count; i++)
		if (deferred->item[i].space == space &&
		    deferred->item[i].fault.hva == hva)
			return &deferred->item[i];
	return NULL;
}

static uint64_t deferred_earliest(struct kvmfault__deferred *deferred)
{
	uint64_t due = UINT64_MAX;
	size_t i;

	kvmfault__sys_lock(&deferred->lock);
	if (deferred->no_room)
		due = deferred->no_room;
	for (i = 0; i < deferred->count; i++)
		if (deferred->item[i].due < due)
			due = deferred->item[i].due;
	kvmfault__sys_unlock(&deferred->lock);
	return due;
}

/* The timer is armed without the lock. A thread that arms it looks again
 * afterwards: so the last thread to arm it has seen the earliest time. */
void kvmfault__deferred_arm(struct kvmfault__deferred *deferred)
{
	uint64_t due = deferred_earliest(deferred), armed, now;

	do {
		armed = due;
		if (due == UINT64_MAX)
			return;
		now = kvmfault__sys_now();
		kvmfault__sys_timerfd_arm(deferred->timer,
					  due > now ? due - now : 1);
		due = deferred_earliest(deferred);
	} while (due != armed);
}

static void deferred_wake_mapping(struct kvmfault__seat *seat,
				  struct kvmfault__span *span, void *unused)
{
	struct kvmfault_mapping *mapping = (struct kvmfault_mapping *)span;

	(void)unused;
	if (mapping->uffd)
		kvmfault__wake(seat, span->memory, mapping, 0,
			       span->memory->length);
}

void kvmfault__wake_all(struct kvmfault__seat *seat)
{
	kvmfault__table_visit(seat, &seat->vm->mappings, deferred_wake_mapping,
			      NULL);
}

static void message_wake_sleeper(struct kvmfault__seat *seat,
				 const struct kvmfault__message *item)
{
	struct kvmfault_mapping *mapping =
		kvmfault__mapping_find(seat, item->space, item->fault.hva);

	if (mapping && mapping->uffd) {
		struct kvmfault_memory *memory = mapping->span.memory;
		uint64_t size = kvmfault__page_size(memory);

		kvmfault__wake(seat, memory, mapping,
			       (item->fault.hva - mapping->host) & ~(size - 1),
			       size);
	}
	kvmfault__leave(seat);
}

/* The caller holds the lock. A sleeper that was woken has sent a second message
 * (other), which another thread deferred first: that inherits this one's tries.
 */
static void message_merge(struct kvmfault__message *other,
			  const struct kvmfault__message *item)
{
	if (other->tries.count < item->tries.count)
		other->tries.count = item->tries.count;
	if (other->tries.failures < item->tries.failures)
		other->tries.failures = item->tries.failures;
	if (other->due < item->due)
		other->due = item->due;
}

/* Returns the time until the next try. If not `failed`, the last try was not
 * possible yet. */
static uint64_t message_next_delay(struct kvmfault__message *item, bool failed)
{
	if (failed)
		return kvmfault__backoff(KVMFAULT__FAILED_PAUSE,
					 item->tries.failures - 1,
					 KVMFAULT__FAILED_STEPS);
	return item->tries.count++ ?
		kvmfault__backoff(KVMFAULT__SOON_PAUSE, item->tries.count - 2,
				  KVMFAULT__SOON_STEPS) : 0;
}

/* The caller holds the lock. */
static void deferred_add(struct kvmfault__deferred *deferred,
			 const struct kvmfault__message *item)
{
	if (deferred->count < KVMFAULT__DEFERRED_MAX)
		deferred->item[deferred->count++] = *item;
	else if (!deferred->no_room)
		deferred->no_room = item->due + (item->tries.failures ?
					     KVMFAULT__FAILED_PAUSE <<
					     KVMFAULT__FAILED_STEPS :
					     KVMFAULT__FAILED_PAUSE);
}

void kvmfault__defer(struct kvmfault__deferred *deferred,
		     struct kvmfault__seat *seat,
		     struct kvmfault__message *item, bool failed)
{
	struct kvmfault__message *other;

	item->due = kvmfault__sys_now() + message_next_delay(item, failed);
	kvmfault__count(seat, deferred);
	kvmfault__sys_lock(&deferred->lock);
	other = deferred_find(deferred, item->space, item->fault.hva);
	if (other)
		message_merge(other, item);
	else
		deferred_add(deferred, item);
	kvmfault__sys_unlock(&deferred->lock);
	kvmfault__deferred_arm(deferred);
}

void kvmfault__defer_to_service(struct kvmfault__deferred *deferred,
				struct kvmfault__seat *seat,
				struct kvmfault__message *item)
{
	bool repeated;

	item->due = kvmfault__sys_now();
	kvmfault__sys_lock(&deferred->lock);
	repeated = deferred_find(deferred, item->space, item->fault.hva);
	if (!repeated)
		deferred_add(deferred, item);
	kvmfault__sys_unlock(&deferred->lock);
	if (repeated)
		kvmfault__count(seat, repeated);
	kvmfault__deferred_arm(deferred);
}

static void message_tell_unresolved(const struct kvmfault_mapping *mapping,
				    const struct kvmfault__message *item,
				    enum kvmfault_reason reason, int error)
{
	struct kvmfault_memory *memory = mapping->span.memory;
	const struct kvmfault_vm *vm = memory->vm;
	uint64_t size = kvmfault__page_size(memory);
	struct kvmfault_sleeper sleeper = {
		.size = sizeof(sleeper),
		.fault = &item->fault,
		.memory = memory,
		.offset = (item->fault.hva - mapping->host) & ~(size - 1),
		.length = size,
		.uffd = mapping->uffd->own ? NULL : mapping->uffd,
		.reason = reason,
		.error = error,
	};

	kvmfault__log(memory->vm, KVMFAULT_LOG_ERROR,
		      "a thread sleeps in an access (%s) at host address %#llx: %s (error %d); the library tries again until this succeeds or the VM is stopped",
		      kvmfault_access_str(item->fault.access),
		      (unsigned long long)item->fault.hva,
		      kvmfault_reason_str(reason), -error);
	KVMFAULT__TRACE(unresolved, item->fault.kind, item->fault.gpa,
			item->fault.hva, reason, error);
	if (vm->ops.unresolved)
		vm->ops.unresolved(vm->options.data, &sleeper);
}

void kvmfault__not_resolved(struct kvmfault__seat *seat,
			    struct kvmfault__message *item,
			    const struct kvmfault_mapping *mapping,
			    enum kvmfault_reason reason, int error)
{
	const struct kvmfault_memory *memory = mapping->span.memory;

	if (item->tries.failures != memory->vm->options.source_retries + 1)
		return;
	/* The memory was settled meanwhile, which wakes its sleepers: the try
	 * may have failed for no other reason. */
	if (!kvmfault__tracked(memory))
		return;
	kvmfault__count(seat, unresolved);
	message_tell_unresolved(mapping, item, reason, error);
}

bool kvmfault__is_deferred(struct kvmfault__deferred *deferred, uint32_t space,
			   uint64_t hva)
{
	bool found;

	/* If a thread is just deferring the message, this one does not wait
	 * for that. */
	if (!atomic_load(&deferred->count))
		return false;
	kvmfault__sys_lock(&deferred->lock);
	found = deferred_find(deferred, space, hva);
	kvmfault__sys_unlock(&deferred->lock);
	return found;
}

bool kvmfault__deferred_take(struct kvmfault__deferred *deferred, uint64_t now,
			     struct kvmfault__message *item)
{
	bool found = false;
	size_t i;

	kvmfault__sys_lock(&deferred->lock);
	for (i = 0; i < deferred->count && !found; i++) {
		if (deferred->item[i].due > now)
			continue;
		*item = deferred->item[i];
		deferred->item[i] = deferred->item[--deferred->count];
		found = true;
	}
	kvmfault__sys_unlock(&deferred->lock);
	return found;
}

void kvmfault__wake_without_room(struct kvmfault__deferred *deferred,
				 struct kvmfault__seat *seat, uint64_t now)
{
	bool due;

	kvmfault__sys_lock(&deferred->lock);
	due = deferred->no_room && deferred->no_room <= now;
	if (due)
		deferred->no_room = 0;
	kvmfault__sys_unlock(&deferred->lock);
	if (due)
		kvmfault__wake_all(seat);
}

void kvmfault__deferred_wake(struct kvmfault__deferred *deferred,
			     struct kvmfault__seat *seat)
{
	if (deferred->no_room)
		kvmfault__wake_all(seat);
	while (deferred->count)
		message_wake_sleeper(seat, &deferred->item[--deferred->count]);
}

/* vCPU threads come here, so there is no lock. A thread that arms the timer
 * looks again: so the last one to lower the deadline is the last one to arm. */
void kvmfault__deadline_lower(struct kvmfault__deferred *deferred,
			      uint64_t due)
{
	uint64_t set = atomic_load(&deferred->next_deadline), now;

	do {
		if (due >= set)
			return;
	} while (!atomic_compare_exchange_weak(&deferred->next_deadline, &set,
					       due));
	do {
		set = atomic_load(&deferred->next_deadline);
		now = kvmfault__sys_now();
		kvmfault__sys_timerfd_arm(deferred->deadlines,
					  set > now ? set - now : 1);
	} while (atomic_load(&deferred->next_deadline) != set);
}

void kvmfault__vm_deadline_lower(struct kvmfault__seat *seat, uint64_t due)
{
	struct kvmfault__deferred *deferred =
		kvmfault__hold(seat, KVMFAULT__HAZARD_DEFERRED,
			       &seat->vm->deferred);

	if (deferred)
		kvmfault__deadline_lower(deferred, due);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_DEFERRED);
}

/* The fetch has failed on any thread. If there is no service, the sleeper is
 * woken, and faults again for the next service. */
void kvmfault__defer_fetch(struct kvmfault__request *rq, int error)
{
	struct kvmfault__seat *seat = rq->seat;
	struct kvmfault__deferred *deferred;
	struct kvmfault__message item = {
		.fault = *rq->request.fault,
		.space = rq->origin->uffd->space,
		.tries = rq->tries,
	};

	item.tries.failures += error != -EAGAIN;
	deferred = kvmfault__hold(seat, KVMFAULT__HAZARD_DEFERRED,
				  &seat->vm->deferred);
	if (deferred)
		kvmfault__defer(deferred, seat, &item, error != -EAGAIN);
	else
		kvmfault__wake(seat, rq->request.memory, rq->origin,
			       rq->request.offset, rq->request.length);
	kvmfault__unhold(seat, KVMFAULT__HAZARD_DEFERRED);
	if (error != -EAGAIN)
		kvmfault__not_resolved(seat, &item, rq->origin,
				       rq->source_failed ?
				       KVMFAULT_REASON_SOURCE :
				       KVMFAULT_REASON_RESOLVER, error);
}
