/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* Postcopy of a live VM: the VMM that it leaves, which needs no library for it.
 * postcopy-destination.c asks for it, by the protocol in doc/examples.md. The
 * guest adds 1 to each word of RAM, ROUNDS times, with a number for each page.
 * usage: postcopy-source ADDRESS PORT SECONDS IMAGE ROUNDS >>CONSOLE
 *
 * One VM runs, or none. It is this process's until a TAKE comes, and never runs
 * here after that, though the answer be lost. The destination runs it when it
 * has the answer. In between it runs nowhere: TAKE is repeated, until an answer
 * comes or both give up: this one after twice SECONDS without a request. */

#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* A request, and its answer, which so many bytes follow. */
enum { HELLO = 1, TAKE, READ, END, REFUSED };
struct message { uint32_t what, length; uint64_t value; };
/* A real one has more than these: FPU, MSRs, interrupts, devices. */
static struct { struct kvm_regs regs; struct kvm_sregs sregs; }
	state = { .regs = { .rip = 0x3000, .rflags = 2 } };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned int silence;	/* in 100 ms */
static struct kvm_run *run;
static pthread_t vcpu;
static int vcpu_fd;
static uint64_t ram_length, owner;	/* whose the VM is for ever, or 0 */
static char *ram;

/* RAM's beginning: page tables, and at 0x3000 the code. */
__asm__(".data; .balign 4096; .globl guest; guest: .quad 0x1027\n"
	".balign 4096; .quad 0x2027; .balign 4096; page = 0xe7\n"
	".rept 512; .quad page; page = page + 0x200000; .endr\n"
	"1: mov $0x4000, %esi; mov %rdi, %rbx; 2: mov $512, %ecx\n"
	"3: incq (%rsi); add $8, %rsi; loop 3b; inc %eax\n"
	"mov %eax, 0x3f000000; dec %rbx; jnz 2b; dec %edx; jnz 1b\n"
	"mov %eax, 0x3f000008; .balign 4096; .text");
extern char guest[0x4000];

static int check(int ret, const char *what)
{
	if (ret < 0)
		errx(1, "%s: %s", what, strerror(ret == -1 ? errno : -ret));
	return ret;
}

static void kick(int signal __attribute__((unused)))
{
}

static void *run_vcpu(void *unused)
{
	/* An exit that is half done is finished before it is EINTR. */
	while (ioctl(vcpu_fd, KVM_RUN, 0) == 0) {
		if (run->exit_reason != KVM_EXIT_MMIO)
			errx(1, "vCPU: KVM exit %u", run->exit_reason);
		if (run->mmio.phys_addr != 0x3f000000)
			errx(0, "the guest has ended here");
		dprintf(1, "%u\n", *(uint32_t *)run->mmio.data);
	}
	check(errno == EINTR ? 0 : -1, "vCPU");
	return unused;
}

static void stop_vm(void)
{
	__atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	pthread_kill(vcpu, SIGUSR1);
	pthread_join(vcpu, NULL);
	check(ioctl(vcpu_fd, KVM_GET_REGS, &state.regs), "registers");
	check(ioctl(vcpu_fd, KVM_GET_SREGS, &state.sregs), "registers");
}

/* Make the answer out of the request, and say which bytes follow it. */
static const void *answer(struct message *m, int *taken)
{
	const void *bytes = NULL;

	pthread_mutex_lock(&lock);
	silence = 0;
	if (m->what == HELLO && m->length == sizeof(ram_length)) {
		bytes = &ram_length;
	} else if (m->what == TAKE && m->length <= sizeof(state) && m->value &&
		   (!owner || owner == m->value)) {
		if (!owner)
			stop_vm();
		owner = m->value;
		*taken = 1;
		bytes = &state;
	} else if (m->what == READ && *taken && m->value < ram_length &&
		   m->length <= ram_length - m->value) {
		bytes = ram + m->value;
	} else if (m->what != END || !*taken) {
		m->what = REFUSED;
		m->length = 0;
	}
	pthread_mutex_unlock(&lock);
	return bytes;
}

static void *serve(void *which)		/* one connection */
{
	int fd = (int)(intptr_t)which, on = 1, last = 0, taken = 0;
	struct message m = { 0, 0, 0 };

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	while (recv(fd, &m, sizeof(m), MSG_WAITALL) == sizeof(m)) {
		const void *bytes = answer(&m, &taken);

		if (send(fd, &m, sizeof(m), MSG_NOSIGNAL) != sizeof(m) ||
		    send(fd, bytes, m.length, MSG_NOSIGNAL) != (int)m.length)
			break;
		last = m.what;
	}
	if (last == END)
		errx(0, "the VM has gone, and nothing of it is missing");
	close(fd);
	return NULL;
}

static void make_vm(int kvm)
{
	struct kvm_userspace_memory_region slot = {
		.memory_size = ram_length, .userspace_addr = (uintptr_t)ram };
	uint32_t cpuid[12] = { 1, 0, 0x80000001, 0, 0, 0, 0, 0, 1 << 29 };
	int vm_fd = check(ioctl(kvm, KVM_CREATE_VM, 0), "VM");

	memcpy(ram, guest, sizeof(guest));
	check(ioctl(vm_fd, KVM_SET_USER_MEMORY_REGION, &slot), "slot");
	vcpu_fd = check(ioctl(vm_fd, KVM_CREATE_VCPU, 0), "vCPU");
	run = (struct kvm_run *)mmap(NULL, 4096, PROT_READ | PROT_WRITE,
				     MAP_SHARED, vcpu_fd, 0);
	check(ioctl(vcpu_fd, KVM_SET_CPUID2, cpuid), "long mode");
	check(ioctl(vcpu_fd, KVM_GET_SREGS, &state.sregs), "registers");
	state.sregs.cr0 = 0x80000001;		/* 64-bit mode */
	state.sregs.cr4 = 0x20;
	state.sregs.efer = 0x500;
	state.sregs.cs.l = 1;
	state.sregs.cs.dpl = state.sregs.ss.dpl = 3;	/* CPL 3 */
	check(ioctl(vcpu_fd, KVM_SET_SREGS, &state.sregs), "registers");
	state.regs.rdi = ram_length / 4096 - 4;
	check(ioctl(vcpu_fd, KVM_SET_REGS, &state.regs), "registers");
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = { .sin_family = AF_INET };
	struct pollfd listener = { .events = POLLIN };
	socklen_t size = sizeof(at);
	pthread_t thread;
	int kvm, file;

	if (argc != 6)
		errx(1, "usage: ADDRESS PORT SECONDS IMAGE ROUNDS >>CONSOLE");
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		err(77, "/dev/kvm");	/* this machine lacks it */
	file = check(open(argv[4], O_RDONLY), argv[4]);
	ram_length = (uint64_t)lseek(file, 0, SEEK_END) / 4096 * 4096;
	ram = (char *)mmap(NULL, ram_length, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE, file, 0);
	check(ram == MAP_FAILED ? -1 : 0, argv[4]);
	state.regs.rdx = strtoull(argv[5], NULL, 0);
	make_vm(kvm);
	signal(SIGUSR1, kick);
	check(-pthread_create(&vcpu, NULL, run_vcpu, NULL), "vCPU");
	at.sin_addr.s_addr = inet_addr(argv[1]);
	at.sin_port = htons((uint16_t)atoi(argv[2]));
	listener.fd = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
	check(bind(listener.fd, (struct sockaddr *)&at, size), argv[1]);
	check(listen(listener.fd, 64), argv[1]);
	check(getsockname(listener.fd, (struct sockaddr *)&at, &size), argv[1]);
	fprintf(stderr, "port %u\n", ntohs(at.sin_port));
	for (;; poll(&listener, 1, 100)) {
		if (listener.revents && !pthread_create(&thread, NULL, serve,
				(void *)(intptr_t)accept(listener.fd, 0, 0)))
			pthread_detach(thread);
		pthread_mutex_lock(&lock);
		silence += !listener.revents;
		if (owner && silence > 20 * strtoul(argv[3], NULL, 0))
			errx(3, "the VM has gone, and its new host is silent");
		pthread_mutex_unlock(&lock);
	}
}
