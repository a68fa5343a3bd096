/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * reader.c on the real userfaultfd: anonymous memory of a VMM that has opened its
 * userfaultfd itself, with events. Who discards sleeps until the event is read, and
 * afterwards nothing of what was there may be seen.
 */

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/setup/setup.h"
#include "need.h"
#include "unit.h"

#define PAGES 16ULL
#define LENGTH (PAGES * PAGE)
#define GPA 0x40000000ULL

static struct kvmfault_vm *vm;
static struct kvmfault_service *service;
static struct kvmfault_memory *memory;
static struct kvmfault_uffd *uffd;
static char *host;
static atomic_bool gate, asked;	/* the source waits for the one, says the other */
static atomic_int freed;
static int its_fd;

static atomic_int source_says;

static int read_page(void *data, uint64_t offset, void *buffer, size_t length)
{
	(void)data;
	atomic_store(&asked, true);
	while (!atomic_load(&gate))
		sched_yield();
	memset(buffer, (int)(offset / PAGE) + 1, length);
	return atomic_load(&source_says);
}

static int discard_page(uint64_t page)
{
	return kvmfault_discard(vm, 0, GPA + page * PAGE, PAGE);
}

/* On the library's own thread, which would wait for itself. */
static void on_log(void *data, enum kvmfault_log_level level, const char *text)
{
	(void)data;
	(void)level;
	if (!strstr(text, "was unmapped"))
		return;
	ck_assert_int_eq(discard_page(9), -EDEADLK);
	atomic_store(&freed, kvmfault_uffd_free(uffd));
}

static void open_uffd(void)
{
	struct uffdio_api api = {
		.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE |
			UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP,
	};
	struct kvmfault_uffd_options options = { .size = sizeof(options) };

	its_fd = kvmfault__uffd_open(KVMFAULT__UFFD_DEVICE |
				     KVMFAULT__UFFD_SYSCALL);
	ck_assert_int_ge(its_fd, 0);
	ck_assert_int_eq(ioctl(its_fd, UFFDIO_API, &api), 0);
	options.fd = its_fd;
	ck_assert_int_eq(kvmfault_uffd_new(vm, &options, &uffd), 0);
}

static void serve(unsigned int threads)
{
	struct kvmfault_service_options options = {
		.size = sizeof(options), .threads = threads,
	};

	ck_assert_int_eq(kvmfault_service_new(vm, &options, &service), 0);
}

/* Of the source's pages, which shows them, too, if view is set. */
static struct kvmfault_memory *
new_memory(char *at, int fd, const void *(*view)(void *data, uint64_t offset,
						 size_t length))
{
	struct kvmfault_source source = {
		.size = sizeof(source), .read = read_page, .view = view,
		.length = LENGTH,
	};
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = LENGTH, .source = &source,
		.window = KVMFAULT_WINDOW_NONE, .host = at, .uffd = uffd,
		.fd = fd, .minor = fd,
	};
	struct kvmfault_memory *new;

	ck_assert_int_eq(kvmfault_memory_adopt(vm, &options, &new), 0);
	return new;
}

static void up(void)
{
	const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops), .log = on_log,
	};
	struct kvmfault_vm_options of_vm = {
		.size = sizeof(of_vm),
		.ops = &ops,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = GPA, .length = LENGTH,
	};

	atomic_store(&gate, true);
	atomic_store(&asked, false);
	atomic_store(&freed, 1);
	atomic_store(&source_says, 0);
	service = NULL;
	/* The second half is for another memory, or none. */
	host = mmap(NULL, 2 * LENGTH, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(host, MAP_FAILED);
	ck_assert_int_eq(kvmfault_vm_new(&of_vm, &vm), 0);
	open_uffd();
	memory = new_memory(host, 0, NULL);
	region.memory = memory;
	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
}

static void down(void)
{
	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_int_eq(kvmfault_region_remove(vm, 0, GPA), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	close(its_fd);
	munmap(host, 2 * LENGTH);
}

static void *first_byte(void *at)
{
	return (void *)(uintptr_t)*(volatile unsigned char *)at;
}

/* A thread that touches the page, and sleeps. */
static pthread_t touch(uint64_t page)
{
	pthread_t thread;

	ck_assert_int_eq(pthread_create(&thread, NULL, first_byte,
					host + page * PAGE), 0);
	return thread;
}

static unsigned int seen_by(pthread_t thread)
{
	void *byte;

	pthread_join(thread, &byte);
	return (unsigned int)(uintptr_t)byte;
}

static unsigned int byte_of(uint64_t page)
{
	return (unsigned int)(uintptr_t)first_byte(host + page * PAGE);
}

static int bring(uint64_t page)
{
	return kvmfault_ensure(vm, 0, GPA + page * PAGE, 1, false);
}

TEST_GROUP(events, up, down);

TEST(events, discarded_without_a_service)
{
	ck_assert_int_eq(bring(3), 0);
	ck_assert_int_eq(discard_page(3), 0);
	serve(1);
	ck_assert_uint_eq(byte_of(3), 0);
	ck_assert_uint_eq(byte_of(4), 5);
}

TEST(events, ballooned)
{
	serve(1);
	ck_assert_uint_eq(byte_of(3), 4);
	host[3 * PAGE] = 77;
	ck_assert_int_eq(madvise(host + 3 * PAGE, PAGE, MADV_DONTNEED), 0);
	ck_assert_uint_eq(byte_of(3), 0);
	/* Of what was never there it is as true. */
	ck_assert_int_eq(madvise(host + 5 * PAGE, PAGE, MADV_DONTNEED), 0);
	ck_assert_uint_eq(byte_of(5), 0);
}

static void *discard(void *unused)
{
	ck_assert_int_eq(discard_page(3), 0);
	return unused;
}

static bool marked(void)
{
	return kvmfault__page_state(memory, 3) == KVMFAULT__FETCHING_DISCARDED;
}

/* One thread of the service has the page in hand when it goes; of what the library
 * takes away itself no other one has to hear. */
TEST_EACH(events, taken_while_it_is_fetched, 2)
{
	pthread_t thread, other;

	serve(_i ? 1 : 2);
	atomic_store(&gate, false);
	thread = touch(3);
	while (!atomic_load(&asked))
		sched_yield();
	if (_i)
		ck_assert_int_eq(pthread_create(&other, NULL, discard, NULL),
				 0);
	else
		ck_assert_int_eq(madvise(host + 3 * PAGE, PAGE, MADV_DONTNEED),
				 0);
	while (!marked())
		sched_yield();
	atomic_store(&gate, true);
	ck_assert_uint_eq(seen_by(thread), 0);
	if (_i)
		pthread_join(other, NULL);
	ck_assert_uint_eq(byte_of(3), 0);
}

/* It is zero, and not lost. */
TEST(events, taken_before_it_is_known_to_be_lost)
{
	pthread_t thread;

	serve(2);
	atomic_store(&gate, false);
	atomic_store(&source_says, -EHWPOISON);
	thread = touch(3);
	while (!atomic_load(&asked))
		sched_yield();
	ck_assert_int_eq(madvise(host + 3 * PAGE, PAGE, MADV_DONTNEED), 0);
	atomic_store(&gate, true);
	ck_assert_uint_eq(seen_by(thread), 0);
	ck_assert_uint_eq(byte_of(3), 0);
}

/* One event tells of both. */
TEST(events, taken_of_two_memories)
{
	struct kvmfault_memory *second = new_memory(host + LENGTH, 0, NULL);

	serve(1);
	ck_assert_int_eq(madvise(host + 5 * PAGE, LENGTH, MADV_DONTNEED), 0);
	ck_assert_uint_eq(byte_of(4), 5);
	ck_assert_uint_eq(byte_of(5), 0);
	ck_assert_uint_eq(byte_of(PAGES + 4), 0);
	ck_assert_uint_eq(byte_of(PAGES + 5), 6);
	ck_assert_int_eq(kvmfault_memory_free(second), 0);
}

static const void *show(void *data, uint64_t offset, size_t length)
{
	(void)data;
	(void)length;
	return host + offset;
}

/* A clone: what is installed is missing itself, and comes the same way. */
TEST(events, source_that_is_missing_itself)
{
	struct kvmfault_memory *second = new_memory(host + LENGTH, 0, show);

	serve(2);
	ck_assert_uint_eq(byte_of(PAGES + 3), 4);
	ck_assert_int_eq(kvmfault_memory_free(second), 0);
}

/* What was in page tables is forgotten, and an event tells of it. */
TEST(events, registered_before_with_minor_faults)
{
	int fd = memfd_create("minor", MFD_CLOEXEC);
	struct uffdio_register reg = {
		.mode = UFFDIO_REGISTER_MODE_MISSING,
		.range = { .len = LENGTH },
	};
	struct kvmfault_memory *second;

	ck_assert_int_eq(ftruncate(fd, LENGTH), 0);
	ck_assert_ptr_ne(mmap(host + LENGTH, LENGTH, PROT_READ | PROT_WRITE,
			      MAP_SHARED | MAP_FIXED, fd, 0), MAP_FAILED);
	reg.range.start = (uintptr_t)host + LENGTH;
	ck_assert_int_eq(ioctl(its_fd, UFFDIO_REGISTER, &reg), 0);
	second = new_memory(host + LENGTH, fd, NULL);
	serve(1);
	ck_assert_uint_eq(byte_of(PAGES + 3), 4);
	ck_assert_int_eq(kvmfault_memory_free(second), 0);
	close(fd);
}

static uint64_t messages(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	ck_assert_int_eq(kvmfault_vm_stats(vm, &stats), 0);
	return stats.kind[KVMFAULT_KIND_UFFD];
}

/* Nobody else reads: what the library discards itself has it read by its own thread,
 * and everything before it. */
static void have_it_read(void)
{
	ck_assert_int_eq(discard_page(7), 0);
}

/* Its message is read, and nobody is there to whom it can be handed. */
TEST(events, sleeper_waits_for_the_next_service)
{
	pthread_t thread = touch(3);

	while (!messages())
		have_it_read();
	serve(1);
	ck_assert_uint_eq(seen_by(thread), 4);
	ck_assert_int_eq(kvmfault_service_free(service), 0);
	service = NULL;
	thread = touch(5);
	while (messages() < 2)
		have_it_read();
	serve(2);
	ck_assert_uint_eq(seen_by(thread), 6);
}

static void *dispatch(void *done)
{
	while (!atomic_load((atomic_bool *)done)) {
		kvmfault_service_dispatch(service);
		sched_yield();
	}
	return NULL;
}

TEST(events, served_by_the_vmm)
{
	static atomic_bool done;
	pthread_t thread;

	serve(0);
	ck_assert_int_eq(pthread_create(&thread, NULL, dispatch, &done), 0);
	ck_assert_uint_eq(byte_of(3), 4);
	ck_assert_int_eq(madvise(host, LENGTH, MADV_DONTNEED), 0);
	ck_assert_uint_eq(byte_of(3), 0);
	atomic_store(&done, true);
	pthread_join(thread, NULL);
}

static void *unmap_one(void *unused)
{
	munmap(host + 8 * PAGE, PAGE);
	return unused;
}

/* It would wait for itself. */
TEST(events, freed_by_its_own_thread)
{
	pthread_t thread;

	ck_assert_int_eq(pthread_create(&thread, NULL, unmap_one, NULL), 0);
	while (atomic_load(&freed) > 0)
		have_it_read();
	pthread_join(thread, NULL);
	ck_assert_int_eq(atomic_load(&freed), -EDEADLK);
}

static atomic_bool enough;

/* With pauses: from the call to the read of its event the kernel installs nothing. */
static void *balloon(void *unused)
{
	uint64_t page = 0;

	while (!atomic_load(&enough)) {
		madvise(host + page * PAGE, PAGE, MADV_DONTNEED);
		page = (page + 3) % PAGES;
		usleep(100);
	}
	return unused;
}

static void *read_all(void *wrong)
{
	uint64_t i;

	for (i = 0; i < 2000; i++) {
		unsigned int byte = byte_of(i % PAGES);

		if (byte && byte != i % PAGES + 1)
			atomic_store((atomic_bool *)wrong, true);
	}
	return NULL;
}

/* Everything at once, and one thread to serve it. */
TEST(events, nobody_waits_for_ever)
{
	static atomic_bool wrong;
	pthread_t thread[4];
	unsigned int i;

	serve(1);
	ck_assert_int_eq(pthread_create(&thread[0], NULL, balloon, NULL), 0);
	for (i = 1; i < 4; i++)
		ck_assert_int_eq(pthread_create(&thread[i], NULL, read_all,
						&wrong), 0);
	for (i = 0; i < 500; i++)
		ck_assert_int_eq(discard_page(i % PAGES), 0);
	for (i = 1; i < 4; i++)
		pthread_join(thread[i], NULL);
	atomic_store(&enough, true);
	pthread_join(thread[0], NULL);
	ck_assert(!atomic_load(&wrong));
}

int main(void)
{
	need("uffd");
	return run_suite("live-events");
}
