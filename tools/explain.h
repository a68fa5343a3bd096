/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault explain: why an address of a running VMM is not mapped, from /proc
 * alone. The order of the files is that of the work: explain-proc.c reads a
 * file and keeps what was denied; explain-threads.c, explain-uffds.c,
 * explain-maps.c and explain-backing.c gather what is seen of the process into
 * a `look`; explain-slots.c guesses its memslots; explain-causes.c makes one
 * cause of it all; explain-report.c prints it; explain.c has the command line.
 * Nothing here changes or attaches to the process.
 */

#ifndef EXPLAIN_H
#define EXPLAIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct json_object;

#define NO_ADDRESS UINT64_MAX
#define NAME_SIZE 64
#define FLAGS_SIZE 128		/* smaps' VmFlags, as they stand there */

/* The names in JSON are those of explain-causes.c. */
enum explain_cause {
	EXPLAIN_UNKNOWN,
	EXPLAIN_NOTHING,	/* of the whole process: nothing is wrong */
	EXPLAIN_MAPPED,
	EXPLAIN_ON_DEMAND,	/* an access brings the page */
	EXPLAIN_NO_SLOT,
	EXPLAIN_NOT_MAPPED,
	EXPLAIN_NO_ACCESS,
	EXPLAIN_READ_ONLY,
	EXPLAIN_SEALED,
	EXPLAIN_FILE_SHORT,
	EXPLAIN_TMPFS_FULL,
	EXPLAIN_HUGETLB_EMPTY,
	EXPLAIN_MEMORY_CGROUP,
	EXPLAIN_HARDWARE_POISON,
	EXPLAIN_POISON_MARKER,
	EXPLAIN_GUARD,
	EXPLAIN_SWAPPED,
	EXPLAIN_PFN_MAPPING,
	EXPLAIN_UFFD_ASKS,	/* an access asks a handler, and none waits */
	EXPLAIN_UFFD_SIGBUS,
	EXPLAIN_UFFD_UNREAD,
	EXPLAIN_UFFD_HANDLER_GONE,
	EXPLAIN_UFFD_UNANSWERED,
	EXPLAIN_UFFD_LOST_WAKE,
	EXPLAIN_CAUSES
};

struct explain_mapping {
	uint64_t start, end, offset;
	uint64_t inode;
	unsigned int device_major, device_minor;
	uint64_t page_size;	/* 0: not known */
	bool readable, writable, executable, shared;
	char flags[FLAGS_SIZE];	/* "": not known */
	char name[256];
};

/* An entry of pagemap. */
struct explain_page {
	bool known;		/* all others are false without */
	bool present, swapped, uffd_protected, guard;
	bool type_known;	/* of a swapped one: */
	unsigned int type;
	uint64_t offset;
};

struct explain_backing {
	bool known;		/* size, blocks and the file system */
	uint64_t size, blocks;	/* bytes, 512 bytes each */
	long file_system;	/* statfs' f_type */
	uint64_t room, capacity;	/* its blocks; capacity 0: no limit */
	bool data_known, data;	/* whether the file has the page */
};

struct explain_slot {
	uint64_t gpa, hva, length;	/* gpa NO_ADDRESS: not known */
	const char *from;
};

struct explain_thread {
	pid_t tid;
	char name[NAME_SIZE];
	char wchan[NAME_SIZE];	/* "": it runs, or it is not known */
	char state;
	bool vcpu;
	bool sigbus_blocked;
	bool still;		/* it has not run between the looks */
	uint64_t switches;
	char *stack;		/* NULL: not readable */
};

struct explain_holder {
	pid_t pid;
	int fd;
	char name[NAME_SIZE];
	char state;
};

/* One userfaultfd, and each descriptor of it. */
struct explain_uffd {
	uint64_t inode;
	uint64_t pending, total, features;
	bool known;		/* the three above */
	bool ours;		/* the process holds it */
	bool still;		/* pending and total stayed between the looks */
	struct explain_holder *holders;
	size_t holder_count;
};

struct explain_denied {
	char *what;
	int error;
	const char *right;
};

struct explain_memory_cgroup {
	bool known;
	char path[512];
	uint64_t limit, usage, reclaimable;	/* limit UINT64_MAX: none */
	uint64_t oom_kills;
	bool waits;		/* v1: tasks sleep until there is room */
};

struct explain_look {
	pid_t pid;
	bool write;
	uint64_t gpa, hva;	/* what is asked; NO_ADDRESS: all */
	uint64_t base;		/* the host's page size */
	bool admin;		/* this program has CAP_SYS_ADMIN */
	bool gone;		/* no such process, or it ended meanwhile */
	char name[NAME_SIZE];
	char program[NAME_SIZE];
	const char *vmm;	/* NULL: none that is known */
	unsigned int vms, vcpus;	/* its descriptors of KVM's */
	bool peer_gone;		/* a Unix socket's other end is closed */
	bool no_progress;	/* no page came between the looks */
	bool descriptors_known, maps_known, maps_denied, flags_known;

	struct explain_mapping *mappings;
	size_t mapping_count;
	struct explain_slot *slots;
	size_t slot_count;
	struct explain_thread *threads;
	size_t thread_count;
	struct explain_uffd *uffds;
	size_t uffd_count;
	struct explain_denied *denied;
	size_t denied_count;
	struct explain_memory_cgroup cgroup;

	bool may_uffd, may_uffd_known;
	char gates[256];	/* those that are closed */

	/* of the address that is asked */
	const struct explain_mapping *mapping;
	struct explain_page page;
	struct explain_backing backing;
	uint64_t free_huge, reserved_huge;
	bool huge_known;
};

struct explain_verdict {
	enum explain_cause cause;
	char sentence[512];
	const char *advice;
	uint64_t hva;		/* NO_ADDRESS: it is about no address */
};

/* ---- explain-proc.c ---- */

/* The list with room for one more, zeroed, at the end; no memory ends the
 * program. */
void *grow_list(void *list, size_t count, size_t item);
/* The text of a file, to be freed, or NULL. `right`: what it takes to read it;
 * told if it was denied. NULL: it need not be there, so nothing is told. */
char *read_text(struct explain_look *look, const char *path, const char *right);
int open_told(struct explain_look *look, const char *path, int flags,
	      const char *right);
void note_denied(struct explain_look *look, const char *what, int error,
		 const char *right);
/* The number in the line that begins with `name`, any spaces between. */
bool find_number(const char *text, const char *name, int base,
		 uint64_t *number);
bool read_number(struct explain_look *look, const char *path,
		 uint64_t *number);
bool copy_word(char *to, size_t size, const char *from);

extern const char right_to_inspect[];

/* ---- explain-maps.c ---- */

void read_mappings(struct explain_look *look);
/* Of a file's text, which is cut into lines: maps, then smaps. */
void parse_mappings(struct explain_look *look, char *text);
void parse_flags(struct explain_look *look, char *text);
const struct explain_mapping *find_mapping(const struct explain_look *look,
					   uint64_t hva);
bool has_flag(const struct explain_mapping *mapping, const char *flag);
struct explain_page read_page(struct explain_look *look, uint64_t hva);
/* Whether a userfaultfd is registered for it. */
bool is_registered(const struct explain_mapping *mapping);
/* A number that changes when a page comes to memory of a userfaultfd, or is no
 * longer write-protected. False: the kernel or the rights do not tell. */
bool measure_progress(struct explain_look *look, uint64_t *progress);
/* The first address in the range whose page is absent (`protected`: is present
 * and write-protected by a userfaultfd); NO_ADDRESS: none. False: the kernel or
 * the rights do not tell. */
bool find_page(struct explain_look *look, uint64_t start, uint64_t end,
	       bool protected, uint64_t *found);

/* ---- explain-backing.c ---- */

struct explain_backing read_backing(struct explain_look *look,
				    const struct explain_mapping *mapping,
				    uint64_t hva);
bool read_huge_pool(struct explain_look *look, uint64_t page_size,
		    uint64_t *free_pages, uint64_t *reserved);
void read_memory_cgroup(struct explain_look *look);

/* ---- explain-threads.c ---- */

void read_process(struct explain_look *look);
void read_threads(struct explain_look *look);
/* One more look: which threads have not moved since. */
void compare_threads(struct explain_look *look);
bool sleeps_in(const struct explain_thread *thread, const char *function);

/* ---- explain-uffds.c ---- */

/* Of the text of fdinfo; false: it is of no userfaultfd. */
bool parse_waiters(const char *text, struct explain_uffd *uffd);
void read_descriptors(struct explain_look *look);
void find_holders(struct explain_look *look);
void compare_uffds(struct explain_look *look);
void read_uffd_rights(struct explain_look *look);

/* ---- explain-slots.c ---- */

bool parse_slot(const char *text, struct explain_slot *slot);
void guess_slots(struct explain_look *look);
uint64_t slot_hva(const struct explain_look *look, uint64_t gpa);
uint64_t slot_gpa(const struct explain_look *look, uint64_t hva);

/* ---- explain-causes.c ---- */

const char *cause_name(enum explain_cause cause);
struct explain_verdict decide_address(struct explain_look *look);
struct explain_verdict decide_process(struct explain_look *look);

/* ---- explain-report.c ---- */

void print_explanation(const struct explain_look *look,
		       const struct explain_verdict *verdict);
struct json_object *explanation_json(const struct explain_look *look,
				     const struct explain_verdict *verdict);

#endif
