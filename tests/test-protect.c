/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * protect.c, resolver-unprotect.c, and what the one path does with protected
 * pages: nobody writes before the page was saved, whichever way he comes, and it
 * is saved once.
 */

#include <linux/userfaultfd.h>
#include <sched.h>
#include <string.h>

#include "bed.h"

#define ALL (BED_PAGES * PAGE)

/* The hook: what it was asked, and what it says. */
static struct {
	unsigned int asked;
	struct kvmfault_request request;
	char byte;			/* that the page began with */
	int verdict;
	void (*during)(void);		/* once */
} hook;

static int on_protected(void *data, struct kvmfault_request *request)
{
	void (*during)(void) = hook.during;

	(void)data;
	fake_called_back();
	hook.asked++;
	hook.request = *request;
	hook.byte = *(const char *)request->host;
	hook.during = NULL;
	if (during)
		fake_aside(during);
	return hook.verdict;
}

static void up_with(bool minor)
{
	static const struct kvmfault_resolver resolver = {
		.size = sizeof(resolver),
		.name = "snapshot",
		.pages = 1U << KVMFAULT_PAGE_PROTECTED,
		.resolve = on_protected,
	};

	memset(&hook, 0, sizeof(hook));
	hook.verdict = KVMFAULT_VERDICT_RESOLVED;
	bed_vm();
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &resolver), 0);
	bed.write_protect = true;
	bed.minor = minor;
	bed_add();
}

static void up(void)
{
	up_with(false);
}

static void up_minor(void)
{
	up_with(true);
}

static int ensure(uint64_t page, bool write)
{
	return kvmfault_ensure(bed.vm, 0, BED_GPA + page * PAGE, 1, write);
}

static int protect(void)
{
	return kvmfault_protect(bed.vm, 0, BED_GPA, ALL);
}

static int unprotect(void)
{
	return kvmfault_unprotect(bed.vm, 0, BED_GPA, ALL);
}

static int discard(uint64_t page)
{
	return kvmfault_discard(bed.vm, 0, BED_GPA + page * PAGE, PAGE);
}

static struct kvmfault__answer message_of(struct kvmfault_mapping *origin,
					  uint64_t page, bool write)
{
	struct kvmfault_fault fault = {
		.size = sizeof(fault),
		.kind = KVMFAULT_KIND_UFFD,
		.access = write ? KVMFAULT_ACCESS_WRITE : KVMFAULT_ACCESS_READ,
		.known = KVMFAULT_KNOWN_HVA,
		.hva = origin->host + page * PAGE,
		.length = PAGE,
	};
	const struct kvmfault__target place = {
		.memory = bed.memory,
		.origin = origin,
		.offset = page * PAGE,
	};
	struct kvmfault__answer answer;

	kvmfault__resolve(bed.seat, &fault, &place, &answer);

	kvmfault__leave(bed.seat);
	return answer;
}

static struct kvmfault__answer message(uint64_t page, bool write)
{
	const struct kvmfault__mappings *all =
		atomic_load(&bed.memory->mappings);

	return message_of(all->mapping[0], page, write);
}

/* Nobody writes to it unseen; or whoever wants to can. */
static void expect_protected(uint64_t page, bool yes)
{
	ck_assert_int_eq(kvmfault__page_protected(bed.memory, page), yes);
	ck_assert_int_eq(fake_protected(bed_page(page)), yes);
}

/* ---- the hook has it before it is written ---- */

TEST_GROUP(hook, up, bed_down);

TEST(hook, present_page_is_saved_once)
{
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(protect(), 0);
	expect_protected(3, true);
	ck_assert_int_eq(message(3, true).action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(hook.asked, 1);
	ck_assert_int_eq(hook.request.page, KVMFAULT_PAGE_PROTECTED);
	ck_assert_ptr_eq(hook.request.memory, bed.memory);
	ck_assert_uint_eq(hook.request.offset, 3 * PAGE);
	ck_assert_uint_eq(hook.request.length, PAGE);
	ck_assert_ptr_eq(hook.request.host, bed_page(3));
	ck_assert_int_eq(hook.byte, bed_byte(3));
	expect_protected(3, false);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	expect_protected(4, true);
	/* Read late: it has nothing to wait for any more. */
	ck_assert_int_eq(message(3, true).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_uint_eq(hook.asked, 1);
	ck_assert_uint_eq(bed_stats().page[KVMFAULT_PAGE_PROTECTED], 1);
	ck_assert_uint_eq(bed_stats().repeated, 1);
	ck_assert_uint_eq(bed.reads, 1);
}

TEST(hook, reading_saves_nothing)
{
	ck_assert_int_eq(ensure(3, false), 0);
	ck_assert_int_eq(protect(), 0);
	ck_assert_int_eq(message(3, false).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(ensure(3, false), 0);
	ck_assert_int_eq(message(4, false).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_mmio(BED_GPA + 3 * PAGE, 8, false),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(hook.asked, 0);
	expect_protected(3, true);
	expect_protected(4, true);
}

TEST(hook, absent_page_comes_protected)
{
	ck_assert_int_eq(protect(), 0);
	ck_assert_int_eq(message(3, false).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, bed_byte(3)));
	expect_protected(3, true);
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(hook.byte, bed_byte(3));
	expect_protected(3, false);
}

TEST_EACH(hook, absent_page_is_fetched_and_saved, 2)
{
	ck_assert_int_eq(protect(), 0);
	ck_assert_int_eq(_i ? ensure(3, true) : message(3, true).error, 0);
	ck_assert_uint_eq(bed.reads, 1);
	ck_assert_uint_eq(hook.asked, 1);
	ck_assert_int_eq(hook.byte, bed_byte(3));
	expect_protected(3, false);
}

TEST(hook, discarded_page_comes_protected_too)
{
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(discard(3), 0);
	ck_assert_int_eq(protect(), 0);
	ck_assert_int_eq(message(3, false).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, 0));
	/* That call knows of no protection. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_ZEROPAGE), 0);
	expect_protected(3, true);
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_uint_eq(hook.asked, 1);
	ck_assert_int_eq(hook.byte, 0);
}

TEST(hook, gone_behind_our_back_comes_protected_too)
{
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(protect(), 0);
	kvmfault__memory_punch(bed.memory, 3 * PAGE, PAGE);
	ck_assert_int_eq(message(3, false).action, KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(3, 0));
	expect_protected(3, true);
}

TEST(hook, exit_is_taken_for_a_write)
{
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(protect(), 0);
	ck_assert_int_eq(bed_exit(BED_GPA + 3 * PAGE, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(hook.asked, 1);
	ck_assert_str_eq(kvmfault_vcpu_result(bed.vcpu)->resolver, "snapshot");
	/* It can go on: nothing else is to be done. */
	ck_assert_uint_eq(fake_count(FAKE_MADVISE,
				     KVMFAULT__MADV_POPULATE_WRITE), 0);
}

TEST(hook, mmio_write_waits_for_the_hook)
{
	ck_assert_int_eq(protect(), 0);
	memset(bed.run->mmio.data, 0x5a, 8);
	hook.verdict = KVMFAULT_VERDICT_LATER;
	ck_assert_int_eq(bed_mmio(BED_GPA + 3 * PAGE, 8, true),
			 KVMFAULT_ACTION_PENDING_UNFINISHED);
	ck_assert(bed_has(3, bed_byte(3)));
	expect_protected(3, true);
	hook.verdict = KVMFAULT_VERDICT_RESOLVED;
	ck_assert_int_eq(bed_mmio(BED_GPA + 3 * PAGE, 8, true),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(hook.byte, bed_byte(3));
	ck_assert_int_eq(*bed_page(3), 0x5a);
	ck_assert_uint_eq(hook.asked, 2);
}

TEST(hook, nobody_wants_it)
{
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(protect(), 0);
	hook.verdict = KVMFAULT_VERDICT_DECLINED;
	ck_assert_str_eq(message(3, true).resolver, "unprotect");
	expect_protected(3, false);
}

/* ---- what can fail ---- */

TEST(hook, failing_hook_holds_everybody)
{
	struct kvmfault__answer answer;

	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(protect(), 0);
	hook.verdict = -EIO;
	answer = message(3, true);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(answer.reason, KVMFAULT_REASON_RESOLVER);
	ck_assert_int_eq(answer.error, -EIO);
	/* Awake it would only come again. */
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 0);
	ck_assert_int_eq(ensure(3, true), -EIO);
	ck_assert_int_eq(discard(3), -EIO);
	ck_assert_int_eq(bed_exit(BED_GPA + 3 * PAGE, 0), KVMFAULT_ACTION_UNRESOLVED);
	hook.verdict = -EINTR;
	ck_assert_int_eq(ensure(3, true), -EINTR);
	hook.verdict = KVMFAULT_VERDICT_LATER;
	ck_assert_int_eq(ensure(3, true), -EAGAIN);
	ck_assert_int_eq(discard(3), -EAGAIN);
	ck_assert_int_eq(message(3, true).action, KVMFAULT_ACTION_PENDING);
	expect_protected(3, true);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	hook.verdict = KVMFAULT_VERDICT_RESOLVED;
	ck_assert_int_eq(message(3, true).action, KVMFAULT_ACTION_RETRY);
	expect_protected(3, false);
}

/* It is saved, and the kernel protects it still: that is found out. */
TEST(hook, protection_that_cannot_be_lifted_now)
{
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(protect(), 0);
	fake_push(FAKE_IOCTL, -EAGAIN);
	ck_assert_int_eq(message(3, true).error, -EAGAIN);
	ck_assert(!kvmfault__page_protected(bed.memory, 3));
	ck_assert(fake_protected(bed_page(3)));
	ck_assert_int_eq(message(3, false).error, 0);
	ck_assert(fake_protected(bed_page(3)));
	ck_assert_int_eq(message(3, true).error, 0);
	expect_protected(3, false);
	ck_assert_uint_eq(hook.asked, 1);
}

TEST(hook, neighbours_come_as_protected_as_the_page)
{
	bed.memory->window = KVMFAULT_WINDOW_FIXED;
	bed.memory->window_pages = 4;
	ck_assert_int_eq(kvmfault_protect(bed.vm, 0, BED_GPA + PAGE, PAGE), 0);
	ck_assert_int_eq(ensure(0, true), 0);
	expect_protected(1, true);
	/* Too much, until somebody wants to write. */
	ck_assert(fake_protected(bed_page(2)));
	ck_assert_int_eq(message(2, true).action, KVMFAULT_ACTION_RETRY);
	expect_protected(2, false);
	ck_assert_uint_eq(hook.asked, 0);
	ck_assert_int_eq(message(1, true).action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(hook.asked, 1);
}

/* What is lost cannot be saved, and its markers are poison's from now on. */
TEST(hook, lost_at_the_source)
{
	ck_assert_int_eq(protect(), 0);
	bed.source_result = -EHWPOISON;
	ck_assert_int_eq(ensure(3, true), -EHWPOISON);
	ck_assert_int_eq(bed_state(3), KVMFAULT__POISONED);
	ck_assert(!fake_protected(bed_page(3)));
	ck_assert_uint_eq(hook.asked, 0);
	ck_assert_int_eq(discard(3), 0);
	ck_assert_uint_eq(hook.asked, 0);
	ck_assert_int_eq(ensure(3, false), 0);
	expect_protected(3, true);
}

/* ---- while a page is being saved ---- */

static void others_want_it(void)
{
	ck_assert_int_eq(bed_state(3), KVMFAULT__FETCHING);
	ck_assert_int_eq(message(3, true).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(3), KVMFAULT__FETCHING_WAITED);
	ck_assert_int_eq(message(4, true).action, KVMFAULT_ACTION_RETRY);
	/* It would wait for itself. */
	ck_assert_int_eq(ensure(3, true), -EDEADLK);
	ck_assert_int_eq(protect(), -EDEADLK);
	ck_assert_int_eq(unprotect(), -EDEADLK);
	ck_assert_int_eq(discard(3), -EDEADLK);
}

TEST(hook, who_comes_meanwhile_is_woken)
{
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(protect(), 0);
	hook.during = others_want_it;
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_uint_eq(hook.asked, 2);
	ck_assert_uint_ge(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
}

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool inside;
static int result;

static void stand_at_the_gate(void)
{
	atomic_store(&inside, true);
	pthread_mutex_lock(&gate);
	pthread_mutex_unlock(&gate);
}

/* Who sleeps in the kernel is done with it when it is saved, and who calls looks
 * again: it may be protected anew. */
static void *want_page(void *write)
{
	ck_assert_int_eq(write ? message(3, true).error : ensure(3, false), 0);
	return NULL;
}

static void *do_protect(void *arg)
{
	result = protect();
	return arg;
}

static void *do_unprotect(void *arg)
{
	result = unprotect();
	return arg;
}

/* One has the page, and the other waits for it. */
static void against(void *write, void *(*other)(void *))
{
	pthread_t threads[2];

	atomic_store(&inside, false);
	pthread_mutex_lock(&gate);
	pthread_create(&threads[0], NULL, want_page, write);
	while (!atomic_load(&inside))
		sched_yield();
	pthread_create(&threads[1], NULL, other, NULL);
	while (!fake_count(FAKE_FUTEX_WAIT, FAKE_ANY))
		sched_yield();
	pthread_mutex_unlock(&gate);
	pthread_join(threads[0], NULL);
	pthread_join(threads[1], NULL);
	ck_assert_int_eq(result, 0);
}

TEST(hook, protect_waits_for_a_fetch)
{
	bed.during_read = stand_at_the_gate;
	against(NULL, do_protect);
	ck_assert(bed_has(3, bed_byte(3)));
	expect_protected(3, true);
}

/* The next snapshot begins while the page is saved for the last one. */
TEST(hook, protect_waits_for_a_hook)
{
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(protect(), 0);
	hook.during = stand_at_the_gate;
	against(&gate, do_protect);
	expect_protected(3, true);
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_uint_eq(hook.asked, 2);
}

TEST(hook, unprotect_waits_for_a_hook)
{
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(protect(), 0);
	hook.during = stand_at_the_gate;
	against(&gate, do_unprotect);
	expect_protected(3, false);
	expect_protected(4, false);
	ck_assert_uint_eq(hook.asked, 1);
}

static void *do_discard(void *arg)
{
	result = discard(3);
	return arg;
}

/* Its fetcher would discard it too, and nobody would have saved it. */
TEST(hook, discard_waits_for_a_fetch)
{
	ck_assert_int_eq(protect(), 0);
	bed.during_read = stand_at_the_gate;
	against(NULL, do_discard);
	ck_assert_uint_eq(hook.asked, 1);
	ck_assert_int_eq(hook.byte, bed_byte(3));
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
	ck_assert(!fake_present(bed.fd, 3 * PAGE));
}

static bool interrupt(struct fake_call *call)
{
	call->result = -EINTR;
	return true;
}

static void interrupted(int (*call)(void))
{
	fake_on(FAKE_FUTEX_WAIT, interrupt);
	result = call();
	fake_on(FAKE_FUTEX_WAIT, NULL);
	ck_assert_int_eq(result, -EINTR);
	result = 0;
}

static void *protect_interrupted(void *arg)
{
	interrupted(protect);
	return arg;
}

static void *unprotect_interrupted(void *arg)
{
	interrupted(unprotect);
	return arg;
}

TEST(hook, a_signal_ends_the_wait_for_a_hook)
{
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(protect(), 0);
	hook.during = stand_at_the_gate;
	against(&gate, unprotect_interrupted);
}

TEST(hook, signals_end_the_waits)
{
	bed.during_read = stand_at_the_gate;
	against(NULL, protect_interrupted);
}

/* ---- discards ---- */

TEST(hook, discard_is_a_write)
{
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(ensure(4, true), 0);
	ck_assert_int_eq(protect(), 0);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA + 2 * PAGE,
					  3 * PAGE), 0);
	/* The first was absent: its data is not to be had later either. */
	ck_assert_uint_eq(hook.asked, 3);
	ck_assert_int_eq(hook.byte, bed_byte(4));
	ck_assert_uint_eq(bed.reads, 3);
	ck_assert_int_eq(bed_state(2), KVMFAULT__DISCARDED);
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
	ck_assert_int_eq(bed_state(4), KVMFAULT__DISCARDED);
	ck_assert(!fake_present(bed.fd, 3 * PAGE));
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_uint_eq(hook.asked, 3);
}

TEST(hook, discard_of_what_is_discarded_loses_nothing)
{
	ck_assert_int_eq(discard(3), 0);
	ck_assert_int_eq(protect(), 0);
	ck_assert_int_eq(discard(3), 0);
	ck_assert_uint_eq(hook.asked, 0);
	ck_assert(kvmfault__page_protected(bed.memory, 3));
}

/* What happens right before a page's state changes, once. */
static void (*before_change)(void);

BED_WRAPPED(kvmfault__page_change);

enum kvmfault__state
__wrap_kvmfault__page_change(struct kvmfault_memory *memory, uint64_t page,
			     enum kvmfault__state from,
			     enum kvmfault__state to)
{
	void (*before)(void) = before_change;

	before_change = NULL;
	if (before)
		fake_aside(before);
	return __real_kvmfault__page_change(memory, page, from, to);
}

static void protect_it(void)
{
	ck_assert_int_eq(protect(), 0);
}

TEST(hook, protected_while_a_discard_takes_it)
{
	ck_assert_int_eq(ensure(3, true), 0);
	before_change = protect_it;
	ck_assert_int_eq(discard(3), 0);
	ck_assert_uint_eq(hook.asked, 1);
	ck_assert_int_eq(hook.byte, bed_byte(3));
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
}

static void save_it(void)
{
	ck_assert_int_eq(ensure(3, true), 0);
}

TEST_EACH(hook, saved_by_another_meanwhile, 2)
{
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(protect(), 0);
	before_change = save_it;
	ck_assert_int_eq(_i ? message(3, true).error : ensure(3, true), 0);
	ck_assert_uint_eq(hook.asked, 1);
	expect_protected(3, false);
}

/* ---- more than one mapping ---- */

static struct kvmfault_mapping *add_mapping(void **host)
{
	struct kvmfault_mapping_options options = { .size = sizeof(options) };
	struct kvmfault_mapping *mapping;

	*host = fake_map(bed.fd);
	options.host = (uintptr_t)*host;
	ck_assert_int_eq(kvmfault_mapping_add(bed.memory, &options, &mapping),
			 0);
	return mapping;
}

static struct kvmfault_mapping *elsewhere;
static bool its_write;
static size_t mapped;

static void somebody_wants_it(void)
{
	size_t before = fake_count(FAKE_IOCTL, UFFDIO_CONTINUE);

	message_of(elsewhere, 3, its_write);
	mapped = fake_count(FAKE_IOCTL, UFFDIO_CONTINUE) - before;
	ck_assert(fake_protected((void *)(uintptr_t)(elsewhere->host +
						     3 * PAGE)));
}

/* Where it has not been touched yet; who saves it may need that reader. */
TEST_EACH(hook, read_while_it_is_saved, 2)
{
	void *host;

	elsewhere = add_mapping(&host);
	ck_assert_int_eq(ensure(3, false), 0);
	ck_assert_int_eq(protect(), 0);
	its_write = _i;
	hook.during = somebody_wants_it;
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_uint_eq(hook.asked, 1);
	ck_assert_uint_eq(mapped, !its_write);
	ck_assert(!fake_protected((char *)host + 3 * PAGE));
}

TEST(hook, every_mapping)
{
	struct kvmfault_mapping *mapping;
	void *host;

	mapping = add_mapping(&host);
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(protect(), 0);
	ck_assert(fake_protected((char *)host + 3 * PAGE));
	/* Of what is still absent too: it comes through another one. */
	ck_assert(fake_protected((char *)host + 4 * PAGE));
	ck_assert_int_eq(message_of(mapping, 3, true).action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(hook.asked, 1);
	expect_protected(3, false);
	ck_assert(!fake_protected((char *)host + 3 * PAGE));
	ck_assert_int_eq(message_of(mapping, 4, true).action, KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(hook.asked, 2);
	ck_assert(!fake_protected((char *)host + 4 * PAGE));
}

TEST(hook, mapping_that_comes_later)
{
	struct kvmfault_mapping_options options = { .size = sizeof(options) };
	struct kvmfault_mapping *mapping;
	void *host;

	ck_assert_int_eq(kvmfault_protect(bed.vm, 0, BED_GPA + 3 * PAGE,
					  2 * PAGE), 0);
	add_mapping(&host);
	ck_assert(!fake_protected((char *)host + 2 * PAGE));
	ck_assert(fake_protected((char *)host + 3 * PAGE));
	ck_assert(fake_protected((char *)host + 4 * PAGE));
	ck_assert(!fake_protected((char *)host + 5 * PAGE));
	/* One that can't be is none. */
	options.host = (uintptr_t)fake_map(bed.fd);
	fake_push(FAKE_IOCTL, FAKE_MODEL);	/* UFFDIO_API, */
	fake_push(FAKE_IOCTL, FAKE_MODEL);	/* UFFDIO_REGISTER */
	fake_push(FAKE_IOCTL, FAKE_MODEL);
	fake_push(FAKE_IOCTL, -ENOMEM);
	ck_assert_int_eq(kvmfault_mapping_add(bed.memory, &options, &mapping),
			 -ENOMEM);
	ck_assert_ptr_null(mapping);
	ck_assert(!fake_registered((void *)(uintptr_t)options.host));
	ck_assert_uint_eq(fake_count(FAKE_MPROTECT, FAKE_ANY), 0);
}

/* A process that is gone writes nothing. */
TEST(hook, process_that_is_gone)
{
	void *host;

	add_mapping(&host);
	fake_push(FAKE_IOCTL, -ESRCH);
	ck_assert_int_eq(protect(), 0);
	ck_assert(fake_protected((char *)host + 3 * PAGE));
}

/* ---- unprotect ---- */

TEST(hook, unprotect_asks_nobody)
{
	uint64_t page;

	for (page = 0; page < BED_PAGES; page += 3)
		ck_assert_int_eq(ensure(page, true), 0);
	ck_assert_int_eq(discard(1), 0);
	ck_assert_int_eq(protect(), 0);
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(unprotect(), 0);
	ck_assert_uint_eq(hook.asked, 1);
	for (page = 0; page < BED_PAGES; page++) {
		expect_protected(page, false);
		ck_assert_int_eq(bed_state(page), page == 1 ?
				 KVMFAULT__DISCARDED : page % 3 ?
				 KVMFAULT__ABSENT : KVMFAULT__PRESENT);
	}
	ck_assert_int_eq(ensure(4, true), 0);
	ck_assert_uint_eq(hook.asked, 1);
}

TEST(hook, unprotect_a_part)
{
	ck_assert_int_eq(protect(), 0);
	ck_assert_int_eq(kvmfault_unprotect(bed.vm, 0, BED_GPA + 3 * PAGE,
					    2 * PAGE), 0);
	expect_protected(2, true);
	expect_protected(3, false);
	expect_protected(4, false);
	expect_protected(5, true);
}

/* Somebody falls asleep on a page, and another discards one, just then. */
static bool while_it_is_lifted(struct fake_call *call)
{
	if (call->number != UFFDIO_WRITEPROTECT)
		return false;
	fake_on(FAKE_IOCTL, NULL);
	ck_assert_int_eq(bed_state(3), KVMFAULT__FETCHING);
	ck_assert_int_eq(message(3, true).action, KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(kvmfault__discard(bed.seat, bed.memory, 4 * PAGE, PAGE,
					   false), 0);
	return false;
}

TEST(hook, unprotect_holds_the_pages)
{
	ck_assert_int_eq(ensure(3, true), 0);
	ck_assert_int_eq(ensure(4, true), 0);
	ck_assert_int_eq(protect(), 0);
	fake_forget();
	fake_on(FAKE_IOCTL, while_it_is_lifted);
	ck_assert_int_eq(kvmfault_unprotect(bed.vm, 0, BED_GPA + 3 * PAGE,
					    2 * PAGE), 0);
	ck_assert_uint_ge(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_int_eq(bed_state(4), KVMFAULT__DISCARDED);
	ck_assert(!fake_present(bed.fd, 4 * PAGE));
}

/* ---- minor faults ---- */

TEST_GROUP(minor, up_minor, bed_down);

TEST(minor, minor_pages_too)
{
	struct kvmfault_mapping *mapping;
	void *host;

	mapping = add_mapping(&host);
	ck_assert_int_eq(protect(), 0);
	ck_assert_int_eq(ensure(3, false), 0);
	expect_protected(3, true);
	/* The other one is told of it, and it stays protected. */
	ck_assert_int_eq(message_of(mapping, 3, false).error, 0);
	ck_assert(fake_protected((char *)host + 3 * PAGE));
	ck_assert_int_eq(message_of(mapping, 3, true).error, 0);
	ck_assert_uint_eq(hook.asked, 1);
	ck_assert_int_eq(hook.byte, bed_byte(3));
	/* Where the hook can't be kept waiting for what it has in hand. */
	ck_assert_ptr_eq(hook.request.host, bed.memory->fill + 3 * PAGE);
	expect_protected(3, false);
	ck_assert(!fake_protected((char *)host + 3 * PAGE));
}

/* A message for a page that has just been protected again. */
TEST(minor, minor_page_is_mapped_as_it_is_now)
{
	struct kvmfault_mapping *mapping;
	void *host;

	mapping = add_mapping(&host);
	ck_assert_int_eq(ensure(3, false), 0);
	ck_assert_int_eq(message_of(mapping, 3, true).error, 0);
	ck_assert(!fake_protected((char *)host + 3 * PAGE));
	ck_assert_int_eq(protect(), 0);
	ck_assert_int_eq(message_of(mapping, 3, false).error, 0);
	ck_assert(fake_protected((char *)host + 3 * PAGE));
}

static pthread_t protecting;
static atomic_bool protected;

static void *protect_meanwhile(void *arg)
{
	ck_assert_int_eq(protect(), 0);
	atomic_store(&protected, true);
	return arg;
}

/* It waits until the page is mapped, or else that undoes what it has done. */
static bool while_it_is_mapped(struct fake_call *call)
{
	if (call->number != UFFDIO_CONTINUE)
		return false;
	fake_on(FAKE_IOCTL, NULL);
	pthread_create(&protecting, NULL, protect_meanwhile, NULL);
	while (!atomic_load(&protected) &&
	       !fake_count(FAKE_FUTEX_WAIT, FAKE_ANY))
		sched_yield();
	return false;
}

TEST(minor, minor_page_is_protected_while_it_is_mapped)
{
	struct kvmfault_mapping *mapping;
	void *host;

	mapping = add_mapping(&host);
	ck_assert_int_eq(ensure(3, false), 0);
	fake_on(FAKE_IOCTL, while_it_is_mapped);
	ck_assert_int_eq(message_of(mapping, 3, false).error, 0);
	pthread_join(protecting, NULL);
	expect_protected(3, true);
	ck_assert(fake_protected((char *)host + 3 * PAGE));
}

/* ---- what is refused ---- */

static int new_memory(bool minor, bool source)
{
	struct kvmfault_source with = bed_source();
	struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.length = ALL,
		.source = source ? &with : NULL,
		.minor = minor,
		.write_protect = true,
	};
	struct kvmfault_memory *memory;
	void *host;
	int err;

	options.fd = fake_memory(ALL, 0, &host);
	options.host = host;
	err = kvmfault_memory_adopt(bed.vm, &options, &memory);
	if (!err)
		ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	return err;
}

/* As a kernel before 6.4 says to a mode that it does not know. */
static bool no_mode(struct fake_call *call)
{
	const struct uffdio_continue *cont = call->arg;

	call->result = -EINVAL;
	return call->number == UFFDIO_CONTINUE && cont->mode;
}

TEST(hook, memories_that_cannot_be)
{
	ck_assert_int_eq(new_memory(false, false), -EINVAL);
	ck_assert_int_eq(new_memory(true, true), 0);
	fake_on(FAKE_IOCTL, no_mode);
	ck_assert_int_eq(new_memory(true, true), -EOPNOTSUPP);
	ck_assert_ptr_nonnull(strstr(bed.log, "6.4"));
	ck_assert_int_eq(new_memory(false, true), 0);
	fake_on(FAKE_IOCTL, NULL);
	fake_push(FAKE_IOCTL, FAKE_MODEL);
	fake_push(FAKE_IOCTL, FAKE_MODEL);
	fake_push(FAKE_IOCTL, -EINVAL);
	ck_assert_int_eq(new_memory(false, true), -EOPNOTSUPP);
	ck_assert_ptr_nonnull(strstr(bed.log, "5.19"));
}

static int (*const calls[])(struct kvmfault_vm *vm, uint32_t space,
			    uint64_t gpa, uint64_t length) = {
	kvmfault_protect, kvmfault_unprotect,
};

TEST_EACH(hook, bad_ranges, 2)
{
	ck_assert_int_eq(calls[_i](NULL, 0, BED_GPA, PAGE), -EINVAL);
	ck_assert_int_eq(calls[_i](bed.vm, 0, BED_GPA, 0), -EINVAL);
	ck_assert_int_eq(calls[_i](bed.vm, 0, BED_GPA + 1, PAGE), -EINVAL);
	ck_assert_int_eq(calls[_i](bed.vm, 0, BED_GPA, PAGE + 1), -EINVAL);
	ck_assert_int_eq(calls[_i](bed.vm, 0, -PAGE, 2 * PAGE), -EINVAL);
	ck_assert_int_eq(calls[_i](bed.vm, 0, BED_GPA - PAGE, PAGE), -ENXIO);
	ck_assert_int_eq(calls[_i](bed.vm, 0, BED_GPA, ALL + PAGE), -ENXIO);
	ck_assert_int_eq(calls[_i](bed.vm, 1, BED_GPA, PAGE), -ENXIO);
	bed.memory->write_protect = false;
	ck_assert_int_eq(calls[_i](bed.vm, 0, BED_GPA, PAGE), -EOPNOTSUPP);
	bed.memory->write_protect = true;
}

TEST(hook, what_the_kernel_says)
{
	ck_assert_int_eq(ensure(3, true), 0);
	fake_push(FAKE_IOCTL, -EAGAIN);
	ck_assert_int_eq(protect(), -EAGAIN);
	/* A hole is nothing that could be written. */
	fake_push(FAKE_IOCTL, -ENOENT);
	ck_assert_int_eq(protect(), 0);
	/* Then it is at the first write. */
	fake_push(FAKE_IOCTL, -EAGAIN);
	ck_assert_int_eq(unprotect(), 0);
	ck_assert_int_eq(message(3, true).error, 0);
	expect_protected(3, false);
	ck_assert_uint_eq(hook.asked, 0);
	bed_take_seats();
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(protect(), -ENOMEM);
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(unprotect(), -ENOMEM);
	bed_give_seats();
}

int main(void)
{
	return run_suite("protect");
}
