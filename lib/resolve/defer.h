/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Deferred messages: the service tries them again later.
 */

#ifndef KVMFAULT__DEFER_H
#define KVMFAULT__DEFER_H

#include "resolve.h"

#define KVMFAULT__DEFERRED_MAX 256
struct kvmfault__message {
	struct kvmfault_fault fault;
	uint32_t space;
	struct kvmfault__tries tries;
	uint64_t due;
};
struct kvmfault__deferred {
	pthread_mutex_t lock;		/* held for a short time only */
	int timer;			/* expires when the earliest is due */
	int deadlines;			/* expires when a fetch is late, at: */
	_Atomic uint64_t next_deadline;
	uint64_t no_room;		/* the list was full: at this time all
					 * sleepers are woken; 0: it was not */
	_Atomic size_t count;
	struct kvmfault__message item[KVMFAULT__DEFERRED_MAX];
};
/* A deferred message has failed: the VMM is told after as many tries as a vCPU
 * makes. The caller holds the mapping, in which the message's thread sleeps. */
void kvmfault__not_resolved(struct kvmfault__seat *seat,
			    struct kvmfault__message *item,
			    const struct kvmfault_mapping *mapping,
			    enum kvmfault_reason reason, int error);
/* The service tries the message again later: a try has failed, or if not
 * `failed`, it was not possible yet. */
void kvmfault__defer(struct kvmfault__deferred *deferred,
		     struct kvmfault__seat *seat,
		     struct kvmfault__message *item, bool failed);
/* A thread of the service makes the message's first try, at once. */
void kvmfault__defer_to_service(struct kvmfault__deferred *deferred,
				struct kvmfault__seat *seat,
				struct kvmfault__message *item);
bool kvmfault__is_deferred(struct kvmfault__deferred *deferred, uint32_t space,
			   uint64_t hva);
/* Takes one message out that is due; returns false if there is none. */
bool kvmfault__deferred_take(struct kvmfault__deferred *deferred, uint64_t now,
			     struct kvmfault__message *item);
/* If the list was full, wakes all sleepers when their time has come. */
void kvmfault__wake_without_room(struct kvmfault__deferred *deferred,
				 struct kvmfault__seat *seat, uint64_t now);
/* Sets the timer to the earliest time in the list. */
void kvmfault__deferred_arm(struct kvmfault__deferred *deferred);
/* At the end of the service the messages have been read. Their sleepers are
 * woken, and fault again for the next service. */
void kvmfault__deferred_wake(struct kvmfault__deferred *deferred,
			     struct kvmfault__seat *seat);
/* Wakes all sleepers, in every mapping of the VM. */
void kvmfault__wake_all(struct kvmfault__seat *seat);

/* If a message's fetch fails, the message is deferred. */
void kvmfault__defer_fetch(struct kvmfault__request *rq, int error);
/* Arms the timer of deadlines if `due` is earlier than what it is set to. */
void kvmfault__deadline_lower(struct kvmfault__deferred *deferred,
			      uint64_t due);
/* The same for the VM's service, if there is one. */
void kvmfault__vm_deadline_lower(struct kvmfault__seat *seat, uint64_t due);

#endif
