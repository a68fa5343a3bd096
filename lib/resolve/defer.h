/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Messages that are to be tried again, later.
 */

#ifndef KVMFAULT__PARK_H
#define KVMFAULT__PARK_H

#include "resolve.h"

/* park.c: messages that are to be tried again, later. The lock is a short one. */
#define KVMFAULT__DEFERRED_MAX 256
struct kvmfault__message {
	struct kvmfault_fault fault;
	uint32_t space;
	struct kvmfault__tries tries;
	uint64_t due;
};
struct kvmfault__deferred {
	pthread_mutex_t lock;
	int timer;			/* expires when the earliest is due */
	int deadlines;			/* and this when a fetch is late: */
	_Atomic uint64_t next_deadline;
	uint64_t no_room;		/* 0, or when all are to be woken */
	_Atomic size_t count;
	struct kvmfault__message item[KVMFAULT__DEFERRED_MAX];
};
/* It is put off, and has failed: after as many tries as a vCPU's has the VMM is told.
 * mapping: where its thread sleeps, held. */
void kvmfault__not_resolved(struct kvmfault__seat *seat,
			    struct kvmfault__message *item,
			    const struct kvmfault_mapping *mapping,
			    enum kvmfault_reason reason, int error);
/* Later again: it has failed, or is not possible now. */
void kvmfault__defer(struct kvmfault__deferred *deferred, struct kvmfault__seat *seat,
		       struct kvmfault__message *item, bool failed);
/* For a thread of the service to begin with. */
void kvmfault__defer_to_service(struct kvmfault__deferred *deferred,
			struct kvmfault__seat *seat,
			struct kvmfault__message *item);
bool kvmfault__is_deferred(struct kvmfault__deferred *deferred, uint32_t space,
			 uint64_t hva);
/* One item whose time has come, taken out; false: none. */
bool kvmfault__deferred_take(struct kvmfault__deferred *deferred, uint64_t now,
		      struct kvmfault__message *item);
/* Wake those that there was no room for, when it is time. */
void kvmfault__wake_without_room(struct kvmfault__deferred *deferred,
				 struct kvmfault__seat *seat, uint64_t now);
/* Set the timer. */
void kvmfault__deferred_arm(struct kvmfault__deferred *deferred);
/* At the end, their messages are read: awake they fault again, for the next
 * service. */
void kvmfault__deferred_wake(struct kvmfault__deferred *deferred,
			   struct kvmfault__seat *seat);
/* Whoever sleeps anywhere. */
void kvmfault__wake_all(struct kvmfault__seat *seat);

/* A message's fetch has failed: later again. */
void kvmfault__defer_fetch(struct kvmfault__request *rq, int error);
void kvmfault__set_deadline(struct kvmfault__seat *seat, uint64_t due);
/* The next deadline of a fetch, if it is earlier than what the timer is set to. */
void kvmfault__deadline_set(struct kvmfault__deferred *deferred, uint64_t due);

#endif
