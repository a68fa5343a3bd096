/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The VMM's sources and its resolver: what the library calls for a page.
 */

#ifndef KVMFAULT_SIM_SOURCES_H
#define KVMFAULT_SIM_SOURCES_H

#include "world.h"

/* Around each callback: no lock of the library's is held, on whose thread it
 * comes, and how long the call was not the library's own. */
/* The image is cut off in the middle of a page; or it is as long as it was. */
void sources_cut(bool off);
void callback_begin(const char *what);
void callback_end(void);

void source_make(struct sim_memory *memory, struct kvmfault_source *source);
/* These pages' data is lost. */
void source_lose(struct sim_memory *memory, unsigned int page,
		 unsigned int count);
/* Nobody has that page any more. */
bool source_lacks(const struct sim_memory *memory, unsigned int page);
uint64_t source_word(const struct sim_memory *memory, unsigned int page,
		     unsigned int word);
/* Of an image's file, by lseek(): where it has data from there on, or a hole. */
off_t source_seek(const struct open *open, uint64_t from, bool data);
/* Is there an instruction? */
bool source_has_code(const struct sim_memory *memory, unsigned int page);
/* The bytes that a source has of a memory, for who lays something out there; and
 * a page that has that byte everywhere but in its words, and CODE. */
#define SOURCE_CODE 64			/* where FXSAVE stands in each page */
char *source_image(unsigned int memory);
void source_fill_page(uint64_t gpa, int byte);
int resolver_make(void);
void sources_reset(void);
void sources_heal(void);
void sources_end(void);

#endif
