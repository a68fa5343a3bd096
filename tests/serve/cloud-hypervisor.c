/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * A program that does what Cloud Hypervisor does as the receiver of a migration
 * with memory_mode=postcopy. In: a socket to listen on, and the snapshot that
 * has to come over it. Out: real vCPUs have read their words right while their
 * memory came, and in the end each byte is compared with the snapshot's files.
 *
 * usage: cloud-hypervisor SOCKET SNAPSHOT [--vcpus N] [--touches N] [--wakes]
 *	[--no-prefault] [--first N] [--wrong N] [--after N] [--rejects COMMAND]
 *	[--paused]
 * If the server says "error", as it has to where something is --wrong, or is
 * gone, a vCPU may end since its memory is gone. It may not read other bytes.
 */

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <json-c/json.h>

#include "cloud-hypervisor.h"
#include "machine.h"
#include "../need.h"

static const char *snapshot;
static unsigned int rejects;		/* the command that it says no to */
static unsigned int touches = 500;	/* of each vCPU */

/* Where a vCPU finds the pages that it touches next: beside its RAM. They are
 * few, so that a wrong word is found at once. */
#define TABLES (2ULL << 30)
#define AT_ONCE 4
static uint64_t tables[MOST_VCPUS][512] __attribute__((aligned(4096)));

/* ---- the wire ---- */

bool receive_or_end(int fd, void *bytes, uint64_t length)
{
	struct pollfd waits = { .fd = fd, .events = POLLIN };
	uint64_t done = 0;

	while (done < length) {
		ssize_t n;

		if (poll(&waits, 1, WAIT_MS) != 1)
			errx(1, "nothing came in time");
		n = recv(fd, (char *)bytes + done, length - done, 0);
		if (!n || (n < 0 && errno == ECONNRESET))
			return false;
		if (n < 0)
			err(1, "recv");
		done += (uint64_t)n;
	}
	return true;
}

void receive_exactly(int fd, void *bytes, uint64_t length)
{
	if (!receive_or_end(fd, bytes, length))
		errx(TOO_EARLY, "the end came too early");
}

bool send_or_end(int fd, const void *bytes, uint64_t length)
{
	uint64_t done = 0;

	while (done < length) {
		ssize_t n = send(fd, (const char *)bytes + done, length - done,
				 MSG_NOSIGNAL);

		if (n < 0 && (errno == EPIPE || errno == ECONNRESET))
			return false;
		if (n < 0)
			err(1, "send");
		done += (uint64_t)n;
	}
	return true;
}

void send_exactly(int fd, const void *bytes, uint64_t length)
{
	if (!send_or_end(fd, bytes, length))
		errx(TOO_EARLY, "the end came too early");
}

static void answer_command(int fd, uint16_t status)
{
	const struct response response = { status, { 0 }, 0 };

	send_exactly(fd, &response, sizeof(response));
}

static struct request receive_command(int fd)
{
	struct request request;

	receive_exactly(fd, &request, sizeof(request));
	if (request.command == rejects) {
		answer_command(fd, 2);
		puts("rejected");
		exit(0);
	}
	return request;
}

static int accept_connection(int listener)
{
	struct pollfd waits = { .fd = listener, .events = POLLIN };
	int fd;

	if (poll(&waits, 1, WAIT_MS) != 1)
		errx(1, "no connection came");
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		err(1, "accept");
	return fd;
}

static int listen_on(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (strlen(path) >= sizeof(address.sun_path))
		errx(2, "%s is too long", path);
	strcpy(address.sun_path, path);
	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(fd, 128))
		err(1, "%s", path);
	puts("listening");
	fflush(stdout);
	return fd;
}

/* ---- the configuration ---- */

static uint64_t number_of(struct json_object *object, const char *name)
{
	struct json_object *value;

	if (!json_object_object_get_ex(object, name, &value))
		errx(1, "the configuration has no %s", name);
	return json_object_get_uint64(value);
}

static struct json_object *find_member(struct json_object *object,
				       const char *name)
{
	struct json_object *value = NULL;

	if (object)
		json_object_object_get_ex(object, name, &value);
	return value;
}

/* The size of pages of a zone. Where the VM has no zones, its only one has the
 * memory's own. */
static uint64_t page_size_of(struct json_object *config, const char *zone)
{
	struct json_object *memory = find_member(find_member(config, "vm_config"),
					    "memory");
	struct json_object *zones = find_member(memory, "zones"), *from = memory;
	struct json_object *size;
	size_t i;

	for (i = 0; zones && i < json_object_array_length(zones); i++) {
		struct json_object *one = json_object_array_get_idx(zones, i);
		struct json_object *id = find_member(one, "id");

		if (id && !strcmp(json_object_get_string(id), zone))
			from = one;
	}
	if (!json_object_get_boolean(find_member(from, "hugepages")))
		return 4096;
	size = find_member(from, "hugepage_size");
	return size ? json_object_get_uint64(size) : 2 << 20;
}

static void read_mapping(struct client *client, struct json_object *config,
			 struct json_object *mapping)
{
	uint32_t number = (uint32_t)number_of(mapping, "slot");
	struct json_object *zone = find_member(mapping, "zone_id");
	struct slot *slot = client->slot;

	while (slot < client->slot + client->slots && slot->number != number)
		slot++;
	if (slot == client->slot + client->slots)
		errx(1, "no memfd came for slot %u", number);
	slot->gpa = number_of(mapping, "gpa");
	slot->size = number_of(mapping, "size");
	slot->file_offset = number_of(mapping, "file_offset");
	slot->page_size = page_size_of(config, json_object_get_string(zone));
}

static void read_config(struct client *client, const char *text)
{
	struct json_object *config = json_tokener_parse(text);
	struct json_object *mappings = find_member(find_member(config,
		"memory_manager_data"), "guest_ram_mappings");
	size_t i;

	if (!mappings)
		errx(1, "the configuration has no guest_ram_mappings");
	if (json_object_array_length(mappings) != client->slots)
		errx(1, "%u memfds for %zu slots", client->slots,
		     json_object_array_length(mappings));
	for (i = 0; i < client->slots; i++)
		read_mapping(client, config,
			     json_object_array_get_idx(mappings, i));
	json_object_put(config);
}

/* ---- memory ---- */

static char *read_file(const char *name, uint64_t *length)
{
	char path[4096];
	struct stat st;
	char *bytes;
	FILE *file;

	snprintf(path, sizeof(path), "%s/%s", snapshot, name);
	file = fopen(path, "re");
	if (!file || fstat(fileno(file), &st))
		err(1, "%s", path);
	*length = (uint64_t)st.st_size;
	bytes = calloc(1, *length + 1);
	if (!bytes || fread(bytes, 1, *length, file) != *length)
		err(1, "%s", path);
	fclose(file);
	return bytes;
}

static void map_slot(struct slot *slot)
{
	uint64_t length, pages = slot->size / slot->page_size;
	char name[32];

	slot->host = mmap(NULL, slot->size, PROT_READ | PROT_WRITE, MAP_SHARED,
			  slot->fd, (off_t)slot->file_offset);
	if (slot->host == MAP_FAILED)
		err(1, "slot %u is not mapped", slot->number);
	snprintf(name, sizeof(name), "memory-%u", slot->number);
	slot->expected = (unsigned char *)read_file(name, &length);
	if (length != slot->size)
		errx(1, "%s: %llu bytes", name, (unsigned long long)length);
	slot->served = calloc(pages, sizeof(*slot->served));
	slot->written = calloc(pages, sizeof(*slot->written));
	if (!slot->served || !slot->written)
		err(1, "slot %u", slot->number);
}

/* How many pages are as they have to be. */
static uint64_t verify_slot(const struct slot *slot)
{
	uint64_t page, right = 0;

	for (page = 0; page < slot->size / slot->page_size; page++) {
		uint64_t at = page * slot->page_size, gpa = slot->gpa + at;

		if (!slot->served[page])
			continue;
		if (slot->written[page])
			memcpy(slot->expected + at + 8, &gpa, sizeof(gpa));
		if (memcmp(slot->host + at, slot->expected + at,
			   slot->page_size))
			errx(1, "the page at %#llx differs",
			     (unsigned long long)gpa);
		right++;
	}
	return right;
}

/* ---- vCPUs ---- */

struct vcpu {
	struct client *client;
	unsigned int id;
	pthread_t thread;
};

static uint64_t pick_number(uint64_t *state)
{
	*state = *state * 6364136223846793005ULL + 1442695040888963407ULL;
	return *state >> 33;
}

/* Fills a table with pages all over RAM; returns what the guest has to come
 * to. */
static uint64_t lay_out_touches(struct client *client, unsigned int id,
				uint64_t *state)
{
	uint64_t sum = 0, word;
	unsigned int i;

	for (i = 0; i < AT_ONCE; i++) {
		struct slot *slot = &client->slot[pick_number(state) %
						  client->slots];
		uint64_t page = pick_number(state) %
				(slot->size / slot->page_size);

		tables[id][i] = slot->gpa + page * slot->page_size;
		memcpy(&word, slot->expected + page * slot->page_size,
		       sizeof(word));
		sum = ((sum << 5 | sum >> 59) ^ word) * MACHINE_SCAN_MUL;
		if (id % 2)
			atomic_store(&slot->written[page], true);
	}
	return sum;
}

/* False: the vCPU's memory is gone. */
static bool touch_pages(const struct vcpu *vcpu, uint64_t *state)
{
	struct machine_vcpu *its = &vcpu->client->machine->vcpu[vcpu->id];
	uint64_t sum = lay_out_touches(vcpu->client, vcpu->id, state);
	uint64_t at = TABLES + vcpu->id * sizeof(*tables);
	char story[MACHINE_STORY];
	int ret;

	if (machine_call(its, MACHINE_TOUCH, at, AT_ONCE, vcpu->id % 2, 0))
		errx(1, "vCPU %u", vcpu->id);
	do
		ret = ioctl(its->fd, KVM_RUN, 0);
	while (!machine_done(its, ret) && ret < 0 && errno == EINTR);
	if (ret < 0 && errno == EFAULT)
		return false;
	if (!machine_done(its, ret))
		errx(1, "vCPU %u: %s", vcpu->id, machine_story(its, story));
	if (machine_result(its) != sum)
		errx(1, "vCPU %u has read what the snapshot does not have",
		     vcpu->id);
	return true;
}

static void *run_vcpu(void *data)
{
	const struct vcpu *vcpu = data;
	uint64_t state = vcpu->id + 1;
	unsigned int i;

	for (i = 0; i < touches; i += AT_ONCE)
		if (!touch_pages(vcpu, &state)) {
			atomic_fetch_add(&vcpu->client->ended, 1);
			break;
		}
	return NULL;
}

static void make_machine(struct client *client)
{
	const struct machine_options options = {
		.vcpus = client->vcpus,
		.span = 5ULL << 30,
	};
	unsigned int i;

	if (machine_new(&options, &client->machine))
		errx(1, "no VM");
	if (machine_set_slot(client->machine, MOST_SLOTS + 1, 0, TABLES,
			     sizeof(tables), tables))
		errx(1, "no tables");
	for (i = 0; i < client->slots; i++) {
		const struct slot *slot = &client->slot[i];

		if (machine_set_slot(client->machine, i + 1, 0, slot->gpa,
				     slot->size, slot->host))
			errx(1, "slot %u", slot->number);
	}
}

/* ---- the commands ---- */

static void receive_memfd(struct client *client, int fd,
			  struct request request)
{
	struct slot *slot = &client->slot[client->slots];
	union {
		struct cmsghdr align;
		char bytes[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { &slot->number, sizeof(slot->number) };
	struct msghdr message = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *rights;

	if (request.length != 4 || client->slots == MOST_SLOTS)
		errx(1, "MemoryFd with %llu bytes",
		     (unsigned long long)request.length);
	if (recvmsg(fd, &message, MSG_CMSG_CLOEXEC) != 4)
		errx(TOO_EARLY, "MemoryFd without its slot");
	rights = CMSG_FIRSTHDR(&message);
	if (!rights || rights->cmsg_type != SCM_RIGHTS ||
	    rights->cmsg_len != CMSG_LEN(sizeof(int)))
		errx(1, "MemoryFd without a descriptor");
	memcpy(&slot->fd, CMSG_DATA(rights), sizeof(slot->fd));
	client->slots++;
	answer_command(fd, 1);
}

/* Takes a text, which has to be the snapshot's file. */
static char *receive_json(int fd, uint64_t length, const char *name)
{
	uint64_t expected;
	char *right = read_file(name, &expected);
	char *bytes = calloc(1, length + 1);

	if (length != expected || !bytes)
		errx(1, "%s: %llu bytes", name, (unsigned long long)length);
	receive_exactly(fd, bytes, length);
	if (memcmp(bytes, right, length))
		errx(1, "%s differs", name);
	free(right);
	return bytes;
}

static void receive_config(struct client *client, int fd,
			   struct request request)
{
	char *text = receive_json(fd, request.length, "migration_config.json");
	unsigned int i;

	read_config(client, text);
	free(text);
	for (i = 0; i < client->slots; i++)
		map_slot(&client->slot[i]);
	if (client->vcpus)
		make_machine(client);
	answer_command(fd, 1);
}

/* As a device that is restored looks at its rings, before the OK. */
static void restore_device(const struct client *client)
{
	const struct slot *slot = &client->slot[client->slots - 1];
	uint64_t at = slot->size - slot->page_size;

	if (*(volatile unsigned char *)(slot->host + at) !=
	    slot->expected[at])
		errx(1, "a device has read what the snapshot does not have");
}

static pthread_t receive_state(struct client *client, int listener, int fd,
			       struct request request)
{
	uint16_t role;
	pthread_t thread;

	client->faults = accept_connection(listener);
	receive_exactly(client->faults, &role, sizeof(role));
	if (role != 2)
		errx(1, "role %u of the second connection", role);
	register_slots(client);
	if (pthread_create(&thread, NULL, serve_faults, client))
		errx(1, "no thread");
	free(receive_json(fd, request.length, "state.json"));
	restore_device(client);
	answer_command(fd, 1);
	return thread;
}

static void run_guest(struct client *client)
{
	struct vcpu vcpu[MOST_VCPUS];
	unsigned int i;

	for (i = 0; i < client->vcpus; i++) {
		vcpu[i] = (struct vcpu){ client, i, 0 };
		if (pthread_create(&vcpu[i].thread, NULL, run_vcpu, &vcpu[i]))
			errx(1, "no thread");
	}
	for (i = 0; i < client->vcpus; i++)
		pthread_join(vcpu[i].thread, NULL);
}

static struct request expect_command(int fd, enum command command)
{
	struct request request = receive_command(fd);

	if (request.command != command)
		errx(1, "command %u came, not %d", request.command, command);
	return request;
}

static void receive_migration(struct client *client, int listener)
{
	int fd = accept_connection(listener);
	struct request request = expect_command(fd, COMMAND_START);
	pthread_t thread;

	if (request.length || request.headers[0] || request.headers[1])
		errx(1, "Start is of another version");
	answer_command(fd, 1);
	while ((request = receive_command(fd)).command == COMMAND_MEMORY_FD)
		receive_memfd(client, fd, request);
	if (request.command != COMMAND_CONFIG)
		errx(1, "command %u came, not Config", request.command);
	receive_config(client, fd, request);
	thread = receive_state(client, listener, fd,
			       expect_command(fd, COMMAND_STATE));
	expect_command(fd, client->paused ? COMMAND_COMPLETE_PAUSED :
		       COMMAND_COMPLETE);
	answer_command(fd, 1);
	close(fd);
	run_guest(client);
	atomic_store(&client->guest_is_done, true);
	pthread_join(thread, NULL);
}

static void parse_options(struct client *client, int argc, char **argv)
{
	static const struct option options[] = {
		{ "vcpus", required_argument, NULL, 'v' },
		{ "touches", required_argument, NULL, 't' },
		{ "paused", no_argument, NULL, 's' },
		{ "wakes", no_argument, NULL, 'w' },
		{ "no-prefault", no_argument, NULL, 'p' },
		{ "first", required_argument, NULL, 'f' },
		{ "wrong", required_argument, NULL, 'x' },
		{ "after", required_argument, NULL, 'a' },
		{ "rejects", required_argument, NULL, 'r' },
		{ NULL, 0, NULL, 0 },
	};
	unsigned int value;
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		value = optarg ? (unsigned int)strtoul(optarg, NULL, 10) : 0;
		client->wakes |= c == 'w';
		client->paused |= c == 's';
		client->prefaults &= c != 'p';
		if (c == 'v')
			client->vcpus = value;
		if (c == 't')
			touches = value;
		if (c == 'f')
			client->first = value;
		if (c == 'x')
			client->wrong = (enum wrong)value;
		if (c == 'a')
			client->wrong_after = value;
		if (c == 'r')
			rejects = value;
		if (c == '?')
			exit(2);
	}
	if (argc != optind + 2 || client->vcpus > MOST_VCPUS ||
	    client->wrong >= WRONGS)
		errx(2, "usage: cloud-hypervisor SOCKET SNAPSHOT [OPTION]...");
}

int main(int argc, char **argv)
{
	static struct client client = { .prefaults = true };
	uint64_t right = 0;
	unsigned int i;

	parse_options(&client, argc, argv);
	need("uffd");
	if (client.vcpus)
		need("kvm");
	snapshot = argv[optind + 1];
	receive_migration(&client, listen_on(argv[optind]));
	if (client.refused) {
		printf("refused\nended: %u vCPUs\n", client.ended);
		return 0;
	}
	if (client.ended)
		errx(1, "%u vCPUs have lost their memory", client.ended);
	for (i = 0; i < client.slots; i++)
		right += verify_slot(&client.slot[i]);
	printf("demanded: %llu\nprefaulted: %llu\nverified: %llu pages\n",
	       (unsigned long long)client.demanded,
	       (unsigned long long)client.prefaulted,
	       (unsigned long long)right);
	return 0;
}
