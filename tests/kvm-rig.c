/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* See the header. Set-up that fails ends the test: it is not its subject. */

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/kvm.h>
#include <linux/memfd.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kvm-rig.h"
#include "need.h"

#define UFFDIO_POISON_OURS 0xc020aa08UL	/* newer than 6.1's headers */
#define MUST(call) ck_assert_int_eq(call, 0)

uint64_t rig_word(uint64_t offset)
{
	return (offset + 8) * 0x9e3779b97f4a7c15ULL | 1;
}

void rig_same(uint64_t got, uint64_t want, const char *what)
{
	if (got != want)
		ck_abort_msg("%s: %#llx, not %#llx", what,
			     (unsigned long long)got,
			     (unsigned long long)want);
}

unsigned int rig_rounds(unsigned int rounds)
{
	const char *divisor = getenv("KVMFAULT_TEST_DIVISOR");

	return divisor ? rounds / (unsigned int)atoi(divisor) : rounds;
}

void rig_close_gate(struct rig *rig)
{
	atomic_store(&rig->gate.closed, true);
}

void rig_await_gate(struct rig *rig, unsigned int reads)
{
	struct gate *gate = &rig->gate;

	pthread_mutex_lock(&gate->lock);
	while (gate->inside < reads)
		pthread_cond_wait(&gate->changed, &gate->lock);
	pthread_mutex_unlock(&gate->lock);
}

void rig_open_gate(struct rig *rig)
{
	struct gate *gate = &rig->gate;

	pthread_mutex_lock(&gate->lock);
	atomic_store(&gate->closed, false);
	pthread_cond_broadcast(&gate->changed);
	pthread_mutex_unlock(&gate->lock);
}

#define TRIES 100

uint32_t rig_retry_budget;
enum kvmfault_delivery rig_delivery = KVMFAULT_DELIVERY_UFFD;
enum kvmfault_sigbus rig_sigbus;
static _Thread_local struct kvmfault_vcpu *running;

static void pass_gate(struct gate *gate)
{
	/* Not even a lock where a test does not use it. */
	if (!atomic_load(&gate->closed))
		return;
	pthread_mutex_lock(&gate->lock);
	gate->inside++;
	pthread_cond_broadcast(&gate->changed);
	while (atomic_load(&gate->closed))
		pthread_cond_wait(&gate->changed, &gate->lock);
	gate->inside--;
	pthread_mutex_unlock(&gate->lock);
}

static int read_source(void *data, uint64_t offset, void *buffer, size_t length)
{
	struct rig *rig = data;
	uint64_t at;
	int err = atomic_load(&rig->source_error);

	pass_gate(&rig->gate);
	atomic_fetch_add(&rig->reads[offset / rig->page_size], 1);
	if (err)
		return err;
	for (at = 0; at < length; at += 8)
		*(uint64_t *)((char *)buffer + at) = rig_word(offset + at);
	if (rig->overlay_length && rig->overlay_at / PAGE == offset / PAGE)
		memcpy((char *)buffer + rig->overlay_at % PAGE, rig->overlay,
		       rig->overlay_length);
	if (rig->fill)
		rig->fill(offset, buffer);
	return 0;
}

static void changed(void *data, const struct kvmfault_change *change)
{
	struct rig *rig = data;

	atomic_fetch_add(&rig->changes[change->cause], 1);
}

static void unresolved(void *data, const struct kvmfault_sleeper *sleeper)
{
	struct rig *rig = data;

	(void)sleeper;
	atomic_fetch_add(&rig->unresolved, 1);
}

static char *map(struct rig *rig)
{
	char *at = mmap(NULL, rig->pages * PAGE, PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_NORESERVE, rig->memfd, 0);

	ck_assert_ptr_ne(at, MAP_FAILED);
	return at;
}

static void log_line(void *data, enum kvmfault_log_level level,
		     const char *message)
{
	struct rig *rig = data;

	(void)level;
	atomic_fetch_add(&rig->logged, 1);
	printf("# %s\n", message);
}

static void on_sigbus(int signal, siginfo_t *info, void *unused)
{
	(void)signal;
	(void)unused;
	if (!running || !kvmfault_vcpu_note_sigbus(running, info))
		abort();
}

/* What the VMM's threads do about SIGBUS, from now on. */
static void take_sigbus(void)
{
	struct sigaction action = {
		.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO,
	};
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGBUS);
	if (rig_sigbus == KVMFAULT_SIGBUS_MASKED)
		MUST(pthread_sigmask(SIG_BLOCK, &set, NULL));
	else
		MUST(sigaction(SIGBUS, &action, NULL));
}

static void make(struct rig *rig, int column, unsigned int vcpus,
		 bool supervisor, unsigned int memfd_flags)
{
	struct machine_options machine = {
		.vcpus = vcpus,
		.irqchip = column,
		.timer = column,
		.supervisor = supervisor,
		.span = RAM + (64 << 20),
	};
	const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops),
		.log = log_line,
		.changed = changed,
		.unresolved = unresolved,
	};
	struct kvmfault_vm_options options = {
		.size = sizeof(options),
		.ops = &ops,
		.data = rig,
		.retry_budget = rig_retry_budget,
		.delivery = rig_delivery,
		/* The machine's own tables are always present. */
		.allow = KVMFAULT_ALLOW_SHADOW_PAGING,
	};

	if (rig_delivery == KVMFAULT_DELIVERY_MARKER_EXIT)
		take_sigbus();
	pthread_mutex_init(&rig->gate.lock, NULL);
	pthread_cond_init(&rig->gate.changed, NULL);
	MUST(machine_new(&machine, &rig->machine));
	rig->memfd = memfd_create("test-ram", MFD_CLOEXEC | memfd_flags);
	MUST(ftruncate(rig->memfd, (off_t)(rig->pages * PAGE)));
	rig->a = map(rig);
	rig->b = map(rig);
	MUST(machine_set_slot(rig->machine, SLOT, 0, RAM, rig->pages * PAGE,
			      rig->a));
	options.kvm_fd = rig->machine->kvm_fd;
	MUST(kvmfault_vm_new(&options, &rig->vm));
}

void rig_new(struct rig *rig, int column, unsigned int vcpus, uint64_t pages,
	     bool supervisor)
{
	memset(rig, 0, sizeof(*rig));
	rig->pages = pages;
	rig->page_size = PAGE;
	make(rig, column, vcpus, supervisor, 0);
}

void rig_new_huge(struct rig *rig, int column, unsigned int vcpus,
		  uint64_t huge_pages)
{
	memset(rig, 0, sizeof(*rig));
	rig->page_size = HUGE;
	rig->pages = huge_pages * HUGE / PAGE;
	make(rig, column, vcpus, false, MFD_HUGETLB | MFD_HUGE_2MB);
}

static int punch(const struct rig *rig)
{
	return fallocate(rig->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			 0, (off_t)(rig->pages * PAGE));
}

static void add_memory(struct rig *rig, const struct kvmfault_source *source)
{
	struct kvmfault_memory_options memory = {
		.size = sizeof(memory),
		.host = rig->a,
		.length = rig->pages * PAGE,
		.page_size = rig->page_size,
		.fd = rig->memfd,
		.source = source,
		.uffd = rig->uffd,
		.minor = rig->minor,
		.write_protect = rig->write_protect,
	};
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = RAM,
		.length = rig->pages * PAGE,
	};
	unsigned int tries = 0;
	int err;

	/* A kernel thread that KVM had sent for a page of the same RAM before it
	 * was renewed may bring it in only now. */
	do
		err = kvmfault_memory_adopt(rig->vm, &memory, &rig->memory);
	while (err == -EEXIST && tries++ < TRIES && !punch(rig));
	MUST(err);
	region.memory = rig->memory;
	MUST(kvmfault_region_add(rig->vm, &region));
}

void rig_mark(struct rig *rig, int uffd, uint64_t page, uint64_t pages)
{
	struct {
		struct uffdio_range range;
		uint64_t mode;
		int64_t updated;
	} poison = {
		.range = { .start = (uintptr_t)rig->a + page * PAGE,
			   .len = pages * PAGE },
	};

	MUST(ioctl(uffd, UFFDIO_POISON_OURS, &poison));
}

void rig_mark_all(struct rig *rig)
{
	rig_mark(rig, kvmfault_uffd_fd(rig->uffd), 0, rig->pages);
}

/* Not in a test yet: nothing of Check's here. */
static const char *lacks_emulation(void)
{
	const struct machine_options options = {
		.vcpus = 1,
		.supervisor = true,
		.span = RAM + PAGE,
	};
	void *page = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	const char *why = "this KVM does not emulate the guest's kernel mode";
	struct machine *machine;

	if (machine_new(&options, &machine))
		return "there is no machine to ask";
	if (!machine_set_slot(machine, SLOT, 0, RAM, PAGE, page) &&
	    !machine_call(machine->vcpu, MACHINE_READ, RAM, 8, 0, 0) &&
	    !ioctl(machine->vcpu->fd, KVM_RUN, 0) &&
	    machine->vcpu->run->exit_reason == KVM_EXIT_MMIO &&
	    machine->vcpu->run->mmio.phys_addr == RAM)
		why = NULL;
	machine_free(machine);
	munmap(page, PAGE);
	return why;
}

static const char *lacks_guest_memfd(void)
{
	const struct machine_options options = { .vcpus = 1, .span = RAM };
	struct machine *machine;
	int fd;

	if (machine_new(&options, &machine))
		return "there is no machine to ask";
	fd = machine_create_guest_memfd(machine, PAGE,
					MACHINE_GUEST_MEMFD_MMAP |
					MACHINE_GUEST_MEMFD_INIT_SHARED);
	if (fd >= 0)
		close(fd);
	machine_free(machine);
	return fd < 0 ? "this KVM has none that can be shared" : NULL;
}

bool rig_has_guest_memfd(void)
{
	return have("guest_memfd", lacks_guest_memfd());
}

int rig_ways(void)
{
	return have("emulation", lacks_emulation()) ? WAYS : EMULATED;
}

void rig_exits(struct rig *rig, int way)
{
	rig->marked = way == EMULATED;
	if (rig->marked)
		rig_mark_all(rig);
	else
		MUST(machine_set_slot(rig->machine, SLOT, 0, RAM, 0, NULL));
}

void rig_restart_service(struct rig *rig)
{
	struct kvmfault_service_options service = {
		.size = sizeof(service),
		.threads = 2,
	};

	MUST(kvmfault_service_free(rig->service));
	MUST(kvmfault_service_new(rig->vm, &service, &rig->service));
}

static void add_tracked(struct rig *rig)
{
	struct kvmfault_source source = {
		.size = sizeof(source),
		.name = "words",
		.read = read_source,
		.data = rig,
	};
	struct kvmfault_mapping_options mapping = {
		.size = sizeof(mapping),
		.host = (uintptr_t)rig->b,
		.uffd = rig->apart ? rig->uffd_b : rig->uffd,
	};

	add_memory(rig, &source);
	MUST(kvmfault_mapping_add(rig->memory, &mapping, &rig->mapping));
}

void rig_track(struct rig *rig)
{
	MUST(kvmfault_uffd_new(rig->vm, NULL, &rig->uffd));
	if (rig->apart)
		MUST(kvmfault_uffd_new(rig->vm, NULL, &rig->uffd_b));
	add_tracked(rig);
	rig_restart_service(rig);
}

void rig_renew(struct rig *rig)
{
	off_t length = (off_t)(rig->pages * PAGE);
	uint64_t page;

	if (rig->memory) {
		MUST(kvmfault_region_remove(rig->vm, 0, RAM));
		MUST(kvmfault_memory_free(rig->memory));
	}
	/* Where pages were absent it is closed now. */
	MUST(mprotect(rig->a, (size_t)length, PROT_READ | PROT_WRITE));
	MUST(mprotect(rig->b, (size_t)length, PROT_READ | PROT_WRITE));
	MUST(punch(rig));
	for (page = 0; page < rig->pages; page++)
		rig->reads[page] = 0;
	add_tracked(rig);
	if (rig->marked)
		rig_mark_all(rig);
}

void rig_plain(struct rig *rig)
{
	add_memory(rig, NULL);
}

void rig_resolver(struct rig *rig,
		  int (*resolve)(void *, struct kvmfault_request *))
{
	struct kvmfault_resolver resolver = {
		.size = sizeof(resolver),
		.name = "test",
		.resolve = resolve,
		.data = rig,
	};

	MUST(kvmfault_resolver_add(rig->vm, &resolver));
}

enum kvmfault_profile rig_profile(void)
{
	return getenv("KVMFAULT_DELEGATED") ? KVMFAULT_PROFILE_DELEGATE :
					      KVMFAULT_PROFILE_INLINE;
}

void rig_vcpus(struct rig *rig)
{
	unsigned int i;

	for (i = 0; i < rig->machine->vcpus; i++) {
		struct kvmfault_vcpu_options options = {
			.size = sizeof(options),
			.fd = rig->machine->vcpu[i].fd,
			.run = rig->machine->vcpu[i].run,
			.sigbus = rig_sigbus,
			.profile = rig_profile(),
		};

		MUST(kvmfault_vcpu_new(rig->vm, &options, &rig->vcpu[i]));
	}
}

void rig_free(struct rig *rig)
{
	unsigned int i;

	for (i = 0; i < rig->machine->vcpus; i++)
		kvmfault_vcpu_free(rig->vcpu[i]);
	MUST(kvmfault_service_free(rig->service));
	if (rig->memory)
		MUST(kvmfault_region_remove(rig->vm, 0, RAM));
	MUST(kvmfault_memory_free(rig->memory));
	MUST(kvmfault_uffd_free(rig->uffd));
	MUST(kvmfault_uffd_free(rig->uffd_b));
	MUST(kvmfault_vm_free(rig->vm));
	machine_free(rig->machine);
	munmap(rig->a, rig->pages * PAGE);
	munmap(rig->b, rig->pages * PAGE);
	close(rig->memfd);
}

int rig_run(struct rig *rig, unsigned int vcpu, int *err)
{
	int ret = ioctl(rig->machine->vcpu[vcpu].fd, KVM_RUN, 0);

	*err = errno;
	return ret;
}

/* Nothing of Check's here where all is well, see rig_same(). */
static struct outcome call(struct rig *rig, unsigned int vcpu,
			   enum machine_routine routine,
			   const uint64_t args[3], bool through_signals)
{
	const struct kvmfault_result *result =
		kvmfault_vcpu_result(rig->vcpu[vcpu]);
	struct machine_vcpu *machine = &rig->machine->vcpu[vcpu];
	struct outcome outcome = { 0 };
	char story[MACHINE_STORY];
	int ret = 0, err = 0;

	running = rig->vcpu[vcpu];
	rig_same(machine_call(machine, routine, args[0], args[1], args[2], 0),
		 0, "machine_call()");
	do {
		if (!outcome.action || !result->unfinished)
			ret = rig_run(rig, vcpu, &err);
		outcome.action = kvmfault_vcpu_handle(rig->vcpu[vcpu], ret, err);
		outcome.faults += outcome.action == KVMFAULT_ACTION_RETRY;
	} while (outcome.action == KVMFAULT_ACTION_RETRY ||
		 (through_signals &&
		  (outcome.action == KVMFAULT_ACTION_INTERRUPTED ||
		   outcome.action == KVMFAULT_ACTION_UNFINISHED)));
	outcome.reason = result->reason;
	outcome.error = result->error;
	if (outcome.action != KVMFAULT_ACTION_NOT_A_FAULT)
		return outcome;
	if (!machine_done(machine, ret))
		ck_abort_msg("the guest left: %s",
			     machine_story(machine, story));
	outcome.result = machine_result(machine);
	return outcome;
}

struct outcome rig_call(struct rig *rig, unsigned int vcpu,
			enum machine_routine routine, uint64_t a, uint64_t b,
			uint64_t c)
{
	return call(rig, vcpu, routine, (uint64_t[]){ a, b, c }, false);
}

uint64_t rig_do(struct rig *rig, unsigned int vcpu,
		enum machine_routine routine, uint64_t a, uint64_t b,
		uint64_t c)
{
	struct outcome outcome = call(rig, vcpu, routine,
				      (uint64_t[]){ a, b, c }, true);

	if (outcome.action != KVMFAULT_ACTION_NOT_A_FAULT)
		ck_abort_msg("%s: %s (%d)",
			     kvmfault_action_str(outcome.action),
			     kvmfault_reason_str(outcome.reason),
			     outcome.error);
	return outcome.result;
}

void team_start(struct team *team, unsigned int count,
		 void *(*run)(void *))
{
	uintptr_t i;

	for (i = 0; i < count; i++)
		MUST(pthread_create(&team->thread[i], NULL, run, (void *)i));
	team->count = count;
}

void team_join(struct team *team)
{
	unsigned int i;

	for (i = 0; i < team->count; i++)
		pthread_join(team->thread[i], NULL);
}

uint64_t rig_random(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * 0x2545f4914f6cdd1dULL >> 16;
}

void rig_shuffle(uint16_t *order, unsigned int count, uint64_t seed)
{
	uint64_t state = seed * 0x9e3779b97f4a7c15ULL | 1;
	unsigned int i, other;

	for (i = 0; i < count; i++) {
		other = (unsigned int)(rig_random(&state) % (i + 1));
		order[i] = order[other];
		order[other] = (uint16_t)i;
	}
}

static void nothing(int signal)
{
	(void)signal;
}

static void *kick(void *arg)
{
	const struct timespec moment = { .tv_nsec = 20000000 };
	struct kicker *kicker = arg;

	while (!atomic_load(&kicker->stop)) {
		nanosleep(&moment, NULL);
		pthread_kill(kicker->target, KICK);
	}
	return NULL;
}

void kicker_start(struct kicker *kicker)
{
	struct sigaction action = { .sa_handler = nothing };

	sigaction(KICK, &action, NULL);
	atomic_store(&kicker->stop, false);
	kicker->target = pthread_self();
	MUST(pthread_create(&kicker->thread, NULL, kick, kicker));
}

void kicker_stop(struct kicker *kicker)
{
	atomic_store(&kicker->stop, true);
	pthread_join(kicker->thread, NULL);
}

int rig_open_uffd(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	return fd >= 0 && ioctl(fd, UFFDIO_API, &api) ? -1 : fd;
}
