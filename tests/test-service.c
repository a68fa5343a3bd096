/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * service.c: messages in, sleepers awake, in the VMM's own loop, on a clock
 * that only the test moves. What can't be done now is parked and comes again.
 */

#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>

#include "bed.h"

#define MS 1000000ULL
#define SECOND (1000 * MS)

static void up(void)
{
	bed_up();
	bed.vm->options.source_retries = 2;
	bed_service(0);
}

/* As the VMM's loop: while there is something to read. */
static void dispatch(void)
{
	size_t i;

	for (i = 0; i < 100; i++)
		bed_dispatch();
}

static size_t wakes(void)
{
	return fake_count(FAKE_IOCTL, UFFDIO_WAKE);
}

static size_t copies(void)
{
	return fake_count(FAKE_IOCTL, UFFDIO_COPY);
}

TEST_GROUP(messages, up, bed_down);

TEST(messages, message_is_answered)
{
	bed_touch(3, true);
	dispatch();
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_uint_eq(bed_stats().kind[KVMFAULT_KIND_UFFD], 1);
	ck_assert_uint_eq(bed_stats().fetched, 1);
	ck_assert_uint_eq(bed_stats().deferred, 0);
	ck_assert_uint_eq(bed_stats().latency[0], 1);
	ck_assert_uint_eq(wakes(), 0);		/* the copy woke it */
}

TEST(messages, message_that_comes_late_is_woken)
{
	bed_touch(3, false);
	bed_touch(3, false);
	dispatch();
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(wakes(), 1);
	ck_assert_uint_eq(bed_stats().repeated, 1);
}

TEST(messages, many_messages)
{
	uint64_t i;

	for (i = 0; i < 40; i++)
		bed_touch(i % BED_PAGES, false);
	dispatch();
	ck_assert_uint_eq(bed.reads, BED_PAGES);
	ck_assert_uint_eq(bed_stats().fetched, BED_PAGES);
	ck_assert_uint_eq(wakes(), 40 - BED_PAGES);
}

TEST(messages, pollable)
{
	int fd = kvmfault_service_fd(bed.service);

	ck_assert_int_gt(fd, 0);
	ck_assert_int_eq(kvmfault_service_fd(NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_service_dispatch(NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_service_free(NULL), 0);
}

TEST(messages, nothing_to_do)
{
	dispatch();
	ck_assert_uint_eq(bed.reads, 0);
	ck_assert_uint_eq(copies(), 0);
	fake_push(FAKE_EPOLL_WAIT, -EINTR);
	bed_dispatch();
}

/* ---- parked ---- */

TEST_GROUP(parked, up, bed_down);

TEST(parked, not_now_is_parked_and_comes_again)
{
	fake_refuse(FAKE_IOCTL, UFFDIO_COPY, -EAGAIN);
	bed_touch(3, false);
	dispatch();
	ck_assert_uint_eq(copies(), 1);		/* no spin */
	ck_assert_uint_eq(bed_stats().deferred, 1);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	fake_advance(SECOND);
	dispatch();
	ck_assert_uint_eq(copies(), 2);
	fake_refuse(FAKE_IOCTL, UFFDIO_COPY, 0);
	fake_advance(SECOND);
	dispatch();
	ck_assert(bed_has(3, bed_byte(3)));
	/* Not for ever. */
	fake_advance(100 * SECOND);
	dispatch();
	ck_assert_uint_eq(copies(), 3);
	/* Nobody gave up on it: the VMM is not asked. */
	ck_assert_uint_eq(bed.unresolved, 0);
}

static void for_a_minute(void)
{
	unsigned int i;

	bed_touch(3, false);
	for (i = 0; i < 60000; i += 10) {
		bed_dispatch();
		fake_advance(10 * MS);
	}
}

TEST(parked, parked_longer_and_longer)
{
	bed.source_result = -EIO;
	for_a_minute();
	/* 10 quick ones, then about one a second. */
	ck_assert_uint_ge(bed.reads, 60);
	ck_assert_uint_le(bed.reads, 75);
}

/* What is not possible now is no failure: soon again, and nobody is told. */
TEST(parked, not_now_is_tried_soon)
{
	fake_refuse(FAKE_IOCTL, UFFDIO_COPY, -EAGAIN);
	for_a_minute();
	ck_assert_uint_ge(copies(), 2000);
	ck_assert_uint_eq(bed.unresolved, 0);
}

TEST(parked, repeated_message_of_a_parked_one)
{
	fake_refuse(FAKE_IOCTL, UFFDIO_COPY, -EAGAIN);
	bed_touch(3, false);
	dispatch();
	bed_touch(3, false);
	bed_touch(3, true);
	dispatch();
	ck_assert_uint_eq(copies(), 1);
	ck_assert_uint_eq(bed_stats().repeated, 2);
	ck_assert_uint_eq(bed_stats().deferred, 1);
}

TEST(parked, parked_ones_do_not_hold_up_the_others)
{
	fake_refuse(FAKE_IOCTL, UFFDIO_COPY, -EAGAIN);
	bed_touch(3, false);
	dispatch();
	fake_refuse(FAKE_IOCTL, UFFDIO_COPY, 0);
	bed_touch(4, false);
	dispatch();
	ck_assert(bed_has(4, bed_byte(4)));
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

/* The same address in another process is another page. */
TEST(parked, parked_by_address_and_process)
{
	struct kvmfault_uffd_options remote = {
		.size = sizeof(remote), .fd = fake_uffd(O_NONBLOCK),
		.remote = true,
	};
	struct kvmfault_mapping_options options = {
		.size = sizeof(options), .host = (uintptr_t)bed.host,
	};
	struct uffd_msg msg = { .event = UFFD_EVENT_PAGEFAULT };
	struct kvmfault_mapping *mapping;

	ck_assert_int_eq(kvmfault_uffd_new(bed.vm, &remote, &options.uffd), 0);
	fake_push(FAKE_IOCTL, 0);	/* registered, says the other's kernel */
	ck_assert_int_eq(kvmfault_mapping_add(bed.memory, &options, &mapping),
			 0);
	bed.source_result = -EAGAIN;
	bed_touch(3, false);
	dispatch();
	msg.arg.pagefault.address = (uintptr_t)bed_page(3);
	fake_message(remote.fd, &msg);
	dispatch();
	ck_assert_uint_eq(bed_stats().deferred, 2);
	ck_assert_uint_eq(bed_stats().repeated, 0);
	ck_assert_uint_eq(bed.reads, 2);
	fake_message(remote.fd, &msg);
	dispatch();
	ck_assert_uint_eq(bed_stats().repeated, 1);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	ck_assert_int_eq(kvmfault_uffd_free(options.uffd), 0);
}

#define ROOM 256

TEST(parked, no_room_to_park)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = (ROOM + 1) * PAGE,
	};
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory *memory;
	uint64_t page;
	void *host;

	options.fd = fake_memory(options.length, 0, &host);
	options.host = host;
	options.source = &source;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory), 0);
	bed.source_result = -EAGAIN;
	for (page = 0; page < ROOM; page++)
		ck_assert(fake_fault((char *)host + page * PAGE, false));
	dispatch();
	fake_forget();
	ck_assert(fake_fault((char *)host + ROOM * PAGE, false));
	dispatch();
	ck_assert_uint_eq(wakes(), 0);
	bed.source_result = 0;
	fake_advance(10 * SECOND);
	dispatch();
	/* Awake, it faults again and so is not forgotten: all are woken. */
	ck_assert_uint_ge(wakes(), 1);
	for (page = 0; page < ROOM; page++)
		ck_assert(fake_present(options.fd, page * PAGE));
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

TEST(parked, parked_ones_are_woken_at_the_end)
{
	fake_refuse(FAKE_IOCTL, UFFDIO_COPY, -EAGAIN);
	bed_touch(3, false);
	dispatch();
	fake_forget();
	bed_end_service();
	ck_assert_uint_eq(wakes(), 1);
	ck_assert_uint_eq(fake_nth(FAKE_IOCTL, UFFDIO_WAKE, 0)->at,
			  (uintptr_t)bed_page(3));
	bed_service(0);
}

/* Its end cannot fail, and it forgets nobody. */
TEST(parked, parked_ones_are_woken_without_memory)
{
	fake_refuse(FAKE_IOCTL, UFFDIO_COPY, -EAGAIN);
	bed_touch(3, false);
	dispatch();
	fake_forget();
	bed_take_seats();
	fake_push(FAKE_ALLOC, 0);
	bed_end_service();
	ck_assert_uint_eq(wakes(), 1);
	bed_give_seats();
}

TEST(parked, memory_of_a_parked_one_is_gone)
{
	struct kvmfault_memory *memory;
	void *host;
	int fd;

	ck_assert_int_eq(bed_memory(&memory, &fd, &host), 0);
	bed.source_result = -EAGAIN;
	ck_assert(fake_fault(host, false));
	dispatch();
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	bed.reads = 0;
	fake_advance(100 * SECOND);
	dispatch();
	ck_assert_uint_eq(bed.reads, 0);
}

/* ---- unresolved ---- */

static void tries(unsigned int n)
{
	while (n--) {
		dispatch();
		fake_advance(2 * SECOND);
	}
}

/* Of as many as a vCPU's fault has. */
TEST(parked, told_after_three_tries)
{
	bed.source_result = -EIO;
	bed_touch(3, true);
	tries(2);
	ck_assert_uint_eq(bed.unresolved, 0);
	tries(1);
	ck_assert_uint_eq(bed.unresolved, 1);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_int_eq(bed.reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(bed.error, -EIO);
	ck_assert_int_eq(bed.fault.kind, KVMFAULT_KIND_UFFD);
	ck_assert_int_eq(bed.fault.access, KVMFAULT_ACCESS_WRITE);
	ck_assert_uint_eq(bed.fault.hva, (uintptr_t)bed_page(3));
	ck_assert_uint_eq(bed.fault.known & KVMFAULT_KNOWN_HVA,
			  KVMFAULT_KNOWN_HVA);
	ck_assert_uint_eq(bed.sleeper.size, sizeof(bed.sleeper));
	ck_assert_ptr_eq(bed.sleeper.memory, bed.memory);
	ck_assert_uint_eq(bed.sleeper.offset, 3 * PAGE);
	ck_assert_uint_eq(bed.sleeper.length, PAGE);
	ck_assert_ptr_null(bed.sleeper.uffd);	/* the library's own */
	/* Once; and it goes on trying until it works. */
	tries(5);
	ck_assert_uint_eq(bed.unresolved, 1);
	ck_assert_uint_eq(bed_stats().unresolved, 1);
	bed.source_result = 0;
	tries(1);
	ck_assert(bed_has(3, bed_byte(3)));
}

/* Of another process the address alone says nothing: whose it is comes with it. */
TEST(parked, told_of_another_process)
{
	struct kvmfault_uffd_options process = {
		.size = sizeof(process), .fd = fake_uffd(O_NONBLOCK),
		.remote = true,
	};
	struct kvmfault_mapping_options options = { .size = sizeof(options) };
	struct uffd_msg msg = { .event = UFFD_EVENT_PAGEFAULT };
	struct kvmfault_mapping *mapping;

	ck_assert_int_eq(kvmfault_uffd_new(bed.vm, &process, &options.uffd), 0);
	options.host = (uintptr_t)fake_map(bed.fd);
	ck_assert_int_eq(kvmfault_mapping_add(bed.memory, &options, &mapping),
			 0);
	bed.source_result = -EIO;
	msg.arg.pagefault.address = options.host + 5 * PAGE + 7;
	fake_message(process.fd, &msg);
	tries(3);
	ck_assert_uint_eq(bed.unresolved, 1);
	ck_assert_ptr_eq(bed.sleeper.uffd, options.uffd);
	ck_assert_ptr_eq(bed.sleeper.memory, bed.memory);
	ck_assert_uint_eq(bed.sleeper.offset, 5 * PAGE);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	ck_assert_int_eq(kvmfault_uffd_free(options.uffd), 0);
}

/* Who is told takes his time: the message is parked by then, and its sleeper was not
 * woken to send another one. */
static void when_told(void *data, const struct kvmfault_sleeper *sleeper)
{
	const struct uffd_msg again = {
		.event = UFFD_EVENT_PAGEFAULT,
		.arg.pagefault.address = sleeper->fault->hva,
	};

	(void)data;
	fake_called_back();
	bed.unresolved++;
	fake_message(kvmfault_uffd_fd(bed.memory->uffd), &again);
	kvmfault_service_dispatch(bed.service);
}

TEST(parked, told_once_by_a_slow_callback)
{
	bed.vm->ops.unresolved = when_told;
	bed.vm->options.source_retries = 0;
	bed.source_result = -EIO;
	bed_touch(3, true);
	dispatch();
	ck_assert_uint_eq(bed.unresolved, 1);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(bed_stats().repeated, 1);
	ck_assert_uint_eq(wakes(), 0);
}

static void fails(struct kvmfault__deferred *park, struct kvmfault__message *item,
		  const struct kvmfault_mapping *mapping)
{
	item->tries.failures++;
	kvmfault__defer(park, bed.seat, item, true);
	kvmfault__not_resolved(bed.seat, item, mapping, KVMFAULT_REASON_SOURCE,
			       -EIO);
}

/* A sleeper that was woken has sent a second message, and another thread has
 * parked that first. */
TEST(parked, told_once_for_two_messages)
{
	struct kvmfault__message first = {
		.fault.hva = (uintptr_t)bed_page(3), .tries = { 2, 2 },
	}, second = { .fault.hva = (uintptr_t)bed_page(3) };
	const struct kvmfault__mappings *all =
		atomic_load(&bed.memory->mappings);
	const struct kvmfault_mapping *mapping = all->mapping[0];
	struct kvmfault__deferred park = { .timer = kvmfault__sys_timerfd() };

	pthread_mutex_init(&park.lock, NULL);
	fails(&park, &second, mapping);
	ck_assert_uint_eq(bed.unresolved, 0);
	fails(&park, &first, mapping);
	ck_assert_uint_eq(bed.unresolved, 1);
	ck_assert_uint_eq(park.count, 1);
	ck_assert(kvmfault__deferred_take(&park, UINT64_MAX, &second));
	ck_assert_uint_eq(second.tries.failures, 3);
	fails(&park, &second, mapping);
	ck_assert_uint_eq(bed.unresolved, 1);
	kvmfault__sys_close(park.timer);
	pthread_mutex_destroy(&park.lock);
}

TEST(parked, told_after_a_mixed_series)
{
	static const int results[] = { -EIO, -EIO, -EAGAIN, -EIO, -EIO };
	size_t i;

	bed_touch(3, false);
	for (i = 0; i < 5; i++) {
		bed.source_result = results[i];
		tries(1);
	}
	ck_assert_uint_eq(bed.unresolved, 1);
}

TEST(parked, failing_fetch_does_not_flood)
{
	bed.source_result = -EIO;
	bed_touch(3, false);
	dispatch();
	ck_assert_uint_eq(bed.reads, 1);
	/* What is woken faults again: that is known already. */
	bed_touch(3, false);
	dispatch();
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(bed_stats().repeated, 1);
}

/* ---- other messages ---- */

static int adopted;

static struct kvmfault_memory *anonymous(char **host)
{
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = BED_PAGES * PAGE,
		.source = &source,
	};
	struct kvmfault_memory *memory;
	void *address;

	fake_memory(options.length, 0, &address);
	options.host = *host = address;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory), 0);
	return memory;
}

static void event(struct kvmfault_memory *memory, const struct uffd_msg *msg)
{
	const struct kvmfault__mappings *all =
		atomic_load(&memory->mappings);

	fake_message(all->mapping[0]->uffd->fd, msg);
	dispatch();
}

static void remove_event(struct kvmfault_memory *memory, char *start,
			 uint64_t length)
{
	struct uffd_msg msg = { .event = UFFD_EVENT_REMOVE };

	msg.arg.remove.start = (uintptr_t)start;
	msg.arg.remove.end = (uintptr_t)start + length;
	event(memory, &msg);
}

TEST(messages, removed_from_a_file_is_a_hint)
{
	bed_touch(3, false);
	dispatch();
	/* The data is still in the file. */
	remove_event(bed.memory, bed_page(3), PAGE);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(4), KVMFAULT__ABSENT);
}

TEST(messages, removed_from_anonymous_memory_is_gone)
{
	char *host;
	struct kvmfault_memory *memory = anonymous(&host);

	ck_assert(fake_fault(host + 3 * PAGE, false));
	dispatch();
	remove_event(memory, host + 3 * PAGE, 2 * PAGE);
	ck_assert_int_eq(kvmfault__page_state(memory, 2), KVMFAULT__ABSENT);
	ck_assert_int_eq(kvmfault__page_state(memory, 3), KVMFAULT__DISCARDED);
	ck_assert_int_eq(kvmfault__page_state(memory, 4), KVMFAULT__DISCARDED);
	ck_assert_int_eq(kvmfault__page_state(memory, 5), KVMFAULT__ABSENT);
	/* Past the memory's end. */
	remove_event(memory, host + (BED_PAGES - 1) * PAGE, 8 * PAGE);
	ck_assert_int_eq(kvmfault__page_state(memory, BED_PAGES - 1),
			 KVMFAULT__DISCARDED);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

TEST(messages, fork_event)
{
	struct uffd_msg msg = { .event = UFFD_EVENT_FORK };
	long before = fake_held().descriptors;

	adopted = fake_fd(FAKE_UFFD);
	fake_give(adopted);
	msg.arg.fork.ufd = (uint32_t)adopted;
	event(bed.memory, &msg);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_int_eq(fake_held().descriptors, before);
}

TEST(messages, unmap_event)
{
	struct uffd_msg msg = { .event = UFFD_EVENT_UNMAP };

	event(bed.memory, &msg);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_ptr_nonnull(strstr(bed.log, "unmapped"));
}

/* What has moved stays registered when its memory goes, if nothing is absent. */
TEST(messages, moved_stays_registered)
{
	const struct kvmfault__mappings *all =
		atomic_load(&bed.memory->mappings);
	struct uffd_msg msg = { .event = UFFD_EVENT_REMAP };
	int fd = all->mapping[0]->uffd->fd;
	size_t closed = fake_count(FAKE_CLOSE, FAKE_ANY);

	event(bed.memory, &msg);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_ptr_nonnull(strstr(bed.log, "mremap()"));
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, BED_PAGES * PAGE,
					 false), 0);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	ck_assert_int_eq(kvmfault_memory_free(bed.memory), 0);
	bed.memory = NULL;
	ck_assert_uint_eq(fake_count(FAKE_CLOSE, FAKE_ANY), closed);
	/* The bed lets nothing be left open. */
	ck_assert_int_eq(kvmfault__sys_close(fd), 0);
}

TEST(messages, message_for_what_nobody_knows)
{
	struct uffd_msg msg = { .event = UFFD_EVENT_PAGEFAULT };

	msg.arg.pagefault.address = 0x1000;
	event(bed.memory, &msg);
	ck_assert_uint_eq(bed.reads, 0);
	ck_assert_uint_eq(bed_stats().deferred, 0);
}

TEST(messages, unknown_event)
{
	struct uffd_msg msg = { .event = 0x77 };

	event(bed.memory, &msg);
	ck_assert_uint_eq(bed.reads, 0);
}

TEST(messages, flags_that_nobody_understands)
{
	struct uffd_msg msg = { .event = UFFD_EVENT_PAGEFAULT };

	msg.arg.pagefault.address = (uintptr_t)bed_page(3);
	msg.arg.pagefault.flags = UFFD_PAGEFAULT_FLAG_WRITE | 1ULL << 40;
	event(bed.memory, &msg);
	tries(3);
	ck_assert_uint_eq(bed.unresolved, 1);
	ck_assert_int_eq(bed.reason, KVMFAULT_REASON_FLAGS);
	ck_assert_uint_eq(bed.fault.flags & 1ULL << 40, 1ULL << 40);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

static bool failed_uffd(struct fake_call *call)
{
	struct epoll_event *events = call->arg;

	if (fake_model(call) > 0)
		events[0].events = EPOLLERR;
	return true;
}

TEST(messages, userfaultfd_that_failed_is_muted)
{
	bed_touch(3, false);
	fake_on(FAKE_EPOLL_WAIT, failed_uffd);
	bed_dispatch();
	fake_on(FAKE_EPOLL_WAIT, NULL);
	dispatch();
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_uint_eq(bed.reads, 0);
}

static struct kvmfault_uffd *uffd;

static bool free_uffd(struct fake_call *call)
{
	if (fake_model(call) > 0)
		ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
	return true;
}

/* Freed when a reader has heard of it, and has not read. */
TEST(messages, userfaultfd_that_was_just_freed)
{
	struct kvmfault_uffd_options options = {
		.size = sizeof(options), .fd = fake_uffd(O_NONBLOCK),
	};
	struct uffd_msg msg = { .event = UFFD_EVENT_PAGEFAULT };
	size_t reads;

	ck_assert_int_eq(kvmfault_uffd_new(bed.vm, &options, &uffd), 0);
	reads = fake_count(FAKE_READ, FAKE_ANY);
	fake_message(options.fd, &msg);
	fake_on(FAKE_EPOLL_WAIT, free_uffd);
	bed_dispatch();
	fake_on(FAKE_EPOLL_WAIT, NULL);
	ck_assert_uint_eq(fake_count(FAKE_EPOLL_WAIT, FAKE_ANY), 1);
	ck_assert_uint_eq(fake_count(FAKE_READ, FAKE_ANY), reads);
	ck_assert_uint_eq(bed_stats().kind[KVMFAULT_KIND_UFFD], 0);
	dispatch();
	ck_assert_uint_eq(bed.logs, 0);
}

/* ---- making it ---- */

TEST_GROUP(new, up, bed_down);

TEST(new, new_service)
{
	struct kvmfault_service_options options = { .size = sizeof(options) };
	struct kvmfault_service *second = (void *)1;

	ck_assert_int_eq(kvmfault_service_new(bed.vm, &options, &second),
			 -EBUSY);
	ck_assert_ptr_null(second);
	ck_assert_int_eq(kvmfault_service_new(NULL, &options, &second),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_service_new(bed.vm, NULL, &second), -EINVAL);
	ck_assert_int_eq(kvmfault_service_new(bed.vm, &options, NULL),
			 -EINVAL);
	options.threads = 257;
	ck_assert_int_eq(kvmfault_service_new(bed.vm, &options, &second),
			 -EINVAL);
	ck_assert_int_eq(kvmfault_vm_free(bed.vm), -EBUSY);
}

TEST(new, unknown_tail)
{
	struct {
		struct kvmfault_service_options options;
		uint64_t tail;
	} caller = { .options.size = sizeof(caller), .tail = 1 };
	struct kvmfault_service *second = (void *)1;

	ck_assert_int_eq(kvmfault_service_new(bed.vm, &caller.options,
					      &second), -E2BIG);
	ck_assert_ptr_null(second);
}

TEST(new, threads_come_and_go)
{
	bed_end_service();
	bed_service(3);
	ck_assert_int_eq(fake_held().threads, 3);
	bed_touch(3, false);
	while (!bed_stats().fetched)
		sched_yield();
	bed_end_service();
	ck_assert_int_eq(fake_held().threads, 0);
	ck_assert(bed_has(3, bed_byte(3)));
}

static int freed = 1;

static void free_by_own_thread(void)
{
	freed = kvmfault_service_free(bed.service);
}

TEST(new, freed_by_its_own_thread)
{
	bed_end_service();
	bed_service(1);
	bed.during_read = free_by_own_thread;
	bed_touch(3, false);
	while (!bed_stats().fetched)
		sched_yield();
	bed_end_service();
	ck_assert_int_eq(freed, -EDEADLK);
}

TEST(new, dispatch_without_memory)
{
	bed_take_seats();
	bed_touch(3, false);
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(kvmfault_service_dispatch(bed.service), -ENOMEM);
	bed_give_seats();
	dispatch();
	ck_assert(bed_has(3, bed_byte(3)));
}

/* ---- in the place of a service: a thread that waits for sleepers ---- */

/* Any seat stands for one whose thread sleeps on the page. */
static bool sleeps_on_page_3(struct kvmfault__seat *seat, void *unused)
{
	(void)seat;
	(void)unused;
	return bed_state(3) != KVMFAULT__PRESENT;
}

static void wait_for_sleeper(void)
{
	kvmfault__drain_sleepers(bed.vm, sleeps_on_page_3, NULL);
	ck_assert(bed_has(3, bed_byte(3)));
}

static bool time_passes(struct fake_call *call)
{
	fake_advance(call->length);
	call->result = -ETIMEDOUT;
	return true;
}

static void up_without_service(void)
{
	up();
	bed_end_service();
	fake_forget();
	fake_on(FAKE_FUTEX_WAIT, time_passes);
}

static void down_without_service(void)
{
	fake_on(FAKE_FUTEX_WAIT, NULL);
	bed_down();
}

TEST_GROUP(stand_in, up_without_service, down_without_service);

TEST(stand_in, sleeper_is_answered)
{
	bed_touch(3, false);
	wait_for_sleeper();
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(bed_stats().kind[KVMFAULT_KIND_UFFD], 1);
}

/* The VMM's thread that would dispatch may be this one. */
TEST(stand_in, sleeper_is_answered_where_the_vmm_dispatches)
{
	bed_service(0);
	bed_touch(3, false);
	wait_for_sleeper();
	ck_assert_uint_eq(bed.reads, 1);
}

static void touch_page_3(void)
{
	if (bed_state(3) == KVMFAULT__ABSENT)
		bed_touch(3, false);
}

/* Who is woken faults again. */
static unsigned int good_from;

static bool sleeper_is_woken(struct fake_call *call)
{
	if (call->number == UFFDIO_WAKE && wakes() >= good_from)
		bed.source_result = 0;
	if (call->number == UFFDIO_WAKE)
		fake_aside(touch_page_3);
	return false;
}

static void touch_of_a_sleeper(unsigned int good)
{
	good_from = good;
	bed.source_result = good ? -EIO : 0;
	fake_on(FAKE_IOCTL, sleeper_is_woken);
	bed_touch(3, false);
}

TEST(stand_in, told_after_three_tries_again)
{
	touch_of_a_sleeper(6);
	wait_for_sleeper();
	ck_assert_uint_ge(bed.reads, 6);
	ck_assert_uint_eq(bed.unresolved, 1);
	ck_assert_int_eq(bed.error, -EIO);
	ck_assert_uint_eq(bed.sleeper.offset, 3 * PAGE);
}

/* By a service that has ended, or is not asked any more. */
TEST(stand_in, message_that_was_read_before)
{
	struct uffd_msg msg;

	touch_of_a_sleeper(0);
	ck_assert_int_eq(kvmfault__uffd_read(bed.memory->uffd->fd, &msg,
					     sizeof(msg)), sizeof(msg));
	wait_for_sleeper();
	ck_assert_uint_eq(bed.reads, 1);
}

static bool sleeps_for_a_while(struct kvmfault__seat *seat, void *n)
{
	unsigned int *looks = n;

	(void)seat;
	return bed.reads < 3 && ++*looks < 100;
}

/* The drain ends while a thread of the VMM's sleeps on a page that could not
 * be brought. */
TEST(stand_in, nobody_is_left_asleep)
{
	unsigned int looks = 0;

	touch_of_a_sleeper(1000);
	kvmfault__drain_sleepers(bed.vm, sleeps_for_a_while, &looks);
	ck_assert_uint_lt(looks, 100);
	ck_assert(!atomic_load(&bed.vm->unserved));
	bed.source_result = 0;
	bed_service(0);
	dispatch();
	ck_assert(bed_has(3, bed_byte(3)));
}

TEST(stand_in, no_memory_for_a_seat)
{
	bed_take_seats();
	fake_push(FAKE_ALLOC, 0);
	bed_touch(3, false);
	wait_for_sleeper();
	ck_assert_uint_eq(bed.reads, 1);
	bed_give_seats();
}

TEST(stand_in, userfaultfd_that_failed)
{
	unsigned int looks = 98;

	bed_touch(3, false);
	fake_on(FAKE_EPOLL_WAIT, failed_uffd);
	kvmfault__drain_sleepers(bed.vm, sleeps_for_a_while, &looks);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_uint_eq(bed.reads, 0);
}

static bool sleeps_on_page_5(struct kvmfault__seat *seat, void *unused)
{
	(void)seat;
	(void)unused;
	return bed_state(5) != KVMFAULT__PRESENT;
}

static void wait_in_a_callback(void)
{
	bed_touch(5, false);
	kvmfault__drain_sleepers(bed.vm, sleeps_on_page_5, NULL);
	ck_assert(bed_has(5, bed_byte(5)));
}

static bool only_drains_take_time(struct fake_call *call)
{
	return call->arg == &bed.vm->drain.sequence && time_passes(call);
}

/* The one that reads messages is this one. */
TEST(stand_in, callback_of_the_only_thread)
{
	fake_on(FAKE_FUTEX_WAIT, only_drains_take_time);
	bed.during_read = wait_in_a_callback;
	bed_service(1);
	bed_touch(3, false);
	while (bed_stats().fetched < 2)
		sched_yield();
	bed_end_service();
	ck_assert_uint_eq(bed.reads, 2);
}

static bool its_threads_do_it(struct fake_call *call)
{
	if (call->arg != &bed.vm->drain.sequence)
		return false;
	while (bed_state(3) != KVMFAULT__PRESENT)
		sched_yield();
	return time_passes(call);
}

/* Then this thread reads none. */
TEST(stand_in, service_with_threads)
{
	fake_on(FAKE_FUTEX_WAIT, its_threads_do_it);
	bed_service(1);
	bed_touch(3, false);
	wait_for_sleeper();
	ck_assert_uint_eq(bed.reads, 1);
	fake_on(FAKE_FUTEX_WAIT, NULL);
	bed_end_service();
}

int main(void)
{
	return run_suite("service");
}
