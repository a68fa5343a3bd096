/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The VMM. In: a plan's options. Out: a context with memories, regions, vCPUs and
 * a service, and callbacks that behave as the plan says: well, slowly, or badly.
 */

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kvmfault-experimental.h"
#include "sources.h"
#include "states.h"
#include "world.h"

#define LIMIT (25 * MS)			/* of a vCPU that does not wait */

struct world world;

/* ---- who is who ---- */

struct sim_vcpu *world_vcpu(const struct task *task)
{
	unsigned int i;

	for (i = 0; i < world.vcpus; i++)
		if (world.vcpu[i].task == task)
			return &world.vcpu[i];
	return NULL;
}

bool world_is_vcpu(const struct task *task)
{
	return task->on_path && world_vcpu(task) && task->call &&
	       (!strcmp(task->call, "kvmfault_vcpu_handle") ||
		!strcmp(task->call, "kvmfault_vcpu_handle_sigbus"));
}

bool world_masks_sigbus(void)
{
	return option(OPT_delivery) == 1 && !option(OPT_handler) &&
	       !option(OPT_delegate);
}

enum kvmfault_profile world_profile(const struct task *task)
{
	return option(OPT_delegate) && !(task && task->service) ?
		KVMFAULT_PROFILE_DELEGATE : KVMFAULT_PROFILE_INLINE;
}

struct sim_vcpu *world_vcpu_of(const struct vcpu *kvm_vcpu)
{
	unsigned int i;

	for (i = 0; kvm_vcpu && i < world.vcpus; i++)
		if (world.vcpu[i].kvm == kvm_vcpu)
			return &world.vcpu[i];
	return NULL;
}

void world_check_vcpu(const struct sim_vcpu *vcpu)
{
	if (vcpu && vcpu->task && vcpu->task != current && !vcpu->task->call &&
	    vcpu->task->state != ENDED)
		sim_fail("a vCPU is used that its thread has", "%s by %s",
			 vcpu->task->name, current->name);
}

/* In a callback that may use the vCPU: its thread has not left the call. */
static void check_held(void)
{
	struct sim_vcpu *vcpu;

	if (!door_is_worker())
		return;
	vcpu = door_worked_for();
	if (!vcpu)
		sim_fail("a vCPU is used that was freed", "by %s", current->name);
	world_check_vcpu(vcpu);
}

struct sim_memory *world_memory_at(uint64_t gpa)
{
	unsigned int i;

	for (i = 0; i < world.memories; i++)
		if (gpa >= world.memory[i].gpa && gpa - world.memory[i].gpa <
		    world.memory[i].pages * PAGE)
			return &world.memory[i];
	return NULL;
}

struct sim_memory *world_memory_of(const struct file *file)
{
	unsigned int i;

	for (i = 0; file && i < world.memories; i++)
		if (world.memory[i].file == file)
			return &world.memory[i];
	return NULL;
}

/* ---- calls ---- */

void call_begin(struct in_call *in, const char *name, bool path)
{
	*in = (struct in_call){
		.call = current->call, .on_path = current->on_path,
		.callbacks = current->callbacks, .waited = current->waited,
	};
	current->waited = 0;
	current->began = sched_switches();
	current->call = name;
	current->on_path = path;
	current->callbacks = 0;
	tell("%s()", name);
}

void call_end(const struct in_call *in, int64_t ret)
{
	tell("%s() = %lld", current->call, (long long)ret);
	door_check_wake();
	if (current->locked)
		sim_fail("a call returns with a lock held", "%s", current->call);
	/* With the delegate profile it waits for its worker. */
	if (option(OPT_no_wait) && world_is_vcpu(current) &&
	    !option(OPT_delegate) && current->waited > LIMIT)
		sim_fail("a vCPU with no_wait waits", "%s for %llu ms",
			 current->call,
			 (unsigned long long)(current->waited / MS));
	current->waited = in->waited;
	current->call = in->call;
	current->on_path = in->on_path;
	current->callbacks = in->callbacks;
	sim_point();
}

/* ---- what has a reason ---- */

static bool bad_luck(unsigned int injected)
{
	return current->injected != injected || option(OPT_bad_luck);
}

static bool excused(int err, unsigned int injected)
{
	switch (err) {
	case -EINTR:
		return world.signalled || bad_luck(injected);
	case -EAGAIN:
		/* A memory that is being freed is one that changes. */
		return bad_luck(injected) || option(OPT_events) || world.going ||
		       world.regions_changed || option(OPT_resolver) == 7 || option(OPT_answers) == 4;
	case -EIO:
		/* Of a run that was cancelled, or late, it is not known which
		 * page is lost. */
		return bad_luck(injected) || world.source_errors ||
		       world.resolver_errors ||
		       (world.poisons &&
			(world.cancels || option(OPT_deadline)));
	case -EHWPOISON:
		return world.poisons || world.failures;
	case -ECANCELED:
		return world.cancels;
	case -EMFILE:
		return bad_luck(injected);
	case -ENXIO:
		return world.regions_changed;
	case -ENODATA:
		return world.lies || option(OPT_source_short);
	case -ENOMEM:
		return bad_luck(injected) || world.no_memory || world.holes ||
		       option(OPT_huge_pool);
	case -EFAULT:
		return world.holes || world.cuts;
	case -EDEADLK:
		return current->callbacks;
	default:
		return false;
	}
}

void check_error(const char *call, int err, unsigned int injected)
{
	if (err && !excused(err, injected))
		sim_fail("an error without a reason", "%s: %s (%d)", call,
			 strerrorname_np(-err) ? strerrorname_np(-err) : "?", err);
}

/* Of the page that faulted; a neighbour that is gone is no reason. */
static bool is_gone(const struct kvmfault_fault *fault)
{
	const struct sim_memory *memory;

	if (!fault || !(fault->known & KVMFAULT_KNOWN_GPA))
		return world.poisons;
	memory = world_memory_at(fault->gpa);
	return world.poisons && (!memory || world.regions_changed ||
		world.healed ||
		source_lacks(memory,
			     (unsigned int)((fault->gpa - memory->gpa) / PAGE)));
}

static bool is_cut(const struct kvmfault_fault *fault)
{
	const struct sim_memory *memory;

	if (!fault || !(fault->known & KVMFAULT_KNOWN_GPA))
		return world.cuts;
	memory = world_memory_at(fault->gpa);
	return world.cuts && (!memory || memory->unit > 1 ||
		world.cut[memory->id][(fault->gpa - memory->gpa) / PAGE]);
}

void check_unresolved(const struct kvmfault_result *result,
		      unsigned int injected)
{
	bool fine = false;

	switch (result->reason) {
	case KVMFAULT_REASON_NO_REGION:
		fine = world.regions_changed;
		break;
	case KVMFAULT_REASON_SOURCE:
		fine = bad_luck(injected) || world.source_errors ||
		       world.cancels || is_cut(result->fault) ||
		       is_gone(result->fault);
		break;
	case KVMFAULT_REASON_RESOLVER:
		/* A view that is gone is the source's failure. */
		fine = excused(result->error, injected) &&
		       (result->error != -EFAULT || world.holes);
		break;
	case KVMFAULT_REASON_STILL_ABSENT:
		fine = world.lies;
		break;
	case KVMFAULT_REASON_HWPOISON:
		fine = world.failures || is_gone(result->fault);
		break;
	case KVMFAULT_REASON_DECLINED:
		fine = world.regions_changed;
		break;
	case KVMFAULT_REASON_FLAGS:
		fine = world.regions_changed || (result->fault &&
			result->fault->flags & KVM_FLAG_NOBODY_KNOWS);
		break;
	case KVMFAULT_REASON_NO_ADDRESS:
	case KVMFAULT_REASON_NO_PROGRESS:
		fine = bad_luck(injected) || world.holes || world.lies ||
		       world.regions_changed;
		break;
	default:
		break;
	}
	if (!fine)
		sim_fail("a fault is not resolved, without a reason",
			 "reason %s, error %d, entrance %s",
			 kvmfault_reason_str(result->reason), result->error,
			 result->fault ?
			 kvmfault_kind_str(result->fault->kind) : "?");
}

/* ---- callbacks ---- */

static void on_log(void *data, enum kvmfault_log_level level,
		   const char *message)
{
	(void)data;
	callback_begin("log");
	tell("log %d: %s", level, message);
	world.unprotected |= strstr(message, "could not be protected") != NULL;
	callback_end();
}

/* What nobody has discarded is not zero. */
static void check_zeros(const struct kvmfault_change *change)
{
	const struct sim_memory *memory = world.memory;
	uint64_t page = change->offset / PAGE;

	while (memory < &world.memory[MEMORIES] &&
	       memory->handle != change->memory)
		memory++;
	if (memory == &world.memory[MEMORIES] || world.holes ||
	    option(OPT_guest_memfd) || world.lies)
		return;
	for (; page < (change->offset + change->length) / PAGE; page++)
		if (!memory->truth.ever[page])
			sim_fail("a page is said to be zeros that has bytes",
				 "page %llu", (unsigned long long)page);
}

static void on_changed(void *data, const struct kvmfault_change *change)
{
	(void)data;
	callback_begin("changed");
	if (change->cause == KVMFAULT_CAUSE_ZERO)
		check_zeros(change);
	if (!change->length)
		sim_fail("a change of nothing", "cause %d", change->cause);
	callback_end();
}

static void on_unresolved(void *data, const struct kvmfault_sleeper *sleeper)
{
	unsigned int page;

	(void)data;
	callback_begin("unresolved");
	tell("unresolved: %#llx, %s, %d",
	     (unsigned long long)sleeper->fault->hva,
	     kvmfault_reason_str(sleeper->reason), sleeper->error);
	if (!map_at(sleeper->uffd && sleeper->uffd == world.device_uffd ?
		    world.device : our_mm, sleeper->fault->hva, &page) &&
	    !world.holes)
		sim_fail("a sleeper is another process's", "%#llx",
			 (unsigned long long)sleeper->fault->hva);
	if (sleeper->reason == KVMFAULT_REASON_RESOLVER)
		check_error("a sleeper", sleeper->error, 0);
	callback_end();
}

static int on_failed(void *data, const struct kvmfault_failure *failure)
{
	unsigned int i;

	(void)data;
	callback_begin("failed");
	if (!world.poisons && !world.failures)
		sim_fail("memory is said to have failed, and has not",
			 "offset %#llx", (unsigned long long)failure->offset);
	if (failure->vcpu)
		world.told++;
	for (i = 0; i < world.vcpus; i++)
		if (failure->vcpu && failure->vcpu == world.vcpu[i].handle)
			break;
	if (failure->vcpu && i == world.vcpus)
		sim_fail("a vCPU is used that was freed", "by %s",
			 current->name);
	check_held();
	if (option(OPT_delegate) == 2)
		task_pause(sim_below(2) * MS, "a guest that is told");
	if (failure->vcpu)
		world_check_vcpu(&world.vcpu[i]);
	check_held();
	callback_end();
	return 0;
}

static void on_page_ready(void *data, struct kvmfault_memory *memory,
		       uint64_t offset, uint64_t length)
{
	(void)data;
	(void)memory;
	(void)offset;
	(void)length;
	callback_begin("page_ready");
	world.page_ready++;
	task_wake(&world.page_ready, TASKS);
	callback_end();
}

/* It may fail after some pages: it is called once more then, to set them back. */
static int set_in_steps(void *data, uint64_t gpa, uint64_t length, bool private)
{
	uint64_t at;
	int err = 0;

	(void)data;
	callback_begin("set");
	check_held();
	for (at = gpa; at < gpa + length && !err; at += PAGE) {
		kvm.private[at / PAGE % GFNS] = private;
		sim_point();
		if (current->sets_back || world.healed || !sim_one_in(6))
			continue;
		world.sets_failed++;
		world.no_memory++;
		err = -ENOMEM;
	}
	current->sets_back = err;
	check_held();
	tell("KVM is told %#llx+%#llx, %s: %d", (unsigned long long)gpa,
	     (unsigned long long)length, private ? "private" : "shared", err);
	callback_end();
	return err;
}

static int before_conversion(void *data, uint64_t gpa, uint64_t length,
			     bool private)
{
	int err = 0;

	(void)data;
	(void)gpa;
	(void)length;
	(void)private;
	callback_begin("before a conversion");
	check_held();
	/* Others that want the same page meet it. */
	if (option(OPT_no_wait) && !world.healed && sim_one_in(2))
		task_pause(2 * MS, "a slow hook");
	if (option(OPT_hooks) == 2 && !world.healed && sim_one_in(4)) {
		world.resolver_errors++;
		err = -EIO;
	}
	world.hooked += !err;
	callback_end();
	return err;
}

/* Once for each one before it; undone: KVM has been told so, if it listened. */
static void after_conversion(void *data, uint64_t gpa, uint64_t length,
			     bool private, bool done)
{
	uint64_t at;

	(void)data;
	callback_begin("after a conversion");
	check_held();
	world.hooked--;
	for (at = gpa; !done && at < gpa + length && !kvm.refuses;
	     at += PAGE)
		if (kvm.private[at / PAGE] == private && world.converting == 1)
			sim_fail("a conversion is left half done",
				 "gpa %#llx", (unsigned long long)at);
	for (at = gpa; done && at < gpa + length; at += PAGE)
		if (kvm.private[at / PAGE] != private)
			sim_fail("a hook is told of what is not so",
				 "gpa %#llx", (unsigned long long)at);
	callback_end();
}

/* ---- making it ---- */

static const enum kvmfault_delivery deliveries[] = {
	KVMFAULT_DELIVERY_UFFD, KVMFAULT_DELIVERY_MARKER_EXIT,
	KVMFAULT_DELIVERY_KERNEL_EXIT, KVMFAULT_DELIVERY_KERNEL_EXIT,
};

static int make_vm(void)
{
	static const uint32_t flags[] = {
		0, KVMFAULT_CONVERTER_KEEP_SHARED,
		KVMFAULT_CONVERTER_KEEP_PRIVATE, KVMFAULT_CONVERTER_CALLS_ONLY,
	};
	const struct kvmfault_converter converter = {
		.size = sizeof(converter),
		.flags = flags[option(OPT_converter)],
		.set = option(OPT_own_set) ? set_in_steps : NULL,
	};
	const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops),
		.log = on_log,
		.changed = on_changed,
		.unresolved = on_unresolved,
		.failed = on_failed,
		.page_ready = on_page_ready,
	};
	const struct kvmfault_vm_options options = {
		.size = sizeof(options),
		.page_size_max = HUGE_PAGES * PAGE,
		.retry_budget = option(OPT_retry_budget) ? 6 : 0,
		.ops = &ops,
		.fetches = 1 + option(OPT_fetches),
		.converter = &converter,
		.vm_fd = world.vm_fd,
		.source_retries = option(OPT_source_retries) ?
				  option(OPT_source_retries) :
				  KVMFAULT_NO_RETRIES,
		.prefault = option(OPT_prefault),
		.allow = option(OPT_shadow) ? KVMFAULT_ALLOW_SHADOW_PAGING : 0,
		.delivery = deliveries[option(OPT_delivery)],
		.kvm_fd = world.kvm_fd,
	};

	return CALL(kvmfault_vm_new, false, kvmfault_vm_new(&options, &world.vm));
}

static int make_hooks(void)
{
	const struct kvmfault_conversion_hook hook = {
		.size = sizeof(hook),
		.before = before_conversion,
		.after = after_conversion,
	};

	if (!option(OPT_hooks))
		return 0;
	return CALL(kvmfault_conversion_hook_add, false,
		    kvmfault_conversion_hook_add(world.vm, &hook));
}

int world_open(struct file *file)
{
	struct open *open;
	int fd = fd_new(KIND_FILE, false, &open);

	open->file = file;
	return fd;
}

/* Where it comes from, and where it is mapped. */
static void back_memory(struct sim_memory *memory)
{
	unsigned int backing = option(OPT_backing);

	memory->unit = backing == 1 ? HUGE_PAGES : 1;
	memory->pages = (4U << option(OPT_pages)) * memory->unit;
	if (memory->pages > MEMORY_PAGES)
		memory->pages = MEMORY_PAGES;
	if (backing != 2) {
		memory->file = file_new(memory->pages, backing == 1, false);
		memory->fd = world_open(memory->file);
	}
	memory->memslots = mm_map(our_mm, memory->file, 0, memory->pages,
				  PROT_READ | PROT_WRITE, !memory->file);
	if (memory->file && option(OPT_own))
		memory->own = mm_map(our_mm, memory->file, 0, memory->pages,
				     PROT_READ | PROT_WRITE, false);
	if (world.device && option(OPT_device) == 2)
		world.device->next_start = memory->memslots;
	if (memory->file && world.device)
		memory->remote = mm_map(world.device, memory->file, 0,
					memory->pages, PROT_READ | PROT_WRITE,
					false);
	if (option(OPT_split) && memory->unit == 1)
		mm_split(our_mm, memory->memslots + PAGE, 2 * PAGE);
}

/* It was a guest's before: old bytes, and page tables that have them. */
static void use_before(struct sim_memory *memory)
{
	unsigned int i;
	frame_t frame;

	for (i = 0; i < memory->pages; i += 1 + sim_below(3)) {
		uint64_t old = 0xdeadUL;

		file_write(memory->file, i * PAGE, &old, sizeof(old));
		if (sim_one_in(2))
			mm_access(our_mm, memory->memslots + i * PAGE, true, false,
				  &frame);
	}
}

static int make_uffd(struct kvmfault_uffd **uffd, bool adopt)
{
	struct kvmfault_uffd_options options = { .size = sizeof(options) };
	struct uffdio_api api = {
		.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE,
	};
	struct open *open;
	int err;

	if (adopt) {
		options.fd = fd_new(KIND_UFFD, false, &open);
		open->flags = O_NONBLOCK;
		open->uffd = uffd_new(our_mm);
		uffd_ioctl(open->uffd, UFFDIO_API, &api);
	}
	err = CALL(kvmfault_uffd_new, false,
		   kvmfault_uffd_new(world.vm, &options, uffd));
	if (adopt)
		fd_close(options.fd, false);
	return err;
}

static void free_source(struct sim_memory *memory)
{
	CALL(kvmfault_source_free, false,
	     (kvmfault_source_free(&memory->source), 0));
}

int world_make_memory(struct sim_memory *memory)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.host = (void *)(uintptr_t)memory->memslots,
		.length = memory->pages * PAGE,
		.page_size = memory->unit * PAGE,
		.fd = memory->fd,
		.source = &memory->source,
		.window = option(OPT_window),
		.window_length = memory->unit * PAGE,
		.minor = option(OPT_minor) && memory->file,
		.write_protect = option(OPT_write_protect),
		.uffd = memory->adopted,
		.states_fd = memory->states_fd,
	};
	int err;

	while (options.window_length < PAGE << option(OPT_window_pages))
		options.window_length *= 2;
	if (options.window_length > HUGE_PAGES * PAGE)
		options.window_length = HUGE_PAGES * PAGE;
	source_make(memory, &memory->source);
	err = CALL(kvmfault_memory_adopt, false,
		   kvmfault_memory_adopt(world.vm, &options, &memory->handle));
	memory->exists = !err;
	if (err)
		free_source(memory);
	return err;
}

/* What holds pages already would never fault. */
static void refuse_used(struct sim_memory *memory)
{
	int err = world_make_memory(memory);

	if (err != -EEXIST && err != -ENOMEM)
		sim_fail("memory that was used is taken for empty", "%d", err);
	file_punch(memory->file, 0, memory->pages * PAGE);
}

int world_add_own(struct sim_memory *memory)
{
	const struct kvmfault_mapping_options options = {
		.size = sizeof(options), .host = memory->own,
		.uffd = memory->settled ? NULL : memory->own_uffd,
	};

	return CALL(kvmfault_mapping_add, false,
		    kvmfault_mapping_add(memory->handle, &options,
					 &memory->own_mapping));
}

int world_add_remote(struct sim_memory *memory)
{
	const struct kvmfault_mapping_options options = {
		.size = sizeof(options), .host = memory->remote,
		.uffd = world.device_uffd,
	};

	return CALL(kvmfault_mapping_add, false,
		    kvmfault_mapping_add(memory->handle, &options,
					 &memory->remote_mapping));
}

/* Private memory is never read-only. */
bool world_is_rom(const struct sim_memory *memory)
{
	return option(OPT_rom) && !memory->id && !option(OPT_guest_memfd);
}

/* The regions that show it, one after the other. */
static unsigned int parts(void)
{
	return 1 + option(OPT_halves);
}

static uint64_t part_length(const struct sim_memory *memory)
{
	return memory->pages * PAGE / parts();
}

static int set_slot(struct sim_memory *memory, unsigned int part)
{
	struct kvmfault_memslot memslot = { .size = sizeof(memslot) };
	uint64_t offset = part * part_length(memory);
	struct slot slot = {
		.used = true, .gpa = memory->gpa + offset,
		.length = part_length(memory),
		.host = memory->memslots + offset,
		.guest_memfd = memory->guest_memfd,
		.guest_memfd_offset = offset,
		.readonly = world_is_rom(memory),
	};
	int err;

	err = CALL(kvmfault_region_memslot, false,
		   kvmfault_region_memslot(world.vm, 0, slot.gpa, &memslot));
	if (err)
		return err;
	slot.flags = memslot.flags;
	slot.bitmap = memslot.userfault_bitmap;
	return kvm_set_slot(memory->id + part * MEMORIES, &slot);
}

int world_set_slot(struct sim_memory *memory)
{
	unsigned int part;
	int err = 0;

	for (part = 0; part < memory->parts && !err; part++)
		err = set_slot(memory, part);
	return err;
}

void world_clear_slot(const struct sim_memory *memory)
{
	const struct slot none = { 0 };
	unsigned int part;

	for (part = 0; part < parts(); part++)
		kvm_set_slot(memory->id + part * MEMORIES, &none);
}

struct kvmfault_region world_part(const struct sim_memory *memory,
				  unsigned int part)
{
	uint64_t offset = part * part_length(memory);

	return (struct kvmfault_region){
		.size = sizeof(struct kvmfault_region),
		.gpa = memory->gpa + offset,
		.length = part_length(memory),
		.memory = memory->handle,
		.offset = offset,
		.guest_memfd = memory->guest_memfd_fd,
		.guest_memfd_offset = offset,
		.flags = world_is_rom(memory) ? KVMFAULT_REGION_READONLY : 0,
	};
}

static int add_part(struct sim_memory *memory, unsigned int part)
{
	const struct kvmfault_region region = world_part(memory, part);

	return CALL(kvmfault_region_add, false,
		    kvmfault_region_add(world.vm, &region));
}

int world_add_region(struct sim_memory *memory)
{
	int err = 0;

	while (memory->parts < parts()) {
		err = add_part(memory, memory->parts);
		if (err)
			return err;
		memory->parts++;
	}
	memory->shown = true;
	return world_set_slot(memory);
}

int world_remove_region(struct sim_memory *memory)
{
	int err;

	memory->shown = false;
	while (memory->parts) {
		err = CALL(kvmfault_region_remove, false,
			   kvmfault_region_remove(world.vm, 0, memory->gpa +
						  (memory->parts - 1) *
						  part_length(memory)));
		if (err)
			return err;
		memory->parts--;
	}
	return 0;
}

static void set_truth(struct sim_memory *memory)
{
	static const char *const names[] = { "memory 0", "memory 1" };
	static const char *const hidden[] = { "private 0", "private 1" };
	unsigned int page, word;

	truth_init(&memory->truth, names[memory->id], memory->pages);
	truth_init(&memory->hidden, hidden[memory->id], memory->pages);
	/* Of what is private the shared side goes when it can. */
	memory->truth.loose = memory->hidden.loose = option(OPT_guest_memfd);
	/* What has failed in hardware stays so in another process. */
	memory->truth.mends = !option(OPT_bad_luck);
	memory->then = calloc((size_t)memory->pages * WORDS,
			      sizeof(*memory->then));
	memory->saved = calloc(memory->pages, 1);
	for (page = 0; page < memory->pages; page++)
		for (word = 0; word < WORDS; word++) {
			truth_first(&memory->truth, page, word,
				    source_word(memory, page, word));
			truth_first(&memory->hidden, page, word, 0);
		}
}

static void must(int err, const char *what)
{
	if (err)
		sim_fail("set-up fails", "%s: %d", what, err);
}

static void make_memory(struct sim_memory *memory, unsigned int id)
{
	memory->id = id;
	memory->gpa = id * MEMORY_PAGES * PAGE;
	back_memory(memory);
	set_truth(memory);
	if (option(OPT_guest_memfd)) {
		memory->guest_memfd = file_new(memory->pages, false, true);
		memory->guest_memfd_fd = world_open(memory->guest_memfd);
	}
	if (option(OPT_populated) && memory->file)
		use_before(memory);
	states_make(memory);
	if (option(OPT_events))
		must(make_uffd(&memory->adopted, true), "a userfaultfd");
	if (memory->own && option(OPT_own_uffd))
		must(make_uffd(&memory->own_uffd, false), "a userfaultfd");
	if (option(OPT_populated) && memory->file && !option(OPT_minor))
		refuse_used(memory);
	must(world_make_memory(memory), "a memory");
	if (memory->own)
		must(world_add_own(memory), "a mapping");
	if (memory->remote)
		must(world_add_remote(memory), "another process's mapping");
	must(world_add_region(memory), "a region");
}

int world_make_vcpu(struct sim_vcpu *vcpu)
{
	const struct kvmfault_vcpu_options options = {
		.size = sizeof(options),
		.fd = vcpu->kvm->fd,
		.run = &vcpu->run,
		.no_wait = option(OPT_no_wait),
		.sigbus = world_masks_sigbus() ? KVMFAULT_SIGBUS_MASKED :
						 KVMFAULT_SIGBUS_HANDLER,
		.profile = world_profile(NULL),
	};

	int err = CALL(kvmfault_vcpu_new, false,
		       kvmfault_vcpu_new(world.vm, &options, &vcpu->handle));

	if (!err)
		door_check_idle(vcpu->handle);
	return err;
}

static void make_vcpus(void)
{
	unsigned int i;

	for (i = 0; i < world.vcpus; i++) {
		struct sim_vcpu *vcpu = &world.vcpu[i];

		vcpu->id = i;
		vcpu->kvm = vcpu_of(kvm_new_vcpu(&vcpu->run));
		must(world_make_vcpu(vcpu), "a vCPU");
	}
}

int world_make_service(unsigned int threads)
{
	const struct kvmfault_service_options options = {
		.size = sizeof(options), .threads = threads,
		.poll_us = sim_one_in(2) ? 0 : KVMFAULT_NO_POLL,
	};

	return CALL(kvmfault_service_new, false,
		    kvmfault_service_new(world.vm, &options, &world.service));
}

static void ignore(struct task *task, int signo)
{
	(void)task;
	(void)signo;
}

static void make_device(void)
{
	struct kvmfault_uffd_options options = {
		.size = sizeof(options), .remote = true,
	};
	struct uffdio_api api = { .api = UFFD_API };
	struct open *open;

	options.fd = fd_new(KIND_UFFD, false, &open);
	open->flags = O_NONBLOCK;
	open->uffd = uffd_new(world.device);
	uffd_ioctl(open->uffd, UFFDIO_API, &api);
	must(CALL(kvmfault_uffd_new, false,
		  kvmfault_uffd_new(world.vm, &options, &world.device_uffd)),
	     "another process's userfaultfd");
}

static void make_kvm(void)
{
	struct open *open;

	world.kvm_fd = fd_new(KIND_KVM, false, &open);
	world.vm_fd = fd_new(KIND_VM, false, &open);
	kvm.abi = option(OPT_delivery) >= 2 ? (int)option(OPT_delivery) - 1 :
		  option(OPT_exits) ? 3 : 0;
	kvm.two_dimensional = !option(OPT_shadow);
	kvm.prefault = option(OPT_prefault);
	kvm.newer = option(OPT_exits);
	/* Which has no such call. */
	kvm.arm64 = kvm.two_dimensional && !kvm.prefault;
	kvm.decides = option(OPT_converter) == 3;
	world.no_cachestat = option(OPT_no_cachestat);
	huge_exists = sim_one_in(2);
}

static unsigned int count_role(enum role role)
{
	unsigned int i, n = 0;

	for (i = 0; i < world.plan->actors; i++)
		n += world.plan->actor[i].role == role;
	return n;
}

void world_make(void)
{
	static const uint32_t luck[] = { 0, 200, 30 };
	unsigned int i;

	world.vcpus = count_role(ROLE_VCPU);
	if (world.vcpus > VCPUS_MAX)
		world.vcpus = VCPUS_MAX;
	world.memories = 1 + option(OPT_memories);
	/* As a vCPU's thread has it. */
	current->on_signal = ignore;
	if (world_masks_sigbus())
		current->blocked = 1ULL << (SIGBUS - 1);
	make_kvm();
	must(make_vm(), "a context");
	must(make_hooks(), "a hook");
	must(resolver_make(), "a resolver");
	if (count_role(ROLE_DEVICE)) {
		world.device = mm_new(false);
		make_device();
	}
	if (option(OPT_late_memory))
		make_vcpus();
	for (i = 0; i < world.memories; i++)
		make_memory(&world.memory[i], i);
	tables_make();
	if (!option(OPT_late_memory))
		make_vcpus();
	must(world_make_service(option(OPT_service)), "a service");
	sources_cut(true);
	if (option(OPT_huge_pool))
		huge_pool = 1 + sim_below(3);
	door_fail_one_in = luck[option(OPT_bad_luck)];
	kvm.unlucky = option(OPT_bad_luck);
}

void world_heal(void)
{
	tell("---- from here on all is well ----");
	world.healed = true;
	world.later_until = 0;
	door_fail_one_in = 0;
	kvm.unlucky = false;
	huge_pool = 1000;
	sources_heal();
	task_wake(&world.page_ready, TASKS);
}

/* ---- the end ---- */

/* Whatever can be read there without sleeping has to be right. */
void world_check_closed(struct sim_memory *memory, struct mm *mm, uint64_t at,
			const char *who)
{
	unsigned int page, word;
	struct uffd *uffd;
	uint64_t flags, value;
	frame_t frame;

	for (page = 0; at && page < memory->pages; page++) {
		if (mm_try(mm, at + page * PAGE, false, &frame, &uffd, &flags) !=
		    ACCESS_OK || uffd)
			continue;
		for (word = 0; word < WORDS; word++) {
			memcpy(&value, frame_bytes(frame) + oracle_word[word], 8);
			truth_read(&memory->truth, page, word, value, who);
		}
	}
}

void world_free_memory(struct sim_memory *memory)
{
	int err = CALL(kvmfault_memory_free, false,
		       kvmfault_memory_free(memory->handle));

	if (err)
		sim_fail("a memory can't be freed", "%d", err);
	free_source(memory);
	memory->exists = memory->settled = memory->settling = false;
	memory->has_settled = false;
	memory->handle = NULL;
	memory->own_mapping = memory->remote_mapping = NULL;
	/* Whether these did work or not: nobody is to read zeros. */
	world_check_closed(memory, our_mm, memory->memslots,
			   "who reads memory that was freed");
	world_check_closed(memory, our_mm, memory->own,
			   "who reads memory that was freed");
	if (world.device && !world.device->dead)
		world_check_closed(memory, world.device, memory->remote,
				   "a process whose memory was freed");
}

/* With no point in between: nobody finds the states of what is gone. */
static void empty_memory(struct sim_memory *memory)
{
	unsigned int page, word;

	if (memory->file)
		file_punch(memory->file, 0, memory->pages * PAGE);
	states_empty(memory);
	for (page = 0; page < memory->pages; page++)
		for (word = 0; word < WORDS; word++)
			truth_anew(&memory->truth, page, word,
				   source_word(memory, page, word));
}

int world_plug_memory(struct sim_memory *memory, bool same)
{
	int err;

	/* Only what is watched may be touched. */
	if (memory->own)
		mm_protect(our_mm, memory->own, memory->pages * PAGE,
			   PROT_NONE);
	mm_map_again(our_mm, memory->memslots, PROT_NONE);
	if (!same)
		empty_memory(memory);
	err = world_make_memory(memory);
	if (!err && same)
		memory->settled = memory->settling = memory->has_settled =
			states_say_settled(memory);
	if (!err)
		mm_protect(our_mm, memory->memslots, memory->pages * PAGE,
			   PROT_READ | PROT_WRITE);
	return err;
}

static void check_memory(struct sim_memory *memory, struct mm *mm, uint64_t at,
			 const char *who)
{
	unsigned int page, word;
	uint64_t value;

	for (page = 0; page < memory->pages; page++) {
		for (word = 0; word < WORDS; word++) {
			enum access access = mm_read(mm, at + page * PAGE +
						     oracle_word[word], &value);

			if (access != ACCESS_OK &&
			    !truth_word(&memory->truth, page, word)->lost &&
			    !world.holes)
				sim_fail("memory that can't be read",
					 "%s, page %u: %d", who, page, access);
			if (access != ACCESS_OK)
				break;
			truth_read(&memory->truth, page, word, value, who);
		}
	}
}

void world_check(void)
{
	unsigned int i;

	for (i = 0; i < world.memories; i++) {
		struct sim_memory *memory = &world.memory[i];

		if (!memory->exists)
			continue;
		door_check_bits(memory->handle);
		if (option(OPT_delivery) == 1)
			door_check_unmarked(memory);
		if (option(OPT_delivery) == 1)
			door_check_markers(memory);
		check_memory(memory, our_mm, memory->own ? memory->own :
			     memory->memslots, "the last reader");
		if (memory->own && option(OPT_delivery) != 1)
			check_memory(memory, our_mm, memory->memslots,
				     "the last reader of the memslots'");
		if (memory->remote_mapping && !world.device->dead &&
		    !world.holes && !world.failures && !option(OPT_bad_luck))
			check_memory(memory, world.device, memory->remote,
				     "the last reader of another process");
	}
}

/* A mapping goes with its memory, or before it: in every other run. With markers
 * the VMM needs a second one. */
static void end_mapping(struct sim_memory *memory)
{
	if (!memory->exists || !memory->own_mapping ||
	    option(OPT_delivery) == 1 || world.plan->choices % 2)
		return;
	must(CALL(kvmfault_mapping_remove, false,
		  kvmfault_mapping_remove(memory->own_mapping)),
	     "to remove a mapping");
	memory->own_mapping = NULL;
	world_check_closed(memory, our_mm, memory->own,
			   "who reads a mapping that was removed");
}

void world_end(void)
{
	unsigned int i;

	steps_end();
	if (world.hooked)
		sim_fail("a hook is not told of the end", "of %u conversions",
			 world.hooked);
	for (i = 0; i < world.vcpus; i++) {
		struct kvmfault_vcpu *old = world.vcpu[i].handle;

		world.vcpu[i].handle = NULL;
		if (old)
			CALL(kvmfault_vcpu_free, false,
			     (kvmfault_vcpu_free(old), 0));
	}
	if (world.service)
		must(CALL(kvmfault_service_free, false,
			  kvmfault_service_free(world.service)),
		     "to free the service");
	for (i = 0; i < world.memories; i++) {
		struct sim_memory *memory = &world.memory[i];

		end_mapping(memory);
		must(world_remove_region(memory), "to remove a region");
		if (memory->exists)
			world_free_memory(memory);
		if (memory->own_uffd)
			must(CALL(kvmfault_uffd_free, false,
				  kvmfault_uffd_free(memory->own_uffd)),
			     "to free a userfaultfd");
		if (memory->adopted)
			must(CALL(kvmfault_uffd_free, false,
				  kvmfault_uffd_free(memory->adopted)),
			     "to free a userfaultfd");
	}
	if (world.device_uffd)
		must(CALL(kvmfault_uffd_free, false,
			  kvmfault_uffd_free(world.device_uffd)),
		     "to free a userfaultfd");
	door_check_pending();
	must(CALL(kvmfault_vm_free, false, kvmfault_vm_free(world.vm)),
	     "to free the context");
	world.vm = NULL;
	sources_end();
	/* What guards absent pages stays open, as the manual says. */
	if (!world.unprotected)
		door_check_leaks();
}

void world_reset(const struct plan *plan)
{
	world_free();
	memset(&world, 0, sizeof(world));
	world.plan = plan;
	fds_reset();
	mm_reset();
	kvm_reset();
	door_reset();
	sources_reset();
	states_reset();
	tables_reset();
}

void world_free(void)
{
	unsigned int i;

	for (i = 0; i < MEMORIES; i++) {
		truth_free(&world.memory[i].truth);
		truth_free(&world.memory[i].hidden);
		free(world.memory[i].then);
		free(world.memory[i].saved);
	}
}
