/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The one path from a fault to its answer: its page is claimed, resolved and
 * published. This header declares the requests and answers that the stages hand
 * on, and the functions of each stage.
 *
 * A room may use the rooms before it in this order: os, core, kernel, memory,
 * resolve, entry, setup; none that comes after it.
 */

#ifndef KVMFAULT__RESOLVE_H
#define KVMFAULT__RESOLVE_H

#include "../memory/region.h"

/* One fault between claim and publish. Faults of every kind take the path of
 * resolve.c: claim -> chain -> publish; present.c has that of present pages. */
struct kvmfault__request {
	struct kvmfault_request request;	/* first: resolvers see it */
	struct kvmfault__seat *seat;
	struct kvmfault_mapping *origin;	/* of a message, or NULL */
	uint64_t page;		/* that faulted */
	uint64_t first, count;	/* the claimed pages, that one among them */
	/* by kvmfault_request_install(), from the first claimed page on */
	struct kvmfault__installed installed;
	const void *view;	/* by kvmfault_request_data(), or NULL */
	struct kvmfault__tries tries;
	unsigned int resolver;	/* index of the resolver that is asked */
	bool own_way;		/* a resolver did not use our install */
	bool poisoned;		/* by kvmfault_request_poison() */
	bool detached;		/* a fetch in flight has the claim */
	bool source_failed;	/* the error is the source's */
	uint64_t alike;		/* a byte's offset: what the source has said of
				 * the page is true up to there */
	unsigned int looked;	/* how often populate said -EHWPOISON, because
				 * of a marker, for a page that has not
				 * failed */
	/* offset and length of the last window that an earlier turn of the loop
	 * in resolve_tracked() claimed; length 0: none */
	uint64_t window, window_length;
};

/* request.c */
/* Returns 0 if the request's page is claimed, else -EINVAL with a reason. */
int kvmfault__unclaimed(const struct kvmfault_request *request,
			const char *function);
/* Is the page that faulted among the installed ones? */
static inline bool kvmfault__has_come(const struct kvmfault__request *rq)
{
	return rq->page < rq->first + rq->installed.there;
}

/* extent.c: only if the source has extent */
/* Returns the kind of the page that was absent, HOLE or ABSENT, or -errno: the
 * source has failed. */
int kvmfault__extent_page(struct kvmfault__request *rq);
/* Cut the window down to pages around the page that are holes, or that are
 * not. */
void kvmfault__extent_window(const struct kvmfault__request *rq,
			     uint64_t *first, uint64_t *end);

/* window.c */
/* Claim absent neighbours of the page too, as the memory's window says. */
void kvmfault__widen(struct kvmfault__request *rq);
/* Set the claimed run; the request's offset, length, host and buffer follow. */
void kvmfault__run(struct kvmfault__request *rq, uint64_t first,
		   uint64_t count);
/* Let go of all pages but the one that faulted, which has not come. */
void kvmfault__narrow(struct kvmfault__request *rq);

struct kvmfault__answer {
	enum kvmfault_action action;
	enum kvmfault_reason reason;
	int error;
	const char *resolver;	/* name of the one that has answered */
	bool came;	/* progress without an error: a page came, was saved or
			 * was converted */
	bool told;	/* the VMM has told the guest that the data is lost */
	bool detached;	/* a fetch in flight has the claim */
	/* A window's gpa, not before its region, and its length, maybe past the
	 * region's end. Not all of the window need have come. */
	uint64_t gpa, length;
};

/* Set the action and clear all else. */
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

/* True unless the access is known to be a read or an instruction fetch. */
static inline bool kvmfault__may_write(const struct kvmfault_fault *fault)
{
	return fault->access != KVMFAULT_ACCESS_READ &&
	       fault->access != KVMFAULT_ACCESS_EXEC;
}

/* Will the library itself touch the page for the guest? Then it has to ask for
 * the host's protection of the page, also if the page has just come. */
static inline bool kvmfault__touched(const struct kvmfault__request *rq)
{
	return rq->request.fault->kind == KVMFAULT_KIND_MMIO ||
	       rq->request.fault->kind == KVMFAULT_KIND_EMULATION;
}

/* Has the page to be saved before this write? */
static inline bool kvmfault__must_save(const struct kvmfault__request *rq)
{
	return rq->request.memory->write_protect &&
	       kvmfault__may_write(rq->request.fault) &&
	       kvmfault__page_protected(rq->request.memory, rq->page);
}

/* Is it the VMM that wants the page, and not a thread that has touched it? */
static inline bool kvmfault__is_call(const struct kvmfault_fault *fault)
{
	return fault->kind == KVMFAULT_KIND_CALL ||
	       fault->kind == KVMFAULT_KIND_FILL;
}

/* Does a fill ask? Then no thread waits for the page. */
static inline bool kvmfault__fills(const struct kvmfault__request *rq)
{
	return rq->seat->ahead;
}

/* Does the fault's thread wait for a page in flight? */
static inline bool kvmfault__waits(const struct kvmfault__request *rq)
{
	return !rq->seat->no_wait ||
	       rq->request.fault->kind == KVMFAULT_KIND_CALL;
}

/* chain.c */
/* Find out, after the chain has changed, which resolvers are to be asked. */
void kvmfault__chain_changed(struct kvmfault_vm *vm);
/* Ask one resolver after the other. The answer has no reason and no error yet;
 * the verdict sets them. */
void kvmfault__ask(struct kvmfault__request *rq, enum kvmfault_page page,
		   struct kvmfault__answer *answer);
/* Set the answer to a verdict's, or an -errno's. */
void kvmfault__judge(const struct kvmfault__request *rq, int verdict,
		     struct kvmfault__answer *answer);
/* Ask the chain about a page without a claim: untracked, unconverted, or
 * present and out of reach. If the page is resolved, wake the message's
 * sleeper. */
void kvmfault__resolve_unclaimed(struct kvmfault__request *rq,
				 enum kvmfault_page page,
				 struct kvmfault__answer *answer);

/* present.c */
/* Answer for a page that is present; waited: it was not when the fault began.
 * Returns false if the page has changed and the caller has to look again. */
bool kvmfault__resolve_present(struct kvmfault__request *rq, bool waited,
			       struct kvmfault__answer *answer);

/* publish.c */
/* Publish and count the claimed pages. Those that did not come get the state
 * `was` again, or poisoned if the request is. */
void kvmfault__conclude(struct kvmfault__request *rq,
			enum kvmfault__state was);
/* Publish claimed pages in the state `to`: absent again, or present. */
void kvmfault__release(struct kvmfault__request *rq, uint64_t first,
		       uint64_t count, enum kvmfault__state to);
/* Count the pages that came, and tell the VMM. */
void kvmfault__account(struct kvmfault__request *rq, enum kvmfault__state was);

/* record.c */
/* The memory is recorded, and the installed pages have come from their source:
 * if it was for a touch, note them. */
void kvmfault__record(const struct kvmfault__request *rq);

/* resolve.c */
/* Resolve the fault's page. */
void kvmfault__resolve(struct kvmfault__seat *seat,
		       const struct kvmfault_fault *fault,
		       const struct kvmfault__target *target,
		       struct kvmfault__answer *answer);
/* The answer as 0 or -errno. */
int kvmfault__error(const struct kvmfault__answer *answer);

/* Find a gpa's region, resolve its page, and let go of the seat's span. */
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
/* Returns KVMFAULT_VERDICT_LATER, and rq is detached; or -errno. */
int kvmfault__submit(struct kvmfault__request *rq);
/* True if all fetches are in use and this vCPU does not wait: the VMM will be
 * told when one is free. */
bool kvmfault__fetch_wished(struct kvmfault__request *rq);
/* Returns once, as 0 or -errno, what became of the seat's fetch of this page.
 * If the page has come since, returns 0. */
int kvmfault__fetch_failed(struct kvmfault__request *rq);
void kvmfault__fetches_cancel(struct kvmfault_memory *memory);
/* Is a fetch in flight that is not a fill's? */
bool kvmfault__fetch_for_others(struct kvmfault_vm *vm);
/* The next deadline of a fetch, or UINT64_MAX. */
uint64_t kvmfault__fetches_due(struct kvmfault_vm *vm);
/* Cancel the fetches that are past their deadline. */
void kvmfault__fetches_expire(struct kvmfault_vm *vm, uint64_t now);

/* failure.c */
/* For the library's resolvers: poison a page, the data of which is lost.
 * Returns -EHWPOISON; -EAGAIN: not possible now, or an event took the page. */
int kvmfault__lost(struct kvmfault_request *request);
/* Has the page there, with the state present, failed? False also if there was
 * a marker that is gone by now. */
bool kvmfault__has_failed(const struct kvmfault_memory *memory, uint64_t hva);
/* Tell the VMM of memory that failed. If the VMM has told the guest, the answer
 * becomes a retry. */
void kvmfault__tell_failure(struct kvmfault__request *rq,
			    struct kvmfault__answer *answer);

#endif
