/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Scenario "guest-memfd": KVM's annotated exit, for real. RAM is made of
 * chunks, each a slot with a guest_memfd that was closed: the first touch of a
 * chunk exits with KVM_EXIT_MEMORY_FAULT. A resolver of the demo's own gives
 * the chunk a fresh guest_memfd, filled from the image, and the guest goes on.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "demo.h"
#include "tool.h"

#define CHUNKS_EACH 2	/* of each vCPU, so that there is more than one exit */

static struct {
	uint64_t pages;
	unsigned int chunks;
	int *fd;		/* of each chunk, 0: closed */
} ram;

/* Chunks are as alike as whole pages allow. */
static uint64_t first_page(unsigned int chunk)
{
	return ram.pages * chunk / ram.chunks;
}

static uint64_t offset_of(unsigned int chunk)
{
	return first_page(chunk) * DEMO_PAGE;
}

static uint64_t bytes_of(unsigned int chunk)
{
	return offset_of(chunk + 1) - offset_of(chunk);
}

static uint64_t gpa_of(unsigned int chunk)
{
	return DEMO_RAM + offset_of(chunk);
}

/* Regions begin where chunks do. */
static unsigned int chunk_at(uint64_t gpa)
{
	unsigned int chunk = 0;

	while (gpa_of(chunk) != gpa)
		chunk++;
	return chunk;
}

static uint32_t slot_of(unsigned int chunk)
{
	return chunk + 1;
}

static void *host_of(struct demo *demo, unsigned int chunk)
{
	return (char *)demo->ram + offset_of(chunk);
}

static int show(struct demo *demo, unsigned int chunk, int fd)
{
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = gpa_of(chunk),
		.length = bytes_of(chunk),
		.guest_memfd = fd,
	};
	int err;

	err = machine_set_guest_memfd_slot(demo->machine, slot_of(chunk),
					   gpa_of(chunk), bytes_of(chunk),
					   host_of(demo, chunk), fd, 0);
	return err ? err : kvmfault_region_add(demo->vm, &region);
}

static int create(struct demo *demo, unsigned int chunk)
{
	return machine_create_guest_memfd(demo->machine, bytes_of(chunk),
					  MACHINE_GUEST_MEMFD_MMAP |
					  MACHINE_GUEST_MEMFD_INIT_SHARED);
}

static int fill(struct demo *demo, unsigned int chunk, int fd)
{
	void *to = mmap(host_of(demo, chunk), bytes_of(chunk),
			PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);

	if (to == MAP_FAILED)
		return -errno;
	return image_read(&demo->image, offset_of(chunk), to, bytes_of(chunk));
}

/* On the thread of the vCPU that the chunk belongs to: no other runs into the
 * moment in which there is no slot. */
static int renew(struct demo *demo, unsigned int chunk)
{
	int err, fd = create(demo, chunk);

	if (fd < 0)
		return fd;
	err = fill(demo, chunk, fd);
	if (!err)
		err = machine_set_guest_memfd_slot(demo->machine,
						   slot_of(chunk),
						   gpa_of(chunk), 0, NULL, fd,
						   0);
	if (!err)
		err = kvmfault_region_remove(demo->vm, 0, gpa_of(chunk));
	if (!err)
		err = show(demo, chunk, fd);
	if (err) {
		close(fd);
		return err;
	}
	ram.fd[chunk] = fd;
	return KVMFAULT_VERDICT_RESOLVED;
}

static int resolve(void *data, struct kvmfault_request *request)
{
	struct demo *demo = data;
	unsigned int chunk;

	/* No guest_memfd of ours that was lost: another's business. */
	if (request->fault->kind != KVMFAULT_KIND_EXIT ||
	    !request->region || request->memory)
		return KVMFAULT_VERDICT_DECLINED;
	chunk = chunk_at(request->region->gpa);
	if (ram.fd[chunk])
		return KVMFAULT_VERDICT_DECLINED;
	return renew(demo, chunk);
}

static int set_up(struct demo *demo)
{
	struct kvmfault_resolver resolver = {
		.size = sizeof(resolver),
		.name = "renew",
		.pages = 1U << KVMFAULT_PAGE_UNTRACKED,
		.resolve = resolve,
		.data = demo,
	};
	unsigned int i;
	int err, fd;

	demo->delivery = "exit";
	ram.chunks = demo->vcpus * CHUNKS_EACH;
	ram.pages = demo->image.pages;
	if (ram.pages < ram.chunks) {
		complain("guest-memfd needs %d pages for each vCPU",
			 CHUNKS_EACH);
		return -EINVAL;
	}
	ram.fd = calloc(ram.chunks, sizeof(*ram.fd));
	if (!ram.fd)
		return -ENOMEM;
	demo->ram = mmap(NULL, demo->bytes, PROT_NONE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (demo->ram == MAP_FAILED) {
		demo->ram = NULL;
		return -errno;
	}
	err = kvmfault_resolver_add(demo->vm, &resolver);
	for (i = 0; i < ram.chunks && !err; i++) {
		fd = create(demo, i);
		if (fd < 0) {
			complain("this kernel's VMs have no guest_memfd that can be mapped (Linux 6.18 has)");
			return fd;
		}
		err = show(demo, i, fd);
		close(fd);	/* its last descriptor: the pages are gone */
	}
	for (i = 0; i < demo->vcpus && !err; i++)
		demo_job(&demo->vcpu[i], first_page(i * CHUNKS_EACH),
			 first_page((i + 1) * CHUNKS_EACH) -
			 first_page(i * CHUNKS_EACH));
	return err;
}

static void release(struct demo *demo)
{
	(void)demo;	/* nobody sleeps: all faults come as exits */
}

static int compare(struct demo *demo, uint64_t *checksum)
{
	uint64_t first, end;
	unsigned int i;
	int64_t wrong;

	for (i = 0; i < ram.chunks; i++) {
		if (!ram.fd[i])
			return -ENODATA;
		demo->fetched += bytes_of(i) / DEMO_PAGE;
	}
	for (i = 0; i < demo->vcpus; i++) {
		first = first_page(i * CHUNKS_EACH);
		end = first_page((i + 1) * CHUNKS_EACH);
		wrong = image_compare(&demo->image, demo->ram, first,
				      end - first, first, checksum);
		if (wrong < 0)
			return (int)wrong;
		demo->wrong_pages += (uint64_t)wrong;
	}
	return 0;
}

static void take_down(struct demo *demo)
{
	unsigned int i;

	for (i = 0; demo->vm && i < ram.chunks; i++)
		kvmfault_region_remove(demo->vm, 0, gpa_of(i));
	for (i = 0; ram.fd && i < ram.chunks; i++)
		if (ram.fd[i])
			close(ram.fd[i]);
	free(ram.fd);
}

const struct demo_scenario demo_guest_memfd = {
	.name = "guest-memfd",
	.set_up = set_up,
	.release = release,
	.compare = compare,
	.take_down = take_down,
};
