/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * States in a file, and an owner that is killed. In: a memory, at any moment.
 * Out: what the next owner makes of the file and of the states, as they are at
 * that moment. All of that is copied at once, with no point in between, and so is
 * what each word may be just then. The next owner has to find a true state for
 * each page.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/core/bitmap.h"
#include "lib/setup/setup.h"
#include "sources.h"
#include "states.h"

#define HEADER 4096U			/* bytes before the words of states */
#define TRIES 4U

/* What the owner has left. */
struct left {
	unsigned int pages, unit;	/* of the memory */
	struct file *file;
	int fd, states_fd;
	bool touched[MEMORY_PAGES];	/* some page table had it */
	bool came[MEMORY_PAGES];
	enum kvmfault__state state[MEMORY_PAGES];
	struct word word[MEMORY_PAGES][WORDS];
	uint64_t source[MEMORY_PAGES][WORDS];
	bool has_settled;
	struct kvmfault_memory *memory;	/* the next owner's */
};

/* ---- the files ---- */

#define FILES 256U

static struct {
	char *bytes;			/* STATES_MOST */
	bool used;
} file[FILES];

void states_reset(void)
{
	unsigned int i;

	for (i = 0; i < FILES; i++)
		file[i].used = false;
}

static char *new_bytes(void)
{
	unsigned int i = 0;

	while (i < FILES && file[i].used)
		i++;
	if (i == FILES)
		sim_fail("the simulator: no more files of states", "%u", FILES);
	if (!file[i].bytes &&
	    posix_memalign((void **)&file[i].bytes, PAGE, STATES_MOST))
		abort();
	file[i].used = true;
	memset(file[i].bytes, 0, STATES_MOST);
	return file[i].bytes;
}

static int open_states(void)
{
	struct open *open;
	int fd = fd_new(KIND_STATES, false, &open);

	open->states = new_bytes();
	return fd;
}

static void close_states(int fd)
{
	unsigned int i = 0;

	while (file[i].bytes != fd_open(fd)->states)
		i++;
	file[i].used = false;
	fd_close(fd, false);
}

void states_make(struct sim_memory *memory)
{
	if (option(OPT_states) && memory->file)
		memory->states_fd = open_states();
}

void states_empty(struct sim_memory *memory)
{
	struct open *open = memory->states_fd ? fd_open(memory->states_fd) : NULL;

	if (!open)
		return;
	memset(open->states, 0, STATES_MOST);
	memset(memory->came, 0, sizeof(memory->came));
	open->length = 0;
}

static const struct kvmfault__states_file *header_of(int fd)
{
	return (const void *)fd_open(fd)->states;
}

bool states_say_settled(const struct sim_memory *memory)
{
	return memory->states_fd && header_of(memory->states_fd)->settled;
}

/* ---- the moment ---- */

static enum kvmfault__state state_at(int fd, unsigned int page)
{
	uint64_t word;

	memcpy(&word, fd_open(fd)->states + HEADER +
	       page / KVMFAULT__PAGES_PER_WORD * sizeof(word), sizeof(word));
	return word >> kvmfault__page_shift(page) & KVMFAULT__PAGE_STATE;
}

static bool touches(struct mm *mm, uint64_t at, unsigned int page)
{
	unsigned int i;
	struct map *map = at ? map_at(mm, at + page * PAGE, &i) : NULL;

	return map && map->pte[i].kind == PTE_PRESENT;
}

/* Where a guest or a device could write by now. */
static bool is_touched(const struct sim_memory *memory, unsigned int page)
{
	return touches(our_mm, memory->memslots, page) ||
		touches(our_mm, memory->own, page) ||
		(world.device && !world.device->dead &&
		 touches(world.device, memory->remote, page));
}

/* What was not absent once never is again. */
static void note_came(struct sim_memory *memory, unsigned int page)
{
	enum kvmfault__state state = state_at(memory->states_fd,
					      page / memory->unit);

	memory->came[page] |= state != KVMFAULT__ABSENT &&
			      state != KVMFAULT__POISONED &&
			      !kvmfault__in_flight(state);
}

static uint64_t mix(uint64_t digest, uint64_t word)
{
	return (digest ^ word) * 0x9e3779b97f4a7c15ULL;
}

uint64_t states_digest(struct sim_memory *memory)
{
	uint64_t digest = 1, word;
	unsigned int at, page;

	for (at = HEADER; memory->states_fd && at < STATES_MOST;
	     at += sizeof(word)) {
		memcpy(&word, fd_open(memory->states_fd)->states + at,
		       sizeof(word));
		digest = mix(digest, word);
	}
	for (page = 0; memory->states_fd && page < memory->pages; page++) {
		digest = mix(digest, is_touched(memory, page));
		note_came(memory, page);
	}
	return digest;
}

static void copy_states(const struct sim_memory *memory, struct left *left)
{
	const struct open *from = fd_open(memory->states_fd);
	struct open *to;

	left->states_fd = open_states();
	to = fd_open(left->states_fd);
	to->length = from->length;
	memcpy(to->states, from->states, STATES_MOST);
	left->has_settled = memory->has_settled;
}

/* No point in here: so it is one moment. */
static struct left *kill_owner(struct sim_memory *memory)
{
	struct left *left = calloc(1, sizeof(*left));
	unsigned int page, word;

	left->pages = memory->pages;
	left->unit = memory->unit;
	left->file = file_copy(memory->file);
	left->fd = world_open(left->file);
	copy_states(memory, left);
	for (page = 0; page < memory->pages; page++) {
		left->state[page] = state_at(left->states_fd,
					     page / memory->unit);
		left->touched[page] = is_touched(memory, page);
		note_came(memory, page);
		left->came[page] = memory->came[page];
		for (word = 0; word < WORDS; word++) {
			left->word[page][word] =
				memory->truth.word[page * WORDS + word];
			left->source[page][word] =
				source_word(memory, page, word);
		}
	}
	tell("the owner of memory %u is killed", memory->id);
	return left;
}

/* ---- what the next owner finds ---- */

static bool may_be(const struct left *left, unsigned int page,
		   unsigned int word, uint64_t value)
{
	return word_may_be(&left->word[page][word], value);
}

static void fail(const struct left *left, unsigned int page, const char *kind)
{
	sim_fail(kind, "page %u, whose state was %u", page, left->state[page]);
}

static void check_bytes(const struct left *left, unsigned int page)
{
	uint64_t value;
	unsigned int word;

	for (word = 0; word < WORDS; word++) {
		file_read(left->file, page * PAGE + oracle_word[word], &value,
			  sizeof(value));
		if (!may_be(left, page, word, value))
			sim_fail("the next owner takes up wrong bytes",
				 "page %u, word %u: %#llx, and the state was %u",
				 page, word, (unsigned long long)value,
				 left->state[page]);
	}
}

/* What was absent or in flight may be asked for, if it is still the source's. */
static void check_absent(const struct left *left, unsigned int page)
{
	unsigned int word;

	if (left->state[page] > KVMFAULT__FETCHING_WAITED || left->came[page])
		fail(left, page, "the next owner fetches what had come");
	if (left->touched[page])
		fail(left, page, "the next owner fetches what could be written");
	for (word = 0; word < WORDS; word++)
		if (!may_be(left, page, word, left->source[page][word]))
			fail(left, page, "the next owner brings old bytes back");
}

static void check_discarded(const struct left *left, unsigned int page,
			    bool there)
{
	unsigned int word;

	if (there)
		fail(left, page, "a page that was discarded stays in the file");
	for (word = 0; word < WORDS; word++)
		if (!may_be(left, page, word, 0))
			fail(left, page, "the next owner takes bytes for zeros");
}

/* With minor faults the file may hold half a page. */
static bool must_be_present(const struct left *left, unsigned int page,
			    bool there)
{
	enum kvmfault__state state = left->state[page];

	return state == KVMFAULT__PRESENT ||
		(there && !option(OPT_minor) &&
		 (state == KVMFAULT__FETCHING ||
		  state == KVMFAULT__FETCHING_WAITED));
}

static void check_page(const struct left *left, unsigned int page, bool was_there)
{
	unsigned int own = page / left->unit;
	enum kvmfault__state was = left->state[page];
	enum kvmfault__state is = kvmfault__page_state(left->memory, own);
	bool there = left->file->frame[page] >= 0;

	if (kvmfault__page_protected(left->memory, own))
		fail(left, page, "the next owner takes up a protection");
	if (must_be_present(left, page, was_there) && is != KVMFAULT__PRESENT)
		fail(left, page, "the next owner loses a page");
	if (was == KVMFAULT__POISONED && is != was)
		fail(left, page, "the next owner forgets that a page is lost");
	/* What came there since is kept. */
	if ((was == KVMFAULT__FETCHING_DISCARDED ||
	     (was == KVMFAULT__DISCARDED && !was_there)) &&
	    is != KVMFAULT__DISCARDED)
		fail(left, page, "the next owner forgets a discard");
	switch (is) {
	case KVMFAULT__ABSENT:
		check_absent(left, page);
		break;
	case KVMFAULT__PRESENT:
		if (!there)
			fail(left, page, "a present page is not in the file");
		check_bytes(left, page);
		break;
	case KVMFAULT__DISCARDED:
		check_discarded(left, page, there);
		break;
	case KVMFAULT__POISONED:
		if (was != is)
			fail(left, page, "the next owner loses a page");
		break;
	default:
		fail(left, page, "a page is in flight that nobody fetches");
	}
}

static void check_pages(const struct left *left, const bool *was_there)
{
	unsigned int page;

	if (left->has_settled && kvmfault__tracked(left->memory))
		sim_fail("what was settled is tracked again", "%u pages",
			 left->pages);
	for (page = 0; page < left->pages; page++)
		if (kvmfault__tracked(left->memory))
			check_page(left, page, was_there[page]);
		else
			check_bytes(left, page);
}

/* ---- the next owner ---- */

static int adopt(struct left *left, uint64_t host)
{
	struct kvmfault_source source = { .size = sizeof(source) };
	const struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.host = (void *)(uintptr_t)host,
		.length = left->pages * PAGE,
		.page_size = left->unit * PAGE,
		.fd = left->fd,
		.source = &source,
		.minor = option(OPT_minor),
		.write_protect = option(OPT_write_protect),
		.states_fd = left->states_fd,
	};

	kvmfault_source_memory(source_image(0), left->pages * PAGE, &source);
	return CALL(kvmfault_memory_adopt, false,
		    kvmfault_memory_adopt(world.vm, &options, &left->memory));
}

/* Where a call fails it is made again: a take-up may be cut short, too. */
static bool take_up(struct left *left, uint64_t host)
{
	unsigned int injected, tries = 0;
	int err;

	do {
		injected = current->injected;
		err = adopt(left, host);
		if (err != -EMFILE || !option(OPT_bad_luck))
			check_error("the next owner", err, injected);
	} while (err && ++tries < TRIES);
	return !err;
}

static void check_next(struct left *left)
{
	uint64_t host = mm_map(our_mm, left->file, 0, left->pages,
			       PROT_READ | PROT_WRITE, false);
	bool was_there[MEMORY_PAGES];
	unsigned int i;

	for (i = 0; i < left->pages; i++)
		was_there[i] = left->file->frame[i] >= 0;
	if (take_up(left, host)) {
		check_pages(left, was_there);
		if (CALL(kvmfault_memory_free, false,
			 kvmfault_memory_free(left->memory)))
			sim_fail("a memory can't be freed", "the next owner's");
	}
	mm_unmap(our_mm, host, left->pages * PAGE);
}

void states_check_killed(struct sim_memory *memory)
{
	struct left *left;

	if (!memory->states_fd || !fd_open(memory->states_fd)->length)
		return;
	left = kill_owner(memory);
	check_next(left);
	file_punch(left->file, 0, left->pages * PAGE);
	fd_close(left->fd, false);
	close_states(left->states_fd);
	free(left);
}
