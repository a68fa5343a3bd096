/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* kvmfault explain: where a page would come from. In: a mapping. Out: its
 * file's size and file system, the pool of huge pages, and the memory cgroup
 * that has the least room. The file is opened for reading at most, and never
 * read. */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "explain.h"

static const char right_to_files[] =
	"CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN, or a descriptor of the file "
	"that the process still has";

/* ---- the file ---- */

static bool is_file(const struct explain_mapping *m, int fd)
{
	struct stat st;

	return !fstat(fd, &st) && st.st_ino == m->inode &&
	       major(st.st_dev) == m->device_major &&
	       minor(st.st_dev) == m->device_minor;
}

/* Opens by the link; where that must not be read, it can still be asked. */
static int open_link(int dir, const char *path)
{
	int fd = openat(dir, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	return fd >= 0 ? fd : openat(dir, path, O_PATH | O_CLOEXEC);
}

static int open_descriptor(struct explain_look *look,
			   const struct explain_mapping *m)
{
	struct dirent *entry;
	char path[64];
	struct stat st;
	int fd = -1;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", look->pid);
	dir = opendir(path);
	while (dir && fd < 0 && (entry = readdir(dir))) {
		if (fstatat(dirfd(dir), entry->d_name, &st, 0) ||
		    !S_ISREG(st.st_mode) || st.st_ino != m->inode)
			continue;
		fd = open_link(dirfd(dir), entry->d_name);
		if (fd >= 0 && !is_file(m, fd)) {
			close(fd);
			fd = -1;
		}
	}
	if (dir)
		closedir(dir);
	return fd;
}

static int open_backing(struct explain_look *look,
			const struct explain_mapping *m)
{
	char path[128];
	int fd, err;

	snprintf(path, sizeof(path), "/proc/%d/map_files/%" PRIx64 "-%" PRIx64,
		 look->pid, m->start, m->end);
	fd = open_link(AT_FDCWD, path);
	err = errno;
	if (fd < 0)
		fd = open_descriptor(look, m);
	if (fd < 0)
		note_denied(look, path, err, right_to_files);
	return fd;
}

struct explain_backing read_backing(struct explain_look *look,
				    const struct explain_mapping *m,
				    uint64_t hva)
{
	struct explain_backing backing = { 0 };
	uint64_t at = hva - m->start + m->offset;
	struct statfs fs;
	struct stat st;
	off_t data;
	int fd;

	/* Anonymous memory that is shared has a file of the kernel's own. */
	if (!m->inode)
		return backing;
	fd = open_backing(look, m);
	if (fd < 0)
		return backing;
	if (!fstat(fd, &st) && S_ISREG(st.st_mode) && !fstatfs(fd, &fs)) {
		backing.known = true;
		backing.size = st.st_size;
		backing.blocks = st.st_blocks;
		backing.file_system = fs.f_type;
		backing.room = fs.f_bavail;
		backing.capacity = fs.f_blocks;
		data = lseek(fd, at, SEEK_DATA);
		backing.data_known = data >= 0 || errno == ENXIO;
		backing.data = data >= 0 && (uint64_t)data < at + look->base;
	}
	close(fd);
	return backing;
}

/* ---- huge pages ---- */

bool read_huge_pool(struct explain_look *look, uint64_t page_size,
		    uint64_t *free_pages, uint64_t *reserved)
{
	static const char *const names[] = { "free_hugepages", "resv_hugepages",
		"nr_overcommit_hugepages", "surplus_hugepages" };
	uint64_t number[4];
	char path[128];
	size_t i;

	for (i = 0; i < 4; i++) {
		snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/"
			 "hugepages-%" PRIu64 "kB/%s", page_size >> 10,
			 names[i]);
		if (!read_number(look, path, &number[i]))
			return false;
	}
	/* Those beyond the pool may still be made. */
	*free_pages = number[0] + (number[2] > number[3] ?
				   number[2] - number[3] : 0);
	*reserved = number[1];
	return true;
}

/* ---- the memory cgroup ---- */

/* Of one level; false: there is none, or no limit is told. */
static bool read_level(struct explain_look *look, const char *dir, bool v2,
		       struct explain_memory_cgroup *group)
{
	char path[640];
	char *text;
	uint64_t active = 0, inactive = 0, waits = 0;

	*group = (struct explain_memory_cgroup){ .limit = UINT64_MAX };
	snprintf(path, sizeof(path), "%s/%s", dir,
		 v2 ? "memory.max" : "memory.limit_in_bytes");
	read_number(look, path, &group->limit);
	snprintf(path, sizeof(path), "%s/%s", dir,
		 v2 ? "memory.current" : "memory.usage_in_bytes");
	if (!read_number(look, path, &group->usage))
		return false;
	snprintf(path, sizeof(path), "%s/memory.stat", dir);
	text = read_text(look, path, NULL);
	if (text) {
		find_number(text, v2 ? "active_file " : "total_active_file ",
			    10, &active);
		find_number(text, v2 ? "inactive_file " :
			    "total_inactive_file ", 10, &inactive);
	}
	free(text);
	snprintf(path, sizeof(path), "%s/%s", dir,
		 v2 ? "memory.events" : "memory.oom_control");
	text = read_text(look, path, NULL);
	if (text) {
		find_number(text, "oom_kill ", 10, &group->oom_kills);
		find_number(text, "under_oom ", 10, &waits);
	}
	free(text);
	group->reclaimable = active + inactive;
	group->waits = waits;
	group->known = true;
	copy_word(group->path, sizeof(group->path), dir);
	return true;
}

static uint64_t room_of(const struct explain_memory_cgroup *group)
{
	if (group->limit == UINT64_MAX)
		return UINT64_MAX;
	return group->limit > group->usage ?
		group->limit - group->usage + group->reclaimable :
		group->reclaimable;
}

/* "4:memory:/path" of version 1, or "0::/path" of version 2. */
static const char *find_group(const char *text, bool *v2)
{
	const char *at = strstr(text, ":memory:/");

	*v2 = !at;
	if (at)
		return at + strlen(":memory:");
	at = strstr(text, "0::/");
	return at ? at + strlen("0::") : NULL;
}

void read_memory_cgroup(struct explain_look *look)
{
	struct explain_memory_cgroup level;
	char path[512], name[400];
	const char *found;
	char *text, *slash;
	bool v2;

	snprintf(path, sizeof(path), "/proc/%d/cgroup", look->pid);
	text = read_text(look, path, right_to_inspect);
	found = text ? find_group(text, &v2) : NULL;
	copy_word(name, sizeof(name), found);
	free(text);
	/* Out of this program's cgroup namespace: nothing can be read. */
	if (!found || strstr(name, "/.."))
		return;
	for (;;) {
		snprintf(path, sizeof(path), "/sys/fs/cgroup%s%s",
			 v2 ? "" : "/memory", name);
		if (read_level(look, path, v2, &level) &&
		    (!look->cgroup.known || level.waits ||
		     (!look->cgroup.waits &&
		      room_of(&level) < room_of(&look->cgroup))))
			look->cgroup = level;
		slash = strrchr(name, '/');
		if (!slash)
			return;
		*slash = '\0';
	}
}
