/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Entrance uffd, what can't be answered now. In: a message, and why not. Out: it
 * waits with a time to try again, that doubles, and a timer has the service look
 * then. No sleeper is forgotten: where there is no room he is woken, and faults
 * again.
 */

#include "internal.h"
#include "trace.h"

#define DELAY_MIN 1000000ULL	/* 1 ms, doubled each time, */
#define DELAY_STEPS 10		/* up to about a second */
#define TELL_AFTER 3		/* failures before the VMM is told */

/* Under the lock. */
static struct kvmfault__parked *find(struct kvmfault__park *park,
				     uint32_t space, uint64_t hva)
{
	size_t i;

	for (i = 0; i < park->count; i++)
		if (park->item[i].space == space &&
		    park->item[i].fault.hva == hva)
			return &park->item[i];
	return NULL;
}

static uint64_t earliest(struct kvmfault__park *park)
{
	uint64_t due = UINT64_MAX;
	size_t i;

	kvmfault__sys_lock(&park->lock);
	for (i = 0; i < park->count; i++)
		if (park->item[i].due < due)
			due = park->item[i].due;
	kvmfault__sys_unlock(&park->lock);
	return due;
}

/* Without the lock: who sets it looks again afterwards, so that the last one to
 * set it has seen the earliest. */
void kvmfault__park_arm(struct kvmfault__park *park)
{
	uint64_t due = earliest(park), armed, now;

	do {
		armed = due;
		if (due == UINT64_MAX)
			return;
		now = kvmfault__sys_now();
		kvmfault__sys_timerfd_arm(park->timer,
					  due > now ? due - now : 1);
		due = earliest(park);
	} while (due != armed);
}

static void wake_sleeper(struct kvmfault__seat *seat,
			 const struct kvmfault__parked *item)
{
	struct kvmfault_mapping *mapping =
		kvmfault__mapping_find(seat, item->space, item->fault.hva);

	if (mapping) {
		struct kvmfault_memory *memory = mapping->span.memory;
		uint64_t size = kvmfault__page_size(memory);

		kvmfault__wake(seat, memory, mapping,
			       (item->fault.hva - mapping->host) & ~(size - 1),
			       size);
	}
	kvmfault__leave(seat);
}

/* Under the lock. A sleeper that was woken meanwhile has sent a second message,
 * and another thread was faster with that: what was tried counts for it too. */
static void merge(struct kvmfault__parked *other,
		  const struct kvmfault__parked *item)
{
	if (other->tries.count < item->tries.count)
		other->tries.count = item->tries.count;
	if (other->tries.failures < item->tries.failures)
		other->tries.failures = item->tries.failures;
}

static void put(struct kvmfault__park *park, struct kvmfault__seat *seat,
		struct kvmfault__parked *item)
{
	unsigned int step = item->tries.count < DELAY_STEPS ?
		item->tries.count : DELAY_STEPS;
	struct kvmfault__parked *other;
	bool full;

	item->due = kvmfault__sys_now() + (DELAY_MIN << step);
	item->tries.count++;
	kvmfault__count(seat, parked);
	kvmfault__sys_lock(&park->lock);
	other = find(park, item->space, item->fault.hva);
	full = !other && park->count == KVMFAULT__PARKED_MAX;
	if (other)
		merge(other, item);
	else if (!full)
		park->item[park->count++] = *item;
	kvmfault__sys_unlock(&park->lock);
	/* No room: awake, it faults again and so comes back by itself. */
	if (full)
		wake_sleeper(seat, item);
	else
		kvmfault__park_arm(park);
}

static void tell(struct kvmfault_vm *vm, const struct kvmfault__parked *item,
		 enum kvmfault_reason reason, int error)
{
	kvmfault__log(vm, KVMFAULT_LOG_ERROR,
		      "a %s at host address %#llx sleeps: %s (error %d); trying again until it works or the VM is stopped",
		      kvmfault_access_str(item->fault.access),
		      (unsigned long long)item->fault.hva,
		      kvmfault_reason_str(reason), -error);
	KVMFAULT__TRACE(unresolved, item->fault.entrance, item->fault.gpa,
			item->fault.hva, reason, error);
	if (vm->options.unresolved)
		vm->options.unresolved(vm->options.unresolved_data,
				       &item->fault, reason, error);
}

void kvmfault__put_off(struct kvmfault__park *park, struct kvmfault__seat *seat,
		       struct kvmfault__parked *item,
		       enum kvmfault_reason reason, int error)
{
	if (reason && ++item->tries.failures == TELL_AFTER) {
		kvmfault__count(seat, unresolved);
		tell(seat->vm, item, reason, error);
	}
	put(park, seat, item);
}

bool kvmfault__is_parked(struct kvmfault__park *park, uint32_t space,
			 uint64_t hva)
{
	bool found;

	kvmfault__sys_lock(&park->lock);
	found = park->count && find(park, space, hva);
	kvmfault__sys_unlock(&park->lock);
	return found;
}

bool kvmfault__unpark(struct kvmfault__park *park, uint64_t now,
		      struct kvmfault__parked *item)
{
	bool found = false;
	size_t i;

	kvmfault__sys_lock(&park->lock);
	for (i = 0; i < park->count && !found; i++) {
		if (park->item[i].due > now)
			continue;
		*item = park->item[i];
		park->item[i] = park->item[--park->count];
		found = true;
	}
	kvmfault__sys_unlock(&park->lock);
	return found;
}

void kvmfault__wake_parked(struct kvmfault__park *park,
			   struct kvmfault__seat *seat)
{
	while (park->count)
		wake_sleeper(seat, &park->item[--park->count]);
}
