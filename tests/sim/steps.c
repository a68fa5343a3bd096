/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The grammar's steps. In: a plan's actors. Out: each a task that does its steps,
 * one after the other, as a VMM may that has read the manual; and what comes back
 * is compared with what it has to be. A step that would be a bug of the VMM's
 * (a handle that another thread is just freeing) is passed over.
 */

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "kvmfault-experimental.h"
#include "lib/os/abi.h"
#include "sources.h"
#include "states.h"
#include "world.h"

#define OTHER_PAGES 4U
#define KILL_WAITS 40U			/* for another state */

struct acting {
	const struct actor *actor;
	struct sim_vcpu *vcpu;
	struct task *task;
	unsigned int done;		/* steps */
	uint64_t last;			/* a value that it has written */
};

static struct acting acting[ACTORS];
static unsigned int acting_count;

static struct task *dispatcher;		/* NULL: the service has threads */
static struct task *checker;		/* the last reader; NULL: not yet */

/* ---- what steps are about ---- */

static struct sim_memory *memory_for(const struct step *step)
{
	return &world.memory[step->a / 2 % world.memories];
}

static unsigned int page_of(const struct sim_memory *memory, uint16_t n)
{
	return n * memory->unit % memory->pages;
}

/* As many pages from the first on, whole ones of the memory. */
static unsigned int count_of(const struct sim_memory *memory, unsigned int page,
			     uint16_t n)
{
	unsigned int count = (1 + n) * memory->unit;

	return count < memory->pages - page ? count : memory->pages - page;
}

static uint64_t new_value(struct acting *a)
{
	return ++a->last << 8 | (uint64_t)(a - acting + 1) << 48 | 1;
}

/* A writer waits while a snapshot begins. */
static void begin_write(void)
{
	while (world.paused)
		task_sleep(&world.paused, "the end of a pause", NEVER, false);
	world.writing++;
}

static void end_write(void)
{
	world.writing--;
	task_wake(&world.writing, TASKS);
}

static bool giving_up(const struct acting *a)
{
	return a->vcpu && a->vcpu->stopped;
}

/* In a snapshot each page is saved before somebody writes to it. */
static void check_saved(const struct sim_memory *memory, unsigned int page,
			const char *who)
{
	if (memory->watched && page >= memory->first &&
	    page - memory->first < memory->count && !memory->saved[page] &&
	    !memory->then[page * WORDS].lost && !world.ever_private &&
	    !world.unprotected)
		sim_fail("a page is written that was not saved", "%s, page %u",
			 who, page);
}

/* ---- vCPUs ---- */

static const char swallowed[] = "a SIGBUS that is not the guest's is taken";

/* Somebody has sent it: kill(), or an error of the VMM's own. */
static bool is_others(const siginfo_t *info)
{
	return info->si_code == SI_USER;
}

static bool others_is_pending(const struct task *task)
{
	return task->pending >> (SIGBUS - 1) & 1 && is_others(&task->sigbus);
}

static void take_marker(struct task *task, int signo)
{
	struct sim_vcpu *vcpu = world_vcpu(task);
	bool taken, others;

	tell("a signal: %d", signo);
	if (signo != SIGBUS || !vcpu || !vcpu->handle)
		return;
	others = is_others(&task->sigbus);
	task->handler = true;
	taken = option(OPT_delivery) == 1 &&
		kvmfault_vcpu_note_sigbus(vcpu->handle, &task->sigbus);
	task->handler = false;
	if (taken && others)
		sim_fail(swallowed, "%s's handler", task->name);
	if (taken || others)
		return;
	vcpu->info = task->sigbus;
	vcpu->bus = true;
}

/* False: its time was over, and nobody else has anything to do. */
static bool await_page_ready(uint64_t before)
{
	enum woken how = WOKEN;
	uint64_t limit = sim_now() + 50 * MS;

	/* A resolver's "later" is the VMM's own affair. */
	if (option(OPT_resolver) == 7)
		limit = sim_now() + 2 * MS;
	while (world.page_ready == before && sim_now() < limit) {
		how = task_sleep(&world.page_ready, "page_ready()", limit, true);
		if (how == SIGNALLED)
			task_handle_signals();
	}
	return how != LATE || !sched_was_idle() || option(OPT_resolver) == 7;
}

/* Whoever looks again and finds that it has come had to be told of it. */
static void check_told(const struct sim_vcpu *vcpu, uint32_t switches,
		       enum kvmfault_action action)
{
	bool came = action == KVMFAULT_ACTION_RETRY ||
		(action == KVMFAULT_ACTION_NOT_A_FAULT && vcpu->kvm->done);

	if (switches == sched_switches() && came &&
	    !option(OPT_bad_luck) && !world.holes && !world.regions_changed)
		sim_fail("page_ready() does not come", "vcpu%u", vcpu->id);
}

/* What the guest saw or did: at the moment when KVM_RUN did it. */
static void account(struct sim_vcpu *vcpu)
{
	const struct access_wanted *did = &vcpu->kvm->now;
	struct sim_memory *memory = world_memory_at(did->gpa);
	unsigned int page, word;
	struct truth *truth;

	if (!memory)
		return;
	page = (unsigned int)((did->gpa - memory->gpa) / PAGE);
	truth = did->private ? &memory->hidden : &memory->truth;

	for (word = 0; word < WORDS; word++)
		if (oracle_word[word] == did->gpa % PAGE)
			break;
	if (word == WORDS)
		return;
	if (did->write && !did->private)
		check_saved(memory, page, "the guest");
	if (did->write)
		truth_write(truth, page, word, did->value);
	else
		truth_read(truth, page, word, did->value, "the guest");
}

struct mmio {				/* the library does an access */
	bool on;
	struct sim_memory *memory;
	unsigned int page, word;
	uint32_t version;
	struct word before;
};

static void mmio_begin(struct sim_vcpu *vcpu, struct mmio *mmio)
{
	const struct access_wanted *did = &vcpu->kvm->now;

	*mmio = (struct mmio){ .memory = world_memory_at(did->gpa) };
	mmio->on = vcpu->run.exit_reason == KVM_EXIT_MMIO && mmio->memory &&
		!(did->write && world_is_rom(mmio->memory));
	if (!mmio->on)
		return;
	mmio->page = (unsigned int)((did->gpa - mmio->memory->gpa) / PAGE);
	while (mmio->word < WORDS && oracle_word[mmio->word] != did->gpa % PAGE)
		mmio->word++;
	mmio->before = *truth_word(&mmio->memory->truth, mmio->page, mmio->word);
	if (did->write)
		mmio->version = truth_write_begin(&mmio->memory->truth, mmio->page,
						  mmio->word, did->value);
	else
		mmio->version = mmio->before.version;
}

static void mmio_end(struct sim_vcpu *vcpu, struct mmio *mmio, bool done)
{
	const struct access_wanted *did = &vcpu->kvm->now;
	struct word *word;
	uint64_t value;

	if (!mmio->on)
		return;
	word = truth_word(&mmio->memory->truth, mmio->page, mmio->word);
	if (did->write && done)
		check_saved(mmio->memory, mmio->page, "MMIO");
	if (did->write) {
		truth_write_end(&mmio->memory->truth, mmio->page, mmio->word,
				did->value, mmio->version, done);
		return;
	}
	if (!done)
		return;
	memcpy(&value, vcpu->run.mmio.data, sizeof(value));
	tell("MMIO has read %#llx", (unsigned long long)value);
	if (word->version > mmio->version + 1 ||
	    word_may_be(&mmio->before, value) || word_may_be(word, value))
		return;
	sim_fail(value ? "wrong bytes" : "zeros in place of data",
		 "MMIO reads page %u, word %u: %#llx", mmio->page, mmio->word,
		 (unsigned long long)value);
}

/* What an exit with KVM_EXIT_MEMORY_FAULT may have converted. */
static void conversion_begin(struct sim_vcpu *vcpu, bool *begun)
{
	const struct access_wanted *did = &vcpu->kvm->now;
	struct sim_memory *memory = world_memory_at(did->gpa);
	unsigned int page;

	*begun = vcpu->run.exit_reason == 39 && memory && memory->guest_memfd;
	if (!*begun)
		return;
	page = (unsigned int)((did->gpa - memory->gpa) / PAGE);
	page -= page % memory->unit;
	world.conversions++;
	world.converting++;
	truth_discard_begin(&memory->truth, page, memory->unit);
	truth_discard_begin(&memory->hidden, page, memory->unit);
}

static void conversion_end(struct sim_vcpu *vcpu, bool begun)
{
	const struct access_wanted *did = &vcpu->kvm->now;
	struct sim_memory *memory = world_memory_at(did->gpa);
	unsigned int page;

	if (!begun)
		return;
	page = (unsigned int)((did->gpa - memory->gpa) / PAGE);
	page -= page % memory->unit;
	truth_discard_end(&memory->truth, page, memory->unit, false);
	truth_discard_end(&memory->hidden, page, memory->unit, false);
	world.converting--;
}

/* What is said of an exit is what the model's KVM did. */
static void check_decoded(const struct sim_vcpu *vcpu, int ret, int err)
{
	struct kvmfault_fault fault = { .size = sizeof(fault) };
	bool exit = ret && err != EINTR && vcpu->run.exit_reason == 39;
	bool mmio = !ret && vcpu->run.exit_reason == KVM_EXIT_MMIO;
	uint64_t gpa = vcpu->kvm->told;

	CALL(kvmfault_decode, true,
	     kvmfault_decode(ret, err, &vcpu->run, &fault));
	if (!(fault.known & KVMFAULT_KNOWN_GPA) != !(exit || mmio) ||
	    ((exit || mmio) && fault.gpa != gpa) ||
	    (ret && err == EINTR && fault.kind != KVMFAULT_KIND_NONE))
		sim_fail("an exit is decoded otherwise", "gpa %#llx, and it is %#llx",
			 (unsigned long long)fault.gpa, (unsigned long long)gpa);
}

/* Whoever does not know what an exit says can't know that it was answered. */
static bool has_flags(const struct sim_vcpu *vcpu, int ret)
{
	const struct kvmfault__memory_fault *fault = (const void *)&vcpu->run.hw;

	return ret && vcpu->run.exit_reason == 39 &&
		fault->flags & KVM_FLAG_NOBODY_KNOWS;
}

/* The guest has gone on with whatever bytes were there. */
static void check_lost(struct sim_vcpu *vcpu, enum kvmfault_action action)
{
	const struct kvmfault_result *result =
		kvmfault_vcpu_result(vcpu->handle);

	if (action != KVMFAULT_ACTION_UNRESOLVED ||
	    result->reason != KVMFAULT_REASON_LOST_MMIO)
		sim_fail("an access that was lost is passed over",
			 "vcpu%u: action %d, reason %s", vcpu->id, action,
			 kvmfault_reason_str(result->reason));
	vcpu->lost = false;
	vcpu->stopped = true;
}

static enum kvmfault_action handle(struct sim_vcpu *vcpu, int ret, int err)
{
	unsigned int injected = current->injected;
	enum kvmfault_action action;
	struct mmio mmio = { 0 };
	bool converts = false, flags = has_flags(vcpu, ret);
	unsigned int asked = current->asked;
	bool others = world_masks_sigbus() && others_is_pending(current);

	if (!vcpu->bus)
		check_decoded(vcpu, ret, err);
	if (!ret)
		mmio_begin(vcpu, &mmio);
	else
		conversion_begin(vcpu, &converts);
	if (vcpu->bus && ret)
		action = CALL(kvmfault_vcpu_handle_sigbus, true,
			      kvmfault_vcpu_handle_sigbus(vcpu->handle, &vcpu->info));
	else
		action = CALL(kvmfault_vcpu_handle, true,
			      kvmfault_vcpu_handle(vcpu->handle, ret, err));
	vcpu->bus = false;
	conversion_end(vcpu, converts);
	mmio_end(vcpu, &mmio, action == KVMFAULT_ACTION_RETRY);
	/* Unless the page has come by another fault. */
	if (flags && action == KVMFAULT_ACTION_RETRY && asked != current->asked)
		sim_fail("a flag that nobody knows is passed over", "gpa %#llx",
			 (unsigned long long)vcpu->kvm->told);
	if (others && !others_is_pending(current) &&
	    !kvmfault_vcpu_result(vcpu->handle)->siginfo)
		sim_fail(swallowed, "from the queue of %s", current->name);
	if (vcpu->lost)
		check_lost(vcpu, action);
	else if (action == KVMFAULT_ACTION_UNRESOLVED)
		check_unresolved(kvmfault_vcpu_result(vcpu->handle), injected);
	return action;
}

/* An exit that is no fault. True: the access is over. */
static bool other_exit(struct sim_vcpu *vcpu)
{
	struct vcpu *kvm_vcpu = vcpu->kvm;
	const struct sim_memory *memory;

	switch (vcpu->run.exit_reason) {
	case KVM_EXIT_MMIO:
		/* A device's, or memory that is in no region just now. */
		memory = world_memory_at(kvm_vcpu->now.gpa);
		if (!world.regions_changed && memory && !world.ever_private &&
		    !(kvm_vcpu->now.write && world_is_rom(memory)))
			sim_fail("MMIO in RAM is not a fault", "gpa %#llx",
				 (unsigned long long)kvm_vcpu->now.gpa);
		kvm_vcpu->mmio = kvm_vcpu->wanting = false;
		return true;
	case KVM_EXIT_INTERNAL_ERROR:
		if (!world.regions_changed && !world.lies && !world.poisons &&
		    !world.failures && !world.holes && !option(OPT_bad_luck))
			sim_fail("an instruction is given up",
				 "gpa %#llx", (unsigned long long)
				 kvm_vcpu->now.gpa);
		kvm_vcpu->ud = kvm_vcpu->wanting = false;
		return true;
	default:
		return kvm_vcpu->done;
	}
}

/* Is the call to be made again, as the result says? A VMM may forget it. */
static bool must_call_again(struct sim_vcpu *vcpu)
{
	if (!kvmfault_vcpu_result(vcpu->handle)->unfinished)
		return false;
	vcpu->lost = option(OPT_careless) && !world.healed && vcpu->kvm->mmio &&
		     sim_one_in(2);
	return !vcpu->lost;
}

/* Done with for now: it may be given up. */
static bool interrupted(struct sim_vcpu *vcpu, const struct acting *a)
{
	const struct kvmfault_result *result =
		kvmfault_vcpu_result(vcpu->handle);

	if (result->siginfo && !world.regions_changed &&
	    !is_others(result->siginfo))
		sim_fail("a SIGBUS of the guest's is handed on", "%s", a->task->name);
	if (vcpu->run.immediate_exit) {
		tell("immediate_exit is taken back");
		vcpu->run.immediate_exit = 0;
	}
	return must_call_again(vcpu);
}

/* In a pause no vCPU is in KVM_RUN, nor completes an access; what it has asked for
 * may still be under way. */
static int run_guest(struct sim_vcpu *vcpu, bool mmio, int *err)
{
	bool write = vcpu->kvm->now.write;
	int ret;

	if (write)
		begin_write();
	vcpu->writes = write;
	ret = kvm_run(vcpu->kvm, err);
	if (vcpu->kvm->done && !mmio)
		account(vcpu);
	vcpu->writes = false;
	if (write)
		end_write();
	return ret;
}

static enum kvmfault_action handle_unpaused(struct sim_vcpu *vcpu, int ret,
					    int err)
{
	bool write = vcpu->kvm->now.write;
	enum kvmfault_action action;

	if (write)
		begin_write();
	action = handle(vcpu, ret, err);
	if (write)
		end_write();
	return action;
}

static bool resets(void)
{
	return (option(OPT_resets) || option(OPT_delegate) == 2) &&
		!world.healed && sim_one_in(3);
}

/* To block SIGBUS and to have a handler, or neither, is a vCPU that spins. */
static void refuse_blocked(struct sim_vcpu *vcpu)
{
	current->blocked ^= 1ULL << (SIGBUS - 1);
	if (!world_make_vcpu(vcpu))
		sim_fail("a vCPU is taken that would spin at a marker", "%s",
			 current->name);
	current->blocked ^= 1ULL << (SIGBUS - 1);
}

/* Its descriptor's number is another file's from now on. */
static void open_again(struct sim_vcpu *vcpu)
{
	int fd = fd_dup(vcpu->kvm->fd, false);

	fd_close(vcpu->kvm->fd, false);
	vcpu->kvm->fd = fd;
}

static void make_again(struct sim_vcpu *vcpu)
{
	struct kvmfault_vcpu *old = vcpu->handle;

	vcpu->handle = NULL;
	CALL(kvmfault_vcpu_free, false, (kvmfault_vcpu_free(old), 0));
	if (option(OPT_delegate) == 2)
		open_again(vcpu);
	if (option(OPT_delivery) == 1)
		refuse_blocked(vcpu);
	if (world_make_vcpu(vcpu))
		vcpu->handle = NULL;
}

/* The guest begins anew, with nothing of this access. */
static void reset(struct acting *a)
{
	struct vcpu *kvm_vcpu = a->vcpu->kvm;

	tell("a reset");
	kvm_vcpu->mmio = kvm_vcpu->wanting = kvm_vcpu->ud = false;
	a->vcpu->lost = a->vcpu->bus = false;
	make_again(a->vcpu);
}

/* The VMM's loop, until the access is over or the vCPU is stopped. */
static void run_access(struct acting *a, const struct access_wanted *access)
{
	struct sim_vcpu *vcpu = a->vcpu;
	int ret = 0, err = 0, unresolved = 0;
	bool again = false, mmio = false, ready_in_time = true;
	uint32_t switches = 0;

	kvm_want(vcpu->kvm, access);
	while (!giving_up(a)) {
		uint64_t ready = world.page_ready, told = world.told;
		enum kvmfault_action action;

		if (!again) {
			/* That is the library's: see mmio_end(). */
			mmio |= vcpu->kvm->mmio;
			ret = run_guest(vcpu, mmio, &err);
		}
		again = false;
		action = handle_unpaused(vcpu, ret, err);
		if (!ready_in_time)
			check_told(vcpu, switches, action);
		ready_in_time = true;
		switch (action) {
		case KVMFAULT_ACTION_RETRY:
			/* A machine check: the guest gives the page up. */
			if (world.told != told) {
				vcpu->kvm->mmio = vcpu->kvm->wanting = false;
				return;
			}
			break;
		case KVMFAULT_ACTION_NOT_A_FAULT:
			if (other_exit(vcpu))
				return;
			break;
		case KVMFAULT_ACTION_INTERRUPTED:
		case KVMFAULT_ACTION_UNFINISHED:
			again = interrupted(vcpu, a);
			if (resets()) {
				reset(a);
				return;
			}
			break;
		case KVMFAULT_ACTION_PENDING:
		case KVMFAULT_ACTION_PENDING_UNFINISHED:
			if (!option(OPT_no_wait) && option(OPT_resolver) != 7)
				sim_fail("a vCPU that may wait is told to come again",
					 "vcpu%u", vcpu->id);
			again = must_call_again(vcpu);
			ready_in_time = await_page_ready(ready);
			switches = sched_switches();
			break;
		case KVMFAULT_ACTION_UNRESOLVED:
			/* As a VMM does that hopes for better times. */
			again = must_call_again(vcpu);
			task_pause(MS, "better times");
			if (!world.healed && ++unresolved == 3)
				vcpu->stopped = true;
			break;
		}
		/* Its MMIO is done: what the guest reads is what we gave it. */
	}
}

static void touch_with(struct acting *a, const struct step *step,
		       struct access_wanted access)
{
	struct sim_memory *memory = memory_for(step);

	if (!a->vcpu || !a->vcpu->handle)
		return;
	access.gpa = memory->gpa + page_of(memory, step->a) * PAGE +
		     oracle_word[step->b % WORDS];
	/* Of a huge page any. */
	access.gpa += step->b % memory->unit * PAGE;
	access.write = step->c;
	access.value = new_value(a);
	run_access(a, &access);
}

static void touch(struct acting *a, const struct step *step)
{
	touch_with(a, step, (struct access_wanted){ 0 });
}

static void touch_emulated(struct acting *a, const struct step *step)
{
	touch_with(a, step, (struct access_wanted){ .emulated = true });
}

static void touch_unknown(struct acting *a, const struct step *step)
{
#ifdef __x86_64__
	struct sim_memory *memory = memory_for(step);
	struct step read = *step;
	uint64_t page = memory->gpa + page_of(memory, (uint16_t)(step->a + 1)) *
			PAGE;

	if (!a->vcpu || !source_has_code(memory, (unsigned int)
					 ((page - memory->gpa) / PAGE)))
		return;
	read.b = 0;
	read.c = 0;
	a->vcpu->kvm->regs.rip = page + SOURCE_CODE;
	a->vcpu->kvm->regs.rax = memory->gpa + page_of(memory, step->a) * PAGE;
	/* Where these lead is looked at too. */
	a->vcpu->kvm->regs.rsp = a->vcpu->kvm->regs.rax;
	a->vcpu->kvm->regs.rsi = a->vcpu->kvm->regs.rax;
	a->vcpu->kvm->regs.rdi = a->vcpu->kvm->regs.rax;
	touch_with(a, &read, (struct access_wanted){
		.emulated = true, .unknown = true,
	});
#else
	(void)a;
	(void)step;
#endif
}

static void touch_private(struct acting *a, const struct step *step)
{
	if (!option(OPT_guest_memfd) || option(OPT_converter) == 3)
		return;
	world.ever_private = true;
	touch_with(a, step, (struct access_wanted){ .private = true });
}

/* A guest that uses a page in both ways, and is converted each time. */
static void touch_by_turns(struct acting *a, const struct step *step)
{
	struct step read = *step;

	if (!option(OPT_guest_memfd) || option(OPT_converter) == 3)
		return;
	read.c = 0;
	world.ever_private = true;
	touch_with(a, &read, (struct access_wanted){
		.turns = step->c ? 24 : 9,
	});
}

/* A device's register: nothing that the library has to do with. */
static void touch_nothing(struct acting *a, const struct step *step)
{
	const struct access_wanted access = {
		.gpa = 0x900000, .value = 1, .write = step->c,
	};

	if (a->vcpu && a->vcpu->handle)
		run_access(a, &access);
}

static void page_tables(struct acting *a, const struct step *step)
{
	if (a->vcpu && a->vcpu->handle)
		tables_walk(a->vcpu, page_of(&world.memory[0], step->a));
}

/* What was in pages of a memory before it was to be converted. */
#define CONVERTED 4U
static struct word noted[CONVERTED * WORDS];

static void note_words(struct sim_memory *memory, unsigned int page,
		       unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count * WORDS; i++)
		noted[i] = *truth_word(&memory->truth, page + i / WORDS,
				       i % WORDS);
}

/* Of which pages KVM was not told nothing was discarded. */
static void restore_words(struct sim_memory *memory, unsigned int page,
			  unsigned int count, bool private)
{
	struct word *word;
	unsigned int i;

	for (i = 0; i < count * WORDS; i++) {
		word = truth_word(&memory->truth, page + i / WORDS, i % WORDS);
		/* A fetch that ran beside it may have said that it is lost. */
		noted[i].lost |= word->lost;
		if (word->version == noted[i].version + 1 &&
		    kvm.private[memory->gpa / PAGE + page + i / WORDS] != private)
			*word = noted[i];
	}
}

/* By page, whether all of the page of the memory that it is in is private. */
static void find_private(const struct sim_memory *memory, unsigned int page,
			 bool private[CONVERTED])
{
	const bool *gfn = &kvm.private[memory->gpa / PAGE];
	unsigned int i, k, first;

	for (i = 0; i < CONVERTED && page + i < memory->pages; i++) {
		first = page + i - (page + i) % memory->unit;
		private[i] = true;
		for (k = first; k < first + memory->unit; k++)
			private[i] &= gfn[k];
	}
}

/* What is private now, and was not before, has no shared side. */
static void check_gone_shared(const struct sim_memory *memory,
			      unsigned int page, unsigned int count,
			      const bool before[CONVERTED])
{
	bool now[CONVERTED] = { false };
	unsigned int i;

	find_private(memory, page, now);
	for (i = 0; i < count; i++)
		if (now[i] && !before[i] && !door_in_flight(memory, page + i) &&
		    present_bytes(memory, page + i))
			sim_fail("a private page keeps its shared side",
				 "page %u", page + i);
}

static void convert_with(struct sim_vcpu *vcpu, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	/* Of a huge page a part, too. */
	unsigned int page = step->a % memory->pages;
	unsigned int count = 1 + step->b % CONVERTED;
	unsigned int began, failed, injected, i;
	bool alone, private[CONVERTED] = { false };
	uint32_t switches = sched_switches();
	uint64_t done = 0;
	int err;

	if (!option(OPT_guest_memfd))
		return;
	if (count > memory->pages - page)
		count = memory->pages - page;
	world.ever_private |= step->c;
	injected = current->injected;
	alone = !world.converting++;
	began = ++world.conversions;
	failed = world.sets_failed;
	note_words(memory, page, count);
	find_private(memory, page, private);
	truth_discard_begin(&memory->truth, page, count);
	truth_discard_begin(&memory->hidden, page, count);
	err = CALL(kvmfault_convert, !current->callbacks,
		   kvmfault_convert(world.vm, vcpu ? vcpu->handle : NULL,
				    memory->gpa + page * PAGE, count * PAGE,
				    step->c, &done));
	truth_discard_end(&memory->truth, page, count, false);
	truth_discard_end(&memory->hidden, page, count, false);
	alone &= world.conversions == began;
	world.converting--;
	if (alone && err && !done && failed != world.sets_failed)
		restore_words(memory, page, count, step->c);
	check_error("kvmfault_convert", err, injected);
	if (!err && done != count * PAGE)
		sim_fail("a conversion is short", "%#llx of %#llx",
			 (unsigned long long)done,
			 (unsigned long long)(count * PAGE));
	if (!err && alone && switches == sched_switches() && step->c &&
	    option(OPT_converter) != 1 && memory->shown && !memory->busy &&
	    !option(OPT_bad_luck) && !world.unprotected)
		check_gone_shared(memory, page, count, private);
	for (i = 0; alone && i < done / PAGE; i++)
		if (kvm.private[memory->gpa / PAGE + page + i] != step->c)
			sim_fail("a conversion that was not made",
				 "page %u is not %s", page + i,
				 step->c ? "private" : "shared");
}

static void convert_here(struct acting *a, const struct step *step)
{
	if (a->vcpu && a->vcpu->handle && !giving_up(a))
		convert_with(a->vcpu, step);
	if (a->vcpu)
		a->vcpu->run.immediate_exit = 0;
}

static void vcpu_again(struct acting *a, const struct step *step)
{
	(void)step;
	if (!a->vcpu || !a->vcpu->handle)
		return;
	make_again(a->vcpu);
}

/* One of the VMM's own memory: nobody has to be waited for to say so. */
static void sigbus_elsewhere(struct acting *a, const struct step *step)
{
	unsigned int waits = current->waits;
	enum kvmfault_action action;
	siginfo_t info;

	(void)step;
	if (!a->vcpu || !a->vcpu->handle || giving_up(a))
		return;
	memset(&info, 0, sizeof(info));
	info.si_signo = SIGBUS;
	info.si_code = BUS_MCEERR_AR;
	info.si_addr = (void *)0x1000;
	info.si_addr_lsb = 12;
	action = CALL(kvmfault_vcpu_handle_sigbus, true,
		      kvmfault_vcpu_handle_sigbus(a->vcpu->handle, &info));
	if (action != KVMFAULT_ACTION_NOT_A_FAULT)
		sim_fail("a SIGBUS that is not the guest's is taken",
			 "vcpu%u: action %d", a->vcpu->id, action);
	if (current->waits != waits)
		sim_fail("a SIGBUS that is not the guest's has to wait",
			 "vcpu%u", a->vcpu->id);
}

static void stand(struct acting *a, const struct step *step)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	(void)step;
	if (a->vcpu && a->vcpu->handle &&
	    CALL(kvmfault_vcpu_stats, true,
		 kvmfault_vcpu_stats(a->vcpu->handle, &stats)))
		sim_fail("an error without a reason", "kvmfault_vcpu_stats");
	task_pause(sim_below(3) * MS, "nothing");
}

/* ---- threads of the VMM ---- */

static void read_at(struct sim_memory *memory, struct mm *mm, uint64_t base,
		    const struct step *step, const char *who)
{
	unsigned int page = page_of(memory, step->a);
	uint64_t value;
	enum access access;

	if (!base)
		return;
	access = mm_read(mm, base + page * PAGE + oracle_word[step->b % WORDS],
			 &value);
	if (access == ACCESS_OK)
		truth_read(&memory->truth, page, step->b % WORDS, value, who);
	else if (memory->exists && !memory->busy && mm == our_mm &&
		 !truth_word(&memory->truth, page, step->b % WORDS)->lost &&
		 !world.holes && !world.no_memory)
		sim_fail("memory that can't be read", "%s, page %u: %d", who,
			 page, access);
}

static void read_memslots(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);

	(void)a;
	/* With markers it is KVM's alone, where there is another. */
	if (option(OPT_delivery) == 1 && memory->own)
		return;
	read_at(memory, our_mm, memory->memslots, step, "a thread of the VMM's");
}

static void read_own(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);

	(void)a;
	read_at(memory, our_mm, memory->own, step, "a thread of the VMM's");
}

static void write_at(struct acting *a, struct sim_memory *memory, struct mm *mm,
		     uint64_t base, const struct step *step)
{
	unsigned int page = page_of(memory, step->a);
	uint64_t value = new_value(a);
	enum access access;

	if (!base)
		return;
	/* The mapping does not go meanwhile. */
	memory->users++;
	begin_write();
	access = mm_write(mm, base + page * PAGE + oracle_word[step->b % WORDS],
			  value);
	if (access == ACCESS_OK) {
		check_saved(memory, page, mm == our_mm ? "the VMM" : "a device");
		truth_write(&memory->truth, page, step->b % WORDS, value);
	}
	end_write();
	memory->users--;
	task_wake(&memory->users, TASKS);
}

static void write_own(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);

	/* A private page's other side is nobody's to write. */
	if (!option(OPT_guest_memfd) && memory->own_mapping && !memory->busy)
		write_at(a, memory, our_mm, memory->own, step);
}

static void check_present(struct sim_memory *memory, unsigned int page,
			  unsigned int count)
{
	unsigned int end = page + count;

	for (; page < end && !world.ever_private; page++)
		if (!present_bytes(memory, page) &&
		    !truth_word(&memory->truth, page, 0)->lost)
			sim_fail("a page that was ensured is absent", "page %u",
				 page);
}

/* A neighbour that nobody has is no reason. */
static void check_gone(struct sim_memory *memory, unsigned int page,
		       unsigned int count)
{
	unsigned int i;

	for (i = page; i < page + count; i++)
		if (truth_word(&memory->truth, i, 0)->lost ||
		    world.cut[memory->id][i] || memory->unit > 1)
			return;
	sim_fail("a page fails that somebody has", "page %u", page);
}

static void ensure(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	unsigned int page = page_of(memory, step->a);
	unsigned int count = count_of(memory, page, step->b);
	unsigned int injected = current->injected, tries = 0;
	int err;

	(void)a;
	do {
		struct quiet quiet = quiet_begin();

		err = CALL(kvmfault_ensure, true,
			   kvmfault_ensure(world.vm, 0,
					   memory->gpa + page * PAGE,
					   count * PAGE, step->c));
		if (!memory->shown || memory->busy)
			return;
		if (!err && was_quiet(&quiet))
			check_present(memory, page, count);
		/* Else it may have been discarded, and be zero, since. */
		if ((err == -EHWPOISON || (err == -EFAULT && !world.holes)) &&
		    was_quiet(&quiet))
			check_gone(memory, page, count);
		check_error("kvmfault_ensure", err, injected);
		if (err)
			task_pause(MS, "better times");
	} while (err && ++tries < (world.healed ? 1000 : 3));
}

/* When a fill is over, all is there that was never discarded or punched. */
static void check_filled(struct sim_memory *memory, struct kvmfault_fill *fill)
{
	struct kvmfault_fill_progress now = { .size = sizeof(now) };
	unsigned int page;
	int err;

	err = CALL(kvmfault_fill_progress, false,
		   kvmfault_fill_progress(fill, &now));
	check_error("kvmfault_fill_progress", err, current->injected);
	if (now.over && now.missing)
		sim_fail("a fill's progress is wrong", "missing %llu",
			 (unsigned long long)now.missing);
	for (page = 0; now.over && page < memory->pages; page++)
		if (!memory->truth.ever[page])
			check_present(memory, page, 1);
}

#define FILL_STEPS 40

static void dispatch_fill(struct kvmfault_fill *fill)
{
	int timeout = 0, i, err;

	for (i = 0; i < FILL_STEPS && timeout >= 0; i++) {
		err = CALL(kvmfault_fill_dispatch, true,
			   kvmfault_fill_dispatch(fill, &timeout));
		check_error("kvmfault_fill_dispatch", err, current->injected);
		if (timeout > 0)
			task_pause((timeout < 20 ? (uint64_t)timeout : 20) *
				   MS, "the fill's next step");
	}
}

static void fill(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	struct kvmfault_fill_options options = { .size = sizeof(options) };
	unsigned int injected = current->injected;
	struct kvmfault_fill *fill;
	int err;

	(void)a;
	if (memory->busy || !memory->exists || memory->settled)
		return;
	memory->users++;
	memory->filled = true;
	options.memories = &memory->handle;
	options.memory_count = 1;
	options.threads = step->b % 3;
	options.window_length = step->c % 2 ? memory->unit * PAGE : 0;
	options.paused = step->c / 2 % 4 == 1;
	err = CALL(kvmfault_fill_new, false,
		   kvmfault_fill_new(world.vm, &options, &fill));
	/* The model has no more tasks, or another thread has settled it. */
	if (err != -EAGAIN && (err != -EINVAL || !memory->settling))
		check_error("kvmfault_fill_new", err, injected);
	if (!err) {
		if (options.threads)
			task_pause(20 * MS, "the fill");
		else
			dispatch_fill(fill);
		check_filled(memory, fill);
		err = CALL(kvmfault_fill_free, false,
			   kvmfault_fill_free(fill));
		check_error("kvmfault_fill_free", err, injected);
	}
	memory->users--;
	task_wake(&memory->users, TASKS);
}

static void discard(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	unsigned int page = page_of(memory, step->a);
	unsigned int count = count_of(memory, page, step->b);
	unsigned int injected = current->injected;
	unsigned int i;
	int err;

	(void)a;
	/* A snapshot may begin in the middle of it. */
	if (!step->c)
		begin_write();
	for (i = page * WORDS; memory->snapshot && !memory->watched &&
	     i < (page + count) * WORDS; i++)
		memory->then[i].lost = true;
	truth_discard_begin(&memory->truth, page, count);
	/* What a signal has interrupted may go on by itself: until it is over. */
	do
		err = CALL(kvmfault_discard, true,
			   kvmfault_discard(world.vm, 0,
					    memory->gpa + page * PAGE,
					    count * PAGE));
	while (err == -EINTR);
	if (err == -EAGAIN)	/* its memory is being freed */
		truth_discard_left(&memory->truth, page, count);
	truth_discard_end(&memory->truth, page, count, !err);
	if (!step->c)
		end_write();
	check_error("kvmfault_discard", err, injected);
}

static void resume_writers(void)
{
	world.paused = false;
	task_wake(&world.paused, TASKS);
}

static void kick_writers(void)
{
	unsigned int i;

	for (i = 0; i < world.vcpus; i++) {
		if (!world.vcpu[i].writes)
			continue;
		world.signalled = true;
		task_signal(world.vcpu[i].task, SIGUSR1);
	}
}

/* Until nobody writes; false: somebody is asleep in the middle of it. */
static bool pause_writers(void)
{
	uint64_t limit = sim_now() + 20 * MS;

	if (world.paused)
		return false;
	world.paused = true;
	kick_writers();
	while (world.writing && sim_now() < limit)
		task_sleep(&world.writing, "writers", limit, false);
	if (world.writing)
		resume_writers();
	return !world.writing;
}

static int begin_snapshot(struct sim_memory *memory, unsigned int page,
			  unsigned int count)
{
	int err;

	memcpy(memory->then, memory->truth.word, (size_t)memory->pages * WORDS *
	       sizeof(*memory->then));
	memset(memory->saved, 0, memory->pages);
	memory->first = page;
	memory->count = count;
	memory->snapshot = true;
	err = CALL(kvmfault_protect, true,
		   kvmfault_protect(world.vm, 0, memory->gpa + page * PAGE,
				    count * PAGE));
	memory->watched = !err;
	return err;
}

static void sweep(struct sim_memory *memory, unsigned int page,
		  unsigned int count)
{
	unsigned int i, tries = 0, injected = current->injected;
	int err;

	for (i = page; i < page + count; i += memory->unit) {
		do {
			err = CALL(kvmfault_ensure, true,
				   kvmfault_ensure(world.vm, 0,
						   memory->gpa + i * PAGE,
						   memory->unit * PAGE, true));
			if (!memory->shown || memory->busy)
				return;
			check_error("kvmfault_ensure", err, injected);
			if (err)
				task_pause(MS, "better times");
		} while (err && ++tries < 1000);
		/* Private memory is nobody's to save. */
		if (!err && !memory->saved[i] && !world.ever_private &&
		    !truth_word(&memory->truth, i, 0)->lost)
			sim_fail("a page is not saved", "page %u", i);
	}
}

/* A mapping that comes in the middle of a snapshot, and goes again. */
static void write_elsewhere(struct acting *a, struct sim_memory *memory,
			    const struct step *step)
{
	struct kvmfault_mapping_options options = { .size = sizeof(options) };
	unsigned int injected = current->injected;
	struct kvmfault_mapping *mapping;
	int err;

	/* With markers the library itself reads there. */
	if (!memory->file || option(OPT_guest_memfd) || option(OPT_delivery) == 1)
		return;
	options.host = mm_map(our_mm, memory->file, 0, memory->pages, PROT_NONE,
			      false);
	err = CALL(kvmfault_mapping_add, false,
		   kvmfault_mapping_add(memory->handle, &options, &mapping));
	if (!err) {
		mm_protect(our_mm, options.host, memory->pages * PAGE,
			   PROT_READ | PROT_WRITE);
		write_at(a, memory, our_mm, options.host, step);
		err = CALL(kvmfault_mapping_remove, false,
			   kvmfault_mapping_remove(mapping));
	}
	if (err != -EMFILE || !option(OPT_bad_luck))
		check_error("a mapping that comes and goes", err, injected);
	mm_unmap(our_mm, options.host, memory->pages * PAGE);
}

static void snapshot(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	unsigned int page = page_of(memory, step->a), injected;
	unsigned int count = count_of(memory, page, step->b);
	int err;

	if (!option(OPT_write_protect) || memory->snapshot || memory->busy ||
	    memory->users || world.ever_private || memory->settled)
		return;
	memory->users++;
	if (!pause_writers()) {
		memory->users--;
		task_wake(&memory->users, TASKS);
		return;
	}
	injected = current->injected;
	err = begin_snapshot(memory, page, count);
	resume_writers();
	/* It may be settled meanwhile. */
	if ((err != -EOPNOTSUPP && err != -EAGAIN) || !memory->settling)
		check_error("kvmfault_protect", err, injected);
	if (!err && step->b == 3)
		write_elsewhere(a, memory, step);
	if (!err && step->c)
		sweep(memory, page, count);
	if (err || step->c) {
		memory->watched = false;
		err = CALL(kvmfault_unprotect, true,
			   kvmfault_unprotect(world.vm, 0,
					      memory->gpa + page * PAGE,
					      count * PAGE));
		check_error("kvmfault_unprotect", err, injected);
		if (!err)
			memory->snapshot = memory->watched = false;
	}
	memory->users--;
	task_wake(&memory->users, TASKS);
}

static void unprotect(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	unsigned int injected = current->injected;
	int err;

	(void)a;
	if (!option(OPT_write_protect) || memory->users || memory->busy)
		return;
	memory->users++;
	memory->watched = false;
	err = CALL(kvmfault_unprotect, true,
		   kvmfault_unprotect(world.vm, 0, memory->gpa,
				      memory->pages * PAGE));
	/* One that was taken up settled is not write-protected any more. */
	if (err != -EOPNOTSUPP || !door_was_settled(memory))
		check_error("kvmfault_unprotect", err, injected);
	if (!err)
		memory->snapshot = memory->watched = false;
	memory->users--;
	task_wake(&memory->users, TASKS);
}

void steps_convert_inside(void)
{
	struct step step = {
		.a = (uint16_t)sim_below(4), .b = (uint16_t)sim_below(2),
		.c = (uint16_t)sim_below(2),
	};

	unsigned int waits = current->waits;

	if (!option(OPT_guest_memfd) || !option(OPT_hooks) || world.healed ||
	    !sim_one_in(2))
		return;
	convert_with(NULL, &step);
	/* What it would wait for may wait for the page. */
	if (current->waits != waits)
		sim_fail("a conversion waits with a page in hand", "%s",
			 current->name);
}

/* A huge page that is there, one part after the other. */
static void convert_parts(struct acting *a, const struct step *step)
{
	const struct sim_memory *memory = memory_for(step);
	struct step part = *step;
	unsigned int i;

	ensure(a, step);
	part.a -= part.a % memory->unit;
	for (i = 0; i < memory->unit; i++, part.a++)
		convert_with(NULL, &part);
}

static void convert(struct acting *a, const struct step *step)
{
	if (world.memories == 1 && memory_for(step)->unit > 1 &&
	    !(step->b % CONVERTED) && option(OPT_guest_memfd))
		convert_parts(a, step);
	else
		convert_with(NULL, step);
}

static void cancel(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	unsigned int page = page_of(memory, step->a);
	unsigned int injected = current->injected;

	(void)a;
	check_error("kvmfault_cancel_fetches",
		    CALL(kvmfault_cancel_fetches, true,
			 kvmfault_cancel_fetches(world.vm, 0, memory->gpa + page * PAGE,
					 count_of(memory, page, step->b) *
					 PAGE)), injected);
}

/* One thread at a time makes and removes what is a memory's. */
static bool take(struct sim_memory *memory)
{
	uint64_t limit = sim_now() + 100 * MS;

	if (memory->busy || !memory->exists)
		return false;
	memory->busy = true;
	while (memory->users && sim_now() < limit)
		task_sleep(&memory->users, "other users", limit, false);
	if (!memory->users)
		return true;
	memory->busy = false;
	return false;
}

static void hide(struct sim_memory *memory)
{
	int err;

	world.regions_changed++;
	err = world_remove_region(memory);
	if (err)
		sim_fail("a region can't be removed", "%d", err);
}

static void show(struct sim_memory *memory)
{
	unsigned int injected = current->injected;
	int err, tries = 0;

	do {
		err = memory->shown ? world_set_slot(memory) :
				      world_add_region(memory);
		check_error("kvmfault_region_add", err, injected);
	} while (err && ++tries < 100);
	task_wake(&world.page_ready, TASKS);
}

static void region_again(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);

	(void)a;
	if (!take(memory))
		return;
	hide(memory);
	/* What no region has is the VMM's to close. */
	if (memory->guest_memfd && memory->guest_memfd->punching)
		sim_fail("a guest_memfd is punched that no region has",
			 "memory %u", memory->id);
	if (memory->guest_memfd)
		fd_close(memory->guest_memfd_fd, false);
	task_pause(sim_below(2) * MS, "no region");
	if (memory->guest_memfd)
		memory->guest_memfd_fd = world_open(memory->guest_memfd);
	show(memory);
	memory->busy = false;
}

/* The layouts of relay: the same again, and those that the library refuses. */
enum layout { SAME, SAME_TOO, TWICE, OVER_ONE_THAT_STAYS, INTO_ONE_THAT_STAYS,
	      LAYOUTS };

/* Every region is where it was, whatever became of the call. */
static void find_parts(const struct sim_memory *memory, const char *when)
{
	unsigned int part, injected = current->injected;

	for (part = 0; part < memory->parts; part++) {
		struct kvmfault_region part_of = world_part(memory, part), found = {
			.size = sizeof(found),
		};
		int err = CALL(kvmfault_region_find, false,
			       kvmfault_region_find(world.vm, 0, part_of.gpa,
						    &found));

		if (err == -ENOMEM && current->injected != injected)
			continue;
		if (err || found.gpa != part_of.gpa ||
		    found.length != part_of.length ||
		    found.memory != part_of.memory ||
		    found.offset != part_of.offset)
			sim_fail(when, "part %u, error %d", part, err);
	}
}

/* While vCPUs run: no fault finds that the guest has no memory there. */
static void relay(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	unsigned int injected = current->injected, i, added;
	struct kvmfault_region part[2], other;
	unsigned int left;
	const struct kvmfault_region *old[2] = { &part[0], &part[1] };
	const struct kvmfault_region *new[2] = { &part[0], &part[1] };
	enum layout layout = (step->b + 4U * step->c) % LAYOUTS;
	int err;

	(void)a;
	if (memory->busy || !memory->exists || !memory->shown)
		return;
	memory->busy = true;
	for (i = 0; i < memory->parts; i++)
		part[i] = world_part(memory, i);
	added = left = memory->parts;
	if (layout == INTO_ONE_THAT_STAYS && !memory->id)
		layout = SAME;
	if (layout == OVER_ONE_THAT_STAYS)
		left = 0;
	if (layout == INTO_ONE_THAT_STAYS) {
		other = part[0];
		other.gpa -= memory->unit * PAGE;
		other.length = 2 * memory->unit * PAGE;
		added = 1;
		left = 0;
		new[0] = &other;
	}
	if (layout == TWICE) {
		other = part[0];
		other.gpa += PAGE;
		other.length -= PAGE;
		added = 2;
		new[1] = &other;
	}
	err = CALL(kvmfault_regions_replace, false,
		   kvmfault_regions_replace(world.vm, old, left, new, added));
	if (layout >= TWICE) {
		if (err != -EEXIST && !(err == -ENOMEM &&
					current->injected != injected))
			sim_fail("regions that overlap are laid", "%d", err);
	} else {
		check_error("kvmfault_regions_replace", err, injected);
	}
	find_parts(memory, "a layout has lost a region");
	memory->busy = false;
}

/* As a VMM does it that maps the file there once more; nobody may touch it before
 * the library watches it. */
static int map_anew(struct sim_memory *memory)
{
	int err;

	mm_map_again(our_mm, memory->own, PROT_NONE);
	err = world_add_own(memory);
	if (!err)
		mm_protect(our_mm, memory->own, memory->pages * PAGE,
			   PROT_READ | PROT_WRITE);
	return err;
}

/* Where all that the old one was is gone: nobody else's mapping, nothing that is
 * still being discarded, no page that could not be closed. */
static bool can_plug(const struct sim_memory *memory)
{
	return !world.device && !world.ever_forked && !world.unprotected &&
	       !memory->guest_memfd && !memory->truth.open &&
	       !option(OPT_populated) && !option(OPT_split);
}

static void plug(struct sim_memory *memory, bool same)
{
	unsigned int injected = current->injected;
	int err = world_plug_memory(memory, same);

	if (!err && memory->own)
		err = map_anew(memory);
	if (err != -EMFILE || !option(OPT_bad_luck))
		check_error("kvmfault_memory_adopt", err, injected);
	if (err)
		return;
	show(memory);
	memory->busy = false;
}

/* A device of memory is unplugged, and maybe another one plugged in. Whoever sleeps
 * in KVM_RUN is woken. */
static void memory_again(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);

	(void)a;
	/* Nobody else reads it meanwhile. */
	if (!take(memory))
		return;
	hide(memory);
	world.holes++;
	world_clear_slot(memory);
	memory->snapshot = memory->watched = false;
	world_free_memory(memory);
	task_pause(sim_below(2) * MS, "no memory");
	if (step->b % 2 && can_plug(memory))
		plug(memory, step->c && memory->states_fd);
}

/* With all that it takes, made and taken down, and read meanwhile. */
static void another_memory(struct acting *a, const struct step *step)
{
	struct kvmfault_memory_maps maps = { .size = sizeof(maps) };
	unsigned int injected = current->injected;
	unsigned int page = step->a % OTHER_PAGES, word = step->b % WORDS;
	struct kvmfault_source source = { .size = sizeof(source) };
	const struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = OTHER_PAGES * PAGE,
		.source = &source, .minor = option(OPT_minor),
	};
	struct kvmfault_memory *memory;
	uint64_t value;
	int err;

	(void)a;
	if (option(OPT_resolver) || option(OPT_exits))
		return;
	kvmfault_source_memory(source_image(0), OTHER_PAGES * PAGE, &source);
	err = CALL(kvmfault_memory_alloc, false,
		   kvmfault_memory_alloc(world.vm, &options, &maps, &memory));
	if (err != -EMFILE || !option(OPT_bad_luck))
		check_error("kvmfault_memory_alloc", err, injected);
	if (err)
		return;
	if (mm_read(our_mm, (uintptr_t)maps.own + page * PAGE +
		    oracle_word[word], &value) != ACCESS_OK)
		sim_fail("memory that can't be read", "one more, page %u", page);
	if (memcmp(&value, source_image(0) + page * PAGE + oracle_word[word],
		   sizeof(value)))
		sim_fail(value ? "wrong bytes" : "zeros in place of data",
			 "one more memory, page %u", page);
	err = CALL(kvmfault_memory_free, false, kvmfault_memory_free(memory));
	if (err)
		sim_fail("a memory can't be freed", "%d", err);
	door_given(maps.memslots);
	door_given(maps.own);
	mm_unmap(our_mm, (uintptr_t)maps.memslots, OTHER_PAGES * PAGE);
	mm_unmap(our_mm, (uintptr_t)maps.own, OTHER_PAGES * PAGE);
	fd_close(maps.fd, false);
}

/* Nothing happens to the owner in this run: it goes on. */
static void owner_killed(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	unsigned int i, waits;
	uint64_t last = 0;

	(void)a;
	for (i = 0; i <= 2U * (step->b % 4); i++) {
		for (waits = 0; waits < KILL_WAITS && step->c &&
		     states_digest(memory) == last; waits++) {
			if (sim_one_in(2))
				task_pause(1 + sim_below(4000), "a change");
			sim_point();
		}
		last = states_digest(memory);
		states_check_killed(memory);
		sim_point();
	}
}

/* One that was removed, back as it was. */
static void map_again(struct sim_memory *memory, bool remote)
{
	unsigned int injected = current->injected;
	int err = 0;

	if (remote && memory->remote && !world.device->dead &&
	    !memory->settled)
		err = world_add_remote(memory);
	else if (!remote && memory->own)
		err = map_anew(memory);
	/* It may have unmapped a part. */
	if (err == -EOPNOTSUPP && remote)
		err = 0;
	/* Where it could not be closed it is held for ever. */
	if (err != -EBUSY || !option(OPT_bad_luck))
		check_error("kvmfault_mapping_add", err, injected);
}

static void mapping_again(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	struct kvmfault_mapping **mapping;
	unsigned int injected = current->injected;
	int err;

	if (!take(memory))
		return;
	mapping = step->b % 2 ? &memory->remote_mapping : &memory->own_mapping;
	if (!*mapping) {
		map_again(memory, step->b % 2);
		memory->busy = false;
		return;
	}
	/* With markers the VMM needs a second one. */
	if (option(OPT_delivery) == 1 && !(step->b % 2)) {
		memory->busy = false;
		return;
	}
	world.holes++;
	err = CALL(kvmfault_mapping_remove, false,
		   kvmfault_mapping_remove(*mapping));
	check_error("kvmfault_mapping_remove", err, injected);
	if (!err) {
		*mapping = NULL;
		if (step->b % 2 && !world.device->dead)
			world_check_closed(memory, world.device, memory->remote,
					   "a process whose mapping was removed");
		else if (!(step->b % 2))
			world_check_closed(memory, our_mm, memory->own,
					   "who reads a mapping that was removed");
	}
	if (!err && step->c)
		map_again(memory, step->b % 2);
	memory->busy = false;
	if (step->c && !(step->b % 2) && memory->own_mapping &&
	    !option(OPT_guest_memfd))
		write_at(a, memory, our_mm, memory->own, step);
}

/* All that can come; what a source has lost is emptied by nobody. */
static void bring(struct sim_memory *memory)
{
	unsigned int page, injected = current->injected;
	int err;

	for (page = 0; page < memory->pages && memory->shown; page +=
	     memory->unit) {
		err = CALL(kvmfault_ensure, true,
			   kvmfault_ensure(world.vm, 0, memory->gpa +
					   page * PAGE, memory->unit * PAGE,
					   false));
		if (memory->shown && !memory->busy)
			check_error("kvmfault_ensure", err, injected);
	}
}

/* While all others go on. Those who make or free what is the memory's wait. */
static void settle(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	unsigned int injected = current->injected;
	uint64_t left = 0;
	int err;

	(void)a;
	if (memory->busy || !memory->exists)
		return;
	memory->users++;
	/* Who then touches what was discarded gets SIGBUS if there are no huge
	 * pages left. */
	world.holes += option(OPT_huge_pool);
	if (step->b % 4)
		bring(memory);
	injected = current->injected;
	memory->settling = true;
	err = CALL(kvmfault_memory_settle, false,
		   kvmfault_memory_settle(memory->handle, &left));
	/* If a fill has it, no page need be in the way. */
	if ((err == -EBUSY) != !!left && !memory->filled)
		sim_fail("it is not said how many pages are missing", "%d, %llu",
			 err, (unsigned long long)left);
	/* What is mapped nowhere any more can't be unregistered. */
	if (err != -EBUSY && !(err == -EINVAL && world.holes))
		check_error("kvmfault_memory_settle", err, injected);
	memory->settled |= err != -EBUSY;
	memory->has_settled |= !err;
	memory->users--;
	task_wake(&memory->users, TASKS);
}

static void count(struct acting *a, const struct step *step)
{
	struct kvmfault_memory_counts counts = { .size = sizeof(counts) };
	struct sim_memory *memory = memory_for(step);
	unsigned int page = page_of(memory, step->a), i;
	unsigned int pages = count_of(memory, page, step->b) / memory->unit;
	uint64_t bitmap[MEMORY_PAGES / 64];
	bool set;

	(void)a;
	if (memory->busy || !memory->exists)
		return;
	memory->users++;
	check_error("kvmfault_memory_count",
		    CALL(kvmfault_memory_count, true,
			 kvmfault_memory_count(memory->handle, page * PAGE,
					       pages * memory->unit * PAGE,
					       &counts)), current->injected);
	if (counts.absent + counts.claimed + counts.present + counts.discarded +
	    counts.poisoned != pages || counts.to_save > pages)
		sim_fail("pages are counted twice, or not", "of %u", pages);
	check_error("kvmfault_memory_bitmap",
		    CALL(kvmfault_memory_bitmap, true,
			 kvmfault_memory_bitmap(memory->handle, page * PAGE,
				pages * memory->unit * PAGE,
				KVMFAULT_STATE_ABSENT, bitmap,
				sizeof(bitmap))), current->injected);
	for (i = 0; i < pages; i++) {
		set = bitmap[i / 64] >> i % 64 & 1;
		/* What was fetched never is absent again. */
		if (set && memory->settled)
			sim_fail("a page is absent in a settled memory", "%u",
				 page + i * memory->unit);
	}
	memory->users--;
	task_wake(&memory->users, TASKS);
}

/* What is mapped there is not the memory's file, or another part of it. */
static void refuse_mapping(struct sim_memory *memory, bool private,
			   unsigned int from)
{
	struct kvmfault_mapping_options options = { .size = sizeof(options) };
	unsigned int injected = current->injected;
	struct kvmfault_mapping *mapping;
	int err;

	options.host = mm_map(our_mm, memory->file, from, memory->pages,
			      PROT_NONE, private);
	err = CALL(kvmfault_mapping_add, false,
		   kvmfault_mapping_add(memory->handle, &options, &mapping));
	if (!err)
		sim_fail("a mapping is taken that is not the memory's",
			 "private %d, from page %u", private, from);
	if (err != -EINVAL)
		check_error("kvmfault_mapping_add", err, injected);
	mm_unmap(our_mm, options.host, memory->pages * PAGE);
}

/* It does not hear of what KVM touches. */
static void refuse_uffd(void)
{
	struct kvmfault_uffd_options options = { .size = sizeof(options) };
	struct uffdio_api api = { .api = UFFD_API };
	unsigned int injected = current->injected;
	struct kvmfault_uffd *uffd;
	struct open *open;
	int err;

	if (task_nth(TASKS - 8))
		return;
	options.fd = fd_new(KIND_UFFD, false, &open);
	open->flags = O_NONBLOCK;
	open->uffd = uffd_new(our_mm);
	open->uffd->user_mode_only = true;
	uffd_ioctl(open->uffd, UFFDIO_API, &api);
	err = CALL(kvmfault_uffd_new, false,
		   kvmfault_uffd_new(world.vm, &options, &uffd));
	if (!err)
		sim_fail("a userfaultfd is taken that does not hear KVM", "%d",
			 options.fd);
	if (err != -EINVAL)
		check_error("kvmfault_uffd_new", err, injected);
	fd_close(options.fd, false);
}

static void wrong_mapping(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);

	(void)a;
	if (option(OPT_bad_luck) || world.unprotected)
		return;
	if (step->b % 4 == 3) {
		refuse_uffd();
		return;
	}
	if (!memory->file || !take(memory))
		return;
	refuse_mapping(memory, step->b % 2, step->b % 2 ? 0 : memory->unit);
	memory->busy = false;
}

static void service_again(struct acting *a, const struct step *step)
{
	unsigned int injected = current->injected, tries = 0;
	int err;

	(void)a;
	/* A run has so many threads, the ended ones too. */
	if (world.service_busy || !world.service || task_nth(TASKS - 8))
		return;
	world.service_busy = true;
	err = CALL(kvmfault_service_free, false,
		   kvmfault_service_free(world.service));
	if (err)
		sim_fail("a service can't be freed", "%d", err);
	world.service = NULL;
	task_pause(sim_below(2) * MS, "no service");
	do {
		err = world_make_service(option(OPT_service) ?
					 1 + step->b % 3 : 0);
		if (err != -EAGAIN && err != -EMFILE)
			check_error("kvmfault_service_new", err, injected);
		if (err)
			task_pause(MS, "better times");
	} while (err && ++tries < 1000);
	world.service_busy = false;
}

static void set_delivery(struct acting *a, const struct step *step)
{
	static const enum kvmfault_delivery mode[] = {
		KVMFAULT_DELIVERY_UFFD, KVMFAULT_DELIVERY_MARKER_EXIT,
		KVMFAULT_DELIVERY_KERNEL_EXIT, KVMFAULT_DELIVERY_KERNEL_EXIT,
	};
	unsigned int injected = current->injected;
	int err;

	(void)a;
	world.switching++;
	err = CALL(kvmfault_vm_set_delivery, false,
		   kvmfault_vm_set_delivery(world.vm, step->b % 2 ?
			KVMFAULT_DELIVERY_UFFD : mode[option(OPT_delivery)]));
	world.switching--;
	if (err != -ENOMEM || !world.holes)
		check_error("kvmfault_vm_set_delivery", err, injected);
}

static void kick(struct acting *a, const struct step *step)
{
	struct sim_vcpu *vcpu;

	(void)a;
	if (!world.vcpus)
		return;
	vcpu = &world.vcpu[step->a % world.vcpus];
	if (!vcpu->task || vcpu->task->state == ENDED)
		return;
	world.signalled = true;
	if (step->b % 2)
		__atomic_store_n(&vcpu->run.immediate_exit, 1, __ATOMIC_RELAXED);
	task_signal(vcpu->task, SIGUSR1);
}

/* One that has nothing to do with the guest: the VMM's to see to. */
static void other_sigbus(struct acting *a, const struct step *step)
{
	struct task *task = world.vcpus ?
		world.vcpu[step->a % world.vcpus].task : NULL;

	(void)a;
	/* Elsewhere it would end the VMM, or stay where it is for ever. */
	if (option(OPT_delivery) != 1 || !task || task->state == ENDED ||
	    task->pending >> (SIGBUS - 1) & 1)
		return;
	world.signalled = true;
	memset(&task->sigbus, 0, sizeof(task->sigbus));
	task->sigbus.si_signo = SIGBUS;
	task->sigbus.si_code = SI_USER;
	task_signal(task, SIGBUS);
}

/* Behind the library's back, with an event that it reads. */
static void balloon(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	unsigned int page = page_of(memory, step->a);
	unsigned int count = count_of(memory, page, step->b);

	(void)a;
	if (!option(OPT_events) || memory->file || memory->busy ||
	    !memory->exists || memory->snapshot)
		return;
	truth_discard_begin(&memory->truth, page, count);
	mm_madvise(our_mm, memory->memslots + page * PAGE, count * PAGE,
		   MADV_DONTNEED);
	truth_discard_end(&memory->truth, page, count, true);
}

static void run_child(void *arg)
{
	struct step step = { .a = (uint16_t)(uintptr_t)arg };
	unsigned int i;

	for (i = 0; i < 3; i++, step.a++) {
		struct sim_memory *memory = memory_for(&step);

		if (memory->file)
			read_at(memory, world.child, memory->memslots, &step,
				"a child that was forked");
		task_pause(sim_below(3) * MS, "a child");
	}
	mm_exit(world.child);
	fds_child_gone();
}

static void fork_child(struct acting *a, const struct step *step)
{
	(void)a;
	if (world.child)
		return;
	world.child = mm_fork(our_mm);
	world.ever_forked = true;
	fds_fork();
	if (!task_new("child", world.child, run_child,
		      (void *)(uintptr_t)step->a))
		fds_child_gone();
}

/* A machine check: memory that nobody has touched has failed. */
static void failed(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	unsigned int page = page_of(memory, step->a), injected;
	unsigned int large = step->b % 2, first = page, count = memory->unit;
	siginfo_t info;
	int err;

	(void)a;
	if (memory->busy || !memory->exists)
		return;
	if (large && memory->unit == 1) {
		first = page - page % 4;
		count = 4 < memory->pages - first ? 4 : memory->pages - first;
	}
	memset(&info, 0, sizeof(info));
	info.si_signo = SIGBUS;
	info.si_code = BUS_MCEERR_AO;
	info.si_addr = (void *)(uintptr_t)(memory->memslots + page * PAGE);
	info.si_addr_lsb = (short)(12 + (large ? 2 : 0));
	if (memory->unit > 1)
		info.si_addr_lsb = 14;
	injected = current->injected;
	memory->users++;
	world.failures++;
	memory->truth.mends = false;
	source_lose(memory, first, count);
	err = CALL(kvmfault_vm_handle_sigbus, true,
		   kvmfault_vm_handle_sigbus(world.vm, &info));
	check_error("kvmfault_vm_handle_sigbus", err, injected);
	memory->users--;
	task_wake(&memory->users, TASKS);
}

/* What was noted has come, and not more than was wanted. */
static void check_recorded(const struct sim_memory *memory,
			   const struct kvmfault_working_set *set,
			   unsigned int most)
{
	uint64_t i, at, length, count = 0;

	for (i = 0; !kvmfault_working_set_run(set, i, &at, &length); i++)
		for (; length; at += PAGE, length -= PAGE, count++)
			if (at / PAGE >= memory->pages ||
			    (!memory->settled && !door_has_come(memory,
						(unsigned int)(at / PAGE))))
				sim_fail("a page is recorded that has not come",
					 "memory %u, page %u", memory->id,
					 (unsigned int)(at / PAGE));
	if (most && option(OPT_window) == KVMFAULT_WINDOW_NONE && count > most * memory->unit)
		sim_fail("more is recorded than was wanted", "%u pages of %u",
			 (unsigned int)count, most);
}

static void record(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	const struct kvmfault_working_set_options image = {
		.size = sizeof(image), .image_length = memory->pages * PAGE,
	};
	struct kvmfault_recording_options options = {
		.size = sizeof(options), .memories = &memory->handle,
		.memory_count = 1, .milliseconds = step->b / 4U % 4U,
		.bytes = step->c % 4U * memory->unit * PAGE,
	};
	unsigned int injected = current->injected;
	struct kvmfault_recording *recording;
	struct kvmfault_working_set *set;
	int err;

	(void)a;
	if (memory->busy || !memory->exists)
		return;
	memory->users++;
	err = CALL(kvmfault_working_set_new, false,
		   kvmfault_working_set_new(&image, &set));
	options.set = set;
	if (!err)
		err = CALL(kvmfault_recording_new, false,
			   kvmfault_recording_new(world.vm, &options,
						  &recording));
	/* Another thread records it, or has settled it. */
	if (err != -EBUSY && (err != -EINVAL || !memory->settling))
		check_error("kvmfault_recording_new", err, injected);
	if (!err) {
		task_pause(step->b % 4 * MS, "touches");
		while (CALL(kvmfault_recording_end, false,
			    kvmfault_recording_end(recording)))
			task_pause(MS, "memory for a recording");
		check_recorded(memory, set, step->c % 4U);
	}
	CALL(kvmfault_working_set_free, false, kvmfault_working_set_free(set));
	memory->users--;
	task_wake(&memory->users, TASKS);
}

static void msrs(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);

	(void)a;
	tables_msrs(memory->gpa + page_of(memory, step->a) * PAGE);
}

static void another_vm(struct acting *a, const struct step *step)
{
	(void)a;
	tables_ask(step->c);
}

static void ask(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	struct kvmfault_stats stats = { .size = sizeof(stats) };
	struct kvmfault_region region = { .size = sizeof(region) };
	int err;

	(void)a;
	CALL(kvmfault_vm_stats, true, kvmfault_vm_stats(world.vm, &stats));
	err = CALL(kvmfault_region_find, true,
		   kvmfault_region_find(world.vm, 0, memory->gpa, &region));
	if (!err && region.length * (1 + option(OPT_halves)) !=
	    memory->pages * PAGE)
		sim_fail("another region is found", "%#llx",
			 (unsigned long long)region.length);
	if (err == -ENOENT && memory->shown && !world.regions_changed)
		sim_fail("a region is not found", "%#llx",
			 (unsigned long long)memory->gpa);
}

static void wait_a_while(struct acting *a, const struct step *step)
{
	(void)a;
	task_pause((1 + step->b) * MS, "nothing");
}

/* ---- the device process ---- */

static void read_device(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);

	(void)a;
	read_at(memory, world.device, memory->remote, step, "a device process");
}

static void write_device(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);

	if (!option(OPT_guest_memfd) && memory->remote_mapping && !memory->busy)
		write_at(a, memory, world.device, memory->remote, step);
}

static void unmap_device(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);

	(void)a;
	if (memory->remote)
		mm_unmap(world.device, memory->remote +
			 page_of(memory, step->a) * PAGE, memory->unit * PAGE);
	world.holes++;
}

static void die(struct acting *a, const struct step *step)
{
	(void)a;
	(void)step;
	world.holes++;
	mm_exit(world.device);
}

/* ---- the kernel, and the machine ---- */

static void reclaim(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	uint64_t at = step->b % 2 ? memory->own : memory->memslots;
	unsigned int page;
	struct map *map;

	(void)a;
	map = at ? map_at(our_mm, at + page_of(memory, step->a) * PAGE, &page) :
		   NULL;
	if (map)
		mm_reclaim(map, page);
	/* Of both, and to make a huge page of them. */
	if (map && step->c && option(OPT_minor) && memory->own) {
		world.going++;
		map->pte[page].going = true;
		map = map_at(our_mm, step->b % 2 ? memory->memslots :
			     memory->own, &page);
		page = page_of(memory, step->a);
		mm_reclaim(map, page);
	}
	sim_point();
}

static void split_vma(struct acting *a, const struct step *step)
{
	struct sim_memory *memory = memory_for(step);
	unsigned int page = page_of(memory, step->a);

	(void)a;
	if (option(OPT_split) && memory->unit == 1)
		mm_split(our_mm, memory->memslots + page * PAGE,
			 count_of(memory, page, step->b) * PAGE);
	sim_point();
}

/* A timer of the process's. */
static void tick(struct acting *a, const struct step *step)
{
	struct task *task = task_nth(step->a % TASKS);

	(void)a;
	if (!option(OPT_signals) || !task || task->service ||
	    task->state == ENDED)
		return;
	world.signalled = true;
	task_signal(task, SIGUSR1);
	sim_point();
	task_pause(sim_below(2) * MS, "nothing");
}

/* ---- doing them ---- */

static void (*const functions[STEP_COUNT])(struct acting *a,
					   const struct step *step) = {
	[STEP_touch] = touch,
	[STEP_touch_emulated] = touch_emulated,
	[STEP_touch_unknown] = touch_unknown,
	[STEP_touch_private] = touch_private,
	[STEP_touch_by_turns] = touch_by_turns,
	[STEP_touch_nothing] = touch_nothing,
	[STEP_page_tables] = page_tables,
	[STEP_convert_here] = convert_here,
	[STEP_vcpu_again] = vcpu_again,
	[STEP_stand] = stand,
	[STEP_sigbus_elsewhere] = sigbus_elsewhere,
	[STEP_read_memslots] = read_memslots,
	[STEP_read_own] = read_own,
	[STEP_write_own] = write_own,
	[STEP_ensure] = ensure,
	[STEP_discard] = discard,
	[STEP_snapshot] = snapshot,
	[STEP_unprotect] = unprotect,
	[STEP_convert] = convert,
	[STEP_cancel] = cancel,
	[STEP_region_again] = region_again,
	[STEP_relay] = relay,
	[STEP_memory_again] = memory_again,
	[STEP_another_memory] = another_memory,
	[STEP_owner_killed] = owner_killed,
	[STEP_fill] = fill,
	[STEP_mapping_again] = mapping_again,
	[STEP_settle] = settle,
	[STEP_count] = count,
	[STEP_wrong_mapping] = wrong_mapping,
	[STEP_service_again] = service_again,
	[STEP_set_delivery] = set_delivery,
	[STEP_kick] = kick,
	[STEP_other_sigbus] = other_sigbus,
	[STEP_balloon] = balloon,
	[STEP_fork] = fork_child,
	[STEP_failed] = failed,
	[STEP_msrs] = msrs,
	[STEP_record] = record,
	[STEP_another_vm] = another_vm,
	[STEP_ask] = ask,
	[STEP_wait] = wait_a_while,
	[STEP_read_device] = read_device,
	[STEP_write_device] = write_device,
	[STEP_unmap_device] = unmap_device,
	[STEP_die] = die,
	[STEP_reclaim] = reclaim,
	[STEP_vma] = split_vma,
	[STEP_tick] = tick,
};

static void run_actor(void *arg)
{
	struct acting *a = arg;

	for (; a->done < a->actor->steps; a->done++) {
		const struct step *step = &a->actor->step[a->done];

		if (giving_up(a) || current->mm->dead)
			break;
		tell("step %s %u %u %u", step_name[step->what], step->a, step->b,
		     step->c);
		functions[step->what](a, step);
		sim_point();
	}
}

/* Where the VMM has no threads of the library's. */
static void run_dispatcher(void *arg)
{
	(void)arg;
	while (!world.ending) {
		if (!world.service || world.service_busy) {
			task_pause(MS, "a service");
			continue;
		}
		if (!epoll_await_any(kvmfault_service_fd(world.service),
				     sim_now() + 20 * MS) ||
		    !world.service || world.service_busy)
			continue;
		world.service_busy = true;
		CALL(kvmfault_service_dispatch, true,
		     kvmfault_service_dispatch(world.service));
		world.service_busy = false;
	}
}

void steps_start(void)
{
	static const char *const names[] = { "vcpu", "thread", "device", "kernel" };
	unsigned int i, vcpus = 0;
	char name[24];

	acting_count = 0;
	checker = NULL;
	for (i = 0; i < world.plan->actors; i++) {
		struct acting *a = &acting[acting_count++];
		const struct actor *actor = &world.plan->actor[i];

		snprintf(name, sizeof(name), "%s%u", names[actor->role], i);
		*a = (struct acting){ .actor = actor };
		a->task = task_new(name, actor->role == ROLE_DEVICE ?
				   world.device : our_mm, run_actor, a);
		if (actor->role != ROLE_VCPU || vcpus == world.vcpus)
			continue;
		a->vcpu = &world.vcpu[vcpus++];
		a->vcpu->task = a->task;
		a->task->on_signal = take_marker;
		if (world_masks_sigbus())
			a->task->blocked = 1ULL << (SIGBUS - 1);
	}
	dispatcher = option(OPT_service) ? NULL :
		task_new("dispatcher", our_mm, run_dispatcher, NULL);
}

void steps_end(void)
{
	world.ending = true;
	if (dispatcher)
		task_wait_end(dispatcher);
}

static void run_checker(void *arg)
{
	(void)arg;
	world_check();
}

void steps_check(void)
{
	checker = task_new("reader", our_mm, run_checker, NULL);
}

bool steps_over(void)
{
	unsigned int i;

	if (checker && checker->state != ENDED)
		return false;

	for (i = 0; i < acting_count; i++)
		if (acting[i].task->state != ENDED)
			return false;
	return true;
}

void steps_tell_who_waits(char *text, size_t size)
{
	const struct task *task;
	unsigned int i;
	int n = 0;

	text[0] = '\0';
	for (i = 1; (task = task_nth(i)) && n >= 0 && (size_t)n < size; i++)
		if (task->state == ASLEEP)
			n += snprintf(text + n, size - (size_t)n,
				      "%s%s%s%s waits for %s", n ? "; " : "",
				      task->name, task->call ? " in " : "",
				      task->call ? task->call : "",
				      task->why ? task->why : "?");
}
