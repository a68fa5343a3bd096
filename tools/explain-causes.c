/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* kvmfault explain: one cause out of what was seen. In: a look. Out: a verdict:
 * the cause, a sentence with this process's numbers, and what to do. A cause is
 * named only if what was read shows it; all else is unknown. Of several the
 * first is named that an access would meet. */

#include <errno.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "explain.h"

/* pagemap's types of what is no swap; that of poisoned pages depends on the
 * kernel's options, but lies above those of swap files. */
enum { TYPE_MARKER = 31, MARKER_POISONED = 2 };
enum { SMALLEST_ROOM = 64 };	/* pages that are charged at a time */

static const struct {
	const char *name, *advice;
} causes[EXPLAIN_CAUSES] = {
	[EXPLAIN_UNKNOWN] = { "unknown",
		"Read what could not be read, with the rights that are named; "
		"then look again." },
	[EXPLAIN_NOTHING] = { "nothing",
		"If the guest hangs, its memory is not why. For one address, "
		"ask with --hva or --gpa." },
	[EXPLAIN_MAPPED] = { "mapped",
		"If KVM_RUN failed for this address, that was a race: run the "
		"vCPU again." },
	[EXPLAIN_ON_DEMAND] = { "on-demand",
		"Nothing: the next access brings the page." },
	[EXPLAIN_NO_SLOT] = { "no-slot",
		"Compare the address with the guest's memory map; if there "
		"should be a slot, set it with KVM_SET_USER_MEMORY_REGION." },
	[EXPLAIN_NOT_MAPPED] = { "not-mapped",
		"Map memory there before the slot is set, and delete the slot "
		"before the memory is unmapped." },
	[EXPLAIN_NO_ACCESS] = { "no-access",
		"Let the VMM call mprotect(PROT_READ | PROT_WRITE), or delete "
		"the slot while the memory is protected." },
	[EXPLAIN_READ_ONLY] = { "read-only",
		"Let the VMM call mprotect(PROT_READ | PROT_WRITE), or set the "
		"slot with KVM_MEM_READONLY." },
	[EXPLAIN_SEALED] = { "sealed",
		"mprotect() and munmap() fail with EPERM here: seal a mapping "
		"with mseal() only after its rights are set." },
	[EXPLAIN_FILE_SHORT] = { "file-short",
		"Make the file as long as the slot with ftruncate(), and let "
		"nothing shorten it; F_SEAL_SHRINK sees to that." },
	[EXPLAIN_TMPFS_FULL] = { "tmpfs-full",
		"Free room there, or: mount -o remount,size=SIZE. To fail at "
		"the start instead, let the VMM allocate with fallocate()." },
	[EXPLAIN_HUGETLB_EMPTY] = { "hugetlb-empty",
		"Raise /proc/sys/vm/nr_hugepages, and map without "
		"MAP_NORESERVE, so that mmap() fails and not the guest." },
	[EXPLAIN_MEMORY_CGROUP] = { "memory-cgroup",
		"Raise the limit of that cgroup, or take memory from others "
		"in it." },
	[EXPLAIN_HARDWARE_POISON] = { "hardware-poison",
		"The memory is lost: see the kernel's log, and stop or migrate "
		"the VM." },
	[EXPLAIN_POISON_MARKER] = { "poison-marker",
		"Let whoever placed the marker with UFFDIO_POISON replace it: "
		"MADV_DONTNEED, then UFFDIO_COPY. KVM sends SIGBUS for it, "
		"which must not be blocked in a vCPU thread." },
	[EXPLAIN_GUARD] = { "guard",
		"Let the VMM call madvise(MADV_GUARD_REMOVE)." },
	[EXPLAIN_SWAPPED] = { "swapped",
		"An access reads it back. If that fails, the kernel's log has "
		"the swap device's error." },
	[EXPLAIN_PFN_MAPPING] = { "pfn-mapping",
		"KVM maps this without struct page. If KVM_RUN fails with "
		"EFAULT here on arm64 with Linux 7.1 or 7.2, take a kernel with "
		"the fix of August 2026 for PFN mappings." },
	[EXPLAIN_UFFD_ASKS] = { "uffd-asks",
		"Nothing, while the handler runs: the next access asks it." },
	[EXPLAIN_UFFD_SIGBUS] = { "uffd-sigbus",
		"Do not ask for UFFD_FEATURE_SIGBUS with KVM: KVM_RUN fails "
		"with EFAULT, or never returns." },
	[EXPLAIN_UFFD_UNREAD] = { "uffd-unread",
		"Let the handler read the userfaultfd: see its state (T: it is "
		"stopped, kill -CONT it), its log and what its threads wait "
		"for." },
	[EXPLAIN_UFFD_HANDLER_GONE] = { "uffd-handler-gone",
		"The VM cannot go on: kill the VMM and restore again. Keep a "
		"duplicate of the userfaultfd where the handler is restarted." },
	[EXPLAIN_UFFD_UNANSWERED] = { "uffd-unanswered",
		"See whether the handler's source is slow. If it believes that "
		"it has answered, the wake was lost: UFFDIO_WAKE the page." },
	[EXPLAIN_UFFD_LOST_WAKE] = { "uffd-lost-wake",
		"UFFDIO_WAKE the range. The handler must wake after EEXIST "
		"and after each copy with DONTWAKE." },
};

const char *cause_name(enum explain_cause cause)
{
	return causes[cause].name;
}

__attribute__((format(printf, 3, 4)))
static struct explain_verdict make_verdict(enum explain_cause cause,
					   uint64_t hva,
					   const char *format, ...)
{
	struct explain_verdict verdict = { .cause = cause, .hva = hva,
		.advice = causes[cause].advice };
	va_list args;

	va_start(args, format);
	vsnprintf(verdict.sentence, sizeof(verdict.sentence), format, args);
	va_end(args);
	return verdict;
}

/* ---- what waits at a userfaultfd ---- */

static const struct explain_thread *
find_sleeper(const struct explain_look *look, bool still)
{
	size_t i;

	for (i = 0; i < look->thread_count; i++)
		if (sleeps_in(&look->threads[i], "handle_userfault") &&
		    (look->threads[i].still || !still))
			return &look->threads[i];
	return NULL;
}

/* If several have it, one that is stopped, or hangs in the kernel, is the one
 * that should read. */
static const struct explain_holder *
find_other_holder(const struct explain_look *look,
		  const struct explain_uffd *uffd)
{
	const struct explain_holder *first = NULL, *holder = uffd->holders;
	const struct explain_holder *end = holder + uffd->holder_count;

	for (; holder < end; holder++) {
		if (holder->pid == look->pid)
			continue;
		if (!first || strchr("TtDZ", holder->state))
			first = holder;
	}
	return first;
}

static struct explain_verdict blame_reader(const struct explain_look *look,
					   const struct explain_uffd *uffd)
{
	const struct explain_holder *other = find_other_holder(look, uffd);

	if (other)
		return make_verdict(EXPLAIN_UFFD_UNREAD, NO_ADDRESS,
			"%" PRIu64 " faults wait at a userfaultfd, and process "
			"%d (%s, state %c), which holds it, does not read them",
			uffd->pending, other->pid, other->name, other->state);
	if (look->peer_gone ||
	    (look->vmm && !strcmp(look->vmm, "Firecracker")))
		return make_verdict(EXPLAIN_UFFD_HANDLER_GONE, NO_ADDRESS,
			"%" PRIu64 " faults wait at a userfaultfd that no other "
			"process is seen to hold, and %s: its handler has "
			"ended, and this process keeps it open", uffd->pending,
			look->peer_gone ? "the other end of a socket of this "
			"process is closed" : "Firecracker itself reads none");
	return make_verdict(EXPLAIN_UFFD_UNREAD, NO_ADDRESS,
		"%" PRIu64 " faults wait at a userfaultfd; only this process is "
		"seen to hold it, and it does not read them", uffd->pending);
}

/* Whether a page is absent or protected for which a thread may wait. */
static bool can_wait(struct explain_look *look, bool *known)
{
	uint64_t found;
	size_t i;

	*known = look->flags_known;
	for (i = 0; i < look->mapping_count && *known; i++) {
		const struct explain_mapping *m = &look->mappings[i];
		bool absent = has_flag(m, "um") || has_flag(m, "ui");

		if (absent) {
			*known = find_page(look, m->start, m->end, false,
					   &found);
			if (*known && found != NO_ADDRESS)
				return true;
		}
		if (has_flag(m, "uw") && *known) {
			*known = find_page(look, m->start, m->end, true,
					   &found);
			if (*known && found != NO_ADDRESS)
				return true;
		}
	}
	return false;
}

static struct explain_verdict blame_answer(struct explain_look *look,
					   const struct explain_uffd *uffd)
{
	bool known, waits = can_wait(look, &known);

	if (known && !waits)
		return make_verdict(EXPLAIN_UFFD_LOST_WAKE, NO_ADDRESS,
			"%" PRIu64 " faults were read from a userfaultfd and "
			"still sleep, although each page that it is registered "
			"for is there", uffd->total);
	return make_verdict(EXPLAIN_UFFD_UNANSWERED, NO_ADDRESS,
		"%" PRIu64 " faults were read from a userfaultfd and not "
		"answered: the handler is slow, or the wake was lost",
		uffd->total);
}

/* A fault that is on its way is no trouble: nothing may have moved between
 * the looks. A guest's fault may sleep in a worker of the kernel, which is not
 * seen: then no page may have come either. A userfaultfd that may be of another
 * process counts only with a thread of this one that sleeps. */
static bool is_stuck(const struct explain_look *look,
		     const struct explain_uffd *uffd)
{
	if (!uffd->known || !uffd->still || !uffd->total)
		return false;
	if (!uffd->ours || find_sleeper(look, false))
		return find_sleeper(look, true);
	return look->no_progress;
}

static struct explain_verdict decide_uffds(struct explain_look *look)
{
	size_t i;

	for (i = 0; i < look->uffd_count; i++)
		if (is_stuck(look, &look->uffds[i]))
			return look->uffds[i].pending ?
				blame_reader(look, &look->uffds[i]) :
				blame_answer(look, &look->uffds[i]);
	return make_verdict(EXPLAIN_UNKNOWN, NO_ADDRESS, "no userfaultfd waits");
}

static bool has_sigbus_feature(const struct explain_look *look)
{
	size_t i;

	for (i = 0; i < look->uffd_count; i++)
		if (look->uffds[i].known && look->uffds[i].features &
		    UFFD_FEATURE_SIGBUS)
			return true;
	return false;
}

static struct explain_verdict explain_asking(struct explain_look *look,
					     uint64_t hva)
{
	struct explain_verdict stuck;

	if (!look->page.present && has_sigbus_feature(look))
		return make_verdict(EXPLAIN_UFFD_SIGBUS, hva,
			"the page is missing in a range of a userfaultfd, and "
			"this process has one with UFFD_FEATURE_SIGBUS, which "
			"asks no handler");
	stuck = decide_uffds(look);
	if (stuck.cause != EXPLAIN_UNKNOWN)
		return stuck;
	return make_verdict(EXPLAIN_UFFD_ASKS, hva,
		"the page is %s in a range of a userfaultfd, and no fault is "
		"stuck there", look->page.present ? "write-protected" :
		"missing");
}

/* ---- what an access would meet, in this order ---- */

static struct explain_verdict explain_rights(const struct explain_look *look,
					     uint64_t hva)
{
	const struct explain_mapping *m = look->mapping;
	bool read_only = m->readable;

	if (has_flag(m, "sl"))
		return make_verdict(EXPLAIN_SEALED, hva,
			"the mapping allows %s, and it is sealed",
			read_only ? "no writes" : "no access");
	if (read_only)
		return make_verdict(EXPLAIN_READ_ONLY, hva,
			"the mapping allows reads, and no writes");
	return make_verdict(EXPLAIN_NO_ACCESS, hva,
			    "the mapping has no right to read (PROT_NONE)");
}

static uint64_t file_end(const struct explain_look *look)
{
	uint64_t page = look->mapping->page_size ? look->mapping->page_size :
		look->base;

	return (look->backing.size + page - 1) / page * page;
}

/* Whether the page that pagemap has as swapped is a poisoned one. */
static bool is_poisoned(struct explain_look *look)
{
	uint64_t flags = 0;
	int fd = open_told(look, "/proc/kpageflags", 0, "CAP_SYS_ADMIN");

	if (fd < 0)
		return false;
	if (pread(fd, &flags, sizeof(flags),
		  look->page.offset * sizeof(flags)) != sizeof(flags))
		flags = 0;
	close(fd);
	return flags >> 19 & 1;
}

static bool is_swap_file(struct explain_look *look)
{
	char *text = read_text(look, "/proc/swaps", NULL);
	unsigned int lines = 0;
	const char *at;

	for (at = text; at && (at = strchr(at, '\n')); at++)
		lines++;
	free(text);
	return lines > 1 && look->page.type < TYPE_MARKER - 7;
}

static struct explain_verdict explain_swapped(struct explain_look *look,
					      uint64_t hva)
{
	const struct explain_page *page = &look->page;

	if (!page->type_known) {
		note_denied(look, "the swap entries of pagemap", EPERM,
			    "CAP_SYS_ADMIN");
		return make_verdict(EXPLAIN_UNKNOWN, hva,
			"the page is in swap, poisoned, or a marker, and "
			"without CAP_SYS_ADMIN pagemap does not say which");
	}
	if (page->type == TYPE_MARKER && page->offset & MARKER_POISONED)
		return make_verdict(EXPLAIN_POISON_MARKER, hva,
			"a marker of UFFDIO_POISON stands for the page");
	if (is_swap_file(look))
		return make_verdict(EXPLAIN_SWAPPED, hva,
			"the page is in swap area %u", page->type);
	if (is_poisoned(look))
		return make_verdict(EXPLAIN_HARDWARE_POISON, hva,
			"the page was poisoned: its memory had an error that "
			"the hardware could not correct");
	return make_verdict(EXPLAIN_UNKNOWN, hva,
		"pagemap has an entry of type %u, which this program does not "
		"know", page->type);
}

static bool is_huge(const struct explain_look *look)
{
	return has_flag(look->mapping, "ht") || (look->backing.known &&
		look->backing.file_system == HUGETLBFS_MAGIC);
}

/* Whether no huge page is left for one that is not reserved, or none at all. */
static bool lacks_huge_page(struct explain_look *look)
{
	const struct explain_backing *b = &look->backing;

	if (b->known && b->blocks * 512 >= b->size)
		return false;
	if (b->known && b->capacity && !b->room)
		return true;
	look->huge_known = read_huge_pool(look, look->mapping->page_size,
					  &look->free_huge,
					  &look->reserved_huge);
	return look->huge_known && (!look->free_huge ||
		(has_flag(look->mapping, "nr") &&
		 look->free_huge <= look->reserved_huge));
}

static bool has_swap(void)
{
	struct explain_look none = { 0 };
	char *text = read_text(&none, "/proc/meminfo", NULL);
	uint64_t kilobytes = 0;

	if (text)
		find_number(text, "SwapFree:", 10, &kilobytes);
	free(text);
	return kilobytes;
}

static bool lacks_memory(const struct explain_look *look)
{
	const struct explain_memory_cgroup *group = &look->cgroup;

	if (!group->known)
		return false;
	return group->waits || (group->limit != UINT64_MAX &&
		group->usage + SMALLEST_ROOM * look->base >
		group->limit + group->reclaimable && !has_swap());
}

static struct explain_verdict explain_memory(const struct explain_look *look,
					     uint64_t hva)
{
	const struct explain_memory_cgroup *group = &look->cgroup;

	return make_verdict(EXPLAIN_MEMORY_CGROUP, hva,
		"%s uses %" PRIu64 " of %" PRIu64 " bytes, and %s; it has "
		"killed %" PRIu64 " times", group->path, group->usage,
		group->limit, group->waits ? "tasks wait for room" :
		"nothing of that can be dropped", group->oom_kills);
}

static struct explain_verdict explain_absent(struct explain_look *look,
					     uint64_t hva)
{
	const struct explain_mapping *m = look->mapping;
	const struct explain_backing *b = &look->backing;
	bool cached = m->shared && b->data_known && b->data;

	if (has_flag(m, "ui") || (has_flag(m, "um") && !cached))
		return explain_asking(look, hva);
	if (is_huge(look) && lacks_huge_page(look))
		return make_verdict(EXPLAIN_HUGETLB_EMPTY, hva,
			"the page is absent, and of the pool of %" PRIu64
			" kB pages %" PRIu64 " are free and %" PRIu64
			" of these reserved", m->page_size >> 10,
			look->free_huge, look->reserved_huge);
	if (b->known && b->file_system == TMPFS_MAGIC && b->capacity &&
	    !b->room && b->data_known && !b->data)
		return make_verdict(EXPLAIN_TMPFS_FULL, hva,
			"the file has a hole there, and its tmpfs of %" PRIu64
			" pages is full", b->capacity);
	if (!cached && lacks_memory(look))
		return explain_memory(look, hva);
	return make_verdict(EXPLAIN_ON_DEMAND, hva,
			    "the page is absent, and nothing is in the way of "
			    "an access that brings it");
}

static struct explain_verdict explain_page_state(struct explain_look *look,
						 uint64_t hva)
{
	const struct explain_page *page = &look->page;

	if (!page->known)
		return make_verdict(EXPLAIN_UNKNOWN, hva,
			"the mapping allows the access, and pagemap cannot be "
			"read");
	if (page->guard)
		return make_verdict(EXPLAIN_GUARD, hva,
			"a guard of MADV_GUARD_INSTALL stands for the page");
	if (page->swapped && !(page->uffd_protected && page->type_known &&
			       page->type == TYPE_MARKER))
		return explain_swapped(look, hva);
	if (!page->present)
		return explain_absent(look, hva);
	if (look->write && page->uffd_protected &&
	    has_flag(look->mapping, "uw"))
		return explain_asking(look, hva);
	return make_verdict(EXPLAIN_MAPPED, hva,
		"the page is there, and its mapping allows %s",
		look->write ? "the write" : "the read");
}

static struct explain_verdict decide_at(struct explain_look *look, uint64_t hva)
{
	look->mapping = find_mapping(look, hva);
	if (!look->mapping)
		return make_verdict(EXPLAIN_NOT_MAPPED, hva,
			"nothing is mapped at %#" PRIx64, hva);
	look->page = read_page(look, hva);
	look->backing = read_backing(look, look->mapping, hva);
	if (!look->mapping->readable ||
	    (look->write && !look->mapping->writable))
		return explain_rights(look, hva);
	if (has_flag(look->mapping, "pf"))
		return make_verdict(EXPLAIN_PFN_MAPPING, hva,
			"the mapping is of a device's or the kernel's memory "
			"(VM_PFNMAP): it has no pages that can be pinned");
	if (look->backing.known && hva - look->mapping->start +
	    look->mapping->offset >= file_end(look))
		return make_verdict(EXPLAIN_FILE_SHORT, hva,
			"the file ends at %#" PRIx64 ", and the page is at %#"
			PRIx64 " of it", look->backing.size,
			hva - look->mapping->start + look->mapping->offset);
	return explain_page_state(look, hva);
}

static struct explain_verdict explain_blindness(const struct explain_look *look)
{
	return make_verdict(EXPLAIN_UNKNOWN, NO_ADDRESS, "%s",
		look->maps_denied ?
		"the mappings of the process cannot be read" :
		"the process has no memory: it ends, or it is a thread of the "
		"kernel");
}

struct explain_verdict decide_address(struct explain_look *look)
{
	uint64_t hva = look->hva;
	size_t i, known = 0;

	if (!look->maps_known)
		return explain_blindness(look);
	if (hva == NO_ADDRESS) {
		for (i = 0; i < look->slot_count; i++)
			known += look->slots[i].gpa != NO_ADDRESS;
		hva = slot_hva(look, look->gpa);
		if (hva == NO_ADDRESS && known)
			return make_verdict(EXPLAIN_NO_SLOT, NO_ADDRESS,
				"no slot has %#" PRIx64, look->gpa);
		if (hva == NO_ADDRESS)
			return make_verdict(EXPLAIN_UNKNOWN, NO_ADDRESS,
				"the slots of this VMM cannot be seen; tell "
				"them with --slot GPA:HVA:LENGTH");
	}
	return decide_at(look, hva - hva % look->base);
}

/* ---- the whole process ---- */

static bool is_wrong(enum explain_cause cause)
{
	switch (cause) {
	case EXPLAIN_UNKNOWN:
	case EXPLAIN_NOTHING:
	case EXPLAIN_MAPPED:
	case EXPLAIN_ON_DEMAND:
	case EXPLAIN_SWAPPED:
	case EXPLAIN_PFN_MAPPING:
	case EXPLAIN_UFFD_ASKS:
		return false;
	default:
		return true;
	}
}

/* Of the part of a slot that one mapping is: its first page, its last, and the
 * first that is absent. */
static struct explain_verdict decide_part(struct explain_look *look,
					  uint64_t start, uint64_t end)
{
	struct explain_verdict verdict = decide_at(look, start);
	uint64_t absent;

	if (!is_wrong(verdict.cause))
		verdict = decide_at(look, end - look->base);
	if (!is_wrong(verdict.cause) &&
	    find_page(look, start, end, false, &absent) &&
	    absent != NO_ADDRESS)
		verdict = decide_at(look, absent);
	return verdict;
}

static struct explain_verdict decide_slot(struct explain_look *look,
					  const struct explain_slot *slot)
{
	struct explain_verdict verdict = { .cause = EXPLAIN_NOTHING };
	uint64_t at = slot->hva - slot->hva % look->base;
	uint64_t end = slot->hva + slot->length;

	while (at < end && !is_wrong(verdict.cause)) {
		const struct explain_mapping *m = find_mapping(look, at);
		uint64_t stop = m && m->end < end ? m->end : end;

		verdict = decide_part(look, at, stop - stop % look->base);
		at = stop;
	}
	return verdict;
}

static struct explain_verdict decide_threads(const struct explain_look *look)
{
	size_t i;

	for (i = 0; i < look->thread_count; i++) {
		const struct explain_thread *t = &look->threads[i];

		if (t->state == 'D' && t->still)
			return make_verdict(EXPLAIN_UNKNOWN, NO_ADDRESS,
				"thread %d (%s) sleeps in %s and no cause was "
				"found", t->tid, t->name,
				*t->wchan ? t->wchan : "the kernel");
	}
	return make_verdict(EXPLAIN_NOTHING, NO_ADDRESS,
			    "nothing that was read is in the way of a fault");
}

struct explain_verdict decide_process(struct explain_look *look)
{
	struct explain_verdict verdict;
	size_t i;

	if (!look->maps_known)
		return explain_blindness(look);
	verdict = decide_uffds(look);
	if (is_wrong(verdict.cause))
		return verdict;
	if (lacks_memory(look))
		return explain_memory(look, NO_ADDRESS);
	for (i = 0; i < look->slot_count; i++) {
		verdict = decide_slot(look, &look->slots[i]);
		if (is_wrong(verdict.cause))
			return verdict;
	}
	look->mapping = NULL;
	return decide_threads(look);
}
