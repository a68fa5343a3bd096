/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage resolve: the chain of resolvers. In: a request, and the kind of its
 * page. Out: an answer, made of the first verdict that is not "declined". The
 * VMM's own resolvers are asked before the library's, and none is asked about a
 * fault with flags that it does not name.
 */

#include <string.h>
#include "resolve.h"

void kvmfault__chain_changed(struct kvmfault_vm *vm)
{
	unsigned int page, i;

	for (page = 0; page < KVMFAULT__PAGE_KINDS; page++) {
		vm->chain.asked[page] = 0;
		for (i = 0; i < vm->chain.resolvers; i++)
			if (!vm->chain.resolver[i].pages ||
			    vm->chain.resolver[i].pages & 1U << page)
				vm->chain.asked[page] |= 1U << i;
	}
}

/* The bits of all kinds of pages in kvmfault_resolver.pages. */
#define KINDS ((1U << KVMFAULT__PAGE_KINDS) - (1U << KVMFAULT_PAGE_UNTRACKED))

static int resolver_check(struct kvmfault_vm *vm,
			  const struct kvmfault_resolver *ours)
{
	if (!ours->resolve || !ours->name)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_resolver.%s is not set",
			ours->resolve ? "name" : "resolve");
	if (ours->pages & ~KINDS)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_resolver.pages: %#x has bits of no kind of page that this version knows: set only 1U << KVMFAULT_PAGE_*",
			ours->pages);
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_resolver_add(struct kvmfault_vm *vm,
			  const struct kvmfault_resolver *resolver)
{
	struct kvmfault_resolver ours, *slot;
	int err;

	err = kvmfault__options_in(vm, "kvmfault_resolver", &ours, sizeof(ours),
				   resolver);
	if (!err)
		err = vm ? resolver_check(vm, &ours) : -EINVAL;
	if (err)
		return err;
	kvmfault__sys_lock(&vm->lock);
	if (vm->vcpus || vm->services) {
		err = -EBUSY;
	} else if (vm->chain.resolvers == KVMFAULT_RESOLVER_COUNT) {
		err = -ENOSPC;
	} else {
		slot = &vm->chain.resolver[vm->chain.own];
		memmove(slot + 1, slot, (vm->chain.resolvers - vm->chain.own) *
			sizeof(*slot));
		*slot = ours;
		vm->chain.own++;
		vm->chain.resolvers++;
		kvmfault__chain_changed(vm);
	}
	kvmfault__sys_unlock(&vm->lock);
	if (err)
		kvmfault__refuse(vm, err, err == -EBUSY ?
			"the resolver %s comes too late, a vCPU or a service exists: add resolvers before the first kvmfault_vcpu_new() and kvmfault_service_new()" :
			"the resolver %s does not fit into the chain: add at most KVMFAULT_RESOLVER_COUNT, the library's own included",
			ours.name);
	return err;
}

KVMFAULT__EXPORT
const char *kvmfault_resolver_name(const struct kvmfault_vm *vm,
				   unsigned int index)
{
	return vm && index < vm->chain.resolvers ?
		vm->chain.resolver[index].name : NULL;
}

void kvmfault__judge(const struct kvmfault__request *rq, int verdict,
		     struct kvmfault__answer *answer)
{
	switch (verdict) {
	case KVMFAULT_VERDICT_RESOLVED:
		answer->action = KVMFAULT_ACTION_RETRY;
		return;
	case KVMFAULT_VERDICT_LATER:
		answer->action = KVMFAULT_ACTION_PENDING;
		return;
	case -EINTR:
		answer->action = KVMFAULT_ACTION_INTERRUPTED;
		return;
	case -EAGAIN:
		/* The mappings are changing: the access faults again. */
		answer->action = KVMFAULT_ACTION_RETRY;
		answer->error = -EAGAIN;
		answer->came = false;
		return;
	}
	kvmfault__unresolved(answer, rq->source_failed ?
			     KVMFAULT_REASON_SOURCE : KVMFAULT_REASON_RESOLVER,
			     verdict < 0 ? verdict : -EINVAL);
}

/* No resolver has taken the fault; flags: the fault's flags kept some from
 * being asked. */
static void chain_answer_declined(const struct kvmfault__request *rq,
				  bool flags, struct kvmfault__answer *answer)
{
	if (rq->request.fault->error == EHWPOISON)
		kvmfault__unresolved(answer, KVMFAULT_REASON_HWPOISON,
				     -EHWPOISON);
	else
		kvmfault__unresolved(answer, flags ? KVMFAULT_REASON_FLAGS :
				     KVMFAULT_REASON_DECLINED, -EOPNOTSUPP);
}

/* Fault flags that this VM's delivery mode does not explain. */
static uint64_t chain_unknown_flags(const struct kvmfault__request *rq)
{
	const struct kvmfault_fault *fault = rq->request.fault;

	return fault->flags ? fault->flags &
			      ~kvmfault__exit_flags(rq->seat->vm, fault) : 0;
}

void kvmfault__ask(struct kvmfault__request *rq, enum kvmfault_page page,
		   struct kvmfault__answer *answer)
{
	const struct kvmfault_vm *vm = rq->seat->vm;
	uint64_t unknown = chain_unknown_flags(rq);
	uint32_t asked = vm->chain.asked[page];
	bool flags = false;

	rq->request.page = page;
	kvmfault__add(rq->seat, KVMFAULT__COUNTER(page) + page, 1);
	/* Only the VMM's resolvers, which come first, know of failed memory. */
	if (rq->request.fault->error == EHWPOISON)
		asked &= (1U << vm->chain.own) - 1;
	for (; asked; asked &= asked - 1) {
		unsigned int i = (unsigned int)__builtin_ctz(asked);
		const struct kvmfault_resolver *r = &vm->chain.resolver[i];
		int verdict;

		if (unknown & ~r->flags) {
			flags = true;
			continue;
		}
		rq->resolver = i;
		atomic_store_explicit(&rq->seat->in_hand,
				      page != KVMFAULT_PAGE_UNTRACKED &&
				      page != KVMFAULT_PAGE_UNCONVERTED,
				      memory_order_relaxed);
		verdict = r->resolve(r->data, &rq->request);
		atomic_store_explicit(&rq->seat->in_hand, false,
				      memory_order_relaxed);
		/* An installed page is resolved, also if it was declined, and a
		 * poisoned one is lost. */
		if (verdict == KVMFAULT_VERDICT_DECLINED &&
		    kvmfault__has_come(rq))
			verdict = KVMFAULT_VERDICT_RESOLVED;
		else if (verdict == KVMFAULT_VERDICT_DECLINED && rq->poisoned)
			verdict = -EHWPOISON;
		if (verdict != KVMFAULT_VERDICT_DECLINED) {
			answer->resolver = r->name;
			kvmfault__judge(rq, verdict, answer);
			if (verdict == KVMFAULT_VERDICT_RESOLVED)
				kvmfault__add(rq->seat,
					      KVMFAULT__COUNTER(resolver) + i,
					      1);
			return;
		}
		if (rq->count > 1)
			kvmfault__narrow(rq);
	}
	chain_answer_declined(rq, flags, answer);
}

void kvmfault__resolve_unclaimed(struct kvmfault__request *rq,
				 enum kvmfault_page page,
				 struct kvmfault__answer *answer)
{
	kvmfault__ask(rq, page, answer);
	if (answer->action == KVMFAULT_ACTION_RETRY && rq->origin)
		kvmfault__wake(rq->seat, rq->request.memory, rq->origin,
			       rq->request.offset, rq->request.length);
}
