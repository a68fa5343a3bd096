/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * resolver.c, resolver-copy.c, resolver-populate.c: the chain, what a resolver
 * may ask for, and ours.
 */

#include <string.h>
#include <sys/mman.h>

#include <sys/stat.h>

#include "bed.h"

static unsigned int order[8], asked;
static int (*act)(struct kvmfault_request *request);

static int resolve(void *data, struct kvmfault_request *request)
{
	order[asked++ % 8] = (unsigned int)(uintptr_t)data;
	return act ? act(request) : KVMFAULT_VERDICT_DECLINED;
}

static int add(const char *name, unsigned int number, uint32_t pages)
{
	struct kvmfault_resolver resolver = {
		.size = sizeof(resolver), .name = name, .pages = pages,
		.resolve = resolve, .data = (void *)(uintptr_t)number,
	};

	return kvmfault_resolver_add(bed.vm, &resolver);
}

static struct kvmfault__answer fetch(uint64_t page)
{
	return bed_resolve(KVMFAULT_KIND_CALL, page, false);
}

TEST_GROUP(chain, bed_vm, bed_down);

TEST(chain, order_is_the_vmms)
{
	ck_assert_int_eq(add("first", 1, 0), 0);
	ck_assert_int_eq(add("second", 2, 0), 0);
	ck_assert_str_eq(kvmfault_resolver_name(bed.vm, 0), "first");
	ck_assert_str_eq(kvmfault_resolver_name(bed.vm, 1), "second");
	ck_assert_str_eq(kvmfault_resolver_name(bed.vm, 2), "copy");
	ck_assert_str_eq(kvmfault_resolver_name(bed.vm, 3), "async");
	ck_assert_str_eq(kvmfault_resolver_name(bed.vm, 4), "continue");
	ck_assert_str_eq(kvmfault_resolver_name(bed.vm, 5), "zero");
	ck_assert_str_eq(kvmfault_resolver_name(bed.vm, 6), "populate");
	ck_assert_str_eq(kvmfault_resolver_name(bed.vm, 7), "convert");
	ck_assert_str_eq(kvmfault_resolver_name(bed.vm, 8), "unprotect");
	ck_assert_ptr_null(kvmfault_resolver_name(bed.vm, 9));
	ck_assert_ptr_null(kvmfault_resolver_name(NULL, 0));
	bed_add();
	ck_assert_str_eq(fetch(0).resolver, "copy");
	ck_assert_uint_eq(asked, 2);
	ck_assert_uint_eq(order[0], 1);
	ck_assert_uint_eq(order[1], 2);
	ck_assert_uint_eq(bed_stats().resolver[2], 1);
}

TEST(chain, pages_that_it_is_for)
{
	ck_assert_int_eq(add("absent", 1, 1U << KVMFAULT_PAGE_ABSENT), 0);
	ck_assert_int_eq(add("removed", 2, 1U << KVMFAULT_PAGE_DISCARDED), 0);
	ck_assert_int_eq(add("present", 3, 1U << KVMFAULT_PAGE_PRESENT), 0);
	bed_add();
	fetch(0);
	ck_assert_uint_eq(asked, 1);
	ck_assert_uint_eq(order[0], 1);
	bed_resolve(KVMFAULT_KIND_EXIT, 0, false);
	ck_assert_uint_eq(asked, 2);
	ck_assert_uint_eq(order[1], 3);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA, PAGE), 0);
	fetch(0);
	ck_assert_uint_eq(asked, 3);
	ck_assert_uint_eq(order[2], 2);
}

TEST(chain, bad_ones)
{
	struct kvmfault_resolver resolver = {
		.size = sizeof(resolver), .name = "x", .resolve = resolve,
	};
	struct {
		struct kvmfault_resolver resolver;
		uint64_t tail;
	} longer = { .resolver = resolver, .tail = 1 };

	ck_assert_int_eq(kvmfault_resolver_add(NULL, &resolver), -EINVAL);
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, NULL), -EINVAL);
	resolver.name = NULL;
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &resolver), -EINVAL);
	resolver.name = "x";
	resolver.resolve = NULL;
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &resolver), -EINVAL);
	longer.resolver.size = sizeof(longer);
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &longer.resolver),
			 -E2BIG);
	ck_assert_str_eq(kvmfault_resolver_name(bed.vm, 0), "copy");
}

TEST(chain, so_many_and_no_more)
{
	unsigned int i, ours = 0;

	while (kvmfault_resolver_name(bed.vm, ours))
		ours++;
	for (i = 0; i < KVMFAULT_RESOLVER_COUNT - ours; i++)
		ck_assert_int_eq(add("one of many", i, 0), 0);
	ck_assert_int_eq(add("one too many", i, 0), -ENOSPC);
	ck_assert_str_eq(kvmfault_resolver_name(bed.vm, 15), "unprotect");
}

TEST(chain, too_late)
{
	bed_service(0);
	ck_assert_int_eq(add("late", 1, 0), -EBUSY);
	bed_end_service();
	bed_add();
	ck_assert_int_eq(add("late", 1, 0), -EBUSY);
}

/* ---- what a request may be asked ---- */

static int by_hand(struct kvmfault_request *request)
{
	char mine[PAGE];

	ck_assert_int_eq(kvmfault_request_read(request, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_request_widen(request), 0);
	ck_assert_uint_eq(request->length, PAGE);
	if (request->page == KVMFAULT_PAGE_ABSENT)
		ck_assert_int_eq(kvmfault_request_install(request, NULL),
				 -EINVAL);
	ck_assert_int_eq(kvmfault_request_read(request, mine), 0);
	ck_assert_int_eq(mine[0], request->page == KVMFAULT_PAGE_ABSENT ?
			 bed_byte(request->offset / PAGE) : 0);
	memset(mine, 77, PAGE);
	ck_assert_int_eq(kvmfault_request_install(request, mine), 0);
	return KVMFAULT_VERDICT_RESOLVED;
}

static int nothing_claimed(struct kvmfault_request *request)
{
	char mine[PAGE];

	ck_assert_int_eq(kvmfault_request_read(request, mine), -EINVAL);
	ck_assert_int_eq(kvmfault_request_install(request, mine), -EINVAL);
	ck_assert_int_eq(kvmfault_request_widen(request), -EINVAL);
	return KVMFAULT_VERDICT_DECLINED;
}

TEST(chain, read_and_install)
{
	ck_assert_int_eq(add("by hand", 1, 0), 0);
	bed_add();
	act = by_hand;
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, 77));
	ck_assert_uint_eq(bed_stats().fetched, 1);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA, PAGE), 0);
	ck_assert_int_eq(fetch(0).action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed_stats().zeroed, 1);
	act = nothing_claimed;
	bed_resolve(KVMFAULT_KIND_EXIT, 3, false);
	ck_assert_uint_eq(asked, 3);
	ck_assert_int_eq(kvmfault_request_read(NULL, order), -EINVAL);
	ck_assert_int_eq(kvmfault_request_install(NULL, order), -EINVAL);
	ck_assert_int_eq(kvmfault_request_widen(NULL), -EINVAL);
}

static int say_what_install_said(struct kvmfault_request *request)
{
	return kvmfault_request_install(request, request->buffer);
}

TEST_EACH(chain, install_says_what_the_kernel_said, 6)
{
	static const int errors[] = { -EAGAIN, -ENOENT, -ESRCH, -ENOMEM,
				      -EHWPOISON, -EFAULT };

	ck_assert_int_eq(add("install", 1, 0), 0);
	bed_add();
	act = say_what_install_said;
	fake_push(FAKE_IOCTL, errors[_i]);
	ck_assert_int_eq(fetch(3).error, errors[_i]);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

/* ---- a source that shows its bytes ---- */

static char shown[BED_PAGES * PAGE];
static unsigned int views;
static bool hides;

static const void *view(void *data, uint64_t offset, size_t length)
{
	ck_assert_ptr_eq(data, bed.source.data);
	ck_assert_uint_le(offset + length, sizeof(shown));
	views++;
	return hides ? NULL : shown + offset;
}

static void viewed_up(void)
{
	bed_vm();
	memset(shown, 42, sizeof(shown));
	bed.source = bed_source();
	bed.source.view = view;
	views = 0;
	hides = false;
}

TEST_GROUP(view, viewed_up, bed_down);

TEST(view, installed_from_where_it_is)
{
	bed_add();
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, 42));
	ck_assert_uint_eq(views, 1);
	ck_assert_uint_eq(bed.reads, 0);
}

TEST(view, read_where_it_is_not)
{
	hides = true;
	bed_add();
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_uint_eq(views, 1);
	ck_assert_uint_eq(bed.reads, 1);
}

TEST(view, a_window_of_it)
{
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = 4 * PAGE;
	bed_add();
	ck_assert_int_eq(fetch(5).action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(views, 1);
	ck_assert(bed_has(4, 42) && bed_has(7, 42));
	ck_assert_int_eq(bed_state(8), KVMFAULT__ABSENT);
}

/* Its file was cut off: the source's failure, and no page of zeros. */
TEST(view, shown_and_not_there)
{
	struct kvmfault__answer answer;

	bed_add();
	fake_push(FAKE_IOCTL, -EFAULT);
	answer = fetch(3);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(answer.error, -EFAULT);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

/* How long the source's file is now. */
static uint64_t file_length;

static bool tell_length(struct fake_call *call)
{
	struct stat *stat = call->arg;

	if (call->fd != bed.source.file)
		return false;
	*stat = (struct stat){
		.st_mode = S_IFREG, .st_size = (off_t)file_length,
	};
	call->result = 0;
	return true;
}

static void add_with_file(void)
{
	bed.source.file = fake_file(FAKE_FILE, shown, sizeof(shown));
	file_length = sizeof(shown);
	bed_add();
	fake_on(FAKE_FSTAT, tell_length);
}

/* In the middle of a page a mapping goes on with zeros: the length tells. */
TEST_EACH(view, cut_off_in_a_page, 2)
{
	struct kvmfault__answer answer;

	if (_i)		/* and the same of what is read */
		bed.source.view = NULL;
	add_with_file();
	file_length = 4 * PAGE - 1;
	answer = fetch(3);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(answer.error, -ENODATA);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	ck_assert_uint_eq(views + bed.reads, 0);
	file_length++;
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(views, !_i);
}

TEST(view, cut_off_in_a_neighbour)
{
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = 4 * PAGE;
	add_with_file();
	file_length = 7 * PAGE + 1;
	ck_assert_int_eq(fetch(5).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(5), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(7), KVMFAULT__ABSENT);
}

TEST(view, length_that_cannot_be_told)
{
	add_with_file();
	fake_push(FAKE_FSTAT, -EIO);
	fake_push(FAKE_FSTAT, -EIO);
	ck_assert_int_eq(fetch(3).error, -ENODATA);
}

TEST(view, file_too_short_at_first)
{
	struct kvmfault_memory *memory;
	void *host;
	int fd;

	bed.source.file = fake_file(FAKE_FILE, shown, sizeof(shown) - 1);
	ck_assert_int_eq(bed_memory(&memory, &fd, &host), -ENODATA);
}

/* A neighbour's bytes are gone: those before it come, and the page itself. */
static unsigned int copies;

static bool second_is_gone(struct fake_call *call)
{
	struct uffdio_copy *copy = call->arg;

	if (call->number != UFFDIO_COPY || copies++ > 1)
		return false;
	if (copies == 1) {
		copy->len = PAGE;
		fake_model(call);
		copy->len = 4 * PAGE;
		call->result = -EAGAIN;
	} else {
		call->result = -EFAULT;
	}
	return true;
}

TEST(view, a_neighbour_is_not_there)
{
	bed.window = KVMFAULT_WINDOW_FIXED;
	bed.window_length = 4 * PAGE;
	bed_add();
	copies = 0;
	fake_on(FAKE_IOCTL, second_is_gone);
	ck_assert_int_eq(fetch(7).action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(copies, 3);
	ck_assert(bed_has(4, 42) && bed_has(7, 42));
	ck_assert_int_eq(bed_state(4), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(5), KVMFAULT__ABSENT);
	ck_assert_int_eq(bed_state(6), KVMFAULT__ABSENT);
	ck_assert_uint_eq(bed_stats().fetched, 2);
	ck_assert_uint_eq(bed_stats().existed, 0);
}

static int data_by_hand(struct kvmfault_request *request)
{
	const void *data = NULL;

	ck_assert_int_eq(kvmfault_request_data(request, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_request_data(NULL, &data), -EINVAL);
	if (request->page == KVMFAULT_PAGE_PRESENT) {
		ck_assert_int_eq(kvmfault_request_data(request, &data),
				 -EINVAL);
		return KVMFAULT_VERDICT_DECLINED;
	}
	ck_assert_int_eq(kvmfault_request_data(request, &data), 0);
	ck_assert_ptr_eq(data, hides || bed.minor ||
			 request->page == KVMFAULT_PAGE_DISCARDED ?
			 request->buffer :
			 (const void *)(shown + request->offset));
	ck_assert_int_eq(kvmfault_request_install(request, data), 0);
	return KVMFAULT_VERDICT_RESOLVED;
}

TEST(view, data_for_ones_own)
{
	ck_assert_int_eq(add("by hand", 1, 0), 0);
	bed_add();
	act = data_by_hand;
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, 42));
	bed_resolve(KVMFAULT_KIND_EXIT, 3, false);
	hides = true;
	ck_assert_int_eq(fetch(4).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(4, bed_byte(4)));
	ck_assert_uint_eq(asked, 3);
}

/* A discarded page is not the source's. */
TEST(view, no_view_of_zeros)
{
	ck_assert_int_eq(add("by hand", 1, 0), 0);
	bed_add();
	act = data_by_hand;
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA + 3 * PAGE, PAGE),
			 0);
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, 0));
	ck_assert_uint_eq(views, 1);
}

/* They have to be in the file. */
TEST(view, no_view_with_minor_faults)
{
	ck_assert_int_eq(add("by hand", 1, 0), 0);
	bed.minor = true;
	bed_add();
	act = data_by_hand;
	ck_assert_int_eq(fetch(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_uint_eq(views, 0);
	ck_assert_uint_eq(bed.reads, 1);
}

/* ---- ours: populate ---- */

static int populate(enum kvmfault_access access, uint32_t flags, void *host)
{
	struct kvmfault_fault fault = { .access = access };
	struct kvmfault_region region = { .flags = flags };
	struct kvmfault_request request = {
		.fault = &fault, .region = &region, .host = host,
		.length = PAGE, .page = KVMFAULT_PAGE_PRESENT,
	};

	fake_forget();
	return kvmfault__resolver_populate.resolve(NULL, &request);
}

static size_t reads(void)
{
	return fake_count(FAKE_MADVISE, KVMFAULT__MADV_POPULATE_READ);
}

static size_t writes(void)
{
	return fake_count(FAKE_MADVISE, KVMFAULT__MADV_POPULATE_WRITE);
}

TEST(chain, populate_by_access)
{
	bed_add();
	ck_assert_int_eq(populate(KVMFAULT_ACCESS_READ, 0, bed.host),
			 KVMFAULT_VERDICT_RESOLVED);
	ck_assert_uint_eq(reads(), 1);
	ck_assert_uint_eq(writes(), 0);
	ck_assert_int_eq(populate(KVMFAULT_ACCESS_EXEC, 0, bed.host),
			 KVMFAULT_VERDICT_RESOLVED);
	ck_assert_uint_eq(reads(), 1);
	ck_assert_int_eq(populate(KVMFAULT_ACCESS_WRITE, 0, bed.host),
			 KVMFAULT_VERDICT_RESOLVED);
	ck_assert_uint_eq(writes(), 1);
	ck_assert_int_eq(populate(KVMFAULT_ACCESS_UNKNOWN, 0, bed.host),
			 KVMFAULT_VERDICT_RESOLVED);
	ck_assert_uint_eq(writes(), 1);
	ck_assert_int_eq(populate(KVMFAULT_ACCESS_WRITE,
				  KVMFAULT_REGION_READONLY, bed.host),
			 KVMFAULT_VERDICT_RESOLVED);
	ck_assert_uint_eq(reads(), 1);
	ck_assert_uint_eq(writes(), 0);
	ck_assert_int_eq(populate(KVMFAULT_ACCESS_READ, 0, NULL),
			 KVMFAULT_VERDICT_DECLINED);
	ck_assert_uint_eq(reads(), 0);
}

static int populate_read_only(enum kvmfault_access access)
{
	struct kvmfault_fault fault = { .access = access };
	struct kvmfault_request request = {
		.fault = &fault, .host = bed.host, .length = PAGE,
	};

	fake_refuse(FAKE_MADVISE, KVMFAULT__MADV_POPULATE_WRITE, -EINVAL);
	return kvmfault__resolver_populate.resolve(NULL, &request);
}

TEST(chain, populate_what_is_only_readable)
{
	bed_add();
	/* Not known to be a write: readable will do. */
	ck_assert_int_eq(populate_read_only(KVMFAULT_ACCESS_UNKNOWN),
			 KVMFAULT_VERDICT_RESOLVED);
	ck_assert_int_eq(populate_read_only(KVMFAULT_ACCESS_WRITE),
			 -EOPNOTSUPP);
}

TEST_EACH(chain, populate_says_why_not, 4)
{
	static const int errors[] = { -EFAULT, -ENOMEM, -EHWPOISON, -EINTR };
	struct kvmfault__answer answer;

	bed_add();
	fetch(3);
	fake_push(FAKE_MADVISE, errors[_i]);
	answer = bed_resolve(KVMFAULT_KIND_EXIT, 3, false);
	if (errors[_i] == -EINTR) {
		ck_assert_int_eq(answer.action, KVMFAULT_ACTION_INTERRUPTED);
		return;
	}
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_RESOLVER);
	ck_assert_int_eq(answer.error, errors[_i]);
	ck_assert_str_eq(answer.resolver, "populate");
}

int main(void)
{
	return run_suite("resolver");
}
