/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * resolver-continue.c, and memory with minor faults: pages are in the file or
 * not, and mapped in each mapping or not.
 */

#include <string.h>
#include <sys/mman.h>

#include "bed.h"

static struct kvmfault__answer by_call(uint64_t page)
{
	return bed_resolve(KVMFAULT_KIND_CALL, page, false);
}

static struct kvmfault__answer by_message(uint64_t page)
{
	return bed_resolve(KVMFAULT_KIND_UFFD, page, true);
}

static void up(uint64_t window)
{
	bed_vm();
	bed.minor = true;
	if (window)
		bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = window * PAGE;
	bed_add();
}

static void up_alone(void)
{
	up(0);
}

static size_t continues(void)
{
	return fake_count(FAKE_IOCTL, UFFDIO_CONTINUE);
}

static uint64_t mode;

static bool note_mode(struct fake_call *call)
{
	if (call->number == UFFDIO_REGISTER)
		mode = ((struct uffdio_register *)call->arg)->mode;
	return false;
}

TEST_GROUP(page, up_alone, bed_down);

TEST(page, registered_for_both)
{
	struct kvmfault_mapping_options options = { .size = sizeof(options) };
	struct kvmfault_mapping *mapping;

	fake_on(FAKE_IOCTL, note_mode);
	options.host = (uintptr_t)fake_map(bed.fd);
	ck_assert_int_eq(kvmfault_mapping_add(bed.memory, &options, &mapping),
			 0);
	ck_assert_uint_eq(mode, UFFDIO_REGISTER_MODE_MISSING |
				UFFDIO_REGISTER_MODE_MINOR);
	ck_assert_uint_eq(fake_count(FAKE_MMAP, MAP_SHARED), 1);
	ck_assert(!fake_registered(bed.memory->fill));
	ck_assert(fake_registered(bed.host));
}

TEST(page, absent_page)
{
	struct kvmfault__answer answer = by_call(3);
	const struct fake_call *call;

	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_RETRY);
	ck_assert_str_eq(answer.resolver, "continue");
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_COPY), 0);
	ck_assert_uint_eq(continues(), 1);
	call = fake_nth(FAKE_IOCTL, UFFDIO_CONTINUE, 0);
	ck_assert_uint_eq(call->at, (uintptr_t)bed_page(3));
	ck_assert_uint_eq(call->length, PAGE);
	ck_assert_uint_eq(bed_stats().fetched, 1);
}

static void window_up(void);

TEST_GROUP(window, window_up, bed_down);

TEST(window, window)
{
	ck_assert_int_eq(by_call(5).action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(continues(), 1);
	ck_assert_uint_eq(bed_stats().fetched, 4);
	ck_assert(bed_has(4, bed_byte(4)));
	ck_assert(bed_has(7, bed_byte(7)));
}

/* What a file had before it came into our care is not what it holds. */
TEST(page, preallocated_file)
{
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.length = BED_PAGES * PAGE,
		.source = &source,
	};
	struct kvmfault_memory *memory;
	void *host;

	options.fd = fake_memory(options.length, 0, &host);
	options.host = host;
	fake_put(options.fd, 3 * PAGE);
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory),
			 -EEXIST);
	options.minor = true;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	fake_put(bed.fd, 3 * PAGE);
	by_call(3);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_uint_eq(bed_stats().existed, 0);
}

TEST(page, bad_ones)
{
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.length = BED_PAGES * PAGE,
		.minor = true,
	};
	struct kvmfault_memory *memory;
	void *host;
	int fd = fake_memory(options.length, 0, &host);

	options.host = host;
	options.fd = fd;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory),
			 -EINVAL);
	options.source = &source;
	options.fd = 0;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory),
			 -EINVAL);
	options.fd = fd;
	fake_push(FAKE_MMAP, FAKE_MODEL);	/* the states */
	fake_push(FAKE_MMAP, -ENOMEM);
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory),
			 -ENOMEM);
}

/* What is there is another's: nothing of it is lost. */
TEST(page, refused_before_anything_is_forgotten)
{
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.length = BED_PAGES * PAGE,
		.source = &source,
		.host = bed.host,
		.fd = bed.fd,
		.minor = true,
	};
	struct kvmfault_memory *memory;

	fake_forget();
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory),
			 -EEXIST);
	ck_assert_uint_eq(fake_count(FAKE_MADVISE, MADV_DONTNEED), 0);
}

/* Larger than scratch memory: the source writes to the file itself. */
TEST(page, page_larger_than_scratch)
{
	uint64_t huge = 4 << 20;
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.length = huge,
		.page_size = huge,
		.source = &source,
	};
	struct kvmfault_memory *memory;
	void *host;

	options.fd = fake_memory(2 * huge, huge, &host);
	/* Where a page of it could be mapped. */
	options.host = (void *)(((uintptr_t)host + huge - 1) & -huge);
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory),
			 -EINVAL);
	options.minor = true;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &memory), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

/* ---- pages that are in the file ---- */

TEST(page, second_mapping_is_told)
{
	struct kvmfault_mapping_options options = { .size = sizeof(options) };
	struct kvmfault_fault fault = {
		.size = sizeof(fault), .kind = KVMFAULT_KIND_UFFD,
	};
	struct kvmfault_mapping *mapping;
	struct kvmfault__answer answer;

	options.host = (uintptr_t)fake_map(bed.fd);
	ck_assert_int_eq(kvmfault_mapping_add(bed.memory, &options, &mapping),
			 0);
	by_call(3);
	fake_forget();
	kvmfault__resolve(bed.seat, &fault, &(struct kvmfault__target){
		.memory = bed.memory, .origin = mapping, .offset = 3 * PAGE,
	}, &answer);
	kvmfault__leave(bed.seat);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(answer.error, 0);
	ck_assert_uint_eq(continues(), 1);
	ck_assert_uint_eq(fake_nth(FAKE_IOCTL, UFFDIO_CONTINUE, 0)->at,
			  options.host + 3 * PAGE);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(bed_stats().repeated, 1);
}

TEST(page, repeated_message_is_woken)
{
	by_message(3);
	fake_forget();
	ck_assert_int_eq(by_message(3).action, KVMFAULT_ACTION_RETRY);
	/* It is mapped: EEXIST, which wakes nobody. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
	ck_assert_uint_eq(bed_stats().zeroed, 0);
}

static long continue_says;	/* once */

static bool continue_fails(struct fake_call *call)
{
	struct uffdio_continue *cont = call->arg;

	if (call->number != UFFDIO_CONTINUE || !continue_says)
		return false;
	cont->mapped = call->result = continue_says;
	continue_says = 0;
	return true;
}

/* No reason to take it for a hole: its data stays, and it is not told to be zero. */
TEST_EACH(page, page_table_that_is_going, 3)
{
	static const int errors[] = { -EAGAIN, -ENOMEM, -EIO };

	ck_assert_int_eq(by_call(3).action, KVMFAULT_ACTION_RETRY);
	continue_says = errors[_i];
	fake_on(FAKE_IOCTL, continue_fails);
	ck_assert_int_eq(by_message(3).error, errors[_i]);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_uint_eq(bed_stats().zeroed, 0);
	ck_assert_int_eq(by_message(3).error, 0);
	ck_assert_uint_eq(bed_stats().zeroed, 0);
}

TEST(page, process_that_is_gone)
{
	ck_assert_int_eq(by_call(3).action, KVMFAULT_ACTION_RETRY);
	continue_says = -ESRCH;
	fake_on(FAKE_IOCTL, continue_fails);
	ck_assert_int_eq(by_message(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_uint_eq(bed_stats().zeroed, 0);
}

TEST(page, hole_behind_our_back)
{
	by_call(3);
	ck_assert_int_eq(kvmfault__memory_punch(bed.memory, 3 * PAGE, PAGE), 0);
	ck_assert_int_eq(by_message(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, 0));
	ck_assert_uint_eq(bed_stats().zeroed, 1);
}

TEST(page, discarded_page)
{
	by_call(3);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA + 3 * PAGE, PAGE),
			 0);
	ck_assert(!fake_present(bed.fd, 3 * PAGE));
	by_call(3);
	ck_assert(bed_has(3, 0));
	ck_assert_uint_eq(bed_stats().zeroed, 1);
}

/* ---- what can go wrong ---- */

TEST(page, source_fails)
{
	bed.source_result = -EIO;
	ck_assert_int_eq(by_message(3).reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	/* Half of it may be in the file, and nobody sees it. */
	ck_assert_uint_eq(continues(), 0);
	bed.source_result = 0;
	by_message(3);
	ck_assert(bed_has(3, bed_byte(3)));
}

TEST(page, file_cannot_grow)
{
	struct kvmfault__answer answer;

	fake_push(FAKE_MADVISE, -EFAULT);
	answer = by_call(3);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_RESOLVER);
	ck_assert_int_eq(answer.error, -ENOMEM);
	ck_assert_uint_eq(bed.reads, 0);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	/* Nor for zeros. */
	kvmfault_discard(bed.vm, 0, BED_GPA + 3 * PAGE, PAGE);
	fake_push(FAKE_MADVISE, -EHWPOISON);
	ck_assert_int_eq(by_call(3).error, -EHWPOISON);
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
}

static int by_hand(void *data, struct kvmfault_request *request)
{
	char mine[PAGE];

	(void)data;
	ck_assert_int_eq(kvmfault_request_read(request, mine), 0);
	memset(mine, 77, PAGE);
	ck_assert_int_eq(kvmfault_request_install(request, mine), 0);
	return KVMFAULT_VERDICT_RESOLVED;
}

TEST_GROUP(own, NULL, bed_down);

/* Data of a resolver's own is written to the file before it is mapped. */
TEST(own, own_data)
{
	bed_vm();
	bed.minor = true;
	bed_own_resolver(by_hand);
	bed_add();
	ck_assert_int_eq(by_call(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, 77));
	ck_assert_uint_eq(continues(), 1);
}

static int own_zeros(void *data, struct kvmfault_request *request)
{
	(void)data;
	ck_assert_int_eq(kvmfault_request_read(request, request->buffer), 0);
	ck_assert_int_eq(kvmfault_request_install(request, request->buffer), 0);
	return KVMFAULT_VERDICT_RESOLVED;
}

TEST(own, own_zeros_for_a_discarded_page)
{
	bed_vm();
	bed.minor = true;
	bed_own_resolver(own_zeros);
	bed_add();
	by_call(3);
	kvmfault_discard(bed.vm, 0, BED_GPA + 3 * PAGE, PAGE);
	by_call(3);
	ck_assert(bed_has(3, 0));
}

static void window_up(void)
{
	up(4);
}

int main(void)
{
	return run_suite("continue");
}
