/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What kvmfault bench says. In: the seconds of each run. Out: medians, with how
 * far the middle half of the runs spreads, and ratios. A ratio is the median of
 * the rounds' own ratios: two runs of one round had the same machine.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "bench.h"
#include "tool.h"

/* The middle half of the ratios is farther apart than this part of the median:
 * it says nothing. */
#define MEANINGLESS 0.25

struct spread {
	double low, median, high;	/* quartiles */
};

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Of a sorted list, between its values where it has none. */
static double quantile(const double *sorted, unsigned int count, double share)
{
	double at = share * (count - 1);
	unsigned int below = (unsigned int)at;

	if (below + 1 >= count)
		return sorted[count - 1];
	return sorted[below] + (at - below) * (sorted[below + 1] -
					       sorted[below]);
}

/* Sorts them. */
static struct spread spread_of(double *values, unsigned int count)
{
	qsort(values, count, sizeof(*values), compare);
	return (struct spread){
		.low = quantile(values, count, 0.25),
		.median = quantile(values, count, 0.5),
		.high = quantile(values, count, 0.75),
	};
}

/* What the guest's vCPUs have read, all together. */
static uint64_t pages_of(const struct bench_case *c)
{
	return c->bench->options->pattern->shared ?
		c->bench->touched * c->bench->vcpus : c->bench->touched;
}

static struct spread rate_of(const struct bench_case *c)
{
	double rate[BENCH_RUNS];
	unsigned int i;

	for (i = 0; i < c->runs; i++)
		rate[i] = (double)c->bench->touched / c->seconds[i];
	return spread_of(rate, c->runs);
}

/* How many times as fast as the other one. */
static struct spread ratio_of(const struct bench_case *c,
			      const struct bench_case *reference)
{
	double ratio[BENCH_RUNS];
	unsigned int i;

	for (i = 0; i < c->runs; i++)
		ratio[i] = reference->seconds[i] / c->seconds[i];
	return spread_of(ratio, c->runs);
}

/* Microseconds of this process's threads for a page. */
static struct spread cpu_of(const struct bench_case *c)
{
	double cpu[BENCH_RUNS];
	unsigned int i;

	for (i = 0; i < c->runs; i++)
		cpu[i] = c->cpu_seconds[i] * 1e6 / (double)c->bench->touched;
	return spread_of(cpu, c->runs);
}

static bool meaningless(const struct spread *ratio)
{
	return ratio->high - ratio->low > MEANINGLESS * ratio->median;
}

/* The first mode on the same RAM that could be had. */
static const struct bench_case *reference_of(const struct bench_report *report,
					     const struct bench_case *c)
{
	size_t i;

	for (i = 0; i < report->count; i++)
		if (report->cases[i].bench == c->bench &&
		    !report->cases[i].unavailable)
			break;
	return &report->cases[i];
}

static uint64_t window_of(const struct bench_case *c)
{
	return c->mode->widens ? c->bench->options->window : 1;
}

static uint64_t latency_of(const struct bench_case *c)
{
	return c->mode->fetches ? c->bench->options->latency_us : 0;
}

static uint64_t faults_of(const struct bench_case *c, unsigned int entrance)
{
	return (c->faults[entrance] + c->runs / 2) / c->runs;
}

/* ---- progress ---- */

void bench_progress(const struct bench_case *at, unsigned int run)
{
	char which[32] = "warming up";

	if (!isatty(STDERR_FILENO))
		return;
	if (run)
		snprintf(which, sizeof(which), "run %u of %" PRIu64, run,
			 at->bench->options->runs);
	fprintf(stderr, "\r%s, %u vCPUs: %-12s", which, at->bench->vcpus,
		at->mode->name);
}

void bench_end_progress(void)
{
	if (isatty(STDERR_FILENO))
		fputc('\n', stderr);
}

/* ---- the machine ---- */

static bool in_a_vm(void)
{
	FILE *file = fopen("/proc/cpuinfo", "re");
	char line[4096];
	bool found = false;

	while (file && !found && fgets(line, sizeof(line), file))
		found = strstr(line, " hypervisor ");
	if (file)
		fclose(file);
	return found;
}

static const char *backend(void)
{
	static const char *const modules[] = {
		"kvm_intel", "kvm_amd", "kvm_pvm",
	};
	char path[64];
	size_t i;

	for (i = 0; i < sizeof(modules) / sizeof(*modules); i++) {
		snprintf(path, sizeof(path), "/sys/module/%s", modules[i]);
		if (!access(path, F_OK))
			return modules[i];
	}
	return "kvm";
}

/* Who walks the guest's page tables. */
static const char *paging(void)
{
	struct kvmfault_features features = { .size = sizeof(features) };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	kvmfault_probe(kvm, -1, &features);
	if (kvm >= 0)
		close(kvm);
	switch (features.feature[KVMFAULT_FEATURE_TWO_DIMENSIONAL_PAGING]
			.support) {
	case KVMFAULT_SUPPORT_YES:
		return "two-dimensional paging";
	case KVMFAULT_SUPPORT_NO:
		return "shadow paging";
	}
	return "paging not known";
}

/* ---- the table ---- */

static const char *size_text(uint64_t bytes, char text[32])
{
	static const char units[] = "\0KMGT";
	unsigned int unit = 0;

	while (unit < 4 && bytes && bytes % 1024 == 0) {
		bytes /= 1024;
		unit++;
	}
	snprintf(text, 32, "%" PRIu64 "%.1s", bytes, &units[unit]);
	return text;
}

static void print_head(const struct bench_report *report)
{
	const struct bench_options *o = report->options;
	struct utsname name;
	char page[32];

	uname(&name);
	printf("machine   Linux %s %s, %ld CPUs%s, %s, %s, load %.1f to %.1f\n",
	       name.release, name.machine, sysconf(_SC_NPROCESSORS_ONLN),
	       in_a_vm() ? " in a VM" : "", backend(), paging(),
	       report->load[0], report->load[1]);
	printf("guest     %s %s, pages of %s%s\n", o->pattern->name,
	       o->write ? "writes" : "reads", size_text(o->page_size, page),
	       o->touch ? ", some of them" : "");
	printf("answered  from a %s, %" PRIu64 " us; %s; %" PRIu64
	       " threads; %" PRIu64 " runs\n\n", o->file ? "file" : "memory",
	       o->latency_us, o->minor ? "continue" : "copy", o->threads,
	       o->runs);
	printf("vCPUs    RAM  mode          window   pages/s"
	       "  (half of the runs)   ratio (half of them)  faults  CPU us\n");
}

static void print_case(const struct bench_report *report,
		       const struct bench_case *c)
{
	struct spread rate = rate_of(c), ratio;
	uint64_t faults = 0;
	unsigned int f;
	char ram[32];

	ratio = ratio_of(c, reference_of(report, c));
	for (f = 0; f < KVMFAULT_KIND_COUNT; f++)
		faults += faults_of(c, f);
	printf("%5u %6s  %-13s %6" PRIu64 " %9.0f  (%7.0f .. %7.0f)  "
	       "%6.2f (%5.2f .. %5.2f)%c %7" PRIu64 " %7.1f\n",
	       c->bench->vcpus, size_text(c->bench->bytes, ram), c->mode->name,
	       window_of(c), rate.median, rate.low, rate.high, ratio.median,
	       ratio.low, ratio.high, meaningless(&ratio) ? '?' : ' ', faults,
	       cpu_of(c).median);
}

void bench_table(const struct bench_report *report)
{
	bool marked = false;
	size_t i;

	print_head(report);
	for (i = 0; i < report->count; i++) {
		const struct bench_case *c = &report->cases[i];
		struct spread ratio;

		if (c->unavailable)
			continue;
		print_case(report, c);
		ratio = ratio_of(c, reference_of(report, c));
		marked |= meaningless(&ratio);
	}
	if (marked)
		puts("\n?  the rounds differ so much that the ratio says nothing: more runs, or a\n"
		     "   machine that does nothing else");
}

/* ---- JSON ---- */

static void add_number(struct json_object *to, const char *key, uint64_t value)
{
	json_object_object_add(to, key, json_object_new_uint64(value));
}

static void add_text(struct json_object *to, const char *key, const char *text)
{
	json_object_object_add(to, key, json_object_new_string(text));
}

static void add_double(struct json_object *to, const char *key, double value)
{
	json_object_object_add(to, key, json_object_new_double(value));
}

static void add_flag(struct json_object *to, const char *key, bool value)
{
	json_object_object_add(to, key, json_object_new_boolean(value));
}

static struct json_object *quartiles_json(const struct spread *spread)
{
	struct json_object *array = json_object_new_array();

	json_object_array_add(array, json_object_new_double(spread->low));
	json_object_array_add(array, json_object_new_double(spread->high));
	return array;
}

static struct json_object *machine_json(const struct bench_report *report)
{
	struct json_object *o = json_object_new_object();
	struct json_object *loads = json_object_new_array();
	struct utsname name;
	int i;

	uname(&name);
	add_text(o, "kernel", name.release);
	add_text(o, "machine", name.machine);
	add_number(o, "cores", (uint64_t)sysconf(_SC_NPROCESSORS_ONLN));
	add_flag(o, "in_a_vm", in_a_vm());
	add_text(o, "kvm", backend());
	add_text(o, "paging", paging());
	for (i = 0; i < 2; i++)
		json_object_array_add(loads,
				      json_object_new_double(report->load[i]));
	json_object_object_add(o, "load", loads);
	return o;
}

static struct json_object *faults_json(const struct bench_case *c)
{
	struct json_object *faults = json_object_new_object();
	unsigned int f;

	for (f = 1; f < KVMFAULT_KIND_COUNT; f++)
		add_number(faults, kvmfault_kind_str(f), faults_of(c, f));
	return faults;
}

static void add_setting(struct json_object *o, const struct bench_case *c)
{
	const struct bench_options *options = c->bench->options;

	add_text(o, "mode", c->mode->name);
	add_number(o, "vcpus", c->bench->vcpus);
	add_number(o, "memory", c->bench->bytes);
	add_number(o, "page_size", options->page_size);
	add_number(o, "window", window_of(c));
	add_number(o, "latency_us", latency_of(c));
	add_number(o, "threads", options->threads);
	add_text(o, "pattern", options->pattern->name);
	add_text(o, "access", options->write ? "write" : "read");
	add_text(o, "source", options->file ? "file" : "memory");
	add_text(o, "resolver", options->minor ? "continue" : "copy");
	add_number(o, "pages", c->bench->touched);
	add_number(o, "reads", pages_of(c));
}

static struct json_object *case_json(const struct bench_report *report,
				     const struct bench_case *c)
{
	const struct bench_case *reference = reference_of(report, c);
	struct spread rate = rate_of(c), ratio = ratio_of(c, reference);
	struct json_object *o = json_object_new_object();
	struct json_object *seconds = json_object_new_array();
	unsigned int i;

	add_setting(o, c);
	for (i = 0; i < c->runs; i++)
		json_object_array_add(seconds,
				      json_object_new_double(c->seconds[i]));
	json_object_object_add(o, "seconds", seconds);
	add_double(o, "cpu_us_per_page", cpu_of(c).median);
	add_double(o, "pages_per_second", rate.median);
	json_object_object_add(o, "quartiles", quartiles_json(&rate));
	add_text(o, "reference", reference->mode->name);
	add_double(o, "ratio", ratio.median);
	json_object_object_add(o, "ratio_quartiles", quartiles_json(&ratio));
	add_flag(o, "meaningless", meaningless(&ratio));
	json_object_object_add(o, "faults", faults_json(c));
	add_number(o, "anonymous_bytes", c->anonymous);
	add_number(o, "page_table_bytes", c->page_tables);
	return o;
}

void bench_json(const struct bench_report *report)
{
	struct json_object *o = json_object_new_object();
	struct json_object *results = json_object_new_array();
	struct json_object *unavailable = json_object_new_object();
	size_t i;

	for (i = 0; i < report->count; i++) {
		const struct bench_case *c = &report->cases[i];

		if (c->unavailable)
			add_text(unavailable, c->mode->name, c->why);
		else
			json_object_array_add(results, case_json(report, c));
	}
	json_object_object_add(o, "machine", machine_json(report));
	json_object_object_add(o, "results", results);
	json_object_object_add(o, "unavailable", unavailable);
	print_json(o);
}

/* ---- the picture ---- */

/* One block for each mode, in which RAM grows first. */
static int write_data(const struct bench_report *report, const char *path)
{
	FILE *file = fopen(path, "we");
	size_t m, i;
	int err;

	if (!file)
		return -errno;
	for (m = 0; m < report->options->modes; m++) {
		const char *name = report->options->mode[m]->name;

		fprintf(file, "# vcpus memory pages/s lower-quartile upper-quartile mode\n\"%s\"\n",
			name);
		for (i = 0; i < report->count; i++) {
			const struct bench_case *c = &report->cases[i];
			struct spread rate;

			if (c->mode != report->options->mode[m] ||
			    c->unavailable)
				continue;
			rate = rate_of(c);
			fprintf(file, "%u %" PRIu64 " %.0f %.0f %.0f %s\n",
				c->bench->vcpus, c->bench->bytes, rate.median,
				rate.low, rate.high, name);
		}
		fputs("\n\n", file);
	}
	err = ferror(file) ? -EIO : 0;
	return fclose(file) ? -errno : err;
}

/* Over the vCPUs, or over RAM if only that was varied. */
static void write_script(const struct bench_report *report, FILE *to,
			 const char *data)
{
	const struct bench_options *o = report->options;
	bool ram = o->vcpu_counts == 1 && o->memories > 1;
	int x = ram ? 2 : 1;

	fprintf(to,
		"set terminal svg size 720,440 font 'sans,12' background 'white'\n"
		"set output '%s'\n"
		"set title '%s, window %" PRIu64 ", source latency %" PRIu64
		" us, %" PRIu64 " threads'\n"
		"set xlabel '%s'\nset ylabel 'pages/s'\n"
		"set logscale xy\nset grid\nset key outside right\n"
		"set xtics nomirror\n",
		o->plot, o->pattern->name, o->window, o->latency_us,
		o->threads, ram ? "bytes of RAM" : "vCPUs");
	if (ram)
		fputs("set logscale x 2\nset format x '%.0b %BB'\n", to);
	else
		fputs("set logscale x 2\n", to);
	fprintf(to, "plot for [i=0:%zu] '%s' index i using %d:3:4:5 "
		"with yerrorlines pointtype i+4 pointsize 0.7 "
		"title columnheader(1)\n", o->modes - 1, data, x);
}

static int draw(const struct bench_report *report, const char *data)
{
	FILE *gnuplot = popen("gnuplot", "we");
	int status;

	if (!gnuplot)
		return -errno;
	write_script(report, gnuplot, data);
	status = pclose(gnuplot);
	return status < 0 ? -errno : status;
}

static bool have_gnuplot(void)
{
	return !system("command -v gnuplot >/dev/null");
}

int bench_plot(const struct bench_report *report)
{
	const char *plot = report->options->plot;
	size_t stem = strlen(plot);
	char *data;
	int err;

	if (stem > 4 && !strcmp(plot + stem - 4, ".svg"))
		stem -= 4;
	if (asprintf(&data, "%.*s.dat", (int)stem, plot) < 0)
		return -ENOMEM;
	err = write_data(report, data);
	if (err)
		complain("cannot write %s: %s", data, strerror(-err));
	else if (!have_gnuplot())
		complain("there is no gnuplot to draw %s; its data is in %s",
			 plot, data);
	else if ((err = draw(report, data)))
		complain("gnuplot could not draw %s; its data is in %s", plot,
			 data);
	free(data);
	return err;
}
