/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * syscalls.c: the lists are what the kernel's headers say, and what stands in
 * doc/integration.md. That they are right is the fake door's to see in every
 * other test, and a real filter's in kvm-seccomp.
 */

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kvmfault.h"
#include "unit.h"

#define INLINE KVMFAULT_PROFILE_INLINE
#define DELEGATE KVMFAULT_PROFILE_DELEGATE
#define PROFILES (KVMFAULT_PROFILE_CALLER + 1)

static struct kvmfault_syscall at(enum kvmfault_profile profile,
				  unsigned int index)
{
	struct kvmfault_syscall call = { .size = sizeof(call) };
	int err = kvmfault_syscalls(profile, index, &call);

	ck_assert(!err || err == -ENOENT);
	if (err)
		call.name = NULL;
	return call;
}

static unsigned int count(enum kvmfault_profile profile)
{
	unsigned int n = 0;

	while (at(profile, n).name)
		n++;
	return n;
}

TEST_GROUP(syscalls, NULL, NULL);

TEST_EACH(syscalls, each_once, PROFILES)
{
	unsigned int i, other, n = count(_i);

	ck_assert_uint_ge(n, 3);
	for (i = 0; i < n; i++) {
		struct kvmfault_syscall one = at(_i, i);

		ck_assert_str_ne(one.why, "");
		ck_assert_int_ge(one.number, 0);
		ck_assert_int_ge(one.argument, -1);
		ck_assert_int_le(one.argument, 5);
		/* What it says is what it is. */
		ck_assert(one.argument >= 0 ||
			  (!one.value && !*one.value_name));
		for (other = 0; other < i; other++) {
			struct kvmfault_syscall two = at(_i, other);

			ck_assert_int_eq(one.number == two.number,
					 !strcmp(one.name, two.name));
			ck_assert(one.number != two.number ||
				  (one.argument == two.argument &&
				   one.value != two.value));
		}
	}
}

TEST(syscalls, delegate_is_narrow)
{
	unsigned int i;

	for (i = 0; i < count(DELEGATE); i++) {
		struct kvmfault_syscall call = at(DELEGATE, i);

		ck_assert(call.number == SYS_futex ||
			  call.number == SYS_restart_syscall);
	}
	ck_assert_uint_eq(count(DELEGATE), 3);
}

TEST(syscalls, errors)
{
	struct kvmfault_syscall call = { .size = sizeof(call) };
	struct kvmfault_syscall none = { .size = 0 };

	ck_assert_int_eq(kvmfault_syscalls(INLINE, 0, NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_syscalls(INLINE, 0, &none), -EINVAL);
	ck_assert_int_eq(kvmfault_syscalls(PROFILES, 0, &call), -EINVAL);
	ck_assert_int_eq(kvmfault_syscalls(INLINE, 1000, &call), -ENOENT);
	ck_assert_int_eq(kvmfault_syscalls(DELEGATE, 1000, &call), -ENOENT);
}

/* ---- the document ---- */

static char doc[1 << 20], table[1 << 14];

static void read_doc(void)
{
	FILE *file = fopen(INTEGRATION_MD, "r");

	ck_assert_ptr_nonnull(file);
	doc[fread(doc, 1, sizeof(doc) - 1, file)] = 0;
	fclose(file);
}

static void add_row(const struct kvmfault_syscall *call)
{
	size_t length = strlen(table), room = sizeof(table) - length;
	char what[100] = "", value[20] = "any";

	if (call->argument >= 0) {
		snprintf(what, sizeof(what), *call->value_name ?
			 "[%d] `%s` " : "[%d] ", call->argument,
			 call->value_name);
		if (strcmp(call->name, "ioctl"))
			snprintf(value, sizeof(value), "%u", call->value);
		else
			snprintf(value, sizeof(value), "%#x", call->value);
	}
	snprintf(table + length, room, "| `%s` | %s%s | %s |\n", call->name,
		 what, value, call->why);
}

TEST_EACH(syscalls, documented, PROFILES)
{
	unsigned int i;

	read_doc();
	snprintf(table, sizeof(table),
		 "\n| call | argument | when |\n|---|---|---|\n");
	for (i = 0; i < count(_i); i++) {
		struct kvmfault_syscall call = at(_i, i);

		add_row(&call);
	}
	ck_assert_uint_lt(strlen(table), sizeof(table) - 1);
	strcat(table, "\n");
	if (!strstr(doc, table))
		ck_abort_msg("doc/integration.md does not have:\n%s", table);
}

int main(void)
{
	return run_suite("syscalls");
}
