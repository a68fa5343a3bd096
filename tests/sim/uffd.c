/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The model's userfaultfds. In: sleepers, and the ioctls. Out: messages, and who
 * is woken. Rules that the library's promises stand on: a range of one call lies
 * within one VMA; what is there already is -EEXIST and wakes nobody; a part that
 * was done comes as a count with -EAGAIN; a wake reaches those who sleep on this
 * userfaultfd; who goes to sleep while a range is unregistered sleeps on; while
 * an event is unread nothing can be installed.
 */

#include <stdlib.h>
#include <string.h>

#include "lib/os/abi.h"
#include "sim.h"

struct sleeper {
	struct sleeper *next;
	struct task *task;
	uint64_t address, flags;
	bool read;			/* its message is */
};

struct uffd_event {
	struct uffd_event *next;
	struct uffd_msg msg;
	bool read;
};

#define UFFDS 2048
#define FLAGS_KNOWN 3			/* bits, of a message */
static struct uffd *uffds[UFFDS];
static unsigned int uffd_count;

void uffd_reset(void)
{
	unsigned int i;

	for (i = 0; i < uffd_count; i++)
		free(uffds[i]);
	uffd_count = 0;
}

struct uffd *uffd_new(struct mm *mm)
{
	struct uffd *uffd;

	if (uffd_count == UFFDS)
		sim_fail("the simulator: no more userfaultfds", "%u", UFFDS);
	uffd = calloc(1, sizeof(*uffd));
	uffd->mm = mm;
	uffd->last_event = &uffd->events;
	uffds[uffd_count++] = uffd;
	return uffd;
}

/* ---- sleepers ---- */

static void unlink_sleeper(struct uffd *uffd, struct sleeper *sleeper)
{
	struct sleeper **link = &uffd->sleepers;

	while (*link && *link != sleeper)
		link = &(*link)->next;
	if (*link)
		*link = sleeper->next;
}

enum woken uffd_sleep(struct uffd *uffd, uint64_t address, uint64_t flags,
		      bool interruptible)
{
	struct sleeper sleeper = {
		.task = current, .address = address, .flags = flags,
	};
	struct sleeper **link = &uffd->sleepers;
	enum woken how;

	/* Of a kernel to come. */
	if (kvm.newer && !sched_is_fair() && sim_one_in(8)) {
		sleeper.flags |= 1ULL << (FLAGS_KNOWN + sim_below(2));
		kvm.odd++;
	}
	while (*link)
		link = &(*link)->next;
	*link = &sleeper;
	tell("sleeps on %#llx%s", (unsigned long long)address,
	     flags & UFFD_PAGEFAULT_FLAG_WP ? " (protected)" :
	     flags & UFFD_PAGEFAULT_FLAG_MINOR ? " (minor)" : "");
	fds_changed();
	how = task_sleep(&sleeper, "a page, in the kernel", NEVER, interruptible);
	unlink_sleeper(uffd, &sleeper);
	return how;
}

void uffd_wake(struct uffd *uffd, uint64_t start, uint64_t length)
{
	struct sleeper *sleeper, *next;

	for (sleeper = uffd->sleepers; sleeper; sleeper = next) {
		next = sleeper->next;
		if (sleeper->address < start ||
		    sleeper->address - start >= length)
			continue;
		/* Whoever has slept there has no message any more. */
		unlink_sleeper(uffd, sleeper);
		task_wake_one(sleeper->task);
	}
}

bool uffd_readable(const struct uffd *uffd)
{
	const struct sleeper *sleeper;
	const struct uffd_event *event;

	for (event = uffd->events; event; event = event->next)
		if (!event->read)
			return true;
	for (sleeper = uffd->sleepers; sleeper; sleeper = sleeper->next)
		if (!sleeper->read)
			return true;
	return false;
}

static bool next_message(struct uffd *uffd, struct uffd_msg *msg)
{
	struct sleeper *sleeper;
	struct uffd_event *event;

	memset(msg, 0, sizeof(*msg));
	/* Faults first, whatever came before. */
	for (sleeper = uffd->sleepers; sleeper; sleeper = sleeper->next) {
		if (sleeper->read)
			continue;
		sleeper->read = true;
		msg->event = UFFD_EVENT_PAGEFAULT;
		msg->arg.pagefault.address = sleeper->address;
		msg->arg.pagefault.flags = sleeper->flags;
		if (uffd->features & UFFD_FEATURE_THREAD_ID)
			msg->arg.pagefault.feat.ptid = sleeper->task->id + 1;
		return true;
	}
	for (event = uffd->events; event; event = event->next) {
		if (event->read)
			continue;
		event->read = true;
		*msg = event->msg;
		task_wake(event, TASKS);
		return true;
	}
	return false;
}

ssize_t uffd_read(struct uffd *uffd, void *buffer, size_t length)
{
	struct uffd_msg *msg = buffer;
	size_t n = 0;

	if (length < sizeof(*msg))
		return -EINVAL;
	while ((n + 1) * sizeof(*msg) <= length && next_message(uffd, &msg[n]))
		n++;
	return n ? (ssize_t)(n * sizeof(*msg)) : -EAGAIN;
}

/* ---- events ---- */

void uffd_tell_remove(struct mm *mm, uint64_t start, uint64_t length,
		      uint8_t what)
{
	struct uffd_event event = { .msg.event = what };
	struct uffd_event **link;
	unsigned int page;
	struct map *map = map_at(mm, start, &page);
	struct uffd *uffd = map ? map->pte[page].uffd : NULL;

	if (!uffd || !(uffd->features & UFFD_FEATURE_EVENT_REMOVE) ||
	    uffd->closed)
		return;
	event.msg.arg.remove.start = start;
	event.msg.arg.remove.end = start + length;
	uffd->changing++;
	for (link = &uffd->events; *link; link = &(*link)->next)
		;
	*link = &event;
	fds_changed();
	while (!event.read && !uffd->closed)
		task_sleep(&event, "the reader of an event", NEVER, false);
	for (link = &uffd->events; *link != &event; link = &(*link)->next)
		;
	*link = event.next;
	uffd->changing--;
}

/* ---- registration ---- */

static bool whole_pages(uint64_t start, uint64_t length)
{
	return length && !((start | length) % PAGE);
}

static int uffd_api(struct uffd *uffd, struct uffdio_api *api)
{
	if (api->api != UFFD_API || uffd->api)
		return -EINVAL;
	uffd->api = true;
	uffd->features = api->features;
	api->features = (1ULL << 17) - 1;
	api->ioctls = 1ULL << _UFFDIO_REGISTER | 1ULL << _UFFDIO_UNREGISTER |
		      1ULL << _UFFDIO_API;
	return 0;
}

static uint64_t calls_of(const struct map *map, uint64_t modes)
{
	uint64_t calls = 1ULL << _UFFDIO_WAKE | 1ULL << _UFFDIO_COPY |
			 1ULL << KVMFAULT__UFFDIO_POISON_NR;

	if (!map->file || !map->file->hugetlb)
		calls |= 1ULL << _UFFDIO_ZEROPAGE | 1ULL << 5;	/* MOVE */
	if (modes & UFFDIO_REGISTER_MODE_MINOR)
		calls |= 1ULL << _UFFDIO_CONTINUE;
	if (modes & UFFDIO_REGISTER_MODE_WP)
		calls |= 1ULL << _UFFDIO_WRITEPROTECT;
	return calls;
}

static int check_register(struct uffd *uffd, const struct uffdio_register *reg)
{
	uint64_t at, end = reg->range.start + reg->range.len;
	struct map *map;
	unsigned int page;
	bool any = false;

	for (at = reg->range.start; at < end; at += PAGE) {
		map = map_at(uffd->mm, at, &page);
		if (!map || !map->pte[page].vma)
			continue;
		any = true;
		if (map->file && map->file->guest_memfd)
			return -EINVAL;
		if (reg->mode & UFFDIO_REGISTER_MODE_MINOR && !map->file)
			return -EINVAL;
		if (map->pte[page].uffd && map->pte[page].uffd != uffd)
			return -EBUSY;
		if (map->file && map->file->hugetlb &&
		    (reg->range.start | reg->range.len) % (HUGE_PAGES * PAGE))
			return -EINVAL;
	}
	return any ? 0 : -EINVAL;
}

static int uffd_register(struct uffd *uffd, struct uffdio_register *reg)
{
	uint64_t at, end = reg->range.start + reg->range.len;
	struct map *map = NULL;
	unsigned int page;
	int err;

	if (uffd->mm->dead)
		return -ENOMEM;
	if (!whole_pages(reg->range.start, reg->range.len) || !reg->mode ||
	    reg->mode & ~7ULL)
		return -EINVAL;
	err = check_register(uffd, reg);
	if (err)
		return err;
	for (at = reg->range.start; at < end; at += PAGE) {
		map = map_at(uffd->mm, at, &page);
		if (!map || !map->pte[page].vma)
			continue;
		map->pte[page].uffd = uffd;
		map->pte[page].modes = (uint8_t)reg->mode;
		reg->ioctls = calls_of(map, reg->mode);
	}
	return 0;
}

static int check_unregister(struct uffd *uffd, const struct uffdio_range *range)
{
	bool any = false;
	uint64_t at;

	for (at = range->start; at < range->start + range->len; at += PAGE) {
		unsigned int page;
		struct map *map = map_at(uffd->mm, at, &page);

		if (!map || !map->pte[page].vma)
			continue;
		any = true;
		if (map->pte[page].uffd && map->pte[page].uffd != uffd)
			return -EINVAL;
	}
	return any ? 0 : -EINVAL;
}

static int uffd_unregister(struct uffd *uffd, const struct uffdio_range *range)
{
	uint64_t at;

	if (uffd->mm->dead)
		return -ENOMEM;
	if (!whole_pages(range->start, range->len) ||
	    check_unregister(uffd, range))
		return -EINVAL;
	for (at = range->start; at < range->start + range->len; at += PAGE) {
		unsigned int page;
		struct map *map = map_at(uffd->mm, at, &page);

		/* Who sleeps elsewhere sleeps on. */
		if (map && map->pte[page].uffd == uffd &&
		    map->pte[page].modes & UFFDIO_REGISTER_MODE_MISSING)
			uffd_wake(uffd, at, PAGE);
	}
	/* A fault that began before goes to sleep now, and nobody wakes it. */
	sim_point();
	if (uffd->mm->dead)
		return 0;
	for (at = range->start; at < range->start + range->len; at += PAGE) {
		unsigned int page;
		struct map *map = map_at(uffd->mm, at, &page);

		if (!map || map->pte[page].uffd != uffd)
			continue;
		map->pte[page].uffd = NULL;
		map->pte[page].modes = 0;
		map->pte[page].wp = false;
	}
	return 0;
}

void uffd_close(struct uffd *uffd)
{
	struct uffd_event *event;
	struct map *map;
	unsigned int i;

	uffd->closed = true;
	for (map = uffd->mm->maps; map; map = map->next)
		for (i = 0; i < map->pages; i++) {
			if (map->pte[i].uffd != uffd)
				continue;
			map->pte[i].uffd = NULL;
			map->pte[i].modes = 0;
			map->pte[i].wp = false;
		}
	uffd_wake(uffd, 0, NEVER);
	for (event = uffd->events; event; event = event->next)
		task_wake(event, TASKS);
}

/* ---- installing ---- */

struct target {
	struct map *map;
	unsigned int page, pages;
};

/* The range in one VMA that is registered: with whatever userfaultfd. */
static int find_target(struct uffd *uffd, uint64_t start, uint64_t length,
		       struct target *target)
{
	unsigned int i, page;
	struct map *map;

	if (uffd->mm->dead)
		return -ESRCH;
	if (!whole_pages(start, length))
		return -EINVAL;
	map = map_at(uffd->mm, start, &page);
	target->map = map;
	target->page = page;
	target->pages = (unsigned int)(length / PAGE);
	if (!map || !map->pte[page].uffd || page + length / PAGE > map->pages)
		return -ENOENT;
	for (i = 0; i < target->pages; i++)
		if (map->pte[page + i].vma != map->pte[page].vma)
			return -ENOENT;
	if (map->file && map->file->hugetlb &&
	    (page % map->unit || target->pages % map->unit))
		return -EINVAL;
	return 0;
}

/* What a part that was done comes as. */
static int finish(struct uffd *uffd, uint64_t start, uint64_t length,
		  uint64_t done, int err, bool wake, int64_t *count)
{
	*count = done ? (int64_t)done : err;
	if (done && wake)
		uffd_wake(uffd, start, done);
	return done == length ? 0 : done ? -EAGAIN : err;
}

static const char *unreadable;
static size_t unreadable_length;

/* From here on COPY finds nothing to read: a mapped file that was cut off. */
void uffd_cut(const void *bytes, size_t length)
{
	unreadable = bytes;
	unreadable_length = length;
}

static bool can_be_read(const char *bytes)
{
	return !unreadable || bytes < unreadable ||
	       (size_t)(bytes - unreadable) >= unreadable_length;
}

/* The data is read before anybody looks. Zeros do not go over a marker. */
static int install_anonymous(const struct pte *pte, const char *from)
{
	if (from && !can_be_read(from))
		return -EFAULT;
	return pte->kind == PTE_NONE || (from && pte->kind == PTE_POISON) ?
	       1 : -EEXIST;
}

/* 1: to be filled; -errno */
static int install_file(const struct map *map, unsigned int page,
			const char *from)
{
	const struct file *file = map->file;
	unsigned int at = map->pgoff + page;

	bool there = map->pte[page].kind == PTE_PRESENT ||
		     (at < file->pages && file->frame[at] >= 0);

	if (file->hugetlb) {
		if (at < file->pages && there)
			return -EEXIST;
		/* Before the page is looked at. */
		if (!huge_pool)
			return huge_exists ? -EEXIST : -ENOMEM;
	} else if (!shmem_left && (huge_exists || !there)) {
		/* As 6.18, where it is not looked at before either. */
		return -ENOMEM;
	}
	if (from && !can_be_read(from))
		return -EFAULT;
	if (at >= file->pages)
		return -EFAULT;
	return there ? -EEXIST : 1;
}

static void put_page(struct map *map, unsigned int page, const char *from,
		     bool protect)
{
	struct pte *pte = &map->pte[page], was = *pte;
	struct uffd *none;
	uint64_t flags;
	frame_t frame;

	if (map->file) {
		file_fill(map->file, map->pgoff + page);
		frame = map->file->frame[map->pgoff + page];
	} else {
		/* As a touch without a userfaultfd would make it. */
		pte->kind = PTE_NONE;
		pte->uffd = NULL;
		mm_try(map->mm, map->start + page * PAGE, false, &frame, &none,
		       &flags);
		pte->uffd = was.uffd;
	}
	pte->kind = PTE_PRESENT;
	pte->frame = frame;
	pte->writable = !protect;
	pte->wp = protect;
	if (from)
		memcpy(frame_bytes(frame), from, PAGE);
}

static int fill(struct uffd *uffd, uint64_t to, const char *from,
		uint64_t length, bool protect, bool wake, int64_t *count)
{
	struct target t;
	unsigned int i, k;
	int err;

	err = find_target(uffd, to, length, &t);
	if (err == -ESRCH || err == -EINVAL)
		return err;
	if (!err && uffd->changing)
		err = -EAGAIN;
	if (err) {
		*count = err;
		return err;
	}
	if (protect && !(t.map->pte[t.page].modes & UFFDIO_REGISTER_MODE_WP))
		return *count = -EINVAL;
	for (i = 0; i < t.pages; i += t.map->unit) {
		/* It may stop in between, and say how far it has come. */
		if (i && !sched_is_fair() && sim_one_in(32)) {
			err = -EAGAIN;
			break;
		}
		const char *bytes = from ? from + i * PAGE : NULL;

		err = t.map->file ? install_file(t.map, t.page + i, bytes) :
			install_anonymous(&t.map->pte[t.page + i], bytes);
		if (err < 0)
			break;
		for (k = 0; k < t.map->unit; k++)
			put_page(t.map, t.page + i + k,
				 bytes ? bytes + k * PAGE : NULL, protect);
	}
	return finish(uffd, to, length, i * PAGE, err, wake, count);
}

static int uffd_copy(struct uffd *uffd, struct uffdio_copy *copy)
{
	int64_t count = copy->copy;
	int err;

	if (copy->mode & ~3ULL)
		return -EINVAL;
	err = fill(uffd, copy->dst, (const char *)(uintptr_t)copy->src, copy->len,
		   copy->mode & UFFDIO_COPY_MODE_WP,
		   !(copy->mode & UFFDIO_COPY_MODE_DONTWAKE), &count);
	copy->copy = count;
	return err;
}

static int uffd_zero(struct uffd *uffd, struct uffdio_zeropage *zero)
{
	int64_t count = zero->zeropage;
	unsigned int page;
	struct map *map = uffd->mm->dead ? NULL :
			  map_at(uffd->mm, zero->range.start, &page);
	int err;

	if (map && map->file && map->file->hugetlb)
		return zero->zeropage = -EINVAL;
	err = fill(uffd, zero->range.start, NULL, zero->range.len, false,
		   !(zero->mode & UFFDIO_ZEROPAGE_MODE_DONTWAKE), &count);
	zero->zeropage = count;
	return err;
}

static int continue_page(struct map *map, unsigned int page, bool protect)
{
	struct pte *pte = &map->pte[page];
	const struct file *file = map->file;
	unsigned int at = map->pgoff + page;

	if (!file || at >= file->pages)
		return -EINVAL;
	if (pte->kind == PTE_PRESENT)
		return -EEXIST;
	if (file->frame[at] < 0)
		return -EFAULT;
	pte->kind = PTE_PRESENT;
	pte->frame = file->frame[at];
	pte->writable = !protect;
	pte->wp = protect;
	return 1;
}

static int uffd_continue(struct uffd *uffd, struct uffdio_continue *cont)
{
	bool protect = cont->mode & KVMFAULT__UFFDIO_CONTINUE_MODE_WP;
	struct target t;
	unsigned int i, k;
	int64_t count;
	int err;

	if (cont->mode & ~3ULL)
		return -EINVAL;
	err = find_target(uffd, cont->range.start, cont->range.len, &t);
	if (err == -ESRCH || err == -EINVAL)
		return err;
	if (!err && uffd->changing)
		err = -EAGAIN;
	if (err)
		return (int)(cont->mapped = err);
	if (protect && !(t.map->pte[t.page].modes & UFFDIO_REGISTER_MODE_WP))
		return (int)(cont->mapped = -EINVAL);
	for (i = 0; i < t.pages; i += t.map->unit) {
		if (t.map->pte[t.page + i].going) {
			t.map->pte[t.page + i].going = false;
			err = -EAGAIN;
			break;
		}
		for (k = 0, err = 1; k < t.map->unit && err > 0; k++)
			err = continue_page(t.map, t.page + i + k, protect);
		if (err < 0)
			break;
	}
	err = finish(uffd, cont->range.start, cont->range.len, i * PAGE, err,
		     !(cont->mode & UFFDIO_CONTINUE_MODE_DONTWAKE), &count);
	cont->mapped = count;
	return err;
}

static int uffd_poison(struct uffd *uffd,
		       struct kvmfault__uffdio_poison *poison)
{
	struct target t;
	unsigned int i, k;
	int64_t count;
	int err;

	if (!uffd->api)
		return -EINVAL;
	err = find_target(uffd, poison->range.start, poison->range.len, &t);
	if (err == -ESRCH || err == -EINVAL)
		return err;
	if (!err && uffd->changing)
		err = -EAGAIN;
	if (err)
		return (int)(poison->updated = err);
	/* The kernel may take pages out of page tables at any time. */
	if (!sched_is_fair() && sim_one_in(4))
		for (i = 0; i < t.pages; i++)
			mm_reclaim(t.map, t.page + i);
	for (i = 0; i < t.pages; i += t.map->unit) {
		const struct pte *pte = &t.map->pte[t.page + i];

		err = pte->kind != PTE_NONE || pte->wp ? -EEXIST : 1;
		if (t.map->file && t.map->pgoff + t.page + i >=
				   t.map->file->pages)
			err = -EFAULT;
		if (err < 0)
			break;
		for (k = 0; k < t.map->unit; k++)
			t.map->pte[t.page + i + k].kind = PTE_POISON;
	}
	err = finish(uffd, poison->range.start, poison->range.len, i * PAGE, err,
		     !(poison->mode & KVMFAULT__POISON_MODE_DONTWAKE), &count);
	poison->updated = count;
	return err;
}

static int uffd_protect(struct uffd *uffd, const struct uffdio_writeprotect *p)
{
	bool on = p->mode & UFFDIO_WRITEPROTECT_MODE_WP;
	uint64_t at, end = p->range.start + p->range.len;
	struct map *map;
	unsigned int page;

	if (uffd->mm->dead)
		return -ESRCH;
	if (!whole_pages(p->range.start, p->range.len))
		return -EINVAL;
	if (uffd->changing)
		return -EAGAIN;
	for (at = p->range.start; at < end; at += PAGE) {
		map = map_at(uffd->mm, at, &page);
		if (!map || !map->pte[page].uffd ||
		    !(map->pte[page].modes & UFFDIO_REGISTER_MODE_WP))
			return -ENOENT;
		if ((p->range.start | p->range.len) % (map->unit * PAGE))
			return -EINVAL;
		/* Anonymous memory has no marker for what is not there. */
		if (on && !map->file && map->pte[page].kind != PTE_PRESENT)
			continue;
		if (on && map->pte[page].kind == PTE_POISON)
			continue;
		map->pte[page].wp = on;
		if (on)
			map->pte[page].writable = false;
	}
	if (!on && !(p->mode & UFFDIO_WRITEPROTECT_MODE_DONTWAKE))
		uffd_wake(uffd, p->range.start, p->range.len);
	return 0;
}

static int uffd_wake_range(struct uffd *uffd, const struct uffdio_range *range)
{
	if (!uffd->api || !whole_pages(range->start, range->len))
		return -EINVAL;
	uffd_wake(uffd, range->start, range->len);
	return 0;
}

int uffd_ioctl(struct uffd *uffd, unsigned long request, void *arg)
{
	switch (request) {
	case UFFDIO_API:
		return uffd_api(uffd, arg);
	case UFFDIO_REGISTER:
		return uffd_register(uffd, arg);
	case UFFDIO_UNREGISTER:
		return uffd_unregister(uffd, arg);
	case UFFDIO_COPY:
		return uffd_copy(uffd, arg);
	case UFFDIO_ZEROPAGE:
		return uffd_zero(uffd, arg);
	case UFFDIO_CONTINUE:
		return uffd_continue(uffd, arg);
	case UFFDIO_WRITEPROTECT:
		return uffd_protect(uffd, arg);
	case KVMFAULT__UFFDIO_POISON:
		return uffd_poison(uffd, arg);
	case UFFDIO_WAKE:
		return uffd_wake_range(uffd, arg);
	}
	return -ENOTTY;
}
