/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * An NBD server that does not keep to the protocol, written from the protocol:
 * the fixed newstyle handshake, structured replies. In: what to lie about. Out:
 * the pattern of server_make_image(), or the lie.
 */

#include <check.h>
#include <endian.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "nbd-server.h"
#include "unit.h"

#define IHAVEOPT 0x49484156454f5054ULL
#define OPT_REPLY 0x3e889045565a9ULL
#define OPT_GO 7U
#define OPT_STRUCTURED 8U
#define OPT_META 10U
#define REP_ACK 1U
#define REP_INFO 3U
#define REP_META 4U
#define REP_UNSUPPORTED 0x80000001U
#define REQUEST 0x25609513U
#define CHUNK 0x668e33efU
#define CONTEXT 1U
#define DONE 1U
#define DATA 1U
#define STATUS 5U
#define ERROR 0x8001U
#define EINVAL_ON_WIRE 22U
#define ESHUTDOWN_ON_WIRE 108U

static bool liar_get(int fd, void *to, size_t length)
{
	/* Asked for no byte, the kernel waits for one. */
	return !length ||
	       recv(fd, to, length, MSG_WAITALL) == (ssize_t)length;
}

static bool liar_put(int fd, const void *from, size_t length)
{
	return send(fd, from, length, MSG_NOSIGNAL) == (ssize_t)length;
}

struct opt_reply {
	uint64_t magic;
	uint32_t option, reply, length;
} __attribute__((packed));

static bool liar_reply_option(int fd, uint32_t option, uint32_t reply,
			      const void *data, uint32_t length)
{
	const struct opt_reply head = {
		htobe64(OPT_REPLY), htobe32(option), htobe32(reply),
		htobe32(length),
	};

	return liar_put(fd, &head, sizeof(head)) &&
	       (!length || liar_put(fd, data, length));
}

static bool liar_reply_go(int fd, uint64_t size)
{
	struct {
		uint16_t type;
		uint64_t size;
		uint16_t flags;
	} __attribute__((packed)) info = {
		0, htobe64(size), htobe16(1 << 0 | 1 << 1 | 1 << 7),
	};

	return liar_reply_option(fd, OPT_GO, REP_INFO, &info, sizeof(info)) &&
	       liar_reply_option(fd, OPT_GO, REP_ACK, NULL, 0);
}

static bool liar_reply_meta(int fd)
{
	char context[4 + 15];
	const uint32_t number = htobe32(CONTEXT);

	memcpy(context, &number, 4);
	memcpy(context + 4, "base:allocation", 15);
	return liar_reply_option(fd, OPT_META, REP_META, context,
				 sizeof(context)) &&
	       liar_reply_option(fd, OPT_META, REP_ACK, NULL, 0);
}

/* Returns true when the client has chosen the export. */
static bool liar_shake_hands(struct liar *liar, int fd)
{
	static const char hello[] = "NBDMAGICIHAVEOPT\0\1";
	char data[1024];
	uint32_t flags, head[4], option, length;
	bool good = liar_put(fd, hello, 18) && liar_get(fd, &flags, 4);

	while (good && liar_get(fd, head, 16)) {
		option = be32toh(head[2]);
		length = be32toh(head[3]);
		if (length > sizeof(data) || !liar_get(fd, data, length))
			return false;
		if (option == OPT_GO)
			return liar_reply_go(fd, atomic_load(&liar->size));
		if (option == OPT_META)
			good = liar_reply_meta(fd);
		else
			good = liar_reply_option(fd, option,
				option == OPT_STRUCTURED ? REP_ACK :
				REP_UNSUPPORTED, NULL, 0);
	}
	return false;
}

struct request {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie, offset;
	uint32_t length;
} __attribute__((packed));

struct chunk {
	uint32_t magic;
	uint16_t flags, type;
	uint64_t cookie;
	uint32_t length;
} __attribute__((packed));

static bool liar_put_chunk(int fd, uint64_t cookie, unsigned int flags,
			   unsigned int type, uint32_t length)
{
	const struct chunk chunk = {
		htobe32(CHUNK), htobe16((uint16_t)flags),
		htobe16((uint16_t)type), cookie, htobe32(length),
	};

	return liar_put(fd, &chunk, sizeof(chunk));
}

static bool liar_put_data(int fd, uint64_t cookie, bool last, uint64_t offset,
			  uint32_t length)
{
	uint64_t word, at = htobe64(offset), end = offset + length;
	bool good = liar_put_chunk(fd, cookie, last ? DONE : 0, DATA,
				   length + 8) && liar_put(fd, &at, 8);

	for (; good && offset < end; offset += 8) {
		word = htobe64(offset);
		good = liar_put(fd, &word, 8);
	}
	return good;
}

static bool liar_put_error(int fd, uint64_t cookie, uint32_t error)
{
	const struct {
		uint32_t error;
		uint16_t length;
	} __attribute__((packed)) data = { htobe32(error), 0 };

	return liar_put_chunk(fd, cookie, DONE, ERROR, sizeof(data)) &&
	       liar_put(fd, &data, sizeof(data));
}

static bool liar_put_status(int fd, uint64_t cookie, enum lie lie,
			    uint32_t length)
{
	const uint32_t data[3] = {
		htobe32(CONTEXT),
		lie == LIE_ZERO_STATUS ? 0 : htobe32(length), 0,
	};

	if (lie == LIE_NO_STATUS)
		return liar_put_error(fd, cookie, EINVAL_ON_WIRE);
	return liar_put_chunk(fd, cookie, DONE, STATUS, sizeof(data)) &&
	       liar_put(fd, data, sizeof(data));
}

/* Returns false: hang up. */
static bool liar_answer_read(int fd, enum lie lie, uint64_t cookie,
			     uint64_t offset, uint32_t length)
{
	static const char nonsense[20] = "I am not a server.";
	uint32_t half = length / 2;

	switch (lie) {
	case LIE_SHORT:
		return liar_put_data(fd, cookie, true, offset, half);
	case LIE_TWICE:
		return liar_put_data(fd, cookie, false, offset, half) &&
		       liar_put_data(fd, cookie, true, offset, half);
	case LIE_BACKWARDS:
		return liar_put_data(fd, cookie, false, offset + half, half) &&
		       liar_put_data(fd, cookie, true, offset, half);
	case LIE_MAGIC:
		return liar_put(fd, nonsense, sizeof(nonsense));
	case LIE_SILENT:
		return true;
	case LIE_HANG_UP:
		return false;
	case LIE_ENDS:
		return liar_put_error(fd, cookie, ESHUTDOWN_ON_WIRE);
	default:
		return liar_put_data(fd, cookie, true, offset, length);
	}
}

static void liar_serve(struct liar *liar, int fd)
{
	static const char greeting[] = "220 smtp.example.com, at your service";
	struct request request;
	bool good = true;

	if (atomic_load(&liar->lie) == LIE_GREETING)
		good = liar_put(fd, greeting, sizeof(greeting));
	good = good && liar_shake_hands(liar, fd);

	while (good && liar_get(fd, &request, sizeof(request))) {
		enum lie lie = atomic_load(&liar->lie);
		uint32_t length = be32toh(request.length);
		unsigned int type = be16toh(request.type);

		atomic_fetch_add(&liar->requests, 1);
		if (type == 7)
			good = liar_put_status(fd, request.cookie, lie, length);
		else if (type == 0)
			good = liar_answer_read(fd, lie, request.cookie,
						be64toh(request.offset),
						length);
		else
			good = false;
	}
}

static void *liar_run(void *data)
{
	struct liar *liar = data;
	int fd;

	while ((fd = accept(liar->fd, NULL, NULL)) >= 0) {
		atomic_fetch_add(&liar->connections, 1);
		liar_serve(liar, fd);
		close(fd);
	}
	return NULL;
}

void liar_start(struct liar *liar, enum lie lie, uint64_t size)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	memset(liar, 0, sizeof(*liar));
	atomic_store(&liar->lie, lie);
	atomic_store(&liar->size, size);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s",
		 server_path("socket"));
	unlink(address.sun_path);
	liar->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ck_assert_int_eq(bind(liar->fd, (struct sockaddr *)&address,
			      sizeof(address)), 0);
	ck_assert_int_eq(listen(liar->fd, 8), 0);
	ck_assert_int_eq(pthread_create(&liar->thread, NULL, liar_run, liar),
			 0);
}

/* The client has gone, or goes now. */
void liar_stop(struct liar *liar)
{
	shutdown(liar->fd, SHUT_RDWR);
	pthread_join(liar->thread, NULL);
	close(liar->fd);
}
