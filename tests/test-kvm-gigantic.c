/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Huge pages that come by minor faults, in both columns: of 2 MiB, and of 1 GiB,
 * which no scratch memory could hold. The source writes into the file's own
 * page, through the mapping that the library keeps for itself; a vCPU's touch
 * brings the whole page, once.
 */

#include <errno.h>
#include <linux/memfd.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kvm-rig.h"
#include "need.h"

#define GIGANTIC (1ULL << 30)
#define HUGE_PAGES 2
#define VCPUS 2
#define PLACES 256		/* of a page, that the source writes */

#define MUST(call) ck_assert_int_eq(call, 0)

static const struct {
	uint64_t size;
	unsigned int flag;
} kinds[] = {
	{ HUGE, MFD_HUGE_2MB },
	{ GIGANTIC, MFD_HUGE_1GB },
};

static struct {
	uint64_t size;			/* of a page */
	uint64_t length;
	int memfd;
	char *ram;
	struct machine *machine;
	struct kvmfault_vm *vm;
	struct kvmfault_memory *memory;
	struct kvmfault_service *service;
} t;

static atomic_uint reads[HUGE_PAGES];

/* The first word of each place's, and the last one's last. */
static uint64_t place(uint64_t page, uint64_t n)
{
	uint64_t offset = n * (t.size / PLACES);

	return page * t.size + (n < PLACES ? offset : offset - 8);
}

static int read_places(void *data, uint64_t offset, void *buffer, size_t length)
{
	uint64_t n, page = offset / t.size;

	(void)data;
	if (length != t.size || offset % t.size)
		return -EINVAL;
	for (n = 0; n <= PLACES; n++)
		*(uint64_t *)((char *)buffer + (place(page, n) - offset)) =
			rig_word(place(page, n));
	atomic_fetch_add(&reads[page], 1);
	return 0;
}

static int add_memory(bool minor)
{
	const struct kvmfault_source source = {
		.size = sizeof(source),
		.name = "places",
		.read = read_places,
	};
	const struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.host = t.ram,
		.length = t.length,
		.page_size = t.size,
		.fd = t.memfd,
		.source = &source,
		.minor = minor,
	};

	return kvmfault_memory_adopt(t.vm, &options, &t.memory);
}

static void memory_up(unsigned int kind)
{
	t.size = kinds[kind].size;
	t.length = HUGE_PAGES * t.size;
	t.memfd = memfd_create("test-ram", MFD_CLOEXEC | MFD_HUGETLB |
			       kinds[kind].flag);
	ck_assert_int_ge(t.memfd, 0);
	MUST(ftruncate(t.memfd, (off_t)t.length));
	t.ram = mmap(NULL, t.length, PROT_READ | PROT_WRITE, MAP_SHARED,
		     t.memfd, 0);
	ck_assert_ptr_ne(t.ram, MAP_FAILED);
	MUST(kvmfault_vm_new(NULL, &t.vm));
}

static void memory_down(void)
{
	MUST(kvmfault_memory_free(t.memory));
	MUST(kvmfault_vm_free(t.vm));
	munmap(t.ram, t.length);
	close(t.memfd);
}

static void machine_up(int column)
{
	const struct machine_options machine = {
		.vcpus = VCPUS,
		.irqchip = column,
		.timer = column,
		.span = RAM + t.length,
	};
	const struct kvmfault_region region = {
		.size = sizeof(region),
		.gpa = RAM,
		.length = t.length,
		.memory = t.memory,
	};
	const struct kvmfault_service_options service = {
		.size = sizeof(service),
		.threads = 1,
	};

	MUST(machine_new(&machine, &t.machine));
	MUST(machine_set_slot(t.machine, SLOT, 0, RAM, t.length, t.ram));
	MUST(kvmfault_region_add(t.vm, &region));
	MUST(kvmfault_service_new(t.vm, &service, &t.service));
}

static void machine_down(void)
{
	MUST(kvmfault_service_free(t.service));
	MUST(kvmfault_region_remove(t.vm, 0, RAM));
	machine_free(t.machine);
}

static uint64_t guest(unsigned int id, enum machine_routine routine,
		      uint64_t offset, uint64_t value)
{
	struct machine_vcpu *vcpu = &t.machine->vcpu[id];
	struct rig rig = { .machine = t.machine };
	int err;

	MUST(machine_call(vcpu, routine, RAM + offset, 8, value, 0));
	while (!machine_done(vcpu, rig_run(&rig, id, &err)))
		ck_assert_int_eq(err, EINTR);
	return machine_result(vcpu);
}

/* main() finds out how many times the cases of TEST_COUNTED() are run. */
static int each;
static int each_in_columns;

TEST_GROUP(gigantic, NULL, NULL);

TEST_COUNTED(gigantic, the_whole_page_comes_once, each_in_columns)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };
	uint64_t n;

	memory_up((unsigned int)_i / COLUMNS);
	MUST(add_memory(true));
	machine_up(_i % COLUMNS);
	/* From the last place on, which nobody comes to by a walk. */
	for (n = PLACES + 1; n--;)
		ck_assert_uint_eq(guest(n % VCPUS, MACHINE_READ, place(0, n),
					0), rig_word(place(0, n)));
	guest(0, MACHINE_WRITE, place(0, 7) + 8, 4711);
	ck_assert_uint_eq(guest(1, MACHINE_READ, place(0, 7) + 8, 0), 4711);
	ck_assert_uint_eq(*(uint64_t *)(t.ram + place(0, 7) + 8), 4711);
	machine_down();
	ck_assert_uint_eq(reads[0], 1);
	ck_assert_uint_eq(reads[1], 0);
	MUST(kvmfault_vm_stats(t.vm, &stats));
	ck_assert_uint_eq(stats.fetched, 1);
	ck_assert_uint_eq(stats.existed, 0);
	memory_down();
}

/* There is no room to bring it in, and that is said at once. */
TEST_COUNTED(gigantic, refused_without_minor_faults, each)
{
	memory_up(_i);
	ck_assert_int_eq(add_memory(false), t.size == GIGANTIC ? -EINVAL : 0);
	memory_down();
}

int main(void)
{
	need("kvm");
	need("uffd");
	need("hugetlb");
	each = 1 + have("gigantic", lacks("gigantic"));
	each_in_columns = each * COLUMNS;
	return run_suite("kvm gigantic");
}
