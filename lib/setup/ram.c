/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Set-up: a memory in one call. In: a file, or the size of one that is to be
 * made. Out: a memory with two mappings, one for the memslots and one for the
 * VMM itself. A VMM could make all these calls by itself, and the mappings
 * belong to it: a thread that sleeps in KVM_RUN keeps a memslot from going, and
 * is woken when the memory goes, so the mappings have to outlive both.
 */

#include <linux/memfd.h>
#include <sys/mman.h>

#include "setup.h"

/* Only pages larger than the host's need a hugetlb file. */
static int ram_make_file(struct kvmfault_vm *vm,
			 const struct kvmfault_memory_options *options)
{
	uint64_t size = options->page_size;
	unsigned int flags = 0;
	int fd, other;

	if (size & (size - 1))
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_memory_options.page_size: %#llx is not a power of two",
			(unsigned long long)size);
	if (size && options->length & (size - 1))
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_memory_options.length: %#llx is not a multiple of the page size, %#llx",
			(unsigned long long)options->length,
			(unsigned long long)size);
	if (size > kvmfault__sys_page_size())
		flags = MFD_HUGETLB | (unsigned int)__builtin_ctzll(size) <<
				      MFD_HUGE_SHIFT;
	fd = kvmfault__sys_memfd("guest memory", flags,
				 (off_t)options->length);
	if (flags && (fd == -ENODEV || fd == -EINVAL))
		return kvmfault__refuse(vm, -EOPNOTSUPP,
			"kvmfault_memory_options.page_size: this kernel makes no memfd with pages of %#llx bytes: choose a size that the kernel supports",
			(unsigned long long)size);
	if (fd)
		return fd;
	/* In the options a descriptor of 0 means none, so this needs
	 * another. */
	other = kvmfault__sys_dup(fd);
	kvmfault__sys_close(fd);
	return other;
}

static int ram_map_file(const struct kvmfault_memory_options *options,
			void **address)
{
	int err = kvmfault__sys_mmap(address, options->length,
				     PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_NORESERVE, options->fd,
				     (off_t)options->fd_offset);

	if (err)
		*address = NULL;
	else
		/* This is advice: a kernel without transparent huge pages
		 * refuses it. */
		kvmfault__sys_madvise(*address, options->length,
				      MADV_NOHUGEPAGE);
	return err;
}

struct made {
	void *at[2];
	int fd;		/* made by this call, or 0 */
};

static void ram_undo(const struct made *made, uint64_t length)
{
	size_t i;

	for (i = 0; i < 2; i++)
		if (made->at[i])
			kvmfault__sys_munmap(made->at[i], length);
	if (made->fd > 0)
		kvmfault__sys_close(made->fd);
}

static int ram_make(struct kvmfault_vm *vm,
		    struct kvmfault_memory_options *options, struct made *made)
{
	int err;

	if (options->fd <= 0) {
		options->fd_offset = 0;
		made->fd = ram_make_file(vm, options);
		if (made->fd < 0)
			return made->fd;
		options->fd = made->fd;
	}
	err = ram_map_file(options, &made->at[0]);
	if (!err)
		err = ram_map_file(options, &made->at[1]);
	options->host = made->at[0];
	return err;
}

static int ram_adopt(struct kvmfault_vm *vm,
		     const struct kvmfault_memory_options *options,
		     const struct made *made, struct kvmfault_memory **memory)
{
	struct kvmfault_mapping_options own = {
		.size = sizeof(own),
		.host = (uintptr_t)made->at[1],
		.inherited = options->inherited,
	};
	struct kvmfault_mapping *mapping;
	int err;

	err = kvmfault_memory_adopt(vm, options, memory);
	if (err)
		return err;
	err = kvmfault_mapping_add(*memory, &own, &mapping);
	if (err) {
		/* No region shows the memory yet, so this does not fail. */
		kvmfault_memory_free(*memory);
		*memory = NULL;
		return err;
	}
	return 0;
}

KVMFAULT__EXPORT
int kvmfault_memory_alloc(struct kvmfault_vm *vm,
			   const struct kvmfault_memory_options *options,
			   struct kvmfault_memory_maps *maps,
			   struct kvmfault_memory **memory)
{
	struct kvmfault_memory_maps ours = { .size = sizeof(ours) };
	struct kvmfault_memory_options asked;
	struct made made = { 0 };
	int err;

	if (!memory)
		return kvmfault__no_place(vm, "kvmfault_memory_alloc");
	*memory = NULL;
	err = kvmfault__options_in(vm, "kvmfault_memory_options", &asked,
				   sizeof(asked), options);
	if (err)
		return err;
	if (!vm)
		return -EINVAL;
	err = kvmfault__options_to(vm, "kvmfault_memory_maps", maps);
	if (err)
		return err;
	if (asked.host || !asked.length)
		return kvmfault__refuse(vm, -EINVAL, asked.host ?
			"kvmfault_memory_options.host: kvmfault_memory_alloc() maps the memory itself: leave host NULL, or use kvmfault_memory_adopt()" :
			"kvmfault_memory_options.length: the member is not set");
	err = ram_make(vm, &asked, &made);
	if (!err)
		err = ram_adopt(vm, &asked, &made, memory);
	if (err) {
		ram_undo(&made, asked.length);
		return err;
	}
	ours.memslots = made.at[0];
	ours.own = made.at[1];
	ours.fd = asked.fd;
	return kvmfault__options_out(maps, &ours, sizeof(ours));
}
