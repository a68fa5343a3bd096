/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The public open structs as programs were compiled with them: each one's size,
 * each member's offset and size, on 64-bit machines. Lines are only added. A
 * new member begins where its struct ended, never in its padding, where older
 * callers have garbage; and the struct's size, the one number that changes,
 * grows with it. "layout --twin": each line is noticed when it is wrong.
 */

#include <kvmfault.h>
#include <kvmfault-nbd.h>

#include <stdio.h>
#include <string.h>

#define SIZE(type, size) \
	{ #type, sizeof(struct type), 0, size, 0 }
#define MEMBER(type, member, offset, size) \
	{ #type "." #member, sizeof(((struct type *)0)->member), \
	  offsetof(struct type, member), size, offset }

struct line {
	const char *name;
	size_t size;
	size_t offset;
	size_t frozen_size;
	size_t frozen_offset;
};

static const struct line lines[] = {
	SIZE(kvmfault_finding, 16),
	MEMBER(kvmfault_finding, support, 0, 4),
	MEMBER(kvmfault_finding, error, 4, 4),
	MEMBER(kvmfault_finding, value, 8, 8),

	SIZE(kvmfault_features, 376),
	MEMBER(kvmfault_features, size, 0, 8),
	MEMBER(kvmfault_features, feature, 8, 368),

	SIZE(kvmfault_fault, 64),
	MEMBER(kvmfault_fault, size, 0, 8),
	MEMBER(kvmfault_fault, kind, 8, 4),
	MEMBER(kvmfault_fault, access, 12, 4),
	MEMBER(kvmfault_fault, known, 16, 4),
	MEMBER(kvmfault_fault, address_space, 20, 4),
	MEMBER(kvmfault_fault, error, 24, 4),
	MEMBER(kvmfault_fault, gpa, 32, 8),
	MEMBER(kvmfault_fault, hva, 40, 8),
	MEMBER(kvmfault_fault, length, 48, 8),
	MEMBER(kvmfault_fault, flags, 56, 8),

	SIZE(kvmfault_change, 40),
	MEMBER(kvmfault_change, size, 0, 8),
	MEMBER(kvmfault_change, memory, 8, 8),
	MEMBER(kvmfault_change, offset, 16, 8),
	MEMBER(kvmfault_change, length, 24, 8),
	MEMBER(kvmfault_change, cause, 32, 4),

	SIZE(kvmfault_sleeper, 56),
	MEMBER(kvmfault_sleeper, size, 0, 8),
	MEMBER(kvmfault_sleeper, fault, 8, 8),
	MEMBER(kvmfault_sleeper, memory, 16, 8),
	MEMBER(kvmfault_sleeper, offset, 24, 8),
	MEMBER(kvmfault_sleeper, length, 32, 8),
	MEMBER(kvmfault_sleeper, uffd, 40, 8),
	MEMBER(kvmfault_sleeper, reason, 48, 4),
	MEMBER(kvmfault_sleeper, error, 52, 4),
	SIZE(kvmfault_failure, 48),
	MEMBER(kvmfault_failure, size, 0, 8),
	MEMBER(kvmfault_failure, fault, 8, 8),
	MEMBER(kvmfault_failure, vcpu, 16, 8),
	MEMBER(kvmfault_failure, memory, 24, 8),
	MEMBER(kvmfault_failure, offset, 32, 8),
	MEMBER(kvmfault_failure, length, 40, 8),

	SIZE(kvmfault_vm_ops, 48),
	MEMBER(kvmfault_vm_ops, size, 0, 8),
	MEMBER(kvmfault_vm_ops, log, 8, 8),
	MEMBER(kvmfault_vm_ops, changed, 16, 8),
	MEMBER(kvmfault_vm_ops, unresolved, 24, 8),
	MEMBER(kvmfault_vm_ops, failed, 32, 8),
	MEMBER(kvmfault_vm_ops, page_ready, 40, 8),

	SIZE(kvmfault_vm_options, 80),
	MEMBER(kvmfault_vm_options, size, 0, 8),
	MEMBER(kvmfault_vm_options, ops, 8, 8),
	MEMBER(kvmfault_vm_options, data, 16, 8),
	MEMBER(kvmfault_vm_options, vm_fd, 24, 4),
	MEMBER(kvmfault_vm_options, kvm_fd, 28, 4),
	MEMBER(kvmfault_vm_options, allow, 32, 8),
	MEMBER(kvmfault_vm_options, delivery, 40, 4),
	MEMBER(kvmfault_vm_options, retry_budget, 44, 4),
	MEMBER(kvmfault_vm_options, source_retries, 48, 4),
	MEMBER(kvmfault_vm_options, prefault, 52, 1),
	MEMBER(kvmfault_vm_options, page_size_max, 56, 8),
	MEMBER(kvmfault_vm_options, fetches, 64, 4),
	MEMBER(kvmfault_vm_options, converter, 72, 8),

	SIZE(kvmfault_delivery_report, 112),
	MEMBER(kvmfault_delivery_report, size, 0, 8),
	MEMBER(kvmfault_delivery_report, delivery, 8, 4),
	MEMBER(kvmfault_delivery_report, mode, 16, 64),
	MEMBER(kvmfault_delivery_report, why, 80, 32),

	SIZE(kvmfault_memory_maps, 32),
	MEMBER(kvmfault_memory_maps, size, 0, 8),
	MEMBER(kvmfault_memory_maps, memslots, 8, 8),
	MEMBER(kvmfault_memory_maps, own, 16, 8),
	MEMBER(kvmfault_memory_maps, fd, 24, 4),

	SIZE(kvmfault_source, 104),
	MEMBER(kvmfault_source, size, 0, 8),
	MEMBER(kvmfault_source, name, 8, 8),
	MEMBER(kvmfault_source, read, 16, 8),
	MEMBER(kvmfault_source, data, 24, 8),
	MEMBER(kvmfault_source, length, 32, 8),
	MEMBER(kvmfault_source, chunk, 40, 8),
	MEMBER(kvmfault_source, submit, 48, 8),
	MEMBER(kvmfault_source, cancel, 56, 8),
	MEMBER(kvmfault_source, deadline_ms, 64, 4),
	MEMBER(kvmfault_source, view, 72, 8),
	MEMBER(kvmfault_source, file, 80, 4),
	MEMBER(kvmfault_source, extent, 88, 8),
	MEMBER(kvmfault_source, free, 96, 8),

	SIZE(kvmfault_uffd_options, 16),
	MEMBER(kvmfault_uffd_options, size, 0, 8),
	MEMBER(kvmfault_uffd_options, fd, 8, 4),
	MEMBER(kvmfault_uffd_options, remote, 12, 1),

	SIZE(kvmfault_memory_options, 96),
	MEMBER(kvmfault_memory_options, size, 0, 8),
	MEMBER(kvmfault_memory_options, host, 8, 8),
	MEMBER(kvmfault_memory_options, length, 16, 8),
	MEMBER(kvmfault_memory_options, page_size, 24, 8),
	MEMBER(kvmfault_memory_options, fd, 32, 4),
	MEMBER(kvmfault_memory_options, fd_offset, 40, 8),
	MEMBER(kvmfault_memory_options, source, 48, 8),
	MEMBER(kvmfault_memory_options, source_offset, 56, 8),
	MEMBER(kvmfault_memory_options, uffd, 64, 8),
	MEMBER(kvmfault_memory_options, window, 72, 4),
	MEMBER(kvmfault_memory_options, window_length, 80, 8),
	MEMBER(kvmfault_memory_options, minor, 88, 1),
	MEMBER(kvmfault_memory_options, write_protect, 89, 1),
	MEMBER(kvmfault_memory_options, inherited, 90, 1),
	MEMBER(kvmfault_memory_options, states_fd, 92, 4),

	SIZE(kvmfault_mapping_options, 32),
	MEMBER(kvmfault_mapping_options, size, 0, 8),
	MEMBER(kvmfault_mapping_options, host, 8, 8),
	MEMBER(kvmfault_mapping_options, uffd, 16, 8),
	MEMBER(kvmfault_mapping_options, inherited, 24, 1),

	SIZE(kvmfault_region, 64),
	MEMBER(kvmfault_region, size, 0, 8),
	MEMBER(kvmfault_region, gpa, 8, 8),
	MEMBER(kvmfault_region, length, 16, 8),
	MEMBER(kvmfault_region, address_space, 24, 4),
	MEMBER(kvmfault_region, flags, 28, 4),
	MEMBER(kvmfault_region, guest_memfd, 32, 4),
	MEMBER(kvmfault_region, guest_memfd_offset, 40, 8),
	MEMBER(kvmfault_region, memory, 48, 8),
	MEMBER(kvmfault_region, offset, 56, 8),

	SIZE(kvmfault_request, 72),
	MEMBER(kvmfault_request, size, 0, 8),
	MEMBER(kvmfault_request, fault, 8, 8),
	MEMBER(kvmfault_request, region, 16, 8),
	MEMBER(kvmfault_request, memory, 24, 8),
	MEMBER(kvmfault_request, page, 32, 4),
	MEMBER(kvmfault_request, offset, 40, 8),
	MEMBER(kvmfault_request, length, 48, 8),
	MEMBER(kvmfault_request, host, 56, 8),
	MEMBER(kvmfault_request, buffer, 64, 8),

	SIZE(kvmfault_resolver, 48),
	MEMBER(kvmfault_resolver, size, 0, 8),
	MEMBER(kvmfault_resolver, name, 8, 8),
	MEMBER(kvmfault_resolver, pages, 16, 4),
	MEMBER(kvmfault_resolver, flags, 24, 8),
	MEMBER(kvmfault_resolver, resolve, 32, 8),
	MEMBER(kvmfault_resolver, data, 40, 8),

	SIZE(kvmfault_syscall, 48),
	MEMBER(kvmfault_syscall, size, 0, 8),
	MEMBER(kvmfault_syscall, name, 8, 8),
	MEMBER(kvmfault_syscall, number, 16, 8),
	MEMBER(kvmfault_syscall, argument, 24, 4),
	MEMBER(kvmfault_syscall, value, 28, 4),
	MEMBER(kvmfault_syscall, value_name, 32, 8),
	MEMBER(kvmfault_syscall, why, 40, 8),

	SIZE(kvmfault_vcpu_options, 48),
	MEMBER(kvmfault_vcpu_options, size, 0, 8),
	MEMBER(kvmfault_vcpu_options, fd, 8, 4),
	MEMBER(kvmfault_vcpu_options, run, 16, 8),
	MEMBER(kvmfault_vcpu_options, no_wait, 24, 1),
	MEMBER(kvmfault_vcpu_options, signal_mask, 32, 8),
	MEMBER(kvmfault_vcpu_options, sigbus, 40, 4),
	MEMBER(kvmfault_vcpu_options, profile, 44, 4),

	SIZE(kvmfault_event, 40),
	MEMBER(kvmfault_event, size, 0, 8),
	MEMBER(kvmfault_event, fault, 8, 8),
	MEMBER(kvmfault_event, action, 16, 4),
	MEMBER(kvmfault_event, reason, 20, 4),
	MEMBER(kvmfault_event, error, 24, 4),
	MEMBER(kvmfault_event, times, 28, 4),
	MEMBER(kvmfault_event, resolver, 32, 8),

	SIZE(kvmfault_result, 64),
	MEMBER(kvmfault_result, size, 0, 8),
	MEMBER(kvmfault_result, action, 8, 4),
	MEMBER(kvmfault_result, reason, 12, 4),
	MEMBER(kvmfault_result, error, 16, 4),
	MEMBER(kvmfault_result, unfinished, 20, 1),
	MEMBER(kvmfault_result, resolver, 24, 8),
	MEMBER(kvmfault_result, fault, 32, 8),
	MEMBER(kvmfault_result, history, 40, 8),
	MEMBER(kvmfault_result, history_count, 48, 4),
	MEMBER(kvmfault_result, siginfo, 56, 8),

	SIZE(kvmfault_service_options, 16),
	MEMBER(kvmfault_service_options, size, 0, 8),
	MEMBER(kvmfault_service_options, threads, 8, 4),
	MEMBER(kvmfault_service_options, poll_us, 12, 4),

	SIZE(kvmfault_converter, 32),
	MEMBER(kvmfault_converter, size, 0, 8),
	MEMBER(kvmfault_converter, flags, 8, 4),
	MEMBER(kvmfault_converter, set, 16, 8),
	MEMBER(kvmfault_converter, data, 24, 8),

	SIZE(kvmfault_conversion_hook, 32),
	MEMBER(kvmfault_conversion_hook, size, 0, 8),
	MEMBER(kvmfault_conversion_hook, before, 8, 8),
	MEMBER(kvmfault_conversion_hook, after, 16, 8),
	MEMBER(kvmfault_conversion_hook, data, 24, 8),

	SIZE(kvmfault_working_set_options, 48),
	MEMBER(kvmfault_working_set_options, size, 0, 8),
	MEMBER(kvmfault_working_set_options, image_length, 8, 8),
	MEMBER(kvmfault_working_set_options, identity, 16, 32),

	SIZE(kvmfault_working_set_info, 64),
	MEMBER(kvmfault_working_set_info, size, 0, 8),
	MEMBER(kvmfault_working_set_info, image_length, 8, 8),
	MEMBER(kvmfault_working_set_info, identity, 16, 32),
	MEMBER(kvmfault_working_set_info, runs, 48, 8),
	MEMBER(kvmfault_working_set_info, bytes, 56, 8),

	SIZE(kvmfault_recording_options, 40),
	MEMBER(kvmfault_recording_options, size, 0, 8),
	MEMBER(kvmfault_recording_options, set, 8, 8),
	MEMBER(kvmfault_recording_options, memories, 16, 8),
	MEMBER(kvmfault_recording_options, memory_count, 24, 4),
	MEMBER(kvmfault_recording_options, milliseconds, 28, 4),
	MEMBER(kvmfault_recording_options, bytes, 32, 8),

	SIZE(kvmfault_stats, 760),
	MEMBER(kvmfault_stats, size, 0, 8),
	MEMBER(kvmfault_stats, fetched, 8, 8),
	MEMBER(kvmfault_stats, zeroed, 16, 8),
	MEMBER(kvmfault_stats, existed, 24, 8),
	MEMBER(kvmfault_stats, waited, 32, 8),
	MEMBER(kvmfault_stats, repeated, 40, 8),
	MEMBER(kvmfault_stats, woken, 48, 8),
	MEMBER(kvmfault_stats, deferred, 56, 8),
	MEMBER(kvmfault_stats, discarded, 64, 8),
	MEMBER(kvmfault_stats, unresolved, 72, 8),
	MEMBER(kvmfault_stats, kind, 80, 128),
	MEMBER(kvmfault_stats, resolver, 208, 128),
	MEMBER(kvmfault_stats, latency, 336, 192),
	MEMBER(kvmfault_stats, retried, 528, 8),
	MEMBER(kvmfault_stats, prefaulted, 536, 8),
	MEMBER(kvmfault_stats, action, 544, 64),
	MEMBER(kvmfault_stats, page, 608, 128),
	MEMBER(kvmfault_stats, marked, 736, 8),
	MEMBER(kvmfault_stats, filled, 744, 8),
	MEMBER(kvmfault_stats, holes, 752, 8),

	SIZE(kvmfault_fill_progress, 56),
	MEMBER(kvmfault_fill_progress, size, 0, 8),
	MEMBER(kvmfault_fill_progress, total, 8, 8),
	MEMBER(kvmfault_fill_progress, missing, 16, 8),
	MEMBER(kvmfault_fill_progress, resident, 24, 8),
	MEMBER(kvmfault_fill_progress, discarded, 32, 8),
	MEMBER(kvmfault_fill_progress, milliseconds, 40, 8),
	MEMBER(kvmfault_fill_progress, error, 48, 4),
	MEMBER(kvmfault_fill_progress, paused, 52, 1),
	MEMBER(kvmfault_fill_progress, over, 53, 1),
	MEMBER(kvmfault_fill_progress, replaying, 54, 1),

	SIZE(kvmfault_fill_options, 80),
	MEMBER(kvmfault_fill_options, size, 0, 8),
	MEMBER(kvmfault_fill_options, memories, 8, 8),
	MEMBER(kvmfault_fill_options, memory_count, 16, 4),
	MEMBER(kvmfault_fill_options, first, 24, 8),
	MEMBER(kvmfault_fill_options, threads, 32, 4),
	MEMBER(kvmfault_fill_options, rate, 40, 8),
	MEMBER(kvmfault_fill_options, window_length, 48, 8),
	MEMBER(kvmfault_fill_options, progress, 56, 8),
	MEMBER(kvmfault_fill_options, data, 64, 8),
	MEMBER(kvmfault_fill_options, interval_ms, 72, 4),
	MEMBER(kvmfault_fill_options, paused, 76, 1),

	SIZE(kvmfault_memory_counts, 56),
	MEMBER(kvmfault_memory_counts, size, 0, 8),
	MEMBER(kvmfault_memory_counts, absent, 8, 8),
	MEMBER(kvmfault_memory_counts, claimed, 16, 8),
	MEMBER(kvmfault_memory_counts, present, 24, 8),
	MEMBER(kvmfault_memory_counts, discarded, 32, 8),
	MEMBER(kvmfault_memory_counts, poisoned, 40, 8),
	MEMBER(kvmfault_memory_counts, to_save, 48, 8),

	SIZE(kvmfault_nbd_options, 80),
	MEMBER(kvmfault_nbd_options, size, 0, 8),
	MEMBER(kvmfault_nbd_options, uri, 8, 8),
	MEMBER(kvmfault_nbd_options, offset, 16, 8),
	MEMBER(kvmfault_nbd_options, length, 24, 8),
	MEMBER(kvmfault_nbd_options, connections, 32, 4),
	MEMBER(kvmfault_nbd_options, requests, 36, 4),
	MEMBER(kvmfault_nbd_options, fetches, 40, 4),
	MEMBER(kvmfault_nbd_options, deadline_ms, 44, 4),
	MEMBER(kvmfault_nbd_options, pause_ms, 48, 4),
	MEMBER(kvmfault_nbd_options, pause_max_ms, 52, 4),
	MEMBER(kvmfault_nbd_options, extents_ms, 56, 4),
	MEMBER(kvmfault_nbd_options, allow_files, 60, 1),
	MEMBER(kvmfault_nbd_options, log, 64, 8),
	MEMBER(kvmfault_nbd_options, data, 72, 8),
};

#define LINES (sizeof(lines) / sizeof(lines[0]))

static unsigned int check(const struct line *line, bool say)
{
	if (line->size == line->frozen_size &&
	    line->offset == line->frozen_offset)
		return 0;
	if (say)
		printf("%s: %zu bytes at %zu, frozen as %zu at %zu\n",
		       line->name, line->size, line->offset, line->frozen_size,
		       line->frozen_offset);
	return 1;
}

static unsigned int twin(const struct line *line)
{
	struct line size = *line, offset = *line;

	size.size++;
	offset.offset += 8;
	if (check(&size, false) && check(&offset, false))
		return 0;
	printf("not noticed: another size or offset of %s\n", line->name);
	return 1;
}

int main(int argc, char **argv)
{
	unsigned int wrong = 0;
	size_t i;

	if (sizeof(void *) != 8 || sizeof(long) != 8) {
		puts("SKIP: 64-bit: the table is for 64-bit machines");
		return 77;
	}
	for (i = 0; i < LINES; i++)
		if (argc > 1 && !strcmp(argv[1], "--twin"))
			wrong += twin(&lines[i]);
		else
			wrong += check(&lines[i], true);
	printf("%zu lines, %u wrong\n", LINES, wrong);
	return wrong ? 1 : 0;
}
