/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: the guest's page tables, which KVM sometimes
 * walks in software. It takes a table that it cannot read for one that maps
 * nothing; it also switches tasks, and on some back ends delivers exceptions.
 *
 * In: a vCPU's registers. Out: each table that they lead to, and the memory
 * that an exception needs, is present, by the one path. Whatever the guest has
 * put there, the walk reads at most TABLES_MAX tables, no byte past a table,
 * and nothing else that they map.
 */

#include <string.h>

#include "../os/abi.h"
#include "entry.h"

#ifdef __x86_64__

#define CR0_PG (1UL << 31)
#define CR4_PSE (1UL << 4)
#define CR4_PAE (1UL << 5)
#define CR4_LA57 (1UL << 12)
#define EFER_LMA (1UL << 10)

#define PRESENT (1UL << 0)
#define HUGE (1UL << 7)		/* at some levels: the entry is a page */
#define FRAME 0x000ffffffffff000ULL
#define LEVELS 5		/* entries of level 1, the last, are pages */

/* 4 GiB of tables, which map 2 TiB of pages of 4 KiB. */
#define TABLES_MAX (1U << 20)
#define SEEN 64			/* tables of a level, by their address */
#define CHUNK 64		/* entries that are read at once */

#define TSS 104			/* bytes of a TSS without its I/O bitmap */
#define PUSHED 64		/* bytes that an exception pushes, aligned */

struct walk {
	struct kvmfault__seat *seat;
	uint32_t space;
	/* the form of the guest's tables */
	uint64_t root;
	unsigned int top;	/* the root's level */
	unsigned int huge;	/* bits of the levels where HUGE counts */
	size_t entry;		/* bytes of an entry */
	size_t root_entries;

	unsigned int tables;
	uint64_t seen[LEVELS + 1][SEEN];
};

/* False: paging is off. */
static bool walk_set_mode(struct walk *w, const struct kvm_sregs *s)
{
	w->entry = 8;
	w->root_entries = KVMFAULT__PAGE / 8;
	if (!(s->cr0 & CR0_PG))
		return false;
	if (s->efer & EFER_LMA) {
		w->top = s->cr4 & CR4_LA57 ? 5 : 4;
		w->huge = 1U << 3 | 1U << 2;
		w->root = s->cr3 & FRAME;
	} else if (s->cr4 & CR4_PAE) {
		w->top = 3;
		w->huge = 1U << 2;
		w->root = s->cr3 & 0xffffffe0;
		w->root_entries = 4;
	} else {
		w->top = 2;
		w->huge = s->cr4 & CR4_PSE ? 1U << 2 : 0;
		w->root = s->cr3 & 0xfffff000;
		w->entry = 4;
		w->root_entries = KVMFAULT__PAGE / 4;
	}
	return true;
}

/*
 * Many entries may lead to one table, at one level or, if a guest maps its
 * tables through themselves, at each level. Walking it again for every such
 * entry would take for ever.
 *
 * To remember the last tables is enough for real systems: Linux's KASAN has
 * thousands of entries that share a table. Against a hostile guest, w->tables
 * bounds the walk.
 */
static bool walk_has_seen_table(struct walk *w, unsigned int level,
				uint64_t gpa)
{
	uint64_t *slot = &w->seen[level][gpa / KVMFAULT__PAGE % SEEN];

	if (*slot == (gpa | 1))
		return true;
	*slot = gpa | 1;	/* 0: no table */
	return false;
}

/* True for a page of a guest_memfd: KVM cannot read a table there either. */
static bool walk_is_private(const struct walk *w,
			    const struct kvmfault__region *region, uint64_t gpa)
{
	return !region->span.memory ||
	       kvmfault__shows_private(w->seat->vm, region, gpa);
}

/* 0: the page is present; 1: it is private, or in no region; or -errno */
static int walk_ensure_table(struct walk *w, uint64_t gpa)
{
	const struct kvmfault__region *region =
		kvmfault__region_find(w->seat, w->space, gpa);
	bool private = region && walk_is_private(w, region, gpa);
	int err;

	kvmfault__leave(w->seat);
	if (private)
		return 1;
	err = kvmfault__ensure(w->seat, w->space, gpa & ~(KVMFAULT__PAGE - 1),
			       KVMFAULT__PAGE, false);
	return err == -ENXIO ? 1 : err;
}

/*
 * Read from the file, if the memory has one: the guest may have discarded the
 * page by now, and a marker in its place would send this thread a SIGBUS.
 * Returns 0 if nothing can be read there any more.
 */
static ssize_t walk_read_table(struct walk *w, uint64_t gpa, void *to,
			       size_t length)
{
	const struct kvmfault__region *region =
		kvmfault__region_find(w->seat, w->space, gpa);
	const struct kvmfault_memory *memory;
	ssize_t got = 0;
	uint64_t offset;

	if (region && !walk_is_private(w, region, gpa)) {
		memory = region->span.memory;
		offset = kvmfault__region_offset(region, gpa);
		got = (ssize_t)length;
		if (kvmfault__tracked(memory) && memory->fd > 0)
			got = kvmfault__sys_pread(memory->fd, to, length,
					(off_t)(memory->fd_offset + offset));
		else
			memcpy(to, (char *)memory->host + offset, length);
	}
	kvmfault__leave(w->seat);
	return got;
}

static int walk_table(struct walk *w, unsigned int level, uint64_t gpa,
		      size_t entries);

static int walk_entry(struct walk *w, unsigned int level, uint64_t entry)
{
	if (!(entry & PRESENT) || (entry & HUGE && w->huge & 1U << level))
		return 0;
	return walk_table(w, level - 1, entry & FRAME,
			  KVMFAULT__PAGE / w->entry);
}

static int walk_entries(struct walk *w, unsigned int level, uint64_t gpa,
			size_t entries)
{
	union {
		uint64_t wide[CHUNK];
		uint32_t narrow[CHUNK];
	} chunk;
	size_t at, i, n;
	int err = 0;

	for (at = 0; at < entries && !err; at += n) {
		ssize_t got;

		n = entries - at < CHUNK ? entries - at : CHUNK;
		got = walk_read_table(w, gpa + at * w->entry, &chunk,
				      n * w->entry);
		if (got <= 0)
			return (int)got;
		if ((size_t)got < n * w->entry)
			return -EIO;
		for (i = 0; i < n && !err; i++)
			err = walk_entry(w, level, w->entry == 8 ?
					 chunk.wide[i] : chunk.narrow[i]);
	}
	return err;
}

/* The recursion is as deep as there are levels. */
static int walk_table(struct walk *w, unsigned int level, uint64_t gpa,
		      size_t entries)
{
	int ret;

	if (walk_has_seen_table(w, level, gpa))
		return 0;
	if (w->tables++ == TABLES_MAX)
		return -ELOOP;
	if (kvmfault__exit_wanted(w->seat))
		return -EINTR;
	ret = walk_ensure_table(w, gpa);
	if (ret < 0)
		return ret;
	return ret || level == 1 ? 0 : walk_entries(w, level, gpa, entries);
}

/* Make a range of linear addresses present, and copy it unless to is NULL.
 * Pages that the guest has not mapped or that are in no region are skipped. */
static int walk_ensure_linear(struct walk *w, int fd, uint64_t linear,
			      uint64_t length, unsigned char *to)
{
	uint64_t at, n;
	int err = 0;

	for (at = 0; at < length && err >= 0; at += n) {
		struct kvm_translation page = { .linear_address = linear + at };

		n = KVMFAULT__PAGE - (linear + at) % KVMFAULT__PAGE;
		if (n > length - at)
			n = length - at;
		err = kvmfault__sys_ioctl(fd, KVM_TRANSLATE, &page);
		if (err || !page.valid)
			continue;
		err = walk_ensure_table(w, page.physical_address);
		if (!err && to)
			err = (int)walk_read_table(w, page.physical_address,
						   to + at, n);
	}
	return err < 0 ? err : 0;
}

/* Make present what an exception pushes below top; 0: there is no stack. */
static int walk_ensure_frame(struct walk *w, int fd, uint64_t top)
{
	return top ? walk_ensure_linear(w, fd, top - PUSHED, PUSHED, NULL) : 0;
}

static uint64_t walk_limit_to_length(uint32_t limit)
{
	return limit ? limit + 1ULL : 0;
}

/* The stacks that a TSS names. A 32-bit TSS has only those of the privilege
 * levels, at the same offsets. */
static int walk_ensure_stacks(struct walk *w, int fd, const struct kvm_sregs *s)
{
	static const uint8_t stacks[] = {
		4, 12, 20, 36, 44, 52, 60, 68, 76, 84,
	};
	bool wide = s->efer & EFER_LMA;
	unsigned char tss[TSS] = { 0 };
	uint64_t length = walk_limit_to_length(s->tr.limit);
	size_t i, count = wide ? sizeof(stacks) : 3;
	int err;

	err = walk_ensure_linear(w, fd, s->tr.base, length < TSS ? length : TSS,
				 tss);
	for (i = 0; i < count && !err; i++) {
		uint64_t top = 0;

		memcpy(&top, tss + stacks[i], wide ? 8 : 4);
		err = walk_ensure_frame(w, fd, top);
	}
	return err;
}

static int walk_ensure_exceptions(struct walk *w, int fd,
				  const struct kvm_sregs *s)
{
	struct kvm_regs regs;
	int err = kvmfault__sys_ioctl(fd, KVM_GET_REGS, &regs);

	if (!err)
		err = walk_ensure_linear(w, fd, s->idt.base,
					 walk_limit_to_length(s->idt.limit),
					 NULL);
	if (!err)
		err = walk_ensure_linear(w, fd, s->gdt.base,
					 walk_limit_to_length(s->gdt.limit),
					 NULL);
	if (!err)
		err = walk_ensure_stacks(w, fd, s);
	if (!err)
		err = walk_ensure_frame(w, fd, s->efer & EFER_LMA ? regs.rsp :
					s->ss.base + regs.rsp);
	return err;
}

/* Get the address space that the vCPU's registers refer to. */
static int walk_get_address_space(const struct kvmfault_vcpu *vcpu,
				  uint32_t *space)
{
	struct kvm_vcpu_events events;
	int err;

	/* kvm_run tells the address space only after KVM_RUN. */
	err = kvmfault__sys_ioctl(vcpu->fd, KVM_GET_VCPU_EVENTS, &events);
	if (!err)
		*space = events.flags & KVM_VCPUEVENT_VALID_SMM &&
			 events.smi.smm;
	return err;
}

KVMFAULT__EXPORT
int kvmfault_ensure_page_tables(struct kvmfault_vcpu *vcpu)
{
	struct walk w = { 0 };
	struct kvm_sregs sregs;
	int err;

	if (!vcpu)
		return -EINVAL;
	err = kvmfault__sys_ioctl(vcpu->fd, KVM_GET_SREGS, &sregs);
	if (!err)
		err = walk_get_address_space(vcpu, &w.space);
	if (err || !walk_set_mode(&w, &sregs))
		return err;
	w.seat = kvmfault__call_begin(vcpu->vm);
	if (!w.seat)
		return -ENOMEM;
	w.seat->immediate_exit = &vcpu->run->immediate_exit;
	err = walk_table(&w, w.top, w.root, w.root_entries);
	if (!err)
		err = walk_ensure_exceptions(&w, vcpu->fd, &sregs);
	kvmfault__call_end(w.seat);
	return err;
}

#else

/* On arm64 KVM does not walk the guest's page tables in software. */
KVMFAULT__EXPORT
int kvmfault_ensure_page_tables(struct kvmfault_vcpu *vcpu)
{
	return vcpu ? 0 : -EINVAL;
}

#endif
