/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The RAM of an x86 machine at the moment when a boot loader that has loaded
 * Linux jumps there. What the loader has not written is no zero.
 */

#ifndef KVMFAULT_TESTS_LINUX_IMAGE_H
#define KVMFAULT_TESTS_LINUX_IMAGE_H

#include <stddef.h>
#include <stdint.h>

/* Where it begins, in 64-bit mode with segments of 4 GiB. */
struct entry {
	uint64_t rip;
	uint64_t rsi;
	uint64_t cr3;
};

/* length: of RAM, from address 0. Ends the program if the files are not what
 * they should be. */
unsigned char *image_new(size_t length, const char *kernel, const char *initrd,
			 const char *command_line, struct entry *entry);

#endif
