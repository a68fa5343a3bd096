/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * The model's KVM. In: memslots, attributes, what a guest wants to do next. Out:
 * KVM_RUN: the access is done, and the guest goes on to an exit that is no
 * fault; or one of the ways in which KVM says that it could not be.
 *
 * The guest's linear addresses are its physical ones. An instruction that KVM
 * gives up on is FXSAVE at offset CODE of a page.
 */

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/os/abi.h"
#include "sim.h"

struct kvm kvm;

#define VCPUS 128
static struct vcpu *vcpus[VCPUS];
static unsigned int vcpu_count;
static bool scratch_slot[SLOTS];

void kvm_reset(void)
{
	unsigned int i;

	for (i = 0; i < vcpu_count; i++)
		free(vcpus[i]);
	vcpu_count = 0;
	memset(&kvm, 0, sizeof(kvm));
	memset(scratch_slot, 0, sizeof(scratch_slot));
}

static int add_vcpu(bool library, bool scratch)
{
	struct vcpu *vcpu;
	struct open *open;
	int fd;

	if (vcpu_count == VCPUS)
		sim_fail("the simulator: no more vCPUs", "%d", VCPUS);
	fd = fd_new(KIND_VCPU, library, &open);
	if (fd < 0)
		return fd;
	vcpu = calloc(1, sizeof(*vcpu));
	vcpu->id = kvm.vcpus++;
	vcpu->fd = fd;
	vcpu->sregs.cs.l = 1;
	open->vcpu = vcpu;
	open->count = scratch;
	vcpus[vcpu_count++] = vcpu;
	return fd;
}

int kvm_new_vcpu(struct kvm_run *run)
{
	int fd = add_vcpu(false, false);

	vcpu_of(fd)->run = run;
	return fd;
}

struct vcpu *vcpu_of(int fd)
{
	struct open *open = fd_open(fd);

	return open && open->kind == KIND_VCPU ? open->vcpu : NULL;
}

int kvm_set_slot(unsigned int slot, const struct slot *what)
{
	sim_point();
	kvm.slot[slot] = *what;
	return 0;
}

static struct slot *slot_at(uint64_t gpa)
{
	unsigned int i;

	for (i = 0; i < SLOTS; i++)
		if (kvm.slot[i].used && gpa >= kvm.slot[i].gpa &&
		    gpa - kvm.slot[i].gpa < kvm.slot[i].length)
			return &kvm.slot[i];
	return NULL;
}

void kvm_want(struct vcpu *vcpu, const struct access_wanted *access)
{
	vcpu->now = *access;
	vcpu->wanting = true;
	vcpu->done = false;
}

/* ---- KVM_RUN ---- */

enum { DONE = 1, FAULTS = 2 };		/* beside 0 and -errno of KVM_RUN */

static int exit_mmio(struct vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;

	run->exit_reason = KVM_EXIT_MMIO;
	run->mmio.phys_addr = vcpu->told = vcpu->now.gpa;
	run->mmio.len = 8;
	run->mmio.is_write = vcpu->now.write;
	if (vcpu->now.write)
		memcpy(run->mmio.data, &vcpu->now.value, 8);
	vcpu->mmio = true;
	return 0;
}

static int exit_fault(struct vcpu *vcpu, uint64_t flags)
{
	struct kvmfault__memory_fault *fault = (void *)&vcpu->run->hw;

	vcpu->run->exit_reason = KVMFAULT__EXIT_MEMORY_FAULT;
	fault->flags = flags;
	fault->gpa = vcpu->now.gpa & ~(PAGE - 1);
	fault->size = PAGE;
	vcpu->told = fault->gpa;
	if (kvm.newer) {
		fault->gpa = vcpu->now.gpa;
		fault->size = 8;
	}
	if (kvm.newer && !sched_is_fair() && sim_one_in(4))
		fault->flags |= KVM_FLAG_NOBODY_KNOWS;
	return -EFAULT;
}

static int exit_emulation(struct vcpu *vcpu)
{
	vcpu->run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
	vcpu->run->internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
	vcpu->run->internal.ndata = 0;
	vcpu->ud = true;
	return 0;
}

static int sigbus(uint64_t hva)
{
	siginfo_t *info = &current->sigbus;
	unsigned int page;
	struct map *map = map_at(our_mm, hva, &page);
	unsigned int unit = map && kvm.arm64 ? map->unit : 1;

	if (current->blocked >> (SIGBUS - 1) & 1)
		sim_fail("a vCPU spins at a marker",
			 "SIGBUS is blocked in KVM_RUN");
	/* One at a time: it comes again when that has gone. */
	if (current->pending >> (SIGBUS - 1) & 1)
		return -EINTR;
	memset(info, 0, sizeof(*info));
	info->si_signo = SIGBUS;
	info->si_code = BUS_MCEERR_AR;
	info->si_addr = (void *)(uintptr_t)(hva & ~(PAGE - 1));
	info->si_addr_lsb = (short)__builtin_ctzll(unit * PAGE);
	current->pending |= 1ULL << (SIGBUS - 1);
	return -EINTR;
}

/* Data in the memory's frame. */
static void transfer(struct vcpu *vcpu, frame_t frame)
{
	char *at = frame_bytes(frame) + vcpu->now.gpa % PAGE;

	if (vcpu->now.write)
		memcpy(at, &vcpu->now.value, sizeof(vcpu->now.value));
	else
		memcpy(&vcpu->now.value, at, sizeof(vcpu->now.value));
}

static int touch_private(struct vcpu *vcpu, const struct slot *slot)
{
	struct file *file = slot->guest_memfd;
	unsigned int page = (unsigned int)((slot->guest_memfd_offset +
					    vcpu->now.gpa - slot->gpa) / PAGE);

	if (page >= file->pages || file_fill(file, page))
		return -ENOMEM;
	transfer(vcpu, file->frame[page]);
	return DONE;
}

static bool bit_is_set(const struct slot *slot, uint64_t gpa)
{
	const unsigned long *bitmap = (const void *)(uintptr_t)slot->bitmap;
	uint64_t page = (gpa - slot->gpa) / PAGE;

	return bitmap[page / 64] >> page % 64 & 1;
}

/* What only the proposed ABIs and private memory have; 0: go on. */
static int leave_early(struct vcpu *vcpu, const struct slot *slot)
{
	struct access_wanted *now = &vcpu->now;
	bool private = kvm.private[now->gpa / PAGE % GFNS];
	struct uffd *uffd;
	unsigned int page;
	uint64_t flags;
	frame_t frame;
	struct map *map;

	/* Unless it has just changed. */
	if (slot->guest_memfd && kvm.decides && !sim_one_in(16))
		now->private = private;
	if (slot->guest_memfd && private != now->private)
		return exit_fault(vcpu, now->private ?
				  KVMFAULT__EXIT_FLAG_PRIVATE : 0);
	if (slot->flags & KVMFAULT__MEM_USERFAULT && kvm.abi == 1 &&
	    bit_is_set(slot, now->gpa))
		return exit_fault(vcpu, KVMFAULT__EXIT_FLAG_USERFAULT |
				  (private ? KVMFAULT__EXIT_FLAG_PRIVATE : 0));
	if (slot->guest_memfd && private)
		return touch_private(vcpu, slot);
	if (slot->flags & KVMFAULT__MEM_EXIT_ON_MISSING && kvm.abi == 2) {
		uint64_t hva = slot->host + now->gpa - slot->gpa;

		map = map_at(our_mm, hva, &page);
		/* The fast way only, and for writing, whatever is wanted. */
		if (!map || map->pte[page].kind != PTE_PRESENT ||
		    !map->pte[page].writable ||
		    mm_try(our_mm, hva, true, &frame, &uffd, &flags) !=
		    ACCESS_OK || uffd)
			return exit_fault(vcpu, now->write ?
					  KVMFAULT__EXIT_FLAG_WRITE :
					  KVMFAULT__EXIT_FLAG_READ);
	}
	return 0;
}

/* Is it the other kind of page by now? */
static bool must_leave(const struct vcpu *vcpu, const struct slot *slot)
{
	return slot->guest_memfd && vcpu->now.private !=
	       kvm.private[vcpu->now.gpa / PAGE % GFNS];
}

/* 0 or -errno of KVM_RUN, or DONE. */
static int touch(struct vcpu *vcpu)
{
	const struct access_wanted *now = &vcpu->now;
	const struct slot *slot = slot_at(now->gpa);
	enum access access;
	uint64_t hva;
	frame_t frame;
	int ret;

	if (!slot || (slot->readonly && now->write))
		return now->unknown ? exit_emulation(vcpu) : exit_mmio(vcpu);
	ret = leave_early(vcpu, slot);
	if (ret)
		return ret;
	hva = slot->host + now->gpa - slot->gpa;
	if (now->emulated || kvm.arm64)
		access = mm_copy(our_mm, hva, now->write, &frame);
	else
		access = mm_access(our_mm, hva, now->write, true, &frame);
	switch (access) {
	case ACCESS_OK:
		/* Slots and attributes may have changed while it slept: then
		 * KVM begins anew. */
		if (slot_at(now->gpa) != slot || must_leave(vcpu, slot))
			return touch(vcpu);
		transfer(vcpu, frame);
		return DONE;
	case ACCESS_SIGNAL:
		return -EINTR;
	case ACCESS_POISON:
		if (!now->emulated)
			return sigbus(hva);
		/* fall through */
	default:
		if (now->unknown)
			return exit_emulation(vcpu);
		return now->emulated ? exit_mmio(vcpu) : -EFAULT;
	}
}

/* KVM reads the instruction itself before it knows what it is. */
static int fetch_code(struct vcpu *vcpu)
{
	struct access_wanted operand = vcpu->now;
	int ret;

	vcpu->now.gpa = vcpu->regs.rip;
	vcpu->now.write = false;
	ret = touch(vcpu);
	operand.value = operand.write ? operand.value : 0;
	vcpu->now = operand;
	return ret;
}

/* The guest goes on to its next access, and KVM has nothing to say of it. */
static bool takes_turns(struct vcpu *vcpu)
{
	if (!vcpu->now.turns)
		return false;
	vcpu->now.turns--;
	vcpu->now.private = !vcpu->now.private;
	return true;
}

static int run_guest(struct vcpu *vcpu)
{
	int ret = DONE;

	if (vcpu->now.unknown)
		ret = fetch_code(vcpu);
	while (ret == DONE && (ret = touch(vcpu)) == DONE && takes_turns(vcpu))
		;
	if (ret != DONE)
		return ret;
	vcpu->wanting = false;
	vcpu->done = true;
	vcpu->run->exit_reason = KVM_EXIT_IO;
	return 0;
}

static void complete_mmio(struct vcpu *vcpu)
{
	vcpu->mmio = false;
	vcpu->wanting = false;
	vcpu->done = true;
	if (!vcpu->now.write)
		memcpy(&vcpu->now.value, vcpu->run->mmio.data, 8);
}

static int enter(struct vcpu *vcpu)
{
	if (vcpu->mmio)
		complete_mmio(vcpu);
	if (vcpu->run->immediate_exit)
		return -EINTR;
	if (current->pending & ~current->blocked)
		return -EINTR;
	if (vcpu->ud)
		sim_fail("the guest gets a #UD that it has not earned",
			 "KVM_RUN was entered with one queued");
	vcpu->run->exit_reason = KVM_EXIT_UNKNOWN;
	if (vcpu->wanting)
		return run_guest(vcpu);
	vcpu->run->exit_reason = KVM_EXIT_IO;
	return 0;
}

int kvm_run(struct vcpu *vcpu, int *err)
{
	uint64_t blocked = current->blocked;
	int ret;

	sim_point();
	/* KVM's mutex. */
	while (vcpu->used)
		task_sleep(&vcpu->used, "the vCPU", NEVER, false);
	if (vcpu->masked)
		current->blocked = vcpu->mask;
	ret = enter(vcpu);
	current->blocked = blocked;
	task_handle_signals();
	*err = ret < 0 ? -ret : 0;
	tell("KVM_RUN: %d, exit reason %u", ret, vcpu->run->exit_reason);
	return ret < 0 ? -1 : 0;
}

/* ---- ioctls ---- */

/* A scratch guest whose only page is its page table, which nobody can read. */
static int run_scratch(struct vcpu *vcpu)
{
	/* Of whatever it may come back with: a signal, or that the processor
	 * does not run it. Neither says who walks tables. */
	if (kvm.unlucky && sim_one_in(8)) {
		current->injected++;
		vcpu->run->exit_reason = KVM_EXIT_FAIL_ENTRY;
		return sim_one_in(2) ? -EINTR : 0;
	}
	if (!(vcpu->sregs.cr0 & 0x80000000UL)) {
		vcpu->run->exit_reason = KVM_EXIT_INTERNAL_ERROR;
		return 0;
	}
	if (kvm.two_dimensional)
		return -EFAULT;
	vcpu->run->exit_reason = KVM_EXIT_SHUTDOWN;
	return 0;
}

static int set_scratch_slot(const struct kvmfault__memory_region2 *region,
			    bool two)
{
	if (region->slot >= SLOTS)
		return -EINVAL;
	if (!region->flags)
		return 0;
	if (region->flags != KVMFAULT__MEM_USERFAULT || !kvm.abi)
		return -EINVAL;
	if (kvm.abi == 1 && (!two || region->pad2[0] == UINT64_MAX))
		return -EINVAL;
	if (kvm.abi == 3 && !two)
		return -EINVAL;
	return 0;
}

static int check_extension(uintptr_t capability)
{
	switch (capability) {
	case KVMFAULT__CAP_USER_MEMORY2:
	case KVMFAULT__CAP_MEMORY_FAULT_INFO:
	case KVMFAULT__CAP_GUEST_MEMFD:
		return 1;
	case KVMFAULT__CAP_MEMORY_ATTRIBUTES:
		return 8;
	case KVMFAULT__CAP_PRE_FAULT_MEMORY:
		return kvm.prefault;
	case KVM_CAP_EXIT_ON_EMULATION_FAILURE:
		return 1;
	case KVM_CAP_MULTI_ADDRESS_SPACE:
		return 2;
	}
	return 0;
}

static int set_attributes(const struct kvmfault__memory_attributes *a)
{
	uint64_t gfn = a->address / PAGE, count = a->size / PAGE;

	if (a->flags || !count || (a->address | a->size) % PAGE ||
	    gfn + count > GFNS || a->attributes & ~KVMFAULT__ATTRIBUTE_PRIVATE)
		return -EINVAL;
	memset(kvm.private + gfn, !!a->attributes, count);
	return 0;
}

static int pre_fault(struct vcpu *vcpu, struct kvmfault__pre_fault_memory *range)
{
	uint64_t done = 0;
	int err = 0;

	if (!kvm.prefault)
		return -EINVAL;
	if (!range)
		return -EFAULT;
	if (!range->size || (range->gpa | range->size) % PAGE)
		return -EINVAL;
	while (range->size && !err) {
		struct slot *slot = slot_at(range->gpa);
		frame_t frame;
		uint64_t hva;

		if (!slot)
			return done ? 0 : -ENOENT;
		hva = slot->host + range->gpa - slot->gpa;
		switch (mm_access(our_mm, hva, false, true, &frame)) {
		case ACCESS_OK:
			range->gpa += PAGE;
			range->size -= PAGE;
			done++;
			break;
		case ACCESS_POISON:
			err = done ? 0 : sigbus(hva);
			return err;
		case ACCESS_SIGNAL:
			return done ? 0 : -EINTR;
		default:
			return done ? 0 : -EFAULT;
		}
	}
	(void)vcpu;
	return err;
}

static int set_signal_mask(struct vcpu *vcpu, const char *mask)
{
	vcpu->masked = mask;
	if (mask)
		memcpy(&vcpu->mask, mask + sizeof(uint32_t), sizeof(vcpu->mask));
	return 0;
}

/* Paging is identity; the tables are on a page of their own, see world.c. */
static int translate(struct kvm_translation *t)
{
	t->physical_address = t->linear_address;
	t->valid = 1;
	return 0;
}

static int get_events(const struct vcpu *vcpu, struct kvm_vcpu_events *events)
{
	memset(events, 0, sizeof(*events));
	if (vcpu->ud) {
		events->exception.injected = 1;
		events->exception.nr = 6;
	}
	return 0;
}

static int set_events(struct vcpu *vcpu, const struct kvm_vcpu_events *events)
{
	vcpu->ud = events->exception.injected || events->exception.pending;
	return 0;
}

static int vcpu_ioctl(struct open *open, unsigned long request, void *arg)
{
	struct vcpu *vcpu = open->vcpu;

	switch (request) {
	case KVM_RUN:
		return open->count ? run_scratch(vcpu) : -EBUSY;
	case KVM_SET_SIGNAL_MASK:
		return set_signal_mask(vcpu, arg);
	case KVMFAULT__PRE_FAULT_MEMORY:
		return pre_fault(vcpu, arg);
#ifdef __x86_64__
	case KVM_GET_REGS:
		memcpy(arg, &vcpu->regs, sizeof(vcpu->regs));
		return 0;
	case KVM_GET_SREGS:
		memcpy(arg, &vcpu->sregs, sizeof(vcpu->sregs));
		return 0;
	case KVM_SET_SREGS:
		memcpy(&vcpu->sregs, arg, sizeof(vcpu->sregs));
		return 0;
	case KVM_TRANSLATE:
		return translate(arg);
	case KVM_GET_VCPU_EVENTS:
		return get_events(vcpu, arg);
	case KVM_SET_VCPU_EVENTS:
		return set_events(vcpu, arg);
#endif
	}
	return -EINVAL;
}

static int vm_ioctl(struct open *open, unsigned long request, void *arg)
{
	struct kvmfault__create_guest_memfd *create = arg;
	struct open *new;
	int fd;

	switch (request) {
	case KVM_CHECK_EXTENSION:
		return check_extension((uintptr_t)arg);
	case KVM_CREATE_VCPU:
		return add_vcpu(true, open->count);
	case KVM_SET_USER_MEMORY_REGION:
		return set_scratch_slot(arg, false);
	case KVMFAULT__SET_USER_MEMORY_REGION2:
		return set_scratch_slot(arg, true);
	case KVMFAULT__SET_MEMORY_ATTRIBUTES:
		return set_attributes(arg);
	case KVMFAULT__CREATE_GUEST_MEMFD:
		fd = fd_new(KIND_FILE, true, &new);
		if (fd >= 0)
			new->file = file_new((unsigned int)(create->size / PAGE),
					     false, true);
		return fd;
	}
	return -ENOTTY;
}

int kvm_ioctl(struct open *open, unsigned long request, void *arg)
{
	struct open *new;
	int fd;

	if (open->kind == KIND_VCPU)
		return vcpu_ioctl(open, request, arg);
	if (open->kind == KIND_VM)
		return vm_ioctl(open, request, arg);
	switch (request) {
	case KVM_CREATE_VM:
		fd = fd_new(KIND_VM, true, &new);
		if (fd >= 0)
			new->count = 1;
		return fd;
	case KVM_CHECK_EXTENSION:
		return check_extension((uintptr_t)arg);
	case KVM_GET_VCPU_MMAP_SIZE:
		return sizeof(struct kvm_run);
	}
	return -ENOTTY;
}
