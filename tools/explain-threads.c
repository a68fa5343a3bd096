/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* kvmfault explain: the threads of a process. In: /proc/PID/task. Out: for each
 * its name, state, where in the kernel it sleeps, and whether it is a vCPU: by
 * KVM's debugfs where it can be read, else by the names that VMMs give. */

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "explain.h"

static const char right_to_stacks[] = "CAP_SYS_ADMIN";

/* ---- which are vCPUs ---- */

/* QEMU, Firecracker, Cloud Hypervisor and libkrun, crosvm, kvmtool. */
static bool is_vcpu_name(const char *name)
{
	unsigned int n;
	char rest[5];

	return sscanf(name, "CPU %u/%4s", &n, rest) == 2 ||
	       sscanf(name, "fc_vcpu %u", &n) == 1 ||
	       sscanf(name, "vcpu%u", &n) == 1 ||
	       sscanf(name, "crosvm_vcpu%u", &n) == 1 ||
	       sscanf(name, "kvm-vcpu-%u", &n) == 1;
}

/* One that is in KVM_RUN now. */
static bool runs_vcpu(const struct explain_thread *thread)
{
	return thread->stack && strstr(thread->stack, "kvm_vcpu_ioctl");
}

static void mark_vcpu(struct explain_look *look, pid_t tid)
{
	size_t i;

	for (i = 0; i < look->thread_count; i++)
		look->threads[i].vcpu |= look->threads[i].tid == tid;
}

/* Of one VM's directory: vcpuN/pid is the thread that ran it last. */
static void read_vm_directory(struct explain_look *look, const char *vm)
{
	char path[320];
	struct dirent *entry;
	uint64_t tid;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/kernel/debug/kvm/%.32s", vm);
	dir = opendir(path);
	while (dir && (entry = readdir(dir))) {
		snprintf(path, sizeof(path),
			 "/sys/kernel/debug/kvm/%.32s/%.64s/pid", vm,
			 entry->d_name);
		if (!strncmp(entry->d_name, "vcpu", 4) &&
		    read_number(look, path, &tid))
			mark_vcpu(look, tid);
	}
	if (dir)
		closedir(dir);
}

/* Its directories are named PID-FD. */
static void mark_by_debugfs(struct explain_look *look)
{
	static const char path[] = "/sys/kernel/debug/kvm";
	DIR *dir = opendir(path);
	struct dirent *entry;

	if (!dir && errno == EACCES)
		note_denied(look, path, errno, "root, as debugfs is mounted");
	while (dir && (entry = readdir(dir)))
		if (atoi(entry->d_name) == look->pid)
			read_vm_directory(look, entry->d_name);
	if (dir)
		closedir(dir);
}

/* ---- what they do ---- */

bool sleeps_in(const struct explain_thread *thread, const char *function)
{
	return !strcmp(thread->wchan, function) ||
	       (thread->stack && strstr(thread->stack, function));
}

static char *read_thread_file(struct explain_look *look, pid_t tid,
			      const char *name, const char *right)
{
	char path[96], all[96];
	char *text;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", look->pid, tid,
		 name);
	text = read_text(look, path, NULL);
	if (!text && right && (errno == EACCES || errno == EPERM)) {
		snprintf(all, sizeof(all), "/proc/%d/task/*/%s", look->pid,
			 name);
		note_denied(look, all, errno, right);
	}
	return text;
}

static bool find_state(const char *text, char *state)
{
	const char *line = strstr(text, "\nState:");

	if (line)
		line += strlen("\nState:") + strspn(line + 7, " \t");
	if (line && *line)
		*state = *line;
	return line;
}

/* False: the thread has ended. */
static bool read_status(struct explain_look *look, struct explain_thread *t)
{
	char *text = read_thread_file(look, t->tid, "status", NULL);
	uint64_t blocked = 0, switches = 0, more = 0;

	if (!text)
		return false;
	copy_word(t->name, sizeof(t->name),
		  !strncmp(text, "Name:\t", 6) ? text + 6 : NULL);
	find_state(text, &t->state);
	find_number(text, "SigBlk:", 16, &blocked);
	find_number(text, "voluntary_ctxt_switches:", 10, &switches);
	find_number(text, "nonvoluntary_ctxt_switches:", 10, &more);
	t->sigbus_blocked = blocked >> (7 - 1) & 1;
	t->switches = switches + more;
	free(text);
	return true;
}

static void read_thread(struct explain_look *look, pid_t tid)
{
	struct explain_thread t = { .tid = tid, .still = true };
	char *wchan;

	if (!read_status(look, &t))
		return;
	wchan = read_thread_file(look, tid, "wchan", right_to_inspect);
	if (wchan && strcmp(wchan, "0"))
		copy_word(t.wchan, sizeof(t.wchan), wchan);
	free(wchan);
	t.stack = read_thread_file(look, tid, "stack", right_to_stacks);
	if (t.stack && !*t.stack) {
		free(t.stack);
		t.stack = NULL;
	}
	t.vcpu = is_vcpu_name(t.name) || runs_vcpu(&t);
	look->threads = grow_list(look->threads, look->thread_count,
				  sizeof(*look->threads));
	look->threads[look->thread_count++] = t;
}

void read_threads(struct explain_look *look)
{
	struct dirent *entry;
	char path[64];
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", look->pid);
	tasks = opendir(path);
	look->gone |= !tasks;
	while (tasks && (entry = readdir(tasks)))
		if (atoi(entry->d_name) > 0)
			read_thread(look, atoi(entry->d_name));
	if (tasks)
		closedir(tasks);
	mark_by_debugfs(look);
}

void compare_threads(struct explain_look *look)
{
	size_t i;

	for (i = 0; i < look->thread_count; i++) {
		struct explain_thread *then = &look->threads[i];
		struct explain_thread now = { .tid = then->tid };

		then->still &= read_status(look, &now) &&
			      now.switches == then->switches &&
			      now.state == then->state &&
			      strchr("DS", now.state);
	}
}

/* ---- the process ---- */

static void read_program(struct explain_look *look)
{
	static const struct { const char *begin, *vmm; } known[] = {
		{ "qemu", "QEMU" }, { "firecracker", "Firecracker" },
		{ "cloud-hyperviso", "Cloud Hypervisor" },
		{ "crosvm", "crosvm" }, { "lkvm", "kvmtool" },
	};
	char path[64], program[4096];
	const char *base;
	ssize_t n;
	size_t i;

	snprintf(path, sizeof(path), "/proc/%d/exe", look->pid);
	n = readlink(path, program, sizeof(program) - 1);
	if (n < 0)
		note_denied(look, path, errno, right_to_inspect);
	program[n > 0 ? n : 0] = '\0';
	base = strrchr(program, '/');
	copy_word(look->program, sizeof(look->program),
		  base ? base + 1 : look->name);
	for (i = 0; i < sizeof(known) / sizeof(*known); i++)
		if (!strncmp(look->program, known[i].begin,
			     strlen(known[i].begin)))
			look->vmm = known[i].vmm;
}

void read_process(struct explain_look *look)
{
	char path[64];
	char *text, *own;
	uint64_t capabilities = 0;

	own = read_text(look, "/proc/self/status", NULL);
	if (own && find_number(own, "CapEff:", 16, &capabilities))
		look->admin = capabilities >> 21 & 1;
	free(own);
	snprintf(path, sizeof(path), "/proc/%d/comm", look->pid);
	text = read_text(look, path, NULL);
	look->gone = !text;
	copy_word(look->name, sizeof(look->name), text);
	free(text);
	if (!look->gone)
		read_program(look);
}
