#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0-or-later
# try.sh BENCH-ADMISSION: lets it measure three requests, so that the suite shows that it still works.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"$1" "$place" 3
