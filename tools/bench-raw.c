/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault bench: what one would do without the library. In: RAM and a source.
 * Out: a guest that runs. Each is as small as it can be, and knows nothing of
 * windows that overlap, of discards, or of errors that pass.
 */

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "bench.h"
#include "lib/os/abi.h"

struct raw {
	int uffd, stop;
	char *fill;		/* with minor faults: RAM, not registered */
	unsigned int threads;
	pthread_t thread[];
};

static int open_uffd(void)
{
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC), fd;

	if (device < 0)
		return (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	fd = ioctl(device, KVMFAULT__USERFAULTFD_IOC_NEW,
		   O_CLOEXEC | O_NONBLOCK);
	close(device);
	return fd;
}

static int register_ram(struct bench *bench, struct raw *raw, uint64_t features)
{
	bool minor = bench->options->minor;
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register reg = {
		.range = { (uintptr_t)bench->ram, bench->bytes },
		.mode = UFFDIO_REGISTER_MODE_MISSING |
			(minor ? UFFDIO_REGISTER_MODE_MINOR : 0),
	};
	void *fill;

	raw->uffd = open_uffd();
	if (raw->uffd < 0)
		return bench_why(bench, -errno,
				 "cannot open a userfaultfd: %s; it needs /dev/userfaultfd or CAP_SYS_PTRACE",
				 strerror(errno));
	if (ioctl(raw->uffd, UFFDIO_API, &api) < 0)
		return bench_why(bench, -errno,
				 "this kernel's userfaultfd has no %s",
				 features ? "UFFDIO_POISON (Linux 6.6)" : "API");
	if (ioctl(raw->uffd, UFFDIO_REGISTER, &reg) < 0)
		return bench_why(bench, -errno,
				 "cannot register RAM with userfaultfd: %s",
				 strerror(errno));
	if (!minor)
		return 0;
	fill = mmap(NULL, bench->bytes, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_NORESERVE, bench->memfd, 0);
	if (fill == MAP_FAILED)
		return bench_why(bench, -errno, "cannot map RAM twice: %s",
				 strerror(errno));
	raw->fill = fill;
	return 0;
}

/* So many bytes, or -errno and how many came before. */
static int install_some(const struct raw *raw, char *to, const void *from,
			uint64_t length, int64_t *came)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)to,
		.src = (uintptr_t)from,
		.len = length,
	};
	struct uffdio_continue cont = { .range = { (uintptr_t)to, length } };
	int ret;

	if (raw->fill)
		ret = ioctl(raw->uffd, UFFDIO_CONTINUE, &cont);
	else
		ret = ioctl(raw->uffd, UFFDIO_COPY, &copy);
	*came = raw->fill ? cont.mapped : copy.copy;
	return ret < 0 ? -errno : 0;
}

/* The block of pages around an address. True: all of them came by this. */
static bool install(struct bench *bench, char *address, void *buffer)
{
	const struct raw *raw = bench->state;
	uint64_t window = bench_window(bench), at = 0;
	uint64_t offset = (uint64_t)(address - bench->ram) / window * window;
	uint64_t length = bench->bytes - offset < window ?
		bench->bytes - offset : window;
	const char *data = bench_fetch(bench, offset, buffer, length);
	bool all = true;
	int64_t came;
	int err;

	if (raw->fill && data != raw->fill + offset)
		memcpy(raw->fill + offset, data, length);
	while (at < length) {
		err = install_some(raw, bench->ram + offset + at, data + at,
				   length - at, &came);
		if (!err)
			break;
		if (came > 0) {
			at += (uint64_t)came;
		} else if (err == -EEXIST) {
			at += bench->options->page_size;
			all = false;
		} else if (err != -EAGAIN) {
			bench_die("cannot install a page: %s", strerror(-err));
		}
	}
	return all;
}

static int new_raw(struct bench *bench, unsigned int threads, uint64_t features)
{
	struct raw *raw = calloc(1, sizeof(*raw) + threads *
				 sizeof(raw->thread[0]));
	unsigned int i;

	if (!raw)
		return bench_why(bench, -ENOMEM, "out of memory");
	bench->state = raw;
	raw->uffd = raw->stop = -1;
	for (i = 0; i < bench->vcpus; i++) {
		bench->vcpu[i].buffer = malloc(bench_window(bench));
		if (!bench->vcpu[i].buffer)
			return bench_why(bench, -ENOMEM, "out of memory");
	}
	return register_ram(bench, raw, features);
}

static void take_down(struct bench *bench)
{
	struct raw *raw = bench->state;
	uint64_t one = 1;
	unsigned int i;

	if (raw) {
		if (raw->threads && write(raw->stop, &one, sizeof(one)) < 0)
			bench_die("cannot stop the readers: %s",
				  strerror(errno));
		for (i = 0; i < raw->threads; i++)
			pthread_join(raw->thread[i], NULL);
		if (raw->fill)
			munmap(raw->fill, bench->bytes);
		if (raw->stop >= 0)
			close(raw->stop);
		if (raw->uffd >= 0)
			close(raw->uffd);
		free(raw);
	}
	for (i = 0; i < bench->vcpus; i++) {
		free(bench->vcpu[i].buffer);
		bench->vcpu[i].buffer = NULL;
	}
	bench->state = NULL;
	bench_unmap(bench);
}

static int set_up_ram(struct bench *bench, unsigned int threads,
		      uint64_t features)
{
	int err = bench_map(bench);

	return err ? err : new_raw(bench, threads, features);
}

/* Until the routine's end; whatever else ends KVM_RUN is not expected. */
static int run_once(struct bench_vcpu *vcpu)
{
	int ret = ioctl(vcpu->machine->fd, KVM_RUN, 0);
	char story[MACHINE_STORY];

	if (ret < 0 && errno != EINTR)
		bench_die("vCPU %u cannot run: %s", vcpu->machine->id,
			  strerror(errno));
	if (!ret && !machine_done(vcpu->machine, ret))
		bench_die("vCPU %u left the guest unexpectedly: %s",
			  vcpu->machine->id,
			  machine_story(vcpu->machine, story));
	return ret;
}

static void run(struct bench_vcpu *vcpu)
{
	while (run_once(vcpu) < 0)
		;
}

/* ---- raw-uffd: the readers of the kernel's demand_paging_test ---- */

/* One message; false: another reader had it. */
static bool answer(struct bench *bench, const struct raw *raw, void *buffer)
{
	struct uffdio_range range = { .len = bench->options->page_size };
	struct uffd_msg msg;

	if (read(raw->uffd, &msg, sizeof(msg)) < 0) {
		if (errno == EAGAIN)
			return false;
		bench_die("cannot read a userfaultfd: %s", strerror(errno));
	}
	if (install(bench, (char *)(uintptr_t)msg.arg.pagefault.address,
		    buffer))
		return true;
	range.start = msg.arg.pagefault.address & ~(range.len - 1);
	ioctl(raw->uffd, UFFDIO_WAKE, &range);
	return true;
}

static void *reader(void *arg)
{
	struct bench *bench = arg;
	const struct raw *raw = bench->state;
	void *buffer = malloc(bench->options->page_size);
	struct pollfd fds[] = {
		{ .fd = raw->uffd, .events = POLLIN },
		{ .fd = raw->stop, .events = POLLIN },
	};
	uint64_t answered = 0;

	if (!buffer)
		bench_die("out of memory");
	while (poll(fds, 2, -1) < 0 || !fds[1].revents)
		if (fds[0].revents & POLLIN)
			answered += answer(bench, raw, buffer);
	free(buffer);
	__atomic_fetch_add(&bench->faults[KVMFAULT_KIND_UFFD], answered,
			   __ATOMIC_RELAXED);
	return NULL;
}

static int set_up_uffd(struct bench *bench)
{
	unsigned int threads = (unsigned int)bench->options->threads;
	int err = set_up_ram(bench, threads, 0);
	struct raw *raw = bench->state;

	if (err)
		return err;
	raw->stop = eventfd(0, EFD_CLOEXEC);
	if (raw->stop < 0)
		return bench_why(bench, -errno, "cannot make an eventfd");
	for (; !err && raw->threads < threads; raw->threads += !err)
		err = pthread_create(&raw->thread[raw->threads], NULL, reader,
				     bench);
	return err ? bench_why(bench, -err, "cannot start a thread: %s",
			       strerror(err)) : 0;
}

const struct bench_mode bench_raw_uffd = {
	.name = "raw-uffd",
	.what = "readers of one userfaultfd, a page for each message",
	.fetches = true,
	.set_up = set_up_uffd,
	.run = run,
	.take_down = take_down,
};

/* ---- raw-exit: markers, and each vCPU answers its own ---- */

#define TRIES 100

static int set_up_exit(struct bench *bench)
{
	return set_up_ram(bench, 0, KVMFAULT__UFFD_FEATURE_POISON);
}

static int mark_all(const struct bench *bench)
{
	const struct raw *raw = bench->state;
	struct kvmfault__uffdio_poison poison = {
		.range = { (uintptr_t)bench->ram, bench->bytes },
	};

	while (ioctl(raw->uffd, KVMFAULT__UFFDIO_POISON, &poison) < 0) {
		if (errno != EAGAIN)
			return -errno;
		if (poison.updated > 0) {
			poison.range.start += (uint64_t)poison.updated;
			poison.range.len -= (uint64_t)poison.updated;
		}
	}
	return 0;
}

/* As if nobody had been there. A hole in the file leaves markers, and without it
 * the file keeps its page. */
static void empty(const struct bench *bench)
{
	if (madvise(bench->ram, bench->bytes, MADV_DONTNEED) < 0 ||
	    fallocate(bench->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		      0, (off_t)bench->bytes) < 0)
		bench_die("cannot empty RAM: %s", strerror(errno));
}

/*
 * A kernel thread that KVM had sent for a page of the run before may come only
 * now, on a machine that has much to do: where RAM is the same addresses again
 * it brings in a page before they are registered.
 */
static void mark(struct bench *bench)
{
	unsigned int tries = 0;
	int err;

	while ((err = mark_all(bench)) == -EEXIST && tries++ < TRIES)
		empty(bench);
	if (err)
		bench_die("cannot mark absent pages: %s", strerror(-err));
}

/* All threads block SIGBUS; it is to end KVM_RUN all the same. mask NULL: what
 * the thread blocks. */
static void set_kvm_mask(const struct bench_vcpu *vcpu, const sigset_t *mask)
{
	struct {
		uint32_t length;
		unsigned char set[8];	/* the kernel's sigset_t */
	} kvm = { .length = sizeof(kvm.set) };

	if (mask)
		memcpy(kvm.set, mask, sizeof(kvm.set));
	if (ioctl(vcpu->machine->fd, KVM_SET_SIGNAL_MASK,
		  mask ? &kvm : NULL) < 0)
		bench_die("cannot set a vCPU's signal mask: %s",
			  strerror(errno));
}

static void run_exit(struct bench_vcpu *vcpu)
{
	const struct timespec now = { 0 };
	sigset_t mask, bus;
	siginfo_t info;

	pthread_sigmask(SIG_BLOCK, NULL, &mask);
	sigdelset(&mask, SIGBUS);
	set_kvm_mask(vcpu, &mask);
	sigemptyset(&bus);
	sigaddset(&bus, SIGBUS);
	while (run_once(vcpu) < 0) {
		if (sigtimedwait(&bus, &info, &now) < 0)
			continue;
		install(vcpu->bench, info.si_addr, vcpu->buffer);
		vcpu->faults[KVMFAULT_KIND_MARKER]++;
	}
	set_kvm_mask(vcpu, NULL);
}

const struct bench_mode bench_raw_exit = {
	.name = "raw-exit",
	.what = "markers in all of RAM, each vCPU installs its own pages",
	.widens = true,
	.fetches = true,
	.set_up = set_up_exit,
	.begin = mark,
	.run = run_exit,
	.take_down = take_down,
};

/* ---- mmap: the image itself, private; resident: nothing to do ---- */

static int set_up_mmap(struct bench *bench)
{
	void *ram;

	if (bench->options->page_size != (uint64_t)sysconf(_SC_PAGESIZE))
		return bench_why(bench, -EINVAL,
				 "an image in a file has no huge pages: leave out --page-size");
	ram = mmap(NULL, bench->bytes, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_NORESERVE, bench->image_fd, 0);
	if (ram == MAP_FAILED)
		return bench_why(bench, -errno, "cannot map the image: %s",
				 strerror(errno));
	bench->ram = ram;
	return bench_set_slot(bench, 0, 0);
}

const struct bench_mode bench_mmap = {
	.name = "mmap",
	.what = "RAM is the image's file, mapped privately",
	.set_up = set_up_mmap,
	.run = run,
	.take_down = bench_unmap,
};

static int set_up_resident(struct bench *bench)
{
	uint64_t size = bench->options->page_size, n;
	int err = bench_map(bench);

	for (n = 0; !err && n < bench->touched; n++)
		memcpy(bench->ram + bench->page[n] * size,
		       bench->image + bench->page[n] * size, size);
	return err;
}

const struct bench_mode bench_resident = {
	.name = "resident",
	.what = "all pages are there, and mapped: the limit",
	.set_up = set_up_resident,
	.run = run,
	.take_down = bench_unmap,
};
