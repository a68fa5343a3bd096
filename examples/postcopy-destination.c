/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* Postcopy of a live VM: the VMM that it goes to. postcopy-source.c says whose
 * it is when. It runs here as soon as it has come, though of RAM only the page
 * tables are there. Touched pages come first, a fill brings the rest, and then
 * RAM is settled, and the source may end. If a connection breaks, its thread
 * makes a new one and asks again, for SECONDS. COPY gets RAM in the end.
 * usage: postcopy-destination ADDRESS PORT SECONDS COPY >>CONSOLE */

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <kvmfault.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { HELLO = 1, TAKE, READ, END, REFUSED };	/* as in postcopy-source.c */
struct message { uint32_t what, length; uint64_t value; };
static struct { struct kvm_regs regs; struct kvm_sregs sregs; } state;

static struct sockaddr_in source_at = { .sin_family = AF_INET };
static uint64_t owner, patience, entered_at;	/* times are in ns */
static __thread int tcp = -1;		/* each thread has its own */
static struct kvmfault_vm *vm;
static struct kvmfault_region ram = { .size = sizeof(ram) };
static struct kvmfault_memory_maps maps = { .size = sizeof(maps) };
static int vcpu_fd;

static int check(int ret, const char *what)
{
	if (ret < 0)
		errx(1, "%s: %s", what, strerror(ret == -1 ? errno : -ret));
	return ret;
}

static uint64_t read_clock(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Ask once. The answer repeats the request, and length bytes follow it. */
static bool try_to_ask(uint32_t what, uint32_t length, uint64_t value, void *to)
{
	struct message m = { what, length, value };

	if (send(tcp, &m, sizeof(m), MSG_NOSIGNAL) != sizeof(m) ||
	    recv(tcp, &m, sizeof(m), MSG_WAITALL) != sizeof(m))
		return false;
	if (m.what != what || m.length != length)
		errx(4, "the source refuses: this VM is another one's");
	return !length || recv(tcp, to, length, MSG_WAITALL) == (int)length;
}

/* Ask until the answer has come: what is asked again changes nothing. */
static int ask(uint32_t what, uint32_t length, uint64_t value, void *to)
{
	struct timeval t = { .tv_sec = 1 };

	for (uint64_t since = read_clock(); read_clock() - since <= patience;) {
		bool ready = tcp >= 0;

		if (!ready) {
			tcp = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
			setsockopt(tcp, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
			setsockopt(tcp, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t));
			ready = !connect(tcp, (struct sockaddr *)&source_at,
					 sizeof(source_at)) &&
				(what < READ ||
				 try_to_ask(TAKE, 0, owner, NULL));
		}
		if (ready && try_to_ask(what, length, value, to))
			return 0;
		close(tcp);
		tcp = -1;
		usleep(10000);
	}
	return -ETIMEDOUT;
}

static int read_ram(void *unused, uint64_t offset, void *to, size_t length)
{
	(void)unused;
	return ask(READ, (uint32_t)length, offset, to);
}

static void *run_vcpu(void *unused)
{
	struct kvmfault_vcpu_options o = { .size = sizeof(o), .fd = vcpu_fd,
		.run = (struct kvm_run *)mmap(NULL, 4096,
			PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_fd, 0) };
	struct kvmfault_vcpu *vcpu;
	enum kvmfault_action what;

	check(kvmfault_vcpu_new(vm, &o, &vcpu), "vCPU's handle");
	entered_at = read_clock();
	for (;;) {
		int ret = ioctl(vcpu_fd, KVM_RUN, 0), why = errno;
		do	/* while UNFINISHED, not into KVM_RUN */
			what = kvmfault_vcpu_handle(vcpu, ret, why);
		while (what == KVMFAULT_ACTION_UNFINISHED);
		if (what == KVMFAULT_ACTION_RETRY)
			continue;
		if (what != KVMFAULT_ACTION_NOT_A_FAULT ||
		    o.run->exit_reason != KVM_EXIT_MMIO)
			errx(1, "the guest has failed");
		if (o.run->mmio.phys_addr != 0x3f000000)
			return unused;	/* the guest has ended */
		dprintf(1, "%u\n", *(uint32_t *)o.run->mmio.data);
	}
}

/* The VM, all but its state: what can be ready before it comes, is. */
static void make_vm(void)
{
	struct kvmfault_source source = { .size = sizeof(source),
		.name = "source", .read = read_ram, .length = ram.length };
	struct kvmfault_memory_options o = { .size = sizeof(o),
		.length = ram.length, .source = &source };
	struct kvmfault_service_options w = { .size = sizeof(w), .threads = 1 };
	struct kvm_userspace_memory_region slot = { .memory_size = ram.length };
	uint32_t cpuid[12] = { 1, 0, 0x80000001, 0, 0, 0, 0, 0, 1 << 29 };
	struct kvmfault_service *service;
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm_fd, ret;

	if (kvm < 0)
		err(77, "/dev/kvm");	/* this machine lacks it */
	vm_fd = check(ioctl(kvm, KVM_CREATE_VM, 0), "VM");
	check(kvmfault_vm_new(NULL, &vm), "context");
	ret = kvmfault_memory_alloc(vm, &o, &maps, &ram.memory);
	if (ret == -EPERM || ret == -ENOSYS)
		errx(77, "no userfaultfd: %s", strerror(-ret));
	check(ret, "RAM");
	check(kvmfault_service_new(vm, &w, &service), "service");
	check(kvmfault_region_add(vm, &ram), "region");
	slot.userspace_addr = (uintptr_t)maps.memslots;
	check(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot), "slot");
	vcpu_fd = check(ioctl(vm_fd, KVM_CREATE_VCPU, 0), "vCPU");
	check(ioctl(vcpu_fd, KVM_SET_CPUID2, cpuid), "long mode");
}

int main(int argc, char **argv)
{
	struct kvmfault_fill_options rest = { .size = sizeof(rest),
		.memories = &ram.memory, .memory_count = 1, .threads = 2,
		.window_length = 1 << 18 };
	struct kvmfault_fill_progress now = { .size = sizeof(now) };
	uint64_t began_at = read_clock(), asked_at, whole_at;
	struct kvmfault_fill *fill;
	pthread_t vcpu;
	int copy;

	if (argc != 5)
		errx(1, "usage: ADDRESS PORT SECONDS COPY >>CONSOLE");
	source_at.sin_addr.s_addr = inet_addr(argv[1]);
	source_at.sin_port = htons((uint16_t)atoi(argv[2]));
	patience = strtoull(argv[3], NULL, 0) * 1000000000;
	copy = check(creat(argv[4], 0666), argv[4]);
	check(getentropy(&owner, sizeof(owner)), "random number");
	check(ask(HELLO, 8, 0, &ram.length), argv[1]);
	make_vm();
	asked_at = read_clock();
	check(ask(TAKE, sizeof(state), owner, &state), "the VM stays there, or "
	      "is lost, as the source says");
	/* Where page tables are shadowed, KVM does not wait for them. */
	check(kvmfault_ensure(vm, 0, 0, 0x4000, 0), "page tables");
	check(ioctl(vcpu_fd, KVM_SET_SREGS, &state.sregs), "registers");
	check(ioctl(vcpu_fd, KVM_SET_REGS, &state.regs), "registers");
	check(-pthread_create(&vcpu, NULL, run_vcpu, NULL), "vCPU");
	check(kvmfault_fill_new(vm, &rest, &fill), "fill");
	while (!now.over && usleep(1000) == 0) {
		check(kvmfault_fill_progress(fill, &now), "fill");
		check(now.error, "the VM is lost, since some of its RAM is");
	}
	whole_at = read_clock();
	check(kvmfault_fill_free(fill), "fill");
	check(kvmfault_memory_settle(ram.memory, NULL), "settle");
	if (ask(END, 0, 0, NULL) < 0)
		warnx("the source does not say whether it has ended");
	close(tcp);
	check(-pthread_join(vcpu, NULL), "vCPU");
	fprintf(stderr, "downtime: %lu us at most\nfirst instruction: %lu us\n"
		"resident: %lu us\n", (entered_at - asked_at) / 1000,
		(entered_at - began_at) / 1000, (whole_at - began_at) / 1000);
	return write(copy, maps.own, ram.length) != (ssize_t)ram.length;
}
