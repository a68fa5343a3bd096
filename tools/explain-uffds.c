/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* kvmfault explain: userfaultfds. In: the descriptors of the process and, where
 * it has a userfaultfd, of all others. Out: each userfaultfd once, by its
 * inode, with what waits at it and each descriptor that is open. /proc does not
 * say which process's memory another's userfaultfd is about: only those count
 * that the process holds too, or, where it holds none, those of others as
 * candidates. */

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "explain.h"

enum { CAPABILITY_PTRACE = 19 };

/* ---- whether a Unix socket's other end is there ---- */

static bool ask_peer(int fd, uint32_t inode, uint32_t *peer)
{
	struct {
		struct nlmsghdr header;
		struct unix_diag_req ask;
	} out = {
		.header = { .nlmsg_len = sizeof(out),
			.nlmsg_type = SOCK_DIAG_BY_FAMILY,
			.nlmsg_flags = NLM_F_REQUEST },
		.ask = { .sdiag_family = AF_UNIX, .udiag_states = -1,
			.udiag_ino = inode, .udiag_show = UDIAG_SHOW_PEER,
			.udiag_cookie = { -1, -1 } },
	};
	struct answer {
		struct nlmsghdr header;
		struct unix_diag_msg told;
		char attributes[512];
	} in;
	ssize_t n;

	if (send(fd, &out, sizeof(out), 0) != sizeof(out))
		return false;
	n = recv(fd, &in, sizeof(in), 0);
	if (n < (ssize_t)offsetof(struct answer, attributes) + 8 ||
	    in.header.nlmsg_type != SOCK_DIAG_BY_FAMILY ||
	    ((struct nlattr *)in.attributes)->nla_type != UNIX_DIAG_PEER)
		return false;
	memcpy(peer, in.attributes + sizeof(struct nlattr), sizeof(*peer));
	return true;
}

static void check_peer(struct explain_look *look, uint32_t inode)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC,
			NETLINK_SOCK_DIAG);
	uint32_t peer;

	if (fd < 0)
		return;
	/* A closed socket has no inode any more. */
	if (ask_peer(fd, inode, &peer) && !peer)
		look->peer_gone = true;
	close(fd);
}

/* ---- the descriptors ---- */

static struct explain_uffd *enter_uffd(struct explain_look *look,
				       uint64_t inode)
{
	size_t i;

	for (i = 0; i < look->uffd_count; i++)
		if (look->uffds[i].inode == inode)
			return &look->uffds[i];
	look->uffds = grow_list(look->uffds, look->uffd_count,
				sizeof(*look->uffds));
	look->uffds[look->uffd_count].inode = inode;
	look->uffds[look->uffd_count].still = true;
	return &look->uffds[look->uffd_count++];
}

bool parse_waiters(const char *text, struct explain_uffd *uffd)
{
	const char *line = strstr(text, "API:\t");
	unsigned int api;

	if (line && sscanf(line, "API:\t%x:%" SCNx64, &api,
			   &uffd->features) != 2)
		line = NULL;
	uffd->known = line &&
		      find_number(text, "pending:", 10, &uffd->pending) &&
		      find_number(text, "total:", 10, &uffd->total);
	return uffd->known;
}

static bool read_waiters(struct explain_look *look, pid_t pid, int fd,
			 struct explain_uffd *uffd)
{
	char path[64];
	char *text;
	bool known;

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", pid, fd);
	text = read_text(look, path, right_to_inspect);
	known = text && parse_waiters(text, uffd);
	free(text);
	return known;
}

static char read_state(struct explain_look *look, pid_t pid, char *name,
		       size_t size)
{
	char path[64], state = '?';
	const char *line;
	char *text;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	text = read_text(look, path, NULL);
	line = text ? strstr(text, "\nState:\t") : NULL;
	if (line && line[8])
		state = line[8];
	copy_word(name, size, text && !strncmp(text, "Name:\t", 6) ?
		  text + 6 : NULL);
	free(text);
	return state;
}

static void enter_holder(struct explain_look *look, pid_t pid, int fd,
			 uint64_t inode)
{
	struct explain_uffd *uffd = enter_uffd(look, inode);
	struct explain_holder *holder;

	uffd->holders = grow_list(uffd->holders, uffd->holder_count,
				  sizeof(*uffd->holders));
	holder = &uffd->holders[uffd->holder_count++];
	holder->pid = pid;
	holder->fd = fd;
	holder->state = read_state(look, pid, holder->name,
				   sizeof(holder->name));
	uffd->ours |= pid == look->pid;
	if (!uffd->known)
		read_waiters(look, pid, fd, uffd);
}

static void take_descriptor(struct explain_look *look, int dir, pid_t pid,
			    const char *number)
{
	char link[64];
	ssize_t n = readlinkat(dir, number, link, sizeof(link) - 1);
	struct stat st;
	uint64_t inode;

	if (n <= 0)
		return;
	link[n] = '\0';
	if (!strcmp(link, "anon_inode:[userfaultfd]") &&
	    !fstatat(dir, number, &st, 0))
		enter_holder(look, pid, atoi(number), st.st_ino);
	if (pid != look->pid)
		return;
	look->vms += !strcmp(link, "anon_inode:kvm-vm");
	look->vcpus += !strncmp(link, "anon_inode:kvm-vcpu", 19);
	if (find_number(link, "socket:[", 10, &inode))
		check_peer(look, inode);
}

static bool walk_descriptors(struct explain_look *look, pid_t pid)
{
	struct dirent *entry;
	char path[64];
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	if (!dir) {
		if (errno != EACCES && errno != EPERM)
			return false;
		note_denied(look, pid == look->pid ? path : "/proc/*/fd",
			    errno, pid == look->pid ? right_to_inspect :
			    "CAP_SYS_PTRACE, to see who else holds a userfaultfd");
		return false;
	}
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			take_descriptor(look, dirfd(dir), pid, entry->d_name);
	closedir(dir);
	return true;
}

void read_descriptors(struct explain_look *look)
{
	look->descriptors_known = walk_descriptors(look, look->pid);
}

static bool has_registered(const struct explain_look *look)
{
	size_t i;

	for (i = 0; i < look->mapping_count; i++)
		if (is_registered(&look->mappings[i]))
			return true;
	return false;
}

/* Those of others that the process has not are of other VMs. */
static void drop_foreign(struct explain_look *look)
{
	size_t i, kept = 0;

	for (i = 0; i < look->uffd_count; i++)
		if (look->uffds[i].ours)
			look->uffds[kept++] = look->uffds[i];
		else
			free(look->uffds[i].holders);
	look->uffd_count = kept;
}

void find_holders(struct explain_look *look)
{
	struct dirent *entry;
	bool own = look->uffd_count;
	DIR *proc;

	if (!own && !has_registered(look))
		return;
	proc = opendir("/proc");
	while (proc && (entry = readdir(proc))) {
		pid_t pid = atoi(entry->d_name);

		if (pid > 0 && pid != look->pid && pid != getpid())
			walk_descriptors(look, pid);
	}
	if (proc)
		closedir(proc);
	if (own)
		drop_foreign(look);
}

void compare_uffds(struct explain_look *look)
{
	size_t i;

	for (i = 0; i < look->uffd_count; i++) {
		struct explain_uffd *then = &look->uffds[i], now = { 0 };

		then->still &= then->known && then->holder_count &&
			      read_waiters(look, then->holders[0].pid,
					   then->holders[0].fd, &now) &&
			      now.pending == then->pending &&
			      now.total == then->total;
	}
}

/* ---- whether the process may make one ---- */

static void add_gate(struct explain_look *look, const char *gate)
{
	size_t length = strlen(look->gates);

	snprintf(look->gates + length, sizeof(look->gates) - length, "%s%s",
		 length ? "; " : "", gate);
}

/* In the process's own root, by its own user and first group. */
static bool opens_device(struct explain_look *look, const char *status)
{
	uint64_t uid = 0, gid = 0;
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/%d/root/dev/userfaultfd",
		 look->pid);
	if (stat(path, &st))
		return false;
	find_number(status, "Uid:", 10, &uid);
	find_number(status, "Gid:", 10, &gid);
	return !uid || (uid == st.st_uid && st.st_mode & 0400) ||
	       (gid == st.st_gid && st.st_mode & 0040) || st.st_mode & 0004;
}

void read_uffd_rights(struct explain_look *look)
{
	uint64_t anyone = 0, capabilities = 0, seccomp = 0;
	char path[64];
	char *status;
	bool filtered, device;

	snprintf(path, sizeof(path), "/proc/%d/status", look->pid);
	status = read_text(look, path, right_to_inspect);
	if (!status)
		return;
	read_number(look, "/proc/sys/vm/unprivileged_userfaultfd", &anyone);
	find_number(status, "CapEff:", 16, &capabilities);
	find_number(status, "Seccomp:", 10, &seccomp);
	device = opens_device(look, status);
	free(status);
	filtered = seccomp != 0;
	look->may_uffd_known = true;
	look->may_uffd = anyone || device ||
			 capabilities >> CAPABILITY_PTRACE & 1;
	if (!anyone)
		add_gate(look, "vm.unprivileged_userfaultfd is 0");
	if (!(capabilities >> CAPABILITY_PTRACE & 1))
		add_gate(look, "the process lacks CAP_SYS_PTRACE");
	if (!device)
		add_gate(look, "it cannot open /dev/userfaultfd");
	if (access("/proc/sys/vm/unprivileged_userfaultfd", F_OK))
		add_gate(look, "this kernel may lack CONFIG_USERFAULTFD");
	if (filtered)
		add_gate(look, "seccomp filters its calls");
}
