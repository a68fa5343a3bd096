/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault serve: the dialect of Firecracker. In: the one message that it sends
 * when it loads a snapshot, a JSON array of its memory's regions and its
 * userfaultfd. Out: ranges that are aligned, in the image, and do not overlap,
 * or which part of the message is wrong. No member is guessed, and one that is
 * not known is refused: forks have others, which mean something.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "serve.h"

#define DEPTH 8			/* of JSON in JSON; a list of objects has 2 */
#define SMALL_PAGE 4096ULL
#define HUGE_PAGE (2ULL << 20)
#define ADDRESS_MAX (1ULL << 56)	/* above all of a process's addresses */

__attribute__((format(printf, 2, 3)))
static int refuse_hello(struct serve_hello *hello, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(hello->why, sizeof(hello->why), format, args);
	va_end(args);
	return -1;
}

/* ---- the message ---- */

static bool is_blank(const char *bytes, size_t length)
{
	size_t i;

	for (i = 0; i < length; i++)
		if (!strchr(" \t\r\n", bytes[i]) || !bytes[i])
			return false;
	return true;
}

static int check_parsed(struct serve_hello *hello, const char *rest,
			size_t length)
{
	enum json_tokener_error error = json_tokener_get_error(hello->parser);

	if (hello->list && is_blank(rest, length))
		return 1;
	if (hello->list)
		return refuse_hello(hello,
			"there is more behind the list of regions: Firecracker sends one message");
	if (error == json_tokener_continue)
		return 0;
	return refuse_hello(hello, "the message is no JSON: %s",
			    json_tokener_error_desc(error));
}

int serve_firecracker_take(struct serve_hello *hello, const char *bytes,
			   size_t length)
{
	size_t end;

	if (!hello->parser) {
		hello->parser = json_tokener_new_ex(DEPTH);
		if (!hello->parser)
			return refuse_hello(hello, "there is no memory for it");
		json_tokener_set_flags(hello->parser, JSON_TOKENER_STRICT |
				       JSON_TOKENER_ALLOW_TRAILING_CHARS);
	}
	hello->length += length;
	if (hello->length > SERVE_MESSAGE)
		return refuse_hello(hello,
			"the message has more than %u bytes", SERVE_MESSAGE);
	hello->list = json_tokener_parse_ex(hello->parser, bytes, (int)length);
	end = json_tokener_get_parse_end(hello->parser);
	return check_parsed(hello, bytes + end, length - end);
}

void serve_firecracker_forget(struct serve_hello *hello)
{
	json_object_put(hello->list);
	if (hello->parser)
		json_tokener_free(hello->parser);
	hello->list = NULL;
	hello->parser = NULL;
}

/* ---- its descriptor ---- */

/* The name that /proc has for an open descriptor, as "anon_inode:[userfaultfd]". */
static bool name_descriptor(int fd, char name[64])
{
	char path[64];
	ssize_t length;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	length = readlink(path, name, 63);
	name[length < 0 ? 0 : length] = 0;
	return length > 0;
}

/* The features that its UFFDIO_API has asked for. */
static bool read_features(int fd, unsigned long long *features)
{
	unsigned long long api;
	char line[256];
	bool found = false;
	FILE *file;

	snprintf(line, sizeof(line), "/proc/self/fdinfo/%d", fd);
	file = fopen(line, "re");
	while (file && !found && fgets(line, sizeof(line), file))
		found = sscanf(line, "API: %llx:%llx", &api, features) == 2;
	if (file)
		fclose(file);
	return found;
}

/* Without the event, a page that a balloon has taken would come from the image
 * once more. */
static int check_features(struct serve_hello *hello)
{
	unsigned long long features;

	if (read_features(hello->fd[0], &features) &&
	    !(features & UFFD_FEATURE_EVENT_REMOVE))
		return refuse_hello(hello,
			"the userfaultfd does not tell which pages the VMM gives up: ask for UFFD_FEATURE_EVENT_REMOVE, as Firecracker does");
	return 0;
}

static int check_descriptors(struct serve_hello *hello)
{
	char name[64];

	if (!hello->fds)
		return refuse_hello(hello,
			"no descriptor came with the list: Firecracker sends its userfaultfd with it");
	if (hello->fds > 1)
		return refuse_hello(hello,
			"%u descriptors came in place of one: this looks like e2b's fork of Firecracker, which sends a memfd too (use_memfd): switch that off",
			hello->fds);
	if (!name_descriptor(hello->fd[0], name))
		return 0;	/* the kernel's calls will tell */
	if (!strncmp(name, "/memfd:", 7))
		return refuse_hello(hello,
			"a memfd came in place of a userfaultfd: this looks like a fork of Firecracker with shared memory");
	if (strcmp(name, "anon_inode:[userfaultfd]"))
		return refuse_hello(hello,
			"the descriptor that came is no userfaultfd");
	return check_features(hello);
}

/* ---- its list ---- */

static const char *find_fork(const char *key)
{
	static const struct {
		const char *key, *fork;
	} forks[] = {
		{ "access_log_path", "superserve's fork of Firecracker" },
		{ "flags", "nydusd's dialect" },
		{ "gpa_start", "Firecracker's branch feature/secret-hiding" },
		{ "is_guest_memfd",
		  "Firecracker's branch feature/secret-hiding" },
		{ "prot", "nydusd's dialect" },
		{ "record_to", "superserve's fork of Firecracker" },
		{ "use_memfd", "e2b's fork of Firecracker" },
		{ "use_sync_wp", "e2b's fork of Firecracker" },
	};
	size_t i;

	for (i = 0; i < sizeof(forks) / sizeof(*forks); i++)
		if (!strcmp(key, forks[i].key))
			return forks[i].fork;
	return "another VMM, or another version";
}

/* The name is a client's: a part of it, without what could be a new line. */
static int refuse_member(struct serve_hello *hello, const char *key)
{
	char shown[33];
	size_t i;

	snprintf(shown, sizeof(shown), "%s", key);
	for (i = 0; shown[i]; i++)
		if (shown[i] < ' ' || shown[i] > '~')
			shown[i] = '?';
	return refuse_hello(hello,
		"a region has a member '%s', which Firecracker does not send: this looks like %s",
		shown, find_fork(key));
}

static int check_members(struct serve_hello *hello, struct json_object *region)
{
	static const char *const known[] = {
		"base_host_virt_addr", "size", "offset", "page_size",
		"page_size_kib",
	};
	size_t i, count = sizeof(known) / sizeof(*known);
	struct json_object_iter member;

	if (!json_object_is_type(region, json_type_object))
		return refuse_hello(hello, "a region is no JSON object");
	json_object_object_foreachC(region, member) {
		for (i = 0; i < count && strcmp(member.key, known[i]); i++)
			;
		if (i == count)
			return refuse_member(hello, member.key);
	}
	return 0;
}

/* Returns 1, 0: there is none, or -1. */
static int read_number(struct serve_hello *hello, struct json_object *region,
		       const char *key, uint64_t *number)
{
	struct json_object *value;

	if (!json_object_object_get_ex(region, key, &value))
		return 0;
	if (!json_object_is_type(value, json_type_int) ||
	    json_object_get_int64(value) < 0)
		return refuse_hello(hello,
			"a region's %s is no whole number of 0 or more", key);
	*number = json_object_get_uint64(value);
	return 1;
}

static int need_number(struct serve_hello *hello, struct json_object *region,
		       const char *key, uint64_t *number)
{
	int found = read_number(hello, region, key, number);

	if (found)
		return found < 0 ? -1 : 0;
	return refuse_hello(hello, "a region has no %s", key);
}

/* The older name means bytes, too. */
static int read_page_size(struct serve_hello *hello, struct json_object *region,
			  uint64_t *size)
{
	uint64_t old = 0;
	int is_new = read_number(hello, region, "page_size", size);
	int is_old = read_number(hello, region, "page_size_kib", &old);

	if (is_new < 0 || is_old < 0)
		return -1;
	if (!is_new && !is_old)
		return refuse_hello(hello, "a region has no page_size");
	if (is_new && is_old && *size != old)
		return refuse_hello(hello,
			"a region's page_size and page_size_kib differ, and both are in bytes");
	if (!is_new)
		*size = old;
	if (*size == SMALL_PAGE || *size == HUGE_PAGE)
		return 0;
	return refuse_hello(hello,
		"a region's page_size is %" PRIu64 ", and is to be 4096 or 2097152",
		*size);
}

static int check_range(struct serve_hello *hello,
		       const struct serve_range *range, uint64_t image_length)
{
	uint64_t all = range->address | range->length | range->offset;

	if (!range->length || !range->address ||
	    all & (range->page_size - 1))
		return refuse_hello(hello,
			"the region at %#" PRIx64 " is not whole pages, in memory and in the image",
			range->address);
	if (range->address >= ADDRESS_MAX ||
	    range->length > ADDRESS_MAX - range->address)
		return refuse_hello(hello,
			"the region at %#" PRIx64 " of %#" PRIx64 " bytes goes past the end of addresses",
			range->address, range->length);
	if (range->offset > image_length ||
	    range->length > image_length - range->offset)
		return refuse_hello(hello,
			"the region at offset %#" PRIx64 " of %#" PRIx64 " bytes goes past the image's end at %#" PRIx64 ": serve the snapshot's own memory file",
			range->offset, range->length, image_length);
	return 0;
}

static bool do_overlap(uint64_t a, uint64_t a_length, uint64_t b,
		       uint64_t b_length)
{
	return a < b + b_length && b < a + a_length;
}

static int check_overlap(struct serve_hello *hello,
			 const struct serve_range *range,
			 const struct serve_range *end)
{
	const struct serve_range *other;

	for (other = range + 1; other < end; other++)
		if (do_overlap(range->address, range->length, other->address,
			       other->length) ||
		    do_overlap(range->offset, range->length, other->offset,
			       other->length))
			return refuse_hello(hello,
				"the regions at %#" PRIx64 " and %#" PRIx64 " overlap, in memory or in the image",
				range->address, other->address);
	return 0;
}

static int read_range(struct serve_hello *hello, struct json_object *region,
		      uint64_t image_length, struct serve_range *range)
{
	if (check_members(hello, region) ||
	    need_number(hello, region, "base_host_virt_addr",
			&range->address) ||
	    need_number(hello, region, "size", &range->length) ||
	    need_number(hello, region, "offset", &range->offset) ||
	    read_page_size(hello, region, &range->page_size))
		return -1;
	return check_range(hello, range, image_length);
}

static int check_list(struct serve_hello *hello, size_t *count)
{
	if (!json_object_is_type(hello->list, json_type_array))
		return refuse_hello(hello, "the message is no list of regions: %s",
			json_object_object_get_ex(hello->list, "regions", NULL) ?
			"this looks like nydusd's dialect" :
			"Firecracker sends a JSON array");
	*count = json_object_array_length(hello->list);
	if (*count && *count <= SERVE_RANGES)
		return 0;
	return refuse_hello(hello,
		"the list has %zu regions, and is to have 1 to %d", *count,
		SERVE_RANGES);
}

int serve_firecracker_ranges(struct serve_hello *hello, uint64_t image_length,
			     struct serve_range **ranges)
{
	struct serve_range *all;
	size_t i, count = 0;
	int err = 0;

	*ranges = NULL;
	if (check_list(hello, &count) || check_descriptors(hello))
		return -1;
	all = calloc(count, sizeof(*all));
	if (!all)
		return refuse_hello(hello, "there is no memory for it");
	for (i = 0; i < count && !err; i++)
		err = read_range(hello,
				 json_object_array_get_idx(hello->list, i),
				 image_length, &all[i]);
	for (i = 0; i < count && !err; i++)
		err = check_overlap(hello, &all[i], all + count);
	if (err) {
		free(all);
		return -1;
	}
	*ranges = all;
	return (int)count;
}
