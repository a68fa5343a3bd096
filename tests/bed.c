/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The test bed. In: nothing. Out: a VM that a test can begin with, and at its
 * end the proof that all of it is gone.
 */

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "bed.h"
#include "noting.h"

struct bed bed;
int bed_vm_fd;
const struct kvmfault_converter *bed_converter;
enum kvmfault_delivery bed_delivery;
static pthread_mutex_t bed_lock = PTHREAD_MUTEX_INITIALIZER;

static void on_log(void *data, enum kvmfault_log_level level,
		   const char *message)
{
	(void)data;
	fake_called_back();
	ck_assert_int_ne(level, KVMFAULT_LOG_NONE);
	pthread_mutex_lock(&bed_lock);
	bed.logs++;
	snprintf(bed.log, sizeof(bed.log), "%s", message);
	pthread_mutex_unlock(&bed_lock);
}

static void on_changed(void *data, const struct kvmfault_change *change)
{
	fake_called_back();
	ck_assert_ptr_eq(data, bed.vm->options.data);
	pthread_mutex_lock(&bed_lock);
	bed.changes[change->cause]++;
	bed.change = *change;
	pthread_mutex_unlock(&bed_lock);
}

static void on_unresolved(void *data, const struct kvmfault_sleeper *sleeper)
{
	fake_called_back();
	ck_assert_ptr_eq(data, bed.vm->options.data);
	pthread_mutex_lock(&bed_lock);
	bed.unresolved++;
	bed.sleeper = *sleeper;
	bed.fault = *sleeper->fault;
	bed.reason = sleeper->reason;
	bed.error = sleeper->error;
	pthread_mutex_unlock(&bed_lock);
}

static int read_page(void *data, uint64_t offset, void *buffer, size_t length)
{
	void (*during)(void);
	size_t i;
	int result;

	(void)data;
	fake_called_back();
	pthread_mutex_lock(&bed_lock);
	bed.reads++;
	bed.last_read = offset;
	bed.last_length = length;
	during = bed.during_read;
	bed.during_read = NULL;
	result = bed.source_result;
	pthread_mutex_unlock(&bed_lock);
	if (during)
		fake_aside(during);
	for (i = 0; i < length; i += PAGE)
		memset((char *)buffer + i, bed_byte((offset + i) / PAGE), PAGE);
	return result;
}

char bed_byte(uint64_t page)
{
	return (char)(page % 100 + 1);
}

struct kvmfault_source bed_source(void)
{
	if (bed.source.size)
		return bed.source;
	return (struct kvmfault_source){
		.size = sizeof(struct kvmfault_source),
		.name = "bed",
		.read = read_page,
		.chunk = bed.chunk,
	};
}

char *bed_page(uint64_t page)
{
	return bed.host + page * PAGE;
}

bool bed_has(uint64_t page, char byte)
{
	char expected[PAGE];

	memset(expected, byte, PAGE);
	return fake_present(bed.fd, page * PAGE) &&
	       !memcmp(bed_page(page), expected, PAGE);
}

enum kvmfault__state bed_state(uint64_t page)
{
	return kvmfault__page_state(bed.memory, page);
}

int bed_memory(struct kvmfault_memory **memory, int *fd, void **host)
{
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.length = BED_PAGES * PAGE,
		.source = &source,
		.window = bed.window,
		.window_length = bed.window_length,
		.minor = bed.minor,
		.write_protect = bed.write_protect,
	};

	*fd = fake_memory(options.length, 0, host);
	options.fd = *fd;
	options.host = *host;
	return kvmfault_memory_adopt(bed.vm, &options, memory);
}

void bed_own_resolver(int (*resolve)(void *data,
				     struct kvmfault_request *request))
{
	const struct kvmfault_resolver resolver = {
		.size = sizeof(resolver), .name = "own", .resolve = resolve,
	};

	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &resolver), 0);
}

int bed_own(void *data, struct kvmfault_request *request)
{
	(void)data;
	(void)request;
	return bed.own_verdict;
}

void bed_service(unsigned int threads)
{
	struct kvmfault_service_options options = {
		.size = sizeof(options), .threads = threads,
	};

	ck_assert_int_eq(kvmfault_service_new(bed.vm, &options, &bed.service),
			 0);
}

void bed_end_service(void)
{
	ck_assert_int_eq(kvmfault_service_free(bed.service), 0);
	bed.service = NULL;
}

void bed_dispatch(void)
{
	ck_assert_int_eq(kvmfault_service_dispatch(bed.service), 0);
}

void bed_touch(uint64_t page, bool write)
{
	ck_assert(fake_fault(bed_page(page) + 123, write));
}

struct kvmfault_stats bed_stats(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	ck_assert_int_eq(kvmfault_vm_stats(bed.vm, &stats), 0);
	return stats;
}

struct kvmfault__answer bed_resolve(enum kvmfault_kind entrance,
				    uint64_t page, bool origin)
{
	struct kvmfault_fault fault = {
		.size = sizeof(fault),
		.kind = entrance,
		.access = KVMFAULT_ACCESS_READ,
		.known = KVMFAULT_KNOWN_GPA,
		.gpa = BED_GPA + page * PAGE,
		.length = PAGE,
	};
	const struct kvmfault__mappings *all;
	struct kvmfault__answer answer;
	struct kvmfault__target place = {
		.memory = bed.memory,
		.offset = page * PAGE,
	};
	static const struct noted judged = { .name = "bed_resolve" };
	const struct noted *outer = noting_inside;
	struct kvmfault__inside inside;

	noting_inside = &judged;
	kvmfault__enter(&inside, bed.seat, NULL);
	if (!origin) {
		kvmfault__resolve_gpa(bed.seat, &fault, fault.gpa, &answer);
	} else {
		fault.known = KVMFAULT_KNOWN_HVA;
		fault.hva = (uintptr_t)bed_page(page);
		all = atomic_load(&bed.memory->mappings);
		place.origin = all->mapping[0];
		kvmfault__resolve(bed.seat, &fault, &place, &answer);
		kvmfault__leave(bed.seat);
	}
	kvmfault__exit(&inside);
	noting_inside = outer;
	return answer;
}

enum kvmfault_action bed_handle(int ret, int err)
{
	enum kvmfault_action action;

	fake_delegated(bed.profile == KVMFAULT_PROFILE_DELEGATE);
	action = kvmfault_vcpu_handle(bed.vcpu, ret, err);
	fake_delegated(false);
	return action;
}

enum kvmfault_action bed_handle_sigbus(const void *siginfo)
{
	enum kvmfault_action action;

	fake_delegated(bed.profile == KVMFAULT_PROFILE_DELEGATE);
	action = kvmfault_vcpu_handle_sigbus(bed.vcpu, siginfo);
	fake_delegated(false);
	return action;
}

enum kvmfault_action bed_exit(uint64_t gpa, uint64_t flags)
{
	struct kvmfault__memory_fault record = {
		.flags = flags, .gpa = gpa, .size = PAGE,
	};

	bed.run->exit_reason = KVMFAULT__EXIT_MEMORY_FAULT;
	memcpy(&bed.run->hw, &record, sizeof(record));
	return bed_handle(-1, EFAULT);
}

enum kvmfault_action bed_bare(void)
{
	bed.run->exit_reason = KVM_EXIT_UNKNOWN;
	return bed_handle(-1, EFAULT);
}

enum kvmfault_action bed_mmio(uint64_t gpa, uint32_t length, bool write)
{
	bed.run->exit_reason = KVM_EXIT_MMIO;
	bed.run->mmio.phys_addr = gpa;
	bed.run->mmio.len = length;
	bed.run->mmio.is_write = write;
	return bed_handle(0, 0);
}

enum kvmfault_action bed_other(void)
{
	bed.run->exit_reason = KVM_EXIT_IO;
	return bed_handle(0, 0);
}

size_t bed_waits(void)
{
	const struct fake_call *call;
	size_t i, waits = 0;

	for (i = 0; (call = fake_nth(FAKE_FUTEX_WAIT, FAKE_ANY, i)); i++)
		waits += !bed.vcpu->task.worker ||
			 call->arg != &bed.vcpu->task.worker->state;
	return waits;
}

static struct kvmfault__seat *seats[64];
static size_t seat_count;

void bed_take_seats(void)
{
	struct kvmfault__seat *seat = atomic_load(&bed.vm->seats);

	for (seat_count = 0; seat; seat = seat->next) {
		ck_assert_uint_lt(seat_count, 64);
		if (!atomic_exchange(&seat->taken, true))
			seats[seat_count++] = seat;
	}
}

void bed_give_seats(void)
{
	while (seat_count)
		kvmfault__seat_give(seats[--seat_count]);
}

void bed_vm(void)
{
	const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops),
		.log = on_log,
		.changed = on_changed,
		.unresolved = on_unresolved,
	};
	struct kvmfault_vm_options options = {
		.size = sizeof(options),
		.ops = &ops,
		.data = &bed,
		.vm_fd = bed_vm_fd,
		.converter = bed_converter,
		.delivery = bed_delivery,
		.allow = KVMFAULT_ALLOW_SHADOW_PAGING,
		.source_retries = KVMFAULT_NO_RETRIES,
	};

	memset(&bed, 0, sizeof(bed));
	if (getenv("KVMFAULT_DELEGATED"))
		bed.profile = KVMFAULT_PROFILE_DELEGATE;
	ck_assert_int_eq(kvmfault_vm_new(&options, &bed.vm), 0);
	fake_short_lock(&bed.vm->conversions.lock);
}

void bed_add(void)
{
	struct kvmfault_vcpu_options options = { .size = sizeof(options) };
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = BED_GPA,
		.length = BED_PAGES * PAGE,
		.guest_memfd = bed.guest_memfd,
	};
	void *host;

	ck_assert_int_eq(bed_memory(&bed.memory, &bed.fd, &host), 0);
	bed.host = host;
	region.memory = bed.memory;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	bed.run = calloc(1, sizeof(*bed.run));
	options.run = bed.run;
	options.fd = fake_fd(FAKE_KVM);
	if (bed_delivery == KVMFAULT_DELIVERY_MARKER_EXIT)
		fake_signal_mask |= 1ULL << (SIGBUS - 1);
	options.profile = bed.profile;
	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &options, &bed.vcpu), 0);
	bed.pause[0] = &bed.vcpu->seat->pause;
	if (bed.vcpu->task.worker)
		bed.pause[1] = &bed.vcpu->task.worker->seat->pause;
	bed.seat = kvmfault__seat_take(bed.vm);
	ck_assert_ptr_nonnull(bed.seat);
	/* That there is no service yet was said, and is not to be counted. */
	bed.logs = 0;
	bed.log[0] = '\0';
}

void bed_up(void)
{
	bed_vm();
	bed_add();
}

bool bed_pauses(const struct fake_call *call)
{
	return call->arg == bed.pause[0] || call->arg == bed.pause[1];
}

bool bed_no_pause(struct fake_call *call)
{
	if (!bed_pauses(call))
		return false;
	call->result = -ETIMEDOUT;
	return true;
}

void bed_down(void)
{
	struct fake_held held;

	fake_on(FAKE_IOCTL, NULL);
	fake_refuse(FAKE_IOCTL, FAKE_ANY, 0);
	bed_end_service();
	if (bed.seat)
		kvmfault__seat_give(bed.seat);
	kvmfault_vcpu_free(bed.vcpu);
	if (bed.memory) {
		kvmfault_region_remove(bed.vm, 0, BED_GPA);
		ck_assert_int_eq(kvmfault_memory_free(bed.memory), 0);
	}
	ck_assert_int_eq(kvmfault_vm_free(bed.vm), 0);
	held = fake_held();
	ck_assert_int_eq(held.allocations, 0);
	ck_assert_int_eq(held.descriptors, 0);
	ck_assert_int_eq(held.mappings, 0);
	ck_assert_int_eq(held.threads, 0);
	free(bed.run);
}
