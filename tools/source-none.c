/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* In the place of source-nbd.c, for a program without libnbd. */

#include <errno.h>

#include "image.h"
#include "tool.h"

int image_connect(const struct image_place *place,
		  struct kvmfault_source *source)
{
	(void)source;
	complain("cannot use %s: this program was built without libnbd; install it, and build with -Dnbd=enabled",
		 place->uri);
	return -EOPNOTSUPP;
}
