/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* What the demo says: progress on a terminal, a table, JSON. */

#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "demo.h"
#include "tool.h"

#define BAR 40

static const enum kvmfault_kind entrances[] = {
	KVMFAULT_KIND_EXIT, KVMFAULT_KIND_MARKER,
	KVMFAULT_KIND_UNANNOTATED, KVMFAULT_KIND_MMIO,
	KVMFAULT_KIND_EMULATION, KVMFAULT_KIND_UFFD,
};
#define ENTRANCES (sizeof(entrances) / sizeof(*entrances))

void report_progress(const struct demo *demo, uint64_t done)
{
	int filled = (int)(done * BAR / demo->image.pages);

	if (!isatty(STDERR_FILENO))
		return;
	fprintf(stderr, "\r[%.*s%*s] %3" PRIu64 " %%  %" PRIu64 " pages",
		filled, "########################################",
		BAR - filled, "", done * 100 / demo->image.pages, done);
}

void report_end_progress(const struct demo *demo)
{
	(void)demo;
	if (isatty(STDERR_FILENO))
		fputc('\n', stderr);
}

static struct kvmfault_stats stats_of(const struct demo *demo)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	kvmfault_vm_stats(demo->vm, &stats);
	return stats;
}

static struct kvmfault_delivery_report delivery_of(const struct demo *demo)
{
	struct kvmfault_delivery_report report = { .size = sizeof(report) };

	kvmfault_vm_delivery(demo->vm, &report);
	return report;
}

/* As what the faults come; a scenario may have a way of its own. */
static const char *delivery_name(const struct demo *demo)
{
	return demo->delivery ? demo->delivery :
		kvmfault_delivery_str(delivery_of(demo).delivery);
}

/* The modes that are not in force, and why. */
static const char *why_not(const struct demo *demo,
			   enum kvmfault_delivery mode)
{
	return demo->delivery || mode == KVMFAULT_DELIVERY_AUTO ? NULL :
		delivery_of(demo).why[mode];
}

static uint64_t ticks_of(const struct demo *demo)
{
	uint64_t ticks = 0;
	unsigned int i;

	for (i = 0; i < demo->vcpus; i++)
		ticks += machine_ticks(demo->machine, i);
	return ticks;
}

/* Under how many microseconds this share of the faults was resolved. */
static uint64_t quantile(const struct kvmfault_stats *stats, double share)
{
	uint64_t all = 0, below = 0;
	int i;

	for (i = 0; i < KVMFAULT_LATENCY_COUNT; i++)
		all += stats->latency[i];
	for (i = 0; i < KVMFAULT_LATENCY_COUNT; i++) {
		below += stats->latency[i];
		if (all && (double)below >= share * (double)all)
			return 1ULL << i;
	}
	return 0;
}

/* Faults that a thread waited for. */
static uint64_t demand(const struct kvmfault_stats *stats)
{
	uint64_t faults = 0;
	unsigned int i;

	for (i = 0; i < ENTRANCES; i++)
		faults += stats->kind[entrances[i]];
	return faults;
}

/* After how many seconds the guest started. */
static double first_instruction(const struct demo *demo)
{
	double first = demo->vcpu[0].began;
	unsigned int i;

	for (i = 1; i < demo->vcpus; i++)
		if (demo->vcpu[i].began < first)
			first = demo->vcpu[i].began;
	return first - demo->began;
}

static double rate(const struct demo *demo)
{
	return demo->seconds > 0 ? (double)demo->fetched / demo->seconds : 0;
}

static void print_restore(const struct demo *demo,
			  const struct kvmfault_stats *stats)
{
	printf("demand        %" PRIu64 " faults\n", demand(stats));
	printf("filled        %" PRIu64 " pages\n", stats->filled);
	if (demo->working_set > 0)
		printf("working set   there after %.1f ms\n",
		       demo->working_set * 1e3);
	printf("guest         started after %.1f ms\n",
	       first_instruction(demo) * 1e3);
	printf("resident      all RAM after %.1f ms%s\n",
	       demo->resident * 1e3, demo->settled ? ", settled" : "");
}

void report_table(const struct demo *demo)
{
	struct kvmfault_stats stats = stats_of(demo);
	const char *name, *why;
	unsigned int i;

	printf("delivery      %s\n", delivery_name(demo));
	for (i = 0; i < KVMFAULT_DELIVERY_COUNT; i++)
		if ((why = why_not(demo, i)))
			printf("  not %-11s %s\n", kvmfault_delivery_str(i),
			       why);
	printf("vCPUs         %u, %" PRIu64 " timer interrupts\n", demo->vcpus,
	       ticks_of(demo));
	printf("RAM           %" PRIu64 " bytes, %" PRIu64 " pages\n",
	       demo->bytes, demo->image.pages);
	printf("faults by kind\n");
	for (i = 0; i < ENTRANCES; i++)
		printf("  %-11s %" PRIu64 "\n",
		       kvmfault_kind_str(entrances[i]),
		       stats.kind[entrances[i]]);
	printf("resolved by\n");
	for (i = 0; (name = kvmfault_resolver_name(demo->vm, i)); i++)
		printf("  %-11s %" PRIu64 "\n", name, stats.resolver[i]);
	printf("fetched       %" PRIu64 " pages in %.3f s, %.0f pages/s\n",
	       demo->fetched, demo->seconds, rate(demo));
	printf("zero          %" PRIu64 " pages, which are holes of the image\n",
	       demo->zero);
	print_restore(demo, &stats);
	printf("latency       half under %" PRIu64 " us, 99 %% under %" PRIu64
	       " us\n", quantile(&stats, 0.5), quantile(&stats, 0.99));
	printf("read once     %s\n", demo->misread ? "NO" :
	       "each page that has data");
	if (demo->misread)
		printf("  misread     %" PRIu64 " pages\n", demo->misread);
	printf("contents      %s\n", demo->wrong_pages ? "WRONG" :
	       "every page as the image says, with the guest's mark");
	printf("checksums     %s\n", demo->wrong_checksums ? "WRONG" :
	       "the guest's equal the host's");
	printf("verified: %s\n", demo->verified ? "true" : "false");
}

static void add_number(struct json_object *to, const char *key, uint64_t value)
{
	json_object_object_add(to, key, json_object_new_uint64(value));
}

static struct json_object *faults_json(const struct kvmfault_stats *stats)
{
	struct json_object *faults = json_object_new_object();
	unsigned int i;

	for (i = 0; i < ENTRANCES; i++)
		add_number(faults, kvmfault_kind_str(entrances[i]),
			   stats->kind[entrances[i]]);
	return faults;
}

static struct json_object *resolved_json(const struct demo *demo,
					 const struct kvmfault_stats *stats)
{
	struct json_object *resolved = json_object_new_object();
	const char *name;
	unsigned int i;

	for (i = 0; (name = kvmfault_resolver_name(demo->vm, i)); i++)
		add_number(resolved, name, stats->resolver[i]);
	return resolved;
}

static struct json_object *why_json(const struct demo *demo)
{
	struct json_object *reasons = json_object_new_object();
	const char *why;
	unsigned int i;

	for (i = 0; i < KVMFAULT_DELIVERY_COUNT; i++)
		if ((why = why_not(demo, i)))
			json_object_object_add(reasons,
					       kvmfault_delivery_str(i),
					       json_object_new_string(why));
	return reasons;
}

static struct json_object *latency_json(const struct kvmfault_stats *stats)
{
	struct json_object *latency = json_object_new_array();
	int i;

	for (i = 0; i < KVMFAULT_LATENCY_COUNT; i++)
		json_object_array_add(latency, json_object_new_uint64(
			stats->latency[i]));
	return latency;
}

static void add_ms(struct json_object *to, const char *key, double seconds)
{
	json_object_object_add(to, key, json_object_new_double(seconds * 1e3));
}

static void add_restore(struct json_object *o, const struct demo *demo,
			const struct kvmfault_stats *stats)
{
	add_number(o, "zero", demo->zero);
	add_number(o, "filled", stats->filled);
	add_number(o, "demand", demand(stats));
	add_ms(o, "first_instruction_ms", first_instruction(demo));
	if (demo->working_set_path)
		add_ms(o, "working_set_ms", demo->working_set);
	add_ms(o, "resident_ms", demo->resident);
	json_object_object_add(o, "settled",
			       json_object_new_boolean(demo->settled));
}

void report_json(const struct demo *demo)
{
	struct kvmfault_stats stats = stats_of(demo);
	struct json_object *o = json_object_new_object();

	json_object_object_add(o, "delivery",
			       json_object_new_string(delivery_name(demo)));
	json_object_object_add(o, "not_in_force", why_json(demo));
	add_number(o, "vcpus", demo->vcpus);
	add_number(o, "bytes", demo->bytes);
	add_number(o, "pages", demo->image.pages);
	json_object_object_add(o, "faults", faults_json(&stats));
	json_object_object_add(o, "resolved", resolved_json(demo, &stats));
	add_number(o, "fetched", demo->fetched);
	add_restore(o, demo, &stats);
	add_number(o, "ticks", ticks_of(demo));
	json_object_object_add(o, "seconds",
			       json_object_new_double(demo->seconds));
	json_object_object_add(o, "pages_per_second",
			       json_object_new_double(rate(demo)));
	json_object_object_add(o, "latency_log2_us", latency_json(&stats));
	add_number(o, "misread_pages", demo->misread);
	add_number(o, "wrong_pages", demo->wrong_pages);
	add_number(o, "wrong_checksums", demo->wrong_checksums);
	json_object_object_add(o, "verified",
			       json_object_new_boolean(demo->verified));
	print_json(o);
}
