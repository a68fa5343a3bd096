/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault serve: one VM. In: its userfaultfd, and where its memory is, there
 * and in the image. Out: its pages, until its socket ends. Each VM has its own
 * context and threads; the image's source is shared. When nothing is missing
 * any more, the memory is left to the kernel: the VM needs no server then.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>

#include "serve.h"

#define SERVICE_THREADS 1
#define FILL_THREADS 2
#define STEP (256ULL << 10)	/* bytes that a step of the fill brings */
#define SOON_MS 1	/* for what has to be known soon */

/* ---- what the library's threads tell ---- */

static void tell_log(void *data, enum kvmfault_log_level level,
		     const char *message)
{
	const struct serve_vm *vm = data;

	if (atomic_load(&vm->settling))
		return;
	serve_tell_problem(vm->serve, vm, level == KVMFAULT_LOG_WARNING ?
			   "warning" : "problem", message, 0);
}

static void tell_sleeper(void *data, const struct kvmfault_sleeper *sleeper)
{
	const struct serve_vm *vm = data;
	struct json_object *event = serve_event("unresolved", vm);

	serve_add_number(event, "address", sleeper->fault->hva);
	serve_add_text(event, "why", kvmfault_reason_str(sleeper->reason));
	serve_add_text(event, "error", strerror(-sleeper->error));
	serve_tell(vm->serve, event);
}

static void note_progress(void *data,
			  const struct kvmfault_fill_progress *progress)
{
	struct serve_vm *vm = data;
	bool news = progress->over;

	if (!progress->replaying && !atomic_exchange(&vm->replayed, true))
		news = true;
	atomic_store(&vm->over, progress->over);
	if (news)
		serve_wake(vm->serve);
}

/* ---- its end ---- */

static void free_memories(struct serve_vm *vm)
{
	unsigned int i;

	for (i = 0; vm->memory && i < vm->memories; i++)
		kvmfault_memory_free(vm->memory[i]);
	free(vm->memory);
}

static void close_states(struct serve_vm *vm)
{
	if (vm->states)
		serve_keep_close(vm->states, vm->memories);
	free(vm->states);
	vm->states = NULL;
}

/* The client is gone, or has nothing yet. */
static void free_served(struct serve_vm *vm)
{
	kvmfault_fill_free(vm->fill);
	kvmfault_service_free(vm->service);
	free_memories(vm);
	kvmfault_uffd_free(vm->uffd);
	close_states(vm);
	if (kvmfault_vm_free(vm->vm))
		serve_tell_problem(vm->serve, vm, "problem",
				   "something of the context is left", 0);
}

/* Fetches in flight are waited for, maybe for as long as a server takes to
 * answer: the loop has to go on meanwhile. */
static void *end_thread(void *arg)
{
	struct serve_vm *vm = arg;

	free_served(vm);
	atomic_store(&vm->ended, true);
	serve_wake(vm->serve);
	return NULL;
}

static void list_vm(struct serve_vm **list, struct serve_vm *vm)
{
	vm->previous = NULL;
	vm->next = *list;
	if (vm->next)
		vm->next->previous = vm;
	*list = vm;
}

static void unlist_vm(struct serve_vm **list, struct serve_vm *vm)
{
	if (vm->next)
		vm->next->previous = vm->previous;
	if (vm->previous)
		vm->previous->next = vm->next;
	else
		*list = vm->next;
}

static void forget_vm(struct serve_vm *vm)
{
	struct serve *serve = vm->serve;

	unlist_vm(&serve->leaving, vm);
	free(vm->range);
	free(vm);
	serve->clients--;
	serve_client_place(serve);
}

static void tell_gone(struct serve_vm *vm)
{
	struct kvmfault_stats stats = { .size = sizeof(stats) };
	struct json_object *event = serve_event("gone", vm);

	kvmfault_vm_stats(vm->vm, &stats);
	serve_add_number(event, "fetched", stats.fetched);
	serve_add_number(event, "zero", stats.holes);
	serve_add_number(event, "filled", stats.filled);
	serve_add_number(event, "faults", stats.kind[KVMFAULT_KIND_UFFD]);
	serve_tell(vm->serve, event);
}

static void end_vm(struct serve_vm *vm)
{
	struct serve *serve = vm->serve;

	serve_watch_remove(&vm->watch);
	serve_keep_gone(serve, vm->number);
	close(vm->watch.fd);
	serve_record_end(vm);
	tell_gone(vm);
	serve->gone++;
	unlist_vm(&serve->vms, vm);
	list_vm(&serve->leaving, vm);
	if (!pthread_create(&vm->end, NULL, end_thread, vm))
		return;
	free_served(vm);
	forget_vm(vm);
}

/* Firecracker sends nothing after its message: the socket only ends. */
static void read_end(struct serve_watch *watch)
{
	struct serve_vm *vm = (struct serve_vm *)watch;
	char bytes[4096];
	ssize_t n = recv(watch->fd, bytes, sizeof(bytes), 0);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		end_vm(vm);
		return;
	}
	if (!vm->spoke)
		serve_tell_problem(vm->serve, vm, "warning",
				   "it sent more after its message, which is not read",
				   0);
	vm->spoke = true;
}

/* ---- its progress ---- */

/* Its first touches are known: now the rest may come. */
static void end_recording(struct serve_watch *watch)
{
	struct serve_vm *vm = (struct serve_vm *)watch;

	serve_record_end(vm);
	if (!vm->serve->fill)
		return;
	vm->hold = false;
	kvmfault_fill_pause(vm->fill, false);
}

/* From here on no page of it comes by this process, and what its balloon gives
 * up is zero without it. */
static int settle_vm(struct serve_vm *vm)
{
	unsigned int i;
	int err = 0;

	kvmfault_fill_free(vm->fill);
	vm->fill = NULL;
	/* It fails if the VM ends just now, which is no problem. */
	atomic_store(&vm->settling, true);
	for (i = 0; i < vm->memories && !err; i++)
		err = kvmfault_memory_settle(vm->memory[i], NULL);
	atomic_store(&vm->settling, false);
	return err;
}

static void tell_resident(struct serve_vm *vm)
{
	struct json_object *event = serve_event("resident", vm);
	int err;

	vm->resident = true;
	vm->resident_ms = serve_now() - vm->came;
	serve_record_end(vm);
	err = settle_vm(vm);
	if (!err)
		serve_keep_resident(vm->serve, vm->number);
	json_object_object_add(event, "settled",
			       json_object_new_boolean(!err));
	if (err)
		serve_add_text(event, "error", strerror(-err));
	serve_tell(vm->serve, event);
}

static void look_at_vm(struct serve_vm *vm)
{
	if (atomic_load(&vm->replayed) && !vm->told_replayed) {
		vm->told_replayed = true;
		if (vm->hold)
			kvmfault_fill_pause(vm->fill, true);
		if (vm->serve->set)
			serve_tell(vm->serve, serve_event("replayed", vm));
	}
	if (atomic_load(&vm->over) && !vm->resident)
		tell_resident(vm);
}

void serve_vm_look(struct serve *serve)
{
	struct serve_vm *vm, *next;

	for (vm = serve->vms; vm; vm = vm->next)
		look_at_vm(vm);
	for (vm = serve->leaving; vm; vm = next) {
		next = vm->next;
		if (!atomic_load(&vm->ended))
			continue;
		pthread_join(vm->end, NULL);
		forget_vm(vm);
	}
	serve_check_drained(serve);
}

void serve_vm_hurry(struct serve *serve)
{
	struct serve_vm *vm;

	for (vm = serve->vms; vm; vm = vm->next) {
		serve_record_end(vm);
		vm->hold = false;
		kvmfault_fill_set_rate(vm->fill, 0);
		kvmfault_fill_pause(vm->fill, false);
	}
}

void serve_vm_count(const struct serve_vm *vm,
		    struct kvmfault_memory_counts *bytes)
{
	struct kvmfault_memory_counts counts = { .size = sizeof(counts) };
	unsigned int i;

	*bytes = counts;
	for (i = 0; i < vm->memories; i++) {
		uint64_t page = vm->range[i].page_size;

		if (kvmfault_memory_count(vm->memory[i], 0,
					  vm->range[i].length, &counts))
			continue;
		bytes->absent += counts.absent * page;
		bytes->claimed += counts.claimed * page;
		bytes->present += counts.present * page;
		bytes->discarded += counts.discarded * page;
		bytes->poisoned += counts.poisoned * page;
	}
}

/* ---- its beginning ---- */

static int new_context(struct serve_vm *vm)
{
	const struct kvmfault_vm_ops ops = {
		.size = sizeof(ops),
		.log = tell_log,
		.unresolved = tell_sleeper,
	};
	struct kvmfault_vm_options options = {
		.size = sizeof(options),
		.ops = &ops,
		.data = vm,
		.page_size_max = STEP,
		.fetches = SERVE_FETCHES,
	};
	unsigned int i;

	for (i = 0; i < vm->memories; i++)
		if (vm->range[i].page_size > options.page_size_max)
			options.page_size_max = vm->range[i].page_size;
	return kvmfault_vm_new(&options, &vm->vm);
}

static int adopt_uffd(struct serve_vm *vm, int fd)
{
	const struct kvmfault_uffd_options options = {
		.size = sizeof(options),
		.fd = fd,
		.remote = true,
	};
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return -errno;
	return kvmfault_uffd_new(vm->vm, &options, &vm->uffd);
}

/* While a VM is recorded, only what it touches is to come. */
static int adopt_range(struct serve_vm *vm, unsigned int i)
{
	const struct serve_range *range = &vm->range[i];
	const struct kvmfault_memory_options options = {
		.size = sizeof(options),
		.host = (void *)(uintptr_t)range->address,
		.length = range->length,
		.page_size = range->page_size,
		.source = &vm->serve->image.source,
		.source_offset = range->offset,
		.uffd = vm->uffd,
		.states_fd = vm->states[i],
		.window = vm->serve->record_path ? KVMFAULT_WINDOW_NONE :
						   KVMFAULT_WINDOW_ADAPTIVE,
	};

	return kvmfault_memory_adopt(vm->vm, &options, &vm->memory[i]);
}

static int start_service(struct serve_vm *vm)
{
	const struct kvmfault_service_options options = {
		.size = sizeof(options),
		.threads = SERVICE_THREADS,
	};

	return kvmfault_service_new(vm->vm, &options, &vm->service);
}

/* Of a VM that had another worker some memory may be settled: no fill takes it.
 * Returns how many others there are. */
static uint32_t find_unfilled(struct serve_vm *vm, struct kvmfault_memory **to)
{
	struct kvmfault_memory_counts counts = { .size = sizeof(counts) };
	uint32_t count = 0;
	unsigned int i;

	for (i = 0; i < vm->memories; i++)
		if (!kvmfault_memory_count(vm->memory[i], 0,
					   vm->range[i].length, &counts) &&
		    counts.absent + counts.claimed + counts.poisoned)
			to[count++] = vm->memory[i];
	return count;
}

static int start_fill_of(struct serve_vm *vm, struct kvmfault_memory **memories,
			 uint32_t count)
{
	const struct serve *serve = vm->serve;
	struct kvmfault_fill_options options = {
		.size = sizeof(options),
		.memories = memories,
		.memory_count = count,
		.first = serve->set,
		.threads = FILL_THREADS,
		.rate = serve->draining ? 0 : serve->fill_rate,
		.progress = note_progress,
		.data = vm,
	};

	vm->hold = !serve->draining && (!serve->fill || vm->recording);
	options.paused = vm->hold && !serve->set;
	options.interval_ms = vm->hold && serve->set ? SOON_MS : 0;
	return kvmfault_fill_new(vm->vm, &options, &vm->fill);
}

/* One that has nothing to bring tells when nothing is missing. */
static int start_vm_fill(struct serve_vm *vm)
{
	struct kvmfault_memory **memories =
		calloc(vm->memories, sizeof(struct kvmfault_memory *));
	uint32_t count = memories ? find_unfilled(vm, memories) : 0;
	int err = memories ? 0 : -ENOMEM;

	if (count) {
		err = start_fill_of(vm, memories, count);
	} else if (!err) {
		atomic_store(&vm->over, true);
		serve_wake(vm->serve);
	}
	free(memories);
	return err;
}

/* Those that were not kept are empty: the memory is a new one. Returns how many
 * these are, or -errno. */
static int open_states(struct serve_vm *vm)
{
	unsigned int i;
	int made = 0;

	for (i = 0; i < vm->memories; i++) {
		if (vm->states[i] >= 0)
			continue;
		vm->states[i] = memfd_create("kvmfault-states", MFD_CLOEXEC);
		if (vm->states[i] < 0)
			return -errno;
		made++;
	}
	return made;
}

static int make_states(struct serve_vm *vm)
{
	unsigned int i;
	int made;

	vm->states = calloc(vm->memories, sizeof(*vm->states));
	if (!vm->states)
		return -ENOMEM;
	for (i = 0; i < vm->memories; i++)
		vm->states[i] = -1;
	made = open_states(vm);
	return made < 0 ? made : 0;
}

static int start_vm(struct serve_vm *vm, int uffd)
{
	unsigned int i;
	int err;

	vm->memory = calloc(vm->memories, sizeof(struct kvmfault_memory *));
	err = vm->memory ? new_context(vm) : -ENOMEM;
	if (!err)
		err = adopt_uffd(vm, uffd);
	for (i = 0; i < vm->memories && !err; i++)
		err = adopt_range(vm, i);
	if (!err)
		err = start_service(vm);
	return err;
}

static void tell_came(const struct serve_vm *vm, const char *how)
{
	struct json_object *event = serve_event(how, vm);

	serve_add_number(event, "pid", (uint64_t)vm->pid);
	serve_add_text(event, "dialect", vm->dialect);
	serve_add_number(event, "bytes", vm->bytes);
	serve_add_number(event, "regions", vm->memories);
	serve_add_number(event, "page_size", vm->range[0].page_size);
	serve_tell(vm->serve, event);
}

static struct serve_vm *make_vm(struct serve *serve, uint64_t number,
				int socket, pid_t pid, const char *dialect)
{
	struct serve_vm *vm = calloc(1, sizeof(*vm));

	if (!vm)
		return NULL;
	vm->serve = serve;
	vm->number = number;
	vm->pid = pid;
	vm->dialect = dialect;
	vm->came = serve_now();
	vm->watch.fd = socket;
	vm->watch.ready = read_end;
	vm->watch.late = end_recording;
	return vm;
}

static void take_ranges(struct serve_vm *vm, struct serve_range *ranges,
			unsigned int count)
{
	unsigned int i;

	vm->range = ranges;
	vm->memories = count;
	for (i = 0; i < count; i++)
		vm->bytes += ranges[i].length;
}

/* On error all is as it was, but for the socket and the ranges, which are the
 * caller's. */
static int begin_vm(struct serve_vm *vm, int err)
{
	if (!err)
		err = serve_watch_add(vm->serve, &vm->watch,
				      EPOLLIN | EPOLLRDHUP);
	if (!err) {
		list_vm(&vm->serve->vms, vm);
		return 0;
	}
	serve_record_end(vm);
	free_served(vm);
	free(vm);
	return err;
}

int serve_vm_new(struct serve *serve, uint64_t number, int socket,
		 const struct ucred *peer, const char *dialect, int uffd,
		 struct serve_range *ranges, unsigned int count)
{
	struct serve_vm *vm = make_vm(serve, number, socket, peer->pid,
				      dialect);
	int err;

	if (!vm)
		return -ENOMEM;
	take_ranges(vm, ranges, count);
	err = make_states(vm);
	if (!err)
		err = serve_keep_memory(serve, vm, uffd);
	if (!err)
		err = start_vm(vm, uffd);
	if (!err)
		err = serve_record_begin(vm);
	if (!err)
		err = start_vm_fill(vm);
	err = begin_vm(vm, err);
	if (err)
		return err;
	serve->came++;
	tell_came(vm, "came");
	return 0;
}

/* ---- a VM that had another worker ---- */

static int start_again(struct serve_vm *vm, int uffd)
{
	int made = open_states(vm), err = made < 0 ? made : 0;

	if (made > 0)
		err = serve_keep_states(vm->serve, vm);
	if (!err)
		err = start_vm(vm, uffd);
	return err ? err : start_vm_fill(vm);
}

/* All of a resident one has come: it is only to be told when it goes. */
static int take_over(struct serve_vm *vm, struct serve_kept *kept)
{
	int err;

	vm->resident = kept->resident;
	if (vm->resident)
		return begin_vm(vm, 0);
	take_ranges(vm, kept->range, kept->count);
	vm->states = kept->states;
	kept->states = NULL;
	kept->count = 0;
	err = begin_vm(vm, start_again(vm, kept->uffd));
	if (!err)
		tell_came(vm, "taken-over");
	return err;
}

void serve_vm_again(struct serve *serve, struct serve_kept *kept)
{
	struct serve_vm *vm = make_vm(serve, kept->number, kept->socket,
				      kept->pid, "firecracker");
	int err = vm ? take_over(vm, kept) : -ENOMEM;

	if (!err) {
		kept->socket = -1;
		kept->range = NULL;
		serve->clients++;
	} else {
		serve_tell_problem(serve, NULL, "problem",
				   "a VM cannot be taken over", err);
		serve_keep_gone(serve, kept->number);
	}
	serve_keep_free(kept);
}
