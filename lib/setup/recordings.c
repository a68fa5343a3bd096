/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Set-up: recordings. In: the memories of an image, and limits. Out: the runs
 * that faults brought, in the working set. vCPUs may fault all the while: when
 * a recording ends, no thread holds it any more.
 */

#include <string.h>
#include <sys/mman.h>

#include "setup.h"
#include "../resolve/record.h"

#define LIMIT (1ULL << 30)	/* bytes, if the VMM does not say */

#define OPTION "kvmfault_recording_options."
#define ULL(n) ((unsigned long long)(n))

static int recording_check_memory(struct kvmfault_vm *vm,
				  const struct kvmfault_recording_options *o,
				  uint32_t n)
{
	const struct kvmfault_memory *memory = o->memories[n];
	uint64_t end = memory->source_offset + memory->length;

	if (!kvmfault__tracked(memory))
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "memories: number %u has no source, so that none of its pages comes from an image: leave it out",
			n);
	if (end > o->set->image_length)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "memories: number %u ends at %#llx of its source, and the set's image at %#llx: pass memories and the set of one image",
			n, ULL(end), ULL(o->set->image_length));
	return 0;
}

static int recording_check_options(struct kvmfault_vm *vm,
				   const struct kvmfault_recording_options *o)
{
	uint32_t i;
	int err;

	if (!o->set || !o->memories || !o->memory_count)
		return kvmfault__refuse(vm, -EINVAL,
			OPTION "%s: the member is not set", !o->set ? "set" :
			!o->memories ? "memories" : "memory_count");
	err = kvmfault__memories_check(vm, "kvmfault_recording_options",
				       o->memories, o->memory_count);
	for (i = 0; i < o->memory_count && !err; i++)
		err = recording_check_memory(vm, o, i);
	return err;
}

/* The limit is at most all pages of the memories. The array has room for all
 * of it in the smallest of them; it takes no memory that is not used. */
static int recording_make_array(struct kvmfault_recording *new, uint64_t bytes)
{
	unsigned int shift = new->memory[0]->page_shift;
	uint64_t all = 0, size;
	size_t i;
	void *run;
	int err;

	for (i = 0; i < new->memories; i++) {
		all += new->memory[i]->length;
		if (new->memory[i]->page_shift < shift)
			shift = new->memory[i]->page_shift;
	}
	new->limit = bytes < all ? bytes : all;
	size = ((new->limit - 1) >> shift) + 1;
	new->room = size * sizeof(*new->run);
	err = kvmfault__sys_mmap(&run, new->room, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
				 -1, 0);
	new->run = run;
	return err;
}

static void recording_delete(struct kvmfault_recording *recording)
{
	if (recording->run)
		kvmfault__sys_munmap(recording->run, recording->room);
	kvmfault__sys_free(recording);
}

static int recording_make(struct kvmfault_vm *vm,
			  const struct kvmfault_recording_options *o,
			  struct kvmfault_recording **recording)
{
	size_t list = o->memory_count * sizeof(*o->memories);
	struct kvmfault_recording *new;
	int err;

	new = kvmfault__sys_alloc(sizeof(*new) + list, KVMFAULT__CACHE_LINE);
	if (!new)
		return -ENOMEM;
	new->vm = vm;
	new->set = o->set;
	new->memories = o->memory_count;
	memcpy(new->memory, o->memories, list);
	new->until = o->milliseconds ? kvmfault__sys_now() +
				       o->milliseconds * KVMFAULT__MS :
				       UINT64_MAX;
	err = recording_make_array(new, o->bytes ? o->bytes : LIMIT);
	if (err)
		recording_delete(new);
	else
		*recording = new;
	return err;
}

/* Show it to the faults of all its memories. */
static int recording_begin(struct kvmfault_recording *recording)
{
	struct kvmfault_vm *vm = recording->vm;
	bool busy = false;
	size_t i;

	kvmfault__sys_lock(&vm->lock);
	for (i = 0; i < recording->memories; i++)
		busy |= atomic_load(&recording->memory[i]->recording) != NULL;
	for (i = 0; i < recording->memories && !busy; i++)
		atomic_store(&recording->memory[i]->recording, recording);
	vm->recordings += !busy;
	kvmfault__sys_unlock(&vm->lock);
	return busy ? kvmfault__refuse(vm, -EBUSY,
		OPTION "memories: one of them is recorded already: call kvmfault_recording_end() for that recording first") : 0;
}

KVMFAULT__EXPORT
int kvmfault_recording_new(struct kvmfault_vm *vm,
			   const struct kvmfault_recording_options *options,
			   struct kvmfault_recording **recording)
{
	struct kvmfault_recording_options ours;
	struct kvmfault_recording *new;
	int err;

	if (!recording)
		return kvmfault__no_place(vm, "kvmfault_recording_new");
	*recording = NULL;
	err = kvmfault__options_in(vm, "kvmfault_recording_options", &ours,
				   sizeof(ours), options);
	if (err)
		return err;
	if (!vm)
		return -EINVAL;
	err = recording_check_options(vm, &ours);
	if (!err)
		err = recording_make(vm, &ours, &new);
	if (err)
		return err;
	err = recording_begin(new);
	if (err)
		recording_delete(new);
	else
		*recording = new;
	return err;
}

static bool recording_is_held(struct kvmfault__seat *seat, void *recording)
{
	return kvmfault__held(seat, KVMFAULT__HAZARD_RECORDING) == recording;
}

/* Hide it from faults. A second call changes nothing: another recording may
 * have the memories by then, or they may be gone. */
static void recording_stop(struct kvmfault_recording *recording)
{
	struct kvmfault_vm *vm = recording->vm;
	size_t i;

	kvmfault__sys_lock(&vm->lock);
	for (i = 0; i < recording->memories; i++)
		atomic_store(&recording->memory[i]->recording, NULL);
	recording->memories = 0;
	kvmfault__sys_unlock(&vm->lock);
	kvmfault__drain(vm, recording_is_held, recording);
}

KVMFAULT__EXPORT
int kvmfault_recording_end(struct kvmfault_recording *recording)
{
	struct kvmfault_vm *vm;
	int err;

	if (!recording || kvmfault__is_child(recording->vm))
		return 0;
	vm = recording->vm;
	recording_stop(recording);
	err = kvmfault__working_set_add(recording->set, recording->run,
					recording->runs);
	if (err)
		return err;
	recording_delete(recording);
	kvmfault__sys_lock(&vm->lock);
	vm->recordings--;
	kvmfault__sys_unlock(&vm->lock);
	return 0;
}
