/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * How a userfaultfd is opened or adopted, and taken down. A descriptor that holds
 * registered ranges stays open: to close it would make zero pages of all that is absent.
 */

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include "../os/abi.h"
#include "setup.h"

#define NOWHERE (1ULL << 30)

static int open_own(struct kvmfault_vm *vm)
{
	/* Without it what mremap() moves is registered no more, and zeros. */
	struct uffdio_api api = {
		.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMAP,
	};
	int err, fd;

	fd = kvmfault__uffd_open(KVMFAULT__UFFD_DEVICE |
				 KVMFAULT__UFFD_SYSCALL);
	if (fd == -EPERM || fd == -EACCES) {
		kvmfault__log(vm, KVMFAULT_LOG_ERROR,
			      "no right to a userfaultfd that sees KVM's accesses: allow this process to open /dev/userfaultfd, or set the sysctl vm.unprivileged_userfaultfd to 1, or give it CAP_SYS_PTRACE");
		return -EPERM;
	}
	if (fd == -ENOSYS)
		kvmfault__log(vm, KVMFAULT_LOG_ERROR,
			      "this kernel has no userfaultfd: it needs CONFIG_USERFAULTFD");
	if (fd < 0)
		return fd;
	err = kvmfault__sys_ioctl(fd, UFFDIO_API, &api);
	if (!err)
		return fd;
	kvmfault__sys_close(fd);
	return err == -EINVAL ? kvmfault__refuse(vm, -EOPNOTSUPP,
		"this kernel's userfaultfd does not speak this API") : err;
}

/* An access of the kernel's, by a thread that may sleep in it. */
struct access {
	void *page;
	_Atomic uint32_t ended;
	int err;
};

static void *access_page(void *data)
{
	struct access *access = data;

	/* It is asked about the page, and has to write into that page. */
	access->err = kvmfault__sys_mincore(access->page,
					    kvmfault__sys_page_size(),
					    access->page);
	atomic_store(&access->ended, 1);
	return NULL;
}

/* Not the flags of the descriptor nor another call tell whether it reports what
 * the kernel touches: only an access does. 0: it does; -EFAULT: it does not. */
static int ask_kernel_access(int fd, void *page)
{
	struct access access = { .page = page };
	uint64_t ioctls, size = kvmfault__sys_page_size();
	struct uffd_msg msg;
	pthread_t thread;
	ssize_t n = -EAGAIN;
	int err;

	err = kvmfault__uffd_register(fd, (uintptr_t)page, size, 0, &ioctls);
	if (err)
		return err;
	err = kvmfault__sys_thread(&thread, access_page, &access,
				   "kvmfault-access");
	while (!err && !atomic_load(&access.ended) &&
	       (n == -EAGAIN || n == -EINTR)) {
		kvmfault__sys_yield();
		n = kvmfault__uffd_read(fd, &msg, sizeof(msg));
	}
	/* This wakes who sleeps there, too. */
	kvmfault__uffd_unregister(fd, (uintptr_t)page, size);
	if (err)
		return err;
	kvmfault__sys_join(thread);
	return access.err == -EFAULT ? -EFAULT : 0;
}

static int check_kernel_access(struct kvmfault_vm *vm, int fd)
{
	size_t size = kvmfault__sys_page_size();
	void *page;
	int err = kvmfault__sys_mmap(&page, size, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (err)
		return err;
	err = ask_kernel_access(fd, page);
	kvmfault__sys_munmap(page, size);
	if (err == -EFAULT)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_uffd_options.fd: descriptor %d does not report what the kernel touches, and so not what KVM does: make it without UFFD_USER_MODE_ONLY and UFFD_FEATURE_SIGBUS, or let the library open one",
			fd);
	return err == -EINVAL ? kvmfault__refuse(vm, err,
		"kvmfault_uffd_options.fd: descriptor %d takes no memory of this process: if it is another one's, set remote",
		fd) : err;
}

static int adopt(struct kvmfault_vm *vm, int fd, bool remote)
{
	int err, flags = kvmfault__sys_getfl(fd);

	if (flags < 0)
		return kvmfault__refuse(vm, flags,
			"kvmfault_uffd_options.fd: descriptor %d is not open",
			fd);
	/* A wake of nobody works where the handshake was made, and nowhere
	 * else; any address does. */
	err = kvmfault__uffd_wake(fd, NOWHERE, kvmfault__sys_page_size());
	if (err)
		return kvmfault__refuse(vm, err == -ENOTTY ? -EINVAL : err,
			"kvmfault_uffd_options.fd: descriptor %d is no userfaultfd with UFFDIO_API done",
			fd);
	if (!(flags & O_NONBLOCK))
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_uffd_options.fd: an adopted userfaultfd needs O_NONBLOCK: of one without it poll() says that it has failed");
	err = remote ? 0 : check_kernel_access(vm, fd);
	return err ? err : kvmfault__sys_dup(fd);
}

/* Under the lock. */
static int publish(struct kvmfault_vm *vm, struct kvmfault_uffd *uffd)
{
	uint32_t id = 1;
	int err;

	while (id < KVMFAULT__SPACES && atomic_load(&vm->uffds[id]))
		id++;
	if (id == KVMFAULT__SPACES)
		return -ENOSPC;		/* the lock is held: the caller says */
	uffd->id = id;
	if (uffd->space)
		uffd->space = id;
	atomic_store(&vm->uffds[id], uffd);
	err = kvmfault__uffd_listen(uffd, EPOLL_CTL_ADD);
	if (err)
		atomic_store(&vm->uffds[id], NULL);
	return err;
}

KVMFAULT__EXPORT
int kvmfault_uffd_new(struct kvmfault_vm *vm,
		      const struct kvmfault_uffd_options *options,
		      struct kvmfault_uffd **uffd)
{
	struct kvmfault_uffd_options ours = { .size = sizeof(ours) };
	struct kvmfault_uffd *new;
	int err;

	if (!uffd)
		return kvmfault__no_place(vm, "kvmfault_uffd_new");
	*uffd = NULL;
	err = options ? kvmfault__options_in(vm, "kvmfault_uffd_options", &ours,
					     sizeof(ours), options) : 0;
	if (err)
		return err;
	if (!vm)
		return -EINVAL;
	if (ours.remote && ours.fd <= 0)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_uffd_options.fd: remote needs the descriptor of the other process (0 means none: duplicate one that is 0)");
	new = kvmfault__sys_alloc(sizeof(*new), 0);
	if (!new)
		return -ENOMEM;
	new->vm = vm;
	new->space = ours.remote;
	new->fd = ours.fd > 0 ? adopt(vm, ours.fd, ours.remote) : open_own(vm);
	if (new->fd < 0) {
		err = new->fd;
		goto free;
	}
	err = ours.fd > 0 && !ours.remote ? kvmfault__reader_new(new) : 0;
	if (err)
		goto close;
	kvmfault__sys_lock(&vm->lock);
	err = publish(vm, new);
	kvmfault__sys_unlock(&vm->lock);
	if (err == -ENOSPC)
		kvmfault__refuse(vm, err,
			"there are %u userfaultfds in this context already",
			(unsigned int)KVMFAULT__SPACES - 1);
	if (err)
		goto close;
	*uffd = new;
	return 0;
close:
	kvmfault__reader_free(new);
	kvmfault__sys_close(new->fd);
free:
	kvmfault__sys_free(new);
	return err;
}

KVMFAULT__EXPORT
int kvmfault_uffd_fd(const struct kvmfault_uffd *uffd)
{
	return uffd ? uffd->fd : -EINVAL;
}

static bool reads(struct kvmfault__seat *seat, void *uffd)
{
	return kvmfault__held(seat, KVMFAULT__HAZARD_UFFD) == uffd;
}

/* Out of the context; whether it is used is the caller's to know. */
static void unpublish(struct kvmfault_uffd *uffd)
{
	struct kvmfault_vm *vm = uffd->vm;

	kvmfault__sys_epoll_ctl(vm->epoll, EPOLL_CTL_DEL, uffd->fd, NULL);
	kvmfault__drain(vm, reads, uffd);
	kvmfault__reader_free(uffd);
}

static bool names(struct kvmfault__seat *seat, void *uffd)
{
	const struct kvmfault__span *span = atomic_load(&seat->span);

	return span && span->uffd == uffd;
}

void kvmfault__uffd_end(struct kvmfault_uffd *uffd, bool guards)
{
	struct kvmfault_vm *vm = uffd->vm;

	kvmfault__sys_lock(&vm->lock);
	atomic_store(&vm->uffds[uffd->id], NULL);
	kvmfault__sys_unlock(&vm->lock);
	unpublish(uffd);
	/* Nobody reads it any more: what has moved by now was told. */
	uffd->guards = guards || atomic_load(&uffd->moved);
	kvmfault__sys_lock(&vm->lock);
	uffd->next = vm->ended;
	vm->ended = uffd;
	kvmfault__sys_unlock(&vm->lock);
	kvmfault__uffds_reap(vm);
}

void kvmfault__uffds_reap(struct kvmfault_vm *vm)
{
	struct kvmfault_uffd **link = &vm->ended, *uffd, *unused = NULL;

	kvmfault__sys_lock(&vm->lock);
	while ((uffd = *link)) {
		if (kvmfault__any_seat(vm, names, uffd)) {
			link = &uffd->next;
			continue;
		}
		*link = uffd->next;
		uffd->next = unused;
		unused = uffd;
	}
	kvmfault__sys_unlock(&vm->lock);
	while ((uffd = unused)) {
		unused = uffd->next;
		if (!uffd->guards)
			kvmfault__sys_close(uffd->fd);
		kvmfault__sys_free(uffd);
	}
}

KVMFAULT__EXPORT
int kvmfault_uffd_free(struct kvmfault_uffd *uffd)
{
	struct kvmfault_vm *vm;
	bool busy;

	if (!uffd)
		return 0;
	if (kvmfault__reader_is_self(uffd))
		return -EDEADLK;
	vm = uffd->vm;
	kvmfault__sys_lock(&vm->lock);
	busy = uffd->users;
	kvmfault__sys_unlock(&vm->lock);
	if (busy)
		return kvmfault__refuse(vm, -EBUSY,
			"kvmfault_uffd_free: a mapping uses it: free its memory, or kvmfault_mapping_remove() first");
	kvmfault__uffd_end(uffd, false);
	return 0;
}
