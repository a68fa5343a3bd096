/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The boot loader. In: a bzImage, an initrd, a command line. Out: all of RAM,
 * and where to begin, by the 64-bit boot protocol (Linux,
 * Documentation/arch/x86/boot.rst). The machine has no firmware: nobody but the
 * zero page tells Linux of it.
 */

#include <asm/bootparam.h>
#include <err.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image.h"

#define PAGE 4096UL
#define ENTRIES 512
#define TABLES 0x1000UL			/* three pages of them */
#define ZERO_PAGE 0x4000UL
#define COMMAND_LINE 0x5000UL
#define BASE_END 0xa0000UL		/* here begin VGA and ROMs */
#define KERNEL 0x100000UL
#define ENTRY 0x200UL			/* from there, in 64-bit mode */

#define PRESENT_WRITABLE 3UL
#define LARGE (1UL << 7)		/* a page of 2 MiB */

#define SECTOR 512UL
#define MAGIC 0x53726448		/* "HdrS" */
#define VERSION 0x20c			/* from here on there is that entry */
#define E820_RAM 1
#define UNKNOWN_LOADER 0xff
#define FILLER 0xa5

struct file {
	const unsigned char *bytes;
	size_t length;
};

static struct file map(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat stat;
	void *at;

	if (fd < 0 || fstat(fd, &stat))
		err(1, "%s", path);
	at = mmap(NULL, (size_t)stat.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (at == MAP_FAILED)
		err(1, "%s", path);
	close(fd);
	return (struct file){ at, (size_t)stat.st_size };
}

/* Addresses are those of RAM, for the first GiB. */
static void put_tables(unsigned char *ram)
{
	uint64_t *table = (uint64_t *)(ram + TABLES);
	size_t i;

	memset(table, 0, 2 * PAGE);
	table[0] = (TABLES + PAGE) | PRESENT_WRITABLE;
	table[ENTRIES] = (TABLES + 2 * PAGE) | PRESENT_WRITABLE;
	for (i = 0; i < ENTRIES; i++)
		table[2 * ENTRIES + i] = i << 21 | LARGE | PRESENT_WRITABLE;
}

static void put_kernel(unsigned char *ram, size_t length, const char *path,
		       struct setup_header *header)
{
	struct file file = map(path);
	size_t skip;

	if (file.length < PAGE)
		errx(1, "%s is no kernel", path);
	memcpy(header, file.bytes + offsetof(struct boot_params, hdr),
	       sizeof(*header));
	skip = (header->setup_sects + 1UL) * SECTOR;
	if (header->header != MAGIC || header->version < VERSION ||
	    !(header->xloadflags & XLF_KERNEL_64) || skip > file.length)
		errx(1, "%s is no 64-bit kernel", path);
	/* It unpacks itself behind that. */
	if (KERNEL + header->init_size > length)
		errx(1, "%s does not fit", path);
	memcpy(ram + KERNEL, file.bytes + skip, file.length - skip);
}

/* At the end of RAM, where the kernel does not unpack itself to. */
static void put_initrd(unsigned char *ram, size_t length, const char *path,
		       struct setup_header *header)
{
	struct file file = map(path);
	size_t at = (length - file.length) / PAGE * PAGE;

	if (file.length > length || at < KERNEL + header->init_size)
		errx(1, "%s does not fit", path);
	memcpy(ram + at, file.bytes, file.length);
	header->ramdisk_image = (uint32_t)at;
	header->ramdisk_size = (uint32_t)file.length;
}

unsigned char *image_new(size_t length, const char *kernel, const char *initrd,
			 const char *command_line, struct entry *entry)
{
	unsigned char *ram = malloc(length);
	struct boot_params *params;

	if (!ram)
		err(1, "an image of RAM");
	memset(ram, FILLER, length);
	params = (struct boot_params *)(ram + ZERO_PAGE);
	memset(params, 0, sizeof(*params));
	put_kernel(ram, length, kernel, &params->hdr);
	put_initrd(ram, length, initrd, &params->hdr);
	put_tables(ram);
	strcpy((char *)ram + COMMAND_LINE, command_line);
	params->hdr.cmd_line_ptr = COMMAND_LINE;
	params->hdr.type_of_loader = UNKNOWN_LOADER;
	params->e820_table[0] =
		(struct boot_e820_entry){ 0, BASE_END, E820_RAM };
	params->e820_table[1] = (struct boot_e820_entry){
		KERNEL, length - KERNEL, E820_RAM };
	params->e820_entries = 2;
	*entry = (struct entry){ KERNEL + ENTRY, ZERO_PAGE, TABLES };
	return ram;
}
