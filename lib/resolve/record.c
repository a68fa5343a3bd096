/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Stage publish, of a memory that is recorded: the pages that came are noted.
 * In: a request with the pages that it installed. Out: one more run in the
 * recording's array, until its time is over or its limit is reached. The array
 * has room for all, so that no thread allocates or waits for another.
 */

#include "record.h"

static bool record_is_over(const struct kvmfault_recording *recording)
{
	return atomic_load(&recording->bytes) >= recording->limit ||
	       (recording->until != UINT64_MAX &&
		kvmfault__sys_now() >= recording->until);
}

static void record_run(struct kvmfault_recording *recording,
		       const struct kvmfault__request *rq)
{
	const struct kvmfault_memory *memory = rq->request.memory;
	uint64_t length = rq->installed.there << memory->page_shift;

	/* The threads that find room are not more than the limit has pages. */
	if (record_is_over(recording) ||
	    atomic_fetch_add(&recording->bytes, length) >= recording->limit)
		return;
	recording->run[atomic_fetch_add(&recording->runs, 1)] =
		(struct kvmfault__image_run){
			.offset = memory->source_offset + rq->request.offset,
			.length = length,
		};
}

void kvmfault__record(const struct kvmfault__request *rq)
{
	struct kvmfault_memory *memory = rq->request.memory;
	struct kvmfault_recording *recording;

	if (kvmfault__is_call(rq->request.fault))
		return;
	recording = kvmfault__hold(rq->seat, KVMFAULT__HAZARD_RECORDING,
				   &memory->recording);
	if (recording)
		record_run(recording, rq);
	kvmfault__unhold(rq->seat, KVMFAULT__HAZARD_RECORDING);
}
