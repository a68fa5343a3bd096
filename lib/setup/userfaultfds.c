/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Set-up: how a userfaultfd is opened or adopted, and taken down. In: the VMM's
 * descriptor, or none. Out: a userfaultfd of the context, whose messages the
 * service gets; in the end the descriptor is closed. A descriptor that holds
 * registered ranges stays open: to close it would make zero pages of all absent
 * pages there.
 */

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include "../os/abi.h"
#include "setup.h"

#define NOWHERE (1ULL << 30)

static int uffd_open_own(struct kvmfault_vm *vm)
{
	/* Without this feature a range that mremap() moves is not registered
	 * any more, and its absent pages are zeros. */
	struct uffdio_api api = {
		.api = UFFD_API, .features = UFFD_FEATURE_EVENT_REMAP,
	};
	int err, fd;

	fd = kvmfault__uffd_open(KVMFAULT__UFFD_DEVICE |
				 KVMFAULT__UFFD_SYSCALL);
	if (fd == -EPERM || fd == -EACCES) {
		kvmfault__log(vm, KVMFAULT_LOG_ERROR,
			      "this process has no right to a userfaultfd that sees KVM's accesses: allow the process to open /dev/userfaultfd, or set the sysctl vm.unprivileged_userfaultfd to 1, or give the process CAP_SYS_PTRACE");
		return -EPERM;
	}
	if (fd == -ENOSYS)
		kvmfault__log(vm, KVMFAULT_LOG_ERROR,
			      "this kernel has no userfaultfd: use a kernel with CONFIG_USERFAULTFD");
	if (fd < 0)
		return fd;
	err = kvmfault__sys_ioctl(fd, UFFDIO_API, &api);
	if (!err)
		return fd;
	kvmfault__sys_close(fd);
	return err == -EINVAL ? kvmfault__refuse(vm, -EOPNOTSUPP,
		"this kernel's userfaultfd refuses UFFD_API with UFFD_FEATURE_EVENT_REMAP: use a newer kernel") : err;
}

/* An access by the kernel, which a thread of its own makes, since the thread
 * may sleep in it. */
struct access {
	void *page;
	_Atomic uint32_t ended;
	int err;
};

static void *uffd_access_page(void *data)
{
	struct access *access = data;

	/* mincore() is asked about the page, and has to write its answer into
	 * that page. */
	access->err = kvmfault__sys_mincore(access->page,
					    kvmfault__sys_page_size(),
					    access->page);
	atomic_store(&access->ended, 1);
	return NULL;
}

/* Neither the descriptor's flags nor another call tell whether it reports what
 * the kernel touches: only an access does. Returns 0 if it does, and -EFAULT if
 * not. */
static int uffd_ask_kernel_access(int fd, void *page)
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
	err = kvmfault__sys_thread(&thread, uffd_access_page, &access,
				   "kvmfault-access");
	while (!err && !atomic_load(&access.ended) &&
	       (n == -EAGAIN || n == -EINTR)) {
		kvmfault__sys_yield();
		n = kvmfault__uffd_read(fd, &msg, sizeof(msg));
	}
	/* This also wakes the thread, if it sleeps on the page. */
	kvmfault__uffd_unregister(fd, (uintptr_t)page, size);
	if (err)
		return err;
	kvmfault__sys_join(thread);
	return access.err == -EFAULT ? -EFAULT : 0;
}

static int uffd_check_kernel_access(struct kvmfault_vm *vm, int fd)
{
	size_t size = kvmfault__sys_page_size();
	void *page;
	int err = kvmfault__sys_mmap(&page, size, PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (err)
		return err;
	err = uffd_ask_kernel_access(fd, page);
	kvmfault__sys_munmap(page, size);
	if (err == -EFAULT)
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_uffd_options.fd: descriptor %d does not report what the kernel touches, and so not what KVM does: make it without UFFD_USER_MODE_ONLY and UFFD_FEATURE_SIGBUS, or let the library open one",
			fd);
	return err == -EINVAL ? kvmfault__refuse(vm, err,
		"kvmfault_uffd_options.fd: descriptor %d takes no memory of this process: if the userfaultfd is another process's, set remote",
		fd) : err;
}

static int uffd_adopt(struct kvmfault_vm *vm, int fd, bool remote)
{
	int err, flags = kvmfault__sys_getfl(fd);

	if (flags < 0)
		return kvmfault__refuse(vm, flags,
			"kvmfault_uffd_options.fd: descriptor %d is not open",
			fd);
	/* A wake without sleepers succeeds if the handshake was made, and only
	 * then. Any address will do. */
	err = kvmfault__uffd_wake(fd, NOWHERE, kvmfault__sys_page_size());
	if (err)
		return kvmfault__refuse(vm, err == -ENOTTY ? -EINVAL : err,
			"kvmfault_uffd_options.fd: descriptor %d is not a userfaultfd on which UFFDIO_API was done: do UFFDIO_API first",
			fd);
	if (!(flags & O_NONBLOCK))
		return kvmfault__refuse(vm, -EINVAL,
			"kvmfault_uffd_options.fd: an adopted userfaultfd needs O_NONBLOCK: set the flag, since poll() reports an error for a userfaultfd without O_NONBLOCK");
	err = remote ? 0 : uffd_check_kernel_access(vm, fd);
	return err ? err : kvmfault__sys_dup(fd);
}

/* Under the VM's lock. */
static int uffd_publish(struct kvmfault_vm *vm, struct kvmfault_uffd *uffd)
{
	uint32_t id = 1;
	int err;

	while (id < KVMFAULT__SPACES && atomic_load(&vm->uffds[id]))
		id++;
	if (id == KVMFAULT__SPACES)
		return -ENOSPC;		/* the caller logs, without the lock */
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
			"kvmfault_uffd_options.fd: remote is set and needs the other process's descriptor (0 means none: duplicate a descriptor that is 0)");
	new = kvmfault__sys_alloc(sizeof(*new), 0);
	if (!new)
		return -ENOMEM;
	new->vm = vm;
	new->space = ours.remote;
	new->fd = ours.fd > 0 ? uffd_adopt(vm, ours.fd, ours.remote) :
		uffd_open_own(vm);
	if (new->fd < 0) {
		err = new->fd;
		goto free;
	}
	err = ours.fd > 0 ? kvmfault__reader_new(new) : 0;
	if (err)
		goto close;
	kvmfault__sys_lock(&vm->lock);
	err = uffd_publish(vm, new);
	kvmfault__sys_unlock(&vm->lock);
	if (err == -ENOSPC)
		kvmfault__refuse(vm, err,
			"kvmfault_uffd_new: there are %u userfaultfds in this context already: free one first",
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

static bool uffd_is_read_by_seat(struct kvmfault__seat *seat, void *uffd)
{
	return kvmfault__held(seat, KVMFAULT__HAZARD_UFFD) == uffd;
}

/* Takes the userfaultfd out of the context. The caller has made sure
 * that no mapping uses it. */
static void uffd_unpublish(struct kvmfault_uffd *uffd)
{
	struct kvmfault_vm *vm = uffd->vm;

	kvmfault__sys_epoll_ctl(vm->epoll, EPOLL_CTL_DEL, uffd->fd, NULL);
	kvmfault__drain(vm, uffd_is_read_by_seat, uffd);
	kvmfault__reader_free(uffd);
}

static bool uffd_is_named_by_seat(struct kvmfault__seat *seat, void *uffd)
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
	uffd_unpublish(uffd);
	/* No thread reads it any more, so `moved` does not change from now
	 * on. */
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
		if (kvmfault__any_seat(vm, uffd_is_named_by_seat, uffd)) {
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

	if (!uffd || kvmfault__is_child(uffd->vm))
		return 0;
	if (kvmfault__reader_is_self(uffd))
		return -EDEADLK;
	vm = uffd->vm;
	kvmfault__sys_lock(&vm->lock);
	busy = uffd->users;
	kvmfault__sys_unlock(&vm->lock);
	if (busy)
		return kvmfault__refuse(vm, -EBUSY,
			"kvmfault_uffd_free: a mapping uses the userfaultfd: free the mapping's memory, or call kvmfault_mapping_remove() first");
	kvmfault__uffd_end(uffd, false);
	return 0;
}
