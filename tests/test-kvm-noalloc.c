/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The fault path makes no allocation: with everything set up, this program's
 * allocator aborts while the guest runs, whichever thread asks, and the guest
 * gets all its pages by each entrance, in both columns. That the trap is real
 * is shown in child processes that fall into it.
 */

#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kvm-rig.h"
#include "need.h"

/* ---- the trap ---- */

static atomic_bool armed;
static atomic_uint caught;	/* frees: nothing to free, if none allocates */

static void trap(void)
{
	static const char line[] = "an allocation on the fault path\n";

	if (!atomic_load(&armed))
		return;
	/* What stdio does may allocate. */
	if (write(STDERR_FILENO, line, sizeof(line) - 1) < 0)
		_exit(1);
	abort();
}

static void count_free(const volatile void *memory)
{
	if (memory && atomic_load(&armed))
		atomic_fetch_add(&caught, 1);
}

/* In the C library's place; what it has under these names is the same, and a
 * sanitizer knows them too. */
void *__libc_memalign(size_t align, size_t size);

int posix_memalign(void **memory, size_t align, size_t size)
{
	trap();
	*memory = __libc_memalign(align, size);
	return *memory ? 0 : ENOMEM;
}

void *aligned_alloc(size_t align, size_t size)
{
	trap();
	return __libc_memalign(align, size);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)

/* The rest of its allocator a sanitizer keeps, and lets us listen. */
int __sanitizer_install_malloc_and_free_hooks(
	void (*on_malloc)(const volatile void *, size_t),
	void (*on_free)(const volatile void *));

static void on_malloc(const volatile void *memory, size_t size)
{
	(void)memory;
	(void)size;
	trap();
}

static void set_trap(void)
{
	if (!__sanitizer_install_malloc_and_free_hooks(on_malloc, count_free))
		abort();
}

#else

#define TRAPS_MMAP

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);
void __libc_free(void *memory);

void *malloc(size_t size)
{
	trap();
	return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
	trap();
	return __libc_calloc(count, size);
}

void *realloc(void *memory, size_t size)
{
	trap();
	return __libc_realloc(memory, size);
}

void free(void *memory)
{
	count_free(memory);
	__libc_free(memory);
}

/* Not the allocator's own: those do not come this way. Under both names, of
 * which the headers choose one. */
void *trapped_mmap(void *address, size_t length, int prot, int flags, int fd,
		   off_t offset) __asm__("mmap");
void *trapped_mmap64(void *address, size_t length, int prot, int flags, int fd,
		     off_t offset) __asm__("mmap64")
	__attribute__((alias("mmap")));

void *trapped_mmap(void *address, size_t length, int prot, int flags, int fd,
		   off_t offset)
{
	trap();
	return (void *)syscall(SYS_mmap, address, length, prot, flags, fd,
			       offset);
}

int munmap(void *address, size_t length)
{
	count_free(address);
	return (int)syscall(SYS_munmap, address, length);
}

static void set_trap(void)
{
}

#endif

/* ---- and who falls into it ---- */

static void *volatile sink;	/* or the compiler leaves it all out */

static void by_malloc(void)
{
	sink = malloc(10);
}

static void by_calloc(void)
{
	sink = calloc(2, 5);
}

static void by_realloc(void)
{
	sink = realloc(sink, 100);
}

static void by_posix_memalign(void)
{
	void *memory;

	if (!posix_memalign(&memory, 64, 10))
		sink = memory;
}

#ifdef TRAPS_MMAP
static void by_mmap(void)
{
	sink = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
#endif

/* A call of the library's that is known to allocate. */
static void by_the_library(void)
{
	struct kvmfault_vm *vm;

	kvmfault_vm_new(NULL, &vm);
}

static void (*const falls[])(void) = {
	by_malloc, by_calloc, by_realloc, by_posix_memalign, by_the_library,
#ifdef TRAPS_MMAP
	by_mmap,
#endif
};
#define FALLS ((int)(sizeof(falls) / sizeof(*falls)))

static int fall(void (*allocate)(void), bool arm)
{
	pid_t child = fork();
	int status;

	ck_assert_int_ge(child, 0);
	if (!child) {
		prctl(PR_SET_DUMPABLE, 0);
		atomic_store(&armed, arm);
		allocate();
		_exit(0);
	}
	ck_assert_int_eq(waitpid(child, &status, 0), child);
	return status;
}

/* main() finds out how many times the cases of TEST_COUNTED() are run. */
static int each_way;
static int where_emulated;
static int annotated;

TEST_GROUP(noalloc, NULL, NULL);

TEST_EACH(noalloc, who_allocates_is_trapped, FALLS)
{
	int status;

	set_trap();
	status = fall(falls[_i], false);
	ck_assert(WIFEXITED(status));
	status = fall(falls[_i], true);
	ck_assert(WIFSIGNALED(status));
	ck_assert_int_eq(WTERMSIG(status), SIGABRT);
}

/* ---- the guest, with the trap armed ---- */

#define PAGES 256
#define WARM 2			/* behind them, for the service's threads */
#define VCPUS 4
#define SHARE (PAGES / VCPUS)
#define EXITS 4			/* of each vCPU */
#define GMEM (RAM + (32 << 20))
#define GMEM_SLOT 16

static struct rig rig;
static struct team team;
static pthread_barrier_t together;

static struct kvmfault_stats stats(void)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };

	ck_assert_int_eq(kvmfault_vm_stats(rig.vm, &stats), 0);
	return stats;
}

static void *touch_a_warm_page(void *arg)
{
	uint64_t offset = (PAGES + (uintptr_t)arg) * PAGE;

	rig_same(*(volatile uint64_t *)(rig.b + offset), rig_word(offset),
		 "the host's word");
	return NULL;
}

/* Until each thread of the service has had a page in hand: to begin may
 * allocate. */
static void await_service(void)
{
	rig_close_gate(&rig);
	team_start(&team, WARM, touch_a_warm_page);
	rig_await_gate(&rig, WARM);
	rig_open_gate(&rig);
	team_join(&team);
}

/* All are there before the trap is armed, and end after it is not: to start or
 * end a thread allocates. */
static void run_trapped(void *(*run)(void *))
{
	await_service();
	set_trap();
	pthread_barrier_init(&together, NULL, VCPUS + 1);
	team_start(&team, VCPUS, run);
	pthread_barrier_wait(&together);
	atomic_store(&armed, true);
	pthread_barrier_wait(&together);
	pthread_barrier_wait(&together);
	atomic_store(&armed, false);
	team_join(&team);
	ck_assert_uint_eq(atomic_load(&caught), 0);
}

static void begin(void)
{
	pthread_barrier_wait(&together);
	pthread_barrier_wait(&together);
}

static void *end(void)
{
	pthread_barrier_wait(&together);
	return NULL;
}

static void guest_reads(unsigned int vcpu, uint64_t gpa, uint64_t offset)
{
	rig_same(rig_do(&rig, vcpu, MACHINE_READ, gpa, 8, 0),
		 rig_word(offset), "the guest's word");
}

static void *all_pages(void *arg)
{
	unsigned int i, id = (unsigned int)(uintptr_t)arg;
	uint16_t order[PAGES];
	uint64_t offset;

	begin();
	rig_shuffle(order, PAGES, id + 1);
	for (i = 0; i < PAGES; i++) {
		offset = order[i] * PAGE + 8 * id;
		guest_reads(id, RAM + offset, offset);
	}
	return end();
}

static void tracked(int column, bool supervisor)
{
	rig_new(&rig, column, VCPUS, PAGES + WARM, supervisor);
	rig.apart = true;
}

TEST_EACH(noalloc, pages_by_userfaultfd, COLUMNS)
{
	tracked(_i, false);
	rig_track(&rig);
	rig_vcpus(&rig);
	run_trapped(all_pages);
	rig_restart_service(&rig);
	ck_assert_uint_eq(stats().fetched, PAGES + WARM);
	ck_assert_uint_ge(stats().kind[KVMFAULT_KIND_UFFD],
			  PAGES + WARM);
	rig_free(&rig);
}

/* Reads and writes that KVM takes for a device's, and what its emulator gives up
 * on. */
static void *all_kinds(void *arg)
{
	unsigned int id = (unsigned int)(uintptr_t)arg;
	uint64_t page, first = SHARE * id;

	begin();
	for (page = first; page < first + SHARE - 1; page += 2) {
		guest_reads(id, RAM + page * PAGE, page * PAGE);
		rig_do(&rig, id, MACHINE_WRITE, RAM + (page + 1) * PAGE, 8,
		       page + 1);
	}
	return end();
}

static void *fpu_states(void *arg)
{
	unsigned int id = (unsigned int)(uintptr_t)arg;
	uint64_t page, first = SHARE * id;

	begin();
	for (page = first; page < first + SHARE; page++)
		rig_do(&rig, id, MACHINE_FPU_SAVE, RAM + page * PAGE, 0, 0);
	return end();
}

/* i: each way in each column */
static void exits(int i, void *(*run)(void *), enum kvmfault_kind entrance)
{
	tracked(i % COLUMNS, i / COLUMNS == EMULATED);
	rig_track(&rig);
	rig_vcpus(&rig);
	rig_exits(&rig, i / COLUMNS);
	run_trapped(run);
	rig_restart_service(&rig);	/* and so all is counted */
	ck_assert_uint_eq(stats().fetched, PAGES + WARM);
	ck_assert_uint_ge(stats().kind[entrance], PAGES);
	ck_assert_uint_eq(stats().unresolved, 0);
	rig_free(&rig);
}

TEST_COUNTED(noalloc, pages_by_mmio, each_way)
{
	exits(_i, all_kinds, KVMFAULT_KIND_MMIO);
}

TEST_COUNTED(noalloc, pages_by_emulation_errors, where_emulated)
{
	exits(EMULATED * COLUMNS + _i, fpu_states,
	      KVMFAULT_KIND_EMULATION);
}

/* ---- annotated exits ---- */

static uint32_t slot_of(uint64_t gpa)
{
	return GMEM_SLOT + (uint32_t)((gpa - GMEM) / PAGE);
}

/* A slot whose guest_memfd is closed: the guest's access to it exits. */
static void add_closed_slot(uint64_t page)
{
	uint64_t gpa = GMEM + page * PAGE;
	int fd = machine_create_guest_memfd(rig.machine, PAGE,
					    MACHINE_GUEST_MEMFD_MMAP |
					    MACHINE_GUEST_MEMFD_INIT_SHARED);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(machine_set_guest_memfd_slot(rig.machine, slot_of(gpa),
						      gpa, PAGE,
						      rig.a + page * PAGE, fd,
						      0), 0);
	close(fd);
}

static atomic_uint shown;

/* The VMM's part: an ordinary slot in its place. The page is the library's to
 * fetch, on the vCPU's thread. */
static int show_the_memory(void *data, struct kvmfault_request *request)
{
	uint64_t gpa = request->fault->gpa;
	int err;

	(void)data;
	if (request->fault->kind != KVMFAULT_KIND_EXIT)
		return KVMFAULT_VERDICT_DECLINED;
	atomic_fetch_add(&shown, 1);
	err = machine_set_guest_memfd_slot(rig.machine, slot_of(gpa), gpa, 0,
					   NULL, 0, 0);
	if (!err)
		err = machine_set_slot(rig.machine, slot_of(gpa), 0, gpa, PAGE,
				       rig.a + (gpa - GMEM));
	return err ? err : KVMFAULT_VERDICT_DECLINED;
}

static void *own_slots(void *arg)
{
	unsigned int id = (unsigned int)(uintptr_t)arg;
	uint64_t offset = id * EXITS * PAGE, last = offset + EXITS * PAGE;

	begin();
	for (; offset < last; offset += PAGE)
		guest_reads(id, GMEM + offset, offset);
	return end();
}

TEST_COUNTED(noalloc, pages_by_annotated_exits, annotated)
{
	struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = GMEM,
		.length = VCPUS * EXITS * PAGE,
	};
	uint64_t page;

	tracked(_i, false);
	rig_resolver(&rig, show_the_memory);
	rig_track(&rig);
	rig_vcpus(&rig);
	region.memory = rig.memory;
	ck_assert_int_eq(kvmfault_region_add(rig.vm, &region), 0);
	for (page = 0; page < VCPUS * EXITS; page++)
		add_closed_slot(page);
	run_trapped(own_slots);
	rig_restart_service(&rig);
	ck_assert_uint_eq(atomic_load(&shown), VCPUS * EXITS);
	ck_assert_uint_eq(stats().kind[KVMFAULT_KIND_EXIT],
			  VCPUS * EXITS);
	ck_assert_uint_eq(stats().fetched, VCPUS * EXITS + WARM);
	ck_assert_uint_eq(stats().kind[KVMFAULT_KIND_UFFD], WARM);
	ck_assert_int_eq(kvmfault_region_remove(rig.vm, 0, GMEM), 0);
	rig_free(&rig);
}

int main(void)
{
	int ways;

	need("kvm");
	need("uffd");
	ways = rig_ways();
	each_way = COLUMNS * ways;
	where_emulated = ways > EMULATED ? COLUMNS : 0;
	annotated = rig_has_guest_memfd() ? COLUMNS : 0;
	return run_suite("kvm noalloc");
}
