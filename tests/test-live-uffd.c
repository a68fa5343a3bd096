/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The whole library on the real userfaultfd, without KVM: memory that comes
 * from a file as threads of this process, and of another one, touch it.
 */

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/os/abi.h"
#include "lib/setup/setup.h"
#include "need.h"
#include "pass-fd.h"
#include "unit.h"

#define PAGES 256ULL
#define LENGTH (PAGES * PAGE)
#define GPA 0x40000000ULL
#define THREADS 4

static struct kvmfault_vm *vm;
static struct kvmfault_service *service;
static struct kvmfault_memory *memory;
static struct kvmfault_source source, file;
static int backing, image;
static char *host;
static atomic_uint reads[PAGES];
static bool minor;
static enum kvmfault_window window;

/* No page is zero, and no two are alike. */
static uint64_t word(uint64_t page, uint64_t i)
{
	return (page + 1) * 0x9e3779b97f4a7c15ULL + i;
}

static int counting_read(void *data, uint64_t offset, void *buffer,
			 size_t length)
{
	size_t i;

	(void)data;
	for (i = 0; i < length; i += PAGE)
		atomic_fetch_add(&reads[(offset + i) / PAGE], 1);
	return file.read(file.data, offset, buffer, length);
}

static bool has_data(const void *address, uint64_t page)
{
	const volatile uint64_t *words = address;
	uint64_t i;

	for (i = 0; i < PAGE / 8; i++)
		if (words[i] != word(page, i))
			return false;
	return true;
}

static void make_image(void)
{
	uint64_t page, i, words[PAGE / 8];

	image = memfd_create("image", MFD_CLOEXEC);
	ck_assert_int_ge(image, 0);
	for (page = 0; page < PAGES; page++) {
		for (i = 0; i < PAGE / 8; i++)
			words[i] = word(page, i);
		ck_assert_int_eq(write(image, words, PAGE), PAGE);
	}
	file.size = sizeof(file);
	ck_assert_int_eq(kvmfault_source_file(image, &file), 0);
	source = file;
	source.read = counting_read;
}

static void *map_backing(void)
{
	void *address = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED,
			     backing, 0);

	ck_assert_ptr_ne(address, MAP_FAILED);
	return address;
}

static int new_memory(struct kvmfault_uffd *uffd)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .host = host, .length = LENGTH,
		.fd = backing, .source = &source, .uffd = uffd,
		.minor = minor, .window = window,
	};

	return kvmfault_memory_adopt(vm, &options, &memory);
}

static void add_region(void)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = GPA, .length = LENGTH,
		.memory = memory,
	};

	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
}

static void up(void)
{
	struct kvmfault_service_options options = {
		.size = sizeof(options), .threads = 2,
	};

	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	ck_assert_int_eq(kvmfault_service_new(vm, &options, &service), 0);
	make_image();
	backing = memfd_create("guest", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(backing, LENGTH), 0);
	host = map_backing();
}

static void up_memory(void)
{
	up();
	ck_assert_int_eq(new_memory(NULL), 0);
	add_region();
}

static void up_minor(void)
{
	minor = true;
	up_memory();
}

static void up_window(void)
{
	window = KVMFAULT_WINDOW_ADAPTIVE;
	up_memory();
}

static void up_minor_window(void)
{
	window = KVMFAULT_WINDOW_FIXED;
	up_minor();
}

static void down(void)
{
	if (memory) {
		kvmfault_region_remove(vm, 0, GPA);
		ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	}
	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
}

static struct kvmfault_stats stats(void)
{
	struct kvmfault_stats all = { .size = sizeof(all) };

	ck_assert_int_eq(kvmfault_vm_stats(vm, &all), 0);
	return all;
}

struct toucher {
	char *base;
	uint64_t start, step;
	atomic_uint wrong;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;
	uint64_t i;

	for (i = 0; i < PAGES; i++) {
		uint64_t page = (t->start + i * t->step) % PAGES;

		if (!has_data(t->base + page * PAGE, page))
			t->wrong++;
	}
	return NULL;
}

/* All of it, by threads in their own orders, in two mappings. */
static void touch_all(char *a, char *b)
{
	static const uint64_t steps[THREADS] = { 1, 1, 37, 255 };
	struct toucher toucher[THREADS];
	pthread_t thread[THREADS];
	size_t i;

	for (i = 0; i < THREADS; i++) {
		toucher[i] = (struct toucher){
			.base = i % 2 ? b : a, .start = i * 11,
			.step = steps[i],
		};
		pthread_create(&thread[i], NULL, touch, &toucher[i]);
	}
	for (i = 0; i < THREADS; i++) {
		pthread_join(thread[i], NULL);
		ck_assert_uint_eq(toucher[i].wrong, 0);
	}
}

static void check_fetched_once(void)
{
	uint64_t page;

	for (page = 0; page < PAGES; page++)
		ck_assert_uint_eq(reads[page], 1);
	/* A thread counts after it has woken. */
	while (stats().fetched < PAGES)
		sched_yield();
	ck_assert_uint_eq(stats().fetched, PAGES);
	ck_assert_uint_eq(stats().existed, 0);
	ck_assert_uint_eq(stats().zeroed, 0);
}

/* What is true of memory in each mode is said once, of the last one. */
TEST_GROUP(minor_window, up_minor_window, down);
TEST_GROUP_LIKE(minor, minor_window, up_minor, down);
TEST_GROUP_LIKE(window, minor_window, up_window, down);
TEST_GROUP_LIKE(memory, minor_window, up_memory, down);

TEST(minor_window, every_page_comes_once)
{
	touch_all(host, host);
	check_fetched_once();
}

TEST(minor_window, every_page_comes_once_for_two_mappings)
{
	struct kvmfault_mapping_options options = { .size = sizeof(options) };
	struct kvmfault_mapping *mapping;
	char *second = map_backing();

	options.host = (uintptr_t)second;
	ck_assert_int_eq(kvmfault_mapping_add(memory, &options, &mapping), 0);
	touch_all(host, second);
	check_fetched_once();
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	/* All of it is there: nothing is protected. */
	ck_assert(has_data(second, 0));
}

TEST(minor_window, written_pages_have_the_rest_of_their_data)
{
	char *page = host + 5 * PAGE;

	*(volatile uint64_t *)page = 42;
	ck_assert_uint_eq(*(volatile uint64_t *)page, 42);
	ck_assert_uint_eq(((volatile uint64_t *)page)[1], word(5, 1));
}

TEST(minor, ensured_pages_do_not_fault)
{
	uint64_t page, before;

	ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA + 10 * PAGE + 5, 3 * PAGE,
					 true), 0);
	before = stats().kind[KVMFAULT_KIND_UFFD];
	for (page = 10; page <= 13; page++) {
		ck_assert_uint_eq(reads[page], 1);
		ck_assert(has_data(host + page * PAGE, page));
	}
	ck_assert_uint_eq(reads[9], 0);
	ck_assert_uint_eq(reads[14], 0);
	ck_assert_uint_eq(stats().kind[KVMFAULT_KIND_UFFD], before);
}
TEST_ALSO(memory, ensured_pages_do_not_fault);

static bool is_zero(const char *page)
{
	size_t i;

	for (i = 0; i < PAGE; i++)
		if (((const volatile char *)page)[i])
			return false;
	return true;
}

TEST(minor, discarded_pages_are_zero)
{
	ck_assert(has_data(host + 3 * PAGE, 3));
	/* One that was there, and one that never was. */
	ck_assert_int_eq(kvmfault_discard(vm, 0, GPA + 3 * PAGE, 2 * PAGE), 0);
	ck_assert(is_zero(host + 3 * PAGE));
	ck_assert(is_zero(host + 4 * PAGE));
	ck_assert_uint_eq(reads[3], 1);
	ck_assert_uint_eq(reads[4], 0);
	ck_assert(has_data(host + 5 * PAGE, 5));
}
TEST_ALSO(memory, discarded_pages_are_zero);

TEST(minor_window, hole_behind_our_back_is_zero)
{
	ck_assert(has_data(host + 3 * PAGE, 3));
	ck_assert_int_eq(fallocate(backing, FALLOC_FL_PUNCH_HOLE |
				   FALLOC_FL_KEEP_SIZE, 3 * PAGE, PAGE), 0);
	ck_assert(is_zero(host + 3 * PAGE));
	ck_assert_uint_eq(reads[3], 1);
}

/* A child that reads the address: how did it end? */
static int end_of_reader(const char *address)
{
	pid_t child = fork();
	int status;

	if (!child) {
		signal(SIGSEGV, SIG_DFL);
		signal(SIGBUS, SIG_DFL);
		_exit(*(const volatile char *)address ? 1 : 0);
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	return status;
}

/* As the destructors of a VMM do whose exec() has failed: all that the child has
 * of it is its parent's. */
TEST(minor_window, child_frees_nothing)
{
	int status;
	pid_t child = fork();

	ck_assert_int_ge(child, 0);
	if (!child) {
		alarm(HANG / 2);
		if (kvmfault_service_free(service) ||
		    kvmfault_region_remove(vm, 0, GPA) ||
		    kvmfault_memory_free(memory) || kvmfault_vm_free(vm))
			_exit(1);
		_exit(0);
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert_int_eq(status, 0);
	ck_assert(has_data(host + 7 * PAGE, 7));
	ck_assert(has_data(host + (PAGES - 1) * PAGE, PAGES - 1));
}

TEST(minor_window, after_the_end_nobody_reads_zero)
{
	int status;

	ck_assert(has_data(host, 0));
	kvmfault_region_remove(vm, 0, GPA);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	memory = NULL;
	status = end_of_reader(host + 7 * PAGE);
	ck_assert(WIFSIGNALED(status));
	ck_assert_int_eq(WTERMSIG(status), SIGSEGV);
}

TEST_GROUP(new, up, down);

TEST(new, anonymous)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = LENGTH, .source = &source,
	};
	struct kvmfault_memory *other;
	char *address = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	options.host = address;
	ck_assert_int_eq(kvmfault_memory_adopt(vm, &options, &other), 0);
	touch_all(address, address);
	check_fetched_once();
	ck_assert_int_eq(kvmfault_memory_free(other), 0);
	munmap(address, LENGTH);
}

/* ---- protected ---- */

enum { SHMEM, MINOR, ANONYMOUS, KINDS };

static char *saved;
static atomic_uint saves[PAGES];

/* Who writes is held up by the kernel: an order that the thread sanitizer can't
 * see. */
#define ORDERED_BY_THE_KERNEL __attribute__((no_sanitize("thread")))

ORDERED_BY_THE_KERNEL
static int save(void *data, struct kvmfault_request *request)
{
	const volatile uint64_t *from = request->host;
	uint64_t *to = (uint64_t *)(saved + request->offset);
	size_t i;

	(void)data;
	for (i = 0; i < request->length / sizeof(*to); i++)
		to[i] = from[i];
	atomic_fetch_add(&saves[request->offset / PAGE], 1);
	return KVMFAULT_VERDICT_RESOLVED;
}

/* A resolver comes before the service. */
static void add_hook(void)
{
	const struct kvmfault_service_options options = {
		.size = sizeof(options), .threads = 2,
	};
	const struct kvmfault_resolver hook = {
		.size = sizeof(hook),
		.name = "save",
		.pages = 1U << KVMFAULT_PAGE_PROTECTED,
		.resolve = save,
	};

	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_int_eq(kvmfault_resolver_add(vm, &hook), 0);
	ck_assert_int_eq(kvmfault_service_new(vm, &options, &service), 0);
}

static void up_protected(int kind)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = LENGTH, .source = &source,
		.minor = kind == MINOR, .write_protect = true,
	};

	add_hook();
	saved = calloc(PAGES, PAGE);
	if (kind == ANONYMOUS)
		host = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	else
		options.fd = backing;
	options.host = host;
	ck_assert_int_eq(kvmfault_memory_adopt(vm, &options, &memory), 0);
	add_region();
}

ORDERED_BY_THE_KERNEL
static void *write_all(void *arg)
{
	uint64_t i, id = (uintptr_t)arg;

	for (i = 0; i < PAGES; i++)
		((volatile uint64_t *)(host + (i * 37 + id) % PAGES *
				       PAGE))[id] = id + 1;
	return NULL;
}

static void expect_saved(unsigned int times)
{
	uint64_t page;

	for (page = 0; page < PAGES; page++) {
		ck_assert_uint_eq(saves[page], times);
		ck_assert_uint_eq(reads[page], 1);
	}
}

TEST_EACH(new, protected_pages_are_saved_once, KINDS)
{
	pthread_t thread[THREADS];
	uint64_t page, i;

	up_protected(_i);
	/* Some are there, and most are absent. */
	for (page = 0; page < PAGES; page += 4)
		ck_assert(has_data(host + page * PAGE, page));
	ck_assert_int_eq(kvmfault_protect(vm, 0, GPA, LENGTH), 0);
	for (page = 1; page < PAGES; page += 4)
		ck_assert(has_data(host + page * PAGE, page));
	ck_assert_uint_eq(stats().page[KVMFAULT_PAGE_PROTECTED], 0);
	for (i = 0; i < THREADS; i++)
		pthread_create(&thread[i], NULL, write_all, (void *)i);
	for (i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	expect_saved(1);
	for (page = 0; page < PAGES; page++) {
		ck_assert(has_data(saved + page * PAGE, page));
		for (i = 0; i < THREADS; i++)
			ck_assert_uint_eq(((volatile uint64_t *)(host +
					  page * PAGE))[i], i + 1);
	}
	/* The next one: a part is discarded, and the rest is swept. */
	ck_assert_int_eq(kvmfault_protect(vm, 0, GPA, LENGTH), 0);
	ck_assert_int_eq(kvmfault_discard(vm, 0, GPA, 8 * PAGE), 0);
	ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA, LENGTH, true), 0);
	expect_saved(2);
	ck_assert_int_eq(memcmp(saved + 8 * PAGE, host + 8 * PAGE,
				LENGTH - 8 * PAGE), 0);
	ck_assert_uint_eq(*(uint64_t *)saved, 1);
	ck_assert(is_zero(host));
	free(saved);
}

TEST_EACH(new, protection_is_given_up, KINDS)
{
	uint64_t i, before;

	up_protected(_i);
	ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA, LENGTH, true), 0);
	ck_assert_int_eq(kvmfault_protect(vm, 0, GPA, LENGTH), 0);
	ck_assert_int_eq(kvmfault_unprotect(vm, 0, GPA, LENGTH), 0);
	before = stats().kind[KVMFAULT_KIND_UFFD];
	for (i = 0; i < THREADS; i++)
		write_all((void *)i);
	ck_assert_uint_eq(stats().kind[KVMFAULT_KIND_UFFD], before);
	expect_saved(0);
	free(saved);
}

/* ---- past the mappings ---- */

/* By the descriptor: nobody is asked, so the page has to be there before. */
TEST(new, written_by_the_descriptor)
{
	uint64_t i;

	ck_assert_int_eq(new_memory(NULL), 0);
	add_region();
	ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA + 3 * PAGE, 1, true), 0);
	ck_assert_int_eq(pwrite(backing, "four", 4, 3 * PAGE), 4);
	for (i = 1; i < PAGE / 8; i++)
		ck_assert_uint_eq(((uint64_t *)(host + 3 * PAGE))[i],
				  word(3, i));
	ck_assert_int_eq(memcmp(host + 3 * PAGE, "four", 4), 0);
}

/* Why the library does not forbid it by a seal: see the header. */
TEST(new, sealed_file_can_neither_be_shared_nor_discarded)
{
	int fd = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	ck_assert_int_eq(ftruncate(fd, LENGTH), 0);
	ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);
	ck_assert_int_eq(fallocate(fd, FALLOC_FL_PUNCH_HOLE |
				   FALLOC_FL_KEEP_SIZE, 0, PAGE), -1);
	ck_assert_ptr_eq(mmap(NULL, LENGTH, PROT_READ | PROT_WRITE,
			      MAP_SHARED, fd, 0), MAP_FAILED);
	close(fd);
}

/* ---- refused ---- */

TEST(new, preallocated)
{
	ck_assert_int_eq(fallocate(backing, 0, (PAGES - 1) * PAGE, PAGE), 0);
	ck_assert_int_eq(new_memory(NULL), -EEXIST);
	/* It is as it was: readable, and writable. */
	*(volatile char *)host = 1;
}

TEST(new, touched_before)
{
	host[3 * PAGE] = 42;
	ck_assert_int_eq(new_memory(NULL), -EEXIST);
	ck_assert_int_eq(host[3 * PAGE], 42);
	ck_assert_int_eq(fallocate(backing, FALLOC_FL_PUNCH_HOLE |
				   FALLOC_FL_KEEP_SIZE, 0, LENGTH), 0);
	ck_assert_int_eq(new_memory(NULL), 0);
}

/* What would be discarded in one place and read in another. */
TEST_EACH(new, mapped_otherwise, 5)
{
	static const struct {
		int flags;
		bool named, other;
		off_t offset;
	} as[] = {
		{ MAP_SHARED | MAP_ANONYMOUS, false, false, 0 },
		{ MAP_PRIVATE, false, false, 0 },
		{ MAP_PRIVATE, true, false, 0 },
		{ MAP_SHARED, true, false, PAGE },
		{ MAP_SHARED, true, true, 0 },
	};
	int other = memfd_create("other", MFD_CLOEXEC);
	int mapped = as[_i].other ? other : backing;

	ck_assert_int_eq(ftruncate(backing, LENGTH + PAGE), 0);
	ck_assert_int_eq(ftruncate(other, LENGTH), 0);
	host = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, as[_i].flags,
		    as[_i].flags & MAP_ANONYMOUS ? -1 : mapped, as[_i].offset);
	ck_assert_ptr_ne(host, MAP_FAILED);
	if (!as[_i].named)
		backing = 0;
	ck_assert_int_eq(new_memory(NULL), -EINVAL);
	ck_assert_ptr_null(memory);
	/* It is as it was: readable, and writable. */
	*(volatile char *)host = 1;
}

/* The snapshot's mapping shows zeros behind a cut, up to the end of the page. */
TEST(new, mapped_image_is_cut_off)
{
	const void *mapped = mmap(NULL, LENGTH, PROT_READ, MAP_SHARED, image,
				  0);

	ck_assert_int_eq(kvmfault_source_memory(mapped, LENGTH, &source), 0);
	source.file = image;
	ck_assert_int_eq(new_memory(NULL), 0);
	add_region();
	ck_assert_int_eq(ftruncate(image, 3 * PAGE + 100), 0);
	ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA + 3 * PAGE, 1, false),
			 -ENODATA);
	ck_assert(has_data(host + 2 * PAGE, 2));
}

static int open_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int fd = kvmfault__uffd_open(KVMFAULT__UFFD_DEVICE |
				     KVMFAULT__UFFD_SYSCALL);

	if (fd >= 0 && ioctl(fd, UFFDIO_API, &api)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Of what is registered another userfaultfd gets nothing. */
static bool is_registered(void *address)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)address, .len = PAGE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int fd = open_uffd(), ret = ioctl(fd, UFFDIO_REGISTER, &reg);
	bool busy = ret < 0 && errno == EBUSY;

	close(fd);
	return busy;
}

/* Nobody reads zeros where it was moved to, then and when it is freed. */
TEST(new, moved_by_mremap)
{
	void *place = mmap(NULL, LENGTH, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ck_assert_int_eq(new_memory(NULL), 0);
	ck_assert(has_data(host, 0));
	ck_assert_ptr_eq(mremap(host, LENGTH, LENGTH, MREMAP_MAYMOVE |
				MREMAP_FIXED, place), place);
	ck_assert(is_registered((char *)place + PAGE));
	ck_assert(has_data(place, 0));
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	memory = NULL;
	ck_assert(is_registered((char *)place + PAGE));
}

TEST(new, mapped_privately_too)
{
	struct kvmfault_mapping_options options = {
		.size = sizeof(options),
		.host = (uintptr_t)mmap(NULL, LENGTH, PROT_READ | PROT_WRITE,
					MAP_PRIVATE, backing, 0),
	};
	struct kvmfault_mapping *mapping;

	ck_assert_int_eq(new_memory(NULL), 0);
	add_region();
	ck_assert_int_eq(kvmfault_mapping_add(memory, &options, &mapping),
			 -EINVAL);
	ck_assert(has_data(host, 0));
}

TEST(new, image_is_shorter)
{
	ck_assert_int_eq(ftruncate(image, LENGTH - 1), 0);
	ck_assert_int_eq(kvmfault_source_file(image, &source), 0);
	ck_assert_int_eq(new_memory(NULL), -ENODATA);
}

TEST(new, not_mapped)
{
	munmap(host, LENGTH);
	/* Where the kernel puts nothing unasked, as it may at once there. */
	host = (char *)(1UL << 20);
	ck_assert_int_lt(new_memory(NULL), 0);
	ck_assert_ptr_null(memory);
}

TEST(new, registered_by_another)
{
	struct kvmfault_vm *other;

	ck_assert_int_eq(new_memory(NULL), 0);
	ck_assert_int_eq(kvmfault_vm_new(NULL, &other), 0);
	{
		struct kvmfault_memory_options options = {
			.size = sizeof(options), .host = host,
			.length = LENGTH, .fd = backing, .source = &source,
		};
		struct kvmfault_memory *second;

		ck_assert_int_eq(kvmfault_memory_adopt(other, &options,
						     &second), -EBUSY);
		ck_assert_ptr_null(second);
	}
	ck_assert_int_eq(kvmfault_vm_free(other), 0);
	ck_assert(has_data(host, 0));
}

/* ---- userfaultfds that others opened ---- */

TEST(new, adopted)
{
	struct kvmfault_uffd_options options = {
		.size = sizeof(options), .fd = open_uffd(),
	};
	struct kvmfault_uffd *uffd;

	ck_assert_int_eq(kvmfault_uffd_new(vm, &options, &uffd), 0);
	close(options.fd);	/* the library has its own */
	ck_assert_int_eq(new_memory(uffd), 0);
	touch_all(host, host);
	check_fetched_once();
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	memory = NULL;
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
}

TEST(new, adopted_without_a_handshake)
{
	struct kvmfault_uffd_options options = {
		.size = sizeof(options),
		.fd = kvmfault__uffd_open(KVMFAULT__UFFD_DEVICE |
					  KVMFAULT__UFFD_SYSCALL),
	};
	struct kvmfault_uffd *uffd;

	ck_assert_int_eq(kvmfault_uffd_new(vm, &options, &uffd), -EINVAL);
	close(options.fd);
}

TEST(new, adopted_that_would_block)
{
	struct kvmfault_uffd_options options = {
		.size = sizeof(options), .fd = open_uffd(),
	};
	struct kvmfault_uffd *uffd;

	fcntl(options.fd, F_SETFL, 0);
	ck_assert_int_eq(kvmfault_uffd_new(vm, &options, &uffd), -EINVAL);
	close(options.fd);
}

/* What KVM touches they do not report: the guest would die of it. */
TEST_EACH(new, adopted_that_hears_no_kernel, 2)
{
	struct uffdio_api api = {
		.api = UFFD_API, .features = _i ? UFFD_FEATURE_SIGBUS : 0,
	};
	struct kvmfault_uffd_options options = { .size = sizeof(options) };
	struct kvmfault_uffd *uffd;

	options.fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK |
				  (_i ? 0 : UFFD_USER_MODE_ONLY));
	ck_assert_int_ge(options.fd, 0);
	ck_assert_int_eq(ioctl(options.fd, UFFDIO_API, &api), 0);
	ck_assert_int_eq(kvmfault_uffd_new(vm, &options, &uffd), -EINVAL);
	ck_assert_ptr_null(uffd);
	close(options.fd);
}

/* Events, too, are read in time: what the library asks of it waits for nobody. */
TEST(new, adopted_with_events)
{
	struct uffdio_api api = {
		.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE |
			UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMAP,
	};
	struct kvmfault_uffd_options options = {
		.size = sizeof(options),
		.fd = kvmfault__uffd_open(KVMFAULT__UFFD_DEVICE |
					  KVMFAULT__UFFD_SYSCALL),
	};
	struct kvmfault_uffd *uffd;

	ck_assert_int_eq(ioctl(options.fd, UFFDIO_API, &api), 0);
	ck_assert_int_eq(kvmfault_uffd_new(vm, &options, &uffd), 0);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
	close(options.fd);
}

/* A device process: maps the memory at an address of its own, and sends its
 * userfaultfd. */
static char *be_device(int to)
{
	char *address = mmap(NULL, LENGTH, PROT_READ, MAP_SHARED, backing, 0);

	signal(SIGBUS, SIG_DFL);
	if (!pass_fd(to, open_uffd(), (uintptr_t)address))
		_exit(99);
	return address;
}

static void wait_for_go(int from)
{
	char go;

	if (read(from, &go, 1) != 1)
		_exit(99);
}

/* Reads when it is told to, and ends with how many were wrong. */
static void read_from(int to, uint64_t page)
{
	char *address = be_device(to);
	uint64_t wrong = 0;

	wait_for_go(to);
	for (; page < PAGES; page++)
		wrong += !has_data(address + page * PAGE, page);
	_exit(wrong > 90 ? 90 : (int)wrong);
}

static void read_all(int to)
{
	read_from(to, 0);
}

static void read_the_last(int to)
{
	read_from(to, PAGES - 1);
}

static pid_t child;
static int channel[2];
static struct kvmfault_uffd *remote;
static struct kvmfault_mapping *remote_mapping;

static void start_device(void (*run)(int to))
{
	struct kvmfault_mapping_options options = { .size = sizeof(options) };
	struct kvmfault_uffd_options uffd = {
		.size = sizeof(uffd), .remote = true,
	};

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, channel), 0);
	child = fork();
	if (!child)
		run(channel[1]);
	uffd.fd = take_fd(channel[0], &options.host);
	ck_assert_int_ge(uffd.fd, 0);
	ck_assert_int_eq(kvmfault_uffd_new(vm, &uffd, &remote), 0);
	close(uffd.fd);
	options.uffd = remote;
	ck_assert_int_eq(kvmfault_mapping_add(memory, &options,
					      &remote_mapping), 0);
}

static int end_device(void)
{
	int status;

	ck_assert_int_eq(write(channel[0], "x", 1), 1);
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	return status;
}

TEST(minor_window, another_process_is_served)
{
	int status;

	start_device(read_all);
	ck_assert(has_data(host + 3 * PAGE, 3));
	status = end_device();
	ck_assert(WIFEXITED(status));
	ck_assert_int_eq(WEXITSTATUS(status), 0);
	check_fetched_once();
	ck_assert_int_eq(kvmfault_mapping_remove(remote_mapping), 0);
	ck_assert_int_eq(kvmfault_uffd_free(remote), 0);
}

TEST(minor_window, another_process_never_reads_zero)
{
	int status;

	start_device(read_the_last);
	ck_assert_int_eq(kvmfault_mapping_remove(remote_mapping), 0);
	ck_assert_int_eq(kvmfault_uffd_free(remote), 0);
	status = end_device();
	ck_assert(WIFSIGNALED(status));
	ck_assert_int_eq(WTERMSIG(status), SIGBUS);
}

TEST(minor_window, another_process_that_is_gone)
{
	int status;

	start_device(read_the_last);
	kill(child, SIGKILL);
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert(has_data(host, 0));
	ck_assert_int_eq(kvmfault_mapping_remove(remote_mapping), 0);
	ck_assert_int_eq(kvmfault_uffd_free(remote), 0);
}

/* ---- the VMM's own loop ---- */

static atomic_bool done;

static void *touch_one(void *arg)
{
	ck_assert(has_data(arg, 9));
	atomic_store(&done, true);
	return NULL;
}

TEST(minor_window, dispatched_by_the_vmm)
{
	struct kvmfault_service_options none = { .size = sizeof(none) };
	pthread_t thread;

	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_int_eq(kvmfault_service_new(vm, &none, &service), 0);
	pthread_create(&thread, NULL, touch_one, host + 9 * PAGE);
	while (!atomic_load(&done)) {
		ck_assert_int_eq(kvmfault_service_dispatch(service), 0);
		sched_yield();
	}
	pthread_join(thread, NULL);
	ck_assert_uint_eq(reads[9], 1);
}

TEST(minor_window, sleepers_wait_for_the_next_service)
{
	struct kvmfault_service_options options = {
		.size = sizeof(options), .threads = 1,
	};
	pthread_t thread;

	ck_assert_int_eq(kvmfault_service_free(service), 0);
	pthread_create(&thread, NULL, touch_one, host + 9 * PAGE);
	ck_assert_int_eq(kvmfault_service_new(vm, &options, &service), 0);
	pthread_join(thread, NULL);
	ck_assert(atomic_load(&done));
}

/* The work of a vCPU that delegates, which needs no KVM: its page is said to be
 * present, and is not any more, so the kernel's own access to it sleeps until the one
 * thread of the service has answered. */
TEST(window, worker_sleeps_on_a_page)
{
	struct kvmfault_service_options options = {
		.size = sizeof(options), .threads = 1,
	};
	struct kvmfault__memory_fault record = {
		.gpa = GPA + 3 * PAGE, .size = PAGE,
	};
	struct kvm_run run = { .exit_reason = KVMFAULT__EXIT_MEMORY_FAULT };
	struct kvmfault_vcpu_options of_vcpu = {
		.size = sizeof(of_vcpu), .fd = image, .run = &run,
		.profile = KVMFAULT_PROFILE_DELEGATE,
	};
	struct kvmfault_stats stats = { .size = sizeof(stats) };
	struct kvmfault_vcpu *vcpu;
	uint64_t messages;

	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_int_eq(kvmfault_service_new(vm, &options, &service), 0);
	ck_assert_int_eq(kvmfault_vcpu_new(vm, &of_vcpu, &vcpu), 0);
	ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA + 3 * PAGE, 1, false), 0);
	ck_assert_int_eq(kvmfault_vm_stats(vm, &stats), 0);
	messages = stats.kind[KVMFAULT_KIND_UFFD];
	ck_assert_int_eq(fallocate(backing, FALLOC_FL_PUNCH_HOLE |
				   FALLOC_FL_KEEP_SIZE, 3 * PAGE, PAGE), 0);
	memcpy(&run.hw, &record, sizeof(record));
	ck_assert_int_eq(kvmfault_vcpu_handle(vcpu, -1, EFAULT), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(kvmfault_vm_stats(vm, &stats), 0);
	ck_assert_uint_eq(stats.kind[KVMFAULT_KIND_UFFD], messages + 1);
	kvmfault_vcpu_free(vcpu);
}
TEST_ALSO(memory, worker_sleeps_on_a_page);

/* ---- a thread that is on its way to sleep ---- */

#define REMOVALS 2000
#define MOST 8000U		/* turns of a loop, until the page is touched */

static char *removed;
static atomic_uint touched, removals, not_zero;

static void *touch_in_each_round(void *arg)
{
	unsigned int round, turns;

	for (round = 1; round <= REMOVALS; round++) {
		while (atomic_load(&removals) < round)
			sched_yield();
		atomic_fetch_add(&touched, 1);
		for (turns = round * 7919 % MOST; turns; turns--)
			__asm__ volatile("" ::: "memory");
		if (*(volatile uint64_t *)(removed + 3 * PAGE))
			atomic_fetch_add(&not_zero, 1);
		atomic_fetch_add(&touched, 1);
	}
	return arg;
}

static void wait_until_touched(unsigned int times)
{
	while (atomic_load(&touched) < times)
		sched_yield();
}

/* The kernel wakes sleepers, and some faults that began before go to sleep after
 * that: seen about once in 3,000 times. The page is discarded, and read as zeros
 * with and without the mapping. */
TEST(memory, mapping_removed_as_a_thread_touches_it)
{
	struct kvmfault_mapping_options options = { .size = sizeof(options) };
	struct kvmfault_mapping *mapping;
	unsigned int round;
	pthread_t thread;

	ck_assert_int_eq(kvmfault_uffd_new(vm, NULL, &options.uffd), 0);
	ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA, LENGTH, false), 0);
	removed = map_backing();
	options.host = (uintptr_t)removed;
	ck_assert_int_eq(pthread_create(&thread, NULL, touch_in_each_round,
					NULL), 0);
	for (round = 1; round <= REMOVALS; round++) {
		ck_assert_int_eq(kvmfault_discard(vm, 0, GPA + 3 * PAGE, PAGE),
				 0);
		ck_assert_int_eq(kvmfault_mapping_add(memory, &options,
						      &mapping), 0);
		atomic_store(&removals, round);
		wait_until_touched(2 * round - 1);
		ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
		wait_until_touched(2 * round);
	}
	pthread_join(thread, NULL);
	ck_assert_uint_eq(not_zero, 0);
	ck_assert_int_eq(kvmfault_uffd_free(options.uffd), 0);
}

/* ---- memory that failed ---- */

static sigjmp_buf after_sigbus;
static siginfo_t sigbus;

static void on_sigbus(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	sigbus = *info;
	siglongjmp(after_sigbus, 1);
}

/* Does a read of it end in a SIGBUS for failed memory? */
static bool fails(const char *address)
{
	struct sigaction action = {
		.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO,
	};

	sigaction(SIGBUS, &action, NULL);
	if (!sigsetjmp(after_sigbus, 1)) {
		*(const volatile char *)address;
		return false;
	}
	/* A kernel without CONFIG_MEMORY_FAILURE gives user mode another code;
	 * KVM's threads get this one from any kernel. */
	if (sigbus.si_code == BUS_ADRERR) {
		sigbus.si_code = BUS_MCEERR_AR;
		sigbus.si_addr_lsb = 12;
	}
	ck_assert_int_eq(sigbus.si_code, BUS_MCEERR_AR);
	return true;
}

static int lost_at_source(void *data, uint64_t offset, void *buffer,
			  size_t length)
{
	if (offset <= 7 * PAGE && offset + length > 7 * PAGE)
		return -EHWPOISON;
	return counting_read(data, offset, buffer, length);
}

static void up_lost(void)
{
	up();
	source.read = lost_at_source;
	ck_assert_int_eq(new_memory(NULL), 0);
	add_region();
}

TEST_GROUP(failed, up_lost, down);

TEST(failed, page_that_is_lost_at_the_source)
{
	struct kvmfault_mapping_options options = { .size = sizeof(options) };
	struct kvmfault_mapping *mapping;
	char *second = map_backing();

	options.host = (uintptr_t)second;
	ck_assert_int_eq(kvmfault_mapping_add(memory, &options, &mapping), 0);
	ck_assert(fails(second + 7 * PAGE));
	ck_assert(fails(host + 7 * PAGE));
	ck_assert(has_data(second + 6 * PAGE, 6));
	ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA + 7 * PAGE, 1, false),
			 -EHWPOISON);
	ck_assert_int_eq(kvmfault_vm_handle_sigbus(vm, &sigbus), -EHWPOISON);
	/* The guest gave it up: it is memory again. */
	ck_assert_int_eq(kvmfault_discard(vm, 0, GPA + 7 * PAGE, PAGE), 0);
	ck_assert(!fails(second + 7 * PAGE));
	ck_assert_int_eq(second[7 * PAGE], 0);
	second[7 * PAGE] = 5;
	ck_assert_int_eq(host[7 * PAGE], 5);
}

/* In another process, too, where nothing takes a marker out but what comes into
 * its place. Ends with 0, or which step was wrong. */
static void read_what_is_lost(int to)
{
	char *lost = be_device(to) + 7 * PAGE;

	wait_for_go(to);
	if (!fails(lost))
		_exit(1);
	if (write(to, "f", 1) != 1)
		_exit(99);
	wait_for_go(to);
	if (fails(lost))
		_exit(2);
	if (*(const volatile char *)lost)
		_exit(3);
	if (write(to, "r", 1) != 1)
		_exit(99);
	wait_for_go(to);
	_exit(*(const volatile char *)lost == 5 ? 0 : 4);
}

static void let_go_on(void)
{
	char answer;

	ck_assert_int_eq(write(channel[0], "x", 1), 1);
	ck_assert_int_eq(read(channel[0], &answer, 1), 1);
}

TEST(failed, page_that_another_process_has_lost)
{
	int status;

	start_device(read_what_is_lost);
	let_go_on();
	ck_assert_int_eq(kvmfault_discard(vm, 0, GPA + 7 * PAGE, PAGE), 0);
	/* Nothing came but a hole. */
	ck_assert_int_eq(kvmfault__memory_resident(memory, 7 * PAGE, PAGE), 0);
	let_go_on();
	host[7 * PAGE] = 5;
	status = end_device();
	ck_assert(WIFEXITED(status));
	ck_assert_int_eq(WEXITSTATUS(status), 0);
	ck_assert_int_eq(kvmfault_mapping_remove(remote_mapping), 0);
	ck_assert_int_eq(kvmfault_uffd_free(remote), 0);
}

TEST(failed, marker_of_somebodys)
{
	struct kvmfault__uffdio_poison mark = {
		.range = { (uintptr_t)host + 9 * PAGE, PAGE },
	};
	const struct kvmfault__mappings *all = atomic_load(&memory->mappings);

	ck_assert_int_eq(ioctl(all->mapping[0]->uffd->fd,
			       KVMFAULT__UFFDIO_POISON, &mark), 0);
	ck_assert(fails(host + 9 * PAGE));
	ck_assert_int_eq(kvmfault_vm_handle_sigbus(vm, &sigbus), 0);
	ck_assert(has_data(host + 9 * PAGE, 9));
	/* Its signal comes late for another thread. */
	ck_assert_int_eq(kvmfault_vm_handle_sigbus(vm, &sigbus), 0);
	ck_assert(has_data(host + 9 * PAGE, 9));
}

/* Who maps it is told by a signal, and so is who asks. */
static int break_page(char *page)
{
	const struct sigaction action = {
		.sa_sigaction = on_sigbus,
		.sa_flags = SA_SIGINFO,
	};

	ck_assert_int_eq(sigaction(SIGBUS, &action, NULL), 0);
	return sigsetjmp(after_sigbus, 1) ? 0 :
	       madvise(page, PAGE, MADV_HWPOISON);
}

TEST(failed, page_that_fails)
{
	ck_assert(has_data(host + 9 * PAGE, 9));
	if (break_page(host + 9 * PAGE)) {
		/* Not built into this kernel, or not ours to do. */
		ck_assert(errno == EINVAL || errno == EPERM);
		return;
	}
	ck_assert(fails(host + 9 * PAGE));
	ck_assert_int_eq(kvmfault_vm_handle_sigbus(vm, &sigbus), -EHWPOISON);
	ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA + 9 * PAGE, 1, false),
			 -EHWPOISON);
}

/* ---- descriptors ---- */

static int source_of(int fd)
{
	struct kvmfault_source made = { .size = sizeof(made) };
	char first = 0;
	int err = kvmfault_source_file(fd, &made);

	if (!err)
		err = made.read(made.data, 0, &first, 1);
	return err ? err : first;
}

TEST_GROUP(descriptors, NULL, NULL);

/* A legal one, of a process that has closed its standard input. */
TEST(descriptors, descriptor_0)
{
	char name[] = "/tmp/kvmfault-XXXXXX";
	struct kvmfault_features features = { .size = sizeof(features) };
	int fd = mkstemp(name), other;

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, "x", 1), 1);
	ck_assert_int_eq(dup2(fd, 0), 0);
	ck_assert_int_eq(source_of(0), 'x');
	/* It is asked, and is no KVM; none is not the same. */
	ck_assert_int_eq(kvmfault_probe(0, -1, &features), 0);
	ck_assert_int_eq(features.feature[
		KVMFAULT_FEATURE_PRE_FAULT_MEMORY].error, -ENOTTY);
	ck_assert_int_eq(features.feature[
		KVMFAULT_FEATURE_USER_MEMORY2].error, -EBADF);
	other = open(name, O_WRONLY);
	ck_assert_int_eq(source_of(other), -EACCES);
	close(other);
	other = open(name, O_PATH);
	ck_assert_int_eq(source_of(other), -EACCES);
	close(other);
	ck_assert_int_eq(source_of(other), -EBADF);
	unlink(name);
}

/* O_NONBLOCK belongs to whoever has the descriptor: without it, and without a
 * message, a read of it would sleep. */
TEST(new, read_of_one_that_was_made_to_block)
{
	struct kvmfault_uffd *uffd;
	struct uffd_msg message;

	ck_assert_int_eq(kvmfault_uffd_new(vm, NULL, &uffd), 0);
	ck_assert_int_eq(fcntl(kvmfault_uffd_fd(uffd), F_SETFL, 0), 0);
	ck_assert_int_eq(kvmfault__uffd_read(uffd->fd, &message, sizeof(message)),
			 -EAGAIN);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
}

int main(void)
{
	need("uffd");
	return run_suite("live-uffd");
}
