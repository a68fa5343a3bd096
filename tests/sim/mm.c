/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The model's memory. In: calls that make and change files and mappings, and
 * accesses. Out: what Linux does. A page of a file is a frame, or a hole; each
 * mapping has a page table of its own, in which a page may be missing although
 * the file has it, be write-protected, or have a marker.
 *
 * The addresses of the VMM's process are real, and nothing is ever mapped there:
 * when the library's own code touches guest memory, SIGSEGV is the access. It is
 * let through until the next point.
 */

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "lib/os/abi.h"
#include "run.h"
#include "sim.h"

#define FRAMES 16384
#define MMS 16
#define FILES 256U
#define ADDRESSES (1ULL << 30)
#define ELSEWHERE 0x100000000000ULL

struct mm *our_mm;
unsigned int huge_pool, shmem_left;
bool huge_exists;

static struct mm mms[MMS];
static unsigned int mm_count;
static char *machine;			/* all frames, for the model */
static int machine_fd;
static frame_t free_frames[FRAMES];
static unsigned int free_count;
static char *addresses;			/* the VMM's, where nothing is mapped */
static uint16_t next_vma;

static struct file *files[FILES];
static unsigned int file_count;

/* ---- frames ---- */

char *frame_bytes(frame_t frame)
{
	return machine + (size_t)frame * PAGE;
}

static frame_t frame_new(void)
{
	frame_t frame;

	if (!free_count)
		abort();
	frame = free_frames[--free_count];
	memset(frame_bytes(frame), 0, PAGE);
	return frame;
}

static void frame_free(frame_t frame)
{
	if (frame >= 0)
		free_frames[free_count++] = frame;
}

/* ---- a new machine ---- */

static void map_free(struct map *map)
{
	free(map->pte);
	free(map);
}

void mm_reset(void)
{
	unsigned int i;

	for (i = 0; i < mm_count; i++) {
		while (mms[i].maps) {
			struct map *map = mms[i].maps;

			mms[i].maps = map->next;
			map_free(map);
		}
	}
	for (i = 0; i < file_count; i++) {
		free(files[i]->frame);
		free(files[i]->ahead);
		free(files[i]);
	}
	file_count = mm_count = 0;
	next_vma = 1;
	for (i = 0; i < FRAMES; i++)
		free_frames[i] = (frame_t)(FRAMES - 1 - i);
	free_count = FRAMES;
	huge_pool = 1000;
	shmem_left = FRAMES;
	our_mm = mm_new(true);
}

struct mm *mm_new(bool ours)
{
	struct mm *mm = &mms[mm_count];

	if (mm_count == MMS)
		abort();
	*mm = (struct mm){ .id = mm_count++, .ours = ours };
	mm->next_start = ours ? (uintptr_t)addresses :
				ELSEWHERE + ((uint64_t)mm->id << 36);
	return mm;
}

/* ---- files ---- */

struct file *file_new(unsigned int pages, bool hugetlb, bool guest_memfd)
{
	struct file *file;
	unsigned int i;

	if (file_count == FILES)
		sim_fail("the simulator: no more files", "%u", FILES);
	file = calloc(1, sizeof(*file));
	file->inode = 1000 + file_count;
	file->hugetlb = hugetlb;
	file->guest_memfd = guest_memfd;
	file->unit = hugetlb ? HUGE_PAGES : 1;
	file->pages = pages;
	file->frame = malloc((pages + 1) * sizeof(*file->frame));
	file->ahead = calloc(pages + 1, sizeof(*file->ahead));
	for (i = 0; i < pages; i++)
		file->frame[i] = -1;
	file->refs = 1;
	files[file_count++] = file;
	return file;
}

struct file *file_copy(const struct file *file)
{
	struct file *copy = file_new(file->pages, file->hugetlb, false);
	unsigned int page;

	copy->copy = true;
	copy->inode = file->inode;
	for (page = 0; page < file->pages; page++) {
		if (file->frame[page] < 0)
			continue;
		copy->frame[page] = frame_new();
		memcpy(frame_bytes(copy->frame[page]),
		       frame_bytes(file->frame[page]), PAGE);
	}
	return copy;
}

/* It stays until the run is over: it may be mapped. */
void file_put(struct file *file)
{
	file->refs--;
}

int file_fill(struct file *file, unsigned int page)
{
	unsigned int i, first = page - page % file->unit;

	if (file->frame[page] >= 0)
		return 0;
	if (file->hugetlb) {
		if (!huge_pool)
			return -ENOMEM;
		huge_pool--;
	} else {
		if (!shmem_left)
			return -ENOMEM;
		shmem_left--;
	}
	for (i = first; i < first + file->unit; i++)
		file->frame[i] = frame_new();
	return 0;
}

static void file_drop(struct file *file, unsigned int page)
{
	if (file->frame[page] < 0)
		return;
	if (!file->hugetlb && !file->copy)
		shmem_left++;
	else if (!(page % file->unit) && !file->copy)
		huge_pool++;
	frame_free(file->frame[page]);
	file->frame[page] = -1;
}

static void zap_everywhere(const struct file *file, unsigned int page)
{
	struct map *map;
	unsigned int i;

	for (i = 0; i < mm_count; i++)
		for (map = mms[i].maps; map; map = map->next)
			if (map->file == file && page >= map->pgoff &&
			    page - map->pgoff < map->pages)
				pte_clear(map, page - map->pgoff, !file->hugetlb);
}

int file_punch(struct file *file, uint64_t offset, uint64_t length)
{
	unsigned int page = (unsigned int)(offset / PAGE);
	unsigned int end = (unsigned int)((offset + length) / PAGE);

	if (!length || (offset | length) % PAGE || end > file->pages)
		return -EINVAL;
	/* Of a huge page only the whole goes. */
	page = (page + file->unit - 1) / file->unit * file->unit;
	end -= end % file->unit;
	for (; page < end; page++) {
		zap_everywhere(file, page);
		file_drop(file, page);
		file->ahead[page] = false;
	}
	return 0;
}

int64_t file_seek_data(const struct file *file, uint64_t offset)
{
	unsigned int page = (unsigned int)(offset / PAGE);

	/* There SEEK_DATA sees data everywhere. */
	if (file->hugetlb)
		return page < file->pages ? (int64_t)offset : -ENXIO;
	for (; page < file->pages; page++)
		if (file->frame[page] >= 0)
			return (int64_t)(page * PAGE > offset ? page * PAGE :
							       offset);
	return -ENXIO;
}

int64_t file_seek_hole(const struct file *file, uint64_t offset)
{
	unsigned int page = (unsigned int)(offset / PAGE);

	if (page >= file->pages)
		return -ENXIO;
	/* There only the end is one. */
	if (file->hugetlb)
		return file->pages * (int64_t)PAGE;
	if (file->frame[page] < 0)
		return (int64_t)offset;
	while (page < file->pages && file->frame[page] >= 0)
		page++;
	return page * (int64_t)PAGE;
}

unsigned int file_blocks(const struct file *file)
{
	unsigned int page, n = 0;

	for (page = 0; page < file->pages; page++)
		n += file->frame[page] >= 0 || file->ahead[page];
	return n;
}

bool file_cached(const struct file *file, uint64_t offset, uint64_t length)
{
	uint64_t page;

	for (page = offset / PAGE; page < (offset + length) / PAGE &&
	     page < file->pages; page++)
		if (file->frame[page] >= 0)
			return true;
	return false;
}

int file_write(struct file *file, uint64_t offset, const void *bytes,
	       size_t length)
{
	while (length) {
		unsigned int page = (unsigned int)(offset / PAGE);
		size_t step = PAGE - offset % PAGE;
		int err;

		if (page >= file->pages)
			return -EFBIG;
		if (step > length)
			step = length;
		err = file_fill(file, page);
		if (err)
			return -ENOSPC;
		memcpy(frame_bytes(file->frame[page]) + offset % PAGE, bytes,
		       step);
		bytes = (const char *)bytes + step;
		offset += step;
		length -= step;
	}
	return 0;
}

int64_t file_read(const struct file *file, uint64_t offset, void *bytes,
		  size_t length)
{
	size_t done = 0;

	while (done < length && (offset + done) / PAGE < file->pages) {
		unsigned int page = (unsigned int)((offset + done) / PAGE);
		size_t step = PAGE - (offset + done) % PAGE;

		if (step > length - done)
			step = length - done;
		if (file->frame[page] >= 0)
			memcpy((char *)bytes + done,
			       frame_bytes(file->frame[page]) +
			       (offset + done) % PAGE, step);
		else
			memset((char *)bytes + done, 0, step);
		done += step;
	}
	return (int64_t)done;
}

/* ---- mappings ---- */

struct map *map_at(struct mm *mm, uint64_t address, unsigned int *page)
{
	struct map *map;

	for (map = mm->maps; map; map = map->next) {
		if (address < map->start ||
		    address - map->start >= map->pages * PAGE)
			continue;
		*page = (unsigned int)((address - map->start) / PAGE);
		return map;
	}
	return NULL;
}

static struct map *map_new(struct mm *mm, unsigned int pages)
{
	struct map *map = calloc(1, sizeof(*map));

	map->mm = mm;
	map->pages = pages;
	map->pte = calloc(pages, sizeof(*map->pte));
	map->start = mm->next_start;
	/* A hole behind it; and huge pages' alignment. */
	mm->next_start += (pages / HUGE_PAGES + 2) * HUGE_PAGES * PAGE;
	if (mm->ours &&
	    mm->next_start > (uintptr_t)addresses + ADDRESSES)
		abort();
	map->next = mm->maps;
	mm->maps = map;
	return map;
}

/* One VMA, in which no page has come. */
static void nothing_yet(struct map *map, int prot)
{
	unsigned int i;

	for (i = 0; i < map->pages; i++)
		map->pte[i] = (struct pte){
			.vma = next_vma, .prot = (uint8_t)prot, .frame = -1,
		};
	next_vma++;
}

uint64_t mm_map(struct mm *mm, struct file *file, unsigned int pgoff,
		unsigned int pages, int prot, bool private)
{
	struct map *map = map_new(mm, pages);

	map->file = file;
	map->pgoff = pgoff;
	map->private = private;
	map->unit = file ? file->unit : 1;
	nothing_yet(map, prot);
	return map->start;
}

/* The same file there once more: nothing is mapped yet, nobody watches it. */
void mm_map_again(struct mm *mm, uint64_t start, int prot)
{
	unsigned int page;
	struct map *map = map_at(mm, start, &page);

	mm_madvise(mm, start, map->pages * PAGE, MADV_DONTNEED);
	nothing_yet(map, prot);
}

size_t mm_tell_maps(const struct mm *mm, char *text, size_t size)
{
	const struct map *map;
	unsigned int page, end;
	size_t n = 0;

	for (map = mm->maps; map; map = map->next) {
		for (page = 0; page < map->pages; page = end) {
			for (end = page + 1; end < map->pages &&
			     map->pte[end].vma == map->pte[page].vma; end++)
				;
			if (!map->pte[page].vma || size - n < 128)
				continue;
			n += (size_t)snprintf(text + n, size - n,
				"%llx-%llx rw-%c %08llx 00:01 %u\n",
				(unsigned long long)(map->start + page * PAGE),
				(unsigned long long)(map->start + end * PAGE),
				!map->file || map->private ? 'p' : 's',
				map->file ? (map->pgoff + page) * PAGE : 0,
				map->file ? map->file->inode : 0);
		}
	}
	return n;
}

static bool owns_frame(const struct map *map, const struct pte *pte)
{
	return pte->kind == PTE_PRESENT &&
	       (!map->file || (map->private && pte->writable));
}

void pte_clear(struct map *map, unsigned int page, bool keep_poison)
{
	struct pte *pte = &map->pte[page];

	if (pte->kind == PTE_POISON && keep_poison)
		return;
	if (owns_frame(map, pte))
		frame_free(pte->frame);
	/* Of a file's page the protection stays, as a marker. */
	if (!map->file)
		pte->wp = false;
	pte->kind = PTE_NONE;
	pte->frame = -1;
	pte->writable = false;
}

/* The pages of a range that are mapped, one after the other. -ENOMEM: there is
 * one that is not; what comes before was done. */
static int each_page(struct mm *mm, uint64_t start, uint64_t length,
		     void (*act)(struct map *map, unsigned int page, int arg),
		     int arg)
{
	uint64_t at;
	int err = 0;

	for (at = start; at < start + length; at += PAGE) {
		unsigned int page;
		struct map *map = map_at(mm, at, &page);

		if (!map || !map->pte[page].vma)
			err = -ENOMEM;
		else
			act(map, page, arg);
		if (err && act)
			break;
	}
	return err;
}

static void unmap_page(struct map *map, unsigned int page, int arg)
{
	(void)arg;
	pte_clear(map, page, false);
	map->pte[page] = (struct pte){ .frame = -1 };
}

int mm_unmap(struct mm *mm, uint64_t start, uint64_t length)
{
	uint64_t at;

	for (at = start; at < start + length; at += PAGE)
		each_page(mm, at, PAGE, unmap_page, 0);
	return 0;
}

static void protect_page(struct map *map, unsigned int page, int prot)
{
	map->pte[page].prot = (uint8_t)prot;
	map->pte[page].vma = next_vma;
}

int mm_protect(struct mm *mm, uint64_t start, uint64_t length, int prot)
{
	int err = each_page(mm, start, length, protect_page, prot);

	next_vma++;
	return err;
}

static void split_page(struct map *map, unsigned int page, int arg)
{
	(void)arg;
	map->pte[page].vma = next_vma;
}

void mm_split(struct mm *mm, uint64_t start, uint64_t length)
{
	each_page(mm, start, length, split_page, 0);
	next_vma++;
}

static void forget_page(struct map *map, unsigned int page, int arg)
{
	(void)arg;
	pte_clear(map, page, false);
}

/* Who touches a page, and so what a signal does to his sleep: the VMM handles it
 * and faults again; it ends KVM_RUN; the kernel, that copies, comes back and
 * faults again, until the page is there; and madvise() sleeps on. */
enum toucher { BY_VMM, BY_KVM, BY_COPY, BY_MADVISE };
static enum access access_as(enum toucher who, struct mm *mm, uint64_t address,
			     bool write, frame_t *frame);

static int populate_error(enum access access, const struct map *map,
			  unsigned int page)
{
	switch (access) {
	case ACCESS_OK:
		return 0;
	case ACCESS_SEGV:
		return map && map->pte[page].vma ? -EINVAL : -ENOMEM;
	case ACCESS_BUS:
		return -EFAULT;
	case ACCESS_POISON:
		return -EHWPOISON;
	case ACCESS_SIGNAL:
		return -EINTR;
	case ACCESS_DEAD:
		break;
	}
	return -ESRCH;
}

static int populate(struct mm *mm, uint64_t start, uint64_t length, bool write)
{
	uint64_t at;
	int err = 0;

	for (at = start; at < start + length && !err; at += PAGE) {
		enum access access;
		unsigned int page = 0;
		frame_t frame;

		access = access_as(BY_MADVISE, mm, at, write, &frame);
		err = populate_error(access, map_at(mm, at, &page), page);
	}
	return err;
}

int mm_madvise(struct mm *mm, uint64_t start, uint64_t length, int advice)
{
	unsigned int page;
	struct map *map;

	if (start % PAGE)
		return -EINVAL;
	switch (advice) {
	case MADV_DONTNEED:
		uffd_tell_remove(mm, start, length, UFFD_EVENT_REMOVE);
		sim_point();	/* the lock is taken anew */
		return each_page(mm, start, length, forget_page, 0);
	case MADV_REMOVE:
		map = map_at(mm, start, &page);
		if (!map || !map->file)
			return map ? -EINVAL : -ENOMEM;
		uffd_tell_remove(mm, start, length, UFFD_EVENT_REMOVE);
		sim_point();
		return file_punch(map->file, (map->pgoff + page) * PAGE, length);
	case KVMFAULT__MADV_POPULATE_READ:
		return populate(mm, start, length, false);
	case KVMFAULT__MADV_POPULATE_WRITE:
		return populate(mm, start, length, true);
	case MADV_DONTFORK:
	case MADV_DOFORK:
		map = map_at(mm, start, &page);
		if (map)
			map->dontfork = advice == MADV_DONTFORK;
		return map ? 0 : -ENOMEM;
	default:
		return map_at(mm, start, &page) ? 0 : -ENOMEM;
	}
}

int mm_mincore(struct mm *mm, uint64_t start, uint64_t length,
	       unsigned char *vec)
{
	uint64_t at;

	for (at = 0; at < length; at += PAGE) {
		unsigned int page;
		struct map *map = map_at(mm, start + at, &page);

		if (!map || !map->pte[page].vma)
			return -ENOMEM;
		vec[at / PAGE] = map->pte[page].kind == PTE_PRESENT ||
				 (map->file && !map->private &&
				  map->file->frame[map->pgoff + page] >= 0);
	}
	return 0;
}

uint64_t mm_move(struct mm *mm, uint64_t start, uint64_t length)
{
	unsigned int page, i, pages = (unsigned int)(length / PAGE);
	struct map *old = map_at(mm, start, &page);
	struct map *new;

	if (!old)
		return 0;
	new = map_new(mm, pages);
	new->file = old->file;
	new->pgoff = old->pgoff + page;
	new->private = old->private;
	new->unit = old->unit;
	for (i = 0; i < pages; i++) {
		new->pte[i] = old->pte[page + i];
		new->pte[i].uffd = NULL;
		new->pte[i].modes = 0;
		new->pte[i].wp = false;
		old->pte[page + i] = (struct pte){ .frame = -1 };
	}
	return new->start;
}

void mm_reclaim(struct map *map, unsigned int page)
{
	unsigned int i, first = page - page % map->unit;

	if (!map->file || map->private)
		return;
	for (i = first; i < first + map->unit; i++)
		if (map->pte[i].kind == PTE_PRESENT)
			pte_clear(map, i, true);
}

/* Of what has no page of its own nothing is copied: a touch brings it again. */
static bool has_own_page(const struct map *map)
{
	unsigned int i;

	for (i = 0; i < map->pages; i++)
		if (owns_frame(map, &map->pte[i]))
			return true;
	return false;
}

struct mm *mm_fork(struct mm *mm)
{
	struct mm *child = mm_new(false);
	struct map *map, *new;
	unsigned int i;

	for (map = mm->maps; map; map = map->next) {
		if (map->dontfork)
			continue;
		new = map_new(child, map->pages);
		new->start = map->start;
		new->file = map->file;
		new->pgoff = map->pgoff;
		new->private = map->private;
		new->unit = map->unit;
		for (i = 0; i < map->pages; i++) {
			new->pte[i] = (struct pte){
				.vma = map->pte[i].vma, .prot = map->pte[i].prot,
				.frame = -1,
			};
			if (map->pte[i].kind == PTE_POISON &&
			    has_own_page(map))
				new->pte[i].kind = PTE_POISON;
			if (!owns_frame(map, &map->pte[i]))
				continue;
			new->pte[i].kind = PTE_PRESENT;
			new->pte[i].writable = true;
			new->pte[i].frame = frame_new();
			memcpy(frame_bytes(new->pte[i].frame),
			       frame_bytes(map->pte[i].frame), PAGE);
		}
	}
	return child;
}

void mm_exit(struct mm *mm)
{
	struct map *map;
	unsigned int i;

	mm->dead = true;
	for (map = mm->maps; map; map = map->next)
		for (i = 0; i < map->pages; i++)
			if (map->pte[i].vma)
				unmap_page(map, i, 0);
}

/* ---- accesses ---- */

static enum access make_anonymous(struct map *map, unsigned int page, bool write)
{
	struct pte *pte = &map->pte[page];

	pte->kind = PTE_PRESENT;
	pte->frame = frame_new();
	pte->writable = true;
	(void)write;
	return ACCESS_OK;
}

static void map_file_page(struct map *map, unsigned int page, bool write)
{
	struct pte *pte = &map->pte[page];
	frame_t frame = map->file->frame[map->pgoff + page];

	pte->kind = PTE_PRESENT;
	pte->frame = frame;
	pte->writable = write && !map->private;
	if (map->private && write) {
		pte->frame = frame_new();
		memcpy(frame_bytes(pte->frame), frame_bytes(frame), PAGE);
		pte->writable = true;
	}
}

/* What is not in the page table. */
static enum access missing(struct map *map, unsigned int page, bool write,
			   struct uffd **uffd, uint64_t *flags)
{
	struct pte *pte = &map->pte[page];
	struct file *file = map->file;
	unsigned int at = map->pgoff + page, i, first;
	bool there = !file ? false : at < file->pages &&
			     (file->frame[at] >= 0 || file->ahead[at]);

	if (file && at >= file->pages)
		return ACCESS_BUS;
	if (!there && pte->uffd && pte->modes & UFFDIO_REGISTER_MODE_MISSING) {
		*uffd = pte->uffd;
		return ACCESS_OK;
	}
	if (there && pte->uffd && pte->modes & UFFDIO_REGISTER_MODE_MINOR) {
		*uffd = pte->uffd;
		*flags |= UFFD_PAGEFAULT_FLAG_MINOR;
		return ACCESS_OK;
	}
	if (!file)
		return make_anonymous(map, page, write);
	if (file_fill(file, at))
		return ACCESS_BUS;
	first = page - page % map->unit;
	for (i = first; i < first + map->unit; i++)
		if (map->pte[i].kind == PTE_NONE)
			map_file_page(map, i, write && !map->pte[i].wp);
	return ACCESS_OK;
}

static bool permits(const struct pte *pte, bool write)
{
	return pte->vma && pte->prot & (write ? PROT_WRITE : PROT_READ);
}

enum access mm_try(struct mm *mm, uint64_t address, bool write, frame_t *frame,
		   struct uffd **uffd, uint64_t *flags)
{
	unsigned int page;
	struct map *map;
	struct pte *pte;
	enum access access;

	*uffd = NULL;
	*flags = write ? UFFD_PAGEFAULT_FLAG_WRITE : 0;
	*frame = -1;
	if (mm->dead)
		return ACCESS_DEAD;
	map = map_at(mm, address, &page);
	if (!map || !permits(&map->pte[page], write))
		return ACCESS_SEGV;
	pte = &map->pte[page];
	if (pte->kind == PTE_POISON)
		return ACCESS_POISON;
	if (pte->kind == PTE_NONE) {
		access = missing(map, page, write, uffd, flags);
		if (access != ACCESS_OK || *uffd)
			return access;
	}
	if (write && pte->wp && pte->uffd &&
	    pte->modes & UFFDIO_REGISTER_MODE_WP) {
		*uffd = pte->uffd;
		*flags |= UFFD_PAGEFAULT_FLAG_WP;
		return ACCESS_OK;
	}
	if (write && !pte->writable && map->private) {
		frame_t copy = frame_new();

		memcpy(frame_bytes(copy), frame_bytes(pte->frame), PAGE);
		pte->frame = copy;
	}
	if (write)
		pte->writable = true;
	*frame = pte->frame;
	return ACCESS_OK;
}

static enum access access_as(enum toucher who, struct mm *mm, uint64_t address,
			     bool write, frame_t *frame)
{
	bool interruptible = who != BY_MADVISE;
	uint64_t page = address & ~(PAGE - 1), flags;
	enum access access;
	struct uffd *uffd;

	for (;;) {
		sim_meet();
		sim_point();
		access = mm_try(mm, address, write, frame, &uffd, &flags);
		if (!uffd)
			return access;
		/* Neither sees the kernel's accesses, or sleeps for them. */
		if (uffd->features & UFFD_FEATURE_SIGBUS ||
		    (who != BY_VMM && uffd->user_mode_only))
			return ACCESS_BUS;
		if (uffd_sleep(uffd, page, flags, interruptible) != SIGNALLED)
			continue;
		if (who == BY_KVM)
			return ACCESS_SIGNAL;
		if (who == BY_VMM)
			task_handle_signals();
		else			/* once stands for many times */
			interruptible = false;
	}
}

enum access mm_access(struct mm *mm, uint64_t address, bool write, bool kernel,
		      frame_t *frame)
{
	return access_as(kernel ? BY_KVM : BY_VMM, mm, address, write, frame);
}

enum access mm_copy(struct mm *mm, uint64_t address, bool write, frame_t *frame)
{
	return access_as(BY_COPY, mm, address, write, frame);
}

enum access mm_read(struct mm *mm, uint64_t address, uint64_t *value)
{
	frame_t frame;
	enum access access = mm_access(mm, address, false, false, &frame);

	if (access == ACCESS_OK)
		memcpy(value, frame_bytes(frame) + address % PAGE,
		       sizeof(*value));
	return access;
}

enum access mm_write(struct mm *mm, uint64_t address, uint64_t value)
{
	frame_t frame;
	enum access access = mm_access(mm, address, true, false, &frame);

	if (access == ACCESS_OK)
		memcpy(frame_bytes(frame) + address % PAGE, &value,
		       sizeof(value));
	return access;
}

/* ---- the library's own accesses ---- */

static uint64_t opened[64];
static unsigned int opened_count;
static bool straddling;			/* the access is of two pages */

void windows_close(void)
{
	if (!straddling)
		windows_close_all();
}

void windows_close_all(void)
{
	while (opened_count)
		if (mmap((void *)(uintptr_t)opened[--opened_count], PAGE,
			 PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
			 MAP_FIXED, -1, 0) == MAP_FAILED)
			abort();
}

static void window_open(uint64_t address, bool write, frame_t frame)
{
	if (mmap((void *)(uintptr_t)address, PAGE,
		 PROT_READ | (write ? PROT_WRITE : 0), MAP_SHARED | MAP_FIXED,
		 machine_fd, (off_t)frame * (off_t)PAGE) == MAP_FAILED)
		abort();
	if (opened_count == sizeof(opened) / sizeof(*opened))
		abort();
	opened[opened_count++] = address;
}

static bool is_write(void *context, uint64_t address)
{
#ifdef __x86_64__
	(void)address;
	return ((ucontext_t *)context)->uc_mcontext.gregs[REG_ERR] & 2;
#else
	/* Read first: a write then comes here again, and finds it open. */
	unsigned int i;

	(void)context;
	for (i = 0; i < opened_count; i++)
		if (opened[i] == address)
			return true;
	return false;
#endif
}

void __sanitizer_print_stack_trace(void);

static void on_segv(int signo, siginfo_t *info, void *context)
{
	static const char *const ends[] = {
		[ACCESS_SEGV] = "SIGSEGV", [ACCESS_BUS] = "SIGBUS",
		[ACCESS_POISON] = "SIGBUS at a marker",
		[ACCESS_SIGNAL] = "a signal", [ACCESS_DEAD] = "nothing",
	};
	uint64_t address = (uintptr_t)info->si_addr & ~(PAGE - 1);
	bool write = is_write(context, address);
	enum access access;
	frame_t frame;

	(void)signo;
	if (!current || address < (uintptr_t)addresses ||
	    address >= (uintptr_t)addresses + ADDRESSES) {
		fprintf(stderr, "==1==ERROR: AddressSanitizer: SEGV at %p\n",
			info->si_addr);
		__sanitizer_print_stack_trace();
		abort();
	}
	straddling = opened_count && (opened[opened_count - 1] + PAGE == address ||
				      opened[opened_count - 1] - PAGE == address);
	access = mm_access(our_mm, address, write, false, &frame);
	straddling = false;
	tell("the library itself %s %#llx", write ? "writes" : "reads",
	     (unsigned long long)address);
	if (access == ACCESS_POISON && run_kill_is_fine())
		sim_stop();
	if (access != ACCESS_OK)
		sim_fail("the library's own access kills the VMM",
			 "%s in %s: it %s guest memory and gets %s",
			 current->name, current->call ? current->call : "no call",
			 write ? "writes" : "reads", ends[access]);
	window_open(address, write, frame);
}

void windows_init(void)
{
	struct sigaction action = {
		.sa_sigaction = on_segv,
		.sa_flags = SA_SIGINFO | SA_NODEFER,
	};

	machine_fd = memfd_create("machine", MFD_CLOEXEC);
	if (machine_fd < 0 || ftruncate(machine_fd, FRAMES * PAGE))
		abort();
	machine = mmap(NULL, FRAMES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
		       machine_fd, 0);
	addresses = mmap(NULL, ADDRESSES, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (machine == MAP_FAILED || addresses == MAP_FAILED)
		abort();
	addresses = (char *)(((uintptr_t)addresses + HUGE_PAGES * PAGE - 1) &
			     ~(HUGE_PAGES * PAGE - 1));
	sigaction(SIGSEGV, &action, NULL);
}
