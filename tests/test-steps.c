/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Two threads and one page. The first does one thing; at each step of the flow
 * it is stopped, once, and the second does another thing, until that is done or
 * sleeps. (A third may have come during the fetch.) All steps, all pairs, and
 * all that may go wrong with either: after each of them the page is in a state
 * that is true, nobody sleeps who should be awake, and no zeros stand where
 * data should be.
 */

#include <string.h>
#include <sys/mman.h>

#include "steps.h"

#define SECOND 1000000000ULL

enum trouble {
	NONE, SOURCE_FAILS, NOT_NOW, THERE_ALREADY, NO_PUNCH,
	SIGNAL,			/* to the second, if it sleeps */
	TROUBLES
};

static enum trouble trouble, trouble_at_first;
static bool was_present;	/* before it all */

#define MUST(what) \
	ck_assert_msg(what, "stopped %s, trouble %d: not so: %s", stopped, \
		      (int)trouble_at_first, #what)

/* ---- what is done to the page, and what has to come of it ---- */

struct deed {
	int (*run)(void);
	bool page, removes;	/* it wants the page there, or gone */
	int third;		/* which of the seconds comes while it fetches,
				 * from 1 */
	int result;
	bool done;
	size_t woken_before;	/* a message's: see woken() */
};

static int ensure(void)
{
	return kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false);
}

static int vcpu_exit(void)
{
	enum kvmfault_action action = bed_exit(BED_GPA, 0);

	if (action == KVMFAULT_ACTION_UNRESOLVED)
		return kvmfault_vcpu_result(bed.vcpu)->error;
	ck_assert_int_eq(action, KVMFAULT_ACTION_RETRY);
	return kvmfault_vcpu_result(bed.vcpu)->error;
}

static int message(void)
{
	bed_touch(0, false);
	return kvmfault_service_dispatch(bed.service);
}

static int discard(void)
{
	return kvmfault_discard(bed.vm, 0, BED_GPA, PAGE);
}

static int remove_region(void)
{
	return kvmfault_region_remove(bed.vm, 0, BED_GPA);
}

static int take_down(void)
{
	int err = remove_region();

	if (!err)
		err = kvmfault_memory_free(bed.memory);
	bed.memory = err ? bed.memory : NULL;
	return err;
}

static const struct deed firsts[] = {
	{ .run = ensure, .page = true },
	{ .run = vcpu_exit, .page = true },
	{ .run = message },
	{ .run = discard, .removes = true },
	{ .run = ensure, .page = true, .third = 2 },
	{ .run = ensure, .page = true, .third = 3 },
	{ .run = message, .third = 3 },
};
#define FIRSTS 7

static const struct deed seconds[] = {
	{ .run = ensure, .page = true },
	{ .run = message },
	{ .run = discard, .removes = true },
	{ .run = remove_region },
	{ .run = take_down },
};
#define SECONDS 5

static struct deed deeds[3];
static struct deed *const first = &deeds[0], *const second = &deeds[1],
	*const third = &deeds[2];

/* How often the kernel has woken who sleeps on the page. */
static size_t woken(void)
{
	static const uint64_t install[] = { UFFDIO_COPY, UFFDIO_ZEROPAGE };
	const struct fake_call *call;
	size_t i, k, n = fake_count(FAKE_IOCTL, UFFDIO_WAKE);

	for (k = 0; k < 2; k++)
		for (i = 0; (call = fake_nth(FAKE_IOCTL, install[k], i)); i++)
			n += !call->result;
	return n;
}

static void carry_out(void *arg)
{
	struct deed *deed = arg;

	deed->done = true;
	deed->woken_before = woken();
	deed->result = deed->run();
}

/* ---- the steps ---- */

static struct helper helpers[2];

static void pass(const char *where)
{
	if (!stops(where))
		return;
	helper_start(&helpers[0], carry_out, second);
	if (trouble != SIGNAL || second->run == take_down)
		return;
	still_signal();
	helper_join(&helpers[0]);
}

BED_WRAPPED(kvmfault__page_claim);
BED_WRAPPED(kvmfault__page_wake);

enum kvmfault__state __wrap_kvmfault__page_claim(struct kvmfault_memory *memory,
						 uint64_t page, bool sleeper)
{
	enum kvmfault__state state;

	pass("before the claim");
	state = __real_kvmfault__page_claim(memory, page, sleeper);
	pass("after the claim");
	return state;
}

void __wrap_kvmfault__page_wake(struct kvmfault_memory *memory, uint64_t page)
{
	pass("before the wake");
	__real_kvmfault__page_wake(memory, page);
	pass("after the wake");
}

static void in_read(void)
{
	if (third->run)
		helper_start(&helpers[1], carry_out, third);
	pass("in the read");
}

static bool in_ioctl(struct fake_call *call)
{
	bool copy = call->number == UFFDIO_COPY ||
		    call->number == UFFDIO_ZEROPAGE;

	if (!copy && call->number != UFFDIO_WAKE)
		return false;
	pass(copy ? "before the copy" : "before the kernel's wake");
	if (copy && trouble == NOT_NOW)
		call->result = -EAGAIN;
	else
		fake_model(call);
	pass(copy ? "after the copy" : "after the kernel's wake");
	return true;
}

static bool in_punch(struct fake_call *call)
{
	pass("before the punch");
	if (trouble == NO_PUNCH)
		call->result = -ENOSPC;
	else
		fake_model(call);
	pass("after the punch");
	return true;
}

/* ---- before ---- */

static void up(void)
{
	bed_up();
	bed_service(0);
	if (was_present)
		ck_assert_int_eq(ensure(), 0);
	if (trouble == THERE_ALREADY && !was_present) {
		memset(bed_page(0), bed_byte(0), PAGE);
		fake_put(bed.fd, 0);
	}
	bed.reads = 0;
	bed.during_read = in_read;
	bed.source_result = trouble == SOURCE_FAILS ? -EIO : 0;
	fake_forget();
	still_clock();
	fake_on(FAKE_IOCTL, in_ioctl);
	fake_on(FAKE_FALLOCATE, in_punch);
}

/* ---- after ---- */

static bool holds(char byte)
{
	return bed_has(0, byte);
}

static void check_result(const struct deed *deed, bool tried)
{
	static const int errors[TROUBLES][2] = {
		/* to have it, to remove it */
		[SOURCE_FAILS] = { -EIO, 0 },
		[NOT_NOW] = { -EAGAIN, 0 },
		[NO_PUNCH] = { 0, -ENOSPC },
	};
	int error = errors[trouble][deed->removes];

	if (deed->result == -ENXIO && second->run == remove_region)
		return;		/* too late: there is no region any more */
	if (deed->result == -EINTR && trouble == SIGNAL)
		return;
	MUST(!deed->result || deed->result == error);
	if (deed->page && !deed->result && !tried)
		MUST(bed_state(0) == KVMFAULT__PRESENT);
}

static void check_page(bool tried, bool removed)
{
	enum kvmfault__state state = bed_state(0);

	MUST(state == KVMFAULT__ABSENT || state == KVMFAULT__PRESENT ||
	     state == KVMFAULT__DISCARDED);
	if (state == KVMFAULT__PRESENT)
		MUST(holds(bed_byte(0)) || (tried && holds(0)));
	if (state == KVMFAULT__DISCARDED)
		MUST(tried && !fake_present(bed.fd, 0));
	if (removed)
		MUST(state == KVMFAULT__DISCARDED || holds(0));
	if (!tried && (was_present || trouble == NONE))
		MUST(bed.reads <= 1);
}

/* Nothing is wrong any more: whose message was parked is awake now, too. */
static void check_messages(void)
{
	size_t i;

	trouble = NONE;
	bed.source_result = 0;
	fake_advance(10 * SECOND);
	MUST(!kvmfault_service_dispatch(bed.service));
	for (i = 0; i < 3; i++)
		if (deeds[i].done && deeds[i].run == message)
			MUST(woken() > deeds[i].woken_before);
}

/* Whatever it was, it works now. */
static void check_usable(bool tried, bool gone)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = BED_GPA,
		.length = BED_PAGES * PAGE, .memory = bed.memory,
	};

	if (second->run == remove_region && second->done)
		MUST(!kvmfault_region_add(bed.vm, &region));
	MUST(!ensure());
	MUST(bed_state(0) == KVMFAULT__PRESENT);
	MUST(gone ? holds(0) : holds(bed_byte(0)) || (tried && holds(0)));
}

static void check_taken_down(void)
{
	const struct fake_call *protect = fake_nth(FAKE_MPROTECT, PROT_NONE,
						   0), *copy;
	size_t i;

	MUST(!second->result);
	/* Pages are absent: guarded, and nothing comes after. */
	MUST(protect);
	MUST(!fake_registered(bed.host));
	for (i = 0; (copy = fake_nth(FAKE_IOCTL, UFFDIO_COPY, i)); i++)
		MUST(copy < protect);
}

static void check(void)
{
	bool tried = false, gone = false;
	size_t i;

	for (i = 0; i < KVMFAULT__BUCKETS; i++)
		MUST(!bed.vm->bucket[i].waiters);
	MUST(!bed.vm->drain.drainers);
	if (!bed.memory) {
		check_taken_down();
		return;
	}
	for (i = 0; i < 3; i++) {
		tried |= deeds[i].done && deeds[i].removes;
		gone |= deeds[i].done && deeds[i].removes && !deeds[i].result;
	}
	for (i = 0; i < 3; i++)
		if (deeds[i].done)
			check_result(&deeds[i], tried);
	check_page(tried, gone);
	check_messages();
	check_usable(tried, gone);
}

static void begin(int pair, enum trouble with)
{
	int which = pair / SECONDS % FIRSTS;

	*first = firsts[which];
	*second = seconds[pair % SECONDS];
	*third = (struct deed){ 0 };
	if (first->third)
		*third = seconds[first->third - 1];
	was_present = pair >= FIRSTS * SECONDS;
	trouble = trouble_at_first = with;
	first_thread = pthread_self();
	memset(helpers, 0, sizeof(helpers));
	stopped = "never";
	up();
}

/* One of them. False: the first thread does not come by so often. */
static bool interleave(int pair, enum trouble with, unsigned int passes)
{
	passes_left = 0;
	begin(pair, with);
	passes_left = passes;
	carry_out(first);
	passes_left = 0;
	helper_join(&helpers[0]);
	helper_join(&helpers[1]);
	check();
	MUST(!kvmfault_service_free(bed.service));
	bed.service = NULL;
	bed_down();
	fake_forget();
	return second->done;
}

TEST_GROUP(steps, NULL, NULL);

TEST_EACH(steps, interleaved, 2 * FIRSTS * SECONDS)
{
	unsigned int passes;
	int with;

	for (with = NONE; with < TROUBLES; with++) {
		passes = 1;
		while (interleave(_i, (enum trouble)with, passes))
			passes++;
		/* Before and after the claim, or much more. */
		MUST(passes > (was_present && first->page ? 2 : 7));
	}
}

int main(void)
{
	return run_suite("steps");
}
