/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault bench: how fast a guest gets its pages, in several ways. In:
 * options. Out: a table or JSON. The ways take turns, so that whatever else the machine
 * does falls on all of them, and a run counts only if the guest has read what
 * the image has.
 */

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "tool.h"

const struct bench_mode *const bench_modes[] = {
	&bench_raw_uffd, &bench_raw_exit, &bench_uffd, &bench_uffd_sleep,
	&bench_uffd_async, &bench_marker_exit, &bench_kernel_exit, &bench_mmap,
	&bench_resident, NULL,
};

void bench_die(const char *format, ...)
{
	char line[512];
	va_list args;

	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	complain("%s", line);
	_exit(EXIT_FAILED);
}

int bench_why(struct bench *bench, int err, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(bench->why, sizeof(bench->why), format, args);
	va_end(args);
	return err;
}

static double read_clock(clockid_t id)
{
	struct timespec now;

	clock_gettime(id, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

double bench_now(void)
{
	return read_clock(CLOCK_MONOTONIC);
}

/* One of this process's figures, in bytes. */
static uint64_t status(const char *key)
{
	FILE *file = fopen("/proc/self/status", "re");
	unsigned long long value = 0;
	char line[128];

	while (file && fgets(line, sizeof(line), file))
		if (!strncmp(line, key, strlen(key)))
			sscanf(line + strlen(key), ": %llu", &value);
	if (file)
		fclose(file);
	return value * 1024;
}

static void *vcpu_thread(void *arg)
{
	struct bench_vcpu *vcpu = arg;
	struct bench *bench = vcpu->bench;
	int err = machine_call(vcpu->machine, MACHINE_TOUCH,
			       BENCH_TABLE + vcpu->first * sizeof(uint64_t),
			       vcpu->count, bench->options->write, 0);

	if (err)
		bench_die("cannot start vCPU %u: %s", vcpu->machine->id,
			  strerror(-err));
	memset(vcpu->faults, 0, sizeof(vcpu->faults));
	pthread_barrier_wait(&bench->ready);
	pthread_barrier_wait(&bench->go);
	bench->mode->run(vcpu);
	vcpu->ended = bench_now();
	return NULL;
}

static void check(const struct bench_vcpu *vcpu)
{
	if (machine_result(vcpu->machine) != bench_sum(vcpu))
		bench_die("%s: vCPU %u has read what the image does not have",
			  vcpu->bench->mode->name, vcpu->machine->id);
}

/* The guest, from its start to its end: seconds. */
static double run_guest(struct bench *bench, double *cpu)
{
	double began, ended = 0;
	unsigned int i, f;
	int err;

	pthread_barrier_init(&bench->ready, NULL, bench->vcpus + 1);
	pthread_barrier_init(&bench->go, NULL, bench->vcpus + 1);
	for (i = 0; i < bench->vcpus; i++) {
		err = pthread_create(&bench->vcpu[i].thread, NULL, vcpu_thread,
				     &bench->vcpu[i]);
		if (err)
			bench_die("cannot start a thread: %s", strerror(err));
	}
	pthread_barrier_wait(&bench->ready);
	began = bench_now();
	*cpu = read_clock(CLOCK_PROCESS_CPUTIME_ID);
	if (bench->mode->begin)
		bench->mode->begin(bench);
	pthread_barrier_wait(&bench->go);
	for (i = 0; i < bench->vcpus; i++) {
		struct bench_vcpu *vcpu = &bench->vcpu[i];

		pthread_join(vcpu->thread, NULL);
		check(vcpu);
		if (vcpu->ended > ended)
			ended = vcpu->ended;
		for (f = 0; f < KVMFAULT_KIND_COUNT; f++)
			__atomic_fetch_add(&bench->faults[f], vcpu->faults[f],
					   __ATOMIC_RELAXED);
	}
	*cpu = read_clock(CLOCK_PROCESS_CPUTIME_ID) - *cpu;
	pthread_barrier_destroy(&bench->ready);
	pthread_barrier_destroy(&bench->go);
	return ended - began;
}

static uint64_t grown(uint64_t after, uint64_t before)
{
	return after > before ? after - before : 0;
}

static void run_case(struct bench_case *c, bool warm_up)
{
	uint64_t anonymous = status("RssAnon"), tables = status("VmPTE");
	struct bench *bench = c->bench;
	unsigned int f;
	double seconds, cpu;

	bench->mode = c->mode;
	bench->why[0] = 0;
	memset(bench->faults, 0, sizeof(bench->faults));
	if (c->mode->set_up(bench)) {
		c->unavailable = true;
		memcpy(c->why, bench->why, sizeof(c->why));
		c->mode->take_down(bench);
		return;
	}
	seconds = run_guest(bench, &cpu);
	c->anonymous = grown(status("RssAnon"), anonymous);
	c->page_tables = grown(status("VmPTE"), tables);
	c->mode->take_down(bench);
	if (warm_up)
		return;
	c->cpu_seconds[c->runs] = cpu;
	c->seconds[c->runs++] = seconds;
	for (f = 0; f < KVMFAULT_KIND_COUNT; f++)
		c->faults[f] += bench->faults[f];
}

#define WARM_UP 3	/* times what is touched */

/* Memory that this machine has never used is slow when it is first touched,
 * where it is a VM itself. Whatever is freed last is used next. */
static void warm_up(const struct bench *bench)
{
	uint64_t length = WARM_UP * bench->touched * bench->options->page_size;
	void *memory = mmap(NULL, length, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		return;
	memset(memory, 1, length);
	munmap(memory, length);
}

/* All modes on all sizes of RAM, of one number of vCPUs. Each round begins with
 * another, and every second one goes backwards: what a mode leaves behind (whose
 * pages the next one gets, what is in the caches) is not always the same one's. */
static void run_round(struct bench_case *cases, size_t count, unsigned int run)
{
	size_t i;

	for (i = 0; i < count; i++) {
		struct bench_case *c =
			&cases[((run % 2 ? count - 1 - i : i) + run / 2) %
			       count];

		if (c->unavailable)
			continue;
		bench_progress(c, run);
		run_case(c, !run);
	}
}

static int new_machine(const struct bench_options *options, uint64_t vcpus,
		       struct machine **machine)
{
	struct machine_options wanted = {
		.vcpus = (unsigned int)vcpus,
		.irqchip = true,
		.timer = true,
	};
	size_t i;
	int err;

	for (i = 0; i < options->memories; i++)
		if (BENCH_RAM + options->memory[i] > wanted.span)
			wanted.span = BENCH_RAM + options->memory[i];
	err = machine_new(&wanted, machine);
	if (err)
		complain_errno(err, "create a VM");
	return err;
}

/* bench, cases: those of this number of vCPUs. */
static int run_vcpus(const struct bench_options *options, struct bench *bench,
		     struct bench_case *cases)
{
	size_t i, count = options->memories * options->modes;
	struct machine *machine = bench->machine;
	unsigned int run;
	int err = 0;

	for (i = 0; i < options->memories && !err; i++) {
		bench[i].machine = machine;
		err = bench_prepare(&bench[i]);
		warm_up(&bench[i]);
	}
	for (run = 0; run <= options->runs && !err; run++)
		run_round(cases, count, run);
	for (i = 0; i < options->memories; i++)
		bench_unprepare(&bench[i]);
	return err;
}

static double load(void)
{
	double load = 0;

	return getloadavg(&load, 1) == 1 ? load : 0;
}

static int run_all(struct bench_report *report, struct bench *bench)
{
	const struct bench_options *options = report->options;
	struct bench_case *cases = report->cases;
	struct machine *machine;
	size_t v, m;
	int err = 0;

	report->load[0] = load();
	for (v = 0; v < options->vcpu_counts && !err; v++) {
		err = new_machine(options, options->vcpus[v], &machine);
		if (err)
			break;
		for (m = 0; m < options->memories; m++)
			bench[m].machine = machine;
		err = run_vcpus(options, bench, cases);
		machine_free(machine);
		bench += options->memories;
		cases += options->memories * options->modes;
	}
	report->load[1] = load();
	bench_end_progress();
	return err;
}

/* Every mode on every size of RAM, for every number of vCPUs. */
static int plan(const struct bench_options *options, struct bench *bench,
		struct bench_report *report)
{
	size_t v, m, i;

	for (v = 0; v < options->vcpu_counts; v++) {
		for (m = 0; m < options->memories; m++, bench++) {
			bench->options = options;
			bench->memfd = bench->image_fd = -1;
			bench->vcpus = (unsigned int)options->vcpus[v];
			bench->bytes = options->memory[m];
			for (i = 0; i < options->modes; i++) {
				struct bench_case *c =
					&report->cases[report->count++];

				c->bench = bench;
				c->mode = options->mode[i];
				c->seconds = calloc(options->runs,
						    sizeof(double));
				c->cpu_seconds = calloc(options->runs,
							sizeof(double));
				if (!c->seconds || !c->cpu_seconds)
					return -ENOMEM;
			}
		}
	}
	return 0;
}

static int say(const struct bench_report *report)
{
	bool measured = false;
	size_t i;

	for (i = 0; i < report->count; i++) {
		const struct bench_case *c = &report->cases[i];

		measured |= !c->unavailable;
		if (c->unavailable)
			complain("%s is not available: %s", c->mode->name,
				 c->why);
	}
	if (report->options->json)
		bench_json(report);
	else
		bench_table(report);
	if (report->options->plot && bench_plot(report))
		return EXIT_FAILED;
	return measured ? EXIT_OK : EXIT_FAILED;
}

static int bench_all(const struct bench_options *options)
{
	size_t benches = options->vcpu_counts * options->memories, i;
	struct bench_report report = { .options = options };
	struct bench *bench = calloc(benches, sizeof(*bench));
	int err = -ENOMEM, code = EXIT_FAILED;

	report.cases = calloc(benches * options->modes, sizeof(*report.cases));
	if (bench && report.cases)
		err = plan(options, bench, &report);
	if (err)
		complain_errno(err, "start");
	else if (!run_all(&report, bench))
		code = say(&report);
	for (i = 0; i < report.count; i++) {
		free(report.cases[i].seconds);
		free(report.cases[i].cpu_seconds);
	}
	free(report.cases);
	free(bench);
	return code;
}

/* The images are there at once; then what warms up, or RAM. */
static bool has_room(const struct bench_options *o)
{
	uint64_t most = 0, bytes;
	size_t i;

	for (i = 0; i < o->memories; i++) {
		bytes = bench_touched(o, o->memory[i]) * o->page_size;
		if (bytes > most)
			most = bytes;
	}
	return have_room("the bench", most,
			 (unsigned int)o->memories + WARM_UP);
}

int cmd_bench(int argc, char **argv)
{
	struct bench_options options;
	sigset_t bus;
	int code = bench_parse(argc, argv, &options);

	if (code >= 0)
		return code;
	if (!has_room(&options))
		return EXIT_FAILED;
	/* A latency is what was asked for, for all of them. */
	prctl(PR_SET_TIMERSLACK, 1);
	/* A marker's is taken where KVM_RUN has ended: all threads inherit
	 * this. */
	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	pthread_sigmask(SIG_BLOCK, &bus, NULL);
	return bench_all(&options);
}
