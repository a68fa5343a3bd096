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
	uint64_t chunk_bytes;
	unsigned int chunks;
	int *fd;		/* of each chunk, 0: closed */
} ram;

static uint64_t gpa_of(unsigned int chunk)
{
	return DEMO_RAM + chunk * ram.chunk_bytes;
}

static uint32_t slot_of(unsigned int chunk)
{
	return chunk + 1;
}

static void *host_of(struct demo *demo, unsigned int chunk)
{
	return (char *)demo->ram + chunk * ram.chunk_bytes;
}

static int show(struct demo *demo, unsigned int chunk, int fd)
{
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = gpa_of(chunk),
		.length = ram.chunk_bytes,
		.slot = slot_of(chunk),
		.guest_memfd = fd,
	};
	int err;

	err = machine_set_guest_memfd_slot(demo->machine, slot_of(chunk),
					   gpa_of(chunk), ram.chunk_bytes,
					   host_of(demo, chunk), fd, 0);
	return err ? err : kvmfault_region_add(demo->vm, &region);
}

static int create(struct demo *demo)
{
	return machine_create_guest_memfd(demo->machine, ram.chunk_bytes,
					  MACHINE_GUEST_MEMFD_MMAP |
					  MACHINE_GUEST_MEMFD_INIT_SHARED);
}

static int fill(struct demo *demo, unsigned int chunk, int fd)
{
	void *to = mmap(host_of(demo, chunk), ram.chunk_bytes,
			PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);

	if (to == MAP_FAILED)
		return -errno;
	return image_read(&demo->image, chunk * ram.chunk_bytes, to,
			  ram.chunk_bytes);
}

/* On the thread of the vCPU that the chunk belongs to: no other runs into the
 * moment in which there is no slot. */
static int renew(struct demo *demo, unsigned int chunk)
{
	int err, fd = create(demo);

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
	return KVMFAULT_RESOLVED;
}

static int resolve(void *data, struct kvmfault_request *request)
{
	struct demo *demo = data;
	unsigned int chunk;

	/* No guest_memfd of ours that was lost: another's business. */
	if (request->fault->entrance != KVMFAULT_ENTRANCE_EXIT ||
	    !request->region || request->memory)
		return KVMFAULT_DECLINED;
	chunk = request->region->slot - 1;
	if (ram.fd[chunk])
		return KVMFAULT_DECLINED;
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
	ram.chunk_bytes = demo->bytes / ram.chunks & ~(DEMO_PAGE - 1);
	if (!ram.chunk_bytes || ram.chunk_bytes * ram.chunks != demo->bytes) {
		complain("guest-memfd cuts the memory into %u chunks of whole pages: give it a --memory that can be",
			 ram.chunks);
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
		fd = create(demo);
		if (fd < 0) {
			complain("this kernel's VMs have no guest_memfd that can be mapped (Linux 6.18 has)");
			return fd;
		}
		err = show(demo, i, fd);
		close(fd);	/* its last descriptor: the pages are gone */
	}
	for (i = 0; i < demo->vcpus && !err; i++)
		demo_job(&demo->vcpu[i], i * CHUNKS_EACH *
			 (ram.chunk_bytes / DEMO_PAGE),
			 CHUNKS_EACH * (ram.chunk_bytes / DEMO_PAGE));
	return err;
}

static void release(struct demo *demo)
{
	(void)demo;	/* nobody sleeps: all faults come as exits */
}

static int compare(struct demo *demo, uint64_t *checksum)
{
	uint64_t each = CHUNKS_EACH * (ram.chunk_bytes / DEMO_PAGE);
	unsigned int i;
	int64_t wrong;

	for (i = 0; i < ram.chunks; i++) {
		if (!ram.fd[i])
			return -ENODATA;
		demo->fetched += ram.chunk_bytes / DEMO_PAGE;
	}
	for (i = 0; i < demo->vcpus; i++) {
		wrong = image_compare(&demo->image, demo->ram, i * each, each,
				      i * each, checksum);
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
