/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * libkvmfault-nbd against real servers, and against one that lies. This program
 * stands in the place of the core: it submits fetches, and has a
 * kvmfault_fetch_done() of its own.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvmfault-nbd.h"
#include "nbd-server.h"
#include "need.h"
#include "unit.h"

#define MIB (1ULL << 20)
#define PATTERN "pattern", "size=64M"
#define LENGTH (64 * MIB)
#define FETCHES 200

/* What the core has for each fetch in flight. */
struct kvmfault_fetch {
	uint64_t offset;
	size_t length;
	char *buffer;
	atomic_uint answers;
	atomic_int error;
};

static struct kvmfault_source source;
static struct kvmfault_nbd_options options;
static struct kvmfault_fetch fetches[FETCHES];
static atomic_uint done, errors, warnings;
static unsigned int answer_us;		/* how long an answer takes here */
static pthread_mutex_t log_lock = PTHREAD_MUTEX_INITIALIZER;
static char log_text[8192];

void kvmfault_fetch_done(struct kvmfault_fetch *fetch, int error)
{
	if (answer_us)
		usleep(answer_us);
	atomic_store(&fetch->error, error);
	atomic_fetch_add(&fetch->answers, 1);
	atomic_fetch_add(&done, 1);
}

static void note_line(void *data, enum kvmfault_log_level level,
		      const char *line)
{
	ck_assert_ptr_eq(data, &options);
	atomic_fetch_add(level == KVMFAULT_LOG_ERROR ? &errors : &warnings, 1);
	pthread_mutex_lock(&log_lock);
	if (strlen(log_text) + strlen(line) + 2 < sizeof(log_text))
		strcat(strcat(log_text, line), "\n");
	pthread_mutex_unlock(&log_lock);
}

static bool was_logged(const char *words)
{
	bool found;

	pthread_mutex_lock(&log_lock);
	found = strstr(log_text, words);
	pthread_mutex_unlock(&log_lock);
	return found;
}

/* It is written after the fetch is answered. */
static void await_line(const char *words)
{
	while (!was_logged(words))
		usleep(1000);
}

/* One that is meant to pass: in it a source is opened, on a slow machine too. */
static uint32_t short_deadline(void)
{
	const char *times = getenv("CK_TIMEOUT_MULTIPLIER");

	return 2000 * (times ? (uint32_t)atoi(times) : 1);
}

static void up(void)
{
	options = (struct kvmfault_nbd_options){
		.size = sizeof(options), .uri = server_uri(),
		.log = note_line, .data = &options, .pause_max_ms = 50,
		.deadline_ms = 600000,	/* for slow machines */
	};
	memset(&source, 0, sizeof(source));
	source.size = sizeof(source);
}

/* As kvmfault_source_free() does, which the core has. */
static void free_source(void)
{
	if (source.free)
		source.free(source.data);
	memset(&source, 0, sizeof(source));
	source.size = sizeof(source);
}

static void down(void)
{
	size_t i;

	free_source();
	for (i = 0; i < FETCHES; i++)
		free(fetches[i].buffer);
	server_clean_up();
}

static int try_open(void)
{
	return kvmfault_source_nbd(&options, &source);
}

static void open_source(void)
{
	ck_assert_int_eq(try_open(), 0);
	ck_assert_str_eq(source.name, "nbd");
}

static int submit(struct kvmfault_fetch *fetch, uint64_t offset, size_t length)
{
	fetch->offset = offset;
	fetch->length = length;
	fetch->buffer = realloc(fetch->buffer, length);
	memset(fetch->buffer, 0x5a, length);
	return source.submit(source.data, fetch, offset, fetch->buffer, length);
}

static void await(unsigned int count)
{
	while (atomic_load(&done) < count)
		usleep(200);
}

/* Answered once, and right. */
static void expect_right(struct kvmfault_fetch *fetch)
{
	ck_assert_uint_eq(atomic_load(&fetch->answers), 1);
	ck_assert_msg(!atomic_load(&fetch->error), "fetch: %s\n%s",
		      strerror(-atomic_load(&fetch->error)), log_text);
	ck_assert(server_is_right(fetch->buffer,
				  options.offset + fetch->offset,
				  fetch->length));
	atomic_store(&fetch->answers, 0);
}

static void submit_many(unsigned int count, size_t length)
{
	unsigned int i;

	atomic_store(&done, 0);
	for (i = 0; i < count; i++)
		ck_assert_int_eq(submit(&fetches[i], i * 37 % 256 * length,
					length), 0);
}

static void fetch_many(unsigned int count, size_t length)
{
	unsigned int i;

	submit_many(count, length);
	await(count);
	for (i = 0; i < count; i++)
		expect_right(&fetches[i]);
}

static int fetch_one(uint64_t offset, size_t length)
{
	unsigned int before = atomic_load(&done);

	ck_assert_int_eq(submit(&fetches[0], offset, length), 0);
	await(before + 1);
	ck_assert_uint_eq(atomic_exchange(&fetches[0].answers, 0), 1);
	return atomic_load(&fetches[0].error);
}

/* Its threads by their names; each has all signals blocked. */
static unsigned int count_threads(void)
{
	char path[300], line[100];
	unsigned int count = 0;
	struct dirent *entry;
	DIR *dir = opendir("/proc/self/task");

	while ((entry = readdir(dir))) {
		unsigned long long blocked = 0;
		bool ours = false;
		FILE *file;

		snprintf(path, sizeof(path), "/proc/self/task/%s/status",
			 entry->d_name);
		file = fopen(path, "re");
		while (file && fgets(line, sizeof(line), file)) {
			ours |= !strncmp(line, "Name:\tkvmfault-nbd-", 19);
			sscanf(line, "SigBlk: %llx", &blocked);
		}
		if (file)
			fclose(file);
		count += ours;
		ck_assert(!ours || blocked & 1U << (SIGPIPE - 1));
	}
	closedir(dir);
	return count;
}

/* ---- bytes ---- */

TEST_GROUP_FOR(bytes, up, down, 300);

TEST(bytes, each_page_is_right)
{
	SERVER_NBDKIT(PATTERN);
	open_source();
	ck_assert_uint_eq(source.length, LENGTH);
	ck_assert_int_eq(atomic_load(&errors), 0);
	fetch_many(FETCHES, PAGE);
	fetch_many(FETCHES, 64 * PAGE);
	ck_assert_int_eq(atomic_load(&warnings), 0);
}

TEST(bytes, read_waits_for_them)
{
	char *buffer = malloc(MIB);

	SERVER_NBDKIT("--filter=delay", PATTERN, "rdelay=1ms");
	open_source();
	ck_assert_int_eq(source.read(source.data, 5 * PAGE, buffer, MIB), 0);
	ck_assert(server_is_right(buffer, 5 * PAGE, MIB));
	free(buffer);
}

TEST(bytes, a_part_of_the_export)
{
	options.offset = 3 * MIB + 512;
	options.length = 5 * MIB;
	SERVER_NBDKIT(PATTERN);
	open_source();
	ck_assert_uint_eq(source.length, 5 * MIB);
	fetch_many(100, 2 * PAGE);
	ck_assert_int_eq(fetch_one(5 * MIB - PAGE, PAGE), 0);
	ck_assert(server_is_right(fetches[0].buffer,
				  options.offset + 5 * MIB - PAGE, PAGE));
}

/* Longer than any server takes at once. */
TEST(bytes, in_parts)
{
	SERVER_NBDKIT("pattern", "size=256M");
	open_source();
	ck_assert_int_eq(fetch_one(MIB, 100 * MIB), 0);
	ck_assert(server_is_right(fetches[0].buffer, MIB, 100 * MIB));
}

TEST(bytes, many_at_once_with_delay)
{
	SERVER_NBDKIT("--filter=delay", PATTERN, "rdelay=1ms");
	open_source();
	fetch_many(FETCHES, PAGE);
	ck_assert_uint_eq(count_threads(), 4);
}

/* What a server can't do for several connections is done with one. */
TEST(bytes, one_connection)
{
	SERVER_NBDKIT("--filter=multi-conn", PATTERN,
		      "multi-conn-mode=disable");
	open_source();
	ck_assert_uint_eq(count_threads(), 1);
	fetch_many(FETCHES, PAGE);
}

TEST(bytes, sixteen_connections)
{
	options.connections = 16;
	options.requests = 2;
	SERVER_NBDKIT(PATTERN);
	open_source();
	ck_assert_uint_eq(count_threads(), 16);
	fetch_many(FETCHES, PAGE);
}

/* Without structured replies there are no extents. */
TEST(bytes, simple_replies)
{
	SERVER_NBDKIT("--no-sr", PATTERN);
	open_source();
	ck_assert_ptr_null(source.extent);
	fetch_many(FETCHES, PAGE);
}

TEST(bytes, smaller_reads_than_wanted)
{
	SERVER_NBDKIT("--filter=blocksize-policy", PATTERN,
		      "blocksize-minimum=512", "blocksize-preferred=64K",
		      "blocksize-maximum=64K", "blocksize-error-policy=error");
	open_source();
	ck_assert_uint_eq(source.chunk, 65536);
	fetch_many(20, 64 * PAGE);
}

TEST(bytes, tls)
{
	char uri[400];
	FILE *keys = fopen(server_path("keys"), "we");

	fputs("alice:00112233445566778899aabbccddeeff\n", keys);
	fclose(keys);
	SERVER_NBDKIT("--tls=require", "--tls-psk", server_path("keys"),
		      PATTERN);
	snprintf(uri, sizeof(uri),
		 "nbds+unix://alice@/?socket=%s&tls-psk-file=%s",
		 server_path("socket"), server_path("keys"));
	options.uri = uri;
	/* A URI's file is opened only if the VMM says so. */
	ck_assert_int_eq(try_open(), -EPERM);
	options.allow_files = true;
	open_source();
	fetch_many(50, PAGE);
}

/* ---- other servers, and filters ---- */

TEST(bytes, file)
{
	server_make_image(server_path("image"), LENGTH, NULL);
	SERVER_NBDKIT("--filter=stats", "file", server_path("image"),
		      "statsfile=/dev/null");
	open_source();
	fetch_many(FETCHES, PAGE);
}

TEST(bytes, xz)
{
	server_make_image(server_path("image"), LENGTH, NULL);
	server_run((const char *const[]){ "xz", "-k", "-0",
		   "--block-size=1MiB", server_path("image"), NULL });
	SERVER_NBDKIT("--filter=xz", "file", server_path("image.xz"));
	open_source();
	ck_assert_uint_eq(source.length, LENGTH);
	fetch_many(FETCHES, PAGE);
}

TEST(bytes, gzip)
{
	server_make_image(server_path("image"), LENGTH, NULL);
	server_run((const char *const[]){ "gzip", "-k", "-1",
		   server_path("image"), NULL });
	SERVER_NBDKIT("--filter=gzip", "file", server_path("image.gz"));
	open_source();
	ck_assert_uint_eq(source.length, LENGTH);
	fetch_many(FETCHES, PAGE);
}

static void make_qcow2(bool (*hole)(uint64_t page))
{
	server_make_image(server_path("image"), LENGTH, hole);
	server_run((const char *const[]){ "qemu-img", "convert", "-f", "raw",
		   "-O", "qcow2", server_path("image"), server_path("qcow2"),
		   NULL });
}

static void start_qemu(void)
{
	server_start((const char *const[]){ "qemu-nbd", "-r", "-t", "-e", "8",
		     "-f", "qcow2", "-k", server_path("socket"),
		     server_path("qcow2"), NULL });
}

TEST(bytes, qcow2)
{
	make_qcow2(NULL);
	start_qemu();
	open_source();
	ck_assert_uint_eq(source.length, LENGTH);
	fetch_many(FETCHES, PAGE);
}

TEST(bytes, the_server_tries_again)
{
	SERVER_NBDKIT("--filter=retry-request", "--filter=error", PATTERN,
		      "error-pread=EIO", "error-pread-rate=5%",
		      "retry-request-retries=20", "retry-request-delay=1");
	open_source();
	fetch_many(50, PAGE);
}

/* ---- extents ---- */

TEST_GROUP_FOR(extents, up, down, 120);

static bool is_hole(uint64_t page)
{
	return page % 64 >= 16;
}

/* Compares the whole map with the image's, in pieces of 16 pages. */
static unsigned int count_zero_pieces(void)
{
	const uint64_t piece = 16 * PAGE;
	unsigned int found = 0;
	uint64_t at;

	for (at = 0; at < LENGTH; at += piece) {
		uint64_t length = piece;
		int kind = source.extent(source.data, at, &length);

		ck_assert_int_ge(kind, 0);
		ck_assert_uint_ge(length, 1);
		ck_assert_uint_le(length, piece);
		if (kind == KVMFAULT_EXTENT_DATA)
			continue;
		ck_assert(is_hole(at / PAGE));
		ck_assert_uint_eq(length, piece);
		found++;
	}
	return found;
}

TEST(extents, of_a_sparse_file)
{
	server_make_image(server_path("image"), LENGTH, is_hole);
	SERVER_NBDKIT("file", server_path("image"));
	open_source();
	ck_assert_uint_eq(count_zero_pieces(), LENGTH / PAGE / 16 / 4 * 3);
}

TEST(extents, of_a_qcow2)
{
	make_qcow2(is_hole);
	start_qemu();
	open_source();
	ck_assert_uint_eq(count_zero_pieces(), LENGTH / PAGE / 16 / 4 * 3);
}

TEST(extents, of_a_part)
{
	uint64_t length = LENGTH;

	server_make_image(server_path("image"), LENGTH, is_hole);
	SERVER_NBDKIT("file", server_path("image"));
	options.offset = 16 * PAGE;
	options.length = 60 * PAGE;
	open_source();
	ck_assert_int_ne(source.extent(source.data, 0, &length),
			 KVMFAULT_EXTENT_DATA);
	ck_assert_uint_eq(length, 48 * PAGE);
	length = LENGTH;
	ck_assert_int_eq(source.extent(source.data, 48 * PAGE, &length),
			 KVMFAULT_EXTENT_DATA);
	ck_assert_uint_eq(length, 12 * PAGE);
}

/* Far more than one answer has. */
TEST(extents, of_a_huge_export)
{
	uint64_t length = 1ULL << 42;

	SERVER_NBDKIT("memory", "4T");
	open_source();
	while (source.extent(source.data, 1ULL << 41, &length) ==
	       KVMFAULT_EXTENT_DATA)
		usleep(1000);
	ck_assert_uint_ge(length, 1 << 20);
}

/* What is not known is data, and not very much of it. */
TEST(extents, not_known_yet)
{
	uint64_t length = LENGTH;

	options.extents_ms = 1;
	SERVER_NBDKIT("--filter=delay", "memory", "64M", "delay-extents=600");
	open_source();
	ck_assert_int_eq(source.extent(source.data, 0, &length),
			 KVMFAULT_EXTENT_DATA);
	ck_assert_uint_eq(length, MIB);
	SERVER_NBDKIT("memory", "64M");
	while (source.extent(source.data, 0, &length) == KVMFAULT_EXTENT_DATA)
		usleep(1000);
}

TEST(extents, all_is_data)
{
	server_make_image(server_path("image"), LENGTH, is_hole);
	SERVER_NBDKIT("--filter=noextents", "file", server_path("image"));
	open_source();
	if (source.extent)
		ck_assert_uint_eq(count_zero_pieces(), 0);
}

TEST_EACH(extents, refused, 2)
{
	struct liar liar;
	uint64_t length = MIB;

	liar_start(&liar, _i ? LIE_ZERO_STATUS : LIE_NO_STATUS, LENGTH);
	open_source();
	ck_assert_int_eq(source.extent(source.data, 0, &length),
			 KVMFAULT_EXTENT_DATA);
	atomic_store(&liar.lie, LIE_NONE);
	ck_assert_int_eq(fetch_one(0, PAGE), 0);
	ck_assert(_i || was_logged("does not tell of holes"));
	length = LENGTH;
	ck_assert_int_eq(source.extent(source.data, 0, &length),
			 KVMFAULT_EXTENT_DATA);
	ck_assert_uint_eq(length, LENGTH);
	free_source();
	liar_stop(&liar);
}

/* ---- errors at the beginning ---- */

TEST_GROUP_FOR(refusals, up, down, 60);

TEST(refusals, wrong_arguments)
{
	char more[sizeof(options) + 8] = { 0 };
	size_t size = sizeof(more);

	ck_assert_int_eq(kvmfault_source_nbd(NULL, &source), -EINVAL);
	ck_assert_int_eq(kvmfault_source_nbd(&options, NULL), -EINVAL);
	options.size = 0;
	ck_assert_int_eq(try_open(), -EINVAL);
	options.size = sizeof(options);
	source.size = 0;
	ck_assert_int_eq(try_open(), -EINVAL);
	source.size = sizeof(source);
	memcpy(more, &options, sizeof(options));
	memcpy(more, &size, sizeof(size));
	more[size - 1] = 1;
	ck_assert_int_eq(kvmfault_source_nbd((void *)more, &source), -E2BIG);
	options.connections = 17;
	ck_assert_int_eq(try_open(), -EINVAL);
	options.connections = 0;
	options.fetches = 65537;
	ck_assert_int_eq(try_open(), -EINVAL);
	options.fetches = 0;
	options.offset = UINT64_MAX;
	options.length = 2;
	ck_assert_int_eq(try_open(), -EINVAL);
	ck_assert_ptr_null(source.data);
}

/* A caller with an older header, and one with a newer one. */
TEST(refusals, other_versions)
{
	struct {
		struct kvmfault_source now;
		uint64_t later;
	} larger = { .now = { .size = sizeof(larger) }, .later = 1 };

	SERVER_NBDKIT(PATTERN);
	options.size = offsetof(struct kvmfault_nbd_options, offset);
	options.offset = 1;	/* which it does not have */
	ck_assert_int_eq(kvmfault_source_nbd(&options, &larger.now), 0);
	ck_assert_uint_eq(larger.now.size, sizeof(larger));
	ck_assert_uint_eq(larger.later, 0);
	ck_assert_uint_eq(larger.now.length, LENGTH);
	larger.now.free(larger.now.data);
}

TEST(refusals, wrong_uri)
{
	options.uri = NULL;
	ck_assert_int_eq(try_open(), -EINVAL);
	options.uri = "http://localhost/";
	ck_assert_int_eq(try_open(), -EINVAL);
	ck_assert(was_logged("http://localhost/: cannot be opened: "));
	options.uri = "nbd+unix:///";
	ck_assert_int_eq(try_open(), -EINVAL);
}

TEST(refusals, no_server)
{
	ck_assert_int_eq(try_open(), -ENOENT);
	SERVER_NBDKIT(PATTERN);
	server_kill(SIGKILL);
	ck_assert_int_eq(try_open(), -ECONNREFUSED);
	ck_assert_int_eq(atomic_load(&errors), 2);
	ck_assert_ptr_null(source.data);
}

TEST(refusals, too_short)
{
	SERVER_NBDKIT(PATTERN);
	options.length = LENGTH + 1;
	ck_assert_int_eq(try_open(), -ENODATA);
	ck_assert(was_logged("has 67108864 bytes only"));
	options.length = 0;
	options.offset = LENGTH;
	ck_assert_int_eq(try_open(), -ENODATA);
	options.offset = UINT64_MAX;
	ck_assert_int_eq(try_open(), -ENODATA);
	options.offset = 0;
	options.length = LENGTH;
	ck_assert_int_eq(try_open(), 0);
}

TEST(refusals, empty)
{
	SERVER_NBDKIT("memory", "0");
	ck_assert_int_eq(try_open(), -ENODATA);
}

TEST(refusals, large_blocks)
{
	SERVER_NBDKIT("--filter=blocksize-policy", PATTERN,
		      "blocksize-minimum=64K", "blocksize-preferred=64K");
	ck_assert_int_eq(try_open(), -EOPNOTSUPP);
	SERVER_NBDKIT("--filter=blocksize-policy", PATTERN,
		      "blocksize-minimum=4K", "blocksize-preferred=64K");
	options.offset = 512;
	ck_assert_int_eq(try_open(), -EINVAL);
	options.offset = 8192;
	open_source();
	fetch_many(50, PAGE);
}

/* Something listens, and says nothing. */
TEST(refusals, a_mute)
{
	struct liar liar;

	options.deadline_ms = 50;
	SERVER_NBDKIT("--filter=delay", PATTERN, "delay-open=10");
	ck_assert_int_eq(try_open(), -ETIMEDOUT);
	server_kill(SIGKILL);
	liar_start(&liar, LIE_NONE, LENGTH);
	options.deadline_ms = 600000;
	open_source();
	free_source();
	liar_stop(&liar);
}

TEST(refusals, no_such_export)
{
	char uri[200];

	snprintf(uri, sizeof(uri), "nbd+unix:///other?socket=%s",
		 server_path("socket"));
	options.uri = uri;
	SERVER_NBDKIT("--filter=exportname", PATTERN, "exportname=one",
		      "exportname-strict=true");
	ck_assert_int_eq(try_open(), -ENOENT);
}

TEST(refusals, no_nbd_server)
{
	struct liar liar;

	liar_start(&liar, LIE_GREETING, LENGTH);
	ck_assert_int_eq(try_open(), -EPROTO);
	ck_assert(was_logged("cannot be opened: "));
	liar_stop(&liar);
}

TEST(refusals, too_many_descriptors)
{
	struct rlimit limit, few;

	SERVER_NBDKIT(PATTERN);
	getrlimit(RLIMIT_NOFILE, &limit);
	few = limit;
	few.rlim_cur = 3;
	setrlimit(RLIMIT_NOFILE, &few);
	ck_assert_int_eq(try_open(), -EMFILE);
	setrlimit(RLIMIT_NOFILE, &limit);
	open_source();
	fetch_many(10, PAGE);
}

/* ---- each call that may fail, in its turn ---- */

static int fail_at;			/* 0: none does */

static bool fails_now(void)
{
	return fail_at && !--fail_at;
}

void *__real_calloc(size_t count, size_t size);
char *__real_strdup(const char *text);
int __real_eventfd(unsigned int count, int flags);
int __real_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
			  void *(*run)(void *), void *data);
void *__wrap_calloc(size_t count, size_t size);
char *__wrap_strdup(const char *text);
int __wrap_eventfd(unsigned int count, int flags);
int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
			  void *(*run)(void *), void *data);

void *__wrap_calloc(size_t count, size_t size)
{
	return fails_now() ? NULL : __real_calloc(count, size);
}

char *__wrap_strdup(const char *text)
{
	return fails_now() ? NULL : __real_strdup(text);
}

int __wrap_eventfd(unsigned int count, int flags)
{
	if (!fails_now())
		return __real_eventfd(count, flags);
	errno = EMFILE;
	return -1;
}

int __wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr,
			  void *(*run)(void *), void *data)
{
	return fails_now() ? EAGAIN :
			     __real_pthread_create(thread, attr, run, data);
}

static unsigned int count_descriptors(void)
{
	unsigned int count = 0;
	int fd;

	for (fd = 0; fd < 256; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

TEST(refusals, the_nth_call_fails)
{
	/* The source, its URI, its requests; then four connections' kicks, and
	 * their threads. */
	static const int expected[] = {
		-ENOMEM, -ENOMEM, -ENOMEM, -EMFILE, -EMFILE, -EMFILE, -EMFILE,
		-EAGAIN, -EAGAIN, -EAGAIN, -EAGAIN, 0,
	};
	unsigned int n, before;

	SERVER_NBDKIT(PATTERN);
	before = count_descriptors();
	for (n = 0; n < sizeof(expected) / sizeof(*expected); n++) {
		fail_at = (int)n + 1;
		ck_assert_int_eq(try_open(), expected[n]);
		fail_at = 0;
		if (!expected[n])
			break;
		ck_assert_ptr_null(source.data);
		ck_assert_uint_eq(count_threads(), 0);
		ck_assert_uint_eq(count_descriptors(), before);
	}
	fetch_many(10, PAGE);
}

/* ---- errors of fetches ---- */

TEST_GROUP_FOR(failures, up, down, 120);

TEST(failures, the_servers_error)
{
	SERVER_NBDKIT("--filter=error", PATTERN, "error-pread=EIO",
		      "error-pread-rate=100%");
	open_source();
	ck_assert_int_eq(fetch_one(0, PAGE), -EIO);
	ck_assert_int_eq(source.read(source.data, 0, fetches[0].buffer, PAGE),
			 -EIO);
}

/* Neither a short answer is one, nor one with bytes in a place of which nobody
 * knows which of them counts. */
TEST_EACH(failures, a_liar, 3)
{
	static const enum lie lies[] = { LIE_SHORT, LIE_TWICE, LIE_BACKWARDS };
	struct liar liar;

	liar_start(&liar, LIE_NONE, LENGTH);
	open_source();
	atomic_store(&liar.lie, lies[_i]);
	ck_assert_int_eq(fetch_one(MIB, 2 * PAGE), -EPROTO);
	atomic_store(&liar.lie, LIE_NONE);
	ck_assert_int_eq(fetch_one(MIB, 2 * PAGE), 0);
	ck_assert(server_is_right(fetches[0].buffer, MIB, 2 * PAGE));
	free_source();
	liar_stop(&liar);
}

/* The connection is of no use any more, or the server ends: another one is
 * asked. */
TEST_EACH(failures, a_request_is_repeated, 4)
{
	static const enum lie lies[] = {
		LIE_MAGIC, LIE_SILENT, LIE_HANG_UP, LIE_ENDS,
	};
	struct liar liar;

	if (_i == 1)
		options.deadline_ms = 2 * short_deadline();
	liar_start(&liar, LIE_NONE, LENGTH);
	open_source();
	atomic_store(&liar.lie, lies[_i]);
	atomic_store(&liar.requests, 0);
	ck_assert_int_eq(submit(&fetches[0], MIB, 2 * PAGE), 0);
	while (!atomic_load(&liar.requests))
		usleep(100);
	atomic_store(&liar.lie, LIE_NONE);
	await(1);
	expect_right(&fetches[0]);
	ck_assert_uint_ge(atomic_load(&liar.connections), 2);
	await_line("connection 0 is lost: ");
	if (_i == 3)
		await_line("the server is ending");
	free_source();
	liar_stop(&liar);
}

TEST_EACH(failures, by_the_deadline, 3)
{
	static const enum lie lies[] = { LIE_MAGIC, LIE_SILENT, LIE_HANG_UP };
	struct liar liar;

	options.deadline_ms = short_deadline();
	liar_start(&liar, LIE_NONE, LENGTH);
	open_source();
	atomic_store(&liar.lie, lies[_i]);
	ck_assert_int_eq(fetch_one(0, PAGE), -ETIMEDOUT);
	await_line("1 requests had no answer within ");
	atomic_store(&liar.lie, LIE_NONE);
	ck_assert_int_eq(fetch_one(0, PAGE), 0);
	free_source();
	liar_stop(&liar);
}

TEST(failures, the_server_is_slow)
{
	options.deadline_ms = short_deadline();
	SERVER_NBDKIT("--filter=delay", PATTERN, "rdelay=600");
	open_source();
	ck_assert_int_eq(fetch_one(0, PAGE), -ETIMEDOUT);
}

TEST(failures, the_server_is_gone)
{
	options.deadline_ms = short_deadline();
	SERVER_NBDKIT(PATTERN);
	open_source();
	fetch_many(10, PAGE);
	server_kill(SIGKILL);
	ck_assert_int_eq(fetch_one(0, PAGE), -ETIMEDOUT);
	await_line("Connection refused");
	SERVER_NBDKIT(PATTERN);
	ck_assert_int_eq(fetch_one(0, PAGE), 0);
}

/* It comes back with less: its pages are not what they were. */
TEST(failures, the_export_has_shrunk)
{
	struct liar liar;

	options.deadline_ms = short_deadline();
	liar_start(&liar, LIE_NONE, LENGTH);
	open_source();
	atomic_store(&liar.size, LENGTH - 1);
	atomic_store(&liar.lie, LIE_HANG_UP);
	ck_assert_int_eq(fetch_one(0, PAGE), -ETIMEDOUT);
	await_line("the export has 67108863 bytes only");
	free_source();
	liar_stop(&liar);
}

/* It is the VMM that is slow, in its callbacks, and not the server. */
TEST(failures, the_vmm_is_slow)
{
	options.deadline_ms = 4500;
	options.connections = 1;
	SERVER_NBDKIT(PATTERN);
	open_source();
	answer_us = 1600000;
	fetch_many(2, PAGE);
	ck_assert_int_eq(atomic_load(&warnings), 0);
}

TEST(failures, too_many_fetches)
{
	options.fetches = 2;
	SERVER_NBDKIT("--filter=delay", PATTERN, "rdelay=100ms");
	open_source();
	ck_assert_int_eq(submit(&fetches[0], 0, PAGE), 0);
	ck_assert_int_eq(submit(&fetches[1], PAGE, PAGE), 0);
	ck_assert_int_eq(submit(&fetches[2], 0, PAGE), -EAGAIN);
	await(2);
	expect_right(&fetches[0]);
	expect_right(&fetches[1]);
	fetch_many(2, PAGE);
}

/* ---- the connection goes and comes ---- */

TEST_GROUP_FOR(losses, up, down, 300);

TEST_EACH(losses, killed_with_requests_in_flight, 2)
{
	unsigned int i;

	SERVER_NBDKIT("--filter=delay", PATTERN, "rdelay=50ms");
	open_source();
	submit_many(FETCHES, 4 * PAGE);
	usleep(20000);
	/* SIGTERM: it finishes what it has, and closes cleanly. */
	server_kill(_i ? SIGTERM : SIGKILL);
	SERVER_NBDKIT(PATTERN);
	await(FETCHES);
	for (i = 0; i < FETCHES; i++)
		expect_right(&fetches[i]);
	await_line("it is made anew");
	ck_assert_int_eq(atomic_load(&errors), 0);
}

/* Moments that no person has thought of. */
TEST(losses, killed_many_times)
{
	unsigned int round, i, seed = 1;

	SERVER_NBDKIT("--filter=delay", PATTERN, "rdelay=1ms");
	open_source();
	for (round = 0; round < 40; round++) {
		submit_many(FETCHES, (1 + round % 16) * PAGE);
		usleep((useconds_t)rand_r(&seed) % 8000);
		SERVER_NBDKIT("--filter=delay", PATTERN, "rdelay=1ms");
		await(FETCHES);
		for (i = 0; i < FETCHES; i++)
			expect_right(&fetches[i]);
	}
	ck_assert_int_eq(atomic_load(&errors), 0);
}

/* The connections are cut, and the server goes on. (It is qemu-nbd: nbdkit 1.32
 * may end by an assertion then, raw_send_socket.) */
TEST(losses, cut_many_times)
{
	unsigned int round, i, seed = 2;
	int fd;

	make_qcow2(NULL);
	start_qemu();
	open_source();
	for (round = 0; round < 40; round++) {
		submit_many(FETCHES, (1 + round % 64) * PAGE);
		usleep((useconds_t)rand_r(&seed) % 4000);
		for (fd = 3; fd < 64; fd++)
			if ((unsigned int)rand_r(&seed) % 2)
				shutdown(fd, SHUT_RDWR);
		await(FETCHES);
		for (i = 0; i < FETCHES; i++)
			expect_right(&fetches[i]);
	}
	ck_assert_int_eq(atomic_load(&errors), 0);
}

/* The map is completed on another connection. */
TEST(losses, while_the_map_is_made)
{
	options.extents_ms = 1;
	server_make_image(server_path("image"), LENGTH, is_hole);
	SERVER_NBDKIT("--filter=delay", "file", server_path("image"),
		      "delay-extents=600");
	open_source();
	ck_assert_uint_eq(count_zero_pieces(), 0);
	SERVER_NBDKIT("file", server_path("image"));
	while (count_zero_pieces() != LENGTH / PAGE / 16 / 4 * 3)
		usleep(1000);
}

/* ---- no longer wanted ---- */

TEST_GROUP_FOR(cancels, up, down, 60);

TEST(cancels, before_it_was_sent)
{
	SERVER_NBDKIT(PATTERN);
	open_source();
	server_kill(SIGKILL);
	ck_assert_int_eq(submit(&fetches[0], 0, PAGE), 0);
	usleep(50000);
	ck_assert_uint_eq(atomic_load(&done), 0);
	source.cancel(source.data, &fetches[0]);
	ck_assert_uint_eq(atomic_load(&done), 1);
	ck_assert_int_eq(atomic_load(&fetches[0].error), -ECANCELED);
	source.cancel(source.data, &fetches[0]);	/* of which none is */
	ck_assert_uint_eq(atomic_load(&done), 1);
}

/* The server has it, and does not come back with it soon. Others that are on
 * the same connection are repeated. */
TEST(cancels, after_it_was_sent)
{
	struct liar liar;

	liar_start(&liar, LIE_NONE, LENGTH);
	open_source();
	atomic_store(&liar.lie, LIE_SILENT);
	atomic_store(&liar.requests, 0);
	ck_assert_int_eq(submit(&fetches[0], 0, PAGE), 0);
	ck_assert_int_eq(submit(&fetches[1], PAGE, PAGE), 0);
	while (atomic_load(&liar.requests) < 2)
		usleep(100);
	atomic_store(&liar.lie, LIE_NONE);
	source.cancel(source.data, &fetches[0]);
	await(2);
	ck_assert_int_eq(atomic_load(&fetches[0].error), -ECANCELED);
	expect_right(&fetches[1]);
	free_source();
	liar_stop(&liar);
}

/* The answer comes after all: it is as good as another. */
TEST(cancels, and_it_comes)
{
	SERVER_NBDKIT("--filter=delay", PATTERN, "rdelay=20ms");
	open_source();
	ck_assert_int_eq(submit(&fetches[0], 0, PAGE), 0);
	usleep(5000);
	source.cancel(source.data, &fetches[0]);
	await(1);
	ck_assert_uint_eq(atomic_load(&fetches[0].answers), 1);
	ck_assert_int_eq(atomic_load(&warnings), 0);
}

TEST(cancels, freed_with_requests_in_flight)
{
	unsigned int i;

	SERVER_NBDKIT("--filter=delay", PATTERN, "rdelay=60");
	open_source();
	submit_many(FETCHES, PAGE);
	free_source();
	ck_assert_uint_eq(atomic_load(&done), FETCHES);
	for (i = 0; i < FETCHES; i++)
		ck_assert_int_eq(atomic_load(&fetches[i].error), -ECANCELED);
	ck_assert_uint_eq(count_threads(), 0);
	ck_assert_ptr_null(source.data);
}

TEST(cancels, a_child_of_fork_frees_nothing)
{
	int status;
	pid_t child;

	SERVER_NBDKIT(PATTERN);
	open_source();
	child = fork();
	if (!child) {
		char page[PAGE];

		if (source.read(source.data, 0, page, PAGE) != -EIO)
			_exit(2);
		free_source();
		/* What the threads had is lost here: not for valgrind. */
		execl("/bin/true", "true", NULL);
		_exit(1);
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	ck_assert(WIFEXITED(status) && !WEXITSTATUS(status));
	fetch_many(FETCHES, PAGE);
}

int main(void)
{
	if (!have("nbd", server_lacks("nbdkit")) ||
	    !have("nbd", server_lacks("qemu-nbd")))
		return 77;
	return run_suite("nbd");
}
