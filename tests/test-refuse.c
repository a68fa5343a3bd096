/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What is refused, and with which text: every flag, bit and enumerator that this
 * version does not know (flags.py sees that each member is in here), and the
 * text itself, which kvmfault_vm_error() has for the thread that failed. That
 * there is one for each refusal the wrappers of errnos.py see, in every test.
 */

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "bed.h"

/* ---- what is not known ---- */

static char text[512];

static void on_log(void *data, enum kvmfault_log_level level,
		   const char *message)
{
	(void)data;
	(void)level;
	snprintf(text, sizeof(text), "%s", message);
}

static int try_vm(struct kvmfault_vm_options *options)
{
	const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops), .log = on_log,
	};
	struct kvmfault_vm *vm;
	int err;

	options->size = sizeof(*options);
	options->ops = &ops;
	text[0] = '\0';
	err = kvmfault_vm_new(options, &vm);
	if (!err)
		kvmfault_vm_free(vm);
	return err;
}

/* Without value all is well; what is with it is returned. */
static int vm_allow(uint64_t value)
{
	struct kvmfault_vm_options options = { .allow = value };

	return try_vm(&options);
}

static int vm_delivery(uint64_t value)
{
	struct kvmfault_vm_options options = {
		.delivery = (enum kvmfault_delivery)value,
	};

	return try_vm(&options);
}

static int converter_flags(uint64_t value)
{
	const struct kvmfault_converter converter = {
		.size = sizeof(converter), .flags = (uint32_t)value,
	};
	struct kvmfault_vm_options options = { .converter = &converter };

	return try_vm(&options);
}

static int set_delivery(uint64_t value)
{
	return kvmfault_vm_set_delivery(bed.vm, value ?
		(enum kvmfault_delivery)value : KVMFAULT_DELIVERY_UFFD);
}

static int memory_window(uint64_t value)
{
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = PAGE,
		.window = (enum kvmfault_window)value,
	};
	struct kvmfault_memory *memory;
	int err;

	options.fd = fake_memory(PAGE, PAGE, &options.host);
	err = kvmfault_memory_adopt(bed.vm, &options, &memory);
	if (!err)
		kvmfault_memory_free(memory);
	return err;
}

static int region_flags(uint64_t value)
{
	const struct kvmfault_region region = {
		.size = sizeof(region), .gpa = 1ULL << 40, .length = PAGE,
		.memory = bed.memory, .flags = (uint32_t)value,
	};
	int err = kvmfault_region_add(bed.vm, &region);

	if (!err)
		kvmfault_region_remove(bed.vm, 0, region.gpa);
	return err;
}

static int never(void *data, struct kvmfault_request *request)
{
	(void)data;
	(void)request;
	return KVMFAULT_VERDICT_DECLINED;
}

static int resolver_pages(uint64_t value)
{
	const struct kvmfault_resolver resolver = {
		.size = sizeof(resolver), .name = "never", .resolve = never,
		.pages = (uint32_t)value,
	};
	static struct kvmfault_vm *vm;
	int err;

	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	err = kvmfault_resolver_add(vm, &resolver);
	kvmfault_vm_error(vm, text, sizeof(text));
	kvmfault_vm_free(vm);
	return err;
}

static int try_vcpu(enum kvmfault_profile profile, enum kvmfault_sigbus sigbus)
{
	static struct kvm_run run;
	const struct kvmfault_vcpu_options options = {
		.size = sizeof(options), .fd = bed.fd, .run = &run,
		.profile = profile, .sigbus = sigbus,
	};
	struct kvmfault_vcpu *vcpu;
	int err = kvmfault_vcpu_new(bed.vm, &options, &vcpu);

	kvmfault_vcpu_free(vcpu);
	return err;
}

static int vcpu_profile(uint64_t value)
{
	return try_vcpu((enum kvmfault_profile)value, 0);
}

static int vcpu_sigbus(uint64_t value)
{
	return try_vcpu(0, (enum kvmfault_sigbus)value);
}

static int bitmap_states(uint64_t value)
{
	uint64_t bitmap;

	return kvmfault_memory_bitmap(bed.memory, 0, PAGE, value ?
				      (uint32_t)value : KVMFAULT_STATE_ABSENT,
				      &bitmap, sizeof(bitmap));
}

static int syscalls_profile(uint64_t value)
{
	struct kvmfault_syscall call = { .size = sizeof(call) };

	return kvmfault_syscalls((enum kvmfault_profile)value, 0, &call);
}

/* known: bits that are; or, of an enum, the first number that is not. */
static const struct member {
	const char *member;
	int (*try)(uint64_t value);
	uint64_t known;
	unsigned int bits;	/* 0: an enum */
	bool no_context;
} members[] = {
	{ "kvmfault_vm_options.allow", vm_allow,
	  KVMFAULT_ALLOW_MARKER_EXIT | KVMFAULT_ALLOW_SHADOW_PAGING, 64, true },
	{ "kvmfault_vm_options.delivery", vm_delivery,
	  KVMFAULT_DELIVERY_COUNT, 0, true },
	{ "kvmfault_converter.flags", converter_flags,
	  KVMFAULT_CONVERTER_KEEP_SHARED | KVMFAULT_CONVERTER_KEEP_PRIVATE |
	  KVMFAULT_CONVERTER_RAM_ONLY | KVMFAULT_CONVERTER_CALLS_ONLY, 32,
	  true },
	{ "kvmfault_memory_options.window", memory_window,
	  KVMFAULT_WINDOW_SOURCE + 1, 0, false },
	{ "kvmfault_region.flags", region_flags,
	  KVMFAULT_REGION_READONLY, 32, false },
	{ "kvmfault_resolver.pages", resolver_pages,
	  (1U << (KVMFAULT_PAGE_HOLE + 1)) - 2, 32, true },
	{ "kvmfault_vcpu_options.sigbus", vcpu_sigbus,
	  KVMFAULT_SIGBUS_HANDLER + 1, 0, false },
	{ "kvmfault_vcpu_options.profile", vcpu_profile,
	  KVMFAULT_PROFILE_DELEGATE + 1, 0, false },
	{ "kvmfault_vm_set_delivery", set_delivery,
	  KVMFAULT_DELIVERY_COUNT, 0, false },
	{ "kvmfault_memory_bitmap", bitmap_states,
	  KVMFAULT_STATE_PROTECTED * 2 - 1, 32, false },
	{ "kvmfault_syscalls", syscalls_profile,
	  KVMFAULT_PROFILE_CALLER + 1, 0, true },
};
#define MEMBERS ((int)(sizeof(members) / sizeof(*members)))

static void expect_refusal(const struct member *m, uint64_t value)
{
	text[0] = '\0';
	ck_assert_msg(m->try(value) == -EINVAL, "%s: %#llx is accepted",
		      m->member, (unsigned long long)value);
	/* It has no context, and one that nobody passes on. */
	if (m->try == syscalls_profile)
		return;
	if (!m->no_context)
		ck_assert_int_eq(kvmfault_vm_error(bed.vm, text, sizeof(text)),
				 0);
	ck_assert_msg(strstr(text, m->member), "%s: \"%s\"", m->member, text);
}

TEST_GROUP(refuse, bed_up, NULL);

TEST_EACH(refuse, what_is_not_known, MEMBERS)
{
	const struct member *m = &members[_i];
	unsigned int bit;

	ck_assert_int_eq(m->try(0), 0);
	for (bit = 0; bit < m->bits; bit++)
		if (m->known & 1ULL << bit)
			ck_assert_int_eq(m->try(1ULL << bit), 0);
		else
			expect_refusal(m, 1ULL << bit);
	if (!m->bits) {
		expect_refusal(m, m->known);
		expect_refusal(m, INT32_MAX);
		expect_refusal(m, UINT32_MAX);
	}
	bed_down();
}

/* ---- the text ---- */

static int ask_nothing(uint64_t gpa)
{
	return kvmfault_ensure(bed.vm, 0, gpa, 0, false);
}

static int fail_at(uint64_t gpa, const char *expected)
{
	char buffer[512] = "";

	ck_assert_int_eq(ask_nothing(gpa), -EINVAL);
	ck_assert_int_eq(kvmfault_vm_error(bed.vm, buffer, sizeof(buffer)), 0);
	return strstr(buffer, expected) ? 0 : -EIO;
}

TEST(refuse, the_last_error)
{
	char buffer[8];

	ck_assert_int_eq(kvmfault_vm_error(bed.vm, text, sizeof(text)),
			 -ENOENT);
	ck_assert_int_eq(fail_at(0x1000, "gpa 0x1000"), 0);
	ck_assert_int_eq(fail_at(0x2000, "gpa 0x2000"), 0);
	/* What succeeds leaves it. */
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, 1, false), 0);
	ck_assert_int_eq(kvmfault_vm_error(bed.vm, text, sizeof(text)), 0);
	ck_assert_ptr_nonnull(strstr(text, "gpa 0x2000"));
	/* As much of it as fits. */
	memset(buffer, 'x', sizeof(buffer));
	ck_assert_int_eq(kvmfault_vm_error(bed.vm, buffer, sizeof(buffer)), 0);
	ck_assert_uint_eq(strlen(buffer), sizeof(buffer) - 1);
	ck_assert_int_eq(strncmp(buffer, text, sizeof(buffer) - 1), 0);
	ck_assert_int_eq(kvmfault_vm_error(NULL, text, sizeof(text)), -EINVAL);
	ck_assert_int_eq(kvmfault_vm_error(bed.vm, NULL, 1), -EINVAL);
	ck_assert_int_eq(kvmfault_vm_error(bed.vm, text, 0), -EINVAL);
	bed_down();
}

static void *fail_elsewhere(void *times)
{
	size_t i;

	for (i = 0; i < (size_t)(uintptr_t)times; i++)
		ask_nothing(0x5000);
	return NULL;
}

static void in_another_thread(size_t times)
{
	pthread_t thread;

	ck_assert_int_eq(pthread_create(&thread, NULL, fail_elsewhere,
					(void *)(uintptr_t)times), 0);
	pthread_join(thread, NULL);
}

TEST(refuse, each_thread_has_its_own)
{
	ck_assert_int_eq(fail_at(0x1000, "gpa 0x1000"), 0);
	in_another_thread(KVMFAULT__TEXTS - 1);
	ck_assert_int_eq(kvmfault_vm_error(bed.vm, text, sizeof(text)), 0);
	ck_assert_ptr_nonnull(strstr(text, "gpa 0x1000"));
	/* They share the room. */
	in_another_thread(1);
	ck_assert_int_eq(kvmfault_vm_error(bed.vm, text, sizeof(text)),
			 -ENOENT);
	bed_down();
}

#define ROUNDS 2000

static void *fail_and_ask(void *gpa)
{
	char expected[32];
	int i;

	snprintf(expected, sizeof(expected), "gpa %#lx,", (long)(intptr_t)gpa);
	for (i = 0; i < ROUNDS; i++) {
		char buffer[512];

		ask_nothing((uintptr_t)gpa);
		/* Lost it may be, and never another's. */
		if (!kvmfault_vm_error(bed.vm, buffer, sizeof(buffer)) &&
		    !strstr(buffer, expected))
			return (void *)1;
	}
	return NULL;
}

TEST(refuse, all_at_once)
{
	pthread_t thread[4];
	void *wrong;
	size_t i;

	for (i = 0; i < 4; i++)
		ck_assert_int_eq(pthread_create(&thread[i], NULL, fail_and_ask,
				(void *)(uintptr_t)((i + 1) << 12)), 0);
	for (i = 0; i < 4; i++) {
		pthread_join(thread[i], &wrong);
		ck_assert_ptr_null(wrong);
	}
	bed_down();
}

/* ---- what has to go first ---- */

TEST(refuse, in_use)
{
	struct kvmfault_service_options options = { .size = sizeof(options) };
	struct kvmfault_service *service, *second;

	ck_assert_int_eq(kvmfault_vm_free(bed.vm), -EBUSY);
	ck_assert_int_eq(kvmfault_vm_error(bed.vm, text, sizeof(text)), 0);
	ck_assert_ptr_nonnull(strstr(text, "kvmfault_vcpu_free()"));
	ck_assert_int_eq(kvmfault_memory_free(bed.memory), -EBUSY);
	ck_assert_int_eq(kvmfault_vm_error(bed.vm, text, sizeof(text)), 0);
	ck_assert_ptr_nonnull(strstr(text, "kvmfault_region_remove()"));
	ck_assert_int_eq(kvmfault_service_new(bed.vm, &options, &service), 0);
	ck_assert_int_eq(kvmfault_service_new(bed.vm, &options, &second),
			 -EBUSY);
	ck_assert_int_eq(kvmfault_vm_error(bed.vm, text, sizeof(text)), 0);
	ck_assert_ptr_nonnull(strstr(text, "kvmfault_service_free()"));
	ck_assert_int_eq(kvmfault_service_free(service), 0);
	bed_down();
}

TEST(refuse, of_another_version)
{
	struct {
		struct kvmfault_region region;
		uint64_t more;
	} newer = { .region.size = sizeof(newer), .more = 1 };

	ck_assert_int_eq(kvmfault_region_add(bed.vm, &newer.region), -E2BIG);
	ck_assert_int_eq(kvmfault_vm_error(bed.vm, text, sizeof(text)), 0);
	ck_assert_ptr_nonnull(strstr(text, "struct kvmfault_region"));
	ck_assert_ptr_nonnull(strstr(text, kvmfault_version()));
	newer.region.size = 0;
	ck_assert_int_eq(kvmfault_region_add(bed.vm, &newer.region), -EINVAL);
	ck_assert_int_eq(kvmfault_vm_error(bed.vm, text, sizeof(text)), 0);
	ck_assert_ptr_nonnull(strstr(text, "size is not set"));
	bed_down();
}

/* ---- nobody who answers ---- */

static unsigned int missed;

static void on_missed(void *data, enum kvmfault_log_level level,
		      const char *message)
{
	(void)data;
	missed += level == KVMFAULT_LOG_WARNING &&
		  strstr(message, "there is no service") &&
		  strstr(message, "kvmfault_service_new()");
}

/* With a source or without, a service first or not; and a vCPU. */
static void set_up(bool tracked, bool served, bool region_last)
{
	const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops), .log = on_missed,
	};
	const struct kvmfault_vm_options options = {
		.size = sizeof(options), .ops = &ops,
	};
	const struct kvmfault_source source = bed_source();
	struct kvmfault_memory_options memory = {
		.size = sizeof(memory), .length = PAGE,
		.source = tracked ? &source : NULL,
	};
	const struct kvmfault_service_options work = { .size = sizeof(work) };
	static struct kvm_run run;
	const struct kvmfault_vcpu_options vcpu = {
		.size = sizeof(vcpu), .fd = bed.fd, .run = &run,
	};
	struct kvmfault_region region = { .size = sizeof(region),
					  .length = PAGE };
	struct kvmfault_service *service = NULL;
	struct kvmfault_vcpu *handle;
	struct kvmfault_vm *vm;
	int i;

	missed = 0;
	ck_assert_int_eq(kvmfault_vm_new(&options, &vm), 0);
	if (served)
		ck_assert_int_eq(kvmfault_service_new(vm, &work, &service), 0);
	for (i = 0; i < 2; i++)
		if (i == region_last) {
			memory.fd = fake_memory(PAGE, PAGE, &memory.host);
			ck_assert_int_eq(kvmfault_memory_adopt(vm, &memory,
							&region.memory), 0);
			ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
		} else {
			ck_assert_int_eq(kvmfault_vcpu_new(vm, &vcpu, &handle),
					 0);
		}
	/* Once is enough. */
	kvmfault_vm_set_delivery(vm, KVMFAULT_DELIVERY_UFFD);
	kvmfault_vcpu_free(handle);
	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_int_eq(kvmfault_region_remove(vm, 0, 0), 0);
	ck_assert_int_eq(kvmfault_memory_free(region.memory), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
}

TEST_EACH(refuse, no_service, 2)
{
	int region_last = _i;

	set_up(true, false, region_last);
	ck_assert_uint_eq(missed, 1);
	set_up(true, true, region_last);
	ck_assert_uint_eq(missed, 0);
	/* No messages come of such a memory. */
	set_up(false, false, region_last);
	ck_assert_uint_eq(missed, 0);
	bed_down();
}

int main(void)
{
	return run_suite("refuse");
}
