/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* kvmfault explain: prints a verdict and what it rests on. In: the look and the
 * verdict. Out: text for people, or one JSON object with the same facts. */

#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>

#include "explain.h"

/* ---- for people ---- */

static void print_mapping(const struct explain_look *look)
{
	const struct explain_mapping *m = look->mapping;
	const struct explain_backing *b = &look->backing;
	const struct explain_page *page = &look->page;

	printf("mapping   %#" PRIx64 "-%#" PRIx64 " %c%c%c%c %s%s%s\n",
	       m->start, m->end, m->readable ? 'r' : '-',
	       m->writable ? 'w' : '-', m->executable ? 'x' : '-',
	       m->shared ? 's' : 'p', *m->name ? m->name : "anonymous",
	       *m->flags ? ", flags" : "", m->flags);
	if (b->known)
		printf("file      %" PRIu64 " bytes, %" PRIu64 " of them there\n",
		       b->size, b->blocks * 512);
	if (page->known)
		printf("page      %s%s%s\n", page->present ? "present" :
		       page->guard ? "guard" :
		       page->swapped ? "an entry of swap" : "absent",
		       page->uffd_protected ? ", write-protected" : "",
		       b->data_known && b->data ? ", the file has it" : "");
}

static void print_slots(const struct explain_look *look)
{
	size_t i;

	for (i = 0; i < look->slot_count; i++) {
		const struct explain_slot *s = &look->slots[i];

		fputs("slot      ", stdout);
		if (s->gpa != NO_ADDRESS)
			printf("gpa %#" PRIx64 " ", s->gpa);
		printf("hva %#" PRIx64 ", %" PRIu64 " bytes, by %s\n", s->hva,
		       s->length, s->from);
	}
}

/* Those that matter: vCPUs, and what sleeps for good. */
static void print_threads(const struct explain_look *look)
{
	size_t i;

	for (i = 0; i < look->thread_count; i++) {
		const struct explain_thread *t = &look->threads[i];

		if (!t->vcpu && t->state != 'D' &&
		    !sleeps_in(t, "handle_userfault"))
			continue;
		printf("thread    %d %s%s, state %c%s%s%s%s\n", t->tid, t->name,
		       t->vcpu ? " (a vCPU)" : "", t->state,
		       *t->wchan ? ", in " : "", t->wchan,
		       t->still ? ", does not move" : "",
		       t->sigbus_blocked ? ", SIGBUS blocked" : "");
	}
}

static void print_uffds(const struct explain_look *look)
{
	size_t i, j;

	for (i = 0; i < look->uffd_count; i++) {
		const struct explain_uffd *u = &look->uffds[i];

		printf("uffd      ");
		if (u->known)
			printf("%" PRIu64 " not read, %" PRIu64 " in all, "
			       "features %#" PRIx64, u->pending, u->total,
			       u->features);
		for (j = 0; j < u->holder_count; j++)
			printf("%s %d (%s) as %d", j ? "," : "; held by",
			       u->holders[j].pid, u->holders[j].name,
			       u->holders[j].fd);
		puts(u->ours ? "" : "; it may be of another VM");
	}
}

void print_explanation(const struct explain_look *look,
		       const struct explain_verdict *verdict)
{
	size_t i;

	printf("process   %d %s%s%s, %u VMs, %u vCPUs by descriptors\n",
	       look->pid, look->name, look->vmm ? ", " : "",
	       look->vmm ? look->vmm : "", look->vms, look->vcpus);
	printf("cause     %s: %s\n", cause_name(verdict->cause),
	       verdict->sentence);
	if (verdict->hva != NO_ADDRESS)
		printf("address   hva %#" PRIx64 "\n", verdict->hva);
	printf("do        %s\n", verdict->advice);
	if (look->mapping)
		print_mapping(look);
	print_slots(look);
	print_threads(look);
	print_uffds(look);
	if (look->may_uffd_known && !look->may_uffd)
		printf("note      the process may not make a userfaultfd that "
		       "serves KVM: %s\n", look->gates);
	if (look->cgroup.known && look->cgroup.oom_kills)
		printf("note      in %s the kernel has killed %" PRIu64
		       " times for want of memory\n", look->cgroup.path,
		       look->cgroup.oom_kills);
	for (i = 0; i < look->denied_count; i++)
		printf("not read  %s: %s; it takes: %s\n",
		       look->denied[i].what, strerror(look->denied[i].error),
		       look->denied[i].right);
}

/* ---- for programs ---- */

static void put_text(struct json_object *to, const char *name, const char *text)
{
	json_object_object_add(to, name, text ? json_object_new_string(text) :
			       NULL);
}

static void put_count(struct json_object *to, const char *name, uint64_t number)
{
	json_object_object_add(to, name, json_object_new_uint64(number));
}

/* null: there is none */
static void put_address(struct json_object *to, const char *name,
			uint64_t address)
{
	json_object_object_add(to, name, address == NO_ADDRESS ? NULL :
			       json_object_new_uint64(address));
}

static void put_flag(struct json_object *to, const char *name, bool flag)
{
	json_object_object_add(to, name, json_object_new_boolean(flag));
}

static struct json_object *mapping_json(const struct explain_mapping *m)
{
	struct json_object *object = json_object_new_object();

	put_count(object, "start", m->start);
	put_count(object, "end", m->end);
	put_count(object, "offset", m->offset);
	put_flag(object, "readable", m->readable);
	put_flag(object, "writable", m->writable);
	put_flag(object, "shared", m->shared);
	put_count(object, "page_size", m->page_size);
	put_text(object, "flags", m->flags);
	put_text(object, "name", m->name);
	return object;
}

static struct json_object *page_json(const struct explain_page *page)
{
	struct json_object *object = json_object_new_object();

	put_flag(object, "present", page->present);
	put_flag(object, "swap_entry", page->swapped);
	put_flag(object, "guard", page->guard);
	put_flag(object, "write_protected", page->uffd_protected);
	return object;
}

static struct json_object *backing_json(const struct explain_backing *b)
{
	struct json_object *object = json_object_new_object();

	put_count(object, "bytes", b->size);
	put_count(object, "allocated", b->blocks * 512);
	put_count(object, "file_system", b->file_system);
	put_count(object, "room", b->room);
	put_count(object, "capacity", b->capacity);
	json_object_object_add(object, "has_page", b->data_known ?
			       json_object_new_boolean(b->data) : NULL);
	return object;
}

static struct json_object *slots_json(const struct explain_look *look)
{
	struct json_object *array = json_object_new_array();
	size_t i;

	for (i = 0; i < look->slot_count; i++) {
		struct json_object *slot = json_object_new_object();

		put_address(slot, "gpa", look->slots[i].gpa);
		put_count(slot, "hva", look->slots[i].hva);
		put_count(slot, "length", look->slots[i].length);
		put_text(slot, "from", look->slots[i].from);
		json_object_array_add(array, slot);
	}
	return array;
}

static struct json_object *threads_json(const struct explain_look *look)
{
	struct json_object *array = json_object_new_array();
	size_t i;

	for (i = 0; i < look->thread_count; i++) {
		const struct explain_thread *t = &look->threads[i];
		struct json_object *thread = json_object_new_object();

		put_count(thread, "tid", t->tid);
		put_text(thread, "name", t->name);
		put_text(thread, "state", (char [2]){ t->state });
		put_text(thread, "wchan", *t->wchan ? t->wchan : NULL);
		put_text(thread, "stack", t->stack);
		put_flag(thread, "vcpu", t->vcpu);
		put_flag(thread, "still", t->still);
		put_flag(thread, "sigbus_blocked", t->sigbus_blocked);
		json_object_array_add(array, thread);
	}
	return array;
}

static struct json_object *holders_json(const struct explain_uffd *uffd)
{
	struct json_object *array = json_object_new_array();
	size_t i;

	for (i = 0; i < uffd->holder_count; i++) {
		const struct explain_holder *h = &uffd->holders[i];
		struct json_object *holder = json_object_new_object();

		put_count(holder, "pid", h->pid);
		put_count(holder, "fd", h->fd);
		put_text(holder, "name", h->name);
		put_text(holder, "state", (char [2]){ h->state });
		json_object_array_add(array, holder);
	}
	return array;
}

static struct json_object *uffds_json(const struct explain_look *look)
{
	struct json_object *array = json_object_new_array();
	size_t i;

	for (i = 0; i < look->uffd_count; i++) {
		const struct explain_uffd *u = &look->uffds[i];
		struct json_object *uffd = json_object_new_object();

		if (u->known) {
			put_count(uffd, "pending", u->pending);
			put_count(uffd, "total", u->total);
			put_count(uffd, "features", u->features);
		}
		put_flag(uffd, "own", u->ours);
		put_flag(uffd, "still", u->still);
		json_object_object_add(uffd, "holders", holders_json(u));
		json_object_array_add(array, uffd);
	}
	return array;
}

static struct json_object *
cgroup_json(const struct explain_memory_cgroup *group)
{
	struct json_object *object = json_object_new_object();

	put_text(object, "path", group->path);
	put_address(object, "limit", group->limit);
	put_count(object, "usage", group->usage);
	put_count(object, "reclaimable", group->reclaimable);
	put_count(object, "oom_kills", group->oom_kills);
	put_flag(object, "waits", group->waits);
	return object;
}

static struct json_object *denied_json(const struct explain_look *look)
{
	struct json_object *array = json_object_new_array();
	size_t i;

	for (i = 0; i < look->denied_count; i++) {
		struct json_object *denied = json_object_new_object();

		put_text(denied, "what", look->denied[i].what);
		put_text(denied, "error", strerrorname_np(look->denied[i].error));
		put_text(denied, "right", look->denied[i].right);
		json_object_array_add(array, denied);
	}
	return array;
}

static void add_address_facts(struct json_object *object,
			      const struct explain_look *look)
{
	if (!look->mapping)
		return;
	json_object_object_add(object, "mapping", mapping_json(look->mapping));
	if (look->page.known)
		json_object_object_add(object, "page", page_json(&look->page));
	if (look->backing.known)
		json_object_object_add(object, "file",
				       backing_json(&look->backing));
}

static void add_right(struct json_object *object,
		      const struct explain_look *look)
{
	struct json_object *right = json_object_new_object();

	put_flag(right, "may", look->may_uffd);
	put_text(right, "closed", look->gates);
	json_object_object_add(object, "userfaultfd_right", right);
}

struct json_object *explanation_json(const struct explain_look *look,
				     const struct explain_verdict *verdict)
{
	struct json_object *object = json_object_new_object();

	put_count(object, "pid", look->pid);
	put_text(object, "name", look->name);
	put_text(object, "vmm", look->vmm);
	put_text(object, "cause", cause_name(verdict->cause));
	put_text(object, "sentence", verdict->sentence);
	put_text(object, "advice", verdict->advice);
	put_address(object, "hva", verdict->hva);
	put_address(object, "gpa", look->gpa != NO_ADDRESS ? look->gpa :
		    verdict->hva == NO_ADDRESS ? NO_ADDRESS :
		    slot_gpa(look, verdict->hva));
	put_flag(object, "write", look->write);
	add_address_facts(object, look);
	put_count(object, "vms", look->vms);
	put_count(object, "vcpus", look->vcpus);
	json_object_object_add(object, "slots", slots_json(look));
	json_object_object_add(object, "threads", threads_json(look));
	json_object_object_add(object, "userfaultfds", uffds_json(look));
	if (look->cgroup.known)
		json_object_object_add(object, "memory_cgroup",
				       cgroup_json(&look->cgroup));
	if (look->may_uffd_known)
		add_right(object, look);
	json_object_object_add(object, "denied", denied_json(look));
	return object;
}
