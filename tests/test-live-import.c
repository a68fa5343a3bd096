/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * States in a file, on the real userfaultfd: each state that an owner can have
 * left, with and without the page in the backing, becomes a true one, for
 * small, minor and huge pages; a file that is not this memory's is refused, and
 * stays as it is.
 */

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/core/bitmap.h"
#include "lib/setup/setup.h"
#include "need.h"
#include "unit.h"

#define HUGE (2ULL << 20)
#define MOST 40ULL		/* pages: two words of states, and a half */
#define HEADER 4096U

enum kind { SMALL, MINOR, LARGE, LARGE_MINOR };

static struct kvmfault_vm *vm;
static struct kvmfault_service *service;
static struct kvmfault_memory *memory;
static enum kind kind;
static uint64_t size, pages, length;	/* of a page; and of the memory */
static int fd, states_fd;
static char *host;
static unsigned int reads;
static char why[1024];
static bool lost;		/* the source has lost its data */
static atomic_bool wait_in_discard;

static bool is_minor(void)
{
	return kind == MINOR || kind == LARGE_MINOR;
}

static bool is_large(void)
{
	return kind == LARGE || kind == LARGE_MINOR;
}

static void note_log(void *data, enum kvmfault_log_level level,
		     const char *text)
{
	(void)data;
	(void)level;
	snprintf(why, sizeof(why), "%s", text);
}

static char byte_of(uint64_t page)
{
	return (char)(page + 1);
}

static int read_source(void *data, uint64_t offset, void *buffer, size_t n)
{
	size_t at;

	(void)data;
	if (lost)
		return -EHWPOISON;
	for (at = 0; at < n; at += size, reads++)
		memset((char *)buffer + at, byte_of((offset + at) / size),
		       size);
	return 0;
}

static int adopt_with(int states, uint64_t source_offset)
{
	const struct kvmfault_source source = {
		.size = sizeof(source), .read = read_source,
	};
	const struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = length, .host = host,
		.page_size = size, .fd = fd, .source = &source,
		.source_offset = source_offset, .minor = is_minor(),
		.states_fd = states,
	};

	return kvmfault_memory_adopt(vm, &options, &memory);
}

static int adopt(void)
{
	return adopt_with(states_fd, 0);
}

/* The memory is mapped anew, as another process would: nothing is in page
 * tables. */
static void map(void)
{
	host = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ck_assert_ptr_ne(host, MAP_FAILED);
}

static void let_go(void)
{
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	memory = NULL;
	ck_assert_int_eq(munmap(host, length), 0);
}

/* Called in the middle of a discard, for which settle() waits: by then the
 * states count for nothing. */
static atomic_uint settled_at_discard;

static void note_change(void *data, const struct kvmfault_change *change)
{
	uint32_t settled = 0;

	(void)data;
	if (change->cause != KVMFAULT_CAUSE_DISCARD ||
	    !atomic_load(&wait_in_discard))
		return;
	while (kvmfault__tracked(memory))
		sched_yield();
	if (pread(states_fd, &settled, 4, 12) == 4)
		atomic_store(&settled_at_discard, settled);
}

static void up(void)
{
	static const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops), .log = note_log, .changed = note_change,
	};
	const struct kvmfault_vm_options options = {
		.size = sizeof(options), .ops = &ops,
		.page_size_max = HUGE,
	};
	const struct kvmfault_service_options threads = {
		.size = sizeof(threads), .threads = 1,
	};

	kind = SMALL;
	ck_assert_int_eq(kvmfault_vm_new(&options, &vm), 0);
	ck_assert_int_eq(kvmfault_service_new(vm, &threads, &service), 0);
	states_fd = memfd_create("states", MFD_CLOEXEC);
	fd = -1;
}

static void down(void)
{
	close(fd);
	close(states_fd);
	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
}

/* A new memory with its states, which is let go of. */
static void begin(enum kind of_kind, uint64_t count)
{
	kind = of_kind;
	size = is_large() ? HUGE : PAGE;
	pages = count;
	length = pages * size;
	fd = memfd_create("guest", MFD_CLOEXEC |
			  (is_large() ? MFD_HUGETLB : 0));
	ck_assert_int_eq(ftruncate(fd, (off_t)length), 0);
	map();
	ck_assert_int_eq(adopt(), 0);
	let_go();
}

/* What an owner has left of a page. */
struct left {
	unsigned int state;
	bool is_protected, unsourced, there;
};

static void leave(_Atomic uint64_t *states, uint64_t page,
		  const struct left *left)
{
	_Atomic uint64_t *unsourced = states + (pages + 15) / 16;
	uint64_t bits = left->state | (left->is_protected ? 8 : 0);

	atomic_fetch_or(&states[page / 16], bits << page % 16 * 4);
	kvmfault__bits_change(unsourced, page, 1, left->unsourced);
	if (left->there) {
		char *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED,
				fd, (off_t)(page * size));

		ck_assert_ptr_ne(at, MAP_FAILED);
		memset(at, 'g', size);
		ck_assert_int_eq(munmap(at, size), 0);
	}
}

/* Write the states of all pages, as an owner that was killed has left them. */
static void leave_all(const struct left *left)
{
	size_t bytes = HEADER + (pages + 15) / 16 * 8 + (pages + 63) / 64 * 8;
	char *file = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
			  states_fd, 0);
	uint64_t page;

	ck_assert_ptr_ne(file, MAP_FAILED);
	for (page = 0; page < pages; page++)
		leave((_Atomic uint64_t *)(void *)(file + HEADER), page,
		      &left[page]);
	ck_assert_int_eq(munmap(file, bytes), 0);
}

/* The rule, told in another way than import.c: what the page is afterwards, or
 * the error. */
static int expected(const struct left *left)
{
	bool data = left->there;

	switch (left->state) {
	case KVMFAULT__ABSENT:
		return data && !is_minor() ? -EEXIST : KVMFAULT__ABSENT;
	case KVMFAULT__FETCHING:
	case KVMFAULT__FETCHING_WAITED:
		if (is_minor() && !left->unsourced)
			return KVMFAULT__ABSENT;
		if (data)
			return KVMFAULT__PRESENT;
		return left->unsourced ? KVMFAULT__DISCARDED :
					 KVMFAULT__ABSENT;
	case KVMFAULT__FETCHING_DISCARDED:
		return KVMFAULT__DISCARDED;
	case KVMFAULT__DISCARDED:
		return data ? KVMFAULT__PRESENT : KVMFAULT__DISCARDED;
	case KVMFAULT__PRESENT:
		return data ? KVMFAULT__PRESENT : -ESTALE;
	case KVMFAULT__POISONED:
		return KVMFAULT__POISONED;
	default:
		return -ESTALE;
	}
}

static bool is_resident(uint64_t page)
{
	struct stat stat;

	if (is_large()) {
		ck_assert_int_eq(fstat(fd, &stat), 0);
		return stat.st_blocks;	/* of its only page */
	}
	return lseek(fd, (off_t)(page * size), SEEK_DATA) ==
	       (off_t)(page * size);
}

/* What a thread of this process finds there, or how it fails. */
static void check_bytes(uint64_t page, int state)
{
	const struct kvmfault_region region = {
		.size = sizeof(region), .memory = memory, .length = size,
		.offset = page * size,
	};
	char byte = state == KVMFAULT__PRESENT ? 'g' :
		    state == KVMFAULT__ABSENT ? byte_of(page) : 0;
	int err;

	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
	err = kvmfault_ensure(vm, 0, 0, size, true);
	ck_assert_int_eq(kvmfault_region_remove(vm, 0, 0), 0);
	ck_assert_int_eq(err, state == KVMFAULT__POISONED ? -EHWPOISON : 0);
	if (err)
		return;
	ck_assert_int_eq(host[page * size], byte);
	ck_assert_int_eq(host[page * size + size - 1], byte);
}

static void check_page(uint64_t page, const struct left *left)
{
	int state = expected(left);

	ck_assert_int_eq(kvmfault__page_state(memory, page), state);
	ck_assert(!kvmfault__page_protected(memory, page));
	ck_assert_int_eq(kvmfault__bit(memory->unsourced, page),
			 state != KVMFAULT__ABSENT &&
			 (left->unsourced || left->state != (unsigned)state));
	if (!is_minor() || state != KVMFAULT__ABSENT)
		ck_assert_int_eq(is_resident(page),
				 state == KVMFAULT__PRESENT);
}

/* The combination that this number stands for. */
static struct left left_of(unsigned int number)
{
	return (struct left){
		.state = number & 7,
		.is_protected = number & 8,
		.unsourced = number & 16 || (number & 7) >= KVMFAULT__PRESENT,
		.there = number & 32,
	};
}

static void one_page(enum kind of_kind)
{
	unsigned int i;

	for (i = 0; i < 64; i++) {
		struct left left = left_of(i);
		int state;

		begin(of_kind, 1);
		state = expected(&left);
		leave_all(&left);
		map();
		ck_assert_msg(adopt() == (state < 0 ? state : 0),
			      "state %u, bit %d, there %d: %s", left.state,
			      left.unsourced, left.there, why);
		if (state < 0) {
			ck_assert_ptr_null(memory);
			ck_assert_int_eq(munmap(host, length), 0);
		} else {
			check_page(0, &left);
			check_bytes(0, state);
			let_go();
		}
		close(fd);
		fd = -1;
		close(states_fd);
		states_fd = memfd_create("states", MFD_CLOEXEC);
	}
}

TEST_GROUP(import, up, down);

TEST(import, each_state)
{
	one_page(SMALL);
}

TEST(import, each_state_with_minor_faults)
{
	one_page(MINOR);
}

TEST(import, each_state_of_a_huge_page)
{
	if (have("hugetlb", lacks("hugetlb")))
		one_page(LARGE);
}

TEST(import, each_state_of_a_huge_page_with_minor_faults)
{
	if (have("hugetlb", lacks("hugetlb")))
		one_page(LARGE_MINOR);
}

/* Neighbours of all kinds, and words' borders: no page gets its neighbour's. */
static void many_pages(enum kind of_kind)
{
	struct left left[MOST];
	uint64_t page, n;

	begin(of_kind, MOST);
	for (page = n = 0; page < MOST; n = n * 5 + 7 + page) {
		left[page] = left_of(n % 64);
		if (expected(&left[page]) >= 0)
			page++;
	}
	leave_all(left);
	map();
	ck_assert_msg(!adopt(), "%s", why);
	for (page = 0; page < MOST; page++)
		check_page(page, &left[page]);
	for (page = 0; page < MOST; page++)
		check_bytes(page, expected(&left[page]));
	let_go();
}

TEST(import, neighbours)
{
	many_pages(SMALL);
}

TEST(import, neighbours_with_minor_faults)
{
	many_pages(MINOR);
}

/* An orderly end: all is as it was, and is not fetched again. */
TEST(import, freed_and_taken_up)
{
	struct kvmfault_memory_counts counts = { .size = sizeof(counts) };
	struct kvmfault_region region = {
		.size = sizeof(region), .length = MOST * PAGE,
	};
	uint64_t page;

	begin(SMALL, MOST);
	map();
	ck_assert_int_eq(adopt(), 0);
	region.memory = memory;
	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
	ck_assert_int_eq(kvmfault_ensure(vm, 0, 0, 9 * PAGE, true), 0);
	ck_assert_int_eq(kvmfault_discard(vm, 0, 4 * PAGE, 2 * PAGE), 0);
	ck_assert_int_eq(kvmfault_discard(vm, 0, 20 * PAGE, PAGE), 0);
	host[0] = 'w';
	ck_assert_int_eq(kvmfault_region_remove(vm, 0, 0), 0);
	let_go();
	map();
	reads = 0;
	ck_assert_int_eq(adopt(), 0);
	ck_assert_int_eq(kvmfault_memory_count(memory, 0, length, &counts), 0);
	ck_assert_uint_eq(counts.present, 7);
	ck_assert_uint_eq(counts.discarded, 3);
	ck_assert_uint_eq(counts.absent, MOST - 10);
	for (page = 0; page < MOST; page++)
		ck_assert_int_eq(kvmfault__bit(memory->unsourced, page),
				 page < 9 || page == 20);
	region.memory = memory;
	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
	ck_assert_int_eq(kvmfault_ensure(vm, 0, 0, MOST * PAGE, true), 0);
	ck_assert_uint_eq(reads, MOST - 10);
	ck_assert_int_eq(host[0], 'w');
	ck_assert_int_eq(host[PAGE], byte_of(1));
	ck_assert_int_eq(host[4 * PAGE], 0);
	ck_assert_int_eq(host[20 * PAGE], 0);
	ck_assert_int_eq(host[21 * PAGE], byte_of(21));
	ck_assert_int_eq(kvmfault_region_remove(vm, 0, 0), 0);
	let_go();
}

/* What was settled stays so, even if the VMM has punched it since. */
TEST(import, settled)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .length = MOST * PAGE,
	};

	begin(SMALL, MOST);
	map();
	ck_assert_int_eq(adopt(), 0);
	region.memory = memory;
	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
	ck_assert_int_eq(kvmfault_ensure(vm, 0, 0, MOST * PAGE, true), 0);
	ck_assert_int_eq(kvmfault_memory_settle(memory, NULL), 0);
	ck_assert_int_eq(kvmfault_discard(vm, 0, PAGE, PAGE), 0);
	ck_assert_int_eq(kvmfault_region_remove(vm, 0, 0), 0);
	let_go();
	map();
	reads = 0;
	ck_assert_int_eq(adopt(), 0);
	ck_assert(!kvmfault__tracked(memory));
	ck_assert_int_eq(host[0], byte_of(0));
	ck_assert_int_eq(host[PAGE], 0);
	ck_assert_uint_eq(reads, 0);
	let_go();
}

/* The owner was killed before its memory was made: the file has its length and
 * no number, and whatever is in it counts for nothing. */
TEST(import, not_begun)
{
	const uint64_t none = 0, garbage = 0x4444444444444444ULL;

	begin(SMALL, MOST);
	ck_assert_int_eq(pwrite(states_fd, &none, 8, 0), 8);
	ck_assert_int_eq(pwrite(states_fd, &garbage, 8, HEADER), 8);
	map();
	ck_assert_int_eq(adopt(), 0);
	ck_assert_int_eq(kvmfault__page_state(memory, 0), KVMFAULT__ABSENT);
	let_go();
	map();
	ck_assert_int_eq(adopt(), 0);
	let_go();
}

static void refused(int err, const char *text)
{
	char before[2 * HEADER], after[2 * HEADER];
	ssize_t n = pread(states_fd, before, sizeof(before), 0);

	why[0] = 0;
	ck_assert_int_eq(adopt(), err);
	ck_assert_ptr_null(memory);
	ck_assert_msg(strstr(why, text) && strstr(why, "states_fd"), "%s", why);
	ck_assert_int_eq(pread(states_fd, after, sizeof(after), 0), n);
	if (n > 0)
		ck_assert_mem_eq(before, after, (size_t)n);
}

TEST(import, other_files)
{
	static const uint64_t members[] = { 0, 8, 16, 24, 32, 40, 48, 56, 64 };
	uint64_t value, other;
	size_t i;

	begin(SMALL, MOST);
	map();
	for (i = 0; i < sizeof(members) / sizeof(members[0]); i++) {
		ck_assert_int_eq(pread(states_fd, &value, 8,
				       (off_t)members[i]), 8);
		other = value + 1;
		ck_assert_int_eq(pwrite(states_fd, &other, 8,
					(off_t)members[i]), 8);
		refused(-ESTALE, "no states of this memory");
		ck_assert_int_eq(pwrite(states_fd, &value, 8,
					(off_t)members[i]), 8);
	}
	ck_assert_int_eq(ftruncate(states_fd, HEADER + 8), 0);
	refused(-ESTALE, "length");
	ck_assert_int_eq(ftruncate(states_fd, 0), 0);
	ck_assert_int_eq(adopt(), 0);
	let_go();
	/* Two memories of the same length are told apart by their files. */
	close(fd);
	fd = memfd_create("other", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(fd, (off_t)length), 0);
	map();
	refused(-ESTALE, "another file");
	ck_assert_int_eq(munmap(host, length), 0);
}

TEST(import, other_descriptors)
{
	int mine = states_fd;
	char path[64];

	begin(SMALL, MOST);
	map();
	states_fd = 4095;
	refused(-EBADF, "reading and writing");
	/* What open() or memfd_create() returned when it failed. */
	states_fd = -1;
	refused(-EBADF, "reading and writing");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", mine);
	states_fd = open(path, O_RDONLY | O_CLOEXEC);
	refused(-EBADF, "reading and writing");
	close(states_fd);
	states_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	refused(-ESTALE, "regular file");
	close(states_fd);
	/* The file can't grow. */
	states_fd = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	ck_assert_int_eq(fcntl(states_fd, F_ADD_SEALS, F_SEAL_GROW), 0);
	refused(-EPERM, "room");
	close(states_fd);
	states_fd = mine;
	ck_assert_int_eq(munmap(host, length), 0);
}

TEST(import, what_it_needs)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .states_fd = states_fd,
	};

	begin(SMALL, MOST);
	map();
	options.host = host;
	options.length = length;
	options.fd = fd;
	ck_assert_int_eq(kvmfault_memory_adopt(vm, &options, &memory), -EINVAL);
	ck_assert_ptr_nonnull(strstr(why, "source is not set"));
	ck_assert_int_eq(munmap(host, length), 0);
}

/* ---- what an owner can leave besides states ---- */

static struct kvmfault_region whole(void)
{
	return (struct kvmfault_region){
		.size = sizeof(struct kvmfault_region), .memory = memory,
		.length = length,
	};
}

static void show(void)
{
	struct kvmfault_region region = whole();

	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
}

static void hide(void)
{
	ck_assert_int_eq(kvmfault_region_remove(vm, 0, 0), 0);
}

/* With minor faults a page in flight may be half a page, and without them it
 * is a whole one that a guest may have written to: only an owner of the same
 * kind knows. */
static void other_kind(enum kind first, enum kind next)
{
	const struct left left = {
		.state = KVMFAULT__FETCHING, .there = true,
	};

	begin(first, 1);
	leave_all(&left);
	map();
	kind = next;
	refused(-ESTALE, "minor");
	kind = first;
	ck_assert_int_eq(adopt(), 0);
	let_go();
}

TEST(import, half_a_page_without_minor_faults)
{
	other_kind(MINOR, SMALL);
}

TEST(import, a_whole_page_with_minor_faults)
{
	other_kind(SMALL, MINOR);
}

/* A mapping that the library does not know any more, because settle() failed
 * after it had unregistered that one: what is written there is not lost. */
static void written_where_nothing_is_registered(enum kind of_kind)
{
	struct kvmfault_mapping_options options = { .size = sizeof(options) };
	struct kvmfault_mapping *gone, *second;
	char *other, *at;

	begin(of_kind, MOST);
	map();
	ck_assert_int_eq(adopt(), 0);
	other = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ck_assert_ptr_ne(other, MAP_FAILED);
	options.host = (uintptr_t)other;
	ck_assert_int_eq(kvmfault_mapping_add(memory, &options, &gone), 0);
	at = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ck_assert_ptr_ne(at, MAP_FAILED);
	options.host = (uintptr_t)at;
	ck_assert_int_eq(kvmfault_mapping_add(memory, &options, &second), 0);
	show();
	ck_assert_int_eq(kvmfault_ensure(vm, 0, 0, length, true), 0);
	ck_assert_int_eq(kvmfault_discard(vm, 0, 0, 2 * PAGE), 0);
	ck_assert_int_eq(munmap(other, length), 0);
	/* Something else takes its place, which can't be unregistered. */
	ck_assert_int_lt(kvmfault_memory_settle(memory, NULL), 0);
	at[PAGE] = 'w';
	hide();
	let_go();
	ck_assert_int_eq(munmap(at, length), 0);
	map();
	ck_assert_msg(!adopt(), "%s", why);
	show();
	ck_assert_int_eq(kvmfault_ensure(vm, 0, 0, length, true), 0);
	ck_assert_int_eq(host[0], 0);
	ck_assert_int_eq(host[PAGE], 'w');
	hide();
	let_go();
}

TEST(import, written_after_a_settle_that_failed)
{
	written_where_nothing_is_registered(SMALL);
}

TEST(import, written_after_a_settle_that_failed_with_minor_faults)
{
	written_where_nothing_is_registered(MINOR);
}

static void *discard_first(void *arg)
{
	(void)arg;
	ck_assert_int_eq(kvmfault_discard(vm, 0, 0, PAGE), 0);
	return NULL;
}

TEST(import, killed_while_it_is_settled)
{
	pthread_t thread;

	begin(SMALL, MOST);
	map();
	ck_assert_int_eq(adopt(), 0);
	show();
	ck_assert_int_eq(kvmfault_ensure(vm, 0, 0, length, true), 0);
	atomic_store(&settled_at_discard, 2);
	atomic_store(&wait_in_discard, true);
	ck_assert_int_eq(pthread_create(&thread, NULL, discard_first, NULL), 0);
	while (kvmfault__page_state(memory, 0) != KVMFAULT__DISCARDED)
		sched_yield();
	ck_assert_int_eq(kvmfault_memory_settle(memory, NULL), 0);
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	atomic_store(&wait_in_discard, false);
	ck_assert_uint_eq(atomic_load(&settled_at_discard), 1);
	hide();
	let_go();
}

/* The bit of a page that is poisoned does not say that it is zero: an owner
 * that is killed while it has claimed the page again leaves it absent. */
TEST(import, poisoned_in_flight)
{
	begin(SMALL, 1);
	map();
	lost = true;
	ck_assert_int_eq(adopt(), 0);
	show();
	ck_assert_int_eq(kvmfault_ensure(vm, 0, 0, PAGE, false), -EHWPOISON);
	if (kvmfault__page_state(memory, 0) == KVMFAULT__POISONED) {
		ck_assert(!kvmfault__bit(memory->unsourced, 0));
		kvmfault__page_change(memory, 0, KVMFAULT__POISONED,
				      KVMFAULT__FETCHING);
		hide();
		kvmfault__page_change(memory, 0, KVMFAULT__FETCHING,
				      KVMFAULT__POISONED);
		ck_assert(!kvmfault__bit(memory->unsourced, 0));
	} else {
		hide();
	}
	lost = false;
	let_go();
}

/* The last page shows that the files do not go together: the pages before are
 * as they were, in both files. */
TEST(import, nothing_changes_before_a_refusal)
{
	const struct left left[] = {
		{ .state = KVMFAULT__FETCHING_DISCARDED, .there = true },
		{ .state = KVMFAULT__FETCHING, .is_protected = true },
		{ .state = KVMFAULT__PRESENT, .unsourced = true },
	};

	begin(SMALL, 3);
	leave_all(left);
	map();
	refused(-ESTALE, "does not have it");
	ck_assert_int_eq(host[0], 'g');
	ck_assert_int_eq(munmap(host, length), 0);
}

/* A page that is preallocated, but is no data, would never be missed. */
TEST(import, preallocated)
{
	begin(SMALL, MOST);
	ck_assert_int_eq(fallocate(fd, 0, 3 * PAGE, PAGE), 0);
	map();
	ck_assert_int_eq(adopt(), -EEXIST);
	ck_assert_int_eq(munmap(host, length), 0);
}

int main(void)
{
	need("uffd");
	return run_suite("live-import");
}
