/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Beside the path of a fault: the file of a working set, as
 * kvmfault_working_set(5) has it. In: a set, or a descriptor. Out: the file's
 * bytes, or the set that was saved. A file is not believed: memory is taken for
 * bytes that were read, and not for those that it says will come, and a file
 * that was cut or changed gives no set.
 */

#include <string.h>

#include "working-set.h"

static const char magic[8] = { 'K', 'V', 'M', 'F', 'W', 'S', 'E', 'T' };

#define VERSION 1
#define CHUNK 65536ULL

/* The header: where each member begins. */
enum {
	AT_MAGIC = 0,
	AT_VERSION = 8,			/* 4 bytes */
	AT_SHIFT = 12,			/* 4 bytes */
	AT_IMAGE_LENGTH = 16,
	AT_IDENTITY = 24,
	AT_RUNS = 24 + KVMFAULT_IDENTITY_LENGTH,
	AT_BODY = 32 + KVMFAULT_IDENTITY_LENGTH,	/* its length */
	HEADER = 40 + KVMFAULT_IDENTITY_LENGTH,
};
#define CHECKSUM 4ULL			/* bytes, behind the body */
#define SHORTEST_RUN 2ULL		/* bytes of the body: two numbers */

/* ---- numbers ---- */

static void number_store(uint8_t *to, uint64_t value, size_t length)
{
	for (; length; length--, value >>= 8)
		*to++ = (uint8_t)value;
}

static uint64_t number_load(const uint8_t *from, size_t length)
{
	uint64_t value = 0;

	while (length--)
		value = value << 8 | from[length];
	return value;
}

/* CRC-32 of IEEE 802.3, four bits at a time. It begins with 0. */
static uint32_t checksum_add(uint32_t sum, const uint8_t *bytes, size_t length)
{
	static const uint32_t table[16] = {
		0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac,
		0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
		0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c,
		0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
	};

	sum = ~sum;
	for (; length; length--) {
		sum ^= *bytes++;
		sum = sum >> 4 ^ table[sum & 15];
		sum = sum >> 4 ^ table[sum & 15];
	}
	return ~sum;
}

/* How far a run begins behind the end of the one before it, or before that:
 * 0, -1, 1, -2... become 0, 1, 2, 3. */
static uint64_t step_fold(int64_t step)
{
	return (uint64_t)step << 1 ^ (step < 0 ? UINT64_MAX : 0);
}

static uint64_t step_unfold(uint64_t folded)
{
	return folded >> 1 ^ (folded & 1 ? UINT64_MAX : 0);
}

/* ---- saving ---- */

struct writer {
	int fd;				/* below 0: only counts */
	int err;
	uint32_t checksum;
	uint64_t length;		/* of all bytes so far */
	size_t used;			/* of the buffer */
	uint8_t buffer[4096];
};

static int file_write(int fd, const uint8_t *bytes, size_t length)
{
	while (length) {
		ssize_t n = kvmfault__sys_write(fd, bytes, length);

		if (n == -EINTR)
			continue;
		if (n <= 0)
			return n ? (int)n : -EIO;
		bytes += n;
		length -= (size_t)n;
	}
	return 0;
}

static void writer_flush(struct writer *writer)
{
	writer->checksum = checksum_add(writer->checksum, writer->buffer,
					writer->used);
	if (!writer->err && writer->fd >= 0)
		writer->err = file_write(writer->fd, writer->buffer,
					  writer->used);
	writer->used = 0;
}

static void writer_put(struct writer *writer, uint64_t byte)
{
	if (writer->used == sizeof(writer->buffer))
		writer_flush(writer);
	writer->buffer[writer->used++] = (uint8_t)byte;
	writer->length++;
}

/* Seven bits at a time, the lowest first; all but the last byte have bit 7. */
static void writer_put_number(struct writer *writer, uint64_t value)
{
	for (; value >= 0x80; value >>= 7)
		writer_put(writer, value | 0x80);
	writer_put(writer, value);
}

static void writer_put_runs(struct writer *writer,
			    const struct kvmfault_working_set *set,
			    unsigned int shift)
{
	uint64_t i, end = 0;

	for (i = 0; i < set->runs; i++) {
		uint64_t offset = set->run[i].offset >> shift;
		uint64_t length = set->run[i].length >> shift;

		writer_put_number(writer, step_fold((int64_t)(offset - end)));
		writer_put_number(writer, length);
		end = offset + length;
	}
}

/* All offsets and lengths are multiples of 1 << shift: pages, mostly. */
static unsigned int file_shift(const struct kvmfault_working_set *set)
{
	uint64_t i, all = 0;

	for (i = 0; i < set->runs; i++)
		all |= set->run[i].offset | set->run[i].length;
	return all ? (unsigned int)__builtin_ctzll(all) : 0;
}

KVMFAULT__EXPORT
int kvmfault_working_set_save(const struct kvmfault_working_set *set, int fd)
{
	struct writer counting = { .fd = -1 }, writer = { .fd = fd };
	uint8_t *header = writer.buffer, checksum[CHECKSUM];
	unsigned int shift;

	if (!set)
		return -EINVAL;
	shift = file_shift(set);
	writer_put_runs(&counting, set, shift);
	memcpy(header + AT_MAGIC, magic, sizeof(magic));
	number_store(header + AT_VERSION, VERSION, 4);
	number_store(header + AT_SHIFT, shift, 4);
	number_store(header + AT_IMAGE_LENGTH, set->image_length, 8);
	memcpy(header + AT_IDENTITY, set->identity, sizeof(set->identity));
	number_store(header + AT_RUNS, set->runs, 8);
	number_store(header + AT_BODY, counting.length, 8);
	writer.used = HEADER;
	writer_put_runs(&writer, set, shift);
	writer_flush(&writer);
	number_store(checksum, writer.checksum, CHECKSUM);
	return writer.err ? writer.err : file_write(fd, checksum, CHECKSUM);
}

/* ---- loading ---- */

static int file_read(int fd, uint8_t *bytes, uint64_t length)
{
	while (length) {
		ssize_t n = kvmfault__sys_read(fd, bytes, length);

		if (n == -EINTR)
			continue;
		if (n <= 0)
			return n ? (int)n : -ENODATA;
		bytes += n;
		length -= (uint64_t)n;
	}
	return 0;
}

/* Reads so many bytes into new memory, which grows as they come. */
static int file_read_body(int fd, uint64_t length, uint8_t **bytes)
{
	uint64_t done = 0, room = length < CHUNK ? length : CHUNK;
	uint8_t *old = NULL, *new;
	int err = 0;

	while (!err && done < length) {
		new = kvmfault__sys_alloc(room, 0);
		if (new && old)
			memcpy(new, old, done);
		kvmfault__sys_free(old);
		old = new;
		if (!new)
			return -ENOMEM;
		err = file_read(fd, new + done, room - done);
		done = room;
		room = length - done < room ? length : 2 * room;
	}
	if (err)
		kvmfault__sys_free(old);
	else
		*bytes = old;
	return err;
}

struct reader {
	const uint8_t *at, *end;
	bool garbled;
};

static uint64_t reader_take_number(struct reader *reader)
{
	uint64_t value = 0;
	unsigned int shift = 0;
	uint8_t byte;

	do {
		/* The tenth byte has room for one bit. */
		if (reader->at == reader->end ||
		    (shift == 63 && *reader->at > 1)) {
			reader->garbled = true;
			return 0;
		}
		byte = *reader->at++;
		value |= (uint64_t)(byte & 0x7f) << shift;
		shift += 7;
	} while (byte & 0x80);
	return value;
}

/* `end` is the end of the run before it. */
static void reader_take_run(struct reader *reader, unsigned int shift,
			    uint64_t image_length, uint64_t end,
			    struct kvmfault__image_run *run)
{
	uint64_t most = image_length >> shift, start = end >> shift;
	uint64_t length;

	start += step_unfold(reader_take_number(reader));
	length = reader_take_number(reader);
	if (!length || start > most || length > most - start)
		reader->garbled = true;
	*run = (struct kvmfault__image_run){ start << shift, length << shift };
}

/* The header's members, but for those that were looked at. */
struct header {
	unsigned int shift;
	uint64_t runs, body;
	struct kvmfault_working_set_options image;
};

static int header_read(int fd, uint8_t *bytes, struct header *header)
{
	int err = file_read(fd, bytes, HEADER);

	if (err)
		return err;
	if (memcmp(bytes + AT_MAGIC, magic, sizeof(magic)))
		return -EBADMSG;
	if (number_load(bytes + AT_VERSION, 4) != VERSION)
		return -EPROTONOSUPPORT;
	header->shift = (unsigned int)number_load(bytes + AT_SHIFT, 4);
	header->runs = number_load(bytes + AT_RUNS, 8);
	header->body = number_load(bytes + AT_BODY, 8);
	header->image.size = sizeof(header->image);
	header->image.image_length = number_load(bytes + AT_IMAGE_LENGTH, 8);
	memcpy(header->image.identity, bytes + AT_IDENTITY,
	       sizeof(header->image.identity));
	/* More runs than the body has room for would be memory that is taken
	 * for nothing. */
	if (header->shift > 63 || !header->image.image_length ||
	    header->body > UINT64_MAX - CHECKSUM ||
	    header->runs > header->body / SHORTEST_RUN)
		return -EBADMSG;
	return 0;
}

static int body_decode(const struct header *header, const uint8_t *body,
		       struct kvmfault__image_run *run)
{
	struct reader reader = { .at = body, .end = body + header->body };
	uint64_t i, end = 0;

	for (i = 0; i < header->runs && !reader.garbled; i++) {
		reader_take_run(&reader, header->shift,
				header->image.image_length, end, &run[i]);
		end = run[i].offset + run[i].length;
	}
	return reader.garbled || reader.at != reader.end ? -EBADMSG : 0;
}

/* Runs that overlap do not add up to the set's bytes. */
static bool body_has_overlap(const struct kvmfault_working_set *set,
			 const struct kvmfault__image_run *run, uint64_t runs)
{
	uint64_t left = set->bytes;

	for (; runs && run->length <= left; runs--, run++)
		left -= run->length;
	return runs;
}

static int body_load(const struct header *header, const uint8_t *body,
		     struct kvmfault_working_set *set)
{
	struct kvmfault__image_run *run;
	int err;

	run = kvmfault__sys_alloc((header->runs + 1) * sizeof(*run), 0);
	if (!run)
		return -ENOMEM;
	err = body_decode(header, body, run);
	if (!err)
		err = kvmfault__working_set_add(set, run, header->runs);
	if (!err && body_has_overlap(set, run, header->runs))
		err = -EBADMSG;
	kvmfault__sys_free(run);
	return err;
}

KVMFAULT__EXPORT
int kvmfault_working_set_load(int fd, struct kvmfault_working_set **set)
{
	struct kvmfault_working_set *new = NULL;
	uint8_t bytes[HEADER], *body = NULL;
	struct header header;
	uint32_t checksum;
	int err;

	if (!set)
		return -EINVAL;
	*set = NULL;
	err = header_read(fd, bytes, &header);
	if (!err)
		err = file_read_body(fd, header.body + CHECKSUM, &body);
	if (err)
		return err;
	checksum = checksum_add(checksum_add(0, bytes, HEADER), body,
				header.body);
	if (number_load(body + header.body, CHECKSUM) != checksum)
		err = -EBADMSG;
	if (!err)
		err = kvmfault_working_set_new(&header.image, &new);
	if (!err)
		err = body_load(&header, body, new);
	kvmfault__sys_free(body);
	if (err)
		kvmfault_working_set_free(new);
	else
		*set = new;
	return err;
}
