/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Process 1 of a test kernel. In: what run.py packed beside it, which is
 * /modules, to be loaded in the order of their names, /arguments and
 * /environment of the program, each string with its NUL; and as its own
 * argument the serial port that nothing else writes to. Out: on that port
 * records, which are a letter, a length in eight hexadecimal digits and so many
 * bytes:
 *   o, e  what the program wrote to its standard output, to its error output
 *   x     how it ended: "exit N" or "signal N"
 *   f     why it could not be run
 * Kernel messages go to another port, so none can be mistaken for a record.
 */

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define HUGE_PAGES "64"
#define STRINGS 256

static int port;

static void put(const char *bytes, size_t length)
{
	ssize_t done;

	for (; length; bytes += done, length -= (size_t)done) {
		done = write(port, bytes, length);
		if (done < 0)
			_exit(1);	/* the kernel panics, and run.py sees */
	}
}

static void record(char kind, const char *bytes, size_t length)
{
	char head[10];

	snprintf(head, sizeof(head), "%c%08x", kind, (unsigned int)length);
	put(head, 9);
	put(bytes, length);
}

/* run.py starts qemu so that a reset is the end of the machine. */
static void end(char kind, const char *what)
{
	record(kind, what, strlen(what));
	tcdrain(port);
	reboot(RB_AUTOBOOT);
	_exit(1);
}

static long must(long result, const char *what)
{
	char why[256];

	if (result >= 0)
		return result;
	snprintf(why, sizeof(why), "%s: %s", what, strerror(errno));
	end('f', why);
	return -1;
}

static void open_port(const char *name)
{
	struct termios raw;
	char path[64];

	snprintf(path, sizeof(path), "/dev/%s", name);
	port = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (port < 0 || tcgetattr(port, &raw)) {
		perror(path);
		_exit(1);
	}
	cfmakeraw(&raw);
	must(tcsetattr(port, TCSANOW, &raw), path);
}

static void mount_on(const char *path, const char *type)
{
	mkdir(path, 0755);
	must(mount(type, path, type, 0, NULL), path);
}

static void set(const char *path, const char *value)
{
	int fd = (int)must(open(path, O_WRONLY | O_CLOEXEC), path);

	must(write(fd, value, strlen(value)), path);
	close(fd);
}

static void load_modules(void)
{
	struct dirent **entry;
	char path[300];
	int i, fd, count;

	count = (int)must(scandir("/modules", &entry, NULL, alphasort),
			  "/modules");
	for (i = 0; i < count; i++) {
		if (entry[i]->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/modules/%s", entry[i]->d_name);
		fd = (int)must(open(path, O_RDONLY | O_CLOEXEC), path);
		must(syscall(SYS_finit_module, fd, "", 0), path);
		close(fd);
	}
}

static void raise_limit(int what, rlim_t value)
{
	const struct rlimit limit = { value, value };

	must(setrlimit((__rlimit_resource_t)what, &limit), "setrlimit");
}

static char **strings(const char *path)
{
	static char *string[2][STRINGS + 1];
	static unsigned int used;
	char **all = string[used++], *line = NULL;
	FILE *file = fopen(path, "re");
	size_t room = 0, count = 0;

	must(file ? 0 : -1, path);
	while (count < STRINGS && getdelim(&line, &room, 0, file) > 0) {
		all[count++] = line;
		line = NULL;
		room = 0;
	}
	fclose(file);
	return all;
}

static pid_t start(char **argv, char **env, const int out[2], const int err[2])
{
	pid_t pid = (pid_t)must(fork(), "fork");
	sigset_t none;

	if (pid)
		return pid;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	dup2(open("/dev/null", O_RDONLY | O_CLOEXEC), 0);
	dup2(out[1], 1);
	dup2(err[1], 2);
	execve(argv[0], argv, env);
	must(-1, "the program, which has to be static and for this kernel");
	return -1;
}

/* What there is to read now; false at the end of it. */
static bool pump(int fd, char kind)
{
	char bytes[4096];
	ssize_t length;

	while ((length = read(fd, bytes, sizeof(bytes))) > 0)
		record(kind, bytes, (size_t)length);
	return length < 0 && errno == EAGAIN;
}

static bool ended(pid_t pid, int *status)
{
	pid_t some;

	while ((some = waitpid(-1, status, WNOHANG)) > 0)
		if (some == pid)
			return true;
	return false;
}

static void on_child(int signal)
{
	(void)signal;
}

static int run(char **argv, char **env)
{
	struct sigaction action = { .sa_handler = on_child };
	struct pollfd end_of[2];
	sigset_t child, none;
	int out[2], err[2], status;
	pid_t pid;

	sigemptyset(&none);
	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	sigaction(SIGCHLD, &action, NULL);
	must(pipe2(out, O_CLOEXEC), "pipe");
	must(pipe2(err, O_CLOEXEC), "pipe");
	fcntl(out[0], F_SETFL, O_NONBLOCK);
	fcntl(err[0], F_SETFL, O_NONBLOCK);
	pid = start(argv, env, out, err);
	close(out[1]);
	close(err[1]);
	end_of[0] = (struct pollfd){ .fd = out[0], .events = POLLIN };
	end_of[1] = (struct pollfd){ .fd = err[0], .events = POLLIN };
	while (!ended(pid, &status)) {
		ppoll(end_of, 2, NULL, &none);
		if (!pump(out[0], 'o'))
			end_of[0].fd = -1;
		if (!pump(err[0], 'e'))
			end_of[1].fd = -1;
	}
	pump(out[0], 'o');
	pump(err[0], 'e');
	return status;
}

int main(int argc, char **argv)
{
	char how[32];
	int status;

	if (argc != 2 || getpid() != 1) {
		fprintf(stderr, "for run.py: the init of a test kernel\n");
		return 2;
	}
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	open_port(argv[1]);
	mount_on("/proc", "proc");
	mount_on("/sys", "sysfs");
	load_modules();
	set("/proc/sys/vm/nr_hugepages", HUGE_PAGES);
	set("/proc/sys/vm/unprivileged_userfaultfd", "1");
	/* Else something is killed, and nobody is told why. */
	set("/proc/sys/vm/panic_on_oom", "1");
	raise_limit(RLIMIT_NOFILE, 1 << 16);
	raise_limit(RLIMIT_MEMLOCK, RLIM_INFINITY);
	mkdir("/tmp", 0777);
	must(chdir("/tmp"), "/tmp");
	status = run(strings("/arguments"), strings("/environment"));
	snprintf(how, sizeof(how), "%s %d",
		 WIFEXITED(status) ? "exit" : "signal",
		 WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
	end('x', how);
}
