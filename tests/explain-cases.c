/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Makes one cause of `kvmfault explain` for real, in a process that does not
 * know the library.
 *
 * usage: explain-cases CASE [DIRECTORY]
 *
 * When the case stands it prints "PID HVA GOOD": the process to ask about, the
 * address, and one of the same process with which nothing is wrong; then it
 * waits until its standard input ends. Where the machine lacks what the case
 * takes, it prints "SKIP WHAT: why" and ends with 77.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 4UL
#define GUARD_INSTALL 102	/* MADV_, Linux 6.13 */
#define SYSTEM_MSEAL 462	/* Linux 6.10 */
#define HUGE_SHIFT 26		/* MAP_HUGE_SHIFT */

struct poison {			/* struct uffdio_poison, Linux 6.6 */
	struct uffdio_range range;
	uint64_t mode;
	int64_t updated;
};
#define POISON _IOWR(UFFDIO, 0x08, struct poison)

static char *good;
static const char *directory;

__attribute__((format(printf, 2, 3), noreturn))
static void lack_thing(const char *what, const char *format, ...)
{
	va_list args;

	printf("SKIP %s: ", what);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	fflush(stdout);
	_exit(77);
}

static void check_call(bool good_call, const char *what)
{
	if (good_call)
		return;
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	_exit(1);
}

static char *map_pages(int protection, int flags, int fd)
{
	char *at = mmap(NULL, PAGES * PAGE, protection, flags, fd, 0);

	check_call(at != MAP_FAILED, "mmap");
	return at;
}

static char *map_private(int protection)
{
	return map_pages(protection, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static char *map_filled(void)
{
	char *at = map_private(PROT_READ | PROT_WRITE);

	memset(at, 1, PAGES * PAGE);
	return at;
}

/* Of a child that must not stay when the test is killed. */
static pid_t fork_bound(void)
{
	pid_t parent = getpid(), child = fork();

	check_call(child >= 0, "fork");
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
	}
	return child;
}

/* ---- mappings ---- */

static char *make_mapped(void)
{
	return map_filled();
}

static char *make_on_demand(void)
{
	return map_private(PROT_READ | PROT_WRITE);
}

static char *make_not_mapped(void)
{
	char *at = map_filled();

	check_call(!munmap(at + PAGE, PAGE), "munmap");
	return at + PAGE;
}

static char *make_no_access(void)
{
	char *at = map_filled();

	check_call(!mprotect(at, PAGE, PROT_NONE), "mprotect");
	return at;
}

static char *make_read_only(void)
{
	char *at = map_filled();

	check_call(!mprotect(at, PAGE, PROT_READ), "mprotect");
	return at;
}

static char *make_sealed(void)
{
	char *at = make_no_access();

	if (syscall(SYSTEM_MSEAL, at, PAGE, 0))
		lack_thing("mseal", "%s", strerror(errno));
	return at;
}

static char *make_guard(void)
{
	char *at = map_filled();

	if (madvise(at, PAGE, GUARD_INSTALL))
		lack_thing("guard", "%s", strerror(errno));
	return at;
}

/* The kernel's own page of clocks is one on most kernels. */
static char *make_pfn_mapping(void)
{
	FILE *smaps = fopen("/proc/self/smaps", "r");
	char line[4096];
	uintptr_t start = 0, end;

	check_call(smaps, "smaps");
	while (fgets(line, sizeof(line), smaps)) {
		uintptr_t at;

		if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " ", &at, &end) == 2)
			start = at;
		else if (!strncmp(line, "VmFlags:", 8) && strstr(line, " pf "))
			return (char *)start;
	}
	lack_thing("pfn", "no mapping is one of PFNs");
}

/* ---- files ---- */

static char *make_file_short(void)
{
	int fd = memfd_create("short", MFD_CLOEXEC);
	char *at;

	check_call(fd >= 0 && !ftruncate(fd, PAGES * PAGE), "memfd");
	at = map_pages(PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	memset(at, 1, PAGES * PAGE);
	check_call(!ftruncate(fd, PAGE), "ftruncate");
	return at + PAGE;
}

/* A file system of the case's own, which ends with it. */
static void mount_own(const char *type, const char *options)
{
	if (unshare(CLONE_NEWNS) ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
		lack_thing("root", "a mount namespace: %s", strerror(errno));
	if (mount(type, directory, type, 0, options))
		lack_thing("root", "%s: %s", type, strerror(errno));
}

static int open_own(const char *name)
{
	char path[4096];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	check_call(fd >= 0, path);
	return fd;
}

static char *make_tmpfs_full(void)
{
	char bytes[PAGE] = { 1 };
	char *at;
	int fd, other;

	mount_own("tmpfs", "size=64k");
	fd = open_own("ram");
	other = open_own("other");
	check_call(!ftruncate(fd, PAGES * PAGE), "ftruncate");
	at = map_pages(PROT_READ | PROT_WRITE, MAP_SHARED, fd);
	at[PAGE] = 1;
	good = at + PAGE;
	while (write(other, bytes, sizeof(bytes)) > 0)
		;
	check_call(errno == ENOSPC, "write");
	return at;
}

/* ---- huge pages ---- */

static uint64_t read_pool(unsigned long kilobytes, const char *name)
{
	char path[128];
	uint64_t number = 0;
	FILE *file;

	snprintf(path, sizeof(path),
		 "/sys/kernel/mm/hugepages/hugepages-%lukB/%s", kilobytes, name);
	file = fopen(path, "r");
	if (!file || fscanf(file, "%" SCNu64, &number) != 1)
		number = UINT64_MAX;
	if (file)
		fclose(file);
	return number;
}

static char *make_hugetlb_empty(void)
{
	static const int shifts[] = { 30, 25, 21, 16 };
	size_t i;

	for (i = 0; i < sizeof(shifts) / sizeof(*shifts); i++) {
		unsigned long kilobytes = 1UL << (shifts[i] - 10);
		char *at;

		if (read_pool(kilobytes, "free_hugepages") ||
		    read_pool(kilobytes, "nr_overcommit_hugepages"))
			continue;
		at = mmap(NULL, 1UL << shifts[i], PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
			  MAP_HUGETLB | shifts[i] << HUGE_SHIFT, -1, 0);
		if (at != MAP_FAILED)
			return at;
	}
	lack_thing("empty-pool", "no size of huge pages has an empty pool");
}

/* ---- userfaultfds ---- */

struct waiting {
	char *at;		/* PAGES pages */
	int fd;
};

static int new_uffd(void)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC), device;

	if (fd >= 0)
		return fd;
	device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	fd = device < 0 ? -1 : ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC);
	if (fd < 0)
		lack_thing("uffd", "%s", strerror(errno));
	return fd;
}

static struct waiting make_registered(uint64_t features, uint64_t mode)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct waiting w = { .at = map_private(PROT_READ | PROT_WRITE),
		.fd = new_uffd() };
	struct uffdio_register range = {
		.range = { (uintptr_t)w.at, PAGES * PAGE }, .mode = mode };

	if (ioctl(w.fd, UFFDIO_API, &api))
		lack_thing("uffd", "features %#" PRIx64 ": %s", features,
			   strerror(errno));
	check_call(!ioctl(w.fd, UFFDIO_REGISTER, &range), "UFFDIO_REGISTER");
	return w;
}

static void *touch_page(void *page)
{
	*(volatile char *)page = 2;
	return NULL;
}

static void start_touch(char *page)
{
	pthread_t thread;

	check_call(!pthread_create(&thread, NULL, touch_page, page), "thread");
	pthread_detach(thread);
}

static unsigned long count_pending(int fd)
{
	unsigned long count = 0;
	char path[64], line[256];
	FILE *info;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = fopen(path, "r");
	check_call(info, path);
	while (fgets(line, sizeof(line), info))
		sscanf(line, "pending: %lu", &count);
	fclose(info);
	return count;
}

/* A thread is asleep for the page when this returns. */
static void sleep_for(const struct waiting *w, char *page)
{
	start_touch(page);
	while (!count_pending(w->fd))
		sched_yield();
}

static void copy_page(const struct waiting *w, char *to, uint64_t mode)
{
	struct uffdio_copy copy = { .dst = (uintptr_t)to,
		.src = (uintptr_t)good, .len = PAGE, .mode = mode };

	check_call(!ioctl(w->fd, UFFDIO_COPY, &copy), "UFFDIO_COPY");
}

static void read_message(const struct waiting *w)
{
	struct uffd_msg message;

	check_call(read(w->fd, &message, sizeof(message)) == sizeof(message),
		   "read of a userfaultfd");
}

static char *make_uffd_asks(void)
{
	struct waiting w = make_registered(0, UFFDIO_REGISTER_MODE_MISSING);

	copy_page(&w, w.at, 0);
	good = w.at;
	return w.at + PAGE;
}

static char *make_uffd_protected(void)
{
	struct waiting w = make_registered(UFFD_FEATURE_PAGEFAULT_FLAG_WP,
					   UFFDIO_REGISTER_MODE_WP);
	struct uffdio_writeprotect protect = {
		.range = { (uintptr_t)w.at, PAGE },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP };

	memset(w.at, 1, PAGES * PAGE);
	check_call(!ioctl(w.fd, UFFDIO_WRITEPROTECT, &protect), "protect");
	good = w.at + PAGE;
	return w.at;
}

static char *make_uffd_sigbus(void)
{
	return make_registered(UFFD_FEATURE_SIGBUS,
			       UFFDIO_REGISTER_MODE_MISSING).at;
}

static char *make_poison_marker(void)
{
	struct waiting w = make_registered(0, UFFDIO_REGISTER_MODE_MISSING);
	struct poison poison = { .range = { (uintptr_t)w.at, PAGE } };

	if (ioctl(w.fd, POISON, &poison))
		lack_thing("poison", "%s", strerror(errno));
	return w.at;
}

static char *make_uffd_unread(void)
{
	struct waiting w = make_registered(0, UFFDIO_REGISTER_MODE_MISSING);

	sleep_for(&w, w.at);
	return w.at;
}

static int touch_elsewhere(void *page)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	touch_page(page);
	return 0;
}

/* No thread of this process sleeps, as where a worker of the kernel faults for
 * a guest. */
static char *make_uffd_elsewhere(void)
{
	struct waiting w = make_registered(0, UFFDIO_REGISTER_MODE_MISSING);

	check_call(clone(touch_elsewhere, good + PAGES * PAGE,
			 CLONE_VM | CLONE_FILES | SIGCHLD, w.at) >= 0, "clone");
	good = map_filled();
	while (!count_pending(w.fd))
		sched_yield();
	return w.at;
}

/* The handler is another process, which does something else. */
static char *make_uffd_held(void)
{
	struct waiting w = make_registered(0, UFFDIO_REGISTER_MODE_MISSING);

	if (!fork_bound())
		for (;;)
			pause();
	sleep_for(&w, w.at);
	return w.at;
}

/* It has told that it has the userfaultfd, as one does that gets it by a
 * socket, and was killed. */
static char *make_uffd_handler_gone(void)
{
	struct waiting w = make_registered(0, UFFDIO_REGISTER_MODE_MISSING);
	int ends[2];
	char byte;
	pid_t child;

	check_call(!socketpair(AF_UNIX, SOCK_STREAM, 0, ends), "socketpair");
	child = fork_bound();
	if (!child) {
		close(ends[0]);
		check_call(write(ends[1], "x", 1) == 1, "write");
		for (;;)
			pause();
	}
	close(ends[1]);
	check_call(read(ends[0], &byte, 1) == 1, "read");
	kill(child, SIGKILL);
	check_call(waitpid(child, NULL, 0) == child, "waitpid");
	sleep_for(&w, w.at);
	return w.at;
}

static char *make_uffd_unanswered(void)
{
	struct waiting w = make_registered(0, UFFDIO_REGISTER_MODE_MISSING);

	sleep_for(&w, w.at);
	read_message(&w);
	return w.at;
}

static char *make_uffd_lost_wake(void)
{
	struct waiting w = make_registered(0, UFFDIO_REGISTER_MODE_MISSING);
	unsigned long i;

	sleep_for(&w, w.at);
	read_message(&w);
	for (i = 0; i < PAGES; i++)
		copy_page(&w, w.at + i * PAGE, UFFDIO_COPY_MODE_DONTWAKE);
	return w.at;
}

/* ---- what no cause is known for ---- */

static void *fork_waiting(void *nothing)
{
	pid_t parent = getpid(), child = vfork();

	if (!child) {		/* the thread sleeps until it ends */
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (getppid() == parent)
			pause();
		_exit(0);
	}
	return nothing;
}

static char thread_state(pid_t tid)
{
	char path[64], line[256], state = '?';
	FILE *status;

	snprintf(path, sizeof(path), "/proc/self/task/%d/status", tid);
	status = fopen(path, "r");
	check_call(status, path);
	while (fgets(line, sizeof(line), status))
		sscanf(line, "State: %c", &state);
	fclose(status);
	return state;
}

static pid_t waiting_tid;

static void *tell_and_fork(void *nothing)
{
	__atomic_store_n(&waiting_tid, gettid(), __ATOMIC_RELEASE);
	return fork_waiting(nothing);
}

static char *make_unknown(void)
{
	pthread_t thread;
	pid_t tid;

	check_call(!pthread_create(&thread, NULL, tell_and_fork, NULL),
		   "thread");
	pthread_detach(thread);
	while (!(tid = __atomic_load_n(&waiting_tid, __ATOMIC_ACQUIRE)) ||
	       thread_state(tid) != 'D')
		sched_yield();
	return good;
}

/* ---- a cgroup: its process is a child ---- */

static char group[4096];

static void write_group(const char *name, const char *text)
{
	char path[4200];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", group, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		lack_thing("cgroup", "%s: %s", path, strerror(errno));
	close(fd);
}

static bool group_waits(void)
{
	char path[4200], line[256];
	unsigned int waits = 0;
	FILE *control;

	snprintf(path, sizeof(path), "%s/memory.oom_control", group);
	control = fopen(path, "r");
	check_call(control, path);
	while (fgets(line, sizeof(line), control))
		sscanf(line, "under_oom %u", &waits);
	fclose(control);
	return waits;
}

static pid_t fill_group(char *at, size_t length)
{
	char number[16];
	pid_t child = fork_bound();

	if (child)
		return child;
	snprintf(number, sizeof(number), "%d", getpid());
	write_group("cgroup.procs", number);
	memset(at, 1, length);
	for (;;)
		pause();
}

/* Only version 1 lets a process wait for room; in version 2 it is killed. */
static pid_t make_memory_cgroup(char **at)
{
	size_t length = 64 << 20;
	pid_t child;

	snprintf(group, sizeof(group), "/sys/fs/cgroup/memory/explain-%d",
		 getpid());
	if (mkdir(group, 0700))
		lack_thing("cgroup", "%s: %s", group, strerror(errno));
	write_group("memory.limit_in_bytes", "4M");
	write_group("memory.oom_control", "1");
	*at = mmap(NULL, length, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	check_call(*at != MAP_FAILED, "mmap");
	child = fill_group(*at, length);
	while (!group_waits())
		sched_yield();
	*at += length - PAGE;
	return child;
}

static void end_group(pid_t child)
{
	if (!*group)
		return;
	kill(child, SIGKILL);
	check_call(waitpid(child, NULL, 0) == child, "waitpid");
	/* The kernel lets go of it a little later. */
	while (rmdir(group) && errno == EBUSY)
		sched_yield();
}

/* ---- the program ---- */

static const struct {
	const char *name;
	char *(*make)(void);
} cases[] = {
	{ "mapped", make_mapped },
	{ "on-demand", make_on_demand },
	{ "not-mapped", make_not_mapped },
	{ "no-access", make_no_access },
	{ "read-only", make_read_only },
	{ "sealed", make_sealed },
	{ "guard", make_guard },
	{ "pfn-mapping", make_pfn_mapping },
	{ "file-short", make_file_short },
	{ "tmpfs-full", make_tmpfs_full },
	{ "hugetlb-empty", make_hugetlb_empty },
	{ "poison-marker", make_poison_marker },
	{ "uffd-asks", make_uffd_asks },
	{ "uffd-protected", make_uffd_protected },
	{ "uffd-sigbus", make_uffd_sigbus },
	{ "uffd-unread", make_uffd_unread },
	{ "uffd-held", make_uffd_held },
	{ "uffd-elsewhere", make_uffd_elsewhere },
	{ "uffd-handler-gone", make_uffd_handler_gone },
	{ "uffd-unanswered", make_uffd_unanswered },
	{ "uffd-lost-wake", make_uffd_lost_wake },
	{ "unknown", make_unknown },
};

static char *make_case(const char *name, pid_t *pid)
{
	char *at;
	size_t i;

	for (i = 0; i < sizeof(cases) / sizeof(*cases); i++)
		if (!strcmp(cases[i].name, name))
			return cases[i].make();
	if (strcmp(name, "memory-cgroup")) {
		fprintf(stderr, "no case %s\n", name);
		_exit(2);
	}
	*pid = make_memory_cgroup(&at);
	return at;
}

int main(int argc, char **argv)
{
	pid_t pid = getpid();
	char *at, byte;

	if (argc < 2)
		return 2;
	directory = argc > 2 ? argv[2] : "";
	good = map_filled();
	at = make_case(argv[1], &pid);
	printf("%d %" PRIuPTR " %" PRIuPTR "\n", pid, (uintptr_t)at,
	       (uintptr_t)good);
	fflush(stdout);
	while (read(STDIN_FILENO, &byte, 1) > 0)
		;
	end_group(pid);
	_exit(0);
}
