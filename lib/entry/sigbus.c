/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Kinds marker and failure: a SIGBUS at a host address, by a marker or by
 * memory that fails in hardware. In: the decoded signal. Out: a marker's page
 * is fetched. If a present page has failed, its state says that its data is
 * lost, and the VMM is told its gpa.
 */

#include "entry.h"

/* The memory's pages that a SIGBUS is about. A failure may be larger than a
 * page, and may begin before the memory does. */
struct lost {
	uint64_t page, end;
};

static struct lost sigbus_find_lost(const struct kvmfault_fault *fault,
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

static bool sigbus_is_present(const struct kvmfault_memory *memory,
			      uint64_t page)
{
	return !kvmfault__tracked(memory) ||
	       kvmfault__page_state(memory, page) == KVMFAULT__PRESENT;
}

/* True if data can be lost: the page that a thread has touched is present, or
 * for a SIGBUS without a touch any of the pages is. */
static bool sigbus_has_present(const struct kvmfault_fault *fault,
			       const struct kvmfault__target *target,
			       struct lost lost)
{
	if (fault->kind == KVMFAULT_KIND_MARKER)
		return sigbus_is_present(target->memory, target->offset >>
					 target->memory->page_shift);
	while (lost.page < lost.end &&
	       !sigbus_is_present(target->memory, lost.page))
		lost.page++;
	return lost.page < lost.end;
}

static void sigbus_poison_pages(struct kvmfault_memory *memory,
				struct lost lost)
{
	for (; lost.page < lost.end; lost.page++)
		kvmfault__page_change(memory, lost.page, KVMFAULT__PRESENT,
				      KVMFAULT__POISONED);
}

static void sigbus_translate_target(struct kvmfault_fault *fault,
				    const struct kvmfault__target *target)
{
	const struct kvmfault_region *region;

	if (!target->region)
		return;
	region = &target->region->info;
	fault->known |= KVMFAULT_KNOWN_GPA;
	fault->address_space = region->address_space;
	fault->gpa = region->gpa + target->offset - region->offset;
}

static void sigbus_resolve_hva(struct kvmfault__seat *seat,
			       struct kvmfault_fault *fault,
			       struct kvmfault__answer *answer)
{
	struct kvmfault__target target = { 0 };
	struct kvmfault_mapping *mapping;
	struct lost its;

	mapping = kvmfault__mapping_find(seat, 0, fault->hva);
	if (!mapping)
		return;
	its = sigbus_find_lost(fault, mapping);
	target.memory = mapping->span.memory;
	target.offset = fault->hva - mapping->host;
	target.region = kvmfault__region_showing(seat, target.memory,
						 target.offset);
	sigbus_translate_target(fault, &target);
	if (!target.region && seat->vcpu)
		kvmfault__warn_unshown(target.memory, target.offset);
	if (sigbus_has_present(fault, &target, its)) {
		if (fault->kind != KVMFAULT_KIND_FAILURE &&
		    !kvmfault__has_failed(target.memory, fault->hva)) {
			answer->action = KVMFAULT_ACTION_RETRY;
			return;
		}
		fault->error = EHWPOISON;
		if (kvmfault__tracked(target.memory))
			sigbus_poison_pages(target.memory, its);
	}
	kvmfault__resolve(seat, fault, &target, answer);
}

void kvmfault__sigbus(struct kvmfault__seat *seat, struct kvmfault_fault *fault,
		      struct kvmfault__answer *answer)
{
	kvmfault__say(answer, KVMFAULT_ACTION_NOT_A_FAULT);
	/* Set before the seat holds the mapping: kvmfault_memory_free() waits
	 * for a seat that has both. */
	atomic_store(&seat->at_signal, true);
	sigbus_resolve_hva(seat, fault, answer);
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
