/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A device in a process of its own, whose missing pages the VMM brings: as with
 * vhost-user's postcopy, the device opens a userfaultfd and sends it over a
 * socket, with the address at which it has mapped the guest's RAM. That is all
 * that it does for it, and it needs no rights for that. Both are in this file:
 *
 *	vhost-user SOCKET		the device: adds 1 to each word of RAM
 *	vhost-user SOCKET IMAGE >COPY	the VMM: COPY gets RAM when that is done
 */

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <kvmfault.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

/* The first three are vhost-user's. */
enum { SET_MEM_TABLE = 5, POSTCOPY_ADVISE = 28, POSTCOPY_END = 30, KICK = 99 };

struct message {
	uint64_t request, address, length;
};

static int check(int ret, const char *what)
{
	if (ret < 0)
		errx(1, "%s: %s", what, strerror(ret == -1 ? errno : -ret));
	return ret;
}

/* Send a message, with a descriptor unless fd is 0. */
static void tell(int channel, struct message message, int fd)
{
	char space[CMSG_SPACE(sizeof(fd))] __attribute__((aligned(8))) = "";
	struct iovec bytes = { &message, sizeof(message) };
	struct msghdr header = { .msg_iov = &bytes, .msg_iovlen = 1,
		.msg_control = space, .msg_controllen = sizeof(space) };
	struct cmsghdr *control = CMSG_FIRSTHDR(&header);

	control->cmsg_level = SOL_SOCKET;
	control->cmsg_type = SCM_RIGHTS;
	control->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(control), &fd, sizeof(fd));
	if (!fd)
		header.msg_controllen = 0;
	/* If the other side is gone, hear() tells. */
	(void)!sendmsg(channel, &header, MSG_NOSIGNAL);
}

/* Receive one. Returns the descriptor that came with it, or 0; -1: the other
 * side is gone. */
static int hear(int channel, struct message *message)
{
	char space[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
	struct iovec bytes = { message, sizeof(*message) };
	struct msghdr header = { .msg_iov = &bytes, .msg_iovlen = 1,
		.msg_control = space, .msg_controllen = sizeof(space) };
	int fd = 0;

	if (recvmsg(channel, &header, MSG_CMSG_CLOEXEC) != sizeof(*message))
		return -1;
	if (CMSG_FIRSTHDR(&header))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof(fd));
	return fd;
}

/* If the VMM dies, the device may sleep on a page, and its end is the only way
 * out. It never gets zeros: the userfaultfd is open here as well. */
static void *watch(void *channel)
{
	struct pollfd vmm = { .fd = *(int *)channel, .events = POLLHUP };

	while (poll(&vmm, 1, -1) != 1)
		;
	errx(1, "the VMM is gone");
}

static int be_device(int channel)
{
	struct uffdio_api api = { .api = UFFD_API };
	/* With USER_MODE_ONLY any user may have one. System calls on missing
	 * memory then fail: a device that needs those has to be privileged. */
	int fd, uffd = check(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK |
				     UFFD_USER_MODE_ONLY), "userfaultfd");
	uint64_t *word = NULL, i;
	struct message message;
	pthread_t watcher;

	check(ioctl(uffd, UFFDIO_API, &api), "userfaultfd");
	check(-pthread_create(&watcher, NULL, watch, &channel), "thread");
	while ((fd = hear(channel, &message)) >= 0) {
		if (message.request == POSTCOPY_END)
			return 0;
		if (message.request == SET_MEM_TABLE) {
			word = (uint64_t *)mmap(NULL, message.length,
				PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
			message.address = (uintptr_t)word;
		}
		if (message.request == KICK)
			for (i = 0; i < message.length / 8; i++)
				word[i]++;
		tell(channel, message,
		     message.request == POSTCOPY_ADVISE ? uffd : 0);
	}
	return 1;
}

/* Ask the device: what hear() returns. */
static int ask(int channel, uint64_t request, uint64_t length, int fd,
	       struct message *reply)
{
	struct message message = { request, 0, length };

	tell(channel, message, fd);
	return hear(channel, reply);
}

static int be_vmm(int channel, const char *path)
{
	struct kvmfault_source image = { .size = sizeof(image) };
	struct kvmfault_memory_options o = {
		.size = sizeof(o), .source = &image };
	struct kvmfault_memory_maps ram = { .size = sizeof(ram) };
	struct kvmfault_service_options w = { .size = sizeof(w), .threads = 1 };
	struct kvmfault_uffd_options theirs = {
		.size = sizeof(theirs), .remote = true };
	struct kvmfault_mapping_options where = { .size = sizeof(where) };
	struct kvmfault_mapping *mapping;
	struct kvmfault_service *service;
	struct kvmfault_memory *memory;
	struct kvmfault_vm *vm;
	struct message reply;
	int ret, gone;

	check(kvmfault_source_file(open(path, O_RDONLY), &image), path);
	o.length = image.length / 4096 * 4096;
	check(kvmfault_vm_new(NULL, &vm), "context");
	ret = kvmfault_memory_alloc(vm, &o, &ram, &memory);
	if (ret == -EPERM || ret == -ENOSYS)
		errx(77, "no userfaultfd: %s", strerror(-ret));
	check(ret, "RAM");
	check(kvmfault_service_new(vm, &w, &service), "service");

	theirs.fd = ask(channel, POSTCOPY_ADVISE, 0, 0, &reply);
	if (theirs.fd <= 0 ||
	    ask(channel, SET_MEM_TABLE, o.length, ram.fd, &reply) < 0)
		errx(1, "the device does not take part");
	check(kvmfault_uffd_new(vm, &theirs, &where.uffd), "its userfaultfd");
	where.host = reply.address;
	check(kvmfault_mapping_add(memory, &where, &mapping), "its mapping");
	/* Now its pages come when it touches them, and not before. */
	gone = ask(channel, KICK, o.length, 0, &reply) < 0;
	if (gone)
		warnx("the device is gone");

	/* The same whether it lives or has died. */
	check(kvmfault_mapping_remove(mapping), "its mapping");
	check(kvmfault_uffd_free(where.uffd), "its userfaultfd");
	ask(channel, POSTCOPY_END, 0, 0, &reply);
	/* What it has not touched comes now. */
	if (fwrite(ram.own, o.length, 1, stdout) != 1 || fflush(stdout))
		err(1, "COPY");
	check(kvmfault_service_free(service), "service");
	check(kvmfault_memory_free(memory), "RAM");
	check(kvmfault_vm_free(vm), "context");
	return gone;
}

int main(int argc, char **argv)
{
	struct sockaddr_un place = { .sun_family = AF_UNIX };
	struct sockaddr *at = (struct sockaddr *)&place;
	int channel = check(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0),
			    "socket");

	if (argc < 2 || argc > 3 || strlen(argv[1]) >= sizeof(place.sun_path))
		errx(1, "usage: vhost-user SOCKET [IMAGE >COPY]");
	strcpy(place.sun_path, argv[1]);
	if (argc == 3) {
		check(connect(channel, at, sizeof(place)), argv[1]);
		return be_vmm(channel, argv[2]);
	}
	check(bind(channel, at, sizeof(place)), argv[1]);
	check(listen(channel, 1), argv[1]);
	return be_device(check(accept(channel, NULL, NULL), argv[1]));
}
