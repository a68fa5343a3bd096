/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * marker.c: which pages are given a marker and which never are, whatever
 * happens at the same time; markers that are lost, that are left over, and the
 * mode being left.
 */

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "bed.h"
#include "sigbus.h"

#define STRETCH 1024ULL

static char *other;		/* the bed's second mapping */
static struct kvmfault_mapping *mapping;

static void add_mapping(struct kvmfault_memory *memory, int fd)
{
	struct kvmfault_mapping_options options = { .size = sizeof(options) };

	other = fake_map(fd);
	options.host = (uintptr_t)other;
	ck_assert_int_eq(kvmfault_mapping_add(memory, &options, &mapping), 0);
}

static void up(void)
{
	bed_delivery = KVMFAULT_DELIVERY_MARKER_EXIT;
	bed_up();
	add_mapping(bed.memory, bed.fd);
	bed_service(0);
	fake_forget();
}

/* A thread sleeps there, and is answered. */
static void touched(const void *address)
{
	ck_assert(fake_fault(address, false));
	bed_dispatch();
}

static bool marked(uint64_t page)
{
	return fake_marked(bed_page(page));
}

static uint64_t marked_pages(void)
{
	uint64_t page, n = 0;

	for (page = 0; page < BED_PAGES; page++)
		n += marked(page);
	return n;
}

static enum kvmfault_action sigbus(const void *address)
{
	siginfo_t info = sigbus_info(address, BUS_MCEERR_AR, 12);

	return kvmfault_vcpu_handle_sigbus(bed.vcpu, &info);
}

static size_t poisons(void)
{
	return fake_count(FAKE_IOCTL, KVMFAULT__UFFDIO_POISON);
}

static bool is_quiet(struct fake_call *call)
{
	const struct kvmfault__uffdio_poison *poison = call->arg;

	if (call->number == KVMFAULT__UFFDIO_POISON)
		ck_assert_uint_eq(poison->mode,
				  KVMFAULT__POISON_MODE_DONTWAKE);
	return false;
}

TEST_GROUP(marker, up, bed_down);

TEST(marker, first_touch_marks_the_stretch)
{
	fake_on(FAKE_IOCTL, is_quiet);
	touched(bed_page(3));
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert(!marked(3));
	ck_assert_uint_eq(marked_pages(), BED_PAGES - 1);
	ck_assert_uint_eq(poisons(), 1);
	ck_assert_uint_eq(bed_stats().marked, BED_PAGES);
	/* From now on a vCPU exits, and finds its page. */
	ck_assert_int_eq(sigbus(bed_page(4)), KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(4, bed_byte(4)));
	ck_assert(!marked(4));
	/* Once is enough. */
	touched(bed_page(5));
	ck_assert_uint_eq(poisons(), 1);
}

TEST(marker, others_do_not_mark)
{
	touched(other + 3 * PAGE);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, false), 0);
	ck_assert_int_eq(bed_exit(BED_GPA + PAGE, 0), KVMFAULT_ACTION_RETRY);
	ck_assert_uint_eq(poisons(), 0);
}

/* Whoever touches the only mapping there is would get the SIGBUS. */
TEST(marker, one_mapping_is_not_marked)
{
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	touched(bed_page(3));
	ck_assert_uint_eq(poisons(), 0);
	add_mapping(bed.memory, bed.fd);
	touched(bed_page(4));
	ck_assert_uint_eq(marked_pages(), BED_PAGES - 2);
}

TEST(marker, only_what_is_missing)
{
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA + 5 * PAGE, PAGE,
					 false), 0);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA + 6 * PAGE, PAGE),
			 0);
	kvmfault__page_change(bed.memory, 7, KVMFAULT__ABSENT,
			      KVMFAULT__FETCHING);
	kvmfault__page_change(bed.memory, 8, KVMFAULT__ABSENT,
			      KVMFAULT__POISONED);
	touched(bed_page(3));
	ck_assert(!marked(5));
	ck_assert(marked(6));
	ck_assert(!marked(7));
	ck_assert(!marked(8));
	ck_assert_uint_eq(marked_pages(), BED_PAGES - 4);
	/* The marker of a page that is to be zero. */
	ck_assert_int_eq(sigbus(bed_page(6)), KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(6, 0));
	kvmfault__page_change(bed.memory, 7, KVMFAULT__FETCHING,
			      KVMFAULT__ABSENT);
}

static struct kvmfault_memory *large_memory;
static char *large;

/* Of so many stretches, the last one not whole. */
static void have_large(uint64_t count)
{
	struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.length = count * STRETCH * PAGE - 10 * PAGE,
		.source = &source,
	};

	options.fd = fake_memory(options.length, 0, &options.host);
	large = options.host;
	ck_assert_int_eq(kvmfault_memory_adopt(bed.vm, &options, &large_memory),
			 0);
	add_mapping(large_memory, options.fd);
	/* As if a few stretches were marked elsewhere. */
	atomic_store(&large_memory->marked_at_once, 8);
}

static void drop_large(void)
{
	ck_assert_int_eq(kvmfault_memory_free(large_memory), 0);
}

static void touch_stretch(uint64_t stretch)
{
	touched(large + stretch * STRETCH * PAGE);
}

/* Stretch by stretch: 1 if it is. */
static void expect_marked(const char *which)
{
	char is[32] = { 0 };
	size_t i;

	for (i = 0; which[i]; i++)
		is[i] = fake_marked(large + (i * STRETCH + 9) * PAGE) ?
			'1' : '0';
	ck_assert_str_eq(is, which);
}

TEST(marker, stretch_by_stretch)
{
	uint64_t page;

	have_large(3);
	touched(large + (2 * STRETCH + 7) * PAGE);
	for (page = 0; page < 3 * STRETCH - 10; page++)
		ck_assert_int_eq(fake_marked(large + page * PAGE),
				 page >= 2 * STRETCH &&
				 page != 2 * STRETCH + 7);
	touched(large);
	expect_marked("101");
	drop_large();
}

/* As many in front as there are behind. */
TEST(marker, who_walks_finds_marks)
{
	have_large(16);
	touch_stretch(2);
	touch_stretch(8);
	expect_marked("0010000010000000");
	touch_stretch(3);
	expect_marked("0011100010000000");
	touch_stretch(5);
	expect_marked("0011111110000000");
	touch_stretch(9);
	expect_marked("0011111111111100");
	/* Down to the beginning. */
	touch_stretch(1);
	expect_marked("1111111111111100");
	touch_stretch(14);
	expect_marked("1111111111111111");
	drop_large();
}

/* The first ones bring the next ones along, whoever touches them. */
TEST(marker, a_few_at_once)
{
	have_large(16);
	atomic_store(&large_memory->marked_at_once, 0);
	touch_stretch(2);
	expect_marked("0011111000000000");
	touch_stretch(9);
	expect_marked("0011111001111100");
	touch_stretch(15);
	expect_marked("0011111001111101");
	drop_large();
}

/* In a large memory a lone touch is no reason; a second one is, and so is a
 * neighbour. */
TEST(marker, who_jumps_about_finds_none)
{
	have_large(16);
	atomic_store(&large_memory->marked_at_once, 31);
	touch_stretch(2);
	touch_stretch(8);
	touch_stretch(14);
	expect_marked("0010000000000000");
	touched(large + (8 * STRETCH + 1) * PAGE);
	expect_marked("0010000010000000");
	touch_stretch(9);
	expect_marked("0010000011100000");
	touch_stretch(1);
	expect_marked("1110000011100000");
	drop_large();
}

/* Punching keeps the markers that there are. Where there was data the first touch
 * brings one to what is behind it, and asks of no page that has one but the first. */
TEST(marker, discarded_pages_are_marked_again)
{
	uint64_t page;

	touched(bed_page(0));
	for (page = 4; page < 8; page++)
		ck_assert_int_eq(sigbus(bed_page(page)), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA + 3 * PAGE,
					  6 * PAGE), 0);
	ck_assert(marked(3));
	ck_assert(!marked(4) && !marked(7));
	ck_assert(marked(8));
	fake_forget();
	touched(bed_page(5));
	ck_assert(bed_has(5, 0));
	ck_assert_uint_eq(poisons(), 2);
	ck_assert(!marked(4) && !marked(5));
	ck_assert(marked(6) && marked(7) && marked(8));
	ck_assert_int_eq(sigbus(bed_page(6)), KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(6, 0));
	/* What it is followed by is here: there is nothing to mark. */
	fake_forget();
	touched(bed_page(4));
	ck_assert(bed_has(4, 0));
	ck_assert_uint_eq(poisons(), 0);
}

/* The mode may be left at any moment. */
TEST(marker, discarded_pages_are_not_marked_where_nobody_wants_it)
{
	touched(bed_page(0));
	ck_assert_int_eq(sigbus(bed_page(4)), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(sigbus(bed_page(5)), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(kvmfault_discard(bed.vm, 0, BED_GPA + 4 * PAGE,
					  2 * PAGE), 0);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	touched(bed_page(4));
	ck_assert(bed_has(4, 0));
	ck_assert(!marked(5));
	add_mapping(bed.memory, bed.fd);
}

/* ---- while a stretch is being marked ---- */

static void fetch_5(void)
{
	struct kvmfault__answer answer;
	struct kvmfault__seat *seat = bed.seat;

	answer = bed_resolve(KVMFAULT_KIND_CALL, 5, false);
	ck_assert_int_eq(answer.action, KVMFAULT_ACTION_RETRY);
	ck_assert_ptr_eq(seat, bed.seat);
}

/* Copied, and unmapped again by the kernel, before the marker comes. */
static bool fetched_before(struct fake_call *call)
{
	if (call->number != KVMFAULT__UFFDIO_POISON)
		return false;
	fetch_5();
	/* In the file, and nothing in the page table. */
	fake_take(bed.fd, 5 * PAGE);
	fake_model(call);
	fake_put(bed.fd, 5 * PAGE);
	return true;
}

TEST(marker, page_that_came_meanwhile_keeps_no_marker)
{
	fake_on(FAKE_IOCTL, fetched_before);
	touched(bed_page(3));
	ck_assert_int_eq(bed_state(5), KVMFAULT__PRESENT);
	ck_assert(!marked(5));
	ck_assert(marked(4) && marked(6));
	ck_assert_uint_eq(fake_count(FAKE_MADVISE, MADV_DONTNEED), 1);
	ck_assert_uint_eq(fake_nth(FAKE_MADVISE, MADV_DONTNEED, 0)->at,
			  (uintptr_t)bed_page(5));
	ck_assert_uint_eq(fake_nth(FAKE_MADVISE, MADV_DONTNEED, 0)->length,
			  PAGE);
}

TEST(marker, page_that_is_mapped_is_passed_over)
{
	/* Past the library, so its state does not tell. */
	fake_put(bed.fd, 5 * PAGE);
	touched(bed_page(3));
	ck_assert(!marked(5));
	ck_assert_uint_eq(marked_pages(), BED_PAGES - 2);
}

/* ---- what fails ---- */

static long poison_says;

static bool poison_fails(struct fake_call *call)
{
	struct kvmfault__uffdio_poison *poison = call->arg;

	if (call->number != KVMFAULT__UFFDIO_POISON || !poison_says)
		return false;
	poison->updated = poison_says;
	call->result = poison_says;
	poison_says = 0;
	return true;
}

TEST_EACH(marker, tried_again_at_the_next_touch, 2)
{
	poison_says = _i ? -ENOMEM : -EAGAIN;
	fake_on(FAKE_IOCTL, poison_fails);
	touched(bed_page(3));
	ck_assert(bed_has(3, bed_byte(3)));
	ck_assert_uint_eq(marked_pages(), 0);
	touched(bed_page(4));
	ck_assert_uint_eq(marked_pages(), BED_PAGES - 2);
}

/* A page that came past the library: its marker has to go. */
TEST(marker, marker_on_a_page_that_is_there)
{
	touched(bed_page(3));
	fake_put(bed.fd, 5 * PAGE);
	ck_assert_int_eq(sigbus(bed_page(5)), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(5), KVMFAULT__PRESENT);
	ck_assert(!marked(5));
	/* One that is there all the same: the vCPU meets it again: the kernel says that it has failed. */
	fake_push(FAKE_MADVISE, -EHWPOISON);
	ck_assert_int_eq(sigbus(bed_page(5)), KVMFAULT_ACTION_RETRY);
	ck_assert(!marked(5));
	ck_assert_int_eq(bed_state(5), KVMFAULT__PRESENT);
	/* And if it has, it still says so. */
	fake_push(FAKE_MADVISE, -EHWPOISON);
	fake_push(FAKE_MADVISE, FAKE_MODEL);
	fake_push(FAKE_MADVISE, -EHWPOISON);
	ck_assert_int_eq(sigbus(bed_page(5)), KVMFAULT_ACTION_UNRESOLVED);
	ck_assert_int_eq(bed_state(5), KVMFAULT__POISONED);
}

/* By then the page may have been discarded, and marked again. */
TEST(marker, bytes_of_mmio_go_past_the_markers)
{
	touched(bed_page(3));
	ck_assert_int_eq(mprotect(bed.host, BED_PAGES * PAGE, PROT_NONE), 0);
	ck_assert_int_eq(bed_mmio(BED_GPA + 3 * PAGE, 8, false),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed.run->mmio.data[0], bed_byte(3));
	memset(bed.run->mmio.data, 77, 8);
	ck_assert_int_eq(bed_mmio(BED_GPA + 3 * PAGE, 8, true),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(other[3 * PAGE + 7], 77);
	ck_assert_int_eq(mprotect(bed.host, BED_PAGES * PAGE,
				  PROT_READ | PROT_WRITE), 0);
}

/* ---- the mode ---- */

static enum kvmfault__state becomes;

/* Discarded since it was seen to be present, and marked; or the marker is an old
 * one. */
static bool meets_a_marker(struct fake_call *call)
{
	if (call->number != KVMFAULT__MADV_POPULATE_READ)
		return false;
	fake_on(FAKE_MADVISE, NULL);
	kvmfault__page_change(bed.memory, 3, KVMFAULT__PRESENT, becomes);
	call->result = -EHWPOISON;
	return true;
}

TEST_EACH(marker, mmio_meets_a_marker, 2)
{
	becomes = _i ? KVMFAULT__DISCARDED : KVMFAULT__PRESENT;
	touched(bed_page(3));
	fake_on(FAKE_MADVISE, meets_a_marker);
	ck_assert_int_eq(bed_mmio(BED_GPA + 3 * PAGE, 8, false),
			 KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(bed_state(3), KVMFAULT__PRESENT);
	ck_assert_uint_eq(bed_stats().unresolved, 0);
}

TEST(marker, left_and_taken_up)
{
	touched(bed_page(3));
	ck_assert_int_eq(kvmfault_vm_set_delivery(bed.vm,
						  KVMFAULT_DELIVERY_UFFD), 0);
	ck_assert_uint_eq(marked_pages(), 0);
	ck_assert(bed_has(3, bed_byte(3)));
	touched(bed_page(4));
	ck_assert_uint_eq(marked_pages(), 0);
	/* A signal that was on its way. */
	ck_assert_int_eq(sigbus(bed_page(5)), KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(5, bed_byte(5)));
	ck_assert_int_eq(kvmfault_vm_set_delivery(bed.vm,
				KVMFAULT_DELIVERY_MARKER_EXIT), 0);
	touched(bed_page(6));
	ck_assert_uint_eq(marked_pages(), BED_PAGES - 4);
}

TEST(marker, leaving_fails)
{
	touched(bed_page(3));
	fake_push(FAKE_MADVISE, -ENOMEM);
	ck_assert_int_eq(kvmfault_vm_set_delivery(bed.vm,
				KVMFAULT_DELIVERY_UFFD), -ENOMEM);
	ck_assert_int_eq(sigbus(bed_page(5)), KVMFAULT_ACTION_RETRY);
	ck_assert(bed_has(5, bed_byte(5)));
}

static pthread_t leaver;
static atomic_int left;

static void *leave(void *unused)
{
	ck_assert_int_eq(kvmfault_vm_set_delivery(bed.vm,
						  KVMFAULT_DELIVERY_UFFD), 0);
	atomic_store(&left, 1);
	return unused;
}

static bool leave_meanwhile(struct fake_call *call)
{
	if (call->number != KVMFAULT__UFFDIO_POISON)
		return false;
	ck_assert_int_eq(pthread_create(&leaver, NULL, leave, NULL), 0);
	/* It waits for us. */
	while (!atomic_load(&bed.vm->drain.drainers))
		sched_yield();
	ck_assert_int_eq(atomic_load(&left), 0);
	return false;
}

TEST(marker, leaving_waits_for_who_is_marking)
{
	fake_on(FAKE_IOCTL, leave_meanwhile);
	touched(bed_page(3));
	ck_assert_int_eq(pthread_join(leaver, NULL), 0);
	ck_assert_uint_eq(bed_stats().marked, BED_PAGES);
	ck_assert_uint_eq(marked_pages(), 0);
}

int main(void)
{
	return run_suite("marker");
}
