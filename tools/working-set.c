/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* kvmfault working-set: prints a file of a working set, or merges several. */

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tool.h"

static const char help[] =
	"Usage: kvmfault working-set print FILE [--json]\n"
	"       kvmfault working-set merge OUT FILE...\n"
	"Print what a guest touches first, or merge several such files into OUT:\n"
	"the runs of the first FILE, then what each other one has more.\n\n"
	"  --json  one JSON object\n"
	"  --help  this text\n";

static const char *load_problem(int err)
{
	switch (err) {
	case -ENODATA:
		return "the file is cut: it ends before the working set does";
	case -EBADMSG:
		return "it is no working set, or it has changed";
	case -EPROTONOSUPPORT:
		return "it is of a version that this program does not know";
	default:
		return strerror(-err);
	}
}

struct kvmfault_working_set *load_working_set(const char *path)
{
	struct kvmfault_working_set *set;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int err = fd < 0 ? -errno : kvmfault_working_set_load(fd, &set);

	if (fd >= 0)
		close(fd);
	if (!err)
		return set;
	complain("cannot load %s: %s", path, load_problem(err));
	return NULL;
}

static int write_working_set(const struct kvmfault_working_set *set,
			     const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	int err = fd < 0 ? -errno : kvmfault_working_set_save(set, fd);

	if (!err && fsync(fd) && errno != EINVAL)
		err = -errno;
	if (fd >= 0 && close(fd) && !err)
		err = -errno;
	return err;
}

/* If it can't be saved as a whole, the file that was there stays. */
bool save_working_set(const struct kvmfault_working_set *set, const char *path)
{
	char new[PATH_MAX];
	struct stat st;
	int err;

	if (!stat(path, &st) && !S_ISREG(st.st_mode)) {
		err = write_working_set(set, path);	/* a pipe, a device */
	} else if (snprintf(new, sizeof(new), "%s.new", path) >=
		   (int)sizeof(new)) {
		err = -ENAMETOOLONG;
	} else {
		err = write_working_set(set, new);
		if (!err && rename(new, path))
			err = -errno;
		if (err)
			unlink(new);
	}
	if (err)
		complain("cannot save %s: %s", path, strerror(-err));
	return !err;
}

static void identity_text(const struct kvmfault_working_set_info *info,
			  char text[2 * KVMFAULT_IDENTITY_LENGTH + 1])
{
	size_t i;

	for (i = 0; i < KVMFAULT_IDENTITY_LENGTH; i++)
		sprintf(text + 2 * i, "%02x", info->identity[i]);
}

static void print_text(const struct kvmfault_working_set *set,
		       const struct kvmfault_working_set_info *info,
		       const char *identity)
{
	uint64_t i, offset, length;

	printf("image     %" PRIu64 " bytes\nidentity  %s\n"
	       "touched   %" PRIu64 " bytes in %" PRIu64 " runs\n\n"
	       "%18s %18s\n", info->image_length, identity, info->bytes,
	       info->runs, "OFFSET", "LENGTH");
	for (i = 0; !kvmfault_working_set_run(set, i, &offset, &length); i++)
		printf("%#18" PRIx64 " %#18" PRIx64 "\n", offset, length);
}

static void print_set_json(const struct kvmfault_working_set *set,
			   const struct kvmfault_working_set_info *info,
			   const char *identity)
{
	struct json_object *object = json_object_new_object();
	struct json_object *runs = json_object_new_array();
	uint64_t i, offset, length;

	json_object_object_add(object, "image_length",
			       json_object_new_uint64(info->image_length));
	json_object_object_add(object, "identity",
			       json_object_new_string(identity));
	json_object_object_add(object, "bytes",
			       json_object_new_uint64(info->bytes));
	for (i = 0; !kvmfault_working_set_run(set, i, &offset, &length); i++) {
		struct json_object *run = json_object_new_array();

		json_object_array_add(run, json_object_new_uint64(offset));
		json_object_array_add(run, json_object_new_uint64(length));
		json_object_array_add(runs, run);
	}
	json_object_object_add(object, "runs", runs);
	print_json(object);
}

static int print_file(const char *path, bool json)
{
	struct kvmfault_working_set_info info = { .size = sizeof(info) };
	char identity[2 * KVMFAULT_IDENTITY_LENGTH + 1];
	struct kvmfault_working_set *set = load_working_set(path);

	if (!set)
		return EXIT_FAILED;
	kvmfault_working_set_describe(set, &info);
	identity_text(&info, identity);
	if (json)
		print_set_json(set, &info, identity);
	else
		print_text(set, &info, identity);
	kvmfault_working_set_free(set);
	return EXIT_OK;
}

static int merge_file(struct kvmfault_working_set *set, const char *path)
{
	struct kvmfault_working_set *other = load_working_set(path);
	int err;

	if (!other)
		return EXIT_FAILED;
	err = kvmfault_working_set_merge(set, other);
	kvmfault_working_set_free(other);
	if (!err)
		return EXIT_OK;
	complain("cannot merge %s: %s", path, err == -EXDEV ?
		 "it is of another image than the first file" :
		 strerror(-err));
	return EXIT_FAILED;
}

/* All files are read before one is written: OUT may be one of them. */
static int merge_files(const char *out, char **path, int paths)
{
	struct kvmfault_working_set *set = load_working_set(path[0]);
	int i, code = set ? EXIT_OK : EXIT_FAILED;

	for (i = 1; i < paths && code == EXIT_OK; i++)
		code = merge_file(set, path[i]);
	if (code == EXIT_OK && !save_working_set(set, out))
		code = EXIT_FAILED;
	kvmfault_working_set_free(set);
	return code;
}

int cmd_working_set(int argc, char **argv)
{
	bool json = false;
	int done, left;

	done = parse_json(argc, argv, help, &json);
	if (done >= 0)
		return done;
	argv += optind;
	left = argc - optind;
	if (left == 2 && !strcmp(argv[0], "print"))
		return print_file(argv[1], json);
	if (left >= 3 && !strcmp(argv[0], "merge") && !json)
		return merge_files(argv[1], argv + 2, left - 2);
	fputs(help, stderr);
	return EXIT_USAGE;
}
