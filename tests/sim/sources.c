/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Sources and resolvers of the VMM. In: what the library asks them. Out: the
 * bytes, an error, an answer later, twice or never, or a lie; as the plan's
 * options say, and from the time on that all is well: the bytes.
 */

#include <stdlib.h>
#include <string.h>

#include "sources.h"

#define PENDING 64
#define DEADLINE (1000 * MS)		/* and more than any of a source's */

static char *image[MEMORIES];
static bool has_holes;			/* the images do */
static struct task *answerer;
static bool is_cut_off;

void callback_begin(const char *what)
{
	if (current->locked)
		sim_fail("a lock is held over a callback", "%s, in %s", what,
			 current->call ? current->call : "no call");
	if (world_is_vcpu(current) && option(OPT_delegate) &&
	    strcmp(what, "log") && strcmp(what, "changed"))
		sim_fail("a callback on a vCPU's thread that delegates", "%s",
			 what);
	current->callbacks++;
	door_kick_who_delegates(4);
	sim_point();
}

void callback_end(void)
{
	sim_point();
	current->callbacks--;
}

/* ---- the bytes ---- */

/*
 * Every other page or two, of the size that the memory's pages have, is a hole,
 * or its second half is. A guest's tables have none.
 */
static bool is_hole(unsigned int memory, uint64_t offset)
{
	uint64_t pages = option(OPT_backing) == 1 ? 2 * HUGE_PAGES : 2;
	uint64_t how = oracle_source(memory, offset / PAGE / pages) >> 20 & 3;

	if (!option(OPT_holes) || option(OPT_tables))
		return false;
	return how == 3 || (how == 2 && (option(OPT_holes) == 1 ||
					 offset % PAGE >= PAGE / 2));
}

/* With two layers: which one has it, half a page each. */
static bool is_above(unsigned int memory, uint64_t offset)
{
	return oracle_source(memory, offset / (PAGE / 2)) >> 24 & 1;
}

static bool ends_early(void)
{
	return option(OPT_source_short) && !option(OPT_tables) &&
		(option(OPT_source) == 1 || option(OPT_source) == 3);
}

void sources_cut(bool off)
{
	struct sim_memory *memory;

	for (memory = world.memory; ends_early() &&
	     memory < &world.memory[world.memories]; memory++) {
		fd_open(memory->image_fd)->length = memory->pages * PAGE -
						    (off ? PAGE / 2 : 0);
		world.source_errors += off;
	}
	is_cut_off = off && ends_early();
}

static void check_end(const struct sim_memory *memory, uint64_t offset,
		      uint64_t length)
{
	if (is_cut_off && offset + length > memory->pages * PAGE - PAGE / 2)
		sim_fail("a source shows what is past its end",
			 "%#llx+%#llx", (unsigned long long)offset,
			 (unsigned long long)length);
}

static void open_image(struct sim_memory *memory)
{
	struct open *open;

	if (memory->image_fd)
		return;
	memory->image_fd = fd_new(KIND_IMAGE, false, &open);
	open->image = image[memory->id];
	open->length = memory->pages * PAGE;
}

uint64_t source_word(const struct sim_memory *memory, unsigned int page,
		     unsigned int word)
{
	uint64_t offset = page * PAGE + oracle_word[word];

	if (option(OPT_source) == 4 || is_hole(memory->id, offset))
		return 0;
	return oracle_source(memory->id, offset);
}

bool source_has_code(const struct sim_memory *memory, unsigned int page)
{
	return option(OPT_source) != 4 &&
	       !is_hole(memory->id, page * PAGE + SOURCE_CODE);
}

off_t source_seek(const struct open *open, uint64_t from, bool data)
{
	unsigned int memory = open->image == image[0] ? 0 : 1;
	uint64_t at = from;

	if (option(OPT_holes) > 1 && sim_one_in(8))
		return -EINVAL;		/* a file system that can't say */
	if (from >= open->length)
		return -ENXIO;
	while (at < open->length && is_hole(memory, at) == data)
		at = (at | (PAGE / 2 - 1)) + 1;
	if (at < open->length)
		return (off_t)at;
	return data ? -ENXIO : (off_t)open->length;
}

char *source_image(unsigned int memory)
{
	return image[memory];
}

static void fill_page(unsigned int memory, uint64_t offset, int byte)
{
	static const unsigned char code[] = { 0x0f, 0xae, 0x00, 0xc3 };
	char *at = image[memory] + offset;
	unsigned int word;

	memset(at, byte, PAGE);
	memcpy(at + SOURCE_CODE, code, sizeof(code));
	for (word = 0; word < WORDS; word++) {
		uint64_t value = oracle_source(memory,
					       offset + oracle_word[word]);

		memcpy(at + oracle_word[word], &value, 8);
	}
	for (; at < image[memory] + offset + PAGE; at += PAGE / 2)
		if (is_hole(memory, (uint64_t)(at - image[memory])))
			memset(at, 0, PAGE / 2);
}

void source_fill_page(uint64_t gpa, int byte)
{
	fill_page((unsigned int)(gpa / PAGE / MEMORY_PAGES),
		  gpa / PAGE % MEMORY_PAGES * PAGE, byte);
}

static void make_images(void)
{
	unsigned int i, page;

	for (i = 0; i < MEMORIES; i++) {
		if (!image[i])
			image[i] = malloc(MEMORY_PAGES * PAGE);
		for (page = 0; page < MEMORY_PAGES; page++)
			fill_page(i, page * PAGE, 0x80 + (int)page);
	}
}

static const char *bytes_of(const struct sim_memory *memory, uint64_t offset)
{
	static const char zeros[PAGE];

	return option(OPT_source) == 4 ? zeros : image[memory->id] + offset;
}

/* A snapshot can't have it either. */
void source_lose(struct sim_memory *memory, unsigned int page,
		 unsigned int count)
{
	unsigned int i;

	truth_lose(&memory->truth, page, count);
	for (i = page * WORDS; i < (page + count) * WORDS; i++)
		memory->then[i].lost = true;
}

/* Some pages nobody has any more: always the same ones, until all is well. */
bool source_lacks(const struct sim_memory *memory, unsigned int page)
{
	if (option(OPT_source_poisons) == 2)
		return !world.healed && page / memory->unit % 2;
	return option(OPT_source_poisons) && !world.healed &&
		!(oracle_source(memory->id, page / memory->unit) >> 8 & 7);
}

static bool lacks(struct sim_memory *memory, uint64_t offset, uint64_t length)
{
	unsigned int page, first = (unsigned int)(offset / PAGE);
	bool lost = false;

	for (page = first; page < first + length / PAGE; page++) {
		if (!source_lacks(memory, page))
			continue;
		lost = true;
		source_lose(memory, page, 1);
	}
	world.poisons += lost;
	return lost;
}

static int fails(struct sim_memory *memory, uint64_t offset, uint64_t length)
{
	static const uint32_t one_in[] = { 0, 8, 2 };

	if (world.healed)
		return 0;
	if (lacks(memory, offset, length))
		return -EHWPOISON;
	if (option(OPT_source_fails) &&
	    sim_one_in(one_in[option(OPT_source_fails)])) {
		world.source_errors++;
		return -EIO;
	}
	return 0;
}

static uint64_t slowness(void)
{
	if (world.healed)
		return 10000;
	switch (option(OPT_source_slow)) {
	case 1:
		return sim_below(2 * MS);
	case 2:
		return 3000 * MS;
	}
	return 0;
}

/* What has come, and was not discarded, is not asked for again. */
static void check_asked(const struct sim_memory *memory, uint64_t offset,
			uint64_t length)
{
	unsigned int page, first = (unsigned int)(offset / PAGE);

	if (option(OPT_resolver) || option(OPT_minor) || option(OPT_bad_luck) ||
	    option(OPT_events) || option(OPT_device) || option(OPT_huge_pool) ||
	    option(OPT_split) || option(OPT_guest_memfd) || world.ever_forked ||
	    world.holes || world.failures)
		return;
	for (page = first; page < first + length / PAGE; page++)
		if (present_bytes(memory, page) && !memory->truth.open)
			sim_fail("a page that came is asked for again", "page %u",
				 page);
}

/* What the source has said to be zero is not to be read. */
static void check_no_hole(const struct sim_memory *memory, uint64_t offset,
			  uint64_t length)
{
	uint64_t at;

	if (option(OPT_holes) != 1 || memory->unit > 1 || option(OPT_resolver) ||
	    option(OPT_source_fails) || option(OPT_source_poisons))
		return;
	for (at = offset; at < offset + length; at += PAGE)
		if (is_hole(memory->id, at))
			sim_fail("a hole is read", "%#llx",
				 (unsigned long long)at);
}

/* An owner that is killed may leave the half of it. */
static void copy_bytes(char *buffer, const char *from, size_t length)
{
	size_t half = option(OPT_states) ? PAGE / 2 : 0;

	memcpy(buffer, from, half);
	if (half)
		sim_point();
	memcpy(buffer + half, from + half, length - half);
}

static int read_now(void *data, uint64_t offset, void *buffer, size_t length)
{
	struct sim_memory *memory = data;
	int err;

	callback_begin("read");
	current->asked++;
	check_no_hole(memory, offset, length);
	check_asked(memory, offset, length);
	tables_note_fetch(memory, offset, length);
	tell("the source is asked for %#llx+%#zx", (unsigned long long)offset,
	     length);
	if (slowness())
		task_pause(slowness() + 1, "a slow source");
	steps_convert_inside();
	err = fails(memory, offset, length);
	if (!err)
		copy_bytes(buffer, image[memory->id] + offset, length);
	tell("the source says %d", err);
	callback_end();
	return err;
}

/* A mapped file that was cut off: a page of what is shown is not there. */
static const void *view(void *data, uint64_t offset, size_t length)
{
	struct sim_memory *memory = data;
	const char *shown = image[memory->id] + offset;

	callback_begin("view");
	check_end(memory, offset, length);
	check_asked(memory, offset, length);
	if (option(OPT_minor) && memory->file)
		sim_fail("a view is asked for with minor faults", "%#llx",
			 (unsigned long long)offset);
	tables_note_fetch(memory, offset, length);
	tell("the source shows %#llx+%#zx", (unsigned long long)offset, length);
	if ((option(OPT_source_fails) || option(OPT_source_poisons)) &&
	    !world.healed && sim_one_in(3)) {
		uint32_t page = sim_below((uint32_t)(length / PAGE));

		world.cuts++;
		world.cut[memory->id][offset / PAGE + page] = true;
		uffd_cut(shown + page * PAGE, PAGE);
	}
	callback_end();
	return shown;
}

/* ---- what it knows of its holes ---- */

static struct sim_memory *memory_of_data(void *data)
{
	unsigned int i;

	for (i = 0; i < MEMORIES; i++)
		if (data == image[i])	/* it is kvmfault_source_memory()'s */
			return &world.memory[i];
	return data;
}

/* kind() is of the byte at an offset, and the same for half a page. */
static int tell_extent(void *data, uint64_t offset, uint64_t *length,
		       int (*kind)(const struct sim_memory *memory,
				   uint64_t offset))
{
	struct sim_memory *memory = memory_of_data(data);
	uint64_t end = offset + *length, at = offset;
	uint64_t unit = memory->unit * PAGE;
	int err, is = kind(memory, offset);

	callback_begin("extent");
	err = fails(memory, offset & -unit, unit);
	do
		at = (at | (PAGE / 2 - 1)) + 1;
	while (at < end && kind(memory, at) == is &&
	       (option(OPT_holes) != 2 || !sim_one_in(8)));
	if (at < end)
		*length = at - offset;
	if (!err && option(OPT_source_fails) && !world.healed &&
	    sim_one_in(16)) {
		world.source_errors++;
		*length = sim_one_in(2) ? 0 : end - offset + 1;
	}
	tell("the source says that %#llx+%#llx is %d", (unsigned long long)offset,
	     (unsigned long long)*length, err ? err : is);
	callback_end();
	return err ? err : is;
}

static int kind_of(const struct sim_memory *memory, uint64_t offset)
{
	if (!is_hole(memory->id, offset))
		return KVMFAULT_EXTENT_DATA;
	return offset / PAGE % 2 ? KVMFAULT_EXTENT_ZERO : KVMFAULT_EXTENT_HOLE;
}

static int extent(void *data, uint64_t offset, uint64_t *length)
{
	return tell_extent(data, offset, length, kind_of);
}

/* What is above hides what is below, also where it is zero. */
static int kind_above(const struct sim_memory *memory, uint64_t offset)
{
	if (!is_above(memory->id, offset))
		return KVMFAULT_EXTENT_HOLE;
	return is_hole(memory->id, offset) ? KVMFAULT_EXTENT_ZERO :
					     KVMFAULT_EXTENT_DATA;
}

static int extent_above(void *data, uint64_t offset, uint64_t *length)
{
	return tell_extent(data, offset, length, kind_above);
}

/* Each layer is asked for what it has, and the other one has not. */
static void check_layer(const struct sim_memory *memory, uint64_t offset,
			uint64_t length, bool above)
{
	uint64_t at;

	for (at = offset; at < offset + length; at += PAGE / 2)
		if (is_above(memory->id, at) != above)
			sim_fail("a layer is asked for what is the other's",
				 "%#llx", (unsigned long long)at);
}

static int read_above(void *data, uint64_t offset, void *buffer, size_t length)
{
	check_layer(data, offset, length, true);
	return read_now(data, offset, buffer, length);
}

static int read_below(void *data, uint64_t offset, void *buffer, size_t length)
{
	check_layer(data, offset, length, false);
	return read_now(data, offset, buffer, length);
}

/* It stays what it is if there is no memory for two layers. */
static void lay_over(struct sim_memory *memory, struct kvmfault_source *source)
{
	const struct kvmfault_source above = {
		.size = sizeof(above), .name = "above", .data = memory,
		.length = source->length, .read = read_above,
		.extent = extent_above,
	};
	struct kvmfault_source both = { .size = sizeof(both) };

	if (source->read == read_now)
		source->read = read_below;
	if (CALL(kvmfault_source_over, false,
		 kvmfault_source_over(&above, source, &both)))
		source->read = source->read == read_below ? read_now :
							    source->read;
	else
		*source = both;
}

/* ---- a source that answers later ---- */

static struct pending {
	struct kvmfault_fetch *fetch;	/* NULL: free */
	struct sim_memory *memory;
	uint64_t offset, due;
	uint64_t late;			/* if it has a deadline: cancelled by then */
	void *buffer;
	size_t length;
	bool submitting, cancelled;
} pending[PENDING];

static struct pending *pending_of(const struct kvmfault_fetch *fetch)
{
	unsigned int i;

	for (i = 0; i < PENDING; i++)
		if (pending[i].fetch == fetch)
			return &pending[i];
	return NULL;
}

/* It is the library's again. again: it is said twice, which counts once. */
static void answer(struct pending *item, bool again)
{
	struct pending now = *item;
	int err = now.cancelled ? -ECANCELED :
				  fails(now.memory, now.offset, now.length);

	if (!err)
		copy_bytes(now.buffer, image[now.memory->id] + now.offset,
			   now.length);
	item->fetch = NULL;
	tell("the source answers %#llx+%#zx: %d", (unsigned long long)now.offset,
	     now.length, err);
	CALL(kvmfault_fetch_done, true, (kvmfault_fetch_done(now.fetch, err), 0));
	if (again)
		CALL(kvmfault_fetch_done, true,
		     (kvmfault_fetch_done(now.fetch, -EIO), 0));
}

/* For a tenth of a second, once: from the first time that it is asked, or later. */
static uint64_t since;

static bool not_yet(void)
{
	if (option(OPT_answers) != 4 || world.healed)
		return false;
	if (!since && sim_one_in(2))
		since = sim_now();
	return since && sim_now() - since < 100 * MS;
}

static int submit(void *data, struct kvmfault_fetch *fetch, uint64_t offset,
		  void *buffer, size_t length)
{
	unsigned int how = option(OPT_answers);
	struct pending *item;
	int err = 0;

	callback_begin("submit");
	tables_note_fetch(data, offset, length);
	item = pending_of(NULL);
	tell("the source is to bring %#llx+%#zx", (unsigned long long)offset,
	     length);
	if (pending_of(fetch))
		sim_fail("a fetch is submitted twice", "%p", (void *)fetch);
	if (not_yet() || !item) {
		callback_end();
		return -EAGAIN;
	}
	*item = (struct pending){
		.fetch = fetch, .memory = data, .offset = offset,
		.buffer = buffer, .length = length, .submitting = true,
		.due = sim_now() + slowness(),
		.late = sim_now() + DEADLINE,
	};
	if (how == 3 && !world.healed && !option(OPT_no_cancel))
		item->due = NEVER;
	if ((how == 1 || how == 2 || how == 5) && !world.healed) {
		/* Who calls is the library, and it calls us: no other call. */
		answer(item, how == 2);
		if (how == 5) {
			err = -EIO;
			world.source_errors++;
		}
	} else {
		if (option(OPT_source_slow) == 1 && !world.healed &&
		    sim_one_in(4))
			task_pause(20 * MS, "a slow submit function");
		sim_point();
		item->submitting = false;
		task_wake(&answerer, TASKS);
	}
	callback_end();
	return err;
}

static void cancel(void *data, struct kvmfault_fetch *fetch)
{
	struct pending *item = pending_of(fetch);

	(void)data;
	callback_begin("cancel");
	world.cancels++;
	/* Answered meanwhile: that crosses. */
	if (item && item->submitting)
		sim_fail("a fetch is cancelled before it was submitted", "%p",
			 (void *)fetch);
	if (item && item->cancelled)
		sim_fail("a fetch is cancelled twice", "%p", (void *)fetch);
	if (item) {
		item->cancelled = true;
		item->due = sim_now();
		task_wake(&answerer, TASKS);
	}
	callback_end();
}

static struct pending *due_now(uint64_t *next)
{
	unsigned int i, first = sim_below(PENDING), k;

	*next = NEVER;
	for (k = 0; k < PENDING; k++) {
		i = (first + k) % PENDING;
		if (!pending[i].fetch || pending[i].submitting)
			continue;
		if (pending[i].due <= sim_now())
			return &pending[i];
		if (pending[i].due < *next)
			*next = pending[i].due;
	}
	return NULL;
}

/* What has a deadline is cancelled by then, and the answer may come late. */
static void check_deadlines(uint64_t *next)
{
	unsigned int i;

	if (!option(OPT_deadline) || option(OPT_no_cancel) || world.healed ||
	    !option(OPT_service))
		return;
	for (i = 0; i < PENDING; i++) {
		const struct pending *item = &pending[i];

		if (!item->fetch || item->cancelled || item->submitting)
			continue;
		if (sim_now() > item->late)
			sim_fail("a fetch outlives its deadline", "%#llx+%#zx",
				 (unsigned long long)item->offset, item->length);
		if (item->late < *next)
			*next = item->late + 1;
	}
}

static void run_answerer(void *arg)
{
	struct pending *item;
	uint64_t next;

	(void)arg;
	while (world.vm) {
		item = due_now(&next);
		check_deadlines(&next);
		if (item)
			answer(item, false);
		else
			task_sleep(&answerer, "fetches", next, false);
	}
}

void sources_heal(void)
{
	unsigned int i;

	uffd_cut(NULL, 0);
	sources_cut(false);

	for (i = 0; i < PENDING; i++)
		if (pending[i].fetch && pending[i].due > sim_now() + MS)
			pending[i].due = sim_now() + MS;
	task_wake(&answerer, TASKS);
}

void sources_end(void)
{
	if (answerer) {
		task_wake(&answerer, TASKS);
		task_wait_end(answerer);
	}
}

void sources_reset(void)
{
	if (has_holes || option(OPT_holes) || !image[0])
		make_images();
	has_holes = option(OPT_holes);
	memset(pending, 0, sizeof(pending));
	uffd_cut(NULL, 0);
	is_cut_off = false;
	answerer = NULL;
	since = 0;
}

static void make_source(struct sim_memory *memory,
			struct kvmfault_source *source)
{
	memset(source, 0, sizeof(*source));
	source->size = sizeof(*source);
	source->data = memory;
	source->length = memory->pages * PAGE;
	source->chunk = 2 * PAGE;
	source->read = read_now;
	switch (option(OPT_source)) {
	case 1:
		if (ends_early()) {
			open_image(memory);
			source->file = memory->image_fd;
		}
		if (option(OPT_source_fails) || option(OPT_source_poisons) ||
		    ends_early())
			source->view = view;
		else
			CALL(kvmfault_source_memory, false,
			     kvmfault_source_memory(image[memory->id],
						    memory->pages * PAGE,
						    source));
		return;
	case 2:
		source->read = NULL;
		source->submit = submit;
		/* What can't be cancelled can't have a deadline. */
		if (!option(OPT_no_cancel)) {
			source->cancel = cancel;
			source->deadline_ms = option(OPT_deadline) == 1 ? 5 :
					      option(OPT_deadline) ? 50 : 0;
		}
		if (!answerer)
			answerer = task_new("source", our_mm, run_answerer, NULL);
		return;
	case 3:
		open_image(memory);
		CALL(kvmfault_source_file, false,
		     kvmfault_source_file(memory->image_fd, source));
		return;
	case 4:
		CALL(kvmfault_source_zero, false, kvmfault_source_zero(source));
		return;
	}
}

void source_make(struct sim_memory *memory, struct kvmfault_source *source)
{
	make_source(memory, source);
	if (!option(OPT_holes) || option(OPT_source) > 2)
		return;
	source->extent = extent;
	if (option(OPT_holes) == 3 && option(OPT_source) < 2)
		lay_over(memory, source);
}

/* ---- the VMM's resolver ---- */

static struct sim_memory *memory_of(const struct kvmfault_request *request)
{
	unsigned int i;

	for (i = 0; i < world.memories; i++)
		if (world.memory[i].handle == request->memory ||
		    request->host == (void *)(uintptr_t)
				     (world.memory[i].memslots + request->offset))
			return &world.memory[i];
	return NULL;
}

/* Each page once, and as it was when it was protected. */
static int save(struct kvmfault_request *request)
{
	struct sim_memory *memory = memory_of(request);
	unsigned int page, first, word;
	uint64_t value;

	if (!memory || !memory->snapshot)
		return KVMFAULT_VERDICT_DECLINED;
	first = (unsigned int)(request->offset / PAGE);
	for (page = first; page < first + request->length / PAGE; page++) {
		if (page < memory->first || page - memory->first >= memory->count)
			return KVMFAULT_VERDICT_DECLINED;
		for (word = 0; word < WORDS; word++) {
			const struct word *then = &memory->then[page * WORDS +
								word];

			memcpy(&value, (char *)request->host + (page - first) *
			       PAGE + oracle_word[word], sizeof(value));
			/* A conversion discards without asking. */
			if (!word_may_be(then, value) && !world.ever_private)
				sim_fail("a snapshot has bytes of another time",
					 "page %u, word %u: %#llx", page, word,
					 (unsigned long long)value);
		}
	}
	if (!world.healed && option(OPT_resolver) == 6 && sim_one_in(2)) {
		world.resolver_errors++;
		return -EIO;
	}
	for (page = first; page < first + request->length / PAGE; page++)
		if (memory->saved[page])
			sim_fail("a page is saved twice", "page %u, and %s",
				 page, memory->saved[page] == SAVED_EARLY ?
				 "before kvmfault_protect() had returned" :
				 "both times after it was protected");
		else
			memory->saved[page] = memory->watched ? SAVED :
							SAVED_EARLY;
	tell("page %u is saved", first);
	return KVMFAULT_VERDICT_RESOLVED;
}

static int install_all(struct kvmfault_request *request)
{
	const void *data;
	int err;

	CALL(kvmfault_request_widen, true, kvmfault_request_widen(request));
	data = request->buffer;
	if (request->page == KVMFAULT_PAGE_HOLE && sim_one_in(2))
		return CALL(kvmfault_request_install, true,
			    kvmfault_request_install(request, NULL));
	if (sim_one_in(2))
		err = CALL(kvmfault_request_read, true,
			   kvmfault_request_read(request, request->buffer));
	else
		err = CALL(kvmfault_request_data, true,
			   kvmfault_request_data(request, &data));
	if (!err)
		err = CALL(kvmfault_request_install, true,
			   kvmfault_request_install(request, data));
	return err;
}

/* Past the library: into the file; in part, the page that is asked for. */
static int own_way(struct kvmfault_request *request, bool all)
{
	struct sim_memory *memory = memory_of(request);
	uint64_t at, page = request->offset;

	if (!memory || !memory->file || memory->file->hugetlb)
		return KVMFAULT_VERDICT_DECLINED;
	CALL(kvmfault_request_widen, true, kvmfault_request_widen(request));
	for (at = request->offset; at < request->offset + request->length;
	     at += PAGE) {
		if (!all && at != page && sim_one_in(2))
			continue;
		if (file_write(memory->file, at, bytes_of(memory, at), PAGE))
			return -ENOMEM;
		sim_point();
	}
	/* With minor faults what is in the file proves nothing. */
	if (!all || option(OPT_minor))
		world.lies++;
	return KVMFAULT_VERDICT_RESOLVED;
}

static int resolve_absent(struct kvmfault_request *request)
{
	int err;

	switch (option(OPT_resolver)) {
	case 1:
		err = install_all(request);
		return err ? err : KVMFAULT_VERDICT_RESOLVED;
	case 2:
		install_all(request);
		return KVMFAULT_VERDICT_DECLINED;
	case 3:
		err = install_all(request);
		if (err == -EAGAIN)
			err = install_all(request);
		return err ? err : KVMFAULT_VERDICT_RESOLVED;
	case 4:
		return own_way(request, true);
	case 5:
		return own_way(request, false);
	case 6:
		if (!sim_one_in(3))
			return KVMFAULT_VERDICT_DECLINED;
		world.resolver_errors++;
		return -EIO;
	case 7:
		if (!world.later_until && sim_one_in(3))
			world.later_until = sim_now() + MS;
		return sim_now() < world.later_until ? KVMFAULT_VERDICT_LATER :
						       KVMFAULT_VERDICT_DECLINED;
	case 8:
		if (!sim_one_in(3))
			return KVMFAULT_VERDICT_DECLINED;
		world.lies++;
		return KVMFAULT_VERDICT_RESOLVED;
	}
	return KVMFAULT_VERDICT_DECLINED;
}

/* What a message says of the access is what the resolver is told. */
static void check_request(const struct kvmfault_request *request)
{
	const struct kvmfault_fault *fault = request->fault;

	if (fault->kind == KVMFAULT_KIND_UFFD &&
	    fault->access != KVMFAULT_ACCESS_READ &&
	    fault->access != KVMFAULT_ACCESS_WRITE)
		sim_fail("an access is told otherwise", "flags %#llx, access %d",
			 (unsigned long long)fault->flags, fault->access);
	if (fault->kind == KVMFAULT_KIND_UFFD && fault->flags)
		sim_fail("a flag that nobody knows is passed over",
			 "of a message: %#llx",
			 (unsigned long long)fault->flags);
}

static int resolve(void *data, struct kvmfault_request *request)
{
	int verdict = KVMFAULT_VERDICT_DECLINED;

	(void)data;
	callback_begin("a resolver");
	check_request(request);
	if (request->page == KVMFAULT_PAGE_PROTECTED)
		verdict = save(request);
	else if ((request->page == KVMFAULT_PAGE_ABSENT ||
		  request->page == KVMFAULT_PAGE_HOLE) && !world.healed)
		verdict = resolve_absent(request);
	else if (request->page == KVMFAULT_PAGE_DISCARDED &&
		 option(OPT_resolver) == 1 && !install_all(request))
		verdict = KVMFAULT_VERDICT_RESOLVED;
	/* The library itself can't read there and answer: else as it likes. */
	if (verdict == -EOPNOTSUPP)
		verdict = KVMFAULT_VERDICT_DECLINED;
	callback_end();
	return verdict;
}

int resolver_make(void)
{
	const struct kvmfault_resolver resolver = {
		.size = sizeof(resolver),
		.name = "the VMM's",
		.resolve = resolve,
	};

	return CALL(kvmfault_resolver_add, false,
		    kvmfault_resolver_add(world.vm, &resolver));
}
