#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later OR MIT
# Copyright (c) 2026 the libkvmfault authors

# usage: lint.sh PAGE=ALIAS,ALIAS,...
#
# Each page is free of warnings, and its aliases are the names that its NAME
# section has beside its own.

set -u

if ! command -v mandoc >/dev/null; then
	case ,${KVMFAULT_REQUIRE-}, in
	*,mandoc,*)
		echo 'REQUIRED, but missing: mandoc'
		exit 1
		;;
	esac
	echo 'SKIP: mandoc: not installed'
	exit 77
fi

names() {
	sed -n '/^\.Sh NAME/,/^\.Nd/s/^\.Nm \([a-z_-]*\).*/\1/p' "$1" | sort
}

bad=0
for argument; do
	page=${argument%%=*}
	listed=$({
		basename "$page" | sed 's/\..*//'
		echo "${argument#*=}" | tr , '\n'
	} | sed '/^$/d' | sort)

	mandoc -T lint -W warning "$page" || bad=1
	if [ "$(names "$page")" != "$listed" ]; then
		echo "$page: the aliases in meson.build differ from its NAME"
		bad=1
	fi
done
[ "$#" -gt 0 ] && exit $bad
