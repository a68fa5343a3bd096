/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault serve: what its files share. One thread, the loop's, accepts and
 * decides; pages are brought by the library's threads, which only ever tell
 * (serve_tell(), serve_wake()). All that a client sends is bounded, and each
 * wait for it has a deadline.
 */

#ifndef SERVE_H
#define SERVE_H

#include <kvmfault.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "image.h"

#define SERVE_VMS_MAX 4096
#define SERVE_FETCHES 64		/* of one VM, at once */
#define SERVE_MESSAGE (1U << 20)	/* bytes of a client's message */
#define SERVE_RANGES 4096		/* ranges of memory in it */
#define SERVE_FDS 8			/* descriptors with it */
#define SERVE_SENT 128			/* those with a message of our own */
#define SERVE_WHY 256

struct json_object;
struct serve;
struct serve_kept;
struct serve_range;
struct serve_vm;

/* ---- serve-loop.c ---- */

/* A descriptor that the loop looks at. Its owner has the struct. The functions
 * may remove and free it. */
struct serve_watch {
	int fd;
	/* serve_now() at which late is called, once; 0: never. */
	int64_t deadline;
	void (*ready)(struct serve_watch *watch);
	void (*late)(struct serve_watch *watch);
	struct serve *serve;
	struct serve_watch *next, *previous;
};

/* Milliseconds; they never go back. */
int64_t serve_now(void);
/* events: EPOLLIN and others. 0 or -errno. */
int serve_watch_add(struct serve *serve, struct serve_watch *watch,
		    uint32_t events);
void serve_watch_events(struct serve_watch *watch, uint32_t events);
/* Does not close the descriptor. Nothing happens if it was not added. */
void serve_watch_remove(struct serve_watch *watch);
/* Runs until serve->done. 0 or -errno. */
int serve_loop(struct serve *serve);
int serve_loop_new(struct serve *serve);
void serve_loop_free(struct serve *serve);
/* From any thread: let the loop look at what the VMs' threads have noted. */
void serve_wake(struct serve *serve);

/* ---- the server ---- */

struct serve {
	/* what was asked for */
	struct image_place place;
	const char *listen_path, *metrics_path;
	const char *working_set_path, *record_path;
	bool fill;
	uint64_t fill_rate;	/* bytes a second of each VM; 0: no limit */
	uint32_t record_ms;
	unsigned int vms_max;
	bool json;
	/* for Cloud Hypervisor, in place of the paths above */
	const char *cloud_path, *snapshot_path;
	bool paused;

	/* what there is */
	struct image image;
	struct kvmfault_working_set *set;	/* to bring first, or NULL */
	struct kvmfault_working_set *recorded;	/* of all VMs, or NULL */
	int channel;			/* to the keeper; -1: there is none */
	uint64_t numbers;		/* that clients have got */
	int epoll;
	struct serve_watch *watches;
	struct serve_watch wakeup, signals, listener, metrics;
	bool full;			/* the listener waits for a place */
	unsigned int clients;		/* VMs, and those not yet VMs */
	unsigned int metrics_clients;
	struct serve_vm *vms;		/* that are served */
	struct serve_vm *leaving;	/* that are being freed */
	bool draining;		/* no client is accepted; what VMs lack comes
				 * now */
	bool done;

	/* what happened */
	uint64_t came, gone, refused;
};

/* ---- serve.c ---- */

/* If no VM lacks anything any more, a server that drains is done. */
void serve_check_drained(struct serve *serve);

/* ---- serve-tell.c: events, one line each on standard output ---- */

/* Begin an event. vm may be NULL. */
struct json_object *serve_event(const char *event, const struct serve_vm *vm);
void serve_add_number(struct json_object *to, const char *key, uint64_t value);
void serve_add_text(struct json_object *to, const char *key, const char *text);
/* Print it in one piece, and free it. Any thread may. */
void serve_tell(const struct serve *serve, struct json_object *event);
/* The same, of an event that has one text and an -errno, or 0. */
void serve_tell_problem(const struct serve *serve, const struct serve_vm *vm,
			const char *event, const char *what, int err);

/* ---- serve-socket.c ---- */

/* A socket that listens at path, with mode 0600. An old one on which nothing
 * answers is replaced. The descriptor, or -errno with a message printed. */
int serve_socket_listen(const char *path);
/* The one that the service manager has passed. The descriptor, -ENOENT: there
 * is none; or -errno with a message printed. */
int serve_socket_activated(void);
/* Tell the service manager, if there is one. */
void serve_socket_notify(const char *state);
/* Send bytes and up to SERVE_SENT descriptors, which stay the caller's. How many
 * bytes, or -errno. */
ssize_t serve_socket_send(int socket, struct iovec *iov, size_t parts,
			  const int *fd, unsigned int fds);
/* The next client, that is root's or this user's. Its descriptor, or -errno;
 * -EPERM: another user's, which is not served. */
int serve_socket_accept(int listener, struct ucred *peer);

/* ---- serve-keeper.c ---- */

/* The keeper's words for SIGTERM and SIGINT, and for SIGHUP. */
#define SERVE_SIGNAL_END SIGUSR1
#define SERVE_SIGNAL_RECORD SIGUSR2

/* Has work() run in a process of its own, again each time it is killed.
 * Returns the code that the program ends with. */
int serve_keeper(struct serve *serve, int (*work)(struct serve *serve));

/* ---- serve-keep.c: all that outlives the process that serves ---- */

struct serve_kept {
	struct serve_kept *next;
	uint64_t number;		/* of the client, for ever */
	pid_t pid;
	int socket, uffd;		/* -1: none */
	/* Its ranges of memory: 0, until it has told. */
	unsigned int count;
	struct serve_range *range;
	int *states;			/* files; -1: not come */
	bool resident;			/* all of it has come: it has no memory
					 * here any more */
};

enum { SERVE_KEPT_READY = 1, SERVE_KEPT_ALL };

/* Take a message and change the list as it says, and *numbers, the highest
 * number that a client has got. Returns 0, which of these two it was, or
 * -errno; -EPIPE: the other process is gone. */
int serve_keep_take(int channel, struct serve_kept **list, uint64_t *numbers);
/* Send all of the list. 0 or -errno. */
int serve_keep_all(int channel, const struct serve_kept *list,
		   uint64_t numbers);
/* Closes those files of states that there are. */
void serve_keep_close(const int *states, unsigned int count);
/* Frees one that is in no list, with its descriptors. */
void serve_keep_free(struct serve_kept *kept);

/* The worker tells the keeper; the descriptors stay its own. 0, also if there
 * is no keeper (any more), or -errno. */
int serve_keep_socket(struct serve *serve, uint64_t number, int socket,
		      pid_t pid);
int serve_keep_memory(struct serve *serve, const struct serve_vm *vm, int uffd);
int serve_keep_states(struct serve *serve, const struct serve_vm *vm);
void serve_keep_resident(struct serve *serve, uint64_t number);
void serve_keep_gone(struct serve *serve, uint64_t number);
void serve_keep_ready(struct serve *serve);

/* ---- serve-client.c: from a connection to a VM ---- */

void serve_client_ready(struct serve_watch *listener);
/* One whose worker was killed before it was a VM. Takes all that is kept. */
void serve_client_again(struct serve *serve, struct serve_kept *kept);
/* Accept no client while there are as many as there may be. */
void serve_client_limit(struct serve *serve);
/* Something that has kept the listener from accepting may be over. */
void serve_client_place(struct serve *serve);

/* ---- serve-firecracker.c ---- */

struct serve_range {
	uint64_t address;	/* in the client */
	uint64_t length, page_size;
	uint64_t offset;	/* in the image */
};

/* A client's message, as far as it came. */
struct serve_hello {
	int fd[SERVE_FDS];
	unsigned int fds;
	size_t length;
	void *parser;		/* the dialect's */
	struct json_object *list;
	char why[SERVE_WHY];	/* it was refused */
};

/* Take the next bytes. 1: the message is whole; 0: more has to come; -1: it is
 * not of this dialect, see why. */
int serve_firecracker_take(struct serve_hello *hello, const char *bytes,
			   size_t length);
/* Read a whole message: a list that the caller frees, every number of which was
 * checked. How many, or -1, see why. */
int serve_firecracker_ranges(struct serve_hello *hello, uint64_t image_length,
			     struct serve_range **ranges);
void serve_firecracker_forget(struct serve_hello *hello);

/* ---- serve-cloud-hypervisor.c ---- */

/* Restore one VM, and serve it to its end. Returns an exit code. */
int serve_cloud_hypervisor(const struct serve *serve);

/* ---- serve-vm.c ---- */

struct serve_vm {
	struct serve_watch watch;	/* the first member: its socket, which
					 * ends with it */
	struct serve *serve;
	struct serve_vm *next, *previous;
	uint64_t number;
	pid_t pid;
	const char *dialect;
	int64_t came;
	bool spoke;		/* and was not asked to */

	struct kvmfault_vm *vm;
	struct kvmfault_uffd *uffd;
	struct kvmfault_service *service;
	struct serve_range *range;
	int *states;		/* files of the pages' states, by range */
	struct kvmfault_memory **memory;	/* NULL: left to the kernel */
	unsigned int memories;
	uint64_t bytes;

	struct kvmfault_fill *fill;
	bool hold;			/* when the set is there, it pauses */
	atomic_bool replayed, over;	/* by the fill's thread */
	atomic_bool settling;		/* the library's lines are not told */
	bool told_replayed, resident;
	int64_t resident_ms;		/* after it came, or 0 */

	struct kvmfault_working_set *recorded;
	struct kvmfault_recording *recording;	/* NULL: not recorded */
	bool again;			/* it was recorded, and is to be */

	pthread_t end;			/* the thread that frees it */
	atomic_bool ended;
};

/* A client whose memory is known becomes a VM: the socket and the ranges are
 * the VM's from then on. uffd is borrowed. On error, which is told, nothing has
 * changed. 0 or -errno. */
int serve_vm_new(struct serve *serve, uint64_t number, int socket,
		 const struct ucred *peer, const char *dialect, int uffd,
		 struct serve_range *ranges, unsigned int count);
/* One whose worker was killed. Takes all that is kept; an error is told. */
void serve_vm_again(struct serve *serve, struct serve_kept *kept);
/* Look at what the threads of all VMs have noted. */
void serve_vm_look(struct serve *serve);
/* Let all of them have what they lack, whatever was asked for. */
void serve_vm_hurry(struct serve *serve);

/* The bytes of all its memories by their pages' states. */
void serve_vm_count(const struct serve_vm *vm,
		    struct kvmfault_memory_counts *bytes);

/* ---- serve-record.c ---- */

/* If VMs are recorded; it ends at the watch's deadline. 0 or -errno. */
int serve_record_begin(struct serve_vm *vm);
/* End a VM's recording, if there is one, and save what all have recorded. */
void serve_record_end(struct serve_vm *vm);
/* Save, and begin anew. */
void serve_record_again(struct serve *serve);

/* ---- serve-metrics.c ---- */

void serve_metrics_ready(struct serve_watch *listener);

#endif
