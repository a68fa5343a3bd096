/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * uffd.c: userfaultfds, and the many ways in which the kernel says what it did.
 */

#include <fcntl.h>
#include <string.h>

#include "bed.h"

#define TO 0x7f0000000000ULL
#define FROM ((void *)0x7e0000000000ULL)

/* ---- UFFDIO_COPY: what the kernel writes and what it returns ---- */

static struct answer {
	int64_t copied;		/* into the field */
	long result;
} answers[8];
static bool untouched;
static size_t calls;
static struct uffdio_copy seen[8];

static bool scripted_copy(struct fake_call *call)
{
	struct uffdio_copy *copy = call->arg;

	if (call->number != UFFDIO_COPY)
		return false;
	ck_assert_uint_lt(calls, 8);
	ck_assert_int_eq(copy->copy, 0);
	seen[calls] = *copy;
	if (!untouched)
		copy->copy = answers[calls].copied;
	call->result = answers[calls++].result;
	return true;
}

static void answer(int64_t copied, long result)
{
	static size_t n;

	answers[n++] = (struct answer){ copied, result };
}

static int64_t copy(uint64_t length)
{
	fake_on(FAKE_IOCTL, scripted_copy);
	return kvmfault__uffd_install(3, KVMFAULT__COPY, TO, FROM, length,
				      PAGE, false);
}

TEST_GROUP(copy, NULL, NULL);

TEST(copy, copied_whole)
{
	answer(PAGE, 0);
	ck_assert_int_eq(copy(PAGE), PAGE);
	ck_assert_uint_eq(calls, 1);
	ck_assert_uint_eq(seen[0].dst, TO);
	ck_assert_uint_eq(seen[0].src, (uintptr_t)FROM);
	ck_assert_uint_eq(seen[0].len, PAGE);
	ck_assert_uint_eq(seen[0].mode, 0);	/* it wakes */
}

/* The rest is the caller's to ask for. */
TEST(copy, copied_in_part)
{
	answer(PAGE, -EAGAIN);
	ck_assert_int_eq(copy(4 * PAGE), PAGE);
	ck_assert_uint_eq(calls, 1);
	ck_assert_uint_eq(seen[0].len, 4 * PAGE);
}

/* The kernel is changing the mappings: 6.15 and later write -EAGAIN into the
 * field, earlier ones leave it. Neither is progress, neither is tried again. */
TEST(copy, not_now)
{
	answer(-EAGAIN, -EAGAIN);
	ck_assert_int_eq(copy(PAGE), -EAGAIN);
	ck_assert_uint_eq(calls, 1);
}

TEST(copy, not_now_and_the_field_untouched)
{
	untouched = true;
	answer(0, -EAGAIN);
	ck_assert_int_eq(copy(PAGE), -EAGAIN);
	ck_assert_uint_eq(calls, 1);
}

TEST(copy, exists)
{
	answer(-EEXIST, -EEXIST);
	ck_assert_int_eq(copy(PAGE), -EEXIST);
	ck_assert_uint_eq(calls, 1);
}

TEST_EACH(copy, copy_fails, 7)
{
	static const int errors[] = { -ENOENT, -ESRCH, -EFAULT, -EINVAL,
				      -ENOMEM, -EHWPOISON, -EIO };

	untouched = _i % 2;
	answer(errors[_i], errors[_i]);
	ck_assert_int_eq(copy(PAGE), errors[_i]);
	ck_assert_uint_eq(calls, 1);
}

/* ---- making them ---- */

static struct kvmfault_uffd *uffd;

static int new_uffd(int fd, bool remote)
{
	struct kvmfault_uffd_options options = {
		.size = sizeof(options), .fd = fd, .remote = remote,
	};

	uffd = (void *)1;
	return kvmfault_uffd_new(bed.vm, &options, &uffd);
}

TEST_GROUP(new, bed_vm, bed_down);

TEST(new, own)
{
	ck_assert_int_eq(new_uffd(0, false), 0);
	ck_assert_int_gt(kvmfault_uffd_fd(uffd), 0);
	ck_assert_int_eq(kvmfault__sys_getfl(kvmfault_uffd_fd(uffd)),
			 O_RDWR | O_NONBLOCK | O_CLOEXEC);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_API), 1);
	ck_assert_int_eq(kvmfault_vm_free(bed.vm), -EBUSY);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
	ck_assert_int_eq(kvmfault_uffd_new(bed.vm, NULL, &uffd), 0);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
}

TEST(new, bad_arguments)
{
	struct kvmfault_uffd_options options = { .size = sizeof(options) };

	ck_assert_int_eq(kvmfault_uffd_new(NULL, &options, &uffd), -EINVAL);
	ck_assert_int_eq(kvmfault_uffd_new(bed.vm, &options, NULL), -EINVAL);
	ck_assert_int_eq(new_uffd(0, true), -EINVAL);
	ck_assert_ptr_null(uffd);
	ck_assert_int_eq(new_uffd(-1, true), -EINVAL);
	ck_assert_int_eq(kvmfault_uffd_fd(NULL), -EINVAL);
	ck_assert_int_eq(kvmfault_uffd_free(NULL), 0);
}

TEST(new, unknown_tail)
{
	struct {
		struct kvmfault_uffd_options options;
		uint64_t tail;
	} caller = { .options.size = sizeof(caller), .tail = 1 };

	ck_assert_int_eq(kvmfault_uffd_new(bed.vm, &caller.options, &uffd),
			 -E2BIG);
	ck_assert_ptr_null(uffd);
}

TEST(new, adopted)
{
	int fd = fake_uffd(O_NONBLOCK);

	ck_assert_int_eq(new_uffd(fd, false), 0);
	ck_assert_int_ne(kvmfault_uffd_fd(uffd), fd);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_API), 0);
	/* The fake aborts if it closes any but its duplicate. */
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
	ck_assert_int_ge(kvmfault__sys_getfl(fd), 0);
}

TEST(new, adopted_that_would_block)
{
	ck_assert_int_eq(new_uffd(fake_uffd(0), false), -EINVAL);
	ck_assert_ptr_null(uffd);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_ptr_nonnull(strstr(bed.log, "O_NONBLOCK"));
}

/* Its kind shows by an access of the kernel's alone. */
TEST(new, adopted_that_hears_no_kernel)
{
	int fd = fake_uffd(O_NONBLOCK);
	struct fake_held before = fake_held();

	fake_push(FAKE_MINCORE, -EFAULT);
	ck_assert_int_eq(new_uffd(fd, false), -EINVAL);
	ck_assert_ptr_null(uffd);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_ptr_nonnull(strstr(bed.log, "UFFD_USER_MODE_ONLY"));
	ck_assert_int_eq(fake_held().mappings, before.mappings);
	ck_assert_int_eq(fake_held().threads, before.threads);
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_UNREGISTER), 1);
	/* Of another process's memory it can't be asked here. */
	ck_assert_int_eq(new_uffd(fd, true), 0);
	ck_assert_uint_eq(fake_count(FAKE_MINCORE, FAKE_ANY), 1);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
}

TEST(new, adopted_that_cannot_be_asked)
{
	int fd = fake_uffd(O_NONBLOCK);

	fake_push(FAKE_THREAD, -EAGAIN);
	ck_assert_int_eq(new_uffd(fd, false), -EAGAIN);
	fake_push(FAKE_IOCTL, FAKE_MODEL);	/* the wake */
	fake_push(FAKE_IOCTL, -EINVAL);
	ck_assert_int_eq(new_uffd(fd, false), -EINVAL);
	ck_assert_ptr_nonnull(strstr(bed.log, "remote"));
}

TEST(new, adopted_without_a_handshake)
{
	int fd = fake_fd(FAKE_UFFD);	/* and would say "error" for ever */

	ck_assert_int_eq(new_uffd(fd, false), -EINVAL);
	ck_assert_ptr_null(uffd);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_ptr_nonnull(strstr(bed.log, "UFFDIO_API"));
}

TEST(new, adopted_but_no_userfaultfd)
{
	ck_assert_int_eq(new_uffd(fake_fd(FAKE_PIPE), false), -EINVAL);
	ck_assert_ptr_null(uffd);
}

TEST(new, adopted_but_closed)
{
	ck_assert_int_eq(new_uffd(7777, false), -EBADF);
	ck_assert_ptr_null(uffd);
}

TEST_EACH(new, no_right, 2)
{
	static const long ways[] = { -EPERM, -EACCES };

	/* Neither the device nor the call. */
	fake_push(FAKE_OPEN, ways[_i]);
	fake_push(FAKE_USERFAULTFD, -EPERM);
	ck_assert_int_eq(new_uffd(0, false), -EPERM);
	ck_assert_ptr_null(uffd);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_ptr_nonnull(strstr(bed.log, "/dev/userfaultfd"));
	ck_assert_ptr_nonnull(strstr(bed.log, "vm.unprivileged_userfaultfd"));
}

TEST(new, device_is_refused_but_not_the_call)
{
	fake_push(FAKE_OPEN, -EACCES);
	ck_assert_int_eq(new_uffd(0, false), 0);
	ck_assert_uint_eq(fake_count(FAKE_USERFAULTFD, FAKE_ANY), 1);
	/* The kernel's accesses are wanted: not "user mode only" (1). */
	ck_assert_uint_eq(fake_nth(FAKE_USERFAULTFD, FAKE_ANY, 0)->number & 1,
			  0);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
}

TEST(new, kernel_without_it)
{
	fake_push(FAKE_OPEN, -ENOENT);
	fake_push(FAKE_USERFAULTFD, -ENOSYS);
	ck_assert_int_eq(new_uffd(0, false), -ENOSYS);
	ck_assert_uint_eq(bed.logs, 1);
	ck_assert_ptr_nonnull(strstr(bed.log, "CONFIG_USERFAULTFD"));
}

TEST(new, handshake_fails)
{
	fake_push(FAKE_IOCTL, FAKE_MODEL);	/* the device's */
	fake_push(FAKE_IOCTL, -EINVAL);
	ck_assert_int_eq(new_uffd(0, false), -EOPNOTSUPP);
	ck_assert_ptr_null(uffd);
}

static struct uffd_msg message;

static long read_now(void)
{
	return kvmfault__uffd_read(uffd->fd, &message, sizeof(message));
}

/* Another reader, or who has sent it, was faster than the read. */
static bool message_is_withdrawn(struct fake_call *call)
{
	call->result = 0;
	return true;
}

/* Whoever has the descriptor as well may take its O_NONBLOCK away: no read is one
 * that could sleep. */
TEST_EACH(new, read_does_not_rely_on_a_flag, 2)
{
	int fd = fake_uffd(O_NONBLOCK);

	fake_no_nowait = _i;		/* before 6.10 */
	ck_assert_int_eq(new_uffd(fd, false), 0);
	ck_assert_int_eq(read_now(), -EAGAIN);
	fake_forget();
	fake_message(fd, &message);
	fake_on(FAKE_POLL, message_is_withdrawn);
	ck_assert_int_eq(read_now(), _i ? -EAGAIN : (long)sizeof(message));
	ck_assert_uint_eq(fake_count(FAKE_READ, 0), 0);
	fake_forget();
	fake_message(fd, &message);
	ck_assert_int_eq(read_now(), sizeof(message));
	ck_assert_uint_eq(fake_count(FAKE_POLL, FAKE_ANY), _i);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
}

#define MOST 4095

TEST(new, there_are_only_so_many)
{
	static struct kvmfault_uffd *all[MOST];
	int fd = fake_uffd(O_NONBLOCK);
	size_t i;

	for (i = 0; i < MOST; i++) {
		ck_assert_int_eq(new_uffd(fd, true), 0);
		ck_assert_uint_eq(uffd->space, uffd->id);
		all[i] = uffd;
	}
	ck_assert_int_eq(new_uffd(fd, true), -ENOSPC);
	ck_assert_ptr_null(uffd);
	ck_assert_int_eq(kvmfault_uffd_free(all[100]), 0);
	ck_assert_int_eq(new_uffd(fd, true), 0);
	all[100] = uffd;
	for (i = 0; i < MOST; i++)
		ck_assert_int_eq(kvmfault_uffd_free(all[i]), 0);
}

TEST(new, busy_while_it_is_used)
{
	struct kvmfault_mapping_options options = { .size = sizeof(options) };
	struct kvmfault_mapping *mapping;
	struct kvmfault_memory *memory;
	void *host;
	int fd;

	ck_assert_int_eq(bed_memory(&memory, &fd, &host), 0);
	ck_assert_int_eq(new_uffd(0, false), 0);
	options.host = (uintptr_t)fake_map(fd);
	options.uffd = uffd;
	ck_assert_int_eq(kvmfault_mapping_add(memory, &options, &mapping), 0);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), -EBUSY);
	ck_assert_int_eq(kvmfault_mapping_remove(mapping), 0);
	ck_assert_int_eq(kvmfault_uffd_free(uffd), 0);
	ck_assert_int_eq(kvmfault_memory_free(memory), 0);
}

int main(void)
{
	return run_suite("uffd");
}
