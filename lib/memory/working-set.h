/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/*
 * Working sets: lists of the runs of an image that a guest touched first, in
 * the order of the touches.
 *
 * A room may use the rooms before it in this order: os, core, kernel, memory,
 * resolve, entry, setup; none that comes after it.
 */

#ifndef KVMFAULT__WORKING_SET_H
#define KVMFAULT__WORKING_SET_H

#include "../core/core.h"

struct kvmfault__image_run {
	uint64_t offset, length;	/* in the image; length is not 0 */
};

struct kvmfault_working_set {
	uint64_t image_length;
	uint8_t identity[KVMFAULT_IDENTITY_LENGTH];
	/* No two of them overlap, none goes past the image's end, and none
	 * begins where the one before it ends. */
	struct kvmfault__image_run *run;
	uint64_t runs, room;		/* room: of the array */
	uint64_t bytes;			/* of all runs */
};

/* Append, in order, all parts of the runs that are not in the set yet. The runs
 * may overlap, and must not go past the image's end. Returns 0, or -ENOMEM: the
 * set is as it was. */
int kvmfault__working_set_add(struct kvmfault_working_set *set,
			      const struct kvmfault__image_run *run,
			      uint64_t runs);

#endif
