/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Many seeds, for a time. In: the first seed. Out: what failed, grouped by its
 * kind. Worker processes take one seed after the other; what ends a worker is a
 * failure of the seed that it was at, and another one goes on behind that.
 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "attempt.h"
#include "crash.h"
#include "explore.h"
#include "search.h"

#define AGAIN_ONE_IN 256U		/* seeds are run once more */
#define SEEN_BITS (1U << 28)
#define KINDS 4096U

/* What a worker says about a seed; it fits into a pipe at once. */
struct record {
	uint64_t seed;
	struct outcome outcome;
};

/* What the workers and their parent share. */
static struct shared {
	uint64_t next, end, runs, steps, switches, distinct;
	uint64_t seed[MAX_JOBS];		/* that a worker is at */
	bool stop;
	uint64_t seen[SEEN_BITS / 64];	/* by digest of a run's switches */
} *shared;

static int records[2];			/* a pipe: a failure each */

/* Failures that are the same fault, as far as can be seen. */
static struct group {
	struct record first;
	const char *fault;		/* known, or NULL */
	double after;			/* seconds */
	uint64_t count;
} groups[KINDS];
static unsigned int group_count;
static bool by_text, first_only;
static struct timespec began;
static double time_limit;		/* seconds since then */

static double seconds_since(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)(now.tv_sec - began.tv_sec) +
	       (double)(now.tv_nsec - began.tv_nsec) / 1e9;
}

static bool is_over(void)
{
	return shared->stop || shared->next >= shared->end ||
		seconds_since() >= time_limit;
}

/* ---- a worker ---- */

static unsigned int job;		/* this worker's number */

static void send_record(const char *kind, const char *text)
{
	struct record record;

	memset(&record, 0, sizeof(record));
	record.seed = shared->seed[job];
	record.outcome.steps = sched_steps;
	snprintf(record.outcome.kind, sizeof(record.outcome.kind), "%s", kind);
	snprintf(record.outcome.text, sizeof(record.outcome.text), "%s", text);
	while (write(records[1], &record, sizeof(record)) < 0 && errno == EINTR)
		;
}

static uint64_t mix(uint64_t digest, uint64_t value)
{
	digest = (digest ^ value) * 0x9e3779b97f4a7c15ULL;
	return digest ^ digest >> 29;
}

/* Of the run that was just made. */
static uint64_t run_digest(const struct outcome *outcome)
{
	uint64_t digest = mix(outcome->steps, outcome->switches);
	uint32_t count, i;
	const struct change *change = sched_changes(&count);

	for (i = 0; i < count; i++)
		digest = mix(digest,
			     (uint64_t)change[i].at << 8 | change[i].to);
	for (i = 0; outcome->kind[i]; i++)
		digest = mix(digest, (uint8_t)outcome->kind[i]);
	return digest;
}

static void count_run(const struct outcome *outcome)
{
	uint64_t digest = run_digest(outcome);
	uint64_t *word = &shared->seen[digest % SEEN_BITS / 64];
	uint64_t bit = 1ULL << digest % 64;

	__atomic_fetch_add(&shared->runs, 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&shared->steps, outcome->steps, __ATOMIC_RELAXED);
	__atomic_fetch_add(&shared->switches, outcome->switches,
			   __ATOMIC_RELAXED);
	if (!(__atomic_fetch_or(word, bit, __ATOMIC_RELAXED) & bit))
		__atomic_fetch_add(&shared->distinct, 1, __ATOMIC_RELAXED);
}

static bool after_run(const struct outcome *outcome)
{
	count_run(outcome);
	return !is_over();
}

static void run_small(const struct plan *plan)
{
	struct bounds bounds = seed_bounds;
	struct outcome outcome;

	bounds.after = after_run;
	explore(plan, &bounds, &outcome);
	if (outcome.kind[0])
		send_record(outcome.kind, outcome.text);
}

static void run_seed(const struct plan *plan, uint64_t seed)
{
	struct schedule schedule;
	struct outcome outcome;
	uint64_t digest;

	seed_schedule(&schedule, seed);
	crash_limit();
	run_plan(plan, &schedule, &outcome);
	count_run(&outcome);
	if (outcome.kind[0])
		send_record(outcome.kind, outcome.text);
	if (seed % AGAIN_ONE_IN)
		return;
	digest = run_digest(&outcome);
	run_plan(plan, &schedule, &outcome);
	if (run_digest(&outcome) != digest)
		send_record("the simulator: another run of the same seed",
			    outcome.text);
}

static void work(void)
{
	struct plan plan;
	uint64_t seed;

	crash_tell(send_record);
	while (!is_over()) {
		seed = __atomic_fetch_add(&shared->next, 1, __ATOMIC_RELAXED);
		shared->seed[job] = seed;
		seed_plan(&plan, seed);
		if (seed_is_small(seed))
			run_small(&plan);
		else
			run_seed(&plan, seed);
	}
}

static pid_t start_worker(unsigned int number)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		perror("sim: a worker can't be started");
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGINT, SIG_IGN);
	job = number;
	windows_init();
	if (!freopen("/dev/null", "w", stderr))
		_exit(1);
	work();
	_exit(0);
}

/* ---- their parent ---- */

/* Texts that differ in their numbers only are the same. */
static bool same_words(const char *a, const char *b)
{
	static const char digits[] = "0123456789";

	for (;;) {
		a += strspn(a, digits);
		b += strspn(b, digits);
		if (!strncmp(a, "x", 1) && !strncmp(b, "x", 1)) {
			a += strspn(a, "x0123456789abcdef");
			b += strspn(b, "x0123456789abcdef");
		}
		if (*a != *b)
			return false;
		if (!*a)
			return true;
		a++;
		b++;
	}
}

static bool is_like(const struct group *group, const struct outcome *outcome,
		    const char *fault)
{
	return group->fault == fault &&
	       !strcmp(group->first.outcome.kind, outcome->kind) &&
	       (!by_text || same_words(group->first.outcome.text,
				       outcome->text));
}

static void add_record(const struct record *record)
{
	struct plan plan;
	const char *fault;
	unsigned int i;

	seed_plan(&plan, record->seed);
	fault = known_fault(&plan, &record->outcome);
	for (i = 0; i < group_count; i++)
		if (is_like(&groups[i], &record->outcome, fault))
			break;
	if (i == KINDS)
		i--;		/* more than can be told apart */
	if (i == group_count) {
		groups[i].first = *record;
		groups[i].fault = fault;
		groups[i].after = seconds_since();
		group_count++;
		shared->stop |= first_only && !fault;
	}
	groups[i].count++;
}

static void read_records(int timeout)
{
	struct pollfd ready = { .fd = records[0], .events = POLLIN };
	struct record record;

	poll(&ready, 1, timeout);
	while (read(records[0], &record, sizeof(record)) == sizeof(record))
		add_record(&record);
}

/* It has said why it ended; else that has to be made out here. */
static void note_end(unsigned int number, int status)
{
	char kind[32];

	if (WIFEXITED(status))
		return;
	snprintf(kind, sizeof(kind), "signal %d", WTERMSIG(status));
	job = number;
	send_record(kind, "a worker was ended by it");
}

/* Those that have ended: how many are not to be replaced. */
static unsigned int replace_workers(pid_t *worker, unsigned int jobs)
{
	unsigned int i, ended = 0;
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (i = 0; i < jobs && worker[i] != pid; i++)
			;
		if (i == jobs)
			continue;
		note_end(i, status);
		worker[i] = 0;
		if (status && !is_over())
			worker[i] = start_worker(i);
		ended += worker[i] <= 0;
	}
	return ended;
}

static void print_progress(void)
{
	static double next;
	double now = seconds_since();

	if (now < next || !isatty(STDERR_FILENO))
		return;
	next = now + 0.2;
	fprintf(stderr, "\r%6.0f s  %llu runs  %u kinds of failure ", now,
		(unsigned long long)shared->runs, group_count);
}

static void watch_workers(unsigned int jobs)
{
	pid_t worker[MAX_JOBS];
	unsigned int i, left = jobs;

	for (i = 0; i < jobs; i++) {
		worker[i] = start_worker(i);
		left -= worker[i] < 0;
	}
	while (left) {
		read_records(200);
		left -= replace_workers(worker, jobs);
		print_progress();
	}
	read_records(0);
	if (isatty(STDERR_FILENO))
		fprintf(stderr, "\r\033[K");
}

static void on_interrupt(int signo)
{
	(void)signo;
	shared->stop = true;
}

static void prepare(const struct search_options *options)
{
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (shared == MAP_FAILED || pipe2(records, O_CLOEXEC))
		abort();
	fcntl(records[0], F_SETFL, O_NONBLOCK);
	shared->next = options->from;
	shared->end = options->seeds > UINT64_MAX - options->from ?
		UINT64_MAX : options->from + options->seeds;
	time_limit = options->seconds;
	by_text = options->by_text;
	first_only = options->first;
	signal(SIGINT, on_interrupt);
	clock_gettime(CLOCK_MONOTONIC, &began);
}

/* ---- what it says ---- */

/* How many kinds, and in *runs how many runs, are of known faults, or not. */
static unsigned int count_groups(bool known, uint64_t *runs)
{
	unsigned int i, n = 0;

	*runs = 0;
	for (i = 0; i < group_count; i++) {
		if (!groups[i].fault == known)
			continue;
		n++;
		*runs += groups[i].count;
	}
	return n;
}

static void print_groups(bool known, const char *replay)
{
	unsigned int i;

	for (i = 0; i < group_count; i++) {
		const struct group *group = &groups[i];

		if (!group->fault == known)
			continue;
		printf("%s%s%s: %llu times, first after %.1f s\n"
		       "\t%s\n\tsim run %llu%s --tell\n",
		       known ? group->fault : "", known ? ": " : "",
		       group->first.outcome.kind,
		       (unsigned long long)group->count, group->after,
		       group->first.outcome.text,
		       (unsigned long long)group->first.seed, replay);
	}
}

static void print_words(const struct search_options *options)
{
	double seconds = seconds_since();
	uint64_t runs, known_runs;
	unsigned int kinds = count_groups(false, &runs);
	unsigned int known_kinds = count_groups(true, &known_runs);

	if (known_kinds)
		printf("known:\n");
	print_groups(true, options->replay);
	if (kinds)
		printf("failures:\n");
	print_groups(false, options->replay);
	printf("sim: %llu runs in %.0f s (%.0f a second), %.1f million steps, "
	       "%.1f million switches, %llu interleavings that differ; "
	       "%u kinds of failure in %llu runs, "
	       "of known faults %u in %llu\n",
	       (unsigned long long)shared->runs, seconds,
	       (double)shared->runs / seconds, (double)shared->steps / 1e6,
	       (double)shared->switches / 1e6,
	       (unsigned long long)shared->distinct, kinds,
	       (unsigned long long)runs, known_kinds,
	       (unsigned long long)known_runs);
}

static void print_string(const char *name, const char *text)
{
	printf("\"%s\": \"", name);
	for (; *text; text++) {
		if (*text == '"' || *text == '\\')
			putchar('\\');
		putchar((unsigned char)*text < ' ' ? ' ' : *text);
	}
	printf("\"");
}

static void print_json(void)
{
	double seconds = seconds_since();
	unsigned int i;

	printf("{\"seconds\": %.1f, \"runs\": %llu, \"steps\": %llu, "
	       "\"switches\": %llu, \"distinct\": %llu, \"failures\": [",
	       seconds, (unsigned long long)shared->runs,
	       (unsigned long long)shared->steps,
	       (unsigned long long)shared->switches,
	       (unsigned long long)shared->distinct);
	for (i = 0; i < group_count; i++) {
		const struct group *group = &groups[i];

		printf("%s\n{\"seed\": %llu, \"times\": %llu, "
		       "\"after\": %.3f, ",
		       i ? "," : "", (unsigned long long)group->first.seed,
		       (unsigned long long)group->count, group->after);
		print_string("known", group->fault ? group->fault : "");
		printf(", ");
		print_string("kind", group->first.outcome.kind);
		printf(", ");
		print_string("text", group->first.outcome.text);
		printf("}");
	}
	printf("]}\n");
}

bool search(const struct search_options *options)
{
	uint64_t runs;

	prepare(options);
	watch_workers(options->jobs);
	if (options->json)
		print_json();
	else
		print_words(options);
	if (!shared->runs)
		fprintf(stderr, "sim: nothing was run\n");
	return shared->runs && !count_groups(false, &runs);
}
