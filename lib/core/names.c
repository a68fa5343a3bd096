/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: names of enumerators, for people and logs. In: an
 * enumerator, or any other number. Out: a constant string, never NULL:
 * "unknown" for a number that this version does not know.
 */

#include "kvmfault-experimental.h"
#include "core.h"

#define NAME(table, value) \
	((unsigned int)(value) < sizeof(table) / sizeof(*(table)) && \
	 (table)[value] ? (table)[value] : "unknown")

KVMFAULT__EXPORT
const char *kvmfault_support_str(enum kvmfault_support support)
{
	static const char *const names[] = {
		[KVMFAULT_SUPPORT_NOT_ASKED] = "not asked",
		[KVMFAULT_SUPPORT_YES] = "yes",
		[KVMFAULT_SUPPORT_NO] = "no",
		[KVMFAULT_SUPPORT_COULD_NOT_ASK] = "could not ask",
	};

	return NAME(names, support);
}

KVMFAULT__EXPORT
const char *kvmfault_feature_str(enum kvmfault_feature feature)
{
	static const char *const names[] = {
		[KVMFAULT_FEATURE_NONE] = "none",
		[KVMFAULT_FEATURE_MEMORY_FAULT_INFO] = "memory-fault-info",
		[KVMFAULT_FEATURE_USER_MEMORY2] = "user-memory2",
		[KVMFAULT_FEATURE_GUEST_MEMFD] = "guest-memfd",
		[KVMFAULT_FEATURE_MEMORY_ATTRIBUTES] = "memory-attributes",
		[KVMFAULT_FEATURE_PRE_FAULT_MEMORY] = "pre-fault-memory",
		[KVMFAULT_FEATURE_EXIT_ON_EMULATION_FAILURE] =
			"exit-on-emulation-failure",
		[KVMFAULT_FEATURE_ADDRESS_SPACES] = "address-spaces",
		[KVMFAULT_FEATURE_UFFD_DEVICE] = "uffd-device",
		[KVMFAULT_FEATURE_UFFD_SYSCALL] = "uffd-syscall",
		[KVMFAULT_FEATURE_UFFD] = "uffd",
		[KVMFAULT_FEATURE_UFFD_ANON] = "uffd-anon",
		[KVMFAULT_FEATURE_UFFD_SHMEM] = "uffd-shmem",
		[KVMFAULT_FEATURE_UFFD_HUGETLB] = "uffd-hugetlb",
		[KVMFAULT_FEATURE_UFFD_MINOR_SHMEM] = "uffd-minor-shmem",
		[KVMFAULT_FEATURE_UFFD_MINOR_HUGETLB] = "uffd-minor-hugetlb",
		[KVMFAULT_FEATURE_UFFD_POISON] = "uffd-poison",
		[KVMFAULT_FEATURE_UFFD_MOVE] = "uffd-move",
		[KVMFAULT_FEATURE_POPULATE_READ] = "populate-read",
		[KVMFAULT_FEATURE_POPULATE_WRITE] = "populate-write",
		[KVMFAULT_FEATURE_TWO_DIMENSIONAL_PAGING] =
			"two-dimensional-paging",
		[KVMFAULT_FEATURE_USERFAULT] = "userfault",
		[KVMFAULT_FEATURE_EXIT_ON_MISSING] = "exit-on-missing",
	};

	return NAME(names, feature);
}

KVMFAULT__EXPORT
const char *kvmfault_kind_str(enum kvmfault_kind kind)
{
	static const char *const names[] = {
		[KVMFAULT_KIND_NONE] = "none",
		[KVMFAULT_KIND_EXIT] = "exit",
		[KVMFAULT_KIND_MARKER] = "marker",
		[KVMFAULT_KIND_UNANNOTATED] = "unannotated",
		[KVMFAULT_KIND_MMIO] = "mmio",
		[KVMFAULT_KIND_EMULATION] = "emulation",
		[KVMFAULT_KIND_UFFD] = "uffd",
		[KVMFAULT_KIND_CALL] = "call",
		[KVMFAULT_KIND_FAILURE] = "failure",
		[KVMFAULT_KIND_FILL] = "fill",
	};

	return NAME(names, kind);
}

KVMFAULT__EXPORT
const char *kvmfault_access_str(enum kvmfault_access access)
{
	static const char *const names[] = {
		[KVMFAULT_ACCESS_UNKNOWN] = "access",
		[KVMFAULT_ACCESS_READ] = "read",
		[KVMFAULT_ACCESS_WRITE] = "write",
		[KVMFAULT_ACCESS_EXEC] = "execute",
	};

	return NAME(names, access);
}

KVMFAULT__EXPORT
const char *kvmfault_cause_str(enum kvmfault_cause cause)
{
	static const char *const names[] = {
		[KVMFAULT_CAUSE_NONE] = "none",
		[KVMFAULT_CAUSE_FETCH] = "fetch",
		[KVMFAULT_CAUSE_ZERO] = "zero",
		[KVMFAULT_CAUSE_MMIO] = "mmio",
		[KVMFAULT_CAUSE_DISCARD] = "discard",
	};

	return NAME(names, cause);
}

KVMFAULT__EXPORT
const char *kvmfault_delivery_str(enum kvmfault_delivery delivery)
{
	static const char *const names[] = {
		[KVMFAULT_DELIVERY_AUTO] = "auto",
		[KVMFAULT_DELIVERY_UFFD] = "uffd",
		[KVMFAULT_DELIVERY_MARKER_EXIT] = "marker-exit",
		[KVMFAULT_DELIVERY_KERNEL_EXIT] = "kernel-exit",
	};

	return NAME(names, delivery);
}

KVMFAULT__EXPORT
const char *kvmfault_reason_str(enum kvmfault_reason reason)
{
	static const char *const names[] = {
		[KVMFAULT_REASON_NONE] = "none",
		[KVMFAULT_REASON_NO_ADDRESS] =
			"KVM keeps failing and does not say where",
		[KVMFAULT_REASON_NO_REGION] = "no region has this address",
		[KVMFAULT_REASON_DECLINED] = "every resolver declined the fault",
		[KVMFAULT_REASON_FLAGS] =
			"the fault has flags that no resolver understands",
		[KVMFAULT_REASON_SOURCE] = "the source failed",
		[KVMFAULT_REASON_RESOLVER] = "a resolver failed",
		[KVMFAULT_REASON_STILL_ABSENT] =
			"a resolver returned RESOLVED, but the page is still absent",
		[KVMFAULT_REASON_NO_PROGRESS] =
			"the fault was resolved again and again without progress",
		[KVMFAULT_REASON_HWPOISON] = "the memory has failed",
		[KVMFAULT_REASON_LOST_MMIO] =
			"KVM_RUN was entered with an access half done",
	};

	return NAME(names, reason);
}

KVMFAULT__EXPORT
const char *kvmfault_page_str(enum kvmfault_page page)
{
	static const char *const names[] = {
		[KVMFAULT_PAGE_UNTRACKED] = "untracked",
		[KVMFAULT_PAGE_ABSENT] = "absent",
		[KVMFAULT_PAGE_DISCARDED] = "discarded",
		[KVMFAULT_PAGE_PRESENT] = "present",
		[KVMFAULT_PAGE_POISONED] = "poisoned",
		[KVMFAULT_PAGE_UNCONVERTED] = "unconverted",
		[KVMFAULT_PAGE_PROTECTED] = "protected",
		[KVMFAULT_PAGE_HOLE] = "hole",
	};

	return NAME(names, page);
}

KVMFAULT__EXPORT
const char *kvmfault_verdict_str(enum kvmfault_verdict verdict)
{
	static const char *const names[] = {
		[KVMFAULT_VERDICT_DECLINED] = "declined",
		[KVMFAULT_VERDICT_RESOLVED] = "resolved",
		[KVMFAULT_VERDICT_LATER] = "later",
	};

	return NAME(names, verdict);
}

KVMFAULT__EXPORT
const char *kvmfault_action_str(enum kvmfault_action action)
{
	static const char *const names[] = {
		[KVMFAULT_ACTION_RETRY] = "retry",
		[KVMFAULT_ACTION_NOT_A_FAULT] = "not a fault",
		[KVMFAULT_ACTION_INTERRUPTED] = "interrupted",
		[KVMFAULT_ACTION_PENDING] = "pending",
		[KVMFAULT_ACTION_UNFINISHED] = "interrupted, unfinished",
		[KVMFAULT_ACTION_PENDING_UNFINISHED] = "pending, unfinished",
		[KVMFAULT_ACTION_UNRESOLVED] = "unresolved",
	};

	return NAME(names, action);
}

KVMFAULT__EXPORT
const char *kvmfault_profile_str(enum kvmfault_profile profile)
{
	static const char *const names[] = {
		[KVMFAULT_PROFILE_INLINE] = "inline",
		[KVMFAULT_PROFILE_DELEGATE] = "delegate",
		[KVMFAULT_PROFILE_SERVICE] = "service",
		[KVMFAULT_PROFILE_CALLER] = "caller",
	};

	return NAME(names, profile);
}

KVMFAULT__EXPORT
const char *kvmfault_log_level_str(enum kvmfault_log_level level)
{
	static const char *const names[] = {
		[KVMFAULT_LOG_NONE] = "none",
		[KVMFAULT_LOG_ERROR] = "error",
		[KVMFAULT_LOG_WARNING] = "warning",
	};

	return NAME(names, level);
}

KVMFAULT__EXPORT
const char *kvmfault_window_str(enum kvmfault_window window)
{
	static const char *const names[] = {
		[KVMFAULT_WINDOW_NONE] = "none",
		[KVMFAULT_WINDOW_FIXED] = "fixed",
		[KVMFAULT_WINDOW_ADAPTIVE] = "adaptive",
		[KVMFAULT_WINDOW_SOURCE] = "source",
	};

	return NAME(names, window);
}

KVMFAULT__EXPORT
const char *kvmfault_sigbus_str(enum kvmfault_sigbus sigbus)
{
	static const char *const names[] = {
		[KVMFAULT_SIGBUS_MASKED] = "masked",
		[KVMFAULT_SIGBUS_HANDLER] = "handler",
	};

	return NAME(names, sigbus);
}

KVMFAULT__EXPORT
const char *kvmfault_version(void)
{
	return KVMFAULT_VERSION;
}
