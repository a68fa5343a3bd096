/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Entrance marker, and memory that fails in hardware. In: a SIGBUS at a host address.
 * Out: a marker's page is fetched; of a page that was there the data is lost, its state
 * says so, and the VMM is told which gpa it is.
 */

#include "entry.h"

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
			const struct kvmfault__target *place, struct lost lost)
{
	if (fault->kind == KVMFAULT_KIND_MARKER)
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
		      const struct kvmfault__target *place)
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
	struct kvmfault__target place = { 0 };
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
		if (fault->kind != KVMFAULT_KIND_FAILURE &&
		    !kvmfault__has_failed(place.memory, fault->hva)) {
			answer->action = KVMFAULT_ACTION_RETRY;
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
	kvmfault__say(answer, KVMFAULT_ACTION_NOT_A_FAULT);
	/* Before it is seen in the mapping. */
	atomic_store(&seat->at_signal, true);
	at_hva(seat, fault, answer);
	kvmfault__leave(seat);
	atomic_store(&seat->at_signal, false);
}

KVMFAULT__EXPORT
int kvmfault_vm_handle_sigbus(struct kvmfault_vm *vm, const void *siginfo)
{
	struct kvmfault_fault fault = { .size = sizeof(fault) };
	struct kvmfault__answer answer;
	struct kvmfault__seat *seat;

	if (!vm)
		return -EINVAL;
	if (!siginfo)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_vm_handle_sigbus: siginfo is NULL");
	kvmfault_decode_siginfo(siginfo, &fault);
	if (fault.kind == KVMFAULT_KIND_NONE)
		return -ENOENT;
	seat = kvmfault__call_begin(vm);
	if (!seat)
		return -ENOMEM;
	kvmfault__sigbus(seat, &fault, &answer);
	kvmfault__call_end(seat);
	if (answer.action == KVMFAULT_ACTION_NOT_A_FAULT)
		return -ENOENT;
	return kvmfault__error(&answer);
}
