/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * kvmfault serve: its figures, on a socket of their own. In: one request, "GET
 * /metrics" or "GET /json", with or without HTTP. Out: one answer, and the end.
 * A request is bounded, and there is one deadline for all of it.
 */

#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "serve.h"

#define CLIENTS 16
#define REQUEST 4096
#define DEADLINE_MS 5000
#define PAUSE_MS 1000
#define PREFIX "kvmfault_serve_"

struct metrics_client {
	struct serve_watch watch;	/* the first member */
	struct serve *serve;
	char request[REQUEST + 1];
	size_t length;
	char *answer;
	size_t answer_length, sent;
};

/* ---- the figures ---- */

static const struct {
	const char *name, *type, *what;
} figures[] = {
	{ "memory_bytes", "gauge", "Memory of the VM." },
	{ "resident_bytes", "gauge", "Memory that is there." },
	{ "missing_bytes", "gauge", "Memory that has not come yet." },
	{ "discarded_bytes", "gauge", "Memory that the VM gave up." },
	{ "poisoned_bytes", "gauge", "Memory whose contents are lost." },
	{ "faults_total", "counter", "Messages about pages that were missed." },
	{ "fetched_pages_total", "counter", "Pages out of the image." },
	{ "zero_pages_total", "counter", "Pages that are holes of the image." },
	{ "filled_pages_total", "counter", "Of both, those not waited for." },
	{ "waited_total", "counter", "Faults that waited for another's page." },
	{ "unresolved_total", "counter", "Faults whose page could not come." },
	{ "deferred_total", "counter", "Messages that are tried again later." },
	{ "age_milliseconds", "gauge", "Since the VM came." },
	{ "settled_milliseconds", "gauge",
	  "After how long all memory was there, or 0." },
};
#define FIGURES (sizeof(figures) / sizeof(*figures))

struct metrics_vm {
	const struct serve_vm *vm;
	struct kvmfault_stats stats;
	uint64_t figure[FIGURES];	/* in the table's order */
};

static void collect_vm(const struct serve_vm *vm, struct metrics_vm *of)
{
	struct kvmfault_memory_counts bytes;

	of->vm = vm;
	of->stats.size = sizeof(of->stats);
	kvmfault_vm_stats(vm->vm, &of->stats);
	serve_vm_count(vm, &bytes);
	memcpy(of->figure, (const uint64_t[FIGURES]){
		vm->bytes,
		bytes.present,
		bytes.absent + bytes.claimed,
		bytes.discarded,
		bytes.poisoned,
		of->stats.kind[KVMFAULT_KIND_UFFD],
		of->stats.fetched,
		of->stats.holes,
		of->stats.filled,
		of->stats.waited,
		of->stats.unresolved,
		of->stats.deferred,
		(uint64_t)(serve_now() - vm->came),
		(uint64_t)vm->resident_ms,
	}, sizeof(of->figure));
}

/* Of all VMs; the caller frees it. */
static struct metrics_vm *collect_all(const struct serve *serve, size_t *count)
{
	struct metrics_vm *all;
	struct serve_vm *vm;

	*count = 0;
	all = calloc((size_t)serve->clients + 1, sizeof(*all));
	for (vm = all ? serve->vms : NULL; vm; vm = vm->next)
		collect_vm(vm, &all[(*count)++]);
	return all;
}

/* ---- as Prometheus has them ---- */

static void print_head(FILE *to, const char *name, const char *type,
		       const char *what)
{
	fprintf(to, "# HELP " PREFIX "%s %s\n# TYPE " PREFIX "%s %s\n", name,
		what, name, type);
}

static void print_one(FILE *to, const char *name, const char *type,
		      const char *what, uint64_t value)
{
	print_head(to, name, type, what);
	fprintf(to, PREFIX "%s %" PRIu64 "\n", name, value);
}

/* A bucket has all that took less, so the counts add up. */
static void print_latency(FILE *to, const struct metrics_vm *vm)
{
	static const char name[] = PREFIX "fault_seconds";
	uint64_t sum = 0;
	unsigned int i;

	for (i = 0; i < KVMFAULT_LATENCY_COUNT - 1; i++) {
		sum += vm->stats.latency[i];
		fprintf(to, "%s_bucket{vm=\"%" PRIu64 "\",le=\"%g\"} %" PRIu64
			"\n", name, vm->vm->number, (double)(1U << i) / 1e6,
			sum);
	}
	sum += vm->stats.latency[i];
	fprintf(to, "%s_bucket{vm=\"%" PRIu64 "\",le=\"+Inf\"} %" PRIu64 "\n"
		"%s_count{vm=\"%" PRIu64 "\"} %" PRIu64 "\n", name,
		vm->vm->number, sum, name, vm->vm->number, sum);
}

static void print_prometheus(FILE *to, const struct serve *serve,
			     const struct metrics_vm *vms, size_t count)
{
	size_t i, n;

	print_one(to, "vms", "gauge", "VMs that are served.", count);
	print_one(to, "vms_came_total", "counter", "VMs that came.",
		  serve->came);
	print_one(to, "vms_gone_total", "counter", "VMs that went.",
		  serve->gone);
	print_one(to, "refused_total", "counter",
		  "Clients that were not served.", serve->refused);
	print_one(to, "image_bytes", "gauge", "The image's length.",
		  serve->image.length);
	for (i = 0; i < FIGURES; i++) {
		print_head(to, figures[i].name, figures[i].type,
			   figures[i].what);
		for (n = 0; n < count; n++)
			fprintf(to, PREFIX "%s{vm=\"%" PRIu64 "\",pid=\"%d\"} %"
				PRIu64 "\n", figures[i].name,
				vms[n].vm->number, (int)vms[n].vm->pid,
				vms[n].figure[i]);
	}
	print_head(to, "fault_seconds", "histogram",
		   "Faults that were resolved, by how long that took.");
	for (n = 0; n < count; n++)
		print_latency(to, &vms[n]);
}

/* ---- as JSON ---- */

static struct json_object *make_vm_json(const struct metrics_vm *vm)
{
	struct json_object *object = json_object_new_object();
	struct json_object *latency = json_object_new_array();
	size_t i;

	serve_add_number(object, "vm", vm->vm->number);
	serve_add_number(object, "pid", (uint64_t)vm->vm->pid);
	serve_add_text(object, "dialect", vm->vm->dialect);
	for (i = 0; i < FIGURES; i++)
		serve_add_number(object, figures[i].name, vm->figure[i]);
	for (i = 0; i < KVMFAULT_LATENCY_COUNT; i++)
		json_object_array_add(latency, json_object_new_uint64(
			vm->stats.latency[i]));
	json_object_object_add(object, "latency_log2_us", latency);
	return object;
}

static void print_metrics_json(FILE *to, const struct serve *serve,
			       const struct metrics_vm *vms, size_t count)
{
	struct json_object *object = json_object_new_object();
	struct json_object *list = json_object_new_array();
	size_t n;

	serve_add_number(object, "vms_came_total", serve->came);
	serve_add_number(object, "vms_gone_total", serve->gone);
	serve_add_number(object, "refused_total", serve->refused);
	serve_add_number(object, "image_bytes", serve->image.length);
	for (n = 0; n < count; n++)
		json_object_array_add(list, make_vm_json(&vms[n]));
	json_object_object_add(object, "vms", list);
	fprintf(to, "%s\n", json_object_to_json_string_ext(object,
						JSON_C_TO_STRING_PRETTY));
	json_object_put(object);
}

/* ---- a request and its answer ---- */

static void end_metrics(struct metrics_client *client)
{
	client->serve->metrics_clients--;
	serve_watch_remove(&client->watch);
	close(client->watch.fd);
	free(client->answer);
	free(client);
}

static void end_late(struct serve_watch *watch)
{
	end_metrics((struct metrics_client *)watch);
}

static void write_answer(struct serve_watch *watch)
{
	struct metrics_client *client = (struct metrics_client *)watch;
	ssize_t n = send(watch->fd, client->answer + client->sent,
			 client->answer_length - client->sent, MSG_NOSIGNAL);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0)
		client->sent += (size_t)n;
	if (n <= 0 || client->sent == client->answer_length)
		end_metrics(client);
}

typedef void print_function(FILE *to, const struct serve *serve,
			    const struct metrics_vm *vms, size_t count);

/* The caller frees what is returned. */
static char *make_body(const struct serve *serve, print_function *print,
		       size_t *length)
{
	size_t count;
	struct metrics_vm *vms = collect_all(serve, &count);
	char *body = NULL;
	FILE *to = vms ? open_memstream(&body, length) : NULL;

	if (to) {
		print(to, serve, vms, count);
		if (fclose(to)) {
			free(body);
			body = NULL;
		}
	}
	free(vms);
	return body;
}

static char *add_http(const char *status, const char *type, const char *body,
		      size_t *length)
{
	char *answer;
	int n = asprintf(&answer, "HTTP/1.1 %s\r\nContent-Type: %s\r\n"
			 "Content-Length: %zu\r\nConnection: close\r\n\r\n%s",
			 status, type, *length, body);

	*length = n < 0 ? 0 : (size_t)n;
	return n < 0 ? NULL : answer;
}

/* "GET /metrics", and if it is HTTP more on this line and behind it. */
static bool asks_for(const char *request, const char *path)
{
	size_t length = strlen(path);

	return !strncmp(request, "GET ", 4) &&
	       !strncmp(request + 4, path, length) &&
	       strchr(" \r\n", request[4 + length]);
}

static bool is_http(const char *request)
{
	const char *version = strstr(request, " HTTP/1.");

	return version && version < strchr(request, '\n');
}

static void make_answer(struct metrics_client *client)
{
	const char *request = client->request, *status = "200 OK";
	const char *type = "application/json";
	print_function *print = NULL;
	char *body;

	if (asks_for(request, "/metrics")) {
		type = "text/plain; version=0.0.4";
		print = print_prometheus;
	} else if (asks_for(request, "/") || asks_for(request, "/json")) {
		print = print_metrics_json;
	} else {
		type = "text/plain";
		status = "404 Not Found";
	}
	client->answer_length = 0;
	body = print ? make_body(client->serve, print, &client->answer_length) :
		       strdup("ask for /metrics or /json\n");
	if (body && !print)
		client->answer_length = strlen(body);
	client->answer = body;
	if (body && is_http(request)) {
		client->answer = add_http(status, type, body,
					  &client->answer_length);
		free(body);
	}
}

/* Its head, or its only line, is there. */
static bool is_whole(const char *request)
{
	if (!strchr(request, '\n'))
		return false;
	return !is_http(request) || strstr(request, "\r\n\r\n") ||
	       strstr(request, "\n\n");
}

static void read_request(struct serve_watch *watch)
{
	struct metrics_client *client = (struct metrics_client *)watch;
	ssize_t n = recv(watch->fd, client->request + client->length,
			 REQUEST - client->length, 0);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		end_metrics(client);
		return;
	}
	client->length += (size_t)n;
	client->request[client->length] = 0;
	if (!is_whole(client->request)) {
		if (client->length == REQUEST)
			end_metrics(client);
		return;
	}
	make_answer(client);
	if (!client->answer) {
		end_metrics(client);
		return;
	}
	watch->ready = write_answer;
	serve_watch_events(watch, EPOLLOUT);
}

/* ---- who asks ---- */

static void accept_again(struct serve_watch *listener)
{
	serve_watch_events(listener, EPOLLIN);
}

static void pause_metrics(struct serve_watch *listener)
{
	serve_watch_events(listener, 0);
	listener->late = accept_again;
	listener->deadline = serve_now() + PAUSE_MS;
}

static int new_metrics_client(struct serve *serve, int fd)
{
	struct metrics_client *client = calloc(1, sizeof(*client));

	if (!client)
		return -ENOMEM;
	client->serve = serve;
	client->watch.fd = fd;
	client->watch.ready = read_request;
	client->watch.late = end_late;
	client->watch.deadline = serve_now() + DEADLINE_MS;
	if (serve_watch_add(serve, &client->watch, EPOLLIN)) {
		free(client);
		return -ENOMEM;
	}
	serve->metrics_clients++;
	return 0;
}

void serve_metrics_ready(struct serve_watch *listener)
{
	struct serve *serve = listener->serve;
	struct ucred peer;
	int fd = serve_socket_accept(listener->fd, &peer);

	if (fd == -EPERM || fd == -EAGAIN || fd == -EINTR ||
	    fd == -ECONNABORTED)
		return;
	if (fd >= 0 && serve->metrics_clients < CLIENTS &&
	    !new_metrics_client(serve, fd))
		return;
	if (fd >= 0)
		close(fd);
	pause_metrics(listener);
}
