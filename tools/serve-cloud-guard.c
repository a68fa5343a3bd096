/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * If this process is killed, Cloud Hypervisor sees that its connection for page
 * faults has ended: it closes its userfaultfd, and its vCPUs read zeros until
 * it has ended them. So a small process holds that connection and the memfds,
 * too. In: a byte, when no page is missing any more; or the end of this
 * process. Out: in the second case the memfds are made empty, so that each
 * access fails, and only then the connection ends.
 */

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "serve-cloud-hypervisor.h"
#include "tool.h"

/* The lists of descriptors to keep. */
struct cloud_keep {
	int fd[CLOUD_MOST_SLOTS + 2];
	unsigned int count;
};

/* In ascending order. */
static void keep_cloud_descriptor(struct cloud_keep *keep, int fd)
{
	unsigned int i = keep->count++;

	for (; i && keep->fd[i - 1] > fd; i--)
		keep->fd[i] = keep->fd[i - 1];
	keep->fd[i] = fd;
}

static void close_all_cloud_others(const struct cloud_keep *keep)
{
	unsigned int i, first = 0;

	for (i = 0; i < keep->count; i++) {
		unsigned int fd = (unsigned int)keep->fd[i];

		if (fd > first)
			syscall(SYS_close_range, first, fd - 1, 0);
		first = fd + 1;
	}
	syscall(SYS_close_range, first, ~0U, 0);
}

/* In the child, whose parent has other threads: no allocation, no stdio. */
static void guard_cloud_memory(const struct cloud_ram *ram, int faults,
			       int channel)
{
	struct cloud_keep keep = { .count = 0 };
	unsigned int i;
	ssize_t n;
	char byte;

	prctl(PR_SET_NAME, "kvmfault-guard");
	keep_cloud_descriptor(&keep, faults);
	keep_cloud_descriptor(&keep, channel);
	for (i = 0; i < ram->snapshot->slots; i++)
		if (ram->snapshot->slot[i].group == i)
			keep_cloud_descriptor(&keep,
					      ram->snapshot->slot[i].memfd);
	close_all_cloud_others(&keep);
	do
		n = read(channel, &byte, 1);
	while (n < 0 && errno == EINTR);
	_exit(n != 1 && cloud_empty_memfds(ram, faults) ? EXIT_FAILED :
							  EXIT_OK);
}

bool cloud_open_guard(struct cloud_guard *guard)
{
	if (!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0,
			guard->channel))
		return true;
	complain_errno(errno, "make a socket");
	return false;
}

bool cloud_start_guard(struct cloud_guard *guard, const struct cloud_ram *ram,
		       int faults)
{
	sigset_t all, before;

	/* It ends after this process, whatever is sent to both. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	guard->process = fork();
	if (!guard->process)
		guard_cloud_memory(ram, faults, guard->channel[1]);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (guard->process > 0)
		return true;
	complain_errno(errno, "start the process that guards the VM");
	return false;
}

void cloud_release_guard(const struct cloud_guard *guard)
{
	send(guard->channel[0], "", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void cloud_end_guard(struct cloud_guard *guard)
{
	if (!guard->channel[0])
		return;
	close(guard->channel[0]);
	close(guard->channel[1]);
	while (guard->process > 0 &&
	       waitpid(guard->process, NULL, 0) < 0 && errno == EINTR)
		;
}
