/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * resolve.c: one page, whoever wants it and whatever happens meanwhile. What
 * happens meanwhile is put inside the source's read or the kernel's copy.
 */

#include <string.h>

#include "bed.h"

static struct kvmfault__answer by_call(uint64_t page)
{
	return bed_resolve(KVMFAULT_KIND_CALL, page, false);
}

static struct kvmfault__answer by_message(uint64_t page)
{
	return bed_resolve(KVMFAULT_KIND_UFFD, page, true);
}

TEST_GROUP(page, bed_up, bed_down);

TEST(page, absent_page_is_fetched)
{
	struct kvmfault__answer answer = by_call(3);

	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(answer.error, 0);
	ck_assert(answer.came);
	ck_assert_str_eq(answer.resolver, "copy");
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(bed.last_read, 3 * PAGE);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_uint_eq(bed_stats().fetched, 1);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_FETCH], 1);
	ck_assert_uint_eq(bed.change.offset, 3 * PAGE);
	ck_assert_uint_eq(bed.change.length, PAGE);
	ck_assert_ptr_eq(bed.change.memory, bed.memory);
	/* The kernel wakes who sleeps there; nobody else could. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 0);
}

TEST(page, present_page_is_fetched_once)
{
	by_call(3);
	ck_assert_int_eq(by_call(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.reads, 1);
	/* A vCPU that faults on it all the same: populate. */
	ck_assert_int_eq(bed_resolve(KVMFAULT_KIND_EXIT, 3, false).action,
			 KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(fake_count(FAKE_MADVISE,
				     KVMFAULT__MADV_POPULATE_READ), 1);
}

TEST(page, source_fails)
{
	struct kvmfault__answer answer;

	bed.source_result = -EIO;
	answer = by_call(3);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(answer.error, -EIO);
	ck_assert_str_eq(answer.resolver, "copy");
	ck_assert(!answer.came);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	ck_assert(!fake_present(bed.fd, 3 * PAGE));
	ck_assert_uint_eq(bed_stats().fetched, 0);
	bed.source_result = 0;
	ck_assert_int_eq(by_call(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, bed_byte(3)));
}

TEST(page, source_says_a_count)
{
	struct kvmfault__answer answer;

	bed.source_result = (int)PAGE;
	answer = by_call(3);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_SOURCE);
	ck_assert_int_eq(answer.error, -EIO);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	ck_assert(!fake_present(bed.fd, 3 * PAGE));
}

TEST(page, kernel_is_not_ready)
{
	struct kvmfault__answer answer;

	fake_push(FAKE_IOCTL, -EAGAIN);
	answer = by_call(3);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(answer.error, -EAGAIN);
	ck_assert(!answer.came);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

TEST_EACH(page, kernel_fails, 5)
{
	static const int errors[] = { -ENOENT, -ESRCH, -ENOMEM, -EHWPOISON,
				      -EFAULT };
	struct kvmfault__answer answer;

	fake_push(FAKE_IOCTL, errors[_i]);
	answer = by_call(3);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_RESOLVER);
	ck_assert_int_eq(answer.error, errors[_i]);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

TEST(page, page_was_there)
{
	fake_put(bed.fd, 3 * PAGE);
	ck_assert_int_eq(by_call(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_uint_eq(bed_stats().existed, 1);
	ck_assert_uint_eq(bed_stats().fetched, 0);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_FETCH], 0);
}

TEST(page, page_was_there_wakes_the_sleeper)
{
	fake_put(bed.fd, 3 * PAGE);
	ck_assert_int_eq(by_message(3).action, KVMFAULT_ACTION_RETRY);
	/* EEXIST wakes nobody: we must. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
	ck_assert_uint_eq(fake_nth(FAKE_IOCTL, UFFDIO_WAKE, 0)->at,
			  (uintptr_t)bed_page(3));
	ck_assert_uint_eq(fake_nth(FAKE_IOCTL, UFFDIO_WAKE, 0)->length, PAGE);
}

/* ---- something happens during the fetch ---- */

static struct kvmfault__answer second;

static void read_by_message(void)
{
	struct kvmfault__seat *mine = bed.seat;

	bed.seat = kvmfault__seat_take(bed.vm);
	second = by_message(3);
	kvmfault__seat_give(bed.seat);
	bed.seat = mine;
}

TEST(page, message_during_a_fetch_is_woken_by_it)
{
	bed.during_read = read_by_message;
	ck_assert_int_eq(by_call(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(second.action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(second.error, 0);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
	ck_assert_uint_eq(bed_stats().repeated, 1);
}

TEST(page, message_during_a_failing_fetch_is_woken)
{
	bed.during_read = read_by_message;
	bed.source_result = -EIO;
	ck_assert_int_eq(by_call(3).action, KVMFAULT_ACTION_UNRESOLVED);
	/* Awake it faults again, and so is not forgotten. */
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
}

static void ask_again(void)
{
	struct kvmfault__seat *mine = bed.seat;

	bed.seat = kvmfault__seat_take(bed.vm);
	second = by_call(3);
	kvmfault__seat_give(bed.seat);
	bed.seat = mine;
}

TEST(page, source_that_asks_for_its_own_page)
{
	bed.during_read = ask_again;
	ck_assert_int_eq(by_call(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(second.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(second.error, -EDEADLK);
	ck_assert(bed_has(3, bed_byte(3)));
}

static bool reader_in_copy(struct fake_call *call)
{
	if (call->number != UFFDIO_COPY)
		return false;
	fake_model(call);
	read_by_message();
	return true;
}

TEST(page, message_between_copy_and_publish_is_woken)
{
	fake_on(FAKE_IOCTL, reader_in_copy);
	ck_assert_int_eq(by_call(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
}

static pthread_t discarding;
static int discarded;

static void *discard_in_thread(void *arg)
{
	(void)arg;
	discarded = kvmfault_discard(bed.vm, 0, BED_GPA + 3 * PAGE, PAGE);
	return NULL;
}

/* Another thread's, which has told the fetch before it goes on. */
static void discard_it(void)
{
	pthread_create(&discarding, NULL, discard_in_thread, NULL);
	while (bed_state(3) != KVMFAULT__FETCHING_DISCARDED)
		sched_yield();
}

static struct kvmfault__answer fetch_and_discard(void)
{
	struct kvmfault__answer answer;

	if (!bed.during_read)
		bed.during_read = discard_it;
	answer = by_call(3);
	pthread_join(discarding, NULL);
	return answer;
}

TEST(page, discard_during_a_fetch)
{
	ck_assert_int_eq(fetch_and_discard().action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(discarded, 0);
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
	ck_assert(!fake_present(bed.fd, 3 * PAGE));
	ck_assert_uint_eq(fake_count(FAKE_FALLOCATE, FAKE_ANY), 1);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_DISCARD], 1);
	ck_assert_uint_eq(bed_stats().discarded, 1);
	/* From now on zero, and not from the source. */
	ck_assert_int_eq(by_call(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, 0));
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(bed_stats().zeroed, 1);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_ZERO], 1);
}

TEST(page, discard_during_a_failing_fetch)
{
	bed.source_result = -EIO;
	fetch_and_discard();
	ck_assert_int_eq(discarded, 0);
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
	ck_assert(!fake_present(bed.fd, 3 * PAGE));
	bed.source_result = 0;
	by_call(3);
	ck_assert(bed_has(3, 0));
}

TEST(page, discard_that_cannot_punch)
{
	fake_push(FAKE_FALLOCATE, -ENOSPC);
	fake_push(FAKE_FALLOCATE, -ENOSPC);
	ck_assert_int_eq(fetch_and_discard().action, KVMFAULT_ACTION_RETRY);
	/* It keeps its data, and who discards is told. */
	ck_assert_int_eq(discarded, -ENOSPC);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_DISCARD], 0);
}

TEST(page, discard_that_cannot_punch_during_a_failing_fetch)
{
	bed.source_result = -EIO;
	fake_push(FAKE_FALLOCATE, -ENOSPC);
	fake_push(FAKE_FALLOCATE, -ENOSPC);
	ck_assert_int_eq(fetch_and_discard().action, KVMFAULT_ACTION_UNRESOLVED);
	/* There is no page: to call it present would make it zero later. */
	ck_assert_int_ne(bed_state(3), KVMFAULT__PRESENT);
	bed.source_result = 0;
	by_message(3);
	ck_assert(bed_has(3, bed_byte(3)));
}

static void discard_and_message(void)
{
	read_by_message();
	discard_it();
	read_by_message();
}

TEST(page, discard_and_messages_during_a_fetch)
{
	bed.during_read = discard_and_message;
	fetch_and_discard();
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
	ck_assert_uint_ge(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
}

TEST(page, removed_page_failing_stays_removed)
{
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA, PAGE), 0);
	fake_push(FAKE_IOCTL, -ENOMEM);
	ck_assert_int_eq(by_call(0).action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(bed_state(0), KVMFAULT__DISCARDED);
}

/* ---- messages for a page that is present ---- */

TEST(page, late_message_wakes)
{
	by_call(3);
	ck_assert_int_eq(by_message(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(bed_stats().repeated, 1);
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
}

TEST(page, page_gone_behind_our_back_is_zero)
{
	by_call(3);
	kvmfault__memory_punch(bed.memory, 3 * PAGE, PAGE);
	ck_assert_int_eq(by_message(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, 0));
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(bed_stats().zeroed, 1);
	ck_assert_uint_eq(bed.changes[KVMFAULT_CAUSE_ZERO], 1);
}

TEST(page, recheck_that_cannot_be_done_now)
{
	by_call(3);
	fake_push(FAKE_IOCTL, -EAGAIN);
	ck_assert_int_eq(by_message(3).error, -EAGAIN);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	fake_push(FAKE_IOCTL, -ENOMEM);
	ck_assert_int_eq(by_message(3).action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
}

/* ---- the VMM's own resolvers ---- */

static int verdict;
static int (*own)(struct kvmfault_request *request);
static unsigned int asked;

static int resolve_own(void *data, struct kvmfault_request *request)
{
	(void)data;
	asked++;
	return own ? own(request) : verdict;
}

static void up_own(void)
{
	static const struct kvmfault_resolver resolver = {
		.size = sizeof(resolver),
		.name = "own",
		.flags = 1U << 3,
		.resolve = resolve_own,
	};

	bed_vm();
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &resolver), 0);
	bed_add();
}

TEST_GROUP(own, up_own, bed_down);

TEST(own, own_one_declines)
{
	ck_assert_str_eq(by_call(3).resolver, "copy");
	ck_assert_uint_eq(asked, 1);
	ck_assert_uint_eq(bed_stats().resolver[0], 0);
	ck_assert_uint_eq(bed_stats().resolver[1], 1);
}

TEST(own, own_one_lies)
{
	struct kvmfault__answer answer;

	verdict = KVMFAULT_VERDICT_RESOLVED;
	answer = by_call(3);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_STILL_ABSENT);
	ck_assert_int_eq(answer.error, -ENODATA);
	ck_assert_str_eq(answer.resolver, "own");
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	ck_assert_uint_eq(bed_stats().fetched, 0);
}

TEST(own, own_one_cannot_be_checked)
{
	verdict = KVMFAULT_VERDICT_RESOLVED;
	fake_push(FAKE_LSEEK, -EIO);
	/* Not known to be there is not there. */
	ck_assert_int_eq(by_call(3).action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

static int put_page(struct kvmfault_request *request)
{
	memset(request->host, 7, request->length);
	fake_put(bed.fd, request->offset);
	return KVMFAULT_VERDICT_RESOLVED;
}

TEST(own, own_one_installs_by_itself)
{
	own = put_page;
	ck_assert_int_eq(by_message(3).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert(bed_has(3, 7));
	ck_assert_uint_eq(bed.reads, 0);
	/* Not by the kernel's copy: nobody has been woken. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
	ck_assert_uint_eq(bed_stats().fetched, 1);
}

TEST(own, own_one_later)
{
	struct kvmfault__answer answer;

	verdict = KVMFAULT_VERDICT_LATER;
	answer = by_call(3);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_PENDING);
	ck_assert_str_eq(answer.resolver, "own");
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
	verdict = KVMFAULT_VERDICT_DECLINED;
	ck_assert_int_eq(by_call(3).action, KVMFAULT_ACTION_RETRY);
}

TEST(own, own_one_later_on_a_discarded_page)
{
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA, PAGE), 0);
	verdict = KVMFAULT_VERDICT_LATER;
	ck_assert_int_eq(by_call(0).action, KVMFAULT_ACTION_PENDING);
	ck_assert_int_eq(bed_state(0), KVMFAULT__DISCARDED);
}

TEST_EACH(own, own_one_says_junk, 3)
{
	static const int junk[] = { 3, 77, INT32_MAX };
	struct kvmfault__answer answer;

	verdict = junk[_i];
	answer = by_call(3);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_RESOLVER);
	ck_assert_int_eq(answer.error, -EINVAL);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

TEST(own, own_one_fails)
{
	struct kvmfault__answer answer;

	verdict = -EIO;
	answer = by_call(3);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_RESOLVER);
	ck_assert_int_eq(answer.error, -EIO);
	/* It was its own: nobody else is asked. */
	ck_assert_uint_eq(bed.reads, 0);
}

static int check_request(struct kvmfault_request *request)
{
	ck_assert_uint_eq(request->size, sizeof(*request));
	ck_assert_uint_eq(request->fault->gpa, BED_GPA + 3 * PAGE);
	ck_assert_uint_eq(request->region->gpa, BED_GPA);
	ck_assert_ptr_eq(request->memory, bed.memory);
	ck_assert_int_eq(request->page, KVMFAULT_PAGE_ABSENT);
	ck_assert_uint_eq(request->offset, 3 * PAGE);
	ck_assert_uint_eq(request->length, PAGE);
	ck_assert_ptr_eq(request->host, bed_page(3));
	ck_assert_ptr_nonnull(request->buffer);
	memset(request->buffer, 1, request->length);
	return KVMFAULT_VERDICT_DECLINED;
}

TEST(own, what_a_resolver_is_asked)
{
	own = check_request;
	by_call(3);
	ck_assert_uint_eq(asked, 1);
	ck_assert(bed_has(3, bed_byte(3)));
}

static struct kvmfault__answer with_flags(uint64_t flags, int error)
{
	struct kvmfault_fault fault = {
		.size = sizeof(fault),
		.kind = KVMFAULT_KIND_EXIT,
		.known = KVMFAULT_KNOWN_GPA,
		.gpa = BED_GPA,
		.length = PAGE,
		.flags = flags,
		.error = error,
	};
	struct kvmfault__answer answer;

	kvmfault__resolve_gpa(bed.seat, &fault, fault.gpa, &answer);
	return answer;
}

TEST(own, flags_go_to_who_understands_them)
{
	struct kvmfault__answer answer = with_flags(1U << 3, EFAULT);

	ck_assert_uint_eq(asked, 1);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_FLAGS);
	ck_assert_int_eq(bed_state(0), KVMFAULT__ABSENT);
	answer = with_flags(1U << 3 | 1U << 4, EFAULT);
	ck_assert_uint_eq(asked, 1);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_FLAGS);
	verdict = KVMFAULT_VERDICT_LATER;
	answer = with_flags(1U << 3, EFAULT);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_PENDING);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_NONE);
	ck_assert_uint_eq(bed.reads, 0);
}

TEST(own, failed_memory_is_not_for_ours)
{
	struct kvmfault__answer answer = with_flags(0, EHWPOISON);

	ck_assert_uint_eq(asked, 1);
	ck_assert_uint_eq(bed.reads, 0);
	ck_assert_uint_eq(fake_count(FAKE_MADVISE,
				     KVMFAULT__MADV_POPULATE_READ), 0);
	ck_assert_uint_eq(fake_count(FAKE_MADVISE,
				     KVMFAULT__MADV_POPULATE_WRITE), 0);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_HWPOISON);
	ck_assert_int_eq(answer.error, -EHWPOISON);
	verdict = KVMFAULT_VERDICT_RESOLVED;
	ck_assert_int_eq(with_flags(0, EHWPOISON).action, KVMFAULT_ACTION_RETRY);
}

static int check_no_region(struct kvmfault_request *request)
{
	ck_assert_ptr_null(request->region);
	ck_assert_ptr_null(request->memory);
	ck_assert_ptr_null(request->host);
	ck_assert_int_eq(request->page, KVMFAULT_PAGE_UNTRACKED);
	return verdict;
}

TEST(own, no_region)
{
	struct kvmfault__answer answer;

	own = check_no_region;
	answer = by_call(BED_PAGES);
	ck_assert_uint_eq(asked, 1);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_NO_REGION);
	verdict = KVMFAULT_VERDICT_RESOLVED;
	ck_assert_int_eq(by_call(BED_PAGES).action, KVMFAULT_ACTION_RETRY);
}

static int check_guest_memfd(struct kvmfault_request *request)
{
	ck_assert_ptr_nonnull(request->region);
	ck_assert_int_eq(request->region->guest_memfd, 77);
	ck_assert_ptr_null(request->memory);
	ck_assert_ptr_null(request->host);
	ck_assert_uint_eq(request->offset, PAGE);
	ck_assert_uint_eq(request->length, PAGE);
	return KVMFAULT_VERDICT_RESOLVED;
}

TEST(own, guest_memfd_only)
{
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = BED_GPA + BED_PAGES * PAGE,
		.length = 2 * PAGE,
		.guest_memfd = 77,
	};

	ck_assert_int_eq(kvmfault_region_add(bed.vm, &region), 0);
	ck_assert_int_eq(by_call(BED_PAGES + 1).reason,
			 KVMFAULT_REASON_DECLINED);
	own = check_guest_memfd;
	ck_assert_int_eq(by_call(BED_PAGES + 1).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, region.gpa), 0);
}

/* ---- threads ---- */

#define THREADS 4

static atomic_uint at_once, most;
static pthread_barrier_t barrier;

static void count_in_read(void)
{
	unsigned int now = atomic_fetch_add(&at_once, 1) + 1;

	if (now > atomic_load(&most))
		atomic_store(&most, now);
	while (bed_stats().waited < THREADS - 1)
		sched_yield();
	atomic_fetch_sub(&at_once, 1);
}

static void *ask_for_page(void *arg)
{
	struct kvmfault__seat *seat = kvmfault__seat_take(bed.vm);
	struct kvmfault_fault fault = {
		.size = sizeof(fault),
		.kind = KVMFAULT_KIND_CALL,
		.gpa = BED_GPA + 3 * PAGE,
	};
	struct kvmfault__answer *answer = arg;

	pthread_barrier_wait(&barrier);
	kvmfault__resolve_gpa(seat, &fault, fault.gpa, answer);
	kvmfault__seat_give(seat);
	return NULL;
}

static void ask_by_threads(struct kvmfault__answer *answer)
{
	pthread_t thread[THREADS];
	size_t i;

	pthread_barrier_init(&barrier, NULL, THREADS);
	for (i = 0; i < THREADS; i++)
		pthread_create(&thread[i], NULL, ask_for_page, &answer[i]);
	for (i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
}

TEST(page, many_threads_one_fetch)
{
	struct kvmfault__answer answer[THREADS];
	size_t i;

	/* The fetch ends when all the others wait for it. */
	bed.during_read = count_in_read;
	ask_by_threads(answer);
	for (i = 0; i < THREADS; i++) {
		ck_assert_int_eq(answer[i].action, KVMFAULT_ACTION_RETRY);
		ck_assert(answer[i].came);
	}
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(most, 1);
	ck_assert_uint_eq(bed_stats().fetched, 1);
	ck_assert_uint_eq(bed_stats().waited, THREADS - 1);
	ck_assert(bed_has(3, bed_byte(3)));
}

TEST(page, failing_fetch_wakes_the_waiters)
{
	struct kvmfault__answer answer[THREADS];
	size_t i;

	bed.during_read = count_in_read;
	bed.source_result = -EIO;
	ask_by_threads(answer);
	/* Each tries for itself, and each is told. */
	for (i = 0; i < THREADS; i++) {
		ck_assert_int_eq(answer[i].action, KVMFAULT_ACTION_UNRESOLVED);
		ck_assert_int_eq(answer[i].reason, KVMFAULT_REASON_SOURCE);
	}
	ck_assert_uint_eq(bed.reads, THREADS);
	ck_assert_int_eq(bed_state(3), KVMFAULT__ABSENT);
}

TEST_EACH(page, latency_has_a_bin_for_everything, 7)
{
	static const struct {
		uint64_t ns;
		size_t bin;
	} cases[] = {
		{ 0, 0 }, { 999, 0 }, { 1000, 1 }, { 1999, 1 }, { 2000, 2 },
		{ 4000, 3 }, { 1ULL << 62, KVMFAULT_LATENCY_COUNT - 1 },
	};
	struct kvmfault_stats stats;

	kvmfault__latency(bed.seat, cases[_i].ns);
	stats = bed_stats();
	ck_assert_uint_eq(stats.latency[cases[_i].bin], 1);
}

int main(void)
{
	return run_suite("resolve");
}
