/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The service, on any messages in any order. Input: a program: messages with
 * any event, address and flags; dispatch; time; ensure and discard; a source
 * and a kernel that fail. After each step the states are true, and at the end,
 * when nothing fails any more, nobody sleeps who could be awake.
 */

#include <fcntl.h>
#include <linux/falloc.h>

#include "../fake-sys.h"
#include "fuzz.h"
#include "lib/os/abi.h"
#include "lib/setup/setup.h"

#define PAGES 8ULL
#define LENGTH (PAGES * PAGE)
#define STEPS 200
#define SECOND 1000000000ULL
#define GPA 0x100000ULL

/* One memory is a file with three mappings, the last in another process; the
 * other is anonymous. */
enum { FILE_BACKED, ANONYMOUS, MEMORIES };
enum { FIRST, ANOTHER, REMOTE, ALONE, MAPPINGS };

static struct kvmfault_vm *vm;
static struct kvmfault_service *service;
static struct kvmfault_memory *memory[MEMORIES];
static int backing[MEMORIES], remote;
static void *host[MAPPINGS];
static int listener[MAPPINGS];		/* the userfaultfd of each */
static bool asleep[MAPPINGS][PAGES];
static bool was_read[MEMORIES][PAGES], discarded[MEMORIES][PAGES];
static bool put[MEMORIES][PAGES];	/* or taken, past the library */
static int source_error, copy_error;
static struct input *program;
static unsigned int depth;

static void no_lock_is_held(void)
{
	MUST(!pthread_mutex_trylock(&vm->lock));
	pthread_mutex_unlock(&vm->lock);
}

static void step(struct input *in);

/* The source. While it is asked the program goes on: the page is in flight. */
static int read_page(void *data, uint64_t offset, void *buffer, size_t length)
{
	int m = *(int *)data;

	no_lock_is_held();
	MUST(length == PAGE && offset < LENGTH && !(offset % PAGE));
	if (program && !depth && next8(program) & 1) {
		depth++;
		step(program);
		step(program);
		depth--;
	}
	memset(buffer, source_error ? 0 : (int)(offset / PAGE) + 1, length);
	was_read[m][offset / PAGE] |= !source_error;
	return source_error;
}

static void on_log(void *data, enum kvmfault_log_level level,
		   const char *message)
{
	(void)data;
	no_lock_is_held();
	MUST(level && *message);
}

static void on_unresolved(void *data, const struct kvmfault_sleeper *sleeper)
{
	(void)data;
	no_lock_is_held();
	MUST(sleeper->fault->kind == KVMFAULT_KIND_UFFD &&
	     sleeper->reason && sleeper->error < 0);
}

static void wake(int fd, uint64_t start)
{
	int i;

	for (i = 0; i < MAPPINGS; i++) {
		uint64_t offset = start - (uintptr_t)host[i];

		if (listener[i] == fd && offset < LENGTH)
			asleep[i][offset / PAGE] = false;
	}
}

/* The kernel wakes who sleeps on the same userfaultfd. */
static bool on_ioctl(struct fake_call *call)
{
	bool installs = call->number == UFFDIO_COPY ||
			call->number == UFFDIO_ZEROPAGE;

	if (installs && copy_error) {
		call->result = copy_error;
		return true;
	}
	fake_model(call);
	if (!call->result && (installs || call->number == UFFDIO_WAKE))
		wake(call->fd, call->at);
	return true;
}

static void take_out(uint64_t start, uint64_t end)
{
	uint64_t at = (uintptr_t)host[ALONE];
	uint64_t page = start > at ? (start - at) / PAGE : 0;

	for (; end > start && page < PAGES && at + page * PAGE < end; page++) {
		discarded[ANONYMOUS][page] = put[ANONYMOUS][page] = true;
		kvmfault__sys_madvise((char *)host[ALONE] + page * PAGE, PAGE,
				      MADV_DONTNEED);
	}
}

/* Whoever takes anonymous pages out past the library sleeps until the message
 * of it is read. A fault that was read with it may bring the page back: that
 * order only kvmfault_discard() keeps. */
static bool on_read(struct fake_call *call)
{
	const struct uffd_msg *msg = call->arg;
	long i, n = fake_model(call) / (long)sizeof(*msg);

	for (i = 0; i < n; i++)
		if (msg[i].event == UFFD_EVENT_REMOVE)
			take_out(msg[i].arg.remove.start,
				 msg[i].arg.remove.end);
	return true;
}

static void check_page(int m, uint64_t page)
{
	enum kvmfault__state state = kvmfault__page_state(memory[m], page);
	const char *data = host[m == ANONYMOUS ? ALONE : FIRST];
	bool there = fake_present(backing[m], page * PAGE);

	data += page * PAGE;
	if (state == KVMFAULT__PRESENT) {
		MUST(was_read[m][page] || discarded[m][page] || put[m][page]);
		MUST(there || discarded[m][page]);
	} else {
		MUST(state == KVMFAULT__ABSENT || state == KVMFAULT__DISCARDED);
		MUST(state == KVMFAULT__ABSENT || discarded[m][page]);
		MUST(!there || put[m][page]);
	}
	if (there && !put[m][page] && !discarded[m][page])
		MUST(*data == (char)(page + 1));
}

static void check(void)
{
	uint64_t page;
	int m;

	no_lock_is_held();
	for (m = 0; m < MEMORIES; m++)
		for (page = 0; page < PAGES; page++)
			check_page(m, page);
}

static void dispatch(void)
{
	unsigned int i;

	for (i = 0; i < 4; i++)
		MUST(!kvmfault_service_dispatch(service));
}

static void send_fault(struct input *in)
{
	struct uffd_msg msg = { .event = UFFD_EVENT_PAGEFAULT };
	uint8_t where = next8(in), flags = next8(in);
	int mapping = where % MAPPINGS;
	uint64_t page = where / MAPPINGS % PAGES;

	msg.arg.pagefault.address = (uintptr_t)host[mapping] + page * PAGE +
				    where;
	msg.arg.pagefault.flags = flags & UFFD_PAGEFAULT_FLAG_WRITE;
	asleep[mapping][page] = true;
	fake_message(listener[mapping], &msg);
}

static void send_any(struct input *in)
{
	int mapping = next8(in) % MAPPINGS;
	uint64_t base = (uintptr_t)host[mapping];
	struct uffd_msg msg;

	next(in, &msg, sizeof(msg));
	/* After that one a descriptor is left open, on purpose. */
	if (msg.event == UFFD_EVENT_REMAP)
		msg.event = UFFD_EVENT_UNMAP;
	if (msg.event == UFFD_EVENT_FORK) {
		int fd = fake_fd(FAKE_UFFD);

		fake_give(fd);
		msg.arg.fork.ufd = (uint32_t)fd;
	} else if (msg.event == UFFD_EVENT_PAGEFAULT) {
		msg.arg.pagefault.address += base;
	} else if (msg.event == UFFD_EVENT_REMOVE) {
		msg.arg.remove.start += base;
		msg.arg.remove.end += base;
	}
	fake_message(listener[mapping], &msg);
}

static void send_remove(struct input *in)
{
	struct uffd_msg msg = { .event = UFFD_EVENT_REMOVE };
	uint8_t where = next8(in);
	int mapping = where % MAPPINGS;

	msg.arg.remove.start = (uintptr_t)host[mapping] +
			       where / MAPPINGS % PAGES * PAGE;
	msg.arg.remove.end = msg.arg.remove.start + (next8(in) % 4 + 1) * PAGE;
	fake_message(listener[mapping], &msg);
}

static void step(struct input *in)
{
	static const int errors[] = { 0, 0, -EAGAIN, -ENOMEM };
	static const int reads[] = { 0, 0, -EIO, -EAGAIN };
	uint8_t what = next8(in), page = next8(in) % (MEMORIES * PAGES);
	uint64_t gpa = GPA + page * PAGE;
	int m = page / PAGES;

	switch (what % 9) {
	case 0:
		send_any(in);
		break;
	case 1:
		send_remove(in);
		break;
	case 2:
		fake_advance(SECOND >> page);
		break;
	case 3:
		source_error = reads[page % 4];
		copy_error = errors[page / 4 % 4];
		break;
	case 4:
		kvmfault_ensure(vm, 0, gpa, PAGE, page & 1);
		break;
	case 5:
		/* Of a page in flight it is an error, and yet remembered. */
		kvmfault_discard(vm, 0, gpa, PAGE);
		discarded[m][page % PAGES] = true;
		break;
	case 6:
		put[m][page % PAGES] = true;
		fake_put(backing[m], page % PAGES * PAGE);
		break;
	case 7:
		dispatch();
		break;
	default:
		send_fault(in);
	}
}

/* ---- the VM ---- */

static void add_memory(int m)
{
	static int which[MEMORIES] = { FILE_BACKED, ANONYMOUS };
	struct kvmfault_source source = {
		.size = sizeof(source), .read = read_page, .data = &which[m],
	};
	struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.host = host[m == ANONYMOUS ? ALONE : FIRST],
		.length = LENGTH,
		.fd = m == ANONYMOUS ? 0 : backing[m],
		.source = &source,
	};
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = GPA + (uint64_t)m * LENGTH,
		.length = LENGTH,
	};

	MUST(!kvmfault_memory_adopt(vm, &options, &memory[m]));
	region.memory = memory[m];
	MUST(!kvmfault_region_add(vm, &region));
}

static void add_mapping(int mapping, struct kvmfault_uffd *uffd)
{
	struct kvmfault_mapping_options options = {
		.size = sizeof(options),
		.host = (uintptr_t)host[mapping],
		.uffd = uffd,
	};
	struct kvmfault_mapping *added;

	MUST(!kvmfault_mapping_add(memory[FILE_BACKED], &options, &added));
	listener[mapping] = added->uffd->fd;
}

static int first_listener(int m)
{
	const struct kvmfault__mappings *all =
		atomic_load(&memory[m]->mappings);

	return all->mapping[0]->uffd->fd;
}

static struct kvmfault_uffd *up(void)
{
	const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops), .log = on_log, .unresolved = on_unresolved,
	};
	struct kvmfault_vm_options options = {
		.size = sizeof(options), .page_size_max = PAGE, .ops = &ops,
	};
	struct kvmfault_uffd_options other = {
		.size = sizeof(other), .fd = remote, .remote = true,
	};
	struct kvmfault_service_options none = { .size = sizeof(none) };
	struct kvmfault_uffd *uffd;

	memset(asleep, 0, sizeof(asleep));
	memset(was_read, 0, sizeof(was_read));
	memset(discarded, 0, sizeof(discarded));
	memset(put, 0, sizeof(put));
	source_error = copy_error = 0;
	MUST(!kvmfault_vm_new(&options, &vm));
	add_memory(FILE_BACKED);
	add_memory(ANONYMOUS);
	MUST(!kvmfault_uffd_new(vm, &other, &uffd));
	add_mapping(ANOTHER, NULL);
	add_mapping(REMOTE, uffd);
	listener[FIRST] = first_listener(FILE_BACKED);
	listener[ALONE] = first_listener(ANONYMOUS);
	MUST(!kvmfault_service_new(vm, &none, &service));
	fake_on(FAKE_IOCTL, on_ioctl);
	fake_on(FAKE_READ, on_read);
	return uffd;
}

static void down(struct kvmfault_uffd *uffd)
{
	struct fake_held left;
	int m;

	MUST(!kvmfault_service_free(service));
	for (m = 0; m < MEMORIES; m++) {
		uint64_t gpa = GPA + (uint64_t)m * LENGTH;

		MUST(!kvmfault_region_remove(vm, 0, gpa));
		MUST(!kvmfault_memory_free(memory[m]));
		kvmfault__sys_fallocate(backing[m], FALLOC_FL_PUNCH_HOLE, 0,
					LENGTH);
	}
	MUST(!kvmfault_uffd_free(uffd));
	MUST(!kvmfault_vm_free(vm));
	left = fake_held();
	MUST(!left.allocations && !left.descriptors && !left.mappings);
	fake_forget();
}

static void set_up_once(void)
{
	if (host[FIRST])
		return;
	backing[FILE_BACKED] = fake_memory(LENGTH, 0, &host[FIRST]);
	host[ANOTHER] = fake_map(backing[FILE_BACKED]);
	host[REMOTE] = fake_map(backing[FILE_BACKED]);
	backing[ANONYMOUS] = fake_memory(LENGTH, 0, &host[ALONE]);
	remote = fake_uffd(O_NONBLOCK);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	struct kvmfault_uffd *uffd;
	uint64_t page;
	int i;

	set_up_once();
	uffd = up();
	program = &in;
	for (i = 0; i < STEPS && in.left; i++) {
		step(&in);
		check();
	}
	/* All is well again. */
	program = NULL;
	source_error = copy_error = 0;
	for (i = 0; i < 8; i++) {
		dispatch();
		fake_advance(2 * SECOND);
	}
	check();
	for (i = 0; i < MAPPINGS; i++)
		for (page = 0; page < PAGES; page++)
			MUST(!asleep[i][page]);
	down(uffd);
	return 0;
}
