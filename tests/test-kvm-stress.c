/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * All at once, at random, in both columns: vCPUs, threads of the VMM's and a
 * device process write and read, while pages are discarded, converted and taken
 * away by the VMM itself, with events and without, regions change, mappings
 * come and go, the process forks, the delivery mode is left and taken up again,
 * the source fails, answers out of order or not at all, fetches are cancelled,
 * huge pages run out and everybody is kicked. Round after round, each with
 * another kind of memory, source, window and profile of the vCPUs, until so
 * many faults were answered. Every word that is read was there to be read, and
 * at the end of a round every word of every page is what it must be.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/kvm.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvm-rig.h"
#include "pass-fd.h"
#include "need.h"

#define VCPUS 16
#define HOSTS 4			/* threads of the VMM's */
#define DEVICE (VCPUS + HOSTS)	/* a process of its own */
#define WORKERS (DEVICE + 1)
#define CHILD WORKERS		/* one that is forked: it has no word */
#define PAGES 512
#define HUGE_PAGES 8		/* instead of them */
#define BLOCK 8			/* pages of one class, side by side */
#define STEPS 256		/* of each worker in a round */
#define HUGE_STEPS 32
#define LOOKS 16		/* of a child */
#define MOMENT 100		/* us, between two looks */
#define FREE_PAGES 1024		/* huge ones that a disturber takes */
#define FETCHES 64
#define PRIVATE_VM 1		/* KVM_X86_SW_PROTECTED_VM */

#define SEED 1			/* KVMFAULT_TEST_SEED */
#define FAULTS 32000		/* KVMFAULT_TEST_FAULTS, of all tests here */
#define FAULTS_A_SECOND 100	/* at least: what is slower hangs */

#define MUST(call) ck_assert_int_eq(call, 0)

/* What the guest's RAM is. */
enum kind { MEMFD, HUGE_MEMFD, ANONYMOUS, KINDS };

/* What makes a round another than the one before. */
static struct round {
	unsigned int number;
	enum kind kind;
	uint64_t page_size, pages, block, steps, pause;
	enum kvmfault_profile profile;
	enum kvmfault_sigbus sigbus;
	bool events;		/* of the VMM's userfaultfds: REMOVE */
	bool inherited;		/* a child has the mappings */
	bool exits;		/* there is no memslot: all are MMIO */
	enum kvmfault_delivery delivery;	/* if there is one; left and
						 * taken up again */
	bool minor;		/* faults that are answered by continue */
	bool later;		/* the source answers later */
	bool failing;		/* and fails, or does not answer at all */
	bool no_wait;		/* every other vCPU */
	bool apart;		/* b has a userfaultfd of its own */
	enum kvmfault_window window;
	uint64_t window_length;
	uint32_t retries, deadline_ms, fetches, threads;
	bool exit_wanted;	/* by who is kicked: immediate_exit is set */
	int signals;		/* SA_RESTART or 0 */
} now;

static struct {
	uint64_t seed;
	bool private;		/* a VM with private memory */
	bool huge;		/* there are huge pages */
	struct machine *machine;
	int gmem;
	char *slot;		/* what it shows, if there is one */
	struct ram {
		int memfd;
		/* The slot's mapping, the hosts', and one that comes and
		 * goes. */
		char *a, *b, *c;
	} ram[KINDS];
	struct kvmfault_vm *vm;
	struct kvmfault_uffd *uffd, *uffd_b, *uffd_device;
	struct kvmfault_memory *memory;
	struct kvmfault_service *service;
	struct kvmfault_vcpu *vcpu[VCPUS];
	struct team vcpus, hosts;
	pid_t device;
	int channel, device_uffd;	/* to it, and its own */
} t;

static struct ram *ram(void)
{
	return &t.ram[now.kind];
}

static uint64_t start_of(unsigned int what)
{
	return (t.seed * 1000003 + now.number) * 1000003 + what + 1;
}

/* ---- what every page must hold ---- */

/*
 * Each worker has a word of its own in each page, and only it writes that. What
 * a word may be after a page was taken away follows from counts: of the times
 * that were begun and that were ended.
 */
struct page {
	atomic_uint begun, ended;
	_Atomic uint64_t added;		/* to the word that all add to */
};

/* Was there at a time when so many had begun at most, and so many ended at
 * least. */
struct word {
	uint64_t value;
	unsigned int begun, ended;
};

/* The third mapping, of the VMM's or of the device process's. */
struct third {
	pthread_rwlock_t lock;	/* who reads by it is in */
	bool open;
	atomic_int state;	/* as below */
};
enum { NOT_MAPPED, WANTED, MAPPED };

/* Shared with the device process. */
static struct model {
	struct page page[PAGES];
	struct word word[WORKERS][PAGES];
	struct third third[2];
	atomic_uint working;
} *model;

#define SUM WORKERS		/* the word that all add to */
#define OTHERS (SUM + 1)	/* and nobody writes those from here on */

static uint64_t words(void)
{
	return now.page_size / 8;
}

enum class {
	KEPT,			/* of the image: never zero */
	REMOVED,		/* discarded again and again */
	CONVERTED,		/* to private and back */
};

static enum class class_of(uint64_t page)
{
	switch (page / now.block % 4) {
	case 0:
		return KEPT;
	case 1:
		return t.private ? CONVERTED : KEPT;
	default:
		return REMOVED;
	}
}

static uint64_t offset_of(uint64_t page, uint64_t word)
{
	return page * now.page_size + 8 * word;
}

static struct word from_source(uint64_t page, uint64_t word)
{
	return (struct word){ .value = rig_word(offset_of(page, word)) };
}

static void model_new(void)
{
	pthread_rwlockattr_t shared;
	unsigned int id, i;
	uint64_t page;

	memset(model, 0, sizeof(*model));
	for (page = 0; page < now.pages; page++)
		for (id = 0; id < WORKERS; id++)
			model->word[id][page] = from_source(page, id);
	MUST(pthread_rwlockattr_init(&shared));
	MUST(pthread_rwlockattr_setpshared(&shared, PTHREAD_PROCESS_SHARED));
	for (i = 0; i < 2; i++)
		MUST(pthread_rwlock_init(&model->third[i].lock, &shared));
	atomic_store(&model->working, WORKERS);
}

/*
 * ended: before it was read; begun: afterwards. What was there is gone if there
 * was one that began after that and has ended: if more have ended than had begun
 * then. Zero has come by one that had not ended then and has begun.
 */
static bool right(const struct word *word, uint64_t got, unsigned int ended,
		  unsigned int begun)
{
	return (got == word->value && ended <= word->begun) ||
	       (!got && begun > word->ended);
}

static void wrong(unsigned int id, uint64_t offset, uint64_t got,
		  const struct word *word, unsigned int ended,
		  unsigned int begun)
{
	char what[200];

	snprintf(what, sizeof(what),
		 "seed %llu, round %u, worker %u, page %llu, word %llu: %#llx, not %#llx of %u to %u; now %u to %u",
		 (unsigned long long)t.seed, now.number, id,
		 (unsigned long long)(offset / now.page_size),
		 (unsigned long long)(offset % now.page_size / 8),
		 (unsigned long long)got, (unsigned long long)word->value,
		 word->ended, word->begun, ended, begun);
	if (id < DEVICE)
		ck_abort_msg("%s", what);
	fprintf(stderr, "%s\n", what);
	_exit(1);
}

static void expect(int err, const char *what)
{
	if (err)
		ck_abort_msg("seed %llu, round %u: %s: %d",
			     (unsigned long long)t.seed, now.number, what, err);
}

/* ---- the source ---- */

static atomic_bool calm;		/* it fails no more */
static _Atomic uint32_t reads[PAGES];	/* that were answered with data */
static _Atomic uint64_t source_state;

static uint64_t dice(void)
{
	uint64_t state = atomic_fetch_add(&source_state, 2) | 1;

	rig_random(&state);
	return rig_random(&state);
}

static bool fails(uint64_t number)
{
	return now.failing && !atomic_load(&calm) && !(number & 7);
}

static int give(uint64_t offset, void *buffer, size_t length)
{
	uint64_t at, number = dice();

	if (fails(number))
		return -EIO;
	if (!(number >> 8 & 31))
		usleep(number >> 16 & 255);
	for (at = 0; at < length; at += 8)
		*(uint64_t *)((char *)buffer + at) = rig_word(offset + at);
	for (at = 0; at < length; at += now.page_size)
		atomic_fetch_add(&reads[(offset + at) / now.page_size], 1);
	return 0;
}

static int read_words(void *data, uint64_t offset, void *buffer, size_t length)
{
	(void)data;
	return give(offset, buffer, length);
}

struct ask {
	struct kvmfault_fetch *fetch;
	uint64_t offset;
	void *buffer;
	size_t length;
	bool held;			/* is not answered until cancelled */
	bool cancelled;
};

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct ask ask[FETCHES];
	unsigned int count;
	bool closed;
} asked = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.changed = PTHREAD_COND_INITIALIZER,
};

static int submit(void *data, struct kvmfault_fetch *fetch, uint64_t offset,
		  void *buffer, size_t length)
{
	uint64_t number = dice();

	(void)data;
	if (fails(number))
		return number & 8 ? -EAGAIN : -EIO;
	pthread_mutex_lock(&asked.lock);
	asked.ask[asked.count++] = (struct ask){
		.fetch = fetch,
		.offset = offset,
		.buffer = buffer,
		.length = length,
		.held = fails(number >> 8),
	};
	pthread_cond_signal(&asked.changed);
	pthread_mutex_unlock(&asked.lock);
	return 0;
}

static void cancel(void *data, struct kvmfault_fetch *fetch)
{
	unsigned int i;

	(void)data;
	pthread_mutex_lock(&asked.lock);
	for (i = 0; i < asked.count; i++)
		if (asked.ask[i].fetch == fetch)
			asked.ask[i].cancelled = true;
	pthread_cond_broadcast(&asked.changed);
	pthread_mutex_unlock(&asked.lock);
}

/* One that can be answered, whichever: out of order. */
static bool pick(struct ask *ask)
{
	unsigned int i, n, first = asked.count ? dice() % asked.count : 0;

	for (n = 0; n < asked.count; n++) {
		i = (first + n) % asked.count;
		*ask = asked.ask[i];
		if (ask->held && !ask->cancelled && !atomic_load(&calm))
			continue;
		asked.ask[i] = asked.ask[--asked.count];
		return true;
	}
	return false;
}

static void *answer(void *arg)
{
	struct ask ask;

	for (;;) {
		pthread_mutex_lock(&asked.lock);
		while (!pick(&ask) && !asked.closed)
			pthread_cond_wait(&asked.changed, &asked.lock);
		if (asked.closed)
			break;
		pthread_mutex_unlock(&asked.lock);
		kvmfault_fetch_done(ask.fetch, ask.cancelled ? -ECANCELED :
				    give(ask.offset, ask.buffer, ask.length));
	}
	pthread_mutex_unlock(&asked.lock);
	return arg;
}

static void calm_down(void)
{
	pthread_mutex_lock(&asked.lock);
	atomic_store(&calm, true);
	pthread_cond_broadcast(&asked.changed);
	pthread_mutex_unlock(&asked.lock);
}

static void close_source(void)
{
	pthread_mutex_lock(&asked.lock);
	asked.closed = true;
	pthread_cond_broadcast(&asked.changed);
	pthread_mutex_unlock(&asked.lock);
}

/* What a source like that may make a call return. */
static bool of_source(int err)
{
	return now.failing && (err == -EIO || err == -ECANCELED);
}

static atomic_uint without_room;	/* answers */

/* And huge pages that somebody else has. */
static bool no_room(int err)
{
	if (now.kind != HUGE_MEMFD || err != -ENOMEM)
		return false;
	atomic_fetch_add(&without_room, 1);
	return true;
}

/* ---- what the library tells ---- */

static _Atomic uint64_t changes[5][PAGES];	/* by cause */
static atomic_uint unresolved;
static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	unsigned long times;
} settled = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.changed = PTHREAD_COND_INITIALIZER,
};

static void note_change(void *data, const struct kvmfault_change *change)
{
	uint64_t at;

	(void)data;
	for (at = 0; at < change->length; at += now.page_size)
		atomic_fetch_add(&changes[change->cause]
				 [(change->offset + at) / now.page_size], 1);
}

static void note_unresolved(void *data, const struct kvmfault_sleeper *sleeper)
{
	(void)data;
	if (!of_source(sleeper->error) && !no_room(sleeper->error))
		expect(sleeper->error, "unresolved");
	atomic_fetch_add(&unresolved, 1);
}

static void note_ready(void *data, struct kvmfault_memory *memory,
			 uint64_t offset, uint64_t length)
{
	(void)data;
	(void)memory;
	(void)offset;
	(void)length;
	pthread_mutex_lock(&settled.lock);
	settled.times++;
	pthread_cond_broadcast(&settled.changed);
	pthread_mutex_unlock(&settled.lock);
}

static unsigned long settled_times(void)
{
	unsigned long times;

	pthread_mutex_lock(&settled.lock);
	times = settled.times;
	pthread_mutex_unlock(&settled.lock);
	return times;
}

static void await_settled(unsigned long seen)
{
	pthread_mutex_lock(&settled.lock);
	while (settled.times == seen)
		pthread_cond_wait(&settled.changed, &settled.lock);
	pthread_mutex_unlock(&settled.lock);
}

/* ---- vCPUs, as a VMM runs them ---- */

/* Its source fails, or there is no room, and that will not be so for ever: the
 * VMM tries again. */
static void expect_not_for_ever(const struct kvmfault_result *result)
{
	if ((result->reason != KVMFAULT_REASON_SOURCE ||
	     !of_source(result->error)) && !no_room(result->error))
		expect(result->error, kvmfault_reason_str(result->reason));
	atomic_fetch_add(&unresolved, 1);
}

/* True: the same exit once more, before KVM_RUN. */
static bool go_on(unsigned int id, enum kvmfault_action action,
		  unsigned long seen)
{
	const struct kvmfault_result *result = kvmfault_vcpu_result(t.vcpu[id]);
	struct kvm_run *run = t.machine->vcpu[id].run;
	char story[MACHINE_STORY];

	switch (action) {
	case KVMFAULT_ACTION_RETRY:
		break;
	case KVMFAULT_ACTION_NOT_A_FAULT:
		/* Its region is gone, and will be back. */
		if (run->exit_reason != KVM_EXIT_MMIO ||
		    run->mmio.phys_addr < RAM)
			expect((int)run->exit_reason,
			       machine_story(&t.machine->vcpu[id], story));
		sched_yield();
		return true;
	case KVMFAULT_ACTION_INTERRUPTED:
	case KVMFAULT_ACTION_UNFINISHED:
		run->immediate_exit = 0;
		break;
	case KVMFAULT_ACTION_PENDING:
	case KVMFAULT_ACTION_PENDING_UNFINISHED:
		await_settled(seen);
		break;
	case KVMFAULT_ACTION_UNRESOLVED:
		expect_not_for_ever(result);
		break;
	}
	return result->unfinished;
}

static uint64_t guest(unsigned int id, enum machine_routine routine, uint64_t a,
		      uint64_t b, uint64_t c)
{
	struct machine_vcpu *machine = &t.machine->vcpu[id];
	enum kvmfault_action action;
	unsigned long seen;
	bool again = false;
	int err = 0, ret = 0;

	expect(machine_call(machine, routine, a, b, c, 0), "machine_call()");
	for (;;) {
		seen = now.no_wait ? settled_times() : 0;
		if (!again) {
			ret = ioctl(machine->fd, KVM_RUN, 0);
			err = errno;
		}
		action = kvmfault_vcpu_handle(t.vcpu[id], ret, err);
		if (action == KVMFAULT_ACTION_NOT_A_FAULT &&
		    machine_done(machine, ret))
			return machine_result(machine);
		again = go_on(id, action, seen);
	}
}

/* ---- workers ---- */

static uint64_t touch_mapped(char *map, enum machine_routine how,
			     uint64_t offset, uint64_t value)
{
	_Atomic uint64_t *word = (_Atomic uint64_t *)(map + offset);

	switch (how) {
	case MACHINE_WRITE:
		atomic_store(word, value);
		return 0;
	case MACHINE_EXCHANGE:
		return atomic_exchange(word, value);
	case MACHINE_ADD:
		return atomic_fetch_add(word, value);
	default:
		return atomic_load(word);
	}
}

/* fixed: in the place of what is there. Nothing is reserved: huge pages may run
 * out. */
static char *map(struct ram *ram, char *fixed)
{
	return mmap(fixed, now.pages * now.page_size, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_NORESERVE | (fixed ? MAP_FIXED : 0),
		    ram->memfd, 0);
}

static struct third *third_of(unsigned int id)
{
	return &model->third[id == DEVICE];
}

/* By the device process, which has to be asked. */
static void map_if_wanted(void)
{
	struct third *third = third_of(DEVICE);

	if (atomic_load(&third->state) != WANTED)
		return;
	if (map(ram(), ram()->c) != ram()->c)
		_exit(5);
	atomic_store(&third->state, MAPPED);
}

/* Every other time by the mapping that comes and goes, if it is there. */
static uint64_t touch_any(unsigned int id, enum machine_routine how,
			  uint64_t offset, uint64_t value)
{
	static _Thread_local unsigned int turn;
	struct third *third = third_of(id);

	if (id == CHILD || ++turn % 2 ||
	    pthread_rwlock_tryrdlock(&third->lock))
		return touch_mapped(ram()->b, how, offset, value);
	value = touch_mapped(third->open ? ram()->c : ram()->b, how, offset,
			     value);
	pthread_rwlock_unlock(&third->lock);
	return value;
}

static uint64_t touch(unsigned int id, enum machine_routine how,
		      uint64_t offset, uint64_t value)
{
	uint64_t gpa = RAM + offset;

	if (id >= VCPUS)
		return touch_any(id, how, offset, value);
	if (how == MACHINE_READ || how == MACHINE_WRITE)
		return guest(id, how, gpa, 8, value);
	return guest(id, how, gpa, value, 0);
}

/* Read a word, or change it and read what was there before. */
static void access_word(unsigned int id, enum machine_routine how,
			uint64_t page, uint64_t index, struct word *word,
			uint64_t value)
{
	unsigned int begun, ended = atomic_load(&model->page[page].ended);
	uint64_t got = touch(id, how, offset_of(page, index), value);

	begun = atomic_load(&model->page[page].begun);
	if (how != MACHINE_WRITE && !right(word, got, ended, begun))
		wrong(id, offset_of(page, index), got, word, ended, begun);
	if (how == MACHINE_READ)
		value = got;
	else if (how == MACHINE_ADD)
		value += got;
	*word = (struct word){ value, begun, ended };
}

/* What a guest's access is where KVM's emulator does it for a device: read and
 * write, and not atomic. */
static bool has_atomics(unsigned int id)
{
	return id >= VCPUS || !now.exits;
}

static void own_word(unsigned int id, uint64_t page, uint64_t number)
{
	static const enum machine_routine how[] = {
		MACHINE_READ, MACHINE_WRITE, MACHINE_EXCHANGE, MACHINE_ADD,
	};
	unsigned int choice = number & (has_atomics(id) ? 3 : 1);
	/* Even, and so nowhere in the source. */
	uint64_t value = (uint64_t)(id + 1) << 56 | (number >> 2) << 1;

	access_word(id, how[choice], page, id, &model->word[id][page], value);
}

static void other_word(unsigned int id, uint64_t page, uint64_t number)
{
	uint64_t index = OTHERS + number % (words() - OTHERS);
	struct word word = from_source(page, index);

	access_word(id, MACHINE_READ, page, index, &word, 0);
}

static void add_to_sum(unsigned int id, uint64_t page, uint64_t number)
{
	if (class_of(page) != KEPT || !has_atomics(id))
		return;
	touch(id, MACHINE_ADD, offset_of(page, SUM), number);
	atomic_fetch_add(&model->page[page].added, number);
}

static bool ensured(uint64_t page, uint64_t count, bool write)
{
	int err = kvmfault_ensure(t.vm, 0, RAM + page * now.page_size,
				  count * now.page_size, write);

	/* A signal came, the source wants to be asked later or the mappings
	 * are changing, or the region was not there just now. */
	if (err != -EINTR && err != -EAGAIN && err != -ENXIO &&
	    !of_source(err) && !no_room(err))
		expect(err, "ensure");
	return !err;
}

static void ensure(uint64_t page, uint64_t number)
{
	uint64_t count = 1 + number % now.block;

	if (count > now.pages - page)
		count = now.pages - page;
	ensured(page, count, number & 8);
}

static void step(unsigned int id, uint64_t *state, uint64_t *page)
{
	uint64_t number = rig_random(state), what = number >> 40 & 7;

	/* Half of them jump, half of them walk. */
	*page = (number & 1 << 30 ? *page + 1 : number) % now.pages;
	if (id >= VCPUS && class_of(*page) == CONVERTED)
		return;		/* is the guest's alone */
	number = rig_random(state);
	if (what == 0 && id != DEVICE)
		ensure(*page, number);
	else if (what == 1)
		other_word(id, *page, number);
	else if (what == 2)
		add_to_sum(id, *page, number);
	else
		own_word(id, *page, number);
}

static void work(unsigned int id)
{
	uint64_t state = start_of(id), page = 0;
	unsigned int i;

	for (i = 0; i < now.steps; i++) {
		if (id == DEVICE)
			map_if_wanted();
		if (id != DEVICE || now.kind != ANONYMOUS)
			step(id, &state, &page);
	}
	atomic_fetch_sub(&model->working, 1);
}

static _Thread_local struct kvm_run *this_run;
static _Thread_local struct kvmfault_vcpu *this_vcpu;

static void on_bus(int signal, siginfo_t *info, void *unused)
{
	(void)signal;
	(void)unused;
	if (!this_vcpu || !kvmfault_vcpu_note_sigbus(this_vcpu, info))
		abort();
}

static void kicked(int signal)
{
	(void)signal;
	if (this_run && now.exit_wanted)
		this_run->immediate_exit = 1;
}

static void *run_vcpu(void *arg)
{
	unsigned int id = (unsigned int)(uintptr_t)arg;

	this_run = t.machine->vcpu[id].run;
	this_vcpu = t.vcpu[id];
	work(id);
	return NULL;
}

static void *run_host(void *arg)
{
	work(VCPUS + (unsigned int)(uintptr_t)arg);
	return NULL;
}

/* When nothing is taken away any more: each page by two vCPUs. */
static void *walk(void *arg)
{
	unsigned int id = (unsigned int)(uintptr_t)arg;
	uint16_t order[PAGES];
	uint64_t i;

	this_vcpu = t.vcpu[id];
	rig_shuffle(order, now.pages, start_of(id));
	for (i = 0; i < now.pages; i++)
		if ((order[i] + id) % (VCPUS / 2) == 0)
			access_word(id, MACHINE_READ, order[i], id,
				    &model->word[id][order[i]], 0);
	return NULL;
}

/* ---- who disturbs them ---- */

static void begin(uint64_t page)
{
	atomic_fetch_add(&model->page[page].begun, 1);
}

static void end(uint64_t page)
{
	atomic_fetch_add(&model->page[page].ended, 1);
}

static void discard(uint64_t first, uint64_t count)
{
	uint64_t page;
	int err;

	for (page = first; page < first + count; page++)
		begin(page);
	do
		err = kvmfault_discard(t.vm, 0, RAM + first * now.page_size,
				       count * now.page_size);
	while (err == -ENXIO);		/* the region was not there just now */
	expect(err, "discard");
	for (page = first; page < first + count; page++)
		end(page);
}

static pthread_rwlock_t regions = PTHREAD_RWLOCK_INITIALIZER;

static void convert(uint64_t first, uint64_t count, bool to_private)
{
	uint64_t gpa = RAM + first * PAGE, length = count * PAGE, done;
	bool changed[BLOCK];
	uint64_t i;
	int err;

	for (i = 0; i < count; i++) {
		changed[i] = kvmfault_is_private(t.vm, gpa + i * PAGE) !=
			     to_private;
		if (changed[i])
			begin(first + i);
	}
	/* What is in no region any more would not be discarded. */
	pthread_rwlock_rdlock(&regions);
	err = kvmfault_convert(t.vm, NULL, gpa, length, to_private, &done);
	pthread_rwlock_unlock(&regions);
	expect(err, "convert");
	for (i = 0; i < count; i++)
		if (changed[i])
			end(first + i);
}

static uint64_t some_of_block(uint64_t number, uint64_t *first)
{
	*first = number % now.pages;
	return (number >> 20) % (now.block - *first % now.block) + 1;
}

/* Two do this; each converts blocks of its own. */
static void take_away(uint64_t number, unsigned int who)
{
	uint64_t first, count = some_of_block(number, &first);

	if (class_of(first) == REMOVED)
		discard(first, count);
	else if (class_of(first) == CONVERTED && first / BLOCK / 4 % 2 == who)
		convert(first, count, number >> 30 & 1);
}

/* The VMM's own balloon, past the library, of what is present; with events also
 * of what is absent or in flight, if the memory is anonymous. */
static void take_away_ourselves(uint64_t number, unsigned int who)
{
	uint64_t page, first, count = some_of_block(number, &first);
	char *map = number >> 30 & 1 ? ram()->a : ram()->b;
	bool anything = now.kind == ANONYMOUS && now.events;

	(void)who;
	if (class_of(first) != REMOVED ||
	    ((!anything || number >> 31 & 1) && !ensured(first, count, false)))
		return;
	for (page = first; page < first + count; page++)
		begin(page);
	expect(madvise(map + first * now.page_size, count * now.page_size,
		       now.kind == ANONYMOUS ? MADV_DONTNEED : MADV_REMOVE),
	       "madvise");
	for (page = first; page < first + count; page++)
		end(page);
}

static void cancel_some(uint64_t number, unsigned int who)
{
	uint64_t first = number % now.pages, count = number >> 20 & 15;
	int err;

	(void)who;
	if (!now.failing)
		return;
	if (!count) {
		first = 0;
		count = now.pages;
	} else if (count > now.pages - first) {
		count = now.pages - first;
	}
	err = kvmfault_cancel_fetches(t.vm, 0, RAM + first * now.page_size,
			      count * now.page_size);
	if (err != -ENXIO)
		expect(err, "cancel");
}

static void add_region(uint64_t first, uint64_t count)
{
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = RAM + first * now.page_size,
		.length = count * now.page_size,
		.memory = t.memory,
		.offset = first * now.page_size,
		.guest_memfd = t.gmem,
		.guest_memfd_offset = first * now.page_size,
	};

	expect(kvmfault_region_add(t.vm, &region), "region_add");
}

static void remove_region(uint64_t first)
{
	expect(kvmfault_region_remove(t.vm, 0, RAM + first * now.page_size),
	       "region_remove");
}

/* RAM in two, and in one again. */
static void change_regions(uint64_t number, unsigned int who)
{
	uint64_t cut = 1 + number % (now.pages - 1);

	(void)who;
	pthread_rwlock_wrlock(&regions);
	remove_region(0);
	add_region(cut, now.pages - cut);
	add_region(0, cut);
	if (number >> 40 & 1)
		sched_yield();
	remove_region(cut);
	remove_region(0);
	add_region(0, now.pages);
	pthread_rwlock_unlock(&regions);
}

static void change_delivery(uint64_t number, unsigned int who)
{
	(void)who;
	if (number & 7)
		return;
	expect(kvmfault_vm_set_delivery(t.vm, number >> 3 & 1 ?
					KVMFAULT_DELIVERY_UFFD : now.delivery),
	       "set_delivery");
}

static void kick(uint64_t number, unsigned int who)
{
	unsigned int id = number % (VCPUS + HOSTS);

	(void)who;
	pthread_kill(id < VCPUS ? t.vcpus.thread[id] :
				  t.hosts.thread[id - VCPUS], KICK);
}

static struct kvmfault_mapping *add_mapping(const char *host,
					    struct kvmfault_uffd *uffd,
					    bool inherited)
{
	const struct kvmfault_mapping_options options = {
		.size = sizeof(options),
		.host = (uintptr_t)host,
		.uffd = uffd,
		.inherited = inherited,
	};
	struct kvmfault_mapping *mapping;

	expect(kvmfault_mapping_add(t.memory, &options, &mapping),
	       "mapping_add");
	return mapping;
}

/* So that it can be added: as new. The device process does that by itself. */
static bool third_is_mapped(struct third *third, bool device)
{
	if (!device)
		expect(map(ram(), ram()->c) != ram()->c, "a third mapping");
	else if (atomic_load(&third->state) == NOT_MAPPED)
		atomic_store(&third->state, WANTED);
	return !device || atomic_load(&third->state) == MAPPED;
}

/* Who reads by it has come and gone when it is removed; messages of it need
 * not. */
static void change_mappings(uint64_t number, unsigned int who)
{
	bool device = number & 1;
	struct kvmfault_uffd *own = number & 2 ? t.uffd_b : NULL;
	struct third *third = &model->third[device];
	struct kvmfault_mapping *mapping;

	(void)who;
	if (now.kind == ANONYMOUS || !third_is_mapped(third, device))
		return;
	mapping = add_mapping(ram()->c, device ? t.uffd_device : own, false);
	pthread_rwlock_wrlock(&third->lock);
	third->open = true;
	pthread_rwlock_unlock(&third->lock);
	usleep(number >> 8 & 8191);
	pthread_rwlock_wrlock(&third->lock);
	third->open = false;
	pthread_rwlock_unlock(&third->lock);
	expect(kvmfault_mapping_remove(mapping), "mapping_remove");
	atomic_store(&third->state, NOT_MAPPED);
}

/* All that nobody has, for half of the time. To be kept from others it need not
 * be touched. */
static void take_huge_pages(uint64_t number, unsigned int who)
{
	char *page[FREE_PAGES];
	unsigned int count = 0;

	(void)who;
	if (now.kind != HUGE_MEMFD)
		return;
	while (count < FREE_PAGES) {
		page[count] = mmap(NULL, HUGE, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
				   21 << MAP_HUGE_SHIFT, -1, 0);
		if (page[count] == MAP_FAILED)
			break;
		count++;
	}
	usleep(number >> 8 & 16383);
	while (count)
		munmap(page[--count], HUGE);
	usleep(number >> 8 & 16383);
}

/* ---- a child of fork(): no Check here, it ends with a number ---- */

static bool is_there(char *map)
{
	unsigned char some;

	return !mincore(map, PAGE, &some);
}

/* Its mapping has to be registered before it looks, by the VMM. */
static int look(int channel, uint64_t number)
{
	int i, uffd = rig_open_uffd(0);
	uint64_t page;
	char done;

	if (uffd < 0 || !pass_fd(channel, uffd, 0) ||
	    read(channel, &done, 1) != 1)
		return 2;
	for (i = 0; i < LOOKS; i++) {
		number = rig_random(&number);
		page = number % now.pages;
		if (class_of(page) != CONVERTED)
			other_word(CHILD, page, number >> 16);
	}
	return 0;
}

static void child(int channel, uint64_t number)
{
	if (now.inherited)
		_exit(look(channel, number | 1));
	_exit(is_there(ram()->a) || is_there(ram()->b) ? 3 : 0);
}

static void adopt_child(int channel, pid_t pid)
{
	struct kvmfault_uffd_options options = {
		.size = sizeof(options),
		.remote = true,
	};
	struct kvmfault_mapping *mapping;
	struct kvmfault_uffd *uffd;
	uint64_t number;

	options.fd = take_fd(channel, &number);
	expect(options.fd < 0, "a child's userfaultfd");
	expect(kvmfault_uffd_new(t.vm, &options, &uffd), "uffd_new");
	close(options.fd);
	mapping = add_mapping(ram()->b, uffd, true);
	expect(write(channel, "", 1) != 1, "to a child");
	expect(waitid(P_PID, (id_t)pid, NULL, WEXITED | WNOWAIT), "waitid");
	expect(kvmfault_mapping_remove(mapping), "mapping_remove");
	expect(kvmfault_uffd_free(uffd), "uffd_free");
}

static void fork_child(uint64_t number, unsigned int who)
{
	int ends[2], status;
	pid_t pid;

	(void)who;
	if (number & 7)
		return;
	expect(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends),
	       "socketpair");
	pid = fork();
	expect(pid < 0, "fork");
	if (!pid)
		child(ends[1], number >> 3);
	close(ends[1]);
	if (now.inherited)
		adopt_child(ends[0], pid);
	close(ends[0]);
	expect(waitpid(pid, &status, 0) != pid, "waitpid");
	expect(status, "a child's end");
}

static void (*const disturbances[])(uint64_t number, unsigned int who) = {
	take_away, take_away, take_away_ourselves, cancel_some,
	change_regions, change_mappings, change_delivery, take_huge_pages,
	fork_child, kick,
};
#define DISTURBERS (sizeof(disturbances) / sizeof(*disturbances))

static void *disturb(void *arg)
{
	unsigned int who = (unsigned int)(uintptr_t)arg;
	uint64_t number, state = start_of(WORKERS + who);

	while (atomic_load(&model->working)) {
		number = rig_random(&state);
		disturbances[who](number, who);
		usleep(number >> 32 & now.pause);
	}
	return NULL;
}

/* ---- the device process: no Check here, it ends with a number ---- */

/* What is anonymous it does not have. */
static void look_at_all(void)
{
	uint64_t page;

	for (page = 0; page < now.pages && now.kind != ANONYMOUS; page++)
		if (class_of(page) != CONVERTED)
			access_word(DEVICE, MACHINE_READ, page, DEVICE,
				    &model->word[DEVICE][page], 0);
}

static void device(int channel)
{
	int uffd = rig_open_uffd(0);

	if (uffd < 0 || !pass_fd(channel, uffd, 0))
		_exit(2);
	/* To work; and when all is calm. */
	while (read(channel, &now, sizeof(now)) == sizeof(now)) {
		work(DEVICE);
		if (write(channel, "", 1) != 1 ||
		    read(channel, &now, sizeof(now)) != sizeof(now))
			_exit(3);
		look_at_all();
		if (write(channel, "", 1) != 1)
			_exit(4);
	}
	_exit(0);
}

static void tell_device(void)
{
	ck_assert_int_eq(write(t.channel, &now, sizeof(now)), sizeof(now));
}

static void await_device(void)
{
	char done;

	ck_assert_int_eq(read(t.channel, &done, 1), 1);
}

/* Before there are threads. It has the same mappings, with another
 * userfaultfd. */
static void spawn(void)
{
	uint64_t number;
	int ends[2];

	MUST(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends));
	t.device = fork();
	ck_assert_int_ge(t.device, 0);
	if (!t.device) {
		close(ends[0]);
		device(ends[1]);
	}
	close(ends[1]);
	t.channel = ends[0];
	t.device_uffd = take_fd(t.channel, &number);
	ck_assert_int_ge(t.device_uffd, 0);
}

static void expect_good_end(void)
{
	int status;

	close(t.channel);
	close(t.device_uffd);
	ck_assert_int_eq(waitpid(t.device, &status, 0), t.device);
	ck_assert(WIFEXITED(status));
	ck_assert_int_eq(WEXITSTATUS(status), 0);
}

/* ---- a machine, and in each round another library around it ---- */

static void *map_nothing(size_t length, int flags)
{
	void *at = mmap(NULL, length, PROT_READ | PROT_WRITE,
			MAP_ANONYMOUS | flags, -1, 0);

	ck_assert_ptr_ne(at, MAP_FAILED);
	return at;
}

/* Where vCPUs' faults are told by exits there is none. */
static void set_slot(char *host)
{
	uint64_t length = host ? now.pages * now.page_size : 0;

	if (host == t.slot)
		return;
	if (host && t.slot)
		set_slot(NULL);
	t.slot = host;
	if (t.private)
		MUST(machine_set_guest_memfd_slot(t.machine, SLOT, RAM, length,
						  host, t.gmem, 0));
	else
		MUST(machine_set_slot(t.machine, SLOT, 0, RAM, length, host));
}

/* What follows from it. */
static void set_kind(enum kind kind)
{
	bool huge = kind == HUGE_MEMFD;

	now.kind = kind;
	now.page_size = huge ? HUGE : PAGE;
	now.pages = huge ? HUGE_PAGES : PAGES;
	now.block = huge ? 1 : BLOCK;
	now.steps = huge ? HUGE_STEPS : STEPS;
	/* A page that is taken away has to come before it goes again. */
	now.pause = huge ? 16383 : 127;
}

/* Each kind of RAM is there before the device process is, which has the same
 * mappings. */
static void ram_up(enum kind kind)
{
	struct ram *ram = &t.ram[kind];
	unsigned int flags = kind == HUGE_MEMFD ? MFD_HUGETLB | MFD_HUGE_2MB :
						  0;

	set_kind(kind);
	if (kind == ANONYMOUS) {
		ram->a = map_nothing(PAGES * PAGE, MAP_PRIVATE);
		ram->b = ram->a;
		MUST(madvise(ram->a, PAGES * PAGE, MADV_NOHUGEPAGE));
		return;
	}
	ram->memfd = memfd_create("test-ram", MFD_CLOEXEC | flags);
	MUST(ftruncate(ram->memfd, (off_t)(now.pages * now.page_size)));
	ram->a = map(ram, NULL);
	ram->b = map(ram, NULL);
	ram->c = map(ram, NULL);
	ck_assert(ram->a != MAP_FAILED && ram->b != MAP_FAILED &&
		  ram->c != MAP_FAILED);
}

static void ram_down(enum kind kind)
{
	struct ram *ram = &t.ram[kind];
	uint64_t length;

	set_kind(kind);
	length = now.pages * now.page_size;
	munmap(ram->a, length);
	if (kind == ANONYMOUS)
		return;
	munmap(ram->b, length);
	munmap(ram->c, length);
	close(ram->memfd);
}

/* The library takes it, of vCPUs whose pages have markers: it is blocked or
 * not, as the round is. */
static void handle_bus(void)
{
	const struct sigaction action = {
		.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO,
	};

	MUST(sigaction(SIGBUS, &action, NULL));
}

static void block_bus(bool on)
{
	sigset_t bus;

	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	MUST(pthread_sigmask(on ? SIG_BLOCK : SIG_UNBLOCK, &bus, NULL));
}

static bool has(enum kind kind)
{
	return kind != HUGE_MEMFD || t.huge;
}

static void machine_up(int column, bool private)
{
	struct machine_options machine = {
		.vcpus = VCPUS,
		.type = private ? PRIVATE_VM : 0,
		.irqchip = column,
		.timer = column,
		.supervisor = private,
		.span = RAM + (64 << 20),
	};
	const char *seed = getenv("KVMFAULT_TEST_SEED");
	enum kind kind;

	handle_bus();
	t.seed = seed ? strtoull(seed, NULL, 0) : SEED;
	t.private = private;
	t.slot = NULL;
	for (kind = 0; kind < KINDS; kind++)
		if (has(kind))
			ram_up(kind);
	model = map_nothing(sizeof(*model), MAP_SHARED);
	spawn();
	MUST(machine_new(&machine, &t.machine));
	if (!private)
		return;
	t.gmem = machine_create_guest_memfd(t.machine, PAGES * PAGE, 0);
	ck_assert_int_gt(t.gmem, 0);
}

static void machine_down(void)
{
	enum kind kind;

	expect_good_end();
	machine_free(t.machine);
	if (t.private)
		close(t.gmem);
	for (kind = 0; kind < KINDS; kind++)
		if (has(kind))
			ram_down(kind);
	munmap(model, sizeof(*model));
}

/* Of eight rounds one is of huge pages, where there are any, and two are of
 * anonymous memory, which has neither a second mapping nor minor faults. */
static enum kind choose_kind(uint64_t n)
{
	if (!(n & 7))
		return t.huge && !t.private ? HUGE_MEMFD : MEMFD;
	return (n & 7) < 3 ? ANONYMOUS : MEMFD;
}

static void choose(unsigned int number, unsigned int column)
{
	uint64_t state, n;

	now = (struct round){ .number = number };
	state = start_of(0);
	n = rig_random(&state);
	set_kind(choose_kind(n >> 29));
	/* Also where each column has but one round. */
	now.profile = (number + column) % 2 ? KVMFAULT_PROFILE_DELEGATE :
					      KVMFAULT_PROFILE_INLINE;
	now.sigbus = now.profile == KVMFAULT_PROFILE_DELEGATE || n >> 32 & 1 ?
		KVMFAULT_SIGBUS_HANDLER : KVMFAULT_SIGBUS_MASKED;
	now.events = n >> 33 & 1;
	now.inherited = now.kind != ANONYMOUS && n >> 34 & 1;
	now.exits = !t.private && n & 1;
	now.minor = now.kind != ANONYMOUS && n >> 1 & 1;
	now.later = n >> 2 & 1;
	now.failing = n >> 3 & 1;
	now.no_wait = n >> 4 & 1;
	now.apart = n >> 5 & 1;
	now.window = n >> 6 & 3;
	now.window_length = now.kind == HUGE_MEMFD ? HUGE :
						     PAGE << (n >> 8 & 7);
	now.retries = n >> 11 & 3;
	now.deadline_ms = now.later && now.failing ? n >> 13 & 7 : 0;
	now.fetches = 1 + (n >> 16) % FETCHES;
	now.threads = 1 + (n >> 24 & 3);
	now.exit_wanted = n >> 26 & 1;
	now.signals = n >> 27 & 1 ? SA_RESTART : 0;
	now.delivery = now.exits || now.kind == ANONYMOUS || n >> 28 & 1 ?
		KVMFAULT_DELIVERY_UFFD : KVMFAULT_DELIVERY_MARKER_EXIT;
}

/* With events the VMM opens it itself. */
static void add_uffd(struct kvmfault_uffd **uffd)
{
	struct kvmfault_uffd_options options = { .size = sizeof(options) };

	if (now.events) {
		options.fd = rig_open_uffd(UFFD_FEATURE_EVENT_REMOVE);
		ck_assert_int_gt(options.fd, 0);
	}
	MUST(kvmfault_uffd_new(t.vm, &options, uffd));
	if (now.events)
		close(options.fd);
}

static void add_vm(void)
{
	const struct kvmfault_converter converter = {
		.size = sizeof(converter),
		.flags = KVMFAULT_CONVERTER_CALLS_ONLY |
			 KVMFAULT_CONVERTER_RAM_ONLY,
	};
	const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops),
		.changed = note_change,
		.unresolved = note_unresolved,
		.page_ready = note_ready,
	};
	const struct kvmfault_vm_options options = {
		.size = sizeof(options),
		.ops = &ops,
		.fetches = now.fetches,
		.source_retries = now.retries ? now.retries :
						KVMFAULT_NO_RETRIES,
		.converter = &converter,
		.vm_fd = t.machine->vm_fd,
		.delivery = now.delivery,
		.allow = KVMFAULT_ALLOW_SHADOW_PAGING,
	};
	const struct kvmfault_uffd_options device = {
		.size = sizeof(device),
		.fd = t.device_uffd,
		.remote = true,
	};

	MUST(kvmfault_vm_new(&options, &t.vm));
	add_uffd(&t.uffd);
	add_uffd(&t.uffd_b);
	MUST(kvmfault_uffd_new(t.vm, &device, &t.uffd_device));
}

/* A mapping of the file is made anew: markers may be left in it, which in
 * another mode would not be answered, and it may be one that does not go to a
 * child. */
static void empty_ram(void)
{
	uint64_t length = now.pages * now.page_size;

	if (now.kind == ANONYMOUS) {
		MUST(madvise(ram()->a, length, MADV_DONTNEED));
		return;
	}
	MUST(fallocate(ram()->memfd, FALLOC_FL_PUNCH_HOLE |
		       FALLOC_FL_KEEP_SIZE, 0, (off_t)length));
	ck_assert(map(ram(), ram()->a) == ram()->a);
	ck_assert(map(ram(), ram()->b) == ram()->b);
}

static void add_memory(void)
{
	const struct kvmfault_source source = {
		.size = sizeof(source),
		.name = "words",
		.read = now.later ? NULL : read_words,
		.submit = now.later ? submit : NULL,
		.cancel = now.later ? cancel : NULL,
		.chunk = 2 * now.block * now.page_size,
		.deadline_ms = now.deadline_ms,
	};
	const struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.host = ram()->a,
		.length = now.pages * now.page_size,
		.page_size = now.page_size,
		.fd = ram()->memfd,
		.source = &source,
		.uffd = t.uffd,
		.window = now.window,
		.window_length = now.window_length,
		.minor = now.minor,
		.inherited = now.inherited,
	};
	int err;

	/* A kernel thread that KVM had sent for a page in the last round may
	 * bring it in only now. */
	do {
		empty_ram();
		err = kvmfault_memory_adopt(t.vm, &options, &t.memory);
	} while (err == -EEXIST);
	MUST(err);
	add_region(0, now.pages);
	if (now.kind == ANONYMOUS)
		return;
	add_mapping(ram()->b, now.apart ? t.uffd_b : t.uffd, now.inherited);
	/* At the same addresses as the hosts'. */
	add_mapping(ram()->b, t.uffd_device, false);
}

static void add_threads(void)
{
	const struct sigaction action = {
		.sa_handler = kicked,
		.sa_flags = now.signals,
	};
	const struct kvmfault_service_options service = {
		.size = sizeof(service),
		.threads = now.threads,
	};
	unsigned int i;

	MUST(sigaction(KICK, &action, NULL));
	block_bus(now.sigbus == KVMFAULT_SIGBUS_MASKED);
	MUST(kvmfault_service_new(t.vm, &service, &t.service));
	for (i = 0; i < VCPUS; i++) {
		const struct kvmfault_vcpu_options vcpu = {
			.size = sizeof(vcpu),
			.fd = t.machine->vcpu[i].fd,
			.run = t.machine->vcpu[i].run,
			.no_wait = now.no_wait && i % 2,
			.sigbus = now.sigbus,
			.profile = now.profile,
		};

		MUST(kvmfault_vcpu_new(t.vm, &vcpu, &t.vcpu[i]));
	}
}

static void round_up(unsigned int number, unsigned int column)
{
	choose(number, column);
	model_new();
	memset((void *)(uintptr_t)reads, 0, sizeof(reads));
	memset((void *)(uintptr_t)changes, 0, sizeof(changes));
	atomic_store(&unresolved, 0);
	atomic_store(&calm, false);
	atomic_store(&source_state, start_of(0));
	asked.closed = false;
	set_slot(now.exits ? NULL : ram()->a);
	add_vm();
	add_memory();
	add_threads();
}

static struct kvmfault_stats round_down(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };
	unsigned int i;

	for (i = 0; i < VCPUS; i++)
		kvmfault_vcpu_free(t.vcpu[i]);
	MUST(kvmfault_service_free(t.service));
	remove_region(0);
	MUST(kvmfault_memory_free(t.memory));
	MUST(kvmfault_vm_stats(t.vm, &stats));
	MUST(kvmfault_uffd_free(t.uffd));
	MUST(kvmfault_uffd_free(t.uffd_b));
	MUST(kvmfault_uffd_free(t.uffd_device));
	MUST(kvmfault_vm_free(t.vm));
	return stats;
}

/* ---- the end of a round ---- */

static void all_shared(void)
{
	uint64_t page;

	for (page = 0; page < now.pages; page += now.block)
		if (class_of(page) == CONVERTED)
			convert(page, now.block, false);
}

static void compare_page(uint64_t page)
{
	const struct page *its = &model->page[page];
	unsigned int begun = atomic_load(&its->begun);
	unsigned int ended = atomic_load(&its->ended);
	uint64_t index, got;

	for (index = 0; index < words(); index++) {
		struct word word = index < WORKERS ? model->word[index][page] :
						     from_source(page, index);

		if (index == SUM)
			word.value += atomic_load(&its->added);
		got = touch_mapped(ram()->b, MACHINE_READ,
				   offset_of(page, index), 0);
		if (!right(&word, got, ended, begun))
			wrong(VCPUS, offset_of(page, index), got, &word, ended,
			      begun);
	}
	if (class_of(page) == KEPT)
		ck_assert_uint_eq(begun, 0);
}

static uint64_t sum(enum kvmfault_cause cause)
{
	uint64_t page, all = 0;

	for (page = 0; page < now.pages; page++)
		all += changes[cause][page];
	return all;
}

/* What was kept came once, and never as zero; what was not came once at most.
 * And nothing was asked of the source twice, if it did not fail, there was room
 * and there are no events: until one is read nothing can be installed. */
static void expect_once(uint64_t page)
{
	unsigned int came = changes[KVMFAULT_CAUSE_FETCH][page];

	ck_assert_uint_le(came, 1);
	if (!now.failing && !now.events && now.kind != HUGE_MEMFD)
		ck_assert_uint_le(reads[page], 1);
	if (class_of(page) != KEPT)
		return;
	ck_assert_uint_eq(came, 1);
	ck_assert_uint_eq(changes[KVMFAULT_CAUSE_ZERO][page], 0);
	ck_assert_uint_eq(changes[KVMFAULT_CAUSE_DISCARD][page], 0);
}

static void expect_stats(const struct kvmfault_stats *stats)
{
	ck_assert_uint_eq(stats->fetched, sum(KVMFAULT_CAUSE_FETCH));
	ck_assert_uint_eq(stats->zeroed, sum(KVMFAULT_CAUSE_ZERO));
	ck_assert_uint_eq(stats->discarded, sum(KVMFAULT_CAUSE_DISCARD));
	ck_assert_uint_eq(stats->unresolved, atomic_load(&unresolved));
}

/* Faults that asked for a page, or met somebody who did. */
static uint64_t faults(const struct kvmfault_stats *stats)
{
	return stats->page[KVMFAULT_PAGE_ABSENT] +
	       stats->page[KVMFAULT_PAGE_DISCARDED] + stats->waited +
	       stats->repeated;
}

static uint64_t one_round(unsigned int number, unsigned int column)
{
	struct team disturbers, answerers;
	struct kvmfault_stats stats;
	uint64_t page;

	round_up(number, column);
	team_start(&answerers, 2, answer);
	tell_device();
	team_start(&t.vcpus, VCPUS, run_vcpu);
	team_start(&t.hosts, HOSTS, run_host);
	team_start(&disturbers, DISTURBERS, disturb);
	while (atomic_load(&model->working))
		usleep(MOMENT);
	/* A child may wait for what is not answered before. */
	calm_down();
	team_join(&disturbers);
	team_join(&t.hosts);
	team_join(&t.vcpus);
	await_device();
	all_shared();
	tell_device();
	team_start(&t.vcpus, VCPUS, walk);
	team_join(&t.vcpus);
	await_device();
	for (page = 0; page < now.pages; page++)
		compare_page(page);
	stats = round_down();
	close_source();
	team_join(&answerers);
	for (page = 0; page < now.pages; page++)
		expect_once(page);
	expect_stats(&stats);
	return faults(&stats);
}

/* ---- so many faults ---- */

static unsigned long bound;	/* of each test */

static void rounds(int column, bool private)
{
	bool watched = isatty(STDERR_FILENO);
	unsigned int number;
	uint64_t all = 0;

	machine_up(column, private);
	printf("# KVMFAULT_TEST_SEED=%llu\n", (unsigned long long)t.seed);
	fflush(stdout);		/* also of who hangs */
	for (number = 0; all < bound; number++) {
		all += one_round(number, (unsigned int)column);
		if (watched)
			fprintf(stderr, "\r%llu of %lu faults ",
				(unsigned long long)all, bound);
	}
	if (watched)
		fprintf(stderr, "\n");
	if (t.huge)
		printf("# huge pages had run out: %u answers\n",
		       atomic_load(&without_room));
	machine_down();
}

/* main() finds out how many times the cases of TEST_COUNTED() are run. */
static int with_private;

TEST_GROUP(stress, NULL, NULL);

TEST_EACH(stress, everything, COLUMNS)
{
	rounds(_i, false);
}

TEST_COUNTED(stress, everything_and_conversions, with_private)
{
	rounds(_i, true);
}

/* Not in a test yet: nothing of Check's here. */
static const char *lacks_huge_pages(void)
{
	char *all = mmap(NULL, HUGE_PAGES * HUGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
			 21 << MAP_HUGE_SHIFT, -1, 0);

	if (all == MAP_FAILED)
		return "not as many free huge pages as the guest has "
		       "(/proc/sys/vm/nr_hugepages)";
	munmap(all, HUGE_PAGES * HUGE);
	return NULL;
}

int main(void)
{
	const char *faults = getenv("KVMFAULT_TEST_FAULTS");

	need("kvm");
	need("uffd");
	with_private = have("private", lacks("private")) ? COLUMNS : 0;
	t.huge = have("hugetlb", lacks_huge_pages());
	bound = faults ? strtoul(faults, NULL, 0) : rig_rounds(FAULTS);
	bound /= COLUMNS + with_private;
	group_stress.seconds = HANG + (double)bound / FAULTS_A_SECOND;
	return run_suite("kvm stress");
}
