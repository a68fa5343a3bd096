/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The model is asked what tests/vm/behaviour-memory.c, -uffd.c and -edges.c ask
 * a kernel. Out: one line `key: answer` for each row and variant that it can be
 * asked, in the same words. behaviour.py compares them with a kernel's, and
 * knows why the others are not here. Invariant: each row has a model of its
 * own, and a line, whatever became of it.
 */

#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "behaviour.h"
#include "lib/os/abi.h"
#include "run.h"

#define ANSWER "an answer"
#define RAM 0x100000ULL			/* PAGES pages of a memfd, slot 1 */
#define DEVICE 0x800000ULL		/* nothing is there */
#define WORD 0x6c62272e07bb0142ULL

/* ---- the frame ---- */

void answer(const char *format, ...)
{
	char text[256];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	sim_fail(ANSWER, "%s", text);
}

const char *name_of(int ret)
{
	return ret ? strerrorname_np(-ret) : "0";
}

void must(int ret, const char *what)
{
	if (ret)
		answer("cannot ask: %s: %s", what, name_of(ret));
}

void may(int ret)
{
	if (ret)
		answer("unsupported: %s", name_of(ret));
}

/* Whoever waits here waits for somebody who moves, or for the clock. */
bool run_stuck(void)
{
	return false;
}

bool run_kill_is_fine(void)
{
	return false;
}

/* ---- userfaultfds ---- */

struct uffd *watcher(uint64_t features)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffd *uffd = uffd_new(our_mm);

	must(uffd_ioctl(uffd, UFFDIO_API, &api), "UFFDIO_API");
	return uffd;
}

int watch_as(struct uffd *uffd, uint64_t at, uint64_t length, uint64_t mode)
{
	struct uffdio_register reg = {
		.range = { at, length }, .mode = mode,
	};

	return uffd_ioctl(uffd, UFFDIO_REGISTER, &reg);
}

struct uffd *watch(uint64_t at, uint64_t length, uint64_t features)
{
	struct uffd *uffd = watcher(features);

	must(watch_as(uffd, at, length, UFFDIO_REGISTER_MODE_MISSING),
	     "register");
	return uffd;
}

int copy_as(struct uffd *uffd, uint64_t at, uint64_t word, uint64_t length,
	    uint64_t mode)
{
	struct uffdio_copy copy = {
		.dst = at, .src = (uintptr_t)filled(word), .len = length,
		.mode = mode,
	};

	return uffd_ioctl(uffd, UFFDIO_COPY, &copy);
}

int copy(struct uffd *uffd, uint64_t at, uint64_t word, uint64_t length)
{
	return copy_as(uffd, at, word, length, 0);
}

int poison(struct uffd *uffd, uint64_t at, uint64_t length)
{
	struct kvmfault__uffdio_poison arg = { .range = { at, length } };

	return uffd_ioctl(uffd, KVMFAULT__UFFDIO_POISON, &arg);
}

int map_again(struct uffd *uffd, uint64_t at, uint64_t length)
{
	struct uffdio_continue arg = { .range = { at, length } };

	return uffd_ioctl(uffd, UFFDIO_CONTINUE, &arg);
}

const void *filled(uint64_t word)
{
	static uint64_t page[HUGE_PAGES * PAGE / 8];
	size_t i;

	for (i = 0; i < HUGE_PAGES * PAGE / 8; i++)
		page[i] = word;
	return page;
}

uint64_t map_file(struct file *file)
{
	return mm_map(our_mm, file, 0, file->pages, PROT_READ | PROT_WRITE,
		      false);
}

/* ---- the VM ---- */

enum outcome_of_run {
	COMPLETES,			/* the guest has done it */
	FAULTS,				/* it has not, and will do it again */
	OTHERWISE,			/* neither */
};

static struct bed {
	bool supervisor;		/* KVM emulates what that does */
	struct file *memfd;
	uint64_t ram, gpa, hva;
	struct kvm_run run;
	struct vcpu *vcpu;
	struct uffd *uffd;
	unsigned int sigbuses;
	char said[128];
} bed;

static void take_signal(struct task *task, int signo)
{
	(void)task;
	bed.sigbuses += signo == SIGBUS;
}

static void set_slot(uint64_t gpa, struct file *file, uint64_t host,
		     bool readonly)
{
	struct slot slot = {
		.used = true, .gpa = gpa, .length = file->pages * PAGE,
		.host = host, .readonly = readonly,
	};

	kvm_set_slot(gpa == RAM ? 1 : 2, &slot);
}

static void aim(uint64_t gpa, uint64_t hva)
{
	bed.gpa = gpa;
	bed.hva = hva;
}

static void start(void)
{
	bool supervisor = bed.supervisor;

	memset(&bed, 0, sizeof(bed));
	bed.supervisor = supervisor;
	current->on_signal = take_signal;
	bed.vcpu = vcpu_of(kvm_new_vcpu(&bed.run));
	bed.memfd = file_new(PAGES, false, false);
	bed.ram = map_file(bed.memfd);
	set_slot(RAM, bed.memfd, bed.ram, false);
	aim(RAM, bed.ram);
}

static void __attribute__((format(printf, 1, 2))) add(const char *format, ...)
{
	size_t length = strlen(bed.said);
	va_list args;

	va_start(args, format);
	vsnprintf(bed.said + length, sizeof(bed.said) - length, format, args);
	va_end(args);
}

static enum outcome_of_run marker_came(void)
{
	const siginfo_t *info = &current->sigbus;
	uint64_t address = (uintptr_t)info->si_addr;

	if (info->si_code == BUS_MCEERR_AR)
		add("marker");
	else
		add("SIGBUS with si_code %d", info->si_code);
	if (address == bed.hva)
		add(", exact address");
	else
		add(", address off by %lld", (long long)(address - bed.hva));
	if (info->si_addr_lsb != 12)
		add(", lsb %d", info->si_addr_lsb);
	bed.sigbuses = 0;
	return FAULTS;
}

static enum outcome_of_run exit_of(const struct kvm_run *run)
{
	if (run->exit_reason == KVM_EXIT_MMIO) {
		add("mmio, %u-byte %s", run->mmio.len,
		    run->mmio.is_write ? "write" : "read");
		if (run->mmio.phys_addr != bed.gpa)
			add(", gpa off by %lld",
			    (long long)(run->mmio.phys_addr - bed.gpa));
	} else if (run->exit_reason == KVM_EXIT_INTERNAL_ERROR) {
		add("internal error, suberror %u", run->internal.suberror);
	} else {
		add("exit reason %u", run->exit_reason);
	}
	return OTHERWISE;
}

static enum outcome_of_run resume(void)
{
	int err, ret = kvm_run(bed.vcpu, &err);

	bed.said[0] = '\0';
	if (ret && err == EINTR && bed.sigbuses)
		return marker_came();
	if (bed.vcpu->done) {
		add("completes");
		return COMPLETES;
	}
	if (!ret)
		return exit_of(&bed.run);
	if (bed.run.exit_reason == KVMFAULT__EXIT_MEMORY_FAULT)
		add("exit");
	else
		add(err == EFAULT ? "bare %s" : "KVM_RUN: %s",
		    strerrorname_np(err));
	return FAULTS;
}

static enum outcome_of_run touch(struct access_wanted access)
{
	access.gpa = access.gpa ? access.gpa : bed.gpa;
	access.emulated = bed.supervisor;
	kvm_want(bed.vcpu, &access);
	return resume();
}

static enum outcome_of_run touch_read(void)
{
	return touch((struct access_wanted){ .write = false });
}

static enum outcome_of_run touch_write(void)
{
	return touch((struct access_wanted){ .write = true, .value = 1 });
}

/* Code there; the supervisor's is what KVM gives up on, and reads first. */
static enum outcome_of_run run_there(void)
{
	if (!bed.supervisor)
		return touch_read();
	bed.vcpu->regs.rip = bed.gpa;
	return touch((struct access_wanted){
		.gpa = RAM + PAGE, .unknown = true });
}

/* What has come by the access, once it is cured. */
static void conclude(enum outcome_of_run outcome, void (*cure)(void),
		     uint64_t value)
{
	char first[sizeof(bed.said)];

	if (outcome != FAULTS)
		answer("%s", bed.said);
	strcpy(first, bed.said);
	cure();
	if (resume() != COMPLETES)
		answer("%s, cured: %s", first, bed.said);
	if (bed.vcpu->now.value != value)
		answer("%s, cured: %#llx", first,
		       (unsigned long long)bed.vcpu->now.value);
	answer("%s", first);
}

/* ---- behaviour-memory.c ---- */

static void map_there(void)
{
	set_slot(RAM, bed.memfd, map_file(bed.memfd), false);
}

static void unmapped(int arg)
{
	(void)arg;
	start();
	must(mm_unmap(our_mm, bed.hva, PAGE), "munmap");
	conclude(touch_read(), map_there, 0);
}

static void allow(void)
{
	must(mm_protect(our_mm, bed.hva, PAGE, PROT_READ | PROT_WRITE),
	     "mprotect");
}

static void protected(int prot)
{
	start();
	must(mm_protect(our_mm, bed.hva, PAGE, prot), "mprotect");
	if (prot == PROT_NONE)
		conclude(touch_read(), allow, 0);
	conclude(touch_write(), allow, 1);
}

static void lengthen(void)
{
	bed.memfd->pages = PAGES;
}

static void short_file(int arg)
{
	(void)arg;
	start();
	bed.memfd->pages = 0;
	conclude(touch_read(), lengthen, 0);
}

static void copy_there(void)
{
	must(copy(bed.uffd, bed.hva, WORD, PAGE), "copy");
}

static void blind_uffd(int user_mode_only)
{
	start();
	bed.uffd = watch(bed.ram, PAGES * PAGE,
			 user_mode_only ? 0 : UFFD_FEATURE_SIGBUS);
	bed.uffd->user_mode_only = user_mode_only;
	conclude(touch_read(), copy_there, WORD);
}

static void mark(void)
{
	start();
	aim(RAM + 5 * PAGE, bed.ram + 5 * PAGE);
	bed.uffd = watch(bed.ram, PAGES * PAGE, 0);
	may(poison(bed.uffd, bed.hva, PAGE));
}

static void marker(int blocked)
{
	mark();
	if (blocked)
		current->blocked |= 1ULL << (SIGBUS - 1);
	conclude(touch_read(), copy_there, WORD);
}

static void copy_huge(void)
{
	must(copy(bed.uffd, bed.hva & ~(HUGE - 1), WORD, HUGE), "copy");
}

static void huge_marker(int arg)
{
	struct file *file = file_new(HUGE_PAGES, true, false);
	uint64_t huge = map_file(file);

	(void)arg;
	start();
	set_slot(2 * RAM, file, huge, false);
	aim(2 * RAM + 3 * PAGE, huge + 3 * PAGE);
	bed.uffd = watch(huge, HUGE, 0);
	may(poison(bed.uffd, huge, HUGE));
	conclude(touch_read(), copy_huge, WORD);
}

static struct reader {
	uint64_t address;
	uint32_t ptid;
} reader;

static void answer_one(void *arg)
{
	struct uffd_msg msg;

	(void)arg;
	while (!uffd_readable(bed.uffd))
		task_pause(MS, "a message");
	uffd_read(bed.uffd, &msg, sizeof(msg));
	reader.address = msg.arg.pagefault.address;
	reader.ptid = msg.arg.pagefault.feat.ptid;
	must(msg.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR ?
	     map_again(bed.uffd, reader.address, PAGE) :
	     copy(bed.uffd, reader.address, WORD, PAGE), "answer");
}

static void conclude_message(void)
{
	struct task *task = task_new("reader", our_mm, answer_one, NULL);

	if (touch_read() != COMPLETES)
		answer("%s", bed.said);
	task_wait_end(task);
	if (bed.vcpu->now.value != WORD || reader.address != bed.hva)
		answer("message, wrong address or data");
	answer("message, ptid=%s",
	       reader.ptid == current->id + 1 ? "vcpu" : "other");
}

static void missing(int arg)
{
	(void)arg;
	start();
	bed.uffd = watch(bed.ram, PAGES * PAGE, UFFD_FEATURE_THREAD_ID);
	conclude_message();
}

static void kick(void *task)
{
	task_pause(50 * MS, "a kick");
	task_signal(task, SIGALRM);
	task_pause(10000 * MS, "the end of it");
	answer("a kick does not end it");
}

static void kicked(int arg)
{
	(void)arg;
	start();
	bed.uffd = watch(bed.ram, PAGES * PAGE, 0);
	task_new("kicker", our_mm, kick, current);
	touch_read();
	answer("%s", strcmp(bed.said, "KVM_RUN: EINTR") ? bed.said :
	       "a kick ends it");
}

static void minor(int arg)
{
	(void)arg;
	start();
	must(file_write(bed.memfd, 0, filled(WORD), PAGE), "write");
	bed.uffd = watcher(UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_MINOR_SHMEM);
	may(watch_as(bed.uffd, bed.ram, PAGES * PAGE,
		     UFFDIO_REGISTER_MODE_MINOR));
	conclude_message();
}

static void no_slot(int arg)
{
	(void)arg;
	start();
	aim(DEVICE, 0);
	touch_read();
	answer("%s", bed.said);
}

static void read_only_slot(int arg)
{
	(void)arg;
	start();
	set_slot(RAM, bed.memfd, bed.ram, true);
	touch_write();
	answer("%s", bed.said);
}

static void code(int arg)
{
	(void)arg;
	start();
	must(mm_unmap(our_mm, bed.hva, PAGE), "munmap");
	conclude(run_there(), map_there, 0);
}

static void marked_code(int arg)
{
	(void)arg;
	mark();
	conclude(run_there(), copy_there, WORD);
}

/* The code of it is on another page, which is there. */
static void fpu_state(int arg)
{
	(void)arg;
	start();
	must(mm_unmap(our_mm, bed.hva, PAGE), "munmap");
	bed.vcpu->regs.rip = RAM + PAGE;
	touch((struct access_wanted){
		.write = true, .unknown = bed.supervisor });
	answer("%s", bed.said);
}

static void exit_reason_left(int arg)
{
	int err;

	(void)arg;
	start();
	must(mm_unmap(our_mm, bed.hva, PAGE), "munmap");
	touch_read();
	bed.run.exit_reason = KVMFAULT__EXIT_MEMORY_FAULT;
	bed.run.immediate_exit = 1;
	if (!kvm_run(bed.vcpu, &err))
		answer("no error, exit reason %u", bed.run.exit_reason);
	answer("%s, exit reason %u", strerrorname_np(err), bed.run.exit_reason);
}

static const struct row memory_rows[] = {
	{ "unmapped", true, unmapped, 0 },
	{ "PROT_NONE", true, protected, PROT_NONE },
	{ "PROT_READ and a write", true, protected, PROT_READ },
	{ "short file", true, short_file, 0 },
	{ "uffd SIGBUS", true, blind_uffd, false },
	{ "uffd USER_MODE_ONLY", true, blind_uffd, true },
	{ "marker", true, marker, false },
	{ "marker, SIGBUS blocked", true, marker, true },
	{ "marker in hugetlb, user, no irqchip", false, huge_marker, 0 },
	{ "uffd missing", true, missing, 0 },
	{ "uffd missing, kicked", true, kicked, 0 },
	{ "uffd minor", true, minor, 0 },
	{ "no slot", true, no_slot, 0 },
	{ "write to a read-only slot", true, read_only_slot, 0 },
	{ "code unmapped", true, code, 0 },
	{ "code marked", true, marked_code, 0 },
	{ "FPU state unmapped", true, fpu_state, 0 },
	{ "exit reason after immediate_exit", false, exit_reason_left, 0 },
	{ NULL, false, NULL, 0 },
};

/* ---- all rows ---- */

static void ask(void *row)
{
	((const struct row *)row)->ask(((const struct row *)row)->arg);
	answer("no answer");
}

/* How a run ended, in the words for it. */
static const char *told(const struct outcome *outcome)
{
	if (!strcmp(outcome->kind, ANSWER))
		return outcome->text;
	if (!strcmp(outcome->kind, "a vCPU spins at a marker"))
		return "loops";
	if (!strcmp(outcome->kind, "stuck"))
		return "hangs";
	return outcome->kind;
}

static void ask_row(const struct row *row, bool supervisor)
{
	static const struct schedule in_order = { .strategy = GIVEN };
	struct outcome outcome;

	mm_reset();
	fds_reset();
	kvm_reset();
	huge_exists = true;
	bed.supervisor = supervisor;
	sched_run(&in_order, 1, ask, (void *)(uintptr_t)row, &outcome);
	printf("%s%s: %s\n", row->key, !row->levels ? "" : supervisor ?
	       ", supervisor, no irqchip" : ", user, no irqchip",
	       told(&outcome));
}

int main(void)
{
	static const struct row *const tables[] = {
		memory_rows, uffd_rows, edge_rows,
	};
	const struct row *row;
	size_t i;

	windows_init();
	printf("kernel: 6.18 as the model has it\n");
	for (i = 0; i < sizeof(tables) / sizeof(tables[0]); i++)
		for (row = tables[i]; row->key; row++) {
			ask_row(row, false);
			if (row->levels)
				ask_row(row, true);
		}
	return 0;
}
