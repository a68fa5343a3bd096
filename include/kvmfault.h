/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

#ifndef KVMFAULT_H
#define KVMFAULT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvmfault-version.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * libkvmfault: answers a guest's memory faults
 * ============================================
 *
 * A virtual machine monitor (VMM) calls kvmfault_vcpu_handle() after every KVM_RUN.
 * The library says whether the guest touched memory that KVM could not reach,
 * turns that into one typed value, makes the fault go away, and says what to
 * do next. Faults of all the others who touch guest memory (the VMM's own
 * threads, device processes, the kernel itself) come through userfaultfd, and
 * take the same path:
 *
 *   entrances                 one path                            result
 *   exit        (annotated) -+
 *   marker      (SIGBUS)     |
 *   bare        (EFAULT)     +-> decode -> translate -> claim      action:
 *   mmio        (in RAM)     |            gpa -> memory  page      retry, not
 *   emulation   (error)      |     -> resolve -> publish        -> a fault,
 *   uffd        (message)    |        chain      state, wakes      unresolved
 *   call        (ensure)    -+
 *
 * The header follows that flow: what the kernel offers (probe), what happened
 * (decode), the context of a VM, where absent pages come from (sources), the
 * memory and its mappings, the guest-physical ranges that show it (regions),
 * who makes a page present (resolvers), vCPUs and handle, the userfaultfd
 * service, ensure and discard, live snapshots (protect), private and shared
 * memory (convert), statistics, names. How a vCPU's missing page gets here is
 * the context's delivery mode.
 *
 * The whole integration of a VMM, in order:
 *
 *   kvmfault_vm_new();  kvmfault_resolver_add() for its own resolvers, if any
 *   kvmfault_memory_adopt() for each block of RAM, before anybody touches it
 *   kvmfault_service_new(), which answers whoever does from now on
 *   kvmfault_region_add(), and then KVM's slot: the guest sees it
 *   kvmfault_vcpu_new() on each vCPU's thread, and then
 *
 *   bool enter = true;
 *   int ret = 0, err = 0;
 *   for (;;) {
 *           if (enter) {
 *                   ret = ioctl(vcpu_fd, KVM_RUN, 0);
 *                   err = errno;
 *           }
 *           enter = true;
 *           switch (kvmfault_vcpu_handle(vcpu, ret, err)) {
 *           case KVMFAULT_ACTION_RETRY:        continue;
 *           case KVMFAULT_ACTION_NOT_A_FAULT:  handle_exit(run); break;
 *           case KVMFAULT_ACTION_UNFINISHED:   enter = false; see_who_kicked(); break;
 *           case KVMFAULT_ACTION_INTERRUPTED:  see_who_kicked(); break;
 *           case KVMFAULT_ACTION_PENDING_UNFINISHED:
 *                   enter = false; wait_for_my_resolver(); break;
 *           case KVMFAULT_ACTION_PENDING:      wait_for_my_resolver(); break;
 *           case KVMFAULT_ACTION_UNRESOLVED:   return kvmfault_vcpu_result(vcpu)->error;
 *           }
 *   }
 *
 * Conventions
 * -----------
 * - Functions return 0 or -errno; `errno` itself is not part of the contract.
 *   On error an output pointer is NULL and nothing has changed. A fault that
 *   nobody resolved is a result, not an error.
 * - -EINVAL is a caller's mistake, -EBUSY something that has to go first,
 *   -EOPNOTSUPP what this kernel, or this object as it was made, can't do. The
 *   context's log says which member or object it is about, and so does
 *   kvmfault_vm_error() to who has no log.
 * - Flags, bits and enumerators that this version does not know are refused
 *   with -EINVAL, never ignored.
 * - Open structs begin with `size_t size`: set it to sizeof the struct. A
 *   shorter one (an older caller's) is accepted, a longer one if what this
 *   library does not know is zero (else -E2BIG). Zero is each field's default.
 * - Descriptors: in a struct, where 0 is each member's default, 0 or less means
 *   "none". 0 is a legal descriptor all the same, of a process that has closed
 *   its standard input: duplicate it first (fcntl(fd, F_DUPFD_CLOEXEC, 1)). A
 *   function's argument is one from 0 on. The library never closes one that it
 *   did not open; whether it keeps a duplicate is said at each.
 * - Sizes, lengths and offsets are bytes. gpa is a guest-physical address, hva
 *   an address in the process that owns the mapping.
 * - Callbacks are called on the calling thread, with none of the library's
 *   locks held: they may take the VMM's own locks and call the library. They
 *   return: no longjmp() leaves them, and no thread is cancelled
 *   (pthread_cancel()) in the library or in a callback of it. The page that it
 *   has in hand would be nobody's. immediate_exit and a signal end a wait.
 * - Thread classes: "any": any number of threads at once. "object": any
 *   thread, but one at a time for one object. "setup": like "any", may take
 *   the context's lock and allocate, and so is not for a vCPU's fault path.
 * - No globals, no environment variables, no signal handlers, no output.
 */

struct kvm_run;			/* linux/kvm.h */
struct kvm_msr_entry;		/* the same, on x86 */
struct kvmfault_converter;	/* below, at "Convert" */

struct kvmfault_vm;		/* the context: all the library knows of a VM */
struct kvmfault_uffd;		/* one process's userfaultfd */
struct kvmfault_memory;		/* guest memory: a backing and its pages */
struct kvmfault_mapping;	/* one place where a memory is mapped */
struct kvmfault_vcpu;		/* one vCPU, for the thread that runs it */
struct kvmfault_service;	/* the threads that answer userfaultfd */
struct kvmfault_fetch;		/* what a source was asked for */
struct kvmfault_failure;

/*
 * Probe: what this kernel offers
 * ------------------------------
 * Each feature is asked of the kernel by the smallest real call, never by its
 * version and never by a capability's number alone: the numbers of patches
 * that were not merged now mean other things. There are three answers, and
 * "could not ask" is not "no".
 */
enum kvmfault_support {
	KVMFAULT_SUPPORT_NOT_ASKED = 0,
	KVMFAULT_SUPPORT_YES = 1,
	KVMFAULT_SUPPORT_NO = 2,
	KVMFAULT_SUPPORT_COULD_NOT_ASK = 3,	/* the finding's error says why */
};

enum kvmfault_feature {
	KVMFAULT_FEATURE_NONE = 0,
	/* KVM, on the VM. KVM_CHECK_EXTENSION and a harmless real call. */
	KVMFAULT_FEATURE_MEMORY_FAULT_INFO = 1,	/* advertised; arm64 has the
						 * exits without saying so */
	KVMFAULT_FEATURE_USER_MEMORY2 = 2,	/* slots with guest_memfd */
	KVMFAULT_FEATURE_GUEST_MEMFD = 3,	/* value: creation flags */
	KVMFAULT_FEATURE_MEMORY_ATTRIBUTES = 4,	/* value: attributes' mask */
	KVMFAULT_FEATURE_PRE_FAULT_MEMORY = 5,	/* asked of a scratch vCPU */
	KVMFAULT_FEATURE_EXIT_ON_EMULATION_FAILURE = 6,
	KVMFAULT_FEATURE_ADDRESS_SPACES = 7,	/* value: how many */
	/* userfaultfd. How one can be had that reports the kernel's own
	 * accesses, which is what KVM's are. */
	KVMFAULT_FEATURE_UFFD_DEVICE = 8,	/* by /dev/userfaultfd */
	KVMFAULT_FEATURE_UFFD_SYSCALL = 9,	/* by userfaultfd(2) */
	KVMFAULT_FEATURE_UFFD = 10,		/* value: UFFD_FEATURE_* */
	/* Missing faults by kind of memory, by registering a page of it;
	 * value: the mask of ioctls that the kernel returned. */
	KVMFAULT_FEATURE_UFFD_ANON = 11,
	KVMFAULT_FEATURE_UFFD_SHMEM = 12,
	KVMFAULT_FEATURE_UFFD_HUGETLB = 13,
	KVMFAULT_FEATURE_UFFD_MINOR_SHMEM = 14,
	KVMFAULT_FEATURE_UFFD_MINOR_HUGETLB = 15,
	KVMFAULT_FEATURE_UFFD_POISON = 16,
	KVMFAULT_FEATURE_UFFD_MOVE = 17,
	/* madvise */
	KVMFAULT_FEATURE_POPULATE_READ = 18,
	KVMFAULT_FEATURE_POPULATE_WRITE = 19,
	/* KVM, asked of a scratch guest. No: KVM walks the guest's page tables
	 * in software, see kvmfault_ensure_page_tables(). */
	KVMFAULT_FEATURE_TWO_DIMENSIONAL_PAGING = 20,
	/* 21, 22: kvmfault-experimental.h */
};
#define KVMFAULT_FEATURE_COUNT 23

struct kvmfault_finding {
	uint32_t support;	/* enum kvmfault_support */
	int32_t error;		/* -errno behind NO and COULD_NOT_ASK, or 0 */
	uint64_t value;		/* as said at the feature, or 0 */
};

struct kvmfault_features {
	size_t size;
	struct kvmfault_finding feature[KVMFAULT_FEATURE_COUNT];
};

/*
 * Ask everything. vm_fd: the VM to ask, borrowed; kvm_fd: /dev/kvm, borrowed,
 * for what needs a scratch VM. Either may be missing (-1): what depends
 * on it is then COULD_NOT_ASK with -EBADF. Nothing stays changed or open.
 *
 * Returns 0; -EINVAL: features is NULL.
 * Thread class: setup. Since 0.1.
 */
int kvmfault_probe(int kvm_fd, int vm_fd, struct kvmfault_features *features);

/*
 * Decode: what happened
 * ---------------------
 * Pure and total: every input gives an answer, no state is kept, nothing is
 * read beyond what the exit defines.
 */
enum kvmfault_kind {
	KVMFAULT_KIND_NONE = 0,	/* not a memory fault */
	KVMFAULT_KIND_EXIT = 1,	/* KVM_EXIT_MEMORY_FAULT */
	KVMFAULT_KIND_MARKER = 2,	/* SIGBUS, BUS_MCEERR_AR: a marker of
					 * ours, or real memory failure: the
					 * page's state tells */
	KVMFAULT_KIND_UNANNOTATED = 3,	/* EFAULT and not a word more */
	KVMFAULT_KIND_MMIO = 4,	/* KVM_EXIT_MMIO, in RAM or not: only
					 * the regions know */
	KVMFAULT_KIND_EMULATION = 5, /* KVM's emulator gave up */
	KVMFAULT_KIND_UFFD = 6,	/* userfaultfd's message */
	KVMFAULT_KIND_CALL = 7,	/* kvmfault_ensure() */
	KVMFAULT_KIND_FAILURE = 8,	/* SIGBUS, BUS_MCEERR_AO: memory failed
					 * that nobody has touched yet */
};
#define KVMFAULT_KIND_COUNT 9

enum kvmfault_access {
	KVMFAULT_ACCESS_UNKNOWN = 0,
	KVMFAULT_ACCESS_READ = 1,
	KVMFAULT_ACCESS_WRITE = 2,
	KVMFAULT_ACCESS_EXEC = 3,
};

/* kvmfault_fault.known: which of the addresses the entrance told */
#define KVMFAULT_KNOWN_GPA	(1U << 0)
#define KVMFAULT_KNOWN_HVA	(1U << 1)
#define KVMFAULT_KNOWN_LENGTH	(1U << 2)

struct kvmfault_fault {
	size_t size;
	enum kvmfault_kind kind;
	enum kvmfault_access access;
	uint32_t known;		/* KVMFAULT_KNOWN_* */
	uint32_t address_space;	/* 0, or 1 for an x86 vCPU in SMM */
	int error;		/* KVM_RUN's errno (EFAULT, EHWPOISON), or 0 */
	/* exit: aligned down to 4 KiB. mmio: to the byte. */
	uint64_t gpa;
	uint64_t hva;
	/* At least what was touched; 4 KiB where the exit says 0; 0 where no
	 * address is known. gpa + length - 1 never wraps. */
	uint64_t length;
	/* As the entrance gave them: KVM_MEMORY_EXIT_FLAG_* of an exit,
	 * UFFD_PAGEFAULT_FLAG_* of a message. Unknown bits are kept. */
	uint64_t flags;
};

/*
 * Decode what KVM_RUN returned. ret, err: its return value and the errno right
 * after it; run: the vCPU's shared page, may be NULL. A record is believed
 * only where the kernel says that it is fresh: KVM_EXIT_MEMORY_FAULT with -1
 * and EFAULT or EHWPOISON, the other exits with 0.
 *
 * fault->size must be set; the fault is filled in any case.
 * Returns 0; -EINVAL: fault is NULL. Thread class: any. Since 0.1.
 */
int kvmfault_decode(int ret, int err, const struct kvm_run *run,
		    struct kvmfault_fault *fault);

/*
 * Decode a SIGBUS. siginfo: the signal's siginfo_t, from a handler (this makes
 * no system call) or sigtimedwait(). What is not a memory failure of this
 * machine's becomes KVMFAULT_KIND_NONE: hand it on untouched.
 *
 * Returns and thread class: as kvmfault_decode(); async-signal-safe. Since 0.1.
 */
int kvmfault_decode_siginfo(const void *siginfo, struct kvmfault_fault *fault);

/*
 * Context
 * -------
 * One for each VM; any number in a process.
 */
enum kvmfault_log_level {
	KVMFAULT_LOG_NONE = 0,
	KVMFAULT_LOG_ERROR = 1,		/* a call failed: why, what to do */
	KVMFAULT_LOG_WARNING = 2,	/* it goes on, but should be known */
};

/* Why bytes of guest memory changed without KVM's dirty log seeing it. */
enum kvmfault_cause {
	KVMFAULT_CAUSE_NONE = 0,
	KVMFAULT_CAUSE_FETCH = 1,	/* a page came from its source */
	KVMFAULT_CAUSE_ZERO = 2,	/* a discarded page came back as zero */
	KVMFAULT_CAUSE_MMIO = 3,	/* a guest's write, by the library */
	KVMFAULT_CAUSE_DISCARD = 4,	/* kvmfault_discard() */
};

struct kvmfault_change {
	size_t size;
	struct kvmfault_memory *memory;
	uint64_t offset;	/* into the memory */
	uint64_t length;
	enum kvmfault_cause cause;
};

/* Memory whose contents are lost. */
struct kvmfault_failure {
	size_t size;
	const struct kvmfault_fault *fault;	/* with the gpa, if that is
						 * KVMFAULT_KNOWN_GPA */
	struct kvmfault_vcpu *vcpu;	/* that touched it; NULL: none has */
	struct kvmfault_memory *memory;	/* or NULL: a guest_memfd's page */
	uint64_t offset;	/* whole pages of the memory, or region */
	uint64_t length;
};

/* Why a fault was not resolved. */
enum kvmfault_reason {
	KVMFAULT_REASON_NONE = 0,
	KVMFAULT_REASON_NO_ADDRESS = 1,	/* bare EFAULT, and it persists */
	KVMFAULT_REASON_NO_REGION = 2,	/* no region there, nobody claimed it */
	KVMFAULT_REASON_DECLINED = 3,	/* no resolver took it */
	KVMFAULT_REASON_FLAGS = 4,	/* flags that no resolver understands */
	KVMFAULT_REASON_SOURCE = 5,	/* the source failed: error */
	KVMFAULT_REASON_RESOLVER = 6,	/* a resolver failed: error */
	KVMFAULT_REASON_STILL_ABSENT = 7,	/* "resolved", and the page is absent */
	KVMFAULT_REASON_NO_PROGRESS = 8, /* resolved again and again */
	KVMFAULT_REASON_HWPOISON = 9,	/* memory failed: EHWPOISON, SIGBUS */
	KVMFAULT_REASON_LOST_MMIO = 10,	/* KVM_RUN was entered although an
					 * access was unfinished */
};

/*
 * Delivery: how a vCPU's missing page gets here. What everybody else misses
 * comes through userfaultfd in every mode, and so does what a mode does not
 * catch: each of them only makes a vCPU faster. The VMM's code is the same.
 */
enum kvmfault_delivery {
	/* KERNEL_EXIT, else MARKER_EXIT where it is allowed, else UFFD. */
	KVMFAULT_DELIVERY_AUTO = 0,
	/* The vCPU sleeps in the kernel until a thread of the service has read
	 * its message and brought the page. */
	KVMFAULT_DELIVERY_UFFD = 1,
	/* KVM_RUN ends with a SIGBUS, and the vCPU's own thread brings the
	 * page: absent pages of the memslots' mapping have a marker
	 * (UFFDIO_POISON, Linux 6.6), once the stretch that they are in was
	 * touched. Only in a memory with a second mapping, which the VMM
	 * itself has to use: who touches a marker in another way than KVM_RUN
	 * gets that SIGBUS too. What KVM itself reads and writes fails where
	 * there is one, see doc/integration.md: so it has to be allowed by
	 * name. */
	KVMFAULT_DELIVERY_MARKER_EXIT = 2,
	/* 3: KVMFAULT_DELIVERY_KERNEL_EXIT of kvmfault-experimental.h */
};
#define KVMFAULT_DELIVERY_COUNT 4

/* kvmfault_vm_options.allow */
/* AUTO may take MARKER_EXIT. */
#define KVMFAULT_ALLOW_MARKER_EXIT (1ULL << 0)
/* MARKER_EXIT also where KVM walks the guest's page tables in software: a table
 * in a marked page would be a page fault that the guest sees. The VMM sees to
 * it that they are present, see kvmfault_ensure_page_tables(). On PVM, where
 * KVM delivers exceptions in software, also the IDT, GDT, TSS and the
 * exceptions' stacks, as far as the registers lead there: a marker there ends
 * the guest. */
#define KVMFAULT_ALLOW_SHADOW_PAGING (1ULL << 1)

/* A fault of a thread that sleeps in the kernel, and that was not resolved. */
struct kvmfault_sleeper {
	size_t size;
	const struct kvmfault_fault *fault;	/* its hva is of the process
						 * that sleeps */
	struct kvmfault_memory *memory;	/* not to be freed in the callback */
	uint64_t offset;	/* the page of the memory */
	uint64_t length;
	/* Of the process; NULL: one of the library's, of this process. */
	struct kvmfault_uffd *uffd;
	enum kvmfault_reason reason;
	int error;		/* -errno */
};

/* What the library tells the VMM. Each may be NULL. */
struct kvmfault_vm_ops {
	size_t size;

	/* What went wrong and what to do about it, one line, no newline: also
	 * of the kvmfault_vm_new() that is given it. For who has none there is
	 * kvmfault_vm_error(). */
	void (*log)(void *data, enum kvmfault_log_level level,
		    const char *message);

	/* The library changed guest memory. Called after the bytes are there;
	 * for a VMM's own dirty tracking. */
	void (*changed)(void *data, const struct kvmfault_change *change);

	/* A fault of a thread that sleeps in the kernel could not be resolved
	 * in as many tries as source_retries says. Nothing can be returned to
	 * that thread: it stays asleep and the library tries again, more and
	 * more slowly, up to once a second, until it works, or the VMM stops the
	 * VM. Called once for each such fault while no more than 256 of them
	 * are put off; those above that may be told again, or not at all. It
	 * holds up one thread of the service. */
	void (*unresolved)(void *data, const struct kvmfault_sleeper *sleeper);

	/* Guest memory has failed: see kvmfault_vcpu_handle_sigbus(). Tell the guest
	 * (a machine check, an SError) and return 0: a vCPU that touched it
	 * then goes on with RETRY. -errno, or no such callback: UNRESOLVED, and
	 * so is a guest that touches it retry_budget times in a row. */
	int (*failed)(void *data, const struct kvmfault_failure *failure);

	/* A page that a vCPU was told PENDING about (see the vCPU's option
	 * no_wait) is not on its way any more: it is there, or has failed. Run
	 * all vCPUs that wait again. It may come for pages that nobody waits
	 * for, and before kvmfault_vcpu_handle() has returned PENDING: note how often
	 * it came before that call. Or a conversion that was in the way of a
	 * vCPU's is over: then memory is NULL, and the range, guest-physical, is
	 * the other conversion's, which the vCPU's page need not be in. It comes
	 * on the thread that has ended it, which may be another vCPU's. */
	void (*page_ready)(void *data, struct kvmfault_memory *memory,
			uint64_t offset, uint64_t length);
};

struct kvmfault_vm_options {
	size_t size;

	/* What the VMM wants to be told of, copied; NULL: nothing. data is each
	 * function's first argument. */
	const struct kvmfault_vm_ops *ops;
	void *data;

	/* ---- KVM ---- */

	/* KVM's descriptor of the VM, borrowed until the context is freed: for
	 * conversions. 0: none. */
	int vm_fd;
	/* /dev/kvm, borrowed during kvmfault_vm_new(): to ask scratch VMs what
	 * KVM does, for the modes that end in an exit. 0: KERNEL_EXIT is not
	 * taken, and MARKER_EXIT only with KVMFAULT_ALLOW_SHADOW_PAGING, which
	 * leaves nothing to be asked. */
	int kvm_fd;

	/* ---- how faults are delivered and tried again ---- */

	/* How missing pages of vCPUs are delivered, and KVMFAULT_ALLOW_*. */
	uint64_t allow;
	enum kvmfault_delivery delivery;

	/* How many times in a row one vCPU's faults may be answered without
	 * progress (a page came, or another exit) before the answer is
	 * UNRESOLVED; from the third on with a pause. 0: 16. What is not
	 * possible now (mappings that change, a source that says -EAGAIN) does
	 * not count: that is tried again, with pauses of 10 ms at most, until a
	 * signal or immediate_exit ends it. */
	uint32_t retry_budget;

	/* How many times a fault whose source failed is tried again before the
	 * VMM hears of it: after 1 ms, and then twice as long each time up to
	 * about a second. Then a vCPU's is UNRESOLVED, SOURCE, and of a thread
	 * that sleeps in the kernel the callback unresolved tells (for which
	 * any failure counts). A signal or immediate_exit ends a vCPU's pause
	 * (INTERRUPTED or UNFINISHED), and what is left of it is waited when the
	 * fault comes again: no try is lost by it, and none is won. A vCPU's is
	 * not tried again after -EHWPOISON, nor with no_wait. 0: 2.
	 * KVMFAULT_NO_RETRIES: none, for a source that tries again by itself.
	 * kvmfault_ensure() asks once. */
	uint32_t source_retries;
#define KVMFAULT_NO_RETRIES UINT32_MAX

	/* After a vCPU's fault has brought a window of pages (see enum
	 * kvmfault_window), have KVM map all of them for the guest, by
	 * KVM_PRE_FAULT_MEMORY on the thread that has answered the fault: the
	 * other pages of it then cost no exit to KVM. With the delegate profile
	 * only after an exit for missing memory. Where the kernel has it
	 * (6.11, x86 with two-dimensional paging), else nothing; only pages
	 * that are present, and not in a region with a guest_memfd.
	 * kvmfault_vcpu_new() asks the vCPU for it, so that is not to run at
	 * that time. */
	bool prefault;

	/* ---- memory and conversions ---- */

	/* The largest page size of any memory: each vCPU, service thread and
	 * caller keeps scratch memory of that size. 0: 2 MiB. */
	uint64_t page_size_max;

	/* How many fetches of sources that answer later may be in flight at
	 * once. Each keeps scratch memory of page_size_max. 0: 64. */
	uint32_t fetches;

	/* How private and shared memory is converted, copied; see "Convert".
	 * NULL: all defaults. */
	const struct kvmfault_converter *converter;
};

/*
 * Make a context. options may be NULL: all defaults.
 * Returns 0; -EINVAL: vm is NULL, page_size_max is not a power of two from
 * 4 KiB to 1 GiB, flags of allow or of the converter or a delivery mode that
 * are not known; -EOPNOTSUPP: the delivery mode can't be had (the log says
 * why); -EBADF: fd is closed; -E2BIG; -ENOMEM; -EMFILE, -ENFILE.
 * Thread class: any. Since 0.1.
 */
int kvmfault_vm_new(const struct kvmfault_vm_options *options,
		    struct kvmfault_vm **vm);

/*
 * Why the calling thread's last call that failed has failed: the line that the
 * log got, which names the member or object, copied into text as far as it fits
 * with its final 0. It stays after calls that succeed, as errno does: ask when
 * a call has returned an error. What a call without a context has to say
 * (kvmfault_vm_new(), kvmfault_source_file()) is not in here: the former has
 * options.log.
 *
 * Returns 0; -EINVAL: vm or text is NULL, size is 0; -ENOENT: there is none, or
 * other threads have had so many errors since that it is lost (eight are kept).
 * Thread class: any. Since 0.1.
 */
int kvmfault_vm_error(const struct kvmfault_vm *vm, char *text, size_t size);

/*
 * Free a context whose objects are all freed; NULL is fine.
 * Returns 0; -EBUSY: a vCPU, service, memory, region or uffd is left, nothing
 * was freed. Thread class: object. Since 0.1.
 */
int kvmfault_vm_free(struct kvmfault_vm *vm);

/* Which mode is in force, and why the others are not. */
struct kvmfault_delivery_report {
	size_t size;
	enum kvmfault_delivery delivery;	/* in force now */
	/* Of each mode, by kvmfault_delivery: could it be had? error: of what
	 * was asked. NOT_ASKED: nobody wanted to know. */
	struct kvmfault_finding mode[KVMFAULT_DELIVERY_COUNT];
	/* Why it is not in force, one line that lives as long as the library;
	 * NULL: it is. */
	const char *why[KVMFAULT_DELIVERY_COUNT];
};

/*
 * Returns 0; -EINVAL: a NULL pointer, no size.
 * Thread class: any. Since 0.1.
 */
int kvmfault_vm_delivery(const struct kvmfault_vm *vm,
			 struct kvmfault_delivery_report *report);

/*
 * Leave the mode that kvmfault_vm_new() has chosen, or take it up again, also
 * while vCPUs run. With UFFD everything arrives at the service from the moment
 * in which this returns, so there has to be one. Kernel interface:
 * MADV_DONTNEED on the memslots' mappings, which takes the markers and no
 * data.
 *
 * Returns 0; -EINVAL: vm is NULL, AUTO or a mode that is not known;
 * -EOPNOTSUPP: one that is neither UFFD nor the chosen one; -ENOMEM; and what
 * madvise(2) said: some markers are left then, and are answered as before.
 * Thread class: setup. Since 0.1.
 */
int kvmfault_vm_set_delivery(struct kvmfault_vm *vm,
			     enum kvmfault_delivery delivery);

/*
 * Sources: where absent pages come from
 * -------------------------------------
 * A source is this struct, filled by the VMM or by one of the functions below,
 * and copied by whoever takes it. data must live as long as its users.
 */
struct kvmfault_source {
	size_t size;
	const char *name;
	/* Read length bytes at offset into buffer: all of them and 0, or
	 * -errno and the buffer does not matter. Called by any number of
	 * threads at once, a vCPU's among them. */
	int (*read)(void *data, uint64_t offset, void *buffer, size_t length);
	void *data;
	/* How many bytes there are; 0: not known, or no end. */
	uint64_t length;
	/* Reads are best in chunks of so many bytes, aligned to them: a
	 * cluster of an image, a network's block. For KVMFAULT_WINDOW_SOURCE.
	 * 0: it does not matter. */
	uint64_t chunk;
	/* In the place of read, for a source that answers later: begin to read
	 * length bytes at offset into buffer, and return at once. 0: then
	 * kvmfault_fetch_done() is called once, by any thread, also before this
	 * returns. -errno: it has not begun; -EAGAIN: and may later. Called by
	 * any number of threads at once, and from kvmfault_fetch_done(). */
	int (*submit)(void *data, struct kvmfault_fetch *fetch,
		      uint64_t offset, void *buffer, size_t length);
	/* It is not wanted any more: end it soon, by kvmfault_fetch_done() all
	 * the same. Optional. May come in any thread, once for each fetch that
	 * submit has begun, and not before that has returned. */
	void (*cancel)(void *data, struct kvmfault_fetch *fetch);
	/* A fetch that takes longer is cancelled, in milliseconds; needs
	 * submit, cancel and a service. 0: none is. */
	uint32_t deadline_ms;
	/* Beside read, for a source that is mapped in this process: where
	 * length bytes at offset are, until the fault is answered. They are
	 * installed from there, without a copy in between. NULL: they are to
	 * be read. What is not there after all (the file
	 * was cut off at the end of a page, and `file` is not set) is an error
	 * of the source's, -EFAULT. Called as read is, and not with
	 * minor faults, which have the bytes read into the file; there read
	 * has to cope with such a file by itself. Optional. */
	const void *(*view)(void *data, uint64_t offset, size_t length);
	/* The file that bytes come from, with the same offsets: of one that is
	 * mapped. In a mapping the last page of a file has zeros behind the
	 * file's end, and nothing says so: only its length tells that it was
	 * cut off there. With this member it is looked at (fstat(2)) before
	 * each read and view, and a page of which something is missing is
	 * -ENODATA. Borrowed for the source's life. 0: none. */
	int file;
};

/*
 * For a source's submit: the bytes are in the buffer (error 0), or are not to
 * be had (-errno; a window is then asked for again, its page alone). Installs
 * the pages, wakes those who wait, and calls what the VMM wants to be told,
 * all on this thread; before submit has returned, on the thread that it was
 * called by. The buffer is the library's again, and so is the fetch: once for
 * each submit that has returned 0. A second call is not heard while the first
 * is seen to, and later would be taken for the answer to what the fetch is
 * used for next. NULL is fine.
 * Thread class: any; not in a signal handler. Since 0.1.
 */
void kvmfault_fetch_done(struct kvmfault_fetch *fetch, int error);

/*
 * A file or block device, by pread(2). fd is borrowed for the source's life. A
 * file that ends too early is -ENODATA at the read.
 * Returns 0; -EINVAL: source is NULL, or its size is not set; -EBADF: fd is not
 * open; -EACCES: it is not open for reading (O_WRONLY, O_PATH); -ESPIPE: not a
 * file or block device; -ENODATA: it is empty; and what fstat(2) said.
 * Thread class: any. Since 0.1.
 */
int kvmfault_source_file(int fd, struct kvmfault_source *source);

/*
 * Memory of this process, such as a mapped snapshot: pages are installed
 * straight from it, but with minor faults (or events, see
 * kvmfault_uffd_options.fd), where it is read, and a file that was cut off is a
 * SIGBUS for who reads. Of a mapped file set source->file
 * afterwards, if bytes is where the file begins: else what is cut off in the
 * middle of a page is zeros to the guest. It is borrowed for the source's
 * life, and is not to be guest memory itself.
 * Returns 0; -EINVAL: a NULL pointer, no length. Thread class: any. Since 0.1.
 */
int kvmfault_source_memory(const void *bytes, uint64_t length,
			   struct kvmfault_source *source);

/* Zeros without end. Returns 0; -EINVAL. Thread class: any. Since 0.1. */
int kvmfault_source_zero(struct kvmfault_source *source);

/*
 * Userfaultfds
 * ------------
 * A VMM needs this section only for its device processes, or if it opens its
 * userfaultfd itself: a memory with a source opens one where it was given none.
 */
struct kvmfault_uffd_options {
	size_t size;
	/* To adopt: a userfaultfd with O_NONBLOCK and UFFDIO_API done, without
	 * UFFD_FEATURE_SIGBUS. One of this process's is asked, by an access of
	 * the kernel's to a page of the library's: it has to report those,
	 * which KVM's are, and so is not made with UFFD_USER_MODE_ONLY. Of
	 * another process's that can't be asked: one with UFFD_USER_MODE_ONLY
	 * will do for a process that touches guest memory itself, while a
	 * system call on it there, as read(2) into it, fails with EFAULT. The
	 * library keeps a duplicate, and reads all its messages: nothing else
	 * may be registered with it. 0: open one of this process's. Events
	 * (UFFD_FEATURE_EVENT_*) in an adopted one make every madvise() and
	 * munmap() of that memory wait until a thread of the service has read
	 * what came before. What the library takes away itself, in
	 * kvmfault_discard() for instance, is read by a thread of its own, which
	 * it makes for each descriptor with events that is not remote
	 * (/proc/self/fdinfo says whether it has them; where that can't be read,
	 * for each). That thread needs what SERVICE threads do of the kernel,
	 * and calls back nothing but log, in which kvmfault_discard(), for
	 * instance, is then -EDEADLK. For anonymous memory of such a descriptor
	 * what is installed is copied once more, as for minor faults: a source's
	 * view is not asked for. A REMOVE event of anonymous memory says
	 * what kvmfault_discard() does: once that MADV_DONTNEED has returned
	 * those pages are zero, also those that were being fetched. While it has
	 * not, the kernel installs nothing by that descriptor: faults are tried
	 * again, kvmfault_ensure() says -EAGAIN. After MADV_FREE they are zero
	 * when the kernel has taken them. */
	int fd;
	/* Whose address space it is: another process's that sent it here. One
	 * such object for each process. */
	bool remote;
};

/*
 * Returns 0; -EINVAL: vm or uffd is NULL, remote without fd, fd without
 * O_NONBLOCK or UFFDIO_API, or one that is not remote and does not report what
 * the kernel touches, or takes no memory of this process; -EOPNOTSUPP: the
 * kernel's has another API; -EBADF: fd is closed; -EAGAIN: no more threads,
 * which it takes one of to ask an fd, and keeps one if that has events; -EPERM:
 * no right to userfaultfd (the log says how to get it); -ENOSYS: kernel without
 * it; -ENOSPC: there are 4,095; -E2BIG; -ENOMEM; -EMFILE, -ENFILE.
 * Thread class: setup. Since 0.1.
 */
int kvmfault_uffd_new(struct kvmfault_vm *vm,
		      const struct kvmfault_uffd_options *options,
		      struct kvmfault_uffd **uffd);

/*
 * The library's own descriptor of it, to be polled or duplicated by the VMM;
 * not to be closed. Returns it, or -EINVAL: uffd is NULL.
 * Thread class: any. Since 0.1.
 */
int kvmfault_uffd_fd(const struct kvmfault_uffd *uffd);

/* Close the library's duplicate, unless mremap() has moved memory that is
 * registered with it. NULL is fine. Returns 0; -EBUSY: a mapping uses it;
 * -EDEADLK: in the log callback, on its own thread (see fd above).
 * Thread class: setup. Since 0.1. */
int kvmfault_uffd_free(struct kvmfault_uffd *uffd);

/*
 * Memory and its mappings
 * -----------------------
 * A memory is one backing (a memfd, a hugetlbfs file, or anonymous memory) and
 * the state of each of its pages. It outlives the memslots that show it. With
 * a source it is *tracked*: its pages start absent, exactly one thread fetches
 * a page, however many fault on it, and whichever way they come. Without one
 * the library makes present what the host can make present.
 *
 * The first mapping is the memslots' (their userspace_addr): pages are
 * installed through it. Any number of others may follow: the VMM's own, one
 * for each device process.
 *
 * All who touch guest memory do so through a mapping that is known. write(2) to
 * the file asks nobody: into an absent page it puts its bytes and zeros around
 * them, and that page never comes from the source; read(2) of the file has
 * zeros there. So kvmfault_ensure() the pages before, whoever writes or reads
 * by the descriptor. The library does not seal its file against that: with
 * F_SEAL_FUTURE_WRITE nobody can map it for writing any more, as device
 * processes do, nor discard a page of it.
 *
 * Do not move a mapping by mremap(): remove it, or free the memory, before.
 * What was moved stays registered, so that absent pages do not read as zero
 * there, but none comes any more: who misses one sleeps, also after
 * kvmfault_memory_free(), which then leaves a descriptor open for that.
 * mremap() waits until the service has read of it, and the log has an ERROR.
 * With an adopted userfaultfd that needs UFFD_FEATURE_EVENT_REMAP; without,
 * what was moved reads zeros and nobody is told.
 */

/* How many pages one fault brings: the run of absent pages around it, within
 * a window. Never past its region, never over a page that is present, discarded
 * or being fetched; if the source fails for the run, the page is fetched alone.
 * It costs one read of the source and one call of the kernel. */
enum kvmfault_window {
	KVMFAULT_WINDOW_NONE = 0,	/* the page alone */
	KVMFAULT_WINDOW_FIXED = 1,	/* the aligned block of window_length */
	KVMFAULT_WINDOW_ADAPTIVE = 2,	/* twice as many each time while faults
					 * walk up or down through the memory,
					 * up to window_length; else one */
	KVMFAULT_WINDOW_SOURCE = 3,	/* the source's chunk */
};

struct kvmfault_memory_options {
	size_t size;
	/* The memslots' mapping in this process, and its length. */
	void *host;
	uint64_t length;
	/* The backing's: a hugetlbfs file's, else the host's, which is also
	 * what 0 means. */
	uint64_t page_size;
	/* The file behind it, borrowed until the memory is freed, and where
	 * host is in it, mapped MAP_SHARED. 0: private anonymous memory. What
	 * is mapped in another way is refused, as far as /proc/self/maps
	 * tells; where that can't be opened this is believed. */
	int fd;
	uint64_t fd_offset;
	/* Where absent pages come from, copied; NULL: not tracked. */
	const struct kvmfault_source *source;
	uint64_t source_offset;
	/* The userfaultfd to register host with; only with a source. NULL: one
	 * of its own. */
	struct kvmfault_uffd *uffd;
	/* What a fault brings with it. window_length: whole pages, up to the
	 * context's page_size_max; 0: 64 KiB, or a page where that is more. */
	enum kvmfault_window window;
	uint64_t window_length;
	/* Minor faults: pages are written to the file through a mapping of the
	 * library's own, and mapped where they are wanted (UFFDIO_CONTINUE). It
	 * allows a file with pages in it (they do not count: the source's
	 * replace them), and pages larger than page_size_max. Needs a memfd or
	 * hugetlbfs file and a source. */
	bool minor;
	/* Its pages can be protected, see "Protect": its mappings are registered
	 * for that too. Needs a source (kvmfault_source_zero() will do), and
	 * for a file Linux 5.19, with minor faults 6.4. */
	bool write_protect;
	/* Children of fork() get it mapped. By default they do not
	 * (MADV_DONTFORK, which stays when the memory is freed): a child's
	 * mapping is not registered, so what it merely reads there becomes
	 * zeros, for the guest too. Only for a child that registers it before
	 * it touches it, and hands over that userfaultfd. */
	bool inherited;
};

/*
 * Take a memory into the library's care. With a source the range must be
 * empty (unless it has minor faults): what already has a page would never be
 * missed, and so never fetched.
 *
 * Returns 0;
 * -EINVAL: vm, host or memory is NULL; not aligned to the page size; a file
 *   that is too short, or is not what is mapped at host; a page size that is
 *   not the backing's, or larger than the context's page_size_max; a range
 *   that wraps; a uffd of another process or context, or without a source; a
 *   window that is not known, or its length; minor faults without a file or a
 *   source; protection without a source; a source with neither read nor
 *   submit;
 * -EOPNOTSUPP: memory that this kernel's userfaultfd does not take: a
 *   guest_memfd, for minor faults before 5.13 (of a memfd 5.14), for protection
 *   before 5.19, for both before 6.4;
 * -ENODATA: the source is shorter than the memory;
 * -EEXIST: there are pages already (preallocated blocks), or another memory
 *   of this context has a part of this host range;
 * -EBADF; -EPERM, -ENOSYS: no userfaultfd, see kvmfault_uffd_new(); -EBUSY:
 *   the range is registered with another userfaultfd; -ENOMEM: also a range
 *   that is not mapped; -ENOSPC: 4,095 userfaultfds; -E2BIG; -EMFILE, -ENFILE;
 *   and what fstat(2) said of the file.
 * Thread class: setup. Since 0.1.
 */
int kvmfault_memory_adopt(struct kvmfault_vm *vm,
			const struct kvmfault_memory_options *options,
			struct kvmfault_memory **memory);

/* What kvmfault_memory_alloc() has made: it is the caller's. */
struct kvmfault_memory_maps {
	size_t size;
	void *memslots;		/* for the memslots' userspace_addr */
	void *own;		/* for whatever else this process does with it */
	int fd;			/* the file: the one that was given, or a new
				 * one; other processes can map it. Not to be
				 * written by write(2): see above */
};

/*
 * Memory in one call: map a memfd or hugetlbfs file twice, once for the
 * memslots and once for the VMM itself, and take both into care, as the
 * delivery mode needs it. options as for kvmfault_memory_adopt(), with host
 * NULL. fd 0: the library makes a memfd, of huge pages if page_size is one of
 * theirs. Other pages are asked to stay small (MADV_NOHUGEPAGE), so that they
 * come one by one.
 *
 * The memory borrows both mappings and the file. Unmap and close them after
 * kvmfault_memory_free(), and after the memslots that name them are gone.
 *
 * Returns as kvmfault_memory_adopt(), and -EINVAL: maps is NULL, host is not;
 * -EOPNOTSUPP: this kernel makes no memfd with pages of page_size; and what
 * mmap(2), memfd_create(2) and ftruncate(2) said.
 * Thread class: setup. Since 0.1.
 */
int kvmfault_memory_alloc(struct kvmfault_vm *vm,
			   const struct kvmfault_memory_options *options,
			   struct kvmfault_memory_maps *maps,
			   struct kvmfault_memory **memory);

/*
 * Let go of a memory, fail-closed; NULL is fine. Waits for fetches in flight
 * to end (their pages are installed). Then, where pages are still absent, each
 * of its mappings in this process becomes PROT_NONE, so that nobody ever reads
 * a zero page in place of one that was not fetched; then the mappings are
 * unregistered. Another process's mappings with absent pages cannot be
 * protected from here: their pages are poisoned, and where the kernel cannot
 * do that they stay registered until their uffd is freed.
 *
 * Returns 0; -EBUSY: a region shows it; -EDEADLK: called from a callback that
 * is fetching for it. Thread class: setup. Since 0.1.
 */
int kvmfault_memory_free(struct kvmfault_memory *memory);

struct kvmfault_mapping_options {
	size_t size;
	/* Where the whole memory is mapped, in the process that uffd is of. */
	uint64_t host;
	/* Registered for missing pages and served; only for a memory with a
	 * source. NULL: it is mapped in this process, with one of its own. */
	struct kvmfault_uffd *uffd;
	/* As a memory's. */
	bool inherited;
};

/*
 * Add a mapping to a memory, also while vCPUs run. Nobody touches it before
 * this has returned.
 * Returns 0; -EINVAL: a NULL pointer, misaligned host, anonymous memory (it
 * has one mapping), another file, another part of it or a private mapping of it
 * there (as a memory's: of another process's nobody knows), a uffd of another
 * context, or for a memory without a source; -EOPNOTSUPP: this kernel's
 * userfaultfd does not take what is mapped there; -EEXIST: another mapping is
 * known there; -EBUSY: registered with another userfaultfd; -ENOMEM: also a
 * range that is not mapped, or a process that is gone; -EPERM, -ENOSYS: no
 * userfaultfd, see kvmfault_uffd_new(); -ENOSPC: 4,095 userfaultfds; -EMFILE,
 * -ENFILE; -E2BIG.
 * Thread class: setup. Since 0.1.
 */
int kvmfault_mapping_add(struct kvmfault_memory *memory,
			 const struct kvmfault_mapping_options *options,
			 struct kvmfault_mapping **mapping);

/* Remove a mapping (not the memslots'), fail-closed as kvmfault_memory_free().
 * NULL is fine. It does not wait for a fault of it that is in progress.
 * Returns 0; -EINVAL: it is the memslots'; -ENOMEM.
 * Thread class: setup. Since 0.1. */
int kvmfault_mapping_remove(struct kvmfault_mapping *mapping);

/*
 * Regions: what the guest sees where
 * ----------------------------------
 * A region is a guest-physical range that shows a part of a memory: what a
 * memslot is. Several may show the same memory (aliases, SMM).
 */
#define KVMFAULT_REGION_READONLY (1U << 0)	/* ROM: a guest's write to it
						 * is MMIO, and no fault */

struct kvmfault_region {
	size_t size;
	uint64_t gpa;
	uint64_t length;
	uint32_t address_space;
	uint32_t flags;		/* KVMFAULT_REGION_* */
	/* For private memory: the file and where the region is in it.
	 * Borrowed until the region is removed. 0: none. */
	int guest_memfd;
	uint64_t guest_memfd_offset;
	/* What is shown, from which offset on. NULL: guest_memfd only; its
	 * faults go to the VMM's own resolvers. */
	struct kvmfault_memory *memory;
	uint64_t offset;
};

/*
 * Add a region, also while vCPUs run; copied.
 * Returns 0; -EINVAL: a NULL pointer, not aligned to 4 KiB, empty, a range that
 * wraps or goes past the memory's end, no memory and no guest_memfd, an
 * address space over 4,095, flags that are not known, a memory of another
 * context; -EEXIST: overlaps another region; -ENOMEM; -E2BIG.
 * Thread class: setup. Since 0.1.
 */
int kvmfault_region_add(struct kvmfault_vm *vm,
			const struct kvmfault_region *region);

/*
 * Remove the region that begins at gpa, also while vCPUs run. Does not wait for
 * a fetch in flight: it goes on and is installed, since it is the memory's;
 * whoever waits for it is answered. After this returns no new fault finds the
 * region, and the library does not touch its guest_memfd.
 * Returns 0; -EINVAL: vm is NULL; -ENOENT: no region begins there.
 * Thread class: setup. Since 0.1.
 */
int kvmfault_region_remove(struct kvmfault_vm *vm, uint32_t address_space,
			   uint64_t gpa);

/*
 * Lay the guest's memory anew, also while vCPUs run: the regions that begin
 * where those of `remove` do go (gpa and address_space say which, their other
 * members nothing), and those of `add` come, in ascending order of
 * address_space and gpa. `removed` and `added` say how many pointers each list
 * has; a list of none may be NULL. All at once: who looks finds what was there before or what is
 * there now, and where both have a region always one. It costs what a single
 * region does, and so is for whoever changes many: a VMM that collects its
 * changes calls this when they are committed. Call it when the old ranges'
 * slots are gone and before the new ones' are set. After it returns the library
 * does not touch the guest_memfds of those that went. The structs are copied.
 *
 * Returns 0, or on error, when nothing has changed: -EINVAL: a NULL pointer,
 * not in that order, or as kvmfault_region_add(); -ENOENT: no region begins
 * where one is to go, or it is named twice; -EEXIST: one that comes overlaps
 * another one that comes or stays; -ENOMEM; -E2BIG.
 * Thread class: setup. Since 0.1.
 */
int kvmfault_regions_replace(struct kvmfault_vm *vm,
			     const struct kvmfault_region *const *remove,
			     size_t removed,
			     const struct kvmfault_region *const *add,
			     size_t added);

/*
 * The region that contains gpa. region->size must be set.
 * Returns 0; -EINVAL; -ENOENT: none; -ENOMEM.
 * Thread class: any. Since 0.1.
 */
int kvmfault_region_find(struct kvmfault_vm *vm, uint32_t address_space,
			 uint64_t gpa, struct kvmfault_region *region);

/*
 * Resolvers: who makes a page present
 * -----------------------------------
 * An ordered chain: the VMM's own, in the order in which they were added, then
 * the library's "copy" (absent pages: read the source, and UFFDIO_COPY),
 * "async" (of a source that answers later), "continue" (in a memory with minor
 * faults: UFFDIO_CONTINUE), "zero" (discarded pages: UFFDIO_ZEROPAGE),
 * "populate" (present or untracked pages: MADV_POPULATE_READ/WRITE), "convert"
 * (private pages that are to be shared, and the other way) and "unprotect"
 * (protected pages: has nothing to save). Each is asked in turn until one does
 * not decline.
 */
enum kvmfault_page {
	KVMFAULT_PAGE_UNTRACKED = 1,	/* memory without a source, or none */
	KVMFAULT_PAGE_ABSENT = 2,	/* never fetched; claimed for us */
	KVMFAULT_PAGE_DISCARDED = 3,	/* discarded: zero; claimed */
	KVMFAULT_PAGE_PRESENT = 4,	/* was installed, and faults again */
	KVMFAULT_PAGE_POISONED = 5,	/* its data is lost */
	KVMFAULT_PAGE_UNCONVERTED = 6,	/* private, and the guest wants it
					 * shared, or the other way: see
					 * "Convert". Nothing is claimed */
	KVMFAULT_PAGE_PROTECTED = 7,	/* present, and about to be written or
					 * discarded: save it, see "Protect" */
};

enum kvmfault_verdict {
	KVMFAULT_VERDICT_DECLINED = 0,	/* not mine: ask the next */
	KVMFAULT_VERDICT_RESOLVED = 1,	/* it is there: run the vCPU */
	KVMFAULT_VERDICT_LATER = 2,	/* being worked on elsewhere: do not run the
				 * vCPU before the VMM knows that it is done */
};

/* What a resolver is asked. Valid during the call. */
struct kvmfault_request {
	size_t size;
	const struct kvmfault_fault *fault;
	/* NULL: the gpa is in no region (then nothing below is set), or the
	 * fault came by an hva. */
	const struct kvmfault_region *region;
	struct kvmfault_memory *memory;	/* or NULL: guest_memfd only */
	enum kvmfault_page page;
	/* The range to resolve: the page of the memory, or a run of them after
	 * kvmfault_request_widen(). Without a memory 4 KiB of the region. */
	uint64_t offset;		/* into the memory, or the region */
	uint64_t length;
	void *host;			/* in the memslots' mapping, or NULL; a
					 * protected page's to be read, maybe
					 * in a mapping of the library's own */
	/* Where data can be written before it is installed: scratch memory of
	 * this thread, the context's page_size_max bytes; with minor faults
	 * the file's own pages, of length bytes, to be written by
	 * kvmfault_request_read() alone. */
	void *buffer;
};

struct kvmfault_resolver {
	size_t size;
	const char *name;
	/* Which pages it is for: bits (1U << KVMFAULT_PAGE_*). 0: all. */
	uint32_t pages;
	/* The fault flags that it understands. A fault with others is not
	 * given to it: what is not understood fails closed. Those by which a
	 * slot's flag of kvmfault_region_memslot() shows need not be named. */
	uint64_t flags;
	/* Returns a kvmfault_verdict, or -errno: it was mine and it failed.
	 * May be called by any number of threads at once. */
	int (*resolve)(void *data, struct kvmfault_request *request);
	void *data;
};

/*
 * Append a resolver to the VMM's part of the chain; copied, name included by
 * pointer. Before the first vCPU handle and the service.
 * Returns 0; -EINVAL: NULL pointer, no resolve function or name, kinds of pages
 * that are not known; -EBUSY: a vCPU handle or a service exists; -ENOSPC:
 * there are KVMFAULT_RESOLVER_COUNT; -E2BIG. Thread class: setup. Since 0.1.
 */
int kvmfault_resolver_add(struct kvmfault_vm *vm,
			  const struct kvmfault_resolver *resolver);
#define KVMFAULT_RESOLVER_COUNT 16

/* The name of the resolver at index of the chain, or NULL past its end.
 * Thread class: any. Since 0.1. */
const char *kvmfault_resolver_name(const struct kvmfault_vm *vm,
				   unsigned int index);

/*
 * For resolvers: what the request's range has to hold, into buffer: the
 * source's bytes, or zeros for a discarded page.
 * Returns 0; -EINVAL: nothing is claimed; -EOPNOTSUPP: the source only answers
 * later; or what the source returned.
 * Thread class: as the request. Since 0.1.
 */
int kvmfault_request_read(struct kvmfault_request *request, void *buffer);

/*
 * For resolvers: the same, wherever it is: *data is where the source shows it
 * (see view), or else what was read into request->buffer; for
 * kvmfault_request_install() until the resolver returns.
 * Returns 0; -EINVAL: nothing is claimed, data is NULL; -EOPNOTSUPP: the source
 * only answers later; or what the source returned. Then *data does not matter.
 * Thread class: as the request. Since 0.1.
 */
int kvmfault_request_data(struct kvmfault_request *request, const void **data);

/*
 * For resolvers: claim the page's neighbours too, as the memory's window says
 * (nothing, unless the page is absent). The request's offset, length and host
 * are then those of the whole run; if reading it fails, the request is the page
 * alone again and is read so.
 * Returns 0; -EINVAL: nothing is claimed.
 * Thread class: as the request. Since 0.1.
 */
int kvmfault_request_widen(struct kvmfault_request *request);

/*
 * For resolvers: install data as the claimed pages, atomically for each page,
 * through the memslots' mapping (UFFDIO_COPY, or UFFDIO_CONTINUE with minor
 * faults); NULL, for a discarded page: zeros. A page that has come
 * meanwhile is left as it is, and that is success; so is a run of which the
 * page that faulted came.
 * Returns 0; -EINVAL: nothing is claimed, NULL for an absent page; -EAGAIN:
 * the mappings are changing, the fault will come again; -ENOENT: not mapped
 * any more; -ESRCH; -ENOMEM; -EHWPOISON; -EFAULT: data can't be read (with minor
 * faults or events it is a signal).
 * Thread class: as the request. Since 0.1.
 */
int kvmfault_request_install(struct kvmfault_request *request,
			     const void *data);

/*
 * For resolvers: what the claimed page holds is lost (the source says
 * -EHWPOISON). Poison it in each mapping (UFFDIO_POISON): who touches it gets
 * SIGBUS from now on, and a vCPU's fault is one of failed memory. The library's
 * own do so. kvmfault_discard() makes it usable again.
 * Where nothing is mapped any more, or the process is gone, nobody reads.
 * Returns 0; -EINVAL: nothing is claimed, or it was installed; -EOPNOTSUPP: a
 * kernel before 6.6; -EAGAIN: the mappings are changing; -ENOMEM.
 * Thread class: as the request. Since 0.1.
 */
int kvmfault_request_poison(struct kvmfault_request *request);

/*
 * vCPU
 * ----
 */
/* How the SIGBUS of MARKER_EXIT gets from KVM_RUN to kvmfault_vcpu_handle(). It has
 * to be delivered there: blocked, it would leave the vCPU spinning in the
 * kernel. */
enum kvmfault_sigbus {
	/* The thread blocks SIGBUS, the library unblocks it in KVM_RUN alone
	 * (KVM_SET_SIGNAL_MASK), and fetches it with sigtimedwait(2). There is
	 * no handler. */
	KVMFAULT_SIGBUS_MASKED = 0,
	/* The VMM's own handler calls kvmfault_vcpu_note_sigbus(). */
	KVMFAULT_SIGBUS_HANDLER = 1,
};

/* Who makes the system calls for a vCPU, see kvmfault_syscalls(). */
enum kvmfault_profile {
	KVMFAULT_PROFILE_INLINE = 0,	/* its own thread does all */
	/* A worker does: a thread of the library's, one for each such vCPU. The
	 * vCPU's thread uses private futexes and nothing else. For VMMs that
	 * give these threads a narrow filter. The VMM's callbacks then come on
	 * the worker, where no signal ends them, but for changed after a
	 * guest's MMIO write: the vCPU's thread copies its bytes. */
	KVMFAULT_PROFILE_DELEGATE = 1,
	/* Not a vCPU's, for kvmfault_syscalls() only. A thread of the service;
	 * and one that calls what is of the thread class "any", like
	 * kvmfault_ensure(), _discard(), _protect(), _convert() without a
	 * vcpu. */
	KVMFAULT_PROFILE_SERVICE = 2,
	KVMFAULT_PROFILE_CALLER = 3,
};

struct kvmfault_vcpu_options {
	size_t size;
	int fd;			/* KVM's descriptor of it, borrowed */
	struct kvm_run *run;	/* its shared page, borrowed */
	/* Do not wait for a page that is on its way: kvmfault_vcpu_handle() returns
	 * PENDING or PENDING_UNFINISHED, and the context's callback settled
	 * tells when to go on. */
	bool no_wait;
	/* With MARKER_EXIT: the signals that the VMM has blocked in KVM_RUN by
	 * a KVM_SET_SIGNAL_MASK of its own: bit n - 1 is signal n. NULL: it
	 * has not, and those count that the calling thread blocks. With
	 * KVMFAULT_SIGBUS_MASKED the library sets that mask without SIGBUS,
	 * and as it was when the handle is freed. */
	const uint64_t *signal_mask;
	/* And the way of SIGBUS. */
	enum kvmfault_sigbus sigbus;
	/* Who makes the system calls of its faults. */
	enum kvmfault_profile profile;
};

/*
 * With MARKER_EXIT it is called by the vCPU's thread, or by one with the same
 * signal mask: a vCPU whose SIGBUS would not get through is refused. If there
 * is memory with a source and no service yet, the log has a warning of it,
 * once.
 *
 * Returns 0; -EINVAL: a NULL pointer, an unknown way of SIGBUS or
 * profile; with MARKER_EXIT
 * SIGBUS is not blocked, or for KVMFAULT_SIGBUS_HANDLER it is, or has no
 * handler, or the profile is delegate and it is not KVMFAULT_SIGBUS_HANDLER;
 * -EBADF: fd is closed; -E2BIG; -ENOMEM; for the delegate profile -EMFILE, and
 * -EAGAIN: no more threads; with MARKER_EXIT what KVM_SET_SIGNAL_MASK said, see
 * ioctl(2). With the delegate profile it makes a thread that blocks all
 * signals, with the calling thread's filter, and duplicates fd.
 * Thread class: setup. Since 0.1.
 */
int kvmfault_vcpu_new(struct kvmfault_vm *vm,
		      const struct kvmfault_vcpu_options *options,
		      struct kvmfault_vcpu **vcpu);

/* Not while the vCPU's thread is in kvmfault_vcpu_handle(), nor in a callback. A
 * worker that it has left goes on for nobody, and is not waited for: it is
 * another vCPU's afterwards, and ends with the context. NULL is fine.
 * Thread class: setup. Since 0.1. */
void kvmfault_vcpu_free(struct kvmfault_vcpu *vcpu);

/*
 * The guest of this vCPU begins anew (a reset, INIT, a snapshot that is
 * loaded, a migration that is given up): an access that is half done is given
 * up, with the history of its faults and the counts of its retries. So the VMM
 * may set the registers and enter KVM_RUN, where the result still said
 * unfinished. Of MMIO KVM itself completes a half by the next KVM_RUN: enter
 * it with immediate_exit set before the registers are set, and clear a queued
 * #UD by KVM_SET_VCPU_EVENTS. A worker that it has left does nothing to the
 * vCPU any more, and is not waited for. NULL is fine. Thread class: object,
 * the vCPU's own thread. Since 0.1.
 */
void kvmfault_vcpu_reset(struct kvmfault_vcpu *vcpu);

/*
 * Handle
 * ------
 */
enum kvmfault_action {
	KVMFAULT_ACTION_RETRY = 1,	/* enter KVM_RUN again */
	KVMFAULT_ACTION_NOT_A_FAULT = 2, /* the VMM's own exit handling */
	KVMFAULT_ACTION_INTERRUPTED = 3, /* a signal or immediate_exit ended KVM_RUN or
				 * a wait: see to it, then go on */
	KVMFAULT_ACTION_PENDING = 4,	/* a resolver works on it elsewhere: wait until
				 * it is done, then enter KVM_RUN */
	KVMFAULT_ACTION_UNRESOLVED = 5, /* do not run this vCPU: the result says why. To
				 * go on all the same, call kvmfault_vcpu_handle()
				 * with the same arguments again */
	/* As INTERRUPTED and as PENDING, but an access is half done: do not
	 * enter KVM_RUN, which would complete MMIO with the wrong bytes, or
	 * give the guest the #UD of an instruction that was not emulated. See
	 * who wanted this thread, or wait, and then call kvmfault_vcpu_handle()
	 * with the same arguments again; or kvmfault_vcpu_reset(). */
	KVMFAULT_ACTION_UNFINISHED = 6,
	KVMFAULT_ACTION_PENDING_UNFINISHED = 7,
};

/* One of a vCPU's last faults, and what came of it. */
struct kvmfault_event {
	size_t size;		/* what this library fills */
	const struct kvmfault_fault *fault;
	enum kvmfault_action action;
	enum kvmfault_reason reason;
	int error;
	uint32_t times;		/* that the same came, one after the other */
	const char *resolver;
};
#define KVMFAULT_HISTORY_COUNT 8

struct kvmfault_result {
	size_t size;		/* what this library fills */
	enum kvmfault_action action;
	enum kvmfault_reason reason;	/* of UNRESOLVED */
	int error;		/* -errno behind the reason, or 0 */
	/* An access is half done: with UNFINISHED and PENDING_UNFINISHED
	 * always, and maybe with UNRESOLVED. KVM_RUN is not to be entered
	 * before kvmfault_vcpu_handle() has said RETRY, or kvmfault_vcpu_reset(). */
	bool unfinished;
	const char *resolver;	/* the one that had the last word, or NULL */
	const struct kvmfault_fault *fault;
	/* This vCPU's last faults, up to KVMFAULT_HISTORY_COUNT of them, the
	 * newest first: how it came to this. Valid as long as the result. */
	const struct kvmfault_event *const *history;
	uint32_t history_count;
	/* With INTERRUPTED, never with UNFINISHED: the siginfo_t of a SIGBUS
	 * that the library took from the thread's queue and that is not guest
	 * memory's. Hand it on. Else NULL. */
	const void *siginfo;
};

/*
 * The one call after KVM_RUN. ret, err: what it returned and errno right after
 * it. Knows every way in which a guest's access to its memory can fail, and
 *
 * - exit: makes the page present by the chain of resolvers;
 * - mmio inside a region: makes the page present and completes the access,
 *   which KVM's emulator would not do again;
 * - emulation error: makes the instruction and its operand present, and takes
 *   back the #UD that KVM queued; if nothing was absent, as many times in a row
 *   as the retry budget says, it is not a fault;
 * - bare EFAULT: may have been a race; tried again within the budget;
 * - EHWPOISON, or a page that is poisoned: options.failed is told, and
 *   UNRESOLVED unless it has told the guest;
 * - EINTR, and with MARKER_EXIT a SIGBUS: the same as kvmfault_vcpu_handle_sigbus();
 * - EINTR: INTERRUPTED. Set immediate_exit to stop a vCPU: a signal alone that
 *   comes together with a fault is a RETRY.
 *
 * What ends a wait inside of an MMIO access or an emulated instruction is
 * UNFINISHED in the place of INTERRUPTED, PENDING_UNFINISHED in that of
 * PENDING.
 *
 * Never allocates, never sleeps but for a page that another thread fetches or
 * converts and in the pauses of the retry budget and of source_retries: a
 * signal ends these, and immediate_exit within 10 ms. Kernel interfaces: those
 * of kvmfault_syscalls(), and what sources, resolvers and other callbacks use.
 *
 * With the delegate profile it waits for its worker, and so for the source, in
 * the same way. A worker that it leaves for a signal goes on with the fault,
 * for nobody: what comes of it is not kept, and the next fault begins when it
 * is done.
 *
 * A NULL vcpu is UNRESOLVED. Thread class: object, the vCPU's own thread.
 * Since 0.1.
 */
enum kvmfault_action kvmfault_vcpu_handle(struct kvmfault_vcpu *vcpu, int ret,
				     int err);

/*
 * The same for a SIGBUS, in the place of kvmfault_vcpu_handle(), when one has ended
 * KVM_RUN (-1, EINTR) or came to the vCPU's thread otherwise. siginfo: its
 * siginfo_t, from sigtimedwait() or kept by the VMM's handler; this is not to
 * be called from a handler.
 *
 * - A page that is absent had a marker: it is fetched like any other.
 * - A page that is present has failed in hardware: it is poisoned from now on,
 *   and options.failed is told, with its gpa: RETRY, or UNRESOLVED, HWPOISON.
 * - Not guest memory, or not a memory failure: NOT_A_FAULT. Hand it on.
 *
 * Thread class: object, the vCPU's own thread. Since 0.1.
 */
enum kvmfault_action kvmfault_vcpu_handle_sigbus(struct kvmfault_vcpu *vcpu,
					    const void *siginfo);

/*
 * For the VMM's SIGBUS handler, with KVMFAULT_SIGBUS_HANDLER: is this one the
 * vCPU's, whose thread it is in? Then it is noted, and kvmfault_vcpu_handle()
 * answers it after KVM_RUN has ended, with -1 and EINTR. Makes no system call.
 *
 * Returns true; false: it is not a fault in memslots' memory, hand it on.
 * Async-signal-safe. Thread class: object, the vCPU's own thread. Since 0.1.
 */
bool kvmfault_vcpu_note_sigbus(struct kvmfault_vcpu *vcpu, const void *siginfo);

/*
 * The same for a SIGBUS of another thread: memory that failed and that nobody
 * has touched (BUS_MCEERR_AO), or that a thread of the VMM's has.
 *
 * Returns 0: told, or it was a marker and the page is there now; -EINVAL: vm or
 * siginfo is NULL; -ENOENT: not guest memory, or not a memory failure: hand it
 * on; -EHWPOISON: options.failed is missing or failed; -ENOMEM; and of a marker
 * what the source or the kernel said, see kvmfault_ensure().
 * Thread class: any. Since 0.1.
 */
int kvmfault_vm_handle_sigbus(struct kvmfault_vm *vm, const void *siginfo);

/* A system call that the library makes on a thread. */
struct kvmfault_syscall {
	size_t size;
	const char *name;
	int64_t number;		/* on this architecture */
	/* Which argument, from 0, is always this value, as an int: only its
	 * low 32 bits count. -1: none is, and the value is 0. */
	int32_t argument;
	uint32_t value;
	const char *value_name;	/* the kernel's, or "" */
	const char *why;
};

/*
 * Which system calls are made on a thread of this profile, and so what a
 * seccomp filter has to let pass. INLINE, DELEGATE: all that
 * kvmfault_vcpu_handle(), kvmfault_vcpu_handle_sigbus(), and kvmfault_convert() with a
 * vcpu, do on a vCPU's thread; what a worker does for one that delegates is
 * INLINE's as well. SERVICE: a thread of the service from its beginning on,
 * and kvmfault_service_dispatch(), with what CALLER has for its first call.
 * CALLER: the functions of the thread class "any". index counts from 0 until
 * there is none left; one call comes once for each value that its argument
 * has. Not in it: what a VMM's own callbacks do (with the delegate profile
 * they come on other threads), KVM_RUN, what libc does when a thread begins
 * and ends, and functions of the class "setup", freeing included: for these
 * see doc/integration.md.
 *
 * call->size must be set; strings are the library's, for ever.
 * Returns 0; -EINVAL: call is NULL, a profile that is not known; -ENOENT: index
 * is past the end. Thread class: any. Since 0.1.
 */
int kvmfault_syscalls(enum kvmfault_profile profile, unsigned int index,
		      struct kvmfault_syscall *call);

/* More about the last kvmfault_vcpu_handle() of this vCPU; its own, valid until the
 * next. NULL only for NULL. Thread class: object. Since 0.1. */
const struct kvmfault_result *
kvmfault_vcpu_result(struct kvmfault_vcpu *vcpu);

/*
 * Userfaultfd service
 * -------------------
 * Answers the faults of everyone who is not stopped by KVM_RUN: vCPUs whose
 * page is missing sleep in the kernel until it did. Needed wherever a memory
 * has a source; one for each context.
 */
struct kvmfault_service_options {
	size_t size;
	/* How many threads, up to 256. 0: none; the VMM polls
	 * kvmfault_service_fd() and calls kvmfault_service_dispatch(). */
	uint32_t threads;
	/* How many microseconds one of these threads, having answered, looks
	 * for the next fault before it sleeps: to wake it then takes longer
	 * than most faults do. It does so only while nobody else wants its
	 * CPU, and hardly ever where it was in vain. 0: 100;
	 * KVMFAULT_NO_POLL: it sleeps at once. */
	uint32_t poll_us;
#define KVMFAULT_NO_POLL UINT32_MAX
};

/*
 * Returns 0; -EINVAL: a NULL pointer, over 256 threads; -EBUSY: there is one;
 * -E2BIG; -ENOMEM; -EAGAIN: no more threads; -EMFILE, -ENFILE.
 * The threads block all signals. Thread class: setup. Since 0.1.
 */
int kvmfault_service_new(struct kvmfault_vm *vm,
			 const struct kvmfault_service_options *options,
			 struct kvmfault_service **service);

/* Readable when there is something to dispatch. The library's: do not close.
 * -EINVAL: service is NULL. Thread class: any. Since 0.1. */
int kvmfault_service_fd(const struct kvmfault_service *service);

/*
 * Answer what has arrived, and return; does not wait for more.
 * Returns 0; -EINVAL: service is NULL; -ENOMEM. Thread class: any. Since 0.1.
 */
int kvmfault_service_dispatch(struct kvmfault_service *service);

/*
 * Stop the threads, each after the fault that it has in hand. Who faults from
 * then on sleeps until there is a service again. NULL is fine.
 * Returns 0; -EDEADLK: called by one of its own threads.
 * Thread class: setup. Since 0.1.
 */
int kvmfault_service_free(struct kvmfault_service *service);

/*
 * Ensure and discard
 * ------------------
 */

/*
 * Make guest memory present before the VMM itself, or KVM for it, touches it
 * (what KVM_SET_MSRS writes, what a kernel device reads). write: for writing; a
 * page that is protected is saved first. A page that was discarded becomes a
 * page of zeros, and takes host memory again: who calls this for all of a
 * memory, to bring the rest, leaves out what a balloon has (the callback changed
 * tells).
 *
 * Returns 0: all of it is; -EINVAL: vm is NULL, empty, wraps; -ENXIO: a part is
 * in no region; -EINTR: a signal came while another thread's fetch was waited
 * for: call again; -EAGAIN: a resolver said later, or the mappings are changing
 * just now: call again when that is over; -EIO and others: what the
 * source or the kernel said, all before it is present; -EOPNOTSUPP: no resolver
 * took a page, or the host's mapping does not allow the access; -ENODATA: a
 * resolver lied; -EHWPOISON; -EDEADLK: called from a callback that is fetching
 * this page; -ENOMEM.
 * Thread class: any. Since 0.1.
 */
int kvmfault_ensure(struct kvmfault_vm *vm, uint32_t address_space,
		    uint64_t gpa, uint64_t length, bool write);

/*
 * Make present what KVM itself reads and writes for the features that MSRs turn
 * on: kvmclock and its wall clock, steal time, PV EOI, asynchronous page
 * faults, Hyper-V's hypercall, reference TSC, VP assist, event and message
 * pages; and of SMBASE (0x9e) the state that is saved when an SMI comes, in
 * address space 1, without which the VM is dead. An access of KVM's own waits
 * for an absent page where the guest's would (and no signal may end that), and
 * where the page has a marker it fails, mostly without a word. So: before
 * KVM_SET_MSRS, with what is about to be set. Other MSRs, and pages that are
 * in no region, are passed over.
 *
 * msrs, count: as in struct kvm_msrs. again, unless NULL: one of them is of
 * what KVM writes only when the MSR is set (kvmclock, the wall clock, the
 * reference TSC). If KVM had it before its page came (the MSRs were read from
 * a vCPU), set these MSRs again.
 *
 * Returns 0; -EINVAL: vm is NULL, msrs is NULL and count is not 0; -EINTR,
 * -EAGAIN, -EOPNOTSUPP, -ENODATA, -EHWPOISON, -EDEADLK, -ENOMEM, -EIO and
 * others,
 * what the source or the kernel said: see kvmfault_ensure(); the pages of the
 * MSRs before that one are present. arm64: 0, it has none.
 * Thread class: any. Since 0.1.
 */
int kvmfault_ensure_msrs(struct kvmfault_vm *vm,
			 const struct kvm_msr_entry *msrs, uint32_t count,
			 bool *again);

/*
 * Make present the page tables that a vCPU's registers lead to, all that its
 * guest can use without loading CR3: with 2 levels, PAE, 4 and 5, past large
 * pages. What they map is not touched, but for what exceptions and task
 * switches need: the IDT, the GDT, the TSS, and where a frame would be pushed
 * on each stack that the TSS names, and on the one in use.
 *
 * Where KVM walks a guest's tables in software, and a table's page has a marker
 * or is not mapped, the guest gets a page fault that it has not earned. With
 * two-dimensional paging KVM does so for the operands of the few instructions
 * that it emulates; with shadow paging (see KVMFAULT_FEATURE_TWO_DIMENSIONAL_
 * PAGING) for every access. So: when a VM is restored, after KVM_SET_SREGS and
 * KVM_SET_REGS and before the first KVM_RUN, for each vCPU. Tables that the
 * guest makes from then on it has written itself. The tables of its other
 * processes come with their next load of CR3: with two-dimensional paging as
 * faults of the guest's own. Where the guest uses PAE without long mode,
 * KVM_SET_SREGS has read the first table: set them again.
 *
 * What an exception needs is the processor's to read: a page of it that is
 * missing is an ordinary fault, with shadow paging too. But not on PVM, where
 * KVM delivers exceptions in software, and a marker there ends the guest; and
 * nowhere if a 32-bit guest switches tasks. Stacks of tasks that run later are
 * not known.
 *
 * What is in no region is passed over: tables there have to be present always.
 * So are private pages, which KVM can't read either. Not for a vCPU that runs a
 * nested guest: its registers are that guest's.
 *
 * Kernel interfaces: KVM_GET_REGS, KVM_GET_SREGS, KVM_GET_VCPU_EVENTS,
 * KVM_TRANSLATE, pread(2) of a memory's file, and those of kvmfault_ensure().
 *
 * Returns 0; -EINVAL: vcpu is NULL; -ELOOP: more than 2^20 tables: the guest's
 * are not meant to be walked; -EINTR: a signal came while a fetch was waited
 * for, or immediate_exit is set: call again; -EAGAIN, -EOPNOTSUPP, -ENODATA,
 * -EHWPOISON, -EDEADLK, -ENOMEM, -EIO and others, what the source or ioctl(2)
 * said: see kvmfault_ensure(); the tables before that one are present. arm64:
 * 0, its KVM walks none.
 * Thread class: object, the vCPU's own thread. Since 0.1.
 */
int kvmfault_ensure_page_tables(struct kvmfault_vcpu *vcpu);

/*
 * Discard guest memory: from now on it reads as zero and never comes from the
 * source again; its host memory is freed (FALLOC_FL_PUNCH_HOLE, for anonymous
 * memory MADV_DONTNEED). Whole pages of the memory only. Waits for a page whose
 * fetch is in flight, and then takes it: hold no lock that your source takes.
 * What is protected is saved first, and for that fetched. What was poisoned is
 * memory again, in every process. Punching a hole or
 * MADV_REMOVE behind the library's back loses that order: use this call.
 *
 * Returns 0; -EINVAL: vm is NULL, empty, not whole pages; -ENXIO: a part is in
 * no region with memory; -EINTR: a signal came while a fetch was waited for:
 * call again; -EDEADLK: called from a callback that is fetching for this
 * memory; -ENOMEM; what fallocate(2) or madvise(2) said; -EAGAIN: the memory is
 * being freed, or of a protected page its resolver said later, or the mappings
 * are changing just now; -EIO and others: what a protected page's resolver or
 * the source said. All that comes before is discarded then, and the rest is as
 * it was, but for the page whose fetch was waited for: who fetches it may
 * discard it yet; and where a poisoned page can't be made memory again, up to
 * 255 pages behind it are discarded all the same. Where hardware has failed
 * under another process's mapping, that process has to map it anew.
 * Thread class: any. Since 0.1.
 */
int kvmfault_discard(struct kvmfault_vm *vm, uint32_t address_space,
		     uint64_t gpa, uint64_t length);

/*
 * Cancel the fetches in flight that sources which answer later have for guest
 * memory (kvmfault_source.cancel). Their pages are absent again when the source
 * says so: who has asked is told its error, who waits for them asks again.
 * kvmfault_memory_free() does this for its memory.
 *
 * Returns 0; -EINVAL: vm is NULL, empty, wraps; -ENXIO: a part is in no region,
 * all before it was done; -ENOMEM. Thread class: any. Since 0.1.
 */
int kvmfault_cancel_fetches(struct kvmfault_vm *vm, uint32_t address_space,
		    uint64_t gpa, uint64_t length);

/*
 * Protect: live snapshots
 * -----------------------
 * The memory of a VM as it is at one instant, saved while the VM runs on. A
 * page that is protected can be read, by threads and device processes also
 * while it is saved (with minor faults only through a mapping that has it);
 * whoever wants to write to it waits until a resolver of the VMM's has saved it,
 * whether that is a vCPU, a thread, a device process, KVM or the library:
 *
 *   stop the vCPUs and devices; kvmfault_protect(); let them run
 *   for each page: kvmfault_ensure(), for writing
 *
 * and a resolver for KVMFAULT_PAGE_PROTECTED: it reads the page at
 * request->host, keeps that, and returns RESOLVED. Each page is put to it once,
 * when it is written or discarded for the first time, or when its turn comes in
 * the sweep; with RESOLVED it is not protected any more. It is for the VMM to
 * pace the sweep.
 *
 * - Page by page: at most one thread has a page, and it is as it was when it
 *   was protected until the resolver returns, also if that takes long.
 * - If the resolver fails the page stays protected, and nobody goes on: the
 *   error comes back, or a sleeper is tried again as for a source that fails.
 *   If it declines, nobody wants the page saved, and it is written.
 * - Absent pages are protected too: they are fetched, then saved.
 * - A page that is already discarded when it is protected is saved as zeros. A
 *   conversion discards shared pages without asking; a hook before it can have
 *   them saved, by kvmfault_ensure().
 * - Seen are writes through the mappings that the library knows, of every
 *   process; not those by write(2) to the file, nor by devices that the kernel
 *   has mapped the memory for (VFIO).
 */

/*
 * Protect guest memory whose options have write_protect. Whole pages of the
 * memory only. Waits for pages that somebody fetches or saves. What is written
 * while this runs may be in the snapshot or not: see above. A mapping that is
 * added later is protected too.
 *
 * Returns 0; -EINVAL: vm is NULL, empty, not whole pages; -ENXIO: a part is in
 * no region with memory; -EOPNOTSUPP: its memory has no write_protect; -EINTR:
 * a signal came while a page was waited for; -EDEADLK: called from a callback
 * that is fetching or saving for this memory; -EAGAIN: the mappings are
 * changing just now, or its memory is being freed; -ENOMEM. After an error
 * some of it is protected: call again, or kvmfault_unprotect().
 * Thread class: any. Kernel interface: UFFDIO_WRITEPROTECT. Since 0.1.
 */
int kvmfault_protect(struct kvmfault_vm *vm, uint32_t address_space,
		     uint64_t gpa, uint64_t length);

/*
 * Lift the protection, and ask nobody: for a snapshot that is given up. When
 * this returns no resolver has one of these pages to save. What is not
 * protected is left as it is.
 *
 * Returns 0; -EINVAL, -ENXIO, -EOPNOTSUPP, -EINTR, -EDEADLK, -ENOMEM: for the
 * same reasons; all that comes before is not protected then.
 * Thread class: any. Kernel interface: UFFDIO_WRITEPROTECT. Since 0.1.
 */
int kvmfault_unprotect(struct kvmfault_vm *vm, uint32_t address_space,
		       uint64_t gpa, uint64_t length);

/*
 * Convert: private and shared
 * ---------------------------
 * Each page of a region with a guest_memfd is private, and then it is the
 * guest_memfd's, or shared, and then it is the memory's. KVM keeps that for
 * each guest-physical page of 4 KiB, whatever slots there are; all are shared
 * at first. KVM can't be asked for it: so the library remembers what KVM was
 * last told, and all conversions have to go through it, those before the first
 * KVM_RUN too.
 *
 * A guest converts by its accesses: an exit whose KVM_MEMORY_EXIT_FLAG_PRIVATE
 * differs from the state is put to the chain as KVMFAULT_PAGE_UNCONVERTED, and
 * the resolver "convert" does it if none of the VMM's took it. Or by a
 * hypercall, for which the VMM calls kvmfault_convert(). For each run of pages
 * that are not yet what they are to be:
 *
 *   hooks before -> KVM told -> noted -> other side discarded -> hooks after
 *
 * - Conversions that overlap wait for one another, others run in parallel.
 * - To shared, a fetch that was in flight when the page became private has to
 *   end first. In either case a vCPU with no_wait is told PENDING for its
 *   access; kvmfault_convert() waits, whoever calls it.
 * - If a hook or KVM refuses, the run is what it was: KVM is told so, the hooks
 *   hear of it, and the error comes back.
 * - What was discarded can't come back. So that is last, when nothing can fail
 *   any more: what the kernel does not free stays allocated, and is logged.
 * - What becomes private is discarded in the memory of its region, as
 *   kvmfault_discard() does: it is zero when it is shared again. Of huge pages
 *   only those are that are private as a whole. What becomes shared is punched
 *   out of the guest_memfd.
 */

/* Leave the other side alone: the shared pages of what becomes private, the
 * private ones of what becomes shared. */
#define KVMFAULT_CONVERTER_KEEP_SHARED (1U << 0)
#define KVMFAULT_CONVERTER_KEEP_PRIVATE (1U << 1)
/* What is in no region can't become shared: -ENXIO. Else that is ignored, for
 * guests that share the address ranges of devices too. */
#define KVMFAULT_CONVERTER_RAM_ONLY (1U << 2)
/* Accesses convert nothing, only kvmfault_convert() does: for VMs where what
 * KVM was told decides what an access is (KVM_X86_SW_PROTECTED_VM). There an
 * exit that differs has met a conversion, and is tried again. */
#define KVMFAULT_CONVERTER_CALLS_ONLY (1U << 3)

struct kvmfault_converter {
	size_t size;
	uint32_t flags;		/* KVMFAULT_CONVERTER_* */
	/* To tell the kernel in another way than by KVM_SET_MEMORY_ATTRIBUTES
	 * on the VM's fd. 0, or -errno and nothing has changed; after an error
	 * it is called once more, to set the whole range back. By any number
	 * of threads at once, a vCPU's among them, for disjoint ranges. */
	int (*set)(void *data, uint64_t gpa, uint64_t length, bool to_private);
	void *data;
};

/* Who has to know of conversions, like the IOMMU's mappings of shared pages.
 * Called on the thread that converts, and must not convert itself. */
struct kvmfault_conversion_hook {
	size_t size;
	/* 0, or -errno: refused, nothing has changed. May be NULL. */
	int (*before)(void *data, uint64_t gpa, uint64_t length,
		      bool to_private);
	/* done: or else it is what it was. May be NULL. */
	void (*after)(void *data, uint64_t gpa, uint64_t length,
		      bool to_private, bool done);
	void *data;
};
#define KVMFAULT_CONVERSION_HOOK_COUNT 16

/*
 * Append a hook, copied, before the first vCPU handle and the service. They are
 * called before in the order in which they were added, and after in the
 * opposite one.
 * Returns 0; -EINVAL: NULL pointer; -EBUSY: a vCPU handle or a service exists;
 * -ENOSPC: there are KVMFAULT_CONVERSION_HOOK_COUNT; -E2BIG.
 * Thread class: setup. Since 0.1.
 */
int kvmfault_conversion_hook_add(struct kvmfault_vm *vm,
				 const struct kvmfault_conversion_hook *hook);

/*
 * Convert memory of address space 0, over any number of regions: what is so
 * already is left alone. vcpu: whose thread calls, or NULL. done, unless it is
 * NULL: how many bytes from gpa on are as they were to be, also on error.
 *
 * Do not remove a region of the range meanwhile: what is in none any more keeps
 * its other side.
 *
 * Goes on in chunks of up to 2 MiB. Between these, and in waits, the vCPU's
 * immediate_exit ends it, in waits a signal too: -EINTR, call again with the
 * rest, before the vCPU runs.
 *
 * Returns 0; -EINVAL: vm is NULL, empty, not aligned to 4 KiB, wraps, a vCPU of
 * another context; -EOPNOTSUPP: the context has neither fd nor back end, or KVM
 * can't convert in a VM of this type, or before 6.8;
 * -ENXIO: to private, and a part is in no region with a guest_memfd; or to
 * shared, in no region, with KVMFAULT_CONVERTER_RAM_ONLY; -EINTR; -EDEADLK:
 * called from a hook or back end, or by a source or a resolver that is asked
 * for a page (not UNTRACKED, not UNCONVERTED), or in a callback of
 * kvmfault_fetch_done(), where it would wait for another conversion or a fetch;
 * -ENOMEM; and what ioctl(2), a hook or the back end said.
 * Thread class: any; with a vCPU object, its own thread. Since 0.1.
 */
int kvmfault_convert(struct kvmfault_vm *vm, struct kvmfault_vcpu *vcpu,
		     uint64_t gpa, uint64_t length, bool to_private,
		     uint64_t *done);

/*
 * Is the page at gpa private? As KVM was last told by the library.
 * Returns 1 or 0; -EINVAL: vm is NULL. Thread class: any. Since 0.1.
 */
int kvmfault_is_private(struct kvmfault_vm *vm, uint64_t gpa);

/*
 * Statistics
 * ----------
 * Kept by each thread for itself, added up by the reader. A service thread
 * counts a page when it is done with it, a moment after those it woke go on.
 */
#define KVMFAULT_LATENCY_COUNT 24
/* With room for enumerators that later versions add. */
#define KVMFAULT_STATS_KINDS 16
#define KVMFAULT_STATS_ACTIONS 8
#define KVMFAULT_STATS_PAGES 16

struct kvmfault_stats {
	size_t size;
	uint64_t fetched;	/* pages installed from their source */
	uint64_t zeroed;	/* discarded pages installed as zero */
	uint64_t existed;	/* installs that found the page there */
	uint64_t waited;	/* faults that waited for another's fetch */
	uint64_t repeated;	/* messages for a page that was there or on its
				 * way */
	uint64_t woken;		/* UFFDIO_WAKEs */
	uint64_t deferred;	/* messages put off: the kernel or the source
				 * was not ready */
	uint64_t discarded;	/* pages discarded */
	uint64_t unresolved;	/* faults that nobody resolved */
	uint64_t kind[KVMFAULT_STATS_KINDS];	/* faults, by kvmfault_kind */
	uint64_t resolver[KVMFAULT_RESOLVER_COUNT]; /* resolved, by index */
	/* Resolved faults by microseconds: [0] under 1, [n] under 2^n, the
	 * last one everything above. */
	uint64_t latency[KVMFAULT_LATENCY_COUNT];
	uint64_t retried;	/* vCPUs' faults that were tried again, because
				 * the source had failed */
	uint64_t prefaulted;	/* pages that KVM mapped ahead, by request */
	uint64_t action[KVMFAULT_STATS_ACTIONS]; /* faults, by the kvmfault_action that they were
				 * answered with; a message at each try, a call
				 * of kvmfault_ensure() as one */
	uint64_t page[KVMFAULT_STATS_PAGES]; /* requests that resolvers were asked, by
				 * kvmfault_page */
	uint64_t marked;	/* pages that were given a marker */
};

/* Of the whole VM. Returns 0; -EINVAL. Thread class: any. Since 0.1. */
int kvmfault_vm_stats(const struct kvmfault_vm *vm,
		      struct kvmfault_stats *stats);

/* Of one vCPU's own thread. As kvmfault_vm_stats(). Since 0.1. */
int kvmfault_vcpu_stats(const struct kvmfault_vcpu *vcpu,
			struct kvmfault_stats *stats);

/*
 * Names and version
 * -----------------
 * Never NULL; "unknown" for what is not known. Thread class: any. Since 0.1.
 */
const char *kvmfault_support_str(enum kvmfault_support support);
const char *kvmfault_feature_str(enum kvmfault_feature feature);
const char *kvmfault_kind_str(enum kvmfault_kind kind);
const char *kvmfault_access_str(enum kvmfault_access access);
const char *kvmfault_cause_str(enum kvmfault_cause cause);
const char *kvmfault_delivery_str(enum kvmfault_delivery delivery);
const char *kvmfault_reason_str(enum kvmfault_reason reason);
const char *kvmfault_page_str(enum kvmfault_page page);
const char *kvmfault_verdict_str(enum kvmfault_verdict verdict);
const char *kvmfault_action_str(enum kvmfault_action action);
const char *kvmfault_profile_str(enum kvmfault_profile profile);

/* The version of the library that runs, "0.1.0"; the header's is
 * KVMFAULT_VERSION. Thread class: any. Since 0.1. */
const char *kvmfault_version(void);

#ifdef __cplusplus
}
#endif

#endif
