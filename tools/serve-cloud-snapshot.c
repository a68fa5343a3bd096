/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A snapshot of Cloud Hypervisor. In: a directory as its offload daemon leaves
 * it, with migration_config.json, state.json and a file memory-N for each slot.
 * Out: both texts, which go to Cloud Hypervisor as they are, and the slots,
 * whose numbers are all checked.
 */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <json-c/json.h>

#include "serve-cloud-hypervisor.h"
#include "tool.h"

#define MOST_TEXT (64 << 20)
#define PAGE 4096
#define MOST_GPA (UINT64_C(1) << 52)

static int open_cloud_file(int directory, const char *path, const char *name)
{
	int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK |
			O_NOCTTY);

	if (fd < 0)
		complain("cannot open %s of the snapshot %s: %s", name, path,
			 strerror(errno));
	return fd;
}

static bool read_cloud_text(int fd, struct cloud_text *text)
{
	size_t size = 0;

	for (;;) {
		ssize_t n;

		if (text->length == size) {
			char *more;

			size = size ? 2 * size : 1 << 16;
			if (size > MOST_TEXT)
				return false;
			more = realloc(text->bytes, size + 1);
			if (!more)
				return false;
			text->bytes = more;
		}
		n = read(fd, text->bytes + text->length, size - text->length);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			text->bytes[text->length] = 0;
			return !n;
		}
		text->length += (size_t)n;
	}
}

static bool load_cloud_text(int directory, const char *path, const char *name,
			    struct cloud_text *text)
{
	int fd = open_cloud_file(directory, path, name);
	bool read;

	if (fd < 0)
		return false;
	read = read_cloud_text(fd, text);
	close(fd);
	if (!read)
		complain("%s of the snapshot %s cannot be read, or is larger than %d MiB",
			 name, path, MOST_TEXT >> 20);
	return read;
}

static struct json_object *find_cloud_member(struct json_object *object,
					     const char *name)
{
	struct json_object *value = NULL;

	if (json_object_is_type(object, json_type_object))
		json_object_object_get_ex(object, name, &value);
	return value;
}

/* A number from 0 to INT64_MAX. */
static bool read_cloud_number(struct json_object *object, const char *name,
			      uint64_t *number)
{
	struct json_object *value = find_cloud_member(object, name);
	int64_t n = value ? json_object_get_int64(value) : -1;

	*number = (uint64_t)n;
	if (json_object_is_type(value, json_type_int) && n >= 0)
		return true;
	complain("guest_ram_mappings of migration_config.json has no %s that is a number",
		 name);
	return false;
}

/* The size of a zone's pages, 0: unknown. If the VM has no zones of its own,
 * the memory itself says it. */
static uint64_t find_cloud_page_size(struct json_object *config,
				     struct json_object *mapping)
{
	struct json_object *memory = find_cloud_member(
		find_cloud_member(config, "vm_config"), "memory");
	struct json_object *zones = find_cloud_member(memory, "zones");
	struct json_object *name = find_cloud_member(mapping, "zone_id");
	struct json_object *size, *from = memory;
	size_t i, count = json_object_is_type(zones, json_type_array) ?
			  json_object_array_length(zones) : 0;

	for (i = 0; i < count; i++) {
		struct json_object *zone = json_object_array_get_idx(zones, i);

		if (json_object_equal(find_cloud_member(zone, "id"), name))
			from = zone;
	}
	if (!json_object_get_boolean(find_cloud_member(from, "hugepages")))
		return PAGE;
	size = find_cloud_member(from, "hugepage_size");
	if (!size)
		return 2 << 20;		/* the default of most hosts */
	return json_object_get_int64(size) == 2 << 20 ||
	       json_object_get_int64(size) == 1 << 30 ?
	       (uint64_t)json_object_get_int64(size) : 0;
}

static bool check_cloud_slot(const struct cloud_slot *slot)
{
	uint64_t all = slot->gpa | slot->size | slot->file_offset;

	if (!slot->page_size) {
		complain("slot %u has pages of a size that is neither 4 KiB nor 2 MiB nor 1 GiB",
			 slot->number);
		return false;
	}
	if (slot->size && slot->gpa < MOST_GPA && slot->size <= MOST_GPA &&
	    slot->file_offset <= MOST_GPA && !(all & (slot->page_size - 1)))
		return true;
	complain("slot %u of migration_config.json, of %#llx bytes at gpa %#llx and file offset %#llx, is empty, too large, or not made of whole pages",
		 slot->number, (unsigned long long)slot->size,
		 (unsigned long long)slot->gpa,
		 (unsigned long long)slot->file_offset);
	return false;
}

static bool read_cloud_slot(struct json_object *config,
			    struct json_object *mapping,
			    struct cloud_slot *slot)
{
	uint64_t number;

	if (!read_cloud_number(mapping, "slot", &number) ||
	    !read_cloud_number(mapping, "gpa", &slot->gpa) ||
	    !read_cloud_number(mapping, "size", &slot->size) ||
	    !read_cloud_number(mapping, "file_offset", &slot->file_offset))
		return false;
	if (number > UINT32_MAX) {
		complain("migration_config.json has a slot %llu, over 32 bits",
			 (unsigned long long)number);
		return false;
	}
	slot->number = (uint32_t)number;
	slot->page_size = find_cloud_page_size(config, mapping);
	return check_cloud_slot(slot);
}

static bool open_cloud_slot(int directory, const char *path,
			    struct cloud_slot *slot)
{
	char name[32];
	int err;

	snprintf(name, sizeof(name), "memory-%u", slot->number);
	slot->file = open_cloud_file(directory, path, name);
	if (slot->file < 0)
		return false;
	slot->source.size = sizeof(slot->source);
	err = kvmfault_source_file(slot->file, &slot->source);
	if (err)
		complain("cannot use %s of the snapshot %s: %s", name, path,
			 strerror(-err));
	else if (slot->source.length != slot->size)
		complain("%s of the snapshot %s has %llu bytes, but its slot has %llu: take the snapshot again",
			 name, path, (unsigned long long)slot->source.length,
			 (unsigned long long)slot->size);
	return !err && slot->source.length == slot->size;
}

static bool is_cloud_slot_new(const struct cloud_snapshot *snapshot,
			      uint32_t number)
{
	unsigned int i;

	for (i = 0; i + 1 < snapshot->slots; i++)
		if (snapshot->slot[i].number == number)
			return false;
	return true;
}

static bool add_cloud_slot(int directory, const char *path,
			   struct json_object *config,
			   struct json_object *mapping,
			   struct cloud_snapshot *snapshot)
{
	struct cloud_slot *slot = &snapshot->slot[snapshot->slots++];

	slot->file = -1;
	slot->memfd = -1;
	if (!read_cloud_slot(config, mapping, slot))
		return false;
	if (!is_cloud_slot_new(snapshot, slot->number)) {
		complain("migration_config.json has slot %u twice",
			 slot->number);
		return false;
	}
	slot->image_offset = snapshot->length;
	snapshot->length += slot->size;
	if (slot->page_size > snapshot->page_size_max)
		snapshot->page_size_max = slot->page_size;
	return open_cloud_slot(directory, path, slot);
}

static bool add_cloud_slots(int directory, const char *path,
			    struct json_object *config,
			    struct cloud_snapshot *snapshot)
{
	struct json_object *list = find_cloud_member(find_cloud_member(config,
		"memory_manager_data"), "guest_ram_mappings");
	size_t i, count = json_object_is_type(list, json_type_array) ?
			  json_object_array_length(list) : 0;

	if (!count || count > CLOUD_MOST_SLOTS) {
		complain("migration_config.json of the snapshot %s has no array memory_manager_data.guest_ram_mappings of 1 to %d slots",
			 path, CLOUD_MOST_SLOTS);
		return false;
	}
	snapshot->slot = calloc(count, sizeof(*snapshot->slot));
	if (!snapshot->slot) {
		complain_errno(ENOMEM, "read the snapshot");
		return false;
	}
	for (i = 0; i < count; i++)
		if (!add_cloud_slot(directory, path, config,
				    json_object_array_get_idx(list, i),
				    snapshot))
			return false;
	return true;
}

static bool parse_cloud_config(int directory, const char *path,
			       struct cloud_snapshot *snapshot)
{
	struct json_tokener *tokener = json_tokener_new();
	struct json_object *config = NULL;
	bool done = false;

	if (tokener)
		config = json_tokener_parse_ex(tokener, snapshot->config.bytes,
					       (int)snapshot->config.length);
	if (config)
		done = add_cloud_slots(directory, path, config, snapshot);
	else
		complain("migration_config.json of the snapshot %s is no JSON",
			 path);
	json_object_put(config);
	json_tokener_free(tokener);
	return done;
}

/* When the first slot's file was last changed, which a copy keeps if it is told
 * to. */
static bool identify_cloud_snapshot(struct cloud_snapshot *snapshot)
{
	struct stat st;

	if (fstat(snapshot->slot[0].file, &st) < 0) {
		complain_errno(errno, "look at the snapshot's files");
		return false;
	}
	memcpy(snapshot->identity, &st.st_mtim, sizeof(st.st_mtim));
	return true;
}

bool cloud_open_snapshot(const char *path, struct cloud_snapshot *snapshot)
{
	int directory = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	bool done;

	if (directory < 0) {
		complain("cannot open the snapshot %s: %s", path,
			 strerror(errno));
		return false;
	}
	done = load_cloud_text(directory, path, "migration_config.json",
			       &snapshot->config) &&
	       load_cloud_text(directory, path, "state.json",
			       &snapshot->state) &&
	       parse_cloud_config(directory, path, snapshot) &&
	       identify_cloud_snapshot(snapshot);
	close(directory);
	return done;
}

void cloud_close_snapshot(struct cloud_snapshot *snapshot)
{
	unsigned int i;

	for (i = 0; i < snapshot->slots; i++) {
		kvmfault_source_free(&snapshot->slot[i].source);
		if (snapshot->slot[i].file >= 0)
			close(snapshot->slot[i].file);
	}
	free(snapshot->slot);
	free(snapshot->config.bytes);
	free(snapshot->state.bytes);
}
