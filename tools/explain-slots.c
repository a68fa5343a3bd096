/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* kvmfault explain: memslots. In: --slot, or else the mappings and the command
 * line of the process. Out: the look's slots. KVM shows slots nowhere, so a
 * layout is that which QEMU or Firecracker is known to make, and of another VMM
 * the mappings that look like RAM have no guest-physical address. */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "explain.h"
#include "tool.h"

#define GIB (UINT64_C(1) << 30)
#define SMALLEST_ANONYMOUS (UINT64_C(16) << 20)
#define SMALLEST_FILE (UINT64_C(1) << 20)

bool parse_slot(const char *text, struct explain_slot *slot)
{
	uint64_t *part[] = { &slot->gpa, &slot->hva };
	char *end;
	int i;

	for (i = 0; i < 2; i++) {
		errno = 0;
		*part[i] = strtoull(text, &end, 0);
		if (end == text || *text == '-' || *end != ':' || errno)
			return false;
		text = end + 1;
	}
	errno = 0;
	slot->length = strtoull(text, &end, 0);
	if (*end && !parse_size(text, &slot->length))
		return false;
	slot->from = "--slot";
	return end != text && *text != '-' && !errno && slot->length &&
	       slot->gpa + slot->length > slot->gpa &&
	       slot->hva + slot->length > slot->hva;
}

static void add_slot(struct explain_look *look, uint64_t gpa, uint64_t hva,
		     uint64_t length, const char *from)
{
	struct explain_slot *slot;

	look->slots = grow_list(look->slots, look->slot_count,
				sizeof(*look->slots));
	slot = &look->slots[look->slot_count++];
	*slot = (struct explain_slot){ gpa, hva, length, from };
}

uint64_t slot_hva(const struct explain_look *look, uint64_t gpa)
{
	const struct explain_slot *s = look->slots, *end = s + look->slot_count;

	for (; s < end; s++)
		if (s->gpa != NO_ADDRESS && gpa >= s->gpa &&
		    gpa - s->gpa < s->length)
			return s->hva + (gpa - s->gpa);
	return NO_ADDRESS;
}

uint64_t slot_gpa(const struct explain_look *look, uint64_t hva)
{
	const struct explain_slot *s = look->slots, *end = s + look->slot_count;

	for (; s < end; s++)
		if (s->gpa != NO_ADDRESS && hva >= s->hva &&
		    hva - s->hva < s->length)
			return s->gpa + (hva - s->hva);
	return NO_ADDRESS;
}

/* ---- QEMU ---- */

struct command_line {
	char *text;
	size_t length;
};

static struct command_line read_command(struct explain_look *look)
{
	struct command_line line = { 0 };
	char path[64];
	int fd;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/cmdline", look->pid);
	fd = open_told(look, path, O_RDONLY, right_to_inspect);
	line.text = fd < 0 ? NULL : calloc(1, 65536);
	while (line.text && line.length < 65535 &&
	       (n = read(fd, line.text + line.length,
			 65535 - line.length)) > 0)
		line.length += n;
	if (fd >= 0)
		close(fd);
	return line;
}

/* The argument behind the option, or NULL. */
static const char *find_option(const struct command_line *line,
			       const char *option, const char *other)
{
	const char *at = line->text, *end = at + line->length;

	for (; at && at < end; at += strlen(at) + 1)
		if ((!strcmp(at, option) || !strcmp(at, other)) &&
		    at + strlen(at) + 1 < end)
			return at + strlen(at) + 1;
	return NULL;
}

/* "size=4G,slots=2", "4G", "512": a number alone is MiB. */
static uint64_t parse_memory(const char *text)
{
	char word[32];
	uint64_t size;

	if (!strncmp(text, "size=", 5))
		text += 5;
	snprintf(word, sizeof(word), "%.*s", (int)strcspn(text, ","), text);
	if (!parse_size(word, &size))
		return 0;
	return strspn(word, "0123456789") == strlen(word) ? size << 20 : size;
}

static const struct explain_mapping *
find_sized(const struct explain_look *look, uint64_t length)
{
	size_t i;

	for (i = 0; i < look->mapping_count; i++) {
		const struct explain_mapping *m = &look->mappings[i];

		if (m->end - m->start == length && m->readable && m->writable)
			return m;
	}
	return NULL;
}

/* The part of RAM below 4 GiB; 0: of a machine that is not known. */
static uint64_t qemu_low_part(const char *machine, uint64_t memory)
{
	if (strstr(machine, "q35") || strstr(machine, "microvm"))
		return memory >= 0xb0000000 ? 2 * GIB : memory;
	if (!strncmp(machine, "pc", 2))
		return memory >= 0xe0000000 ? 3 * GIB : memory;
	return 0;
}

static void guess_qemu(struct explain_look *look)
{
	static const char from[] = "QEMU's layout";
	struct command_line line = read_command(look);
	const char *size = find_option(&line, "-m", "--m");
	const char *machine = find_option(&line, "-machine", "-M");
	uint64_t memory = size ? parse_memory(size) : 128 << 20, low;
	const struct explain_mapping *ram = find_sized(look, memory);
	bool x86 = strstr(look->program, "x86_64") ||
		   strstr(look->program, "i386") ||
		   strstr(look->program, "kvm");

	if (!machine)
		machine = x86 ? "pc" : "";
	if (!strncmp(machine, "type=", 5))
		machine += 5;
	low = x86 ? qemu_low_part(machine, memory) : 0;
	if (ram && low) {
		add_slot(look, 0, ram->start, low, from);
		if (low < memory)
			add_slot(look, 4 * GIB, ram->start + low, memory - low,
				 from);
	} else if (ram && strstr(look->program, "aarch64") &&
		   !strncmp(machine, "virt", 4)) {
		add_slot(look, GIB, ram->start, memory, from);
	}
	free(line.text);
}

/* ---- Firecracker ---- */

/* Its RAM has no reservation, which nothing else that it maps lacks. */
static void guess_firecracker(struct explain_look *look)
{
	static const char from[] = "Firecracker's layout";
	struct utsname machine;
	const struct explain_mapping *low = NULL, *high = NULL;
	size_t i, count = 0;

	for (i = 0; i < look->mapping_count; i++) {
		const struct explain_mapping *m = &look->mappings[i];
		uint64_t length = m->end - m->start;

		if (!has_flag(m, "nr") || !m->writable || length < GIB / 1024)
			continue;
		count++;
		if (length == 0xc0000000 || length == 0xd0000000)
			low = m;
		else
			high = m;
	}
	uname(&machine);
	if (count == 1 && !low)
		add_slot(look, strcmp(machine.machine, "aarch64") ? 0 : 2 * GIB,
			 high->start, high->end - high->start, from);
	else if (low && count <= 2)
		add_slot(look, 0, low->start, low->end - low->start, from);
	if (low && count == 2 && high)
		add_slot(look, 4 * GIB, high->start, high->end - high->start,
			 from);
}

/* ---- any ---- */

static bool looks_like_ram(const struct explain_mapping *m)
{
	uint64_t length = m->end - m->start;

	if (!m->readable || !m->writable || m->executable ||
	    m->name[0] == '[')
		return false;
	if (is_registered(m) || has_flag(m, "ht"))
		return true;
	return length >= (m->shared ? SMALLEST_FILE : SMALLEST_ANONYMOUS);
}

void guess_slots(struct explain_look *look)
{
	size_t i;

	if (look->vmm && !strcmp(look->vmm, "QEMU"))
		guess_qemu(look);
	if (look->vmm && !strcmp(look->vmm, "Firecracker"))
		guess_firecracker(look);
	if (look->slot_count)
		return;
	for (i = 0; i < look->mapping_count; i++) {
		const struct explain_mapping *m = &look->mappings[i];

		if (looks_like_ram(m))
			add_slot(look, NO_ADDRESS, m->start, m->end - m->start,
				 "a mapping that looks like RAM");
	}
}
