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
 * A virtual machine monitor (VMM) calls kvmfault_vcpu_handle() after every
 * KVM_RUN. The library says whether the guest touched memory that KVM could not
 * reach, turns that into one typed value, makes the fault go away, and says
 * what to do next. The VMM's own threads, device processes and the kernel touch
 * guest memory too. Their faults come through userfaultfd, and take the same
 * path:
 *
 *   kinds of faults           one path                           result
 *   EXIT        (annotated) -+
 *   MARKER      (SIGBUS)     |
 *   FAILURE     (SIGBUS)     |
 *   UNANNOTATED (EFAULT)     +-> decode -> translate -> claim     action:
 *   MMIO        (in RAM)     |            gpa -> memory  page     retry, not
 *   EMULATION   (error)      |     -> resolve -> publish       -> a fault,
 *   UFFD        (message)    |        chain      state, wakes     unresolved
 *   CALL        (ensure)    -+
 *
 * An EXIT is annotated: KVM has put the fault's gpa into kvm_run
 * (KVM_EXIT_MEMORY_FAULT). UNANNOTATED is an EFAULT without that.
 *
 * The stages of the path are:
 *
 *   decode      read what KVM_RUN, a signal or a message says
 *   translate   find the region and the memory of the address
 *   claim       take the page, so that exactly one thread fetches it
 *   resolve     ask the chain of resolvers to make the page present
 *   publish     set the page's state, and wake all threads that wait for it
 *
 * Set-up
 * ------
 * The whole integration of a VMM, in order:
 *
 *   1. kvmfault_vm_new(), and kvmfault_resolver_add() for resolvers of the
 *      VMM's own, if it has any
 *   2. kvmfault_memory_alloc() for each block of RAM; or, if the VMM maps the
 *      block itself, kvmfault_memory_adopt() before anything touches it
 *   3. kvmfault_service_new(): from here on each touch of RAM is answered
 *   4. kvmfault_region_add(), and then KVM's memslot: the guest sees the memory
 *   5. kvmfault_vcpu_new() on each vCPU's thread, and then the loop below
 *
 * The reason for this order: first comes what can answer, then what can ask. If
 * a page is touched before step 2, it is there already and would never be
 * fetched. If there is no service, a thread that misses a page sleeps until
 * there is one. If KVM has a memslot before its region is added, a fault in it
 * finds no region.
 *
 * The loop of a vCPU's thread. handle_exit(), see_who_kicked() and
 * wait_for_my_resolver() are the VMM's own. If the VMM sets immediate_exit to
 * get at the thread, see_who_kicked() clears it. The library never does, and
 * while it is set, KVM_RUN and the library's waits end soon. After UNRESOLVED,
 * kvmfault_vcpu_result() says why:
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
 *           case KVMFAULT_ACTION_RETRY:
 *                   continue;
 *           case KVMFAULT_ACTION_NOT_A_FAULT:
 *                   handle_exit(run);
 *                   break;
 *           case KVMFAULT_ACTION_UNFINISHED:
 *                   enter = false;
 *                   see_who_kicked();
 *                   break;
 *           case KVMFAULT_ACTION_INTERRUPTED:
 *                   see_who_kicked();
 *                   break;
 *           case KVMFAULT_ACTION_PENDING_UNFINISHED:
 *                   enter = false;
 *                   wait_for_my_resolver();
 *                   break;
 *           case KVMFAULT_ACTION_PENDING:
 *                   wait_for_my_resolver();
 *                   break;
 *           case KVMFAULT_ACTION_UNRESOLVED:
 *                   return -EFAULT;
 *           }
 *   }
 *
 * The end, in order: stop the vCPUs and all threads that touch guest memory,
 * free the vCPUs' handles, free the service, remove the regions, free the
 * memories, the userfaultfds and the context.
 *
 * How to read this header
 * -----------------------
 * Each section begins with a heading as above. The sections follow the path:
 *
 *   Probe                     what this kernel offers
 *   Decode                    what happened
 *   Context                   one VM: options, callbacks, delivery modes, texts
 *   Sources                   where absent pages come from
 *   Userfaultfds              adopting a descriptor, other processes
 *   Memory and its mappings   guest RAM, and all places where it is mapped
 *   Regions                   what the guest sees where
 *   Resolvers                 functions that make a page present
 *   vCPU, Handle              the call after KVM_RUN, and its answers
 *   Userfaultfd service       the threads that answer messages
 *   Ensure and discard        guest memory that the VMM itself uses
 *   Fill                      the pages that no thread waits for
 *   States of pages           what is there, and the end of the library's work
 *   Protect                   live snapshots
 *   Convert                   private and shared memory
 *   Working sets              what a guest touches first, recorded and saved
 *   Statistics                counters
 *   Names and version
 *
 * A first integration needs Context, Sources, Memory and its mappings, Regions,
 * Userfaultfd service, vCPU and Handle. The other sections can wait.
 *
 * Words
 * -----
 *   memory      guest RAM: one backing (a memfd, a hugetlbfs file or anonymous
 *               memory) and the state of each of its pages
 *   mapping     one range of addresses, in this process or another, at which a
 *               memory is mapped. The first one is the memslots' mapping: KVM
 *               uses it (userspace_addr)
 *   region      a range of guest-physical addresses that shows a part of a
 *               memory: for KVM it is a memslot
 *   source      the place that absent pages come from: a file, other memory, or
 *               functions of the VMM's
 *   tracked     said of a memory with a source: the library knows each page's
 *               state. A memory without a source is untracked
 *   absent      a page that was not fetched from its source yet
 *   present     a page that was installed: its bytes are in the memory
 *   discarded   a page that kvmfault_discard() emptied: it reads as zero, and
 *               never comes from the source again
 *   poisoned    a page whose data is lost, in hardware or at the source: a
 *               touch of it ends in SIGBUS
 *   protected   a page that a resolver has to save before it is written
 *   settled     said of a memory that lacks no page and is left to the kernel
 *   fetch       to bring an absent page from its source; a fetch in flight has
 *               begun and is not over
 *   window      the pages that one fault brings: its own page and neighbours
 *   claim       the right of one thread to fetch a page: until it publishes the
 *               page's new state, no other thread installs the page
 *   resolver    a function that is asked to make a page present
 *   message     what userfaultfd says about one fault
 *   sleeper     a thread that sleeps in the kernel on a page that is missing,
 *               until a message is answered. A waiter waits in the library
 *   marker      an entry that the library puts into the memslots' mapping in
 *               place of an absent page (UFFDIO_POISON): a touch of it ends
 *               KVM_RUN with SIGBUS
 *   delivery    how a vCPU's missing page gets to the library: by a message, by
 *               a marker, or by an exit
 *   deferred    said of a message that could not be answered now: the service
 *               tries it again later
 *   install     to put a page's bytes into a memory, in one step for each page
 *   gpa, hva    a guest-physical address; an address in the process that owns
 *               the mapping
 *
 * General rules
 * -------------
 * Errors
 * - Functions return 0 or -errno, and some 1 or a descriptor in place of 0, as
 *   they say; `errno` itself is not part of the contract. On error an output
 *   pointer is NULL and nothing has changed, unless the function says
 *   otherwise. A fault that no resolver resolved is a result, not an error.
 * - -EINVAL is a caller's mistake. -EBUSY says that something else has to go
 *   first. -EOPNOTSUPP says that this kernel, or this object as it was made,
 *   cannot do it. The context's log names the member or object, and so does
 *   kvmfault_vm_error() for a VMM without a log.
 * - In a child of fork() the functions that free do nothing and return 0: the
 *   objects are the parent's. (Before Linux 4.14 a child can't be told apart:
 *   do not call them.) No other function may be called there, since the child
 *   has the parent's descriptors and shares its files.
 * - -EINTR and -EAGAIN say that the same call may work later. -EDEADLK says
 *   that the call, made in a callback, would wait for its own thread.
 * - If a flag, a bit or an enumerator is not known to this version, it is
 *   refused with -EINVAL, never ignored.
 *
 * Structs and arguments
 * - Open structs begin with `size_t size`: set it to sizeof the struct. A
 *   shorter struct, of an older caller, is accepted. A longer one is accepted
 *   if all that this library does not know is zero, else the call returns
 *   -E2BIG. Zero is each member's default.
 * - Descriptors in a struct: 0 or less means "none", since 0 is each member's
 *   default. A process that has closed its standard input may get 0 as a
 *   descriptor: it has to duplicate that one first
 *   (fcntl(fd, F_DUPFD_CLOEXEC, 1)). As a function's argument a descriptor
 *   is 0 or more.
 * - The library never closes a descriptor that it did not open. If it keeps a
 *   duplicate, the comment there says so. "Borrowed" means that the VMM leaves
 *   the descriptor, or the memory, in place as long as is said there.
 * - Sizes, lengths and offsets are in bytes.
 *
 * Callbacks
 * - A callback runs with none of the library's locks held. It may take the
 *   VMM's own locks and call the library.
 * - It runs on the thread that does the work: the one that called the library,
 *   a thread of the service or of a fill, or with the delegate profile a vCPU's
 *   worker.
 * - A callback returns: it is not left by longjmp(), and no thread is cancelled
 *   (pthread_cancel()) in the library or in one of its callbacks. Else the page
 *   that the thread has claimed would stay claimed. To end a wait, use
 *   immediate_exit and a signal.
 *
 * Thread classes
 * - "any": any number of threads may call it at once.
 * - "object": any thread may call it, but one at a time for one object.
 * - "setup": like "any", but it may take the context's lock and allocate. So it
 *   is not for a vCPU's fault path.
 *
 * The library has no globals, reads no environment variables, installs no
 * signal handlers and writes no output.
 */

struct kvm_run;			/* of linux/kvm.h */
struct kvm_msr_entry;		/* of linux/kvm.h, on x86 */
struct kvmfault_converter;	/* see "Convert" */

struct kvmfault_vm;		/* the context: all the library knows of a VM */
struct kvmfault_uffd;		/* one process's userfaultfd */
struct kvmfault_memory;		/* guest memory: a backing and its pages */
struct kvmfault_mapping;	/* one place where a memory is mapped */
struct kvmfault_vcpu;		/* one vCPU, for the thread that runs it */
struct kvmfault_service;	/* the threads that answer userfaultfd */
struct kvmfault_fill;		/* brings the pages that no thread waits for */
struct kvmfault_fetch;		/* one request to a source that answers later */
struct kvmfault_failure;	/* see "Context" */
struct kvmfault_working_set;	/* what of an image was touched first */
struct kvmfault_recording;	/* first touches, while they are noted */

/*
 * Probe: what this kernel offers
 * ------------------------------
 * The library asks the kernel for each feature by the smallest real call. It
 * does not look at the kernel's version, nor at a capability's number alone:
 * the numbers of patches that were not merged now mean other things. There are
 * three answers, and "could not ask" is not "no".
 */
enum kvmfault_support {
	KVMFAULT_SUPPORT_NOT_ASKED = 0,
	KVMFAULT_SUPPORT_YES = 1,
	KVMFAULT_SUPPORT_NO = 2,
	KVMFAULT_SUPPORT_COULD_NOT_ASK = 3,	/* see the finding's error */
};

enum kvmfault_feature {
	KVMFAULT_FEATURE_NONE = 0,

	/* KVM, asked of the VM by KVM_CHECK_EXTENSION and a harmless call. */
	KVMFAULT_FEATURE_MEMORY_FAULT_INFO = 1,	/* advertised; arm64 has the
						 * exits without saying so */
	KVMFAULT_FEATURE_USER_MEMORY2 = 2,	/* slots with guest_memfd */
	KVMFAULT_FEATURE_GUEST_MEMFD = 3,	/* value: creation flags */
	KVMFAULT_FEATURE_MEMORY_ATTRIBUTES = 4,	/* value: attributes' mask */
	KVMFAULT_FEATURE_PRE_FAULT_MEMORY = 5,	/* asked of a scratch vCPU */
	KVMFAULT_FEATURE_EXIT_ON_EMULATION_FAILURE = 6,
	KVMFAULT_FEATURE_ADDRESS_SPACES = 7,	/* value: how many */

	/* userfaultfd: the ways to open one that reports the kernel's own
	 * accesses. KVM's accesses are of this kind. */
	KVMFAULT_FEATURE_UFFD_DEVICE = 8,	/* by /dev/userfaultfd */
	KVMFAULT_FEATURE_UFFD_SYSCALL = 9,	/* by userfaultfd(2) */
	KVMFAULT_FEATURE_UFFD = 10,		/* value: UFFD_FEATURE_* */

	/* Missing faults, asked for each kind of memory by registering a page
	 * of it. value: the mask of ioctls that the kernel returned. */
	KVMFAULT_FEATURE_UFFD_ANON = 11,
	KVMFAULT_FEATURE_UFFD_SHMEM = 12,
	KVMFAULT_FEATURE_UFFD_HUGETLB = 13,
	KVMFAULT_FEATURE_UFFD_MINOR_SHMEM = 14,
	KVMFAULT_FEATURE_UFFD_MINOR_HUGETLB = 15,
	KVMFAULT_FEATURE_UFFD_POISON = 16,
	KVMFAULT_FEATURE_UFFD_MOVE = 17,

	/* madvise(2) */
	KVMFAULT_FEATURE_POPULATE_READ = 18,
	KVMFAULT_FEATURE_POPULATE_WRITE = 19,

	/* KVM, asked of a scratch guest. If the answer is NO, KVM walks the
	 * guest's page tables in software: see
	 * kvmfault_ensure_page_tables(). */
	KVMFAULT_FEATURE_TWO_DIMENSIONAL_PAGING = 20,

	/* These have their names in kvmfault-experimental.h. */
	KVMFAULT_FEATURE_EXPERIMENTAL_21 = 21,
	KVMFAULT_FEATURE_EXPERIMENTAL_22 = 22,
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
 * Ask for every feature. vm_fd is the VM to ask, borrowed during the call.
 * kvm_fd is /dev/kvm, borrowed during the call, for the features that need a
 * scratch VM. Either may be missing (-1): the features that depend on it are
 * then COULD_NOT_ASK with -EBADF. After the call nothing stays changed or open.
 *
 * Returns 0, or
 *   -EINVAL   features is NULL, or its size is not set
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_probe(int kvm_fd, int vm_fd, struct kvmfault_features *features);

/*
 * Decode: what happened
 * ---------------------
 * Decoding is pure and total: every input gives an answer, no state is kept,
 * and nothing is read beyond what the exit defines.
 */
enum kvmfault_kind {
	KVMFAULT_KIND_NONE = 0,		/* not a memory fault */
	KVMFAULT_KIND_EXIT = 1,		/* KVM_EXIT_MEMORY_FAULT */
	/* SIGBUS with BUS_MCEERR_AR: a marker of the library's, or memory that
	 * really failed. The page's state tells which of the two it is. */
	KVMFAULT_KIND_MARKER = 2,
	KVMFAULT_KIND_UNANNOTATED = 3,	/* EFAULT without exit information */
	KVMFAULT_KIND_MMIO = 4,		/* KVM_EXIT_MMIO, in RAM or not: only
					 * the regions tell */
	KVMFAULT_KIND_EMULATION = 5,	/* KVM's emulator gave up */
	KVMFAULT_KIND_UFFD = 6,		/* a message of userfaultfd */
	KVMFAULT_KIND_CALL = 7,		/* kvmfault_ensure() */
	/* SIGBUS with BUS_MCEERR_AO: memory failed that no thread has touched
	 * yet. */
	KVMFAULT_KIND_FAILURE = 8,
	KVMFAULT_KIND_FILL = 9,		/* kvmfault_fill_new(): no thread waits
					 * for the page */
};
#define KVMFAULT_KIND_COUNT 10

enum kvmfault_access {
	KVMFAULT_ACCESS_UNKNOWN = 0,
	KVMFAULT_ACCESS_READ = 1,
	KVMFAULT_ACCESS_WRITE = 2,
	KVMFAULT_ACCESS_EXEC = 3,
};

/* kvmfault_fault.known: the addresses that came with the fault */
#define KVMFAULT_KNOWN_GPA	(1U << 0)
#define KVMFAULT_KNOWN_HVA	(1U << 1)
#define KVMFAULT_KNOWN_LENGTH	(1U << 2)

struct kvmfault_fault {
	size_t size;
	enum kvmfault_kind kind;
	enum kvmfault_access access;
	uint32_t known;		/* KVMFAULT_KNOWN_* */
	uint32_t address_space;	/* 0, or 1 for an x86 vCPU in SMM */
	/* KVM_RUN's errno, positive (EFAULT, EHWPOISON), or 0. In all other
	 * structs error is -errno, or 0. */
	int error;
	/* Of an EXIT: aligned down to 4 KiB. Of MMIO: exact to the byte. */
	uint64_t gpa;
	uint64_t hva;
	/* At least the length that was touched. It is 4 KiB if the exit says 0,
	 * and 0 if no address is known. gpa + length - 1 never wraps. */
	uint64_t length;
	/* The kernel's flags: KVM_MEMORY_EXIT_FLAG_* of an exit; of a message
	 * those UFFD_PAGEFAULT_FLAG_* that neither access nor the page's state
	 * says (not WRITE, WP, MINOR). Unknown bits are kept. */
	uint64_t flags;
};

/*
 * Decode the result of KVM_RUN. ret and err are its return value and the errno
 * right after it. run is the vCPU's shared page, and may be NULL. A record in
 * it is believed only if the kernel says that it is fresh: that is
 * KVM_EXIT_MEMORY_FAULT with -1 and EFAULT or EHWPOISON, and the other exits
 * with 0.
 *
 * fault->size must be set; the fault is filled in any case.
 *
 * Returns 0, or
 *   -EINVAL   fault is NULL, or its size is not set
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_decode(int ret, int err, const struct kvm_run *run,
		    struct kvmfault_fault *fault);

/*
 * Decode a SIGBUS. siginfo is the signal's siginfo_t, from sigtimedwait() or
 * from a handler: this function makes no system call. If the signal is not
 * about a memory failure of this machine, the kind is KVMFAULT_KIND_NONE: hand
 * the signal on untouched.
 *
 * Returns 0, or
 *   -EINVAL   fault is NULL, or its size is not set
 *
 * Thread class: any. Async-signal-safe. Since 0.1.
 */
int kvmfault_decode_siginfo(const void *siginfo, struct kvmfault_fault *fault);

/*
 * Context
 * -------
 * There is one context for each VM, and any number of them in a process.
 */
enum kvmfault_log_level {
	KVMFAULT_LOG_NONE = 0,
	KVMFAULT_LOG_ERROR = 1,		/* a call failed: why, what to do */
	KVMFAULT_LOG_WARNING = 2,	/* it goes on, but should be known */
};

/* Why bytes of guest memory changed without KVM's dirty log seeing it. */
enum kvmfault_cause {
	KVMFAULT_CAUSE_NONE = 0,
	KVMFAULT_CAUSE_FETCH = 1,	/* a page came from its source, or is a
					 * hole of it */
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
	/* It has the gpa if KVMFAULT_KNOWN_GPA is set in its known. */
	const struct kvmfault_fault *fault;
	struct kvmfault_vcpu *vcpu;	/* that touched it; NULL: none has */
	struct kvmfault_memory *memory;	/* or NULL: a guest_memfd's page */
	uint64_t offset;	/* whole pages of the memory, or region */
	uint64_t length;
};

/* Why a fault was not resolved. */
enum kvmfault_reason {
	KVMFAULT_REASON_NONE = 0,
	KVMFAULT_REASON_NO_ADDRESS = 1,	/* UNANNOTATED, and it persists */
	KVMFAULT_REASON_NO_REGION = 2,	/* no region, and no resolver took it */
	KVMFAULT_REASON_DECLINED = 3,	/* no resolver took it */
	KVMFAULT_REASON_FLAGS = 4,	/* flags that no resolver understands */
	KVMFAULT_REASON_SOURCE = 5,	/* the source failed: see error */
	KVMFAULT_REASON_RESOLVER = 6,	/* a resolver failed: see error */
	/* A resolver returned RESOLVED, but the page is absent. */
	KVMFAULT_REASON_STILL_ABSENT = 7,
	KVMFAULT_REASON_NO_PROGRESS = 8, /* resolved again and again */
	KVMFAULT_REASON_HWPOISON = 9,	/* memory failed: EHWPOISON, SIGBUS */
	/* KVM_RUN was entered although an access was unfinished. */
	KVMFAULT_REASON_LOST_MMIO = 10,
};

/*
 * Delivery: how a vCPU's missing page gets to the library. In every mode, the
 * missing pages of all other threads come through userfaultfd, and so do a
 * vCPU's faults that the mode does not catch. A mode only makes vCPUs faster:
 * the VMM's code is the same in all of them.
 */
enum kvmfault_delivery {
	/* KERNEL_EXIT (see kvmfault-experimental.h), else MARKER_EXIT if it is
	 * allowed, else UFFD. */
	KVMFAULT_DELIVERY_AUTO = 0,

	/* The vCPU sleeps in the kernel until a thread of the service has read
	 * its message and brought the page. */
	KVMFAULT_DELIVERY_UFFD = 1,

	/* KVM_RUN ends with a SIGBUS, and the vCPU's own thread brings the
	 * page. For this, absent pages of the memslots' mapping have a marker
	 * (UFFDIO_POISON, Linux 6.6). Markers are put into blocks of 1,024
	 * pages, and only in a memory with a file, a source, and a second
	 * mapping in this process. The first 32 blocks that are touched get
	 * them at that touch. Any other block gets them at its second touch, or
	 * at its first if a block beside it has them. Up to four blocks ahead
	 * get them as well.
	 *
	 * The VMM itself has to use that second mapping: a thread that touches
	 * a marker in another way than KVM_RUN gets the SIGBUS too. KVM's own
	 * reads and writes fail at a marker, see doc/integration.md: so this
	 * mode has to be allowed by name. */
	KVMFAULT_DELIVERY_MARKER_EXIT = 2,

	/* KVMFAULT_DELIVERY_KERNEL_EXIT of kvmfault-experimental.h. */
	KVMFAULT_DELIVERY_EXPERIMENTAL_3 = 3,
};
#define KVMFAULT_DELIVERY_COUNT 4

/* kvmfault_vm_options.allow */

/* AUTO may take MARKER_EXIT. */
#define KVMFAULT_ALLOW_MARKER_EXIT (1ULL << 0)

/* MARKER_EXIT is allowed also where KVM walks the guest's page tables in
 * software. There, a page table in a page with a marker would be a page fault
 * that the guest sees: so the VMM keeps the guest's page tables present, see
 * kvmfault_ensure_page_tables(). On PVM, where KVM delivers exceptions in
 * software, the IDT, GDT, TSS and the exceptions' stacks have to be present as
 * well, as far as the registers lead there: a marker there ends the guest. */
#define KVMFAULT_ALLOW_SHADOW_PAGING (1ULL << 1)

/* A fault of a thread that sleeps in the kernel, and that was not resolved. */
struct kvmfault_sleeper {
	size_t size;
	const struct kvmfault_fault *fault;	/* its hva is of the process
						 * that sleeps */
	struct kvmfault_memory *memory;	/* not to be freed in the callback */
	uint64_t offset;	/* the page of the memory */
	uint64_t length;
	/* Of the process that sleeps. NULL: one that the library opened, so it
	 * is this process. */
	struct kvmfault_uffd *uffd;
	enum kvmfault_reason reason;
	int error;		/* -errno */
};

/* The VMM's callbacks: by these it is told. Each may be NULL. */
struct kvmfault_vm_ops {
	size_t size;

	/* One line without a newline: what went wrong, and what to do about it.
	 * The kvmfault_vm_new() that gets these ops uses it already. A VMM
	 * without a log has kvmfault_vm_error(). */
	void (*log)(void *data, enum kvmfault_log_level level,
		    const char *message);

	/* The library changed guest memory. It is called after the bytes are
	 * there, and is meant for a VMM's own dirty tracking. */
	void (*changed)(void *data, const struct kvmfault_change *change);

	/* The fault of a thread that sleeps in the kernel could not be resolved
	 * in as many tries as source_retries says. Nothing can be returned to
	 * that thread: it stays asleep. The library tries again, more and more
	 * slowly, up to once a second, until it works or the VMM stops the VM.
	 * The callback is called once for each such fault, as long as no more
	 * than 256 of them are deferred; faults above that number may be told
	 * again, or not at all. It holds up one thread of the service. */
	void (*unresolved)(void *data, const struct kvmfault_sleeper *sleeper);

	/* Guest memory has failed: see kvmfault_vcpu_handle_sigbus(). Tell the
	 * guest (by a machine check or an SError) and return 0: a vCPU that
	 * touched the memory then goes on with RETRY. If this returns -errno,
	 * or there is no such callback, the vCPU's action is UNRESOLVED. It is
	 * also UNRESOLVED if the guest touches the memory retry_budget times in
	 * a row. */
	int (*failed)(void *data, const struct kvmfault_failure *failure);

	/* Run all vCPUs that wait after PENDING again (see the vCPU's option
	 * no_wait): a page that a vCPU was told PENDING about is not on its way
	 * any more. It is there, or has failed.
	 *
	 * - It may come for pages that no vCPU waits for.
	 * - It may come before kvmfault_vcpu_handle() has returned PENDING:
	 *   note before that call how often it came.
	 * - If memory is NULL, a conversion that was in the way of a vCPU's
	 *   conversion is over. The range is then guest-physical. It is the
	 *   other conversion's, and the vCPU's page need not be in it.
	 * - It comes on the thread that ended the fetch or the conversion,
	 *   which may be another vCPU's. */
	void (*page_ready)(void *data, struct kvmfault_memory *memory,
			uint64_t offset, uint64_t length);
};

struct kvmfault_vm_options {
	size_t size;

	/* The callbacks that the VMM wants, copied. NULL: none. */
	const struct kvmfault_vm_ops *ops;
	void *data;		/* each of these functions' first argument */

	/* ---- KVM ---- */

	/* KVM's descriptor of the VM, for conversions. Borrowed until the
	 * context is freed. 0: none. */
	int vm_fd;

	/* /dev/kvm, borrowed during kvmfault_vm_new(). For the modes that end
	 * in an exit, scratch VMs are asked what KVM does. 0: KERNEL_EXIT (see
	 * kvmfault-experimental.h) is not taken, and MARKER_EXIT only with
	 * KVMFAULT_ALLOW_SHADOW_PAGING, which leaves nothing to be asked. */
	int kvm_fd;

	/* ---- how faults are delivered and tried again ---- */

	/* KVMFAULT_ALLOW_*, and how missing pages of vCPUs are delivered. */
	uint64_t allow;
	enum kvmfault_delivery delivery;

	/* How many times in a row one vCPU's faults may be answered without
	 * progress before the action is UNRESOLVED. Progress is a page that
	 * came, a fault at a page that is not among the last 8, or an exit that
	 * is no fault. From the third time on there is a pause before the
	 * answer. 0: 16.
	 *
	 * A fault that cannot be answered now does not count: the mappings
	 * change, or a source says -EAGAIN. It is tried again, with pauses of
	 * 10 ms at most, until a signal or immediate_exit ends it. */
	uint32_t retry_budget;

	/* How many times a fault whose source failed is tried again before the
	 * VMM is told: after 1 ms, and then after twice as long each time, up
	 * to about a second. Then a vCPU's fault is UNRESOLVED with the reason
	 * SOURCE. A sleeper's fault is told by the callback unresolved, for
	 * which any failure counts. 0: 2. KVMFAULT_NO_RETRIES: none, for a
	 * source that tries again by itself.
	 *
	 * A signal or immediate_exit ends a vCPU's pause (INTERRUPTED or
	 * UNFINISHED). The rest of the pause is waited when the fault comes
	 * again: an interrupted pause does not consume a try, and adds none.
	 * After -EHWPOISON a vCPU's fault is not tried again. With no_wait it
	 * never is: one failure is UNRESOLVED at once. kvmfault_ensure() asks
	 * once. */
	uint32_t source_retries;
#define KVMFAULT_NO_RETRIES UINT32_MAX

	/* After a vCPU's fault has brought a window of pages (see enum
	 * kvmfault_window), let KVM map all of them for the guest: the other
	 * pages then cost no exit to KVM. The thread that answered the fault
	 * calls KVM_PRE_FAULT_MEMORY for pages that are present and not in a
	 * region with a guest_memfd. With the delegate profile it does so only
	 * after an exit for missing memory. If the kernel lacks that ioctl
	 * (6.11, x86 with two-dimensional paging), nothing is done.
	 * kvmfault_vcpu_new() asks the vCPU for it, so the vCPU must not run at
	 * that time. */
	bool prefault;

	/* ---- memory and conversions ---- */

	/* The largest page size of a memory without minor faults. Each vCPU,
	 * service thread and caller keeps scratch memory of that size. 0:
	 * 2 MiB. */
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
 *
 * Returns 0, or
 *   -EINVAL       vm is NULL; the size of options or of ops is not set (no
 *                 line tells that: there is no log yet); page_size_max is not
 *                 a power of two from 4 KiB to 1 GiB; a flag of allow or of
 *                 the converter, or the delivery mode, is not known
 *   -EOPNOTSUPP   the delivery mode is not available (the log says why)
 *   -EBADF        vm_fd is closed
 *   -E2BIG        a struct has a member set that this library does not know
 *   -ENOMEM       there is no memory for it
 *   -EMFILE       this process has too many open descriptors
 *   -ENFILE       the system has too many open descriptors
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_vm_new(const struct kvmfault_vm_options *options,
		    struct kvmfault_vm **vm);

/*
 * Why the calling thread's last call that failed has failed: the line that the
 * log got, which names the member or object. It is copied into text, as far as
 * it fits with its final 0. Like errno it stays after calls that succeed: ask
 * when a call has returned an error. Texts of calls without a context
 * (kvmfault_vm_new(), kvmfault_source_file()) are not in here; the former has
 * kvmfault_vm_ops.log.
 *
 * Returns 0, or
 *   -EINVAL   vm or text is NULL, or size is 0
 *   -ENOENT   there is no text, or it is lost: eight texts are kept, and other
 *             threads have had as many errors since
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_vm_error(const struct kvmfault_vm *vm, char *text, size_t size);

/*
 * Free a context. All of its objects have to be freed before. NULL is fine.
 *
 * Returns 0, or
 *   -EBUSY   a vCPU, service, memory, region, fill, recording or uffd is
 *            left; nothing was freed
 *
 * Thread class: object. Since 0.1.
 */
int kvmfault_vm_free(struct kvmfault_vm *vm);

/* The delivery mode in force, and why the others are not. */
struct kvmfault_delivery_report {
	size_t size;
	enum kvmfault_delivery delivery;	/* in force now */
	/* Of each mode, by kvmfault_delivery: is it available? error is what
	 * asking for it gave. NOT_ASKED: it was not wanted. */
	struct kvmfault_finding mode[KVMFAULT_DELIVERY_COUNT];
	/* Why the mode is not in force: one line that lives as long as the
	 * library. NULL: the mode is in force. */
	const char *why[KVMFAULT_DELIVERY_COUNT];
};

/*
 * Report the delivery mode of a context.
 *
 * Returns 0, or
 *   -EINVAL   vm or report is NULL, or the report's size is not set
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_vm_delivery(const struct kvmfault_vm *vm,
			 struct kvmfault_delivery_report *report);

/*
 * Leave the mode that kvmfault_vm_new() has chosen, or take it up again, also
 * while vCPUs run. With UFFD, from the moment in which this returns all faults
 * arrive at the service, so there has to be one. Kernel interface:
 * MADV_DONTNEED on the memslots' mappings, which takes the markers and no data.
 *
 * Returns 0, or
 *   -EINVAL       vm is NULL; delivery is AUTO, or a mode that is not known
 *   -EOPNOTSUPP   the mode is neither UFFD nor the chosen one
 *   -ENOMEM       there is no memory for it
 *   other         what madvise(2) returned: some markers are left then, and are
 *                 answered as before
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_vm_set_delivery(struct kvmfault_vm *vm,
			     enum kvmfault_delivery delivery);

/*
 * Sources: where absent pages come from
 * -------------------------------------
 * A source is this struct. The VMM fills it, or one of the functions below
 * does. A function that takes a source copies the struct; data must live as
 * long as the objects that use the source.
 */
struct kvmfault_source {
	size_t size;
	const char *name;

	/* Read length bytes at offset into buffer. Return 0 if all of them are
	 * there; else -errno, and the buffer does not matter. Any number of
	 * threads may call it at once, vCPUs' threads among them. */
	int (*read)(void *data, uint64_t offset, void *buffer, size_t length);
	void *data;

	/* How many bytes the source has. 0: not known, or no end. */
	uint64_t length;

	/* Reads are best in chunks of so many bytes, aligned to them: a cluster
	 * of an image, a network's block. For KVMFAULT_WINDOW_SOURCE. 0: it
	 * does not matter. */
	uint64_t chunk;

	/* In place of read, for a source that answers later: begin to read
	 * length bytes at offset into buffer, and return at once. If it returns
	 * 0, kvmfault_fetch_done() is called once, by any thread, and maybe
	 * before this returns. If it returns -errno, the fetch has not begun;
	 * with -EAGAIN it may begin later. Any number of threads may call it at
	 * once. If a window fails, kvmfault_fetch_done() calls it again, for
	 * the page alone, on its own thread: hold no lock there that this
	 * takes. */
	int (*submit)(void *data, struct kvmfault_fetch *fetch,
		      uint64_t offset, void *buffer, size_t length);

	/* Cancel the fetch: it is not wanted any more. The source still calls
	 * kvmfault_fetch_done() for it, and soon. Any thread may call it, once
	 * for each fetch that submit has begun, and not before submit has
	 * returned. Optional. */
	void (*cancel)(void *data, struct kvmfault_fetch *fetch);

	/* In milliseconds: a fetch that takes longer is cancelled. It needs
	 * submit, cancel and a service. 0: no fetch is cancelled. */
	uint32_t deadline_ms;

	/* Beside read, for a source that is mapped in this process: return
	 * where the length bytes at offset are. They stay there until the fault
	 * is answered, and are installed from there without a copy in between.
	 * If it returns NULL, the bytes are read. Optional.
	 *
	 * If bytes are missing there after all, because the file was cut off at
	 * the end of a page and `file` is not set, that is an error of the
	 * source, -EFAULT. It is called as read is. With minor faults it is not
	 * called, since the bytes are read into the file: there read has to
	 * cope with such a file by itself. */
	const void *(*view)(void *data, uint64_t offset, size_t length);

	/* For a source that is a mapped file: the file that the bytes come
	 * from, with the same offsets. In a mapping, the last page of a file
	 * has zeros behind the file's end, and only the file's length tells
	 * that it was cut off there. If this is set, the library looks at the
	 * length (fstat(2)) before each read and view, and a page of which
	 * something is missing is -ENODATA. Borrowed for the source's life. 0:
	 * none. */
	int file;

	/* For a source that knows where it has nothing: what are the bytes at
	 * offset? *length comes in as how many bytes are asked about (maybe all
	 * that the memory shows from there on), and goes out as how many of
	 * these, from the first one on, are alike: at least 1. Return a
	 * kvmfault_extent; or -errno, and the source has failed as if a read
	 * had. Any number of threads may call it at once, on the path of a
	 * fault: answer at once, from what is known. If the source does not
	 * know, it says KVMFAULT_EXTENT_DATA: then it is read, and hides what a
	 * source below it has there.
	 *
	 * A page that is all zero is not read, and takes no memory if the
	 * memory is anonymous: see KVMFAULT_PAGE_HOLE. Windows end where such a
	 * page is. An answer that cannot be (no byte, more than was asked, an
	 * enumerator that is not known) is -EIO. Optional. NULL: all is data,
	 * and is read. */
	int (*extent)(void *data, uint64_t offset, uint64_t *length);

	/* Free data: kvmfault_source_free() calls it, and no other function
	 * does. Optional. */
	void (*free)(void *data);
};

/* How the bytes at an offset of a source are. */
enum kvmfault_extent {
	KVMFAULT_EXTENT_DATA = 0,	/* bytes that have to be read */
	KVMFAULT_EXTENT_ZERO = 1,	/* zeros */
	/* Nothing: zeros, unless a source below this one has something there,
	 * see kvmfault_source_over(). */
	KVMFAULT_EXTENT_HOLE = 2,
};

/*
 * For a source with submit: the fetch has ended. error is 0 if the bytes are in
 * the buffer, or -errno if the source does not have them. If a window fails,
 * its page is asked for again, alone: this call may call submit.
 *
 * This call installs the pages, wakes all threads that wait for them, and calls
 * the VMM's callbacks, all on this thread. If it comes before submit has
 * returned, that is done on the thread that called submit. After it the buffer
 * and the fetch are the library's again.
 *
 * Call it once for each submit that has returned 0. While the first call is
 * handled, a second one has no effect. After that, it would be taken for the
 * answer to the next use of the fetch. NULL is fine.
 *
 * Thread class: any; not in a signal handler. Since 0.1.
 */
void kvmfault_fetch_done(struct kvmfault_fetch *fetch, int error);

/*
 * Make a source of a file or block device, which is read by pread(2). fd is
 * borrowed for the source's life. If the file ends too early, the read is
 * -ENODATA.
 *
 * Where the file has a hole, nothing is read: the source asks for holes by
 * lseek(2), which moves the descriptor's file position. Where the kernel cannot
 * say, as for a block device, all is data. If the file is still being written,
 * or its file system is not to be believed, set source->extent to NULL
 * afterwards: then each byte is read.
 *
 * Returns 0, or
 *   -EINVAL    source is NULL, or its size is not set
 *   -EBADF     fd is not open
 *   -EACCES    fd is not open for reading (O_WRONLY, O_PATH)
 *   -ESPIPE    fd is not a file or block device
 *   -ENODATA   the file is empty
 *   other      what fstat(2) returned
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_source_file(int fd, struct kvmfault_source *source);

/*
 * Make a source of memory of this process, such as a mapped snapshot. It is
 * borrowed for the source's life, and must not be guest memory itself.
 *
 * Pages are installed straight from it. With minor faults, or with events (see
 * kvmfault_uffd_options.fd), it is read instead; if its file was cut off, the
 * thread that reads gets a SIGBUS.
 *
 * If it is a mapped file, and bytes is where the file begins, set source->file
 * afterwards. Else the guest gets zeros where the file was cut off in the
 * middle of a page.
 *
 * Returns 0, or
 *   -EINVAL   bytes or source is NULL, length is 0, or source's size is not set
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_source_memory(const void *bytes, uint64_t length,
			   struct kvmfault_source *source);

/*
 * Make a source of zeros without end.
 *
 * Returns 0, or
 *   -EINVAL   source is NULL, or its size is not set
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_source_zero(struct kvmfault_source *source);

/*
 * Make a source of two: above lies on below, as a snapshot lies on an older
 * one. Where above has a hole, or has ended, the bytes are below's. A border
 * may lie in the middle of a page. Both structs are copied, and are the new
 * source's from then on: kvmfault_source_free() frees them with it. On error
 * they are the caller's. source may be one of the two structs.
 *
 * - The new source is as long as the longer one of the two; if one's length is
 *   not known, neither is its own. Where above has a hole and below has ended,
 *   it is -ENODATA: to have zeros there, lay below on kvmfault_source_zero()
 *   first. So more than two are laid on one another from the lowest one up.
 * - Each keeps its own `file`, and view where it has all of the bytes. A source
 *   that was cut off is an error, never zeros.
 * - above is believed: where it says data, below is hidden. A file's holes are
 *   whole blocks of its file system, and some file systems have none: there a
 *   file says data, and has zeros in place of what is below.
 * - It answers at once: submit is not used.
 *
 * Returns 0, or
 *   -EINVAL       a pointer is NULL, or a size is not set; above has no extent,
 *                 so that below would never be seen
 *   -EOPNOTSUPP   above or below has no read: it only answers later
 *   -ENOMEM       there is no memory for it
 *   -E2BIG        a struct has a member set that this library does not know
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_source_over(const struct kvmfault_source *above,
			 const struct kvmfault_source *below,
			 struct kvmfault_source *source);

/*
 * Free what a source has of its own: call its `free`, if it has one, and clear
 * all members but size. Call this when no memory uses the source any more, and
 * with one copy of the struct alone. NULL is fine.
 *
 * Thread class: setup. Since 0.1.
 */
void kvmfault_source_free(struct kvmfault_source *source);

/*
 * Userfaultfds
 * ------------
 * A VMM needs this section only for its device processes, or if it opens its
 * userfaultfd itself. A memory with a source opens one if it is given none.
 */
struct kvmfault_uffd_options {
	size_t size;

	/* A userfaultfd to adopt, with O_NONBLOCK and UFFDIO_API done, and
	 * without UFFD_FEATURE_SIGBUS. The library keeps a duplicate, and reads
	 * all of its messages: nothing else may be registered with it. 0: open
	 * one of this process's.
	 *
	 * This process's: it has to report accesses of the kernel, since KVM's
	 * are of this kind. So it is made without UFFD_USER_MODE_ONLY. The
	 * library asks it, by an access of the kernel to a page of its own.
	 *
	 * Another process's: it cannot be asked. For a process that itself
	 * touches guest memory, one with UFFD_USER_MODE_ONLY will do. There, a
	 * system call on guest memory, such as read(2) into it, fails with
	 * EFAULT.
	 *
	 * With events (UFFD_FEATURE_EVENT_*) in an adopted one:
	 * - Every madvise() and munmap() of its memory waits until a thread of
	 *   the service has read all that came before.
	 * - If the library itself takes pages away, for instance in
	 *   kvmfault_discard(), a thread of its own reads the events: one for
	 *   each descriptor with events that is not remote. /proc/self/fdinfo
	 *   says whether a descriptor has events; if that cannot be read, each
	 *   one gets a thread. The thread needs the system calls of a SERVICE
	 *   thread. It calls no callback but log, in which kvmfault_discard(),
	 *   for instance, is -EDEADLK.
	 * - In anonymous memory the bytes are copied once more before they are
	 *   installed, as for minor faults: a source's view is not called.
	 * - A REMOVE event of anonymous memory has the effect of
	 *   kvmfault_discard(). Once the MADV_DONTNEED has returned, its pages
	 *   are zero, also those that were being fetched. Until then the kernel
	 *   installs nothing by that descriptor: faults are tried again, and
	 *   kvmfault_ensure() returns -EAGAIN. After MADV_FREE, pages are zero
	 *   when the kernel has taken them. */
	int fd;

	/* The descriptor is of another process's address space, which sent it
	 * here. Make one such object for each process. */
	bool remote;
};

/*
 * Open a userfaultfd, or adopt one. options may be NULL: open one.
 *
 * Returns 0, or
 *   -EINVAL       vm or uffd is NULL; remote is set without fd; fd is without
 *                 O_NONBLOCK or UFFDIO_API; fd is not remote, and does not
 *                 report what the kernel touches, or takes no memory of this
 *                 process
 *   -EOPNOTSUPP   the kernel's userfaultfd has another API
 *   -EBADF        fd is closed
 *   -EAGAIN       there are no more threads: the library takes one to ask an
 *                 fd, and keeps one if the fd has events
 *   -EPERM        there is no right to userfaultfd (the log says how to get it)
 *   -ENOSYS       this kernel has no userfaultfd
 *   -ENOSPC       there are 4,095 userfaultfds
 *   -E2BIG        options has a member set that this library does not know
 *   -ENOMEM       there is no memory for it
 *   -EMFILE       this process has too many open descriptors
 *   -ENFILE       the system has too many open descriptors
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_uffd_new(struct kvmfault_vm *vm,
		      const struct kvmfault_uffd_options *options,
		      struct kvmfault_uffd **uffd);

/*
 * The library's own descriptor, for the VMM to poll or duplicate. Do not close
 * it.
 *
 * Returns the descriptor, or
 *   -EINVAL   uffd is NULL
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_uffd_fd(const struct kvmfault_uffd *uffd);

/*
 * Close the library's duplicate. If mremap() has moved memory that is
 * registered with it, it stays open. NULL is fine.
 *
 * Returns 0, or
 *   -EBUSY     a mapping uses it
 *   -EDEADLK   called in the log callback on its own thread that reads events
 *              (see kvmfault_uffd_options.fd)
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_uffd_free(struct kvmfault_uffd *uffd);

/*
 * Memory and its mappings
 * -----------------------
 * A memory is one backing (a memfd, a hugetlbfs file, or anonymous memory) and
 * the state of each of its pages. It outlives the memslots that show it. With a
 * source it is *tracked*: its pages start absent, and exactly one thread
 * fetches a page, however many threads fault on it, and by whichever kind of
 * fault. Without a source, the library makes present what the host can make
 * present.
 *
 * The first mapping is the memslots' (their userspace_addr): pages are
 * installed through it. Any number of others may follow: the VMM's own, and one
 * for each device process.
 *
 * All accesses to guest memory have to go through a mapping that the library
 * knows. write(2) to the file does not. Into an absent page it puts its bytes,
 * with zeros around them, and that page never comes from the source; read(2) of
 * the file gets zeros there. So call kvmfault_ensure() for the pages before
 * something reads or writes them by the descriptor. The library does not seal
 * its file against that. With F_SEAL_FUTURE_WRITE a file cannot be mapped for
 * writing any more, as device processes do, and no page of it can be discarded.
 *
 * Do not move a mapping by mremap(): before that, remove it, or free the
 * memory. Pages that were moved stay registered, so that absent ones do not
 * read as zero there, but none of them comes any more. A thread that misses one
 * sleeps, also after kvmfault_memory_free(): so that call leaves a descriptor
 * open. mremap() itself waits until the service has read the event that tells
 * of the move, and the log has an ERROR then. An adopted userfaultfd tells of
 * it only with UFFD_FEATURE_EVENT_REMAP: without that, moved memory reads as
 * zeros, and the library does not learn of it.
 */

/*
 * How many pages one fault brings: the run of absent pages around it, within a
 * window. The run never goes past its region (for a message: past the memory's
 * end), and never over a page that is present, discarded, poisoned or being
 * fetched. If the source fails for the run, the page is fetched alone, unless
 * the fetch was cancelled. A run costs one read of the source and one call of
 * the kernel.
 */
enum kvmfault_window {
	KVMFAULT_WINDOW_NONE = 0,	/* the page alone */
	KVMFAULT_WINDOW_FIXED = 1,	/* the aligned block of window_length */
	/* Twice as many pages each time while faults walk up or down through
	 * the memory, up to window_length; else one page. */
	KVMFAULT_WINDOW_ADAPTIVE = 2,
	KVMFAULT_WINDOW_SOURCE = 3,	/* the source's chunk */
};

struct kvmfault_memory_options {
	size_t size;

	/* The memslots' mapping in this process, and its length. With uffd of
	 * another process: the address there. */
	void *host;
	uint64_t length;

	/* The backing's page size: a hugetlbfs file's, else the host's, which
	 * is also what 0 means. Anonymous memory of another process can have
	 * huge pages: then it is their size, and no more than the context's
	 * page_size_max. */
	uint64_t page_size;

	/* The file behind the memory, borrowed until the memory is freed, and
	 * the offset at which host shows it. It is mapped MAP_SHARED. 0:
	 * private anonymous memory. If host is mapped in another way, that is
	 * refused, as far as /proc/self/maps tells; if that file cannot be
	 * opened, these members are believed. */
	int fd;
	uint64_t fd_offset;

	/* Where absent pages come from, copied, and the memory's beginning in
	 * it. NULL: the memory is untracked. */
	const struct kvmfault_source *source;
	uint64_t source_offset;

	/* The userfaultfd to register host with; only with a source. NULL: the
	 * library opens one for this memory. With one of another process, that
	 * process has the memory's first mapping: see "Memory of another
	 * process" below. */
	struct kvmfault_uffd *uffd;

	/* The pages that a fault brings. window_length: whole pages, up to the
	 * context's page_size_max. 0: 64 KiB, or a page if that is more. */
	enum kvmfault_window window;
	uint64_t window_length;

	/* Minor faults: pages are written to the file through a mapping of the
	 * library's own, and are then mapped where they are wanted
	 * (UFFDIO_CONTINUE). This allows a file that has pages already (they do
	 * not count: the source's pages replace them), and pages larger than
	 * page_size_max. It needs a memfd or hugetlbfs file, and a source. */
	bool minor;

	/* The memory's pages can be protected, see "Protect": its mappings are
	 * registered for that too. It needs a source (kvmfault_source_zero()
	 * will do), and for a file Linux 5.19, with minor faults 6.4. */
	bool write_protect;

	/* Children of fork() get the memory mapped. By default they do not
	 * (MADV_DONTFORK, which stays when the memory is freed). A child's
	 * mapping is not registered: a page that it merely reads becomes zeros,
	 * for the guest too. So set this only for a child that registers the
	 * mapping before it touches it, and hands over that userfaultfd. */
	bool inherited;

	/* A file for the states of the memory's pages, so that they outlive
	 * this process, as fd does: whoever holds both can take the memory up
	 * again, see below. A memfd will do. It is borrowed until the memory is
	 * freed, and needs a source, and fd or a uffd of another process. 0:
	 * the library keeps them. */
	int states_fd;
};

/*
 * Take a memory into the library's care. With a source the range must be empty,
 * unless it has minor faults: a page that is there already would never be
 * missed, and so never fetched.
 *
 * With states_fd, a memory whose pages are partly there can be taken up. If
 * that file is empty, the memory is a new one, and the library makes the file
 * as long as it needs (4 KiB, and 5 bits for each page). If it has the states
 * that another owner of this file fd has left, who may have freed the memory or
 * been killed at any moment, then
 * - pages that were present or discarded are so again, and none of them is
 *   fetched; what was settled stays so;
 * - a page that was in flight is present if fd has it, else it is absent;
 * - protection is gone: a snapshot ends with its process.
 * minor has to be what it was. The owner before must be gone by then: the
 * library can't tell whether it is. Other processes may have fd mapped all the
 * while, if they themselves hold the userfaultfd of their mapping. Do not write
 * to the file of states, and do not make it shorter. kvmfault_memory_count()
 * tells what was found.
 *
 * Memory of another process
 * A process that serves the memory of VMMs has only their userfaultfds. So uffd
 * may be one with `remote`; host is the address in that process, and fd is 0 if
 * the memory is private there. All that is said above holds, but:
 * - The library can't see what is there already: register the range there
 *   before anything touches it.
 * - No region shows the memory, and no vCPU of this process runs in it. Faults
 *   come as messages. Fills, working sets, counts, states_fd and
 *   kvmfault_memory_settle() work as ever; kvmfault_request.host is an address
 *   in that process; a resolver has to install by kvmfault_request_install(),
 *   since it is not believed to have done so by itself.
 * - In private memory only that process can take pages away. The userfaultfd
 *   has to have UFFD_FEATURE_EVENT_REMOVE, or else such a page would come from
 *   the source once more. An owner that is killed in the instant in which it
 *   has read such an event loses it.
 * - states_fd: pages that are present are believed to be so.
 *
 * Returns 0, or
 *   -EINVAL       vm, host or memory is NULL; a range is not aligned to the
 *                 page size, or wraps; the file is too short, or is not what
 *                 is mapped at host; the page size is not the backing's, or is
 *                 larger than the context's page_size_max; uffd is of another
 *                 context, or is given without a source; the window is not
 *                 known, or its length is wrong; minor is set without a file or
 *                 a source; write_protect is set without a source; states_fd is
 *                 set without a source, or without a file or a uffd of another
 *                 process; the source has neither read nor submit, or has
 *                 deadline_ms without submit and cancel
 *   -EOPNOTSUPP   this kernel's userfaultfd does not take the memory: a
 *                 guest_memfd; minor faults before 5.13 (of a memfd 5.14);
 *                 protection before 5.19; both before 6.4
 *   -ENODATA      the source is shorter than the memory
 *   -EEXIST       there are pages already (preallocated blocks), or one that
 *                 the states do not call present; or another memory of this
 *                 context has a part of this host range
 *   -ESTALE       states_fd has states of another memory, or of another version
 *                 of the library, or pages that they call present are not in fd
 *   -EAGAIN       a thread of this process forks, unmaps or moves memory just
 *                 while the huge pages of states_fd are looked for: call again
 *   -EBADF        fd is closed, or open for nothing (O_PATH); states_fd is not
 *                 open for reading and writing
 *   -EPERM        no userfaultfd, see kvmfault_uffd_new(); or states_fd is
 *                 sealed
 *   -ENOSYS       no userfaultfd, see kvmfault_uffd_new()
 *   -EBUSY        the range is registered with another userfaultfd
 *   -ENOMEM       there is no memory for it, or the range is not mapped, or its
 *                 process is gone
 *   -ENOSPC       there are 4,095 userfaultfds, or states_fd has no room
 *   -E2BIG        a struct has a member set that this library does not know
 *   -EMFILE       this process has too many open descriptors
 *   -ENFILE       the system has too many open descriptors
 *   other         what fstat(2) returned for a file, or for states_fd
 *                 fallocate(2) or mmap(2)
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_memory_adopt(struct kvmfault_vm *vm,
			const struct kvmfault_memory_options *options,
			struct kvmfault_memory **memory);

/* kvmfault_memory_alloc() has made these: they are all the caller's. */
struct kvmfault_memory_maps {
	size_t size;
	void *memslots;		/* for the memslots' userspace_addr */
	void *own;		/* for all other accesses of this process */
	/* The file: the one that was given, or a new one. Other processes can
	 * map it. Do not use write(2) on it, see above. */
	int fd;
};

/*
 * Make a memory in one call, as the delivery mode needs it. The library maps a
 * memfd or hugetlbfs file twice, once for the memslots and once for the VMM
 * itself, and takes both mappings into care. options are those of
 * kvmfault_memory_adopt(), with host NULL. If fd is 0, the library makes a
 * memfd, of huge pages if page_size is one of theirs. Other pages are asked to
 * stay small (MADV_NOHUGEPAGE), so that they come one by one.
 *
 * The memory borrows both mappings and the file. Unmap and close them after
 * kvmfault_memory_free(), and after the memslots that name them are gone.
 *
 * Returns 0, an error of kvmfault_memory_adopt(), or
 *   -EINVAL       maps is NULL, or host is not
 *   -EOPNOTSUPP   this kernel makes no memfd with pages of page_size
 *   other         what mmap(2), memfd_create(2) or ftruncate(2) returned
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_memory_alloc(struct kvmfault_vm *vm,
			   const struct kvmfault_memory_options *options,
			   struct kvmfault_memory_maps *maps,
			   struct kvmfault_memory **memory);

/*
 * Let go of a memory, fail-closed. NULL is fine. The call
 *
 * 1. waits for fetches in flight to end (their pages are installed),
 * 2. if pages are still absent, makes each of the memory's mappings in this
 *    process PROT_NONE, so that a zero page is never read in place of one that
 *    was not fetched,
 * 3. unregisters the mappings.
 *
 * Another process's mappings with absent pages cannot be made PROT_NONE from
 * here: their absent pages are poisoned. If the kernel cannot do that, they
 * stay registered until their uffd is freed. With states_fd they stay as they
 * are: a thread sleeps there until the next owner adds the mapping. So end that
 * process first if there will be no next owner.
 *
 * Before all that, the call waits for workers that were left by a vCPU's thread
 * and are still busy with the memory. One that sleeps on a page is answered by
 * the service. While no thread of a service reads messages, this call answers
 * them itself, and so calls sources, resolvers and ops.unresolved. If the page
 * can't be brought, it waits on, and tries again.
 *
 * Returns 0, or
 *   -EBUSY     a region shows the memory, or a fill or a recording has it
 *   -EDEADLK   called from a callback that is fetching for the memory
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_memory_free(struct kvmfault_memory *memory);

struct kvmfault_mapping_options {
	size_t size;

	/* Where the whole memory is mapped, in the process that uffd is of. */
	uint64_t host;

	/* The mapping is registered with it for missing pages, and served; only
	 * for a memory with a source. NULL: the memory is mapped in this
	 * process, and the library opens a userfaultfd for the mapping. If an
	 * owner before this one had settled the memory, or was killed when it
	 * did, the mapping is unregistered instead, and whoever sleeps there is
	 * woken. */
	struct kvmfault_uffd *uffd;

	/* As kvmfault_memory_options.inherited. */
	bool inherited;
};

/*
 * Add a mapping to a memory, also while vCPUs run. The VMM must not touch the
 * mapping before this has returned. The library may: it must be readable and
 * writable when this is called, and not PROT_NONE.
 *
 * Returns 0, or
 *   -EINVAL       memory, options or mapping is NULL; host is misaligned; the
 *                 memory is anonymous (it has one mapping); another file,
 *                 another part of the file or a private mapping of it is there
 *                 (in another process that is not checked); uffd is of another
 *                 context, or is given for a memory that is not registered: it
 *                 has no source, or this process has settled it
 *   -EOPNOTSUPP   this kernel's userfaultfd does not take what is mapped there
 *   -EEXIST       another mapping is known there
 *   -EBUSY        the range is registered with another userfaultfd
 *   -ENOMEM       there is no memory for it, the range is not mapped, or the
 *                 process is gone
 *   -EPERM        no userfaultfd, see kvmfault_uffd_new()
 *   -ENOSYS       no userfaultfd, see kvmfault_uffd_new()
 *   -ENOSPC       there are 4,095 userfaultfds
 *   -EMFILE       this process has too many open descriptors
 *   -ENFILE       the system has too many open descriptors
 *   -E2BIG        options has a member set that this library does not know
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_mapping_add(struct kvmfault_memory *memory,
			 const struct kvmfault_mapping_options *options,
			 struct kvmfault_mapping **mapping);

/*
 * Remove a mapping, but not the memslots', fail-closed as
 * kvmfault_memory_free(). NULL is fine. It does not wait for a fault in the
 * mapping that is in progress. It may answer messages, as that call.
 *
 * Returns 0, or
 *   -EINVAL   it is the memslots' mapping, which goes with its memory
 *   -ENOMEM   there is no memory for it
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_mapping_remove(struct kvmfault_mapping *mapping);

/*
 * Regions: what the guest sees where
 * ----------------------------------
 * A region is a guest-physical range that shows a part of a memory, as a
 * memslot does. Several regions may show the same memory (aliases, SMM).
 */

/* ROM: a guest's write to the region is MMIO, and no fault. */
#define KVMFAULT_REGION_READONLY (1U << 0)

struct kvmfault_region {
	size_t size;
	uint64_t gpa;
	uint64_t length;
	uint32_t address_space;
	uint32_t flags;		/* KVMFAULT_REGION_* */

	/* For private memory: the file, and the region's beginning in it.
	 * Borrowed until the region is removed. 0: none. */
	int guest_memfd;
	uint64_t guest_memfd_offset;

	/* The memory that is shown, from offset on. NULL: the region has a
	 * guest_memfd only, and its faults go to the VMM's own resolvers. */
	struct kvmfault_memory *memory;
	uint64_t offset;
};

/*
 * Add a region, also while vCPUs run. The struct is copied.
 *
 * Returns 0, or
 *   -EINVAL   a pointer is NULL; the range is empty, wraps, is not aligned to
 *             4 KiB, or goes past the memory's end; there is neither memory nor
 *             guest_memfd; the address space is over 4,095; a flag is not
 *             known; the memory is of another context
 *   -EOPNOTSUPP  the memory's first mapping is another process's
 *   -EEXIST   the region overlaps another one
 *   -ENOMEM   there is no memory for it
 *   -E2BIG    region has a member set that this library does not know
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_region_add(struct kvmfault_vm *vm,
			const struct kvmfault_region *region);

/*
 * Remove the region that begins at gpa, also while vCPUs run. After this
 * returns no new fault finds the region, and the library does not touch its
 * guest_memfd. A fetch in flight is not waited for. It goes on and is
 * installed, since it belongs to the memory, and its waiters are answered.
 *
 * Returns 0, or
 *   -EINVAL   vm is NULL
 *   -ENOENT   no region begins there
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_region_remove(struct kvmfault_vm *vm, uint32_t address_space,
			   uint64_t gpa);

/*
 * Replace regions in one step, also while vCPUs run: the regions that begin
 * where those of `remove` do go, and those of `add` come. A thread that looks
 * for a region finds the old layout or the new one; if both have a region
 * there, it always finds one.
 *
 * - Of a region in `remove` only gpa and address_space count.
 * - Both lists are in ascending order of address_space and gpa. `removed` and
 *   `added` say how many pointers each has; a list of none may be NULL. The
 *   structs are copied.
 * - It costs as much as one region does, and so is for a VMM that changes many:
 *   if the VMM collects its changes, it calls this when they are committed.
 * - Call it when the old ranges' slots are gone, and before the new ones' are
 *   set. After it returns, the library does not touch the guest_memfds of the
 *   regions that went.
 *
 * Returns 0, or, with nothing changed,
 *   -EINVAL   a pointer is NULL, a list is not in that order, or a region is
 *             not valid, see kvmfault_region_add()
 *   -ENOENT   no region begins where one is to go, or it is named twice
 *   -EEXIST   a region that comes overlaps another one that comes or stays
 *   -ENOMEM   there is no memory for it
 *   -E2BIG    a region has a member set that this library does not know
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_regions_replace(struct kvmfault_vm *vm,
			     const struct kvmfault_region *const *remove,
			     size_t removed,
			     const struct kvmfault_region *const *add,
			     size_t added);

/*
 * Find the region that contains gpa. region->size must be set.
 *
 * Returns 0, or
 *   -EINVAL   vm or region is NULL, or the region's size is not set
 *   -ENOENT   no region contains gpa
 *   -ENOMEM   there is no memory for it
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_region_find(struct kvmfault_vm *vm, uint32_t address_space,
			 uint64_t gpa, struct kvmfault_region *region);

/*
 * Resolvers: functions that make a page present
 * ---------------------------------------------
 * Resolvers are an ordered chain. Each is asked in turn until one does not
 * decline. The VMM's own come first, in the order in which they were added,
 * then those of the library:
 *
 *   copy        absent pages: read the source, and UFFDIO_COPY
 *   async       absent pages of a source that answers later
 *   continue    in a memory with minor faults: UFFDIO_CONTINUE
 *   zero        discarded pages, and holes of the source: UFFDIO_ZEROPAGE
 *   populate    present or untracked pages: MADV_POPULATE_READ/WRITE
 *   convert     private pages that are to be shared, and the other way
 *   unprotect   protected pages: it has nothing to save
 *
 * A resolver of the VMM's that is for absent pages is asked about each of them:
 * if it declines one, the library brings that page alone, without a window, and
 * a fill goes page by page. The same holds for holes. So set pages to what the
 * resolver is for, and no more.
 */
enum kvmfault_page {
	KVMFAULT_PAGE_UNTRACKED = 1,	/* memory without a source, or none */
	KVMFAULT_PAGE_ABSENT = 2,	/* never fetched; claimed */
	KVMFAULT_PAGE_DISCARDED = 3,	/* discarded: zero; claimed */
	KVMFAULT_PAGE_PRESENT = 4,	/* was installed, and faults again */
	KVMFAULT_PAGE_POISONED = 5,	/* its data is lost */
	/* It is private and the guest wants it shared, or the other way: see
	 * "Convert". Nothing is claimed. */
	KVMFAULT_PAGE_UNCONVERTED = 6,
	/* It is present, and about to be written or discarded: save it, see
	 * "Protect". */
	KVMFAULT_PAGE_PROTECTED = 7,
	/* Never fetched, as ABSENT, and the source says that all of it is zero
	 * (see kvmfault_source.extent): nothing is to be read; claimed */
	KVMFAULT_PAGE_HOLE = 8,
};

enum kvmfault_verdict {
	KVMFAULT_VERDICT_DECLINED = 0,	/* not mine: ask the next */
	KVMFAULT_VERDICT_RESOLVED = 1,	/* it is there: run the vCPU */
	/* The work goes on elsewhere: the vCPU must not run before the VMM
	 * knows that it is done. */
	KVMFAULT_VERDICT_LATER = 2,
};

/* The question to a resolver. It is valid during the call, and a resolver does
 * not write to its members. */
struct kvmfault_request {
	size_t size;
	const struct kvmfault_fault *fault;
	/* NULL if the gpa is in no region: of the members below, page and
	 * buffer are set then. NULL as well for a message, and for a page that
	 * is saved before it is discarded. A MARKER or FAILURE comes by an hva,
	 * and has the region that shows its page, if one does. */
	const struct kvmfault_region *region;
	struct kvmfault_memory *memory;	/* or NULL: guest_memfd only */
	enum kvmfault_page page;
	/* The range to resolve: the page of the memory, or a run of them after
	 * kvmfault_request_widen(). Without a memory: 4 KiB of the region. */
	uint64_t offset;		/* into the memory, or the region */
	uint64_t length;
	/* The range in the memslots' mapping, or NULL. A protected page is to
	 * be read here, maybe in a mapping of the library's own. */
	void *host;
	/* Where data can be written before it is installed: scratch memory of
	 * this thread, of the context's page_size_max bytes. With minor faults:
	 * the file's own pages, of length bytes, which only
	 * kvmfault_request_read() may write. */
	void *buffer;
};

struct kvmfault_resolver {
	size_t size;
	const char *name;
	/* The pages that it is for: bits (1U << KVMFAULT_PAGE_*). 0: all. */
	uint32_t pages;
	/* The fault flags that it understands. If a fault has others, it is not
	 * given to this resolver: a flag that is not understood fails closed.
	 * Flags that an exit has because of a slot's flag of
	 * kvmfault_region_memslot() (see kvmfault-experimental.h) need not be
	 * named. */
	uint64_t flags;
	/* Returns a kvmfault_verdict, or -errno: it was mine and it failed. Any
	 * number of threads may call it at once. */
	int (*resolve)(void *data, struct kvmfault_request *request);
	void *data;
};

/*
 * Append a resolver to the VMM's part of the chain, before the first vCPU
 * handle and the service. The struct is copied; of the name only the pointer.
 *
 * Returns 0, or
 *   -EINVAL   a pointer is NULL; there is no resolve function or name; a kind
 *             of page is not known
 *   -EBUSY    a vCPU handle or a service exists
 *   -ENOSPC   there are KVMFAULT_RESOLVER_COUNT: seven are the library's
 *   -E2BIG    resolver has a member set that this library does not know
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_resolver_add(struct kvmfault_vm *vm,
			  const struct kvmfault_resolver *resolver);
#define KVMFAULT_RESOLVER_COUNT 16

/*
 * The name of the resolver at index of the chain, or NULL past its end.
 *
 * Thread class: any. Since 0.1.
 */
const char *kvmfault_resolver_name(const struct kvmfault_vm *vm,
				   unsigned int index);

/*
 * For resolvers: read into buffer the bytes that the request's range has to
 * hold: the source's bytes, or zeros for a page that is discarded or a hole.
 *
 * Returns 0, or
 *   -EINVAL       nothing is claimed, or a pointer is NULL
 *   -EOPNOTSUPP   the source only answers later
 *   other         what the source returned
 *
 * Thread class: that of the request. Since 0.1.
 */
int kvmfault_request_read(struct kvmfault_request *request, void *buffer);

/*
 * For resolvers: find the same bytes, wherever they are. *data is where the
 * source shows them (see kvmfault_source.view), or request->buffer, into which
 * they were read. It is for kvmfault_request_install(), until the resolver
 * returns. On error *data does not matter.
 *
 * Returns 0, or
 *   -EINVAL       nothing is claimed, or a pointer is NULL
 *   -EOPNOTSUPP   the source only answers later
 *   other         what the source returned
 *
 * Thread class: that of the request. Since 0.1.
 */
int kvmfault_request_data(struct kvmfault_request *request, const void **data);

/*
 * For resolvers: claim the page's neighbours too, as the memory's window says.
 * Unless the page is absent or a hole, nothing more is claimed. Of a hole only
 * neighbours that are holes too, of an absent page none that is one. The
 * request's offset, length and host are then those of the whole run. If reading
 * the run fails, the request is the page alone again, and is read so.
 *
 * Returns 0, or
 *   -EINVAL   nothing is claimed
 *
 * Thread class: that of the request. Since 0.1.
 */
int kvmfault_request_widen(struct kvmfault_request *request);

/*
 * For resolvers: install data as the claimed pages, atomically for each page,
 * through the memslots' mapping (UFFDIO_COPY, or UFFDIO_CONTINUE with minor
 * faults). If the page is discarded or a hole, data may be NULL: zeros. If a
 * page has come meanwhile, it is left as it is, and that is success. A run is a
 * success if the page that faulted came.
 *
 * Returns 0, or
 *   -EINVAL      nothing is claimed, or data is NULL for an absent page
 *   -EAGAIN      the mappings are changing: the fault will come again
 *   -ENOENT      the page is not mapped any more
 *   -ESRCH       the process is gone
 *   -ENOMEM      there is no memory for it
 *   -EHWPOISON   the page's memory has failed
 *   -EFAULT      data cannot be read (with minor faults or events the thread
 *                gets a signal instead)
 *
 * Thread class: that of the request. Since 0.1.
 */
int kvmfault_request_install(struct kvmfault_request *request,
			     const void *data);

/*
 * For resolvers: the data of the claimed page is lost (the source returned
 * -EHWPOISON). Poison the page in each mapping (UFFDIO_POISON): a thread that
 * touches it gets SIGBUS from now on, and a vCPU's fault is one of failed
 * memory. The library's own resolvers do so. kvmfault_discard() makes the page
 * usable again. If nothing is mapped any more, or the process is gone, the page
 * cannot be read there, and that is success.
 *
 * Returns 0, or
 *   -EINVAL       nothing is claimed, or it was installed
 *   -EOPNOTSUPP   the kernel is older than 6.6
 *   -EAGAIN       the mappings are changing
 *   -ENOMEM       there is no memory for it
 *
 * Thread class: that of the request. Since 0.1.
 */
int kvmfault_request_poison(struct kvmfault_request *request);

/*
 * vCPU
 * ----
 */

/* How the SIGBUS of MARKER_EXIT gets from KVM_RUN to kvmfault_vcpu_handle(). It
 * has to be delivered there: if it were blocked, the vCPU would spin in the
 * kernel. */
enum kvmfault_sigbus {
	/* The thread blocks SIGBUS. The library unblocks it in KVM_RUN alone
	 * (KVM_SET_SIGNAL_MASK), and takes it with sigtimedwait(2). There is no
	 * handler. */
	KVMFAULT_SIGBUS_MASKED = 0,
	/* The VMM's own handler calls kvmfault_vcpu_note_sigbus(). */
	KVMFAULT_SIGBUS_HANDLER = 1,
};

/* Which thread makes the system calls, see kvmfault_syscalls(). */
enum kvmfault_profile {
	KVMFAULT_PROFILE_INLINE = 0,	/* the vCPU's own thread makes all */
	/* A worker makes them: a thread of the library's, one for each such
	 * vCPU. The vCPU's thread uses private futexes and nothing else. It is
	 * for a VMM that gives these threads a narrow filter. The VMM's
	 * callbacks then run on the worker, where no signal ends them. Only
	 * changed after a guest's MMIO write runs on the vCPU's thread, which
	 * copies the bytes. */
	KVMFAULT_PROFILE_DELEGATE = 1,
	/* Not for a vCPU, but for kvmfault_syscalls() only: SERVICE is a thread
	 * of the service. CALLER is a thread that calls functions of the thread
	 * class "any", like kvmfault_ensure(), _discard(), _protect(), and
	 * _convert() without a vcpu. */
	KVMFAULT_PROFILE_SERVICE = 2,
	KVMFAULT_PROFILE_CALLER = 3,
};

struct kvmfault_vcpu_options {
	size_t size;
	int fd;			/* KVM's descriptor of it, borrowed */
	struct kvm_run *run;	/* its shared page, borrowed */

	/* Do not wait for a page that is on its way: kvmfault_vcpu_handle()
	 * returns PENDING or PENDING_UNFINISHED, and the context's callback
	 * page_ready tells when to go on. */
	bool no_wait;

	/* With MARKER_EXIT: the signals that KVM_RUN blocks, if the VMM has set
	 * them by KVM_SET_SIGNAL_MASK; bit n - 1 is signal n. Copied. NULL: the
	 * VMM has set none, and KVM_RUN blocks what the calling thread blocks.
	 *
	 * With KVMFAULT_SIGBUS_MASKED the library calls KVM_SET_SIGNAL_MASK
	 * with these signals, except SIGBUS. When the handle is freed, it sets
	 * the VMM's mask again, or none. */
	const uint64_t *signal_mask;

	/* With MARKER_EXIT: how SIGBUS gets to the library. */
	enum kvmfault_sigbus sigbus;

	/* Which thread makes the system calls of its faults. */
	enum kvmfault_profile profile;
};

/*
 * Make a vCPU's handle. With MARKER_EXIT, call it on the vCPU's thread, or on
 * one with the same signal mask: if SIGBUS would not get through to the vCPU,
 * the call refuses. With the delegate profile it makes a thread, which blocks
 * all signals and has the calling thread's filter, and duplicates fd. If there
 * is memory with a source and no service yet, the log has a warning of it,
 * once.
 *
 * Returns 0, or
 *   -EINVAL   a pointer is NULL; the way of SIGBUS or the profile is not known;
 *             with MARKER_EXIT: SIGBUS is not blocked, or for
 *             KVMFAULT_SIGBUS_HANDLER it is blocked or has no handler, or the
 *             profile is delegate and the way is not KVMFAULT_SIGBUS_HANDLER
 *   -EBADF    fd is closed
 *   -E2BIG    options has a member set that this library does not know
 *   -ENOMEM   there is no memory for it
 *   -EMFILE   delegate profile: this process has too many open descriptors
 *   -EAGAIN   delegate profile: there are no more threads
 *   other     with MARKER_EXIT: what KVM_SET_SIGNAL_MASK returned, see ioctl(2)
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_vcpu_new(struct kvmfault_vm *vm,
		      const struct kvmfault_vcpu_options *options,
		      struct kvmfault_vcpu **vcpu);

/*
 * Free a vCPU's handle, but not while the vCPU's thread is in
 * kvmfault_vcpu_handle(), nor in a callback. NULL is fine. If the vCPU has left
 * its worker in the middle of a fault, the worker is not waited for: its result
 * is dropped. Then the worker is used for another vCPU, and ends with the
 * context.
 *
 * Thread class: setup. Since 0.1.
 */
void kvmfault_vcpu_free(struct kvmfault_vcpu *vcpu);

/*
 * The guest of this vCPU begins anew: after a reset, INIT, a snapshot that is
 * loaded, or a migration that is given up. An access that is half done is given
 * up, and the history of the vCPU's faults and the counts of its retries are
 * forgotten. So the VMM may set the registers and enter KVM_RUN, although the
 * last result said unfinished. NULL is fine.
 *
 * KVM itself completes a half-done MMIO access in the next KVM_RUN: enter it
 * with immediate_exit set before the registers are set. Clear a queued #UD by
 * KVM_SET_VCPU_EVENTS. If the vCPU has left its worker in the middle of a
 * fault, the worker does nothing to the vCPU any more, and is not waited for.
 *
 * Thread class: object, the vCPU's own thread. Since 0.1.
 */
void kvmfault_vcpu_reset(struct kvmfault_vcpu *vcpu);

/*
 * Handle
 * ------
 */
enum kvmfault_action {
	KVMFAULT_ACTION_RETRY = 1,	/* enter KVM_RUN again */
	KVMFAULT_ACTION_NOT_A_FAULT = 2, /* for the VMM's own exit handling */
	/* A signal or immediate_exit ended KVM_RUN or a wait: see to it, then
	 * go on. */
	KVMFAULT_ACTION_INTERRUPTED = 3,
	/* The fault is being worked on elsewhere: wait until that is done, then
	 * enter KVM_RUN. Either a resolver returned LATER, and the VMM knows
	 * when it is done; or the vCPU has no_wait, and the callback page_ready
	 * tells. */
	KVMFAULT_ACTION_PENDING = 4,
	/* Do not run this vCPU: the result says why. To go on all the same,
	 * call kvmfault_vcpu_handle() with the same arguments again. The record
	 * of an EXIT is used up: the second call takes its EFAULT for
	 * UNANNOTATED and answers RETRY, and the guest faults again. */
	KVMFAULT_ACTION_UNRESOLVED = 5,
	/* As INTERRUPTED and as PENDING, but an access is half done. Do not
	 * enter KVM_RUN: it would complete MMIO with the wrong bytes, or give
	 * the guest the #UD of an instruction that was not emulated. See which
	 * signal or request wanted this thread, or wait. Then call
	 * kvmfault_vcpu_handle() with the same arguments again, or
	 * kvmfault_vcpu_reset(). */
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
	uint32_t times;		/* how often the same came in a row */
	const char *resolver;
};
#define KVMFAULT_HISTORY_COUNT 8

struct kvmfault_result {
	size_t size;		/* what this library fills */
	enum kvmfault_action action;
	enum kvmfault_reason reason;	/* of UNRESOLVED */
	int error;		/* -errno behind the reason, or 0 */
	/* An access is half done: always with UNFINISHED and
	 * PENDING_UNFINISHED, and maybe with UNRESOLVED. Do not enter KVM_RUN
	 * before kvmfault_vcpu_handle() has returned RETRY, or before
	 * kvmfault_vcpu_reset(). */
	bool unfinished;
	const char *resolver;	/* the last one that took it, or NULL */
	const struct kvmfault_fault *fault;
	/* How it came to this: this vCPU's last faults, up to
	 * KVMFAULT_HISTORY_COUNT, the newest first. Valid as long as the
	 * result. */
	const struct kvmfault_event *const *history;
	uint32_t history_count;
	/* With INTERRUPTED, never with UNFINISHED: the siginfo_t of a SIGBUS
	 * that the library took from the thread's queue, and that is not about
	 * guest memory. Hand it on. Else NULL. */
	const void *siginfo;
};

/*
 * The one call after KVM_RUN. ret and err are its return value and the errno
 * right after it. The library knows every way in which a guest's access to its
 * memory can fail:
 *
 * - EXIT: the chain of resolvers makes the page present.
 * - MMIO inside a region: the page is made present, and the library completes
 *   the access, since KVM's emulator would not do it again.
 * - EMULATION: the instruction and its operand are made present, and the #UD
 *   that KVM queued is taken back. If nothing was absent, as many times in a
 *   row as the retry budget says, it is not a fault.
 * - UNANNOTATED (EFAULT without an address): it may have been a race, and is
 *   tried again within the budget.
 * - EHWPOISON, or a page that is poisoned: the callback failed is called. The
 *   action is UNRESOLVED unless that has told the guest.
 * - EINTR, with MARKER_EXIT and a SIGBUS: as kvmfault_vcpu_handle_sigbus().
 * - EINTR otherwise: INTERRUPTED. To stop a vCPU, set immediate_exit: a signal
 *   alone that comes together with a fault is a RETRY.
 *
 * If a wait ends inside an MMIO access or an emulated instruction, the action
 * is UNFINISHED in place of INTERRUPTED, and PENDING_UNFINISHED in place of
 * PENDING.
 *
 * This call never allocates. It sleeps only for a page that another thread
 * fetches or converts, and in the pauses of the retry budget and of
 * source_retries: a signal ends these, and immediate_exit within 10 ms. Kernel
 * interfaces: those of kvmfault_syscalls(), and what sources, resolvers and
 * other callbacks use.
 *
 * With the delegate profile it waits for its worker, and so for the source, in
 * the same way. If a signal ends that wait, the worker goes on with the fault,
 * but its result is dropped. The vCPU's next fault begins when the worker is
 * done.
 *
 * If vcpu is NULL, the action is UNRESOLVED.
 *
 * Thread class: object, the vCPU's own thread. Since 0.1.
 */
enum kvmfault_action kvmfault_vcpu_handle(struct kvmfault_vcpu *vcpu, int ret,
					  int err);

/*
 * In place of kvmfault_vcpu_handle(), for a SIGBUS that has ended KVM_RUN (-1,
 * EINTR), or that came to the vCPU's thread otherwise. siginfo is its
 * siginfo_t, from sigtimedwait() or kept by the VMM's handler. Do not call this
 * in a handler.
 *
 * - If the page is absent, it had a marker: it is fetched like any other.
 * - If the page is present, it has failed in hardware: it is poisoned from now
 *   on, and the callback failed is called, with the gpa. The action is RETRY,
 *   or UNRESOLVED with the reason HWPOISON.
 * - If it is not guest memory, or not a memory failure: NOT_A_FAULT. Hand the
 *   signal on.
 *
 * Thread class: object, the vCPU's own thread. Since 0.1.
 */
enum kvmfault_action kvmfault_vcpu_handle_sigbus(struct kvmfault_vcpu *vcpu,
						 const void *siginfo);

/*
 * For the VMM's SIGBUS handler, with KVMFAULT_SIGBUS_HANDLER: does this signal
 * belong to vcpu, on the thread of which the handler runs? If so it is noted,
 * and kvmfault_vcpu_handle() answers it after KVM_RUN has ended with -1 and
 * EINTR. This makes no system call.
 *
 * Returns true; or false if it is not a fault in memslots' memory: hand it on.
 *
 * Async-signal-safe. Thread class: object, the vCPU's own thread. Since 0.1.
 */
bool kvmfault_vcpu_note_sigbus(struct kvmfault_vcpu *vcpu, const void *siginfo);

/*
 * Handle a SIGBUS of another thread: memory failed that no thread has touched
 * (BUS_MCEERR_AO), or that a thread of the VMM's has touched.
 *
 * Returns 0 if the VMM was told, or if it was a marker and the page is there
 * now; or
 *   -EINVAL      vm or siginfo is NULL
 *   -ENOENT      it is not guest memory, or not a memory failure: hand it on
 *   -EHWPOISON   the callback failed is missing, or has failed
 *   -ENOMEM      there is no memory for it
 *   other        of a marker: what the source or the kernel returned, see
 *                kvmfault_ensure()
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_vm_handle_sigbus(struct kvmfault_vm *vm, const void *siginfo);

/* A system call that the library makes on a thread. */
struct kvmfault_syscall {
	size_t size;
	const char *name;
	int64_t number;		/* on this architecture */
	/* The argument, counted from 0, that always has this value. It is
	 * compared as an int: only its low 32 bits count. -1: there is no such
	 * argument, and the value is 0. */
	int32_t argument;
	uint32_t value;
	const char *value_name;	/* the kernel's name of it, or "" */
	const char *why;
};

/*
 * The system calls that are made on a thread of this profile: a seccomp filter
 * has to let them pass. index counts from 0 until there is none left. A call
 * that has several values of its argument comes once for each of them.
 *
 * - INLINE, DELEGATE: all that kvmfault_vcpu_handle(),
 *   kvmfault_vcpu_handle_sigbus(), and kvmfault_convert() with a vcpu do on a
 *   vCPU's thread. A worker of a vCPU that delegates needs those of INLINE.
 * - SERVICE: a thread of the service from its beginning on; and
 *   kvmfault_service_dispatch(), which needs those of CALLER for its first call
 *   as well.
 * - CALLER: the functions of the thread class "any".
 *
 * Not in it: what a VMM's own callbacks do (with the delegate profile they run
 * on other threads), KVM_RUN, what libc does when a thread begins and ends, and
 * functions of the class "setup", freeing included. For these see
 * doc/integration.md.
 *
 * call->size must be set. The strings are the library's, for ever.
 *
 * Returns 0, or
 *   -EINVAL   call is NULL, or its size is not set; the profile is not known
 *   -ENOENT   index is past the end
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_syscalls(enum kvmfault_profile profile, unsigned int index,
		      struct kvmfault_syscall *call);

/*
 * More about the last kvmfault_vcpu_handle() of this vCPU. The result belongs
 * to the vCPU, and is valid until the next one. It is NULL only if vcpu is.
 *
 * Thread class: object. Since 0.1.
 */
const struct kvmfault_result *
kvmfault_vcpu_result(struct kvmfault_vcpu *vcpu);

/*
 * Userfaultfd service
 * -------------------
 * The service answers the faults that do not end KVM_RUN. The threads that they
 * stop, vCPUs among them, sleep in the kernel until it has brought the page. It
 * is needed wherever a memory has a source. A context has one service.
 */
struct kvmfault_service_options {
	size_t size;

	/* How many threads, up to 256. 0: none; the VMM polls
	 * kvmfault_service_fd() and calls kvmfault_service_dispatch(). */
	uint32_t threads;

	/* How many microseconds one of these threads, after an answer, looks
	 * for the next fault before it sleeps: to wake a thread takes longer
	 * than most faults do. It looks only while no other thread wants its
	 * CPU, and hardly ever if looking has been in vain. 0: 100.
	 * KVMFAULT_NO_POLL: it sleeps at once. */
	uint32_t poll_us;
#define KVMFAULT_NO_POLL UINT32_MAX
};

/*
 * Start the service. Its threads block all signals.
 *
 * Returns 0, or
 *   -EINVAL   a pointer is NULL, or threads is over 256
 *   -EBUSY    there is a service already
 *   -E2BIG    options has a member set that this library does not know
 *   -ENOMEM   there is no memory for it
 *   -EAGAIN   there are no more threads
 *   -EMFILE   this process has too many open descriptors
 *   -ENFILE   the system has too many open descriptors
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_service_new(struct kvmfault_vm *vm,
			 const struct kvmfault_service_options *options,
			 struct kvmfault_service **service);

/*
 * A descriptor that is readable when there is something to dispatch. It is the
 * library's: do not close it.
 *
 * Returns the descriptor, or
 *   -EINVAL   service is NULL
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_service_fd(const struct kvmfault_service *service);

/*
 * Answer some of the faults that have arrived, and return without waiting for
 * more: one call takes up to 8 events, and up to 16 messages of each
 * userfaultfd. Call it again while the descriptor is readable, and do not use
 * EPOLLET, which does not tell of the faults that are left.
 *
 * Returns 0, or
 *   -EINVAL   service is NULL
 *   -ENOMEM   there is no memory for it
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_service_dispatch(struct kvmfault_service *service);

/*
 * Stop the threads, each after the fault that it has in hand. A thread that
 * faults from then on sleeps until there is a service again. NULL is fine.
 *
 * Returns 0, or
 *   -EDEADLK   called by one of its own threads
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_service_free(struct kvmfault_service *service);

/*
 * Ensure and discard
 * ------------------
 */

/*
 * Make guest memory present before the VMM itself, or KVM for it, touches it
 * (what KVM_SET_MSRS writes, what a kernel device reads). Set write if it is to
 * be written: a page that is protected is then saved first.
 *
 * A page that was discarded becomes a page of zeros, and takes host memory
 * again. If a VMM calls this for all of a memory, to bring the rest, it leaves
 * out the pages that a balloon has (the callback changed tells).
 *
 * Returns 0 if all of it is present, or
 *   -EINVAL       vm is NULL; the range is empty or wraps
 *   -ENXIO        a part is in no region
 *   -EINTR        a signal came while another thread's fetch was waited for:
 *                 call again
 *   -EAGAIN       a resolver returned LATER, or the mappings are changing just
 *                 now: call again when that is over
 *   -EOPNOTSUPP   no resolver took a page, or the host's mapping does not allow
 *                 the access
 *   -ENODATA      a resolver returned RESOLVED, but the page is absent
 *   -EHWPOISON    a page's data is lost
 *   -EDEADLK      called from a callback that is fetching this page
 *   -ENOMEM       there is no memory for it
 *   -EIO, other   what the source or the kernel returned; all pages before that
 *                 one are present
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_ensure(struct kvmfault_vm *vm, uint32_t address_space,
		    uint64_t gpa, uint64_t length, bool write);

/*
 * Fill: bring the rest
 * --------------------
 * A guest that is restored touches some of its pages soon, and the others late
 * or never. A fill brings these in the background, until no page of its
 * memories is missing: then no fault needs the source any more.
 *
 * - It takes the path of every fault, as a fault of the kind FILL that has an
 *   hva and no region: the VMM's own resolvers are asked as for others, and the
 *   callback changed is called. It brings absent pages alone. A discarded page
 *   stays discarded, so what a balloon has does not come back; and a page that
 *   another thread brings meanwhile is left to that thread.
 * - Demand comes first. While the guest faults (or another thread waits in
 *   kvmfault_ensure()), one thread of the fill works, in small steps, and rests
 *   for seven times as long after each: it takes at most an eighth of one CPU
 *   and of the source. Of a source that answers later it then has one fetch in
 *   flight; else at most half of kvmfault_vm_options.fetches.
 * - Of a source with chunks (chunk, up to window_length) each step asks for
 *   whole ones, so that none is read twice because of the fill.
 * - It tells when nothing is missing, whatever has brought the last page: also
 *   if it is paused, from the beginning on, or has a small rate. So a VMM that
 *   wants no more than to be told, to call kvmfault_memory_settle(), makes a
 *   fill that is paused. It looks every interval_ms, and a fault does nothing
 *   for that.
 * - If the source fails for a run of pages, the fill asks for shorter runs, so
 *   that one bad page keeps no other one away. It goes on with the others and
 *   asks again later, at last once a second. It never gives up by itself: the
 *   member error of its progress tells, and kvmfault_fill_free() ends it.
 * - Its threads block all signals, and make the system calls of a thread of the
 *   service (KVMFAULT_PROFILE_SERVICE). With a source that answers later more
 *   than one thread brings nothing.
 */
struct kvmfault_fill_progress {
	size_t size;
	uint64_t total;		/* bytes of its memories */
	uint64_t missing;	/* of those: absent, or on their way, */
	uint64_t resident;	/* present, whatever brought them, */
	uint64_t discarded;	/* discarded; the rest is poisoned */
	uint64_t milliseconds;	/* since kvmfault_fill_new() */
	int error;		/* -errno of the last page that failed, or 0 */
	bool paused;
	bool over;		/* no page is missing, for ever */
	bool replaying;		/* a part of the working set was not asked for
				 * yet */
};

struct kvmfault_fill_options {
	size_t size;

	/* The memories, filled in this order, each from its beginning; all have
	 * a source. The list is copied. A memory cannot be freed while a fill
	 * names it. */
	struct kvmfault_memory *const *memories;
	uint32_t memory_count;

	/* The pages to bring before all others, in its order: a working set of
	 * the image that the memories' source shows (see "Working sets"; look
	 * at its length and identity first). It is borrowed until the fill is
	 * freed, and must not change. Runs that are in none of the memories are
	 * left out. With KVMFAULT_WINDOW_SOURCE the source's whole chunks come,
	 * as by faults. The guest is about to touch these pages, so the fill
	 * does not rest while it brings them. Each run is a read of its own:
	 * with a slow source, give the fill many threads. NULL: none. */
	const struct kvmfault_working_set *first;

	/* How many threads of the library's, up to 64. 0: none; the VMM calls
	 * kvmfault_fill_dispatch(). */
	uint32_t threads;

	/* At most so many bytes a second, of all threads. 0: no limit. */
	uint64_t rate;

	/* One step brings up to so many bytes, at least a page. 0: the
	 * context's page_size_max, which is also the most. */
	uint64_t window_length;

	/* Called about every interval_ms (0: 250) while the fill works, and
	 * once more when it is over, at most interval_ms after the last page
	 * has come if the fill does not work. A thread of the fill calls it, or
	 * the one in kvmfault_fill_dispatch(). To count what is missing it
	 * looks at the states of all pages, of which there are 128 KiB for each
	 * GiB of small pages. One thread at a time calls it, and none after the
	 * call that says `over`. Optional. */
	void (*progress)(void *data,
			 const struct kvmfault_fill_progress *progress);
	void *data;
	uint32_t interval_ms;

	/* Begin as after kvmfault_fill_pause(): bring nothing. */
	bool paused;
};

/*
 * Start a fill. Several at once bring no page twice.
 *
 * Returns 0, or
 *   -EINVAL   a pointer is NULL; there is no memory; one is of another
 *             context, is there twice, has no source, is settled, or goes past
 *             the end of the working set's image; threads is over 64;
 *             window_length is over the context's page_size_max
 *   -E2BIG    options has a member set that this library does not know
 *   -ENOMEM   there is no memory for it
 *   -EAGAIN   there are no more threads
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_fill_new(struct kvmfault_vm *vm,
		      const struct kvmfault_fill_options *options,
		      struct kvmfault_fill **fill);

/*
 * For a fill without threads: take one step on this thread. *timeout_ms is, as
 * for poll(2), how long to wait before the next one: 0 for not at all, -1 if it
 * is over. A step of a fill that is paused looks whether it is over.
 *
 * Returns 0, or
 *   -EINVAL    a pointer is NULL, or the fill has threads of its own
 *   -EDEADLK   called from a callback of the fill
 *
 * Thread class: object. Since 0.1.
 */
int kvmfault_fill_dispatch(struct kvmfault_fill *fill, int *timeout_ms);

/*
 * How far the fill is. progress->size must be set.
 *
 * Returns 0, or
 *   -EINVAL   a pointer is NULL, or the size of progress is not set
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_fill_progress(const struct kvmfault_fill *fill,
			   struct kvmfault_fill_progress *progress);

/*
 * Pause the fill after the steps that its threads are in, or resume it. While
 * it is paused it brings nothing, and is over when nothing is missing.
 *
 * Returns 0, or
 *   -EINVAL   fill is NULL
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_fill_pause(struct kvmfault_fill *fill, bool paused);

/*
 * Set the limit in bytes a second; 0: none.
 *
 * Returns 0, or
 *   -EINVAL   fill is NULL
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_fill_set_rate(struct kvmfault_fill *fill, uint64_t rate);

/*
 * End a fill, over or not: what is absent stays absent, and comes when it is
 * touched. The call waits for the steps that its threads are in, and so for the
 * source; not for fetches of a source that answers later. NULL is fine.
 *
 * Returns 0, or
 *   -EDEADLK   called from a callback of a thread that is filling
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_fill_free(struct kvmfault_fill *fill);

/*
 * Make present the memory that KVM itself reads and writes for the features
 * that MSRs turn on. These are kvmclock and its wall clock, steal time, PV EOI,
 * asynchronous page faults, and Hyper-V's hypercall, reference TSC, VP assist,
 * event and message pages. For SMBASE (0x9e) it is the state that is saved when
 * an SMI comes, in address space 1, without which the VM is dead.
 *
 * Call it before KVM_SET_MSRS, with the MSRs that are about to be set. KVM's
 * own access to an absent page waits where the guest's access would wait, and
 * no signal may end that. If the page has a marker, KVM's access fails, mostly
 * without a word. Other MSRs, and pages that are in no region, are passed over.
 *
 * msrs and count are as in struct kvm_msrs. *again, unless again is NULL, says
 * whether one of the MSRs is for memory that KVM writes only when the MSR is
 * set (kvmclock, the wall clock, the reference TSC). If KVM had such an MSR
 * before its page came (the MSRs were read from a vCPU), set these MSRs again.
 *
 * arm64 has no MSRs: there is nothing to do there, and the call succeeds.
 *
 * Returns 0, or
 *   -EINVAL       vm is NULL, or msrs is NULL and count is not 0
 * or an error of a page, see kvmfault_ensure(); the pages of the MSRs before
 * that one are present:
 *   -EINTR        a signal came while a fetch was waited for: call again
 *   -EAGAIN       a resolver returned LATER, or the mappings are changing just
 *                 now: call again when that is over
 *   -EOPNOTSUPP   no resolver took a page, or the access is not allowed
 *   -ENODATA      a resolver returned RESOLVED, but the page is absent
 *   -EHWPOISON    a page's data is lost
 *   -EDEADLK      called from a callback that is fetching this page
 *   -ENOMEM       there is no memory for it
 *   -EIO, other   what the source or the kernel returned
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_ensure_msrs(struct kvmfault_vm *vm,
			 const struct kvm_msr_entry *msrs, uint32_t count,
			 bool *again);

/*
 * Make present the page tables that a vCPU's registers lead to: all that its
 * guest can use without loading CR3, with 2 levels, PAE, 4 and 5 levels, and
 * past large pages. The pages that they map are not touched, except those that
 * exceptions and task switches need. These are the IDT, the GDT, the TSS, and
 * the place where a frame would be pushed: on each stack that the TSS names,
 * and on the one in use.
 *
 * The reason: if KVM walks a guest's page tables in software, and a table's
 * page has a marker or is not mapped, KVM injects a spurious page fault into
 * the guest. With two-dimensional paging KVM walks them for the operands of the
 * few instructions that it emulates; with shadow paging (see
 * KVMFAULT_FEATURE_TWO_DIMENSIONAL_PAGING) for every access.
 *
 * Call it for each vCPU when a VM is restored, after KVM_SET_SREGS and
 * KVM_SET_REGS and before the first KVM_RUN. Page tables that the guest makes
 * from then on are present, since it has written them itself. The tables of the
 * guest's other processes come with their next load of CR3: with
 * two-dimensional paging as faults of the guest's own. If the guest uses PAE
 * without long mode, KVM_SET_SREGS has read the first table: set them again.
 *
 * An exception's tables and stacks are read by the processor: if a page of them
 * is missing, that is an ordinary fault, with shadow paging too. On PVM it is
 * not: KVM delivers exceptions in software there, and a marker ends the guest.
 * If a 32-bit guest switches tasks, it is not so anywhere: then KVM itself
 * reads the TSSs and the GDT. Stacks of tasks that run later are not known.
 *
 * Tables in no region are passed over: they have to be present always. Private
 * pages are passed over too: KVM cannot read them either. Do not call this for
 * a vCPU that runs a nested guest: its registers are that guest's.
 *
 * Kernel interfaces: KVM_GET_REGS, KVM_GET_SREGS, KVM_GET_VCPU_EVENTS,
 * KVM_TRANSLATE, pread(2) of a memory's file, and those of kvmfault_ensure().
 *
 * arm64's KVM walks no page tables: there is nothing to do there, and the call
 * succeeds.
 *
 * Returns 0, or
 *   -EINVAL       vcpu is NULL
 *   -ELOOP        there are more than 2^20 tables: the guest's are not meant to
 *                 be walked
 *   -EINTR        a signal came while a fetch was waited for, or immediate_exit
 *                 is set: call again
 * or an error of a page, see kvmfault_ensure(); the tables before that one are
 * present:
 *   -EAGAIN       a resolver returned LATER, or the mappings are changing just
 *                 now: call again when that is over
 *   -EOPNOTSUPP   no resolver took a page, or the access is not allowed
 *   -ENODATA      a resolver returned RESOLVED, but the page is absent
 *   -EHWPOISON    a page's data is lost
 *   -EDEADLK      called from a callback that is fetching this page
 *   -ENOMEM       there is no memory for it
 *   -EIO, other   what the source or ioctl(2) returned
 *
 * Thread class: object, the vCPU's own thread. Since 0.1.
 */
int kvmfault_ensure_page_tables(struct kvmfault_vcpu *vcpu);

/*
 * Discard guest memory: from now on it reads as zero, and never comes from the
 * source again. Its host memory is freed (FALLOC_FL_PUNCH_HOLE, for anonymous
 * memory MADV_DONTNEED). The range is whole pages of the memory only.
 *
 * - If a page's fetch is in flight, this waits for it and then takes the page:
 *   hold no lock that your source takes.
 * - A page that is protected is saved first, and for that fetched.
 * - A page that was poisoned is memory again, in every process. If hardware has
 *   failed under another process's mapping, that process has to map it anew.
 * - Use this call for every discard: to punch a hole, or to call MADV_REMOVE,
 *   behind the library's back loses that order.
 *
 * On error all that comes before is discarded, and the rest is as it was, with
 * two exceptions. If the fetch of a page was waited for, the thread that
 * fetches it may discard it yet. If a poisoned page cannot be made memory
 * again, up to 255 pages behind it are discarded all the same.
 *
 * Returns 0, or
 *   -EINVAL       vm is NULL; the range is empty, or is not whole pages
 *   -ENXIO        a part is in no region with memory
 *   -EINTR        a signal came while a fetch was waited for: call again
 *   -EDEADLK      called from a callback that is fetching for this memory
 *   -ENOMEM       there is no memory for it
 *   -EAGAIN       the memory is being freed, a protected page's resolver
 *                 returned LATER, or the mappings are changing just now
 *   -EIO, other   what fallocate(2), madvise(2), or a protected page's resolver
 *                 or source returned
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_discard(struct kvmfault_vm *vm, uint32_t address_space,
		     uint64_t gpa, uint64_t length);

/*
 * Cancel the fetches in flight for guest memory, of sources that answer later
 * (kvmfault_source.cancel). Their pages are absent again when the source says
 * so: the thread that asked for a page gets the source's error, and waiters ask
 * again. kvmfault_memory_free() does this for its memory.
 *
 * Returns 0, or
 *   -EINVAL   vm is NULL; the range is empty or wraps
 *   -ENXIO    a part is in no region; all before it was done
 *   -ENOMEM   there is no memory for it
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_cancel_fetches(struct kvmfault_vm *vm, uint32_t address_space,
			    uint64_t gpa, uint64_t length);

/*
 * States of pages
 * ---------------
 * Each page of a memory with a source is in one of these states, and may be
 * protected besides. For a VMM that writes the memory into a file:
 *
 *   ABSENT      was not fetched: its bytes are the source's, and need not be
 *               written. A reference to the source says all
 *   CLAIMED     a thread has it just now: it is being fetched, saved, or
 *               discarded. Which of the other states it comes to, and which it
 *               was in, is not known
 *   PRESENT     its bytes are in the memory: read them
 *   DISCARDED   zeros: nothing to read. To read it gives it host memory again
 *   POISONED    its bytes are lost: to read it ends in SIGBUS
 *   PROTECTED   beside one of these: a resolver is to have it before it is
 *               written, see "Protect"
 *
 * Of a memory without a source, or that is settled, all pages are PRESENT.
 *
 * The counts and bitmaps are a view of a moment. Each page is in one of the
 * five states in it, but the pages are looked at one after the other, sixteen
 * at a time. While vCPUs run, a page is ABSENT up to its fetch and never
 * afterwards; of the others none keeps its state. It is one view of all pages
 * once everything has stopped that writes to the memory or discards: vCPUs,
 * devices, threads of the VMM's. Threads that only read may go on: a page that
 * they fetch has the source's bytes still. And when the pages that were PRESENT
 * or CLAIMED are protected before anything goes on, their bytes stay what they
 * were, until a resolver has them: see "Snapshot a VM that is not yet whole" in
 * doc/integration.md.
 */
#define KVMFAULT_STATE_ABSENT (1U << 0)
#define KVMFAULT_STATE_CLAIMED (1U << 1)
#define KVMFAULT_STATE_PRESENT (1U << 2)
#define KVMFAULT_STATE_DISCARDED (1U << 3)
#define KVMFAULT_STATE_POISONED (1U << 4)
#define KVMFAULT_STATE_PROTECTED (1U << 5)

/* Pages of the memory: KVMFAULT_STATE_*. */
struct kvmfault_memory_counts {
	size_t size;
	uint64_t absent;
	uint64_t claimed;
	uint64_t present;
	uint64_t discarded;
	uint64_t poisoned;
	uint64_t to_save;	/* of all these: protected */
};

/*
 * Count the pages of a range of the memory by their states. This waits for
 * nothing, and looks at 4 bits for each page. offset and length are whole pages
 * of the memory.
 *
 * Returns 0, or
 *   -EINVAL   memory or counts is NULL, or the size of counts is not set; the
 *             range is empty, goes past the memory's end, or is not whole pages
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_memory_count(const struct kvmfault_memory *memory, uint64_t offset,
			  uint64_t length,
			  struct kvmfault_memory_counts *counts);

/*
 * Put a bit for each page of a range of the memory into bitmap: set, if the
 * page is in one of the states, some of KVMFAULT_STATE_*. Bit n % 64 of
 * bitmap[n / 64] is the range's page n; the rest of the last word is 0. size is
 * that of bitmap in bytes: at least 8 for each 64 pages, rounded up. offset and
 * length are whole pages of the memory.
 *
 * Returns 0, or
 *   -EINVAL   memory or bitmap is NULL; the range is empty, goes past the
 *             memory's end, or is not whole pages; states is 0 or has a bit
 *             that is not known; size is too small
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_memory_bitmap(const struct kvmfault_memory *memory,
			   uint64_t offset, uint64_t length, uint32_t states,
			   uint64_t *bitmap, size_t size);

/*
 * Settle a memory of which each page is present or discarded: it needs the
 * library no more. Its mappings are unregistered, in each process, its markers
 * and exits are taken away, and its pages have no states. vCPUs and all other
 * threads run on; those that sleep there are woken. A memory that is settled,
 * or has no source, is left as it is.
 *
 * If a page is not there, nothing changes: a thread would read zeros in its
 * place. *left, unless left is NULL, is how many pages are in the way. Pages
 * that are claimed for a moment are waited for, a few milliseconds.
 *
 * Afterwards
 * - the memory stays, and its regions, as one without a source: faults there
 *   (by an EFAULT, or MMIO in RAM) are UNTRACKED, and the host makes the page
 *   present. The source is not used any more, and may go;
 * - kvmfault_discard() empties pages as ever: they read as zero. A touch of one
 *   in a hugetlbfs file needs a free huge page, or ends in SIGBUS;
 * - a mapping that is added, or that the VMM makes without the library, is not
 *   registered;
 * - kvmfault_protect() is refused, and there is no way back. With
 *   KVMFAULT_DELIVERY_KERNEL_EXIT, ask kvmfault_region_memslot() again and set
 *   the memslots anew, for KVM to use huge pages.
 *
 * Call this when a fill is over (see "Fill") and freed, or when
 * kvmfault_memory_count() has no page absent or claimed any more. Hold no lock
 * that a callback takes. Kernel interface: UFFDIO_UNREGISTER.
 *
 * Returns 0, or
 *   -EINVAL   memory is NULL; nothing is mapped at a mapping's address any more
 *   -EBUSY    pages are absent, claimed or poisoned (discard those first), or
 *             are protected: see left; or a fill names the memory
 *   -EDEADLK  called from a callback for this memory
 *   -ENOMEM   a mapping's process is gone: remove that mapping; or the kernel
 *             had no memory. Call again: until then the memory is not protected
 *             any more, but else as it was
 *   other     what ioctl(2) or madvise(2) returned; as for -ENOMEM
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_memory_settle(struct kvmfault_memory *memory, uint64_t *left);

/*
 * Protect: live snapshots
 * -----------------------
 * A live snapshot is the memory of a VM as it is at one instant, saved while
 * the VM runs on. A page that is protected can be read, by threads and device
 * processes also while it is saved (with minor faults only through a mapping
 * that has it). A write to it waits until a resolver of the VMM's has saved the
 * page, whether it is by a vCPU, a thread, a device process, KVM or the
 * library:
 *
 *   stop the vCPUs and devices; kvmfault_protect(); let them run
 *   for each page: kvmfault_ensure(), for writing
 *
 * The VMM also has a resolver for KVMFAULT_PAGE_PROTECTED: it reads the page at
 * request->host, keeps that, and returns RESOLVED. It is asked once for each
 * page: when the page is written or discarded for the first time, or when its
 * turn comes in the sweep. With RESOLVED the page is not protected any more. It
 * is for the VMM to pace the sweep.
 *
 * - Page by page: at most one thread has a page, and the page is as it was when
 *   it was protected until the resolver returns, also if that takes long.
 * - If the resolver fails, the page stays protected, and no write goes on: the
 *   error comes back, or a sleeper is tried again as for a source that fails.
 *   If all resolvers decline, the page need not be saved, and is written.
 * - Absent pages are protected too: they are fetched, then saved.
 * - A page that is already discarded when it is protected is saved as zeros. A
 *   conversion discards shared pages without asking; a hook before it can have
 *   them saved, by kvmfault_ensure().
 * - Writes are seen through the mappings that the library knows, of every
 *   process. Not seen are writes by write(2) to the file, and writes of devices
 *   for which the kernel has mapped the memory (VFIO).
 */

/*
 * Protect guest memory whose options have write_protect. The range is whole
 * pages of the memory only. This waits for pages that are being fetched or
 * saved. Bytes that are written while this runs may be in the snapshot or not:
 * see above. A mapping that is added later is protected too. Kernel interface:
 * UFFDIO_WRITEPROTECT.
 *
 * After an error some of it is protected: call again, or kvmfault_unprotect().
 *
 * Returns 0, or
 *   -EINVAL       vm is NULL; the range is empty, or is not whole pages
 *   -ENXIO        a part is in no region with memory
 *   -EOPNOTSUPP   its memory has no write_protect, or is settled
 *   -EINTR        a signal came while a page was waited for
 *   -EDEADLK      called from a callback that is fetching or saving for this
 *                 memory
 *   -EAGAIN       the mappings are changing just now, or the memory is being
 *                 freed or settled
 *   -ENOMEM       there is no memory for it
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_protect(struct kvmfault_vm *vm, uint32_t address_space,
		     uint64_t gpa, uint64_t length);

/*
 * Lift the protection without asking a resolver: for a snapshot that is given
 * up. When this returns, no resolver has one of these pages to save. Pages that
 * are not protected are left as they are. Kernel interface:
 * UFFDIO_WRITEPROTECT.
 *
 * After an error, all that comes before is not protected.
 *
 * Returns 0, or
 *   -EINVAL       vm is NULL; the range is empty, or is not whole pages
 *   -ENXIO        a part is in no region with memory
 *   -EOPNOTSUPP   its memory has no write_protect
 *   -EINTR        a signal came while a page was waited for
 *   -EDEADLK      called from a callback that is fetching or saving for this
 *                 memory
 *   -ENOMEM       there is no memory for it
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_unprotect(struct kvmfault_vm *vm, uint32_t address_space,
		       uint64_t gpa, uint64_t length);

/*
 * Convert: private and shared
 * ---------------------------
 * Each page of a region with a guest_memfd is either private, and then it is
 * the guest_memfd's, or shared, and then it is the memory's. KVM keeps that for
 * each guest-physical page of 4 KiB, whatever slots there are; all are shared
 * at first. KVM cannot be asked for it, so the library remembers what KVM was
 * last told. All conversions have to go through the library, also those before
 * the first KVM_RUN.
 *
 * A guest converts in two ways. By an access: if an exit's
 * KVM_MEMORY_EXIT_FLAG_PRIVATE differs from the state, the chain is asked for
 * KVMFAULT_PAGE_UNCONVERTED, and the resolver "convert" converts it if none of
 * the VMM's took it. By a hypercall: then the VMM calls kvmfault_convert(). For
 * each run of pages that are not yet what they are to be:
 *
 *   hooks before -> KVM told -> noted -> other side discarded -> hooks after
 *
 * - Conversions that overlap wait for one another; others run in parallel.
 * - To shared: if a fetch was in flight when the page became private, it has to
 *   end first.
 * - If an access of a vCPU with no_wait would have to wait for another
 *   conversion or for such a fetch, it gets PENDING; kvmfault_convert() waits,
 *   whichever thread calls it.
 * - If a hook refuses, KVM is told nothing. If telling KVM fails (set below),
 *   KVM is told once more, to set the run back; if that fails too, the log says
 *   so. After either, the hooks that had agreed are told, and the error comes
 *   back.
 * - Pages that were discarded cannot come back. So discarding is last, when
 *   nothing can fail any more: pages that the kernel does not free stay
 *   allocated, and that is logged.
 * - Pages that become private are discarded in the memory of their region, as
 *   kvmfault_discard() does: they are zero when they are shared again. A huge
 *   page is discarded only if it is private as a whole. Pages that become
 *   shared are punched out of the guest_memfd.
 */

/* Leave the other side alone: the shared pages if pages become private, the
 * private ones if they become shared. */
#define KVMFAULT_CONVERTER_KEEP_SHARED (1U << 0)
#define KVMFAULT_CONVERTER_KEEP_PRIVATE (1U << 1)

/* Pages in no region cannot become shared: -ENXIO. Without this flag that is
 * ignored, for guests that share the address ranges of devices too. */
#define KVMFAULT_CONVERTER_RAM_ONLY (1U << 2)

/* Only kvmfault_convert() converts, and accesses do not: for VMs where what KVM
 * was told decides what an access is (KVM_X86_SW_PROTECTED_VM). There, an exit
 * that differs has met a conversion, and is tried again. */
#define KVMFAULT_CONVERTER_CALLS_ONLY (1U << 3)

struct kvmfault_converter {
	size_t size;
	uint32_t flags;		/* KVMFAULT_CONVERTER_* */
	/* A back end that tells the kernel in another way than by
	 * KVM_SET_MEMORY_ATTRIBUTES on vm_fd. NULL: by that. It returns 0, or
	 * -errno; some of the range may have changed then, so it is called once
	 * more, to set the whole range back. Any number of threads may call it
	 * at once, vCPUs' threads among them, for disjoint ranges. */
	int (*set)(void *data, uint64_t gpa, uint64_t length, bool to_private);
	void *data;
};

/* For parts of the VMM that have to know of conversions, like the IOMMU's
 * mappings of shared pages. A hook is called on the thread that converts, and
 * must not convert itself. */
struct kvmfault_conversion_hook {
	size_t size;
	/* Returns 0, or -errno: refused, and nothing has changed. May be
	 * NULL. */
	int (*before)(void *data, uint64_t gpa, uint64_t length,
		      bool to_private);
	/* done: the range was converted; else it is what it was. May be
	 * NULL. */
	void (*after)(void *data, uint64_t gpa, uint64_t length,
		      bool to_private, bool done);
	void *data;
};
#define KVMFAULT_CONVERSION_HOOK_COUNT 16

/*
 * Append a hook, copied, before the first vCPU handle and the service. The
 * hooks' before is called in the order in which they were added, and their
 * after in the opposite order.
 *
 * Returns 0, or
 *   -EINVAL   a pointer is NULL
 *   -EBUSY    a vCPU handle or a service exists
 *   -ENOSPC   there are KVMFAULT_CONVERSION_HOOK_COUNT
 *   -E2BIG    hook has a member set that this library does not know
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_conversion_hook_add(struct kvmfault_vm *vm,
				 const struct kvmfault_conversion_hook *hook);

/*
 * Convert memory of address space 0, over any number of regions. Pages that are
 * what they are to be already are left alone. vcpu is the one that calls, on
 * its own thread, or NULL. *done, unless done is NULL, is how many bytes from
 * gpa on are as they were to be, also on error.
 *
 * Do not remove a region of the range meanwhile: pages in no region any more
 * keep their other side.
 *
 * The call goes on in chunks of up to 2 MiB. Between these, and in waits, the
 * vCPU's immediate_exit ends it; in waits a signal does, too. That is -EINTR:
 * call again with the rest, before the vCPU runs.
 *
 * Returns 0, or
 *   -EINVAL       vm is NULL; the range is empty, wraps, or is not aligned to
 *                 4 KiB; the vCPU is of another context
 *   -EOPNOTSUPP   the context has neither vm_fd nor a back end; or KVM cannot
 *                 convert in a VM of this type, or is older than 6.8
 *   -ENXIO        to private: a part is in no region with a guest_memfd; to
 *                 shared, with KVMFAULT_CONVERTER_RAM_ONLY: a part is in no
 *                 region
 *   -EINTR        a signal or immediate_exit ended it
 *   -EDEADLK      called from a hook or back end, from a source or a resolver
 *                 that is asked for a page (not UNTRACKED, not UNCONVERTED), or
 *                 in a callback of kvmfault_fetch_done(), where it would wait
 *                 for another conversion or a fetch
 *   -ENOMEM       there is no memory for it
 *   other         what ioctl(2), a hook or the back end returned
 *
 * Thread class: any; with a vCPU object, its own thread. Since 0.1.
 */
int kvmfault_convert(struct kvmfault_vm *vm, struct kvmfault_vcpu *vcpu,
		     uint64_t gpa, uint64_t length, bool to_private,
		     uint64_t *done);

/*
 * Is the page at gpa private, as KVM was last told by the library?
 *
 * Returns 1 if it is, 0 if it is not, or
 *   -EINVAL   vm is NULL
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_is_private(struct kvmfault_vm *vm, uint64_t gpa);

/*
 * Working sets
 * ------------
 * A working set is the list of what a guest has touched of its image, in the
 * order of the first touches. It is recorded for a while after one start, and
 * tells at the next start which pages to bring first:
 *
 *   at one start    kvmfault_working_set_new(), kvmfault_recording_new();
 *                   later kvmfault_recording_end(), kvmfault_working_set_save()
 *   at the next     kvmfault_working_set_load(), and a fill that brings it
 *                   before all else: kvmfault_fill_options.first
 *
 * - A run is so many bytes from an offset of the image on. The image is what
 *   the memories' source shows: the offset is source_offset and the offset in
 *   the memory. So RAM in two memories of one image has one working set.
 * - A set belongs to one image: of that length, with that identity. The VMM
 *   chooses the identity, 32 bytes, as a hash or a UUID of the image. It looks
 *   at both before it uses a set that it has loaded. Zeros: none.
 * - No byte is in two runs of a set, and a run that goes on where the one
 *   before it ends is part of that.
 * - A set belongs to no context. Its functions may allocate, and one thread at
 *   a time uses a set.
 */
#define KVMFAULT_IDENTITY_LENGTH 32

struct kvmfault_working_set_options {
	size_t size;
	uint64_t image_length;		/* in bytes; not 0 */
	uint8_t identity[KVMFAULT_IDENTITY_LENGTH];
};

/*
 * Make a working set that has no runs yet.
 *
 * Returns 0, or
 *   -EINVAL   a pointer is NULL, the size of options is not set, or its
 *             image_length is 0
 *   -E2BIG    options has a member set that this library does not know
 *   -ENOMEM   there is no memory for it
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_working_set_new(const struct kvmfault_working_set_options *options,
			     struct kvmfault_working_set **set);

/*
 * Free a working set, which no recording and no fill uses. NULL is fine.
 *
 * Returns 0.
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_working_set_free(struct kvmfault_working_set *set);

/*
 * Load a working set from a file, by read(2) from the descriptor's position on,
 * and not further than the set's end. fd is borrowed during the call. A file
 * that is cut, or of which one byte has changed, gives no set. Memory is
 * allocated for what was read, not for what the file says it has.
 *
 * Returns 0, or
 *   -EINVAL            set is NULL
 *   -ENODATA           the file ends before the set does
 *   -EBADMSG           it is no working set, or it has changed: the checksum is
 *                      wrong, a run is not in the image, or two runs overlap
 *   -EPROTONOSUPPORT   its version is not known to this library
 *   -ENOMEM            there is no memory for it
 *   other              what read(2) returned
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_working_set_load(int fd, struct kvmfault_working_set **set);

/*
 * Save a working set, by write(2) from the descriptor's position on, in the
 * format of kvmfault_working_set(5). fd is borrowed during the call. After an
 * error the file has a part of the set, which kvmfault_working_set_load()
 * refuses.
 *
 * Returns 0, or
 *   -EINVAL   set is NULL
 *   other     what write(2) returned
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_working_set_save(const struct kvmfault_working_set *set, int fd);

struct kvmfault_working_set_info {
	size_t size;
	uint64_t image_length;
	uint8_t identity[KVMFAULT_IDENTITY_LENGTH];
	uint64_t runs;			/* how many there are, */
	uint64_t bytes;			/* and how long they are together */
};

/*
 * Say of which image a set is, and how much is in it.
 *
 * Returns 0, or
 *   -EINVAL   a pointer is NULL, or the size of info is not set
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_working_set_describe(const struct kvmfault_working_set *set,
				  struct kvmfault_working_set_info *info);

/*
 * Get a run of a set: *length bytes from *offset of the image on. The runs are
 * counted from 0, in the order of the touches. A run need not be in a memory:
 * it may be of another one's part of the image.
 *
 * Returns 0, or
 *   -EINVAL   a pointer is NULL
 *   -ENOENT   the set has no more than index runs
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_working_set_run(const struct kvmfault_working_set *set,
			     uint64_t index, uint64_t *offset,
			     uint64_t *length);

/*
 * Append to a set what another one has more, in the other one's order.
 *
 * Returns 0, or
 *   -EINVAL   a pointer is NULL
 *   -EXDEV    the sets are of two images
 *   -ENOMEM   there is no memory for it
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_working_set_merge(struct kvmfault_working_set *set,
			       const struct kvmfault_working_set *other);

/*
 * A recording notes which pages come from their source because they were
 * touched: by a vCPU, a thread or a device process. Left out are pages that are
 * already there, pages that kvmfault_ensure() brings, and discarded ones. With
 * a window (see enum kvmfault_window) a touch of a neighbour that has come
 * along cannot be seen, so all that the fault brought is noted: for a small set
 * record without a window, or with a small one. The order is the one in which
 * pages came: those that are in flight at once may change places.
 */
struct kvmfault_recording_options {
	size_t size;

	/* The set that gets the runs when the recording ends, borrowed until
	 * then. The runs that it has already stay first. */
	struct kvmfault_working_set *set;

	/* The memories to record, all of the set's image. */
	struct kvmfault_memory *const *memories;
	uint32_t memory_count;

	/* When the recording stops to note anything: so long after it began.
	 * 0: when it is ended. */
	uint32_t milliseconds;

	/* The same: with the page that makes it so many bytes. Each page of
	 * them takes 16 bytes of address space while the recording lasts, and
	 * of memory when it is noted. 0: 1 GiB. */
	uint64_t bytes;
};

/*
 * Begin to record, also while vCPUs run. A fault allocates nothing and takes no
 * lock for it. Until kvmfault_recording_end() the memories cannot be freed.
 *
 * Returns 0, or
 *   -EINVAL   vm, options, recording, the set or a memory is NULL; there are no
 *             memories, or one is there twice; a memory is of another context,
 *             has no source, or goes past the end of the set's image
 *   -EBUSY    a memory is recorded already
 *   -E2BIG    options has a member set that this library does not know
 *   -ENOMEM   there is no memory for it
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_recording_new(struct kvmfault_vm *vm,
			   const struct kvmfault_recording_options *options,
			   struct kvmfault_recording **recording);

/*
 * End a recording, also while vCPUs run: the runs are appended to its set, but
 * for what the set has already, and the recording is freed. NULL is fine.
 *
 * Returns 0, or
 *   -ENOMEM   there is no memory for the runs: the set is as it was, nothing
 *             more is recorded, and the call can be repeated
 *
 * Thread class: setup. Since 0.1.
 */
int kvmfault_recording_end(struct kvmfault_recording *recording);

/*
 * Statistics
 * ----------
 * Each thread counts for itself, and the call that reads adds the counts up. A
 * service thread counts a page when it is done with it, a moment after the
 * threads that it woke go on.
 */
#define KVMFAULT_LATENCY_COUNT 24
/* These have room for enumerators that later versions add. */
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
	uint64_t deferred;	/* messages that were deferred: the kernel or
				 * the source was not ready */
	uint64_t discarded;	/* pages discarded */
	uint64_t unresolved;	/* faults that were not resolved */
	/* Faults, by kvmfault_kind. */
	uint64_t kind[KVMFAULT_STATS_KINDS];
	/* Faults that were resolved, by the resolver's index in the chain. */
	uint64_t resolver[KVMFAULT_RESOLVER_COUNT];
	/* Resolved faults by microseconds: [0] under 1, [n] under 2^n, and the
	 * last one everything above. */
	uint64_t latency[KVMFAULT_LATENCY_COUNT];
	uint64_t retried;	/* vCPUs' faults that were tried again, because
				 * the source had failed */
	uint64_t prefaulted;	/* pages that KVM mapped ahead, by request */
	/* Faults, by the kvmfault_action that they were answered with. A
	 * message counts at each try, a call of kvmfault_ensure() as one. */
	uint64_t action[KVMFAULT_STATS_ACTIONS];
	/* Requests that resolvers were asked, by kvmfault_page. */
	uint64_t page[KVMFAULT_STATS_PAGES];
	uint64_t marked;	/* pages that were given a marker */
	uint64_t filled;	/* pages, of the fetched ones and holes, that a
				 * fill brought */
	uint64_t holes;		/* pages installed as zero, because the source
				 * has nothing there: none of them is fetched */
};

/*
 * The counts of the whole VM.
 *
 * Returns 0, or
 *   -EINVAL   a pointer is NULL, or the size of stats is not set
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_vm_stats(const struct kvmfault_vm *vm,
		      struct kvmfault_stats *stats);

/*
 * The counts of one vCPU's own thread.
 *
 * Returns 0, or
 *   -EINVAL   a pointer is NULL, or the size of stats is not set
 *
 * Thread class: any. Since 0.1.
 */
int kvmfault_vcpu_stats(const struct kvmfault_vcpu *vcpu,
			struct kvmfault_stats *stats);

/*
 * Names and version
 * -----------------
 * The name of an enumerator. It is never NULL; for a value that is not known it
 * is "unknown". Thread class: any. Since 0.1.
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
const char *kvmfault_log_level_str(enum kvmfault_log_level level);
const char *kvmfault_window_str(enum kvmfault_window window);
const char *kvmfault_sigbus_str(enum kvmfault_sigbus sigbus);

/*
 * The version of the library that runs, "0.1.0". The header's version is
 * KVMFAULT_VERSION.
 *
 * Thread class: any. Since 0.1.
 */
const char *kvmfault_version(void);

#ifdef __cplusplus
}
#endif

#endif
