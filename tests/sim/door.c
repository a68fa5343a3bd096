/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The door of lib/ in the simulator. In: a call of lib/os/sys.h. Out: a point, then
 * the model's answer, or an error that the kernel may give there. What the fault
 * path must not do is judged here, and what the library makes is counted.
 */

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <sanitizer/asan_interface.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>

#include "lib/entry/entry.h"
#include "lib/os/abi.h"
#include "lib/setup/setup.h"
#include "sim.h"
#include "sources.h"

#define MADE 4096
#define ERRNOS 3

uint32_t door_fail_one_in;
uint64_t door_failed;

/* BY_MAP: of a file; BY_STATES: of one whose bytes are the host's */
enum made_by { BY_ALLOC = 1, BY_MMAP, BY_MAP, BY_STATES };
static struct made {
	void *at;
	size_t length;
	enum made_by by;
} made[MADE];
static unsigned int made_count;

/*
 * Memories have the same addresses in each run and each process: the library
 * hashes them. What is freed is not given out again, nor to be touched.
 */
#define PLACES ((char *)0x200000000000)
#define PLACE (1UL << 16)
static unsigned int placed;

static void *place(size_t size)
{
	static char *places;

	if (!places)
		places = mmap(PLACES, MADE * PLACE, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE |
			      MAP_FIXED_NOREPLACE, -1, 0);
	if (places != PLACES || placed == MADE || size > PLACE)
		abort();
	return places + PLACE * placed++;
}

static bool is_placed(const void *memory)
{
	return (const char *)memory >= PLACES &&
		(const char *)memory < PLACES + MADE * PLACE;
}

static void displace_all(void)
{
	while (placed)
		ASAN_UNPOISON_MEMORY_REGION(PLACES + PLACE * --placed, PLACE);
}

static bool allocating_seat;

void door_reset(void)
{
	while (made_count)
		if (made[--made_count].by < BY_MAP &&
		    !is_placed(made[made_count].at))
			free(made[made_count].at);
	displace_all();
	allocating_seat = false;
	door_fail_one_in = 0;
	door_failed = 0;
}

void door_check_leaks(void)
{
	if (made_count)
		sim_fail("leak", "%u blocks of memory are left, one of %zu bytes",
			 made_count, made[0].length);
	if (fds_of_library())
		sim_fail("leak", "%u descriptors are left", fds_of_library());
}

/* Stretches are larger than the memories here. */
static bool is_marked(const struct kvmfault_memory *memory)
{
	return memory->marked && atomic_load(&memory->marked[0]);
}

/* Of what has failed one is left. */
static void check_left(const struct sim_memory *memory)
{
	enum kvmfault__state state;
	unsigned int i, at;
	struct map *map;

	for (i = 0; i < memory->pages; i++) {
		map = map_at(our_mm, memory->memslots + i * PAGE, &at);
		state = kvmfault__page_state(memory->handle, i / memory->unit);
		if (map && map->pte[at].kind == PTE_POISON &&
		    (state == KVMFAULT__ABSENT || state == KVMFAULT__DISCARDED))
			sim_fail("a marker is left when the mode is",
				 "page %u", i);
	}
}

void door_check_unmarked(const struct sim_memory *memory)
{
	if (atomic_load(&world.vm->how.delivery) == KVMFAULT_DELIVERY_UFFD &&
	    !option(OPT_bad_luck))
		check_left(memory);
	if (!option(OPT_own) && is_marked(memory->handle))
		sim_fail("what has no marker counts as marked",
			 "there is no mapping of the VMM's own");
}

void door_check_markers(const struct sim_memory *memory)
{
	unsigned int i, at;
	struct map *map;

	/* A resolver of the VMM's that puts a page into the file leaves it to
	 * the library to map the page, which it can't before an event is read.
	 * The marker goes when it is touched. */
	if (option(OPT_bad_luck) || world.failures || world.poisons ||
	    (option(OPT_resolver) == 4 && option(OPT_events)))
		return;
	for (i = 0; i < memory->pages; i++) {
		map = map_at(our_mm, memory->memslots + i * PAGE, &at);
		if (map && map->pte[at].kind == PTE_POISON &&
		    kvmfault__page_state(memory->handle, i / memory->unit) ==
		    KVMFAULT__PRESENT)
			sim_fail("a marker is left on a page that came",
				 "page %u", i);
	}
}

bool door_in_flight(const struct sim_memory *memory, unsigned int page)
{
	return kvmfault__in_flight(kvmfault__page_state(memory->handle,
							page / memory->unit));
}

bool door_has_come(const struct sim_memory *memory, unsigned int page)
{
	return kvmfault__page_state(memory->handle, page / memory->unit) !=
	       KVMFAULT__ABSENT;
}

void door_check_bits(const struct kvmfault_memory *memory)
{
	unsigned int shift = memory->page_shift - __builtin_ctzll(PAGE);
	uint64_t i, pages = memory->length / PAGE;
	enum kvmfault__state state;
	bool set, wanted;

	for (i = 0; memory->userfault && i < pages; i++) {
		set = atomic_load(&memory->userfault[i / 64]) >> i % 64 & 1;
		state = kvmfault__page_state(memory, i >> shift);
		/* Who has it in hand may not be done with it. */
		if (kvmfault__in_flight(state))
			continue;
		wanted = state != KVMFAULT__PRESENT &&
			state != KVMFAULT__POISONED &&
			atomic_load(&memory->exits) &&
			kvmfault__tracked(memory);
		if (set != wanted)
			sim_fail("a bit does not follow its page", "page %u: %d",
				 (unsigned int)i, set);
	}
}

/* A hole where KVM goes past the bits costs a message. So who discards sets them
 * first, if nobody else does anything meanwhile. */
static void check_punched(const struct open *open, uint64_t offset,
			  uint64_t length)
{
	const struct sim_memory *memory = world_memory_of(open->file);
	const struct kvmfault_memory *handle = memory ? memory->handle : NULL;
	enum kvmfault__state state;
	unsigned int shift;
	uint64_t i;

	if (!handle || !handle->userfault || world.switching ||
	    current->began != sched_switches() ||
	    !atomic_load(&handle->exits))
		return;
	shift = handle->page_shift - __builtin_ctzll(PAGE);
	for (i = offset / PAGE; i < (offset + length) / PAGE; i++) {
		state = kvmfault__page_state(handle, i >> shift);
		if (!(atomic_load(&handle->userfault[i / 64]) >> i % 64 & 1) &&
		    (state == KVMFAULT__FETCHING ||
		     state == KVMFAULT__FETCHING_WAITED))
			sim_fail("a page is punched, and its bit is clear",
				 "page %u", (unsigned int)i);
	}
}

/* What is protected goes only when somebody has saved it. */
static void check_saved(const struct open *open, uint64_t offset,
			uint64_t length)
{
	const struct sim_memory *memory = world_memory_of(open->file);
	uint64_t i;

	if (!memory || !memory->snapshot || world.ever_private ||
	    option(OPT_bad_luck) || world.holes || world.lies ||
	    world.failures || world.poisons)
		return;
	for (i = offset / PAGE; i < (offset + length) / PAGE; i++)
		if (i >= memory->first && i - memory->first < memory->count &&
		    !memory->saved[i] && memory->file->frame[i] >= 0 &&
		    kvmfault__page_protected(memory->handle, i / memory->unit))
			sim_fail("a page is discarded that was not saved",
				 "page %u", (unsigned int)i);
}

/* ---- rules ---- */

struct call {
	const char *name;
	const char *syscall;		/* as kvmfault_syscalls() has it, or NULL */
	uint64_t value;
	bool makes;			/* memory, a descriptor, a thread */
	bool lockable;			/* set-up may do it under the VM's lock */
	int errnos[ERRNOS];		/* that the kernel may give */
};

struct start {
	void *(*run)(void *);
	void *arg;
};

static struct start starts[TASKS];

static const char worker[] = "a worker";

/* Its vCPU's thread has left it. */
static bool was_left(const char *in)
{
	const struct kvmfault__worker *mine = starts[current->id].arg;

	return in == worker && mine->leave;
}

bool door_is_worker(void)
{
	return current->call == worker;
}

struct sim_vcpu *door_worked_for(void)
{
	unsigned int i;

	for (i = 0; i < world.vcpus; i++)
		if (world.vcpu[i].handle && world.vcpu[i].handle->task.worker ==
					    starts[current->id].arg)
			return &world.vcpu[i];
	return NULL;
}

void door_kick_who_delegates(uint32_t one_in)
{
	struct sim_vcpu *vcpu;

	if (option(OPT_delegate) != 2 || current->call != worker ||
	    sched_is_fair() || !sim_one_in(one_in))
		return;
	vcpu = door_worked_for();
	if (!vcpu || !vcpu->task || vcpu->task->state == ENDED)
		return;
	tell("%s is kicked", vcpu->task->name);
	world.signalled = true;
	task_signal(vcpu->task, SIGUSR1);
}

void door_check_idle(const struct kvmfault_vcpu *vcpu)
{
	const struct kvmfault__worker *has = vcpu->task.worker;

	if (has && atomic_load(&has->state) & KVMFAULT__TASK_BUSY)
		sim_fail("a vCPU gets a worker that is busy", "%s",
			 current->name);
}

static bool is_any_busy(void)
{
	const struct kvmfault__worker *each = world.vm->workers;

	while (each && !(atomic_load(&each->state) & KVMFAULT__TASK_BUSY))
		each = each->next;
	return each;
}

bool door_was_settled(const struct sim_memory *memory)
{
	return memory->handle->was_settled;
}

void door_check_pending(void)
{
	while (is_any_busy())
		task_pause(MS, "a worker");
	if (atomic_load(&world.vm->pending))
		sim_fail("somebody is to be told who has left", "%u",
			 (unsigned int)atomic_load(&world.vm->pending));
}

/* A wait of a worker ends soon once it was left: the vCPU may need it. */
static void check_left_wait(const _Atomic uint32_t *word)
{
	const struct kvmfault__worker *mine = starts[current->id].arg;

	if (current->call != worker || current->callbacks ||
	    word == &mine->state)
		return;
	if (!(atomic_load(&mine->state) & KVMFAULT__TASK_LEFT) ||
	    mine->task.began != current->left_task) {
		current->left_task = mine->task.began;
		current->left_waits = 0;
	} else if (++current->left_waits > 3) {
		sim_fail("a worker that was left waits on", "%s", current->name);
	}
}

static bool published(enum kvmfault_profile profile, const struct call *call)
{
	const struct kvmfault_syscall *known;
	unsigned int i;

	for (i = 0; (known = kvmfault__syscall(profile, i)); i++)
		if (!strcmp(known->name, call->syscall) &&
		    (known->argument < 0 || known->value == (uint32_t)call->value))
			return true;
	return false;
}

static void judge(const struct call *call)
{
	const char *in = current->call ? current->call : "no call";

	if (current->handler)
		sim_fail("a signal's handler makes a system call", "%s",
			 call->name);
	if (current->locked && !call->lockable)
		sim_fail("a lock is held across a system call", "%s in %s",
			 call->name, in);
	if (current->on_path && call->makes && !current->callbacks)
		sim_fail("the fault path makes something", "%s in %s",
			 call->name, in);
	if ((world_is_vcpu(current) || in == worker) && !current->callbacks &&
	    call->syscall && !published(world_profile(current), call))
		sim_fail("a system call that is not published",
			 "%s %#llx on a vCPU's thread in %s", call->name,
			 (unsigned long long)call->value, in);
}

/* 0: the model's answer; or -errno. */
static int begin(const struct call *call)
{
	unsigned int n = 0;

	if (strcmp(call->name, "clock_gettime"))
		door_check_wake();
	judge(call);
	door_kick_who_delegates(16);
	sim_meet();
	sim_point();
	sim_pass(500);
	while (n < ERRNOS && call->errnos[n])
		n++;
	if (!n || !door_fail_one_in || sched_is_fair() ||
	    !sim_one_in(door_fail_one_in))
		return 0;
	n = sim_below(n);
	door_failed++;
	current->injected++;
	tell("%s: %d, by bad luck", call->name, -call->errnos[n]);
	return -call->errnos[n];
}

#define BEGIN(...) begin(&(const struct call){ .name = __VA_ARGS__ })

/* What was closed may be another's by now: to use it is a bug, even if that is
 * only an error. */
static struct open *use(int fd)
{
	struct open *open = fd_open(fd);

	if (!open)
		sim_fail("a descriptor that is closed is used", "%d in %s", fd,
			 current->call ? current->call : "no call");
	return open;
}

static int end(const char *name, int fd, int64_t ret)
{
	tell("%s(%d): %lld", name, fd, (long long)ret);
	return (int)ret;
}

/* ---- descriptors ---- */

/* What the kernel tells of a userfaultfd there. */
static int open_info(int fd)
{
	struct open *open = use(fd), *info;
	int new;

	if (!open || open->kind != KIND_UFFD)
		return -ENOENT;
	new = fd_new(KIND_INFO, true, &info);
	info->length = open->uffd->features;
	return new;
}

static int open_maps(void)
{
	struct open *info;
	int new = fd_new(KIND_INFO, true, &info);

	info->maps = true;
	return new;
}

static ssize_t read_maps(void *buffer, size_t length, uint64_t at)
{
	static char text[1 << 16];
	size_t size = mm_tell_maps(our_mm, text, sizeof(text));

	if (at >= size)
		return 0;
	if (length > size - at)
		length = size - at;
	memcpy(buffer, text + at, length);
	return (ssize_t)length;
}

static ssize_t read_states(const struct open *open, void *buffer,
			   size_t length, uint64_t at)
{
	if (at >= open->length)
		return 0;
	if (length > open->length - at)
		length = open->length - at;
	memcpy(buffer, open->states + at, length);
	return (ssize_t)length;
}

static int extend_states(struct open *open, uint64_t length)
{
	if (length > STATES_MOST)
		return -ENOSPC;
	if (length > open->length)
		open->length = length;
	return 0;
}

int kvmfault__sys_open(const char *path, int flags)
{
	struct open *open;
	int err = BEGIN("open", .makes = true, .errnos = { EMFILE });
	int fd;

	(void)flags;
	if (err)
		return err;
	if (sscanf(path, "/proc/self/fdinfo/%d", &fd) == 1)
		return open_info(fd);
	if (!strcmp(path, "/proc/self/maps"))
		return open_maps();
	if (strcmp(path, "/dev/userfaultfd") || world.no_device)
		return -ENOENT;
	return fd_new(KIND_DEVICE, true, &open);
}

int kvmfault__sys_close(int fd)
{
	BEGIN("close", .lockable = false);
	return end("close", fd, fd_close(fd, true));
}

int kvmfault__sys_dup(int fd)
{
	int err = BEGIN("dup", .makes = true, .errnos = { EMFILE });

	return err ? err : fd_dup(fd, true);
}

int kvmfault__sys_getfl(int fd)
{
	struct open *open;

	BEGIN("fcntl");
	open = use(fd);
	return open ? O_RDWR | open->flags : -EBADF;
}

static int new_uffd(int flags)
{
	struct open *open;
	int fd;

	if (world.no_uffd)
		return -EPERM;
	fd = fd_new(KIND_UFFD, true, &open);
	if (fd < 0)
		return fd;
	open->flags = flags & O_NONBLOCK;
	open->uffd = uffd_new(our_mm);
	return fd;
}

int kvmfault__sys_userfaultfd(int flags)
{
	int err = BEGIN("userfaultfd", .makes = true, .errnos = { EMFILE });

	return err ? err : new_uffd(flags);
}

static const char *name_of(unsigned long request)
{
	switch (request) {
	case UFFDIO_API: return "UFFDIO_API";
	case UFFDIO_REGISTER: return "UFFDIO_REGISTER";
	case UFFDIO_UNREGISTER: return "UFFDIO_UNREGISTER";
	case UFFDIO_COPY: return "UFFDIO_COPY";
	case UFFDIO_ZEROPAGE: return "UFFDIO_ZEROPAGE";
	case UFFDIO_CONTINUE: return "UFFDIO_CONTINUE";
	case UFFDIO_WRITEPROTECT: return "UFFDIO_WRITEPROTECT";
	case UFFDIO_WAKE: return "UFFDIO_WAKE";
	case KVMFAULT__UFFDIO_POISON: return "UFFDIO_POISON";
	case KVMFAULT__SET_MEMORY_ATTRIBUTES: return "KVM_SET_MEMORY_ATTRIBUTES";
	}
	return "ioctl";
}

/* What the kernel may say to it at any time. */
static struct call ioctl_call(unsigned long request)
{
	struct call call = { .name = name_of(request), .syscall = "ioctl",
			     .value = request };

	switch (request) {
	case UFFDIO_REGISTER:
		call.lockable = true;
		call.errnos[0] = ENOMEM;
		break;
	case UFFDIO_UNREGISTER:
	case UFFDIO_WAKE:
		call.lockable = true;
		break;
	case UFFDIO_COPY:
	case UFFDIO_ZEROPAGE:
	case UFFDIO_CONTINUE:
	case KVMFAULT__UFFDIO_POISON:
		call.errnos[0] = EAGAIN;
		call.errnos[1] = ENOMEM;
		break;
	case UFFDIO_WRITEPROTECT:
		call.errnos[0] = EAGAIN;
		break;
	case KVMFAULT__SET_MEMORY_ATTRIBUTES:
		call.errnos[0] = ENOMEM;
		break;
	}
	return call;
}

/* As another thread than the vCPU's own: that waits for it in the library, or else
 * it is only looked at. */
static int ioctl_of_vcpu(struct open *open, unsigned long request, void *arg)
{
	bool change = request == KVM_SET_VCPU_EVENTS;
	int err;

	if (change)
		world_check_vcpu(world_vcpu_of(open->vcpu));
	open->vcpu->used++;
	err = kvm_ioctl(open, request, arg);
	open->vcpu->used--;
	task_wake(&open->vcpu->used, TASKS);
	if (change)
		world_check_vcpu(world_vcpu_of(open->vcpu));
	return err;
}

static int ioctl_of(struct open *open, unsigned long request, void *arg)
{
	switch (open->kind) {
	case KIND_UFFD:
		return uffd_ioctl(open->uffd, request, arg);
	case KIND_DEVICE:
		return request == KVMFAULT__USERFAULTFD_IOC_NEW ?
			new_uffd((int)(uintptr_t)arg) : -ENOTTY;
	case KIND_VCPU:
		return ioctl_of_vcpu(open, request, arg);
	case KIND_KVM:
	case KIND_VM:
		return kvm_ioctl(open, request, arg);
	case KIND_IMAGE:
		if (request != BLKGETSIZE64)
			return -ENOTTY;
		*(uint64_t *)arg = open->length;
		return 0;
	default:
		return -ENOTTY;
	}
}

int kvmfault__sys_ioctl(int fd, unsigned long request, void *arg)
{
	const struct call call = ioctl_call(request);
	struct uffdio_range range = { 0 };
	int err = begin(&call);
	struct open *open = use(fd);

	kvm.refuses |= err && request == KVMFAULT__SET_MEMORY_ATTRIBUTES;
	if (err)
		return err;
	if (!open)
		return -EBADF;
	if (open->kind == KIND_UFFD && arg)
		memcpy(&range, arg, sizeof(range));
	err = ioctl_of(open, request, arg);
	if (!err && request == KVM_TRANSLATE)
		tables_note_asked(((struct kvm_translation *)arg)->
				  physical_address);
	tell("%s(%d) %#llx: %d", call.name, fd, (unsigned long long)range.start,
	     err);
	return err;
}

ssize_t kvmfault__sys_read_now(int fd, void *buffer, size_t length)
{
	int err = BEGIN("read_now", .syscall = "preadv2",
			.errnos = { EAGAIN });
	struct open *open = use(fd);

	if (err)
		return err;
	if (!open || open->kind != KIND_UFFD)
		return -EBADF;
	return end("read_now", fd, uffd_read(open->uffd, buffer, length));
}

/* It is asked on kernels that have no such read, and this one has. */
bool kvmfault__sys_readable(int fd)
{
	sim_fail("a call of an older kernel", "readable(%d)", fd);
	return false;
}

ssize_t kvmfault__sys_read(int fd, void *buffer, size_t length)
{
	int err = BEGIN("read", .syscall = "read", .errnos = { EAGAIN });
	struct open *open = use(fd);

	if (err)
		return err;
	if (!open)
		return -EBADF;
	switch (open->kind) {
	case KIND_EVENT:
		if (!open->count)
			return -EAGAIN;
		open->count--;
		return 8;
	case KIND_TIMER:
		if (open->due > sim_now())
			return -EAGAIN;
		open->due = NEVER;
		memset(buffer, 0, length);
		return 8;
	default:
		return -EINVAL;
	}
}

/* Files of working sets are written, and the model has none. */
ssize_t kvmfault__sys_write(int fd, const void *buffer, size_t length)
{
	(void)buffer;
	sim_fail("a call that no step makes", "write(%d, %zu)", fd, length);
	return -EBADF;
}

ssize_t kvmfault__sys_pread(int fd, void *buffer, size_t length, off_t offset)
{
	int err = BEGIN("pread", .syscall = "pread64", .errnos = { EIO, EINTR });
	struct open *open = use(fd);
	uint64_t at = (uint64_t)offset;

	if (err)
		return err;
	if (!open)
		return -EBADF;
	if (open->kind == KIND_FILE) {
		tables_note_read(open->file, at, length);
		return file_read(open->file, at, buffer, length);
	}
	if (open->kind == KIND_STATES)
		return read_states(open, buffer, length, at);
	if (open->kind == KIND_INFO && open->maps)
		return read_maps(buffer, length, at);
	if (open->kind == KIND_INFO)
		return snprintf(buffer, length,
				"pending:\t0\ntotal:\t0\nAPI:\taa:%llx:0\n",
				(unsigned long long)open->length);
	if (open->kind != KIND_IMAGE)
		return -ESPIPE;
	if (at >= open->length)
		return 0;
	if (length > open->length - at)
		length = open->length - at;
	/* Short, as a signal may leave it. */
	if (length > 8 && sim_one_in(8))
		length = 1 + sim_below((uint32_t)length - 1);
	memcpy(buffer, open->image + at, length);
	return (ssize_t)length;
}

off_t kvmfault__sys_lseek(int fd, off_t offset, int whence)
{
	struct open *open;

	BEGIN("lseek", .syscall = "lseek", .value = (uint64_t)whence);
	open = use(fd);
	if (open && open->kind == KIND_IMAGE)
		return source_seek(open, (uint64_t)offset, whence == SEEK_DATA);
	if (!open || open->kind != KIND_FILE)
		return open ? -EINVAL : -EBADF;
	return whence == SEEK_DATA ?
		file_seek_data(open->file, (uint64_t)offset) :
		file_seek_hole(open->file, (uint64_t)offset);
}

int kvmfault__sys_fstat(int fd, struct stat *stat)
{
	struct open *open;

	BEGIN("fstat");
	open = use(fd);
	if (!open)
		return -EBADF;
	memset(stat, 0, sizeof(*stat));
	stat->st_mode = open->kind == KIND_FILE || open->kind == KIND_IMAGE ||
			open->kind == KIND_STATES ? S_IFREG : S_IFIFO;
	stat->st_size = (off_t)open->length;
	if (open->file) {
		stat->st_ino = open->file->inode;
		stat->st_size = open->file->pages * (off_t)PAGE;
		stat->st_blocks = (blkcnt_t)(file_blocks(open->file) * PAGE / 512);
	}
	return 0;
}

int kvmfault__sys_fstatfs(int fd, struct statfs *fs)
{
	struct open *open;

	BEGIN("fstatfs");
	open = use(fd);
	if (!open)
		return -EBADF;
	memset(fs, 0, sizeof(*fs));
	fs->f_type = TMPFS_MAGIC;
	fs->f_bsize = PAGE;
	if (open->file && open->file->hugetlb) {
		fs->f_type = HUGETLBFS_MAGIC;
		fs->f_bsize = HUGE_PAGES * PAGE;
	}
	return 0;
}

int kvmfault__sys_cached(int fd, uint64_t offset, uint64_t length)
{
	struct open *open;

	BEGIN("cachestat");
	open = use(fd);
	if (world.no_cachestat)
		return -ENOSYS;
	return open && open->file ? file_cached(open->file, offset, length) :
				    -EBADF;
}

int kvmfault__sys_fallocate(int fd, int mode, off_t offset, off_t length)
{
	int err = BEGIN("fallocate", .syscall = "fallocate",
			.value = (uint64_t)mode, .errnos = { EINTR, ENOMEM });
	struct open *open = use(fd);

	if (err)
		return err;
	if (open && open->kind == KIND_STATES && !mode)
		return extend_states(open, (uint64_t)(offset + length));
	if (!open || !open->file)
		return open ? -EOPNOTSUPP : -EBADF;
	check_punched(open, (uint64_t)offset, (uint64_t)length);
	check_saved(open, (uint64_t)offset, (uint64_t)length);
	open->file->punching++;
	/* KVM is told first, and may have to wait. */
	if (open->file->guest_memfd && !sched_is_fair() && sim_one_in(2))
		task_pause(MS, "KVM");
	open->file->punching--;
	err = file_punch(open->file, (uint64_t)offset, (uint64_t)length);
	tell("fallocate(%d, PUNCH_HOLE) %#llx+%#llx: %d", fd,
	     (unsigned long long)offset, (unsigned long long)length, err);
	return err;
}

/* ---- memory ---- */

static void note_made(void *at, size_t length, enum made_by by)
{
	if (made_count == MADE)
		abort();
	sim_made(at, length);
	made[made_count++] = (struct made){ at, length, by };
}

static bool forget_made(const void *at, enum made_by by)
{
	unsigned int i;

	for (i = made_count; i--;) {
		if (made[i].at != at || made[i].by != by)
			continue;
		memmove(&made[i], &made[i + 1],
			(--made_count - i) * sizeof(*made));
		return true;
	}
	return false;
}

void door_given(const void *mapping)
{
	forget_made(mapping, BY_MAP);
}

static int map_descriptor(void **address, size_t length, int prot, int flags,
			  struct open *open, uint64_t offset)
{
	uint64_t at;

	if (open->kind == KIND_VCPU) {
		*address = calloc(1, length);
		open->vcpu->run = *address;
		note_made(*address, length, BY_MMAP);
		return 0;
	}
	if (open->kind == KIND_STATES) {
		*address = open->states;
		note_made(*address, length, BY_STATES);
		return 0;
	}
	if (!open->file)
		return -ENODEV;
	at = mm_map(our_mm, open->file, (unsigned int)(offset / PAGE),
		    (unsigned int)(length / PAGE), prot, flags & MAP_PRIVATE);
	*address = (void *)(uintptr_t)at;
	note_made(*address, length, BY_MAP);
	return 0;
}

int kvmfault__sys_mmap(void **address, size_t length, int prot, int flags,
		       int fd, off_t offset)
{
	int err = BEGIN("mmap", .makes = !world_makes_seat(),
			.errnos = { ENOMEM });
	struct open *open = fd >= 0 ? use(fd) : NULL;

	*address = NULL;
	if (err)
		return err;
	if (fd >= 0)
		return open ? map_descriptor(address, length, prot, flags, open,
					     (uint64_t)offset) : -EBADF;
	if (prot == PROT_NONE || !(flags & MAP_NORESERVE)) {
		/* A page that nobody may read, or that the kernel is asked
		 * about: the model's. */
		*address = (void *)(uintptr_t)mm_map(our_mm, NULL, 0,
			(unsigned int)(length / PAGE), prot, true);
		note_made(*address, length, BY_MAP);
		return 0;
	}
	if (posix_memalign(address, PAGE, length))
		return -ENOMEM;
	memset(*address, 0, length);
	note_made(*address, length, BY_MMAP);
	return 0;
}

int kvmfault__sys_munmap(void *address, size_t length)
{
	BEGIN("munmap", .makes = true);
	if (forget_made(address, BY_MMAP)) {
		free(address);
		return 0;
	}
	if (forget_made(address, BY_STATES))
		return 0;
	if (forget_made(address, BY_MAP))
		return mm_unmap(our_mm, (uintptr_t)address, length);
	sim_fail("the library unmaps what it has not mapped", "%p", address);
}

int kvmfault__sys_mprotect(void *address, size_t length, int prot)
{
	int err = BEGIN("mprotect", .syscall = "mprotect", .errnos = { ENOMEM });

	if (!err)
		err = mm_protect(our_mm, (uintptr_t)address, length, prot);
	tell("mprotect %p+%#zx: %d", address, length, err);
	return err;
}

int kvmfault__sys_madvise(void *address, size_t length, int advice)
{
	int err = BEGIN("madvise", .syscall = "madvise",
			.value = (uint64_t)advice,
			.lockable = advice == MADV_DONTNEED,
			.errnos = { EAGAIN, ENOMEM });
	unsigned int page;

	if (err)
		return err;
	/* Memory that only the library has: a probe's page, states. */
	if (!map_at(our_mm, (uintptr_t)address, &page)) {
		if (!forget_made(address, BY_MMAP))
			return -ENOMEM;
		note_made(address, length, BY_MMAP);
		if (advice == MADV_DONTNEED)
			memset(address, 0, length);
		return 0;
	}
	err = mm_madvise(our_mm, (uintptr_t)address, length, advice);
	tell("madvise(%d) %p+%#zx: %d", advice, address, length, err);
	return err;
}

int kvmfault__sys_mincore(void *address, size_t length, unsigned char *vec)
{
	int err = BEGIN("mincore", .syscall = "mincore", .errnos = { EAGAIN });
	unsigned char said[MEMORY_PAGES];
	unsigned int page;
	frame_t frame;

	if (!err)
		err = mm_mincore(our_mm, (uintptr_t)address, length, said);
	if (err)
		return err;
	/* The kernel writes it there, and may have to sleep for that page. */
	if (map_at(our_mm, (uintptr_t)vec, &page)) {
		if (mm_copy(our_mm, (uintptr_t)vec, true, &frame) != ACCESS_OK)
			return -EFAULT;
		vec = (unsigned char *)frame_bytes(frame) +
		      (uintptr_t)vec % PAGE;
	}
	memcpy(vec, said, length / PAGE);
	return 0;
}

int kvmfault__sys_memfd(const char *name, unsigned int flags, off_t length)
{
	int err = BEGIN("memfd_create", .makes = true, .errnos = { EMFILE });
	unsigned int shift = flags >> MFD_HUGE_SHIFT;
	struct open *open;
	int fd;

	(void)name;
	if (err)
		return err;
	if (shift && 1ULL << shift != HUGE_PAGES * PAGE)
		return -EINVAL;
	if (length > (4 << 20))
		return -ENOMEM;	/* the machine is a small one */
	fd = fd_new(KIND_FILE, true, &open);
	if (fd >= 0)
		open->file = file_new((unsigned int)((uint64_t)length / PAGE),
				      flags & MFD_HUGETLB, false);
	return fd;
}

size_t kvmfault__sys_page_size(void)
{
	return PAGE;
}

/* ---- signals ---- */

int kvmfault__sys_sigmask(uint64_t *mask)
{
	BEGIN("rt_sigprocmask");
	*mask = current->blocked;
	return 0;
}

int kvmfault__sys_handles(int signo)
{
	BEGIN("rt_sigaction");
	return signo == SIGBUS && current->on_signal;
}

int kvmfault__sys_sigtake(int signo, void *siginfo)
{
	BEGIN("rt_sigtimedwait", .syscall = "rt_sigtimedwait");
	if (!task_take_signal(current, signo))
		return -EAGAIN;
	memcpy(siginfo, &current->sigbus, sizeof(current->sigbus));
	return 0;
}

/* ---- waiting ---- */

#define SLICE (10 * MS)			/* how long a wait of the library's is */

/* It is slept on for the time alone: a futex on which nobody is ever woken, or a
 * fill that rests. */
static bool is_pause(const _Atomic uint32_t *word)
{
	const struct kvmfault__seat *seat = atomic_load(&world.vm->seats);

	if (!strncmp(current->name, "kvmfault-fill", 13))
		return true;
	while (seat && &seat->pause != word)
		seat = seat->next;
	return seat;
}

/*
 * Whoever waits for something is woken when it has come. That he looks again
 * after a while is for a stop that comes without a wake; if he then finds that it
 * has come, a wake was lost.
 */
void door_check_wake(void)
{
	const struct sim_vcpu *vcpu = world_vcpu(current);
	const char *in = current->call ? current->call : "no call";

	if (!current->napped)
		return;
	current->napped = NULL;
	/* Somebody else has gone on since: it may be about to wake. */
	if (current->napped_at != sched_switches())
		return;
	if ((vcpu && vcpu->run.immediate_exit) || was_left(in) ||
	    current->callbacks ||
	    !strcmp(in, "kvmfault_memory_free") ||
	    !strcmp(in, "kvmfault_memory_settle") ||
	    !strcmp(in, "kvmfault_mapping_remove"))
		return;
	sim_fail("a wake is lost", "%s in %s goes on after its time was over",
		 current->name, in);
}

int kvmfault__sys_futex_wait(_Atomic uint32_t *word, uint32_t value,
			     uint64_t nanoseconds)
{
	enum woken how;
	uint64_t began;

	if (current->napped == (const void *)(uintptr_t)word)
		current->napped = NULL;
	BEGIN("futex", .syscall = "futex", .value = FUTEX_WAIT_PRIVATE);
	current->waits++;
	check_left_wait(word);
	if (__atomic_load_n((uint32_t *)(uintptr_t)word, __ATOMIC_SEQ_CST) !=
	    value)
		return -EAGAIN;
	if (!sched_is_fair() && sim_one_in(64))
		return 0;	/* for no reason */
	began = sim_now();
	how = task_sleep((const void *)(uintptr_t)word, "futex",
			 began + nanoseconds, true);
	current->waited += sim_now() - began;
	if (how == LATE && nanoseconds >= SLICE && !is_pause(word) &&
	    sched_was_idle()) {
		current->napped = (const void *)(uintptr_t)word;
		current->napped_at = sched_switches();
	}
	switch (how) {
	case WOKEN:
		return 0;
	case LATE:
		return -ETIMEDOUT;
	case SIGNALLED:
		break;
	}
	task_handle_signals();
	return -EINTR;
}

int kvmfault__sys_futex_wake(_Atomic uint32_t *word)
{
	BEGIN("futex", .syscall = "futex", .value = FUTEX_WAKE_PRIVATE);
	return (int)task_wake((const void *)(uintptr_t)word, TASKS);
}

int kvmfault__sys_epoll_create(void)
{
	struct open *open;
	int err = BEGIN("epoll_create1", .makes = true, .errnos = { EMFILE });

	return err ? err : fd_new(KIND_EPOLL, true, &open);
}

int kvmfault__sys_epoll_ctl(int epfd, int op, int fd, struct epoll_event *ev)
{
	int err = BEGIN("epoll_ctl", .lockable = op != EPOLL_CTL_DEL,
			.errnos = { op == EPOLL_CTL_ADD ? ENOMEM : 0 });
	struct open *epoll = use(epfd);

	if (err || !epoll)
		return err ? err : -EBADF;
	if (op == EPOLL_CTL_MOD)
		return epoll_modify(epoll, fd, ev);
	return op == EPOLL_CTL_DEL ? epoll_delete(epoll, fd) :
				     epoll_add(epoll, fd, ev);
}

int kvmfault__sys_epoll_wait(int epfd, struct epoll_event *events, int count,
			     int timeout)
{
	int err = BEGIN("epoll_wait");
	struct open *epoll = use(epfd);

	if (err || !epoll)
		return err ? err : -EBADF;
	return epoll_await(epoll, events, count, timeout);
}

int kvmfault__sys_eventfd(void)
{
	struct open *open;
	int err = BEGIN("eventfd", .makes = true, .errnos = { EMFILE });

	return err ? err : fd_new(KIND_EVENT, true, &open);
}

int kvmfault__sys_eventfd_signal(int fd)
{
	struct open *open;

	BEGIN("write", .syscall = "write", .value = sizeof(uint64_t));
	open = use(fd);
	if (!open)
		return -EBADF;
	open->count++;
	fds_changed();
	return 8;
}

int kvmfault__sys_timerfd(void)
{
	struct open *open;
	int err = BEGIN("timerfd_create", .makes = true, .errnos = { EMFILE });

	return err ? err : fd_new(KIND_TIMER, true, &open);
}

int kvmfault__sys_timerfd_arm(int fd, uint64_t nanoseconds)
{
	struct open *open;

	BEGIN("timerfd_settime", .syscall = "timerfd_settime");
	open = use(fd);
	if (!open)
		return -EBADF;
	open->due = nanoseconds ? sim_now() + nanoseconds : NEVER;
	tell("a timer is set: %.3f ms", (double)nanoseconds / 1e6);
	return 0;
}

uint64_t kvmfault__sys_now(void)
{
	BEGIN("clock_gettime", .syscall = "clock_gettime",
	      .value = CLOCK_MONOTONIC);
	return sim_now();
}

/* ---- threads ---- */

pthread_t sim_pthread_self(void);

pthread_t sim_pthread_self(void)
{
	return current->id + 1;
}

void **kvmfault__sys_own(void)
{
	return &current->own;
}

static void run_thread(void *arg)
{
	struct start *start = arg;

	current->service = true;
	current->on_path = true;
	current->call = strcmp(current->name, "kvmfault-vcpu") ?
		"a thread of the service" : worker;
	start->run(start->arg);
}

int kvmfault__sys_thread(pthread_t *thread, void *(*run)(void *), void *arg,
			 const char *name)
{
	int err = BEGIN("clone", .makes = true, .errnos = { EAGAIN });
	struct task *task;
	struct start *start;

	if (err)
		return err;
	task = task_new(name, our_mm, run_thread, NULL);
	if (!task)
		return -EAGAIN;
	start = &starts[task->id];
	*start = (struct start){ .run = run, .arg = arg };
	task->arg = start;
	task->blocked = UINT64_MAX;
	*thread = task->id + 1;
	return 0;
}

void kvmfault__sys_join(pthread_t thread)
{
	BEGIN("join", .makes = true);
	task_wait_end(task_nth((unsigned int)thread - 1));
}

void kvmfault__sys_yield(void)
{
	BEGIN("sched_yield");
	sim_give_way();
	sim_pass(500);
}

/* The first word of the mutex says who has it. */
void kvmfault__sys_lock(pthread_mutex_t *mutex)
{
	unsigned int *owner = (unsigned int *)(void *)mutex;

	if (current->locked)
		sim_fail("a lock is taken inside another", "in %s",
			 current->call ? current->call : "no call");
	sim_point();
	while (*owner)
		task_sleep(mutex, "a lock of the library", NEVER, false);
	*owner = current->id + 1;
	current->locked = mutex;
}

void kvmfault__sys_unlock(pthread_mutex_t *mutex)
{
	unsigned int *owner = (unsigned int *)(void *)mutex;

	if (current->locked != mutex)
		sim_fail("a lock is let go that is not held", "in %s",
			 current->call ? current->call : "no call");
	*owner = 0;
	current->locked = NULL;
	task_wake(mutex, TASKS);
	sim_point();
}

/* ---- the allocator ---- */

bool world_makes_seat(void)
{
	return !current->on_path || allocating_seat;
}

void *kvmfault__sys_alloc(size_t size, size_t align)
{
	bool seat = size == sizeof(struct kvmfault__seat);
	int err = BEGIN("malloc", .makes = !seat || world_is_vcpu(current) ||
				  current->service,
			.lockable = true, .errnos = { ENOMEM });
	void *memory = NULL;

	if (!err && size == sizeof(struct kvmfault_memory))
		memory = place(size);
	else if (err || posix_memalign(&memory, align < sizeof(void *) ?
				       sizeof(void *) : align, size))
		return NULL;
	memset(memory, 0, size);
	note_made(memory, size, BY_ALLOC);
	allocating_seat = seat;
	return memory;
}

void kvmfault__sys_free(void *memory)
{
	BEGIN("free", .lockable = true);
	if (!memory)
		return;
	if (!forget_made(memory, BY_ALLOC))
		sim_fail("the library frees what it has not allocated", "%p",
			 memory);
	if (is_placed(memory))
		ASAN_POISON_MEMORY_REGION(memory, PLACE);
	else
		free(memory);
}
