/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * What the files of the simulator share, from the bottom up:
 *
 *   fiber.c    stacks that one thread of the host changes between
 *   sched.c    the model's threads (tasks): who goes on, who sleeps, the clock
 *   mm.c       files, mappings, page tables, accesses
 *   uffd.c     userfaultfds: messages, sleepers, the ioctls
 *   fds.c      descriptors, epoll, eventfd, timerfd, fork, the end of a process
 *   kvm.c      memslots, vCPUs, KVM_RUN
 *   door.c     the door of lib/ (lib/os/sys.h), which leads to these
 *   oracle.c   what each word of guest memory may be
 *   world.c    a VMM: its objects, sources, resolvers and callbacks
 *   tables.c   the guest's page tables, what its MSRs name
 *   states.c   files of states, and an owner that is killed
 *   steps.c    the grammar: what the VMM's threads do
 *   plan.c     a plan: which threads do which steps; made from a seed, or text
 *   run.c      one run of a plan, with one schedule
 *   main.c     many runs; what failed, made small
 *
 * A run is one thread of the host. The model's threads take turns in it: at each
 * point (a call of the door, an atomic operation, a callback, an access to
 * memory) the scheduler may let another one go on. So a run is determined by
 * its plan and its schedule, and is the same each time.
 */

#ifndef KVMFAULT_SIM_H
#define KVMFAULT_SIM_H

#include <errno.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/vfs.h>

#include "kvmfault.h"

#define PAGE 4096ULL
#define STATES_MOST (2 * PAGE)		/* that a file of states has */
#define HUGE_PAGES 4U			/* a huge page of the model: 16 KiB */
#define MS 1000000ULL
#define NEVER UINT64_MAX

/* ---- fiber.c ---- */

struct fiber {
	void *sp;			/* where it goes on */
	char *stack;
	size_t size;
	void *fake;			/* AddressSanitizer's */
};

void fiber_init(struct fiber *fiber, void (*run)(void));
/* From the running one to another; from ends: it never runs again. */
void fiber_switch(struct fiber *from, struct fiber *to, bool ends);
/* To be called first in a fiber that has just begun. */
void fiber_begun(void);

/* ---- sched.c: tasks ---- */

#define TASKS 32

enum woken { WOKEN, LATE, SIGNALLED };	/* how a sleep ended */

struct mm;
struct task {
	struct fiber fiber;
	unsigned int id;
	char name[24];
	struct mm *mm;			/* its process */
	void (*run)(void *);
	void *arg;
	enum { READY, ASLEEP, ENDED } state;
	/* asleep: */
	const void *channel;
	const char *why;
	uint64_t until;
	bool gives_way;
	bool interruptible;
	enum woken how;
	/* signals: bit n - 1 is signal n */
	uint64_t pending, blocked;
	siginfo_t sigbus;		/* the pending SIGBUS */
	void (*on_signal)(struct task *task, int signo);
	uint32_t priority;		/* PCT: the highest goes first */
	/* the public function that it is in: see world.c */
	const char *call;
	uint32_t began;			/* that call: the count of switches then */
	void *own;			/* the library's */
	uint64_t waited;		/* on futexes, since the call began */
	const void *napped;		/* a futex on which nobody has woken it, */
	uint32_t napped_at;		/* and the count of switches then */
	unsigned int callbacks;		/* that it is in */
	bool on_path;			/* in what a fault may run */
	bool service;			/* a thread of the service */
	const void *locked;		/* the library's lock that it holds */
	unsigned int injected;		/* errors, since the call began */
	unsigned int asked;		/* how often it has asked the source */
	unsigned int waits;		/* and waited on a futex, */
	unsigned int left_waits;	/* as a worker that was left, */
	uint64_t left_task;		/* in the task that began then */
	bool sets_back;			/* what could not be converted */
	bool handler;			/* it is in a signal's */
	const void *user;		/* steps.c's */
	/* a store that nobody else has seen yet */
	struct {
		volatile void *object;
		uint64_t value;
		size_t size;
	} late;
};

extern struct task *current;

struct task *task_new(const char *name, struct mm *mm, void (*run)(void *),
		      void *arg);
/* The n-th, or NULL; in the order in which they were made. */
struct task *task_nth(unsigned int n);
void task_wait_end(struct task *task);
/* Sleep on a channel, at most until a time; also until a signal. */
enum woken task_sleep(const void *channel, const char *why, uint64_t until,
		      bool interruptible);
void task_pause(uint64_t nanoseconds, const char *why);
/* Wake up to so many that sleep there; how many. */
unsigned int task_wake(const void *channel, unsigned int count);
void task_wake_one(struct task *task);
/* A signal; what is not blocked ends an interruptible sleep. */
void task_signal(struct task *task, int signo);
/* Take it: false, it is not pending. */
bool task_take_signal(struct task *task, int signo);
/* Signals that are pending and not blocked are handled: are there any? */
bool task_handle_signals(void);

/* A point: another task may go on. */
void sim_point(void);
/* The next point is before something that others see, too. */
void sim_meet(void);
/* What was met there before was another thing. */
void sim_made(const void *memory, size_t length);
uint64_t sim_now(void);
void sim_give_way(void);		/* another one goes on, if one can */
void sim_pass(uint64_t nanoseconds);	/* of the clock */

/* Every choice of a run but the schedule; the same for the same seed. */
uint32_t sim_random(void);
uint32_t sim_below(uint32_t n);
static inline bool sim_one_in(uint32_t n)
{
	return n && !sim_below(n);
}

/* What happened, in words, when a run is told. */
extern bool telling;
extern bool telling_atomics;
__attribute__((format(printf, 1, 2)))
void tell(const char *format, ...);

/* A rule was broken: the run ends here. kind: short, the same for the same
 * fault; the rest for people. */
__attribute__((format(printf, 2, 3), noreturn))
void sim_fail(const char *kind, const char *format, ...);
/* The run ends here, and nothing is wrong. */
__attribute__((noreturn)) void sim_stop(void);

/* How the scheduler chooses. */
enum strategy { RANDOM_WALK, PCT, MEET, GIVEN };

struct change {				/* of the running task */
	uint32_t at;			/* the step */
	uint8_t to;			/* the task's id */
};

struct schedule {
	enum strategy strategy;
	uint64_t seed;
	uint32_t every;			/* random walk: a change each so often;
					 * MEET: at one meeting in so many */
	uint32_t depth;			/* PCT: changes of priority */
	uint32_t length;		/* PCT: expected steps */
	const struct change *given;
	uint32_t given_count;
};

struct outcome {
	char kind[96];			/* empty: nothing is wrong */
	char text[512];
	uint64_t steps, now;
	uint32_t switches;
	uint64_t state;			/* a digest of the end */
};

/* The changes of the last run, in order. */
const struct change *sched_changes(uint32_t *count);
/* Who was ready at each step of the last run, a bit a task, the one that runs
 * too: exhaustive search. None: there was no choice. */
const uint32_t *sched_ready(uint32_t *steps);

/* Run main_task, and all that it makes, until it ends. */
void sched_run(const struct schedule *schedule, uint64_t seed,
	       void (*main_task)(void *), void *arg, struct outcome *outcome);
/* How often another task has gone on. */
uint32_t sched_switches(void);
bool sched_was_idle(void);	/* nobody has run since all were asleep */
/* From now on everybody has his turn, one after the other, each so many steps
 * at most: within them all has to be well. */
void sched_be_fair(void);
bool sched_is_fair(void);
/* The task is in a loop: a limit of steps without the clock's going on. */
extern uint64_t sched_step_limit;
extern uint64_t sched_steps;

/* ---- mm.c ---- */

struct frame;				/* a page of the machine's memory */
typedef int frame_t;			/* its number; -1: none */
char *frame_bytes(frame_t frame);

struct file {
	bool hugetlb, guest_memfd;
	bool copy;			/* its frames are in no pool */
	unsigned int inode;
	unsigned int punching;		/* how many are about to */
	unsigned int pages;		/* of PAGE */
	unsigned int unit;		/* pages that come and go together */
	frame_t *frame;			/* by page */
	bool *ahead;			/* allocated, without data */
	unsigned int refs;
};

struct uffd;
struct pte {
	uint8_t kind;			/* enum pte_kind */
	bool writable;			/* else it faults once more */
	bool wp;			/* write-protected, here or when it comes */
	bool going;			/* its page table, just now */
	uint8_t prot;			/* of its VMA */
	uint16_t vma;			/* 0: nothing is mapped */
	frame_t frame;
	struct uffd *uffd;		/* its VMA's */
	uint8_t modes;			/* UFFDIO_REGISTER_MODE_* */
};
enum pte_kind { PTE_NONE, PTE_PRESENT, PTE_POISON };

struct map {				/* what one mmap() made */
	struct mm *mm;
	uint64_t start;
	unsigned int pages, unit;
	struct file *file;		/* NULL: anonymous */
	unsigned int pgoff;
	bool private;			/* MAP_PRIVATE */
	bool dontfork;
	struct pte *pte;
	struct map *next;
};

struct mm {				/* a process */
	unsigned int id;
	bool dead;
	struct map *maps;
	uint64_t next_start;
	bool ours;			/* the VMM's: its addresses are real */
};

extern struct mm *our_mm;

void mm_reset(void);
struct mm *mm_new(bool ours);
struct map *map_at(struct mm *mm, uint64_t address, unsigned int *page);
struct file *file_new(unsigned int pages, bool hugetlb, bool guest_memfd);
void file_put(struct file *file);

/* Limits of the machine; frames that are left. */
extern unsigned int huge_pool;		/* huge pages that are left */
extern unsigned int shmem_left;		/* frames that a memfd can take */
extern bool huge_exists;		/* as 6.18: an empty pool is -EEXIST */

/* mmap() of a file, or anonymous memory: the address, or 0. */
uint64_t mm_map(struct mm *mm, struct file *file, unsigned int pgoff,
		unsigned int pages, int prot, bool private);
void mm_map_again(struct mm *mm, uint64_t start, int prot);
/* 0 or -errno, as the calls of these names. */
/* What /proc/self/maps has: its bytes. */
size_t mm_tell_maps(const struct mm *mm, char *text, size_t size);
int mm_unmap(struct mm *mm, uint64_t start, uint64_t length);
int mm_protect(struct mm *mm, uint64_t start, uint64_t length, int prot);
int mm_madvise(struct mm *mm, uint64_t start, uint64_t length, int advice);
int mm_mincore(struct mm *mm, uint64_t start, uint64_t length,
	       unsigned char *vec);
/* A VMA of its own, as mbind() or a partial madvise() make. */
void mm_split(struct mm *mm, uint64_t start, uint64_t length);
/* mremap(): the same pages elsewhere; the new address. */
uint64_t mm_move(struct mm *mm, uint64_t start, uint64_t length);
/* The kernel unmaps a file's page, and keeps its data. */
void mm_reclaim(struct map *map, unsigned int page);
struct mm *mm_fork(struct mm *mm);
void mm_exit(struct mm *mm);
int file_punch(struct file *file, uint64_t offset, uint64_t length);
int64_t file_seek_data(const struct file *file, uint64_t offset);
int64_t file_seek_hole(const struct file *file, uint64_t offset);
/* Another file with the same bytes, that says that it is the same. */
struct file *file_copy(const struct file *file);
unsigned int file_blocks(const struct file *file);	/* frames */
bool file_cached(const struct file *file, uint64_t offset, uint64_t length);
/* A page that is to be there: zeros, or -ENOMEM. */
int file_fill(struct file *file, unsigned int page);
/* write(2) to it, whole pages' parts. */
int file_write(struct file *file, uint64_t offset, const void *bytes,
	       size_t length);
int64_t file_read(const struct file *file, uint64_t offset, void *bytes,
		  size_t length);

/* What an access comes to. */
enum access {
	ACCESS_OK,
	ACCESS_SEGV,			/* not mapped, or not so */
	ACCESS_BUS,			/* past the file, no memory, no huge page */
	ACCESS_POISON,			/* a marker: SIGBUS, BUS_MCEERR_AR */
	ACCESS_SIGNAL,			/* interrupted in its sleep */
	ACCESS_DEAD,			/* its process is gone */
};
/* Touch a page as the current task, sleep where a userfaultfd says so, and give
 * its frame. kernel: by KVM (a signal ends the sleep). */
enum access mm_access(struct mm *mm, uint64_t address, bool write, bool kernel,
		      frame_t *frame);
/* The same by a copy of the kernel's: no signal ends it. */
enum access mm_copy(struct mm *mm, uint64_t address, bool write, frame_t *frame);
/* One step of that without sleeping: would it sleep? Then *uffd and *flags. */
enum access mm_try(struct mm *mm, uint64_t address, bool write,
		   frame_t *frame, struct uffd **uffd, uint64_t *flags);
/* The bytes of a word, by an access of the current task's. */
enum access mm_read(struct mm *mm, uint64_t address, uint64_t *value);
enum access mm_write(struct mm *mm, uint64_t address, uint64_t value);
void pte_clear(struct map *map, unsigned int page, bool keep_poison);

/* Accesses of the library's own code to guest memory: opened by the SIGSEGV that
 * they are, closed at the next point. */
void windows_close(void);
void windows_close_all(void);		/* another task goes on */
void windows_init(void);

/* ---- uffd.c ---- */

struct uffd {
	struct mm *mm;			/* whose memory it watches */
	uint64_t features;
	bool api, closed, user_mode_only;
	unsigned int changing;		/* somebody waits for an event's reader */
	struct sleeper *sleepers;
	struct uffd_event *events, **last_event;
};

void uffd_reset(void);
struct uffd *uffd_new(struct mm *mm);
/* From here on UFFDIO_COPY has nothing to read there: a mapped file was cut. */
void uffd_cut(const void *bytes, size_t length);
int uffd_ioctl(struct uffd *uffd, unsigned long request, void *arg);
/* As many messages as fit: bytes, or -EAGAIN. */
ssize_t uffd_read(struct uffd *uffd, void *buffer, size_t length);
bool uffd_readable(const struct uffd *uffd);
void uffd_close(struct uffd *uffd);	/* its last descriptor */
/* The current task sleeps there until it is woken. */
enum woken uffd_sleep(struct uffd *uffd, uint64_t address, uint64_t flags,
		      bool interruptible);
void uffd_wake(struct uffd *uffd, uint64_t start, uint64_t length);
/* What the current task does to the range has to be read about first. */
void uffd_tell_remove(struct mm *mm, uint64_t start, uint64_t length,
		      uint8_t event);
/* One who sleeps there, for reports. */

/* ---- fds.c ---- */

enum kind {
	KIND_NONE, KIND_UFFD, KIND_EPOLL, KIND_EVENT, KIND_TIMER, KIND_FILE,
	KIND_IMAGE, KIND_INFO, KIND_DEVICE, KIND_KVM, KIND_VM, KIND_VCPU,
	KIND_STATES,
};

struct open {				/* an open file description */
	enum kind kind;
	unsigned int refs;		/* descriptors, those of forks too */
	int flags;			/* O_* */
	struct uffd *uffd;
	struct file *file;
	struct epoll *epoll;
	struct vcpu *vcpu;
	uint64_t count;			/* eventfd */
	uint64_t due;			/* timerfd; NEVER: not armed */
	const char *image;		/* KIND_IMAGE: bytes, and how many */
	char *states;			/* KIND_STATES: bytes, of the host */
	uint64_t length;		/* KIND_INFO: a userfaultfd's features, */
	bool maps;			/* or what is mapped */
};

void fds_reset(void);
struct open *fd_open(int fd);		/* NULL: it is closed */
int fd_new(enum kind kind, bool library, struct open **open);
int fd_dup(int fd, bool library);
int fd_close(int fd, bool library);	/* the library closes its own only */
struct open *open_hold(struct open *open);
void open_put(struct open *open);
bool open_readable(const struct open *open);
void fds_changed(void);			/* something may be readable now */
unsigned int fds_of_library(void);
void fds_fork(void);			/* a child holds all of them */
void fds_child_gone(void);

int epoll_add(struct open *open, int fd, const struct epoll_event *event);
int epoll_modify(struct open *open, int fd, const struct epoll_event *event);
int epoll_delete(struct open *open, int fd);
int epoll_await(struct open *open, struct epoll_event *events, int count,
		int timeout);
/* As poll() on it does; false: not by then. */
bool epoll_await_any(int fd, uint64_t until);

/* ---- kvm.c ---- */

struct slot {
	uint64_t gpa, length, host;
	bool used, readonly;
	struct file *guest_memfd;
	uint64_t guest_memfd_offset;
	uint32_t flags;
	uint64_t bitmap;
};
#define SLOTS 8
#define GFNS 4096U
#define KVM_FLAG_NOBODY_KNOWS (1ULL << 40)	/* of an exit */

extern struct kvm {
	struct slot slot[SLOTS];
	bool private[GFNS];		/* attributes */
	int abi;			/* 0, 1: userfault, 2: on missing, 3: their
					 * flag is another one's */
	bool two_dimensional, prefault;
	bool decides;			/* attributes say what an access is */
	bool newer;			/* exits and messages have more in them */
	unsigned int odd;		/* messages with flags that nobody knows */
	bool refuses;			/* to be told of private pages, once */
	bool unlucky;			/* scratch guests run badly too */
	bool arm64;			/* no signal ends a sleep in KVM_RUN, and
					 * si_addr_lsb is the memory's page's */
	unsigned int vcpus;
} kvm;

struct access_wanted {			/* what the guest does */
	uint64_t gpa;
	bool write, private;
	uint64_t value;			/* read, or to be written */
	bool emulated;			/* KVM's emulator does it, where it faults */
	bool unknown;			/* and gives up on it */
	unsigned int turns;		/* and so many more, with no exit between,
					 * private and shared by turns */
};

struct vcpu {
	unsigned int id;
	int fd;
	struct kvm_run *run;
	struct access_wanted now;
	bool wanting, mmio;		/* an access, half done by MMIO */
	bool ud;			/* queued */
	uint64_t mask;			/* KVM_SET_SIGNAL_MASK */
	bool masked;
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	bool done;			/* the access is over */
	unsigned int used;		/* by ioctls of other threads, just now */
	uint64_t told;			/* the gpa of its last exit */
};

void kvm_reset(void);
int kvm_ioctl(struct open *open, unsigned long request, void *arg);
struct vcpu *vcpu_of(int fd);
int kvm_new_vcpu(struct kvm_run *run);	/* its descriptor */
/* KVM_RUN: -1 with *err, or 0 */
int kvm_run(struct vcpu *vcpu, int *err);
/* The guest wants this next. */
void kvm_want(struct vcpu *vcpu, const struct access_wanted *access);
int kvm_set_slot(unsigned int slot, const struct slot *what);

/* ---- door.c ---- */

/* Errors on demand: one call in so many fails as the kernel may; 0: none. */
extern uint32_t door_fail_one_in;
extern uint64_t door_failed;		/* how many did */
void door_reset(void);
/* Nobody finds only by chance that what he waits for has come. */
void door_check_wake(void);
/* The library has handed it over: it is the VMM's. */
void door_given(const void *mapping);
/* What the library has and does not give back is a leak. */
void door_check_leaks(void);
/* The bitmap of the pages that leave KVM_RUN is as their states are. */
void door_check_bits(const struct kvmfault_memory *memory);

/* ---- oracle.c ---- */

#define WORDS 4U			/* words of a page that are watched */
extern const unsigned int oracle_word[WORDS];	/* where they are */
#define VALUES 6U
#define PENDING_WRITES 4U

struct word {
	uint64_t value[VALUES];		/* that it may have */
	uint8_t count;
	uint64_t pending[PENDING_WRITES];	/* that may come at any time */
	uint8_t pendings;
	bool written;			/* since the discard began */
	uint32_t version;		/* how often it was changed */
	bool lost;			/* poisoned: anything, or a SIGBUS */
};

struct truth {				/* of a memory, or a guest_memfd */
	const char *name;
	bool loose;			/* what was read may change by itself */
	unsigned int pages;
	struct word *word;		/* by page and word */
	uint8_t *discarding;		/* by page: discards in progress, */
	unsigned int open;		/* and in all */
	bool *left;			/* by page: one was given up, and may
					 * come to its end by itself */
	bool *ever;			/* by page: some discard has begun */
	bool mends;			/* what is lost is zero once discarded */
	unsigned int changes;		/* whatever has happened to it */
};

uint64_t oracle_source(unsigned int source, uint64_t offset);	/* its word */
void truth_init(struct truth *truth, const char *name, unsigned int pages);
void truth_free(struct truth *truth);
struct word *truth_word(struct truth *truth, unsigned int page,
			unsigned int word);
/* What it is at first. */
void truth_first(struct truth *truth, unsigned int page, unsigned int word,
		 uint64_t value);
/* Another memory is there now. */
void truth_anew(struct truth *truth, unsigned int page, unsigned int word,
		uint64_t value);
/* Somebody has read it, or written. */
void truth_read(struct truth *truth, unsigned int page, unsigned int word,
		uint64_t value, const char *who);
void truth_write(struct truth *truth, unsigned int page, unsigned int word,
		 uint64_t value);
/* The library writes it for somebody, some time between these two. */
uint32_t truth_write_begin(struct truth *truth, unsigned int page,
			   unsigned int word, uint64_t value);
/* done: it has been, or may never be. */
void truth_write_end(struct truth *truth, unsigned int page, unsigned int word,
		     uint64_t value, uint32_t version, bool done);
void truth_discard_begin(struct truth *truth, unsigned int page,
			 unsigned int count);
/* It has failed, and yet who is fetching such a page may discard it. */
void truth_discard_left(struct truth *truth, unsigned int page,
			unsigned int count);
void truth_discard_end(struct truth *truth, unsigned int page,
		       unsigned int count, bool done);
void truth_lose(struct truth *truth, unsigned int page, unsigned int count);
bool word_may_be(const struct word *word, uint64_t value);

#endif
