/* SPDX-License-Identifier: LGPL-2.1-or-later OR MIT */
/* Copyright (c) 2026 the libkvmfault authors */

/* An image on an NBD server. In: its URI. Out: the source of libkvmfault-nbd,
 * which says by itself what is wrong. */

#include <kvmfault-nbd.h>

#include "image.h"
#include "tool.h"

static void log_line(void *data, enum kvmfault_log_level level,
		     const char *message)
{
	(void)data;
	complain("%s%s", level == KVMFAULT_LOG_WARNING ? "warning: " : "",
		 message);
}

int image_connect(const struct image_place *place,
		  struct kvmfault_source *source)
{
	const struct kvmfault_nbd_options options = {
		.size = sizeof(options),
		.uri = place->uri,
		.fetches = place->fetches,
		.allow_files = true,	/* the user's own URI */
		.log = log_line,
	};

	return kvmfault_source_nbd(&options, source);
}
