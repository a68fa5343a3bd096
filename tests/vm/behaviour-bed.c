/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The VM that a row asks. In: the row's variant. Out: what came out of KVM_RUN,
 * in words that mean the same on every kernel. Invariant: what is said comes
 * from what KVM and signals said. A clock only says when to look.
 */

#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "behaviour.h"

#define KICK_US 50000		/* a kick comes as often as this */
#define KICKS 10		/* fewer may be a slow machine */
#define MORE_KICKS 60		/* after as many it does not come by itself */
#define BUSY_NS 100000000	/* as much processor time is no sleep */

struct bed bed;

static siginfo_t sigbus;
static volatile sig_atomic_t sigbuses;
static unsigned int kicks;
static int64_t busy_since;

static void on_sigbus(int signal, siginfo_t *info, void *context)
{
	(void)signal;
	(void)context;
	sigbus = *info;
	sigbuses++;
}

static void on_kick(int signal)
{
	(void)signal;
}

void start_machine(void)
{
	struct machine_options options = {
		.vcpus = 1,
		.type = bed.type,
		.irqchip = bed.irqchip,
		.timer = bed.irqchip,
		.supervisor = bed.supervisor,
		.span = 2 * RAM,
	};
	int ret = machine_new(&options, &bed.machine);

	errno = -ret;
	if (bed.type)
		may(ret);
	must(ret, "machine");
	bed.vcpu = &bed.machine->vcpu[0];
	arm();
}

void start(void)
{
	start_machine();
	bed.memfd = must(memfd_create("ram", MFD_CLOEXEC), "memfd");
	must(ftruncate(bed.memfd, PAGES * PAGE), "ftruncate");
	bed.ram = must_map(mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
				MAP_SHARED, bed.memfd, 0), "mmap");
	errno = -machine_set_slot(bed.machine, 1, 0, RAM, PAGES * PAGE,
				  bed.ram);
	must(errno ? -1 : 0, "slot");
	aim(RAM, bed.ram);
}

void aim(uint64_t gpa, void *hva)
{
	bed.gpa = gpa;
	bed.hva = hva;
}

static void __attribute__((format(printf, 1, 2))) say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(bed.said, sizeof(bed.said), format, args);
	va_end(args);
}

static void __attribute__((format(printf, 1, 2))) add(const char *format, ...)
{
	size_t length = strlen(bed.said);
	va_list args;

	va_start(args, format);
	vsnprintf(bed.said + length, sizeof(bed.said) - length, format, args);
	va_end(args);
}

static int64_t busy(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

void arm(void)
{
	struct sigaction on_bus = {
		.sa_sigaction = on_sigbus,
		.sa_flags = SA_SIGINFO,
	};
	struct sigaction on_alarm = { .sa_handler = on_kick };
	struct itimerval often = {
		.it_interval.tv_usec = KICK_US,
		.it_value.tv_usec = KICK_US,
	};

	sigaction(SIGBUS, &on_bus, NULL);
	sigaction(SIGALRM, &on_alarm, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	sigbuses = 0;
	kicks = 0;
	busy_since = busy();
}

void block_sigbus(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGBUS);
	sigprocmask(SIG_BLOCK, &set, NULL);
}

/* It only came back for the kicks, with nothing to tell and nothing done. */
bool looping(void)
{
	if (++kicks < KICKS)
		return false;
	if (busy() - busy_since >= BUSY_NS)
		say("loops");
	else if (kicks >= MORE_KICKS)
		say("sleeps");
	else
		return false;
	return true;
}

bool sigbus_came(void)
{
	if (!sigbuses)
		return false;
	if (sigbus.si_code == BUS_MCEERR_AR)
		say("marker");
	else
		say("SIGBUS with si_code %d", sigbus.si_code);
	if ((char *)sigbus.si_addr == bed.hva)
		add(", exact address");
	else
		add(", address off by %td", (char *)sigbus.si_addr - bed.hva);
	if (sigbus.si_addr_lsb != 12)
		add(", lsb %d", sigbus.si_addr_lsb);
	if (sigbuses > 1)
		add(", %d times", (int)sigbuses);
	sigbuses = 0;
	return true;
}

/* The record of KVM_EXIT_MEMORY_FAULT, in kvm_run's union. */
static enum outcome memory_fault(int err)
{
	uint64_t record[3];	/* flags, gpa, size */

	memcpy(record, &bed.vcpu->run->hw, sizeof(record));
	say("exit");
	if (err != EFAULT)
		add(" %s", strerrorname_np(err));
	add(" flags=%#llx size=%#llx", (unsigned long long)record[0],
	    (unsigned long long)record[2]);
	if (record[1] != bed.gpa)
		add(", gpa off by %lld", (long long)(record[1] - bed.gpa));
	bed.vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
	return FAULTS;
}

static void answer_device(void)
{
	struct kvm_run *run = bed.vcpu->run;

	if (run->exit_reason == KVM_EXIT_MMIO && !run->mmio.is_write)
		memcpy(run->mmio.data, &bed.device_value,
		       sizeof(bed.device_value));
}

/* Whether the exit is for a device, which was answered. */
static bool device(void)
{
	struct kvm_run *run = bed.vcpu->run;
	bool is_device = false;

	if (run->exit_reason == KVM_EXIT_MMIO)
		is_device = run->mmio.phys_addr >= DEVICE &&
			    run->mmio.phys_addr < DEVICE + PAGE &&
			    bed.gpa != DEVICE;
	if (run->exit_reason == KVM_EXIT_IO)
		is_device = run->io.port == DEVICE_PORT;
	if (is_device)
		answer_device();
	return is_device;
}

static enum outcome mmio(const struct kvm_run *run)
{
	say("mmio, %u-byte %s", run->mmio.len,
	    run->mmio.is_write ? "write" : "read");
	if (run->mmio.phys_addr != bed.gpa)
		add(", gpa off by %lld",
		    (long long)(run->mmio.phys_addr - bed.gpa));
	return OTHERWISE;
}

static enum outcome exit_of(const struct kvm_run *run)
{
	if (run->exit_reason == KVM_EXIT_MMIO)
		return mmio(run);
	if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR)
		say("internal error, suberror %u", run->internal.suberror);
	else if (run->exit_reason == KVM_EXIT_SHUTDOWN)
		say("shutdown");
	else if (run->exit_reason == KVM_EXIT_IO)
		say("port %#x", run->io.port);
	else
		say("exit reason %u", run->exit_reason);
	return OTHERWISE;
}

static enum outcome error_of(const struct kvm_run *run, int err)
{
	if ((err == EFAULT || err == EHWPOISON) &&
	    run->exit_reason == EXIT_MEMORY_FAULT)
		return memory_fault(err);
	say(err == EFAULT ? "bare %s" : "KVM_RUN: %s", strerrorname_np(err));
	if (run->exit_reason)
		add(", exit reason %u", run->exit_reason);
	return FAULTS;
}

enum outcome resume(void)
{
	struct kvm_run *run = bed.vcpu->run;
	enum outcome outcome;
	int err, ret;

	arm();
	do {
		ret = ioctl(bed.vcpu->fd, KVM_RUN, 0);
		err = errno;
		if (ret && err == EINTR && (sigbus_came() || looping()))
			return FAULTS;
	} while ((ret && err == EINTR) ||
		 (!ret && !machine_done(bed.vcpu, ret) && device()));
	say("completes");
	if (machine_done(bed.vcpu, ret))
		outcome = COMPLETES;
	else
		outcome = ret ? error_of(run, err) : exit_of(run);
	if (sigbuses)
		add(", and SIGBUS");
	return outcome;
}

enum outcome touch(enum machine_routine routine, uint64_t a, uint64_t b,
		   uint64_t c, uint64_t d)
{
	bed.writes = routine == MACHINE_WRITE;
	errno = -machine_call(bed.vcpu, routine, a, b, c, d);
	must(errno ? -1 : 0, "call");
	return resume();
}

enum outcome touch_read(void)
{
	return touch(MACHINE_READ, bed.gpa, 8, 0, 0);
}

enum outcome touch_write(void)
{
	return touch(MACHINE_WRITE, bed.gpa, 8, 1, 0);
}

void conclude(enum outcome outcome, void (*cure)(void), uint64_t value)
{
	char first[sizeof(bed.said)];
	uint64_t got;

	if (outcome != FAULTS)
		answer("%s", bed.said);
	strcpy(first, bed.said);
	cure();
	if (resume() != COMPLETES)
		answer("%s, cured: %s", first, bed.said);
	got = bed.writes ? *(uint64_t *)(void *)bed.hva :
			   machine_result(bed.vcpu);
	if (got != value)
		answer("%s, cured: %#llx", first, (unsigned long long)got);
	answer("%s", first);
}

int uffd_new(int flags, uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	int fd = must((int)syscall(SYS_userfaultfd, O_CLOEXEC | flags),
		      "userfaultfd");

	must(ioctl(fd, UFFDIO_API, &api), "UFFDIO_API");
	return fd;
}

int uffd_register(int fd, void *start, size_t length, uint64_t mode,
		  uint64_t *ioctls)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)start, .len = length },
		.mode = mode,
	};
	int ret = ioctl(fd, UFFDIO_REGISTER, &reg);

	if (ioctls)
		*ioctls = reg.ioctls;
	return ret;
}

int uffd_of_ram(int flags, uint64_t features)
{
	int fd = uffd_new(flags, features);

	must(uffd_register(fd, bed.ram, PAGES * PAGE,
			   UFFDIO_REGISTER_MODE_MISSING, NULL), "register");
	return fd;
}

int uffd_copy(int fd, void *to, const void *from, size_t length)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)to,
		.src = (uintptr_t)from,
		.len = length,
	};

	return ioctl(fd, UFFDIO_COPY, &copy) ? -errno : 0;
}

int uffd_poison(int fd, void *start, size_t length)
{
	struct poison poison = {
		.range = { .start = (uintptr_t)start, .len = length },
	};

	return ioctl(fd, POISON, &poison) ? -errno : 0;
}

int uffd_continue(int fd, void *start, size_t length)
{
	struct uffdio_continue arg = {
		.range = { .start = (uintptr_t)start, .len = length },
	};

	return ioctl(fd, UFFDIO_CONTINUE, &arg) ? -errno : 0;
}

const void *filled(uint64_t word)
{
	static uint64_t page[HUGE / 8];
	size_t i;

	for (i = 0; i < HUGE / 8; i++)
		page[i] = word;
	return page;
}

static void *answer_one(void *arg)
{
	struct reader *reader = arg;
	struct uffd_msg msg;

	if (read(reader->fd, &msg, sizeof(msg)) != sizeof(msg) ||
	    msg.event != UFFD_EVENT_PAGEFAULT)
		answer("cannot ask: message");
	reader->address = (char *)(uintptr_t)msg.arg.pagefault.address;
	reader->ptid = msg.arg.pagefault.feat.ptid;
	reader->flags = msg.arg.pagefault.flags;
	usleep(reader->wait_ms * 1000);
	__atomic_store_n(&reader->copied, true, __ATOMIC_SEQ_CST);
	if (reader->flags & UFFD_PAGEFAULT_FLAG_MINOR)
		errno = -uffd_continue(reader->fd, reader->address, PAGE);
	else
		errno = -uffd_copy(reader->fd, reader->address,
				   filled(reader->word), PAGE);
	must(errno ? -1 : 0, "answer to a message");
	return NULL;
}

/* It takes no signals: the kicks are for who sleeps. */
void reader_start(struct reader *reader)
{
	sigset_t all, old;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	errno = pthread_create(&reader->thread, NULL, answer_one, reader);
	must(errno ? -1 : 0, "thread");
	pthread_sigmask(SIG_SETMASK, &old, NULL);
}
