/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Fail the nth call that can fail, for n = 1, 2, ... until there is none left,
 * over every public function. After an error nothing has changed and nothing
 * is lost, and the same call works when nothing is in its way; a failure that
 * is not returned does no harm; in the end nothing has leaked. (That each errno
 * is documented is errnos.py's to see.)
 */

#include <signal.h>
#include <string.h>
#include <sys/mman.h>

#include "kvmfault-experimental.h"
#include "bed.h"
#include "noting.h"
#include "sigbus.h"

#define CALLS_MAX 100
#define ELSEWHERE (BED_GPA + (1ULL << 30))
#define SECOND 1000000000ULL

static struct kvmfault_vm *other;
static struct kvmfault_memory *second;	/* beside the bed's */
static struct kvmfault_mapping *mapping;
static struct kvmfault_service *service;
static struct kvmfault_vcpu *vcpu;
static struct kvmfault_uffd *uffd;
static struct kvmfault_source source;
static void *place;			/* where second or mapping is */
static int guard;			/* its userfaultfd */

static void nothing(void)
{
}

/* ---- the context ---- */

static int new_vm(void)
{
	return kvmfault_vm_new(NULL, &other);
}

static void have_vm(void)
{
	ck_assert_int_eq(new_vm(), 0);
}

static int free_vm(void)
{
	int err = kvmfault_vm_free(other);

	other = err ? other : NULL;
	return err;
}

static void drop_vm(void)
{
	ck_assert_int_eq(free_vm(), 0);
}

/* One whose removed regions could not be swept out of their table. */
static void have_vm_with_dead_regions(void)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .length = PAGE, .guest_memfd = 1000,
	};

	have_vm();
	for (; region.gpa < 3 * PAGE; region.gpa += PAGE)
		ck_assert_int_eq(kvmfault_region_add(other, &region), 0);
	for (region.gpa = 0; region.gpa < 3 * PAGE; region.gpa += PAGE) {
		fake_push(FAKE_ALLOC, 0);
		ck_assert_int_eq(kvmfault_region_remove(other, 0, region.gpa),
				 0);
	}
	ck_assert_uint_eq(other->leaving, 3);
}

static int declines(void *data, struct kvmfault_request *request)
{
	(void)data;
	(void)request;
	return KVMFAULT_VERDICT_DECLINED;
}

static int add_resolver(void)
{
	static const struct kvmfault_resolver resolver = {
		.size = sizeof(resolver), .name = "own", .resolve = declines,
	};

	return kvmfault_resolver_add(other, &resolver);
}

/* ---- probe, on a kernel that has it all ---- */

static bool kvm_calls(struct fake_call *call)
{
	if (_IOC_TYPE(call->number) != KVMIO)
		return false;
	switch (call->number) {
	case KVM_CHECK_EXTENSION:
		call->result = 1;
		return true;
	case KVM_CREATE_VM:
	case KVM_CREATE_VCPU:
	case KVMFAULT__CREATE_GUEST_MEMFD:
		call->result = fake_fd(FAKE_KVM);
		fake_give((int)call->result);
		return true;
	/* The scratch guest. */
	case KVM_GET_VCPU_MMAP_SIZE:
		call->result = PAGE;
		return true;
	case KVM_SET_USER_MEMORY_REGION:
	case KVM_GET_SREGS:
	case KVM_SET_SREGS:
		call->result = 0;
		return true;
	case KVM_RUN:
		call->result = -EFAULT;
		return true;
	}
	call->result = -EINVAL;		/* known, and refused */
	return true;
}

static void have_kvm(void)
{
	fake_on(FAKE_IOCTL, kvm_calls);
}

static int probe(void)
{
	struct kvmfault_features features = { .size = sizeof(features) };

	return kvmfault_probe(fake_fd(FAKE_KVM), fake_fd(FAKE_KVM), &features);
}

/* ---- sources, userfaultfds, memories, mappings ---- */

static const char data[BED_PAGES * PAGE] = "what the file has";
static int file;

static void have_file(void)
{
	file = fake_file(FAKE_FILE, data, sizeof(data));
}

static void have_block_device(void)
{
	file = fake_file(FAKE_BLOCK, data, sizeof(data));
}

static int new_source(void)
{
	source.size = sizeof(source);
	return kvmfault_source_file(file, &source);
}

static struct kvmfault_source zeros;

static void have_two_sources(void)
{
	have_file();
	ck_assert_int_eq(new_source(), 0);
	zeros.size = sizeof(zeros);
	ck_assert_int_eq(kvmfault_source_zero(&zeros), 0);
}

static int new_layers(void)
{
	return kvmfault_source_over(&source, &zeros, &source);
}

static void free_source(void)
{
	kvmfault_source_free(&source);
}

static int free_nothing(void)
{
	source.size = sizeof(source);
	kvmfault_source_free(&source);
	return 0;
}

static int new_uffd(void)
{
	return kvmfault_uffd_new(bed.vm, NULL, &uffd);
}

static void have_uffd(void)
{
	ck_assert_int_eq(new_uffd(), 0);
}

/* ---- delivery ---- */

static int new_vm_with_markers(void)
{
	struct kvmfault_vm_options markers = {
		.size = sizeof(markers),
		.delivery = KVMFAULT_DELIVERY_MARKER_EXIT,
		.allow = KVMFAULT_ALLOW_SHADOW_PAGING,
	};
	int err = kvmfault_vm_new(&markers, &other);

	/* What can't be asked for is not there: the log says why. */
	return err == -EOPNOTSUPP ? -ENOMEM : err;
}

static struct kvmfault_memory_maps maps;

static int create_memory_in(struct kvmfault_vm *vm)
{
	struct kvmfault_memory_options made = {
		.size = sizeof(made), .length = BED_PAGES * PAGE,
		.source = &source,
	};

	source = bed_source();
	maps.size = sizeof(maps);
	return kvmfault_memory_alloc(vm, &made, &maps, &second);
}

static int create_memory(void)
{
	return create_memory_in(bed.vm);
}

static void drop_created(void)
{
	ck_assert_int_eq(kvmfault_memory_free(second), 0);
	second = NULL;
	ck_assert_int_eq(kvmfault__sys_munmap(maps.memslots, BED_PAGES * PAGE),
			 0);
	ck_assert_int_eq(kvmfault__sys_munmap(maps.own, BED_PAGES * PAGE), 0);
	ck_assert_int_eq(kvmfault__sys_close(maps.fd), 0);
}

static void have_markers(void)
{
	ck_assert_int_eq(new_vm_with_markers(), 0);
	ck_assert_int_eq(create_memory_in(other), 0);
}

static int leave_markers(void)
{
	return kvmfault_vm_set_delivery(other, KVMFAULT_DELIVERY_UFFD);
}

static void drop_markers(void)
{
	drop_created();
	drop_vm();
}

static int reset(void)
{
	kvmfault_vcpu_reset(bed.vcpu);
	return 0;
}

static int look_at_error(void)
{
	char text[64];

	kvmfault__log(bed.vm, KVMFAULT_LOG_ERROR, "a text");
	return kvmfault_vm_error(bed.vm, text, sizeof(text));
}

static int look_at_delivery(void)
{
	struct kvmfault_delivery_report report = { .size = sizeof(report) };

	return kvmfault_vm_delivery(bed.vm, &report);
}

static int free_uffd(void)
{
	return kvmfault_uffd_free(uffd);
}

static void drop_uffd(void)
{
	ck_assert_int_eq(free_uffd(), 0);
}

static struct kvmfault_memory_options options;

static void have_place(void)
{
	source = bed_source();
	options = (struct kvmfault_memory_options){
		.size = sizeof(options), .length = BED_PAGES * PAGE,
		.source = &source,
	};
	options.fd = fake_memory(options.length, 0, &place);
	options.host = place;
}

static void have_anonymous_place(void)
{
	have_place();
	options.fd = 0;
}

/* It has a bitmap for KVM, too. */
static void have_userfault(void)
{
	bed.vm->how.kernel_exit = KVMFAULT__KERNEL_EXIT_USERFAULT;
	have_place();
}

/* Its states are in a file, too: what a header, 16 pages' states and their bits
 * need. */
static void have_states(void)
{
	void *unused;

	have_place();
	options.states_fd = fake_memory(4096 + 8 + 8, 0, &unused);
}

static int new_memory(void)
{
	return kvmfault_memory_adopt(bed.vm, &options, &second);
}

/* An owner before this one has left a page. */
static void have_left_states(void)
{
	have_states();
	ck_assert_int_eq(new_memory(), 0);
	kvmfault__page_change(second, 1, KVMFAULT__ABSENT, KVMFAULT__FETCHING);
	ck_assert_int_eq(kvmfault_memory_free(second), 0);
	second = NULL;
	fake_put(options.fd, PAGE);
}

static void have_memory(void)
{
	const struct kvmfault__mappings *all;

	have_place();
	ck_assert_int_eq(new_memory(), 0);
	all = atomic_load(&second->mappings);
	guard = all->mapping[0]->uffd->fd;
}

static void have_all_pages(void)
{
	ck_assert_int_eq(kvmfault_ensure(bed.vm, 0, BED_GPA, BED_PAGES * PAGE,
					 false), 0);
}

static int settle(void)
{
	return kvmfault_memory_settle(bed.memory, NULL);
}

static void expect_settled(void)
{
	ck_assert(!kvmfault__tracked(bed.memory));
	ck_assert(!fake_registered(bed.host));
}

static int count_pages(void)
{
	struct kvmfault_memory_counts counts = { .size = sizeof(counts) };
	uint64_t bitmap;
	int err = kvmfault_memory_count(bed.memory, 0, PAGE, &counts);

	return err ? err : kvmfault_memory_bitmap(bed.memory, 0, PAGE,
						  KVMFAULT_STATE_ABSENT,
						  &bitmap, sizeof(bitmap));
}

static int free_memory(void)
{
	int err = kvmfault_memory_free(second);

	second = err ? second : NULL;
	return err;
}

static void drop_memory(void)
{
	ck_assert_int_eq(kvmfault_memory_free(second), 0);
	second = NULL;
}

/* Its pages are absent: nobody may read zeros there. */
static void expect_guarded(void)
{
	const struct fake_call *call;
	bool protected = false;
	size_t i;

	for (i = 0; (call = fake_nth(FAKE_MPROTECT, PROT_NONE, i)); i++)
		protected |= call->at == (uintptr_t)place && !call->result;
	ck_assert(protected || fake_registered(place));
	/* What is left open is all that keeps it so. */
	if (!protected)
		ck_assert_int_eq(kvmfault__sys_close(guard), 0);
}

static void have_second_place(void)
{
	place = fake_map(bed.fd);
}

static int add_mapping(void)
{
	struct kvmfault_mapping_options another = {
		.size = sizeof(another), .host = (uintptr_t)place,
	};

	return kvmfault_mapping_add(bed.memory, &another, &mapping);
}

static void have_mapping(void)
{
	have_second_place();
	ck_assert_int_eq(add_mapping(), 0);
	guard = mapping->uffd->fd;
}

static int remove_mapping(void)
{
	return kvmfault_mapping_remove(mapping);
}

static void drop_mapping(void)
{
	ck_assert(fake_registered(place));
	ck_assert_int_eq(remove_mapping(), 0);
}

/* ---- regions ---- */

static int add_region(void)
{
	struct kvmfault_region region = {
		.size = sizeof(region), .gpa = ELSEWHERE, .length = PAGE,
		.memory = second,
		.guest_memfd = 1000,
	};

	return kvmfault_region_add(bed.vm, &region);
}

static void have_region(void)
{
	ck_assert_int_eq(add_region(), 0);
}

static int find(uint64_t gpa)
{
	struct kvmfault_region region = { .size = sizeof(region) };

	return kvmfault_region_find(bed.vm, 0, gpa, &region);
}

static int find_region(void)
{
	return find(BED_GPA);
}

static int find_memslot(void)
{
	struct kvmfault_memslot memslot = { .size = sizeof(memslot) };

	return kvmfault_region_memslot(bed.vm, 0, BED_GPA, &memslot);
}

static int remove_region(void)
{
	return kvmfault_region_remove(bed.vm, 0, ELSEWHERE);
}

static void drop_region(void)
{
	ck_assert_int_eq(find(ELSEWHERE), 0);
	ck_assert_int_eq(remove_region(), 0);
}

/* The bed's stays where it is, another one goes and two come. */
static int replace_regions(void)
{
	const struct kvmfault_region region[] = {
		{ .size = sizeof(region[0]), .gpa = ELSEWHERE, .length = PAGE,
		  .guest_memfd = 1000 },
		{ .size = sizeof(region[0]), .gpa = ELSEWHERE + PAGE,
		  .length = PAGE, .memory = bed.memory },
		{ .size = sizeof(region[0]), .gpa = ELSEWHERE + (1ULL << 30),
		  .length = PAGE, .guest_memfd = 1000 },
	};
	const struct kvmfault_region *list[] = {
		&region[0], &region[1], &region[2],
	};

	return kvmfault_regions_replace(bed.vm, list, 1, list + 1, 2);
}

static void drop_replaced(void)
{
	ck_assert_int_eq(find(ELSEWHERE), -ENOENT);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0, ELSEWHERE + PAGE),
			 0);
	ck_assert_int_eq(kvmfault_region_remove(bed.vm, 0,
						ELSEWHERE + (1ULL << 30)), 0);
}

static void expect_no_region(void)
{
	ck_assert_int_eq(find(ELSEWHERE), -ENOENT);
	have_region();
	drop_region();
}

/* ---- vCPUs ---- */

static int new_vcpu(void)
{
	struct kvmfault_vcpu_options wanted = {
		.size = sizeof(wanted), .fd = fake_fd(FAKE_KVM),
		.run = bed.run,
	};

	return kvmfault_vcpu_new(bed.vm, &wanted, &vcpu);
}

static void have_vcpu(void)
{
	ck_assert_int_eq(new_vcpu(), 0);
}

static int free_vcpu(void)
{
	kvmfault_vcpu_free(vcpu);
	return 0;
}

static void drop_vcpu(void)
{
	free_vcpu();
}

static int new_delegate(void)
{
	struct kvmfault_vcpu_options wanted = {
		.size = sizeof(wanted), .fd = fake_fd(FAKE_KVM),
		.run = bed.run, .profile = KVMFAULT_PROFILE_DELEGATE,
	};

	return kvmfault_vcpu_new(bed.vm, &wanted, &vcpu);
}

static int handled(enum kvmfault_action action)
{
	switch (action) {
	case KVMFAULT_ACTION_RETRY:
		return 0;
	case KVMFAULT_ACTION_INTERRUPTED:
	case KVMFAULT_ACTION_UNFINISHED:
		return -EINTR;
	default:
		ck_assert_int_eq(action, KVMFAULT_ACTION_UNRESOLVED);
		return kvmfault_vcpu_result(bed.vcpu)->error;
	}
}

static int handle_exit(void)
{
	return handled(bed_exit(BED_GPA, 0));
}

static int handle_mmio(void)
{
	return handled(bed_mmio(BED_GPA + 8, 8, true));
}

static siginfo_t marker(void)
{
	return sigbus_info(bed_page(0), BUS_MCEERR_AR, 12);
}

static int handle_sigbus(void)
{
	siginfo_t info = marker();

	return handled(kvmfault_vcpu_handle_sigbus(bed.vcpu, &info));
}

/* Whose SIGBUS is masked does not hear of it from a handler. */
static int note_sigbus(void)
{
	siginfo_t info = marker();

	return kvmfault_vcpu_note_sigbus(bed.vcpu, &info) ? -EINVAL : 0;
}

static int memory_failed(void)
{
	siginfo_t info = marker();

	return kvmfault_vm_handle_sigbus(bed.vm, &info);
}

static void expect_page(void)
{
	ck_assert(bed_has(0, bed_byte(0)));
}

static void expect_written(void)
{
	ck_assert_int_eq(bed_state(0), KVMFAULT__PRESENT);
	ck_assert_int_eq(*bed_page(0), bed_byte(0));
	ck_assert_mem_eq(bed_page(0) + 8, bed.run->mmio.data, 8);
}

/* ---- ensure and discard ---- */

static int ensure(void)
{
	return kvmfault_ensure(bed.vm, 0, BED_GPA, PAGE, true);
}

/* A source that answers later, but before it is asked for the next. */
static int submit(void *arg, struct kvmfault_fetch *fetch, uint64_t offset,
		  void *buffer, size_t length)
{
	(void)arg;
	memset(buffer, bed_byte(offset / PAGE), length);
	kvmfault_fetch_done(fetch, 0);
	return 0;
}

static void have_async_memory(void)
{
	have_place();
	source = (struct kvmfault_source){
		.size = sizeof(source), .name = "later", .submit = submit,
	};
	ck_assert_int_eq(new_memory(), 0);
	have_region();
}

static int ensure_async(void)
{
	return kvmfault_ensure(bed.vm, 0, ELSEWHERE, PAGE, false);
}

static void expect_async(void)
{
	ck_assert_int_eq(*(char *)place, bed_byte(0));
	drop_region();
	drop_memory();
}

static int cancel(void)
{
	return kvmfault_cancel_fetches(bed.vm, 0, BED_GPA, PAGE);
}

/* What the source has there is lost. */
static int ensure_lost(void)
{
	int err;

	bed.source_result = -EHWPOISON;
	err = ensure();
	bed.source_result = 0;
	if (err == -EHWPOISON)
		return bed_state(0) == KVMFAULT__POISONED ? 0 : -EIO;
	return err;
}

static void expect_poisoned(void)
{
	ck_assert_int_eq(bed_state(0), KVMFAULT__POISONED);
	ck_assert(!fake_present(bed.fd, 0));
}

static void have_page(void)
{
	ck_assert_int_eq(ensure(), 0);
}

static int discard(void)
{
	return kvmfault_discard(bed.vm, 0, BED_GPA, PAGE);
}

static void expect_removed(void)
{
	ck_assert_int_eq(bed_state(0), KVMFAULT__DISCARDED);
	ck_assert(!fake_present(bed.fd, 0));
}

static void have_memory_from_a_file(bool minor)
{
	have_place();
	options.minor = minor;
	have_file();
	ck_assert_int_eq(new_source(), 0);
	ck_assert_int_eq(new_memory(), 0);
	have_region();
}

static void have_memory_of_a_file(void)
{
	have_memory_from_a_file(false);
}

/* Where pages are filled in place, and so are read and never shown. */
static void have_memory_to_fill(void)
{
	have_memory_from_a_file(true);
}

static int ensure_second(void)
{
	return kvmfault_ensure(bed.vm, 0, ELSEWHERE, PAGE, false);
}

static void expect_the_files(void)
{
	ck_assert_mem_eq(place, data, PAGE);
	drop_region();
	drop_memory();
}

static void have_anonymous_page(void)
{
	have_anonymous_place();
	ck_assert_int_eq(new_memory(), 0);
	have_region();
	ck_assert_int_eq(ensure_second(), 0);
}

static int discard_second(void)
{
	return kvmfault_discard(bed.vm, 0, ELSEWHERE, PAGE);
}

static void expect_second_removed(void)
{
	ck_assert_int_eq(kvmfault__page_state(second, 0), KVMFAULT__DISCARDED);
	ck_assert_int_eq(*(char *)place, 0);
	drop_region();
	drop_memory();
}

/* ---- what KVM itself touches ---- */

#ifdef __x86_64__

static bool vcpu_calls(struct fake_call *call)
{
	struct kvm_sregs *sregs = call->arg;

	if (call->number != KVM_GET_SREGS && call->number != KVM_GET_REGS &&
	    call->number != KVM_GET_VCPU_EVENTS)
		return false;
	call->result = 0;
	if (call->number == KVM_GET_REGS) {
		memset(call->arg, 0, sizeof(struct kvm_regs));
		return true;
	}
	if (call->number == KVM_GET_VCPU_EVENTS) {
		memset(call->arg, 0, sizeof(struct kvm_vcpu_events));
		return true;
	}
	memset(sregs, 0, sizeof(*sregs));
	sregs->cr0 = 0x80000001;
	sregs->cr3 = BED_GPA;
	return true;
}

/* What it has of entries leads to no memory. */
static void have_table(void)
{
	have_page();
	fake_on(FAKE_IOCTL, vcpu_calls);
}

static int ensure_page_tables(void)
{
	return kvmfault_ensure_page_tables(bed.vcpu);
}

static int ensure_msrs(void)
{
	const struct kvm_msr_entry steal_time = {
		.index = 0x4b564d03, .data = BED_GPA | 1,
	};

	return kvmfault_ensure_msrs(bed.vm, &steal_time, 1, NULL);
}

#else

static int nothing_to_do(void)
{
	int err = kvmfault_ensure_page_tables(bed.vcpu);

	return err ? err : kvmfault_ensure_msrs(bed.vm, NULL, 0, NULL);
}

#endif

/* ---- protection ---- */

static void have_protectable_place(void)
{
	have_place();
	options.minor = options.write_protect = true;
}

static void have_protectable_page(void)
{
	have_place();
	options.write_protect = true;
	ck_assert_int_eq(new_memory(), 0);
	have_region();
	ck_assert_int_eq(ensure_second(), 0);
}

static int protect_second(void)
{
	return kvmfault_protect(bed.vm, 0, ELSEWHERE, PAGE);
}

static void expect_protected(void)
{
	ck_assert(fake_protected(place));
	drop_region();
	drop_memory();
}

static void have_protected_page(void)
{
	have_protectable_page();
	ck_assert_int_eq(protect_second(), 0);
}

static int unprotect_second(void)
{
	return kvmfault_unprotect(bed.vm, 0, ELSEWHERE, PAGE);
}

static int write_second(void)
{
	return kvmfault_ensure(bed.vm, 0, ELSEWHERE, PAGE, true);
}

static void expect_unprotected(void)
{
	ck_assert(!kvmfault__page_protected(second, 0));
	drop_region();
	drop_memory();
}

static void have_protected_page_and_place(void)
{
	have_protected_page();
	place = fake_map(options.fd);
}

static int add_mapping_to_second(void)
{
	struct kvmfault_mapping_options another = {
		.size = sizeof(another), .host = (uintptr_t)place,
	};

	return kvmfault_mapping_add(second, &another, &mapping);
}

static void expect_protected_there_too(void)
{
	ck_assert(fake_protected(place));
	ck_assert_int_eq(remove_mapping(), 0);
	drop_region();
	drop_memory();
}

/* ---- private memory ---- */

static int add_hook(void)
{
	static const struct kvmfault_conversion_hook hook = {
		.size = sizeof(hook),
	};

	return kvmfault_conversion_hook_add(other, &hook);
}

static int convert(void)
{
	return kvmfault_convert(bed.vm, NULL, ELSEWHERE, PAGE, true, NULL);
}

static int is_shared(void)
{
	return kvmfault_is_private(bed.vm, ELSEWHERE);
}

static void expect_private(void)
{
	ck_assert_int_eq(is_shared(), 1);
	ck_assert(fake_private(ELSEWHERE));
	ck_assert_int_eq(kvmfault_convert(bed.vm, NULL, ELSEWHERE, PAGE, false,
					  NULL), 0);
	drop_region();
}

/* ---- the service ---- */

static int make_service(unsigned int threads)
{
	struct kvmfault_service_options wanted = {
		.size = sizeof(wanted), .threads = threads,
	};

	return kvmfault_service_new(bed.vm, &wanted, &service);
}

static int new_service(void)
{
	return make_service(2);
}

static struct kvmfault_fill *fill;

static int make_fill(uint32_t threads)
{
	const struct kvmfault_fill_options wanted = {
		.size = sizeof(wanted), .memories = &bed.memory, .memory_count = 1,
		.threads = threads,
	};

	return kvmfault_fill_new(bed.vm, &wanted, &fill);
}

static int new_fill(void)
{
	return make_fill(2);
}

static void have_fill(void)
{
	ck_assert_int_eq(make_fill(0), 0);
}

static int free_fill(void)
{
	return kvmfault_fill_free(fill);
}

static void drop_fill(void)
{
	ck_assert_int_eq(free_fill(), 0);
}

/* A page that does not come at once comes later: that is no error of the
 * call. */
static int dispatch_fill(void)
{
	int timeout;

	return kvmfault_fill_dispatch(fill, &timeout);
}

static void expect_filled(void)
{
	struct kvmfault_fill_progress now = { .size = sizeof(now) };
	int tries;

	for (tries = 0; tries < 100; tries++) {
		ck_assert_int_eq(dispatch_fill(), 0);
		fake_advance(2000000000);
	}
	ck_assert_int_eq(kvmfault_fill_progress(fill, &now), 0);
	ck_assert(now.over);
	drop_fill();
}

static int steer_fill(void)
{
	struct kvmfault_fill_progress now = { .size = sizeof(now) };

	kvmfault_fill_pause(fill, true);
	kvmfault_fill_set_rate(fill, 1);
	return kvmfault_fill_progress(fill, &now);
}

static int free_service(void)
{
	return kvmfault_service_free(service);
}

static void drop_service(void)
{
	ck_assert_int_eq(free_service(), 0);
}

static int dispatch(void)
{
	return kvmfault_service_dispatch(service);
}

static void have_message(void)
{
	ck_assert_int_eq(make_service(0), 0);
	ck_assert(fake_fault(bed_page(0), true));
}

/* Now, or when it is tried again: the message is not lost. */
static void expect_answered(void)
{
	size_t i;

	for (i = 0; i < 5; i++) {
		fake_advance(SECOND);
		ck_assert_int_eq(dispatch(), 0);
	}
	expect_page();
	drop_service();
}

static void have_parked(void)
{
	have_message();
	bed.source_result = -EAGAIN;
	ck_assert_int_eq(dispatch(), 0);
	ck_assert_uint_eq(bed_stats().deferred, 1);
	fake_forget();
}

static void expect_woken(void)
{
	ck_assert_uint_eq(fake_count(FAKE_IOCTL, UFFDIO_WAKE), 1);
}

/* ---- what makes no call ---- */

static void have_delegate(void)
{
	have_region();
	ck_assert_int_eq(new_delegate(), 0);
}

static int handle_delegated(void)
{
	struct kvmfault_vcpu *own = bed.vcpu;
	int err;

	bed.vcpu = vcpu;
	bed.profile = KVMFAULT_PROFILE_DELEGATE;
	err = handle_exit();
	bed.profile = KVMFAULT_PROFILE_INLINE;
	bed.vcpu = own;
	return err;
}

static int convert_delegated(void)
{
	int err;

	fake_delegated(true);
	err = kvmfault_convert(bed.vm, vcpu, ELSEWHERE, PAGE, true, NULL);
	fake_delegated(false);
	return err;
}

static void expect_delegated(void)
{
	expect_page();
	drop_vcpu();
	drop_region();
}

static void expect_converted(void)
{
	drop_vcpu();
	expect_private();
}

static int names(void)
{
	return *kvmfault_support_str(KVMFAULT_SUPPORT_YES) &&
	       *kvmfault_feature_str(KVMFAULT_FEATURE_UFFD) &&
	       *kvmfault_kind_str(KVMFAULT_KIND_UFFD) &&
	       *kvmfault_access_str(KVMFAULT_ACCESS_READ) &&
	       *kvmfault_cause_str(KVMFAULT_CAUSE_FETCH) &&
	       *kvmfault_delivery_str(KVMFAULT_DELIVERY_UFFD) &&
	       *kvmfault_reason_str(KVMFAULT_REASON_SOURCE) &&
	       *kvmfault_page_str(KVMFAULT_PAGE_ABSENT) &&
	       *kvmfault_verdict_str(KVMFAULT_VERDICT_RESOLVED) &&
	       *kvmfault_action_str(KVMFAULT_ACTION_RETRY) &&
	       *kvmfault_profile_str(KVMFAULT_PROFILE_DELEGATE) &&
	       *kvmfault_log_level_str(KVMFAULT_LOG_ERROR) &&
	       *kvmfault_window_str(KVMFAULT_WINDOW_FIXED) &&
	       *kvmfault_sigbus_str(KVMFAULT_SIGBUS_HANDLER) &&
	       *kvmfault_version() ? 0 : -EINVAL;
}

static int decode(void)
{
	struct kvmfault_fault fault = { .size = sizeof(fault) };
	const char siginfo[128] = { 0 };
	int err = kvmfault_decode(-1, EFAULT, bed.run, &fault);

	return err ? err : kvmfault_decode_siginfo(siginfo, &fault);
}

static int look(void)
{
	struct kvmfault_syscall call = { .size = sizeof(call) };
	struct kvmfault_stats stats = { .size = sizeof(stats) };
	int err = kvmfault_vm_stats(bed.vm, &stats);

	if (!err)
		err = kvmfault_vcpu_stats(bed.vcpu, &stats);
	if (!err)
		err = kvmfault_syscalls(KVMFAULT_PROFILE_INLINE, 0, &call);
	source.size = sizeof(source);
	if (!err)
		err = kvmfault_source_zero(&source);
	if (!err)
		err = kvmfault_source_memory(&call, sizeof(call), &source);
	return err || !kvmfault_vcpu_result(bed.vcpu) ||
	       !kvmfault_resolver_name(bed.vm, 0) ? -EINVAL : 0;
}

static int descriptors(void)
{
	return kvmfault_uffd_fd(uffd) > 0 && kvmfault_service_fd(service) > 0 ?
		0 : -EINVAL;
}

static void have_descriptors(void)
{
	have_uffd();
	ck_assert_int_eq(make_service(0), 0);
}

static void drop_descriptors(void)
{
	drop_uffd();
	drop_service();
}

/* ---- working sets ---- */

static struct kvmfault_working_set *set, *other_set;
static struct kvmfault_recording *recording;
static unsigned char disk[PAGE];

static int new_set(void)
{
	const struct kvmfault_working_set_options what = {
		.size = sizeof(what), .image_length = BED_PAGES * PAGE,
	};

	return kvmfault_working_set_new(&what, &set);
}

static int free_set(void)
{
	int err = kvmfault_working_set_free(set);

	set = NULL;
	return err;
}

static void drop_set(void)
{
	ck_assert_int_eq(free_set(), 0);
}

static int new_recording(void)
{
	const struct kvmfault_recording_options what = {
		.size = sizeof(what), .set = set,
		.memories = &bed.memory, .memory_count = 1,
	};

	return kvmfault_recording_new(bed.vm, &what, &recording);
}

static int end_recording(void)
{
	int err = kvmfault_recording_end(recording);

	recording = err ? recording : NULL;
	return err;
}

static void have_set(void)
{
	ck_assert_int_eq(new_set(), 0);
}

static void have_recording(void)
{
	have_set();
	ck_assert_int_eq(new_recording(), 0);
	bed_resolve(KVMFAULT_KIND_UFFD, 3, true);
}

static void drop_recording(void)
{
	ck_assert_int_eq(end_recording(), 0);
	drop_set();
}

/* With a page. */
static void have_recorded(void)
{
	have_recording();
	ck_assert_int_eq(end_recording(), 0);
	file = fake_new_file(disk, sizeof(disk));
}

static int look_at_set(void)
{
	struct kvmfault_working_set_info info = { .size = sizeof(info) };
	uint64_t offset, length;

	return kvmfault_working_set_describe(set, &info) ?:
	       kvmfault_working_set_run(set, 0, &offset, &length);
}

static int save_set(void)
{
	fake_rewind(file);
	return kvmfault_working_set_save(set, file);
}

static void have_saved(void)
{
	have_recorded();
	ck_assert_int_eq(save_set(), 0);
	drop_set();
}

static int load_set(void)
{
	fake_rewind(file);
	return kvmfault_working_set_load(file, &set);
}

static void expect_saved(void)
{
	drop_set();
	ck_assert_int_eq(load_set(), 0);
	ck_assert_int_eq(look_at_set(), 0);
	drop_set();
}

static void have_two_sets(void)
{
	have_recorded();
	other_set = set;
	have_set();
}

static int merge_sets(void)
{
	return kvmfault_working_set_merge(set, other_set);
}

static void expect_merged(void)
{
	ck_assert_int_eq(look_at_set(), 0);
	drop_set();
	ck_assert_int_eq(kvmfault_working_set_free(other_set), 0);
}

/* ---- all of them ---- */

enum kind {
	RETURNS,	/* what fails is returned, at least some of it */
	COPES,		/* calls fail, and it never does */
	NEVER,		/* it makes no call that could fail */
	SILENT,		/* it makes no call at all */
};

static const struct row {
	const char *name;
	enum kind kind;
	void (*before)(void);
	int (*call)(void);
	void (*after)(void);	/* how it is now, and back */
} rows[] = {
	{ "kvmfault_vm_new", RETURNS, nothing, new_vm, drop_vm },
	{ "kvmfault_vm_new", RETURNS, nothing, new_vm_with_markers, drop_vm },
	{ "kvmfault_vm_error", SILENT, nothing, look_at_error, nothing },
	{ "kvmfault_vm_delivery", SILENT, nothing, look_at_delivery, nothing },
	{ "kvmfault_vm_set_delivery", RETURNS, have_markers, leave_markers,
	  drop_markers },
	{ "kvmfault_memory_alloc", RETURNS, nothing, create_memory,
	  drop_created },
	{ "kvmfault_vm_free", NEVER, have_vm_with_dead_regions, free_vm,
	  nothing },
	{ "kvmfault_resolver_add", SILENT, have_vm, add_resolver, drop_vm },
	{ "kvmfault_probe", COPES, have_kvm, probe, nothing },
	{ "kvmfault_source_file", RETURNS, have_file, new_source, nothing },
	{ "kvmfault_source_over", RETURNS, have_two_sources, new_layers,
	  free_source },
	{ "kvmfault_source_free", SILENT, nothing, free_nothing, nothing },
	{ "kvmfault_source_file", RETURNS, have_block_device, new_source,
	  nothing },
	{ "kvmfault_uffd_new", RETURNS, nothing, new_uffd, drop_uffd },
	{ "kvmfault_uffd_free", NEVER, have_uffd, free_uffd, nothing },
	{ "kvmfault_memory_adopt", RETURNS, have_place, new_memory,
	  drop_memory },
	{ "kvmfault_memory_adopt", RETURNS, have_anonymous_place, new_memory,
	  drop_memory },
	{ "kvmfault_memory_adopt", RETURNS, have_userfault, new_memory,
	  drop_memory },
	{ "kvmfault_memory_adopt", RETURNS, have_protectable_place, new_memory,
	  drop_memory },
	{ "kvmfault_memory_adopt", RETURNS, have_states, new_memory,
	  drop_memory },
	{ "kvmfault_memory_adopt", RETURNS, have_left_states, new_memory,
	  drop_memory },
	{ "kvmfault_memory_free", COPES, have_memory, free_memory,
	  expect_guarded },
	{ "kvmfault_memory_settle", RETURNS, have_all_pages, settle,
	  expect_settled },
	{ "kvmfault_memory_count", SILENT, nothing, count_pages, nothing },
	{ "kvmfault_memory_bitmap", SILENT, nothing, count_pages, nothing },
	{ "kvmfault_mapping_add", RETURNS, have_second_place, add_mapping,
	  drop_mapping },
	{ "kvmfault_mapping_add", RETURNS, have_protected_page_and_place,
	  add_mapping_to_second, expect_protected_there_too },
	{ "kvmfault_mapping_remove", RETURNS, have_mapping, remove_mapping,
	  expect_guarded },
	{ "kvmfault_region_add", RETURNS, nothing, add_region, drop_region },
	{ "kvmfault_region_remove", COPES, have_region, remove_region,
	  expect_no_region },
	{ "kvmfault_regions_replace", RETURNS, have_region, replace_regions,
	  drop_replaced },
	{ "kvmfault_region_find", RETURNS, nothing, find_region, nothing },
	{ "kvmfault_region_memslot", RETURNS, nothing, find_memslot, nothing },
	{ "kvmfault_vcpu_new", RETURNS, nothing, new_vcpu, drop_vcpu },
	{ "kvmfault_vcpu_free", NEVER, have_vcpu, free_vcpu, nothing },
	{ "kvmfault_vcpu_handle", RETURNS, nothing, handle_exit, expect_page },
	{ "kvmfault_vcpu_handle", RETURNS, have_page, handle_exit, expect_page },
	{ "kvmfault_vcpu_handle", RETURNS, nothing, handle_mmio, expect_written },
	{ "kvmfault_vcpu_handle_sigbus", RETURNS, nothing, handle_sigbus,
	  expect_page },
	{ "kvmfault_vm_handle_sigbus", RETURNS, nothing, memory_failed,
	  expect_page },
	{ "kvmfault_ensure", RETURNS, nothing, ensure, expect_page },
#ifdef __x86_64__
	{ "kvmfault_ensure_msrs", RETURNS, nothing, ensure_msrs, expect_page },
	{ "kvmfault_ensure_page_tables", RETURNS, have_table,
	  ensure_page_tables, expect_page },
#else
	{ "kvmfault_ensure_msrs", SILENT, nothing, nothing_to_do, nothing },
	{ "kvmfault_ensure_page_tables", SILENT, nothing, nothing_to_do,
	  nothing },
#endif
	{ "kvmfault_ensure", RETURNS, have_protected_page, write_second,
	  expect_unprotected },
	{ "kvmfault_fetch_done", RETURNS, have_async_memory, ensure_async,
	  expect_async },
	{ "kvmfault_cancel_fetches", RETURNS, nothing, cancel, nothing },
	{ "kvmfault_request_widen", RETURNS, have_memory_of_a_file,
	  ensure_second, expect_the_files },
	{ "kvmfault_request_poison", RETURNS, nothing, ensure_lost,
	  expect_poisoned },
	{ "kvmfault_request_read", RETURNS, have_memory_to_fill,
	  ensure_second, expect_the_files },
	{ "kvmfault_request_data", RETURNS, have_memory_of_a_file,
	  ensure_second, expect_the_files },
	{ "kvmfault_request_install", RETURNS, have_memory_of_a_file,
	  ensure_second, expect_the_files },
	{ "kvmfault_discard", RETURNS, nothing, discard, expect_removed },
	{ "kvmfault_discard", RETURNS, have_page, discard, expect_removed },
	{ "kvmfault_discard", RETURNS, have_anonymous_page, discard_second,
	  expect_second_removed },
	{ "kvmfault_protect", RETURNS, have_protectable_page, protect_second,
	  expect_protected },
	{ "kvmfault_unprotect", RETURNS, have_protected_page, unprotect_second,
	  expect_unprotected },
	{ "kvmfault_convert", RETURNS, have_region, convert, expect_private },
	{ "kvmfault_conversion_hook_add", SILENT, have_vm, add_hook, drop_vm },
	{ "kvmfault_is_private", SILENT, nothing, is_shared, nothing },
	{ "kvmfault_service_new", RETURNS, nothing, new_service,
	  drop_service },
	{ "kvmfault_service_free", COPES, have_parked, free_service,
	  expect_woken },
	{ "kvmfault_service_dispatch", RETURNS, have_message, dispatch,
	  expect_answered },
	{ "kvmfault_service_fd", SILENT, have_descriptors, descriptors,
	  drop_descriptors },
	{ "kvmfault_fill_new", RETURNS, nothing, new_fill, drop_fill },
	{ "kvmfault_fill_dispatch", COPES, have_fill, dispatch_fill,
	  expect_filled },
	{ "kvmfault_fill_progress", NEVER, have_fill, steer_fill, drop_fill },
	{ "kvmfault_fill_pause", NEVER, have_fill, steer_fill, drop_fill },
	{ "kvmfault_fill_set_rate", NEVER, have_fill, steer_fill, drop_fill },
	{ "kvmfault_fill_free", NEVER, have_fill, free_fill, nothing },
	{ "kvmfault_uffd_fd", SILENT, have_descriptors, descriptors,
	  drop_descriptors },
	{ "kvmfault_vcpu_note_sigbus", SILENT, nothing, note_sigbus, nothing },
	{ "kvmfault_decode", SILENT, nothing, decode, nothing },
	{ "kvmfault_decode_siginfo", SILENT, nothing, decode, nothing },
	{ "kvmfault_vm_stats", SILENT, nothing, look, nothing },
	{ "kvmfault_vcpu_stats", SILENT, nothing, look, nothing },
	{ "kvmfault_vcpu_reset", SILENT, nothing, reset, nothing },
	{ "kvmfault_vcpu_result", SILENT, nothing, look, nothing },
	{ "kvmfault_resolver_name", SILENT, nothing, look, nothing },
	{ "kvmfault_source_zero", SILENT, nothing, look, nothing },
	{ "kvmfault_source_memory", SILENT, nothing, look, nothing },
	{ "kvmfault_support_str", SILENT, nothing, names, nothing },
	{ "kvmfault_feature_str", SILENT, nothing, names, nothing },
	{ "kvmfault_kind_str", SILENT, nothing, names, nothing },
	{ "kvmfault_access_str", SILENT, nothing, names, nothing },
	{ "kvmfault_cause_str", SILENT, nothing, names, nothing },
	{ "kvmfault_delivery_str", SILENT, nothing, names, nothing },
	{ "kvmfault_profile_str", SILENT, nothing, names, nothing },
	{ "kvmfault_log_level_str", SILENT, nothing, names, nothing },
	{ "kvmfault_window_str", SILENT, nothing, names, nothing },
	{ "kvmfault_sigbus_str", SILENT, nothing, names, nothing },
	{ "kvmfault_syscalls", SILENT, nothing, look, nothing },
	{ "kvmfault_vcpu_new", RETURNS, nothing, new_delegate, drop_vcpu },
	{ "kvmfault_vcpu_handle", RETURNS, have_delegate, handle_delegated,
	  expect_delegated },
	{ "kvmfault_convert", RETURNS, have_delegate, convert_delegated,
	  expect_converted },
	{ "kvmfault_reason_str", SILENT, nothing, names, nothing },
	{ "kvmfault_page_str", SILENT, nothing, names, nothing },
	{ "kvmfault_verdict_str", SILENT, nothing, names, nothing },
	{ "kvmfault_action_str", SILENT, nothing, names, nothing },
	{ "kvmfault_version", SILENT, nothing, names, nothing },
	{ "kvmfault_working_set_new", RETURNS, nothing, new_set, drop_set },
	{ "kvmfault_working_set_free", NEVER, have_set, free_set, nothing },
	{ "kvmfault_working_set_load", RETURNS, have_saved, load_set,
	  drop_set },
	{ "kvmfault_working_set_save", RETURNS, have_recorded, save_set,
	  expect_saved },
	{ "kvmfault_working_set_describe", SILENT, have_recorded, look_at_set,
	  drop_set },
	{ "kvmfault_working_set_run", SILENT, have_recorded, look_at_set,
	  drop_set },
	{ "kvmfault_working_set_merge", RETURNS, have_two_sets, merge_sets,
	  expect_merged },
	{ "kvmfault_recording_new", RETURNS, have_set, new_recording,
	  drop_recording },
	{ "kvmfault_recording_end", RETURNS, have_recording, end_recording,
	  drop_set },
};
#define ROWS ((int)(sizeof(rows) / sizeof(*rows)))
#define AGAIN 200

/* ---- and what holds for each ---- */

/* All that must be the same after an error. */
struct state {
	long descriptors, mappings, threads, allocations;
	unsigned int vcpus, services, memories, regions;
	bool registered;		/* at place */
	enum kvmfault__state page[BED_PAGES];
	bool present[BED_PAGES];
};

static struct state state(void)
{
	struct fake_held held = fake_held();
	const struct kvmfault_memory *memory = second ? second : bed.memory;
	const struct kvmfault__worker *worker;
	const struct kvmfault__seat *seat;
	struct state now;
	uint64_t i;

	memset(&now, 0, sizeof(now));
	now.descriptors = held.descriptors;
	now.mappings = held.mappings;
	now.allocations = held.allocations;
	now.threads = held.threads;
	now.vcpus = bed.vm->vcpus;
	now.services = bed.vm->services;
	now.memories = bed.vm->memories;
	now.regions = bed.vm->region_count;
	now.registered = place && fake_registered(place);
	for (i = 0; i < BED_PAGES; i++) {
		now.page[i] = kvmfault__page_state(memory, i);
		now.present[i] = fake_present(bed.fd, i * PAGE);
	}
	/* A seat or worker that was made stays: that is no leak. */
	for (worker = bed.vm->workers; worker; worker = worker->next) {
		now.allocations--;
		now.threads--;
	}
	for (seat = atomic_load(&bed.vm->seats); seat; seat = seat->next) {
		now.allocations--;
		now.mappings--;
	}
	for (seat = other ? atomic_load(&other->seats) : NULL; seat;
	     seat = seat->next) {
		now.allocations--;
		now.mappings--;
	}
	return now;
}

static void expect_unchanged(const struct state *before)
{
	struct state now = state();
	uint64_t i;

	/* A page that has come, as a whole, is no harm. */
	for (i = 0; i < BED_PAGES; i++) {
		if (before->page[i] != KVMFAULT__ABSENT ||
		    now.page[i] != KVMFAULT__PRESENT || before->present[i])
			continue;
		ck_assert(bed_has(i, bed_byte(i)));
		now.page[i] = before->page[i];
		now.present[i] = before->present[i];
	}
	/* What could not be swept for want of memory goes with the next. */
	if (bed.vm->leaving || bed.vm->retired)
		now.allocations = before->allocations;
	ck_assert_mem_eq(&now, before, sizeof(now));
}

static unsigned int calls_of(const char *name)
{
	size_t i;

	for (i = 0; i < noted_count; i++)
		if (!strcmp(noted[i].name, name))
			return atomic_load(&noted[i].calls);
	ck_abort_msg("%s is no public function", name);
	return 0;
}

static size_t all_calls(void)
{
	size_t name, n = 0;

	for (name = 0; name < FAKE_NAMES; name++)
		n += fake_count(name, FAKE_ANY);
	return n;
}

/* Once, with the nth call failing. False: there were fewer. */
static bool once(const struct row *row, unsigned int nth, bool *returned)
{
	struct state before;
	size_t calls;
	bool failed;
	int err;

	bed_vm_fd = fake_fd(FAKE_KVM);
	bed_up();
	row->before();
	bed_take_seats();
	before = state();
	calls = all_calls();
	fake_fail_nth(nth);
	err = row->call();
	failed = fake_failed();
	ck_assert_int_le(err, 0);
	ck_assert(failed || !err);
	if (row->kind == SILENT)
		ck_assert_uint_eq(all_calls(), calls);
	bed_give_seats();
	if (err) {
		*returned = true;
		expect_unchanged(&before);
		/* A worker that was left may read it now. */
		if (bed.source_result)
			bed.source_result = 0;
		ck_assert_int_eq(row->call(), 0);
	}
	row->after();
	bed_down();	/* which finds whatever leaked */
	fake_forget();
	return failed;
}

TEST_GROUP(failnth, NULL, NULL);

TEST_EACH(failnth, fail_the_nth, ROWS)
{
	const struct row *row = &rows[_i];
	unsigned int n = 1, calls = calls_of(row->name), again;
	bool returned = false;

	while (once(row, n, &returned))
		ck_assert_uint_lt(++n, CALLS_MAX);
	/* With a worker two threads make calls: whose is the nth is a matter of
	 * time, and one that a wait makes is not returned. */
	for (again = 0; again < AGAIN && row->kind == RETURNS && !returned;
	     again++)
		once(row, 1 + again % n, &returned);
	ck_assert_uint_gt(calls_of(row->name), calls);
	ck_assert_int_eq(returned, row->kind == RETURNS);
	ck_assert_int_eq(n > 1, row->kind == RETURNS || row->kind == COPES);
}

TEST_GROUP(rows, NULL, NULL);

/* Who adds a function adds a row. */
TEST(rows, every_function_has_a_row)
{
	size_t i;
	int row;

	ck_assert_uint_gt(noted_count, 40);
	for (i = 0; i < noted_count; i++) {
		for (row = 0; row < ROWS; row++)
			if (!strcmp(rows[row].name, noted[i].name))
				break;
		ck_assert_msg(row < ROWS, "%s has no row", noted[i].name);
	}
}

int main(void)
{
	return run_suite("failnth");
}
