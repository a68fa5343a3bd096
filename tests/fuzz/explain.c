/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The files of /proc that kvmfault explain reads. Input: which one, then its
 * text. No text makes it read past its end, and what is taken lies in order: no
 * mapping is empty, no text is longer than its room.
 */

#include "fuzz.h"
#include "tools/explain.h"
#include "tools/tool.h"

enum { MAPS, SMAPS, FDINFO, SLOT, FILES };

void complain(const char *format, ...)
{
	(void)format;
	abort();		/* only for want of memory */
}

/* The rest of the input, with an end, and exactly as long. */
static char *take_text(struct input *in)
{
	char *text = malloc(in->left + 1);

	MUST(text);
	text[in->left] = '\0';
	next(in, text, in->left);
	return text;
}

static void check_mappings(const struct explain_look *look)
{
	size_t i;

	for (i = 0; i < look->mapping_count; i++) {
		const struct explain_mapping *m = &look->mappings[i];

		MUST(m->start < m->end);
		MUST(memchr(m->name, '\0', sizeof(m->name)));
		MUST(memchr(m->flags, '\0', sizeof(m->flags)));
		MUST(find_mapping(look, m->start));
		has_flag(m, "um");
	}
}

static void check_waiters(const char *text)
{
	struct explain_uffd uffd = { 0 };

	MUST(parse_waiters(text, &uffd) == uffd.known);
	MUST(!uffd.known || (strstr(text, "API:") && strstr(text, "total:")));
}

static void check_slot(const char *text)
{
	struct explain_slot slot;

	if (!parse_slot(text, &slot))
		return;
	MUST(slot.length && slot.gpa + slot.length > slot.gpa &&
	     slot.hva + slot.length > slot.hva);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const char seed[] = "1000-2000 rw-p 0 0:0 0\n"
				   "2000-a000 r--s 1000 fe:1 7   /a b\n";
	struct explain_look look = { 0 };
	struct input in = { data, size };
	unsigned int which = next8(&in) % FILES;
	char *text = take_text(&in), known[sizeof(seed)];

	memcpy(known, seed, sizeof(seed));
	if (which == MAPS)
		parse_mappings(&look, text);
	if (which == SMAPS) {
		parse_mappings(&look, known);
		parse_flags(&look, text);
	}
	if (which == FDINFO)
		check_waiters(text);
	if (which == SLOT)
		check_slot(text);
	check_mappings(&look);
	free(look.mappings);
	free(text);
	return 0;
}
