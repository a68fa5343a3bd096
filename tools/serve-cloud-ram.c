/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The RAM of a VM that Cloud Hypervisor runs. In: the slots of its snapshot.
 * Out: a memfd for each, for Cloud Hypervisor to map, that gets its pages from
 * the slot's file: those that are asked for, and behind these the rest. A page
 * is in a memfd with all of its bytes, or not at all: version 53 maps it as
 * soon as it is there. (So no minor faults here: they would write it in place.)
 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "serve.h"
#include "serve-cloud-hypervisor.h"
#include "tool.h"

#define WINDOW (1 << 20)		/* where requests walk up */
#define PATIENCE_MS 5000		/* with a source that fails */
#define QUIET_MS 200

static void log_cloud_line(void *data, enum kvmfault_log_level level,
			   const char *message)
{
	(void)data;
	complain("%s%s", level == KVMFAULT_LOG_WARNING ? "warning: " : "",
		 message);
}

/* ---- the image: all slots' bytes, one slot after the other ---- */

static int read_cloud_image(void *data, uint64_t offset, void *buffer,
			    size_t length)
{
	const struct cloud_slot *slot = data;

	return slot->source.read(slot->source.data,
				 offset - slot->image_offset, buffer, length);
}

static int find_cloud_extent(void *data, uint64_t offset, uint64_t *length)
{
	const struct cloud_slot *slot = data;

	return slot->source.extent(slot->source.data,
				   offset - slot->image_offset, length);
}

/* ---- a slot ---- */

/* Can the slot share a memfd with the group's? */
static bool fits_cloud_group(const struct cloud_snapshot *snapshot,
			     const struct cloud_slot *slot, unsigned int group)
{
	const struct cloud_slot *other;

	if (snapshot->slot[group].page_size != slot->page_size)
		return false;
	for (other = snapshot->slot; other < slot; other++)
		if (other->group == group &&
		    slot->file_offset < other->file_offset + other->size &&
		    other->file_offset < slot->file_offset + slot->size)
			return false;
	return true;
}

/* Slots of one zone have one file in Cloud Hypervisor, and offsets in it; so
 * they have one here, which is cut off in one step. */
static void group_cloud_slots(struct cloud_snapshot *snapshot)
{
	unsigned int i, group;

	for (i = 0; i < snapshot->slots; i++) {
		for (group = 0; group < i; group++)
			if (snapshot->slot[group].group == group &&
			    fits_cloud_group(snapshot, &snapshot->slot[i],
					     group))
				break;
		snapshot->slot[i].group = group;
	}
}

static uint64_t measure_cloud_group(const struct cloud_snapshot *snapshot,
				    unsigned int group)
{
	uint64_t end = 0;
	unsigned int i;

	for (i = 0; i < snapshot->slots; i++) {
		const struct cloud_slot *slot = &snapshot->slot[i];

		if (slot->group == group &&
		    slot->file_offset + slot->size > end)
			end = slot->file_offset + slot->size;
	}
	return end;
}

static int make_cloud_memfd(uint64_t length, uint64_t page_size, int *memfd)
{
	unsigned int flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;

	if (page_size > 4096)
		flags |= MFD_HUGETLB | (unsigned int)
			 __builtin_ctzll(page_size) << MAP_HUGE_SHIFT;
	*memfd = memfd_create("kvmfault-ram", flags);
	/* It can still be cut off: see cloud_empty_memfds(). */
	if (*memfd < 0 || ftruncate(*memfd, (off_t)length) ||
	    fcntl(*memfd, F_ADD_SEALS, F_SEAL_GROW))
		return -errno;
	return 0;
}

static int map_cloud_slot(const struct cloud_snapshot *snapshot,
			  struct cloud_slot *slot)
{
	int err = 0;

	if (&snapshot->slot[slot->group] == slot)
		err = make_cloud_memfd(measure_cloud_group(snapshot,
							   slot->group),
				       slot->page_size, &slot->memfd);
	else
		slot->memfd = snapshot->slot[slot->group].memfd;
	if (err)
		return err;
	slot->host = mmap(NULL, slot->size, PROT_READ | PROT_WRITE, MAP_SHARED,
			  slot->memfd, (off_t)slot->file_offset);
	if (slot->host != MAP_FAILED)
		return 0;
	slot->host = NULL;
	return -errno;
}

static int adopt_cloud_slot(struct cloud_ram *ram, struct cloud_slot *slot)
{
	const struct kvmfault_source image = {
		.size = sizeof(image),
		.name = "snapshot",
		.read = read_cloud_image,
		.extent = slot->source.extent ? find_cloud_extent : NULL,
		.data = slot,
		.length = ram->snapshot->length,
	};
	const struct kvmfault_memory_options memory = {
		.size = sizeof(memory),
		.host = slot->host,
		.length = slot->size,
		.page_size = slot->page_size,
		.fd = slot->memfd,
		.fd_offset = slot->file_offset,
		.source = &image,
		.source_offset = slot->image_offset,
		.uffd = ram->uffd,
		.window = KVMFAULT_WINDOW_ADAPTIVE,
		.window_length = slot->page_size > WINDOW ? slot->page_size :
							    WINDOW,
	};
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = slot->gpa,
		.length = slot->size,
	};
	int err = kvmfault_memory_adopt(ram->vm, &memory, &slot->memory);

	region.memory = slot->memory;
	return err ? err : kvmfault_region_add(ram->vm, &region);
}

static bool make_cloud_slot(struct cloud_ram *ram, struct cloud_slot *slot)
{
	int err = map_cloud_slot(ram->snapshot, slot);

	slot->asked = calloc(slot->size / slot->page_size / 64 + 1,
			     sizeof(*slot->asked));
	if (!err && !slot->asked)
		err = -ENOMEM;
	if (!err)
		err = adopt_cloud_slot(ram, slot);
	if (!err)
		return true;
	complain("cannot make %llu bytes in pages of %llu for slot %u: %s",
		 (unsigned long long)slot->size,
		 (unsigned long long)slot->page_size, slot->number,
		 strerror(-err));
	return false;
}

static void free_cloud_slot(struct cloud_ram *ram, struct cloud_slot *slot)
{
	if (slot->memory) {
		kvmfault_region_remove(ram->vm, 0, slot->gpa);
		kvmfault_memory_free(slot->memory);
	}
	if (slot->host)
		munmap(slot->host, slot->size);
	if (slot->memfd >= 0 && &ram->snapshot->slot[slot->group] == slot)
		close(slot->memfd);
	free(slot->asked);
}

/* ---- all of them ---- */

static bool match_cloud_set(const struct cloud_ram *ram, const char *path)
{
	struct kvmfault_working_set_info info = { .size = sizeof(info) };

	kvmfault_working_set_describe(ram->set, &info);
	if (info.image_length == ram->snapshot->length &&
	    !memcmp(info.identity, ram->snapshot->identity,
		    sizeof(info.identity)))
		return true;
	complain("%s is not the working set of this snapshot, of %llu bytes, or the snapshot has changed since",
		 path, (unsigned long long)ram->snapshot->length);
	return false;
}

bool cloud_make_ram(struct cloud_ram *ram, const char *working_set)
{
	const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops),
		.log = log_cloud_line,
	};
	const struct kvmfault_vm_options vm = {
		.size = sizeof(vm),
		.ops = &ops,
		.page_size_max = ram->snapshot->page_size_max > 2 << 20 ?
				 ram->snapshot->page_size_max : 0,
	};
	unsigned int i;
	int err;

	if (working_set) {
		ram->set = load_working_set(working_set);
		if (!ram->set || !match_cloud_set(ram, working_set))
			return false;
	}
	if (!cloud_open_guard(&ram->guard))
		return false;
	err = kvmfault_vm_new(&vm, &ram->vm);
	if (!err)
		err = kvmfault_uffd_new(ram->vm, NULL, &ram->uffd);
	if (err) {
		complain_errno(err, "make a VM's memory");
		return false;
	}
	group_cloud_slots(ram->snapshot);
	for (i = 0; i < ram->snapshot->slots; i++)
		if (!make_cloud_slot(ram, &ram->snapshot->slot[i]))
			return false;
	return true;
}

void cloud_free_ram(struct cloud_ram *ram)
{
	unsigned int i;

	kvmfault_fill_free(ram->fill);
	if (ram->guard.process && !cloud_count_missing(ram))
		cloud_release_guard(&ram->guard);
	cloud_end_guard(&ram->guard);
	for (i = 0; i < ram->snapshot->slots; i++)
		free_cloud_slot(ram, &ram->snapshot->slot[i]);
	kvmfault_uffd_free(ram->uffd);
	kvmfault_vm_free(ram->vm);
	kvmfault_working_set_free(ram->set);
}

static void note_cloud_progress(void *data,
				const struct kvmfault_fill_progress *progress)
{
	struct cloud_ram *ram = data;

	if (!progress->replaying)
		atomic_store(&ram->replayed, true);
	if (progress->resident == progress->total)
		cloud_release_guard(&ram->guard);
}

bool cloud_fill_ram(struct cloud_ram *ram, bool all, uint64_t rate)
{
	struct kvmfault_memory *memory[CLOUD_MOST_SLOTS];
	const struct kvmfault_fill_options fill = {
		.size = sizeof(fill),
		.memories = memory,
		.memory_count = ram->snapshot->slots,
		.first = ram->set,
		.threads = 1,
		.rate = rate,
		.progress = note_cloud_progress,
		.data = ram,
	};
	unsigned int i;
	int err;

	if (!all && !ram->set)
		return true;
	ram->hold = !all;
	for (i = 0; i < ram->snapshot->slots; i++)
		memory[i] = ram->snapshot->slot[i].memory;
	err = kvmfault_fill_new(ram->vm, &fill, &ram->fill);
	if (err)
		complain_errno(err, "fill a VM's memory");
	return !err;
}

bool cloud_drain_ram(struct cloud_ram *ram)
{
	if (!ram->fill)
		return cloud_fill_ram(ram, true, 0);
	ram->hold = false;
	return !kvmfault_fill_set_rate(ram->fill, 0) &&
	       !kvmfault_fill_pause(ram->fill, false);
}

/* A request that is not answered makes its guest wait, one that is answered
 * with an error ends it. */
int cloud_ensure_range(struct cloud_ram *ram, uint64_t gpa, uint64_t length)
{
	struct timespec pause = { .tv_nsec = 1000000 };
	int64_t until = 0;
	int err;

	if (ram->hold && atomic_load(&ram->replayed)) {
		ram->hold = false;
		kvmfault_fill_pause(ram->fill, true);
	}
	while ((err = kvmfault_ensure(ram->vm, 0, gpa, length, false)) &&
	       err != -ENXIO && err != -EINVAL) {
		if (err == -EINTR)
			continue;
		if (!until)
			until = serve_now() + PATIENCE_MS;
		if (serve_now() >= until)
			break;
		nanosleep(&pause, NULL);
		if (pause.tv_nsec < 500000000)
			pause.tv_nsec *= 2;
	}
	return err;
}

uint64_t cloud_count_missing(const struct cloud_ram *ram)
{
	uint64_t missing = 0;
	unsigned int i;

	for (i = 0; i < ram->snapshot->slots; i++) {
		const struct cloud_slot *slot = &ram->snapshot->slot[i];
		struct kvmfault_memory_counts counts = {
			.size = sizeof(counts)
		};

		kvmfault_memory_count(slot->memory, 0, slot->size, &counts);
		missing += slot->size - counts.present * slot->page_size;
	}
	return missing;
}

/* Cloud Hypervisor may be just about to map a page that it was sent. If it
 * finds that page gone, it closes its userfaultfd, and absent pages of the
 * other memfds read as zeros. So where there are several, it is first given the
 * time to come back with its next request. */
static void wait_for_cloud_request(const struct cloud_ram *ram, int faults)
{
	struct pollfd waits = { .fd = faults, .events = POLLIN };
	unsigned int i, memfds = 0;

	for (i = 0; i < ram->snapshot->slots; i++)
		memfds += ram->snapshot->slot[i].group == i;
	if (memfds > 1)
		poll(&waits, 1, QUIET_MS);
}

int cloud_empty_memfds(const struct cloud_ram *ram, int faults)
{
	unsigned int i;
	int err = 0;

	wait_for_cloud_request(ram, faults);
	for (i = 0; i < ram->snapshot->slots; i++)
		if (ram->snapshot->slot[i].group == i &&
		    ftruncate(ram->snapshot->slot[i].memfd, 0))
			err = -errno;
	return err;
}

void cloud_cut_off_ram(const struct cloud_ram *ram, int faults)
{
	int err = cloud_count_missing(ram) ? cloud_empty_memfds(ram, faults) :
					     0;

	if (err)
		complain_errno(err, "take a VM's memory away");
}
