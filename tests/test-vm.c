/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * vm.c: the context, its options and its end.
 */

#include <string.h>

#include "bed.h"

static struct kvmfault_vm *vm;

static void down(void)
{
	struct fake_held held = fake_held();

	ck_assert_int_eq(held.allocations, 0);
	ck_assert_int_eq(held.descriptors, 0);
	ck_assert_int_eq(held.mappings, 0);
}

static int new_vm(uint64_t page_size_max, uint32_t retry_budget)
{
	struct kvmfault_vm_options options = {
		.size = sizeof(options), .page_size_max = page_size_max,
		.retry_budget = retry_budget,
	};

	vm = (void *)1;
	return kvmfault_vm_new(&options, &vm);
}

TEST_GROUP(vm, NULL, down);

TEST(vm, defaults)
{
	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	ck_assert_uint_eq(vm->options.page_size_max, 2 << 20);
	ck_assert_uint_eq(vm->options.retry_budget, 16);
	ck_assert_str_eq(kvmfault_resolver_name(vm, 0), "copy");
	ck_assert_str_eq(kvmfault_resolver_name(vm, 1), "async");
	ck_assert_str_eq(kvmfault_resolver_name(vm, 2), "continue");
	ck_assert_str_eq(kvmfault_resolver_name(vm, 3), "zero");
	ck_assert_str_eq(kvmfault_resolver_name(vm, 4), "populate");
	ck_assert_str_eq(kvmfault_resolver_name(vm, 5), "convert");
	ck_assert_str_eq(kvmfault_resolver_name(vm, 6), "unprotect");
	ck_assert_ptr_null(kvmfault_resolver_name(vm, 7));
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	ck_assert_int_eq(kvmfault_vm_free(NULL), 0);
}

TEST(vm, page_sizes)
{
	static const uint64_t good[] = { 4096, 65536, 2 << 20, 1 << 30 };
	static const uint64_t bad[] = { 1, 2048, 4097, 3 << 20, 2ULL << 30,
					1ULL << 63, UINT64_MAX };
	size_t i;

	for (i = 0; i < 4; i++) {
		ck_assert_int_eq(new_vm(good[i], 1), 0);
		ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	}
	for (i = 0; i < 7; i++) {
		ck_assert_int_eq(new_vm(bad[i], 1), -EINVAL);
		ck_assert_ptr_null(vm);
	}
	ck_assert_int_eq(kvmfault_vm_new(NULL, NULL), -EINVAL);
}

TEST(vm, unknown_tail)
{
	struct {
		struct kvmfault_vm_options options;
		uint64_t tail;
	} caller = { .options.size = sizeof(caller), .tail = 1 };

	vm = (void *)1;
	ck_assert_int_eq(kvmfault_vm_new(&caller.options, &vm), -E2BIG);
	ck_assert_ptr_null(vm);
	caller.options.size = 1;
	ck_assert_int_eq(kvmfault_vm_new(&caller.options, &vm), -EINVAL);
	caller.options.size = sizeof(size_t);	/* the oldest caller */
	ck_assert_int_eq(kvmfault_vm_new(&caller.options, &vm), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
}

TEST(vm, busy)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .length = PAGE, .guest_memfd = 5,
	};
	struct kvmfault_uffd *uffd;

	ck_assert_int_eq(new_vm(0, 0), 0);
	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), -EBUSY);
	ck_assert_int_eq(kvmfault_region_remove(vm, 0, 0), 0);
	ck_assert_int_eq(kvmfault_uffd_new(vm, NULL, &uffd), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), -EBUSY);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
}

/* What is dead but not swept, for want of memory, goes with the context. */
TEST(vm, freed_with_the_dead)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .length = 4 * PAGE,
	};
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = 4 * PAGE,
	};

	ck_assert_int_eq(new_vm(0, 0), 0);
	options.fd = fake_memory(options.length, 0, &options.host);
	ck_assert_int_eq(kvmfault_memory_adopt(vm, &options, &region.memory), 0);
	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(kvmfault_region_remove(vm, 0, 0), 0);
	fake_push(FAKE_ALLOC, 0);
	ck_assert_int_eq(kvmfault_memory_free(region.memory), 0);
	ck_assert_uint_eq(vm->leaving, 2);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	/* down() checks that nothing is left. */
}

TEST(vm, any_number_of_them)
{
	struct kvmfault_vm *other;

	ck_assert_int_eq(new_vm(0, 0), 0);
	ck_assert_int_eq(kvmfault_vm_new(NULL, &other), 0);
	ck_assert_int_ne(vm->epoll, other->epoll);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	ck_assert_int_eq(kvmfault_vm_free(other), 0);
}

TEST(vm, operations_of_another_size)
{
	struct {
		struct kvmfault_vm_ops ops;
		uint64_t tail;
	} longer = { .ops.size = sizeof(longer) };
	struct kvmfault_vm_options options = {
		.size = sizeof(options), .ops = &longer.ops,
	};

	ck_assert_int_eq(kvmfault_vm_new(&options, &vm), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	longer.tail = 1;
	ck_assert_int_eq(kvmfault_vm_new(&options, &vm), -E2BIG);
	ck_assert_ptr_null(vm);
	longer.ops.size = 0;
	ck_assert_int_eq(kvmfault_vm_new(&options, &vm), -EINVAL);
	ck_assert_ptr_null(vm);
}

static char line[600];
static void *given;
static enum kvmfault_log_level said;

static void take_line(void *data, enum kvmfault_log_level level,
		      const char *message)
{
	given = data;
	said = level;
	strncpy(line, message, sizeof(line) - 1);
}

TEST(vm, log_lines)
{
	const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops), .log = take_line,
	};
	struct kvmfault_vm_options options = {
		.size = sizeof(options), .ops = &ops, .data = line,
	};
	char huge[2000];

	memset(huge, 'x', sizeof(huge) - 1);
	huge[sizeof(huge) - 1] = 0;
	ck_assert_int_eq(kvmfault_vm_new(&options, &vm), 0);
	kvmfault__log(vm, KVMFAULT_LOG_WARNING, "%d and %s", 42, "more");
	ck_assert_str_eq(line, "42 and more");
	ck_assert_int_eq(said, KVMFAULT_LOG_WARNING);
	ck_assert_ptr_eq(given, line);
	kvmfault__log(vm, KVMFAULT_LOG_ERROR, "%s", huge);
	ck_assert_uint_eq(strlen(line), 511);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	/* Silent by default. */
	ck_assert_int_eq(new_vm(0, 0), 0);
	kvmfault__log(vm, KVMFAULT_LOG_ERROR, "nobody hears it");
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	ck_assert_uint_eq(strlen(line), 511);
}

int main(void)
{
	return run_suite("vm");
}
