/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault serve: a page server for VMMs that are not changed. In: the command
 * line, an image, and VMMs that connect. Out: their guests' pages. There are
 * two processes: a worker, which serves, and its parent, the keeper. When the
 * server ends while VMs lack pages, it lets go of nothing: their guests wait.
 */

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "serve.h"
#include "tool.h"

#define VMS_DEFAULT 256
#define SECONDS_DEFAULT 30
#define SECONDS_MAX 86400
#define PAGE 4096

static const char help[] =
	"Usage: kvmfault serve --listen SOCKET --image FILE|NBD-URI [OPTION]...\n"
	"Bring the pages of VMs that are restored from an image: Firecracker's\n"
	"backend of the kind Uffd. Each VMM connects to the socket.\n\n"
	"  --listen SOCKET   the path of the socket; without it, the one that the\n"
	"                    service manager has passed (LISTEN_FDS)\n"
	"  --image IMAGE     the memory file of the snapshot, or an NBD server's\n"
	"                    export, as nbd://host/export or nbd+unix:///?socket=PATH\n"
	"  --working-set FILE\n"
	"                    bring the pages of such a file before all others\n"
	"  --record FILE     save what VMs touch first, and in which order\n"
	"  --record-seconds N\n"
	"                    for so long after each VM came, 30\n"
	"  --fill RATE|off   bring what no VM has touched: at most so many bytes a\n"
	"                    second for each VM, as 200M; max (default); or not\n"
	"  --vms N           at most so many VMs at once, 256\n"
	"  --metrics SOCKET  answer GET /metrics (Prometheus) and GET /json there\n"
	"  --json            each event is a line with a JSON object\n"
	"  --help            this text\n\n"
	"SIGTERM and SIGINT end it when no VM lacks a page any more, a second one at\n"
	"once. SIGHUP begins the recording anew.\n\n"
	"Or: kvmfault serve --cloud-hypervisor SOCKET --snapshot DIRECTORY\n"
	"Restore one VM of Cloud Hypervisor, which listens at the socket: tell it to\n"
	"receive-migration receiver_url=unix:SOCKET,memory_mode=postcopy\n\n"
	"  --snapshot DIRECTORY\n"
	"                    migration_config.json, state.json and memory-N\n"
	"  --paused          leave the VM paused\n"
	"  --working-set, --fill, --json   as above\n\n"
	"SIGTERM and SIGINT bring the rest at once; a second one ends the VM.\n";

/* ---- what was asked for ---- */

static bool parse_number(const char *name, const char *text, uint64_t most,
			 uint64_t *n)
{
	if (parse_size(text, n) && *n && *n <= most)
		return true;
	complain("--%s takes 1 to %llu, not '%s'", name,
		 (unsigned long long)most, text);
	return false;
}

static bool parse_fill(struct serve *serve, const char *text)
{
	serve->fill = strcmp(text, "off");
	serve->fill_rate = 0;
	if (!serve->fill || !strcmp(text, "max") ||
	    (parse_size(text, &serve->fill_rate) && serve->fill_rate))
		return true;
	complain("--fill takes bytes a second as 200M, or max, or off, not '%s'",
		 text);
	return false;
}

static void take_image(struct serve *serve, const char *text)
{
	static const char *const schemes[] = {
		"nbd://", "nbds://", "nbd+unix://", "nbds+unix://",
	};
	size_t i;

	serve->place.path = text;
	serve->place.uri = NULL;
	for (i = 0; i < sizeof(schemes) / sizeof(*schemes); i++)
		if (!strncmp(text, schemes[i], strlen(schemes[i])))
			serve->place.uri = text;
}

/* Returns false if the option's argument is wrong, which is told, or the option
 * is not known. */
static bool take_serve_option(struct serve *serve, int c)
{
	bool good = true;
	uint64_t n;

	switch (c) {
	case 'l':
		serve->listen_path = optarg;
		break;
	case 'i':
		take_image(serve, optarg);
		break;
	case 'w':
		serve->working_set_path = optarg;
		break;
	case 'r':
		serve->record_path = optarg;
		break;
	case 's':
		good = parse_number("record-seconds", optarg, SECONDS_MAX, &n);
		serve->record_ms = (uint32_t)n * 1000;
		break;
	case 'f':
		good = parse_fill(serve, optarg);
		break;
	case 'v':
		good = parse_number("vms", optarg, SERVE_VMS_MAX, &n);
		serve->vms_max = (unsigned int)n;
		break;
	case 'm':
		serve->metrics_path = optarg;
		break;
	case 'j':
		serve->json = true;
		break;
	case 'c':
		serve->cloud_path = optarg;
		break;
	case 'S':
		serve->snapshot_path = optarg;
		break;
	case 'p':
		serve->paused = true;
		break;
	default:
		good = false;
	}
	return good;
}

static bool check_cloud(const struct serve *serve)
{
	bool good = serve->snapshot_path && !serve->place.path &&
		    !serve->listen_path && !serve->record_path &&
		    !serve->metrics_path;

	if (!good)
		complain("--cloud-hypervisor needs --snapshot, and goes without --image, --listen, --record and --metrics");
	return good;
}

static bool check_serve(const struct serve *serve)
{
	if (serve->cloud_path)
		return check_cloud(serve);
	if (serve->snapshot_path || serve->paused) {
		complain("--snapshot and --paused go with --cloud-hypervisor");
		return false;
	}
	if (!serve->place.path)
		complain("serve needs the image: set --image");
	return serve->place.path;
}

/* Returns an exit code, or -1: go on. */
static int parse_serve(struct serve *serve, int argc, char **argv)
{
	static const struct option options[] = {
		{ "listen", required_argument, NULL, 'l' },
		{ "image", required_argument, NULL, 'i' },
		{ "working-set", required_argument, NULL, 'w' },
		{ "record", required_argument, NULL, 'r' },
		{ "record-seconds", required_argument, NULL, 's' },
		{ "fill", required_argument, NULL, 'f' },
		{ "vms", required_argument, NULL, 'v' },
		{ "metrics", required_argument, NULL, 'm' },
		{ "json", no_argument, NULL, 'j' },
		{ "cloud-hypervisor", required_argument, NULL, 'c' },
		{ "snapshot", required_argument, NULL, 'S' },
		{ "paused", no_argument, NULL, 'p' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	bool good = true;
	int c;

	while (good && (c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 'h') {
			fputs(help, stdout);
			return EXIT_OK;
		}
		good = take_serve_option(serve, c);
	}
	if (good && optind < argc) {
		complain("serve takes no argument '%s'", argv[optind]);
		good = false;
	}
	return good && check_serve(serve) ? -1 : EXIT_USAGE;
}

/* ---- what there is ---- */

static void close_watch(struct serve_watch *watch)
{
	serve_watch_remove(watch);
	if (watch->fd >= 0)
		close(watch->fd);
	watch->fd = -1;
}

/* Each VM takes about ten descriptors. */
static void raise_limits(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

static int open_listener(struct serve *serve)
{
	int fd = serve_socket_activated();

	if (fd >= 0 && serve->listen_path) {
		complain("the service manager passed a socket, and --listen names another: leave out one of them");
		return -EINVAL;
	}
	if (fd == -ENOENT && !serve->listen_path) {
		complain("serve needs a socket: set --listen, or have a service manager pass one");
		return -EINVAL;
	}
	if (fd == -ENOENT)
		fd = serve_socket_listen(serve->listen_path);
	serve->listener.fd = fd;
	serve->listener.ready = serve_client_ready;
	return fd < 0 ? fd : 0;
}

static int open_metrics(struct serve *serve)
{
	int fd = serve_socket_listen(serve->metrics_path);

	serve->metrics.fd = fd;
	serve->metrics.ready = serve_metrics_ready;
	return fd < 0 ? fd : 0;
}

void serve_check_drained(struct serve *serve)
{
	const struct serve_vm *vm;
	unsigned int served = 0;

	for (vm = serve->vms; vm && vm->resident; vm = vm->next)
		served++;
	if (serve->draining && served == serve->clients)
		serve->done = true;
}

/* A VM that lacks pages would wait for ever: so they come first. */
static void begin_drain(struct serve *serve)
{
	struct json_object *event = serve_event("draining", NULL);

	serve->draining = true;
	close_watch(&serve->listener);
	serve_add_number(event, "clients", serve->clients);
	serve_tell(serve, event);
	serve_vm_hurry(serve);
	serve_check_drained(serve);
}

static void take_signal(struct serve_watch *watch)
{
	struct signalfd_siginfo info;

	if (read(watch->fd, &info, sizeof(info)) != sizeof(info))
		return;
	/* A signal to the group comes to both processes: the keeper's word
	 * counts, while there is one. */
	if (watch->serve->channel >= 0 && info.ssi_signo != SERVE_SIGNAL_END &&
	    info.ssi_signo != SERVE_SIGNAL_RECORD)
		return;
	if (info.ssi_signo == SIGHUP || info.ssi_signo == SERVE_SIGNAL_RECORD)
		serve_record_again(watch->serve);
	else if (watch->serve->draining)
		watch->serve->done = true;
	else
		begin_drain(watch->serve);
}

/* The keeper has blocked them. */
static int open_signals(struct serve *serve)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SERVE_SIGNAL_END);
	sigaddset(&set, SERVE_SIGNAL_RECORD);
	serve->signals.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	serve->signals.ready = take_signal;
	if (serve->signals.fd < 0)
		return -errno;
	return serve_watch_add(serve, &serve->signals, EPOLLIN);
}

/* The image's counters are for the demo's proof: here they are of one page. */
static int open_image(struct serve *serve)
{
	int err;

	serve->place.fetches = serve->vms_max * SERVE_FETCHES;
	if (serve->place.fetches > 65536)
		serve->place.fetches = 65536;
	err = image_open(&serve->image, &serve->place, PAGE, 0);
	if (err || !serve->working_set_path)
		return err;
	serve->set = load_working_set(serve->working_set_path);
	if (!serve->set)
		return -ENODATA;
	return image_match_set(&serve->image, serve->set,
			       serve->working_set_path);
}

/* The VMs of a worker that was killed are this one's. */
static int take_kept(struct serve *serve)
{
	struct serve_kept *list = NULL, *kept;
	int what;

	do
		what = serve_keep_take(serve->channel, &list, &serve->numbers);
	while (what >= 0 && what != SERVE_KEPT_ALL);
	while ((kept = list)) {
		list = kept->next;
		if (kept->resident || kept->count)
			serve_vm_again(serve, kept);
		else
			serve_client_again(serve, kept);
	}
	/* Without a keeper this worker goes on with what has come. */
	return what < 0 && what != -EPIPE ? what : 0;
}

/* On error, which is told, what was made is for close_server(). */
static int open_server(struct serve *serve)
{
	int err = serve_loop_new(serve);

	if (!err)
		err = open_signals(serve);
	if (err) {
		complain_errno(err, "start");
		return err;
	}
	err = open_image(serve);
	if (!err)
		err = take_kept(serve);
	if (!err && serve->metrics.fd >= 0)
		err = serve_watch_add(serve, &serve->metrics, EPOLLIN);
	if (!err && serve->listener.fd >= 0)
		err = serve_watch_add(serve, &serve->listener, EPOLLIN);
	if (!err)
		serve_client_limit(serve);
	return err;
}

static void close_server(struct serve *serve)
{
	close_watch(&serve->listener);
	close_watch(&serve->metrics);
	close_watch(&serve->signals);
	kvmfault_working_set_free(serve->recorded);
	kvmfault_working_set_free(serve->set);
	image_close(&serve->image);
	serve_loop_free(serve);
}

/* The recordings are saved; nothing of the VMs' is freed. A page that has not
 * come would be poisoned there, and so their guests would end, where now
 * they wait. */
static void leave_vms(struct serve *serve, int code)
{
	struct serve_vm *vm;

	for (vm = serve->vms; vm; vm = vm->next)
		serve_record_end(vm);
	serve_tell(serve, serve_event("stopped", NULL));
	if (serve->vms || serve->leaving)
		_exit(code);
}

static int run_server(struct serve *serve)
{
	struct json_object *event = serve_event("ready", NULL);
	int code, err;

	serve_add_number(event, "pid", (uint64_t)getpid());
	serve_add_number(event, "image_bytes", serve->image.length);
	serve_tell(serve, event);
	serve_keep_ready(serve);
	serve_check_drained(serve);
	err = serve_loop(serve);
	if (err)
		complain_errno(err, "wait for events");
	code = err ? EXIT_FAILED : EXIT_OK;
	leave_vms(serve, code);
	return code;
}

/* Each worker opens the same image, whatever becomes of its name. */
static bool hold_image(struct serve *serve)
{
	static char name[32];
	int fd;

	if (serve->place.uri)
		return true;
	fd = open(serve->place.path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		complain("cannot open the image %s: %s", serve->place.path,
			 strerror(errno));
		return false;
	}
	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	serve->place.path = name;
	return true;
}

/* A recording would take the place of the image. */
static bool check_record(const struct serve *serve)
{
	struct stat image, record;

	if (!serve->record_path || serve->place.uri ||
	    stat(serve->place.path, &image) ||
	    stat(serve->record_path, &record) ||
	    image.st_dev != record.st_dev || image.st_ino != record.st_ino)
		return true;
	complain("--record names the image: name another file");
	return false;
}

static int run_worker(struct serve *serve)
{
	int code = open_server(serve) ? EXIT_FAILED : run_server(serve);

	close_server(serve);
	return code;
}

int cmd_serve(int argc, char **argv)
{
	struct serve serve = {
		.fill = true,
		.record_ms = SECONDS_DEFAULT * 1000,
		.vms_max = VMS_DEFAULT,
		.channel = -1,
		.epoll = -1,
		.wakeup.fd = -1,
		.signals.fd = -1,
		.listener.fd = -1,
		.metrics.fd = -1,
	};
	int code = parse_serve(&serve, argc, argv);

	if (code >= 0)
		return code;
	raise_limits();
	if (serve.cloud_path)
		return serve_cloud_hypervisor(&serve);
	if (!hold_image(&serve) || !check_record(&serve) ||
	    (serve.metrics_path && open_metrics(&serve)) ||
	    open_listener(&serve))
		code = EXIT_FAILED;
	else
		code = serve_keeper(&serve, run_worker);
	close_watch(&serve.listener);
	close_watch(&serve.metrics);
	return code;
}
