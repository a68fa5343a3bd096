/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Memory whose data is lost: in hardware, or at the source. In: a SIGBUS, or a
 * page that is known to be poisoned. Out: the page's state says so, nobody
 * reads anything else there, and the VMM was told which gpa it is. A SIGBUS at
 * an absent page is none of this: that was a marker, and the page is fetched.
 */

#include <sys/mman.h>

#include "abi.h"
#include "internal.h"

/* Not what an event has told is gone: it is zero. */
static int poison_claimed(struct kvmfault__request *rq)
{
	struct kvmfault_memory *memory = rq->request.memory;
	bool apart = kvmfault__events_take(memory);
	int err = -EAGAIN;

	if (!apart || kvmfault__install_begin(rq->seat, memory,
					      rq->request.offset,
					      rq->request.length))
		err = kvmfault__poison(rq->seat, memory, NULL,
				       rq->request.offset, rq->request.length);
	if (apart)
		kvmfault__install_end(rq->seat);
	return err;
}

KVMFAULT__EXPORT
int kvmfault_request_poison(struct kvmfault_request *request)
{
	struct kvmfault__request *ours = (struct kvmfault__request *)request;
	int err = kvmfault__unclaimed(request, "kvmfault_request_poison");

	if (err)
		return err;
	if (kvmfault__has_come(ours))
		return kvmfault__refuse(ours->seat->vm, -EINVAL,
			"kvmfault_request_poison: the page was installed before");
	if (ours->count > 1)
		kvmfault__narrow(ours);
	err = poison_claimed(ours);
	ours->poisoned = !err;
	return err == -ENOTTY || err == -EINVAL ?
		kvmfault__refuse(ours->seat->vm, -EOPNOTSUPP,
			"a page whose data is lost can't be poisoned by this kernel: it needs Linux 6.6") :
		err;
}

/* The VMM has told the guest: the vCPU may go on. */
void kvmfault__tell_failure(struct kvmfault__request *rq,
			    struct kvmfault__answer *answer)
{
	const struct kvmfault_vm_options *options = &rq->seat->vm->options;
	struct kvmfault_failure failure = {
		.size = sizeof(failure),
		.fault = rq->request.fault,
		.vcpu = rq->seat->vcpu,
		.memory = rq->request.memory,
		.offset = rq->request.offset,
		.length = rq->request.length,
	};
	int err;

	if (!options->failed)
		return;
	/* The callback uses the vCPU's descriptor. */
	if (!kvmfault__hold_vcpu(rq->seat)) {
		answer->action = KVMFAULT_INTERRUPTED;
		return;
	}
	err = options->failed(options->failed_data, &failure);
	kvmfault__free_vcpu(rq->seat);
	if (err)
		return;
	answer->action = KVMFAULT_RETRY;
	answer->reason = KVMFAULT_REASON_NONE;
	answer->error = 0;
	answer->told = true;
}

/* Now: the page will be touched again. */
static bool says_nothing(int err)
{
	return err == -ENOMEM || err == -EAGAIN || err == -EINTR;
}

/*
 * Has it failed, or was there a marker that is gone by now? Another thread may
 * have fetched the page since the signal was sent. The kernel knows; one that
 * can't be asked (before 5.14) has no markers (6.6).
 */
bool kvmfault__has_failed(const struct kvmfault_memory *memory, uint64_t hva)
{
	uint64_t size = kvmfault__page_size(memory);
	void *page = (void *)(uintptr_t)(hva & ~(size - 1));
	int err;

	err = kvmfault__sys_madvise(page, size, KVMFAULT__MADV_POPULATE_READ);
	if (says_nothing(err))
		return false;
	/* A page that came past the library, by way of another mapping, has
	 * left the marker where it was. Without it the file's page counts; one
	 * that has failed is in the file still. */
	if (err && memory->marked)
		err = kvmfault__take_away(memory->uffd, page, size,
					  MADV_DONTNEED);
	else
		return err;
	if (!err)
		err = kvmfault__sys_madvise(page, size,
					    KVMFAULT__MADV_POPULATE_READ);
	return err && !says_nothing(err);
}

/* The pages of the memory that it is about: a failure may be larger than one, and
 * begin before the memory does. */
struct lost {
	uint64_t page, end;
};

static struct lost lost(const struct kvmfault_fault *fault,
			const struct kvmfault_mapping *mapping)
{
	const struct kvmfault_memory *memory = mapping->span.memory;
	uint64_t start = fault->hva & -fault->length;
	uint64_t last = start + fault->length - 1 - mapping->host;

	start = start > mapping->host ? start - mapping->host : 0;
	if (last >= memory->length)
		last = memory->length - 1;
	return (struct lost){
		.page = start >> memory->page_shift,
		.end = (last >> memory->page_shift) + 1,
	};
}

static bool present(const struct kvmfault_memory *memory, uint64_t page)
{
	return !kvmfault__tracked(memory) ||
	       kvmfault__page_state(memory, page) == KVMFAULT__PRESENT;
}

/* Is there data that can have been lost? A thread met its own page; else any. */
static bool any_present(const struct kvmfault_fault *fault,
			const struct kvmfault__place *place, struct lost lost)
{
	if (fault->entrance == KVMFAULT_ENTRANCE_MARKER)
		return present(place->memory, place->offset >>
			       place->memory->page_shift);
	while (lost.page < lost.end && !present(place->memory, lost.page))
		lost.page++;
	return lost.page < lost.end;
}

static void poison(struct kvmfault_memory *memory, struct lost lost)
{
	for (; lost.page < lost.end; lost.page++)
		kvmfault__page_change(memory, lost.page, KVMFAULT__PRESENT,
				      KVMFAULT__POISONED);
}

static void translate(struct kvmfault_fault *fault,
		      const struct kvmfault__place *place)
{
	const struct kvmfault_region *region;

	if (!place->region)
		return;
	region = &place->region->info;
	fault->known |= KVMFAULT_KNOWN_GPA;
	fault->address_space = region->address_space;
	fault->gpa = region->gpa + place->offset - region->offset;
}

static void at_hva(struct kvmfault__seat *seat, struct kvmfault_fault *fault,
		   struct kvmfault__answer *answer)
{
	struct kvmfault__place place = { 0 };
	struct kvmfault_mapping *mapping;
	struct lost its;

	mapping = kvmfault__mapping_find(seat, 0, fault->hva);
	if (!mapping)
		return;
	its = lost(fault, mapping);
	place.memory = mapping->span.memory;
	place.offset = fault->hva - mapping->host;
	place.region = kvmfault__region_showing(seat, place.memory,
						place.offset);
	translate(fault, &place);
	if (!place.region && seat->vcpu)
		kvmfault__warn_unshown(place.memory, place.offset);
	if (any_present(fault, &place, its)) {
		if (fault->entrance != KVMFAULT_ENTRANCE_FAILURE &&
		    !kvmfault__has_failed(place.memory, fault->hva)) {
			answer->action = KVMFAULT_RETRY;
			return;
		}
		fault->error = EHWPOISON;
		if (kvmfault__tracked(place.memory))
			poison(place.memory, its);
	}
	kvmfault__resolve(seat, fault, &place, answer);
}

void kvmfault__sigbus(struct kvmfault__seat *seat, struct kvmfault_fault *fault,
		      struct kvmfault__answer *answer)
{
	kvmfault__say(answer, KVMFAULT_NOT_A_FAULT);
	/* Before it is seen in the mapping. */
	atomic_store(&seat->at_signal, true);
	at_hva(seat, fault, answer);
	kvmfault__leave(seat);
	atomic_store(&seat->at_signal, false);
}

KVMFAULT__EXPORT
int kvmfault_memory_failed(struct kvmfault_vm *vm, const void *siginfo)
{
	struct kvmfault_fault fault = { .size = sizeof(fault) };
	struct kvmfault__answer answer;
	struct kvmfault__seat *seat;

	if (!vm)
		return -EINVAL;
	if (!siginfo)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_memory_failed: siginfo is NULL");
	kvmfault_decode_siginfo(siginfo, &fault);
	if (fault.entrance == KVMFAULT_ENTRANCE_NONE)
		return -ENOENT;
	seat = kvmfault__call_begin(vm);
	if (!seat)
		return -ENOMEM;
	kvmfault__sigbus(seat, &fault, &answer);
	kvmfault__call_end(seat);
	if (answer.action == KVMFAULT_NOT_A_FAULT)
		return -ENOENT;
	return kvmfault__error(&answer);
}
