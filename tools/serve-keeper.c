/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault serve: the keeper, a small process that holds all that VMs need and
 * does nothing with it. In: the sockets that listen, and messages of the worker
 * (serve-keep.c), which is its child and serves. Out: if the worker is killed,
 * another one, which gets what the one before had and goes on. If the keeper is
 * killed, the worker serves on.
 */

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "serve.h"
#include "tool.h"

#define SOON_MS 1000		/* a worker that is killed so soon is no use */

struct keeper {
	struct serve *serve;
	int (*work)(struct serve *serve);
	struct serve_kept *kept;
	pid_t worker;
	int channel, signals;
	int64_t started;
	bool was_ready;
};

static void forget_kept(struct keeper *keeper)
{
	struct serve_kept *kept;

	while ((kept = keeper->kept)) {
		keeper->kept = kept->next;
		serve_keep_free(kept);
	}
}

/* It gets all descriptors by messages, and has no others. */
__attribute__((noreturn))
static void be_worker(struct keeper *keeper, int channel)
{
	int code;

	close(keeper->signals);
	forget_kept(keeper);
	keeper->serve->channel = channel;
	code = keeper->work(keeper->serve);
	exit(code);
}

static int start_worker(struct keeper *keeper)
{
	int ends[2], err;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return -errno;
	keeper->started = serve_now();
	keeper->worker = fork();
	if (!keeper->worker) {
		close(ends[0]);
		be_worker(keeper, ends[1]);
	}
	err = keeper->worker < 0 ? -errno : 0;
	close(ends[1]);
	if (err) {
		close(ends[0]);
		return err;
	}
	keeper->channel = ends[0];
	/* If it is killed meanwhile, its end of the channel says so. One that
	 * can't have all would wait for the rest. */
	if (serve_keep_all(keeper->channel, keeper->kept,
			   keeper->serve->numbers))
		kill(keeper->worker, SIGKILL);
	return 0;
}

/* The worker does what a service manager or a user wants; and if it is to end,
 * no client is to wait for the next. */
static void pass_signal(struct keeper *keeper)
{
	struct serve *serve = keeper->serve;
	struct signalfd_siginfo info;

	if (read(keeper->signals, &info, sizeof(info)) != sizeof(info))
		return;
	if (keeper->worker)
		kill(keeper->worker, info.ssi_signo == SIGHUP ?
		     SERVE_SIGNAL_RECORD : SERVE_SIGNAL_END);
	if (info.ssi_signo == SIGHUP || serve->draining)
		return;
	serve->draining = true;
	serve_socket_notify("STOPPING=1");
	close(serve->listener.fd);
	serve->listener.fd = -1;
}

/* Passes signals on until there is a message. */
static void wait_for_message(struct keeper *keeper)
{
	struct pollfd polls[2] = {
		{ .fd = keeper->channel, .events = POLLIN },
		{ .fd = keeper->signals, .events = POLLIN },
	};

	do {
		polls[0].revents = polls[1].revents = 0;
		poll(polls, 2, -1);
		if (polls[1].revents)
			pass_signal(keeper);
	} while (!polls[0].revents);
}

/* -EPIPE: the worker has ended. */
static int take_from_worker(struct keeper *keeper)
{
	int what = serve_keep_take(keeper->channel, &keeper->kept,
				   &keeper->serve->numbers);

	if (what != SERVE_KEPT_READY || keeper->was_ready)
		return what < 0 ? what : 0;
	keeper->was_ready = true;
	serve_socket_notify("READY=1");
	return 0;
}

/* Returns the code that the program ends with, or -1: go on with another
 * worker. */
static int judge_end(struct keeper *keeper)
{
	struct json_object *event;
	int status = 0;

	close(keeper->channel);
	keeper->channel = -1;
	while (waitpid(keeper->worker, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFEXITED(status) &&
	    (!WEXITSTATUS(status) || !keeper->was_ready))
		return WEXITSTATUS(status);
	/* One that could not open the image says so itself. */
	event = serve_event("killed", NULL);
	serve_add_number(event, "pid", (uint64_t)keeper->worker);
	serve_add_number(event, WIFEXITED(status) ? "status" : "signal",
			 (uint64_t)(WIFEXITED(status) ? WEXITSTATUS(status) :
				    WTERMSIG(status)));
	serve_tell(keeper->serve, event);
	keeper->worker = 0;
	return keeper->was_ready ? -1 : EXIT_FAILED;
}

/* A signal ends the pause: then there is work for the next one. Returns false
 * at a second signal to end. */
static bool pause_before_next(struct keeper *keeper)
{
	struct pollfd poll_signals = { .fd = keeper->signals,
				       .events = POLLIN };
	bool draining = keeper->serve->draining;

	if (serve_now() - keeper->started >= SOON_MS ||
	    poll(&poll_signals, 1, SOON_MS) <= 0)
		return true;
	pass_signal(keeper);
	return !draining;
}

static int run_keeper(struct keeper *keeper)
{
	int code = -1, err = start_worker(keeper);

	while (!err && code < 0) {
		wait_for_message(keeper);
		err = take_from_worker(keeper);
		if (err != -EPIPE)
			continue;
		code = judge_end(keeper);
		err = 0;
		if (code < 0 && !pause_before_next(keeper))
			code = EXIT_FAILED;
		if (code < 0)
			err = start_worker(keeper);
	}
	if (err)
		complain_errno(err, "keep what VMs need");
	return err ? EXIT_FAILED : code;
}

int serve_keeper(struct serve *serve, int (*work)(struct serve *serve))
{
	struct keeper keeper = {
		.serve = serve, .work = work, .channel = -1,
	};
	sigset_t set;
	int code;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	/* The reader of the events may go away; VMs are served all the same. */
	signal(SIGPIPE, SIG_IGN);
	keeper.signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (keeper.signals < 0) {
		complain_errno(errno, "take signals");
		return EXIT_FAILED;
	}
	/* A worker begins with all of them blocked, and so do its threads. */
	sigaddset(&set, SERVE_SIGNAL_END);
	sigaddset(&set, SERVE_SIGNAL_RECORD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	code = run_keeper(&keeper);
	forget_kept(&keeper);
	close(keeper.signals);
	return code;
}
