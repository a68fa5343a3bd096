/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Two threads and one page that is, was or will be protected. The first does one
 * thing; at each step of it it is stopped, once, and the second does another
 * thing, until that is done or sleeps. All steps, all pairs, with and without
 * minor faults, the page absent, present, or present and protected. After each
 * of them no mapping can write where the bit is set, nothing was written or
 * discarded before it was saved, and nobody sleeps.
 */

#include <linux/userfaultfd.h>
#include <string.h>

#include "steps.h"

enum { ABSENT, PRESENT, PROTECTED, STATES };

static char *other;			/* the second mapping of the page */
static struct kvmfault_mapping *mapping;
static atomic_bool mapped;		/* it can be written to there */
static atomic_bool protecting;		/* what is written may be saved */
static int state_at_first;
static atomic_uint saves;
static atomic_bool lost;		/* saved with what came later */

#define MUST(what) \
	ck_assert_msg(what, "state %d, stopped %s, not so: %s", \
		      state_at_first, stopped, #what)

/* ---- what is done ---- */

static int read_it(void)
{
	return kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false);
}

static int write_it(void)
{
	return kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, true);
}

static int message(bool write)
{
	struct kvmfault_fault fault = {
		.size = sizeof(fault),
		.kind = KVMFAULT_KIND_UFFD,
		.access = write ? KVMFAULT_ACCESS_WRITE : KVMFAULT_ACCESS_READ,
	};
	const struct kvmfault__target place = {
		.memory = bed.memory,
		.origin = mapping,
	};
	struct kvmfault__seat *seat = kvmfault__seat_take(bed.vm);
	struct kvmfault__answer answer;

	kvmfault__table_find(seat, &bed.vm->mappings,
			     kvmfault__key(0, mapping->host));
	kvmfault__resolve(seat, &fault, &place, &answer);
	kvmfault__leave(seat);
	kvmfault__seat_give(seat);
	return kvmfault__error(&answer);
}

static int message_to_read(void)
{
	return message(false);
}

static int message_to_write(void)
{
	return message(true);
}

static int protect(void)
{
	int err;

	atomic_store(&protecting, true);
	err = kvmfault_protect(bed.vm, 0, BED_GPA, PAGE);
	atomic_store(&protecting, false);
	return err;
}

static int unprotect(void)
{
	return kvmfault_unprotect(bed.vm, 0, BED_GPA, PAGE);
}

static int discard(void)
{
	return kvmfault_discard(bed.vm, 0, BED_GPA, PAGE);
}

static int add_mapping(void)
{
	struct kvmfault_mapping_options options = {
		.size = sizeof(options), .host = (uintptr_t)other,
	};
	int err = 0;

	if (!atomic_load(&mapped))
		err = kvmfault_mapping_add(bed.memory, &options, &mapping);
	atomic_store(&mapped, !err);
	return err;
}

static int (*const deeds[])(void) = {
	read_it, write_it, message_to_read, message_to_write, protect,
	unprotect, discard, add_mapping,
};
#define DEEDS 8
#define ADD 7				/* the others have the mapping */

/* It cannot be written unseen wherever it can be written. */
static bool guarded(void)
{
	return fake_protected(bed_page(0)) &&
	       (!atomic_load(&mapped) || fake_protected(other));
}

static int save(void *data, struct kvmfault_request *request)
{
	(void)data;
	atomic_fetch_add(&saves, 1);
	if (*(const char *)request->host != bed_byte(0) &&
	    *(const char *)request->host)
		atomic_store(&lost, true);
	if (!atomic_load(&protecting) && !guarded())
		atomic_store(&lost, true);
	return KVMFAULT_VERDICT_RESOLVED;
}

/* ---- the steps ---- */

static struct {
	int (*run)(void);
	bool done;
	int result;
} second;
static struct helper helper;

static void run_second(void *arg)
{
	(void)arg;
	second.done = true;
	second.result = second.run();
}

static void pass(const char *where)
{
	if (stops(where))
		helper_start(&helper, run_second, NULL);
}

BED_WRAPPED(kvmfault__word_protect);
BED_WRAPPED(kvmfault__page_unprotect);

uint64_t __wrap_kvmfault__word_protect(struct kvmfault_memory *memory,
				       uint64_t page, unsigned int count)
{
	uint64_t busy;

	pass("before bits are set");
	busy = __real_kvmfault__word_protect(memory, page, count);
	pass("after bits are set");
	return busy;
}

void __wrap_kvmfault__page_unprotect(struct kvmfault_memory *memory,
				     uint64_t page)
{
	pass("before a bit is cleared");
	__real_kvmfault__page_unprotect(memory, page);
	pass("after a bit is cleared");
}

static bool in_ioctl(struct fake_call *call)
{
	/* Under the VM's lock; who waits for that does not sleep here. */
	if (call->number == UFFDIO_REGISTER)
		return false;
	pass("before a call of the kernel");
	fake_model(call);
	pass("after a call of the kernel");
	return true;
}

/* ---- before and after ---- */

static void up(bool minor, bool both)
{
	static const struct kvmfault_resolver hook = {
		.size = sizeof(hook), .name = "save", .resolve = save,
		.pages = 1U << KVMFAULT_PAGE_PROTECTED,
	};

	bed_vm();
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &hook), 0);
	bed.write_protect = true;
	bed.minor = minor;
	bed_add();
	other = fake_map(bed.fd);
	atomic_store(&mapped, false);
	if (both)
		ck_assert_int_eq(add_mapping(), 0);
	if (state_at_first != ABSENT)
		ck_assert_int_eq(read_it(), 0);
	if (state_at_first == PROTECTED)
		ck_assert_int_eq(protect(), 0);
	atomic_store(&saves, 0);
	atomic_store(&lost, false);
	fake_forget();
	still_clock();
	fake_on(FAKE_IOCTL, in_ioctl);
}

static void check(int (*first)(void), int result)
{
	bool begun = first == protect || second.run == protect;
	bool over = first == unprotect || second.run == unprotect;
	enum kvmfault__state state = bed_state(0);
	size_t i;

	for (i = 0; i < KVMFAULT__BUCKETS; i++)
		MUST(!bed.vm->bucket[i].waiters);
	MUST(!result);
	MUST(!second.done || !second.result);
	MUST(!kvmfault__in_flight(state));
	MUST(!atomic_load(&lost));
	if (kvmfault__page_protected(bed.memory, 0))
		MUST(guarded());
	if (state == KVMFAULT__PRESENT)
		MUST(bed_has(0, bed_byte(0)) || bed_has(0, 0));
	/* Not gone without having been saved. */
	if (state == KVMFAULT__DISCARDED && state_at_first == PROTECTED && !over)
		MUST(atomic_load(&saves));
	if (!begun && state_at_first != PROTECTED)
		MUST(!atomic_load(&saves));
	/* Whatever it was, it works now, and is found out where it has to be. */
	MUST(!add_mapping());
	MUST(!protect());
	MUST(guarded());
	atomic_store(&saves, 0);
	MUST(!message_to_write());
	if (!atomic_load(&saves))
		MUST(!message_to_write());
	MUST(atomic_load(&saves) == 1);
	MUST(!fake_protected(other) && !fake_protected(bed_page(0)));
}

/* False: the first thread does not come by so often. */
static bool interleave(int first, int then, bool minor, unsigned int passes)
{
	int result;

	stopped = "never";
	passes_left = 0;
	second.done = false;
	second.run = deeds[then];
	up(minor, first != ADD && then != ADD);
	first_thread = pthread_self();
	passes_left = passes;
	result = deeds[first]();
	passes_left = 0;
	helper_join(&helper);
	check(deeds[first], result);
	bed_down();
	fake_forget();
	return second.done;
}

static bool needs_mapping(int deed)
{
	return deeds[deed] == message_to_read ||
	       deeds[deed] == message_to_write;
}

TEST_GROUP(steps, NULL, NULL);

TEST_EACH(steps, interleaved, DEEDS * DEEDS)
{
	int first = _i / DEEDS, then = _i % DEEDS;
	unsigned int passes;
	int minor;

	if ((first == ADD && (then == ADD || needs_mapping(then))) ||
	    (then == ADD && needs_mapping(first)))
		return;
	for (minor = 0; minor < 2; minor++)
		for (state_at_first = ABSENT; state_at_first < STATES;
		     state_at_first++) {
			passes = 1;
			while (interleave(first, then, minor, passes))
				passes++;
		}
}

int main(void)
{
	return run_suite("protect steps");
}
