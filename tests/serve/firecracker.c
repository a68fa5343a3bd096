/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A VM that is restored as Firecracker does it with a Uffd backend, written
 * from the protocol: one message with the regions and the userfaultfd, and not
 * a word after that. Real vCPUs run on the memory meanwhile, this process reads
 * and writes in it as virtio devices do, and the balloon takes pages away.
 *
 * usage: firecracker-client SOCKET IMAGE [OPTION]...
 *	--huge		2 MiB pages
 *	--regions N	RAM is N regions (1)
 *	--vcpus N	(2)
 *	--balloon	pages are given back before, while and after it runs
 *	--old		page_size_kib is all that says a page's size
 *	--cut		the message comes in two parts
 *	--wait N	the guest stops after N pages; this prints `waiting`,
 *			and goes on if there is a line on standard input
 *
 * Exit status 0 with the line `verified: N pages, M ballooned`; 1 with what is
 * wrong; 2: usage; 77: the machine lacks something.
 */

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/kvm.h>
#include <linux/sockios.h>
#include <linux/userfaultfd.h>
#include <machine.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "../need.h"
#include "../pass-fd.h"
#include "content.h"

#define RAM (4ULL << 30)	/* gpa of the first page */
#define HUGE_PAGES 512		/* pages of 4 KiB in one of 2 MiB */
#define NEW_UFFD _IO(0xAA, 0x00)
#define STAMP_AT 5		/* the word that a device writes ... */
#define STAMP_EACH 61		/* ... in one of so many pages */
#define READ_EACH 3

struct region {
	unsigned char *host;
	uint64_t first, pages;
};

static struct {
	const char *socket, *image;
	bool huge, balloon, old, cut, waits;
	uint64_t regions, vcpus, wait;
} options = { .regions = 1, .vcpus = 2 };

static struct content content;
static struct region *regions;
static struct machine *machine;
static int uffd, channel;	/* both stay open to the end */

/* ---- RAM ---- */

static void map_region(struct region *region)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;

	if (options.huge)
		flags |= MAP_HUGETLB | 21 << MAP_HUGE_SHIFT;
	region->host = mmap(NULL, region->pages * PAGE, PROT_READ | PROT_WRITE,
			    flags, -1, 0);
	if (region->host == MAP_FAILED)
		err(1, "memory");
}

/* The later, the larger they are. */
static void map_regions(void)
{
	uint64_t count = options.regions, i;
	uint64_t grains = content.pages / content.grain, rest;

	if (count > grains)
		errx(2, "%llu regions need as many pages",
		     (unsigned long long)count);
	rest = grains - count;
	regions = calloc(count, sizeof(*regions));
	if (!regions)
		err(1, "regions");
	for (i = 0; i < count; i++) {
		uint64_t first = i + rest * i * i / (count * count);
		uint64_t end = i + 1 + rest * (i + 1) * (i + 1) /
			       (count * count);

		regions[i].first = first * content.grain;
		regions[i].pages = (end - first) * content.grain;
		map_region(&regions[i]);
	}
}

static struct region *region_of(uint64_t page)
{
	uint64_t low = 0, high = options.regions;

	while (high - low > 1) {
		uint64_t middle = (low + high) / 2;

		if (regions[middle].first <= page)
			low = middle;
		else
			high = middle;
	}
	return &regions[low];
}

static uint64_t *words_of(uint64_t page)
{
	struct region *region = region_of(page);

	return (uint64_t *)(region->host + (page - region->first) * PAGE);
}

__attribute__((noreturn))
static void end_wrong(const char *when, uint64_t page, int word,
		      uint64_t expected, uint64_t found)
{
	errx(1, "wrong: %s, page %llu of region %td, word %d: "
	     "expected %#llx, found %#llx",
	     when, (unsigned long long)page, region_of(page) - regions, word,
	     (unsigned long long)expected, (unsigned long long)found);
}

static void end_on_bus_error(int signal)
{
	static const char text[] =
		"wrong: a page can't be read any more (SIGBUS)\n";

	(void)signal;
	(void)!write(STDERR_FILENO, text, sizeof(text) - 1);
	_exit(1);
}

/* ---- the restore is asked for ---- */

static void open_uffd(void)
{
	struct uffdio_api api = {
		.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMOVE,
	};
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);

	if (device >= 0) {
		uffd = ioctl(device, NEW_UFFD, O_CLOEXEC | O_NONBLOCK);
		close(device);
	} else {
		uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	}
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		err(1, "a userfaultfd");
}

static void register_region(const struct region *region)
{
	struct uffdio_register missing = {
		.range = {
			.start = (uintptr_t)region->host,
			.len = region->pages * PAGE,
		},
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	if (ioctl(uffd, UFFDIO_REGISTER, &missing))
		err(1, "UFFDIO_REGISTER");
}

static void print_region(FILE *out, const struct region *region)
{
	unsigned long long size = content.grain * PAGE;

	fprintf(out, "%s{\"base_host_virt_addr\":%llu,\"size\":%llu,"
		"\"offset\":%llu", region == regions ? "" : ",",
		(unsigned long long)(uintptr_t)region->host,
		(unsigned long long)(region->pages * PAGE),
		(unsigned long long)(region->first * PAGE));
	if (!options.old)
		fprintf(out, ",\"page_size\":%llu", size);
	fprintf(out, ",\"page_size_kib\":%llu}", size);
}

static char *make_message(size_t *length)
{
	char *text;
	FILE *out = open_memstream(&text, length);
	uint64_t i;

	if (!out)
		err(1, "the message");
	fputc('[', out);
	for (i = 0; i < options.regions; i++)
		print_region(out, &regions[i]);
	fputc(']', out);
	if (fclose(out))
		err(1, "the message");
	return text;
}

static void await_read(void)
{
	const struct timespec moment = { .tv_nsec = 1000000 };
	int left;

	while (!ioctl(channel, SIOCOUTQ, &left) && left)
		nanosleep(&moment, NULL);
}

static void ask_for_restore(void)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	size_t length, cut;
	char *text = make_message(&length);

	if (strlen(options.socket) >= sizeof(to.sun_path))
		errx(2, "%s: too long for a socket's name", options.socket);
	strcpy(to.sun_path, options.socket);
	channel = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (channel < 0 || connect(channel, (void *)&to, sizeof(to)))
		err(1, "%s", options.socket);
	cut = options.cut ? length / 2 : length;
	if (!pass_fd_with(channel, uffd, text, cut))
		err(1, "sendmsg");
	if (cut < length) {
		await_read();
		if (send(channel, text + cut, length - cut, MSG_NOSIGNAL) !=
		    (ssize_t)(length - cut))
			err(1, "send");
	}
	free(text);
}

/* ---- balloon and devices ---- */

/* Each call returns when the page server has read of it. A call for more than
 * one region is not made: in this process they need not be neighbours. */
static void balloon_stretch(uint64_t first, uint64_t count)
{
	while (count) {
		const struct region *region = region_of(first);
		uint64_t end = region->first + region->pages;
		uint64_t part = count < end - first ? count : end - first;

		if (madvise(words_of(first), part * PAGE, MADV_DONTNEED))
			err(1, "MADV_DONTNEED");
		first += part;
		count -= part;
	}
}

static void balloon_all(enum balloon when)
{
	uint64_t i, count = content_stretches(&content);

	for (i = 0; i < count; i++) {
		struct stretch stretch = content_stretch(&content, i);

		if (stretch.count && stretch.when == when) {
			balloon_stretch(stretch.first, stretch.count);
			memset(content.page[stretch.first], 0,
			       stretch.count * PAGE);
		}
	}
}

static uint64_t count_progress(void)
{
	uint64_t done = 0;
	unsigned int i;

	for (i = 0; i < machine->vcpus; i++)
		done += __atomic_load_n(&machine_scan_job(machine, i)->progress,
					__ATOMIC_RELAXED);
	return done;
}

/* Each stretch twice, all over the guest's walk. */
static void *balloon_while(void *arg)
{
	const struct timespec moment = { .tv_nsec = 1000000 };
	uint64_t i, count = content_stretches(&content);

	for (i = 0; i < 2 * count; i++) {
		struct stretch stretch = content_stretch(&content, i % count);

		if (!stretch.count || stretch.when != BALLOON_WHILE)
			continue;
		while (count_progress() < content.pages / (2 * count + 1) * i)
			nanosleep(&moment, NULL);
		balloon_stretch(stretch.first, stretch.count);
	}
	return arg;
}

/* In pages that the balloon never takes: the kernel writes, before they are
 * there. */
static void stamp_pages(void)
{
	uint64_t page, stamp;
	int ends[2];

	if (pipe2(ends, O_CLOEXEC))
		err(1, "a pipe");
	for (page = 0; page < content.pages; page += STAMP_EACH) {
		if (content_balloon(&content, page) != BALLOON_NEVER)
			continue;
		stamp = ~page;
		if (write(ends[1], &stamp, sizeof(stamp)) != sizeof(stamp) ||
		    read(ends[0], words_of(page) + STAMP_AT, sizeof(stamp)) !=
		    sizeof(stamp))
			err(1, "a device's write to page %llu",
			    (unsigned long long)page);
		content.page[page][STAMP_AT] = stamp;
	}
	close(ends[0]);
	close(ends[1]);
}

/* Half of them through the kernel. */
static void *read_pages(void *arg)
{
	uint64_t page, copy[PAGE_WORDS];
	int file = memfd_create("device", MFD_CLOEXEC);

	if (file < 0)
		err(1, "a device");
	for (page = 0; page < content.pages; page += READ_EACH) {
		int word;

		if (page % 2)
			memcpy(copy, words_of(page), PAGE);
		else if (pwrite(file, words_of(page), PAGE, 0) != PAGE ||
			 pread(file, copy, PAGE, 0) != PAGE)
			err(1, "a device's read of page %llu",
			    (unsigned long long)page);
		word = content_wrong_while(&content, page, copy);
		if (word >= 0)
			end_wrong("a device's read", page, word,
				  content.page[page][word], copy[word]);
	}
	close(file);
	return arg;
}

/* ---- vCPUs ---- */

static void build_machine(void)
{
	const struct machine_options how = {
		.vcpus = (unsigned int)options.vcpus,
		.irqchip = true,
		.timer = true,
		.span = RAM + content.pages * PAGE,
	};
	int error = machine_new(&how, &machine);
	uint32_t i;

	for (i = 0; i < options.regions && !error; i++)
		error = machine_set_slot(machine, i + 1, 0,
					 RAM + regions[i].first * PAGE,
					 regions[i].pages * PAGE,
					 regions[i].host);
	if (error)
		errx(1, "a VM: %s", strerror(-error));
}

static void *run_vcpu(void *arg)
{
	struct machine_vcpu *vcpu = arg;
	char story[MACHINE_STORY];
	int ret;

	do {
		ret = ioctl(vcpu->fd, KVM_RUN, 0);
		if (ret < 0 && errno != EINTR && errno != EAGAIN)
			err(1, "wrong: vCPU %u: KVM_RUN", vcpu->id);
	} while (ret < 0);
	if (!machine_done(vcpu, ret))
		errx(1, "wrong: vCPU %u left the guest: %s", vcpu->id,
		     machine_story(vcpu, story));
	return NULL;
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
	return b ? common_divisor(b, a % b) : a;
}

/* The vCPUs walk over the pages from begin to end of a scattered order. */
static void walk_pages(uint64_t begin, uint64_t end)
{
	uint64_t stride = content.pages * 5 / 8 | 1, count = end - begin;
	pthread_t thread[MACHINE_MAX_VCPUS];
	unsigned int i, n = machine->vcpus;

	while (common_divisor(stride, content.pages) != 1)
		stride++;
	for (i = 0; i < n; i++) {
		struct machine_scan *job = machine_scan_job(machine, i);
		uint64_t from = begin + count * i / n;

		job->base = RAM;
		job->pages = content.pages;
		job->stride = stride % content.pages;
		job->first = from % content.pages * stride % content.pages;
		job->count = begin + count * (i + 1) / n - from;
		if (machine_call(&machine->vcpu[i], MACHINE_SCAN, 0, 0, 0, 0))
			errx(1, "vCPU %u can't be set up", i);
		if (pthread_create(&thread[i], NULL, run_vcpu,
				   &machine->vcpu[i]))
			errx(1, "a thread");
	}
	for (i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
}

static void await_line(void)
{
	puts("waiting");
	fflush(stdout);
	if (getchar() == EOF)
		errx(1, "standard input ended before the wait did");
}

/* ---- all of it ---- */

static void run_first(void)
{
	pthread_t balloon, device;

	if (pthread_create(&device, NULL, read_pages, NULL) ||
	    (content.ballooned &&
	     pthread_create(&balloon, NULL, balloon_while, NULL)))
		errx(1, "a thread");
	walk_pages(0, options.wait);
	if (options.waits && options.wait)
		await_line();
	walk_pages(options.wait, content.pages);
	if (content.ballooned)
		pthread_join(balloon, NULL);
	pthread_join(device, NULL);
}

/* From here on there is one answer for each word of each page. */
static void check_first(void)
{
	uint64_t page;

	for (page = 0; page < content.pages; page++) {
		const uint64_t *words = words_of(page);
		uint64_t *was = content.page[page];
		int word = content_wrong_after(&content, page, words);

		if (content_balloon(&content, page) == BALLOON_WHILE)
			memset(was, 0, PAGE);
		if (word >= 0)
			end_wrong("the guest has run", page, word,
				  word == MARK ? content_mark(was) : was[word],
				  words[word]);
		memcpy(was, words, PAGE);
	}
}

static void check_second(void)
{
	uint64_t page;
	int word;

	for (page = 0; page < content.pages; page++) {
		const uint64_t *words = words_of(page);
		uint64_t *has_to_be = content.page[page];

		has_to_be[MARK] = content_mark(has_to_be);
		for (word = 0; word < PAGE_WORDS; word++)
			if (words[word] != has_to_be[word])
				end_wrong("the guest has run twice", page, word,
					  has_to_be[word], words[word]);
	}
}

static uint64_t count_ballooned(void)
{
	uint64_t i, sum = 0;

	for (i = 0; i < content_stretches(&content); i++)
		sum += content_stretch(&content, i).count;
	return sum;
}

static void restore_vm(void)
{
	map_regions();
	open_uffd();
	for (uint64_t i = 0; i < options.regions; i++)
		register_region(&regions[i]);
	build_machine();
	ask_for_restore();
	if (options.waits && !options.wait)
		await_line();
	balloon_all(BALLOON_BEFORE);
	stamp_pages();
	run_first();
	check_first();
	balloon_all(BALLOON_AFTER);
	walk_pages(0, content.pages);
	check_second();
	printf("verified: %llu pages, %llu ballooned\n",
	       (unsigned long long)content.pages,
	       (unsigned long long)count_ballooned());
}

static uint64_t parse_count(const char *text, uint64_t least, uint64_t most)
{
	char *end;
	unsigned long long value = strtoull(text, &end, 10);

	if (!*text || *end || value < least || value > most)
		errx(2, "%s is not between %llu and %llu", text,
		     (unsigned long long)least, (unsigned long long)most);
	return value;
}

static void parse_options(int argc, char **argv)
{
	static const struct option known[] = {
		{ "huge", 0, NULL, 'h' },	{ "regions", 1, NULL, 'r' },
		{ "vcpus", 1, NULL, 'v' },	{ "balloon", 0, NULL, 'b' },
		{ "old", 0, NULL, 'o' },	{ "cut", 0, NULL, 'c' },
		{ "wait", 1, NULL, 'w' },	{ 0 },
	};
	int option;

	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (option) {
		case 'h': options.huge = true; break;
		case 'b': options.balloon = true; break;
		case 'o': options.old = true; break;
		case 'c': options.cut = true; break;
		case 'r':
			options.regions = parse_count(optarg, 1, 30000);
			break;
		case 'v':
			options.vcpus = parse_count(optarg, 1,
						    MACHINE_MAX_VCPUS);
			break;
		case 'w':
			options.waits = true;
			options.wait = parse_count(optarg, 0, UINT32_MAX);
			break;
		default: exit(2);
		}
	}
	if (argc - optind != 2)
		errx(2, "usage: firecracker-client SOCKET IMAGE [--huge] "
		     "[--regions N] [--vcpus N] [--balloon] [--old] [--cut] "
		     "[--wait N]");
	options.socket = argv[optind];
	options.image = argv[optind + 1];
}

/* Firecracker reserves none; without some of them this is no test. */
static void need_huge_pages(void)
{
	void *pages = mmap(NULL, content.pages * PAGE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
			   21 << MAP_HUGE_SHIFT, -1, 0);

	if (!have("hugetlb", pages == MAP_FAILED ?
		  "too few free huge pages (/proc/sys/vm/nr_hugepages)" : NULL))
		exit(77);
	munmap(pages, content.pages * PAGE);
}

int main(int argc, char **argv)
{
	parse_options(argc, argv);
	need("uffd");
	need("kvm");
	content_read(&content, options.image, options.huge ? HUGE_PAGES : 1,
		     options.balloon);
	if (options.wait > content.pages)
		errx(2, "the image has fewer pages than --wait has");
	if (options.huge)
		need_huge_pages();
	signal(SIGBUS, end_on_bus_error);
	restore_vm();
	return 0;
}
