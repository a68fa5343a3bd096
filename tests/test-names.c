/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * names.c: each enumerator has a name of its own, and nothing is ever NULL.
 */

#include <string.h>

#include "kvmfault-experimental.h"
#include "unit.h"

/* Enumerators are first to last without gaps; one more is a failure here. */
#define NAMES(kind, type, first_value, last_value) \
	static const char *name_##kind(int value) \
	{ \
		return kvmfault_##kind##_str((type)value); \
	}
#define KINDS(X) \
	X(support, enum kvmfault_support, 0, KVMFAULT_SUPPORT_COULD_NOT_ASK) \
	X(feature, enum kvmfault_feature, 0, KVMFAULT_FEATURE_COUNT - 1) \
	X(kind, enum kvmfault_kind, 0, KVMFAULT_KIND_COUNT - 1) \
	X(access, enum kvmfault_access, 0, KVMFAULT_ACCESS_EXEC) \
	X(cause, enum kvmfault_cause, 0, KVMFAULT_CAUSE_DISCARD) \
	X(delivery, enum kvmfault_delivery, 0, KVMFAULT_DELIVERY_KERNEL_EXIT) \
	X(reason, enum kvmfault_reason, 0, KVMFAULT_REASON_LOST_MMIO) \
	X(page, enum kvmfault_page, 1, KVMFAULT_PAGE_HOLE) \
	X(verdict, enum kvmfault_verdict, 0, KVMFAULT_VERDICT_LATER) \
	X(action, enum kvmfault_action, 1, KVMFAULT_ACTION_PENDING_UNFINISHED) \
	X(profile, enum kvmfault_profile, 0, KVMFAULT_PROFILE_CALLER) \
	X(log_level, enum kvmfault_log_level, 0, KVMFAULT_LOG_WARNING) \
	X(window, enum kvmfault_window, 0, KVMFAULT_WINDOW_SOURCE) \
	X(sigbus, enum kvmfault_sigbus, 0, KVMFAULT_SIGBUS_HANDLER)

KINDS(NAMES)

#define ROW(kind, type, first_value, last_value) \
	{ name_##kind, first_value, last_value },

static const struct {
	const char *(*name)(int value);
	int first, last;
} kinds[] = { KINDS(ROW) };

#define COUNT ((int)(sizeof(kinds) / sizeof(*kinds)))

TEST_GROUP(names, NULL, NULL);

TEST_EACH(names, every_enumerator, COUNT)
{
	int value, other;

	for (value = kinds[_i].first; value <= kinds[_i].last; value++) {
		const char *name = kinds[_i].name(value);

		ck_assert_ptr_nonnull(name);
		ck_assert_str_ne(name, "unknown");
		ck_assert_str_ne(name, "");
		for (other = kinds[_i].first; other < value; other++)
			ck_assert_str_ne(name, kinds[_i].name(other));
	}
}

TEST_EACH(names, any_other_number, COUNT)
{
	const int others[] = {
		kinds[_i].first - 1, kinds[_i].last + 1, -1, 1000, INT32_MAX,
		INT32_MIN,
	};
	size_t i;

	for (i = 0; i < sizeof(others) / sizeof(*others); i++)
		ck_assert_str_eq(kinds[_i].name(others[i]), "unknown");
}

TEST(names, version)
{
	ck_assert_str_eq(kvmfault_version(), KVMFAULT_VERSION);
}

int main(void)
{
	return run_suite("names");
}
