/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* kvmfault probe: what this kernel offers, as a table or as JSON. */

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "tool.h"

static const char help[] =
	"Usage: kvmfault probe [--json]\n"
	"Ask the kernel for each interface that the library can use.\n\n"
	"  --json  one JSON object\n"
	"  --help  this text\n";

static void print_table(const struct kvmfault_features *features)
{
	int i;

	printf("%-28s %-14s %s\n", "FEATURE", "ANSWER", "DETAIL");
	for (i = 1; i < KVMFAULT_FEATURE_COUNT; i++) {
		const struct kvmfault_finding *f = &features->feature[i];

		printf("%-28s %-14s", kvmfault_feature_str(i),
		       kvmfault_support_str(f->support));
		if (f->error)
			printf(" %s", strerror(-f->error));
		else if (f->value)
			printf(" %#" PRIx64, f->value);
		putchar('\n');
	}
}

static struct json_object *finding_json(const struct kvmfault_finding *f)
{
	struct json_object *object = json_object_new_object();

	json_object_object_add(object, "answer", json_object_new_string(
		kvmfault_support_str(f->support)));
	if (f->error)
		json_object_object_add(object, "error", json_object_new_string(
			strerrorname_np(-f->error)));
	json_object_object_add(object, "value",
			       json_object_new_uint64(f->value));
	return object;
}

static void print_all_json(const struct kvmfault_features *features)
{
	struct json_object *object = json_object_new_object();
	int i;

	for (i = 1; i < KVMFAULT_FEATURE_COUNT; i++)
		json_object_object_add(object, kvmfault_feature_str(i),
				       finding_json(&features->feature[i]));
	print_json(object);
}

int cmd_probe(int argc, char **argv)
{
	struct kvmfault_features features = { .size = sizeof(features) };
	int err, kvm, vm = -1, done;
	bool json = false;

	done = parse_json(argc, argv, help, &json);
	if (done >= 0)
		return done;
	if (optind < argc) {
		complain("probe takes no argument '%s'", argv[optind]);
		return EXIT_USAGE;
	}
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		complain("cannot open /dev/kvm: %s; KVM's part can't be asked",
			 strerror(errno));
	else
		vm = ioctl(kvm, KVM_CREATE_VM, 0);
	err = kvmfault_probe(kvm, vm, &features);
	if (vm >= 0)
		close(vm);
	if (kvm >= 0)
		close(kvm);
	if (err) {
		complain_errno(err, "probe");
		return EXIT_FAILED;
	}
	if (json)
		print_all_json(&features);
	else
		print_table(&features);
	return EXIT_OK;
}
