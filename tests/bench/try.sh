#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# try.sh PROGRAM: runs bench-admission a few times, so that the suite shows that it still works.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
mkdir -m 0700 "$place/admission"
"$1" "$place/admission" 3
