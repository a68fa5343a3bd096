/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* In: what to start. Out: a server that accepts connections on the socket. */

#include <check.h>
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "nbd-server.h"
#include "unit.h"

static char directory[64];
static pid_t server;

const char *server_directory(void)
{
	if (!*directory) {
		strcpy(directory, "/tmp/kvmfault-nbd-XXXXXX");
		ck_assert_ptr_nonnull(mkdtemp(directory));
	}
	return directory;
}

const char *server_path(const char *name)
{
	static char path[8][128];
	static unsigned int next;
	char *one = path[next++ % 8];

	snprintf(one, sizeof(path[0]), "%s/%s", server_directory(), name);
	return one;
}

const char *server_uri(void)
{
	static char uri[160];

	snprintf(uri, sizeof(uri), "nbd+unix:///?socket=%s",
		 server_path("socket"));
	return uri;
}

/* Returns -1 while nothing accepts there. */
static int server_connect(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(address.sun_path, sizeof(address.sun_path), "%s",
		 server_path("socket"));
	if (!connect(fd, (struct sockaddr *)&address, sizeof(address)))
		return fd;
	close(fd);
	return -1;
}

/* It ends with its parent, and is not heard. */
static pid_t server_spawn(const char *const *argv)
{
	pid_t pid = fork();
	int null;

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	null = open("/dev/null", O_RDWR);
	dup2(null, 0);
	dup2(null, 1);
	if (!getenv("KVMFAULT_TEST_LOUD"))
		dup2(null, 2);
	execvp(argv[0], (char *const *)(uintptr_t)argv);
	_exit(127);
}

void server_start(const char *const *argv)
{
	int fd, status;

	server_kill(SIGKILL);
	unlink(server_path("socket"));
	server = server_spawn(argv);
	ck_assert_int_gt(server, 0);
	while ((fd = server_connect()) < 0) {
		ck_assert_msg(!waitpid(server, &status, WNOHANG),
			      "%s has ended", argv[0]);
		usleep(1000);
	}
	close(fd);
}

void server_run(const char *const *argv)
{
	int status;

	ck_assert_int_gt(waitpid(server_spawn(argv), &status, 0), 0);
	ck_assert_msg(WIFEXITED(status) && !WEXITSTATUS(status),
		      "%s has failed", argv[0]);
}

void server_kill(int signal)
{
	if (!server)
		return;
	kill(server, signal);
	waitpid(server, NULL, 0);
	server = 0;
}

void server_clean_up(void)
{
	struct dirent *entry;
	DIR *dir;

	server_kill(SIGKILL);
	dir = *directory ? opendir(directory) : NULL;
	while (dir && (entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			unlink(server_path(entry->d_name));
	if (dir) {
		closedir(dir);
		rmdir(directory);
	}
	*directory = '\0';
}

const char *server_lacks(const char *program)
{
	static char why[64];
	const char *const argv[] = { program, "--version", NULL };
	int status;

	waitpid(server_spawn(argv), &status, 0);
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return NULL;
	snprintf(why, sizeof(why), "no program %s", program);
	return why;
}

/* ---- images ---- */

void server_make_image(const char *path, uint64_t length,
		       bool (*hole)(uint64_t page))
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	uint64_t page[PAGE / 8], at, i;

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, (off_t)length), 0);
	for (at = 0; at < length; at += PAGE) {
		if (hole && hole(at / PAGE))
			continue;
		for (i = 0; i < PAGE / 8; i++)
			page[i] = htobe64(at + 8 * i);
		ck_assert_int_eq(pwrite(fd, page, PAGE, (off_t)at), PAGE);
	}
	close(fd);
}

bool server_is_right(const void *bytes, uint64_t offset, uint64_t length)
{
	const uint64_t *words = bytes;
	uint64_t i;

	for (i = 0; i < length / 8; i++)
		if (be64toh(words[i]) != offset + 8 * i)
			return false;
	return true;
}
