/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * convert.c with many threads: conversions of pages that overlap, in opposite
 * directions, with a fetch in flight, with a region that goes; and eight vCPUs
 * at random, after which KVM, the library and the pages agree.
 */

#include <string.h>
#include <unistd.h>

#include "bed.h"

#define PRIVATE KVMFAULT__EXIT_FLAG_PRIVATE
#define SET KVMFAULT__SET_MEMORY_ATTRIBUTES
#define VCPUS 8

static int gmem;
static char *gmem_host;

/* A conversion stops before its first step while the gate is closed. */
static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool closed;
	unsigned int inside;
	uint64_t gpa;			/* only one of this page */
} gate = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.changed = PTHREAD_COND_INITIALIZER,
};

static void close_gate(uint64_t gpa)
{
	gate.closed = true;
	gate.gpa = gpa;
}

static void pass_gate(uint64_t gpa)
{
	pthread_mutex_lock(&gate.lock);
	gate.inside += gpa == gate.gpa;
	pthread_cond_broadcast(&gate.changed);
	while (gate.closed && gpa == gate.gpa)
		pthread_cond_wait(&gate.changed, &gate.lock);
	pthread_mutex_unlock(&gate.lock);
}

static void await_gate(void)
{
	pthread_mutex_lock(&gate.lock);
	while (!gate.inside)
		pthread_cond_wait(&gate.changed, &gate.lock);
	pthread_mutex_unlock(&gate.lock);
}

static void open_gate(void)
{
	pthread_mutex_lock(&gate.lock);
	gate.closed = false;
	pthread_cond_broadcast(&gate.changed);
	pthread_mutex_unlock(&gate.lock);
}

static atomic_int refuse;	/* one of so many conversions; 0: none */
static atomic_int begun, ended, sets;
static atomic_uint undone;

static int before(void *data, uint64_t gpa, uint64_t length, bool to_private)
{
	(void)data;
	(void)length;
	(void)to_private;
	fake_called_back();
	pass_gate(gpa);
	if (refuse && atomic_fetch_add(&begun, 1) % refuse == 0)
		return -EPERM;
	return 0;
}

static void after(void *data, uint64_t gpa, uint64_t length, bool to_private,
		  bool done)
{
	(void)data;
	(void)gpa;
	(void)length;
	(void)to_private;
	atomic_fetch_add(&ended, 1);
	atomic_fetch_add(&undone, !done);
}

static uint64_t at(uint64_t page)
{
	return BED_GPA + page * PAGE;
}

static void up(void)
{
	struct kvmfault_conversion_hook hook = {
		.size = sizeof(hook), .before = before, .after = after,
	};
	void *host;

	bed_vm_fd = fake_fd(FAKE_KVM);
	bed_vm();
	bed.guest_memfd = gmem = fake_memory(BED_PAGES * PAGE, 0, &host);
	gmem_host = host;
	ck_assert_int_eq(kvmfault_conversion_hook_add(bed.vm, &hook), 0);
	bed_add();
	fake_forget();
}

static void expect(uint64_t page, uint64_t pages, bool private)
{
	for (; pages--; page++) {
		ck_assert_int_eq(kvmfault_is_private(bed.vm, at(page)),
				 private);
		ck_assert_int_eq(fake_private(at(page)), private);
	}
}

/* A call on a thread of its own. */
struct call {
	pthread_t thread;
	uint64_t page, pages;
	bool to_private;
	int result;
	atomic_bool done;
};

static void *run_call(void *arg)
{
	struct call *call = arg;

	call->result = kvmfault_convert(bed.vm, NULL, at(call->page),
					call->pages * PAGE, call->to_private,
					NULL);
	atomic_store(&call->done, true);
	return NULL;
}

static void start(struct call *call)
{
	pthread_create(&call->thread, NULL, run_call, call);
}

static void join(struct call *call)
{
	pthread_join(call->thread, NULL);
	ck_assert_int_eq(call->result, 0);
}

/* So many conversions in progress or waiting. */
static void await_conversions(unsigned int count)
{
	struct kvmfault__conversion *c;
	unsigned int n;

	do {
		pthread_mutex_lock(&bed.vm->conversions.lock);
		for (n = 0, c = bed.vm->conversions.first; c; c = c->next)
			n++;
		pthread_mutex_unlock(&bed.vm->conversions.lock);
		usleep(100);
	} while (n < count);
}

TEST_GROUP_FOR(convert_race, up, NULL, 5 * HANG);

TEST(convert_race, opposite_directions)
{
	struct call to = { .page = 3, .pages = 1, .to_private = true };
	struct call back = { .page = 3, .pages = 1 };

	close_gate(at(3));
	start(&to);
	await_gate();
	start(&back);
	await_conversions(2);
	ck_assert(!back.done);
	expect(3, 1, false);
	open_gate();
	join(&to);
	join(&back);
	expect(3, 1, false);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, SET), 2);
	bed_down();
}

TEST(convert_race, overlapping_and_disjoint)
{
	struct call first = { .page = 0, .pages = 8, .to_private = true };
	struct call second = { .page = 4, .pages = 8, .to_private = true };
	struct call third = { .page = 9, .pages = 2 };
	struct call apart = { .page = 12, .pages = 4, .to_private = true };

	close_gate(at(0));
	start(&first);
	await_gate();
	start(&second);
	await_conversions(2);
	/* Behind the second, although nobody converts its pages yet. */
	start(&third);
	await_conversions(3);
	start(&apart);
	join(&apart);
	expect(12, 4, true);
	ck_assert(!first.done && !second.done && !third.done);
	open_gate();
	join(&first);
	join(&second);
	join(&third);
	expect(0, 9, true);
	expect(9, 2, false);
	expect(11, 5, true);
	/* The second's run begins where the first's ended. */
	ck_assert_uint_eq(fake_nth(FAKE_IOCTL, SET, 2)->at, at(8));
	bed_down();
}

/* ---- vCPUs ---- */

static struct vcpu {
	pthread_t thread;
	struct kvmfault_vcpu *handle;
	struct kvm_run *run;
	uint64_t random;
	unsigned int wrong;
} vcpus[VCPUS];

static void vcpus_new(void)
{
	unsigned int i;

	for (i = 0; i < VCPUS; i++) {
		struct kvmfault_vcpu_options options = {
			.size = sizeof(options), .fd = fake_fd(FAKE_KVM),
		};

		vcpus[i].run = calloc(1, sizeof(*vcpus[i].run));
		vcpus[i].random = i + 1;
		options.run = vcpus[i].run;
		ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &options,
						   &vcpus[i].handle), 0);
	}
}

static void vcpus_free(void)
{
	unsigned int i;

	for (i = 0; i < VCPUS; i++) {
		kvmfault_vcpu_free(vcpus[i].handle);
		free(vcpus[i].run);
	}
}

static void start_vcpus(void *(*run)(void *))
{
	unsigned int i;

	for (i = 0; i < VCPUS; i++)
		pthread_create(&vcpus[i].thread, NULL, run, &vcpus[i]);
}

static void join_vcpus(void)
{
	unsigned int i;

	for (i = 0; i < VCPUS; i++) {
		pthread_join(vcpus[i].thread, NULL);
		ck_assert_uint_eq(vcpus[i].wrong, 0);
	}
}

static enum kvmfault_action leave(struct vcpu *vcpu, uint64_t gpa, bool private)
{
	struct kvmfault__memory_fault record = {
		.flags = private ? PRIVATE : 0, .gpa = gpa, .size = PAGE,
	};

	vcpu->run->exit_reason = KVMFAULT__EXIT_MEMORY_FAULT;
	memcpy(&vcpu->run->hw, &record, sizeof(record));
	return kvmfault_vcpu_handle(vcpu->handle, -1, EFAULT);
}

/* A vCPU that does not want to wait is told when it can go on; the others' waits are
 * not ended by that. */
static atomic_uint settled;

static void on_settled(void *data, struct kvmfault_memory *memory,
		       uint64_t offset, uint64_t length)
{
	(void)data;
	fake_called_back();
	settled += !memory && offset == at(3) && length == 2 * PAGE;
}

TEST(convert_race, access_that_does_not_wait)
{
	struct call call = { .page = 3, .pages = 2, .to_private = true };
	struct kvmfault_vcpu_options options = {
		.size = sizeof(options), .fd = fake_fd(FAKE_KVM),
		.run = calloc(1, sizeof(struct kvm_run)), .no_wait = true,
	};
	struct vcpu vcpu = { .run = options.run };

	bed.vm->ops.page_ready = on_settled;
	ck_assert_int_eq(kvmfault_vcpu_new(bed.vm, &options, &vcpu.handle), 0);
	close_gate(at(3));
	start(&call);
	await_gate();
	ck_assert_int_eq(leave(&vcpu, at(4), true), KVMFAULT_ACTION_PENDING);
	ck_assert_int_eq(leave(&vcpu, at(4), true), KVMFAULT_ACTION_PENDING);
	ck_assert_uint_eq(settled, 0);
	/* What does not overlap is done at once. */
	ck_assert_int_eq(leave(&vcpu, at(5), true), KVMFAULT_ACTION_RETRY);
	ck_assert_int_eq(leave(&vcpu, at(4), true), KVMFAULT_ACTION_PENDING);
	open_gate();
	join(&call);
	ck_assert_uint_eq(settled, 1);
	ck_assert_int_eq(leave(&vcpu, at(4), true), KVMFAULT_ACTION_RETRY);
	expect(3, 3, true);
	kvmfault_vcpu_free(vcpu.handle);
	free(options.run);
	bed_down();
}

/* Who brings a page would wait for a conversion whose hook waits for that page. */
static int convert_in_a_source(void *data, uint64_t offset, void *buffer,
			       size_t length)
{
	(void)offset;
	fake_called_back();
	*(int *)data = kvmfault_convert(bed.vm, NULL, at(3), PAGE, false, NULL);
	memset(buffer, 1, length);
	return 0;
}

TEST(convert_race, two_that_wait_for_each_other)
{
	struct call call = { .page = 3, .pages = 1, .to_private = true };
	int said = 0;

	bed.memory->source.read = convert_in_a_source;
	bed.memory->source.data = &said;
	close_gate(at(3));
	start(&call);
	await_gate();
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, at(7), PAGE, false), 0);
	ck_assert_int_eq(said, -EDEADLK);
	open_gate();
	join(&call);
	/* Where nothing is in the way it may. */
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, at(8), PAGE, false), 0);
	ck_assert_int_eq(said, 0);
	expect(3, 1, false);
	bed_down();
}

/* A resolver that is asked to convert has nothing in hand: it may wait. */
static bool has_a_page;

static int note_what_is_in_hand(void *data, struct kvmfault_request *request)
{
	(void)data;
	(void)request;
	fake_called_back();
	has_a_page = kvmfault__in_hand();
	return KVMFAULT_VERDICT_DECLINED;
}

TEST(convert_race, resolver_that_is_asked_to_convert)
{
	const struct kvmfault_resolver resolver = {
		.size = sizeof(resolver), .name = "notes", .flags = PRIVATE,
		.resolve = note_what_is_in_hand,
	};

	kvmfault_vcpu_free(bed.vcpu);
	bed.vcpu = NULL;
	ck_assert_int_eq(kvmfault_resolver_add(bed.vm, &resolver), 0);
	vcpus_new();
	has_a_page = true;
	ck_assert_int_eq(leave(&vcpus[0], at(5), true), KVMFAULT_ACTION_RETRY);
	ck_assert(!has_a_page);
	expect(5, 1, true);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, at(7), PAGE, false), 0);
	ck_assert(has_a_page);
	ck_assert(!kvmfault__in_hand());
	vcpus_free();
	bed_down();
}

static void *touch_the_same(void *arg)
{
	struct vcpu *vcpu = arg;

	vcpu->wrong += leave(vcpu, at(5), true) != KVMFAULT_ACTION_RETRY;
	vcpu->wrong += !fake_private(at(5));
	return NULL;
}

TEST(convert_race, one_converts_for_all)
{
	vcpus_new();
	close_gate(at(5));
	start_vcpus(touch_the_same);
	await_conversions(VCPUS);
	open_gate();
	join_vcpus();
	ck_assert_uint_eq(gate.inside, 1);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, SET), 1);
	ck_assert_int_eq(ended, 1);
	vcpus_free();
	bed_down();
}

TEST(convert_race, a_signal_while_it_waits)
{
	struct call call = { .page = 3, .pages = 1, .to_private = true };
	uint64_t done = 77;

	close_gate(at(3));
	start(&call);
	await_gate();
	fake_push(FAKE_FUTEX_WAIT, -EINTR);
	ck_assert_int_eq(bed_exit(at(3), PRIVATE), KVMFAULT_ACTION_INTERRUPTED);
	fake_push(FAKE_FUTEX_WAIT, -EINTR);
	ck_assert_int_eq(kvmfault_convert(bed.vm, NULL, at(2), 2 * PAGE, true,
					  &done), -EINTR);
	ck_assert_uint_eq(done, 0);
	open_gate();
	join(&call);
	ck_assert_int_eq(bed_exit(at(3), PRIVATE), KVMFAULT_ACTION_RETRY);
	expect(3, 1, true);
	expect(2, 1, false);
	ck_assert_ptr_null(bed.vm->conversions.first);
	bed_down();
}

static void *set_immediate_exit(void *arg)
{
	while (!fake_count(FAKE_FUTEX_WAIT, FAKE_ANY))
		usleep(1000);
	__atomic_store_n(&bed.run->immediate_exit, 1, __ATOMIC_RELAXED);
	return arg;
}

TEST(convert_race, immediate_exit_while_it_waits)
{
	struct call call = { .page = 3, .pages = 1, .to_private = true };
	pthread_t thread;

	close_gate(at(3));
	start(&call);
	await_gate();
	pthread_create(&thread, NULL, set_immediate_exit, NULL);
	ck_assert_int_eq(bed_exit(at(3), PRIVATE), KVMFAULT_ACTION_INTERRUPTED);
	pthread_join(thread, NULL);
	open_gate();
	join(&call);
	bed_down();
}

/* ---- a fetch in flight ---- */

static int inner_private, inner_shared;

static void convert_in_flight(void)
{
	inner_private = kvmfault_convert(bed.vm, NULL, at(3), PAGE, true, NULL);
	inner_shared = kvmfault_convert(bed.vm, NULL, at(3), PAGE, false, NULL);
}

/* What a fetch brings for a page that is private by then goes again. */
TEST(convert_race, private_while_it_is_fetched)
{
	bed.during_read = convert_in_flight;
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, at(3), PAGE, false), 0);
	ck_assert_int_eq(inner_private, 0);
	/* It would wait for its own fetch. */
	ck_assert_int_eq(inner_shared, -EDEADLK);
	expect(3, 1, true);
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
	ck_assert(!fake_present(bed.fd, 3 * PAGE));
	bed_down();
}

static struct call back = { .page = 3, .pages = 1 };

static void convert_to_and_back(void)
{
	inner_private = kvmfault_convert(bed.vm, NULL, at(3), PAGE, true, NULL);
	start(&back);
	/* It waits for us. */
	while (!fake_count(FAKE_FUTEX_WAIT, FAKE_ANY))
		usleep(1000);
	ck_assert(!back.done);
	expect(3, 1, true);
}

/* Shared again it is only when the fetch has ended, and taken its page back:
 * later it would take what the guest has written. */
TEST(convert_race, shared_again_while_it_is_fetched)
{
	const struct fake_call *last;
	size_t n, holes;

	bed.during_read = convert_to_and_back;
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, at(3), PAGE, false), 0);
	join(&back);
	expect(3, 1, false);
	ck_assert_int_eq(bed_state(3), KVMFAULT__DISCARDED);
	holes = fake_count(FAKE_FALLOCATE, FAKE_ANY);
	last = fake_nth(FAKE_IOCTL, SET, 1);
	for (n = 0; n < holes; n++)
		if (fake_nth(FAKE_FALLOCATE, FAKE_ANY, n)->fd == bed.fd)
			ck_assert(fake_nth(FAKE_FALLOCATE, FAKE_ANY, n) <
				  last);
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, at(3), PAGE, false), 0);
	ck_assert(bed_has(3, 0));
	bed_down();
}

/* ---- a region that goes ---- */

static atomic_bool removed;
static bool in_a_layout;

static void *remove_region(void *arg)
{
	const struct kvmfault_region region = {
		.size = sizeof(region), .gpa = BED_GPA,
	};
	const struct kvmfault_region *list = &region;

	ck_assert_int_eq(in_a_layout ?
			 kvmfault_regions_replace(bed.vm, &list, 1, NULL, 0) :
			 kvmfault_region_remove(bed.vm, 0, BED_GPA), 0);
	atomic_store(&removed, true);
	return arg;
}

static bool remove_while_punched(struct fake_call *call)
{
	static pthread_t thread;

	if (call->fd != gmem)
		return false;
	pthread_create(&thread, NULL, remove_region, NULL);
	pthread_detach(thread);
	while (!fake_count(FAKE_FUTEX_WAIT, FAKE_ANY))
		usleep(1000);
	/* When that returns the VMM may close the guest_memfd. */
	ck_assert(!atomic_load(&removed));
	return false;
}

TEST_EACH(convert_race, removed_while_it_is_punched, 2)
{
	in_a_layout = _i;
	ck_assert_int_eq(kvmfault_convert(bed.vm, NULL, at(3), PAGE, true,
					  NULL), 0);
	fake_put(gmem, 3 * PAGE);
	fake_on(FAKE_FALLOCATE, remove_while_punched);
	ck_assert_int_eq(kvmfault_convert(bed.vm, NULL, at(3), PAGE, false,
					  NULL), 0);
	ck_assert(!fake_present(gmem, 3 * PAGE));
	while (!atomic_load(&removed))
		usleep(1000);
	bed_down();
}

/* ---- eight at random ---- */

#ifdef __SANITIZE_THREAD__
#define STEPS 400
#else
#define STEPS 2000
#endif

/* What the guest has to find: shared, and private. Its own writes, the source's
 * byte where it was never private, else zero. */
static char shadow[BED_PAGES][2];

struct access {
	uint64_t page;
	bool private, write, missing, wrong;
	char byte;
};

static void touch(void *arg)
{
	struct access *access = arg;
	char *expected = &shadow[access->page][access->private];
	char *host = (access->private ? gmem_host : bed.host) +
		access->page * PAGE;

	if (access->private) {
		fake_put(gmem, access->page * PAGE);
	} else if (!fake_present(bed.fd, access->page * PAGE)) {
		access->missing = true;
		return;
	}
	access->wrong = host[0] != *expected || host[PAGE - 1] != *expected;
	if (!access->write)
		return;
	host[0] = host[PAGE - 1] = *expected = access->byte;
}

/* What is converted has nothing on its new side. (Nobody can touch it there
 * before the conversion is over and another one is made.) */
static bool forget_contents(struct fake_call *call)
{
	struct kvmfault__memory_attributes *a = call->arg;
	uint64_t page;

	/* Set back, after a failure: it is what it was. */
	if (call->number != SET || fake_private(a->address) == !!a->attributes)
		return false;
	if (atomic_fetch_add(&sets, 1) % 11 == 10) {
		call->result = -ENOMEM;
		return true;
	}
	fake_model(call);
	for (page = 0; page < a->size / PAGE; page++)
		shadow[(a->address - BED_GPA) / PAGE + page][!a->attributes] =
			0;
	return true;
}

static uint64_t next_random(struct vcpu *vcpu)
{
	vcpu->random = vcpu->random * 6364136223846793005ULL + 1;
	return vcpu->random >> 33;
}

static void access_page(struct vcpu *vcpu)
{
	uint64_t number = next_random(vcpu);
	struct access access = {
		.page = number % BED_PAGES,
		.private = number >> 8 & 1,
		.write = number >> 9 & 1,
		.byte = (char)(number >> 10),
	};
	unsigned int tries = 0;

	while (tries++ < 1000) {
		enum kvmfault_action action;

		access.missing = false;
		if (!fake_access(at(access.page), access.private, touch,
				 &access)) {
			action = leave(vcpu, at(access.page), access.private);
			if (action == KVMFAULT_ACTION_RETRY)
				continue;
			/* Refused, on purpose. */
			if (action != KVMFAULT_ACTION_UNRESOLVED ||
			    kvmfault_vcpu_result(vcpu->handle)->reason !=
			    KVMFAULT_REASON_RESOLVER)
				vcpu->wrong++;
			return;
		}
		if (!access.missing) {
			vcpu->wrong += access.wrong;
			return;
		}
		vcpu->wrong += !!kvmfault_ensure(bed.vm, 0, at(access.page), 1,
						 access.write);
		/* Who converts has told KVM, and has yet to note it. */
		if (tries > 100)
			usleep(100);
	}
	vcpu->wrong++;
}

static void convert_some(struct vcpu *vcpu)
{
	uint64_t first = next_random(vcpu) % BED_PAGES;
	uint64_t count = next_random(vcpu) % (BED_PAGES - first) + 1;
	int err = kvmfault_convert(bed.vm, vcpu->handle, at(first),
				   count * PAGE, next_random(vcpu) & 1, NULL);

	vcpu->wrong += err && err != -EPERM && err != -ENOMEM;
}

static void *at_random(void *arg)
{
	struct vcpu *vcpu = arg;
	unsigned int i;

	for (i = 0; i < STEPS; i++)
		if (next_random(vcpu) % 4)
			access_page(vcpu);
		else
			convert_some(vcpu);
	return NULL;
}

TEST(convert_race, eight_at_random)
{
	uint64_t page;

	for (page = 0; page < BED_PAGES; page++)
		shadow[page][0] = bed_byte(page);
	vcpus_new();
	bed.vm->options.retry_budget = 100000;
	atomic_store(&refuse, 7);
	fake_on(FAKE_IOCTL, forget_contents);
	start_vcpus(at_random);
	join_vcpus();
	ck_assert_uint_gt(undone, 0);
	ck_assert_int_gt(ended, (int)undone);
	ck_assert_ptr_null(bed.vm->conversions.first);
	ck_assert_uint_eq(bed.logs, 0);
	for (page = 0; page < BED_PAGES; page++) {
		bool private = fake_private(at(page));

		expect(page, 1, private);
		/* The other side holds nothing: what a late call has brought
		 * is zero. */
		if (!private)
			ck_assert(!fake_present(gmem, page * PAGE));
		else if (fake_present(bed.fd, page * PAGE))
			ck_assert(bed_has(page, 0));
		ck_assert_int_eq((private ? gmem_host : bed.host)[page * PAGE],
				 fake_present(private ? gmem : bed.fd,
					      page * PAGE) ?
				 shadow[page][private] : 0);
	}
	vcpus_free();
	bed_down();
}

int main(void)
{
	return run_suite("convert-race");
}
