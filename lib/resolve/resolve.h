/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The one path: a fault is claimed, resolved and published. Here is what its stages
 * hand on.
 */

#ifndef KVMFAULT__RESOLVE_H
#define KVMFAULT__RESOLVE_H

#include "../memory/region.h"

/* resolve.c: claim -> chain -> publish, for every entrance. present.c: of pages
 * that are present. */
struct kvmfault__request {
	struct kvmfault_request request;	/* first: what resolvers see */
	struct kvmfault__seat *seat;
	struct kvmfault_mapping *origin;	/* of a message, or NULL */
	uint64_t page;		/* that faulted */
	uint64_t first, count;	/* pages that are claimed, it among them */
	/* by kvmfault_request_install(), from the first claimed page on */
	struct kvmfault__installed installed;
	const void *view;	/* by kvmfault_request_data(), or NULL */
	struct kvmfault__tries tries;
	unsigned int resolver;	/* who is asked, by index */
	bool own_way;		/* a resolver put it there by itself */
	bool poisoned;		/* by kvmfault_request_poison() */
	bool detached;		/* a fetch in flight has it now */
	bool source_failed;
	unsigned int looked;	/* at a page that can be had, and cannot */
	uint64_t window, window_length;	/* as request.offset and length: that
					 * came, or was fetched, before this */
};

/* request.c */
/* 0: the request's page is claimed; -EINVAL, with its reason: it is not. */
int kvmfault__unclaimed(const struct kvmfault_request *request,
			const char *function);
/* Is the page that faulted among what was installed? */
static inline bool kvmfault__has_come(const struct kvmfault__request *rq)
{
	return rq->page < rq->first + rq->installed.there;
}

/* window.c */
/* Claim absent neighbours too, as the memory's window says; or let go of all
 * but the page that faulted, which has not come. */
void kvmfault__widen(struct kvmfault__request *rq);
/* What is claimed, and so requested. */
void kvmfault__run(struct kvmfault__request *rq, uint64_t first,
		   uint64_t count);
void kvmfault__narrow(struct kvmfault__request *rq);

struct kvmfault__answer {
	enum kvmfault_action action;
	enum kvmfault_reason reason;
	int error;
	const char *resolver;
	bool came;	/* the page was absent, and now it is there: no error */
	bool told;	/* the guest: its data is lost */
	bool detached;	/* a sleeper's fetch is in flight */
	/* of a window: its gpa, from the region's beginning on, and its length,
	 * maybe past the region's end; not all of it need have come */
	uint64_t gpa, length;
};

/* That, and nothing more. */
static inline void kvmfault__say(struct kvmfault__answer *answer,
				 enum kvmfault_action action)
{
	*answer = (struct kvmfault__answer){ .action = action };
}

static inline void kvmfault__unresolved(struct kvmfault__answer *answer,
					enum kvmfault_reason reason, int error)
{
	answer->action = KVMFAULT_ACTION_UNRESOLVED;
	answer->reason = reason;
	answer->error = error;
}

/* What is not known to be a read. */
static inline bool kvmfault__may_write(const struct kvmfault_fault *fault)
{
	return fault->access != KVMFAULT_ACCESS_READ &&
	       fault->access != KVMFAULT_ACCESS_EXEC;
}

/* Will the library itself touch it, for the guest? Then the host's protection of
 * it has to be asked for, also when it has just come. */
static inline bool kvmfault__touched(const struct kvmfault__request *rq)
{
	return rq->request.fault->kind == KVMFAULT_KIND_MMIO ||
	       rq->request.fault->kind == KVMFAULT_KIND_EMULATION;
}

static inline bool kvmfault__must_save(const struct kvmfault__request *rq)
{
	return rq->request.memory->write_protect &&
	       kvmfault__may_write(rq->request.fault) &&
	       kvmfault__page_protected(rq->request.memory, rq->page);
}

/* Does it wait for a page that is on its way? */
static inline bool kvmfault__waits(const struct kvmfault__request *rq)
{
	return !rq->seat->no_wait ||
	       rq->request.fault->kind == KVMFAULT_KIND_CALL;
}

/* chain.c: after the chain has changed */
void kvmfault__chain_changed(struct kvmfault_vm *vm);
/* Ask one resolver after the other. The answer says nothing yet; then what the
 * verdict comes to. */
void kvmfault__ask(struct kvmfault__request *rq, enum kvmfault_page page,
		   struct kvmfault__answer *answer);
/* What a verdict, or an -errno, comes to. */
void kvmfault__judge(const struct kvmfault__request *rq, int verdict,
		     struct kvmfault__answer *answer);
/* Ask, of a page that nobody claims; and wake who sleeps on it. */
void kvmfault__resolve_unclaimed(struct kvmfault__request *rq,
				 enum kvmfault_page page,
				 struct kvmfault__answer *answer);

/* present.c */
/* The page was present; waited: not when it was asked for first. False: look
 * again, it has changed. */
bool kvmfault__resolve_present(struct kvmfault__request *rq, bool waited,
			       struct kvmfault__answer *answer);

/* publish.c */
/* Publish and count what became of the claimed pages: those that did not come
 * are what they were. */
void kvmfault__conclude(struct kvmfault__request *rq,
			enum kvmfault__state was);
/* Claimed pages whose data is what it was before: absent again, or present. */
void kvmfault__release(struct kvmfault__request *rq, uint64_t first,
		       uint64_t count, enum kvmfault__state to);
/* Count what came, and tell the VMM. */
void kvmfault__account(struct kvmfault__request *rq, enum kvmfault__state was);

/* resolve.c */
/* Resolve one page. */
void kvmfault__resolve(struct kvmfault__seat *seat,
		       const struct kvmfault_fault *fault,
		       const struct kvmfault__target *place,
		       struct kvmfault__answer *answer);
/* For callers who are told by an errno. */
int kvmfault__error(const struct kvmfault__answer *answer);

/* Translate a gpa, resolve its page, leave. */
void kvmfault__resolve_gpa(struct kvmfault__seat *seat,
			   const struct kvmfault_fault *fault, uint64_t gpa,
			   struct kvmfault__answer *answer);

extern const struct kvmfault_resolver kvmfault__resolver_async;
extern const struct kvmfault_resolver kvmfault__resolver_copy;
extern const struct kvmfault_resolver kvmfault__resolver_continue;
extern const struct kvmfault_resolver kvmfault__resolver_zero;
extern const struct kvmfault_resolver kvmfault__resolver_populate;
extern const struct kvmfault_resolver kvmfault__resolver_convert;
extern const struct kvmfault_resolver kvmfault__resolver_unprotect;

/* fetch.c: sources that answer later */
int kvmfault__fetches_new(struct kvmfault_vm *vm);
void kvmfault__fetches_free(struct kvmfault_vm *vm);
/* A verdict or -errno; LATER: rq is detached. */
int kvmfault__submit(struct kvmfault__request *rq);
/* All fetches are in use, and this vCPU does not wait: true, and the VMM will be
 * told. Not any more. */
bool kvmfault__fetch_wished(struct kvmfault__request *rq);
/* What became of this seat's submit for this page, unless it has come since: 0
 * or -errno, once. */
int kvmfault__fetch_failed(struct kvmfault__request *rq);
void kvmfault__fetches_cancel(struct kvmfault_memory *memory);
/* Deadlines: the next one, UINT64_MAX if there is none; cancel what is late. */
uint64_t kvmfault__fetches_due(struct kvmfault_vm *vm);
void kvmfault__fetches_expire(struct kvmfault_vm *vm, uint64_t now);

/* failure.c */
/* For ours: its data is lost, poison it. -EHWPOISON; -EAGAIN: not now, or an event
 * has taken it. */
int kvmfault__lost(struct kvmfault_request *request);
/* Has the page there failed, or was there a marker that is gone by now?
 * Its state is present. */
bool kvmfault__has_failed(const struct kvmfault_memory *memory, uint64_t hva);
/* Tell of memory that failed; what becomes of the answer */
void kvmfault__tell_failure(struct kvmfault__request *rq,
			    struct kvmfault__answer *answer);

#endif
