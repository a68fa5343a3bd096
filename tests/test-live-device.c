/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A device process lives on while the owner of its memory is killed, or frees
 * the memory, and the next owner takes it up with a copy of the device's
 * userfaultfd. Wherever the device was in between, it reads and writes what it
 * should, and does not sleep for ever.
 */

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "lib/setup/setup.h"
#include "need.h"
#include "pass-fd.h"
#include "unit.h"

#define PAGES 16ULL
#define LENGTH (PAGES * PAGE)

enum { IDLE, BUSY, DONE };

/* It outlives every process but the test's own. */
static struct {
	atomic_int go, device;	/* the page that the device is to use; IDLE.. */
	atomic_int reads;	/* of the source */
	atomic_bool ready, stuck, write;
	char seen;
	char *at;		/* the device's mapping */
} *shared;

static int fd, states_fd, uffd_fd;
static bool minor, write_protect;
static pid_t device, owner;
static char *host;
static struct kvmfault_vm *vm;
static struct kvmfault_service *service;
static struct kvmfault_memory *memory;
static struct kvmfault_uffd *remote;
static struct kvmfault_mapping *mapping;

static void nap(void)
{
	const struct timespec time = { .tv_nsec = 1000000 };

	nanosleep(&time, NULL);
}

static int read_source(void *data, uint64_t offset, void *buffer, size_t length)
{
	(void)data;
	atomic_fetch_add(&shared->reads, 1);
	while (atomic_load(&shared->stuck))
		nap();
	memset(buffer, (int)(offset / PAGE) + 1, length);
	return 0;
}

/* ---- the device ---- */

__attribute__((noreturn))
static void be_device(int to)
{
	struct uffdio_api api = { .api = UFFD_API };
	int uffd = kvmfault__uffd_open(KVMFAULT__UFFD_DEVICE |
				       KVMFAULT__UFFD_SYSCALL);
	int page;

	signal(SIGBUS, SIG_DFL);
	shared->at = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			  0);
	if (shared->at == MAP_FAILED || ioctl(uffd, UFFDIO_API, &api))
		_exit(98);
	if (!pass_fd(to, uffd, 0))
		_exit(99);
	for (;;) {
		volatile char *byte;

		while ((page = atomic_load(&shared->go)) < 0)
			nap();
		byte = shared->at + (uint64_t)page * PAGE;
		atomic_store(&shared->go, -1);
		atomic_store(&shared->device, BUSY);
		if (atomic_load(&shared->write))
			*byte = 'd';
		shared->seen = *byte;
		atomic_store(&shared->device, DONE);
	}
}

static void use(int page, bool write)
{
	atomic_store(&shared->device, IDLE);
	atomic_store(&shared->write, write);
	atomic_store(&shared->go, page);
}

/* Waits long, but not for ever, so that a device that sleeps on is told. */
static bool used(void)
{
	unsigned int i;

	for (i = 0; i < 10000 && atomic_load(&shared->device) != DONE; i++) {
		if (waitpid(device, NULL, WNOHANG) == device) {
			device = 0;
			return false;
		}
		nap();
	}
	return atomic_load(&shared->device) == DONE;
}

/* ---- owners ---- */

static void own(void)
{
	const struct kvmfault_source source = {
		.size = sizeof(source), .read = read_source, .length = LENGTH,
	};
	struct kvmfault_memory_options options = {
		.size = sizeof(options), .length = LENGTH, .source = &source,
		.fd = fd, .states_fd = states_fd, .minor = minor,
		.write_protect = write_protect,
	};
	const struct kvmfault_service_options threads = {
		.size = sizeof(threads), .threads = 1,
	};
	const struct kvmfault_uffd_options uffd = {
		.size = sizeof(uffd), .fd = uffd_fd, .remote = true,
	};
	struct kvmfault_mapping_options second = { .size = sizeof(second) };
	struct kvmfault_region region = {
		.size = sizeof(region), .length = LENGTH,
	};

	host = options.host = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE,
				   MAP_SHARED, fd, 0);
	ck_assert_ptr_ne(host, MAP_FAILED);
	ck_assert_int_eq(kvmfault_vm_new(NULL, &vm), 0);
	ck_assert_int_eq(kvmfault_service_new(vm, &threads, &service), 0);
	ck_assert_int_eq(kvmfault_memory_adopt(vm, &options, &memory), 0);
	region.memory = memory;
	ck_assert_int_eq(kvmfault_region_add(vm, &region), 0);
	ck_assert_int_eq(kvmfault_uffd_new(vm, &uffd, &remote), 0);
	second.host = (uintptr_t)shared->at;
	second.uffd = remote;
	ck_assert_int_eq(kvmfault_mapping_add(memory, &second, &mapping), 0);
}

static void disown(void)
{
	ck_assert_int_eq(kvmfault_region_remove(vm, 0, 0), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
	ck_assert_int_eq(kvmfault_uffd_free(remote), 0);
	ck_assert_int_eq(kvmfault_service_free(service), 0);
	ck_assert_int_eq(kvmfault_vm_free(vm), 0);
	ck_assert_int_eq(munmap(host, LENGTH), 0);
}

/* An owner that will be killed. */
static void start_owner(void (*then)(void))
{
	owner = fork();
	ck_assert_int_ge(owner, 0);
	if (owner) {
		while (!atomic_load(&shared->ready))
			nap();
		return;
	}
	own();
	if (then)
		then();
	atomic_store(&shared->ready, true);
	for (;;)
		pause();
}

static void kill_owner(void)
{
	ck_assert_int_eq(kill(owner, SIGKILL), 0);
	ck_assert_int_eq(waitpid(owner, NULL, 0), owner);
}

static void up_with(bool of_minor)
{
	int channel[2];
	uint64_t number;

	minor = of_minor;
	write_protect = false;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(shared, MAP_FAILED);
	atomic_store(&shared->go, -1);
	fd = memfd_create("guest", MFD_CLOEXEC);
	states_fd = memfd_create("states", MFD_CLOEXEC);
	ck_assert_int_eq(ftruncate(fd, LENGTH), 0);
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, channel), 0);
	device = fork();
	ck_assert_int_ge(device, 0);
	if (!device)
		be_device(channel[1]);
	uffd_fd = take_fd(channel[0], &number);
	ck_assert_int_ge(uffd_fd, 0);
	close(channel[0]);
	close(channel[1]);
}

static void up(void)
{
	up_with(false);
}

static void up_minor(void)
{
	up_with(true);
}

static void down(void)
{
	if (device) {
		kill(device, SIGKILL);
		waitpid(device, NULL, 0);
	}
	close(uffd_fd);
	close(fd);
	close(states_fd);
	munmap(shared, sizeof(*shared));
}

/* ---- what must hold ---- */

static void check_byte(int page)
{
	ck_assert(used());
	ck_assert_int_eq(shared->seen, page + 1);
}

/* The owner has read the device's message, and is killed before it answers. */
static void message_was_read(void)
{
	atomic_store(&shared->stuck, true);
	start_owner(NULL);
	use(3, false);
	while (!atomic_load(&shared->reads))
		nap();
	kill_owner();
	atomic_store(&shared->stuck, false);
	own();
	check_byte(3);
	disown();
}

/* The device has missed a page while nobody had the memory. */
static void nobody_owns_it(void)
{
	start_owner(NULL);
	kill_owner();
	use(4, false);
	while (atomic_load(&shared->device) != BUSY)
		nap();
	own();
	check_byte(4);
	disown();
}

/* The owner has freed the memory, and was not killed. */
static void freed(void)
{
	own();
	use(5, false);
	check_byte(5);
	disown();
	use(6, false);
	while (atomic_load(&shared->device) == IDLE)
		nap();
	own();
	check_byte(6);
	disown();
}

static void protect_all(void)
{
	ck_assert_int_eq(kvmfault_ensure(vm, 0, 0, LENGTH, true), 0);
	memcpy(&shared->seen, host, 1);
	use(7, false);
	ck_assert(used());
	ck_assert_int_eq(kvmfault_protect(vm, 0, 0, LENGTH), 0);
}

/* The owner had the pages protected, and the next one does not protect. */
static void was_protected(void)
{
	write_protect = true;
	start_owner(protect_all);
	kill_owner();
	write_protect = false;
	own();
	use(7, true);
	ck_assert(used());
	ck_assert_int_eq(host[7 * PAGE], 'd');
	disown();
}

static void bring_all(void)
{
	ck_assert_int_eq(kvmfault_ensure(vm, 0, 0, LENGTH, true), 0);
	ck_assert_int_eq(kvmfault_discard(vm, 0, 8 * PAGE, PAGE), 0);
}

/* The owner was killed while it settled the memory: the states say so, and the
 * device's mapping is still registered. */
static void killed_in_settle(void)
{
	const uint32_t settled = 1;

	start_owner(bring_all);
	kill_owner();
	ck_assert_int_eq(pwrite(states_fd, &settled, sizeof(settled),
				offsetof(struct kvmfault__states_file,
					 settled)), sizeof(settled));
	use(8, false);
	while (atomic_load(&shared->device) != BUSY)
		nap();
	own();
	ck_assert(used());
	ck_assert_int_eq(shared->seen, 0);
	use(9, false);
	check_byte(9);
	disown();
}

TEST_GROUP(device, up, down);

TEST(device, small_message_was_read)
{
	message_was_read();
}

TEST(device, small_nobody_owns_it)
{
	nobody_owns_it();
}

TEST(device, small_freed)
{
	freed();
}

TEST(device, small_was_protected)
{
	was_protected();
}

TEST(device, small_killed_in_settle)
{
	killed_in_settle();
}

TEST_GROUP(device_minor, up_minor, down);

TEST(device_minor, minor_message_was_read)
{
	message_was_read();
}

TEST(device_minor, minor_nobody_owns_it)
{
	nobody_owns_it();
}

TEST(device_minor, minor_freed)
{
	freed();
}

TEST(device_minor, minor_was_protected)
{
	was_protected();
}

TEST(device_minor, minor_killed_in_settle)
{
	killed_in_settle();
}

int main(void)
{
	need("uffd");
	return run_suite("live-device");
}
