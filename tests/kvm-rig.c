/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* See the header. Set-up that fails ends the test: it is not its subject. */

#include <errno.h>
#include <linux/kvm.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "kvm-rig.h"

#define MUST(call) ck_assert_int_eq(call, 0)

uint64_t rig_word(uint64_t offset)
{
	return (offset + 8) * 0x9e3779b97f4a7c15ULL | 1;
}

static int read_source(void *data, uint64_t offset, void *buffer, size_t length)
{
	struct rig *rig = data;
	uint64_t at;
	int err = atomic_load(&rig->source_error);

	atomic_fetch_add(&rig->reads[offset / rig->page_size], 1);
	if (err)
		return err;
	for (at = 0; at < length; at += 8)
		*(uint64_t *)((char *)buffer + at) = rig_word(offset + at);
	if (rig->overlay_length && rig->overlay_at / PAGE == offset / PAGE)
		memcpy((char *)buffer + rig->overlay_at % PAGE, rig->overlay,
		       rig->overlay_length);
	return 0;
}

static void changed(void *data, const struct kvmfault_change *change)
{
	struct rig *rig = data;

	atomic_fetch_add(&rig->changes[change->cause], 1);
}

static void unresolved(void *data, const struct kvmfault_fault *fault,
		       enum kvmfault_reason reason, int error)
{
	struct rig *rig = data;

	(void)fault;
	(void)reason;
	(void)error;
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
	(void)data;
	(void)level;
	printf("# %s\n", message);
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
	struct kvmfault_vm_options options = {
		.size = sizeof(options),
		.log = log_line,
		.changed = changed,
		.changed_data = rig,
		.unresolved = unresolved,
		.unresolved_data = rig,
	};

	MUST(machine_new(&machine, &rig->machine));
	rig->memfd = memfd_create("test-ram", MFD_CLOEXEC | memfd_flags);
	MUST(ftruncate(rig->memfd, (off_t)(rig->pages * PAGE)));
	rig->a = map(rig);
	rig->b = map(rig);
	MUST(machine_set_slot(rig->machine, SLOT, 0, RAM, rig->pages * PAGE,
			      rig->a));
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
	};
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = RAM,
		.length = rig->pages * PAGE,
		.slot = SLOT,
	};

	MUST(kvmfault_memory_new(rig->vm, &memory, &rig->memory));
	region.memory = rig->memory;
	MUST(kvmfault_region_add(rig->vm, &region));
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

void rig_track(struct rig *rig)
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
	};

	MUST(kvmfault_uffd_new(rig->vm, NULL, &rig->uffd));
	add_memory(rig, &source);
	mapping.uffd = rig->uffd;
	MUST(kvmfault_mapping_add(rig->memory, &mapping, &rig->mapping));
	rig_restart_service(rig);
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

void rig_vcpus(struct rig *rig)
{
	unsigned int i;

	for (i = 0; i < rig->machine->vcpus; i++) {
		struct kvmfault_vcpu_options options = {
			.size = sizeof(options),
			.fd = rig->machine->vcpu[i].fd,
			.run = rig->machine->vcpu[i].run,
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

struct outcome rig_call(struct rig *rig, unsigned int vcpu,
			enum machine_routine routine, uint64_t a, uint64_t b,
			uint64_t c)
{
	const struct kvmfault_result *result;
	struct machine_vcpu *machine = &rig->machine->vcpu[vcpu];
	struct outcome outcome = { 0 };
	int ret = 0, err;

	MUST(machine_call(machine, routine, a, b, c, 0));
	do {
		ret = rig_run(rig, vcpu, &err);
		outcome.action = kvmfault_handle(rig->vcpu[vcpu], ret, err);
		outcome.faults += outcome.action == KVMFAULT_RETRY;
	} while (outcome.action == KVMFAULT_RETRY);
	result = kvmfault_vcpu_result(rig->vcpu[vcpu]);
	outcome.reason = result->reason;
	outcome.error = result->error;
	if (outcome.action == KVMFAULT_NOT_A_FAULT) {
		ck_assert_msg(machine_done(machine, ret),
			      "the guest left with exit %u",
			      machine->run->exit_reason);
		outcome.result = machine_result(machine);
	}
	return outcome;
}

uint64_t rig_do(struct rig *rig, unsigned int vcpu,
		enum machine_routine routine, uint64_t a, uint64_t b,
		uint64_t c)
{
	struct outcome outcome = rig_call(rig, vcpu, routine, a, b, c);

	ck_assert_msg(outcome.action == KVMFAULT_NOT_A_FAULT, "%s: %s (%d)",
		      kvmfault_action_str(outcome.action),
		      kvmfault_reason_str(outcome.reason), outcome.error);
	return outcome.result;
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
