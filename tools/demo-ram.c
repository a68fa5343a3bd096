/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Scenario "ram": RAM is an empty memfd whose pages come from the image, each
 * when a vCPU touches it first. How that is delivered is the library's to choose:
 * nothing here knows of it.
 */

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvmfault-experimental.h"
#include "demo.h"
#include "tool.h"

#define SLOT 1
#define SERVICE_THREADS 2

static struct {
	struct kvmfault_memory_maps maps;
	struct kvmfault_service *service;
	bool region;
} ram;

/* As the delivery mode needs it. */
static int set_slot(struct demo *demo)
{
	struct kvmfault_memslot memslot = { .size = sizeof(memslot) };
	int err = kvmfault_region_memslot(demo->vm, 0, DEMO_RAM, &memslot);

	if (err)
		return err;
	if (!memslot.flags)
		return machine_set_slot(demo->machine, SLOT, 0, DEMO_RAM,
					demo->bytes, ram.maps.memslots);
	return machine_set_userfault_slot(demo->machine, SLOT, memslot.flags,
					  DEMO_RAM, demo->bytes,
					  ram.maps.memslots,
					  memslot.userfault_bitmap);
}

static int add(struct demo *demo)
{
	struct kvmfault_source source;
	struct kvmfault_memory_options memory = {
		.size = sizeof(memory),
		.length = demo->bytes,
		.source = &source,
	};
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = DEMO_RAM,
		.length = demo->bytes,
	};
	struct kvmfault_service_options service = {
		.size = sizeof(service),
		.threads = SERVICE_THREADS,
	};
	int err;

	image_source(&demo->image, &source);
	ram.maps.size = sizeof(ram.maps);
	err = kvmfault_memory_alloc(demo->vm, &memory, &ram.maps, &demo->memory);
	if (err)
		return err;
	demo->ram = ram.maps.own;
	region.memory = demo->memory;
	err = kvmfault_region_add(demo->vm, &region);
	if (err)
		return err;
	ram.region = true;
	err = set_slot(demo);
	if (err)
		return err;
	return kvmfault_service_new(demo->vm, &service, &ram.service);
}

/* Where the walk is after so many steps. Both are below 2^32 pages. */
static uint64_t position(const struct machine_scan *walk, uint64_t steps)
{
	return steps * walk->stride % walk->pages;
}

static int set_up(struct demo *demo)
{
	uint64_t first = 0, pages;
	unsigned int i;
	int err;

	err = add(demo);
	if (err)
		return err;
	for (i = 0; i < demo->vcpus; i++) {
		pages = demo->image.pages / demo->vcpus +
			(i < demo->image.pages % demo->vcpus);
		demo_job(&demo->vcpu[i], 0, demo->image.pages);
		/* One walk over all pages, cut into pieces: neighbours in
		 * memory belong to different vCPUs. */
		demo->vcpu[i].job->first = position(demo->vcpu[i].job, first);
		demo->vcpu[i].job->count = pages;
		first += pages;
	}
	return 0;
}

static void release(struct demo *demo)
{
	kvmfault_service_free(ram.service);
	ram.service = NULL;
	if (ram.region)
		kvmfault_region_remove(demo->vm, 0, DEMO_RAM);
	ram.region = false;
	restore_drop(demo);
	kvmfault_memory_free(demo->memory);
	demo->memory = NULL;
}

static int compare(struct demo *demo, uint64_t *checksum)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };
	int64_t wrong;
	int err;

	/* When its threads are gone, they have counted everything. */
	err = kvmfault_service_free(ram.service);
	ram.service = NULL;
	if (!err)
		err = kvmfault_vm_stats(demo->vm, &stats);
	if (err)
		return err;
	demo->fetched = stats.fetched;
	demo->zero = stats.holes;
	wrong = image_compare(&demo->image, demo->ram, 0, demo->image.pages, 0,
			      checksum);
	if (wrong < 0)
		return (int)wrong;
	demo->wrong_pages = (uint64_t)wrong;
	return 0;
}

static void take_down(struct demo *demo)
{
	release(demo);
	if (!demo->ram)
		return;
	machine_set_slot(demo->machine, SLOT, 0, DEMO_RAM, 0, NULL);
	munmap(ram.maps.memslots, demo->bytes);
	munmap(ram.maps.own, demo->bytes);
	close(ram.maps.fd);
}

const struct demo_scenario demo_ram = {
	.name = "ram",
	.set_up = set_up,
	.release = release,
	.compare = compare,
	.take_down = take_down,
};
