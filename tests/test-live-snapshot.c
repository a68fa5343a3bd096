/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * "Snapshot a VM that is not yet whole" of doc/integration.md, on the real
 * userfaultfd: half of a memory has come, some of it was written, some discarded.
 * Its snapshot has the pages that are there; the rest is a reference to its
 * source. A second memory, of that snapshot, has every byte of that moment,
 * whatever is written to the first one meanwhile, and the first one's source was
 * asked for nothing because of it.
 */

#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib/setup/setup.h"
#include "need.h"
#include "unit.h"

#define PAGES 256ULL
#define LENGTH (PAGES * PAGE)
#define WORDS (PAGES / 64)
#define GPA 0x40000000ULL
#define GPA2 0x80000000ULL

static struct kvmfault_vm *vm;
static struct kvmfault_service *service;
static struct kvmfault_memory *memory, *second;
static char *host, *restored;
static atomic_uint reads;	/* of the first one's source, pages */
static atomic_bool go_on;

/* The snapshot: its file, which pages are in it, and which are zeros. */
static char *saved;
static uint64_t in_it[WORDS], zeros[WORDS];
static atomic_uint saves[PAGES];

static bool bit(const uint64_t *bitmap, uint64_t page)
{
	return bitmap[page / 64] >> page % 64 & 1;
}

static unsigned char byte_of(uint64_t page)
{
	return (unsigned char)(page % 200 + 1);
}

static int read_source(void *data, uint64_t offset, void *buffer, size_t length)
{
	size_t at;

	(void)data;
	atomic_fetch_add(&reads, (unsigned int)(length / PAGE));
	for (at = 0; at < length; at += PAGE)
		memset((char *)buffer + at, byte_of((offset + at) / PAGE), PAGE);
	return 0;
}

/* The second memory's: the snapshot, and what it refers to. */
static int read_layers(void *data, uint64_t offset, void *buffer, size_t length)
{
	size_t at;
	int err = 0;

	for (at = 0; at < length && !err; at += PAGE) {
		uint64_t page = (offset + at) / PAGE;
		char *to = (char *)buffer + at;

		if (bit(in_it, page))
			memcpy(to, saved + page * PAGE, PAGE);
		else if (bit(zeros, page))
			memset(to, 0, PAGE);
		else
			err = read_source(data, page * PAGE, to, PAGE);
	}
	return err;
}

/* The resolver: a page that is about to be written is put into the snapshot. */
static int save_page(void *data, struct kvmfault_request *request)
{
	(void)data;
	memcpy(saved + request->offset, request->host, PAGE);
	atomic_fetch_add(&saves[request->offset / PAGE], 1);
	return KVMFAULT_VERDICT_RESOLVED;
}

static struct kvmfault_memory *
new_memory(uint64_t gpa, bool write_protect, char **at,
	   int (*read)(void *data, uint64_t offset, void *buffer,
		       size_t length))
{
	const struct kvmfault_source source = {
		.size = sizeof(source), .read = read, .length = LENGTH,
	};
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = LENGTH, .source = &source,
		.write_protect = write_protect,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = gpa, .length = LENGTH,
	};

	options.fd = memfd_create("guest", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(options.fd, LENGTH), 0);
	*at = options.host = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE,
				  MAP_SHARED, options.fd, 0);
	ck_assert_int_eq(kvmfault_memory_adopt(vm, &options, &region.memory),
			 0);
	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
	return region.memory;
}

static void up(void)
{
	static const struct kvmfault_resolver resolver = {
		.size = sizeof(resolver), .name = "snapshot",
		.pages = 1U << KVMFAULT_PAGE_PROTECTED, .resolve = save_page,
	};
	struct kvmfault_service_options threads = {
		.size = sizeof(threads), .threads = 2,
	};

	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	ck_assert_int_eq(kvmfault_resolver_add(vm, &resolver), 0);
	ck_assert_int_eq(kvmfault_service_new(vm, &threads, &service), 0);
	memory = new_memory(GPA, true, &host, read_source);
	saved = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(saved, MAP_FAILED);
}

static void down(void)
{
	ck_assert_int_eq(kvmfault_region_remove(vm, 0, GPA), 0);
	ck_assert_int_eq(kvmfault_region_remove(vm, 0, GPA2), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	ck_assert_int_eq(kvmfault_memory_free(second), 0);
	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
}

/* Every second page has come, the guest has written to some of them, and has
 * given some up, of both kinds. */
static void use_half(char *then)
{
	uint64_t page;

	for (page = 0; page < PAGES; page++) {
		then[page] = (char)byte_of(page);
		if (page % 2)
			ck_assert_uint_eq((unsigned char)host[page * PAGE],
					  byte_of(page));
		if (page % 8 == 1)
			memset(host + page * PAGE, then[page] = (char)250, PAGE);
		if (page % 16 < 12)
			continue;
		ck_assert_int_eq(kvmfault_discard(vm, 0, GPA + page * PAGE,
						  PAGE), 0);
		then[page] = 0;
	}
}

/* It writes to all that was not absent, from one end to the other. */
static void *write_on(void *unused)
{
	uint64_t page;

	while (!atomic_load(&go_on))
		sched_yield();
	for (page = PAGES; page--;)
		if (bit(in_it, page))
			memset(host + page * PAGE, 251, PAGE);
	return unused;
}

static int export(uint32_t states, uint64_t *bitmap)
{
	return kvmfault_memory_bitmap(memory, 0, LENGTH, states, bitmap,
				      WORDS * sizeof(*bitmap));
}

/* The guest stands still meanwhile. */
static void begin_snapshot(void)
{
	uint64_t page;

	ck_assert_int_eq(export(KVMFAULT_STATE_DISCARDED, zeros), 0);
	ck_assert_int_eq(export(KVMFAULT_STATE_PRESENT | KVMFAULT_STATE_CLAIMED,
				in_it), 0);
	for (page = 0; page < PAGES; page++)
		if (bit(in_it, page))
			ck_assert_int_eq(kvmfault_protect(vm, 0, GPA + page *
							  PAGE, PAGE), 0);
}

static void sweep(void)
{
	uint64_t page;

	for (page = 0; page < PAGES; page++)
		if (bit(in_it, page))
			ck_assert_int_eq(kvmfault_ensure(vm, 0, GPA + page *
							 PAGE, PAGE, true), 0);
}

static bool is_all(const char *at, char byte)
{
	return *at == byte && !memcmp(at, at + 1, PAGE - 1);
}

TEST_GROUP(snapshot, up, down);

TEST(snapshot, of_a_vm_that_is_not_yet_whole)
{
	struct kvmfault_memory_counts counts = { .size = sizeof(counts) };
	unsigned int asked;
	pthread_t thread;
	char then[PAGES];
	uint64_t page;

	use_half(then);
	pthread_create(&thread, NULL, write_on, NULL);
	asked = atomic_load(&reads);
	begin_snapshot();
	atomic_store(&go_on, true);
	sweep();
	pthread_join(thread, NULL);
	ck_assert_uint_eq(atomic_load(&reads), asked);
	ck_assert_int_eq(kvmfault_memory_count(memory, 0, LENGTH, &counts), 0);
	ck_assert_uint_eq(counts.absent, PAGES * 6 / 16);
	ck_assert_uint_eq(counts.discarded, PAGES * 4 / 16);
	ck_assert_uint_eq(counts.present, PAGES * 6 / 16);
	ck_assert_uint_eq(counts.to_save, 0);
	for (page = 0; page < PAGES; page++)
		ck_assert_uint_eq(atomic_load(&saves[page]), bit(in_it, page));

	second = new_memory(GPA2, false, &restored, read_layers);
	for (page = 0; page < PAGES; page++)
		ck_assert(is_all(restored + page * PAGE, then[page]));
	ck_assert_int_eq(kvmfault_memory_settle(second, NULL), 0);
	ck_assert_int_eq(kvmfault_memory_settle(memory, NULL), -EBUSY);
}

int main(void)
{
	need("uffd");
	return run_suite("live-snapshot");
}
